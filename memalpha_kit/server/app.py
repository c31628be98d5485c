"""The FastAPI application: endpoints, error bodies, the OpenAPI page at /docs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from memalpha_kit import __version__, records
from memalpha_kit.method.judges import ContentJudge
from memalpha_kit.records import ChatModel
from memalpha_kit.server import wire, work
from memalpha_kit.server.limits import Gate, ServerSettings
from memalpha_kit.server.logs import RequestLog
from memalpha_kit.server.wire import Refused
from memalpha_kit.tokens import counter

DESCRIPTION = """Answers questions from memories and judges memory writes with a frozen model.

A failed answer is `null`, with its reason in `errors`; a failed judgement is `null` and left out
of its group's mean. Every refusal has `error`, `detail` and `request_id`."""

REFUSALS = {
    400: "The body is no JSON.",
    401: "The token is missing or another one.",
    408: "The body did not arrive in time.",
    413: "The body, or the number of items in it, is too large.",
    415: "The body is not application/json.",
    421: "The Host header names another machine.",
    422: "The JSON has another shape than expected.",
    500: "An error of the server.",
    502: "The model answered nothing.",
    503: "All places are taken (try again after Retry-After seconds), or not ready.",
    504: "The time limit is over.",
}
SHAPES = (wire.Questions, wire.AgenticQuestions, wire.Calls)


def create_app(
    settings: ServerSettings,
    model: ChatModel,
    judge: ContentJudge | None = None,
    probe: ChatModel | None = None,
) -> FastAPI:
    """The application. `judge` is one on `model` by default; `probe` is what `/ready` asks.

    Raises InputError for a counter that cannot be loaded.
    """
    behaviour = settings.retrieval.behaviour
    counter(settings.retrieval.counter)
    judge = judge or ContentJudge(model, behaviour, max_tokens=settings.judge_tokens)
    gate = Gate(settings)
    app = FastAPI(
        title="Mem-alpha memory server",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
        dependencies=[Depends(gate.check_host)],
    )
    app.include_router(_endpoints(settings, gate, model, judge))
    app.include_router(_signs_of_life(settings, gate, model.name, probe or model))
    app.openapi = lambda: _page(app)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _refused_by_fastapi)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(RequestLog, paths={"/docs", "/openapi.json", *_page(app)["paths"]})
    return app


def _page(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI page. The bodies are added here, for we read them off the event loop."""
    if not app.openapi_schema:
        about = {name: getattr(app, name) for name in ("title", "version", "description", "routes")}
        page = get_openapi(**about)
        _, shapes = models_json_schema(
            [(shape, "validation") for shape in SHAPES], ref_template="#/components/schemas/{model}"
        )
        page["components"]["schemas"] |= shapes["$defs"]
        app.openapi_schema = page
    return app.openapi_schema


def _json(value: Any) -> bytes:
    """JSON in ASCII: a model's text may hold what UTF-8 cannot."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _response(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


def _refusals(*but: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": wire.Refusal, "description": text}
        for status, text in REFUSALS.items()
        if status not in but
    }


# ---- endpoints ----------------------------------------------------------------------------------


def _secured(settings: ServerSettings, gate: Gate, *more: Any) -> list[Any]:
    shown = [Depends(HTTPBearer(auto_error=False))] if settings.token else []  # on the page
    return [*shown, Depends(gate.check_token), *more]


def _endpoints(
    settings: ServerSettings, gate: Gate, model: ChatModel, judge: ContentJudge
) -> APIRouter:
    router = APIRouter(
        dependencies=_secured(settings, gate, Depends(gate.check_body)), responses=_refusals()
    )
    manner = work.MANNERS[settings.retrieval.behaviour]

    async def respond(
        request: Request, shape: type[BaseModel], counted: str, answer: Callable[..., dict]
    ) -> Response:
        def job(body: bytes, upstream: work.Upstream) -> bytes:
            asked = wire.read_body(shape, body, settings.max_entries, settings.max_items)
            request.state.facts.update(asked.counts())
            answered = answer(asked, upstream)
            request.state.facts["answered"] = answered[counted]
            if settings.log_content:
                said = {"asked": asked.model_dump(), "answered": answered}
                request.state.facts["content"] = said
            return _json(answered)

        return _response(
            await gate.run(request, judge.model if shape is wire.Calls else model, job)
        )

    async def answered(request: Request, shape: type[BaseModel]) -> Response:
        def answer(asked: Any, upstream: work.Upstream) -> dict[str, Any]:
            return work.answer(asked, settings.retrieval, manner, upstream, request.url.path)

        return await respond(request, shape, "processed_count", answer)

    def takes(shape: type[BaseModel], gives: type[BaseModel]) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        return {"response_model": gives, "openapi_extra": {"requestBody": body}}

    @router.post("/batch_process", **takes(wire.Questions, wire.Answers))
    async def batch_process(request: Request) -> Response:
        """Answers each question from what its memory has retrieved for it."""
        return await answered(request, wire.Questions)

    @router.post("/process", **takes(wire.Questions, wire.Answers))
    async def process(request: Request) -> Response:
        """The same as `/batch_process`."""
        return await answered(request, wire.Questions)

    @router.post("/agentic_process", **takes(wire.AgenticQuestions, wire.Answers))
    async def agentic_process(request: Request) -> Response:
        """Answers each question; the model may search its memory before."""
        return await answered(request, wire.AgenticQuestions)

    @router.post("/analyze_function", **takes(wire.Calls, wire.Judgements))
    async def analyze_function(request: Request) -> Response:
        """Judges what inserts and updates write: is it worth its memory type?"""
        return await respond(
            request,
            wire.Calls,
            "total_processed",
            lambda asked, upstream: work.analyse(asked, replace(judge, model=upstream), manner),
        )

    return router


def _signs_of_life(settings: ServerSettings, gate: Gate, name: str, probe: ChatModel) -> APIRouter:
    router = APIRouter()

    @router.get("/health", response_model=wire.Health, responses=_refusals(*set(REFUSALS) - {421}))
    async def health() -> Response:
        """Whether the process is alive. Needs no token and does not ask the model."""
        return _response(_json(wire.Health(model=name, model_name=name).model_dump()))

    @router.get(
        "/ready",
        response_model=wire.Ready,
        dependencies=_secured(settings, gate),
        responses=_refusals(),
    )
    async def ready(request: Request) -> Response:
        """Whether the model answers: one call of one token."""
        once = records.request("", "Say yes.", max_tokens=1, version=f"ready {uuid.uuid4()}")
        reply = (await gate.run(request, probe, lambda _, upstream: upstream.chat([once])))[0]
        if reply.text is None:
            raise Refused(503, f"the model does not answer: {reply.error}")
        return _response(_json(wire.Ready(model=name).model_dump()))

    return router


# ---- error bodies -------------------------------------------------------------------------------


def _body(request: Request, status: int, error: str, items: Sequence[dict] = ()) -> Response:
    name = getattr(request.state, "request_id", "")
    return _response(_json({"error": error, "detail": list(items), "request_id": name}), status)


async def _refused(request: Request, error: Refused) -> Response:
    response = _body(request, error.status, error.error, error.items)
    response.headers.update(error.headers)
    return response


async def _refused_by_fastapi(request: Request, error: HTTPException) -> Response:
    return await _refused(request, Refused(error.status_code, error.detail, headers=error.headers))


async def _broken(request: Request, error: Exception) -> Response:
    response = _body(request, 500, "an error of the server; its log has the request's id")
    response.headers["x-request-id"] = getattr(request.state, "request_id", "")
    response.headers["connection"] = "close"  # the error goes on to uvicorn, which hangs up
    return response
