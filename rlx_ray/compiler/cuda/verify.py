"""The verifier of launches."""

from __future__ import annotations

from rlx_ray.artifact.launch_plan import Address, GemmStep
from rlx_ray.compiler.cuda.launches import ALIGNMENT, KernelLaunch, Launches
from rlx_ray.compiler.ir.verify import verify_plan
from rlx_ray.errors import VerifyError


def verify_launches(program: Launches) -> Launches:
    """Buffers do not overlap; every address lies in a buffer that lives, a parameter or the cache.

    Raises:
        VerifyError: a rule is broken.
    """
    verify_plan(program.arena, "arena")
    if any(b.offset % ALIGNMENT for b in program.arena.buffers):
        raise VerifyError("launches: a buffer of the arena is not aligned.")
    for at, step in enumerate(program.steps):
        where = f"launch {at} ({step.origin})"
        match step:
            case KernelLaunch(kernel, arguments, _):
                if tuple(name for name, _ in arguments) != kernel.arguments:
                    raise VerifyError(f"{where}: arguments are not {kernel.arguments}.")
                for _, address in arguments:
                    _verify_address(program, at, address, 1, where)
            case GemmStep():
                for address, nbytes in _extents(step):
                    _verify_address(program, at, address, nbytes, where)
    for first, second, nbytes in program.adjacent:
        if second != first + 1 or nbytes % ALIGNMENT:
            raise VerifyError(f"launches: parameters {first} and {second} cannot be neighbours.")
    return program


def _verify_address(program: Launches, at: int, address: Address, nbytes: int, where: str) -> None:
    """Some bytes from an address on are there at a step."""
    match address.space:
        case "arena":
            end = address.offset + nbytes
            fits = any(
                b.first <= at <= b.last and b.offset <= address.offset and end <= b.offset + b.size
                for b in program.arena.buffers
            )
        case "param":
            fits = address.index < len(program.params)
        case "cache":
            fits = address.offset < program.page
        case _:
            fits = nbytes == 1  # a product reads all its operands
    if not fits:
        raise VerifyError(f"{where}: {address} is not there.")


def _extents(step: GemmStep) -> tuple[tuple[Address, int], ...]:
    """The addresses of a product, and the bytes from each of them on that it touches."""

    def nbytes(rows: int, columns: int, pitch: int, stride: int, size: int) -> int:
        return ((step.batch - 1) * stride + (rows - 1) * pitch + columns) * size

    right = (step.n, step.k) if step.transposed else (step.k, step.n)
    return (
        (step.a, nbytes(step.m, step.k, step.lda, step.stride_a, step.dtype.size)),
        (step.b, nbytes(*right, step.ldb, step.stride_b, step.dtype.size)),
        (step.c, nbytes(step.m, step.n, step.ldc, step.stride_c, step.out.size)),
    )
