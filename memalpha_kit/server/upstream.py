"""The server's chat model as one request uses it: it can be stopped, and never takes all down.

A model that is gone fails every call that is still open, with its reason, instead of the whole
request, so that answers it gave before are kept (S-3).
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue

from memalpha_kit.errors import ModelGone
from memalpha_kit.records import ChatModel, ChatReply, ChatRequest, Done


class Stopped(Exception):
    """Nobody waits for this work any more."""


class Upstream:
    """A `ChatModel` for one request's thread; `stop` may be called from any other.

    Calls of a model with `begin` (`models.chat.Client`) are cancelled at once; another model is
    asked by one request at a time (`turn`) and stops after the batch it is at.
    """

    def __init__(self, model: ChatModel, turn: threading.Lock) -> None:
        self.name = model.name
        self.calls = 0
        self.failed: Counter[str] = Counter()  # failed calls by kind, such as "HTTP 500"
        self._model, self._turn = model, turn
        self._gone = ""
        self._stopped = False
        self._work: Future | None = None

    def stop(self) -> None:
        """Ends the work; its thread gets `Stopped` as soon as it can."""
        self._stopped = True
        if self._work:
            self._work.cancel()

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """One reply per request, in order. Raises Stopped."""
        replies: dict[int, ChatReply] = {}

        def keep(place: int, reply: ChatReply) -> None:
            if self._stopped:
                raise Stopped
            replies[place] = reply
            self.calls += 1
            if reply.text is None:
                self.failed[kind(reply.error)] += 1
            if done:
                done(place, reply)

        if not self._gone:
            try:
                self._ask(requests, keep)
            except ModelGone as error:
                self._gone = str(error)
        for place in range(len(requests)):
            if place not in replies:
                keep(place, ChatReply(None, "error", error=self._gone))
        return [replies[place] for place in range(len(requests))]

    def _ask(self, requests: Sequence[ChatRequest], keep: Done) -> None:
        if not hasattr(self._model, "begin"):
            with self._turn:
                if self._stopped:
                    raise Stopped
                self._model.chat(requests, keep)
            return
        arrived: SimpleQueue = SimpleQueue()
        self._work = self._model.begin(requests, arrived.put)
        if self._stopped:  # in between
            self._work.cancel()
        try:
            while (item := arrived.get()) is not None:
                keep(*item)
            self._work.result()
        except CancelledError:
            raise Stopped from None
        finally:
            self._work.cancel()


def kind(error: str) -> str:
    """What an error text is about, in a few words that hold nothing of a prompt or a reply."""
    found = re.search(r"HTTP \d{3}|no answer within|\b[A-Z][A-Za-z]+(?:Error|Timeout)\b", error)
    return found[0] if found else "other"
