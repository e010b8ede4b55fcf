"""Language models that say what they are told to, on a device of a few bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np

from rlx_ray.component import ModelVariant
from rlx_ray.engine.generation import Request
from rlx_ray.engine.sampling import Sampling
from rlx_ray.errors import DeviceMemoryError
from rlx_ray.inference.loader import Loaded
from rlx_serve.replica.residency import Residency
from rlx_serve.replica.text_engines import TextEngines
from rlx_serve.replica.variant_cache import SlotState
from rlx_serve.wire import Route, TokenBatch

WEIGHTS = "a5" * 32
VOCAB, PAGE, CACHE, CODE = 7, 10, 640, 20
VARIANTS = (ModelVariant.prefill(1, 16), ModelVariant.decode(2, 255))
MODELS = ("ann", "bob", "cid")
ROOM_FOR_ONE = CACHE + 2 * CODE + 5


class Pages:
    """A key-value cache whose end can be seen."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


class Talker:
    """A variant that says its model's number, when the model may go on."""

    def __init__(self, card: Card, model: str) -> None:
        outputs = [SimpleNamespace(name="logits")]
        self.binding = SimpleNamespace(page=PAGE, outputs=outputs)
        self._card, self._model = card, model

    def make_cache(self, pages: int) -> Pages:
        self._card.claim(pages * PAGE)
        made = Pages(pages)
        self._card.caches.add(made)
        return made

    def run(self, inputs: Any, cache: Pages, wanted: Any) -> dict[str, np.ndarray]:
        assert cache in self._card.caches
        self._card.running.add(self._model)
        assert self._card.go_on[self._model].wait(10)
        logits = np.zeros((len(inputs["lengths"]), VOCAB), np.float32)
        logits[:, MODELS.index(self._model)] = 9
        return {"logits": logits}


class Card:
    """What variants and caches are loaded on, with room for so many bytes."""

    def __init__(self) -> None:
        self.room = 1 << 20
        self.caches: weakref.WeakSet[Pages] = weakref.WeakSet()
        self.code: weakref.WeakSet[Talker] = weakref.WeakSet()
        self.go_on = {model: threading.Event() for model in MODELS}
        self.may_load = threading.Event()
        self.may_load.set()
        self.running: set[str] = set()
        for event in self.go_on.values():
            event.set()

    @property
    def held(self) -> int:
        return CODE * len(self.code) + PAGE * sum(map(len, self.caches))

    def claim(self, nbytes: int) -> None:
        if self.held + nbytes > self.room:
            raise DeviceMemoryError(f"no room for {nbytes} bytes.", "Load fewer.")

    def load(self, spec: Any) -> Loaded:
        assert self.may_load.wait(10)
        self.claim(CODE)
        made = Talker(self, spec.model)
        self.code.add(made)
        return Loaded(made, spec.digest, WEIGHTS, "store", CODE)  # type: ignore[arg-type]


def row(model: str, variant: ModelVariant) -> Any:
    digest = str(variant)
    return SimpleNamespace(
        route=Route(model, str(variant), digest, digest, WEIGHTS),
        spec=SimpleNamespace(model=model, digest=digest),
        variant=variant,
    )


class Replica:
    """Text engines over a device."""

    def __init__(self, card: Card, threads: ThreadPoolExecutor, max_bytes: int) -> None:
        self.residency = Residency(8, max_bytes, card.load, threads, threads)
        rows = [row(model, variant) for model in MODELS for variant in VARIANTS]
        opened: Any = SimpleNamespace(
            tokenizer=lambda: SimpleNamespace(decode=lambda ids: "x" * len(ids)),
            info=SimpleNamespace(vocab=VOCAB, window=0),
        )
        self.text_engines = TextEngines(rows, dict.fromkeys(MODELS, opened), self.residency, CACHE)

    async def stream(self, model: str, count: int = 5) -> AsyncGenerator[TokenBatch]:
        request = Request((1, 2, 3), count, Sampling(temperature=0))
        with contextlib.ExitStack() as stack:
            engine = await self.text_engines.hold(model, stack)
            async with contextlib.aclosing(engine.generate(request, streamed=True)) as batches:
                async for batch in batches:
                    yield batch

    async def say(self, model: str, count: int = 5) -> list[int]:
        batches = [batch async for batch in self.stream(model, count)]
        assert batches[-1].finish == "length"
        return [chosen.token for batch in batches for chosen in batch.chosen]

    @property
    def engines(self) -> dict[str, SlotState]:
        return {model: state for model, (state, _) in self.residency.slots.engines().items()}


Story = Callable[[Replica], Awaitable[None]]


def play(card: Card, story: Story, max_bytes: int = ROOM_FOR_ONE) -> None:
    """Let something happen on a replica, then end its engines: all memory is free."""

    async def whole() -> None:
        with ThreadPoolExecutor(4) as threads:
            replica = Replica(card, threads, max_bytes)
            async with asyncio.timeout(20):
                await story(replica)
                while replica.residency._loads:
                    await asyncio.wait(replica.residency._loads.values())
                await replica.residency.make_room(DeviceMemoryError("the end"))
            assert set(replica.engines.values()) <= {SlotState.FAILED}
            assert card.held == replica.residency.slots.nbytes == 0

    asyncio.run(whole())
    assert not [t for t in threading.enumerate() if t.name == "rlx-engine"]


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)
