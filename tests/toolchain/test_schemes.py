"""Every scheme in a whole model: files that mix the K-quants, and weights quantised on packing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from rlx_ray.component import ModelVariant, QuantScheme
from rlx_ray.config.load import load
from rlx_ray.job.compile_miss import load as open_local
from rlx_ray.runtime.cpu import cache_pages
from rlx_ray.weights.blocks import quantise
from rlx_ray.weights.small_floats import FP8
from tests.support import llama_reference
from tests.support.gguf_file import gguf_bytes

WIDTH, INNER, VOCAB = 256, 512, 96
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.embedding_length": WIDTH,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.feed_forward_length": INNER,
    "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
CONFIG = {"layers": 1, "heads": 4, "kv_heads": 2, "dim": 64, "eps": 1e-5, "theta": 1e4}
SHAPES = {
    "token_embd.weight": (VOCAB, WIDTH),
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.attn_k.weight": (WIDTH // 2, WIDTH),
    "blk.0.attn_v.weight": (WIDTH // 2, WIDTH),
    "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_gate.weight": (INNER, WIDTH),
    "blk.0.ffn_up.weight": (INNER, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, INNER),
    "output.weight": (VOCAB, WIDTH),
}
NORMS = ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")

# For each kind of block, where it has float16 factors, and which make weights of a usual size.
KIND = gguf.GGMLQuantizationType
FACTORS = {
    KIND.Q2_K: ((80, 3e-3), (82, 4.5e-3)),
    KIND.Q3_K: ((108, 1e-3),),
    KIND.Q4_K: ((0, 3e-4), (2, 22e-4)),
    KIND.Q5_K: ((0, 1.5e-4), (2, 23e-4)),
    KIND.Q6_K: ((208, 4e-5),),
    KIND.Q8_0: ((0, 7e-4),),
    KIND.Q5_0: ((0, 6e-3),),
}


def random_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, int], seed: int) -> np.ndarray:
    """A tensor's bytes [rows, bytes of a row]: every bit of its codes at random."""
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (shape[0], shape[1] // size, nbytes), dtype=np.uint8)
    for at, factor in FACTORS[kind]:
        raw[:, :, at : at + 2] = np.frombuffer(np.float16(factor).tobytes(), np.uint8)
    return raw.reshape(shape[0], -1)


def write(
    folder: Path, kinds: Mapping[str, gguf.GGMLQuantizationType], quant: str
) -> dict[str, np.ndarray]:
    """A model whose tensors are of some kinds, float32 where none is given, and its config."""
    rows, tensors = [], {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        kind = kinds.get(name)
        if kind is None:
            array = np.random.default_rng(seed).normal(0, 0.06, shape).astype(np.float32)
            rows.append((name, 0, shape, array.tobytes()))
        else:
            raw = random_blocks(kind, shape, seed)
            rows.append((name, int(kind), shape, raw.tobytes()))
            array = gguf.quants.dequantize(raw, kind)
        heads = {"blk.0.attn_q.weight": 4, "blk.0.attn_k.weight": 2}.get(name)
        tensors[name] = llama_reference.in_halves(array, heads) if heads else array
    for name in NORMS:
        tensors[name] = np.ones(WIDTH, np.float32)
        rows.append((name, 0, (WIDTH,), tensors[name].tobytes()))
    (folder / "model.gguf").write_bytes(gguf_bytes(METADATA, rows))
    (folder / "config.yaml").write_text(
        f"""
store: {{url: "file://store", cache_dir: cache}}
targets: [host]
models:
  - name: tiny
    family: llama
    source: model.gguf
    quant: {quant}
    matrix:
      - {{phase: prefill, batch: 1, seq: 32}}
"""
    )
    return tensors


def error(folder: Path, tensors: Mapping[str, np.ndarray]) -> tuple[float, dict[str, str], int]:
    """How far the logits are off, relative to their size; the parameters' formats; bytes."""
    model = open_local(load(folder / "config.yaml"), "tiny")
    try:
        variant = ModelVariant.prefill(1, 32)
        run, _ = model.executable(variant)
        ids = np.random.default_rng(1).integers(0, VOCAB, 24).astype(np.int32)
        padded = np.zeros((1, 32), np.int32)
        padded[0, :24] = ids
        inputs = {
            "input_ids": padded,
            "lengths": np.array([24], np.int32),
            "past": np.zeros(1, np.int32),
            "pages": np.zeros((1, 1), np.int32),
        }
        got = run.run(inputs, cache_pages(1, run.binding.page))["logits"][0]
        weights, _ = model.parts(variant)
        layouts = {t.name: t.layout for t in weights.manifest.tensors}
        want = llama_reference.logits(tensors, CONFIG, ids.tolist())[-1]
        return float(np.linalg.norm(got - want) / np.linalg.norm(want)), layouts, weights.nbytes
    finally:
        model.close()


def test_a_file_of_mixed_k_quants_stays_packed(tmp_path: Path) -> None:
    kinds = {
        "token_embd.weight": KIND.Q6_K,
        "blk.0.attn_q.weight": KIND.Q4_K,
        "blk.0.attn_k.weight": KIND.Q4_K,
        "blk.0.attn_v.weight": KIND.Q6_K,
        "blk.0.attn_output.weight": KIND.Q5_K,
        "blk.0.ffn_gate.weight": KIND.Q3_K,
        "blk.0.ffn_up.weight": KIND.Q2_K,
        "blk.0.ffn_down.weight": KIND.Q6_K,
        "output.weight": KIND.Q8_0,
    }
    tensors = write(tmp_path, kinds, "file")
    off, layouts, nbytes = error(tmp_path, tensors)
    assert off <= 0.02
    ends = {
        "embed.word": "q8rows",
        "layer.0.qkv.weight": "b6hm",
        "layer.0.out.weight": "b5m",
        "layer.0.gate.weight": "b3h",
        "layer.0.up.weight": "b2hm",
        "layer.0.down.weight": "b6h",
        "head.weight": "b8",
    }
    for name, end in ends.items():
        assert layouts[name].endswith(end), (name, layouts[name])
    assert nbytes < sum(a.size for a in tensors.values()) * 1.3


def quantised(tensors: Mapping[str, np.ndarray], quant: str) -> dict[str, np.ndarray]:
    """What a scheme makes of the weights (tests/pure/test_blocks.py holds it to its oracles)."""
    made = dict(tensors)
    for name in SHAPES:
        if quant in FP8:
            scale = np.abs(made[name]).max(1, keepdims=True) / np.float32(FP8[quant].largest)
            made[name] = FP8[quant].decode(FP8[quant].encode(made[name] / scale)) * scale
        else:
            made[name] = quantise(made[name], QuantScheme.parse(quant)).f32()
    if not quant.startswith("int8/"):
        made["token_embd.weight"] = tensors["token_embd.weight"]
    return made


@pytest.mark.parametrize(
    "quant",
    [
        *("gguf_q5_0", "int8a/64"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("nvfp4/16", "fp8e4m3", "fp8e5m2", "gguf_q5_1", "gguf_q8_0"),
                *("int8/32", "int4/64"),
            )
        ),
    ],
)
def test_weights_are_quantised_by_a_scheme(tmp_path: Path, quant: str) -> None:
    tensors = write(tmp_path, {}, quant)
    want = quantised(tensors, quant)
    off, layouts, nbytes = error(tmp_path, want)
    # 8-bit floats multiply in float32: what is left is the float16 cache's rounding.
    assert off <= (2.0**-10 if quant in FP8 else 0.03), "not the quantised weights"
    assert not any(layout == "panel16" for layout in layouts.values())
    assert nbytes < sum(a.size for a in tensors.values()) * 2
