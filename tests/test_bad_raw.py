"""Raw files that are not as they must be: one line with place, expected and found."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_rows import (
    BISCUIT,
    DOOR,
    H1,
    H2,
    ILA,
    ILA_ASKED,
    SAMPLE,
    TALKS,
    bench_row,
    seven_zip,
    talk_qa,
    without,
    write,
)

from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import build
from memalpha_kit.data.sources.longmemeval import read_dialogues
from memalpha_kit.errors import InputError
from memalpha_kit.settings import BuildConfig
from tools.sample_data import make_raw

PLAIN = BuildConfig(rows="any", exclude="none")
FILES = {
    **{"squad": "squad.json", "hotpotqa": "hotpot.json", "booksum": "booksum_train.jsonl"},
    **{"pubmed-rct": "train.txt", "longmemeval": "longmemeval.json", "locomo": "locomo10.json"},
    **{"lme_train": "longmemeval.json", "ruler_qa1_197K": "Accurate_Retrieval.json"},
    **{"trec_fine": "trec_train.label", "banking77": "banking77_train.csv", "ttl_train": "NLU.csv"},
    **{"perltqa": "perltmem_en.json"},
}
"""Where content stands that is given without a name."""
BESIDE = {
    "ttl_train": {"trec_train.label": "A:a b\nA:a c\n", "trec_test.label": "A:a d\n"},
    "perltqa": {"perltqa_en.json": [{"Ila Brandt": ILA_ASKED}]},
}
"""Files that a source needs, too."""
DEEP, HUGE = "[" * 100_000, "1" * 5000
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
BARE = {"events": {"7_0_0": {"content": "x"}}}


def archive(*names, locked=False):
    """A zip archive of these files; a locked one is marked as encrypted."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        for name in names:
            file.writestr(name, "{}")
    content = bytearray(held.getvalue())
    if locked:
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def files_of(source, content):
    """Contents by file, where they are given without the name of the source's."""
    named = isinstance(content, dict) and any("." in name for name in content)
    return content if named else {FILES[source]: content}


def hotpot(row=H1, **change):
    return [row | change]


def shown(title, *articles):
    return {"title": [title], "sentences": list(articles)}


def biscuit(**change):
    return [BISCUIT | change]


def bench(**change):
    return [bench_row("ruler_qa1_197K", "text") | change]


def talks(**change):
    return [{"sample_id": "c1", "conversation": TALKS, "qa": [talk_qa(4)]} | change]


def samples(**change):
    return {"samples": [SAMPLE, SAMPLE | change]}


CSV = "text,category\n"
BAD = [
    ("squad", "", "squad.json: expected content, found an empty file"),
    ("squad", '{"data":\n [}', "squad.json:2: expected JSON"),
    ("squad", "[]", r"expected an object with data, found \[\]"),
    ("squad", '{"data": [{}]}', "article 0: paragraphs: expected a value"),
    ("squad", '{"data": []}', "expected an instance with 1 questions"),
    ("squad", f'{{"data": {HUGE}}}', "squad.json:1: expected JSON, found: Exceeds"),
    ("squad", DEEP, "nested too deeply"),
    ("squad", b"\xff\xfe{", "expected text in utf-8-sig, found byte 0xff"),
    ("squad", {"squad.json.gz": b"no gzip"}, "expected a readable file, found"),
    ("squad", {"squad.json.zip": archive("a", "b")}, "archive of one file, found a, b"),
    ("squad", {"squad.json.zip": archive("a", locked=True)}, "without a password"),
    ("hotpotqa", "", "expected a JSON list of records, found an empty file"),
    ("hotpotqa", '{"data": []}', "expected a JSON list of records, found '{"),
    ("hotpotqa", json.dumps([H1, H2])[:-60], "hotpot.json:1: expected JSON"),
    ("hotpotqa", f"[{HUGE}]", "hotpot.json:1: expected JSON, found: Exceeds"),
    ("hotpotqa", f"[{DEEP}", "nested too deeply"),
    ("hotpotqa", b'[{"a": "\xff"}]', "found byte 0xff"),
    ("hotpotqa", "[]", "expected an instance with 1 questions, found none"),
    ("hotpotqa", '[{"question": "\\ud800"}]', "question: expected text, found"),
    ("hotpotqa", hotpot(answer=" "), "record 0: answer: expected text, found"),
    ("hotpotqa", [without(H1, "id")], "record 0: _?id: expected a value, found nothing"),
    ("hotpotqa", [DOOR], "record 0: question: expected a value, found nothing"),
    ("hotpotqa", hotpot(context=shown("A")), "title and sentences of one length, .* 1 and"),
    ("hotpotqa", hotpot(H2, context=shown("Tom Venn", [" "])), "0: context: expected text in 'Tom"),
    ("hotpotqa", {"hotpot.jsonl": f'{{"a": {HUGE}}}\n'}, "hotpot.jsonl:1: expected JSON"),
    ("hotpotqa", {"hotpot.parquet": b"PAR1 cut off"}, "hotpot.parquet: expected parquet, found"),
    ("booksum", '{"text": ', "booksum_train.jsonl:1: expected JSON, found"),
    ("booksum", f"{DEEP}\n", "booksum_train.jsonl:1: expected JSON"),
    ("booksum", b'{"text": "\xe9"}', "expected UTF-8 text, found byte"),
    ("booksum", [H1], "jsonl:1: text: expected a value, found nothing"),
    ("booksum", [DOOR | {"text": ""}], 'text: expected text, found ""'),
    ("booksum", [DOOR | {"summary": ["x"]}], r"summary\[0\]: expected"),
    ("booksum", POINTER, "expected data, found a Git-LFS pointer"),
    ("booksum", {"booksum_train.jsonl.gz": b"\x1f\x8b\x08\0"}, "expected a readable file, found"),
    ("booksum", {"train-1.parquet": b"PAR1"}, "expected parquet, found"),
    ("pubmed-rct", "###1\nMETHOD\tx\n", "train.txt:2: labels: expected one of 0"),
    ("pubmed-rct", {"pubmed_train.jsonl": [{"text": "x", "labels": 5}]}, ":1: labels: .*found 5"),
    ("pubmed-rct", {"pubmed_train.jsonl": [{"text": "x", "labels": -1}]}, "labels: .*found -1"),
    ("pubmed-rct", "###1\nMETHODS x\n", "train.txt:2: expected LABEL, a tab"),
    ("pubmed-rct", b"###1\nMETHODS\t\xe9\n", "train.txt:2: expected UTF-8 text"),
    ("pubmed-rct", {"train.zip": b"PK"}, "train.zip: expected a readable file, found"),
    ("pubmed-rct", {"train.7z": b"7z"}, "expected a 7z archive without a password: not a 7z"),
    ("pubmed-rct", {"train.7z": seven_zip({"a": "", "b": ""})}, "of one file, found a, b"),
    ("pubmed-rct", {"train.7z": seven_zip({"a": "x"}, "key")}, "without a password"),
    ("perltqa", [3], "mem_en.json: record 0: expected an object with profile, found 3"),
    ("perltqa", "3", "mem_en.json: expected a list or an object of characters, found 3"),
    ("perltqa", [ILA | BARE], "7_0_0: summary: expected a value, found nothing"),
    ("perltqa", [ILA | {"events": [3]}], "events: expected objects by id, found 3"),
    ("perltqa", [without(ILA, "profile")], "profile: expected a value, found nothing"),
    ("perltqa", [ILA | {"profile": {}}], "profile: Protagonist: expected a value, found nothing"),
    ("longmemeval", "[]", "expected a list of records"),
    ("longmemeval", "[3]", "longmemeval.json: record 0: expected an object with haystack_dates"),
    ("longmemeval", "not JSON", "a JSON list of records, found 'not"),
    ("longmemeval", [without(BISCUIT, "question")], "question: expected a value, found nothing"),
    ("longmemeval", biscuit(question=" "), 'question: expected text, found " "'),
    ("longmemeval", biscuit(question_id=""), 'question_id: expected text, found ""'),
    ("longmemeval", biscuit(answer=None), "answer: expected text, found null"),
    ("longmemeval", biscuit(haystack_dates=["x"]), "session, found 1 dates for 3 sessions"),
    ("longmemeval", biscuit(haystack_dates=[1, 2, 3]), r"dates\[0\]: expected text, found 1"),
    ("longmemeval", biscuit(haystack_sessions=[[], {}, []]), r"sessions\[1\]: expected a list"),
    ("longmemeval", biscuit(haystack_sessions=[[{"role": "x"}], [], []]), r"\[0\]: content: expec"),
    ("longmemeval", biscuit(haystack_sessions=[[], [], []]), "chunks: expected at least one"),
    ("lme_train", samples(answers=["Biscuit", "Rex"]), "1: answers: expected one per question, fo"),
    ("lme_train", samples(haystack_dates=["x"]), "1: haystack_dates: expected one per session, fo"),
    ("lme_train", samples(sample_id=None), "sample 1: sample_id: expected text, found null"),
    ("lme_train", {"longmemeval.json": {"samples": [3]}}, "sample 0: expected an object with hay"),
    ("lme_train", [BISCUIT] * 2, r"at least 4 usable records \(merged_questions\), found 1"),
    ("locomo", talks(qa=[talk_qa(4, answer=None)]), r"qa\[0\]: answer: expected a text, found n"),
    ("locomo", talks(qa=[talk_qa(6)]), r"qa\[0\]: category: expected a smaller number, found 6"),
    ("locomo", talks(conversation={"speaker_a": "Ila"}), "expected sessions with turns, found no"),
    ("locomo", talks(conversation={"session_1": []}), "session_1: date: expected text, found null"),
    ("locomo", talks(sample_id=" "), 'record 0: sample_id: expected text, found " "'),
    ("ruler_qa1_197K", bench(context=" "), 'record 0: context: expected text, found " "'),
    (
        "ruler_qa1_197K",
        bench(questions=[]),
        r"0: questions: expected a list that is not empty, found \[\]",
    ),
    ("ruler_qa1_197K", bench(questions=["a", None]), r"questions\[1\]: expected text, found null"),
    ("ruler_qa1_197K", bench(answers=[]), r"record 0: answers: expected texts, found \[\]"),
    ("ruler_qa1_197K", bench(answers=[[" "]]), "record 0: answers: expected texts"),
    ("ruler_qa1_197K", bench(questions=["a", "b"]), "one list per question, found 1 for 2 que"),
    ("ruler_qa1_197K", bench(metadata={}), "record 0: metadata: source: expected a value, found"),
    ("ruler_qa1_197K", bench(metadata=None), "record 0: metadata: expected an object, found null"),
    ("trec_fine", "LOC:city\n", "trec_train.label:1: expected 'COARSE"),
    ("trec_fine", "\n", "trec_train.label: expected content"),
    ("trec_fine", "A:b c\n", "one raw file trec_test.label .*none"),
    ("banking77", "text,label\na,b\n", ":1: expected a column 'category', found text, label"),
    ("banking77", f"{CSV}a\n", ":2: category: expected text"),
    ("banking77", f"{CSV}a,b,c\n", ":2: expected 2 cells"),
    ("banking77", f'{CSV}"a,b\n', "expected CSV after line 1, found"),
    ("banking77", f"{CSV},b\n", ":2: text: expected text"),
    ("banking77", CSV, "expected at least one sentence"),
    ("ttl_train", "scenario;intent;text\na;b;c\n", "NLU.csv:1: expected a column 'answer', found"),
    ("ttl_train", "text,label\na,b\n", "NLU.csv:1: expected a column 'category'"),
    ("ttl_train", f"{CSV}a,\n", "NLU.csv:2: category: expected text, found a blank or missing c"),
    ("ttl_train", CSV, "NLU.csv:2: expected at least one sentence"),
]


@pytest.mark.parametrize(("source", "content", "message"), BAD)
def test_a_bad_raw_file_is_one_line_with_file_and_place(tmp_path, source, content, message):
    for file, held in (BESIDE.get(source, {}) | files_of(source, content)).items():
        write(tmp_path, file, held)
    with pytest.raises(InputError, match=message) as caught:
        build(source, tmp_path, PLAIN, seed=0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert str(tmp_path) in str(caught.value) or "chunks: expected" in message


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["2024", [], "2025"], "context: expected pairs of date and turns, found 3"),
        ([[], "2024"], r"context: haystack_dates\[0\]: expected text"),
        (["2024", "text"], r"haystack_sessions\[0\]: expected a list"),
        (["2024", [{"role": "user"}]], r"haystack_sessions\[0\]\[0\]: content: expected a value"),
    ],
)
def test_dates_and_turns_must_alternate(items, message):
    with pytest.raises(InputError, match=f"row 0: .*{message}|row 0: {message}"):
        read_dialogues(items, "row 0")


def test_parquet_of_another_type_or_under_the_wrong_name_is_one_line(tmp_path):
    table = pa.table({name: [1] for name in ("id", "question", "answer", "context")})
    table = table.append_column("supporting_facts", pa.array([b"\xff"]))
    pq.write_table(table, tmp_path / "hotpot.parquet")
    with pytest.raises(InputError, match="row 0: question: expected text, found 1"):
        build("hotpotqa", tmp_path, PLAIN, seed=0)
    make_raw(tmp_path, "booksum_parquet")
    (tmp_path / "booksum_train.parquet").replace(tmp_path / "hotpot.parquet")
    with pytest.raises(InputError, match="hotpot.parquet: expected a column 'id', found bid, b"):
        build("hotpotqa", tmp_path, PLAIN, seed=0)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (None, "expected a folder with raw files, found no folder"),
        ([], "found none of them in an empty folder"),
        (["notes.md", "sub/a.json"], "found none of them in notes.md, sub/"),
        ([f"{i}.bin" for i in range(12)], "and 4 more"),
        (["squad1.json", "squad2.json"], "found squad1.json, squad2.json"),
    ],
)
def test_where_nothing_fits_the_message_lists_what_is_there(tmp_path, there, message):
    raw = tmp_path / "raw"
    for name in there or ():
        write(raw, name, "x")
    if there == []:
        raw.mkdir()
    with pytest.raises(InputError, match=message) as caught:
        build("squad", raw, PLAIN, seed=0)
    assert str(raw) in str(caught.value) and "\n" not in str(caught.value)


CUT_OFF = json.dumps([H1, H2 | {"answer": None}, 3, H1 | {"id": "last"}])[:-40]


@pytest.mark.parametrize(
    ("source", "content", "kept", "skipped"),
    [
        (
            "hotpotqa",
            CUT_OFF,
            ["h1"],
            ["1: answer: expect", "2: expected an obj", ":1: expected J"],
        ),
        (
            "booksum",  # a byte order mark, then Latin-1 bytes in one line of many
            b"\xef\xbb\xbf" + b'%s\r\n{"text": "caf\xe9"}\r\n\r\n{' % json.dumps(DOOR).encode(),
            ["summary"],
            [":2: expected UTF-8 text", ":4: expected JSON"],
        ),
        ("lme_train", samples(sample_id=None), ["s1-0"], ["sample 1: sample_id: expected text"]),
        ("lme_train", samples(haystack_dates=["x"]), ["s1-0"], ["sample 1: haystack_dates: expe"]),
        ("lme_train", [BISCUIT, BISCUIT | {"answer": None}], ["s1"], ["record 1: answer: expecte"]),
        ("ttl_train", f"{CSV}play it,p\nstop it,p\n", ["NLU.csv:3"], ["one raw file trec_tra"]),
        (
            "banking77",
            {
                "banking77_train.csv": f"{CSV}a b,x\nno label\nc d,y,z\n",
                "banking77_test.csv": f"{CSV}e f,x\ng h,unknown\n",
            },
            ["line-2"],
            ["train.csv:3: category: exp", "train.csv:4: expected 2 cells", "test.csv:3: label: "],
        ),
        (
            "trec_coarse",
            {"trec_train.label": "A:b one\nnothing\n", "trec_test.label": "A:b two\n"},
            ["line-1"],
            ["trec_train.label:2: expected 'COARSE:fine question'"],
        ),
        (
            "longmemeval",
            [BISCUIT | {"haystack_sessions": [[], [], []]}, BISCUIT],
            ["s1"],
            ["record 0: longmemeval/"],
        ),
    ],
)
def test_bad_records_are_skipped_and_listed_when_the_user_says_so(
    tmp_path, source, content, kept, skipped
):
    """Without that the first one ends the build."""
    for file, held in files_of(source, content).items():
        write(tmp_path, file, held)
    n = 1 if source == "ttl_train" else None
    config = replace(PLAIN, merged_questions=1, chapter_min_chunks=1, instances=n)
    with pytest.raises(InputError, match=skipped[0]):
        build(source, tmp_path, config, seed=0)
    skips = Skips("skip")
    [instance] = build(source, tmp_path, replace(config, on_error="skip"), 0, skips)
    assert [qa.id for qa in instance.questions] == kept
    assert len(skips.card()["skipped"]) == len(skipped)
    for line, part in zip(skips.skipped, skipped, strict=True):
        assert str(tmp_path) in line and part in line
