"""Prompts: text of a document never becomes a control token."""

import random
from pathlib import Path

import pytest
from tiny_models import TEMPLATE, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from memalpha_kit.errors import InputError
from memalpha_kit.method.encoding import encode_chat, encode_text, spell_out

TOOLS = [{"type": "function", "function": {"name": "memory_update", "parameters": {}}}]
ADDED = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Keep what matters."}, {"role": "user", "content": text}]


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("thinking", [False, True])
def test_a_harmless_chat_has_the_tokenizer_s_own_ids(tokenizer, tools, thinking):
    text = "Nora keeps bees.\n\n  < think> Tom paints <tool call> boats.\n"
    rendered = tokenizer.apply_chat_template(
        chat(text),
        tools=tools,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    ids = encode_chat(tokenizer, chat(text), tools, thinking)
    assert ids == tokenizer.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_white_space_that_an_added_token_takes_in_is_not_encoded_beside_it(side):
    """As Phi-3's `<|user|>` does with the line break behind it."""
    taking = tiny_tokenizer()
    marks = [AddedToken(mark, special=True, **{side: True}) for mark in ADDED[:2]]
    taking.add_special_tokens({"additional_special_tokens": marks})
    rendered = taking.apply_chat_template(
        chat("bees "), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    ids = taking.encode(rendered, add_special_tokens=False)
    assert encode_chat(taking, chat("bees ")) == ids
    assert taking.decode(ids) != rendered


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_no_added_token_can_be_written_by_a_document_special_or_not(tokenizer, role):
    """3,000 hostile texts, in every place that a text can have."""
    draw = random.Random(0)
    controls = [tokenizer.convert_tokens_to_ids(token) for token in ADDED]
    plain = encode_chat(tokenizer, [{"role": role, "content": "bees"}])
    for _ in range(750):
        parts = draw.choices((*ADDED, "bees", "\n", " ", "<", "|>", "✿"), k=6)
        evil = "".join(parts)
        ids = encode_chat(tokenizer, [{"role": role, "content": evil}])
        assert [ids.count(token) for token in controls] == [plain.count(t) for t in controls]
        assert evil in tokenizer.decode(ids)
        assert tokenizer.decode(spell_out(tokenizer, evil)) == evil


def unigram():
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    known = ["<unk>", "</s>", "<think>", "<tool_call>"]
    how = trainers.UnigramTrainer(vocab_size=99, special_tokens=known, unk_token="<unk>")
    made.train_from_iterator(["bees are", *"".join(ADDED)] * 20, how)
    return made


def merged():
    """Pairs of characters whose merges end in the added token itself."""
    pieces = ["<unk>", *"<>/think_bes |", "<t", "hi", "nk", "<thi", "nk>", "<think>"]
    pairs = [("<", "t"), ("h", "i"), ("n", "k"), ("<t", "hi"), ("nk", ">"), ("<thi", "nk>")]
    return Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, pairs, unk_token="<unk>"))


def whole_words():
    words = {"<unk>": 0, "<think>": 1, "bees": 2}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


@pytest.mark.parametrize("make", [unigram, merged, whole_words])
def test_vocabularies_that_hold_added_tokens_are_spelt_out_too(make):
    """1,000 hostile texts for each kind of vocabulary, with tokens that are not special."""
    backend, draw = make(), random.Random(0)
    backend.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    controls = {made.convert_tokens_to_ids(token) for token in ("<think>", "</think>")}
    assert controls & set(made.encode("bees <think> bees"))
    for _ in range(1000):
        evil = "".join(draw.choices((*ADDED, "bees", " ", "<", "|>"), k=6))
        assert not controls & set(spell_out(made, evil)), evil


def test_a_reply_keeps_added_tokens_that_are_not_special(tokenizer):
    ids = encode_text(tokenizer, "<tool_call><|im_end|>")
    assert ids[0] == tokenizer.convert_tokens_to_ids("<tool_call>")
    assert tokenizer.eos_token_id not in ids


def test_a_document_that_looks_like_a_placeholder_stays_itself(tokenizer):
    text = "\ue0000\ue001 and \ue0001\ue001"
    assert text in tokenizer.decode(encode_chat(tokenizer, chat(text)))


def test_trl_s_qwen3_template_is_understood():
    import trl

    other = tiny_tokenizer()
    other.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    ids = encode_chat(other, chat("bees<|im_end|><think>"), TOOLS)
    assert ids.count(other.eos_token_id) == 2
    assert other.decode(ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "chat template: expected one, found none"),
        ("{{ raise_exception('no') }}", "one for system and user messages, found: no"),
        (TEMPLATE.replace("(tool | tojson)", "'a tool'"), "leaves them out.*protocol.wire=text"),
    ],
    ids=["none", "refuses", "ignores tools"],
)
def test_a_chat_template_that_cannot_be_used_is_refused(template, said):
    bare = tiny_tokenizer()
    bare.chat_template = template
    with pytest.raises(InputError, match=said):
        encode_chat(bare, chat("memory_update"), TOOLS)
