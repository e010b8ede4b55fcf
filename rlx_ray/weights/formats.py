"""Weight matrices in memory: the packed format of each precision, shared by compiler and packer.

A matrix W of shape (K, N), as in y = x W, is cut into panels of P columns. Within a panel the terms
along K stand in groups: [ceil(K / group)][P][group], zero beyond K and N. Behind the groups of an
int8 panel stand P float32 scales and P int32 sums, those of its columns; behind those of an fp8
panel P float32 scales.

Block formats hold quantised weights as w = d * code + m: K is a multiple of 32, and a panel is
K / 32 blocks, each with its scales, its offsets and the codes of 32 terms in planes of bits. The
kernels that read all this are kernels/c/gemm.h, gemm_low.h, gemm_fp8.h and gemm_blocks.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rlx_ray.component.quant import QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.target import Target

BLOCK = 32
"""Terms of a block along K."""

HALF = 16
"""Terms of half a block, which may have a scale of its own."""

TILE = 16
"""Columns of a tile, in the layout of CUDA targets (kernels/cuda/blocks.cuh)."""

CHUNK = 64
"""Terms of a chunk of a tile."""

ROW_FACTS = 4
"""Floats of a quantised row for each block: a scale, the block's sum, its halves' sums."""


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """How a linear layer's weights and left operand look.

    Attributes:
        name: a `precision.compute` of a profile, `fp8e4m3`, `fp8e5m2`, or of a block format `b`,
            its bits, `h` with halves and `m` with offsets, such as `b4m`.
        dtype: of a weight; of a block format that of its bytes.
        group: terms that stand together, and that a dot-product instruction adds at once.
        rows: how the left operand's rows are quantised: `f32` (they are not), `bf16`, `int8` or
            `blocks`.
        column_bytes: bytes behind the groups of a panel for each of its columns.
        bits: of a code of a block format; 0 for the others.
        halves: a block has two scales, one for each HALF terms, and two offsets if any.
        offsets: codes count from m. Below 8 bits they are then not negative; else they are signed.
    """

    name: str
    dtype: DType
    group: int
    rows: str
    column_bytes: int = 0
    bits: int = 0
    halves: bool = False
    offsets: bool = False

    @property
    def block_bytes(self) -> int:
        """Bytes of a block for each column; 0 for formats without blocks."""
        return 2 * (1 + self.halves) * (1 + self.offsets) + 4 * self.bits if self.bits else 0

    @property
    def weight_bytes(self) -> float:
        """Bytes that a weight takes."""
        return self.block_bytes / BLOCK if self.bits else self.dtype.size

    @property
    def centre(self) -> int:
        """What is added to a code when it is stored."""
        return 0 if self.offsets or self.bits == 8 else 1 << self.bits >> 1

    def layout(self, panel: int) -> str:
        """The layout's name in bindings, such as `panel16`, `panel16x4` or `panel16b4m`."""
        if self.bits or self.name.startswith("fp8"):
            return f"panel{panel}{self.name}"
        return f"panel{panel}" + (f"x{self.group}" if self.group > 1 else "")

    def groups(self, k: int) -> int:
        """Groups of K terms."""
        return -(-k // self.group)

    def panel_bytes(self, k: int, panel: int) -> int:
        """Bytes of one panel of K terms."""
        if self.bits:
            return panel * (k // BLOCK) * self.block_bytes
        return panel * (self.groups(k) * self.group * self.dtype.size + self.column_bytes)

    def nbytes(self, k: int, n: int, panel: int) -> int:
        """Bytes of a matrix of shape (K, N)."""
        return -(-n // panel) * self.panel_bytes(k, panel)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk of a tile, of a block format in the layout of CUDA targets."""
        return self.block_bytes * TILE * CHUNK // BLOCK

    def tiled_bytes(self, k: int, n: int) -> int:
        """Bytes of a (K, N) matrix of a block format in the layout of CUDA targets."""
        return -(-n // TILE) * -(-k // CHUNK) * self.chunk_bytes

    def row_dtype(self, target: Target) -> DType:
        """Element type of the left operand's rows (kernels/c/quantize.h, gemm_blocks.h)."""
        match self.rows:
            case "blocks":
                return DType.I8
            case "int8":
                return DType.U8 if target.int8_dot else DType.I16
            case "bf16":
                return DType.BF16 if target.bf16_dot else DType.F32
            case _:
                return DType.F32

    def row_elements(self, k: int, target: Target) -> int:
        """Elements of such a row of K terms, with the scales that it ends with."""
        match self.rows:
            case "blocks":
                return k + k // BLOCK * ROW_FACTS * 4
            case "int8":
                return self.groups(k) * self.group + 8 // self.row_dtype(target).size
            case _:
                return self.groups(k) * self.group


def _blocks(bits: int, halves: bool = False, offsets: bool = False) -> MatrixFormat:
    name = f"b{bits}" + "h" * halves + "m" * offsets
    return MatrixFormat(name, DType.U8, 4, "blocks", 0, bits, halves, offsets)


FORMATS: dict[str, MatrixFormat] = {
    f.name: f
    for f in (
        MatrixFormat("f32", DType.F32, 1, "f32"),
        MatrixFormat("bf16", DType.BF16, 2, "bf16"),
        MatrixFormat("int8", DType.I8, 4, "int8", 8),
        MatrixFormat("fp8e4m3", DType.U8, 1, "f32", 4),
        MatrixFormat("fp8e5m2", DType.U8, 1, "f32", 4),
        *(
            _blocks(bits, halves, offsets)
            for bits in (2, 3, 4, 5, 6, 8)
            for halves in (False, True)
            for offsets in (False, True)
        ),
    )
}
"""The formats by name. f16 has none: no CPU target here multiplies it faster, and CUDA targets have
plain rows of it."""


def laid_out(layout: str) -> MatrixFormat:
    """The format of a matrix by its layout's name in bindings."""
    panel = int(re.sub(r"panel(\d+).*", r"\1", layout))
    return next(f for f in FORMATS.values() if f.layout(panel) == layout)


ROWS_LAYOUT = "rows"
"""The layout of a plain matrix on CUDA targets: N rows of K numbers."""


def tiles_layout(form: str) -> str:
    """The layout of a matrix of a block format on CUDA targets, such as `tiles-b4m`."""
    return f"tiles-{form}"


QUANT_ROWS = "q8rows"
"""The layout of a quantised embedding table [extent, n]: each row is n / 32 float16 scales, then n
int8 codes."""

_SCHEMES = {
    "GgufQ2K": "b2hm",
    "GgufQ3K": "b3h",
    "GgufQ4_0": "b4",
    "GgufQ4_1": "b4m",
    "GgufQ4K": "b4m",
    "GgufQ5_0": "b5",
    "GgufQ5_1": "b5m",
    "GgufQ5K": "b5m",
    "GgufQ6K": "b6h",
    "GgufQ8_0": "b8",
    "GgufQ8K": "b8",
    "Nvfp4Block": "b5h",
    "Fp8E4m3": "fp8e4m3",
    "Fp8E5m2": "fp8e5m2",
}
_BLOCK_SCHEMES = {"int8": "b8", "int8a": "b8m", "int4": "b4"}
_BLOCK_SCHEME = re.compile(r"(int8a?|int4)/(\d+)")


def scheme_format(scheme: QuantScheme) -> MatrixFormat | None:
    """The format that holds a scheme's weights; None for blocks that are no multiple of 32.

    Codes are kept exactly. A scale that a scheme makes of two factors (those of the K-quants and of
    nvfp4) is their product, rounded to float16.
    """
    found = _BLOCK_SCHEME.fullmatch(scheme.display)
    if found is None:
        return FORMATS[_SCHEMES[scheme.debug]]
    return FORMATS[_BLOCK_SCHEMES[found[1]]] if int(found[2]) % BLOCK == 0 else None


def scheme_block(scheme: QuantScheme) -> int:
    """What K has to be a multiple of, for a matrix to be quantised by a scheme."""
    found = _BLOCK_SCHEME.fullmatch(scheme.display)
    if found:
        return int(found[2])
    return 1 if scheme.debug.startswith("Fp8") else max(BLOCK, scheme.gguf_block_size)


def join(formats: Iterable[MatrixFormat]) -> MatrixFormat | None:
    """The smallest format that holds what each of some formats holds; None if there is none."""
    found = set(formats)
    if len(found) == 1:
        return found.pop()
    if not all(f.bits for f in found):
        return None
    bits = max(f.bits for f in found)
    return _blocks(bits, any(f.halves for f in found), any(f.offsets for f in found))


def weights_family(target: Target, kind: str) -> str:
    """Which packed weights a variant reads: targets of one family share them.

    Args:
        target: of the variant.
        kind: the profile's precision, or what sets quantised weights apart.
    """
    return target.family + ("" if kind == "f32" else f"-{kind}")
