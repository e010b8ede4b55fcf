"""A tiny BERT checkpoint with random weights, written from scratch."""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import BertProcessing

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "ray", "key", "a", "an")

_NAMES = {
    "<f8": "F64",
    "<f4": "F32",
    "<f2": "F16",
    "<i8": "I64",
    "<i4": "I32",
    "|u1": "U8",
    "|i1": "I8",
}


def safetensors_bytes(tensors: Mapping[str, np.ndarray], bf16: Collection[str] = ()) -> bytes:
    """A safetensors file. Tensors named in bf16 hold uint16 bit patterns."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    chunks = []
    end = 0
    for name, array in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        kind = "BF16" if name in bf16 else _NAMES[array.dtype.str]
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
        chunks.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def tiny_vocab(size: int) -> dict[str, int]:
    """Specials, letters and digits (also as continuations), words, then unused fillers."""
    letters = string.ascii_lowercase + string.digits + ".,!?-"
    tokens = [*SPECIALS, *letters, *("##" + c for c in letters)]
    tokens += [w for w in WORDS if w not in tokens]
    tokens += [f"[unused{i}]" for i in range(max(0, size - len(tokens)))]
    return {token: i for i, token in enumerate(tokens[:size])}


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A WordPiece tokenizer.json whose own truncation and padding are traps, as MiniLM's are."""
    table = tiny_vocab(vocab)
    tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", table["[SEP]"]), ("[CLS]", table["[CLS]"]))
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=7, pad_token="[PAD]", pad_id=table["[PAD]"])
    tokenizer.save(str(folder / "tokenizer.json"))


def tiny_tensors(config: Mapping[str, Any], seed: int, prefix: str = "") -> dict[str, np.ndarray]:
    """Random weights, large enough for every op to matter in the result."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, mean: float = 0.0, spread: float = 0.5) -> None:
        tensors[prefix + name] = (mean + spread * rng.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> None:
        add(f"{name}.weight", hidden, mean=1.0, spread=0.2)
        add(f"{name}.bias", hidden, spread=0.2)

    def linear(name: str, n: int, k: int) -> None:
        add(f"{name}.weight", n, k, spread=1.5 / k**0.5)
        add(f"{name}.bias", n, spread=0.2)

    tensors[prefix + "embeddings.position_ids"] = np.arange(
        config["max_position_embeddings"], dtype=np.int64
    )[None]
    add("embeddings.word_embeddings.weight", config["vocab_size"], hidden)
    add("embeddings.position_embeddings.weight", config["max_position_embeddings"], hidden)
    add("embeddings.token_type_embeddings.weight", config["type_vocab_size"], hidden)
    norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        base = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{base}.attention.self.{part}", hidden, hidden)
        linear(f"{base}.attention.output.dense", hidden, hidden)
        norm(f"{base}.attention.output.LayerNorm")
        linear(f"{base}.intermediate.dense", inner, hidden)
        linear(f"{base}.output.dense", hidden, inner)
        norm(f"{base}.output.LayerNorm")
    linear("pooler.dense", hidden, hidden)
    return tensors


def write_tiny_bert(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    intermediate: int = 64,
    vocab: int = 120,
    positions: int = 64,
    pooling: str = "mean",
    normalize: bool = True,
    activation: str = "gelu",
    token_types: int = 2,
    prefix: str = "",
    max_tokens: int = 48,
) -> dict[str, Any]:
    """Write a whole checkpoint folder and return its raw config.json.

    Args:
        pooling: mean, cls or max.
        activation: as config.json spells it (gelu, gelu_new, relu).
        prefix: of tensor names, `""` or `"bert."`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "hidden_act": activation,
        "max_position_embeddings": positions,
        "vocab_size": vocab,
        "type_vocab_size": token_types,
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
    }
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    _dump(folder / "config.json", config)
    _dump(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules[: 3 if normalize else 2])
        ],
    )
    _dump(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": pooling == "max",
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    _dump(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens})
    write_tokenizer(folder, vocab)
    tensors = tiny_tensors(config, seed, prefix)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return config


def _dump(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
