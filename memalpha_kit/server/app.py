"""The FastAPI application: endpoints, error bodies, the OpenAPI page at /docs."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from memalpha_kit import __version__
from memalpha_kit.chats import ChatModel
from memalpha_kit.method.content_judge import ContentJudge, judge_steps
from memalpha_kit.method.retrieval import Retrieval
from memalpha_kit.server import wire, work
from memalpha_kit.server.limits import Gate
from memalpha_kit.server.logs import RequestLog
from memalpha_kit.server.wire import Refused
from memalpha_kit.settings import ServerSettings
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
RESULT = "`result[i][j]` answers question j from memory i; of a null `errors` has the reason."
ANSWERS = f"Answers each question from what its memory has retrieved for it. {RESULT}"
SEARCHES = f"Answers each question; the model may search its memory before. {RESULT}"
JUDGES = """Judges what inserts and updates write: is it worth its memory type? `scores` has a mean
for each group; null if nothing could be judged: leave such a group out, it is not 0."""
ENDPOINTS = (
    ("/batch_process", wire.Questions, ANSWERS),
    ("/process", wire.Questions, f"{ANSWERS} The same as `/batch_process`."),
    ("/agentic_process", wire.AgenticQuestions, SEARCHES),
    ("/analyze_function", wire.Calls, JUDGES),
)


def create_app(settings: ServerSettings, model: ChatModel, token: str = "") -> FastAPI:
    """The application; `token` "" asks for none.

    Raises InputError for a counter that cannot be loaded.
    """
    counter(settings.counter)
    gate = Gate(settings, token)
    app = FastAPI(
        title="Mem-alpha memory server",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
        dependencies=[Depends(gate.check_host)],
    )
    shown = [Depends(HTTPBearer(auto_error=False))] if token else []  # on the page
    locks = [*shown, Depends(gate.check_token)]
    _add_endpoints(app, settings, gate, locks, model)
    _add_signs_of_life(app, locks, model)
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
            [(shape, "validation") for _, shape, _ in ENDPOINTS],
            ref_template="#/components/schemas/{model}",
        )
        page.setdefault("components", {})["schemas"] = shapes["$defs"]
        app.openapi_schema = page
    return app.openapi_schema


def _json(value: Any) -> bytes:
    """JSON in ASCII: a model's text may hold what UTF-8 cannot."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _response(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": told} for status, told in REFUSALS.items()
}


def _add_endpoints(
    app: FastAPI, settings: ServerSettings, gate: Gate, locks: list[Any], model: ChatModel
) -> None:
    """Adds the endpoints that ask the model: each takes a body of its shape and gives another."""
    top_k, budget, behaviour = settings.top_k, settings.budget_tokens, settings.compat
    retrieval = Retrieval("bm25", top_k, budget, behaviour, settings.counter)
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
            answer = work.answer(asked, retrieval, manner, upstream, request.url.path)
        facts["answered"] = answer.get("processed_count", answer.get("total_processed"))
        return _json(answer)

    def add(path: str, shape: type[BaseModel], told: str) -> None:
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
            responses=RESPONSES,
            dependencies=[*locks, Depends(gate.check_body)],
            openapi_extra={"requestBody": body},
        )

    for endpoint in ENDPOINTS:
        add(*endpoint)


def _add_signs_of_life(app: FastAPI, locks: list[Any], model: ChatModel) -> None:
    name = model.name

    @app.get("/health", responses={421: RESPONSES[421]})
    async def health() -> Response:
        """Whether the process is alive. Needs no token and does not ask the model."""
        names = {"model": name, "model_name": name, "analysis_mode": "llm-based"}
        return _response(_json({"status": "healthy", "processor_available": True, **names}))

    @app.get("/ready", dependencies=locks, responses=RESPONSES)
    def ready() -> Response:
        """Whether the model's server would answer now: one free request."""
        if why := getattr(model, "ready", str)():  # a model in this process always would
            raise Refused(503, f"the model does not answer: {why}")
        return _response(_json({"status": "ready", "model": name}))


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
