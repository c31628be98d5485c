"""Tables and figures of the miniature, from saved results; no model runs here.

A figure is a function of a table that is on disk: `table_` functions return a DataFrame, `plot_`
functions take one and return a Figure. Results are one row per seed, stage, length and instance:

    seed  stage       length  instance       qa     facts  facts_stored  ...
    0     warm_start  1       miniature/a1   0.400  6      3
    0     grpo        1       miniature/a1   0.900  6      6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from memalpha_kit.figures.style import BAR, COLOURS, finished, panels, whiskers
from memalpha_kit.stats import nested_interval

STAGES = {"warm_start": "before GRPO", "grpo": "after GRPO"}
PARTS = {
    "accuracy": "r1 answers",
    "format": "r2 calls that ran",
    "compression": "r3 compression",
    "content": "r4 content",
}
SHARES = {
    "facts stored": ("facts_stored", "facts"),
    "chit-chat stored": ("chat_stored", "chat"),
    "corrections updated": ("corrections_updated", "corrections"),
    "calls that ran": ("calls_ok", "calls"),
}
"""What a writer did, as a share: label -> (columns to add up, columns to divide by)."""

TARGETS = {
    "gain at the training length": 0.25,
    "lower end of its interval": 0.0,
    "QA after GRPO at the training length": 0.75,
    "QA kept at the longest input": 0.90,
    "corrections handled by a correct update": 0.50,
}
"""What the miniature was asked to reach, set before it was built."""

# --- Tables --------------------------------------------------------------------------------------


def table_lengths(results: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """QA per length and stage, and the paired gain, each with its 95 % interval.

    Intervals draw seeds first and instances inside them (two-level bootstrap), so they hold for a
    new seed, not only for new instances. `kept` is QA divided by the QA at the shortest length.
    """
    wide = results.pivot(index=["length", "seed", "instance"], columns="stage", values="qa")
    wide["gain"] = wide["grpo"] - wide["warm_start"]
    rows = []
    for length, part in wide.reset_index().groupby("length"):
        row = {"length": length, "seeds": part.seed.nunique(), "n": len(part)}
        for name in ("warm_start", "grpo", "gain"):
            found = nested_interval(part[name], part.seed, seed=seed, n=resamples)
            row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(kept=table["grpo"] / table["grpo"].iloc[0])


def table_behaviour(results: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """What the writer stored and updated, per stage and length: share with its 95 % interval.

    A share is the mean over instances of the instance's own share; instances without the thing
    (no correction, say) are left out and not counted.
    """
    rows = []
    for (stage, length), part in results.groupby(["stage", "length"], sort=False):
        for label, (count, total) in SHARES.items():
            used = part[part[total] > 0]
            found = nested_interval(used[count] / used[total], used.seed, seed=seed, n=resamples)
            row = {"stage": stage, "length": length, "what": label, "share": found.mean}
            rows.append(row | {"low": found.low, "high": found.high, "n": found.n})
    return pd.DataFrame(rows)


def table_targets(lengths: pd.DataFrame, behaviour: pd.DataFrame) -> pd.DataFrame:
    """What was asked and what was measured, from `table_lengths` and `table_behaviour`.

    A target is met by the number itself, not by the rounded one; an interval must end above 0. What
    could not be measured (the interval of a single seed, say) is missing and not met.
    """
    first, last = lengths.iloc[0], lengths.iloc[-1]
    rows = behaviour[(behaviour.stage == "grpo") & (behaviour.length == first.length)]
    updated = rows.loc[rows.what == "corrections updated", "share"].iloc[0]
    measured = pd.Series((first.gain, first.gain_low, first.grpo, last.kept, updated), dtype=float)
    table = pd.DataFrame({"target": TARGETS.keys(), "at least": TARGETS.values()})
    met = (measured >= table["at least"]) & (measured > 0)
    return table.assign(measured=measured.round(3), met=met)


def table_ablation(table: pd.DataFrame, points: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """QA and memory of the miniature at its training length, by beta and gamma.

    `table` is a sweep's, `points` the sweep's changes by name of the point. `memory` is the share
    of the chunks' tokens that is kept.
    """
    first = table[table["length"] == table["length"].min()]
    beta, gamma = (
        first["point"].map({name: changes[key] for name, changes in points.items()})
        for key in ("reward.compression", "reward.content")
    )
    return first.assign(beta=beta, gamma=gamma, memory=1 - first["compression"])


# --- One policy ----------------------------------------------------------------------------------


def reference_lines(
    references: pd.DataFrame, writers: Sequence[str] = ("perfect", "never updates")
) -> dict[str, list[float]]:
    """QA of writers by rule, in order of length, for `plot_lengths`."""
    ordered = references.sort_values("length")
    return {name: ordered.loc[ordered.writer == name, "qa"].tolist() for name in writers}


def plot_lengths(table: pd.DataFrame, reference: Mapping[str, Sequence[float]] = {}) -> Figure:
    """QA before and after GRPO against input length, from `table_lengths`.

    `reference` draws further writers without intervals, one value per length.
    """
    figure, axis = panels(6.4, 4.0)
    places = range(len(table))
    for (name, values), line in zip(reference.items(), ("--", ":", "-."), strict=False):
        axis.plot(places, values, line, color="0.55", label=name, zorder=1)
    for (stage, label), colour in zip(STAGES.items(), COLOURS, strict=False):
        style = {"color": colour, "marker": "o", "capsize": 4, "linewidth": 2, "label": label}
        axis.errorbar(places, table[stage], whiskers(table, stage), **style)
    axis.set(xticks=list(places), xticklabels=[f"{n}x" for n in table["length"]], ylim=(0, 1.05))
    axis.set(xlabel="input length (1x = chunks seen in training)", ylabel="held-out QA")
    n = ", ".join(map(str, table["n"]))
    axis.set_title(f"Memory written by the policy, {_seeds(table)} (n = {n})")
    axis.legend(loc="lower left", frameon=True)
    return finished(figure)


def _seeds(table: pd.DataFrame) -> str:
    n = int(table["seeds"].iloc[0])
    return f"{n} {'seed' if n == 1 else 'seeds'}"


def plot_gain(results: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Gain of GRPO per seed (dots) and over all seeds (bar with 95 % interval), by length."""
    figure, axis = panels(6.4, 3.6)
    wide = results.pivot(index=["length", "seed", "instance"], columns="stage", values="qa")
    gains = (wide["grpo"] - wide["warm_start"]).groupby(["length", "seed"]).mean()
    labels = [f"{n}x" for n in table["length"]]
    axis.bar(labels, table["gain"], yerr=whiskers(table, "gain"), capsize=5, color=BAR)
    for place, length in enumerate(table["length"]):
        dots = gains[length]
        spread = [place + 0.06 * (i - (len(dots) - 1) / 2) for i in range(len(dots))]
        label = None if place else "one seed"
        axis.scatter(spread, dots, color="0.2", s=18, zorder=3, label=label)
    axis.axhline(0, color="0.3", linewidth=1)
    axis.set(xlabel="input length", ylabel="QA after - before", title="Paired gain of GRPO")
    axis.legend(loc="lower right", frameon=True)
    return finished(figure)


def plot_behaviour(table: pd.DataFrame, length: int = 1) -> Figure:
    """What is stored and updated before and after GRPO at one length, from `table_behaviour`."""
    figure, axis = panels(6.8, 3.6)
    part = table[table.length == length]
    for place, (stage, label) in enumerate(STAGES.items()):
        rows = part[part.stage == stage].set_index("what").loc[list(SHARES)]
        spots = [i + 0.38 * (place - 0.5) for i in range(len(rows))]
        errors = whiskers(rows, "share", "low", "high")
        style = {"capsize": 4, "color": COLOURS[place], "label": label}
        axis.bar(spots, rows["share"], 0.36, yerr=errors, **style)
    axis.set(xticks=range(len(SHARES)), xticklabels=list(SHARES), ylim=(0, 1.05), ylabel="share")
    axis.set_title(f"What the policy does with a chunk ({length}x)")
    axis.legend(frameon=True)
    return finished(figure)


def plot_rewards(metrics: pd.DataFrame) -> Figure:
    """The reward parts against GRPO step; with several seeds, mean and 95 % band.

    The four of the paper, and the terms of a user's module (columns `term_...`).
    """
    terms = [column for column in metrics if column.startswith("term_")]
    parts = PARTS | {column: column.removeprefix("term_") for column in terms}
    n_rows = 2 + (len(terms) + 1) // 2
    figure, axes = panels(8.4, 2.7 * n_rows, 2, n_rows, sharex=True)
    columns = [c for c in ("seed", "step", *parts) if c in metrics]
    for axis, (part, label) in zip(axes.flat, parts.items(), strict=False):
        data = metrics[columns].dropna(subset=[part])
        band = ("ci", 95) if "seed" in data and data.seed.nunique() > 1 else None
        sns.lineplot(data=data, x="step", y=part, ax=axis, errorbar=band, seed=0)
        axis.set(title=label, xlabel="GRPO step", ylabel="")
    return finished(figure)


def plot_warm_start(metrics: pd.DataFrame) -> Figure:
    """Supervised loss against optimiser step, coloured by phase."""
    figure, axis = panels(6.4, 3.4)
    sns.lineplot(data=metrics, x="step", y="loss", hue="phase", ax=axis, errorbar=None)
    axis.set(xlabel="optimiser step", ylabel="loss on the reply", yscale="log")
    axis.set_title("Warm start: copying first, then an imperfect teacher")
    return finished(figure)


# --- Many policies -------------------------------------------------------------------------------


def plot_sweep(table: pd.DataFrame, base: str, title: str) -> Figure:
    """QA of every point of a sweep and its paired difference to `base`, with 95 % intervals.

    `table` is from `sweep.table_sweep`; one colour per length, points from top to bottom.
    """
    points, lengths = list(dict.fromkeys(table["point"])), sorted(table["length"].unique())
    figure, axes = panels(9.4, 0.5 * len(points) + 1.6, 2, sharey=True)
    for place, length in enumerate(lengths):
        rows = table[table.length == length].set_index("point").loc[points]
        spots = [i + 0.16 * (place - (len(lengths) - 1) / 2) for i in range(len(points))]
        style = {"fmt": "o", "capsize": 3, "markersize": 5, "color": COLOURS[place]}
        for axis, name in zip(axes, ("qa", "gap"), strict=True):
            errors = whiskers(rows, name)
            axis.errorbar(rows[name], spots, xerr=errors, label=f"{length}x", **style)
    axes[0].set(yticks=range(len(points)), yticklabels=points, xlabel="held-out QA after GRPO")
    axes[0].invert_yaxis()
    axes[0].set_title(f"{title} ({_seeds(table)})")
    axes[1].axvline(0, color="0.4", linewidth=1)
    axes[1].set(xlabel="difference to the base, paired", title=f"base: {base}")
    axes[1].legend(title="length", frameon=True)
    return finished(figure)


def plot_sweep_curves(curves: pd.DataFrame, measure: str = "reward", window: int = 10) -> Figure:
    """A measure of training against the GRPO step, one line per point: mean over seeds, smoothed.

    `curves` has a row per point, seed and step; `window` steps are averaged.
    """
    figure, axis = panels(7.2, 4.0)
    points = list(dict.fromkeys(curves["point"]))
    means = curves.pivot_table(index="step", columns="point", values=measure)[points]
    means = means.rolling(window, min_periods=1).mean()
    means.plot(ax=axis, color=sns.color_palette("tab10", len(points)))
    axis.set(xlabel="GRPO step", ylabel=f"{measure} (mean of {window} steps)")
    axis.legend(fontsize=8, frameon=True, bbox_to_anchor=(1.01, 1), loc="upper left")
    return finished(figure)


def plot_grouping(advantages: pd.DataFrame, cosine: pd.DataFrame) -> Figure:
    """What groupings do to the same rollouts, from the tables of `lab.grouping`.

    Left: what each setting's advantages are made of (first stage). Middle: cosines between the
    settings' gradients on the same rollouts, as Adam sees them (first stage). Right: cosine of one
    batch's gradient with the unbiased direction, estimated from other rollouts, by stage.
    """
    figure, axes = panels(15, 4.4, 3, width_ratios=(1.0, 1.15, 1.1))
    first = advantages["stage"].iloc[0]
    seen = cosine[cosine["view"] == "as Adam sees it"]
    order = list(dict.fromkeys(_setting(advantages)))
    _draw_advantages(axes[0], advantages[advantages.stage == first])
    _draw_same(axes[1], seen[(seen.stage == first) & (seen.kind == "same rollouts")], order)
    _draw_direction(axes[2], seen[seen.kind == "unbiased direction"], order)
    axes[0].set_title(f"Advantages, {first}")
    axes[1].set_title(f"Cosine of gradients, same rollouts, {first}")
    axes[2].set_title("Cosine with the unbiased direction")
    return finished(figure)


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
    wide = rows.pivot(index="grouping", columns="measure", values="mean").astype(float)
    wide = wide.loc[list(dict.fromkeys(rows.grouping)), list(labels)].rename(columns=labels)
    wide.rename(index=lambda name: name.replace("_", " ")).plot.bar(ax=axis, rot=0, width=0.75)
    axis.set(xlabel="", ylabel="share (divided by std)", ylim=(0, 1.05))
    axis.legend(fontsize=8, frameon=True)


def _draw_same(axis: plt.Axes, table: pd.DataFrame, order: Sequence[str]) -> None:
    pairs = pd.DataFrame({"a": _setting(table), "b": _setting(table, "other_"), "c": table["mean"]})
    matrix = pairs.pivot(index="a", columns="b", values="c").reindex(index=order[1:])[order[:-1]]
    style = {"cmap": "Blues", "annot": True, "fmt": ".2f", "annot_kws": {"size": 8}, "cbar": False}
    sns.heatmap(matrix.astype(float), ax=axis, vmin=0, vmax=1, **style)
    axis.set(xlabel="", ylabel="")
    axis.grid(False)
    axis.tick_params(labelsize=8)
    plt.setp(axis.get_xticklabels(), rotation=35, ha="right")


def _draw_direction(axis: plt.Axes, table: pd.DataFrame, order: Sequence[str]) -> None:
    table = table.astype(dict.fromkeys(("mean", "low", "high"), float))
    for place, (stage, part) in enumerate(table.groupby("stage", sort=False)):
        spots = [order.index(name) + 0.16 * place for name in _setting(part)]
        errors = [part["mean"] - part["low"], part["high"] - part["mean"]]
        style = {"fmt": "o", "capsize": 3, "color": COLOURS[place], "label": stage}
        axis.errorbar(part["mean"], spots, xerr=errors, **style)
    axis.set(yticks=range(len(order)), yticklabels=order, xlabel="one step's gradient, 95 %")
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)
