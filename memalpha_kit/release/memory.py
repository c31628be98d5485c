"""How the published memory reacts to calls (`memory.py`, `functions.py`), registered as "release".

Deleting an unknown id succeeds, texts may be blank or any JSON value, search runs while memorising,
insert and update insist on the long type name while delete and search do not, a number is never an
id, and an update may repeat another entry. One defect is not offered: there, success was found by
searching a result text for a phrase.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import Any

from memalpha_kit.entries import Store
from memalpha_kit.method.memory import DELETE, RULES, SEARCH, Request, Rules
from memalpha_kit.records import ToolCall
from memalpha_kit.settings import MemoryConfig
from memalpha_kit.tokens import counter


class ReleasedRules(Rules):
    """The published code's rules where they differ."""

    def offered(self, config: MemoryConfig) -> tuple[str, ...]:
        """Search is, in every mode."""
        return (*config.tools, SEARCH)

    def takes_short_names(self, call: ToolCall, config: MemoryConfig) -> bool:
        """Only delete and search do."""
        return call.name in (DELETE, SEARCH)

    def entry_id(self, entries: Store, call: ToolCall) -> tuple[str, str | None]:
        """An id must be text, and a delete never fails for its id."""
        value = call.arguments.get("memory_id")
        there = isinstance(value, str) and entries.get(value) is not None
        return ("" if there or call.name == DELETE else "not_found"), value if there else None

    def text(self, value: Any) -> str:
        """Any JSON value is taken; others than text are stored as their JSON."""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def is_blank(self, text: str) -> bool:
        """No text is."""
        return False

    def same(self, before: str, after: str) -> bool:
        """An update that changes nothing succeeds."""
        return False

    def repeats(self, entries: Store, request: Request) -> bool:
        """Only the very same text is a duplicate, and for an update nobody looks."""
        same = (entry.text == request.text for entry in entries.alike(request.text))
        return request.id is None and any(same)

    def fit_core(self, text: str, config: MemoryConfig) -> str:
        """Words are dropped from the end and the rest is joined with single spaces.

        So line breaks are lost, a text without spaces vanishes, and the limit may be missed by a
        token.
        """
        limit, counts = config.core_limit_tokens, counter(config.counter)
        if counts.count(text) <= limit:
            return text
        kept, notice = text.split(), self.notice(limit)
        room, sizes = limit - counts.count(notice), range(len(kept) + 1)
        n = bisect_right(sizes, room, key=lambda n: counts.count(" ".join(kept[:n])))
        return " ".join(kept[: max(0, n - 1)]) + notice


RULES.add("release", ReleasedRules())
