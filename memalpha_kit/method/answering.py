r"""Answering from memory with a chat model: retrieve, show what fits, ask once or let it search.

The laws: a question that cannot be asked, or whose call failed, has prediction None and an `error`,
and costs no other question its answer (D42, S-3, S-20). Retrieval sees the question, not the
instruction around it (S-2, D41). All questions of all memories go to the model in one call, so
its client can keep as many in flight as it may. A prediction is the raw reply; thinking is cut
off where it is scored (`metrics.answer_text`).

    reader = ModelReader(client, Retrieval(top_k=20, counter="hf:Qwen/Qwen3-32B"))
    answered = episode.ask(episodes, instances, reader)

`behaviour="release"` retrieves as the published memory server does (evaluation.md 2.3, 2.4): the
query prompt is part of the query, entries stand in rank order, both lists are cut to the same
top k, only the system message is counted, and exactly the budget is too much. Not offered: failing
all questions because one does not fit, and error texts as answers.

>>> memory = Memory(semantic=(Entry("1", "Nora keeps bees."), Entry("2", "Tom paints boats.")))
>>> retrieve(memory, "Who paints?", Retrieval(top_k=1)).ids
('2',)
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from memalpha_kit.errors import InputError, closest
from memalpha_kit.method import prompts, readers
from memalpha_kit.method.memory import SEARCH, search
from memalpha_kit.method.prompts import Retrieved
from memalpha_kit.method.readers import Done, Reader, ReadRequest
from memalpha_kit.records import (
    STORES,
    Answer,
    ChatModel,
    ChatReply,
    ChatRequest,
    Entry,
    Memory,
    Message,
    ToolUse,
    message,
    reply_message,
    request,
    tool_message,
)
from memalpha_kit.settings import Behaviour
from memalpha_kit.text import complete_object
from memalpha_kit.tokens import Counter, counter

Embed = Callable[[list[str]], Sequence[Sequence[float]]]
"""Texts to vectors, one each, such as `endpoint.Client.embed`. Failing is raising."""

TEMPLATE_TOKENS = 20
"""Allowance for what a chat template puts around two messages; Qwen3's is 17."""


class Unanswerable(InputError):
    """This question cannot be put to the model: it is blank, or not even the core fits with it."""


# ---- retrieval --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retrieval:
    """Which entries a question brings with it, and how much room they have."""

    method: Literal["bm25", "embedding", "hybrid"] = "bm25"  # hybrid: both rankings fused
    top_k: int = 20  # entries of each store
    budget_tokens: int = 30_000  # of the whole prompt (release: of the system message)
    behaviour: Behaviour = "fixed"
    counter: str = "wordpunct"  # name of the token counter of the budget

    def __post_init__(self) -> None:
        if self.method not in (known := ("bm25", "embedding", "hybrid")):
            tail = closest(str(self.method), known)
            raise InputError(
                f"retrieval.method: expected a known name, found {self.method!r}{tail}"
            )
        if self.behaviour not in ("fixed", "release"):
            raise InputError(f"retrieval.behaviour: found {self.behaviour!r}")
        if self.behaviour == "release" and self.method != "bm25":
            raise InputError(f"retrieval.method: the release has bm25 only, found {self.method!r}")
        for name in ("top_k", "budget_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"retrieval.{name}: expected >= 1, found {getattr(self, name)}")


def retrieve(
    memory: Memory,
    question: str,
    retrieval: Retrieval = Retrieval(),  # noqa: B008 - frozen
    embed: Embed | None = None,
    source: str = "",
) -> Retrieved:
    """What of `memory` is shown with the question: at most `top_k` entries of each store.

    fixed: the query is the sentence that is asked about; a store of at most `top_k` entries is
    shown whole, in its order; of a larger one the best are shown, best first, and entries without
    a common word fill up, oldest first; episodic entries always stand in the order of time. While
    the prompt (system, question, template) is over the budget, the entry with the lowest rank is
    left out, at equal rank the episodic one; the last one left is cut. release: see the module.
    Raises Unanswerable; InputError for vectors that cannot be compared.
    Source: evaluation.md 2.3, 2.4, S-2, S-5 to S-7; method.md 3.7, D14, D41, D42.
    """
    release = retrieval.behaviour == "release"
    if not question.strip() and not release:
        raise Unanswerable("question: expected a text, found a blank one")
    query = prompts.asked(question, source) if release else readers.sentence(question)
    ranked = {s: rank(memory, s, query, retrieval.top_k, retrieval, embed) for s in STORES}
    fit = _fit_release if release else _fit
    return fit(memory, ranked, prompts.asked(question, source), retrieval)


Ranked = dict[str, list[Entry]]
"""The best entries of each store, best first."""


def rank(
    memory: Memory,
    store: str,
    query: str,
    k: int,
    retrieval: Retrieval = Retrieval(),  # noqa: B008 - frozen
    embed: Embed | None = None,
) -> list[Entry]:
    """The k entries of a store that fit the query best, best first, ties oldest first.

    bm25: `memory.search`, whose index is built once per content of a store; its idf stays positive
    unless the behaviour is the release's, where a query without a word finds nothing. embedding:
    by cosine. hybrid: by the sum of 1 / (60 + rank) over both, where bm25 ranks only entries that
    share a word (reciprocal rank fusion, Cormack et al. 2009).
    """
    entries = getattr(memory, store) or ()
    if retrieval.behaviour == "release":
        return [entry for entry, _ in search(memory, store, query, k, "release")]
    if retrieval.method == "bm25":
        return [e for e, _ in search(memory, store, query, k, "positive")] or list(entries[:k])
    if not entries:
        return []
    fit = _cosines(query, entries, embed)
    order = sorted(range(len(entries)), key=lambda i: -fit[i])
    if retrieval.method == "hybrid":
        places = {entries[i].id: 1 / (60 + place) for place, i in enumerate(order, 1)}
        found = search(memory, store, query, len(entries), "positive")
        for place, (entry, score) in enumerate(found, 1):
            places[entry.id] += 1 / (60 + place) if score > 0 else 0
        order.sort(key=lambda i: (-places[entries[i].id], i))
    return [entries[i] for i in order[:k]]


def _cosines(query: str, entries: Sequence[Entry], embed: Embed | None) -> list[float]:
    if embed is None:
        raise InputError("retrieval: expected a function that embeds, found none")
    vectors = embed if isinstance(embed, Vectors) else Vectors(embed)
    rows = vectors([query, *(entry.text for entry in entries)])
    return (rows[1:] @ rows[0]).tolist()


class Vectors:
    """`embed` that asks for every text once and never takes a failure for a vector (A-15)."""

    def __init__(self, embed: Embed):
        self._embed = embed
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, (texts, width). Raises InputError for a vector without a direction."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = self._embed(new) if new else []
        if len(found) != len(new):
            raise InputError(f"embedding: expected {len(new)} vectors, found {len(found)}")
        for text, vector in zip(new, found, strict=True):
            self._known[text] = _unit(vector, text)
        rows = [self._known[text] for text in texts]
        if len(widths := {row.shape for row in rows}) > 1:
            raise InputError(f"embedding: expected vectors of one width, found {sorted(widths)}")
        return np.stack(rows)


def _unit(vector: Sequence[float], text: str) -> np.ndarray:
    row = np.asarray(vector, dtype=np.float32)
    length = float(np.linalg.norm(row))
    if row.ndim != 1 or not math.isfinite(length) or length == 0:
        raise InputError(f"embedding of {text[:40]!r}: expected a direction, found {vector!r:.60}")
    return row / length


# ---- the budget -------------------------------------------------------------------------------


def _fit(memory: Memory, ranked: Ranked, user: str, retrieval: Retrieval) -> Retrieved:
    """As many of the best entries as fit beside system text, question and template."""
    best, counts = _by_rank(ranked), counter(retrieval.counter)
    around = TEMPLATE_TOKENS + counts.count(user)
    room = retrieval.budget_tokens - around

    def size(n: int) -> int:
        return counts.count(prompts.system_prompt(_shown(memory, best[:n])))

    n = _most(len(best), size, room)
    if n < 0:
        found = f"found {around + size(0)} without an entry"
        raise Unanswerable(f"prompt: expected at most {retrieval.budget_tokens} tokens, {found}")
    if n == 0 and best:
        return _shown(memory, _cut(memory, best[0], counts, room))
    return _shown(memory, best[:n])


def _by_rank(ranked: Ranked) -> list[tuple[str, Entry]]:
    """(store, entry) of both stores, best first, semantic before episodic at equal rank."""
    placed = [(i, store, e) for store in STORES for i, e in enumerate(ranked[store])]
    return [(store, entry) for _, store, entry in sorted(placed, key=lambda row: row[0])]


def _shown(memory: Memory, best: Sequence[tuple[str, Entry]]) -> Retrieved:
    """These entries, best first; but a whole store, and episodic always, in its own order."""
    kept = {store: [entry for s, entry in best if s == store] for store in STORES}
    for store, entries in kept.items():
        place = {entry.id: i for i, entry in enumerate(getattr(memory, store) or ())}
        if store == "episodic" or len(entries) == len(place):
            entries.sort(key=lambda entry: place[entry.id])
    return _retrieved(memory, kept, [entry for _, entry in best])


def _cut(
    memory: Memory, last: tuple[str, Entry], counts: Counter, room: int
) -> list[tuple[str, Entry]]:
    """The only entry left, cut so that the system text has at most `room` tokens; or nothing.

    D42: an oversized entry must not cost the question its answer.
    """
    store, entry = last

    def cut(n: int) -> list[tuple[str, Entry]]:
        return [(store, replace(entry, text=counts.cut(entry.text, n)))]

    def size(n: int) -> int:
        return counts.count(prompts.system_prompt(_shown(memory, cut(n))))

    n = _most(counts.count(entry.text), size, room)
    return cut(n) if n > 0 else []


def _fit_release(memory: Memory, ranked: Ranked, user: str, retrieval: Retrieval) -> Retrieved:
    """Both lists cut to the largest k whose system text has at most the budget, at least to 1.

    Then it must have less. Source: evaluation.md 2.4. The index is not built anew for every k.
    """
    counts, limit = counter(retrieval.counter), retrieval.budget_tokens

    def show(k: int) -> Retrieved:
        kept = {store: entries[:k] for store, entries in ranked.items()}
        return _retrieved(memory, kept, [entry for _, entry in _by_rank(kept)])

    def size(k: int) -> int:
        return counts.count(prompts.system_prompt(show(k)))

    k = max(1, _most(retrieval.top_k, size, limit))
    if (found := size(k)) >= limit:
        raise Unanswerable(f"system message: expected less than {limit} tokens, found {found}")
    return show(k)


def _most(highest: int, size: Callable[[int], int], limit: int) -> int:
    """The largest n in 0..highest whose size, growing with n, is within the limit; -1 for none."""
    if size(highest) <= limit:
        return highest
    return bisect_right(range(highest), limit, key=size) - 1


def _retrieved(memory: Memory, kept: Ranked, best: Iterable[Entry]) -> Retrieved:
    on = {s: None if getattr(memory, s) is None else tuple(kept[s]) for s in STORES}
    return Retrieved(memory.core, on["semantic"], on["episodic"], tuple(e.id for e in best))


# ---- asking once ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelReader:
    """Asks a chat model once per question, with the retrieved part of the memory before it.

    Source: evaluation.md 2.4, method.md 3.7. Differs: temperature 0 instead of 0.7 (A-20), so that
    a run can be repeated; give a seed and a temperature to sample.
    """

    model: ChatModel
    retrieval: Retrieval = Retrieval()
    max_tokens: int = 2048  # of the reply, thinking included
    temperature: float = 0.0
    thinking: bool | None = False  # None: as the model does by itself
    seed: int | None = None
    embed: Embed | None = field(default=None, repr=False)
    name: str = "model"

    def settings(self) -> dict[str, Any]:
        """Plain values that the answers depend on, for a run's card and key."""
        return _settings(self)

    def read(self, requests: Sequence[ReadRequest], done: Done | None = None) -> list[Answer]:
        """One answer per request; `done` is told each as soon as it is known.

        Raises ModelGone if the model answers nobody, InputError if an embedding fails.
        """
        answers = _Answers(done)
        embed = _warmed(self.embed, self.retrieval, requests)
        shown: dict[int, Retrieved] = {}
        for place, asked in enumerate(requests):
            try:
                shown[place] = retrieve(
                    asked.memory, asked.question, self.retrieval, embed, asked.source
                )
            except Unanswerable as error:
                answers.add(place, _unanswerable(asked, error))
        places = list(shown)

        def take(i: int, reply: ChatReply) -> None:
            place = places[i]
            answers.add(place, _answer(requests[place].qa, shown[place].ids, [reply]))

        chats = [self._chat(requests[place], shown[place]) for place in places]
        for i, reply in enumerate(self.model.chat(chats, take) if chats else []):
            take(i, reply)
        return answers.in_order()

    def _chat(self, asked: ReadRequest, shown: Retrieved) -> ChatRequest:
        system, user = prompts.answer_messages(shown, asked.question, asked.source)
        return request(system, user, **_options(self))


class _Answers:
    """Answers by place; each is told to `done` once, whichever way it came."""

    def __init__(self, done: Done | None):
        self._done = done
        self.known: dict[int, Answer] = {}

    def add(self, place: int, answer: Answer) -> None:
        if place not in self.known:
            self.known[place] = answer
            if self._done:
                self._done(place, answer)

    def in_order(self) -> list[Answer]:
        return [self.known[place] for place in range(len(self.known))]


def _answer(qa: str, ids: Iterable[str], replies: Sequence[ChatReply]) -> Answer:
    """The answer that the last reply gives; tokens and seconds are those of all replies."""
    last = replies[-1]
    return Answer(
        qa,
        last.text,
        retrieved=tuple(ids),
        finish=last.finish,
        requests=len(replies),
        prompt_tokens=_sum(reply.prompt_tokens for reply in replies),
        completion_tokens=_sum(reply.completion_tokens for reply in replies),
        latency_s=_sum(reply.latency_s for reply in replies),
        error=last.error or ("" if last.text is not None else "the reply has no text"),
    )


def _unanswerable(asked: ReadRequest, error: Unanswerable) -> Answer:
    """No prediction, and asking again would not help."""
    return Answer(asked.qa, None, finish="unanswerable", error=str(error))


def _sum(numbers: Iterable[float | None]) -> Any:
    """The sum, None if any is unknown."""
    known = list(numbers)
    return None if None in known else sum(known)


def _options(reader: ModelReader | AgenticReader) -> dict[str, Any]:
    """The fields of a chat request that a reader's settings say."""
    names = ("max_tokens", "temperature", "thinking", "seed")
    return {name: getattr(reader, name) for name in names} | {"version": prompts.VERSION}


def _settings(reader: ModelReader | AgenticReader) -> dict[str, Any]:
    """Every setting as a plain value; the model by its name, texts by their version."""
    values = {f.name: getattr(reader, f.name) for f in dataclasses.fields(reader) if f.compare}
    owner = getattr(reader.embed, "__self__", reader.embed)  # of a method, such as Client.embed
    return values | {
        "model": reader.model.name,
        "retrieval": dataclasses.asdict(reader.retrieval),
        "embed": getattr(owner, "name", None) or getattr(owner, "__qualname__", None),
        "prompts": prompts.VERSION,
    }


def _warmed(
    embed: Embed | None, retrieval: Retrieval, requests: Sequence[ReadRequest]
) -> Vectors | None:
    """Vectors of all questions and entries, asked for in one call; None if none are needed."""
    if embed is None or retrieval.method == "bm25":
        return None
    vectors, memories = Vectors(embed), dict.fromkeys(asked.memory for asked in requests)
    questions = [readers.sentence(r.question) for r in requests if r.question.strip()]
    texts = questions + [entry.text for memory in memories for _, entry in memory.entries()]
    if texts:
        vectors(texts)
    return vectors


# ---- asking with search -----------------------------------------------------------------------


@dataclass(frozen=True)
class AgenticReader:
    """Shows a few entries and lets the model search the stores for more before it answers.

    The questions go round by round: one call of the model holds the next request of all that are
    still open. After `max_iterations` rounds, or when the budget is used up (fixed), a last request
    offers no tool. Source: evaluation.md 2.6, method.md 3.7, S-11. Differs: every tool call gets an
    answer; a failed call ends its question with an error instead of being made again here (the
    client has repeated it); release keeps top k without a budget and thinking of the last request
    up to the model.
    """

    model: ChatModel
    retrieval: Retrieval = Retrieval()  # its top_k is not used
    initial_k: int = 2  # entries of each store shown at the start
    per_search: int = 2  # new entries that a search brings
    candidates: int = 10  # best entries that a search looks at
    max_iterations: int = 5
    max_tokens: int = 2048
    temperature: float = 0.0
    thinking: bool | None = False
    seed: int | None = None
    embed: Embed | None = field(default=None, repr=False)
    name: str = "agentic"
    histories: list[list[dict[str, Any]]] = field(default_factory=list, compare=False, repr=False)
    """Of the last `read`, one per request; see `converse`."""

    def __post_init__(self) -> None:
        for name in ("initial_k", "per_search", "candidates", "max_iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"agentic.{name}: expected >= 1, found {getattr(self, name)}")

    def settings(self) -> dict[str, Any]:
        """Plain values that the answers depend on, for a run's card and key."""
        return _settings(self)

    def read(self, requests: Sequence[ReadRequest], done: Done | None = None) -> list[Answer]:
        """One answer per request, `retrieved` in the order of showing; as `ModelReader.read`."""
        found = self.converse(requests, done)
        self.histories[:] = [history for _, history in found]
        return [answer for answer, _ in found]

    def converse(
        self, requests: Sequence[ReadRequest], done: Done | None = None
    ) -> list[tuple[Answer, list[dict[str, Any]]]]:
        """Answers with the history of each question's search, in the shape of the release.

        A search is {iteration, memory_type, query, search_method, results_count, new_items}, any
        other event {iteration, action, message} with the action final_answer,
        max_iterations_reached or error.
        """
        answers = _Answers(done)
        embed = _warmed(self.embed, self.retrieval, requests)
        talks = [_Talk(place, asked) for place, asked in enumerate(requests)]
        for talk in talks:
            try:
                self._open(talk, embed)
            except Unanswerable as error:
                talk.log(0, action="error", message=str(error))
                answers.add(talk.place, _unanswerable(talk.asked, error))
        for iteration in range(1, self.max_iterations + 2):
            if live := [talk for talk in talks if talk.place not in answers.known]:
                self._round(live, iteration, answers, embed)
        return list(zip(answers.in_order(), (talk.history for talk in talks), strict=True))

    def _open(self, talk: _Talk, embed: Embed | None) -> None:
        """The first two messages."""
        asked, counts = talk.asked, counter(self.retrieval.counter)
        talk.stores = [store for store in STORES if getattr(asked.memory, store) is not None]
        talk.tools = prompts.search_tool(talk.stores) if talk.stores else ""
        extra = counts.count(talk.tools) + counts.count(prompts.SEARCHING)
        room = max(1, self._budget - extra)
        start = replace(self.retrieval, top_k=self.initial_k, budget_tokens=room)
        shown = retrieve(asked.memory, asked.question, start, embed, asked.source)
        texts = prompts.answer_messages(shown, asked.question, asked.source, bool(talk.tools))
        talk.messages = [message("system", texts[0]), message("user", texts[1])]
        talk.shown = list(shown.ids)
        talk.size = TEMPLATE_TOKENS + sum(map(counts.count, (*texts, talk.tools)))

    @property
    def _budget(self) -> int:
        return self.retrieval.budget_tokens if self.retrieval.behaviour == "fixed" else 10**9

    def _round(
        self, live: Sequence[_Talk], iteration: int, answers: _Answers, embed: Embed | None
    ) -> None:
        """One request for each open question, and the answers to its tool calls."""
        last = iteration > self.max_iterations
        searching = [bool(talk.tools) and not talk.full and not last for talk in live]
        chats = [self._chat(talk, on, last) for talk, on in zip(live, searching, strict=True)]

        def take(i: int, reply: ChatReply) -> None:
            """Closes the question, unless the reply asks for a search that it may make."""
            talk = live[i]
            if talk.place in answers.known or (reply.tools and searching[i]):
                return
            talk.replies.append(reply)
            answer = _answer(talk.asked.qa, talk.shown, talk.replies)
            action = "max_iterations_reached" if last else "final_answer"
            action = "error" if answer.prediction is None else action
            talk.log(iteration, action=action, message=answer.error)
            answers.add(talk.place, answer)

        for i, reply in enumerate(replies := self.model.chat(chats, take)):
            take(i, reply)
        pairs = zip(live, replies, strict=True)
        going_on = [(talk, reply) for talk, reply in pairs if talk.place not in answers.known]
        wanted = [[_wanted(use, talk.stores) for use in reply.tools] for talk, reply in going_on]
        if embed and (queries := [w[1] for row in wanted for w in row if isinstance(w, tuple)]):
            embed(queries)  # all at once, not one by one below
        for (talk, reply), row in zip(going_on, wanted, strict=True):
            self._answer_calls(talk, reply, row, iteration, embed)

    def _chat(self, talk: _Talk, searching: bool, last: bool) -> ChatRequest:
        options = _options(self)
        if last and self.retrieval.behaviour == "release":
            options["thinking"] = None
        return ChatRequest(tuple(talk.messages), tools=talk.tools if searching else "", **options)

    def _answer_calls(
        self,
        talk: _Talk,
        reply: ChatReply,
        wanted: Sequence[tuple[str, str] | str],
        iteration: int,
        embed: Embed | None,
    ) -> None:
        """Adds the reply and one result per call; broken arguments are not sent back."""
        count = counter(self.retrieval.counter).count
        uses = tuple(
            use if complete_object(use.arguments) is not None else replace(use, arguments="{}")
            for use in reply.tools
        )
        said = replace(reply, tools=uses)
        talk.replies.append(reply)
        talk.messages.append(reply_message(said))
        talk.size += count(reply.text or "") + sum(count(use.arguments) for use in uses)
        for use, what in zip(uses, wanted, strict=True):
            if isinstance(what, str):
                talk.log(iteration, action="error", message=what)
                result = what
            else:
                result = self._search(talk, *what, iteration, embed)
            talk.messages.append(tool_message(use, result))
            talk.size += count(result)

    def _search(
        self, talk: _Talk, store: str, query: str, iteration: int, embed: Embed | None
    ) -> str:
        """The best entries that were not shown yet, as text; stops short of the budget."""
        count = counter(self.retrieval.counter).count
        found = rank(talk.asked.memory, store, query, self.candidates, self.retrieval, embed)
        new: list[Entry] = []
        for entry in [entry for entry in found if entry.id not in talk.shown][: self.per_search]:
            text = prompts.numbered([*new, entry])
            if talk.size + count(text) > self._budget:
                talk.full = True
                break
            new.append(entry)
        talk.shown += [entry.id for entry in new]
        talk.log(
            iteration,
            memory_type=store,
            query=query,
            search_method=self.retrieval.method,
            results_count=len(found),
            new_items=len(new),
        )
        ending = prompts.NO_ROOM if talk.full else "" if new else prompts.NOTHING_NEW
        return "\n".join(filter(None, (prompts.numbered(new), ending)))


@dataclass
class _Talk:
    """One question's conversation."""

    place: int
    asked: ReadRequest
    stores: list[str] = field(default_factory=list)
    tools: str = ""
    messages: list[Message] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    size: int = 0  # tokens of all messages and the tool
    full: bool = False  # the budget is used up
    replies: list[ChatReply] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def log(self, iteration: int, **event: Any) -> None:
        """Adds to the history."""
        self.history.append({"iteration": iteration, **event})


def _wanted(use: ToolUse, stores: Sequence[str]) -> tuple[str, str] | str:
    """Store and query of a search, or what is wrong with the call, which the model is told."""
    if use.name != SEARCH:
        return f"There is no tool {use.name!r:.40}. Only {SEARCH} can be called."
    arguments = complete_object(use.arguments)
    if arguments is None:
        return "The arguments must be one JSON object."
    store = str(arguments.get("memory_type")).removesuffix("_memory")  # both spellings, S-10
    if store not in stores:
        return f"memory_type must be one of: {', '.join(stores)}."
    query = arguments.get("query")
    if not isinstance(query, str) or not query.strip():
        return "query must be a text that is not blank."
    return store, query


# ---- by name ----------------------------------------------------------------------------------

MODEL_READERS = {"model": ModelReader, "agentic": AgenticReader}
NAMES = (*MODEL_READERS, *readers.READERS)


def build_reader(name: str, model: ChatModel | None = None, **settings: Any) -> Reader:
    """The reader of this name: "model" and "agentic" ask `model`, the others need none.

    `settings` are fields of the reader's class; for readers without a model `k`. Raises InputError
    for an unknown name or setting, naming the closest, and for a missing model.
    """
    if name in readers.READERS:
        known: Sequence[str] = ("k",)
    elif name in MODEL_READERS:
        known = [f.name for f in dataclasses.fields(MODEL_READERS[name]) if f.compare]
    else:
        raise InputError(f"reader {name!r} is unknown{closest(name, NAMES)}")
    if unknown := [key for key in settings if key not in known]:
        tail = closest(unknown[0], known)
        raise InputError(f"reader {name}: setting {unknown[0]!r} is unknown{tail}")
    if name in readers.READERS:
        return readers.reader(name, **settings)
    if model is None:
        raise InputError(f"reader {name}: expected a chat model, found none")
    return MODEL_READERS[name](model, **settings)
