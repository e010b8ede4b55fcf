"""One instance of every CUDA kernel in a type, at sizes as models have them."""

from __future__ import annotations

from rlx_ray.codegen.cuda_kernels import Instance, Value, instance
from rlx_ray.dtype import DType

ROWS: dict[str, dict[str, Value]] = {"rows": 256, "n": 384, "seq": 128}

SETS: dict[str, list[dict[str, Value]]] = {
    "rms_norm": [{**ROWS, "eps": 1e-5, "residual": 1, "sum": 1}],
    "layer_norm": [{**ROWS, "eps": 1e-12, "residual": 1, "bias": 1, "sum": 1}],
}
"""Constants of the instances of each kernel."""


def every(t: DType) -> list[Instance]:
    """The instances of a type."""
    return [
        instance(kernel, f"{kernel}_{i}_{t}", t=t, **constants)
        for kernel, sets in SETS.items()
        for i, constants in enumerate(sets)
    ]
