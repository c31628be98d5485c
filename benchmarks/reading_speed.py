"""How long a reader takes to make 100 prompts from a memory of 320,000 tokens.

    python benchmarks/reading_speed.py
    python benchmarks/reading_speed.py --counters wordpunct tiktoken:o200k_base

Beside it the straightforward way: for every question a map of all entries to their places, and the
whole prompt counted anew for every number of entries that may fit. Both make the same prompts,
which is checked; both search with the same index, whose making is timed apart. The model replies at
once.
"""

from __future__ import annotations

import argparse
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence

from memalpha_kit.chats import ChatReply, ChatRequest, request
from memalpha_kit.method.model_readers import ModelReader
from memalpha_kit.method.prompts import VERSION, Retrieved, asked, system_prompt
from memalpha_kit.method.ranking import search
from memalpha_kit.method.retrieval import TEMPLATE_TOKENS, Retrieval
from memalpha_kit.records import STORES, Entry, Memory, Question
from memalpha_kit.tokens import counter

SHAPES = {"16,000 short entries": (16_000, 20), "320 long entries": (320, 1_000)}


class Model:
    """Replies at once, and keeps what it was asked."""

    name = "nobody"

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []

    def chat(self, requests: Sequence[ChatRequest], done: Callable | None = None) -> list:
        """One reply per request."""
        self.requests = list(requests)
        return [ChatReply("") for _ in requests]


def made_up(entries: int, tokens: int, questions: int) -> list[Question]:
    """Questions to a memory of so many entries, half of them episodic."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(5_000)]
    made = [Entry(str(n), " ".join(rng.choices(words, k=tokens))) for n in range(1, entries + 1)]
    half = entries // 2
    memory = Memory("A core.", tuple(made[:half]), tuple(made[half:]), entries + 1)
    texts = (" ".join(rng.choices(words, k=8)) + "?" for _ in range(questions))
    return [Question(f"q{n}", text, "squad", memory=memory) for n, text in enumerate(texts)]


def straightforward(question: Question, retrieval: Retrieval) -> ChatRequest:
    """The prompt of one question, from nothing but the memory."""
    memory, count = question.memory, counter(retrieval.counter).count
    ranked = []
    for store in STORES:
        best = search(memory, store, question.text, retrieval.top_k, "positive")
        ranked += [(place, store, entry) for place, (entry, _) in enumerate(best)]
    ranked.sort(key=lambda row: row[0])
    user = asked(question.text, question.source)

    def shown(n: int) -> str:
        kept = {s: [entry for _, store, entry in ranked[:n] if store == s] for s in STORES}
        for store, entries in kept.items():
            places = {entry.id: i for i, entry in enumerate(getattr(memory, store))}
            if store == "episodic" or len(entries) == len(places):
                entries.sort(key=lambda entry: places[entry.id])
        return system_prompt(Retrieved(memory.core, *map(tuple, kept.values())))

    def size(n: int) -> int:
        return count(shown(n)) + count(user) + TEMPLATE_TOKENS

    fits = len(ranked)
    if size(fits) > retrieval.budget_tokens:
        fits = bisect_right(range(fits), retrieval.budget_tokens, key=size) - 1
    options = {"max_tokens": 2048, "temperature": 0.0, "thinking": False, "version": VERSION}
    return request(shown(fits), user, **options)


def main() -> None:
    """Prints seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--counters", nargs="+", default=["wordpunct"])
    args = parser.parse_args()
    for name, (entries, tokens) in SHAPES.items():
        for kind in args.counters:
            questions, retrieval = made_up(entries, tokens, args.questions), Retrieval(counter=kind)
            model = Model()
            start = time.perf_counter()
            for store in STORES:
                search(questions[0].memory, store, "anything", 1, "positive")
            index_s = time.perf_counter() - start
            start = time.perf_counter()
            ModelReader(model, retrieval).read(questions)
            ours_s = time.perf_counter() - start
            start = time.perf_counter()
            plain = [straightforward(question, retrieval) for question in questions]
            plain_s = time.perf_counter() - start
            assert plain == model.requests, "both ways make the same prompts"
            print(
                f"{name}, {kind}: index {index_s:.2f} s, {args.questions} questions {ours_s:.2f} s"
            )
            print(f"  straightforward {plain_s:.2f} s, {plain_s / ours_s:.1f} times as long")


if __name__ == "__main__":
    main()
