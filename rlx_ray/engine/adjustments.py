"""What biases and penalties do to the scores of one stream's tokens, on the host or on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_ENTRY = np.dtype(
    [("token", np.int64), ("bias", np.float64), ("repetition", np.float64), ("count", np.int64)]
)
_PACKED = np.dtype([("token", "<i4"), ("bias", "<f4"), ("repetition", "<f4"), ("penalty", "<f4")])


class LogitAdjustments:
    """The tokens of a stream whose scores are not the model's own.

    A score x becomes x + bias; then, if the token was seen, x / repetition where it is above 0 and
    x * repetition elsewhere; then x - (presence + frequency * count), if it was generated `count`
    times, at least once.

    Args:
        bias: by token.
        prompt: tokens that the repetition penalty counts as seen.
        repetition: 1 for none. Source: Keskar et al., arXiv:1909.05858.
        presence: taken off once.
        frequency: taken off for each time.
    """

    def __init__(
        self,
        bias: Mapping[int, float],
        prompt: Sequence[int],
        repetition: float = 1.0,
        presence: float = 0.0,
        frequency: float = 0.0,
    ) -> None:
        self._repetition, self._presence, self._frequency = repetition, presence, frequency
        self._grow = repetition != 1 or presence != 0 or frequency != 0
        seen = prompt if repetition != 1 else ()
        self._place = {token: at for at, token in enumerate(dict.fromkeys((*bias, *seen)))}
        self._room = _unchanged(len(self) + 64)
        self._entries["token"] = list(self._place)
        self._entries["bias"][: len(bias)] = list(bias.values())
        self._entries["repetition"][[self._place[token] for token in seen]] = repetition

    def __len__(self) -> int:
        return len(self._place)

    def generated(self, token: int) -> None:
        """Count a token of the answer."""
        if self._grow:
            entry = self._entry(token)
            entry["repetition"] = self._repetition
            entry["count"] += 1

    def apply(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Scores [vocab] with the changes, in float64; as they are where there are none."""
        if not self._place:
            return scores
        entries, changed = self._entries, scores.astype(np.float64)
        biased, repetition = changed[entries["token"]] + entries["bias"], entries["repetition"]
        changed[entries["token"]] = (
            np.where(biased > 0, biased / repetition, biased * repetition) - self._penalty()
        )
        return changed

    def packed(self) -> npt.NDArray[np.int32]:
        """An entry for each changed token as kernels/cuda/sample.cuh reads it, int32 [entries, 4].

        The token, then as float32 the bias, the repetition penalty and what is taken off.
        """
        made = np.empty(len(self), _PACKED)
        for name in ("token", "bias", "repetition"):
            made[name] = self._entries[name]
        made["penalty"] = self._penalty()
        return made.view("<i4").reshape(len(self), 4)

    @property
    def _entries(self) -> npt.NDArray[Any]:
        return self._room[: len(self._place)]

    def _penalty(self) -> npt.NDArray[np.float64]:
        count = self._entries["count"]
        return np.where(count > 0, self._presence + self._frequency * count, 0.0)

    def _entry(self, token: int) -> Any:
        """A token's entry, in place; a new one changes nothing yet."""
        at = self._place.setdefault(token, len(self))
        if at == len(self._room):
            self._room = np.concatenate([self._room, _unchanged(at)])
        entry = self._room[at]
        entry["token"] = token
        return entry


def _unchanged(count: int) -> npt.NDArray[Any]:
    """Entries that change nothing, of no token yet."""
    made = np.zeros(count, _ENTRY)
    made["repetition"] = 1.0
    return made
