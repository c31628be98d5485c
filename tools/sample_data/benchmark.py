"""Made-up rows of MemoryAgentBench, those included that a build must leave out.

There are as many rows per source as in the published files; contexts are much shorter.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.sample_data.documents import booksum, hotpotqa, squad
from tools.sample_data.labelled import BANKING, NLU, TREC, sentences
from tools.sample_data.prose import PEOPLE, TOWNS, draw_words, fill, unique

Row = dict[str, Any]
FIELDS = (
    *("source", "demo", "haystack_sessions", "keypoints", "previous_events", "qa_pair_ids"),
    *("question_dates", "question_ids", "question_types"),
)
ICL: dict[str, Mapping[str, Sequence[str]]] = {
    "icl_banking77_5900shot_balance": BANKING,
    "icl_clinic150_7050shot_balance": {**BANKING, **NLU},
    "icl_nlu_8296shot_balance": NLU,
    "icl_trec_coarse_6600shot_balance": TREC,
    "icl_trec_fine_6400shot_balance": TREC,
}

SPLITS = (
    *("Accurate_Retrieval", "Test_Time_Learning", "Long_Range_Understanding"),
    "Conflict_Resolution",
)
FACTS = {"6k": 160, "32k": 200, "64k": 240, "262k": 300}  # facts by size; a third corrects others
CONFLICTS = tuple(f"factconsolidation_{hops}_{size}" for hops in ("sh", "mh") for size in FACTS)
QUESTIONS = 100  # per row, if its text has so many


def split(name: str, factor: int, records: Sequence[Row], rng: random.Random) -> list[Row]:
    """The rows of a split. `records` are LongMemEval's, the first half of which is asked."""
    if name == "Accurate_Retrieval":
        return [*_ruler(factor, rng), *_long(records), *_refused_retrieval(rng)]
    if name == "Test_Time_Learning":
        film = row("recsys_redial_full", "User: a film like The Blue Door?", ["Which?"], [["7"]])
        return [*(_icl(name, kinds, 150 * factor, rng) for name, kinds in ICL.items()), film]
    if name == "Long_Range_Understanding":
        return [*_books(100, 600 * factor, rng), _detective(rng)]
    return [_facts(name, FACTS[name.rpartition("_")[2]] * factor, rng) for name in CONFLICTS]


def row(
    source: str, context: str, questions: Sequence[str], answers: Sequence[list[str]], **more: Any
) -> Row:
    """One row with the fields of the real parquet files; what is not given is None."""
    metadata = {**dict.fromkeys(FIELDS), "source": source, **more}
    metadata["qa_pair_ids"] = [f"{source}_no{i}" for i in range(len(questions))]
    return {
        "context": context,
        "questions": list(questions),
        "answers": [list(accepted) for accepted in answers],
        "metadata": metadata,
    }


# --- Accurate retrieval ---------------------------------------------------------------------------


def _ruler(factor: int, rng: random.Random) -> Iterable[Row]:
    documents, pairs = [], []
    for article in squad(18 * factor, rng)["data"]:
        for paragraph in article["paragraphs"]:
            documents.append(f"{article['title'].replace('_', ' ')}\n{paragraph['context']}")
            qa = paragraph["qas"][0]
            gold = qa["answers"][0]["text"]
            pairs.append((qa["question"], [gold, gold.upper()]))
    yield _documents("ruler_qa1_197K", documents, pairs[:QUESTIONS])
    rows = hotpotqa(QUESTIONS * factor, rng)
    articles = {
        title: "".join(text)
        for r in rows
        for title, text in zip(r["context"]["title"], r["context"]["sentences"], strict=True)
    }
    documents = [f"{title}\n{text}" for title, text in articles.items()]
    yield _documents(
        "ruler_qa2_421K", documents, [(r["question"], [r["answer"]]) for r in rows[:QUESTIONS]]
    )


def _documents(source: str, documents: Sequence[str], pairs: Sequence) -> Row:
    context = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(documents, start=1))
    return row(source, context, [question for question, _ in pairs], [gold for _, gold in pairs])


def _long(records: Sequence[Row]) -> Iterable[Row]:
    """Five rows, each with the histories and the questions of a tenth of the records."""
    tenth = max(1, len(records) // 10)
    for start in range(0, 5 * tenth, tenth):
        share = records[start : start + tenth]
        history: list[Any] = []
        for record in share:
            for date, turns in zip(
                record["haystack_dates"], record["haystack_sessions"], strict=True
            ):
                history += [date, [{"role": t["role"], "content": t["content"]} for t in turns]]
        yield row(
            "longmemeval_s*",
            str(history),  # the real column holds a list as Python prints it
            [record["question"] for record in share],
            [[record["answer"]] for record in share],
            question_dates=[record["question_date"] for record in share],
            question_ids=[record["question_id"] for record in share],
            question_types=[record["question_type"] for record in share],
        )


def _refused_retrieval(rng: random.Random) -> Iterable[Row]:
    for name in ("ruler_niah_mk_131K", "eventqa_65536", "eventqa_131072", "eventqa_full"):
        values = draw_words(rng)
        context = fill("{person} left {near}. The magic number of {far} is {number}.", values)
        yield row(name, context, [fill("Who left {near}?", values)], [[str(values["person"])]])
    for name in ("longmemeval_s_-1_500", "infbench_qa_eng_shots2"):
        yield row(name, "['2024/02/01 09:00', []]", ["What is my dog called?"], [["Biscuit"]])


# --- Test-time learning ---------------------------------------------------------------------------


def _icl(source: str, kinds: Mapping[str, Sequence[str]], n: int, rng: random.Random) -> Row:
    coarse = "coarse" in source
    names = sorted({label.split(":")[0] if coarse else label for label in kinds})
    number = {label: str(names.index(label.split(":")[0] if coarse else label)) for label in kinds}
    pairs = list(sentences(kinds, n + QUESTIONS, rng))
    context = "".join(f"{text}\nlabel: {number[label]}\n\n" for text, label in pairs[:n])
    asked = pairs[n:]
    return row(source, context, [text for text, _ in asked], [[number[k]] for _, k in asked])


# --- Long-range understanding ---------------------------------------------------------------------


def _books(n: int, words: int, rng: random.Random) -> Iterable[Row]:
    for chapter in booksum(n, 1, words, rng):
        summary = chapter["summary"][0]["text"]
        points = [f"{point}." for point in summary.rstrip(".").split(". ")]
        question = "What happens in this book? Give a summary."
        yield row(
            "infbench_sum_eng_shots2", chapter["text"], [question], [[summary]], keypoints=points
        )


def _detective(rng: random.Random) -> Row:
    values = draw_words(rng)
    story = fill("{person} was found in the {place}. Only {other} had the {thing}.", values)
    return row("detective_qa", story, ["Who did it? A: {other} B: nobody"], [["A"]])


# --- Conflict resolution --------------------------------------------------------------------------


def _facts(source: str, n: int, rng: random.Random) -> Row:
    """Numbered facts, a third of which are overridden by a later one; the last one counts."""
    people, towns = unique(PEOPLE, rng), unique(TOWNS, rng)
    founders = {next(towns): next(people) for _ in range(n * 2 // 3)}
    facts = [f"The town of {town} was founded by {who}." for town, who in founders.items()]
    for town in rng.sample(sorted(founders), n // 3):
        founders[town] = next(people)
        facts.append(f"The town of {town} was founded by {founders[town]}.")
    births = {who: next(towns) for who in founders.values()}
    if "_mh_" in source:
        facts += [f"{who} was born in the town of {town}." for who, town in births.items()]
    asked = rng.sample(sorted(founders), min(QUESTIONS, len(founders)))
    if "_mh_" in source:
        questions = [f"In which town was the founder of {town} born?" for town in asked]
        answers = [[births[founders[town]]] for town in asked]
    else:
        questions = [f"Who founded the town of {town}?" for town in asked]
        answers = [[founders[town]] for town in asked]
    lines = "\n".join(f"{i}. {fact}" for i, fact in enumerate(facts))
    return row(source, f"Here is a list of facts:\n{lines}", questions, answers)
