"""A model that makes embeddings, as the routes see it."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.checkpoint.tokenizer import Encoded, Tokenizer
from rlx_serve.gateway.embedding import Lane
from rlx_serve.gateway.request_error import RequestError
from rlx_serve.table import Table


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


def check_tokens(model: Served, number: int, item: Encoded) -> None:
    """Check that a token list is one that the model has.

    Raises:
        RequestError: it is empty, too long, or has an id or a type that the model does not have.
    """
    where = f"input[{number}]"
    if not item.ids:
        raise RequestError(f"{where} has no tokens.", "Send at least one.", param="input")
    if len(item.ids) > model.limit:
        raise RequestError(
            f"{where} has {len(item.ids)} tokens, the limit of {model.name!r} is {model.limit}.",
            "Send fewer tokens, or text, which is truncated.",
            param="input",
        )
    for what, values, count in (
        ("token id", item.ids, model.vocab),
        ("token type", item.type_ids, model.token_types),
    ):
        low, high = min(values), max(values)
        if low < 0 or high >= count:
            raise RequestError(
                f"{where} has {what} {low if low < 0 else high}.",
                f"Each {what} of {model.name!r} is 0 to {count - 1}.",
                param="input",
            )
