"""Tables and figures of one episode: what a notebook shows of calls, memories and advantages."""

from __future__ import annotations

from memalpha_kit.figures import episodes
from memalpha_kit.method.calls import parse_reply
from memalpha_kit.method.memory import apply, empty
from memalpha_kit.records import Completion, Step
from memalpha_kit.settings import MemoryConfig

GOOD = (
    '<tool_call>{"name": "new_memory_insert", "arguments": {"memory_type": "semantic_memory", '
    '"content": "Mira <b>lives</b> in Lund."}}</tool_call>'
)


def played(reply):
    """The memory before and after a reply, and its calls with their status."""
    before = after = empty(MemoryConfig())
    done = []
    for call in parse_reply(reply, "stop", "qwen"):
        after, call = apply(after, call, MemoryConfig())
        done.append(call)
    return before, after, done


def test_calls_are_rows_with_status_and_a_broken_one_shows_its_text():
    _, _, done = played(GOOD + GOOD + "<tool_call>insert(x)</tool_call>")
    table = episodes.table_calls(done)
    assert table.status.tolist() == ["ok", "skipped", "malformed"]
    assert table.call.tolist()[2] == "<tool_call>insert(x)</tool_call>"
    assert table.content.tolist()[2] == "" and table.why[1]
    assert episodes.table_calls([]).call.tolist() == ["no call"]


def test_steps_are_shown_together_with_their_chunk():
    _, after, done = played(GOOD)
    steps = [
        Step(0, Completion("Done"), (), empty(MemoryConfig())),
        Step(1, Completion(GOOD), done, after),
    ]
    table = episodes.table_steps(steps)
    assert table.chunk.tolist() == [0, 1] and table.call.tolist()[0] == "no call"


def test_a_change_of_the_memory_shows_both_sides_and_no_empty_core():
    before, after, _ = played(GOOD)
    table = episodes.table_change(before, after)
    assert table.index.tolist() == ["semantic 1"]
    assert table.loc["semantic 1"].tolist() == ["", "Mira <b>lives</b> in Lund."]


def test_a_readable_table_escapes_html_and_keeps_an_index_that_says_something():
    _, after, done = played(GOOD)
    html = episodes.readable(episodes.table_calls(done)).to_html()
    assert "&lt;b&gt;" in html and "<b>" not in html
    assert "semantic 1" in episodes.readable(episodes.table_change(after, after)).to_html()


def test_advantages_have_a_panel_per_grouping_and_a_label_per_rollout():
    table = [[1.0, 0.5], [-1.0, -0.5]]
    figure = episodes.plot_advantages({"one group": table, "per chunk": table}, ["good", "bad"])
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["one group", "per chunk"]
    assert {text.get_text() for text in figure.axes[1].texts} == {"good", "bad"}
