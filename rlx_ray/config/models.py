"""The sections `targets` and `models` of a config: models, their matrices, profiles and kernels."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rlx_ray.component import (
    OP_KINDS,
    CompilationMode,
    CompileProfile,
    KernelDispatchConfig,
    KernelDispatchPolicy,
    ModelPhase,
    OpKind,
    Preset,
    QuantScheme,
    preset_for_phase,
)
from rlx_ray.config.reader import MOST, ConfigNode, absolute_url
from rlx_ray.config.schema import MatrixRow, ModelSpec
from rlx_ray.errors import ConfigError, nearest
from rlx_ray.host import Host
from rlx_ray.models.family import family_names, is_family
from rlx_ray.target import Target, target

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_MODES = {mode.spelling: mode for mode in CompilationMode}
_PHASES = {phase.spelling: phase for phase in ModelPhase}
_POLICIES = {policy.spelling: policy for policy in KernelDispatchPolicy}
_KINDS = {kind.rust: kind for kind in OP_KINDS}
_PRESETS = {preset.value: preset for preset in Preset}
_DIMS = ("batch", "seq", "past_seq", "rows")

Point = tuple[tuple[str, int], ...]

FindHost = Callable[[], Host]
"""Finds this machine's processor and CUDA devices; called where a config says `host`."""


def read_targets(node: ConfigNode, host: FindHost) -> tuple[Target, ...]:
    """The targets of a list of names; `host` is all that this machine is best at."""
    found: dict[Target, None] = {}
    texts: set[str] = set()
    for item in node.items():
        text = item.text()
        if text in texts:
            raise item.wrong("each target once")
        texts.add(text)
        found.update(dict.fromkeys(item.checked(lambda name: _targets(name, host))))
    return tuple(found)


def _targets(name: str, host: FindHost) -> tuple[Target, ...]:
    return host().targets() if name == "host" else (target(name),)


def read_models(
    node: ConfigNode, targets: tuple[Target, ...], base: Path, host: FindHost
) -> tuple[ModelSpec, ...]:
    """The models, in the file's order.

    Args:
        node: the section.
        targets: of models that name none.
        base: the folder of the config, which relative sources are in.
        host: finds what the target `host` stands for.
    """
    models: dict[str, ModelSpec] = {}
    for item in node.items():
        model = _model(item, targets, base, host)
        if model.name in models:
            raise ConfigError(
                f"{item.path}.name: {model.name!r} is the name of an earlier model.",
                "Give each model a name of its own.",
            )
        models[model.name] = model
    return tuple(models.values())


def _model(node: ConfigNode, targets: tuple[Target, ...], base: Path, host: FindHost) -> ModelSpec:
    known = (
        *("name", "family", "source", "mode", "profile"),
        *("dispatch", "quant", "targets", "matrix"),
    )
    nodes = node.section(known, ("name", "family", "source", "matrix"))
    quant = nodes.get("quant")
    profile = nodes.get("profile")
    return ModelSpec(
        name=_name(nodes["name"]),
        family=_family(nodes["family"]),
        source=absolute_url(nodes["source"].text(), base),
        mode=nodes["mode"].choice(_MODES) if "mode" in nodes else CompilationMode.LAZY,
        profile=_model_profile(profile),
        dispatch=_dispatch(nodes["dispatch"]) if "dispatch" in nodes else KernelDispatchConfig(),
        quant=_quant(quant) if quant and quant.value is not None else None,
        targets=read_targets(nodes["targets"], host) if "targets" in nodes else targets,
        matrix=tuple(_row(row, profile, host) for row in nodes["matrix"].items()),
    )


def _name(node: ConfigNode) -> str:
    if not _NAME.fullmatch(node.text()):
        raise node.wrong("letters, digits and . _ - after a letter or digit")
    return node.text()


def _family(node: ConfigNode) -> str:
    if not is_family(node.text()):
        names = family_names()
        raise ConfigError(
            f"{node.path}: family {node.text()!r} is not known.",
            nearest(node.text(), names) or f"Installed are {list(names)}.",
        )
    return node.text()


def _row(node: ConfigNode, profile: ConfigNode | None, host: FindHost) -> MatrixRow:
    """One row; `profile` is the model's."""
    known = (
        *("phase", *_DIMS, "exclude", "include"),
        *("profile", "quant", "dispatch", "targets", "mode"),
    )
    nodes = node.section(known, ("phase", "batch", "seq"))
    phase = nodes["phase"].choice(_PHASES)
    _check_dims(nodes, phase, node.path)
    dims = {name: nodes[name].wholes(1) for name in _DIMS if name in nodes}
    exclude = _points(nodes["exclude"], dims, whole=False) if "exclude" in nodes else ()
    include = _points(nodes["include"], dims, whole=True) if "include" in nodes else ()
    if not include and not _any_left(dims, exclude):
        raise ConfigError(
            f"{node.path}: 'exclude' leaves no variant of the row.", "Drop the row or the point."
        )
    own = nodes.get("profile", profile if _is_mapping(profile) else None)
    targets = read_targets(nodes["targets"], host) if "targets" in nodes else None
    return MatrixRow(
        phase=phase,
        batch=dims["batch"],
        seq=dims["seq"],
        past_seq=dims.get("past_seq", ()),
        rows=dims.get("rows", ()),
        exclude=exclude,
        include=include,
        profile=_profile(own, phase) if own else None,
        quant=_row_quant(nodes["quant"]) if "quant" in nodes else None,
        dispatch=_dispatch(nodes["dispatch"]) if "dispatch" in nodes else None,
        targets=None if targets is None else tuple(t.name for t in targets),
        mode=nodes["mode"].choice(_MODES) if "mode" in nodes else None,
        path=node.path,
    )


def _check_dims(nodes: Mapping[str, ConfigNode], phase: ModelPhase, path: str) -> None:
    cached = (ModelPhase.DECODE, ModelPhase.PREFILL)
    for name, only in (("past_seq", cached), ("rows", (ModelPhase.ENCODER,))):
        if name in nodes and phase not in only:
            raise ConfigError(
                f"{nodes[name].path} is only for phase {' or '.join(p.spelling for p in only)}, "
                f"this row's is {phase.spelling}.",
                f"Drop {name!r} or change the phase.",
            )
    if phase is ModelPhase.DECODE and "past_seq" not in nodes:
        raise ConfigError(f"{path}.past_seq is missing.", "A decode row needs the cache's bound.")


def _points(
    node: ConfigNode, dims: Mapping[str, tuple[int, ...]], *, whole: bool
) -> tuple[Point, ...]:
    """Points of a row: each names some of the row's dims, or all of them where `whole`."""
    points: list[Point] = []
    for item in node.items():
        nodes = item.section(tuple(dims), tuple(dims) if whole else ())
        if not nodes:
            raise item.wrong(f"at least one of {list(dims)}")
        points.append(tuple(sorted((k, v.whole(1, MOST)) for k, v in nodes.items())))
    return tuple(points)


def _any_left(dims: Mapping[str, tuple[int, ...]], exclude: tuple[Point, ...]) -> bool:
    combinations = (dict(zip(dims, c, strict=True)) for c in itertools.product(*dims.values()))
    return any(
        not any(all(one[k] == v for k, v in point) for point in exclude) for one in combinations
    )


def _quant(node: ConfigNode) -> QuantScheme | str:
    return "file" if node.text() == "file" else node.checked(QuantScheme.parse)


def _row_quant(node: ConfigNode) -> str:
    """A row can set a scheme, not take the model's away: there None means the model's."""
    if node.value is None:
        raise node.wrong(
            "'file' or a scheme", "Leave it out of the model and write it in the rows that want it."
        )
    return str(_quant(node))


def _dispatch(node: ConfigNode) -> KernelDispatchConfig:
    nodes = node.section(("policy", "force_common", "force_native"))
    default = KernelDispatchConfig()
    return KernelDispatchConfig(
        policy=nodes["policy"].choice(_POLICIES) if "policy" in nodes else default.policy,
        force_common=_kinds(nodes.get("force_common")),
        force_native=_kinds(nodes.get("force_native")),
    )


def _kinds(node: ConfigNode | None) -> tuple[OpKind, ...]:
    if node is None or node.value == []:
        return ()
    kinds = tuple(item.choice(_KINDS) for item in node.items())
    if len(set(kinds)) < len(kinds):
        raise node.wrong("each kind once")
    return kinds


def _model_profile(node: ConfigNode | None) -> CompileProfile | None:
    """A preset that the model names. A mapping is over the preset of each row's phase: see `_row`.

    The mapping is read here too, so that a mistake in it shows even if every row overrides it.
    """
    if node is None:
        return None
    profile = _profile(node, ModelPhase.ENCODER)
    return None if _is_mapping(node) or node.value == "auto" else profile


def _profile(node: ConfigNode, phase: ModelPhase) -> CompileProfile:
    """`auto`, a preset's name, or a mapping over the preset of the phase."""
    auto = preset_for_phase(phase)
    if isinstance(node.value, Mapping):
        return CompileProfile.preset(auto).override(_plain(node), node.path)
    return CompileProfile.preset(node.choice({"auto": auto, **_PRESETS}))


def _plain(node: ConfigNode) -> dict[str, object]:
    """The sections of a profile, their keys known to be text."""
    for child in node.mapping().values():
        child.mapping()
    return {key: child.value for key, child in node.mapping().items()}


def _is_mapping(node: ConfigNode | None) -> bool:
    return node is not None and isinstance(node.value, Mapping)
