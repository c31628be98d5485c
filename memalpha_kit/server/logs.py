"""The server's log: one JSON object per line, and nothing of what was asked or answered.

A request's line has its id, path, status, seconds, bytes and counts. A message of another package
may hold a prompt, so only its place is logged, and of an exception only its type and its frames.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
import traceback
import uuid
from collections.abc import Collection
from typing import Any

log = logging.getLogger("memalpha_kit.server")
OWN = ("memalpha_kit", "uvicorn.error")  # loggers whose messages hold no content


class JsonLines(logging.Formatter):
    """A record as one line of JSON, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """The line: time, level, logger, event, then what the record has."""
        told = record.name.startswith(OWN)
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage() if told else f"{record.filename}:{record.lineno}",
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)
            line["exception"] = type(error).__name__
            line["frames"] = [f"{frame.filename}:{frame.lineno}" for frame in frames[-5:]]
        return json.dumps(line, default=str)


LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonLines}},
    "handlers": {"lines": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"memalpha_kit.server": {"level": "INFO"}},
    "root": {"handlers": ["lines"], "level": "WARNING"},
}
"""For `logging.config.dictConfig`: requests and warnings as JSON lines on standard error."""


class RequestLog:
    """Middleware that gives each request an id and logs it when it is over.

    Handlers add the counts that they know to `request.state.facts`.
    """

    def __init__(self, app: Any, paths: Collection[str]) -> None:
        self.app = app
        self.paths = paths  # any other may be somebody's text

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Runs the app; an error of ours counts as 500 and goes on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex[:16]
        facts: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, facts=facts)
        seen = {"status": 500, "request_bytes": 0, "response_bytes": 0}

        async def counted() -> dict:
            event = await receive()
            seen["request_bytes"] += len(event.get("body", b""))
            return event

        async def noted(event: dict) -> None:
            if event["type"] == "http.response.start":
                seen["status"] = event["status"]
                header = (b"x-request-id", request_id.encode())
                event = {**event, "headers": [*event.get("headers", ()), header]}
            seen["response_bytes"] += len(event.get("body", b""))
            await send(event)

        start = time.perf_counter()
        try:
            await self.app(scope, counted, noted)
        finally:
            line = {
                "request_id": request_id,
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"] if scope["path"] in self.paths else "(unknown)",
                **seen,
                "duration_s": round(time.perf_counter() - start, 4),
                **facts,
            }
            log.info("request", extra={"facts": line})
