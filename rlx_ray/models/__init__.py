"""Model families: what a checkpoint means, without a graph and without reading it."""

from __future__ import annotations

from rlx_ray.models.family import Family, Limits, ModelFacts, ParamSpec, family, family_names
from rlx_ray.models.packing import pack

__all__ = ["Family", "Limits", "ModelFacts", "ParamSpec", "family", "family_names", "pack"]
