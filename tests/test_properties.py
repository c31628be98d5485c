"""Properties that hold for any text, tried on a few hundred drawn ones, the same ones every time.

Guided by what of the kit they reach, for as long as it is let run (`pip install hypofuzz`):

    MEMALPHA_FUZZ=1 hypothesis fuzz -n 1 --no-dashboard -- tests/test_properties.py

`benchmarks/fuzz.py` tries the promises about replies and scores millions of times.
"""

from __future__ import annotations

import functools
import json
import os
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memalpha_kit.data.chunks import pack_sentences
from memalpha_kit.data.instances import load_instances, save_instances
from memalpha_kit.entries import essence
from memalpha_kit.errors import InputError
from memalpha_kit.method import metrics
from memalpha_kit.method.calls import parse_reply, parse_tools, render_calls
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE, apply, empty, tokens
from memalpha_kit.records import QA, ToolCall, ToolUse, make_instance
from memalpha_kit.server import wire
from memalpha_kit.settings import MemoryConfig
from memalpha_kit.text import complete_object, repaired_value
from memalpha_kit.tokens import counter

FIXED = MemoryConfig()


def tried(n: int) -> settings:
    steady = "MEMALPHA_FUZZ" not in os.environ
    return settings(max_examples=n, deadline=None, derandomize=steady)


# --- Replies --------------------------------------------------------------------------------------

PIECES = (
    "<think>·</think>·<tool_call>·</tool_call>·✿FUNCTION✿: ·✿ARGS✿: ·✿RESULT✿·{·}·[·]·\"·'·:·,·\\·"
    '\n·null·```json\n·{"name": "memory_delete", "arguments": {"memory_type": "core_memory"}}'
    "·\ud800·蜂·7·\x00·✿FUNC·✿·```·(·)·//·/*·#· ·07·-1·1e9·NaN·true·memory_update·new_memory_insert"
    '·"name":·"arguments":·"memory_type":·"core_memory"·"content":·"new_content":·"memory_id":·\\ud800'
    '·\\u00·😀·“·✿FUNCTION✿: memory_update\n✿ARGS✿: {·<tool_call>{"arguments": {·{"a": "·Done'
)
DEBRIS = st.lists(st.sampled_from(PIECES.split("·")), max_size=25).map("".join)
CONTENT = st.text(max_size=30)


WIRES = st.sampled_from(["qwen", "text", "compact", "lines"])
ENDS, RULES = st.sampled_from(["stop", "length"]), st.sampled_from(["fixed", "release"])
HOW = st.tuples(ENDS, st.booleans(), st.booleans(), RULES)  # thinking, truncated calls run


@tried(3000)
@example("{'```json[?```json[", "text", ("stop", False, False, "fixed"))  # json_repair asserts
@given(DEBRIS | st.text(), WIRES, HOW)
def test_any_reply_is_calls_parsed_or_malformed_and_they_can_be_applied(reply, wire, how):
    finish, *rest = how
    calls, memory = parse_reply(reply, finish, wire, *rest), empty(FIXED)
    assert calls == parse_reply(reply, finish, wire, *rest)
    for call in calls:
        assert call.status in ("parsed", "malformed")
        memory, done = apply(memory, call, FIXED)
        assert done.status in ("ok", "skipped", "rejected", "malformed")
        json.dumps([done.name, dict(done.arguments), done.raw], ensure_ascii=False).encode()
    for read in (complete_object, repaired_value):
        for text in (reply, "{" + reply):
            assert isinstance(read(text), dict | list | None)


@tried(200)
@given(st.lists(CONTENT, min_size=1, max_size=4), st.integers(0, 400))
def test_a_reply_that_is_cut_anywhere_gives_the_calls_that_were_whole(contents, at):
    asked = [ToolCall(INSERT, {"memory_type": "core", "content": text}) for text in contents]
    reply = render_calls(asked, "qwen")
    kept = [c for c in parse_reply(reply[:at], "length", "qwen") if c.status == "parsed"]
    assert [dict(c.arguments) for c in kept] == [dict(c.arguments) for c in asked[: len(kept)]]


LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
TREE = st.recursive(
    LEAF, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x)
)


@tried(200)
@given(TREE)
def test_any_structured_arguments_are_one_call_or_more(value):
    calls = parse_tools([ToolUse("1", INSERT, json.dumps(value))], "stop")
    assert calls and all(call.status in ("parsed", "malformed") for call in calls)


# --- Memory ---------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["bees hum", " bees  hum", "Zo\u00eb", "Zoe\u0308", "boats", "\u200b", ""])
STORES = st.sampled_from(["semantic", "episodic"])
OPERATIONS = st.tuples(st.sampled_from([INSERT, UPDATE, DELETE]), STORES, TEXTS, st.integers(0, 7))


class Naive:
    """The paper's memory as dictionaries: what each operation should have done."""

    def __init__(self) -> None:
        self.next, self.lists = 1, {"semantic": {}, "episodic": {}}

    def do(self, name: str, store: str, text: str, number: int) -> str:
        entries, key = self.lists[store], str(number)
        others = [essence(t) for k, t in entries.items() if name == INSERT or k != key]
        if name != INSERT and key not in entries:
            return "rejected"
        if name == DELETE:
            del entries[key]
            return "ok"
        if not essence(text):
            return "rejected"
        if essence(text) in others or (name == UPDATE and essence(entries[key]) == essence(text)):
            return "skipped"
        key = str(self.next) if name == INSERT else key
        self.next += name == INSERT
        entries[key] = text
        return "ok"


@tried(300)
@given(st.lists(OPERATIONS, max_size=25))
def test_the_memory_does_what_a_naive_one_does(operations):
    memory, naive, count = empty(FIXED), Naive(), counter("wordpunct")
    for name, store, text, number in operations:
        arguments = {"memory_type": f"{store}_memory"}
        if name != DELETE:
            arguments["content" if name == INSERT else "new_content"] = text
        if name != INSERT:
            arguments["memory_id"] = str(number)
        before = memory
        memory, done = apply(memory, ToolCall(name, arguments), FIXED)
        assert done.status == naive.do(name, store, text, number), done
        assert (memory is before) or done.status == "ok"
    for store, entries in naive.lists.items():
        assert {e.id: e.text for e in getattr(memory, store)} == entries
    total = sum(count.count(t) for entries in naive.lists.values() for t in entries.values())
    assert tokens(memory, count) == total


# --- Packing and scoring --------------------------------------------------------------------------


@tried(300)
@given(st.text(st.sampled_from("ab .!?\n蜂。"), max_size=120), st.integers(1, 12))
def test_sentences_fill_chunks_that_fit_and_lose_nothing_but_white_space(text, limit):
    count = counter("wordpunct")
    chunks = pack_sentences(text, count, limit)
    assert all(0 < count.count(chunk) <= limit for chunk in chunks)
    assert "".join("".join(chunks).split()) == "".join(text.split())


NAMES = st.sampled_from([n for n in metrics.METRICS.names() if n != "em@release-mem1"])


@tried(400)
@given(
    NAMES, st.text(max_size=40), st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3)
)
def test_a_score_is_a_share_and_always_the_same(name, said, golds):
    try:
        score = metrics.score(name, said, golds)
    except InputError:
        return  # no gold answer that can be seen
    assert 0 <= score <= 1 and score == metrics.score(name, said, golds)


# --- Bodies of requests ---------------------------------------------------------------------------

KNOWN = st.sampled_from(
    [*wire.FIELDS, "name", "arguments", "content", "memory_type", "core", "semantic", "1"]
)
NODE = LEAF | st.sampled_from(["squad", "core", "new_memory_insert", "Who?", 1.5])
BODY = st.recursive(
    NODE, lambda x: st.lists(x, max_size=3) | st.dictionaries(KNOWN, x, max_size=5), max_leaves=20
)
SHAPES = st.sampled_from([wire.Questions, wire.AgenticQuestions, wire.Calls])
SECRET = "do not repeat me"


@tried(400)
@given(SHAPES, BODY | st.binary(max_size=40), st.integers(0, 400))
def test_a_body_of_anything_is_a_request_or_a_short_refusal_that_repeats_nothing(shape, said, cut):
    whole = said if isinstance(said, bytes) else json.dumps(said).encode()
    for body in (whole, whole[:cut], json.dumps({"memories": [SECRET], SECRET: 1}).encode()):
        try:
            asked = wire.read_body(shape, body, most_entries=5, most_items=5)
            assert all(n >= 0 for n in asked.counts().values())
        except wire.Refused as error:
            told = json.dumps([error.detail, error.items])
            assert (
                error.status_code in (400, 413, 422) and len(told) < 10_000 and SECRET not in told
            )


# --- Files ----------------------------------------------------------------------------------------

ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FILLED = ANYTHING.filter(str.strip)


@tried(100)
@given(st.lists(FILLED, min_size=1, max_size=3), FILLED, st.lists(FILLED, min_size=1, max_size=3))
def test_instances_of_any_text_are_read_as_they_were_saved(chunks, question, answers):
    saved = [make_instance("squad", chunks, [QA("q", question, tuple(answers))])]
    with TemporaryDirectory() as folder:
        save_instances(Path(folder) / "some.parquet", saved)
        assert load_instances(Path(folder) / "some.parquet") == saved


def read_or_refused(raw: bytes) -> None:
    """Raises if such a file is anything else."""
    with NamedTemporaryFile(suffix=".parquet") as file:
        Path(file.name).write_bytes(raw)
        try:
            load_instances(Path(file.name))
        except InputError as error:
            assert Path(file.name).name in str(error)


CELLS = (
    st.none() | st.text(max_size=8) | st.sampled_from(["[]", "[1]", '["a"]', '[{"question": "q"}]'])
)
COLUMNS = ("instance_id", "prompt", "chunks", "questions_and_answers", "data_source", "metadata")


@tried(200)
@given(st.fixed_dictionaries({name: CELLS for name in COLUMNS}), st.sampled_from((None, *COLUMNS)))
def test_a_row_of_anything_is_an_instance_or_an_error_that_names_the_file(row, missing):
    row = {k: v for k, v in row.items() if k != missing}
    pq.write_table(pa.Table.from_pylist([row]), held := BytesIO())
    read_or_refused(held.getvalue())


@functools.cache
def one_instance() -> bytes:
    """A parquet file."""
    with NamedTemporaryFile(suffix=".parquet") as file:
        one = make_instance("squad", ["c"], [QA("q", "Who?", ("x",))])
        save_instances(Path(file.name), [one])
        return Path(file.name).read_bytes()


@tried(100)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_damaged_parquet_is_read_or_refused(at, damage):
    raw = bytearray(one_instance())
    at %= len(raw)
    raw[at : at + len(damage)] = damage
    read_or_refused(bytes(raw))
