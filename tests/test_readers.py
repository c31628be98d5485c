"""Readers without a model: ranking, ties, votes, and what they answer when nothing fits."""

from dataclasses import dataclass

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.method.readers import (
    READERS,
    BestEntry,
    LabelVote,
    ReadNothing,
    reader,
    sentence,
)
from memalpha_kit.records import Answer, Entry, Memory, Question

BOATS = Memory(
    core="Nora is a vet.",
    semantic=(Entry("1", "Nora keeps bees."), Entry("3", "Ana sails boats.")),
    episodic=(Entry("2", "Tom paints boats."),),
    next_id=4,
)
SAMPLES = Memory(
    semantic=(
        Entry("1", "Sentence: where is my parcel\nLabel: 2"),
        Entry("2", "Sentence: where is the music\nLabel: 1"),
        Entry("3", "Sentence: play the music now\nLabel: 1"),
        Entry("4", "The label of a parcel is 9."),
    ),
    next_id=5,
)


def answer(reader, memory: Memory, question: str):
    [found] = reader.read([Question("q0", question, memory=memory)])
    assert found.qa == "q0" and found.score is None
    return found


def test_the_best_entry_of_both_stores_is_the_answer():
    found = answer(BestEntry(), BOATS, "who keeps bees?")
    assert (found.prediction, found.retrieved) == ("Nora keeps bees.", ("1",))
    assert answer(BestEntry(), BOATS, "who paints?").retrieved == ("2",)


def test_ties_go_to_the_oldest_entry_across_the_stores():
    assert answer(BestEntry(), BOATS, "boats").retrieved == ("2",)
    assert (
        answer(BestEntry(k=2), BOATS, "boats").prediction == "Tom paints boats.\nAna sails boats."
    )


def test_a_single_entry_is_found_although_the_release_formula_scores_it_below_zero():
    one = Memory(semantic=(Entry("1", "Nora keeps bees"),), next_id=2)
    assert answer(BestEntry(), one, "bees").prediction == "Nora keeps bees"


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(BOATS, "Nora is a vet."), (Memory(), ""), (Memory(None, None, None), "")],
)
def test_without_a_shared_word_the_core_is_the_answer(memory, expected):
    found = answer(BestEntry(), memory, "zebra")
    assert (found.prediction, found.retrieved) == (expected, ())


def test_the_nearest_samples_vote_for_a_label():
    assert answer(LabelVote(), SAMPLES, "Sentence: stop the music\nSay \\boxed{}.").prediction == (
        "\\boxed{1}"
    )
    assert answer(LabelVote(k=1), SAMPLES, "Sentence: my parcel\n?").prediction == "\\boxed{2}"


def test_the_instruction_of_a_question_is_not_part_of_the_query():
    question = "Sentence: parcel\nplay the music now: which label?"
    assert answer(LabelVote(), SAMPLES, question).retrieved == ("1",)
    assert sentence(question) == "parcel"
    assert sentence("Who keeps bees?") == "Who keeps bees?"


def test_entries_without_a_label_do_not_vote():
    assert "4" not in answer(LabelVote(), SAMPLES, "parcel label").retrieved
    assert answer(LabelVote(), BOATS, "boats").prediction == ""
    assert answer(LabelVote(), SAMPLES, "zebra").prediction == ""


def test_equal_votes_go_to_the_better_sample_and_then_to_the_older_one():
    twins = Memory(
        semantic=(Entry("1", "Sentence: a b\nLabel: 5"), Entry("2", "Sentence: a b\nLabel: 4"))
    )
    assert answer(LabelVote(), twins, "a").prediction == "\\boxed{5}"


def test_reading_nothing_answers_nothing():
    assert answer(ReadNothing(), BOATS, "who keeps bees?").prediction == ""


RULES = ("best_entry", "label_vote", "read_nothing")


@pytest.mark.parametrize("name", ["best_entry", "label_vote"])
def test_a_question_whose_memory_was_never_written_is_one_line(name):
    with pytest.raises(InputError, match=f"reader {name}: expected a memory of three parts"):
        reader(name).read([Question("q0", "Who is a vet?", memory=None)])


def test_readers_are_made_by_name():
    assert [reader(name).name for name in RULES] == list(RULES)
    with pytest.raises(InputError, match="did you mean 'label_vote'"):
        reader("label_votes")


def test_another_number_of_entries_is_part_of_the_name():
    assert (reader("best_entry", k=5).name, reader("best_entry", k=1).name) == (
        "best_entry(k=5)",
        "best_entry",
    )
    assert reader("label_vote", k=3) == LabelVote(3)
    wrong = (("best_entry", 0, "k: expected"), ("read_nothing", 3, "'k' is unknown"))
    for name, k, reason in wrong:
        with pytest.raises(InputError, match=reason):
            reader(name, k=k)


def test_a_reader_of_the_user_s_own_module_is_registered_by_name():
    @READERS.register("test_echo")
    @dataclass(frozen=True)
    class Echo:
        mark: str = "!"
        name: str = "test_echo"

        def read(self, questions, done=None):
            return [Answer(question.id, question.text + self.mark) for question in questions]

    try:
        assert answer(reader("test_echo", mark="?"), BOATS, "boats").prediction == "boats?"
        with pytest.raises(InputError, match="did you mean 'mark'"):
            reader("test_echo", marks="?")
    finally:
        del READERS._things["test_echo"]


def test_questions_are_answered_as_their_source_is_scored():
    memory = Memory(semantic=(Entry("1", "Sentence: Where is Oslo?\nLabel: 3"),))
    asked = [
        Question("q", "Sentence: Where is Lund?", source, memory=memory)
        for source in ("trec_coarse", "squad")
    ]
    label, entry = reader("by_source").read(asked)
    assert (label.prediction, entry.prediction) == ("\\boxed{3}", memory.semantic[0].text)


def test_the_day_of_a_question_is_not_sought_by_rules_either():
    memory = Memory(
        semantic=(Entry("1", "Nora keeps bees."), Entry("2", "What is the current date?"))
    )
    asked = Question("q0", "Current date: 2023/05/30 (Tue)\nWho keeps bees?", memory=memory)
    assert reader("best_entry").read([asked])[0].prediction == "Nora keeps bees."
