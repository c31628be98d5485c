"""What every method gives back, and the two things every method does.

The one law: `prepare` reads an instance's chunks and never its questions; `answer` puts questions
and never changes what was prepared. Both call `done` as soon as one result is known, so that a run
can put it on disk; both can be asked for a part of the work, so that a run can be resumed.

What failed says so: a `Prepared` or `Answered` with an `error` is to be made again, and its
prediction is None. What can never be asked (a question without evidence label, for the gold chunk)
is `skipped` with its reason, which is final. Neither is ever an answer text or a zero (spec
evaluation.md M-3, R-9).

>>> Answered.from_plain(Answered("squad/0a", 0, "q0", "Nora").to_plain()).prediction
'Nora'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from memalpha_kit import files as store
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.methods.journal import Journal, JournalledChat
from memalpha_kit.method.readers import Reader
from memalpha_kit.method.saved import episode_fields, read_episode
from memalpha_kit.method.writers import Writer
from memalpha_kit.records import QA, STORES, ChatModel, ChatReply, Entry, Episode, Instance, Memory
from memalpha_kit.tokens import counter

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """What a method holds of one instance before any question is put.

    `memory_tokens` is what spec evaluation.md 4.9 calls the method's memory; None where each
    question has a memory of its own (then it is in the answers). `input_tokens` are those of all
    chunks, by the same counter, so that memory / input is the compression.
    """

    instance: str
    memory: Memory | None = None  # of three parts, or
    text: str | None = None  # one text
    memory_tokens: int | None = None
    input_tokens: int = 0
    calls: int = 0  # memory operations that the writer tried
    calls_ok: int = 0  # those that changed the memory
    requests: int = 0  # model calls
    prompt_tokens: int | None = None  # of all model calls; None: unknown, or no model
    completion_tokens: int | None = None
    errors: int = 0  # steps without a usable reply, after which the old memory was kept
    error: str = ""  # why there is nothing to answer from; such a record is made again
    truncated: bool = False  # a part of the input was left out
    steps: tuple[str, ...] = ()  # states of a text memory, one per step
    episode: Episode | None = None  # how a memory of three parts was written

    def to_plain(self) -> dict[str, Any]:
        """JSON values; fields at their default are left out, as is the memory of an episode."""
        values, episode = _changed(self), self.episode
        if "memory" in values or episode is not None:
            values["memory"] = _memory_plain(self.memory)
        if episode is not None:
            values["episode"] = episode_fields(episode)
            if self.memory == episode.memory:
                del values["memory"]
        return values

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], where: str = "prepared") -> Self:
        """What `to_plain` gave. Raises InputError starting with `where` for anything else."""
        try:
            values = dict(plain)
            if "episode" in values:
                values["episode"] = read_episode(values["episode"], where)
                values.setdefault("memory", values["episode"].memory)
            if isinstance(values.get("memory"), dict):
                values["memory"] = _memory(values["memory"])
            if "steps" in values:
                values["steps"] = tuple(values["steps"])
            return cls(**values)
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(f"{where}: expected what was prepared, found: {error}") from error


@dataclass(frozen=True)
class Answered:
    """One question's outcome, unique by (instance, index). Scores are made elsewhere.

    `prediction` is the raw reply, reasoning included. It is None if the question failed (`error`;
    it is asked again) or cannot be asked by this method at all (`skipped`; final).
    """

    instance: str
    index: int  # of the question in its instance
    qa: str  # the question's id
    prediction: str | None
    finish: str = ""  # stop, length, tool_calls or error; "" without a model
    error: str = ""
    skipped: str = ""
    requests: int | None = 0  # model calls behind the answer; None: unknown
    prompt_tokens: int | None = None  # of all of them; None if unknown or no model
    completion_tokens: int | None = None
    latency_s: float | None = None
    memory_tokens: int | None = None  # see Prepared
    input_tokens: int = 0  # see Prepared
    truncated: bool = False  # the question was put with a cut context
    retrieved: tuple[str, ...] = ()  # entry ids, or "chunk:3", best first
    memory: str = ""  # of this question alone, where it has one

    @property
    def final(self) -> bool:
        """Whether asking again is pointless: there is a prediction, or there can be none."""
        return self.prediction is not None or bool(self.skipped)

    def to_plain(self) -> dict[str, Any]:
        """JSON values; fields at their default are left out."""
        return _changed(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], where: str = "answer") -> Self:
        """What `to_plain` gave. Raises InputError starting with `where` for anything else."""
        try:
            return cls(**dict(plain) | {"retrieved": tuple(plain.get("retrieved", ()))})
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: expected an answer, found: {error}") from error


def _changed(record: Any) -> dict[str, Any]:
    """The fields that are not at their default, tuples as lists."""
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    defaults = {f.name: f.default for f in dataclasses.fields(record)}
    kept = {k: v for k, v in values.items() if v != defaults[k] or type(v) is not type(defaults[k])}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def _memory_plain(memory: Memory | None) -> dict[str, Any] | None:
    if memory is None:
        return None
    lists = {name: getattr(memory, name) for name in STORES}
    plain = {k: None if v is None else [[e.id, e.text] for e in v] for k, v in lists.items()}
    return {"core": memory.core, **plain, "next_id": memory.next_id}


def _memory(raw: Mapping[str, Any]) -> Memory:
    lists = [raw[name] for name in STORES]
    stores = (None if pairs is None else tuple(Entry(*pair) for pair in pairs) for pairs in lists)
    return Memory(raw["core"], *stores, raw["next_id"])


@dataclass(frozen=True)
class Backends:
    """What a method may use and that is no setting of it: who computes, and where.

    `answer` answers questions; `write` builds memories, by default the same model. `writers` and
    `readers` are further ones by name, such as a policy that is in memory already. `rows` are the
    ids of all instances of the data file, in order; rollout files of others name instances by their
    place there. `journal` is a folder of this run alone, where replies are kept while memories are
    built, so that a run that was killed goes on at the next chunk.
    """

    answer: ChatModel | None = None
    write: ChatModel | None = None
    writers: Mapping[str, Writer] = field(default_factory=dict)
    readers: Mapping[str, Reader] = field(default_factory=dict)
    embed: Callable[[Sequence[str]], Sequence[Sequence[float]]] | None = None
    device: str = "cpu"  # of a policy that is loaded from a folder
    rows: Sequence[str] = ()
    journal: Path | None = None
    group: int = 128  # instances or questions in work at a time


@dataclass(frozen=True)
class Settings:
    """What all methods share. A method's own settings extend it."""

    counter: str = "wordpunct"  # of memory, input and windows (tokens.counter)


PreparedDone = Callable[[Prepared], None]
AnsweredDone = Callable[[Answered], None]
Wanted = Collection[tuple[str, int]]
"""Questions as (instance, index)."""


@dataclass(frozen=True)
class Question:
    """A question that is to be put, with all that its answer may depend on."""

    instance: Instance
    index: int
    prepared: Prepared

    @property
    def qa(self) -> QA:
        """The question itself."""
        return self.instance.questions[self.index]

    def answered(self, prediction: str | None, **values: Any) -> Answered:
        """An answer to it; what is not said comes from what was prepared."""
        ready = self.prepared
        defaults = {"memory_tokens": ready.memory_tokens, "input_tokens": ready.input_tokens}
        values = defaults | {"truncated": ready.truncated} | values
        return Answered(self.instance.id, self.index, self.qa.id, prediction, **values)

    def failed(self, error: str, **values: Any) -> Answered:
        """No answer, to be asked again."""
        return self.answered(None, finish="error", error=error, **values)

    def replied(self, reply: ChatReply, **values: Any) -> Answered:
        """What a model replied; a call that failed is no answer."""
        values = {
            "requests": 1,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "latency_s": reply.latency_s,
        } | values
        if reply.error or reply.text is None:
            return self.failed(reply.error or "the reply has no text", **values)
        return self.answered(reply.text, finish=reply.finish, **values)


class Method:
    """One way to get from chunks to answers. A new one is a class and a line of `METHODS`."""

    Settings: ClassVar[type[Settings]] = Settings
    summary: ClassVar[str] = ""  # one line for the command line
    needs_model: ClassVar[bool] = False  # to answer

    def __init__(self, name: str, settings: Settings, backends: Backends) -> None:
        """Cheap: models are loaded on use. Raises InputError for settings that do not fit."""
        self.name, self.options, self.backends = name, settings, backends
        self.counter = counter(settings.counter)
        if self.needs_model:
            self.model  # noqa: B018  a missing model is said before any work

    @property
    def model(self) -> ChatModel:
        """The answering model. Raises InputError if there is none."""
        if self.backends.answer is None:
            raise InputError(f"method {self.name}: expected a model that answers, found none")
        return self.backends.answer

    @cached_property
    def journal(self) -> Journal | None:
        """Where replies are kept while memories are built, if anywhere."""
        folder = self.backends.journal
        return Journal(folder / "replies.jsonl") if folder else None

    def kept(self, model: ChatModel) -> ChatModel:
        """The model, its replies kept if there is a journal."""
        return JournalledChat(model, self.journal) if self.journal else model

    def settings(self) -> dict[str, Any]:
        """Everything that the results depend on, as plain values: the key of a run."""
        models = {"model": self.backends.answer, "write_model": self.backends.write}
        names = {key: identity(model) for key, model in models.items() if model}
        return {"method": self.name, **names, **_plain(dataclasses.asdict(self.options))}

    def prepare(self, instances: Sequence[Instance], done: PreparedDone) -> None:
        """Calls `done` once per instance, as soon as it is ready or has failed.

        Raises ModelGone if no model answers any more; what was ready before was handed over.
        """
        for instance in instances:
            done(self.measured(instance))

    def check_unused(self, names: Sequence[str], why: str) -> None:
        """Raises InputError if one of these settings was changed: it would do nothing (B-13)."""
        defaults = type(self.options)()
        for name in names:
            if getattr(self.options, name) != getattr(defaults, name):
                raise InputError(f"method {self.name}: {name} has no effect: {why}")

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """A record of the instance with its input counted, and without a memory unless given."""
        size = sum(map(self.counter.count, instance.chunks))
        return Prepared(instance.id, **{"memory_tokens": 0, "input_tokens": size} | values)

    def answer(
        self,
        instances: Sequence[Instance],
        prepared: Mapping[str, Prepared],
        wanted: Wanted,
        done: AnsweredDone,
    ) -> None:
        """Calls `done` once per wanted question, as soon as its answer is known or has failed.

        Questions of an instance that is not in `prepared`, or failed there, fail with its reason.
        Raises ModelGone as `prepare` does.
        """
        wanted = set(wanted)
        known = {(i.id, index) for i in instances for index in range(len(i.questions))}
        if unknown := wanted - known:
            raise InputError(f"method {self.name}: question {min(unknown)} is not in the data")
        questions = []
        for instance in instances:
            ready = prepared.get(instance.id, Prepared(instance.id, error="was not prepared"))
            for index in range(len(instance.questions)):
                if (instance.id, index) in wanted:
                    question = Question(instance, index, ready)
                    if ready.error:
                        done(question.failed(f"instance: {ready.error}"))
                    else:
                        questions.append(question)
        for group in groups(questions, self.backends.group):
            self.answer_group(group, done)

    def answer_group(self, questions: Sequence[Question], done: AnsweredDone) -> None:
        """As `answer`, for a few questions whose instances are ready."""
        raise NotImplementedError


def groups(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive groups of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


WEIGHTS = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")
"""Files that decide what a model's folder says."""


@cache
def folder_hash(folder: Path) -> str:
    """SHA-256 of a model's folder: tomorrow its path may hold another one (A-2)."""
    files = [file for file in folder.iterdir() if file.suffix in WEIGHTS]
    return f"sha256:{store.fingerprint(files)}"


def identity(who: Any) -> str:
    """The name of a model, writer or reader, with the hash of its folder if it has one."""
    folder = getattr(getattr(who, "lm", None), "name", "")
    if folder and (Path(folder) / "config.json").is_file():
        return f"{who.name} {folder_hash(Path(folder))}"
    return who.name


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value
