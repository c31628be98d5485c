"""Settings as sections: typed fields with a range, a default and a sentence about each.

A section is a frozen pydantic dataclass made with `@section`; its values come from YAML, from the
command line or from code, and a wrong one is an `InputError` in one line that names the place, what
was expected and what was found. An unknown key is answered with the closest known one.

>>> @section
... class Walk:
...     steps: Count = about(3, "how far")
>>> settings_from(Walk, {"steps": 5}, "walk.yaml")
Walk(steps=5)
>>> settings_from(Walk, {"stepz": 5}, "walk.yaml")
Traceback (most recent call last):
memalpha_kit.errors.InputError: walk.yaml: unknown key 'stepz'; did you mean 'steps'?
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from memalpha_kit.errors import InputError, closest

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
AtLeast2 = Annotated[int, Field(ge=2)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy and torch both take
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def about(default: Any, description: str) -> Any:
    """A field with its default and a line about it, which the command line shows."""
    metadata = {"about": description}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, hash=False, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """The class as a section: a frozen dataclass whose values are checked when it is made."""
    made: Any = dataclass(frozen=True, config=STRICT)(cls)
    check = made.__init__

    @functools.wraps(check)
    def __init__(self: T, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            raise InputError(next(_sentences(error, made))) from None

    made.__init__ = __init__
    return made


def settings_from(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """The section `cls` with these options, whose names may be dotted (`memory.shown`).

    Raises InputError starting with `where` for an unknown name, a wrong type or a wrong range.
    """
    values: dict[str, Any] = {}
    for key in sorted(options, key=lambda name: name.count(".")):  # or `k=5` would hide `k.x=1`
        values = merged(values, nested(key, options[key]))
    try:
        adapter = _adapter(cls)  # type: ignore[arg-type]  # mypy: a class has a hash
        return adapter.validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise InputError(f"{where}: {next(_sentences(error, cls))}") from None


def check_part(cls: type, values: Any, where: str) -> None:
    """Raises InputError starting with `where` if a part of the settings of `cls` is wrong.

    Rules between fields are left for the whole: a part may need what stands in another part.
    """
    try:
        _adapter(cls).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        for sentence in _sentences(error, cls, whole=False):
            raise InputError(f"{where}: {sentence}") from None


def nested(key: str, value: Any) -> dict[str, Any]:
    """The value under its dotted key: `{"grpo": {"steps": 3}}` for `grpo.steps`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those of `above` on top."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        deeper = isinstance(value, Mapping) and isinstance(old, Mapping)
        both[key] = merged(old, value) if deeper else value  # type: ignore[arg-type]
    return both


# ---- YAML -------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; a key that stands twice is an error, and 5e-3 is a number.

    Aliases are refused: a file of ten lines can grow to gigabytes through them.
    """

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no text")
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, where: str) -> Any:
    """The value in a YAML text. Raises InputError starting with `where`."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise InputError(f"{where}: expected YAML, found: {found}") from error


# ---- what is wrong ----------------------------------------------------------------------------

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "settings",
    "too_short": "more values",
    "dataclass": "a section with settings",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "too_long": "another number of values",
}
"""What is expected, by pydantic's name of the mistake or that name's first word."""


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    if not hasattr(cls, "__pydantic_config__"):
        cls.__pydantic_config__ = STRICT
    return TypeAdapter(cls)


def _sentences(error: ValidationError, cls: type, whole: bool = True) -> Iterator[str]:
    """What is wrong, one line a mistake; `whole` False leaves out rules between fields."""
    for mistake in error.errors(include_url=False):
        kind, found = mistake["type"], mistake["input"]
        place = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in mistake["loc"])
        place, limits = place.lstrip("."), mistake.get("ctx", {})
        if kind == "value_error":
            if whole:
                yield ".".join(filter(None, (place, str(limits["error"]))))
        elif kind == "unexpected_keyword_argument":
            yield f"unknown key {place!r}{closest(place, _known(cls, mistake['loc'][:-1]))}"
        elif kind == "literal_error":
            words = re.findall(r"'([^']*)'", limits["expected"])
            yield f"{place}: found {found!r}{closest(str(found), words)}"
        elif kind == "missing" and not found:
            yield f"{place}: expected a value, found {found!r}"
        else:
            word = "too_long" if kind == "missing" else kind
            expected = _EXPECTED.get(word) or _EXPECTED.get(word.partition("_")[0], "{msg}")
            expected = expected.format(msg=mistake["msg"], **limits)
            yield f"{place}: expected {expected}, found {found!r}"


def _known(cls: type, path: tuple[int | str, ...]) -> list[str]:
    """Dotted names of the fields of the section at `path`."""
    for name in map(str, path):
        cls = get_type_hints(cls)[name]
    return [".".join((*map(str, path), field.name)) for field in dataclasses.fields(cls)]
