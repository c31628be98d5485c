"""Several training processes: who we are, what the others have, and when all of them are ready.

The one law: with one process everything here is free and changes nothing. `accelerate launch` (or
torchrun) starts the processes; each one walks the same steps and calls the functions below equally
often, for they wait for each other.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as group

from memalpha_kit.errors import InputError

T = TypeVar("T")


def start(on_cpu: bool) -> None:
    """Joins the processes that a launcher started; without a launcher there is one."""
    from accelerate import PartialState

    PartialState(cpu=on_cpu, timeout=timedelta(hours=4))  # pauses in an outage must not end it
    if _joined():
        atexit.register(_leave)


def _leave() -> None:
    """Lets go of the other processes; called when Python ends.

    A trainer that is still in memory holds on to them, and taking both down after Python has ended
    aborted one process in eight. So what is no longer used is collected before.
    """
    if _joined():
        gc.collect()
        group.destroy_process_group()
        gc.collect()


def count() -> int:
    """Number of processes."""
    return group.get_world_size() if _joined() else 1


def place() -> int:
    """Which one this is, from 0."""
    return group.get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return place() == 0


def gathered(value: T) -> list[T]:
    """Everybody's value, in order of their places. Values are pickled: keep them small."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    group.all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """The main process's value."""
    return gathered(value)[0]


def in_main(work: Callable[[], T]) -> T:
    """What `work` gives in the main process, where alone it runs; its InputError is everybody's."""
    done: Any = None
    problem: InputError | None = None
    if is_main():
        try:
            done = work()
        except InputError as error:
            problem = error
    done, problem = from_main((done, problem))
    if problem:
        raise problem
    return done


def wait() -> None:
    """Returns when every process is here."""
    gathered(None)


def _joined() -> bool:
    return group.is_available() and group.is_initialized()
