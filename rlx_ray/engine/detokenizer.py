"""Tokens to text while they come: whole characters only, and stop strings across token borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Text of some tokens; bytes that are no UTF-8 come as U+FFFD."""

_BROKEN = "�"


class TextStream:
    """The text of one stream.

    Text is held back while its last token ends inside a character, and while it could still become
    a stop string.

    Args:
        decode: of the tokenizer, special tokens skipped.
        stop: strings that end the text; they are no part of it.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = [s for s in stop if s]
        self._tokens: list[int] = []
        self._start = 0  # tokens before this one are text that no later token changes
        self._settled = 0  # tokens whose text is in `_pending` or has been handed out
        self._pending = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; the text that is certain now."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._settled])
        after = self._decode(self._tokens[self._start :])
        if len(after) <= len(before) or after.endswith(_BROKEN):
            return ""
        self._pending += after[len(before) :]
        self._start, self._settled = self._settled, len(self._tokens)
        return self._release()

    def finish(self) -> str:
        """The text that was held back, once no token follows."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._start : self._settled])
        self._pending += self._decode(self._tokens[self._start :])[len(before) :]
        self._settled = len(self._tokens)
        found = self._release()
        rest, self._pending = ("" if self.stopped else self._pending), ""
        return found + rest

    def _release(self) -> str:
        places = [(at, s) for s in self._stop if (at := self._pending.find(s)) >= 0]
        if places:
            at, _ = min(places)
            found, self._pending = self._pending[:at], ""
            self.stopped = True
            return found
        held = max((_overlap(self._pending, s) for s in self._stop), default=0)
        cut = len(self._pending) - held
        found, self._pending = self._pending[:cut], self._pending[cut:]
        return found


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters are the first of a stop string."""
    for count in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-count:]):
            return count
    return 0
