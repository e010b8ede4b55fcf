"""The HTTP application over executors that are faked: no Ray, no compiler."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from rlx_ray.config.load import load
from rlx_ray.engine.sampling import Chosen
from rlx_ray.errors import Busy, CompileError, ConfigError, StoreError, VariantMissing
from rlx_serve.gateway.request_error import RequestError
from rlx_serve.gateway.text_models import ServedTextModel
from rlx_serve.http import completions
from rlx_serve.table import open_table
from rlx_serve.wire import TokenBatch
from tests.support.serving import tiny_model, write_config
from tests.support.site import HIDDEN, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def ids(data: object, shape: list[int] | None = None, **fields: object) -> dict[str, object]:
    shape = shape or [1, len(data) if isinstance(data, list) else 1]
    return {"name": "input_ids", "datatype": "INT64", "shape": shape, "data": data, **fields}


async def _post_all(site: Site, path: str, bodies: list[dict[str, object]]) -> list[httpx.Response]:
    transport = httpx.ASGITransport(site.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return list(await asyncio.gather(*(client.post(path, json=body) for body in bodies)))


def test_who_comes_past_the_limit_is_told_to_come_again(site: Site) -> None:
    site.service._most, site.backend.seconds = 3, 0.05
    bodies: list[dict[str, object]] = [{"model": "tiny", "input": "a"}] * 8
    replies = asyncio.run(_post_all(site, "/v1/embeddings", bodies))
    refused = [reply for reply in replies if reply.status_code == 503]
    assert len(refused) == 5
    assert refused[0].json()["error"]["code"] == "overloaded"
    assert refused[0].headers["retry-after"] == "1"
    assert site.embed("a").status_code == 200


def test_a_stream_counts_until_its_end(site: Site) -> None:
    counts = []

    async def stream(request: object, streamed: bool) -> AsyncGenerator[TokenBatch]:
        for i in range(3):
            counts.append(site.service._requests)
            yield TokenBatch("x", "stop" if i == 2 else "", (Chosen(1),))

    tokenizer = site.service.models["tiny"].tokenizer
    present = site.availability.present
    site.service.text_models = {
        "t": ServedTextModel("t", 64, frozenset(), tokenizer, None, ("a",), (stream,), present)
    }
    body = {"model": "t", "prompt": "a", "stream": True}
    reply = site("POST", "/v1/completions", json=body)
    assert reply.text.endswith("data: [DONE]\n\n")
    assert counts == [1, 1, 1]
    assert site.service._requests == 0


def test_an_embedding_in_both_encodings_is_the_same_to_the_bit(site: Site) -> None:
    floats = site.embed("the fox").json()
    coded = site.embed("the fox", encoding_format="base64").json()
    vector = np.array(floats["data"][0]["embedding"], np.float32)
    decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    assert np.array_equal(vector, decoded)
    assert len(vector) == HIDDEN
    assert floats["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (floats["object"], floats["model"]) == ("list", "tiny")


@pytest.mark.parametrize(
    ("value", "lengths"),
    [
        ("a", [3]),
        ("", [2]),
        (["a", "a fox"], [3, 4]),
        ([2, 9, 3], [3]),
        ([[2, 3], [2, 9, 3]], [2, 3]),
    ],
)
def test_every_kind_of_input_is_answered_in_order(
    site: Site, value: object, lengths: list[int]
) -> None:
    reply = site.embed(value)
    assert reply.status_code == 200, reply.text
    assert [row["embedding"][0] for row in reply.json()["data"]] == lengths
    assert [row["index"] for row in reply.json()["data"]] == list(range(len(lengths)))


def test_dimensions_that_are_the_models_own_are_taken(site: Site) -> None:
    assert site.embed("a", dimensions=HIDDEN, user="me", new_field=1).status_code == 200


def test_answers_carry_the_headers(site: Site) -> None:
    headers = site.embed(["a", "the quick brown fox"]).headers
    assert headers["x-rlx-variant"] in ("encoder:b4:s8", "encoder:b1:s8")
    assert len(headers["x-rlx-cache-key"]) == 16
    assert headers["x-rlx-tier"] == "memory"
    assert 0 <= float(headers["x-rlx-pad-waste"]) < 1
    assert "x-rlx-truncated" not in headers


def test_a_text_past_the_models_limit_is_truncated_and_said_so(tmp_path: Path) -> None:
    site = Site(tmp_path, matrix=[{"phase": "encoder", "batch": 1, "seq": 48}])
    reply = site.embed(["fox " * 60, "a"])
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-rlx-truncated"] == "1"
    assert reply.json()["usage"]["prompt_tokens"] == 48 + 3


BAD_EMBEDDINGS: list[tuple[object, int, str]] = [
    ({"model": "tiny"}, 400, "input is missing"),
    ({"input": "a"}, 400, "model is missing"),
    ({"model": 3, "input": "a"}, 400, "model: Input should be a valid string"),
    ({"model": "tiny", "input": []}, 400, "input is an empty list"),
    ({"model": "tiny", "input": None}, 400, "input is null"),
    ({"model": "tiny", "input": 7}, 400, "input is a number"),
    ({"model": "tiny", "input": {"text": "a"}}, 400, "input is an object"),
    ({"model": "tiny", "input": True}, 400, "input is a truth value"),
    ({"model": "tiny", "input": ["a", 7]}, 400, "input[1] is a number"),
    ({"model": "tiny", "input": [7, "a"]}, 400, "input[1] is a text"),
    ({"model": "tiny", "input": [True]}, 400, "input[0] is a truth value"),
    ({"model": "tiny", "input": [1.5]}, 400, "input[0] is a number"),
    ({"model": "tiny", "input": [None]}, 400, "input[0] is null"),
    ({"model": "tiny", "input": [[]]}, 400, "input[0] is an empty list"),
    ({"model": "tiny", "input": [[2], "a"]}, 400, "input[1] is a text"),
    ({"model": "tiny", "input": [[2], [True]]}, 400, "input[1][0] is a truth value"),
    ({"model": "tiny", "input": [2, 120]}, 400, "token id 120"),
    ({"model": "tiny", "input": [-1]}, 400, "token id -1"),
    ({"model": "tiny", "input": [10**30]}, 400, f"token id {10**30}"),
    ({"model": "tiny", "input": [2] * 49}, 400, "49 tokens, the limit of 'tiny' is 48"),
    (
        {"model": "tiny", "input": [2] * 17},
        400,
        "17 tokens, the largest variant of 'tiny' takes 16",
    ),
    ({"model": "tiny", "input": "fox " * 20}, 400, "$.models[0].matrix"),
    ({"model": "tiny", "input": ["a"] * 9}, 400, "9 texts, the limit is 8"),
    ({"model": "tiny", "input": "a", "dimensions": 16}, 400, "dimensions is 16"),
    ({"model": "tiny", "input": "a", "dimensions": "x"}, 400, "dimensions"),
    ({"model": "tiny", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ({"model": "tinny", "input": "a"}, 404, "the models are ['tiny']"),
    (["a"], 400, "not a JSON object"),
    ({"model": "tiny", "input": "a" * 5000}, 413, "larger than 4000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "said"), BAD_EMBEDDINGS)
def test_a_clients_mistake_is_told_in_openais_shape(
    site: Site, body: object, status: int, said: str
) -> None:
    reply = site("POST", "/v1/embeddings", json=body)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert not site.backend.inputs


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b'{"model": "tiny", "input": NaN}', b"[" * 3000, b"nul\x00", b'"a"'],
)
def test_a_body_that_is_no_json_object_is_400(site: Site, body: bytes) -> None:
    for path in ("/v1/embeddings", "/v2/models/tiny/infer"):
        assert site("POST", path, content=body).status_code == 400


@pytest.mark.parametrize("text", [r"cut \ud83d", r"\uDE00 back to front \uD83D"])
@pytest.mark.parametrize("where", ['{"model": "tiny", "input": "%s"}', '{"model": "%s"}'])
def test_half_a_surrogate_pair_is_a_400_that_names_it(site: Site, text: str, where: str) -> None:
    reply = site("POST", "/v1/embeddings", content=(where % text).encode())
    assert reply.status_code == 400
    assert "without its other half" in reply.json()["error"]["message"]


def test_a_whole_surrogate_pair_is_a_character(site: Site) -> None:
    body = rb'{"model": "tiny", "input": "\ud83d\ude00"}'
    assert site("POST", "/v1/embeddings", content=body).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (VariantMissing("missing encoder:b1:s8", "Prebuild it."), 503, "variant_missing"),
        (CompileError("it broke"), 503, "compile_error"),
        (StoreError("gone"), 503, "store_error"),
        (Busy("full", "Try again."), 503, "overloaded"),
        (ConfigError("$.serve.kv_cache_bytes is 1."), 503, "config_error"),
        (ValueError("a bug"), 500, "internal_error"),
    ],
)
def test_a_servers_failure_is_503_and_says_what(
    site: Site, error: Exception, status: int, code: str
) -> None:
    site.backend.error = error
    reply = site.embed("a")
    found = reply.json()["error"]
    assert (reply.status_code, found["code"], found["type"]) == (status, code, "server_error")
    if status == 503:
        assert f"{type(error).__name__}: {error}" in found["message"]
    else:
        assert "a bug" not in found["message"]
    assert ("retry-after" in reply.headers) == (
        code in ("overloaded", "compile_error", "store_error")
    )


def test_an_answer_that_takes_too_long_is_504(site: Site) -> None:
    site.hurry()
    site.backend.seconds = 5
    reply = site.embed("a")
    assert reply.status_code == 504
    assert "0.2 s" in reply.json()["error"]["message"]


def test_unknown_paths_and_methods_are_told_in_the_paths_shape(site: Site) -> None:
    assert site("GET", "/v1/nothing").json()["error"]["code"] == "not_found"
    assert site("GET", "/v1/embeddings").status_code == 405
    assert isinstance(site("GET", "/v2/nothing").json()["error"], str)


def test_models_are_listed(site: Site) -> None:
    (row,) = site("GET", "/v1/models").json()["data"]
    assert (row["id"], row["object"]) == ("tiny", "model")
    assert site("GET", "/v1/models/tiny").json() == row
    assert site("GET", "/v1/models/other").status_code == 404


def test_oip_tells_health_and_metadata(site: Site) -> None:
    assert site("GET", "/v2").json()["name"] == "rlx-ray"
    assert site("GET", "/v2/health/live").status_code == 200
    assert site("GET", "/v2/health/ready").json() == {"ready": True}
    assert site("GET", "/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert site("GET", "/v2/models/other/ready").status_code == 404
    found = site("GET", "/v2/models/tiny").json()
    assert {t["name"]: t["shape"] for t in found["inputs"]}["input_ids"] == [-1, -1]
    assert found["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, HIDDEN]}]


def test_a_language_model_is_ready_like_any_other(site: Site) -> None:
    text_model = ServedTextModel("tiny", 8, frozenset(), None, None, ("cpu",), (), None)
    site.service.models, site.service.text_models = {}, {"tiny": text_model}
    assert site("GET", "/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    site.availability.note({"cpu": "its executor is starting"})
    assert site("GET", "/v2/models/tiny/ready").json() == {"name": "tiny", "ready": False}
    assert site("GET", "/v2/health/ready").status_code == 503


def test_a_model_whose_executor_does_not_answer_is_not_ready(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlx_serve.gateway.service._ASK_S", 0.01)
    site.answers = False
    assert site("GET", "/v2/models/tiny/ready").status_code == 503
    assert site("GET", "/v2/health/ready").json() == {"ready": False}


def test_oip_takes_flat_and_nested_data_with_a_mask_or_lengths(site: Site) -> None:
    nested = ids([[2, 9, 3], [2, 3, 0]], [2, 3])
    flat = ids([2, 9, 3, 2, 3, 0], [2, 3], datatype="INT32")
    mask = ids([[1, 1, 1], [1, 1, 0]], [2, 3], name="attention_mask")
    lengths = ids([3, 2], [2], name="lengths")
    replies = [
        site.infer(tensor, other, id="7", outputs=[{"name": "embedding"}]).json()
        for tensor in (nested, flat)
        for other in (mask, lengths)
    ]
    assert all(reply == replies[0] for reply in replies)
    (output,) = replies[0]["outputs"]
    assert output["shape"] == [2, HIDDEN]
    assert (output["data"][0], output["data"][HIDDEN]) == (3, 2)
    assert (replies[0]["id"], replies[0]["model_name"]) == ("7", "tiny")


def test_oip_hands_token_types_on(site: Site) -> None:
    assert site.infer(ids([2, 9, 3]), ids([0, 1, 1], name="token_type_ids")).status_code == 200
    assert site.backend.inputs[0]["token_type_ids"][0, :4].tolist() == [0, 1, 1, 0]


BAD_INFER: list[tuple[list[dict[str, object]], str]] = [
    ([], "'input_ids' is missing"),
    ([ids([2, 3]), ids([2, 3])], "appears twice"),
    ([ids([2, 3], name="ids")], "'ids' is not known"),
    ([ids([2, 3], datatype="FP32")], "'FP32' is not taken"),
    ([ids([2, 3], [2, 2])], "[2, 2] does not fit 2"),
    ([ids([2, 3], [-1, -2])], "does not fit"),
    ([ids([2, 3], [2])], "two dimensions"),
    ([ids([[2, 3], [2]], [2, 2])], "ragged"),
    ([ids([[2, 3], 2], [2, 2])], "ragged"),
    ([ids([2, 3.5])], "no whole numbers"),
    ([ids([2, True])], "no whole numbers"),
    ([ids(["2", 3])], "no whole numbers"),
    ([ids([10**12, 3], datatype="INT32")], "does not fit INT32"),
    ([ids([2, 999])], "token id 999"),
    ([ids([], [0, 4])], "empty list"),
    ([ids([], [1, 0])], "has 0 tokens"),
    ([ids([2, 3]), ids([1], [1, 1], name="attention_mask")], "has shape [1, 1]"),
    ([ids([2, 3]), ids([0, 1], name="attention_mask")], "ones followed by zeros"),
    ([ids([2, 3]), ids([3], [1], name="lengths")], "has 3 tokens"),
    ([ids([2, 3]), ids([0], [1], name="lengths")], "has 0 tokens"),
    ([ids([2, 3]), ids([2], [1], name="lengths"), ids([1, 1], name="attention_mask")], "both"),
    ([ids([2, 3]), ids([0, 7], name="token_type_ids")], "token type 7"),
    ([{"name": "input_ids"}], "shape is missing"),
]


@pytest.mark.parametrize(("inputs", "said"), [*BAD_INFER])
def test_a_clients_mistake_is_told_in_oips_shape(
    site: Site, inputs: list[dict[str, object]], said: str
) -> None:
    reply = site.infer(*inputs)
    assert reply.status_code == 400, reply.text
    assert said in reply.json()["error"]
    assert not site.backend.inputs


def test_an_unknown_output_is_refused(site: Site) -> None:
    assert site.infer(ids([2, 3]), outputs=[{"name": "logits"}]).status_code == 400


ENGINE = ("model", "replica", "state", "cache_bytes")


def test_variants_are_listed_with_the_replicas_that_hold_them(site: Site) -> None:
    answer = site("GET", "/variants").json()
    rows = answer["rows"]
    names = {"model", "target", "variant", "cache_key", "digest", "status", "reason", "seconds"}
    assert len(rows) == 4
    assert all(names | {"bytes", "error", "replicas"} <= set(row) for row in rows)
    assert {row["status"] for row in rows} == {"missing"}
    assert [len(row["replicas"]) for row in rows] == [1, 0, 0, 0]
    engine = dict(zip(ENGINE, ("talk", "cpu/replica-1", "loaded", 640), strict=True))
    assert answer["engines"] == [engine]


def test_a_length_that_is_not_named_fits_the_cache() -> None:
    template = SimpleNamespace(render=lambda messages: "hi")
    tokenizer = SimpleNamespace(encode=lambda text, special=True: [1, 2])
    text_model = ServedTextModel("s", 8, frozenset(), tokenizer, template, (), (), None)
    body = {"model": "s", "messages": [{"role": "user", "content": "hi"}]}
    for fields, most in (({}, None), ({"max_tokens": 6}, 6), ({"max_completion_tokens": 5}, 5)):
        job = completions.chat(text_model, completions.ChatBody(**body, **fields))
        assert [request.max_tokens for request in job.requests] == [most]
    with pytest.raises(RequestError, match=r"max_tokens is 7, .* leave 6 of the context of 8"):
        completions.chat(text_model, completions.ChatBody(**body, max_tokens=7))


def test_the_page_lists_the_variants(site: Site) -> None:
    reply = site("GET", "/")
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.text.count("<tr>") == 1 + 4 + 1 + 1
    assert "encoder:b4:s16" in reply.text
    assert "<td>talk</td><td>cpu/replica-1</td><td>loaded</td><td>640</td>" in reply.text


def test_the_page_escapes_what_it_prints(site: Site) -> None:
    from rlx_serve.http.page import page

    row = {**json.loads(site("GET", "/variants").text)["rows"][0], "model": "<script>"}
    assert "<script>" not in page([row], [dict.fromkeys(ENGINE, "<script>")])


def test_a_config_of_another_folder_gives_the_same_digests(tmp_path: Path) -> None:
    config = write_config(tmp_path, [tiny_model(tmp_path, "tiny", 1)])
    rows = open_table(config).rows
    again = open_table(load(config.path)).rows
    assert [r.route for r in rows] == [r.route for r in again]
