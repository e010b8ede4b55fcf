"""A load client: closed loops and Poisson arrivals of embedding requests over keep-alive HTTP/1.1.

    .venv-bench/bin/python benchmarks/serving_load.py URL MODEL --clients 1 8 32 --rates 50 100

Prints one JSON object with a step's requests a second, its latencies in milliseconds, and the
statuses that came. In an open loop a latency counts from the arrival that was planned, so that a
server that stands still is not asked less. Texts have a log-normal number of words, median 15.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

TEXT = (
    "the cache key names what is asked for and the digest which bytes are right a store keeps "
    "artifacts for every target replicas load them in milliseconds rain is likely on the coast "
    "tomorrow leek onion stock river bank money transfer failed customer wants refund invoice late "
    "delivery please thank you"
)
WORDS = TEXT.split()
TIMEOUT_S = 30


def bodies(model: str, count: int = 512) -> list[bytes]:
    """Requests of one text each, ready to send."""
    random = np.random.default_rng(7)
    lengths = np.clip(np.exp(random.normal(np.log(15), 0.7, count)), 1, 170).astype(int)
    found = []
    for length in lengths:
        text = " ".join(random.choice(WORDS, length))
        value = {"model": model, "input": text, "encoding_format": "base64"}
        found.append(json.dumps(value).encode())
    return found


@dataclass
class Step:
    """What a step has seen: latencies in seconds, and how often each status came."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def summary(self, wall: float) -> dict[str, object]:
        good = np.array(self.seconds) * 1e3
        return {
            "rps": round(len(good) / wall, 1),
            "p50_ms": round(float(np.median(good)), 2),
            "p99_ms": round(float(np.percentile(good, 99)), 2),
            "statuses": dict(self.statuses),
        }


class Connection:
    """One keep-alive connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._at = (parts.hostname, parts.port)
        head = f"POST {parts.path}/v1/embeddings HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        self._head = head + "Content-Type: application/json\r\nContent-Length: "
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, body: bytes) -> str:
        """Send a request and read its answer; the status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._at)
        reader, writer = self._streams
        writer.write(f"{self._head}{len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        await reader.readexactly(int(lines["content-length"]))
        if lines.get("connection") == "close":
            self.close()
        return head.split(" ", 2)[1]

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed(url: str, requests: list[bytes], clients: int, seconds: float) -> dict:
    """Clients that each send the next request when they have an answer."""
    step, begun = Step(), time.perf_counter()

    async def one(number: int) -> None:
        connection = Connection(url)
        while time.perf_counter() < begun + seconds:
            sent = time.perf_counter()
            status = await connection.send(requests[number % len(requests)])
            step.statuses[status] += 1
            if status == "200":
                step.seconds.append(time.perf_counter() - sent)
            number += clients
        connection.close()

    await asyncio.gather(*(one(i) for i in range(clients)))
    return step.summary(time.perf_counter() - begun)


async def opened(url: str, requests: list[bytes], rate: float, seconds: float) -> dict:
    """Poisson arrivals at a rate, whatever the answers take."""
    step, idle = Step(), []
    random = np.random.default_rng(5)
    planned = begun = time.perf_counter()
    tasks = []

    async def one(at: float, body: bytes) -> None:
        connection = idle.pop() if idle else Connection(url)
        try:
            status = await asyncio.wait_for(connection.send(body), TIMEOUT_S)
        except (OSError, EOFError, TimeoutError) as error:
            step.statuses[type(error).__name__] += 1
            connection.close()
            return
        step.statuses[status] += 1
        if status == "200":
            step.seconds.append(time.perf_counter() - at)
        idle.append(connection)

    while planned < begun + seconds:
        planned += random.exponential(1 / rate)
        await asyncio.sleep(max(0.0, planned - time.perf_counter()))
        body = requests[len(tasks) % len(requests)]
        tasks.append(asyncio.ensure_future(one(planned, body)))
    await asyncio.gather(*tasks)
    return step.summary(time.perf_counter() - begun)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--rates", type=float, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=6)
    args = parser.parse_args()
    requests = bodies(args.model)
    await closed(args.url, requests, 4, 2)  # loads variants; does not count
    found = {}
    for clients in args.clients:
        found[f"{clients}"] = await closed(args.url, requests, clients, args.seconds)
    for rate in args.rates:
        found[f"{rate:g}/s"] = await opened(args.url, requests, rate, args.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
