"""The command line: results on standard output, errors on the other, no traceback."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from rlx_ray import cli
from rlx_ray.commands import doctor
from rlx_ray.commands.serve import example
from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.errors import DeviceError
from rlx_ray.runtime.cuda import Installation, this_host
from rlx_ray.target import CUDA_TARGETS, NVRTC_VERSIONS
from tests.support.programs import Bench
from tests.support.serving import write_config
from tests.support.tiny import write_tiny_bert

ROOT = Path(__file__).parent.parent.parent
GOLDEN = json.loads((ROOT / "tests" / "golden" / "rlx_keys.json").read_text())["components"]


@pytest.fixture
def config(tmp_path: Path) -> str:
    write_tiny_bert(tmp_path / "model")
    path = tmp_path / "config.yaml"
    path.write_text(
        """
store: {url: "file://store", cache_dir: cache}
targets: [host]
models:
  - name: tiny
    family: bert
    source: model
    matrix: [{phase: encoder, batch: [1, 2], seq: [8, 16]}]
"""
    )
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def call(*words: str, stdin: str = "") -> tuple[int, str, str]:
        data = io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape")))
        monkeypatch.setattr("sys.stdin", data)
        try:
            code = cli.main(words)
        except SystemExit as left:  # argparse
            code = int(left.code or 0)
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def test_key_answers_line_by_line(run) -> None:
    lines = "\n".join(json.dumps(c) for c in GOLDEN[:5])
    code, out, _ = run("key", "-", stdin=lines)
    assert code == 0
    for line, row in zip(out.splitlines(), GOLDEN, strict=False):
        answer = json.loads(line)
        assert answer == {k: row[k] for k in answer}


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (("key", "-"), "{}", "line 1"),
        (("key", "-"), "[1]", "line 1"),
        (("key", "nothing.jsonl"), "", "nothing.jsonl"),
        (("plan", "nothing.yaml"), "", "nothing.yaml"),
        (("embed", "CONFIG", "tinny"), '"a"', "did you mean 'tiny'"),
        (("embed", "CONFIG", "tiny"), "", "no texts"),
        (("embed", "CONFIG", "tiny"), "7", "line 1 is int"),
        (("embed", "CONFIG", "tiny"), "\udcff", "line 1 is not JSON"),
        (
            ("embed", "CONFIG", "tiny"),
            json.dumps("ray " * 30),
            "largest variant of 'tiny' takes 16",
        ),
        (("explain", "CONFIG", "tiny", "--variant", "encoder:b3:s8"), "", "did you mean"),
        (("store", "ls"), "", "neither CONFIG nor --store"),
        (("serve", "nothing.yaml"), "", "nothing.yaml"),
    ],
)
def test_bad_usage_exits_2_and_says_why(
    run, config: str, words: tuple[str, ...], stdin: str, message: str
) -> None:
    code, out, said = run(*(config if w == "CONFIG" else w for w in words), stdin=stdin)
    assert code == 2, said
    assert message in said
    assert not out
    assert "Traceback" not in said


def test_a_listing_holds_whole_names_and_each_reason_once(run, config: str) -> None:
    row = "{phase: encoder, batch: 64, seq: 16, rows: [128, 512], profile: F16}"
    text = Path(config).read_text().replace("seq: [8, 16]}", f"seq: [8, 16]}}, {row}")
    Path(config).write_text(text.replace("F16", "{precision: {compute: f16}}"))
    _, out, said = run("plan", config, "--json")
    assert out, said
    plan = json.loads(out)
    code, out, _ = run("plan", config)
    assert code == 0
    assert all(row["cache_key"] in out and f"{row['variant']} " in out for row in plan["rows"])
    (why,) = {row["reason"] for row in plan["rows"] if row["status"] == "unsupported"}
    assert out.count(why) == 1
    assert f"[1] {why}" in out
    assert "unsupported [1]" in out


def test_no_command_prints_the_help_and_exits_2(run) -> None:
    code, out, _ = run()
    assert code == 2
    assert "prebuild" in out


def test_version_names_build_and_toolchain(run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "rlx-ray",
        "build_id",
        "abi",
        "toolchain",
        "toolchain",
    ]


def test_embed_compiles_what_is_missing_and_publishes_it(bench: Bench, run, config: str) -> None:
    code, out, _ = run("embed", config, "tiny", stdin='"a fox"\n\n"ray"\n')
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [len(v) for v in lines] == [32, 32]
    code, out, _ = run("embed", config, "tiny", "--json", stdin='"a fox"')
    assert json.loads(out)["embeddings"][0] == pytest.approx(lines[0], abs=2e-6)
    code, out, _ = run("store", "ls", config, "--json")
    assert {r["status"] for r in json.loads(out)["rows"]} == {"present"}
    code, out, _ = run("store", "verify", config, "--deep", "--json")
    assert code == 0
    code, _, said = run("store", "pull", config)
    assert code == 1
    assert "missing: tiny" in said
    code, out, _ = run("plan", config, "--json", "--check")
    assert code == 1
    assert json.loads(out)["missing"] + json.loads(out)["present"] == 4


@pytest.mark.parametrize(
    ("family", "row", "path", "body"),
    [
        ("bert", {"phase": "encoder"}, "embeddings", '{"model": "tiny", "input": "hello"}'),
        ("llama", {"phase": "prefill"}, "completions", '{"model": "tiny", "prompt": "hello"}'),
    ],
)
def test_serve_suggests_what_its_first_model_answers(
    tmp_path: Path, family: str, row: dict[str, object], path: str, body: str
) -> None:
    model = {"name": "tiny", "family": family, "source": "x"}
    config = write_config(tmp_path, [{**model, "matrix": [{"batch": 1, "seq": 8, **row}]}])
    said = example("http://h:1", config.models[0])
    assert said.startswith(f"curl http://h:1/v1/{path} -H 'content-type: application/json' ")
    assert said.endswith(f" -d '{body}'")


def test_store_verify_finds_what_was_altered(bench: Bench, run, config: str) -> None:
    run("embed", config, "tiny", stdin='"ray"')
    blobs = [p for p in (Path(config).parent / "store" / "blobs").rglob("*") if p.is_file()]
    data = bytearray(blobs[0].read_bytes())
    data[0] ^= 1
    blobs[0].write_bytes(data)
    code, _, said = run("store", "verify", config, "--deep")
    assert code == 1
    assert "damaged" in said


def test_explain_shows_every_stage(run, config: str) -> None:
    code, out, _ = run("explain", config, "tiny", "--variant", "encoder:b2:s16", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["variant"] == "encoder:b2:s16"
    memory = found["key"]["memory"]
    for part in memory.values():
        assert part["bytes"] <= 1.1 * part["liveness_bound"]
    assert {n["stage"] for n in found["notes"]} == {"dispatch", "fuse", "schedule"}
    code, out, _ = run("explain", config, "tiny", "--show", "source")
    assert '#include "gemm.h"' in out
    assert "== hir ==" not in out


def test_explain_shows_the_launches_of_a_cuda_target(run, config: str) -> None:
    path = Path(config)
    path.write_text(path.read_text().replace("[host]", "[cuda-sm_90]"))
    code, out, _ = run("explain", config, "tiny", "--variant", "encoder:b2:s16", "--json")
    assert code == 0
    found = json.loads(out)
    assert "lir" not in found
    assert "matvec" in found["launches"]
    (plan,) = found["key"]["memory"].values()
    assert plan["bytes"] <= 1.1 * plan["liveness_bound"]
    code, out, _ = run("explain", config, "tiny", "--show", "launches")
    assert out.splitlines()[0] == "== launches =="
    code, out, _ = run("explain", config, "tiny", "--show", "source")
    assert '#include "matvec.cu"' in out
    words = ("explain", config, "tiny", "--variant", "encoder:b2:s16", "--target", "cuda-sm_90")
    code, out, _ = run(*words, "--show", "resources")
    head, *rest = out.splitlines()[1:]
    assert head.split() == list(found["resources"][0])
    assert [line.split()[0] for line in rest] == [one["kernel"] for one in found["resources"]]
    assert all(0 < one["occupancy"] <= 1 for one in found["resources"])
    code, _, said = run("explain", config, "tiny", "--target", "cuda-sm_80")
    assert code == 2
    assert "--target is 'cuda-sm_80'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--show", "key", "--show", "resources"), "--show is 'resources', which a variant for"),
        (("--show", "launches"), "It has key, hir, mir, notes, lir, source."),
        (("--profile", "--target", "cuda-sm_90"), "Leave out --target and --show"),
        (("--profile", "--show", "lir"), "Leave out --target and --show"),
    ],
    ids=str,
)
def test_explain_refuses_what_it_would_not_print(run, config: str, words, said: str) -> None:
    code, out, err = run("explain", config, "tiny", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_explain_profiles_a_variant_with_counters(bench: Bench, run, config: str) -> None:
    words = ("explain", config, "tiny", "--variant", "encoder:b2:s16", "--profile")
    code, out, _ = run(*words, "--rounds", "3", "--threads", "2", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["threads"] == 2
    assert 0 < found["busy"] <= 1
    matmuls = [k for k in found["kernels"] if k["kernel"].startswith("gemm")]
    assert all(k["gflops"] > 0 and k["gbytes"] > 0 for k in matmuls)
    assert sum(k["share"] for k in found["kernels"]) == pytest.approx(1)
    code, out, _ = run(*words, "--rounds", "2")
    assert "GFLOP/s" in out
    code, _, said = run(*words, "--threads", "0")
    assert code == 2
    assert "--threads is 0" in said


def test_doctor_says_what_is_wrong_and_the_remedy(bench: Bench, run, config: str) -> None:
    code, out, _ = run("doctor", config, "--json")
    assert code == 0, out
    subjects = {c["subject"]: c for c in json.loads(out)["checks"]}
    assert subjects["model tiny"]["status"] == "ok"
    assert subjects["build cpu-aarch64"]["status"] == "ok"
    (Path(config).parent / "model" / "model.safetensors").unlink()
    code, out, _ = run("doctor", config)
    assert code == 1
    line = next(line for line in out.splitlines() if "model tiny" in line)
    assert line.startswith("fail")
    assert "->" in line


def test_doctor_builds_for_every_gpu_and_says_what_it_sees(run) -> None:
    code, out, _ = run("doctor", "--json")
    assert code == 0, out
    checks = {c["subject"]: c for c in json.loads(out)["checks"]}
    for target in CUDA_TARGETS:
        assert checks[f"build {target.name}"]["status"] == "ok"
    assert NVRTC_VERSIONS[13][0] in checks["nvrtc"]["found"]
    assert checks["cuda runtime"]["found"].startswith("13.")
    if not this_host().devices:
        assert checks["run cuda-sm_90"]["found"].startswith("not here: ")


@pytest.mark.parametrize(
    ("found", "subject", "status", "said"),
    [
        (Installation("13.2", "13.0", (("sm_90", "H100", 80 << 30),)), "device 0", "ok", "H100"),
        (Installation("13.2", "", ()), "cuda driver", "ok", "not here"),
        (Installation("13.2", "12.4", ()), "cuda driver", "fail", "rlx_ray[gpu12]"),
        (Installation("13.2", "13.0", ()), "device", "warn", "CUDA_VISIBLE_DEVICES"),
        (DeviceError("CuPy does not load.", "Install it."), "cuda", "ok", "not here: CuPy"),
    ],
)
def test_doctor_tells_what_cuda_has_and_how_to_mend_it(
    found: Installation | DeviceError,
    subject: str,
    status: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def installation() -> Installation:
        if isinstance(found, DeviceError):
            raise found
        return found

    monkeypatch.setattr(doctor, "installation", installation)
    check = next(c for c in doctor.cuda_checks() if c.subject == subject)
    assert check.status == status
    assert said in f"{check.found} {check.remedy}"


def test_doctor_fails_where_nvrtc_is_not_the_pinned_one(
    run, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "installed_version", lambda: "13.0.1")
    code, out, _ = run("doctor", config)
    assert code == 1
    line = next(line for line in out.splitlines() if "build cuda-sm_80 " in line)
    assert line.startswith("fail")
    assert "nvidia-cuda-nvrtc==13.5.37" in line


def test_plan_shows_what_nobody_here_can_build(
    run, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(config).read_text().replace("[host]", "[cuda-sm_90, cuda-compute_80, host]")
    Path(config).write_text(text)
    code, out, _ = run("plan", config, "--json")
    assert code == 0
    assert json.loads(out)["missing"] == 12
    monkeypatch.setattr(nvrtc, "supported", lambda: ("sm_80", "compute_80"))
    code, out, _ = run("plan", config, "--json", "--check")
    assert code == 1
    plan = json.loads(out)
    assert (plan["missing"], plan["unsupported"]) == (8, 4)
    assert "does not compile for sm_90" in plan["refused"]["cuda-sm_90"]
    rows = [r for r in plan["rows"] if r["status"] == "unsupported"]
    assert {(r["target"], r["reason"]) for r in rows} == set(plan["refused"].items())
    words = ("--target", "cuda-sm_90", "--check")
    code, out, said = run("plan", config, *words)
    assert code == 1
    assert "cannot build for cuda-sm_90: NVRTC" in said
    code, out, said = run("prebuild", config, "--target", "cuda-sm_90", "--json")
    assert code == 1
    assert json.loads(out)["refused"] == plan["refused"]
    assert "cannot build for cuda-sm_90: NVRTC" in said
