"""What a build leaves out: bad records, which are errors, and good ones that a rule drops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from memalpha_kit.errors import InputError
from memalpha_kit.settings import OnError

T = TypeVar("T")


class Skips:
    """What a build left out, for its card.

    A bad record raises at once under `on_error` "stop" and is listed under "skip". What a rule
    drops (too few questions, say) is counted under both.

    >>> skips = Skips("skip")
    >>> skips.add("squad.json: article 3", "context: expected text, found nothing")
    >>> skips.drop("instances with too few questions")
    >>> skips.card()["skipped"]
    ['squad.json: article 3: context: expected text, found nothing']
    """

    def __init__(self, on_error: OnError = "stop") -> None:
        self.on_error = on_error
        self.skipped: list[str] = []  # one line each: where and why
        self.dropped: dict[str, int] = {}  # how many, by rule

    def add(self, where: str, reason: str) -> None:
        """Lists a bad record. Raises InputError under "stop"."""
        self.failed(InputError(f"{where}: {reason}"))

    def failed(self, error: InputError) -> None:
        """Lists the record whose reading raised `error`, or raises it again under "stop"."""
        if self.on_error == "stop":
            raise error
        self.skipped.append(str(error))

    def drop(self, rule: str, n: int = 1) -> None:
        """Counts `n` good records that a rule drops."""
        if n:
            self.dropped[rule] = self.dropped.get(rule, 0) + n

    def each(self, read: Callable[[Any, str], T], items: Iterable[tuple[Any, str]]) -> Iterator[T]:
        """What `read(item, where)` gives for each (item, where); those that fail are listed."""
        for item, where in items:
            try:
                value = read(item, where)
            except InputError as error:
                known = where.partition(":")[0] in str(error)
                self.failed(error if known else InputError(f"{where}: {error}"))
                continue
            yield value

    def reasons(self) -> str:
        """The end of an error: what was left out and may be missing, "" if nothing was."""
        found = [f"{n} {rule}" for rule, n in sorted(self.dropped.items(), key=lambda d: -d[1])[:3]]
        found += [f"{len(self.skipped)} bad records ({self.skipped[0]})"] if self.skipped else []
        return f"; left out: {', '.join(found)}" if found else ""

    def card(self) -> dict[str, Any]:
        """Plain values for JSON: lines of what was skipped, counts of what was dropped."""
        return {"skipped": list(self.skipped), "dropped": dict(sorted(self.dropped.items()))}
