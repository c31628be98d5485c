"""Progress that can be read: tqdm's bar on a terminal, a few plain lines everywhere else.

A plain line has no control characters, so an executed notebook or a log keeps it as it is. All of
it goes to standard error, so that scripts can read what a command prints; only a notebook, which
shows standard error in red, gets it on standard output:

    GRPO: 40/120 (33%), 01:05 so far, about 02:10 left, loss 0.5
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

MAX_LINES = 20
QUIET_S = 2.0
"""A plain bar says nothing before this many seconds have passed, and not more often than that; an
error of a quick command stays the only line."""


class bar(tqdm):  # noqa: N801 (used like a function: `with bar(120, "GRPO") as shown`)
    """Counts work that is no plain loop; `total` is the number of items, None if nobody knows."""

    monitor_interval = 0  # no thread that prints on its own

    def __init__(self, total: int | None, label: str = "", **options: Any) -> None:
        self.plain, self.shown = not sys.stderr.isatty(), 0.0
        if self.plain:
            left = ", about {remaining} left" if total else ""
            count = "{n_fmt}/{total_fmt} ({percentage:.0f}%)" if total else "{n_fmt}"
            name = "{desc}: " if label else ""
            form = f"{name}{count}, {{elapsed}} so far{left}{{postfix}}"
            step = math.ceil((total or 0) / MAX_LINES)
            options |= {"mininterval": QUIET_S, "miniters": step, "delay": QUIET_S}
            options |= {"bar_format": form, "file": _stream()}
        super().__init__(total=total, dynamic_ncols=not self.plain, **options)
        self.desc = label

    def advance(self, n: int = 1, note: str = "") -> None:
        """Counts `n` more items; `note` (a loss, a score) is shown with the next line."""
        if note:
            self.set_postfix_str(note, refresh=False)
        self.update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Shows the state: as a line of its own where there is no terminal."""
        if not self.plain:
            super().display(msg, pos)
        elif self.shown != self.n:
            self.shown = self.n
            if not self.total:  # ever more rarely: nobody knows how much is left
                self.mininterval = max(QUIET_S, self.format_dict["elapsed"])
            print(self, file=self.fp, flush=True)

    def close(self) -> None:
        """Shows how far the work came, unless it was over at once."""
        if self.plain and not self.disable:
            if self.format_dict["elapsed"] >= QUIET_S:
                self.display()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]  # not in tqdm's types
        super().close()


def tell(text: str) -> None:
    """One line about work that nobody can count."""
    print(text, file=_stream(), flush=True)


def _stream() -> TextIO:
    return sys.stdout if type(sys.stdout).__module__.startswith("ipykernel") else sys.stderr


def progress(iterable: Iterable[T], label: str = "") -> Iterator[T]:
    """The items of `iterable`, with progress shown under `label` while they are consumed."""
    with bar(len(iterable) if isinstance(iterable, Sized) else None, label) as shown:
        for item in iterable:
            yield item
            shown.advance()
