"""A tiny Llama with random weights, and what float64 says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx_ray.compiler.cpu.lir import Lir
from rlx_ray.compiler.cuda.launches import Launches
from rlx_ray.weights.rope import cos_sin
from tests.support import llama_reference
from tests.support.programs import random_params

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "window": {"window": 20},
    "one head of keys": {"heads": 8, "kv_heads": 1, "dim": 16},
    "as many heads": {"heads": 2, "kv_heads": 2},
}
"""Kinds of the family, as changes of `programs.TINY_LLAMA`."""


def tiny_params(program: Lir | Launches, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters of a program by name, matrices (K, N); gains are about 1 or 2."""
    made = random_params(program)
    for name in made:
        if "norm" in name:
            made[name] += 1
    made["rope.cos_sin"] = cos_sin(config["positions"], config["dim"], config["rope"])
    return made


def oracle_logits(
    params: Mapping[str, np.ndarray], config: Mapping[str, Any], ids: Sequence[int]
) -> np.ndarray:
    """Logits of every position in float64."""
    names = {"embed.word": "token_embd.weight", "norm.weight": "output_norm.weight"}
    t = {names[k]: v for k, v in params.items() if k in names}
    t["output.weight"] = params["head.weight"].T
    width = [config[k] * config["dim"] for k in ("heads", "kv_heads", "kv_heads")]
    for i in range(config["layers"]):
        own = {k.removeprefix(f"layer.{i}."): v for k, v in params.items() if f".{i}." in k}
        base = f"blk.{i}."
        for part, kind in (("weight", 1), ("bias", 0)):
            if f"qkv.{part}" in own:
                cut = np.split(own[f"qkv.{part}"], np.cumsum(width)[:2], axis=kind)
                t |= {f"{base}attn_{n}.{part}": c.T for n, c in zip("qkv", cut, strict=True)}
        for n in ("q", "k"):
            if f"{n}_norm.weight" in own:
                t[f"{base}attn_{n}_norm.weight"] = own[f"{n}_norm.weight"]
        t |= {
            f"{base}attn_norm.weight": own["norm1.weight"],
            f"{base}attn_output.weight": own["out.weight"].T,
            f"{base}ffn_norm.weight": own["norm2.weight"],
            f"{base}ffn_gate.weight": own["gate.weight"].T,
            f"{base}ffn_up.weight": own["up.weight"].T,
            f"{base}ffn_down.weight": own["down.weight"].T,
        }
    return llama_reference.logits(t, {**config, "theta": 1000.0}, ids)
