"""What each source is about: how its questions are put and scored, by exact name.

One table for readers, methods, the server and the evaluation, so that nobody needs the builders
(`data.sources.SOURCES`) to ask or to score. To add a source: a row here, and a builder there.

>>> TASKS["squad"].metric, task("longmemeval").judge
('contains', 'judge')
>>> metric_of("longmemeval"), metric_of("longmemeval", judged=False)
('judge', 'substring')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from memalpha_kit.errors import InputError, closest
from memalpha_kit.registry import Registry

CLASSIFY = (
    "The core memory holds rules for sorting sentences into numbered classes. Work out what each "
    "class means, decide which one the sentence belongs to, and give that one number in \\boxed{}."
)
CLASSIFY_BY_EXAMPLE = f"{CLASSIFY} The semantic memory is likely to hold labelled examples."
BOOK_SUMMARY = (
    "The core memory holds a summary of the whole book and the other memories hold its details. "
    "Use them to do what is asked."
)
BOOK_ANSWER = "The book is in memory. Give nothing but the answer, in as few words as it takes."
TALKS_ANSWER = (
    "Two people talk to each other over some months. Answer in a few words. If nothing of what you "
    "see tells the answer, say that it is not mentioned."
)

Role = Literal["train", "eval", "ours", "other"]
"""Published training or evaluation source; built from other raw data; not built by the kit."""

Category = Literal["AR", "TTL", "LRU", "CR", ""]
"""As in the paper's tables: accurate retrieval, test-time learning, long-range understanding,
conflict resolution."""


@dataclass(frozen=True)
class Task:
    """How one source is asked and scored.

    `metric` needs no model; "" is none. `judge` is the metric that is used instead where a judge
    can be asked. `question_prefix` stands before every question, with a blank line between.
    """

    name: str
    metric: str
    category: Category = ""
    question_prefix: str = ""
    role: Role = "other"
    judge: str = ""


NOT_MENTIONED = ("not mentioned", "no information available")
"""What a reply to a question of LoCoMo that cannot be answered must say, one of the two."""


_ROWS = (
    Task("squad", "contains", "AR", role="train"),
    Task("hotpotqa", "contains", "AR", role="train"),
    Task("perltqa", "perltqa", "AR", role="train"),
    Task("pubmed-rct", "label", "TTL", CLASSIFY, "train"),
    Task("booksum", "keywords", "LRU", BOOK_SUMMARY, "train"),
    Task("ttl_train", "label", "TTL", CLASSIFY_BY_EXAMPLE, "train"),
    Task("lme_train", "substring", "AR", role="train", judge="judge"),
    # MemoryAgentBench
    Task("ruler_qa1_197K", "substring", "AR", role="eval"),
    Task("ruler_qa2_421K", "substring", "AR", role="eval"),
    Task("longmemeval_s*", "substring", "AR", role="eval", judge="judge"),
    Task("icl_banking77_5900shot_balance", "label", "TTL", CLASSIFY_BY_EXAMPLE, "eval"),
    Task("icl_clinic150_7050shot_balance", "label", "TTL", CLASSIFY_BY_EXAMPLE, "eval"),
    Task("icl_nlu_8296shot_balance", "label", "TTL", CLASSIFY_BY_EXAMPLE, "eval"),
    Task("icl_trec_coarse_6600shot_balance", "label", "TTL", CLASSIFY, "eval"),
    Task("icl_trec_fine_6400shot_balance", "label", "TTL", CLASSIFY, "eval"),
    Task("infbench_sum_eng_shots2", "keywords", "LRU", BOOK_SUMMARY, "eval"),
    *(
        Task(f"factconsolidation_{hops}_{size}", "substring", "CR", role="eval")
        for hops in ("sh", "mh")
        for size in ("6k", "32k", "64k", "262k")
    ),
    Task("trec_coarse", "label", "", CLASSIFY, "ours"),
    Task("trec_fine", "label", "", CLASSIFY, "ours"),
    Task("banking77", "label", "", CLASSIFY_BY_EXAMPLE, "ours"),
    Task("longmemeval", "substring", role="ours", judge="judge"),
    Task("locomo", "locomo", question_prefix=TALKS_ANSWER, role="ours"),
    Task("text", "contains", role="ours"),
    *(Task(f"text-{name}", name, role="ours") for name in ("substring", "keywords", "rouge_l")),
    Task("text-judge", "substring", role="ours", judge="judge"),
    Task("miniature", "substring"),
    # published rows that the kit can ask and score, but does not build
    Task("accurate_retrieval", ""),
    Task("test_time_learning", "label", question_prefix=CLASSIFY_BY_EXAMPLE),
    Task("long_range_understanding", "", question_prefix=BOOK_SUMMARY),
    Task("infbench_qa_eng_shots2", "rouge_l", question_prefix=BOOK_ANSWER),
)
TASKS: dict[str, Task] = {row.name: row for row in _ROWS}


def task(source: str) -> Task:
    """The row of a source. Raises InputError with the closest known name."""
    if source in TASKS:
        return TASKS[source]
    found = f"found {source!r}{closest(source, TASKS)}"
    yours = " (a module of your own, memalpha --extend MODULE ..., adds a row to TASKS)"
    raise InputError(f"source: expected a known name, {found}{yours}")


JUDGED = {"judge": "substring"}
"""Metrics that need a model, and what stands in where neither it nor `Task.metric` is there."""

SCORING: Registry[Callable[[str], str]] = Registry("profile")
"""Scoring profiles by name: each gives the metric of a source, "" for none."""
SCORING.add("fixed", lambda source: task(source).judge or task(source).metric)


def metric_of(source: str, profile: str = "fixed", judged: bool = True) -> str:
    """The name of the metric of a source under a profile of `SCORING`.

    `judged` False: where a judge is needed, the metric that stands in for it, if there is one.
    Raises InputError for an unknown source or profile, naming the closest, and for a source that
    the profile cannot score.
    """
    choose, row = SCORING[profile], task(source)
    name = choose(source)
    if name in JUDGED and not judged:
        name = (name == row.judge and row.metric) or JUDGED[name] or name
    if not name:
        raise InputError(f"source {source}: profile {profile} has no metric for it")
    return name
