"""Instances on disk: load(save(x)) == x, in the public layout, and one line for what is no data."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_rows import without, write

from memalpha_kit.data import instances as instances_module
from memalpha_kit.data.build import split_set
from memalpha_kit.data.instances import load_instances, read_instance, save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, make_instance

INSTANCES = [
    make_instance(
        "squad",
        ["Nora keeps bees.\u2028", 'Otto "paints" é🙂.'],
        [QA("5733be", "Who keeps bees?", ("Nora",), 0), QA("x", "Who paints?", ("Otto", "O."))],
    ),
    make_instance("trec_coarse", ["Sentence: Why ?\nLabel: 0"], [QA("line-3", "Who ?", ("1",))]),
    make_instance(
        *("ruler_qa1_197K", ["Quill Bay trades salt."], [QA("q0", "What?", ("salt",))]),
        prompt="Read, then answer.",
        metadata={"groups": ["squad:Quill Bay", "é"], "revision": "a1", "answer_type": "list"},
    ),
]


@pytest.mark.parametrize("instances", [INSTANCES, []])
def test_a_file_has_the_public_columns_also_without_rows(tmp_path, instances):
    """The reference writes a file without columns when there is no row."""
    path = tmp_path / "new" / "a.parquet"
    save_instances(path, instances)
    columns = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert list(columns) == [
        *("instance_id", "prompt", "chunks", "questions_and_answers"),
        *("data_source", "metadata", "num_chunks", "num_questions"),
    ]
    assert list(columns.values()) == ["int64", *["string"] * 5, *["int64"] * 2]
    assert load_instances(path) == instances


def test_a_row_has_the_public_shapes(tmp_path):
    save_instances(tmp_path / "a.parquet", INSTANCES)
    row, other, listed = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert (row["instance_id"], row["num_chunks"], row["num_questions"]) == (0, 2, 2)
    assert other["instance_id"] == 1 and other["data_source"] == "trec_coarse"
    assert json.loads(row["chunks"]) == list(INSTANCES[0].chunks)
    assert row["chunks"].isascii()
    assert json.loads(row["questions_and_answers"]) == [
        {"question": "Who keeps bees?", "answer": "Nora"},
        {"question": "Who paints?", "answer": ["Otto", "O."]},
    ]
    assert json.loads(row["metadata"]) == {
        "id": INSTANCES[0].id,
        "question_ids": ["5733be", "x"],
        "question_chunks": [0, None],
    }
    assert listed["prompt"] == "Read, then answer."
    assert json.loads(listed["questions_and_answers"])[0]["answer"] == ["salt"]
    assert json.loads(listed["metadata"])["groups"] == ["squad:Quill Bay", "é"]


def row(**change):
    """A published row, which has nothing of ours in its metadata."""
    return {
        "instance_id": 7,
        "prompt": "",
        "chunks": '["one", "two"]',
        "questions_and_answers": '[{"question": "Which?", "answer": "two"}]',
        "data_source": "squad",
        "metadata": '{"data_source": "squad", "metadata": "{}"}',
    } | change


PAIR = {"question": "Which?", "answer": "two"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"chunks": ["one", "two"], "questions_and_answers": [PAIR]},
        {"chunks": ("one", "two"), "questions_and_answers": (PAIR,)},
        {"questions_and_answers": [{"question": "Which?", "answers": ["two"]}]},
        {"questions_and_answers": [{"question": "Which?", "answers": "two", "answer": None}]},
        {"data_source": None},
        {"data_source": None, "sub_source": "squad"},
        {"metadata": '{"x": NaN'},
        {"metadata": None},
        {"metadata": "[1]"},
        {"metadata": '{"question_ids": ["a", "b"]}'},
        {"metadata": '{"question_ids": [1], "question_chunks": ["x"]}'},
    ],
)
def test_every_published_shape_of_a_row_is_read(change):
    """One reader for what each of the public ones accepts."""
    instance = read_instance(row(**change), "here", source="squad")
    assert instance.chunks == ("one", "two") and instance.source == "squad"
    assert instance.questions == (QA("q0", "Which?", ("two",)),)
    assert instance.id == make_instance("squad", ["one", "two"], instance.questions).id


@pytest.mark.parametrize(
    ("answer", "read"), [(3, ("3",)), (["salt", 2.5], ("salt", "2.5")), (["x"], ("x",))]
)
def test_answers_that_are_numbers_become_text(answer, read):
    """The published code stops in a debugger."""
    pairs = json.dumps([{"question": "Which?", "answer": answer}])
    assert read_instance(row(questions_and_answers=pairs), "here").questions[0].answers == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            ({"questions_and_answers": [PAIR | {"answer": odd}]}, r"answers\[0\]: answer: expected")
            for odd in ({"a": 1}, True, [["x"]], [None], float("nan"))
        ),
        ({"data_source": None}, "row 3: data_source: expected a name, found none"),
        ({"chunks": "[]"}, r"row 3: chunks: expected a list that is not empty, found \[\]"),
        ({"chunks": None}, "row 3: chunks: expected a list"),
        ({"chunks": "['a']"}, "row 3: chunks: expected a JSON list, found"),
        ({"chunks": '["a", null]'}, r"row 3: chunks\[1\]: expected text, found None"),
        ({"chunks": '[" "]'}, "row 3: squad/.*: chunks: expected at least one non-blank"),
        ({"questions_and_answers": "[]"}, "row 3: questions_and_answers: expected a list that"),
        ({"questions_and_answers": '[{"answer": "a"}]'}, r"answers\[0\]: question: expected text"),
        ({"questions_and_answers": "[3]"}, r"answers\[0\]: question: expected text"),
        ({"questions_and_answers": '[{"question": "Q"}]'}, r"answers\[0\]: answer: expected text"),
        ({"questions_and_answers": '[{"question": "Q", "answer": []}]'}, "expected an answer"),
        ({"questions_and_answers": [PAIR | {"question": " "}]}, "found a blank question"),
        ({"questions_and_answers": "[" * 100_000}, "questions_and_answers: expected a JSON list"),
        ({"chunks": f"[{'1' * 5000}]"}, "row 3: chunks: expected a JSON list"),
        ({"chunks": b"[]"}, "row 3: chunks: expected a list"),
        ({"data_source": 3}, "row 3: data_source: expected a name, found 3"),
        (
            {"questions_and_answers": [PAIR] * 2, "metadata": {"question_ids": ["a", "a"]}},
            "row 3: .*question a: expected each id once",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_column(change, message):
    with pytest.raises(InputError, match=message) as caught:
        read_instance(row(**change), "file.parquet: row 3")
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "flat"),
    [
        ("{}", {}),
        (None, {}),
        ('{"sub_source": "squad"}', {"sub_source": "squad"}),
        (
            '{"data_source": "squad", "metadata": "{\\"sub_source\\": \\"ruler\\"}"}',
            {"sub_source": "ruler", "data_source": "squad"},
        ),
        ('{"sub_source": NaN}', {"sub_source": None}),
        ('{"dates": {"from": "2024", "to": "25"}}', {"dates.from": "2024", "dates.to": "25"}),
        ('{"turns": [["a"], 1]}', {"turns": '[["a"], 1]'}),
        ('{"x": NaN', {"metadata": '{"x": NaN'}),
        ({"score": float("inf")}, {"score": "Infinity"}),
        ("[1]", {"metadata": [1]}),
        ("[" * 9000, {"metadata": "[" * 9000}),
        (f'{{"n": {"1" * 5000}}}', {"metadata": f'{{"n": {"1" * 5000}}}'}),
    ],
)
def test_metadata_becomes_flat_valid_json_and_stays_so(tmp_path, found, flat):
    """the reference nests JSON in JSON at every merge and writes NaN."""

    def refuse(constant):
        raise AssertionError(constant)

    path = tmp_path / "a.parquet"
    read = read_instance(row(metadata=found), "here")
    assert read.metadata == flat
    save_instances(path, [read])
    cell = pq.read_table(path).to_pylist()[0]["metadata"]
    json.loads(cell, parse_constant=refuse)
    again = load_instances(path)
    assert again == [read]
    save_instances(path, again)
    assert pq.read_table(path).to_pylist()[0]["metadata"] == cell


def test_a_published_row_is_written_as_it_was_read(tmp_path):
    pairs = [{"question": "A?", "answer": ["x"]}, {"question": "B?", "answer": ["y", "z"]}]
    published = row(questions_and_answers=json.dumps(pairs), prompt="Go.", metadata="{}")
    save_instances(tmp_path / "a.parquet", [read_instance(published, "here")])
    [written] = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert json.loads(written["questions_and_answers"]) == pairs
    for column in ("prompt", "chunks", "data_source"):
        assert written[column] == published[column]


@pytest.mark.parametrize(
    ("metadata", "questions", "message"),
    [
        ({"id": "x"}, 1, "metadata 'id': expected another name"),
        ({"a": {"b": 1}}, 1, "metadata 'a': expected text, numbers or a list"),
        ({"a": float("nan")}, 1, "metadata 'a': expected text, numbers or a list"),
        ({}, 101, "expected at most 100 questions, found 101"),
    ],
)
def test_what_public_readers_refuse_is_not_written(tmp_path, metadata, questions, message):
    asked = [QA(f"q{i}", "Which?", ("one",)) for i in range(questions)]
    instance = make_instance("squad", ["one"], asked, metadata=metadata)
    with pytest.raises(InputError, match=message):
        save_instances(tmp_path / "a.parquet", [instance])


BYTES = pa.array([b"\xff\xfe"]).cast(pa.string(), safe=False)
STRANGE = pa.table({"chunks": BYTES, "questions_and_answers": BYTES})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.parquet: expected a readable file, found: No such"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "a Git-LFS pointer"),
        (b"PAR1 and then nothing", "a.parquet: expected parquet"),
        (b"", "a.parquet: expected parquet"),
        (pa.table({"chunks": ['["a"]']}), "a column 'questions_and_answers', found chunks"),
        (STRANGE, "a.parquet: expected parquet, found: 'utf-8' codec"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.parquet"
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_instances(path)
    assert "\n" not in str(caught.value)


def test_an_id_that_occurs_twice_is_refused_on_loading_and_on_saving(tmp_path):
    path = write(tmp_path, "a.parquet", [row(), row(instance_id=8)]) / "a.parquet"
    with pytest.raises(InputError, match=f"expected an instance once, found {INSTANCES[0].id}"):
        save_instances(path, [*INSTANCES, INSTANCES[0]])
    pq.write_table(pa.Table.from_pylist([row(), row(instance_id=8)]), path)
    with pytest.raises(InputError, match="a.parquet: expected an instance once, found squad/"):
        load_instances(path)


def test_a_file_of_many_rows_looks_at_each_row_a_few_times(tmp_path, monkeypatch):
    looked = Counter()

    class Row(dict):
        def __getitem__(self, column):
            looked[column] += 1
            return super().__getitem__(column)

    made = instances_module._row
    monkeypatch.setattr(instances_module, "_row", lambda *of: Row(made(*of)))
    monkeypatch.setattr(instances_module, "GROUP", 1000)
    many = [make_instance("s", [f"c{i}"], [QA("q", "Q?", ("a",))]) for i in range(300)]
    save_instances(tmp_path / "many.parquet", many)
    assert load_instances(tmp_path / "many.parquet") == many
    assert looked["chunks"] < 3 * len(many)


def test_half_surrogate_pairs_are_replaced_when_read(tmp_path):
    """No file and no server takes them: a run once ended on one after everything was asked."""
    pairs = '[{"question": "Who is \\ud83d?", "answer": "\\udc00 \\ud83d\\ude42"}]'
    write(tmp_path, "a.parquet", [row(questions_and_answers=pairs, chunks='["\\ud800."]')])
    [read] = load_instances(tmp_path / "a.parquet")
    assert read.chunks == ("\ufffd.",) and read.questions[0].question == "Who is \ufffd?"
    assert read.questions[0].answers == ("\ufffd \U0001f642",)
    save_instances(tmp_path / "b.parquet", [read])
    assert load_instances(tmp_path / "b.parquet") == [read]


def test_a_split_keeps_the_source_that_sub_source_names(tmp_path):
    """The parts of the published sets have `sub_source` in place of `data_source`."""
    rows = [row(chunks=f'["{i}"]', sub_source=f"icl_{i % 2}") for i in range(20)]
    rows = [without(without(one, "data_source"), "metadata") for one in rows]
    write(tmp_path, "test.parquet", rows)
    for compat in ("fixed", "release"):
        new = split_set(tmp_path / "test.parquet", compat=compat)
        assert {i.source for i in (*new.train, *new.test)} == {"icl_0", "icl_1"}
    merged = read_instance(row(sub_source="icl_0"), "here")
    assert merged.source == "squad" and merged.metadata["sub_source"] == "icl_0"


def test_what_published_files_say_is_never_evaluated(tmp_path):
    """A text that is Python code stays a text, and code is no list."""
    code = f"[__import__('pathlib').Path({str(tmp_path / 'sprung')!r}).touch()]"
    pairs = json.dumps([{"question": code, "answer": code}])
    told = row(chunks=json.dumps([code]), questions_and_answers=pairs, metadata=code)
    kept = read_instance(told, "here")
    assert (*kept.chunks, kept.questions[0].question, *kept.questions[0].answers) == (code,) * 3
    assert kept.metadata == {"metadata": code}
    with pytest.raises(InputError, match="expected a JSON list"):
        read_instance(told | {"chunks": code}, "here")
    assert list(tmp_path.iterdir()) == []
