"""Answer scores by name: how well a prediction fits the accepted answers.

The one law: a score is a float in [0, 1], the same for every method of a table; what could not be
measured is None and a question without a usable gold answer is an `InputError`, never a 0 or a 1.
Plain names are the right behaviour. Names with `@release` score as the published agent evaluation
does, `label@release-baseline` and `keywords@release-training` as its baselines and its training
do, and `@words` adds word boundaries; they exist to compare with published numbers.

>>> score("contains", "the eiffel tower", ("Paris", "Eiffel Tower"))
1.0
>>> score("label", "Use \\\\boxed{label}. \\\\boxed{7}", ("7",))
1.0

Source: spec evaluation.md 3.2, 3.3, 3.10 and the worked examples of section 7. Differs: the
release keeps a gold string apart from a gold list of one; our records hold tuples, so the cases
where it fails on a list are not reproduced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from memalpha_kit.errors import InputError, closest
from memalpha_kit.text import normalise

Answers = tuple[str, ...]
Score = Callable[[str, Answers], float]


@dataclass(frozen=True)
class Metric:
    """A named way to compare. `strip` turns a raw reply into the text that is compared."""

    name: str
    compare: Score
    strip: Callable[[str], str | None]


def score(name: str, prediction: str | None, answers: Sequence[str]) -> float | None:
    """The score of one prediction in [0, 1]; None if the reader failed (prediction None).

    A reply whose thinking was never closed is an answer that was not given: 0.0. Raises InputError
    for an unknown metric and for answers that cannot be compared with (all blank).
    """
    named = metric(name)
    if not answers:
        raise InputError(f"metric {name}: expected at least one gold answer, found none")
    if prediction is None:
        return None
    text = named.strip(prediction)
    return 0.0 if text is None else float(named.compare(text, tuple(answers)))


def metric(name: str) -> Metric:
    """The metric of this name. Raises InputError naming the closest one."""
    if name not in METRICS:
        raise InputError(f"metric {name!r} is unknown{closest(name, METRICS)}")
    return METRICS[name]


# ---- what of a reply is compared ------------------------------------------------------------


def answer_text(raw: str) -> str | None:
    """The reply after its last `</think>`, trimmed; None if a thinking block was left open."""
    tail = raw.rpartition("</think>")[2]
    return None if "<think>" in tail else tail.strip()


def answer_text_release(raw: str) -> str:
    """As the release cuts: between the first `</think>` and the next; `Empty` if still open."""
    text = raw.split("</think>")[1].strip() if "</think>" in raw else raw
    return "Empty" if "<think>" in text else text


def parsed_line(text: str) -> str:
    """The rest of the line after `Answer:` (any case), else the first line; trimmed."""
    match = _ANSWER.search(text)
    line = (text[match.end() :] if match else text).partition("\n")[0]
    return _LEADING_ANSWER.sub("", line.strip()).strip()


_ANSWER = re.compile(r"answer:", re.IGNORECASE)
_LEADING_ANSWER = re.compile(r"^(answer:\s*)+", re.IGNORECASE)


def boxed(text: str) -> str | None:
    r"""The content of the last brace-balanced `\boxed{...}`, `\text{...}` unwrapped; or None."""
    found: tuple[int, int] | None = None
    opened: list[tuple[int, bool]] = []  # (where the content starts, is it a box)
    for mark in _BRACES.finditer(text):
        if mark[0] != "}":
            opened.append((mark.end(), mark[0] != "{"))
        elif opened:
            start, is_box = opened.pop()
            if is_box and (found is None or start > found[0]):
                found = (start, mark.start())
    if found is None:
        return None
    inner = text[slice(*found)].strip()
    unwrapped = re.fullmatch(r"\\text\{(.*)\}", inner, re.DOTALL)
    return (unwrapped[1] if unwrapped else inner).strip()


_BRACES = re.compile(r"\\boxed\{|\{|\}")


def yes_no(reply: str) -> bool | None:
    """What a yes/no judge said, by its first word; None (ask again) if that is neither."""
    first = re.search(r"[A-Za-z]+", reply)
    return {"yes": True, "no": False}.get(first[0].lower()) if first else None


def yes_no_release(reply: str) -> bool:
    """As the release reads a judge: "yes" occurs and "no" does not, inside words too."""
    return "yes" in reply.lower() and "no" not in reply.lower()


# ---- comparisons: the right behaviour -------------------------------------------------------


def _kept(parts: Sequence[str], what: str) -> list[str]:
    """The non-blank parts, trimmed; InputError naming `what` if none is left."""
    kept = [part.strip() for part in parts if part.strip()]
    if not kept:
        raise InputError(f"metric {what}: expected a non-blank gold answer, found {list(parts)!r}")
    return kept


def _within(needle: str, text: str, words: bool = False) -> bool:
    """Whether `needle` occurs in `text`, case ignored; with `words` only as whole words."""
    needle, text = needle.lower(), text.lower()
    if not words:
        return needle in text
    return re.search(rf"(?<!\w){re.escape(needle)}(?!\w)", text) is not None


def contains(prediction: str, answers: Answers, words: bool = False) -> float:
    """1 if any answer is a substring of the prediction, case ignored."""
    return max(float(_within(a, prediction, words)) for a in _kept(answers, "contains"))


def label(prediction: str, answers: Answers) -> float:
    """1 if the boxed (else the whole) prediction is digits only and equals an answer as text."""
    inner = boxed(prediction)
    found = _unquote(prediction if inner is None else inner)
    golds = {_unquote(answer) for answer in _kept(answers, "label")}
    return float(found.isascii() and found.isdigit() and found in golds)


def _unquote(text: str) -> str:
    return text.strip().strip("\"'").strip()


def keywords(prediction: str, answers: Answers, words: bool = False) -> float:
    """Share of the keywords that occur in the prediction, case ignored.

    One answer is a comma-separated list; several answers are the keywords themselves.
    """
    parts = answers[0].split(",") if len(answers) == 1 else answers
    wanted = _kept(parts, "keywords")
    return sum(_within(keyword, prediction, words) for keyword in wanted) / len(wanted)


def perltqa(prediction: str, answers: Answers) -> float:
    """Best share, over the answers, of `;`-separated parts that occur in the prediction."""
    shares = []
    for answer in _kept(answers, "perltqa"):
        parts = _kept(answer.split(";"), "perltqa")
        shares.append(sum(_within(part, prediction) for part in parts) / len(parts))
    return max(shares)


def substring(prediction: str, answers: Answers) -> float:
    """1 if any normalised answer is inside the normalised reply, whole or its `Answer:` line."""
    golds = _kept([normalise(answer) for answer in answers], "substring")
    texts = (normalise(prediction), normalise(parsed_line(prediction)))
    return float(any(gold in text for gold in golds for text in texts))


def rouge_l(prediction: str, answers: Answers) -> float:
    """Best ROUGE-L F over the answers (Porter stems), of the whole reply or its `Answer:` line."""
    texts = (prediction, parsed_line(prediction))
    scorer = _rouge_scorer()
    return max(
        scorer.score(gold, text)["rougeL"].fmeasure
        for gold in _kept(answers, "rouge_l")
        for text in texts
    )


@lru_cache(maxsize=1)
def _rouge_scorer():  # noqa: ANN202 - the type lives in the optional import
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


# ---- comparisons: as released ---------------------------------------------------------------


def contains_release(prediction: str, answers: Answers) -> float:
    """Only the first answer counts, and a blank one is contained in everything."""
    return float(answers[0].lower() in prediction.lower())


def substring_release(prediction: str, answers: Answers) -> float:
    """As `substring`, but an answer that normalises to nothing fits everything."""
    texts = (normalise(prediction), normalise(parsed_line(prediction)))
    return float(any(normalise(a) in text for a in answers for text in texts))


def label_release(prediction: str, answers: Answers) -> float:
    """The first box counts, cut at its first closing brace; only the first answer counts."""
    match = re.search(r"\\boxed\{([^}]+)\}", prediction)
    found = _unquote(match[1] if match else prediction)
    return float(found.isascii() and found.isdigit() and found == _unquote(answers[0]))


def label_release_baseline(prediction: str, answers: Answers) -> float:
    """Baselines: a normalised answer inside the parsed line, so `7` fits `17` (trap M-2)."""
    line = normalise(parsed_line(prediction))
    return float(any(normalise(answer) in line for answer in answers))


def keywords_release(prediction: str, answers: Answers) -> float:
    """Split at comma and blank only; nothing is trimmed or dropped."""
    parts = answers[0].split(", ") if len(answers) == 1 else answers
    return sum(part.lower() in prediction.lower() for part in parts) / len(parts)


def keywords_release_training(prediction: str, answers: Answers) -> float:
    """Training: split at commas and trimmed, blank keywords kept."""
    parts = [part.strip() for part in answers[0].split(",")]
    return sum(part.lower() in prediction.lower() for part in parts) / len(parts)


def perltqa_release(prediction: str, answers: Answers) -> float:
    """Several parts are lower-cased and sought in the reply as it is (D43), blank ones kept."""
    if ";" not in answers[0]:
        return contains_release(prediction, answers)
    parts = [part.strip().lower() for part in answers[0].split(";")]
    return sum(part in prediction for part in parts) / len(parts)


METRICS: dict[str, Metric] = {
    name: Metric(name, compare, answer_text_release if "@release" in name else answer_text)
    for name, compare in {
        "contains": contains,
        "contains@words": lambda p, a: contains(p, a, words=True),
        "contains@release": contains_release,
        "label": label,
        "label@release": label_release,
        "label@release-baseline": label_release_baseline,
        "keywords": keywords,
        "keywords@words": lambda p, a: keywords(p, a, words=True),
        "keywords@release": keywords_release,
        "keywords@release-training": keywords_release_training,
        "perltqa": perltqa,
        "perltqa@release": perltqa_release,
        "substring": substring,
        "substring@release": substring_release,
        "rouge_l": rouge_l,
    }.items()
}
"""All metrics by name. LongMemEval's LLM judge is not among them: it needs a model (`yes_no`)."""
