"""Settings: small frozen dataclasses, gathered in one `Profile` that a YAML file fills.

Functions receive the part they need, never the whole profile. Every weight is visible, also the
ones equal to 1. An unknown key, profile or value is an `InputError` that names it and the closest
known one. No environment variables, no argument parsing and no work here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Behaviour = Literal["fixed", "release"]
"""`release` is what the published code does, `fixed` (default) what is right (spec method.md)."""


@dataclass(frozen=True)
class MemoryConfig:
    """What a memory may hold, how it reacts and what of it the writer sees (method.md 1)."""

    core: bool = True  # one paragraph, rewritten as a whole
    semantic: bool = True  # list of facts
    episodic: bool = True  # list of dated events
    core_limit_tokens: int = 512  # core is cut to this many tokens, notice included
    behaviour: Behaviour = "fixed"  # release: deleting an unknown id succeeds, blank content is kept
    counter: str = "wordpunct"  # token counter by name (text.counter); both sides of r3 use it
    update_duplicate: Literal["skip", "allow"] = "skip"  # update that would repeat another entry
    short_types: bool = True  # accept "semantic" where the schema says "semantic_memory"
    display: Literal["recent", "relevant"] = "recent"  # last entries, or BM25 with the chunk as query
    shown: int = 5  # entries shown per store while memorising


@dataclass(frozen=True)
class ProtocolConfig:
    """What the writer is shown and how its reply is read (method.md 1.5, 2, 3)."""

    wire: Literal["qwen", "text", "compact"] = "qwen"  # <tool_call> JSON, marker text, miniature
    prompt: Literal["paper", "compact"] = "paper"  # full instructions, or the miniature's bare rows
    thinking: bool = False  # calls are read only after </think>
    execute_truncated: bool = False  # release: a call cut by the length limit is repaired and run
    max_prompt_tokens: int = 6144  # entries shown are halved until the prompt fits
    max_reply_tokens: int = 2048  # sampling limit per chunk


@dataclass(frozen=True)
class RewardConfig:
    """Weights of R = w1 r1 + w2 r2 + beta r3 + gamma r4 (method.md 5.1)."""

    accuracy: float = 1.0  # weight of r1
    format: float = 1.0  # weight of r2
    compression: float = 0.05  # beta, weight of r3
    content: float = 0.1  # gamma, weight of r4
    accuracy_threshold: float | None = None  # r1 becomes 1 if r1 >= threshold else 0
    content_denominator: Literal["all_calls", "judged_calls"] = "all_calls"  # release: all_calls


@dataclass(frozen=True)
class AdvantageConfig:
    """Who is compared with whom (method.md 6.1, 6.2)."""

    grouping: Literal["instance", "chunk", "rollout"] = "instance"  # instance: as released
    scale: Literal["std", "none"] = "std"  # divide by the group's unbiased standard deviation
    epsilon: float = 1e-6  # added to the standard deviation
