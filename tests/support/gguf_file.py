"""A GGUF writer for tests: small files, well-formed or damaged."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

STRING, ARRAY = 8, 9
TYPES = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q")}


def text(value: str) -> bytes:
    """A string as GGUF writes it."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, value: object) -> bytes:
    """A metadata entry; numbers are u32 or f32, lists hold strings, f32 or i32."""
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            body = struct.pack("<IQ", STRING, len(value)) + b"".join(text(v) for v in value)
        elif value and isinstance(value[0], float):
            body = struct.pack("<IQ", 6, len(value)) + struct.pack(f"<{len(value)}f", *value)
        else:
            body = struct.pack("<IQ", 5, len(value)) + b"".join(struct.pack("<i", v) for v in value)
        return text(key) + struct.pack("<I", ARRAY) + body
    if isinstance(value, str):
        return text(key) + struct.pack("<I", STRING) + text(value)
    name = "bool" if isinstance(value, bool) else "u32" if isinstance(value, int) else "f32"
    number, form = TYPES[name]
    return text(key) + struct.pack("<I", number) + struct.pack(form, value)


def gguf_bytes(
    metadata: Mapping[str, object],
    tensors: Sequence[tuple[str, int, tuple[int, ...], bytes]],
    version: int = 3,
) -> bytes:
    """A whole file; a tensor is (name, GGML type, row-major shape, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(entry(k, v) for k, v in metadata.items())
    at, infos, bodies = 0, b"", b""
    for name, kind, shape, data in tensors:
        infos += text(name) + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", n) for n in reversed(shape))
        infos += struct.pack("<IQ", kind, at)
        padded = data + bytes(-len(data) % 32)
        bodies, at = bodies + padded, at + len(padded)
    head += infos
    return head + bytes(-len(head) % 32) + bodies


TINY = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.feed_forward_length": 40,
    "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def tiny_tensors(seed: int = 0, vocab: int = 50) -> dict[str, np.ndarray]:
    """Float32 tensors of a tiny Llama by their GGUF names, shapes row-major."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    made = {"token_embd.weight": normal(vocab, 32), "output_norm.weight": 1 + normal(32)}
    for i in range(2):
        base = f"blk.{i}."
        made |= {
            f"{base}attn_norm.weight": 1 + normal(32),
            f"{base}attn_q.weight": normal(32, 32),
            f"{base}attn_k.weight": normal(16, 32),
            f"{base}attn_v.weight": normal(16, 32),
            f"{base}attn_output.weight": normal(32, 32),
            f"{base}ffn_norm.weight": 1 + normal(32),
            f"{base}ffn_gate.weight": normal(40, 32),
            f"{base}ffn_up.weight": normal(40, 32),
            f"{base}ffn_down.weight": normal(32, 40),
        }
    return made


def tiny_gguf(metadata: Mapping[str, object] | None = None, seed: int = 0) -> bytes:
    """A tiny Llama as a float32 GGUF file."""
    rows = [(name, 0, a.shape, a.tobytes()) for name, a in tiny_tensors(seed).items()]
    return gguf_bytes({**TINY, **(metadata or {})}, rows)
