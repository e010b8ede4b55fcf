"""Why a variant cannot be built by this version: what its target can do against what is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlx_ray.component import (
    CompileProfile,
    KernelDispatchConfig,
    ModelVariant,
    OpKind,
    QuantScheme,
)
from rlx_ray.component.kernel_dispatch import decide
from rlx_ray.models.family import ModelInfo
from rlx_ray.target import Target
from rlx_ray.weights.formats import BLOCK, scheme_block

_MATMUL = OpKind.parse("MatMul")


def weights_lacking(scheme: QuantScheme | None, info: ModelInfo, matrices: Sequence[object]) -> str:
    """Why quantised weights cannot be had; empty if they can, or are not asked for."""
    if scheme is None:
        return ""
    if info.scheme not in (None, scheme):
        return f"the file's weights are in {info.scheme}: quant file keeps them, null unpacks them"
    if info.scheme is None and scheme.gguf_block_size > BLOCK:
        return f"weights are not quantised to {scheme} here, only read from files that are"
    if not matrices:
        return f"no matrix has rows that blocks of {scheme_block(scheme)} divide ({scheme})"
    return ""


def kernels_lacking(
    wanted: Target,
    variant: ModelVariant,
    profile: CompileProfile,
    dispatch: KernelDispatchConfig,
    matrices: Mapping[str, str],
) -> str:
    """Why this version has no kernels for a variant; empty if it has."""
    if variant.ragged_rows is not None and not dispatch.all_native:
        return "ragged variants (rows) need native kernels: dispatch forces common ones"
    precision, can = profile.precision.compute, wanted.can
    kind = wanted.kind.upper()
    if precision not in can.precisions:
        return f"precision.compute {precision} has no kernels on {kind} targets"
    if precision not in can.common_precisions and _forces_common_matmul(dispatch):
        return f"precision.compute {precision} needs native MatMul: dispatch forces the common one"
    if matrices and not can.common_blocks and not dispatch.all_native:
        return "quantised weights need native kernels: dispatch forces common ones"
    wide = sorted({form for form in matrices.values() if form.startswith("fp8")})
    if wide and not can.fp8_weights:
        return f"{wide[0]} weights have no kernels on {kind} targets"
    return _unknown_option(wanted, profile)


def _forces_common_matmul(dispatch: KernelDispatchConfig) -> bool:
    return decide(dispatch, _MATMUL, (_MATMUL,), (_MATMUL,)).lower_to_common


def _unknown_option(wanted: Target, profile: CompileProfile) -> str:
    """What is wrong with `profile.backend`; empty if nothing is."""
    for name, value in profile.backend:
        if name not in wanted.can.options:
            return f"profile.backend option {name!r} is not known to {wanted.kind.upper()} targets"
        if not isinstance(value, bool):
            return f"profile.backend option {name!r} is {value!r}, not true or false"
    return ""
