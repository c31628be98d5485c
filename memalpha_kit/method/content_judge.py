"""The judge of memory writes: whether a text is worth its memory type, the content reward r4.

`ContentJudge` rates texts, `CallJudge` the calls of episodes for `rewards.py`, `judge_steps` what
the memory server is sent.

    judge = CallJudge(ContentJudge(client))
    judge.prepare(episodes)
    rewards(episode, instance, counter, judge)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memalpha_kit.method.judges import TEXTS, ChatJudge, Verdict, tagged
from memalpha_kit.method.memory import MEMORY_COMPONENTS, TOOLS
from memalpha_kit.method.rewards import judged, mean
from memalpha_kit.records import Episode, Instance, Memory, ToolCall

CRITERIA = TEXTS["content"]["criteria"]
"""What makes a text valid, by memory type; of a component of the user's, what it keeps."""


@dataclass(frozen=True)
class ContentJudge(ChatJudge):
    """Rates texts for their memory type."""

    def judge(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """One verdict per (memory type, text), in one batch. Raises InputError for another type.

        Types are core, semantic and episodic, also with `_memory` behind.
        """
        heat = self.manner.content_temperature
        requests = []
        for name, text in items:
            kind = name.removesuffix("_memory")
            criteria = CRITERIA.get(kind) or MEMORY_COMPONENTS[kind].keeps
            system = TEXTS["content"]["system"].format(kind=kind, criteria=criteria)
            user = f"Memory type: {kind}\n{tagged(text=text)}"
            requests.append(self._request(system, user, "content", 512, heat))
        reminders = tuple(TEXTS["content"]["reminders"].values())
        return self._ask(requests, self.manner.content, reminders)


@dataclass
class CallJudge:
    """A `rewards.Judge` with a content judge behind it: many calls in one batch, then by look-up.

    Calls are told apart by memory type and text, so equal writes of many rollouts are judged once.
    What failed is asked again by the next `prepare`, or by the next call if it was not prepared.
    """

    judge: ContentJudge
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)

    def prepare(self, episodes: Iterable[Episode], instances: Sequence[Instance] = ()) -> None:
        """Judges all calls of the episodes that have no verdict yet, in one batch.

        `instances` are those of the episodes; this judge does not read the chunks.
        """
        calls = (call for episode in episodes for call in episode.calls)
        items = dict.fromkeys(_written(call) for call in calls if judged(call))
        known = {item for item, verdict in self.verdicts.items() if verdict.valid is not None}
        asked = [item for item in items if item not in known]
        self.verdicts.update(zip(asked, self.judge.judge(asked), strict=True))

    def __call__(self, call: ToolCall, chunk: str, memory: Memory) -> bool | None:
        """Whether a call's text is valid; None if the judge failed. Asks if not prepared."""
        item = _written(call)
        if item in self.verdicts:
            return self.verdicts[item].valid
        [verdict] = self.judge.judge([item])
        if verdict.valid is not None:
            self.verdicts[item] = verdict
        return verdict.valid


def _written(call: ToolCall) -> tuple[str, str]:
    """(memory type, text) of a call that is judged."""
    kind = call.arguments["memory_type"].removesuffix("_memory")
    return kind, call.arguments[TOOLS[call.name].text or ""]


@dataclass(frozen=True)
class StepVerdict:
    """r4 of one step. `score` is the mean verdict, None if nothing was judged or all of it failed.

    `verdicts` has one per call, None for a call not to be judged.
    """

    score: float | None
    verdicts: tuple[Verdict | None, ...]


def judge_steps(
    steps: Sequence[Sequence[Mapping[str, Any]]], judge: ContentJudge
) -> list[StepVerdict]:
    """What the server's `/analyze_function` scores: the calls of each step, all in one batch.

    A call is a mapping with `name`, `arguments` and maybe `success`. Judged are inserts and updates
    with a known memory type and a text, unless they did not succeed; the rest is left out. In a
    manner that is not lenient success is not looked at, and what is left out here counts 0 there.
    """
    lenient = judge.manner.lenient
    items: dict[tuple[int, int], tuple[str, str]] = {}
    for i, step in enumerate(steps):
        for j, raw in enumerate(step):
            given = raw.get("arguments")
            call = ToolCall(raw.get("name") or "", given if isinstance(given, Mapping) else {})
            if judged(call) and (not lenient or raw.get("success", True)):
                items[i, j] = _written(call)
    verdicts = dict(zip(items, judge.judge(list(items.values())), strict=True))
    left_out = None if lenient else Verdict(False, error="not to be judged", asked=0)
    found = []
    for i, step in enumerate(steps):
        row = tuple(verdicts.get((i, j), left_out) for j in range(len(step)))
        score = mean([verdict.valid for verdict in row if verdict is not None])
        found.append(StepVerdict(score if lenient or step else 0.0, row))
    return found
