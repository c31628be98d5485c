"""Counting, splitting, packing and normalising."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha_kit.data.chunks import (
    pack_dialogues,
    pack_paragraphs,
    pack_sentences,
    split_long,
)
from memalpha_kit.errors import InputError
from memalpha_kit.text import normalise
from memalpha_kit.tokens import Counter, counter

WORDS, WORDPUNCT = counter("words"), counter("wordpunct")
SAID = st.lists(st.sampled_from(["Where is", " my dog?", " It ate.", "\n", " the-shoe", "é🙂"]))
TEXTS = st.text(alphabet="ab .!?\n\t-é你🙂<|>", max_size=80) | SAID.map("".join)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("words", "Nora  keeps\nbees.", 3),
        ("words", " \n", 0),
        ("wordpunct", "Nora keeps bees.", 4),
        ("wordpunct", "don't", 3),
        ("wordpunct", "¿Qué? 42_a", 6),
        ("wordpunct", "<|endoftext|>", 6),
        ("wordpunct", "", 0),
        # a text does not get shorter by the way it is spelt
        ("wordpunct", "nora_keeps_bees", 5),
        ("wordpunct", "responsibilities", 3),
        ("wordpunct", "x" * 100, 24),
        ("wordpunct", "1234567890123456", 3),
        ("wordpunct", "蜂" * 7000, 7000),
        ("wordpunct", "ノラは蜂を飼う", 7),
        ("wordpunct", "โนราเลี้ยงผึ้ง", 14),
        ("wordpunct", "노라는 벌을 키운다", 8),
        ("wordpunct", "Nora\u200bkeeps\u200bbees", 5),
        ("wordpunct", "🙂🙂", 2),
        ("wordpunct", "नोरा मधुमक्खी", 2),
        ("wordpunct", "مَرْحَبًا بك", 3),
        ("wordpunct", "ਪੰਜਾਬ සිංහල ދިވެހި", 3),
        ("wordpunct", "Zoe\u0301 hums", 2),
    ],
)
def test_counts_by_hand(name, text, expected):
    assert counter(name).count(text) == len(counter(name).ends(text)) == expected


def test_cutting_keeps_white_space_and_ends_with_a_token():
    assert WORDPUNCT.cut("  Nora  keeps\nbees. ", 3) == "  Nora  keeps\nbees"
    assert WORDPUNCT.cut("  Nora  keeps\nbees. ", 4) == "  Nora  keeps\nbees. "
    assert WORDPUNCT.cut("Nora", 0) == ""


@given(text=TEXTS, n=st.integers(0, 20), name=st.sampled_from(["words", "wordpunct"]))
def test_a_cut_is_an_exact_prefix_of_at_most_n_tokens(text, n, name):
    cut = counter(name).cut(text, n)
    assert text.startswith(cut)
    assert counter(name).count(cut) == min(n, counter(name).count(text))


ENGLISH = (
    "Nora keeps nine hives of bees behind the old red barn near Oslo, and in May 2019 she sold 12 "
    "jars of honey to Tom for 300 euro; her sister moved to room 46 and has a new phone"
)
SPACED = {
    "English": ENGLISH,
    "Russian": "Нора держит девять ульев за старым красным сараем и продаёт мёд соседям",
    "Greek": "Η Νόρα έχει εννέα κυψέλες πίσω από τον παλιό κόκκινο αχυρώνα",
    "Arabic": "نورا تربي النحل خلف الحظيرة الحمراء القديمة وتبيع العسل للجيران",
    "Hindi": "नोरा पुराने लाल खलिहान के पीछे मधुमक्खी पालती है और शहद बेचती है",
    "Korean": "노라는 낡은 빨간 헛간 뒤에서 벌을 키우고 꿀을 판다",
    "Chinese": "诺拉 在 旧 红 谷仓 后面 养 蜂",
    "Thai": "โนรา เลี้ยง ผึ้ง หลัง โรงนา เก่า",
    "emoji": "🐝 🐝 🍯 🏠 🙂",
    "digits": "1990 461 2019 300 1234 887 5550 1812",
}
JOINTS = {
    **{"nothing": "", "underscore": "_", "hyphen": "-", "slash": "/", "middle dot": "·"},
    **{"zero-width space": "\u200b", "joiner": "\u200d", "non-joiner": "\u200c"},
    **{"soft hyphen": "\u00ad", "word joiner": "\u2060", "byte order mark": "\ufeff"},
    **{"grapheme joiner": "\u034f", "accent": "\u0301", "apostrophe letter": "\u02bc"},
    **{"tatweel": "\u0640", "Hangul filler": "\u3164", "braille blank": "\u2800"},
    **{"variation selector": "\ufe0f", "tag": "\U000e0020", "digit": "0", "letter": "x"},
}


def glued_to(text, size):
    """Neighbouring words together while they have at most `size` characters: the cheapest way."""
    words = []
    for word in re.findall(r"[^\s,;]+", text):
        if words and len(words[-1]) + len(word) <= size:
            words[-1] += word
        else:
            words.append(word)
    return " ".join(words)


@pytest.mark.parametrize("text", SPACED.values(), ids=SPACED)
def test_glued_text_counts_at_least_half_of_the_same_text_with_spaces(text):
    """A budget and the compression reward count tokens: spelling may not hide content from them."""
    count = counter("wordpunct").count
    least = count(text) / 2
    glued = {name: joint.join(text.split()) for name, joint in JOINTS.items()}
    glued["camel case"] = "".join(word.capitalize() for word in text.split())
    glued["capitals"] = "".join(text.split()).upper()
    assert {name: count(one) for name, one in glued.items() if count(one) < least} == {}
    sizes = {size: count(glued_to(text, size)) for size in range(1, 40)}
    words = count(" ".join(re.findall(r"[^\s,;]+", text)))
    assert {size: n for size, n in sizes.items() if n < words / 2} == {}


@pytest.mark.parametrize("name", ["wordpunkt", "tiktoken:", "hf", ""])
def test_an_unknown_counter_is_refused_with_a_suggestion(name):
    with pytest.raises(InputError, match="counter: expected a known name"):
        counter(name)


def test_a_tokenizer_that_does_not_load_is_an_error_and_never_zero(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    for name in ("tiktoken:no_such_encoding", "hf:nowhere", f"hf:{tmp_path}"):
        with pytest.raises(InputError, match="expected a tokenizer that loads"):
            counter(name)


def trained(folder, size, text=""):
    """A byte-level tokenizer with a special token; of the smallest size, one token per byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return counter(f"hf:{folder}")


def of_tiktoken():
    """A stand-in encoding, as the real ones are downloaded: one token per byte."""
    import tiktoken

    bytes_only = tiktoken.Encoding(
        "bytes",
        pat_str=r".|\n",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={"<|endoftext|>": 256},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "get_encoding", lambda name: bytes_only)
        return counter.__wrapped__("tiktoken:bytes")


@pytest.fixture(scope="module")
def measures(tmp_path_factory):
    """Counters by name. In subwords the sizes of parts do not add up to those of the whole."""
    said = "Where is my dog? It ate the shoe.\n\nI do not know, it may be in the garden. " * 20
    return {
        "words": WORDS,
        "wordpunct": WORDPUNCT,
        "hf": trained(tmp_path_factory.mktemp("bytes"), 257),
        "tiktoken": of_tiktoken(),
        "subwords": trained(tmp_path_factory.mktemp("subwords"), 321, said),
    }


@pytest.mark.parametrize("name", ["hf", "tiktoken"])
def test_special_tokens_are_ordinary_text_and_no_character_is_cut_in_two(measures, name):
    measure = measures[name]
    assert measure.name.startswith(f"{name}:")
    assert measure.count("<|endoftext|>") == len("<|endoftext|>")
    assert (measure.count(""), measure.count("a🙂b")) == (0, 6)
    cuts = [measure.cut("a🙂b", n) for n in (0, 1, 2, 4, 5, 6)]
    assert cuts == ["", "a", "a", "a", "a🙂", "a🙂b"]


@given(TEXTS, st.integers(1, 9), st.sampled_from(["words", "wordpunct", "hf", "subwords"]))
def test_split_pieces_fit_and_join_to_the_text(measures, text, limit, name):
    limit += 3 * (name in ("hf", "subwords"))  # bytes of the longest character
    pieces = split_long(text, measures[name], limit)
    assert "".join(pieces) == text and all(pieces)
    assert all(measures[name].count(piece) <= limit for piece in pieces)


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("One two. Three four.", 3, ["One two. ", "Three four."]),
        ("one two\nthree four", 3, ["one two\n", "three four"]),
        ("one two three", 2, ["one two ", "three"]),
        ("A b. c d e f g h", 4, ["A b. c d ", "e f g h"]),
        ("short", 4, ["short"]),
        ("", 4, []),
    ],
)
def test_splits_by_hand_after_sentences_lines_then_words(text, limit, pieces):
    assert split_long(text, WORDS, limit) == pieces


def test_a_word_of_too_many_tokens_is_split_between_them():
    assert split_long("a-b-c", WORDPUNCT, 2) == ["a-", "b-", "c"]
    with pytest.raises(ValueError, match="at least 1"):
        split_long("a", WORDS, 0)


def test_paragraphs_fill_chunks_up_to_their_targets():
    paragraphs = ["a " * 10, "b " * 10, "c " * 9, "d " * 30, "e"]
    assert pack_paragraphs(paragraphs, WORDS, lambda: 22) == [[0, 1], [2], [3], [4]]
    targets = iter([10, 40, 1, 99])
    assert pack_paragraphs(paragraphs, WORDS, lambda: next(targets)) == [[0], [1, 2], [3], [4]]


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 15))
def test_every_paragraph_is_packed_once_in_order(sizes, target):
    chunks = pack_paragraphs(["w " * size for size in sizes], WORDS, lambda: target)
    assert [i for chunk in chunks for i in chunk] == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in chunk) <= target for chunk in chunks if len(chunk) > 1)


DATES = ["2023/05/20 (Sat) 02:21"]


def words_of(chunks):
    """All words behind the role tags, headers left out."""
    lines = [line for chunk in chunks for line in chunk.text.split("\n") if line.startswith("<")]
    return " ".join(line.partition(">")[2] for line in lines).split()


def numbered(*sizes):
    """Turns of that many different words each, user first."""
    roles = ("user", "assistant")
    return [(roles[i % 2], " ".join(f"t{i}w{j}" for j in range(n))) for i, n in enumerate(sizes)]


def test_a_question_is_carried_on_only_if_its_answer_fits_there_too():
    """First overflow case: the reference gives chunks of 204 and 2804 words."""
    chunks = pack_dialogues([numbered(100, 100, 1000, 1800)], DATES, WORDS)
    assert all(WORDS.count(chunk.text) <= 2048 for chunk in chunks)
    assert [chunk.turns for chunk in chunks] == [((0, 0), (0, 1), (0, 2)), ((0, 3),)]
    chunks = pack_dialogues([numbered(800, 800, 100, 1000)], DATES, WORDS)
    assert [chunk.turns for chunk in chunks] == [((0, 0), (0, 1)), ((0, 2), (0, 3))]


def test_a_split_turn_keeps_its_white_space_and_the_limit():
    """The release joins the sentences of a long turn with single spaces."""
    said = "First line.\n\n  Second   line,\tindented.\n" * 30
    chunks = pack_dialogues([[("user", said)]], ["now"], WORDS, limit=40, close=30, reserve=10)
    kept = [chunk.text.removeprefix("[Dialogue at timestamp now]\n<User>") for chunk in chunks]
    assert "".join(text.replace("\n<User>", "") for text in kept) == said
    assert len(chunks) > 3 and all(WORDS.count(chunk.text) <= 40 for chunk in chunks)


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), max_size=5),
    st.integers(25, 60),
    st.integers(10, 60),
)
def test_dialogue_chunks_fit_and_keep_every_word_in_order(sizes, limit, close):
    sessions = [numbered(*turns) for turns in sizes]
    dates = DATES * len(sessions)
    chunks = pack_dialogues(sessions, dates, WORDS, limit=limit, close=close, reserve=10)
    assert all(WORDS.count(chunk.text) <= limit for chunk in chunks)
    assert words_of(chunks) == [w for s in sessions for _, text in s for w in text.split()]


def test_a_date_longer_than_the_reserve_is_refused():
    with pytest.raises(InputError, match="dialogue 0: expected a date within 5 tokens, found 7"):
        pack_dialogues([[("user", "Hi")]], ["a b c d"], WORDS, reserve=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S.A.,  an Empire\nof theatre", "usa empire of theatre"),
        ("a an the", ""),
        ("Don't", "dont"),
        ("¿Qué?", "¿qué"),
    ],
)
def test_normalised_by_hand(text, expected):
    assert normalise(text) == expected


@dataclass
class Spy:
    """A counter that adds up the characters it is shown."""

    characters: int = 0

    def counter(self, adds_up=True):
        return Counter("spy", self.ends, None, adds_up)

    def ends(self, text):
        self.characters += len(text)
        return WORDPUNCT.ends(text)


@pytest.mark.parametrize("adds_up", [True, False])
@pytest.mark.parametrize(
    "text", ["word " * 9000, "A sentence of six words here. " * 1500, "long." * 9000]
)
def test_splitting_looks_at_each_character_a_few_times_only(text, adds_up):
    spy = Spy()
    pieces = split_long(text, spy.counter(adds_up), 500)
    assert "".join(pieces) == text and all(WORDPUNCT.count(piece) <= 500 for piece in pieces)
    assert spy.characters < 4 * len(text)


@pytest.mark.parametrize("text", ["\n" * 3000 + "x" * 3000, "\n" * 3000 + "word " * 1000])
def test_packing_sentences_looks_at_each_blank_line_a_few_times_only(text):
    looked = 0

    class Text(str):
        def __getitem__(self, place):
            nonlocal looked
            looked += len(part := super().__getitem__(place))
            return part

    chunks = pack_sentences(Text(text), WORDPUNCT, 100)
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert looked < 9 * len(text)


@pytest.mark.parametrize("adds_up", [True, False])
def test_packing_dialogues_looks_at_each_character_about_once(adds_up):
    sessions = [[("user", "What now? " * 9), ("assistant", "Do it well. " * 40)] * 6] * 20
    dates = DATES * 20
    spy = Spy()
    chunks = pack_dialogues(sessions, dates, spy.counter(adds_up))
    assert spy.characters < 1.3 * sum(len(chunk.text) for chunk in chunks)
    assert chunks == pack_dialogues(sessions, dates, WORDPUNCT)


@given(
    sessions=st.lists(
        st.lists(st.tuples(st.sampled_from(["user", "assistant"]), SAID), max_size=8), max_size=4
    ),
    limit=st.integers(60, 120),
)
def test_dialogue_chunks_fit_where_sizes_do_not_add_up(measures, sessions, limit):
    subwords = measures["subwords"]
    spoken = [[(role, "".join(said)) for role, said in turns] for turns in sessions]
    chunks = pack_dialogues(spoken, ["now"] * len(spoken), subwords, limit, limit - 10, 30)
    assert all(subwords.count(chunk.text) <= limit for chunk in chunks)
    said = "".join("".join(said) for turns in sessions for _, said in turns)
    kept = "".join(chunk.text for chunk in chunks).replace("[Dialogue at timestamp now]", "")
    for tag in ("<User>", "<Assistant>"):
        kept = kept.replace(tag, "")
    assert "".join(kept.split()) == "".join(said.split())
