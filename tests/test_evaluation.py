"""The table: counts and means by hand, the unit of the interval, the floors."""

import dataclasses

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.answered import COLUMNS, Bootstrap, Run, evaluate, majority_label
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.readers import BestEntry, LabelVote
from memalpha_kit.method.writers import writer
from memalpha_kit.records import QA, Answer, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig


def instance(source: str, chunk: str, *golds: str):
    questions = [QA(f"q{i}", f"Question {i}?", (gold,)) for i, gold in enumerate(golds)]
    return make_instance(source, [chunk], questions)


def answered(instances, scores, writer_name="keep_sentences"):
    """Episodes with the given score lists, one per instance."""
    episodes = write(instances, writer(writer_name), MemoryConfig(), ProtocolConfig())
    return [
        dataclasses.replace(
            episode, answers=tuple(Answer(f"q{i}", "x", s) for i, s in enumerate(row))
        )
        for episode, row in zip(episodes, scores, strict=True)
    ]


A = instance("squad", "Nora keeps bees. Tom paints.", "bees", "Tom", "Lund", "goats")
B = instance("squad", "Ana sails boats.", "boats")
FAST = Bootstrap(resamples=50)


def test_a_score_is_the_mean_over_instances_of_their_means():
    """evaluation.md 7.13."""
    table = evaluate([A, B], [Run(answered([A, B], [[1, 1, 0, 0], [1]]), "r")], bootstrap=FAST)
    assert list(table.columns) == list(COLUMNS)
    row = table.set_index("reader").loc["r"]
    assert (row.score, row.instances, row.questions, row.missing) == (0.75, 2, 5, 0)
    assert row.interval == "instances" and 0.5 <= row.low <= 0.75 <= row.high <= 1.0


def test_one_instance_is_drawn_by_question_and_says_so():
    table = evaluate([A], [Run(answered([A], [[1, 1, 0, 0]]), "r")], bootstrap=FAST)
    row = table.set_index("reader").loc["r"]
    assert (row.score, row.interval) == (0.5, "questions")
    assert row.low < 0.5 < row.high


def test_missing_scores_are_counted_and_left_out():
    table = evaluate([A], [Run(answered([A], [[1, None, None, 0]]), "r")], bootstrap=FAST)
    row = table.set_index("reader").loc["r"]
    assert (row.score, row.questions, row.missing) == (0.5, 4, 2)


def test_rollouts_of_an_instance_share_its_voice():
    episodes = write([A, B], writer("silent"), MemoryConfig(), ProtocolConfig(), rollouts=2)
    episodes = ask(episodes, [A, B], BestEntry())
    row = evaluate([A, B], [Run(episodes, "r")], bootstrap=FAST).set_index("reader").loc["r"]
    assert (row.instances, row.rollouts, row.questions) == (2, 2, 10)


def test_tokens_and_calls_are_counted_by_hand():
    episodes = answered([A, B], [[1, 1, 0, 0], [1]])
    table = evaluate([A, B], [Run(episodes, "r", duration_s=2.5)], "words", FAST)
    row = table.set_index("reader").loc["r"]
    assert (row.memory_tokens, row.chunk_tokens) == (4.0, 4.0)  # 5 and 3 words, all kept
    assert (row.compression, row.calls, row.call_success) == (0.0, 3, 1.0)
    assert row.duration_s == 2.5


def test_a_silent_writer_compresses_all_and_has_no_call_success():
    run = Run(answered([A], [[0, 0, 0, 0]], "silent"), "r")
    row = evaluate([A], [run], bootstrap=FAST).set_index("reader").loc["r"]
    assert (row.compression, row.calls) == (1.0, 0)
    assert row.isna().call_success and row.isna().duration_s


def test_floors_stand_first_in_each_source():
    labelled = instance("trec_coarse", "Sentence: a b\nLabel: 2", "2", "2", "1")
    kept = write([labelled], writer("keep_examples"), MemoryConfig(), ProtocolConfig())
    runs = [
        Run(ask(kept, [labelled], LabelVote()), "label_vote"),
        Run(answered([A], [[1, 1, 0, 0]]), "best_entry"),
    ]
    table = evaluate([A, labelled], runs, bootstrap=FAST)
    assert list(zip(table.source, table.reader, strict=True)) == [
        ("trec_coarse", "read_nothing"),
        ("trec_coarse", "majority_label"),
        ("trec_coarse", "label_vote"),
        ("squad", "read_nothing"),
        ("squad", "best_entry"),
    ]
    assert list(table.score[:2]) == [0.0, pytest.approx(2 / 3)]
    assert set(table.metric) == {"label", "contains"}
    assert len(evaluate([A, labelled], runs, bootstrap=FAST, floors=False)) == 2


def test_floors_are_of_the_instances_that_were_read():
    table = evaluate([A, B], [Run(answered([B], [[1]]), "r")], bootstrap=FAST)
    assert list(table.instances) == [1, 1] and list(table.questions) == [1, 1]


def test_the_majority_label_breaks_ties_by_the_smaller_one():
    assert majority_label(instance("trec_coarse", "x", "3", "1", "3", "1")) == "1"


def test_two_writers_in_one_file_are_two_rows_without_a_common_duration():
    episodes = answered([A], [[1, 1, 0, 0]]) + answered([B], [[1]], "silent")
    table = evaluate([A, B], [Run(episodes, "r", duration_s=1.0)], bootstrap=FAST, floors=False)
    assert list(table.writer) == ["keep_sentences", "silent"]
    assert table.duration_s.isna().all()


def test_another_metric_has_rows_and_floors_of_its_own():
    runs = [Run(answered([A], [[1, 1, 0, 0]]), "r", metric) for metric in (None, "substring")]
    table = evaluate([A], runs, bootstrap=FAST)
    assert list(table.metric) == ["contains", "contains", "substring", "substring"]


def test_the_same_seed_gives_the_same_table():
    run = [Run(answered([A, B], [[1, 1, 0, 0], [1]]), "r")]
    assert evaluate([A, B], run, bootstrap=FAST).equals(evaluate([A, B], run, bootstrap=FAST))


def test_an_episode_that_was_not_asked_or_has_no_instance_is_refused():
    episodes = write([A], writer("silent"), MemoryConfig(), ProtocolConfig())
    with pytest.raises(InputError, match="expected 4 answers, found 0"):
        evaluate([A], [Run(episodes, "r")])
    with pytest.raises(InputError, match="not in the data"):
        evaluate([B], [Run(episodes, "r")])
