"""Writers: what turns one chunk and the memory before it into a reply with tool calls.

The one law: a writer sees a chunk, the memory and its seed, never the questions, and answers with
a `Completion` that goes through the same parser as a model's. Scripted writers are rules; their
replies are rendered by `calls.render_calls`. They are honest floors: they keep everything of one
kind, select nothing and never update. A user's module adds a rule or a writer with `WRITERS.add`.

| name | keeps |
| --- | --- |
| `keep_sentences` | every sentence, semantic; headers, lead-ins and role tags are left out |
| `keep_examples` | every labelled sample, semantic, as it stands in the chunk |
| `keep_turns` | every turn of a dated dialogue, episodic, whole, its date and speaker in front |
| `silent` | nothing: what can be answered without reading |

>>> request = WriteRequest(Memory(), "Sentence: Where is Oslo?\\nLabel: 3", "trec/1")
>>> keep_examples(request)[0].arguments["content"]
'Sentence: Where is Oslo?\\nLabel: 3'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from memalpha_kit.errors import InputError
from memalpha_kit.method.calls import FORMATS, render_calls
from memalpha_kit.method.encoding import encode_chat, encode_text
from memalpha_kit.method.memory import INSERT
from memalpha_kit.method.protocol import fit_prompt, render_compact, render_messages, tool_schemas
from memalpha_kit.records import Completion, Memory, ToolCall
from memalpha_kit.registry import Registry
from memalpha_kit.settings import MemoryConfig, ProtocolConfig


@dataclass(frozen=True)
class WriteRequest:
    """One chunk of one rollout, with everything its writer may know.

    `instance` is the instance's id, for messages; `seed` is this step's own.
    """

    memory: Memory
    chunk: str
    instance: str = ""
    step: int = 0
    rollout: int = 0
    seed: int = 0


class Writer(Protocol):
    """Answers write requests; `name` goes into the episode."""

    name: str

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """One completion per request, in order."""
        ...


Rule = Callable[[WriteRequest], list[ToolCall]]


@dataclass(frozen=True)
class ScriptedWriter:
    """A rule as a writer: its calls are rendered in a format and read back like a model's."""

    name: str
    rule: Rule
    wire: str = "qwen"

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """The rule's calls as text; no token ids, for nothing was sampled."""
        return [Completion(render_calls(self.rule(request), self.wire)) for request in requests]


@dataclass(frozen=True)
class ScriptedReplies:
    """A writer that says given replies, one per step, whatever it reads. For tests."""

    replies: Sequence[str | Completion]
    name: str = "scripted_replies"

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """The reply at each request's step; an IndexError if there is none."""
        said = [self.replies[request.step] for request in requests]
        return [Completion(reply) if isinstance(reply, str) else reply for reply in said]


# ---- rules ------------------------------------------------------------------------------------


def keep_sentences(request: WriteRequest) -> list[ToolCall]:
    """One semantic insert per sentence of the chunk's content."""
    return [_insert("semantic", text) for text in sentences(content(request.chunk))]


def keep_examples(request: WriteRequest) -> list[ToolCall]:
    """One semantic insert per labelled sample (`Sentence:`/`Label:` or `Sample:`/`Labels:`)."""
    return [_insert("semantic", match[0]) for match in SAMPLE.finditer(request.chunk)]


def keep_turns(request: WriteRequest) -> list[ToolCall]:
    """One episodic insert per turn of a dated dialogue, as `At DATE, SPEAKER said: TEXT`.

    Turns are kept whole: a long turn is a long entry.
    """
    return [
        _insert("episodic", f"At {date}, the {speaker.lower()} said: {text}")
        for date, speaker, text in turns(request.chunk)
    ]


def silent(request: WriteRequest) -> list[ToolCall]:
    """No call at all."""
    return []


WRITERS: Registry[Rule | Writer] = Registry("writer")
"""Rules by name, and whole writers: a user's module adds either."""
for _rule in (keep_sentences, keep_examples, keep_turns, silent):
    WRITERS.add(_rule.__name__, _rule)


def writer(name: str, wire: str = "qwen") -> Writer:
    """The writer of this name. Raises InputError naming the closest one."""
    found = WRITERS[name]
    return found if hasattr(found, "write") else ScriptedWriter(name, found, wire)


def _insert(store: str, text: str) -> ToolCall:
    return ToolCall(INSERT, {"memory_type": f"{store}_memory", "content": text})


# ---- reading a chunk ----------------------------------------------------------------------------

SAMPLE = re.compile(r"^(?:Sentence|Sample): .+\nLabels?: .+$", re.MULTILINE)
_FRAME = re.compile(
    r"\[Dialogue between [^\]\n]*\]\n<User>[^\n]*\n(?P<content>.*)\n<Assistant>[^\n]*", re.DOTALL
)
_DIALOGUE = re.compile(r"^\[Dialogue [^\]\n]*?(?:timestamp|on) ([^\]\n]+)\]$", re.MULTILINE)
_TURN = re.compile(r"^<(User|Assistant)>", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|\s*\n\s*")


def content(chunk: str) -> str:
    """What a chunk is about: the framed document, or the turns without header and role tags."""
    framed = _FRAME.fullmatch(chunk.strip())
    if framed:
        return framed["content"].strip()
    return "\n".join(text for _, _, text in turns(chunk)) or chunk


def turns(chunk: str) -> Iterator[tuple[str, str, str]]:
    """(date, speaker, text) of every turn in the chunk's dated dialogues, in order."""
    _, *parts = _DIALOGUE.split(chunk)  # date, dialogue, date, dialogue, ...
    for date, dialogue in zip(parts[::2], parts[1::2], strict=True):
        _, *said = _TURN.split(dialogue)
        for speaker, text in zip(said[::2], said[1::2], strict=True):
            if text.strip():
                yield date, speaker, text.strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text by punctuation; a line break always ends one. A rule of thumb."""
    starts = [0]
    ends = []
    for match in _SENTENCE_END.finditer(text):
        ends.append(match.start() + len(match[0].rstrip()))
        starts.append(match.end())
    pieces = (text[a:b].strip() for a, b in zip(starts, [*ends, len(text)], strict=True))
    return [piece for piece in pieces if piece]


# ---- language models ----------------------------------------------------------------------------


class LanguageModel(Protocol):
    """What writes replies, such as `models.local.CausalLM`; `tokenizer` is one of transformers."""

    name: str
    tokenizer: Any

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Any, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion per prompt, in order, each drawn with its own seed."""
        ...


@dataclass(frozen=True)
class ModelWriter:
    """A causal language model as a writer, prompted as `protocol_config` says."""

    lm: LanguageModel
    memory_config: MemoryConfig
    protocol_config: ProtocolConfig
    sampling: Any  # handed to `generate`, such as a `models.local.Sampling`

    @property
    def name(self) -> str:
        """`model:` and the folder's own name."""
        return f"model:{self.lm.name.rstrip('/').rpartition('/')[2]}"

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """One sampled completion per request, each from its own seed.

        Raises InputError, naming instance and chunk, if a prompt does not fit with no entry shown.
        """
        prompts = [self.prompt_ids(request) for request in requests]
        return self.lm.generate(prompts, self.sampling, [request.seed for request in requests])

    def finish(self) -> None:
        """Lets other processes finish writing, where the language model is one for all of them."""
        if hasattr(self.lm, "finish"):
            self.lm.finish(self.sampling)

    def prompt_ids(self, request: WriteRequest) -> list[int]:
        """The prompt of one request, entries shown halved until it fits."""

        protocol, tokenizer = self.protocol_config, self.lm.tokenizer

        def render(shown: int) -> list[int]:
            config = replace(self.memory_config, shown=shown)
            if protocol.prompt == "compact":
                text = render_compact(request.memory, request.chunk, config)
                return encode_text(tokenizer, text)
            messages = render_messages(request.memory, request.chunk, config, protocol)
            tools = None if FORMATS[protocol.wire].lists_tools else tool_schemas(config)
            return encode_chat(tokenizer, messages, tools, protocol.thinking)

        try:
            return fit_prompt(render, len, self.memory_config.shown, protocol.max_prompt_tokens)[0]
        except InputError as error:
            raise InputError(f"{request.instance}: chunk {request.step}: {error}") from error
