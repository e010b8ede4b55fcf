"""What a GGUF file holds in the place of small files: metadata, tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlx_ray.errors import CheckpointError, ConfigError

METADATA = "gguf.json"
"""Name of the text that holds a file's metadata as JSON, but for its long lists."""

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
"""Token types of `tokenizer.ggml.token_type`."""

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

_SPLITS: dict[str, list[dict[str, Any]]] = {
    "default": [],
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
    ],
    "qwen2": [
        {"type": "Split", "pattern": {"Regex": _QWEN2}, "behavior": "Isolated", "invert": False}
    ],
}
"""Pre-tokenizers by `tokenizer.ggml.pre`, before the byte-level one."""


def gguf_texts(metadata: Mapping[str, Any], url: str) -> dict[str, str]:
    """Texts by the name of the file that a folder would have.

    Args:
        metadata: of the GGUF file.
        url: the file's, for messages.

    Raises:
        CheckpointError: its tokenizer is torn.
        ConfigError: its tokenizer is of a kind that is not known here.
    """
    short = {k: v for k, v in metadata.items() if not isinstance(v, list) or len(v) <= 64}
    texts = {METADATA: json.dumps(short)}
    if "tokenizer.ggml.tokens" in metadata:
        texts["tokenizer.json"] = json.dumps(_tokenizer(metadata, url), ensure_ascii=False)
        texts["tokenizer_config.json"] = json.dumps(_tokenizer_config(metadata))
    return texts


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    found: dict[str, Any] = {"chat_template": metadata.get("tokenizer.chat_template")}
    for name in ("bos", "eos"):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(index) is int and index < len(tokens):
            found[f"{name}_token"] = tokens[index]
    return found


def _tokenizer(metadata: Mapping[str, Any], url: str) -> dict[str, Any]:
    """A Hugging Face tokenizer from the file's lists."""
    model = metadata.get("tokenizer.ggml.model")
    make = {"gpt2": _byte_level, "llama": _sentencepiece}.get(str(model))
    if make is None:
        raise ConfigError(
            f"{url}: tokenizer.ggml.model {model!r} is not known.",
            "Known are gpt2 (byte-level BPE) and llama (SentencePiece): use one of these, or the "
            "model's folder with tokenizer.json.",
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens", url)
    kinds = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise CheckpointError(
            f"{url}: {len(tokens)} tokens and {len(kinds)} token types.", "Fetch the file again."
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, token, kinds[i] in (_UNKNOWN, _CONTROL))
            for i, token in enumerate(tokens)
            if kinds[i] in (_UNKNOWN, _CONTROL, _USER)
        ],
        "post_processor": _post_processor(metadata, tokens, model == "llama"),
        **make(metadata, tokens, url),
    }


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], url: str) -> dict[str, Any]:
    """BPE over bytes, with the file's merges."""
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        raise ConfigError(
            f"{url}: tokenizer.ggml.pre {pre!r} is not known.", f"Known are {sorted(_SPLITS)}."
        )
    merges = _strings(metadata, "tokenizer.ggml.merges", url)
    space = bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": space,
        "trim_offsets": True,
        "use_regex": pre in ("default", "gpt-2", "smollm"),
    }
    pairs = [merge.split(" ", 1) for merge in merges]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*_SPLITS[pre], byte_level]},
        "decoder": {**byte_level, "use_regex": True},
        "model": {**_bpe(tokens, pairs), "ignore_merges": pre == "llama-bpe"},
    }


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], url: str) -> dict[str, Any]:
    """SentencePiece's BPE: of all neighbours the pair is joined whose piece has the best score.

    A decoded text keeps the space that its first piece begins with: answers are continuations.
    """
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError(
            f"{url}: tokenizer.ggml.scores are not one number for each of the {len(tokens)} "
            "tokens.",
            "Fetch the file again.",
        )
    known = set(tokens)
    splits = [
        (-score, i, [token[:cut], token[cut:]])
        for i, (token, score) in enumerate(zip(tokens, scores, strict=True))
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    first = [{"type": "Prepend", "prepend": _SPACE}]
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*(first if prefix else []), space]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": {
            **_bpe(tokens, [pair for _, _, pair in sorted(splits)]),
            "unk_token": tokens[unknown] if type(unknown) is int else None,
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _bpe(tokens: list[str], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }


def _strings(metadata: Mapping[str, Any], key: str, url: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise CheckpointError(f"{url}: {key} is no list of strings.", "Fetch the file again.")
    return value


def _added(index: int, token: str, special: bool) -> dict[str, Any]:
    return {
        "id": index,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _post_processor(
    metadata: Mapping[str, Any], tokens: list[str], usual: bool
) -> dict[str, Any] | None:
    """What puts the beginning-of-text token before every text, where the file asks for it.

    Args:
        metadata: of the file.
        tokens: the vocabulary.
        usual: what holds where the file does not say.
    """
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if not metadata.get("tokenizer.ggml.add_bos_token", usual) or type(bos) is not int:
        return None
    name = tokens[bos]
    piece = {"SpecialToken": {"id": name, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [piece, text],
        "pair": [piece, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
    }
