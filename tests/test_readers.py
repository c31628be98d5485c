"""Readers without a model: ranking, ties, votes, and what they answer when nothing fits."""

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.method.readers import LabelVote, reader
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


TWINS = Memory(
    semantic=(Entry("1", "Sentence: a b\nLabel: 5"), Entry("2", "Sentence: a b\nLabel: 4"))
)
ONE = Memory(semantic=(Entry("1", "Nora keeps bees."),), next_id=2)
BEST, VOTE, BY_SOURCE = reader("best_entry"), reader("label_vote"), reader("by_source")
VET = "Nora is a vet."  # the core is the answer where no entry shares a word
OSLO = Memory(semantic=(Entry("1", "Sentence: Where is Oslo?\nLabel: 3"),))
DATED = Memory(semantic=(Entry("1", "Nora keeps bees."), Entry("2", "What is the current date?")))


@pytest.mark.parametrize(
    ("by", "memory", "question", "prediction", "retrieved"),
    [
        (BEST, BOATS, "who keeps bees?", "Nora keeps bees.", "1"),
        (BEST, BOATS, "who paints?", "Tom paints boats.", "2"),  # of both stores
        (BEST, BOATS, "boats", "Tom paints boats.", "2"),  # ties go to the oldest
        (reader("best_entry", k=2), BOATS, "boats", "Tom paints boats.\nAna sails boats.", "23"),
        (BEST, ONE, "bees", "Nora keeps bees.", "1"),  # the release's formula is below zero
        (BEST, BOATS, "zebra", VET, ""),
        (BEST, Memory(), "zebra", "", ""),
        (BEST, Memory(None, None, None), "zebra", "", ""),
        (BEST, DATED, "Current date: 2023/05/30 (Tue)\nWho keeps bees?", "Nora keeps bees.", "1"),
        (VOTE, SAMPLES, "Sentence: stop the music\nSay \\boxed{}.", "\\boxed{1}", "23"),
        (reader("label_vote", k=1), SAMPLES, "Sentence: my parcel\n?", "\\boxed{2}", "1"),
        # neither the instruction of a question nor an entry without a label counts
        (VOTE, SAMPLES, "Sentence: parcel\nplay the music now: which label?", "\\boxed{2}", "1"),
        (VOTE, SAMPLES, "parcel label", "\\boxed{2}", "1"),
        (VOTE, BOATS, "boats", "", ""),
        (VOTE, SAMPLES, "zebra", "", ""),
        (VOTE, TWINS, "a", "\\boxed{5}", "12"),  # equal votes: the older one
        (reader("read_nothing"), BOATS, "who keeps bees?", "", ""),
    ],
)
def test_readers_by_rule_answer_as_worked_out_by_hand(by, memory, question, prediction, retrieved):
    [found] = by.read([Question("q0", question, instance="i", memory=memory)])
    assert found == Answer("q0", prediction, retrieved=tuple(retrieved), instance="i")


@pytest.mark.parametrize("by", [BEST, VOTE, BY_SOURCE])
def test_a_question_whose_memory_was_never_written_is_one_line(by):
    with pytest.raises(InputError, match=f"reader {by.name}: expected a memory of three parts"):
        by.read([Question("q0", "Who is a vet?", memory=None)])


def test_readers_are_made_by_name_and_another_number_of_entries_is_part_of_it():
    for name in ("best_entry", "label_vote", "read_nothing", "by_source"):
        assert reader(name).name == name
    assert (reader("best_entry", k=5).name, reader("label_vote", k=3)) == (
        *("best_entry(k=5)", LabelVote(3)),
    )


def test_questions_are_answered_as_their_source_is_scored():
    asked = [
        Question("q", "Sentence: Where is Lund?", source, memory=OSLO)
        for source in ("trec_coarse", "squad")
    ]
    label, entry = BY_SOURCE.read(asked)
    assert (label.prediction, entry.prediction) == ("\\boxed{3}", OSLO.semantic[0].text)
