"""C text to a shared object with the pinned `zig cc`; the one door to the C compiler.

The same text gives the same bytes in any folder, process and machine: the unit is compiled from a
fixed relative name in a fresh folder, with no debug information and no build id.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path

from rlx_ray import record
from rlx_ray.digest import files_digest, json_digest
from rlx_ray.errors import CompileError, ToolchainMismatch, ToolchainMissing, signalled
from rlx_ray.target import Target, Toolchain

KERNELS = Path(__file__).parent.parent / "kernels" / "c"
_LOG_LINES = 12


def installed_version() -> str | None:
    """The version of the `ziglang` wheel on this machine; None if there is none."""
    try:
        return metadata.version("ziglang") if importlib.util.find_spec("ziglang") else None
    except metadata.PackageNotFoundError:
        return None


def check(toolchain: Toolchain) -> None:
    """Check that this machine has the pinned toolchain.

    Raises:
        ToolchainMissing: it has none.
        ToolchainMismatch: it has another version.
    """
    found = installed_version()
    if found is None:
        raise ToolchainMissing(
            f"toolchain 'zig' {toolchain.version} is not on this machine.",
            "Install it with: pip install 'rlx_ray[build]'",
        )
    if found != toolchain.version:
        raise ToolchainMismatch(
            f"toolchain 'zig' is {found} here, the spec pins {toolchain.version}.",
            f"Install it with: pip install ziglang=={toolchain.version}",
        )


def _zig() -> str:
    """The compiler's program inside the `ziglang` wheel."""
    spec = importlib.util.find_spec("ziglang")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise ToolchainMissing(
            "toolchain 'zig' has no program in the ziglang package.",
            "Install it again: pip install --force-reinstall 'rlx_ray[build]'",
        )
    return str(Path(folders[0]) / "zig")


@cache
def _cache_dir() -> str:
    """A folder for zig's own cache that this user owns, kept between builds of a machine."""
    folder = Path(tempfile.gettempdir()) / f"rlx-zig-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        return tempfile.mkdtemp(prefix="rlx-zig-")
    return str(folder)


def compile_c(source: str, toolchain: Toolchain, *, defines: tuple[str, ...] = ()) -> bytes:
    """The bytes of the shared object that a C unit gives.

    Args:
        source: the unit's text; headers are found in kernels/c.
        toolchain: the pinned compiler and its flags.
        defines: more flags, for tests.

    Raises:
        ToolchainMissing, ToolchainMismatch: the machine lacks the pinned compiler.
        CompileError: the compiler refused the unit, and the message holds its first lines; or it
            crashed or was killed.
    """
    check(toolchain)
    with tempfile.TemporaryDirectory(prefix="rlx-build-") as name:
        folder = Path(name)
        (folder / "unit.c").write_text(source, encoding="utf-8")
        for header in sorted(KERNELS.glob("*.h")):
            shutil.copyfile(header, folder / header.name)
        done = subprocess.run(
            [_zig(), "cc", *toolchain.flags, *defines, "-I.", "unit.c", "-o", "unit.so"],
            cwd=folder,
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": _cache_dir(), "ZIG_LOCAL_CACHE_DIR": name},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode < 0:
            raise signalled("the C compiler", -done.returncode)
        if done.returncode:
            log = "\n".join((done.stderr or done.stdout).strip().splitlines()[:_LOG_LINES])
            raise CompileError(f"the C compiler refused the unit (exit {done.returncode}):\n{log}")
        return (folder / "unit.so").read_bytes()


def build(source: str, target: Target, toolchain: Toolchain) -> bytes:
    """The code blob of a variant; `source` is what `codegen.c.emit` printed."""
    return compile_c(source, toolchain)


def build_pool(target: Target, toolchain: Toolchain) -> bytes:
    """The thread pool for a target; built once per machine, since every artifact carries it.

    The copy kept in this user's private folder is named by all that decides its bytes.
    """
    check(toolchain)
    names = ("pool.c", "rlx_abi.h")
    key = json_digest([record.write(toolchain), files_digest(KERNELS, names)])
    kept = Path(_cache_dir()) / f"pool-{key}.so"
    if kept.exists():
        return kept.read_bytes()
    data = compile_c((KERNELS / "pool.c").read_text(encoding="utf-8"), toolchain)
    staged = kept.with_suffix(f".{os.getpid()}")
    staged.write_bytes(data)
    staged.replace(kept)
    return data
