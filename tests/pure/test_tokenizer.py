from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlx_ray.checkpoint.checkpoint import open_checkpoint
from rlx_ray.checkpoint.tokenizer import Tokenizer
from rlx_ray.errors import CheckpointError, ConfigError
from tests.support.needs import needs_minilm
from tests.support.tiny import tiny_vocab, write_tiny_bert

GOLDEN = Path(__file__).parents[1] / "golden" / "minilm.json"


@pytest.fixture
def tiny_text(tmp_path: Path) -> str:
    write_tiny_bert(tmp_path)
    return (tmp_path / "tokenizer.json").read_text(encoding="utf-8")


def real(max_length: int) -> Tokenizer:
    text = open_checkpoint(needs_minilm()).text("tokenizer.json")
    assert text is not None
    return Tokenizer(text, max_length)


def test_minilm_gives_the_token_ids_of_transformers() -> None:
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    encoded = real(256).encode_batch([case["text"] for case in cases])
    assert [list(one.ids) for one in encoded] == [case["input_ids"] for case in cases]
    assert not any(one.truncated for one in encoded)
    assert all(set(one.type_ids) == {0} for one in encoded)


def test_minilm_is_not_truncated_at_the_128_of_its_file() -> None:
    short, long = real(256).encode_batch(["a", "word " * 200])
    assert len(short.ids) == 3
    assert len(long.ids) == 202
    assert not long.truncated


def test_truncation_keeps_the_special_tokens_at_both_ends() -> None:
    (cut,) = real(256).encode_batch(["word " * 300])
    assert cut.truncated
    assert len(cut.ids) == 256
    assert (cut.ids[0], cut.ids[-1]) == (101, 102)
    assert set(cut.ids[1:-1]) == {2773}


def test_a_text_of_exactly_the_limit_is_not_truncated(tiny_text: str) -> None:
    fits, over = Tokenizer(tiny_text, 10).encode_batch(["fox " * 8, "fox " * 9])
    assert (len(fits.ids), fits.truncated) == (10, False)
    assert (len(over.ids), over.truncated) == (10, True)
    assert fits.ids == over.ids


def test_an_empty_text_is_only_special_tokens(tiny_text: str) -> None:
    vocab = tiny_vocab(120)
    (one,) = Tokenizer(tiny_text, 8).encode_batch([""])
    assert one.ids == (vocab["[CLS]"], vocab["[SEP]"])
    assert one.type_ids == (0, 0)
    assert Tokenizer(tiny_text, 8).encode_batch([]) == []


def test_the_tiny_tokenizer_splits_unknown_words_into_pieces(tiny_text: str) -> None:
    vocab = tiny_vocab(120)
    tokenizer = Tokenizer(tiny_text, 48)
    (one,) = tokenizer.encode_batch(["The fig7"])
    pieces = ["[CLS]", "the", "f", "##i", "##g", "##7", "[SEP]"]
    assert one.ids == tuple(vocab[p] for p in pieces)
    assert tokenizer.vocab_size == 120


def test_a_limit_without_room_for_a_token_is_refused(tiny_text: str) -> None:
    with pytest.raises(ConfigError, match=r"max_length 2 .* Use at least 3"):
        Tokenizer(tiny_text, 2)


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"version": "1.0"}'])
def test_a_damaged_file_is_a_checkpoint_error(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(text, 8)
