"""BERT, RoBERTa and XLM-RoBERTa encoders with a sentence-transformers head, as HIR.

Input ids and token types are int32 [batch, seq], lengths int32 [batch]; the one output,
`embedding`, is float32 [batch, hidden].

Source: Devlin et al., "BERT" (arXiv:1810.04805); Reimers and Gurevych, "Sentence-BERT"
(arXiv:1908.10084).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlx_ray.compiler.ir.hir import Hir, HirBuilder
from rlx_ray.dtype import DType
from rlx_ray.shape import BATCH, ROWS, SEQ, Dim


def build(config: Mapping[str, Any]) -> Hir:
    """The whole encoder; `config` is the normalised one of `models.bert`."""
    b = HirBuilder()
    x, lengths = _embeddings(b, config)
    for i in range(config["layers"]):
        x = _layer(b, config, i, x, lengths)
    b.block(f"{config['pooling']}_pool")
    if not config["normalize"]:
        return b.finish(b.pool("embedding", x, lengths, config["pooling"]))
    pooled = b.pool("pooled", x, lengths, config["pooling"])
    return b.finish(b.normalize("embedding", pooled))


def _embeddings(b: HirBuilder, config: Mapping[str, Any]) -> tuple[str, str]:
    hidden = config["hidden"]
    rows = (ROWS, Dim(hidden))
    b.block("embed")
    ids = b.input("input_ids", DType.I32, (BATCH, SEQ))
    types = b.input("token_type_ids", DType.I32, (BATCH, SEQ))
    lengths = b.input("lengths", DType.I32, (BATCH,))
    word = b.param("embed.word", (config["vocab"], hidden))
    position = b.param("embed.position", (config["positions"], hidden))
    kind = b.param("embed.type", (config["token_types"], hidden))
    x = b.embed("word", word, ids, None, rows)
    x = b.embed("word_position", position, None, x, rows, config["first_position"])
    x = b.embed("word_position_type", kind, types, x, rows)
    return _norm(b, "embed.norm", x, config), lengths


def _layer(b: HirBuilder, config: Mapping[str, Any], i: int, x: str, lengths: str) -> str:
    hidden, heads, inner = config["hidden"], config["heads"], config["intermediate"]
    name = f"layer.{i}"
    b.block(name)
    qkv = _linear(b, f"{name}.qkv", x, hidden, 3 * hidden)
    attended = b.attention(f"{name}.attention", qkv, lengths, heads, hidden // heads)
    out = _linear(b, f"{name}.out", attended, hidden, hidden)
    x = _norm(b, f"{name}.norm1", b.add(f"{name}.residual1", out, x), config)
    up = b.activation(
        f"{name}.act", _linear(b, f"{name}.up", x, hidden, inner), config["activation"]
    )
    down = _linear(b, f"{name}.down", up, inner, hidden)
    return _norm(b, f"{name}.norm2", b.add(f"{name}.residual2", down, x), config)


def _linear(b: HirBuilder, name: str, x: str, k: int, n: int) -> str:
    weight = b.param(f"{name}.weight", (k, n), "matrix")
    return b.linear(name, x, weight, b.param(f"{name}.bias", (n,)))


def _norm(b: HirBuilder, name: str, x: str, config: Mapping[str, Any]) -> str:
    gain = b.param(f"{name}.weight", (config["hidden"],))
    return b.layer_norm(name, x, gain, b.param(f"{name}.bias", (config["hidden"],)), config["eps"])
