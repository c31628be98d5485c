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
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

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
        """Adds `thing` and gives it back. Raises InputError if the name stands for another one."""
        if self._things.setdefault(name, thing) is not thing:
            raise InputError(f"{self.what} {name!r}: expected a new name, found it registered")
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
            raise InputError(f"{self.what}: expected a known name, {found}")
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        """Whether the name is registered, by the published code's variants too."""
        if name not in self._things:
            import_extensions(self._modules)
        if name not in self._things:
            _import_release()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        import_extensions(self._modules)
        _import_release()
        return tuple(self._things)


def _import_release() -> None:
    """Imports the published code's variants if the folder is there; they register themselves."""
    try:
        importlib.import_module(RELEASE)
    except ModuleNotFoundError as error:
        if error.name != RELEASE:
            raise


def import_extensions(modules: tuple[str, ...] | list[str]) -> None:
    """Imports a user's modules, which register their variants.

    Raises InputError for a module that is not there; other errors keep their traceback.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0] and error.name != name:
                raise
            found = "found none (is its folder in PYTHONPATH?)"
            expected = "expected a Python module that can be imported"
            raise InputError(f"extension {name!r}: {expected}, {found}") from error
