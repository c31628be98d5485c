"""LongMemEval (Wu et al., 2025): a long dated history of chats and a question about it.

    {"question_id": "e47becba", "question": "What degree did I graduate with?",
     "answer": "Business Administration", "question_date": "2023/05/30 (Tue) 23:40",
     "haystack_dates": ["2023/05/20 (Sat) 02:21", ...], "haystack_sessions": [...], ...}

One record (see dialogues.py) is one instance with one question.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from memalpha_kit.data.sources import dialogues
from memalpha_kit.data.sources.building import Job
from memalpha_kit.records import Instance

FILES = ("longmemeval_s*.json|longmemeval*.json|longmemeval_s|longmemeval_m|longmemeval_oracle",)


def build(job: Job) -> list[Instance]:
    """One instance per record, at most `config.instances`. Nothing is drawn: no seed is used.

    Raises InputError, naming record and field, for one that is missing or has another type.
    """

    def instance(raw: Any, where: str) -> Instance:
        record = dialogues.read_record(raw, where)
        evidence = {i for i, session in enumerate(record.sessions) if session.evidence}
        return dialogues.instance(job, record.sessions, [record], [evidence])

    built = islice(job.read(instance, *FILES, single=True), job.config.instances)
    return job.not_none(list(built), *FILES, "a list of records")
