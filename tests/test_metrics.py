"""Metrics: tables of cases worked out by hand, the published scorers' beside ours."""

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.scoring import Item, score_all
from memalpha_kit.method.metrics import (
    METRICS,
    Metric,
    boxed,
    comparable,
    compare,
    parsed_line,
    score,
)
from memalpha_kit.release import scoring as release
from memalpha_kit.tasks import TASKS, Task
from memalpha_kit.text import without_thinking


@pytest.mark.parametrize(
    ("raw", "released", "training", "fixed"),
    [
        ("<think>x</think>\n\n5", "5", "5", "5"),
        ("x</think>5", "5", "x</think>5", "5"),
        ("<think>abc", "Empty", "Empty", None),
        ("<think>a</think>b</think>c", "b", "b", "b</think>c"),
        ("<think>a</think><think>b</think>c", "Empty", "Empty", "c"),
        ("<think>a</think><think>b", "Empty", "Empty", None),
        # tags that are only mentioned
        ("<think>a</think>b<think>c", "Empty", "Empty", "b<think>c"),
        ("Paris, after the <think> tag.", "Empty", "Empty", "Paris, after the <think> tag."),
        ("It ends with </think>.", ".", "It ends with </think>.", "It ends with </think>."),
        ("`</think>` closes it", "` closes it", "`</think>` closes it", "`</think>` closes it"),
        ('{"a": "x</think>y"}', 'y"}', '{"a": "x</think>y"}', '{"a": "x</think>y"}'),
    ],
)
def test_reasoning_is_cut_where_a_block_can_stand(raw, released, training, fixed):
    assert without_thinking(raw) == fixed
    assert release.answer_text(raw) == released
    assert release.answer_text_training(raw) == training


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("O’Brien’s “book”", "O'Brien's \"book\"", True),
        ("1990–1995", "1990-1995", True),
        ("1990–1995", "19901995", False),
        ("New\u00a0York", "new york", True),
        ("soft\u00adware\u200b", "software", True),
        ("cafe\u0301", "café", True),
        ("٣٥", "35", True),
        ("U.S.A.", "USA", True),
        ("1,000", "1000", True),
        ("2024-05-01", "2024/05/01", True),
        ("the red fox.", "Red fox", True),
        ("He left—Paris", "He left Paris", True),
        ("C++", "C", False),
        ("C#", "C", False),
        (".NET", "net", False),
        ("−5 °C", "-5 °C", True),
        ("-5", "5", False),
        ("3.5", "35", False),
        ("1/2", "12", False),
        ("A", "The", False),
        ("A.", "a", True),
        ("?!", "", False),
        ("「東京」。", "東京", True),
        ("दिल्ली।", "दिल्ली", True),
        ("دبي؟", "دبي", True),
        ("¿Qué?", "Qué", True),
        ("Ｎｏｒａ", "Nora", True),
        ("ｶﾞｽ", "ガス", True),
        ("ﬁnal", "final", True),
        ("STRASSE", "Straße", True),
        ("1+1", "11", False),
        ("1+1", "1 + 1", True),
        ("x<y", "x > y", False),
        ("2^10", "210", False),
        ("C++17", "C17", False),
    ],
)
def test_what_is_typed_in_several_forms_is_the_same_and_symbols_with_a_meaning_stay(
    one, other, same
):
    assert (comparable(one) == comparable(other)) is same


TABLE = {
    # metric: (prediction, answers, expected)
    "contains": [
        ("It was finished in 1889.", ["1889"], 1),
        ("the eiffel tower", ["Eiffel Tower"], 1),
        ("Eiffel  Tower", ["Eiffel Tower"], 0),
        ("About 21889 people", ["1889"], 1),
        ("City of Light", ["Paris", "City of Light"], 1),
        ("It is O’Brien's", ["O'Brien’s"], 1),
        ("-5 °C", ["5"], 0),
        ("3-5 days", ["5"], 1),
    ],
    "contains@release": [
        ("Born in 1889", ["1889", "born"], 1),
        ("City of Light", ["Paris", "City of Light"], 0),
        ("anything", [""], 1),
    ],
    "substring": [
        ("City of Light", ["Paris", "City of Light"], 1),
        ("U.S.A.", ["USA"], 1),
        ("I do not know.\nAnswer: Paris", ["Paris"], 1),
        ("Lyon", ["Paris"], 0),
        ("a b", ["a b c"], 0),  # one direction only
        ("Berlin has a cat", ["C++"], 0),
        ("He writes C++.", ["C++"], 1),
        ("35 metres", ["3.5"], 0),
        ("It is 3.5 m. High.", ["3.5"], 1),
        ("It is -5 degrees", ["5"], 0),
        ("It is 5 degrees", ["-5"], 0),
        ("His blood group is A.", ["A"], 1),  # only an article, and the answer
        ("A cat sat there", ["A"], 0),
    ],
    "substring@release": [
        ("City of Light", ["Paris", "City of Light"], 1),
        ("U.S.A.", ["USA"], 1),
        ("I do not know.\nAnswer: Paris", ["Paris"], 1),
        ("Berlin has a cat", ["C++"], 1),
        ("35 metres", ["3.5"], 1),
        ("anything", ["The"], 1),
    ],
    "label": [
        (r"\boxed{7}", ["7"], 1),
        (r"\boxed{17}", ["7"], 0),
        ("Label: 7", ["7"], 0),
        (r"Use \boxed{label}. \boxed{7}", ["7"], 1),
        (r"\boxed{\text{7}}", ["7"], 1),
        (r"\boxed{$\mathrm{7}$}", ["7"], 1),
        (r"\boxed{{7}}", ["7"], 1),
        (r"\boxed{07}", ["7"], 0),
        (r'\boxed{"7"}', ["7"], 1),
        ("7", ["7"], 1),
        ("\\boxed{\u0667}", ["7"], 1),
        (r"\boxed{²}", ["2"], 0),
        (r"\boxed{}", ["7"], 0),
    ],
    "label@release": [
        (r"\boxed{7}", ["7"], 1),
        (r"\boxed{17}", ["7"], 0),
        ("The label is seven.\n\n" + r"\boxed{7}", ["7"], 1),
        (r"Use \boxed{label}. \boxed{7}", ["7"], 0),
        (r"\boxed{\text{7}}", ["7"], 0),
        (r"\boxed{} \boxed{7}", ["7"], 0),  # an empty box is an empty answer
        (r'\boxed{"7"}', ["7"], 1),
        ("7", ["7"], 1),
    ],
    "label@release-baseline": [
        (r"\boxed{17}", ["7"], 1),
        ("The label is seven.\n\n" + r"\boxed{7}", ["7"], 0),
        ("Label: 7", ["7"], 1),
        (r"\boxed{²}", ["7"], 0),
    ],
    "keywords": [
        ("Ahab hunts the whale aboard the Pequod", ["Ahab, Pequod, Queequeg, white whale"], 0.5),
        ("ahab and starbuck", ["Ahab,Starbuck"], 1),
        ("the artist sailed", ["art", "sail", "sea"], 2 / 3),
    ],
    "keywords@release": [("ahab and starbuck", ["Ahab,Starbuck"], 0), ("nothing", [""], 1)],
    "keywords@release-training": [("ahab and starbuck", ["Ahab,Starbuck"], 1)],
    "perltqa": [
        ("She has a Bachelor in Computer Science.", ["Bachelor; Computer Science"], 1),
        ("He likes Chess and reading", ["Chess; Reading"], 1),
        ("He plays tennis", ["Chess; "], 0),
    ],
    "perltqa@release": [
        ("She has a Bachelor in Computer Science.", ["Bachelor; Computer Science"], 0),
        ("He likes Chess and reading", ["Chess; Reading"], 0.5),
        ("He plays tennis", ["Chess; "], 0.5),
        ("He likes Chess", ["chess"], 1),
    ],
    "rouge_l": [
        ("the cat sat on the mat", ["the cat sat on the mat"], 1),
        ("a cat sat", ["the cat sat on the mat"], 4 / 9),
        ("dogs run", ["the dog runs"], 0.8),
        ("irrelevant\nAnswer: the cat", ["the cat"], 1),
        ("", ["the cat"], 0),
        ("我喜欢猫", ["我喜欢猫"], 1),
        ("我喜欢猫", ["我喜欢狗"], 0.75),
        ("我喜欢猫 2", ["他讨厌狗 2"], 0.2),
        ("मुझे बिल्ली पसंद है", ["मुझे बिल्ली पसंद है"], 1),
        ("Москва — столица", ["столица Москва"], 0.5),
    ],
    "rouge_l@release": [
        ("dogs run", ["the dog runs"], 0.8),
        ("我喜欢猫", ["我喜欢猫"], 0),
        ("我喜欢猫 2", ["他讨厌狗 2"], 1),
    ],
    "exact": [
        ("the red fox", ["red fox"], 1),
        ("red fox ran", ["red fox"], 0),
        ("yes it is", ["yes"], 0),
        ("A", ["A"], 1),
    ],
    "exact@memoryagentbench": [
        ("Answer: 43", ["43"], 1),
        ("label: 43", ["43"], 0),
        ("43\nbecause", ["43"], 1),
    ],
    "token_f1": [
        ("the red fox", ["red fox"], 1),
        ("red fox ran", ["red fox"], 0.8),
        ("fox fox", ["fox"], 2 / 3),
        ("yes it is", ["yes"], 0),
        ("Yes.", ["yes"], 1),
        ("no", ["cats", "no"], 1),
        ("我喜欢猫", ["我喜欢狗"], 0.75),
    ],
    "locomo": [
        ("red fox ran", ["red fox"], 0.8),
        ("It is not mentioned.", ["not mentioned", "no information available"], 1),
        ("No information available", ["not mentioned", "no information available"], 1),
        ("law", ["not mentioned", "no information available"], 0),
        ("", ["not mentioned", "no information available"], 0),
    ],
    "objectives": [
        ("<answer>paris; oslo</answer>", ["Paris", "Oslo"], 1),
        ("<answer>oslo</answer> no: <answer>Paris; rome;</answer>", ["Paris", "Oslo"], 0.5),
        ("<answer>Tea; no sugar</answer>", ["tea; no sugar"], 1),  # one objective is one text
        ("paris; oslo", ["Paris", "Oslo"], 0),
    ],
    "em@release-mem1": [
        ("<answer>paris; oslo</answer>", ["Paris", "Oslo"], 2),
        ("<answer>paris; rome</answer>", ["Paris", "Oslo"], 1),
        ("<answer>paris</answer>", ["Paris", "Oslo"], 0),
        ("<answer>Tea; no sugar</answer>", ["tea; no sugar"], 0),
        ("paris; oslo", ["Paris", "Oslo"], 0),
    ],
    "sub_em@release-memagent": [("a b", ["a b c"], 1), ("", ["a b c"], 1), ("d", ["a b c"], 0)],
}


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "expected"),
    [(name, *case) for name, cases in TABLE.items() for case in cases],
)
def test_metrics_score_as_worked_out_by_hand(metric, prediction, answers, expected):
    assert score(metric, prediction, answers) == pytest.approx(expected, abs=5e-7)


def test_every_metric_has_a_case_and_gives_floats():
    assert {*METRICS.names()} == {*TABLE, "label@release-training"}
    assert all(type(score(name, "7", ["7"])) is float for name in METRICS.names())


@pytest.mark.parametrize(
    ("text", "fixed", "released"),
    [
        (r"\boxed{a{b}c} then \boxed{open", "a{b}c", "a{b"),
        ("nothing", None, "nothing"),
        (r"\boxed{50\%}", "50%", "50\\%"),
        (r"\boxed{\text{\textbf{C\#}}}", "C#", r"\text{\textbf{C\#"),
        (r"\boxed{\{7\}}", "{7}", r"\{7\\"[:-1]),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", r"\frac{1"),
        (r"\boxed{}", "", ""),
        (r" \boxed{ ", None, r"\boxed{"),
    ],
)
def test_the_last_balanced_box_counts_and_latex_is_resolved(text, fixed, released):
    assert (boxed(text), release.boxed(text)) == (fixed, released)


@pytest.mark.parametrize(
    ("text", "fixed", "released"),
    [
        ("one\ntwo", "one", "one"),
        ("one\nANSWER: Answer: two\nthree", "two", "two"),
        ("Answer: answer: answer: x", "x", "answer: x"),  # the release cuts one prefix more
        ("\nfoo", "", ""),
    ],
)
def test_the_answer_line_is_read(text, fixed, released):
    assert (parsed_line(text), release.parsed_line(text)) == (fixed, released)


@pytest.mark.parametrize("golds", [[], [""], ["  "], ["\u200b\u3164"]])
@pytest.mark.parametrize("name", [name for name in METRICS.names() if "@release" not in name])
def test_a_gold_answer_that_cannot_be_seen_is_an_error_not_a_score(name, golds):
    if golds != ["\u200b\u3164"] or "@" not in name:
        with pytest.raises(InputError, match="gold answer"):
            score(name, "anything", golds)


def test_a_failed_reader_has_no_score_and_an_unfinished_thought_has_zero():
    assert score("contains", None, ["x"]) is None
    assert score("contains", "<think>x", ["x"]) == 0.0
    assert compare("contains", "<think>Paris", ["Paris"]) == 1.0  # stripped already


@pytest.mark.parametrize(
    ("use", "name", "reason"),
    [
        (score, "contain", "did you mean 'contains'"),
        (compare, "contain", "did you mean 'contains'"),
        (score, "keywords@release-training", "a list of 3, on which the release fails"),
    ],
)
def test_an_unknown_metric_and_a_list_that_the_release_cannot_take_are_errors(use, name, reason):
    with pytest.raises(InputError, match=reason):
        use(name, "the artist sailed", ["art", "sail", "sea"])


def test_a_metric_of_the_user_s_own_module_is_registered_by_name(monkeypatch):
    monkeypatch.setattr(METRICS, "_things", dict(METRICS._things))
    METRICS.add("test_starts", Metric(lambda text, answers: float(text.startswith(answers))))
    for value in (2.0, -0.5, float("nan")):
        METRICS.add(f"test_{value}", Metric(lambda text, answers, value=value: value))
        with pytest.raises(InputError, match=rf"test_{value}: expected a score in \[0, 1\], found"):
            score(f"test_{value}", "a", ["a"])
        monkeypatch.setitem(TASKS, "test_facts", Task("test_facts", f"test_{value}"))
        with pytest.raises(InputError, match=f"metric test_{value}: expected a score in"):
            score_all([Item("test_facts", "a", ("a",))])  # no question is without a gold answer
    assert score("test_starts", "<think>x</think>Paris is it", ["Paris"]) == 1.0


@pytest.mark.parametrize(
    "text", [r"\boxed{", "<answer>", "</think>", "answer: ", "-5 ", "<think>", "5"]
)
def test_no_metric_hangs_or_fails_on_a_repeated_mark(text):
    for name in set(METRICS.names()) - {"rouge_l", "rouge_l@release"}:  # quadratic in words
        assert 0.0 <= score(name, text * 20_000, ["7"]) <= 1.0
