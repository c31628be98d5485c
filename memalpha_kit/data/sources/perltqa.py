"""PerLTQA (Du et al., 2024): the events of a person's life, with the talks about them.

Two raw files, lists as first published or objects by character as in version 2:

    perltmem_en.json: [{"profile": {"Protagonist": "Ila Brandt"},
        "events": {"7_0_0": {"content": ..., "summary": ..., "Creation Time": "March 3, 2023"}},
        "dialogues": {"7_0_0#0": {"events": "7_0_0",
                                  "contents": {"2023-03-03 10:00": ["Oskar: Note: water."]}}}}]
    perltqa_en.json: [{"Ila Brandt": {"events": [{"7_0_0": [
        {"Question": ..., "Answer": "Forty", "Reference Memory": "['7_0_0']"}]}]}}]

An instance is a character and a chunk is an event with its dialogues. Laws: every message is in a
chunk (D10a), of its own event only (D10b); a question stays only if the memories that it refers to
are in the chunks (D10d). With `stage` answers are shortened and checked; groups are characters.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memalpha_kit.data import stages
from memalpha_kit.data.chunks import pack_sentences
from memalpha_kit.data.sources.building import Skips, draw, generator, raw_file, read_json, take
from memalpha_kit.data.stages import Stage
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter

MEMORIES, QUESTIONS = FILES = ("perltmem_en*.json", "perltqa_en*.json")
SECTIONS = ("social_relationship", "events", "dialogues")  # questions about `profile` are not asked
OPENING = "{user} tells about something that happened: {date}."
TALKS = "This is what was said about it:"
REFERENCE = re.compile(r"[^\s'\"\[\](),;]+")


@dataclass(frozen=True)
class Dialogue:
    """A dialogue about an event: (timestamp or "", messages) for each of its parts."""

    id: str
    parts: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Event:
    """An event of a character's life with its dialogues."""

    id: str
    date: str
    summary: str
    content: str
    dialogues: tuple[Dialogue, ...]


@dataclass(frozen=True)
class Asked:
    """A question and the ids of the memories that it refers to."""

    qa: QA
    section: str
    references: tuple[str, ...]


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """One instance per character with questions, in the order of the question file.

    Characters with more than `event_max_chunks` chunks are dropped, and those that keep fewer than
    `min_kept_questions`. Raises InputError if no instance is left.
    Source: data.md 2.5. Differs: D10a to D10f; answers without a stage are as in the file. With
    compat "release" a message with a second ": " is lost, an event also takes the dialogues of
    events whose id starts like its own, chunks are not decoded or limited, and every question of
    the three sections is asked.
    """
    paths = [raw_file(raw, name) for name in FILES]
    memories = read_memories(paths[0], skips)
    stage = stages.chosen(config)
    built: list[Instance] = []
    for user, sections, where in _characters(paths[1], skips):
        if config.instances and len(built) == config.instances:
            break
        if user not in memories:
            skips.drop("characters without memories")
            continue
        try:
            events = read_events(*memories[user], config)
            asked = read_questions(sections, where, skips)
        except InputError as error:
            skips.failed(error)
            continue
        instance = _instance(user, events, asked, stage, config, seed, skips)
        if instance is not None:
            built.append(instance)
    if not built:
        raise InputError(f"{paths[1]}: expected a character with events and questions, found none")
    return built


def _instance(
    user: str,
    events: Sequence[Event],
    asked: Sequence[Asked],
    stage: Stage | None,
    config: BuildConfig,
    seed: int,
    skips: Skips,
) -> Instance | None:
    chunks = [(event, chunk) for event in events for chunk in render(user, event, config)]
    if not chunks:
        skips.drop("characters without events")
        return None
    if len(chunks) > config.event_max_chunks:
        skips.drop("characters with too many chunks")
        return None
    where: dict[str, set[int]] = {}
    for number, (event, _) in enumerate(chunks):
        for name in (event.id, *(dialogue.id for dialogue in event.dialogues)):
            where.setdefault(name, set()).add(number)
    if config.compat == "fixed":
        covered = [q for q in asked if q.references and all(r in where for r in q.references)]
        skips.drop("questions about memories that are not shown", len(asked) - len(covered))
        asked = covered
    texts = [chunk for _, chunk in chunks]
    asked, kept = _staged(texts, asked, stage, config, skips)
    drawn = draw(asked, config.max_questions, generator(seed, "perltqa", user, "questions"))
    skips.drop("questions above the limit, sampled away", len(asked) - len(drawn))
    asked = drawn
    if len(asked) < config.min_kept_questions or not asked:
        skips.drop("characters with too few questions")
        return None
    return make_instance(
        "perltqa",
        texts,
        [replace(q.qa, chunk=_only(q.references, where)) for q in asked],
        metadata={
            "groups": [f"perltqa:{user}"],
            "titles": [user],
            "dates": [event.date for event, _ in chunks],
            "evidence": [", ".join(q.references) for q in asked],
            "memory_types": [q.section for q in asked],
            "kept_whole": [q.qa.id for q in asked if q.qa.id in kept],
        },
    )


def _only(references: Iterable[str], where: Mapping[str, set[int]]) -> int | None:
    """The one chunk with the references, or None if there are several or none."""
    chunks = set().union(*(where.get(name, ()) for name in references))
    return chunks.pop() if len(chunks) == 1 else None


def _staged(
    chunks: Sequence[str],
    asked: Sequence[Asked],
    stage: Stage | None,
    config: BuildConfig,
    skips: Skips,
) -> tuple[list[Asked], set[str]]:
    """The questions that the chunks answer, answers shortened; ids of those that stayed whole."""
    if stage is None:
        return list(asked), set()
    short = stage.shorten([(q.qa.question, q.qa.answers[0]) for q in asked])
    pairs = [(q.qa.question, s.text) for q, s in zip(asked, short, strict=True)]
    golds = stage.answerable("\n\n".join(chunks), pairs)
    skips.drop("questions that the chunks do not answer", golds.count(""))
    skips.drop("questions whose answerability check failed", golds.count(None))
    kept = {q.qa.id for q, s in zip(asked, short, strict=True) if not s.shortened}
    return [
        replace(q, qa=replace(q.qa, answers=(gold,)))
        for q, gold in zip(asked, golds, strict=True)
        if gold
    ], kept


# --- Chunks --------------------------------------------------------------------------------------


def render(user: str, event: Event, config: BuildConfig) -> list[str]:
    """The event as a chunk; as several, each with the opening line, if it is above the limit."""
    release = config.compat == "release"
    opening = OPENING.format(user=user, date=event.date)
    blocks = [f"Summary: {event.summary}", f"Content: {event.content}"]
    talks = [block for d in event.dialogues for block in _blocks(d, release)]
    body = "\n\n".join([*blocks, *([TALKS, *talks] if talks else [])])
    if release:
        return [f"{opening}\n\n{body}"]
    opening, measure = html.unescape(opening), counter(config.counter)
    room = max(config.chunk_max_tokens - measure.count(f"{opening}\n\n"), 1)
    pieces = pack_sentences(html.unescape(body), measure, room)
    return [f"{opening}\n\n{piece}" for piece in pieces]


def _blocks(dialogue: Dialogue, release: bool) -> Iterator[str]:
    for when, messages in dialogue.parts:
        lines = [line for message in messages if (line := _line(message, release))]
        yield "\n".join([when, *lines] if when else lines)


def _line(message: str, release: bool) -> str:
    """`<Speaker> text`; what has no speaker as it is."""
    if release and message.count(": ") != 1:
        return ""
    speaker, colon, text = message.partition(": ")
    return f"<{speaker.strip()}> {text.strip()}" if colon else message.strip()


# --- Reading memories ----------------------------------------------------------------------------


def read_memories(path: Path, skips: Skips) -> dict[str, tuple[dict, str]]:
    """(raw record, where it stands) by character, from a list or an object.

    Raises InputError naming record and field.
    """
    content = read_json(path)
    if isinstance(content, dict):
        rows = [((record, name), f"{path}: {name}") for name, record in content.items()]
    elif isinstance(content, list):
        rows = [((record, ""), f"{path}: record {i}") for i, record in enumerate(content)]
    else:
        raise InputError(f"{path}: expected a list or an object of characters, found {content!r}")
    return dict(skips.each(_read_memory, rows))


def _read_memory(row: tuple[Any, str], where: str) -> tuple[str, tuple[dict, str]]:
    record, name = row
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object, found {record!r:.40}")
    if not name:
        profile = take(record, "profile", dict, where)
        name = take(profile, "Protagonist", str, f"{where}: profile")
    return name.strip(), (record, where)


def read_events(record: Mapping[str, Any], where: str, config: BuildConfig) -> list[Event]:
    """The events of a record in its order, each with its dialogues."""
    events = _by_id(record.get("events") or {}, f"{where}: events")
    raw = _by_id(record.get("dialogues") or {}, f"{where}: dialogues")
    dialogues = {name: _dialogue(name, d, f"{where}: {name}") for name, d in raw.items()}
    owners = {name: owner(name, d, events) for name, d in raw.items()}
    release = config.compat == "release"
    return [
        Event(
            name,
            str(event.get("Creation Time") or "some time ago"),
            take(event, "summary", str, f"{where}: {name}"),
            take(event, "content", str, f"{where}: {name}"),
            tuple(
                dialogue
                for key, dialogue in dialogues.items()
                if (key.startswith(name) if release else owners[key] == name)
            ),
        )
        for name, event in events.items()
    ]


def owner(name: str, dialogue: Mapping[str, Any], events: Mapping[str, Any]) -> str:
    """The event of a dialogue: what its field `events` names, else its id before the `#`."""
    named = dialogue.get("events")
    for reference in REFERENCE.findall(str(named)) if named else ():
        if reference in events:
            return reference
    return name.partition("#")[0]


def _by_id(value: Any, where: str) -> dict[str, dict]:
    """Objects by id, from an object or from a list of such objects."""
    parts = value if isinstance(value, list) else [value]
    found: dict[str, dict] = {}
    for part in parts:
        if not isinstance(part, dict) or not all(isinstance(v, dict) for v in part.values()):
            raise InputError(f"{where}: expected objects by id, found {part!r:.40}")
        found |= part
    return found


def _dialogue(name: str, raw: Mapping[str, Any], where: str) -> Dialogue:
    contents = raw.get("contents") or {}
    parts = contents.items() if isinstance(contents, dict) else [("", contents)]
    read = [(when, tuple(_messages(value, where))) for when, value in parts]
    return Dialogue(name, tuple((when, messages) for when, messages in read if messages))


def _messages(value: Any, where: str) -> Iterator[str]:
    """The messages of a text, a list, or lists in lists; blank ones are none."""
    if isinstance(value, list):
        for inner in value:
            yield from _messages(inner, where)
    elif isinstance(value, str):
        yield from (line for line in value.splitlines() if line.strip())
    elif value is not None:
        raise InputError(f"{where}: contents: expected messages as text, found {value!r:.40}")


# --- Reading questions ---------------------------------------------------------------------------


def _characters(path: Path, skips: Skips) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """(character, sections, where) from a list of objects or one object."""
    content = read_json(path)
    parts = content if isinstance(content, list) else [content]
    for i, part in enumerate(parts):
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

    One with a null answer, as a failed shortening leaves it, is dropped and counted (D10e).
    """
    asked = []
    for section in SECTIONS:
        here = f"{where}: {section}"
        for number, (key, raw) in enumerate(_pairs(sections.get(section) or [], here)):
            if isinstance(raw, dict) and "Answer" in raw and raw["Answer"] is None:
                skips.drop("questions with a null answer")
                continue
            there = f"{here}: question {number}"
            try:
                question = take(raw, "Question", str, there)
                answer = take(raw, "Answer", str, there)
            except InputError as error:
                skips.failed(error)
                continue
            qa = QA(f"{section}-{number}", html.unescape(question), (html.unescape(answer),))
            named = raw.get("Reference Memory")
            ids = tuple(
                dict.fromkeys(REFERENCE.findall(str(named)) if named else [key] * bool(key))
            )
            asked.append(Asked(qa, section, ids))
    return asked


def _pairs(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(id or "", raw question) of a section, nested under ids or flat."""
    if isinstance(value, list):
        for inner in value:
            yield from _pairs(inner, where)
    elif isinstance(value, dict) and "Question" not in value:
        for key, inner in value.items():
            for raw in inner if isinstance(inner, list) else [inner]:
                yield key, raw
    else:
        yield "", value
