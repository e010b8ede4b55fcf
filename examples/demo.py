"""The demo: prebuild a config's variants, serve them, ask over HTTP as a client would, stop.

python examples/demo.py configs/demo.yaml      (what `make demo` runs)
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.table import Table

QUERY = "How do I make the first request fast?"
QUESTION = "Why is the sky blue? Answer in one sentence."
DOCUMENTS = (
    "Compile every variant ahead of time, so that the first request finds it ready.",
    "A cold start is the time from a new process to its first answer.",
    "The recipe wants two onions, a leek and a litre of stock.",
    "Ray fans the compile jobs out over the cheap nodes of the cluster.",
    "Das Wetter wird morgen schön.",
    "A long text takes a longer variant: " + "the lengths of texts differ a lot in practice. " * 14,
)
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60
console = Console(width=110)


def main(config: str) -> int:
    """Run every step; the exit status is 0 only if all of them worked."""
    started = time.monotonic()
    command = str(Path(sys.executable).parent / "rlx-ray")
    console.rule("prebuild")
    if subprocess.run([command, "prebuild", config], check=False).returncode:
        return 1
    console.rule("serve")
    server = subprocess.Popen(
        [command, "serve", config, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        found = read_ready(server)
        console.print(f"ready at {found['url']}")
        ask(found["url"], found["models"][0])
        for model in found["models"][1:]:
            chat(found["url"], model)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            code = -1
    console.print(f"stopped with status {code} after {time.monotonic() - started:.0f} s in all")
    return 0 if code == 0 else 1


def read_ready(server: subprocess.Popen[str]) -> dict:
    """The one JSON line that `rlx-ray serve --json` prints once it answers."""
    begun = time.monotonic()
    assert server.stdout is not None
    while time.monotonic() - begun < START_TIMEOUT_S:
        line = server.stdout.readline()
        if line.startswith("{"):
            return json.loads(line)
        if not line and server.poll() is not None:
            break
    raise SystemExit("the server did not start")


def embed(url: str, model: str, texts: list[str]) -> tuple[list[list[float]], dict, float]:
    """Vectors, answer headers and milliseconds of one request."""
    body = json.dumps({"model": model, "input": texts}).encode()
    request = urllib.request.Request(
        f"{url}/v1/embeddings", body, {"content-type": "application/json"}
    )
    begun = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        data = json.load(answer)
        elapsed = (time.perf_counter() - begun) * 1e3
        return [row["embedding"] for row in data["data"]], dict(answer.headers), elapsed


def ask(url: str, model: str) -> None:
    """One request a text, twice; then all texts in one request; a table of what came back."""
    (query,), _, _ = embed(url, model, [QUERY])
    console.print(f"query: {QUERY}")
    table = Table("similarity", "text", "variant", "tier", "ms first", "ms again")
    for text in DOCUMENTS:
        (vector,), headers, first = embed(url, model, [text])
        _, _, again = embed(url, model, [text])
        similarity = sum(a * b for a, b in zip(query, vector, strict=True))
        length = math.sqrt(sum(a * a for a in vector))
        table.add_row(
            f"{similarity / length:.3f}",
            text if len(text) < 60 else text[:57] + "...",
            headers["x-rlx-variant"],
            headers["x-rlx-tier"],
            f"{first:.1f}",
            f"{again:.1f}",
        )
    console.print(table)
    _, headers, elapsed = embed(url, model, list(DOCUMENTS) * 4)
    console.print(
        f"{4 * len(DOCUMENTS)} texts in one request: {elapsed:.0f} ms on "
        f"{headers['x-rlx-variant']} ({float(headers['x-rlx-pad-waste']):.0%} padding)"
    )


def chat(url: str, model: str) -> None:
    """One question to a language model, twice: the answer is printed as it comes."""
    for turn in ("the first time", "again"):
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": model, "messages": messages, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        begun = time.perf_counter()
        console.print(f"{model}, {turn}: {QUESTION}")
        first, count = 0.0, 0
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                data = line.removeprefix(b"data: ").strip()
                if not data or data == b"[DONE]":
                    continue
                event = json.loads(data)
                count = event.get("usage", {}).get("completion_tokens", count)
                text = "".join(c["delta"].get("content", "") for c in event["choices"])
                if text:
                    first = first or time.perf_counter() - begun
                    console.print(text, end="", highlight=False, markup=False)
            took = time.perf_counter() - begun
            variants = answer.headers["x-rlx-variant"]
        rate = (count - 1) / (took - first) if count > 1 else 0.0
        console.print(f"\n  {first * 1e3:.0f} ms to the first token, {rate:.0f}/s ({variants})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "configs/demo.yaml"))
