"""Where a variant's time goes, kernel by kernel, from counters that are compiled in on request.

The unit with counters is another artifact than the served one: it is built in a temporary folder,
run, and forgotten.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.compiler.compile import stages
from rlx_ray.compiler.cpu import c, zig
from rlx_ray.compiler.cpu.backend import BACKEND
from rlx_ray.compiler.cpu.lir import KernelCall, Lir, Region, Space
from rlx_ray.compiler.cpu.templates import Extent
from rlx_ray.runtime.cpu import ArenaPool, CpuExecutable, ThreadPool
from rlx_ray.runtime.weights import Weights
from rlx_ray.shape import PAGE
from rlx_ray.spec import BuildSpec
from rlx_ray.weights.formats import laid_out


@dataclass(frozen=True, slots=True)
class KernelTime:
    """All calls of one kernel in one forward pass.

    Attributes:
        kernel: template and sizes.
        calls: how often it ran.
        milliseconds: over all threads together.
        share: its part of the time in kernels.
        gflops: 10^9 floating-point operations a second of one thread; 0 where none are counted.
        gbytes: 10^9 bytes of weights a second that one thread read.
    """

    kernel: str
    calls: int
    milliseconds: float
    share: float
    gflops: float
    gbytes: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A variant's profile.

    Attributes:
        kernels: the kernels, the most expensive first.
        milliseconds: median wall time of a forward pass with the counters on.
        busy: the part of the threads' time that they spent in kernels.
        threads: how many threads ran.
    """

    kernels: tuple[KernelTime, ...]
    milliseconds: float
    busy: float
    threads: int


def profile(
    spec: BuildSpec, weights: Weights, pool_library: Path, threads: int, rounds: int
) -> Profile:
    """Build a variant with counters and run it on full sequences.

    Args:
        spec: the variant, of a target that this host can run.
        weights: the model's packed weights.
        pool_library: the `pool` blob of any artifact for this host's architecture.
        threads: threads of the pool, 1 to 64.
        rounds: forward passes that are counted, after one that is not.

    Raises:
        ToolchainMissing: this machine has no compiler.
    """
    lir = stages(spec).program
    assert isinstance(lir, Lir)
    text = c.emit(lir, spec.target, counters=True)
    pool = ThreadPool(pool_library, threads)
    try:
        with tempfile.TemporaryDirectory(prefix="rlx-profile-") as folder:
            path = Path(folder) / "code.so"
            path.write_bytes(zig.build(text, spec.target, spec.toolchain))
            bound = BACKEND.binding(lir)
            loaded = CpuExecutable(path, bound, weights, pool, ArenaPool())
            pages = sum(math.prod(t.shape) for t in bound.inputs if t.name == "pages")
            cache = np.zeros((pages, bound.page), np.uint8) if bound.page else None
            run = partial(loaded.run, cache=cache)
            library = ctypes.CDLL(str(path))
        return _measure(library, run, lir, threads, rounds)
    finally:
        pool.close()


def _measure(
    library: ctypes.CDLL,
    run: Callable[[dict[str, np.ndarray]], object],
    lir: Lir,
    threads: int,
    rounds: int,
) -> Profile:
    library.rlx_counters.restype = ctypes.POINTER(ctypes.c_ulong)
    library.rlx_now.restype = ctypes.c_ulong
    calls = sum(len(region.all_calls) for region in lir.regions)
    counters = np.ctypeslib.as_array(library.rlx_counters(), (c.COUNTER_THREADS, calls))
    inputs = full_inputs(BACKEND.binding(lir))
    run(inputs)
    counters[:] = 0
    begun, ticks, spent = time.perf_counter(), library.rlx_now(), []
    for _ in range(rounds):
        since = time.perf_counter()
        run(inputs)
        spent.append(time.perf_counter() - since)
    rate = (library.rlx_now() - ticks) / (time.perf_counter() - begun)
    kernels = _kernels(lir, counters[:threads].sum(0) / rate / rounds)
    wall = float(np.mean(spent)) * 1e3
    busy = sum(k.milliseconds for k in kernels) / (wall * threads)
    return Profile(kernels, float(np.median(spent)) * 1e3, busy, threads)


def _kernels(lir: Lir, seconds: np.ndarray) -> tuple[KernelTime, ...]:
    calls = [(region, call) for region in lir.regions for call in region.all_calls]
    grouped: dict[str, list[int]] = {}
    for i, (_, call) in enumerate(calls):
        grouped.setdefault(_name(call), []).append(i)
    total = float(seconds.sum())
    made = []
    for name, members in grouped.items():
        own = float(seconds[members].sum())
        flops = sum(_flops(lir, *calls[i]) for i in members)
        read = sum(_streamed(lir, *calls[i]) for i in members)
        rates = (flops / own / 1e9, read / own / 1e9) if own else (0.0, 0.0)
        count = sum(calls[i][0].tiles for i in members)
        made.append(KernelTime(name, count, own * 1e3, own / total if total else 0.0, *rates))
    return tuple(sorted(made, key=lambda k: -k.milliseconds))


def _name(call: KernelCall) -> str:
    sizes = call.kernel.sizes
    wanted = ("n", "k", "keys", "heads", "dim", "columns")
    name = call.kernel.template.name
    return " ".join([name, *(f"{k}={sizes[k]}" for k in wanted if k in sizes)])


def _flops(lir: Lir, region: Region, call: KernelCall) -> int:
    """Floating-point operations of all tiles of a call, on full sequences; 0 where not counted."""
    rows = dict(call.kernel.arguments).get("rows", Extent.ROWS)
    if isinstance(rows, int):
        return call.kernel.template.flops(call.kernel.sizes, rows * region.tiles, region.tiles)
    if lir.packing is None:
        return 0
    sequences = lir.packing.sequences
    total = sequences if rows is Extent.SEQUENCES else lir.packing.rows
    return call.kernel.template.flops(call.kernel.sizes, total, sequences)


def _streamed(lir: Lir, region: Region, call: KernelCall) -> int:
    """Bytes of the packed weights that all tiles of a call read."""
    sizes, read = call.kernel.sizes, 0
    for argument in call.inputs:
        if argument is not None and argument.space is Space.PARAM:
            layout = lir.params[argument.offset].layout
            form = laid_out(layout) if layout.startswith("panel") else None
            read += int(form.weight_bytes * sizes["n"] * sizes["k"]) * region.tiles if form else 0
    return read


def full_inputs(bound: BindingManifest) -> dict[str, np.ndarray]:
    """Inputs of the largest size that a variant takes: every sequence as long as it can be.

    A decoder's page tables name pages from 0 on, each once.
    """
    found = {t.name: np.ones(t.shape, np.int32) for t in bound.inputs}
    if "token_type_ids" in found:
        found["token_type_ids"][:] = 0
    found["lengths"][:] = found["input_ids"].size // found["lengths"].size
    if "pages" in found:
        batch, pages = found["pages"].shape
        found["pages"][:] = np.arange(batch * pages).reshape(batch, pages)
        found["past"][:] = pages * PAGE - found["lengths"]
    return found
