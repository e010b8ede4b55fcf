"""The GGUF format: metadata and tensors of one file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlx_ray.checkpoint.folder import RangedFile
from rlx_ray.checkpoint.tensor import StoredTensor
from rlx_ray.component.quant import QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError

Value = bool | int | float | str | list[Any]

_DAMAGED = "The file is damaged or incomplete: fetch it again."
_MAX_DIMS = 4
_CHUNK = 4 << 20

_PLAIN = {
    0: DType.F32,
    1: DType.F16,
    24: DType.I8,
    25: DType.I16,
    26: DType.I32,
    27: DType.I64,
    28: DType.F64,
    30: DType.BF16,
}
_BLOCKS = {
    2: "gguf_q4_0",
    3: "gguf_q4_1",
    6: "gguf_q5_0",
    7: "gguf_q5_1",
    8: "gguf_q8_0",
    10: "gguf_q2k",
    11: "gguf_q3k",
    12: "gguf_q4k",
    13: "gguf_q5k",
    14: "gguf_q6k",
    15: "gguf_q8k",
}
"""GGML's tensor types that are known here; `ggml_type` in ggml.h."""

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a GGUF file holds: metadata by key, and tensors by name in the file's order."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, StoredTensor]


def read_gguf(file: RangedFile) -> Gguf:
    """Read the header of a GGUF file; no tensor is read.

    Raises:
        CheckpointError: it is no GGUF file of a known version, is torn, or has a tensor of an
            unknown type.
    """
    reader = _Reader(file)
    magic = bytes(reader.take(4))
    if magic != b"GGUF":
        raise CheckpointError(
            f"{file.name} is no GGUF file: it begins with {magic!r}.",
            "Point 'source' at a .gguf file, or at a folder with safetensors.",
        )
    version = reader.number("<I")
    if version not in (2, 3):
        raise CheckpointError(
            f"{file.name}: GGUF version {version} is not known; 2 and 3 are, little-endian.",
            "Convert the file with a current tool.",
        )
    tensors, entries = reader.number("<Q"), reader.number("<Q")
    metadata: dict[str, Value] = {}
    for _ in range(entries):
        key = reader.text("a metadata key")
        metadata[key] = reader.value(reader.number("<I"), key)
    found = [_tensor_info(reader) for _ in range(tensors)]
    align = metadata.get("general.alignment", 32)
    if type(align) is not int or align < 1 or align & (align - 1):
        raise CheckpointError(f"{file.name}: general.alignment is {align!r}.", _DAMAGED)
    start = -(-reader.at // align) * align
    placed = {}
    for name, kind, shape, offset in found:
        placed[name] = _place(file, name, kind, shape, start + offset)
    if len(placed) != len(found):
        raise CheckpointError(f"{file.name}: two tensors have one name.", _DAMAGED)
    return Gguf(metadata, placed)


def _tensor_info(reader: _Reader) -> tuple[str, int, tuple[int, ...], int]:
    name = reader.text("a tensor's name")
    count = reader.number("<I")
    if not 1 <= count <= _MAX_DIMS:
        raise CheckpointError(
            f"{reader.file.name}: tensor {name!r} has {count} dimensions.", _DAMAGED
        )
    extents = [reader.number("<Q") for _ in range(count)]
    kind, offset = reader.number("<I"), reader.number("<Q")
    return name, kind, tuple(reversed(extents)), offset


def _place(
    file: RangedFile, name: str, kind: int, shape: tuple[int, ...], start: int
) -> StoredTensor:
    elements = 1
    for extent in shape:
        elements *= extent
    scheme = None
    if kind in _PLAIN:
        dtype = _PLAIN[kind]
        nbytes = elements * dtype.size
    elif kind in _BLOCKS:
        dtype = DType.U8
        scheme = QuantScheme.parse(_BLOCKS[kind])
        if shape[-1] % scheme.gguf_block_size:
            raise CheckpointError(
                f"{file.name}: tensor {name!r} is {scheme} with rows of {shape[-1]}, which is no "
                f"multiple of {scheme.gguf_block_size}.",
                _DAMAGED,
            )
        nbytes = elements // scheme.gguf_block_size * scheme.gguf_block_bytes
    else:
        raise CheckpointError(
            f"{file.name}: tensor {name!r} has GGML type {kind}, which is not known.",
            f"Known are F32, F16, BF16 and {', '.join(_BLOCKS.values())}: requantise the file.",
        )
    if start + nbytes > file.size:
        raise CheckpointError(
            f"{file.name}: tensor {name!r} ends at byte {start + nbytes}, the file at {file.size}.",
            _DAMAGED,
        )
    return StoredTensor(name, dtype, shape, file, start, start + nbytes, scheme)


class _Reader:
    """Reads values one after the other from the front of a file, in pieces."""

    def __init__(self, file: RangedFile) -> None:
        self.file = file
        self.at = 0
        self._held = memoryview(b"")
        self._from = 0

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if count > self.file.size - self.at:
            raise CheckpointError(
                f"{self.file.name} is cut off: {count} bytes are wanted at byte {self.at} of "
                f"{self.file.size}.",
                _DAMAGED,
            )
        if self.at + count > self._from + len(self._held):
            stop = min(self.file.size, self.at + max(count, _CHUNK))
            self._held, self._from = self.file.read(self.at, stop), self.at
        first = self.at - self._from
        self.at += count
        return self._held[first : first + count]

    def number(self, form: str) -> Any:
        """The next number in a `struct` format."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def text(self, what: str) -> str:
        """The next string."""
        data = bytes(self.take(self.number("<Q")))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.file.name}: {what} before byte {self.at} is not UTF-8: {error}.", _DAMAGED
            ) from error

    def value(self, kind: int, key: str, depth: int = 0) -> Value:
        """The next metadata value of a type."""
        if kind in _SCALARS:
            found: Value = self.number(_SCALARS[kind])
            return found
        if kind == _STRING:
            return self.text(f"the value of {key!r}")
        if kind == _ARRAY and depth < 2:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _SCALARS:
                form = _SCALARS[inner]
                data = self.take(struct.calcsize(form) * count)
                return [v for (v,) in struct.iter_unpack(form, data)]
            if count > self.file.size - self.at:
                raise CheckpointError(
                    f"{self.file.name}: {key!r} has {count} entries, more than the file has bytes.",
                    _DAMAGED,
                )
            return [self.value(inner, key, depth + 1) for _ in range(count)]
        raise CheckpointError(f"{self.file.name}: {key!r} has value type {kind}.", _DAMAGED)
