"""Variants by name: writers, rules, metrics and whatever else a setting can choose.

A registry is a table that files add to when they are imported. A user's own module registers in
the same way: name it in a profile (`extensions: [my_module]`) or on the command line
(`--extend my_module`). The published code's variants stand in `memalpha_kit.release`, which is
imported when a name is asked for that nobody has registered; without that folder they are unknown.

>>> RULES = Registry("rule")
>>> @RULES.register("first")
... def first(texts):
...     return texts[0]
>>> RULES["first"](["a", "b"])
'a'
>>> RULES.names()
('first',)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

from memalpha_kit.errors import InputError, closest

T = TypeVar("T")
RELEASE = "memalpha_kit.release"


class Registry(Generic[T]):
    """Things of one kind by exact name; `what` is the kind's word in errors, such as "metric".

    `modules` register more of them and are imported when they are needed, as `release` is.
    """

    def __init__(self, what: str, *modules: str) -> None:
        self.what = what
        self._modules = modules
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> T:
        """Adds `thing` and gives it back. Raises InputError if the name stands for another one.

        A function or class that is defined again, in a notebook's cell say, takes its own place.
        """
        old = self._things.get(name, thing)
        if old is not thing and _home(old) != _home(thing):
            raise InputError(f"{self.what} {name!r}: expected a new name, found it registered")
        self._things[name] = thing
        return thing

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds what it decorates."""
        return lambda thing: self.add(name, thing)

    def __getitem__(self, name: str) -> T:
        """The thing of that name. Raises InputError with the closest known name."""
        if name in self._things:
            return self._things[name]
        if name not in self:
            found = f"found {name!r}{closest(str(name), self._things)}"
            yours = "(a module of your own adds names: memalpha --extend MODULE ...)"
            raise InputError(f"{self.what}: expected a known name, {found} {yours}")
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        """Whether the name is registered, by the published code's variants too."""
        if name not in self._things:
            self._complete()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        self._complete()
        return tuple(self._things)

    def _complete(self) -> None:
        """Imports the modules, and the published code's variants if their folder is there."""
        for module in (*self._modules, RELEASE):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name != RELEASE:
                    raise


def _home(thing: Any) -> tuple[Any, Any]:
    """Where a function or class is defined, a lambda by its line; nothing else has a home."""
    name, code = getattr(thing, "__qualname__", id(thing)), getattr(thing, "__code__", None)
    line = code.co_firstlineno if code and str(name).endswith("<lambda>") else name
    return getattr(thing, "__module__", None), line


_EXTENSIONS: dict[str, None] = {}
"""The user's modules that this process has imported, in their order."""


def import_extensions(modules: Iterable[str]) -> None:
    """Imports a user's modules, which register their variants.

    Raises InputError for a module that is not there; other errors keep their traceback.
    """
    for name in modules:
        if name.endswith(".py") or not all(map(str.isidentifier, name.split("."))):
            expected = "expected a module as after `import`, without its folder and without .py"
            raise InputError(f"extension {name!r}: {expected}")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0] and error.name != name:
                raise
            found = "found none (is its folder in PYTHONPATH?)"
            expected = "expected a Python module that can be imported"
            raise InputError(f"extension {name!r}: {expected}, {found}") from error
        _EXTENSIONS[name] = None


def fresh_processes(workers: int) -> ProcessPoolExecutor:
    """Processes that begin anew, but with the user's modules imported as they are here."""
    how: dict[str, Any] = {"initializer": import_extensions, "initargs": (list(_EXTENSIONS),)}
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), **how)
