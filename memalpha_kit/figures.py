"""Tables and figures from saved numbers, and the card of a run. No model runs here.

The one law: a figure is a function of a table that is on disk (`plot_` takes a DataFrame and
returns a Figure, `table_` returns a DataFrame), so drawing needs neither torch nor a checkpoint.
The miniature's tables are tidy, one row per seed, stage, length and instance:

    seed  stage       length  instance       qa     facts  facts_stored  ...
    0     warm_start  1       miniature/a1   0.400  6      3
    0     grpo        1       miniature/a1   0.900  6      6
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from memalpha_kit import files as store
from memalpha_kit.settings import Profile, profile_dict
from memalpha_kit.stats import nested_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

STAGES = {"warm_start": "before GRPO", "grpo": "after GRPO"}
PARTS = {
    "accuracy": "r1 answers",
    "format": "r2 calls that ran",
    "compression": "r3 compression",
    "content": "r4 content",
}
PACKAGES = ("numpy", "pandas", "torch", "transformers", "trl", "rank-bm25", "papermill")
SHARES = {
    "facts stored": ("facts_stored", "facts"),
    "chit-chat stored": ("chat_stored", "chat"),
    "corrections updated": ("corrections_updated", "corrections"),
    "calls that ran": ("calls_ok", "calls"),
}
"""What a writer did, as a share: label -> (columns to add up, columns to divide by)."""

SHOWN = (
    *("metric", "questions", "missing", "score", "low", "high"),
    *("memory_tokens", "compression", "calls"),
)
"""Columns of `comparison.table_sources` that a reader looks at first."""


def run_card(
    folder: Path,
    profile: Profile,
    started: float,
    inputs: Sequence[Path] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `run.json` into `folder` and return it: settings, seed, versions, data hash, duration.

    `started` is `time.time()` at the beginning; `inputs` are the files the numbers came from.
    """
    card = {
        "profile": profile.name,
        "seed": profile.seed,
        "settings": profile_dict(profile),
        "versions": _versions(),
        "python": platform.python_version(),
        "data_sha256": store.fingerprint(list(inputs)) if inputs else None,
        "inputs": [path.name for path in inputs],
        "duration_s": round(time.time() - started, 1),
        **(extra or {}),
    }
    store.save_json(folder / "run.json", card)
    return card


def settings_hash(profile: Profile) -> str:
    """A short name for exactly these settings, seed included; the profile's own name is not."""
    settings = {**profile_dict(profile), "name": ""}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _versions() -> dict[str, str]:
    found = {"memalpha-kit": metadata.version("memalpha-kit")}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def table_lengths(results: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """QA per length and stage, and the paired gain, each with its 95 % interval.

    Intervals draw seeds first and instances inside them (two-level bootstrap), so they hold for a
    new seed, not only for new instances. `kept` is QA divided by the QA at the shortest length.
    """
    wide = results.pivot(index=["length", "seed", "instance"], columns="stage", values="qa")
    wide["gain"] = wide["grpo"] - wide["warm_start"]
    rows = []
    for length, part in wide.reset_index().groupby("length"):
        row: dict[str, Any] = {"length": length, "seeds": part.seed.nunique(), "n": len(part)}
        for name in ("warm_start", "grpo", "gain"):
            found = nested_interval(part[name], part.seed, seed=seed, n=resamples)
            row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    table = pd.DataFrame(rows)
    table["kept"] = table["grpo"] / table["grpo"].iloc[0]
    return table


def table_behaviour(results: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """What the writer stored and updated, per stage and length: share with its 95 % interval.

    A share is the mean over instances of the instance's own share; instances without the thing
    (no correction, say) are left out and not counted.
    """
    rows = []
    for (stage, length), part in results.groupby(["stage", "length"], sort=False):
        for label, (count, total) in SHARES.items():
            used = part[part[total] > 0]
            share = used[count] / used[total]
            found = nested_interval(share, used.seed, seed=seed, n=resamples)
            rows.append(
                {
                    "stage": stage,
                    "length": length,
                    "what": label,
                    "share": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "n": found.n,
                }
            )
    return pd.DataFrame(rows)


TARGETS = {
    "gain at the training length": 0.25,
    "lower end of its interval": 0.0,
    "QA after GRPO at the training length": 0.75,
    "QA kept at the longest input": 0.90,
    "corrections handled by a correct update": 0.50,
}
"""What the miniature was asked to reach, set before it was built."""


def table_targets(lengths: pd.DataFrame, behaviour: pd.DataFrame) -> pd.DataFrame:
    """What was asked and what was measured, from `table_lengths` and `table_behaviour`.

    A target is met by the number itself, not by the rounded one; an interval must end above 0. What
    could not be measured (the interval of a single seed, say) is missing and not met.
    """
    first, last = lengths.iloc[0], lengths.iloc[-1]
    updated = behaviour[
        (behaviour.stage == "grpo")
        & (behaviour.length == first.length)
        & (behaviour.what == "corrections updated")
    ]
    found = (first.gain, first.gain_low, first.grpo, last.kept, updated.share.iloc[0])
    table = pd.DataFrame({"target": TARGETS.keys(), "at least": TARGETS.values()})
    measured = pd.Series(found, dtype=float)
    table["measured"] = measured.round(3)
    table["met"] = (measured >= table["at least"]) & (measured > 0)
    return table


def table_printed(rows: pd.DataFrame, averages: pd.DataFrame) -> pd.DataFrame:
    """One table of the paper as printed, its averages beside those of its columns.

    From `comparison.paper_results` and `paper_averages`: a row per method, a column per data set,
    then both averages of the scores, by how much the recomputed one is off (blank if it is rounding
    only), and both averages of the memory in thousands of tokens.
    """
    rows = rows.assign(method=_printed_name(rows))
    order, columns = rows["method"].unique(), [n for n in rows["dataset"].unique() if n != "Avg."]
    wide = rows.pivot(index="method", columns="dataset", values="score").loc[order, columns]
    mine = averages[averages["table"].isin(rows["table"])]
    mine = mine.set_index(_printed_name(mine)).loc[order]
    wide["Avg. printed"] = mine["score_printed"]
    wide["Avg. recomputed"] = mine["score_recomputed"]
    wide["off by"] = (mine["score_recomputed"] - mine["score_printed"]).where(mine["differs"])
    wide["k tokens printed"] = mine["memory_ktok_printed"]
    wide["k tokens recomputed"] = mine["memory_ktok_recomputed"]
    return wide.rename_axis(columns=None).reset_index()


def show_printed(table: pd.DataFrame) -> Styler:
    """`table_printed` for people: few digits, averages that are off in colour."""
    colour = table["off by"].notna().map({True: "background-color: #fde2c8", False: ""})
    tokens = [name for name in table if name.startswith("k tokens")]
    shown = table.style.hide(axis="index").format(precision=3, na_rep="")
    shown = shown.format("{:+.3f}", subset=["off by"], na_rep="")
    shown = shown.format("{:.2f}", subset=tokens, na_rep="")
    shown = shown.set_properties(subset=["method"], **{"white-space": "nowrap"})
    shown = shown.set_table_attributes('style="font-size: 85%"')
    return shown.apply(lambda _: colour, subset=["Avg. printed", "Avg. recomputed", "off by"])


def table_margins(averages: pd.DataFrame) -> pd.DataFrame:
    """The lead of the paper's main setting over the best other row, table by table.

    From `comparison.paper_averages`; `best_other` is the best by the recomputed average.
    """
    rows = []
    for number, part in averages.assign(name=_printed_name(averages)).groupby("table"):
        main = (part["beta"] == MAIN[0]) & (part["gamma"] == MAIN[1])
        other, row = part[~main], {"table": number}
        row["best_other"] = other.loc[other["score_recomputed"].idxmax(), "name"]
        for name in ("printed", "recomputed"):
            lead = part.loc[main, f"score_{name}"].iloc[0] - other[f"score_{name}"].max()
            row[f"lead_{name}"] = round(lead, 3)
        rows.append(row)
    return pd.DataFrame(rows)


MAIN = (0.05, 0.1)
"""Beta and gamma of the paper's main setting."""


def table_ablation(table: pd.DataFrame, points: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """QA and memory of the miniature at its training length, by beta and gamma.

    `table` is from `sweep.table_sweep`, `points` the sweep's changes by name of the point. `memory`
    is the share of the chunks' tokens that is kept.
    """
    first = table[table["length"] == table["length"].min()]
    beta, gamma = (
        first["point"].map({name: changes[key] for name, changes in points.items()})
        for key in ("reward.compression", "reward.content")
    )
    return first.assign(beta=beta, gamma=gamma, memory=1 - first["compression"])


def _printed_name(rows: pd.DataFrame) -> pd.Series:
    """`Mem-alpha (0.05, 0.1)` with beta and gamma where the paper's row has them."""
    pairs = " (" + rows["beta"].map("{:g}".format) + ", " + rows["gamma"].map("{:g}".format) + ")"
    return rows["method"] + pairs.where(rows["beta"].notna(), "")


def reference_lines(
    references: pd.DataFrame, writers: Sequence[str] = ("perfect", "never updates")
) -> dict[str, list[float]]:
    """QA of writers by rule, in order of length, for `plot_lengths`."""
    ordered = references.sort_values("length")
    return {name: ordered.loc[ordered.writer == name, "qa"].tolist() for name in writers}


def plot_lengths(table: pd.DataFrame, reference: Mapping[str, Sequence[float]] = {}) -> Figure:
    """QA before and after GRPO against input length, from `table_lengths`.

    `reference` draws further writers without intervals, one value per length (perfect writer, one
    that never updates, ...).
    """
    _style()
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    colours = dict(zip(STAGES, sns.color_palette("colorblind"), strict=False))
    places = range(len(table))
    for (name, values), line in zip(reference.items(), ("--", ":", "-."), strict=False):
        axis.plot(places, values, line, color="0.55", label=name, zorder=1)
    for stage, label in STAGES.items():
        axis.errorbar(
            places, table[stage], _whiskers(table, stage), color=colours[stage], marker="o",
            capsize=4, linewidth=2, label=label,
        )  # fmt: skip
    axis.set(xticks=list(places), xticklabels=[f"{n}x" for n in table["length"]], ylim=(0, 1.05))
    axis.set(xlabel="input length (1x = chunks seen in training)", ylabel="held-out QA")
    seeds, n = int(table["seeds"].iloc[0]), table["n"].tolist()
    noun = "seed" if seeds == 1 else "seeds"
    axis.set_title(f"Memory written by the policy, {seeds} {noun} (n = {', '.join(map(str, n))})")
    axis.legend(loc="lower left", frameon=True)
    return _finished(figure)


def plot_gain(results: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Gain of GRPO per seed (dots) and over all seeds (bar with 95 % interval), by length."""
    _style()
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    wide = results.pivot(index=["length", "seed", "instance"], columns="stage", values="qa")
    gains = (wide["grpo"] - wide["warm_start"]).groupby(["length", "seed"]).mean().reset_index()
    labels = [f"{n}x" for n in table["length"]]
    axis.bar(labels, table["gain"], yerr=_whiskers(table, "gain"), capsize=5, color="#8fb8de")
    for place, length in enumerate(table["length"]):
        dots = gains[gains.length == length][0]
        spread = [place + 0.06 * (i - (len(dots) - 1) / 2) for i in range(len(dots))]
        label = None if place else "one seed"
        axis.scatter(spread, dots, color="0.2", s=18, zorder=3, label=label)
    axis.axhline(0, color="0.3", linewidth=1)
    axis.set(xlabel="input length", ylabel="QA after - before", title="Paired gain of GRPO")
    axis.legend(loc="lower right", frameon=True)
    return _finished(figure)


def plot_behaviour(table: pd.DataFrame, length: int = 1) -> Figure:
    """What is stored and updated before and after GRPO at one length, from `table_behaviour`."""
    _style()
    part = table[table.length == length]
    figure, axis = plt.subplots(figsize=(6.8, 3.6))
    for place, (stage, label) in enumerate(STAGES.items()):
        rows = part[part.stage == stage].set_index("what").loc[list(SHARES)]
        spots = [i + 0.38 * (place - 0.5) for i in range(len(rows))]
        low, high = rows["share"] - rows["low"], rows["high"] - rows["share"]
        errors = [low.fillna(0).clip(lower=0), high.fillna(0).clip(lower=0)]
        colour = sns.color_palette("colorblind")[place]
        axis.bar(spots, rows["share"], 0.36, yerr=errors, capsize=4, color=colour, label=label)
    axis.set(xticks=range(len(SHARES)), xticklabels=list(SHARES), ylim=(0, 1.05), ylabel="share")
    axis.set_title(f"What the policy does with a chunk ({length}x)")
    axis.legend(frameon=True)
    return _finished(figure)


def plot_rewards(metrics: pd.DataFrame) -> Figure:
    """The four reward parts against GRPO step; with several seeds, mean and 95 % band."""
    _style()
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 5.4), sharex=True)
    columns = [c for c in ("seed", "step", *PARTS) if c in metrics]
    for axis, (part, label) in zip(axes.flat, PARTS.items(), strict=True):
        data = metrics[columns].dropna(subset=[part])
        band = ("ci", 95) if "seed" in data and data.seed.nunique() > 1 else None
        sns.lineplot(data=data, x="step", y=part, ax=axis, errorbar=band, seed=0)
        axis.set(title=label, xlabel="GRPO step", ylabel="")
    return _finished(figure)


def plot_warm_start(metrics: pd.DataFrame) -> Figure:
    """Supervised loss against optimiser step, coloured by phase."""
    _style()
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    sns.lineplot(data=metrics, x="step", y="loss", hue="phase", ax=axis, errorbar=None)
    axis.set(xlabel="optimiser step", ylabel="loss on the reply", yscale="log")
    axis.set_title("Warm start: copying first, then an imperfect teacher")
    return _finished(figure)


def plot_grouping(advantages: pd.DataFrame, cosine: pd.DataFrame) -> Figure:
    """What groupings do to the same rollouts, from the tables of `grouping.py`.

    Left: what each setting's advantages are made of (first stage). Middle: cosines between the
    settings' gradients on the same rollouts, as Adam sees them (first stage). Right: cosine of one
    batch's gradient with the unbiased direction, estimated from other rollouts, by stage.
    """
    _style()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), width_ratios=(1.0, 1.15, 1.1))
    first = advantages["stage"].iloc[0]
    seen = cosine[cosine["view"] == "as Adam sees it"]
    order = list(dict.fromkeys(_setting(advantages)))
    _draw_advantages(axes[0], advantages[advantages.stage == first])
    _draw_same(axes[1], seen[(seen.stage == first) & (seen.kind == "same rollouts")], order)
    _draw_direction(axes[2], seen[seen.kind == "unbiased direction"], order)
    axes[0].set_title(f"Advantages, {first}")
    axes[1].set_title(f"Cosine of gradients, same rollouts, {first}")
    axes[2].set_title("Cosine with the unbiased direction")
    return _finished(figure)


def _setting(table: pd.DataFrame, prefix: str = "") -> pd.Series:
    """Names such as `chunk / std`."""
    return table[f"{prefix}grouping"].str.replace("_", " ") + " / " + table[f"{prefix}scale"]


def _draw_advantages(axis: plt.Axes, table: pd.DataFrame) -> None:
    labels = {
        "by_chunk": "explained by chunk index",
        "by_rollout": "explained by rollout",
        "sign_flips": "sign differs from released",
        "zero_rows": "zero",
    }
    rows = table[(table.scale == "std") & table.measure.isin(labels)]
    wide = rows.pivot(index="grouping", columns="measure", values="mean")
    wide = wide.loc[list(dict.fromkeys(rows.grouping)), list(labels)].rename(columns=labels)
    wide = wide.astype(float)
    wide.index = wide.index.str.replace("_", " ")
    wide.plot.bar(ax=axis, rot=0, width=0.75)
    axis.set(xlabel="", ylabel="share (divided by std)", ylim=(0, 1.05))
    axis.legend(fontsize=8, frameon=True)


def _draw_same(axis: plt.Axes, table: pd.DataFrame, order: Sequence[str]) -> None:
    pairs = pd.DataFrame({"a": _setting(table), "b": _setting(table, "other_"), "c": table["mean"]})
    matrix = pairs.pivot(index="a", columns="b", values="c").reindex(index=order[1:])
    sns.heatmap(
        matrix[order[:-1]].astype(float), ax=axis, vmin=0, vmax=1, cmap="Blues", annot=True,
        fmt=".2f", annot_kws={"size": 8}, cbar=False,
    )  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.grid(False)
    axis.tick_params(labelsize=8)
    plt.setp(axis.get_xticklabels(), rotation=35, ha="right")


def _draw_direction(axis: plt.Axes, table: pd.DataFrame, order: Sequence[str]) -> None:
    colours = sns.color_palette("colorblind")
    table = table.astype(dict.fromkeys(("mean", "low", "high"), float))
    for place, (stage, part) in enumerate(table.groupby("stage", sort=False)):
        spots = [order.index(name) + 0.16 * place for name in _setting(part)]
        errors = [part["mean"] - part["low"], part["high"] - part["mean"]]
        axis.errorbar(
            part["mean"], spots, xerr=errors, fmt="o", capsize=3, color=colours[place], label=stage
        )
    axis.set(yticks=range(len(order)), yticklabels=order, xlabel="one step's gradient, 95 %")
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)


def plot_sources(table: pd.DataFrame) -> Figure:
    """Scores of methods with 95 % intervals, one panel per source, from `table_sources`."""
    _style()
    sources = list(dict.fromkeys(table["source"]))
    methods = list(dict.fromkeys(table["method"]))[::-1]
    figure, axes = plt.subplots(
        1, len(sources), figsize=(2.6 * len(sources) + 2.2, 0.34 * len(methods) + 1.5),
        sharey=True, squeeze=False,
    )  # fmt: skip
    for axis, source in zip(axes.flat, sources, strict=True):
        rows = table[table.source == source]
        places = [methods.index(method) for method in rows["method"]]
        errors = [rows["score"] - rows["low"], rows["high"] - rows["score"]]
        errors = [e.astype(float).clip(lower=0) for e in errors]
        axis.barh(places, rows["score"].astype(float), xerr=errors, capsize=3, color="#8fb8de")
        axis.set_title(f"{source}\n(n = {int(rows['questions'].iloc[0])})", fontsize=10)
        axis.set(xlim=(0, 1), xlabel="score", yticks=range(len(methods)), yticklabels=methods)
        axis.tick_params(axis="y", labelsize=8)
    return _finished(figure)


def plot_chunks(table: pd.DataFrame) -> Figure:
    """Distribution of chunk lengths in tokens, one panel per source (its own scale)."""
    _style()
    sources = list(dict.fromkeys(table["source"]))
    n_rows = -(-len(sources) // 4)
    figure, axes = plt.subplots(n_rows, 4, figsize=(11, 2.6 * n_rows), squeeze=False)
    for axis in axes.flat[len(sources) :]:
        axis.set_visible(False)
    for axis, source in zip(axes.flat, sources, strict=False):
        tokens = table.loc[table.source == source, "tokens"]
        axis.hist(tokens, bins=min(20, max(1, tokens.nunique())), color="#8fb8de", edgecolor="0.4")
        axis.set(title=f"{source} ({len(tokens)} chunks)", xlabel="tokens per chunk")
    return _finished(figure)


def plot_sizes(statistics: pd.DataFrame) -> Figure:
    """Tokens per chunk and chunks per instance of every source: mean, smallest and largest."""
    _style()
    rows = statistics.drop_duplicates(["dataset", "source"]).iloc[::-1]
    names = [d if d == s else f"{d}: {s}" for d, s in zip(rows.dataset, rows.source, strict=True)]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.27 * len(rows) + 1.2), sharey=True)
    titles = {"tokens_per_chunk": "tokens per chunk", "chunks_per_instance": "chunks per instance"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        reach = [rows[name] - rows[f"{name}_min"], rows[f"{name}_max"] - rows[name]]
        axis.errorbar(rows[name], names, xerr=reach, fmt="o", color="#2b6ca3", markersize=4)
        axis.set(title=title, xscale="log")
        axis.tick_params(axis="y", labelsize=7)
    return _finished(figure)


def plot_categories(statistics: pd.DataFrame) -> Figure:
    """Share of each category (AR, TTL, LRU, CR) in instances and in tokens, by part."""
    _style()
    table = statistics.assign(tokens=statistics.instances * statistics.tokens_per_instance)
    sums = table.groupby(["part", "category"])[["instances", "tokens"]].sum()
    shares = sums / sums.groupby("part").transform("sum")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for axis, name in zip(axes, ("instances", "tokens"), strict=True):
        shares[name].unstack("category").plot.bar(stacked=True, ax=axis, legend=False, rot=0)
        axis.set(title=f"share of {name}", xlabel="", ylim=(0, 1))
    axes[1].legend(bbox_to_anchor=(1, 1), loc="upper left", frameon=False)
    return _finished(figure)


def plot_leaks(leaks: pd.DataFrame) -> Figure:
    """Share of each test set's questions that training gives away, as a matrix.

    That is: training asks it with a common answer, or shows its sentence with a label.
    """
    _style()
    found = leaks.assign(
        share=leaks[["repeated", "shown"]].max(axis=1) / leaks["questions"].clip(lower=1)
    )
    matrix = found.pivot(index="train", columns="test", values="share")
    figure, axis = plt.subplots(figsize=(0.42 * matrix.shape[1] + 3.4, 0.34 * len(matrix) + 3.0))
    sns.heatmap(
        matrix.astype(float), ax=axis, cmap="OrRd", vmin=0, vmax=1, linewidths=0.4, annot=True,
        fmt=".2f", annot_kws={"size": 6}, cbar=False,
    )  # fmt: skip
    axis.set(
        title="Test questions that training gives away (share)",
        xlabel="test set",
        ylabel="training",
    )
    axis.tick_params(labelsize=7)
    return _finished(figure)


def plot_memory(table: pd.DataFrame) -> Figure:
    """Memory tokens and entries after each chunk of one episode, beside the tokens read."""
    _style()
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    axis.step(table["chunk"], table["read_tokens"], where="mid", color="0.55", label="tokens read")
    axis.step(table["chunk"], table["memory_tokens"], where="mid", label="tokens in memory")
    axis.set(xlabel="chunk", ylabel="tokens", title="Tokens read and tokens kept")
    axis.legend(frameon=True)
    return _finished(figure)


def plot_paper_memory(averages: pd.DataFrame, results: pd.DataFrame) -> Figure:
    """Score against tokens in memory: tables 1 and 2 of the paper, and the miniature beside them.

    `averages` is from `comparison.paper_averages`: recomputed ones are filled, printed ones hollow
    where they differ. `results` are the recorded seeds: a dot per stage and length.
    """
    _style()
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.0))
    for axis, number in zip(axes, (1, 2), strict=False):
        _draw_memory(axis, averages[averages["table"] == number])
        axis.set(xlabel="memory, thousands of tokens", title=f"Paper, table {number}")
    means = results.groupby(["stage", "length"])[["memory_tokens", "qa"]].mean()
    for (stage, label), colour in zip(
        STAGES.items(), sns.color_palette("colorblind"), strict=False
    ):
        part = means.loc[stage]
        axes[2].plot(part["memory_tokens"], part["qa"], "o-", color=colour, label=label)
        for length, (tokens, qa) in part.iterrows():
            axes[2].annotate(f"{length}x", (tokens, qa), (4, 5), textcoords="offset points")
    axes[2].set(xlabel="memory, tokens", title="Miniature, recorded seeds", ylim=(0, 1))
    axes[2].legend(frameon=True, loc="lower right")
    for axis in axes:
        axis.set(xscale="log", ylabel="score")
        axis.margins(x=0.2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axes[2].set_xticks([20, 50, 100, 200])
    return _finished(figure)


def _draw_memory(axis: plt.Axes, table: pd.DataFrame) -> None:
    for place, (_, row) in enumerate(table.iterrows()):
        colour, spot = sns.color_palette("colorblind")[place], row["memory_ktok_recomputed"]
        axis.plot(spot, row["score_recomputed"], "o", color=colour, label=row["method"])
        if row["differs"]:
            axis.plot(spot, row["score_printed"], "o", color=colour, markerfacecolor="none")
    axis.set(ylim=(0, 0.75))
    axis.legend(frameon=True, fontsize=8, loc="upper left")


ABLATED = {4: "paper, validation (table 4)", 9: "paper, MemoryAgentBench (table 9)"}


def plot_paper_ablation(averages: pd.DataFrame, ours: pd.DataFrame | None = None) -> Figure:
    """Score and memory against beta at gamma 0.1, and what gamma 0 costs at beta 0.05.

    `averages` as in `plot_paper_memory`; `ours` has columns beta, gamma, qa (with its interval) and
    memory, all as shares: the miniature under the same weights, if it was recorded.
    """
    _style()
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.0), width_ratios=(1.2, 1.2, 0.8))
    palette = sns.color_palette("colorblind")
    for colour, (number, label) in zip(palette, ABLATED.items(), strict=False):
        part = averages[averages["table"] == number].sort_values("beta")
        line, low = part[part.gamma == MAIN[1]], part[part.gamma == 0.0]
        axes[0].plot(line["beta"], line["score_recomputed"], "o-", color=colour, label=label)
        off = line[line["differs"]]
        axes[0].plot(off["beta"], off["score_printed"], "o", color=colour, markerfacecolor="none")
        base = line[line.beta == MAIN[0]].iloc[0]
        share = line["memory_ktok_recomputed"] / base["memory_ktok_recomputed"]
        axes[1].plot(line["beta"], share, "o-", color=colour, label=label)
        pair = [low["score_recomputed"].iloc[0], base["score_recomputed"]]
        axes[2].plot([0, 0.1], pair, "o-", color=colour, label=label)
    if ours is not None:
        _draw_ours(axes, ours, palette[2])
    axes[0].set(xlabel="beta (gamma 0.1)", ylabel="score", ylim=(0, 1))
    axes[0].legend(frameon=True, fontsize=8, loc="lower left")
    axes[1].set(xlabel="beta (gamma 0.1)", ylabel="memory / that at beta 0.05", ylim=(0, 1.4))
    for axis in axes[:2]:
        axis.set_xticks(sorted(averages["beta"].dropna().unique()))
    axes[2].set(xlabel="gamma (beta 0.05)", ylabel="score", ylim=(0, 1), xlim=(-0.03, 0.13))
    axes[2].set(xticks=(0, 0.1))
    return _finished(figure)


def _draw_ours(axes: Sequence[plt.Axes], ours: pd.DataFrame, colour: Any) -> None:
    line = ours[ours.gamma == 0.1].sort_values("beta")
    pair = ours[(ours.beta == 0.05) & ours.gamma.isin((0.0, 0.1))].sort_values("gamma")
    style = {"fmt": "s-", "color": colour, "capsize": 3, "label": "miniature, 1x"}
    axes[0].errorbar(line["beta"], line["qa"], _whiskers(line, "qa"), **style)
    axes[1].plot(
        line["beta"],
        line["memory"] / line.loc[line.beta == 0.05, "memory"].iloc[0],
        "s-",
        color=colour,
    )
    axes[2].errorbar(pair["gamma"], pair["qa"], _whiskers(pair, "qa"), **style)


def plot_sweep(table: pd.DataFrame, base: str, title: str) -> Figure:
    """QA of every point of a sweep and its paired difference to `base`, with 95 % intervals.

    `table` is from `sweep.table_sweep`; one colour per length, points from top to bottom.
    """
    _style()
    points, lengths = list(dict.fromkeys(table["point"])), sorted(table["length"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 0.5 * len(points) + 1.6), sharey=True)
    for place, length in enumerate(lengths):
        rows = table[table.length == length].set_index("point").loc[points]
        spots = [i + 0.16 * (place - (len(lengths) - 1) / 2) for i in range(len(points))]
        for axis, name in zip(axes, ("qa", "gap"), strict=True):
            axis.errorbar(
                rows[name], spots, xerr=_whiskers(rows, name), fmt="o", capsize=3, markersize=5,
                color=sns.color_palette("colorblind")[place], label=f"{length}x",
            )  # fmt: skip
    seeds = int(table["seeds"].iloc[0])
    axes[0].set(yticks=range(len(points)), yticklabels=points, xlabel="held-out QA after GRPO")
    axes[0].invert_yaxis()
    axes[0].set_title(f"{title} ({seeds} {'seed' if seeds == 1 else 'seeds'})")
    axes[1].axvline(0, color="0.4", linewidth=1)
    axes[1].set(xlabel="difference to the base, paired", title=f"base: {base}")
    axes[1].legend(title="length", frameon=True)
    return _finished(figure)


WATERFALL = {
    "correct": "#55a868",
    "never_written": "#c44e52",
    "overwritten_or_deleted": "#dd8452",
    "not_retrieved": "#e8b94c",
    "not_used": "#8172b3",
    "metric_too_strict": "#64b5cd",
    "unknown": "0.8",
}
"""Colours of the stages, in the order in which evidence can be lost."""


def plot_waterfall(table: pd.DataFrame) -> Figure:
    """Share of answers by the stage at which they failed, from `waterfall.table_waterfall`."""
    _style()
    one_source = table["source"].nunique() == 1
    columns = ["writer", "reader"] if one_source else ["source", "writer", "reader"]
    names = table[columns].agg(lambda row: "\n".join(filter(None, row)), axis=1)
    wide = table.assign(name=names, stage=table["stage"].astype(str))
    wide = wide.pivot(index="name", columns="stage", values="share").loc[names.unique()[::-1]]
    figure, axis = plt.subplots(figsize=(8.4, 0.62 * len(wide) + 1.8))
    left = pd.Series(0.0, wide.index)
    for stage, colour in WATERFALL.items():
        axis.barh(wide.index, wide[stage], left=left, color=colour, label=stage.replace("_", " "))
        left += wide[stage]
    title = f"Where answers are lost{f': {table.source.iloc[0]}' if one_source else ''}"
    axis.set(xlim=(0, 1), xlabel="share of answers", title=title)
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(bbox_to_anchor=(1, 1), loc="upper left", frameon=False, fontsize=8)
    return _finished(figure)


def plot_sweep_curves(curves: pd.DataFrame, measure: str = "reward", window: int = 10) -> Figure:
    """A measure of training against the GRPO step, one line per point: mean over seeds, smoothed.

    `curves` has a row per point, seed and step; `window` steps are averaged.
    """
    _style()
    figure, axis = plt.subplots(figsize=(7.2, 4.0))
    points = list(dict.fromkeys(curves["point"]))
    means = curves.pivot_table(index="step", columns="point", values=measure)[points]
    colours = sns.color_palette("tab10", len(points))
    for colour, point in zip(colours, points, strict=True):
        smooth = means[point].rolling(window, min_periods=1).mean()
        axis.plot(smooth.index, smooth, color=colour, label=point)
    axis.set(xlabel="GRPO step", ylabel=f"{measure} (mean of {window} steps)")
    axis.legend(fontsize=8, frameon=True, bbox_to_anchor=(1.01, 1), loc="upper left")
    return _finished(figure)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all; the path is returned."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    store.save_bytes(path, image.getvalue())
    return path


def _whiskers(table: pd.DataFrame, name: str) -> list[pd.Series]:
    """Distances from the mean to both ends of the interval; 0 where there is none."""
    low, high = table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]
    return [part.astype(float).fillna(0).clip(lower=0) for part in (low, high)]


def _style() -> None:
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook", font_scale=0.9)


def _finished(figure: Figure) -> Figure:
    figure.tight_layout()
    plt.close(figure)  # the caller shows or saves it; an open one would be drawn twice
    return figure
