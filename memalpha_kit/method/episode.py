"""`play`: a writer reads instances chunk by chunk, a reader is asked, the rewards are computed.

It is the only write-ask-reward loop of the kit: training, validation, the laboratory and the
notebooks call it, or one of its halves, `write` and `ask`. Prompts hold the memory and one chunk,
nothing else. The one law: an episode is a function of its instance, writer, settings and seed; who
else is written in the same call, and when the questions are asked, does not matter.

    environment = Environment(MemoryConfig(), ProtocolConfig(), reader("best_entry"))
    played = play(instances, writer("keep_sentences"), environment)
    played.episodes, played.rewards

Source: paper, section 3.1; `memalpha/llm_agent/generation.py` of the published code.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from memalpha_kit.episode_settings import (
    AdvantageConfig,
    MemoryConfig,
    ProtocolConfig,
    RewardConfig,
)
from memalpha_kit.errors import InputError
from memalpha_kit.method import memory as memories
from memalpha_kit.method import metrics
from memalpha_kit.method.calls import read_calls
from memalpha_kit.method.rewards import TERMS, Judge, rewards
from memalpha_kit.records import (
    Answer,
    Completion,
    Episode,
    Instance,
    Memory,
    Question,
    Rewards,
    Step,
    ToolCall,
    WriteRequest,
)
from memalpha_kit.tasks import metric_of
from memalpha_kit.tokens import counter

if TYPE_CHECKING:
    from memalpha_kit.method.readers import Reader
    from memalpha_kit.method.writers import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Environment:
    """What an episode is played in and scored by.

    Without a judge r4 is missing; `metric` None is the source's own. `meet` is told the language
    model that is trained before training starts.
    """

    memory: MemoryConfig
    protocol: ProtocolConfig
    reader: Reader
    judge: Judge | None = None
    reward: RewardConfig = RewardConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    metric: str | None = None
    meet: Callable[[Any], object] = lambda lm: None

    def __post_init__(self) -> None:
        """Raises InputError for a name in the settings that nobody has registered."""
        memories.empty(self.memory)
        for name in self.reward.others:
            TERMS[name]


@dataclass(frozen=True)
class Played:
    """Asked episodes, their rewards by episode id, how often the judge was asked and failed.

    The times are seconds of writing, of reading (as far as it was waited for) and of rewarding.
    """

    episodes: list[Episode]
    rewards: dict[str, Rewards]
    judged: int = 0
    unjudged: int = 0
    write_s: float = 0.0
    read_s: float = 0.0
    reward_s: float = 0.0

    def missing(self) -> float:
        """Share of the answers or of the verdicts that failed, whichever is larger.

        Wrong answers and answers that cannot be scored are not missing.
        """
        answers = [answer for episode in self.episodes for answer in episode.answers]
        unanswered = sum(answer.prediction is None for answer in answers)
        return max(unanswered / max(1, len(answers)), self.unjudged / max(1, self.judged))


Progress = Callable[[int], None]
"""Called with how many chunks were just written."""
Finished = Callable[[list[Episode]], None]
"""Called with the episodes that just had their last chunk, while others go on."""
Retry = Callable[[Callable[[], Played]], Played]
"""Calls what it is given, again if too much is missing in the result or the reader was gone."""


def play(
    instances: Sequence[Instance],
    writer: Writer,
    environment: Environment,
    rollouts: int = 1,
    seed: int = 0,
    *,
    overlap: bool = False,
    retry: Retry = lambda attempt: attempt(),
    progress: Progress | None = None,
) -> Played:
    """One asked and rewarded episode per instance and rollout, instance by instance.

    With `overlap` a thread asks about the episodes that are finished while the others are still
    being written; the questions and the results are the same. `retry` decides whether what failed
    is asked again: only groups of episodes in which something is missing are.
    """
    started = time.perf_counter()
    scored = partial(score, instances=instances, environment=environment)
    with _Overlap(scored) if overlap else nullcontext() as early:
        settings, ended = (environment.memory, environment.protocol), early.start if early else None
        written = write(instances, writer, *settings, rollouts, seed, progress, ended)
        if hasattr(writer, "finish"):  # several processes with one engine end together
            writer.finish()
        wrote = time.perf_counter()
        played = retry(early.attempt if early else lambda: scored(written))
    by_id = {episode.id: episode for episode in played.episodes}
    waited = time.perf_counter() - wrote
    read_s = min(waited, played.read_s) if not overlap else waited
    return replace(
        played,
        episodes=[by_id[episode.id] for episode in written],
        write_s=wrote - started,
        read_s=read_s,
        reward_s=waited - read_s,
    )


# ---- write ------------------------------------------------------------------------------------


def write(
    instances: Sequence[Instance],
    writer: Writer,
    memory_config: MemoryConfig,
    protocol_config: ProtocolConfig,
    rollouts: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    finished: Finished | None = None,
) -> list[Episode]:
    """One episode per instance and rollout, instance by instance; nothing is asked yet.

    Chunks are walked in lock-step: one writer call per chunk index for all rollouts that still
    have one, so a model answers them as one batch. Failed calls stay on their step and the episode
    goes on; there is no second turn. Raises InputError if two instances share an id.
    """
    for name, times in Counter(instance.id for instance in instances).items():
        if times > 1:
            raise InputError(f"instances: expected each id once, found {name} {times} times")
    pairs = [(instance, rollout) for instance in instances for rollout in range(rollouts)]
    rules = (writer.name, protocol_config.wire, memory_config)
    episodes = [
        Episode(episode_id(i.id, n), i.id, i.source, n, _seed(seed, i.id, n), *rules, steps=())
        for i, n in pairs
    ]
    for step in range(max((len(i.chunks) for i in instances), default=0)):
        active = [k for k, (i, _) in enumerate(pairs) if step < len(i.chunks)]
        requests = [_request(episodes[k], pairs[k][0].chunks[step]) for k in active]
        completions = writer.write(requests)
        for k, asked, completion in zip(active, requests, completions, strict=True):
            done = _step(asked, completion, memory_config, protocol_config)
            episodes[k] = replace(episodes[k], steps=(*episodes[k].steps, done))
        if progress:
            progress(len(active))
        ended = [episodes[k] for k in active if step + 1 == len(pairs[k][0].chunks)]
        if finished and ended:
            finished(ended)
    return episodes


def _request(episode: Episode, chunk: str) -> WriteRequest:
    """What the writer is asked about the next chunk of an episode."""
    step = len(episode.steps)
    before = episode.memory if step else memories.empty(episode.memory_config)
    seed = _seed(episode.seed, step)
    return WriteRequest(before, chunk, episode.instance, step, episode.rollout, seed)


def _step(
    asked: WriteRequest, completion: Completion, memory: MemoryConfig, protocol: ProtocolConfig
) -> Step:
    """The reply read, and its calls applied in order."""
    state, calls = asked.memory, []
    for call in read_calls(completion, memory, protocol):
        state, applied = memories.apply(state, call, memory)
        calls.append(applied)
    return Step(asked.step, completion, tuple(calls), state)


def episode_id(instance: str, rollout: int) -> str:
    """The id of an instance's episode: `trec_coarse/0a1b2c3d4e5f#0`."""
    return f"{instance}#{rollout}"


def _seed(*parts: object) -> int:
    """A 31-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


# ---- ask --------------------------------------------------------------------------------------


def ask(
    episodes: Sequence[Episode],
    instances: Sequence[Instance],
    reader: Reader,
    metric: str | None = None,
) -> list[Episode]:
    """The episodes with one scored answer per question of their instance, in order.

    The reader gets all questions at once. `metric` is a name in `metrics.METRICS`, by default the
    one of the source that needs no judge. A reader that failed (prediction None) and a question
    that cannot be scored give a score of None. Raises InputError, before anything is asked, if an
    episode's instance is missing.
    """
    by_id = {instance.id: instance for instance in instances}
    for episode in episodes:
        if episode.instance not in by_id:
            raise InputError(f"episode {episode.id}: its instance is not in the data")
    mine = [by_id[episode.instance] for episode in episodes]
    names = [metric or metric_of(instance.source, judged=False) for instance in mine]
    for name in dict.fromkeys(names):
        metrics.METRICS[name]  # an unknown one is refused before anything is asked
    questions = [
        Question(qa.id, qa.question, instance.source, instance.id, episode.memory)
        for episode, instance in zip(episodes, mine, strict=True)
        for qa in instance.questions
    ]
    answers = reader.read(questions)
    if len(answers) != len(questions):
        raise ValueError(f"{reader.name}: {len(questions)} questions, {len(answers)} answers")
    asked, left = [], iter(answers)
    for episode, instance, name in zip(episodes, mine, names, strict=True):
        golds = [qa.answers for qa in instance.questions]
        scored = tuple(scored_answer(next(left), gold, name, instance.id) for gold in golds)
        asked.append(replace(episode, answers=scored))
    return asked


def scored_answer(answer: Answer, gold: Sequence[str], metric: str, where: str) -> Answer:
    """The answer with its score; None if the reader failed or the question cannot be scored."""
    try:
        value = metrics.score(metric, answer.prediction, gold)
    except InputError as error:  # this question's gold answers, e.g. one that normalises to ""
        log.warning("%s: question %s is not scored: %s", where, answer.qa, error)
        value = None
    return replace(answer, score=value)


# ---- reward -----------------------------------------------------------------------------------


def score(
    episodes: Sequence[Episode], instances: Sequence[Instance], environment: Environment
) -> Played:
    """The episodes, asked and rewarded. The judge is not called for a term of weight 0."""
    started = time.perf_counter()
    asked = ask(episodes, instances, environment.reader, environment.metric)
    read_s = time.perf_counter() - started
    by_id = {instance.id: instance for instance in instances}
    judge = environment.judge if environment.reward.content else None
    verdicts: list[bool | None] = []

    def counted(call: ToolCall, chunk: str, memory: Memory) -> bool | None:
        verdicts.append(judge(call, chunk, memory) if judge else None)
        return verdicts[-1]

    if judge and hasattr(judge, "prepare"):  # a model's judge: all calls at once
        judge.prepare(asked, instances)
    scene = (counter(environment.memory.counter), counted if judge else None, environment.reward)
    asked_with = (environment.reader, environment.metric)
    parts = {e.id: rewards(e, by_id[e.instance], *scene, *asked_with) for e in asked}
    reward_s = time.perf_counter() - started - read_s
    missing = verdicts.count(None)
    return Played(asked, parts, len(verdicts), missing, read_s=read_s, reward_s=reward_s)


class _Overlap:
    """Scores groups of episodes in a thread while others are still being written."""

    def __init__(self, score: Callable[[list[Episode]], Played]) -> None:
        self.score, self.pool, self.asked_before = score, ThreadPoolExecutor(1), False
        self.groups: list[tuple[list[Episode], Future[Played]]] = []

    def __enter__(self) -> _Overlap:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def start(self, episodes: list[Episode]) -> None:
        """Has these episodes scored."""
        self.groups.append((episodes, self.pool.submit(self.score, episodes)))

    def attempt(self) -> Played:
        """The scores of all groups; from the second call on, what failed is asked for again."""
        for place, (episodes, future) in enumerate(self.groups):
            if self.asked_before and (future.exception() or future.result().missing()):
                self.groups[place] = (episodes, self.pool.submit(self.score, episodes))
        self.asked_before = True
        parts = [future.result() for _, future in self.groups]  # raises what the thread met
        return Played(
            [episode for part in parts for episode in part.episodes],
            dict(pair for part in parts for pair in part.rewards.items()),
            sum(part.judged for part in parts),
            sum(part.unjudged for part in parts),
            read_s=sum(part.read_s for part in parts),
        )
