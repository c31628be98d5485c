"""What the leak report finds: what was planted by hand, in every spelling, and nothing else."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from memalpha_kit.data import leaks
from memalpha_kit.data.dataset import Dataset
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.sources.frames import CLASSIFICATION_LEAD_INS, DOCUMENT_LEAD_INS, frame_all
from memalpha_kit.data.spelling import key
from memalpha_kit.records import QA, make_instance

WORDS = [f"w{i}" for i in range(5000)]


def text(n, seed):
    """`n` made-up words that no other seed gives in that order."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def document(n_words, seed, question="What is it?", answer="it", source="squad", groups=()):
    chunks = frame_all([text(n_words, seed)], DOCUMENT_LEAD_INS, Job(source, Path()).rng(seed, "f"))
    metadata = {"groups": list(groups)} if groups else {}
    return make_instance(source, chunks, [QA("q0", question, (answer,))], metadata=metadata)


def labelled(source, shown, asked, framed=True):
    """An instance that shows (sentence, number) pairs and asks for others."""
    content = "\n\n".join(f"Sentence: {text}\nLabel: {number}" for text, number in shown)
    chunks = frame_all([content], CLASSIFICATION_LEAD_INS, Job(source, Path()).rng(0, "f"))
    form = "Sentence: {}\nWhich label?" if framed else "{}"
    questions = [QA(f"q{i}", form.format(t), (n,)) for i, (t, n) in enumerate(asked)]
    return make_instance(source, chunks, questions)


def compare(train, test):
    """The only row of the report for a training and a test instance (or lists of them)."""
    train, test = ([x] if not isinstance(x, list) else x for x in (train, test))
    table = leaks.leaks([Dataset("a", tuple(train), ()), Dataset("b", (), tuple(test))])
    [row] = table.to_dict("records")
    return row


PAIRS = [(f"how far is the town of {WORDS[i]}", str(i % 5)) for i in range(60)]

SPELLINGS = [
    ("wake me at five am", "Wake me at 5am."),
    ("wake me at five am", "wake me at 5 A.M.!"),
    ("set an alarm for seven thirty", "set an alarm for 7:30"),
    ("remind me on the twenty first of may", "Remind me on the 21st of May"),
    ("is it the fifth today", "is it the 5th today"),
    ("turn it up by twenty five percent", "turn it up by 25%"),
    ("turn it up by twenty-five percent", "turn it up by 25 %"),
    ("what is on at one hundred main street", "what is on at 100 main street"),
    ("what's new", "What s new?"),
    ("i don't like this song", "I do n't like this song"),
    ("Play  radio\u00a0three", "play radio 3"),
]


OTHERS = [
    ("wake me at five am", "wake me at six am"),
    ("wake me at five am", "wake me at five pm"),
    ("play twenty songs", "play twenty one songs"),
    ("?", "!"),
    ("你好", "您好"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS + OTHERS)
def test_two_spellings_of_an_utterance_are_one_and_different_utterances_are_two(one, other):
    assert (key(one) == key(other)) == ((one, other) in SPELLINGS)


@pytest.mark.parametrize("swapped", [False, True])
def test_what_was_planted_in_another_spelling_is_found(swapped):
    """NLU-Data has two spellings of every utterance; one was compared, so a tenth got through."""
    planted = [(pair[swapped], pair[not swapped]) for pair in SPELLINGS[:6]]
    train = labelled("ttl", [*PAIRS[:20], *((one, "1") for one, _ in planted)], PAIRS[50:])
    test = labelled("icl", PAIRS[30:40], [*PAIRS[40:44], *((other, "1") for _, other in planted)])
    row = compare(train, test)
    assert row["leak"] == "labelled questions"
    assert row["shown"] == len({key(one) for one, _ in planted})
    shown = labelled("icl", [(other, "1") for _, other in planted], PAIRS[40:44])
    row = compare(train, shown)
    assert row["leak"] == "contexts" and row["gram_share"] == 1 and row["shared_samples"] == 5


def test_the_report_finds_training_instances_that_are_cut_from_an_evaluation_row():
    """Demonstrations are a part of the evaluation context, and the questions are the same."""
    evaluated = labelled("icl_trec", PAIRS[:40], PAIRS[40:], framed=False)
    shuffled = random.Random(1).sample(PAIRS[:40], 20)
    row = compare(labelled("icl_trec", shuffled, PAIRS[40:]), evaluated)
    assert row["leak"] == "questions, contexts"
    assert (row["questions"], row["same_question"], row["repeated"]) == (20, 20, 20)
    assert (row["shared_samples"], row["same_number"], row["shown"]) == (20, 20, 0)
    assert row["gram_share"] == 0.5


def test_other_label_numbers_are_seen_in_shared_samples():
    moved = [(sentence, str(9 - int(number))) for sentence, number in PAIRS]
    row = compare(labelled("ttl", moved[:9], PAIRS[50:]), labelled("icl", PAIRS[:9], PAIRS[40:50]))
    assert (row["shared_samples"], row["same_number"]) == (9, 0)


def test_label_tables_of_cards_are_compared_by_name():
    one, two = (labelled(s, PAIRS[i : i + 5], PAIRS[50:]) for i, s in ((0, "x"), (9, "y")))
    cards = {"labels": {"x": ["a", "b", "c"]}}, {"labels": {"y": ["b", "c", "d", "e"]}}
    table = leaks.leaks([Dataset("x", (one,), (), cards[0]), Dataset("y", (), (two,), cards[1])])
    assert table.loc[0, ["labels", "shared_labels"]].tolist() == [4, 2]
    assert pd.isna(compare(one, two)["labels"])


def test_shared_passages_are_found_under_other_frames_and_spelling():
    first = document(200, 1)
    body = leaks.content(first.chunks[0])
    again = make_instance(
        "ruler", [f"Document 1:\n{body.upper()}, {text(100, 2)}."], first.questions
    )
    row = compare(first, again)
    assert row["leak"] == "questions, contexts" and row["shared_grams"] == 200 - 13 + 1
    reversed_words = " ".join(reversed(body.split()))
    assert compare(first, make_instance("x", [reversed_words], first.questions))["gram_share"] == 0


def test_frames_are_no_overlap():
    """Lead-ins, acknowledgements and book requests are ours and the same everywhere."""
    many = [document(30, i, f"What {i}?", str(i)) for i in range(60)]
    assert compare(many[:50], many[50:])["shared_grams"] == 0
    body = "Nell\n\nfinds <User> a key."
    book = "[Event happened on 2024-01-01 The user is reading a book]\n<User> {}\n\n<System> KEEP"
    assert leaks.content(book.format(body)) == body
    own = "[Dialogue at timestamp 2024/02/01 09:00]\n<User>Hi."
    assert leaks.content(own) == own


def test_the_same_words_for_another_question_are_no_leak():
    """BookSum's questions name two dates and repeat by chance."""
    asked = "Summarise what was read from 2024-01-01 to 2024-01-09"
    row = compare(document(50, 1, asked, "Nell, key"), document(50, 2, asked, "Otto, bee"))
    assert (row["same_question"], row["repeated"], row["leak"]) == (1, 0, "")


def test_a_group_on_both_sides_is_a_leak_whatever_its_size():
    row = compare(
        document(50, 1, "A?", "a", groups=["squad:Oxygen", "squad:Rome"]),
        document(50, 2, "B?", "b", groups=["squad:Rome"]),
    )
    assert (row["groups"], row["leak"]) == (1, "groups")


def test_all_pairs_of_sources_are_compared_also_within_a_data_set():
    parts = (document(50, 1), document(50, 2, source="ruler")), (document(50, 3),)
    table = leaks.leaks([Dataset("a", *parts), Dataset("squad", (), (document(50, 4),))])
    pairs = {(train, test) for train in ("a/ruler", "a/squad") for test in ("a/squad", "squad")}
    assert len(table) == 4 and set(zip(table["train"], table["test"], strict=True)) == pairs
    assert leaks.leaks([Dataset("a", (), ())]).empty


def test_the_leak_report_does_not_depend_on_the_hash_seed(root):
    path = f"{root}{os.pathsep}{os.path.dirname(__file__)}"
    code = (
        "from test_leaks import *\n"
        "print(compare([document(60, i) for i in range(9)], document(60, 3)))"
    )

    def shown(seed):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    first, second = map(shown, "12")
    assert first == second and "'gram_share': 1.0" in first
