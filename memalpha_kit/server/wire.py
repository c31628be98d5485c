"""The JSON that comes and goes, in the shapes of the published server, checked by pydantic.

Types are strict: "5" is no number. Unknown top-level fields are refused, so that a misspelt option
is not ignored; saved memory states and executed calls may carry more keys, which are ignored.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from memalpha_kit.entries import Store
from memalpha_kit.errors import closest
from memalpha_kit.records import Entry, Memory
from memalpha_kit.tasks import TASKS

MOST_DETAILS = 20
"""Errors that a refusal lists."""

Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]  # one error per list: bodies may have millions
Batch = Annotated[int | None, Field(ge=1, description="accepted, without effect")]


class Refused(HTTPException):
    """A request that gets no answer: HTTP status, one sentence, what is wrong where, headers."""

    def __init__(
        self,
        status: int,
        error: str,
        items: Sequence[dict[str, Any]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, error, headers or {})
        self.items = list(items)[:MOST_DETAILS]


def wrong(loc: Sequence[str | int], msg: str, kind: str, status: int = 422) -> Refused:
    """The refusal of a request that has the right types and still cannot be."""
    where = ".".join(map(str, loc)) or "body"
    return Refused(status, f"{where}: {msg}", [{"loc": ["body", *loc], "msg": msg, "type": kind}])


def _source(name: str) -> str:
    if name not in NAMED:
        raise ValueError(f"unknown source{closest(name[:50], NAMED)}")
    return name


NAMED = ("", *TASKS)
SourceName = Annotated[str, Field(json_schema_extra={"enum": list(NAMED)}), AfterValidator(_source)]


class _In(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _text(row: dict[str, Any]) -> str:
    """The text of an entry; any other value is written out as JSON."""
    (value,) = row.values()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


if TYPE_CHECKING:
    Row = str  # what it is once it was checked
else:
    Row = Annotated[dict[str, Any], Field(min_length=1, max_length=1), AfterValidator(_text)]


class MemoryIn(_In):
    """A memory. Entries are one-key objects, id to text (any other value is written out as JSON);
    a store that is null is not mentioned."""

    model_config = ConfigDict(extra="ignore")

    core: str | None = None
    semantic: Many[Row] | None = []
    episodic: Many[Row] | None = []

    def memory(self) -> Memory:
        """As the kit has it, with ids of its own: those of the wire may clash."""
        ids = itertools.count(1)
        semantic, episodic = (
            None if texts is None else Store(Entry(str(next(ids)), text) for text in texts)
            for texts in (self.semantic, self.episodic)
        )
        return Memory(self.core, semantic, episodic, next(ids))


class Questions(_In):
    """Memories and the questions to each of them."""

    memories: Annotated[Many[MemoryIn], Field(min_length=1)]
    questions: Annotated[
        Many[Many[str]], Field(min_length=1, description="one list per memory, in the same order")
    ]
    sources: Many[SourceName] | None = Field(
        None,
        description="data source of each memory's questions. The server then puts the source's "
        "request before each question, and retrieves with the question alone.",
    )
    max_tokens: int | None = Field(None, ge=1, le=131_072, description="of an answer; 2048")
    temperature: float | None = Field(None, ge=0, le=2, description="0; under release 0.7")
    enable_thinking: bool | None = Field(None, description="false")
    qwen_batch_size: Batch = None
    azure_batch_size: Batch = None

    def counts(self) -> dict[str, int]:
        """How much is asked, for limits and the log."""
        return {
            "memories": len(self.memories),
            "entries": sum(len(m.semantic or []) + len(m.episodic or []) for m in self.memories),
            "questions": sum(map(len, self.questions)),
        }


class AgenticQuestions(Questions):
    """Questions that the model may search the memory for."""

    max_iterations: int | None = Field(None, ge=1, le=100, description="rounds of searching; 5")


class CallIn(_In):
    """A call of a memory tool as it was executed. `success` false is not judged."""

    model_config = ConfigDict(extra="ignore")

    name: str | None = Field(None, validation_alias=AliasChoices("name", "tool_name"))
    arguments: dict[str, Any] | None = Field(
        None, validation_alias=AliasChoices("arguments", "tool_arguments")
    )
    success: bool | None = True


class Calls(_In):
    """Groups of calls to be judged, one group per step."""

    batch: Annotated[Many[Many[CallIn]], Field(min_length=1)]
    qwen_batch_size: Batch = None
    azure_batch_size: Batch = None

    def counts(self) -> dict[str, int]:
        """How much is asked, for limits and the log."""
        return {"groups": len(self.batch), "items": sum(map(len, self.batch))}


Asked = TypeVar("Asked", Questions, AgenticQuestions, Calls)


def read_body(shape: type[Asked], body: bytes, most_entries: int, most_items: int) -> Asked:
    """The request in a body. Raises Refused: 400 for no JSON, 422 for another shape, 413 for more
    entries of memories, or memories, questions or calls, than one request may have."""
    try:
        asked = shape.model_validate_json(body)
    except ValidationError as error:
        raise _mistyped(error) from None
    for name, n in asked.counts().items():
        most = most_entries if name == "entries" else most_items
        if n > most:
            told = f"expected at most {most} {name} in one request, found {n}; ask in parts"
            raise wrong([name], told, "too_many", status=413)
    return asked


TOP = frozenset((*AgenticQuestions.model_fields, *Calls.model_fields))
FIELDS = TOP.union(MemoryIn.model_fields, CallIn.model_fields)


def _mistyped(error: ValidationError) -> Refused:
    """Says where the body has another shape; never repeats a piece of it."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        told = found[0]["msg"].removeprefix("Invalid JSON: ")
        return wrong([], f"expected JSON, found: {told}", "json_invalid", status=400)
    items = []
    for one in found[:MOST_DETAILS]:
        names = [
            part if isinstance(part, int) or part in FIELDS else "(key)" for part in one["loc"]
        ]
        msg = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            msg = f"unknown field{closest(str(one['loc'][-1])[:50], TOP)}"
        items.append({"loc": ["body", *names], "msg": msg, "type": one["type"]})
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    where = ".".join(map(str, items[0]["loc"][1:])) or "body"
    return Refused(422, f"{where}: {items[0]['msg']}{more}", items)
