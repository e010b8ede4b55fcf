"""Cold starts: a further variant in a warm process, and a new process to its first answer.

    make bench, or:   .venv-bench/bin/python benchmarks/cold_start.py [--json] [--rounds 5]

`variant:load`: MiniLM's variants are in the store and in the host's cache, one of them has run;
then each further one is resolved (store asked, blobs checked against their hashes), loaded and
bound; the figure is the median over variants and rounds. `variant:load+run` adds the first forward
pass of `encoder:b1:s16`. `process` is a new process, timed after imports, from the model's files to
its first answer at `encoder:b1:s128`: ONNX Runtime with a saved optimised model, OpenVINO with its
model cache, AOTInductor from a package, this project with a filled store and host cache.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from encoder import CACHE, feed, prepare, torch_model
from harness import arguments, child, report, row

CASE = (1, 128)


def open_ours(threads: int):
    from rlx_ray.config.load import load
    from rlx_ray.job.compile_miss import load as open_local

    config = load(
        Path(__file__).parent.parent / "configs" / "minilm.yaml",
        store_override=f"file://{CACHE}/store",
    )
    return open_local(config, "minilm", threads)


def inputs_of(batch: int, seq: int) -> dict[str, np.ndarray]:
    return {
        "input_ids": feed(batch, seq).astype(np.int32),
        "token_type_ids": np.zeros((batch, seq), np.int32),
        "lengths": np.full(batch, seq, np.int32),
    }


def aotinductor_package() -> Path:
    """The AOTInductor package of the model at CASE, compiled once; needs a C++ compiler."""
    path = CACHE / "model.pt2"
    if not path.exists():
        import torch

        tensors = tuple(torch.tensor(f) for f in (feed(*CASE), np.ones(CASE, np.int64)))
        with torch.inference_mode():
            exported = torch.export.export(torch_model(), tensors)
            torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
    return path


def child_variants(threads: int) -> dict:
    from rlx_ray.component import ModelVariant

    model = open_ours(threads)
    small = ModelVariant.encoder(1, 16)
    others = [v for v in model.variants if v != small]
    warm, _ = model.executable(others[0])
    for _ in range(3):
        warm.run(inputs_of(others[0].batch, others[0].seq))
    loads = []
    for variant in others[1:]:
        begun = time.perf_counter()
        model.executable(variant)
        loads.append((time.perf_counter() - begun) * 1e3)
    begun = time.perf_counter()
    loaded, _ = model.executable(small)
    loaded.run(inputs_of(1, 16))
    first = (time.perf_counter() - begun) * 1e3
    return {"load": statistics.median(loads), "first": first, "worst": max(loads)}


def child_process(engine: str, threads: int) -> dict:
    ids = feed(*CASE)
    both = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if engine == "ours":
        from rlx_ray.component import ModelVariant
        from rlx_ray.inference.local import LocalModel  # noqa: F401 - imports are not timed, for anyone

        begun = time.perf_counter()
        model = open_ours(threads)
        loaded, _ = model.executable(ModelVariant.encoder(*CASE))
        loaded.run(inputs_of(*CASE))
    elif engine == "aotinductor":
        import torch
        import torch._inductor.package

        torch.set_num_threads(threads)
        tensors = [torch.tensor(v) for v in both.values()]
        begun = time.perf_counter()
        package = torch._inductor.aoti_load_package(str(aotinductor_package()))
        with torch.inference_mode():
            package(*tensors).numpy()
    elif engine == "onnxruntime":
        import onnxruntime

        begun = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        saved = CACHE / "optimised.onnx"
        source = saved if saved.exists() else CACHE / "model.onnx"
        if saved.exists():
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        else:
            options.optimized_model_filepath = str(saved)
        session = onnxruntime.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, both)
    else:
        import openvino

        begun = time.perf_counter()
        core = openvino.Core()
        core.set_property({"CACHE_DIR": str(CACHE / "openvino")})
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(str(CACHE / "model.onnx"), "CPU", hints)
        compiled.create_infer_request().infer(both)
    return {"ms": (time.perf_counter() - begun) * 1e3}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        what, threads = sys.argv[2], int(sys.argv[3])
        found = child_variants(threads) if what == "variants" else child_process(what, threads)
        print(json.dumps(found))
        return
    args = arguments(__doc__.splitlines()[0]).parse_args()
    prepare()
    threads = str(args.threads)
    engines = ("ours", "onnxruntime", "openvino", "aotinductor")
    for engine in (*engines, "variants"):  # fills every engine's cache
        child("cold_start.py", "--child", engine, threads)
    warm = [child("cold_start.py", "--child", "variants", threads) for _ in range(args.rounds)]
    times: dict[str, list[float]] = {e: [] for e in engines}
    for _ in range(args.rounds):
        for engine in engines:
            times[engine].append(child("cold_start.py", "--child", engine, threads)["ms"])
    medians = {e: round(statistics.median(v), 2) for e, v in times.items()}
    load = statistics.median(w["load"] for w in warm)
    first = statistics.median(w["first"] for w in warm)
    worst = max(w["worst"] for w in warm)
    rows = [
        row("variant:load", "ms", round(load, 2), {}, worst=round(worst, 2)),
        row("variant:load+run", "ms", round(first, 2), {}),
        row("process", "ms", medians.pop("ours"), medians),
    ]
    report("cold_start", rows, args.json, threads=args.threads)


if __name__ == "__main__":
    main()
