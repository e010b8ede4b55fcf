"""Small programs for the compiler's tests, and a way to run them without a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlx_ray.artifact.manifest import BlobRef, WeightsManifest
from rlx_ray.compiler.backend import backend_for
from rlx_ray.compiler.cpu import zig
from rlx_ray.compiler.cpu.backend import BACKEND
from rlx_ray.compiler.cpu.lir import Lir
from rlx_ray.compiler.cpu.regions import Tiling
from rlx_ray.compiler.cpu.schedule import schedule
from rlx_ray.compiler.cuda.launches import Launches
from rlx_ray.compiler.graphs import llama as llama_graph
from rlx_ray.compiler.graphs.bert import build
from rlx_ray.compiler.ir.hir import Hir
from rlx_ray.compiler.ir.program import Order
from rlx_ray.compiler.pipeline import Stages, run
from rlx_ray.component import (
    CompileProfile,
    KernelDispatchConfig,
    KernelDispatchPolicy,
    OpKind,
    Preset,
)
from rlx_ray.host import this_host
from rlx_ray.runtime.cpu import ArenaPool, CpuExecutable, ThreadPool
from rlx_ray.runtime.weights import Weights
from rlx_ray.target import Target, toolchain_for
from rlx_ray.weights.formats import FORMATS
from rlx_ray.weights.packing_cpu import pack
from rlx_ray.weights.params import ParamSpec

NATIVE = KernelDispatchConfig(KernelDispatchPolicy.PREFER_NATIVE)
COMMON = KernelDispatchConfig(KernelDispatchPolicy.FORCE_COMMON)
FORCED = KernelDispatchConfig(KernelDispatchPolicy.FORCE_NATIVE)
PROFILE = CompileProfile.preset(Preset.ENCODER)

TINY = {
    "layers": 2,
    "hidden": 24,
    "heads": 3,
    "intermediate": 40,
    "activation": "gelu",
    "positions": 32,
    "first_position": 0,
    "vocab": 50,
    "token_types": 2,
    "eps": 1e-12,
    "pooling": "mean",
    "normalize": True,
}

TINY_LLAMA = {
    "layers": 2,
    "hidden": 24,
    "heads": 6,
    "kv_heads": 2,
    "dim": 10,
    "intermediate": 40,
    "positions": 128,
    "vocab": 50,
    "eps": 1e-5,
    "window": 0,
    "rope": {"theta": 1000.0, "kind": "default"},
    "rotary_pairs": False,
    "qkv_bias": False,
    "qk_norm": False,
    "tied": False,
}


def one_common(*kinds: str) -> KernelDispatchConfig:
    """Native but for one kind, or some."""
    common = tuple(OpKind.parse(kind) for kind in kinds)
    return KernelDispatchConfig(KernelDispatchPolicy.PREFER_NATIVE, common)


def bert(**changes: object) -> Hir:
    """A tiny BERT's template."""
    return build({**TINY, **changes})


def llama(**changes: object) -> Hir:
    """A tiny Llama's template."""
    return llama_graph.build({**TINY_LLAMA, **changes})


def stages(
    hir: Hir,
    batch: int,
    seq: int,
    config: KernelDispatchConfig = NATIVE,
    profile: CompileProfile = PROFILE,
    target: Target | None = None,
    rows: int | None = None,
    tiling: Tiling | None = None,
    past: int | None = None,
) -> Stages:
    """A program after each stage; ragged with `rows`, cut in one way with `tiling`."""
    wanted = target or this_host().best()
    binding = {0: batch, 1: seq} | ({} if rows is None else {2: rows})
    binding |= {} if past is None else {3: past}
    order = Order(profile, config, wanted, {}, hir.outputs)
    made = run(hir, binding, order, backend_for(wanted))
    return (
        made
        if tiling is None
        else replace(made, program=schedule(made.mir, wanted, tiling, hir.outputs))
    )


def random_params(program: Lir | Launches, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 parameters by name, logical shapes (K, N) for matrices."""
    rng = np.random.default_rng(seed)
    made = {}
    for tensor in program.params:
        values = rng.normal(0, 0.25, tensor.shape)
        if "norm.weight" in tensor.name or "norm1.weight" in tensor.name:
            values += 1
        made[tensor.name] = values.astype(np.float32)
    return made


def random_inputs(
    batch: int, seq: int, seed: int = 0, lengths: list[int] | None = None
) -> dict[str, np.ndarray]:
    """Token ids, types and lengths (1 to seq unless given)."""
    rng = np.random.default_rng(seed)
    found = np.array(lengths) if lengths else rng.integers(1, seq + 1, batch)
    return {
        "input_ids": rng.integers(0, TINY["vocab"], (batch, seq)).astype(np.int32),
        "token_type_ids": rng.integers(0, 2, (batch, seq)).astype(np.int32),
        "lengths": found.astype(np.int32),
    }


def pack_inputs(inputs: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Padded inputs as a ragged variant takes them: one sequence after the other, then zeros."""
    lengths = inputs["lengths"]
    made = {"lengths": lengths}
    for name in ("input_ids", "token_type_ids"):
        real = np.concatenate([row[:n] for row, n in zip(inputs[name], lengths, strict=True)])
        made[name] = np.pad(real, (0, rows - len(real))).astype(np.int32)
    return made


class Bench:
    """Builds and runs programs in one folder, on one pool a thread count."""

    def __init__(self, folder: Path, target: Target | None = None) -> None:
        self.folder = folder
        self.target = target or this_host().best()
        self.toolchain = toolchain_for(self.target, {})
        self.arenas = ArenaPool()
        self._pools: dict[int, ThreadPool] = {}
        self._built: dict[str, Path] = {}
        self._count = 0

    def pool(self, threads: int) -> ThreadPool:
        """The pool of so many threads."""
        if threads not in self._pools:
            path = self.file(zig.build_pool(self.target, self.toolchain), f"pool{threads}.so")
            self._pools[threads] = ThreadPool(path, threads)
        return self._pools[threads]

    def file(self, data: bytes, name: str) -> Path:
        """A new file with some bytes: a loaded library's file is never written again."""
        self._count += 1
        path = self.folder / f"{self._count}-{name}"
        path.write_bytes(data)
        return path

    def weights(self, lir: Lir, params: Mapping[str, np.ndarray]) -> Weights:
        """Packed parameters."""
        specs, sources = [], {}
        matrices = {t.dtype for t in lir.params if t.layout != "plain"}
        for tensor in lir.params:
            matrix = tensor.layout != "plain"
            specs.append(
                ParamSpec(
                    tensor.name, tensor.shape, "matrix" if matrix else "plain", (tensor.name,)
                )
            )
            value = params[tensor.name]
            sources[tensor.name] = np.ascontiguousarray(value.T) if matrix else value
        precision = next((f.name for f in FORMATS.values() if f.dtype in matrices), "f32")
        data, bindings = pack(specs, sources.__getitem__, self.target.panel, precision)
        manifest = WeightsManifest(
            "m", "0" * 64, 1, self.target.family, BlobRef("weights", "0" * 64, len(data)), bindings
        )
        return Weights(manifest, self.file(bytes(data), "weights"))

    def load(self, lir: Lir, params: Mapping[str, np.ndarray], threads: int = 2) -> CpuExecutable:
        """Compile a program and load it."""
        backend = backend_for(self.target)
        text = backend.emit(lir, self.target)
        if text not in self._built:
            data = backend.build(text, self.target, self.toolchain)
            self._built[text] = self.file(data, "code.so")
        code = self._built[text]
        weights = self.weights(lir, params)
        return CpuExecutable(code, BACKEND.binding(lir), weights, self.pool(threads), self.arenas)

    def close(self) -> None:
        """Stop the pools."""
        for pool in self._pools.values():
            pool.close()
