"""A server on loopback that speaks the OpenAI protocol over real HTTP, well or badly.

    with StubServer(answer=lambda body: "Nora", latency_s=0.1, faults=Faults(broken=0.2)) as stub:
        ...  # stub.url, stub.requests, stub.n_requests, stub.peak_in_flight, stub.busy_s

`answer(body)` gets the request's JSON and returns the reply's text, or a whole message as a dict
(`content`, `tool_calls`, also `finish_reason` and `usage`). Faults are drawn by content and
attempt, so they do not depend on the order of arrival. An asyncio server in a thread: hundreds of
connections cost little.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Faults:
    """Shares of all requests that go wrong, each in its own way; together at most 1."""

    busy: float = 0.0  # 429
    broken: float = 0.0  # 500
    malformed: float = 0.0  # 200 with a body that is no completion
    cut: float = 0.0  # the connection ends in the middle of the body
    hang: float = 0.0  # no answer within `hang_s`, then the connection is closed
    seed: int = 0
    hang_s: float = 5.0

    def draw(self, body: bytes, attempt: int) -> str:
        """The fault of this attempt at this request, "" for none."""
        chance = random.Random(f"{self.seed}/{attempt}/{hashlib.sha256(body).hexdigest()}").random()
        for name in ("busy", "broken", "malformed", "cut", "hang"):
            chance -= getattr(self, name)
            if chance < 0:
                return name
        return ""


WRONG_KEY = 401, {"error": {"message": "Incorrect API key provided"}}
NAMED = {"busy": 429, "broken": 500, "malformed": b'{"choices": ['}


def echo(body: dict[str, Any]) -> str:
    """The last message in capitals, as a default answer."""
    return str(body["messages"][-1]["content"]).upper()


def bag_of_words(text: str, width: int = 64) -> list[float]:
    """A vector whose products grow with shared words: each word has a place by its hash."""
    vector = [0.0] * width
    for word in text.lower().split():
        vector[hashlib.sha256(word.encode()).digest()[0] % width] += 1.0
    return vector


@dataclass(eq=False)
class StubServer:
    """Start with `with`. Every attribute may be changed while it runs.

    `script` goes before everything else, one entry per request: a status, a body (bytes), "cut",
    "hang" or "" for a good answer. After `die_after` requests the connection of every further one
    is closed without a word; None for never. `key` makes it ask for that bearer token. What it saw:
    `requests` (JSON bodies, each attempt, as they came), `headers` (names in lower case), `paths`,
    `peak_in_flight`, and `faulty`, the faults that happened, by name.
    """

    answer: Callable[[dict[str, Any]], str | dict[str, Any]] = echo
    latency_s: float = 0.0
    faults: Faults = Faults()
    script: list[int | bytes | str] = field(default_factory=list)
    die_after: int | None = None
    key: str = ""
    embed: Callable[[str], list[float]] = bag_of_words
    models: tuple[str, ...] = ("stub",)
    refusal: str = ""  # what an error's body says, in place of its status
    refuses: Callable[[dict[str, Any]], str] = lambda body: ""  # why a body gets 400
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.forget()

    @property
    def n_requests(self) -> int:
        """Attempts that arrived, good or bad."""
        return len(self.requests)

    @property
    def busy_s(self) -> float:
        """From the arrival of the first request to the last answer."""
        return self.last_s - self.first_s

    def forget(self) -> None:
        """Starts all records anew."""
        self.requests, self.headers, self.paths = [], [], []
        self.peak_in_flight, self.first_s, self.last_s = self.in_flight, 0.0, 0.0
        self.faulty, self._attempts = Counter(), Counter()

    # --- Life -----------------------------------------------------------------------------------

    def __enter__(self) -> StubServer:
        self._loop, ready = asyncio.new_event_loop(), threading.Event()
        work = (self._main(ready),)
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=work, daemon=True
        )
        self._thread.start()
        ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _main(self, ready: threading.Event) -> None:
        self._stop, self._open = asyncio.Event(), set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    # --- HTTP -----------------------------------------------------------------------------------

    async def _connection(self, reader, writer) -> None:
        task = asyncio.current_task()
        self._open.add(task)
        gone = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*gone):
            while await self._exchange(reader, writer):
                pass
        self._open.discard(task)
        with contextlib.suppress(ConnectionError):
            writer.close()

    async def _exchange(self, reader, writer) -> bool:
        """Answers one request; False if the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        pairs = (line.split(":", 1) for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        allowed = not self.key or headers.get("authorization") == f"Bearer {self.key}"
        if method == "GET":
            return await self._send(writer, *(self._good(path, {}) if allowed else WRONG_KEY))
        self.first_s = self.first_s or time.monotonic()
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            body = json.loads(raw)
            for seen, what in ((self.requests, body), (self.headers, headers), (self.paths, path)):
                seen.append(what)
            if self.die_after is not None and self.n_requests > self.die_after:
                return False
            if not allowed:
                return await self._send(writer, *WRONG_KEY)
            return await self._react(reader, writer, path, body, self._step(raw))
        finally:
            self.in_flight -= 1
            self.last_s = time.monotonic()

    def _step(self, raw: bytes) -> int | bytes | str:
        """What goes wrong with this request, "" for nothing."""
        self._attempts[raw] += 1
        step = self.script.pop(0) if self.script else self.faults.draw(raw, self._attempts[raw])
        if step:
            self.faulty[str(step)] += 1
        return NAMED.get(step, step)

    async def _react(self, reader, writer, path: str, body: dict, step: int | bytes | str) -> bool:
        if step == "hang":
            with contextlib.suppress(TimeoutError):  # until then, or until the client has gone
                await asyncio.wait_for(reader.read(1), self.faults.hang_s)
            return False
        await asyncio.sleep(self.latency_s)
        if step == "cut":
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices": ')
            await writer.drain()
            return False
        if isinstance(step, bytes):
            return await self._send(writer, 200, step)
        if isinstance(step, int) and step != 200:
            said = self.refusal or f"stub says {step}"
            return await self._send(writer, step, {"error": {"message": said}})
        if why := self.refuses(body):
            return await self._send(writer, 400, {"error": {"message": why}})
        return await self._send(writer, *self._good(path, body))

    async def _send(self, writer, status: int, content: bytes | dict) -> bool:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        extra = "" if status == 200 else "Retry-After-Ms: 1\r\n"  # tests do not wait
        if 300 <= status < 400:
            extra = "Location: http://127.0.0.1:1/elsewhere\r\n"
        head = f"HTTP/1.1 {status} Stub\r\nContent-Type: application/json\r\n{extra}"
        writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        await writer.drain()
        return True

    # --- The protocol ---------------------------------------------------------------------------

    def _good(self, path: str, body: dict) -> tuple[int, dict]:
        if path == "/v1/models" and self.models:
            data = [{"id": name, "object": "model"} for name in self.models]
            return 200, {"object": "list", "data": data}
        kinds = {"/v1/chat/completions": self._chat, "/v1/embeddings": self._embeddings}
        if path not in kinds:
            return 404, {"error": {"message": f"no such path: {path}"}}
        return 200, {"id": "stub", "model": body.get("model"), **kinds[path](body)}

    def _chat(self, body: dict) -> dict:
        said = self.answer(body)
        message = {"content": said} if isinstance(said, str) else dict(said)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        finish = message.pop("finish_reason", finish)
        asked = " ".join(str(m.get("content")) for m in body["messages"])
        usage = message.pop("usage", _usage(asked, str(message.get("content") or "")))
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}

    def _embeddings(self, body: dict) -> dict:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [{"index": n, "embedding": self.embed(text)} for n, text in enumerate(texts)]
        data = data[::-1]  # the protocol promises an index, not an order
        return {"object": "list", "data": data, "usage": _usage(" ".join(texts), "")}


def _usage(asked: str, said: str) -> dict[str, int]:
    counts = len(asked.split()), len(said.split())
    return {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
