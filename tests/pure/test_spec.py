"""The BuildSpec's identity, and the manifest that holds it: nothing changes unnoticed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from typing import Any

import pytest

from rlx_ray import record
from rlx_ray.artifact.manifest import Binding, BindingManifest, BlobRef, Manifest, WeightsManifest
from rlx_ray.component import OP_KINDS, SCHEMES, CompileProfile, ModelComponent, OpKind, QuantScheme
from rlx_ray.digest import canonical_json, json_digest
from rlx_ray.errors import ArtifactError, RlxError
from rlx_ray.spec import PLACEMENT_ONLY, SAYS, UNORDERED, BuildSpec
from rlx_ray.target import Target, Toolchain, target
from tests.support.programs import COMMON
from tests.support.specs import make_artifact, make_spec, make_weights, rich_spec

WHOLE = (Enum, OpKind, QuantScheme)
"""Values that are one of a fixed table: what else they hold follows from which one they are."""

SPECS = [make_spec(), rich_spec(), make_spec(target=target("cuda-sm_90"))]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_survives_its_own_json(spec: BuildSpec) -> None:
    again = BuildSpec.loads(spec.dumps())
    assert again == spec
    assert again.dumps() == spec.dumps()
    assert again.digest == spec.digest
    assert again.store_name == spec.store_name


def test_rows_are_packed_on_cpus_by_native_kernels() -> None:
    spec = make_spec()
    assert spec.packed_rows
    component = replace(spec.component, dispatch=COMMON)
    assert not replace(spec, component=component).packed_rows
    assert not replace(spec, target=target("cuda-sm_90")).packed_rows


def test_the_digest_is_the_sha256_of_the_json_without_placement() -> None:
    value = json.loads(make_spec().dumps())
    del value["model"], value["component"]["mode"]
    assert make_spec().digest == json_digest(value)


def test_any_field_but_placement_changes_the_digest() -> None:
    silent: set[str] = set()
    loud: set[str] = set()
    there: set[str] = set()
    for spec in SPECS:
        there.update(_fields(spec, ""))
        for path, flipped in _flips(spec, "", lambda value: value):
            assert flipped != spec, path
            (silent if flipped.digest == spec.digest else loud).add(path)
    assert silent == PLACEMENT_ONLY.keys()
    assert not silent & loud
    flipped_paths = silent | loud
    empty = {p for p in there if not any(f"{q}.".startswith(f"{p}.") for q in flipped_paths)}
    assert not empty, "SPECS leave these fields empty everywhere"


def test_any_leaf_of_the_json_changes_bytes_and_digest() -> None:
    """What is written is what is hashed: no leaf of the text is outside the digest."""
    for spec in SPECS:
        value = json.loads(spec.dumps())
        for path, changed in _leaf_flips(value):
            if path[0] == "model" or path == ("component", "mode"):
                continue
            del changed["model"], changed["component"]["mode"]
            assert json_digest(changed) != spec.digest, path


def test_the_store_name_depends_on_the_digest_not_the_mode() -> None:
    names = {make_spec(mode=mode).store_name for mode in ("eager", "lazy", "aot")}
    assert names == {make_spec().store_name}
    name = make_spec().store_name
    assert name.endswith("__" + make_spec().digest[:16])
    assert make_spec(build_id="0" * 16).store_name != name
    assert make_spec(model="other").store_name == name


def test_a_force_lists_order_counts_in_the_key_alone() -> None:
    spec = rich_spec()
    dispatch = spec.component.dispatch
    turned = dataclasses.replace(dispatch, force_common=dispatch.force_common[::-1])
    other = dataclasses.replace(
        spec, component=dataclasses.replace(spec.component, dispatch=turned)
    )
    assert other.digest == spec.digest
    assert other.component.cache_key != spec.component.cache_key
    for one in (spec, other):
        assert BuildSpec.loads(one.dumps()).component.cache_key == one.component.cache_key


def test_a_manifest_survives_its_own_json() -> None:
    for spec in SPECS:
        manifest = make_artifact(spec).manifest
        assert Manifest.loads(manifest.dumps()) == manifest
        value = json.loads(manifest.dumps())
        assert value["digest"] == spec.digest
        assert value["cache_key"] == spec.component.cache_key_hex
    weights, _ = make_weights()
    assert WeightsManifest.loads(weights.dumps()) == weights


@pytest.mark.parametrize("kind", ["artifact", "weights"])
def test_a_manifest_with_any_leaf_altered_is_refused(kind: str) -> None:
    loads: Callable[[bytes], object]
    if kind == "artifact":
        data, loads = make_artifact().manifest.dumps(), Manifest.loads
    else:
        data, loads = make_weights()[0].dumps(), WeightsManifest.loads
    flips = list(_leaf_flips(json.loads(data)))
    assert len(flips) > 10
    for _, changed in flips:
        with pytest.raises(ArtifactError):
            loads(canonical_json(changed))


def test_an_altered_manifest_is_refused_even_if_sealed_again() -> None:
    value = json.loads(make_artifact().manifest.dumps())
    value["spec"]["fingerprint"] = "0" * 64
    with pytest.raises(ArtifactError, match="contradicts itself"):
        Manifest.loads(_sealed(value))


@pytest.mark.parametrize(
    "change",
    [{"format": "rlx-artifact/0"}, {"spec": None}, {"blobs": 3}, {"binding": {}}, {"build": []}],
)
def test_a_manifest_of_another_shape_is_refused(change: dict[str, object]) -> None:
    value = json.loads(make_artifact().manifest.dumps())
    with pytest.raises(ArtifactError):
        Manifest.loads(_sealed({**value, **change}))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"1", b"\xff", b"[" * 100_000])
def test_what_is_not_a_manifest_is_an_artifact_error(data: bytes) -> None:
    for loads in (Manifest.loads, WeightsManifest.loads):
        with pytest.raises(ArtifactError):
            loads(data)


def test_a_torn_manifest_is_refused_wherever_it_ends() -> None:
    data = make_artifact().manifest.dumps()
    for end in range(0, len(data), 7):
        with pytest.raises(ArtifactError):
            Manifest.loads(data[:end])


def _sealed(value: dict[str, object]) -> bytes:
    value = {name: inner for name, inner in value.items() if name != "check"}
    return canonical_json({**value, "check": json_digest(value)})


def _flips(
    value: Any, path: str, rebuild: Callable[[Any], BuildSpec]
) -> Iterator[tuple[str, BuildSpec]]:
    """A value with each leaf below it changed in turn, by the path of dataclass fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, *WHOLE)):
        for field in dataclasses.fields(value):

            def put(inner: Any, name: str = field.name) -> BuildSpec:
                return rebuild(dataclasses.replace(value, **{name: inner}))

            name = f"{path}.{field.name}".lstrip(".")
            yield from _flips(getattr(value, field.name), name, put)
        return
    changed = [(path, spec) for other in _others(value, path) for spec in _try(rebuild, other)]
    if isinstance(value, tuple) and value:
        changed += _flips(value[0], path, lambda inner: rebuild((inner, *value[1:])))
    if value is not None and value != ():
        assert changed, f"no other value of {path} ({value!r}) makes a BuildSpec: classify it"
    yield from changed


def _fields(value: Any, path: str) -> Iterator[str]:
    """The paths of all leaf fields below a value, also of those that are empty."""
    match value:
        case tuple() if value and not isinstance(value[0], WHOLE):
            yield path
            yield from _fields(value[0], path)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, WHOLE):
            for field in dataclasses.fields(value):
                name = f"{path}.{field.name}".lstrip(".")
                yield from _fields(getattr(value, field.name), name)
        case _:
            yield path


def _try(rebuild: Callable[[Any], BuildSpec], value: Any) -> Iterator[BuildSpec]:
    """The spec with the value in place, unless no such spec can be."""
    try:
        spec = rebuild(value)
        spec.dumps()
    except (ValueError, TypeError, KeyError, AttributeError, RlxError):
        return
    yield spec


def _others(value: Any, path: str) -> list[Any]:
    """Other values of the same type. A type that is not here has to be classified first."""
    others: list[Any] = []
    match value:
        case bool():
            others = [not value]
        case Enum():
            others = [one for one in type(value) if one is not value]
        case OpKind() | QuantScheme():
            table = OP_KINDS if isinstance(value, OpKind) else SCHEMES
            others = [one for one in table if one != value][:3]
        case int() | float():
            others = [value + 1]
        case str() if value.startswith("{"):
            others = [canonical_json({**json.loads(value), "more": 1}).decode()]
        case str():
            others = [value + "x"]
        case tuple() if value:
            others = [value[1:]]
        case frozenset():
            others = [value - {one} for one in value]
        case None | tuple():
            pass
        case _:
            raise AssertionError(f"{path} has a {type(value).__name__}: say how to change it")
    return others


def _leaf_flips(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Copies of a JSON value, each with one leaf changed, by the path of that leaf."""
    for path in _leaves(value, ()):
        copy = json.loads(json.dumps(value))
        place = copy
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = _other_leaf(place[path[-1]])
        yield path, copy


def _leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    match value:
        case dict():
            for name, inner in value.items():
                yield from _leaves(inner, (*path, name))
        case list():
            for place, inner in enumerate(value):
                yield from _leaves(inner, (*path, place))
        case _:
            yield path


def _other_leaf(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case _:
            return "not null"


def test_each_field_that_differs_is_told_in_one_sentence() -> None:
    """A spec is compared field by field, so that nobody has to guess why an artifact is foreign."""
    assert SAYS.keys() == {f.name for f in dataclasses.fields(BuildSpec)}
    told: set[str] = set()
    for spec in SPECS:
        assert spec.differences(spec) == ()
        for path, flipped in _flips(spec, "", lambda value: value):
            found = spec.differences(flipped)
            assert len(found) == (path != "model"), path
            for sentence in found:
                name = path.partition(".")[0]
                assert sentence.startswith(f"{name} is ")
                assert sentence.endswith(f": {SAYS[name]}.")
                told.add(name)
    assert told == SAYS.keys() - {"model"}


def test_what_does_not_count_is_named_with_a_reason() -> None:
    spec = rich_spec().to_json()
    for path, reason in {**PLACEMENT_ONLY, **UNORDERED}.items():
        value: Any = spec
        for name in path.split("."):
            value = value[name]  # the path is one of the JSON's
        assert len(reason) > 10


@pytest.mark.parametrize(
    "kind", [Target, Toolchain, ModelComponent, CompileProfile, Binding, BindingManifest, BlobRef]
)
def test_json_has_every_field_of_a_dataclass(kind: type) -> None:
    names = {f.name for f in dataclasses.fields(kind)}
    found = [value for spec in SPECS for value in _values(make_artifact(spec).manifest, kind)]
    assert found
    for value in found:
        written = value.to_json() if hasattr(value, "to_json") else record.write(value)
        if kind is ModelComponent:  # RLX's form has the dispatch's fields beside the others
            names = names - {"dispatch"} | {f.name for f in dataclasses.fields(value.dispatch)}
        assert written.keys() == names


def _values(value: Any, kind: type) -> Iterator[Any]:
    """All values of a class below a value."""
    if isinstance(value, kind):
        yield value
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _values(getattr(value, field.name), kind)
    elif isinstance(value, tuple):
        for one in value:
            yield from _values(one, kind)


def test_a_manifest_of_another_format_says_so_before_all_else() -> None:
    value = json.loads(make_artifact().manifest.dumps())
    with pytest.raises(ArtifactError, match=r"format is 'rlx-artifact/1', this version .* reads"):
        Manifest.loads(json.dumps({"format": "rlx-artifact/1", "spec": value["spec"]}).encode())


@pytest.mark.parametrize("name", ["model", "cache_key", "digest", "target", "abi"])
def test_a_manifest_whose_head_belies_its_spec_is_refused(name: str) -> None:
    value = json.loads(make_artifact().manifest.dumps())
    value[name] = _other_leaf(value[name])
    with pytest.raises(ArtifactError, match=f"contradicts itself: its {name} is"):
        Manifest.loads(_sealed(value))
