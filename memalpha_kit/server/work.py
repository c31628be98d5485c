"""What the endpoints do, without HTTP: checked requests in, the bodies of answers out.

Everything here runs in a thread of its own and may take minutes. How failures are worded is a
`Manner`; the published server's stands in `release/server.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future
from queue import SimpleQueue
from typing import Any

from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, Done
from memalpha_kit.errors import InputError
from memalpha_kit.method.content_judge import StepVerdict
from memalpha_kit.method.judges import Verdict
from memalpha_kit.method.model_readers import AgenticReader, ModelReader
from memalpha_kit.method.retrieval import Retrieval
from memalpha_kit.records import Answer, Question
from memalpha_kit.registry import Registry
from memalpha_kit.server.wire import AgenticQuestions, Questions, Refused, wrong


class Manner:
    """How a server words its answers. This one: what failed is null, with its reason beside it."""

    temperature = 0.0  # of an answer whose request does not name one

    def check(self, asked: Questions) -> None:
        """Raises Refused for what the fields' types cannot say."""
        for i, row in enumerate(asked.questions):
            for j, question in enumerate(row):
                if not question.strip():
                    raise wrong(["questions", i, j], "expected a text, found a blank one", "blank")

    def answered(self, asked: Questions, answers: Sequence[Answer], path: str) -> dict[str, Any]:
        """The body of an answering endpoint, without the histories of searches."""
        errors = answer_errors(answers)
        return {
            "result": nested([answer.prediction for answer in answers], asked.questions),
            "status": "partial" if errors else "success",
            "processed_count": len(answers) - len(errors),
            "errors": errors,
        }

    def judged(self, steps: Sequence[StepVerdict]) -> dict[str, Any]:
        """The body of `/analyze_function`. Raises Refused (502) if the judge answered nothing."""
        errors = judge_errors(steps)
        body = judgements(steps)
        if errors and not body["llm_processed"]:
            raise Refused(502, "the judge answered nothing", details("batch", errors))
        return body | {"status": "partial" if errors else "success", "errors": errors}


MANNERS: Registry[Manner] = Registry("behaviour of the server")
MANNERS.add("fixed", Manner())


def answer(
    asked: Questions, retrieval: Retrieval, manner: Manner, model: ChatModel, path: str
) -> dict[str, Any]:
    """The body of `/batch_process`, with histories that of `/agentic_process`.

    Raises Refused: 422 for questions that cannot be, 502 if the model answered nothing.
    """
    for name in ("questions", "sources"):
        rows, n = getattr(asked, name), len(asked.memories)
        if rows is not None and len(rows) != n:
            raise wrong([name], f"expected one per memory, {n}, found {len(rows)}", "length")
    manner.check(asked)
    options: dict[str, Any] = {
        "max_tokens": asked.max_tokens,
        "temperature": manner.temperature if asked.temperature is None else asked.temperature,
        "thinking": asked.enable_thinking,
        "max_iterations": getattr(asked, "max_iterations", None),
    }
    options = {name: value for name, value in options.items() if value is not None}
    histories = None
    if isinstance(asked, AgenticQuestions):
        found = AgenticReader(model, retrieval, **options).converse(_requests(asked))
        answers, histories = [one for one, _ in found], [history for _, history in found]
    else:
        answers = ModelReader(model, retrieval, **options).read(_requests(asked))
    errors = answer_errors(answers)
    if len(errors) == len(answers) and any(error["kind"] == "no_reply" for error in errors):
        raise Refused(502, "the model answered nothing", details("questions", errors))
    body = manner.answered(asked, answers, path)
    if histories is not None:
        body["search_iterations"] = nested(histories, asked.questions)
    return body


def _requests(asked: Questions) -> list[Question]:
    """One per question; its id is its place."""
    memories = [memory.memory() for memory in asked.memories]
    sources = asked.sources or [""] * len(memories)
    return [
        Question(f"{i}.{j}", question, sources[i], memory=memories[i])
        for i, questions in enumerate(asked.questions)
        for j, question in enumerate(questions)
    ]


def answer_errors(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Which questions have no answer, and why."""
    return [
        {
            **dict(zip(("memory", "question"), map(int, failed.qa.split(".")), strict=True)),
            "kind": "unanswerable" if failed.finish == "unanswerable" else "no_reply",
            "message": failed.error,
        }
        for failed in answers
        if failed.prediction is None
    ]


def nested(flat: Sequence[Any], shape: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The values in lists as long as those of `shape`."""
    values = iter(flat)
    return [[next(values) for _ in row] for row in shape]


def judgements(steps: Sequence[StepVerdict]) -> dict[str, Any]:
    """The published fields of `/analyze_function` but `status`."""
    verdicts = [v for step in steps for v in step.verdicts if v is not None and v.asked]
    return {
        "scores": [step.score for step in steps],
        "detailed_analyses": [[_analysis(verdict) for verdict in s.verdicts] for s in steps],
        "total_processed": sum(not verdict.error for verdict in verdicts),
        "total_items": sum(len(step.verdicts) for step in steps),
        "total_groups": len(steps),
        "llm_processed": sum(bool(verdict.reply) for verdict in verdicts),
    }


def _analysis(verdict: Verdict | None) -> dict[str, Any]:
    """One item of `detailed_analyses`; what is not judged has no score."""
    verdict = verdict or Verdict(None, error="not to be judged")
    return {
        "is_valid": verdict.valid,
        "score": None if verdict.valid is None else float(verdict.valid),
        "issues": list(verdict.issues),
        "explanation": verdict.explanation,
        **({"error": verdict.error} if verdict.error else {}),
    }


def judge_errors(steps: Sequence[StepVerdict]) -> list[dict[str, Any]]:
    """Which calls have no judgement though they were to be judged, and why."""
    return [
        {"group": g, "item": i, "kind": "judge_error", "message": verdict.error}
        for g, step in enumerate(steps)
        for i, verdict in enumerate(step.verdicts)
        if verdict is not None and verdict.asked and verdict.error
    ]


def details(name: str, errors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The errors of an answer as details of a refusal."""
    return [
        {"loc": [name, *list(error.values())[:2]], "msg": error["message"], "type": error["kind"]}
        for error in errors
    ]


class Upstream:
    """The server's chat model as one request uses it: it can be stopped, from any other thread.

    A model that is gone, or a stop, fails every call that is still open, with its reason, so that
    answers from before are kept. Calls of a model with `begin` (`models.chat.Client`) are cancelled
    at once. Another model works in `turn`, an executor of one thread: one request at a time, of
    which the one that is stopped ends after the batch it is at.
    """

    def __init__(self, model: ChatModel, turn: Executor) -> None:
        self.name = model.name
        self.calls = self.failed = 0
        self._model, self._turn = model, turn
        self._gone = ""  # why no call is made any more
        self._arrived: SimpleQueue[tuple[int, ChatReply] | None] = SimpleQueue()
        self._work: Future | None = None

    @property
    def answered(self) -> int:
        """Calls that brought a text."""
        return self.calls - self.failed

    def stop(self, why: str) -> None:
        """Fails all calls that are open or still to come."""
        self._gone = self._gone or why
        if self._work:
            self._work.cancel()
        self._arrived.put(None)

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """One reply per request, in order."""
        replies: dict[int, ChatReply] = {}

        def keep(place: int, reply: ChatReply) -> None:
            replies[place] = reply
            self.calls += 1
            self.failed += reply.text is None
            if done:
                done(place, reply)

        if not self._gone:
            try:
                self._ask(requests, keep)
            except InputError as error:  # gone, or a prompt that its template does not take
                self._gone = self._gone or str(error)
        for place in range(len(requests)):
            if place not in replies:
                keep(place, ChatReply(None, "error", error=self._gone))
        return [replies[place] for place in range(len(requests))]

    def _ask(self, requests: Sequence[ChatRequest], keep: Done) -> None:
        """Begins the calls and keeps what arrives until they end or are stopped."""
        self._arrived = SimpleQueue()
        begin = getattr(self._model, "begin", self._begin_here)
        self._work = begin(requests, self._arrived.put)
        stopped = bool(self._gone)  # meanwhile; from now on a stop arrives as None
        try:
            while not stopped and (item := self._arrived.get()) is not None:
                keep(*item)
            if not self._gone:
                self._work.result()
        finally:
            self._work.cancel()

    def _begin_here(
        self, requests: Sequence[ChatRequest], put: Callable[[tuple[int, ChatReply] | None], object]
    ) -> Future:
        """As `Client.begin`, for a model in this process."""

        def hand_over(place: int, reply: ChatReply) -> None:
            put((place, reply))
            if self._gone:
                raise CancelledError  # nobody waits for the next batch

        work = self._turn.submit(self._model.chat, requests, hand_over)
        work.add_done_callback(lambda _: put(None))
        return work
