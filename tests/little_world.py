"""Small made-up data sets and a model that can do everything a served model is asked for.

Every chunk says things like "The code of Zora is 17."; every question asks for one code. The little
model answers from whatever text it is shown, so a method that lost a fact loses its question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memalpha_kit.data.instances import save_instances
from memalpha_kit.records import QA, Instance, make_instance

MEMALPHA = (
    *("squad", "hotpotqa", "perltqa", "icl_trec_coarse_6600shot_balance"),
    *("icl_nlu_8296shot_balance", "pubmed-rct", "booksum"),
)
BENCHMARK = (
    *("ruler_qa1_197K", "ruler_qa2_421K", "longmemeval_s*"),
    *("icl_trec_coarse_6600shot_balance", "icl_nlu_8296shot_balance"),
    *("icl_trec_fine_6400shot_balance", "icl_clinic150_7050shot_balance"),
    *("icl_banking77_5900shot_balance", "infbench_sum_eng_shots2"),
)
FACT = re.compile(r"The code of (\w+) is (\d+)\.")
ASKED = re.compile(r"What is the code of (\w+)\?")


def instance(source: str, number: int, questions: int = 3, chunks: int = 2) -> Instance:
    """One instance: its facts are dealt over its chunks, and each is asked for once."""
    names = [f"{_word(source)}{number}x{j}" for j in range(questions)]
    codes = [str(10 + (7 * number + 3 * j) % 90) for j in range(questions)]
    facts = [f"The code of {n} is {c}." for n, c in zip(names, codes, strict=True)]
    texts = [" ".join([f"Part {i}.", *facts[i::chunks]]) for i in range(chunks)]
    asked = [
        QA(f"q{j}", f"What is the code of {names[j]}?", (codes[j],), j % chunks)
        for j in range(questions)
    ]
    return make_instance(source, texts, asked, "Keep what later questions may ask for.")


def _word(source: str) -> str:
    return "".join(part.capitalize() for part in re.findall("[a-z]+", source))


def save_data(folder: Path, sources: Sequence[str], instances: int = 1, **sizes: int) -> Path:
    """A data set with `instances` of every source in its test part."""
    built = [instance(source, i, **sizes) for source in sources for i in range(instances)]
    save_instances(folder / "test.parquet", built)
    return folder


def little_model(body: dict[str, Any]) -> str | dict[str, Any]:
    """What a served model replies: writes memories, keeps summaries, judges, answers."""
    said = [str(message.get("content") or "") for message in body["messages"]]
    text, last = "\n".join(said), said[-1]
    tools = {tool["function"]["name"] for tool in body.get("tools", ())}
    if "new_memory_insert" in tools:
        return _insert(last)
    if "<section>" in last or "<information>" in last:
        kept = " ".join(dict.fromkeys(match[0] for match in FACT.finditer(text)))
        return f"<think>{kept}</think>" if "<information>" in last else kept
    if "<accepted>" in last:
        gold = re.search(r"<accepted>\s*(\S+)", last)[1]
        return "yes" if gold in re.search(r"<response>(.*)</response>", last, re.S)[1] else "no"
    name = ASKED.search(last)[1]
    known = {fact[1]: fact[2] for fact in FACT.finditer(text)}
    if "search_memory" in tools and name not in known:
        return _call("search_memory", memory_type="semantic_memory", query=name)
    return f"\\boxed{{{known[name]}}}" if name in known else "I do not know."


def _insert(text: str) -> dict[str, Any]:
    calls = [_use(n, "new_memory_insert", memory_type="semantic_memory", content=fact[0])
             for n, fact in enumerate(FACT.finditer(text))]  # fmt: skip
    return {"content": "", "tool_calls": calls} if calls else {"content": "Done."}


def _call(tool: str, **arguments: str) -> dict[str, Any]:
    return {"content": "", "tool_calls": [_use(0, tool, **arguments)]}


def _use(number: int, tool: str, **arguments: str) -> dict[str, Any]:
    function = {"name": tool, "arguments": json.dumps(arguments)}
    return {"id": f"call_{number}", "type": "function", "function": function}
