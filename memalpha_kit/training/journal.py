"""What a GRPO run says while it runs: two tables, a line of progress, and steps that teach nothing.

The one law: a table on disk is whole, and a resumed run continues it exactly where it stopped. A
step whose rewards are all equal has no gradient, however long it took, so the line says so and why;
after some in a row there is a warning. Import this module after `backends.start`, as `trainer.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback

from memalpha_kit.files import write_bytes
from memalpha_kit.progress import bar
from memalpha_kit.settings import GrpoConfig
from memalpha_kit.training import processes
from memalpha_kit.training.backends import updates_per_step
from memalpha_kit.training.grpo import TABLES, mark_complete

log = logging.getLogger(__name__)

METRICS, TIMINGS, VALIDATION = TABLES
FLAT_STEPS = 3
"""After so many steps in a row that taught nothing there is a warning."""


class Journal(TrainerCallback):
    """Writes a row of metrics and one of timings per step, and shows how far the run is.

    `done` steps of `config` were made before; later rows of the tables are dropped, so that a
    resumed run continues exactly there. `n_replies` is the work ahead. After every step, in all
    processes, before logs and checkpoints, `look(step)` may give measures of held-out instances.
    Tables are replaced at once: one that a later run reads is whole.
    """

    def __init__(self, folder: Path, config: GrpoConfig, n_replies: int, done: int = 0) -> None:
        self.folder, self.steps, self.begun, self.done = folder, config.steps, done, done
        self.updates = updates_per_step(config)
        self.tables: dict[str, list[dict[Any, Any]]] = {name: [] for name in TABLES}
        self._shown: dict[str, tuple[list[Any], str]] = {}  # their columns, and all as CSV
        for name in TABLES:
            if done and (folder / name).is_file():
                table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)  # no rounding
                self.tables[name] = table[table["step"].astype(int) <= done].to_dict("records")
        self.bar = bar(n_replies, "GRPO", disable=not processes.is_main())
        self.look: Callable[[int], Mapping[str, Any] | None] = lambda step: None
        self.started, self.note = time.perf_counter(), ""
        self.flat = self.all_flat = 0  # steps in a row, and in all, that taught nothing
        self.judged = True  # whether content has a weight

    def advance(self, n: int) -> None:
        """Counts n more replies of the step that is at work."""
        self.bar.advance(n, f"step {self.done + 1} of {self.steps}{self.note}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The first step begins now."""
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an update."""
        step, inside = divmod(state.global_step, self.updates)
        found = None if inside else self.look(step)
        if found and processes.is_main():
            self._add(VALIDATION, {"step": step, **found})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """After a step; not the summary at the end."""
        if processes.is_main() and logs and "loss" in logs:
            self.log(state.global_step // self.updates, logs)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
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
        why = flat_because(values, self.judged)
        self.flat, self.all_flat = self.flat + 1 if why else 0, self.all_flat + bool(why)
        if self.all_flat:  # a line is not shown for every step
            self.note += f", {self.all_flat} of {step - self.begun} steps taught nothing"
        self.note += f": {why}" if why else ""
        ends = step == self.steps and 0 < self.flat < FLAT_STEPS
        if ends or (self.flat and self.flat % FLAT_STEPS == 0):
            log.warning("GRPO: the last %d of %d steps taught nothing: %s", self.flat, step, why)

    def _add(self, name: str, row: dict[str, Any]) -> None:
        """Adds a row, which alone is formatted unless it brings a column."""
        rows, (columns, text) = self.tables[name], self._shown.get(name, ([], ""))
        rows.append(row)
        new = not row.keys() <= set(columns)
        table = pd.DataFrame(rows) if new else pd.DataFrame([row], columns=columns)
        text = ("" if new else text) + table.to_csv(index=False, header=new, lineterminator="\n")
        self._shown[name] = list(table), text
        write_bytes(self.folder / name, text.encode())


def flat_because(values: Mapping[str, Any], judged: bool = True) -> str:
    """Why a step with these measures could not move the weights, most likely; "" if it could.

    `judged`: content has a weight in the reward, so that it is worth saying if nobody judges it.

    >>> flat_because({"rows_trained": 8, "flat_rows": 1.0, "calls": 0.0})
    'no reply had a call (a longer warm start, or another protocol.wire)'
    """
    if values.get("rows_trained") == 0:
        return "no row had a reward (the reader or the judge failed)"
    if values.get("flat_rows") != 1:
        return "the gradient was zero (see clip_ratio)" if values.get("grad_norm") == 0 else ""
    accuracy, no_valid_call = values.get("accuracy"), values.get("calls_ok") == 0
    unjudged = judged and values.get("content", 0.0) is None  # TRL logs a NaN so
    causes = {
        "every reply was cut off (a higher protocol.max_reply_tokens)": (
            no_valid_call and values.get("cut_replies") == 1
        ),
        "no reply had a call (a longer warm start, or another protocol.wire)": (
            values.get("calls") == 0
        ),
        "no call was valid (a longer warm start; see calls_malformed, calls_rejected and "
        "calls_skipped)": no_valid_call,
        "all rollouts wrote the same (a higher grpo.temperature)": values.get("same_replies") == 1,
        "every answer was wrong (easier instances, or another reader)": accuracy == 0,
        "every answer was right (harder instances)": accuracy == 1,
    }
    equal = "all rewards of a group were equal (more grpo.rollouts, a higher grpo.temperature)"
    likely = next((cause for cause, holds in causes.items() if holds), equal)
    return f"{likely}; nobody judges (reward.content)" if unjudged else likely
