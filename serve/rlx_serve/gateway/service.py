"""What the HTTP routes call: models by name, texts and tokens to vectors, rows of variants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from rlx_ray.checkpoint.tokenizer import Encoded, Tokenizer
from rlx_ray.config.schema import Config
from rlx_ray.errors import StoreError, UnknownModelError, nearest
from rlx_ray.store import Lookup, Store
from rlx_serve.gateway.availability import Availability
from rlx_serve.gateway.embedding import Answer, Lane, embed
from rlx_serve.gateway.request_error import RequestError
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


@dataclass(frozen=True, slots=True)
class Served:
    """A model as the routes see it.

    Attributes:
        name: its name.
        hidden: length of a vector.
        vocab: number of token ids.
        token_types: number of token types.
        limit: most tokens of a text.
        path: where it stands in the config.
        tokenizer: text to tokens.
        lanes: its executors in serving order.
    """

    name: str
    hidden: int
    vocab: int
    token_types: int
    limit: int
    path: str
    tokenizer: Tokenizer
    lanes: tuple[Lane, ...]


def served(table: Table, name: str, lanes: tuple[Lane, ...]) -> Served:
    """A model of a table, with its lanes."""
    model = table.models[name]
    info = model.info
    return Served(
        name,
        info.hidden,
        info.vocab,
        info.token_types,
        info.limits.max_tokens,
        f"$.models[{list(table.models).index(name)}]",
        model.tokenizer(),
        lanes,
    )


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
            RlxError: as `dispatch.embed` does.
        """
        self._check_count(len(texts))
        if sum(map(len, texts)) > _TOKENISE_HERE:
            encoded = await asyncio.to_thread(model.tokenizer.encode_batch, texts)
        else:
            encoded = model.tokenizer.encode_batch(texts)
        return await self.embed_tokens(model, encoded)

    async def embed_tokens(self, model: Served, items: Sequence[Encoded]) -> Answer:
        """Vectors of token lists, which are taken as they are, special tokens included.

        Raises:
            InputError: see `embed_texts`; also a list that is empty, longer than the model's
                limit, or has an id that the model does not have.
            TimeoutError, RlxError: see `embed_texts`.
        """
        self._check_count(len(items))
        for number, item in enumerate(items):
            _check_tokens(model, number, item)
        seconds = self.limits.request_timeout_s
        try:
            async with asyncio.timeout(seconds):
                present = await self._availability.present([lane.target for lane in model.lanes])
                lanes = [lane for lane in model.lanes if lane.target in present]
                return await embed(items, lanes, model.name, model.path)
        except TimeoutError:
            raise TimeoutError(
                f"The answer took longer than {seconds:g} s. A first request may wait for a build: "
                "try again, or raise serve.request_timeout_s."
            ) from None

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


def _check_tokens(model: Served, number: int, item: Encoded) -> None:
    where = f"input[{number}]"
    if not item.ids:
        raise RequestError(f"{where} has no tokens.", "Send at least one.", param="input")
    if len(item.ids) > model.limit:
        raise RequestError(
            f"{where} has {len(item.ids)} tokens, the limit of {model.name!r} is {model.limit}.",
            "Send fewer tokens, or text, which is truncated.",
            param="input",
        )
    low, high = min(item.ids), max(item.ids)
    if low < 0 or high >= model.vocab:
        raise RequestError(
            f"{where} has token id {low if low < 0 else high}.",
            f"The ids of {model.name!r} are 0 to {model.vocab - 1}.",
            param="input",
        )
    low, high = min(item.type_ids), max(item.type_ids)
    if low < 0 or high >= model.token_types:
        raise RequestError(
            f"{where} has token type {low if low < 0 else high}.",
            f"The types of {model.name!r} are 0 to {model.token_types - 1}.",
            param="input",
        )
