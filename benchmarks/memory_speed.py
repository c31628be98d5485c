"""How long changing, searching and reading take, as ratios to the straightforward way.

    python benchmarks/memory_speed.py
    python benchmarks/memory_speed.py --entries 100 1000

The straightforward way is a memory of tuples and `rank_bm25` made anew for every query, as in the
published `memory.py`. Both must give the same memories, the same ranking and the same scores to
1e-9. Replies are read at two lengths: a linear reader takes 4 times as long for 4 times the text.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from rank_bm25 import BM25Okapi

from memalpha_kit.method.calls import parse_reply
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE, apply
from memalpha_kit.method.ranking import published_words, search
from memalpha_kit.records import Entry, Memory, ToolCall
from memalpha_kit.settings import MemoryConfig

CONFIG = MemoryConfig(behaviour="release")
K = 20
HOSTILE = (
    "<tool_call>{",
    '<tool_call>{"a": "',
    "<tool_call>",
    '{"a":',
    "\\",
    "✿FUNCTION✿: x\n✿ARGS✿: {",
)


class Texts:
    """Made-up sentences; words are as unequally frequent as in a language."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.words = ["".join(self.rng.choices("abcdefghij", k=6)) for _ in range(20_000)]
        self.weights = [1 / (rank + 3) for rank in range(len(self.words))]

    def sentence(self, n_words: int = 25) -> str:
        """So many words."""
        return " ".join(self.rng.choices(self.words, self.weights, k=n_words))


def seconds(action: Callable[[], object], times: int) -> float:
    """The shortest time of one call, out of `times`."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return min(found)


def call(name: str, **arguments: str) -> ToolCall:
    """A call on the semantic memory."""
    return ToolCall(name, {"memory_type": "semantic_memory", **arguments})


def changes(texts: Texts, n: int) -> dict[str, float]:
    """Microseconds of an insert, an update and a delete in a memory of `n` entries.

    One after the other, as an episode makes them; the median of 300.
    """
    memory = Memory(semantic=[Entry(str(i), texts.sentence()) for i in range(n)], next_id=n)
    plain, calls = {entry.id: entry.text for entry in memory.semantic}, []
    for step in range(300):
        number, text = str(texts.rng.randrange(n)), texts.sentence()
        calls.append(call(INSERT, content=texts.sentence()))
        calls.append(call(UPDATE, memory_id=number, new_content=text))
        calls.append(call(DELETE, memory_id=str(n + step)))
        plain[number] = text
    took: dict[str, list[float]] = {INSERT: [], UPDATE: [], DELETE: []}
    for one in calls:
        started = time.perf_counter()
        memory, done = apply(memory, one, CONFIG)
        took[one.name].append(time.perf_counter() - started)
        assert done.status == "ok", done
    assert memory.semantic == tuple(Entry(*pair) for pair in plain.items())
    return {name: 1e6 * sorted(values)[len(values) // 2] for name, values in took.items()}


def rebuilt(memory: Memory, query: str) -> list[tuple[str, float]]:
    """Ids and scores of the best entries, from nothing but the entries."""
    entries = tuple(memory.semantic)
    scores = BM25Okapi([published_words(e.text) for e in entries]).get_scores(
        published_words(query)
    )
    best = sorted(range(len(entries)), key=lambda i: (-scores[i], i))[:K]
    return [(entries[i].id, float(scores[i])) for i in best]


def same(memory: Memory, query: str) -> None:
    """Asserts that both ways find the same."""
    found, expected = search(memory, "semantic", query, K), rebuilt(memory, query)
    assert [entry.id for entry, _ in found] == [name for name, _ in expected]
    assert all(abs(a - b) < 1e-9 for (_, a), (_, b) in zip(found, expected, strict=True))


def searches(texts: Texts, n: int) -> tuple[float, float, float]:
    """Seconds of a search, of one directly after a change, and of a rebuilt one; medians."""
    entries = [Entry(str(i), texts.sentence()) for i in range(n)]
    memory = Memory(semantic=entries, next_id=n)
    queries = [texts.sentence(10) for _ in range(60)]
    same(memory, queries[0])
    quick = sorted(seconds(lambda q=q: search(memory, "semantic", q, K), 3) for q in queries)
    after = []
    for query in queries:
        target = str(texts.rng.randrange(n))
        update = call(UPDATE, memory_id=target, new_content=texts.sentence())
        memory, _ = apply(memory, update, CONFIG)
        started = time.perf_counter()
        search(memory, "semantic", query, K)
        after.append(time.perf_counter() - started)
        if query in queries[::20]:
            same(memory, query)
    slow = sorted(seconds(lambda q=q: rebuilt(memory, q), 1) for q in queries[:9])
    return quick[30], sorted(after)[30], slow[4]


def main() -> None:
    """Prints a line per size and per hostile piece."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[100, 1_000, 5_000, 10_000])
    parser.add_argument("--repeats", type=int, default=20_000, help="of a hostile piece of a reply")
    options, texts = parser.parse_args(), Texts()
    for n in options.entries:
        found = changes(texts, n)
        quick, after, slow = searches(texts, n)
        costs = ", ".join(f"{name} {value:.1f} us" for name, value in found.items())
        print(f"{n:6} entries: {costs}; a search by a rebuilt index takes {slow * 1e3:.1f} ms,")
        print(f"    {slow / quick:.0f} times ours, {slow / after:.0f} times after a change")
    for piece in HOSTILE:
        short, long = (
            seconds(lambda t=piece * n: parse_reply(t, "stop", "text" if "✿" in t else "qwen"), 2)
            for n in (options.repeats, 4 * options.repeats)
        )
        print(
            f"{piece!r} {4 * options.repeats} times: {long:.2f} s, "
            f"{long / short:.1f} times as long as a quarter of it"
        )


if __name__ == "__main__":
    main()
