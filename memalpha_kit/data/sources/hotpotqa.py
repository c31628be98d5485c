"""HotpotQA (Yang et al., 2018): questions that need two articles, and the sentences that say so.

A raw row, in the hub's layout (parquet, JSON lines or a JSON list) or in that of the authors'
file, `_id` and pairs instead of columns:

    {"id": ..., "question": ..., "answer": "Lisk River",
     "context": {"title": ["Ada Venn", ...], "sentences": [["Ada Venn founded ...", ...], ...]},
     "supporting_facts": {"title": ["Ada Venn", "Port Marrow"], "sent_id": [0, 0]}}

An instance shows the articles that its questions need, and no other. Laws: every sentence that a
question needs stands in a chunk, whole, or the question is left out (D8); questions that share
articles, directly or through others, are kept together where they fit into one instance (D2).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memalpha_kit.data.chunks import pack_sizes, split_long
from memalpha_kit.data.sources.building import Skips, generator, matches, raw_rows, sizes, take
from memalpha_kit.data.sources.documents import Draft, finish
from memalpha_kit.data.sources.frames import DOCUMENT_LEAD_INS
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter

FILES = ("hotpot*.json|hotpot*.jsonl|hotpot*.parquet|train-*.parquet",)
COLUMNS = ("id", "question", "answer", "context", "supporting_facts")

Fact = tuple[str, str]  # title, sentence without outer white space
Articles = dict[str, list[str]]  # sentences by title


@dataclass(frozen=True)
class Question:
    """A question with the sentences it needs, in the order of the file."""

    qa: QA
    facts: tuple[Fact, ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """The articles it needs, each once."""
        return tuple(dict.fromkeys(title for title, _ in self.facts))


@dataclass(frozen=True)
class Packed:
    """A batch's chunks, and the titles and texts of the articles in each."""

    chunks: tuple[tuple[Fact, ...], ...]  # (title, text) of each article or part of one

    def contents(self) -> list[str]:
        """The chunks as they are shown."""
        return ["\n\n".join(_titled(*part) for part in chunk) for chunk in self.chunks]

    def chunk_of(self, title: str, sentence: str = "") -> int | None:
        """The first chunk in which the sentence of that article stands."""
        for number, chunk in enumerate(self.chunks):
            if any(name == title and sentence in text for name, text in chunk):
                return number
        return None


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Batches of about `config.article_tokens` of evidence articles with their questions.

    Raises InputError if no instance is left.
    Source: data.md 2.2. Differs: articles in the order of their questions, not of a hash; an
    article above its target is a chunk of its own and one above chunk_max_tokens is split (D8);
    questions without their evidence are dropped; questions are batched by what they share (D2).
    With compat "release" they are batched in the order of the file, sentences are joined with a
    second space, articles are cut or lost as there, and evidence that was lost is chunk 0. Its
    order of articles and its draws changed with every run and cannot be repeated.
    """
    release = config.compat == "release"
    questions, articles = read_questions(raw, config, skips)
    shown = {title: _body(sentences, release) for title, sentences in articles.items()}
    k = _articles_per_batch(shown, config)
    batches = batch([[q] for q in questions], k) if release else by_component(questions, k)

    def drafts() -> Iterator[Draft]:
        for number, asked in enumerate(batches):
            titles = list(dict.fromkeys(title for q in asked for title in q.titles))
            rng = generator(seed, "hotpotqa", number, "targets")
            packer = pack_release if release else pack
            packed = packer([(title, shown[title]) for title in titles], config, rng)
            if len(packed.chunks) > config.article_max_chunks:
                skips.drop("instances with too many chunks")
            else:
                yield _draft(asked, titles, packed, release, skips)

    built = finish("hotpotqa", drafts(), DOCUMENT_LEAD_INS, config, seed, skips)
    if not built:
        found = f"{len(questions)} questions without one"
        expected = f"an instance with {config.min_questions} questions"
        raise InputError(f"{matches(raw, *FILES)[0]}: expected {expected}, found {found}")
    return built


def _titled(title: str, text: str) -> str:
    return f"Title: {title}\n{text}"


def _body(sentences: Sequence[str], release: bool) -> str:
    if release:
        return " ".join(sentences)
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip())


def _articles_per_batch(shown: dict[str, str], config: BuildConfig) -> int:
    """How many articles of mean size make `article_tokens`."""
    total = sum(sizes((_titled(*article) for article in shown.items()), config))
    return max(1, config.article_tokens * len(shown) // max(total, 1))


def _draft(
    asked: Sequence[Question], titles: Sequence[str], packed: Packed, release: bool, skips: Skips
) -> Draft:
    """The batch with the evidence of its questions; those that lost some are dropped."""
    questions, details = [], {}
    for question in asked:
        if release:
            chunks = [packed.chunk_of(title) for title in question.titles]
            chunks = [chunk for chunk in chunks if chunk is not None] or [0]
        else:
            chunks = [packed.chunk_of(*fact) for fact in question.facts]
        if None in chunks:
            skips.drop("questions whose evidence is not in the chunks")
            continue
        chunks = sorted(set(chunks))
        questions.append(replace(question.qa, chunk=chunks[0] if len(chunks) == 1 else None))
        evidence = {"chunks": chunks, "facts": question.facts}
        details[question.qa.id] = json.dumps(evidence, ensure_ascii=False)
    return Draft(packed.contents(), questions, titles, details)


# --- Batches -------------------------------------------------------------------------------------


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
    """Batches in which questions that share articles stand together (D2).

    Components of at most `k` articles are never divided; each larger one has batches of its own.
    In the order of the first question of each batch.
    """
    order = {question.qa.id: number for number, question in enumerate(questions)}
    small: list[list[Question]] = []
    batches: list[list[Question]] = []
    for component in components(questions):
        if len({title for question in component for title in question.titles}) <= k:
            small.append(component)
        else:
            batches += batch([[question] for question in component], k)
    batches += batch(small, k)
    return sorted(batches, key=lambda one: order[one[0].qa.id])


def components(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions in groups that share no article with another group, in their old order."""
    parent: dict[str, str] = {}

    def root(title: str) -> str:
        while parent.setdefault(title, title) != title:
            parent[title] = title = parent[parent[title]]
        return title

    for question in questions:
        first, *others = question.titles
        for title in others:
            parent[root(title)] = root(first)
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(root(question.titles[0]), []).append(question)
    return list(groups.values())


# --- Packing -------------------------------------------------------------------------------------


def pack(articles: Sequence[Fact], config: BuildConfig, rng: random.Random) -> Packed:
    """Articles whole in chunks to drawn targets; one above chunk_max_tokens in parts."""
    measure, limit = counter(config.counter), config.chunk_max_tokens
    parts, tokens = [], []
    for title, text in articles:
        size = measure.count(_titled(title, text))
        if size <= limit:
            parts.append((title, text))
            tokens.append(size)
            continue
        room = max(limit - measure.count(_titled(title, "")), 1)
        parts += [(title, part.strip()) for part in split_long(text, measure, room)]
        tokens += [measure.count(_titled(*part)) for part in parts[len(tokens) :]]
    groups = pack_sizes(
        tokens, measure.count("\n\n"), lambda: rng.randint(config.chunk_min_tokens, limit)
    )
    return Packed(tuple(tuple(parts[i] for i in group) for group in groups))


def pack_release(articles: Sequence[Fact], config: BuildConfig, rng: random.Random) -> Packed:
    """As released: an article above the current target is cut by characters, or lost (D8)."""
    measure = counter(config.counter)
    space, filled = measure.count("\n\n"), 0

    def draw() -> int:
        return rng.randint(config.chunk_min_tokens, config.chunk_max_tokens)

    chunks: list[list[Fact]] = [[]]
    target = draw()
    for title, text in articles:
        if measure.count(_titled(title, text)) > target:
            text = text[: 4 * (target - 100)]
        size = measure.count(_titled(title, text))
        if size > target:
            continue
        if chunks[-1] and filled + size > target:
            chunks.append([])
            filled, target = 0, draw()
        filled += size + (space if chunks[-1] else 0)
        chunks[-1].append((title, text))
    return Packed(tuple(tuple(chunk) for chunk in chunks if chunk))


# --- Reading -------------------------------------------------------------------------------------


def read_questions(raw: Path, config: BuildConfig, skips: Skips) -> tuple[list[Question], Articles]:
    """The questions that have evidence, and the first text of every article.

    Raises InputError naming row and field of what is not as it must be.
    """
    articles: Articles = {}
    questions = []
    rows = skips.each(_read_row, raw_rows(raw, *FILES, COLUMNS, skips))
    for qa, context, named in rows:
        for title, sentences in context.items():
            if any(sentence.strip() for sentence in sentences):
                articles.setdefault(title, sentences)
            else:
                skips.drop("articles without text that no question needs")
        facts = _facts(context, named, skips)
        missing = any(title not in context for title, _ in named)
        if config.compat == "fixed" and (missing or not facts):
            skips.drop("questions whose evidence is not in their context")
            continue
        questions.append(Question(qa, facts))
    return questions, articles


def _facts(context: Articles, named: Sequence[tuple[str, int]], skips: Skips) -> tuple[Fact, ...]:
    """The sentences that are there."""
    facts = []
    for title, number in named:
        sentences = context.get(title, [])
        if 0 <= number < len(sentences) and sentences[number].strip():
            facts.append((title, sentences[number].strip()))
        else:
            skips.drop("supporting facts out of range")
    return tuple(facts)


def _read_row(row: Any, where: str) -> tuple[QA, Articles, list[tuple[str, int]]]:
    question, answer = take(row, "question", str, where), take(row, "answer", str, where)
    name = take(row, "_id" if "_id" in row else "id", str, where)
    context = dict(_pairs(row, "context", ("title", "sentences"), list, where))
    named = _pairs(row, "supporting_facts", ("title", "sent_id"), int, where)
    for title, sentences in context.items():
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise InputError(f"{where}: context: expected sentences as text in {title!r}")
        if title in dict(named) and not any(sentence.strip() for sentence in sentences):
            raise InputError(f"{where}: context: expected text in {title!r}, found none")
    return QA(name, question.strip(), (answer.strip(),)), context, named


def _pairs(row: Any, field: str, names: tuple[str, str], kind: type, where: str) -> list[tuple]:
    """(title, value) of a field in columns, as on the hub, or in pairs, as from the authors."""
    here = f"{where}: {field}"
    if isinstance(row.get(field), list):
        pairs = row[field]
    else:
        columns = take(row, field, dict, where)
        titles, values = (take(columns, name, list, here) for name in names)
        if len(titles) != len(values):
            found = f"{len(titles)} and {len(values)}"
            raise InputError(f"{here}: expected {' and '.join(names)} of one length, found {found}")
        pairs = list(zip(titles, values, strict=True))
    for pair in pairs:
        known = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        if not known or not isinstance(pair[1], kind) or isinstance(pair[1], bool):
            raise InputError(f"{here}: expected a title and {names[1]}, found {pair!r:.60}")
    return [tuple(pair) for pair in pairs]
