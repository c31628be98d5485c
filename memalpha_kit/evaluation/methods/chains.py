"""Walking a model over pieces of text, each reply being the state that the next request shows.

The one law: chains do not see each other. They are walked in rounds, one request of every chain
that still has a piece, so that a server has them all at once. A request that failed ends its chain
with a reason; a reply without a usable state keeps the old one and is counted (spec evaluation.md
R-2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from memalpha_kit.evaluation.methods.journal import Spent
from memalpha_kit.records import ChatModel, ChatReply, ChatRequest

Of = TypeVar("Of")


@dataclass
class Chain(Generic[Of]):
    """One walk. `of` is whose it is; `ask` makes the request for a state and a piece."""

    of: Of
    pieces: Sequence[str]
    ask: Callable[[str, str], ChatRequest]
    state: str
    states: list[str] = field(default_factory=list)  # after each piece
    kept: int = 0  # replies without a usable state
    error: str = ""  # why it ended early
    spent: Spent = field(default_factory=Spent)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.error) or len(self.states) == len(self.pieces)

    def next_request(self) -> ChatRequest:
        """For the current state and the next piece."""
        return self.ask(self.state, self.pieces[len(self.states)])

    def take(self, reply: ChatReply, read: Callable[[str], str | None]) -> None:
        """The next state from a reply."""
        self.spent.add(reply.prompt_tokens, reply.completion_tokens)
        if reply.error or reply.text is None:
            why = reply.error or "the reply has no text"
            self.error = f"piece {len(self.states)}: {why}"
            return
        state = read(reply.text)
        if state is None:
            self.kept += 1
        else:
            self.state = state
        self.states.append(self.state)


def walk(
    chains: Sequence[Chain[Of]],
    model: ChatModel,
    read: Callable[[str], str | None],
    done: Callable[[Chain[Of]], None],
) -> None:
    """Calls `done` with each chain as soon as it is finished.

    `read` gives the state in a reply, None if there is none. Raises ModelGone.
    """
    for chain in chains:
        if chain.finished:
            done(chain)
    while live := [chain for chain in chains if not chain.finished]:

        def take(place: int, reply: ChatReply, live: Sequence[Chain[Of]] = live) -> None:
            live[place].take(reply, read)
            if live[place].finished:
                done(live[place])

        model.chat([chain.next_request() for chain in live], take)
