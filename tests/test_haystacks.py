"""The same questions in longer inputs: what stays, what is added, and what is measured."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pandas as pd
import pytest

from memalpha_kit import cli
from memalpha_kit.data.haystacks import nested, only_hay, subjects
from memalpha_kit.data.instances import save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.lengths import measure, table_haystacks
from memalpha_kit.figures.memories import plot_haystacks
from memalpha_kit.lab import miniature
from memalpha_kit.method.ranking import words
from memalpha_kit.method.readers import reader
from memalpha_kit.method.writers import writer
from memalpha_kit.records import QA, make_instance
from memalpha_kit.settings import load_profile

PROFILE = load_profile("laptop")
RULES = (PROFILE.memory, PROFILE.protocol)
WORLD = miniature.held_out(PROFILE)["test_1x"]


def test_each_length_holds_the_shorter_ones_in_their_order_and_asks_the_same():
    lengths = nested(WORLD, (1, 4, 13), seed=3, limit=6)
    assert lengths[1] == WORLD[:6]
    for short, middle, long in zip(*lengths.values(), strict=True):
        for few, many in ((short, middle), (middle, long)):
            assert [c for c in many.chunks if c in few.chunks] == list(few.chunks)
            assert few.id == many.id
        assert (len(middle.chunks), len(long.chunks)) == (4 * 4, 13 * 4)
        for qa, moved in zip(short.questions, long.questions, strict=True):
            assert long.chunks[moved.chunk] == short.chunks[qa.chunk]
            assert dataclasses.replace(moved, chunk=qa.chunk) == qa


def test_no_hay_mentions_what_a_question_is_about():
    spread = Counter(w for i in WORLD for chunk in i.chunks for w in set(words(chunk)))
    lengths = nested(WORLD, (1, 13), seed=0, limit=20)
    for short, long in zip(*lengths.values(), strict=True):
        about = subjects(short, spread)
        assert about and len(about) <= len(short.questions)
        hay = only_hay(long, short)
        assert len(hay.chunks) == 12 * 4
        assert not about & {word for chunk in hay.chunks for word in words(chunk)}


def test_haystacks_are_the_same_for_the_same_seed_only():
    assert nested(WORLD, (1, 4), 0, 3) == nested(WORLD, (1, 4), 0, 3)
    assert nested(WORLD, (1, 4), 0, 3) != nested(WORLD, (1, 4), 1, 3)
    assert nested(WORLD, (1, 4, 13), 0, 3)[4] == nested(WORLD, (1, 4), 0, 3)[4]


def facts(n, source="squad", **metadata):
    return [
        make_instance(
            source,
            [f"The ferry of Port{i} is blue.", f"Somebody{i} sleeps."],
            [QA("q0", f"What colour is the ferry of Port{i}?", ("blue",))],
            metadata=metadata,
        )
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("instances", "lengths", "message"),
    [
        *((facts(3), lengths, "growing whole numbers") for lengths in ((), (4, 1), (1, 1), (0, 2))),
        (facts(3), (1, 4), "expected 6 chunks of other instances .* found 4"),
        (facts(5, groups=["squad:Ferries"]), (1, 2), "found 0"),  # all share a group
        (facts(5, "trec_coarse"), (1, 2), "found 0"),  # labels of the same source
    ],
)
def test_lengths_that_do_not_grow_and_too_little_hay_are_refused(instances, lengths, message):
    with pytest.raises(InputError, match=message):
        nested(instances, lengths)


def test_what_another_source_says_is_hay_for_labels():
    found = nested([facts(1, "trec_coarse")[0], *facts(5)[1:]], (1, 2), limit=1)[2]
    assert len(found[0].chunks) == 4


def test_a_perfect_writer_keeps_its_score_and_the_hay_alone_answers_nearly_nothing():
    haystacks = nested(WORLD, (1, 4, 13), seed=0, limit=8)
    rows = measure(haystacks, miniature.references(PROFILE)[0], reader("best_entry"), RULES)
    table = table_haystacks(rows).set_index(["measure", "length"])
    assert table.loc["score", "mean"].tolist() == [1, 1, 1]
    assert table.loc["score_of_hay", "mean"].iloc[1:].max() < 0.2
    assert table.loc["memory_tokens", "mean"].is_monotonic_increasing
    assert table.loc["prompt_tokens", "missing"].tolist() == [8, 8, 8]
    assert (table.loc["seconds", "mean"] > 0).all()


def test_what_was_measured_is_kept_and_other_settings_are_refused(tmp_path):
    haystacks, by = nested(WORLD, (1, 4), 0, 3), writer("keep_sentences", "compact")
    how = (reader("best_entry"), RULES, 0, tmp_path)
    rows = measure(haystacks, by, *how, settings={"writer": "one"})
    again = measure(haystacks, by, *how, settings={"writer": "one"})
    pd.testing.assert_frame_equal(rows, again, check_dtype=False)
    assert rows["seconds"].tolist() == pytest.approx(again["seconds"].tolist())
    with pytest.raises(InputError, match="writer"):
        measure(haystacks, by, *how, settings={"writer": "two"})
    figure = plot_haystacks(table_haystacks(rows))
    assert figure.axes[0].get_title(loc="left") == "Score"


def test_the_hay_of_a_length_is_beside_the_instance_as_it_is_whatever_lengths_are_asked_for(
    tmp_path, capsys
):
    save_instances(tmp_path / "test.parquet", facts(6))
    command = ["lengths", "--data", str(tmp_path / "test.parquet"), "--writer", "keep_sentences"]
    assert cli.main([*command, "--lengths", "2", "--limit", "2", "--out", str(tmp_path / "a")]) == 0
    rows = pd.read_csv(tmp_path / "a" / "rows.csv")
    assert rows["length"].tolist() == [2, 2] and rows["score_of_hay"].notna().all()
    assert cli.main(["lengths", "--help"]) == 0
    assert "agentic" not in capsys.readouterr().out  # no model can be named here
