"""Words, names and sentence templates of the made-up raw files: all text here is our own.

A template is plain text with slots in braces; `fill` puts in what a dictionary or `draw_words`
gives. Nothing is taken from a real data set, so generated files may be shown and shipped.

>>> fill("{person} sold the {thing}.", {"person": "Ada Venn", "thing": "old van"})
'Ada Venn sold the old van.'
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence

TOWN_HEADS = "Tes Or Lis Mar Ven Bra Kel Hal Dor Fen Gil Sol Wen Ros Tarn Pel Quill Umber".split()  # noqa: SIM905
TOWN_TAILS = "sin vane row dal mere ford wick holm by stead ton ley burn mouth gate haven".split()  # noqa: SIM905
FIRST_NAMES = (
    *("Ada", "Tom", "Mira", "Nell", "Oskar", "Ila", "Jonas", "Petra", "Ruben", "Selma", "Viktor"),
    *("Zoë", "André", "Bea", "Carl", "Dina", "Emil", "Freja", "Gus", "Hanna", "Ivo", "Jana"),
    *("Karim", "Lena", "Milo", "Nadia", "Otto", "Pia", "Quinn", "Rosa", "Søren", "Tilda"),
)
LAST_NAMES = (
    *("Venn", "Holt", "Brandt", "Lisk", "Marrow", "Quint", "Rask", "Sund", "Tolle", "Ulmer"),
    *("Varga", "Wick", "Yates", "Zander", "Abel", "Birk", "Cray", "Dahl", "Elster", "Frost"),
    *("Grieve", "Hale", "Ibsen", "Jürgens", "Kemp", "Lunde", "Moss", "Nyman", "Orr", "Pryce"),
)
WORDS: dict[str, Sequence[str]] = {
    "side": ("north", "south", "east", "west"),
    "crop": ("blue barley", "hops", "rye", "red beans", "flax", "plums", "winter wheat", "mustard"),
    "goods": ("salt", "felt hats", "roof tiles", "paper", "copper wire", "glass beads", "rope"),
    "carrier": ("rail", "barge", "mule cart", "coastal steamer", "lorry"),
    "stone": ("granite", "slate", "red sandstone", "chalk", "basalt"),
    "season": ("spring", "summer", "autumn", "winter"),
    "month": ("March", "April", "May", "June", "July", "September", "October", "November"),
    "animal": ("heron", "otter", "hare", "badger", "owl", "goat", "stork", "pike"),
    "dish": ("eel soup", "plum dumplings", "smoked trout", "barley bread", "onion tart"),
    "sport": ("rowing", "chess", "fencing", "handball", "ice skating", "archery"),
    "job": ("surveyor", "printer", "ship builder", "botanist", "bell founder", "clock maker"),
    "colour": ("blue", "green", "red", "grey", "white", "yellow"),
    "thing": ("kettle", "lantern", "brass key", "ladder", "map", "music box", "compass", "letter"),
    "place": ("mill", "harbour", "attic", "orchard", "chapel", "station", "boat shed", "kitchen"),
    "mood": ("calm", "uneasy", "cheerful", "silent", "hopeful", "cross", "weary"),
    "weather": ("rain", "fog", "snow", "a cold wind", "bright sun", "thunder"),
    "drug": ("zinc", "vitamin D", "low-dose aspirin", "ibuprofen", "melatonin", "metformin"),
    "illness": ("the common cold", "migraine", "knee pain", "mild asthma", "poor sleep", "anaemia"),
    "score": ("pain score", "sleep quality", "symptom score", "blood pressure", "walking distance"),
    "people": ("adults", "children", "nurses", "older patients", "volunteers", "outpatients"),
}
"""Slots that are filled from a list."""


def fill(template: str, values: Mapping[str, object]) -> str:
    """The template with every slot replaced. Raises KeyError for a slot without a value."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), template)


def draw_words(rng: random.Random) -> dict[str, object]:
    """One value for every slot: the lists above, names of people and towns, years and numbers."""
    values: dict[str, object] = {name: rng.choice(words) for name, words in WORDS.items()}
    values |= {name: person(rng) for name in ("person", "other", "third")}
    values |= {name: town(rng) for name in ("near", "far")}
    values |= {name: rng.randint(1780, 1990) for name in ("year", "later")}
    values |= {name: rng.randint(12, 480) for name in ("number", "amount")}
    return values | {"small": rng.randint(2, 11), "river": f"{rng.choice(TOWN_HEADS)}ka"}


def person(rng: random.Random) -> str:
    """A first and a last name."""
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def town(rng: random.Random) -> str:
    """The name of a town that is on no map."""
    return rng.choice(TOWN_HEADS) + rng.choice(TOWN_TAILS)


PREFIXES = ("", "New ", "Port ", "Upper ", "Lower ", "Old ", "Saint ")
TOWNS = tuple(p + head + tail for p in PREFIXES for head in TOWN_HEADS for tail in TOWN_TAILS)
PEOPLE = tuple(f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES)


def unique(names: Sequence[str], rng: random.Random) -> Iterator[str]:
    """The names in a drawn order, each once; further rounds carry Roman numerals."""
    for numeral in ("", " II", " III", " IV", " V", " VI", " VII", " VIII", " IX", " X"):
        for name in rng.sample(names, len(names)):
            yield name + numeral


def sentence_case(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
