"""Records: what `make_instance` accepts, and the totals that follow from stored facts."""

from __future__ import annotations

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.records import (
    QA,
    Completion,
    Entry,
    Episode,
    Memory,
    Step,
    ToolCall,
    make_instance,
)
from memalpha_kit.settings import MemoryConfig

BEES = QA("q0", "Who keeps bees?", ("Nora",), chunk=0)


def test_the_id_of_an_instance_comes_from_its_content():
    """From source, chunks as they are cut, questions and answers; not from prompt and metadata."""
    one = make_instance("squad", ["Nora keeps", " bees."], [BEES])
    assert one == make_instance("squad", ["Nora keeps", " bees."], [BEES])
    others = [
        make_instance("hotpotqa", one.chunks, [BEES]),
        make_instance("squad", ["Nora keeps bees."], [BEES]),
        make_instance("squad", ["Nora keeps", " bees"], [BEES]),
        make_instance("squad", one.chunks, [QA("q0", "Who?", ("Nora",))]),
        make_instance("squad", one.chunks, [QA("q0", "Who keeps bees?", ("Ana",))]),
    ]
    assert one.id.startswith("squad/") and len({one.id, *(other.id for other in others)}) == 6
    two = make_instance("squad", one.chunks, [BEES], "Read.", {"groups": ["squad:Bees"]})
    assert (one.id, one.prompt, one.metadata) == (two.id, "", {})
    assert one != two and len({one, two}) == 2


def test_blank_chunks_are_dropped_and_the_evidence_index_follows():
    questions = [QA(str(i), f"What {i}?", ("x",), chunk=i) for i in (0, 1, 3)]
    instance = make_instance("squad", ["first", " \n", "second", "third"], questions)
    assert instance.chunks == ("first", "second", "third")
    assert [qa.chunk for qa in instance.questions] == [0, None, 2]


@pytest.mark.parametrize(
    ("chunks", "questions", "complaint"),
    [
        ([], [BEES], "chunks: expected at least one non-blank chunk"),
        ([" ", "\n"], [BEES], "chunks: expected at least one non-blank chunk"),
        (["a"], [], "questions: expected at least one question"),
        (["a"], [QA("q7", " ", ("x",))], "question q7: expected text"),
        (["a"], [QA("q7", "Who?", ())], "question q7: expected an answer"),
        (["a"], [QA("q7", "Who?", ("", " "))], "question q7: expected an answer"),
        (["a"], [QA("q7", "Who?", "Nora")], "question q7: expected a list or tuple of texts"),
        ("No\nra", [BEES], "chunks: expected a list or tuple of texts, found the text"),
    ],
)
def test_an_instance_that_cannot_be_used_is_refused_in_one_line(chunks, questions, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        make_instance("squad", chunks, questions)
    assert str(error.value).startswith("squad")
    assert "\n" not in str(error.value)


def test_the_entries_of_a_memory_are_listed_by_store_in_insertion_order():
    memory = Memory("", semantic=None, episodic=(Entry("1", "a"), Entry("3", "b")), next_id=4)
    assert memory.entries() == (("episodic", Entry("1", "a")), ("episodic", Entry("3", "b")))
    assert Memory(semantic=(Entry("2", "c"),)).entries() == (("semantic", Entry("2", "c")),)


def test_final_memory_and_calls_of_an_episode_follow_from_its_steps():
    first, second = ToolCall("memory_delete"), ToolCall("new_memory_insert")
    steps = (
        Step(0, Completion("a"), (first,), Memory("old")),
        Step(1, Completion("b"), (second, first), Memory("new")),
    )
    episode = Episode("e", "i", "squad", 0, 0, "scripted", "text", MemoryConfig(), steps)
    assert episode.memory.core == "new"
    assert episode.calls == (first, second, first)
