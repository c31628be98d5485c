"""The miniature's world: sentences, instances, teachers, the judge and counts worked by hand."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.lab import world
from memalpha_kit.lab.miniature import METRIC, READER, teacher
from memalpha_kit.lab.world import Behaviour, Habits, Sentence
from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE
from memalpha_kit.method.readers import reader
from memalpha_kit.method.writers import ScriptedReplies
from memalpha_kit.records import QA, Entry, Memory, ToolCall, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig, WorldConfig

CONFIG = WorldConfig(training_names=300, held_out_names=100, correction=0.8)
MEMORY = MemoryConfig(core=False, display="relevant", shown=4)
PROTOCOL = ProtocolConfig(wire="compact", prompt="compact")
TRAIN, HELD_OUT = world.names(CONFIG)


def instances(n_chunks: int = 4, n: int = 20, config: WorldConfig = CONFIG, seed="test"):
    return world.build_world(config, HELD_OUT, n, n_chunks, seed)


# --- Sentences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "key", "value"),
    [
        ("46 is the phone of Pemes", "fact", "phone of Pemes", "46"),
        ("46 is the phone of Pemes.", "fact", "phone of Pemes", "46"),
        ("Now 53 is the phone of Pemes", "correction", "phone of Pemes", "53"),
        ("Label L4 goes to the red kettle of Pemes", "example", "label red kettle of Pemes", "L4"),
        ("Pemes waved at the driver", "chat", "", ""),
        ("46 is the phone", "chat", "", ""),
        ("146 is the phone of Pemes", "chat", "", ""),
        ("46 is the phone of pemes", "chat", "", ""),
        ("Now Now 46 is the phone of Pemes", "chat", "", ""),
        ("46 is the phone of Pemes 47 is the desk of Banu", "chat", "", ""),
        ("", "chat", "", ""),
    ],
)
def test_a_sentence_says_what_it_is(text, kind, key, value):
    said = world.read_sentence(text)
    assert said == Sentence(kind, text.removesuffix("."), key, value)
    assert said.store == ("episodic_memory" if kind == "example" else "semantic_memory")


# --- Names and instances -------------------------------------------------------------------------


def test_names_of_training_and_evaluation_are_disjoint_and_share_every_syllable():
    train, held_out = world.names(WorldConfig(training_names=17_200, held_out_names=2000))
    assert (len(set(train)), len(set(held_out))) == (17_200, 2000)
    assert not set(train) & set(held_out)
    for pick in (lambda name: name[:2], lambda name: name[2:]):
        assert {pick(name) for name in held_out} <= {pick(name) for name in train}

    assert world.names(WorldConfig(training_names=5, held_out_names=100))[1] == HELD_OUT


def test_more_names_or_keys_than_there_are_is_an_input_error_and_does_not_hang():
    with pytest.raises(InputError, match=r"held_out_names: expected at most 19200 together, found"):
        world.names(WorldConfig(training_names=19_000, held_out_names=201))
    with pytest.raises(InputError, match="expected more names or fewer chunks, found 1 names"):
        world.build_world(CONFIG, ("Pemes",), 1, 100, 0)


DUMP = """
from memalpha_kit.lab import world
from memalpha_kit.settings import WorldConfig
people = world.names(WorldConfig(training_names=300, held_out_names=100, correction=0.8))[1]
print(repr(world.build_world(WorldConfig(correction=0.8), people, 20, 4, "test")))
"""


def test_the_same_arguments_give_the_same_bytes_whatever_else_is_built():
    said = repr(world.build_world(WorldConfig(correction=0.8), HELD_OUT, 20, 4, "test"))
    for hash_seed in ("1", "2"):
        there = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", DUMP], env=there, capture_output=True, text=True
        )
        assert done.stdout == said + "\n", done.stderr
    assert instances(n=3) == instances(n=20)[:3]
    assert instances(n=1, seed=1) != instances(n=1, seed=2)


def test_the_answer_is_the_latest_value_and_its_chunk_the_one_that_said_so():
    corrected = 0
    for instance in instances(n_chunks=12):
        told: dict[str, list] = {}
        for index, chunk in enumerate(instance.chunks):
            for said in world.read_chunk(chunk):
                told.setdefault(said.key, []).append((said.kind, said.value, index))
        told.pop("", None)
        by_question = {world.ask_about(key): history for key, history in told.items()}
        asked = {qa.question for qa in instance.questions}
        assert len(asked) == len(instance.questions) == min(len(told), CONFIG.max_questions)
        for qa in instance.questions:
            history = by_question[qa.question]
            assert (qa.answers, qa.chunk) == ((history[-1][1],), history[-1][2])
            assert [kind for kind, *_ in history[1:]] == ["correction"] * (len(history) - 1)
            assert history[0][0] in ("fact", "example")
            assert all(a[1] != b[1] for a, b in itertools.pairwise(history))
            assert all(a[2] < b[2] for a, b in itertools.pairwise(history))
            corrected += len(history) > 1
    assert corrected > 20


def test_chunks_have_as_many_sentences_of_each_kind_as_the_settings_say():
    config = WorldConfig(facts=(2, 3), chat=(0, 1), correction=1.0, example=1.0)
    (instance,) = instances(n_chunks=8, n=1, config=config)
    for chunk in instance.chunks:
        kinds = [said.kind for said in world.read_chunk(chunk)]
        assert 2 <= kinds.count("example") <= 3 and kinds.count("chat") <= 1
        assert not {"fact", "correction"} & set(kinds)  # only facts are corrected
    config = WorldConfig(correction=1.0, example=0.0)
    (instance,) = instances(n_chunks=8, n=1, config=config)
    kinds = [[s.kind for s in world.read_chunk(chunk)] for chunk in instance.chunks]
    assert [kind.count("correction") for kind in kinds] == [0] + [1] * 7


# --- Teachers ------------------------------------------------------------------------------------


def answered(habits: Habits, n_chunks: int) -> float:
    """Mean score of the frozen reader on memories that this teacher writes."""
    data = instances(n_chunks, n=10)
    episodes = write(data, teacher("teacher", habits, MEMORY), MEMORY, PROTOCOL)
    asked = ask(episodes, data, reader(READER), METRIC)
    scores = [answer.score for episode in asked for answer in episode.answers]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("n_chunks", [4, 16])
def test_the_perfect_teacher_answers_everything_and_who_never_updates_clearly_less(n_chunks):
    assert answered(world.PERFECT, n_chunks) == 1.0
    assert answered(world.NEVER_UPDATES, n_chunks) < 0.85
    assert answered(Habits(keep=0.0, update=0.0, insert_hidden=0.0), n_chunks) == 0.0


def test_a_correction_stored_beside_the_stale_entry_is_answered_with_the_stale_one():
    texts = ["46 is the phone of Pemes", "Now 53 is the phone of Pemes"]
    data = make_instance("miniature", ["x"], [QA("q0", world.ask_about("phone of Pemes"), ("53",))])
    writer = ScriptedReplies([render_calls(list(map(insert, texts)), "compact")])
    (asked,) = ask(write([data], writer, MEMORY, PROTOCOL), [data], reader(READER), METRIC)
    assert [entry.text for entry in asked.memory.semantic] == texts
    assert [(a.prediction, a.score) for a in asked.answers] == [("46 is the phone of Pemes", 0.0)]


CHUNK = (
    "Now 53 is the phone of Pemes.\nPemes saw a red lamp.\n12 is the desk of Banu.\n"
    "Label L4 goes to the red kettle of Pemes."
)
STALE = Memory(None, (Entry("7", "46 is the phone of Pemes"),), ())
NEW = ["12 is the desk of Banu", "Label L4 goes to the red kettle of Pemes"]


@pytest.mark.parametrize(
    ("habits", "memory", "expected"),
    [
        (world.PERFECT, STALE, ["update 7 Now 53 is the phone of Pemes", *NEW]),
        (world.PERFECT, Memory(None), ["Now 53 is the phone of Pemes", *NEW]),
        (world.NEVER_UPDATES, STALE, NEW),
        (Habits(keep=0.0, chat=1.0, update=0.0), STALE, ["Pemes saw a red lamp"]),
        (Habits(keep=0.0, insert_hidden=0.0), Memory(None), []),
    ],
)
def test_a_teacher_follows_its_habits_in_the_order_of_the_sentences(habits, memory, expected):
    calls = world.teach(CHUNK, memory, MEMORY, habits, random.Random(0))
    said = [
        f"update {given['memory_id']} {given['new_content']}"
        if "memory_id" in given
        else given["content"]
        for given in (call.arguments for call in calls)
    ]
    assert said == expected


# --- The judge -----------------------------------------------------------------------------------


def insert(text, status="ok", store="semantic_memory"):
    return ToolCall(INSERT, {"memory_type": store, "content": text}, status=status)


def update(text, number, status="ok"):
    arguments = {"memory_type": "semantic_memory", "new_content": text, "memory_id": number}
    return ToolCall(UPDATE, arguments, status=status)


DELETED = ToolCall(DELETE, {"memory_type": "semantic_memory", "memory_id": "7"}, status="ok")
BEFORE = Memory(
    None, (Entry("7", "46 is the phone of Pemes"), Entry("8", "12 is the gate of Banu")), ()
)


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        (insert("12 is the desk of Banu"), True),
        (insert("Label L4 goes to the red kettle of Pemes", store="episodic_memory"), True),
        (update("Now 53 is the phone of Pemes", "7"), True),
        (update("Now 53 is the phone of Pemes", 7), True),  # a number is an id too
        (insert("Pemes saw a red lamp"), False),  # chit-chat
        (update("Pemes saw a red lamp", "7"), False),
        (insert("12 is the desk of Banu", "skipped"), False),
        (insert("12 is the desk of Banu", "rejected"), False),
        (update("Now 53 is the phone of Pemes", "7", "rejected"), False),
        (update("Now 53 is the phone of Pemes", "8"), False),  # another entry is lost
        (update("Now 53 is the phone of Pemes", "9"), False),
        (insert("Now 53 is the phone of Pemes"), False),  # the stale entry stays beside it
        (update("12 is the desk of Banu", "8"), False),  # a fact over another fact
        (insert("the desk of Banu is 12"), False),  # paraphrase
        (insert("12 is the desk of Banu."), False),  # the full stop is no part of the sentence
        (insert("53 is the phone of Pemes"), False),
        (insert("12 is the desk of Pemes"), False),
        (insert(CHUNK), False),
        (insert(""), False),
        (insert(" "), False),
        (ToolCall(INSERT, {"memory_type": "semantic_memory"}, status="rejected"), False),
        (DELETED, False),
    ],
)
def test_a_write_is_valid_if_it_is_a_fact_of_the_chunk_where_it_belongs(call, verdict):
    assert world.judge(call, CHUNK, BEFORE) is verdict
    never_stored = insert("Now 53 is the phone of Pemes")
    assert world.judge(never_stored, CHUNK, Memory(None))


def test_every_call_of_the_perfect_teacher_is_valid():
    perfect = world.PERFECT
    steps = world.transcripts(CONFIG, MEMORY, TRAIN, perfect, perfect, random.Random(1))
    for memory, chunk, _ in itertools.islice(steps, 200):
        habits = Habits(insert_hidden=0.0)  # an insert beside a stale entry is never valid
        for call in world.teach(chunk, memory, MEMORY, habits, random.Random(0)):
            said = world.read_sentence(call.arguments.get("content", ""))
            if call.name == INSERT and any(world.same_key(e, said) for _, e in memory.entries()):
                continue  # a distractor happens to be about the same thing
            valid = ToolCall(call.name, call.arguments, status="ok")
            assert world.judge(valid, chunk, memory), (call, chunk, memory)


# --- Behaviour -----------------------------------------------------------------------------------

PLAIN = MemoryConfig(core=False, display="recent", shown=1)
STORY = make_instance(
    "miniature",
    [
        "46 is the phone of Pemes.\nPemes waved at the driver.\n"
        "Label L4 goes to the red kettle of Pemes.",
        "Now 53 is the phone of Pemes.\n12 is the desk of Banu.",
        "Now 77 is the phone of Pemes.\nNow 80 is the desk of Banu.",
    ],
    [QA("q0", "what is the phone of Pemes", ("77",))],
)
CHATTER = "Pemes waved at the driver"
REPLIES = [
    [insert("46 is the phone of Pemes"), insert(CHATTER), insert("46 is the phone of Pemes")],
    # 2 is the chit-chat
    [update("Now 53 is the phone of Pemes", "1"), update("12 is the desk of Banu", "2")],
    [
        insert("Now 77 is the phone of Pemes"),
        update("Now 80 is the desk of Banu", "9"),
        ToolCall(DELETE, {"memory_type": "semantic_memory", "memory_id": "2"}),
    ],
]


def counted(replies, memory_config=PLAIN):
    """Behaviour of a writer with these calls, or texts, about `STORY`."""
    said = [one if isinstance(one, str) else render_calls(one, "compact") for one in replies]
    (episode,) = write([STORY], ScriptedReplies(said), memory_config, PROTOCOL)
    return world.behaviour(episode, STORY)


def test_behaviour_is_counted_as_by_hand():
    broken = render_calls(REPLIES[2], "compact") + "<tool_call>{broken</tool_call>"
    assert counted([*REPLIES[:2], broken]) == Behaviour(
        calls=9,
        calls_ok=6,  # all but the duplicate, the unknown id and the broken one
        calls_skipped=1,
        facts=3,  # phone, kettle, desk
        facts_stored=1,  # the desk went over the chit-chat
        chat=1,
        chat_stored=1,
        corrections=3,
        corrections_stale=3,
        corrections_shown=1,  # one entry is shown, the last: the desk
        corrections_updated=1,
        corrections_inserted=1,
        updates=2,
        updates_wrong=1,
    )


def test_behaviour_takes_an_id_written_as_a_number_and_content_that_is_no_text():
    first = [insert("46 is the phone of Pemes")]
    found = counted([first, [update("Now 53 is the phone of Pemes", 1)], []])
    assert (found.updates, found.updates_wrong, found.corrections_updated) == (1, 0, 1)
    release = MemoryConfig(core=False, behaviour="release")
    found = counted([[insert(["46 is the phone of Pemes"])], "", ""], release)
    assert (found.calls_ok, found.facts_stored) == (1, 0)


# --- Lives of teachers ---------------------------------------------------------------------------


def test_transcripts_show_old_memories_and_never_a_held_out_name():
    habits = world.KEEPS_ALL
    steps = world.transcripts(CONFIG, MEMORY, TRAIN, habits, habits, random.Random(0))
    lives = list(itertools.islice(steps, 400))
    texts = [e.text for memory, *_ in lives for _, e in memory.entries()]
    words = {w.rstrip(".") for t in (*texts, *(c for _, c, _ in lives)) for w in t.split()}
    assert not words & set(HELD_OUT) and words & set(TRAIN)
    ids = [int(e.id) for memory, *_ in lives for _, e in memory.entries()]
    assert max(ids) > 100 and min(ids) == 1
    first = [memory for memory, *_ in lives if memory.next_id > 1 and not memory.entries()]
    assert first, "a memory that has seen much and kept nothing"
    said = {line.rstrip(".") for _, chunk, _ in lives for line in chunk.splitlines()}
    assert any(text not in said for text in texts), "entries of another life"
    updates = [call for _, _, calls in lives for call in calls if call.name == UPDATE]
    assert any(int(call.arguments["memory_id"]) > 100 for call in updates)


def test_lessons_follow_the_habits_and_the_memory_follows_the_life():
    habits, living = Habits(keep=0.0, chat=1.0, update=0.0), world.PERFECT
    steps = world.transcripts(CONFIG, MEMORY, TRAIN, habits, living, random.Random(0))
    lives = list(itertools.islice(steps, 60))
    kinds = {world.read_sentence(c.arguments["content"]).kind for *_, calls in lives for c in calls}
    assert kinds <= {"chat", "correction"}  # what is hidden is inserted
    assert any(len(memory.entries()) > 3 for memory, *_ in lives)
