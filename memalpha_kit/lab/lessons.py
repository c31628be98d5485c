"""What the miniature's warm start is taught: its tokenizer, and three kinds of lessons.

    copying      random tokens in the form of the world: sentences to transcribe, and updates whose
                 key stands in a row of the memory; teaches copying and matching as such
    transcribing every sentence of a chunk is written, corrected entries are updated: the skills
    teaching     an imperfect teacher's transcripts: the poor choices that GRPO starts from

The boilerplate of a call is one token each. A memory row and a call share their JSON, so that the
id of a row and the id that an update writes are the same token, `", "memory_id": "17`.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from memalpha_kit.entries import Store
from memalpha_kit.lab import world
from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.encoding import encode_text
from memalpha_kit.method.memory import empty
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.method.protocol import render_compact
from memalpha_kit.models.tiny import build_tokenizer
from memalpha_kit.records import Entry
from memalpha_kit.settings import MemoryConfig, WorldConfig
from memalpha_kit.training.warm_start import Row, encode_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WIRE = "compact"
SPECIAL = ("<|pad|>", "<|im_end|>")
IDS = tuple(str(number) for number in range(1, 256))
"""Entry ids that are one token. Later ones are spelled in pieces, which no lesson teaches."""

VOCABULARY = 4000  # more than the words need: every word is one token
ID_WEIGHT = 2.0  # weight of an id in the loss; there is one per update, among a dozen tokens


# --- The tokenizer --------------------------------------------------------------------------------

_MARK = "\x00"


def boilerplate() -> dict[str, str]:
    """The fixed pieces of calls and prompts, read off what is rendered, so that they cannot drift.

    `id_start` stands between a text and its id, in calls and in rows, and is a token with each id.
    """
    fact, case = world.Sentence("fact", _MARK, "k", "v"), world.Sentence("example", _MARK)
    semantic, insert_end = _cut(render_calls([world.insert_call(fact)], WIRE))
    episodic, _ = _cut(render_calls([world.insert_call(case)], WIRE))
    _, id_start, update_end = _cut(render_calls([world.update_call(fact, Entry(_MARK, ""))], WIRE))
    config = MemoryConfig(core=False)
    nothing = empty(config)
    prompt, _ = render_compact(nothing, _MARK, config).split("\n", 1)
    memory = nothing.with_part("semantic", Store([Entry(_MARK, _MARK)]))
    row, _, rest, end = _cut(render_compact(memory, _MARK, config))
    row_end, text = rest.split("}", 1)
    return {
        "semantic": semantic,  # opens a call up to the text of a semantic entry
        "episodic": episodic,
        "insert_end": insert_end,
        "update_end": update_end,  # after the id
        "id_start": id_start,
        "prompt": prompt,
        "row": row.removeprefix(prompt),  # opens a row up to its text
        "row_end": row_end + "}",
        "text": text,  # between the rows and the chunk
        "end": end,  # after the chunk
    }


def _cut(rendered: str) -> list[str]:
    return rendered.replace("\\u0000", _MARK).split(_MARK)


_C = world.CONSONANTS
PATTERN = (
    rf"[{_C.upper()}][aeiou](?=[{_C}][aeiou][ns]?\b)"  # first syllable of a name
    r"|is the [a-z]+ of |goes to the [a-z]+ |[a-z]+ of "  # glue belongs to the word inside it
    r"|L\d ?|\d\d ?|[A-Za-z_]+ ?|[^\sA-Za-z\d]|\d|\s"  # a space belongs to the word before it
)


def tokenizer() -> PreTrainedTokenizerBase:
    """The miniature's tokenizer: words, values, syllables, boilerplate and ids, a token each."""
    parts = boilerplate()
    ids = [parts["id_start"] + number for number in IDS]
    fixed = [text for name, text in parts.items() if name != "id_start"]
    return build_tokenizer(_words() * 2, VOCABULARY, PATTERN, SPECIAL, [*fixed, *ids])


def _words() -> list[str]:
    chat = " ".join(world.CHAT).replace("{", "").replace("}", "").split()
    words = [*world.ADJECTIVES, *world.NOUNS, *chat, "Label", "Now"]
    glued = [
        *(f"is the {thing} of " for thing in world.THINGS),
        *(f"goes to the {adjective} " for adjective in world.ADJECTIVES),
        *(f"{noun} of " for noun in world.NOUNS),
    ]
    values = [f"{value:02d}" for value in range(100)] + [f"L{label}" for label in range(10)]
    spaced = [*dict.fromkeys(words), *world.LAST]
    apart = [f"{word} " for word in spaced]
    return [*world.FIRST, *spaced, *apart, *glued, *(f"{v} " for v in values)]


# --- Copying --------------------------------------------------------------------------------------

OUTSIDE = {"Now", "waved", "at", "the", "driver", "It", "rained", "near", "saw", "a", "liked"}
"""Words that copy rows do not use: `Now` has a meaning there, the others only glue sentences."""


class CopyRows:
    """Rows of random tokens in the form of the world; call it with a generator for one row.

    The prompt shows up to five rows with ids and a few sentences; the completion transcribes some
    of the sentences in any order. A sentence that starts with `Now` and repeats the key of a row
    becomes an update of that row's id; other `Now` sentences, some differing from a row by one
    token of the key, become inserts. Which sentence comes next cannot be known, so the tokens that
    choose it have weight 0, and so has the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        def token(text: str) -> int:
            (found,) = encode_text(tokenizer, text)
            return found

        parts = boilerplate()
        id_start = parts.pop("id_start")
        self.part = {name: token(text) for name, text in parts.items()}
        self.ids = [token(id_start + number) for number in IDS]
        self.now, self.line, self.stop = token("Now "), token("\n"), token(".")
        self.eos = tokenizer.eos_token_id
        words = [w for w in _words() if w.strip() not in OUTSIDE]
        self.pool = sorted({token(word) for word in words})

    def __call__(self, rng: random.Random) -> Row:
        """One row: prompt ids, completion ids, weights of the completion."""
        rows = self._rows(rng)
        prompt = [self.part["prompt"]]
        for tokens, number in rows:
            old = [self.now] if rng.random() < 0.3 else []
            prompt += [self.part["row"], *old, *tokens, number, self.part["row_end"]]
        prompt.append(self.part["text"])
        free, calls = rng.sample(rows, len(rows)), []
        for place in range(rng.randint(2, 5)):
            sentence, call, weights = self._sentence(free, rows, rng)
            prompt += ([self.line] if place else []) + [*sentence, self.stop]
            calls.append((call, weights))
        rng.shuffle(calls)
        calls = calls[: max(1, len(calls) - rng.randint(0, 2))]
        completion = [token for call, _ in calls for token in call]
        weights = [weight for _, part in calls for weight in part]
        return Row([*prompt, self.part["end"]], [*completion, self.eos], [*weights, 0.0])

    def _rows(self, rng: random.Random) -> list[tuple[list[int], int]]:
        """(value and key, id) of up to five memory rows; half of the time keys share tokens."""
        rows = [self._tokens(4, rng) for _ in range(rng.randint(0, 5))]
        if rng.random() < 0.5:
            for above, below in zip(rows, rows[1:], strict=False):
                for place in (1, 2, 3):
                    if rng.random() < 0.25:
                        below[place] = above[place]
        return list(zip(rows, sorted(rng.sample(self.ids, len(rows))), strict=True))

    def _sentence(
        self, free: list, rows: list, rng: random.Random
    ) -> tuple[list[int], list[int], list[float]]:
        """A sentence, the call that stores it, and the weights of the call's tokens."""
        kind = rng.random()
        if free and kind < 0.5:
            (_, *key), number = free.pop()
            sentence = [self.now, *self._tokens(1, rng), *key]
            ending, heavy = [number, self.part["update_end"]], [ID_WEIGHT, 1.0]
        else:
            changed = kind < 0.65
            sentence = self._unknown(rows, rng) if changed else self._tokens(rng.randint(3, 6), rng)
            ending, heavy = [self.part["insert_end"]], [1.0]
        chosen = 3 if sentence[0] == self.now else 2  # opening, perhaps Now, first token
        weights = [0.0] * chosen + [1.0] * (len(sentence) + 1 - chosen)
        return sentence, [self.part["semantic"], *sentence, *ending], weights + heavy

    def _unknown(self, rows: list, rng: random.Random) -> list[int]:
        """A `Now` sentence whose key no row has, half of the time almost a row's."""
        tokens = self._tokens(4, rng)
        if rows and rng.random() < 0.5:
            (_, *key), _ = rng.choice(rows)
            key[rng.randrange(3)] = tokens[1]
            tokens[1:] = key
        return [self.now, *tokens]

    def _tokens(self, n: int, rng: random.Random) -> list[int]:
        return [rng.choice(self.pool) for _ in range(n)]


# --- Transcripts ----------------------------------------------------------------------------------


def transcript_rows(
    writer: ModelWriter,
    config: WorldConfig,
    habits: world.Habits,
    living: world.Habits,
    n: int,
    seed: int | str,
) -> list[Row]:
    """`n` rows of a teacher with these habits (see `world.transcripts`), training names only."""
    people, _ = world.names(config)
    rng = random.Random(f"{seed}")
    steps = world.transcripts(config, writer.memory_config, people, habits, living, rng)
    return encode_steps(writer, itertools.islice(steps, n))
