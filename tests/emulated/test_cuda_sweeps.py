"""CUDA kernels over many more sizes than the quick tests have."""

from __future__ import annotations

import numpy as np
import pytest

from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.shape import PAGE
from rlx_ray.weights.formats import FORMATS
from rlx_ray.weights.packing_cuda import tiled
from tests.emulated.test_cuda_matvec import exact, random_blocks, traits
from tests.support.cuda_cache import sequences
from tests.support.cuda_emulator import ORDERS, Unit
from tests.support.cuda_oracle import TYPES, attention, check, empty, floats, values, wide
from tests.support.needs import needs

pytestmark = pytest.mark.slow
DIMS = [2, 8, 12, 16, 24, 40, 48, 56, 64, 72, 80, 88, 96, 112, 128, 144, 160, 192, 256]


@pytest.fixture(autouse=True)
def _compiler() -> None:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")


@pytest.mark.parametrize("dim", DIMS)
def test_attention_of_every_head_dimension(tmp_path, dim: int) -> None:
    heads, kv_heads, seq, table = 3, 1, 19, 4
    past, lengths = [0, 45, 109], [19, 19, 7]
    sizes = {"batch": 3, "heads": heads, "kv_heads": kv_heads, "dim": dim}
    cache = {"table": table, "page_stride": 2 * kv_heads * 2 * PAGE * dim}
    units = Unit(
        tmp_path,
        [
            one
            for t in TYPES
            for one in (
                instance("attention", f"encoder_{t}", t=t, seq=seq, **sizes, bias=1, warps=1),
                instance("attention_cached", f"prompt_{t}", t=t, seq=seq, **sizes, **cache),
                instance("attention_decode", f"few_{t}", t=t, seq=3, splits=1, **sizes, **cache),
            )
        ],
    )
    for t in TYPES:
        rng = np.random.default_rng(dim)
        own = sequences(rng, t, past, lengths, table, kv_heads, dim)
        given = {"cache": own.cache, "past": own.past, "pages": own.pages}
        q = values(rng, (3 * seq, heads * dim), t)
        want = own.attended(q, seq, heads, 0)
        real = ~np.isnan(want[:, 0])
        out = empty(q.shape, t)
        got = units.run(f"prompt_{t}", q=q, lengths=own.lengths, **given, out=out)["out"]
        check(got[real], want[real], t)

        q = values(rng, (9, heads * dim), t)
        few = np.array([3, 1, 2], np.int32)
        late = own.past + own.lengths - few
        last = type(own)(own.cache, own.pages, late, few, own.keys, own.values)
        want = last.attended(q, 3, heads, 0)
        real = ~np.isnan(want[:, 0])
        given["past"] = late
        for order in ORDERS:
            got = units.run(
                f"few_{t}", order=order, q=q, lengths=few, **given, out=empty(q.shape, t)
            )["out"]
            check(got[real], want[real], t)

        qkv = values(rng, (3 * seq, (heads + 2 * kv_heads) * dim), t)
        bias = floats(rng, (heads + 2 * kv_heads) * dim)
        got = units.run(
            f"encoder_{t}",
            qkv=qkv,
            bias=bias,
            lengths=own.lengths,
            out=empty((3 * seq, heads * dim), t),
        )["out"]
        for b, length in enumerate(lengths):
            x = (wide(qkv[b * seq : b * seq + length]) + bias).reshape(length, -1, dim)
            want = attention(
                x[:, :heads],
                x[:, heads : heads + 1],
                x[:, heads + 1 :],
                np.ones((length, length), bool),
            )
            check(got[b * seq : b * seq + length], want, t)


@pytest.mark.parametrize("form", [name for name, one in FORMATS.items() if one.bits])
def test_products_of_every_format(tmp_path, form: str) -> None:
    shapes = [(1, 16, 32), (8, 30, 448), (9, 17, 128), (32, 5, 96)]
    ways = [{"chunks": 1, "warps": 5}, {"chunks": 3, "warps": 2}]
    named = [
        (f"m{i}_{j}_{t}", t, shape, how)
        for i, shape in enumerate(shapes)
        for j, how in enumerate(ways)
        for t in TYPES
    ]
    units = Unit(
        tmp_path,
        [
            instance("matvec", name, t=t, rows=rows, n=n, k=k, **traits(form), **how)
            for name, t, (rows, n, k), how in named
        ],
    )
    for name, t, (rows, n, k), _ in named:
        rng = np.random.default_rng(k)
        blocks, x = random_blocks(rng, form, n, k), values(rng, (rows, k), t)
        got = units.run(name, x=x, w=tiled(blocks), y=empty((rows, n), t))["y"]
        check(got, wide(x) @ exact(blocks).T, t)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 15, 64, 100, 129, 768, 1000, 2049, 8192])
def test_norms_of_every_width(tmp_path, n: int) -> None:
    ways: list[dict[str, int]] = [{}, {"warps": 1}, {"warps": 3}]
    units = Unit(
        tmp_path,
        [
            instance("layer_norm", f"n{i}_{t}", t=t, rows=5, n=n, eps=1e-6, **how)
            for i, how in enumerate(ways)
            for t in TYPES
        ],
    )
    for t in TYPES:
        rng = np.random.default_rng(n)
        x, gain, shift = values(rng, (5, n), t), floats(rng, n), floats(rng, n)
        d = wide(x) - wide(x).mean(1, keepdims=True)
        want = d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-6) * gain + shift
        for i in range(len(ways)):
            got = units.run(f"n{i}_{t}", x=x, gain=gain, shift=shift, y=empty((5, n), t))["y"]
            check(got, want, t)
