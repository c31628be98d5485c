r"""The published scorers by name: metrics with `@`, and what each profile compares.

| profile | repeats |
| --- | --- |
| `release-agent` | `evaluate_agent_results.py`, for agents with a memory |
| `release-baseline` | `long_context_eval.py`, for baselines |
| `release-training` | `verl/workers/reward_manager/naive.py`, the reward of training |
| `memoryagentbench` | MemoryAgentBench's own rules |

Which metric a source has under them says `release/tasks.py`. `@release-memagent` and
`@release-mem1` are the metrics of MemAgent and MEM1. Differs: a failed reply is never scored 0.

>>> from memalpha_kit.method.metrics import score
>>> score("label@release", r"Use \boxed{label}. \boxed{7}", ("7",))
0.0
"""

from __future__ import annotations

import re

from memalpha_kit.evaluation.scoring import RULES, Item, Rules
from memalpha_kit.method.metrics import METRICS, Answers, Metric, NoGold, last_answer, unquoted
from memalpha_kit.text import normalise

TRAINED = "label@release-training"


def answer_text(raw: str) -> str:
    """What stands between the first `</think>` and the next; the word `Empty` if one is open."""
    text = raw.split("</think>")[1].strip() if "</think>" in raw else raw
    return "Empty" if "<think>" in text else text


def answer_text_training(raw: str) -> str:
    """As `answer_text`, if `<think>` is there too; else the whole reply."""
    return answer_text(raw) if "<think>" in raw else raw


def parsed_line(text: str) -> str:
    """The rest of the line after `Answer:` (any case), else the first line; one prefix is cut."""
    match = re.search(r"answer:", text, re.IGNORECASE)
    line = (text[match.end() :] if match else text).partition("\n")[0].strip()
    return re.sub(r"^answer:\s*", "", line, flags=re.IGNORECASE).strip()


def boxed(text: str) -> str:
    r"""The first `\boxed{...}`, cut at its first closing brace, else the whole text; trimmed.

    An empty box is an empty answer.
    """
    _, mark, rest = text.partition("\\boxed{")
    inner, brace, _ = rest.partition("}")
    return (inner if mark and brace else text).strip()


def contains(prediction: str, answers: Answers) -> float:
    """Only the first answer counts, and a blank one is contained in everything."""
    return float(answers[0].lower() in prediction.lower())


def substring(prediction: str, answers: Answers) -> float:
    """An answer that normalises to nothing fits everything."""
    texts = (normalise(prediction), normalise(parsed_line(prediction)))
    return float(any(normalise(answer) in text for answer in answers for text in texts))


def label(prediction: str, answers: Answers) -> float:
    """The first box counts, and only the first answer."""
    digits = unquoted(boxed(prediction))
    return float(digits.isascii() and digits.isdigit() and digits == unquoted(answers[0]))


def label_training(prediction: str, answers: Answers) -> float:
    """Where the gold is a list, it is compared as it stands and never equals."""
    return 0.0


def label_baseline(prediction: str, answers: Answers) -> float:
    """A normalised answer inside the parsed line, so `7` fits `17`."""
    line = normalise(parsed_line(prediction))
    return float(any(normalise(answer) in line for answer in answers))


def keywords(prediction: str, answers: Answers) -> float:
    """Split at comma and blank only; nothing is trimmed or dropped."""
    return _share(answers[0].split(", ") if len(answers) == 1 else answers, prediction.lower())


def keywords_training(prediction: str, answers: Answers) -> float:
    """Split at commas and trimmed, blank keywords kept. Raises NoGold for a list."""
    if len(answers) > 1:
        raise NoGold(
            "metric keywords@release-training: expected one gold answer, found a list of "
            f"{len(answers)}, on which the release fails"
        )
    return _share([part.strip() for part in answers[0].split(",")], prediction.lower())


def perltqa(prediction: str, answers: Answers) -> float:
    """Several parts are lower-cased and sought in the reply as it is, blank ones kept."""
    if ";" not in answers[0]:
        return contains(prediction, answers)
    return _share([part.strip() for part in answers[0].split(";")], prediction)


def _share(parts: Answers | list[str], text: str) -> float:
    return sum(part.lower() in text for part in parts) / len(parts)


def rouge_l(prediction: str, answers: Answers) -> float:
    """ROUGE-L of the package `rouge_score`, which sees ASCII letters only; a blank answer is 0."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    texts = (prediction, parsed_line(prediction))
    return max(scorer.score(gold, text)["rougeL"].fmeasure for gold in answers for text in texts)


def exact_memoryagentbench(prediction: str, answers: Answers) -> float:
    """Equal on the `Answer:` line (else the first): "label: 43" is not "43"."""
    golds = [normalise(answer) for answer in answers if normalise(answer)]
    if not golds:
        raise NoGold("metric exact@memoryagentbench: expected a non-blank gold answer")
    return float(normalise(parsed_line(prediction)) in golds)


def sub_em_memagent(prediction: str, answers: Answers) -> float:
    """1 if either normalised text contains the other, so an empty reply is right."""
    text, golds = normalise(prediction), [normalise(answer) for answer in answers]
    return float(any(text in gold or gold in text for gold in golds))


def em_mem1(prediction: str, answers: Answers) -> float:
    """How many objectives the last `<answer>` meets: a sum, at most the number of answers.

    It is split at `;`, with a single objective too; another number of parts scores 0.
    """
    inner = last_answer(prediction)
    parts = [] if inner is None else [normalise(part) for part in inner.split(";")]
    if len(parts) != len(answers):
        return 0.0
    return float(sum(p == normalise(a) for p, a in zip(parts, answers, strict=True)))


for _name, _metric in {
    "contains@release": Metric(contains, answer_text),
    "substring@release": Metric(substring, answer_text),
    "label@release": Metric(label, answer_text),
    "label@release-baseline": Metric(label_baseline, answer_text),
    TRAINED: Metric(label_training, answer_text_training),
    "keywords@release": Metric(keywords, answer_text),
    "keywords@release-training": Metric(keywords_training, answer_text_training),
    "perltqa@release": Metric(perltqa, answer_text),
    "rouge_l@release": Metric(rouge_l, answer_text),
    "exact@memoryagentbench": Metric(exact_memoryagentbench),
    "sub_em@release-memagent": Metric(sub_em_memagent),
    "em@release-mem1": Metric(em_mem1),
}.items():
    METRICS.add(_name, _metric)


def _by_gold(metric: str, item: Item) -> str:
    """Training compares labels only where the data has a text as gold, not a list."""
    return "label@release" if metric == TRAINED and isinstance(item.gold, str) else metric


RULES.add("release-agent", Rules(answer_text, compares_blank=True))
RULES.add("release-baseline", Rules(answer_text, compares_blank=True))
RULES.add("release-training", Rules(answer_text_training, True, _by_gold))
RULES.add("memoryagentbench", Rules())  # its models do not think aloud
