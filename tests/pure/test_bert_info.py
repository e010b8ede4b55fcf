from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx_ray.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rlx_ray.component import (
    Homogeneous,
    LayerComposition,
    ModelPhase,
    Pair,
    Single,
    composition_key,
)
from rlx_ray.errors import CheckpointError, ConfigError
from rlx_ray.models import distribution
from rlx_ray.models.bert import FAMILY
from rlx_ray.models.family import ModelInfo, family, family_names
from rlx_ray.weights.decode import to_f32
from rlx_ray.weights.packing_cpu import pack
from tests.support.bert_reference import forward
from tests.support.needs import needs_minilm
from tests.support.tiny import safetensors_bytes, tiny_tensors, write_tiny_bert

GOLDEN = Path(__file__).parents[1] / "golden" / "minilm.json"


def info_of(folder: Path | str) -> ModelInfo:
    ckpt = open_checkpoint(str(folder))
    return family("bert").info(ckpt.text, ckpt.tensors)


def change(folder: Path, name: str, edit: Callable[[Any], object]) -> None:
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(value)), encoding="utf-8")


def composition(layers: int, pooling: str) -> LayerComposition:
    return Pair(Pair(Single("embed"), Homogeneous("bert_layer", layers)), Single(f"{pooling}_pool"))


def test_minilm_is_read_as_what_it_is() -> None:
    info = info_of(needs_minilm())
    assert json.loads(info.config) == {
        "layers": 6,
        "hidden": 384,
        "heads": 12,
        "intermediate": 1536,
        "activation": "gelu",
        "positions": 512,
        "first_position": 0,
        "vocab": 30522,
        "token_types": 2,
        "eps": 1e-12,
        "pooling": "mean",
        "normalize": True,
    }
    assert (info.limits.max_tokens, info.limits.max_positions) == (256, 512)
    assert info.composition == composition(6, "mean")
    assert f"{composition_key(info.composition):016x}" == "fdd96b8ad2ef74e7"  # RLX's own
    assert (info.family, info.family_source) == ("bert", None)
    names = [t.name for t in info.tensors]
    assert names == sorted(names)
    assert len(names) == 5 + 6 * 16
    assert not any("pooler" in n or "position_ids" in n for n in names)
    assert len(info.fingerprint) == 64


def test_the_float64_reference_agrees_with_transformers() -> None:
    ckpt = open_checkpoint(needs_minilm())
    config = json.loads(ckpt.text("config.json") or "")
    tensors = {n: t.read() for n, t in ckpt.tensors.items()}
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]:
        ids = np.array([case["input_ids"]])
        found = forward(tensors, config, ids, [ids.shape[1]])
        np.testing.assert_allclose(found[0], case["embedding"], rtol=0, atol=1e-5)


def test_params_are_named_and_shaped_as_the_graph_wants_them(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path, layers=2, hidden=32, intermediate=64, vocab=120, positions=64)
    found = {p.name: (p.shape, p.layout, len(p.sources)) for p in info_of(tmp_path).params}
    want: dict[str, tuple[tuple[int, ...], str, int]] = {
        "embed.word": ((120, 32), "plain", 1),
        "embed.position": ((64, 32), "plain", 1),
        "embed.type": ((2, 32), "plain", 1),
        "embed.norm.weight": ((32,), "plain", 1),
        "embed.norm.bias": ((32,), "plain", 1),
    }
    for i in range(2):
        for name, k, n, count in (
            ("qkv", 32, 96, 3),
            ("out", 32, 32, 1),
            ("up", 32, 64, 1),
            ("down", 64, 32, 1),
        ):
            want[f"layer.{i}.{name}.weight"] = ((k, n), "matrix", count)
            want[f"layer.{i}.{name}.bias"] = ((n,), "vector", count)
        for name in ("norm1", "norm2"):
            want[f"layer.{i}.{name}.weight"] = ((32,), "plain", 1)
            want[f"layer.{i}.{name}.bias"] = ((32,), "plain", 1)
    assert found == want


def test_packed_params_are_the_checkpoint_transposed_and_stacked(tmp_path: Path) -> None:
    config = write_tiny_bert(tmp_path, seed=3)
    raw = tiny_tensors(config, 3)
    ckpt = open_checkpoint(str(tmp_path))
    info = info_of(tmp_path)

    def read(name: str) -> np.ndarray:
        return to_f32(ckpt.tensors[name].read(), ckpt.tensors[name].dtype)

    buffer, bindings = pack(info.params, read, 16)
    place = next(b for b in bindings if b.name == "layer.1.qkv.weight")
    packed = buffer[place.offset :][: 4 * 32 * 96].view(np.float32).reshape(6, 32, 16)
    base = "encoder.layer.1.attention.self"
    rows = np.concatenate([raw[f"{base}.{part}.weight"] for part in ("query", "key", "value")])
    np.testing.assert_array_equal(packed.swapaxes(0, 1).reshape(32, 96), rows.T)


@pytest.mark.parametrize(
    ("pooling", "normalize"), [("mean", True), ("cls", False), ("max", True), ("mean", False)]
)
def test_the_head_is_read_from_the_modules(tmp_path: Path, pooling: str, normalize: bool) -> None:
    write_tiny_bert(tmp_path, pooling=pooling, normalize=normalize)
    info = info_of(tmp_path)
    config = json.loads(info.config)
    assert (config["pooling"], config["normalize"]) == (pooling, normalize)
    assert info.composition == composition(2, pooling)


def test_without_modules_it_is_the_mean_unnormalised(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path, pooling="cls", normalize=True)
    (tmp_path / "modules.json").unlink()
    config = json.loads(info_of(tmp_path).config)
    assert (config["pooling"], config["normalize"]) == ("mean", False)


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu", "relu"),
    ],
)
def test_activations_are_normalised(tmp_path: Path, raw: str, normal: str) -> None:
    write_tiny_bert(tmp_path, activation=raw)
    assert json.loads(info_of(tmp_path).config)["activation"] == normal


def test_a_bert_prefix_changes_the_sources_and_nothing_else(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path / "a")
    write_tiny_bert(tmp_path / "b", prefix="bert.")
    a, b = info_of(tmp_path / "a"), info_of(tmp_path / "b")
    assert a.config == b.config
    assert [(p.name, p.shape, p.layout) for p in a.params] == [
        (p.name, p.shape, p.layout) for p in b.params
    ]
    assert all(n == f"bert.{m}" for p, q in zip(a.params, b.params, strict=True)
               for m, n in zip(p.sources, q.sources, strict=True))  # fmt: skip
    assert a.fingerprint != b.fingerprint


def test_the_fingerprint_is_of_the_layout_not_of_the_values(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path / "a", seed=0)
    write_tiny_bert(tmp_path / "b", seed=1)
    write_tiny_bert(tmp_path / "c", positions=65)
    a, b, c = (info_of(tmp_path / n).fingerprint for n in "abc")
    assert a == b
    assert a != c


def limits(folder: Path) -> int:
    return info_of(folder).limits.max_tokens


def test_the_limit_is_of_head_then_tokenizer_then_positions(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path, positions=64, max_tokens=48)
    tokenizer = tmp_path / "tokenizer_config.json"
    tokenizer.write_text('{"model_max_length": 40}')
    assert limits(tmp_path) == 48
    change(tmp_path, "sentence_bert_config.json", lambda _: {"max_seq_length": None})
    assert limits(tmp_path) == 40
    (tmp_path / "sentence_bert_config.json").unlink()
    assert limits(tmp_path) == 40
    tokenizer.write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert limits(tmp_path) == 64
    tokenizer.unlink()
    assert limits(tmp_path) == 64


def test_a_limit_beyond_the_position_table_is_cut_to_it(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path, positions=64, max_tokens=512)
    assert limits(tmp_path) == 64


def modules(*kinds: str) -> Callable[[Any], object]:
    return lambda _: [{"idx": i, "path": "", "type": f"x.{k}"} for i, k in enumerate(kinds)]


def flags(**values: object) -> Callable[[Any], object]:
    return lambda v: {**v, **values}


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("config.json", flags(hidden_act="swish"), ["hidden_act", "'swish'", "gelu_new"]),
        ("config.json", flags(position_embedding_type="relative_key"), ["'relative_key'"]),
        ("config.json", flags(model_type="roberta"), ["model_type", "'roberta'"]),
        ("config.json", flags(is_decoder=True), ["is_decoder", "True"]),
        ("modules.json", modules("Transformer", "Pooling", "Dense"), ["'Dense'"]),
        ("modules.json", modules("Transformer"), ["Transformer", "Pooling"]),
        ("modules.json", modules("Pooling", "Transformer"), ["modules.json"]),
        ("1_Pooling/config.json", flags(pooling_mode_cls_token=True), ["'cls', 'mean'"]),
        ("1_Pooling/config.json", flags(pooling_mode_mean_tokens=False), ["pooling []", "'max'"]),
        (
            "1_Pooling/config.json",
            flags(pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True),
            ["pooling_mode_lasttoken"],
        ),
        ("1_Pooling/config.json", lambda _: {"pooling_mode_cls_token": True}, ["'cls', 'mean'"]),
        ("1_Pooling/config.json", flags(pooling_mode="lasttoken"), ["'lasttoken'"]),
    ],
)
def test_a_variety_that_is_not_known_is_a_config_error(
    tmp_path: Path, name: str, edit: Callable[[Any], object], words: list[str]
) -> None:
    write_tiny_bert(tmp_path)
    change(tmp_path, name, edit)
    with pytest.raises(ConfigError) as caught:
        info_of(tmp_path)
    for word in (name, *words):
        assert word in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("config.json", flags(num_hidden_layers="2"), ["num_hidden_layers is '2'"]),
        ("config.json", flags(num_hidden_layers=True), ["num_hidden_layers is True"]),
        ("config.json", flags(vocab_size=0), ["vocab_size is 0"]),
        ("config.json", flags(num_attention_heads=5), ["hidden_size 32", "5"]),
        ("config.json", flags(layer_norm_eps="small"), ["layer_norm_eps is 'small'"]),
        ("config.json", lambda v: {k: v[k] for k in v if k != "hidden_size"}, ["hidden_size is m"]),
        ("config.json", lambda _: [], ["list"]),
        ("modules.json", lambda _: [{"path": ""}], ["'type'"]),
        ("sentence_bert_config.json", lambda _: {"max_seq_length": "all"}, ["'all'"]),
    ],
)
def test_a_malformed_file_is_a_checkpoint_error(
    tmp_path: Path, name: str, edit: Callable[[Any], object], words: list[str]
) -> None:
    write_tiny_bert(tmp_path)
    change(tmp_path, name, edit)
    with pytest.raises(CheckpointError) as caught:
        info_of(tmp_path)
    for word in (name, *words):
        assert word in str(caught.value)


def test_broken_json_and_missing_files_are_checkpoint_errors(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no 1_Pooling/config\.json"):
        info_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is malformed"):
        info_of(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        info_of(tmp_path)


def rewrite(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> Checkpoint:
    config = write_tiny_bert(folder)
    tensors = tiny_tensors(config, 0)
    edit(tensors)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return open_checkpoint(str(folder))


KEY = "encoder.layer.1.attention.self.key.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(KEY), ["missing", "[32, 32]"]),
        (lambda t: t.update({KEY: t[KEY][:31]}), ["[31, 32]", "[32, 32]"]),
        (lambda t: t.update({KEY: t[KEY].astype(np.int64)}), ["dtype i64", "f32"]),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, edit: Callable[[dict[str, np.ndarray]], object], words: list[str]
) -> None:
    ckpt = rewrite(tmp_path, edit)
    with pytest.raises(CheckpointError) as caught:
        FAMILY.info(ckpt.text, ckpt.tensors)
    for word in (f"{KEY!r}", *words):
        assert word in str(caught.value)


def test_the_bert_family_is_built_in() -> None:
    assert family("bert") is FAMILY
    assert FAMILY.phases == (ModelPhase.ENCODER,)
    assert FAMILY.inputs == ("input_ids", "token_type_ids", "lengths")
    assert "bert" in family_names()


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"family 'brt' is not known\. did you mean 'bert'"):
        family("brt")


def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    """Install a distribution `Other.Models` 1.2 that offers one family."""
    module = f"other_{folder.name.replace('-', '_')}"
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(body)
    info = folder / "other_models-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Other.Models\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[rlx_ray.models]\n{name} = {module}:FAMILY\n")
    monkeypatch.syspath_prepend(str(folder))


GOOD = """
from dataclasses import replace
from rlx_ray.models import distribution
from rlx_ray.models.bert import FAMILY as BERT
FAMILY = replace(BERT, name="other")
"""


def test_a_family_of_another_distribution_carries_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path / "good", monkeypatch, "other", GOOD)
    write_tiny_bert(tmp_path / "model")
    ckpt = open_checkpoint(str(tmp_path / "model"))
    source = family("other").info(ckpt.text, ckpt.tensors).family_source
    assert source is not None
    assert (source.distribution, source.version) == ("Other.Models", "1.2")
    assert source == distribution.source("other")
    assert family_names() == tuple(sorted({"other", *family_names()}))


def test_a_built_in_family_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path / "evil", monkeypatch, "bert", "raise RuntimeError('must not be imported')")
    assert family("bert") is FAMILY


@pytest.mark.parametrize(
    ("folder", "body", "word"),
    [
        ("broken", "raise RuntimeError('boom')", "RuntimeError: boom"),
        ("lacking", "", "no attribute 'FAMILY'"),
        ("wrong", "FAMILY = 3", "no Family of that name"),
    ],
)
def test_a_family_that_does_not_load_names_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, body: str, word: str
) -> None:
    plugin(tmp_path / folder, monkeypatch, "other", body)
    with pytest.raises(ConfigError) as caught:
        family("other")
    assert "other-models" in str(caught.value)
    assert word in str(caught.value)


def test_the_entry_point_of_this_package_is_the_built_in_family() -> None:
    points = metadata.entry_points(group="rlx_ray.models", name="bert")
    assert all(point.load() is FAMILY for point in points)
