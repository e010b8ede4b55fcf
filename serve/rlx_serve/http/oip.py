"""The Open Inference Protocol, version 2, in JSON: tensors to calls, answers to tensors.

Format: https://github.com/kserve/open-inference-protocol (required REST API).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_serve.gateway.embedding import Answer
from rlx_serve.gateway.request_error import RequestError
from rlx_serve.gateway.served import Served
from rlx_serve.gateway.service import Service
from rlx_serve.http.embeddings import check_finite

_MATRICES = ("input_ids", "token_type_ids", "attention_mask")
_INPUTS = (*_MATRICES, "lengths")
_TYPES = {"INT32": np.int32, "INT64": np.int64}
_OUTPUT = "embedding"


class RequestInput(BaseModel):
    """An input tensor; `data` is flat or nested and read by `read_tensor`."""

    model_config = ConfigDict(extra="ignore")

    name: StrictStr
    shape: list[StrictInt]
    datatype: StrictStr
    data: object


class Output(BaseModel):
    """A requested output."""

    model_config = ConfigDict(extra="ignore")

    name: StrictStr


class InferBody(BaseModel):
    """The body of `POST /v2/models/{m}/infer`."""

    model_config = ConfigDict(extra="ignore")

    id: StrictStr | None = None
    inputs: list[RequestInput]
    outputs: list[Output] | None = None


def metadata(model: Served) -> dict[str, object]:
    """The model's metadata: its tensors. All inputs but `input_ids` may be left out."""
    rows: list[dict[str, object]] = [
        {"name": name, "datatype": "INT32", "shape": [-1, -1]} for name in _MATRICES
    ]
    rows.append({"name": "lengths", "datatype": "INT32", "shape": [-1]})
    output = {"name": _OUTPUT, "datatype": "FP32", "shape": [-1, model.hidden]}
    return {"name": model.name, "platform": "rlx", "inputs": rows, "outputs": [output]}


async def infer(
    service: Service, model: Served, body: InferBody
) -> tuple[dict[str, object], Answer]:
    """Answer `POST /v2/models/{m}/infer`.

    Raises:
        RequestError: a tensor or output is unknown, missing or malformed.
        RlxError, TimeoutError: as `Service` does.
    """
    for output in body.outputs or ():
        if output.name != _OUTPUT:
            raise RequestError(
                f"output {output.name!r} is not known.", f"The only output is {_OUTPUT!r}."
            )
    answer = await service.embed_tokens(model, read_inputs(body.inputs))
    vectors = answer.embedded.vectors
    check_finite(vectors)
    row = {
        "name": _OUTPUT,
        "datatype": "FP32",
        "shape": list(vectors.shape),
        "data": vectors.ravel(),
    }
    found: dict[str, object] = {"model_name": model.name, "outputs": [row]}
    return (found if body.id is None else {**found, "id": body.id}), answer


def read_inputs(tensors: Sequence[RequestInput]) -> list[Encoded]:
    """The token lists of a request.

    Raises:
        RequestError: a tensor is unknown, twice there, missing, or does not fit `input_ids`.
    """
    arrays: dict[str, np.ndarray] = {}
    for tensor in tensors:
        if tensor.name not in _INPUTS:
            raise RequestError(
                f"input {tensor.name!r} is not known.", f"The inputs are {list(_INPUTS)}."
            )
        if tensor.name in arrays:
            raise RequestError(f"input {tensor.name!r} appears twice.", "Send it once.")
        arrays[tensor.name] = read_tensor(tensor)
    if "input_ids" not in arrays:
        raise RequestError("input 'input_ids' is missing.", "Send the token ids.")
    ids = arrays["input_ids"]
    _check_shapes(arrays)
    types = arrays.get("token_type_ids", np.zeros_like(ids))
    return [
        Encoded(tuple(row[:n].tolist()), tuple(kinds[:n].tolist()), False)
        for row, kinds, n in zip(ids, types, _lengths(arrays), strict=True)
    ]


def read_tensor(tensor: RequestInput) -> np.ndarray:
    """The array of a tensor.

    Raises:
        RequestError: its datatype, shape and data do not go together.
    """
    where = f"input {tensor.name!r}"
    kind = _TYPES.get(tensor.datatype)
    if kind is None:
        raise RequestError(
            f"{where}: datatype {tensor.datatype!r} is not taken.", f"Use one of {list(_TYPES)}."
        )
    flat = list(_numbers(tensor.data, where))
    if any(size < 0 for size in tensor.shape) or np.prod(tensor.shape, dtype=object) != len(flat):
        raise RequestError(
            f"{where}: shape {tensor.shape} does not fit {len(flat)} numbers.",
            "The product of the shape is the count of the data.",
        )
    try:
        return np.array(flat, kind).reshape(tensor.shape)
    except OverflowError:
        raise RequestError(f"{where}: a number does not fit {tensor.datatype}.") from None


def _numbers(data: object, where: str) -> list[int]:
    """The numbers of flat or nested data, in row-major order; nested lists must be equally long."""
    level: list[object] = [data]
    while level and isinstance(level[0], list):
        rows = [row for row in level if isinstance(row, list)]
        if len(rows) != len(level) or len({len(row) for row in rows}) != 1:
            raise RequestError(f"{where}: data is ragged.", "Nested lists have equal lengths.")
        level = [item for row in rows for item in row]
        if level and level[0] is data:
            break
    numbers = [n for n in level if isinstance(n, int) and not isinstance(n, bool)]
    if len(numbers) != len(level):
        raise RequestError(f"{where}: data has values that are no whole numbers.")
    return numbers


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    shape = arrays["input_ids"].shape
    if len(shape) != 2:
        raise RequestError(
            f"input 'input_ids' has shape {list(shape)}.", "It has two dimensions: [texts, tokens]."
        )
    for name, array in arrays.items():
        wanted = shape[:1] if name == "lengths" else shape
        if array.shape != wanted:
            raise RequestError(
                f"input {name!r} has shape {list(array.shape)}, 'input_ids' has {list(shape)}.",
                f"It has shape {list(wanted)}.",
            )
    if "lengths" in arrays and "attention_mask" in arrays:
        raise RequestError("both 'lengths' and 'attention_mask' are there.", "Send one of them.")


def _lengths(arrays: Mapping[str, np.ndarray]) -> list[int]:
    """Tokens of each row: as `lengths` or `attention_mask` says, or all."""
    count, width = arrays["input_ids"].shape
    lengths = [width] * count
    if "lengths" in arrays:
        lengths = arrays["lengths"].tolist()
    elif "attention_mask" in arrays:
        mask = arrays["attention_mask"]
        lengths = mask.sum(axis=1).tolist()
        prefix = np.arange(width)[None] < np.array(lengths)[:, None]
        if not np.array_equal(mask, prefix):
            raise RequestError(
                "input 'attention_mask' is not ones followed by zeros in each row.",
                "Pad on the right.",
            )
    for row, length in enumerate(lengths):
        if not 0 < length <= width:
            raise RequestError(
                f"row {row} of 'input_ids' has {length} tokens.", f"It has 1 to {width}."
            )
    return lengths
