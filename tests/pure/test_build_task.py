"""The Ray task of a build: publishes, finds what others published, and always has an outcome."""

from __future__ import annotations

import pytest

from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import BuildLimitError, Failure
from rlx_ray.job import build_task
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.build_task import build_and_publish
from rlx_ray.store import AotStore, Hit
from tests.support.specs import make_artifact, make_spec

SPEC = make_spec()


@pytest.fixture
def store(tmp_path) -> StoreSpec:
    return StoreSpec(f"file://{tmp_path}/store", str(tmp_path / "cache"))


def outcome(store: StoreSpec) -> build_task.BuildOutcome:
    return build_and_publish(SPEC.dumps(), store, BuildLimits())


def test_what_was_built_is_published_and_then_present(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = []

    def build(spec, limits):
        builds.append(spec)
        return make_artifact(spec)

    monkeypatch.setattr(build_task, "build", build)
    first, second = outcome(store), outcome(store)
    assert (first.digest, first.status, first.failure) == (SPEC.digest, "built", None)
    assert (second.status, second.nbytes) == ("present", first.nbytes)
    assert first.nbytes == make_artifact(SPEC).manifest.size
    assert builds == [SPEC]
    assert isinstance(AotStore(store.url).lookup(SPEC), Hit)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (BuildLimitError("too long.", "Wait."), Failure("BuildLimitError", "too long.", "Wait.")),
        (
            OSError("disk full"),
            Failure("CompileError", "the build task failed with OSError: disk full.", ""),
        ),
    ],
)
def test_an_error_is_an_outcome(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch, error: Exception, failure: Failure
) -> None:
    def build(spec, limits):
        raise error

    monkeypatch.setattr(build_task, "build", build)
    found = outcome(store)
    assert (found.status, found.nbytes, found.failure) == ("failed", 0, failure)
