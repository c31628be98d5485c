"""SQuAD (Rajpurkar et al., 2016): paragraphs of Wikipedia articles and questions about them.

A raw file is JSON in the layout of version 1.1 (version 2.0's questions without an answer are left
out), or the hub's parquet with a row per question:

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
        {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": 515}]}]}]}]}

Laws: an article stands in one instance, unless it alone has more than `max_chunks` chunks; every
question knows its chunk from packing, not from a search. Groups are article titles.
With `stage`, questions that can be answered without the text, or not shortly, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator

from memalpha_kit.data.chunks import pack_sizes
from memalpha_kit.data.raw import M, Row, Text, checked, matches, raw_file, read_json
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources.building import Draft, Job, finish, sizes
from memalpha_kit.records import QA, Instance

FILES = (
    "squad*train*.json|squad*.json|squad*.parquet|train-v*.json|dev-v*.json|train-*.parquet|"
    "plain_text/train-*.parquet",
)
COLUMNS = ("id", "title", "context", "question", "answers")
OPEN = 20  # instances that may still take an article

Chunks = list[list[int]]  # paragraphs by chunk


class _RawAnswer(Row):
    text: Text


def _as_objects(answers: Any) -> Any:
    """The hub's answers, a list per field, as the authors' list of objects."""
    texts = answers.get("text") if isinstance(answers, dict) else None
    return [{"text": text} for text in texts] if isinstance(texts, list) else answers


class _RawQuestion(Row):
    question: Text
    answers: Annotated[list[_RawAnswer], BeforeValidator(_as_objects)]
    id: Text

    def qa(self, skips: Skips) -> QA | None:
        """The question with its first answer, or None, which is counted, if it has no answer."""
        skips.drop("questions without an answer", not self.answers)
        return QA(self.id, self.question.strip(), (self.answers[0].text,)) if self.answers else None


class HubRow(_RawQuestion):
    """A question in the hub's layout, beside its title and its context."""

    title: Text
    context: Text


class _RawParagraph(Row):
    context: Text
    qas: list


class _RawArticle(Row):
    paragraphs: list
    title: Any = None


class _RawFile(Row):
    data: list


@dataclass
class Paragraph:
    """One context with its questions, whose `chunk` is not known yet."""

    text: str
    article: str  # title
    questions: list[QA] = field(default_factory=list)


Share = tuple[Chunks, list[QA]]
"""The chunks of an instance and its questions, which know their chunk."""


def by_article(job: Job, paragraphs: Sequence[Paragraph], tokens: Sequence[int]) -> list[Share]:
    """Instances of whole articles; one goes to the first of the open instances with room for it."""
    space, limit = job.counter.count("\n\n"), job.config.max_chunks

    def packed(name: str, indices: Sequence[int]) -> Chunks:
        groups = pack_sizes([tokens[i] for i in indices], space, job.targets(name))
        return [[indices[i] for i in group] for group in groups]

    articles: dict[str, list[int]] = {}
    for index, paragraph in enumerate(paragraphs):
        articles.setdefault(paragraph.article, []).append(index)
    shares: list[tuple[str, list[int], Chunks]] = []  # first article, paragraphs, chunks
    waiting: list[int] = []
    for title, own in articles.items():
        for number in waiting:
            name, held, _ = shares[number]
            chunks = packed(name, held + own)
            if len(chunks) <= limit:
                shares[number] = (name, held + own, chunks)
                break
        else:
            waiting = [*waiting, len(shares)][-OPEN:]
            shares.append((title, own, packed(title, own)))
        waiting = [number for number in waiting if len(shares[number][2]) < limit]
    found = [part for _, _, chunks in shares for part in parts(chunks, limit)]
    return [(chunks, _recorded(paragraphs, chunks)) for chunks in found]


def parts(chunks: Chunks, size: int) -> list[Chunks]:
    """The chunks, `size` by `size`."""
    return [chunks[i : i + size] for i in range(0, len(chunks), size)]


def _recorded(paragraphs: Sequence[Paragraph], chunks: Chunks) -> list[QA]:
    """The questions of an instance, each with the chunk that its paragraph was packed into."""
    placed = [(number, index) for number, chunk in enumerate(chunks) for index in chunk]
    return [replace(qa, chunk=n) for n, index in placed for qa in paragraphs[index].questions]


def build(job: Job, share: Callable[..., list[Share]] = by_article) -> list[Instance]:
    """Articles packed into instances of at most `config.max_chunks` chunks.

    Chunks are packed to targets drawn from chunk_min_tokens..chunk_max_tokens. Instances with fewer
    than `min_questions`, or after the stage `min_kept_questions`, are dropped; more than
    `max_questions` are sampled, in order. Raises InputError if no instance is left.
    """
    paragraphs = read_paragraphs(job)
    tokens = list(sizes((paragraph.text for paragraph in paragraphs), job.config))
    measure, limit = job.counter, job.config.chunk_max_tokens

    def short(qa: QA) -> bool:
        fits = len(qa.question) < limit or measure.count(qa.question) < limit
        job.skips.drop("questions longer than a chunk", not fits)
        return fits

    drafts = [
        Draft(
            contents=["\n\n".join(paragraphs[i].text for i in chunk) for chunk in chunks],
            questions=[qa for qa in asked if short(qa)],
            groups=list(dict.fromkeys(paragraphs[i].article for chunk in chunks for i in chunk)),
        )
        for chunks, asked in share(job, paragraphs, tokens)
    ]
    return finish(job, drafts, *FILES)


def read_paragraphs(job: Job) -> list[Paragraph]:
    """The paragraphs of the raw file, each context once, in order of first appearance.

    Raises InputError naming article, paragraph and question of a field that is not as it must be.
    """

    def of_hub(row: Any, where: str) -> tuple[str, str, QA | None]:
        asked = checked(HubRow, row, where)
        return asked.title, asked.context, asked.qa(job.skips)

    parquet = [path for path in matches(job.raw, *FILES)[:1] if path.suffix == ".parquet"]
    found: dict[str, Paragraph] = {}
    for title, context, qa in job.read(of_hub, *FILES, COLUMNS) if parquet else _articles(job):
        found.setdefault(context, Paragraph(context, title)).questions.extend([qa] if qa else [])
    return list(found.values())


def _articles(job: Job) -> Iterator[tuple[str, str, QA | None]]:
    """(title, context, question) of each question, and (title, context, None) of each context."""
    path = raw_file(job.raw, *FILES)

    def each(model: type[M], values: list, here: str) -> Iterator[tuple[M, str]]:
        numbered = ((value, f"{here} {i}") for i, value in enumerate(values))
        return job.skips.each(lambda value, where: (checked(model, value, where), where), numbered)

    content = checked(_RawFile, read_json(path), str(path))
    for article, where in each(_RawArticle, content.data, f"{path}: article"):
        known = isinstance(article.title, str) and article.title.strip()
        title = article.title if known else where.rpartition(": ")[2]
        title = title.encode("utf-8", "replace").decode()  # a seed may hold no half surrogate pair
        for paragraph, here in each(_RawParagraph, article.paragraphs, f"{where}, paragraph"):
            yield title, paragraph.context, None
            for asked, _ in each(_RawQuestion, paragraph.qas, f"{here}: question"):
                yield title, paragraph.context, asked.qa(job.skips)
