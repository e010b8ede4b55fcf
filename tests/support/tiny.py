"""Tiny BERT and RoBERTa checkpoints with random weights, written from scratch."""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
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


def write_bpe(folder: Path, vocab: int) -> None:
    """A byte-level BPE tokenizer.json as RoBERTa's: every byte, then the words and their halves."""
    tokens = [*ROBERTA_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in ("Ġ" + word for word in WORDS):
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                merges.append((word[: end - 1], word[end - 1]))
                tokens.append(word[:end])
    tokens += [f"<unused{i}>" for i in range(vocab - len(tokens))]
    assert len(tokens) == vocab, f"vocab {vocab}: at least {len(tokens)}"
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    _save_roberta(tokenizer, folder)


def write_unigram(folder: Path, vocab: int) -> None:
    """A Unigram tokenizer.json as XLM-RoBERTa's: letters, then words, with scores."""
    scores = [(token, 0.0) for token in ROBERTA_SPECIALS]
    scores += [(c, -8.0) for c in "▁" + string.ascii_letters + string.digits + ".,!?-äöüé"]
    scores += [("▁" + word, -5.0 - i / 8) for i, word in enumerate(WORDS)]
    scores += [(f"<unused{i}>", -20.0) for i in range(vocab - len(scores))]
    assert len(scores) == vocab, f"vocab {vocab}: at least {len(scores)}"
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=ROBERTA_SPECIALS.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    _save_roberta(tokenizer, folder)


def _save_roberta(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.add_special_tokens(list(ROBERTA_SPECIALS))
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=7, pad_token="<pad>", pad_id=1)
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
    _write(folder, config, tiny_tensors(config, seed, prefix))
    _write_head(folder, hidden, pooling, normalize, max_tokens)
    write_tokenizer(folder, vocab)
    return config


def write_tiny_roberta(
    folder: Path,
    *,
    model_type: str = "roberta",
    seed: int = 0,
    vocab: int = 320,
    positions: int = 34,
    pad: int = 1,
    pooling: str = "mean",
    normalize: bool = True,
    prefix: str = "",
    max_tokens: int = 32,
) -> dict[str, Any]:
    """Write a whole checkpoint folder and return its raw config.json.

    Args:
        model_type: roberta (with a BPE tokenizer) or xlm-roberta (Unigram).
        pad: pad_token_id of config.json; the tokenizer's is always 1.
        prefix: of tensor names, `""` or `"roberta."`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["RobertaModel" if model_type == "roberta" else "XLMRobertaModel"],
        "model_type": model_type,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_act": "gelu",
        "max_position_embeddings": positions,
        "vocab_size": vocab,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": pad,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    _write(folder, config, tiny_tensors(config, seed, prefix))
    _write_head(folder, 32, pooling, normalize, max_tokens)
    (write_bpe if model_type == "roberta" else write_unigram)(folder, vocab)
    return config


def _write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    _dump(folder / "config.json", config)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))


def _write_head(folder: Path, hidden: int, pooling: str, normalize: bool, max_tokens: int) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
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


def _dump(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
