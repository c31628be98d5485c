"""Raw files as their authors name and pack them, strange ones, and one's own text files."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace

import pytest
import raw_rows
from raw_rows import BISCUIT, H1, H2, ILA, ILA_ASKED, WORDS, bench_row, said, sized, without

from memalpha_kit.data import leaks
from memalpha_kit.data.build import build_source
from memalpha_kit.data.dataset import Dataset
from memalpha_kit.data.raw import _Feed, lines, matches, raw_file, rows
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import SOURCES, build, missing_files, text
from memalpha_kit.data.sources.labelled import read_nlu
from memalpha_kit.data.sources.pubmed_rct import LABELS
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import metric_of


def write(folder, **files):
    """Files by name (a dot is `__`)."""
    for name, content in files.items():
        raw_rows.write(folder, name.replace("__", "."), content)
    return folder


@pytest.mark.parametrize(
    ("source", "there", "read"),
    [
        ("squad", ["train-v1.1.json", "dev-v1.1.json"], ["train-v1.1.json"]),
        ("squad", ["dev-v1.1.json"], ["dev-v1.1.json"]),
        ("squad", ["plain_text/train-00000-of-00001.parquet"], ["train-00000-of-00001.parquet"]),
        ("hotpotqa", ["hotpot_train_v1.1.json", "hotpot_dev.json"], ["hotpot_train_v1.1.json"]),
        ("hotpotqa", ["hotpot_dev_distractor_v1.json"], ["hotpot_dev_distractor_v1.json"]),
        ("hotpotqa", ["fullwiki/train-00000-of-00002.parquet"], ["train-00000-of-00002.parquet"]),
        ("booksum", ["chapters/train.jsonl", "chapters/test.jsonl"], ["train.jsonl"]),
        ("booksum", ["booksum_train.jsonl.gz"], ["booksum_train.jsonl.gz"]),
        ("pubmed-rct", ["train.zip", "dev.txt"], ["train.zip"]),
        ("pubmed-rct", ["train.7z"], ["train.7z"]),
        ("pubmed-rct", ["data/train-00000-of-00001.parquet"], ["train-00000-of-00001.parquet"]),
        ("longmemeval", ["longmemeval_s", "longmemeval_oracle"], ["longmemeval_s"]),
        ("longmemeval", ["longmemeval_m.json", "longmemeval_s.json"], ["longmemeval_s.json"]),
        ("ruler_qa1_197K", ["data/Accurate_Retrieval-00000-of-00001.parquet"], 1),
    ],
)
def test_the_authors_names_and_layouts_are_found(tmp_path, source, there, read):
    for name in there:
        write(tmp_path, **{name: "x"})
    found = [raw_file(tmp_path, pattern).name for pattern in SOURCES[source].files]
    assert found == read or len(found) == read
    assert missing_files(source, tmp_path) == []


def authors(row):
    """A row of HotpotQA in the layout of its authors' file."""
    context, named = row["context"], row["supporting_facts"]
    pairs = list(zip(context["title"], context["sentences"], strict=True))
    facts = list(zip(named["title"], named["sent_id"], strict=True))
    return without(row, "id") | {"_id": row["id"], "context": pairs, "supporting_facts": facts}


def squad(context, question, answer):
    """A question of SQuAD as the authors nest it, and as the hub has it in a row."""
    asked = {"id": question, "question": question}
    paragraphs = [{"context": context, "qas": [asked | {"answers": [{"text": answer}]}]}]
    row = {"title": "Ferries", "context": context, "answers": {"text": [answer]}}
    return {"data": [{"title": "Ferries", "paragraphs": paragraphs}]}, asked | row


def zinc(form):
    """An abstract of five sentences, each with its label in this form."""
    return [{"text": f"Sentence {n} .", "labels": form(n)} for n in (3, 2, 4, 1, 0)]


NESTED, ROW = squad("Mira Holt built it.", "Who built it?", "Mira Holt")
NUMBERED = {"pubmed_train.jsonl": zinc(int)}
BENCH = [bench_row("ruler_qa1_197K", "It trades salt.", ["Q?"], [["salt", "2"]])]
CSV = "text,category\n"
PERLTQA = (
    {"perltmem_en.json": [ILA], "perltqa_en.json": [{"Ila Brandt": ILA_ASKED}]},
    {"perltmem_en_v2.json": {"Ila Brandt": ILA}, "perltqa_en_v2.json": {"Ila Brandt": ILA_ASKED}},
)
TREC = (
    {"trec_train.label": "A:a b c\n", "trec_test.label": "A:a d\n"},
    {"train_5500.label": "A:a b c\n", "TREC_10.label": "A:a d\n"},
)
BANKING = (
    {"banking77_train.csv": f"{CSV}a,b\n", "banking77_test.csv": f"{CSV}c,b\n"},
    {"train.csv": "category,text\nb,a\n", "test.csv": f"{CSV}c,b\n"},
)
RETRIEVAL = "Accurate_Retrieval"
LAYOUTS = [
    ("squad", {"squad.json": NESTED}, {"train-00000-of-00001.parquet": [ROW]}),
    ("hotpotqa", {"hotpot.json": [H1, H2]}, {"hotpot_train_v1.1.json": [authors(H1), authors(H2)]}),
    ("perltqa", *PERLTQA),
    ("pubmed-rct", NUMBERED, {"pubmed_train.jsonl": zinc(LABELS.__getitem__)}),
    ("pubmed-rct", NUMBERED, {"pubmed_train.parquet": zinc(lambda number: [number])}),
    ("ruler_qa1_197K", {f"{RETRIEVAL}.json": BENCH}, {f"{RETRIEVAL}.jsonl": BENCH}),
    ("ruler_qa1_197K", {f"{RETRIEVAL}.json": BENCH}, {f"data/{RETRIEVAL}-0.parquet": BENCH}),
    ("longmemeval", {"longmemeval_s.json": [BISCUIT]}, {"longmemeval_s": [BISCUIT]}),
    ("trec_coarse", *TREC),
    ("banking77", *BANKING),
]


@pytest.mark.parametrize(("source", "files", "others"), LAYOUTS)
def test_every_layout_of_the_same_rows_builds_the_same(tmp_path, source, files, others):
    """The authors' names and layouts, those of the hub, and the kit's own."""
    small = {"sample_min_tokens": 9, "max_chunks": 1, "max_questions": 1}
    config = sized(9, **small) if source == "pubmed-rct" else WORDS
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, content in ((first, files), (second, others)):
        for name, held in content.items():
            raw_rows.write(folder, name, held)
    assert build(source, first, config, seed=0) == build(source, second, config, seed=0) != []


def test_shards_are_read_together_and_only_from_one_folder(tmp_path):
    for folder in ("fullwiki", "distractor"):
        for i in range(2):
            name = f"{folder}/train-0000{i}-of-00002.parquet"
            raw_rows.write(tmp_path, name, [{"id": f"{folder}{i}"}])
    pattern = SOURCES["hotpotqa"].files[0]
    found = [row["id"] for row, _ in rows(tmp_path, pattern, ("id",), Skips())]
    assert found == ["fullwiki0", "fullwiki1"] and len(matches(tmp_path, pattern)) == 2
    with pytest.raises(InputError, match="expected one raw file"):
        list(rows(tmp_path, "*/train-*.parquet", ("id",), Skips()))


@pytest.mark.parametrize("block", [1, 3, 7, 1 << 20])
def test_a_json_list_is_read_alike_whatever_the_size_of_its_window(tmp_path, monkeypatch, block):
    """Records are decoded while the file is read: it is never held as a whole."""
    monkeypatch.setattr(_Feed, "BLOCK", block)
    values = [{"a": [1, {"b": "x\n]"}]}, 12345, -0.5, "ö,]", [], None, True]
    write(tmp_path, x__json=b"\xef\xbb\xbf" + json.dumps(values, indent=1).encode())
    skips = Skips("skip")
    assert [row for row, _ in rows(tmp_path, "x.json", (), skips)] == values
    write(tmp_path, x__json='[1,\n 2,\n {"a": 3')
    assert [row for row, _ in rows(tmp_path, "x.json", (), skips)] == [1, 2]
    assert skips.skipped[0].startswith(f"{tmp_path / 'x.json'}:3: expected JSON")


STREAM = """
import json, resource, sys, pathlib
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.raw import rows
folder = pathlib.Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = sum(1 for _ in rows(folder, "big.json", (), Skips()))
print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_file_of_60_megabytes_is_read_in_less_than_half_of_that(tmp_path, root):
    """A full LongMemEval or HotpotQA file stays far below a gigabyte."""
    record = json.dumps({"text": "häuser " * 14_000})
    with open(tmp_path / "big.json", "w", encoding="utf-8") as file:
        file.write("[" + ",\n".join([record] * 600) + "]")
    command, env = [sys.executable, "-c", STREAM, str(tmp_path)], {"PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    n, grown = map(int, done.stdout.split())
    assert n == 600 and grown < 30


NLU_HEAD = "userid;scenario;intent;status;answer_annotation;answer_normalised;answer\n"


def nlu_row(answer, annotation="[x : y]", status="", intent="set"):
    return f"1;alarm;{intent};{status};{annotation};;{answer}\n"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({}, None),
        ({"status": "IRR_XR"}, "status IRR"),
        ({"status": "irr"}, "status IRR"),
        ({"annotation": ""}, "without an annotation"),
        ({"annotation": "null"}, "without an annotation"),
    ],
)
def test_nlu_rows_that_their_authors_call_unfit_are_dropped_and_counted(tmp_path, change, rule):
    write(tmp_path, NLU__csv=NLU_HEAD + nlu_row("wake me", **change) + nlu_row("other"))
    skips = Skips()
    assert len(read_nlu(tmp_path / "NLU.csv", skips)) == (1 if rule else 2)
    assert [(n, rule in name) for name, n in skips.dropped.items()] == [(1, True)] * bool(rule)


LEAKING = [
    ("wake me at five am", "wake me at 5am", "wake me at [time : five am]"),  # asked by annotation
    ("Turn it up by 25 %!", "turn it up by twenty five percent", "turn it up by [x : 25 percent]"),
    ("what's on friday", "whats on friday", "what's on [date : friday]"),
    ("meet Ann at half past six", "meet ann at 6:30", "meet [who : Ann] at [at : half past six]"),
]


def ttl_folder(folder, evaluated):
    """Raw files of ttl_train with 40 clean sentences, the leaking ones, and an evaluation row."""
    clean = [f"say word number {n} to {who}" for n in range(20) for who in ("tom", "ann")]
    lines = [nlu_row(text, text, intent=f"i{i % 4}") for i, text in enumerate(clean)]
    lines += [nlu_row(answer, annotation) for _, answer, annotation in LEAKING]
    write(folder, NLU__csv=NLU_HEAD + "".join(lines))
    trec = "".join(f"A:a clean question {n} ?\nB:b clear matter {n} ?\n" for n in range(20))
    write(folder, trec_train__label=trec, trec_test__label="A:a held out ?\n")
    context = "".join(f"{text}\nlabel: 0\n" for text in evaluated[1:]) or "x\nlabel: 0\n"
    row = bench_row("icl_nlu_8296shot_balance", context, evaluated[:1], [["0"]])
    return write(folder, Test_Time_Learning__json=[row])


def test_no_spelling_of_an_evaluation_sentence_is_trained_on_and_a_planted_one_is_found(tmp_path):
    """About a tenth of NLU passed as clean when one of two spellings was compared."""
    evaluated = [text for text, *_ in LEAKING]
    folder = ttl_folder(tmp_path, evaluated)
    skips = Skips()
    config = BuildConfig(instances=3, counter="words")
    built = build("ttl_train", folder, config, 0, skips)
    text = "\n".join(chunk for i in built for chunk in i.chunks)
    text += "\n".join(qa.question for i in built for qa in i.questions)
    assert not any(answer in text for _, answer, _ in LEAKING)
    assert skips.dropped["ttl_train: sentences of evaluation rows"] == len(LEAKING)

    open_ended = build("ttl_train", folder, replace(config, exclude="none", examples=60), 0)
    asked = [QA(f"q{i}", t, ("0",)) for i, t in enumerate(evaluated)]
    test = make_instance("icl_nlu_8296shot_balance", ["Sentence: x y z w\nLabel: 0"], asked)
    parts = [Dataset("train", tuple(open_ended), ()), Dataset("test", (), (test,))]
    assert any(leaks.leaks(parts)["leak"])
    parts[0] = Dataset("train", tuple(built), ())
    assert not any(leaks.leaks(parts)["leak"])


def record(days=(1,), asked="2023/06/01 (Thu) 10:00"):
    return {
        "question_id": "r0",
        "question": "What is the dog?",
        "answer": "a dog",
        "question_date": asked,
        "haystack_dates": [f"2023/05/{day:02} (Sat) 02:21" for day in days],
        "haystack_session_ids": [f"s{day}" for day in days],
        "answer_session_ids": [f"s{days[0]}"],
        "haystack_sessions": [[said(f"Dog of day {day}.")] for day in days],
    }


@pytest.mark.parametrize("days", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_dialogues_stand_in_time_order_whatever_the_files_order(tmp_path, days):
    write(tmp_path, longmemeval_s__json=[record(days)])
    config = BuildConfig(dialogue_close_tokens=1)
    [instance] = build("longmemeval", tmp_path, config, 0)
    assert [chunk[31:33] for chunk in instance.chunks] == ["01", "02", "03"]
    assert instance.questions[0].chunk == days[0] - 1


@pytest.mark.parametrize(
    ("setting", "asked"),
    [
        ({}, "Current date: 2023/06/01 (Thu) 10:00\nWhat is the dog?"),
        ({"question_dates": "kept"}, "What is the dog?"),
        ({"compat": "release"}, "What is the dog?"),
    ],
)
def test_the_day_of_a_question_is_kept_and_shown_by_default(tmp_path, setting, asked):
    """A quarter of LongMemEval's questions cannot be answered without it."""
    write(tmp_path, longmemeval_s__json=[record()])
    config = BuildConfig(exclude="none", merged_questions=1, **setting)
    for source in ("longmemeval", "lme_train"):
        [instance] = build(source, tmp_path, config, 0)
        assert instance.questions[0].question == asked
        assert instance.metadata["question_dates"] == ["2023/06/01 (Thu) 10:00"]
    write(tmp_path, longmemeval_s__json=[record(asked=None)])
    [plain] = build("longmemeval", tmp_path, config, 0)
    assert plain.questions[0].question == "What is the dog?"


LAKE = "Lake Orvane lies north of Tessin. The ferry was built by Mira Holt."
ASKED = [
    {"question": "Who built the ferry?", "answer": "Mira Holt", "file": "lakes/orvane.md"},
    {"question": "What grows?", "answers": ["barley", "rye"], "file": "tessin.txt", "id": "b"},
]


@pytest.fixture
def notes(tmp_path):
    """A folder of notes with a questions' file beside it."""
    write(tmp_path, **{"notes/lakes/orvane.md": LAKE, "notes/tessin.txt": "Blue barley grows."})
    return write(tmp_path, q__jsonl="".join(json.dumps(row) + "\n" for row in ASKED))


def test_own_text_files_are_built_with_their_questions(notes):
    config = BuildConfig(questions=str(notes / "q.jsonl"))
    top, lakes = build("text", notes / "notes", config, 0)
    top, lakes = sorted((top, lakes), key=lambda i: "Mira" in i.chunks[0])
    assert lakes.questions == (QA("q1", "Who built the ferry?", ("Mira Holt",), 0),)
    assert top.questions == (QA("b", "What grows?", ("barley", "rye"), 0),)
    assert LAKE in lakes.chunks[0] and lakes.metadata["files"] == ["lakes/orvane.md"]
    assert lakes.source == "text" and metric_of("text") == "contains"
    [other, _] = build("text", notes / "notes", replace(config, metric="rouge_l"), 0)
    assert metric_of(other.source) == "rouge_l"


@pytest.mark.parametrize("named", [True, False])
def test_a_question_looks_at_no_file_but_its_own_and_no_chunk_without_its_answer_s_words(
    tmp_path, monkeypatch, named
):
    looked, spaced = Counter(), text._spaced

    class Seen(str):
        def __hash__(self):
            looked[str(self)] += 1
            return super().__hash__()

        def __contains__(self, phrase):
            looked["words"] += 1
            return super().__contains__(phrase)

    monkeypatch.setattr(text, "_name", Seen)
    monkeypatch.setattr(text, "_spaced", lambda words: Seen(spaced(words)))
    names = [f"n{i}.txt" for i in range(10, 50)]
    write(tmp_path, **{f"notes/{name}": f"Note {name}." for name in names})
    asked = [{"question": "Which?", "answer": name} for name in names]
    rows = [row | {"file": row["answer"]} if named else row for row in asked]
    write(tmp_path, q__jsonl="".join(json.dumps(row) + "\n" for row in rows))
    [one] = build("text", tmp_path / "notes", BuildConfig(questions=str(tmp_path / "q.jsonl")), 0)
    assert [qa.chunk for qa in one.questions] == [*range(40)]
    assert looked.pop("words") == 40 and max(looked.values()) < 10


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        ({"questions": ""}, None, "questions: expected a file with a question on each line"),
        ({"metric": "contain"}, None, "metric: .* found 'contain'; did you mean 'contains'"),
        ({}, {"answer": "x"}, "q.jsonl:1: question: expected a value, found nothing"),
        ({}, {"question": "Q?", "answers": []}, "q.jsonl:1: answer"),
        ({}, {"question": "Q?", "answer": "x", "file": "z.md"}, "q.jsonl:1: file: .*found 'z.md'"),
        ({}, {"question": "Q?", "answer": "x"}, "q.jsonl:1: file: .*found none and 2 folders"),
    ],
)
def test_what_cannot_be_built_of_own_files_is_one_line(notes, change, line, message):
    if line:
        write(notes, q__jsonl=json.dumps(line))
    config = BuildConfig(**{"questions": str(notes / "q.jsonl"), **change})
    with pytest.raises(InputError, match=message) as caught:
        build("text", notes / "notes", config, 0)
    assert "\n" not in str(caught.value)


def test_own_text_files_are_named_as_on_any_system_and_bad_ones_are_left_out(notes):
    """Notes as they are: Latin-1, empty, names with accents, the editor's own files."""
    odd = {
        "a/Zürich.MD": "Trams run in 1911.",
        "a/x/top.txt": "„Lissabon“ und 東京です。",
        "a/.trash/old.md": "1911",
    }
    write(notes, **{f"odd/{name}": text for name, text in odd.items()})
    for name in ("latin.txt", "x/latin.txt"):
        (notes / "odd" / name).parent.mkdir(exist_ok=True)
        (notes / "odd" / name).write_bytes(b"caf\xe9")
    (notes / "odd" / "b.md").touch()
    asked = [
        {"question": "When?", "answer": 1911, "file": "a\\Zu\u0308rich.MD", "id": "q"},
        {"question": "Again?", "answer": "1911", "file": "./a/Zürich.MD", "id": "q"},
        {"question": "Wo?", "answer": "Lissabon", "file": "a/x/top.txt"},
        {"question": "首都?", "answer": "東京", "file": "a/x/top.txt"},
    ]
    write(notes, **{".q[1].jsonl": "".join(json.dumps(row) + "\n" for row in asked)})
    config = BuildConfig(questions=str(notes / ".q[1].jsonl"), on_error="skip")
    card, skips = build_source("text", notes / "odd", config).card, Skips("skip")
    [instance] = build("text", notes / "odd", config, 0, skips)
    assert [(qa.id, qa.chunk) for qa in instance.questions] == [("q", 0), ("q3", 1), ("q4", 1)]
    assert instance.questions[0].answers == ("1911",)
    assert instance.metadata["files"] == ["a/Zürich.MD", "a/x/top.txt"]
    assert len(skips.skipped) == 4 and "id: expected each id once" in skips.skipped[-1]
    files = [".q[1].jsonl", "a/Zürich.MD", "a/x/top.txt", "b.md", "latin.txt", "x/latin.txt"]
    assert sorted(card["raw_sha256"]) == files


def test_packed_files_are_read_as_plain_ones(tmp_path):
    values = [{"a": 1}, {"a": 2}]
    content = json.dumps(values).encode()
    write(tmp_path / "p", x__json=content)
    write(tmp_path / "g", x__json__gz=gzip.compress(content))
    with zipfile.ZipFile(write(tmp_path / "z", y="") / "x.json.zip", "w") as archive:
        archive.writestr("x.json", content)
        archive.writestr("__MACOSX/x.json", b"")
    for folder in "pgz":
        assert [row for row, _ in rows(tmp_path / folder, "x.json", (), Skips())] == values


def test_the_lines_of_a_7z_archive_are_those_of_its_file(tmp_path, monkeypatch):
    write(tmp_path, **{"train.7z": raw_rows.seven_zip({"data/train.txt": "###1\nAIM\tWhy.\n"})})
    read = [line for line, _ in lines(tmp_path / "train.7z", Skips())]
    assert read == ["###1", "AIM\tWhy."]
    monkeypatch.setitem(sys.modules, "py7zr", None)
    with pytest.raises(InputError, match="pip install py7zr, or run 7z x train.7z"):
        next(lines(tmp_path / "train.7z", Skips()))
