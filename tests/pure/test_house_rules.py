"""Rules of DESIGN.md that a machine can check."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = (ROOT / "rlx_ray", ROOT / "serve" / "rlx_serve")


def test_no_loop_is_printed_by_the_compiler() -> None:
    files = list((ROOT / "rlx_ray" / "compiler").rglob("*.py"))
    assert len(files) > 40
    for file in files:
        nodes = ast.walk(ast.parse(file.read_text()))
        texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [text for text in texts if "for (" in text], file.name


@pytest.mark.parametrize("module", ["ray", "cupy", "numpy", "fsspec", "yaml"])
def test_importing_the_package_pulls_in_nothing_heavy(module: str) -> None:
    code = f"import sys, rlx_ray; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_public_names_are_there() -> None:
    import rlx_ray

    for name in rlx_ray.__all__:
        assert getattr(rlx_ray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rlx_ray.nothing  # noqa: B018


def sources() -> dict[str, Path]:
    """The modules of both packages and their files."""
    return {
        ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): file
        for package in PACKAGES
        for file in package.rglob("*.py")
    }


def test_no_imports_go_in_a_circle() -> None:
    # Imports inside functions and those for types alone count too.
    files = sources()
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        used: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names):
                    used |= {one.name for one in names}
                case ast.ImportFrom(module=str(module), names=names):
                    inner = {f"{module}.{one.name}" for one in names}
                    used |= {one if one in files else module for one in inner}
        graph[name] = (used & files.keys()) - {name}
    graphlib.TopologicalSorter(graph).prepare()  # its CycleError names the circle
    assert sum(len(used) for used in graph.values()) > 1000


def test_rooms_and_modules_stay_small() -> None:
    long = [name for name, file in sources().items() if file.read_text().count("\n") > 320]
    assert not long
    assert len({file.stem for file in (ROOT / "rlx_ray").glob("*.py")} - {"__init__"}) <= 10


DOORS = {
    "yaml": {"rlx_ray/config/load.py"},
    "fsspec": {"rlx_ray/store/fs.py", "rlx_ray/checkpoint/"},
    "ray": {"rlx_ray/job/cluster.py", "rlx_ray/job/reach.py", "serve/rlx_serve/"},
    "cupy": {"rlx_ray/compiler/cuda/nvrtc.py", "rlx_ray/runtime/cuda.py"},
    "subprocess": {"rlx_ray/compiler/cpu/zig.py", "rlx_ray/job/child.py"},
    "pickle": set(),
}


@pytest.mark.parametrize("module", sorted(DOORS))
def test_one_door_each_to_the_outside(module: str) -> None:
    pattern = re.compile(rf"^\s*(import|from) {module}(\.|\s)", re.M)
    users = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in package.rglob("*.py")
        if pattern.search(file.read_text())
    }
    outside = {u for u in users if not any(u.startswith(door) for door in DOORS[module])}
    assert not outside


def test_ray_is_started_and_joined_in_one_place() -> None:
    users = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in package.rglob("*.py")
        if re.search(r"\b(ray\.init|RAY_AUTH_TOKEN=)", file.read_text())
    }
    assert users == {"rlx_ray/job/cluster.py"}


KINDS = {"cpu", "cuda"}
TABLES = {"rlx_ray/compiler/backend.py", "rlx_ray/runtime/loaders.py"}
"""Where what depends on a target's kind is looked up; replicas are placed by it as a name in a
config (`config/serve.py`). All else is a field of Target."""


def asked(tree: ast.AST) -> set[str]:
    """How a syntax tree asks for a kind of target: by tables of them, by comparing, by matching."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Dict(keys=keys) if {getattr(k, "value", None) for k in keys} >= KINDS:
                found.add("table")
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
                values = {getattr(c, "value", None) for s in sides for c in ast.walk(s)}
                kinds = [s for s in sides if isinstance(s, ast.Attribute) and s.attr == "kind"]
                if kinds and {v for v in values if isinstance(v, str)} & KINDS:
                    found.add("comparison")
            case ast.match_case(pattern=ast.MatchValue(value=ast.Constant(value=str(value)))):
                if value in KINDS:
                    found.add("match")
            case ast.Call(func=ast.Attribute(attr="startswith"), args=[ast.Constant(value=str(v))]):
                if v.rstrip("-") in KINDS:
                    found.add("comparison")
    return found


def test_the_kind_of_a_target_is_asked_in_tables_alone() -> None:
    found = {
        file.relative_to(ROOT).as_posix(): asked(ast.parse(file.read_text()))
        for package in PACKAGES
        for file in package.rglob("*.py")
    }
    assert {name for name, ways in found.items() if "table" in ways} == TABLES
    assert {name: ways for name, ways in found.items() if ways - {"table"}} == {}
    assert asked(ast.parse('x = 1 if target.kind == "cuda" else 2')) == {"comparison"}


ONE_SUBJECT = {
    "backend": "each backend's entry, and the choice among them",
    "bert": "one family: its checkpoints, its graph",
    "embedding": "plan and merge, and what a request does with them",
    "llama": "one family: its checkpoints, its graph",
    "lower": "one level to the next",
    "plan": "a room's work and its command",
    "prebuild": "a room's work and its command",
    "printer": "the text of each level",
    "reader": "strict reading: of a config, of a component's JSON",
    "sampling": "tokens from logits: on the host, on a device",
    "serve": "what a config says of it, and its command",
    "verify": "the verifier of each level",
}
"""Modules of one name in several rooms, and the subject that they share."""


def test_modules_of_one_name_share_a_subject() -> None:
    rooms = Counter(file.stem for file in sources().values() if file.stem != "__init__")
    assert {name for name, count in rooms.items() if count > 1} == set(ONE_SUBJECT)


def test_no_two_rooms_have_a_public_class_of_one_name() -> None:
    names = Counter(
        node.name
        for file in sources().values()
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_a_tests_name_has_at_most_60_characters() -> None:
    names = [
        node.name
        for file in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(names) > 1000
    assert [name for name in names if name.startswith("test_") and len(name) > 60] == []


def test_a_section_of_the_design_fits_a_screen() -> None:
    sections = re.split(r"^## ", (ROOT / "DESIGN.md").read_text(), flags=re.M)
    assert len(sections) > 15
    assert {s.splitlines()[0]: s.count("\n") for s in sections if s.count("\n") > 45} == {}


def test_files_that_the_design_names_are_there() -> None:
    files = list(ROOT.glob("*.*"))
    for folder in ("rlx_ray", "serve", "tests", "docs", "k8s", "configs"):
        files += (ROOT / folder).rglob("*.*")
    named = re.findall(
        r"`([\w/*.-]+\.(?:py|c|h|cu|cuh|md|toml))`", (ROOT / "DESIGN.md").read_text()
    )
    assert len(named) > 100
    assert [name for name in named if not any(file.match(name) for file in files)] == []
