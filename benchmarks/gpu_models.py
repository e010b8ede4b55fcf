"""Models of well-known shapes with random weights: compiled, loaded and fed, without a checkpoint.

A model is the config.json that its checkpoint would have; its numbers follow from their names.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rlx_ray.artifact.manifest import PREFIX, Artifact, BlobRef, WeightsManifest
from rlx_ray.compiler.compile import compile
from rlx_ray.component import (
    CompilationMode,
    CompileProfile,
    KernelDispatchConfig,
    ModelPhase,
    ModelVariant,
    preset_for_phase,
)
from rlx_ray.config.schema import MatrixRow, ModelSpec
from rlx_ray.dtype import DType
from rlx_ray.identity import packing_id
from rlx_ray.matrix.expand import expand
from rlx_ray.models.family import ModelInfo, family
from rlx_ray.runtime.device_context import DeviceContext
from rlx_ray.runtime.launch_executable import LaunchExecutable
from rlx_ray.target import Target
from rlx_ray.weights.packing_cuda import pack
from tests.support.llama_checkpoint import llama_shapes
from tests.support.tiny import tiny_tensors

Inputs = dict[str, np.ndarray]

BERT = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
}
LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}

CONFIGS: dict[str, dict[str, Any]] = {
    "minilm": {
        **BERT,
        **{"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12},
        **{"intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512},
    },
    "smollm2": {
        **LLAMA,
        **{"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152},
        **{"max_position_embeddings": 2048, "rope_theta": 100000.0},
    },
    "llama-1b": {
        **LLAMA,
        **{"num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192},
        **{"vocab_size": 128256, "max_position_embeddings": 4096, "rope_theta": 500000.0},
    },
    "tiny-bert": {
        **BERT,
        **{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4},
        **{"intermediate_size": 128, "vocab_size": 200, "max_position_embeddings": 64},
    },
    "tiny-llama": {
        **LLAMA,
        **{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 320},
        **{"max_position_embeddings": 128, "rope_theta": 10000.0},
    },
}


@dataclass(frozen=True)
class Tensor:
    """A checkpoint tensor that is made when it is read: normal numbers, gains of about 1."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = DType.F32
    scheme: None = None

    def f32(self) -> np.ndarray:
        """Its numbers, float32; large tensors repeat a million of them."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        size = int(np.prod(self.shape))
        noise = rng.standard_normal(min(size, 1 << 20), np.float32)
        values = np.resize(noise, size).reshape(self.shape)
        if len(self.shape) == 1:
            return 0.1 * values + ("norm" in self.name.lower() and "bias" not in self.name)
        return values / self.shape[-1] ** 0.5


@dataclass(frozen=True)
class Model:
    """A model by name, for one target.

    Attributes:
        name: one of CONFIGS.
        target: what it is compiled for.
        precision: of its matrices and activations: f32, f16 or bf16.
    """

    name: str
    target: Target
    precision: str

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return CONFIGS[self.name]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Its checkpoint's tensors."""
        if self.config["model_type"] == "llama":
            shapes = llama_shapes(self.config)
        else:
            small = tiny_tensors({**self.config, "num_hidden_layers": 1}, 0)
            shapes = {name: array.shape for name, array in small.items()}
            own = {name: s for name, s in shapes.items() if ".layer.0." in name}
            for i in range(1, self.config["num_hidden_layers"]):
                shapes |= {name.replace(".0.", f".{i}."): s for name, s in own.items()}
        return {name: Tensor(name, shape) for name, shape in shapes.items()}

    @cached_property
    def info(self) -> ModelInfo:
        """What the family says of it."""
        texts = {
            "config.json": self.config,
            "modules.json": [
                {"path": "", "type": "Transformer"},
                {"path": "1_Pooling", "type": "Pooling"},
                {"path": "2_Normalize", "type": "Normalize"},
            ],
            "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
            "sentence_bert_config.json": {"max_seq_length": 512},
        }
        found = {name: json.dumps(value) for name, value in texts.items()}
        return family(self.config["model_type"]).info(found.get, self.tensors)

    def compile(self, text: str) -> Artifact:
        """The artifact of a variant, such as `encoder:b8:s128`."""
        variant = ModelVariant.parse(text)
        profile = CompileProfile.preset(preset_for_phase(variant.phase))
        precision = replace(profile.precision, compute=self.precision)
        past = dict(variant.dim_binding).get(3) if variant.phase is not ModelPhase.ENCODER else None
        row = MatrixRow(
            variant.phase,
            (variant.batch,),
            (variant.seq,),
            () if past is None else (past,),
            profile=replace(profile, precision=precision),
        )
        kind = self.config["model_type"]
        spec = ModelSpec(
            *(self.name, kind, "", CompilationMode.LAZY, None, KernelDispatchConfig(), None),
            (self.target,),
            (row,),
        )
        (cell,) = expand(spec, family(kind), self.info, {})
        if cell.unsupported:
            raise SystemExit(f"{self.name} {text}: {cell.unsupported}")
        return compile(cell.spec)

    @cached_property
    def weights(self) -> Packed:
        """Its packed weights."""
        dtype = DType.parse(self.precision)
        read = {name: tensor.f32 for name, tensor in self.tensors.items()}
        data, bindings = pack(self.info.params, lambda name: read[name](), dtype, {}, no_blocks)
        blob = BlobRef("weights", f"{self.name} {self.precision}", data.nbytes)
        return Packed(
            WeightsManifest(self.name, "random", packing_id("rows"), "cuda", blob, bindings), data
        )

    def load(self, artifact: Artifact, resident: DeviceContext) -> LaunchExecutable:
        """A variant on a device; the weights are uploaded if they are not there."""
        return LaunchExecutable(
            blob_of(artifact, "code"),
            blob_of(artifact, "plan"),
            artifact.manifest.binding,
            resident.upload(self.weights),  # type: ignore[arg-type]
            resident,
        )


@dataclass(frozen=True)
class Packed:
    """Packed weights in this process's memory: what `runtime.weights.Weights` is for a file."""

    manifest: WeightsManifest
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.data.nbytes

    def array(self) -> np.ndarray:
        """All bytes."""
        return self.data


def no_blocks(name: str, form: str) -> Any:
    """Nothing here is quantised."""
    raise AssertionError(f"{name} is not quantised to {form}")


def blob_of(artifact: Artifact, role: str) -> bytes:
    """A blob of an artifact by its role."""
    roles = [ref.role for ref in artifact.manifest.blobs]
    return artifact.blobs[roles.index(role)]


def feed(run: LaunchExecutable, vocab: int, past: int = 0) -> Inputs:
    """Inputs of a variant at full length: random tokens, and pages that are each one sequence's.

    Of what may be given in part (biases and penalties) there is nothing.

    Args:
        run: the variant.
        vocab: tokens are below it.
        past: of a decoder, tokens that the cache holds of each sequence.
    """
    rng = np.random.default_rng(0)
    shapes: Mapping[str, tuple[int, ...]] = {
        t.name: (0, *t.shape[1:]) if t.layout == PREFIX else t.shape for t in run.binding.inputs
    }
    kinds = {t.name: {"f32": np.float32, "i32": np.int32}[t.dtype.text] for t in run.binding.inputs}
    found = {name: np.zeros(shape, kinds[name]) for name, shape in shapes.items()}
    found["input_ids"][...] = rng.integers(0, vocab, shapes["input_ids"])
    found["lengths"][...] = found["input_ids"].size // found["lengths"].size
    if "pages" in found:
        found["pages"][...] = np.arange(found["pages"].size).reshape(shapes["pages"])
        found["past"][...] = past
    return found
