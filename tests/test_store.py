"""Records on disk: load(save(x)) == x, and a file under its final name is whole."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from unittest.mock import patch

import pandas as pd
import pytest
from small_disk import no_file_above

from memalpha_kit import files as store
from memalpha_kit.data.instances import save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.method import memory
from memalpha_kit.method.saved import episode_fields, load_episodes, save_episodes
from memalpha_kit.records import QA, Answer, Completion, Episode, Step, ToolCall, make_instance
from memalpha_kit.settings import MemoryConfig


def insert(text, memory_type="semantic_memory"):
    return ToolCall("new_memory_insert", {"memory_type": memory_type, "content": text}, raw=text)


SHORT_CORE = MemoryConfig(core_limit_tokens=8)


def episode(config=SHORT_CORE, rollout=0):
    """Three steps with calls of every outcome, each memory made by `memory.apply`."""
    long_core = ToolCall("memory_update", {"memory_type": "core", "new_content": "core " * 20})
    wanted = [
        [insert("Nora keeps bees."), insert("Nora keeps bees."), ToolCall("", status="malformed")],
        [insert("é🙂\u2028 \ud800", "episodic_memory"), long_core, insert("x", "no_such_memory")],
        [],
    ]
    state, steps = memory.empty(config), []
    for chunk, calls in enumerate(wanted):
        done = []
        for call in calls:
            state, call = memory.apply(state, call, config)
            done.append(call)
        completion = Completion("text", (1, 2), (3, 4), (1, 0), (-0.1, 1 / 3), finish="length")
        steps.append(Step(chunk, completion if chunk else Completion(""), tuple(done), state))
    answers = (Answer("q0", "Nora", 1.0, ("1",)), Answer("q1", None))
    fields = (f"e{rollout}", "squad/1", "squad", rollout, 5, "scripted", "qwen", config)
    return Episode(*fields, tuple(steps), answers)


def append_episode(path, made):
    with store.Log(path) as log:
        log.append(episode_fields(made))


def test_episodes_come_back_equal_with_every_memory_rebuilt(tmp_path):
    path = tmp_path / "runs" / "episodes.jsonl"
    saved = [episode(), episode(MemoryConfig(core=False, behaviour="release"), rollout=1)]
    statuses = {call.status for e in saved for call in e.calls}
    assert statuses == {"ok", "skipped", "rejected", "malformed"}
    save_episodes(path, saved)
    assert load_episodes(path) == saved
    append_episode(path, episode(rollout=2))
    assert load_episodes(path) == [*saved, episode(rollout=2)]
    assert b'"memory":' not in path.read_bytes()


def test_what_a_model_told_of_its_call_is_kept_and_unknown_parts_are_not_written(tmp_path):
    path, old = tmp_path / "episodes.jsonl", episode()
    told = Answer("q0", None, finish="error", prompt_tokens=9, latency_s=0.5, error="timeout")
    save_episodes(path, [old, dataclasses.replace(old, id="e1", answers=(told,))])
    assert load_episodes(path)[1].answers == (told,)
    first, second = (json.loads(line)["answers"] for line in path.read_text().splitlines())
    assert set(first[0]) == {"qa", "prediction", "score", "retrieved"}
    assert "completion_tokens" not in second[0]


def test_a_last_line_cut_off_is_an_error_and_dropped_only_to_go_on(tmp_path, caplog):
    path = tmp_path / "episodes.jsonl"
    with pytest.raises(InputError, match="expected lines of JSON, found: No such file"):
        load_episodes(path)
    save_episodes(path, [episode(), episode(rollout=1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(InputError, match=r"episodes.jsonl:2: expected a whole line, found one cut"):
        load_episodes(path)
    assert len(store.read_jsonl(path)) == 1 and path.read_bytes() == whole[:-30]
    append_episode(path, episode(rollout=1))
    assert "the last line was cut off and is dropped" in caplog.text
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("steps"), r":1: expected a field 'steps', found none"),
        (lambda raw: raw.update(colour="red"), r":1: colour: .* found .red."),
        (lambda raw: raw["steps"][0]["calls"][1].update(status="ok"), "step 0: expected new_mem"),
        (lambda raw: raw["memory_config"].update(counter="nope"), "expected a known name"),
    ],
)
def test_an_edited_episode_is_refused_with_its_line(tmp_path, change, message):
    path = tmp_path / "episodes.jsonl"
    save_episodes(path, [episode()])
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw) + "\n")
    with pytest.raises(InputError, match=message):
        load_episodes(path)
    path.write_text("{\n")
    with pytest.raises(InputError, match=":1: expected JSON"):
        load_episodes(path)


WRITES = {
    "json": lambda path: store.save_json(path, {"a": list(range(9000))}),
    "table": lambda path: store.save_table(path, pd.DataFrame({"a": range(9000)})),
    "instances": lambda path: save_instances(
        path, [make_instance("s", map(str, range(9000)), [QA("q0", "Who?", ("Nora",))])]
    ),
    "episodes": lambda path: save_episodes(path, [episode()] * 20),
    "append": lambda path: store.Log(path).append({"a": "x" * 20_000}),
}


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


FAILING = [(write, name) for write in WRITES for name in ("open", "fsync", "replace")]
FAILING.remove(("append", "replace"))  # appending does not rename


def fails(write, path, trouble, found):
    """Writing is an error, the old file stays as it was, and nothing else is there."""
    path.write_text("old\n")
    with trouble, pytest.raises(InputError, match=rf"file: expected to write .*, {found}"):
        WRITES[write](path)
    assert path.read_text() == "old\n" and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(("write", "failing"), FAILING)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, write, failing):
    trouble = patch(f"{'builtins' if failing == 'open' else 'os'}.{failing}", full)
    fails(write, tmp_path / "file", trouble, "found: No space left")


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_stops_half_way_leaves_nothing_half_written(tmp_path, write):
    fails(write, tmp_path / "file", no_file_above(4096), "found: ")


def test_an_interrupted_write_leaves_nothing_and_a_folder_that_is_a_file_is_named(
    tmp_path, monkeypatch
):
    def interrupt(*args):
        raise KeyboardInterrupt

    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="runs/a.json: expected to write"):
        store.save_json(tmp_path / "runs" / "a.json", {})
    monkeypatch.setattr(store.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == ["runs"]


def test_the_fingerprint_is_that_of_names_and_contents(tmp_path):
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text("1")
    b.write_text("2")
    first = store.fingerprint([a, b])
    assert first == store.fingerprint([b, a]) and len(first) == 64
    a.write_text("2")
    b.write_text("1")
    assert store.fingerprint([a, b]) != first
    with pytest.raises(InputError, match="c.csv: expected a readable file, found: No such file"):
        store.fingerprint([tmp_path / "c.csv"])


BROKEN = {
    "a number of 5000 digits": b'{"a": %s}' % (b"9" * 5000),
    "brackets 100000 deep": b"[" * 100_000,
    "bytes that are no UTF-8": b'{"a": "\xff"}',
    "cut off": b'{"a": ',
    "no object": b"[1]",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_in_the_middle_and_a_broken_file_are_one_error_that_names_it(tmp_path, kind):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + BROKEN[kind] + b'\n{"a": 2}\n')
    with pytest.raises(InputError, match=r"log.jsonl:2: expected [^\n]*$"):
        store.read_jsonl(path)
    path.write_bytes(BROKEN[kind])
    if kind != "no object":
        with pytest.raises(InputError, match=r"log.jsonl: expected a JSON file, found[^\n]*$"):
            store.load_json(path)


@pytest.mark.parametrize("hold", [store.held, store.Log])
def test_one_process_at_a_time_may_hold_a_folder_or_write_a_log(tmp_path, hold):
    path = tmp_path / "held"
    refused = pytest.raises(InputError, match="held: .* found another process at work")
    with hold(path), refused, hold(path):
        pass
    with hold(path):  # free again, and nothing was left beside it or in the folder
        assert os.listdir(tmp_path) == ["held"] and (path.is_file() or not os.listdir(path))


def test_a_folder_goes_on_under_the_same_settings_only(tmp_path):
    begun = {"seed": 1, "grpo": {"steps": 3}, "price": {"in": 2.0}}
    assert not store.resume_or_refuse(tmp_path / "run", begun, free=("price",))
    assert store.resume_or_refuse(tmp_path / "run", begun, free=("price",))
    assert store.resume_or_refuse(tmp_path / "run", begun | {"price": {"in": 3.0}}, ("price",))
    assert store.resume_or_refuse(tmp_path / "run", begun | {"price": None}, ("price",))
    kept = store.load_json(tmp_path / "run" / "settings.json")
    assert kept == begun | {"price": {"in": 3.0}}
    with pytest.raises(InputError, match=r"begun with grpo.steps = 3, now it is 4; choose"):
        store.resume_or_refuse(tmp_path / "run", kept | {"grpo": {"steps": 4}})
    with pytest.raises(InputError, match=r"begun with price.in = 3.0, now it is None"):
        store.resume_or_refuse(tmp_path / "run", {"seed": 1, "grpo": {"steps": 3}})
    store.resume_or_refuse(tmp_path / "data", {"data": "a" * 64})
    with pytest.raises(InputError, match=r"other content of data \(SHA-256 a{8}..., now b{8}"):
        store.resume_or_refuse(tmp_path / "data", {"data": "b" * 64})
    store.resume_or_refuse(tmp_path / "fewer", {"data": "a" * 64, "instances": 9})
    with pytest.raises(InputError, match="instances = 9, now it is 3"):
        store.resume_or_refuse(tmp_path / "fewer", {"data": "b" * 64, "instances": 3})
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(InputError, match="settings.json: expected a JSON file"):
        store.resume_or_refuse(tmp_path / "run", begun)
