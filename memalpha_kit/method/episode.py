"""`write`: walk the chunks, ask the writer, apply its calls. `ask`: put the questions to a reader.

The one law: an episode is a function of its instance, writer, settings and seed; who else is
written in the same call does not matter. Chunks are walked in lock-step (one writer call per chunk
index for all rollouts that still have one), so a model can answer them as one batch; prompts hold
the memory and the chunk, nothing else (method.md 3.1, 4.2).

    episodes = write(instances, writer("keep_sentences"), MemoryConfig(), ProtocolConfig())
    answered = ask(episodes, instances, reader("best_entry"))
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.scoring import metric_of
from memalpha_kit.method import memory as memories
from memalpha_kit.method import metrics
from memalpha_kit.method.protocol import parse_reply
from memalpha_kit.method.readers import Reader, ReadRequest
from memalpha_kit.method.writers import Writer, WriteRequest
from memalpha_kit.records import Answer, Completion, Episode, Instance, Memory, Step, ToolCall
from memalpha_kit.settings import MemoryConfig, ProtocolConfig

log = logging.getLogger(__name__)


# ---- write ------------------------------------------------------------------------------------


@dataclass
class _Rollout:
    """One rollout at work."""

    instance: Instance
    number: int
    seed: int
    memory: Memory
    steps: list[Step] = field(default_factory=list)


def write(
    instances: Sequence[Instance],
    writer: Writer,
    memory_config: MemoryConfig,
    protocol_config: ProtocolConfig,
    rollouts: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    finished: Callable[[list[Episode]], None] | None = None,
) -> list[Episode]:
    """One episode per instance and rollout, instance by instance; nothing is asked yet.

    Failed calls stay on their step and the episode goes on; there is no second turn. `progress` is
    called with the number of chunks just written, `finished` with the episodes that just had their
    last one, while others go on. Raises InputError if two instances share an id.
    """
    _check_unique(instance.id for instance in instances)
    live = [
        _Rollout(instance, number, _seed(seed, instance.id, number), memories.empty(memory_config))
        for instance in instances
        for number in range(rollouts)
    ]
    for step in range(max((len(r.instance.chunks) for r in live), default=0)):
        active = [r for r in live if step < len(r.instance.chunks)]
        completions = writer.write([_request(r, step) for r in active])
        for rollout, completion in zip(active, completions, strict=True):
            _take_step(rollout, step, completion, memory_config, protocol_config)
        if progress:
            progress(len(active))
        ended = [r for r in active if step + 1 == len(r.instance.chunks)]
        if finished and ended:
            finished([_episode(r, writer.name, memory_config, protocol_config) for r in ended])
    return [_episode(r, writer.name, memory_config, protocol_config) for r in live]


def episode_id(instance: str, rollout: int) -> str:
    """The id of an instance's episode: `trec_coarse/0a1b2c3d4e5f#0`."""
    return f"{instance}#{rollout}"


def _seed(*parts: object) -> int:
    """A 31-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _request(rollout: _Rollout, step: int) -> WriteRequest:
    return WriteRequest(
        memory=rollout.memory,
        chunk=rollout.instance.chunks[step],
        instance=rollout.instance.id,
        step=step,
        rollout=rollout.number,
        seed=_seed(rollout.seed, step),
    )


def _take_step(
    rollout: _Rollout,
    step: int,
    completion: Completion,
    memory_config: MemoryConfig,
    protocol_config: ProtocolConfig,
) -> None:
    """Reads the reply, applies its calls in order and adds the step to the rollout."""
    calls: list[ToolCall] = []
    for call in read_calls(completion, memory_config, protocol_config):
        rollout.memory, applied = memories.apply(rollout.memory, call, memory_config)
        calls.append(applied)
    rollout.steps.append(Step(step, completion, tuple(calls), rollout.memory))


def read_calls(
    completion: Completion, memory_config: MemoryConfig, protocol_config: ProtocolConfig
) -> tuple[ToolCall, ...]:
    """The calls in a completion, read as the settings say; not applied yet."""
    return parse_reply(
        completion.text,
        completion.finish,
        protocol_config.wire,
        thinking=protocol_config.thinking,
        execute_truncated=protocol_config.execute_truncated,
        behaviour=memory_config.behaviour,
    )


def _episode(
    rollout: _Rollout, writer: str, memory_config: MemoryConfig, protocol_config: ProtocolConfig
) -> Episode:
    return Episode(
        id=episode_id(rollout.instance.id, rollout.number),
        instance=rollout.instance.id,
        source=rollout.instance.source,
        rollout=rollout.number,
        seed=rollout.seed,
        writer=writer,
        wire=protocol_config.wire,
        memory_config=memory_config,
        steps=tuple(rollout.steps),
    )


def _check_unique(ids: Iterable[str]) -> None:
    for name, times in Counter(ids).items():
        if times > 1:
            raise InputError(f"instances: expected each id once, found {name} {times} times")


# ---- ask --------------------------------------------------------------------------------------


def ask(
    episodes: Sequence[Episode],
    instances: Sequence[Instance],
    reader: Reader,
    metric: str | None = None,
    progress: Callable[[int], None] | None = None,
    together: bool = False,
) -> list[Episode]:
    """The episodes with one scored answer per question of their instance, in order.

    `metric` is a name in `metrics.METRICS`, by default the one of the source that needs no judge
    (`scoring.metric_of`). A reader that failed (prediction None) and a question that cannot be
    scored give a score of None, which is logged.
    `progress` is called with 1 per episode. `together` hands the questions of all episodes to one
    call of the reader, so that a model behind a network is asked many at once; the answers are the
    same. Raises InputError, before anything is asked, if an episode's instance is missing.
    """
    by_id = {instance.id: instance for instance in instances}
    rows = [(episode, *_instance(episode, by_id, metric)) for episode in episodes]
    asked: list[Episode] = []
    for group in [rows] if together else [[row] for row in rows]:
        requests = [_questions(episode, instance) for episode, instance, _ in group]
        flat = list(chain.from_iterable(requests))
        tick = _ticker([len(part) for part in requests], progress)
        answers = reader.read(flat, tick) if together else reader.read(flat)
        if len(answers) != len(flat):
            raise ValueError(f"{reader.name}: {len(flat)} questions, {len(answers)} answers")
        left = iter(answers)
        for episode, instance, name in group:
            scored = (
                _scored(next(left), qa.answers, name, instance.id) for qa in instance.questions
            )
            asked.append(replace(episode, answers=tuple(scored)))
        if progress and not together:
            progress(1)
    return asked


def _instance(
    episode: Episode, by_id: Mapping[str, Instance], metric: str | None
) -> tuple[Instance, str]:
    """The episode's instance and the name of its metric."""
    if episode.instance not in by_id:
        raise InputError(f"episode {episode.id}: its instance is not in the data")
    instance = by_id[episode.instance]
    return instance, metrics.metric(metric or metric_of(instance.source, judged=False)).name


def _questions(episode: Episode, instance: Instance) -> list[ReadRequest]:
    memory, name = episode.memory, instance.source
    return [ReadRequest(memory, qa.id, qa.question, name) for qa in instance.questions]


def _ticker(
    sizes: Sequence[int], progress: Callable[[int], None] | None
) -> Callable[[int, Answer], None]:
    """Called with every answer's place; tells `progress` when an episode has its last one."""
    owner = [number for number, size in enumerate(sizes) for _ in range(size)]
    missing = Counter(owner)

    def tick(place: int, _: Answer) -> None:
        missing[owner[place]] -= 1
        if progress and not missing[owner[place]]:
            progress(1)

    return tick


def _scored(answer: Answer, gold: Sequence[str], metric: str, where: str) -> Answer:
    try:
        value = metrics.score(metric, answer.prediction, gold)
    except InputError as error:  # this question's gold answers, e.g. one that normalises to ""
        log.warning("%s: question %s is not scored: %s", where, answer.qa, error)
        value = None
    return replace(answer, score=value)
