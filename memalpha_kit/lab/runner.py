"""One runner for recorded seeds, sweeps and the grouping study of the miniature.

The one law: a policy is a function of its settings and seed, so its folder is named by them:

    runs/seed_0/warm_start-0a1b2c3d4e5f/    policy/, metrics.csv, results.csv, done.json
    runs/seed_0/grpo-5f4e3d2c1b0a/          the same

A folder with `done.json`, written last, is used again by whoever asks for the same settings; one
without goes on where it stopped. Settings that agree in everything a warm start depends on share
it, so what they compare is GRPO.

A sweep is a YAML file: a profile, seeds, settings that all points share, and the points, either
named one by one or as a grid of values per setting:

    profile: laptop
    seeds: [0, 1, 2]
    settings: {grpo.steps: 100}
    grid: {advantage.grouping: [instance, chunk], advantage.scale: [std, none]}
    base: {advantage.grouping: instance, advantage.scale: std}

What the paper varies in the same way stands in its tables 4 and 9.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from memalpha_kit import files
from memalpha_kit.errors import InputError, closest
from memalpha_kit.figures.curves import (
    columns,
    plot_lengths,
    plot_sweep,
    reference_lines,
    table_lengths,
    table_measures,
)
from memalpha_kit.figures.style import save_figure
from memalpha_kit.lab import miniature
from memalpha_kit.registry import fresh_processes
from memalpha_kit.sections import Seed, about, read_yaml, section, settings_from
from memalpha_kit.settings import Profile, load_profile, profile_dict
from memalpha_kit.stats import nested_interval

SWEEPS = Path(__file__).parents[1] / "sweeps"
WARM_PARTS = (
    *("seed", "threads", "memory", "protocol", "world", "policy", "warm_start", "evaluation"),
)
"""Sections of a profile that a warm start and its results depend on."""

MEASURES = (
    *("instance", "length", "qa", "memory_tokens", "compression", "calls", "calls_skipped"),
    *("facts", "facts_stored", "chat", "chat_stored"),
    *("corrections", "corrections_stale", "corrections_updated", "updates", "updates_wrong"),
)
WARM_START = "(warm start)"
"""What stands for a point in the rows of a warm start, which several points may share."""

CURVES = ("step", "reward", "accuracy", "content", "calls", "updates", "flat_rows")


# --- One policy -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A policy to train and to measure: the warm start of a profile, or what GRPO makes of it."""

    profile: Profile
    runs: Path
    name: str = "grpo"  # or warm_start

    def __post_init__(self) -> None:
        miniature.environment(self.profile)  # what it must refuse is refused before any training

    @property
    def warm(self) -> Stage:
        """The warm start that this stage begins with."""
        return replace(self, name="warm_start")

    @property
    def folder(self) -> Path:
        """Where it lies, named by all that it depends on."""
        parts = profile_dict(self.profile) | {"name": ""}
        if self.name == "warm_start":
            parts = {name: parts[name] for name in WARM_PARTS}
        return self.runs / f"seed_{self.profile.seed}" / f"{self.name}-{files.settings_hash(parts)}"

    @property
    def policy(self) -> Path:
        """The trained policy's folder."""
        return self.folder / "policy"

    def train(self) -> Path:
        """`policy`, trained unless it is there; a warm start that is missing is trained first."""
        if not (self.policy / "config.json").is_file():
            if self.name == "warm_start":
                miniature.warm_start(self.profile, self.folder)
            else:
                first = self.warm.train()
                instances = miniature.training_instances(self.profile)
                miniature.train(self.profile, first, instances, self.folder, resume=True)
        return self.policy

    def run(self) -> float:
        """Trains the policy and measures it on held-out instances; seconds that it took now."""
        done, started = self.folder / "done.json", time.time()
        if done.is_file():
            return 0.0
        writer = miniature.policy_writer(self.profile, self.train())
        held_out = miniature.held_out(self.profile)
        found = miniature.evaluate(self.profile, writer, held_out, f"evaluating {self.name}")
        found = found.assign(stage=self.name, seed=self.profile.seed)
        files.save_table(self.folder / "results.csv", found.round(4))
        duration = round(time.time() - started, 1)
        files.save_json(done, {"duration_s": duration})
        return duration

    def table(self, name: str) -> pd.DataFrame:
        """`results` or `metrics` as saved, with a column `seed`."""
        return pd.read_csv(self.folder / f"{name}.csv").assign(seed=self.profile.seed)

    @property
    def duration_s(self) -> float:
        """Seconds that its last call took to make it."""
        return files.load_json(self.folder / "done.json")["duration_s"]


def run_stages(stages: Sequence[Stage], workers: int = 1) -> None:
    """Runs the stages, `workers` at a time in processes of their own; a failure stops the rest.

    Their number does not change a result: every process computes with the profile's threads.
    """
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    unique = list({stage.folder: stage for stage in stages}.values())
    label = "{0.name}, seed {0.profile.seed}: {1:.0f} s".format
    if workers == 1:
        for stage in unique:
            print(label(stage, stage.run()))
        return
    with fresh_processes(workers) as pool:
        futures = {pool.submit(stage.run): stage for stage in unique}
        try:
            for future in as_completed(futures):
                print(label(futures[future], future.result()))
        except BrokenProcessPool as error:
            killed = "workers: a process was killed, perhaps for want of memory"
            again = "the same command goes on, with fewer --workers if need be"
            raise ChildProcessError(f"{killed}; {again}") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# --- Recorded seeds -------------------------------------------------------------------------------


def record_seeds(
    profile: Profile, seeds: Sequence[int], runs: Path, out: Path, workers: int = 1
) -> list[Path]:
    """Independent warm start, GRPO and evaluation for every seed, as small CSV files in `out`.

    `results.csv` (a row per seed, stage, length and instance), `grpo.csv` and `warm_start.csv` (a
    row per logged step), `references.csv` (writers by rule), `run.json` and a figure.
    """
    if len(set(seeds)) != len(seeds) or not seeds:
        raise InputError(f"seeds: expected different numbers, found {list(seeds)}")
    started = time.time()
    last = [Stage(replace(profile, seed=seed), runs) for seed in seeds]
    first = [stage.warm for stage in last]
    run_stages(first, workers)
    run_stages(last, workers)
    both = [stage for pair in zip(first, last, strict=True) for stage in pair]
    tables = {
        "results": pd.concat([stage.table("results") for stage in both], ignore_index=True),
        "grpo": pd.concat([s.table("metrics") for s in last], ignore_index=True).round(5),
        "warm_start": pd.concat([s.table("metrics") for s in first], ignore_index=True).round(5),
        "references": miniature.table_references(profile, miniature.held_out(profile)),
    }
    took = {s.profile.seed: round(s.duration_s + s.warm.duration_s, 1) for s in last}
    lengths = table_lengths(tables["results"], resamples=profile.evaluation.resamples)
    figure = plot_lengths(lengths, reference_lines(tables["references"]))
    extra = {"seeds": list(seeds), "seed_s": took}
    return record(out / "qa_by_length.png", tables, figure, profile, started, extra)


def record(
    path: Path,
    tables: Mapping[str, pd.DataFrame],
    figure: Figure,
    profile: Profile,
    started: float,
    extra: Mapping[str, Any],
) -> list[Path]:
    """Writes the figure to `path`, and beside it each table as `name.csv` and `run.json`."""
    files_of = {path.with_name(f"{name}.csv"): table for name, table in tables.items()}
    with files.held(path.parent, wait=True):  # two calls do not mix their tables
        for file, table in files_of.items():
            files.save_table(file, table)
        files.run_card(path.parent, profile, started, list(files_of), extra)
        return [*files_of, save_figure(figure, path)]


# --- Sweeps ---------------------------------------------------------------------------------------


@section
class SweepFile:
    """The sections of a sweep file."""

    profile: str = about("laptop", "what all points begin with")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = about(
        (0,), "each point runs with all"
    )
    settings: dict[str, Any] = about({}, "that all points share")
    points: dict[str, dict[str, Any] | None] = about({}, "settings by name of the point")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = about(
        {}, "values by setting; every combination is a point"
    )
    base: dict[str, Any] | None = about(None, "the point to compare with [default: the first]")


@dataclass(frozen=True)
class Sweep:
    """A sweep file with its grid as points; `base` names the one to compare with."""

    name: str
    profile: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    points: Mapping[str, Mapping[str, Any]]
    base: str

    def profile_of(self, point: str, seed: int) -> Profile:
        """All settings of one run. Raises InputError for an unknown key or a wrong value."""
        changes = {**self.settings, **self.points[point]}
        if "seed" in changes:
            raise InputError("seed: expected in `seeds`, found among the settings")
        texts = [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # JSON is YAML
        return replace(load_profile(self.profile, texts), seed=seed)


def sweep_names() -> list[str]:
    """Names of the sweeps that come with the kit."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml"))


def load_sweep(name_or_path: str | Path) -> Sweep:
    """The sweep of that name, or in that YAML file, with every point's settings checked.

    Raises InputError naming the file and the key for anything unknown, missing or repeated.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if str(name_or_path) not in sweep_names():
            known = closest(str(name_or_path), sweep_names())
            raise InputError(f"unknown sweep {str(name_or_path)!r}{known}")
        path = SWEEPS / f"{name_or_path}.yaml"
    sweep = _sweep(path)
    for point in sweep.points:
        try:
            sweep.profile_of(point, 0)
        except InputError as error:
            raise InputError(f"{path}: point {point}: {error}") from error
    return sweep


def _sweep(path: Path) -> Sweep:
    """The sweep in a file, its points not checked yet."""
    files.refuse_pipe(path)
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a sweep (a YAML file), found: {error}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected settings, found {content!r:.80}")
    file = settings_from(SweepFile, {str(k): v for k, v in content.items()}, str(path))
    named = [(name, changes or {}) for name, changes in file.points.items()]
    for values in itertools.product(*file.grid.values()) if file.grid else ():
        changes = dict(zip(file.grid, values, strict=True))  # the last setting runs fastest
        named.append((" ".join(f"{k.rpartition('.')[2]}={v}" for k, v in changes.items()), changes))
    points = dict(named)
    if not points or len(points) < len(named):
        problem = "a name twice" if points else "neither"
        raise InputError(f"{path}: expected points or a grid, each with its name, found {problem}")
    if len(set(file.seeds)) != len(file.seeds):
        raise InputError(f"{path}: seeds: expected different numbers, found {list(file.seeds)}")
    base = next(iter(points.values())) if file.base is None else file.base
    found = [name for name, changes in points.items() if changes == base]
    if not found:
        raise InputError(f"{path}: base: expected one of the points, found {base}")
    return Sweep(path.stem, file.profile, file.seeds, file.settings, points, found[0])


def run_sweep(sweep: Sweep, runs: Path, out: Path, workers: int = 1) -> list[Path]:
    """Runs what is not there yet, then writes the sweep's CSV files and figure; their paths.

    `out` gets `results.csv` (a row per point, seed, length and instance; each warm start once),
    `curves.csv` (a row per point, seed and step), `table.csv` (`table_sweep`), `measures.csv`
    (`table_measures`), `run.json` and `sweep.png`.
    """
    started = time.time()
    stages = {
        (point, seed): Stage(sweep.profile_of(point, seed), runs)
        for seed in sweep.seeds
        for point in sweep.points
    }
    warm = list({stage.warm.folder: stage.warm for stage in stages.values()}.values())
    run_stages(warm, workers)
    run_stages(list(stages.values()), workers)
    results = [_results(stage, WARM_START) for stage in warm]
    results += [_results(stage, point) for (point, _), stage in stages.items()]
    curves = []
    for (point, seed), stage in stages.items():
        steps = stage.table("metrics")
        kept = [name for name in steps if name in CURVES or str(name).startswith("term_")]
        curves.append(steps[kept].round(4).assign(point=point, seed=seed))
    measured = pd.concat(results, ignore_index=True)
    tables = {
        "results": measured,
        "curves": pd.concat(curves, ignore_index=True),
        "table": table_sweep(measured, sweep.base).round(4),
        "measures": table_measures(measured, sweep.base).round(4),
    }
    every = {stage.folder: stage for stage in (*warm, *stages.values())}.values()
    extra: dict[str, Any] = {"sweep": sweep.name, "base": sweep.base, "points": sweep.points}
    extra |= {"seeds": list(sweep.seeds), "runs_s": round(sum(s.duration_s for s in every))}
    figure = plot_sweep(tables["table"], sweep.base, sweep.name)
    profile = stages[sweep.base, sweep.seeds[0]].profile
    return record(out / "sweep.png", tables, figure, profile, started, extra)


def _results(stage: Stage, point: str) -> pd.DataFrame:
    return stage.table("results")[[*MEASURES, "stage"]].assign(point=point, seed=stage.profile.seed)


def table_sweep(results: pd.DataFrame, base: str, resamples: int = 2000) -> pd.DataFrame:
    """A row per point and length: QA after GRPO, and its difference to the point `base`, paired.

    `stored`, `chat` and `updated` are shares of facts stored, chit-chat stored and stale
    corrections updated; `compression` is a mean over instances.
    """
    after = results[results.stage == "grpo"]
    wide = after.pivot(index=["length", "seed", "instance"], columns="point", values="qa")
    rows = []
    for point in dict.fromkeys(after["point"]):
        for length, part in after[after.point == point].groupby("length"):
            qa = nested_interval(part.qa, part.seed, seed=0, n=resamples)
            gaps = (wide[point] - wide[base]).loc[length].reset_index(name="gap")
            gap = nested_interval(gaps["gap"], gaps.seed, seed=0, n=resamples)
            row = {"point": point, "length": length, "seeds": part.seed.nunique(), "n": qa.n}
            row |= columns(qa, "qa") | columns(gap, "gap")
            row |= {"compression": part.compression.mean(), "calls": part.calls.mean()}
            sums = part.sum(numeric_only=True)
            row |= {"stored": sums.facts_stored / max(1, sums.facts)}
            row |= {"chat": sums.chat_stored / max(1, sums.chat)}
            updated = sums.corrections_updated / max(1, sums.corrections_stale)
            rows.append(row | {"updated": updated})
    return pd.DataFrame(rows)
