"""The arrows of the house: who may use whom, read from the includes and imports themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "pshard"

# Folder of csrc: the other folders that it may include. bindings -> plan, fleet -> cost, memory -> model, machine.
MAY_INCLUDE = {
    "model": set(),
    "machine": set(),
    "memory": {"model", "machine"},
    "cost": {"model", "machine"},
    "plan": {"cost", "memory", "model", "machine"},
    "fleet": {"cost", "memory", "model", "machine"},
    "latency": set(),
    "probe": {"machine"},
    "stream": {"machine", "model", "probe"},
    "bindings": {"plan", "fleet", "cost", "memory", "model", "machine", "latency", "probe", "stream"},
}
CPP_FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in {".hpp", ".cpp", ".cu", ".cuh"})
PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))

# The core computes. Files and words belong to Python, Python to the bindings, CUDA to .cu files.
INPUT_OUTPUT = re.compile(r"#include <(iostream|fstream|cstdio|stdio\.h|print)>|\bf?printf\s*\(|std::c(out|err)")
PYTHON_HEADER = re.compile(r"#include [<\"](pybind11/|Python\.h)")
CUDA_HEADER = re.compile(r"#include [<\"]cuda")


def cpp_violations(path: Path, text: str) -> list[str]:
    """What a C++ file, at a path relative to csrc, does that its folder may not."""
    folder = path.parts[0]
    if folder not in MAY_INCLUDE:
        return [f"{path}: folder {folder} has no rule"]
    found = [
        f"{path}: includes {other}/, which {folder} may not use"
        for other in re.findall(r'#include "([^"/]+)/', text)
        if other != folder and other not in MAY_INCLUDE[folder]
    ]
    if INPUT_OUTPUT.search(text):
        found.append(f"{path}: prints or opens files")
    if PYTHON_HEADER.search(text) and folder != "bindings":
        found.append(f"{path}: knows Python")
    if CUDA_HEADER.search(text) and path.suffix not in {".cu", ".cuh"}:
        found.append(f"{path}: knows CUDA outside a .cu file")
    if re.search(r"^\s*using namespace (?!py::literals;)", text, re.MULTILINE):
        found.append(f"{path}: using namespace")
    n_lines = text.count("\n")
    if path.suffix == ".hpp":
        if not re.match(r"(//[^\n]*\n)+#pragma once\n", text):
            found.append(f"{path}: does not open with a comment that says what it is, and #pragma once")
        if n_lines > 150:
            found.append(f"{path}: a header of {n_lines} lines")
    if n_lines > 600:
        found.append(f"{path}: {n_lines} lines")
    return found


def module_name(path: Path) -> str:
    return ".".join(("pshard", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported_names(source: str, known: Iterable[str], *, for_types: bool = True) -> set[str]:
    """Modules that a source imports anywhere in it: the package's own by full name, others by their first word.

    `for_types`: also what only type checkers import.
    """
    names: set[str] = set()
    known = set(known)
    tree = ast.parse(source)
    if not for_types:
        conditions = [ast.unparse(node.test) if isinstance(node, ast.If) else "" for node in tree.body]
        tree.body = [node for node, test in zip(tree.body, conditions, strict=True) if test != "TYPE_CHECKING"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            names.update(submodules)
            if len(submodules) < len(node.names):
                names.add(node.module)
    return {name if name in known else name.partition(".")[0] for name in names}


MODULES = {module_name(path): path.read_text() for path in PYTHON_FILES}
IMPORTS = {name: imported_names(source, MODULES) for name, source in MODULES.items()}


def reachable(start: str) -> set[str]:
    """Modules of the package that importing or running `start` leads to."""
    found: set[str] = set()
    pending = [start]
    while pending:
        for name in IMPORTS.get(pending.pop(), set()) & IMPORTS.keys():
            # the package's own __init__ names everything lazily
            if name not in found and name != "pshard":
                found.add(name)
                pending.append(name)
    return found


@pytest.mark.parametrize("path", CPP_FILES, ids=lambda path: str(path.relative_to(CSRC)))
def test_cpp_file_keeps_the_rules(path: Path) -> None:
    assert cpp_violations(path.relative_to(CSRC), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("model/a.cpp", '#include "machine/machine.hpp"\n', "includes machine/, which model may not use"),
        ("cost/a.cpp", '#include "plan/search.hpp"\n', "includes plan/, which cost may not use"),
        ("probe/a.cpp", '#include "plan/search.hpp"\n', "includes plan/, which probe may not use"),
        ("memory/a.cpp", "#include <pybind11/pybind11.h>\n", "knows Python"),
        ("probe/a.cpp", "#include <cuda_runtime_api.h>\n", "knows CUDA outside a .cu file"),
        ("plan/a.cpp", "#include <iostream>\n", "prints or opens files"),
        ("plan/a.cpp", "void f() { printf(1); }\n", "prints or opens files"),
        ("plan/a.cpp", "using namespace std;\n", "using namespace"),
        ("plan/a.hpp", "#pragma once\n", "does not open with a comment that says what it is, and #pragma once"),
        ("plan/a.hpp", "// A.\n#pragma once\n" + "\n" * 149, "a header of 151 lines"),
        ("attic/a.cpp", "", "folder attic has no rule"),
    ],
)
def test_cpp_rules_can_be_broken(path: str, text: str, message: str) -> None:
    assert cpp_violations(Path(path), text) == [f"{path}: {message}"]


def folder(module: str) -> str:
    """`model` for pshard.model.hyperparameters; nothing for what lies in the package itself, which all may use."""
    return next((name.removeprefix("pshard.") for name in FOLDERS if f"{module}.".startswith(f"{name}.")), "")


FOLDERS = {module_name(path) for path in PYTHON_FILES if path.name == "__init__.py" and path.parent != PACKAGE}
RUNS = {
    name: imported_names(source, MODULES, for_types=False) & MODULES.keys() - {"pshard", name}
    for name, source in MODULES.items()
}
BETWEEN_FOLDERS = {
    here: {folder(name) for module, names in RUNS.items() if folder(module) == here for name in names} - {here, ""}
    for here in map(folder, FOLDERS)
}


@pytest.mark.parametrize("graph", [RUNS, BETWEEN_FOLDERS], ids=["modules", "folders"])
def test_python_imports_have_no_cycle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_folder_uses_what_its_modules_use() -> None:
    assert folder("pshard.model.hyperparameters") == folder("pshard.model") == "model"
    assert folder("pshard.errors") == folder("pshard") == ""
    assert BETWEEN_FOLDERS["memory"] >= {"launch", "model"}


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("pshard.model.model", {"pshard.machine.machine", "pshard.planning.planner"}),
        ("pshard.machine.machine", {"pshard.model.model", "pshard.planning.planner"}),
    ],
)
def test_model_and_machine_know_neither_each_other_nor_the_plan(module: str, never: set[str]) -> None:
    assert module in IMPORTS
    assert reachable(module) & never == set()


def test_the_plan_knows_both() -> None:
    assert {"pshard.model.model", "pshard.machine.machine"} <= reachable("pshard.planning.planner")


def test_only_the_command_line_talks() -> None:
    outside = {name: imports for name, imports in IMPORTS.items() if not name.startswith("pshard.cli")}
    assert {name: imports & {"click", "rich"} for name, imports in outside.items() if imports & {"click", "rich"}} == {}
    users = {name for name, imports in outside.items() if any(i.startswith("pshard.cli") for i in imports)}
    assert users == {"pshard.__main__"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import numpy.linalg", {"numpy"}),
        ("from pshard.model import model, plan", {"pshard.model.model", "pshard"}),
        ("def f():\n    from pshard.model.model import Model", {"pshard.model.model"}),
        ("from pshard.model.model import Model, read_model", {"pshard.model.model"}),
    ],
)
def test_imports_are_read_wherever_they_stand(source: str, names: set[str]) -> None:
    assert imported_names(source, {"pshard", "pshard.model.model"}) == names


def test_imports_for_types_are_told_apart() -> None:
    source = "import json\nif TYPE_CHECKING:\n    from pshard.model.model import Model"
    assert imported_names(source, {"pshard.model.model"}) == {"json", "pshard.model.model"}
    assert imported_names(source, {"pshard.model.model"}, for_types=False) == {"json"}


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_file_is_a_room_not_a_hall(path: Path) -> None:
    assert path.read_text().count("\n") <= 600
