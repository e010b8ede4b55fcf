"""Which cluster is meant: an option, the environment, or one of our own."""

from __future__ import annotations

import pytest

from rlx_ray.errors import ConfigError
from rlx_ray.job.cluster import named


@pytest.mark.parametrize(
    ("option", "variable", "found"),
    [
        (None, None, None),
        (None, "", None),
        (None, "local", None),
        (None, "head:6379", "head:6379"),
        (None, "auto", "auto"),
        ("head:6379", "other:6379", "head:6379"),
        ("auto", "other:6379", "other:6379"),  # as Ray has it
        ("auto", None, "auto"),
        ("ray://head:10001", None, "ray://head:10001"),
        ("[::1]:6379", None, "[::1]:6379"),
    ],
)
def test_an_option_goes_before_ray_address(
    option: str | None, variable: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert named(option) == found


@pytest.mark.parametrize("address", ["somewhere", "head:0", ":6379", "http://head:8265", "a:70000"])
def test_an_address_without_a_known_form_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS is .*HOST:PORT"):
        named(None)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match=r"--address is .*HOST:PORT"):
        named(address)
