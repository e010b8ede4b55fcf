"""Tokenizers: the `tokenizer.json` of a checkpoint, with our own limit on the length.

Format: Hugging Face tokenizers (https://huggingface.co/docs/tokenizers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from rlx_ray.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as tokens, special tokens included.

    Attributes:
        ids: token ids.
        type_ids: token types, as many as ids.
        truncated: whether text was cut off to keep within the limit.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    truncated: bool


class Tokenizer:
    """Text to token ids.

    The file's own truncation and padding are switched off: they record how somebody once called
    it, not what the model can take (MiniLM's file truncates *and pads* at 128, its limit is 256).
    A longer text loses tokens at its end, and the special tokens stay: `[CLS] ... [SEP]`, in
    total `max_length`, as transformers and sentence-transformers do.

    Args:
        text: content of `tokenizer.json`.
        max_length: most tokens of one text, special tokens included; None to cut nothing.

    Raises:
        CheckpointError: the text is no tokenizer.
        ConfigError: max_length leaves no room for a token besides the special ones.
    """

    def __init__(self, text: str, max_length: int | None) -> None:
        try:
            inner: Any = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(
                f"tokenizer.json cannot be read: {error}.", "Fetch the file again."
            ) from error
        special = int(inner.num_special_tokens_to_add(False))
        if max_length is not None and max_length <= special:
            raise ConfigError(
                f"max_length {max_length} leaves no room beside {special} special tokens.",
                f"Use at least {special + 1}.",
            )
        inner.no_padding()
        if max_length is None:
            inner.no_truncation()
        else:
            inner.enable_truncation(max_length)
        self._inner = inner
        self.max_length = max_length

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self._inner.get_vocab_size(True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The token ids of one text; `special` adds what the tokenizer adds to a text."""
        return list(self._inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special ones skipped; broken UTF-8 comes as U+FFFD."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text, in order."""
        return [
            Encoded(tuple(one.ids), tuple(one.type_ids), bool(one.overflowing))
            for one in self._inner.encode_batch(list(texts))
        ]
