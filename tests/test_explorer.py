"""What the explorer shows of episodes, before any browser looks at it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_episodes import random_case, random_episode

from memalpha_kit import cli
from memalpha_kit.data.dataset import load_data
from memalpha_kit.data.instances import save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.explorer import Recording, html_page, show, view
from memalpha_kit.explorer import recordings as recordings_module
from memalpha_kit.explorer.recordings import load_recordings
from memalpha_kit.files import save_json
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.memory import tokens
from memalpha_kit.method.protocol import render_messages
from memalpha_kit.method.readers import reader
from memalpha_kit.method.rewards import rewards
from memalpha_kit.method.saved import save_episodes
from memalpha_kit.method.writers import ScriptedReplies, writer
from memalpha_kit.records import QA, Completion, Rewards, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig, RewardConfig
from memalpha_kit.tokens import counter

ROOT = Path(__file__).resolve().parent.parent
COUNTS = counter("wordpunct")


def whole(shown, parts):
    return "\n\n".join(shown["texts"][place] for place in parts)


def shown_of(episode, instance=None, **options):
    shown = view([Recording("run", [episode], **options)], [instance] if instance else [])
    return shown, shown["episodes"][0]


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_view_holds_what_the_episode_holds(seed):
    episode, instance = random_case(seed)
    shown, made = shown_of(episode, instance)
    memory = {}
    for step, row in zip(episode.steps, made["steps"], strict=True):
        assert whole(shown, row["chunk"]) == instance.chunks[step.chunk]
        assert whole(shown, row["reply"]) == step.completion.text
        assert [call[2:4] for call in row["calls"]] == [[c.status, c.detail] for c in step.calls]
        for call, component, entry, text in row["touches"]:
            given = row["calls"][call][1]
            memory[component, entry] = given[text][1] if isinstance(text, int) else text
        left = {k: text for k, text in memory.items() if text is not None}
        entries = {(name, e.id): e.text for name, e in step.memory.entries()}
        assert left == entries | ({("core", "core"): step.memory.core} if step.memory.core else {})
        assert row["tokens"] == tokens(step.memory, COUNTS)
    assert made["rewards"]["accuracy"] == rewards(episode, instance, COUNTS).accuracy
    assert [q["prediction"] for q in made["questions"]] == [a.prediction for a in episode.answers]
    assert [q["gold"] for q in made["questions"]] == [list(qa.answers) for qa in instance.questions]


def test_the_prompt_is_the_one_that_the_memory_before_and_the_chunk_give():
    episode, instance = random_case(5)
    shown, made = shown_of(episode, instance)
    before = episode.steps[0].memory
    messages = render_messages(
        before, instance.chunks[1], episode.memory_config, ProtocolConfig(wire="qwen")
    )
    prompt = made["steps"][1]["prompt"]
    assert [whole(shown, text) for _, text in prompt[:2]] == [m["content"] for m in messages]
    assert prompt[2][0] == "tools"


def test_token_ids_that_were_sent_are_decoded():
    episode = random_episode(5)
    sent = Completion("Done.", prompt_ids=(72, 105))
    episode = replace(episode, steps=(replace(episode.steps[0], completion=sent, calls=()),))
    shown, made = shown_of(episode, decode=lambda ids: "".join(map(chr, ids)))
    assert [[role, whole(shown, text)] for role, text in made["steps"][0]["prompt"]] == [
        ["as sent", "Hi"]
    ]
    assert made["steps"][0]["how"] == "decoded from the 2 token ids that were sent"


def test_without_the_data_set_what_needs_chunks_is_missing_and_not_zero():
    shown, made = shown_of(random_episode(5))
    assert made["steps"][0]["chunk"] is None and made["steps"][0]["prompt"] == []
    assert made["rewards"]["compression"] is None
    assert set(made["rewards"]["content"]) == {None}
    assert made["rewards"]["accuracy"] is not None
    assert made["questions"][0]["gold"] is None


def test_questions_that_were_not_asked_have_no_answer_and_saved_rewards_are_as_they_are():
    episode, instance = random_case(5)
    _, made = shown_of(replace(episode, answers=()), instance)
    assert made["rewards"]["accuracy"] is None
    assert made["rewards"]["compression"] is not None
    assert [q["asked"] for q in made["questions"]] == [False] * 3
    n = len(episode.steps)
    saved = Rewards(0.25, 0.5, (1.0,) * n, (0.75,) * n)
    _, made = shown_of(episode, rewards={episode.id: saved})
    assert made["rewards"]["content"] == (0.75,) * n


def test_a_term_that_asks_the_reader_again_is_missing_where_nobody_is_there_to_ask():
    episode, instance = random_case(5)
    asking = RewardConfig(others={"credit": 1.0})
    plain, made = (shown_of(episode, instance, reward=config)[1] for config in (None, asking))
    lost = {"others": {"credit": (None,) * len(episode.steps)}}
    assert made["rewards"] == plain["rewards"] | lost


def test_two_runs_of_the_same_episodes_stand_beside_each_other():
    episode, instance = random_case(5)
    assert "2 episodes" in repr(show({"before": [episode], "after": [episode]}, [instance]))


def test_no_episodes_and_episodes_of_another_data_set_are_said():
    with pytest.raises(InputError, match="expected episodes, found none"):
        show([])
    episode, instance = random_case(5)
    with pytest.raises(InputError, match="expected a chunk per step, found"):
        shown_of(episode, replace(instance, chunks=instance.chunks[:1]))


def test_the_data_can_end_no_tag_and_nothing_else_is_loaded():
    hostile = "</script><script>alert(1)</script><!--"
    instance = make_instance("squad", [hostile], [QA("q0", hostile, (hostile,))])
    episodes = write([instance], ScriptedReplies([hostile]), MemoryConfig(), ProtocolConfig())
    page = html_page(view([Recording(hostile, episodes)], [instance]))
    assert page.count("</script>") == 2 and "<!--" not in page.lower().removeprefix("<!doctype")
    assert (
        "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    )
    frame = show(episodes, [instance])._repr_html_()
    assert frame.count("'") == 10  # of five attributes


def test_a_page_of_twenty_chunks_is_below_two_megabytes():
    text = " ".join(f"Sentence {i} of a long chapter names {i * 7}." for i in range(200))
    chunks = [f"Part {number}. {text}" for number in range(20)]  # 1,600 words each
    questions = [QA(f"q{i}", f"What does sentence {i} name?", (str(i * 7),)) for i in range(100)]
    instance = make_instance("squad", chunks, questions)
    episodes = write([instance], writer("keep_sentences"), MemoryConfig(), ProtocolConfig())
    asked = ask(episodes, [instance], reader("best_entry"))
    page = show(asked, [instance], reward=RewardConfig(content=0.0)).page
    assert len(page.encode()) < 2_000_000


# ---- from disk, and the command ----------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """A data set, two rollouts of it by `memalpha write`, and an evaluation of a third."""
    built = [instance for _, instance in map(random_case, (3, 4))]
    save_instances(tmp_path / "data.parquet", built)
    rule = ("--writer", "keep_sentences")
    data, out = ("--data", str(tmp_path / "data.parquet")), tmp_path / "kept.episodes.jsonl"
    assert cli.main(["write", *data, *rule, "--rollouts", "2", "--out", str(out)]) == 0
    asked = ("--method", "memory", *rule, "--reader", "best_entry", "--name", "asked")
    assert cli.main(["evaluate", *data, *asked, "--out", str(tmp_path)]) == 0
    return tmp_path


def test_the_command_writes_a_page_beside_the_episodes_or_elsewhere(written, capsys):
    file, data = written / "kept.episodes.jsonl", str(written / "data.parquet")
    capsys.readouterr()
    assert cli.main(["explore", str(file), "--data", data, "--instances", "1"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("2 episodes, ") and said.err == ""  # of the first instance
    assert said.out.endswith(f"{file.with_suffix('.html')}\n")
    assert file.with_suffix(".html").read_text().startswith("<!doctype html>")
    assert cli.main(["explore", str(file), "--html", str(written / "page.html")]) == 0
    assert "--data PATH names the data set" in capsys.readouterr().err


def test_an_evaluation_brings_its_answers_scores_and_questions(written):
    (recording,) = load_recordings([written / "asked"])
    assert recording.protocol == ProtocolConfig()
    (episode, _), rows = recording.episodes, load_data(written / "data.parquet")
    made = view([recording])["episodes"][0]
    assert [q["gold"] for q in made["questions"]] == [list(q.answers) for q in rows[0].questions]
    assert all(q["score"] in (0.0, 1.0) for q in made["questions"])
    assert load_recordings([written / "asked" / "answers.jsonl"])[0].episodes[0] == episode


def test_recordings_have_names_of_their_own_and_settings_from_beside(written):
    file = written / "kept.episodes.jsonl"
    first, second = load_recordings([file, file])
    assert (first.name, second.name) == ("kept (0)", "kept (1)")
    assert first.protocol == ProtocolConfig() and first.reward is None
    card = file.with_suffix(".json")
    card.write_text(card.read_text().replace('"wire": "qwen"', '"wire": 7'))
    with pytest.raises(InputError, match="protocol: wire"):
        load_recordings([file])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.jsonl"], "expected a file of episodes"),
        (["kept.episodes.jsonl", "--instances", "0"], "'--instances': expected at least 1"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(written, monkeypatch, capsys, words, said):
    monkeypatch.chdir(written)
    capsys.readouterr()
    assert cli.main(["explore", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_training_brings_the_weights_that_it_was_run_with(tmp_path):
    episode, instance = random_case(3)
    save_episodes(tmp_path / "run" / "episodes" / "step_00001.jsonl", [episode])
    said = {"reward": {"compression": 0.5}, "advantage": {"grouping": "chunk"}}
    save_json(tmp_path / "run" / "settings.json", said)
    recordings = load_recordings([tmp_path / "run"])
    assert recordings[0].name == "run step_00001"
    shown = view(recordings, [instance])
    assert shown["reward"]["compression"] == 0.5
    assert shown["sampled"], "the page says that a group's other rollouts are not here"


def test_the_tokenizer_of_a_training_is_read_once_for_all_of_its_steps(tmp_path, monkeypatch):
    read, (episode, _) = [], random_case(3)
    for step in (1, 2, 3):
        save_episodes(tmp_path / "run" / "episodes" / f"step_0000{step}.jsonl", [episode])
    monkeypatch.setattr(recordings_module, "decoder", lambda folder: read.append(folder) or str)
    assert [one.decode for one in load_recordings([tmp_path / "run"])] == [str, str, str]
    assert read == [tmp_path / "run" / "policy"]


def test_the_pictures_in_the_readme_are_there_and_small():
    named = set(re.findall(r"docs/images/\w+\.png", (ROOT / "README.md").read_text()))
    assert len(named) == 2
    assert all((ROOT / name).stat().st_size < 300_000 for name in named)
