"""The peers of benchmarks/gpu.py: plain PyTorch modules of the same shapes, eager and compiled.

Prints a JSON line for each case as it is measured: {"case", "torch_eager", "torch_compile",
"torch_compile_warm"}, all milliseconds; the last is a second compilation from PyTorch's own caches.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import median_ms
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_models import CONFIGS

from rlx_ray.component import ModelPhase, ModelVariant

TYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


class Bert(nn.Module):
    """A BERT encoder with mean pooling and vectors of unit length."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        hidden, eps = c["hidden_size"], c["layer_norm_eps"]
        self.heads = c["num_attention_heads"]
        self.word = nn.Embedding(c["vocab_size"], hidden)
        self.position = nn.Embedding(c["max_position_embeddings"], hidden)
        self.kind = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, eps)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "qkv": nn.Linear(hidden, 3 * hidden),
                    "out": nn.Linear(hidden, hidden),
                    "norm1": nn.LayerNorm(hidden, eps),
                    "up": nn.Linear(hidden, c["intermediate_size"]),
                    "down": nn.Linear(c["intermediate_size"], hidden),
                    "norm2": nn.LayerNorm(hidden, eps),
                }
            )
            for _ in range(c["num_hidden_layers"])
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, seq = ids.shape
        places = torch.arange(seq, device=ids.device)
        x = self.norm(self.word(ids) + self.position(places) + self.kind.weight[0])
        for layer in self.layers:
            q, k, v = layer["qkv"](x).view(batch, seq, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = layer["norm1"](x + layer["out"](mixed))
            x = layer["norm2"](x + layer["down"](F.gelu(layer["up"](x))))
        return F.normalize(x.float().mean(1), dim=-1)


class Llama(nn.Module):
    """A Llama with a static cache; gives the most likely next token of each sequence."""

    def __init__(self, c: dict[str, Any], batch: int, slots: int) -> None:
        super().__init__()
        hidden, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.kv_heads = c["num_key_value_heads"]
        self.dim = c.get("head_dim", hidden // self.heads)
        self.word = nn.Embedding(c["vocab_size"], hidden)
        wide, narrow = self.heads * self.dim, self.kv_heads * self.dim
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.RMSNorm(hidden, c["rms_norm_eps"]),
                    "qkv": nn.Linear(hidden, wide + 2 * narrow, bias=False),
                    "out": nn.Linear(wide, hidden, bias=False),
                    "norm2": nn.RMSNorm(hidden, c["rms_norm_eps"]),
                    "gate_up": nn.Linear(hidden, 2 * c["intermediate_size"], bias=False),
                    "down": nn.Linear(c["intermediate_size"], hidden, bias=False),
                }
            )
            for _ in range(c["num_hidden_layers"])
        )
        self.norm = nn.RMSNorm(hidden, c["rms_norm_eps"])
        shape = (c["num_hidden_layers"], 2, batch, self.kv_heads, slots, self.dim)
        self.register_buffer("cache", torch.zeros(shape))
        steps = torch.arange(0, self.dim, 2) / self.dim
        angles = torch.outer(torch.arange(slots), c["rope_theta"] ** -steps)
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))

    def forward(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        batch, seq = ids.shape
        x = self.word(ids)
        slots = torch.arange(self.cache.shape[4], device=ids.device)
        seen = slots <= places[:, None]
        for i, layer in enumerate(self.layers):
            qkv = layer["qkv"](layer["norm1"](x)).view(batch, seq, -1, self.dim).transpose(1, 2)
            q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
            q, k = self.turned(q, places), self.turned(k, places)
            self.cache[i, 0].index_copy_(2, places, k)
            self.cache[i, 1].index_copy_(2, places, v)
            if seq > 1:  # a whole prompt sees itself alone
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            else:
                held = self.cache[i]
                mixed = F.scaled_dot_product_attention(
                    q, held[0], held[1], attn_mask=seen, enable_gqa=True
                )
            x = x + layer["out"](mixed.transpose(1, 2).reshape(batch, seq, -1))
            gate, up = layer["gate_up"](layer["norm2"](x)).chunk(2, -1)
            x = x + layer["down"](F.silu(gate) * up)
        return F.linear(self.norm(x[:, -1]), self.word.weight).argmax(-1)

    def turned(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Queries or keys with rotary positions."""
        a, b = x.chunk(2, -1)
        return x * self.cos[places] + torch.cat((-b, a), -1) * self.sin[places]


def measure(case: str, seconds: float) -> dict[str, Any]:
    """The times of one case, `MODEL/PRECISION/VARIANT/PAST`."""
    name, precision, text, past = case.split("/")
    variant, config = ModelVariant.parse(text), CONFIGS[name]
    torch.manual_seed(0)
    with torch.device("cuda"):
        if variant.phase is ModelPhase.ENCODER:
            model: nn.Module = Bert(config)
        else:
            reach = dict(variant.dim_binding).get(3, 0) + variant.seq
            model = Llama(config, variant.batch, reach)
        ids = torch.randint(0, config["vocab_size"], (variant.batch, variant.seq))
        places = torch.arange(variant.seq) + int(past)
    model = model.to(TYPES[precision]).eval()
    given = (ids,) if variant.phase is ModelPhase.ENCODER else (ids, places)

    def timed(run: Any) -> float:
        return median_ms(lambda: run(*given).cpu(), seconds)

    def compiled() -> tuple[Any, float]:
        torch._dynamo.reset()
        begun = time.perf_counter()
        run = torch.compile(model, mode="max-autotune")
        run(*given).cpu()
        return run, (time.perf_counter() - begun) * 1e3

    with torch.no_grad():
        found: dict[str, Any] = {"case": case, "torch_eager": timed(model)}
        try:
            run, _ = compiled()
            found["torch_compile"] = timed(run)
            found["torch_compile_warm"] = compiled()[1]
        except Exception as error:  # what eager took is known still
            print(f"{case}: torch.compile: {str(error)[:200]}", file=sys.stderr)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="PyTorch's times for cases of benchmarks/gpu.py")
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args()
    failed = 0
    for one in options.cases:
        try:
            print(json.dumps(measure(one, options.seconds)), flush=True)
        except Exception as error:  # whatever one case meets, the others are measured
            failed = 1
            print(f"{one}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        torch.cuda.empty_cache()
    sys.exit(failed)
