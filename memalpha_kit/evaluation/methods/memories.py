"""Methods that answer from a memory of three parts: written by a writer, or drawn at random.

The one law: writer and reader know nothing of each other, so every writer (scripted, a policy's
folder, a chat model with tools, one that the caller made) can be asked through every reader
(`readers.READERS`, or one that the caller made).

    MethodSpec("memory", {"writer": "keep_sentences", "reader": "best_entry"})     # no model
    MethodSpec("memory", {"writer": "models/Memalpha-4B", "protocol.wire": "text"})
    MethodSpec("memory", {"writer": "api"})                                        # untrained
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from memalpha_kit.errors import InputError, closest
from memalpha_kit.evaluation.methods.api_writer import ApiWriter
from memalpha_kit.evaluation.methods.base import (
    Answered,
    AnsweredDone,
    Backends,
    Method,
    Prepared,
    PreparedDone,
    Question,
    Settings,
    folder_hash,
    groups,
    identity,
)
from memalpha_kit.evaluation.methods.journal import MeteredWriter, Spent
from memalpha_kit.method import memory as memories
from memalpha_kit.method.episode import write
from memalpha_kit.method.prompts import VERSION
from memalpha_kit.method.readers import READERS, Reader, needs_model, reader
from memalpha_kit.method.retrieval import Retrieval
from memalpha_kit.method.writers import (
    SAMPLE,
    WRITERS,
    ModelWriter,
    Writer,
    content,
    sentences,
    writer,
)
from memalpha_kit.records import Answer, Entry, Episode, Instance, Memory
from memalpha_kit.records import Question as Asked
from memalpha_kit.settings import (
    Behaviour,
    Count,
    MemoryConfig,
    Natural,
    NonNegative,
    ProtocolConfig,
    Share,
)

_RETRIEVAL = ("retrieval", "top_k", "budget_tokens", "behaviour")
_ASKING = ("max_tokens", "temperature", "thinking", "seed")
_SEARCHING = ("initial_k", "per_search", "candidates", "max_iterations")


@dataclass(frozen=True)
class ReaderSettings(Settings):
    """Who answers from the memory. A setting that the reader does not have is an error."""

    reader: str = "model"  # model, agentic, best_entry, label_vote, read_nothing
    k: int | None = None  # readers without a model: entries they look at
    retrieval: Literal["bm25", "embedding"] = "bm25"
    top_k: Count = 20  # entries of each store
    budget_tokens: Count = 30_000  # of the whole prompt
    behaviour: Behaviour = "fixed"  # of retrieval
    max_tokens: Count = 2048  # of a reply, its reasoning included
    temperature: NonNegative = 0.0  # release: 0.7
    thinking: bool | None = False
    seed: int | None = None
    initial_k: Count = 2  # agentic: entries of each store at the start
    per_search: Count = 2  # agentic: new entries of a search
    candidates: Count = 10  # agentic: entries that a search looks at
    max_iterations: Count = 5  # agentic: rounds with the tool


class FromMemory(Method):
    """Puts questions to the prepared memory through a reader."""

    Settings = ReaderSettings
    options: ReaderSettings

    def __init__(self, name: str, settings: ReaderSettings, backends: Backends) -> None:
        super().__init__(name, settings, backends)
        self.reader = self._reader()

    def settings(self) -> dict[str, Any]:
        """With the version of the answering texts, or the reader that the caller made."""
        name, given, found = self.options.reader, self.backends.readers, super().settings()
        if name in given:
            return found | {"reader": identity(given[name])}
        if self.options.retrieval != "bm25":
            found["embed_model"] = self.reader.settings()["embed"]
        return found | ({"prompts": VERSION} if needs_model(name) else {})

    def _reader(self) -> Reader:
        name, given = self.options.reader, self.backends.readers
        if name in given:
            self.check_unused((*_RETRIEVAL, *_ASKING, *_SEARCHING, "k"), f"reader {name}")
            return given[name]
        if name not in READERS:
            known = [*READERS.names(), *given]
            raise InputError(f"reader {name!r} is unknown{closest(name, known)}")
        if not needs_model(name):
            self.check_unused((*_RETRIEVAL, *_ASKING, *_SEARCHING), f"reader {name}")
            k = {} if self.options.k is None else {"k": self.options.k}
            return reader(name, **k)
        self.check_unused(("k",) if name == "agentic" else ("k", *_SEARCHING), f"reader {name}")
        said = {key: getattr(self.options, key) for key in _ASKING}
        if name == "agentic":
            said |= {key: getattr(self.options, key) for key in _SEARCHING}
        method, *rest = (getattr(self.options, key) for key in _RETRIEVAL)
        found = Retrieval(method, *rest, counter=self.options.counter)
        embed = self.backends.embed
        if method != "bm25" and embed is None:
            raise InputError(f"retrieval {method}: expected a model that embeds, found none")
        made = reader(name, self.model, retrieval=found, **said)
        return replace(made, embed=embed) if embed else made

    def answer_group(self, questions: Sequence[Question], done: AnsweredDone) -> None:
        """All at once; the reader says each as soon as it is known."""

        def take(place: int, answer: Answer) -> None:
            done(_answered(questions[place], answer))

        self.reader.read([_request(question) for question in questions], take)


def _request(question: Question) -> Asked:
    held, qa = question.prepared.memory, question.qa
    if held is None:
        where = question.instance.id
        raise InputError(f"{where}: expected a memory of three parts, found another method's")
    return Asked(qa.id, qa.question, question.instance.source, question.instance.id, held)


def _answered(question: Question, answer: Answer) -> Answered:
    """With the reader's words; failing is never an answer."""
    values = {
        name: getattr(answer, name)
        for name in ("requests", "prompt_tokens", "completion_tokens", "latency_s", "retrieved")
    }
    if answer.error or answer.prediction is None:
        return question.failed(answer.error or "the reader has no answer", **values)
    return question.answered(answer.prediction, finish=answer.finish, **values)


# ---- written ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemorySettings(ReaderSettings):
    """Who writes the memory, under which rules; `memory` and `protocol` are of the writer."""

    writer: str = ""  # a rule's name, "api", a policy's folder
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    write_temperature: NonNegative = 0.0  # of a model that writes; release for gpt-4.1-mini: 0.6
    write_seed: Natural = 0


class WrittenMemory(FromMemory):
    """A writer reads the chunks one by one and keeps a memory of three parts; a reader answers.

    Memory: core and every entry, one by one (evaluation.md 4.9). Episodes keep texts and calls, not
    token ids. A policy is loaded when the first chunk is to be read, and let go after the last.
    """

    Settings = MemorySettings
    summary = "a writer keeps a memory of three parts, a reader answers from it"
    options: MemorySettings

    def __init__(self, name: str, settings: MemorySettings, backends: Backends) -> None:
        wanted, known = settings.writer, (*WRITERS.names(), "api", *backends.writers)
        if wanted not in known and not (Path(wanted) / "config.json").is_file():
            tail = closest(wanted, known)
            raise InputError(f"writer: expected a name or a model's folder, found {wanted!r}{tail}")
        super().__init__(name, settings, backends)
        if wanted == "api":
            self._write_model()  # a missing model is said before any work
        elif wanted in known:
            self.check_unused(("write_temperature",), f"writer {wanted}")

    def settings(self) -> dict[str, Any]:
        """With the content of a policy's folder in place of its path."""
        found, wanted = super().settings(), self.options.writer
        if wanted in self.backends.writers:
            return found | {"writer": identity(self.backends.writers[wanted])}
        if wanted not in (*WRITERS.names(), "api"):
            return found | {"writer": folder_hash(Path(wanted))}
        return found

    def prepare(self, instances: Sequence[Instance], done: PreparedDone) -> None:
        """Writes a group of instances in lock-step, then hands each of them over."""
        if not instances:
            return
        made, protocol = self._writer()
        for group in groups(instances, self.backends.group):
            for episode, instance in zip(self._write(group, made, protocol), group, strict=True):
                spent = getattr(made, "spent", {}).get(instance.id, Spent())
                error = getattr(made, "failed", {}).get(instance.id, "")
                done(self._prepared(instance, episode, spent, error))

    def _write(
        self, group: Sequence[Instance], made: Writer, protocol: ProtocolConfig
    ) -> list[Episode]:
        return write(group, made, self.options.memory, protocol, seed=self.options.write_seed)

    def _prepared(self, instance: Instance, episode: Episode, spent: Spent, error: str) -> Prepared:
        if error:
            return self.measured(instance, memory_tokens=None, error=error, **spent.fields())
        return self.measured(
            instance,
            memory=episode.memory,
            memory_tokens=memories.tokens(episode.memory, self.counter),
            calls=len(episode.calls),
            calls_ok=sum(call.status == "ok" for call in episode.calls),
            episode=episode,
            **spent.fields(),
        )

    def _write_model(self):
        return self.backends.write or self.model

    def _writer(self) -> tuple[Writer, ProtocolConfig]:
        """The writer, and how its replies are read."""
        options, protocol = self.options, self.options.protocol
        if options.writer in self.backends.writers:
            return MeteredWriter(self.backends.writers[options.writer], self.journal), protocol
        if options.writer in WRITERS:
            return writer(options.writer, protocol.wire), protocol
        if options.writer == "api":
            model, heat = self.kept(self._write_model()), options.write_temperature
            made = ApiWriter(model, options.memory, protocol, self.counter, heat)
            return made, replace(protocol, wire="qwen", thinking=False)
        from memalpha_kit.models.local import Sampling, load_lm

        sampling = Sampling(options.write_temperature, protocol.max_reply_tokens)
        lm = load_lm(Path(options.writer), self.backends.device)
        policy = ModelWriter(lm, options.memory, protocol, sampling)
        return MeteredWriter(policy, self.journal), protocol


# ---- drawn at random --------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomSettings(ReaderSettings):
    """How much is drawn: a share of the chunks' tokens, a number of tokens, or as much as a run."""

    share: Share = 0.5
    tokens: Natural | None = None
    like: str = ""  # answers.jsonl of a run: of each instance as many tokens as its memory there
    draw_seed: Natural = 0


class RandomMemory(FromMemory):
    """Whole sentences and labelled samples drawn at random, in their order, as semantic entries.

    The floor for any writer that keeps as many tokens. Each instance has its own draw from the
    seed, whoever else is drawn. Memory: the tokens that were drawn, at most what was asked for.
    """

    Settings = RandomSettings
    summary = "sentences drawn at random, as many tokens as a memory has; a floor for writers"
    options: RandomSettings

    def __init__(self, name: str, settings: RandomSettings, backends: Backends) -> None:
        super().__init__(name, settings, backends)
        if settings.like and settings.tokens is not None:
            raise InputError(f"method {name}: expected tokens or like, found both")
        if settings.like or settings.tokens is not None:
            self.check_unused(("share",), "the number of tokens is given")
        self._sizes = _sizes(Path(settings.like)) if settings.like else None

    def settings(self) -> dict[str, Any]:
        """With the sizes of the other run in place of its path."""
        if self._sizes is None:
            return super().settings()
        sizes = json.dumps(self._sizes, sort_keys=True).encode()
        return super().settings() | {"like": f"sha256:{hashlib.sha256(sizes).hexdigest()}"}

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """With the drawn memory. Raises InputError if the other run has not this instance."""
        made = super().measured(instance)
        budget = self._budget(instance, made.input_tokens)
        memory = draw(instance, budget, self.counter.count, self.options.draw_seed)
        return replace(made, memory=memory, memory_tokens=memories.tokens(memory, self.counter))

    def _budget(self, instance: Instance, input_tokens: int) -> int:
        if self._sizes is None:
            tokens = self.options.tokens
            return int(self.options.share * input_tokens) if tokens is None else tokens
        if instance.id not in self._sizes:
            raise InputError(f"{self.options.like}: expected a memory of {instance.id}, found none")
        return self._sizes[instance.id]


def draw(instance: Instance, budget: int, count: Any, seed: int = 0) -> Memory:
    """Units of all chunks in a random order, each kept that still fits, put back in their order."""
    units = list(dict.fromkeys(unit for chunk in instance.chunks for unit in _units(chunk)))
    order = list(range(len(units)))
    random.Random(f"{seed}/{instance.id}").shuffle(order)
    kept, size = [], 0
    for place in order:
        more = count(units[place])
        if size + more <= budget:
            kept.append(place)
            size += more
    entries = (Entry(str(n), units[place]) for n, place in enumerate(sorted(kept), 1))
    return Memory(semantic=tuple(entries), next_id=len(kept) + 1)


def _units(chunk: str) -> Iterator[str]:
    """Labelled samples if the chunk has any, else its sentences."""
    samples = [match[0] for match in SAMPLE.finditer(chunk)]
    yield from samples or sentences(content(chunk))


def _sizes(path: Path) -> dict[str, int]:
    """Memory tokens by instance in a run's `answers.jsonl`, whose last line may be cut off."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        found = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the answers of a run, found: {error}") from error
    ready = [line for line in found if line.get("kind") == "prepared"]
    sizes = {line["instance"]: line.get("memory_tokens") for line in ready}
    return {instance: size for instance, size in sizes.items() if size is not None}
