"""The error policy of the kit, on one page.

* What the *model* does wrong is data: it stays on its `Step` as a `ToolCall` with a status
  (`malformed`, `rejected`, `skipped`) and the episode goes on. Nothing here is raised for it.
* What *we* or the user did wrong is an exception at once, in one line that names the file, the
  field, what was expected and what was found. `InputError` is the user's side (the command line
  prints it without a traceback and exits with 2), `DiskError` a file that could not be written
  (exit code 1); everything else is a bug and keeps its traceback.
* A measurement that failed is `None`, is counted, and is left out of means. It is never 0.0.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something handed to the kit (a file, a setting, a name) is not what it must be.

    The message is one line: where, what was expected, what was found.
    """


class DiskError(InputError):
    """A file could not be written, on a full disk for instance. What was asked for may be right."""


class ModelGone(InputError):
    """No request would be answered: the server is down, refuses the key or has no such model.

    Replies known before were handed to `done` and are cached; run again to go on.
    """


def closest(name: str, known: Iterable[str]) -> str:
    """A ready-made tail for an error about an unknown name: `; did you mean 'laptop'?`.

    Lists all known names when none is close. Used for profiles, settings, sources, metrics.
    """
    names = sorted(known)
    best = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; did you mean {best[0]!r}?" if best else f"; known: {', '.join(names)}"
