"""A chat model in memory: says what a function says, and remembers what it was asked."""

from collections.abc import Callable
from dataclasses import dataclass, field

from memalpha_kit.chats import ChatReply, ChatRequest
from memalpha_kit.errors import ModelGone


def user(asked: ChatRequest) -> str:
    """The last message's text."""
    return asked.messages[-1]["content"]


@dataclass
class FakeChat:
    """`say` gives a text (None: the call failed) or a whole reply; `dies_after` calls it is gone.

    Tokens are words. Replies come in the reverse order of the requests, unless `ordered`.
    """

    say: Callable[[ChatRequest], str | ChatReply | None] = lambda asked: "Nora"
    dies_after: int | None = None
    name: str = "fake"
    ordered: bool = False
    asked: list[ChatRequest] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def chat(self, requests, done=None):
        self.batches.append(len(requests))
        replies = {}
        places = range(len(requests))
        for place in places if self.ordered else reversed(places):
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise ModelGone("the server is gone")
            self.asked.append(requests[place])
            replies[place] = self._reply(requests[place])
            if done:
                done(place, replies[place])
        return [replies[place] for place in range(len(requests))]

    def _reply(self, asked: ChatRequest) -> ChatReply:
        said = self.say(asked)
        if isinstance(said, ChatReply):
            return said
        if said is None:
            return ChatReply(None, "error", error="HTTP 500 six times")
        words = sum(len(message["content"].split()) for message in asked.messages)
        return ChatReply(said, "stop", (), words, len(said.split()), 0.5)

    @property
    def texts(self) -> list[str]:
        """The last message of every request."""
        return [user(asked) for asked in self.asked]
