"""The fan-out on a real Ray: nothing fails another, nothing is lost, nothing starts for nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlx_ray.artifact.manifest import Manifest
from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.config.load import load
from rlx_ray.inference.catalog import open_model
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.cluster import connected
from rlx_ray.job.plan import BuildPlan
from rlx_ray.job.prebuild import prebuild
from rlx_ray.job.toolchains import refusals
from rlx_ray.matrix.expand import expand
from rlx_ray.store import open_store
from rlx_ray.target import TARGETS
from tests.support.command import ENV, ROOT, start
from tests.support.needs import needs, needs_minilm, needs_smollm2
from tests.support.tiny import write_tiny_bert


@pytest.fixture(autouse=True)
def toolchain() -> None:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")


def write_config(folder: Path, batches: str = "[1, 2]", store: str = "file://store") -> Path:
    if not (folder / "model").exists():
        write_tiny_bert(folder / "model")
    path = folder / "config.yaml"
    path.write_text(
        f"""
store: {{url: "{store}", cache_dir: cache}}
targets: [host]
models:
  - name: tiny
    family: bert
    source: model
    matrix: [{{phase: encoder, batch: {batches}, seq: [8, 16]}}]
"""
    )
    return path


def run(*words: str, seconds: float = 180) -> tuple[int, dict, str]:
    child = start(*words)
    out, said = child.communicate(timeout=seconds)
    assert "Traceback" not in said, said
    return child.returncode, json.loads(out) if out.startswith("{") else {}, said


def statuses(record: dict) -> list[str]:
    return [r["status"] for r in record["rows"]]


def test_prebuild_fills_the_store_once_and_then_finds_it_full(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    code, plan, _ = run("plan", config, "--json", "--check")
    assert (code, plan["missing"]) == (1, 4)
    page = tmp_path / "report.html"
    code, record, said = run("prebuild", config, "--json", "--html", str(page))
    assert code == 0, said
    assert statuses(record) == ["compiled"] * 4
    assert "4/4" in said
    assert page.read_text().count('class="cell compiled"') == 4
    blobs = {r["digest"] for r in record["rows"]}
    assert len(blobs) == 4
    code, plan, _ = run("plan", config, "--json", "--check")
    assert (code, plan["present"]) == (0, 4)
    probe = (
        "import sys; from rlx_ray.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 'ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, "prebuild", config, "--json"],
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert statuses(json.loads(done.stdout)) == ["present"] * 4
    store = open_store(f"file://{tmp_path}/store")
    assert {r.status for r in store.verify(deep=True)} == {"ok"}


def test_one_that_fails_fails_no_other(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[1]")
    wrapper = tmp_path / "bin"
    wrapper.mkdir()
    (wrapper / "sitecustomize.py").write_text(
        "import rlx_ray.job.build as b\n"
        "real = b.build\n"
        "def build(spec, limits):\n"
        "    if spec.component.variant.seq == 16:\n"
        "        limits = b.BuildLimits(0.01, limits.memory)\n"
        "    return real(spec, limits)\n"
        "b.build = build\n"
    )
    env = {**ENV, "PYTHONPATH": f"{wrapper}{os.pathsep}{ENV['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "rlx_ray.cli", "prebuild", str(config), "--json"],
        env=env,
        capture_output=True,
        text=True,
    )
    record = json.loads(done.stdout)
    assert done.returncode == 1
    assert statuses(record) == ["compiled", "failed"]
    error = record["rows"][1]["error"]
    assert error["class"] == "BuildLimitError"
    assert "took longer than" in error["message"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_modes_share_a_build_and_keep_their_keys(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[1]")
    text = config.read_text().replace("seq: [8, 16]}]", "seq: [8]}, ROW]")
    config.write_text(text.replace("ROW", "{phase: encoder, batch: 1, seq: 8, mode: aot}"))
    code, record, said = run("prebuild", str(config), "--json")
    assert code == 0, said
    assert statuses(record) == ["compiled"] * 2
    assert "1/1" in said
    assert len({r["cache_key"] for r in record["rows"]}) == 2
    assert len({r["digest"] for r in record["rows"]}) == 1


@pytest.mark.slow
def test_without_the_toolchain_rows_say_how_to_get_it(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[1]")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'ziglang' else real(name, *a)\n"
    )
    env = {**ENV, "PYTHONPATH": f"{tmp_path / 'bin'}{os.pathsep}{ENV['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "rlx_ray.cli", "prebuild", str(config), "--json"],
        env=env,
        capture_output=True,
        text=True,
    )
    record = json.loads(done.stdout)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert statuses(record) == ["unsupported"] * 2
    assert all("rlx_ray[build]" in r["reason"] for r in record["rows"])
    assert list(record["refused"]) == [record["rows"][0]["target"]]
    assert "rlx_ray[build]" in done.stderr


def test_what_builders_can_build_counts_not_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_config(tmp_path, "[1]"))
    model = open_model(config.models[0])
    cells = expand(model.spec, model.family, model.info, {})
    plans: list[BuildPlan] = []
    with connected(None, num_cpus=1, object_store_memory=100 << 20):
        # Ray's workers are processes of their own: they have the compiler that is hidden here.
        monkeypatch.setattr("rlx_ray.compiler.cpu.zig.installed_version", lambda: None)
        report = prebuild(
            cells, [model], config.store, BuildLimits(), "auto", plans.append, lambda _: None
        )
    assert refusals([(cells[0].spec.target, cells[0].spec.toolchain)])
    assert [len(p.todo) for p in plans] == [2]
    assert [r.status for r in report.rows] == ["compiled"] * 2
    assert report.refused == {}


def test_the_compiler_ends_with_the_worker_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, subprocess, rlx_ray.job.build as b\n"
        "real = subprocess.Popen\n"
        "def popen(words, **kw):\n"
        "    child = real([sys.executable, '-c', 'import time; time.sleep(60)'], **kw)\n"
        "    print(child.pid, flush=True)\n"
        "    return child\n"
        "subprocess.Popen = popen\n"
        "from tests.support.specs import make_spec\n"
        "b.build(make_spec())\n"
    )
    env = {**ENV, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert (child / "stat").exists()
        parent.kill()
    until = time.monotonic() + 10
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2]:
        assert time.monotonic() < until, "the child outlived its parent"
        time.sleep(0.05)


def test_an_interrupt_leaves_whole_artifacts_and_a_report(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[1, 2, 3, 4, 5]")
    child = start("prebuild", str(config), "--json")
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("[2/"):
            break
    begun = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, said = child.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert child.returncode == 130, said
    assert "Traceback" not in said
    record = json.loads(out)
    assert record["interrupted"]
    assert record["compiled"] >= 2
    assert record["skipped"] >= 1
    store = open_store(f"file://{tmp_path}/store")
    assert not [r for r in store.verify(deep=True) if r.status == "damaged"]
    assert len(list(store.entries())) >= record["compiled"]
    code, again, said = run("prebuild", str(config), "--json")
    assert code == 0, said
    assert again["present"] >= record["compiled"]
    assert again["present"] + again["compiled"] == 10


@pytest.mark.slow
def test_two_at_once_on_one_store(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    both = [start("prebuild", config, "--json") for _ in range(2)]
    records = [json.loads(child.communicate(timeout=180)[0]) for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert all(set(statuses(r)) <= {"compiled", "present"} for r in records)
    store = open_store(f"file://{tmp_path}/store")
    assert {r.status for r in store.verify(deep=True)} == {"ok"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "tinny"), "did you mean 'tiny'"),
        (("--variant", "encoder:b9"), "cannot be read"),
        (("--timeout", "0"), "--timeout is 0"),
        (("--limit", "0"), "--limit is 0"),
        (("--store", "nowhere://x"), "nowhere"),
        (("--html", "/nowhere/report.html"), "--html '/nowhere/report.html' cannot be written"),
        (("--address", "somewhere"), "--address is 'somewhere'"),
    ],
)
def test_bad_options_exit_2_and_say_why(tmp_path: Path, words, message: str) -> None:
    code, _, said = run("prebuild", str(write_config(tmp_path)), *words)
    assert code == 2
    assert message in said


def test_a_cluster_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    code, _, said = run("prebuild", str(write_config(tmp_path)), "--address", "127.0.0.1:9")
    assert code == 1
    assert "127.0.0.1:9 cannot be used" in said
    assert time.monotonic() - begun < 20


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = write_config(tmp_path, "[1]", f"file://{tmp_path}/file/store")
    code, _, said = run("prebuild", str(config))
    assert code == 1
    assert "file/store" in said


@pytest.mark.slow
def test_a_night_without_a_gpu_fills_the_store_for_every_target(tmp_path: Path) -> None:
    needs_minilm()
    needs_smollm2()
    needs(nvrtc.installed_version(), "NVRTC is missing: pip install 'rlx_ray[cuda13]'")
    fleet, store = str(ROOT / "configs" / "fleet.yaml"), f"file://{tmp_path}/store"
    code, record, said = run("prebuild", fleet, "--store", store, "--json", seconds=1500)
    assert code == 0, said
    assert set(statuses(record)) == {"compiled"}
    assert {r["target"] for r in record["rows"]} == {t.name for t in TARGETS}
    code, plan, _ = run("plan", fleet, "--store", store, "--json", "--check")
    assert (code, plan["present"]) == (0, plan["total"])
    assert {r.status for r in open_store(store).verify(deep=True)} == {"ok"}
    manifests = [Manifest.loads(p.read_bytes()) for p in tmp_path.glob("store/manifests/*/*.json")]
    roles = {(m.spec.target.kind, tuple(sorted(b.role for b in m.blobs))) for m in manifests}
    assert roles == {("cpu", ("code", "pool", "text")), ("cuda", ("code", "plan", "text"))}
