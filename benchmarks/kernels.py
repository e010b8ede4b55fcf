"""Where a variant's time goes, kernel by kernel: one thread, time stamp counter around each call.

    .venv-bench/bin/python benchmarks/kernels.py [--variant encoder:b8:s128] [--json]

The unit is compiled anew with counters (x86-64 only); it is never published. `gflops` is a
kernel's own rate, `share` its part of the forward pass.
"""

from __future__ import annotations

import ctypes
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from cold_start import open_ours
from harness import arguments, report

COUNTERS = """#include "gemm.h"
static unsigned long rlx_ticks[256];
RLX_INLINE unsigned long rlx_now(void) {
    unsigned lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return ((unsigned long)hi << 32) | lo;
}
__attribute__((visibility("default"))) unsigned long *rlx_counters(void) { return rlx_ticks; }
"""


def flops(kernel) -> int:
    """Floating-point operations of one call of a matmul or an attention; 0 for others."""
    size = dict(kernel.constants)
    if kernel.template in ("gemm", "dot_panels"):
        return 2 * size["m"] * size["n"] * size["k"]
    if kernel.template == "attention":
        return 4 * size["sequences"] * size["keys"] ** 2 * size["heads"] * size["dim"]
    if kernel.template == "attention_queries":
        return 4 * size["queries"] * size["keys"] * size["heads"] * size["dim"]
    return 0


def ticks_per_second() -> float:
    """The rate of the time stamp counter, from the kernel's table."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("bogomips"):
            return float(line.partition(":")[2]) / 2 * 1e6
    raise SystemExit("no bogomips in /proc/cpuinfo")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--variant", default="encoder:b8:s128")
    args = parser.parse_args()
    from rlx_ray.codegen import c, zig
    from rlx_ray.compiler import binding, stages
    from rlx_ray.component import ModelVariant
    from rlx_ray.runtime.cpu import ArenaPool, CpuExecutable, ThreadPool

    model = open_ours(1)
    variant = ModelVariant.parse(args.variant)
    plain, _ = model.executable(variant)
    spec = model.spec(variant)
    lir = stages(spec).lir
    text = c.emit(lir, spec.target).replace('#include "gemm.h"', COUNTERS, 1)
    timed = r"    { unsigned long q = rlx_now(); \1(\3); rlx_ticks[\2] += rlx_now() - q; } \4"
    text = re.sub(r"^    (k(\d+))\((.*)\); (/\*.*)$", timed, text, flags=re.M)
    path = Path(tempfile.gettempdir()) / f"rlx-kernels-{time.time_ns()}.so"
    path.write_bytes(zig.build(text, spec.target, spec.toolchain))
    pool = ThreadPool(model.store.fetch(spec).paths["pool"], 1)
    run = CpuExecutable(path, binding(lir), plain._weights, pool, ArenaPool()).run
    counters = ctypes.CDLL(str(path)).rlx_counters
    counters.restype = ctypes.POINTER(ctypes.c_ulong)
    path.unlink()
    ids = np.random.default_rng(0).integers(1000, 20000, (variant.batch, variant.seq))
    inputs = {
        "input_ids": ids.astype(np.int32),
        "token_type_ids": np.zeros(ids.shape, np.int32),
        "lengths": np.full(variant.batch, variant.seq, np.int32),
    }
    run(inputs)
    begun = [counters()[i] for i in range(len(lir.kernels))]
    for _ in range(args.rounds):
        run(inputs)
    spent = [counters()[i] - begun[i] for i in range(len(lir.kernels))]
    rate, rows = ticks_per_second(), []
    for kernel, ticks in zip(lir.kernels, spent, strict=True):
        calls = sum(r.tiles * sum(k.kernel == kernel for k in r.calls) for r in lir.regions)
        seconds = ticks / rate / args.rounds
        name = " ".join([kernel.template, *(f"{k}={v}" for k, v in kernel.constants[:3])])
        rows.append(
            {
                "case": name,
                "unit": "ms",
                "better": "lower",
                "ours": round(seconds * 1e3, 3),
                "peers": {},
                "ratio": 1.0,
                "share": round(ticks / sum(spent), 3),
                "gflops": round(flops(kernel) * calls / seconds / 1e9, 1) if seconds else 0,
            }
        )
    report("kernels", rows, args.json, variant=str(variant), threads=1)


if __name__ == "__main__":
    main()
