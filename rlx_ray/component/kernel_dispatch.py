"""Op kinds, and the decision whether a logical kernel runs native or as common primitives."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from rlx_ray.component.rust_enum import RustEnum
from rlx_ray.errors import ConfigError, nearest

_NAMES = """
Input Param Constant Activation Cast Quantize Dequantize FakeQuantize FakeQuantizeLSQ
FakeQuantizeLSQBackwardX FakeQuantizeLSQBackwardScale Binary Compare Where ElementwiseRegion
MatMul DotGeneral DenseSolve BatchedDenseSolve LayerNorm LayerNorm2d GroupNorm RmsNorm
ResizeNearest2x Attention Rope AxialRope2d Reshape Transpose Narrow Concat Expand Gather Reduce
Softmax Cumsum TopK Sample Conv ConvTranspose2d Pool ReluBackward ActivationBackward
FakeQuantizeBackward ComplexNormSq ComplexNormSqBackward Conjugate MaxPool2dBackward
Conv2dBackwardInput Conv2dBackwardWeight SoftmaxCrossEntropyWithLogits
SoftmaxCrossEntropyBackward AttentionBackward LayerNormBackwardInput LayerNormBackwardGamma
RmsNormBackwardInput RmsNormBackwardGamma RmsNormBackwardBeta RopeBackward
GroupNormBackwardInput GroupNormBackwardGamma GroupNormBackwardBeta CumsumBackward
GatherBackward GroupedMatMul DequantGroupedMatMul DequantMoEWeights ScatterAdd LoraMatMul
DequantMatMul QMatMul QConv2d SelectiveScan GatedDeltaNet FusedSwiGLU FusedMatMulBiasAct
FusedResidualLN FusedResidualRmsNorm FusedAttentionBlock FusedTransformerLayer If While Scan
ScanBackward ScanBackwardXs GaussianSplatRender GaussianSplatRenderBackward GaussianSplatPrepare
GaussianSplatRasterize Custom CustomFn Fft
"""


@dataclass(frozen=True, slots=True, order=True)
class OpKind:
    """One of RLX's operation kinds: its discriminant and its Rust name."""

    discriminant: int
    rust: str

    @classmethod
    def parse(cls, text: str) -> OpKind:
        """The kind with a Rust name such as `LayerNorm`.

        Raises:
            ConfigError: no such kind.
        """
        found = _KINDS.get(text)
        if found is None:
            raise ConfigError(
                f"op kind {text!r} is not known.",
                nearest(text, _KINDS) or "Use RLX's OpKind names, such as 'LayerNorm'.",
            )
        return found

    @property
    def text(self) -> str:
        """How JSON names it: the Rust name."""
        return self.rust

    def __str__(self) -> str:
        return self.rust


_KINDS = {name: OpKind(discriminant, name) for discriminant, name in enumerate(str.split(_NAMES))}

OP_KINDS: tuple[OpKind, ...] = tuple(_KINDS.values())
"""All kinds of RLX 0.2.2, in the order of their discriminants."""


class KernelDispatchPolicy(RustEnum):
    """What to do with a logical kernel that neither force list names."""

    PREFER_NATIVE = "PreferNative"
    FORCE_COMMON = "ForceCommon"
    FORCE_NATIVE = "ForceNative"

    @classmethod
    def what(cls) -> str:
        """What a member is called in messages."""
        return "dispatch policy"


@dataclass(frozen=True, slots=True)
class KernelDispatchConfig:
    """A policy with its exceptions; the order of the lists counts in the RLX key."""

    policy: KernelDispatchPolicy = KernelDispatchPolicy.PREFER_NATIVE
    force_common: tuple[OpKind, ...] = ()
    force_native: tuple[OpKind, ...] = ()

    @property
    def all_native(self) -> bool:
        """Whether every kernel that the backend has by hand is taken.

        Only then can token rows stand one after the other: the common lowering of attention and
        others needs rectangles.
        """
        return self.policy is not KernelDispatchPolicy.FORCE_COMMON and not self.force_common


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a kernel is lowered to common primitives, and why."""

    lower_to_common: bool
    reason: str


def decide(
    config: KernelDispatchConfig,
    kind: OpKind,
    supported: Collection[OpKind],
    registry: Collection[OpKind],
) -> Decision:
    """RLX's dispatch decision: force_native_kinds beats force_common_kinds beats the policy.

    Args:
        config: the component's dispatch.
        kind: the operation's kind.
        supported: kinds that the backend has native kernels for; empty means that it does not
            say, and everything is taken to be native, as RLX does.
        registry: logical kernels, the kinds that have a common lowering.
    """
    if kind in config.force_native:
        return Decision(False, f"{kind} is in force_native")
    if kind not in registry:
        return Decision(False, f"{kind} is no logical kernel and has no common lowering")
    if kind in config.force_common:
        return Decision(True, f"{kind} is in force_common")
    match config.policy:
        case KernelDispatchPolicy.FORCE_COMMON:
            return Decision(True, "policy force_common")
        case KernelDispatchPolicy.FORCE_NATIVE:
            return Decision(False, "policy force_native")
        case KernelDispatchPolicy.PREFER_NATIVE:
            if not supported:
                return Decision(False, "policy prefer_native and the backend lists no kernels")
            if kind in supported:
                return Decision(False, "policy prefer_native and the backend has the kernel")
            return Decision(True, "policy prefer_native, but the backend lacks the kernel")
