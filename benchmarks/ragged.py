"""64 texts of mixed lengths: ragged variants against peers that pad.

    .venv-bench/bin/python benchmarks/ragged.py [--json] [--rounds 3]

The lengths are drawn once (seed 0) from a log-normal distribution of median 16 tokens and sigma
0.9, cut to 4 to 256: most are short, few long. Each peer gets the texts in padded batches of 1, 2,
4 ... 64, each padded to its own longest, and its best size counts: in the order in which they came
(`arrival`), and sorted by length first (`sorted`, which is what a careful user writes). This
project gets the list as it came; sorting and packing are inside its time. Each engine runs alone in
fresh processes, in turn; the figure is texts a second, from the median over rounds of each
process's median. Every answer is checked against torch eager.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from encoder import CACHE, prepare, torch_model
from harness import ROOT, arguments, child, median_ms, report, row

TEXTS = 64
SIZES = (1, 2, 4, 8, 16, 32, 64)
ORDERS = ("arrival", "sorted")


def texts() -> list[np.ndarray]:
    """Token ids of each text, int64."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(16), 0.9, TEXTS), 4, 256).astype(int)
    return [rng.integers(1000, 20000, n) for n in lengths]


def pad(items: list[np.ndarray]) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask`, int64 [texts, longest]."""
    ids = np.zeros((len(items), max(map(len, items))), np.int64)
    mask = np.zeros_like(ids)
    for r, item in enumerate(items):
        ids[r, : len(item)] = item
        mask[r, : len(item)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def answers() -> np.ndarray:
    """Torch eager's embeddings, float32 [texts, 384], computed once."""
    path = CACHE / f"ragged-{TEXTS}.npy"
    if not path.exists():
        import torch

        model = torch_model()
        with torch.inference_mode():
            rows = [model(*map(torch.tensor, pad([t]).values())).numpy()[0] for t in texts()]
        np.save(path, np.array(rows))
    return np.load(path)


def ours(threads: int):
    """A function that embeds the list and returns [texts, 384], and what it runs on."""
    from rlx_ray.config.load import load
    from rlx_ray.job.compile_miss import load as open_local
    from rlx_ray.routing.buckets import assign, pad_waste
    from rlx_ray.runtime.executable import pad_tokens

    path = ROOT / "configs" / "minilm-ragged.yaml"
    model = open_local(load(path, store_override=f"file://{CACHE}/store"), "minilm", threads)
    items = [(t.tolist(), [0] * len(t)) for t in texts()]

    def run():
        lengths = [len(ids) for ids, _ in items]
        batches = assign(lengths, model.buckets, "minilm", "$")
        vectors = np.empty((TEXTS, 384), np.float32)
        for batch in batches:
            executable, _ = model.executable(batch.variant)
            tokens = pad_tokens(batch.variant, [items[i] for i in batch.items])
            rows = executable.run(tokens)["embedding"]
            vectors[list(batch.items)] = rows[: len(batch.items)]
        return vectors

    lengths = [len(ids) for ids, _ in items]
    batches = assign(lengths, model.buckets, "minilm", "$")
    about = {"variants": [str(b.variant) for b in batches], "waste": pad_waste(batches, lengths)}
    return run, about


def peer(engine: str, threads: int):
    """A function of padded inputs that returns [batch, 384]."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(CACHE / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        return lambda inputs: session.run(None, inputs)[0]
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(str(CACHE / "model.onnx")), "CPU", hints)
    request = compiled.create_infer_request()
    return lambda inputs: next(iter(request.infer(inputs).values()))


def padded_run(call, order: str, size: int):
    """A function that embeds the list in padded batches of a size."""
    items = texts()
    keys = list(range(TEXTS))
    if order == "sorted":
        keys.sort(key=lambda i: len(items[i]))
    parts = [keys[at : at + size] for at in range(0, TEXTS, size)]

    def run():
        vectors = np.empty((TEXTS, 384), np.float32)
        for part in parts:
            vectors[part] = call(pad([items[i] for i in part]))
        return vectors

    return run


def measure_child(engine: str, threads: int) -> None:
    wanted = answers()

    def timed(run) -> float:
        error = float(np.abs(run() - wanted).max())
        if error > 1e-3:
            raise SystemExit(f"{engine} is wrong: {error}")
        return median_ms(run, 1.0, 5)

    if engine == "ours":
        run, about = ours(threads)
        print(json.dumps({"ms": timed(run), **about}))
        return
    call = peer(engine, threads)
    found = {o: {s: timed(padded_run(call, o, s)) for s in SIZES} for o in ORDERS}
    print(json.dumps(found))


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        return measure_child(sys.argv[2], int(sys.argv[3]))
    args = arguments(__doc__.splitlines()[0]).parse_args()
    prepare()
    answers()
    own: list[float] = []
    about: dict = {}
    peers: dict[str, list[dict]] = {"onnxruntime": [], "openvino": []}
    for _ in range(args.rounds):
        about = child("ragged.py", "--child", "ours", str(args.threads))
        own.append(about["ms"])
        for engine, runs in peers.items():
            runs.append(child("ragged.py", "--child", engine, str(args.threads)))
    rate = TEXTS / statistics.median(own) * 1e3
    rows = []
    for order in ORDERS:
        best = {}
        for engine, runs in peers.items():
            by_size = {s: statistics.median(r[order][str(s)] for r in runs) for s in SIZES}
            size = min(by_size, key=by_size.__getitem__)
            best[engine] = (TEXTS / by_size[size] * 1e3, size)
        rows.append(
            row(
                f"ragged:64:{order}",
                "texts/s",
                round(rate, 1),
                {e: round(v, 1) for e, (v, _) in best.items()},
                "higher",
                batch={e: s for e, (_, s) in best.items()},
                variants=about["variants"],
                pad_waste=about["waste"],
            )
        )
    tokens = [len(t) for t in texts()]
    told = {"threads": args.threads, "tokens": sum(tokens), "longest": max(tokens)}
    report("ragged", rows, args.json, **told)


if __name__ == "__main__":
    main()
