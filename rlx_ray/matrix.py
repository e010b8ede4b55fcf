"""Weight matrices in memory: the packed format of each precision, shared by compiler and packer.

A matrix W of shape (K, N), as in y = x W, is cut into panels of P columns. Within a panel the terms
along K stand in groups: [ceil(K / group)][P][group], zero beyond K and N. Behind the groups of an
int8 panel stand P float32 scales and P int32 sums, those of its columns.

The block formats b4 and b8 hold quantised weights: K is a multiple of 32, and a panel is K / 32
blocks, each with P float16 scales d, for b4 P float16 offsets m, and the codes of 32 terms. The
kernels that read all this are kernels/c/gemm.h, gemm_low.h and gemm_blocks.h.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlx_ray.component.quant import QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.target import Target

BLOCK = 32
"""Terms of a block along K."""


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """How a linear layer's weights and left operand look.

    Attributes:
        name: a `precision.compute` of a profile, or `b4`, `b8`.
        dtype: of a weight; of a block format that of its bytes.
        group: terms that stand together, and that a dot-product instruction adds at once.
        column_bytes: bytes behind the groups of a panel for each of its columns.
        block_bytes: bytes of a block for each column; 0 for formats without blocks.
    """

    name: str
    dtype: DType
    group: int
    column_bytes: int = 0
    block_bytes: int = 0

    @property
    def rows(self) -> str:
        """How the left operand's rows are quantised: `f32`, `bf16`, `int8` or `blocks`."""
        return "blocks" if self.block_bytes else self.name

    def layout(self, panel: int) -> str:
        """The layout's name in bindings, such as `panel16`, `panel16x4` or `panel16b4`."""
        if self.block_bytes:
            return f"panel{panel}{self.name}"
        return f"panel{panel}" + (f"x{self.group}" if self.group > 1 else "")

    def groups(self, k: int) -> int:
        """Groups of K terms."""
        return -(-k // self.group)

    def panel_bytes(self, k: int, panel: int) -> int:
        """Bytes of one panel of K terms."""
        if self.block_bytes:
            return panel * (k // BLOCK) * self.block_bytes
        return panel * (self.groups(k) * self.group * self.dtype.size + self.column_bytes)

    def nbytes(self, k: int, n: int, panel: int) -> int:
        """Bytes of a matrix of shape (K, N)."""
        return -(-n // panel) * self.panel_bytes(k, panel)

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
                return k + k // BLOCK * 8
            case "int8":
                return self.groups(k) * self.group + 8 // self.row_dtype(target).size
            case _:
                return self.groups(k) * self.group


FORMATS: dict[str, MatrixFormat] = {
    f.name: f
    for f in (
        MatrixFormat("f32", DType.F32, 1),
        MatrixFormat("bf16", DType.BF16, 2),
        MatrixFormat("int8", DType.I8, 4, 8),
        MatrixFormat("b4", DType.U8, 8, block_bytes=20),
        MatrixFormat("b8", DType.U8, 4, block_bytes=34),
    )
}
"""The formats by name. f16 has none: no CPU target here multiplies it faster."""

PRECISIONS = ("f32", "bf16", "int8")
"""The formats that a profile's `precision.compute` may ask for."""

_FOUR = ("GgufQ4_0", "GgufQ4_1", "GgufQ4K")
_BLOCK_SCHEME = re.compile(r"int([48])/(\d+)")


QUANT_ROWS = "q8rows"
"""The layout of a quantised embedding table [extent, n]: each row is n / 32 float16 scales, then n
int8 codes."""


def block_format(scheme: QuantScheme) -> str | None:
    """The block format that holds a scheme's weights exactly; None where there is none.

    Q4_K's scales are products of a float16 and a 6-bit number: they are rounded to float16.
    """
    if scheme.debug in _FOUR:
        return "b4"
    if scheme.debug == "GgufQ8_0":
        return "b8"
    found = _BLOCK_SCHEME.fullmatch(scheme.display)
    return f"b{found[1]}" if found and int(found[2]) % BLOCK == 0 else None


def scheme_block(scheme: QuantScheme) -> int:
    """Weights of one block of a scheme."""
    found = _BLOCK_SCHEME.fullmatch(scheme.display)
    return int(found[2]) if found else BLOCK


def weights_family(target: Target, kind: str) -> str:
    """Which packed weights a variant reads: targets of one family share them.

    Args:
        target: of the variant.
        kind: the profile's precision, or what sets quantised weights apart.
    """
    return target.family + ("" if kind == "f32" else f"-{kind}")
