"""A user's own tool, memory component, reward term and writer: a few lines each."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.figures.curves import plot_rewards
from memalpha_kit.method import memory as memories
from memalpha_kit.method import rewards, writers
from memalpha_kit.method.calls import parse_reply, render_calls
from memalpha_kit.method.episode import Environment, play
from memalpha_kit.method.memory import Component, Tool, apply, empty
from memalpha_kit.method.prompts import system_prompt
from memalpha_kit.method.protocol import render_messages, tool_schemas
from memalpha_kit.method.ranking import search
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.method.retrieval import Retrieval, View
from memalpha_kit.method.saved import load_episodes, save_episodes
from memalpha_kit.method.writers import ScriptedReplies, writer
from memalpha_kit.records import QA, Completion, Entry, Episode, ToolCall, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig, RewardConfig
from memalpha_kit.training.rollouts import observe, summarise


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What a test registers is gone after it."""
    for registry in (memories.TOOLS, memories.MEMORY_COMPONENTS, rewards.TERMS, writers.WRITERS):
        registry.names()
        monkeypatch.setattr(registry, "_things", dict(registry._things))


# --- The user's module ----------------------------------------------------------------------------


def append(memory, request, config):
    """Adds a sentence to an entry, unless it ends with it."""
    entries = memory.part(request.component)
    text = entries.get(request.id).text
    if text.endswith(request.text):
        return "unchanged"
    longer = entries.replacing(request.id, f"{text} {request.text}")
    return memory.with_part(request.component, longer)


def too_long(memory, request, config):
    """Refuses what is no sentence."""
    return "" if len(request.text) < 40 else "too_long"


MEANINGS = {"sentence": "What to add."}
APPEND = Tool("Add to an entry.", append, "sentence", True, meanings=MEANINGS, refuse=too_long)
PLANS = Component(
    keeps="Plans memory lists what somebody wants to do.",
    task="Plans memory: add every intention.",
    answering="Plans memory: what somebody wants to do.",
)
WITH_APPEND = MemoryConfig(tools=(*MemoryConfig().tools, "memory_append"))
WITH_PLANS = MemoryConfig(components=("plans",))
INSTANCE = make_instance(
    "squad", ["Nora keeps bees. She will sell."], [QA("q0", "Who?", ("Nora",))]
)


def brevity(scene):
    """1 for a step with at most one call."""
    return [float(len(step.calls) <= 1) for step in scene.episode.steps]


def shout(request):
    """Stores the chunk in capitals."""
    arguments = {"memory_type": "semantic_memory", "content": request.chunk.upper()}
    return [ToolCall("new_memory_insert", arguments)]


# --- What the kit makes of it ---------------------------------------------------------------------


SO = {"memory_id": "1", "sentence": "So."}


@pytest.mark.parametrize(
    ("arguments", "config", "code", "text"),
    [
        (SO, WITH_APPEND, "", "Nora keeps bees. So."),
        (SO | {"sentence": "bees."}, WITH_APPEND, "unchanged", "Nora keeps bees."),
        (SO | {"memory_id": "9"}, WITH_APPEND, "not_found", "Nora keeps bees."),
        (SO | {"sentence": "x" * 50}, WITH_APPEND, "too_long", "Nora keeps bees."),
        ({"memory_id": "1"}, WITH_APPEND, "missing_argument", "Nora keeps bees."),
        (SO, MemoryConfig(), "not_offered", "Nora keeps bees."),
    ],
)
def test_a_tool_does_what_its_module_says_and_nothing_else(arguments, config, code, text):
    memories.TOOLS.add("memory_append", APPEND)
    memory = replace(empty(config), semantic=(Entry("1", "Nora keeps bees."),), next_id=2)
    call = ToolCall("memory_append", {"memory_type": "semantic_memory", **arguments})
    memory, done = apply(memory, call, config)
    assert (done.detail, memory.semantic) == (code, (Entry("1", text),))


def test_a_tool_is_offered_rendered_and_read_where_it_is_switched_on():
    memories.TOOLS.add("memory_append", APPEND)
    *_, offered = tool_schemas(WITH_APPEND)
    assert offered["function"]["name"] == "memory_append"
    properties = offered["function"]["parameters"]["properties"]
    assert list(properties) == ["memory_type", "sentence", "memory_id"]
    assert properties["sentence"]["description"] == "What to add."
    assert len(tool_schemas(MemoryConfig())) == 3
    arguments = {"memory_type": "semantic_memory", "sentence": "So.", "memory_id": "1"}
    call = ToolCall("memory_append", arguments)
    for wire in ("qwen", "text", "compact"):
        [read] = parse_reply(render_calls([call], wire), "stop", wire)
        assert (read.name, read.arguments) == (call.name, arguments)


def test_what_nobody_registered_and_a_tool_that_does_nothing_are_refused():
    with pytest.raises(InputError, match="memory component: .*'plans'"):
        empty(WITH_PLANS)
    with pytest.raises(InputError, match="tool: .*'memory_append'.*--extend MODULE"):
        empty(WITH_APPEND)
    with pytest.raises(TypeError, match="run"):
        Tool("It says nothing of what it does.")
    with pytest.raises(InputError, match="expected a new name"):
        memories.TOOLS.add("memory_update", APPEND)


def test_a_component_is_written_shown_searched_read_and_saved(tmp_path):
    memories.MEMORY_COMPONENTS.add("plans", PLANS)
    arguments = {"memory_type": "plans_memory", "content": "Nora wants to sell honey."}
    said = ScriptedReplies([render_calls([ToolCall("new_memory_insert", arguments)], "qwen")])
    world = Environment(WITH_PLANS, ProtocolConfig(), BestEntry())
    [episode] = play([INSTANCE], said, world).episodes
    memory = episode.memory
    assert memory.part("plans") == (Entry("1", "Nora wants to sell honey."),)
    [(entry, _)] = search(memory, "plans", "honey", 5)
    assert entry.id == "1"
    system, user = render_messages(memory, "A chunk.", WITH_PLANS, ProtocolConfig())
    assert "<plans_memory> (most recent 1 of 1 entries)\n[1] Nora wants" in system["content"]
    assert PLANS.keeps in system["content"] and f"4. {PLANS.task}" in user["content"]
    answering = system_prompt(View(memory, Retrieval()).show("honey?"))
    assert PLANS.answering in answering and "1. Nora wants to sell honey." in answering
    save_episodes(tmp_path / "e.jsonl", [episode])
    assert load_episodes(tmp_path / "e.jsonl") == [episode]
    call = ToolCall("new_memory_insert", arguments)
    assert apply(empty(MemoryConfig()), call, MemoryConfig())[1].detail == "disabled"


def test_a_term_is_in_the_reward_the_metrics_and_the_curves():
    rewards.TERMS.add("brevity", brevity)
    world = Environment(
        MemoryConfig(), ProtocolConfig(), BestEntry(), reward=RewardConfig(content=0.0)
    )
    with_term = replace(world, reward=RewardConfig(content=0.0, others={"brevity": 0.5}))
    plain, played = (play([INSTANCE], writer("silent"), one) for one in (world, with_term))
    [name] = played.rewards
    assert played.rewards[name].others == {"brevity": (1.0,)}
    [without] = rewards.step_rewards(plain.rewards[name], world.reward)
    assert rewards.step_rewards(played.rewards[name], with_term.reward) == (without + 0.5,)
    row = summarise([observe(played.episodes, played.rewards, [], "words")])
    assert row["term_brevity"] == 1.0
    figure = plot_rewards(pd.DataFrame([row | {"step": 1}, row | {"step": 2}]))
    assert "brevity" in [axis.get_title("left") for axis in figure.axes]


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (None, "reward term: .*'brevity'"),
        (lambda scene: [1.0] * 9, r"or one for each of 1 steps, found \[1.0, 1.0, "),
        (lambda scene: math.nan, "expected a finite number, or .* found nan"),
        (lambda scene: "much", "found 'much'"),
        (lambda scene: {"much": 1.0}, "found {'much': 1.0}"),
    ],
)
def test_a_term_that_is_unknown_or_gives_no_number_a_step_is_refused(term, message):
    if term:
        rewards.TERMS.add("brevity", term)
    reward = RewardConfig(others={"brevity": 1.0})
    with pytest.raises(InputError, match=message):
        world = Environment(MemoryConfig(), ProtocolConfig(), BestEntry(), reward=reward)
        play([INSTANCE], writer("silent"), world)


@pytest.mark.parametrize("value", [np.float32(0.5), np.array([0.5], "float32"), [0.5], 0.5])
def test_a_term_may_give_numbers_of_numpy(value):
    rewards.TERMS.add("brevity", lambda scene: value)
    reward = RewardConfig(others={"brevity": 1.0})
    world = Environment(MemoryConfig(), ProtocolConfig(), BestEntry(), reward=reward)
    [parts] = play([INSTANCE], writer("silent"), world).rewards.values()
    assert json.dumps(parts.others["brevity"]) == "[0.5]"


class Echo:
    """A whole writer: it says what it reads."""

    name = "echo"

    def write(self, requests):
        return [Completion(request.chunk) for request in requests]


def test_a_rule_and_a_whole_writer_are_found_by_name():
    writers.WRITERS.add("shout", shout)
    writers.WRITERS.add("echo", Echo())
    world = Environment(MemoryConfig(), ProtocolConfig(wire="text"), BestEntry())
    [episode] = play([INSTANCE], writer("shout", "text"), world).episodes
    assert isinstance(episode, Episode) and episode.writer == "shout"
    assert episode.memory.semantic == (Entry("1", INSTANCE.chunks[0].upper()),)
    [episode] = play([INSTANCE], writer("echo"), world).episodes
    assert episode.steps[0].completion.text == INSTANCE.chunks[0]
