"""The external memory: apply a call, measure it, rank its entries.

The one law: `apply` is a pure function and never raises for what a model wrote, so folding it over
an episode's calls (`replay`) gives the episode's memory, byte for byte.

Arguments of a call are those of the tool schemas (`memory_type` with its long name, `content` or
`new_content`, `memory_id`). `behaviour="release"` is what the published code does (method.md 1.4,
2.2): deleting an unknown id succeeds, content may be blank or any JSON value, search runs while
memorising, insert and update insist on the long type name. One defect is not offered: there,
success was found by searching a result text (D30).

>>> call = ToolCall("new_memory_insert", {"memory_type": "semantic_memory", "content": "Bees hum."})
>>> memory, call = apply(empty(MemoryConfig()), call, MemoryConfig())
>>> memory.semantic, call.status
((Entry(id='1', text='Bees hum.'),), 'ok')
"""

from __future__ import annotations

import collections
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from memalpha_kit.records import STORES, Entry, Memory, ToolCall
from memalpha_kit.settings import MemoryConfig
from memalpha_kit.tokens import Counter, counter

COMPONENTS = ("core", *STORES)
"""The three parts of a memory, in the order in which they are always listed."""


@dataclass(frozen=True)
class Tool:
    """What a tool takes: the components it works on and the argument that holds its text."""

    components: tuple[str, ...]
    text: str | None = None  # None: no text is needed
    takes_id: bool = False  # needed for the stores, ignored for core

    @property
    def required(self) -> tuple[str, ...]:
        """Arguments that must be there whatever the component is."""
        return ("memory_type",) if self.text is None else ("memory_type", self.text)


INSERT, UPDATE, DELETE = "new_memory_insert", "memory_update", "memory_delete"
SEARCH = "search_memory"
TOOLS = {
    INSERT: Tool(STORES, "content"),
    UPDATE: Tool(COMPONENTS, "new_content", takes_id=True),
    DELETE: Tool(COMPONENTS, takes_id=True),
    SEARCH: Tool(STORES, "query"),
}


# --- Applying calls ------------------------------------------------------------------------------


def empty(config: MemoryConfig) -> Memory:
    """A memory with nothing in it; components that are switched off are None."""
    return Memory(
        core="" if config.core else None,
        semantic=() if config.semantic else None,
        episodic=() if config.episodic else None,
    )


def apply(memory: Memory, call: ToolCall, config: MemoryConfig) -> tuple[Memory, ToolCall]:
    """The memory after `call`, and the call with its status: ok, skipped or rejected.

    A malformed call comes back as it is. A call that was applied before is applied afresh, so
    saved calls can be replayed. Extra arguments are ignored. Checks are made in the order of the
    codes of method.md 2.2; nothing changes unless the status is ok.
    Source: method.md 1.4, 2.2, 5.3.
    """
    if call.status == "malformed":
        return memory, call
    code = _refusal(memory, call, config)
    if code:
        return memory, replace(call, status="rejected", detail=code)
    changed = _execute(memory, call, config)
    if changed is None:
        return memory, replace(call, status="skipped", detail="duplicate")
    return changed, replace(call, status="ok", detail="")


def replay(calls: Iterable[ToolCall], config: MemoryConfig) -> Memory:
    """The memory that `calls` build from nothing; malformed ones change nothing."""
    memory = empty(config)
    for call in calls:
        memory, _ = apply(memory, call, config)
    return memory


def tokens(memory: Memory, counter: Counter) -> int:
    """Tokens of the core and of every entry, counted one by one; ids are not counted.

    Source: method.md 1.2.
    """
    texts = [entry.text for _, entry in memory.entries()]
    return sum(counter.count(text) for text in (memory.core or "", *texts))


def _refusal(memory: Memory, call: ToolCall, config: MemoryConfig) -> str:
    """Why the call may not run, as a code of method.md 2.2; "" if it may."""
    fixed = config.behaviour == "fixed"
    tool, arguments = TOOLS.get(call.name), call.arguments
    if tool is None:
        return "unknown_tool"
    if call.name == SEARCH and fixed:
        return "not_offered"
    if any(name not in arguments for name in tool.required):
        return "missing_argument"
    text = arguments[tool.text] if tool.text else None
    if not isinstance(arguments["memory_type"], str):
        return "bad_type"
    if fixed and tool.text and not isinstance(text, str):
        return "bad_type"
    component = _component(call, config)
    if component is None:
        return "bad_memory_type"
    if getattr(memory, component) is None:
        return "disabled"
    if component not in tool.components:  # core, which can neither grow nor be searched
        return "core_insert" if call.name == INSERT else "bad_memory_type"
    code = _id_refusal(memory, call, component, fixed) if tool.takes_id else ""
    return code or ("empty_content" if fixed and tool.text and not text.strip() else "")


def _id_refusal(memory: Memory, call: ToolCall, component: str, fixed: bool) -> str:
    """Why the call's `memory_id` is not the id of an entry of this component; "" if it is one.

    The core needs none. In the release a delete never fails for its id.
    """
    if component == "core" or (call.name == DELETE and not fixed):
        return ""
    if fixed and "memory_id" not in call.arguments:
        return "missing_argument"
    if fixed and _id(call.arguments, fixed) is None:
        return "bad_type"
    ids = {entry.id for entry in getattr(memory, component)}
    return "" if _id(call.arguments, fixed) in ids else "not_found"


def _id(arguments: Mapping[str, Any], fixed: bool) -> str | None:
    """`memory_id` as text. An integer counts as its digits, but was never found in the release."""
    value = arguments.get("memory_id")
    if fixed and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def _component(call: ToolCall, config: MemoryConfig) -> str | None:
    """core, semantic or episodic; None for any other `memory_type`."""
    name = call.arguments["memory_type"]
    short = config.short_types
    if config.behaviour == "release":
        short = call.name in (DELETE, SEARCH)
    known = {f"{component}_memory": component for component in COMPONENTS}
    return known.get(name) or (name if short and name in COMPONENTS else None)


def _execute(memory: Memory, call: ToolCall, config: MemoryConfig) -> Memory | None:
    """The memory after a call that `_refusal` let pass; None if it would store a text twice."""
    fixed = config.behaviour == "fixed"
    component = _component(call, config)
    text = _as_text(call.arguments.get(TOOLS[call.name].text))
    if call.name == SEARCH:
        return memory
    if component == "core":
        core = fit_core(text, config) if call.name == UPDATE else ""
        return replace(memory, core=core)
    store, wanted = getattr(memory, component), _id(call.arguments, fixed)
    if call.name == DELETE:
        return replace(memory, **{component: tuple(e for e in store if e.id != wanted)})
    if call.name == UPDATE:
        repeats = any(e.text == text and e.id != wanted for e in store)
        if repeats and fixed and config.update_duplicate == "skip":
            return None
        changed = (replace(e, text=text) if e.id == wanted else e for e in store)
        return replace(memory, **{component: tuple(changed)})
    if any(e.text == text for e in store):
        return None
    entry = Entry(str(memory.next_id), text)
    return replace(memory, **{component: (*store, entry)}, next_id=memory.next_id + 1)


def _as_text(value: Any) -> str:
    """A string as it is, any other JSON value (release only) as its JSON text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def fit_core(text: str, config: MemoryConfig) -> str:
    """`text`, or its beginning and a notice, in at most `config.core_limit_tokens` tokens.

    Cut at a token boundary, white space kept. The release drops words from the end instead and
    joins the rest with single spaces, which loses line breaks and may miss the limit by a token.
    Source: method.md 1.3, D06.
    """
    limit, counts = config.core_limit_tokens, counter(config.counter)
    if counts.count(text) <= limit:
        return text
    notice = f" [cut after exceeding {limit} tokens]"
    room = limit - counts.count(notice)
    if config.behaviour == "release":
        words = text.split()
        n = bisect_right(
            range(len(words) + 1), room, key=lambda i: counts.count(" ".join(words[:i]))
        )
        return " ".join(words[: max(0, n - 1)]) + notice
    for n in range(room, 0, -1):  # tokens are not additive: the join may cost one more
        if counts.count(cut := counts.cut(text, n) + notice) <= limit:
            return cut
    return counts.cut(text, limit)


# --- Ranking -------------------------------------------------------------------------------------

Idf = Literal["release", "positive"]
Ties = Literal["oldest", "newest"]
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
    """The lower-cased runs of letters, digits and underscores; everything else separates."""
    return tuple(_WORD.findall(text.lower()))


class Bm25:
    """Okapi BM25 over a few texts (k1 1.5, b 0.75), built once and asked often.

    idf "release" is `rank_bm25.BM25Okapi` with its defaults: words in half of the texts weigh
    nothing and, in a store of one entry, less than nothing. "positive" is
    ln(1 + (N - n + 0.5) / (n + 0.5)), which ranks small stores sensibly. Texts without any word
    score 0 (rank_bm25 divides by zero). Source: method.md 1.6, D15.
    """

    def __init__(self, texts: Iterable[str], idf: Idf = "release"):
        documents = [_words(text) for text in texts]
        self.n_texts = len(documents)
        self._weights: dict[str, list[tuple[int, float]]] = {}  # word -> (text, weight)
        self._okapi = None
        if idf == "positive":
            self._weights = _positive_weights(documents)
        elif any(documents):
            from rank_bm25 import BM25Okapi  # imports numpy

            self._okapi = BM25Okapi(documents)

    def scores(self, query: str) -> list[float]:
        """One score per text; a word that the query repeats counts again."""
        if self._okapi is not None:
            return self._okapi.get_scores(_words(query)).tolist()
        scores = [0.0] * self.n_texts
        for word, times in collections.Counter(_words(query)).items():
            for index, weight in self._weights.get(word, ()):
                scores[index] += times * weight
        return scores

    def top(self, query: str, k: int, ties: Ties = "oldest") -> list[int]:
        """Indices of the k best texts, best first. `ties`: which of equal ones comes first."""
        return _best(self.scores(query), k, ties)


def _best(scores: list[float], k: int, ties: Ties) -> list[int]:
    sign = 1 if ties == "oldest" else -1
    return sorted(range(len(scores)), key=lambda i: (-scores[i], sign * i))[: max(0, k)]


def _positive_weights(documents: list[tuple[str, ...]]) -> dict[str, list[tuple[int, float]]]:
    """For every word its weight in every text that holds it, with the idf that stays positive."""
    n, mean = len(documents), sum(map(len, documents)) / max(1, len(documents))
    counts: dict[str, list[tuple[int, int]]] = {}
    for index, words in enumerate(documents):
        for word, times in collections.Counter(words).items():
            counts.setdefault(word, []).append((index, times))
    weights = {}
    for word, found in counts.items():
        idf = math.log(1 + (n - len(found) + 0.5) / (len(found) + 0.5))
        weights[word] = [
            (i, idf * f * 2.5 / (f + 1.5 * (0.25 + 0.75 * len(documents[i]) / mean)))
            for i, f in found
        ]
    return weights


@lru_cache(maxsize=64)
def _index(texts: tuple[str, ...], idf: Idf) -> Bm25:
    """One index per content of a store, reused for all its queries (D14)."""
    return Bm25(texts, idf)


def search(
    memory: Memory,
    store: str,
    query: str,
    k: int,
    idf: Idf = "release",
    min_score: float | None = None,
) -> list[tuple[Entry, float]]:
    """The k entries of "semantic" or "episodic" that fit the query best, with their scores.

    Best first, ties oldest first. Empty for an empty or switched-off store and for a query without
    a word. Ranking only: no minimum score unless one is given (the memory object of the release
    drops scores below 0, D15). Source: method.md 1.6.
    """
    entries = _store(memory, store)
    if not entries or not _words(query):
        return []
    scores = _index(tuple(entry.text for entry in entries), idf).scores(query)
    best = [(entries[i], scores[i]) for i in _best(scores, k, "oldest")]
    return [(e, score) for e, score in best if min_score is None or score >= min_score]


def shown(
    memory: Memory, chunk: str, config: MemoryConfig
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The semantic and the episodic entries that the writer sees with `chunk`.

    At most `config.shown` of each store, always in insertion order. "recent" shows the last ones,
    as the release does; "relevant" those that fit the chunk best (positive idf, ties: the newest),
    so that older entries can be revised too. Source: method.md 1.5, D07.
    """
    semantic, episodic = (_shown(_store(memory, store), chunk, config) for store in STORES)
    return semantic, episodic


def _shown(entries: tuple[Entry, ...], chunk: str, config: MemoryConfig) -> tuple[Entry, ...]:
    if config.display == "recent" or len(entries) <= config.shown:
        return entries[max(0, len(entries) - config.shown) :]
    index = _index(tuple(entry.text for entry in entries), "positive")
    return tuple(entries[i] for i in sorted(index.top(chunk, config.shown, ties="newest")))


def _store(memory: Memory, store: str) -> tuple[Entry, ...]:
    if store not in STORES:
        raise ValueError(f"store: expected one of {STORES}, found {store!r}")
    return getattr(memory, store) or ()
