"""Tables and figures of the miniature, from saved results; no model runs here.

A figure is a function of a table that is on disk: `table_` functions return a DataFrame, `plot_`
functions take one and return a Figure. Results are one row per seed, stage, length and instance:

    seed  stage       length  instance       qa     facts  facts_stored  ...
    0     warm_start  1       miniature/a1   0.400  6      3
    0     grpo        1       miniature/a1   0.900  6      6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from memalpha_kit.figures import style
from memalpha_kit.stats import Interval, nested_interval

STAGES = {"warm_start": "before GRPO", "grpo": "after GRPO"}
STAGE_COLOURS = {"warm_start": style.BEFORE, "grpo": style.AFTER}
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
    "calls that change nothing": ("calls_skipped", "calls"),
}
"""What a writer did, as a share: label -> (columns to add up, columns to divide by)."""


# --- Tables --------------------------------------------------------------------------------------


def columns(found: Interval, name: str = "") -> dict[str, float | None]:
    """An interval as columns of a table: name, name_low, name_high; without a name mean, low, high.

    >>> columns(Interval(0.5, 0.4, 0.6, 9), "gain")
    {'gain': 0.5, 'gain_low': 0.4, 'gain_high': 0.6}
    """
    end = f"{name}_" if name else ""
    return {name or "mean": found.mean, f"{end}low": found.low, f"{end}high": found.high}


def table_lengths(results: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """QA per length and stage, and the paired gain, each with its `nested_interval`.

    `kept` is QA divided by the QA at the shortest length.
    """
    wide = results.pivot(index=["length", "seed", "instance"], columns="stage", values="qa")
    wide["gain"] = wide["grpo"] - wide["warm_start"]
    rows = []
    for length, part in wide.reset_index().groupby("length"):
        row: dict[str, Any] = {"length": length, "seeds": part.seed.nunique(), "n": len(part)}
        for name in ("warm_start", "grpo", "gain"):
            row |= columns(nested_interval(part[name], part.seed, seed=seed, n=resamples), name)
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


def table_measures(results: pd.DataFrame, base: str, resamples: int = 2000) -> pd.DataFrame:
    """A row per measure, length and point of a sweep, after GRPO, with 95 % intervals.

    `results` are a sweep's rows per seed and instance. Columns: measure, length, point, mean, low,
    high, gap, gap_low, gap_high (the difference to `base`, paired by seed and instance), seeds, n.
    Intervals draw seeds first and instances inside them; what an instance has none of is left out.
    """
    after = results[results["stage"] == "grpo"]
    values = {"answers right": after["qa"], "tokens in memory": after["memory_tokens"]}
    for label, (count, total) in SHARES.items():
        if count in after:
            values[label] = after[count] / after[total].where(after[total] > 0)
    rows = []
    for measure, value in values.items():
        wide = after.assign(value=value).pivot(
            index=["length", "seed", "instance"], columns="point", values="value"
        )
        for length, part in wide.groupby("length"):
            seeds = part.index.get_level_values("seed")
            for point in dict.fromkeys(after["point"]):
                row = {"measure": measure, "length": length, "point": point}
                for name, column in (("", part[point]), ("gap", part[point] - part[base])):
                    found = nested_interval(column.tolist(), seeds, seed=0, n=resamples)
                    row |= columns(found, name)
                rows.append(row | {"seeds": seeds.nunique(), "n": found.n})
    return pd.DataFrame(rows)


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


def table_beside(recorded: pd.DataFrame, own: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """This run beside the recorded seeds: is each measure inside what they span?

    Both tables are results (a row per seed, stage, length and instance). A row per length that both
    have and measure: the recorded mean with its two-level 95 % interval, the smallest and the
    largest seed, this run, and `inside`: "yes" if it lies between these two, else "below" or
    "above"; "not measured" if this run has no such value. With few seeds a run as good as they are
    falls outside now and then: of n + 1 equal runs, any one is the lowest or highest in 2 of n + 1.
    """
    rows, theirs, ours = [], _measures(recorded), _measures(own)
    for (length, measure), values in theirs.groupby(["length", "measure"], sort=False):
        if length not in set(own["length"]):
            continue
        interval = nested_interval(values["value"], values["seed"], seed=0, n=resamples)
        per_seed = values.groupby("seed")["value"].mean()
        mine = ours[(ours.length == length) & (ours.measure == measure)]
        value = mine.groupby("seed")["value"].mean().mean()
        low, high = per_seed.min(), per_seed.max()
        inside = "below" if value < low - 1e-9 else "above" if value > high + 1e-9 else "yes"
        row = {"length": length, "measure": measure, "recorded": interval.mean}
        row |= {"low": interval.low, "high": interval.high, "seeds": per_seed.count()}
        row |= {"smallest": low, "largest": high, "this_run": value}
        rows.append(row | {"inside": "not measured" if pd.isna(value) else inside})
    names = "length measure recorded low high seeds smallest largest this_run inside"
    return pd.DataFrame(rows, columns=names.split())  # also where no length is in both


def _measures(results: pd.DataFrame) -> pd.DataFrame:
    """One value per seed, length, instance and measure of quality or behaviour."""
    keys = ["seed", "length", "instance"]
    wide = results.pivot(index=keys, columns="stage", values="qa")
    parts = {"QA before GRPO": wide["warm_start"], "QA after GRPO": wide["grpo"]}
    parts["gain"] = wide["grpo"] - wide["warm_start"]
    for stage, label in STAGES.items():
        rows = results[results.stage == stage].set_index(keys)
        for name, (count, total) in SHARES.items():
            parts[f"{name}, {label}"] = rows[count] / rows[total].where(rows[total] > 0)
    long = pd.concat(parts, names=["measure"]).rename("value").dropna().reset_index()
    return long.sort_values("length", kind="stable")


# --- One policy ----------------------------------------------------------------------------------


def reference_lines(references: pd.DataFrame) -> dict[str, list[float]]:
    """QA of two writers by rule, in order of length, for `plot_lengths`."""
    ordered, writers = references.sort_values("length"), ("perfect", "never updates")
    return {name: ordered.loc[ordered.writer == name, "qa"].tolist() for name in writers}


def plot_lengths(table: pd.DataFrame, reference: Mapping[str, Sequence[float]] = {}) -> Figure:
    """QA before and after GRPO against input length, from `table_lengths`.

    `reference` draws further writers without intervals, one value per length.
    """
    figure, axis = style.panels(style.SINGLE, 58)
    places, ends = list(range(len(table))), []
    for (name, values), line in zip(reference.items(), ("--", ":", "-."), strict=False):
        axis.plot(places, values, line, color=style.QUIET, zorder=1)
        ends.append((f"rule: {name}", places[-1], values[-1], style.QUIET))
    for stage, label in STAGES.items():
        look = {"color": STAGE_COLOURS[stage], "marker": "o", "label": label}
        axis.errorbar(places, table[stage], style.whiskers(table, stage), **look)
        ends.append((label, places[-1], table[stage].iloc[-1], STAGE_COLOURS[stage]))
    axis.set(xticks=places, xticklabels=[f"{n}x" for n in table["length"]], ylim=(0, 1.05))
    axis.set(xlabel="input length (1x: as in training)", ylabel="share of answers right")
    style.label_ends(axis, ends)
    n, seeds = ", ".join(map(str, table["n"])), int(table["seeds"].iloc[0])
    caption = f"Miniature, held-out names, {style.seeds(seeds)}; n = {n} memories."
    return style.finished(figure, f"{caption} {_interval(seeds)}")


def _interval(n_seeds: int) -> str:
    if n_seeds < 2:
        return "A single seed has no interval that holds for another."
    return "Whiskers: 95 % bootstrap over seeds, then instances."


def plot_gain(results: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Gain of GRPO per seed (dots) and over all seeds (bar with 95 % interval), by length."""
    figure, axis = style.panels(style.SINGLE, 50)
    wide = results.pivot(index=["length", "seed", "instance"], columns="stage", values="qa")
    gains = (wide["grpo"] - wide["warm_start"]).groupby(["length", "seed"]).mean()
    labels = [f"{n}x" for n in table["length"]]
    axis.bar(labels, table["gain"], 0.6, yerr=style.whiskers(table, "gain"), color=style.COLOURS[2])
    for place, length in enumerate(table["length"]):
        dots = gains[length]
        step = min(0.05, 0.5 / len(dots))  # inside the bar, however many
        spread = [place + step * (i - (len(dots) - 1) / 2) for i in range(len(dots))]
        axis.plot(spread, dots, "o", color="k", markersize=2.5, zorder=3)
    axis.axhline(0, color="k", linewidth=0.6)
    axis.set(xlabel="input length (1x: as in training)", ylabel="answers right, after - before")
    n, seeds = ", ".join(map(str, table["n"])), int(table["seeds"].iloc[0])
    caption = f"Dots: {style.seeds(seeds)}, paired over instances; n = {n}."
    return style.finished(figure, f"{caption} {_interval(seeds)}")


def plot_behaviour(table: pd.DataFrame, length: int = 1) -> Figure:
    """What is stored and updated at one length, from `table_behaviour`, where anything has it."""
    part = table[table.length == length].set_index(["stage", "what"])
    counts = part.groupby("what")["n"].max()
    shown = [what for what in SHARES if counts[what] > 0]
    if not shown:
        return style.nothing("no instance of this length")
    figure, axis = style.panels(style.SINGLE, 12 + 9 * len(shown))
    for place, (stage, label) in enumerate(STAGES.items()):
        rows = part.loc[[(stage, what) for what in shown]]
        spots = [i + 0.2 * (place - 0.5) for i in range(len(shown))]
        errors = style.whiskers(rows, "share", "low", "high")
        look = {"fmt": "o", "color": STAGE_COLOURS[stage], "label": label}
        axis.errorbar(rows["share"].astype(float), spots, xerr=errors, **look)
    axis.set(yticks=range(len(shown)), yticklabels=shown, xlim=(-0.02, 1.02), xlabel="share")
    axis.set_ylim(len(shown) - 0.5, -0.5)
    figure.legend(loc="outside upper left", ncols=2)
    absent = [what for what in SHARES if what not in shown]
    n = " to ".join(str(n) for n in sorted({counts[shown].min(), counts[shown].max()}))
    caption = f"Miniature at {length}x; n = {n} memories. "
    caption += f"Not measured: {', '.join(absent)}. " if absent else ""
    return style.finished(figure, caption + _interval(2 if part["low"].notna().any() else 1))


def reward_parts(metrics: pd.DataFrame) -> dict[str, str]:
    """Columns of the reward parts, with their labels: the paper's four and those `term_...`."""
    terms = [name for name in map(str, metrics) if name.startswith("term_")]
    return PARTS | {name: name.removeprefix("term_") for name in terms}


def plot_rewards(metrics: pd.DataFrame) -> Figure:
    """The reward parts against GRPO step; with several seeds, their mean and their range.

    A part that was not measured (no judge, say) is named in the caption.
    """
    parts = reward_parts(metrics)
    shown = {part: label for part, label in parts.items() if metrics[part].notna().any()}
    if not shown:
        return style.nothing("no reward was measured")
    figure, axes = style.grid(list(shown), 2, style.DOUBLE, 34, sharex=True)
    columns = [c for c in ("seed", "step", *shown) if c in metrics]
    n = metrics["seed"].nunique() if "seed" in metrics else 1
    marker = "o" if metrics["step"].nunique() < 5 else None
    for axis, (part, label) in zip(axes, shown.items(), strict=True):
        data = metrics[columns].dropna(subset=[part])
        look = {"errorbar": ("pi", 100) if n > 1 else None, "color": style.AFTER, "marker": marker}
        sns.lineplot(data=data, x="step", y=part, ax=axis, **look)
        axis.set(title=label, xlabel="", ylabel="mean over a batch")
        axis.set_ylim(min(0, axis.get_ylim()[0]))
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[-2:]:
        axis.set_xlabel("GRPO step")
        axis.tick_params(labelbottom=True)
    absent = [label for part, label in parts.items() if part not in shown]
    caption = style.seeds(n)
    caption += "; line: their mean, band: from the lowest to the highest" if n > 1 else ""
    caption += f". Not measured: {', '.join(absent)}" if absent else ""
    return style.finished(figure, f"{caption}.")


def plot_warm_start(metrics: pd.DataFrame) -> Figure:
    """Supervised loss against optimiser step, coloured by phase."""
    figure, axis = style.panels(style.SINGLE, 50)
    phases = metrics.groupby(["phase", "step"], sort=False)["loss"].mean()
    for colour, phase in zip(style.COLOURS, phases.index.unique("phase"), strict=False):
        part = phases[phase]
        axis.plot(part.index, part, color=colour, marker="o" if len(part) < 5 else "")
        look = {"color": colour, "ha": "center", "transform": axis.get_xaxis_transform()}
        axis.text((part.index[0] + part.index[-1]) / 2, 1.02, phase, **look)
    axis.set(xlabel="optimiser step", ylabel="loss on the reply, nats (log scale)", yscale="log")
    n = metrics["seed"].nunique() if "seed" in metrics else 1
    caption = f"Warm start, {style.seeds(n)}: copying first, then an imperfect teacher."
    return style.finished(figure, caption)


# --- Many policies -------------------------------------------------------------------------------


def plot_sweep(table: pd.DataFrame, base: str, title: str) -> Figure:
    """QA of every point of a sweep and its paired difference to `base`, with 95 % intervals.

    `table` is from `sweep.table_sweep`; one colour per length, points from top to bottom.
    """
    points, lengths = list(dict.fromkeys(table["point"])), sorted(table["length"].unique())
    figure, axes = style.panels(style.DOUBLE, 7 * len(points) + 18, 2, sharey=True)
    for place, length in enumerate(lengths):
        rows = table[table.length == length].set_index("point").loc[points]
        step = min(0.2, 0.8 / len(lengths))
        spots = [i + step * (place - (len(lengths) - 1) / 2) for i in range(len(points))]
        look = style.dots(place)
        for axis, name in zip(axes, ("qa", "gap"), strict=True):
            kept = (rows.index != base) | (name == "qa")  # the base differs from itself by nothing
            errors = [part[kept] for part in style.whiskers(rows, name)]
            places = [spot for spot, keep in zip(spots, kept, strict=True) if keep]
            axis.errorbar(rows[name][kept], places, xerr=errors, label=f"{length}x", **look)
    axes[0].set(yticks=range(len(points)), yticklabels=[style.in_words(point) for point in points])
    axes[0].set(xlabel="share of answers right after GRPO", title=title.replace("_", " "))
    axes[0].set_ylim(len(points) - 0.5, -0.5)
    axes[1].axvline(0, color="k", linewidth=0.6)
    axes[1].set(xlabel="difference, paired", title=f"Against: {style.in_words(base)}")
    names, labels = axes[0].get_legend_handles_labels()
    figure.legend(names, labels, title="input length", loc="outside right center")
    n = ", ".join(str(n) for n in table.groupby("length")["n"].max())
    caption = f"Miniature, {style.seeds(int(table.seeds.iloc[0]))}; n = {n} memories by length. "
    caption += _interval(table.seeds.iloc[0])
    return style.finished(figure, f"{caption} The left axis does not begin at 0.")


def plot_sweep_curves(curves: pd.DataFrame, measure: str = "reward", window: int = 10) -> Figure:
    """A measure of training against the GRPO step, one line per point: mean over seeds, smoothed.

    `curves` has a row per point, seed and step; `window` steps are averaged. With more than six
    points, neighbours share a colour and every second one is dashed.
    """
    figure, axis = style.panels(style.DOUBLE, 70)
    points, ends = list(dict.fromkeys(curves["point"])), []
    means = curves.pivot_table(index="step", columns="point", values=measure)[points]
    means = means.rolling(window, min_periods=1).mean()
    pairs = len(points) > len(style.COLOURS)
    for i, point in enumerate(points):
        colour = style.COLOURS[i // 2 % len(style.COLOURS) if pairs else i]
        axis.plot(means[point], "--" if pairs and i % 2 else "-", color=colour)
        label = style.in_words(point) + (" (dashed)" if pairs and i % 2 else "")
        ends.append((label, means.index[-1], means[point].iloc[-1], colour))
    axis.set(xlabel="GRPO step", ylabel=measure, xlim=(1, means.index[-1]))
    style.label_ends(axis, ends)
    seeds = style.seeds(curves["seed"].nunique())
    caption = f"Miniature, mean over {seeds} and the last {window} steps."
    return style.finished(figure, f"{caption} The vertical axis does not begin at 0.")


def plot_measures(table: pd.DataFrame, base: str) -> Figure:
    """Paired differences to `base` of every share, a panel per length, from `table_measures`."""
    shares = table[(table["measure"] != "tokens in memory") & (table["point"] != base)]
    measures, lengths = list(dict.fromkeys(shares["measure"])), sorted(shares["length"].unique())
    points = list(dict.fromkeys(shares["point"]))
    size = style.DOUBLE, 7 * len(measures) * len(points) + 24
    shared = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = style.panels(*size, len(lengths), **shared)
    for axis, length in zip(axes.flat, lengths, strict=True):
        for place, point in enumerate(points):
            chosen = (shares["point"] == point) & (shares["length"] == length)
            rows = shares[chosen].set_index("measure").loc[measures]
            step = min(0.24, 0.8 / len(points))
            spots = [i + step * (place - (len(points) - 1) / 2) for i in range(len(rows))]
            errors = style.whiskers(rows, "gap")
            look = style.dots(place) | {"label": style.in_words(point)}
            axis.errorbar(rows["gap"], spots, xerr=errors, **look)
        axis.axvline(0, color="k", linewidth=0.6)
        axis.set(title=f"{length}x input", xlabel="difference, paired")
        axis.set(yticks=range(len(measures)), yticklabels=measures)
    axes[0, 0].set_ylim(len(measures) - 0.5, -0.5)
    if len(points) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    caption = f"Miniature, {style.seeds(int(table.seeds.max()))}, against {style.in_words(base)}. "
    return style.finished(figure, caption + _interval(int(table.seeds.max())))
