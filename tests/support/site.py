"""The HTTP application over executors that are faked, and a client of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rlx_ray.store import AotStore
from rlx_serve.gateway.availability import Availability
from rlx_serve.gateway.embedding import Lane
from rlx_serve.gateway.served import served
from rlx_serve.gateway.service import Service
from rlx_serve.http.routes import make_app
from rlx_serve.table import open_table
from rlx_serve.wire import CallResult, Held, Route
from tests.support.serving import tiny_model, write_config

HIDDEN, VOCAB = 32, 120


class Backend:
    """An executor whose vectors are the text's length and its token ids."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.seconds = 0.0
        self.inputs: list[Mapping[str, np.ndarray]] = []

    async def __call__(self, route: Route, inputs: Mapping[str, np.ndarray]) -> CallResult:
        self.inputs.append(inputs)
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        ids = inputs["input_ids"][:, :16]
        vectors = np.zeros((len(ids), HIDDEN), np.float32)
        vectors[:, 0] = inputs["lengths"]
        vectors[:, 1 : 1 + ids.shape[1]] = ids / np.float32(3)
        return CallResult({"embedding": vectors}, "memory")


class Site:
    """A client of the application."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        limits = {"max_texts": 8, "max_body_bytes": 4000, "request_timeout_s": 30}
        config = write_config(folder, [tiny_model(folder, "tiny", 1, **fields)], **limits)
        table = open_table(config)
        targets = table.targets("tiny")
        self.backends = {target.name: Backend() for target in targets}
        self.backend = self.backends[targets[0].name]
        self.answers = True
        self.availability = Availability("", list(self.backends), {})
        lanes = tuple(Lane(t.name, self.backends[t.name], table.routes("tiny", t)) for t in targets)

        async def board() -> Mapping[str, Held]:
            slots = {row.route.slot_id: "loaded" for row in table.rows[:1]}
            return {"cpu/replica-1": Held(slots, {"talk": ("loaded", 640)})}

        async def ready(target: str, model: str) -> bool:
            if not self.answers:
                await asyncio.sleep(60)
            return True

        models = {"tiny": served(table, "tiny", lanes)}
        self.table = table
        store = AotStore(config.store.url)
        self.service = Service(
            config, table, models, store, board, ready, availability=self.availability
        )
        self.app = make_app(self.service)

    def hurry(self) -> None:
        """Let requests run out of time at once, which else they do not on a busy machine."""
        self.service.limits = replace(self.service.limits, request_timeout_s=0.2)

    def __call__(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(go())

    def embed(self, value: object, **fields: object) -> httpx.Response:
        return self("POST", "/v1/embeddings", json={"model": "tiny", "input": value, **fields})

    def infer(self, *inputs: dict[str, object], **fields: object) -> httpx.Response:
        return self("POST", "/v2/models/tiny/infer", json={"inputs": list(inputs), **fields})
