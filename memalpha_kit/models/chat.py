"""The kit's one HTTP client: any server that speaks the OpenAI protocol, as a `ChatModel`.

The official `openai` package does the sending: connections, time limits, and new attempts after
busy or broken answers, as long as the server asks to wait. Around it stand our rules:

* A call that failed has `text` None and says why; an error text is never an answer.
* A reply is stored under everything it depends on (address, model, version of the instruction,
  messages, limits), so it can never be given to another text or be taken for another server's.
  Only good replies are stored: what failed is asked again the next time.
* At most `concurrency` requests are under way, over all callers of one client in any thread.
* The key is read when a request is sent, is neither kept nor logged, and no redirect is followed,
  which would send it to an address that nobody named.
* A server that is gone raises `ModelGone`; what was answered before is kept.

    client = Client(endpoint_from_env(cache=Path("data/cache")))   # QWEN_URL, QWEN_MODEL_NAME
    client.chat([request("", "Who keeps bees?")])[0].text
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from queue import SimpleQueue
from typing import Any, TypeVar

from memalpha_kit import files
from memalpha_kit.chats import ChatReply, ChatRequest, Done
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.models import replies
from memalpha_kit.models.servers import LOOPBACK, Endpoint
from memalpha_kit.records import ToolUse

log = logging.getLogger(__name__)

T = TypeVar("T")
Accept = Callable[[ChatReply], bool]
CONNECT_S = 10.0  # a server that takes longer to take a connection is not there
MORE_TRIES = 2  # after a body that is no reply, and after one that says nothing
TEXTS_PER_CALL = 64  # embeddings


def _paid(reply: T, thrown: Sequence[tuple[int | None, int | None]]) -> T:
    """The reply with the tokens of those that were thrown away for it: they were paid for too."""
    known = [counts for counts in thrown if None not in counts]
    if not known or not isinstance(reply, ChatReply):
        return reply
    last = (0, 0) if reply.error else (reply.prompt_tokens, reply.completion_tokens)
    if None in last:
        return reply
    prompt, completion = map(sum, zip(last, *known, strict=True))
    return replace(reply, prompt_tokens=prompt, completion_tokens=completion)


@dataclass(eq=False)
class Client:
    """A `ChatModel` over HTTP.

    Requests run on one background loop of the process, so `chat` also works where a loop is
    running already, as in a notebook or a web server.
    """

    endpoint: Endpoint

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        self._otherwise: dict[str, str] = {}  # fields that the server refuses

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
        arrived: SimpleQueue = SimpleQueue()
        work = self.begin(requests, arrived.put, accept)
        known: dict[int, ChatReply] = {}
        try:
            while (item := arrived.get()) is not None:
                known[item[0]] = item[1]
                if done:
                    done(*item)
        finally:
            work.cancel()  # without effect on finished work
        work.result()
        return [known[place] for place in range(len(requests))]

    def begin(
        self,
        requests: Sequence[ChatRequest],
        put: Callable[[tuple[int, ChatReply] | None], object],
        accept: Accept | None = None,
    ) -> Future:
        """The work of `chat`, begun; `cancel` ends it.

        `put` gets (place, reply) for each reply, on the background loop, and None in the end.
        """
        work = asyncio.run_coroutine_threadsafe(self._answer_all(requests, put, accept), _loop())
        work.add_done_callback(lambda _: put(None))
        return work

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, in order; each text has its own place in the cache.

        Raises InputError if a text got none, ModelGone and DiskError as `chat` does.
        """
        return asyncio.run_coroutine_threadsafe(self._embed(texts), _loop()).result()

    def ready(self, timeout_s: float = 5.0) -> str:
        """Why the server would not answer now, or "". One free call (its list of models), no retry.

        A server that keeps no such list is ready too.
        """
        look = self._send("/models", None, max_retries=0, timeout=timeout_s)
        try:
            asyncio.run_coroutine_threadsafe(look, _loop()).result()
        except replies.Failed as error:
            return "" if error.status in (404, 405) else str(error)
        return ""

    def body(self, asked: ChatRequest) -> dict[str, Any]:
        """What is sent: only fields that differ from the protocol's defaults."""
        body = {
            "model": self.endpoint.model,
            "messages": list(asked.messages),
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

    async def _answer_all(
        self,
        requests: Sequence[ChatRequest],
        put: Callable[[tuple[int, ChatReply]], object],
        accept: Accept | None,
    ) -> None:
        places: dict[str, list[int]] = {}
        for place, asked in enumerate(requests):
            places.setdefault(self._key(self.body(asked), asked.version), []).append(place)
        streak, missing = _Streak(self.endpoint), list[str]()

        async def answer(key: str, at: list[int]) -> None:
            reply = await self._reply(key, requests[at[0]], streak, accept)
            if reply.error or (accept and not accept(reply)):
                missing.append(key)
            for place in at:
                put((place, reply))

        await _together(answer(key, at) for key, at in places.items())
        if missing:
            log.warning("%s: %d of %d replies missing", self.name, len(missing), len(places))

    async def _reply(
        self, key: str, asked: ChatRequest, streak: _Streak, accept: Accept | None
    ) -> ChatReply:
        stored = _stored_reply(self._load(key))
        if stored is not None and (accept is None or accept(stored)):
            return stored
        try:
            reply = await self._ask("/chat/completions", self.body(asked), replies.read_reply)
            reply = replies.without_key(_key(self.endpoint.key_env), reply)
        except replies.Failed as error:
            streak.note(error)
            finish = "unanswerable" if error.too_long else "error"
            return _paid(ChatReply(None, finish, error=str(error)), error.thrown)
        streak.length = 0
        good = accept is None or accept(reply)
        if good and self.endpoint.cache and (reply.text or reply.tools):
            self._store(key, asked.version, asdict(reply))
        return reply

    async def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        keys = {t: self._key({"model": self.name, "input": t}, "embedding") for t in texts}
        vectors: dict[str, Any] = {
            text: self._load(key).get("vector") for text, key in keys.items()
        }
        missing = [text for text, vector in vectors.items() if vector is None]
        streak, reasons = _Streak(self.endpoint), list[str]()

        async def fill(part: list[str]) -> None:
            body = {"model": self.name, "input": part}
            try:
                found = await self._ask(
                    "/embeddings", body, lambda answer, _: replies.read_vectors(answer, len(part))
                )
            except replies.Failed as error:
                if len(part) > 1 and error.status in (400, 413, 422):  # perhaps too many at once
                    for half in (part[::2], part[1::2]):
                        if not reasons:
                            await fill(half)
                    return
                streak.note(error)
                reasons.append(str(error))
                return
            for text, vector in zip(part, found, strict=True):
                vectors[text] = vector
                self._store(keys[text], "embedding", {"vector": vector})

        starts = range(0, len(missing), TEXTS_PER_CALL)
        await _together(fill(missing[start : start + TEXTS_PER_CALL]) for start in starts)
        if reasons:
            where = f"{self.endpoint.url}: expected a vector for each text"
            raise InputError(f"{where}, found: {reasons[-1]}")
        return [vectors[text] for text in texts]

    async def _ask(self, path: str, body: dict, read: Callable[[Any, float], T]) -> T:
        """What `read` makes of the server's answer and its seconds. Raises Failed in the end.

        `openai` repeats what the network or the server spoilt. It cannot see that a body is no
        reply, so that is repeated here. The slot is kept meanwhile: a server in trouble gets fewer
        requests.
        """
        thrown: list[tuple[int | None, int | None]] = []
        async with self._slots:
            for left in reversed(range(1 + min(MORE_TRIES, self.endpoint.retries))):
                start = time.perf_counter()
                raw = await self._post(path, body)
                elapsed_s = time.perf_counter() - start
                answer = replies.parsed(raw)
                try:
                    return _paid(read(answer, elapsed_s), thrown)
                except replies.Failed as error:
                    if isinstance(answer, dict) and answer.get("error"):
                        error.why += replies.said_error(answer, _key(self.endpoint.key_env))
                    if not left and error.reply:
                        return _paid(error.reply, thrown)
                    error.thrown = thrown = [*thrown, replies.tokens(answer)]
                    if not (left and error.retry):
                        raise
                    log.info("%s: asked again: %s", self.name, error)
        raise AssertionError("unreachable")

    async def _post(self, path: str, body: dict) -> bytes:
        """As `_send`; a field that the server refuses is left out or renamed from then on."""
        while True:
            sent = {self._otherwise.get(name, name): value for name, value in body.items()}
            sent.pop("", None)
            try:
                return await self._send(path, sent)
            except replies.Failed as error:
                if not (name := error.not_taken(sent)):
                    raise
                other = replies.OTHERWISE[name]
                if not other and name not in self._otherwise:
                    log.warning("%s: the server refuses %s: asked without it", self.name, name)
                self._otherwise[name] = other

    async def _send(self, path: str, body: dict | None, **options: Any) -> bytes:
        """The body of a good answer. Raises Failed, without the key in its text."""
        import httpx2
        import openai

        key = _key(self.endpoint.key_env)
        options["headers"] = {"Authorization": f"Bearer {key}" if key else openai.Omit()}
        try:
            send = self._http.get if body is None else partial(self._http.post, body=body)
            answer = await send(path, cast_to=httpx2.Response, options=options)
        except openai.APIStatusError as error:
            raise replies.refusal(error.response, key, self.endpoint.key_env) from None
        except openai.APITimeoutError:
            limit_s = options.get("timeout", self.endpoint.timeout_s)
            raise replies.Failed(f"no answer within {limit_s:g} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise replies.Failed(replies.masked(key, f"{type(cause).__name__}: {cause}")) from None
        return answer.content

    @cached_property
    def _http(self) -> Any:
        """The client of the `openai` package; made when it is needed, for it is slow to import."""
        import httpx2
        import openai

        timeout = httpx2.Timeout(self.endpoint.timeout_s, connect=CONNECT_S)
        return openai.AsyncOpenAI(
            base_url=self.endpoint.url,
            api_key="not used: each request brings its own",
            max_retries=self.endpoint.retries,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=timeout,
                trust_env=self.endpoint.host not in LOOPBACK,  # no proxy on the way to this machine
                follow_redirects=False,
            ),
        )

    def _key(self, body: Mapping[str, Any], version: str) -> str:
        """A request's name: a hash of everything that the reply depends on."""
        content = json.dumps([self.endpoint.url, body, version], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _load(self, key: str) -> dict[str, Any]:
        """What is stored under this name; {} if there is nothing or the file is not whole."""
        if self.endpoint.cache is None:
            return {}
        try:
            stored = json.loads((self.endpoint.cache / key[:2] / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) and stored.get("key") == key else {}

    def _store(self, key: str, version: str, content: Mapping[str, Any]) -> None:
        if self.endpoint.cache is not None:
            made = {"key": key, "url": self.endpoint.url, "model": self.name, "version": version}
            files.save_json(self.endpoint.cache / key[:2] / f"{key}.json", {**made, **content})


def _stored_reply(stored: Mapping[str, Any]) -> ChatReply | None:
    if not isinstance(stored.get("text"), str):
        return None
    tools = tuple(ToolUse(**use) for use in stored["tools"])
    counts = stored["prompt_tokens"], stored["completion_tokens"]
    return ChatReply(stored["text"], stored["finish"], tools, *counts)


@dataclass
class _Streak:
    """Requests of one batch that failed in a row after all their retries."""

    endpoint: Endpoint
    length: int = 0

    def note(self, error: replies.Failed) -> None:
        """Raises ModelGone if the server is gone. A request that is bad by itself is none."""
        self.length += error.retry
        if error.fatal or self.length >= self.endpoint.give_up:
            raise ModelGone(
                f"{self.endpoint.url}: expected replies of {self.endpoint.model!r}, found: {error} "
                "(what was answered is kept; run again to go on)"
            )


async def _together(work: Iterable[Coroutine]) -> None:
    """Does everything at once; the first error stops the rest and is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for one in work:
                tasks.create_task(one)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


_ONE_LOOP = threading.Lock()
_LOOPS: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    """The loop that all clients' requests run on, in a thread of its own."""
    with _ONE_LOOP:
        if not _LOOPS:
            _LOOPS.append(asyncio.new_event_loop())
            work = _LOOPS[0].run_forever
            threading.Thread(target=work, name="model requests", daemon=True).start()
        return _LOOPS[0]


def _key(variable: str) -> str:
    """The key, "" for none. Raises ModelGone for one that no header can carry."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ModelGone(f"{variable}: expected a key of plain characters, found others in it")
    return key
