"""Chunks: long texts split, paragraphs, sentences and dialogues packed, by one token counter."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memalpha_kit.errors import InputError
from memalpha_kit.tokens import Counter

BORDERS = tuple(map(re.compile, (r"[.!?]\s+", r"\s*\n\s*", r"\s+")))
"""Where a too long text may be split, best place first: sentence, line, word."""


def split_long(text: str, counter: Counter, limit: int) -> list[str]:
    """`text` in consecutive pieces of at most `limit` tokens; joined, they are `text` again.

    Splits after sentences, else lines, else words, else tokens; a single character that is more
    than `limit` tokens is a piece of its own. The text is tokenised once and each piece counted
    once, so the time grows with the text's length. Raises ValueError if limit < 1.
    Differs: the published code joins split sentences with single spaces.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1 token, is {limit}")
    return [piece for piece, _ in _sized_pieces(text, counter, limit)]


def _sized_pieces(text: str, counter: Counter, limit: int) -> Iterator[tuple[str, int]]:
    """The pieces of `split_long` with their tokens."""
    # with fewer than three characters per token of the limit it is likely to fit
    if len(text) < 3 * limit and (size := counter.count(text)) <= limit:
        yield from [(text, size)] if text else []
        return
    ends = counter.ends(text)
    if len(ends) <= limit:
        yield text, len(ends)
        return
    places = [[*(m.end() for m in border.finditer(text)), len(text)] for border in BORDERS]
    ruler, start = _Ruler(ends, places), 0
    while start < len(text):
        piece, size = _piece(text, start, ruler, counter, limit)
        yield piece, size
        start += len(piece)


def _piece(text: str, start: int, ruler: _Ruler, counter: Counter, limit: int) -> tuple[str, int]:
    """The piece that begins at `start`; one of a subword tokenizer is counted on its own."""
    wanted = limit
    while wanted >= 1:
        stop = ruler.cut(start, len(text), wanted)
        piece = text[start:stop]
        size = ruler.size(start, stop) if counter.adds_up else counter.count(piece)
        if size <= limit:
            return piece, size
        wanted -= size - limit
    piece = counter.cut(piece, limit) or piece[0]
    return piece, counter.count(piece)


@dataclass(frozen=True)
class _Ruler:
    """Where a text's tokens end, and where it may be cut, the best kind of place first."""

    ends: Sequence[int]
    places: Sequence[Sequence[int]]

    def cut(self, start: int, stop: int, limit: int, kind: int = 0) -> int:
        """Where to end the piece that begins at `start`, at `stop` or before.

        A unit that fits no piece of its own is cut at the next kind of place, after what stands
        before it.
        """
        first = bisect_right(self.ends, start)
        if first + limit >= len(self.ends) or (full := self.ends[first + limit]) > stop:
            return stop
        if kind == len(self.places):
            return self.ends[max(bisect_left(self.ends, full) - 1, first)]
        place = bisect_left(self.places[kind], full)
        kept = self.places[kind][place - 1] if place else 0
        after = min(self.places[kind][place], stop)
        if kept > start and self.size(kept, after) <= limit:
            return kept
        return self.cut(start, after, limit, kind + 1)

    def size(self, start: int, stop: int) -> int:
        """Number of tokens between two places."""
        return bisect_right(self.ends, stop) - bisect_right(self.ends, start)


def pack_paragraphs(
    paragraphs: Sequence[str],
    counter: Counter,
    draw_target: Callable[[], int],
    joiner: str = "\n\n",
) -> list[list[int]]:
    """Indices of the paragraphs of each chunk, in order, every paragraph once and whole.

    `draw_target` gives the token target of the first chunk and, after each closed one, of the
    next; a chunk is closed when the next paragraph would exceed it. A paragraph above its target is
    a chunk of its own. Giving indices back is what makes evidence exact.
    Differs from the published `process_data.py`: the joiner's tokens count in the test as well.
    """
    return pack_sizes(list(map(counter.count, paragraphs)), counter.count(joiner), draw_target)


def pack_sizes(
    sizes: Sequence[int], space: int, draw_target: Callable[[], int], test_space: bool = True
) -> list[list[int]]:
    """As `pack_paragraphs`, from the paragraphs' tokens and the joiner's.

    `test_space` False is the release: the joiner adds to a chunk but is not part of the test.
    """
    chunks: list[list[int]] = []
    filled, target = 0, draw_target()
    for index, size in enumerate(sizes):
        if chunks and filled + space * test_space + size <= target:
            chunks[-1].append(index)
            filled += space + size
        else:
            target = draw_target() if chunks else target
            chunks.append([index])
            filled = size
    return chunks


_SENTENCE_END = re.compile(r"""[.!?]["'”’)\]]*(?=\s)""")
_BLANK_LINE = re.compile(r"\n\s*\n")
_TITLES = ("Mr.", "Mrs.", "Ms.", "Dr.", "St.")  # their full stop ends no sentence
_NEARLY = 8  # tokens below the limit from where a chunk is counted anew, without its neighbours


def pack_sentences(text: str, counter: Counter, limit: int) -> list[str]:
    """`text` in chunks of whole sentences with at most `limit` tokens; the text is counted once.

    White space inside a chunk stays as it is, blank lines included; at a chunk's ends it is
    dropped. A sentence above the limit is split after lines, else words, else tokens.
    Differs from the published packer: no NLTK and nothing to download; a sentence
    ends at `.!?` with its quotes and before white space, but not after a few titles such as "Mr.".
    """
    ends = counter.ends(text)
    cuts = [m.end() for m in _SENTENCE_END.finditer(text) if not text.endswith(_TITLES, 0, m.end())]
    cuts = sorted(cuts + [match.start() for match in _BLANK_LINE.finditer(text)])
    chunks, start, first, room = [], 0, 0, limit
    while first < len(ends):
        if len(ends) - first <= room:
            stop = len(text)
        else:
            stop = _last_border(text, start, max(ends[first + room - 1], start + 1), cuts)
        chunk = text[start:stop].strip()
        last = bisect_right(ends, stop, first)
        if last - first > limit - _NEARLY and room > 1 and counter.count(chunk) > limit:
            room -= 1
            continue
        chunks.append(chunk)
        start, first, room = stop, last, limit
    return [chunk for chunk in chunks if chunk]


def _last_border(text: str, start: int, stop: int, cuts: Sequence[int]) -> int:
    """The best place in (start, stop] to end a chunk: after a sentence, a line, a word, or stop."""
    at = bisect_right(cuts, stop)
    if at and cuts[at - 1] > start and text[start : cuts[at - 1]].strip():
        return cuts[at - 1]
    part = text[start : stop + 1]
    blank = len(part) - len(part.lstrip())  # a chunk of nothing else is none
    for space in (r"\n", r"\s"):
        found = [match.start() for match in re.finditer(space, part)]
        if found and found[-1] > blank:
            return start + found[-1]
    return stop


Turn = tuple[str, str]
"""One turn of a dialogue: (role, content)."""
Turns = tuple[tuple[int, int], ...]
"""(session, turn) of each turn that stands in a chunk, wholly or in part."""


@dataclass(frozen=True)
class DialogueChunk:
    """Parts of a chunk and the sum of their sizes in tokens."""

    parts: tuple[str, ...]
    size: int
    turns: Turns = ()

    @property
    def text(self) -> str:
        """The chunk: its parts, joined."""
        return "".join(self.parts)

    def fits(self, counter: Counter, limit: int) -> bool:
        """Whether the text has at most `limit` tokens."""
        return counter.fits(self.size, limit, self.parts, ())

    def plus(self, parts: tuple[str, ...], size: int, turns: Turns) -> DialogueChunk:
        """With more parts, which add `size` tokens."""
        return DialogueChunk(self.parts + parts, self.size + size, self.turns + turns)


def pack_dialogues(
    sessions: Sequence[Sequence[Turn]],
    dates: Sequence[str],
    counter: Counter,
    limit: int = 2048,
    close: int = 1800,
    reserve: int = 150,
) -> list[DialogueChunk]:
    """Dated dialogues in chunks of at most `limit` tokens, in order, every word kept.

    Each dialogue opens with its date, also where it goes on in another chunk. A turn above
    `limit - reserve` is split (`split_long`), each piece under its role. A chunk is closed by a
    dialogue that brings it to `close`. Raises InputError if a header alone exceeds `reserve`.
    Differs from the published packer: a question is carried to the next chunk
    only if its answer fits there too; long turns are split recursively and keep their white space.
    """
    chunks: list[DialogueChunk] = []
    held, gap = None, counter.count("\n\n")
    for session, (turns, date) in enumerate(zip(sessions, dates, strict=True)):
        for segment in _segments(session, turns, date, counter, limit, reserve):
            joined = segment
            if held:
                joined = held.plus(("\n\n", *segment.parts), gap + segment.size, segment.turns)
            if held and not joined.fits(counter, limit):
                chunks.append(held)
                held = segment
            elif joined.fits(counter, close - 1):
                held = joined
            else:
                chunks.append(joined)
                held = None
    return [*chunks, held] if held else chunks


Line = tuple[int, str, int]
"""A turn's number, its text or a piece of it under its role, and the size of that in tokens."""


def _segments(
    session: int, turns: Sequence[Turn], date: str, counter: Counter, limit: int, reserve: int
) -> Iterator[DialogueChunk]:
    """One dialogue in segments of at most `limit` tokens, header included."""
    header = f"[Dialogue at timestamp {date}]"
    start, joint = counter.count(f"{header}\n"), counter.count("\n")
    if start > reserve:
        raise InputError(
            f"dialogue {session}: expected a date within {reserve} tokens, found {start}"
        )

    def plus(segment: DialogueChunk, line: Line) -> DialogueChunk:
        turn, text, size = line
        return segment.plus((f"\n{text}",), joint + size, ((session, turn),))

    empty = DialogueChunk((header,), start - joint)
    held = before = empty  # `before` is `held` without its last line
    last: Line | None = None
    for line in _lines(turns, counter, limit - reserve):
        grown = plus(held, line)
        if last is None or grown.fits(counter, limit):
            before, held, last = held, grown, line
            continue
        carried = plus(empty, last)
        asks = turns[last[0]][0] == "user" and bool(before.turns)
        if asks and plus(carried, line).fits(counter, limit):
            yield before
            before, held = carried, plus(carried, line)
        else:
            yield held
            before, held = empty, plus(empty, line)
        last = line
    if held.turns:
        yield held


def _lines(turns: Sequence[Turn], counter: Counter, limit: int) -> Iterator[Line]:
    """The turns under their roles' tags, each of at most `limit` tokens: a long one in pieces."""
    tags = {role: f"<{role.capitalize()}>" for role, _ in turns}
    sizes = {role: counter.count(tag) for role, tag in tags.items()}
    for index, (role, content) in enumerate(turns):
        tag, added = tags[role], sizes[role]
        for piece, size in _sized_pieces(content, counter, limit - added):
            if counter.adds_up:  # exactly, so the tag may not grow together with a word
                first = re.split(r"\s", piece, maxsplit=1)[0]
                added = counter.count(tag + first) - counter.count(first)
            yield index, tag + piece, size + added
