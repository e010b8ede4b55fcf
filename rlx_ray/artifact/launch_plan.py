"""Launch plans: what a CUDA artifact does, as data. A compiler writes one, a runtime replays it.

A plan is a straight list of steps over one arena. A step is the launch of a kernel of the
artifact's cubin, or a matrix product for the device's library. It holds numbers only: an address
names a space (the arena, a parameter, the key-value cache) and an offset in it, which the runtime
turns into a pointer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlx_ray import record
from rlx_ray.digest import canonical_json
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError

FORMAT = "rlx-launch-plan/1"
"""Format of the plan. Bump it when a field changes its meaning."""

SPACES = ("null", "arena", "param", "cache")


@dataclass(frozen=True, slots=True)
class Address:
    """An address that is known at run time.

    Attributes:
        space: `arena` (of the executable), `param` (a packed parameter), `cache` (the key-value
            cache that a decoder's run names) or `null`.
        offset: bytes behind the space's first byte, or the parameter's.
        index: of a parameter in the binding manifest's table; 0 elsewhere.
    """

    space: str
    offset: int = 0
    index: int = 0

    def to_json(self) -> list[object]:
        """`[space, offset, index]`."""
        return [self.space, self.offset, self.index]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Address:
        """The inverse of `to_json`."""
        space, offset, index = str(value[0]), int(value[1]), int(value[2])
        if space not in SPACES or offset < 0 or index < 0:
            raise ArtifactError(f"address {value!r} of the launch plan is malformed.")
        return cls(space, offset, index)


NULL = Address("null")
"""An argument that a kernel does not read."""


@dataclass(frozen=True, slots=True)
class KernelStep:
    """A launch.

    Attributes:
        kernel: name of the function in the cubin.
        grid: blocks in x, y and z.
        block: threads of a block, in x.
        shared: bytes of dynamic shared memory; more than 48 KiB must be asked for at load.
        arguments: all are pointers, in the kernel's order.
        origin: what part of the model it is, for reports.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared: int
    arguments: tuple[Address, ...]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class GemmStep:
    """C[i] = A[i] B[i], or A[i] B[i]^T where `transposed`, for i < batch; all row-major.

    A is [m, k], B [k, n] or, transposed, [n, k], C [m, n]. Sums are float32.

    Attributes:
        a, b, c: where the first matrices begin.
        m, n, k: extents.
        lda, ldb, ldc: elements from a row to the next.
        batch: how many products.
        stride_a, stride_b, stride_c: elements from a matrix to the next.
        transposed: whether B holds its columns as rows.
        dtype: of A and B.
        out: of C.
        tf32: whether float32 factors may be rounded to TF32.
        origin: what part of the model it is, for reports.
    """

    a: Address
    b: Address
    c: Address
    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0
    transposed: bool = True
    dtype: DType = DType.F32
    out: DType = DType.F32
    tf32: bool = False
    origin: str = ""


Step = KernelStep | GemmStep


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """A whole variant.

    Attributes:
        arch: what the cubin is for, such as `sm_90`, or `compute_80` for PTX.
        steps: in order; each may read what the ones before have written.
        zeroed: (offset, bytes) of the arena that are zero before the first run. Every run leaves
            them so.
        adjacent: (first, second, bytes) of parameters that the steps read as one: the second begins
            `bytes` behind the first. A runtime checks it before the first run.
    """

    arch: str
    steps: tuple[Step, ...]
    zeroed: tuple[tuple[int, int], ...] = ()
    adjacent: tuple[tuple[int, int, int], ...] = ()

    @property
    def kernels(self) -> dict[str, int]:
        """The cubin's functions that it uses, with the most dynamic shared memory of each."""
        found: dict[str, int] = {}
        for step in self.steps:
            if isinstance(step, KernelStep):
                found[step.kernel] = max(found.get(step.kernel, 0), step.shared)
        return found

    def dumps(self) -> bytes:
        """The plan's blob: canonical JSON."""
        steps = [
            {("kernel" if isinstance(step, KernelStep) else "gemm"): record.write(step)}
            for step in self.steps
        ]
        value = {
            "format": FORMAT,
            "arch": self.arch,
            "steps": steps,
            "zeroed": [list(part) for part in self.zeroed],
            "adjacent": [list(part) for part in self.adjacent],
        }
        return canonical_json(value)

    @classmethod
    def loads(cls, data: bytes) -> LaunchPlan:
        """Read a plan's blob.

        Raises:
            ArtifactError: it is torn or of another format.
        """
        try:
            value = json.loads(data)
            if value["format"] != FORMAT:
                raise ArtifactError(f"launch plan format {value['format']!r} is not {FORMAT!r}.")
            return cls(
                str(value["arch"]),
                tuple(_step(step) for step in value["steps"]),
                tuple((int(offset), int(size)) for offset, size in value["zeroed"]),
                tuple((int(a), int(b), int(size)) for a, b, size in value["adjacent"]),
            )
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"launch plan cannot be read: {type(error).__name__}: {error}."
            ) from error


def _step(value: Mapping[str, Any]) -> Step:
    if "gemm" in value:
        return record.read(GemmStep, value["gemm"], "$.gemm")
    return record.read(KernelStep, value["kernel"], "$.kernel")
