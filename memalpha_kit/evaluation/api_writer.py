"""A chat model as the writer of a memory.

The untrained policy, gpt-4.1-mini and every other model behind an endpoint write with the same
instructions as the trained policy. With the wire "qwen" they are offered the tools of their
endpoint, and their calls come back beside the text; with "text" they are asked for marker text, for
servers without a tool parser and models whose chat template ignores tools.

A request that failed ends the memory of its instance, with the reason in `failed`: a chunk that
was never read must not pass for one with nothing to store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, message
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.journal import Spent
from memalpha_kit.method.calls import FORMATS
from memalpha_kit.method.protocol import fit_prompt, render_messages, tool_schemas
from memalpha_kit.records import Completion, WriteRequest
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.tokens import Counter


@dataclass(frozen=True)
class ApiWriter:
    """Writes with a chat model; `counter` measures prompts against `protocol.max_prompt_tokens`."""

    model: ChatModel
    memory: MemoryConfig
    protocol: ProtocolConfig
    counter: Counter
    temperature: float = 0.0
    spent: dict[str, Spent] = field(default_factory=dict)  # by instance
    failed: dict[str, str] = field(default_factory=dict)  # by instance, why

    @property
    def name(self) -> str:
        """`api:` and the model's name."""
        return f"api:{self.model.name}"

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """One completion per request; finish "error" where the instance's request failed.

        Raises ModelGone, and InputError for a chunk that does not fit with no entry shown.
        """
        live = [place for place, asked in enumerate(requests) if asked.instance not in self.failed]
        replies = self.model.chat([self._request(requests[i]) for i in live]) if live else []
        completions = [Completion("", finish="error") for _ in requests]
        for place, reply in zip(live, replies, strict=True):
            completions[place] = self._completion(requests[place], reply)
        return completions

    def _request(self, asked: WriteRequest) -> ChatRequest:
        def render(shown: int) -> list[dict[str, str]]:
            config = replace(self.memory, shown=shown)
            return render_messages(asked.memory, asked.chunk, config, self.protocol)

        def count(messages: list[dict[str, str]]) -> int:
            return sum(self.counter.count(said["content"]) for said in messages)

        try:
            limit = self.protocol.max_prompt_tokens
            messages, _ = fit_prompt(render, count, self.memory.shown, limit)
        except InputError as error:
            raise InputError(f"{asked.instance}: chunk {asked.step}: {error}") from error
        listed = FORMATS[self.protocol.wire].lists_tools
        schemas = None if listed else tool_schemas(self.memory)
        return ChatRequest(
            tuple(message(said["role"], said["content"]) for said in messages),
            max_tokens=self.protocol.max_reply_tokens,
            temperature=self.temperature,
            thinking=self.protocol.thinking,
            tools=json.dumps(schemas) if schemas else "",
            seed=asked.seed if self.temperature else None,
        )

    def _completion(self, asked: WriteRequest, reply: ChatReply) -> Completion:
        spent = self.spent.setdefault(asked.instance, Spent())
        spent.add(reply.prompt_tokens, reply.completion_tokens)
        if reply.error or (reply.text is None and not reply.tools):
            reason = reply.error or "the reply has neither text nor calls"
            self.failed[asked.instance] = f"chunk {asked.step}: {reason}"
            return Completion("", finish="error")
        finish = "length" if reply.finish == "length" else "stop"
        return Completion(reply.text or "", finish=finish, tools=reply.tools)
