r"""What an answering model is shown: its memory or context, the source's request, the question.

The wording is our own (`texts/answer.yaml`, `texts/baseline.yaml`); what it must say is as in
`memory_server.py` and `long_context_eval.py` of the published code. The one law: a text depends on
its arguments and `VERSION` only, and changing a text means changing `VERSION`, which is part of
every request and so of every cached reply.

>>> shown = Retrieved({"core": "Nora is a vet.", "semantic": [Entry("7", "Nora keeps bees.")]})
>>> print(system_prompt(shown))  # doctest: +ELLIPSIS
You answer questions from a memory...
<semantic_memory>
1. Nora keeps bees.
</semantic_memory>...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from memalpha_kit.method.memory import MEMORY_COMPONENTS, SEARCH, load_texts
from memalpha_kit.method.protocol import one_row, without_tags
from memalpha_kit.records import Entry
from memalpha_kit.tasks import BOOK_ANSWER, BOOK_SUMMARY, CLASSIFY, CLASSIFY_BY_EXAMPLE, task

VERSION = "answer-2"
"""Of all texts of this module."""
TEXTS, BASELINE = load_texts("answer"), load_texts("baseline")


class Retrieved(NamedTuple):
    """What a reader is shown of a memory: its components that are switched on, by name, in order.

    `ids` are the shown entries of all lists, best first.
    """

    parts: Mapping[str, str | Sequence[Entry]]
    ids: tuple[str, ...] = ()


# ---- the question -----------------------------------------------------------------------------

_IN_CONTEXT = {
    CLASSIFY: BASELINE["prompts"]["classify"],
    CLASSIFY_BY_EXAMPLE: BASELINE["prompts"]["classify"],
    BOOK_SUMMARY: BASELINE["prompts"]["summary"],
    BOOK_ANSWER: BASELINE["prompts"]["book"],
}
"""The same request for a model without a memory: the same output format."""


def query_prompt(source: str, kind: Literal["memory", "context"] = "memory") -> str:
    """What is put before a question of this source, "" for nothing.

    "memory" speaks of the core and semantic memory as the paper's runs do; "context" is for
    baselines, which have none. A source "" is unknown and has no prompt; any other unknown name
    is an InputError.
    """
    prefix = task(source).question_prefix if source else ""
    return prefix if kind == "memory" else _IN_CONTEXT.get(prefix, prefix)


def asked(question: str, source: str, kind: Literal["memory", "context"] = "memory") -> str:
    """The user message: query prompt, a blank line, question; without a prompt the question."""
    prefix = query_prompt(source, kind)
    return f"{prefix}\n\n{question}" if prefix else question


def system_prompt_baseline(source: str = "") -> str:
    """The system text for a method that answers from a context: by the kind of source, never by a
    part of its name.

    Differs: `ttl_train` and `test_time_learning` are classification too, which the published code
    misses (it looks for "icl" in the name).
    """
    about_a_person = source in ("lme_train", "longmemeval", "longmemeval_s*")
    by_request = {BOOK_SUMMARY: "summary", CLASSIFY: "classify", CLASSIFY_BY_EXAMPLE: "classify"}
    role = by_request.get(query_prompt(source), "person" if about_a_person else "other")
    return BASELINE["roles"][role]


# ---- the memory -------------------------------------------------------------------------------


def system_prompt(retrieved: Retrieved, search: bool = False) -> str:
    """The role, the parts of the memory, what is in them, and how to answer.

    Entries are numbered from 1 and have no ids; a blank paragraph has no block, an empty list a
    line that says so. `search`: the search tool is offered.
    """
    described = "\n".join(f"- {MEMORY_COMPONENTS[name].answering}" for name in retrieved.parts)
    rules = TEXTS["rules"] + (f"\n- {TEXTS['searching']}" if search else "")
    blocks = [TEXTS["role"], f"# Parts of the memory\n{described}", "# The memory"]
    nothing = TEXTS["empty store"]
    for name, part in retrieved.parts.items():
        shown = without_tags(part) if isinstance(part, str) else numbered(part) or nothing
        if shown.strip():
            blocks.append(f"<{name}_memory>\n{shown}\n</{name}_memory>")
    return "\n\n".join((*blocks, f"# How to answer\n{rules}"))


def numbered(entries: Sequence[Entry]) -> str:
    """One entry per row, numbered from 1, whose text cannot begin another row; "" for none."""
    return "\n".join(f"{number}. {one_row(e.text)}" for number, e in enumerate(entries, 1))


def search_tool(stores: Sequence[str]) -> str:
    """The schema of `search_memory` over these stores, as the JSON list that a request takes."""
    store = {"type": "string", "enum": list(stores), "description": "The store to search."}
    query = {"type": "string", "description": "What to look for, in a few words."}
    function = {
        "name": SEARCH,
        "description": "Finds entries of a memory store that you have not seen yet.",
        "parameters": {
            "type": "object",
            "properties": {"memory_type": store, "query": query},
            "required": ["memory_type", "query"],
        },
    }
    return json.dumps([{"type": "function", "function": function}])
