"""A toy chat model and a toy data set: the path of a real model in seconds on a CPU, offline.

    profile, data = toy.stand_in(load_profile("ci"), Path("runs/ci/toy"))

The toy is a Qwen3 of two layers with random weights that is shown the paper's prompt and answers in
Qwen3's tool-call format. For every sentence of its data, the call that stores it is one token of
its vocabulary: so random replies hold some calls that work, and GRPO has something to choose from.
It shows that the path works and what is computed on it; what it writes means nothing.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from memalpha_kit.data.instances import save_instances
from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.memory import INSERT, empty
from memalpha_kit.method.protocol import render_chat
from memalpha_kit.models.tiny import build_policy, build_tokenizer, save_policy
from memalpha_kit.records import QA, Instance, ToolCall, make_instance
from memalpha_kit.settings import (
    GrpoConfig,
    MemoryConfig,
    ModelConfig,
    PolicyConfig,
    Profile,
    ProtocolConfig,
    RewardConfig,
    WarmStartConfig,
)

NAMES = ("Mira", "Tom", "Nora", "Ana", "Ines", "Milo")
FACTS = (  # what is told, what is asked, what is right
    ("{} lives in Lund.", "Where does {} live?", "Lund"),
    ("{} keeps bees.", "What does {} keep?", "bees"),
    ("{} paints boats.", "What does {} paint?", "boats"),
    ("{} plays the cello.", "What does {} play?", "cello"),
)
TEMPLATE = """{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n' }}{%- for tool in tools %}{{ (tool | tojson) + '\\n' }}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}{%- if not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""
"""Qwen3's chat template without answers, tool results and thinking."""

MODEL = ModelConfig(dtype="float32", lora_rank=8, lora_alpha=16, max_seq_length=2048)
MEMORY = MemoryConfig(core=False)
PROTOCOL = ProtocolConfig(max_prompt_tokens=2000, max_reply_tokens=24)
POLICY = PolicyConfig(
    hidden=32, heads=2, kv_heads=2, head_dim=16, feed_forward=64, max_positions=4096
)
WARM_START = WarmStartConfig(
    steps=12, batch=4, learning_rate=0.02, warm_up_steps=2, log_every=1, teacher="keep_sentences"
)
GRPO = GrpoConfig(
    steps=2,
    instances=2,
    rollouts=4,
    learning_rate=0.01,
    warm_up_steps=0,
    temperature=1.0,
    save_every=1,
)


def stand_in(profile: Profile, folder: Path) -> tuple[Profile, Path]:
    """The profile with the toy as its model, and the toy's data set; both are written to `folder`.

    Of the profile its name and seed stay. Nobody judges, so the content reward has no weight.
    """
    model, data = save_model(folder / "model", profile.seed), save_data(folder / "data")
    parts = replace(profile, memory=MEMORY, protocol=PROTOCOL, reward=RewardConfig(content=0.0))
    toy = replace(MODEL, name=str(model))
    return replace(parts, model=toy, warm_start=WARM_START, grpo=GRPO), data


def save_model(folder: Path, seed: int) -> Path:
    """The folder of the toy: its vocabulary is fitted to its prompt, its weights are random."""
    told = [fact.format(name) for name in NAMES for fact, _, _ in FACTS]
    store = {"memory_type": "semantic_memory"}
    calls = [render_calls([ToolCall(INSERT, store | {"content": text})], "qwen") for text in told]
    messages, tools = render_chat(empty(MEMORY), "\n".join(told), MEMORY, PROTOCOL)
    texts = [*(m["content"] for m in messages), json.dumps(tools)]
    special = ("<|pad|>", "<|im_end|>", "<|im_start|>")
    tokenizer = build_tokenizer(texts * 2, 640, r" ?\w+|\s+|[^\w\s]+", special, calls)
    tokenizer.chat_template = TEMPLATE
    return save_policy(build_policy(POLICY, tokenizer, seed).eval(), tokenizer, folder)


def save_data(folder: Path) -> Path:
    """The toy's data set: six instances to train on and two that are held out."""
    for part, n in (("train", 6), ("test", 2)):
        save_instances(folder / f"{part}.parquet", [_instance(f"{part}/{i}") for i in range(n)])
    return folder


def _instance(seed: str) -> Instance:
    """Two chunks of three sentences each, and a question about every sentence."""
    drawn = random.Random(seed).sample([(name, fact) for name in NAMES for fact in FACTS], 6)
    told = [fact[0].format(name) for name, fact in drawn]
    questions = [
        QA(f"q{i}", fact[1].format(name), (fact[2],), i // 3)
        for i, (name, fact) in enumerate(drawn)
    ]
    return make_instance("squad", [" ".join(told[:3]), " ".join(told[3:])], questions)
