"""Frames: how content is made to look like one turn of a dated conversation.

    [Dialogue between User and Assistant on 2024-01-01 00:00]
    <User>Please keep the following passages in mind.
    Lake Orvane lies north of Tessin and freezes every winter.
    <Assistant>Noted.

The header and the tags are facts of the format (data.md 2.0); lead-ins, acknowledgements and the
reader's request are our own. The day is the chunk's index counted from 2024-01-01; a book is read
on days that are one to three apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import date, timedelta

FIRST_DAY = date(2024, 1, 1)

DOCUMENT_LEAD_INS = (
    "Please keep the following passages in mind.",
    "Here is something I read today; I may come back to it.",
    "I found these paragraphs and want you to remember what they say.",
    "Let me share a few notes with you.",
    "Have a look at this text. I will have questions another day.",
    "This is worth remembering:",
    "I am collecting facts. These are the ones for today.",
    "Could you hold on to the information below?",
    "Some reading for you:",
    "I copied this from an article that I liked.",
    "Take note of what is written here, please.",
    "Today's material follows.",
    "The next lines may be useful to us later on.",
    "Here are some more passages for our archive.",
    "Read this carefully; the details matter to me.",
    "I would like you to know about the following.",
    "A few more things you should know:",
    "Please read and remember this extract.",
    "Below is what I learned this morning.",
    "Store what matters from this text.",
)

CLASSIFICATION_LEAD_INS = (
    "Below are sentences, each with the number of its label.",
    "Here are labelled examples. Learn what each label stands for.",
    "I sorted these sentences into numbered classes.",
    "Each sentence below is followed by its class.",
    "Study these examples; later I will ask you for the label of a new sentence.",
    "These pairs of sentence and label show how I classify.",
    "More labelled sentences for you to learn from:",
    "Try to work out the rule behind these labels.",
    "The following examples have been labelled by hand.",
    "Remember which kind of sentence gets which number.",
    "Here is how I would label some sentences.",
    "Take these as examples of my categories.",
    "Some training examples, one label for each:",
    "Please learn this classification from the samples below.",
    "You will need these labelled samples later.",
    "Look at the labels that I gave to these sentences.",
    "A batch of examples with their labels follows.",
    "This is the labelled material of today.",
    "Keep these samples and their labels in mind.",
    "Notice what the sentences under one label have in common.",
)

ACKNOWLEDGEMENTS = (
    "Noted.",
    "Thank you, I will remember this.",
    "I have read it and kept what matters.",
    "Understood.",
    "All right, this is saved.",
    "Got it, thanks for sharing.",
    "I will keep this in mind.",
    "Thanks, that is stored.",
    "I have taken note of everything.",
    "Good to know. I will come back to it when you ask.",
    "Done, I have it.",
    "I went through it and remember the details.",
    "Okay, you can ask me about it at any time.",
    "Received and remembered.",
    "This is clear to me now.",
    "Thank you, this goes into my notes.",
    "Very well, I will not forget it.",
    "I have added this to what I know.",
    "Sure, I will hold on to that.",
)


def frame(content: str, day: int, lead_in: str, acknowledgement: str) -> str:
    """`content` as what the user said on the `day`-th day, counted from 0."""
    when = FIRST_DAY + timedelta(days=day)
    header = f"[Dialogue between User and Assistant on {when.isoformat()} 00:00]"
    return f"{header}\n<User>{lead_in}\n{content}\n<Assistant>{acknowledgement}"


def frame_all(
    contents: Iterable[str], lead_ins: Sequence[str], rng: random.Random
) -> tuple[str, ...]:
    """One framed chunk a day, lead-in and acknowledgement drawn for each."""
    return tuple(
        frame(content, day, rng.choice(lead_ins), rng.choice(ACKNOWLEDGEMENTS))
        for day, content in enumerate(contents)
    )


BOOK_REQUEST = (
    "Please remember what was read on {date}: keep the details, and keep a summary of the whole "
    "book that grows with every part."
)


def reading_days(n: int, rng: random.Random) -> list[date]:
    """The days on which `n` parts of a book are read: the first day, then 1 to 3 days apart."""
    days = [FIRST_DAY]
    while len(days) < n:
        days.append(days[-1] + timedelta(days=rng.randint(1, 3)))
    return days[:n]


def book_frame(content: str, day: date) -> str:
    """`content` as the part of a book that the user read on that day."""
    header = f"[Event happened on {day.isoformat()} The user is reading a book]"
    return f"{header}\n<User> {content}\n\n<System> {BOOK_REQUEST.format(date=day.isoformat())}"
