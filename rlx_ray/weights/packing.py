"""Packing of a model's weights, in the way that its target reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact.manifest import Binding
from rlx_ray.spec import BuildSpec
from rlx_ray.target import Target
from rlx_ray.weights import packing_cpu, packing_cuda
from rlx_ray.weights.params import ParamSpec
from rlx_ray.weights.sources import SourceTensors


class _Packing(Protocol):
    """What a module has that packs in one way."""

    def pack_model(
        self,
        params: Sequence[ParamSpec],
        tensors: SourceTensors,
        target: Target,
        precision: str,
        formats: Mapping[str, str],
    ) -> tuple[npt.NDArray[np.uint8], tuple[Binding, ...]]:
        """The packed bytes, and where each parameter begins."""
        ...

    def model_bytes(
        self,
        params: Sequence[ParamSpec],
        target: Target,
        precision: str,
        formats: Mapping[str, str],
    ) -> int:
        """How many bytes they are."""
        ...


_WAYS: dict[str, _Packing] = {"panels": packing_cpu, "rows": packing_cuda}
"""The modules of `identity.PACKING`; what they import is what a BuildSpec's `packing` is of."""


def pack_for(
    spec: BuildSpec, params: tuple[ParamSpec, ...], sources: SourceTensors
) -> tuple[npt.NDArray[np.uint8], tuple[Binding, ...]]:
    """The weights as the kernels of a variant's target read them: uint8, and where each begins.

    Raises:
        CheckpointError: a source is not as its parameter needs it, or not what was hashed.
    """
    way = _WAYS[spec.target.can.packing]
    precision = spec.profile.precision.compute
    return way.pack_model(params, sources, spec.target, precision, dict(spec.matrices))


def packed_bytes(spec: BuildSpec, params: tuple[ParamSpec, ...]) -> int:
    """How many bytes the packed weights have that a variant reads; no tensor is read for it."""
    way = _WAYS[spec.target.can.packing]
    precision = spec.profile.precision.compute
    return way.model_bytes(params, spec.target, precision, dict(spec.matrices))
