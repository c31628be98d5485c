"""One small client for OpenAI-compatible servers, with a cache of replies on disk.

Laws: a request is named by its content (model, version of the instruction, messages, limits), so a
reply can never be given to another text, whatever its place in a file (data.md D3, D26); only a
finished and accepted reply is stored, so what failed is asked again next time (D4); the key is
read when a request is sent and is neither kept nor logged.

Temperature is 0 (D12a). Busy servers (429), broken ones (5xx), timeouts and cut connections are
tried again with growing pauses. A batch that is stopped goes on where it was: finished replies are
on disk. A reply that cannot be had is None and counted, never "".
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.metrics import answer_text

log = logging.getLogger(__name__)

TEMPERATURE = 0.0
REFUSED = (401, 403, 404)  # no other request would do better
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Request:
    """What is asked: chat messages as (role, text), and the version of the instruction in them."""

    messages: tuple[tuple[str, str], ...]
    version: str
    max_tokens: int = 512


@dataclass(frozen=True)
class Reply:
    """A finished reply without its reasoning; `problem` says why it was not accepted, or ""."""

    text: str
    problem: str = ""


class Complete(Protocol):
    """Asks a model. `problem` says what is wrong with a text, "" if nothing is."""

    def __call__(
        self, requests: Sequence[Request], problem: Callable[[str], str] = ...
    ) -> list[Reply | None]:
        """One reply per request, in order; None where none could be had."""
        ...


def no_problem(text: str) -> str:
    """ "": every finished reply is accepted."""
    return ""


class Failed(Exception):
    """One request got no usable reply; the message says why. `fatal` if no other would either."""

    def __init__(self, why: str, retry: bool, pause_s: float = 0.0, fatal: bool = False) -> None:
        super().__init__(why)
        self.retry, self.pause_s, self.fatal = retry, pause_s, fatal


@dataclass
class Client:
    """A `Complete` over HTTP. `url` ends before `/chat/completions`, mostly with `/v1`.

    `cache` is a folder with one small file per reply; processes may share it. `concurrency`
    requests are under way at most. After `give_up` requests in a row that were tried again in vain
    the server counts as gone and InputError says so; what was answered stays in the cache.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    cache: Path | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 5
    pause_s: float = 1.0  # before the first retry; doubles each time
    give_up: int = 8
    sleep: Callable[[float], None] = time.sleep
    asked: int = field(default=0, init=False)  # requests that went to the server
    cached: int = field(default=0, init=False)  # replies that the cache had
    failed: int = field(default=0, init=False)  # requests without an accepted reply
    _failed_in_a_row: int = field(default=0, init=False)
    _stopped: bool = field(default=False, init=False)  # the others need not be asked any more
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises InputError for a missing or odd address and a missing model."""
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"llm_url: expected http(s)://host/v1, found {self.url!r}")
        if not self.model:
            raise InputError("llm_model: expected the name of the server's model, found none")
        self.url = self.url.rstrip("/").removesuffix("/chat/completions")

    def __call__(
        self, requests: Sequence[Request], problem: Callable[[str], str] = no_problem
    ) -> list[Reply | None]:
        """One reply per request, in order; equal requests are sent once.

        Raises InputError if the server refuses everything or is gone, DiskError for a cache that
        cannot be written.
        """
        unique = list(dict.fromkeys(requests))
        self._stopped, self._failed_in_a_row = False, 0
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                replies = list(pool.map(lambda request: self._reply(request, problem), unique))
            except BaseException:
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        missing = sum(reply is None or bool(reply.problem) for reply in replies)
        self.failed += missing
        if missing:
            log.warning("%s: %d of %d replies missing", self.model, missing, len(unique))
        found = dict(zip(unique, replies, strict=True))
        return [found[request] for request in requests]

    def _reply(self, request: Request, problem: Callable[[str], str]) -> Reply | None:
        if self._stopped:
            return None
        stored = self._load(request)
        if stored is not None and not problem(stored):
            self._count("cached")
            return Reply(stored)
        try:
            text = self._ask(request)
        except Failed as error:
            self._note_failure(error)
            return None
        self._failed_in_a_row = 0
        reply = Reply(text, problem(text))
        if not reply.problem:
            self._store(request, text)
        return reply

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def _note_failure(self, error: Failed) -> None:
        if error.retry:
            self._count("_failed_in_a_row")
        log.warning("%s: a request got no reply: %s", self.model, error)
        if error.fatal or self._failed_in_a_row >= self.give_up:
            self._stopped = True
            raise InputError(
                f"{self.url}: expected replies of {self.model!r}, found: {error} (finished ones "
                "are cached; run again to go on)"
            ) from error

    # --- HTTP -------------------------------------------------------------------------------------

    def _ask(self, request: Request) -> str:
        """The finished reply's text, after at most `retries` new attempts. Raises Failed."""
        for attempt in range(self.retries + 1):
            self._count("asked")
            try:
                return read_reply(self._post(request))
            except Failed as error:
                if not error.retry or attempt == self.retries or self._stopped:
                    raise
                pause = max(self.pause_s * 2**attempt, error.pause_s)
                self.sleep(min(pause, LONGEST_PAUSE_S))
        raise AssertionError("unreachable")

    def _post(self, request: Request) -> bytes:
        body = json.dumps(self._body(request)).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_env):
            headers["Authorization"] = f"Bearer {key}"
        call = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        try:
            with _OPENER.open(call, timeout=self.timeout_s) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error, self.key_env) from None
        except (OSError, http.client.HTTPException) as error:  # timeouts and URLError are OSErrors
            raise Failed(f"{type(error).__name__}: {error}", retry=True) from None

    def _body(self, request: Request) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in request.messages],
            "temperature": TEMPERATURE,
            "max_tokens": request.max_tokens,
        }

    # --- The cache --------------------------------------------------------------------------------

    def key(self, request: Request) -> str:
        """The request's name: a hash of everything that the reply depends on."""
        content = json.dumps([self._body(request), request.version], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _path(self, key: str) -> Path:
        return Path(self.cache) / key[:2] / f"{key}.json"

    def _load(self, request: Request) -> str | None:
        """The stored text, or None if there is none or the file is not whole."""
        if self.cache is None:
            return None
        key = self.key(request)
        try:
            stored = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(stored, dict) or stored.get("key") != key:
            return None
        text = stored.get("text")
        return text if isinstance(text, str) else None

    def _store(self, request: Request, text: str) -> None:
        if self.cache is None:
            return
        key = self.key(request)
        path = self._path(key)
        content = {"key": key, "model": self.model, "version": request.version, "text": text}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(content), encoding="utf-8")
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"{path}: expected to write it, found: {error.strerror}") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to an address that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: the redirect is an error."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def _refused(error: urllib.error.HTTPError, key_env: str) -> Failed:
    """What an HTTP status means: try again, this request is bad, or all of them would be."""
    why = f"HTTP {error.code} {error.reason}"
    if error.code in (401, 403):
        why += f" (the key is read from {key_env})"
    busy = error.code in (408, 409, 425, 429) or error.code >= 500
    wait = error.headers.get("Retry-After", "")
    pause_s = float(wait) if wait.isdecimal() else 0.0
    return Failed(why, busy, pause_s, fatal=error.code in REFUSED or 300 <= error.code < 400)


def read_reply(body: bytes) -> str:
    """The text of a chat completion, reasoning stripped.

    Raises Failed for a body that is no chat completion, and for a reply that was cut off by the
    limit, left its reasoning open or says nothing: that is no answer (D12a).
    """
    try:
        choice = json.loads(body)["choices"][0]
        content, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Failed(f"not a chat completion ({type(error).__name__})", retry=True) from None
    if finish == "length":
        raise Failed("the reply was cut off by its token limit", retry=False)
    text = answer_text(content) if isinstance(content, str) else None
    if not text:
        raise Failed("the reply has no text after its reasoning", retry=False)
    return text
