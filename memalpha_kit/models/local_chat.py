"""Chat models in this process: `LocalChat` on a model of transformers or on vLLM.

`LocalChat` also answers with the policy's adapter switched off, which makes its base model the
reader or the judge on the same card. Requests and replies are the chat records of `records`; a call
that failed has `text` None and says why in `error`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, Done
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.method.calls import calls_apart
from memalpha_kit.method.encoding import encode_chat
from memalpha_kit.models.local import Sampling
from memalpha_kit.records import Completion

if TYPE_CHECKING:
    from memalpha_kit.models.local import CausalLM
    from memalpha_kit.settings import ModelConfig


@dataclass(frozen=True)
class LocalChat:
    """A causal language model as a chat model. Temperature 0 is greedy; a reply never raises.

    `lm` is a `CausalLM` or anything with its `name`, `tokenizer`, `batch_size` and `generate`.
    `adapter_off` answers with the base model below a peft adapter; the adapter is on again
    afterwards. Tools are listed by the chat template and calls are read as Qwen3 writes them,
    `<tool_call>{"name": ..., "arguments": ...}</tool_call>`; contents cannot become control tokens.
    """

    lm: Any
    adapter_off: bool = False

    @property
    def name(self) -> str:
        """The folder's own name, with `base of` in front if the adapter is off."""
        own = self.lm.name.rstrip("/").rpartition("/")[2]
        return f"base of {own}" if self.adapter_off else own

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """One reply per request, in order; those sampled alike share batches, longest first.

        A prompt that does not fit the model's window is a reply with `error`. Raises ModelGone if
        the adapter is to be off and there is none.
        """
        if self.adapter_off and not hasattr(self.lm.model, "disable_adapter"):
            raise ModelGone(f"{self.lm.name}: expected a model with an adapter, found one without")
        replies: dict[int, ChatReply] = {}
        prompts = [self._prompt(asked) for asked in requests]
        groups: dict[Sampling, list[int]] = {}
        for place in sorted(range(len(prompts)), key=lambda place: -len(prompts[place])):
            asked = requests[place]
            sampling = Sampling(asked.temperature, asked.max_tokens, asked.top_p)
            groups.setdefault(sampling, []).append(place)
        for sampling, places in groups.items():
            for start in range(0, len(places), self.lm.batch_size):
                batch = places[start : start + self.lm.batch_size]
                seeds = [requests[place].seed or 0 for place in batch]
                found = self._generate([prompts[place] for place in batch], sampling, seeds)
                for place, reply in zip(batch, found, strict=True):
                    replies[place] = reply
                    if done:
                        done(place, reply)
        return [replies[place] for place in range(len(requests))]

    def check(self, asked: ChatRequest) -> None:
        """Raises InputError if the chat template does not take such a request, or its tools."""
        self._prompt(asked)

    def _prompt(self, asked: ChatRequest) -> list[int]:
        messages = [_as_text(fields) for fields in asked.messages]
        tools = json.loads(asked.tools) if asked.tools else None
        return encode_chat(self.lm.tokenizer, messages, tools, asked.thinking)

    def _generate(
        self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]
    ) -> list[ChatReply]:
        start = time.perf_counter()
        try:
            with self.lm.model.disable_adapter() if self.adapter_off else nullcontext():
                completions = self.lm.generate(prompts, sampling, seeds)
        except InputError as error:  # a prompt without tokens or above the window
            if len(prompts) == 1:
                return [ChatReply(None, "unanswerable", error=str(error))]
            pairs = zip(prompts, seeds, strict=True)
            return [self._generate([ids], sampling, [seed])[0] for ids, seed in pairs]
        elapsed_s = time.perf_counter() - start
        return [_reply(completion, elapsed_s) for completion in completions]


@dataclass(frozen=True)
class VllmLM:
    """What `LocalChat` needs of a model, on a `vllm.LLM` of this process: prompts go in as ids."""

    llm: Any
    name: str
    batch_size: int = 256  # requests handed over at a time; vLLM schedules them by itself

    @property
    def tokenizer(self) -> Any:
        """The one that vLLM loaded, of transformers."""
        return self.llm.get_tokenizer()

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """As `CausalLM.generate`, without log-probabilities. Raises InputError for a bad prompt."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
            )
            for seed in seeds
        ]
        prompts = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
        try:
            outputs = self.llm.generate(prompts, params, use_tqdm=False)
        except ValueError as error:  # a prompt above the model's window
            raise InputError(f"{self.name}: {error}") from error
        return [
            Completion(
                output.outputs[0].text,
                tuple(output.prompt_token_ids),
                tuple(output.outputs[0].token_ids),
                finish="length" if output.outputs[0].finish_reason == "length" else "stop",
            )
            for output in outputs
        ]


@dataclass
class AskedModel:
    """A chat model that is known by its name alone, and found when the policy is loaded.

    A run's settings keep the name; addresses and weights are not part of what was asked for.
    """

    name: str
    model: ChatModel | None = field(default=None, repr=False)

    def meet(self, lm: CausalLM, config: ModelConfig) -> None:
        """Takes the base model of the policy `lm`, unless there is a model already.

        Unsloth's engine is the base where it is asked without an adapter; TRL's holds merged
        weights, so there transformers answers, on the policy's own weights below its adapter.
        """
        engine = getattr(lm.model, "vllm_engine", None)
        if self.model is None and config.backend == "unsloth" and engine is not None:
            self.model = LocalChat(VllmLM(engine, f"base of {lm.name}"))
        if self.model is None:  # few prompts at a time: their caches lie on the policy's card
            self.model = LocalChat(replace(lm, batch_size=8), adapter_off=True)

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """As its model's."""
        assert self.model  # it was met before anybody asks
        return self.model.chat(requests, done)


def _reply(completion: Completion, elapsed_s: float) -> ChatReply:
    """The reply without its tool calls, which stand beside it."""
    text, tools = calls_apart(completion.text, completion.finish)
    finish = "tool_calls" if tools and completion.finish == "stop" else completion.finish
    counts = len(completion.prompt_ids), len(completion.completion_ids)
    return ChatReply(text, finish, tools, *counts, latency_s=elapsed_s)


def _as_text(fields: dict[str, Any]) -> dict[str, str]:
    """A message with its tool calls written out, so that they are encoded as ordinary text.

    Raises InputError for a content that is not text.
    """
    content = fields["content"] or ""
    if not isinstance(content, str):
        raise InputError(f"message: expected a text as content, found {type(content).__name__}")
    for call in fields.get("tool_calls") or ():
        function = call["function"]
        body = f'{{"name": {json.dumps(function["name"])}, "arguments": {function["arguments"]}}}'
        content = f"{content}\n<tool_call>\n{body}\n</tool_call>".lstrip("\n")
    return {"role": fields["role"], "content": content}
