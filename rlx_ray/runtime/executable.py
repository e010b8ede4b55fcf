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

    def run(
        self, inputs: Mapping[str, np.ndarray], cache: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """One forward pass: arrays as the binding says in, new arrays out; a decoder's cache."""
        ...


def pad_tokens(
    variant: ModelVariant, items: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> dict[str, np.ndarray]:
    """The inputs of an encoder variant from at most `batch` (ids, type ids) pairs.

    Returns:
        int32 `input_ids` and `token_type_ids`: [batch, seq], zero past a sequence's end, or, of a
        ragged variant, [rows], one sequence after the other; and int32 `lengths` [batch], zero for
        sequences that nobody asked for.
    """
    lengths = np.zeros(variant.batch, np.int32)
    lengths[: len(items)] = [len(tokens) for tokens, _ in items]
    rows = variant.ragged_rows
    ids = np.zeros((variant.batch, variant.seq) if rows is None else rows, np.int32)
    types = np.zeros_like(ids)
    at = 0
    for row, (tokens, kinds) in enumerate(items):
        place = ids[row] if rows is None else ids[at:]
        place[: len(tokens)] = tokens
        place = types[row] if rows is None else types[at:]
        place[: len(kinds)] = kinds
        at += len(tokens)
    return {"input_ids": ids, "token_type_ids": types, "lengths": lengths}
