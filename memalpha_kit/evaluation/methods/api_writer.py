"""A chat model as the writer of a memory, with the tools of its endpoint.

The untrained policy, gpt-4.1-mini and every other model behind an endpoint write with the same
instructions as the trained policy (spec evaluation.md 1.8). Their calls come back beside the text;
they are put into the reply as the `qwen` wire writes them, so that one parser reads all writers.

A request that failed ends the memory of its instance, with the reason in `failed`: a chunk that
was never read must not pass for one with nothing to store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.methods.journal import Spent
from memalpha_kit.method.protocol import fit_prompt, render_messages, tool_schemas
from memalpha_kit.method.writers import WriteRequest
from memalpha_kit.records import ChatModel, ChatReply, ChatRequest, Completion, message
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.tokens import Counter


@dataclass(frozen=True)
class ApiWriter:
    """Writes with a chat model. Replies follow the `qwen` wire, without thinking, whatever it says.

    `counter` measures prompts against `protocol_config.max_prompt_tokens` (A-8).
    """

    model: ChatModel
    memory_config: MemoryConfig
    protocol_config: ProtocolConfig
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
        replies = self.model.chat([self._asked(requests[place]) for place in live]) if live else []
        found = dict(zip(live, replies, strict=True))
        return [self._completion(asked, found.get(i)) for i, asked in enumerate(requests)]

    def _asked(self, asked: WriteRequest) -> ChatRequest:
        protocol = replace(self.protocol_config, wire="qwen")

        def render(shown: int) -> list[dict[str, str]]:
            config = replace(self.memory_config, shown=shown)
            return render_messages(asked.memory, asked.chunk, config, protocol)

        def count(messages: list[dict[str, str]]) -> int:
            return sum(self.counter.count(said["content"]) for said in messages)

        try:
            messages, _ = fit_prompt(
                render, count, self.memory_config.shown, protocol.max_prompt_tokens
            )
        except InputError as error:
            raise InputError(f"{asked.instance}: chunk {asked.step}: {error}") from error
        schemas = tool_schemas(self.memory_config)
        return ChatRequest(
            tuple(message(said["role"], said["content"]) for said in messages),
            max_tokens=protocol.max_reply_tokens,
            temperature=self.temperature,
            thinking=protocol.thinking,
            tools=json.dumps(schemas) if schemas else "",
            seed=asked.seed if self.temperature else None,
        )

    def _completion(self, asked: WriteRequest, reply: ChatReply | None) -> Completion:
        if reply is not None and (reply.error or (reply.text is None and not reply.tools)):
            reason = reply.error or "the reply has neither text nor calls"
            self.failed[asked.instance] = f"chunk {asked.step}: {reason}"
            reply = None
        if reply is None:
            return Completion("", finish="error")
        spent = self.spent.setdefault(asked.instance, Spent())
        spent.add(reply.prompt_tokens, reply.completion_tokens)
        finish = "length" if reply.finish == "length" else "stop"
        return Completion(reply_text(reply), finish=finish)


def reply_text(reply: ChatReply) -> str:
    """What was said after the reasoning, then the calls, each as the `qwen` wire writes it.

    Arguments stay as the model wrote them, JSON text within JSON: the parser judges them.
    """
    said = (reply.text or "").rpartition("</think>")[2]
    said = "" if "<think>" in said else said.strip()
    calls = (
        f"<tool_call>\n{json.dumps({'name': use.name, 'arguments': use.arguments})}\n</tool_call>"
        for use in reply.tools
    )
    return "\n".join(filter(None, (said, *calls)))
