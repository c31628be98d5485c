"""Where wrong answers come from: the first place at which the evidence was lost.

The one law: a stage is a statement about the evidence, so an answer gets one only where the data
says what the evidence is; everything else is `unknown` and counted, never guessed.

| stage | the answer was wrong, and |
| --- | --- |
| `never_written` | no memory of the episode ever held the evidence |
| `overwritten_or_deleted` | a memory held it, the final one does not |
| `not_retrieved` | the final memory holds it, the reader was not given it |
| `not_used` | the reader was given it and answered something else |
| `unknown` | no evidence label, or no answer, or no score: `why` says which |

and `correct`. Evidence is the gold answer in the words of the data: it must stand in the question's
chunk (`QA.chunk`), or in any chunk where the data has no such label. A text holds it if it has all
words of the answer and was written with that chunk, or shares a word with the question, or is a
later version of a text that held it. With `strict` it must have all words of the question: for
worlds in which the evidence of a corrected fact is its latest value, and other facts share words.

The published code has no such analysis. Words are compared, not meanings: a paraphrase of
the evidence counts as never written, so read that share as an upper bound.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import pandas as pd

from memalpha_kit.errors import InputError
from memalpha_kit.method.blame import changes
from memalpha_kit.method.memory import empty
from memalpha_kit.records import QA, Answer, Episode, Instance
from memalpha_kit.tasks import metric_of
from memalpha_kit.text import normalise

WRITTEN, KEPT = "never_written", "overwritten_or_deleted"
RETRIEVED, USED = "not_retrieved", "not_used"
STAGES = ("correct", WRITTEN, KEPT, RETRIEVED, USED, "unknown")
CORE = "core"  # the id of the core memory among those of the entries


@dataclass(frozen=True)
class Finding:
    """The stage of one answer. `evidence` is the label it rests on: chunk, text, or "" for none.

    `written` is the step at which the evidence was first in memory, `lost` the first without it.
    """

    stage: str
    evidence: str = ""
    written: int | None = None
    lost: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Version:
    """One text that an id had, as its words, from `step` on."""

    name: str
    text: str
    words: frozenset[str]
    step: int


class History:
    """What an episode's memory held after each step; made once and asked for every question.

    `chunks` are those read before each step, `versions` the texts of each id in turn (the core
    memory's under `CORE`). What stays as it was is not looked at.
    """

    def __init__(self, episode: Episode) -> None:
        self.chunks = [step.chunk for step in episode.steps]
        self.versions: dict[str, list[Version]] = {}
        self._texts: dict[str, list[tuple[int, str | None]]] = {}  # of an id, each from a step on
        before = empty(episode.memory_config)
        for number, step in enumerate(episode.steps):
            for part, name, _, text in changes(before, step.memory):
                if part == name != CORE:  # a paragraph of a user's
                    continue
                self._texts.setdefault(name, []).append((number, text))
                past = self.versions.setdefault(name, [])
                if text is not None and (not past or past[-1].text != text):
                    past.append(Version(name, text, frozenset(_plain(text)), number))
            before = step.memory

    def holds(self, step: int, version: Version) -> bool:
        """Whether this very text is in memory after a step."""
        past = self._texts[version.name]
        place = bisect_right(past, step, key=itemgetter(0))
        return place > 0 and past[place - 1][1] == version.text


def stage(
    history: History,
    instance: Instance,
    answer: Answer,
    shown: Collection[str],
    strict: bool = False,
) -> Finding:
    """The stage of one scored answer; `shown` are the ids that the reader was given."""
    (qa,) = (qa for qa in instance.questions if qa.id == answer.qa)
    if answer.prediction is None or answer.score is None:
        return Finding("unknown", why="no answer" if answer.prediction is None else "no score")
    if answer.score >= 1.0 - 1e-6:  # a half right answer has a stage too
        return Finding("correct")
    wanted = _wanted(qa, instance, metric_of(instance.source, judged=False))
    if isinstance(wanted, str):
        return Finding("unknown", why=wanted)
    label = "text" if qa.chunk is None else "chunk"
    traces = [
        _trace([_held(part, qa, history, strict) for part in parts], history, shown)
        for parts in wanted
    ]
    reached, written, lost = max(traces, key=lambda trace: STAGES.index(trace[0]))
    return Finding(reached, label, written, lost)


_NAMES = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {name: str(number) for number, name in enumerate(_NAMES.split())}


@lru_cache(maxsize=65536)
def _plain(text: str) -> tuple[str, ...]:
    """The normalised words of a text, without accents, number words as digits."""
    letters = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return tuple(_NUMBERS.get(word, word) for word in normalise(bare).split())


_COMMON = """
what is of who whom whose where when which why how did does do was were are am be been has have had
in on at to for by with from and or as it its that this these those i me my you your he she they his
her their we our not can could will would should
"""
_FUNCTION_WORDS = frozenset(_COMMON.split())
Parts = tuple[tuple[str, ...], ...]
"""The words of each thing that an answer consists of."""


def _wanted(qa: QA, instance: Instance, metric: str) -> list[Parts] | str:
    """The accepted answers that stand in the evidence, each as its parts; or why there are none."""
    if metric in ("keywords", "rouge_l"):
        return "the evidence of a summary is the whole text"
    if qa.id.endswith("_abs"):
        return "the question has no answer, so there is no evidence"
    if metric == "label":
        return "the evidence of a class is all its examples"
    chunks = instance.chunks if qa.chunk is None else instance.chunks[qa.chunk : qa.chunk + 1]
    texts = [" ".join(_plain(chunk)) for chunk in chunks]
    answers = [a.split(";") if metric == "perltqa" else [a] for a in qa.answers]
    found = [tuple(filter(None, map(_plain, parts))) for parts in answers]
    if any(part in (("yes",), ("no",)) for parts in found for part in parts):
        return "the answer is yes or no"

    def stands(part: Sequence[str]) -> bool:
        wanted = re.compile(rf"(?<!\S){re.escape(' '.join(part))}(?!\S)")
        return any(wanted.search(text) for text in texts)

    standing = [parts for parts in found if parts and all(map(stands, parts))]
    where = "any chunk" if qa.chunk is None else f"chunk {qa.chunk}"
    return standing or f"the answer does not stand in {where} in these words"


def _held(part: tuple[str, ...], qa: QA, history: History, strict: bool) -> list[Version]:
    """All versions that hold this part of the evidence."""
    asked = {word for word in _plain(qa.question) if word not in _FUNCTION_WORDS} - set(part)
    found = []
    for past in history.versions.values():
        held = False
        for version in past:
            there = version.words.issuperset(part)
            if strict:
                held = there and version.words.issuperset(asked)
            elif there and not held:
                read = history.chunks[version.step : version.step + 1]
                held = qa.chunk in read or not asked or not version.words.isdisjoint(asked)
            else:
                held = there
            if held:
                found.append(version)
    return found


def _trace(
    parts: Sequence[Sequence[Version]], history: History, shown: Collection[str]
) -> tuple[str, int | None, int | None]:
    """(stage, step written, step lost) of an answer, of each part of which these versions tell."""
    if not all(parts):
        return WRITTEN, None, None
    written = max(min(version.step for version in part) for part in parts)

    def held(step: int) -> bool:
        return all(any(history.holds(step, version) for version in part) for part in parts)

    last = len(history.chunks) - 1
    while last >= written and not held(last):
        last -= 1
    if last < len(history.chunks) - 1:
        return KEPT, written, last + 1
    given = all(any(v.name in shown and history.holds(last, v) for v in part) for part in parts)
    return (USED if given else RETRIEVED), written, None


ROWS = [
    *("source", "writer", "reader", "instance", "rollout", "qa", "score", "stage", "evidence"),
    *("written", "lost", "why"),
]


def waterfall(
    episodes: Iterable[Episode],
    instances: Iterable[Instance],
    reader: str = "",
    core_read: bool = True,
    strict: bool = False,
) -> pd.DataFrame:
    """One row per answer of the episodes with its stage, columns `ROWS`.

    `core_read`: the reader is given the core memory with every question, as models are; readers
    without a model look at it only if no entry fits. Raises InputError if an episode's instance is
    missing.
    """
    by_id = {instance.id: instance for instance in instances}
    rows = []
    for episode in episodes:
        if episode.instance not in by_id:
            raise InputError(f"episode {episode.id}: its instance is not in the data")
        history, instance = History(episode), by_id[episode.instance]
        named: dict[str, Any] = {
            **{"source": episode.source, "writer": episode.writer, "reader": reader},
            **{"instance": episode.instance, "rollout": episode.rollout},
        }
        for answer in episode.answers:
            core = {CORE} if core_read or not answer.retrieved else set()
            found = stage(history, instance, answer, core | set(answer.retrieved), strict)
            rows.append(named | {"qa": answer.qa, "score": answer.score, **vars(found)})
    table = pd.DataFrame(rows, columns=ROWS)
    return table.astype({"written": "Int64", "lost": "Int64", "score": "float"})


def table_waterfall(rows: pd.DataFrame) -> pd.DataFrame:
    """Tidy counts from `waterfall`: a row per source, writer, reader and stage, all stages.

    `answers` is the number of all answers of the group, `n` those of the stage, `share` n of them.
    """
    group = ["source", "writer", "reader"]
    stages = pd.Categorical(rows["stage"], STAGES, ordered=True)
    counts = rows.assign(stage=stages).groupby([*group, "stage"], observed=False, sort=False).size()
    table = counts.rename("n").reset_index()
    table["answers"] = table.groupby(group, sort=False)["n"].transform("sum")
    table = table[table["answers"] > 0].sort_values([*group, "stage"], ignore_index=True)
    return table.assign(share=table["n"] / table["answers"])
