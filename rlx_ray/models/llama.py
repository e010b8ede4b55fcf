"""Llama and its kin: what a checkpoint says, from a Hugging Face folder or a GGUF file.

Llama 2 and 3, SmolLM2, TinyLlama, Mistral (sliding window), Qwen2 (QKV bias), Qwen3 (QK norm).
Source: Touvron et al., arXiv:2302.13971; `config.json` as transformers writes it; GGUF keys as
llama.cpp does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rlx_ray.component import Homogeneous, ModelPhase, Pair, QuantScheme, Single
from rlx_ray.digest import canonical_json, json_digest
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
from rlx_ray.models.family import Family, ModelInfo, TensorInfo, Tensors, Texts, TokenLimits
from rlx_ray.models.head import REPAIR, read_json
from rlx_ray.models.llama_sizes import from_config, from_gguf
from rlx_ray.spec import TensorSpec
from rlx_ray.weights.params import ParamSpec

_FLOATS = (DType.F32, DType.F16, DType.BF16, DType.F64)


def read(texts: Texts, tensors: Tensors) -> ModelInfo:
    """What a checkpoint says.

    Raises:
        CheckpointError: a file or tensor is missing or malformed.
        ConfigError: a variety that is not known here.
    """
    metadata = read_json(texts, "gguf.json")
    if metadata is not None:
        config, names = from_gguf(metadata, tensors), _GGUF_NAMES
    else:
        raw = read_json(texts, "config.json")
        if raw is None:
            raise CheckpointError(
                "The checkpoint has no config.json.", "Point 'source' at its folder or .gguf file."
            )
        config, names = from_config(raw, tensors), _HF_NAMES
    params: list[ParamSpec] = []
    specs: dict[str, TensorSpec] = {}
    kinds: Counter[str] = Counter()
    for param, sources in _layout(config, names, metadata is not None, tensors):
        params.append(param)
        for name, shape in sources:
            specs[name] = _checked(tensors, name, shape)
            if param.layout == "matrix":
                kinds[specs[name].quant or ""] += math.prod(shape)
    rows = sorted(specs.values(), key=lambda spec: spec.name)
    dominant = kinds.most_common(1)[0][0]
    return ModelInfo(
        family="llama",
        family_source=None,
        config=canonical_json(config).decode(),
        vocab=config["vocab"],
        hidden=config["hidden"],
        fingerprint=json_digest([spec.to_json() for spec in rows]),
        composition=Pair(Single("embed"), Homogeneous("llama_layer", config["layers"])),
        limits=TokenLimits(config["positions"], config["positions"]),
        tensors=tuple(rows),
        params=tuple(params),
        scheme=QuantScheme.parse(dominant) if dominant else None,
        stop_ids=_stop_ids(texts, metadata),
        window=config["window"],
    )


def _stop_ids(texts: Texts, metadata: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The tokens that end a generation, from the file that says so."""
    if metadata is not None:
        found = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    else:
        generation = read_json(texts, "generation_config.json") or {}
        config = read_json(texts, "config.json")
        value = generation.get("eos_token_id", config.get("eos_token_id"))
        found = value if isinstance(value, list) else [value]
    return tuple(sorted({i for i in found if type(i) is int}))


_HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layer": "model.layers.{}.",
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "out": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_GGUF_NAMES = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "layer": "blk.{}.",
    "norm1": "attn_norm.weight",
    "norm2": "ffn_norm.weight",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "out": "attn_output.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}

_Row = tuple[ParamSpec, list[tuple[str, tuple[int, ...]]]]


def _layout(
    config: Mapping[str, Any], names: Mapping[str, str], gguf: bool, tensors: Tensors
) -> Iterator[_Row]:
    """Every parameter in packing order, with the checkpoint tensors and shapes that it needs."""
    hidden, dim, vocab = config["hidden"], config["dim"], config["vocab"]
    table = (vocab, hidden)
    yield ParamSpec("embed.word", table, "plain", (names["embed"],)), [(names["embed"], table)]
    factors = ("rope_freqs.weight",) if gguf and "rope_freqs.weight" in tensors else ()
    rope = canonical_json(config["rope"]).decode()
    cos_sin = ParamSpec("rope.cos_sin", (config["positions"], dim), "rope", factors, made=rope)
    yield cos_sin, [(name, (dim // 2,)) for name in factors]
    for i in range(config["layers"]):
        yield from _layer(f"layer.{i}", names["layer"].format(i), config, names)
    yield _plain("norm.weight", names["norm"], hidden)
    head = names["embed"] if config["tied"] else names["head"]
    yield _matrix("head.weight", ((head, vocab),), hidden)


def _layer(
    name: str, base: str, config: Mapping[str, Any], names: Mapping[str, str]
) -> Iterator[_Row]:
    hidden, dim, inner = config["hidden"], config["dim"], config["intermediate"]
    heads, kv_heads = config["heads"], config["kv_heads"]
    yield _plain(f"{name}.norm1.weight", base + names["norm1"], hidden)
    parts = tuple(
        (base + names[part], n * dim)
        for part, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    pairs = (heads, kv_heads, 0) if config["rotary_pairs"] else ()
    weights = tuple((f"{source}.weight", n) for source, n in parts)
    yield _matrix(f"{name}.qkv.weight", weights, hidden, pairs)
    if config["qkv_bias"]:
        sources = tuple(f"{source}.bias" for source, _ in parts)
        bias = ParamSpec(
            f"{name}.qkv.bias", (sum(n for _, n in parts),), "vector", sources, heads=pairs
        )
        yield bias, [(source, (n,)) for source, (_, n) in zip(sources, parts, strict=True)]
    if config["qk_norm"]:
        yield _plain(f"{name}.q_norm.weight", base + names["q_norm"], dim)
        yield _plain(f"{name}.k_norm.weight", base + names["k_norm"], dim)
    yield _matrix(f"{name}.out.weight", ((base + names["out"], hidden),), heads * dim)
    yield _plain(f"{name}.norm2.weight", base + names["norm2"], hidden)
    yield _matrix(f"{name}.gate.weight", ((base + names["gate"], inner),), hidden)
    yield _matrix(f"{name}.up.weight", ((base + names["up"], inner),), hidden)
    yield _matrix(f"{name}.down.weight", ((base + names["down"], hidden),), inner)


def _plain(name: str, source: str, extent: int) -> _Row:
    return ParamSpec(name, (extent,), "plain", (source,)), [(source, (extent,))]


def _matrix(
    name: str, sources: tuple[tuple[str, int], ...], k: int, heads: tuple[int, ...] = ()
) -> _Row:
    """A (K, N) matrix of [N_i, K] sources."""
    shape = (k, sum(n for _, n in sources))
    param = ParamSpec(name, shape, "matrix", tuple(source for source, _ in sources), heads=heads)
    return param, [(source, (n, k)) for source, n in sources]


def _checked(tensors: Tensors, name: str, shape: tuple[int, ...]) -> TensorSpec:
    found: TensorInfo | None = tensors.get(name)
    if found is None:
        raise CheckpointError(
            f"tensor {name!r} is missing; expected shape {list(shape)}.",
            "Check that the checkpoint has the layers that its config counts.",
        )
    if tuple(found.shape) != shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(found.shape)}; the config says {list(shape)}.", REPAIR
        )
    scheme = found.scheme
    if scheme is None and found.dtype not in _FLOATS:
        raise CheckpointError(
            f"tensor {name!r} has dtype {found.dtype}.",
            f"Use a checkpoint in one of {[str(d) for d in _FLOATS]}, or a GGUF file.",
        )
    return TensorSpec(name, found.dtype.text, shape, None if scheme is None else scheme.debug)


FAMILY = Family(
    name="llama",
    read=read,
    phases=(ModelPhase.PREFILL, ModelPhase.DECODE),
    inputs=("input_ids", "lengths", "past", "pages"),
)
