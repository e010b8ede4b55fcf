"""What the emulation of CUDA promises: it finds faults and computes as the device does."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.compiler.cpu.zig import installed_version
from tests.support.cuda_emulator import ORDERS, Buffer, LaunchError, compile_host, start
from tests.support.needs import needs

TEXT = """
#include "cuda_shim.h"
#include "rlx.cuh"

RLX_KERNEL missing_barrier(float *y) {
    __shared__ float part[64];
    part[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = part[63 - threadIdx.x];
}
RLX_KERNEL with_barrier(float *y) {
    __shared__ float part[64];
    part[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = part[63 - threadIdx.x];
}
RLX_KERNEL lonely(float *y) {
    if (threadIdx.x < 32) __syncthreads();
    y[threadIdx.x] = 0;
}
RLX_KERNEL half_a_warp(float *y) {
    y[threadIdx.x] = threadIdx.x % 32 < 16 ? __shfl_xor_sync(0xffff, 1.0f, 1) : 0.0f;
}
RLX_KERNEL crooked(float *y) { y[0] = reinterpret_cast<float4 *>(y + 1)->x; }
RLX_KERNEL behind(float *y) { y[64] = 0; }
RLX_KERNEL ahead(float *y) { y[-1] = 0; }
RLX_KERNEL reads_behind(float *y) { y[threadIdx.x] = y[threadIdx.x + 1]; }
RLX_KERNEL too_much_shared(float *y) { dynamic_shared()[256] = 0; }
RLX_KERNEL not_waited_for(const float *x, float *y) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    copy_async(shared, x, true), copy_commit();
    y[threadIdx.x] = shared[threadIdx.x % 4];
}
RLX_KERNEL waited_for(const float *x, float *y) {
    float *own = reinterpret_cast<float *>(dynamic_shared()) + threadIdx.x * 8;
    copy_async(own, x, true), copy_commit();
    copy_async(own + 4, x + 4, threadIdx.x != 1), copy_commit();
    copy_wait<1>();
    y += threadIdx.x * 12;
    for (int i = 0; i < 8; i++) y[i] = own[i];
    copy_wait<0>();
    for (int i = 0; i < 4; i++) y[8 + i] = own[4 + i];
}
RLX_KERNEL rounds(const float *x, __half *h, __nv_bfloat16 *b) {
    for (int i = threadIdx.x; i < 4096; i += blockDim.x)
        h[i] = from_float<__half>(x[i]), b[i] = from_float<__nv_bfloat16>(x[i]);
}
RLX_KERNEL widens(const __half *h, const __nv_bfloat16 *b, float *y) {
    for (int i = threadIdx.x; i < 65536; i += blockDim.x)
        y[i] = to_float(h[i]), y[65536 + i] = to_float(b[i]);
}
RLX_KERNEL product(const __half *a, const __half *b, float *c) {
    /* A [16][16] and B^T [8][16] through shared memory, as attention reads them. */
    __half *shared = reinterpret_cast<__half *>(dynamic_shared());
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) copy_async(shared + lane * 8, a + lane * 8, true);
    if (threadIdx.x < 16) copy_async(shared + 256 + lane * 8, b + lane * 8, true);
    copy_commit(), copy_wait<0>();
    __syncthreads();
    unsigned x[4], y[4];
    load_matrices(x, shared + lane % 16 * 16 + lane / 16 * 8);
    load_matrices(y, shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
    float own[4] = {0, 0, 0, 0};
    mma<__half>(own, x, y[0], y[1]);
    float *at = c + lane / 4 * 8 + lane % 4 * 2;
    at[0] = own[0], at[1] = own[1], at[64] = own[2], at[65] = own[3];
}
RLX_KERNEL transposed(const __half *a, __half *y) {
    __half *shared = reinterpret_cast<__half *>(dynamic_shared());
    const int lane = threadIdx.x % 32;
    copy_async(shared + lane * 8, a + lane * 8, true);
    copy_commit(), copy_wait<0>();
    __syncthreads();
    unsigned x[4];
    load_matrices_transposed(x, shared + lane % 16 * 16 + lane / 16 * 8);
    unsigned *to = reinterpret_cast<unsigned *>(y);
    for (int m = 0; m < 4; m++) to[m * 32 + lane] = x[m];
}
"""
NAMES = TEXT.split("RLX_KERNEL ")[1:]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    exports = "".join(f"RLX_EXPORT({name.partition('(')[0]})\n" for name in NAMES)
    return compile_host(tmp_path_factory.mktemp("shim"), TEXT + exports)


def run(library, name: str, *arguments: Buffer, order="ascending", threads=64, shared=0) -> None:
    start(library, name, (1, 1, 1, threads, 1, 1), shared, arguments, order)


def fresh(count: int = 64) -> Buffer:
    return Buffer(np.zeros(count, np.float32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lonely", "wait for others that never come"),
        ("half_a_warp", "must name all 32 lanes"),
        ("crooked", "not aligned"),
        ("behind", "argument 0 was written outside its bounds"),
        ("ahead", "argument 0 was written outside its bounds"),
        ("too_much_shared", "written behind what was asked for"),
    ],
)
def test_a_fault_ends_the_launch_with_a_message(library, name: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        run(library, name, fresh(), shared=256)
    y = fresh()
    run(library, "with_barrier", y)
    assert (y.array == np.arange(64)[::-1]).all(), "the next launch is unharmed"


def test_a_missing_barrier_shows_in_every_order(library: ctypes.CDLL) -> None:
    for order in ORDERS:
        y = fresh()
        run(library, "missing_barrier", y, order=order)
        assert np.isnan(y.array).any(), order
        run(library, "with_barrier", y, order=order)
        assert (y.array == np.arange(64)[::-1]).all(), order


def test_what_stands_behind_a_buffer_reads_as_nan(library: ctypes.CDLL) -> None:
    y = fresh()
    run(library, "reads_behind", y)
    assert np.isnan(y.array[-1])


def test_a_kernel_gets_as_many_arguments_as_it_takes(library: ctypes.CDLL) -> None:
    with pytest.raises(LaunchError, match="another number of arguments"):
        run(library, "behind", fresh(), fresh())
    with pytest.raises(LaunchError, match="a multiple of 32"):
        run(library, "behind", fresh(), threads=33)


def test_a_copy_lands_when_it_is_waited_for(library: ctypes.CDLL) -> None:
    x, y = Buffer(np.arange(1, 9, dtype=np.float32)), fresh()
    run(library, "not_waited_for", x, y, shared=256)
    assert np.isnan(y.array).all()
    y = fresh(32 * 12)
    run(library, "waited_for", x, y, threads=32, shared=1024)
    first, second, late = np.split(y.array.reshape(32, 12), 3, axis=1)
    assert (first == [1, 2, 3, 4]).all()
    assert np.isnan(second).all()
    assert (late[0] == [5, 6, 7, 8]).all()
    assert not late[1].any(), "what is not there becomes zeros"


def test_conversions_are_numpys(library: ctypes.CDLL) -> None:
    import ml_dtypes

    rng = np.random.default_rng(0)
    x = (rng.normal(size=4096) * np.exp(rng.uniform(-20, 12, 4096))).astype(np.float32)
    ties = np.float32(1) + np.arange(64, dtype=np.float32) * np.float32(2**-12)
    x[:64], x[64:128] = ties, np.float32(1) + np.arange(64) * np.float32(2**-9)
    half, brain = np.float16, ml_dtypes.bfloat16
    h, b = Buffer(np.zeros(4096, half)), Buffer(np.zeros(4096, brain))
    run(library, "rounds", Buffer(x), h, b)
    with np.errstate(over="ignore"):
        assert (h.array.view(np.uint16) == x.astype(half).view(np.uint16)).all()
    assert (b.array.view(np.uint16) == x.astype(brain).view(np.uint16)).all()
    every = np.arange(65536, dtype=np.uint16)
    y = fresh(131072)
    run(library, "widens", Buffer(every.view(half)), Buffer(every.view(brain)), y)
    want = np.concatenate([every.view(half).astype(np.float32), every.view(brain).astype("f4")])
    np.testing.assert_array_equal(y.array, want)


def test_a_product_of_matrices_and_their_transposes(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, (n, 16)).astype(np.float16) for n in (16, 8))
    c = Buffer(np.zeros((16, 8), np.float32))
    run(library, "product", Buffer(a), Buffer(b), c, shared=768)
    assert (c.array == a.astype(np.float32) @ b.astype(np.float32).T).all()
    y = Buffer(np.zeros((2, 2, 8, 8), np.float16))
    run(library, "transposed", Buffer(a), y, threads=32, shared=512)
    blocks = y.array.reshape(2, 2, 8, 8)  # matrix m is rows 8 (m % 2), columns 8 (m / 2)
    for m in range(4):
        rows, columns = 8 * (m % 2), 8 * (m // 2)
        assert (blocks[m // 2, m % 2] == a[rows : rows + 8, columns : columns + 8].T).all()


def test_shuffled_orders_differ_only_by_their_seed(library) -> None:
    found = []
    for _ in range(2):
        y = fresh()
        run(library, "missing_barrier", y, order="shuffled")
        found.append(y.array.tobytes())
    assert found[0] == found[1]


def test_the_shim_is_not_part_of_the_package() -> None:
    package = Path(__file__).parent.parent.parent / "rlx_ray"
    assert not list(package.rglob("*shim*"))
