"""MEM1: one cumulative summary between think tags, rebuilt chunk by chunk; another model answers.

Its rollout files, `{"index": row, "memory": "<think>...</think>"}` a line, can take the place of
the walk (`rollouts`). An index is the row of the data file; every instance must have one before
anything is answered. fixed: each index once, whole lines of JSON, no rows that do not exist.
release: the last of several lines wins and broken lines are repaired (spec evaluation.md 4.6, R-1).

Differs: wording of our own, with the new chunk and the summary both tagged as announced (R-3; in
the release the chunk is plain text and the summary the beginning of the model's turn); a failed
request ends its instance instead of leaving the old state (R-2); the stops of its search protocol
are cut off the reply here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memalpha_kit import files as store
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.methods.base import (
    Backends,
    Prepared,
    PreparedDone,
    Question,
    groups,
)
from memalpha_kit.evaluation.methods.chains import Chain, walk
from memalpha_kit.evaluation.methods.contexts import Context, ContextMethod, ContextSettings
from memalpha_kit.method.prompts import VERSION
from memalpha_kit.records import ChatRequest, Instance, message, request
from memalpha_kit.settings import Behaviour, Count, NonNegative, Share
from memalpha_kit.text import repaired_object

WORDING = "mem1-1"
_INSTRUCTIONS = (
    "{task}\n\nYou read a text in parts. Keep one short summary of everything up to now between "
    "<think> and </think>: what stood in the last summary and still matters, and what the new "
    "part adds. The last summary stands between <summary> tags, the new part between <information> "
    "tags. Reply with the new summary in <think> tags only."
)
_STOP = re.compile("</search>|</answer>")
_STATE = re.compile("<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class Mem1Settings(ContextSettings):
    """The walk, or where its results are."""

    rollouts: str = ""  # a rollout file; "": walk with the writing model
    state_tokens: Count = 1024  # of a reply while walking
    state_temperature: NonNegative = 0.0  # release: 0.01
    state_top_p: Share = 0.95
    unusable: Share = 0.5  # replies without a summary, above which an instance has failed
    behaviour: Behaviour = "fixed"


class Mem1(ContextMethod):
    """Puts questions to the last summary.

    Memory: its tokens; release: with the tags (R-7, evaluation.md 4.9).
    """

    Settings = Mem1Settings
    summary = "one running summary in think tags (or MEM1's rollout file); another model answers"
    options: Mem1Settings

    def __init__(self, name: str, settings: Mem1Settings, backends: Backends) -> None:
        super().__init__(name, settings, backends)
        if settings.rollouts:
            walking = ("state_tokens", "state_temperature", "state_top_p", "unusable")
            self.check_unused(walking, "memories come from a rollout file")

    def settings(self) -> dict[str, Any]:
        """With the version of the wording and the rollout file's hash."""
        file = self.options.rollouts
        found = {"rollouts": store.sha256(Path(file))} if file else {}
        return super().settings() | {"prompts": [WORDING, VERSION]} | found

    def context(self, question: Question) -> Context:
        """The summary; what a model shows of its memory has no tags unless it is the release."""
        return Context(self._used(question.prepared.text or ""))

    def _used(self, state: str) -> str:
        if self.options.behaviour == "release":
            return state
        return state.removeprefix("<think>").removesuffix("</think>").strip()

    def prepare(self, instances: Sequence[Instance], done: PreparedDone) -> None:
        """Loads the rollouts, or walks over the chunks."""
        if self.options.rollouts:
            found = self._loaded(instances)
            for instance in instances:
                done(self._prepared(instance, found[instance.id]))
            return
        model = self.kept(self.backends.write or self.model)
        for group in groups(instances, self.backends.group):
            chains = [Chain(i, i.chunks, self._asker(i), "") for i in group]
            walk(chains, model, _state, lambda chain: done(self._walked(chain)))

    def _prepared(self, instance: Instance, state: str, **values: Any) -> Prepared:
        size = self.counter.count(self._used(state))
        return self.measured(instance, text=state, memory_tokens=size, **values)

    def _walked(self, chain: Chain[Instance]) -> Prepared:
        error, n_states = chain.error, len(chain.states)
        if not error and chain.kept > self.options.unusable * n_states:
            error = f"{chain.kept} of {n_states} replies have no summary in think tags"
        return self._prepared(
            chain.of,
            chain.state,
            errors=chain.kept,
            error=error,
            steps=tuple(chain.states),
            **chain.spent.fields(),
        )

    def _asker(self, instance: Instance):
        options = self.options
        task = _INSTRUCTIONS.format(task=instance.prompt).strip()
        fields = {
            "max_tokens": options.state_tokens,
            "temperature": options.state_temperature,
            "top_p": options.state_top_p,
            "thinking": None,
            "seed": options.seed,
            "version": WORDING,
        }

        def ask(state: str, chunk: str) -> ChatRequest:
            if options.behaviour == "release":
                turns = (message("user", f"{task}\n\n{chunk}"), message("assistant", state))
                return ChatRequest(turns if state else turns[:1], **fields)
            shown = f"<summary>\n{self._used(state)}\n</summary>\n\n"
            told = f"{task}\n\n{shown}<information>\n{chunk}\n</information>"
            return request("", told, **fields)

        return ask

    def _loaded(self, instances: Sequence[Instance]) -> dict[str, str]:
        """States by instance. Raises InputError, naming what is missing, before any answer."""
        path = Path(self.options.rollouts)
        states = load_rollouts(path, self.options.behaviour)
        rows = {name: row for row, name in enumerate(self.backends.rows)}
        if not rows:
            raise InputError(f"{path}: rollouts name rows, and the data's rows are not known")
        if self.options.behaviour == "fixed" and (odd := states.keys() - set(rows.values())):
            raise InputError(f"{path}: expected rows below {len(rows)}, found {min(odd)}")
        if lost := [i.id for i in instances if rows.get(i.id) not in states]:
            few = ", ".join(f"{name} (row {rows.get(name)})" for name in lost[:3])
            raise InputError(
                f"{path}: expected a memory for each of {len(instances)} instances, "
                f"found none for {len(lost)}: {few}{', ...' if len(lost) > 3 else ''}"
            )
        return {i.id: states[rows[i.id]] for i in instances}


def _state(reply: str) -> str | None:
    """The first pair of think tags, with the tags; None without one."""
    found = _STATE.search(_STOP.split(reply, maxsplit=1)[0])
    return found[0] if found else None


def load_rollouts(path: Path, behaviour: Behaviour = "fixed") -> dict[int, str]:
    """Memories by row of a MEM1 rollout file. Raises InputError naming file and line.

    release: the last line of a row wins and broken JSON is repaired; fixed: both are errors.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a rollout file, found: {error}") from error
    states: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row, state = _rollout(line, f"{path}:{number}", behaviour)
        if row in states and behaviour == "fixed":
            raise InputError(f"{path}:{number}: expected each index once, found {row} again")
        states[row] = state
    return states


def _rollout(line: str, where: str, behaviour: Behaviour) -> tuple[int, str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        value = repaired_object(line) if behaviour == "release" else None
        if value is None:
            raise InputError(f"{where}: expected a JSON object, found: {error}") from error
    fields: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    row, state = fields.get("index"), fields.get("memory")
    if type(row) is not int or row < 0 or not isinstance(state, str):
        raise InputError(f"{where}: expected an index and a memory, found {line[:60]!r}")
    return row, state
