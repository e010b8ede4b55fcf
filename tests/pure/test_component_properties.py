"""Components: keys equal exactly when what is hashed is, and strict JSON."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx_ray.component import (
    OP_KINDS,
    SCHEMES,
    CompilationMode,
    Homogeneous,
    KernelDispatchConfig,
    KernelDispatchPolicy,
    LayerComposition,
    ModelComponent,
    ModelPhase,
    ModelVariant,
    OpKind,
    Pair,
    Single,
    composition_from_json,
    composition_key,
    composition_to_json,
    key_line,
)
from rlx_ray.component.rust_hash import U32, U64
from rlx_ray.errors import ConfigError

# Few values each, so that equal parts meet often enough to matter.
SMALL = st.integers(1, 3) | st.integers(1, U64)
KEYS = st.integers(0, 2) | st.integers(0, U64)
KINDS = st.lists(st.sampled_from(OP_KINDS), max_size=2).map(tuple)
VARIANTS = st.builds(
    ModelVariant,
    st.sampled_from(ModelPhase),
    SMALL,
    SMALL,
    st.none() | st.integers(0, 2),
    st.lists(st.tuples(st.integers(0, 3) | st.integers(0, U32), SMALL), max_size=2).map(tuple),
)
COMPONENTS = st.builds(
    ModelComponent,
    VARIANTS,
    st.builds(KernelDispatchConfig, st.sampled_from(KernelDispatchPolicy), KINDS, KINDS),
    st.sampled_from(CompilationMode),
    KEYS,
    st.none() | st.sampled_from(SCHEMES),
    KEYS,
)
NAMES = st.text(max_size=4).filter(lambda name: name.isprintable())
COMPOSITIONS: st.SearchStrategy[LayerComposition] = st.recursive(
    st.builds(Single, NAMES) | st.builds(Homogeneous, NAMES, KEYS),
    lambda inner: st.builds(Pair, inner, inner),
    max_leaves=5,
)


def hashed(component: ModelComponent) -> tuple[object, ...]:
    """What the key is of: the two force lists enter it without a mark between them."""
    dispatch = component.dispatch
    return (
        component.variant,
        dispatch.policy,
        dispatch.force_common + dispatch.force_native,
        component.mode,
        component.profile_key,
        component.quant,
        component.layer_composition_key,
    )


@given(COMPONENTS, COMPONENTS, st.data())
def test_keys_are_equal_exactly_when_what_is_hashed_is(
    one: ModelComponent, other: ModelComponent, data: st.DataObject
) -> None:
    assert (one.cache_key == other.cache_key) == (hashed(one) == hashed(other))
    field = data.draw(st.sampled_from(list(ModelComponent.__dataclass_fields__)))
    near = replace(one, **{field: getattr(other, field)})
    assert (one.cache_key == near.cache_key) == (hashed(one) == hashed(near))


@given(VARIANTS, VARIANTS)
def test_variant_keys_are_equal_exactly_when_the_variants_are(
    one: ModelVariant, other: ModelVariant
) -> None:
    assert (one.key == other.key) == (one == other)


@given(COMPOSITIONS, COMPOSITIONS)
def test_composition_keys_are_equal_as_the_compositions_are(
    one: LayerComposition, other: LayerComposition
) -> None:
    assert (composition_key(one) == composition_key(other)) == (one == other)
    assert composition_from_json(json.loads(json.dumps(composition_to_json(one)))) == one


def test_the_force_lists_collide_as_they_do_in_rlx() -> None:
    kinds = (OpKind.parse("MatMul"),)
    one = ModelComponent(
        ModelVariant.encoder(1, 16), KernelDispatchConfig(), CompilationMode.AOT, 0, None, 0
    )
    common = replace(one, dispatch=KernelDispatchConfig(force_common=kinds))
    native = replace(one, dispatch=KernelDispatchConfig(force_native=kinds))
    assert common.cache_key == native.cache_key != one.cache_key


@given(COMPONENTS)
def test_a_component_survives_its_own_json(component: ModelComponent) -> None:
    text = json.dumps(component.to_json())
    again = ModelComponent.from_json(json.loads(text))
    assert again == component
    answer = key_line(text, 1)
    assert answer == {
        "variant_key": f"{component.variant.key:016x}",
        "cache_key": component.cache_key_hex,
        "aot_disk_base": f"rlx_{component.cache_key:016x}",
        "dim_binding": [list(pair) for pair in component.dim_binding],
    }


@given(COMPONENTS, st.sampled_from(CompilationMode))
def test_another_mode_changes_nothing_else(
    component: ModelComponent, mode: CompilationMode
) -> None:
    changed = component.with_mode(mode)
    assert changed.mode is mode
    assert changed.with_mode(component.mode) == component


ROW: dict[str, Any] = {
    "variant": {
        "batch": 8,
        "seq": 128,
        "past_seq": None,
        "phase": "Encoder",
        "extra": [[2, 64]],
    },
    "policy": "PreferNative",
    "force_common": ["MatMul"],
    "force_native": [],
    "mode": "Lazy",
    "profile_key": "f8cbbd7b08166d41",
    "quant": "GgufQ8_0",
    "layer_composition_key": "fdd96b8ad2ef74e7",
}


def test_both_spellings_of_every_name_give_the_same_key() -> None:
    texts = {
        **ROW,
        "variant": "encoder:b8:s128:x2=64",
        "policy": "prefer_native",
        "mode": "lazy",
        "quant": "gguf_q8_0",
    }
    assert key_line(json.dumps(texts), 1) == key_line(json.dumps(ROW), 1)


def _put(*path: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        place: Any = row
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_put("polcy", to=1), "$.polcy is not known. did you mean 'policy'?"),
        (_put("policy", to="PreferNativ"), "$.policy: "),
        (_put("policy", to=0), "$.policy is 0. It is a text."),
        (_put("mode", to="aott"), "$.mode: mode 'aott' is not known. did you mean 'aot'?"),
        (_put("mode", to=None), "$.mode is None"),
        (
            _put("profile_key", to="0x12"),
            "$.profile_key is '0x12'. It is 16 lower-case hex digits.",
        ),
        (_put("profile_key", to=12), "$.profile_key is 12"),
        (_put("layer_composition_key", to="F" * 16), "$.layer_composition_key is 'FFFF"),
        (_put("quant", to="gguf_q4kk"), "$.quant: "),
        (_put("quant", to=False), "$.quant is False"),
        (_put("force_common", to="MatMul"), "$.force_common is 'MatMul'. It is a list"),
        (_put("force_common", 0, to="MatMull"), "did you mean 'MatMul'?"),
        (_put("force_common", 0, to=15), "$.force_common[0] is 15"),
        (_put("variant", to=3), "$.variant is 3"),
        (_put("variant", to="encoder:b0:s1"), "$.variant: variant 'encoder:b0:s1'"),
        (_put("variant", "batchh", to=1), "$.variant.batchh is not known. did you mean 'batch'?"),
        (_put("variant", "batch", to="8"), "$.variant.batch is '8'. It is a whole number"),
        (_put("variant", "batch", to=8.0), "$.variant.batch is 8.0"),
        (_put("variant", "batch", to=True), "$.variant.batch is True"),
        (_put("variant", "batch", to=0), "$.variant.batch is 0"),
        (_put("variant", "seq", to=U64 + 1), "$.variant.seq is 18446744073709551616"),
        (_put("variant", "past_seq", to=-1), "$.variant.past_seq is -1"),
        (_put("variant", "phase", to=2), "$.variant.phase is 2"),
        (_put("variant", "phase", to="Encodr"), "did you mean 'encoder'?"),
        (_put("variant", "extra", to={}), "$.variant.extra is {}"),
        (_put("variant", "extra", 0, to=[2]), "$.variant.extra[0] is [2]"),
        (_put("variant", "extra", 0, 0, to=U32 + 1), "$.variant.extra[0][0] is 4294967296"),
        (_put("variant", "extra", 0, 1, to="9"), "$.variant.extra[0][1] is '9'"),
    ],
)
def test_a_bad_field_is_refused_with_line_and_path(
    change: Callable[[dict[str, Any]], None], named: str
) -> None:
    row = copy.deepcopy(ROW)
    change(row)
    with pytest.raises(ConfigError) as caught:
        key_line(json.dumps(row), 7)
    assert str(caught.value).startswith("line 7: ")
    assert named in str(caught.value)


@pytest.mark.parametrize("name", ["variant", "policy", "mode", "profile_key"])
def test_a_missing_field_is_named(name: str) -> None:
    row = {k: v for k, v in ROW.items() if k != name}
    with pytest.raises(ConfigError, match=rf"line 1: \$\.{name} is missing"):
        key_line(json.dumps(row), 1)
    part = {k: v for k, v in ROW["variant"].items() if k != "seq"}
    with pytest.raises(ConfigError, match=r"\$\.variant\.seq is missing"):
        key_line(json.dumps({**ROW, "variant": part}), 1)


@pytest.mark.parametrize(
    "line",
    ["", "{", "3", "null", "[]", '"encoder"', "[" * 100_000, '{"a":' + "9" * 9000 + "}"],
)
def test_a_line_that_is_no_object_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=r"^line 3: "):
        key_line(line, 3)


def test_a_field_that_stands_twice_is_refused() -> None:
    line = json.dumps(ROW)
    with pytest.raises(ConfigError, match="line 2: the field 'mode' stands twice"):
        key_line('{"mode": "Aot", ' + line[1:], 2)
    inner = line.replace('"batch": 8', '"batch": 8, "batch": 9')
    with pytest.raises(ConfigError, match="line 2: the field 'batch' stands twice"):
        key_line(inner, 2)


@pytest.mark.parametrize(
    "value",
    [
        {},
        3,
        {"single": 1},
        {"single": "a", "more": 1},
        {"homogeneous": ["a"]},
        {"homogeneous": ["a", "3"]},
        {"homogeneous": ["a", -1]},
        {"homogeneous": ["a", True]},
        {"pair": [{"single": "a"}]},
        {"pair": [{"single": "a"}, {"sngle": "b"}]},
        {"single": "\ud800"},
    ],
)
def test_what_is_no_composition_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        composition_from_json(value)


def test_a_key_that_is_no_u64_is_refused() -> None:
    component = ModelComponent.from_json(ROW)
    for name in ("profile_key", "layer_composition_key"):
        with pytest.raises(ConfigError, match=name):
            replace(component, **{name: U64 + 1})


def test_the_room_imports_nothing_heavy() -> None:
    code = (
        "import sys, rlx_ray.component\n"
        "found = {'numpy', 'ray', 'yaml', 'fsspec', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
