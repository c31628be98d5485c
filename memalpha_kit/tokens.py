"""Token counters by name: how many tokens a text has, and where to cut it.

The one law: every size decision and both sides of the compression reward use one `Counter`. A text
that looks like a special token is ordinary text, and a counter that fails raises: it never says 0.

The default, "wordpunct", needs no download. A word or a mark is a token; words that are glued
together are counted by their length, and in scripts without spaces every character is one, so that
a text does not become shorter by the way it is spelt. It is *not* the paper's tokenizer: there,
memory and chunks are counted with OpenAI's `o200k_base` ("tiktoken:o200k_base" here) and chunks
were packed with Qwen3's ("hf:Qwen/Qwen3-32B"). Ratios such as compression hardly move; absolute
numbers do.

>>> counter("wordpunct").count("Nora keeps bees, doesn't she?")
9
>>> counter("words").cut("Nora  keeps bees", 2)
'Nora  keeps'
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from memalpha_kit.errors import InputError, closest
from memalpha_kit.text import MARKS, NO_SPACES


@dataclass(frozen=True)
class Counter:
    """Measures text in tokens of one kind, known by the position where each one ends.

    `fast` counts without the positions. `adds_up`: texts joined at white space have exactly the
    tokens of their parts; of a subword tokenizer that is true to a token or two per joint.
    """

    name: str
    ends: Callable[[str], Sequence[int]]
    fast: Callable[[str], int] | None = None
    adds_up: bool = False

    def count(self, text: str) -> int:
        """Number of tokens in `text`."""
        return self.fast(text) if self.fast else len(self.ends(text))

    def fits(self, size: int, limit: int, held: Sequence[str], more: Sequence[str]) -> bool:
        """Whether the parts `held` and `more`, joined, have at most `limit` tokens.

        `size` is the sum of the parts' tokens. They are only joined and counted where the sum
        cannot tell, so that packing counts each part about once.
        """
        slack = 0 if self.adds_up else 2 * (len(held) + len(more))
        if limit - slack < size <= limit + slack:
            return self.count("".join(held) + "".join(more)) <= limit
        return size <= limit

    def cut(self, text: str, n_tokens: int) -> str:
        """The longest prefix that ends with a token and has at most `n_tokens`, as it stands.

        The prefix is counted anew: a character may be spread over several subword tokens.
        """
        ends = self.ends(text)
        if len(ends) <= n_tokens:
            return text
        prefixes = (text[: ends[k - 1]] for k in range(n_tokens, 0, -1))
        return next((prefix for prefix in prefixes if self.count(prefix) <= n_tokens), "")


_ALONE = rf"{NO_SPACES}\uac00-\ud7a3"  # each is a token: Korean syllables, too
_LETTER = rf"(?:[^\W_{_ALONE}]|[{MARKS}])"
# A word is one token up to 8 letters, then one more for every 4. Of English words nine in ten are
# no longer, and words of ordinary length that are glued together save less than half.
_PLAIN, _ANY = (
    re.compile(rf"(?<!{letter}){letter}{{1,8}}|{letter}{{1,4}}|\S")
    for letter in ("[A-Za-z0-9]", _LETTER)
)
_SPACED = re.compile(r"\S+")


PATTERNS: dict[str, Callable[[str], re.Pattern[str]]] = {
    "words": lambda text: _SPACED,
    "wordpunct": lambda text: _PLAIN if text.isascii() else _ANY,  # equal; the first is quicker
}


def check_counter(name: str) -> tuple[str, str]:
    """Kind and tokenizer that a counter's name says. Raises InputError for an unknown name."""
    kind, _, which = name.partition(":")
    if name not in PATTERNS and (kind not in TOKENIZERS or not which):
        known = (*PATTERNS, "tiktoken:o200k_base", "hf:Qwen/Qwen3-32B")
        raise InputError(f"counter: expected a known name, found {name!r}{closest(name, known)}")
    return kind, which


@cache
def counter(name: str) -> Counter:
    """The counter with this name: "words", "wordpunct", "tiktoken:<encoding>", "hf:<folder or id>".

    The last two read a tokenizer from disk or a cache, or download it. Raises InputError for an
    unknown name or a tokenizer that cannot be loaded.
    """
    kind, which = check_counter(name)
    if name in PATTERNS:
        choose = PATTERNS[name]
        return Counter(
            name,
            lambda text: [match.end() for match in choose(text).finditer(text)],
            lambda text: len(choose(text).findall(text)),
            adds_up=True,
        )
    try:
        return Counter(name, *TOKENIZERS[kind](which))
    except (ValueError, OSError) as error:
        found = f"found {(str(error).splitlines() or [''])[0]!r}"
        raise InputError(f"counter {name}: expected a tokenizer that loads, {found}") from error


Measures = tuple[Callable[[str], Sequence[int]], Callable[[str], int]]
"""How to find the ends of tokens, and how to count them without, which is quicker."""


def _tiktoken(encoding: str) -> Measures:
    import tiktoken

    loaded = tiktoken.get_encoding(encoding)

    def ends(text: str) -> list[int]:
        tokens = loaded.encode_ordinary(text)
        return [*loaded.decode_with_offsets(tokens)[1][1:], len(text)] if tokens else []

    return ends, lambda text: len(loaded.encode_ordinary(text))


def _hf(name: str) -> Measures:
    from huggingface_hub import hf_hub_download
    from tokenizers import Tokenizer

    local = Path(name) / "tokenizer.json"
    file = local if Path(name).is_dir() else hf_hub_download(name, "tokenizer.json")
    definition = Path(file).read_text(encoding="utf-8")
    json.loads(definition)  # what is no JSON is a ValueError
    loaded = Tokenizer.from_str(definition)
    loaded.no_truncation()
    loaded.no_padding()
    loaded.encode_special_tokens = True

    def ends(text: str) -> list[int]:
        return [end for _, end in loaded.encode(text, add_special_tokens=False).offsets]

    def count(text: str) -> int:
        return len(loaded.encode_batch_fast([text], add_special_tokens=False)[0])

    return ends, count


TOKENIZERS: dict[str, Callable[[str], Measures]] = {"tiktoken": _tiktoken, "hf": _hf}
