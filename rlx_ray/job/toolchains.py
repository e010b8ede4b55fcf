"""Which toolchains a machine has: asked where artifacts are built, told where they are planned."""

from __future__ import annotations

from collections.abc import Iterable

from rlx_ray.compiler.backend import backend_for
from rlx_ray.errors import ToolchainMismatch, ToolchainMissing
from rlx_ray.target import Target, Toolchain

Chain = tuple[Target, Toolchain]
"""A target with its pinned toolchain."""


def refusals(chains: Iterable[Chain]) -> dict[str, str]:
    """Why this machine cannot build for some targets, by the target's name.

    Args:
        chains: what is to be built for.
    """
    found = {wanted.name: _refusal(wanted, chain) for wanted, chain in chains}
    return {name: why for name, why in found.items() if why}


def _refusal(wanted: Target, chain: Toolchain) -> str:
    backend = backend_for(wanted)
    try:
        backend.check(chain)
    except (ToolchainMissing, ToolchainMismatch) as error:
        return str(error)
    return backend.refusal(wanted)
