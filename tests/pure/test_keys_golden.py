"""Every vector that the Rust crate printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlx_ray.component import (
    OP_KINDS,
    SCHEMES,
    KernelDispatchConfig,
    KernelDispatchPolicy,
    ModelComponent,
    OpKind,
    Preset,
    composition_from_json,
    composition_key,
    composition_to_json,
    decide,
    key_line,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "rlx_keys.json").read_text())
REGISTRY = tuple(
    OpKind.parse(name)
    for name in (
        "GroupNorm",
        "ResizeNearest2x",
        "GaussianSplatRender",
        "GaussianSplatRenderBackward",
    )
)


def kinds(names: list[str]) -> tuple[OpKind, ...]:
    return tuple(OpKind.parse(n) for n in names)


def test_op_kinds_are_those_of_the_crate() -> None:
    assert [(k.rust, k.discriminant) for k in OP_KINDS] == [
        (k["name"], k["discriminant"]) for k in GOLDEN["op_kinds"]
    ]


def test_quant_schemes_have_the_crates_properties() -> None:
    ours = {s.debug: s for s in SCHEMES}
    assert len(GOLDEN["quant_schemes"]) == 15
    for row in GOLDEN["quant_schemes"]:
        scheme = ours[row["debug"]]
        assert {name: getattr(scheme, name) for name in row} == row


def test_preset_keys() -> None:
    assert {p.rust: f"{p.key:016x}" for p in Preset} == GOLDEN["preset_profile_keys"]


@pytest.mark.parametrize("row", GOLDEN["layer_compositions"], ids=lambda r: r["cache_key"])
def test_layer_compositions(row: dict) -> None:
    composition = composition_from_json(row["composition"])
    assert f"{composition_key(composition):016x}" == row["cache_key"]
    assert composition_to_json(composition) == row["composition"]


def test_dispatch_decisions() -> None:
    assert len(GOLDEN["dispatch"]) == 108
    for row in GOLDEN["dispatch"]:
        config = KernelDispatchConfig(
            KernelDispatchPolicy.parse(row["policy"]),
            kinds(row["force_common"]),
            kinds(row["force_native"]),
        )
        made = decide(config, OpKind.parse(row["kind"]), kinds(row["supported"]), REGISTRY)
        assert made.lower_to_common == row["lower_to_common"], row
        assert made.reason


def test_components() -> None:
    assert len(GOLDEN["components"]) == 200
    for number, row in enumerate(GOLDEN["components"], 1):
        answer = key_line(json.dumps(row), number)
        assert answer == {name: row[name] for name in answer}


def test_component_json_round_trip() -> None:
    answers = ("variant_key", "cache_key", "aot_disk_base", "dim_binding")
    for row in GOLDEN["components"]:
        asked = {k: v for k, v in row.items() if k not in answers}
        assert ModelComponent.from_json(asked).to_json() == asked
