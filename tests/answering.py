"""What tests of retrieval and of readers that ask a model share."""

from dataclasses import dataclass, field

from memalpha_kit.method.retrieval import Retrieval
from memalpha_kit.records import Entry, Memory


def memory(semantic=(), episodic=(), core: str | None = "") -> Memory:
    """A memory of these texts, ids from 1 on."""
    entries = [Entry(str(i), text) for i, text in enumerate((*semantic, *episodic), 1)]
    n = len(semantic)
    return Memory(core, tuple(entries[:n]), tuple(entries[n:]), len(entries) + 1)


def texts(entries) -> list[str]:
    return [entry.text for entry in entries]


BOATS = memory(
    ["Nora keeps bees.", "Ana sails boats."], ["2024-05-01: Tom sold a boat.", "2024-05-02: rain."]
)
COMPASS = {
    "north": (0, 1),
    "east": (1, 0),
    "north east": (2, 2),
    "Where is north?": (0.1, 5),
    "east of what?": (1, 0.5),
}
EMBEDDING = Retrieval(method="embedding", top_k=2)


@dataclass
class Embedder:
    """Looks vectors up and keeps what it was asked."""

    table: dict = field(default_factory=lambda: COMPASS)
    asked: list[list[str]] = field(default_factory=list)
    name: str = "compass"

    def __call__(self, wanted: list[str]) -> list:
        self.asked.append(list(wanted))
        return [self.table[text] for text in wanted]
