"""Random episodes: good calls, repeats, calls that miss, and replies that are none."""

from __future__ import annotations

import random

from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE
from memalpha_kit.method.readers import reader
from memalpha_kit.method.writers import ScriptedReplies
from memalpha_kit.records import QA, Episode, Instance, ToolCall, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig

CONFIG = MemoryConfig(core_limit_tokens=12)
WORDS = ("Nora", "keeps", "bees", "Tom", "paints", "boats", "Oslo", "蜂", "\u202e", "<b>", "{", "✿")


def random_call(rng: random.Random) -> ToolCall:
    """Mostly a call that works on a small memory; ids and components often miss."""
    kind = rng.choice(("core", "semantic", "semantic", "episodic", "nowhere"))
    text = " ".join(rng.choices(WORDS, k=rng.randint(0, 6)))
    arguments = {"memory_type": f"{kind}_memory", "memory_id": str(rng.randint(1, 8))}
    name = rng.choice((INSERT, INSERT, UPDATE, DELETE, "forget_all"))
    field = {INSERT: "content", UPDATE: "new_content"}.get(name)
    return ToolCall(name, arguments | ({field: text} if field else {}))


def random_instance(rng: random.Random, chunks: int) -> Instance:
    """Chunks of a few words and three questions about them."""
    texts = [f"{i}: {' '.join(rng.choices(WORDS, k=12))}." for i in range(chunks)]
    asked = [QA(f"q{i}", f"Who {rng.choice(WORDS)}?", (rng.choice(WORDS[:7]),)) for i in range(3)]
    return make_instance("squad", texts, asked)


def random_case(seed: int, wire: str = "qwen") -> tuple[Episode, Instance]:
    """An asked episode of up to six chunks, with the instance that it is about."""
    rng = random.Random(seed)
    instance = random_instance(rng, rng.randint(1, 6))
    replies = []
    for _ in instance.chunks:
        text = render_calls([random_call(rng) for _ in range(rng.randint(0, 4))], wire)
        replies.append(text[: rng.randint(0, len(text))] if rng.random() < 0.2 else text)
    scripted = ScriptedReplies(replies, f"random_{seed}")
    written = write([instance], scripted, CONFIG, ProtocolConfig(wire=wire), seed=seed)
    (episode,) = ask(written, [instance], reader("best_entry"))
    return episode, instance


def random_episode(seed: int) -> Episode:
    """The episode of `random_case`."""
    return random_case(seed)[0]
