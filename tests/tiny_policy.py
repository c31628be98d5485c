"""A policy and a world so small that GRPO runs in a second: whole calls are single tokens."""

from __future__ import annotations

from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.episode import Environment
from memalpha_kit.method.memory import INSERT
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.models.local import CausalLM
from memalpha_kit.models.tiny import build_policy, build_tokenizer, save_policy
from memalpha_kit.records import QA, ToolCall, make_instance
from memalpha_kit.settings import (
    AdvantageConfig,
    GrpoConfig,
    MemoryConfig,
    PolicyConfig,
    ProtocolConfig,
    RewardConfig,
)

POLICY = PolicyConfig(
    layers=1, hidden=32, heads=2, kv_heads=2, head_dim=16, feed_forward=32, init_std=0.2
)
MEMORY = MemoryConfig(core=False, display="relevant", shown=2, counter="words")
PROTOCOL = ProtocolConfig(wire="compact", prompt="compact", max_reply_tokens=6)
GRPO = GrpoConfig(
    steps=4, instances=2, rollouts=4, learning_rate=1e-2, warm_up_steps=0, save_every=1
)


def call(number: int) -> ToolCall:
    """The insert of `fact <number>`."""
    return ToolCall(INSERT, {"memory_type": "semantic_memory", "content": f"fact {number}"})


def tokenizer():
    """Bytes, and 200 tokens that are a whole call each, so that a random policy makes some."""
    calls = [render_calls([call(number)], "compact") for number in range(200)]
    texts = ["fact 12\nfact 34", "<memory>", "</text>"] * 5
    return build_tokenizer(texts, 280, r"\w+|\W", ("<|pad|>", "<|end|>"), calls)


def lm(seed: int = 0, config: PolicyConfig = POLICY) -> CausalLM:
    """A random policy with its tokenizer."""
    tok = tokenizer()
    model = build_policy(config, tok, seed).eval()
    return CausalLM("tiny", model, tok, (tok.eos_token_id,), 128)


def saved(folder, seed: int = 0):
    """The folder of a random policy."""
    made = lm(seed)
    return save_policy(made.model, made.tokenizer, folder)


def instance(first: int, n_chunks: int = 2):
    """Chunks `fact n`, each asked for."""
    numbers = range(first, first + n_chunks)
    questions = [QA(f"q{n}", f"which fact is {n}", (str(n),)) for n in numbers]
    return make_instance("tiny", [f"fact {n}" for n in numbers], questions)


INSTANCES = tuple(instance(first, 1 + first % 2) for first in range(5))


def judge(asked, chunk, memory):
    """Even facts are welcome."""
    return int(asked.arguments["content"].split()[1]) % 2 == 0


def environment(judge=judge, **changes) -> Environment:
    """The rules of the tiny world."""
    parts = {
        "memory": MEMORY,
        "protocol": PROTOCOL,
        "reader": BestEntry(),
        "judge": judge,
        "reward": RewardConfig(),
        "advantage": AdvantageConfig(),
        "metric": "contains",
    }
    return Environment(**(parts | changes))
