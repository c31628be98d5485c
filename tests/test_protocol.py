"""Protocol: the parse cases of method.md 9.4, the parse/render law, hostile replies, prompts."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha_kit.errors import InputError
from memalpha_kit.method.calls import parse_reply, render_calls
from memalpha_kit.method.memory import apply, empty
from memalpha_kit.method.protocol import fit_prompt, render_compact, render_messages, tool_schemas
from memalpha_kit.records import Entry, Memory, ToolCall
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.text import complete_object, repaired_object

WIRES = ("qwen", "text", "compact")

FIXED = MemoryConfig(counter="words")

# --- Parse cases of method.md 9.4 ----------------------------------------------------------------

CORE = '{"memory_type": "core_memory"}'
CLEAR = ("memory_delete", {"memory_type": "core_memory"})


def adds(content):
    return ("new_memory_insert", {"memory_type": "semantic_memory", "content": content})


def add(content):
    return f'F: new_memory_insert⏎A: {{"memory_type": "semantic_memory", "content": "{content}"}}'


THOUGHT = f"<think>maybe F: memory_delete⏎A: {CORE}⏎</think>⏎Done"
UNQUOTED = (
    'F: memory_update⏎A: {"memory_type": "semantic_memory", "memory_id": 0712, "new_content": "x"}'
)


def revises(memory_id):
    arguments = {"memory_type": "semantic_memory", "memory_id": memory_id, "new_content": "x"}
    return ("memory_update", arguments)


# number, reply, ended by, calls of the release, calls required; a lone text is a malformed code
CASES = [
    (1, add("a"), "stop", [adds("a")], [adds("a")]),
    (
        2,
        f"Noted.⏎{add('a')}⏎F: memory_delete⏎A: {CORE}",
        "stop",
        [adds("a"), CLEAR],
        [adds("a"), CLEAR],
    ),
    (3, f"F: memory_delete A: {CORE}", "stop", [CLEAR], [CLEAR]),
    (4, f"F: memory_delete⏎A: {CORE} // clear⏎Done.", "stop", [CLEAR], [CLEAR]),
    (
        5,
        "F: new_memory_insert⏎A: {'memory_type': 'semantic_memory', 'content': 'x',}",
        "stop",
        [adds("x")],
        [adds("x")],
    ),
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
    (
        10,
        f"F: memory_delete⏎F: memory_delete⏎A: {CORE}",
        "stop",
        [CLEAR],
        ["malformed", CLEAR],
    ),
    (11, add("she likes ✿ icons"), "stop", [], [adds("she likes ✿ icons")]),
    (
        12,
        f'{add("a")}⏎A: {{"memory_type": "semantic_memory", "content": "b"}}',
        "stop",
        [],
        [adds("a")],
    ),
    (13, "F: memory_delete⏎A: none", "stop", ["bad_json"], ["bad_json"]),
    (
        14,
        f"F: memory_delete⏎A: {CORE}⏎✿RESULT✿: ok⏎F: memory_delete⏎A: {CORE}",
        "stop",
        [CLEAR],
        [CLEAR],
    ),
    (15, THOUGHT, "stop", [CLEAR], []),
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
]


def wired(text):
    return text.replace("F: ", "✿FUNCTION✿: ").replace("A: ", "✿ARGS✿: ").replace("⏎", "\n")


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


def test_case_16_is_one_call_on_the_native_wire():
    reply = CASES[15][1]
    assert outcomes(parse_reply(reply, "stop", "qwen")) == [CLEAR]


def test_a_truncated_attempt_keeps_its_name_and_runs_only_if_told_to():
    text = wired(add("Nora ke").removesuffix('"}'))
    assert parse_reply(text, "length", "text")[0].name == "new_memory_insert"
    executed = parse_reply(text, "length", "text", execute_truncated=True)
    assert outcomes(executed) == [adds("Nora ke")]
    assert outcomes(parse_reply(text, "stop", "text")) == [adds("Nora ke")]


def test_only_the_last_attempt_can_be_truncated():
    first = add("Nora ke").removesuffix('"}')
    assert outcomes(parse_reply(wired(f"{first}⏎{add('b')}"), "length", "text")) == [
        adds("Nora ke"),
        adds("b"),
    ]


@pytest.mark.parametrize("marker", ["✿RESULT✿", "✿RETURN✿: "])
def test_nothing_after_a_result_or_return_marker_is_read(marker):
    assert parse_reply(wired(f"{marker}⏎{add('a')}"), "stop", "text") == ()


@pytest.mark.parametrize("ending", ["✿FUNCTION✿", "✿FUNCTION✿: x\n✿ARGS✿"])
def test_a_complete_marker_at_the_very_end_still_counts_as_an_attempt(ending):
    codes = [call.detail for call in parse_reply(ending, "stop", "text")]
    assert codes in (["malformed"], ["bad_json"])


@pytest.mark.parametrize("wire", WIRES)
def test_thinking_replies_are_read_after_the_last_closing_tag_only(wire):
    call = render_calls([ToolCall(*CLEAR)], wire)
    assert outcomes(parse_reply(f"{call}</think>{call}", "stop", wire, thinking=True)) == [CLEAR]
    assert parse_reply(call, "stop", wire, thinking=True) == ()
    assert parse_reply(f"<think>{call}", "length", wire) == ()
    assert outcomes(parse_reply(f"<think></think>{call}", "stop", wire)) == [CLEAR]


# --- Native wire ---------------------------------------------------------------------------------


def native(body, close="</tool_call>"):
    return f"<tool_call>\n{body}\n{close}"


DELETE = f'{{"name": "memory_delete", "arguments": {CORE}}}'


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
        (native("delete the core"), "stop", ["bad_json"]),
        (native(DELETE.replace('"', "'")), "stop", [CLEAR]),
        (native(f"[{DELETE}]"), "stop", [CLEAR]),
        (native(f"[{DELETE}, {DELETE}]"), "stop", [CLEAR, CLEAR]),
        (native(f"```json\n{DELETE}\n```"), "stop", [CLEAR]),
        (native(f"{DELETE} {DELETE}"), "stop", [CLEAR, CLEAR]),
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


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "[" * 50 + "]" * 50])
def test_values_that_no_file_could_hold_are_bad_json(value):
    reply = native(f'{{"name": "x", "arguments": {{"content": {value}}}}}')
    assert outcomes(parse_reply(reply, "stop", "qwen")) == ["bad_json"]


def test_half_a_surrogate_pair_becomes_a_question_mark():
    reply = native(
        '{"name": "x", "arguments": {"\\udc00": "\\ud83d \\ud83d\\ude00", "b": "\ud800"}}'
    )
    (call,) = parse_reply(reply, "stop", "qwen")
    assert call.arguments == {"?": "? 😀", "b": "?"}
    (call.raw + json.dumps(call.arguments)).encode()


def test_several_objects_in_a_row_are_no_arguments_in_the_release():
    text = wired(f"F: memory_delete⏎A: {CORE}{CORE}")
    assert outcomes(parse_reply(text, "stop", "text", behaviour="release")) == ["bad_json"]
    assert outcomes(parse_reply(text, "stop", "text")) == [CLEAR, CLEAR]


def test_an_unknown_wire_is_refused():
    for use in (lambda: parse_reply("", "stop", "qwem"), lambda: render_calls([], "qwem")):
        with pytest.raises(InputError, match="did you mean 'qwen'"):
            use()


# --- Rendering calls -----------------------------------------------------------------------------


def test_the_three_wires_look_as_documented():
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
    assert render_calls([], "qwen") == ""


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
ID = st.text("0123456789", min_size=1, max_size=4)
CALLS = st.lists(
    st.one_of(
        st.builds(
            lambda *a: ("new_memory_insert", dict(zip(("memory_type", "content"), a, strict=True))),
            LONG,
            NASTY,
        ),
        st.builds(
            lambda kind, text, rest: (
                "memory_update",
                {"memory_type": kind, "new_content": text, **rest},
            ),
            LONG,
            NASTY,
            st.fixed_dictionaries({}, optional={"memory_id": ID | NASTY}),
        ),
        st.builds(
            lambda kind, rest: ("memory_delete", {"memory_type": kind, **rest}),
            LONG,
            st.fixed_dictionaries({}, optional={"memory_id": ID | NASTY}),
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
DEBRIS = (
    "✿FUNCTION✿ ✿ARGS✿ ✿RESULT✿ ✿FUNC ✿ <tool_call> </tool_call> <think> </think> ``` ```json : "
    "{ } [ ] ( ) \" ' \\ , // /* # \n 07 -1 1e9 NaN null true memory_update new_memory_insert "
    '"name": "arguments": "memory_type": "core_memory" "semantic_memory" "content": "new_content": '
    '"memory_id": \ud800 \\ud800 \\u00 😀 “ é Done'
)


def settle(calls):
    memory = empty(FIXED)
    for call in calls:
        assert call.status in ("parsed", "malformed")
        memory, call = apply(memory, call, FIXED)
        assert call.status in ("ok", "skipped", "rejected", "malformed")
        json.dumps([call.name, dict(call.arguments), call.raw], ensure_ascii=False).encode()


def hostile(seed):
    """300 replies of well-mixed debris."""
    draw, pieces = random.Random(seed), DEBRIS.split(" ")
    for _ in range(300):
        pool = draw.sample(pieces, draw.randint(3, len(pieces)))
        glue = draw.choice(["", "", " ", "\n"])
        yield glue.join(draw.choice(pool) for _ in range(draw.randint(1, 40)))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("behaviour", ["fixed", "release"])
def test_debris_never_raises_and_every_call_of_it_can_be_applied(wire, behaviour):
    for i, text in enumerate(hostile(seed=0)):
        for prefix in ("", "✿FUNCTION✿: memory_update\n✿ARGS✿: {", '<tool_call>{"arguments": {'):
            finish = "length" if i % 2 else "stop"
            settle(parse_reply(prefix + text, finish, wire, i % 7 == 0, i % 3 == 0, behaviour))


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
def test_a_reply_of_100_kilobytes_is_read_in_well_under_a_second(name):
    for prefix in ("", "<tool_call>", "✿FUNCTION✿: x\n✿ARGS✿: "):
        for wire in ("qwen", "text"):
            for behaviour in ("fixed", "release"):
                start = time.process_time()
                calls = parse_reply(prefix + MONSTERS[name], "stop", wire, behaviour=behaviour)
                assert time.process_time() - start < 0.9
                settle(calls)


def test_text_on_which_json_repair_asserts_is_no_object():
    assert repaired_object("{'```json[?```json[") is None


def test_json_helpers_are_total_on_debris():
    for text in hostile(seed=1):
        for read in (complete_object, repaired_object):
            assert isinstance(read("{" + text, ("memory_id",)), dict | None)


# --- Tools and prompts ---------------------------------------------------------------------------

LISTS = ("semantic", "episodic")


@pytest.mark.parametrize(
    ("off", "insert", "update", "search"),
    [
        ((), "semantic episodic", "core semantic episodic", "semantic episodic"),
        (("core",), "semantic episodic", "semantic episodic", "semantic episodic"),
        (("semantic",), "episodic", "core episodic", "episodic"),
        (("episodic",), "semantic", "core semantic", "semantic"),
        (LISTS, "", "core", ""),
        (("core", *LISTS), "", "", ""),
    ],
)
def test_tools_offer_what_is_switched_on(off, insert, update, search):
    config = replace(FIXED, **dict.fromkeys(off, False))
    offered = {}
    for schema in tool_schemas(config) + tool_schemas(config, mode="chat"):
        function = schema["function"]
        offered[function["name"]] = function["parameters"]["properties"]["memory_type"]["enum"]
    expected = {
        "new_memory_insert": insert,
        "memory_update": update,
        "memory_delete": update,
        "search_memory": search,
    }
    assert offered == {
        name: [f"{kind}_memory" for kind in kinds.split()]
        for name, kinds in expected.items()
        if kinds
    }


def test_schemas_have_the_published_names_and_order():
    by_name = {s["function"]["name"]: s["function"]["parameters"] for s in tool_schemas(FIXED)}
    assert list(by_name) == ["new_memory_insert", "memory_update", "memory_delete"]
    assert {name: (list(p["properties"]), p["required"]) for name, p in by_name.items()} == {
        "new_memory_insert": (["memory_type", "content"], ["memory_type", "content"]),
        "memory_update": (
            ["memory_type", "new_content", "memory_id"],
            ["memory_type", "new_content"],
        ),
        "memory_delete": (["memory_type", "memory_id"], ["memory_type"]),
    }
    (search,) = tool_schemas(FIXED, mode="chat")
    method = search["function"]["parameters"]["properties"]["search_method"]
    assert method["enum"] == ["bm25", "text-embedding"]
    json.dumps(tool_schemas(FIXED))


NINE = Memory(
    core="Mira is a vet.",
    semantic=tuple(Entry(str(i), f"fact {i}") for i in range(1, 10)),
    episodic=tuple(Entry(str(i), f"event {i}") for i in range(10, 13)),
    next_id=13,
)


def rendered(memory=NINE, config=FIXED, wire="qwen", k=None, chunk="Pixel eats."):
    return render_messages(memory, chunk, config, ProtocolConfig(wire=wire), k)


def test_a_prompt_is_a_system_and_a_user_message_with_memory_and_chunk():
    system, user = rendered()
    assert (system["role"], user["role"]) == ("system", "user")
    core, semantic, episodic = (
        system["content"].index(f"<{c}_memory>") for c in ("core", "semantic", "episodic")
    )
    assert core < semantic < episodic
    assert "<core_memory>\nMira is a vet.\n</core_memory>" in system["content"]
    assert "[5] fact 5\n[6] fact 6" in system["content"]
    assert "[4] fact 4" not in system["content"]
    assert "\n<new_chunk>\nPixel eats.\n</new_chunk>\n" in user["content"]
    assert "1638 tokens" in user["content"]
    assert "Done" in system["content"]


@pytest.mark.parametrize(
    ("k", "semantic", "episodic"), [(5, 5, 3), (2, 2, 2), (1, 1, 1), (0, 0, 0)]
)
def test_the_tags_say_how_many_entries_are_shown(k, semantic, episodic):
    text = rendered(k=k)[0]["content"]
    assert f"<semantic_memory> (most recent {semantic} of 9 entries)" in text
    assert f"<episodic_memory> (most recent {episodic} of 3 entries)" in text
    assert text.count("\nEmpty.\n") == (2 if k == 0 else 0)


def test_the_tags_do_not_call_relevant_entries_recent():
    text = rendered(config=replace(FIXED, display="relevant", shown=1), chunk="fact 3")[0][
        "content"
    ]
    assert "[3] fact 3" in text
    assert "recent" not in text
    assert "1 of 9 entries" in text


def test_components_that_are_off_leave_no_trace_in_the_prompt():
    config = replace(FIXED, core=False, episodic=False)
    for message in rendered(empty(config), config, wire="text"):
        assert "ore_memory" not in message["content"]
        assert "pisodic" not in message["content"]
    nothing = replace(config, semantic=False)
    system, user = rendered(empty(nothing), nothing, wire="text")
    assert "switched off" in system["content"]
    assert "✿" not in system["content"]


def test_only_the_text_wire_lists_the_tools_in_the_system_message():
    assert "✿" not in rendered(wire="qwen")[0]["content"]
    text = rendered(wire="text")[0]["content"]
    for part in ("✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿", "### memory_update"):
        assert part in text
    assert json.dumps(tool_schemas(FIXED)[0]["function"]["parameters"]) in text


def test_the_compact_prompt_is_rows_by_age_that_end_in_their_id_and_the_chunk():
    memory = Memory(
        core=None,
        semantic=(Entry("2", "phone Pemes 46"), Entry("10", "desk Ana 7")),
        episodic=(Entry("9", "case red kettle Pemes L4"),),
        next_id=11,
    )
    assert render_compact(memory, "phone Pemes now 53.", FIXED) == (
        '<memory>\n{"content": "phone Pemes 46", "memory_id": "2"}\n'
        '{"content": "case red kettle Pemes L4", "memory_id": "9"}\n'
        '{"content": "desk Ana 7", "memory_id": "10"}\n</memory>\n'
        "<text>\nphone Pemes now 53.\n</text>"
    )
    assert render_compact(Memory(), "x", FIXED) == "<memory>\n</memory>\n<text>\nx\n</text>"


def test_entries_are_halved_until_the_prompt_fits():
    sizes = {5: 7000, 2: 6400, 1: 6100, 0: 5000}
    tried = []
    prompt, k = fit_prompt(
        lambda k: tried.append(k) or f"k{k}", lambda p: sizes[int(p[1:])], 5, 6144
    )
    assert (prompt, k, tried) == ("k1", 1, [5, 2, 1])
    assert fit_prompt(str, lambda prompt: 6144, 5, 6144) == ("5", 5)


def test_a_chunk_that_never_fits_is_an_error_in_one_line():
    tried = []
    with pytest.raises(InputError, match="at most 6144 tokens, found 7000"):
        fit_prompt(tried.append, lambda prompt: 7000, 5, 6144)
    assert tried == [5, 2, 1, 0]
