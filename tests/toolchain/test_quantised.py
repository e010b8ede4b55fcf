"""Matmuls on quantised weights: exact integers on every processor, and SmolLM2 as packed."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from rlx_ray.compiler.cpu.c import head
from rlx_ray.compiler.cpu.zig import compile_c
from rlx_ray.component import ModelVariant
from rlx_ray.config.load import load
from rlx_ray.job.compile_miss import load as open_local
from rlx_ray.runtime.cpu import cache_pages
from rlx_ray.weights.blocks import Blocks
from rlx_ray.weights.formats import FORMATS, MatrixFormat
from rlx_ray.weights.packing_cpu import pack
from rlx_ray.weights.params import ParamSpec
from rlx_ray.weights.small_floats import FP8
from tests.support.needs import needs_smollm2
from tests.support.programs import Bench
from tests.toolchain.test_precision import STAND_INS

ROOT = Path(__file__).parent.parent.parent
UNIT = """
{head}
{stand_ins}
#include "gemm_blocks.h"
#include "gemm_fp8.h"
#define EXPORT __attribute__((visibility("default")))
EXPORT void quantize(long m, long k, const float *x, char *y, long pitch) {{
    quantize_blocks(m, k, x, y, pitch);
}}
EXPORT void fp8(long m, long n, long k, long e5m2, const float *a, const void *w, float *c) {{
    if (e5m2) gemm_fp8(m, n, k, 1, a, w, c, n, micro, 0);
    else gemm_fp8(m, n, k, 0, a, w, c, n, micro, 0);
}}
"""
BLOCK_UNIT = """
static long {name}_k, {name}_pitch;
BLOCK_TILES({name}, {name}_k, {name}_pitch, {bits}, {halves}, {offsets})
EXPORT void {name}(long m, long n, long k, const char *a, long pitch, const char *w, float *c) {{
    {name}_k = k, {name}_pitch = pitch;
    gemm_blocks(m, n, k, pitch, {bits}, {halves}, {offsets}, blocks_{name}, a, w, c, n, 0, 0);
}}
"""
WAYS = {
    "avx2": (8, 2, ""),
    "avx512": (16, 2, ""),
    "avx512 with dot products": (16, 2, STAND_INS),
    "neon": (4, 4, ""),
}
BLOCK_FORMATS = [f for f in FORMATS.values() if f.bits]
OFTEN = ("b2hm", "b3h", "b4m", "b6h", "b8")
"""Formats that are tried in every way: each number of planes, halves, offsets, and neither."""
SHAPES = [(1, 16, 32), (1, 33, 96), (2, 7, 64), (3, 48, 32), (5, 20, 160), (9, 64, 64)]


class Kernels:
    """The compiled kernels, on NumPy arrays."""

    def __init__(self, bench: Bench, way: str, formats: Sequence[str] = OFTEN) -> None:
        lanes, vectors, stand_ins = WAYS[way]
        self.formats = [FORMATS[name] for name in formats]
        shape = replace(bench.target, lanes=lanes, tile_rows=6, tile_vectors=vectors)
        text = UNIT.format(head=head(shape, ["rt.h"]), stand_ins=stand_ins)
        for form in self.formats:
            traits = {"halves": int(form.halves), "offsets": int(form.offsets)}
            text += BLOCK_UNIT.format(name=form.name, bits=form.bits, **traits)
        self.library = ctypes.CDLL(str(bench.file(compile_c(text, bench.toolchain), "b.so")))
        self.panel = lanes * vectors

    def call(self, name: str, *args: object) -> None:
        def value(arg: object) -> object:
            address = isinstance(arg, np.ndarray) and arg.ctypes.data
            return ctypes.c_void_p(address) if address else ctypes.c_long(arg)

        getattr(self.library, name)(*(value(a) for a in args))

    def quantize(self, x: np.ndarray) -> np.ndarray:
        m, k = x.shape
        rows = np.full((m, k + k // 2), 0xAA, np.uint8)
        self.call("quantize", m, k, x, rows, rows.shape[1])
        return rows

    def gemm(self, name: str, x: np.ndarray, blocks: Blocks) -> np.ndarray:
        (m, k), n = x.shape, len(blocks.codes)
        spec = ParamSpec("w", (k, n), "matrix", ("w",))
        packed, _ = pack([spec], None, self.panel, "f32", {"w": name}, lambda *_: blocks)
        rows, out = self.quantize(x), np.full((m, n), np.nan, np.float32)
        self.call(name, m, n, k, rows, rows.shape[1], packed, out)
        return out


@pytest.fixture(scope="module", params=WAYS)
def kernels(request: pytest.FixtureRequest, bench: Bench) -> Kernels:
    return Kernels(bench, request.param)


def random_blocks(form: MatrixFormat, n: int, k: int) -> Blocks:
    """Blocks of a format with every code, the least and the largest among them."""
    rng = np.random.default_rng(n + k)
    least, top = (-128, 128) if form.bits == 8 else (-form.centre, (1 << form.bits) - form.centre)
    codes = rng.integers(least, top, (n, k)).astype(np.int8)
    codes[0], codes[-1] = least, top - 1
    shape = (n, k // (16 if form.halves else 32))
    d = rng.uniform(0.01, 0.1, shape).astype(np.float16)
    m = rng.uniform(-1, 0, shape).astype(np.float16) if form.offsets else None
    return Blocks(form, codes, d, m)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_exact(kernels: Kernels, shape: tuple[int, ...]) -> None:
    x, codes, scale = random_rows(shape[0], shape[2])
    m, k = x.shape
    rows = kernels.quantize(x)
    np.testing.assert_array_equal(rows[:, :k].copy().view(np.int8), codes.reshape(m, k))
    found = rows[:, k:].copy().view(np.float32).reshape(m, k // 32, 4)
    np.testing.assert_array_equal(found[:, :, 0], scale)
    sums = codes.reshape(m, k // 32, 2, 16).sum(3)
    np.testing.assert_allclose(found[:, :, 1], scale * sums.sum(2), rtol=1e-6)
    np.testing.assert_allclose(found[:, :, 2:], scale[:, :, None] * sums, rtol=1e-6)


def random_rows(m: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float32 [m, k], and what they are quantised to: codes [m, k / 32, 32], scales [m, k / 32]."""
    rng = np.random.default_rng(m)
    x = (rng.normal(size=(m, k)) * rng.uniform(0.01, 30, (m, 1))).astype(np.float32)
    x[0, :32] = 0
    x[-1] = np.abs(x[-1]).max()  # the largest sums
    parts = x.reshape(m, k // 32, 32)
    top = np.abs(parts).max(2)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    return x, np.rint(parts * inverse[:, :, None]), top / np.float32(127)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_exact(kernels: Kernels, shape: tuple[int, ...]) -> None:
    for form in kernels.formats:
        check_sums(kernels, form, *shape)


@pytest.mark.slow
def test_sums_of_every_format_are_exact(bench: Bench) -> None:
    rest = [f.name for f in BLOCK_FORMATS if f.name not in OFTEN]
    kernels = Kernels(bench, "avx2", rest)
    for form in kernels.formats:
        check_sums(kernels, form, 5, 20, 160)
        check_sums(kernels, form, 9, 64, 64)


def check_sums(kernels: Kernels, form: MatrixFormat, m: int, n: int, k: int) -> None:
    x, codes, scale = random_rows(m, k)
    blocks = random_blocks(form, n, k)
    left = (codes * scale[:, :, None].astype(np.float64)).reshape(m, k)
    right = blocks.codes * blocks.d.repeat(k // blocks.d.shape[1], axis=1).astype(np.float64)
    size = np.abs(left) @ (np.abs(right).T + form.centre * np.abs(blocks.d).max())
    if blocks.m is not None:
        offsets = blocks.m.repeat(k // blocks.m.shape[1], axis=1).astype(np.float64)
        right, size = right + offsets, size + np.abs(left) @ np.abs(offsets).T
    found = kernels.gemm(form.name, x, blocks)
    assert (np.abs(found - left @ right.T) <= 1e-6 * size + 1e-6).all(), form.name


@pytest.mark.parametrize("name", ["b4m", "b6h", "b8"])
def test_a_row_has_the_same_bits_in_any_batch(kernels: Kernels, name: str) -> None:
    x = np.random.default_rng(1).normal(size=(7, 96)).astype(np.float32)
    blocks = random_blocks(FORMATS[name], 40, 96)
    together = kernels.gemm(name, x, blocks)
    alone = np.concatenate([kernels.gemm(name, row[None], blocks) for row in x])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FP8)
def test_fp8_weights_are_multiplied_as_float32(
    kernels: Kernels, name: str, shape: tuple[int, ...]
) -> None:
    m, n, k = shape
    rng = np.random.default_rng(n)
    x, w = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)
    w[0] = 0
    spec = ParamSpec("w", (k, n), "matrix", ("w",))
    packed, _ = pack([spec], lambda _: w, kernels.panel, "f32", {"w": name})
    out = np.full((m, n), np.nan, np.float32)
    kernels.call("fp8", m, n, k, int(name == "fp8e5m2"), x, packed, out)
    scale = np.abs(w).max(1, keepdims=True) / np.float32(FP8[name].largest)
    scale[0] = 1
    kind = {"fp8e4m3": ml_dtypes.float8_e4m3fn, "fp8e5m2": ml_dtypes.float8_e5m2}[name]
    want = x.astype(np.float64) @ ((w / scale).astype(kind).astype(np.float64) * scale).T
    np.testing.assert_allclose(out, want, atol=1e-5 * k**0.5)


# SmolLM2 ----------------------------------------------------------------------------------------

GOLDEN = json.loads((ROOT / "tests" / "golden" / "smollm2.json").read_text())["cases"]


class Stepper:
    """Logits of a model, token by token."""

    def __init__(self, folder: Path, quant: str | None) -> None:
        found = load(ROOT / "configs" / "smollm2.yaml", store_override=f"file://{folder}/store")
        rows = (
            replace(found.models[0].matrix[0], batch=(1,), seq=(64,)),
            replace(found.models[0].matrix[-1], batch=(1,), past_seq=(2047,)),
        )
        model = replace(found.models[0], matrix=rows, quant=quant)
        store = replace(found.store, cache_dir=str(folder / "cache"))
        self.model = open_local(replace(found, models=(model,), store=store), "smollm2")
        self._run = self.model.executable(ModelVariant.decode(1, 2047))[0]
        self._cache = cache_pages(64, self._run.binding.page)

    def logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        pages = np.arange(64, dtype=np.int32)[None]
        one = np.ones(1, np.int32)
        for past, token in enumerate(ids):
            inputs = {
                "input_ids": np.array([[token]], np.int32),
                "lengths": one,
                "past": past * one,
                "pages": pages,
            }
            yield self._run.run(inputs, self._cache)["logits"][0]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stepper]:
    needs_smollm2()
    made = Stepper(tmp_path_factory.mktemp("packed"), "file")
    yield made
    made.model.close()


def test_packed_smollm2_agrees_where_the_reference_is_sure(packed: Stepper) -> None:
    for case in GOLDEN:
        prompt, answer = case["input_ids"], case["greedy_ids"]
        rows = list(packed.logits([*prompt, *answer[:-1]]))[len(prompt) - 1 :]
        for row, token, gap in zip(rows, answer, case["top1_minus_top2"], strict=True):
            if gap > 0.5:
                assert int(row.argmax()) == token
    weights, _ = packed.model.parts(ModelVariant.decode(1, 2047))
    assert weights.nbytes < 150e6, "the weights are not packed"


@pytest.mark.slow
def test_packed_smollm2_has_the_perplexity_of_float32(packed: Stepper, tmp_path: Path) -> None:
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    ids = packed.model.tokenizer.encode(text)[:2048]
    assert len(ids) >= 2000
    exact = Stepper(tmp_path, None)

    def perplexity(model: Stepper) -> float:
        total = 0.0
        for row, token in zip(model.logits(ids[:-1]), ids[1:], strict=True):
            scores = row.astype(np.float64)
            total -= scores[token] - scores.max() - math.log(np.exp(scores - scores.max()).sum())
        return math.exp(total / (len(ids) - 1))

    want, got = perplexity(exact), perplexity(packed)
    exact.model.close()
    assert abs(got / want - 1) <= 0.01
