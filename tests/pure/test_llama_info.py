"""What is read from checkpoints of Llama and its kin, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from rlx_ray.component import QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError, ConfigError, RlxError
from rlx_ray.models.llama import FAMILY
from rlx_ray.weights.rope import cos_sin
from rlx_ray.weights.sources import in_halves
from tests.support import llama_reference


@dataclass(frozen=True)
class Info:
    shape: tuple[int, ...]
    dtype: DType = DType.BF16
    scheme: QuantScheme | None = None


HF = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": [2, 3],
}


def hf_tensors(**changes: Info | None) -> dict[str, Info]:
    made = {
        "model.embed_tokens.weight": Info((50, 64)),
        "model.norm.weight": Info((64,)),
        "lm_head.weight": Info((50, 64)),
    }
    for i in range(2):
        base = f"model.layers.{i}."
        made |= {
            f"{base}input_layernorm.weight": Info((64,)),
            f"{base}post_attention_layernorm.weight": Info((64,)),
            f"{base}self_attn.q_proj.weight": Info((64, 64)),
            f"{base}self_attn.k_proj.weight": Info((32, 64)),
            f"{base}self_attn.v_proj.weight": Info((32, 64)),
            f"{base}self_attn.o_proj.weight": Info((64, 64)),
            f"{base}mlp.gate_proj.weight": Info((96, 64)),
            f"{base}mlp.up_proj.weight": Info((96, 64)),
            f"{base}mlp.down_proj.weight": Info((64, 96)),
        }
    for name, info in changes.items():
        if info is None:
            del made[name]
        else:
            made[name] = info
    return made


def read(config: dict, tensors: dict | None = None, files: dict | None = None):
    texts = {"config.json": json.dumps({**HF, **config}), **(files or {})}
    return FAMILY.info(texts.get, hf_tensors() if tensors is None else tensors)


def test_a_hugging_face_folder() -> None:
    info = read({})
    config = json.loads(info.config)
    assert (config["dim"], config["kv_heads"], config["tied"]) == (16, 2, False)
    assert info.stop_ids == (2, 3)
    assert info.limits.max_positions == 128
    assert info.scheme is None
    names = [p.name for p in info.params]
    assert names[:2] == ["embed.word", "rope.cos_sin"]
    qkv = next(p for p in info.params if p.name == "layer.1.qkv.weight")
    assert qkv.shape == (64, 128)
    assert qkv.heads == ()
    ended = read({}, files={"generation_config.json": '{"eos_token_id": 7}'})
    assert ended.stop_ids == (7,)


def test_tied_embeddings_biases_norms_and_windows() -> None:
    tied = read({}, hf_tensors(**{"lm_head.weight": None}))
    head = next(p for p in tied.params if p.name == "head.weight")
    assert head.sources == ("model.embed_tokens.weight",)
    more = hf_tensors()
    for i in range(2):
        base = f"model.layers.{i}.self_attn."
        more |= {
            f"{base}q_proj.bias": Info((64,)),
            f"{base}k_proj.bias": Info((32,)),
            f"{base}v_proj.bias": Info((32,)),
            f"{base}q_norm.weight": Info((16,)),
            f"{base}k_norm.weight": Info((16,)),
        }
    config = json.loads(read({"model_type": "qwen2"}, more).config)
    assert (config["qkv_bias"], config["qk_norm"]) == (True, True)
    assert json.loads(read({"sliding_window": 32}).config)["window"] == 0
    mistral = read({"model_type": "mistral", "sliding_window": 32})
    assert json.loads(mistral.config)["window"] == 32


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, 0),  # Qwen2's default: a window behind layer 28, which this model does not have
        ({"max_window_layers": 2}, 0),
        ({"max_window_layers": 0}, 32),
        ({"layer_types": ["sliding_attention"] * 2}, 32),
        ({"layer_types": ["full_attention"] * 2}, 0),
        ({"use_sliding_window": False, "max_window_layers": 0}, 0),
    ],
)
def test_a_window_holds_in_the_layers_that_the_config_names(changes, window) -> None:
    qwen = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 32}
    assert json.loads(read({**qwen, **changes}).config)["window"] == window


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"max_window_layers": 1}, "sliding_window holds for 1 of the 2 layers"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "holds for 1 of the 2"),
        ({"layer_types": ["sliding_attention"]}, "layer_types is .* expected 2 names"),
        ({"max_window_layers": "all"}, "max_window_layers is 'all'"),
    ],
)
def test_a_window_in_some_layers_is_refused(changes, error) -> None:
    qwen = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 32}
    with pytest.raises(RlxError, match=error):
        read({**qwen, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "falcon"}, "model_type 'falcon'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "'dynamic'"),
    ],
)
def test_varieties_that_are_not_known(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"num_key_value_heads": 3}, "no multiple of 3"),
        ({"head_dim": 15}, "15 is odd"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is None"),
        ({"num_hidden_layers": 3}, "'model.layers.2"),
        ({"intermediate_size": 97}, r"config says \[97, 64\]"),
    ],
)
def test_what_contradicts_itself_is_named(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(change)


def test_a_tensor_of_whole_numbers_is_refused() -> None:
    tensors = hf_tensors(**{"model.norm.weight": Info((64,), DType.I32)})
    with pytest.raises(CheckpointError, match="dtype i32"):
        read({}, tensors)


ROPES = [
    {"theta": 500.0, "kind": "default"},
    {"theta": 500.0, "kind": "linear", "factor": 4.0},
    {
        "theta": 500000.0,
        "kind": "llama3",
        "factor": 8.0,
        "original": 64.0,
        "low": 1.0,
        "high": 4.0,
    },
    {
        "theta": 10000.0,
        "kind": "yarn",
        "factor": 4.0,
        "original": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention": 1.2,
    },
]


def frequency(rope: dict, i: int, dim: int) -> float:
    """One pair's frequency by the plain formulas."""
    plain = rope["theta"] ** (-2 * i / dim)
    if rope["kind"] == "linear":
        return plain / rope["factor"]
    if rope["kind"] == "llama3":
        length = 2 * math.pi / plain
        if length < rope["original"] / rope["high"]:
            return plain
        if length > rope["original"] / rope["low"]:
            return plain / rope["factor"]
        smooth = (rope["original"] / length - rope["low"]) / (rope["high"] - rope["low"])
        return (1 - smooth) * plain / rope["factor"] + smooth * plain
    if rope["kind"] == "yarn":

        def place(rotations: float) -> float:
            return (dim * math.log(rope["original"] / (rotations * 2 * math.pi))) / (
                2 * math.log(rope["theta"])
            )

        low = max(math.floor(place(rope["beta_fast"])), 0)
        high = min(math.ceil(place(rope["beta_slow"])), dim - 1)
        ramp = min(max((i - low) / (high - low if high != low else 0.001), 0), 1)
        return plain / rope["factor"] * ramp + plain * (1 - ramp)
    return plain


@pytest.mark.parametrize("rope", ROPES, ids=lambda r: r["kind"])
def test_rotary_tables(rope: dict) -> None:
    table = cos_sin(40, 16, rope)
    scale = rope.get("attention", 1.0)
    for position in (0, 1, 7, 39):
        for i in range(8):
            angle = position * frequency(rope, i, 16)
            assert table[position, i] == pytest.approx(scale * math.cos(angle), abs=1e-6)
            assert table[position, 8 + i] == pytest.approx(scale * math.sin(angle), abs=1e-6)
    halved = cos_sin(40, 16, ROPES[0], np.full(8, 2.0))
    np.testing.assert_allclose(halved[20], cos_sin(40, 16, ROPES[0])[10], atol=1e-6)


def test_rotary_pairs_become_halves() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(24, 1)
    got = in_halves(rows, 3)
    assert got[:8, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    np.testing.assert_array_equal(got, llama_reference.in_halves(rows, 3))
