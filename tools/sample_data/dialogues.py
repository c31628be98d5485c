"""Made-up conversations: PerLTQA characters, LongMemEval histories of chats, LoCoMo talks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tools.sample_data.prose import PEOPLE, draw_words, fill, sentence_case, town, unique

# --- PerLTQA: characters, whom they know, what happened to them, what was said about it ----------

EVENTS = (
    (
        "Repairing the {thing}",
        "In {month} {user} and {friend} repaired an old {thing} that had stood in the {place} for "
        "{small} years. The repair cost {number} crowns. {user} wanted to give up twice, but "
        "{friend} insisted, and in the end it worked again. They celebrated with {dish}.",
        (
            ("What did {user} repair together with {friend}?", "{user} repaired an old {thing}."),
            ("How much did the repair of the {thing} cost?", "It cost {number} crowns."),
        ),
        (
            "{user}: How long did the {thing} stand in the {place}?",
            "{friend}: {small} years. Note: never oil it again.",
            "{user}: I&#39;ll remember that. {third} would have sold it.",
            "AI Assistant: You could also ask the {job} for advice.",
        ),
        (("What should never be done to the {thing} again?", "It should never be oiled again."),),
    ),
    (
        "Moving to {far}",
        "{user} moved to {far} for a new post as a {job}. {friend} helped to carry {number} boxes "
        "up the stairs. The flat looks on the {river}, and the neighbour keeps one {animal}.",
        (
            ("Which post did {user} take in {far}?", "{user} became a {job} there."),
            ("How many boxes did {friend} carry?", "{friend} carried {number} boxes."),
        ),
        (
            "{user}: The flat looks on the {river}.",
            "{friend}: And the rent: is it {amount} crowns?",
            "{user}: Exactly {amount}, and the {animal} next door is free.",
        ),
        (("How high is the rent of the flat in {far}?", "The rent is {amount} crowns."),),
    ),
    (
        "A prize for {sport}",
        "At the {month} games {user} reached place {small} in {sport}, the best result so far. "
        "{friend} took pictures and lost one {colour} scarf. The judge was {third}.",
        (
            ("What place did {user} reach in {sport}?", "{user} reached place {small}."),
            ("Who was the judge of the {sport} games?", "The judge was {third}."),
        ),
        (
            "{friend}: I lost my {colour} scarf in the crowd.",
            "{user}: I saw it near the {place}, I think.",
            "{friend}: Then {third} has it: he was the last to leave.",
        ),
        (("Where did {user} see the {colour} scarf of {friend}?", "It was near the {place}."),),
    ),
    (
        "Dinner at the {place}",
        "{friend} invited {user} to a dinner of {dish} at the {place}. They spoke about {other}, "
        "who had left {near} in {year}. Because of {weather} they stayed until morning.",
        (
            ("What was served at the dinner at the {place}?", "{friend} served {dish}."),
            ("Whom did {user} and {friend} speak about?", "They spoke about {other}."),
        ),
        (
            "{user}: When did {other} leave {near}?",
            "{friend}: In {year}, I was still a child.",
            "AI Assistant: Shall I look for an address of {other}?",
            "{user}: Yes please: write to the town hall of {near}.",
        ),
        (
            (
                "Where should the assistant ask for the address of {other}?",
                "At the town hall of {near}.",
            ),
        ),
    ),
)
RELATIONS = ("Neighbour", "Cousin", "Colleague", "Old classmate", "Mentor")


def perltqa(n_people: int, n_events: int, rng: random.Random) -> tuple[dict, list[dict]]:
    """(memories by character, question list) of PerLTQA, its later object layout."""
    people = unique(PEOPLE, rng)
    memories, questions = {}, []
    for number in range(n_people):
        user = next(people)
        friends = [next(people) for _ in RELATIONS]
        memories[user], asked = _character(number + 1, user, friends, n_events, rng)
        questions.append({user: asked})
    return memories, questions


def _character(number: int, user: str, friends: list[str], n_events: int, rng: random.Random):
    age, job = rng.randint(24, 70), draw_words(rng)["job"]
    known = {
        f"{number}_{i}": {
            "Supporting Characters": friend,
            "Relationship": relation,
            "Description": f"{friend} is the {relation.lower()} of {user}.",
        }
        for i, (friend, relation) in enumerate(zip(friends, RELATIONS, strict=True))
    }
    memory = {
        "profile": {"Protagonist": user, "Age": str(age), "Occupation": job},
        "profile_description": f"{user} is a {job}, {age} years old.",
        "social_relationship": known,
        "events": {},
        "dialogues": {},
    }
    asked: dict[str, list] = {
        "profile": [_qa(f"How old is {user}?", f"{user} is {age} years old.", "Age")],
        "social_relationship": [
            {name: [_qa(f"Who is {k['Supporting Characters']}?", k["Description"], [name])]}
            for name, k in known.items()
        ],
        "events": [],
        "dialogues": [],
    }
    day = datetime(2022, 1, 9, 10, 0)
    for i in range(n_events):
        friend, order = divmod(i, -(-n_events // 2))
        day += timedelta(days=rng.randint(6, 20), minutes=rng.randint(1, 300))
        values = {"user": user, "friend": friends[friend]}
        _event(f"{number}_{friend}_{order}", day, values, memory, asked, rng)
    return memory, asked


def _event(name: str, day: datetime, people: dict, memory: dict, asked: dict, rng) -> None:
    """Adds one event, its dialogue and the questions about both."""
    values = draw_words(rng) | people
    summary, content, about_event, messages, about_dialogue = rng.choice(EVENTS)
    memory["events"][name] = {
        "content": fill(content, values),
        "summary": sentence_case(fill(summary, values)),
        "Creation Time": f"{day:%B} {day.day}, {day.year}",
        "Characters": [people["user"], people["friend"]],
        "Theme": "Everyday life",
    }
    number = len(memory["dialogues"])
    dialogue = f"{name}#{number}"
    memory["dialogues"][dialogue] = {
        "events": name,
        "contents": {f"{day:%Y-%m-%d %H:%M}": [fill(line, values) for line in messages]},
    }
    for section, key, pairs in (
        ("events", name, about_event),
        ("dialogues", dialogue, about_dialogue),
    ):
        qas = [_qa(fill(question, values), fill(gold, values), [key]) for question, gold in pairs]
        asked[section].append({key: qas})


def _qa(question: str, answer: str, reference: str | list[str]) -> dict[str, Any]:
    return {
        "Question": question,
        "Answer": answer,
        "Reference Memory": str(reference),
        "Memory Anchors": [{answer.rstrip("."): [-1, -1]}],
    }


# --- LongMemEval: dated chats, one of which says what is asked later ------------------------------

FACTS = (
    (
        "I adopted the {animal} and named it {name}.",
        "What is my {animal} called?",
        "{name}",
    ),
    ("My new {thing} cost {number} crowns.", "What did I pay for my {thing}?", "{number} crowns"),
    ("I start as a {job} in {far} next {month}.", "In which town do I start as a {job}?", "{far}"),
    ("My cousin {third} now does {sport}.", "Which sport does my cousin do?", "{sport}"),
    ("I parked the {colour} van behind the {place}.", "Where did I park the van?", "the {place}"),
)
ASKING = (
    "Could you help me plan a weekend in {far}? I like {sport} and {dish}.",
    "What should I know before I buy a {thing}?",
    "Please explain how {goods} were made in the 19th century.",
    "I have been feeling {mood} because of {weather}. Any ideas for the evening?",
    "Can you recommend something to read about the {animal}?",
    "How do I get a {colour} stain out of linen?",
)
TELLING = (
    "Of course. Start with the {place}, which is quiet in {season}.",
    "Many people ask for {dish}; it keeps for {small} days.",
    "A {job} once told {person} to look at the {thing} first.",
    "In {near} they also sell {goods}, which go by {carrier}.",
    "Plan about {number} minutes for it, and rest afterwards.",
    "If there is {weather}, stay near the {river} and wait.",
    "Note the price: {amount} crowns is fair, {number} is not.",
    "The {animal} is shy, so walk slowly and wear {colour}.",
)
FOLLOW_UPS = (
    "Thanks. And what about {season}?",
    "How much would that cost?",
    "Could you shorten this to one line?",
    "Is there anything similar in {near}?",
)
LONG_ANSWER = 160  # sentences of a huge answer


@dataclass(frozen=True)
class Answers:
    """How long the assistant's answers are: sentences, fewest and most, and how many are huge."""

    fewest: int = 3
    most: int = 12
    huge: float = 0.01  # share of answers that are longer than a chunk


def longmemeval(
    n_records: int, n_sessions: int, rng: random.Random, answers: Answers | None = None
) -> list[dict[str, Any]]:
    """Records of LongMemEval, each with its own history of dated sessions."""
    kind = answers or Answers()
    return [_record(index, n_sessions, rng, kind) for index in range(n_records)]


def _record(index: int, n_sessions: int, rng: random.Random, kind: Answers) -> dict[str, Any]:
    values = draw_words(rng)
    values["name"] = str(values["other"]).split()[0]
    fact, question, answer = (fill(text, values) for text in rng.choice(FACTS))
    held = rng.randrange(n_sessions)
    sessions = [_session(rng, fact if i == held else None, kind) for i in range(n_sessions)]
    day, dates = datetime(2023, 4, 3, 8, 0), []
    for _ in range(n_sessions + 1):
        day += timedelta(hours=rng.randint(5, 60), minutes=rng.randint(0, 59))
        dates.append(f"{day:%Y/%m/%d} ({day:%a}) {day:%H:%M}")
    names = [f"chat_{index:03d}_{i}" for i in range(n_sessions)]
    names[held] = f"answer_{index:03d}"
    return {
        "question_id": f"{rng.getrandbits(32):08x}",
        "question_type": "single-session-user",
        "question": question,
        "question_date": dates.pop(),
        "answer": answer,
        "answer_session_ids": [names[held]],
        "haystack_dates": dates,
        "haystack_session_ids": names,
        "haystack_sessions": sessions,
    }


def _session(rng: random.Random, fact: str | None, kind: Answers) -> list[dict[str, Any]]:
    """Turns of one chat; where there is a fact, its turn is marked as in the real records."""
    turns: list[dict[str, Any]] = []
    n_exchanges = rng.randint(2, 6)
    told = rng.randrange(n_exchanges)
    for i in range(n_exchanges):
        says = fill(rng.choice(FOLLOW_UPS if i else ASKING), draw_words(rng))
        if fact and i == told:
            turns.append({"role": "user", "content": f"{says} {fact}", "has_answer": True})
        else:
            turns.append({"role": "user", "content": says})
        huge = rng.random() < kind.huge
        n_sentences = LONG_ANSWER if huge else rng.randint(kind.fewest, kind.most)
        answer = [fill(rng.choice(TELLING), draw_words(rng)) for _ in range(n_sentences)]
        turns.append({"role": "assistant", "content": "\n".join(_lines(answer))})
    return turns


def _lines(sentences: list[str]) -> list[str]:
    return [" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4)]


# --- LoCoMo: two people who talk every other week, and what they are asked about ------------------

TOLD = (  # category, what is said, what is asked, the answer
    (4, "I finally sold the {colour} {thing}.", "What did {a} sell?", "the {colour} {thing}"),
    (4, "We ate {dish} at the {place}.", "Where did {a} eat {dish}?", "at the {place}"),
    (2, "I moved to {far} yesterday.", "When did {a} move to {far}?", "The day before {date}"),
    (
        *(3, "I rest best with {animal}s around and no people.", "Would {a} like a big party?"),
        "Likely no; {a} prefers animals",
    ),
)
TALK = (
    "How was your week? Mine was {mood} because of {weather}.",
    "Did you hear that the {job} in {near} now sells {goods}?",
    "I might take up {sport} in {season}.",
    "My neighbour has a {animal} that only eats {crop}.",
)


def locomo(n_samples: int, n_sessions: int, rng: random.Random) -> list[dict[str, Any]]:
    """Conversations of LoCoMo: dated sessions, questions of all five categories with evidence."""
    return [_conversation(index + 1, n_sessions, rng) for index in range(n_samples)]


def _conversation(index: int, n_sessions: int, rng: random.Random) -> dict[str, Any]:
    a, b = (name.split()[0] for name in rng.sample(PEOPLE, 2))
    b = b if b != a else f"{b}s"
    talks: dict[str, Any] = {"speaker_a": a, "speaker_b": b}
    asked: list[dict[str, Any]] = []
    sports: list[tuple[str, str]] = []  # what a does, and where it is said
    day = datetime(2023, 5, 8, 13, 56)
    for number in range(1, n_sessions + 1):
        values = draw_words(rng) | {"a": a, "date": f"{day.day} {day:%B} {day.year}"}
        talks[f"session_{number}_date_time"] = f"{day:%I:%M %p} on {day.day} {day:%B}, {day.year}"
        category, fact, question, answer = TOLD[(number - 1) % len(TOLD)]
        said = [(a, fill(rng.choice(TALK), draw_words(rng))), (b, "Go on!"), (a, fact)]
        said += [(b, "I see."), (a, "These days I do {sport}.")]
        turns = [
            {"speaker": who, "dia_id": f"D{number}:{i}", "text": fill(text, values)}
            for i, (who, text) in enumerate(said, 1)
        ]
        picture = {"img_url": ["https://example.org/picture.jpg"], "query": "a kettle"}
        turns[3] |= {**picture, "blip_caption": fill("a photo of a {thing} in a {place}", values)}
        talks[f"session_{number}"] = turns
        sports.append((str(values["sport"]), f"D{number}:5"))
        qa = {"question": fill(question, values), "answer": fill(answer, values)}
        asked.append({**qa, "evidence": [f"D{number}:3"], "category": category})
        day += timedelta(days=rng.randint(9, 16), hours=rng.randint(1, 9))
    names = ", ".join(dict.fromkeys(name for name, _ in sports))
    everywhere = {"evidence": [place for _, place in sports], "category": 1}
    asked.append({"question": f"Which sports does {a} do?", "answer": names, **everywhere})
    never = {"question": f"What did {b} study in {town(rng)}?", "adversarial_answer": "law"}
    asked.append({**never, "evidence": ["D1:1"], "category": 5})
    return {"sample_id": f"conv-{index}", "conversation": talks, "qa": asked}
