"""Packing for CUDA: matrices in blocks, in the one layout that kernels/cuda/blocks.cuh reads.

A matrix [N, K] is cut into tiles of 16 outputs and these into chunks of 64 terms. A lane of the
warp that reads a chunk finds there the codes that it multiplies, in the order in which it does; the
whole layout is described in blocks.cuh.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.blocks import Blocks
from rlx_ray.matrix import BLOCK, HALF, MatrixFormat

TILE = 16
"""Outputs of a tile."""

CHUNK = 64
"""Terms of a chunk."""

Bytes = npt.NDArray[np.uint8]


def chunk_bytes(form: MatrixFormat) -> int:
    """Bytes of a chunk of a tile."""
    return form.block_bytes * TILE * CHUNK // BLOCK


def tiled_bytes(form: MatrixFormat, n: int, k: int) -> int:
    """Bytes of a matrix [n, k]."""
    return -(-n // TILE) * -(-k // CHUNK) * chunk_bytes(form)


def tiled(blocks: Blocks) -> Bytes:
    """A matrix of blocks as bytes [tiles, chunks, bytes of a chunk]."""
    form = blocks.form
    codes = _chunks(blocks.codes.view(np.uint8) + np.uint8(form.centre), 1)
    kinds = [blocks.d] if blocks.m is None else [blocks.d, blocks.m]
    per = HALF if form.halves else BLOCK
    facts = np.stack([_chunks(kind, per) for kind in kinds], axis=2)  # tile, chunk, kind, row, part
    tiles, chunks = facts.shape[:2]
    parts = facts.reshape(tiles, chunks, len(kinds), 2, 8, -1).transpose(0, 1, 4, 2, 3, 5)
    pieces = [np.ascontiguousarray(parts).view(np.uint8).reshape(tiles, chunks, -1)]
    pieces += [plane.reshape(tiles, chunks, -1) for plane in _planes(_pairs(codes), form.bits)]
    return np.concatenate(pieces, axis=2)


def _chunks(values: npt.NDArray[Any], per: int) -> npt.NDArray[Any]:
    """[N, K / per] as [tiles, chunks, 16, 64 / per], zero behind the end."""
    n, k = values.shape
    wide = CHUNK // per
    whole = np.pad(values, ((0, -n % TILE), (0, -k % wide)))
    return whole.reshape(-1, TILE, whole.shape[1] // wide, wide).swapaxes(1, 2)


def _pairs(codes: Bytes) -> Bytes:
    """Codes of chunks as [tiles, chunks, lane, product, pair, 2]."""
    split = codes.reshape(*codes.shape[:2], 2, 8, 4, 4, 2, 2)  # row, g, product, t, late, two
    lanes = split.transpose(0, 1, 3, 5, 4, 6, 2, 7)  # g, t, product, late, row, two
    return lanes.reshape(*codes.shape[:2], 32, 4, 4, 2)


def _planes(pairs: Bytes, bits: int) -> list[Bytes]:
    """The planes of codes, the low bits first, as bytes."""
    planes = []
    lead = pairs.shape[:3]
    for plane in (8, 4, 2, 1):
        if not bits & plane:
            continue
        if plane == 8:
            own = pairs.reshape(*lead[:2], 32, 2, 16).swapaxes(2, 3)
            planes.append(np.ascontiguousarray(own))
        else:
            # A word has 32 / plane codes: pair i in bits plane * i and 16 + plane * i.
            words = pairs.reshape(*lead, plane, 16 // plane, 2).astype(np.uint32)
            words &= (1 << plane) - 1
            i = np.arange(16 // plane, dtype=np.uint32)[:, None]
            shifts = plane * i + np.array([0, 16], np.uint32)
            planes.append(np.bitwise_or.reduce(words << shifts, axis=(4, 5)).view(np.uint8))
        pairs = pairs >> np.uint8(plane) if plane < 8 else pairs
    return planes
