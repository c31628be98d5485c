"""Made-up documents: SQuAD articles, HotpotQA pairs of hops, BookSum chapters, PubMed abstracts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from tools.sample_data.prose import (
    PEOPLE,
    TOWNS,
    WORDS,
    draw_words,
    fill,
    person,
    town,
    unique,
)

# --- SQuAD: an article is about one town, a paragraph about one side of it ------------------------

TOPICS = (
    (
        "{town} lies {side} of {near} on the River {river}. The river freezes in hard winters and "
        "floods the lower streets about once in {small} years. Beyond the last houses begin the "
        "hills, which are made of {stone}. From the tallest of them one can see as far as {far}.",
        (
            ("On which river does {town} lie?", "{river}"),
            ("What are the hills near {town} made of?", "{stone}"),
            ("Which town can be seen from the tallest hill of {town}?", "{far}"),
            ("How often do the lower streets of {town} flood?", "about once in {small} years"),
        ),
    ),
    (
        "The settlement was founded in {year} by {person}, a {job} who had quarrelled with the "
        "council of {near}. For its first {small} winters it had no church and no well. The oldest "
        "house that still stands belonged to {other}.",
        (
            ("Who founded {town}?", "{person}"),
            ("In what year was {town} founded?", "{year}"),
            ("What was the profession of the founder of {town}?", "{job}"),
            ("To whom did the oldest house of {town} belong?", "{other}"),
        ),
    ),
    (
        "Farmers around {town} grow {crop} and keep bees. In the 19th century the town also made "
        "{goods}, which left by {carrier}. The last workshop closed in {later}, when its owner, "
        "{person}, sold the machines to a firm in {far}.",
        (
            ("What do farmers around {town} grow?", "{crop}"),
            ("What did {town} make in the 19th century?", "{goods}"),
            ("How did the goods of {town} leave?", "{carrier}"),
            ("Who owned the last workshop of {town}?", "{person}"),
        ),
    ),
    (
        "A bridge of {stone} crosses the {river} below the market. It was planned by {person} and "
        "paid for with a toll of {small} coins for every cart. Since {later} it has been closed to "
        "cars; only walkers and, on Sundays, a small tram may use it.",
        (
            ("Who planned the bridge of {town}?", "{person}"),
            ("When was the bridge of {town} closed to cars?", "{later}"),
            (
                "What did every cart pay on the bridge of {town}?",
                "a toll of {small} coins",
            ),
        ),
    ),
    (
        "Every {month} the town holds the festival of the {animal}. Children carry {colour} paper "
        "lamps to the {place}, and the mayor has to eat {dish} in public. The custom is said to go "
        "back to {other}, who lost a bet in {year}.",
        (
            ("In which month is the festival of {town} held?", "{month}"),
            ("Which animal does the festival of {town} honour?", "{animal}"),
            ("What does the mayor of {town} have to eat?", "{dish}"),
            ("What colour are the paper lamps of {town}?", "{colour}"),
        ),
    ),
    (
        "The school of {town} has {number} pupils. Its most famous one was {person}, later a {job} "
        "in {far}. The school's library keeps {amount} old maps, among them one that shows the "
        "{river} flowing in the wrong direction.",
        (
            ("How many pupils does the school of {town} have?", "{number}"),
            ("Who was the most famous pupil of the school of {town}?", "{person}"),
            ("How many old maps does the school of {town} keep?", "{amount}"),
        ),
    ),
    (
        "{town} is known for {sport}. The club was started by {person} and {other} in {year}, at "
        "first in a shed behind the {place}. Its colours are {colour} and black, and its badge "
        "shows one {animal}.",
        (
            ("Which sport is {town} known for?", "{sport}"),
            ("What does the badge of the club of {town} show?", "one {animal}"),
            ("Where did the club of {town} first meet?", "in a shed behind the {place}"),
        ),
    ),
    (
        "The railway reached {town} in {later}. The first train carried {number} passengers and a "
        "brass band from {near}; it arrived {small} hours late because of {weather}. The station "
        "clock, a gift of {person}, has been slow ever since.",
        (
            ("When did the railway reach {town}?", "{later}"),
            ("How many passengers did the first train to {town} carry?", "{number}"),
            ("Who gave {town} its station clock?", "{person}"),
            ("Why was the first train to {town} late?", "because of {weather}"),
        ),
    ),
)


def squad(n_articles: int, rng: random.Random) -> dict[str, Any]:
    """The content of a SQuAD file in the layout of version 1.1."""
    towns = unique(TOWNS, rng)
    articles = [_article(i, next(towns), rng) for i in range(n_articles)]
    return {"data": articles, "version": "1.1"}


def _article(number: int, name: str, rng: random.Random) -> dict[str, Any]:
    topics = rng.sample(TOPICS, rng.randint(5, len(TOPICS)))
    paragraphs = []
    for i, (text, asked) in enumerate(topics):
        values = draw_words(rng) | {"town": name}
        context = fill(text, values)
        questions = [
            {
                "id": f"{number:05d}{i:02d}{j:02d}",
                "question": fill(question, values),
                "answers": [_located(fill(answer, values), context)],
            }
            for j, (question, answer) in enumerate(asked)
        ]
        paragraphs.append({"context": context, "qas": questions})
    return {"title": name.replace(" ", "_"), "paragraphs": paragraphs}


def _located(answer: str, context: str) -> dict[str, Any]:
    start = re.search(rf"\b{re.escape(answer)}\b", context).start()
    return {"text": answer, "answer_start": start}


# --- HotpotQA: people found towns, towns lie on rivers; a question takes two of the articles ------


def hotpotqa(n_questions: int, rng: random.Random) -> list[dict[str, Any]]:
    """Rows of HotpotQA: two supporting articles and up to eight others in each context."""
    people, towns = unique(PEOPLE, rng), unique(TOWNS, rng)
    pairs = [_pair(next(people), next(towns), rng) for _ in range(max(n_questions, 5))]
    return [_row(i, pairs, rng) for i in range(n_questions)]


Article = tuple[str, list[str]]


def _pair(name: str, town: str, rng: random.Random) -> tuple[Article, Article, dict[str, object]]:
    values = draw_words(rng) | {"name": name, "town": town}
    founder = (
        "{name} was by trade a {job} and came from {near}.",
        " {name} founded {town} in {year} together with {other}.",
        " In later years the {job} owned a tame {animal} and wrote about {sport}.",
    )
    place = (
        "{town} is a small town {side} of {far}.",
        " {town} stands on the River {river} and is known for {dish}.",
        " Its market hall is built of {stone}.",
    )
    return (
        (name, [fill(sentence, values) for sentence in founder]),
        (town, [fill(sentence, values) for sentence in place]),
        values,
    )


HOPS = (
    ("Which river runs by the town founded by {name}?", "{river}", (1, 1)),
    ("What dish is the town that {name} founded known for?", "{dish}", (1, 1)),
    ("What is the market hall of the town founded by {name} built of?", "{stone}", (1, 2)),
    ("Which profession did the founder of {town} have?", "{job}", (0, 0)),
)


def _row(index: int, pairs: list, rng: random.Random) -> dict[str, Any]:
    founder, place, values = pairs[index]
    kind = "comparison" if rng.random() < 0.15 else "bridge"
    if kind == "comparison":
        other, _, more = pairs[(index + 1) % len(pairs)]
        evidence = [(founder, 0), (other, 0)]
        question = f"Did {founder[0]} and {other[0]} have the same profession?"
        answer = "yes" if values["job"] == more["job"] else "no"
    else:
        text, gold, (first, second) = rng.choice(HOPS)
        evidence = [(founder, 1 if first else 0), (place, second)]
        question, answer = fill(text, values), fill(gold, values)
    around = [rng.choice(pairs)[rng.randint(0, 1)] for _ in range(8)]
    articles = {article[0]: article for article in [*(a for a, _ in evidence), *around]}
    order = rng.sample(sorted(articles), len(articles))
    return {
        "id": f"{index:024x}",
        "question": question,
        "answer": answer,
        "type": kind,
        "level": rng.choice(("easy", "medium", "hard")),
        "supporting_facts": {
            "title": [article[0] for article, _ in evidence],
            "sent_id": [sentence for _, sentence in evidence],
        },
        "context": {"title": order, "sentences": [articles[title][1] for title in order]},
    }


# --- BookSum: chapters of scenes, a summary from what happened in them ----------------------------

SCENES = (
    (
        "{hero} found a {thing} in the {place}. It was {colour} and heavier than it looked. "
        '"Leave it where it is," said {friend}, but {hero} had already put it into a pocket.',
        "{hero} finds a {thing} in the {place}",
    ),
    (
        "All night there was {weather} over the roofs of {town}. {friend} could not sleep and "
        "counted the strokes of the clock. At {small} somebody knocked, though nobody was "
        "expected.",
        "{friend} hears a knock at night in {town}",
    ),
    (
        "{hero} and {friend} quarrelled about the {thing}. Neither of them meant half of what "
        "was said. When the door fell shut the house became very {mood}.",
        "{hero} and {friend} quarrel about the {thing}",
    ),
    (
        "A stranger who called himself {third} asked the way to the {place}. He paid with coins "
        "that were no longer used. {hero} followed him at a distance as far as the bridge.",
        "{hero} follows the stranger {third} to the bridge",
    ),
    (
        "In the {place} they shared {dish} and talked of the year {year}. {friend} had been a "
        "{job} then and remembered every name. Outside, the {season} was coming to an end.",
        "{friend} tells of the year {year}",
    ),
    (
        "The letter said only that the {animal} had returned to the {river}. {hero} read it "
        "{small} times and grew {mood}. It was signed by {other}, who had been thought dead.",
        "{hero} receives a letter from {other}",
    ),
)
TALK = (
    "Nobody in the {place} spoke for a while.",
    "The {season} light lay on the {thing}.",
    '"We should have gone to {near}," said {friend}.',
    "{hero} felt {mood} and did not know why.",
    "From the harbour came the sound of {weather}.",
    "It was {number} steps to the {place}, and {hero} counted all of them.",
    '"Ask {other}," answered {hero}, and looked away.',
    "Somewhere the {animal} cried, then everything was still again.",
    "There had been a {colour} door here once, before the fire of {year}.",
    "{friend} laughed, which was rare, and poured more tea.",
)
TITLES = ("The {colour} Door", "A {thing} for {town}", "The {job} of {town}", "{season} in {town}")


def booksum(n_books: int, chapters: int, words: int, rng: random.Random) -> list[dict[str, Any]]:
    """Rows of BookSum: chapters of about `words` words, each with one to three summaries."""
    towns, rows = unique(TOWNS, rng), []
    for book in range(n_books):
        cast = {"hero": person(rng), "friend": person(rng), "town": next(towns)}
        title = fill(TITLES[book % len(TITLES)], draw_words(rng) | cast)
        title = " ".join(w[:1].upper() + w[1:] if len(w) > 3 else w for w in title.split())
        for number in range(chapters):
            text, events = _chapter(cast, rng.randint(words, words + words // 3), rng)
            rows.append(_book_row(book, f"{title} ({cast['town']})", number, text, events, rng))
    return rows


def _chapter(cast: dict[str, Any], words: int, rng: random.Random) -> tuple[str, list[str]]:
    paragraphs, events, written = [], [], 0
    while written < words:
        values = draw_words(rng) | cast
        scene, event = rng.choice(SCENES)
        talk = [fill(rng.choice(TALK), draw_words(rng) | cast) for _ in range(rng.randint(4, 9))]
        paragraph = " ".join([fill(scene, values), *talk])
        paragraphs.append(paragraph)
        events.append(fill(event, values))
        written += len(paragraph.split())
    return "\n\n".join(paragraphs), events


def _book_row(book, title, number, text, events, rng) -> dict[str, Any]:
    def summary(source: str, n: int) -> dict[str, Any]:
        told = [events[i] for i in sorted(rng.sample(range(len(events)), min(n, len(events))))]
        return {"source": source, "text": ". ".join(told) + ".", "analysis": None}

    sources = rng.sample(("readers", "schoolbook", "archive"), rng.randint(1, 3))
    return {
        "bid": 1000 + book,
        "book_title": title,
        "chapter_id": f"chapter {number + 1}",
        "text": text,
        "summary": [summary(source, rng.randint(5, 9)) for source in sources],
        "is_aggregate": False,
    }


# --- PubMed RCT: sentences of abstracts, in order, with the class of each -------------------------

BACKGROUND, CONCLUSIONS, METHODS, OBJECTIVE, RESULTS = range(5)
SECTIONS = (
    (
        BACKGROUND,
        (1, 2),
        (
            "{illness} is seen in about {small} of {number} {people} .",
            "Little is known about the effect of {drug} on {illness} in {people} .",
            "A daily dose of {drug} is common against {illness} , but the evidence is weak .",
        ),
    ),
    (
        OBJECTIVE,
        (1, 1),
        (
            "Our aim was to test whether {drug} reduces {illness} in {people} .",
            "To compare {drug} with placebo for {illness} .",
            "This trial examined the effect of {drug} on {score} in {people} .",
        ),
    ),
    (
        METHODS,
        (2, 4),
        (
            "{number} {people} were randomly assigned to {drug} or placebo for {small} weeks .",
            "In all {number} cases the main outcome was {score} after {small} months .",
            "Assessors did not know who had received {drug} .",
            "Between {year} and {later} we recruited {number} patients in {small} clinics .",
            "Groups were compared by analysis of variance , with {score} at entry as a covariate .",
        ),
    ),
    (
        RESULTS,
        (2, 4),
        (
            "Mean {score} improved by {small} points with {drug} and by 1 point with placebo .",
            "{small} of {number} {people} left the trial early .",
            "No serious harm was seen in {number} patients .",
            "The difference in {score} was significant ( n = {number} , P < 0.0{small} ) .",
            "{illness} was less frequent in the {drug} group ( {small} % vs {number} % ) .",
        ),
    ),
    (
        CONCLUSIONS,
        (1, 2),
        (
            "{drug} may shorten {illness} in {people} .",
            "These results do not support {drug} as a treatment of {illness} .",
            "Larger trials of {drug} with {score} as an outcome are needed .",
        ),
    ),
)


def pubmed(n_sentences: int, rng: random.Random) -> Iterator[tuple[str, int]]:
    """(sentence, class id) of consecutive abstracts, each about one drug and one illness."""
    made = 0
    while True:
        topic = {name: rng.choice(WORDS[name]) for name in ("illness", "score")}
        topic["drug"] = f"{rng.randint(2, 900)} mg {rng.choice(WORDS['drug'])}"
        topic["people"] = f"{rng.choice(WORDS['people'])} in {town(rng)}"
        for label, (low, high), templates in SECTIONS:
            for template in rng.sample(templates, min(rng.randint(low, high), len(templates))):
                if made == n_sentences:
                    return
                values = _numbers(rng) | topic
                text = fill(template, values)
                yield text[:1].upper() + text[1:], label
                made += 1


def _numbers(rng: random.Random) -> dict[str, object]:
    year = rng.randint(1990, 2012)
    return {
        "small": rng.randint(2, 9),
        "number": rng.randint(20, 4000),
        "year": year,
        "later": year + rng.randint(1, 4),
    }
