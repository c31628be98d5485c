"""Four reward terms and their weighted sum: hold it beside the paper, with `advantages.py`.

For rollout i of an instance with chunks t = 1..T and questions j (paper, section 3.3):

    r1[i]   = mean over questions of the answer's score           accuracy
    r2[i,t] = calls that succeeded / calls, 0 without a call      format
    r3[i]   = 1 - memory tokens / chunk tokens                    compression
    r4[i,t] = mean over calls of the judge's verdict              content
    R[i,t]  = w1 r1[i] + w2 r2[i,t] + beta r3[i] + gamma r4[i,t]

The one law: a missing measurement stays missing. It is None, never 0. A user's module adds a term
with `TERMS.add`; its weight stands in `reward.others`.

>>> total(Rewards(0.75, 0.9, (1.0,), (1.0,)), 0, RewardConfig())
1.895
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memalpha_kit.entries import essence
from memalpha_kit.episode_settings import RewardConfig
from memalpha_kit.errors import InputError
from memalpha_kit.method.memory import MEMORY_COMPONENTS, TOOLS, empty, tokens
from memalpha_kit.records import Episode, Instance, Memory, Rewards, ToolCall
from memalpha_kit.registry import Registry
from memalpha_kit.tokens import Counter

if TYPE_CHECKING:
    from memalpha_kit.method.readers import Reader

Judge = Callable[[ToolCall, str, Memory], bool | None]
"""Rates what one call wants to write: (call, chunk text, memory as the writer saw it, that is at
the start of the step) -> valid or not; None if the judge failed."""


# --- The four terms -------------------------------------------------------------------------------


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def reward_content(
    verdicts: Sequence[bool | None], n_calls: int, denominator: str = "all_calls"
) -> float | None:
    """r4: mean verdict over the calls of one step; None if the judge failed on all it was asked.

    `verdicts` has one entry per call that a judge rates (`judged`), `n_calls` counts all attempts.
    `all_calls` (as published): the others, deletions for instance, count as 0. `judged_calls`:
    they are left out. Verdicts that failed (None) are left out of both. A step with nothing to
    rate earns 0, like a silent one.
    """
    known = [bool(verdict) for verdict in verdicts if verdict is not None]
    failed = len(verdicts) - len(known)
    count = len(known) if denominator == "judged_calls" else n_calls - failed
    if count == 0:
        return None if failed else 0.0
    return sum(known) / count


def judged(call: ToolCall) -> bool:
    """Whether a judge is asked about this call: it writes non-blank text to a known component.

    Whether it was executed is not looked at: rejected and skipped writes are rated too. All other
    attempts score 0 without being shown to anybody.
    """
    if call.name not in TOOLS or TOOLS[call.name].mode != "memorise":
        return False
    text = call.arguments.get(TOOLS[call.name].text or "")
    kind = call.arguments.get("memory_type")
    known = isinstance(kind, str) and kind.removesuffix("_memory") in MEMORY_COMPONENTS
    return known and isinstance(text, str) and bool(essence(text))


# --- Rewards of an episode and of its steps -------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """What a term looks at: an asked episode, its instance, the counter and the judge.

    `reader` and `metric` are who answered the episode's questions, and how answers are scored (None
    is the source's own metric), for terms that ask again.
    """

    episode: Episode
    instance: Instance
    counter: Counter
    judge: Judge | None
    config: RewardConfig
    reader: Reader | None = None
    metric: str | None = None


Term = Callable[[Scene], "float | None | Sequence[float | None]"]
"""One number for the whole episode, or one per step; None is a measurement that failed."""
TERMS: Registry[Term] = Registry("reward term", "memalpha_kit.method.credit")


def reward_accuracy(scene: Scene) -> float | None:
    """r1: mean score of the answers; None if none was scored.

    Answers without a score are left out, not counted as wrong.
    """
    return mean([answer.score for answer in scene.episode.answers])


def reward_format(scene: Scene) -> tuple[float, ...]:
    """r2: share of the call attempts with status `ok`; 0 without a call, so silence earns nothing.

    Skipped, rejected and malformed attempts count as failures.
    """
    steps = [[call.status == "ok" for call in step.calls] for step in scene.episode.steps]
    return tuple(sum(good) / len(good) if good else 0.0 for good in steps)


def reward_compression(scene: Scene) -> float:
    """r3: share of the reading that the final memory saved, 1 - memory / chunks.

    Both in tokens of one counter; 1.0 is an empty memory, negative is a memory larger than its
    input (unless `compression_floor` clips it, which the published code does not). Raises
    InputError for a counter that finds no token in the chunks.
    """
    chunk_tokens = sum(scene.counter.count(chunk) for chunk in scene.instance.chunks)
    if chunk_tokens < 1:
        found = f"the counter {scene.counter.name} found {chunk_tokens}"
        raise InputError(f"{scene.instance.id}: chunks: expected a token, {found}")
    saved = 1 - tokens(scene.episode.memory, scene.counter) / chunk_tokens
    floor = scene.config.compression_floor
    return saved if floor is None else max(floor, saved)


def reward_contents(scene: Scene) -> tuple[float | None, ...]:
    """r4 of every step, each call judged with the memory that its writer saw."""
    episode, judge = scene.episode, scene.judge
    if judge is None:
        return (None,) * len(episode.steps)
    seen, contents = empty(episode.memory_config), []
    for step in episode.steps:
        chunk, among = scene.instance.chunks[step.chunk], scene.config.content_denominator
        verdicts = [judge(call, chunk, seen) for call in step.calls if judged(call)]
        contents.append(reward_content(verdicts, len(step.calls), among))
        seen = step.memory
    return tuple(contents)


def rewards(
    episode: Episode,
    instance: Instance,
    counter: Counter,
    judge: Judge | None = None,
    config: RewardConfig = RewardConfig(),  # noqa: B008 (frozen)
    reader: Reader | None = None,
    metric: str | None = None,
) -> Rewards:
    """The parts of one asked episode's reward; content is None for all steps without a judge.

    `reader` and `metric` are what the episode was asked with; only terms that ask again need them.
    Raises InputError if the episode belongs to another instance or was not asked, and for a term
    of a user's module that gives neither one number nor one per step.
    """
    if episode.instance != instance.id:
        raise InputError(f"{episode.id}: expected instance {episode.instance}, got {instance.id}")
    if not episode.answers:
        found = "expected one per question, found none (ask first)"
        raise InputError(f"{episode.id}: answers: {found}")
    scene = Scene(episode, instance, counter, judge, config, reader, metric)
    return Rewards(
        accuracy=reward_accuracy(scene),
        compression=reward_compression(scene),
        format=reward_format(scene),
        content=reward_contents(scene),
        others={name: _per_step(name, scene) for name in config.others},
    )


def _per_step(name: str, scene: Scene) -> tuple[float | None, ...]:
    """The values of a registered term; a number for the whole episode counts for every step."""
    values, n = TERMS[name](scene), len(scene.episode.steps)
    listed: Any = values if hasattr(values, "__len__") else (values,) * n
    try:  # numbers of numpy too
        numbers = tuple(value if value is None else float(value) for value in listed)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != n or not all(v is None or math.isfinite(v) for v in numbers):
        expected = f"expected a finite number, or one for each of {n} steps"
        raise InputError(f"reward term {name!r}: {expected}, found {values!r:.80}")
    return numbers


def reward_terms(rewards: Rewards) -> dict[str, tuple[float | None, ...]]:
    """The terms by the name of their column in tables: r1 and r3 have one value, others one a step.

    A term of a user's module is called `term_` and its name.
    """
    return {
        "accuracy": (rewards.accuracy,),
        "format": rewards.format,
        "compression": (rewards.compression,),
        "content": rewards.content,
        **{f"term_{name}": values for name, values in rewards.others.items()},
    }


def total(rewards: Rewards, step: int, config: RewardConfig) -> float | None:
    """R of one step: the weighted sum of its terms; None if a term with a weight is missing.

    A term of weight 0 may be missing: no judge is needed when gamma is 0. With a threshold r1
    becomes 1 if it reaches it, else 0.
    """
    accuracy = rewards.accuracy
    if accuracy is not None and config.accuracy_threshold is not None:
        accuracy = float(accuracy >= config.accuracy_threshold)
    terms = [
        (config.accuracy, accuracy),
        (config.format, rewards.format[step]),
        (config.compression, rewards.compression),
        (config.content, rewards.content[step]),
        *((weight, rewards.others[name][step]) for name, weight in config.others.items()),
    ]
    weighted = [(weight, term) for weight, term in terms if weight != 0]
    known = [weight * term for weight, term in weighted if term is not None]
    return sum(known) if len(known) == len(weighted) else None


def step_rewards(rewards: Rewards, config: RewardConfig) -> tuple[float | None, ...]:
    """R of every step of an episode; r1 and r3 are the episode's and repeat."""
    return tuple(total(rewards, step, config) for step in range(len(rewards.format)))
