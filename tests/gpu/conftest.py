"""Fixtures of a real card."""

from __future__ import annotations

import sys

import pytest

from rlx_ray.runtime import cuda
from rlx_ray.runtime.cuda_device import CudaDevice
from rlx_ray.target import Target
from tests.support.card_unit import CardUnit


@pytest.fixture(scope="session")
def card() -> CudaDevice:
    return CudaDevice()


@pytest.fixture(scope="session")
def best(card: CudaDevice) -> Target:
    """The best target of the card."""
    return next(target for target in cuda.this_host().ladder() if target.kind == "cuda")


@pytest.fixture(scope="session")
def _units() -> dict[str, CardUnit]:
    return {}


@pytest.fixture
def kernels(
    request: pytest.FixtureRequest, card: CudaDevice, _units: dict[str, CardUnit]
) -> CardUnit:
    """The INSTANCES of the module that a test was written in, compiled for the card."""
    name = request.function.__module__
    if name not in _units:
        _units[name] = CardUnit(card, sys.modules[name].INSTANCES)
    return _units[name]
