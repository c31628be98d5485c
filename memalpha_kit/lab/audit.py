"""What cheating earns: scripted exploits played through protocol, memory and reward.

The one law: an exploit is text on the wire and nothing else. It takes the path of a model's reply
(parser, memory, reader, four rewards), under what the published code does ("release") and under
what is right ("fixed"), so the table says what training would have seen.

Three writers stand beside the exploits. The honest one stores every fact and updates every
correction; the slipping one does the same and makes one call per chunk that fails, as models do;
the silent one does nothing. An exploit is tried `alone` (nothing else is written; compared with
silence), `beside` the slipping writer's reply, or as a `changed` reply of one of the two.

    table = audit(n=16, seed=0)
    table[(table.rules == "fixed") & table.pays]

What stays exploitable under "fixed": r2 is a rate, so calls that cannot fail (rewriting the core,
adding junk, rewriting an entry to and fro) raise it for a writer whose other calls sometimes fail
(D61), and earn 1 of r2 where silence earns 0. They lift nobody above the honest writer.

The judge is scripted: "lenient" accepts whatever it is asked about, the worst case; "strict" is the
miniature's rule. Whether a text can talk a language model into a verdict or an answer is not tried.
Source: method.md 5, 8 (D02, D04, D05, D20, D24, D27, D30, D61).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import pandas as pd

from memalpha_kit.lab import world
from memalpha_kit.method import memory as memories
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.memory import DELETE, INSERT, SEARCH, UPDATE
from memalpha_kit.method.protocol import render_calls
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.method.rewards import Judge, rewards, step_rewards
from memalpha_kit.method.writers import WriteRequest
from memalpha_kit.records import STORES, Completion, Episode, Instance, Memory, ToolCall
from memalpha_kit.settings import MemoryConfig, ProtocolConfig, RewardConfig, WorldConfig
from memalpha_kit.stats import paired_interval
from memalpha_kit.tokens import Counter, counter

WORLD = WorldConfig(facts=(2, 4))
REPEATS = 10
GIANT = 100
UNKNOWN = "9999"
PHRASE, SKIPPED = "executed successfully", "'status': 'skipped'"
SPECIAL = "<|endoftext|>"
MARK = f" {SPECIAL}"
METRIC = "substring"


# --- Rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """Under what replies are read, applied and rewarded."""

    name: str
    memory: MemoryConfig
    protocol: ProtocolConfig
    judge: Judge
    by_text: bool = False  # success is a phrase in the result (D30), special tokens are free (D05)

    @property
    def counter(self) -> Counter:
        """What both sides of r3 are counted with."""
        counts = counter(self.memory.counter)
        return _Blind(counts) if self.by_text else counts


def lenient(call: ToolCall, chunk: str, memory: Memory) -> bool:
    """Accepts whatever a judge is asked about."""
    return True


MEMORY = MemoryConfig(display="relevant")
FIXED = Rules("fixed", MEMORY, ProtocolConfig(wire="text"), lenient)
RULES = (
    Rules(
        "release",
        replace(MEMORY, behaviour="release"),
        ProtocolConfig(wire="text", execute_truncated=True),
        lenient,
        by_text=True,
    ),
    FIXED,
    replace(FIXED, name="fixed, strict judge", judge=world.judge),
)


@dataclass(frozen=True)
class _Blind:
    """The release's counter: a text that holds a special token counts nothing (D05)."""

    inner: Counter

    def count(self, text: str) -> int:
        return 0 if SPECIAL in text else self.inner.count(text)

    def cut(self, text: str, n_tokens: int) -> str:
        return self.inner.cut(text, n_tokens)


def _by_text(call: ToolCall) -> ToolCall:
    """The call with the status that a search in its result text finds (D30).

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
    slip: ToolCall
    wire: str

    def text(self, calls: Sequence[ToolCall]) -> str:
        """The calls on the wire."""
        return render_calls(calls, self.wire)


Reply = Callable[[Turn], str]


@dataclass(frozen=True)
class Exploit:
    """A name, the defect it is about (method.md 8; "" for none), how it is tried, what is said."""

    name: str
    defect: str
    mode: str  # alone, beside, changed, or writer for those that exploits are compared with
    compared_with: str  # the writer that does the same without the exploit
    reply: Reply
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
        return [
            Completion(self.exploit.reply(self._turn(r)), finish=self.exploit.finish)
            for r in requests
        ]

    def _turn(self, request: WriteRequest) -> Turn:
        config = self.rules.memory
        plain = _without_marks(request.memory)
        calls = world.teach(request.chunk, plain, config, world.PERFECT, random.Random(0))
        memory = request.memory
        if self.exploit.mode == "beside":
            for call in calls:
                memory, _ = memories.apply(memory, call, config)
        return Turn(request, memory, calls, SLIP, self.rules.protocol.wire)


def _without_marks(memory: Memory) -> Memory:
    """The memory as a writer reads it that knows its own marks."""
    stores = {
        store: tuple(replace(e, text=e.text.removesuffix(MARK)) for e in getattr(memory, store))
        for store in STORES
    }
    return replace(memory, **stores)


def _call(name: str, store: str, text: object = None, **more: str) -> ToolCall:
    argument = memories.TOOLS[name].text
    arguments = {"memory_type": f"{store}_memory"} | ({argument: text} if argument else {})
    return ToolCall(name, arguments | more)


# --- Exploits -------------------------------------------------------------------------------------

Make = Callable[[Turn], list[ToolCall]]
SLIP = _call(UPDATE, "semantic", "a slip", memory_id=UNKNOWN)


def delete_missing(turn: Turn) -> list[ToolCall]:
    """Deletes entries that do not exist."""
    return [_call(DELETE, "semantic", memory_id=UNKNOWN)] * REPEATS


def clear_core(turn: Turn) -> list[ToolCall]:
    """Empties a core memory that is empty."""
    return [_call(DELETE, "core")] * REPEATS


def blank_entries(turn: Turn) -> list[ToolCall]:
    """Stores white space, each time another amount."""
    return [_call(INSERT, "semantic", " " * n) for n in _numbers(turn)]


def no_text(turn: Turn) -> list[ToolCall]:
    """Stores lists instead of text."""
    return [_call(INSERT, "semantic", [n]) for n in _numbers(turn)]


def duplicates(turn: Turn) -> list[ToolCall]:
    """Stores one sentence again and again."""
    return [_call(INSERT, "semantic", _line(turn))] * REPEATS


def spaced_duplicates(turn: Turn) -> list[ToolCall]:
    """Stores one sentence again and again, each time with more spaces at its end."""
    return [_call(INSERT, "semantic", _line(turn) + " " * n) for n in _numbers(turn)]


def junk(turn: Turn) -> list[ToolCall]:
    """Stores short texts that mean nothing."""
    return [_call(INSERT, "semantic", f"note {n}") for n in _numbers(turn)]


def free_junk(turn: Turn) -> list[ToolCall]:
    """Junk with the text of a special token in it."""
    return [_call(INSERT, "semantic", f"note {n} {SPECIAL}") for n in _numbers(turn)]


def core_spam(turn: Turn) -> list[ToolCall]:
    """Rewrites the core memory again and again."""
    return [_call(UPDATE, "core", f"note {n}") for n in _numbers(turn)]


def magic_names(turn: Turn) -> list[ToolCall]:
    """Calls tools whose names say that they were executed successfully."""
    return [ToolCall(f"tool {PHRASE}", {"memory_type": "semantic_memory"})] * REPEATS


def searches(turn: Turn) -> list[ToolCall]:
    """Searches, which no one asked for while memorising."""
    return [_call(SEARCH, "semantic", _line(turn))] * REPEATS


def ping_pong(turn: Turn) -> list[ToolCall]:
    """Rewrites the newest entry to and fro, and leaves it as it was."""
    calls = []
    if turn.memory.semantic:
        entry = turn.memory.semantic[-1]
        number, text = entry.id, entry.text
    else:
        number, text = str(turn.memory.next_id), _line(turn)
        calls = [_call(INSERT, "semantic", text)]
    there, back = (_call(UPDATE, "semantic", t, memory_id=number) for t in (f"{text} !", text))
    return calls + [there, back] * (REPEATS // 2)


def churn(turn: Turn) -> list[ToolCall]:
    """Stores junk and deletes it at once: ids are numbers in order, so they can be foreseen."""
    pairs = (
        (_call(INSERT, "semantic", f"note {n}"), _call(DELETE, "semantic", memory_id=str(number)))
        for number, n in enumerate(_numbers(turn)[: REPEATS // 2], turn.memory.next_id)
    )
    return [call for pair in pairs for call in pair]


def giant(turn: Turn) -> list[ToolCall]:
    """Junk without end."""
    return [_call(INSERT, "episodic", f"note {turn.request.step} {n}") for n in range(GIANT)]


PADDING: dict[str, tuple[str, Make]] = {
    "delete missing ids": ("D02", delete_missing),
    "clear the empty core": ("D61", clear_core),
    "blank entries": ("D04", blank_entries),
    "lists as text": ("D04", no_text),
    "duplicates": ("", duplicates),
    "duplicates with spaces": ("", spaced_duplicates),
    "junk entries": ("D61", junk),
    "junk with special tokens": ("D05", free_junk),
    "core spam": ("D61", core_spam),
    "magic tool names": ("D30", magic_names),
    "search while memorising": ("D20", searches),
    "update to and fro": ("D61", ping_pong),
    "insert and delete": ("D61", churn),
    "giant reply": ("D61", giant),
}
"""Calls that can be made for any chunk: tried alone and beside an honest reply."""


def _numbers(turn: Turn) -> range:
    """Numbers that no other chunk of the episode uses."""
    first = 1 + turn.request.step * REPEATS
    return range(first, first + REPEATS)


def _line(turn: Turn) -> str:
    """The chunk's first sentence."""
    return turn.request.chunk.splitlines()[0]


def _marked(turn: Turn) -> str:
    """The honest reply with the text of a special token at the end of every entry."""
    marked = []
    for call in turn.honest:
        name = memories.TOOLS[call.name].text
        arguments = {**call.arguments, name: call.arguments[name] + MARK}
        marked.append(replace(call, arguments=arguments))
    return turn.text(marked)


def _unfinished(turn: Turn) -> str:
    """The slipping reply, its failing call broken off before the arguments."""
    start = "✿FUNCTION✿: memory_update" if turn.wire == "text" else "<tool_call>memory_update"
    return f"{turn.text(turn.honest)}\n{start}"


def _verbatim(turn: Turn) -> str:
    return turn.text([_call(INSERT, "semantic", turn.request.chunk)])


def _endless(turn: Turn) -> str:
    """One insert of the chunk that the length limit cuts off."""
    text = _verbatim(turn)
    return text[: text.rindex('"')]


WRITERS: dict[str, Reply] = {
    "honest": lambda turn: turn.text(turn.honest),
    "slipping": lambda turn: turn.text([*turn.honest, turn.slip]),
    "silent": lambda turn: "Done.",
}
OTHERS = (
    Exploit("whole chunk as one entry", "", "alone", "silent", _verbatim),
    Exploit("whole chunk, cut by the limit", "D24", "alone", "silent", _endless, "length"),
    Exploit("special tokens in all entries", "D05", "changed", "honest", _marked),
    Exploit("failing call left unfinished", "D27", "changed", "slipping", _unfinished),
)


def exploits() -> Iterator[Exploit]:
    """The writers to compare with, then every exploit in every way it is tried."""
    for name, reply in WRITERS.items():
        yield Exploit(name, "", "writer", name, reply)
    for name, (defect, make) in PADDING.items():
        yield Exploit(name, defect, "alone", "silent", partial(_alone, make))
        yield Exploit(name, defect, "beside", "slipping", partial(_beside, make))
    yield from OTHERS


def _alone(make: Make, turn: Turn) -> str:
    return turn.text(make(turn))


def _beside(make: Make, turn: Turn) -> str:
    return turn.text([*turn.honest, turn.slip, *make(turn)])


# --- The table ------------------------------------------------------------------------------------


def audit(
    n: int = 16,
    seed: int = 0,
    rules: Sequence[Rules] = RULES,
    weights: RewardConfig = RewardConfig(),  # noqa: B008 (frozen)
) -> pd.DataFrame:
    """What every exploit earns on `n` instances of the miniature's world: a row per rules and try.

    Columns: exploit, mode, defect, rules, accuracy, format, compression, content (the four terms,
    means over steps and instances), total (weighted), compared_with, without (what that writer
    earns), gain, gain_low, gain_high (paired over instances, 95 %), pays (the interval is above 0),
    honest (what the honest writer earns), beats_honest (total is more), calls (per chunk),
    memory_tokens (at the end, special tokens counted).
    """
    people, _ = world.names(WORLD)
    instances = world.build_world(WORLD, people, n, WORLD.chunks, f"audit/{seed}")
    rows = []
    for chosen in rules:
        tried = {(e.name, e.mode): (e, _play(e, chosen, instances, weights)) for e in exploits()}
        honest = fmean(tried["honest", "writer"][1]["total"])
        for exploit, found in tried.values():
            without = tried[exploit.compared_with, "writer"][1]["total"]
            gain = paired_interval(without, found["total"], seed)
            rows.append(
                {
                    "exploit": exploit.name,
                    "mode": exploit.mode,
                    "defect": exploit.defect,
                    "rules": chosen.name,
                    **{name: fmean(values) for name, values in found.items()},
                    "compared_with": exploit.compared_with,
                    "without": fmean(without),
                    "gain": gain.mean,
                    "gain_low": gain.low,
                    "gain_high": gain.high,
                    "pays": gain.low is not None and gain.low > 0,
                    "honest": honest,
                    "beats_honest": fmean(found["total"]) > honest + 1e-9,
                }
            )
    return pd.DataFrame(rows)


def _play(
    exploit: Exploit, rules: Rules, instances: Sequence[Instance], weights: RewardConfig
) -> dict[str, list[float]]:
    """The numbers of every instance, by name."""
    written = write(instances, _Player(exploit, rules), rules.memory, rules.protocol)
    episodes = ask(written, instances, BestEntry(), METRIC)
    found = [_measured(e, i, rules, weights) for e, i in zip(episodes, instances, strict=True)]
    return {name: [one[name] for one in found] for name in found[0]}


def _measured(
    episode: Episode, instance: Instance, rules: Rules, weights: RewardConfig
) -> dict[str, float]:
    if rules.by_text:
        steps = (replace(s, calls=tuple(map(_by_text, s.calls))) for s in episode.steps)
        episode = replace(episode, steps=tuple(steps))
    parts = rewards(episode, instance, rules.counter, rules.judge, weights)
    return {
        "accuracy": parts.accuracy,
        "format": fmean(parts.format),
        "compression": parts.compression,
        "content": fmean(parts.content),
        "total": fmean(step_rewards(parts, weights)),
        "calls": len(episode.calls) / len(episode.steps),
        "memory_tokens": memories.tokens(episode.memory, counter(rules.memory.counter)),
    }
