"""Methods: the memory and every baseline, behind one face and with one kind of answer.

`prepare` reads an instance's chunks and never its questions; `answer` puts questions and never
changes what was prepared. Both call `done` as soon as one result is known, so that a run can put it
on disk, and both can be asked for a part of the work, so that a run can be resumed.

A method is a class with its settings, registered by a name; nothing else in the kit knows any of
them. Your own is registered by your module:

    @METHODS.register("first-chunk")
    class FirstChunk(ContextMethod):
        def context(self, put):
            return put.instance.chunks[0], ("chunk:0",)

What failed says so: a `Prepared` or an `Answer` with an `error` is to be made again, and its
prediction is None. What can never be asked (a question without evidence label, for the gold chunk)
is `skipped` with its reason, which is final. Neither is ever an answer text or a zero.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from memalpha_kit import files
from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.writing import Journal
from memalpha_kit.method.retrieval import Embed
from memalpha_kit.method.writers import Writer
from memalpha_kit.records import Answer, Episode, Instance, Question
from memalpha_kit.registry import Registry
from memalpha_kit.sections import about, section, settings_from
from memalpha_kit.tokens import counter

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """What a method holds of one instance before any question is put.

    The memory is the last one of an `episode`, or one `text`. `memory_tokens` is None where each
    question has a memory of its own (then it is in the answers). `input_tokens` are those of all
    chunks, by the same counter, so that memory / input is the compression.
    """

    instance: str
    episode: Episode | None = None
    text: str | None = None
    steps: tuple[str, ...] = ()  # states of a text memory, one per step
    memory_tokens: int | None = None
    input_tokens: int = 0
    requests: int = 0  # model calls
    prompt_tokens: int | None = None  # of all model calls; None: unknown, or no model
    completion_tokens: int | None = None
    lost: tuple[int, int] = (0, 0)  # of the reply that failed: read and written; no journal has it
    unusable: int = 0  # replies without a usable state, after which the old one was kept
    error: str = ""  # why there is nothing to answer from; such a record is made again
    finish: str = ""  # of the reply that failed; unanswerable: again it would fail
    counted: tuple[int, int, int] = (0, 0, 0)  # `counts` of an episode that was not loaded

    @property
    def counts(self) -> tuple[int, int, int]:
        """Chunks that a writer read, calls that it made, and calls that worked."""
        if self.episode is None:
            return self.counted
        statuses = [call.status for call in self.episode.calls]
        return len(self.episode.steps), len(statuses), statuses.count("ok")


@dataclass(frozen=True)
class Backends:
    """What a method may use and that is no setting of it: who computes, and where.

    `answer` answers questions; `write` builds memories, by default the same model. `writers` are
    further ones by name, such as a policy that is in memory already. `rows` are the ids of all
    instances of the data file, in order; rollout files of others name instances by their place
    there. `journal` is a folder of this run alone, where replies are kept while memories are built,
    so that a run that was killed goes on at the next chunk.
    """

    answer: ChatModel | None = None
    write: ChatModel | None = None
    writers: Mapping[str, Writer] = field(default_factory=dict)
    embed: Embed | None = None
    device: str = "cpu"  # of a policy that is loaded from a folder
    dtype: str = "auto"  # of local models; another one gives other numbers
    rows: Sequence[str] = ()
    journal: Path | None = None
    group: int = 128  # instances or questions in work at a time


@section
class Settings:
    """What all methods share. A method's own settings extend it."""

    counter: str = about("wordpunct", "token counter of memory, input and windows")


class Put(NamedTuple):
    """A question that is to be put, with all that its answer may depend on."""

    question: Question
    instance: Instance
    held: Prepared

    def draft(self, **values: Any) -> Answer:
        """What is known of the answer before it is asked for."""
        known = {"instance": self.instance.id, "memory_tokens": self.held.memory_tokens}
        return Answer(self.question.id, **{"prediction": None} | known | values)


class Method:
    """One way to get from chunks to answers."""

    Settings: ClassVar[type[Settings]] = Settings
    summary: ClassVar[str] = ""  # one line for the command line
    needs_model: bool = False  # to answer
    model_writes: bool = False  # a chat model builds the memories
    prompts: ClassVar[Any] = None  # versions of the wording that answers depend on
    base: ClassVar[str] = ""  # the method of which this is a published variant
    defaults: ClassVar[Mapping[str, Any]] = {}  # options that the variant sets differently

    def __init__(self, name: str, settings: Any, backends: Backends) -> None:
        """Cheap: models are loaded on use. Raises InputError for settings that do not fit."""
        write = backends.write if self.model_writes else None  # nobody asks it
        asked = self.needs_model or (self.model_writes and write is None)
        self.backends = replace(backends, answer=backends.answer if asked else None, write=write)
        self.name, self.options = name, settings
        self.counter = counter(settings.counter)
        if type(self).needs_model:
            self.model  # noqa: B018  a missing model is said before any work

    @property
    def model(self) -> ChatModel:
        """The answering model. Raises InputError if there is none."""
        if self.backends.answer is None:
            found = "found none; --url and --model-name name a served one, --model a local one"
            raise InputError(f"method {self.name}: expected a model that answers, {found}")
        return self.backends.answer

    @property
    def writing(self) -> ChatModel:
        """The model that builds memories, by default the answering one."""
        return self.backends.write or self.model

    def load(self) -> None:
        """Loads what would be loaded on use, so that a fault is said before a run begins."""

    @cached_property
    def journal(self) -> Journal:
        """Where replies are kept while memories are built, if anywhere."""
        folder = self.backends.journal
        return Journal(folder / "replies.jsonl" if folder else None)

    def settings(self) -> dict[str, Any]:
        """Everything that the results depend on, as plain values: the key of a run."""
        models = {"model": self.backends.answer, "write_model": self.backends.write}
        names = {key: identity(model) for key, model in models.items() if model}
        given = {} if self.backends.dtype == "auto" else {"dtype": self.backends.dtype}
        settings = {"method": self.name, **names, **given, **dataclasses.asdict(self.options)}
        settings |= {"prompts": self.prompts} if self.prompts else {}
        return json.loads(json.dumps(settings))  # as they come back from disk

    def check_unused(self, names: Sequence[str], why: str) -> None:
        """Raises InputError if one of these settings was changed: it would do nothing."""
        defaults = settings_from(self.Settings, self.defaults, f"method {self.name}")
        for name in names:
            if getattr(self.options, name) != getattr(defaults, name):
                raise InputError(f"method {self.name}: {name} has no effect: {why}")

    def prepare(self, instances: Sequence[Instance], done: Callable[[Prepared], None]) -> None:
        """Calls `done` once per instance, as soon as it is ready or has failed.

        Raises ModelGone if no model answers any more; what was ready before was handed over.
        """
        for instance in instances:
            done(self.measured(instance))

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """A record of the instance with its input counted, and without a memory unless given."""
        size = sum(map(self.counter.count, instance.chunks))
        known = {"memory_tokens": self.held_tokens(instance, size), "input_tokens": size}
        return Prepared(instance.id, **known | values)

    def held_tokens(self, instance: Instance, input_tokens: int) -> int:
        """What is held of an instance from which nothing was made."""
        return 0

    def answer(
        self,
        questions: Sequence[Question],
        instances: Sequence[Instance],
        prepared: Mapping[str, Prepared],
        done: Callable[[Answer], None],
    ) -> None:
        """Calls `done` once per question, as soon as its answer is known or has failed.

        Questions of an instance that is not in `prepared`, or failed there, fail with its reason.
        Raises ModelGone as `prepare` does.
        """
        by_id, ready = {instance.id: instance for instance in instances}, []
        for question in questions:
            held = prepared.get(question.instance)
            if held is None or held.error:
                held = held or Prepared(question.instance, error="was not prepared")
                answer = Answer(question.id, None, instance=held.instance, finish=held.finish)
                done(replace(answer, error=f"instance: {held.error}"))
            else:
                ready.append(Put(question, by_id[question.instance], held))
        for group in groups(ready, self.backends.group):
            self.answer_group(group, done)

    def answer_group(self, group: Sequence[Put], done: Callable[[Answer], None]) -> None:
        """As `answer`, for a few questions whose instances are ready: one request for each."""
        asked = []
        for request, draft in map(self.request, group):
            if request is None:
                done(draft)
            else:
                asked.append((request, draft))
        if asked:
            requests = [request for request, _ in asked]
            self.model.chat(requests, lambda i, reply: done(replied(asked[i][1], reply)))

    def request(self, put: Put) -> tuple[ChatRequest | None, Answer]:
        """What is asked, and what is known of the answer before; without a request it is final."""
        raise NotImplementedError


METHODS: Registry[type[Method]] = Registry(
    "method", *(f"memalpha_kit.evaluation.{module}" for module in ("contexts", "memories", "walks"))
)


@dataclass(frozen=True)
class MethodSpec:
    """A method's name and its options, plain values by (dotted) name; the rest is its defaults."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def build_method(spec: MethodSpec, backends: Backends | None = None) -> Method:
    """The method, ready to use; nothing is loaded yet.

    Raises InputError for an unknown method or option, naming the closest, for a value of the wrong
    type or range, and for a model that is needed and not given.
    """
    made = METHODS[spec.method]
    options = {**made.defaults, **spec.options}
    settings = settings_from(made.Settings, options, f"method {spec.method}")
    return made(spec.method, settings, backends or Backends())


def provenance(
    spec: MethodSpec, backends: Backends, data: Path, prices: Mapping[str, Any], wrote: str = ""
) -> dict[str, Any]:
    """What changes no answer but belongs to the run: where the data is, who writes, prices.

    `prices` are by role (answer, write) and kind; `wrote` is who wrote the episodes, if others did.
    """
    roles = {"answer": backends.answer, "write": backends.write}
    models = {role: {"model": model.name, **prices[role]} for role, model in roles.items() if model}
    writer = {**METHODS[spec.method].defaults, **spec.options}.get("writer") or wrote
    if writer == "api":
        writer = getattr(backends.write or backends.answer, "name", "")
    elif writer:
        models["write"] = {"model": writer}  # not at the price of the answering model
    return {"data": str(data), "writer": writer, **models}


def replied(draft: Answer, reply: ChatReply) -> Answer:
    """The answer that a model's reply gives; a call that failed is no answer, but was paid for."""
    error = reply.error or ("the reply has no text" if reply.text is None else "")
    return replace(
        draft,
        prediction=None if error else reply.text,
        finish=reply.finish if not error or reply.finish == "unanswerable" else "error",
        error=error,
        requests=1,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        latency_s=reply.latency_s,
    )


def groups(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive groups of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


WEIGHTS = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")  # what decides replies


@cache
def folder_hash(folder: Path) -> str:
    """SHA-256 of a model's folder: tomorrow its path may hold another one."""
    found = [file for file in folder.iterdir() if file.suffix in WEIGHTS]
    return f"sha256:{files.fingerprint(found)}"


def identity(who: Any) -> str:
    """The name of a model, writer or reader, with the hash of its folder if it has one."""
    folder = getattr(getattr(who, "lm", None), "name", "")
    if folder and (Path(folder) / "config.json").is_file():
        return f"{who.name} {folder_hash(Path(folder))}"
    return who.name
