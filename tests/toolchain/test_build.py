"""Builders: determinism, targets, limits, and toolchains that are not as pinned."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import indent

import pytest

from rlx_ray.compiler.compile import compile
from rlx_ray.compiler.cpu import zig
from rlx_ray.digest import canonical_json
from rlx_ray.errors import BuildLimitError, CompileError, ToolchainMismatch, ToolchainMissing
from rlx_ray.identity import build_id, packing_id
from rlx_ray.job.build import BuildLimits, build
from rlx_ray.spec import SAYS, BuildSpec, FamilySource
from rlx_ray.target import CPU_TARGETS, Target, toolchain_for
from tests.support.programs import TINY, Bench
from tests.support.specs import make_spec

ROOT = Path(__file__).parent.parent.parent


def spec_for(target: Target) -> BuildSpec:
    return replace(
        make_spec(),
        config=canonical_json(TINY).decode(),
        target=target,
        toolchain=toolchain_for(target, {}),
        build_id=build_id(),
        packing=packing_id(target.can.packing),
    )


HASH_BLOBS = (
    "import sys; from rlx_ray.compiler.compile import compile; from rlx_ray.spec import BuildSpec; "
    "print([b.sha256 for b in compile(BuildSpec.loads(sys.stdin.buffer.read())).manifest.blobs])"
)


TWICE = [
    pytest.param(t, marks=() if i in (0, 3) else pytest.mark.slow, id=t.name)
    for i, t in enumerate(CPU_TARGETS)
]


@pytest.mark.parametrize("target", TWICE)
def test_equal_bytes_in_two_processes_folders_and_hash_seeds(
    bench: Bench, target: Target, tmp_path: Path
) -> None:
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(folder)}
        env["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(
            [sys.executable, "-c", HASH_BLOBS],
            input=spec_for(target).dumps(),
            capture_output=True,
            cwd=folder,
            env=env,
            check=True,
        )
        found.append(done.stdout)
    assert found[0] == found[1]


def dynamic_symbols(data: bytes) -> tuple[int, list[tuple[str, bool]], bool]:
    """Machine, (name, defined) of each dynamic symbol, and whether other libraries are needed."""
    (sections_at,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    headers = [
        struct.unpack_from("<IIQQQQIIQQ", data, sections_at + i * size) for i in range(count)
    ]
    symbols = []
    for header in headers:
        if header[1] != 11:  # SHT_DYNSYM
            continue
        strings = headers[header[6]][4]
        for at in range(header[4] + 24, header[4] + header[5], 24):
            name, _, _, section = struct.unpack_from("<IBBH", data, at)
            end = data.index(b"\0", strings + name)
            symbols.append((data[strings + name : end].decode(), section != 0))
    dynamic = next(h for h in headers if h[1] == 6)
    tags = [
        struct.unpack_from("<q", data, at)[0]
        for at in range(dynamic[4], dynamic[4] + dynamic[5], 16)
    ]
    return struct.unpack_from("<H", data, 18)[0], symbols, 1 in tags


@pytest.mark.parametrize("target", CPU_TARGETS, ids=lambda t: t.name)
def test_every_target_builds_self_contained_code(bench: Bench, target: Target) -> None:
    artifact = compile(spec_for(target))
    assert [b.role for b in artifact.manifest.blobs] == ["code", "pool", "text"]
    for blob, exported in zip(artifact.blobs, ("rlx_run", "rlx_runner"), strict=False):
        if blob.startswith(b"\x7fELF"):
            machine, symbols, needed = dynamic_symbols(blob)
            assert machine == (183 if "aarch64" in target.name else 62)
            assert not needed
            assert all(defined for _, defined in symbols), symbols
            assert (exported in {n for n, _ in symbols}) or ("rlx_pool_abi", True) in symbols
            assert b"/tmp" not in blob


Worker = Callable[[str], None]


@pytest.fixture
def worker(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Has children that compile run some code before anything else."""

    def begin(code: str) -> None:
        text = f"import os, sys\nif 'rlx_ray.job.worker' in sys.orig_argv:\n{indent(code, '    ')}"
        (tmp_path / "sitecustomize.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    return begin


def failing(body: str) -> str:
    return f"import rlx_ray.compiler.compile as c\ndef fail(spec):\n    {body}\nc.compile = fail"


def failure(bench: Bench, memory: int = 4 << 30) -> CompileError:
    with pytest.raises(CompileError) as caught:
        build(spec_for(bench.target), BuildLimits(memory=memory))
    return caught.value


def script(tmp_path: Path, body: str) -> Path:
    """A program in the place of the C compiler."""
    path = tmp_path / "compiler"
    path.write_text(f"#!{sys.executable}\nimport os, time\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_build_past_its_time_is_killed_and_named(bench: Bench) -> None:
    with pytest.raises(BuildLimitError, match=r"longer than 0\.05 s, its time limit"):
        build(spec_for(bench.target), BuildLimits(seconds=0.05))


@pytest.mark.parametrize("mib", [8, 24, 96], ids=["start", "compiler", "zig"])
def test_a_build_past_its_memory_is_named(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mib: int
) -> None:
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    error = failure(bench, mib << 20)
    assert type(error) is BuildLimitError
    found = re.search(
        r"had (\d+) MiB resident, more than its memory limit of (\d+) MiB", str(error)
    )
    assert found, error
    assert int(found[1]) > int(found[2]) == mib


def test_memory_of_the_c_compiler_counts_and_leaves_no_folder(
    bench: Bench, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = script(tmp_path, "held = b'1' * (400 << 20); time.sleep(60)")
    worker(f"import rlx_ray.compiler.cpu.zig as z\nz._zig = lambda: {str(greedy)!r}")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    error = failure(bench, 300 << 20)
    assert type(error) is BuildLimitError
    assert "memory limit of 300 MiB" in error.message
    assert [p.name for p in temporary.iterdir() if not p.name.startswith("rlx-zig-")] == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, "crashed: ended by signal 11 (SIGSEGV)"),
        (signal.SIGABRT, "crashed: ended by signal 6 (SIGABRT)"),
        (signal.SIGTERM, "was ended by signal 15 (SIGTERM) from outside"),
        (signal.SIGKILL, "was killed (SIGKILL), not by a limit of rlx_ray"),
    ],
)
def test_a_signal_is_named_and_is_no_limit(
    bench: Bench, worker: Worker, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    worker(failing(f"os.kill(os.getpid(), {int(number)})"))
    error = failure(bench)
    assert type(error) is CompileError
    assert words in error.message
    program = script(tmp_path, f"os.kill(os.getpid(), {int(number)})")
    worker(f"import rlx_ray.compiler.cpu.zig as z\nz._zig = lambda: {str(program)!r}")
    error = failure(bench)
    assert type(error) is CompileError
    assert error.message == f"the C compiler {words}."


def test_what_a_killed_build_had_resident_is_told(bench: Bench, worker: Worker) -> None:
    worker(failing("import time; time.sleep(1); os.kill(os.getpid(), 9)"))
    assert re.search(r"rlx_ray; it had up to \d+ MiB resident\.", failure(bench).message)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('a\\nb')", "ended with ValueError: a b (at "),
        ("raise KeyError('MemoryError')", "ended with KeyError: 'MemoryError' (at "),
        ("raise OSError(28, 'No space left')", "ended with OSError: [Errno 28] No space left (at "),
    ],
)
def test_an_unexpected_exception_is_one_line(
    bench: Bench, worker: Worker, body: str, words: str
) -> None:
    worker(failing(body))
    error = failure(bench)
    assert type(error) is CompileError
    assert words in error.message
    assert "sitecustomize.py:5)" in error.message
    assert "\n" not in str(error)
    assert ("fault of the compiler" in error.remedy) == ("space" not in words)


def test_an_import_that_fails_is_one_line(bench: Bench, worker: Worker) -> None:
    worker("sys.modules['rlx_ray.compiler.compile'] = None")
    error = failure(bench)
    assert "ended with ModuleNotFoundError: import of rlx_ray.compiler." in error.message
    assert "(at rlx_ray/job/worker.py:" in error.message
    assert "\n" not in str(error)


def test_memory_that_the_machine_refuses_is_named(bench: Bench, worker: Worker) -> None:
    worker(failing("bytearray(1 << 62)"))
    error = failure(bench)
    assert type(error) is BuildLimitError
    assert "was refused memory by the machine" in error.message
    assert "serve.build_memory_bytes" not in str(error)


def test_a_child_that_cannot_say_why_is_one_line(bench: Bench, worker: Worker) -> None:
    worker("print('one\\nMemoryError: two', file=sys.stderr, flush=True)\nos._exit(3)")
    error = failure(bench)
    assert type(error) is CompileError
    assert "ended with status 3, its last words: MemoryError: two." in error.message


def test_a_build_that_says_much_succeeds(bench: Bench, worker: Worker) -> None:
    worker("sys.stderr.write('MemoryError\\n' * 200_000)")
    assert build(spec_for(bench.target)).blobs


def test_another_toolchain_than_the_pinned_one_is_refused(bench: Bench) -> None:
    spec = spec_for(bench.target)
    other = replace(spec, toolchain=replace(spec.toolchain, version="0.0.1"))
    with pytest.raises(ToolchainMismatch, match=r"the spec pins 0\.0\.1"):
        build(other)


def test_no_toolchain_says_how_to_get_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zig, "installed_version", lambda: None)
    with pytest.raises(ToolchainMissing, match=r"pip install 'rlx_ray\[build\]'"):
        compile(spec_for(bench.target))


@pytest.mark.parametrize("field", ["build_id", "abi", "packing", "family_source"])
def test_a_spec_of_another_compiler_is_refused(bench: Bench, field: str) -> None:
    source = FamilySource("others", "1.0", "0" * 64)
    other = {"abi": 0, "family_source": source}.get(field, "0" * 16)
    with pytest.raises(CompileError, match=f"made where {field} is .*{SAYS[field]}"):
        compile(replace(spec_for(bench.target), **{field: other}))


def test_the_compilers_own_words_reach_the_user(bench: Bench) -> None:
    with pytest.raises(CompileError, match="undeclared"):
        zig.compile_c("int f(void) { return nothing; }", bench.toolchain)
