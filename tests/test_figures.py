"""Tables worked by hand, figures that draw whatever a small run gives, and the card of a run."""

from __future__ import annotations

import itertools
import json
import math
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from memalpha_kit import files
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.paper import STATISTICS, paper_averages, paper_results
from memalpha_kit.figures import charts, curves, paper, style
from memalpha_kit.figures.targets import table_targets
from memalpha_kit.settings import load_profile, profile_dict

COUNTS = {"facts": 4, "facts_stored": 2, "chat": 2, "chat_stored": 1, "corrections": 0}
COUNTS |= {"corrections_updated": 0, "calls": 4, "calls_ok": 3, "calls_skipped": 0}


def frame(*rows):
    """Results from rows (seed, stage, length, instance, qa[, changed counts])."""
    names = ("seed", "stage", "length", "instance", "qa")
    return pd.DataFrame(
        [dict(zip(names, row, strict=False)) | COUNTS | dict(*row[5:]) for row in rows]
    )


def results(seeds=(0, 1), before=0.25, after=0.75):
    """Two lengths, two instances, every value the same."""
    qa = {"warm_start": before, "grpo": after}
    keys = itertools.product(seeds, qa, (1, 4), range(2))
    return frame(*((s, t, n, f"m/{n}/{i}", qa[t], {"corrections": i}) for s, t, n, i in keys))


# --- Tables --------------------------------------------------------------------------------------

BEFORE_AND_AFTER = {  # by seed, length and instance
    **{(0, 1, "a"): (0.0, 0.5), (0, 1, "b"): (0.5, 1.0), (0, 13, "c"): (0.1, 0.7)},
    **{(1, 1, "a"): (0.2, 1.0), (1, 1, "b"): (0.3, 1.0), (1, 13, "c"): (0.1, 0.7)},
}
BY_HAND = frame(
    *(
        (seed, stage, length, instance, qa)
        for (seed, length, instance), both in BEFORE_AND_AFTER.items()
        for stage, qa in zip(curves.STAGES, both, strict=True)
    )
)


def test_lengths_are_means_over_seeds_of_means_over_instances_also_from_csv(tmp_path):
    table = curves.table_lengths(BY_HAND, resamples=200).set_index("length")
    assert list(table.index) == [1, 13]
    one, last = table.loc[1], table.loc[13]
    assert (one.seeds, one.n, last.n) == (2, 4, 2)
    assert one.warm_start == pytest.approx((0.25 + 0.25) / 2)
    assert one.grpo == pytest.approx((0.75 + 1.0) / 2)
    assert one.gain == pytest.approx((0.5 + 0.75) / 2)
    assert last.gain == pytest.approx(0.6)
    assert (one.kept, last.kept) == (1.0, pytest.approx(0.7 / 0.875))
    assert 0.5 <= one.gain_low <= one.gain <= one.gain_high <= 0.8
    files.save_table(tmp_path / "results.csv", BY_HAND)
    read = curves.table_lengths(pd.read_csv(tmp_path / "results.csv"), resamples=200)
    pd.testing.assert_frame_equal(read, curves.table_lengths(BY_HAND, resamples=200))


def test_gains_are_paired_by_instance_not_by_place():
    shuffled = BY_HAND.sample(frac=1.0, random_state=3)
    table = curves.table_lengths(shuffled, resamples=200)
    pd.testing.assert_frame_equal(table, curves.table_lengths(BY_HAND, resamples=200))
    answers = {"a": 0.2, "b": 0.9}
    keys = itertools.product((0, 1), curves.STAGES, (1,), answers)
    same = frame(*((*key, answers[key[-1]]) for key in keys))
    (row,) = curves.table_lengths(same, resamples=200).itertuples()
    assert (row.gain, row.gain_low, row.gain_high) == (0.0, 0.0, 0.0)


def test_a_missing_answer_is_left_out_of_the_gain_and_a_single_seed_has_no_interval():
    before = (0, "warm_start", 1, "a", 0.5), (0, "warm_start", 1, "b", 0.0)
    after = (0, "grpo", 1, "a", 1.0), (0, "grpo", 1, "b", None)
    (row,) = curves.table_lengths(frame(*before, *after)).itertuples()
    assert (row.gain, row.grpo, row.warm_start) == (0.5, 1.0, 0.25)
    assert pd.isna(row.gain_low) and pd.isna(row.gain_high)


def test_behaviour_is_the_mean_of_the_instances_own_shares():
    table = curves.table_behaviour(
        frame(
            (0, "grpo", 1, "a", 1.0, {"corrections": 4, "corrections_updated": 1}),
            (0, "grpo", 1, "b", 1.0, {"corrections": 1, "corrections_updated": 1}),
            (1, "grpo", 1, "a", 1.0, {"corrections": 0, "calls": 0, "calls_ok": 0}),
            (1, "grpo", 1, "b", 1.0, {"corrections": 2, "corrections_updated": 0}),
        ),
        resamples=100,
    ).set_index("what")
    assert list(table.index) == list(curves.SHARES)
    updated = table.loc["corrections updated"]
    assert updated.share == pytest.approx(((1 / 4 + 1) / 2 + 0) / 2)
    assert updated.n == 3  # an instance without corrections says nothing about them
    assert table.loc["facts stored"].share == 0.5 and table.loc["facts stored"].n == 4
    assert table.loc["calls that ran"].share == 0.75 and table.loc["calls that ran"].n == 3


def test_behaviour_of_nothing_at_all_is_missing_and_not_zero():
    table = curves.table_behaviour(results()).set_index(["stage", "length", "what"])
    assert table.loc["grpo", 1, "corrections updated"].n == 2
    none = curves.table_behaviour(frame((0, "grpo", 1, "a", 1.0))).set_index("what")
    assert pd.isna(none.loc["corrections updated"].share)
    assert none.loc["corrections updated"].n == 0


GOOD = {"gain": 0.3, "gain_low": 0.1, "grpo": 0.94, "kept": 0.96}
DONE = {"corrections updated": 0.91, "chit-chat stored": 0.1, "calls that change nothing": 0.02}


def targets(before=0.02, **changed):
    """The table of targets for a good run with one thing changed."""
    first = {"length": 1} | GOOD | changed
    lengths = pd.DataFrame([first | {"kept": 1.0}, first | {"length": 13, "grpo": 0.0}])
    rows = [("grpo", 1, what, changed.get(what, share)) for what, share in DONE.items()]
    rows += [("grpo", 13, what, 0.5) for what in DONE]
    rows += [("warm_start", 1, what, before) for what in DONE]
    behaviour = pd.DataFrame(rows, columns=["stage", "length", "what", "share"])
    return table_targets(lengths, behaviour)


def test_a_good_run_meets_every_target():
    table = targets()
    assert list(table.columns) == ["target", "at least", "at most", "measured", "met"]
    assert list(table.measured) == [0.3, 0.1, 0.94, 0.96, 0.91, 0.1, 0.0]
    assert table.met.all()


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"gain": 0.2}, 0),
        ({"gain_low": -0.01}, 1),
        ({"gain_low": 0.0}, 1),  # an interval that touches zero is not clear of it
        ({"gain_low": None}, 1),  # a single seed
        ({"grpo": 0.92}, 2),
        ({"kept": 0.94}, 3),
        ({"kept": 0.9496}, 3),  # rounding does not help
        ({"corrections updated": 0.89}, 4),
        ({"corrections updated": None}, 4),  # no correction in the data
        ({"chit-chat stored": 0.11}, 5),
        ({"calls that change nothing": 0.03}, 6),
        ({"before": 0.01}, 6),
    ],
)
def test_a_target_that_is_missed_says_so(changed, missed):
    table = targets(**changed)
    assert list(table.index[~table.met]) == [missed]


def test_reference_lines_are_in_order_of_length():
    rows = [("perfect", 13, 0.5), ("perfect", 1, 1.0), ("never updates", 1, 0.1)]
    table = pd.DataFrame(rows, columns=["writer", "length", "qa"])
    assert curves.reference_lines(table) == {"perfect": [1.0, 0.5], "never updates": [0.1]}


# --- Figures -------------------------------------------------------------------------------------

METRICS = pd.DataFrame(
    {"step": [1, 2], "accuracy": [0.1, 0.2], "format": [1.0, 0.5]}
    | {"compression": [0.5, -0.2], "content": [0.0, 0.3]}
)
SOURCES = pd.DataFrame(
    [
        ("squad", "memory by rule", 2, 0.5, 0.2, 0.9),
        ("squad", "nothing", 2, 0.0, 0.0, 0.0),
        ("trec_coarse", "memory by rule", 1, 1.0, None, None),
    ],
    columns=["source", "method", "questions", "score", "low", "high"],
)
CHUNKS = pd.DataFrame({"source": ["a", "a", "b"], "tokens": [3, 9, 100]})
AVERAGES = paper_averages(paper_results())
GROWTH = pd.DataFrame({"chunk": [0, 1], "read_tokens": [9, 20], "memory_tokens": [3, 30]})


def lengths_of(table):
    return curves.plot_lengths(curves.table_lengths(table, resamples=50))


def gain_of(table):
    return curves.plot_gain(table, curves.table_lengths(table, resamples=50))


def behaviour_of(table):
    return curves.plot_behaviour(curves.table_behaviour(table, resamples=50), 1)


def unanswered(table):
    """The same with the answers of one instance missing."""
    return table.assign(qa=table.qa.mask(table.instance == "m/1/0"))


def ablation():
    """The miniature's sweep at two lengths, of which the first counts."""
    points = {
        f"beta={beta} gamma={gamma}": {"reward.compression": beta, "reward.content": gamma}
        for beta, gamma in ((0.05, 0.1), (0.05, 0.0), (0.2, 0.1))
    }
    columns = {"qa": 0.8, "qa_low": 0.7, "qa_high": None, "compression": 0.75}
    columns |= {"seeds": 2, "n": 6}
    rows = [{"point": p, "length": length} | columns for length in (4, 1) for p in points]
    return curves.table_ablation(pd.DataFrame(rows), points)


def swept(points=2, lengths=2):
    """A sweep's table as `table_sweep` and as `table_measures` make it, all numbers the same."""
    whiskers = {"_low": 0.2, "_high": 0.9, "": 0.5}
    columns = {f"{a}{end}": n for a in ("qa", "gap") for end, n in whiskers.items()}
    columns |= {"measure": "answers right", "seeds": 2, "n": 6}
    places = itertools.product(range(points), range(1, lengths + 1))
    return pd.DataFrame([{"point": f"p{p}", "length": length} | columns for p, length in places])


NO_CALLS = results(seeds=(0,)).assign(calls=0, calls_ok=0, corrections=0)
FIGURES = {
    "lengths": lambda: lengths_of(results()),
    "lengths, one seed": lambda: lengths_of(results(seeds=(0,))),
    "lengths, nothing right": lambda: lengths_of(results(after=0.0, before=0.0)),
    "lengths, missing": lambda: lengths_of(unanswered(results())),
    "lengths, references": lambda: curves.plot_lengths(
        curves.table_lengths(results()), {"perfect": [1.0, 1.0], "never updates": [0.6, 0.5]}
    ),
    "gain": lambda: gain_of(results()),
    "gain, one seed": lambda: gain_of(results(seeds=(0,))),
    "gain, missing": lambda: gain_of(unanswered(results())),
    "gain, fifty seeds": lambda: gain_of(results(seeds=range(50))),
    "behaviour": lambda: behaviour_of(results()),
    "behaviour, one seed": lambda: behaviour_of(results(seeds=(0,))),
    "behaviour, no calls": lambda: behaviour_of(NO_CALLS),
    "rewards": lambda: curves.plot_rewards(METRICS),
    "rewards, one step": lambda: curves.plot_rewards(METRICS[:1]),
    "rewards, two seeds": lambda: curves.plot_rewards(
        pd.concat([METRICS.assign(seed=0), METRICS.assign(seed=1)])
    ),
    "rewards, one seed": lambda: curves.plot_rewards(METRICS.assign(seed=0)),
    "rewards, no judge": lambda: curves.plot_rewards(METRICS.assign(content=None)),
    "warm start": lambda: curves.plot_warm_start(
        pd.DataFrame({"phase": ["copy", "teacher"], "step": [5, 9], "loss": [3.0, 0.1]})
    ),
    "sweep": lambda: curves.plot_sweep(swept(), "p0", "tried"),
    "sweep, nine lengths": lambda: curves.plot_sweep(swept(lengths=9), "p0", "tried"),
    "measures": lambda: curves.plot_measures(swept(), "p0"),
    "measures, nine points": lambda: curves.plot_measures(swept(points=9), "p0"),
    "sources": lambda: charts.plot_sources(SOURCES),
    "sources, one": lambda: charts.plot_sources(SOURCES[2:]),
    "sources, no score": lambda: charts.plot_sources(SOURCES.assign(score=None, low=None)),
    "paper, memory": lambda: paper.plot_paper_memory(AVERAGES, results().assign(memory_tokens=9)),
    "paper, ablation": lambda: paper.plot_paper_ablation(AVERAGES),
    "paper, ablation and ours": lambda: paper.plot_paper_ablation(AVERAGES, ablation()),
    "paper, printed": lambda: paper.plot_printed(paper.table_printed(paper_results(4), AVERAGES)),
    "paper, memory sizes": lambda: paper.plot_memory_sizes(paper_results()),
    "paper, statistics": lambda: paper.plot_statistics(pd.read_csv(STATISTICS, comment="#")),
    "chunks": lambda: charts.plot_chunks(CHUNKS),
    "chunks, one": lambda: charts.plot_chunks(CHUNKS[2:]),
    "chunks, many sources": lambda: charts.plot_chunks(
        pd.DataFrame({"source": list("abcdefghi"), "tokens": range(9)})
    ),
    "memory": lambda: charts.plot_memory(GROWTH),
    "memories": lambda: charts.plot_memories(
        {"before": [], "after": [("Mira " * 30, True)]}, "Made up."
    ),
    "memory, one chunk": lambda: charts.plot_memory(GROWTH[:1]),
}


@pytest.mark.filterwarnings("error", "default::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_without_warnings_fits_a_column_and_every_panel_shows_something(
    name, tmp_path
):
    figure = FIGURES[name]()
    assert plt.get_fignums() == []  # left open nowhere
    path = style.save_figure(figure, tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    width, height = figure.get_size_inches() * 25.4
    assert round(width, 6) in (style.SINGLE, style.DOUBLE) and height < 247  # a page
    assert min(text.get_fontsize() for text in texts(figure)) >= 6
    assert caption(figure) and figure.axes
    for axis in figure.axes:
        drawn = [line for line in axis.lines if len(line.get_xdata())]
        assert drawn or axis.patches or axis.images or axis.collections or axis.texts


def drawn_points(axis):
    """What is drawn with whiskers, by label: x and y of its points."""
    return {group.get_label(): group.lines[0].get_xydata().T.tolist() for group in axis.containers}


def texts(figure):
    """Every text that a reader sees."""
    found = (text for text in figure.findobj(Text) if text.get_visible())
    return [text for text in found if text.get_text().strip()]


def caption(figure):
    """The caption in one line."""
    return " ".join(figure.get_supxlabel().split())


def test_the_figures_show_the_numbers_of_their_tables():
    bars = gain_of(results()).axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.5, 0.5]
    (axis,) = curves.plot_behaviour(curves.table_behaviour(results(), resamples=50), 1).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(curves.SHARES)
    assert drawn_points(axis)["after GRPO"][0] == [0.5, 0.5, 0.0, 0.75, 0.0]
    figure = lengths_of(results())
    drawn = drawn_points(figure.axes[0])
    assert {name: y for name, (_, y) in drawn.items()} == {
        "before GRPO": [0.25, 0.25],
        "after GRPO": [0.75, 0.75],
    }
    assert "2 seeds; n = 4, 4 memories" in caption(figure)
    assert "95 % bootstrap" in caption(figure)


def test_the_dots_of_many_seeds_stay_on_their_bar():
    [axis] = gain_of(results(seeds=range(50))).axes
    spots = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 50]
    assert [round(float(np.mean(x))) for x in spots] == [0, 1]
    assert all(abs(x - place) < 0.3 for place, found in enumerate(spots) for x in found)


def test_colours_never_set_red_against_green():
    used = {*style.COLOURS, *charts.WATERFALL.values(), style.BEFORE, style.AFTER, style.QUIET}
    for colour in used:
        red, green, blue = to_rgb(colour)
        assert not (green > 1.2 * red and green > 1.2 * blue), colour


def test_nothing_is_drawn_where_nothing_was_measured():
    one = lengths_of(results(seeds=(0,)))
    for group in one.axes[0].containers:
        assert all(len(part) < 2 for bars in group.lines[2] for part in bars.get_segments())
        caps = [float(y) for cap in group.lines[1] for y in cap.get_ydata()]
        assert np.isnan(caps).all()
    assert "no interval" in caption(one)
    said = caption(charts.plot_sources(SOURCES, 0.9))
    assert "90 % bootstrap over instances (of one: its questions)" in said
    nothing = curves.plot_behaviour(curves.table_behaviour(NO_CALLS, resamples=50), 1)
    shown = [label.get_text() for label in nothing.axes[0].get_yticklabels()]
    assert shown == ["facts stored", "chit-chat stored"]
    assert "Not measured: corrections updated, calls that ran" in caption(nothing)
    lower = METRICS.assign(seed=9, accuracy=METRICS.accuracy - 0.1)  # a band spans its seeds
    ten = curves.plot_rewards(pd.concat([METRICS.assign(seed=s) for s in range(9)] + [lower]))
    (band,) = ten.axes[0].collections[0].get_paths()
    assert np.ptp(band.vertices[np.isclose(band.vertices[:, 0], 1)][:, 1]) == pytest.approx(0.1)
    rewards = curves.plot_rewards(METRICS.assign(content=None))
    assert len(rewards.axes) == 3 and "Not measured: r4 content" in caption(rewards)
    unmeasured = curves.plot_rewards(METRICS.assign(**dict.fromkeys(curves.PARTS)))
    assert [text.get_text() for text in unmeasured.axes[0].texts] == [
        "nothing to show: no reward was measured"
    ]


def test_made_up_data_is_marked_in_the_figure():
    sizes = {"instances": 2, "tokens_per_instance": 10.0, "tokens_per_chunk": 5.0}
    sizes |= {"tokens_per_chunk_min": 4, "tokens_per_chunk_max": 6, "chunks_per_instance": 2.0}
    sizes |= {"chunks_per_instance_min": 2, "chunks_per_instance_max": 2}
    names = {"dataset": "squad", "source": "squad", "part": "test", "category": "AR"}
    statistics = pd.DataFrame([names | sizes])
    for plot in (charts.plot_sizes, charts.plot_categories):
        for marked in (True, False):
            said = [text.get_text() for text in texts(plot(statistics, made_up=marked))]
            assert ("made-up data" in said) == marked


def test_labels_at_the_ends_of_lines_do_not_touch():
    figure, axis = style.panels(style.SINGLE, 50)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    ends = [(f"line {i}", 1, y, "k") for i, y in enumerate((0.5, 0.51, 0.52, 0.5, math.nan))]
    style.label_ends(axis, ends)
    figure.draw_without_rendering()
    boxes = sorted((box.y0, box.y1) for box in map(Text.get_window_extent, axis.texts))
    plt.close(figure)
    assert len(boxes) == 4  # what is missing has no label
    assert all(low[1] <= high[0] + 1 for low, high in itertools.pairwise(boxes))


def test_only_what_leaks_is_in_the_table_of_leaks():
    columns = ["train", "test", "groups", "questions", "repeated", "shown", "leak"]
    rows = [("a", "b", 0, 10, 0, 0, ""), ("a", "c", 0, 10, 2, 5, ""), ("b", "c", 0, 10, 9, 0, "")]
    table = charts.table_leaks(pd.DataFrame(rows, columns=columns))
    assert table[["train", "test", "share"]].values.tolist() == [["b", "c", 0.9], ["a", "c", 0.5]]


# --- This run beside the recorded seeds ----------------------------------------------------------


def test_a_run_stands_beside_what_the_recorded_seeds_span():
    recorded = pd.concat([results(seeds=(s,), after=0.7 + s / 10) for s in (0, 1, 2)])
    own = results(seeds=(7,), before=0.2, after=0.8).assign(chat_stored=2)
    own = own[own.length == 1].assign(corrections=0)
    table = curves.table_beside(recorded, own, resamples=100)
    assert set(table.length) == {1}  # what this run has not measured is not compared
    none = curves.table_beside(recorded, own.assign(length=99), resamples=100)
    assert list(none) == list(table) and not len(none)
    rows = table.set_index("measure")
    after = rows.loc["QA after GRPO"]
    assert (after.smallest, after.largest) == (0.7, pytest.approx(0.9))
    assert after.recorded == pytest.approx(0.8) and after.low <= 0.8 <= after.high
    assert (after.this_run, after.seeds, after.inside) == (0.8, 3, "yes")
    assert rows.loc["QA before GRPO", "inside"] == "below"
    assert rows.loc["chit-chat stored, after GRPO", "inside"] == "above"
    updated = rows.loc["corrections updated, after GRPO"]
    assert updated.inside == "not measured" and pd.isna(updated.this_run)


# --- The paper's tables --------------------------------------------------------------------------


def test_a_printed_table_keeps_its_columns_and_its_order():
    table = paper.table_printed(paper_results(1), AVERAGES)
    assert table["method"].tolist()[::4] == ["Long-Context", "Mem-alpha (0.05, 0.1)"]
    assert table.columns[1:8].tolist() == [
        *("SQuAD", "HotpotQA", "PerLTQA", "TREC-C", "NLU", "PubMed", "BookSum")
    ]
    row = table.iloc[2]
    assert (row["SQuAD"], row["Avg. printed"], row["Avg. recomputed"]) == (0.091, 0.236, 0.226)
    assert round(row["off by"], 3) == -0.010 and table["off by"].isna().any()


def test_the_lead_of_the_main_setting_by_both_averages():
    margins = paper.table_margins(AVERAGES).set_index("table")
    assert margins.lead_printed.to_dict() == {1: 0.054, 2: 0.09, 3: 0.125, 4: 0.012, 9: 0.012}
    assert margins.lead_recomputed.to_dict() == {1: 0.031, 2: 0.06, 3: 0.103, 4: -0.001, 9: 0.012}
    assert margins.best_other[[1, 2, 4]].tolist() == [
        *("Long-Context", "RAG-Top2", "Mem-alpha (0, 0.1)")
    ]


def test_the_ablation_of_the_miniature_is_that_of_its_training_length():
    table = ablation()
    assert table.beta.tolist() == [0.05, 0.05, 0.2] and table.gamma.tolist() == [0.1, 0.0, 0.1]
    assert set(table.length) == {1} and set(table.memory) == {0.25}


# --- The card ------------------------------------------------------------------------------------


def test_the_card_of_a_run_has_settings_seed_versions_data_hash_and_duration(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("a\n1\n")
    profile = load_profile("ci", ["seed=3"])
    card = files.run_card(tmp_path / "out", profile, time.time() - 2, [data], {"grpo_s": 1.5})
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert saved == card
    assert (saved["profile"], saved["seed"], saved["grpo_s"]) == ("ci", 3, 1.5)
    assert saved["settings"] == json.loads(json.dumps(profile_dict(profile)))
    assert set(files.PACKAGES) < set(saved["versions"]) and "memalpha-kit" in saved["versions"]
    assert saved["data_sha256"] == files.fingerprint([data]) and saved["inputs"] == ["data.csv"]
    assert 1.5 < saved["duration_s"] < 60
    assert str(tmp_path) not in (tmp_path / "out" / "run.json").read_text()


def test_a_card_without_data_says_so_and_one_about_a_file_that_is_gone_is_not_written(
    tmp_path, monkeypatch
):
    profile = load_profile("ci")
    with pytest.raises(InputError, match=r"gone.csv: expected a readable file"):
        files.run_card(tmp_path, profile, time.time(), [tmp_path / "gone.csv"])
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(files, "PACKAGES", ("numpy", "no-such-package"))
    card = files.run_card(tmp_path, profile, time.time())
    assert card["data_sha256"] is None and card["inputs"] == []
    assert card["versions"]["no-such-package"] == "absent" != card["versions"]["numpy"]
