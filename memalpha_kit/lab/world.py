"""The miniature's world: small instances with facts, corrections, labelled examples, chit-chat.

Everything about a sentence can be read from its text, so there are no hidden labels: the teacher,
the judge and the statistics all go through `read_sentence`.

    46 is the phone of Pemes                     fact
    Now 53 is the phone of Pemes                 correction of an earlier fact
    Label L4 goes to the red kettle of Pemes     labelled example
    Pemes waved at the driver                    chit-chat; no question asks about it

The value comes first and the name last, because a policy of two layers learns to copy what follows
a key much earlier than what stands before it. Questions ask for the *latest* value ("what is the
phone of Pemes" -> 53), and the frozen reader takes the best BM25 entry, ties to the oldest: whoever
stores a correction as a new entry beside the stale one is answered with the stale one. Names of
evaluation never occur in training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from memalpha_kit.errors import InputError
from memalpha_kit.method.memory import INSERT, UPDATE, apply, empty
from memalpha_kit.method.ranking import shown
from memalpha_kit.records import QA, Entry, Episode, Instance, Memory, ToolCall, make_instance
from memalpha_kit.settings import MemoryConfig, WarmStartConfig, WorldConfig

SOURCE = "miniature"
CONSONANTS, VOWELS = "bdfghjklmnprstvz", "aeiou"
FIRST = tuple(c.upper() + v for c in CONSONANTS for v in VOWELS)  # 80 first syllables
LAST = tuple(c + v + e for c in CONSONANTS for v in VOWELS for e in ("", "n", "s"))  # 240
THINGS = tuple(
    "locker badge desk gate phone garage bike box room ticket "  # noqa: SIM905 (easier to read)
    "shelf hook cabin tent lane seat cart chest vault drawer".split()
)
ADJECTIVES = ("red", "blue", "green", "round", "new", "small", "big", "warm", "cold", "dark")
NOUNS = (
    *("kettle", "lamp", "river", "garden", "train"),
    *("window", "bottle", "ladder", "hammer", "ribbon"),
)
CHAT = (
    "{n} waved at the driver",
    "It rained near the {w}",
    "{n} saw a {a} {w}",
    "{n} liked the {w}",
    "The {w} looked {a} today",
    "{n} and {m} had lunch",
    "{n} sold a {a} {w}",
    "Nobody moved the {a} {w}",
)
_FACT = re.compile(r"(Now )?(\d\d) is the ([a-z]+ of [A-Z][a-z]+)")
_EXAMPLE = re.compile(r"Label (L\d) goes to the ([a-z]+ [a-z]+ of [A-Z][a-z]+)")


@dataclass(frozen=True)
class Sentence:
    """One sentence: `kind` is fact, correction, example or chat; chat has no key and no value.

    `key` is what the value belongs to ("phone of Pemes"): sentences about the same thing share it.
    """

    kind: str
    text: str
    key: str = ""
    value: str = ""

    @property
    def store(self) -> str:
        """The store it belongs to, by its wire name: examples are episodic, the rest semantic."""
        return "episodic_memory" if self.kind == "example" else "semantic_memory"


def read_sentence(text: str) -> Sentence:
    """What a sentence (or a memory entry) says; anything that is no fact or example is chat."""
    text = text.strip().removesuffix(".")
    if fact := _FACT.fullmatch(text):
        return Sentence("correction" if fact[1] else "fact", text, fact[3], fact[2])
    if example := _EXAMPLE.fullmatch(text):
        return Sentence("example", text, f"label {example[2]}", example[1])
    return Sentence("chat", text)


@lru_cache
def read_chunk(chunk: str) -> tuple[Sentence, ...]:
    """The sentences of a chunk, one a line."""
    return tuple(read_sentence(line) for line in chunk.splitlines() if line.strip())


# --- The generator --------------------------------------------------------------------------------


@lru_cache
def names(config: WorldConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of training and of evaluation: disjoint, always the same for the same numbers.

    All syllables occur in both; a held-out name is a combination that training never saw. Raises
    InputError if there are not that many names.
    """
    pool = [first + last for first in FIRST for last in LAST]
    random.Random("names").shuffle(pool)
    train, held_out = config.training_names, config.held_out_names
    if train + held_out > len(pool):
        raise InputError(
            f"world.training_names, world.held_out_names: expected at most {len(pool)} together, "
            f"found {train} + {held_out}"
        )
    return tuple(pool[held_out : held_out + train]), tuple(pool[:held_out])


def build_world(
    config: WorldConfig, people: Sequence[str], n: int, n_chunks: int, seed: float | str
) -> list[Instance]:
    """`n` instances of `n_chunks` chunks about `people`; the same arguments give the same bytes."""
    return [
        _instance(config, people, n_chunks, random.Random(f"{seed}/{n_chunks}/{i}"))
        for i in range(n)
    ]


def _instance(
    config: WorldConfig, people: Sequence[str], n_chunks: int, rng: random.Random
) -> Instance:
    latest: dict[str, tuple[str, int]] = {}  # key -> value, chunk that said so last
    chunks = []
    for index in range(n_chunks):
        told = [_news(config, people, latest, rng) for _ in range(rng.randint(*config.facts))]
        chat = [_chat(people, rng) for _ in range(rng.randint(*config.chat))]
        corrected = _correction(config, latest, rng)
        for sentence in (*told, *corrected):
            latest[sentence.key] = (sentence.value, index)
        lines = [sentence.text + "." for sentence in (*told, *chat, *corrected)]
        rng.shuffle(lines)
        chunks.append("\n".join(lines))
    keys = list(latest)
    if len(keys) > config.max_questions:
        keys = rng.sample(keys, config.max_questions)
    questions = (
        QA(f"q{i}", ask_about(key), (latest[key][0],), latest[key][1]) for i, key in enumerate(keys)
    )
    return make_instance(SOURCE, chunks, questions)


def ask_about(key: str) -> str:
    """The question for a key: `what is the phone of Pemes`, `which label goes to the red ...`."""
    if key.startswith("label "):
        return f"which label goes to the {key.removeprefix('label ')}"
    return f"what is the {key}"


def _news(config: WorldConfig, people: Sequence[str], latest: dict, rng: random.Random) -> Sentence:
    """A fact or an example whose key is new: a key is told once, later changes are corrections.

    Raises InputError if there are hardly any new keys left.
    """
    for _ in range(10_000):
        sentence = (_new_example if rng.random() < config.example else _new_fact)(people, rng)
        if sentence.key not in latest:
            latest[sentence.key] = (sentence.value, -1)  # taken; the chunk is filled in later
            return sentence
    raise InputError(
        f"world: expected more names or fewer chunks, found {len(people)} names "
        f"after {len(latest)} facts and examples"
    )


def _new_fact(people: Sequence[str], rng: random.Random) -> Sentence:
    value, thing, name = rng.randint(0, 99), rng.choice(THINGS), rng.choice(people)
    return read_sentence(f"{value:02d} is the {thing} of {name}")


def _new_example(people: Sequence[str], rng: random.Random) -> Sentence:
    adjective, noun, name = rng.choice(ADJECTIVES), rng.choice(NOUNS), rng.choice(people)
    return read_sentence(f"Label L{rng.randint(0, 9)} goes to the {adjective} {noun} of {name}")


def _chat(people: Sequence[str], rng: random.Random) -> Sentence:
    words = {"n": rng.choice(people), "m": rng.choice(people)}
    words |= {"w": rng.choice(NOUNS), "a": rng.choice(ADJECTIVES)}
    return read_sentence(rng.choice(CHAT).format(**words))


def _correction(config: WorldConfig, latest: dict, rng: random.Random) -> list[Sentence]:
    """At most one correction, of a fact that an earlier chunk told."""
    open_keys = [k for k, (_, chunk) in latest.items() if chunk >= 0 and not k.startswith("label ")]
    if not open_keys or rng.random() >= config.correction:
        return []
    key = rng.choice(open_keys)
    value = rng.choice([f"{v:02d}" for v in range(100) if f"{v:02d}" != latest[key][0]])
    return [read_sentence(f"Now {value} is the {key}")]


# --- Teachers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Habits:
    """Probabilities with which a teacher acts on a sentence. The default is the perfect writer."""

    keep: float = 1.0  # facts and examples stored
    chat: float = 0.0  # chit-chat stored
    update: float = 1.0  # corrections of a shown entry that become an update
    insert_hidden: float = 1.0  # corrections of an entry that is not shown, stored as new


PERFECT = Habits()
NEVER_UPDATES = Habits(update=0.0)
KEEPS_ALL = Habits(chat=1.0)


def imperfect(config: WarmStartConfig) -> Habits:
    """The warm start's teacher: imperfect on purpose, so that GRPO has something to improve."""
    return Habits(config.keep, config.chat, config.update, config.insert_hidden)


def teach(
    chunk: str, memory: Memory, config: MemoryConfig, habits: Habits, rng: random.Random
) -> tuple[ToolCall, ...]:
    """The calls a teacher writes for one chunk, in the order of the sentences."""
    visible = [entry for part in shown(memory, chunk, config).values() for entry in part]
    calls = []
    for sentence in read_chunk(chunk):
        draw = rng.random()
        stale = [entry for entry in visible if same_key(entry, sentence)]
        if sentence.kind == "correction" and stale:
            calls += [update_call(sentence, stale[0])] if draw < habits.update else []
            continue
        shares = {"chat": habits.chat, "correction": habits.insert_hidden}
        if draw < shares.get(sentence.kind, habits.keep):
            calls.append(insert_call(sentence))
    return tuple(calls)


def insert_call(sentence: Sentence) -> ToolCall:
    """The call that stores the sentence as a new entry."""
    return ToolCall(INSERT, {"memory_type": sentence.store, "content": sentence.text})


def update_call(sentence: Sentence, entry: Entry) -> ToolCall:
    """The call that overwrites a stale entry with the sentence."""
    arguments = {"memory_type": sentence.store, "new_content": sentence.text}
    return ToolCall(UPDATE, {**arguments, "memory_id": entry.id})


def same_key(entry: Entry, sentence: Sentence) -> bool:
    """Whether the entry is about the same thing as the sentence."""
    return bool(sentence.key) and read_sentence(entry.text).key == sentence.key


# --- The judge ------------------------------------------------------------------------------------


def judge(call: ToolCall, chunk: str, memory: Memory) -> bool:
    """r4's verdict, by rule: is this write a fact of the chunk, beside or over the right entry?

    True if the call ran and its text stands in the chunk word for word and is no chit-chat; an
    update must hit an entry about the same thing, an insert must not leave a stale one beside it.
    `memory` is the memory at the start of the step. It never looks at questions or answers.
    """
    text = call.arguments.get("content" if call.name == INSERT else "new_content", "")
    said = {sentence.text: sentence for sentence in read_chunk(chunk)}.get(text)
    if call.status != "ok" or said is None or said.kind == "chat":
        return False
    about = {entry.id for _, entry in memory.entries() if same_key(entry, said)}
    return _target(call) in about if call.name == UPDATE else not about


def _target(call: ToolCall) -> str:
    """The id of the entry that an update is about; a model may write it as a number."""
    return str(call.arguments.get("memory_id"))


# --- What a writer did ----------------------------------------------------------------------------


@dataclass
class Behaviour:
    """Counts over one episode. A sentence is *stored* if a successful insert wrote it verbatim."""

    calls: int = 0
    calls_ok: int = 0
    calls_skipped: int = 0  # they change nothing: what they write is there already
    facts: int = 0  # examples included
    facts_stored: int = 0
    chat: int = 0
    chat_stored: int = 0
    corrections: int = 0
    corrections_stale: int = 0  # a stale entry was in memory when the correction came
    corrections_shown: int = 0  # ... and among the entries shown
    corrections_updated: int = 0  # a successful update of an entry about the same thing, verbatim
    corrections_inserted: int = 0
    updates: int = 0  # successful updates
    updates_wrong: int = 0  # ... of an entry about something else


def behaviour(episode: Episode, instance: Instance) -> Behaviour:
    """What the writer did with the sentences of its instance."""
    counts, before = Behaviour(), Memory()
    for step in episode.steps:
        chunk = instance.chunks[step.chunk]
        parts = shown(before, chunk, episode.memory_config).values()
        _count(counts, step.calls, chunk, before, {entry.id for part in parts for entry in part})
        before = step.memory
    return counts


def _count(
    counts: Behaviour, calls: Sequence[ToolCall], chunk: str, before: Memory, visible: set[str]
) -> None:
    """Adds what the calls of one step did."""
    good = [call for call in calls if call.status == "ok"]
    inserts = [c.arguments["content"] for c in good if c.name == INSERT]
    updates = [(_target(c), c.arguments["new_content"]) for c in good if c.name == UPDATE]
    old = {entry.id: entry for _, entry in before.entries()}
    counts.calls += len(calls)
    counts.calls_ok += len(good)
    counts.calls_skipped += sum(call.status == "skipped" for call in calls)
    counts.updates += len(updates)
    counts.updates_wrong += sum(
        i in old and not same_key(old[i], read_sentence(text)) for i, text in updates
    )
    for said in read_chunk(chunk):
        written = said.text in inserts
        if said.kind == "chat":
            counts.chat += 1
            counts.chat_stored += written
        elif said.kind != "correction":
            counts.facts += 1
            counts.facts_stored += written
        else:
            stale = {entry.id for entry in old.values() if same_key(entry, said)}
            counts.corrections += 1
            counts.corrections_stale += bool(stale)
            counts.corrections_shown += bool(stale & visible)
            counts.corrections_updated += any((i, said.text) in updates for i in stale)
            counts.corrections_inserted += written


# --- Lives of teachers ----------------------------------------------------------------------------

LONGEST_LIFE = 8  # chunks of a transcript, 2 at least
LATEST_START = 200  # first id of a memory that has seen much before
DISTRACTORS = 12  # entries that a memory may bring along


def transcripts(
    config: WorldConfig,
    memory_config: MemoryConfig,
    people: Sequence[str],
    habits: Habits,
    living: Habits,
    rng: random.Random,
) -> Iterator[tuple[Memory, str, tuple[ToolCall, ...]]]:
    """Steps of a teacher without end: (memory before, chunk, what the teacher writes).

    The calls follow `habits`; the memory that goes on follows `living`, so that what is shown does
    not depend on how bad the lesson is. Lives have 2 to 8 chunks, and some memories start with high
    ids and unrelated entries: an input 13 times as long then looks familiar.
    """
    while True:
        (instance,) = build_world(config, people, 1, rng.randint(2, LONGEST_LIFE), rng.random())
        start = rng.choice((1, rng.randint(1, LATEST_START)))
        memory = replace(empty(memory_config), next_id=start)
        for _ in range(rng.choice((0, 0, rng.randint(1, DISTRACTORS)))):
            memory, _ = apply(memory, insert_call(_anything(people, rng)), memory_config)
        for chunk in instance.chunks:
            yield memory, chunk, teach(chunk, memory, memory_config, habits, rng)
            for call in teach(chunk, memory, memory_config, living, rng):
                memory, _ = apply(memory, call, memory_config)


def _anything(people: Sequence[str], rng: random.Random) -> Sentence:
    kind = rng.random()
    if kind < 0.15:
        return _chat(people, rng)
    if kind < 0.3:
        return _new_example(people, rng)
    fact = _new_fact(people, rng)
    return read_sentence(f"Now {fact.text}") if rng.random() < 0.3 else fact
