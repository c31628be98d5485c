"""The rooms: a room imports only from rooms below it, and nothing heavy on import.

`ROOMS` is the map of the kit, the ground first; docs/architecture.md says what each room is for.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "memalpha_kit"
ROOMS = (
    *(
        "errors",
        "progress",
        "registry",
        "sections",
        "episode_settings",
        "settings",
        "entries",
        "records",
        "chats",
        "text",
        "tokens",
        "stats",
        "files",
    ),
    *("figures", "tasks", "notebooks", "method", "models", "data", "evaluation", "training", "lab"),
    *("explorer", "server", "release", "cli", "__main__"),
)
HEAVY = {"torch", "transformers", "trl", "unsloth", "vllm", "datasets", "peft", "bitsandbytes"}
DERIVED = {"training/trainer.py", "training/journal.py"}  # derive from classes of TRL, transformers
TORCH = ("training/", "lab/lessons", "models/tiny", "models/decode")


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
def test_a_module_imports_only_from_rooms_below(path):
    own = room(path)
    for other in kit_rooms(path) - {own, "__version__"}:
        assert ROOMS.index(other) < ROOMS.index(own), f"{own} imports {other}, which is above"


@pytest.mark.parametrize(("training", "allowed"), [(False, set()), (True, {"torch"})])
def test_importing_the_kit_imports_nothing_heavy(training, allowed):
    """Where weights are made torch may come along: an optimiser is one of its classes."""
    files = [path.relative_to(PACKAGE).as_posix() for path in MODULES]
    chosen = [name for name in files if name.startswith(TORCH) == training]
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


def test_playing_an_episode_loads_little():
    """An outsider reads what plays one: no client, no torch, no builder, under 3,500 lines."""
    code = (
        "import sys, memalpha_kit.method.episode as _\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('memalpha_kit')))\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    ours, loaded = (line.split() for line in done.stdout.splitlines())
    assert sum(len(Path(name).read_text().splitlines()) for name in ours) < 3500
    assert not {"torch", "httpx", "openai", "fastapi", "memalpha_kit.data"} & set(loaded)


@pytest.mark.parametrize("path", MODULES, **PROSE)
def test_no_module_imports_a_notebook_or_evaluates_text(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not any(name.split(".")[0] == "notebooks" for name in imported(node))
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


def test_no_function_has_more_than_60_lines_and_no_module_more_than_400():
    long = []
    for path in MODULES:
        text, name = path.read_text(), path.relative_to(PACKAGE).as_posix()
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        defs = (n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds))
        long += [f"{name}: {n.name}" for n in defs if (n.end_lineno or 0) - n.lineno >= 60]
        long += [name] * (len(text.splitlines()) > 400)
    assert long == []
