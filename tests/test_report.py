"""The report of runs: labels, floors, and the tables that stand side by side."""

import pytest
from fake_chat import FakeChat

from memalpha_kit.chats import ChatReply
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation import runs, scores, scoring, tables
from memalpha_kit.evaluation.methods import Backends, MethodSpec
from memalpha_kit.evaluation.tables import Bootstrap
from memalpha_kit.records import QA, make_instance

QUICK = Bootstrap(resamples=50)


def instance(source: str, chunk: str, *golds: str):
    questions = [QA(f"q{i}", f"Question {i}?", (gold,)) for i, gold in enumerate(golds)]
    return make_instance(source, [chunk], questions)


LABELS = instance("trec_coarse", "Sentence: a b\nLabel: 2", "2", "2", "1")
BEES = instance("squad", "Nora keeps bees. Tom paints.", "bees", "goats")


def run(
    out,
    name,
    *instances,
    method="memory",
    writer="keep_sentences",
    reader="best_entry",
    model=None,
    **more,
):
    options = {"writer": writer, "reader": reader, **more} if method == "memory" else {}
    info = {"writer": writer} if method == "memory" else {}
    spec = MethodSpec(method, options)
    begun = runs.begin(spec, Backends(model), instances, out, "world", name, info)
    return runs.complete(*begun, instances)


def test_floors_stand_beside_the_methods_and_look_at_the_gold(tmp_path):
    found = tables.labelled([run(tmp_path, "a", LABELS, BEES)])
    table = tables.report(found, "fixed", QUICK)["table_sources"]
    scored = table.set_index(["method", "source"]).score
    assert scored["read_nothing", "squad"] == scored["read_nothing", "trec_coarse"] == 0.0
    assert scored["majority_label", "trec_coarse"] == pytest.approx(2 / 3)
    assert ("majority_label", "squad") not in scored  # no classes there
    assert "keep_sentences + best_entry" in table.method.tolist()
    assert table.prompt_tokens.eq(0).all() and table.cost_usd.eq(0).all()  # nobody was asked


def test_the_majority_label_breaks_ties_by_the_smaller_one():
    questions = scoring.questions_of([instance("trec_coarse", "x", "3", "1", "3", "1")])
    assert scores.majority_label(questions) == "1"


def test_runs_of_one_method_are_one_and_those_about_the_same_source_have_names_of_their_own(
    tmp_path,
):
    apart = [run(tmp_path, "a", LABELS), run(tmp_path, "b", BEES)]
    assert list(tables.labelled(apart)) == ["keep_sentences + best_entry"]
    alike = [run(tmp_path, "a", LABELS), run(tmp_path, "c", LABELS)]
    assert list(tables.labelled(alike)) == ["a", "c"]
    there = run(tmp_path / "there", "a", LABELS)
    assert list(tables.labelled([alike[0], there])) == [str(r.folder) for r in (alike[0], there)]
    other = run(tmp_path, "e", BEES, counter="words")  # other settings are another method
    assert list(tables.labelled([alike[0], other])) == ["a", "e"]
    floor = run(tmp_path, "d", LABELS, method="nothing")
    assert list(tables.labelled([alike[0], floor])) == ["keep_sentences + best_entry", "nothing"]
    with pytest.raises(InputError, match="expected each run once"):
        tables.labelled([alike[0], alike[0]])


def test_questions_that_a_method_cannot_be_asked_are_told_of(tmp_path):
    made = run(tmp_path, "a", LABELS, method="gold-chunk", model=FakeChat())
    scores.score(made, "fixed")
    _, [warning], complete = tables.summary(made, "fixed")
    assert complete and warning.startswith("3 of 3 questions were skipped and are in no mean: the")
    found = tables.labelled([made])
    assert "complete, 3 skipped" in tables.page(
        found, "fixed", tables.report(found, "fixed", QUICK)
    )


def test_replies_that_ended_before_they_answered_are_told_of(tmp_path):
    for name, text, told in (("a", "<think>hm", 1), ("b", "", 1), ("c", "bees", 0)):
        model = FakeChat(lambda asked, text=text: ChatReply(text, "length"))
        made = run(tmp_path, name, BEES, method="closed-book", model=model)
        scores.score(made, "fixed")
        warnings = tables.summary(made, "fixed")[1]
        assert len(warnings) == told and all("2 of 2 replies were cut off" in w for w in warnings)


def test_a_judge_s_verdicts_are_not_compared_with_another_metric(tmp_path):
    asked = instance("longmemeval", "Nora keeps bees. Tom paints.", "bees")
    judged, other = run(tmp_path, "a", asked), run(tmp_path, "b", asked)
    for how, alike in ((None, False), (FakeChat(lambda asked: "yes"), True)):
        scores.score(judged, "fixed", judge=FakeChat(lambda asked: "yes"))
        scores.score(other, "fixed", judge=how)
        found = tables.labelled([judged, other])
        made = tables.report(found, "fixed", QUICK)
        assert len(made["table_pairs"]) == alike
        assert ("were not scored alike" in tables.page(found, "fixed", made)) != alike


def test_pairs_are_of_methods_and_never_of_floors(tmp_path):
    found = tables.labelled(
        [run(tmp_path, "a", LABELS), run(tmp_path, "d", LABELS, method="nothing")]
    )
    made = tables.report(found, "fixed", QUICK)
    assert made["table_pairs"].method.tolist() == ["nothing"]
    text = tables.page(found, "fixed", made)
    assert "complete" in text and "## Paired differences" in text


def test_a_question_list_that_was_cut_is_noticed(tmp_path):
    folder = run(tmp_path, "a", LABELS).folder
    lines = (folder / runs.QUESTIONS).read_text().splitlines(keepends=True)
    (folder / runs.QUESTIONS).write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="questions.jsonl: was changed or cut"):
        runs.load_run(folder)
