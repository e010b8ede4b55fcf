"""What every executable is, whatever runs it, and how token lists become its inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Protocol, TypeAlias

import numpy as np

from rlx_ray.artifact.manifest import PREFIX, Binding, BindingManifest
from rlx_ray.component import ModelVariant
from rlx_ray.errors import InputError

Cache: TypeAlias = Sized
"""A key-value cache: its pages, in the memory of the device that made it."""

NUMPY = {"f32": np.dtype(np.float32), "i32": np.dtype(np.int32)}
"""What callers bind: element types as NumPy has them."""


class Executable(Protocol):
    """A loaded variant."""

    binding: BindingManifest
    arena_bytes: int

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        cache: Cache | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """One forward pass; thread-safe.

        Args:
            inputs: for each input of the binding an array of its dtype and shape; of one whose
                layout is PREFIX, as many of its first rows as are used.
            cache: of a decoder: the pages that the sequences' tables name are read and written, so
                no two passes at once may name one that either writes. All decode and prefill
                variants of a model on one device take the same cache.
            wanted: names of the outputs to return; None for all.

        Returns:
            For each wanted output a new array of its dtype and shape.

        Raises:
            InputError: an input is missing, unknown, or of another dtype or shape, or the cache is
                not this variant's, or an output is not known.
            ArtifactError: the code cannot run any more.
            DeviceError: the device refused or failed. The executable may be run again, unless it
                is a DeviceLost.
        """
        ...

    def make_cache(self, pages: int) -> Cache:
        """A zeroed key-value cache of `pages` pages, for this variant and its model's others.

        Raises:
            DeviceMemoryError: the device has no room.
        """
        ...


def check_inputs(wanted: Sequence[Binding], inputs: Mapping[str, np.ndarray]) -> None:
    """Check that arrays fit a binding.

    Raises:
        InputError: an input is missing, unknown, or of another dtype or shape.
    """
    names = [w.name for w in wanted]
    for name in inputs:
        if name not in names:
            raise InputError(f"input {name!r} is not known.", f"The inputs are {names}.")
    for tensor in wanted:
        if tensor.name not in inputs:
            raise InputError(f"input {tensor.name!r} is missing.", f"The inputs are {names}.")
        array = inputs[tensor.name]
        kind = NUMPY[tensor.dtype.text]
        prefix = tensor.layout == PREFIX and array.ndim and len(array) <= tensor.shape[0]
        shape = (len(array), *tensor.shape[1:]) if prefix else tensor.shape
        if array.shape != shape or array.dtype != kind:
            raise InputError(
                f"input {tensor.name!r} is {array.dtype.name}{list(array.shape)}, the variant "
                f"takes {kind.name}{list(tensor.shape)}"
                f"{', or the first rows of it' if tensor.layout == PREFIX else ''}."
            )


def check_tables(tables: np.ndarray, pages: int) -> None:
    """Check that a cache has every page that tables name; -1 names none.

    Raises:
        InputError: it does not.
    """
    if tables.size and (tables.max() >= pages or tables.min() < -1):
        raise InputError(
            f"a page table names pages from {tables.min()} to {tables.max()}, the cache has "
            f"{pages}."
        )


def select(outputs: Sequence[Binding], wanted: Collection[str] | None) -> tuple[Binding, ...]:
    """The wanted ones of a binding's outputs; all of them for None.

    Raises:
        InputError: there is none of that name.
    """
    if wanted is None:
        return tuple(outputs)
    names = [o.name for o in outputs]
    for name in wanted:
        if name not in names:
            raise InputError(f"output {name!r} is not known.", f"The outputs are {names}.")
    return tuple(o for o in outputs if o.name in wanted)


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
