"""`Store`: the entries of one list of the memory, as a value whose changes cost microseconds.

A store is immutable and compares like the tuple of its entries; adding, replacing or removing an
entry gives a new one that shares nearly everything with the old one (`immutables.Map`, a hash
tree). Every store knows the change that made it, so that what was computed for its predecessor (a
search index, say) can be brought up to date instead of made again.

>>> bees = Store([Entry("1", "Nora keeps bees.")])
>>> both = bees.adding(Entry("2", "Tom paints boats."))
>>> [entry.id for entry in both], len(bees), both.removing("2") == bees
(['1', '2'], 1, True)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, overload

from immutables import Map

from memalpha_kit.errors import InputError


@dataclass(frozen=True)
class Entry:
    """One entry of a list. `id` is unique for the memory's whole life."""

    id: str
    text: str


@lru_cache(maxsize=8)  # one change asks for the same two texts again and again
def essence(text: str) -> str:
    """What is left of a text if white space, invisible characters and spellings do not count.

    Runs of white space are one space, characters without a shape are dropped, and a letter with
    its accent is one character.

    >>> essence(" Zo\u0065\u0308\u200b  hums ") == "Zo\u00eb hums"
    True
    """
    if not (text.isascii() and text.isprintable()):  # there is nothing without a shape in such text
        text = unicodedata.normalize("NFC", text.translate(_SHAPELESS))
    return " ".join(text.split())


class _Shapeless(dict):
    """Code points to themselves, those of characters without a shape to None."""

    fillers = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u2800\u3164\uffa0"

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        hidden = char in self.fillers or 0xFE00 <= code <= 0xFE0F  # variants of a letter's form
        hidden |= unicodedata.category(char) in ("Cf", "Cc") and not char.isspace()
        self[code] = None if hidden else code
        return self[code]


_SHAPELESS = _Shapeless()


class Change:
    """How one store became the next: the text at `place` before and after; None is no entry.

    `parent` is the change before it; `root` stands for the store that the first change began with,
    and is its own parent. It has the list of entries that was made last, and after which change:
    if every store of an episode kept its own, they would grow with the square of the chunks.
    """

    __slots__ = ("after", "before", "depth", "listed", "parent", "place", "root")

    def __init__(
        self,
        parent: Change | None = None,
        place: int = 0,
        before: str | None = None,
        after: str | None = None,
    ) -> None:
        self.parent: Change = parent or self
        self.place, self.before, self.after = place, before, after
        self.depth: int = parent.depth + 1 if parent else 0
        self.root: Change = parent.root if parent else self
        self.listed: tuple[Change, tuple[Entry, ...]] | None = None


class Store(Sequence[Entry]):
    """Entries in the order of their making; each has a place, a number that only grows."""

    __slots__ = ("_alike", "_entries", "_hash", "_next", "_places", "change")
    _entries: Map[int, Entry]  # by place
    _places: Map[str, int]  # by id
    _alike: Map[str, tuple[int, ...]]  # places by the essence of their text
    _hash: int | None
    change: Change

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        listed = tuple(entries)
        places: dict[str, int] = {entry.id: place for place, entry in enumerate(listed)}
        if len(places) < len(listed):
            found = next(e.id for i, e in enumerate(listed) if places[e.id] != i)
            raise InputError(f"entries: expected each id once, found {found!r} twice")
        alike: dict[str, tuple[int, ...]] = {}
        for place, entry in enumerate(listed):
            key = essence(entry.text)
            alike[key] = (*alike.get(key, ()), place)
        self._set(Map(enumerate(listed)), Map(places), Map(alike), len(listed), Change())

    def _set(self, *state: Any) -> Store:
        self._entries, self._places, self._alike, self._next, self.change = state
        self._hash = None
        return self

    def get(self, entry_id: str | None) -> Entry | None:
        """The entry with that id."""
        place = None if entry_id is None else self._places.get(entry_id)
        return None if place is None else self._entries[place]

    def at(self, place: int) -> Entry:
        """The entry at a place, which is not its index once an entry before it was removed."""
        return self._entries[place]

    def place(self, entry: Entry) -> int:
        """The place of one of its entries."""
        return self._places[entry.id]

    def places(self) -> Iterator[tuple[int, Entry]]:
        """Every entry with its place, in order."""
        return iter(sorted(self._entries.items()))

    def newest(self, n: int) -> tuple[Entry, ...]:
        """The last `n` entries, in order; the others are not looked at."""
        places = (place for place in range(self._next - 1, -1, -1) if place in self._entries)
        return tuple(self._entries[place] for place in [*islice(places, n)][::-1])

    def alike(self, text: str) -> list[Entry]:
        """The entries whose text has the same essence."""
        return [self._entries[place] for place in self._alike.get(essence(text), ())]

    def adding(self, entry: Entry) -> Store:
        """A store with one more entry, at the end. The id must be a new one."""
        return self._changed(self._next, None, entry)

    def replacing(self, entry_id: str, text: str) -> Store:
        """A store in which the entry with that id has another text, at the same place."""
        place = self._places[entry_id]
        return self._changed(place, self._entries[place], Entry(entry_id, text))

    def removing(self, entry_id: str) -> Store:
        """A store without the entry with that id."""
        place = self._places[entry_id]
        return self._changed(place, self._entries[place], None)

    def since(self, before: Store) -> list[tuple[Entry | None, Entry | None]]:
        """The entries that are not as they were in `before`, as (then, now); None is no entry.

        Where this store grew out of that one only the changes in between are looked at.
        """
        places, change = set(), self.change
        while change is not before.change and change.depth:
            places.add(change.place)
            change = change.parent
        if change is before.change:
            pairs = [(before._entries.get(p), self._entries.get(p)) for p in sorted(places)]
        else:
            pairs = [(before.get(e.id), e) for e in self]
            pairs += [(e, None) for e in before if not self.get(e.id)]
        return [(then, now) for then, now in pairs if then != now]

    def _changed(self, place: int, before: Entry | None, after: Entry | None) -> Store:
        entries, places, alike = self._entries, self._places, self._alike
        if before is not None:
            key = essence(before.text)
            same = alike[key]  # most often nothing but this place
            others = tuple(p for p in same if p != place) if len(same) > 1 else ()
            alike = alike.set(key, others) if others else alike.delete(key)
            if after is None:
                entries, places = entries.delete(place), places.delete(before.id)
        if after is not None:
            entries = entries.set(place, after)
            places = places if before else places.set(after.id, place)
            key = essence(after.text)
            alike = alike.set(key, (*alike.get(key, ()), place))
        texts = (before.text if before else None, after.text if after else None)
        parent = self.change if self._entries else Change()  # histories of nothing are all alike
        change = Change(parent, place, *texts)
        return Store.__new__(Store)._set(entries, places, alike, max(self._next, place + 1), change)

    def _tuple(self) -> tuple[Entry, ...]:
        root, known = self.change.root, self.change.root.listed
        if known is None or known[0] is not self.change:
            root.listed = known = self.change, tuple(entry for _, entry in self.places())
        return known[1]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._tuple())

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        return self._tuple()[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Store):
            return self is other or (len(self) == len(other) and self._tuple() == other._tuple())
        return self._tuple() == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self._tuple())
        return self._hash

    def __repr__(self) -> str:
        return repr(self._tuple())

    def __reduce__(self) -> tuple[type[Store], tuple[tuple[Entry, ...]]]:
        return Store, (self._tuple(),)
