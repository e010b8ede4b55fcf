"""The component: what is to be specialised, with the keys that RLX gives it."""

from rlx_ray.component.component import CompilationMode, ModelComponent, key_line
from rlx_ray.component.composition import (
    Homogeneous,
    LayerComposition,
    Pair,
    Single,
    composition_from_json,
    composition_key,
    composition_text,
    composition_to_json,
)
from rlx_ray.component.kernel_dispatch import (
    OP_KINDS,
    Decision,
    KernelDispatchConfig,
    KernelDispatchPolicy,
    OpKind,
    decide,
)
from rlx_ray.component.profile import CompileProfile, Preset, parse_preset, preset_for_phase
from rlx_ray.component.quant import SCHEMES, QuantScheme
from rlx_ray.component.variant import ModelPhase, ModelVariant

__all__ = [
    "OP_KINDS",
    "SCHEMES",
    "CompilationMode",
    "CompileProfile",
    "Decision",
    "Homogeneous",
    "KernelDispatchConfig",
    "KernelDispatchPolicy",
    "LayerComposition",
    "ModelComponent",
    "ModelPhase",
    "ModelVariant",
    "OpKind",
    "Pair",
    "Preset",
    "QuantScheme",
    "Single",
    "composition_from_json",
    "composition_key",
    "composition_text",
    "composition_to_json",
    "decide",
    "key_line",
    "parse_preset",
    "preset_for_phase",
]
