"""Fixtures of the emulated tests."""

from __future__ import annotations

import pytest

from rlx_ray.compiler.cpu.zig import installed_version
from tests.support.cuda_emulator import Unit
from tests.support.needs import needs


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Unit:
    """The test module's INSTANCES, compiled for the host."""
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    return Unit(tmp_path_factory.mktemp("unit"), request.module.INSTANCES)
