"""A parameter's sources, and the pieces of packing that all targets share.

What a checkpoint has of a parameter is read, checked, and brought into the order that the graph
wants; what is no matrix is written as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rlx_ray.component.quant import QuantScheme
from rlx_ray.digest import sha256_hex
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
from rlx_ray.weights.blocks import Blocks, as_blocks, quantise
from rlx_ray.weights.decode import as_f32
from rlx_ray.weights.formats import FORMATS, QUANT_ROWS
from rlx_ray.weights.params import ParamSpec
from rlx_ray.weights.rope import cos_sin

LINE = 64
"""Bytes: one cache line, and the widest vector register."""

Read = Callable[[str], npt.NDArray[Any]]
ReadBlocks = Callable[[str, str], Blocks]

_ROWS = QuantScheme.parse("gguf_q8_0")
"""What rows of an embedding table are quantised to, if the file has them otherwise."""


class Stored(Protocol):
    """A tensor where it lies, such as `checkpoint.tensor.StoredTensor`."""

    @property
    def dtype(self) -> DType:
        """Of an element."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """In weights."""
        ...

    @property
    def scheme(self) -> QuantScheme | None:
        """How they are packed; None for plain elements."""
        ...

    def raw(self) -> memoryview:
        """Its bytes, row-major and little-endian, in memory of their own."""
        ...


@dataclass(frozen=True, slots=True)
class SourceTensors:
    """A checkpoint's tensors as packing reads them: what is packed is what was hashed.

    Attributes:
        tensors: by name.
        digests: the sha256 of each one's bytes, 64 hex digits, as it was when the checkpoint was
            given its digest.
        scheme: what plain weights are quantised to.
        where: the checkpoint, for messages.
    """

    tensors: Mapping[str, Stored]
    digests: Mapping[str, str]
    scheme: QuantScheme | None
    where: str

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32.

        Raises:
            CheckpointError: its bytes are not those that were hashed.
        """
        tensor = self.tensors[name]
        return as_f32(self._raw(name), tensor.dtype, tensor.shape, tensor.scheme)

    def read_blocks(self, name: str, form: str) -> Blocks:
        """A matrix [N, K] as blocks: as the file has it, or quantised from its floats.

        Rows of an embedding table have one block format: those of another one are quantised anew.

        Raises:
            CheckpointError: see `read`.
        """
        tensor = self.tensors[name]
        raw = self._raw(name)
        if tensor.scheme is not None:
            n, k = tensor.shape
            found = as_blocks(raw, tensor.scheme, (n, k))
            if form != QUANT_ROWS or found.form.name == "b8":
                return found
        assert self.scheme is not None
        floats = as_f32(raw, tensor.dtype, tensor.shape, tensor.scheme)
        return quantise(floats, _ROWS if form == QUANT_ROWS else self.scheme)

    def _raw(self, name: str) -> memoryview:
        data = self.tensors[name].raw()
        if sha256_hex(data) != self.digests[name]:
            raise CheckpointError(
                f"{self.where}: tensor {name!r} has changed since the checkpoint was hashed.",
                "Start again once nothing writes to it; put checkpoints in place by renaming them.",
            )
        return data


def sources(param: ParamSpec, read: Read) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """A parameter's sources by name, their rows in the order that it wants.

    Raises:
        CheckpointError: one has another shape or type than the parameter needs.
    """
    arrays = [(name, read(name)) for name in param.sources]
    if param.heads:
        arrays = [
            (name, in_halves(array, heads) if heads else array)
            for (name, array), heads in zip(arrays, param.heads, strict=True)
        ]
    for name, array in arrays:
        if array.dtype != np.float32:
            raise CheckpointError(
                f"parameter {param.name!r}: tensor {name!r} is {array.dtype}, expected float32.",
                "Convert it with checkpoint.to_f32.",
            )
    _check_shapes(param, [(name, array.shape) for name, array in arrays])
    return arrays


def joined_blocks(param: ParamSpec, name: str, read: ReadBlocks) -> Blocks:
    """A parameter's sources as blocks [N, K] of one format, one below the other.

    Raises:
        CheckpointError: a source has another shape than the parameter needs.
    """
    parts = [read(source, name) for source in param.sources]
    shapes = [part.codes.shape for part in parts]
    named = list(zip(param.sources, shapes, strict=True))
    shape = param.shape[::-1] if param.layout == "plain" else param.shape
    _check_shapes(ParamSpec(param.name, shape, "matrix", param.sources), named)
    if param.heads:
        parts = [
            part.rows(in_halves(np.arange(len(part.codes)), heads)) if heads else part
            for part, heads in zip(parts, param.heads, strict=True)
        ]
    form = FORMATS["b8" if name == QUANT_ROWS else name]
    parts = [part.to(form) for part in parts]
    offsets = [part.m for part in parts if part.m is not None]
    return Blocks(
        form,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.d for part in parts]),
        np.concatenate(offsets) if form.offsets else None,
    )


def fill_floats(
    place: npt.NDArray[np.uint8],
    param: ParamSpec,
    arrays: list[tuple[str, npt.NDArray[np.float32]]],
) -> None:
    """Write a parameter that is no matrix as float32."""
    match param.layout:
        case "plain":
            place.view(np.float32).reshape(param.shape)[...] = arrays[0][1]
        case "rope":
            factors = arrays[0][1] if arrays else None
            positions, dim = param.shape
            table = cos_sin(positions, dim, json.loads(param.made), factors)
            place.view(np.float32).reshape(param.shape)[...] = table
        case _:
            np.concatenate([array for _, array in arrays], out=place.view(np.float32))


def fill_coded_rows(place: npt.NDArray[np.uint8], blocks: Blocks) -> None:
    """Write an embedding table of 8 bits: each row's scales, then its codes."""
    rows, scales = place.reshape(len(blocks.codes), -1), blocks.d.shape[1] * 2
    rows[:, :scales] = np.ascontiguousarray(blocks.d).view(np.uint8)
    rows[:, scales:] = blocks.codes.view(np.uint8)


def check_finite(param: ParamSpec, name: str, values: npt.NDArray[Any], kind: str) -> None:
    """Check that a source can be made numbers of a kind other than float32.

    Raises:
        CheckpointError: it holds an infinity or NaN.
    """
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"parameter {param.name!r}: tensor {name!r} holds an infinity or NaN, "
            f"which {kind} cannot be made of.",
            "Use precision.compute f32, or repair the checkpoint.",
        )


def _check_shapes(param: ParamSpec, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    found = [shape for _, shape in shapes]
    match param.layout:
        case "plain":
            fits = found == [param.shape]
        case "vector":
            fits = all(len(s) == 1 for s in found) and (sum(s[0] for s in found),) == param.shape
        case "rope":
            fits = found in ([], [(param.shape[1] // 2,)])
        case "matrix":
            fits = all(len(s) == 2 and s[1] == param.shape[0] for s in found)
            fits = fits and sum(s[0] for s in found) == param.shape[1]
        case _:
            raise ValueError(f"parameter {param.name!r} has unknown layout {param.layout!r}")
    if not fits:
        raise CheckpointError(
            f"parameter {param.name!r} ({param.layout} {list(param.shape)}) cannot be made of "
            + ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes)
            + ".",
            "Check that the checkpoint matches its config.json.",
        )


def in_halves(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows [heads * dim, ...] whose heads stand in rotary pairs, brought into halves."""
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bit patterns of finite float32 values rounded to bf16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def zeros(size: int) -> npt.NDArray[np.uint8]:
    """Zeroed bytes whose address is a multiple of 64."""
    raw = np.zeros(size + LINE, np.uint8)
    skip = -raw.ctypes.data % LINE
    return raw[skip : skip + size]
