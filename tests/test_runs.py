"""Runs on disk: killed anywhere and resumed, nothing twice and nothing lost."""

import json
import os

import pytest
from fake_chat import FakeChat

from memalpha_kit import files
from memalpha_kit.chats import ChatReply
from memalpha_kit.data.instances import ANSWER_TYPE
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.evaluation import runs, scores, scoring
from memalpha_kit.evaluation.methods import Backends, Method, MethodSpec, Prepared, Settings
from memalpha_kit.method.judges import RUBRICS
from memalpha_kit.records import QA, Answer, make_instance


def world(n: int = 3, questions: int = 4, source: str = "squad"):
    """Instances whose answers stand in their chunk."""
    return [
        make_instance(
            source,
            [f"Chunk of {i}: " + " ".join(f"a{i}-{j}" for j in range(questions))],
            [QA(f"q{j}", f"What is {i}-{j}?", (f"a{i}-{j}", "b")) for j in range(questions)],
        )
        for i in range(n)
    ]


class Copying(Method):
    """Answers with the gold, or fails where `fails` says so; `gone_after` answers no model is left.

    Every call is counted, so a test can see what was asked again.
    """

    def __init__(self, fails=(), gone_after=None, unprepared=()):
        super().__init__("copying", Settings(), Backends())
        self.fails, self.gone_after, self.unprepared = set(fails), gone_after, set(unprepared)
        self.made, self.asked = [], []

    def prepare(self, instances, done):
        for instance in instances:
            self.made.append(instance.id)
            failed = "no reply" if instance.id in self.unprepared else ""
            done(Prepared(instance.id, text="held", memory_tokens=2, input_tokens=8, error=failed))

    def answer(self, questions, instances, prepared, done):
        gold = {(i.id, qa.id): qa.answers[0] for i in instances for qa in i.questions}
        for question in questions:
            if self.gone_after is not None and len(self.asked) >= self.gone_after:
                raise ModelGone("no model at http://127.0.0.1:1")
            key = (question.instance, question.id)
            self.asked.append(key)
            bad = "500" if key in self.fails or prepared[question.instance].error else ""
            done(Answer(question.id, None if bad else gold[key], instance=question.instance,
                        error=bad, prompt_tokens=10, completion_tokens=2))  # fmt: skip


def begin(folder, instances, method=None):
    return runs.open_run(folder, instances, runs.run_settings(method or Copying(), instances))


def go(folder, instances, method=None):
    method = method or Copying()
    return runs.complete(begin(folder, instances, method), method, instances)


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({"writer": "keep_sentences"}, {"prepared": None, "answer": "fake"}),
        ({"writer": "keep_sentences", "reader": "best_entry"}, {"prepared": None, "answer": None}),
        ({"writer": "api", "reader": "best_entry"}, {"prepared": "fake", "answer": "fake"}),
    ],
)
def test_only_a_model_that_is_asked_has_made_something_and_is_a_setting(tmp_path, options, by):
    instances, spec = world(1), MethodSpec("memory", options)
    run, method = runs.begin(spec, Backends(answer=FakeChat()), instances, tmp_path, "data")
    runs.complete(run, method, instances)
    lines = map(json.loads, (run.folder / runs.ANSWERS).read_text().splitlines())
    assert {line["kind"]: line.get("made_by") for line in lines} == by
    assert run.settings["method"].get("model") == by["answer"]


def test_what_is_known_of_a_run_is_kept_and_written_only_where_it_is_new(tmp_path):
    instances, folder = world(), tmp_path / "run"
    settings = runs.run_settings(Copying(), instances)
    prices = {"model": "m", "price_in": 1.0}
    runs.open_run(folder, instances, settings, {"data": "a", "answer": prices})
    written = (folder / runs.SETTINGS).stat().st_ino
    again = runs.open_run(folder, instances, settings, {"answer": prices | {"price_in": None}})
    assert again.info == {"data": "a", "answer": prices}
    assert again.questions == scoring.questions_of(instances)
    assert (folder / runs.SETTINGS).stat().st_ino == written
    moved = runs.open_run(folder, instances, settings, {"data": "b"})
    assert moved.info == {"data": "b", "answer": prices}


@pytest.mark.parametrize("cut", range(0, 2000, 37))
def test_a_run_that_was_cut_anywhere_ends_the_same(tmp_path, cut):
    instances, folder = world(2, 3), tmp_path / "run"
    whole = go(folder, instances)
    assert whole.complete and len(whole.answers) == 6 and len(whole.prepared) == 2
    size = (folder / runs.ANSWERS).stat().st_size
    os.truncate(folder / runs.ANSWERS, min(cut, size))
    assert go(folder, instances) == whole == runs.load_run(folder)
    assert len(files.read_jsonl(folder / runs.ANSWERS)) == 2 + 6  # nothing twice


def test_resuming_asks_only_what_is_open(tmp_path):
    instances = world(2, 3)
    with pytest.raises(ModelGone):
        go(tmp_path / "run", instances, Copying(gone_after=4))
    assert len(runs.load_run(tmp_path / "run").answers) == 4
    second = Copying()
    assert go(tmp_path / "run", instances, second).complete
    assert len(second.asked) == 2 and second.made == []
    third = Copying()
    go(tmp_path / "run", instances, third)
    assert third.asked == [] and third.made == []


@pytest.mark.parametrize("reader", ["best_entry", "model"])
def test_what_a_model_said_is_on_disk_at_once_and_what_rules_said_together(
    tmp_path, monkeypatch, reader
):
    monkeypatch.setattr(runs, "WAIT_S", 999)
    synced, counted, backends = [], [], Backends(answer=FakeChat(lambda asked: "a"))
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    instances = world(9)
    spec = MethodSpec("memory", {"writer": "keep_sentences", "reader": reader})
    run, method = runs.begin(spec, backends, instances, tmp_path, "d")
    before, file = len(synced), run.folder / runs.ANSWERS
    done = runs.complete(run, method, instances, counted.append)
    assert done.complete and sum(counted) == 9 * 5 and synced[-1] == file.stat().st_size
    assert len(synced) - before == (1 if reader == "best_entry" else 1 + 4 * 9)


def test_a_later_line_about_the_same_question_is_ignored(tmp_path):
    instances = world(1, 1)
    run = go(tmp_path / "run", instances)
    (line,) = [x for x in files.read_jsonl(run.folder / runs.ANSWERS) if x["kind"] == "answer"]
    with files.Log(run.folder / runs.ANSWERS) as log:
        log.append(line | {"prediction": "another"})
    assert runs.load_run(run.folder) == run


def test_one_run_is_one_process_at_a_time(tmp_path):
    instances = world(1, 1)
    run = begin(tmp_path / "run", instances)
    alone = pytest.raises(InputError, match="another process")
    with files.Log(run.folder / runs.ANSWERS), alone:
        runs.complete(run, Copying(), instances)


def test_a_failure_is_no_answer_and_is_asked_again(tmp_path):
    instances = world(2, 3)
    failing = {(instances[0].id, "q1"), (instances[1].id, "q2")}
    run = go(tmp_path / "run", instances, Copying(fails=failing))
    assert not run.complete and set(run.open) == failing
    rows = scores.score_run(run)
    failed = [row for row in rows if row["score"] is None]
    assert {(row["instance"], row["qa"]) for row in failed} == failing
    assert {(row["status"], row["error"]) for row in failed} == {("infra_error", "500")}
    assert [row["score"] for row in rows if row not in failed] == [1.0] * 4

    again = Copying()
    run = go(tmp_path / "run", instances, again)
    assert set(again.asked) == failing and run.complete
    assert [row["score"] for row in scores.scores_of(run)] == [1.0] * 6


def test_what_could_not_be_prepared_is_made_again(tmp_path):
    instances = world(2, 2)
    run = go(tmp_path / "run", instances, Copying(unprepared={instances[0].id}))
    assert len(run.open) == 2 and list(run.prepared) == [instances[1].id]
    method = Copying()
    assert go(tmp_path / "run", instances, method).complete
    assert method.made == [instances[0].id]


def test_other_settings_are_refused(tmp_path):
    instances = world(1, 1)
    run = go(tmp_path / "run", instances)
    other = dict(run.settings) | {"method": {**run.settings["method"], "model": "gpt"}}
    with pytest.raises(InputError, match="begun with method.model = None, now it is 'gpt'"):
        runs.open_run(run.folder, instances, other)
    with pytest.raises(InputError, match="begun with other content of data_sha256"):
        begin(run.folder, world(1, 1, "hotpotqa"))


def test_the_fingerprint_sees_every_part_of_the_data():
    (instance,) = world(1, 1)
    changed = [
        instance.__class__(**vars(instance) | {"prompt": "Read."}),
        instance.__class__(**vars(instance) | {"chunks": ("x",)}),
        instance.__class__(**vars(instance) | {"questions": (QA("q0", "?", ("b",)),)}),
    ]
    prints = {runs.fingerprint([i]) for i in (instance, *changed)}
    assert len(prints) == 4


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a run with settings.json"):
        runs.load_run(tmp_path)
    (tmp_path / runs.ANSWERS).write_text("{}\n")
    with pytest.raises(InputError, match="has answers but no settings.json"):
        begin(tmp_path, world(1, 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "expected JSON"),
        ("[1]", "expected an object"),
        ('{"kind": "note"}', "expected prepared or answer"),
        ('{"kind": "answer", "instance": "i"}', "qa: Field required"),
        ('{"kind": "answer", "qa": 7, "prediction": "x"}', "qa: .*, found 7"),
        ('{"kind": "answer", "qa": "q", "prediction": ["x"]}', r"prediction: .* found \['x'\]"),
        ('{"kind": "answer", "qa": "q", "prediction": "x", "retrieved": 3}', "retrieved: .* 3"),
        ('{"kind": "prepared", "instance": "i", "lost": ["a", 1]}', "lost.0: .* found 'a'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    run = go(tmp_path / "run", world(1, 1))
    with open(run.folder / runs.ANSWERS, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=rf"answers.jsonl:3: .*{message}"):
        runs.load_run(run.folder)


def test_a_limit_draws_the_same_instances_of_each_source_in_their_order():
    data = [i for pair in zip(world(6), world(6, source="hotpotqa"), strict=True) for i in pair]
    chosen = runs.select(data, 2, seed=1)
    assert [i.source for i in chosen].count("squad") == 2 and len(chosen) == 4
    assert chosen == runs.select(data, 2, seed=1) == [i for i in data if i in chosen]
    assert runs.select(data, 2, seed=2) != chosen
    assert runs.select(data, sources=["hotpotqa"]) == [i for i in data if i.source == "hotpotqa"]
    assert runs.select(data) == data
    with pytest.raises(InputError, match="not in the data, which has squad"):
        runs.select(data, sources=["booksum"])


def test_questions_keep_what_a_judge_and_the_release_need():
    instance = make_instance(
        "longmemeval_s*",
        ["text"],
        [QA("q0_abs", "?", ("a",)), QA("q1", "??", ("b", "c"))],
        metadata={"question_types": ["multi-session", "knowledge-update"]},
    )
    first, second = scoring.questions_of([instance])
    assert (first.gold, first.kind) == ("a", "multi-session")
    assert (second.gold, second.kind) == (("b", "c"), "knowledge-update")
    listed = make_instance("squad", ["t"], [QA("q", "?", ("a",))], "", {ANSWER_TYPE: "list"})
    assert scoring.questions_of([listed])[0].gold == ("a",)
    with pytest.raises(InputError, match="question q0: expected each id once"):
        scoring.questions_of([*world(1), *world(1)])


def test_scoring_asks_no_model_and_each_profile_has_its_file(tmp_path):
    run = go(tmp_path / "run", world(1, 2))
    for profile in ("fixed", "release-agent"):
        assert [row["score"] for row in scores.score_run(run, profile)] == [1.0, 1.0]
    names = {file.name for file in (run.folder / "scores").iterdir()}
    assert names == {"fixed.jsonl", "release-agent.jsonl"}
    row = scores.scores_of(run)[0]
    asked = {"run_key", "instance", "qa", "source", "question", "gold", "prediction", "status"}
    assert asked | {"finish", "latency_s", "memory_tokens", "input_tokens", "profile"} <= set(row)


def test_a_judge_sees_types_and_costs_and_its_old_scores_are_not_mixed_with_others(tmp_path):
    asked = [QA("q0", "Where?", ("Rome",)), QA("q1_abs", "When?", ("never told",))]
    types = {"question_types": ["multi-session"] * 2}
    instances = [make_instance("longmemeval_s*", ["text"], asked, metadata=types)]
    prices = {"price_in": 1.0, "price_out": 10.0}
    run = go(tmp_path / "run", instances, Copying(fails={(instances[0].id, "q1_abs")}))
    model = FakeChat(lambda _: ChatReply("yes", "stop", (), 100, 10))
    rows = scores.score(run, "fixed", "by_type", model, prices)
    assert [(row["metric"], row["score"], row["judge_reply"]) for row in rows] == [
        ("judge", 1.0, "yes"),
        ("judge", None, ""),
    ]
    assert len(model.texts) == 1 and RUBRICS["multi-session"] in model.texts[0]
    [head, *_] = files.read_jsonl(run.folder / "scores" / "fixed.jsonl")
    assert head["judge"] == "fake, rubric by_type"
    _, built = scores.frames({"ours": run})
    assert built.cost_usd.tolist()[-1] == pytest.approx(2e-4)  # the judge's
    run = go(tmp_path / "run", instances)
    with pytest.raises(InputError, match="made by a judge; score the run again"):
        scores.scores_of(run)


def test_frames_count_what_was_spent_and_what_failed(tmp_path):
    instances = world(2, 2)
    method = Copying(fails={(instances[0].id, "q1")})
    settings = runs.run_settings(method, instances)
    prices = {"answer": {"price_in": 1.0, "price_out": 10.0}}
    run = runs.open_run(tmp_path / "run", instances, settings, prices)
    run = runs.complete(run, method, instances)
    answers, built = scores.frames({"ours": run})
    assert answers.score.isna().sum() == 1 and len(answers) == 4
    assert answers.cost_usd.dropna().tolist() == pytest.approx([3e-5] * 3)
    assert answers.memory_tokens.tolist() == [2] * 4 and answers.chunk_tokens.tolist() == [8] * 4
    assert built.cost_usd.tolist() == [0.0, 0.0, 3e-5]  # and what was thrown away


def kept(out, instances):
    """A run of the writer that keeps every sentence, and its method."""
    spec = MethodSpec("memory", {"writer": "keep_sentences", "reader": "best_entry"})
    return runs.begin(spec, Backends(), instances, out, "world")


def test_a_run_is_named_by_method_data_and_settings_and_found_again(tmp_path):
    instances = world(2, 2)
    run, method = kept(tmp_path, instances)
    assert run.folder.name == f"memory-world-{run.key}"
    assert method.backends.journal == run.folder / "journal"
    run = runs.complete(run, method, instances)
    again, method = kept(tmp_path, instances)
    assert again.complete and again.folder == run.folder and again.answers == run.answers
    assert runs.complete(again, method, instances) is again
    other, _ = kept(tmp_path, world(3, 2))
    assert other.folder != run.folder
    nothing = MethodSpec("nothing")
    named, _ = runs.begin(nothing, Backends(), instances, tmp_path, "world", name="floor")
    assert named.folder == tmp_path / "floor" and named.open


def test_items_and_episodes_of_a_run_are_what_it_answered(tmp_path):
    instances = world(2, 2)
    run, method = kept(tmp_path, instances)
    assert [item.prediction for item in scores.items(run)] == [None] * 4
    assert scores.episodes(run) == []
    run = runs.complete(run, method, instances)
    assert [item.gold for item in scores.items(run)] == [
        qa.answers for instance in instances for qa in instance.questions
    ]
    episodes = scores.episodes(run)
    assert [episode.instance for episode in episodes] == [i.id for i in instances]
    for episode, instance in zip(episodes, instances, strict=True):
        assert [answer.qa for answer in episode.answers] == [qa.id for qa in instance.questions]
        assert episode.memory == run.prepared[instance.id].episode.memory and episode.calls
        for answer in episode.answers:
            assert answer.score == 1.0 and answer.retrieved == ("1",)


def test_an_open_run_can_be_read_while_it_grows(tmp_path):
    instances = world(1, 2)
    run = begin(tmp_path / "run", instances)
    with files.Log(run.folder / runs.ANSWERS) as log:
        log.append({**runs.record_line(Answer("q0", "a0-0", instance=instances[0].id))})
        assert len(runs.load_run(run.folder).answers) == 1
    assert run.key == runs.settings_key(json.loads((run.folder / runs.SETTINGS).read_text()))
