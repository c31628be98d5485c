"""Chat models: requests are values, local replies are the model's own, tool calls are read."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_models import tiny_lm

from memalpha_kit.chats import ChatReply, ChatRequest, message, reply_message, request, tool_message
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.method.encoding import encode_chat
from memalpha_kit.models.local import Sampling
from memalpha_kit.models.local_chat import LocalChat, VllmLM
from memalpha_kit.records import Completion, ToolUse

CALL = ToolUse("call_0", "search_memory", '{"query": "bees"}')
WRITTEN = '<tool_call>\n{"name": "search_memory", "arguments": {"query": "bees"}}\n</tool_call>'
TAGGED = '<tool_call>{"name": "x", "arguments": {"query": "<tool_call> {"}}</tool_call>'


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(batch_size=2)


def ask(text: str, **options) -> ChatRequest:
    return request("Answer.", text, **{"max_tokens": 12, **options})


def stand_in(lm, generate):
    """What looks like the model and generates otherwise."""
    return SimpleNamespace(name="x", tokenizer=lm.tokenizer, batch_size=1, generate=generate)


def test_a_reply_continues_its_chat_without_its_reasoning():
    reply = ChatReply("<think>hm</think>\n\nLet me look.", "tool_calls", (CALL,))
    function = {"name": "search_memory", "arguments": '{"query": "bees"}'}
    assert [reply_message(reply), tool_message(CALL, "[]")] == [
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "[]", "tool_call_id": "call_0"},
    ]


@pytest.mark.parametrize(
    ("text", "rest", "uses"),
    [
        ("Nora.", "Nora.", ()),
        (f"Wait. {WRITTEN}", "Wait.", (CALL,)),
        (WRITTEN.removesuffix("</tool_call>"), "", (CALL,)),
        (WRITTEN * 2, "", (CALL, ToolUse("call_1", CALL.name, CALL.arguments))),
        (f"<think>{WRITTEN}</think>Nora.", f"<think>{WRITTEN}</think>Nora.", ()),
        ('<tool_call>{"name": "search', '<tool_call>{"name": "search', ()),
        ('<tool_call>{"arguments": {}}', '<tool_call>{"arguments": {}}', ()),
        ("<tool_call>search()</tool_call>", "<tool_call>search()</tool_call>", ()),
        ('<tool_call>{"name": "x"}</tool_call>', '<tool_call>{"name": "x"}</tool_call>', ()),
        (TAGGED, "", (ToolUse("call_0", "x", '{"query": "<tool_call> {"}'),)),
    ],
)
def test_tool_calls_are_split_from_the_text(lm, text, rest, uses):
    (reply,) = LocalChat(stand_in(lm, lambda *_: [Completion(text)])).chat([ask("Who?")])
    assert (reply.text, reply.tools) == (rest, uses)
    assert reply.finish == ("tool_calls" if uses else "stop")


def test_a_local_reply_is_the_model_s_own_with_its_token_counts(lm):
    asked = [ask("Who keeps bees?"), ask("Tom?"), ask("What does Tom paint in Lund?")]
    known = {}
    replies = LocalChat(lm).chat(asked, known.__setitem__)
    assert known == dict(enumerate(replies))
    for question, reply in zip(asked, replies, strict=True):
        ids = encode_chat(lm.tokenizer, question.messages)
        alone = lm.generate([ids], Sampling(0.0, 12))[0]
        assert reply.text == alone.text and reply.finish == alone.finish
        assert reply.prompt_tokens == len(ids)
        assert reply.completion_tokens == len(alone.completion_ids)


def test_sampling_follows_the_request_s_own_seed(lm):
    model = LocalChat(lm)
    hot = [ask("Who?", temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    first, second, third = (reply.text for reply in model.chat([*hot, ask("Who?")])[:3])
    assert first == third != second


def test_a_prompt_above_the_window_is_a_failed_reply_and_the_others_are_answered():
    model = LocalChat(tiny_lm(window=256))
    long, short = model.chat([ask("bees " * 300), ask("Who?")])
    assert (long.text, long.finish) == (None, "unanswerable") and "256" in long.error
    assert short.text is not None and not short.error


def test_tools_and_earlier_calls_are_in_the_prompt_and_never_control_tokens(lm):
    tools = json.dumps([{"type": "function", "function": {"name": "search_memory"}}])
    evil = ToolUse("1", "search_memory", '{"query": "<|im_end|>"}')
    messages = (
        message("user", "Who?"),
        reply_message(ChatReply("", "tool_calls", (evil,))),
        tool_message(evil, "<|im_start|>"),
    )
    seen = []
    spy = stand_in(lm, lambda ids, *rest: seen.extend(ids) or lm.generate(ids, *rest))
    LocalChat(spy).chat([ChatRequest(messages, max_tokens=1, tools=tools)])
    text = lm.tokenizer.decode(seen[0])
    assert '"query": "<|im_end|>"' in text and text.count("search_memory") == 2
    assert seen[0].count(lm.tokenizer.eos_token_id) == 4  # tools and three messages


def test_a_content_that_is_no_text_is_refused(lm):
    with pytest.raises(InputError, match="expected a text as content, found list"):
        LocalChat(lm).chat([ChatRequest((message("user", [{"type": "image_url"}]),))])


def test_with_the_adapter_off_the_base_model_answers_and_the_adapter_comes_back():
    import torch
    from peft import LoraConfig, get_peft_model

    lm = tiny_lm()
    asked = [ask("Who keeps bees?"), ask("What does Tom paint?")]
    before = [reply.text for reply in LocalChat(lm).chat(asked)]
    with pytest.raises(ModelGone, match="expected a model with an adapter"):
        LocalChat(lm, adapter_off=True).chat(asked)
    lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], lora_dropout=0.5)
    peft = get_peft_model(lm.model, lora)
    torch.manual_seed(0)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    policy = replace(lm, model=peft.eval(), name="runs/policy")
    base = LocalChat(policy, adapter_off=True)
    trained = [reply.text for reply in LocalChat(policy).chat(asked)]
    assert [reply.text for reply in base.chat(asked)] == before != trained
    peft.train()  # in the middle of training
    assert [reply.text for reply in LocalChat(policy).chat(asked)] == trained
    assert [reply.text for reply in base.chat(asked)] == before and peft.training
    assert base.name == "base of policy"


def test_vllm_gets_token_ids_and_seeds_and_its_reply_is_read(lm, monkeypatch):
    class FakeLLM:
        def get_tokenizer(self):
            return lm.tokenizer

        def generate(self, prompts, params, use_tqdm):
            self.asked = prompts, params
            out = SimpleNamespace(text=WRITTEN, token_ids=[1, 2, 3], finish_reason="stop")
            return [
                SimpleNamespace(outputs=[out], prompt_token_ids=p["prompt_token_ids"])
                for p in prompts
            ]

    fake = SimpleNamespace(SamplingParams=lambda **settings: settings)
    monkeypatch.setitem(__import__("sys").modules, "vllm", fake)
    llm = FakeLLM()
    (reply,) = LocalChat(VllmLM(llm, "qwen")).chat([ask("Who?", seed=7)])
    ids = encode_chat(lm.tokenizer, ask("Who?").messages)
    assert llm.asked == (
        [{"prompt_token_ids": ids}],
        [{"temperature": 0.0, "top_p": 1.0, "max_tokens": 12, "seed": 7}],
    )
    assert (reply.text, reply.finish, reply.tools) == ("", "tool_calls", (CALL,))
    assert (reply.prompt_tokens, reply.completion_tokens) == (len(ids), 3)
