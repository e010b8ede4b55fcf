"""The Ray task of the fan-out and of a serving cluster: build a variant and publish it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import CompileError, Failure, RlxError
from rlx_ray.job.build import BuildLimits, build
from rlx_ray.spec import BuildSpec
from rlx_ray.store import Hit, open_store


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """How a task ended.

    Attributes:
        digest: what was asked for.
        status: `built`, `present` (somebody else had published it) or `failed`.
        seconds: of the task.
        nbytes: of the artifact's blobs; 0 if it failed.
        failure: what went wrong, if it failed.
    """

    digest: str
    status: str
    seconds: float
    nbytes: int = 0
    failure: Failure | None = None


def build_and_publish(spec_json: bytes, store: StoreSpec, limits: BuildLimits) -> BuildOutcome:
    """Build a variant in a child process with limits and publish it, unless the store has it.

    Args:
        spec_json: the BuildSpec's.
        store: where to publish.
        limits: of the build.

    Returns:
        The outcome, whatever went wrong: an error that nobody foresaw is a CompileError.
    """
    start = time.monotonic()
    spec = BuildSpec.loads(spec_json)
    try:
        status, nbytes = _published(spec, store, limits)
        failure = None
    except RlxError as error:
        status, nbytes, failure = "failed", 0, Failure.of(error)
    except Exception as error:
        unforeseen = CompileError(f"the build task failed with {type(error).__name__}: {error}.")
        status, nbytes, failure = "failed", 0, Failure.of(unforeseen)
    return BuildOutcome(spec.digest, status, time.monotonic() - start, nbytes, failure)


def _published(spec: BuildSpec, store: StoreSpec, limits: BuildLimits) -> tuple[str, int]:
    shelf = open_store(store.url, store.storage_options)
    found = shelf.lookup(spec)
    if isinstance(found, Hit):
        return "present", found.manifest.size
    artifact = build(spec, limits)
    shelf.put(artifact)
    return "built", artifact.manifest.size
