"""Blame: which call wrote, changed or deleted an entry of the memory.

The one law: replaying the calls is the only witness. A call is blamed for exactly what the memory
has after it and had not before it, whatever it says about itself.

>>> from memalpha_kit.episode_settings import MemoryConfig, ProtocolConfig
>>> from memalpha_kit.method.episode import write
>>> from memalpha_kit.method.writers import writer
>>> from memalpha_kit.records import QA, make_instance
>>> questions = [QA("q0", "Who paints?", ("Tom",))]
>>> instance = make_instance("squad", ["Nora keeps bees.", "Tom paints boats."], questions)
>>> (episode,) = write([instance], writer("keep_sentences"), MemoryConfig(), ProtocolConfig())
>>> [(touch.kind, touch.step, touch.call) for touch in touches(episode) if touch.entry == "2"]
[('wrote', 1, 0)]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from memalpha_kit.entries import Store
from memalpha_kit.method.memory import apply, empty
from memalpha_kit.records import PAPER_PARTS, Episode, Memory


@dataclass(frozen=True)
class Touch:
    """What one call did to one entry, or to a paragraph, whose `entry` is the component's name.

    `call` is the place among the calls of step `step`. A text is None where there is none: before
    an entry is written and after it is deleted.
    """

    step: int
    call: int
    component: str
    entry: str
    before: str | None
    after: str | None

    @property
    def kind(self) -> Literal["wrote", "changed", "deleted"]:
        """What happened to the entry."""
        if self.before is None:
            return "wrote"
        return "deleted" if self.after is None else "changed"


def touches(episode: Episode) -> tuple[Touch, ...]:
    """Everything that the calls of an episode did, in their order.

    Takes as long as replaying the episode: what did not change is not looked at.
    """
    state, config, found = empty(episode.memory_config), episode.memory_config, []
    for place, step in enumerate(episode.steps):
        for number, call in enumerate(step.calls):
            after, _ = apply(state, call, config)
            found += [Touch(place, number, *change) for change in changes(state, after)]
            state = after
    return tuple(found)


def changes(before: Memory, after: Memory) -> Iterator[tuple[str, str, str | None, str | None]]:
    """(component, entry, text before, text after) of everything that is not as it was."""
    for name in (*PAPER_PARTS, *after.others):
        old, new = before.part(name), after.part(name)
        if isinstance(old, Store) and isinstance(new, Store):
            for then, now in new.since(old):
                entry = next(filter(None, (then, now)))
                yield name, entry.id, then.text if then else None, now.text if now else None
        elif old != new:
            yield name, name, str(old) if old else None, str(new) if new else None
