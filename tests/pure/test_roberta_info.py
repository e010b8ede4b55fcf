from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx_ray.checkpoint.checkpoint import open_checkpoint
from rlx_ray.compiler.graphs import builder
from rlx_ray.compiler.ir.mir import Op
from rlx_ray.component import Homogeneous, Pair, Single
from rlx_ray.errors import CheckpointError, ConfigError
from rlx_ray.models.family import ModelInfo, family, family_names
from rlx_ray.models.roberta import FAMILY
from rlx_ray.target import target
from tests.support.mir_oracle import evaluate
from tests.support.programs import COMMON, NATIVE, bert, random_inputs, random_params, stages
from tests.support.tiny import safetensors_bytes, tiny_tensors, write_tiny_bert, write_tiny_roberta

MODEL_TYPES = ["roberta", "xlm-roberta"]


def info_of(folder: Path, name: str = "roberta") -> ModelInfo:
    ckpt = open_checkpoint(str(folder))
    return family(name).info(ckpt.text, ckpt.tensors)


def change(folder: Path, edit: Callable[[Any], object]) -> None:
    path = folder / "config.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(value)), encoding="utf-8")


def flags(**values: object) -> Callable[[Any], object]:
    return lambda v: {**v, **values}


def test_the_roberta_family_is_built_in() -> None:
    assert family("roberta") is FAMILY
    assert FAMILY.inputs == family("bert").inputs
    assert FAMILY.phases == family("bert").phases
    assert {"bert", "roberta"} <= set(family_names())
    assert builder("roberta") is builder("bert")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_checkpoint_is_read_as_what_it_is(tmp_path: Path, model_type: str) -> None:
    write_tiny_roberta(tmp_path, model_type=model_type, pooling="cls", normalize=False)
    info = info_of(tmp_path)
    assert json.loads(info.config) == {
        "layers": 2,
        "hidden": 32,
        "heads": 4,
        "intermediate": 64,
        "activation": "gelu",
        "positions": 34,
        "first_position": 2,
        "vocab": 320,
        "token_types": 1,
        "eps": 1e-5,
        "pooling": "cls",
        "normalize": False,
    }
    assert (info.family, info.family_source) == ("roberta", None)
    body = Pair(Single("embed"), Homogeneous("roberta_layer", 2))
    assert info.composition == Pair(body, Single("cls_pool"))
    shapes = {p.name: p.shape for p in info.params}
    assert shapes["embed.position"] == (34, 32)  # rows that no token takes are kept
    assert shapes["embed.type"] == (1, 32)
    assert len(info.tensors) == 5 + 2 * 16


@pytest.mark.parametrize(("edit", "first"), [
    (flags(pad_token_id=0), 1),
    (flags(pad_token_id=9), 10),
    (lambda v: {k: v[k] for k in v if k != "pad_token_id"}, 2),
])  # fmt: skip
def test_positions_start_behind_the_padding_id(
    tmp_path: Path, edit: Callable[[Any], object], first: int
) -> None:
    write_tiny_roberta(tmp_path, max_tokens=512)
    change(tmp_path, edit)
    info = info_of(tmp_path)
    assert json.loads(info.config)["first_position"] == first
    assert info.limits.max_positions == info.limits.max_tokens == 34 - first


def test_a_bert_starts_at_its_first_row_whatever_it_pads_with(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    change(tmp_path, flags(pad_token_id=5))
    info = info_of(tmp_path, "bert")
    assert json.loads(info.config)["first_position"] == 0
    assert info.limits.max_positions == 64


def test_a_prefix_changes_the_sources_and_nothing_else(tmp_path: Path) -> None:
    write_tiny_roberta(tmp_path / "a")
    write_tiny_roberta(tmp_path / "b", prefix="roberta.")
    a, b = info_of(tmp_path / "a"), info_of(tmp_path / "b")
    assert a.config == b.config
    assert [f"roberta.{s}" for p in a.params for s in p.sources] == [
        s for p in b.params for s in p.sources
    ]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_roberta_under_bert_is_told_its_family(tmp_path: Path, model_type: str) -> None:
    write_tiny_roberta(tmp_path, model_type=model_type)
    with pytest.raises(ConfigError, match=f"'{model_type}' is of family roberta, not b") as caught:
        info_of(tmp_path, "bert")
    assert "family: roberta" in caught.value.remedy


def test_a_bert_under_roberta_is_told_its_family(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    with pytest.raises(ConfigError, match="'bert' is of family bert, not roberta") as caught:
        info_of(tmp_path)
    assert "family: bert" in caught.value.remedy


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (flags(position_embedding_type="relative_key"), ["position_embedding_type 'relative_key'"]),
        (flags(model_type="electra"), ["model_type 'electra'", "['roberta', 'xlm-roberta']"]),
        (flags(model_type=["roberta"]), ["model_type ['roberta']"]),
        (lambda v: {k: v[k] for k in v if k != "model_type"}, ["model_type None", "'roberta'"]),
        (flags(hidden_act="swish"), ["hidden_act 'swish'"]),
        (flags(is_decoder=True), ["is_decoder", "True"]),
    ],
)
def test_a_variety_that_is_not_known_is_a_config_error(
    tmp_path: Path, edit: Callable[[Any], object], words: list[str]
) -> None:
    write_tiny_roberta(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(ConfigError) as caught:
        info_of(tmp_path)
    for word in ("config.json", *words):
        assert word in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (flags(pad_token_id="1"), ["pad_token_id is '1'", "at least 0"]),
        (flags(pad_token_id=None), ["pad_token_id is None"]),
        (flags(pad_token_id=True), ["pad_token_id is True"]),
        (flags(pad_token_id=-1), ["pad_token_id is -1"]),
        (flags(pad_token_id=1.0), ["pad_token_id is 1.0"]),
        (flags(max_position_embeddings=2), ["max_position_embeddings 2", "pad_token_id + 1 = 2"]),
        (flags(pad_token_id=33), ["max_position_embeddings 34", "pad_token_id + 1 = 34"]),
        (flags(max_position_embeddings="34"), ["max_position_embeddings is '34'"]),
        (flags(type_vocab_size=0), ["type_vocab_size is 0"]),
    ],
)
def test_a_malformed_config_is_a_checkpoint_error(
    tmp_path: Path, edit: Callable[[Any], object], words: list[str]
) -> None:
    write_tiny_roberta(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(CheckpointError) as caught:
        info_of(tmp_path)
    for word in ("config.json", *words):
        assert word in str(caught.value)
    assert caught.value.remedy


KEY = "roberta.encoder.layer.1.attention.self.key.weight"
TABLE = "roberta.embeddings.position_embeddings.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(KEY), [repr(KEY), "missing", "[32, 32]"]),
        (lambda t: t.update({TABLE: t[TABLE][2:]}), [repr(TABLE), "[32, 32]", "[34, 32]"]),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, edit: Callable[[dict[str, np.ndarray]], object], words: list[str]
) -> None:
    config = write_tiny_roberta(tmp_path)
    tensors = tiny_tensors(config, 0, "roberta.")
    edit(tensors)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(CheckpointError) as caught:
        info_of(tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("config", "op"), [(NATIVE, Op.GATHER), (COMMON, Op.IOTA)])
def test_the_graph_takes_positions_from_the_first_one_on(config, op: Op) -> None:
    made = stages(bert(first_position=2), 2, 5, config, target=target("cpu-x86_64-v3"))
    nodes = [n for n in made.mir.nodes if n.op is op and n.origin == "word_position"]
    assert [n.number("first") for n in nodes] == [2]
    params = random_params(made.program)
    inputs = random_inputs(2, 5)
    (got,) = evaluate(made.mir, params | inputs)
    plain = stages(bert(), 2, 5, config, target=target("cpu-x86_64-v3"))
    shifted = {**params, "embed.position": np.roll(params["embed.position"], -2, 0)}
    (want,) = evaluate(plain.mir, shifted | inputs)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    (other,) = evaluate(plain.mir, params | inputs)
    assert np.abs(got - other).max() > 1e-3
