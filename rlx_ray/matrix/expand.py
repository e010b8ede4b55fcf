"""From a model and its info to BuildSpecs: the matrix, expanded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from rlx_ray.component import (
    CompileProfile,
    ModelComponent,
    ModelPhase,
    ModelVariant,
    QuantScheme,
    composition_key,
    preset_for_phase,
)
from rlx_ray.config.schema import MatrixRow, ModelSpec
from rlx_ray.errors import ConfigError
from rlx_ray.identity import build_id, packing_id
from rlx_ray.matrix.support import kernels_lacking, weights_lacking
from rlx_ray.models.family import Family, ModelInfo
from rlx_ray.shape import Symbol
from rlx_ray.spec import BuildSpec
from rlx_ray.target import ABI, Target, target, toolchain_for
from rlx_ray.weights.formats import (
    QUANT_ROWS,
    MatrixFormat,
    join,
    scheme_block,
    scheme_format,
)
from rlx_ray.weights.params import ParamSpec


@dataclass(frozen=True, slots=True)
class BuildCell:
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
    model: ModelSpec, family: Family, info: ModelInfo, toolchain: Mapping[str, object]
) -> tuple[BuildCell, ...]:
    """Every cell of a model's matrix, in the config's order: row, target, then sizes.

    A cell that several rows ask for with equal specs stands once.

    Args:
        model: the model as the config says it.
        family: its family.
        info: what its checkpoint says.
        toolchain: the config's `toolchain` section.

    Raises:
        ConfigError: a phase that the family lacks, a size past the model's positions, or two
            components of equal cache key and different specs.
    """
    cells: dict[tuple[str, str], BuildCell] = {}
    for row in model.matrix:
        _check_row(model, family, info, row)
        targets = model.targets if row.targets is None else tuple(map(target, row.targets))
        for wanted in targets:
            for variant in variants(row):
                cell = _cell(model, info, row, variant, wanted, toolchain)
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
        return ModelVariant(phase, batch, seq).with_extra(Symbol.PAST_SEQ, past)
    variant = ModelVariant(phase, batch, seq, past)
    rows = point.get("rows")
    return variant if rows is None else variant.with_extra(Symbol.ROWS, rows)


def _check_row(model: ModelSpec, family: Family, info: ModelInfo, row: MatrixRow) -> None:
    if row.phase not in family.phases:
        known = [p.spelling for p in family.phases]
        raise ConfigError(
            f"{row.path}.phase is {row.phase.spelling!r}, which family {family.name!r} does not "
            "have.",
            f"Use one of {known}.",
        )
    limit = info.limits.max_positions
    for variant in variants(row):
        past = dict(variant.dim_binding).get(Symbol.PAST_SEQ, 0)
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
    info: ModelInfo,
    row: MatrixRow,
    variant: ModelVariant,
    wanted: Target,
    toolchain: Mapping[str, object],
) -> BuildCell:
    profile = row.profile or model.profile
    if profile is None:
        profile = CompileProfile.preset(preset_for_phase(variant.phase))
    dispatch = row.dispatch or model.dispatch
    scheme = _scheme(model, row, info)
    matrices = _matrices(info, scheme)
    component = ModelComponent(
        variant,
        dispatch,
        row.mode or model.mode,
        profile.key,
        scheme,
        composition_key(info.composition),
    )
    spec = BuildSpec(
        model=model.name,
        family=info.family,
        family_source=info.family_source,
        config=info.config,
        fingerprint=info.fingerprint,
        component=component,
        profile=profile,
        tensors=info.tensors,
        target=wanted,
        toolchain=toolchain_for(wanted, toolchain),
        build_id=build_id(),
        abi=ABI,
        packing=packing_id(wanted.can.packing),
        matrices=matrices,
    )
    reason = kernels_lacking(wanted, variant, profile, dispatch, dict(matrices))
    return BuildCell(spec, row.path, reason or weights_lacking(scheme, info, matrices))


def _scheme(model: ModelSpec, row: MatrixRow, info: ModelInfo) -> QuantScheme | None:
    quant = row.quant if row.quant is not None else model.quant
    if quant is None or isinstance(quant, QuantScheme):
        return quant
    return info.scheme if quant == "file" else QuantScheme.parse(quant)


def _matrices(info: ModelInfo, scheme: QuantScheme | None) -> tuple[tuple[str, str], ...]:
    """The parameters whose weights stay quantised, or are quantised by a scheme."""
    if scheme is None:
        return ()
    packed = {t.name: QuantScheme.parse(t.quant) for t in info.tensors if t.quant}
    found: list[tuple[str, str]] = []
    for param in info.params:
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
