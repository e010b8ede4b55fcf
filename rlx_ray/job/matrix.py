"""From a model and its facts to BuildSpecs: the matrix, expanded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from rlx_ray.component import (
    CompileProfile,
    KernelDispatchConfig,
    ModelComponent,
    ModelPhase,
    ModelVariant,
    OpKind,
    QuantScheme,
    composition_key,
    preset_for_phase,
)
from rlx_ray.component.dispatch import decide
from rlx_ray.component.variant import PAST_SEQ, ROWS
from rlx_ray.config.spec import MatrixRow, ModelSpec
from rlx_ray.errors import ConfigError
from rlx_ray.identity import build_id, packing_id
from rlx_ray.models.family import Family, ModelFacts
from rlx_ray.spec import BuildSpec
from rlx_ray.target import ABI, Target, target, toolchain_for
from rlx_ray.weights.formats import (
    BLOCK,
    QUANT_ROWS,
    MatrixFormat,
    join,
    scheme_block,
    scheme_format,
)
from rlx_ray.weights.params import ParamSpec

_MATMUL = OpKind.parse("MatMul")


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant of one model for one target.

    Attributes:
        spec: all that a builder needs.
        path: the matrix row that asked for it.
        unsupported: why this version cannot build it; empty if it can.
    """

    spec: BuildSpec
    path: str
    unsupported: str = ""


def expand(
    model: ModelSpec, family: Family, facts: ModelFacts, toolchain: Mapping[str, object]
) -> tuple[Cell, ...]:
    """Every cell of a model's matrix, in the config's order: row, target, then sizes.

    A cell that several rows ask for with equal specs stands once.

    Args:
        model: the model as the config says it.
        family: its family.
        facts: what its checkpoint says.
        toolchain: the config's `toolchain` section.

    Raises:
        ConfigError: a phase that the family lacks, a size past the model's positions, or two
            components of equal cache key and different specs.
    """
    cells: dict[tuple[str, str], Cell] = {}
    for row in model.matrix:
        _check_row(model, family, facts, row)
        targets = model.targets if row.targets is None else tuple(map(target, row.targets))
        for wanted in targets:
            for variant in variants(row):
                cell = _cell(model, facts, row, variant, wanted, toolchain)
                key = (wanted.name, cell.spec.component.cache_key_hex)
                known = cells.setdefault(key, cell)
                if known is not cell and known.spec.digest != cell.spec.digest:
                    raise ConfigError(
                        f"{row.path}: {variant} of {model.name!r} has the cache key {key[1]} of "
                        f"{known.spec.component.variant} in {known.path}, but is another build.",
                        "RLX's key does not tell them apart: take one of the two rows out.",
                    )
    return tuple(cells.values())


def variants(row: MatrixRow) -> Iterator[ModelVariant]:
    """The variants of one row: the product of its lists, less `exclude`, plus `include`."""
    names = ("batch", "seq", "past_seq", "rows")
    axes: list[Sequence[int | None]] = [
        row.batch,
        row.seq,
        row.past_seq or (None,),
        row.rows or (None,),
    ]
    points = [dict(zip(names, values, strict=True)) for values in product(*axes)]
    excluded = [dict(point) for point in row.exclude]
    for point in points:
        if not any(all(point[k] == v for k, v in e.items()) for e in excluded):
            yield _variant(row.phase, point)
    for included in row.include:
        yield _variant(row.phase, dict(included))


def _variant(phase: ModelPhase, point: Mapping[str, int | None]) -> ModelVariant:
    batch, seq = point["batch"], point["seq"]
    assert batch is not None
    assert seq is not None
    past = point.get("past_seq")
    if phase is ModelPhase.PREFILL and past is not None:
        return ModelVariant(phase, batch, seq).with_extra(PAST_SEQ, past)
    variant = ModelVariant(phase, batch, seq, past)
    rows = point.get("rows")
    return variant if rows is None else variant.with_extra(ROWS, rows)


def _check_row(model: ModelSpec, family: Family, facts: ModelFacts, row: MatrixRow) -> None:
    if row.phase not in family.phases:
        known = [p.spelling for p in family.phases]
        raise ConfigError(
            f"{row.path}.phase is {row.phase.spelling!r}, which family {family.name!r} does not "
            "have.",
            f"Use one of {known}.",
        )
    limit = facts.limits.max_positions
    for variant in variants(row):
        past = dict(variant.dim_binding).get(PAST_SEQ, 0)
        if past + variant.seq > limit + (variant.phase is ModelPhase.DECODE):
            name, size = ("past_seq", past) if past else ("seq", variant.seq)
            raise ConfigError(
                f"{row.path}.{name} has {size}, but {model.name!r} has {limit} positions.",
                f"Use at most {limit}.",
            )
        rows = variant.ragged_rows
        if rows is not None and not variant.seq <= rows < variant.batch * variant.seq:
            raise ConfigError(
                f"{row.path}.rows has {rows}, for batch {variant.batch} and seq {variant.seq}.",
                f"Use at least seq and fewer than batch times seq: {variant.seq} to "
                f"{variant.batch * variant.seq - 1}.",
            )


def _cell(
    model: ModelSpec,
    facts: ModelFacts,
    row: MatrixRow,
    variant: ModelVariant,
    wanted: Target,
    toolchain: Mapping[str, object],
) -> Cell:
    profile = row.profile or model.profile
    if profile is None:
        profile = CompileProfile.preset(preset_for_phase(variant.phase))
    dispatch = row.dispatch or model.dispatch
    scheme = _scheme(model, row, facts)
    matrices = _matrices(facts, scheme)
    component = ModelComponent(
        variant,
        dispatch,
        row.mode or model.mode,
        profile.key,
        scheme,
        composition_key(facts.composition),
    )
    spec = BuildSpec(
        model=model.name,
        family=facts.family,
        family_source=facts.family_source,
        config=facts.config,
        fingerprint=facts.fingerprint,
        component=component,
        profile=profile,
        tensors=facts.tensors,
        target=wanted,
        toolchain=toolchain_for(wanted, toolchain),
        build_id=build_id(),
        abi=ABI,
        packing=packing_id(wanted.can.packing),
        matrices=matrices,
    )
    reason = _unsupported(wanted, variant, profile, dispatch, dict(matrices))
    return Cell(spec, row.path, reason or _unpacked(scheme, facts, matrices))


def _scheme(model: ModelSpec, row: MatrixRow, facts: ModelFacts) -> QuantScheme | None:
    quant = row.quant if row.quant is not None else model.quant
    if quant is None or isinstance(quant, QuantScheme):
        return quant
    return facts.scheme if quant == "file" else QuantScheme.parse(quant)


def _matrices(facts: ModelFacts, scheme: QuantScheme | None) -> tuple[tuple[str, str], ...]:
    """The parameters whose weights stay quantised, or are quantised by a scheme."""
    if scheme is None:
        return ()
    packed = {t.name: QuantScheme.parse(t.quant) for t in facts.tensors if t.quant}
    found: list[tuple[str, str]] = []
    for param in facts.params:
        forms = [_form(packed.get(source), scheme, param) for source in param.sources]
        known = [form for form in forms if form is not None]
        form = join(known) if known and len(known) == len(forms) else None
        if form is None:
            continue
        if param.layout == "matrix":
            found.append((param.name, form.name))
            continue
        # Rows of an embedding table that a file has quantised stay so, at 8 bits.
        table = param.layout == "plain" and len(param.shape) == 2
        if table and (form.name == "b8" or param.sources[0] in packed):
            found.append((param.name, QUANT_ROWS))
    return tuple(sorted(found))


def _form(packed: QuantScheme | None, scheme: QuantScheme, param: ParamSpec) -> MatrixFormat | None:
    """The format of a parameter's source: the file's, or the scheme's for plain weights."""
    form = scheme_format(packed or scheme)
    k = param.shape[0] if param.layout == "matrix" else param.shape[-1]
    size = scheme_block(packed or scheme)
    return form if k % size == 0 else None


def _unpacked(scheme: QuantScheme | None, facts: ModelFacts, matrices: Sequence[object]) -> str:
    """Why quantised weights cannot be had; empty if they can, or are not asked for."""
    if scheme is None:
        return ""
    if facts.scheme not in (None, scheme):
        return f"the file's weights are in {facts.scheme}: quant file keeps them, null unpacks them"
    if facts.scheme is None and scheme.gguf_block_size > BLOCK:
        return f"weights are not quantised to {scheme} here, only read from files that are"
    if not matrices:
        return f"no matrix has rows that blocks of {scheme_block(scheme)} divide ({scheme})"
    return ""


def _unsupported(
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
