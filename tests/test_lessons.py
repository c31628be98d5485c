"""The miniature's tokenizer and lessons: one token per word, copy rows that mean what they say."""

from __future__ import annotations

import itertools
import random

import pytest

from memalpha_kit.lab import lessons, world
from memalpha_kit.method.calls import parse_reply, render_calls
from memalpha_kit.method.encoding import encode_text
from memalpha_kit.method.memory import UPDATE, apply, empty
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.method.protocol import render_compact
from memalpha_kit.models.local import CausalLM, Sampling
from memalpha_kit.records import Entry, Memory, WriteRequest
from memalpha_kit.settings import MemoryConfig, ProtocolConfig, WarmStartConfig, WorldConfig

WORLD = WorldConfig(training_names=300, held_out_names=100)
TRAIN, HELD_OUT = world.names(WORLD)
MEMORY = MemoryConfig(core=False, display="relevant", shown=4)
PROTOCOL = ProtocolConfig(wire="compact", prompt="compact", max_prompt_tokens=512)
PARTS = lessons.boilerplate()
ID_START = PARTS.pop("id_start")


@pytest.fixture(scope="module")
def tokenizer():
    return lessons.tokenizer()


@pytest.fixture(scope="module")
def writer(tokenizer):
    """A writer that only encodes: it has no model."""
    lm = CausalLM("no model", None, tokenizer, (tokenizer.eos_token_id,))
    return ModelWriter(lm, MEMORY, PROTOCOL, Sampling(0.0, 1))


@pytest.fixture(scope="module")
def copy_row(tokenizer):
    return lessons.CopyRows(tokenizer)


def word_forms() -> list[str]:
    """Every form in which the world writes a word, a value or a syllable."""
    chat = {word for pattern in world.CHAT for word in pattern.split() if "{" not in word}
    plain = [*world.ADJECTIVES, *world.NOUNS, *chat, "Label", "Now"]
    values = [f"{value:02d}" for value in range(100)] + [f"L{label}" for label in range(10)]
    spaced = [f"{word} " for word in (*plain, *values, *world.LAST)]
    glued = [
        *(f"is the {thing} of " for thing in world.THINGS),
        *(f"goes to the {adjective} " for adjective in world.ADJECTIVES),
        *(f"{noun} of " for noun in world.NOUNS),
    ]
    return [*world.FIRST, *plain, *world.LAST, *spaced, *glued]


# --- The tokenizer -------------------------------------------------------------------------------


def test_boilerplate_ids_and_every_word_form_of_the_world_are_one_token_each(tokenizer):
    fixed = [*PARTS.values(), *(f"{ID_START}{number}" for number in range(1, 256))]
    split = {text: encode_text(tokenizer, text) for text in (*fixed, *word_forms())}
    assert [text for text, ids in split.items() if len(ids) != 1] == []
    assert len({tuple(ids) for ids in split.values()}) == len(split)
    assert lessons.tokenizer().get_vocab() == tokenizer.get_vocab()  # the same again


def test_a_name_is_two_syllables_also_where_another_word_ends_alike(tokenizer):
    for name in (*HELD_OUT, *TRAIN):
        for text in (name, f"{name} "):
            first, last = encode_text(tokenizer, text)
            assert tokenizer.decode([first]) == name[:2]
            assert tokenizer.decode([last]) == text[2:]


def test_an_id_in_a_row_and_in_an_update_is_the_same_token(tokenizer):
    entry = Entry("17", "46 is the phone of Pemes")
    memory = Memory(None, (entry,), ())
    call = world.update_call(world.read_sentence("Now 53 is the phone of Pemes"), entry)
    (wanted,) = encode_text(tokenizer, ID_START + "17")
    assert encode_text(tokenizer, render_compact(memory, "x", MEMORY)).count(wanted) == 1
    assert encode_text(tokenizer, render_calls([call], "compact")).count(wanted) == 1


def held_out_steps(n_chunks: int = 52):
    """(prompt, reply) of the perfect teacher on held-out names, as text."""
    (instance,) = world.build_world(WORLD, HELD_OUT, 1, n_chunks, "test")
    memory = empty(MEMORY)
    for chunk in instance.chunks:
        calls = world.teach(chunk, memory, MEMORY, world.PERFECT, random.Random(0))
        yield render_compact(memory, chunk, MEMORY), render_calls(calls, "compact")
        for call in calls:
            memory, _ = apply(memory, call, MEMORY)


@pytest.mark.parametrize("text", ["", "Zoë paid 5 €", "\n\n  now", "<|pad|><|im_end|>", "漢字 LL4"])
def test_decoding_is_the_inverse_of_encoding(tokenizer, text):
    for said in (text, *itertools.chain(*held_out_steps(4))):
        ids = encode_text(tokenizer, said)
        assert tokenizer.decode(ids) == said
        assert tokenizer.decode(ids, skip_special_tokens=True) == said  # added tokens stay visible
        assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(ids)


def test_held_out_chunks_and_perfect_replies_need_no_token_that_the_lessons_do_not_have(
    tokenizer, writer, copy_row
):
    rng = random.Random(0)
    rows = [copy_row(rng) for _ in range(600)]
    rows += lessons.transcript_rows(writer, WORLD, world.KEEPS_ALL, world.PERFECT, 2000, 0)
    seen = {token for row in rows for token in (*row.prompt_ids, *row.completion_ids)}
    said = itertools.chain(*held_out_steps())
    needed = {token for text in said for token in encode_text(tokenizer, text)}
    assert {tokenizer.decode([token]) for token in needed - seen} == set()


# --- Copy rows -----------------------------------------------------------------------------------


def parts_of(ids: list[int], opening: int) -> list[list[int]]:
    """The token lists that follow each `opening`."""
    starts = [i for i, token in enumerate(ids) if token == opening] + [len(ids)]
    return [ids[a + 1 : b] for a, b in itertools.pairwise(starts)]


def read_copy_row(copy_row, row):
    """(rows as {id: key tokens}, sentences, calls), all as token lists."""
    part = copy_row.part
    ids = list(row.prompt_ids)
    assert ids[0] == part["prompt"] and ids[-1] == part["end"]
    middle = ids.index(part["text"])
    keys = {}
    for entry in parts_of(ids[:middle], part["row"]):
        *text, number, end = entry
        assert end == part["row_end"] and number in copy_row.ids
        keys[number] = text[-3:]
    text = ids[middle + 1 : -1]
    sentences = parts_of([copy_row.line, *text], copy_row.line)
    assert all(sentence.pop() == copy_row.stop for sentence in sentences)
    assert row.completion_ids[-1] == copy_row.eos
    return keys, sentences, parts_of(list(row.completion_ids[:-1]), part["semantic"])


ROWS = 300


def test_copy_rows_transcribe_sentences_and_an_update_has_the_id_of_the_row_with_its_key(copy_row):
    rng, updates, inserts = random.Random(1), 0, 0
    for _ in range(ROWS):
        keys, sentences, calls = read_copy_row(copy_row, copy_row(rng))
        written = [c[:-1] if c[-1] == copy_row.part["insert_end"] else c[:-2] for c in calls]
        assert 1 <= len(written) <= len(sentences) <= 5
        assert all(written.count(text) <= sentences.count(text) for text in written)
        for call in calls:
            if call[-1] == copy_row.part["update_end"]:
                now, _, *key, number, _ = call
                assert now == copy_row.now and keys[number] == key
                updates += 1
            elif call[0] == copy_row.now:
                assert call[2:-1] not in keys.values()
                inserts += 1
    assert updates > ROWS / 4 and inserts > ROWS / 4


def test_weights_are_as_long_as_the_completion_and_leave_the_choices_out(copy_row):
    rng = random.Random(2)
    for _ in range(ROWS):
        row = copy_row(rng)
        assert len(row.weights) == len(row.completion_ids)
        assert row.weights[-1] == 0.0  # whether to stop is a choice
        opening = copy_row.part["semantic"]
        starts = [i for i, token in enumerate(row.completion_ids) if token == opening]
        choices = {len(row.weights) - 1}
        for start in starts:
            first = start + 1 + (row.completion_ids[start + 1] == copy_row.now)
            choices |= set(range(start, first + 1))  # which sentence: its beginning
        assert {i for i, weight in enumerate(row.weights) if not weight} == choices
        heavy = {i for i, token in enumerate(row.completion_ids) if token in copy_row.ids}
        assert {i for i, weight in enumerate(row.weights) if weight > 1} == heavy


def test_a_copy_row_decodes_to_calls_that_can_be_read(copy_row, tokenizer):
    rng, kinds = random.Random(3), set()
    for _ in range(ROWS):
        row = copy_row(rng)
        _, _, calls = read_copy_row(copy_row, row)
        reply = tokenizer.decode(row.completion_ids[:-1])
        read = parse_reply(reply, "stop", "compact")
        assert [call.status for call in read] == ["parsed"] * len(calls)
        for call, ids in zip(read, calls, strict=True):
            update = call.name == UPDATE
            kinds.add(call.name)
            text = tokenizer.decode(ids[:-2] if update else ids[:-1])
            assert call.arguments["new_content" if update else "content"] == text
    assert len(kinds) == 2
    one, same, other = (copy_row(random.Random(seed)) for seed in (0, 0, 1))
    assert one == same != other


# --- Transcripts ---------------------------------------------------------------------------------


def test_transcript_rows_are_the_teacher_s_steps_about_training_names(writer, tokenizer):
    habits, living = world.imperfect(WarmStartConfig()), world.PERFECT
    rows = lessons.transcript_rows(writer, WORLD, habits, living, 50, "seed")
    steps = world.transcripts(WORLD, MEMORY, TRAIN, habits, living, random.Random("seed"))
    for row, (memory, chunk, calls) in zip(rows, steps, strict=False):
        assert row.prompt_ids == writer.prompt_ids(WriteRequest(memory, chunk))
        assert tokenizer.decode(row.prompt_ids) == render_compact(memory, chunk, MEMORY)
        assert row.completion_ids[-1] == tokenizer.eos_token_id
        reply = tokenizer.decode(row.completion_ids[:-1])
        read = parse_reply(reply, "stop", "compact")
        assert [(c.name, c.arguments) for c in read] == [(c.name, c.arguments) for c in calls]
    assert len(rows) == 50
    same, other = (
        lessons.transcript_rows(writer, WORLD, habits, living, 50, seed) for seed in ("seed", "1")
    )
    assert rows == same != other
