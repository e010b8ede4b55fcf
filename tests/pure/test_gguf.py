"""GGUF files: what is read, and what is refused with a reason."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from rlx_ray.checkpoint import folder
from rlx_ray.checkpoint.checkpoint import open_checkpoint
from rlx_ray.checkpoint.tokenizer import Tokenizer
from rlx_ray.errors import CheckpointError, ConfigError, RlxError
from tests.support.gguf_file import TINY, gguf_bytes, tiny_gguf, tiny_tensors

ROOT = Path(__file__).parent.parent.parent
Q4_0, UNKNOWN = 2, 99


def opened(tmp_path: Path, data: bytes):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return open_checkpoint(str(path))


def test_metadata_and_tensors_are_what_was_written(tmp_path: Path) -> None:
    found = opened(tmp_path, tiny_gguf({"general.name": "näme", "x.flag": True}))
    metadata = json.loads(found.text("gguf.json") or "")
    assert metadata["general.name"] == "näme"
    assert metadata["x.flag"] is True
    assert metadata["llama.block_count"] == 2
    for name, array in tiny_tensors().items():
        assert found.tensors[name].scheme is None
        np.testing.assert_array_equal(found.tensors[name].f32(), array)
    assert found.text("config.json") is None


def test_half_and_packed_tensors_come_as_float32(tmp_path: Path) -> None:
    half = np.array([[1.5, -2.0]], np.float16)
    brain = np.array([[0x3FC0, 0xC000]], np.uint16)
    packed = np.float16(0.5).tobytes() + bytes([0x98] * 16)
    data = gguf_bytes(
        {"a": 1},
        [
            ("h", 1, (1, 2), half.tobytes()),
            ("b", 30, (1, 2), brain.tobytes()),
            ("q", Q4_0, (1, 32), packed),
        ],
    )
    tensors = opened(tmp_path, data).tensors
    assert tensors["h"].f32().tolist() == [[1.5, -2.0]]
    assert tensors["b"].f32().tolist() == [[1.5, -2.0]]
    assert tensors["q"].f32().tolist() == [[0.0] * 16 + [0.5] * 16]
    assert tensors["q"].scheme is not None
    assert tensors["q"].read().tobytes() == packed


def test_two_files_of_one_folder_have_stamps_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SETTLED_S", 0.0)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(tiny_gguf())
    one, two = (open_checkpoint(str(tmp_path / name)) for name in ("a.gguf", "b.gguf"))
    assert one.stamp != two.stamp
    assert one.stamp == one.stamp_now()
    assert one.tensor_digests(one.tensors) == two.tensor_digests(two.tensors)
    (tmp_path / "b.gguf").write_bytes(tiny_gguf(seed=1))
    assert two.stamp_now() != two.stamp


ONE = [("t", 0, (4,), bytes(16))]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (b"PK\x03\x04" + bytes(40), r"no GGUF file: it begins with b'PK"),
        (gguf_bytes({"a": 1}, ONE, version=1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "version 50331648"),
        (gguf_bytes({"a": 1}, ONE)[:60], "cut off"),
        (gguf_bytes({"a": 1}, ONE)[:-17], "'t' ends at byte"),
        (gguf_bytes({}, [("t", UNKNOWN, (4,), bytes(16))]), "'t' has GGML type 99"),
        (gguf_bytes({}, [("t", Q4_0, (31,), bytes(18))]), "rows of 31"),
        (gguf_bytes({}, [("t", 0, (1,) * 5, bytes(4))]), "5 dimensions"),
        (gguf_bytes({"general.alignment": 24}, ONE), "alignment is 24"),
        (gguf_bytes({}, ONE * 2), "one name"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "cut off"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, data)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file 'x\.gguf'"):
        open_checkpoint(str(tmp_path / "x.gguf"))


def test_damaged_files_raise_nothing_but_our_errors(tmp_path: Path) -> None:
    whole = bytearray(gguf_bytes({**TINY, **BPE}, ONE))
    rng = random.Random(5)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data
        with contextlib.suppress(RlxError):
            opened(tmp_path, bytes(data))


LETTERS = [chr(c) for c in range(33, 127)] + ["Ġ"]
BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<s>", *LETTERS, "he", "hel"],
    "tokenizer.ggml.token_type": [3] + [1] * (len(LETTERS) + 2),
    "tokenizer.ggml.merges": ["h e", "he l"],
    "tokenizer.ggml.bos_token_id": 0,
}


def test_the_tokenizer_is_made_of_the_lists(tmp_path: Path) -> None:
    text = opened(tmp_path, gguf_bytes({**TINY, **BPE}, ONE)).text("tokenizer.json")
    assert text is not None
    tokenizer = Tokenizer(text, 64)
    ids = {token: i for i, token in enumerate(["<s>", *LETTERS, "he", "hel"])}
    (encoded,) = tokenizer.encode_batch(["hello<s>"])
    assert list(encoded.ids) == [ids["hel"], ids["l"], ids["o"], 0]
    bos = gguf_bytes({**TINY, **BPE, "tokenizer.ggml.add_bos_token": True}, ONE)
    (encoded,) = Tokenizer(opened(tmp_path, bos).text("tokenizer.json") or "", 64).encode_batch(
        ["a"]
    )
    assert encoded.ids[0] == 0


@pytest.fixture(scope="module")
def spm() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model with byte fallback, trained on this project's design."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter((ROOT / "DESIGN.md").read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def spm_metadata(spm: sentencepiece.SentencePieceProcessor) -> dict[str, object]:
    kinds = [
        (spm.IsUnknown, 2),
        (spm.IsControl, 3),
        (spm.IsByte, 6),
    ]
    count = range(spm.GetPieceSize())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [spm.IdToPiece(i) for i in count],
        "tokenizer.ggml.scores": [spm.GetScore(i) for i in count],
        "tokenizer.ggml.token_type": [next((n for f, n in kinds if f(i)), 1) for i in count],
        "tokenizer.ggml.unknown_token_id": spm.unk_id(),
        "tokenizer.ggml.bos_token_id": spm.bos_id(),
    }


def test_sentencepiece_vocabularies_encode_as_sentencepiece(
    tmp_path: Path, spm: sentencepiece.SentencePieceProcessor
) -> None:
    data = gguf_bytes({**TINY, **spm_metadata(spm)}, ONE)
    tokenizer = Tokenizer(opened(tmp_path, data).text("tokenizer.json") or "", None)
    texts = ["hello world", "  two spaces", "naïve 漢字 🙂", "x\ny", "2026", "", "the the the a"]
    texts += (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for text in texts:
        want = [spm.bos_id(), *spm.Encode(text)]
        if text:
            assert tokenizer.encode(text) == want, text
            assert tokenizer.decode(want[1:]) == " " + text


def test_sentencepiece_without_scores_is_refused(
    tmp_path: Path, spm: sentencepiece.SentencePieceProcessor
) -> None:
    data = gguf_bytes({**TINY, **spm_metadata(spm), "tokenizer.ggml.scores": [1]}, ONE)
    with pytest.raises(CheckpointError, match="scores are not one number"):
        opened(tmp_path, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "model 'bert'"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre 'tekken'"),
    ],
)
def test_unknown_tokenizers_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, gguf_bytes({**TINY, **BPE, **change}, ONE))


def test_torn_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="token types"):
        opened(tmp_path, gguf_bytes({**TINY, **BPE, "tokenizer.ggml.token_type": [1]}, ONE))
    with pytest.raises(CheckpointError, match="merges is no list"):
        opened(tmp_path, gguf_bytes({**TINY, **BPE, "tokenizer.ggml.merges": 3}, ONE))
