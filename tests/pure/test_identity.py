"""What counts in the identities of compiler and packing: all that their imports can reach."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlx_ray.identity import (
    COMPILER,
    KERNELS,
    PACKAGE,
    PACKING,
    UNCOUNTED,
    build_id,
    compiler_digest,
    counted,
    imports,
    packing_digest,
    packing_id,
)
from tests.support.modules import loaded_by

MODULES = [COMPILER, *PACKING.values()]


def parsed(file: Path) -> Iterator[str]:
    """The names that a file imports, by Python's own parser; an oracle for `imports`."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            if all(part.isidentifier() for part in name.split(".")):
                yield name


def closure(module: str) -> set[str]:
    """The files of a module's import closure, by Python's own parser."""
    found: set[str] = set()
    todo = [module]
    while todo:
        parts = todo.pop().split(".")[1:]
        for end in range(len(parts) + 1):
            stem = "/".join(parts[:end])
            for file in (f"{stem}.py", f"{stem}/__init__.py".lstrip("/")):
                if (PACKAGE / file).is_file() and file not in found | UNCOUNTED.keys():
                    found.add(file)
                    names = parsed(PACKAGE / file)
                    todo += [n for n in names if n.partition(".")[0] == "rlx_ray"]
    return found


def test_imports_are_those_that_pythons_parser_finds() -> None:
    for file in PACKAGE.rglob("*.py"):
        wanted = {n for n in parsed(file) if n.partition(".")[0] == "rlx_ray"}
        assert set(imports(file.read_text(), "rlx_ray")) >= wanted, file


@pytest.mark.parametrize("module", MODULES)
def test_every_file_of_the_import_closure_counts(module: str) -> None:
    assert set(counted(PACKAGE, module)) == closure(module)


def test_at_most_four_files_do_not_count_each_with_a_reason() -> None:
    assert len(UNCOUNTED) <= 4
    for file, reason in UNCOUNTED.items():
        assert (PACKAGE / file).is_file()
        assert len(reason) > 20


def test_imports_inside_functions_and_entry_points_count() -> None:
    text = (
        "from top.a import (\n    one,  # a comment, with a comma\n    two as three,\n)\n"
        "if TYPE_CHECKING:\n    from top.unseen import x\n\n    import top.unseen\n"
        "def f():\n    import top.b, top.c as d\n    from top import e\n"
        "NAMES = {\"x\": \"top.f:FAMILY\", 'y': 'top.g'}\n"
        '"""See top.h and `top.i`."""\nimport topology\n'
    )
    assert set(imports(text, "top")) == {
        *("top.a", "top.a.one", "top.a.two", "top.b", "top", "top.e", "top.f", "top.g")
    } | {"top.c"}


@pytest.mark.parametrize("module", PACKING.values())
def test_packing_imports_nothing_that_does_not_count(module: str) -> None:
    assert loaded_by(f"import {module}") <= {*counted(PACKAGE, module), *UNCOUNTED}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    root = tmp_path / "rlx_ray"
    shutil.copytree(PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def changed(file: Path) -> Iterator[None]:
    """A file with one byte more, for a moment."""
    before = file.read_bytes()
    file.write_bytes(before + b"\n")
    yield
    file.write_bytes(before)


def test_a_byte_in_any_file_that_counts_changes_the_build_id(copy: Path) -> None:
    whole = compiler_digest(copy)
    assert whole.startswith(build_id())
    files = [*counted(copy, COMPILER)]
    files += [f.relative_to(copy).as_posix() for k in KERNELS for f in (copy / k).rglob("*.*")]
    assert {
        "shape.py",
        "dtype.py",
        "target.py",
        "artifact/manifest.py",
        "component/profile.py",
    } <= {*files}
    assert len([f for f in files if f.startswith("compiler/kernels/")]) > 40
    seen = {whole}
    for file in files:
        for _ in changed(copy / file):
            seen.add(compiler_digest(copy))
    assert len(seen) == len(files) + 1
    assert compiler_digest(copy) == whole


@pytest.mark.parametrize("way", PACKING)
def test_a_byte_in_any_file_that_packs_changes_its_packing_id(copy: Path, way: str) -> None:
    whole = packing_digest(copy, way)
    assert whole.startswith(packing_id(way))
    files = counted(copy, PACKING[way])
    assert {"weights/blocks.py", "weights/small_floats.py", "weights/sources.py"} <= {*files}
    seen = {whole}
    for file in files:
        for _ in changed(copy / file):
            seen.add(packing_digest(copy, way))
    assert len(seen) == len(files) + 1


def test_packing_in_one_way_is_not_changed_by_the_other(copy: Path) -> None:
    before = {way: packing_digest(copy, way) for way in PACKING}
    assert len(set(before.values())) == len(PACKING) == 2
    for way, module in PACKING.items():
        (other,) = PACKING.keys() - {way}
        for _ in changed(copy.parent / f"{module.replace('.', '/')}.py"):
            assert packing_digest(copy, way) != before[way]
            assert packing_digest(copy, other) == before[other]


def test_a_new_import_counts_without_being_listed(copy: Path) -> None:
    (copy / "compiler" / "passes" / "new.py").write_text("X = 1\n")
    before = compiler_digest(copy)
    assert "compiler/passes/new.py" not in counted(copy, COMPILER)
    fuse = copy / "compiler" / "passes" / "fuse.py"
    fuse.write_text(
        fuse.read_text() + "\n\ndef late():\n    from rlx_ray.compiler.passes import new\n"
    )
    assert "compiler/passes/new.py" in counted(copy, COMPILER)
    joined = compiler_digest(copy)
    assert joined != before
    (copy / "compiler" / "passes" / "new.py").write_text("X = 2\n")
    assert compiler_digest(copy) != joined


def test_what_only_serves_does_not_count(copy: Path) -> None:
    before = compiler_digest(copy)
    for file in ("errors.py", "__init__.py", "runtime/cpu.py", "store/aot.py", "config/load.py"):
        for _ in changed(copy / file):
            assert compiler_digest(copy) == before, file
