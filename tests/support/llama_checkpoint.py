"""A tiny Llama checkpoint with random weights, as transformers would save it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support.tiny import safetensors_bytes, write_bpe

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "eos_token_id": 2,
}


def llama_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint with tied embeddings, and their shapes."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)
    wide, narrow = heads * dim, config["num_key_value_heads"] * dim
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (wide, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, wide),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in parts.items()}
    return shapes


def write_tiny_llama(folder: Path, seed: int = 0) -> None:
    """Write the whole folder, with a byte-level tokenizer."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in llama_shapes(CONFIG).items():
        spread = 1.5 / shape[-1] ** 0.5 if len(shape) == 2 else 0.2
        mean = 0.0 if len(shape) == 2 else 1.0
        tensors[name] = (mean + spread * rng.standard_normal(shape)).astype(np.float32)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    write_bpe(folder, CONFIG["vocab_size"])
