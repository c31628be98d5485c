"""Language models as writers: prompts that fit as token ids, and one sampled reply per request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from memalpha_kit.errors import InputError
from memalpha_kit.method.encoding import encode_chat, encode_text
from memalpha_kit.method.memory import empty
from memalpha_kit.method.protocol import fit_prompt, render_chat, render_compact
from memalpha_kit.records import Completion, WriteRequest
from memalpha_kit.settings import MemoryConfig, ProtocolConfig


class LanguageModel(Protocol):
    """What writes replies, such as `models.local.CausalLM`."""

    @property
    def name(self) -> str:
        """The model's name or folder."""

    @property
    def tokenizer(self) -> Any:
        """A tokenizer of transformers."""

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
        asked = {(r.memory, r.chunk): r for r in requests}  # rollouts often share a prompt
        ids = {key: self.prompt_ids(request) for key, request in asked.items()}
        prompts = [ids[request.memory, request.chunk] for request in requests]
        return self.lm.generate(prompts, self.sampling, [request.seed for request in requests])

    def finish(self) -> None:
        """Lets other processes finish writing, where the language model is one for all of them."""
        if hasattr(self.lm, "finish"):
            self.lm.finish(self.sampling)

    def prompt_ids(self, request: WriteRequest) -> list[int]:
        """The prompt of one request, entries shown halved until it fits."""
        try:
            return prompt_ids(self.lm.tokenizer, request, self.memory_config, self.protocol_config)
        except InputError as error:
            raise InputError(f"{request.instance}: chunk {request.step}: {error}") from error


def prompt_ids(
    tokenizer: Any, request: WriteRequest, memory: MemoryConfig, protocol: ProtocolConfig
) -> list[int]:
    """What a model with this tokenizer is asked. Raises InputError if it cannot be asked so."""

    def render(shown: int) -> list[int]:
        config = replace(memory, shown=shown)
        if protocol.prompt == "compact":
            return encode_text(tokenizer, render_compact(request.memory, request.chunk, config))
        messages, tools = render_chat(request.memory, request.chunk, config, protocol)
        return encode_chat(tokenizer, messages, tools, protocol.thinking)

    return fit_prompt(render, len, memory.shown, protocol.max_prompt_tokens)


def check_prompts(tokenizer: Any, memory: MemoryConfig, protocol: ProtocolConfig) -> None:
    """Raises InputError where no chunk could be put to a model with this tokenizer.

    Said before its weights are loaded: a chat template that is missing or leaves out the tools, a
    limit that the instructions alone exceed.
    """
    prompt_ids(tokenizer, WriteRequest(empty(memory), ""), memory, protocol)
