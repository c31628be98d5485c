"""The records of methods, the table of methods, and what holds for every one of them."""

from __future__ import annotations

import json

import pytest

from memalpha_kit.config import MemoryConfig, ProtocolConfig
from memalpha_kit.episode import write
from memalpha_kit.errors import InputError
from memalpha_kit.methods import Answered, MethodSpec, Prepared, build_method
from memalpha_kit.records import QA, Entry, Memory, make_instance
from memalpha_kit.writers import ScriptedReplies, writer

INSTANCE = make_instance(
    "squad", ["Nora keeps bees. Tom rows."], [QA("q0", "Who keeps bees?", ("Nora",), 0)]
)
KEEP = writer("keep_sentences")


def episode(made=KEEP):
    return write([INSTANCE], made, MemoryConfig(), ProtocolConfig())[0]


MEMORY = Memory("Bees.", (Entry("1", "Nora keeps bees."),), None, next_id=2)
PREPARED = [
    Prepared("i"),
    Prepared("i", memory=MEMORY, memory_tokens=7, input_tokens=9, calls=3, calls_ok=2),
    Prepared("i", memory=Memory()),
    Prepared("i", text="", memory_tokens=0, steps=("", "a"), prompt_tokens=0, errors=1),
    Prepared("i", error="chunk 2: HTTP 500", truncated=True),
    Prepared("i", memory=episode().memory, episode=episode()),
    Prepared("i", memory=MEMORY, episode=episode()),
    Prepared("i", memory=Memory(), episode=episode(ScriptedReplies(["\ud800"]))),
]


@pytest.mark.parametrize("prepared", PREPARED)
def test_what_was_prepared_survives_the_way_through_json(prepared):
    assert Prepared.from_plain(json.loads(json.dumps(prepared.to_plain()))) == prepared


ANSWERED = [
    Answered("i", 0, "q", "Nora"),
    Answered("i", 3, "q", "", prompt_tokens=0, memory_tokens=0, retrieved=("3", "1")),
    Answered("i", 0, "q", None, finish="error", error="HTTP 500"),
    Answered("i", 0, "q", None, skipped="no evidence label"),
]


@pytest.mark.parametrize("answered", ANSWERED)
def test_an_answer_survives_the_way_through_json(answered):
    assert Answered.from_plain(json.loads(json.dumps(answered.to_plain()))) == answered


def test_an_answer_is_final_with_a_prediction_or_where_there_can_be_none():
    assert [answered.final for answered in ANSWERED] == [True, True, False, True]


@pytest.mark.parametrize("plain", [{}, {"instance": "i", "odd": 1}, {"instance": "i", "memory": 3}])
def test_other_records_are_refused(plain):
    with pytest.raises(InputError, match=r"^line 3: "):
        Answered.from_plain(plain, "line 3")
    with pytest.raises(InputError, match=r"^line 3: "):
        Prepared.from_plain(plain | {"memory": {"core": 1}}, "line 3")


def test_an_unknown_method_is_named_with_the_closest():
    with pytest.raises(InputError, match="found 'bm52'"):
        build_method(MethodSpec("bm52"))
