"""Reading and writing: 100 prompts from 320,000 tokens, episodes, hostile replies, scorers."""

from __future__ import annotations

import random
import re
import string
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cache

import pytest
from rouge_score import rouge_scorer

from memalpha_kit.chats import ChatReply, ChatRequest, request
from memalpha_kit.method import metrics
from memalpha_kit.method.calls import parse_reply, render_calls
from memalpha_kit.method.episode import write
from memalpha_kit.method.memory import INSERT, apply, empty
from memalpha_kit.method.model_readers import ModelReader
from memalpha_kit.method.prompts import VERSION, Retrieved, asked, system_prompt
from memalpha_kit.method.ranking import search
from memalpha_kit.method.retrieval import TEMPLATE_TOKENS, Retrieval
from memalpha_kit.method.writers import ScriptedReplies
from memalpha_kit.records import (
    QA,
    STORES,
    Entry,
    Instance,
    Memory,
    Question,
    ToolCall,
    make_instance,
)
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.tokens import counter

# --- Reading --------------------------------------------------------------------------------------

SHAPES = {"16,000 short entries": (16_000, 20), "320 long entries": (320, 1_000)}


class Model:
    """Replies at once, and keeps what it was asked."""

    name = "nobody"

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []

    def chat(self, requests: Sequence[ChatRequest], done=None) -> list[ChatReply]:
        """One reply per request."""
        self.requests = list(requests)
        return [ChatReply("") for _ in requests]


def questions(entries: int, tokens: int, n: int) -> list[Question]:
    """Questions to a memory of so many entries, half of them episodic."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(5_000)]
    made = [Entry(str(i), " ".join(rng.choices(words, k=tokens))) for i in range(1, entries + 1)]
    half = entries // 2
    memory = Memory("A core.", tuple(made[:half]), tuple(made[half:]), entries + 1)
    texts = (" ".join(rng.choices(words, k=8)) + "?" for _ in range(n))
    return [Question(f"q{i}", text, "squad", memory=memory) for i, text in enumerate(texts)]


def straightforward(question: Question, retrieval: Retrieval) -> ChatRequest:
    """The prompt of one question, counted whole for every number of entries that may fit."""
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
        return system_prompt(Retrieved({"core": memory.core, **kept}))

    def size(n: int) -> int:
        return count(shown(n)) + count(user) + TEMPLATE_TOKENS

    fits = len(ranked)
    if size(fits) > retrieval.budget_tokens:
        fits = bisect_right(range(fits), retrieval.budget_tokens, key=size) - 1
    options = {"max_tokens": 2048, "temperature": 0.0, "thinking": False, "version": VERSION}
    return request(shown(fits), user, **options)


@pytest.mark.parametrize("shape", SHAPES)
def bench_questions(meter, shape):
    """Prompts within the budget; both ways search the same index, which is made before."""
    n = 5 if meter.quick else 100
    some, retrieval, model = questions(*SHAPES[shape], n), Retrieval(), Model()
    for store in STORES:
        search(some[0].memory, store, "anything", 1, "positive")

    def ours() -> list[ChatRequest]:
        ModelReader(model, retrieval).read(some)
        return model.requests

    meter.versus(
        f"{n} questions",
        shape,
        ours,
        lambda: [straightforward(question, retrieval) for question in some],
        rounds=3,
        want=("ours_s", "<=", 2.0),
    )


# --- Writing --------------------------------------------------------------------------------------

MEMORY, PROTOCOL, CHUNKS = MemoryConfig(core=False), ProtocolConfig(), 20


@cache
def replies(n_calls: int = 5) -> list[str]:
    """What the instant writer says to each chunk."""
    arguments = [
        {"memory_type": "semantic_memory", "content": f"Fact {i} of step {step}: the bees hum."}
        for step in range(CHUNKS)
        for i in range(n_calls)
    ]
    calls = [ToolCall(INSERT, one) for one in arguments]
    starts = range(0, len(calls), n_calls)
    return [render_calls(calls[i : i + n_calls], "qwen") for i in starts]


def folded() -> Memory:
    """The memory of one episode from nothing but replies."""
    memory = empty(MEMORY)
    for reply in replies():
        for call in parse_reply(reply, "stop", "qwen"):
            memory, _ = apply(memory, call, MEMORY)
    return memory


def instance(number: int) -> Instance:
    """Twenty chunks of 200 words."""
    chunks = [f"Chunk {i} of {number}. " + "Bees hum. " * 100 for i in range(CHUNKS)]
    return make_instance("squad", chunks, [QA("q", "Who hums?", ("bees",))])


@pytest.mark.parametrize("n", [1, 64])
def bench_episodes(meter, n):
    """Twenty chunks of five calls by a writer that needs no time; plain: read and apply alone."""
    instances, writer = list(map(instance, range(n))), ScriptedReplies(replies())
    meter.versus(
        "a chunk of an episode, beside its calls alone",
        f"{n} at once",
        lambda: write(instances, writer, MEMORY, PROTOCOL)[-1].steps[-1].memory,
        lambda: [folded() for _ in range(n)][-1],
        per=n * CHUNKS,
        rounds=9,
        growth=True,
    )


HOSTILE = {
    "<tool_call>{": "qwen",
    '<tool_call>{"a": "': "qwen",
    "<tool_call>": "qwen",
    "</tool_call>": "qwen",
    "<think>": "qwen",
    '{"a":': "qwen",
    "[": "qwen",
    "\\": "qwen",
    '"': "qwen",
    '{"memory_type": "core_memory"} new_memory_insert\n': "compact",
    "✿FUNCTION✿: x\n✿ARGS✿: {": "text",
    "✿ARGS✿: ": "text",
}


@pytest.mark.parametrize("piece", HOSTILE, ids=lambda piece: re.sub(r"\W+", "_", piece) or "sign")
def bench_parser(meter, piece):
    """A piece again and again; the time beside that of half as much."""
    size, wire = (20_000 if meter.quick else 1_000_000), HOSTILE[piece]
    long = piece * (size // len(piece.encode()))
    half = long[: len(long) // 2]
    meter.versus(
        f"reply of {piece.strip()!r} (beside half of it)",
        f"{size / 1e6:g} MB",
        lambda: len(parse_reply(long, "stop", wire)),
        lambda: len(parse_reply(half, "stop", wire)),
        rounds=5,
        growth=True,
        want=("ratio", "<=", 2.5),
    )


# --- Scoring --------------------------------------------------------------------------------------


def word_f1(said: str, gold: str) -> float:
    """As in SQuAD's script."""
    texts = [re.sub(f"[{string.punctuation}]", "", t.lower()) for t in (said, gold)]
    a, b = ([w for w in text.split() if w not in ("a", "an", "the")] for text in texts)
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


SCORERS = {
    "exact": lambda said, gold: float(said == gold),
    "token_f1": word_f1,
    "contains": None,
    "substring": None,
    "rouge_l": lambda said, gold: (
        rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(gold, said)["rougeL"].fmeasure
    ),
}


@pytest.mark.parametrize("name", SCORERS)
def bench_scorer(meter, name, texts):
    """Answers of 20 words to gold answers of 5; plain: the public scripts' way."""
    n, plain = (20 if meter.quick else 300), SCORERS[name]
    pairs = [(texts.sentence(20), texts.sentence(5)) for _ in range(n)]
    pairs += [(gold, gold) for _, gold in pairs[: n // 4]]
    meter.versus(
        f"score {name}",
        f"{len(pairs)} answers",
        lambda: [metrics.score(name, said, [gold]) for said, gold in pairs],
        (lambda: [plain(said, gold) for said, gold in pairs]) if plain else None,
        per=len(pairs),
        rounds=7,
        same=lambda a, b: a == pytest.approx(b),
    )
