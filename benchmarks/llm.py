"""SmolLM2-135M Q4_1: this project against llama.cpp and ik_llama.cpp, with the same threads.

    .venv-bench/bin/python benchmarks/llm.py [--json] [--rounds 3]

Prefill of 128 and 512 tokens, decode with 128 and 512 tokens in the cache (milliseconds of a step),
tokens a second of eight streams of the engine together and of one alone, and how long four running
streams pause while a prompt of 256 tokens starts (in usual steps). Each engine runs alone in fresh
processes, in turn; the figure is the median over rounds of each process's median. A decode row's
`share` is the part of the read bandwidth that a token's bytes (packed weights and cache) take, from
steps and reads of memory in turn, since neighbours change that bandwidth within seconds.

The peers run the same file, and a Q4_0 file that llama.cpp makes of it: Q4_1 is its slow path on
CPUs, and Q4_0 has fewer bytes. Both are built for this host, as `make bench` does it:

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
    benchmarks/install_ik_llama.sh .venv-bench
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from encoder import read_bandwidth
from harness import arguments, child, median_ms, report, row
from llm_peers import (
    FILE,
    PACKAGE,
    PAST,
    ik_llama_cpp,
    llama_cpp,
    peak_mb,
    q4_1,
    requantise,
)

ENGINES = ("ours", "llama_cpp", "llama_cpp_q4_0", "ik_llama_cpp", "ik_llama_cpp_q4_0")
FOLDER = Path(tempfile.gettempdir()) / "rlx-bench-llm"
SOURCE = f"pkg://{PACKAGE}/{FILE}"
Q4_0 = FOLDER / "SmolLM2-135M-Instruct.Q4_0.gguf"
VARIANTS = ("prefill:b1:s128", "prefill:b1:s512", "decode:b1:s1:p1023", "decode:b8:s1:p1023")
STREAMS = 4
PROMPTS = 5
PAIRS = 7  # of a read of memory and some steps
KV_BYTES = 30 * 2 * 3 * 64 * 2  # of one token in our float16 cache

CONFIG = f"""
store: {{url: "file://{FOLDER}/store", cache_dir: "{FOLDER}/cache"}}
targets: [host]
models:
  - name: smollm2
    family: llama
    source: "{SOURCE}"
    quant: file
    matrix:
      - {{phase: prefill, batch: 1, seq: [128, 512]}}
      - {{phase: prefill, batch: 1, seq: [8, 16, 128], past_seq: 896}}
      - {{phase: decode, batch: [1, 4, 8], seq: 1, past_seq: 1023}}
"""


def ours(threads: int) -> dict:
    """Seconds of each case, and the bytes of the packed weights."""
    from rlx_ray.component import ModelVariant
    from rlx_ray.inference.text_model import TextModel
    from rlx_ray.job.compile_miss import load
    from rlx_ray.runtime.cpu import cache_pages

    model = load(FOLDER / "smollm2.yaml", "smollm2", threads)
    runs = {v: model.executable(ModelVariant.parse(v))[0] for v in VARIANTS}
    cache = cache_pages(160, runs[VARIANTS[0]].binding.page)
    random = np.random.default_rng(0)

    def case(name: str, new: int, past: int, least: int, seconds: float = 2.0) -> float:
        shapes = {t.name: t.shape for t in runs[name].binding.inputs}
        batch, pages = shapes["pages"]
        held = -(-(past + new) // 32)
        tables = np.full((batch, pages), -1, np.int32)
        tables[:, :held] = np.arange(batch * held).reshape(batch, held)
        inputs = {
            "input_ids": random.integers(100, 40000, shapes["input_ids"]).astype(np.int32),
            "lengths": np.full(batch, new, np.int32),
            "past": np.full(batch, past, np.int32),
            "pages": tables,
        }
        return median_ms(lambda: runs[name].run(inputs, cache), seconds, least) / 1e3

    found = {f"prefill:{n}": case(f"prefill:b1:s{n}", n, 0, 5) for n in PAST}
    found |= {f"decode:{n}": case(VARIANTS[2], 1, n, 60) for n in PAST}
    found["decode of 8:128"] = case(VARIANTS[3], 1, 128, 20)
    weights, _ = model.parts(ModelVariant.parse(VARIANTS[2]))
    table = next(t for t in weights.manifest.tensors if t.name == "embed.word")
    read = weights.nbytes - int(np.prod(table.shape))  # one row of the embedding table is read
    cos_sin = next(t for t in weights.manifest.tensors if t.name == "rope.cos_sin")
    read -= int(np.prod(cos_sin.shape)) * 4
    peak = peak_mb()
    text = TextModel(model)
    found |= streams(text) | stall(text)
    text.close()
    shares: dict[int, list[float]] = {n: [] for n in PAST}
    reads = []
    for _ in range(PAIRS):
        reads.append(read_bandwidth(threads))
        for n, own in shares.items():
            seconds = case(VARIANTS[2], 1, n, 60, 0.5)
            own.append((read + KV_BYTES * n) / 1e9 / seconds / reads[-1])
    model.close()
    found |= {f"share:{n}": statistics.median(own) for n, own in shares.items()}
    return {**found, "weights": read, "peak_mb": peak, "read_gbps": statistics.median(reads)}


def prepare() -> None:
    """Fill the store, so that no process that is measured builds or packs anything."""
    from rlx_ray.component import ModelVariant
    from rlx_ray.job.compile_miss import load

    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "smollm2.yaml"
    path.write_text(CONFIG)
    model = load(path, "smollm2", 1)
    for text in VARIANTS:
        model.executable(ModelVariant.parse(text))
    model.close()
    if not Q4_0.exists():
        requantise(Q4_0)


def streams(text) -> dict[str, float]:
    """Tokens a second of one stream, and of eight while all run; they have 128 to 256 tokens."""
    from rlx_ray.engine.generation import Request
    from rlx_ray.engine.sampling import Sampling

    random = np.random.default_rng(2)

    def rate(count: int, new: int = 128) -> float:
        stamps: list[list[float]] = [[] for _ in range(count)]
        for own in stamps:
            ids = tuple(random.integers(100, 40000, 128).tolist())
            text.engine.submit(
                Request(ids, new, Sampling(temperature=0)),
                lambda piece, own=own: own.append(time.perf_counter()),
            )
        while any(len(own) < new for own in stamps):
            time.sleep(0.02)
        begun, ended = max(own[0] for own in stamps), min(own[-1] for own in stamps)
        return sum(sum(begun < t <= ended for t in own) for own in stamps) / (ended - begun)

    rate(8, 16)
    pairs = [(rate(1), rate(8)) for _ in range(5)]
    one, eight = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    return {"one": one, "eight": eight, "over_one": statistics.median(b / a for a, b in pairs)}


def stall(text) -> dict[str, float]:
    """How long four running streams pause, in usual steps: the median of the longest pauses.

    `stall` is while a new prompt of 256 tokens starts, `quiet` in as many steps without one: what
    the machine alone does.
    """
    from rlx_ray.engine.generation import Request
    from rlx_ray.engine.sampling import Sampling

    random = np.random.default_rng(1)
    stamps: list[list[float]] = [[] for _ in range(STREAMS + 1)]

    def start(index: int, prompt: int, new: int):
        ids = tuple(random.integers(100, 40000, prompt).tolist())
        request = Request(ids, new, Sampling(temperature=0))
        own = stamps[index]
        return text.engine.submit(request, lambda piece: own.append(time.perf_counter()))

    def wait(index: int, count: int) -> None:
        while len(stamps[index]) < count:
            time.sleep(0.001)

    def longest(since: float, until: float) -> float:
        gaps = [np.diff([t for t in own if since <= t <= until]) for own in stamps[:STREAMS]]
        return max(float(g.max()) for g in gaps)

    running = [start(i, 16, 900) for i in range(STREAMS)]
    for i in range(STREAMS):
        wait(i, 20)
    start(STREAMS, 256, 1)  # every variant is loaded and timed once
    wait(STREAMS, 1)
    pauses, quiet = [], []
    for _ in range(PROMPTS):
        after = len(stamps[0])
        wait(0, after + 50)
        usual = statistics.median(np.diff(stamps[0][-50:]).tolist())
        stamps[STREAMS].clear()
        begun = time.perf_counter()
        start(STREAMS, 256, 1)
        wait(STREAMS, 1)
        took = stamps[STREAMS][0] - begun
        time.sleep(4 * usual)
        pauses.append(longest(begun - usual, begun + took + 3 * usual) / usual - 1)
        quiet.append(longest(begun - took - 4 * usual, begun) / usual - 1)
    for one in running:
        text.engine.cancel(one)
    return {"stall": statistics.median(pauses), "quiet": statistics.median(quiet)}


def measured(engine: str, threads: int) -> dict:
    """What one engine's process finds."""
    if engine == "ours":
        return ours(threads)
    path = Q4_0 if engine.endswith("_q4_0") else q4_1()
    run = {"llama_cpp": llama_cpp, "ik_llama_cpp": ik_llama_cpp}[engine.removesuffix("_q4_0")]
    return run(threads, path)


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        if sys.argv[2] == "prepare":
            prepare()
            print("{}")
            return
        print(json.dumps(measured(sys.argv[2], int(sys.argv[3]))))
        return
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--engines", default=",".join(ENGINES))
    args = parser.parse_args()
    engines = args.engines.split(",")
    found: dict[str, list[dict]] = {e: [] for e in engines}
    child("llm.py", "--child", "prepare", timeout=900)
    for _ in range(args.rounds):
        for engine in engines:
            words = ("--child", engine, str(args.threads))
            found[engine].append(child("llm.py", *words, timeout=900))
    medians = {
        e: {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
        for e, rounds in found.items()
    }
    own, rows = medians.pop("ours"), []
    for case in [k for k in own if k.startswith(("prefill:", "decode:"))]:
        peers = {e: round(m[case] * 1e3, 3) for e, m in medians.items()}
        count = int(case.partition(":")[2]) if case.startswith("prefill") else 1
        more = {"tokens_per_s": round(count / own[case], 1)}
        if case.startswith("decode"):
            more["share"] = round(own[f"share:{case.partition(':')[2]}"], 3)
        rows.append(row(case, "ms", round(own[case] * 1e3, 3), peers, **more))
    step = own["decode of 8:128"] / own["decode:128"]
    rows.append(
        row("streams:8", "tokens/s", round(own["eight"], 1), {}, "higher")
        | {"over_one": round(own["over_one"], 2), "one": round(own["one"], 1)}
        | {"steps_alone_over_one": round(8 / step, 2)}
    )
    rows.append(
        row("stall", "usual steps", round(own["stall"], 2), {}) | {"quiet": round(own["quiet"], 2)}
    )
    peers = {e: round(m["peak_mb"], 1) for e, m in medians.items()}
    rows.append(row("peak memory", "MB", round(own["peak_mb"], 1), peers))
    report("llm", rows, args.json, threads=args.threads, read_gbps=round(own["read_gbps"], 1))


if __name__ == "__main__":
    main()
