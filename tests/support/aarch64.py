"""Compiled aarch64 code run for real, by qemu's emulation of one processor's user mode.

A variant's unit and the thread pool are compiled with the target's own pinned flags, only not
linked as shared objects but statically with a small program (aarch64.c) that needs no C library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.compiler.backend import backend_for
from rlx_ray.compiler.cpu import zig
from rlx_ray.compiler.cpu.backend import BACKEND
from rlx_ray.compiler.cpu.lir import Lir
from rlx_ray.runtime.cpu import view
from rlx_ray.runtime.executable import check_inputs
from rlx_ray.runtime.weights import Weights
from rlx_ray.target import Target
from tests.support.needs import needs
from tests.support.programs import Bench

MAIN = Path(__file__).with_suffix(".c")
CPUS = {"cpu-aarch64": "cortex-a57", "cpu-aarch64-neoverse_v1": "max"}
"""The processor that qemu plays for each target: the plainest that it promises to run on."""


def qemu() -> str:
    """The emulator's program; the test skips without one."""
    found = shutil.which("qemu-aarch64")
    needs(found, "qemu-aarch64, from Debian's qemu-user")
    return str(found)


class EmulatedBench(Bench):
    """Builds programs for an aarch64 target and runs them in processes of qemu."""

    def __init__(self, folder: Path, target: Target) -> None:
        super().__init__(folder, target)
        self._qemu = qemu()
        self._objects: dict[str, Path] = {}
        self._programs: dict[str, Path] = {}

    def execute(self, program: Path, *words: object) -> None:
        """Run a program to its end; its exit status must be 0."""
        command = [self._qemu, "-cpu", CPUS[self.target.name], program, *words]
        subprocess.run([str(word) for word in command], check=True, timeout=120)

    def compile(self, source: str) -> Path:
        """The object file of a C text, with the target's flags."""
        if source not in self._objects:
            text = self.file(source.encode(), "unit.c")
            self._zig(*self._flags, "-c", text, "-o", text.with_suffix(".o"))
            self._objects[source] = text.with_suffix(".o")
        return self._objects[source]

    def link(self, *objects: Path) -> Path:
        """A static program."""
        self._count += 1
        program = self.folder / f"{self._count}-program"
        self._zig(*self._flags, "-static", *objects, "-o", program)
        return program

    @property
    def _flags(self) -> list[str]:
        kept = [f for f in self.toolchain.flags if f != "-shared" and not f.startswith("-Wl,")]
        return [*kept, f"-I{zig.KERNELS}", f"-I{MAIN.parent}"]

    def _zig(self, *words: object) -> None:
        zig.check(self.toolchain)
        cache = zig._cache_dir()
        subprocess.run(
            [zig._zig(), "cc", *map(str, words)],
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache},
            check=True,
            timeout=300,
        )

    def load(self, lir: Lir, params: Mapping[str, np.ndarray], threads: int = 2) -> Emulated:
        """Compile a program and make it ready to run."""
        source = backend_for(self.target).emit(lir, self.target)
        if source not in self._programs:
            pool = self.compile((zig.KERNELS / "pool.c").read_text(encoding="utf-8"))
            self._programs[source] = self.link(MAIN, self.compile(source), pool)
        return Emulated(
            self, self._programs[source], BACKEND.binding(lir), self.weights(lir, params), threads
        )


class Emulated:
    """A program in a process of qemu: what CpuExecutable is on a real processor."""

    def __init__(
        self,
        bench: EmulatedBench,
        program: Path,
        manifest: BindingManifest,
        weights: Weights,
        threads: int,
    ) -> None:
        self._bench = bench
        self._program = program
        self._binding = manifest
        self._threads = threads
        offsets = {t.name: t.offset for t in weights.manifest.tensors}
        table = np.array([offsets[p.name] for p in manifest.params], np.int64)
        self._offsets = bench.file(table.tobytes(), "offsets")
        self._weights = bench.file(bytes(weights._map), "weights")

    def run(self, inputs: Mapping[str, np.ndarray], runs: int = 2) -> dict[str, np.ndarray]:
        """Forward passes, one after the other in one process; the last one's outputs."""
        check_inputs(self._binding.inputs, inputs)
        image = np.zeros(self._binding.arena, np.uint8)
        for wanted in self._binding.inputs:
            view(image, wanted)[...] = inputs[wanted.name]
        arena = self._bench.file(image.tobytes(), "arena")
        stride = self._binding.scratch
        self._bench.execute(
            self._program, self._weights, self._offsets, arena, self._threads, stride, runs
        )
        after = np.frombuffer(arena.read_bytes(), np.uint8)
        return {o.name: view(after, o).copy() for o in self._binding.outputs}
