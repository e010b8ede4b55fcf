"""Compile profiles: presets, overrides and their keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx_ray.component import CompileProfile, ModelPhase, Preset, parse_preset, preset_for_phase
from rlx_ray.component.rust_hash import RustHasher
from rlx_ray.digest import canonical_json
from rlx_ray.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "rlx_keys.json").read_text())
DECODE = (Preset.LLAMA32_DECODE, Preset.QWEN35_DECODE)


def section(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


CHANGES = section(
    fusion=section(policy=st.sampled_from(("direct", "fusable")), skip=st.booleans()),
    passes=section(dce=st.booleans(), constant_folding=st.booleans()),
    precision=section(
        compute=st.sampled_from(("f32", "f16", "bf16", "int8")),
        mixed=st.sampled_from(("none", "auto")),
    ),
    backend=st.dictionaries(
        st.text("abc", min_size=1, max_size=2),
        st.text(max_size=3) | st.integers(2, 9),
        max_size=2,
    ),
)
PROFILES = st.builds(
    lambda preset, changes: CompileProfile.preset(preset).override(changes),
    st.sampled_from(Preset),
    CHANGES,
)


@pytest.mark.parametrize("preset", Preset, ids=lambda p: p.rust)
def test_a_preset_as_it_stands_has_rlxs_key(preset: Preset) -> None:
    profile = CompileProfile.preset(preset)
    assert f"{profile.key:016x}" == GOLDEN["preset_profile_keys"][preset.rust]
    assert parse_preset(preset.value) is preset


@pytest.mark.parametrize("preset", Preset, ids=lambda p: p.rust)
def test_decode_presets_lower_fusably_and_the_others_directly(preset: Preset) -> None:
    profile = CompileProfile.preset(preset)
    assert profile.fusion.policy == ("fusable" if preset in DECODE else "direct")
    assert not profile.fusion.skip
    assert profile.passes.dce
    assert profile.passes.constant_folding
    assert (profile.precision.compute, profile.precision.mixed) == ("f32", "none")
    assert profile.backend == ()


def test_auto_is_the_preset_of_the_phase() -> None:
    assert {phase: preset_for_phase(phase) for phase in ModelPhase} == {
        ModelPhase.PREFILL: Preset.LLAMA32_PREFILL,
        ModelPhase.DECODE: Preset.LLAMA32_DECODE,
        ModelPhase.ENCODER: Preset.ENCODER,
        ModelPhase.INFERENCE: Preset.ENCODER,
    }


def test_a_changed_profile_hashes_its_canonical_text() -> None:
    profile = CompileProfile.preset(Preset.ENCODER).override({"fusion": {"skip": True}})
    hasher = RustHasher()
    hasher.text(
        '{"backend":{},"base":"encoder","fusion":{"policy":"direct","skip":true},'
        '"passes":{"constant_folding":true,"dce":true},"precision":{"compute":"f32","mixed":"none"}}'
    )
    assert profile.key == hasher.finish()


@given(PROFILES, PROFILES)
def test_keys_are_equal_exactly_when_the_profiles_are(
    one: CompileProfile, other: CompileProfile
) -> None:
    assert (one.key == other.key) == (one == other)
    assert (canonical_json(one.to_json()) == canonical_json(other.to_json())) == (one == other)


@given(st.sampled_from(Preset), CHANGES)
def test_a_change_that_is_undone_leaves_the_preset(preset: Preset, changes: dict[str, Any]) -> None:
    changes = {name: options for name, options in changes.items() if name != "backend"}
    before = CompileProfile.preset(preset)
    whole = before.to_json()
    back = before.override(changes).override({name: whole[name] for name in changes})
    assert back == before
    assert back.key == preset.key


@given(PROFILES)
def test_a_profile_survives_its_own_json(profile: CompileProfile) -> None:
    text = json.dumps(profile.to_json())
    again = CompileProfile.from_json(json.loads(text))
    assert again == profile
    assert again.key == profile.key


def test_backend_options_are_sorted_and_added_to() -> None:
    first = CompileProfile.preset(Preset.ENCODER).override({"backend": {"b": 2, "a": "x"}})
    assert first.backend == (("a", "x"), ("b", 2))
    assert first.override({"backend": {"b": 3}}).backend == (("a", "x"), ("b", 3))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fusoin": {}}, "$.p.fusoin is not known. did you mean 'fusion'?"),
        ({"base": "encoder"}, "$.p.base is not known"),
        ({"fusion": None}, "$.p.fusion is None"),
        ({"fusion": {"skpi": True}}, "$.p.fusion.skpi is not known. did you mean 'skip'?"),
        ({"fusion": {"skip": 1}}, "$.p.fusion.skip is 1"),
        ({"fusion": {"policy": "Direct"}}, "$.p.fusion.policy is 'Direct'"),
        ({"passes": {"dce": "true"}}, "$.p.passes.dce is 'true'"),
        ({"precision": {"compute": "f64"}}, "$.p.precision.compute is 'f64'"),
        ({"precision": {"mixed": None}}, "$.p.precision.mixed is None"),
        ({"backend": {"a": []}}, "$.p.backend.a is []"),
        ({"backend": {"a": None}}, "$.p.backend.a is None"),
        ({"backend": {"a": float("nan")}}, "$.p.backend.a is nan"),
        ({"backend": {3: 1}}, "$.p.backend has the option 3"),
    ],
)
def test_a_bad_change_is_refused_with_its_path(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CompileProfile.preset(Preset.ENCODER).override(changes, "$.p")
    assert named in str(caught.value)


def test_json_that_lacks_a_field_or_has_one_too_many_is_refused() -> None:
    whole = CompileProfile.preset(Preset.ENCODER).to_json()
    for name in whole:
        with pytest.raises(ConfigError, match=rf"\$\.{name} is missing"):
            CompileProfile.from_json({k: v for k, v in whole.items() if k != name})
    with pytest.raises(ConfigError, match=r"\$\.fusion\.skip is missing"):
        CompileProfile.from_json({**whole, "fusion": {"policy": "direct"}})
    with pytest.raises(ConfigError, match=r"\$\.more is not known"):
        CompileProfile.from_json({**whole, "more": 1})
    with pytest.raises(ConfigError, match=r"\$\.base: .*did you mean 'encoder'"):
        CompileProfile.from_json({**whole, "base": "encodr"})


def test_an_unknown_preset_is_refused_with_the_nearest_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'llama32_decode'"):
        parse_preset("llama32_decod")
