"""Raw rows to instances: worked examples, and what must never happen."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from raw_rows import BISCUIT, PAIR, asked, framed, shown, sized

from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import SOURCES, build, frames, labelled
from memalpha_kit.data.sources.building import Job, draw
from memalpha_kit.data.sources.labelled import Sample
from memalpha_kit.errors import InputError
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import TASKS
from memalpha_kit.text import normalise
from memalpha_kit.tokens import counter


def test_labelled_samples_give_the_worked_example(one_line_pools, identity_draws):
    """Only the missing label is added, to chunk 0; the reference adds all three."""
    raw = [("where is my parcel", "2"), ("play some jazz", "0"), ("stop the music", "1")]
    train = [Sample(text, label, f"context:{i}") for i, (text, label) in enumerate(raw)]
    test = [Sample("track the van", "2", "questions:1")]
    config = BuildConfig(counter="words", examples=2, example_chunks=2)
    instance, *_ = labelled.of_samples(Job("icl_nlu", Path(), config), train, test)
    first = "Sentence: where is my parcel\nLabel: 2\n\nSentence: stop the music\nLabel: 1"
    assert instance.chunks == (
        framed("2024-01-01", first, "Examples:"),
        framed("2024-01-02", "Sentence: play some jazz\nLabel: 0", "Examples:"),
    )
    [qa] = instance.questions
    assert qa.question.startswith("Sentence: track the van\n") and "\\boxed{}" in qa.question
    assert qa.answers == ("2",) and instance.source == "icl_nlu"


TRAIN = """NUM:count How many bees are there ?
NUM:date When was the ferry built ?
HUM:ind Who built the ferry ?
ENTY:animal What animal hums ?
LOC:city Where is Tessin ?
"""
TEST = """HUM:ind Who keeps bees ?
NUM:date When was a ferry built
"""


@pytest.fixture
def small_trec(tmp_path):
    (tmp_path / "trec_train.label").write_text(TRAIN)
    (tmp_path / "trec_test.label").write_text(TEST)
    return tmp_path


def test_labels_are_numbered_by_name_and_held_out_sentences_never_shown(small_trec):
    """Not even in other words: the question of the ferry is held out with another article."""
    assert SOURCES["trec_coarse"].labels(small_trec) == ("ENTY", "HUM", "LOC", "NUM")
    assert SOURCES["trec_fine"].labels(small_trec)[3:] == ("NUM:count", "NUM:date")
    [instance] = build("trec_coarse", small_trec, BuildConfig(), seed=0)
    assert ("How many bees are there ?", "3") in shown(instance)
    assert "When was the ferry built ?" not in dict(shown(instance))
    assert [(qa.id, *qa.answers) for qa in instance.questions] == [("line-1", "1"), ("line-2", "3")]
    (small_trec / "trec_test.label").write_text("NUM:date When was it ?")
    [fine] = build("trec_fine", small_trec, BuildConfig(), seed=0)
    assert fine.questions[0].answers == ("4",) and fine.source == "trec_fine"


@pytest.mark.parametrize(
    ("source", "test", "message"),
    [
        ("trec_fine", TEST, "label 'NUM:date': every sample is also a held-out"),
        ("trec_coarse", "HUM:ind Who ?\nHUMM:ind Why ?\n", "label:2: label: .* did you mean 'HUM'"),
    ],
)
def test_a_label_without_samples_to_show_is_refused(small_trec, source, test, message):
    (small_trec / "trec_test.label").write_text(test)
    with pytest.raises(InputError, match=message):
        build(source, small_trec, BuildConfig(), seed=0)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_missing_labels_are_added_in_sorted_order_where_there_is_room(n):
    train = [Sample(f"word {i}", f"label{i % 9}", f"f:{i}") for i in range(90)]
    test = [Sample("held out", "label0", "f:0")]
    config = BuildConfig(counter="words", examples=n, instances=2, example_chunk_tokens=12)
    built = labelled.of_samples(Job("x", Path(), config, seed=3), train, test)
    assert len(built) == 2
    for instance in built:
        numbers = [number for _, number in shown(instance)]
        assert set(numbers) == set("012345678") and n <= len(numbers) <= n + 9
        assert all(len(PAIR.findall(chunk)) <= 2 for chunk in instance.chunks)


def test_shares_of_the_samples_are_disjoint_and_dealt_evenly_in_their_order():
    train = [Sample(f"word {i}", "a", f"f:{i}") for i in range(19)]
    config = BuildConfig(examples=8, example_chunks=3)
    built = labelled.of_samples(Job("x", Path(), config), train, [Sample("q", "a", "f:1")])
    sentences = {sentence for instance in built for sentence, _ in shown(instance)}
    assert len(built) == 2 and len(sentences) == 16
    assert [len(PAIR.findall(chunk)) for chunk in built[0].chunks] == [3, 3, 2]
    dealt = labelled.labelled_chunks(Job("x", Path(), config), 0, list("abcdefgh"), [])
    groups = ("a\n\nb\n\nc", "d\n\ne\n\nf", "g\n\nh")
    assert all(group in chunk for group, chunk in zip(groups, dealt, strict=True))


def test_trec_reads_latin_1_and_a_byte_order_mark(tmp_path):
    file, text = tmp_path / "x.label", "LOC:city Where is Orléans ?\r\n\r\n"
    for content in (text.encode("latin-1"), text.encode("utf-8-sig")):
        file.write_bytes(content)
        [sample] = labelled.read_trec(file, Skips())
        assert (sample.text, sample.label) == ("Where is Orléans ?", "LOC")


def test_banking77_joins_the_lines_of_a_message(tmp_path):
    """The reference keeps only the last line."""
    content = '\ufefftext,category\n"line one\nline two, too",b\n"other",a\n'
    (tmp_path / "banking77_train.csv").write_text(content)
    (tmp_path / "banking77_test.csv").write_text("category,text\na,asked\n")
    assert SOURCES["banking77"].labels(tmp_path) == ("a", "b")
    [instance] = build("banking77", tmp_path, BuildConfig(), seed=0)
    assert sorted(shown(instance)) == [("line one line two, too", "1"), ("other", "0")]


AT_20 = sized(1, 20, dialogue_close_tokens=17, dialogue_reserve_tokens=8)


def history(folder, record, config=AT_20):
    """The instance of one record of LongMemEval."""
    (folder / "longmemeval.json").write_text(json.dumps([record]))
    [instance] = build("longmemeval", folder, config, seed=0)
    return instance


def test_longmemeval_shows_dated_dialogues_and_knows_the_evidence(tmp_path):
    instance = history(tmp_path, BISCUIT)
    assert instance.chunks == (
        "[Dialogue at timestamp 2023/05/20 (Sat) 09:00]\n<User>It rains.\n\n"
        "[Dialogue at timestamp 2023/05/21 (Sun) 09:00]\n<User>My dog is called Biscuit.",
    )
    [qa] = instance.questions
    assert (qa.id, qa.question, qa.answers) == ("s1", "What is my dog called?", ("Biscuit",))
    assert "Biscuit" in instance.chunks[qa.chunk]


@pytest.mark.parametrize(
    ("change", "chunk"),
    [
        ({}, 1),
        ({"answer_session_ids": ["a"]}, 0),
        ({"answer_session_ids": ["a", "b"]}, 1),  # only b has a marked turn
        ({"answer_session_ids": ["z"]}, None),
        ({"answer_session_ids": None, "answer": 3}, None),
    ],
)
def test_the_evidence_chunk_is_known_or_none(tmp_path, change, chunk):
    config = replace(AT_20, dialogue_close_tokens=1)
    [qa] = history(tmp_path, BISCUIT | change, config).questions
    assert qa.chunk == chunk


def test_an_unknown_source_is_refused_with_the_closest_name():
    with pytest.raises(InputError, match="found 'trec_course'; did you mean 'trec_coarse'"):
        SOURCES["trec_course"]


def test_the_table_is_complete():
    rows = [SOURCES[name] for name in SOURCES]
    assert all(row.licence and row.files for row in rows) and {r.name for r in rows} == {*SOURCES}
    boxed = {name for name in SOURCES if "boxed" in TASKS[name].question_prefix}
    assert boxed == {name for name in SOURCES if TASKS[name].metric == "label"}
    named = {name for name in boxed if SOURCES[name].labels}
    assert named == {"trec_coarse", "trec_fine", "banking77", "pubmed-rct"}


def test_a_category_has_the_metrics_and_as_many_published_sources_as_in_the_paper():
    """Under keywords a list of answers holds keywords; elsewhere, alternatives."""
    rows = [row for row in TASKS.values() if row.category]
    assert Counter((row.category, row.metric) for row in rows) == {
        **{("AR", "contains"): 2, ("AR", "substring"): 4, ("AR", "perltqa"): 1},
        **{("TTL", "label"): 7, ("LRU", "keywords"): 2, ("CR", "substring"): 8},
    }
    assert {row.role for row in rows} == {"train", "eval"}
    facts = {row.name for row in TASKS.values() if row.name.startswith("factconsolidation_")}
    assert facts == {row.name for row in rows if row.category == "CR"}


def test_pools_have_the_sizes_of_the_reference_and_no_repeats():
    pools = (frames.DOCUMENT_LEAD_INS, frames.CLASSIFICATION_LEAD_INS, frames.ACKNOWLEDGEMENTS)
    assert [len(set(pool)) for pool in pools] == [20, 20, 19]


def test_drawing_keeps_the_order():
    drawn = draw(list(range(50)), 10, Job("x", Path()).rng(0, "questions"))
    assert len(drawn) == 10 and drawn == sorted(drawn)
    assert draw([2, 1], 5, Job("x", Path()).rng(0, "questions")) == [2, 1]


@pytest.mark.parametrize(
    ("name", "n_samples", "n_labels"),
    [("trec_coarse", 5441, 6), ("trec_fine", 5441, 50), ("banking77", 9970, 77)],
)
def test_real_samples_all_survive_and_none_is_held_out(real_data, name, n_samples, n_labels):
    """The reference loses one example per chunk border: 5,387 of 5,452 for TREC."""
    [instance] = build(name, real_data, BuildConfig(), seed=0)
    pairs = shown(instance)
    assert (len(pairs), len({n for _, n in pairs})) == (n_samples, n_labels)
    held_out = set(map(normalise, asked(instance)))
    assert len(instance.questions) == 100
    assert held_out.isdisjoint(normalise(sentence) for sentence, _ in pairs)
    assert all(counter("wordpunct").count(chunk) <= 1100 for chunk in instance.chunks)


def test_the_real_record_keeps_its_evidence_and_its_limit(real_data):
    [instance] = build("longmemeval", real_data, BuildConfig(), seed=0)
    [qa] = instance.questions
    assert qa.answers[0] in instance.chunks[qa.chunk]
    sizes = [counter("wordpunct").count(chunk) for chunk in instance.chunks]
    assert max(sizes) <= 2048 and 100_000 < sum(sizes) < 130_000


def test_the_real_squad_fixture_keeps_its_answers(real_data):
    [instance] = build("squad", real_data, BuildConfig(), seed=0)
    assert len(instance.questions) == 5
    assert all(qa.answers[0] in instance.chunks[qa.chunk] for qa in instance.questions)
