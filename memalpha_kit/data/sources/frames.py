"""Frames: how content is made to look like one turn of a dated conversation.

    [Dialogue between User and Assistant on 2024-01-01 00:00]
    <User>Please keep the following passages in mind.
    Lake Orvane lies north of Tessin and freezes every winter.
    <Assistant>Noted.

Header and tags are those of the published data; lead-ins and acknowledgements (`frames.json`) and
the reader's request are our own. The day is the chunk's index counted from 2024-01-01; a book is
read on days that are one to three apart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path

FIRST_DAY = date(2024, 1, 1)
POOLS = json.loads(Path(__file__).with_name("frames.json").read_text(encoding="utf-8"))
DOCUMENT_LEAD_INS = tuple(POOLS["document_lead_ins"])
CLASSIFICATION_LEAD_INS = tuple(POOLS["classification_lead_ins"])
ACKNOWLEDGEMENTS = tuple(POOLS["acknowledgements"])
BOOK_REQUEST = (
    "Please remember what was read on {date}: keep the details, and keep a summary of the whole "
    "book that grows with every part."
)


def frame_all(
    contents: Iterable[str], lead_ins: Sequence[str], rng: random.Random
) -> tuple[str, ...]:
    """Each content as what the user said, one a day; lead-in and acknowledgement are drawn."""
    framed = []
    for day, content in enumerate(contents):
        when = (FIRST_DAY + timedelta(days=day)).isoformat()
        said, noted = rng.choice(lead_ins), rng.choice(ACKNOWLEDGEMENTS)
        header = f"[Dialogue between User and Assistant on {when} 00:00]"
        framed.append(f"{header}\n<User>{said}\n{content}\n<Assistant>{noted}")
    return tuple(framed)


def book_frames(contents: Sequence[str], rng: random.Random) -> tuple[list[str], list[str]]:
    """(the parts of a book as the user read them, their days): the first day, then 1 to 3 later."""
    days = [FIRST_DAY]
    while len(days) < len(contents):
        days.append(days[-1] + timedelta(days=rng.randint(1, 3)))
    names = [day.isoformat() for day in days[: len(contents)]]
    return [
        f"[Event happened on {day} The user is reading a book]\n"
        f"<User> {content}\n\n<System> {BOOK_REQUEST.format(date=day)}"
        for content, day in zip(contents, names, strict=True)
    ], names
