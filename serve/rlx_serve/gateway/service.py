"""What the HTTP routes call: models by name, texts and tokens to vectors, rows of variants."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.config.schema import Config
from rlx_ray.errors import Busy, StoreError, UnknownModelError, nearest
from rlx_ray.routing.buckets import check_lengths
from rlx_ray.store import Lookup, Store
from rlx_serve.gateway.availability import Availability
from rlx_serve.gateway.embedding import Answer, embed
from rlx_serve.gateway.request_error import RequestError
from rlx_serve.gateway.served import Served, check_tokens
from rlx_serve.gateway.shared_passes import SharedPasses
from rlx_serve.gateway.text_models import ServedTextModel
from rlx_serve.gateway.variants import engine_rows, variant_row
from rlx_serve.table import Table
from rlx_serve.wire import Held, Route

_STATUS_KEPT_S = 5.0
_ASK_S = 2.0
_TOKENISE_HERE = 8192
"""Characters of a request that are tokenised in the event loop; more go to a thread."""

Board = Callable[[], Awaitable[Mapping[str, Held]]]
"""What each replica holds, by its name."""

Ready = Callable[[str, str], Awaitable[bool]]
"""Whether the executor of a target serves a model."""


class Service:
    """All that the routes need.

    Args:
        config: the whole config.
        table: its models and variants.
        models: the models that are served, by name.
        store: where artifacts are looked for.
        board: what the replicas hold.
        ready: whether an executor answers.
        text_models: the language models that are served, by name.
        availability: which executors answer; all of them, where it is not said.
        replicas: how many replicas run what this gateway is asked, itself among them.
    """

    def __init__(
        self,
        config: Config,
        table: Table,
        models: Mapping[str, Served],
        store: Store,
        board: Board,
        ready: Ready,
        text_models: Mapping[str, ServedTextModel] | None = None,
        availability: Availability | None = None,
        replicas: int = 1,
    ) -> None:
        self.limits = config.serve
        self.text_models = text_models or {}
        self.models = models
        self._table = table
        self._store = store
        self._board = board
        self._ready = ready
        self._availability = availability or Availability("", (), {})
        self._found: tuple[float, Mapping[Route, Lookup]] = (float("-inf"), {})
        self._looking = asyncio.Lock()
        lanes = [model.lanes[0] for model in models.values()]
        self._passes = {
            target: SharedPasses(
                max(lane.passes for lane in lanes if lane.target == target), self._run
            )
            for target in dict.fromkeys(lane.target for lane in lanes)
        }
        """By the first target of the models that they run."""
        self._most = self.limits.max_ongoing_requests * replicas + self.limits.max_queued_requests
        self._requests = 0

    def model(self, name: str) -> Served:
        """A model by name.

        Raises:
            UnknownModelError: there is none of that name.
        """
        if name in self.models:
            return self.models[name]
        if name in self.text_models:
            raise RequestError(
                f"model {name!r} generates text.", "Use /v1/chat/completions.", param="model"
            )
        raise self._unknown(name)

    def text_model(self, name: str) -> ServedTextModel:
        """A language model by name.

        Raises:
            UnknownModelError: there is none of that name.
            RequestError: the model is no language model.
        """
        if name in self.text_models:
            return self.text_models[name]
        if name in self.models:
            raise RequestError(
                f"model {name!r} makes embeddings.", "Use /v1/embeddings.", param="model"
            )
        raise self._unknown(name)

    @property
    def names(self) -> list[str]:
        """All models, in the config's order."""
        return [n for n in self._table.models if n in self.models or n in self.text_models]

    def known(self, name: str) -> str:
        """The name of a model that is served.

        Raises:
            UnknownModelError: there is none of that name.
        """
        if name not in self.names:
            raise self._unknown(name)
        return name

    def _unknown(self, name: str) -> UnknownModelError:
        names = self.names
        return UnknownModelError(
            f"model {name!r} is not served here; the models are {names}.", nearest(name, names)
        )

    async def embed_texts(self, model: Served, texts: Sequence[str]) -> Answer:
        """Vectors of texts; longer ones are truncated to the model's limit.

        Raises:
            InputError: no texts, too many, or one longer than the largest variant.
            TimeoutError: it took longer than `serve.request_timeout_s`.
            RlxError: as `embedding.embed` does.
        """
        self._check_count(len(texts))
        begun = time.monotonic()
        if sum(map(len, texts)) > _TOKENISE_HERE:
            encoded = await asyncio.to_thread(model.tokenizer.encode_batch, texts)
        else:
            encoded = model.tokenizer.encode_batch(texts)
        tokenised = time.monotonic() - begun
        answer = await self.embed_tokens(model, encoded)
        answer.times["tokenize"] = tokenised
        return answer

    async def embed_tokens(self, model: Served, items: Sequence[Encoded]) -> Answer:
        """Vectors of token lists, which are taken as they are, special tokens included.

        Raises:
            InputError: see `embed_texts`; also a list that is empty, longer than the model's
                limit, or has an id that the model does not have.
            TimeoutError, RlxError: see `embed_texts`.
        """
        self._check_count(len(items))
        for number, item in enumerate(items):
            check_tokens(model, number, item)
        lengths = [len(item.ids) for item in items]
        buckets = [bucket for lane in model.lanes for bucket in lane.buckets]
        check_lengths(lengths, buckets, model.name, model.path)
        seconds = self.limits.request_timeout_s
        passes = self._passes[model.lanes[0].target]
        try:
            async with asyncio.timeout(seconds):
                return await passes.embed(model.name, items, time.monotonic() + seconds)
        except TimeoutError:
            raise TimeoutError(
                f"The answer took longer than {seconds:g} s. A first request may wait for a build: "
                "try again, or raise serve.request_timeout_s."
            ) from None

    async def _run(
        self,
        name: str,
        texts: Sequence[Encoded],
        counts: Sequence[int],
        waits: Callable[[], None],
    ) -> list[Answer]:
        """A pass of requests for one model, on what answers now."""
        model = self.models[name]
        present = await self._availability.present([lane.target for lane in model.lanes])
        lanes = [lane for lane in model.lanes if lane.target in present]
        return await embed(texts, counts, lanes, model.name, model.path, waits)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is answered.

        Raises:
            Busy: there are as many as the limits allow.
        """
        if self._requests >= self._most:
            raise Busy(
                f"this gateway has {self._requests} requests at once, its limit "
                "(serve.max_ongoing_requests of each replica, and serve.max_queued_requests).",
                "Try again in a second.",
            )
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def model_ready(self, name: str) -> bool:
        """Whether at least one executor answers for a model.

        Raises:
            UnknownModelError: there is none of that name.
        """
        return await self._answers(name, self._places()[self.known(name)])

    async def _answers(self, model: str, targets: tuple[str, ...]) -> bool:
        async def ask(target: str) -> bool:
            try:
                return await asyncio.wait_for(self._ready(target, model), _ASK_S)
            except Exception:  # whatever it is, it does not answer
                return False

        absent = self._availability.absent()
        asked = [target for target in targets if target not in absent]
        return any(await asyncio.gather(*(ask(target) for target in asked)))

    async def all_ready(self) -> bool:
        """Whether every model is ready."""
        return all(await asyncio.gather(*(self._answers(*one) for one in self._places().items())))

    def _places(self) -> dict[str, tuple[str, ...]]:
        """The targets of each model's executors."""
        texts = {name: text_model.targets for name, text_model in self.text_models.items()}
        return texts | {n: tuple(lane.target for lane in m.lanes) for n, m in self.models.items()}

    async def variants(self) -> dict[str, list[dict[str, object]]]:
        """What is there.

        `rows` has an object for each variant and target: what the store has, and which replicas
        hold it; `engines` one for each text engine of a replica: what its key-value cache takes.

        What the store said is kept for a few seconds.
        """
        async with self._looking:
            looked, found = self._found
            if time.monotonic() - looked > _STATUS_KEPT_S:
                found = await asyncio.to_thread(self._look)
                self._found = (time.monotonic(), found)
        try:
            board = await asyncio.wait_for(self._board(), _ASK_S)
        except Exception:  # the coordinator is away; the rest of a row still holds
            board = {}
        absent = self._availability.absent()
        rows = [variant_row(row, found.get(row.route), board, absent) for row in self._table.rows]
        return {"rows": rows, "engines": engine_rows(board)}

    def _look(self) -> Mapping[Route, Lookup]:
        """What the store has, model by model: two models may share a digest, not a manifest."""
        found: dict[Route, Lookup] = {}
        for name in self._table.models:
            rows = [r for r in self._table.rows if r.route.model == name and not r.unsupported]
            try:
                present = self._store.present(row.spec for row in rows)
            except StoreError:  # unreachable: the status is unknown then
                continue
            found.update({row.route: present[row.route.digest] for row in rows})
        return found

    def _check_count(self, count: int) -> None:
        if count < 1:
            raise RequestError("input is an empty list.", "Send at least one text.", param="input")
        if count > self.limits.max_texts:
            raise RequestError(
                f"input has {count} texts, the limit is {self.limits.max_texts}.",
                "Send fewer at a time, or raise serve.max_texts.",
                param="input",
            )
