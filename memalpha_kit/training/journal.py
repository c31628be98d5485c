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
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from transformers import TrainerCallback

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


class Journal(TrainerCallback):
    """Writes a row of metrics and one of timings per step, and shows how far the run is.

    `done` of `steps` were made before, each of which makes `updates`; later rows of the tables are
    dropped, so that a resumed run continues exactly there. `n_replies` is the work ahead. After
    every step, in all processes, before logs and checkpoints, `look(step)` may give measures of
    held-out instances.
    """

    def __init__(
        self, folder: Path, steps: int, updates: int = 1, n_replies: int = 0, done: int = 0
    ) -> None:
        self.folder, self.steps, self.updates, self.done = folder, steps, updates, done
        self.tables = {name: _kept(folder / name, done) for name in TABLES}
        self.bar = bar(n_replies, "GRPO") if processes.is_main() else nullcontext()
        self.look: Callable[[int], Mapping[str, Any] | None] = lambda step: None
        self.started, self.flat, self.note = time.perf_counter(), 0, ""

    def advance(self, n: int) -> None:
        """Counts n more replies of the step that is at work."""
        if processes.is_main():
            self.bar.advance(n, f"step {self.done + 1} of {self.steps}{self.note}")

    def on_train_begin(self, args, state, control, **_):
        """The first step begins now."""
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        """After an update."""
        step, inside = divmod(state.global_step, self.updates)
        found = None if inside else self.look(step)
        if found and processes.is_main():
            self._add(VALIDATION, {"step": step, **found})

    def on_log(self, args, state, control, logs=None, **_):
        """After a step; not the summary at the end."""
        if processes.is_main() and logs and "loss" in logs:
            self.log(state.global_step // self.updates, logs)

    def on_save(self, args, state, control, **_):
        """After each process has written its random state."""
        processes.wait()
        if processes.is_main():
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(folder, state.global_step // self.updates)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the rows of step `step` (from 1), which just ended; `_s` and `_time` are timings."""
        now = time.perf_counter()
        timed = {k: v for k, v in values.items() if k.endswith(("_s", "_time"))}
        rest = {k: v for k, v in values.items() if k not in timed and k != "epoch"}
        self._add(TIMINGS, {"step": step, **timed, "step_s": now - self.started})
        self._add(METRICS, {"step": step, **rest})
        self.started, self.done = now, step
        known = [name for name in ("reward", "accuracy") if values.get(name) is not None]
        self.note = "".join(f", {name} {values[name]:.3f}" for name in known)
        why = flat_because(values)
        self.flat = self.flat + 1 if why else 0
        self.note += f", nothing to learn: {why}" if why else ""
        ends = step == self.steps and 0 < self.flat < FLAT_STEPS
        if ends or (self.flat and self.flat % FLAT_STEPS == 0):
            log.warning("GRPO: the last %d of %d steps taught nothing: %s", self.flat, step, why)

    def _add(self, name: str, row: dict[str, Any]) -> None:
        self.tables[name].append(row)
        save_table(self.folder / name, pd.DataFrame(self.tables[name]))


def flat_because(values: Mapping[str, Any]) -> str:
    """Why a step with these measures could not move the weights; "" if it could.

    >>> flat_because({"rows_trained": 8, "flat_rows": 1.0, "calls": 0.0})
    'no reply had a call (a longer warm start, or another protocol.wire)'
    """
    if values.get("rows_trained") == 0:
        return "no row had a reward (the reader or the judge failed)"
    if values.get("flat_rows") == 1:
        if values.get("calls") == 0:
            return "no reply had a call (a longer warm start, or another protocol.wire)"
        return "all rewards of a group were equal (more grpo.rollouts, a higher grpo.temperature)"
    return "the gradient was zero (see clip_ratio)" if values.get("grad_norm") == 0 else ""


def _kept(path: Path, done: int) -> list[dict[str, Any]]:
    """Rows of a table up to step `done`, which end where the checkpoint was made."""
    if not path.is_file() or not done:
        return []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)  # as it stands, no rounding
    return table[table["step"].astype(int) <= done].to_dict("records")
