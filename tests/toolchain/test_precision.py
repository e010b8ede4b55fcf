"""Matmuls of low precision: exact integers, every kind of processor's path, whole programs."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import pytest

from rlx_ray.compiler.cpu.precision import lower_precision
from rlx_ray.compiler.cpu.regions import Tiling
from rlx_ray.compiler.cpu.schedule import schedule
from rlx_ray.compiler.cpu.zig import compile_c
from rlx_ray.component.profile import Precision
from rlx_ray.weights.formats import FORMATS
from rlx_ray.weights.packing_cpu import pack
from rlx_ray.weights.params import ParamSpec
from rlx_ray.weights.sources import to_bf16
from tests.support.mir_oracle import evaluate
from tests.support.programs import (
    PROFILE,
    Bench,
    bert,
    pack_inputs,
    random_inputs,
    random_params,
    stages,
)

STAND_INS = """
static inline vi int8_dot(vi acc, vi a, vi w) {
    for (int i = 0; i < RLX_LANES; i++)
        for (int j = 0; j < 32; j += 8)
            acc[i] += ((unsigned)a[i] >> j & 255) * (int)(signed char)((unsigned)w[i] >> j & 255);
    return acc;
}
static inline float half(unsigned bits) { union { unsigned u; float f; } x = {bits}; return x.f; }
static inline vf bf16_dot(vf acc, vi a, vi w) {
    for (int i = 0; i < RLX_LANES; i++) {
        const unsigned x = (unsigned)a[i], y = (unsigned)w[i];
        acc[i] += half(x << 16) * half(y << 16) + half(x & 0xffff0000) * half(y & 0xffff0000);
    }
    return acc;
}
#define INT8_DOT int8_dot
#define INT8_STAND_IN
#define BF16_DOT bf16_dot
"""

UNIT = """
#define RLX_LANES {lanes}
#define RLX_TILE_ROWS {rows}
#define RLX_TILE_VECTORS {vectors}
#include "rt.h"
{stand_ins}
#include "quantize.h"
#define EXPORT __attribute__((visibility("default")))
static vf twice_plus(vf acc, const float *const *x, long row, long col) {{
    return acc + acc + ld(x[0] + col);
}}
EXPORT long q8_bytes(void) {{ return sizeof(rlx_q8); }}
EXPORT long bf16_bytes(void) {{ return sizeof(rlx_bf16); }}
EXPORT void q_int8(long m, long k, const float *x, char *y, long pitch) {{
    quantize_int8(m, k, x, y, pitch);
}}
EXPORT void q_bf16(long m, long k, const float *x, char *y, long pitch) {{
    quantize_bf16(m, k, x, y, pitch);
}}
EXPORT void g_int8(long m, long n, long k, const char *a, long pitch, const char *w, float *c,
                   const float *bias) {{
    gemm_int8(m, n, k, a, pitch, w, c, n, bias ? twice_plus : 0, &bias);
}}
EXPORT void g_bf16(long m, long n, long k, const char *a, long pitch, const char *w, float *c,
                   const float *bias) {{
    gemm_bf16(m, n, k, a, pitch, w, c, n, bias ? twice_plus : 0, &bias);
}}
"""


@dataclass(frozen=True)
class Way:
    """The kernels as one kind of processor has them."""

    lanes: int
    rows: int
    vectors: int
    stand_ins: str = ""


WAYS = {
    "avx2": Way(8, 6, 2),
    "avx512": Way(16, 8, 2),
    "avx512 with dot products": Way(16, 8, 2, STAND_INS),
    "neon": Way(4, 6, 4),
    "neon with dot products": Way(4, 6, 4, STAND_INS),
}


class Kernels:
    """The compiled kernels of a way, on NumPy arrays."""

    def __init__(self, bench: Bench, way: Way) -> None:
        text = UNIT.format(
            lanes=way.lanes, rows=way.rows, vectors=way.vectors, stand_ins=way.stand_ins
        )
        self.library = ctypes.CDLL(str(bench.file(compile_c(text, bench.toolchain), "low.so")))
        self.panel = way.lanes * way.vectors

    def quantize(self, precision: str, x: np.ndarray) -> tuple[np.ndarray, int]:
        """The rows, as bytes, and the size of an element."""
        m, k = x.shape
        form = FORMATS[precision]
        name = "q8_bytes" if precision == "int8" else "bf16_bytes"
        size = getattr(self.library, name)()
        pitch = form.groups(k) * form.group * size + (8 if precision == "int8" else 0)
        rows = np.full((m, pitch), 0xAA, np.uint8)
        _call(self.library, f"q_{precision}", m, k, x, rows, pitch)
        return rows, size

    def gemm(self, precision: str, x: np.ndarray, w: np.ndarray, bias=None) -> np.ndarray:
        """X @ w through quantised rows and packed weights; twice it plus a bias, if given."""
        (m, k), n = x.shape, w.shape[1]
        rows, _ = self.quantize(precision, x)
        spec = ParamSpec("w", (k, n), "matrix", ("w",))
        packed, _ = pack([spec], lambda _: np.ascontiguousarray(w.T), self.panel, precision)
        out = np.full((m, n), np.nan, np.float32)
        _call(self.library, f"g_{precision}", m, n, k, rows, rows.shape[1], packed, out, bias)
        return out


def _call(library: ctypes.CDLL, name: str, *args: object) -> None:
    def value(arg: object) -> object:
        if isinstance(arg, np.ndarray):
            return ctypes.c_void_p(arg.ctypes.data)
        return ctypes.c_void_p(None) if arg is None else ctypes.c_long(arg)

    getattr(library, name)(*(value(a) for a in args))


@pytest.fixture(scope="module", params=WAYS)
def kernels(request: pytest.FixtureRequest, bench: Bench) -> Kernels:
    return Kernels(bench, WAYS[request.param])


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes, scales and zero points of rows, in float32 as the kernel computes them."""
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    scale = (high - low) / np.float32(255)
    inverse = np.where(scale > 1e-30, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    zero = np.rint(-low * inverse)
    codes = np.clip(np.rint(x * inverse[:, None]) + zero[:, None], 0, 255)
    return codes.astype(np.int64), scale, zero.astype(np.int64)


def problem(m: int, n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + m + n + k)
    x = (rng.normal(size=(m, k)) * rng.uniform(0.01, 30, (m, 1))).astype(np.float32)
    w = rng.normal(size=(k, n)).astype(np.float32)
    return x, w, rng.normal(size=n + 64).astype(np.float32)


SHAPES = [(1, 1, 1), (1, 33, 5), (3, 16, 4), (7, 40, 18), (8, 64, 67), (13, 7, 130), (17, 96, 64)]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_rows_and_sums_are_exact(kernels: Kernels, shape: tuple[int, int, int]) -> None:
    x, w, bias = problem(*shape)
    rows, size = kernels.quantize("int8", x)
    codes, scale, zero = quantised(x)
    k = shape[2]
    kind = np.uint8 if size == 1 else np.int16
    np.testing.assert_array_equal(rows[:, : k * size].copy().view(kind), codes)
    np.testing.assert_array_equal(rows[:, -8:-4].copy().view(np.float32)[:, 0], scale)
    np.testing.assert_array_equal(rows[:, -4:].copy().view(np.int32)[:, 0], zero)
    step = np.abs(w).max(0) / np.float32(127)
    weights = np.rint(w / step).astype(np.int64)
    sums = (codes - zero[:, None]) @ weights
    want = sums * scale[:, None].astype(np.float64) * step
    np.testing.assert_allclose(kernels.gemm("int8", x, w), want, rtol=4e-7)
    got = kernels.gemm("int8", x, w, bias)
    np.testing.assert_allclose(got, 2 * want + bias[: shape[1]], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_rows_are_exact_and_sums_are_of_float32(kernels: Kernels, shape) -> None:
    x, w, bias = problem(*shape)
    rows, size = kernels.quantize("bf16", x)
    bits = rows[:, : shape[2] * size].copy().view(np.uint16 if size == 2 else np.uint32)
    np.testing.assert_array_equal(bits if size == 2 else bits >> 16, to_bf16(x))
    a, b = (
        (to_bf16(v).astype(np.uint32) << 16).view(np.float32).astype(np.float64) for v in (x, w)
    )
    want, scale = a @ b, np.abs(a) @ np.abs(b)
    assert (np.abs(kernels.gemm("bf16", x, w) - want) <= 1e-6 * scale + 1e-12).all()
    got = kernels.gemm("bf16", x, w, bias)
    assert (np.abs(got - 2 * want - bias[: shape[1]]) <= 3e-6 * (scale + 10)).all()


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_row_has_the_same_bits_in_any_batch(kernels: Kernels, precision: str) -> None:
    x, w, _ = problem(17, 70, 50)
    together = kernels.gemm(precision, x, w)
    alone = np.concatenate([kernels.gemm(precision, row[None], w) for row in x])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("row", [0.0, 1e-38, 3.0, -7.0, 1e30], ids=str)
def test_rows_of_one_value(kernels: Kernels, row: float) -> None:
    x = np.full((2, 9), row, np.float32)
    w = np.ones((9, 3), np.float32)
    got = kernels.gemm("int8", x, w)
    np.testing.assert_allclose(got, 9 * row if abs(row) > 1e-30 else 0, rtol=1e-5)


def low(precision: str):
    return replace(PROFILE, precision=Precision(precision))


TOLERANCE = {"int8": 0.03, "bf16": 0.006}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("hidden", [24, 33])
def test_a_program_is_near_float64(bench: Bench, precision: str, hidden: int) -> None:
    hir = bert(hidden=hidden, heads=3, intermediate=50)
    made = stages(hir, 3, 11, profile=low(precision))
    params, inputs = random_params(made.program), random_inputs(3, 11)
    (want,) = evaluate(made.lowered, params | inputs)
    got = bench.load(made.program, params).run(inputs)["embedding"]
    np.testing.assert_allclose(got, want, atol=TOLERANCE[precision])
    assert np.abs(got - want).max() > 1e-5, "this is not low precision"


@pytest.mark.parametrize("precision", ["int8", pytest.param("bf16", marks=pytest.mark.slow)])
def test_every_way_to_cut_gives_the_same_bits(bench: Bench, precision: str) -> None:
    inputs = random_inputs(6, 12, lengths=[12, 3, 1, 7, 12, 2])
    params = random_params(stages(bert(), 6, 12).program)
    found = set()
    for way in (Tiling("sequences", 2), Tiling("rows", 3), Tiling("columns", 0)):
        made = stages(bert(), 6, 12, profile=low(precision), tiling=way)
        for threads in (1, 3):
            got = bench.load(made.program, params, threads).run(inputs)["embedding"]
            found.add(got.tobytes())
    ragged = stages(bert(), 6, 12, profile=low(precision), rows=40)
    found.add(
        bench.load(ragged.program, params).run(pack_inputs(inputs, 40))["embedding"].tobytes()
    )
    assert len(found) == 1


def test_fp8_feed_forwards_that_leave_the_cache_are_made_whole(bench: Bench) -> None:
    base = stages(bert(hidden=96, heads=3, intermediate=384, layers=1), 8, 32).mir
    mir = lower_precision(base, {}, "fp8e4m3", bench.target)
    inputs, found = random_inputs(8, 32), set()
    for way in (Tiling("columns", 0), Tiling("sequences", 1), Tiling("rows", 2)):
        lir = schedule(mir, bench.target, way)
        found.add(bench.load(lir, random_params(lir)).run(inputs)["embedding"].tobytes())
    assert len(found) == 1
