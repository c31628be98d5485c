"""The settings that make an episode: its memory, its protocol, its rewards and advantages.

They are sections of a `settings.Profile` like all others, and stand apart so that whoever plays an
episode needs no other.
"""

from __future__ import annotations

from typing import Literal

from memalpha_kit.sections import Count, Natural, NonNegative, about, section


@section
class MemoryConfig:
    """What a memory may hold, how it reacts and what of it the writer sees."""

    core: bool = about(True, "one paragraph, rewritten as a whole")
    semantic: bool = about(True, "list of facts")
    episodic: bool = about(True, "list of dated events")
    core_limit_tokens: Count = about(512, "core is cut to this many tokens, notice included")
    behaviour: str = about("fixed", "release: unknown ids are deleted, blank text is kept")
    counter: str = about("wordpunct", "token counter by name; both sides of r3 use it")
    update_duplicate: Literal["skip", "allow"] = about("skip", "update that repeats an entry")
    short_types: bool = about(True, "accept 'semantic' where the schema says 'semantic_memory'")
    display: Literal["recent", "relevant"] = about("recent", "relevant: by BM25 with the chunk")
    shown: Natural = about(5, "entries shown per store while memorising")
    tools: tuple[str, ...] = about(
        ("new_memory_insert", "memory_update", "memory_delete"), "tools offered while memorising"
    )
    components: tuple[str, ...] = about((), "components of a user's module beside the three")


@section
class ProtocolConfig:
    """What the writer is shown and how its reply is read."""

    wire: Literal["qwen", "text", "compact", "lines"] = about(
        "qwen", "format of tool calls; text: for models that are shown no tools"
    )
    prompt: Literal["paper", "compact", "short"] = about(
        "paper", "compact: the miniature's bare rows; short: a few words, for small models"
    )
    thinking: bool = about(False, "calls are read only after </think>")
    execute_truncated: bool = about(False, "release: a call that was cut is repaired and run")
    max_prompt_tokens: Count = about(6144, "entries shown are halved until the prompt fits")
    max_reply_tokens: Count = about(2048, "sampling limit per chunk")


@section
class RewardConfig:
    """Weights of R = w1 r1 + w2 r2 + beta r3 + gamma r4; the paper, section 3.3."""

    accuracy: float = about(1.0, "weight of r1")
    format: float = about(1.0, "weight of r2")
    compression: float = about(0.05, "beta, weight of r3")
    content: float = about(0.1, "gamma, weight of r4")
    accuracy_threshold: float | None = about(None, "r1 becomes 1 if r1 >= threshold else 0")
    content_denominator: Literal["all_calls", "judged_calls"] = about("all_calls", "of r4")
    compression_floor: float | None = about(None, "lower clip of r3; None: r3 may be negative")
    others: dict[str, float] = about({}, "weights of a user's own reward terms, by name")


@section
class AdvantageConfig:
    """Who is compared with whom."""

    grouping: Literal["instance", "chunk", "rollout", "leave_one_out"] = about(
        "instance", "whose rewards are compared; instance: as released"
    )
    scale: Literal["std", "none"] = about("std", "std: divide by the group's deviation")
    epsilon: NonNegative = about(1e-6, "added to the standard deviation")
    single: Literal["zero", "raw", "release"] = about(
        "zero", "group of one row: 0, its reward, or nearly that as released"
    )
