"""Several training processes: who we are, what the others have, and when all of them are ready.

The one law: with one process everything here is free and changes nothing. `accelerate launch` (or
torchrun) starts the processes; each one walks the same steps and calls the functions below equally
often, for they wait for each other.
"""

from __future__ import annotations

import atexit
import gc
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

PATIENCE = timedelta(hours=4)
"""How long a process waits for the others: a pause in an outage must not end the run."""


def start(on_cpu: bool) -> None:
    """Joins the processes that a launcher started; without a launcher there is one."""
    from accelerate import PartialState

    PartialState(cpu=on_cpu, timeout=PATIENCE)
    if _joined():
        atexit.register(leave)


def leave() -> None:
    """Lets go of the other processes; called when Python ends.

    A trainer that is still in memory holds on to them, and taking both down after Python has ended
    aborted one process in eight. So what is no longer used is collected before.
    """
    if _joined():
        gc.collect()
        _group().destroy_process_group()
        gc.collect()


def count() -> int:
    """Number of processes."""
    return _group().get_world_size() if _joined() else 1


def place() -> int:
    """Which one this is, from 0."""
    return _group().get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return place() == 0


def gathered(value: T) -> list[T]:
    """Everybody's value, in order of their places. Values are pickled: keep them small."""
    if count() == 1:
        return [value]
    values: list[T | None] = [None] * count()
    _group().all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """The main process's value."""
    return gathered(value)[0]


def wait() -> None:
    """Returns when every process is here."""
    gathered(None)


def _group():
    import torch.distributed

    return torch.distributed


def _joined() -> bool:
    return _group().is_available() and _group().is_initialized()
