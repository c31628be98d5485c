"""Credit of entries, calls and steps: leave-one-out differences, exact and sampled."""

from __future__ import annotations

import dataclasses
import random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_episodes import random_case, random_episode

from memalpha_kit.cli import main
from memalpha_kit.data.instances import save_instances
from memalpha_kit.figures.curves import plot_measures, table_measures
from memalpha_kit.figures.memories import on_front, plot_credit, plot_fronts
from memalpha_kit.lab import miniature
from memalpha_kit.method import metrics
from memalpha_kit.method.credit import (
    authors,
    call_credits,
    credits,
    measure,
    most_changed,
    parts,
    without,
)
from memalpha_kit.method.episode import play
from memalpha_kit.method.memory import apply, empty
from memalpha_kit.method.readers import READERS, reader
from memalpha_kit.method.rewards import rewards, step_rewards
from memalpha_kit.records import QA, Answer, Entry, Memory, Question, make_instance
from memalpha_kit.settings import RewardConfig, load_profile
from memalpha_kit.tokens import counter

WORDS = ("bees", "boats", "Nora", "Tom", "hum", "Lund", "red", "keeps")
BEST = reader("best_entry")
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
labelled = st.tuples(texts, st.integers(0, 2)).map(lambda t: f"Sentence: {t[0]}\nLabel: {t[1]}")
questions = st.lists(st.tuples(texts, st.sampled_from(WORDS)), min_size=1, max_size=6).map(
    lambda found: [QA(f"q{i}", text, (gold,)) for i, (text, gold) in enumerate(found)]
)


@st.composite
def memories(draw):
    """Memories with a core, with entries that repeat each other's words, some of them labelled."""
    semantic, episodic = (draw(st.lists(texts | labelled, max_size=6)) for _ in range(2))
    ids = draw(st.permutations(range(1, len(semantic + episodic) + 1)))
    made = [Entry(str(i), text) for i, text in zip(ids, semantic + episodic, strict=True)]
    n = len(semantic)
    return Memory(draw(st.just("") | texts), made[:n], made[n:], next_id=len(made) + 1)


def mean_score(memory, asked, by, metric):
    put = [Question(qa.id, qa.question, "trec_coarse", memory=memory) for qa in asked]
    pairs = zip(by.read(put), asked, strict=True)
    scores = [metrics.score(metric, answer.prediction, qa.answers) for answer, qa in pairs]
    return sum(scores) / len(scores)


def rebuilt(memory, part):
    """The memory made anew from everything but one part."""
    core = "" if part == "core" else memory.core
    return Memory(core, *([e for e in s if e.id != part] for s in memory.lists().values()))


class Plain:
    """A reader that can only read."""

    name = "plain"

    def __init__(self, asked=None):
        self.asked = [] if asked is None else asked

    def read(self, put, done=None):
        self.asked.append(len(put))
        return BEST.read(put, done)


BY = (Plain(), *map(reader, ("best_entry", "label_vote", "by_source", "read_nothing")))


@pytest.mark.parametrize("by", BY, ids=lambda by: by.name)
@settings(deadline=None, max_examples=60)
@given(memory=memories(), asked=questions)
def test_leaving_one_out_equals_recomputing_from_scratch(by, memory, asked):
    found = measure(memory, asked, by, "substring", "trec_coarse")
    whole = mean_score(memory, asked, by, "substring")
    assert list(found) == [part for _, part, _ in parts(memory)]
    for part, credit in found.items():
        left = mean_score(rebuilt(memory, part), asked, by, "substring")
        assert credit.credit == pytest.approx(whole - left, abs=1e-12)
        assert credit.low == credit.credit == credit.high
        assert without(memory, part) == dataclasses.replace(
            rebuilt(memory, part), next_id=memory.next_id
        )


def world(n=40, m=25, seed=0):
    """Entries of which the first m are each asked about, with a word that only they have."""
    rng = random.Random(seed)
    entries = [
        Entry(str(i + 1), f"name{i} {' '.join(rng.choices(WORDS, k=6))} place{i}") for i in range(n)
    ]
    asked = [QA(f"q{i}", f"Where is name{i}?", (f"place{i}",)) for i in range(m)]
    return Memory(semantic=entries, next_id=n + 1), asked


def test_an_entry_is_worth_the_questions_that_need_it_and_no_others():
    memory, asked = world()
    table = credits(memory, asked, BEST, "substring").set_index("id")
    assert table.credit.tolist() == [1 / 25] * 25 + [0] * 15
    assert table.needed_by["3"] == ("q2",) and table.needed_by["40"] == ()
    assert table.credit.sum() == mean_score(memory, asked, BEST, "substring") == 1


def test_two_copies_of_a_fact_have_no_credit_and_a_misleading_entry_less_than_none():
    copies = Memory(semantic=(Entry("1", "Nora keeps bees"), Entry("2", "Nora keeps red bees")))
    asked = [QA("q0", "What keeps Nora?", ("bees",))]
    assert credits(copies, asked, BEST, "substring").credit.tolist() == [0, 0]
    stale = Memory(semantic=(Entry("1", "Nora keeps boats"), Entry("2", "Nora keeps red bees")))
    assert credits(stale, asked, BEST, "substring").credit.tolist() == [-1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_a_sampled_interval_holds_the_exact_credit_and_used_entries_are_exact(seed):
    memory, asked = world(60, 45, seed)
    exact = credits(memory, asked, BEST, "substring")
    rough = credits(memory, asked, BEST, "substring", readings=600, seed=seed)
    assert rough.credit.tolist() == pytest.approx(exact.credit.tolist())  # nothing else changes
    assert (rough.low <= exact.credit + 1e-12).all() and (exact.credit <= rough.high + 1e-12).all()
    assert (rough.low < rough.high).all()
    again = credits(memory, asked, BEST, "substring", readings=600, seed=seed)
    assert again.equals(rough)


@settings(deadline=None, max_examples=40)
@given(memory=memories(), asked=questions, seed=st.integers(0, 99))
def test_a_sampled_interval_holds_its_estimate(memory, asked, seed):
    for credit in measure(memory, asked, BEST, "substring", readings=1, seed=seed).values():
        assert credit.low - 1e-12 <= credit.credit <= credit.high + 1e-12


def test_the_bound_on_what_was_not_drawn_holds_as_often_as_it_says():
    rng, total, drawn = random.Random(0), 60, 20
    for changed in (0, 3, 10, 30):
        missed = 0
        for _ in range(400):
            seen = sum(i < changed for i in rng.sample(range(total), drawn))
            missed += most_changed(seen, drawn, total, 0.025) < changed
        assert missed / 400 <= 0.05
    assert most_changed(3, 20, 20, 0.025) == 3 and most_changed(0, 0, 5, 0.025) == 5


def test_only_some_questions_are_asked_again_when_readings_are_few():
    memory, asked = world(30, 20)
    seen = []
    measure(memory, asked, Plain(seen), "substring", readings=90)
    assert seen[0] == 20 and max(seen[1:]) <= 1 + 3


def test_questions_without_a_score_are_left_out():
    class Failing(Plain):
        def read(self, put, done=None):
            whole = len(put[0].memory.semantic) == 3
            return [
                dataclasses.replace(a, prediction=None) if q.id == "q0" or not whole else a
                for q, a in zip(put, BEST.read(put), strict=True)
            ]

    memory, asked = world(3, 2)
    for credit in measure(memory, asked, Failing(), "substring").values():
        assert (credit.credit, credit.low, credit.high, credit.needed_by) == (None, None, None, ())


# --- Calls and steps ------------------------------------------------------------------------------


def test_the_author_of_an_entry_is_the_last_call_that_changed_its_text():
    seen = 0
    for episode in map(random_episode, range(60)):
        memory, wrote = empty(episode.memory_config), {}
        for step, turn in enumerate(episode.steps):
            for place, call in enumerate(turn.calls):
                before = {part: text for _, part, text in parts(memory)}
                memory, _ = apply(memory, call, episode.memory_config)
                after = {part: text for _, part, text in parts(memory)}
                wrote |= {p: (step, place) for p in after if after[p] != before.get(p)}
        assert authors(episode) == {part: wrote[part] for _, part, _ in parts(memory)}
        seen += len(authors(episode))
    assert seen > 60


def test_credits_of_calls_add_up_to_those_of_entries_and_steps_to_those_of_calls():
    profile = load_profile("laptop")
    profile = dataclasses.replace(profile, reward=RewardConfig(others={"credit": 0.5}))
    instances = miniature.training_instances(profile)[:4]
    played = play(instances, miniature.references(profile)[3], miniature.environment(profile), 2)
    for episode in played.episodes:
        asked = next(i.questions for i in instances if i.id == episode.instance)
        entries = credits(episode, asked, BEST, "substring")
        calls = call_credits(episode, entries)
        assert calls.credit.sum() == pytest.approx(entries.credit.sum())
        assert sorted(i for ids in calls.entries for i in ids) == sorted(entries.id)
        found = played.rewards[episode.id]
        by_step = calls.groupby("step").credit.sum().reindex(range(len(episode.steps)))
        assert list(found.others["credit"]) == pytest.approx(list(by_step.fillna(0)))
        plain = dataclasses.replace(profile.reward, others={})
        for step, value in enumerate(found.others["credit"]):
            base = step_rewards(found, plain)[step]
            assert step_rewards(found, profile.reward)[step] == pytest.approx(base + 0.5 * value)
    assert any(value > 0 for parts in played.rewards.values() for value in parts.others["credit"])


def test_credit_is_off_by_default_and_not_known_without_the_reader():
    assert RewardConfig().others == {}
    asked, instance = random_case(1)
    parts = rewards(asked, instance, counter("words"), config=RewardConfig(others={"credit": 1.0}))
    assert set(parts.others["credit"]) == {None}


# --- Commands and figures -------------------------------------------------------------------------


def test_the_figure_counts_the_entries_that_no_question_needs():
    memory, asked = world()
    figure = plot_credit(credits(memory, asked, BEST, "substring"))
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert figure.axes[1].get_title(loc="left").startswith("No question needs 15 entries")
    assert {"1", "40"} <= set(texts) and texts[-1].endswith("and 3 more")
    plot_credit(credits(Memory(), asked, BEST, "substring"))


def test_a_point_is_on_the_front_unless_another_one_beats_it():
    sizes = pd.Series([1.0, 2.0, 3.0, 3.0, 4.0, None])
    scores = pd.Series([0.2, 0.5, 0.5, 0.6, 0.6, 0.9])
    assert on_front(sizes, scores).tolist() == [True, True, False, True, False, False]


class Fails:
    """A reader whose every answer fails."""

    name = "fails"

    def read(self, questions, done=None):
        return [Answer(question.id, None, error="refused") for question in questions]


def test_the_commands_write_tables_and_figures(tmp_path, capsys, monkeypatch):
    profile = load_profile("ci")
    instances = miniature.held_out(profile)["test_1x"][:8]
    data, episodes = tmp_path / "data.parquet", tmp_path / "episodes.jsonl"
    save_instances(data, instances)
    by = ["--writer", "keep_sentences", "--data", str(data)]
    assert main(["write", *by, "--out", str(episodes), "--instances", "2"]) == 0
    out = tmp_path / "credit"
    assert main(["credit", str(episodes), "--data", str(data), "--out", str(out)]) == 0
    entries, calls = (pd.read_csv(out / f"{name}.csv") for name in ("entries", "calls"))
    assert entries.credit.sum() == pytest.approx(calls.credit.sum()) and entries.credit.max() > 0
    assert sorted(path.name for path in out.glob("*.png")) == ["credit_000.png", "credit_001.png"]
    assert "no question needs" in capsys.readouterr().out
    assert (entries.low == entries.high).all()
    failing = ["credit", str(episodes), "--data", str(data), "--reader", "fails"]
    monkeypatch.setitem(READERS._things, "fails", Fails)
    assert main([*failing, "--out", str(out)]) == 0
    assert "entries that no question was scored with and without: " in capsys.readouterr().out
    few, sampled = ["--readings", "9", "--seed", "3"], tmp_path / "sampled"
    assert main(["credit", str(episodes), "--data", str(data), *few, "--out", str(sampled)]) == 0
    rough = pd.read_csv(sampled / "entries.csv")
    assert (rough.low <= entries.credit).all() and (entries.credit <= rough.high).all()
    assert (rough.low < rough.high).any()
    out = tmp_path / "lengths"
    assert main(["lengths", *by, "--out", str(out), "--lengths", "1", "2", "--limit", "2"]) == 0
    assert set(pd.read_csv(out / "table.csv").length) == {1, 2} and (out / "lengths.png").exists()
    runs = str(tmp_path / "runs")
    assert (
        main(["evaluate", "--method", "memory", *by, "--reader", "best_entry", "--out", runs]) == 0
    )
    (run,) = (tmp_path / "runs").iterdir()
    front = tmp_path / "front.png"
    few = ["--resamples", "50"]
    assert main(["report", str(run), *few, "--pareto", str(front)]) == 0 and front.exists()


def test_questions_about_classes_are_answered_with_labels_by_default(tmp_path):
    samples = ["Sample: Who rows?\nLabel: 3", "Sample: How far is it?\nLabel: 5"]
    asked = [QA("q0", "Sentence: Who rows the boat?", ("3",))]
    data, episodes, out = (str(tmp_path / name) for name in ("d.parquet", "e.jsonl", "out"))
    save_instances(tmp_path / "d.parquet", [make_instance("trec_coarse", samples, asked)])
    by = ["--writer", "keep_examples", "--data", data]
    assert main(["write", *by, "--out", episodes]) == 0
    assert main(["credit", episodes, "--data", data, "--out", out]) == 0
    assert pd.read_csv(tmp_path / "out" / "entries.csv").credit.tolist() == [1.0, 0.0]
    assert main(["lengths", *by, "--out", out, "--lengths", "1"]) == 0
    assert pd.read_csv(tmp_path / "out" / "table.csv").set_index("measure")["mean"]["score"] == 1.0


def test_a_front_is_drawn_for_each_source_and_once_for_a_single_one():
    one = [("memory", 10.0, 0.5), ("long", 20.0, 0.4), ("bm25", 30.0, 0.8), ("none", None, 0.1)]
    rows = [
        {"source": source, "method": method, "memory_tokens": size, "score": score}
        | {"low": score - 0.1, "high": score + 0.1}
        for source in ("squad", "hotpotqa", "average")
        for method, size, score in one
    ]
    table = pd.DataFrame(rows)
    parts = {"all": table, "one": table[table.source != "squad"]}
    titles = {
        name: [title for axis in plot_fronts(part).axes if (title := axis.get_title("left"))]
        for name, part in parts.items()
    }
    assert titles == {"all": ["squad", "hotpotqa", "average"], "one": ["hotpotqa"]}
    axis = plot_fronts(table).axes[0]
    assert axis.lines[0].get_xdata().tolist() == [10, 30]  # long is beaten, none has no size
    assert {label.get_text() for label in axis.texts} >= {"memory", "long", "bm25"}


def test_measures_of_a_sweep_are_shares_and_differences_paired_by_seed_and_instance():
    rows = [
        {"stage": "grpo", "length": 1, "seed": seed, "instance": f"i{i}", "point": point}
        | {"qa": 0.5 + gain, "memory_tokens": 10 + i, "facts": 4, "facts_stored": 2 + 4 * gain}
        | {"chat": i, "chat_stored": 0, "corrections": 0, "corrections_updated": 0}
        for seed in range(3)
        for i in range(4)
        for point, gain in (("base", 0.0), ("other", 0.25))
    ]
    table = table_measures(pd.DataFrame(rows), "base", 50).set_index(["measure", "point"])
    assert table.loc[("answers right", "other"), ["mean", "gap"]].tolist() == [0.75, 0.25]
    stored = table.loc[("facts stored", "other"), ["mean", "gap", "gap_low"]].tolist()
    assert stored == [0.75, 0.25, 0.25]
    assert table.loc[("chit-chat stored", "base"), "n"] == 9  # one instance has none
    assert table.loc[("corrections updated", "base"), "n"] == 0
    figure = plot_measures(table.reset_index(), "base")
    assert figure.axes[0].get_title(loc="left") == "1x input"
