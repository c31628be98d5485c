"""Which metric a source has in the published scorers, which disagree with each other.

`release-agent` is the scorer of agents (`evaluate_agent_results.py`), `release-baseline` that of
baselines (`long_context_eval.py`), `release-training` the reward of training
(`verl/workers/reward_manager/naive.py`); `memoryagentbench` has the benchmark's own rules. Sources
of ours are scored as what they stand for. Differs: a name is looked up and never guessed from a
part of it.

>>> SCORING["release-baseline"]("ruler_qa1_197K")
'contains@release'
"""

from __future__ import annotations

from functools import partial

from memalpha_kit.tasks import JUDGED, SCORING, TASKS

PROFILES = ("release-agent", "release-baseline", "release-training", "memoryagentbench")

JUDGED |= {
    "judge@release": "substring@release",
    "judge@memoryagentbench": "substring",
    "infbench_f1@memoryagentbench": "",
}

_SUBSTRING, _CONTAINS, _LABEL = "substring@release", "contains@release", "label@release"
_KEYWORDS, _JUDGE = "keywords@release", "judge@release"
_EXACT = "exact@memoryagentbench"


def _same(metric: str, benchmark: str = "") -> tuple[str, ...]:
    return metric, metric, metric, benchmark


_ICL = (_LABEL, "label@release-baseline", "label@release-training", _EXACT)
_OURS = (_LABEL, "label@release-baseline", _LABEL, _EXACT)  # texts as gold
_RULER = (_SUBSTRING, _CONTAINS, _SUBSTRING, "substring")
_LONGMEMEVAL = (_JUDGE, _JUDGE, _SUBSTRING, "judge@memoryagentbench")
_BOOKS = (_KEYWORDS, _KEYWORDS, "rouge_l@release", "infbench_f1@memoryagentbench")

METRICS: dict[str, tuple[str, ...]] = {
    "squad": _same(_CONTAINS),
    "hotpotqa": _same(_CONTAINS),
    "perltqa": _same("perltqa@release"),
    "pubmed-rct": _same(_LABEL),
    "booksum": (_KEYWORDS, _KEYWORDS, "keywords@release-training", ""),
    "ttl_train": (_SUBSTRING, _SUBSTRING, _LABEL, ""),
    "lme_train": (_JUDGE, _SUBSTRING, _JUDGE, ""),
    "longmemeval_s*": _LONGMEMEVAL,
    "ruler_qa1_197K": _RULER,
    "ruler_qa2_421K": _RULER,
    "infbench_sum_eng_shots2": _BOOKS,
    **{name: _ICL for name in TASKS if name.startswith("icl_")},
    **{name: _same(_SUBSTRING, "substring") for name in TASKS if name.startswith("factconsol")},
    "trec_coarse": _OURS,
    "trec_fine": _OURS,
    "banking77": _OURS,
    "longmemeval": _LONGMEMEVAL,
    "miniature": _same(_SUBSTRING, "substring"),
    # not built by the kit
    "infbench_qa_eng_shots2": _same("rouge_l@release"),
    "test_time_learning": (_SUBSTRING, _LABEL, _SUBSTRING, ""),
}
"""The metrics of each source in the order of `PROFILES`; "" where that scorer has none."""


def _metric(source: str, column: int) -> str:
    return METRICS.get(source, ("",) * len(PROFILES))[column]


for _column, _profile in enumerate(PROFILES):
    SCORING.add(_profile, partial(_metric, column=_column))
