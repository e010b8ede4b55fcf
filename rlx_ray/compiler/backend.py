"""The compiler's one choice by kind of target."""

from __future__ import annotations

from importlib import import_module

from rlx_ray.compiler.ir.program import Backend
from rlx_ray.errors import CompileError
from rlx_ray.target import Target

_BACKENDS = {
    "cpu": "rlx_ray.compiler.cpu.backend",
    "cuda": "rlx_ray.compiler.cuda.backend",
}
"""Where the backend of each kind is, imported at first use: a builder needs one of them."""


def backend_for(target: Target) -> Backend:
    """The backend of a target.

    Raises:
        CompileError: this installation has none.
    """
    if target.kind not in _BACKENDS:
        raise CompileError(
            f"target {target.name!r} has no backend in this version.",
            f"Use a target of kind {' or '.join(_BACKENDS)}.",
        )
    backend: Backend = import_module(_BACKENDS[target.kind]).BACKEND
    return backend
