"""Bad input from the issue's list, by the command line: one line, the right exit code, no debris.

Each message names the file, the field and what was expected. What was written before a failure is
whole or not trusted: the same command again ends as if nothing had happened.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memalpha_kit import cli
from memalpha_kit import files as store
from memalpha_kit.data.instances import save_instances
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.records import QA, make_instance

INSTANCES = [
    make_instance(
        "squad",
        [f"Nora keeps {n} bees. Tom has {n} boats.", f"Ana sold {n} lamps."],
        [QA("q0", "How many bees?", (str(n),))],
    )
    for n in range(3)
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with data of three instances, where commands run."""
    monkeypatch.chdir(tmp_path)
    save_instances(Path("data.parquet"), INSTANCES)
    return tmp_path


def command(*argv: object) -> int:
    """The exit code of `memalpha ...`."""
    try:
        return cli.main([str(word) for word in argv])
    except SystemExit as stopped:
        return stopped.code


def refused(capsys, code: int, *argv: object) -> str:
    """What the command says when it fails with this code: one line."""
    assert command(*argv) == code
    shown = capsys.readouterr().err
    assert shown.startswith("memalpha: error: ") and shown.count("\n") == 1, shown
    return shown


def process(*argv: object, **options) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    command = [sys.executable, "-B", "-m", "memalpha_kit", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def write_words(data="data.parquet", out="e.jsonl"):
    return ("write", "--data", data, "--writer", "keep_sentences", "--out", out, "--batch", 1)


def test_the_installed_command_answers_as_main_does(here):
    done = process("write", "--data", "data.parquet", "--model", "nowhere", "--out", "e.jsonl")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "memalpha: error: model nowhere: expected a folder with config.json, weights "
        "(safetensors) and a tokenizer, found nothing\n"
    )


@pytest.mark.parametrize(
    "setting", ["counter=typo", "behaviour=typo", "tools=[typo]", "components=[typo]"]
)
@pytest.mark.parametrize("name", ["write", "evaluate"])
def test_a_name_that_nobody_knows_is_refused_before_a_file_is_begun(here, capsys, name, setting):
    evaluate = ("evaluate", "--method", "memory", "--data", "data.parquet", "--writer", "silent")
    argv = write_words() if name == "write" else (*evaluate, "--reader", "best_entry")
    shown = refused(capsys, 2, *argv, "--set", f"memory.{setting}")
    assert "expected a known name, found 'typo'" in shown
    assert os.listdir() == ["data.parquet"]


# --- A full disk ---------------------------------------------------------------------------------


class FullDisk:
    """Lets `room` flushes through; then every one fails, as on a full disk."""

    def __init__(self, room: int) -> None:
        self.room, self.fsync = room, os.fsync

    def __call__(self, descriptor: int) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.fsync(descriptor)


def settled(folder="."):
    """Episodes and card, the card without its seconds."""
    card = json.loads((Path(folder) / "e.json").read_text())
    return (Path(folder) / "e.jsonl").read_bytes(), {**card, "duration_s": 0}


@pytest.mark.parametrize("room", range(5))
def test_a_disk_that_fills_up_during_write_leaves_only_what_a_later_run_may_trust(
    here, capsys, monkeypatch, room
):
    """Five flushes: the card, three episodes, and the finished card."""
    assert command(*write_words(out="whole/e.jsonl")) == 0
    monkeypatch.setattr(store.os, "fsync", FullDisk(room))
    shown = refused(capsys, 1, *write_words())
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert "expected to write" in shown and "No space left on device" in shown
    assert ("e.json: " if room in (0, 4) else "e.jsonl: ") in shown
    assert set(os.listdir()) <= {"data.parquet", "whole", "e.jsonl", "e.json"}
    if Path("e.jsonl").exists():
        assert len(load_episodes(Path("e.jsonl"))) == max(0, room - 1)
        ask = ("--reader", "best_entry", "--out", "answers")
        said = refused(capsys, 2, "ask", "--data", "data.parquet", "--episodes", "e.jsonl", *ask)
        assert "did not finish; run it again" in said
    assert command(*write_words()) == 0
    assert settled() == settled("whole")
