"""Counting tokens, packing text into chunks, normalising answers.

The one law: every size decision and both sides of the compression reward use one `Counter`. A text
that looks like a special token is ordinary text, and a counter that fails raises: it never says 0
(method.md 1.2, D05).

The default, "wordpunct", needs no download. It is *not* the paper's tokenizer: there, memory and
chunks are counted with OpenAI's `o200k_base` ("tiktoken:o200k_base" here) and chunks were packed
with Qwen3's ("hf:Qwen/Qwen3-32B"). Ratios such as compression hardly move; absolute numbers do.

>>> counter("wordpunct").count("Nora keeps bees, doesn't she?")
9
>>> counter("words").cut("Nora  keeps bees", 2)
'Nora  keeps'
"""

from __future__ import annotations

import json
import re
import string
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from memalpha_kit.errors import InputError, closest


@dataclass(frozen=True)
class Counter:
    """Measures text in tokens of one kind, known by the position where each one ends."""

    name: str
    ends: Callable[[str], Sequence[int]]

    def count(self, text: str) -> int:
        """Number of tokens in `text`."""
        return len(self.ends(text))

    def cut(self, text: str, n_tokens: int) -> str:
        """The longest prefix that ends with a token and has at most `n_tokens`, as it stands.

        The prefix is counted anew: a character may be spread over several subword tokens.
        """
        ends = self.ends(text)
        if len(ends) <= n_tokens:
            return text
        prefixes = (text[: ends[k - 1]] for k in range(n_tokens, 0, -1))
        return next((prefix for prefix in prefixes if self.count(prefix) <= n_tokens), "")


PATTERNS = {"words": r"\S+", "wordpunct": r"\w+|[^\w\s]"}


@cache
def counter(name: str) -> Counter:
    """The counter with this name: "words", "wordpunct", "tiktoken:<encoding>", "hf:<folder or id>".

    The last two read a tokenizer from disk or a cache, or download it. Raises InputError for an
    unknown name or a tokenizer that cannot be loaded.
    """
    kind, _, which = name.partition(":")
    if name in PATTERNS:
        return Counter(name, _pattern_ends(re.compile(PATTERNS[name])))
    if kind == "tiktoken" and which:
        return Counter(name, _tiktoken_ends(which))
    if kind == "hf" and which:
        return Counter(name, _hf_ends(which))
    known = (*PATTERNS, "tiktoken:o200k_base", "hf:Qwen/Qwen3-32B")
    raise InputError(f"counter: expected a known name, found {name!r}{closest(name, known)}")


def _pattern_ends(pattern: re.Pattern[str]) -> Callable[[str], Sequence[int]]:
    return lambda text: [match.end() for match in pattern.finditer(text)]


def _tiktoken_ends(encoding: str) -> Callable[[str], Sequence[int]]:
    import tiktoken

    try:
        loaded = tiktoken.get_encoding(encoding)
    except (ValueError, OSError) as error:
        raise _unloadable(f"tiktoken:{encoding}", error) from error

    def ends(text: str) -> list[int]:
        tokens = loaded.encode_ordinary(text)
        return [*loaded.decode_with_offsets(tokens)[1][1:], len(text)] if tokens else []

    return ends


def _hf_ends(name: str) -> Callable[[str], Sequence[int]]:
    from huggingface_hub import hf_hub_download
    from tokenizers import Tokenizer

    local = Path(name) / "tokenizer.json"
    try:
        file = local if Path(name).is_dir() else hf_hub_download(name, "tokenizer.json")
        definition = Path(file).read_text(encoding="utf-8")
        json.loads(definition)
    except (ValueError, OSError) as error:
        raise _unloadable(f"hf:{name}", error) from error
    loaded = Tokenizer.from_str(definition)
    loaded.no_truncation()
    loaded.no_padding()
    loaded.encode_special_tokens = True
    return lambda text: [end for _, end in loaded.encode(text, add_special_tokens=False).offsets]


def _unloadable(name: str, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0]
    return InputError(f"counter {name}: expected a tokenizer that loads, found {reason!r}")


BORDERS = tuple(map(re.compile, (r"[.!?]\s+", r"\s*\n\s*", r"\s+")))
"""Where a too long text may be split, best place first: sentence, line, word."""


def split_long(text: str, counter: Counter, limit: int, borders=BORDERS) -> list[str]:
    """`text` in consecutive pieces of at most `limit` tokens; joined, they are `text` again.

    Splits after sentences, else lines, else words, else tokens; a single character that is more
    than `limit` tokens is a piece of its own. Raises ValueError if limit < 1.
    Differs: data.md 2.0 joins split sentences with single spaces (D6, D9, D32).
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1 token, is {limit}")
    if counter.count(text) <= limit:
        return [text] if text else []
    if not borders:
        return list(_token_pieces(text, counter, limit))
    pieces, buffer = [], ""
    for unit in _units(text, borders[0]):
        if counter.count(buffer + unit) <= limit:
            buffer += unit
        elif counter.count(unit) <= limit:
            pieces.append(buffer)
            buffer = unit
        else:
            *done, buffer = split_long(buffer + unit, counter, limit, borders[1:])
            pieces += done
    return [*pieces, buffer]


def _units(text: str, border: re.Pattern[str]) -> list[str]:
    """`text` cut after every match of `border`, separators kept."""
    cuts = [0, *(match.end() for match in border.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts) if start < end]


def _token_pieces(text: str, counter: Counter, limit: int) -> Iterator[str]:
    while text:
        piece = counter.cut(text, limit) or text[0]
        yield piece
        text = text[len(piece) :]


def pack_paragraphs(
    paragraphs: Sequence[str], counter: Counter, draw_target: Callable[[], int], joiner="\n\n"
) -> list[list[int]]:
    """Indices of the paragraphs of each chunk, in order, every paragraph once and whole.

    `draw_target` gives the token target of the first chunk and, after each closed one, of the
    next; a chunk is closed when the next paragraph would exceed it. A paragraph above its target is
    a chunk of its own. Giving indices back is what makes evidence exact (D21a).
    Source: data.md 2.0. Differs: the joiner's tokens count in the test as well.
    """
    sizes = [counter.count(paragraph) for paragraph in paragraphs]
    return pack_sizes(sizes, counter.count(joiner), draw_target)


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

    White space inside a chunk stays as it is, blank lines included (D32); at a chunk's ends it is
    dropped. A sentence above the limit is split after lines, else words, else tokens (D6).
    Source: data.md 2.0, sentence packer. Differs: no NLTK and nothing to download (D37); a sentence
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
    for space in (r"\n", r"\s"):
        found = [match.start() for match in re.finditer(space, text[start : stop + 1])]
        found = [i for i in found if text[start : start + i].strip()]
        if found:
            return start + found[-1]
    return stop


Turn = tuple[str, str]
"""One turn of a dialogue: (role, content)."""


@dataclass(frozen=True)
class DialogueChunk:
    """A packed chunk and the (session, turn) indices that stand in it, wholly or in part."""

    text: str
    turns: tuple[tuple[int, int], ...]


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
    Source: data.md 2.0, dialogue packer. Differs: D9, a question is carried to the next chunk
    only if its answer fits there too; long turns are split recursively and keep their white space.
    """
    chunks: list[DialogueChunk] = []
    held: DialogueChunk | None = None
    for segment in _all_segments(sessions, dates, counter, limit, reserve):
        joined = _join(held, segment) if held else segment
        size = counter.count(joined.text)
        if held and size > limit:
            chunks.append(held)
            held = segment
        elif size >= close:
            chunks.append(joined)
            held = None
        else:
            held = joined
    return [*chunks, held] if held else chunks


def _all_segments(sessions, dates, counter, limit, reserve) -> Iterator[DialogueChunk]:
    for session, (turns, date) in enumerate(zip(sessions, dates, strict=True)):
        yield from _segments(session, turns, date, counter, limit, reserve)


def _join(first: DialogueChunk, second: DialogueChunk) -> DialogueChunk:
    return DialogueChunk(f"{first.text}\n\n{second.text}", first.turns + second.turns)


def _segments(
    session: int, turns: Sequence[Turn], date: str, counter: Counter, limit: int, reserve: int
) -> Iterator[DialogueChunk]:
    """One dialogue in segments of at most `limit` tokens, header included."""
    header = f"[Dialogue at timestamp {date}]\n"
    if (size := counter.count(header)) > reserve:
        raise InputError(
            f"dialogue {session}: expected a date within {reserve} tokens, found {size}"
        )

    def segment(lines: Sequence[tuple[int, str]]) -> DialogueChunk:
        text = header + "\n".join(line for _, line in lines)
        return DialogueChunk(text, tuple((session, turn) for turn, _ in lines))

    def fits(lines: Sequence[tuple[int, str]]) -> bool:
        return counter.count(segment(lines).text) <= limit

    held: list[tuple[int, str]] = []
    for line in _lines(turns, counter, limit - reserve):
        if not held or fits([*held, line]):
            held.append(line)
            continue
        asks = turns[held[-1][0]][0] == "user"
        carried = [held[-1]] if asks and len(held) > 1 and fits([held[-1], line]) else []
        yield segment(held[: len(held) - len(carried)])
        held = [*carried, line]
    if held:
        yield segment(held)


def _lines(turns: Sequence[Turn], counter: Counter, limit: int) -> Iterator[tuple[int, str]]:
    """(turn index, text under its role's tag), a long turn in several lines."""
    for index, (role, content) in enumerate(turns):
        tag = f"<{role.capitalize()}>"
        for piece in split_long(content, counter, limit - counter.count(tag)):
            yield index, tag + piece


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """`text` lower-cased, without ASCII punctuation and articles, single spaces between words.

    Deleting punctuation joins its neighbours: "U.S.A." becomes "usa".
    Source: evaluation.md 3.2, NORM.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
