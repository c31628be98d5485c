"""The command line answers a mistake with one line and the right exit code."""

from __future__ import annotations

import errno
import subprocess
import sys
from unittest.mock import Mock

import pytest
from typer.main import get_command

from memalpha_kit import cli
from memalpha_kit.data.instances import save_instances
from memalpha_kit.data.sources import SOURCES
from memalpha_kit.errors import InputError
from memalpha_kit.notebooks import NotebookError
from memalpha_kit.records import QA, make_instance

GROUP = get_command(cli.app)
COMMANDS = [
    words
    for name, command in GROUP.commands.items()
    for words in ([[name, inner] for inner in getattr(command, "commands", ())] or [[name]])
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_every_option_a_sentence(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    assert f"Usage: memalpha {' '.join(words)}" in capsys.readouterr().out
    command = GROUP
    for word in words:
        command = command.commands[word]
    assert command.help and all(option.help for option in command.params)


def test_help_lists_every_command_and_that_of_a_build_the_raw_files_of_every_source(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in GROUP.commands)
    assert cli.main(["data", "build", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}: " in shown for name in SOURCES.names())
    assert "on the hub: rajpurkar/squad" in shown


def test_an_option_of_several_values_takes_them_behind_each_other(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "memalpha_kit.lab.runner.record_seeds", lambda *args: seen.append(args[1]) or []
    )
    assert cli.main(["seeds", "--profile", "ci", "--seeds", "0", "1", "2", "--workers", "1"]) == 0
    assert cli.main(["seeds", "--seeds", "3", "--seeds", "4"]) == 0
    assert cli.main(["seeds"]) == 0
    assert seen == [[0, 1, 2], [3, 4], [0, 1, 2, 3, 4]]


def test_a_user_s_module_is_imported_before_the_command_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_writers.py").write_text(
        'from memalpha_kit.method.writers import WRITERS\nWRITERS.add("mine", lambda request: [])\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["--extend", "my_writers", "write", "--help"]) == 0
    assert "mine" in capsys.readouterr().out
    assert cli.main(["--extend", "no_such_module", "write", "--help"]) == 2
    assert "extension 'no_such_module'" in capsys.readouterr().err


def test_a_user_s_module_reaches_the_kernels_of_the_notebooks(tmp_path, monkeypatch):
    for name in ("my_first", "my_second"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "mine.yaml").write_text("extends: ci\nextensions: [my_first]\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    monkeypatch.setattr("memalpha_kit.notebooks.run", lambda *args: seen.append(args[2]))
    argv = ["run", "--profile", str(tmp_path / "mine.yaml"), "--set", "seed=1"]
    assert cli.main(["--extend", "my_second", *argv]) == cli.main(argv) == 0
    assert seen == [["seed=1", "extensions=[my_first, my_second]"], ["seed=1"]]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rn"], "unknown command 'rn'; did you mean 'run'?"),
        (["run", "--onyl", "03"], "unknown argument '--onyl'; did you mean '--only'?"),
        (["run", "--profile", "labtop"], "unknown profile 'labtop'; did you mean 'laptop'?"),
        (["run", "--set", "grpo.step=3"], "did you mean 'grpo.steps'?"),
        (["run", "--profile"], "requires an argument"),
        ([], "Missing command"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(argv, message, capsys):
    code = cli.main(argv)
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
    monkeypatch.setattr("memalpha_kit.notebooks.run", Mock(side_effect=error))
    assert cli.main(["run"]) == code
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_a_reader_that_stops_reading_is_no_error():
    command = [sys.executable, "-m", "memalpha_kit", "evaluate", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as head:
        head.stdout.close()
        assert head.stderr.read() == b"" and head.wait() == 141


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("memalpha_kit.notebooks.run", Mock(side_effect=KeyError("bug")))
    with pytest.raises(KeyError):
        cli.main(["run"])


@pytest.mark.parametrize("seed", ["-1", str(2**32), str(2**64), "1" * 5000, "1.5", "one"])
@pytest.mark.parametrize(
    "command",
    [
        "write --data d --out o.jsonl --writer silent",
        "evaluate --data d --method bm25",
        "calibrate --out o.csv --judge rules",
        "report run",
        "audit",
        "data build --source squad --raw r --out o",
        "data merge d --out o",
        "data split d --out o",
    ],
)
def test_a_seed_that_no_generator_takes_is_one_line(capsys, command, seed):
    assert cli.main([*command.split(), "--seed", seed]) == 2
    said = capsys.readouterr().err
    assert "'--seed'" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("write --data d --out o.jsonl --writer silent --dtype float16", "--dtype"),
        ("write --data d --out o.jsonl --writer silent --temperature 1", "--temperature"),
        ("evaluate --data d --method memory --url http://x/v1 --device cuda", "--device"),
        ("evaluate --data d --method memory --writer silent --dtype float16", "--dtype"),
        ("calibrate --out o.csv --url http://x/v1 --model-name m --dtype float16", "--dtype"),
        ("serve --url http://x/v1 --model-name m --port 0 --device cuda", "--device"),
        ("credit e.jsonl --data d --device cuda", "--device"),
    ],
)
def test_an_option_of_local_models_without_one_is_refused(tmp_path, capsys, command, option):
    """The command would go on as if it had done something."""
    one = make_instance("squad", ["Nora keeps bees."], [QA("q", "Who?", ("Nora",))])
    save_instances(tmp_path / "d.parquet", [one])
    argv = [str(tmp_path / "d.parquet") if word == "d" else word for word in command.split()]
    assert cli.main(argv) == 2
    assert f"{option}: has no effect" in capsys.readouterr().err


def test_asking_for_help_imports_nothing_heavy():
    code = (
        "import sys; from memalpha_kit import cli\n"
        f"for words in {COMMANDS!r}: cli.main([*words, '--help'])\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'papermill'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.endswith("heavy: []\n")
