"""LongMemEval (Wu et al., 2025): a long dated history of chats and a question about it.

    {"question_id": "e47becba", "question": "What degree did I graduate with?",
     "answer": "Business Administration", "question_date": "2023/05/30 (Tue) 23:40",
     "haystack_dates": ["2023/05/20 (Sat) 02:21", ...], "haystack_sessions": [...], ...}

One record (see dialogues.py) is one instance with one question.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from memalpha_kit.data.sources.building import Skips
from memalpha_kit.data.sources.dialogues import (
    about_questions,
    asked,
    evidence_chunk,
    pack,
    read_record,
)
from memalpha_kit.data.sources.raw import raw_file, rows
from memalpha_kit.errors import InputError
from memalpha_kit.records import Instance, make_instance
from memalpha_kit.settings import BuildConfig

FILES = ("longmemeval_s*.json|longmemeval*.json|longmemeval_s|longmemeval_m|longmemeval_oracle",)


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """One instance per record, at most `config.instances`. Nothing is drawn: `seed` is not used.

    Raises InputError, naming record and field, for one that is missing or has another type.
    """
    records = rows(raw, *FILES, (), skips, single=True)
    built = skips.each(lambda record, where: instance(record, config, where), records)
    if not (instances := list(islice(built, config.instances))):
        raise InputError(f"{raw_file(raw, *FILES)}: expected a list of records, found none")
    return instances


def instance(raw: Any, config: BuildConfig, where: str) -> Instance:
    """The instance of one record; `where` opens the message of every error."""
    record = read_record(raw, where)
    chunks = pack(record.sessions, config)
    evidence = {i for i, session in enumerate(record.sessions) if session.evidence}
    qa = asked(record, evidence_chunk(chunks, record.sessions, evidence), config)
    about = about_questions([record.kind], [record.date])
    return make_instance("longmemeval", [chunk.text for chunk in chunks], [qa], metadata=about)
