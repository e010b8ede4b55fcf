"""What went wrong, as an HTTP answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from rlx_ray.errors import (
    ArtifactError,
    Busy,
    CheckpointError,
    CompileError,
    ConfigError,
    DeviceError,
    DeviceMemoryError,
    EngineError,
    InputError,
    RlxError,
    StoreError,
    UnknownModelError,
    VariantMissing,
)
from rlx_serve.gateway.request_error import RequestError


@dataclass(frozen=True, slots=True)
class Problem:
    """An HTTP answer that is no success; `retry_after` in seconds, 0 for none."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {"retry-after": str(self.retry_after)} if self.retry_after else {}

    def openai(self) -> dict[str, object]:
        """The body in OpenAI's shape."""
        client = self.status < 500
        return {
            "error": {
                "message": self.message,
                "type": "invalid_request_error" if client else "server_error",
                "param": self.param,
                "code": self.code,
            }
        }

    def oip(self) -> dict[str, object]:
        """The body in the Open Inference Protocol's shape."""
        return {"error": self.message}


_RETRY_LATER: tuple[tuple[type[RlxError], str, int], ...] = (
    (Busy, "overloaded", 1),
    (VariantMissing, "variant_missing", 0),
    (DeviceMemoryError, "out_of_device_memory", 1),
    (DeviceError, "device_error", 5),
    (EngineError, "engine_error", 1),
    (CompileError, "compile_error", 5),
    (StoreError, "store_error", 5),
    (ArtifactError, "artifact_error", 1),
    (CheckpointError, "checkpoint_error", 0),
    (ConfigError, "config_error", 0),
)
"""Errors that are the server's, with their code and when to try again: all are 503."""


def problem(error: BaseException) -> Problem:
    """The HTTP answer for an error."""
    if isinstance(error, RequestError):
        return Problem(error.status, str(error), error.code, error.param)
    if isinstance(error, UnknownModelError):
        return Problem(404, str(error), "model_not_found", "model")
    if isinstance(error, InputError):
        return Problem(400, str(error), "invalid_input", "input")
    for kind, code, retry_after in _RETRY_LATER:
        if isinstance(error, kind):
            text = f"{type(error).__name__}: {error}"
            return Problem(503, text, code, retry_after=retry_after)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Problem(504, str(error) or "The request ran out of time.", "timeout", retry_after=1)
    return Problem(500, "Internal error; the server's log has its cause.", "internal_error")
