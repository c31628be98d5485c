r"""Answer scores by name: how well a prediction fits the accepted answers.

The one law: a score is a float in [0, 1], the same for every method of a table. What could not be
measured is None, and a question without a usable gold answer is an `InputError`, never a 0 or a 1.
A name with `@` is a scorer of the published code, registered by `memalpha_kit.release`. Which
source is scored by which name, under which rules, says `evaluation/scoring.py`.

>>> score("contains", "the eiffel tower", ("Paris", "Eiffel Tower"))
1.0
>>> score("label", r"Use \boxed{label}. \boxed{\text{7}}", ("7",))
1.0
>>> comparable("The “C++” book, −5 °C and 1,000 m"), comparable("A")
('c++ book -5 °c and 1000 m', 'a')
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from memalpha_kit.entries import essence
from memalpha_kit.errors import InputError
from memalpha_kit.registry import Registry
from memalpha_kit.tasks import NOT_MENTIONED
from memalpha_kit.text import NO_SPACES, without_thinking


class NoGold(InputError):
    """There is no accepted answer that can be compared with."""


Answers = tuple[str, ...]
Compare = Callable[[str, Answers], float]


@dataclass(frozen=True)
class Metric:
    """A way to compare. `strip` turns a raw reply into the text that is compared."""

    compare: Compare
    strip: Callable[[str], str | None] = without_thinking


METRICS: Registry[Metric] = Registry("metric")
"""All metrics by name. Those that need a model as judge are not among them (`scoring.JUDGED`)."""


def score(name: str, prediction: str | None, answers: Sequence[str]) -> float | None:
    """The score of one prediction in [0, 1]; None if the reader failed (prediction None).

    A reply whose thinking was never closed is an answer that was not given: 0.0. Raises InputError
    for an unknown metric and for answers that cannot be compared with (all blank).
    """
    if prediction is None:
        return None
    text = METRICS[name].strip(prediction)
    compared = compare(name, text or "", answers)  # also where nothing was said: is there a gold?
    return 0.0 if text is None else compared


def compare(name: str, text: str, answers: Sequence[str]) -> float:
    """The score of a reply that was stripped already. Raises InputError as `score` does."""
    metric = METRICS[name]
    if not answers:
        raise NoGold(f"metric {name}: expected at least one gold answer, found none")
    value = float(metric.compare(text, tuple(answers)))
    if not 0 <= round(value, 9) <= 1 and "@" not in name:  # some of the release count above 1
        raise InputError(f"metric {name}: expected a score in [0, 1], found {value}")
    return value


# ---- what is the same text -------------------------------------------------------------------


class _OneForm(dict):
    """Code points to what they are typed as on a plain keyboard, worked out when first met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        digit = unicodedata.decimal(char, None)
        if 0xFF00 < code < 0xFFF0 or 0xFB00 <= code <= 0xFB06:  # full and half width, ligatures
            self[code] = unicodedata.normalize("NFKC", char).translate(self)
            return self[code]
        by_kind = {"Zs": " ", "Cf": "", "Pd": "-"}  # spaces, invisible characters, dashes
        self[code] = by_kind.get(unicodedata.category(char), char if digit is None else str(digit))
        return self[code]


_FORMS = _OneForm(str.maketrans("‘’‚‛‹›ʼ′“”„‟«»−…", "''''''''" + '""""""' + "-\u2026"))
_FORMS |= str.maketrans("「」『』《》。､、،؟؛।॥٪", '""""""' + ".,,,?;..%")


def unified(text: str) -> str:
    """The text with one form of what is typed in several, all else as it is.

    Typographic quotes, apostrophes, dashes and spaces become plain ones, composed and decomposed
    letters the same, digits of other scripts 0 to 9, full-width letters and the commas and full
    stops of other scripts plain; invisible characters go.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text).translate(_FORMS)


def folded(text: str) -> str:
    """`unified`, and the same for capital and small letters ("STRASSE" is "Straße")."""
    return unified(unified(text).casefold())


_PUNCTUATION = re.escape(string.punctuation) + "¿¡·•"
_SYMBOLS = re.compile(
    r"(?P<operator>(?<=\w)[+^<>=](?=\w)|(?<=\w\s)[+^<>=](?=\s\w))"  # 1+1, x < y
    r"|(?P<kept>(?<=\d)\.(?=\d)|(?<![\w.])\.(?=[a-z])"  # 3.5, .net
    r"|(?<![\w-])-(?=\.?\d)"  # -5
    r"|(?<=\w)(?:\+\+|[+\#](?!\w)))"  # c++, c#
    r"|(?P<between>(?<=\d)[-/:](?=\d))"  # 1990-1995, 1/2
    rf"|[{_PUNCTUATION}]"
)
_DATE = re.compile(r"(?<!\d)\d++(?:[-/.:]\d++){2,}")
_ARTICLES = ("a", "an", "the")


def comparable(text: str) -> str:
    """The text lower-cased, without punctuation and articles, single spaces between words.

    Deleting punctuation joins its neighbours ("U.S.A." is "usa", "1,000" is "1000"), but symbols
    that carry the meaning stay: the point of a number, the minus before one, the ends of "C++" and
    "C#", operators between two words; numbers joined by a dash, a slash or a colon stay apart. What
    has nothing but articles or punctuation keeps it.
    """
    lowered = folded(text.replace("—", " — "))
    dated = _DATE.sub(lambda date: re.sub(r"\D", " ", date[0]), lowered)
    words = _SYMBOLS.sub(_bare, dated).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words or lowered.split())


def _bare(symbol: re.Match[str]) -> str:
    if symbol["operator"]:
        return f" {symbol['operator']} "
    return symbol["kept"] or (" " if symbol["between"] else "")


_WORD = re.compile(rf"[{NO_SPACES}]|[^\s{NO_SPACES}]+")


def words_of(text: str) -> list[str]:
    """The words; of a script without spaces the characters."""
    return _WORD.findall(text)


# ---- parts of a reply ------------------------------------------------------------------------


def parsed_line(text: str) -> str:
    """The rest of the line after `Answer:` (any case), else the first line; trimmed."""
    match = re.search(r"answer:", text, re.IGNORECASE)
    line = (text[match.end() :] if match else text).partition("\n")[0].strip()
    return re.sub(r"^(answer:\s*)+", "", line, flags=re.IGNORECASE).strip()


_BRACES = re.compile(r"\\boxed\s*\{|\\\\|\\[{}]|[{}]")
_WRAPPED = re.compile(r"\\(?:text|math|mbox|operatorname)[a-z]*\s*\{([^{}]*)\}")
_OUTER = re.compile(r"\{([^{}]*)\}|\$([^$]*)\$")
_SPACING = re.compile(r"\\[,;:!]")
_ESCAPED = re.compile(r"\\([%$#&_{} ])")


def boxed(text: str) -> str | None:
    r"""The content of the last brace-balanced `\boxed{...}`; None without one.

    Wrappers (`\text{...}`, `\mathrm{...}`, `{...}`, `$...$`) are taken off and escapes resolved.

    >>> boxed(r"\boxed{1} or rather \boxed{\text{50\%}}")
    '50%'
    """
    found: tuple[int, int] | None = None
    opened: list[tuple[int, bool]] = []  # (where the content starts, is it a box)
    for mark in _BRACES.finditer(text):
        if mark[0].startswith("\\boxed") or mark[0] == "{":
            opened.append((mark.end(), mark[0] != "{"))
        elif mark[0] == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (found is None or start > found[0]):
                found = (start, mark.start())
    if found is None:
        return None
    inner = text[slice(*found)].strip()
    while (bare := _OUTER.sub(r"\1\2", inner) if _OUTER.fullmatch(inner) else
           _WRAPPED.sub(r"\1", inner)) != inner:  # fmt: skip
        inner = bare.strip()
    return _ESCAPED.sub(r"\1", _SPACING.sub("", inner)).strip()


# ---- comparisons -----------------------------------------------------------------------------


def usable(parts: Iterable[str], what: str) -> list[str]:
    """The parts that can be seen, trimmed; InputError naming the metric `what` if none is left."""
    found = list(parts)
    kept = [part.strip() for part in found if essence(part)]
    if not kept:
        raise NoGold(f"metric {what}: expected a non-blank gold answer, found {found!r}")
    return kept


def within(needle: str, text: str, words: bool = False) -> bool:
    """Whether `needle` occurs in `text`, case ignored; with `words` only as whole words.

    A number does not occur in its negative: "5" is not in "-5 °C", but in "3-5 days".
    """
    needle, text = folded(needle), folded(text)
    digit = needle[:1].isdigit()
    if not (words or digit) or needle not in text:  # to compile a pattern takes much longer
        return needle in text
    before, after = (r"(?<!\w)", r"(?!\w)") if words else ("", "")
    minus = r"(?<!(?<!\w)-)" if digit else ""
    return re.search(before + minus + re.escape(needle) + after, text) is not None


def contains(prediction: str, answers: Answers) -> float:
    """1 if any answer is a substring of the prediction, case ignored."""
    return max(float(within(a, prediction)) for a in usable(answers, "contains"))


def label(prediction: str, answers: Answers) -> float:
    """1 if the boxed (else the whole) prediction is digits only and equals an answer as text."""
    inner = boxed(prediction)
    found = unquoted(unified(prediction if inner is None else inner))
    golds = {unquoted(unified(answer)) for answer in usable(answers, "label")}
    return float(found.isascii() and found.isdigit() and found in golds)


def unquoted(text: str) -> str:
    """The text without quotes and white space around it."""
    return text.strip().strip("\"'").strip()


def keywords(prediction: str, answers: Answers) -> float:
    """Share of the keywords that occur in the prediction, case ignored.

    One answer is a comma-separated list; several answers are the keywords themselves.
    """
    wanted = usable(unified(answers[0]).split(",") if len(answers) == 1 else answers, "keywords")
    return sum(within(keyword, prediction) for keyword in wanted) / len(wanted)


def perltqa(prediction: str, answers: Answers) -> float:
    """Best share, over the answers, of `;`-separated parts that occur in the prediction."""
    lists = [usable(unified(one).split(";"), "perltqa") for one in usable(answers, "perltqa")]
    return max(sum(within(p, prediction) for p in parts) / len(parts) for parts in lists)


def substring(prediction: str, answers: Answers) -> float:
    """1 if any comparable answer is inside the comparable reply, whole or its `Answer:` line."""
    texts = set(map(comparable, {prediction, parsed_line(prediction)}))  # often the same
    return float(any(_found(gold, prediction, texts) for gold in usable(answers, "substring")))


def _found(gold: str, prediction: str, texts: set[str]) -> bool:
    plain = comparable(gold)
    if plain not in _ARTICLES:
        return any(within(plain, text) for text in texts)
    letter = re.compile(rf"(?<!\w){re.escape(gold)}(?!\w)(?!\s+\w)")  # "blood group A", not "A cat"
    return plain in texts or letter.search(unified(prediction)) is not None


def exact(prediction: str, answers: Answers) -> float:
    """1 if the comparable reply is one of the comparable answers."""
    return float(comparable(prediction) in map(comparable, usable(answers, "exact")))


def token_f1(prediction: str, answers: Answers) -> float:
    """Best F1 of comparable words, repeated ones counted, over the answers.

    Where either side is yes, no or noanswer, only equality counts.
    """
    said = comparable(prediction)
    return max(_word_f1(said, comparable(gold)) for gold in usable(answers, "token_f1"))


def locomo(prediction: str, answers: Answers) -> float:
    """`token_f1`; where there is no answer, 1 if the reply says so in one of the set phrases."""
    if set(answers) <= set(NOT_MENTIONED):
        return contains(prediction, answers)
    return token_f1(prediction, answers)


def _word_f1(text: str, gold: str) -> float:
    if text != gold and {text, gold} & {"yes", "no", "noanswer"}:
        return 0.0
    said, wanted = Counter(words_of(text)), Counter(words_of(gold))
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


def rouge_l(prediction: str, answers: Answers) -> float:
    """Best ROUGE-L F over the answers, of the whole reply or its `Answer:` line.

    Words of ASCII letters are compared by their Porter stems as in the `rouge_score` package, which
    would drop all others; of scripts without spaces every character is a word.
    """
    texts, scorer = (prediction, parsed_line(prediction)), _rouge_scorer()
    golds = usable(answers, "rouge_l")
    return max(scorer.score(gold, text)["rougeL"].fmeasure for gold in golds for text in texts)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    class AnyScript(DefaultTokenizer):  # type: ignore[misc]  # rouge_score has no types
        def tokenize(self, text: str) -> list[str]:
            bare = (c if unicodedata.category(c)[0] in "LMN" else " " for c in unified(text))
            words, stems = words_of("".join(bare).lower()), super().tokenize
            return [t for w in words for t in (stems(w) if w.isascii() else [w])]

    return RougeScorer(["rougeL"], tokenizer=AnyScript(use_stemmer=True))


def objectives(prediction: str, answers: Answers) -> float:
    """Share of the objectives that the last `<answer>` meets, one after the other (MEM1's task).

    Several objectives are separated by `;` and as many parts are expected; with a single one the
    whole text is its answer, semicolons included.
    """
    wanted = [comparable(answer) for answer in usable(answers, "objectives")]
    inner = unified(last_answer(prediction) or "")
    parts = [inner] if len(wanted) == 1 else inner.rstrip("; \n").split(";")
    if len(parts) != len(wanted):
        return 0.0
    pairs = zip(map(comparable, parts), wanted, strict=True)
    return sum(part == gold for part, gold in pairs) / len(wanted)


def last_answer(text: str) -> str | None:
    """What stands in the last closed `<answer>`; None without one."""
    _, opened, inner = text.rpartition("</answer>")[0].rpartition("<answer>")
    return inner if opened else None


for _compare in (
    *(label, exact, token_f1, rouge_l, objectives, locomo),
    *(contains, keywords, perltqa, substring),
):
    METRICS.add(_compare.__name__, Metric(_compare))
