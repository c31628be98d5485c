"""ttl_train, lme_train and MemoryAgentBench: worked examples, and what must never leak."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from raw_rows import DOOR, PAIR, WORDS, asked, bench_row, framed, said, shown, sized, write

from memalpha_kit.data.build import build_source
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import SOURCES, build, contexts
from memalpha_kit.data.sources import memory_agent_bench as bench
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.sources.labelled import read_nlu
from memalpha_kit.errors import InputError
from memalpha_kit.release import data as release
from memalpha_kit.settings import BuildConfig
from memalpha_kit.text import normalise
from memalpha_kit.tokens import counter
from tools.sample_data import make_raw

TREC, NLU = bench.TREC, bench.NLU


EXAMPLES = "where is my parcel\nlabel: 2\n\nplay some jazz\nlabel: 0\n\nstop the music\nlabel: 1\n"
PARCEL = bench.read_row(bench_row(NLU, EXAMPLES, ["track the van"], [["2"]]), "row 0")
TINY = BuildConfig(counter="words", example_chunks=2, example_tokens=8, instances=1)


def test_the_release_adds_an_example_of_every_label_to_the_first_chunk(identity_draws):
    """It looks for `label:` where chunks say `Label:`, so that every label seems missing."""
    [instance] = release.from_row(Job(NLU, Path(), TINY), PARCEL)
    assert [label for _, label in PAIR.findall(instance.chunks[0])] == ["2", "0", "1", "2"]


def test_the_lines_of_an_example_are_joined_and_the_release_keeps_the_last():
    """A text that holds `label:` is no border."""
    lines = "line one\nline two\nlabel: 4\n\nwhat does label: 3 mean\nLabel: 0"
    assert contexts.parse_examples(lines, "here") == [
        ("line one line two", "4"),
        ("what does label: 3 mean", "0"),
    ]
    assert contexts.parse_examples(lines, "here", last_line=True)[0] == ("line two", "4")


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("label: 1\n", "context, line 1: expected a sentence, found 'label: 1'"),
        ("a\nlabel: 1\nb\n", "expected a label after 'b', found none"),
        ("a\nlabel: one\n", "expected a label after 'label: one'"),
        ("\n", "expected examples, found none"),
    ],
)
def test_an_example_without_text_or_label_is_named(context, message):
    with pytest.raises(InputError, match=message):
        contexts.parse_examples(context, "row 0")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Raw files of ttl_train, with two sentences of each corpus also in the evaluation rows."""
    folder = tmp_path_factory.mktemp("ttl")
    make_raw(folder, "ttl_train", seed=1)
    trec = (folder / "trec_train.label").read_text("latin-1").splitlines()
    nlu = (folder / "NLU-Data-Home-Domain-Annotated-All.csv").read_text().splitlines()
    trec_text = trec[0].split(" ", 1)[1]
    nlu_text = nlu[1].split(";")[-1].strip('"')
    next(folder.glob("Test_Time*")).unlink()
    rows = [
        bench_row(TREC, f"{trec_text.upper()}\nlabel: 1\n", ["Who asks ?"], [["1"]]),
        bench_row(NLU, "play\nlabel: 0\n", [f"{nlu_text} !"], [["0"]]),
    ]
    write(folder, "Test_Time_Learning.json", rows)
    return folder, {normalise(trec_text), normalise(nlu_text)}


@pytest.fixture(scope="module")
def built(corpora):
    return build("ttl_train", corpora[0], BuildConfig(instances=20), seed=0)


def test_ttl_train_has_the_published_shape(built):
    assert Counter(instance.source for instance in built) == {TREC: 20, NLU: 20}
    assert {len(instance.chunks) for instance in built} == {10}
    assert all(0 < len(instance.questions) <= 100 for instance in built)
    assert len({instance.id for instance in built}) == 40


def used(instance):
    """All sentences of an instance, normalised."""
    return {normalise(text) for text in (*dict(shown(instance)), *asked(instance))}


@pytest.mark.parametrize(
    ("exclude", "trained_on"), [("evaluation", {0}), ("questions", {1}), ("none", {1, 2})]
)
def test_no_sentence_of_an_evaluation_row_is_trained_on(corpora, exclude, trained_on):
    """The release takes examples and questions from those very rows; "questions" keeps what they
    only show, as evaluation shows all of TREC's training file."""
    folder, evaluated = corpora
    instances = build("ttl_train", folder, BuildConfig(instances=20, exclude=exclude), seed=0)
    assert len(set().union(*map(used, instances)) & evaluated) in trained_on


def test_a_sentence_is_shown_once_or_asked_for_and_its_label_is_shown(built):
    for instance in built:
        sentences, labels = zip(*shown(instance), strict=True)
        assert len(sentences) == len(set(sentences))
        assert not set(map(normalise, sentences)) & set(map(normalise, asked(instance)))
        assert {qa.answers[0] for qa in instance.questions} <= set(labels)


def test_label_numbers_differ_between_instances(built):
    """A label's number is learnt from the chunks, not from another instance or evaluation."""
    first, second, *_ = (dict(shown(instance)) for instance in built if instance.source == TREC)
    common = first.keys() & second.keys()
    assert common and any(first[sentence] != second[sentence] for sentence in common)


def test_a_tenth_of_the_instances_shares_no_sentence_with_the_others(built):
    """In the release all instances have the same questions, so that any split leaks."""
    by_group = {}
    for instance in built:
        [group] = instance.metadata["groups"]
        by_group.setdefault(group, []).append(used(instance))
    assert sorted(map(len, by_group.values())) == [2, 2, 18, 18]
    sentences = [set().union(*instances) for instances in by_group.values()]
    assert sum(map(len, sentences)) == len(set().union(*sentences))


def test_ttl_train_is_split_as_in_the_paper_without_a_leak(corpora):
    read = build_source("ttl_train", corpora[0], BuildConfig(max_questions=5))
    assert Counter(i.source for i in read.train) == {TREC: 180, NLU: 180}
    assert Counter(i.source for i in read.test) == {TREC: 20, NLU: 20}


PUBLISHED = (
    "userid;answerid;scenario;intent;status;answer_annotation;answer_normalised;answer\n"
    '1;1;alarm;set;;"wake me";wake me;"Wake me; at five"\n'
    "1;2;alarm;query;;;;null\n"
    "1;3;music;likeness;;;;\n"
)


def test_both_layouts_of_the_intent_corpus_are_read(tmp_path):
    file = tmp_path / "NLU-Data.csv"
    file.write_text(PUBLISHED, encoding="utf-8-sig")
    [sample] = read_nlu(file, Skips())
    assert (sample.text, sample.label) == ("Wake me; at five", "alarm_set")
    file.write_bytes("text,category\nplay Beyonc\xe9,music\n".encode("latin-1"))
    [sample] = read_nlu(file, Skips())
    assert (sample.text, sample.label) == ("play Beyoncé", "music")


def test_compat_release_leaks_with_a_warning(corpora, tmp_path, caplog):
    questions = [f"ask {i}" for i in range(7)]
    context = "".join(f"say {i}\nlabel: {i % 3}\n\n" for i in range(40))
    rows = [bench_row(name, context, questions, [["1"]] * 7) for name in (TREC, NLU)]
    write(tmp_path, "Test_Time_Learning.json", rows)
    config = replace(WORDS, compat="release")
    with caplog.at_level(logging.WARNING):
        instances = build("ttl_train", tmp_path, config, seed=0)
    assert "trains on evaluation rows" in caplog.text
    assert Counter(i.source for i in instances) == {TREC: 200, NLU: 200}
    assert {len(i.chunks) for i in instances} == {10}
    assert {tuple(asked(i)) for i in instances} == {tuple(questions)}
    assert len({tuple(i.metadata["groups"]) for i in instances}) == 2
    [evaluated] = build(TREC, tmp_path, WORDS, seed=0)
    assert evaluated.metadata["groups"] == instances[0].metadata["groups"]
    write(tmp_path, "Test_Time_Learning.json", [rows[0] | {"questions": []}, rows[1]])
    left = build("ttl_train", tmp_path, config, 0, Skips("skip"))
    assert {i.source for i in left} == {NLU}


def test_the_real_trec_gives_200_instances(real_data):
    skips = Skips("skip")
    instances = build("ttl_train", real_data, BuildConfig(exclude="none"), 0, skips)
    assert len(instances) == 200 and len(skips.skipped) == 1
    assert {len(i.chunks) for i in instances} == {10}
    assert {len(i.questions) for i in instances} == {100}
    assert len({i.metadata["groups"][0] for i in instances}) == 2


def dialogue(name, answer=False):
    return [said(f"I talk about {name}.", has_answer=answer)]


def record(i, fillers=("one", "two")):
    """Question i about the secret of its second dialogue; the others are fillers."""
    names = [fillers[0], f"secret {i}", *fillers[1:]]
    return {
        "question_id": f"r{i}",
        "question": f"What is secret number {i}?",
        "question_date": "2023/06/01 (Thu) 10:00",
        "answer": f"secret {i}",
        "haystack_dates": [f"2023/05/{10 + d:02} (Sat) 0{i}:00" for d in range(len(names))],
        "haystack_session_ids": names,
        "answer_session_ids": [f"secret {i}"],
        "haystack_sessions": [dialogue(name, name.startswith("secret")) for name in names],
    }


def long_row(ids, questions, sessions):
    """An evaluation row, whose context is a list as Python prints it."""
    history = [x for s in sessions for x in ("2023/05/01 (Mon) 08:00", dialogue(s))]
    answers = [["x"]] * len(questions)
    return bench_row("longmemeval_s*", str(history), questions, answers, question_ids=ids)


@pytest.fixture
def lme_raw(tmp_path):
    """Seven records; evaluation has r0 by id and r1 by its words, and shows `two` and secret 2."""
    records = [record(i) for i in range(7)]
    (tmp_path / "longmemeval_s.json").write_text(json.dumps(records))
    row = long_row(["r0", "e1"], ["Other?", "what is secret number 1"], ["two", "secret 2"])
    write(tmp_path, "Accurate_Retrieval.json", [row])
    return tmp_path


TWO = sized(1, 60, merged_questions=2, dialogue_close_tokens=50, dialogue_reserve_tokens=8)


def test_evaluation_questions_never_enter_lme_train(lme_raw):
    """Left out by id, by the words of the question, and by evidence that evaluation shows."""
    skips = Skips()
    instances = build("lme_train", lme_raw, TWO, 0, skips)
    names = sorted(qa.id for instance in instances for qa in instance.questions)
    assert names == ["r3", "r4", "r5", "r6"] and [len(i.questions) for i in instances] == [2, 2]
    assert skips.dropped == {
        "lme_train: questions of evaluation rows": 2,
        "lme_train: questions with evidence that evaluation rows show": 1,
    }


@pytest.mark.parametrize(("exclude", "twos"), [("evaluation", 0), ("questions", 1)])
def test_a_dialogue_stands_in_one_instance_and_never_in_evaluation(lme_raw, exclude, twos):
    """Under "questions" dialogues that evaluation shows may be, but for their questions."""
    built = build("lme_train", lme_raw, replace(TWO, exclude=exclude), 0, Skips())
    assert sum(len(i.questions) for i in built) == 4
    text = "\n".join(chunk for i in built for chunk in i.chunks)
    assert text.count("I talk about one.") == 1 and text.count("I talk about two.") == twos
    assert "secret 0" not in text and ("secret 2" in text) <= twos


def test_evidence_is_kept_and_known_and_dialogues_are_in_the_order_of_dates(lme_raw):
    for instance in build("lme_train", lme_raw, replace(TWO, history_chunks=1), 0, Skips()):
        for qa in instance.questions:
            assert qa.answers[0] in instance.chunks[qa.chunk]
            assert f"longmemeval:{qa.id}" in instance.metadata["groups"]
        dates = re.findall(r"timestamp (\S+ \S+ \S+)\]", "\n".join(instance.chunks))
        assert dates == sorted(dates)


def test_a_history_is_cut_to_about_the_wanted_chunks(tmp_path):
    make_raw(tmp_path, "lme_train", seed=0)
    for wanted in (4, 8):
        config = BuildConfig(history_chunks=wanted, exclude="none")
        for instance in build("lme_train", tmp_path, config, seed=0)[:3]:
            assert abs(len(instance.chunks) - wanted) <= 2
            assert max(map(counter("wordpunct").count, instance.chunks)) <= 2048


def test_the_real_record_can_be_trained_on(real_data):
    config = BuildConfig(exclude="none", merged_questions=1)
    [instance] = build("lme_train", real_data, config, seed=0)
    [qa] = instance.questions
    assert qa.answers[0] in instance.chunks[qa.chunk]
    assert 12 <= len(instance.chunks) <= 18


@pytest.mark.parametrize("source", ["ttl_train", "lme_train"])
def test_training_needs_the_evaluation_rows_or_an_explicit_none(tmp_path, source, caplog):
    split = SOURCES[source].files[-1].partition("*")[0]
    make_raw(tmp_path, source, seed=0)
    for path in tmp_path.glob(f"{split}*"):
        path.unlink()
    with pytest.raises(InputError, match=rf"expected {split}\*, the evaluation rows"):
        build(source, tmp_path, BuildConfig(instances=1), seed=0)
    assert build(source, tmp_path, BuildConfig(instances=1, exclude="none"), seed=0)
    assert "nothing is excluded" in caplog.text


QUILL = (
    "Document 1:\nQuill Bay\nQuill Bay is a port. It trades salt.\n\n"
    "Document 2:\nOrr\nOrr is a hill."
)
TALK = [
    *("2024/02/01 09:00", [said("I adopted a dog named Biscuit."), said("Fine!", "assistant")]),
    *("2024/02/03 10:00", [said("Biscuit ate my shoe.")]),
]


def one(tmp_path, split, row, config=WORDS):
    write(tmp_path, f"{split}.json", [row])
    [instance] = build(row["metadata"]["source"], tmp_path, config, seed=0)
    return instance


def test_documents_keep_their_borders(tmp_path, one_line_pools):
    """The release turns the blank line before a document into a space."""
    question = "What does Quill Bay trade?"
    row = bench_row("ruler_qa1_197K", QUILL, [question], [["salt", "Salt"]])
    instance = one(tmp_path, "Accurate_Retrieval", row)
    assert instance.chunks == (framed("2024-01-01", QUILL, "Notes:"),)
    [qa] = instance.questions
    assert (qa.question, qa.answers) == (question, ("salt", "Salt"))


def test_text_without_sentences_stays_within_the_limit(tmp_path):
    """The release's packer makes one chunk of it."""
    words = " ".join(f"w{i}" for i in range(500))
    config = sized(1, 50)
    instance = one(tmp_path, "Accurate_Retrieval", bench_row("ruler_qa2_421K", words), config)
    contents = [chunk.split("\n")[2] for chunk in instance.chunks]
    assert max(len(content.split()) for content in contents) <= 50
    assert " ".join(contents) == words


@pytest.mark.parametrize("context", [str(TALK), json.dumps(TALK)])
def test_dialogues_are_read_from_the_text_of_a_list(tmp_path, context):
    row = bench_row(
        "longmemeval_s*", context, ["What is my dog called?"], [["Biscuit"]], question_ids=["e47"]
    )
    instance = one(tmp_path, "Accurate_Retrieval", row)
    assert instance.chunks == (
        "[Dialogue at timestamp 2024/02/01 09:00]\n<User>I adopted a dog named Biscuit.\n"
        "<Assistant>Fine!\n\n"
        "[Dialogue at timestamp 2024/02/03 10:00]\n<User>Biscuit ate my shoe.",
    )
    assert instance.questions[0].id == "e47"
    assert "longmemeval:e47" in instance.metadata["groups"]


@pytest.mark.parametrize(
    "text", ["__import__('os').getcwd()", "[print(1)]", "{'a': 1}", "[1", "[]", "[" * 5000]
)
def test_a_text_is_parsed_as_a_literal_and_never_evaluated(text):
    with pytest.raises(InputError, match="here: expected a list as text, found") as caught:
        contexts.parse_list(text, "here")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 120


PARCELS = "where is my parcel ?\nlabel: 2\n\nplay some jazz .\nlabel: 0\n\n"
BANKING = "icl_banking77_5900shot_balance"


def test_examples_are_framed_and_questions_stay_plain(tmp_path, one_line_pools):
    row = bench_row(BANKING, PARCELS, ["track my order"], [["2"]])
    instance = one(tmp_path, "Test_Time_Learning", row)
    content = "Sentence: where is my parcel ?\nLabel: 2\n\nSentence: play some jazz .\nLabel: 0"
    assert instance.chunks == (framed("2024-01-01", content, "Examples:"),)
    assert instance.metadata["split"] == "Test_Time_Learning"  # the release: accurate retrieval
    [qa] = instance.questions
    assert (qa.question, qa.answers) == ("track my order", ("2",))


def test_no_example_is_lost_at_the_border_of_chunks(tmp_path):
    """The release loses one example per border, and packs clinic150 into 3,440 tokens."""
    context = "".join(f"say word {i} now\nlabel: {i % 9}\n\n" for i in range(100))
    config = replace(WORDS, example_chunk_tokens=30)
    instance = one(tmp_path, "Test_Time_Learning", bench_row(BANKING, context), config)
    assert shown(instance) == [(f"say word {i} now", str(i % 9)) for i in range(100)]
    assert len(instance.chunks) > 10
    assert all(len(PAIR.findall(chunk)) <= 30 // 7 for chunk in instance.chunks)


def summary_mapping(folder, entries):
    names = map(str, range(len(entries)))
    (folder / bench.KEYWORDS).write_text(json.dumps(dict(zip(names, entries, strict=True))))


def entry(summary, *keywords):
    return {"summary": summary, "keywords": list(keywords), "num_keywords": len(keywords)}


BOOKS = bench.BOOKS


def book(*answers):
    """A row with these summaries of the book of the blue door."""
    return bench_row(BOOKS, DOOR["text"], ["?"], [list(answers)])


AT_11 = sized(1, 11)


def test_a_book_is_asked_for_a_summary_of_its_days(tmp_path, one_line_pools):
    summary_mapping(tmp_path, [entry("Nell opens a blue door.", "Nell", "blue door")])
    row = book("Nell opens a blue door.")
    instance = one(tmp_path, "Long_Range_Understanding", row, AT_11)
    assert len(instance.chunks) == 3
    assert instance.chunks[0] == (
        "[Event happened on 2024-01-01 The user is reading a book]\n"
        "<User> Nell finds a key. The key opens a blue door.\n\n<System> KEEP 2024-01-01"
    )
    [qa] = instance.questions
    last = re.findall(r"KEEP (\S+)", instance.chunks[-1])[0]
    assert qa.answers == ("Nell", "blue door")
    assert "summarize" in qa.question.lower() and qa.question.endswith(f"to {last}.")
    assert "2024-01-01" in qa.question and instance.metadata["dates"] == ["2024-01-01", last]


def test_keywords_are_found_by_their_summary_never_by_the_row_number(tmp_path):
    """The mapping's summary may be the printed form of an array."""
    printed = "array(['A fox swims.', 'It rains.'], dtype=object)"
    summary_mapping(tmp_path, [entry("A bear sleeps.", "bear"), entry(printed, "fox", " ", "rain")])
    rows = [book("A fox swims.", "It rains."), book("A bear sleeps.")]
    write(tmp_path, "Long_Range_Understanding.json", rows)
    fox, bear = build(BOOKS, tmp_path, AT_11, seed=0)
    assert fox.questions[0].answers == ("fox", "rain") and bear.questions[0].answers == ("bear",)
    assert fox.metadata["groups"] != bear.metadata["groups"]


def test_a_summary_without_keywords_is_a_bad_row_never_an_empty_answer(tmp_path):
    """An empty list divides by zero in the release's evaluation."""
    summary_mapping(tmp_path, [entry("It rains."), entry("A bear sleeps.", "bear")])
    rows = [book("It rains."), book("A bear sleeps.")]
    write(tmp_path, "Long_Range_Understanding.json", rows)
    with pytest.raises(InputError, match="record 0: answers: expected keywords from"):
        build(BOOKS, tmp_path, AT_11, seed=0)
    skips = Skips("skip")
    [instance] = build(BOOKS, tmp_path, AT_11, 0, skips)
    assert instance.questions[0].answers == ("bear",) and len(skips.skipped) == 1
    write(tmp_path, "Long_Range_Understanding.json", rows[:1])
    with pytest.raises(InputError, match="expected a row of inf.*; left out: 1 bad records"):
        build(BOOKS, tmp_path, AT_11, 0, Skips("skip"))


def test_a_stage_gives_keywords_where_no_file_does(tmp_path):
    row = book("Nell Orr finds the Blue Door in Tessin.")
    instance = one(tmp_path, "Long_Range_Understanding", row, replace(AT_11, stage="rules"))
    assert instance.questions[0].answers and all(instance.questions[0].answers)


FACTS = "Here is a list of facts:\n0. Ann was born in 1912. 1. Bo lives in 7. Street\n2. Bo left."


def test_facts_stand_whole_and_in_order_on_lines_of_their_own(tmp_path, one_line_pools):
    row = bench_row("factconsolidation_sh_6k", FACTS, ["Where?"], [["away"]])
    config = sized(1, 12)
    instance = one(tmp_path, "Conflict_Resolution", row, config)
    assert instance.chunks == (
        framed("2024-01-01", "Here is a list of facts:\n0. Ann was born in 1912.", "Notes:"),
        framed("2024-01-02", "1. Bo lives in 7. Street\n2. Bo left.", "Notes:"),
    )


REFUSED = ("eventqa_full", "recsys_redial_full", "ruler_niah_x", "detective_qa", "longmemeval_s")


def test_sources_outside_the_list_are_left_out(tmp_path):
    """The release excludes by name, so that later revisions let new sources in."""
    rows = [bench_row(name, "text") for name in REFUSED] + [bench_row("ruler_qa1_197K", "text")]
    write(tmp_path, "Accurate_Retrieval.json", rows)
    assert len(build("ruler_qa1_197K", tmp_path, WORDS, seed=0)) == 1
    assert not set(REFUSED) & set(SOURCES)
    with pytest.raises(InputError, match="expected rows of ruler_qa2_421K, found detective_qa"):
        build("ruler_qa2_421K", tmp_path, WORDS, seed=0)


def test_another_number_of_rows_than_published_is_refused(tmp_path):
    rows = [bench_row("ruler_qa1_197K", text) for text in ("one", "two")]
    write(tmp_path, "Accurate_Retrieval.json", rows)
    with pytest.raises(InputError, match="ruler_qa1_197K: expected 1 rows as published, found 2"):
        build("ruler_qa1_197K", tmp_path, replace(WORDS, rows="published"), seed=0)
    assert len(build("ruler_qa1_197K", tmp_path, WORDS, seed=0)) == 2


def test_the_published_counts_are_those_of_the_paper():
    counts = Counter()
    for known in bench.KNOWN.values():
        counts[known.split] += known.rows
    assert list(counts.values()) == [7, 5, 100, 8]


def test_longmemeval_questions_keep_their_type_and_their_id(tmp_path):
    """Types and abstention were lost, so nobody could judge by type."""
    for name, n in (("longmemeval_s*", 1), ("lme_train", 2), ("longmemeval", 1)):
        make_raw(made := tmp_path / name.strip("*"), name, seed=0)
        config = replace(WORDS, exclude="none", merged_questions=n, max_questions=3)
        for instance in build(name, made, config, seed=0):
            types = instance.metadata["question_types"]
            assert types == ["single-session-user"] * len(instance.questions)
    types = ["multi-session", "knowledge-update", "temporal-reasoning"]
    answers = [["1"], ["2"], ["3"]]
    row = bench_row("longmemeval_s*", str(TALK), "ABC", answers, question_types=types)
    drawn = one(tmp_path, "Accurate_Retrieval", row, replace(WORDS, max_questions=2))
    kept = [types["ABC".index(qa.question)] for qa in drawn.questions]
    assert drawn.metadata["question_types"] == kept and len(kept) == 2
