"""Metrics: the worked examples of spec evaluation.md 7.1-7.9, one table each."""

import time

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.method.metrics import (
    METRICS,
    answer_text,
    answer_text_release,
    answer_text_training,
    boxed,
    boxed_release,
    compare,
    concepts,
    infbench_f1,
    mem1_em,
    normalise_decimals,
    parsed_line,
    recall_at,
    score,
    yes_no,
    yes_no_release,
)


@pytest.mark.parametrize(
    ("raw", "release", "training", "fixed"),
    [
        ("<think>x</think>\n\n5", "5", "5", "5"),
        ("x</think>5", "5", "x</think>5", "5"),
        ("<think>abc", "Empty", "Empty", None),
        ("<think>a</think>b</think>c", "b", "b", "c"),
        ("<think>a</think>b<think>c", "Empty", "Empty", None),
    ],
)
def test_thinking_is_stripped(raw, release, training, fixed):
    assert answer_text(raw) == fixed
    assert answer_text_release(raw) == release
    assert answer_text_training(raw) == training


@pytest.mark.parametrize(
    ("prediction", "answers", "release", "fixed", "words"),
    [
        ("It was finished in 1889.", ["1889"], 1, 1, 1),
        ("the eiffel tower", ["Eiffel Tower"], 1, 1, 1),
        ("Eiffel  Tower", ["Eiffel Tower"], 0, 0, 0),
        ("About 21889 people", ["1889"], 1, 1, 0),
        ("City of Light", ["Paris", "City of Light"], 0, 1, 1),
        ("Born in 1889", ["1889", "born"], 1, 1, 1),
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
    if len(answers) == 1:
        assert score("keywords@release-training", prediction, answers) == pytest.approx(fixed)
    else:
        with pytest.raises(InputError, match="a list of 3, on which the release fails"):
            score("keywords@release-training", prediction, answers)


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
    assert score("rouge_l@release", prediction, [answer]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "expected"),
    [  # 7.9
        ("wos", r"\boxed{1 > 4 > 9}", ["1 > 4 > 9"], 1.0),
        ("wos", r"\boxed{1 > 4 > 8}", ["1 > 4 > 9"], 0.8),
        ("wos", r"\boxed{1 > 5 > 9}", ["1 > 4 > 9"], 0.5),
        ("wos", "1>4", ["1 > 4 > 9"], 0.0),
        ("token_f1", "the red fox", ["red fox"], 1.0),
        ("token_f1", "red fox ran", ["red fox"], 0.8),
        ("token_f1", "yes it is", ["yes"], 0.0),
        ("exact", "the red fox", ["red fox"], 1.0),
        ("exact", "red fox ran", ["red fox"], 0.0),
        ("exact", "yes it is", ["yes"], 0.0),
        ("all_elements", "She opened the Door and left", ["door", "left"], 1.0),
        ("all_elements", "She left", ["door", "left"], 0.0),
        ("concepts", "x, z", ["x", "y"], 0.499995),
        ("concepts", "x, y", ["x", "y"], 0.999995),
        ("recall_at_5", "Watch:\n1. Heat\n2. Alien", ["Heat", "Ran"], 0.5),
        ("boxed_exact", r"\boxed{B}", ["B"], 1.0),
        ("boxed_exact", "b", ["B"], 0.0),
        ("sub_em@release-memagent", "a b", ["a b c"], 1.0),
        ("em@release-mem1", "<answer>paris; oslo</answer>", ["Paris", "Oslo"], 2.0),
        ("em@release-mem1", "<answer>paris; rome</answer>", ["Paris", "Oslo"], 1.0),
        ("em@release-mem1", "<answer>paris</answer>", ["Paris", "Oslo"], 0.0),
        # beside them
        ("wos", r"Not \boxed{2 > 2 > 2}: \boxed{1 > 4 > 9}", ["1 > 4 > 9"], 1.0),
        ("wos@release", r"Not \boxed{2 > 2 > 2}: \boxed{1 > 4 > 9}", ["1 > 4 > 9"], 0.0),
        ("wos", r"\boxed{2 > 4 > 9}", ["1 > 4 > 9"], 0.0),
        ("boxed_exact", r"\boxed{A} no, \boxed{B}", ["B"], 1.0),
        ("boxed_exact@release", r"\boxed{A} no, \boxed{B}", ["B"], 0.0),
        ("token_f1", "fox fox", ["fox"], 2 / 3),
        ("token_f1", "Yes.", ["yes"], 1.0),
        ("token_f1", "no", ["cats", "no"], 1.0),
        ("share_found", "She opened the Door", ["door", "left"], 0.5),
        ("choice", "It is B", ["a long text", "b"], 1.0),
        ("choice", "It is a long text", ["a long text", "B."], 0.0),
        ("exact@memoryagentbench", "Answer: 43", ["43"], 1.0),
        ("exact@memoryagentbench", "label: 43", ["43"], 0.0),
        ("exact@memoryagentbench", "43\nbecause", ["43"], 1.0),
        ("sub_em@release-memagent", "", ["a b c"], 1.0),
        ("substring", "a b", ["a b c"], 0.0),  # one direction only
        ("objectives", "<answer>paris; rome</answer>", ["Paris", "Oslo"], 0.5),
        ("em@release-mem1", "paris; oslo", ["Paris", "Oslo"], 0.0),
        ("concepts", "not a list", ["x"], 0.0),
        ("concepts", "", ["x"], 0.0),
        ("concepts", 'These: ["X", "y"]', ["x", "y"], 0.999995),
        ("concepts", '["x", "x"]', ["x", "y"], 0.499995),  # precision over the list as it is
        ("concepts", "[" * 5000, ["x"], 0.0),
        ("concepts", "__import__('os').abort()", ["x"], 0.0),  # M-9
        ("substring@words", "About 21889 people", ["1889"], 0.0),
        ("substring@words", "In 1889.", ["1889"], 1.0),
        ("perltqa@words", "the artist sailed", ["art; sailed"], 0.5),
        ("substring", "35 metres", ["3.5"], 1.0),  # M-19: the point goes with the punctuation
        ("substring@decimals", "35 metres", ["3.5"], 0.0),
        ("substring@decimals", "It is 3.5 m. High.", ["3.5"], 1.0),
    ],
)
def test_smaller_metrics(metric, prediction, answers, expected):
    assert score(metric, prediction, answers) == pytest.approx(expected, abs=5e-7)


def test_names_are_matched_to_the_nearest_of_a_catalogue():
    films = ["Heat (1995)", "Alien (1979)", "Ran (1985)"]
    listed = 'I like these.\n1. **Heat**\n2) "alien 1979"\n'
    assert recall_at(listed, ("Heat (1995)", "Alien (1979)"), titles=films) == 1.0
    assert recall_at(listed, ("Heat (1995)", "Alien (1979)")) == 0.5  # only the names themselves
    assert recall_at("1. a\n2. b\n3. c\n4. d\n5. e\n6. f", ("f", "a"), k=5) == 0.5
    assert recall_at("1. a\n1. a\n\n- b", ("a", "b")) == 1.0  # blank lines are no titles
    known = ["data protection", "free movement"]
    assert concepts("Data protektion", ("data protection",), known) == pytest.approx(0.999995)
    assert concepts("Data protektion", ("data protection",)) == 0.0


def test_mem1_accepts_several_answers_per_objective():
    said = "<answer>oslo</answer> no: <answer>Paris; ROME.</answer>"
    assert mem1_em(said, [["Paris"], ["Oslo"]]) == 1.0
    assert mem1_em(said, [["Paris"], ["Oslo", "Rome"]]) == 2.0


@pytest.mark.parametrize(
    ("fluency", "recalled", "supported", "expected"),
    [(1, 6 / 10, 8 / 10, 0.686), (0, 1.0, 1.0, 0.0), (1, 0.0, 0.0, 0.0), (1, 1.0, 1.0, 1.0)],
)
def test_the_summary_score_of_memoryagentbench(fluency, recalled, supported, expected):
    assert infbench_f1(fluency, recalled, supported) == pytest.approx(expected, abs=5e-4)


def test_decimal_points_stay_and_the_rest_is_normalised():
    assert normalise_decimals("The 3.5, U.S.A. 1.000.") == "3.5 usa 1.000"


def test_a_reply_that_was_stripped_already_is_compared_as_it_is():
    assert compare("contains", "<think>Paris", ["Paris"]) == 1.0
    with pytest.raises(InputError, match="did you mean 'contains'"):
        compare("contain", "x", ["x"])


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


@pytest.mark.parametrize("text", [r"\boxed{", "<answer>", "</think>", "[", "answer: ", "1. a\n"])
def test_no_metric_hangs_or_fails_on_a_repeated_mark(text):
    for name in set(METRICS) - {"rouge_l", "rouge_l@release"}:  # those are quadratic in words
        assert 0.0 <= score(name, text * 20_000, ["7"]) <= 1.0


def test_the_first_box_of_the_release_is_the_first_that_is_not_empty():
    assert boxed_release(r"\boxed{} then \boxed{ 7 } and \boxed{8}") == "7"
    assert boxed_release(r" \boxed{ ") == r"\boxed{"


def test_scores_are_floats():
    assert all(type(score(name, "7", ["7"])) is float for name in METRICS)
