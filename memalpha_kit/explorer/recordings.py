"""Recordings from disk: a file of episodes, the folder of an evaluation, the folder of a training.

What lies beside the episodes comes along: the protocol and the rewards that they were made with,
the scores and questions of an evaluation, the tokenizer of a policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.runs import ANSWERS, SETTINGS, load_run
from memalpha_kit.evaluation.scores import scores_of
from memalpha_kit.evaluation.scoring import Item
from memalpha_kit.explorer.view import Decode, Recording
from memalpha_kit.files import load_json, read_jsonl
from memalpha_kit.method.saved import load_episodes, load_rewards
from memalpha_kit.records import QA
from memalpha_kit.sections import settings_from
from memalpha_kit.settings import AdvantageConfig, ProtocolConfig, RewardConfig

Section = TypeVar("Section", ProtocolConfig, RewardConfig, AdvantageConfig)


def load_recordings(paths: Iterable[Path]) -> list[Recording]:
    """Everything that can be looked at in files and folders, each under a name of its own.

    A training has a recording for each step that kept episodes. Raises InputError for a path that
    has no episodes.
    """
    recordings = [recording for path in paths for recording in _load(Path(path))]
    names = [recording.name for recording in recordings]
    times = Counter(names)
    return [
        replace(recording, name=f"{name} ({place})") if times[name] > 1 else recording
        for place, (name, recording) in enumerate(zip(names, recordings, strict=True))
    ]


def episode_files(path: Path) -> list[Path]:
    """The files that hold the episodes of a path. Raises InputError if there is none."""
    files = [path]
    if path.is_dir():
        answers = path / ANSWERS
        files = [answers] if answers.is_file() else sorted(path.glob("episodes/*.jsonl"))
    if not files or not files[0].is_file():
        raise InputError(
            f"{path}: expected a file of episodes, or the folder of an evaluation or a training"
        )
    return files


def episode_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The episodes of a file as they were recorded, each with where it stands."""
    evaluation = file.name == ANSWERS  # also while another process works on it
    for number, line in enumerate(read_jsonl(file, strict=not evaluation), 1):
        if not evaluation or "episode" in line:
            yield f"{file}:{number}", line["episode"] if evaluation else line


def beside(file: Path) -> Recording:
    """What lies beside a file of episodes, without the episodes and the tokenizer.

    `memalpha write` leaves a card, a training and an evaluation their settings.
    """
    if file.name == ANSWERS:
        method = load_json(file.parent / SETTINGS).get("method", {})
        own = {} if method.get("episodes") else method  # else they were written before
        protocol = _section(ProtocolConfig, own, "protocol", SETTINGS)
        return Recording(file.parent.name, (), protocol=protocol)
    training = file.parent.parent if file.parent.name == "episodes" else None
    card = training / SETTINGS if training else file.with_suffix(".json")
    said = load_json(card) if card.is_file() else {}
    rewards = training / "rewards" / f"{file.stem}.json" if training else None
    return Recording(
        f"{training.name} {file.stem}" if training else file.stem.removesuffix(".episodes"),
        (),
        rewards=load_rewards(rewards) if rewards and rewards.is_file() else {},
        protocol=_section(ProtocolConfig, said, "protocol", card),
        reward=_section(RewardConfig, said, "reward", card),
        advantage=_section(AdvantageConfig, said, "advantage", card),
    )


def _load(path: Path) -> Iterator[Recording]:
    first, *others = episode_files(path)
    if first.name == ANSWERS:
        yield _evaluation(first.parent)
        return
    decode = decoder(first.parent.parent / "policy") if first.parent.name == "episodes" else None
    for file in (first, *others):
        yield replace(beside(file), episodes=load_episodes(file), decode=decode)


def _section(kind: type[Section], card: Any, name: str, where: object) -> Section | None:
    """A section of settings that were saved, None if there is none."""
    if not isinstance(card, Mapping) or not isinstance(card.get(name), Mapping):
        return None
    return settings_from(kind, card[name], f"{where}: {name}")


def decoder(folder: Path) -> Decode | None:
    """What turns the token ids of the policy in that folder into text, None without a tokenizer."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def _evaluation(folder: Path) -> Recording:
    """The memories of an evaluation, with its answers, their scores and the accepted answers."""
    run = load_run(folder)
    scores = {(row["instance"], row["qa"]): row["score"] for row in scores_of(run)}
    asked: dict[str, list[Item]] = {}
    for item in run.questions:
        asked.setdefault(item.instance, []).append(item)
    episodes, questions = [], {}
    for name, prepared in run.prepared.items():
        if prepared.episode:
            mine = asked[name]
            found = [run.answers.get(item.key, run.failed.get(item.key)) for item in mine]
            answers = tuple(replace(a, score=scores[a.instance, a.qa]) for a in found if a)
            episodes.append(replace(prepared.episode, answers=answers))
            questions[episodes[-1].id] = [QA(i.qa, i.question, i.golds) for i in mine]
    if not episodes:
        raise InputError(f"{folder}: expected episodes, found an evaluation that wrote no memory")
    return replace(beside(folder / ANSWERS), episodes=episodes, questions=questions)
