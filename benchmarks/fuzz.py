"""Tries replies, calls, answers and texts at random, and counts what breaks a promise.

    python benchmarks/fuzz.py --seconds 200 --seed 0
    python benchmarks/fuzz.py "replies are read" --tries 1000000

Every line of the table is one promise: how often it was tried, and how often it was broken. The
exit code is 1 if any was. The same seed and number of tries (`--tries`) give the same texts. What
was measured stands in docs/guarantees.md.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
import unicodedata
from collections.abc import Callable

from memalpha_kit.entries import essence
from memalpha_kit.errors import InputError
from memalpha_kit.method import judges, metrics
from memalpha_kit.method.calls import parse_reply, parse_tools, render_calls
from memalpha_kit.method.memory import apply, empty, replay
from memalpha_kit.models.replies import Failed, read_reply
from memalpha_kit.records import ToolCall, ToolUse
from memalpha_kit.release import calls as released
from memalpha_kit.settings import MemoryConfig
from memalpha_kit.text import without_thinking
from memalpha_kit.tokens import counter

WORDS = (
    *(
        "Nora",
        "keeps",
        "bees",
        "in",
        "Oslo",
        "the",
        "A",
        "C++",
        "-5",
        "3.5",
        "1990–1995",
        "O’Brien",
    ),
    *("蜂を飼う", "諾拉", "ผึ้ง", "मधुमक्खी", "النَّحل", "пчёлы", "Zoë", "٣٥", "한국어", "🙂"),
    *("\u200b", "\u00a0", "\u2060", "\u3164", "\ud800", "\x07", "😀", "…", "“x”", "«y»"),
)
DEBRIS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "✿FUNCTION✿: ", "✿ARGS✿: ", "✿RESULT✿"),
    *("{", "}", "[", "]", '"', "'", ",", ":", "\\", "\n", " ", "```json\n", "```", "✿", "Answer: "),
    *('{"name": "memory_delete", "arguments": {"memory_type": "core_memory"}}', "null", "0712"),
    *(
        '{"memory_type": "semantic_memory", "content": "x"}',
        "\\boxed{",
        "\\text{7}",
        "}$",
        "7",
        ";",
    ),
    *(
        '"new_memory_insert"',
        "yes",
        "No.",
        "<label>CORRECT</label>",
        '{"VALID": true, "ISSUES": []',
    ),
)
FIXED, RELEASE = MemoryConfig(), MemoryConfig(behaviour="release")
TOOLS = ("new_memory_insert", "memory_update", "memory_delete", "search_memory", "other")
TYPES = ("core_memory", "semantic", "episodic_memory", "lexical", 7, None)
SPREAD = ("\n", ", ", " ", ";", " and then ", "}", "\n\n")


def text(draw: random.Random, parts: tuple[str, ...] = WORDS + DEBRIS, most: int = 12) -> str:
    """Some of the parts in any order."""
    return draw.choice(("", " ")).join(draw.choices(parts, k=draw.randint(0, most)))


def call(draw: random.Random) -> ToolCall:
    """A call that may or may not be possible."""
    arguments = {"memory_type": draw.choice(TYPES)}
    for name in ("content", "new_content", "query"):
        if draw.random() < 0.4:
            arguments[name] = text(draw).replace("\ud800", "?")
    if draw.random() < 0.5:
        arguments["memory_id"] = draw.choice(("1", "2", "0712", True, None))
    return ToolCall(draw.choice(TOOLS), arguments)


def outcomes(calls: tuple[ToolCall, ...]) -> list[object]:
    """Name and arguments, or the code, of each call."""
    return [one.detail or (one.name, dict(one.arguments)) for one in calls]


def replies_are_read(draw: random.Random) -> bool:
    """Any reply gives calls, parsed or malformed, the same each time, that can be applied."""
    reply, wire = text(draw, most=30), draw.choice(("qwen", "text", "compact"))
    how = (draw.choice(("stop", "length")), wire, draw.random() < 0.3, draw.random() < 0.3)
    config = draw.choice((FIXED, RELEASE))
    calls = parse_reply(reply, *how, config.behaviour)
    assert calls == parse_reply(reply, *how, config.behaviour)
    memory, done = empty(config), []
    for one in calls:
        memory, applied = apply(memory, one, config)
        done.append(applied)
    json.dumps([dict(one.arguments) for one in done]).encode()
    return replay(done, config) == memory


def calls_come_back(draw: random.Random) -> bool:
    """Calls that were rendered are read back, whatever their texts hold."""
    wire = draw.choice(("qwen", "text"))
    calls = [call(draw) for _ in range(draw.randint(0, 4))]
    calls = [
        ToolCall(c.name, {k: v for k, v in c.arguments.items() if v is not None}) for c in calls
    ]
    return outcomes(parse_reply(render_calls(calls, wire), "stop", wire)) == outcomes(tuple(calls))


def no_call_vanishes(draw: random.Random) -> bool:
    """Several calls in one place are as many calls, or counted attempts."""
    n, wire = draw.randint(1, 5), draw.choice(("qwen", "text", "native"))
    objects = []
    for k in range(n):
        arguments = {"memory_type": "semantic_memory", "content": f"{k} {text(draw, WORDS)}"}
        whole = {"name": "new_memory_insert", "arguments": arguments}
        source = json.dumps(whole if wire == "qwen" else arguments)
        objects.append(source[:-1] if draw.random() < 0.2 and k < n - 1 else source)
    joined = draw.choice(SPREAD).join(objects)
    if all(one.endswith("}") and json_ok(one) for one in objects) and draw.random() < 0.3:
        joined = f"[{', '.join(objects)}]"
    if wire == "native":
        calls = parse_tools([ToolUse("1", "new_memory_insert", joined)], "stop")
    elif wire == "text":
        calls = parse_reply(f"✿FUNCTION✿: new_memory_insert\n✿ARGS✿: {joined}", "stop", "text")
    else:
        calls = parse_reply(f"<tool_call>{joined}</tool_call>", "stop", "qwen")
    return len(calls) >= n


def json_ok(source: str) -> bool:
    """Whether it is one whole JSON value."""
    try:
        json.loads(source)
    except ValueError:
        return False
    return True


def structures_are_read_as_text(draw: random.Random) -> bool:
    """Arguments of a structured call are read and repaired as those of a text are."""
    source = json.dumps({"memory_type": "core_memory", "new_content": text(draw, WORDS)})
    damage = draw.choice(("none", "brace", "comma", "quotes", "string", "fence", "debris"))
    source = {
        "none": source,
        "brace": source[:-1],
        "comma": f"{source[:-1]},}}",
        "quotes": source.replace('"', "'"),
        "string": json.dumps(source),
        "fence": f"```json\n{source}\n```",
        "debris": text(draw, tuple(p for p in DEBRIS if "✿" not in p)),
    }[damage].strip()
    native = parse_tools([ToolUse("1", "memory_update", source)], "stop")
    as_text = parse_reply(f"✿FUNCTION✿: memory_update\n✿ARGS✿: {source}", "stop", "text")
    same = outcomes(native) == outcomes(as_text)
    return same or "<think>" in source or source.startswith(":")


PUBLISHED = re.compile(
    r"✿FUNCTION✿:\s*([^\n]+)\s*✿ARGS✿:\s*([^✿]+?)(?=✿RESULT✿|✿RETURN✿|✿FUNCTION✿|$)", re.DOTALL
)


def released_calls_are_the_published_ones(draw: random.Random) -> bool:
    """The released reader finds what the published regular expression finds."""
    reply = text(draw, (*DEBRIS, "memory_delete", *("✿FUNCTION✿: x\n✿ARGS✿: {}",) * 9), 14)
    reply = reply.partition("✿RESULT✿:")[0].strip()
    ours = [(name, source) for name, source, _ in released._matches(reply)]
    return ours == [(a.strip(), b.strip()) for a, b in PUBLISHED.findall(reply)]


def scores_are_shares(draw: random.Random) -> bool:
    """A score is in [0, 1], the same each time; a gold answer that is blank is an error."""
    name = draw.choice(metrics.METRICS.names())
    said, golds = text(draw, most=20), [text(draw, WORDS, 4) for _ in range(draw.randint(1, 3))]
    try:
        score = metrics.score(name, said, golds)
    except InputError:
        return True
    most = len(golds) if name == "em@release-mem1" else 1  # it is a sum
    return 0 <= score <= most and score == metrics.score(name, said, golds)


FORMS = {"'": "’", '"': "”", " ": "\u00a0", "-": "‑", "o": "o\u200b", ".": "．", "5": "５"}


def spelling_does_not_count(draw: random.Random) -> bool:
    """Under our rules an answer scores the same however it is typed."""
    words = tuple(w for w in WORDS if essence(w) and w != "\ud800")
    gold = " ".join(draw.choices(words, k=draw.randint(1, 3)))
    said = " ".join((*draw.choices(words, k=draw.randint(0, 4)), gold))
    typed = unicodedata.normalize(draw.choice(("NFC", "NFD")), said)
    for plain, other in FORMS.items():
        if draw.random() < 0.5:
            typed = typed.replace(plain, other)
    name = draw.choice(("exact", "substring", "contains", "token_f1", "rouge_l"))
    return metrics.score(name, said, [gold]) == metrics.score(name, typed, [gold])


def an_answer_is_itself(draw: random.Random) -> bool:
    """An answer that is the gold is right, and thinking before it changes nothing."""
    words = tuple(w for w in WORDS if essence(w) and w not in ("\ud800", "🙂", "😀", "…"))
    gold = " ".join(draw.choices(words, k=draw.randint(1, 4)))
    name = draw.choice(("exact", "substring", "contains", "token_f1", "rouge_l"))
    thought = f"<think>{text(draw, WORDS)}</think>" if draw.random() < 0.5 else ""
    if not re.search(r"\w", gold):
        return True
    return abs(metrics.score(name, thought + gold, [gold]) - 1) < 1e-9


def reasoning_is_no_answer(draw: random.Random) -> bool:
    """A completion is read or is Failed; one without a word beside its reasoning is Failed."""
    content = draw.choice((None, "", " ", text(draw), [], 7, {"a": 1}))
    said = {"content": content}
    field = draw.choice(("", "reasoning", "reasoning_content", "reasoning_details"))
    if field:
        said[field] = draw.choice(("Hm.", [{"text": "Hm."}]))
    if draw.random() < 0.2:
        function = {"name": draw.choice(("x", None)), "arguments": draw.choice((text(draw), None))}
        said["tool_calls"] = draw.choice(([{"function": function}], [7], None, {}))
    finish = draw.choice(("stop", "length", None, "tool_calls", "error", 3))
    usage = draw.choice((None, {}, {"prompt_tokens": 5, "completion_tokens": 400}, 7))
    choices = draw.choice(([{"message": said, "finish_reason": finish}], [], None, [7], [{}]))
    try:
        reply = read_reply(draw.choice(({"choices": choices, "usage": usage}, choices, None)))
    except Failed:
        return True
    blank = not (reply.text or "").strip() and not reply.tools
    return reply.finish == "length" or not blank


def judges_are_read(draw: random.Random) -> bool:
    """What a judge says is a verdict, yes, no, a label, or nothing."""
    reply = text(draw, most=20)
    judges.read_content(reply)
    assert judges.read_yes_no(reply) in (True, False, None)
    assert judges.read_label(reply) in (True, False, None)
    return without_thinking(reply) == without_thinking(reply)


def look_alikes_are_stored_once(draw: random.Random) -> bool:
    """No list of a memory holds two texts that look the same, or one that looks like nothing."""
    memory = empty(FIXED)
    base = text(draw, WORDS, 4)
    for _ in range(draw.randint(1, 12)):
        form = unicodedata.normalize(draw.choice(("NFC", "NFD")), base).replace("\ud800", "")
        content = draw.choice(("", "\u200b", " \u00a0")) + form + draw.choice(("", "\u3164", "\n"))
        arguments = {"memory_type": "semantic_memory", "content": content, "new_content": content}
        name = draw.choice(("new_memory_insert", "memory_update"))
        one = ToolCall(name, arguments | {"memory_id": draw.choice(("1", "2"))})
        before = memory
        memory, done = apply(memory, one, FIXED)
        if (done.status == "ok") == (memory == before):
            return False
    texts = [essence(entry.text) for entry in memory.semantic]
    return len(set(texts)) == len(texts) and all(texts)


COUNT = counter("wordpunct").count


def spelling_saves_no_tokens(draw: random.Random) -> bool:
    """Words do not become cheaper by what stands between them, and cutting keeps to its limit."""
    said = " ".join(draw.choices([w for w in WORDS if w != "\ud800"], k=draw.randint(1, 20)))
    n = draw.randint(0, 20)
    cut = counter("wordpunct").cut(said, n)
    joined = said.replace(" ", draw.choice(("_", "\u200b", "-", "\u2060", ".")))
    letters = sum(c.isalnum() for c in said)
    glued = COUNT("".join(said.split()))
    return COUNT(joined) >= COUNT(said) and COUNT(cut) <= n and 8 * glued >= letters


PROMISES: dict[str, Callable[[random.Random], bool]] = {
    made.__name__.replace("_", " "): made
    for made in (
        *(replies_are_read, calls_come_back, no_call_vanishes, structures_are_read_as_text),
        *(released_calls_are_the_published_ones, scores_are_shares, spelling_does_not_count),
        *(an_answer_is_itself, reasoning_is_no_answer, judges_are_read),
        *(look_alikes_are_stored_once, spelling_saves_no_tokens),
    )
}


def tried(name: str, seed: int, seconds: float, tries: int | None) -> tuple[int, list[str], float]:
    """How often a promise was tried, what broke it, and the slowest try in seconds."""
    start, n, broken, slowest = time.monotonic(), 0, [], 0.0
    while n != tries and (tries or time.monotonic() - start < seconds):
        began = time.perf_counter()
        try:
            kept, why = PROMISES[name](random.Random(f"{seed}/{name}/{n}")), ""
        except Exception as error:
            kept, why = False, repr(error)[:200]
        slowest = max(slowest, time.perf_counter() - began)
        if not kept:
            broken.append(f"try {n} {why}")
        n += 1
    return n, broken, slowest


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("promises", nargs="*", help=f"of {', '.join(PROMISES)} [all]")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all")
    parser.add_argument("--tries", type=int, help="of each promise, in place of a time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    failed = 0
    print("| promise | tried | broken | slowest (s) |\n| --- | ---: | ---: | ---: |")
    names = options.promises or PROMISES
    for name in names:
        share = options.seconds / len(names)
        n, broken, slowest = tried(name, options.seed, share, options.tries)
        print(f"| {name} | {n} | {len(broken)} | {slowest:.2f} |", flush=True)
        failed += len(broken)
        for line in broken[:3]:
            print(f"{name}: {line}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
