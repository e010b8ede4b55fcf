"""Llama and its kin as HIR: one step over a paged cache, for prompts and for single tokens alike.

Inputs, int32: `input_ids` [batch, seq] new tokens, `lengths` [batch] how many of them a sequence
has, `past` [batch] how many tokens of it the cache holds, `pages` [batch, pages] the sequence's
page table. The output `logits`, float32 [batch, vocab], is of each sequence's last new token.

Source: Touvron et al., arXiv:2302.13971; Ainslie et al. (grouped queries), arXiv:2305.13245.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlx_ray.compiler.ir.hir import Cached, Hir, HirBuilder
from rlx_ray.dtype import DType
from rlx_ray.shape import BATCH, PAGES, ROWS, SEQ, Dim


def build(config: Mapping[str, Any]) -> Hir:
    """The whole model; `config` is the normalised one of `models.llama`."""
    b = HirBuilder()
    hidden = config["hidden"]
    b.block("embed")
    ids = b.input("input_ids", DType.I32, (BATCH, SEQ))
    lengths = b.input("lengths", DType.I32, (BATCH,))
    past = b.input("past", DType.I32, (BATCH,))
    pages = b.input("pages", DType.I32, (BATCH, PAGES))
    word = b.param("embed.word", (config["vocab"], hidden))
    cos_sin = b.param("rope.cos_sin", (config["positions"], config["dim"]))
    x = b.embed("word", word, ids, None, (ROWS, Dim(hidden)))
    for i in range(config["layers"]):
        x = _layer(b, config, i, x, Cached(lengths, past, pages, cos_sin))
    b.block("head")
    last = b.pool("last", x, lengths, "last")
    last = _norm(b, "norm", last, config)
    head = b.param("head.weight", (hidden, config["vocab"]), "matrix")
    return b.finish(b.linear("logits", last, head, None))


def _layer(b: HirBuilder, config: Mapping[str, Any], i: int, x: str, cached: Cached) -> str:
    hidden, inner, dim = config["hidden"], config["intermediate"], config["dim"]
    heads, kv_heads = config["heads"], config["kv_heads"]
    name = f"layer.{i}"
    b.block(name)
    normed = _norm(b, f"{name}.norm1", x, config)
    width = (heads + 2 * kv_heads) * dim
    bias = b.param(f"{name}.qkv.bias", (width,)) if config["qkv_bias"] else None
    qkv = _linear(b, f"{name}.qkv", normed, hidden, width, bias)
    gains = None
    if config["qk_norm"]:
        gains = (b.param(f"{name}.q_norm.weight", (dim,)), b.param(f"{name}.k_norm.weight", (dim,)))
    attended = b.cached_attention(
        f"{name}.attention",
        qkv,
        cached,
        gains,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        layers=config["layers"],
        layer=i,
        window=config["window"],
        eps=config["eps"],
    )
    out = _linear(b, f"{name}.out", attended, heads * dim, hidden, None)
    x = b.add(f"{name}.residual1", out, x)
    normed = _norm(b, f"{name}.norm2", x, config)
    gate = b.activation(
        f"{name}.act", _linear(b, f"{name}.gate", normed, hidden, inner, None), "silu"
    )
    up = b.mul(f"{name}.gated", _linear(b, f"{name}.up", normed, hidden, inner, None), gate)
    return b.add(f"{name}.residual2", _linear(b, f"{name}.down", up, inner, hidden, None), x)


def _linear(b: HirBuilder, name: str, x: str, k: int, n: int, bias: str | None) -> str:
    return b.linear(name, x, b.param(f"{name}.weight", (k, n), "matrix"), bias)


def _norm(b: HirBuilder, name: str, x: str, config: Mapping[str, Any]) -> str:
    gain = b.param(f"{name}.weight", (config["hidden"],))
    return b.rms_norm(name, x, gain, config["eps"])
