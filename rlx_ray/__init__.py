"""rlx_ray: a Ray-distributed batch compile and serving orchestrator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx_ray.compiler.compile import compile
    from rlx_ray.component import (
        CompilationMode,
        KernelDispatchConfig,
        KernelDispatchPolicy,
        LayerComposition,
        ModelComponent,
        ModelPhase,
        ModelVariant,
        QuantScheme,
    )
    from rlx_ray.job.compile_miss import load
    from rlx_ray.store import AotStore
    from rlx_ray.target import Target

__version__ = "0.1.0"

_HOMES = {
    "AotStore": "rlx_ray.store",
    "CompilationMode": "rlx_ray.component",
    "KernelDispatchConfig": "rlx_ray.component",
    "KernelDispatchPolicy": "rlx_ray.component",
    "LayerComposition": "rlx_ray.component",
    "ModelComponent": "rlx_ray.component",
    "ModelPhase": "rlx_ray.component",
    "ModelVariant": "rlx_ray.component",
    "QuantScheme": "rlx_ray.component",
    "Target": "rlx_ray.target",
    "compile": "rlx_ray.compiler.compile",
    "load": "rlx_ray.job.compile_miss",
}

__all__ = [
    "AotStore",
    "CompilationMode",
    "KernelDispatchConfig",
    "KernelDispatchPolicy",
    "LayerComposition",
    "ModelComponent",
    "ModelPhase",
    "ModelVariant",
    "QuantScheme",
    "Target",
    "compile",
    "load",
]


def __getattr__(name: str) -> Any:
    """Public names, imported at first use (PEP 562): `import rlx_ray` alone loads nothing else."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'rlx_ray' has no attribute {name!r}")
    return getattr(import_module(home), name)
