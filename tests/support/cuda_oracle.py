"""What CUDA kernels are held against: float64, and how close they must come."""

from __future__ import annotations

import numpy as np

from rlx_ray.dtype import DType
from tests.support.cuda_emulator import NUMPY

TYPES = (DType.F32, DType.F16, DType.BF16)
IDS = [str(t) for t in TYPES]

LIMIT = {DType.F32: 1e-5, DType.F16: 2e-3, DType.BF16: 2e-3}
"""The relative error |got - want| / |want| in the Euclidean norm over a kernel's output."""

ROUNDING = {DType.F32: 2.0**-24, DType.F16: 2.0**-11, DType.BF16: 2.0**-8}
"""The relative error of one rounding to a type."""


def values(rng: np.random.Generator, shape: tuple[int, ...], t: DType) -> np.ndarray:
    """Normal random numbers, rounded to a type."""
    return rng.normal(size=shape).astype(np.float32).astype(NUMPY[t])


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal random float32."""
    return rng.normal(size=shape).astype(np.float32)


def empty(shape: tuple[int, ...], t: DType) -> np.ndarray:
    """An output: NaN everywhere, so that what is not written shows."""
    return np.full(shape, np.nan, np.float32).astype(NUMPY[t])


def wide(x: np.ndarray) -> np.ndarray:
    """The same numbers as float64."""
    return x.astype(np.float64)


def check(got: np.ndarray, want: np.ndarray, t: DType) -> None:
    """Check that an output is as close as its type allows.

    The error's norm must be within LIMIT of the output's. A bf16 output is rounded by up to 2^-8
    whatever the kernel does: there only what an error has beyond that counts. Beside this no one
    number may be off by more than its rounding and eight times the limit of a typical number.
    """
    off = np.abs(wide(got) - want)
    size = np.linalg.norm(want)
    assert not np.isnan(off).any(), f"{np.isnan(off).mean():.1%} are NaN"
    rounding = ROUNDING[t] * np.abs(want)
    own = np.maximum(off - rounding, 0) if t is DType.BF16 else off
    assert np.linalg.norm(own) <= LIMIT[t] * size, f"{np.linalg.norm(own) / size:.2e}"
    bound = rounding + 8 * LIMIT[t] * size / np.sqrt(max(want.size, 1))
    assert (off <= bound).all(), f"one is off by {(off / bound).max():.2f} bounds"


def attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Softmax(q k^T / sqrt(dim)) v in float64.

    Args:
        q: [rows, heads, dim].
        keys: [keys, kv_heads, dim].
        values: of the same shape.
        seen: bool [rows, keys].

    Returns:
        [rows, heads * dim].
    """
    rows, heads, dim = q.shape
    shared = heads // keys.shape[1]
    k, v = (wide(x).repeat(shared, axis=1) for x in (keys, values))
    scores = np.einsum("rhd,khd->hrk", wide(q), k) / np.sqrt(dim)
    scores = np.where(seen, scores, -np.inf)
    e = np.exp(scores - scores.max(2, keepdims=True))
    out = np.einsum("hrk,khd->rhd", e / e.sum(2, keepdims=True), v)
    return out.reshape(rows, heads * dim)
