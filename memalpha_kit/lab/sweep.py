"""One-file sweeps of the miniature: points x seeds, resumable, recorded as small CSV files.

A sweep is a YAML file: a profile, seeds, settings that all points share, and the points, either
named one by one or as a grid of values per setting:

    profile: laptop
    seeds: [0, 1, 2]
    settings: {grpo.steps: 100}
    grid: {advantage.grouping: [instance, chunk], advantage.scale: [std, none]}
    base: {advantage.grouping: instance, advantage.scale: std}

The one law: a point is a function of its settings and seed. Points that agree in everything that a
warm start depends on share it (and its evaluation), so what they compare is GRPO; a folder is
trusted only with its `done.json`, written last and holding its settings, so a call that was stopped
goes on where it was and a changed setting is run again.

Source: method.md 6.5 and paper tables 4 and 9 for what was varied there; differs: a miniature.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from memalpha_kit import files as store
from memalpha_kit.errors import InputError, closest
from memalpha_kit.figures.curves import plot_sweep
from memalpha_kit.figures.style import save_figure
from memalpha_kit.lab import miniature
from memalpha_kit.settings import Profile, load_profile, profile_dict
from memalpha_kit.stats import nested_interval

SWEEPS = Path(__file__).parents[1] / "sweeps"
KEYS = ("profile", "seeds", "settings", "points", "grid", "base")
WARM_PARTS = ("seed", "threads", "memory", "protocol", "world", "policy", "warm_start")
"""Sections of a profile that a warm start depends on."""

MEASURES = (
    *("instance", "length", "qa", "memory_tokens", "compression", "calls"),
    *("facts", "facts_stored", "chat", "chat_stored"),
    *("corrections_stale", "corrections_updated", "updates", "updates_wrong"),
)
WARM_START = "(warm start)"
"""What stands for a point in the rows of a warm start, which several points may share."""

CURVES = ("step", "reward", "accuracy", "content", "calls", "updates", "flat_rows")


@dataclass(frozen=True)
class Point:
    """One setting of the sweep: its name and its changes, as (key, value) pairs."""

    name: str
    changes: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says; `base` is the name of the point that others are compared with."""

    name: str
    profile: str
    seeds: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...]
    points: tuple[Point, ...]
    base: str

    def profile_of(self, point: Point, seed: int) -> Profile:
        """All settings of one run. Raises InputError for an unknown key or a wrong value."""
        changes = {key: _yaml(value) for key, value in (*self.settings, *point.changes)}
        return replace(load_profile(self.profile, changes), seed=seed)


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
    if not path.is_file():
        raise InputError(f"{path}: expected a sweep (a YAML file), found no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected YAML, found: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected settings, found {content!r}")
    for key in content:
        if key not in KEYS:
            raise InputError(f"{path}: unknown key {key!r}{closest(str(key), KEYS)}")
    sweep = _sweep(path, content)
    for point in sweep.points:
        try:
            sweep.profile_of(point, 0)
        except InputError as error:
            raise InputError(f"{path}: point {point.name}: {error}") from error
    return sweep


def _sweep(path: Path, content: Mapping[str, Any]) -> Sweep:
    for key in ("settings", "points", "grid", "base"):
        if not isinstance(content.get(key, {}), Mapping):
            raise InputError(f"{path}: {key}: expected settings, found {content[key]!r}")
    named = content.get("points", {})
    points = [Point(str(name), tuple((changes or {}).items())) for name, changes in named.items()]
    points += _grid(content.get("grid", {}), str(path))
    seeds = content.get("seeds", [0])
    if not points:
        raise InputError(f"{path}: expected points or a grid, found neither")
    if not isinstance(seeds, list) or not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"{path}: seeds: expected different numbers, found {seeds!r}")
    if len({point.name for point in points}) != len(points):
        raise InputError(f"{path}: expected different points, found a name twice")
    base = content.get("base", dict(points[0].changes)).items()
    found = [point.name for point in points if set(point.changes) == set(base)]
    if not found:
        raise InputError(f"{path}: base: expected one of the points, found {dict(base)}")
    return Sweep(
        path.stem,
        content.get("profile", "laptop"),
        tuple(seeds),
        tuple(content.get("settings", {}).items()),
        tuple(points),
        found[0],
    )


def _grid(grid: Mapping[str, Any], where: str) -> Iterator[Point]:
    """Every combination of the values, the last setting running fastest."""
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: grid: {key}: expected a list of values, found {values!r}")
    for values in itertools.product(*grid.values()) if grid else ():
        changes = tuple(zip(grid, values, strict=True))
        yield Point(
            " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes), changes
        )


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


# --- Running --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """One unit of work: a warm start with its evaluation, or GRPO of a point from it."""

    profile: Profile
    folder: Path
    warm: Path | None = None
    label: str = ""


def run(
    sweep: Sweep,
    runs: Path,
    out: Path,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Runs what is not there yet, then writes the sweep's CSV files and figure; their paths.

    `runs` keeps policies and finished points, `out` gets `results.csv` (a row per point, seed,
    length and instance; each warm start once), `curves.csv` (a row per point, seed and step),
    `table.csv` (`table_sweep`), `run.json` and `sweep.png`. `workers` processes of one thread each;
    their number does not change a result.
    """
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    started = time.time()
    profiles = {
        (point.name, seed): sweep.profile_of(point, seed)
        for seed in sweep.seeds
        for point in sweep.points
    }
    warm = {key: runs / "warm_starts" / _warm_key(p) for key, p in profiles.items()}
    first = {warm[key]: _Task(p, warm[key], label=f"warm start, seed {p.seed}")
             for key, p in profiles.items()}  # fmt: skip
    second = [
        _Task(p, runs / _slug(name) / f"seed_{seed}", warm[name, seed], f"{name}, seed {seed}")
        for (name, seed), p in profiles.items()
    ]
    _all(_warm_start, list(first.values()), workers, say)
    _all(_grpo, second, workers, say)
    return _record(sweep, profiles, second, out, started)


def _warm_key(profile: Profile) -> str:
    """A name for everything that a warm start and its evaluation depend on."""
    settings = profile_dict(profile)
    parts = {name: settings[name] for name in (*WARM_PARTS, "evaluation")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._=-" else "_" for c in name)


def _all(
    work: Callable[[_Task], float], tasks: Sequence[_Task], workers: int, say: Callable[[str], None]
) -> None:
    """Does every task, several at a time; each is said when done. A failure stops the rest."""
    if workers == 1:
        for task in tasks:
            say(f"{task.label}: {work(task):.0f} s")
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                say(f"{futures[future].label}: {future.result():.0f} s")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _warm_start(task: _Task) -> float:
    """Trains and evaluates a warm start where it is not there; seconds that it took."""
    profile, folder = task.profile, task.folder
    if (folder / "done.json").is_file():
        return 0.0
    shutil.rmtree(folder, ignore_errors=True)
    started = time.time()
    policy = miniature.warm_start(profile, folder)
    _evaluate(profile, policy, folder, "warm_start")
    return _done(folder, "", started)


def _grpo(task: _Task) -> float:
    """Trains and evaluates one point and seed where it is not there under these settings."""
    profile, folder = task.profile, task.folder
    settings, begun = store.settings_hash(profile), folder / "begun.json"
    if _settings(folder / "done.json") == settings:
        return 0.0
    if _settings(begun) != settings:
        shutil.rmtree(folder, ignore_errors=True)
    started = time.time()
    store.save_json(begun, {"settings": settings})
    instances = miniature.training_instances(profile)
    policy = miniature.train(profile, task.warm / "policy", instances, folder, resume=True)
    _evaluate(profile, policy, folder, "grpo")
    return _done(folder, settings, started)


def _settings(path: Path) -> str | None:
    return store.load_json(path)["settings"] if path.is_file() else None


def _evaluate(profile: Profile, policy: Path, folder: Path, stage: str) -> None:
    found = miniature.evaluate(
        profile, miniature.policy_writer(profile, policy), miniature.held_out(profile), stage
    )
    store.save_table(folder / "results.csv", found[list(MEASURES)].assign(stage=stage).round(4))


def _done(folder: Path, settings: str, started: float) -> float:
    duration = round(time.time() - started, 1)
    store.save_json(folder / "done.json", {"settings": settings, "duration_s": duration})
    return duration


# --- Recording ------------------------------------------------------------------------------------


def _record(
    sweep: Sweep,
    profiles: Mapping[tuple[str, int], Profile],
    tasks: Sequence[_Task],
    out: Path,
    started: float,
) -> list[Path]:
    results, curves = [], []
    for warm in {task.warm: task for task in tasks}.values():
        seen = pd.read_csv(warm.warm / "results.csv")
        results.append(seen.assign(point=WARM_START, seed=warm.profile.seed))
    for (name, seed), task in zip(profiles, tasks, strict=True):
        results.append(pd.read_csv(task.folder / "results.csv").assign(point=name, seed=seed))
        steps = pd.read_csv(task.folder / "metrics.csv")
        kept = [column for column in CURVES if column in steps]
        curves.append(steps[kept].round(4).assign(point=name, seed=seed))
    measured = pd.concat(results, ignore_index=True)
    tables = {
        "results": measured,
        "curves": pd.concat(curves, ignore_index=True),
        "table": table_sweep(measured, sweep.base).round(4),
    }
    paths = [out / f"{name}.csv" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        store.save_table(path, table)
    profile = profiles[sweep.base, sweep.seeds[0]]
    points = {point.name: dict(point.changes) for point in sweep.points}
    folders = {folder for task in tasks for folder in (task.warm, task.folder)}
    took = sum(store.load_json(folder / "done.json")["duration_s"] for folder in folders)
    extra = {"sweep": sweep.name, "base": sweep.base, "points": points, "seeds": list(sweep.seeds)}
    extra["runs_s"] = round(took)  # of all runs, also of those that an earlier call made
    store.run_card(out, profile, started, paths, extra)
    figure = plot_sweep(tables["table"], sweep.base, sweep.name)
    return [*paths, save_figure(figure, out / "sweep.png")]


def table_sweep(results: pd.DataFrame, base: str, resamples: int = 2000) -> pd.DataFrame:
    """A row per point and length: QA after GRPO, and its difference to the point `base`, paired.

    Intervals are two-level (seeds, then instances; see `stats.nested_interval`), 95 %; with three
    seeds they are rough. `stored`, `chat` and `updated` are shares of facts stored, chit-chat
    stored and stale corrections updated; `compression` is a mean over instances.
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
            row |= {"qa": qa.mean, "qa_low": qa.low, "qa_high": qa.high}
            row |= {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high}
            row |= {"compression": part.compression.mean(), "calls": part.calls.mean()}
            row |= {"stored": part.facts_stored.sum() / max(1, part.facts.sum())}
            row |= {"chat": part.chat_stored.sum() / max(1, part.chat.sum())}
            stale = max(1, part.corrections_stale.sum())
            rows.append(row | {"updated": part.corrections_updated.sum() / stale})
    return pd.DataFrame(rows)
