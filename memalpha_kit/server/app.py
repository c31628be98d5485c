"""The FastAPI application: endpoints, error bodies, the OpenAPI page at /docs."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from memalpha_kit import __version__, records
from memalpha_kit.errors import closest
from memalpha_kit.method.judges import ContentJudge
from memalpha_kit.records import ChatModel
from memalpha_kit.server import wire, work
from memalpha_kit.server.guard import Guard, Refused
from memalpha_kit.server.logs import RequestLog
from memalpha_kit.server.settings import ServerSettings
from memalpha_kit.server.upstream import Upstream
from memalpha_kit.tokens import counter

DESCRIPTION = """Answers questions from memories and judges memory writes with a frozen model.

A failed answer is `null`, with its reason in `errors`; a failed judgement is `null` and left out
of its group's mean. Every refusal has `error`, `detail` and `request_id`."""

REFUSALS = {
    400: "The body is no JSON.",
    401: "The token is missing or another one.",
    413: "The body, or the number of items in it, is too large.",
    415: "The body is not application/json.",
    422: "The JSON has another shape than expected.",
    500: "An error of the server.",
    502: "The model answered nothing.",
    503: "All places are taken (try again after Retry-After seconds), or not ready.",
    504: "The time limit is over.",
}


class AsciiJSON(JSONResponse):
    """JSON in ASCII: a model's text may hold what UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def create_app(
    settings: ServerSettings,
    model: ChatModel,
    judge: ContentJudge | None = None,
    probe: ChatModel | None = None,
) -> FastAPI:
    """The application. `judge` is one on `model` by default; `probe` is what `/ready` asks.

    Raises InputError for a counter that cannot be loaded.
    """
    counter(settings.retrieval.counter)
    judge = judge or ContentJudge(model, settings.retrieval.behaviour)
    bench = _Bench(settings.max_at_work)
    app = FastAPI(
        title="Mem-alpha memory server",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
    )
    _add_endpoints(app, settings, model, judge, probe or model, bench)
    app.add_exception_handler(RequestValidationError, _mistyped)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(RequestLog, paths={"/docs", "/openapi.json", *app.openapi()["paths"]})
    return app


class _Bench:
    """Threads in which requests work, one each."""

    def __init__(self, n_threads: int) -> None:
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="memalpha-serve")
        self._turn = threading.Lock()

    async def do(self, request: Request, model: ChatModel, job: Callable[[Upstream], Any]) -> Any:
        """What `job` returns. Stops it if the client leaves or the time is over."""
        upstream = Upstream(model, self._turn)
        request.state.job = self._pool.submit(job, upstream)
        found = asyncio.wrap_future(request.state.job)
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait((found, left), return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise Refused(499, "the client has left")
            return found.result()
        finally:
            left.cancel()
            found.cancel()
            upstream.stop()
            request.state.facts.update(calls=upstream.calls, failed=dict(upstream.failed))


async def _left(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ---- endpoints --------------------------------------------------------------------------------


def _add_endpoints(
    app: FastAPI,
    settings: ServerSettings,
    model: ChatModel,
    judge: ContentJudge,
    probe: ChatModel,
    bench: _Bench,
) -> None:
    guard = Guard(settings)
    secured = [Depends(HTTPBearer(auto_error=False))] if settings.token else []
    responses = {
        status: {"model": wire.Refusal, "description": text} for status, text in REFUSALS.items()
    }
    router = APIRouter(route_class=guard.route(), dependencies=secured, responses=responses)
    release = settings.release

    @app.get("/health", response_model=wire.Health)
    async def health() -> AsciiJSON:
        """Whether the process is alive. Needs no token and does not ask the model."""
        return AsciiJSON(
            {
                "status": "healthy",
                "model": model.name,
                "model_name": model.name,
                "processor_available": True,
                "analysis_mode": "llm-based",
            }
        )

    @router.get("/ready", response_model=wire.Ready)
    async def ready(request: Request) -> AsciiJSON:
        """Whether the model answers: one call of one token."""
        once = records.request("", "Say yes.", max_tokens=1, version=f"ready {uuid.uuid4()}")
        reply = (await bench.do(request, probe, lambda upstream: upstream.chat([once])))[0]
        if reply.text is None:
            raise Refused(503, f"the model does not answer: {reply.error}")
        return AsciiJSON({"status": "ready", "model": model.name})

    def note(request: Request, asked: BaseModel, body: dict[str, Any], answered: str) -> None:
        """What the log says of an answer."""
        request.state.facts["answered"] = body[answered]
        if settings.log_content:
            request.state.facts["content"] = {"asked": asked.model_dump(), "answered": body}

    async def answer(request: Request, asked: wire.Questions) -> dict[str, Any]:
        request.state.facts.update(_counts(asked))
        work.check_questions(asked, settings)
        body = await bench.do(request, model, lambda up: work.answer(asked, settings, up))
        note(request, asked, body, "processed_count")
        return body

    answers = wire.ReleasedAnswers if release else wire.Answers
    agentic = wire.ReleasedAgenticAnswers if release else wire.AgenticAnswers
    judgements = wire.ReleasedJudgements if release else wire.Judgements

    @router.post("/batch_process", response_model=answers)
    async def batch_process(request: Request, asked: wire.Questions) -> AsciiJSON:
        """Answers each question from what its memory has retrieved for it."""
        return AsciiJSON(await answer(request, asked))

    @router.post("/process", response_model=answers)
    async def process(request: Request, asked: wire.Questions) -> AsciiJSON:
        """The same as `/batch_process` (S-12)."""
        body = await answer(request, asked)
        if release:  # which counts memories here (S-19)
            body["processed_count"] = len(asked.memories)
        return AsciiJSON(body)

    @router.post("/agentic_process", response_model=agentic)
    async def agentic_process(request: Request, asked: wire.AgenticQuestions) -> AsciiJSON:
        """Answers each question; the model may search its memory before."""
        return AsciiJSON(await answer(request, asked))

    @router.post("/analyze_function", response_model=judgements)
    async def analyze_function(request: Request, asked: wire.Calls) -> AsciiJSON:
        """Judges what inserts and updates write: is it worth its memory type?"""
        request.state.facts.update(groups=len(asked.batch), items=sum(map(len, asked.batch)))
        work.check_calls(asked, settings)
        body = await bench.do(
            request,
            judge.model,
            lambda up: work.analyse(asked, settings, replace(judge, model=up)),
        )
        note(request, asked, body, "total_processed")
        return AsciiJSON(body)

    app.include_router(router)


def _counts(asked: wire.Questions) -> dict[str, int]:
    """What the log says of a request: how much, not what."""
    entries = [
        text
        for memory in asked.memories
        for row in (*(memory.semantic or ()), *(memory.episodic or ()))
        for text in row.values()
    ]
    return {
        "memories": len(asked.memories),
        "entries": len(entries),
        "memory_chars": sum(map(len, entries)) + sum(len(m.core or "") for m in asked.memories),
        "questions": sum(map(len, asked.questions)),
        "question_chars": sum(len(q) for row in asked.questions for q in row),
    }


# ---- error bodies -----------------------------------------------------------------------------


def _body(request: Request, status: int, error: str, items: Sequence[dict] = ()) -> AsciiJSON:
    name = getattr(request.state, "request_id", "")
    return AsciiJSON({"error": error, "detail": list(items), "request_id": name}, status)


async def _refused(request: Request, error: Exception) -> AsciiJSON:
    response = _body(request, error.status_code, error.detail, getattr(error, "items", ()))
    response.headers.update(error.headers or {})
    return response


async def _mistyped(request: Request, error: Exception) -> AsciiJSON:
    """Says where the body has another shape; never repeats a piece of it."""
    found = error.errors()
    items = [_item(one) for one in found[: work.MOST_DETAILS]]
    where = ".".join(map(str, items[0]["loc"]))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _body(request, 422, f"{where}: {items[0]['msg']}{more}", items)


TOP = frozenset((*wire.AgenticQuestions.model_fields, *wire.Calls.model_fields))
FIELDS = TOP.union(wire.MemoryIn.model_fields, wire.CallIn.model_fields)


def _item(one: dict[str, Any]) -> dict[str, Any]:
    """Place, message and type of an error; a key of the body's own is not repeated."""
    loc = [part if isinstance(part, int) or part in FIELDS else "(key)" for part in one["loc"][1:]]
    msg = one["msg"].removeprefix("Value error, ")
    if one["type"] == "extra_forbidden":
        msg = f"unknown field{closest(str(one['loc'][-1])[:50], TOP)}"
    return {"loc": [one["loc"][0], *loc], "msg": msg, "type": one["type"]}


async def _broken(request: Request, error: Exception) -> AsciiJSON:
    response = _body(request, 500, "an error of the server; its log has the request's id")
    response.headers["x-request-id"] = getattr(request.state, "request_id", "")
    response.headers["connection"] = "close"  # the error goes on to uvicorn, which hangs up
    return response
