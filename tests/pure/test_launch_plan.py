"""Launch plans as data: what is written is read again, and what is torn is refused."""

from __future__ import annotations

import json

import pytest

from rlx_ray.artifact.launch_plan import NULL, Address, GemmStep, KernelStep, LaunchPlan
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError

PLAN = LaunchPlan(
    "sm_90",
    (
        KernelStep("k0", (4, 1, 2), 128, 60000, (Address("arena", 256), NULL), "layer.0.norm1"),
        GemmStep(
            *(Address("arena", 0), Address("param", 64, 3), Address("cache", 8)),
            *(2, 3, 4, 4, 4, 3, 5, 8, 12, 6),
            transposed=False,
            dtype=DType.F16,
            origin="layer.0.qkv",
        ),
        KernelStep("k0", (1, 1, 1), 32, 0, (NULL, NULL)),
    ),
    ((512, 64),),
    ((3, 4, 1024),),
)


def test_a_plan_is_read_as_it_was_written() -> None:
    data = PLAN.dumps()
    assert LaunchPlan.loads(data) == PLAN
    assert LaunchPlan.loads(data).dumps() == data


def test_a_kernel_gets_the_most_shared_memory_of_its_launches() -> None:
    assert PLAN.kernels == {"k0": 60000}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "rlx-launch-plan/0"),
        (("steps", 0, "kernel", "grid"), [1, 2]),
        (("steps", 0, "kernel", "arguments", 0, 0), "stack"),
        (("steps", 0, "kernel", "arguments", 0, 1), -1),
        (("steps", 1, "gemm", "dtype"), "f17"),
        (("steps", 1, "gemm", "depth"), 1),
        (("zeroed", 0), [1]),
    ],
)
def test_a_plan_that_was_altered_is_refused(path, value) -> None:
    found = json.loads(PLAN.dumps())
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match="launch plan"):
        LaunchPlan.loads(json.dumps(found).encode())


def test_bytes_that_are_no_plan_are_refused() -> None:
    for data in (b"", b"[]", PLAN.dumps()[:-9]):
        with pytest.raises(ArtifactError, match="launch plan cannot be read"):
            LaunchPlan.loads(data)
