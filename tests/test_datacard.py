"""Statistics, provenance, ours beside the paper's, and what the leak report finds."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from memalpha_kit.data import card as datacard
from memalpha_kit.data import dataset, leaks
from memalpha_kit.data.dataset import Dataset
from memalpha_kit.data.sources.building import generator
from memalpha_kit.data.sources.frames import CLASSIFICATION_LEAD_INS, DOCUMENT_LEAD_INS, frame_all
from memalpha_kit.records import QA, make_instance

WORDS = [f"w{i}" for i in range(5000)]


def text(n, seed):
    """`n` made-up words that no other seed gives in that order."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def document(n_words, seed, question="What is it?", answer="it", source="squad", groups=()):
    chunks = frame_all([text(n_words, seed)], DOCUMENT_LEAD_INS, generator(0, source, seed, "f"))
    metadata = {"groups": list(groups)} if groups else {}
    return make_instance(source, chunks, [QA("q0", question, (answer,))], metadata=metadata)


def labelled(source, shown, asked, framed=True):
    """An instance that shows (sentence, number) pairs and asks for others."""
    content = "\n\n".join(f"Sentence: {text}\nLabel: {number}" for text, number in shown)
    chunks = frame_all([content], CLASSIFICATION_LEAD_INS, generator(0, source, 0, "f"))
    form = "Sentence: {}\nWhich label?" if framed else "{}"
    questions = [QA(f"q{i}", form.format(t), (n,)) for i, (t, n) in enumerate(asked)]
    return make_instance(source, chunks, questions)


def compare(train, test):
    """The only row of the report for a training and a test instance (or lists of them)."""
    train, test = ([x] if not isinstance(x, list) else x for x in (train, test))
    table = leaks.leaks([Dataset("a", tuple(train), ()), Dataset("b", (), tuple(test))])
    [row] = table.to_dict("records")
    return row


# --- Leaks ---------------------------------------------------------------------------------------

PAIRS = [(f"how far is the town of {WORDS[i]}", str(i % 5)) for i in range(60)]


def test_the_report_finds_training_instances_that_are_cut_from_an_evaluation_row():
    """D1: demonstrations are a part of the evaluation context, and the questions are the same."""
    evaluated = labelled("icl_trec", PAIRS[:40], PAIRS[40:], framed=False)
    shuffled = random.Random(1).sample(PAIRS[:40], 20)
    row = compare(labelled("icl_trec", shuffled, PAIRS[40:]), evaluated)
    assert row["leak"] == "questions, contexts"
    assert (row["questions"], row["same_question"], row["repeated"]) == (20, 20, 20)
    assert (row["shared_samples"], row["same_number"], row["shown"]) == (20, 20, 0)
    assert row["gram_share"] == 0.5


def test_the_report_finds_questions_whose_answer_is_shown_in_training():
    row = compare(labelled("ttl", PAIRS[:20], PAIRS[50:]), labelled("icl", PAIRS[40:], PAIRS[:10]))
    assert row["leak"] == "labelled questions" and (row["shown"], row["repeated"]) == (10, 0)


def test_other_label_numbers_are_seen_in_shared_samples():
    moved = [(sentence, str(9 - int(number))) for sentence, number in PAIRS]
    row = compare(labelled("ttl", moved[:9], PAIRS[50:]), labelled("icl", PAIRS[:9], PAIRS[40:50]))
    assert (row["shared_samples"], row["same_number"]) == (9, 0)


def test_label_tables_of_cards_are_compared_by_name():
    one, two = (labelled(s, PAIRS[i : i + 5], PAIRS[50:]) for i, s in ((0, "x"), (9, "y")))
    cards = {"labels": {"x": ["a", "b", "c"]}}, {"labels": {"y": ["b", "c", "d", "e"]}}
    table = leaks.leaks([Dataset("x", (one,), (), cards[0]), Dataset("y", (), (two,), cards[1])])
    assert table.loc[0, ["labels", "shared_labels"]].tolist() == [4, 2]
    assert pd.isna(compare(one, two)["labels"])


def test_shared_passages_are_found_under_other_frames_and_spelling():
    first = document(200, 1)
    body = leaks.content(first.chunks[0])
    again = make_instance(
        "ruler", [f"Document 1:\n{body.upper()}, {text(100, 2)}."], first.questions
    )
    row = compare(first, again)
    assert row["leak"] == "questions, contexts" and row["shared_grams"] == 200 - 13 + 1
    reversed_words = " ".join(reversed(body.split()))
    assert compare(first, make_instance("x", [reversed_words], first.questions))["gram_share"] == 0


def test_frames_are_no_overlap():
    """Lead-ins, acknowledgements and book requests are ours and the same everywhere."""
    many = [document(30, i, f"What {i}?", str(i)) for i in range(60)]
    assert compare(many[:50], many[50:])["shared_grams"] == 0
    book = "[Event happened on 2024-01-01 The user is reading a book]\n<User> {}\n\n<System> KEEP"
    assert (
        leaks.content(book.format("Nell\n\nfinds <User> a key.")) == "Nell\n\nfinds <User> a key."
    )
    own = "[Dialogue at timestamp 2024/02/01 09:00]\n<User>Hi."
    assert leaks.content(own) == own


def test_the_same_words_for_another_question_are_no_leak():
    """BookSum's questions name two dates and repeat by chance (D26)."""
    asked = "Summarise what was read from 2024-01-01 to 2024-01-09"
    row = compare(document(50, 1, asked, "Nell, key"), document(50, 2, asked, "Otto, bee"))
    assert (row["same_question"], row["repeated"], row["leak"]) == (1, 0, "")


def test_a_group_on_both_sides_is_a_leak_whatever_its_size():
    row = compare(
        document(50, 1, "A?", "a", groups=["squad:Oxygen", "squad:Rome"]),
        document(50, 2, "B?", "b", groups=["squad:Rome"]),
    )
    assert (row["groups"], row["leak"]) == (1, "groups")


def test_all_pairs_of_sources_are_compared_also_within_a_data_set():
    parts = (document(50, 1), document(50, 2, source="ruler")), (document(50, 3),)
    table = leaks.leaks([Dataset("a", *parts), Dataset("squad", (), (document(50, 4),))])
    assert sorted(zip(table["train"], table["test"], strict=True)) == [
        *(("a/ruler", "a/squad"), ("a/ruler", "squad")),
        *(("a/squad", "a/squad"), ("a/squad", "squad")),
    ]
    assert leaks.leaks([Dataset("a", (), ())]).empty


def test_grams_are_distinct_and_short_texts_count_as_a_whole():
    words = leaks.Words()
    assert len(words.grams("a b c")) == 0 and len(words.grams("one two three four")) == 1
    twice = words.grams(f"{text(13, 1)} {text(13, 1)}")
    assert len(twice) == 14 and twice[0] == twice[-1] and len(np.unique(twice)) == 13
    assert (words.grams("The bees, of Nora: hum!") == words.grams("bees of nora hum")).all()
    assert len(words.grams(text(100_000, 3))) == 100_000 - 12


# --- Statistics ----------------------------------------------------------------------------------


def plain(source, *chunks):
    return make_instance(source, chunks, [QA("q", f"About {chunks[0]}?", ("x",))] * 2)


SMALL = Dataset("a", (plain("squad", "a b c", "d"), plain("squad", "e f")), (plain("ruler", "g"),))


def test_statistics_are_means_and_ranges_by_part_and_source():
    rows, bins = datacard.statistics([SMALL], "words")
    assert rows[["part", "source", "instances", "questions"]].values.tolist() == [
        ["train", "squad", 2, 4],
        ["test", "ruler", 1, 2],
    ]
    first = rows.iloc[0]
    assert (first.chunks_per_instance, first.chunks_per_instance_max) == (1.5, 2)
    assert (first.tokens_per_chunk, first.tokens_per_chunk_min) == (2.0, 1)
    assert (first.tokens_per_instance, first.questions_per_instance) == (3.0, 2.0)
    assert first.category == "AR" or first.category == ""
    held = bins[(bins.source == "squad") & (bins.quantity == "tokens_per_chunk")]
    assert held[["low", "high", "count"]].values.tolist() == [[1, 1, 1], [2, 2, 1], [3, 3, 1]]


@pytest.mark.parametrize("found", [[7], [0, 9], [1, 1, 100], list(range(1000)), [3, 4, 5, 5]])
def test_a_histogram_counts_every_value_once(found):
    bins = datacard.histogram(found)
    assert len(bins) <= datacard.BINS and sum(b["count"] for b in bins) == len(found)
    assert bins[0]["low"] == min(found) and bins[-1]["high"] >= max(found)
    for one in bins:
        assert one["count"] == sum(one["low"] <= value <= one["high"] for value in found)


def test_any_number_of_processes_counts_the_same():
    many = Dataset(
        "a", tuple(plain("squad", *(text(n, n) for n in range(1, 40))) for _ in "ab"), ()
    )
    one = datacard.measure(many, "wordpunct")
    assert one[1].tokens == tuple(range(1, 40))
    assert one == datacard.measure(many, "wordpunct", workers=3)


def test_a_part_without_instances_has_no_row():
    rows, bins = datacard.statistics([Dataset("a", (), ())], "words")
    assert rows.empty and bins.empty


# --- The paper -----------------------------------------------------------------------------------


def test_the_paper_tables_add_up_as_printed():
    table = datacard.paper()
    totals = table.groupby(["table", "split"])["instances"].sum().to_dict()
    assert totals == {
        **{(6, "train"): 4139, (6, "test"): 463, (7, "train"): 567, (7, "test"): 458},
        (8, "test"): 112,
    }
    assert not table.duplicated(["table", "split", "source"]).any()


def test_the_paper_tables_are_those_of_the_specification(root):
    folder = root.parent / "shared" / "spec" / "paper_tables"
    if not folder.is_dir():
        pytest.skip("the specification is not beside the repository")
    ours = datacard.paper().set_index(["table", "split", "dataset"])
    for number, kind in ((6, "full"), (7, "balanced"), (8, "test")):
        with open(folder / f"table{number}_{kind}_statistics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            for split, prefix in (
                (("test", ""),) if number == 8 else (("train", "train_"), ("test", "val_"))
            ):
                if not row[f"{prefix}instances"]:
                    continue
                held = ours.loc[(number, split, row["dataset"])]
                for name in datacard.PRINTED:
                    assert held[name] == float(row[prefix + name])


def test_ours_stands_beside_the_table_it_belongs_to():
    train, test = plain("squad", "a"), plain("icl_nlu_8296shot_balance", "b")
    named = [
        Dataset("squad", (train,), ()),
        Dataset("m", (train,), (), {"settings": {"recipe": "balanced"}}),
        Dataset("nlu", (), (test,)),
        Dataset("ttl", (train,), (test,)),
    ]
    rows, _ = datacard.statistics(named, "words")
    beside = datacard.beside_paper(rows, named).set_index(["dataset", "part"])
    assert beside["table"].to_dict() == {
        **{("squad", "train"): 6, ("m", "train"): 7, ("nlu", "test"): 8},
        **{("ttl", "train"): 6, ("ttl", "test"): 6},
    }
    assert beside.loc[("m", "train"), "tokens_per_chunk_paper"] == 1084.1
    assert beside.loc[("nlu", "test"), "instances_paper"] == 1
    assert beside.loc[("ttl", "test"), "instances_paper"] == 20


# --- The report ----------------------------------------------------------------------------------


def test_a_file_that_was_changed_after_its_card_is_named(tmp_path):
    for name in ("a", "b"):
        dataset.save(tmp_path / name, SMALL)
    other = Dataset("b", SMALL.test, ())
    dataset.save(tmp_path / "c", other)
    (tmp_path / "c" / "train.parquet").replace(tmp_path / "b" / "train.parquet")
    (tmp_path / "c" / "card.json").unlink()
    (tmp_path / "c" / "hub.json").write_text('{"dataset": "Owner/Set", "revision": "a1"}')
    report = datacard.tables([tmp_path / name for name in "abc"], "words")
    states = report["provenance"].set_index("dataset")
    assert states["files"].to_dict() == {
        **{"a": "as in the card", "b": "changed since", "c": "no card"}
    }
    assert states.loc["c", ["source", "revision"]].tolist() == ["Owner/Set", "a1"]


def test_the_report_reads_well(tmp_path):
    dataset.save(tmp_path / "a", SMALL)
    dataset.save(tmp_path / "b", Dataset("b", (), SMALL.train))
    shown = datacard.as_text(datacard.tables([tmp_path / "a", tmp_path / "b"], "words"))
    assert "1.5 [1-2]" in shown and "2 / 264" in shown and "█" in shown
    assert "Leaks: 1 in 2 pairs of a training and a test source; 1 have" in shown
    assert str(tmp_path) not in shown
    assert max(map(len, shown.splitlines())) < 200


def test_the_leak_report_does_not_depend_on_the_hash_seed(root):
    here = os.path.dirname(__file__)
    code = (
        "from test_datacard import *\n"
        "print(compare([document(60, i) for i in range(9)], document(60, 3)))"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{root}{os.pathsep}{here}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(shown) == 1 and "'gram_share': 1.0" in shown.pop()
