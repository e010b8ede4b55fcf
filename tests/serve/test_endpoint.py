"""The whole way: HTTP, Ray Serve's routing, slots, native code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openai
import pytest

from rlx_ray.inference.catalog import open_model
from tests.serve.conftest import MODES, ROOT, Site
from tests.support.bert_reference import forward
from tests.support.needs import needs_minilm
from tests.support.tiny import tiny_tensors

TEXTS = ["a quick brown fox", "the dog", "ray ray ray key jumps over"]


def vectors(site: Site, model: str, value: object) -> np.ndarray:
    reply = site.embed(model, value)
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]], np.float32)


def reference(site: Site, name: str, seed: int) -> np.ndarray:
    """The float64 vectors of TEXTS."""
    (entry,) = (m for m in site.config.models if m.name == name)
    config = json.loads((Path(entry.source) / "config.json").read_text(encoding="utf-8"))
    tokens = open_model(entry).tokenizer().encode_batch(TEXTS)
    lengths = [len(t.ids) for t in tokens]
    ids = np.zeros((len(TEXTS), max(lengths)), np.int64)
    for row, one in zip(ids, tokens, strict=True):
        row[: len(one.ids)] = one.ids
    return forward(tiny_tensors(config, seed), config, ids, lengths)


def client(site: Site) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_openai_client_gets_minilms_vectors(site: Site, encoding: str) -> None:
    needs_minilm()
    golden = json.loads((ROOT / "tests/golden/minilm.json").read_text(encoding="utf-8"))["cases"]
    with client(site) as api:
        texts = [case["text"] for case in golden]
        found = api.embeddings.create(model="minilm", input=texts, encoding_format=encoding)
    rows = [row.embedding for row in found.data]
    if encoding == "base64" and isinstance(rows[0], str):
        import base64

        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    expected = np.array([case["embedding"] for case in golden])
    assert np.abs(np.array(rows) - expected).max() < 2e-6
    assert found.usage.prompt_tokens == sum(len(case["input_ids"]) for case in golden)


def test_the_openai_client_lists_models_and_sees_typed_errors(site: Site) -> None:
    with client(site) as api:
        assert {"ann", "bob", "bare"} <= {model.id for model in api.models.list()}
        with pytest.raises(openai.NotFoundError, match="the models are"):
            api.embeddings.create(model="nobody", input="a")
        with pytest.raises(openai.BadRequestError, match="empty list"):
            api.embeddings.create(model="ann", input=[])


def test_two_models_of_one_shape_answer_each_their_own(site: Site) -> None:
    for name, seed in (("ann", 1), ("bob", 2), ("ann", 1)):
        assert np.abs(vectors(site, name, TEXTS) - reference(site, name, seed)).max() < 2e-6
    rows = {name: {row["digest"] for row in site.rows(name)} for name in ("ann", "bob")}
    assert rows["ann"] == rows["bob"]


def test_a_mixed_list_runs_on_a_ragged_variant_without_padding(site: Site) -> None:
    reply = site.embed("mixed", TEXTS)
    assert reply.headers["x-rlx-variant"] == "encoder:b8:s16:x2=48"
    assert reply.headers["x-rlx-pad-waste"] == "0.0000"
    assert np.abs(vectors(site, "mixed", TEXTS) - reference(site, "mixed", 1)).max() < 2e-6
    assert site.embed("mixed", TEXTS[0]).headers["x-rlx-variant"] == "encoder:b1:s16"


@pytest.mark.parametrize(("served", "built"), [(a, b) for a in MODES for b in MODES if a != b])
def test_what_was_built_for_one_mode_is_loaded_in_every_other(
    site: Site, served: str, built: str
) -> None:
    before = site.builds()
    reply = site.embed(f"{served}-from-{built}", "a")
    assert reply.status_code == 200, reply.text
    tiers = {"eager": ("memory",)}.get(served, ("memory", "disk", "store"))
    assert reply.headers["x-rlx-tier"] in tiers
    assert site.builds() == before


def test_the_tier_says_where_a_variant_came_from(site: Site) -> None:
    tiers = [site.embed("bob", [[2, 9, 3] * 5]).headers["x-rlx-tier"] for _ in range(2)]
    assert tiers == ["compiled", "memory"]


def test_an_aot_miss_is_503_and_names_variant_key_and_command(site: Site) -> None:
    before = site.builds()
    reply = site.embed("bare", "a")
    message = reply.json()["error"]["message"]
    (row,) = (r for r in site.rows("bare") if r["variant"] == "encoder:b1:s8")
    assert reply.status_code == 503
    for part in ("encoder:b1:s8", str(row["cache_key"]), "rlx-ray prebuild", "--model bare"):
        assert part in message
    assert site.builds() == before


def test_a_damaged_artifact_is_rebuilt_in_lazy_mode(site: Site) -> None:
    before = site.builds()
    reply = site.embed("torn-lazy", "a")
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-rlx-tier"] == "compiled"
    assert site.builds() == before + 1


def test_a_damaged_artifact_is_refused_in_aot_mode(site: Site) -> None:
    before = site.builds()
    reply = site.embed("torn-aot", "a")
    assert reply.status_code == 503
    assert "altered" in reply.json()["error"]["message"]
    assert site.builds() == before


def test_oip_infers_what_the_embeddings_endpoint_embeds(site: Site) -> None:
    ids = [2, 9, 12, 3]
    tensor = {"name": "input_ids", "datatype": "INT64", "shape": [1, 4], "data": ids}
    with site.client as http:
        found = http.post("/v2/models/ann/infer", json={"inputs": [tensor]}).json()
        assert http.get("/v2/health/ready").json() == {"ready": True}
        assert http.get("/v2/nothing").json()["error"].startswith("GET ")
    row = np.array(found["outputs"][0]["data"], np.float32)
    assert np.array_equal(row, vectors(site, "ann", ids)[0])


def test_mistakes_are_told_through_the_proxy_as_without_it(site: Site) -> None:
    big = b'{"model": "ann", "input": "' + b"a" * site.config.serve.max_body_bytes + b'"}'
    with site.client as http:
        assert http.post("/v1/embeddings", content=b"\xff").status_code == 400
        assert http.post("/v1/embeddings", content=big).status_code == 413
        assert http.post("/v1/embeddings", json={"model": "ann", "input": [7.5]}).status_code == 400


def test_variants_say_which_replica_holds_them(site: Site) -> None:
    site.embed("ann", "a")
    for row in site.rows("eager-from-aot"):
        assert row["status"] == "present"
        assert [holder["state"] for holder in row["replicas"]] == ["loaded"]
    with site.client as http:
        assert "eager-from-aot" in http.get("/").text
