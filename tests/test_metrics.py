"""Metrics: the worked examples of spec evaluation.md 7.1-7.8, one table each."""

import time

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.metrics import (
    METRICS,
    answer_text,
    answer_text_release,
    boxed,
    parsed_line,
    score,
    yes_no,
    yes_no_release,
)


@pytest.mark.parametrize(
    ("raw", "release", "fixed"),
    [
        ("<think>x</think>\n\n5", "5", "5"),
        ("x</think>5", "5", "5"),
        ("<think>abc", "Empty", None),
        ("<think>a</think>b</think>c", "b", "c"),
        ("<think>a</think>b<think>c", "Empty", None),
    ],
)
def test_thinking_is_stripped(raw, release, fixed):
    assert answer_text(raw) == fixed
    assert answer_text_release(raw) == release


@pytest.mark.parametrize(
    ("prediction", "answers", "release", "fixed", "words"),
    [
        ("It was finished in 1889.", ["1889"], 1, 1, 1),
        ("the eiffel tower", ["Eiffel Tower"], 1, 1, 1),
        ("Eiffel  Tower", ["Eiffel Tower"], 0, 0, 0),
        ("About 21889 people", ["1889"], 1, 1, 0),
        ("City of Light", ["Paris", "City of Light"], 0, 1, 1),
    ],
)
def test_contains(prediction, answers, release, fixed, words):
    assert score("contains@release", prediction, answers) == release
    assert score("contains", prediction, answers) == fixed
    assert score("contains@words", prediction, answers) == words


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("City of Light", ["Paris", "City of Light"], 1),
        ("U.S.A.", ["USA"], 1),
        ("I do not know.\nAnswer: Paris", ["Paris"], 1),
        ("Lyon", ["Paris"], 0),
    ],
)
def test_substring(prediction, answers, expected):
    assert score("substring", prediction, answers) == expected
    assert score("substring@release", prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "release", "baseline", "fixed"),
    [
        (r"\boxed{7}", 1, 1, 1),
        (r"\boxed{17}", 0, 1, 0),
        ("The label is seven.\n\n" + r"\boxed{7}", 1, 0, 1),
        ("Label: 7", 0, 1, 0),
        (r"Use \boxed{label}. \boxed{7}", 0, 1, 1),
        (r"\boxed{\text{7}}", 0, 1, 1),
        (r"\boxed{07}", 0, 1, 0),
        (r'\boxed{"7"}', 1, 1, 1),
        ("7", 1, 1, 1),
        (r"\boxed{²}", 0, 0, 0),
    ],
)
def test_label(prediction, release, baseline, fixed):
    assert score("label@release", prediction, ["7"]) == release
    assert score("label@release-baseline", prediction, ["7"]) == baseline
    assert score("label", prediction, ["7"]) == fixed


@pytest.mark.parametrize(
    ("prediction", "answers", "release", "fixed", "words"),
    [
        (
            "Ahab hunts the whale aboard the Pequod",
            ["Ahab, Pequod, Queequeg, white whale"],
            0.5,
            0.5,
            0.5,
        ),
        ("ahab and starbuck", ["Ahab,Starbuck"], 0, 1, 1),
        ("the artist sailed", ["art", "sail", "sea"], 2 / 3, 2 / 3, 0),
    ],
)
def test_keywords(prediction, answers, release, fixed, words):
    assert score("keywords@release", prediction, answers) == pytest.approx(release)
    assert score("keywords", prediction, answers) == pytest.approx(fixed)
    assert score("keywords@words", prediction, answers) == pytest.approx(words)
    if len(answers) == 1:  # the release's training fails on a list
        assert score("keywords@release-training", prediction, answers) == pytest.approx(fixed)


@pytest.mark.parametrize(
    ("prediction", "answer", "release", "fixed"),
    [
        ("She has a Bachelor degree in Computer Science.", "Bachelor; Computer Science", 0, 1),
        ("she has a bachelor degree in computer science", "Bachelor; Computer Science", 1, 1),
        ("He likes Chess and reading", "Chess; Reading", 0.5, 1),
        ("He plays tennis", "Chess; ", 0.5, 0),
        ("He likes Chess", "chess", 1, 1),
    ],
)
def test_perltqa(prediction, answer, release, fixed):
    assert score("perltqa@release", prediction, [answer]) == release
    assert score("perltqa", prediction, [answer]) == fixed


@pytest.mark.parametrize(
    ("reply", "release", "fixed"),
    [
        ("yes", True, True),
        ("Yes.", True, True),
        ("No", False, False),
        ("Yes, the response acknowledges the preference.", False, True),
        ("The answer is correct", False, None),
        ("", False, None),
    ],
)
def test_a_judge_is_read_by_its_first_word(reply, release, fixed):
    assert yes_no(reply) is fixed
    assert yes_no_release(reply) is release


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1),
        ("a cat sat", "the cat sat on the mat", 4 / 9),
        ("dogs run", "the dog runs", 0.8),
        ("irrelevant\nAnswer: the cat", "the cat", 1),
        ("", "the cat", 0),
    ],
)
def test_rouge_l(prediction, answer, expected):
    assert score("rouge_l", prediction, [answer]) == pytest.approx(expected)


@pytest.mark.parametrize("blank", ["", "  "])
@pytest.mark.parametrize("name", [name for name in METRICS if "@release" not in name])
def test_a_blank_gold_answer_is_an_error_not_a_score(name, blank):
    with pytest.raises(InputError, match="gold answer"):
        score(name, "anything", [blank])


def test_a_gold_answer_that_normalises_to_nothing_is_an_error_unless_release():
    with pytest.raises(InputError, match="substring"):
        score("substring", "anything", ["The"])
    assert score("substring@release", "anything", ["The"]) == 1
    assert score("contains@release", "anything", [""]) == 1
    assert score("keywords@release", "nothing", [""]) == 1
    assert score("keywords@release-training", "nothing", [""]) == 1


def test_a_failed_reader_has_no_score_and_an_unfinished_thought_has_zero():
    assert score("contains", None, ["x"]) is None
    assert score("contains", "<think>x", ["x"]) == 0.0


def test_an_unknown_metric_names_the_closest_one():
    with pytest.raises(InputError, match="did you mean 'contains'"):
        score("contain", "x", ["x"])


def test_no_gold_answer_at_all_is_an_error():
    with pytest.raises(InputError, match="found none"):
        score("contains", "x", [])


def test_parsed_line():
    assert parsed_line("one\ntwo") == "one"
    assert parsed_line("one\nANSWER: Answer: two\nthree") == "two"
    assert parsed_line("\nfoo") == ""


def test_the_last_balanced_box_counts_and_brackets_without_end_cost_no_time():
    assert boxed(r"\boxed{a{b}c} then \boxed{open") == "a{b}c"
    assert boxed("nothing") is None
    start = time.perf_counter()
    assert boxed(r"\boxed{" * 50_000) is None
    assert time.perf_counter() - start < 2


def test_scores_are_floats():
    assert all(isinstance(score(n, "7", ["7"]), float) for n in METRICS if n != "rouge_l")
