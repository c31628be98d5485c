"""The kit's one HTTP client: any server that speaks the OpenAI protocol, as a `ChatModel`.

Laws: a request is named by its content (model, version of the instruction, messages, limits), so a
stored reply can never be given to another text; only a good reply is stored, so what failed is
asked again next time (data.md D3, D4, D26); never more than `concurrency` requests are under way,
over all callers of one client; the key is read when a request is sent and is neither kept nor
logged, and no redirect is followed, which would send it to an address that nobody named.

Busy servers (429), broken ones (5xx), timeouts, cut connections and bodies that are no reply are
tried again after growing pauses. A reply that cannot be had has `text` None and says why; it is
never an answer text (spec evaluation.md M-3, B-3). A server that is gone raises `ModelGone`.

    client = Client(endpoint_from_env(cache=Path("data/cache")))   # QWEN_URL, QWEN_MODEL_NAME
    client.chat([request("", "Who keeps bees?")])[0].text
    client.usage, client.usage.cost(client.endpoint)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from memalpha_kit.errors import DiskError, InputError, ModelGone, closest
from memalpha_kit.records import ChatReply, ChatRequest, Done, ToolUse
from memalpha_kit.text import without_surrogates

log = logging.getLogger(__name__)

T = TypeVar("T")
Accept = Callable[[ChatReply], bool]
BUSY = (408, 409, 425, 429)  # worth another try, as is every 5xx
REFUSED = (401, 402, 403, 404, 405)  # no other request would do better
CONNECT_S = 10.0  # a server that takes longer to take a connection is not there
LONGEST_PAUSE_S = 60.0
LONGEST_WISH_S = 600.0  # of a server's Retry-After
RETRIES_OF_NOTHING = 2  # of a finished reply without text: mostly the server's fault, not always
TEXTS_PER_CALL = 64  # embeddings
OPENROUTER, OPENAI = "https://openrouter.ai/api/v1", "https://api.openai.com/v1"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is used. Raises InputError for an address or a number that cannot be.

    `url` may end with `/v1`, with `/chat/completions` or without both. Of `cache`, a folder with
    one small file per reply, processes may share one; with a temperature above 0 it repeats the
    stored draw, so ask for another with another `seed` or `version`. `thinking_field` is how the
    server is told to reason or not: "" means by its host, "reasoning" for OpenRouter, "none" for
    OpenAI, else "chat_template_kwargs" (vLLM, SGLang and llama.cpp with Qwen3). Prices are US
    dollars per million tokens.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    concurrency: int = 32  # requests under way at most
    timeout_s: float = 120.0  # of one attempt
    retries: int = 6  # new attempts after the first
    pause_s: float = 1.0  # before the first retry; doubles each time
    give_up: int = 8  # requests in a row, all retried in vain: the server counts as gone
    cache: Path | None = None
    thinking_field: Literal["", "chat_template_kwargs", "reasoning", "none"] = ""
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _base_url(self.url))
        if not self.model:
            raise InputError("model: expected the name of the server's model, found none")
        for name in ("concurrency", "timeout_s", "give_up"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected more than 0, found {getattr(self, name)}")
        if self.retries < 0:
            raise InputError(f"retries: expected 0 or more, found {self.retries}")

    @property
    def host(self) -> str:
        """The server's name, without port."""
        return urlsplit(self.url).hostname or ""

    def thinking(self, wanted: bool | None) -> dict[str, Any]:
        """The fields of a request that switch the model's reasoning on or off."""
        by_host = {"openrouter.ai": "reasoning", "api.openai.com": "none"}
        kind = self.thinking_field or by_host.get(self.host, "chat_template_kwargs")
        if wanted is None or kind == "none":
            return {}
        inner = "enabled" if kind == "reasoning" else "enable_thinking"
        return {kind: {inner: wanted}}


def _base_url(url: str) -> str:
    """The address up to and with its version: what `/chat/completions` is appended to."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half a pair of brackets
        good = False
    if not good:
        shown = re.sub("[^/]*@", "***@", url.partition("?")[0])
        raise InputError(f"url: expected http(s)://host/v1, found {shown!r}")
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"url: expected no user name, password or query in the address of {parts.hostname}; "
            "a key belongs into an environment variable"
        )
    path = re.sub(r"(/chat)?/completions$|/embeddings$|/models$", "", parts.path.rstrip("/"))
    path = path.rstrip("/") if re.search(r"/v\d", path) else f"{path}/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def endpoint_from_env(env: Mapping[str, str] | None = None, **flags: Any) -> Endpoint:
    """The endpoint that flags and environment name; a flag that is None or "" is not given.

    `flags` are fields of `Endpoint`. Else the address is QWEN_URL, OPENAI_BASE_URL, or that of the
    only one of OPENROUTER_API_KEY and OPENAI_API_KEY that is set; the model is QWEN_MODEL_NAME or
    OPENAI_MODEL. The key is the host's own, else the only one that is set. Raises InputError that
    says what is missing, or for an unknown flag.
    """
    env = os.environ if env is None else env
    known = [item.name for item in fields(Endpoint)]
    for name in flags:
        if name not in known:
            raise InputError(f"endpoint: {name!r} is unknown{closest(name, known)}")
    given = {name: value for name, value in flags.items() if value is not None and value != ""}
    homes = {"OPENROUTER_API_KEY": OPENROUTER, "OPENAI_API_KEY": OPENAI}
    held = [name for name in homes if env.get(name)]
    url = given.pop("url", "") or env.get("QWEN_URL") or env.get("OPENAI_BASE_URL")
    if not url and len(held) == 1:
        url = homes[held[0]]
    model = given.pop("model", "") or env.get("QWEN_MODEL_NAME") or env.get("OPENAI_MODEL")
    if not url:
        raise InputError("model server: expected an address in QWEN_URL or --url, found none")
    if not model:
        raise InputError(f"{url}: expected a model in QWEN_MODEL_NAME or --model-name, found none")
    endpoint = Endpoint(url, model, **given)
    if "key_env" in given:
        return endpoint
    own = [name for name, home in homes.items() if urlsplit(home).hostname == endpoint.host]
    key_env = (own or (held if len(held) == 1 else ["OPENAI_API_KEY"]))[0]
    return Endpoint(url, model, key_env=key_env, **given)


@dataclass
class Usage:
    """What a client has done so far. Tokens are those the server counted; cached ones are free."""

    asked: int = 0  # requests that went to the server, each attempt
    cached: int = 0  # replies that the cache had
    failed: int = 0  # requests without an accepted reply
    retried: int = 0  # attempts after a first one
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # replies whose tokens the server did not tell

    def cost(self, endpoint: Endpoint) -> float | None:
        """US dollars; None if a price or some reply's tokens are unknown."""
        if endpoint.price_in is None or endpoint.price_out is None or self.uncounted:
            return None
        millions = self.prompt_tokens / 1e6, self.completion_tokens / 1e6
        return endpoint.price_in * millions[0] + endpoint.price_out * millions[1]


class Failed(Exception):
    """One request got no usable reply; the message says why. `fatal` if no other would either.

    `reply` is what counts if two further attempts get no more.
    """

    def __init__(
        self,
        why: str,
        retry: bool = True,
        pause_s: float = 0.0,
        fatal: bool = False,
        reply: ChatReply | None = None,
        status: int | None = None,  # of HTTP
    ) -> None:
        super().__init__(why)
        self.retry, self.pause_s, self.fatal = retry, pause_s, fatal
        self.reply, self.status = reply, status


@dataclass(eq=False)
class Client:
    """A `ChatModel` over HTTP. All its callers, in any thread, share `endpoint.concurrency`.

    Requests run on one background loop of the process, so `chat` also works where a loop is
    running already, as in a notebook.
    """

    endpoint: Endpoint
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    usage: Usage = field(default_factory=Usage, init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)

    @property
    def name(self) -> str:
        """The model's name at the server."""
        return self.endpoint.model

    def chat(
        self,
        requests: Sequence[ChatRequest],
        done: Done | None = None,
        accept: Accept | None = None,
    ) -> list[ChatReply]:
        """One reply per request, in order; equal requests are sent once.

        `accept` says whether a reply may be stored and counts as had. Raises ModelGone if the
        server refuses everything or is gone, DiskError for a cache that cannot be written; what
        was answered before has been handed to `done`.
        """
        found: SimpleQueue = SimpleQueue()
        work = self._start(requests, accept, found.put)
        replies: dict[int, ChatReply] = {}
        try:
            while (item := found.get()) is not None:
                replies[item[0]] = item[1]
                if done:
                    done(*item)
        finally:
            work.cancel()  # without effect on finished work
        work.result()
        return [replies[place] for place in range(len(requests))]

    async def achat(
        self,
        requests: Sequence[ChatRequest],
        done: Done | None = None,
        accept: Accept | None = None,
    ) -> list[ChatReply]:
        """As `chat`, for callers that have a loop of their own; `done` is called in it."""
        home, found = asyncio.get_running_loop(), asyncio.Queue()
        work = self._start(
            requests, accept, lambda item: home.call_soon_threadsafe(found.put_nowait, item)
        )
        replies: dict[int, ChatReply] = {}
        try:
            while (item := await found.get()) is not None:
                replies[item[0]] = item[1]
                if done:
                    done(*item)
        finally:
            work.cancel()
        work.result()
        return [replies[place] for place in range(len(requests))]

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, in order; each text has its own place in the cache.

        Raises InputError if a text got none, ModelGone and DiskError as `chat` does.
        """
        return asyncio.run_coroutine_threadsafe(self._embed(texts), _loop()).result()

    def ready(self, timeout_s: float = 5.0) -> str:
        """Why the server would not answer now, or "". One free call (its list of models), no retry.

        A server that keeps no such list is ready too.
        """

        async def look() -> str:
            async with _Lines(self.endpoint) as lines, lines.one() as http:
                try:
                    await self._send(http, "/models", None, timeout_s)
                except Failed as error:
                    return "" if error.status in (404, 405) else str(error)
            return ""

        return asyncio.run_coroutine_threadsafe(look(), _loop()).result()

    def key(self, asked: ChatRequest) -> str:
        """The request's name: a hash of everything that the reply depends on."""
        return _name(self.body(asked), asked.version)

    def body(self, asked: ChatRequest) -> dict[str, Any]:
        """What is sent: only fields that differ from the protocol's defaults."""
        body = {
            "model": self.endpoint.model,
            "messages": asked.plain(),
            "temperature": asked.temperature,
            "max_tokens": asked.max_tokens,
            **self.endpoint.thinking(asked.thinking),
        }
        if asked.top_p != 1.0:
            body["top_p"] = asked.top_p
        if asked.seed is not None:
            body["seed"] = asked.seed
        if asked.tools:
            body["tools"] = json.loads(asked.tools)
        return body

    # --- Many requests --------------------------------------------------------------------------

    def _start(self, requests: Sequence[ChatRequest], accept: Accept | None, put) -> Future:
        """The work, begun. `put` gets (place, reply) for each reply, then None."""
        work = asyncio.run_coroutine_threadsafe(self._run(requests, accept, put), _loop())
        work.add_done_callback(lambda _: put(None))
        return work

    async def _run(self, requests: Sequence[ChatRequest], accept: Accept | None, put) -> None:
        places: dict[str, list[int]] = {}
        for place, asked in enumerate(requests):
            places.setdefault(self.key(asked), []).append(place)
        failed_before, streak = self.usage.failed, _Streak(self.endpoint)

        async def answer(lines: _Lines, key: str, at: list[int]) -> None:
            reply = await self._reply(lines, key, requests[at[0]], streak, accept)
            for place in at:
                put((place, reply))

        await self._all(lambda lines: [answer(lines, *item) for item in places.items()])
        if missing := self.usage.failed - failed_before:
            log.warning("%s: %d of %d replies missing", self.name, missing, len(places))

    async def _all(self, work: Callable[[_Lines], list[Coroutine]]) -> None:
        """Does everything at once; the first error stops the rest and is raised."""
        try:
            async with _Lines(self.endpoint) as lines, asyncio.TaskGroup() as tasks:
                for one in work(lines):
                    tasks.create_task(one)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    # --- One request ----------------------------------------------------------------------------

    async def _reply(
        self, lines: _Lines, key: str, asked: ChatRequest, streak: _Streak, accept: Accept | None
    ) -> ChatReply:
        stored = _stored_reply(self._load(key))
        if stored is not None and (accept is None or accept(stored)):
            self.usage.cached += 1
            return stored
        try:
            reply = await self._ask(lines, "/chat/completions", key, self.body(asked), read_reply)
        except Failed as error:
            self.usage.failed += 1
            streak.note(error)
            return ChatReply(None, "error", error=str(error))
        streak.length = 0
        self._count(reply.prompt_tokens, reply.completion_tokens)
        if accept is not None and not accept(reply):
            self.usage.failed += 1
        elif reply.text or reply.tools:
            self._store(key, asked.version, _storable(reply))
        return reply

    def _count(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        self.usage.prompt_tokens += prompt_tokens or 0
        self.usage.completion_tokens += completion_tokens or 0
        self.usage.uncounted += prompt_tokens is None or completion_tokens is None

    async def _ask(
        self, lines: _Lines, path: str, key: str, body: dict, read: Callable[[bytes, float], T]
    ) -> T:
        """What `read` makes of the server's answer and its seconds. Raises Failed in the end.

        The slot is kept during pauses: a server in trouble gets fewer requests.
        """
        chance = random.Random(key)
        async with self._slots, lines.one() as http:
            for attempt in range(self.endpoint.retries + 1):
                self.usage.asked += 1
                self.usage.retried += attempt > 0
                try:
                    start = time.perf_counter()
                    answer = await self._send(http, path, body, self.endpoint.timeout_s)
                    return read(answer, time.perf_counter() - start)
                except Failed as error:
                    if error.reply and attempt >= min(RETRIES_OF_NOTHING, self.endpoint.retries):
                        return error.reply
                    if not error.retry or attempt == self.endpoint.retries:
                        raise
                    log.info("%s: attempt %d: %s", self.name, attempt + 1, error)
                    pause_s = min(self.endpoint.pause_s * 2**attempt, LONGEST_PAUSE_S)
                    await self.sleep(error.pause_s + pause_s * chance.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    async def _send(self, http: Any, path: str, body: dict | None, timeout_s: float) -> bytes:
        """The body of a good answer. Raises Failed, without the key in its text."""
        import httpx

        key = _key(self.endpoint.key_env)
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        raw = None if body is None else json.dumps(body).encode()  # ASCII: any text can be sent
        method, url = "GET" if body is None else "POST", f"{self.endpoint.url}{path}"
        try:
            async with asyncio.timeout(timeout_s):
                answer = await http.request(method, url, content=raw, headers=headers)
        except TimeoutError:
            raise Failed(f"no answer within {timeout_s:g} s") from None
        except httpx.RequestError as error:
            raise Failed(_without(key, f"{type(error).__name__}: {error}")) from None
        if answer.status_code != 200:
            raise _refused(answer, key, self.endpoint.key_env)
        return answer.content

    # --- Embeddings -----------------------------------------------------------------------------

    async def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        names = {text: _name({"model": self.name, "input": text}, "embedding") for text in texts}
        vectors = {text: _stored_vector(self._load(name)) for text, name in names.items()}
        missing = [text for text, vector in vectors.items() if vector is None]
        self.usage.cached += len(vectors) - len(missing)
        streak, why = _Streak(self.endpoint), ""

        async def fill(lines: _Lines, part: list[str]) -> None:
            nonlocal why
            body = {"model": self.name, "input": part}
            key = _name(body, "embeddings")
            try:
                found, tokens = await self._ask(
                    lines, "/embeddings", key, body, lambda raw, _: read_vectors(raw, len(part))
                )
            except Failed as error:
                self.usage.failed += 1
                streak.note(error)
                why = str(error)
                return
            self._count(tokens, 0)
            for text, vector in zip(part, found, strict=True):
                vectors[text] = vector
                self._store(names[text], "embedding", {"vector": vector})

        starts = range(0, len(missing), TEXTS_PER_CALL)
        parts = [missing[start : start + TEXTS_PER_CALL] for start in starts]
        if parts:
            await self._all(lambda lines: [fill(lines, part) for part in parts])
        if why:
            raise InputError(f"{self.endpoint.url}: expected a vector for each text, found: {why}")
        return [vectors[text] for text in texts]

    # --- The cache ------------------------------------------------------------------------------

    def _load(self, key: str) -> dict[str, Any]:
        """What is stored under this name; {} if there is nothing or the file is not whole."""
        if self.endpoint.cache is None:
            return {}
        try:
            stored = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) and stored.get("key") == key else {}

    def _path(self, key: str) -> Path:
        return Path(self.endpoint.cache) / key[:2] / f"{key}.json"

    def _store(self, key: str, version: str, content: Mapping[str, Any]) -> None:
        if self.endpoint.cache is None:
            return
        path = self._path(key)
        content = {"key": key, "model": self.name, "version": version, **content}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{id(content)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(content), encoding="utf-8")
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"{path}: expected to write it, found: {error.strerror}") from error


@dataclass
class _Lines:
    """The HTTP connections of one batch, each lent to one request at a time.

    A pool of httpx for all of them takes twice the time: for every request it looks at every one.
    """

    endpoint: Endpoint
    made: list[Any] = field(default_factory=list)
    free: list[Any] = field(default_factory=list)

    async def __aenter__(self) -> _Lines:
        return self

    async def __aexit__(self, *error: object) -> None:
        for line in self.made:
            await line.aclose()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Any]:
        """A connection that nobody else uses, kept open for the next one to ask."""
        line = self.free.pop() if self.free else self._new()
        try:
            yield line
        finally:
            self.free.append(line)

    def _new(self) -> Any:
        import httpx

        line = httpx.AsyncClient(
            verify=_tls() if self.endpoint.url.startswith("https:") else False,
            trust_env=self.endpoint.host not in LOOPBACK,  # no proxy on the way to this machine
            timeout=httpx.Timeout(None, connect=CONNECT_S),  # and one for the whole, see _send
            follow_redirects=False,
        )
        self.made.append(line)
        return line


@dataclass
class _Streak:
    """Requests of one batch that failed in a row after all their retries."""

    endpoint: Endpoint
    length: int = 0

    def note(self, error: Failed) -> None:
        """Raises ModelGone if the server is gone. A request that is bad by itself is none."""
        self.length += error.retry
        if error.fatal or self.length >= self.endpoint.give_up:
            raise ModelGone(
                f"{self.endpoint.url}: expected replies of {self.endpoint.model!r}, found: {error} "
                "(what was answered is kept; run again to go on)"
            )


def _loop() -> asyncio.AbstractEventLoop:
    """The loop that all clients' requests run on, in a thread of its own."""
    with _ONE_LOOP:
        return _started_loop()


_ONE_LOOP = threading.Lock()


@cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="model requests", daemon=True).start()
    return loop


@cache
def _tls() -> Any:
    """Made once: it takes longer than a request to a server next door."""
    import httpx

    return httpx.create_ssl_context()


def _name(body: Mapping[str, Any], version: str) -> str:
    content = json.dumps([body, version], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


# ---- keys and refusals --------------------------------------------------------------------------


def _key(variable: str) -> str:
    """The key, "" for none. Raises ModelGone for one that no header can carry."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ModelGone(f"{variable}: expected a key of plain characters, found others in it")
    return key


def _without(key: str, text: str) -> str:
    return text.replace(key, "***") if key else text


def _refused(answer: Any, key: str, key_env: str) -> Failed:
    """What an HTTP status means: try again, this request is bad, or all of them would be."""
    status = answer.status_code
    why = f"HTTP {status} {answer.reason_phrase}".strip()
    if status in (401, 403):  # such a body may hold part of the key
        why += f" (the key is read from {key_env})"
    elif said := _said(answer.content):
        why += f": {_without(key, said)}"
    retry = status in BUSY or status >= 500
    wish_s = _retry_after_s(answer.headers.get("Retry-After", "")) if retry else 0.0
    fatal = status in REFUSED or 200 < status < 400
    return Failed(why, retry, wish_s, fatal, status=status)


def _said(body: bytes) -> str:
    """The message of a server's error, one short line, or ""."""
    try:
        error = json.loads(body)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return without_surrogates(" ".join(said.split())[:200]) if isinstance(said, str) else ""


def _retry_after_s(header: str) -> float:
    """Seconds that a server asks to wait, given as a number or as a date; 0 if it is neither."""
    try:
        wish_s = float(header)
    except ValueError:
        try:
            wish_s = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(wish_s, 0.0), LONGEST_WISH_S) if wish_s == wish_s else 0.0


# ---- reading answers ----------------------------------------------------------------------------


def read_reply(body: bytes, latency_s: float | None = None) -> ChatReply:
    """The reply in the body of a chat completion.

    A reply cut off by its limit is one too (`finish` length, perhaps with text ""). Raises Failed,
    worth a retry, for a body that is no chat completion; with the empty reply for one that says
    nothing, which is the model's own word only if it stays so; and without retry for one that the
    server's filter withheld.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        said, reason = choice["message"], choice.get("finish_reason")
        text = said.get("content")
        tools = tuple(_tool_use(n, call) for n, call in enumerate(said.get("tool_calls") or ()))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise Failed(f"not a chat completion ({type(error).__name__})") from None
    if not isinstance(text, str | None):
        raise Failed(f"not a chat completion (content is {type(text).__name__})")
    if reason == "content_filter":
        raise Failed("the server's content filter withheld the reply", retry=False)
    if reason == "error":
        raise Failed("the server broke off the reply")
    finish = "length" if reason == "length" else "tool_calls" if tools else "stop"
    counts = completion.get("usage") or {}
    tokens = (_tokens(counts, f"{side}_tokens") for side in ("prompt", "completion"))
    text = without_surrogates(text or "")
    reply = ChatReply(text, finish, tools, *tokens, latency_s=latency_s)
    if finish == "stop" and not text.strip():
        raise Failed("the reply is empty", reply=reply if reason == "stop" else None)
    return reply


def _tool_use(place: int, call: Mapping[str, Any]) -> ToolUse:
    function = call["function"]
    name, arguments = function["name"], function.get("arguments") or "{}"
    if not isinstance(name, str):
        raise TypeError("a tool's name is a text")
    raw = arguments if isinstance(arguments, str) else json.dumps(arguments)
    used = call.get("id")
    return ToolUse(
        used if isinstance(used, str) and used else f"call_{place}",
        without_surrogates(name),
        without_surrogates(raw),
    )


def _tokens(counts: Any, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if type(value) is int and value >= 0 else None


def read_vectors(body: bytes, n_texts: int) -> tuple[list[list[float]], int | None]:
    """The embeddings of `n_texts` texts in their order, and the tokens used, if told.

    Raises Failed unless there is one vector of numbers for each place, all of one length (S-15).
    """
    try:
        answer = json.loads(body)
        rows = {row["index"]: [float(x) for x in row["embedding"]] for row in answer["data"]}
        vectors = [rows[place] for place in range(n_texts)]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise Failed(f"not a list of embeddings ({type(error).__name__})") from None
    if len(rows) != n_texts or len({len(vector) for vector in vectors}) > 1:
        raise Failed(f"expected {n_texts} embeddings of one length, found others")
    return vectors, _tokens(answer.get("usage"), "prompt_tokens")


# ---- what is stored -----------------------------------------------------------------------------


def _storable(reply: ChatReply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "finish": reply.finish,
        "tools": [[use.id, use.name, use.arguments] for use in reply.tools],
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }


def _stored_reply(stored: Mapping[str, Any]) -> ChatReply | None:
    """The reply of a cache file, or None. One that has a text only is finished."""
    if not isinstance(stored.get("text"), str):
        return None
    return ChatReply(
        stored["text"],
        stored.get("finish", "stop"),
        tuple(ToolUse(*use) for use in stored.get("tools", ())),
        stored.get("prompt_tokens"),
        stored.get("completion_tokens"),
        cached=True,
    )


def _stored_vector(stored: Mapping[str, Any]) -> list[float] | None:
    return stored.get("vector")
