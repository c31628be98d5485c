"""One spelling for sentences that say the same: what leak checks and exclusions compare.

Spoken and written forms of the same utterance stand side by side in real files (NLU-Data has both
"wake me at 5am" and "wake me at five am"), so two texts are compared by their words with numbers
as digits, and written without spaces: "what's" and "what s", "5am" and "5 am" are alike.

>>> key("Wake me at five a.m.!") == key("wake me at 5am"), key("twenty-five % off")
(True, '25percentoff')
"""

from __future__ import annotations

import re
from functools import lru_cache

from memalpha_kit.text import normalise

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_UNITS += " fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
NUMBERS = {
    **{word: value for value, word in enumerate(_UNITS.split())},
    **{word: 10 * value for value, word in enumerate(_TENS.split(), start=2)},
    **{word: value for value, word in enumerate(_ORDINALS.split(), start=1)},
}
_WORD = re.compile(r"\d+(?=(?:st|nd|rd|th)\b)|(?<=\d)(?:st|nd|rd|th)\b|\d+|[^\W\d_]+")


def words(text: str) -> list[str]:
    """The normalised words of a text, numbers as digits."""
    found: list[str] = []
    open_tens = 0  # the number that a unit may still join: "twenty", "one hundred"
    for match in _WORD.finditer(normalise(re.sub(r"%", " percent ", text.replace("-", " ")))):
        word = match[0]
        value = NUMBERS.get(word)
        if word in ("st", "nd", "rd", "th") and match.start() and found and found[-1].isdigit():
            continue
        if word == "hundred" and found and found[-1].isdigit() and int(found[-1]) < 10:
            open_tens = 100 * int(found.pop())
            found.append(str(open_tens))
        elif value is not None and open_tens and value < (10 if open_tens < 100 else 100):
            found[-1] = str(int(found[-1]) + value)
            open_tens = open_tens + value if value % 10 == 0 and value else 0
        else:
            found.append(word if value is None else str(value))
            open_tens = value if value and value >= 20 else 0
    return found


@lru_cache(1 << 16)  # the same questions are asked of many instances
def key(text: str) -> str:
    """What two spellings of a sentence have in common; of a text without words the text itself."""
    return "".join(words(text)) or text.strip()
