"""The floors: a module imports only from floors below its own, and nothing heavy on import.

The table is the map of the kit. A new module gets a line here; an import between two modules of
one floor is allowed only where `SAME_FLOOR` says so.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "memalpha_kit"
FLOORS = {
    0: "errors config records",
    1: "text memory stats progress loose_json rawgen models",
    2: "metrics prompts protocol sources stages store chat endpoint",
    3: "writers readers rewards scoring judges world dataset hub answering",
    4: "episode evaluation calibration leaks",
    5: "audit training report datacard methods comparison waterfall",
    6: "examples miniature pipeline real runs server",
    7: "grouping plan real_training sweep",
    8: "commands cli __main__",
}
SAME_FLOOR = {
    ("config", "errors"),
    ("records", "config"),
    ("records", "errors"),
    ("memory", "text"),
    ("sources", "stages"),
    ("stages", "metrics"),
    ("stages", "chat"),
    ("stages", "endpoint"),
    ("endpoint", "chat"),
    ("prompts", "sources"),
    ("answering", "readers"),
    ("world", "writers"),
    ("judges", "rewards"),
    ("comparison", "methods"),
    ("real", "runs"),
    ("miniature", "runs"),
    ("real_training", "plan"),
    ("cli", "commands"),
    ("__main__", "cli"),
}
HEAVY = {"torch", "transformers", "trl", "unsloth", "vllm", "datasets", "peft", "bitsandbytes"}
DERIVED = {"training/journal.py"}  # its class derives from transformers'; loaded by functions only
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}


def room(path: Path) -> str:
    """The module or folder directly below the package: `training/grpo.py` is in `training`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if room(path) != "__init__")
PROSE = {"ids": lambda path: str(path.relative_to(PACKAGE))}


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement brings in; empty for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def kit_rooms(path: Path) -> set[str]:
    """Rooms of the kit that a file imports anywhere, function bodies included."""
    names = [name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)]
    assert not any(name.startswith(".") for name in names), f"{path}: relative import"
    return {name.split(".")[1] for name in names if name.startswith("memalpha_kit.")}


@pytest.mark.parametrize("path", MODULES, **PROSE)
def test_a_module_imports_only_from_lower_floors(path):
    own = room(path)
    assert own in FLOOR_OF, f"{own}: give it a floor in {Path(__file__).name}"
    for other in kit_rooms(path) - {own, "__version__"}:
        assert other in FLOOR_OF, f"{path}: imports {other}, which has no floor"
        below = FLOOR_OF[other] < FLOOR_OF[own] or (own, other) in SAME_FLOOR
        assert below, f"{own} (floor {FLOOR_OF[own]}) imports {other} (floor {FLOOR_OF[other]})"


@pytest.mark.parametrize(("training", "allowed"), [(False, set()), (True, {"torch"})])
def test_importing_the_kit_imports_nothing_heavy(training, allowed):
    """In training/ torch may come along: an optimiser is one of its classes."""
    files = [path.relative_to(PACKAGE).as_posix() for path in MODULES]
    chosen = [name for name in files if name.startswith("training/") == training]
    names = [name.removesuffix(".py").replace("/", ".") for name in chosen if name not in DERIVED]
    code = (
        "import importlib, sys\n"
        f"for name in {[name for name in names if name != '__main__']!r}:\n"
        "    importlib.import_module('memalpha_kit.' + name)\n"
        f"    heavy = {HEAVY - allowed!r} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{name} imports {sorted(heavy)}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("path", MODULES, **PROSE)
def test_no_module_imports_a_notebook_or_evaluates_text(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not any("notebooks" in name.split(".") for name in imported(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, **PROSE)
def test_no_module_catches_everything(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            reraised = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert caught not in ("", "Exception", "BaseException") or reraised, (
                f"{path}:{node.lineno}: catch the narrowest error"
            )


def test_every_room_of_the_map_exists():
    rooms = {room(path) for path in MODULES}
    assert rooms == set(FLOOR_OF)
