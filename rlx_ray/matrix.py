"""Weight matrices in memory: the packed format of each precision, shared by compiler and packer.

A matrix W of shape (K, N), as in y = x W, is cut into panels of P columns. Within a panel the terms
along K stand in groups: [ceil(K / group)][P][group], zero beyond K and N. Behind the groups of an
int8 panel stand P float32 scales and P int32 sums, those of its columns. The kernels that read
this are kernels/c/gemm.h and gemm_low.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.dtype import DType
from rlx_ray.target import Target


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """How the linear layers' weights and operands look for one `precision.compute`.

    Attributes:
        precision: its name in a profile.
        dtype: of a weight.
        group: terms that stand together, and that a dot-product instruction adds at once.
        column_bytes: bytes behind the groups of a panel for each of its columns.
    """

    precision: str
    dtype: DType
    group: int
    column_bytes: int

    def layout(self, panel: int) -> str:
        """The layout's name in bindings, such as `panel16` or `panel16x4`."""
        return f"panel{panel}" + (f"x{self.group}" if self.group > 1 else "")

    def groups(self, k: int) -> int:
        """Groups of K terms."""
        return -(-k // self.group)

    def panel_bytes(self, k: int, panel: int) -> int:
        """Bytes of one panel of K terms."""
        return panel * (self.groups(k) * self.group * self.dtype.size + self.column_bytes)

    def nbytes(self, k: int, n: int, panel: int) -> int:
        """Bytes of a matrix of shape (K, N)."""
        return -(-n // panel) * self.panel_bytes(k, panel)

    def row_dtype(self, target: Target) -> DType:
        """Element type of the left operand's rows (kernels/c/quantize.h)."""
        match self.precision:
            case "int8":
                return DType.U8 if target.int8_dot else DType.I16
            case "bf16":
                return DType.BF16 if target.bf16_dot else DType.F32
            case _:
                return DType.F32

    def row_elements(self, k: int, target: Target) -> int:
        """Elements of such a row of K terms; an int8 row ends with its scale and zero point."""
        tail = 8 // self.row_dtype(target).size if self.precision == "int8" else 0
        return self.groups(k) * self.group + tail


FORMATS: dict[str, MatrixFormat] = {
    f.precision: f
    for f in (
        MatrixFormat("f32", DType.F32, 1, 0),
        MatrixFormat("bf16", DType.BF16, 2, 0),
        MatrixFormat("int8", DType.I8, 4, 8),
    )
}
"""The formats by `precision.compute`. f16 has none: no CPU target here multiplies it faster."""


def weights_family(target: Target, precision: str) -> str:
    """Which packed weights a variant reads: targets of one family and precision share them."""
    return target.family + ("" if precision == "f32" else f"-{precision}")
