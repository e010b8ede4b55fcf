"""Matmuls on quantised weights: exact integers on every processor, and SmolLM2 as packed."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.blocks import Blocks, as_blocks, quantise, unpack
from rlx_ray.codegen.zig import compile_c
from rlx_ray.component import ModelVariant, QuantScheme
from rlx_ray.config import load
from rlx_ray.engine.generator import cache_pages
from rlx_ray.errors import CheckpointError
from rlx_ray.local import LocalModel
from rlx_ray.models.family import ParamSpec
from rlx_ray.models.packing import pack
from tests.support.needs import needs_smollm2
from tests.support.programs import Bench
from tests.toolchain.test_precision import STAND_INS

ROOT = Path(__file__).parent.parent.parent
UNIT = """
#define RLX_LANES {lanes}
#define RLX_TILE_ROWS 6
#define RLX_TILE_VECTORS {vectors}
#include "rt.h"
{stand_ins}
#include "gemm_blocks.h"
#define EXPORT __attribute__((visibility("default")))
EXPORT void quantize(long m, long k, const float *x, char *y, long pitch) {{
    quantize_blocks(m, k, x, y, pitch);
}}
EXPORT void b4(long m, long n, long k, const char *a, long pitch, const char *w, float *c) {{
    gemm_b4(m, n, k, a, pitch, w, c, n, 0, 0);
}}
EXPORT void b8(long m, long n, long k, const char *a, long pitch, const char *w, float *c) {{
    gemm_b8(m, n, k, a, pitch, w, c, n, 0, 0);
}}
"""
WAYS = {
    "avx2": (8, 2, ""),
    "avx512": (16, 2, ""),
    "avx512 with dot products": (16, 2, STAND_INS),
    "neon": (4, 4, ""),
}
SHAPES = [(1, 16, 32), (1, 33, 96), (2, 7, 64), (3, 48, 32), (5, 20, 160), (9, 64, 64)]


class Kernels:
    """The compiled kernels, on NumPy arrays."""

    def __init__(self, bench: Bench, lanes: int, vectors: int, stand_ins: str) -> None:
        text = UNIT.format(lanes=lanes, vectors=vectors, stand_ins=stand_ins)
        self.library = ctypes.CDLL(str(bench.file(compile_c(text, bench.toolchain), "b.so")))
        self.panel = lanes * vectors

    def call(self, name: str, *args: object) -> None:
        def value(arg: object) -> object:
            address = isinstance(arg, np.ndarray) and arg.ctypes.data
            return ctypes.c_void_p(address) if address else ctypes.c_long(arg)

        getattr(self.library, name)(*(value(a) for a in args))

    def quantize(self, x: np.ndarray) -> np.ndarray:
        m, k = x.shape
        rows = np.full((m, k + k // 4), 0xAA, np.uint8)
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
    return Kernels(bench, *WAYS[request.param])


def random_blocks(name: str, n: int, k: int) -> Blocks:
    rng = np.random.default_rng(n + k)
    d = rng.uniform(0.01, 0.1, (n, k // 32)).astype(np.float16)
    if name == "b4":
        m = rng.uniform(-1, 0, (n, k // 32)).astype(np.float16)
        return Blocks(rng.integers(0, 16, (n, k)).astype(np.uint8), d, m)
    return Blocks(rng.integers(-128, 128, (n, k)).astype(np.int8), d, None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["b4", "b8"])
def test_rows_and_sums_are_exact(kernels: Kernels, name: str, shape: tuple[int, ...]) -> None:
    m, n, k = shape
    rng = np.random.default_rng(m)
    x = (rng.normal(size=(m, k)) * rng.uniform(0.01, 30, (m, 1))).astype(np.float32)
    x[0, :32] = 0
    parts = x.reshape(m, k // 32, 32)
    top = np.abs(parts).max(2)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    codes = np.rint(parts * inverse[:, :, None])
    scale = top / np.float32(127)
    rows = kernels.quantize(x)
    np.testing.assert_array_equal(rows[:, :k].copy().view(np.int8), codes.reshape(m, k))
    found = rows[:, k:].copy().view(np.float32).reshape(m, 2, k // 32)
    np.testing.assert_array_equal(found[:, 0], scale)
    np.testing.assert_allclose(found[:, 1], scale * codes.sum(2), rtol=1e-6)
    blocks = random_blocks(name, n, k)
    weights = blocks.codes.reshape(n, k // 32, 32).astype(np.float64)
    sums = np.einsum("mbi,nbi->mnb", codes.astype(np.float64), weights)
    want = (sums * scale[:, None] * blocks.d[None].astype(np.float64)).sum(2)
    size = np.abs(sums * scale[:, None] * blocks.d[None]).sum(2)
    if blocks.m is not None:
        offsets = (scale * codes.sum(2)).astype(np.float64) @ blocks.m.astype(np.float64).T
        want, size = want + offsets, size + np.abs(offsets)
    assert (np.abs(kernels.gemm(name, x, blocks) - want) <= 2e-6 * size + 1e-6).all()


@pytest.mark.parametrize("name", ["b4", "b8"])
def test_a_row_has_the_same_bits_in_any_batch(kernels: Kernels, name: str) -> None:
    x = np.random.default_rng(1).normal(size=(7, 96)).astype(np.float32)
    blocks = random_blocks(name, 40, 96)
    together = kernels.gemm(name, x, blocks)
    alone = np.concatenate([kernels.gemm(name, row[None], blocks) for row in x])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("name", ["gguf_q4_0", "gguf_q4_1", "gguf_q4k", "gguf_q8_0"])
def test_blocks_are_what_unpacking_gives(name: str) -> None:
    scheme = QuantScheme.parse(name)
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (6, scheme.gguf_block_bytes), dtype=np.uint8)
    raw[:, 1], raw[:, 3] = 0x2C, 0x24  # scales of a usual size
    shape = (3, 2 * scheme.gguf_block_size)
    blocks = as_blocks(raw.tobytes(), scheme, shape)
    got = blocks.codes.reshape(3, -1, 32) * blocks.d[:, :, None].astype(np.float32)
    if blocks.m is not None:
        got = got + blocks.m[:, :, None].astype(np.float32)
    want = unpack(raw.tobytes(), scheme, shape).reshape(got.shape)
    exact = 0 if name != "gguf_q4k" else np.abs(want).max() * 2**-10
    assert np.abs(got - want).max() <= exact


@pytest.mark.parametrize(
    ("name", "error"),
    [("gguf_q8_0", 0.0055), ("int8/64", 0.007), ("gguf_q4_1", 0.1), ("int4/32", 0.09)],
)
def test_quantising_keeps_most_of_a_matrix(name: str, error: float) -> None:
    rows = np.random.default_rng(3).normal(size=(8, 128)).astype(np.float32)
    rows[2] = 0
    blocks = quantise(rows, QuantScheme.parse(name))
    got = blocks.codes.reshape(8, -1, 32) * blocks.d[:, :, None].astype(np.float32)
    got = got + (0 if blocks.m is None else blocks.m[:, :, None].astype(np.float32))
    got = got.reshape(rows.shape)
    assert np.linalg.norm(got - rows) <= error * np.linalg.norm(rows)
    assert not got[2].any()


def test_what_cannot_be_quantised_is_named() -> None:
    rows = np.zeros((2, 48), np.float32)
    for name in ("gguf_q8_0", "int8/48", "fp8e4m3"):
        with pytest.raises(CheckpointError, match="48 columns"):
            quantise(rows, QuantScheme.parse(name))


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
        self.model = LocalModel(replace(found, models=(model,), store=store), "smollm2")
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
