"""The FastAPI application: endpoints, error bodies, the OpenAPI page at /docs."""

from __future__ import annotations

import json
import uuid
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from memalpha_kit import __version__, chats
from memalpha_kit.chats import ChatModel
from memalpha_kit.method.content_judge import ContentJudge, judge_steps
from memalpha_kit.server import wire, work
from memalpha_kit.server.limits import Gate, ServerSettings
from memalpha_kit.server.logs import RequestLog
from memalpha_kit.server.wire import Refused
from memalpha_kit.tokens import counter

DESCRIPTION = """Answers questions from memories and judges memory writes with a frozen model.

A failed answer is `null`, with its reason in `errors`; a failed judgement is `null` and left out
of its group's mean. What was not answered when the time was up has failed. Every refusal has
`error`, `detail` and `request_id`."""

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
    503: "All places are taken (try again after Retry-After seconds), not ready, or stopped.",
    504: "The time limit is over and nothing was answered.",
}
ANSWERS = "Answers each question from what its memory has retrieved for it."
SEARCHES = "Answers each question; the model may search its memory before."
JUDGES = "Judges what inserts and updates write: is it worth its memory type?"
ENDPOINTS = (
    ("/batch_process", wire.Questions, wire.Answers, ANSWERS),
    ("/process", wire.Questions, wire.Answers, f"{ANSWERS} The same as `/batch_process`."),
    ("/agentic_process", wire.AgenticQuestions, wire.Answers, SEARCHES),
    ("/analyze_function", wire.Calls, wire.Judgements, JUDGES),
)


def create_app(
    settings: ServerSettings, model: ChatModel, probe: ChatModel | None = None
) -> FastAPI:
    """The application. `probe` is what `/ready` asks, by default `model`.

    Raises InputError for a counter that cannot be loaded.
    """
    counter(settings.retrieval.counter)
    gate = Gate(settings)
    app = FastAPI(
        title="Mem-alpha memory server",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
        dependencies=[Depends(gate.check_host)],
    )
    shown = [Depends(HTTPBearer(auto_error=False))] if settings.token else []  # on the page
    locks = [*shown, Depends(gate.check_token)]
    _add_endpoints(app, settings, gate, locks, model)
    _add_signs_of_life(app, gate, locks, model.name, probe or model)
    app.openapi = lambda: _page(app)  # type: ignore[method-assign]  # as FastAPI's manual does
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(RequestLog, paths={"/docs", "/openapi.json", *_page(app)["paths"]})
    return app


def _page(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI page. The bodies are added here, for we read them off the event loop."""
    if not app.openapi_schema:
        about = {name: getattr(app, name) for name in ("title", "version", "description", "routes")}
        page = get_openapi(**about)
        _, shapes = models_json_schema(
            [(shape, "validation") for _, shape, _, _ in ENDPOINTS],
            ref_template="#/components/schemas/{model}",
        )
        page["components"]["schemas"] |= shapes["$defs"]
        app.openapi_schema = page
    return app.openapi_schema


def _json(value: Any) -> bytes:
    """JSON in ASCII: a model's text may hold what UTF-8 cannot."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _response(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.Refusal, "description": told} for status, told in REFUSALS.items()
}


def _add_endpoints(
    app: FastAPI, settings: ServerSettings, gate: Gate, locks: list[Any], model: ChatModel
) -> None:
    """Adds the endpoints that ask the model: each takes a body of its shape and gives another."""
    behaviour = settings.retrieval.behaviour
    manner = work.MANNERS[behaviour]

    def job(shape: type[Any], request: Request, body: bytes, upstream: work.Upstream) -> bytes:
        facts = request.state.facts  # what the log says of a request
        asked = wire.read_body(shape, body, settings.max_entries, settings.max_items)
        facts.update(asked.counts())
        if shape is wire.Calls:
            calls = [[call.model_dump() for call in group] for group in asked.batch]
            judge = ContentJudge(upstream, behaviour, max_tokens=settings.judge_tokens)
            answer = manner.judged(judge_steps(calls, judge))
        else:
            answer = work.answer(asked, settings.retrieval, manner, upstream, request.url.path)
        facts["answered"] = answer.get("processed_count", answer.get("total_processed"))
        if settings.log_content:
            facts["content"] = {"asked": asked.model_dump(warnings=False), "answered": answer}
        return _json(answer)

    def add(path: str, shape: type[BaseModel], gives: type[BaseModel], told: str) -> None:
        async def endpoint(request: Request) -> Response:
            return _response(await gate.run(request, model, partial(job, shape, request)))

        schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            name=path.strip("/"),
            description=told,
            response_model=gives,
            responses=RESPONSES,
            dependencies=[*locks, Depends(gate.check_body)],
            openapi_extra={"requestBody": body},
        )

    for endpoint in ENDPOINTS:
        add(*endpoint)


def _add_signs_of_life(
    app: FastAPI, gate: Gate, locks: list[Any], name: str, probe: ChatModel
) -> None:
    @app.get("/health", response_model=wire.Health, responses={421: RESPONSES[421]})
    async def health() -> Response:
        """Whether the process is alive. Needs no token and does not ask the model."""
        return _response(_json(wire.Health(model=name, model_name=name).model_dump()))

    @app.get("/ready", response_model=wire.Ready, dependencies=locks, responses=RESPONSES)
    async def ready(request: Request) -> Response:
        """Whether the model answers: one call of one token."""
        once = chats.request("", "Say yes.", max_tokens=1, version=f"ready {uuid.uuid4()}")
        reply = (await gate.run(request, probe, lambda _, upstream: upstream.chat([once])))[0]
        if reply.text is None:
            raise Refused(503, f"the model does not answer: {reply.error}")
        return _response(_json(wire.Ready(model=name).model_dump()))


async def _refused(request: Request, error: Any) -> Response:
    """Of a `Refused`, and of FastAPI's own refusals."""
    name = getattr(request.state, "request_id", "")
    items = getattr(error, "items", [])
    body = _json({"error": error.detail, "detail": items, "request_id": name})
    response = _response(body, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, error: Exception) -> Response:
    headers = {
        "x-request-id": getattr(request.state, "request_id", ""),
        "connection": "close",  # the error goes on to uvicorn, which hangs up
    }
    told = "an error of the server; its log has the request's id"
    return await _refused(request, Refused(500, told, headers=headers))
