"""Fixtures of the tests that compile for real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rlx_ray.compiler.cpu.zig import installed_version
from tests.support.needs import needs
from tests.support.programs import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.close()
