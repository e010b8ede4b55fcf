"""BuildSpecs and artifacts made without a compiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlx_ray.artifact.manifest import (
    Artifact,
    Binding,
    BindingManifest,
    BlobRef,
    BuildRecord,
    WeightsManifest,
)
from rlx_ray.component import (
    CompilationMode,
    CompileProfile,
    Homogeneous,
    KernelDispatchConfig,
    KernelDispatchPolicy,
    ModelComponent,
    ModelVariant,
    OpKind,
    Pair,
    Preset,
    QuantScheme,
    Single,
    composition_key,
)
from rlx_ray.digest import canonical_json, sha256_hex
from rlx_ray.dtype import DType
from rlx_ray.spec import BuildSpec, FamilySource, TensorSpec
from rlx_ray.target import ABI, target, toolchain_for

COMPOSITION = Pair(Pair(Single("embed"), Homogeneous("bert_layer", 2)), Single("mean_pool"))

BLOBS: Mapping[str, bytes] = {
    "code": b"\x7fELF" + bytes(range(256)) * 8,
    "pool": b"\x7fELF pool" * 40,
    "text": b"int rlx_run(void) { return 0; }\n" * 20,
}


def make_spec(**overrides: Any) -> BuildSpec:
    """The BuildSpec of `encoder:b1:s16` of a small model `m`.

    Args:
        overrides: fields of BuildSpec, and the short forms `batch`, `seq` and `mode` (a text).
    """
    batch, seq = overrides.pop("batch", 1), overrides.pop("seq", 16)
    mode = CompilationMode.parse(overrides.pop("mode", "lazy"))
    machine = target("cpu-x86_64-v3")
    profile = overrides.get("profile", CompileProfile.preset(Preset.ENCODER))
    fields: dict[str, Any] = {
        "model": "m",
        "family": "bert",
        "family_source": None,
        "config": canonical_json({"hidden": 8, "layers": 2}).decode(),
        "fingerprint": "f" * 64,
        "component": ModelComponent(
            variant=ModelVariant.encoder(batch, seq),
            dispatch=KernelDispatchConfig(),
            mode=mode,
            profile_key=profile.key,
            quant=None,
            layer_composition_key=composition_key(COMPOSITION),
        ),
        "profile": profile,
        "tensors": (
            TensorSpec("embeddings.word", "f32", (30, 8)),
            TensorSpec("layer.0.query", "f32", (8, 8)),
        ),
        "target": machine,
        "toolchain": toolchain_for(machine, {}),
        "build_id": "0123456789abcdef",
        "abi": ABI,
        "packing": "fedcba9876543210",
    }
    return BuildSpec(**{**fields, **overrides})


def rich_spec() -> BuildSpec:
    """A BuildSpec that leaves no field empty."""
    profile = replace(CompileProfile.preset(Preset.LLAMA32_DECODE), backend=(("unroll", 8),))
    dispatch = KernelDispatchConfig(
        KernelDispatchPolicy.FORCE_NATIVE,
        (OpKind.parse("Softmax"), OpKind.parse("Attention")),
        (OpKind.parse("Rope"),),
    )
    component = ModelComponent(
        variant=ModelVariant.decode(8, 1024).with_extra(2, 64).with_extra(16, 3),
        dispatch=dispatch,
        mode=CompilationMode.AOT,
        profile_key=profile.key,
        quant=QuantScheme.int8_block(32),
        layer_composition_key=composition_key(COMPOSITION),
    )
    return make_spec(
        family_source=FamilySource("other-models", "1.2", "d" * 64),
        component=component,
        profile=profile,
        tensors=(TensorSpec("layer.0.query", "u8", (8, 8), "gguf_q4_1"),),
        matrices=(("layer.0.query", "b4m"),),
    )


def make_binding(seq: int = 16) -> BindingManifest:
    """A binding manifest of one input, one parameter and one output."""
    return BindingManifest(
        inputs=(Binding("input_ids", DType.I32, (1, seq), 0),),
        params=(Binding("layer.0.query", DType.F32, (8, 8), -1, "panel16"),),
        outputs=(Binding("embedding", DType.F32, (1, 8), 64),),
        arena=4096,
        scratch=1024,
        alignment=64,
        entry="rlx_run",
    )


def make_artifact(
    spec: BuildSpec | None = None,
    blobs: Mapping[str, bytes] = BLOBS,
    seconds: float = 0.25,
) -> Artifact:
    """An artifact of a spec (of `make_spec()` if None) with blobs by role."""
    record = BuildRecord(seconds, 64 << 20, "test host")
    return Artifact.make(spec or make_spec(), make_binding(), blobs, record)


def make_weights(data: bytes = b"\x01\x02\x03\x04" * 64) -> tuple[WeightsManifest, bytes]:
    """Packed weights of one tensor, with their manifest."""
    blob = BlobRef("weights", sha256_hex(data), len(data))
    tensors = (Binding("layer.0.query", DType.F32, (8, 8), 0, "panel16"),)
    return WeightsManifest("m", "a5" * 32, "fedcba9876543210", "cpu-p16", blob, tensors), data


TEXT_VARIANTS = [
    ModelVariant.prefill(1, 16),
    ModelVariant.prefill(1, 64),
    ModelVariant.prefill(1, 32).with_extra(3, 480),
    ModelVariant.decode(1, 255),
    ModelVariant.decode(4, 255),
    ModelVariant.decode(4, 511),
]
"""Of a model that generates text: prompts of two lengths and one that goes on, and steps."""
