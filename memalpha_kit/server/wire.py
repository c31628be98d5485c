"""The JSON that comes and goes (spec evaluation.md 2.3 to 2.7), checked by pydantic.

Types are strict: "5" is no number. Unknown top-level fields are refused, so that a misspelt option
is not ignored; saved memory states and executed calls may carry more keys, which are ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from memalpha_kit.errors import closest
from memalpha_kit.records import Entry, Memory
from memalpha_kit.tasks import TASKS

Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]  # one error per list: bodies may have millions


def _text(value: Any) -> str:
    """An entry's text; any other JSON value is written out, as the writer gave it."""
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


NAMED = ("", *TASKS)


def _source(name: str) -> str:
    if name not in NAMED:
        raise ValueError(f"unknown source{closest(name[:50], NAMED)}")
    return name


EntryText = Annotated[Any, AfterValidator(_text), WithJsonSchema({})]
EntryIn = Annotated[dict[str, EntryText], Field(min_length=1, max_length=1)]
SourceName = Annotated[
    str,
    Field(json_schema_extra={"enum": list(NAMED)}),
    AfterValidator(_source),
]


class _In(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


# ---- requests ---------------------------------------------------------------------------------


class MemoryIn(_In):
    """A memory. Entries are one-key objects, id to text; a store that is null is not mentioned."""

    model_config = ConfigDict(extra="ignore")

    core: str | None = None
    semantic: Many[EntryIn] | None = []
    episodic: Many[EntryIn] | None = []

    def memory(self) -> Memory:
        """As the kit has it, with ids of its own: those of the wire may clash (A-14)."""
        stores, next_id = {}, 1
        for name in ("semantic", "episodic"):
            rows = getattr(self, name)
            if rows is not None:
                texts = [text for row in rows for text in row.values()]
                stores[name] = tuple(Entry(str(next_id + i), t) for i, t in enumerate(texts))
                next_id += len(texts)
        return Memory(self.core, stores.get("semantic"), stores.get("episodic"), next_id)


EXAMPLE = {
    "memories": [{"core": "Nora is a vet.", "semantic": [{"1": "Nora keeps bees."}]}],
    "questions": [["Who keeps bees?"]],
    "sources": ["squad"],
}


class Questions(_In):
    """Memories and the questions to each of them."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

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
    qwen_batch_size: int | None = Field(None, ge=1, description="accepted, without effect")
    azure_batch_size: int | None = Field(None, ge=1, description="accepted, without effect")


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
    success: bool | None = None

    def plain(self) -> dict[str, Any]:
        """As `judges.judge_steps` takes it."""
        said = {} if self.success is None else {"success": self.success}
        return {"name": self.name, "arguments": self.arguments, **said}


JUDGED = {
    "name": "new_memory_insert",
    "arguments": {"memory_type": "semantic_memory", "content": "Nora keeps bees."},
    "success": True,
}


class Calls(_In):
    """Groups of calls to be judged, one group per step."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"batch": [[JUDGED]]}]})

    batch: Annotated[Many[Many[CallIn]], Field(min_length=1)]
    qwen_batch_size: int | None = Field(None, ge=1, description="accepted, without effect")
    azure_batch_size: int | None = Field(None, ge=1, description="accepted, without effect")


# ---- answers ----------------------------------------------------------------------------------


class AnswerError(BaseModel):
    """Why `result[memory][question]` is null."""

    memory: int
    question: int
    kind: Literal["no_reply", "unanswerable"] = Field(
        description="no_reply: the model failed, try again; unanswerable: the prompt cannot fit"
    )
    message: str


class ReleasedAnswers(BaseModel):
    """Answers as published."""

    result: list[list[str | None]]
    status: Literal["success", "partial"]
    processed_count: int


class Answers(ReleasedAnswers):
    """`result[i][j]` answers question j from memory i; `processed_count` counts answers (S-19)."""

    errors: list[AnswerError]


class ReleasedAgenticAnswers(ReleasedAnswers):
    """Answers with the history of each question's search."""

    search_iterations: list[list[list[dict[str, Any]]]]


class AgenticAnswers(Answers):
    """Answers with the history of each question's search."""

    search_iterations: list[list[list[dict[str, Any]]]]


class Analysis(BaseModel):
    """One call's judgement; all null if it is not to be judged or the judge failed (`error`)."""

    is_valid: bool | None
    score: float | None
    issues: list[str]
    explanation: str
    error: str | None = None


class JudgeError(BaseModel):
    """A call whose judgement failed; it is left out of its group's score."""

    group: int
    item: int
    kind: Literal["judge_error"]
    message: str


class ReleasedJudgements(BaseModel):
    """Judgements as published. `scores[g]` is the mean over group g."""

    scores: list[float | None]
    detailed_analyses: list[list[Analysis]]
    total_processed: int
    total_items: int
    total_groups: int
    llm_processed: int
    status: Literal["success", "partial"]


class Judgements(ReleasedJudgements):
    """`scores[g]` is the mean over the judged calls of group g, null if there is none (S-9)."""

    errors: list[JudgeError]


class Health(BaseModel):
    """The process is alive; nothing is said about the model."""

    status: Literal["healthy"]
    model: str
    model_name: str
    processor_available: bool
    analysis_mode: Literal["llm-based"]


class Ready(BaseModel):
    """The model answered a short request just now."""

    status: Literal["ready"]
    model: str


class Detail(BaseModel):
    """One thing that is wrong, and where."""

    loc: list[str | int]
    msg: str
    type: str


class Refusal(BaseModel):
    """Why there is no answer."""

    error: str
    detail: list[Detail]
    request_id: str
