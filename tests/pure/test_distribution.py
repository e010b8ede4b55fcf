"""Families of other distributions: all their sources count, and one distribution has both parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlx_ray.errors import ConfigError
from rlx_ray.models.distribution import source

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Writes a distribution whose package offers a family `odd`, its graph, or both."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, *groups: str) -> Path:
        package = tmp_path / name
        package.mkdir()
        for file in ("__init__.py", "family.py", "helper.py"):
            (package / file).write_text("X = 1\n")
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"[rlx_ray.{group}]\nodd = {name}.family:X\n" for group in groups)
        (info / "entry_points.txt").write_text(lines)
        return package

    return write


def test_a_family_of_nobody_has_no_source() -> None:
    assert source("odd") is None
    assert source("bert") is None


def test_any_source_of_the_package_counts(install: Install) -> None:
    package = install("odd_models", "models", "graphs")
    before = source("odd")
    assert before is not None
    assert (before.distribution, before.version) == ("odd_models", "1.0")
    (package / "helper.py").write_text("X = 2\n")
    after = source("odd")
    assert after is not None
    assert after.digest != before.digest


def test_family_and_graph_come_from_one_distribution(install: Install) -> None:
    install("odd_models", "models")
    install("odd_graphs", "graphs")
    with pytest.raises(ConfigError, match=r"its graph by another: \['odd-graphs', 'odd-models'\]"):
        source("odd")


def test_two_distributions_cannot_offer_one_graph(install: Install) -> None:
    install("odd_models", "models", "graphs")
    install("odd_graphs", "graphs")
    with pytest.raises(ConfigError, match="offered by several distributions"):
        source("odd")
