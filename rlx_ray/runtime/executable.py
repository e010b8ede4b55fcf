"""What every executable is, whatever runs it, and how token lists become its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from rlx_ray.artifact import BindingManifest
from rlx_ray.component import ModelVariant


class Executable(Protocol):
    """A loaded variant."""

    binding: BindingManifest
    arena_bytes: int

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass: arrays as the binding says in, new arrays out."""
        ...


def pad_tokens(
    variant: ModelVariant, items: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> dict[str, np.ndarray]:
    """The inputs of an encoder variant from at most `batch` (ids, type ids) pairs.

    Returns:
        int32 `input_ids` and `token_type_ids` [batch, seq], zero past a sequence's end, and int32
        `lengths` [batch], zero for rows that nobody asked for.
    """
    ids = np.zeros((variant.batch, variant.seq), np.int32)
    types = np.zeros_like(ids)
    lengths = np.zeros(variant.batch, np.int32)
    for row, (tokens, kinds) in enumerate(items):
        ids[row, : len(tokens)] = tokens
        types[row, : len(kinds)] = kinds
        lengths[row] = len(tokens)
    return {"input_ids": ids, "token_type_ids": types, "lengths": lengths}
