"""HotpotQA (Yang et al., 2018): questions that need two articles, and the sentences that say so.

A raw row, in the hub's layout (parquet, JSON lines or a JSON list) or in that of the authors'
file, `_id` and pairs instead of columns:

    {"id": ..., "question": ..., "answer": "Lisk River",
     "context": {"title": ["Ada Venn", ...], "sentences": [["Ada Venn founded ...", ...], ...]},
     "supporting_facts": {"title": ["Ada Venn", "Port Marrow"], "sent_id": [0, 0]}}

An instance shows the articles that its questions need, and no other. Laws: every sentence that a
question needs stands in a chunk, whole, or the question is left out; questions that share articles,
directly or through others, are kept together where they fit into one instance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from memalpha_kit.data.chunks import pack_sizes, split_long
from memalpha_kit.data.dataset import linked
from memalpha_kit.data.raw import Row, Text, checked, short
from memalpha_kit.data.sources.building import Draft, Job, finish, only, sizes
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance

FILES = (
    "hotpot*train*.json|hotpot*.json|hotpot*train*.jsonl|hotpot*.jsonl|hotpot*train*.parquet|"
    "hotpot*.parquet|train-*.parquet|fullwiki/train-*.parquet|distractor/train-*.parquet",
)
COLUMNS = ("id", "question", "answer", "context", "supporting_facts")

Fact = tuple[str, str]  # title, sentence without outer white space
Articles = dict[str, str]  # what is shown of each that a question needs, by title


def _pairs(columns: Sequence[str], kind: type) -> BeforeValidator:
    """(title, value) pairs from two columns, as on the hub, or as pairs, as from the authors."""

    def read(value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, dict):
            first, second = (value.get(name) for name in columns)
            if not (isinstance(first, list) and isinstance(second, list)):
                raise ValueError(f"expected lists of {' and '.join(columns)}, found {short(value)}")
            if len(first) != len(second):
                found = f"{len(first)} and {len(second)}"
                raise ValueError(f"expected {' and '.join(columns)} of one length, found {found}")
            value = list(zip(first, second, strict=True))
        for pair in value if isinstance(value, list) else [value]:
            known = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
            if not known or not isinstance(pair[1], kind) or isinstance(pair[1], bool):
                raise ValueError(f"expected a title and {columns[1]}, found {pair!r:.60}")
        return [tuple(pair) for pair in value]

    return BeforeValidator(read)


class _RawRow(Row):
    question: Text
    answer: Text
    id: Text = Field(validation_alias=AliasChoices("_id", "id"))
    context: Annotated[list, _pairs(("title", "sentences"), list)]
    supporting_facts: Annotated[list, _pairs(("title", "sent_id"), int)]


@dataclass(frozen=True)
class Question:
    """A question with the sentences it needs, in the order of the file.

    `complete` is False where an article it needs is not in its context, or no sentence is.
    """

    qa: QA
    facts: tuple[Fact, ...]
    complete: bool

    @property
    def titles(self) -> tuple[str, ...]:
        """The articles it needs, each once."""
        return tuple(dict.fromkeys(title for title, _ in self.facts))


Packed = list[list[Fact]]
"""A batch's chunks: (title, text) of each article or part of one."""


def chunk_of(chunks: Packed, title: str, sentence: str = "") -> int | None:
    """The first chunk in which the sentence of that article stands."""
    for number, chunk in enumerate(chunks):
        if any(name == title and sentence in text for name, text in chunk):
            return number
    return None


def build(job: Job) -> list[Instance]:
    """Batches of about `config.article_tokens` of evidence articles with their questions.

    An article above its target is a chunk of its own and one above chunk_max_tokens is split.
    Raises InputError if no instance is left.
    """
    questions, articles, k = read_questions(job, whole_text)
    complete = [question for question in questions if question.complete]
    left_out = len(questions) - len(complete)
    job.skips.drop("questions whose evidence is not in their context", left_out)
    return from_batches(job, by_component(complete, k), articles, pack_whole, evidence)


def evidence(question: Question, chunks: Packed) -> list[int | None]:
    """The chunks with its sentences, None for one that is in none."""
    return [chunk_of(chunks, *fact) for fact in question.facts]


def from_batches(
    job: Job,
    batches: Iterable[Sequence[Question]],
    articles: Articles,
    pack: Callable[[Job, int, list[Fact]], Packed],
    evidence: Callable[[Question, Packed], list[int | None]],
) -> list[Instance]:
    """One instance of each batch. `evidence` gives a question's chunks, None for one that is lost;
    such a question is dropped.
    """

    def draft(number: int, asked: Sequence[Question]) -> Draft | None:
        titles = list(dict.fromkeys(title for q in asked for title in q.titles))
        chunks = pack(job, number, [(title, articles[title]) for title in titles])
        if len(chunks) > job.config.article_max_chunks:
            job.skips.drop("instances with too many chunks")
            return None
        found = [(question, evidence(question, chunks)) for question in asked]
        kept = [(q, sorted({c for c in w if c is not None})) for q, w in found if None not in w]
        job.skips.drop("questions whose evidence is not in the chunks", len(found) - len(kept))
        details = ((q.qa.id, {"chunks": c, "facts": q.facts}) for q, c in kept)
        return Draft(
            ["\n\n".join(titled(*part) for part in chunk) for chunk in chunks],
            [replace(q.qa, chunk=only(c)) for q, c in kept],
            titles,
            {name: json.dumps(detail, ensure_ascii=False) for name, detail in details},
        )

    drafts = (draft(number, asked) for number, asked in enumerate(batches))
    return finish(job, filter(None, drafts), *FILES)


def titled(title: str, text: str) -> str:
    """An article as a chunk shows it."""
    return f"Title: {title}\n{text}"


def whole_text(sentences: Sequence[str]) -> str:
    """The text of an article."""
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip())


def batch(units: Iterable[Sequence[Question]], k: int) -> list[list[Question]]:
    """Consecutive units together while they need at most `k` articles."""
    batches: list[list[Question]] = []
    titles: set[str] = set()
    for unit in units:
        needed = {title for question in unit for title in question.titles}
        if not batches or len(titles | needed) > k:
            batches.append([])
            titles = set()
        batches[-1] += unit
        titles |= needed
    return batches


def by_component(questions: Sequence[Question], k: int) -> list[list[Question]]:
    """Batches in which questions that share articles stand together.

    Components of at most `k` articles are never divided; each larger one has batches of its own.
    In the order of the first question of each batch.
    """
    order = {question.qa.id: number for number, question in enumerate(questions)}
    small: list[list[Question]] = []
    batches: list[list[Question]] = []
    for numbers in linked(question.titles for question in questions):
        component = [questions[number] for number in numbers]
        if len({title for question in component for title in question.titles}) <= k:
            small.append(component)
        else:
            batches += batch([[question] for question in component], k)
    batches += batch(small, k)
    return sorted(batches, key=lambda one: order[one[0].qa.id])


def pack_whole(job: Job, number: int, articles: Sequence[Fact]) -> Packed:
    """Articles whole in chunks to drawn targets; one above chunk_max_tokens in parts."""
    measure, limit = job.counter, job.config.chunk_max_tokens
    parts: list[Fact] = []
    tokens: list[int] = []
    for title, text in articles:
        size = measure.count(titled(title, text))
        if size <= limit:
            parts.append((title, text))
            tokens.append(size)
            continue
        room = max(limit - measure.count(titled(title, "")), 1)
        parts += [(title, part.strip()) for part in split_long(text, measure, room)]
        tokens += [measure.count(titled(*part)) for part in parts[len(tokens) :]]
    groups = pack_sizes(tokens, measure.count("\n\n"), job.targets(number))
    return [[parts[i] for i in group] for group in groups]


def read_questions(
    job: Job, text_of: Callable[[Sequence[str]], str]
) -> tuple[list[Question], Articles, int]:
    """The questions, the articles that they need, and how many articles make `article_tokens`.

    An article is what `text_of` makes of its sentences in the first question that needs it. The
    others, eight of ten, are measured once and not kept. Raises InputError naming row and field of
    what is not as it must be.
    """
    questions: list[Question] = []
    articles: Articles = {}
    seen: set[str] = set()

    def new_articles() -> Iterator[str]:
        for row in job.read(_read_row, *FILES, COLUMNS):
            context = dict(row.context)
            shown = {t: text_of(s) for t, s in context.items() if any(map(str.strip, s))}
            empty = len(context) - len(shown)
            job.skips.drop("articles without text that no question needs", empty)
            questions.append(_question(job, row, context))
            for title in questions[-1].titles:
                articles.setdefault(title, shown[title])
            yield from (titled(t, text) for t, text in shown.items() if t not in seen)
            seen.update(shown)

    total = sum(sizes(new_articles(), job.config))
    return questions, articles, max(1, job.config.article_tokens * len(seen) // max(total, 1))


def _question(job: Job, row: _RawRow, context: dict[str, list[str]]) -> Question:
    facts: list[Fact] = []
    for title, number in row.supporting_facts:
        sentences = context.get(title, [])
        there = 0 <= number < len(sentences) and sentences[number].strip()
        facts += [(title, there)] if there else []
        job.skips.drop("supporting facts out of range", not there)
    complete = bool(facts) and all(title in context for title, _ in row.supporting_facts)
    return Question(QA(row.id, row.question.strip(), (row.answer.strip(),)), tuple(facts), complete)


def _read_row(raw: Any, where: str) -> _RawRow:
    row = checked(_RawRow, raw, where)
    needed = {title for title, _ in row.supporting_facts}
    for title, sentences in dict(row.context).items():
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise InputError(f"{where}: context: expected sentences as text in {title!r}")
        if title in needed and not any(sentence.strip() for sentence in sentences):
            raise InputError(f"{where}: context: expected text in {title!r}, found none")
    return row
