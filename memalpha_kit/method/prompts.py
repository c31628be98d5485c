r"""What an answering model is shown: its memory or context, the source's request, the question.

All wording is our own; what each text must say is from spec evaluation.md 1.9, 2.3, 2.6, 4.3 and
method.md 3.7. The one law: a text depends on its arguments and `VERSION` only, and changing a text
means changing `VERSION`, which is part of every request and so of every cached reply.

>>> shown = Retrieved("Nora is a vet.", (Entry("7", "Nora keeps bees."),), ())
>>> print(*answer_messages(shown, "Who keeps bees?", "squad"), sep="\n----\n")  # doctest: +ELLIPSIS
You answer questions from a memory...
<semantic_memory>
1. Nora keeps bees.
</semantic_memory>...
----
Who keeps bees?
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from memalpha_kit.records import STORES, Entry
from memalpha_kit.tasks import BOOK_ANSWER, BOOK_SUMMARY, CLASSIFY, CLASSIFY_BY_EXAMPLE, task

VERSION = "answer-1"
"""Of all texts in this module."""


@dataclass(frozen=True)
class Retrieved:
    """What a reader is shown of a memory, in the order of showing; None is switched off.

    `ids` are the shown entries of both stores, best first.
    """

    core: str | None
    semantic: tuple[Entry, ...] | None
    episodic: tuple[Entry, ...] | None
    ids: tuple[str, ...] = ()


# ---- the question -----------------------------------------------------------------------------

_LEARN = (
    "The text shows sentences and the numbers of their classes. Work out what each class means, "
    "decide which one the sentence belongs to, and give that one number in \\boxed{}."
)
_IN_CONTEXT = {
    CLASSIFY: _LEARN,
    CLASSIFY_BY_EXAMPLE: _LEARN,
    BOOK_SUMMARY: "The text is what was read, in order. Use all of it to do what is asked.",
    BOOK_ANSWER: "The text is from a book. Give nothing but the answer, in as few words as it "
    "takes.",
}
"""The same request for a model without a memory: the same output format (trap B-7)."""


def query_prompt(source: str, kind: Literal["memory", "context"] = "memory") -> str:
    """What is put before a question of this source, "" for nothing.

    "memory" speaks of the core and semantic memory as the paper's runs do; "context" is for
    baselines, which have none. A source "" is unknown and has no prompt; any other unknown name
    is an InputError. Source: evaluation.md 1.9, B-7; method.md 3.7.
    """
    prefix = _prefix(source)
    return prefix if kind == "memory" else _IN_CONTEXT.get(prefix, "")


def asked(question: str, source: str, kind: Literal["memory", "context"] = "memory") -> str:
    """The user message: query prompt, a blank line, question; without a prompt the question."""
    prefix = query_prompt(source, kind)
    return f"{prefix}\n\n{question}" if prefix else question


def _prefix(source: str) -> str:
    return task(source).question_prefix if source else ""


# ---- the memory -------------------------------------------------------------------------------

_PARTS = {
    "core": "Core memory: one paragraph with the essence of everything so far.",
    "semantic": "Semantic memory: facts, knowledge and labelled samples.",
    "episodic": "Episodic memory: what happened, with its time.",
}
_ANSWERING = (
    "Take what you answer from these memories.",
    "Mention the memory that your answer rests on where that helps.",
    "Say plainly if the memories do not hold enough to answer.",
    "Be of real help to the one who asks.",
    "Be brief, but leave out nothing that was asked for.",
)
SEARCHING = (
    "Only a few entries of each store are shown. Look for more with the tool search_memory, as "
    "often as you need, before you answer or say that something is not in memory."
)


def answer_messages(
    retrieved: Retrieved, question: str, source: str = "", search: bool = False
) -> tuple[str, str]:
    """System and user text of one question to a memory; `search`: the search tool is offered."""
    return system_prompt(retrieved, search), asked(question, source)


def system_prompt(retrieved: Retrieved, search: bool = False) -> str:
    """The role, the parts of the memory, what is in them, and how to answer.

    Entries are numbered from 1 and have no ids; a blank core has no block, an empty store a line
    that says so. Source: evaluation.md 2.3, method.md 3.7.
    """
    parts = [text for name, text in _PARTS.items() if getattr(retrieved, name) is not None]
    rules = (*_ANSWERING, SEARCHING) if search else _ANSWERING
    return "\n\n".join(
        (
            "You answer questions from a memory of what was read and said before.",
            "# Parts of the memory\n" + _list(parts),
            "# The memory",
            *_blocks(retrieved),
            "# How to answer\n" + _list(rules),
        )
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _blocks(retrieved: Retrieved) -> Iterable[str]:
    if (retrieved.core or "").strip():
        yield f"<core_memory>\n{retrieved.core}\n</core_memory>"
    for store in STORES:
        entries = getattr(retrieved, store)
        if entries is not None:
            lines = numbered(entries) or "Nothing is stored here."
            yield f"<{store}_memory>\n{lines}\n</{store}_memory>"


def numbered(entries: Sequence[Entry]) -> str:
    """One entry per line, numbered from 1; "" for none."""
    return "\n".join(f"{number}. {entry.text}" for number, entry in enumerate(entries, 1))


# ---- searching --------------------------------------------------------------------------------

NOTHING_NEW = "Nothing new was found."
NO_ROOM = "There is no room for more entries. Answer from what you have seen."


def search_tool(stores: Sequence[str]) -> str:
    """The schema of `search_memory` over these stores, as the JSON list that a request takes."""
    properties = {
        "memory_type": {
            "type": "string",
            "enum": list(stores),
            "description": "The store to search.",
        },
        "query": {"type": "string", "description": "What to look for, in a few words."},
    }
    function = {
        "name": "search_memory",
        "description": "Finds entries of a memory store that you have not seen yet.",
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": ["memory_type", "query"],
        },
    }
    return json.dumps([{"type": "function", "function": function}])


# ---- baselines --------------------------------------------------------------------------------

_ABOUT_A_PERSON = ("lme_train", "longmemeval", "longmemeval_s*")
_ROLES = {
    "summary": "You have the text of a book before you. Use it to answer in detail and without "
    "mistakes.",
    "classify": "You are an expert in learning classes from labelled examples. Your final answer "
    "is the number of one class, written as \\boxed{label}.",
    "person": "You are an assistant who knows personal facts about the user from earlier talks. "
    "Recall the right ones and use them correctly.",
    "": "You are a helpful assistant. Answer correctly and briefly from the text you are given.",
}


def system_prompt_baseline(source: str = "") -> str:
    """The system text for a method that answers from a context: by the kind of source, never by a
    part of its name.

    Source: evaluation.md 4.3. Differs: `ttl_train` and `test_time_learning` are classification
    too, which the release's search for "icl" misses.
    """
    prefix = _prefix(source)
    if prefix == BOOK_SUMMARY:
        return _ROLES["summary"]
    if prefix in (CLASSIFY, CLASSIFY_BY_EXAMPLE):
        return _ROLES["classify"]
    return _ROLES["person" if source in _ABOUT_A_PERSON else ""]
