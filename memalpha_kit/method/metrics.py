"""Answer scores by name: how well a prediction fits the accepted answers.

The one law: a score is a float in [0, 1], the same for every method of a table; what could not be
measured is None and a question without a usable gold answer is an `InputError`, never a 0 or a 1.
Plain names are the right behaviour. Names with `@release` score as the published agent evaluation
does, `@release-baseline` and `@release-training` as its baselines and its training do,
`@memoryagentbench`, `@release-memagent` and `@release-mem1` as those projects do; they exist to
compare with published numbers. `@words` adds word boundaries, `@decimals` keeps decimal points.
Which source is scored by which name, under which rules, says `scoring.py`.

>>> score("contains", "the eiffel tower", ("Paris", "Eiffel Tower"))
1.0
>>> score("label", "Use \\\\boxed{label}. \\\\boxed{7}", ("7",))
1.0

Source: spec evaluation.md 3.2, 3.3, 3.6, 3.7 and the worked examples of section 7. Differs: the
release keeps a gold string apart from a gold list of one, our records hold tuples (`scoring.py`
knows whose gold is a list); nothing is evaluated (M-9); where a reply is matched to the nearest
name of a catalogue, `difflib`'s ratio decides, and without a catalogue the name itself must be
there; `em@release-mem1` alone is a sum, at most the number of objectives.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
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
    if prediction is None:
        return None
    text = named.strip(prediction)
    compared = compare(name, text or "", answers)  # also where nothing was said: is there a gold?
    return 0.0 if text is None else compared


def compare(name: str, text: str, answers: Sequence[str]) -> float:
    """The score of a reply that was stripped already. Raises InputError as `score` does."""
    named = metric(name)
    if not answers:
        raise InputError(f"metric {name}: expected at least one gold answer, found none")
    return float(named.compare(text, tuple(answers)))


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


def answer_text_training(raw: str) -> str:
    """As the release's training cuts: as `answer_text_release`, if `<think>` is there too."""
    return answer_text_release(raw) if "<think>" in raw else raw


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


def perltqa(prediction: str, answers: Answers, words: bool = False) -> float:
    """Best share, over the answers, of `;`-separated parts that occur in the prediction."""
    shares = []
    for answer in _kept(answers, "perltqa"):
        parts = _kept(answer.split(";"), "perltqa")
        shares.append(sum(_within(part, prediction, words) for part in parts) / len(parts))
    return max(shares)


def substring(
    prediction: str,
    answers: Answers,
    words: bool = False,
    plain: Callable[[str], str] = normalise,
) -> float:
    """1 if any normalised answer is inside the normalised reply, whole or its `Answer:` line."""
    golds = _kept([plain(answer) for answer in answers], "substring")
    texts = (plain(prediction), plain(parsed_line(prediction)))
    return float(any(_within(gold, text, words) for gold in golds for text in texts))


def normalise_decimals(text: str) -> str:
    """As `text.normalise`, but the point of a number stays: "3.5" is not "35" (M-19)."""
    return normalise(_POINT.sub(_LEADER, text)).replace(_LEADER, ".")


_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_LEADER = "\u2024"  # a dot that is no ASCII punctuation, so normalising leaves it


def exact(prediction: str, answers: Answers) -> float:
    """1 if the normalised reply is one of the normalised answers."""
    golds = _kept([normalise(answer) for answer in answers], "exact")
    return float(normalise(prediction) in golds)


def token_f1(prediction: str, answers: Answers) -> float:
    """Best F1 of normalised words, repeated ones counted, over the answers.

    Where either side is yes, no or noanswer, only equality counts. Source: evaluation.md 3.7.
    """
    golds = _kept([normalise(answer) for answer in answers], "token_f1")
    return max(_word_f1(normalise(prediction), gold) for gold in golds)


def _word_f1(text: str, gold: str) -> float:
    if text != gold and {text, gold} & {"yes", "no", "noanswer"}:
        return 0.0
    said, wanted = Counter(text.split()), Counter(gold.split())
    both = (said & wanted).total()
    return 2 * both / (said.total() + wanted.total())


def rouge_l(prediction: str, answers: Answers) -> float:
    """Best ROUGE-L F over the answers (Porter stems), of the whole reply or its `Answer:` line."""
    return rouge_l_release(prediction, tuple(_kept(answers, "rouge_l")))


# ---- comparisons of smaller sources (evaluation.md 3.7) --------------------------------------


def all_elements(prediction: str, answers: Answers) -> float:
    """1 if every non-blank answer occurs in the reply, case ignored (eventqa)."""
    return float(share_found(prediction, answers) == 1.0)


def share_found(prediction: str, answers: Answers) -> float:
    """Share of the answers that occur in the reply, case ignored (ruler_niah)."""
    wanted = _kept(answers, "share_found")
    return sum(_within(answer, prediction) for answer in wanted) / len(wanted)


def wos(prediction: str, answers: Answers) -> float:
    """Levels of the boxed `d > d > d` that agree from the left: 0.5, 0.3 and 0.2 (wos46985)."""
    return _levels(boxed(prediction), prediction, _kept(answers, "wos"))


def _levels(inner: str | None, prediction: str, golds: Sequence[str]) -> float:
    found = (prediction if inner is None else inner).strip()
    return max(_level_score(found, gold) for gold in golds)


def _level_score(found: str, gold: str) -> float:
    if not (_THREE_LEVELS.fullmatch(found) and _THREE_LEVELS.fullmatch(gold)):
        return 0.0
    same = [a == b for a, b in zip(found.split(" > "), gold.split(" > "), strict=True)]
    right = same.index(False) if False in same else 3
    return (0.0, 0.5, 0.8, 1.0)[right]


_THREE_LEVELS = re.compile(r"[0-9]+ > [0-9]+ > [0-9]+")


def choice(prediction: str, answers: Answers) -> float:
    """1 if the second accepted answer occurs in the reply (choice_eng); a single one is that."""
    return float(_within(_kept(answers[1:2] or answers, "choice")[0], prediction))


def boxed_exact(prediction: str, answers: Answers) -> float:
    """1 if the boxed (else the whole) reply is an answer, letter by letter (detectiveqa)."""
    inner = boxed(prediction)
    golds = _kept(answers, "boxed_exact")
    return float((prediction if inner is None else inner).strip() in golds)


def concepts(prediction: str, answers: Answers, known: Sequence[str] = ()) -> float:
    """F1 of the listed concepts, each replaced by the nearest of `known` (eurlex).

    The reply is a JSON list, else its parts between commas, semicolons and line breaks; the gold
    has one concept per answer. F1 = 2PR / (P + R + 1e-5), so a perfect reply has 0.999995.
    """
    wanted = {_nearest(answer, known) for answer in _kept(answers, "concepts")}
    listed = [_nearest(part, known) for part in _listed(prediction)]
    both = len(set(listed) & wanted)
    precision, recall = both / max(1, len(listed)), both / len(wanted)
    return 2 * precision * recall / (precision + recall + 1e-5)


def _listed(text: str) -> list[str]:
    start = text.find("[")
    try:
        found = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else None
    except (ValueError, RecursionError):
        found = None
    parts = found if isinstance(found, list) else re.split(r"[,;\n]", text)
    return [str(part).strip() for part in parts if str(part).strip()]


def _nearest(name: str, known: Sequence[str]) -> str:
    """The name in `known` that is most like `name`; without any, the name itself, normalised."""
    near = difflib.get_close_matches(name.lower(), [k.lower() for k in known], 1, 0.0)
    return near[0] if near else normalise(name)


def recall_at(prediction: str, answers: Answers, k: int = 5, titles: Sequence[str] = ()) -> float:
    """Share of the answers among the first k titles of a numbered list (recsys).

    The list begins at the first "1."; each of its lines is one title, replaced by the nearest of
    `titles`. Source: evaluation.md 3.6, 3.7.
    """
    wanted = {_nearest(answer, titles) for answer in _kept(answers, "recall_at")}
    first = re.search(r"\b1\.", prediction)
    lines = prediction[first.start() if first else 0 :].splitlines()
    named = [line for raw in lines if (line := _NUMBERING.sub("", raw).strip(" \t*\"'"))]
    return len(wanted & {_nearest(line, titles) for line in named[:k]}) / len(wanted)


_NUMBERING = re.compile(r"\A\s*(?:\d+[.)]|[-*])?\s*")


def objectives(prediction: str, answers: Answers) -> float:
    """Share of the objectives that the `;`-separated `<answer>` meets, in order (MEM1, as 0..1)."""
    wanted = [[answer] for answer in _kept(answers, "objectives")]
    return mem1_em(prediction, wanted) / len(wanted)


def infbench_f1(fluency: int, recalled: float, supported: float) -> float:
    """MemoryAgentBench's summary score: fluency (0 or 1) times F1 of two shares.

    `recalled`: key points found in the summary, `supported`: sentences of it that are true.
    Source: evaluation.md 3.6; 6 of 10 points and 8 of 10 sentences are 0.686.
    """
    both = recalled + supported
    return fluency * 2 * recalled * supported / both if both else 0.0


# ---- comparisons: as released ---------------------------------------------------------------


def contains_release(prediction: str, answers: Answers) -> float:
    """Only the first answer counts, and a blank one is contained in everything."""
    return float(answers[0].lower() in prediction.lower())


def substring_release(prediction: str, answers: Answers) -> float:
    """As `substring`, but an answer that normalises to nothing fits everything."""
    texts = (normalise(prediction), normalise(parsed_line(prediction)))
    return float(any(normalise(a) in text for a in answers for text in texts))


def rouge_l_release(prediction: str, answers: Answers) -> float:
    """As `rouge_l`; a blank answer scores 0."""
    texts = (prediction, parsed_line(prediction))
    scorer = _rouge_scorer()
    return max(scorer.score(gold, text)["rougeL"].fmeasure for gold in answers for text in texts)


@lru_cache(maxsize=1)
def _rouge_scorer():  # noqa: ANN202 - the type lives in the optional import
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def boxed_release(text: str) -> str:
    """The first box, cut at its first closing brace, else the whole text; trimmed."""
    mark, start = "\\boxed{", -1
    while (start := text.find(mark, start + 1)) >= 0:
        end = text.find("}", start)
        if end < 0:
            break
        if inner := text[start + len(mark) : end]:
            return inner.strip()
    return text.strip()


def label_release(prediction: str, answers: Answers) -> float:
    """The first box counts, cut at its first closing brace; only the first answer counts."""
    found = _unquote(boxed_release(prediction))
    return float(found.isascii() and found.isdigit() and found == _unquote(answers[0]))


def label_release_training(prediction: str, answers: Answers) -> float:
    """Training, where the gold is a list: it is compared as it stands and never equals (7.4)."""
    return 0.0


def label_release_baseline(prediction: str, answers: Answers) -> float:
    """Baselines: a normalised answer inside the parsed line, so `7` fits `17` (trap M-2)."""
    line = normalise(parsed_line(prediction))
    return float(any(normalise(answer) in line for answer in answers))


def keywords_release(prediction: str, answers: Answers) -> float:
    """Split at comma and blank only; nothing is trimmed or dropped."""
    parts = answers[0].split(", ") if len(answers) == 1 else answers
    return sum(part.lower() in prediction.lower() for part in parts) / len(parts)


def keywords_release_training(prediction: str, answers: Answers) -> float:
    """Training: split at commas and trimmed, blank keywords kept. Raises InputError for a list."""
    if len(answers) > 1:
        raise InputError(
            "metric keywords@release-training: expected one gold answer, found a list of "
            f"{len(answers)}, on which the release fails"
        )
    parts = [part.strip() for part in answers[0].split(",")]
    return sum(part.lower() in prediction.lower() for part in parts) / len(parts)


def perltqa_release(prediction: str, answers: Answers) -> float:
    """Several parts are lower-cased and sought in the reply as it is (D43), blank ones kept."""
    if ";" not in answers[0]:
        return contains_release(prediction, answers)
    parts = [part.strip().lower() for part in answers[0].split(";")]
    return sum(part in prediction for part in parts) / len(parts)


# ---- comparisons of other projects ----------------------------------------------------------


def exact_memoryagentbench(prediction: str, answers: Answers) -> float:
    """`exact` on the `Answer:` line (else the first): "label: 43" is not "43" (3.6)."""
    return exact(parsed_line(prediction), answers)


def sub_em_memagent(prediction: str, answers: Answers) -> float:
    """1 if either normalised text contains the other, so an empty reply is right (R-8)."""
    text, golds = normalise(prediction), [normalise(answer) for answer in answers]
    return float(any(text in gold or gold in text for gold in golds))


def mem1_em(prediction: str, golds: Sequence[Sequence[str]]) -> float:
    """How many objectives are met: a sum, at most `len(golds)`; `golds` are accepted answers each.

    The last `<answer>` is split at `;`; another number of parts than objectives scores 0. Equal is
    equal once normalised. Source: evaluation.md 4.6.
    """
    _, opened, inner = prediction.rpartition("</answer>")[0].rpartition("<answer>")
    parts = [normalise(part) for part in inner.split(";")] if opened else []
    if len(parts) != len(golds):
        return 0.0
    pairs = zip(parts, golds, strict=True)
    return float(sum(part in map(normalise, accepted) for part, accepted in pairs))


def _strip(name: str) -> Callable[[str], str | None]:
    """How a reply is cut for the metric of this name."""
    rules = name.partition("@")[2]
    if rules == "release-training":
        return answer_text_training
    return answer_text_release if rules in ("release", "release-baseline") else answer_text


METRICS: dict[str, Metric] = {
    name: Metric(name, compare, _strip(name))
    for name, compare in {
        "contains": contains,
        "contains@words": lambda p, a: contains(p, a, words=True),
        "contains@release": contains_release,
        "label": label,
        "label@release": label_release,
        "label@release-baseline": label_release_baseline,
        "label@release-training": label_release_training,
        "keywords": keywords,
        "keywords@words": lambda p, a: keywords(p, a, words=True),
        "keywords@release": keywords_release,
        "keywords@release-training": keywords_release_training,
        "perltqa": perltqa,
        "perltqa@words": lambda p, a: perltqa(p, a, words=True),
        "perltqa@release": perltqa_release,
        "substring": substring,
        "substring@words": lambda p, a: substring(p, a, words=True),
        "substring@decimals": lambda p, a: substring(p, a, plain=normalise_decimals),
        "substring@release": substring_release,
        "rouge_l": rouge_l,
        "rouge_l@release": rouge_l_release,
        "exact": exact,
        "exact@memoryagentbench": exact_memoryagentbench,
        "token_f1": token_f1,
        "all_elements": all_elements,
        "share_found": share_found,
        "wos": wos,
        "wos@release": lambda p, a: _levels(boxed_release(p), p, a),
        "concepts": concepts,
        "recall_at_5": recall_at,
        "boxed_exact": boxed_exact,
        "boxed_exact@release": lambda p, a: float(boxed_release(p) == a[0]),
        "choice": choice,
        "sub_em@release-memagent": sub_em_memagent,
        "objectives": objectives,
        "em@release-mem1": lambda p, a: mem1_em(p, [[answer] for answer in a]),
    }.items()
}
"""All metrics by name. Judged ones are not among them: they need a model (`scoring.JUDGED`)."""
