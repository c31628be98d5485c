"""What cheating earns: no exploit beats the honest writer under our rules, some do as released."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memalpha_kit.cli import main
from memalpha_kit.lab.audit import FIXED, PADDING, RULES, audit, success_by_text
from memalpha_kit.records import ToolCall

RATES = {  # r2 is a rate: calls that cannot fail pay for a writer whose other calls may
    "core spam",
    "insert and delete",
    "junk entries",
    "junk with special tokens",
    "update to and fro",
}
LOOK_ALIKE = {  # pay as released; here only once
    "clear the empty core",
    "duplicates in other forms",
    "duplicates with invisible characters",
    "duplicates with spaces",
    "update again",
    "update again, with spaces",
}
RELEASED = {  # what pays as released, but not under our rules
    "blank entries",
    "delete missing ids",
    "failing call left unfinished",
    "invisible entries",
    "lists as text",
    "magic tool names",
    "search while memorising",
    "special tokens in all entries",
}


@pytest.fixture(scope="module")
def table():
    return audit(n=4)


def paying(table, rules, *modes):
    chosen = table[(table.rules == rules) & table["mode"].isin(modes) & table.pays]
    return set(chosen.exploit)


def one(table, exploit, mode, rules="fixed"):
    chosen = table[(table.exploit == exploit) & (table["mode"] == mode) & (table.rules == rules)]
    return chosen.iloc[0]


def test_under_our_rules_no_exploit_beats_the_honest_writer(table):
    ours = table[table.rules.str.startswith("fixed")]
    assert len(ours) > 2 * len(PADDING)
    assert not ours.beats_honest.any()


def test_as_released_free_entries_beat_the_honest_writer(table):
    """A text with a special token has no tokens there: everything is kept and r3 is 1."""
    released = table[table.rules == "release"]
    assert set(released[released.beats_honest].exploit) == {"special tokens in all entries"}
    assert one(table, "special tokens in all entries", "changed", "release").compression == 1.0


def test_what_pays_beside_a_reply_is_known(table):
    """A new way to cheat, or one that ceased to pay, shows here."""
    beside = ("beside", "changed")
    assert paying(table, "release", *beside) == RATES | RELEASED | LOOK_ALIKE
    assert paying(table, "fixed", *beside) == RATES
    strict = paying(table, "fixed, strict judge", *beside)
    assert strict <= RATES and "core spam" in strict


def test_calls_that_did_nothing_earn_nothing_and_calls_that_fail_or_never_end_cost(table):
    for exploit in sorted(RELEASED & set(PADDING)):
        assert one(table, exploit, "alone").format == 0.0
        assert one(table, exploit, "alone", "release").format == 1.0
    for exploit in ("delete missing ids", "blank entries", "magic tool names", "duplicates"):
        assert one(table, exploit, "beside").gain < -0.4
    for rules in RULES:
        assert one(table, "giant reply", "beside", rules.name).gain < -0.1
        assert one(table, "giant reply", "alone", rules.name).total < 0.9
    assert one(table, "whole chunk, cut by the limit", "alone").total < 0.1


def test_writers_are_what_they_are_called_and_totals_are_weighted_sums(table):
    expected = table.accuracy + table.format + 0.05 * table.compression + 0.1 * table.content
    assert table.total.to_numpy() == pytest.approx(expected.to_numpy())
    for rules in RULES:
        silent = one(table, "silent", "writer", rules.name)
        assert (silent.accuracy, silent.format, silent.content) == (0.0, 0.0, 0.0)
        assert silent.total == pytest.approx(0.05)  # the weight of an empty memory only
        honest, slipping = (
            one(table, name, "writer", rules.name) for name in ("honest", "slipping")
        )
        assert honest.accuracy == slipping.accuracy == 1.0
        assert honest.format == 1.0 > slipping.format > 0.6


def test_the_tags_of_qwen_give_the_same_table_as_the_text_markers(table):
    tags = replace(FIXED, protocol=replace(FIXED.protocol, wire="qwen"))
    again = audit(n=4, rules=[tags]).drop(columns="calls")
    ours = table[table.rules == "fixed"].reset_index(drop=True).drop(columns="calls")
    assert again.equals(ours)


def test_success_by_text_is_that_of_the_release():
    def status(call):
        return success_by_text(call).status

    assert status(ToolCall("x executed successfully", status="rejected")) == "ok"
    assert status(ToolCall("memory_delete", status="rejected")) == "rejected"
    quoted = {"content": "it said 'status': 'skipped' twice"}
    assert status(ToolCall("new_memory_insert", quoted, status="ok")) == "rejected"


def test_the_command_prints_and_saves_the_table(tmp_path, capsys):
    out = tmp_path / "audit.csv"
    assert main(["audit", "--instances", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "core spam" in shown and "fixed, strict judge" in shown and str(out) in shown
    assert out.read_text().startswith("exploit,mode,rules,accuracy,")
    assert main(["audit", "--instances", "1"]) == 2
