"""What the published memory server shows with a question (`memory_server.py`).

The query prompt is part of the query; entries stand in the order of their rank; both stores are cut
to the same number of entries, the largest whose system text has at most the budget, only the system
text is counted, and exactly the budget is too much. A search has no budget, and its last request
leaves thinking to the model. Not repeated: failing all questions because one does not fit, and
error texts as answers.
"""

from __future__ import annotations

from memalpha_kit.method.prompts import Retrieved
from memalpha_kit.method.ranking import search
from memalpha_kit.method.retrieval import (
    VIEWS,
    Ranked,
    Retrieval,
    Unanswerable,
    View,
    by_list,
    by_rank,
    most,
)
from memalpha_kit.records import Entry


class ReleasedView(View):
    """The memory as the published server shows it."""

    methods = ("bm25",)
    answers_thinking = False

    @staticmethod
    def search_budget(retrieval: Retrieval) -> float:
        """There is none."""
        return float("inf")

    def query(self, question: str, user: str) -> str:
        """The whole user message; a blank one finds nothing."""
        return user

    def rank(self, store: str, query: str, k: int) -> list[Entry]:
        """By `rank_bm25`, without a minimum score."""
        return [entry for entry, _ in search(self.memory, store, query, k, "release")]

    def fit(self, best: dict[str, list[Entry]], user: str) -> Retrieved:
        """Both stores cut to the same k, at least 1. Raises Unanswerable."""
        limit = self.retrieval.budget_tokens

        def first(k: int) -> Ranked:
            return by_rank({store: entries[:k] for store, entries in best.items()})

        kept = first(max(1, most(self.retrieval.top_k, lambda k: self.fits(first(k), limit))))
        if not self.fits(kept, limit - 1):
            size = self.counter.count(self.text(kept))
            raise Unanswerable(f"system message: expected less than {limit} tokens, found {size}")
        return self.arranged(kept)

    def arranged(self, ranked: Ranked) -> Retrieved:
        """These entries, best first."""
        return self.retrieved(by_list(ranked), ranked)


VIEWS.add("release", ReleasedView)
