"""Wiring: what is refused before anything starts, and the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from rlx_ray.config.serve import ServeSpec
from rlx_ray.errors import ClusterError, ConfigError
from rlx_serve import app
from rlx_serve.listening import http_options
from tests.serve.conftest import ROOT, deploy
from tests.support.command import serving
from tests.support.serving import tiny_model, write_config


def test_more_eager_variants_than_slots_are_refused_at_once(tmp_path: Path) -> None:
    config = write_config(tmp_path, [tiny_model(tmp_path, "ann", 1, mode="eager")], max_slots=3)
    with pytest.raises(
        ConfigError, match=r"max_slots is 3, but 4 variants .*max_slots to at least 4"
    ):
        app.bind(config)


def test_a_target_that_no_host_here_runs_is_refused(tmp_path: Path) -> None:
    foreign = "cpu-aarch64" if os.uname().machine == "x86_64" else "cpu-x86_64-v3"
    config = write_config(tmp_path, [tiny_model(tmp_path, "ann", 1, targets=[foreign])])
    with pytest.raises(ConfigError, match=f"run none of them.*{foreign}.*Add 'host'"):
        app.bind(config)


def test_a_port_in_use_is_refused_by_its_number(tmp_path: Path) -> None:
    config = write_config(tmp_path, [tiny_model(tmp_path, "ann", 1)])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=rf"port {port} on 127.0.0.1.*--port"),
            app.serving(config, port=port),
        ):
            raise AssertionError


def test_the_proxy_cuts_no_answer_that_is_still_being_written() -> None:
    options = http_options(ServeSpec(host="127.0.0.2", port=81, request_timeout_s=0.1))
    assert (options.host, options.port) == ("127.0.0.2", 81)
    assert options.request_timeout_s is None


def test_the_serve_config_file_is_valid_and_names_the_builder() -> None:
    value = yaml.safe_load((ROOT / "serve/serve.yaml").read_text(encoding="utf-8"))
    (found,) = ServeDeploySchema.model_validate(value).applications
    module, _, name = found.import_path.partition(":")
    assert getattr(sys.modules[module], name) is app.build_app
    assert (ROOT / app.AppArgs.model_validate(found.args).config).is_file()


def test_the_builder_takes_a_config_path_and_a_store(tmp_path: Path) -> None:
    config = write_config(tmp_path, [tiny_model(tmp_path, "ann", 1)])
    args = app.AppArgs(config=config.path, store=f"file://{tmp_path}/other")
    assert isinstance(app.build_app(args), serve.Application)


def test_a_failed_build_is_503_with_its_class_and_message(tmp_path: Path, port: int) -> None:
    config = write_config(tmp_path, [tiny_model(tmp_path, "ann", 1)], build_timeout_s=0.01)
    try:
        reply = deploy(config, "hasty", port).embed("ann", "a")
    finally:
        serve.delete("hasty")
    assert reply.status_code == 503
    assert "BuildLimitError: building encoder:b1:s8" in reply.json()["error"]["message"]
    assert int(reply.headers["retry-after"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_until_a_signal_comes(
    tmp_path: Path, how: signal.Signals, status: int
) -> None:
    config = write_config(tmp_path, [tiny_model(tmp_path, "ann", 1)])
    words = (config.path, "--port", "0", "--json")
    with serving(*words, log=tmp_path / "log") as server:
        assert server.stdout is not None
        said = json.loads(server.stdout.readline())
        body = {"model": "ann", "input": "a"}
        reply = httpx.post(f"{said['url']}/v1/embeddings", json=body, timeout=60)
        assert reply.status_code == 200
        assert said["models"] == ["ann"]
        server.send_signal(how)
        assert server.wait(60) == status
