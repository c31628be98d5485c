"""`rules`: what the stages do on a machine without a model, and the matching they all share.

No rule pretends to be a model. Each is a floor that keeps the shape of the data right (short
golds, keywords instead of prose, questions that the text can answer) and is named in the card:

closed book     a question is dropped if its own words contain the gold, or the gold is yes or no
keywords        names and phrases of a summary, cut at stop words
shortening      what an answer adds to the words of its question, in pieces of three words
answerability   the whole text stands for the reply: the gold must be mentioned in it

>>> mentions("I know it.", "no"), mentions("It was in 1911.", "1911")
(False, True)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from memalpha_kit.text import normalise

STOP_WORDS = frozenset(
    """a about after again all also always am an and any are as at away be became because been
    before being between both but by can cannot could did do does down during each else even ever
    every few for from get gets got had has have he her here him his how i if in into is it
    its itself just later least less like made makes many may me might more most much must my
    near never no nor not nothing now of off often on once one only or other our out over own
    quite rather same she should since so some something soon still such take takes than that
    the their them then there these they this those though through to together too toward
    towards under until up upon us very was we were what when where which while who whom whose
    why will with within without would yes yet you your""".split()  # noqa: SIM905
)
MAX_KEYWORDS = 20
MAX_WORDS = 3  # of one keyword
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W_]+(?:[-'’][^\W_]+)*")


def mentions(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text`, both normalised, from one word's start to another's end.

    So "no" is not found in "know", nor "1" in "1911" (data.md D12b). A phrase of nothing but
    punctuation and articles is never found.
    """
    wanted = normalise(phrase)
    return bool(wanted) and f" {wanted} " in f" {normalise(text)} "


def guessable(question: str, gold: str) -> bool:
    """Whether the question gives its answer away: it contains it, or asks for yes or no."""
    return normalise(gold) in ("yes", "no") or mentions(question, gold)


def keywords(text: str) -> tuple[str, ...]:
    """Names and phrases of two or three words in order of appearance; single words if none."""
    runs = list(_runs(text))
    named = [run for run in runs if len(run) > 1 or run[0][:1].isupper() or run[0][:1].isdigit()]
    return unique(" ".join(run) for run in named or runs)[:MAX_KEYWORDS]


def shortened(question: str, answer: str) -> str:
    """The parts of the answer whose words the question does not have, joined by `; `; "" if none.

    An answer of three words or fewer is kept as it is.
    """
    if len(answer.split()) <= MAX_WORDS:
        return answer.strip(" .")
    known = {word.lower() for word in _WORD.findall(question)}
    return "; ".join(unique(" ".join(run) for run in _runs(answer, known)))


def _runs(text: str, known: Iterable[str] = ()) -> Iterator[list[str]]:
    """Runs of at most three words between stop words, known words, punctuation, and names' ends."""
    left_out = STOP_WORDS.union(known)
    run: list[str] = []
    end = 0
    for match in _WORD.finditer(text):
        word = match[0]
        apart = text[end : match.start()].strip(" ") != ""
        name_ends = bool(run) and run[-1][:1].isupper() != word[:1].isupper()
        if run and (apart or name_ends or len(run) == MAX_WORDS):
            yield run
            run = []
        if word.lower() not in left_out:
            run.append(word)
        elif run:
            yield run
            run = []
        end = match.end()
    if run:
        yield run


def unique(items: Iterable[str]) -> tuple[str, ...]:
    """The items without blank ones and without repetitions in any case, the first one kept."""
    kept: dict[str, str] = {}
    for item in items:
        if item.strip():
            kept.setdefault(item.strip().lower(), item.strip())
    return tuple(kept.values())
