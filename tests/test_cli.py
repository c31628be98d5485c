"""The command line answers a mistake with one line and the right exit code."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys

import pytest

from memalpha_kit import cli
from memalpha_kit.errors import InputError
from memalpha_kit.notebooks import NotebookError


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command.name, "--help"])
    assert caught.value.code == 0
    assert f"usage: memalpha {command.name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert command.name in shown and command.help in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rn"], "unknown command 'rn'; did you mean 'run'?"),
        (["run", "--onyl", "03"], "unknown argument '--onyl'; did you mean '--only'?"),
        (["run", "--profile", "labtop"], "unknown profile 'labtop'; did you mean 'laptop'?"),
        (["run", "--set", "grpo.step=3"], "did you mean 'grpo.steps'?"),
        (["run", "--profile"], "expected one argument"),
        ([], "required: COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(argv, message, capsys):
    try:
        code = cli.main(argv)
    except SystemExit as stopped:
        code = stopped.code
    shown = capsys.readouterr().err
    assert code == 2
    assert shown.startswith("memalpha: error: ") and message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a.yaml: wrong"), 2, "a.yaml: wrong"),
        (NotebookError("03.ipynb: cell [2]: x"), 1, "03.ipynb: cell [2]: x"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 1, "runs/a: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 1, "runs/a: Permission"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_failure_is_one_line_with_its_exit_code(error, code, message, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("memalpha_kit.commands.run.run", fail)
    assert cli.main(["run"]) == code
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*_: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr("memalpha_kit.commands.run.run", fail)
    with pytest.raises(KeyError):
        cli.main(["run"])


def test_options_reach_the_pipeline(monkeypatch):
    seen = []
    monkeypatch.setattr("memalpha_kit.commands.run.run", lambda *args: seen.append(args))
    argv = ["run", "--profile", "ci", "--only", "01", "--only", "03", "--set", "seed=1"]
    assert cli.main(argv) == 0
    assert seen == [("ci", ["01", "03"], ["seed=1"], None)]


def test_every_command_module_has_the_two_functions():
    for command in cli.COMMANDS:
        module = importlib.import_module(command.module)
        assert callable(module.add_arguments) and callable(module.main)


def test_asking_for_help_imports_nothing_heavy():
    code = (
        "import sys; from memalpha_kit import cli\n"
        "for c in cli.COMMANDS:\n"
        "    try: cli.main([c.name, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'papermill'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.endswith("heavy: []\n")
