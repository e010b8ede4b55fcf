"""Rotary positions: the table of cosines and sines that a model turns its heads by.

Sources: Su et al., arXiv:2104.09864; `linear`, `llama3` and `yarn` scaling as transformers'
`modeling_rope_utils` defines them (yarn: Peng et al., arXiv:2309.00071).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = ("default", "linear", "llama3", "yarn")


def cos_sin(
    positions: int, dim: int, rope: Mapping[str, Any], factors: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.float32]:
    """Cosines, then sines, of every position's angles: float32 [positions, dim].

    Args:
        positions: rows of the table.
        dim: of a head, even.
        rope: `theta`, `kind` (one of KINDS) and that kind's parameters, as `models.llama` writes
            them.
        factors: float [dim / 2] that divide the frequencies, as some GGUF files hold them.
    """
    frequencies, scale = _frequencies(dim, rope)
    if factors is not None:
        frequencies = frequencies / factors
    angles = np.outer(np.arange(positions, dtype=np.float64), frequencies)
    return (np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * scale).astype(np.float32)


def _frequencies(dim: int, rope: Mapping[str, Any]) -> tuple[npt.NDArray[np.float64], float]:
    """The angle of one step for each pair (radians), and a factor on cosines and sines."""
    theta = float(rope["theta"])
    plain = theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    match rope["kind"]:
        case "linear":
            return plain / rope["factor"], 1.0
        case "llama3":
            return _llama3(plain, rope), 1.0
        case "yarn":
            return _yarn(plain, dim, theta, rope)
        case _:
            return plain, 1.0


def _llama3(plain: npt.NDArray[np.float64], rope: Mapping[str, Any]) -> Any:
    """Low frequencies divided by the factor, high ones kept, those between interpolated."""
    old, low, high = rope["original"], rope["low"], rope["high"]
    turns_in_old = old * plain / (2 * math.pi)
    share = np.clip((turns_in_old - low) / (high - low), 0, 1)
    return (1 - share) * plain / rope["factor"] + share * plain


def _yarn(
    plain: npt.NDArray[np.float64], dim: int, theta: float, rope: Mapping[str, Any]
) -> tuple[npt.NDArray[np.float64], float]:
    """Between two pairs of dimensions a ramp from kept to divided frequencies."""

    def pair(rotations: float) -> float:
        return dim * math.log(rope["original"] / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(rope["beta_fast"])), 0)
    high = min(math.ceil(pair(rope["beta_slow"])), dim - 1)
    span = max(high - low, 0.001)
    divided = np.clip((np.arange(dim // 2) - low) / span, 0, 1)
    frequencies = plain / rope["factor"] * divided + plain * (1 - divided)
    return frequencies, float(rope["attention"])
