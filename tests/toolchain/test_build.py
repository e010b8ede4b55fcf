"""Builders: determinism, targets, limits, and toolchains that are not as pinned."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlx_ray.codegen import zig
from rlx_ray.compiler import compile
from rlx_ray.digest import canonical_json
from rlx_ray.errors import BuildLimitError, CompileError, ToolchainMismatch, ToolchainMissing
from rlx_ray.identity import build_id, packing_id
from rlx_ray.job.build import Limits, build
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
        packing=packing_id(target.kind),
    )


HASH_BLOBS = (
    "import sys; from rlx_ray.compiler import compile; from rlx_ray.spec import BuildSpec; "
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


def test_a_build_past_its_time_is_killed_and_named(bench: Bench) -> None:
    with pytest.raises(BuildLimitError, match=r"longer than 0\.05 s"):
        build(spec_for(bench.target), Limits(seconds=0.05))


def test_a_build_past_its_memory_is_named(bench: Bench) -> None:
    for memory in (24 << 20, 160 << 20):  # Python itself, then the C compiler
        with pytest.raises(BuildLimitError, match="memory"):
            build(spec_for(bench.target), Limits(memory=memory))


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
