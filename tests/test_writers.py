"""Writers: scripted rules by hand, and a tiny model behind the same interface."""

import pytest
from tiny_models import tiny_lm

from memalpha_kit.errors import InputError
from memalpha_kit.method.calls import parse_reply
from memalpha_kit.method.memory import empty
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.method.writers import WRITERS, ScriptedReplies, sentences, writer
from memalpha_kit.models.local import Sampling
from memalpha_kit.records import Completion, Entry, Memory, WriteRequest
from memalpha_kit.settings import MemoryConfig, ProtocolConfig

DOCUMENT = (
    "[Dialogue between User and Assistant on 2024-01-03 00:00]\n"
    "<User>Please keep this in mind. It matters.\n"
    "Nora keeps bees. She sold 3.5 kg of honey in May.\n\nTom paints boats!\n"
    "<Assistant>Noted. Thank you."
)
EXAMPLES = (
    "[Dialogue between User and Assistant on 2024-01-01 00:00]\n"
    "<User>Here are labelled examples.\n"
    "Sentence: where is my parcel\nLabel: 2\n\nSentence: stop the music\nLabel: 1\n"
    "<Assistant>Stored."
)
DIALOGUES = (
    "[Dialogue at timestamp 2023/05/20 (Sat) 02:21]\n"
    "<User>I adopted a dog.\nHis name is Biscuit.\n<Assistant>Congratulations!\n\n"
    "[Dialogue at timestamp 2023/05/21 (Sun) 09:00]\n<User>Biscuit ate my shoe. Twice."
)

TALK = "[Dialogue at timestamp 1:56 pm on 8 May, 2023]\n<Ila>I sold it. Today.\n<Ann Lee>Good."
BOOK = (
    "[Event happened on 2024-01-01 The user is reading a book]\n"
    "<User> Nell finds a key. It opens a door.\n\n<System> Please remember what was read."
)


def kept(name: str, chunk: str, wire: str = "qwen") -> list[tuple[str, str]]:
    """(store, text) of the inserts in the writer's reply, read back by the parser."""
    [reply] = writer(name, wire).write([WriteRequest(Memory(), chunk)])
    calls = parse_reply(reply.text, reply.finish, wire)
    assert all(call.name == "new_memory_insert" for call in calls)
    return [(c.arguments["memory_type"], c.arguments["content"]) for c in calls]


MARKUP = 'He wrote </tool_call> and "✿ARGS✿" there.'
SAID = "I adopted a dog.|His name is Biscuit.|Congratulations!|Biscuit ate my shoe.|Twice."
TURNS = (
    "At 2023/05/20 (Sat) 02:21, the user said: I adopted a dog.\nHis name is Biscuit.|"
    "At 2023/05/20 (Sat) 02:21, the assistant said: Congratulations!|"
    "At 2023/05/21 (Sun) 09:00, the user said: Biscuit ate my shoe. Twice."
)


@pytest.mark.parametrize("wire", ["qwen", "text", "compact", "lines"])
@pytest.mark.parametrize(
    ("name", "chunk", "store", "texts"),
    [
        (
            *("keep_sentences", DOCUMENT, "semantic"),
            "Nora keeps bees.|She sold 3.5 kg of honey in May.|Tom paints boats!",
        ),
        ("keep_sentences", DIALOGUES, "semantic", SAID),
        ("keep_sentences", "One. Two.", "semantic", "One.|Two."),
        ("keep_sentences", MARKUP, "semantic", MARKUP),
        (
            *("keep_examples", EXAMPLES, "semantic"),
            "Sentence: where is my parcel\nLabel: 2|Sentence: stop the music\nLabel: 1",
        ),
        ("keep_examples", "Sample: a\nLabels: 3", "semantic", "Sample: a\nLabels: 3"),
        ("keep_examples", DOCUMENT, "semantic", ""),
        ("keep_turns", DIALOGUES, "episodic", TURNS),
        ("keep_turns", "no dialogue here", "episodic", ""),
        (
            *("keep_turns", TALK, "episodic"),
            "At 1:56 pm on 8 May, 2023, Ila said: I sold it. Today.|"
            "At 1:56 pm on 8 May, 2023, Ann Lee said: Good.",
        ),
        ("keep_sentences", TALK, "semantic", "Ila: I sold it.|Today.|Ann Lee: Good."),
        ("keep_sentences", BOOK, "semantic", "Nell finds a key.|It opens a door."),
        ("silent", DOCUMENT, "", ""),
    ],
)
def test_a_rule_keeps_what_it_says_in_every_format(name, chunk, store, texts, wire):
    expected = [(f"{store}_memory", text) for text in texts.split("|") if text]
    assert kept(name, chunk, wire) == expected


def test_keep_lines_keeps_the_frame_too():
    lines = [text for _, text in kept("keep_lines", DOCUMENT)]
    assert lines[0].startswith("[Dialogue") and "Tom paints boats!" in lines
    assert lines[-2:] == ["<Assistant>Noted.", "Thank you."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("It cost 3.5 kg. of nothing", ["It cost 3.5 kg. of nothing"]),
        ("one\n\ntwo\n", ["one", "two"]),
        ("", []),
        ("In 1889. 20 people came.", ["In 1889.", "20 people came."]),
        ("a" + " " * 200_000 + "b\n", ["a" + " " * 200_000 + "b"]),  # in time that grows linearly
    ],
    ids=lambda value: str(value)[:20],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_an_unknown_writer_names_the_closest_one():
    with pytest.raises(InputError, match="did you mean 'keep_sentences'"):
        writer("keep_sentence")
    assert set(WRITERS.names()) >= {"keep_sentences", "keep_examples", "keep_turns", "silent"}


def test_scripted_replies_are_said_by_step():
    cut = Completion("<tool_call>", finish="length")
    said = ScriptedReplies(["Done", cut])
    requests = [WriteRequest(Memory(), "x", step=step) for step in (0, 1, 0)]
    assert said.write(requests) == [Completion("Done"), cut, Completion("Done")]


# ---- a language model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def model_writer(lm, **protocol) -> ModelWriter:
    settings = ProtocolConfig(**protocol)
    return ModelWriter(lm, MemoryConfig(), settings, Sampling(1.0, 8))


@pytest.mark.parametrize("wire", ["qwen", "text"])
def test_a_model_is_shown_tools_memory_and_chunk(lm, wire):
    memory = Memory(semantic=(Entry("7", "Nora keeps bees."),), next_id=8)
    ids = model_writer(lm, wire=wire).prompt_ids(WriteRequest(memory, "Tom paints <|im_end|>"))
    text = lm.tokenizer.decode(ids)
    assert "[7] Nora keeps bees." in text and "Tom paints <|im_end|>" in text
    assert text.count("new_memory_insert") >= 1
    assert ids.count(lm.tokenizer.eos_token_id) == 2  # the two messages end, the chunk ends none


def test_a_model_s_reply_keeps_the_sampled_ids(lm):
    writer = model_writer(lm)
    requests = [WriteRequest(empty(MemoryConfig()), "Nora", seed=seed) for seed in (1, 2)]
    first, second = writer.write(requests)
    assert first.prompt_ids == second.prompt_ids == tuple(writer.prompt_ids(requests[0]))
    assert first.completion_ids != second.completion_ids
    [alone] = writer.write(requests[1:])
    assert alone.completion_ids == second.completion_ids  # its own seed, whoever else is asked


def test_entries_are_left_out_until_the_prompt_fits(lm):
    entries = tuple(Entry(str(i), f"fact number {i} " * 20) for i in range(1, 6))
    request = WriteRequest(Memory(semantic=entries, next_id=6), "Nora", "squad/x", 3)
    full = model_writer(lm).prompt_ids(request)
    fitted = model_writer(lm, max_prompt_tokens=len(full) - 1).prompt_ids(request)
    text = lm.tokenizer.decode(fitted)
    assert "[5]" in text and "[4]" in text and "[3]" not in text  # 5 -> 2
    with pytest.raises(InputError, match="squad/x: chunk 3: prompt: expected at most 100"):
        model_writer(lm, max_prompt_tokens=100).prompt_ids(request)
