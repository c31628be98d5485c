"""What an answering model is shown: per source, per part of the memory, for baselines."""

from __future__ import annotations

import json

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.lab.world import SOURCE
from memalpha_kit.method.prompts import (
    Retrieved,
    asked,
    query_prompt,
    search_tool,
    system_prompt,
    system_prompt_baseline,
)
from memalpha_kit.records import Entry
from memalpha_kit.tasks import TASKS

BEES, BOATS = Entry("17", "Nora keeps bees."), Entry("18", "2024-05-02: Tom bought a boat.")
FULL = Retrieved("Nora is a vet.", (BEES,), (BOATS,))

NONE = ("squad", "hotpotqa", "perltqa", "lme_train", "accurate_retrieval", "ruler_qa1_197K")
NONE += ("ruler_qa2_421K", "longmemeval_s*", "")
SUMMARY = ("booksum", "infbench_sum_eng_shots2", "long_range_understanding")
RULES = ("pubmed-rct", "icl_trec_coarse_6600shot_balance", "icl_trec_fine_6400shot_balance")
EXAMPLES = ("ttl_train", "test_time_learning", "icl_banking77_5900shot_balance")
EXAMPLES += ("icl_clinic150_7050shot_balance", "icl_nlu_8296shot_balance")


def test_every_source_of_the_paper_has_the_query_prompt_of_its_group():
    """Spec evaluation.md 1.9, method.md 3.7."""
    assert {query_prompt(name) for name in NONE} == {""}
    texts = [{query_prompt(name) for name in group} for group in (SUMMARY, RULES, EXAMPLES)]
    assert [len(found) for found in texts] == [1, 1, 1]
    summary, rules, examples = (found.pop() for found in texts)
    assert "summary" in summary and "core memory" in summary and "boxed" not in summary
    assert "core memory" in rules and "\\boxed{}" in rules and "examples" not in rules
    assert examples.startswith(rules) and "semantic memory" in examples
    assert "few words" in query_prompt("infbench_qa_eng_shots2")


@pytest.mark.parametrize("name", TASKS)
def test_baselines_get_no_word_about_a_memory_and_the_same_output_format(name):
    """B-7."""
    with_memory, neutral = query_prompt(name), query_prompt(name, "context")
    assert bool(neutral) == bool(with_memory) and "memory" not in neutral
    assert ("\\boxed{" in neutral) == ("\\boxed{" in with_memory)
    assert "memory" not in system_prompt_baseline(name)


def test_the_query_prompt_stands_before_the_question():
    assert asked("Who?", "squad") == "Who?"
    assert asked("Sum it up.", "booksum") == query_prompt("booksum") + "\n\nSum it up."


def test_a_model_can_be_asked_about_the_made_up_world():
    assert asked("what is the box of Nora", SOURCE) == "what is the box of Nora"
    assert system_prompt_baseline(SOURCE) == system_prompt_baseline("squad")


def test_an_unknown_source_is_an_error_that_names_the_closest():
    for use in (query_prompt, system_prompt_baseline):
        with pytest.raises(InputError, match="found 'squid'; did you mean 'squad'"):
            use("squid")


def test_entries_are_numbered_and_have_no_ids():
    system = system_prompt(FULL)
    assert "<core_memory>\nNora is a vet.\n</core_memory>" in system
    assert "<semantic_memory>\n1. Nora keeps bees.\n</semantic_memory>" in system
    assert "<episodic_memory>\n1. 2024-05-02: Tom bought a boat.\n</episodic_memory>" in system
    assert "17" not in system and "18" not in system


def test_a_blank_core_has_no_block_an_empty_store_says_so_and_what_is_off_is_not_mentioned():
    system = system_prompt(Retrieved(" \n", (), None))
    assert "<core_memory>" not in system and "Core memory" in system
    assert "<semantic_memory>\nNothing is stored here.\n</semantic_memory>" in system
    assert "pisodic" not in system
    assert "emantic" not in system_prompt(Retrieved(None, None, None))


def test_searching_is_mentioned_only_where_the_tool_is_offered():
    assert "search_memory" in system_prompt(FULL, search=True)
    assert "search_memory" not in system_prompt(FULL)
    [tool] = json.loads(search_tool(["episodic"]))
    parameters = tool["function"]["parameters"]
    assert parameters["properties"]["memory_type"]["enum"] == ["episodic"]
    assert parameters["required"] == ["memory_type", "query"]


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (SUMMARY, "book"),
        ((*RULES, *EXAMPLES, "trec_coarse"), "\\boxed{label}"),
        (("lme_train", "longmemeval_s*", "longmemeval"), "about the user"),
        (("squad", "hotpotqa", "ruler_qa1_197K", ""), "briefly"),
    ],
)
def test_the_system_text_of_baselines_goes_by_the_kind_of_source(names, word):
    """Spec evaluation.md 4.3; the release takes ttl_train for a question about facts."""
    [text] = {system_prompt_baseline(name) for name in names}
    assert word in text
