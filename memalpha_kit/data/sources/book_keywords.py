"""Keywords of MemoryAgentBench's book summaries, from a file of the published code or a stage.

The file is `{"<row>": {"summary": ..., "keywords": [...]}}`, in which the summary may be the
printed form of an array. The published code attaches the keywords by the row's number, which is
another book's in another revision; here they are found by the summary they were made from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from memalpha_kit.data import stages
from memalpha_kit.data.raw import Row, Text, checked, read_json
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.sources.contexts import parse_list
from memalpha_kit.errors import InputError
from memalpha_kit.text import normalise

KEYWORDS = "memoryagentbench_answers_to_keywords_mapping.json"


class RawEntry(Row):
    """The keywords of one summary."""

    summary: Text
    keywords: list


def keywords_of(summaries: Sequence[tuple[str, ...]], job: Job) -> list[tuple[str, ...] | None]:
    """The keywords of each summary, None where there are none.

    They come from the file `KEYWORDS` in the raw folder or else from the setting `stage`.
    """
    path = job.raw / KEYWORDS
    stored = read_keywords(path) if path.is_file() else {}
    found = [stored.get(summary_key(summary)) or None for summary in summaries]
    lacking = [i for i, words in enumerate(found) if not words]
    if lacking and (stage := stages.chosen(job.config)):
        texts = ["\n\n".join(t.strip() for t in summaries[i] if t.strip()) for i in lacking]
        for i, words in zip(lacking, stage.keywords(texts), strict=True):
            found[i] = words
    return found


def read_keywords(path: Path) -> dict[str, tuple[str, ...]]:
    """Keywords by the key of their summary."""
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected an object, found {type(entries).__name__}")
    found = {}
    for name, raw in entries.items():
        entry = checked(RawEntry, raw, f"{path}: {name}")
        words = (word.strip() for word in entry.keywords if isinstance(word, str))
        found[summary_key(_unprinted(entry.summary))] = tuple(filter(None, words))
    return found


def summary_key(texts: Iterable[str]) -> str:
    """A hash of the words of the texts."""
    return hashlib.sha256(normalise(" ".join(texts)).encode()).hexdigest()


_PRINTED = re.compile(r"array\((\[.*\])(?:, dtype=\w+)?\)", re.DOTALL)


def _unprinted(summary: str) -> list[str]:
    """The texts in the printed form of a list or an array, or the text itself."""
    match = _PRINTED.fullmatch(summary.strip())
    try:
        texts = parse_list(match[1] if match else summary, "")
    except InputError:
        return [summary]
    return [text for text in texts if isinstance(text, str)] or [summary]
