"""The pipeline: one straight list of named passes, each followed by its level's verifier."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from rlx_ray.compiler.backend import Program
from rlx_ray.compiler.cpu.lir import Lir
from rlx_ray.compiler.cpu.precision import lower_precision
from rlx_ray.compiler.cpu.schedule import schedule
from rlx_ray.compiler.cpu.verify import verify_lir
from rlx_ray.compiler.cuda.launches import Launches
from rlx_ray.compiler.cuda.lower import lower as lower_cuda
from rlx_ray.compiler.cuda.verify import verify_launches
from rlx_ray.compiler.ir.hir import Hir, HirOp
from rlx_ray.compiler.ir.mir import Mir
from rlx_ray.compiler.ir.verify import verify_hir, verify_mir
from rlx_ray.compiler.passes.dispatch import dispatch
from rlx_ray.compiler.passes.fuse import fuse
from rlx_ray.compiler.passes.lower import lower
from rlx_ray.compiler.passes.simplify import drop_dead, fold_constants, share_equal
from rlx_ray.component.dispatch import KernelDispatchConfig, OpKind
from rlx_ray.component.profile import CompileProfile
from rlx_ray.target import Target

MirPass = Callable[[Mir], Mir]


@dataclass(frozen=True, slots=True)
class Stages:
    """The program after each stage: what `explain` prints. The last is the target's own."""

    hir: Hir
    lowered: Mir
    mir: Mir
    program: Program

    @property
    def lir(self) -> Lir:
        """The program of a CPU target."""
        assert isinstance(self.program, Lir)
        return self.program

    @property
    def launches(self) -> Launches:
        """The program of a CUDA target."""
        assert isinstance(self.program, Launches)
        return self.program


def mir_passes(
    profile: CompileProfile,
    config: KernelDispatchConfig,
    supported: Collection[OpKind],
    target: Target,
    formats: Mapping[str, str],
) -> tuple[tuple[str, MirPass], ...]:
    """The passes over the MIR that a profile asks for, in order."""
    passes: list[tuple[str, MirPass]] = [("dispatch", lambda m: dispatch(m, config, supported))]
    if profile.passes.constant_folding:
        passes.append(("fold_constants", fold_constants))
    passes.append(("share_equal", share_equal))
    if profile.passes.dce:
        passes.append(("drop_dead", drop_dead))
    if not profile.fusion.skip:
        passes.append(("fuse", fuse))
    rest = profile.precision.compute
    if target.kind == "cpu" and (formats or rest != "f32"):
        lowered = partial(lower_precision, formats=formats, rest=rest, target=target)
        passes.append(("lower_precision", lowered))
    return tuple(passes)


def run(
    hir: Hir,
    binding: dict[int, int],
    profile: CompileProfile,
    config: KernelDispatchConfig,
    supported: Collection[OpKind],
    target: Target,
    formats: Mapping[str, str] | None = None,
) -> Stages:
    """From a model's template to the program of one variant.

    Args:
        hir: the template, with symbolic dims.
        binding: the variant's dim binding.
        profile: which passes run.
        config: native or common kernels.
        supported: kinds that the backend has native kernels for.
        target: decides what comes behind the MIR, tile shapes and the packed layout.
        formats: of parameters whose weights stay quantised (rlx_ray.weights.formats).

    Raises:
        VerifyError: a pass made something that its level forbids (a bug in that pass).
    """
    verify_hir(hir, bound=False)
    bound = verify_hir(hir.specialise(binding), bound=True)
    direct = profile.fusion.policy == "direct"
    lowered = verify_mir(lower(bound, direct=direct))
    mir = lowered
    for _, one in mir_passes(profile, config, supported, target, formats or {}):
        mir = verify_mir(one(mir))
    if target.kind == "cuda":
        launches = lower_cuda(mir, profile, formats or {}, _names(hir))
        return Stages(bound, lowered, mir, verify_launches(launches))
    return Stages(bound, lowered, mir, verify_lir(schedule(mir, target, names=_names(hir))))


def _names(hir: Hir) -> tuple[str, ...]:
    """What the outputs are called: a decoder's by their nodes, an encoder's one `embedding`."""
    cached = any(node.op is HirOp.CACHED_ATTENTION for node in hir.nodes)
    return hir.outputs if cached or len(hir.outputs) > 1 else ("embedding",)
