"""Haystacks: the same questions in longer and longer inputs, each of which holds the shorter ones.

At length 1 an instance is as it is; at length n it has n times as many chunks. What is added are
chunks of other instances at random places; its own stay in their order, and the chunks of a length
are among those of every longer one. So what changes from length to length is the hay alone.

The hay must not answer the questions, nor contradict what answers them. What a question is about is
its word that the fewest chunks of the data hold, of those that its instance's chunks hold ("Pemes"
in "what is the phone of Pemes"). A chunk with such a word of any question of the instance is no hay
for it, nor is one of an instance that shares a group with it (an article, a person), nor, where
labels are asked for, one of the same source. This is a rule about words, and does not see who says
the same in others: therefore `evaluation.lengths` asks the hay alone, too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from memalpha_kit.data.dataset import groups
from memalpha_kit.errors import InputError
from memalpha_kit.method.ranking import words
from memalpha_kit.records import Instance
from memalpha_kit.tasks import metric_of


def nested(
    instances: Sequence[Instance], lengths: Sequence[int], seed: int = 0, limit: int | None = None
) -> dict[int, list[Instance]]:
    """The first `limit` instances at every length, which is a multiple of their own chunks.

    Instances keep their ids and questions. Raises InputError for lengths that do not grow from 1
    on, and where the other instances have too little that can be hay.
    """
    if list(lengths) != sorted(set(lengths)) or not lengths or lengths[0] < 1:
        raise InputError(f"lengths: expected growing whole numbers from 1 on, found {lengths}")
    held = {instance.id: [set(words(chunk)) for chunk in instance.chunks] for instance in instances}
    spread = Counter(word for chunks in held.values() for chunk in chunks for word in chunk)
    found: dict[int, list[Instance]] = {length: [] for length in lengths}
    for instance in instances[:limit]:
        rng = random.Random(f"{seed}/haystack/{instance.id}")
        about = subjects(instance, spread)
        pool = {
            chunk
            for other in instances
            if _apart(instance, other)
            for chunk, said in zip(other.chunks, held[other.id], strict=True)
            if not about & said
        }
        n = len(instance.chunks)
        if len(pool) < (needed := (lengths[-1] - 1) * n):
            raise InputError(
                f"{instance.id}: expected {needed} chunks of other instances that cannot answer "
                f"its questions, found {len(pool)}; choose shorter lengths or more data"
            )
        own = sorted(rng.random() for _ in range(n))
        rng.shuffle(order := sorted(pool))  # all of it, so that longer lengths change no other
        hay = [(rng.random(), chunk) for chunk in order[:needed]]
        for length, longer in found.items():
            longer.append(_mixed(instance, own, hay[: (length - 1) * n]))
    return found


def subjects(instance: Instance, spread: Counter[str]) -> set[str]:
    """What each question is about: its rarest word, if it can be one that the instance holds.

    `spread` says how many chunks hold a word.
    """
    held = {word for chunk in instance.chunks for word in words(chunk)}
    asked = [set(words(qa.question)) for qa in instance.questions]
    return {min(said & held or said, key=lambda w: (spread[w], w)) for said in asked if said}


def only_hay(long: Instance, short: Instance) -> Instance:
    """The longer instance without the chunks of the shorter one."""
    own = set(short.chunks)
    return replace(long, chunks=tuple(chunk for chunk in long.chunks if chunk not in own))


def _apart(instance: Instance, other: Instance) -> bool:
    """Whether another instance's chunks may be hay at all."""
    same = metric_of(instance.source, judged=False) == "label" and instance.source == other.source
    return not same and set(groups(instance)).isdisjoint(groups(other))


def _mixed(instance: Instance, own: Sequence[float], hay: Sequence[tuple[float, str]]) -> Instance:
    """The instance's chunks at their places in [0, 1), growing, and the hay at its."""
    placed = [(place, -1, chunk) for place, chunk in hay]
    placed += zip(own, range(len(own)), instance.chunks, strict=True)
    placed.sort()
    moved: dict[int | None, int] = {i: at for at, (_, i, _) in enumerate(placed)}
    asked = tuple(replace(qa, chunk=moved.get(qa.chunk)) for qa in instance.questions)
    return replace(instance, chunks=tuple(chunk for *_, chunk in placed), questions=asked)
