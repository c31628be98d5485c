"""PerLTQA (Du et al., 2024): the events of a person's life, with the talks about them.

Two raw files, lists as first published or objects by character as in version 2:

    perltmem_en.json: [{"profile": {"Protagonist": "Ila Brandt"},
        "events": {"7_0_0": {"content": ..., "summary": ..., "Creation Time": "March 3, 2023"}},
        "dialogues": {"7_0_0#0": {"events": "7_0_0",
                                  "contents": {"2023-03-03 10:00": ["Oskar: Note: water."]}}}}]
    perltqa_en.json: [{"Ila Brandt": {"events": [{"7_0_0": [
        {"Question": ..., "Answer": "Forty", "Reference Memory": "['7_0_0']"}]}]}}]

An instance is a character and a chunk is an event with its dialogues. Laws: every message is in a
chunk, of its own event only; a question stays only if the memories that it refers to are in the
chunks. With `stage` answers are shortened and checked; groups are characters.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from memalpha_kit.data import stages
from memalpha_kit.data.chunks import pack_sentences
from memalpha_kit.data.raw import Item, Row, Text, checked, raw_file, read_json
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources.building import Job, only
from memalpha_kit.data.stages import Stage
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance

MEMORIES, QUESTIONS = FILES = ("perltmem_en*.json", "perltqa_en*.json")
SECTIONS = ("social_relationship", "events", "dialogues")  # questions about `profile` are not asked
OPENING = "{user} tells about something that happened: {date}."
TALKS = "This is what was said about it:"
REFERENCE = re.compile(r"[^\s'\"\[\](),;]+")


class _RawEvent(Row):
    summary: Text
    content: Text
    date: Any = Field(None, alias="Creation Time")


class _RawDialogue(Row):
    events: Any = None
    contents: Any = None


def _by_id(value: Any) -> dict[str, dict]:
    """Objects by id, from an object or from a list of such objects."""
    found: dict[str, dict] = {}
    for part in value if isinstance(value, list) else [value or {}]:
        if not isinstance(part, dict) or not all(isinstance(v, dict) for v in part.values()):
            raise ValueError(f"expected objects by id, found {part!r:.40}")
        found |= part
    return found


class _RawMemories(Row):
    events: Annotated[dict[str, _RawEvent], BeforeValidator(_by_id)] = {}
    dialogues: Annotated[dict[str, _RawDialogue], BeforeValidator(_by_id)] = {}


class _RawProfile(Row):
    name: Text = Field(alias="Protagonist")


class RawCharacter(Row):
    """A character of a memory file that is a list."""

    profile: _RawProfile


class RawQuestion(Row):
    """A question of the question file; a null answer is one whose shortening failed."""

    question: Text = Field(alias="Question")
    answer: Text = Field(alias="Answer")
    memory: Any = Field(None, alias="Reference Memory")


@dataclass(frozen=True)
class Event:
    """An event of a character's life: what its chunk tells, and the ids of its dialogues."""

    id: str
    date: str
    body: str
    dialogues: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A question and the ids of the memories that it refers to."""

    qa: QA
    section: str
    references: tuple[str, ...]


def line_of(message: str) -> str:
    """`<Speaker> text`; what has no speaker as it is."""
    speaker, colon, text = message.partition(": ")
    return f"<{speaker.strip()}> {text.strip()}" if colon else message.strip()


def chunks_of(job: Job, opening: str, body: str) -> list[str]:
    """An event as a chunk; as several, each with the opening line, if it is above the limit."""
    opening, measure = html.unescape(opening), job.counter
    room = max(job.config.chunk_max_tokens - measure.count(f"{opening}\n\n"), 1)
    return [f"{opening}\n\n{piece}" for piece in pack_sentences(html.unescape(body), measure, room)]


@dataclass(frozen=True)
class Rules:
    """What the published code does otherwise: `release/data.py`."""

    line: Callable[[str], str] = line_of
    owns: Callable[[str, str, str], bool] = lambda event, dialogue, owner: event == owner
    chunks: Callable[[Job, str, str], list[str]] = chunks_of
    asks_hidden: bool = False  # questions about memories that are not in the chunks


def build(job: Job, rules: Rules | None = None) -> list[Instance]:
    """One instance per character with questions, in the order of the question file.

    Characters with more than `event_max_chunks` chunks are dropped, and those that keep fewer than
    `min_kept_questions`. Raises InputError if no instance is left.
    """
    paths = [raw_file(job.raw, name) for name in FILES]
    memories = read_memories(paths[0], job.skips)
    stage, rules = stages.chosen(job.config), rules or Rules()
    built: list[Instance] = []
    for user, sections, where in _characters(paths[1], job.skips):
        if len(built) == job.config.instances:
            break
        if user not in memories:
            job.skips.drop("characters without memories")
            continue
        try:
            events = read_events(*memories[user], rules)
            asked = read_questions(sections, where, job.skips)
        except InputError as error:
            job.skips.failed(error)
            continue
        instance = _instance(job, user, events, asked, stage, rules)
        built += [instance] if instance else []
    return job.not_none(built, QUESTIONS, "a character with events and questions")


def _instance(
    job: Job,
    user: str,
    events: Sequence[Event],
    asked: Sequence[Asked],
    stage: Stage | None,
    rules: Rules,
) -> Instance | None:
    drop = job.skips.drop
    shown: list[tuple[Event, str]] = []
    where: dict[str, set[int]] = defaultdict(set)  # chunks by event and dialogue
    for event in events:
        for chunk in rules.chunks(job, OPENING.format(user=user, date=event.date), event.body):
            for name in (event.id, *event.dialogues):
                where[name].add(len(shown))
            shown.append((event, chunk))
    if not shown or len(shown) > job.config.event_max_chunks:
        drop(f"characters {'with too many chunks' if shown else 'without events'}")
        return None
    chunks = [chunk for _, chunk in shown]
    if not rules.asks_hidden:
        covered = [q for q in asked if q.references and all(r in where for r in q.references)]
        drop("questions about memories that are not shown", len(asked) - len(covered))
        asked = covered
    asked, kept = _staged(job, stage, chunks, asked) if stage else (asked, set())
    asked = job.sampled(asked, user)
    if len(asked) < job.config.min_kept_questions or not asked:
        drop("characters with too few questions")
        return None
    return job.instance(
        chunks,
        [replace(q.qa, chunk=only(n for name in q.references for n in where[name])) for q in asked],
        groups=[f"perltqa:{user}"],
        titles=[user],
        dates=[event.date for event, _ in shown],
        evidence=[", ".join(q.references) for q in asked],
        memory_types=[q.section for q in asked],
        kept_whole=[q.qa.id for q in asked if q.qa.id in kept],
    )


def _staged(
    job: Job, stage: Stage, chunks: Sequence[str], asked: Sequence[Asked]
) -> tuple[list[Asked], set[str]]:
    """The questions that the chunks answer, answers shortened; ids of those that stayed whole."""
    short = stage.shorten([(q.qa.question, q.qa.answers[0]) for q in asked])
    pairs = [(q.qa.question, s or q.qa.answers[0]) for q, s in zip(asked, short, strict=True)]
    golds = stage.answerable("\n\n".join(chunks), pairs)
    job.skips.drop("questions that the chunks do not answer", golds.count(""))
    job.skips.drop("questions whose answerability check failed", golds.count(None))
    kept = {q.qa.id for q, s in zip(asked, short, strict=True) if s is None}
    found = [(q, gold) for q, gold in zip(asked, golds, strict=True) if gold]
    return [replace(q, qa=replace(q.qa, answers=(gold,))) for q, gold in found], kept


def read_memories(path: Path, skips: Skips) -> dict[str, Item]:
    """(raw memories, where they stand) by character. Raises InputError naming record and field."""

    def read(record: Any, where: str) -> tuple[str, Item]:
        return checked(RawCharacter, record, where).profile.name.strip(), (record, where)

    content = read_json(path)
    if isinstance(content, dict):
        return {name.strip(): (record, f"{path}: {name}") for name, record in content.items()}
    if not isinstance(content, list):
        expected = "expected a list or an object of characters"
        raise InputError(f"{path}: {expected}, found {content!r:.40}")
    found = ((record, f"{path}: record {i}") for i, record in enumerate(content))
    return dict(skips.each(read, found))


def read_events(record: Any, where: str, rules: Rules) -> list[Event]:
    """The events of a character in the file's order: what happened, then what was said."""
    raw = checked(_RawMemories, record, where)
    talks = {n: list(_blocks(d, f"{where}: {n}", rules.line)) for n, d in raw.dialogues.items()}
    owners = {}
    for name, dialogue in raw.dialogues.items():  # what its field `events` names, or its own name
        named = (one for one in REFERENCE.findall(str(dialogue.events or "")) if one in raw.events)
        owners[name] = next(named, name.partition("#")[0])
    built = []
    for name, event in raw.events.items():
        own = tuple(d for d in raw.dialogues if rules.owns(name, d, owners[d]))
        said = [block for dialogue in own for block in talks[dialogue]]
        parts = [f"Summary: {event.summary}", f"Content: {event.content}"]
        parts += [TALKS, *said] if said else []
        built.append(Event(name, str(event.date or "some time ago"), "\n\n".join(parts), own))
    return built


def _blocks(dialogue: _RawDialogue, where: str, line: Callable[[str], str]) -> Iterator[str]:
    """The dialogue's parts, each under its time where there is one; `line` shows a message."""
    contents = dialogue.contents or {}
    for when, value in contents.items() if isinstance(contents, dict) else [("", contents)]:
        if messages := list(_messages(value, where)):
            shown = filter(None, map(line, messages))
            yield "\n".join([when, *shown] if when else shown)


def _messages(value: Any, where: str) -> Iterator[str]:
    """The messages of a text, a list, or lists in lists, without blank ones."""
    if isinstance(value, list):
        for inner in value:
            yield from _messages(inner, where)
    elif isinstance(value, str):
        yield from (line for line in value.splitlines() if line.strip())
    elif value is not None:
        raise InputError(f"{where}: contents: expected messages as text, found {value!r:.40}")


def _characters(path: Path, skips: Skips) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """(character, sections, where) from a list of objects or one object."""
    content = read_json(path)
    for i, part in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(part, dict):
            skips.add(f"{path}: record {i}", f"expected an object, found {part!r:.40}")
            continue
        for name, sections in part.items():
            if isinstance(sections, dict):
                yield name.strip(), sections, f"{path}: {name}"
            else:
                skips.add(f"{path}: {name}", f"expected sections, found {sections!r:.40}")


def read_questions(sections: Mapping[str, Any], where: str, skips: Skips) -> list[Asked]:
    """The questions of the three sections, numbered in order.

    One with a null answer, as a failed shortening leaves it, is dropped and counted.
    """
    asked = []
    for section in SECTIONS:
        for number, (key, raw) in enumerate(_pairs(sections.get(section) or [])):
            if isinstance(raw, dict) and "Answer" in raw and raw["Answer"] is None:
                skips.drop("questions with a null answer")
                continue
            here = (raw, f"{where}: {section}: question {number}")
            for row in skips.each(partial(checked, RawQuestion), [here]):
                name = f"{section}-{number}"
                qa = QA(name, html.unescape(row.question), (html.unescape(row.answer),))
                named = REFERENCE.findall(str(row.memory)) if row.memory else [key] * bool(key)
                asked.append(Asked(qa, section, tuple(dict.fromkeys(named))))
    return asked


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """(id or "", raw question) of a section, nested under ids or flat."""
    if isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)
    elif isinstance(value, dict) and "Question" not in value:
        for key, inner in value.items():
            yield from ((key, raw) for raw in (inner if isinstance(inner, list) else [inner]))
    else:
        yield "", value
