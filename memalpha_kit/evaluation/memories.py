"""Methods that answer from a memory of three parts: written by a writer, or drawn at random.

Writer and reader know nothing of each other, so every writer (a rule, a policy's folder, a chat
model with tools, one that the caller made, or episodes that were written before) can be asked
through every reader.

    MethodSpec("memory", {"writer": "keep_sentences", "reader": "best_entry"})     # no model
    MethodSpec("memory", {"writer": "models/Memalpha-4B", "protocol.wire": "text"})
    MethodSpec("memory", {"writer": "api"})                                        # untrained
    MethodSpec("memory", {"episodes": "runs/squad.jsonl", "reader": "best_entry"})
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memalpha_kit import files
from memalpha_kit.chats import request
from memalpha_kit.errors import InputError, closest
from memalpha_kit.evaluation.methods import (
    METHODS,
    Backends,
    Method,
    Prepared,
    Put,
    Settings,
    folder_hash,
    groups,
    identity,
)
from memalpha_kit.evaluation.writing import ApiWriter, KeptWriter, WatchedChat, spent
from memalpha_kit.method import memory as memories
from memalpha_kit.method import saved, writers
from memalpha_kit.method.episode import write
from memalpha_kit.method.model_readers import ModelReader
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.method.prompts import VERSION, search_tool
from memalpha_kit.method.readers import READERS, Reader, needs_model, reader
from memalpha_kit.method.retrieval import Retrieval
from memalpha_kit.models.folders import check_folder
from memalpha_kit.progress import bar
from memalpha_kit.records import Answer, Episode, Instance, ToolCall, WriteRequest
from memalpha_kit.sections import Count, Natural, NonNegative, Share, about, section
from memalpha_kit.settings import MemoryConfig, ProtocolConfig

if TYPE_CHECKING:
    from memalpha_kit.models.local import CausalLM

_RETRIEVAL = ("retrieval", "top_k", "budget_tokens", "behaviour")
_OWN = (
    *("k", "max_tokens", "temperature", "thinking", "seed"),
    *("initial_k", "per_search", "candidates", "max_iterations"),
)


# ---- readers ------------------------------------------------------------------------------------


@section
class ReaderSettings(Settings):
    """Who answers from the memory. A setting that the reader does not have is an error."""

    reader: str = about("model", "model, agentic, best_entry, label_vote, read_nothing")
    k: Count | None = about(None, "readers without a model: entries they look at")
    retrieval: Literal["bm25", "embedding"] = about("bm25", "how entries are found")
    top_k: Count = about(20, "entries of each store")
    budget_tokens: Count = about(30_000, "of the whole prompt")
    behaviour: str = about("fixed", "of retrieval")
    max_tokens: Count = about(2048, "of a reply, its reasoning included")
    temperature: NonNegative = about(0.0, "of the answers")
    thinking: bool | None = about(False, "whether the model reasons first")
    seed: int | None = about(None, "of the draws")
    initial_k: Count = about(2, "agentic: entries of each store at the start")
    per_search: Count = about(2, "agentic: new entries of a search")
    candidates: Count = about(10, "agentic: entries that a search looks at")
    max_iterations: Count = about(5, "agentic: rounds with the tool")


class FromMemory(Method):
    """Puts questions to the prepared memory through a reader."""

    Settings = ReaderSettings
    options: ReaderSettings

    def __init__(self, name: str, settings: ReaderSettings, backends: Backends) -> None:
        self.needs_model = needs_model(settings.reader)
        super().__init__(name, settings, backends)
        self.reader = self._reader()

    def settings(self) -> dict[str, Any]:
        """With the version of the answering texts."""
        found = super().settings()
        if self.options.retrieval != "bm25" and isinstance(self.reader, ModelReader):
            found["embed_model"] = self.reader.settings()["embed"]
        return found | ({"prompts": VERSION} if self.needs_model else {})

    def _reader(self) -> Reader:
        options, name = self.options, self.options.reader
        fields = inspect.signature(READERS[name]).parameters
        retrieval = () if "retrieval" in fields else _RETRIEVAL
        unused = [*retrieval, *(key for key in _OWN if key not in fields)]
        self.check_unused(unused, f"reader {name}")
        values = {key: getattr(options, key) for key in _OWN if key in fields}
        if values.get("k", ...) is None:  # the reader's own default
            del values["k"]
        if "retrieval" in fields:
            how = options.retrieval
            if how != "bm25" and self.backends.embed is None:
                raise InputError(f"retrieval {how}: expected a model that embeds, found none")
            shown = (options.top_k, options.budget_tokens, options.behaviour)
            values["retrieval"] = Retrieval(how, *shown, options.counter)
            values["embed"] = self.backends.embed
        return reader(name, self.model if self.needs_model else None, **values)

    def load(self) -> None:
        """A model in this process says now whether its chat template shows it the search tool."""
        check = getattr(self.backends.answer, "check", None)
        if check and self.options.reader == "agentic":
            check(request("", "", tools=search_tool(["semantic"])))

    def answer_group(self, group: Sequence[Put], done: Callable[[Answer], None]) -> None:
        """All at once; a reader that says none as soon as it is known gives them at the end."""
        told = set()
        pairs = [(put.question, put.held.episode) for put in group]
        questions = [replace(q, memory=made.memory if made else None) for q, made in pairs]

        def take(place: int, answer: Answer) -> None:
            told.add(place)
            missing = answer.prediction is None and not answer.error
            error = "the reader has no answer" if missing else answer.error
            said, held = None if error else answer.prediction, group[place].held
            known: Any = {"instance": held.instance, "memory_tokens": held.memory_tokens}
            known["qa"] = group[place].question.id  # answers stand in the order of the questions
            done(replace(answer, prediction=said, error=error, **known))

        for place, answer in enumerate(self.reader.read(questions, take)):
            if place not in told:
                take(place, answer)

    def remembered(self, instance: Instance, episode: Episode, **values: Any) -> Prepared:
        """The record of an instance whose memory was written."""
        size = memories.tokens(episode.memory, self.counter)
        return self.measured(instance, episode=episode, memory_tokens=size, **values)


# ---- written ------------------------------------------------------------------------------------


@section
class MemorySettings(ReaderSettings):
    """Who writes the memory, under which rules; `memory` and `protocol` are of the writer."""

    writer: str = about("", "a rule's name, api, or a policy's folder")
    episodes: str = about("", "or a file of `memalpha write`")
    memory: MemoryConfig = about(MemoryConfig(), "what the writer may keep")
    protocol: ProtocolConfig = about(ProtocolConfig(), "how the writer is asked and read")
    write_temperature: NonNegative = about(0.0, "of a model that writes")
    write_seed: Natural = about(0, "of a writer that draws")


@METHODS.register("memory")
class WrittenMemory(FromMemory):
    """A writer reads the chunks one by one and keeps a memory of three parts; a reader answers.

    Memory: core and every entry, one by one. Episodes keep texts and calls, not token ids. A policy
    is loaded when the first chunk is to be read, and let go after the last.
    """

    Settings = MemorySettings
    summary = "a writer keeps a memory of three parts, a reader answers from it"
    options: MemorySettings

    def __init__(self, name: str, settings: MemorySettings, backends: Backends) -> None:
        wanted, known = settings.writer, (*writers.WRITERS.names(), "api", *backends.writers)
        self._folder = None if settings.episodes or wanted in known else Path(wanted)
        if self._folder and not (self._folder / "config.json").is_file():
            if wanted and self._folder.is_dir():  # an adapter's, a run's
                check_folder(self._folder)
            tail = closest(wanted, known)
            raise InputError(f"writer: expected a name or a model's folder, found {wanted!r}{tail}")
        self.model_writes = wanted == "api" and not settings.episodes
        super().__init__(name, settings, backends)
        self._loaded: CausalLM | None = None  # the policy in the folder
        memories.empty(settings.memory)  # an unknown name is said before a run is begun
        writing = ("memory", "protocol", "write_temperature", "write_seed")
        if settings.episodes:
            self.check_unused(("writer", *writing), "the episodes were written before")
        elif wanted == "api":
            ApiWriter(self.writing, settings.memory, settings.protocol, self.counter).check()
        elif wanted in known:
            self.check_unused(("write_temperature",), f"writer {wanted}")

    def settings(self) -> dict[str, Any]:
        """With the content of a policy's folder or of an episode file in place of its path."""
        found, options = super().settings(), self.options
        if options.episodes:
            return found | {"episodes": files.sha256(Path(options.episodes))}
        if options.writer in self.backends.writers:
            return found | {"writer": identity(self.backends.writers[options.writer])}
        return found | ({"writer": folder_hash(self._folder)} if self._folder else {})

    def prepare(self, instances: Sequence[Instance], done: Callable[[Prepared], None]) -> None:
        """Writes a group of instances in lock-step, then hands each of them over."""
        options = self.options
        if options.episodes:
            written = load_written(Path(options.episodes))
            for instance in instances:
                if instance.id not in written:
                    missing = f"expected an episode of {instance.id}, found none"
                    raise InputError(f"{options.episodes}: {missing}")
                done(self.remembered(instance, written[instance.id]))
        elif instances:
            made = self._writer()
            with bar(sum(len(i.chunks) for i in instances), f"write {made.name}") as shown:
                for group in groups(instances, self.backends.group):
                    how = options.memory, options.protocol, 1, options.write_seed
                    episodes = write(group, made, *how, shown.advance)
                    for episode, instance in zip(episodes, group, strict=True):
                        done(self._prepared(instance, episode, made))

    def _prepared(self, instance: Instance, episode: Episode, made: writers.Writer) -> Prepared:
        took = spent(getattr(made, "spent", {}).get(instance.id, ()))
        if isinstance(made, ApiWriter) and (why := made.failed.get(instance.id)):
            return self.measured(instance, memory_tokens=None, **why, **took)
        return self.remembered(instance, episode, **took)

    def load(self) -> None:
        """The policy that writes, if one does."""
        super().load()
        if self._folder:
            self._loaded = self._policy(self._folder)

    def _policy(self, folder: Path) -> CausalLM:
        from memalpha_kit.models.folders import check_writer
        from memalpha_kit.models.local import load_lm

        check_writer(folder, self.options.memory, self.options.protocol)
        return load_lm(folder, self.backends.device, dtype=self.backends.dtype)

    def _writer(self) -> writers.Writer:
        options, given = self.options, self.backends.writers
        name, protocol, heat = options.writer, options.protocol, options.write_temperature
        if name in given:
            return KeptWriter(given[name], self.journal)
        if name in writers.WRITERS:
            return writers.writer(name, protocol.wire)
        if name == "api":
            model = WatchedChat(self.writing, self.journal)
            return ApiWriter(model, options.memory, protocol, self.counter, heat)
        from memalpha_kit.models.local import Sampling

        lm, self._loaded = self._loaded or self._policy(Path(name)), None
        sampling = Sampling(heat, protocol.max_reply_tokens)
        return KeptWriter(ModelWriter(lm, options.memory, protocol, sampling), self.journal)


def load_written(path: Path) -> Mapping[str, Episode]:
    """The episodes of a file by the instance that they are asked about (see `asked_instances`)."""
    episodes = saved.load_episodes(path)
    names = [episode.instance for episode in episodes]
    several = len(set(names)) < len(names)
    return {episode.id if several else episode.instance: episode for episode in episodes}


def asked_instances(path: Path, instances: Sequence[Instance]) -> tuple[list[Instance], str]:
    """The instances that a file's episodes are about, in its order, and who wrote; several rollouts
    of one are asked one by one, under the episode's id.

    Raises InputError if there is no episode, or an episode's instance is missing.
    """
    by_id, found, writer = {instance.id: instance for instance in instances}, [], ""
    for name, episode in load_written(path).items():
        if episode.instance not in by_id:
            raise InputError(f"episode {episode.id}: its instance is not in the data")
        found.append(replace(by_id[episode.instance], id=name))
        writer = writer or episode.writer
    if not found:
        raise InputError(f"{path}: expected at least one episode, found none")
    return found, writer


# ---- drawn at random ----------------------------------------------------------------------------


@section
class RandomSettings(ReaderSettings):
    """How much is drawn: a share of the chunks' tokens, or as much as another run holds."""

    share: Share = about(0.5, "of the tokens of the chunks")
    like: str = about("", "answers.jsonl of a run, for memories of the same sizes")
    draw_seed: Natural = about(0, "of the draw")


@METHODS.register("random-memory")
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
        if settings.like:
            self.check_unused(("share",), "another run says how many tokens")
        self._sizes = _sizes(Path(settings.like)) if settings.like else None

    def settings(self) -> dict[str, Any]:
        """With the sizes of the other run in place of its path."""
        if self._sizes is None:
            return super().settings()
        sizes = json.dumps(self._sizes, sort_keys=True).encode()
        return super().settings() | {"like": f"sha256:{hashlib.sha256(sizes).hexdigest()}"}

    def prepare(self, instances: Sequence[Instance], done: Callable[[Prepared], None]) -> None:
        """Draws each memory. Raises InputError if the other run has not an instance."""
        for instance in instances:
            budget = self._budget(instance)
            texts = draw(instance, budget, self.counter.count, self.options.draw_seed)

            def rule(asked: WriteRequest, texts: Sequence[Sequence[str]] = texts) -> list[ToolCall]:
                return [writers.insert("semantic", text) for text in texts[asked.step]]

            drawn = writers.ScriptedWriter("random", rule)
            [episode] = write([instance], drawn, MemoryConfig(), ProtocolConfig())
            done(self.remembered(instance, episode))

    def _budget(self, instance: Instance) -> int:
        if self._sizes is None:
            return int(self.options.share * self.measured(instance).input_tokens)
        if instance.id not in self._sizes:
            raise InputError(f"{self.options.like}: expected a memory of {instance.id}, found none")
        return self._sizes[instance.id]


def draw(
    instance: Instance, budget: int, count: Callable[[str], int], seed: int | None
) -> list[list[str]]:
    """By chunk, the units that were kept: all in a random order, each that still fits.

    Without a seed they are tried in their own order.
    """
    by_chunk = [list(dict.fromkeys(_units(chunk))) for chunk in instance.chunks]
    order = list(dict.fromkeys(itertools.chain(*by_chunk)))  # each text once
    if seed is not None:
        random.Random(f"{seed}/{instance.id}").shuffle(order)
    kept = set()
    for unit in order:
        if (size := count(unit)) <= budget:
            kept.add(unit)
            budget -= size
    found = []
    for units in by_chunk:
        found.append([unit for unit in units if unit in kept])
        kept.difference_update(units)
    return found


def _units(chunk: str) -> Iterator[str]:
    """Labelled samples if the chunk has any, else its sentences."""
    samples = [match[0] for match in writers.SAMPLE.finditer(chunk)]
    yield from samples or writers.sentences(writers.content(chunk))


def _sizes(path: Path) -> dict[str, int]:
    """Memory tokens by instance in a run's `answers.jsonl`, whose last line may be cut off."""
    return {
        line["instance"]: line["memory_tokens"]
        for line in files.read_jsonl(path)
        if line.get("kind") == "prepared" and line.get("memory_tokens") is not None
    }
