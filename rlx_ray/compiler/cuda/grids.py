"""How each kernel of kernels/cuda is started, from its constants.

Each function here adds the constants that follow from others, unless they are given: warps of a
row, rows of a tile, splits. They are chosen for a device of about 132 multiprocessors, and any
choice is right.
"""

from __future__ import annotations

import math

from rlx_ray.compiler.cuda.constants import INDICES, Constants, Launch
from rlx_ray.dtype import DType
from rlx_ray.errors import CompileError
from rlx_ray.shape import LIKELIEST, PAGE


def _up(count: int, size: int) -> int:
    return -(-count // size)


def _number(constants: Constants, name: str) -> int:
    value = constants[name]
    assert isinstance(value, int), (name, value)
    return value


def _given(constants: Constants, name: str, otherwise: int) -> int:
    """A constant that follows from others unless it is given."""
    constants.setdefault(name, otherwise)
    return _number(constants, name)


def _size(constants: Constants, name: str = "t") -> int:
    value = constants[name]
    assert isinstance(value, DType), (name, value)
    return value.size


def vector_width(n: int, size: int) -> int:
    """Elements of the widest access to rows of n elements, as in types.cuh."""
    width = 16 // size
    while n % width:
        width //= 2
    return width


_MANY_ROWS = 1024
"""Rows that fill any device with one warp for each."""

_FEW_BLOCKS = 264
"""Blocks that do not fill a device twice."""


_FLOAT_ROWS = 8
"""Rows of a block of `matvec` in float32: a thread holds two sums of each, and of gates as many."""

_MANY_SUMS = 64
"""Sums of a thread beyond which 16 warps of a block, 128 registers each, would spill them."""


def rows(c: Constants) -> Launch:
    """A warp for each row; where rows would leave the device idle, warps enough for one vector."""
    n, rows = _number(c, "n"), _number(c, "rows")
    vectors = n // vector_width(n, _size(c))
    warps = 1 if rows >= _MANY_ROWS and vectors <= 256 else min(_up(vectors, 32), 32)
    warps = _given(c, "warps", warps)
    block = _given(c, "block", 128 if warps == 1 else 32 * warps)
    return Launch((_up(rows, block // (32 * warps)), 1, 1), block)


def _counted(count: int) -> int:
    """A number of threads or elements, if kernels can count that far.

    Raises:
        CompileError: they cannot.
    """
    if count >= INDICES:
        raise CompileError(
            f"a CUDA kernel would have {count} elements, and counts to {INDICES - 1}.",
            "Use a smaller batch or seq.",
        )
    return count


def _flat(c: Constants, count: int) -> Launch:
    """A thread for each of `count` pieces."""
    _counted(count)
    block = _given(c, "block", 256 if count >= 256 * _MANY_ROWS else 128)
    return Launch((_up(count, block), 1, 1), block)


def elementwise(c: Constants) -> Launch:
    """A thread for each `v` columns."""
    n = _number(c, "n")
    v = _given(c, "v", vector_width(n, _size(c)))
    return _flat(c, _counted(_number(c, "rows") * n) // v)


def gated(c: Constants) -> Launch:
    """A thread for each access."""
    n, size = _number(c, "n"), _size(c)
    v = min(vector_width(n, size), vector_width(_given(c, "pitch", n), size))
    return _flat(c, _number(c, "rows") * n // v)


def embed(c: Constants) -> Launch:
    """A thread for each access."""
    n = _number(c, "n")
    return _flat(c, _number(c, "rows") * n // vector_width(n, _size(c)))


def rope(c: Constants) -> Launch:
    """Lanes for each head as rope.cuh has them."""
    half = _number(c, "dim") // 2
    lanes = 1
    while lanes < min(32, half // vector_width(half, _size(c))):
        lanes *= 2
    units = _number(c, "heads") + 2 * _number(c, "kv_heads")
    return _flat(c, _number(c, "rows") * units * lanes)


def starts(c: Constants) -> Launch:
    """A warp for each sequence, and one for the end."""
    block = _given(c, "block", 128)
    return Launch((_up(_number(c, "batch") + 1, block // 32), 1, 1), block)


def pool(c: Constants) -> Launch:
    """With `l2` a block has all columns, else one warp's."""
    n, batch = _number(c, "n"), _number(c, "batch")
    c.setdefault("out", c["t"])
    wide = 32 * vector_width(n, _size(c))
    columns = _given(c, "columns", n if c["l2"] else min(n, wide))
    across = _up(columns, wide)
    rows = 1 if _number(c, "pool") >= 2 else _number(c, "seq")
    groups = _given(c, "groups", max(1, min(rows, 16 // across)))
    block = _given(c, "block", 32 * min(32, max(4, across * groups)))
    return Launch((_up(n, columns), batch, 1), block, 4 * (groups + 1) * columns)


def into(c: Constants) -> Launch:
    """As other work on whole rows; the result may have a type of its own."""
    c.setdefault("out", c["t"])
    return rows(c)


def matvec(c: Constants) -> Launch:
    """Warps enough that a block has all its weights under way, or much of them."""
    n, k, gates = _number(c, "n"), _number(c, "k"), 1 + _number(c, "gated")
    c.setdefault("out", c["t"])
    c.setdefault("act", "vsilu" if c["gated"] else "vsame")
    long = _up(k, 64)
    plain = 1 if _number(c, "bits") else _size(c) // 2 or 1
    own = _given(c, "chunks", min(max(1, 4 // gates // plain), long))
    few = n // 16 <= _FEW_BLOCKS
    rows = _number(c, "rows")
    each = _given(c, "each", _divisor(rows, _FLOAT_ROWS) if _size(c) == 4 else rows)
    tiles = _up(each, 8)
    blocks = 2 if _number(c, "bits") else 0  # sums of a block, and of its offsets
    many = gates == 2 if _size(c) == 4 else 4 * tiles * (gates + blocks) >= _MANY_SUMS
    most = 8 if many else 16
    warps = _given(c, "warps", min(most, max(4, long if few else _up(long, own))))
    block = _given(c, "block", 32 * warps)
    normed = each * (long * 64 * _size(c) + 32) if c["norm"] else 0
    grid = _up(n, 16) * (rows // each)
    return Launch((grid, 1, 1), block, 640 * warps * tiles * gates + normed)


def _divisor(count: int, most: int) -> int:
    """The largest divisor of a count that is at most so large."""
    return next(d for d in range(min(count, most), 0, -1) if count % d == 0)


def dequantize(c: Constants) -> Launch:
    """A warp for each chunk."""
    block = _given(c, "block", 128)
    chunks = _up(_number(c, "n"), 16) * _up(_number(c, "k"), 64)
    return Launch((_up(chunks, block // 32), 1, 1), block)


def attention_decode(c: Constants) -> Launch:
    """Splits enough that every multiprocessor has blocks, but not with less than four pages."""
    batch, kv_heads, dim = (_number(c, name) for name in ("batch", "kv_heads", "dim"))
    rows = _number(c, "seq") * _number(c, "heads") // kv_heads
    across = kv_heads * _up(rows, 16)
    wanted = min(_up(_FEW_BLOCKS, batch * across), _up(_number(c, "table"), 4))
    splits, warps = _given(c, "splits", wanted), _given(c, "warps", 4)
    block = _given(c, "block", 32 * warps)
    return Launch((splits, across, batch), block, 4 * warps * min(16, rows) * (dim + 2))


def attention_step(c: Constants) -> Launch:
    """As decoding of one token, with the turned queries in shared memory too."""
    like = attention_decode({**c, "seq": 1})
    c.setdefault("splits", like.grid[0])
    c.setdefault("warps", like.block // 32)
    c.setdefault("block", like.block)
    rows = min(16, _number(c, "heads") // _number(c, "kv_heads"))
    queries = rows * _number(c, "dim") * _size(c)
    return Launch(like.grid, like.block, _up(like.shared, 16) * 16 + queries)


def attention_combine(c: Constants) -> Launch:
    """A thread for each number."""
    return _flat(c, math.prod(_number(c, name) for name in ("batch", "seq", "heads", "dim")))


def attention(c: Constants) -> Launch:
    """Tiles of rows and of keys of one sequence; ragged ones for sequences up to twice the mean."""
    seq, ragged, batch = (_number(c, name) for name in ("seq", "ragged", "batch"))
    if not ragged:
        return _prefill(c, seq, seq)
    typical = min(seq, _up(2 * ragged, batch))
    like = _prefill(c, typical, typical)
    group = _number(c, "heads") // _number(c, "kv_heads")
    tiles = ragged * group // (16 * _number(c, "m") * _number(c, "warps")) + batch
    return Launch((tiles, like.grid[1], 1), like.block, like.shared)


def attention_cached(c: Constants) -> Launch:
    """Tiles of new rows, and of keys that the page table has room for."""
    return _prefill(c, _number(c, "seq"), _number(c, "table") * PAGE)


def _prefill(c: Constants, tokens: int, keys: int) -> Launch:
    """Tall tiles where rows are many; no more warps than rows, nor keys at once than there are.

    Shared memory stays within the 99 KiB that the smallest of the architectures has.
    """
    batch, kv_heads, dim = (_number(c, name) for name in ("batch", "kv_heads", "dim"))
    size, rows = _size(c), tokens * _number(c, "heads") // kv_heads
    tall = size == 2 and dim <= 64 and _up(rows, 128) * kv_heads * batch >= _FEW_BLOCKS
    m = _given(c, "m", 2 if tall else 1)
    warps = (8 if 64 < dim <= 128 else 4) if size == 2 else 4 if dim <= 128 else 2
    warps = _given(c, "warps", min(warps, _up(rows, 16 * m)))
    most = (64 if dim <= 128 else 32) if size == 2 else 32 if dim <= 64 else 16
    keys = _given(c, "keys", min(most, _up(keys, 16) * 16))
    block = _given(c, "block", 32 * warps)
    row = (_up(dim, 16) * 16 + 16 // size) * size
    shared = 4 * keys * row + (16 * m * warps * row if size == 4 else 0)
    return Launch((_up(rows, 16 * m * warps), kv_heads, batch), block, shared)


def sample(c: Constants) -> Launch:
    """A block for each row."""
    n = _number(c, "n")
    c.setdefault("likely", min(LIKELIEST, n))
    vectors = n // vector_width(n, _size(c))
    block = _given(c, "block", min(1024, 32 * _up(vectors, 32)))
    return Launch((_number(c, "rows"), 1, 1), block, 4 * (2048 + 64))


def strided(c: Constants) -> Launch:
    """A thread for each element."""
    return _flat(c, math.prod(_number(c, f"n{i}") for i in range(4)))


def reduce(c: Constants) -> Launch:
    """A thread for each result, or a warp where its numbers are neighbours."""
    c.setdefault("out", c["t"])
    inner = _number(c, "inner")
    return _flat(c, _number(c, "outer") * inner * (32 if inner == 1 else 1))


def iota(c: Constants) -> Launch:
    """A thread for each row."""
    return _flat(c, _number(c, "rows"))


def length_mask(c: Constants) -> Launch:
    """A thread for each token."""
    return _flat(c, _number(c, "batch") * _number(c, "tokens"))


def causal_mask(c: Constants) -> Launch:
    """A thread for each token and key."""
    return _flat(c, math.prod(_number(c, name) for name in ("batch", "tokens", "keys")))


def concat(c: Constants) -> Launch:
    """A thread for each number."""
    return _flat(c, _number(c, "rows") * (_number(c, "m") + _number(c, "n")))


def cache_write(c: Constants) -> Launch:
    """A thread for each number of a key."""
    return _flat(c, math.prod(_number(c, name) for name in ("rows", "kv_heads", "dim")))


def cache_read(c: Constants) -> Launch:
    """A thread for each number."""
    sizes = math.prod(_number(c, name) for name in ("batch", "kv_heads", "table", "dim"))
    return _flat(c, sizes * PAGE)
