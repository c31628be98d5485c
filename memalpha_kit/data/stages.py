"""Stages that a builder asks for: which questions need the text, keywords, short answers.

Four questions, put by the builders of some sources (squad and hotpotqa; booksum and
infbench_sum_eng_shots2; perltqa twice):

    stage = stages.chosen(config)                    # None for config.stage == "none"
    stage.closed_book([(question, gold), ...], count)  # [True, False, None, ...]
    stage.keywords([summary, ...])                     # [("Nell", "blue door"), None, ...]
    stage.shorten([(question, answer), ...])           # ["31 years", None, ...]
    stage.answerable(text, [(question, gold), ...])    # ["Forty", "", None, ...]

Two answer them: `rules` (`Stage` itself) is a floor for machines without a model, `llm` asks a
language model; whatever else is added to `STAGES` can be named in the setting `stage`. Results come
in the order of what was handed in, so they can never be attached to another text. What failed is
None and counted by the builder: never "", never an empty list (in the published `process_data.py` a
failed call gives an empty answer, and keywords are looked up by the row's number).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from memalpha_kit.chats import ChatReply, request
from memalpha_kit.errors import InputError
from memalpha_kit.models.chat import Client
from memalpha_kit.models.servers import Endpoint
from memalpha_kit.registry import Registry
from memalpha_kit.settings import BuildConfig
from memalpha_kit.text import normalise, without_thinking

Pairs = Sequence[tuple[str, str]]
"""(question, gold answer) of each question."""
_TEXTS = yaml.safe_load(Path(__file__).with_name("stages.yaml").read_text(encoding="utf-8"))
CLOSED_BOOK, KEYWORDS, SHORTEN, ANSWER = (
    (row["version"], row["text"], row["max_tokens"]) for row in _TEXTS["instructions"].values()
)
MAX_KEYWORDS = 20
MAX_WORDS = 3  # of one keyword


class Stage:
    """The floor: keeps the shape of the data right (short golds, keywords instead of prose).

    closed book     a question is dropped if it contains its gold, or the gold is yes or no
    keywords        names and phrases of a summary, cut at stop words
    shortening      what an answer adds to the words of its question, in pieces of three words
    answerability   the whole text stands for the reply: the gold must be mentioned in it
    """

    def closed_book(self, pairs: Pairs, count: Callable[[str], int]) -> list[bool | None]:
        """True for a question to keep, False for one to remove, None if the model failed.

        `count` measures golds in tokens; golds of five tokens or more are removed without asking.
        """
        short = [i for i, (_, gold) in enumerate(pairs) if gold.strip()]
        short = [i for i in short if count(pairs[i][1]) < 5]
        verdicts: list[bool | None] = [False] * len(pairs)
        for i, verdict in zip(short, self.needs_text([pairs[i] for i in short]), strict=True):
            verdicts[i] = verdict
        return verdicts

    def needs_text(self, pairs: Pairs) -> list[bool | None]:
        """Whether each question cannot be answered without the text; None if the model failed."""
        return [normalise(g) not in ("yes", "no") and not mentions(q, g) for q, g in pairs]

    def keywords(self, summaries: Sequence[str]) -> list[tuple[str, ...] | None]:
        """The keywords of each summary; None where there are none to be had."""
        return [keywords_by_rule(summary) or None for summary in summaries]

    def shorten(self, pairs: Pairs) -> list[str | None]:
        """Each answer in keywords of at most three words, joined by `; `; None: it has to stay."""
        return [_usable(shortened_by_rule(*pair)) for pair in pairs]

    def answerable(self, text: str, pairs: Pairs) -> list[str | None]:
        """The part of each gold that the text tells, "" for none; None if the model failed."""
        return [narrowed(gold, text) for _, gold in pairs]


@dataclass(frozen=True)
class Llm(Stage):
    """A model behind an OpenAI-compatible server, at temperature 0.

    `client.chat` names a request by its content, stores only replies that `accept` takes, and gives
    text None for one that cannot be had; so what failed is asked again next time.
    """

    client: Client

    def needs_text(self, pairs: Pairs) -> list[bool | None]:
        """Whether the model's answer to the question alone does not mention the gold."""
        replies = self._ask(CLOSED_BOOK, [question for question, _ in pairs])
        return [
            None if reply is None else not mentions(reply, gold)
            for (_, gold), reply in zip(pairs, replies, strict=True)
        ]

    def keywords(self, summaries: Sequence[str]) -> list[tuple[str, ...] | None]:
        """What the model lists; a blank summary is not asked about."""
        asked = [i for i, summary in enumerate(summaries) if summary.strip()]
        texts = [summaries[i] for i in asked]
        replies = self._ask(KEYWORDS, texts, lambda reply: "" if listed(reply) else "no keyword")
        found = {i: listed(reply or "") for i, reply in zip(asked, replies, strict=True)}
        return [found.get(i) or None for i in range(len(summaries))]

    def shorten(self, pairs: Pairs) -> list[str | None]:
        """A reply that breaks the rules is asked for again with the reason, three times in all."""
        found: list[str | None] = [None] * len(pairs)
        reasons = {i: "" for i, (_, answer) in enumerate(pairs) if answer.strip()}
        for _ in range(3):  # replies are asked for until one can be used
            texts = []
            for i, why in reasons.items():
                again = f"\nYour last reply could not be used: {why}." if why else ""
                texts.append(f"Question: {pairs[i][0]}\nAnswer: {pairs[i][1]}{again}")
            replies = dict(zip(reasons, self._ask(SHORTEN, texts, too_long), strict=True))
            reasons = {i: why for i, reply in replies.items() if (why := too_long(reply or "x"))}
            for i in replies.keys() - reasons.keys():
                found[i] = _usable(replies[i] or "")
        return found

    def answerable(self, text: str, pairs: Pairs) -> list[str | None]:
        """The gold of each question as far as the model finds it in the text."""
        replies = self._ask(ANSWER, [f"{text}\n\nQuestion: {question}" for question, _ in pairs])
        return [
            None if reply is None else narrowed(gold, reply)
            for (_, gold), reply in zip(pairs, replies, strict=True)
        ]

    def _ask(
        self,
        instruction: tuple[str, str, int],  # version, text, and the most tokens of a reply
        texts: Sequence[str],
        problem: Callable[[str], str] = lambda text: "",
    ) -> list[str | None]:
        """The finished reply to each text, None where there is none; only those without a `problem`
        are stored. Whether the model reasons is left to the server."""
        version, system, limit = instruction
        requests = [
            request(system, text, max_tokens=limit, thinking=None, version=version)
            for text in texts
        ]

        def accepted(reply: ChatReply) -> bool:
            text = finished_text(reply)
            return text is not None and not problem(text)

        return list(map(finished_text, self.client.chat(requests, accept=accepted)))


def finished_text(reply: ChatReply) -> str | None:
    """The reply without its reasoning; None if it failed, was cut off or says nothing."""
    if reply.text is None or reply.finish == "length":
        return None
    return without_thinking(reply.text) or None


STAGES: Registry[Callable[[BuildConfig], Stage]] = Registry("stage")
STAGES.add("rules", lambda config: Stage())


@STAGES.register("llm")
def _llm(config: BuildConfig) -> Llm:
    """Address and model come from the settings, else from OPENAI_BASE_URL and OPENAI_MODEL."""
    url = config.llm_url or os.environ.get("OPENAI_BASE_URL", "")
    name = config.llm_model or os.environ.get("OPENAI_MODEL", "")
    if not url:
        raise InputError("llm_url: expected http(s)://host/v1, found none")
    if not name:
        raise InputError("llm_model: expected the name of the server's model, found none")
    cache = Path(config.llm_cache)
    return Llm(Client(Endpoint(url, name, key_env=config.llm_key_env, cache=cache)))


def chosen(config: BuildConfig) -> Stage | None:
    """What the setting `stage` names, None for "none". Raises InputError."""
    return None if config.stage == "none" else STAGES[config.stage](config)


_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


def listed(reply: str) -> tuple[str, ...]:
    """The items of a comma-separated or bulleted reply.

    >>> listed("Nell, blue door, nell, , backwards clock")
    ('Nell', 'blue door', 'backwards clock')
    """
    items = (_LIST_MARK.sub("", item) for line in reply.splitlines() for item in line.split(","))
    return unique(items)


def too_long(reply: str) -> str:
    """Why a shortened answer cannot be used, or ""."""
    keywords = [keyword.strip() for keyword in reply.split(";") if keyword.strip()]
    for keyword in keywords:
        if len(keyword.split()) > MAX_WORDS:
            return f"{keyword!r} has {len(keyword.split())} words, three are allowed"
    return "" if keywords else "it has no keyword"


_normalised = lru_cache(1)(normalise)  # a long text is asked for many phrases


def mentions(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text`, both normalised, from one word's start to another's end.

    A phrase of nothing but punctuation and articles is never found.

    >>> mentions("I know it.", "no"), mentions("It was in 1911.", "1911")
    (False, True)
    """
    wanted = normalise(phrase)
    return bool(wanted) and f" {wanted} " in f" {_normalised(text)} "


def narrowed(gold: str, reply: str) -> str:
    """The keywords of the gold that the reply mentions, joined by `;`; "" if it mentions none.

    >>> narrowed("Forty; lemon trees; olive trees", "Forty lemon trees")
    'Forty;lemon trees'
    """
    if ";" not in gold:
        return gold if mentions(reply, gold) else ""
    return ";".join(k.strip() for k in gold.split(";") if mentions(reply, k))


def unique(items: Iterable[str]) -> tuple[str, ...]:
    """The items without blank ones and without repetitions in any case, the first one kept."""
    kept: dict[str, str] = {}
    for item in items:
        if item.strip():
            kept.setdefault(item.strip().lower(), item.strip())
    return tuple(kept.values())


def _usable(text: str) -> str | None:
    """The tidied keywords, or None if they cannot stand for the answer."""
    return None if too_long(text) else "; ".join(unique(text.split(";")))


STOP_WORDS = frozenset(_TEXTS["stop_words"].split())
_TITLES = "|".join(_TEXTS["titles"].split())
_TITLE = re.compile(rf"(?:{_TITLES})\.?", re.IGNORECASE)
_WORD = re.compile(rf"\b(?i:{_TITLES})\.|\d+(?:[.,:]\d+)*|[^\W_]+(?:[-'’][^\W_]+)*")


def keywords_by_rule(text: str) -> tuple[str, ...]:
    """Names and phrases of two or three words in order of appearance; single words if none.

    >>> keywords_by_rule("Mrs. Bennet opens a blue door.")
    ('Mrs. Bennet', 'blue door')
    """
    runs = [run for run in _runs(text) if not all(map(_TITLE.fullmatch, run))]
    named = [run for run in runs if len(run) > 1 or run[0][:1].isupper() or run[0][:1].isdigit()]
    return unique(" ".join(run) for run in named or runs)[:MAX_KEYWORDS]


def shortened_by_rule(question: str, answer: str) -> str:
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
        word, apart = match[0], text[end : match.start()].strip(" ") != ""
        name_ends = bool(run) and run[-1][:1].isupper() != word[:1].isupper()
        stops = word.lower() in left_out
        if run and (apart or name_ends or stops or len(run) == MAX_WORDS):
            yield run
            run = []
        if not stops:
            run.append(word)
        end = match.end()
    if run:
        yield run
