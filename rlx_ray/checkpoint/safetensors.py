"""The safetensors format: header of a file, shards of an index, tensors as NumPy arrays.

Format: https://github.com/huggingface/safetensors (README, "Format"): u64 little-endian length
of the header, a JSON header of that length, then the bytes of all tensors without holes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rlx_ray.checkpoint.folder import Folder, RangedFile
from rlx_ray.checkpoint.tensor import StoredTensor
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_HEADER = 100_000_000
"""Bytes: the format's limit on a header, so that a damaged length is not read into memory."""

_DTYPES = {
    "F64": DType.F64,
    "F32": DType.F32,
    "F16": DType.F16,
    "BF16": DType.BF16,
    "I64": DType.I64,
    "I32": DType.I32,
    "I16": DType.I16,
    "I8": DType.I8,
    "U8": DType.U8,
    "BOOL": DType.BOOL,
}

_DAMAGED = "The file is damaged or incomplete: fetch it again."


def read_tensors(folder: Folder) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder, from one file or from the shards of an index.

    Raises:
        CheckpointError: there are no weights, or they are malformed.
    """
    file = folder.open(WEIGHTS)
    if file is not None:
        return read_header(file)
    index = folder.get(INDEX)
    if index is None:
        raise CheckpointError(
            f"{folder.where} has no weights: looked for {WEIGHTS} and {INDEX}.",
            "Point 'source' at the folder that holds the checkpoint's safetensors.",
        )
    return _read_shards(folder, index)


def _read_shards(folder: Folder, index: bytes) -> dict[str, StoredTensor]:
    where = f"{folder.where}/{INDEX}"
    value = _json(index, where)
    table = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise CheckpointError(f"{where} has no 'weight_map' of tensor names to files.", _DAMAGED)
    shards = {name: _open_shard(folder, where, name) for name in sorted(set(table.values()))}
    tensors: dict[str, StoredTensor] = {}
    for name, shard in table.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{where}: tensor {name!r} is not in {shard}.", _DAMAGED)
        tensors[name] = shards[shard][name]
    return tensors


def _open_shard(folder: Folder, where: str, name: str) -> dict[str, StoredTensor]:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{where}: shard {name!r} is not a plain file name.", _DAMAGED)
    file = folder.open(name)
    if file is None:
        raise CheckpointError(
            f"{where} names shard {name!r}, which is not there.", "Fetch the missing shard."
        )
    return read_header(file)


def read_header(file: RangedFile) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; no tensor data is read.

    Raises:
        CheckpointError: the file breaks the format; the message names file, tensor and value.
    """
    if file.size < 8:
        raise CheckpointError(
            f"{file.name} has {file.size} bytes, too few for a safetensors header.", _DAMAGED
        )
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(file.size - 8, MAX_HEADER):
        raise CheckpointError(
            f"{file.name}: the header length {length} is beyond the file ({file.size} bytes) "
            f"or the format's limit ({MAX_HEADER}).",
            _DAMAGED,
        )
    header = _json(bytes(file.read(8, 8 + length)), file.name)
    if not isinstance(header, dict):
        raise CheckpointError(f"{file.name}: the header is not a JSON object.", _DAMAGED)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(file, name, row, 8 + length) for name, row in header.items()}
    _check_cover(file, tensors, 8 + length)
    return tensors


def _tensor(file: RangedFile, name: str, row: object, base: int) -> StoredTensor:
    where = f"{file.name}: tensor {name!r}"
    if not isinstance(row, Mapping):
        raise CheckpointError(f"{where} is described by {row!r}, not by an object.", _DAMAGED)
    kind = row.get("dtype")
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise CheckpointError(
            f"{where} has dtype {kind!r}, which is not known.",
            f"Convert it to one of {sorted(_DTYPES)}.",
        )
    dtype = _DTYPES[kind]
    shape = _sizes(row.get("shape"), f"{where}: shape")
    offsets = _sizes(row.get("data_offsets"), f"{where}: data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1] or base + offsets[1] > file.size:
        raise CheckpointError(
            f"{where} has data_offsets {list(offsets)}, not a range of the {file.size - base} "
            "bytes of data.",
            _DAMAGED,
        )
    need = math.prod(shape) * dtype.size
    if need != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{where} of shape {list(shape)} and dtype {kind} needs {need} bytes, its "
            f"data_offsets {list(offsets)} hold {offsets[1] - offsets[0]}.",
            _DAMAGED,
        )
    return StoredTensor(name, dtype, shape, file, base + offsets[0], base + offsets[1])


def _sizes(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
        raise CheckpointError(f"{where} is {value!r}, not a list of whole numbers.", _DAMAGED)
    return tuple(value)


def _check_cover(file: RangedFile, tensors: Mapping[str, StoredTensor], base: int) -> None:
    """The tensors must cover the data exactly: no overlap, no hole, nothing behind the last."""
    end = base
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.stop)):
        if tensor.start != end:
            what = "overlaps another tensor" if tensor.start < end else "leaves a hole before it"
            raise CheckpointError(
                f"{file.name}: tensor {tensor.name!r} {what}: it starts at byte "
                f"{tensor.start - base} of the data, expected {end - base}.",
                _DAMAGED,
            )
        end = tensor.stop
    if end != file.size:
        raise CheckpointError(
            f"{file.name}: {file.size - end} bytes behind the last tensor belong to none.",
            _DAMAGED,
        )


def _json(data: bytes, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{where}: the name {twice!r} appears twice.", _DAMAGED)
        return value

    try:
        return json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: the JSON is malformed: {error}.", _DAMAGED) from error
