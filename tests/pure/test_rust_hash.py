"""The hasher against a plain SipHash-1-3 and against keys that Rust printed."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rlx_ray.component.rust_hash import U32, U64, RustHasher

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "rlx_keys.json").read_text())


def _rotate(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & U64


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & U64
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 = (v2 + v3) & U64
    v3 = _rotate(v3, 16) ^ v2
    v0 = (v0 + v3) & U64
    v3 = _rotate(v3, 21) ^ v0
    v2 = (v2 + v1) & U64
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def siphash13(data: bytes) -> int:
    """SipHash with one round a word and three at the end, zero key, as the paper defines it."""
    names = (b"somepseu", b"dorandom", b"lygenera", b"tedbytes")
    state = tuple(int.from_bytes(name, "big") for name in names)
    tail = bytes(7 - len(data) % 8) + bytes([len(data) % 256])
    padded = data + tail
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v0, v1, v2, v3 = _round(state[0], state[1], state[2], state[3] ^ word)
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = state[0], state[1], state[2] ^ 0xFF, state[3]
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def test_the_plain_siphash_agrees_with_rust_on_the_preset_names() -> None:
    for name, key in GOLDEN["preset_profile_keys"].items():
        assert f"{siphash13(name.encode() + bytes([0xFF])):016x}" == key


WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("u8"), st.integers(0, 255)),
        st.tuples(st.just("u32"), st.integers(0, U32)),
        st.tuples(st.just("u64"), st.integers(0, U64)),
        st.tuples(st.just("text"), st.text(max_size=40)),
    ),
    max_size=12,
)
SIZES = {"u8": 1, "u32": 4, "u64": 8}


@given(WRITES)
def test_writes_hash_as_one_stream_of_little_endian_bytes(
    writes: list[tuple[str, int | str]],
) -> None:
    hasher = RustHasher()
    stream = b""
    for method, value in writes:
        getattr(hasher, method)(value)
        if isinstance(value, str):
            stream += value.encode("utf-8") + b"\xff"
        else:
            stream += value.to_bytes(SIZES[method], "little")
    assert hasher.finish() == siphash13(stream)


def test_finish_can_be_asked_twice_and_in_between() -> None:
    hasher = RustHasher()
    hasher.u64(1)
    first = hasher.finish()
    assert hasher.finish() == first
    hasher.u64(2)
    whole = RustHasher()
    whole.u64(1)
    whole.u64(2)
    assert hasher.finish() == whole.finish() != first
