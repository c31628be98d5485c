"""A policy and a world so small that GRPO runs in a second: whole calls are single tokens."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.episode import Environment
from memalpha_kit.method.memory import INSERT
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.models.local import CausalLM, load_lm
from memalpha_kit.models.tiny import build_policy, build_tokenizer, save_policy
from memalpha_kit.records import QA, ToolCall, TrainingRow, make_instance
from memalpha_kit.settings import (
    AdvantageConfig,
    GrpoConfig,
    MemoryConfig,
    PolicyConfig,
    ProtocolConfig,
    RewardConfig,
)
from memalpha_kit.training import rollouts
from memalpha_kit.training.rollouts import Run

POLICY = PolicyConfig(
    layers=1, hidden=32, heads=2, kv_heads=2, head_dim=16, feed_forward=32, init_std=0.2
)
MEMORY = MemoryConfig(core=False, display="relevant", shown=2, counter="words")
PROTOCOL = ProtocolConfig(wire="compact", prompt="compact", max_reply_tokens=6)
CHAT_SETTINGS = (
    *("model.backend=transformers", "model.vllm=none", "model.dtype=float32", "model.reader=rule"),
    *("model.lora_rank=4", "model.max_seq_length=2048", "protocol.wire=compact"),
    *("protocol.prompt=compact", "protocol.max_prompt_tokens=512", "protocol.max_reply_tokens=6"),
    *("memory.core=false", "memory.counter=words", "reward.content=0"),
    *("grpo.instances=2", "grpo.rollouts=2", "grpo.slices=1"),
)
"""Profile `gpu` on a CPU and for the model of `saved_chat`, without the number of steps."""
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


def saved_chat(folder):
    """The folder of a random model with a chat template, in the place of a real one."""
    from tiny_models import TEMPLATE

    made = lm(0, replace(POLICY, max_positions=4096))
    template = TEMPLATE.replace("im_end|", "end|").replace("<|im_start|>", "> ")
    made.tokenizer.chat_template = template
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


def run(out, policy=None, config=GRPO, **changes: Any) -> Run:
    """A run in the folder `out`; `changes` are fields of the environment or of the run."""
    own = {name: changes.pop(name) for name in Run.__dataclass_fields__ if name in changes}
    return replace(Run(policy, INSTANCES, environment(**changes), config, out, seed=3), **own)


def row(completion, advantage=0.0, prompt=(5, 6, 7), mask=None, reward=1.0, logprobs=()):
    """A training row."""
    mask = tuple((1,) * len(completion) if mask is None else mask)
    parts = (tuple(prompt), tuple(completion), mask, reward, advantage)
    return TrainingRow(*parts, "g", "e", 0, tuple(logprobs))


def trainer(out, rows, made=None, model=None, **changes):
    """A trainer whose every step trains on `rows`, or on what `rows(step)` gives."""
    from memalpha_kit.settings import ModelConfig
    from memalpha_kit.training.trainer import EpisodeTrainer

    config = replace(GRPO, save_every=0, **changes)
    chosen = rows if callable(rows) else lambda step: list(rows)
    settings = run(out, out / "policy", config, model=model or ModelConfig())
    order = [0] * config.instances * config.steps
    measures = {"reward": 0.0}
    return EpisodeTrainer(settings, made or lm(), lambda s, *_: (chosen(s), measures), order)


def weights(folder):
    """The policy's weights by name."""
    return load_lm(folder).model.state_dict()


def equal(one, other) -> bool:
    """Whether two state dicts, or two models, have the same weights."""
    before, after = (x if isinstance(x, dict) else x.state_dict() for x in (one, other))
    return all(before[name].equal(after[name]) for name in before)


def same(one, other, *files) -> bool:
    """Whether two runs have the same policy, and the same bytes in these files."""
    bytes_of = [[(run / file).read_bytes() for file in files] for run in (one, other)]
    return equal(*(weights(run / "policy") for run in (one, other))) and bytes_of[0] == bytes_of[1]


@contextmanager
def at_step(step, act):
    """Calls `act` when a run begins its step `step`, from 0."""
    draw = rollouts.step_seed

    def watched(seed, now):
        if now == step:
            act()
        return draw(seed, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "step_seed", watched)
        yield


def power_cut():
    """What ends a run in the middle."""
    raise KeyboardInterrupt
