"""Memory: changes, searches, prompts, totals and snapshots.

The plain way is a memory of tuples that is copied for every change, `rank_bm25` made anew for every
query and everything counted anew, as in the published `memory.py`.
"""

from __future__ import annotations

from functools import cache

import pytest
from conftest import Meter, Texts
from rank_bm25 import BM25Okapi

from memalpha_kit.entries import essence
from memalpha_kit.method import memory as memories
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE, apply, replay
from memalpha_kit.method.protocol import render_compact
from memalpha_kit.method.ranking import published_words, search
from memalpha_kit.records import Entry, Memory, ToolCall
from memalpha_kit.settings import MemoryConfig
from memalpha_kit.tokens import counter

CONFIG = MemoryConfig(core=False)
SIZES, K, N_CALLS = (100, 1_000, 5_000, 10_000), 20, 100
sizes = pytest.mark.parametrize("n", SIZES)
Plain = dict[str, str]


def fits(meter: Meter, n: int) -> None:
    """A look takes the smaller sizes only."""
    if meter.quick and n > 1_000:
        pytest.skip("not in a look")


def call(name: str, **arguments: str) -> ToolCall:
    """A call on the semantic memory."""
    return ToolCall(name, {"memory_type": "semantic_memory", **arguments})


@cache
def filled(n: int) -> Memory:
    """A memory of `n` entries with the ids 1 to n."""
    texts = Texts()
    return Memory(
        semantic=[Entry(str(i), texts.sentence()) for i in range(1, n + 1)], next_id=n + 1
    )


def calls(kind: str, n: int, many: int = N_CALLS) -> list[ToolCall]:
    """So many calls of a kind, none of which fails in a memory of `n` entries."""
    texts = Texts(1)
    ids = texts.rng.sample(range(1, n + 1), min(n, many))
    ids = [str(ids[i % n]) for i in range(many)]
    if kind == INSERT:
        return [call(INSERT, content=texts.sentence()) for _ in ids]
    if kind == UPDATE:
        return [call(UPDATE, memory_id=i, new_content=texts.sentence()) for i in ids]
    return [call(DELETE, memory_id=i) for i in ids]


def folded(memory: Memory, some: list[ToolCall]) -> Memory:
    """The memory after the calls."""
    for one in some:
        memory, _ = apply(memory, one, CONFIG)
    return memory


def copied(entries: tuple[Entry, ...], next_id: int, some: list[ToolCall]) -> tuple[Entry, ...]:
    """The same with a tuple that is copied and looked through for every call."""
    for one in some:
        given = one.arguments
        if one.name == INSERT:
            key = essence(given["content"])
            if all(essence(entry.text) != key for entry in entries):
                entries, next_id = (*entries, Entry(str(next_id), given["content"])), next_id + 1
        elif one.name == UPDATE:
            new = Entry(given["memory_id"], given["new_content"])
            entries = tuple(new if entry.id == new.id else entry for entry in entries)
        else:
            entries = tuple(entry for entry in entries if entry.id != given["memory_id"])
    return entries


@pytest.mark.parametrize("kind", [INSERT, UPDATE, DELETE])
@sizes
def bench_change(meter, n, kind):
    """One change; the memory before it is still there.

    The plain way walks through all entries and pushes ours out of the processor's caches; other
    changes of the same memory come before those that are timed, as they do in an episode.
    """
    fits(meter, n)
    memory, both = filled(n), calls(kind, n, 2 * N_CALLS)
    some, others = both[:N_CALLS], both[N_CALLS:]
    entries = tuple(memory.semantic)
    meter.versus(
        kind,
        f"{n:,} entries",
        lambda: folded(memory, some),
        lambda: copied(entries, n + 1, some),
        settle=lambda: folded(memory, others),
        per=N_CALLS,
        rounds=9,
        same=lambda ours, plain: tuple(ours.semantic) == plain,
        want=("ours_s", "<=", 20e-6),
    )


@pytest.mark.parametrize("kind", [INSERT, UPDATE, DELETE])
def bench_flat(meter, kind):
    """The same change in a large memory beside a small one."""
    small, large = (100, 1_000) if meter.quick else (100, 10_000)
    each = [(filled(n), calls(kind, n)) for n in (large, small)]
    meter.versus(
        f"{kind}, {large:,} entries beside {small}",
        "beside a small one",
        lambda: folded(*each[0]),
        lambda: folded(*each[1]),
        per=N_CALLS,
        rounds=41,
        growth=True,
    )


def rebuilt(memory: Memory, query: str) -> list[tuple[str, float]]:
    """Ids and scores of the best entries, from nothing but the entries."""
    entries = tuple(memory.semantic)
    index = BM25Okapi([published_words(entry.text) for entry in entries])
    scores = index.get_scores(published_words(query))
    best = sorted(range(len(entries)), key=lambda i: (-scores[i], i))[:K]
    return [(entries[i].id, float(scores[i])) for i in best]


def ours_found(memory: Memory, query: str) -> list[tuple[str, float]]:
    """The same from the index."""
    return [(entry.id, score) for entry, score in search(memory, "semantic", query, K)]


def alike(ours: list[tuple[str, float]], plain: list[tuple[str, float]]) -> bool:
    """The same ranking, with scores to 1e-9; entries whose scores are that near may change places.

    They do a few times in a thousand searches, where only rounding tells them apart.
    """
    known, last = dict(plain), plain[-1][1]
    return all(
        abs(a - b) < 1e-9 and abs(a - known.get(i, last)) < 1e-9
        for (i, a), (_, b) in zip(ours, plain, strict=True)
    )


@pytest.mark.parametrize("changed", [False, True], ids=["unchanged", "changed"])
@sizes
def bench_search(meter, n, changed):
    """The best 20; `changed`: another text was put in just before."""
    fits(meter, n)
    memory, texts = filled(n), Texts(2)
    search(memory, "semantic", "any", K)
    updates = iter(calls(UPDATE, n, 200))
    now = [memory, memory]

    def fresh() -> tuple[Memory, str]:
        if changed:
            now[:] = apply(now[0], next(updates), CONFIG)[0], now[0]
        return now[0], texts.sentence(10)

    meter.versus(
        "search after a change" if changed else "search",
        f"{n:,} entries",
        ours_found,
        rebuilt,
        fresh=fresh,
        settle=lambda: search(now[1], "semantic", texts.sentence(10), K),
        rounds=max(15, min(60, 60_000 // n)),
        same=alike,
        want=("ratio", ">=", 200) if n == 5_000 else None,
    )


@sizes
def bench_prompt(meter, n):
    """The rows that the writer is shown, those that fit the chunk; plain: index made anew."""
    fits(meter, n)
    config, texts = MemoryConfig(core=False, display="relevant", shown=K), Texts(3)
    memory = filled(n)

    def anew(chunk: str) -> str:
        return render_compact(Memory(semantic=tuple(memory.semantic)), chunk, config)

    meter.versus(
        "prompt",
        f"{n:,} entries",
        lambda chunk: render_compact(memory, chunk, config),
        anew,
        fresh=lambda: (texts.sentence(40),),
        rounds=9,
    )


@sizes
def bench_totals(meter, n):
    """Tokens of the memory after a change. Both ways count every entry."""
    fits(meter, n)
    count, memory = counter("wordpunct"), filled(n)
    meter.versus(
        "tokens in all",
        f"{n:,} entries",
        lambda: memories.tokens(memory, count),
        lambda: sum(len(count.ends(entry.text)) for entry in memory.semantic),
        rounds=9,
    )


@sizes
def bench_snapshot(meter, n):
    """Every memory of 100 changes is kept; plain: a copy of all entries each time."""
    fits(meter, n)
    memory, some = filled(n), calls(UPDATE, n)

    def kept() -> list[Memory]:
        found = [memory]
        for one in some:
            found.append(apply(found[-1], one, CONFIG)[0])
        return found

    def copies() -> list[Plain]:
        found = [{entry.id: entry.text for entry in memory.semantic}]
        for one in some:
            changed = dict(found[-1])
            changed[one.arguments["memory_id"]] = one.arguments["new_content"]
            found.append(changed)
        return found

    def same(ours: list[Memory], plain: list[Plain]) -> bool:
        last = {entry.id: entry.text for entry in ours[-1].semantic}
        return last == plain[-1] and len(ours) == len(plain)

    meter.versus(
        "change and snapshot", f"{n:,} entries", kept, copies, per=N_CALLS, rounds=9, same=same
    )


@sizes
def bench_replay(meter, n):
    """A memory from the calls that made it; the plain way would take minutes for the large ones."""
    fits(meter, n)
    some = [*calls(INSERT, n, n), *calls(UPDATE, n, n // 10)]
    meter.versus(
        "replay",
        f"{len(some):,} calls",
        lambda: replay(some, CONFIG),
        (lambda: copied((), 1, some)) if n <= 1_000 else None,
        per=len(some),
        rounds=3,
        same=lambda ours, plain: tuple(ours.semantic) == plain,
    )
