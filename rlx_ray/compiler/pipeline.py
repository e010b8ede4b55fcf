"""The pipeline: one straight list of named passes, each followed by its level's verifier.

::

    HIR   specialise                                     verify_hir
    MIR   lower                                          verify_mir, here and behind each pass
          dispatch        native or common kernels
          fold_constants  passes.constant_folding
          share_equal
          drop_dead       passes.dce
          fuse            unless fusion.skip
    cpu:  lower_precision precision.compute, or quantised weights
          schedule        regions, layout, cost, calls   verify_lir
    cuda: drop_single_rows
          lower           analysis, rules, sampling      verify_launches
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.compiler.ir.hir import Hir
from rlx_ray.compiler.ir.mir import Mir
from rlx_ray.compiler.ir.program import Backend, Order, Program, Step
from rlx_ray.compiler.ir.verify import verify_hir, verify_mir
from rlx_ray.compiler.passes.dispatch import dispatch
from rlx_ray.compiler.passes.fuse import fuse
from rlx_ray.compiler.passes.lower import lower
from rlx_ray.compiler.passes.simplify import drop_dead, fold_constants, share_equal


@dataclass(frozen=True, slots=True)
class Stages:
    """The program after each stage: what `explain` prints. The last is the target's own."""

    hir: Hir
    lowered: Mir
    mir: Mir
    program: Program


def mir_passes(order: Order, backend: Backend) -> tuple[Step, ...]:
    """The passes over the MIR that a profile asks for, in order."""
    wanted = order.profile
    passes: list[Step] = [("dispatch", lambda m: dispatch(m, order.dispatch, backend.supported))]
    if wanted.passes.constant_folding:
        passes.append(("fold_constants", fold_constants))
    passes.append(("share_equal", share_equal))
    if wanted.passes.dce:
        passes.append(("drop_dead", drop_dead))
    if not wanted.fusion.skip:
        passes.append(("fuse", fuse))
    return (*passes, *backend.passes(order))


def run(hir: Hir, binding: dict[int, int], order: Order, backend: Backend) -> Stages:
    """From a model's template to the program of one variant.

    Args:
        hir: the template, with symbolic dims.
        binding: the variant's dim binding.
        order: what it is compiled for.
        backend: of its target.

    Raises:
        VerifyError: a pass made something that its level forbids (a bug in that pass).
    """
    verify_hir(hir, bound=False)
    bound = verify_hir(hir.specialise(binding), bound=True)
    lowered = verify_mir(lower(bound, direct=order.profile.fusion.policy == "direct"))
    mir = lowered
    for _, one in mir_passes(order, backend):
        mir = verify_mir(one(mir))
    return Stages(bound, lowered, mir, backend.verify(backend.lower(mir, order)))
