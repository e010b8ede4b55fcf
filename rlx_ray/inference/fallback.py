"""The errors of one target that pass a request on to the next one."""

from __future__ import annotations

from rlx_ray.errors import (
    ArtifactError,
    Busy,
    DeviceError,
    ToolchainMismatch,
    ToolchainMissing,
    VariantMissing,
)

PASSED_ON = (
    *(Busy, VariantMissing, ArtifactError, DeviceError),
    *(ToolchainMissing, ToolchainMismatch),
)
"""The next target may have an answer. A variant that does not compile, or a store that is away, is
no such error: it is the same on every target."""
