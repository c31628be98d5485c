"""What a GRPO run leaves behind while it runs: metrics, timings and complete checkpoints.

The one law: a file or checkpoint that a later run reads is whole. Tables are replaced at once; a
checkpoint counts only with `complete.json`, which is written last and lists what belongs to it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from memalpha_kit.files import save_json, save_table
from memalpha_kit.progress import bar
from memalpha_kit.training import processes

if TYPE_CHECKING:
    from transformers import TrainerCallback

MARK = "complete.json"
TABLES = METRICS, TIMINGS, VALIDATION = ("metrics.csv", "timings.csv", "validation.csv")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and the number of steps done; no folder at the start."""

    folder: Path | None
    step: int


def latest_checkpoint(folder: Path) -> Checkpoint:
    """The newest complete checkpoint; incomplete ones, which a crash left, are removed."""
    found = [Checkpoint(None, 0)]
    for path in sorted(folder.glob("checkpoint-*")):
        step = _complete(path)
        if step is None:
            shutil.rmtree(path)
        else:
            found.append(Checkpoint(path, step))
    return max(found, key=lambda checkpoint: checkpoint.step)


def mark_complete(folder: Path, step: int) -> None:
    """Declares a checkpoint complete."""
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
    save_json(folder / MARK, {"step": step, "files": files})


def _complete(folder: Path) -> int | None:
    """Steps done at this checkpoint; None if it is not complete."""
    try:
        mark = json.loads((folder / MARK).read_text())
        sizes = {name: (folder / name).stat().st_size for name in mark["files"]}
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return mark["step"] if sizes == mark["files"] else None


Look = Callable[[int], Mapping[str, Any] | None]
"""step (from 1) -> measures of the policy after it; None for most steps."""


class Journal:
    """Writes a row of metrics and one of timings per step, and marks checkpoints.

    `done` steps were made before; later rows of the tables are dropped, so that a resumed run
    continues exactly there. Whatever ends in `_s` or `_time` is a timing.
    """

    def __init__(self, folder: Path, steps: int, done: int = 0) -> None:
        self.folder = folder
        self.tables = {name: _kept(folder / name, done) for name in TABLES}
        self.bar = bar(steps - done, "GRPO") if processes.is_main() else nullcontext()
        self.started = time.perf_counter()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the rows of step `step` (from 1), which just ended."""
        now = time.perf_counter()
        timed = {k: v for k, v in values.items() if k.endswith(("_s", "_time"))}
        rest = {k: v for k, v in values.items() if k not in timed and k != "epoch"}
        self._add(TIMINGS, {"step": step, **timed, "step_s": now - self.started})
        self._add(METRICS, {"step": step, **rest})
        self.started = now
        notes = [
            f"{k} {values[k]:.3f}" for k in ("reward", "accuracy") if values.get(k) is not None
        ]
        self.bar.advance(note=", ".join(notes))

    def _add(self, name: str, row: dict[str, Any]) -> None:
        self.tables[name].append(row)
        save_table(self.folder / name, pd.DataFrame(self.tables[name]))

    def callback(self, updates: int, look: Look | None = None) -> TrainerCallback:
        """What tells the journal about a trainer's logs and checkpoints, `updates` per step.

        `look` is called after every step, in all processes, before logs and checkpoints.
        """
        from transformers import TrainerCallback

        journal = self

        class Reporter(TrainerCallback):
            def on_train_begin(self, args, state, control, **_):
                journal.started = time.perf_counter()

            def on_step_end(self, args, state, control, **_):
                step, inside = divmod(state.global_step, updates)
                found = look(step) if look and not inside else None
                if found and processes.is_main():
                    journal._add(VALIDATION, {"step": step, **found})

            def on_log(self, args, state, control, logs=None, **_):
                if processes.is_main() and logs and "loss" in logs:  # not the last summary
                    journal.log(state.global_step // updates, logs)

            def on_save(self, args, state, control, **_):
                processes.wait()  # each has written its random state
                if processes.is_main():
                    folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                    mark_complete(folder, state.global_step // updates)

        return Reporter()


def _kept(path: Path, done: int) -> list[dict[str, Any]]:
    """Rows of a table up to step `done`, which end where the checkpoint was made."""
    if not path.is_file() or not done:
        return []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)  # as it stands, no rounding
    return table[table["step"].astype(int) <= done].to_dict("records")
