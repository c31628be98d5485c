"""Strange files through every command that takes one: one line, exit code 1 or 2, and no hanging.

A row of `COMMANDS` is a command with the file that is strange; a row of `KINDS` is what stands in
that file. Where a kind is harmless (an empty card, a missing test part), exit code 0 is right, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import zipfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_bad_input import INSTANCES, command

from memalpha_kit.data.instances import save_instances
from memalpha_kit.records import QA, make_instance

DEEP, HUGE = "[" * 100_000, "1" * 10_000
BOMB = "- &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"- &{new} [{','.join([f'*{old}'] * 8)}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)


def archive(*names):
    held = BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, "0" * 100_000)
    return held.getvalue()


def parquet(**columns):
    """Two good rows in which some columns are others."""
    pairs = json.dumps([{"question": "Who?", "answer": "Nora"}])
    row = {"chunks": '["Nora keeps bees."]', "questions_and_answers": pairs, "data_source": "squad"}
    held = BytesIO()
    good = {name: [text, text.replace("Nora", "Tom")] for name, text in row.items()}
    pq.write_table(pa.table(good | columns), held)
    return held.getvalue()


KINDS = {
    **{"empty": "", "blank": " \n\n", "zeros": b"\0" * 99},
    "noise": random.Random(0).randbytes(3000),
    **{"UTF-16": '{"a": "b"}\n'.encode("utf-16"), "not UTF-8": b'{"a": "\xff\xc3"}\n'},
    **{"deep": f"{DEEP}\n", "closed": f"{DEEP}{']' * 100_000}\n"},
    "deep objects": '{"a": ' * 100_000,
    **{"huge": f'{{"a": {HUGE}}}\n', "list of huge": f"[{HUGE}]\n"},
    **{"NaN": '{"a": NaN, "b": Infinity}\n', "number": "3\n", "null": "null\n", "text": '"x"\n'},
    **{"object": "{}\n", "lists": "[[1], [2]]\n", "objects": "[{}]\n"},
    **{"surrogate": '{"question": "\\ud800", "answer": "\\udfff"}\n'},
    **{"journal": '{"a": 1}\n{"b":\n{"c": 2}\n', "zip": archive("a.json", "../../evil")},
    **{"YAML bomb": BOMB, "YAML tag": "!!python/object/apply:os.system ['false']\n"},
    **{"YAML keys": "? [1, 2]\n: 3\n", "YAML itself": "&a [*a]\n"},
    "parquet noise": b"PAR1" + random.Random(1).randbytes(300) + b"PAR1",
    "parquet lists": parquet(chunks=[[1], [2]]),
    "parquet structs": parquet(chunks=[{"x": 1}, {"x": 2}]),
    "parquet bytes": parquet(chunks=[b"\xff", b"\xfe"]),
    "parquet numbers": parquet(data_source=[1, 2]),
    "parquet deep": parquet(questions_and_answers=['[{"question": ' + DEEP] * 2),
    "parquet huge": parquet(questions_and_answers=[f'[{{"question": "q", "answer": {HUGE}}}]'] * 2),
    "parquet NaN": parquet(questions_and_answers=['[{"question": "q", "answer": NaN}]'] * 2),
    "parquet empty": parquet(chunks=["[]", "[]"]),
    **{"folder": None, "loop": None, "pipe": None},
}


def put(path, kind):
    """The file, now of this kind."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        content = KINDS[kind]
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


READER = "--reader best_entry"
BUILD = "data build --raw raw --out built --source"
WRITE = "write --writer keep_sentences --data"
EVALUATE = f"evaluate --data set {READER} --out out --method"
ASK = f"ask --data data.parquet --episodes e.jsonl {READER} --out out/a"
COMMANDS = {
    "squad": ("raw/squad.json", f"{BUILD} squad"),
    "packed": ("raw/squad.json.zip", f"{BUILD} squad"),
    "hotpotqa": ("raw/hotpot.jsonl", f"{BUILD} hotpotqa"),
    "shards": ("raw/hotpot.parquet", f"{BUILD} hotpotqa"),
    "booksum": ("raw/booksum_train.jsonl", f"{BUILD} booksum"),
    "pubmed": ("raw/train.txt", f"{BUILD} pubmed-rct"),
    "longmemeval": ("raw/longmemeval_s", f"{BUILD} longmemeval"),
    "questions": ("q.jsonl", f"{BUILD} text --questions q.jsonl"),
    "check": ("set/test.parquet", "data check set --out out"),
    "split": ("set/train.parquet", "data split set --out out"),
    "merge": ("set/train.parquet", "data merge set --out out"),
    "card": ("set/card.json", "data merge set --out out"),
    "written card": ("e.json", ASK),
    "write": ("set/test.parquet", f"{WRITE} set --out out/e.jsonl"),
    "write on": ("e.jsonl", f"{WRITE} data.parquet --out e.jsonl"),
    "written": ("e.jsonl", ASK),
    "evaluate": ("set/test.parquet", f"{EVALUATE} memory --writer keep_sentences"),
    "like": ("like.jsonl", f"{EVALUATE} random-memory --set like=like.jsonl"),
    "settings": ("runs/r/settings.json", "score runs/r"),
    "answers": ("runs/r/answers.jsonl", "report runs/r"),
    "asked": ("runs/r/questions.jsonl", "score runs/r"),
    "cases": ("c.jsonl", "calibrate --judge rules --cases c.jsonl --out o.csv"),
    "profile": ("p.yaml", "plan --profile p.yaml"),
    "sweep": ("p.yaml", "sweep p.yaml --runs out --out out"),
    "model": ("m/config.json", "write --data data.parquet --model m --out o"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with data, a data set, written episodes and a run, all as they must be."""
    folder = tmp_path_factory.mktemp("whole")
    save_instances(folder / "data.parquet", INSTANCES)
    save_instances(folder / "set/train.parquet", INSTANCES)
    other = make_instance("squad", ["Zoe sings."], [QA("q0", "Who sings?", ("Zoe",))])
    save_instances(folder / "set/test.parquet", [other])
    (folder / "raw").mkdir()
    (folder / "raw/a.md").write_text("Zoe sings.")
    write = f"{WRITE} {folder}/data.parquet"
    assert command(*write.split(), "--out", folder / "e.jsonl") == 0
    method = write.replace("write", f"evaluate --method memory {READER}", 1)
    assert command(*method.split(), "--out", folder / "runs", "--name", "r") == 0
    return folder


def hangs(*_):
    raise AssertionError("the command hangs")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_strange_file_is_one_line_for_every_command(whole, tmp_path, monkeypatch, capsys, name):
    file, words = COMMANDS[name]
    signal.signal(signal.SIGALRM, hangs)
    for number, kind in enumerate(KINDS):
        folder = shutil.copytree(whole, tmp_path / str(number))
        monkeypatch.chdir(folder)
        put(file, kind)
        capsys.readouterr()
        signal.alarm(120)
        try:
            code = command(*words.split())
        finally:
            signal.alarm(0)
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("memalpha: ")]
        assert "Traceback" not in said and "\n " not in said, (kind, said)
        assert (code in (1, 2) and len(errors) == 1) or (code == 0 and not errors), (kind, said)
