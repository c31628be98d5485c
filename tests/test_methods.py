"""The table of methods, and what holds for every one of them."""

import json

import pytest
from fake_chat import FakeChat

from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.contexts import ContextMethod
from memalpha_kit.evaluation.methods import METHODS, Backends, MethodSpec, Prepared, build_method
from memalpha_kit.evaluation.runs import read_record, record_line
from memalpha_kit.method.episode import write
from memalpha_kit.method.writers import ScriptedReplies, writer
from memalpha_kit.records import QA, Answer, Question, make_instance
from memalpha_kit.release.methods import RELEASED
from memalpha_kit.settings import MemoryConfig, ProtocolConfig

KEEP = writer("keep_sentences")
INSTANCE = make_instance(
    "squad",
    ["Nora keeps bees. Tom rows.", "Ada paints boats. It rains."],
    [QA("q0", "Who keeps bees?", ("Nora",), 0), QA("q1", "Who paints?", ("Ada",), 1)],
    "Read the articles.",
)
LABELLED = make_instance(
    "trec_coarse",
    ["Sentence: Where is Oslo?\nLabel: 3\n\nSentence: Who is Ada?\nLabel: 1\n\n"
     "Sentence: Where is Rome?\nLabel: 3"],
    [QA("q0", "Sentence: Where is Lund?\nWhich label?", ("3",), None)],
)  # fmt: skip
INSTANCES = [INSTANCE, LABELLED]


def questions_of(instances):
    return [Question(qa.id, qa.question, i.source, i.id) for i in instances for qa in i.questions]


QUESTIONS = questions_of(INSTANCES)
WANTED = {(question.instance, question.id) for question in QUESTIONS}


def run(method, wanted=None, instances=INSTANCES):
    """What the method prepares and answers, each by its key, and checks that each came once."""
    prepared, answered = {}, {}
    asked = [q for q in questions_of(instances) if wanted is None or (q.instance, q.id) in wanted]

    def keep(record):
        assert record.instance not in prepared
        prepared[record.instance] = record

    def take(record):
        assert (record.instance, record.qa) not in answered
        answered[record.instance, record.qa] = record

    method.prepare(instances, keep)
    method.answer(asked, instances, prepared, take)
    return prepared, answered


def episode(made=KEEP):
    return write([INSTANCE], made, MemoryConfig(), ProtocolConfig())[0]


RECORDS = [
    Prepared("i"),
    Prepared("i", memory_tokens=0, text="", steps=("", "a"), prompt_tokens=0, unusable=1),
    Prepared("i", error="chunk 2: HTTP 500"),
    Prepared("i", episode=episode(), memory_tokens=7, input_tokens=9),
    Prepared("i", episode=episode(ScriptedReplies(["\ud800", ""]))),
    Answer("q", "Nora", instance="i"),
    Answer("q", "", prompt_tokens=0, memory_tokens=0, retrieved=("3", "1"), truncated=True),
    Answer("q", None, finish="error", error="HTTP 500"),
    Answer("q", None, skipped="no evidence label"),
]


@pytest.mark.parametrize("record", RECORDS)
def test_records_survive_the_way_through_json(record):
    line = json.loads(json.dumps(record_line(record, "m at http://x/v1")))
    assert read_record(line, "line 3") == (record, "m at http://x/v1")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MethodSpec("bm52"), "found 'bm52'; did you mean 'bm25'"),
        (MethodSpec("bm25", {"topk": 2}), "method bm25: unknown key 'topk'; did you mean 'top_k'"),
        (MethodSpec("bm25", {"top_k": 0}), "top_k: "),
        (MethodSpec("bm25", {"top_k": "two"}), "top_k: expected a whole number"),
        (MethodSpec("bm25", {"name": "x"}), "unknown key 'name'"),
        (MethodSpec("long-context", {"cut": "middle"}), "found 'middle'"),
        (MethodSpec("memory", {"writer": "keep_sentences", "memory.shwon": 3}), "'memory.shown'"),
        (MethodSpec("nothing", {"temperature": 0.5}), "unknown key 'temperature'"),
        (MethodSpec("closed-book", {"counter": "word"}), "counter: expected a known name"),
        (
            MethodSpec("mem1", {"rollouts": "x", "state_tokens": 1}),
            "state_tokens has no effect: memories come from",
        ),
        (
            MethodSpec("memory", {"writer": "silent", "write_temperature": 0.6}),
            "no effect: writer silent",
        ),
    ],
)
def test_a_wrong_name_or_option_or_one_without_effect_is_refused(spec, message):
    with pytest.raises(InputError) as error:
        build_method(spec, Backends(answer=FakeChat()))
    assert message in str(error.value)


@pytest.mark.parametrize("name", [n for n in METHODS.names() if METHODS[n].needs_model])
def test_a_missing_model_is_said_before_any_work(name):
    with pytest.raises(InputError, match="expected a model that answers"):
        build_method(MethodSpec(name))


@pytest.mark.parametrize("name", RELEASED)
def test_a_published_run_is_a_method_with_its_settings_and_options_on_top(name):
    options = {"writer": "keep_turns"} if name.startswith("release-agent") else {}
    method = build_method(MethodSpec(name, options | {"max_tokens": 9}), Backends(FakeChat()))
    assert method.settings()["method"] == name and method.options.max_tokens == 9
    assert isinstance(method, RELEASED[name][1])
    _, answered = run(method, {(LABELLED.id, "q0")}, [LABELLED])
    assert answered[LABELLED.id, "q0"].error == ""


OPTIONS = {"memory": {"writer": "keep_sentences"}}
SPECS = [
    MethodSpec(name, OPTIONS.get(name, {})) for name in METHODS.names() if name not in RELEASED
] + [
    MethodSpec("memory", {"writer": "api"}),
    MethodSpec("memory", {"writer": "keep_sentences", "reader": "best_entry"}),
    MethodSpec("memory", {"writer": "keep_sentences", "reader": "agentic"}),
]
EACH = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.method} {spec.options}")


@EACH
def test_every_question_is_answered_once_with_records_and_settings_of_one_kind(spec):
    method = build_method(spec, Backends(answer=FakeChat()))
    settings = method.settings()
    assert json.loads(json.dumps(settings)) == settings
    asked = {"model": "fake"} if method.needs_model or method.model_writes else {}
    assert {"method": spec.method, **asked}.items() <= settings.items()
    assert ("model" in settings) == bool(asked) == bool(method.backends.answer)
    prepared, answered = run(method)
    assert prepared.keys() == {i.id for i in INSTANCES} and answered.keys() == WANTED
    for one in (*answered.values(), *prepared.values()):
        assert not one.error
        assert read_record(json.loads(json.dumps(record_line(one))), "") == (one, "")
    for one in answered.values():
        assert (one.prediction is None) == bool(one.skipped) and one.memory_tokens is not None
    for instance in INSTANCES:
        size = sum(map(method.counter.count, instance.chunks))
        assert prepared[instance.id].input_tokens == size


@EACH
def test_a_failed_call_is_an_error_and_never_an_answer(spec):
    method = build_method(spec, Backends(answer=FakeChat(lambda asked: None)))
    _, answered = run(method)
    for one in answered.values():
        assert one.prediction != "HTTP 500 six times"
        if method.needs_model and not one.skipped:
            assert one.prediction is None and "HTTP 500" in one.error


def test_questions_of_an_instance_that_failed_fail_with_its_reason():
    method = build_method(MethodSpec("nothing"))
    answered = []
    failed = Prepared(INSTANCE.id, error="chunk 1: HTTP 500")
    method.answer(QUESTIONS, INSTANCES, {INSTANCE.id: failed}, answered.append)
    assert {one.error for one in answered} == {
        "instance: chunk 1: HTTP 500",
        "instance: was not prepared",
    }
    assert all(one.prediction is None for one in answered)


def test_work_is_done_in_groups():
    model = FakeChat()
    run(build_method(MethodSpec("long-context"), Backends(answer=model, group=2)))
    assert model.batches == [2, 1]


def test_floors_need_no_model():
    _, nothing = run(build_method(MethodSpec("nothing")))
    assert {one.prediction for one in nothing.values()} == {""}
    _, labels = run(build_method(MethodSpec("majority-label")))
    assert labels[LABELLED.id, "q0"].prediction == "\\boxed{3}"
    assert labels[INSTANCE.id, "q0"].prediction == ""


def test_a_method_of_your_own_is_registered_by_its_module_and_answers_as_others_do():
    @METHODS.register("first-chunk")
    class FirstChunk(ContextMethod):
        def context(self, put):
            return put.instance.chunks[0], ("chunk:0",)

    model = FakeChat()
    method = build_method(MethodSpec("first-chunk", {"max_tokens": 9}), Backends(answer=model))
    _, answered = run(method, {(INSTANCE.id, "q1")})
    assert answered[INSTANCE.id, "q1"].retrieved == ("chunk:0",)
    assert "Nora keeps bees" in model.texts[0] and "Ada" not in model.texts[0]
