"""What a replica must hold is compared with what it may, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlx_ray.errors import ConfigError
from rlx_ray.target import Target
from rlx_ray.weights.packing import pack_for, packed_bytes
from rlx_ray.weights.sources import SourceTensors
from rlx_serve.replica.budget import Budget, budget_of, check_budget, needs
from rlx_serve.table import Table, open_table
from tests.support.llama_checkpoint import write_tiny_llama
from tests.support.serving import tiny_model, write_config

PROMPT = {"phase": "prefill", "batch": 1, "seq": 16}
TOKEN = {"phase": "decode", "batch": 2, "seq": 1, "past_seq": 63}
TARGETS = ["cpu-x86_64-v3", "cuda-sm_90"]
CACHE = 1 << 20


def talker(folder: Path, name: str, **fields: Any) -> dict[str, Any]:
    """A language model of a config."""
    source = folder / "llama"
    if not source.exists():
        write_tiny_llama(source)
    entry = {"name": name, "family": "llama", "source": str(source), "mode": "lazy"}
    return {**entry, "matrix": [PROMPT, TOKEN], "targets": TARGETS, **fields}


def opened(folder: Path, *models: dict[str, Any], **serve: Any) -> tuple[Any, Table]:
    config = write_config(folder, models, kv_cache_bytes=CACHE, **serve)
    return config, open_table(config)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"quant": "gguf_q8_0"},
        {"targets": TARGETS[:1], "profile": {"precision": {"compute": "int8"}}},
        {"targets": TARGETS[1:], "profile": {"precision": {"compute": "f16"}}},
    ],
    ids=str,
)
def test_packed_weights_are_as_large_as_was_said(tmp_path: Path, fields: dict[str, Any]) -> None:
    _, table = opened(tmp_path, talker(tmp_path, "talk", **fields))
    assert {row.unsupported for row in table.rows} == {""}
    for row in table.rows:
        model = table.models["talk"]
        digests, quant = model.tensor_digests(), row.spec.component.quant
        tensors = SourceTensors(model.checkpoint.tensors, digests, quant, "here")
        data, _ = pack_for(row.spec, model.info.params, tensors)
        assert packed_bytes(row.spec, model.info.params) == data.nbytes > 50_000


def check(config: Any, table: Table, target: Target, code: int = 0) -> None:
    check_budget(config, table, target, budget_of(config, target), code)


@pytest.mark.parametrize("target", TARGETS)
def test_each_model_must_fit_beside_what_is_eager(tmp_path: Path, target: str) -> None:
    models = [
        talker(tmp_path, "lazy"),
        talker(tmp_path, "eager", mode="eager"),
        talker(tmp_path, "aot", mode="aot"),
        tiny_model(tmp_path, "bert", 1, targets=TARGETS),
    ]
    config, table = opened(tmp_path, *models)
    (wanted,) = (t for t in table.all_targets if t.name == target)
    found = {need.name: need for need in needs(config, table, wanted)}
    assert [need.cache for need in found.values()] == [CACHE, CACHE, CACHE, 0]
    assert [need.eager for need in found.values()] == [False, True, False, False]
    most = 2 * (CACHE + found["lazy"].weights)
    allowed, _ = opened(tmp_path, *models, max_slot_bytes=most)
    check(allowed, table, wanted)
    with pytest.raises(ConfigError) as caught:
        check(allowed, table, wanted, code=1)
    assert f"holds {most + 1} bytes" in caught.value.message
    assert "eager variants take 1." in caught.value.message
    short, _ = opened(tmp_path, *models, max_slot_bytes=most - 1)
    with pytest.raises(ConfigError) as caught:
        check(short, table, wanted)
    assert caught.value.message == (
        f"$.serve.max_slot_bytes is {most - 1}, but a replica for {target} holds {most} bytes at "
        f"once: {found['eager']}; {found['aot']}."
    )
    assert str(found["aot"]) == (
        f"'aot' takes {found['aot'].weights} of weights and {CACHE} of key-value cache"
    )
    assert caught.value.remedy == (
        f"Raise it to at least {most}, or lower serve.kv_cache_bytes, or give eager rows mode lazy."
    )


def test_an_encoder_whose_weights_alone_are_too_large_is_refused(tmp_path: Path) -> None:
    config, table = opened(tmp_path, tiny_model(tmp_path, "bert", 1), max_slot_bytes=1000)
    with pytest.raises(
        ConfigError, match=r"'bert' takes \d+ of weights\. Raise it to at least \d+\.$"
    ):
        check(config, table, table.all_targets[0])


def test_a_target_without_variants_needs_nothing(tmp_path: Path) -> None:
    fields = {"targets": TARGETS[:1]}
    config, table = opened(tmp_path, talker(tmp_path, "talk", **fields), max_slot_bytes=CACHE + 1)
    _, other = opened(tmp_path, talker(tmp_path, "talk", targets=TARGETS[1:]))
    (cuda,) = other.all_targets
    assert needs(config, table, cuda) == ()
    check(config, table, cuda)


def test_without_a_budget_the_host_says_what_there_is(tmp_path: Path) -> None:
    executors = {"cuda": {"max_slot_bytes": 7}}
    config, table = opened(tmp_path, talker(tmp_path, "talk"), executors=executors)
    cpu, cuda = table.all_targets
    assert (budget_of(config, cpu), budget_of(config, cuda)) == (None, Budget(7))
    check_budget(config, table, cpu, None)
    with pytest.raises(ConfigError) as caught:
        check_budget(config, table, cpu, Budget(5, given=False))
    assert "max_slot_bytes is not given and the host has 5 for it, but" in caught.value.message
    assert caught.value.remedy.startswith("Take a larger host, or lower serve.kv_cache_bytes")


def test_what_is_called_warm_must_be_there(tmp_path: Path) -> None:
    talk = talker(tmp_path, "talk", targets=TARGETS[:1])
    for warm in ("talk", "talk/prefill:b1:s16"):
        opened(tmp_path, talk, warm=[warm])
    message = r"serve.warm\[1\] is 'tlak', which is no model .* did you mean 'talk'"
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, talk, warm=["talk", "tlak"])
    with pytest.raises(ConfigError, match=r"warm\[0\] is 'talk/decode:b9:s1:p63'"):
        opened(tmp_path, talk, warm=["talk/decode:b9:s1:p63"])
