"""What a request must pass before it is read, and how long it may work.

In this order: token (401), content type (415), announced size (413), a free place (503 with
Retry-After), the size as it is read (413), the time limit (504). A place is free again when the
work has really ended, not when its client got an answer: what was given up on still counts.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from memalpha_kit.server.settings import ServerSettings

RETRY_AFTER_S = 5
Handler = Callable[[Request], Awaitable[Response]]


class Refused(HTTPException):
    """A request that gets no answer; `items` say what is wrong where (`wire.Detail`).

    FastAPI's own kind: while a body is read it makes any other exception a 400.
    """

    def __init__(
        self,
        status: int,
        error: str,
        items: Iterable[dict[str, Any]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, error, headers)
        self.items = list(items)


class BoundedRequest(Request):
    """A request whose body is read up to a limit."""

    max_bytes: int

    async def stream(self) -> AsyncIterator[bytes]:
        """The body's parts. Raises Refused when they get too many."""
        size = 0
        async for part in super().stream():
            size += len(part)
            if size > self.max_bytes:
                raise too_large(self.max_bytes)
            yield part

    async def json(self) -> Any:
        """The body's value. Raises Refused (400).

        Stricter than `json.loads`, as RFC 8259 and 7493 are: UTF-8, no NaN, and no half of a
        surrogate pair, which can be neither tokenised nor sent on.
        """
        try:
            text = (await self.body()).decode("utf-8-sig")
            value = json.loads(text, parse_constant=_no_constant)
            if "\\ud" in text.lower():
                json.dumps(value, ensure_ascii=False).encode()
            return value
        except json.JSONDecodeError as error:
            why = f"{error.msg} at character {error.pos}"
        except UnicodeDecodeError:
            why = "bytes that are not UTF-8"
        except UnicodeEncodeError:
            why = "half of a surrogate pair"
        except RecursionError:
            why = "lists or objects that are nested too deeply"
        except ValueError:
            why = "a number that JSON does not have, or too long a one"
        items = [{"loc": ["body"], "msg": why, "type": "json_invalid"}]
        raise Refused(400, f"body: expected JSON, found: {why}", items)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


class Guard:
    """The checks of one server, and its places."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._places = threading.Semaphore(settings.max_at_work)

    def route(self) -> type[APIRoute]:
        """A class of routes that pass through this guard before their body is read."""
        guard = self

        class GuardedRoute(APIRoute):
            def get_route_handler(self) -> Handler:
                handle = super().get_route_handler()

                async def guarded(request: Request) -> Response:
                    return await guard(request, handle)

                return guarded

        return GuardedRoute

    async def __call__(self, request: Request, handle: Handler) -> Response:
        """The handler's response. Raises Refused."""
        self._check_token(request)
        if request.method == "POST":
            self._check_head(request)
        if not self._places.acquire(blocking=False):
            raise Refused(
                503,
                f"busy: {self.settings.max_at_work} requests are at work; try again later",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        try:
            return await self._in_time(request, handle)
        finally:
            job = getattr(request.state, "job", None)
            if job is None:
                self._places.release()
            else:
                job.add_done_callback(lambda _: self._places.release())

    async def _in_time(self, request: Request, handle: Handler) -> Response:
        limit_s = self.settings.time_limit_s
        bounded = BoundedRequest(request.scope, request.receive)
        bounded.max_bytes = self.settings.max_request_bytes
        try:
            async with asyncio.timeout(limit_s) as timer:
                return await handle(bounded)
        except TimeoutError:
            if not timer.expired():
                raise
            raise Refused(504, f"no answer within the time limit of {limit_s:g} s") from None

    def _check_token(self, request: Request) -> None:
        if not self.settings.token:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.settings.token.encode())
        if scheme.lower() != "bearer" or not same:
            found = "another one" if given else "none"
            raise Refused(
                401,
                f"expected the server's token as 'Authorization: Bearer ...', found {found}",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_head(self, request: Request) -> None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "Content-Type: expected application/json")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "Content-Encoding: expected none")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.settings.max_request_bytes:
            raise too_large(self.settings.max_request_bytes)


def too_large(limit: int) -> Refused:
    """The refusal of a body above the limit, in bytes."""
    return Refused(413, f"body: expected at most {limit} bytes, found more; ask in parts")
