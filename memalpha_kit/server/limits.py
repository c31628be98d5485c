"""What a memory server may be told, where it may listen, and what a request must pass.

In this order: Host (421), token (401), content type (415), announced size (413), a free place (503
with Retry-After), the body's size and time as it comes in (413, 408), the time limit. When that is
up, the answers that are there are sent and the others are null; nothing at all is 504. A place is
free again when the request's work has ended; a batch of a model in this process cannot be ended,
and the next request waits for it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from fastapi import Request
from starlette.requests import ClientDisconnect

from memalpha_kit.chats import ChatModel
from memalpha_kit.errors import InputError
from memalpha_kit.server.wire import Refused
from memalpha_kit.server.work import Upstream
from memalpha_kit.settings import ServerSettings

TOKEN_ENV = "MEMALPHA_SERVER_TOKEN"
RETRY_AFTER_S = 5


def listen(host: str, port: int, token: str) -> socket.socket:
    """A socket that listens at a host's name. Raises InputError if it cannot or must not.

    Any address but loopback needs a token, whatever name it goes by.
    """
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError(f"{TOKEN_ENV}: expected plain characters without a space")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InputError(f"host: expected an address of this machine, found {host!r}") from None
    family, _, _, _, place = found[0]
    if not token and not is_loopback(str(place[0]).partition("%")[0]):
        raise InputError(
            f"host {host}: other machines can reach it, so expected a token in {TOKEN_ENV}, found "
            'none; make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    try:
        return socket.create_server(place, family=family, backlog=128)
    except OSError as error:
        raise InputError(f"{host}:{port}: cannot listen there: {error.strerror}") from None


def is_loopback(name: str) -> bool:
    """Whether a host's name or address can only mean this machine."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Gate:
    """The checks of one server, its places and the threads in which requests work, one each."""

    def __init__(self, settings: ServerSettings, token: str) -> None:
        self.settings, self.token = settings, token
        self.max_bytes = int(settings.max_request_mb * 2**20)
        self._places = threading.Semaphore(settings.at_work)
        self._turn = ThreadPoolExecutor(1, thread_name_prefix="memalpha-model")
        self._pool = ThreadPoolExecutor(settings.at_work, thread_name_prefix="memalpha-serve")

    async def check_host(self, request: Request) -> None:
        """Raises Refused (421) for a name that a web page may have made to mean this machine.

        A server with a token need not care: no page knows it.
        """
        host = request.headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not (self.token or is_loopback(name)):
            raise Refused(421, "Host: expected localhost or a loopback address")

    async def check_token(self, request: Request) -> None:
        """Raises Refused (401)."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if self.token and not (scheme.lower() == "bearer" and same):
            found = "another one" if given else "none"
            raise Refused(
                401,
                f"expected the server's token as 'Authorization: Bearer ...', found {found}",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def check_body(self, request: Request) -> None:
        """Raises Refused (415, 413) for what the headers say of a body."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "Content-Type: expected application/json")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "Content-Encoding: expected none")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > self.max_bytes:
            raise self._too_large()

    def _too_large(self) -> Refused:
        told = f"body: expected at most {self.max_bytes} bytes, found more; ask in parts"
        return Refused(413, told)

    async def run(
        self, request: Request, model: ChatModel, job: Callable[[bytes, Upstream], bytes]
    ) -> bytes:
        """What `job` makes of the body, in a thread. Stops its calls if the client leaves or the
        time is up. Raises Refused."""
        if not self._places.acquire(blocking=False):
            raise Refused(
                503,
                f"busy: {self.settings.at_work} requests are at work; try again later",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        upstream = Upstream(model, self._turn)
        try:
            body = await self._read(request)
            work = self._pool.submit(job, body, upstream)
        except BaseException:
            self._places.release()
            raise
        work.add_done_callback(lambda _: self._places.release())
        found, left = asyncio.wrap_future(work), asyncio.ensure_future(_left(request))
        try:
            return await self._in_time(found, left, upstream)
        except asyncio.CancelledError:  # the server was told to stop, and has waited for long
            raise Refused(503, "the server stops; try again when it runs again") from None
        finally:
            left.cancel()
            found.cancel() or found.exception()  # read, or asyncio complains in the log
            upstream.stop("nobody waits for it")
            request.state.facts.update(calls=upstream.calls, failed=upstream.failed)

    async def _in_time(
        self, found: asyncio.Future[bytes], left: asyncio.Future[None], upstream: Upstream
    ) -> bytes:
        """What was found, or what of it was answered when the time is up."""

        async def wait(limit_s: float) -> None:
            await asyncio.wait((found, left), timeout=limit_s, return_when="FIRST_COMPLETED")

        late = ""
        await wait(self.settings.time_limit)
        if not found.done() and not left.done():
            late = f"no answer within the time limit of {self.settings.time_limit:g} s"
            upstream.stop(late)
            await wait(5.0)  # for the answers that are there to be put together
        if found.done() and (upstream.answered or not late):
            return found.result()
        if left.done():
            raise Refused(499, "the client has left")
        raise Refused(504, late)

    async def _read(self, request: Request) -> bytes:
        """The body. Raises Refused when it gets too large or does not come."""
        parts, size, limit_s = [], 0, self.settings.body_time
        try:
            async with asyncio.timeout(limit_s):
                async for part in request.stream():
                    size += len(part)
                    if size > self.max_bytes:
                        raise self._too_large()
                    parts.append(part)
        except TimeoutError:
            closing = {"Connection": "close"}
            raise Refused(408, f"no whole body within {limit_s:g} s", headers=closing) from None
        except ClientDisconnect:
            raise Refused(499, "the client has left") from None
        return b"".join(parts)


async def _left(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
