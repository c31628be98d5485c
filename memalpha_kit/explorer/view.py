"""Episodes as one plain value that JSON can hold: everything that the page shows, computed once.

The page gets what changed at each step, not a memory per step, and puts memories together itself:
an episode of 200 chunks and 5,000 entries is a few hundred kilobytes. Long texts are cut at blank
lines and every part is kept once, because prompts repeat their rules and their chunk.

A number that cannot be known here is None: r3 without the chunks, r4 without a judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

from memalpha_kit.errors import InputError
from memalpha_kit.lab import world
from memalpha_kit.method.blame import Touch, touches
from memalpha_kit.method.memory import empty
from memalpha_kit.method.protocol import fit_prompt, render_chat, render_compact
from memalpha_kit.method.rewards import (
    Judge,
    Scene,
    reward_accuracy,
    reward_compression,
    reward_contents,
    reward_format,
    rewards,
)
from memalpha_kit.records import QA, Answer, Episode, Instance, Memory, Rewards, Step, ToolCall
from memalpha_kit.settings import AdvantageConfig, ProtocolConfig, RewardConfig
from memalpha_kit.tokens import Counter, counter

Decode = Callable[[Sequence[int]], str]
"""Token ids to the text that they stand for, such as a tokenizer's `decode`."""
Json = dict[str, Any]
RULES: dict[str, Judge] = {"miniature": world.judge}
"""Judges of sources that a rule can judge; r4 of others needs the judge that is given."""


@dataclass(frozen=True)
class Recording:
    """Episodes of one policy or run under a name, and what is known beside them.

    `questions` (where no data set is at hand) and `rewards` (as they were when it was recorded)
    are by episode id. `decode` makes prompts of the token ids that were sent; else they are
    rendered again by the protocol, without one as the format of the calls suggests. `reward` and
    `advantage` are the settings that it was made with.
    """

    name: str
    episodes: Sequence[Episode]
    questions: Mapping[str, Sequence[QA]] = field(default_factory=dict)
    rewards: Mapping[str, Rewards] = field(default_factory=dict)
    protocol: ProtocolConfig | None = None
    decode: Decode | None = None
    reward: RewardConfig | None = None
    advantage: AdvantageConfig | None = None


def view(
    recordings: Sequence[Recording],
    instances: Iterable[Instance] = (),
    judge: Judge | None = None,
    reward: RewardConfig | None = None,
    advantage: AdvantageConfig | None = None,
) -> Json:
    """What the page shows of the episodes, in the order of the recordings.

    Rewards that were saved are taken, others computed. Settings that are not given are those of
    the first recording that has some, else the defaults. Raises InputError if there is no episode,
    and naming an episode that has more chunks than its instance.
    """
    known, texts = {instance.id: instance for instance in instances}, _Texts()
    reward = reward or next((r.reward for r in recordings if r.reward), RewardConfig())
    found = (r.advantage for r in recordings if r.advantage)
    advantage = advantage or next(found, AdvantageConfig())
    shown = [
        _episode(recording, episode, known.get(episode.instance), texts, judge, reward)
        for recording in recordings
        for episode in recording.episodes
    ]
    if not shown:
        raise InputError("the explorer: expected episodes, found none")
    return {
        "reward": asdict(reward),
        "advantage": asdict(advantage),
        "sampled": any(r.advantage for r in recordings),  # a training keeps a part of each group
        "episodes": shown,
        "texts": list(texts.known),
    }


class _Texts:
    """Every paragraph once; a text is the places of its paragraphs."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str) -> list[int]:
        return [self.known.setdefault(part, len(self.known)) for part in text.split("\n\n")]


def _episode(
    recording: Recording,
    episode: Episode,
    instance: Instance | None,
    texts: _Texts,
    judge: Judge | None,
    reward: RewardConfig,
) -> Json:
    if instance and max(step.chunk for step in episode.steps) >= len(instance.chunks):
        found = f"found {len(episode.steps)} steps and {len(instance.chunks)} chunks in the data"
        raise InputError(f"episode {episode.id}: expected a chunk per step, {found}")
    counts = counter(episode.memory_config.counter)
    parts = recording.rewards.get(episode.id)
    judge = judge or RULES.get(episode.source)
    known = instance or Instance("", "", (), ())
    parts = parts or _rewards(Scene(episode, known, counts, judge, reward))
    questions = instance.questions if instance else recording.questions.get(episode.id, ())
    return {
        "run": recording.name,
        "id": episode.id,
        "instance": episode.instance,
        "source": episode.source,
        "rollout": episode.rollout,
        "writer": episode.writer,
        "counter": counts.name,
        "steps": _steps(recording, episode, instance, texts, counts),
        "rewards": asdict(parts),
        "questions": _questions(questions, episode.answers),
    }


def _rewards(scene: Scene) -> Rewards:
    """The terms that can be known: r3 and r4 need the chunks, r4 a judge, others the answers."""
    chunks = scene.instance.chunks
    if chunks and scene.episode.answers:
        return rewards(*vars(scene).values())
    lost: tuple[None, ...] = (None,) * len(scene.episode.steps)
    return Rewards(
        accuracy=reward_accuracy(scene),
        compression=reward_compression(scene) if chunks else None,
        format=reward_format(scene),
        content=reward_contents(scene) if chunks else lost,
        others={name: lost for name in scene.config.others},
    )


def _steps(
    recording: Recording,
    episode: Episode,
    instance: Instance | None,
    texts: _Texts,
    counts: Counter,
) -> list[Json]:
    changed = {step: list(made) for step, made in groupby(touches(episode), lambda t: t.step)}
    before, size, steps = empty(episode.memory_config), 0, []
    for place, step in enumerate(episode.steps):
        chunk = instance.chunks[step.chunk] if instance else None
        made = changed.get(place, [])
        size += sum(counts.count(t.after or "") - counts.count(t.before or "") for t in made)
        prompt, how = _prompt(recording, episode, step, before, chunk)
        steps.append(
            {
                "chunk": None if chunk is None else texts(chunk),
                "read": None if chunk is None else counts.count(chunk),
                "prompt": [[role, texts(text)] for role, text in prompt],
                "how": how,
                "reply": texts(step.completion.text),
                "finish": step.completion.finish,
                "uses": [[use.name, use.arguments] for use in step.completion.tools],
                "calls": [_call(call) for call in step.calls],
                "touches": [_touch(touch, step.calls[touch.call]) for touch in made],
                "tokens": size,
            }
        )
        before = step.memory
    return steps


def _touch(touch: Touch, call: ToolCall) -> list[Any]:
    """What became of an entry: a text, or the place of the argument that holds it.

    The page knows the text before, which it has put together itself.
    """
    values = list(call.arguments.values())
    place = values.index(touch.after) if touch.after in values else None
    return [touch.call, touch.component, touch.entry, touch.after if place is None else place]


def _call(call: ToolCall) -> list[Any]:
    """Name, arguments, status and reason; the raw text only where no arguments could be read.

    Values are texts, because what a model wrote may be no JSON (NaN).
    """
    arguments = [
        [name, value if isinstance(value, str) else json.dumps(value)]
        for name, value in call.arguments.items()
    ]
    return [call.name, arguments, call.status, call.detail, "" if arguments else call.raw]


def _questions(questions: Iterable[QA], answers: Sequence[Answer]) -> list[Json]:
    """Every question with its answer, where there is one; answers alone if nobody knows more."""
    by_id, given = {qa.id: qa for qa in questions}, {answer.qa: answer for answer in answers}
    rows = []
    for name in dict.fromkeys((*by_id, *given)):
        qa, answer = by_id.get(name), given.get(name)
        rows.append(
            {
                "id": name,
                "question": qa and qa.question,
                "gold": list(qa.answers) if qa else None,
                "chunk": qa and qa.chunk,
                "asked": answer is not None,
                "prediction": answer and answer.prediction,
                "score": answer and answer.score,
                "retrieved": list(answer.retrieved) if answer else [],
                "error": (answer.error or answer.skipped) if answer else "",
            }
        )
    return rows


def _prompt(
    recording: Recording, episode: Episode, step: Step, before: Memory, chunk: str | None
) -> tuple[list[tuple[str, str]], str]:
    """The prompt of a step as (role, text), and how it comes to be known."""
    ids, by_rule = step.completion.prompt_ids, ":" not in episode.writer
    if ids and recording.decode:
        return [
            ("as sent", recording.decode(ids))
        ], f"decoded from the {len(ids)} token ids that were sent"
    if chunk is None:
        return [], "not known without the chunks: name the data set"
    how = f"rendered again; {len(ids)} token ids were sent" if ids else "rendered again"
    if by_rule:
        how = "what a model would be shown; this writer is a rule and reads the chunk itself"
    compact = episode.wire == "compact"
    wire: Any = episode.wire  # which ProtocolConfig checks
    protocol = recording.protocol or ProtocolConfig(
        wire=wire, prompt="compact" if compact else "paper"
    )

    def render(shown: int) -> list[tuple[str, str]]:
        config = replace(episode.memory_config, shown=shown)
        if protocol.prompt == "compact":
            return [("prompt", render_compact(before, chunk, config))]
        messages, tools = render_chat(before, chunk, config, protocol)
        prompt = [(message["role"], message["content"]) for message in messages]
        return prompt + ([("tools", json.dumps(tools, indent=1))] if tools else [])

    wanted = episode.memory_config.shown
    if not episode.writer.startswith("api:"):
        return render(wanted), how
    counts = counter(episode.memory_config.counter)

    def size(prompt: list[tuple[str, str]]) -> int:  # as `evaluation.writing.ApiWriter` counts
        return sum(counts.count(text) for role, text in prompt if role != "tools")

    return fit_prompt(render, size, wanted, protocol.max_prompt_tokens), "as sent"
