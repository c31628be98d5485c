"""Readers that ask a chat model: once per question, or letting it search the memory first.

The laws: a question that cannot be asked, or whose call failed, has prediction None and an `error`,
and costs no other question its answer. All questions of all memories go to the model in one call,
so its client can keep as many in flight as it may. A prediction is the raw reply; thinking is cut
off where it is scored.

    reader = ModelReader(client, Retrieval(top_k=20, counter="hf:Qwen/Qwen3-32B"))
    episodes = ask(episodes, instances, reader)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from memalpha_kit import chats
from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, Message
from memalpha_kit.method.calls import calls_apart, parse_tools
from memalpha_kit.method.memory import SEARCH
from memalpha_kit.method.prompts import TEXTS, VERSION, asked, numbered, search_tool, system_prompt
from memalpha_kit.method.readers import READERS, Done, memory_of, sentence
from memalpha_kit.method.retrieval import (
    TEMPLATE_TOKENS,
    Embed,
    Retrieval,
    Unanswerable,
    Vectors,
    View,
    view,
)
from memalpha_kit.records import Answer, Entry, Memory, Question, ToolUse
from memalpha_kit.text import complete_object
from memalpha_kit.tokens import counter

# ---- asking once ------------------------------------------------------------------------------


@READERS.register("model")
@dataclass(frozen=True)
class ModelReader:
    """Asks a chat model once per question, with the retrieved part of the memory before it.

    Differs from `memory_server.py` of the published code: temperature 0 instead of 0.7, so that a
    run can be repeated; give a seed and a temperature to sample.
    """

    model: ChatModel
    retrieval: Retrieval = Retrieval()
    max_tokens: int = 2048  # of the reply, thinking included
    temperature: float = 0.0
    thinking: bool | None = False  # None: as the model does by itself
    seed: int | None = None
    embed: Embed | None = field(default=None, repr=False)
    name: str = "model"
    # what was embedded last: the next questions may be about the same memories
    _last: list[Vectors] = field(default_factory=list, init=False, repr=False, compare=False)

    def settings(self) -> dict[str, Any]:
        """Plain values that the answers depend on: the model by its name, texts by a version."""
        owner = getattr(self.embed, "__self__", self.embed)  # of a method, such as Client.embed
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init} | {
            "model": self.model.name,
            "retrieval": dataclasses.asdict(self.retrieval),
            "embed": getattr(owner, "name", None) or getattr(owner, "__qualname__", None),
            "prompts": VERSION,
        }

    def read(self, questions: Sequence[Question], done: Done | None = None) -> list[Answer]:
        """One answer per question; `done` is told each as soon as it is known.

        Raises ModelGone if the model answers nobody, InputError if an embedding fails.
        """
        talks = self._begin(questions, done)
        self._say([talk for talk in talks if not talk.answer])
        return [talk.ended() for talk in talks]

    def _begin(self, questions: Sequence[Question], done: Done | None) -> list[_Talk]:
        """Each question with what is shown for it; one that cannot be asked has its answer."""
        views = self._views(questions)
        rows = zip(questions, views, [self._tools(shows.memory) for shows in views], strict=True)
        talks = [_Talk(i, *row, done) for i, row in enumerate(rows)]
        for talk in talks:
            try:
                talk.open()
            except Unanswerable as error:
                talk.close(prediction=None, finish="unanswerable", error=str(error))
        return talks

    def _say(self, talks: Sequence[_Talk], **options: Any) -> Sequence[ChatReply]:
        """The replies to the next requests; one that asks for no search is the question's answer.

        `options` are what is asked otherwise than usual.
        """
        if not talks:
            return ()
        usual = ("max_tokens", "temperature", "thinking", "seed")
        options = {name: getattr(self, name) for name in usual} | {"version": VERSION} | options
        requests = [ChatRequest(tuple(t.messages), tools=t.offered, **options) for t in talks]

        def take(i: int, reply: ChatReply) -> ChatReply:
            if talks[i].tools and reply.text and not reply.tools:  # the server has no tool parser
                text, uses = calls_apart(reply.text, reply.finish)
                reply = replace(reply, text=text, tools=uses)
            if not (talks[i].answer or (reply.tools and talks[i].offered)):
                talks[i].end(reply)
            return reply

        return [take(i, reply) for i, reply in enumerate(self.model.chat(requests, take))]

    def _views(self, questions: Sequence[Question]) -> list[View]:
        """Each question's memory as it can be shown; embeddings are asked for in one call."""
        memories = {id(q.memory): memory_of(q, self.name) for q in questions}
        vectors = None
        if self.embed and self.retrieval.method != "bm25":
            texts = [sentence(q.text) for q in questions if q.text.strip()]
            texts += [entry.text for memory in memories.values() for _, entry in memory.entries()]
            vectors = Vectors(self.embed, texts, *self._last)
            self._last[:] = [vectors]
        views = {place: self._view(memory, vectors) for place, memory in memories.items()}
        return [views[id(question.memory)] for question in questions]

    def _view(self, memory: Memory, vectors: Vectors | None) -> View:
        return view(memory, self.retrieval, vectors)

    def _tools(self, memory: Memory) -> str:
        """The tools that the model may use; none."""
        return ""


@dataclass
class _Talk:
    """One question's conversation, and its answer in the end, which `done` is told."""

    place: int
    question: Question
    shows: View
    tools: str  # the search tool, "" where there is nothing to search
    done: Done | None
    offered: str = ""  # of the tools, in the next request
    messages: list[Message] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    size: int = 0  # tokens of all messages and the tool, counted where there is a tool
    full: bool = False  # the budget is used up
    replies: list[ChatReply] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    answer: Answer | None = None

    def open(self) -> None:
        """Adds the first two messages. Raises Unanswerable."""
        start = self.shows.show(self.question.text, self.question.source)
        system = system_prompt(start, search=bool(self.tools))
        user = asked(self.question.text, self.question.source)
        self.shown, self.size = list(start.ids), TEMPLATE_TOKENS
        self.add(chats.message("system", system), system, self.tools)
        self.add(chats.message("user", user), user)

    def add(self, new: Message, *counted: str) -> None:
        """Adds a message, and the tokens of these texts."""
        self.messages.append(new)
        if self.tools:
            self.size += sum(map(self.shows.counter.count, counted))

    def end(self, reply: ChatReply) -> None:
        """Answers as this reply says; tokens and seconds are those of all replies.

        Where it failed untold, those of the replies before, which were paid for.
        """
        self.replies.append(reply)
        untold = bool(reply.error) and reply.prompt_tokens is None and len(self.replies) > 1
        sums: dict[str, Any] = {}
        for name in ("prompt_tokens", "completion_tokens", "latency_s"):
            values = [getattr(one, name) for one in self.replies[: -1 if untold else None]]
            sums[name] = None if None in values else sum(values)
        self.close(
            prediction=reply.text,
            retrieved=tuple(self.shown),
            finish=reply.finish,
            requests=len(self.replies),
            error=reply.error or ("" if reply.text is not None else "the reply has no text"),
            **sums,
        )

    def close(self, **fields: Any) -> None:
        """Sets the answer."""
        self.answer = Answer(self.question.id, instance=self.question.instance, **fields)
        if self.done:
            self.done(self.place, self.answer)

    def ended(self) -> Answer:
        """The answer, which every talk has after the last request."""
        assert self.answer
        return self.answer

    def log(self, iteration: int, **event: Any) -> None:
        """Adds to the history."""
        self.history.append({"iteration": iteration, **event})


# ---- asking with search -----------------------------------------------------------------------


@READERS.register("agentic")
@dataclass(frozen=True)
class AgenticReader(ModelReader):
    """Shows a few entries and lets the model search the stores for more before it answers.

    The questions go round by round: one call of the model holds the next request of all that are
    still open. After `max_iterations` rounds, or when the budget is used up, a last request offers
    no tool. `top_k` of the retrieval is not used. Differs from `agentic_search` of the published
    code: every tool call gets an answer; a failed call ends its question with an error instead of
    being made again here (the client has repeated it).
    """

    initial_k: int = 2  # entries of each store shown at the start
    per_search: int = 2  # new entries that a search brings
    candidates: int = 10  # best entries that a search looks at
    max_iterations: int = 5
    name: str = "agentic"

    def read(self, questions: Sequence[Question], done: Done | None = None) -> list[Answer]:
        """One answer per question, `retrieved` in the order of showing; as `ModelReader.read`."""
        return [answer for answer, _ in self.converse(questions, done)]

    def converse(
        self, questions: Sequence[Question], done: Done | None = None
    ) -> list[tuple[Answer, list[dict[str, Any]]]]:
        """Answers with the history of each question's search, in the shape of the published code.

        A search is {iteration, memory_type, query, search_method, results_count, new_items}, any
        other event {iteration, action, message} with the action final_answer,
        max_iterations_reached or error.
        """
        talks = self._begin(questions, done)
        for talk in talks:
            if talk.answer:
                talk.log(0, action="error", message=talk.answer.error)
        for iteration in range(1, self.max_iterations + 2):
            if live := [talk for talk in talks if not talk.answer]:
                self._round(live, iteration)
        return [(talk.ended(), talk.history) for talk in talks]

    def _tools(self, memory: Memory) -> str:
        lists = memory.lists()
        return search_tool(list(lists)) if lists else ""

    def _view(self, memory: Memory, vectors: Vectors | None) -> View:
        """What is shown at the start, beside the tool."""
        beside = (self._tools(memory), TEXTS["searching"])
        counted = map(counter(self.retrieval.counter).count, beside)
        room = max(1, self.retrieval.budget_tokens - sum(counted))
        start = replace(self.retrieval, top_k=self.initial_k, budget_tokens=room)
        return view(memory, start, vectors)

    def _round(self, live: Sequence[_Talk], iteration: int) -> None:
        """One request for each open question, and the answers to its tool calls."""
        last = iteration > self.max_iterations
        for talk in live:
            talk.offered = "" if last or talk.full else talk.tools
        as_usual = not last or live[0].shows.answers_thinking
        replies = self._say(live, **({} if as_usual else {"thinking": None}))
        calls = []
        for talk, reply in zip(live, replies, strict=True):
            if talk.answer is None:
                stores = list(talk.shows.lists)
                calls.append((talk, reply, [_wanted(use, stores) for use in reply.tools]))
                continue
            action = "max_iterations_reached" if last else "final_answer"
            action = "error" if talk.answer.prediction is None else action
            talk.log(iteration, action=action, message=talk.answer.error)
        queries = [what[1] for _, _, row in calls for what in row if isinstance(what, tuple)]
        if queries and (vectors := live[0].shows.vectors):
            vectors(queries)  # all at once, not one by one below
        for talk, reply, wanted in calls:
            self._answer_calls(talk, reply, wanted, iteration)

    def _answer_calls(
        self, talk: _Talk, reply: ChatReply, wanted: Sequence[tuple[str, str] | str], iteration: int
    ) -> None:
        """Adds the reply and one result per call; broken arguments are sent back as read."""
        uses = []
        for use in reply.tools:
            whole = complete_object(use.arguments) is not None
            uses.append(use if whole else replace(use, arguments=json.dumps(_arguments(use) or {})))
        talk.replies.append(reply)
        talk.add(chats.reply_message(replace(reply, tools=tuple(uses))), reply.text or "")
        for use, what in zip(uses, wanted, strict=True):
            if isinstance(what, str):
                talk.log(iteration, action="error", message=what)
            result = what if isinstance(what, str) else self._search(talk, *what, iteration)
            talk.add(chats.tool_message(use, result), use.arguments, result)

    def _search(self, talk: _Talk, store: str, query: str, iteration: int) -> str:
        """The best entries that were not shown yet, as text; stops short of the budget."""
        found = talk.shows.rank(store, query, self.candidates)
        new: list[Entry] = []
        limit = talk.shows.search_budget(self.retrieval)
        for entry in [entry for entry in found if entry.id not in talk.shown][: self.per_search]:
            if talk.size + talk.shows.counter.count(numbered([*new, entry])) > limit:
                talk.full = True
                break
            new.append(entry)
        talk.shown += [entry.id for entry in new]
        sought = {"memory_type": store, "query": query, "search_method": self.retrieval.method}
        talk.log(iteration, **sought, results_count=len(found), new_items=len(new))
        ending = TEXTS["no room"] if talk.full else "" if new else TEXTS["nothing new"]
        return "\n".join(filter(None, (numbered(new), ending)))


def _wanted(use: ToolUse, stores: Sequence[str]) -> tuple[str, str] | str:
    """Store and query of a search, or what is wrong with the call, which the model is told."""
    if use.name != SEARCH:
        return f"There is no tool {use.name!r:.40}. Only {SEARCH} can be called."
    arguments = _arguments(use)
    if arguments is None:
        return "The arguments must be one JSON object."
    store = str(arguments.get("memory_type")).removesuffix("_memory")  # both spellings
    if store not in stores:
        return f"memory_type must be one of: {', '.join(stores)}."
    query = arguments.get("query")
    if not isinstance(query, str) or not query.strip():
        return "query must be a text that is not blank."
    return store, query


def _arguments(use: ToolUse) -> dict[str, Any] | None:
    """The arguments of a call, repaired as a writer's are; None if they are no object."""
    call = parse_tools([use], "stop")[0]
    return None if call.status == "malformed" else dict(call.arguments)
