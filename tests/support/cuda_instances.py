"""One instance of every CUDA kernel in a type, at sizes as models have them."""

from __future__ import annotations

from rlx_ray.compiler.cuda.constants import Operand, Value
from rlx_ray.compiler.cuda.kernel_table import TEMPLATES, Instance, instance
from rlx_ray.dtype import DType

ROWS: dict[str, Value] = {"rows": 256, "n": 384, "seq": 128}
RAGGED: dict[str, Value] = {"batch": 64, "seq": 256, "ragged": 1024}
DECODER: dict[str, Value] = {"heads": 9, "kv_heads": 3, "dim": 64, "table": 8}
LLAMA: dict[str, Value] = {
    **{"batch": 4, "seq": 1, "heads": 32, "kv_heads": 8, "dim": 128, "table": 128},
    "page_stride": 32 * 8 * 2 * 32 * 128,
}
MATRIX: dict[str, Value] = {"rows": 2, "n": 1536, "k": 576}
CACHE: dict[str, Value] = {"page_stride": 30 * 3 * 2 * 32 * 64}
HELD: dict[str, Value] = {"kv_heads": 3, "dim": 64, "table": 8, **CACHE}


def sets(t: DType) -> dict[str, list[dict[str, Value]]]:
    """Constants of the instances of each kernel."""
    operands = (Operand(t, "row * 384", 1), Operand(DType.F32, "0", 1))
    return {
        "rms_norm": [{**ROWS, "eps": 1e-5, "residual": 1, "sum": 1}],
        "layer_norm": [{**ROWS, "eps": 1e-12, "residual": 1, "bias": 1, "sum": 1}],
        "softmax": [{"rows": 4096, "n": 128}, {"rows": 64, "n": 128, "out": DType.F16}],
        "l2": [{"rows": 8, "n": 384, "out": DType.F32}],
        "elementwise": [{**ROWS, "operands": operands, "expr": "vgelu(v0 + v1)"}],
        "gated": [{**ROWS, "pitch": 768}],
        "embed": [
            {**ROWS, "vocab": 30522, "positions": 512, "types": 2},
            {**ROWS, "vocab": 49152, "q8": 1},
            {**ROWS, "ragged": 128, "positions": 512},
        ],
        "rope": [
            {"rows": 64, "seq": 16, **DECODER, **CACHE, "positions": 2048, "bias": 1, "gains": 1}
        ],
        "pool": [
            {"batch": 8, "seq": 128, "n": 384, "pool": 0, "l2": 1, "out": DType.F32},
            {**RAGGED, "n": 384, "pool": 0},
        ],
        "attention_step": [
            {"batch": 1, **DECODER, **CACHE, "positions": 2048, "bias": 1, "gains": 1},
        ],
        "matvec": [
            {**MATRIX, "norm": 2, "eps": 1e-5, "keep": 1, "bias": 1, "act": "vgelu"},
            {**MATRIX, "norm": 1, "eps": 1e-5, "gated": 1},
            {**MATRIX, "bits": 4, "offsets": 1, "residual": 1},
            {**MATRIX, "bits": 6, "halves": 1},
            {**MATRIX, "bits": 8, "out": DType.F32},
        ],
        "dequantize": [{"n": 576, "k": 1536, "bits": 4}],
        "attention": [
            {"batch": 64, "seq": 256, "heads": 12, "kv_heads": 12, "dim": 64, "bias": 1},
            {**RAGGED, "heads": 12, "kv_heads": 12, "dim": 32, "bias": 1},
        ],
        "starts": [{"batch": 64, "seq": 256, "rows": 1024}],
        "attention_cached": [
            {**LLAMA, "seq": 512, "window": 1024},
        ],
        "attention_decode": [
            {**LLAMA, "window": 1024, "splits": 1},
        ],
        "attention_combine": [{"batch": 4, "seq": 1, "heads": 9, "dim": 64, "splits": 8}],
        "sample": [{"rows": 8, "n": 49152}],
        "strided": [{f"{k}{i}": 8 for k in "ns" for i in range(4)}],
        "reduce": [
            {"outer": 64, "extent": 48, "inner": 1, "reduce": 1},
            {"outer": 64, "extent": 48, "inner": 8, "reduce": 0, "out": DType.F32},
        ],
        "iota": [{"rows": 256, "period": 128, "base": 1}],
        "length_mask": [{"batch": 8, "tokens": 128}],
        "causal_mask": [{"batch": 2, "tokens": 16, "keys": 256, "window": 64}],
        "concat": [{"rows": 96, "m": 32, "n": 32}],
        "cache_write": [{"rows": 64, "seq": 16, **HELD}],
        "cache_read": [{"batch": 4, **HELD, "values": 1}],
    }


def every(t: DType) -> list[Instance]:
    """The instances of a type."""
    made = []
    for kernel, several in sets(t).items():
        for i, constants in enumerate(several):
            typed = {"t": t} if "t" in TEMPLATES[kernel].needs else {}
            made.append(instance(kernel, f"{kernel}_{i}_{t}", **typed, **constants))
    return made
