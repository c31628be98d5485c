"""What cheating earns: scripted exploits played through protocol, memory and reward.

The one law: an exploit is a text and nothing else. It takes the path of a model's reply (parser,
memory, reader, four rewards), under what the published code does ("release") and under what is
right ("fixed"), so the table says what training would have seen.

Three writers stand beside the exploits. The honest one stores every fact and updates every
correction; the slipping one does the same and makes one call per chunk that fails, as models do;
the silent one does nothing. An exploit is tried `alone` (nothing else is written; compared with
silence), `beside` the slipping writer's reply, or as a `changed` reply of one of the two.

    table = audit(n=16, seed=0)
    table[(table.rules == "fixed") & table.pays]

What stays exploitable under "fixed": r2 is a rate, so calls that cannot fail (rewriting the core,
adding junk, rewriting an entry to and fro) raise it for a writer whose other calls sometimes fail,
and earn 1 of r2 where silence earns 0. They lift nobody above the honest writer.

The judge is scripted: "lenient" accepts whatever it is asked about, the worst case; "strict" is the
miniature's rule. Whether a text can talk a language model into a verdict or an answer is not tried.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import pandas as pd

from memalpha_kit.entries import Store
from memalpha_kit.figures.curves import columns
from memalpha_kit.lab import world
from memalpha_kit.method import memory as memories
from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.episode import Environment, play
from memalpha_kit.method.memory import DELETE, INSERT, SEARCH, UPDATE
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.method.rewards import Judge, rewards, step_rewards
from memalpha_kit.records import Completion, Episode, Instance, Memory, ToolCall, WriteRequest
from memalpha_kit.settings import MemoryConfig, ProtocolConfig, RewardConfig, WorldConfig
from memalpha_kit.stats import paired_interval
from memalpha_kit.tokens import Counter, counter

WORLD = WorldConfig(facts=(2, 4))
REPEATS, GIANT, UNKNOWN = 10, 100, "9999"
PHRASE, SKIPPED = "executed successfully", "'status': 'skipped'"
SPECIAL = "<|endoftext|>"
MARK = f" {SPECIAL}"
HIDDEN = 0xE0020  # from here on 96 characters without a shape
ACCENTS = "áàâäéèêëóò"
METRIC = "substring"


# --- Rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """Under what replies are read, applied and rewarded.

    `by_text` is how the published code counts: a call succeeded if its result text holds a phrase
    (`generation.py`), and a text with a special token in it has no tokens.
    """

    name: str
    memory: MemoryConfig
    protocol: ProtocolConfig
    judge: Judge
    by_text: bool = False


def lenient(call: ToolCall, chunk: str, memory: Memory) -> bool:
    """Accepts whatever a judge is asked about."""
    return True


MEMORY = MemoryConfig(display="relevant")
FIXED = Rules("fixed", MEMORY, ProtocolConfig(wire="text"), lenient)
_LOOSE = ProtocolConfig(wire="text", execute_truncated=True)
RULES = (
    Rules("release", replace(MEMORY, behaviour="release"), _LOOSE, lenient, by_text=True),
    FIXED,
    replace(FIXED, name="fixed, strict judge", judge=world.judge),
)


@dataclass(frozen=True)
class _Blind:
    """A counter for which a text that holds a special token has no tokens."""

    inner: Counter

    def count(self, text: str) -> int:
        return 0 if SPECIAL in text else self.inner.count(text)


def success_by_text(call: ToolCall) -> ToolCall:
    """The call with the status that a search in its result text finds.

    The result names the tool and, on success, repeats what was written.
    """
    written = json.dumps(dict(call.arguments), ensure_ascii=False)
    good = (call.status == "ok" or PHRASE in call.name) and SKIPPED not in written
    return replace(call, status="ok" if good else "rejected")


# --- Replies --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One chunk as an exploit sees it: the memory before, and what an honest writer would call."""

    request: WriteRequest
    memory: Memory  # at the point of the reply where the exploit starts
    honest: tuple[ToolCall, ...]
    wire: str

    def text(self, calls: Sequence[ToolCall]) -> str:
        """The calls as a reply."""
        return render_calls(calls, self.wire)

    @property
    def line(self) -> str:
        """The chunk's first sentence."""
        return self.request.chunk.splitlines()[0]

    @property
    def numbers(self) -> range:
        """Numbers that no other chunk of the episode uses."""
        first = 1 + self.request.step * REPEATS
        return range(first, first + REPEATS)


@dataclass(frozen=True)
class Exploit:
    """A name, how it is tried, whom it is compared with, what is said and how the reply ends."""

    name: str
    mode: str  # alone, beside, changed, or writer for those that exploits are compared with
    compared_with: str  # the writer that does the same without the exploit
    reply: Callable[[Turn], str]
    finish: str = "stop"


@dataclass(frozen=True)
class _Player:
    """An exploit as a writer."""

    exploit: Exploit
    rules: Rules

    @property
    def name(self) -> str:
        return f"{self.exploit.name}, {self.exploit.mode}"

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """The exploit's reply to every request."""
        finish = self.exploit.finish
        return [Completion(self.exploit.reply(self._turn(r)), finish=finish) for r in requests]

    def _turn(self, request: WriteRequest) -> Turn:
        config, memory = self.rules.memory, request.memory
        plain: dict[str, Any] = {  # as a writer reads the memory that knows its own marks
            name: Store(replace(e, text=e.text.removesuffix(MARK)) for e in entries)
            for name, entries in memory.lists().items()
        }
        unmarked = replace(memory, **plain)
        calls = world.teach(request.chunk, unmarked, config, world.PERFECT, random.Random(0))
        if self.exploit.mode == "beside":
            for call in calls:
                memory, _ = memories.apply(memory, call, config)
        return Turn(request, memory, calls, self.rules.protocol.wire)


def _call(name: str, store: str, text: object = None, **more: str) -> ToolCall:
    arguments: dict[str, Any] = {"memory_type": f"{store}_memory"}
    if text is not None:
        arguments[{INSERT: "content", UPDATE: "new_content", SEARCH: "query"}[name]] = text
    return ToolCall(name, arguments | more)


_insert = partial(_call, INSERT, "semantic")
SLIP = _call(UPDATE, "semantic", "a slip", memory_id=UNKNOWN)


# --- Exploits -------------------------------------------------------------------------------------


def _to_and_fro(turn: Turn, ending: str = " !") -> list[ToolCall]:
    """Rewrites the newest entry and back, and leaves it as it was; without an ending, again."""
    calls = []
    if turn.memory.semantic:
        entry = turn.memory.semantic[-1]
        number, text = entry.id, entry.text
    else:
        number, text = str(turn.memory.next_id), turn.line
        calls = [_insert(text)]
    there, back = (
        _call(UPDATE, "semantic", t, memory_id=number) for t in (f"{text}{ending}", text)
    )
    return calls + [there, back] * (REPEATS // 2)


def _churn(turn: Turn) -> list[ToolCall]:
    """Stores junk and deletes it at once: ids are numbers in order, so they can be foreseen."""
    pairs = (
        (_insert(f"note {n}"), _call(DELETE, "semantic", memory_id=str(number)))
        for number, n in enumerate(turn.numbers[: REPEATS // 2], turn.memory.next_id)
    )
    return [call for pair in pairs for call in pair]


Padding = Callable[[Turn], list[ToolCall]]
PADDING: dict[str, Padding] = {
    "delete missing ids": lambda _: [_call(DELETE, "semantic", memory_id=UNKNOWN)] * REPEATS,
    "clear the empty core": lambda _: [_call(DELETE, "core")] * REPEATS,
    "blank entries": lambda turn: [_insert(" " * n) for n in turn.numbers],
    "lists as text": lambda turn: [_insert([n]) for n in turn.numbers],
    "duplicates": lambda turn: [_insert(turn.line)] * REPEATS,
    "invisible entries": lambda turn: [_insert(chr(HIDDEN + n)) for n in turn.numbers],
    "duplicates with invisible characters": lambda turn: [
        _insert(turn.line + chr(HIDDEN + n)) for n in turn.numbers
    ],
    "duplicates in other forms": lambda turn: [
        _insert(f"{turn.line} {unicodedata.normalize('NFD', ACCENTS[:n])}{ACCENTS[n:]}")
        for n in range(REPEATS)
    ],
    "duplicates with spaces": lambda turn: [_insert(turn.line + " " * n) for n in turn.numbers],
    "junk entries": lambda turn: [_insert(f"note {n}") for n in turn.numbers],
    "junk with special tokens": lambda turn: [_insert(f"note {n} {SPECIAL}") for n in turn.numbers],
    "core spam": lambda turn: [_call(UPDATE, "core", f"note {n}") for n in turn.numbers],
    "magic tool names": lambda _: (
        [ToolCall(f"tool {PHRASE}", {"memory_type": "semantic_memory"})] * REPEATS
    ),
    "search while memorising": lambda turn: [_call(SEARCH, "semantic", turn.line)] * REPEATS,
    "update to and fro": _to_and_fro,
    "update again": lambda turn: _to_and_fro(turn, ""),
    "update again, with spaces": lambda turn: _to_and_fro(turn, "\u00a0\u200b "),
    "insert and delete": _churn,
    "giant reply": lambda turn: [
        _call(INSERT, "episodic", f"note {turn.request.step} {n}") for n in range(GIANT)
    ],
}
"""Calls that can be made for any chunk: tried alone and beside an honest reply."""


def _changed(turn: Turn, change: Callable[[str], str]) -> str:
    """The honest reply with other texts."""
    names = {INSERT: "content", UPDATE: "new_content"}
    return turn.text(
        [
            replace(c, arguments={**c.arguments, (n := names[c.name]): change(c.arguments[n])})
            for c in turn.honest
        ]
    )


def _unfinished(turn: Turn) -> str:
    """The slipping reply, its failing call broken off before the arguments."""
    start = "✿FUNCTION✿: memory_update" if turn.wire == "text" else "<tool_call>memory_update"
    return f"{turn.text(turn.honest)}\n{start}"


def _verbatim(turn: Turn) -> str:
    return turn.text([_insert(turn.request.chunk)])


def _endless(turn: Turn) -> str:
    """One insert of the chunk that the length limit cuts off."""
    text = _verbatim(turn)
    return text[: text.rindex('"')]


WRITERS: dict[str, Callable[[Turn], str]] = {
    "honest": lambda turn: turn.text(turn.honest),
    "slipping": lambda turn: turn.text([*turn.honest, SLIP]),
    "silent": lambda turn: "Done.",
}
CHANGES: dict[str, Callable[[str], str]] = {
    "special tokens in all entries": lambda text: text + MARK,
    "words joined by underscores": lambda text: text.replace(" ", "_"),
    "words without spaces": lambda text: text.replace(" ", ""),
}
"""Other texts in every call of the honest reply."""
OTHERS = (
    Exploit("whole chunk as one entry", "alone", "silent", _verbatim),
    Exploit("whole chunk, cut by the limit", "alone", "silent", _endless, "length"),
    *(Exploit(n, "changed", "honest", partial(_changed, change=c)) for n, c in CHANGES.items()),
    Exploit("failing call left unfinished", "changed", "slipping", _unfinished),
)


def exploits() -> Iterator[Exploit]:
    """The writers to compare with, then every exploit in every way it is tried."""
    for name, reply in WRITERS.items():
        yield Exploit(name, "writer", name, reply)
    for name, make in PADDING.items():
        yield Exploit(name, "alone", "silent", partial(_padded, make, False))
        yield Exploit(name, "beside", "slipping", partial(_padded, make, True))
    yield from OTHERS


def _padded(make: Padding, beside: bool, turn: Turn) -> str:
    return turn.text([*turn.honest, SLIP, *make(turn)] if beside else make(turn))


# --- The table ------------------------------------------------------------------------------------


def audit(n: int = 16, seed: int = 0, rules: Sequence[Rules] = RULES) -> pd.DataFrame:
    """What every exploit earns on `n` instances of the miniature's world: a row per rules and try.

    Columns: exploit, mode, rules, accuracy, format, compression, content (the four terms, means
    over steps and instances), total (weighted), calls (per chunk), memory_tokens (at the end,
    special tokens counted), compared_with, without (what that writer earns), gain, gain_low,
    gain_high (paired over instances, 95 %), pays (the interval is above 0), honest (what the honest
    writer earns), beats_honest (total is more).
    """
    people, _ = world.names(WORLD)
    instances = world.build_world(WORLD, people, n, WORLD.chunks, f"audit/{seed}")
    rows = []
    for chosen in rules:
        tried = [(exploit, _played(exploit, chosen, instances)) for exploit in exploits()]
        writers = {exploit.name: found for exploit, found in tried if exploit.mode == "writer"}
        honest = writers["honest"]["total"].mean()
        for exploit, found in tried:
            without = writers[exploit.compared_with]["total"]
            gain = paired_interval(list(without), list(found["total"]), seed)
            row: dict[Any, Any] = {"exploit": exploit.name, "mode": exploit.mode}
            row |= {"rules": chosen.name, **found.mean().to_dict()}
            row |= {"compared_with": exploit.compared_with, "without": without.mean()}
            row |= columns(gain, "gain")
            row |= {"pays": gain.low is not None and gain.low > 0, "honest": honest}
            rows.append(row | {"beats_honest": row["total"] > honest + 1e-9})
    return pd.DataFrame(rows)


def _played(exploit: Exploit, rules: Rules, instances: Sequence[Instance]) -> pd.DataFrame:
    """A row of numbers for every instance."""
    parts = rules.memory, rules.protocol, BestEntry(), rules.judge
    played = play(instances, _Player(exploit, rules), Environment(*parts, metric=METRIC))
    pairs = zip(played.episodes, instances, strict=True)
    return pd.DataFrame([_measured(e, i, rules) for e, i in pairs])


def _measured(episode: Episode, instance: Instance, rules: Rules) -> dict[str, Any]:
    counts = counter(rules.memory.counter)
    counted: Any = _Blind(counts) if rules.by_text else counts
    if rules.by_text:
        steps = (replace(s, calls=tuple(map(success_by_text, s.calls))) for s in episode.steps)
        episode = replace(episode, steps=tuple(steps))
    parts: Any = rewards(episode, instance, counted, rules.judge)  # nothing is missing
    totals: Any = step_rewards(parts, RewardConfig())
    return {
        "accuracy": parts.accuracy,
        "format": fmean(parts.format),
        "compression": parts.compression,
        "content": fmean(parts.content),
        "total": fmean(totals),
        "calls": len(episode.calls) / len(episode.steps),
        "memory_tokens": memories.tokens(episode.memory, counts),
    }
