"""Episodes on disk: one JSON line each. Calls are kept and memories are rebuilt by replaying them.

Law: load(save(x)) == x, and every call must end as it was recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memalpha_kit.errors import InputError
from memalpha_kit.files import Log, json_line, read_jsonl, write_bytes
from memalpha_kit.method import memory
from memalpha_kit.records import Answer, Completion, Episode, Step, ToolCall, ToolUse
from memalpha_kit.settings import MemoryConfig


def save_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """Writes one line of JSON per episode in place of what the file held."""
    write_bytes(path, b"".join(json_line(episode_fields(episode)) for episode in episodes))


def append_episode(path: Path, episode: Episode) -> None:
    """Adds one episode to the file, whole or not at all."""
    with Log(path) as log:
        log.append(episode_fields(episode))


def load_episodes(path: Path, resume: bool = False) -> list[Episode]:
    """The episodes of a JSONL file, every memory rebuilt by replaying the calls.

    A last line that a crash cut off is an error; with `resume` it is dropped, and a file that does
    not exist yet has no episodes. Raises InputError naming the line.
    """
    if resume and not Path(path).exists():
        return []
    lines = read_jsonl(path, strict=not resume)
    episodes = [read_episode(line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]
    seen: set[str] = set()
    for i, episode in enumerate(episodes, start=1):
        if episode.id in seen:
            raise InputError(f"{path}:{i}: expected each id once, found {episode.id} again")
        seen.add(episode.id)
    return episodes


def episode_fields(episode: Episode) -> dict[str, Any]:
    """The episode as JSON; memories are left out: `calls` and `memory_config` rebuild them."""
    return vars(episode) | {
        "memory_config": vars(episode.memory_config),
        "steps": [
            {
                "chunk": step.chunk,
                "completion": vars(step.completion)
                | {"tools": [vars(use) for use in step.completion.tools]},
                "calls": [vars(call) | {"arguments": dict(call.arguments)} for call in step.calls],
            }
            for step in episode.steps
        ],
        "answers": [_answer_fields(answer) for answer in episode.answers],
    }


def _answer_fields(answer: Answer) -> dict[str, Any]:
    """Plain values; what is unknown of the model's call is left out, so old files look the same."""
    first = ("qa", "prediction", "score", "retrieved")
    default = vars(Answer("", None))
    return {k: v for k, v in vars(answer).items() if k in first or v != default[k]}


def read_episode(raw: Mapping[str, Any], where: str) -> Episode:
    """What `episode_fields` gave, every memory rebuilt. Raises InputError starting with `where`."""
    try:
        config = MemoryConfig(**_tuples(raw["memory_config"], "tools", "components"))
        answers = tuple(Answer(**_tuples(answer, "retrieved")) for answer in raw["answers"])
        steps = _read_steps(raw["steps"], config, where)
        return Episode(**raw | {"memory_config": config, "steps": steps, "answers": answers})
    except KeyError as error:
        raise InputError(f"{where}: expected a field {error}, found none") from error
    except (TypeError, AttributeError) as error:  # a field too many, or of another shape
        raise InputError(f"{where}: expected an episode, found: {error}") from error


def _read_steps(raw: Any, config: MemoryConfig, where: str) -> tuple[Step, ...]:
    """The steps with the memory after each; the outcome of every call must be as recorded."""
    state, steps = memory.empty(config), []
    for number, step in enumerate(raw):
        calls = tuple(ToolCall(**call) for call in step["calls"])
        for call in calls:
            state, again = memory.apply(state, call, config)
            if again != call:
                raise InputError(
                    f"{where}: step {number}: expected {call.name} to be {call.status} again, "
                    f"found {again.status} on replay (edited file, or another version of the kit?)"
                )
        fields = _tuples(step["completion"], "prompt_ids", "completion_ids", "mask", "logprobs")
        fields["tools"] = tuple(ToolUse(**use) for use in fields.get("tools", ()))
        steps.append(Step(step["chunk"], Completion(**fields), calls, state))
    return tuple(steps)


def _tuples(raw: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {k: tuple(v) if k in names and v is not None else v for k, v in raw.items()}
