"""Calls: replies read as required and as published, the parse/render law, hostile replies."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha_kit.errors import InputError
from memalpha_kit.method.calls import parse_reply, parse_tools, read_calls, render_calls
from memalpha_kit.method.memory import replay
from memalpha_kit.records import Completion, ToolCall, ToolUse
from memalpha_kit.settings import MemoryConfig, ProtocolConfig

WIRES = ("qwen", "text", "compact", "lines")

FIXED = MemoryConfig(counter="words")

# --- The text format, as required and as published ------------------------------------------------

CORE = '{"memory_type": "core_memory"}'
CLEAR = ("memory_delete", {"memory_type": "core_memory"})
TWO = [CLEAR, CLEAR]


def adds(content):
    return ("new_memory_insert", {"memory_type": "semantic_memory", "content": content})


def add(content):
    return f'F: new_memory_insert⏎A: {{"memory_type": "semantic_memory", "content": "{content}"}}'


UNQUOTED = (
    'F: memory_update⏎A: {"memory_type": "semantic_memory", "memory_id": 0712, "new_content": "x"}'
)


def revises(memory_id):
    arguments = {"memory_type": "semantic_memory", "memory_id": memory_id, "new_content": "x"}
    return ("memory_update", arguments)


THREE = [("x", {"a": value}) for value in (1, 2, "b")]


def wired(text):
    return text.replace("F: ", "✿FUNCTION✿: ").replace("A: ", "✿ARGS✿: ").replace("⏎", "\n")


# number, reply, ended by, calls as published, calls required; a lone text is a malformed code
CASES = [
    (1, add("a"), "stop", [adds("a")], [adds("a")]),
    (2, f"So.⏎{add('a')}⏎F: memory_delete⏎A: {CORE}", "stop", *[[adds("a"), CLEAR]] * 2),
    (3, f"F: memory_delete A: {CORE}", "stop", [CLEAR], [CLEAR]),
    (4, f"F: memory_delete⏎A: {CORE} // clear⏎Done.", "stop", [CLEAR], [CLEAR]),
    (5, add("x").replace('"', "'").replace("}", ",}"), "stop", [adds("x")], [adds("x")]),
    (6, add("Nora ke").removesuffix('"}'), "length", [adds("Nora ke")], ["truncated"]),
    (
        7,
        'F: new_memory_insert⏎A: {"content": "set {a} then b", "memory_type": "sem',
        "length",
        [("new_memory_insert", {"content": "set {a}"})],
        ["truncated"],
    ),
    (8, f"F: memory_delete⏎A: {CORE}⏎✿FUNC", "length", [], [CLEAR]),
    (9, "F: memory_del", "length", [], ["truncated"]),
    (10, f"F: memory_delete⏎F: memory_delete⏎A: {CORE}", "stop", [CLEAR], ["malformed", CLEAR]),
    (11, add("she likes ✿ icons"), "stop", [], [adds("she likes ✿ icons")]),
    (12, f"{add('a')}⏎A: {CORE}", "stop", [], [adds("a"), "malformed"]),
    (13, "F: memory_delete⏎A: none", "stop", ["bad_json"], ["bad_json"]),
    (14, f"F: memory_delete⏎A: {CORE}⏎✿RESULT✿: ok⏎F: x⏎A: {CORE}", "stop", [CLEAR], [CLEAR]),
    (15, f"<think>maybe F: memory_delete⏎A: {CORE}⏎</think>⏎Done", "stop", [CLEAR], []),
    (
        16,
        f'<tool_call>{{"name": "memory_delete", "arguments": {CORE}}}</tool_call>',
        "stop",
        [],
        [],
    ),
    (17, "Done", "stop", [], []),
    (18, UNQUOTED, "stop", [revises(712)], [revises("0712")]),
    (19, f"✿FUNCTION✿ memory_delete⏎✿ARGS✿ {CORE}", "stop", [], [CLEAR]),
    (20, f"F: memory_delete⏎A: [{CORE}]", "stop", ["bad_json"], [CLEAR]),
    (
        21,
        f"F: x A: {{}} F: memory_delete A: {CORE}",
        "stop",
        [(wired("x A: {} F: memory_delete"), CLEAR[1])],
        [("x", {}), CLEAR],
    ),
    (22, f"F: a✿b⏎A: {CORE}", "stop", [("a✿b", CLEAR[1])], [("a✿b", CLEAR[1])]),
    (23, f"F: memory_delete  ⏎ ⏎A:   {CORE}  ⏎⏎", "stop", [CLEAR], [CLEAR]),
    (24, f"✿RESULT✿⏎{add('a')}", "stop", [adds("a")], []),
    (25, f"✿RETURN✿: ⏎{add('a')}", "stop", [adds("a")], []),
    (26, f"F: memory_delete⏎A: {CORE}{CORE}", "stop", [CLEAR], TWO),
    (27, "✿FUNCTION✿", "stop", [], ["malformed"]),  # a whole marker at the end is an attempt
    (28, "F: x⏎✿ARGS✿", "stop", [], ["bad_json"]),
    (29, f"F: memory_delete⏎A: {CORE[:-1]}⏎✿RESULT✿: ok", "length", [CLEAR], [CLEAR]),
    (30, 'F: x⏎A: {"a": 1} or {"a": 2}, {"a": "b"}', "stop", ["bad_json"], THREE),
]


def outcomes(calls):
    """Name and arguments of each call, or the code of a malformed one."""
    return [c.detail or (c.name, dict(c.arguments)) for c in calls]


@pytest.mark.parametrize(("n", "reply", "finish", "release", "required"), CASES)
def test_the_tabulated_replies_are_read_as_required_and_as_released(
    n, reply, finish, release, required
):
    text = wired(reply)
    assert outcomes(parse_reply(text, finish, "text")) == required
    assert outcomes(parse_reply(text, finish, "text", behaviour="release")) == release
    for call in parse_reply(text, finish, "text"):
        assert call.raw in text
        assert call.status == ("malformed" if call.detail else "parsed")


def test_a_truncated_attempt_keeps_its_name_is_the_last_one_and_runs_only_if_told_to():
    open_call = add("Nora ke").removesuffix('"}')
    text, two = wired(open_call), wired(f"{open_call}⏎{add('b')}")
    assert parse_reply(text, "length", "text")[0].name == "new_memory_insert"
    executed = parse_reply(text, "length", "text", execute_truncated=True)
    assert outcomes(executed) == outcomes(parse_reply(text, "stop", "text")) == [adds("Nora ke")]
    assert outcomes(parse_reply(two, "length", "text")) == [adds("Nora ke"), adds("b")]


C = "<call>"  # stands for a call in the format
MENTIONED = {
    f"{C}</think>{C}": (False, 2),
    f"<think>{C}</think>{C}": (False, 1),
    f" <think>a</think>\n<think>{C}</think>{C}{C}": (False, 2),
    f"<think>{C}": (False, 0),
    f"Say it. <think> is a tag. {C}": (False, 1),
    f"{C}Closes with </think>. {C} <think> {C}": (False, 3),
    f"So {C} it is.</think>{C}": (True, 1),
    f"<think>So {C}</think>{C} and </think> {C}": (True, 2),
    f"{C}": (True, 0),
}
"""reply: (was the model asked to think, calls)"""


@pytest.mark.parametrize("wire", [wire for wire in WIRES if wire != "lines"])
@pytest.mark.parametrize("reply", MENTIONED)
def test_thinking_is_a_block_at_the_start_and_elsewhere_a_tag_is_text(reply, wire):
    thinking, n = MENTIONED[reply]
    text = reply.replace(C, render_calls([ToolCall(*CLEAR)], wire) + " ")
    assert outcomes(parse_reply(text, "stop", wire, thinking=thinking)) == [CLEAR] * n


@pytest.mark.parametrize("content", ["closes with </think>", "<think>", "<think>a</think>b"])
def test_a_stored_text_may_mention_thinking(content):
    body = json.dumps({"name": "new_memory_insert", "arguments": adds(content)[1]})
    three = f"<tool_call>{DELETE}</tool_call><tool_call>{body}</tool_call><tool_call>{DELETE}"
    expected = [CLEAR, adds(content), CLEAR]
    assert outcomes(parse_reply(three, "stop", "qwen")) == expected
    after = f"First <tool_call>{body}</tool_call>, then more.</think>{three}"
    assert outcomes(parse_reply(after, "stop", "qwen", thinking=True)) == expected


# --- Several calls in one place -------------------------------------------------------------------


def native(body, close="</tool_call>"):
    return f"<tool_call>\n{body}\n{close}"


DELETE = f'{{"name": "memory_delete", "arguments": {CORE}}}'
MARKS, KEY = "✿FUNCTION✿: memory_delete\n✿ARGS✿: ", "memory_type"
SEVERAL = {
    "a line break between": ("qwen", native(f"{DELETE}\n{DELETE}"), TWO),
    "a comma between": ("qwen", native(f"{DELETE}, {DELETE}"), TWO),
    "a list": ("qwen", native(f"[{DELETE}, {DELETE}]"), TWO),
    "after the closing tag": ("qwen", native(DELETE) + f"\n{DELETE}", TWO),
    "after the closing tag, closed again": ("qwen", f"{native(DELETE)},{DELETE}</tool_call>", TWO),
    "two lists of arguments": ("qwen", native(DELETE.replace(CORE, f"[{CORE}, {CORE}]")), TWO),
    "text for arguments": (
        "qwen",
        native(json.dumps({"name": "memory_delete", "arguments": CORE * 2})),
        TWO,
    ),
    "the second broken": ("qwen", native(f'{DELETE} {{"name": x{"{" * 80}'), [CLEAR, "bad_json"]),
    "the second no object": ("qwen", native(f"[{DELETE}, 7]"), [CLEAR, "bad_json"]),
    "the second without a name": ("qwen", native(f"{DELETE} {{}}"), [CLEAR, "malformed"]),
    "unquoted ids": (
        "qwen",
        native(DELETE.replace("}}", ', "memory_id": 07}}') + "\n" + DELETE),
        [("memory_delete", CLEAR[1] | {"memory_id": "07"}), CLEAR],
    ),
    "a list after the closing tag": ("qwen", native(DELETE) + f"\n[{DELETE}]", TWO),
    "a fence after the closing tag": ("qwen", native(DELETE) + f"\n```json\n{DELETE}\n```", TWO),
    "a semicolon between": ("qwen", native(f"{DELETE}; {DELETE}"), TWO),
    "a word between": ("qwen", native(f"{DELETE} and {DELETE}"), TWO),
    "a brace too many": ("qwen", native(f"{DELETE}}}{DELETE}"), TWO),
    "a brace too many before the closing tag": ("qwen", native(f"{DELETE}}}") + DELETE, TWO),
    "the first broken": ("qwen", native(f"{DELETE[:-1]}\n{DELETE}"), TWO),
    "no call after the closing tag": ("qwen", native(DELETE) + ' {"a": 1} {"b": 2}', [CLEAR]),
    "two objects after the marker": ("text", f"{MARKS}{CORE}\n{CORE}", TWO),
    "a list after the marker": ("text", f"{MARKS}[{CORE}, {CORE}]", TWO),
    "a word after the marker": ("text", f"{MARKS}{CORE} and {CORE}", TWO),
    "a brace too many after the marker": ("text", f"{MARKS}{CORE}}}{CORE}", TWO),
    "the first after the marker broken": ("text", f"{MARKS}{CORE[:-1]},\n{CORE}", TWO),
    "both broken and nothing between": ("qwen", native(DELETE.replace('"', "'") * 2), TWO),
    "the first broken and nothing between": ("text", f"{MARKS}{CORE[:-1]},}}{CORE}", TWO),
    "a mark before": ("text", f"{MARKS}' {CORE}", [CLEAR]),
    "keys without quotes": ("text", f"{MARKS}{CORE}\n{CORE}".replace('"memory_type"', KEY), TWO),
    "two markers of arguments": (
        "text",
        f"{MARKS}{CORE}\n✿ARGS✿: {CORE}",
        [CLEAR, "malformed"],
    ),
    "an empty list": ("text", f"{MARKS}[]", ["bad_json"]),
    "the second after the marker broken": ("text", f"{MARKS}{CORE}{'{' * 80}", [CLEAR, "bad_json"]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_calls_in_one_place_are_each_a_call_or_a_counted_attempt(name):
    wire, reply, expected = SEVERAL[name]
    assert outcomes(parse_reply(reply, "stop", wire)) == expected


def test_braces_at_the_end_of_a_text_of_a_broken_call_begin_no_other_one():
    [call] = parse_reply(
        f"{MARKS}{{'memory_type': 'x', \"content\": \"a {{b}}{{\"}}", "stop", "text"
    )
    assert call.arguments["content"] == "a {b}{"


def test_only_the_cut_part_of_several_calls_is_truncated():
    expected = [CLEAR, "truncated"]
    reply = native(f"{DELETE}\n{DELETE[:-9]}", "")
    assert outcomes(parse_reply(reply, "length", "qwen")) == expected
    assert outcomes(parse_reply(f"{MARKS}{CORE}, {CORE[:-4]}", "length", "text")) == expected
    uses = [ToolUse(text, "memory_delete", text) for text in (CORE[:-1], CORE[:-2])]
    assert outcomes(parse_tools(uses, "length")) == expected


# --- Structured calls -----------------------------------------------------------------------------

STRUCTURED = {
    "whole": (CORE, [CLEAR]),
    "lost last brace": (CORE[:-1], [CLEAR]),
    "trailing comma": (CORE.replace("}", ",}"), [CLEAR]),
    "single quotes": (CORE.replace('"', "'"), [CLEAR]),
    "a fence": (f"```json\n{CORE}\n```", [CLEAR]),
    "JSON inside a string": (json.dumps(CORE), [CLEAR]),
    "two in one": (CORE + CORE, TWO),
    "a list": (f"[{CORE}, {CORE}]", TWO),
    "an unquoted id": (
        CORE.replace("}", ', "memory_id": 0712}'),
        [("memory_delete", CLEAR[1] | {"memory_id": "0712"})],
    ),
    "nothing": ("", ["bad_json"]),
    "no object": ("core", ["bad_json"]),
    "half a surrogate pair": ('{"a": "\ud800"}', [("memory_delete", {"a": "?"})]),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_arguments_are_read_and_repaired_as_text_is(name):
    arguments, expected = STRUCTURED[name]
    completion = Completion("I will.", tools=(ToolUse("0", "memory_delete", arguments),))
    calls = read_calls(completion, FIXED, ProtocolConfig())
    assert outcomes(calls) == expected
    (json.dumps([dict(call.arguments) for call in calls]) + calls[0].raw).encode()


# --- Native wire ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "finish", "expected"),
    [
        ("Done", "stop", []),
        (f"I will.{native(DELETE)} and {native(DELETE)} done", "stop", [CLEAR, CLEAR]),
        (native(DELETE, close=""), "stop", [CLEAR]),
        (native(DELETE, close="</tool_"), "length", [CLEAR]),
        (native(DELETE[:-20], close=""), "length", ["truncated"]),
        (native(DELETE[:-1]), "length", [CLEAR]),
        ("<tool_call>", "length", ["truncated"]),
        ("<tool_call></tool_call>", "stop", ["bad_json"]),
        ('red "}, "name": "x"}</tool_call>' + native(DELETE), "stop", ["malformed", CLEAR]),
        (
            native(DELETE) + '"}</tool_call>The The "}</tool_call>',
            "stop",
            [CLEAR, "malformed", "malformed"],
        ),
        (native(DELETE) + "\n</tool_call></tool_call>", "stop", [CLEAR]),
        (native("delete the core"), "stop", ["bad_json"]),
        (native(DELETE.replace('"', "'")), "stop", [CLEAR]),
        (native(f"[{DELETE}]"), "stop", [CLEAR]),
        (native(f"```json\n{DELETE}\n```"), "stop", [CLEAR]),
        (native(DELETE, "") + native(DELETE), "stop", [CLEAR, CLEAR]),
        (native('{"name": "memory_delete"}'), "stop", ["malformed"]),
        (native(DELETE.replace("arguments", "parameters")), "stop", ["malformed"]),
        (native('{"name": 7, "arguments": {}}'), "stop", ["malformed"]),
        (native('{"name": "memory_delete", "arguments": []}'), "stop", ["bad_json"]),
        (native(json.dumps({"name": CLEAR[0], "arguments": CORE})), "stop", [CLEAR]),
        (native('{"name": "memory_delete", "arguments": "core"}'), "stop", ["bad_json"]),
        (
            native('{"name": "x", "arguments": {"content": "a </tool_call> <tool_call> {b"}}'),
            "stop",
            [("x", {"content": "a </tool_call> <tool_call> {b"})],
        ),
        (
            native('{"name": "x", "arguments": {"content": {"deep": [1, {"er": "y"}]}}}'),
            "stop",
            [("x", {"content": {"deep": [1, {"er": "y"}]}})],
        ),
        (native('{"name": "x", "arguments": {"a": "1\n2"}}'), "stop", [("x", {"a": "1\n2"})]),
        *(  # values that no file could hold
            (native(f'{{"name": "x", "arguments": {{"a": {value}}}}}'), "stop", ["bad_json"])
            for value in ("NaN", "-Infinity", "1e999", "[" * 50 + "]" * 50)
        ),
    ],
)
def test_native_replies_are_read(reply, finish, expected):
    calls = parse_reply(reply, finish, "qwen")
    assert outcomes(calls) == expected
    assert all(call.raw in reply for call in calls)


@pytest.mark.parametrize("source", ["0712", "712", "5e20", "a1f3", "-3", "1.50"])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_an_unquoted_id_keeps_its_characters(source, quote):
    body = DELETE.replace('"}}', f'", "memory_id": {source}}}}}').replace('"', quote)
    (call,) = parse_reply(native(body), "stop", "qwen")
    assert call.arguments["memory_id"] == source


def test_text_that_mentions_an_id_is_left_alone():
    content = "set \"memory_id\": 0712, 'memory_id': 5 and memory_id: 6"
    reply = render_calls([ToolCall("x", {"content": content})], "qwen")
    assert parse_reply(reply, "stop", "qwen")[0].arguments == {"content": content}


def test_half_a_surrogate_pair_becomes_a_question_mark():
    reply = native(
        '{"name": "x", "arguments": {"\\udc00": "\\ud83d \\ud83d\\ude00", "b": "\ud800"}}'
    )
    (call,) = parse_reply(reply, "stop", "qwen")
    assert call.arguments == {"?": "? 😀", "b": "?"}
    (call.raw + json.dumps(call.arguments)).encode()


@pytest.mark.parametrize("use", [partial(parse_reply, "", "stop"), partial(render_calls, [])])
def test_an_unknown_wire_is_refused(use):
    with pytest.raises(InputError, match="did you mean 'qwen'"):
        use("qwem")


# --- Rendering calls -----------------------------------------------------------------------------


def test_the_four_wires_look_as_documented():
    arguments = {"memory_id": "3", "new_content": "Ana <b>", "memory_type": "semantic_memory"}
    call = ToolCall("memory_update", arguments)
    ordered = '"memory_type": "semantic_memory", "{}": "Ana <b>", "memory_id": "3"'
    inner = ordered.format("new_content")
    assert render_calls([call, call], "text") == "\n".join(
        ["✿FUNCTION✿: memory_update", f"✿ARGS✿: {{{inner}}}"] * 2
    )
    body = f'{{"name": "memory_update", "arguments": {{{inner}}}}}'
    assert render_calls([call], "qwen") == f"<tool_call>\n{body}\n</tool_call>"
    body = f'{{"arguments": {{{ordered.format("content")}}}, "name": "memory_update"}}'
    assert render_calls([call, call], "compact") == f"<tool_call>{body}</tool_call>" * 2
    line = 'memory_update("semantic_memory", "Ana <b>", "3")'
    assert render_calls([call, call], "lines") == f"{line}\n{line}"
    assert render_calls([], "qwen") == ""


@pytest.mark.parametrize(
    ("reply", "finish", "expected"),
    [
        ('I keep:\n memory_delete("core_memory") \nDone.', "stop", [CLEAR]),
        ('memory_delete("core_memory", "7', "length", ["truncated"]),
        ('memory_delete("core_memory"', "stop", ["bad_json"]),
        ('memory_delete("core_memory", "7", "8", "9")', "stop", ["bad_json"]),
        ("print(x)", "stop", ["bad_json"]),
        ("hello()", "stop", [("hello", {})]),
    ],
)
def test_lines_that_begin_like_a_call_are_attempts_and_prose_is_not(reply, finish, expected):
    assert outcomes(parse_reply(reply, finish, "lines")) == expected


NASTY_PIECES = (
    "✿·✿FUNCTION✿: x·✿ARGS✿·✿RESULT✿·</tool_call>·<tool_call>·<think>·</think>·<|im_end|>·\"·'·\\"
    '·\\"·{·}·[·]·\n·\r·\t· ·😀·\u2028·\x00·```·```json·\\u003c·"memory_id": 07·,·:·//·null'
)
NASTY = st.lists(
    st.sampled_from(NASTY_PIECES.split("·"))
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    max_size=8,
).map("".join)
LONG = st.sampled_from(["core_memory", "semantic_memory", "episodic_memory"])
SOME_ID = {"memory_id": st.text("0123456789", min_size=1, max_size=4) | NASTY}
CALLS = st.lists(
    st.one_of(
        *(
            st.tuples(st.just(name), st.fixed_dictionaries(must, optional=SOME_ID))
            for name, must in (
                ("memory_update", {"memory_type": LONG, "new_content": NASTY}),
                ("memory_delete", {"memory_type": LONG}),
            )
        ),
        st.tuples(
            st.just("new_memory_insert"),
            st.fixed_dictionaries({"memory_type": LONG, "content": NASTY}),
        ),
        st.tuples(
            st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
            st.dictionaries(NASTY.filter(lambda k: k != "memory_id"), NASTY, max_size=3),
        ),
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(CALLS, st.sampled_from(WIRES), st.sampled_from(["stop", "length"]))
def test_parsing_what_was_rendered_gives_the_calls_back(calls, wire, finish):
    reply = render_calls([ToolCall(name, arguments) for name, arguments in calls], wire)
    parsed = parse_reply(reply, finish, wire)
    assert all(call.status == "parsed" for call in parsed)
    assert [(call.name, dict(call.arguments)) for call in parsed] == calls


def test_an_update_may_say_content_on_the_compact_wire_only():
    reply = '<tool_call>{"arguments": {"content": "x"}, "name": "memory_update"}</tool_call>'
    assert parse_reply(reply, "stop", "compact")[0].arguments == {"new_content": "x"}
    assert parse_reply(reply, "stop", "qwen")[0].arguments == {"content": "x"}


# --- Hostile replies -----------------------------------------------------------------------------

N = 100_000


def filled(unit, n=N):
    return unit * (n // len(unit))


MONSTERS = {
    "open brackets": filled("["),
    "bracket pairs": filled("[", N // 2) + filled("]", N // 2),
    "nested objects": filled('{"a":'),
    "deep content": '{"name": "x", "arguments": {"content": ' + filled("["),
    "deep and closed": '{"name": "x", "arguments": {"c": ' + "[" * 40_000 + "]" * 40_000 + "}}",
    "quotes": '{"a": "' + filled("'\""),
    "backslashes": '{"a": "' + filled("\\"),
    "blanks": filled(" "),
    "line breaks": filled("\n"),
    "open calls": filled('<tool_call>{"name": "x", "arguments": {'),
    "open tags": filled("<tool_call>"),
    "tags with braces": filled("<tool_call>{"),
    "tags with strings": filled('<tool_call>{"a": "'),
    "repairs": filled("<tool_call>{'name': 'x', 'arguments': {}</tool_call>"),
    "short repairs": filled("<tool_call>{'name': 'x', 'arguments': {}</tool_call>", 30_000),
    "long repair": '{"a": ' + filled("'b' ", 700) + filled("c d ", 30_000),
    "closing brackets": '{"a": "' + filled("07}", 30_000),
    "markers": filled("✿FUNCTION✿"),
    "flowers": filled("✿"),
    "marked calls": filled("✿FUNCTION✿: x\n✿ARGS✿: {'a': {"),
    "marked blanks": filled("✿FUNCTION✿: x" + " " * 3000),
    "ids": "{" + filled('"memory_id": '),
    "thoughts": filled("<think></think>"),
}


@pytest.mark.parametrize("name", MONSTERS)
def test_a_reply_of_100_kilobytes_of_anything_is_read(name):
    """Quadratic reading of one of them would take minutes; `memalpha bench` measures."""
    for prefix in ("", "<tool_call>", "✿FUNCTION✿: x\n✿ARGS✿: "):
        for wire in ("qwen", "text"):
            replay(parse_reply(prefix + MONSTERS[name], "stop", wire), FIXED)
    replay(parse_reply(MONSTERS[name], "stop", "text", behaviour="release"), FIXED)
