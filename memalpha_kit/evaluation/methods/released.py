"""The published runs by the names of the public scripts: a method and what they set differently.

`release-gpt-4o-mini` is what `long_context_eval.py --model gpt-4o-mini` ran, as far as an endpoint
can repeat it. Which model answers, its token counter and files are still to be said: the release
counts with Qwen3-32B's tokenizer (gpt-4o-mini: `tiktoken:o200k_base`).
Source: spec evaluation.md 1.3, 1.6 to 1.9, 4.2 to 4.6.
"""

from __future__ import annotations

from typing import Any

_ASKED = {"temperature": 0.1, "wording": "memory"}
_QWEN = _ASKED | {"thinking": True, "cut": "prompt"}  # window 30,000
_GPT = _ASKED | {"thinking": None, "cut": "user", "window": 126_000}
_BM25 = {"top_k": 2, "behaviour": "release"}
_MEMAGENT = {"temperature": 0.1, "top_p": 0.95, "thinking": None, "behaviour": "release"}
_AGENT = {
    "protocol.wire": "text",
    "protocol.execute_truncated": True,
    "memory.behaviour": "release",
    "behaviour": "release",
    "temperature": 0.7,
}

RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "release-agent": ("memory", _AGENT),
    "release-agent-agentic": ("memory", _AGENT | {"reader": "agentic"}),
    "release-gpt-4.1-mini-agent": (
        "memory",
        {k: v for k, v in _AGENT.items() if not k.startswith("protocol.")}
        | {"writer": "api", "write_temperature": 0.6},
    ),
    "release-qwen3-32b": ("long-context", _QWEN),
    "release-qwen3-32b-bm25": ("bm25", _QWEN | _BM25),
    "release-gpt-4o-mini": ("long-context", _GPT),
    "release-gpt-4o-mini-bm25": ("bm25", _GPT | _BM25),
    "release-gpt-4.1-mini": ("long-context", _GPT | {"window": 1_000_000}),  # no cut
    "release-mem1": ("mem1", _QWEN | {"behaviour": "release", "state_temperature": 0.01}),
    "release-memagent-14b": ("memagent", _MEMAGENT),
    "release-memagent-7b": ("memagent", _MEMAGENT),
    "release-without-chunks": ("closed-book", _QWEN),
}
"""Name -> (method, options)."""
