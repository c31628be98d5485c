"""Progress that can be read: a bar on a terminal, a few plain lines in notebooks and log files.

A plain line has no control characters, so an executed notebook or a CI log keeps it as it is:

    GRPO: 40/120 (33 %), 1:05 so far, about 2:10 left
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

MAX_LINES = 20
QUIET_S = 2.0
"""A plain bar says nothing before this many seconds have passed, and not more often than that."""


def progress(iterable: Iterable[T], total: int | None = None, label: str = "") -> Iterator[T]:
    """The items of `iterable`, with progress shown under `label` while they are consumed.

    `total` is the number of items; by default `len(iterable)` where it has one.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    with bar(total, label) as shown:
        for item in iterable:
            yield item
            shown.advance()


def bar(total: int | None, label: str = "") -> PlainBar | TerminalBar:
    """A context manager with `advance(n, note)`, for work that is no plain loop."""
    return TerminalBar(total, label) if sys.stderr.isatty() else PlainBar(total, label)


class PlainBar:
    """At most `MAX_LINES` lines on standard output, the last one when the work ends.

    Without a total, lines come at doubling distances in time. `clock` returns seconds.
    """

    def __init__(
        self, total: int | None, label: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.label, self.clock = total, label, clock
        self.done, self.note, self.started = 0, "", clock()
        self.next_s, self.next_done = QUIET_S, 0.0

    def __enter__(self) -> PlainBar:
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Counts `n` more items; `note` (a loss, a score) is shown with the next line."""
        self.done, self.note = self.done + n, note
        elapsed_s = self.clock() - self.started
        if elapsed_s < self.next_s or self.done < self.next_done or self.done == self.total:
            return
        self._line(elapsed_s)
        if self.total:
            self.next_done = self.done + self.total / (MAX_LINES - 1)
            self.next_s = elapsed_s + QUIET_S
        else:
            self.next_s = 2 * elapsed_s

    def __exit__(self, kind: object, *_: object) -> None:
        state = "stopped after " if kind else ""
        self._line(self.clock() - self.started, state, last=True)

    def _line(self, elapsed_s: float, state: str = "", last: bool = False) -> None:
        of = f"/{self.total} ({self.done / self.total:.0%})" if self.total else ""
        text = f"{state}{self.done}{of}, {_clock_text(elapsed_s)}"
        if not last:
            text += " so far"
            if self.total:
                left_s = elapsed_s / self.done * (self.total - self.done)
                text += f", about {_clock_text(left_s)} left"
        label = f"{self.label}: " if self.label else ""
        print(label + text + (f", {self.note}" if self.note else ""), flush=True)


class TerminalBar:
    """A tqdm bar on standard error, with the methods of `PlainBar`."""

    def __init__(self, total: int | None, label: str) -> None:
        self.tqdm = tqdm(total=total, desc=label, dynamic_ncols=True)

    def __enter__(self) -> TerminalBar:
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Counts `n` more items; `note` (a loss, a score) is shown behind the bar."""
        if note:
            self.tqdm.set_postfix_str(note, refresh=False)
        self.tqdm.update(n)

    def __exit__(self, *_: object) -> None:
        self.tqdm.close()


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
