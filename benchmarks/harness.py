"""What every benchmark shares: fresh processes in turn, medians, the host, ceilings, the report.

A child process measures one engine on one case and prints one JSON line. Engines are run in turn,
round after round, so that a slow minute of a shared machine meets all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def median_ms(run, seconds: float = 1.5, least: int = 20) -> float:
    """Median milliseconds of a call, over at least `least` calls and `seconds` seconds."""
    run()
    run()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < least or time.perf_counter() - start < seconds:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def child(script: str, *arguments: str, timeout: float = 600) -> dict:
    """Run a script of this folder in a fresh process and read its last line as JSON."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@contextlib.contextmanager
def server(command: list, log: Path, stop_s: float = 60) -> Iterator[str]:
    """The first line that a server prints once it answers; it is told to stop behind the block."""
    with log.open("w") as said:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            assert started.stdout is not None
            line = started.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start: see {log}")
            yield line
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(stop_s)
            except subprocess.TimeoutExpired:
                started.kill()


def host() -> dict:
    """The machine, and how busy it is."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"cpu": model, "cores": os.cpu_count(), "load": [round(x, 2) for x in os.getloadavg()]}


def report(name: str, rows: list[dict], as_json: bool, **more: object) -> None:
    """Print the rows: one JSON document, or a table."""
    found = {"name": name, "host": host(), "date": datetime.date.today().isoformat(), **more}
    if as_json:
        print(json.dumps({**found, "rows": rows}))
        return
    print(f"{name}: {found}")
    for row in rows:
        peers = "  ".join(f"{k} {v:.3f}" for k, v in row["peers"].items())
        known = ("case", "unit", "better", "ours", "peers", "ratio")
        extra = {k: v for k, v in row.items() if k not in known}
        ours, ratio = f"ours {row['ours']:.3f}", f"ratio {row['ratio']:.2f}"
        print(f"{row['case']:22} {row['unit']:4} {ours}  {peers}  {ratio}  {extra}")


def row(
    case: str, unit: str, ours: float, peers: dict[str, float], better: str = "lower", **more
) -> dict:
    """A row of the report; its ratio is above 1 where this project is ahead of the best peer."""
    best = (min if better == "lower" else max)(peers.values()) if peers else ours
    ratio = best / ours if better == "lower" else ours / best
    return {
        "case": case,
        "unit": unit,
        "better": better,
        "ours": ours,
        "peers": peers,
        "ratio": round(ratio, 3),
        **more,
    }


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes per engine and case")
    return parser
