"""Many clients at once: one build, and the answers of one at a time."""

from __future__ import annotations

import asyncio
import random

import httpx
import numpy as np

from tests.serve.conftest import Site
from tests.support.tiny import WORDS


def post_all(site: Site, bodies: list[object]) -> list[httpx.Response]:
    """All requests at once, in order."""

    async def go() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(base_url=site.url, timeout=60, limits=limits) as client:
            sent = [
                client.post("/v1/embeddings", json={"model": "ann", "input": body})
                for body in bodies
            ]
            return list(await asyncio.gather(*sent))

    return asyncio.run(go())


def rows(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]], np.float32)


def test_concurrent_first_requests_compile_each_variant_once(pair: Site) -> None:
    replies = post_all(pair, ["a fox"] * 32)
    assert len({rows(reply).tobytes() for reply in replies}) == 1
    ran = {v for reply in replies for v in reply.headers["x-rlx-variant"].split(", ")}
    assert "encoder:b1:s8" in ran
    assert ran <= {"encoder:b1:s8", "encoder:b4:s8"}  # what gathered meanwhile runs together
    assert pair.builds() == len(ran)


def test_many_mixed_requests_get_the_answers_of_one_at_a_time(pair: Site) -> None:
    rng = random.Random(5)
    bodies = [
        [" ".join(rng.choices(WORDS, k=rng.randint(1, 13))) for _ in range(rng.randint(1, 5))]
        for _ in range(20)
    ]
    alone = [pair.embed("ann", body) for body in bodies]
    singles = {text: pair.embed("ann", text) for text in {t for b in bodies[:8] for t in b}}
    together = post_all(pair, bodies * 10)
    for body, one, many in zip(bodies * 10, alone * 10, together, strict=True):
        same = many.headers["x-rlx-variant"] == one.headers["x-rlx-variant"]
        assert np.abs(rows(many) - rows(one)).max() <= (0 if same else 2e-6)
        for row, text in zip(rows(many), body, strict=True):
            if text in singles:
                single = singles[text]
                same = many.headers["x-rlx-variant"] == single.headers["x-rlx-variant"]
                assert np.abs(row - rows(single)[0]).max() <= (0 if same else 2e-6)
