"""Text generation over HTTP: the official client, streams, bad input, dropped clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from ray import serve

from rlx_ray.engine.sampling import Sampling
from rlx_ray.inference.text_model import TextModel
from rlx_ray.job.compile_miss import load as open_local
from rlx_serve.replica.budget import needs
from rlx_serve.table import open_table
from tests.serve.conftest import Site, deploy
from tests.support.gguf_file import TINY, gguf_bytes, tiny_tensors
from tests.support.serving import tiny_model, write_config

LETTERS = [chr(c) for c in range(33, 127)] + ["Ġ"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}"
    "{% endif %}{% if m.role == 'escape' %}{{ m.__class__.__mro__ }}{% endif %}"
    "{{ m.role[0] }}>{{ m.content }}{% endfor %}a>"
)


def write_model(folder: Path) -> dict[str, object]:
    """A tiny Llama with a byte-level tokenizer and a chat template."""
    tokens = ["<s>", "</s>", *LETTERS]
    metadata = {
        **TINY,
        "llama.context_length": 512,
        "llama.attention.sliding_window": 64,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * len(LETTERS),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": TEMPLATE,
    }
    metadata["tokenizer.ggml.tokens"] = [*tokens, "ab"]
    metadata["tokenizer.ggml.token_type"] = [3, 3] + [1] * (len(LETTERS) + 1)
    rows = [
        (name, 0, a.shape, a.tobytes())
        for name, a in tiny_tensors(5, vocab=len(tokens) + 1).items()
    ]
    (folder / "tiny.gguf").write_bytes(gguf_bytes(metadata, rows))
    matrix = [
        {"phase": "prefill", "batch": 1, "seq": [16, 64]},
        {"phase": "prefill", "batch": 1, "seq": 64, "past_seq": 448},
        {"phase": "decode", "batch": [1, 4], "seq": 1, "past_seq": 511},
    ]
    source = str(folder / "tiny.gguf")
    return {
        "name": "talk",
        "family": "llama",
        "source": source,
        "mode": "lazy",
        "matrix": matrix,
    }


@pytest.fixture(scope="module")
def site(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("texts")
    talk = write_model(folder)
    short = [
        {"phase": "prefill", "batch": 1, "seq": 16},
        {"phase": "decode", "batch": 1, "seq": 1, "past_seq": 63},
    ]
    models = [talk, tiny_model(folder, "ann", 1), {**talk, "name": "chat", "matrix": short}]
    cache = 180 << 10  # too few pages for 512 tokens, were it not for the window
    serving = {"kv_cache_bytes": cache, "warm": ["chat"]}
    table = open_table(write_config(folder, models, **serving))
    need = needs(write_config(folder, models, **serving), table, table.all_targets[0])[0]
    # Too few bytes for two engines, with their caches and weights.
    most = 2 * (need.weights + cache) - cache // 2
    config = write_config(folder, models, max_slot_bytes=most, **serving)
    yield deploy(config, "texts", port)
    serve.delete("texts")


@pytest.fixture(scope="module")
def client(site: Site) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def local(site: Site) -> Iterator[TextModel]:
    store = replace(site.config.store, cache_dir=f"{site.config.store.cache_dir}-local")
    model = open_local(replace(site.config, store=store), "talk")
    made = TextModel(model, 4 << 20)
    yield made
    made.close()
    model.close()


def engines(site: Site) -> dict[str, int]:
    """The bytes of each loaded engine's cache, as `/variants` shows them."""
    with site.client as http:
        found = http.get("/variants").json()["engines"]
    return {
        engine["model"]: engine["cache_bytes"] for engine in found if engine["state"] == "loaded"
    }


def test_models_of_both_kinds_are_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["talk", "ann", "chat"]


def test_a_warm_model_has_its_engine_before_the_first_request(site: Site) -> None:
    found = engines(site)
    assert list(found) == ["chat"]
    assert 90 << 10 < found["chat"] <= 180 << 10


def until_refused(ask: Callable[[], str]) -> openai.InternalServerError:
    """Ask until others hold the memory for longer than a request waits."""
    while True:
        try:
            ask()
        except openai.InternalServerError as error:
            return error


def test_models_without_room_for_both_take_turns(site: Site, client: openai.OpenAI) -> None:
    def ask(model: str) -> str:
        answer = client.completions.create(model=model, prompt="hello", max_tokens=9, temperature=0)
        return answer.choices[0].text

    said = ask("chat")
    assert ask("talk") == said, "one file, and one way to say it"
    body = {"model": "talk", "prompt": "go on", "max_tokens": 480, "logit_bias": {"1": -100}}

    def generate(_: int) -> httpx.Response:
        with site.client as http:
            return http.post("/v1/completions", json={**body, "n": 4}, timeout=120)

    with ThreadPoolExecutor(6) as pool:  # 24 streams, four at a time
        running = [pool.submit(generate, i) for i in range(6)]
        caught = until_refused(lambda: ask("chat"))
        assert not all(one.done() for one in running)
        assert caught.status_code == 503
        assert caught.code == "overloaded"
        assert caught.response.headers["retry-after"] == "1"
        assert "leaves no room for model 'chat'" in caught.message
        assert ask("talk") == said
        for one in running:
            assert one.result().status_code == 200, one.result().text
            choices = one.result().json()["choices"]
            assert [c["finish_reason"] for c in choices] == ["length"] * 4, "none is cut"
    ends = time.monotonic() + 30
    while True:
        try:
            assert ask("chat") == said
            break
        except openai.InternalServerError:  # until the streams have left
            assert time.monotonic() < ends
            time.sleep(0.1)
    while list(engines(site)) != ["chat"]:  # replicas report what changes
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_a_completion_is_what_the_model_says_in_process(
    client: openai.OpenAI, local: TextModel
) -> None:
    raw = client.completions.with_raw_response.create(
        model="talk", prompt="hello world", max_tokens=40, temperature=0
    )
    answer = raw.parse()
    want = local.generate(local.model.tokenizer.encode("hello world"), 40)
    assert answer.choices[0].text == want.text
    assert answer.choices[0].finish_reason == want.finish
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 11
    assert answer.usage.completion_tokens == len(want.token_ids)
    variants = raw.headers["x-rlx-variant"].split(", ")
    assert variants[0] == "prefill:b1:s16"
    assert variants[1:]
    assert all(v.startswith("decode:") for v in variants[1:])
    assert len(raw.headers["x-rlx-cache-key"].split(", ")) == len(variants)


def test_a_stream_has_the_same_text_and_ends_with_the_usage(client: openai.OpenAI) -> None:
    asked = {"model": "talk", "max_tokens": 30, "seed": 3, "temperature": 1.0}
    messages = [{"role": "user", "content": "Tell me"}]
    whole = client.chat.completions.create(messages=messages, **asked)
    chunks = list(
        client.chat.completions.create(
            messages=messages, stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    parts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(parts) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_several_choices_stops_and_logprobs(client: openai.OpenAI) -> None:
    asked = {"model": "talk", "prompt": ["abc", "xyz"], "max_tokens": 20, "seed": 1}
    answer = client.completions.create(n=2, logprobs=3, **asked)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    texts = [c.text for c in answer.choices]
    assert texts[0] != texts[1]
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs is not None
    assert all(p <= 0 for p in found.token_logprobs)
    assert all(len(top) == 3 for top in found.top_logprobs or [])
    letter = next(c for c in texts[0][3:] if c in LETTERS)
    again = client.completions.create(n=2, stop=letter, **asked)
    assert again.choices[0].text == texts[0].partition(letter)[0]
    assert again.choices[0].finish_reason == "stop"


BAD = [
    ({"temperature": -1}, "temperature is -1"),
    ({"temperature": 1e9}, "temperature is 1000000000"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    ({"n": 0}, "n is 0"),
    ({"n": 17}, "n is 17"),
    ({"max_tokens": 0}, "max_tokens is 0"),
    ({"max_tokens": 600}, "600, but the prompt's 2 tokens leave 510 of the context of 512"),
    ({"prompt": "x" * 600}, "the prompt has 600 tokens, the context of 'talk' is 512"),
    ({"prompt": []}, "prompt is neither"),
    ({"prompt": [[1], "a"]}, None),
    ({"prompt": [1, 5000]}, "token 5000"),
    ({"prompt": ""}, "no tokens"),
    ({"logit_bias": {"a": 1}}, "logit_bias has a key"),
    ({"logit_bias": {"9999": 1}}, "token 9999"),
    ({"stop": ["a"] * 17}, "stop has 17"),
    ({"logprobs": 99}, "logprobs is 99"),
    ({"echo": True}, "echo is True"),
    ({"best_of": 4}, "best_of is 4"),
    ({"model": "ann"}, "makes embeddings"),
    ({"stream": "yes"}, "stream"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=str)
def test_a_clients_mistake_is_a_400_that_says_so(site: Site, change: dict, message: str) -> None:
    body = {"model": "talk", "prompt": "hi", "max_tokens": 4, **change}
    with site.client as http:
        for stream in {False, body.get("stream") is None}:
            answer = http.post("/v1/completions", json={"stream": stream, **body})
            if message is None:
                assert answer.status_code == 200
                continue
            assert answer.status_code == 400, answer.text
            assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty list"),
        ([{"role": "user"}], r"messages[0].content"),
        ([{"content": "a"}], r"messages[0].role"),
        ([{"role": "bad", "content": "a"}], "no such role"),
        ([{"role": "escape", "content": "a"}], "chat template does not take"),
    ],
    ids=str,
)
def test_messages_that_cannot_be_taken(site: Site, messages: list, message: str) -> None:
    with site.client as http:
        answer = http.post("/v1/chat/completions", json={"model": "talk", "messages": messages})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_embedding_with_a_language_model_is_refused(site: Site) -> None:
    answer = site.embed("talk", "a")
    assert answer.status_code == 400
    assert "/v1/chat/completions" in answer.json()["error"]["message"]


def test_dropped_streams_stop_costing_anything(site: Site, client: openai.OpenAI) -> None:
    def drop(_: int) -> None:
        body = {"model": "talk", "prompt": "go on", "max_tokens": 480, "stream": True}
        with (
            httpx.Client(base_url=site.url, timeout=60) as http,
            http.stream("POST", "/v1/completions", json={**body, "logit_bias": {"1": -100}}) as got,
        ):
            assert got.status_code in (200, 503)
            next(got.iter_bytes(), b"")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(drop, range(100)))
    begun = last = time.monotonic()
    while time.monotonic() - begun < 20:  # 48,000 tokens take longer
        client.completions.create(model="talk", prompt="a", max_tokens=1)
        before, last = last, time.monotonic()
        if last - before < 1:
            return
    pytest.fail("streams that nobody reads are still running")


def test_many_streams_at_once_say_what_each_says_alone(client: openai.OpenAI) -> None:
    def ask(i: int) -> str:
        answer = client.completions.create(
            model="talk", prompt=f"text {i % 6}", max_tokens=24, temperature=0
        )
        return answer.choices[0].text

    alone = [ask(i) for i in range(6)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(24)))
    assert together == alone * 4


def test_greedy_and_sampled_agree_with_the_engine(client: openai.OpenAI, local: TextModel) -> None:
    answer = client.completions.create(
        model="talk", prompt="seeded", max_tokens=20, temperature=0.7, top_p=0.9, seed=11
    )
    how = Sampling(temperature=0.7, top_p=0.9, seed=11)
    want = local.generate(local.model.tokenizer.encode("seeded"), 20, how)
    assert answer.choices[0].text == want.text
