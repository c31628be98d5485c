"""Episodes on disk: one JSON line each. Calls are kept and memories are rebuilt by replaying them.

Law: load(save(x)) == x, and every call must end as it was recorded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from memalpha_kit.episode_settings import MemoryConfig, ProtocolConfig
from memalpha_kit.errors import InputError
from memalpha_kit.files import (
    Log,
    json_line,
    load_json,
    read_jsonl,
    resume_or_refuse,
    save_json,
    write_bytes,
)
from memalpha_kit.method import memory
from memalpha_kit.method.episode import episode_id, write
from memalpha_kit.method.writers import Writer
from memalpha_kit.progress import bar
from memalpha_kit.records import Answer, Completion, Episode, Instance, Rewards, Step, ToolCall
from memalpha_kit.sections import settings_from


def save_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """Writes one line of JSON per episode in place of what the file held."""
    write_bytes(path, b"".join(json_line(episode_fields(episode)) for episode in episodes))


def load_episodes(path: Path) -> list[Episode]:
    """The episodes of a JSONL file, every memory rebuilt by replaying the calls.

    Raises InputError naming the line, also for a last one that a crash cut off.
    """
    episodes: dict[str, Episode] = {}
    for i, line in enumerate(read_jsonl(path, strict=True), start=1):
        episode = read_episode(line, f"{path}:{i}")
        if episodes.setdefault(episode.id, episode) is not episode:
            raise InputError(f"{path}:{i}: expected each id once, found {episode.id} again")
    return list(episodes.values())


def episode_fields(episode: Episode) -> dict[str, Any]:
    """The episode as JSON; memories are left out: `calls` and `memory_config` rebuild them."""
    steps = []
    for step in episode.steps:
        tools = [vars(use) for use in step.completion.tools]
        calls = [vars(call) | {"arguments": dict(call.arguments)} for call in step.calls]
        completion = vars(step.completion) | {"tools": tools}
        steps.append({"chunk": step.chunk, "completion": completion, "calls": calls})
    # what is unknown of the model's call is left out of an answer, so old files look the same
    always, default = ("qa", "prediction", "score", "retrieved"), vars(Answer("", None))
    answers = [
        {k: v for k, v in vars(answer).items() if k in always or v != default[k]}
        for answer in episode.answers
    ]
    config = vars(episode.memory_config)
    return vars(episode) | {"memory_config": config, "steps": steps, "answers": answers}


def save_rewards(path: Path, rewards: Mapping[str, Rewards]) -> None:
    """Writes rewards by episode id, as `play` gives them."""
    plain = {name: vars(parts) | {"others": dict(parts.others)} for name, parts in rewards.items()}
    save_json(path, plain)


def load_rewards(path: Path) -> dict[str, Rewards]:
    """What `save_rewards` wrote. Raises InputError naming the file."""
    return record(dict[str, Rewards], load_json(path), f"{path}")


def read_episode(raw: Mapping[str, Any], where: str, check: bool = True) -> Episode:
    """What `episode_fields` gave, every memory rebuilt. Raises InputError starting with `where`.

    Without `check` a call may end in another way than was recorded, and is kept as it was.
    """
    try:
        config = settings_from(MemoryConfig, raw["memory_config"], where)
        steps = _read_steps(raw["steps"], config, where, check)
        plain = record(Episode, {**raw, "memory_config": config, "steps": ()}, where)
        return replace(plain, steps=steps)
    except KeyError as error:
        raise InputError(f"{where}: expected a field {error}, found none") from error
    except (TypeError, AttributeError) as error:  # of another shape
        raise InputError(f"{where}: expected an episode, found: {error}") from error


@dataclass(frozen=True)
class _Step:
    """A step as it is on disk, without its memory."""

    chunk: int
    completion: Completion
    calls: tuple[ToolCall, ...]


def _read_steps(raw: Any, config: MemoryConfig, where: str, check: bool) -> tuple[Step, ...]:
    """The steps with the memory after each; to `check`, every call must end as recorded."""
    state, steps = memory.empty(config), []
    for number, step in enumerate(record(tuple[_Step, ...], raw, f"{where}: steps")):
        for call in step.calls:
            state, again = memory.apply(state, call, config)
            if check and again != call:
                raise InputError(
                    f"{where}: step {number}: expected {call.name} to be {call.status} again, "
                    f"found {again.status} on replay (edited file, another version of the kit, or "
                    "a tool of yours without --extend?)"
                )
        steps.append(Step(step.chunk, step.completion, step.calls, state))
    if not steps:
        raise TypeError("no step")
    return tuple(steps)


def record(kind: Any, raw: Any, where: str) -> Any:
    """A record of this kind in what JSON held of it. Raises InputError starting with `where`."""
    try:
        return _adapter(kind).validate_python((raw,))[0]
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        place, found = ".".join(map(str, mistake["loc"][1:])), f"{mistake['input']!r:.40}"
        raise InputError(f"{where}: {place}: {mistake['msg']}, found {found}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    rules = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return TypeAdapter(tuple[kind], config=rules)  # a dataclass alone takes no rules


# ---- writing that goes on where it stopped ----------------------------------------------------


def write_log(
    path: Path,
    instances: Sequence[Instance],
    writer: Writer,
    rules: tuple[MemoryConfig, ProtocolConfig],
    settings: Mapping[str, Any],
    rollouts: int = 1,
    seed: int = 0,
    batch: int = 8,
) -> tuple[list[Episode], int]:
    """All episodes of the instances in a file that only grows, and how many of them are new.

    `settings` is everything else that they depend on; it stands in the card beside the file
    (`episodes.json` of `episodes.jsonl`). Raises InputError for a file of other settings.
    """
    card, started = _card(path), time.monotonic()
    memory.empty(rules[0])  # an unknown name is said before a file is begun
    if path.exists() and not card.exists():
        raise InputError(f"{path}: is there without {card.name}; choose another --out")
    said = {**settings, "rollouts": rollouts, "seed": seed}

    def mark(**state: object) -> None:
        """Says in the card how far the file is."""
        resume_or_refuse(path.parent, said | state, ("complete", "duration_s"), card.name, path)

    mark()
    with Log(path) as log:
        known = {episode.id for episode in load_episodes(path)}
        todo = [i for i in instances if not {episode_id(i.id, n) for n in range(rollouts)} <= known]
        n_chunks = sum(len(i.chunks) for i in todo)
        with bar(n_chunks * rollouts, f"write {writer.name}") as shown:
            for start in range(0, len(todo), batch):
                part = todo[start : start + batch]
                written = write(part, writer, *rules, rollouts, seed, shown.advance)
                log.append(*(episode_fields(one) for one in written if one.id not in known))
    episodes = load_episodes(path)
    new = len(episodes) - len(known)
    seconds = {"duration_s": round(time.monotonic() - started, 3)} if new else {}
    mark(complete=True, **seconds)
    return episodes, new


def check_written(path: Path) -> None:
    """Raises InputError if `memalpha write` did not make these episodes, or did not finish."""
    if not (file := _card(path)).exists():
        raise InputError(f"{file}: expected beside {path.name}; `memalpha write` makes both")
    card = load_json(file)
    if not isinstance(card, dict) or not card.get("complete"):
        raise InputError(f"{path}: `memalpha write` did not finish; run it again to go on")


def _card(path: Path) -> Path:
    """Where the card of a file of episodes is. Raises InputError for another kind of file."""
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: expected a name that ends in .jsonl")
    return path.with_suffix(".json")
