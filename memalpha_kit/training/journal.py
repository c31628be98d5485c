"""What a GRPO run leaves behind while it runs: metrics, timings and complete checkpoints.

The one law: a file or checkpoint that a later run reads is whole. Tables are replaced at once; a
checkpoint counts only with `complete.json`, which is written last and holds the hashes of its
files.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from memalpha_kit.files import save_json, save_table, sha256
from memalpha_kit.progress import bar
from memalpha_kit.training import processes

log = logging.getLogger(__name__)

MARK = "complete.json"
TABLES = METRICS, TIMINGS, VALIDATION = ("metrics.csv", "timings.csv", "validation.csv")
FLAT_STEPS = 3
"""After so many steps in a row that taught nothing there is a warning."""


class Checkpoint(NamedTuple):
    """A complete checkpoint: its folder and the number of steps done; no folder at the start."""

    folder: Path | None
    step: int


def latest_checkpoint(folder: Path) -> Checkpoint:
    """The newest complete checkpoint; those that a crash cut off, or that changed, are removed."""
    found = [Checkpoint(None, 0)]
    for path in sorted(folder.glob("checkpoint-*")):
        try:
            mark = json.loads((path / MARK).read_text())
            whole = mark["files"] == _hashes(path)
        except (FileNotFoundError, json.JSONDecodeError):
            whole = False
        if whole:
            found.append(Checkpoint(path, mark["step"]))
        else:
            log.warning("%s: is not what was saved, and is removed", path)
            shutil.rmtree(path)
    return max(found, key=lambda checkpoint: checkpoint.step)


def mark_complete(folder: Path, step: int) -> None:
    """Declares a checkpoint complete."""
    save_json(folder / MARK, {"step": step, "files": _hashes(folder)})


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != MARK]
    return {path.name: sha256(path) for path in files}


class Journal:
    """Writes a row of metrics and one of timings per step, and shows how far the run is.

    `done` steps of `steps` were made before; later rows of the tables are dropped, so that a
    resumed run continues exactly there. `total` counts what `advance` is told about: replies that
    were written and episodes that were answered.
    """

    def __init__(self, folder: Path, steps: int, total: int, done: int = 0) -> None:
        self.folder, self.steps, self.done = folder, steps, done
        self.tables = {name: _kept(folder / name, done) for name in TABLES}
        self.bar = bar(total, "GRPO") if processes.is_main() else nullcontext()
        self.started = time.perf_counter()
        self.flat, self.note = 0, ""

    def advance(self, n: int) -> None:
        """Counts n more replies or episodes of the step that is at work."""
        if processes.is_main():
            self.bar.advance(n, f"step {self.done + 1} of {self.steps}{self.note}")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the rows of step `step` (from 1), which just ended.

        Whatever ends in `_s` or `_time` is a timing.
        """
        now = time.perf_counter()
        timed = {k: v for k, v in values.items() if k.endswith(("_s", "_time"))}
        rest = {k: v for k, v in values.items() if k not in timed and k != "epoch"}
        self._add(TIMINGS, {"step": step, **timed, "step_s": now - self.started})
        self._add(METRICS, {"step": step, **rest})
        self.started, self.done = now, step
        known = [name for name in ("reward", "accuracy") if values.get(name) is not None]
        self.note = "".join(f", {name} {values[name]:.3f}" for name in known)
        self._tell_flat(values)

    def _tell_flat(self, values: Mapping[str, Any]) -> None:
        """Says when a step taught nothing, and warns with the likely cause after some in a row."""
        why = flat_because(values)
        self.flat = self.flat + 1 if why else 0
        self.note += f", nothing to learn: {why}" if why else ""
        if self.flat and self.flat % FLAT_STEPS == 0:
            log.warning("GRPO: %d steps in a row taught nothing: %s", self.flat, why)

    def log_validation(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a row of measures of held-out instances."""
        self._add(VALIDATION, {"step": step, **values})

    def _add(self, name: str, row: dict[str, Any]) -> None:
        self.tables[name].append(row)
        save_table(self.folder / name, pd.DataFrame(self.tables[name]))


def flat_because(values: Mapping[str, Any]) -> str:
    """Why a step with these measures could not move the weights; "" if it could.

    >>> flat_because({"flat_rows": 1.0, "rows_trained": 8, "calls": 0.0})
    'no reply had a call (a longer warm start, or another protocol.wire)'
    """
    if not values.get("rows_trained", 1):
        return "no row had a reward (see rows_missing: reader or judge failed)"
    if values.get("flat_rows", 0) < 1 and values.get("grad_norm", 1) != 0:
        return ""
    if not values.get("calls", 1):
        return "no reply had a call (a longer warm start, or another protocol.wire)"
    return "all rewards of a group were equal (more grpo.rollouts, or a higher grpo.temperature)"


def _kept(path: Path, done: int) -> list[dict[str, Any]]:
    """Rows of a table up to step `done`, which end where the checkpoint was made."""
    if not path.is_file() or not done:
        return []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)  # as it stands, no rounding
    return table[table["step"].astype(int) <= done].to_dict("records")
