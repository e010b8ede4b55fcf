"""OpenAI's embeddings API: request bodies to calls, answers to response bodies.

Format: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.errors import RlxError
from rlx_serve.gateway.embedding import Answer
from rlx_serve.gateway.request_error import RequestError
from rlx_serve.gateway.served import Served
from rlx_serve.gateway.service import Service


class EmbeddingsBody(BaseModel):
    """The body of `POST /v1/embeddings`; unknown fields are ignored, so that newer clients work.

    `input` is read by `read_input`, whose messages name the item.
    """

    model_config = ConfigDict(extra="ignore")

    model: StrictStr
    input: object
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None
    user: StrictStr | None = None


Input = list[str] | list[list[int]]
"""Texts, or token lists."""


def read_input(value: object) -> Input:
    """The `input` field: a text, a list of texts, a list of token ids, or a list of such lists.

    Raises:
        RequestError: it is none of these.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _wrong("input", value, "a text, a list of texts, or token ids")
    if not value:
        raise RequestError("input is an empty list.", "Send at least one text.", param="input")
    if _is_id(value[0]):
        return [_ids(value, "input")]
    if isinstance(value[0], list):
        return [_ids(item, f"input[{i}]") for i, item in enumerate(value)]
    for i, item in enumerate(value):
        if not isinstance(item, str):
            raise _wrong(f"input[{i}]", item, "a text" if i else "a text, a token id or a list")
    return value


def _ids(value: object, where: str) -> list[int]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list of token ids, as the items before it")
    if not value:
        raise RequestError(f"{where} is an empty list.", "Send token ids.", param="input")
    for i, item in enumerate(value):
        if not _is_id(item):
            raise _wrong(f"{where}[{i}]", item, "a token id, as the items before it")
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(where: str, value: object, wanted: str) -> RequestError:
    kinds = {str: "a text", list: "a list", dict: "an object", bool: "a truth value"}
    found = kinds.get(type(value), "null" if value is None else "a number")
    return RequestError(f"{where} is {found}.", f"It is {wanted}.", param="input")


async def embeddings(service: Service, body: EmbeddingsBody) -> tuple[dict[str, object], Answer]:
    """Answer `POST /v1/embeddings`.

    Raises:
        UnknownModelError: no such model.
        RequestError: `input` or `dimensions` cannot be answered.
        RlxError, TimeoutError: as `Service` does.
    """
    model = service.model(body.model)
    if body.dimensions is not None and body.dimensions != model.hidden:
        raise RequestError(
            f"dimensions is {body.dimensions}, the vectors of {model.name!r} have {model.hidden}.",
            "Leave it out: vectors are not shortened.",
            param="dimensions",
        )
    given = read_input(body.input)
    answer = await _answer(service, model, given)
    total = sum(answer.embedded.tokens)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(encode(answer.embedded.vectors, body.encoding_format))
        ],
        "model": model.name,
        "usage": {"prompt_tokens": total, "total_tokens": total},
    }, answer


async def _answer(service: Service, model: Served, given: Input) -> Answer:
    texts = [item for item in given if isinstance(item, str)]
    if texts:
        return await service.embed_texts(model, texts)
    lists = [item for item in given if isinstance(item, list)]
    return await service.embed_tokens(
        model, [Encoded(tuple(ids), (0,) * len(ids), False) for ids in lists]
    )


def encode(vectors: np.ndarray, encoding: str) -> Sequence[object]:
    """Each vector as an array of float32, or as base64 of it, little-endian."""
    check_finite(vectors)
    if encoding == "base64":
        return [base64.b64encode(row.astype("<f4", copy=False)).decode() for row in vectors]
    return list(vectors)


def check_finite(vectors: np.ndarray) -> None:
    """Check that vectors are numbers: JSON has none that are not.

    Raises:
        RlxError: they are not.
    """
    if not np.isfinite(vectors).all():
        raise RlxError("the model's vector has numbers that are not finite.", "Check its weights.")


def model_row(name: str, created: int) -> dict[str, object]:
    """A model as `/v1/models` lists it; `created` in seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "rlx-ray"}
