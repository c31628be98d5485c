"""LoCoMo: dated talks of two people, questions of five categories, and labels of their evidence."""

from __future__ import annotations

import pytest
from raw_rows import TALKS, WORDS, sized, talk_qa
from raw_rows import write as write_raw

from memalpha_kit.data.instances import load_instances, save_instances
from memalpha_kit.data.sources import build
from memalpha_kit.method.metrics import score
from memalpha_kit.tasks import metric_of

AT_18 = sized(1, 18, dialogue_close_tokens=16, dialogue_reserve_tokens=9)


def built(folder, *questions, config=WORDS):
    sample = {"sample_id": "c1", "conversation": TALKS, "qa": list(questions)}
    return build("locomo", write_raw(folder, "locomo10.json", [sample]), config, seed=0)[0]


def test_a_session_is_a_chunk_with_its_date_and_pictures_by_their_captions(tmp_path):
    instance = built(tmp_path, talk_qa(4))
    assert instance.chunks == (
        "[Dialogue at timestamp 1:56 pm on 8 May, 2023]\n<Ila>I sold the van.\n"
        "<Gus>[shows a picture: a photo of a hive]",
        "[Dialogue at timestamp 9:00 am on 3 July, 2023]\n<Gus>I keep bees now.",
    )
    assert instance.metadata["groups"] == ["locomo:c1"]


def test_a_session_above_the_limit_becomes_several_chunks_under_its_date(tmp_path):
    instance = built(tmp_path, talk_qa(4, ["D1:2"]), config=AT_18)
    assert len(instance.chunks) == 3
    assert [chunk.count("[Dialogue at timestamp") for chunk in instance.chunks] == [1, 1, 1]
    assert instance.questions[0].chunk == 1


def test_questions_have_their_category_by_name_and_what_is_accepted(tmp_path):
    instance = built(
        tmp_path,
        talk_qa(1, answer="bees, a van"),
        talk_qa(2, answer=2022),
        talk_qa(3, answer="Likely no; she sold it"),
        talk_qa(4),
        talk_qa(5, answer=None, adversarial_answer="a boat"),
    )
    assert instance.metadata["question_types"] == [
        *("multi-hop", "temporal", "open-domain", "single-hop", "adversarial")
    ]
    assert [q.answers[0] for q in instance.questions] == [
        *("bees, a van", "2022", "Likely no", "the van", "not mentioned")
    ]
    assert [q.id for q in instance.questions] == ["c1-0", "c1-1", "c1-2", "c1-3", "c1-4_abs"]
    assert "a boat" not in str(instance.questions)  # a wrong answer is no accepted one


@pytest.mark.parametrize(
    ("evidence", "chunk"),
    [
        (["D1:1"], 0),
        (["D10:1"], 1),
        (["D1:1", "D1:2"], 0),
        (["D1:1", "D10:1"], None),  # in several chunks
        (["D1:1; D10:1"], None),
        (["D:10:1"], 1),  # spellings of the public file
        (["D10:01"], 1),
        (["D"], None),
        (["D7:1"], None),
        ([], None),
    ],
)
def test_the_evidence_is_the_one_chunk_with_the_labelled_turns(tmp_path, evidence, chunk):
    assert built(tmp_path, talk_qa(4, evidence)).questions[0].chunk == chunk


def test_a_conversation_with_260_questions_as_in_the_public_file_can_be_saved(tmp_path):
    """Public readers refuse more than 100, of the sources that they know."""
    instance = built(tmp_path, *(talk_qa(4) for _ in range(260)))
    save_instances(tmp_path / "test.parquet", [instance])
    assert load_instances(tmp_path / "test.parquet") == [instance]


def test_answers_are_scored_without_a_judge_by_f1_and_what_was_never_said_by_saying_so(tmp_path):
    """The metric's cases stand in test_metrics.py."""
    assert metric_of("locomo") == "locomo"
    never = built(tmp_path, talk_qa(5, answer=None)).questions[0]
    assert score("locomo", "That is not mentioned.", never.answers) == 1.0
    assert score("locomo", "a red van", ["the van"]) == pytest.approx(2 / 3)
