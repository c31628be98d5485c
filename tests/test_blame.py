"""Blame names exactly the calls that produced each entry, on random episodes."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from random_episodes import CONFIG, random_episode

from memalpha_kit.entries import Entry, Store
from memalpha_kit.method.blame import touches
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE, apply, empty

KINDS = {INSERT: "wrote", UPDATE: "changed", DELETE: "deleted"}


def expected(episode):
    """The same by another way: whole memories compared around every call, id by id."""
    found, state = [], empty(CONFIG)
    for place, step in enumerate(episode.steps):
        for number, call in enumerate(step.calls):
            before, (state, _) = state, apply(state, call, CONFIG)
            then, now = texts(before), texts(state)
            changed = sorted(i for i in then | now if then.get(i) != now.get(i))
            found += [(place, number, i, then.get(i), now.get(i)) for i in changed]
    return found


def texts(memory):
    core = {"core": memory.core} if memory.core else {}
    return core | {entry.id: entry.text for _, entry in memory.entries()}


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_blame_names_exactly_the_calls_that_changed_an_entry(seed):
    episode = random_episode(seed)
    found = [(t.step, t.call, t.entry, t.before, t.after) for t in touches(episode)]
    assert found == expected(episode)


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_the_calls_that_ran_are_blamed_and_every_entry_was_written_once(seed):
    episode = random_episode(seed)
    for entry, text in texts(episode.memory).items():
        first, *others = (touch for touch in touches(episode) if touch.entry == entry)
        assert [first, *others][-1].after == text
        if entry != "core":
            assert first.kind == "wrote" and all(touch.kind != "wrote" for touch in others)
    blamed = {(touch.step, touch.call): touch for touch in touches(episode)}
    for step, turn in enumerate(episode.steps):
        for place, call in enumerate(turn.calls):
            touch = blamed.get((step, place))
            assert (call.status == "ok") == (touch is not None)
            if touch and touch.entry != "core":
                assert touch.kind == KINDS[call.name]


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_stores_tell_what_changed_since_any_other_store(seed):
    rng, stores, number = random.Random(seed), [Store()], 0
    for _ in range(rng.randint(0, 20)):
        store, number = rng.choice(stores), number + 1
        chosen = rng.choice(store).id if store else None
        ways = ["add"] if chosen is None else ["add", "replace", "remove"]
        match rng.choice(ways):
            case "add":
                stores.append(store.adding(Entry(str(number), rng.choice("abc"))))
            case "replace":
                stores.append(store.replacing(chosen, rng.choice("abc")))
            case "remove":
                stores.append(store.removing(chosen))
    before, after = rng.choice(stores), rng.choice(stores)
    then, now = ({e.id: e for e in store} for store in (before, after))
    pairs = {(then.get(i), now.get(i)) for i in then | now if then.get(i) != now.get(i)}
    found = after.since(before)
    assert set(found) == pairs and len(found) == len(pairs)
