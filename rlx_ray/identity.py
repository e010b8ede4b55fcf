"""Which sources decide bytes, found by following imports: the identities of compiler and packing.

A list kept by hand forgets; what a module imports cannot. Everything that `compile` or a packing
module can reach by import statements counts, wherever in a file they stand, but for UNCOUNTED.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from glob import iglob
from pathlib import Path

from rlx_ray.digest import files_digest

PACKAGE = Path(__file__).parent

COMPILER = "rlx_ray.compiler.compile"
"""The module whose imports decide the bytes of artifacts."""

KERNELS = ("compiler/kernels",)
"""Folders whose every source decides them too; no import names these."""

PACKING = {"panels": "rlx_ray.weights.packing_cpu", "rows": "rlx_ray.weights.packing_cuda"}
"""By a target's way of packing, the module whose imports decide the bytes of packed weights."""

UNCOUNTED = {
    "__init__.py": "names the public functions, which it imports for callers, and the version",
    "errors.py": "classes and words of errors: where one is raised there are no bytes",
    "identity.py": "takes these digests; it names the modules that pack, which compile nothing",
}
"""Files that are reached and do not count, each with its reason; they are not followed either."""

_TYPING = re.compile(r"^([ \t]*)if TYPE_CHECKING:\n(?:\1[ \t]+.*\n|[ \t]*\n)+", re.M)
_IMPORTED = re.compile(r"[ \t]+import[ \t]+(\([^)]*\)|[^\n]+)")
_COMMENT = re.compile(r"#[^\n]*")


@cache
def build_id() -> str:
    """The first 16 hex digits of the digest of the sources that decide an artifact's bytes.

    Any change to them changes it, and with it every artifact digest: an artifact of another
    compiler is never taken for one of this.
    """
    return compiler_digest(PACKAGE)[:16]


@cache
def packing_id(way: str) -> str:
    """The same of the sources that decide packed weights, for a way of packing in PACKING."""
    return packing_digest(PACKAGE, way)[:16]


def compiler_digest(package: Path) -> str:
    """The sha256 over the compile side of an installation, as 64 hex digits.

    Args:
        package: its folder `rlx_ray`.
    """
    return files_digest(package, (*counted(package, COMPILER), *KERNELS))


def packing_digest(package: Path, way: str) -> str:
    """The sha256 over what packs weights in a way, as `compiler_digest`."""
    return files_digest(package, counted(package, PACKING[way]))


def counted(package: Path, module: str) -> tuple[str, ...]:
    """The files that a module's import closure has, less UNCOUNTED; relative to the package.

    Args:
        package: the folder of the package that the module is in; nothing is imported.
        module: its full name.
    """
    there = frozenset(
        os.path.relpath(f, package) for f in iglob(f"{package}/**/*.py", recursive=True)
    )
    found: set[str] = set()
    named: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in named:
            continue
        named.add(name)
        for file in (f for f in _files(name) if f in there and f not in UNCOUNTED):
            if file not in found:
                found.add(file)
                todo += imports((package / file).read_text(encoding="utf-8"), package.name)
    return tuple(sorted(found))


def imports(text: str, top: str) -> Iterator[str]:
    """Dotted names below a top-level package that a source imports or names as a whole string.

    A name may be that of a module or of something in one. What stands below `if TYPE_CHECKING` is
    for type checkers alone. Entry points such as `"package.module:attribute"` count as imports.
    """
    if "if TYPE_CHECKING:" in text:
        text = _TYPING.sub("", text)
    for found in re.finditer(rf"{top}\b[\w.]*", text):
        name, start, end = found[0], found.start(), found.end()
        before = text[text.rfind("\n", 0, start) + 1 : start].split()
        quoted = text[start - 1 : start] in ("'", '"') and text[end : end + 1] in ("'", '"', ":")
        if quoted or before[:1] == ["import"]:
            yield name
        elif before == ["from"]:
            yield name
            names = _IMPORTED.match(text, end)
            yield from (f"{name}.{one}" for one in _plain(names[1] if names else ""))


def _plain(names: str) -> Iterator[str]:
    """The names that an import statement lists, without what they are called here."""
    for part in _COMMENT.sub("", names).strip("() \n\t").split(","):
        yield from part.split()[:1]


def _files(name: str) -> Iterator[str]:
    """The files that importing a dotted name runs: each package's `__init__`, then the module.

    Those that are not there belong to a package, to a module, or to a name in one.
    """
    path = ""
    yield "__init__.py"
    for part in name.split(".")[1:]:
        yield f"{path}{part}.py"
        path = f"{path}{part}/"
        yield f"{path}__init__.py"
