"""The whole path on files: raw data -> instances -> episodes -> answers -> table, by the commands.

It runs on tiny made-up raw files always, and on the real ones where they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from raw_rows import said, write
from test_bad_input import command

from memalpha_kit import files
from memalpha_kit.data.instances import load_instances
from memalpha_kit.method.saved import load_episodes

FACTS = {
    "Nora": "Nora keeps eleven bees in Lund.",
    "Tom": "Tom paints wooden boats every winter.",
    "Ana": "Ana sold her red bicycle to a neighbour.",
}
PATHS = (
    ("trec_coarse", "keep_examples", "label_vote"),
    ("banking77", "keep_examples", "label_vote"),
    ("longmemeval", "keep_turns", "best_entry"),
    ("squad", "keep_sentences", "best_entry"),
)


def write_raw(folder: Path) -> Path:
    """Made-up raw files of all sources."""
    trec = "NUM:date When did it open ?\nNUM:count How many are there ?\nHUM:ind Who won it ?"
    write(folder, "trec_train.label", trec)
    write(folder, "trec_test.label", "NUM:date When did it close ?\nHUM:ind Who lost it ?")
    cards = "text,category\nmy card is late,card\ni want my money back,refund\n"
    write(folder, "banking77_train.csv", cards)
    asked = "text,category\nwhere is my card,card\nmoney back please,refund\n"
    write(folder, "banking77_test.csv", asked)
    record = {"question_id": "q1", "question": "What did Ana sell?", "answer": "bicycle"}
    record["haystack_dates"] = ["2023/05/20 (Sat) 02:21"]
    record["haystack_sessions"] = [[said(text) for text in FACTS.values()]]
    write(folder, "longmemeval_two.json", [record])
    qas = [
        {"id": "a", "question": "How many bees has Nora?", "answers": [{"text": "eleven"}]},
        {"id": "b", "question": "What does Tom paint?", "answers": [{"text": "wooden boats"}]},
    ]
    paragraphs = [{"context": " ".join(FACTS.values()), "qas": qas}]
    return write(folder, "squad_tiny.json", {"data": [{"paragraphs": paragraphs}]})


def run(*argv: object) -> None:
    assert command(*argv) == 0


def walk(raw: Path, out: Path, source: str, writer: str, reader: str, few: bool) -> Path:
    """The run of one source, from its raw files."""
    data, episodes, asked = out / source, out / f"{source}.jsonl", out / f"{source}.run"
    limits = ("--examples", 2000, "--instances", 1) if few and source == "banking77" else ()
    run("data", "build", "--source", source, "--raw", raw, "--out", data, *limits)
    run("write", "--data", data, "--writer", writer, "--out", episodes)
    run("ask", "--data", data, "--episodes", episodes, "--reader", reader, "--out", asked)
    return asked


def table(raw: Path, out: Path, few: bool = False) -> pd.DataFrame:
    """The table of all four sources, as saved, by source and reader.

    With `few`, Banking77 shows 2,000 of its samples: enough to learn from, and quick.
    """
    made = [walk(raw, out, *path, few) for path in PATHS]
    run("report", *made, "--out", out / "table.csv")
    rows = pd.read_csv(out / "table.csv")
    rows = rows[rows.source != "Avg."]
    readers = rows.method.str.split(" + ", regex=False).str[-1]
    return rows.assign(reader=readers).set_index(["source", "reader"])


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_raw(tmp_path_factory.mktemp("tiny") / "raw")


def test_made_up_raw_files_go_the_whole_way(raw, tmp_path, capsys):
    rows = table(raw, tmp_path)
    scores = {source: rows.loc[source, reader].score for source, _, reader in PATHS}
    assert scores == {"trec_coarse": 1.0, "banking77": 1.0, "longmemeval": 1.0, "squad": 1.0}
    assert (rows.missing == 0).all()
    assert rows.loc["longmemeval", "best_entry"].metric == "substring"
    assert rows.loc["trec_coarse", "majority_label"].score == 0.5
    assert (rows.xs("read_nothing", level="reader").score == 0).all()
    assert "majority_label" in capsys.readouterr().out
    card = json.loads((tmp_path / "squad" / "card.json").read_text())
    assert (card["instances"], card["questions"]) == (1, 2)
    assert list(card["raw_sha256"]) == ["squad_tiny.json"]


def test_real_raw_files_go_the_whole_way(real_data, tmp_path):
    rows = table(real_data, tmp_path, few=True)
    assert (rows.missing == 0).all()
    for source in ("trec_coarse", "banking77"):
        vote, majority = (rows.loc[source, r] for r in ("label_vote", "majority_label"))
        assert vote.low > majority.high
        assert vote.questions == 100
    assert rows.loc["squad", "best_entry"].score >= 0.6
    turns = rows.loc["longmemeval", "best_entry"]
    assert (turns.questions, turns.call_success > 0.9) == (1, True)
    kept = rows[~rows.method.isin(["read_nothing", "majority_label"])]
    assert (kept.memory_tokens < 1.2 * kept.chunk_tokens).all() and (kept.memory_tokens > 0).all()


@pytest.fixture
def built(raw, tmp_path) -> Path:
    """A folder with data of three trec instances."""
    options = ("--examples", 1, "--seed", 3)
    run("data", "build", "--source", "trec_coarse", "--raw", raw, "--out", tmp_path / "d", *options)
    assert len(load_instances(tmp_path / "d" / "test.parquet")) == 3
    return tmp_path


def write_examples(folder: Path, *more: object) -> int:
    words = ("write", "--data", folder / "d", "--writer", "keep_examples", "--batch", 1)
    return command(*words, "--out", folder / "e.jsonl", *more)


def test_an_interrupted_run_goes_on_where_it_stopped(built, monkeypatch, capsys):
    assert write_examples(built) == 0
    whole = (built / "e.jsonl").read_bytes()
    for ending in ("e.jsonl", "e.json"):
        (built / ending).unlink()
    appended, append = [], files.Log.append

    def stop_after_two(log, record):
        if len(appended) == 2:
            raise KeyboardInterrupt
        appended.append(record["id"])
        append(log, record)

    monkeypatch.setattr(files.Log, "append", stop_after_two)
    assert write_examples(built) == 130
    monkeypatch.undo()
    with open(built / "e.jsonl", "ab") as file:
        file.write(b'{"id": "cut of')  # a crash in the middle of the third line
    capsys.readouterr()
    ask = ("ask", "--data", built / "d", "--episodes", built / "e.jsonl", "--out", built / "a")
    assert command(*ask, "--reader", "label_vote") == 2
    assert "did not finish; run it again" in capsys.readouterr().err
    assert write_examples(built) == 0
    assert "3 episodes, 1 of them new" in capsys.readouterr().out
    assert (built / "e.jsonl").read_bytes() == whole


def test_a_finished_run_is_not_written_again(built, capsys):
    assert write_examples(built) == 0
    before = (built / "e.jsonl").stat().st_mtime_ns
    assert write_examples(built) == 0
    assert "0 of them new" in capsys.readouterr().out
    assert (built / "e.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", 1), "seed = 0, now it is 1"),
        (("--set", "memory.shown=3"), "memory.shown = 5, now it is 3"),
        (("--instances", 2), "instances = None, now it is 2"),
    ],
)
def test_other_settings_are_refused_in_an_old_file(built, capsys, more, message):
    assert write_examples(built) == 0
    assert write_examples(built, *more) == 2
    assert message in capsys.readouterr().err


def test_rollouts_are_episodes_of_their_own(built):
    assert write_examples(built, "--rollouts", 2) == 0
    episodes = load_episodes(built / "e.jsonl")
    assert [episode.rollout for episode in episodes] == [0, 1] * 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("data build --source squid --raw . --out d", "did you mean 'squad'"),
        ("data build --source squad --raw nowhere --out d", "expected a folder with raw files"),
        ("write --data nowhere --writer silent --out e.jsonl", "memalpha data build"),
        ("write --data d --writer silence --out e.jsonl", "did you mean 'silent'"),
        ("write --data d --writer silent --out e.json", "ends in .jsonl"),
        (
            "write --data d --writer silent --out e.jsonl --batch 0",
            "batch': expected at least 1",
        ),
        ("write --data d --model nowhere --out e.jsonl", "model nowhere: expected a folder"),
        ("write --data d --out e.jsonl", "expected one of --writer and --model"),
        ("ask --data d --episodes no.jsonl --reader best_entry --out a", "memalpha write"),
        ("report no --out t.csv", "expected a run with settings.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(built, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(built)
    assert command(*argv.split()) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert sorted(path.name for path in built.iterdir()) == ["d"]


def test_episodes_without_their_card_are_not_trusted(built, capsys):
    assert write_examples(built) == 0
    (built / "e.json").unlink()
    assert write_examples(built) == 2
    assert "is there without e.json" in capsys.readouterr().err
    (built / "e.json").write_text("[")
    assert write_examples(built) == 2
    assert "e.json: expected a JSON file" in capsys.readouterr().err


def test_a_language_model_goes_the_same_way(built, tmp_path, capsys):
    from tiny_models import tiny_qwen3, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tiny_qwen3(tokenizer).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    words = ["write", "--data", built / "d", "--model", tmp_path / "tiny", "--instances", 1]
    more = ("--set", "protocol.max_reply_tokens=4", "--temperature", 1, "--out", built / "m.jsonl")
    run(*words, *more)
    [episode] = load_episodes(built / "m.jsonl")
    assert episode.writer == "model:tiny"
    assert all(len(step.completion.completion_ids) <= 4 for step in episode.steps)
    tiny_qwen3(tokenizer, seed=1).save_pretrained(tmp_path / "b" / "tiny")  # of the same name
    tokenizer.save_pretrained(tmp_path / "b" / "tiny")
    words[4] = tmp_path / "b" / "tiny"
    assert command(*map(str, (*words, *more))) == 2
    said = capsys.readouterr().err
    assert "m.jsonl: was begun with writer = 'model:tiny sha256:" in said
    assert "choose another file, or delete it and m.json" in said
