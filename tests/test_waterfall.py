"""Where answers are lost: every stage by hand, the miniature's teachers, tables and the figure."""

import dataclasses

import pandas as pd
import pytest
from matplotlib.figure import Figure

from memalpha_kit.entries import Store
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.waterfall import ROWS, STAGES, table_waterfall, waterfall
from memalpha_kit.figures.charts import WATERFALL, plot_waterfall
from memalpha_kit.lab import miniature, world
from memalpha_kit.lab.miniature import METRIC, READER
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.readers import BestEntry, ReadNothing, reader
from memalpha_kit.method.writers import ScriptedReplies
from memalpha_kit.records import QA, Answer, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig, WorldConfig


def call(name: str, **arguments: str) -> str:
    pairs = ", ".join(f'"{k}": "{v}"' for k, v in arguments.items())
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{{pairs}}}}}\n</tool_call>'


SEMANTIC = {"memory_type": "semantic_memory"}


def insert(text: str) -> str:
    return call("new_memory_insert", **SEMANTIC, content=text)


def update(entry: str, text: str) -> str:
    return call("memory_update", **SEMANTIC, memory_id=entry, new_content=text)


def core(text: str) -> str:
    return call("memory_update", memory_type="core_memory", new_content=text)


def delete(entry: str) -> str:
    return call("memory_delete", **SEMANTIC, memory_id=entry)


QUESTION = QA("q0", "Where was Nora born?", ("Oslo",), chunk=0)
INSTANCE = make_instance(
    "squad", ["Nora was born in Oslo.", "Tom works in Oslo.", "It rained."], [QUESTION]
)


def episode(*replies: str, instance=INSTANCE):
    """The episode of these replies, one per chunk."""
    scripted = ScriptedReplies([*replies, *["Done"] * (len(instance.chunks) - len(replies))])
    [written] = write([instance], scripted, MemoryConfig(), ProtocolConfig())
    assert all(made.status == "ok" for made in written.calls)
    return written


def answer(text: str | None = "Lund", *retrieved: str, score: float | None = 0.0):
    return Answer("q0", text, score, retrieved)


def classify(episode, instance, answer, **settings):
    """The row of one answer."""
    asked = dataclasses.replace(episode, answers=(answer,))
    return waterfall([asked], [instance], **settings).iloc[0]


def found(episode, answer, instance=INSTANCE, **settings):
    row = classify(episode, instance, answer, **settings)
    return row.stage, *(None if pd.isna(step) else step for step in (row.written, row.lost))


BORN = insert("Nora was born in Oslo.")
STAGES_BY_HAND = [
    ("never_written", [insert("Tom works here.")], answer(), None, None),
    ("never_written", ["Done", insert("Tom works in Oslo.")], answer(), None, None),
    ("overwritten_or_deleted", [BORN, update("1", "Nora was born.")], answer(), 0, 1),
    ("overwritten_or_deleted", [BORN, "Done", delete("1")], answer(), 0, 2),
    ("overwritten_or_deleted", [core("Born in Oslo."), core("Rain.")], answer(), 0, 1),
    ("not_retrieved", [BORN + insert("Tom works.")], answer("Lund", "2"), 0, None),
    ("not_retrieved", [BORN], answer("Lund"), 0, None),
    ("not_retrieved", ["Done", "Done", insert("Nora: Oslo")], answer("Lund"), 2, None),
    ("not_used", [BORN], answer("Lund", "1"), 0, None),
    ("not_used", [BORN, update("1", "She is from Oslo")], answer("Lund", "1"), 0, None),
    ("not_used", [core("Nora is from Oslo.")], answer("Lund"), 0, None),
    ("not_used", [BORN], answer("", "1"), 0, None),
    ("not_used", [BORN, delete("1"), insert("Nora, Oslo")], answer("Lund", "2"), 0, None),
    ("correct", [], answer("Oslo", score=1.0), None, None),
    ("unknown", [BORN], answer(None, score=None), None, None),
    ("unknown", [BORN], answer("Lund", score=None), None, None),
]


@pytest.mark.parametrize(("expected", "replies", "given", "written", "lost"), STAGES_BY_HAND)
def test_every_stage_by_hand(expected, replies, given, written, lost):
    assert found(episode(*replies), given) == (expected, written, lost)


def test_the_core_counts_as_read_unless_the_reader_leaves_it_out():
    written = episode(core("Nora is from Oslo.") + insert("Tom works."))
    assert found(written, answer("Lund", "1"))[0] == "not_used"
    assert found(written, answer("Lund", "1"), core_read=False)[0] == "not_retrieved"
    assert found(written, answer("Lund"), core_read=False)[0] == "not_used"  # nothing else fits


@pytest.mark.parametrize(
    ("source", "qa", "why"),
    [
        ("squad", QA("q0", "Born?", ("Bergen",), 0), "does not stand in chunk 0"),
        ("squad", QA("q0", "Born?", ("Bergen",)), "does not stand in any chunk"),
        ("squad", QA("q0", "Where does Tom work?", ("Bergen", "rain")), "in any chunk"),
        ("hotpotqa", QA("q0", "Is Tom in Oslo?", ("yes",), 1), "yes or no"),
        ("trec_coarse", QA("q0", "Sentence: Oslo", ("3",)), "all its examples"),
        ("booksum", QA("q0", "Summarise", ("Oslo, Tom",)), "the whole text"),
        ("locomo", QA("q0_abs", "Born?", ("not mentioned",), 0), "the question has no answer"),
    ],
)
def test_without_an_evidence_label_the_stage_is_unknown_and_says_why(source, qa, why):
    instance = make_instance(source, INSTANCE.chunks, [qa])
    finding = classify(episode(BORN, instance=instance), instance, Answer(qa.id, "Lund", 0.0))
    assert (finding.stage, finding.evidence) == ("unknown", "") and why in finding.why


def test_a_missing_answer_is_unknown_not_a_failure_of_the_memory():
    assert classify(episode(BORN), INSTANCE, answer(None)).why == "no answer"
    assert classify(episode(BORN), INSTANCE, answer(score=None)).why == "no score"


def test_the_label_says_what_the_stage_rests_on():
    free = make_instance("squad", INSTANCE.chunks, [dataclasses.replace(QUESTION, chunk=None)])
    assert classify(episode(BORN), INSTANCE, answer("Lund", "1")).evidence == "chunk"
    finding = classify(episode(BORN, instance=free), free, answer("Lund", "1"))
    assert (finding.stage, finding.evidence) == ("not_used", "text")


def test_all_parts_of_an_answer_are_needed_and_the_furthest_accepted_answer_counts():
    chunks = ["Ana likes chess and reading.", "Ana moved."]
    parts = make_instance("perltqa", chunks, [QA("q0", "Hobbies?", ("Chess; Reading",), 0)])
    half = episode(insert("Ana: chess"), instance=parts)
    assert found(half, answer("tennis", "1"), parts)[0] == "never_written"
    both = episode(insert("Ana: chess") + insert("Ana: reading"), instance=parts)
    assert found(both, answer("chess", "1", score=0.5), parts)[0] == "not_retrieved"
    assert found(both, answer("chess", "1", "2", score=0.5), parts)[0] == "not_used"
    accepted = QA("q0", "What does Ana like?", ("reading", "chess"), 0)
    either = make_instance("ruler_qa1_197K", chunks, [accepted])
    assert found(episode(insert("Ana: chess"), instance=either), answer("x", "1"), either) == (
        "not_used",
        0,
        None,
    )


def test_stages_need_what_changed_and_no_list_of_a_whole_memory(monkeypatch):
    written = episode(insert("Nora was born in Oslo."), insert("It rained."), delete("1"))
    listed, places = [], Store.places
    monkeypatch.setattr(Store, "places", lambda store: listed.append(len(store)) or places(store))
    assert found(written, answer()) == ("overwritten_or_deleted", 0, 2)
    assert max(listed) <= 1  # the memory after the first chunk


def test_an_episode_of_another_instance_is_refused():
    other = make_instance("squad", ["x"], [QUESTION])
    with pytest.raises(InputError, match="its instance is not in the data"):
        waterfall([episode(BORN)], [other])


# --- The miniature -------------------------------------------------------------------------------

CONFIG = WorldConfig(training_names=300, held_out_names=100, correction=0.8)
MEMORY = MemoryConfig(core=False, display="relevant", shown=4)
PROTOCOL = ProtocolConfig(wire="compact", prompt="compact")
DATA = world.build_world(CONFIG, world.names(CONFIG)[1], 10, 6, "test")


def teacher(habits: world.Habits, asked=None, memory=MEMORY):
    """(counts of stages, rows) of a teacher's memories."""
    episodes = write(DATA, miniature.teacher("teacher", habits, memory), memory, PROTOCOL)
    rows = waterfall(ask(episodes, DATA, asked or reader(READER), METRIC), DATA, strict=True)
    return rows.stage.value_counts().to_dict(), rows


BLIND = dataclasses.replace(MEMORY, display="recent", shown=1)


@pytest.mark.parametrize(
    ("habits", "how", "stage", "least"),
    [
        (world.PERFECT, {}, "correct", 0),
        (world.Habits(keep=0.5), {}, "never_written", 20),
        (world.PERFECT, {"memory": BLIND}, "not_retrieved", 5),
        (world.PERFECT, {"asked": ReadNothing()}, "not_retrieved", 0),
    ],
    ids=["perfect", "stores half of the facts", "cannot see the stale fact", "reads nothing"],
)
def test_what_a_teacher_loses_is_lost_at_its_stage(habits, how, stage, least):
    counts, _ = teacher(habits, **how)
    others = {"correct"} if least else set()
    assert set(counts) == {stage} | others and counts[stage] > least


def test_who_never_updates_has_not_written_the_latest_value():
    counts, rows = teacher(world.NEVER_UPDATES)
    assert set(counts) == {"correct", "never_written"} and counts["never_written"] > 5
    wrong = rows[rows.stage == "never_written"]
    corrected = {
        (instance.id, qa.id)
        for instance in DATA
        for qa in instance.questions
        for said in world.read_chunk(instance.chunks[qa.chunk])
        if said.kind == "correction" and world.ask_about(said.key) == qa.question
    }
    assert set(zip(wrong.instance, wrong.qa, strict=True)) <= corrected
    assert (wrong.evidence == "chunk").all()


def test_a_correction_beside_its_stale_fact_is_kept_but_not_retrieved():
    chunks = ["46 is the phone of Pemes.", "Now 53 is the phone of Pemes.\n53 is the desk of Banu."]
    qa = QA("q0", world.ask_about("phone of Pemes"), ("53",), 1)
    data = make_instance(world.SOURCE, chunks, [qa])
    inserts = [
        insert("46 is the phone of Pemes"),
        insert("53 is the desk of Banu") + insert("Now 53 is the phone of Pemes"),
    ]
    [asked] = ask([episode(*inserts, instance=data)], [data], BestEntry())
    assert found(asked, asked.answers[0], data, strict=True) == ("not_retrieved", 1, None)
    other = episode(inserts[0], insert("53 is the desk of Banu"), instance=data)
    assert found(other, asked.answers[0], data, strict=True)[0] == "never_written"
    undone = episode(
        insert("53 is the phone of Pemes"), update("1", "46 is the phone of Pemes"), instance=data
    )
    assert found(undone, asked.answers[0], data, strict=True) == ("overwritten_or_deleted", 0, 1)


# --- Tables and figure ----------------------------------------------------------------------------


def rows_by_hand():
    episodes = [
        dataclasses.replace(episode(*replies), answers=(given,), rollout=i)
        for i, (_, replies, given, _, _) in enumerate(STAGES_BY_HAND)
    ]
    return waterfall(episodes, [INSTANCE], "by hand")


def test_the_table_has_every_stage_of_every_group_and_its_shares_add_up():
    rows = rows_by_hand()
    assert list(rows.columns) == list(ROWS) and len(rows) == len(STAGES_BY_HAND)
    assert rows.stage.tolist() == [stage for stage, *_ in STAGES_BY_HAND]
    table = table_waterfall(rows)
    assert table.stage.tolist() == list(STAGES) and (table.answers == len(rows)).all()
    assert table.n.tolist() == [1, 2, 3, 3, 5, 2]
    assert table.share.sum() == pytest.approx(1.0)


def test_the_table_keeps_sources_writers_and_readers_apart():
    rows = rows_by_hand()
    table = table_waterfall(rows.assign(reader=["a", *["b"] * (len(rows) - 1)]))
    assert table.groupby("reader").n.sum().to_dict() == {"a": 1, "b": len(rows) - 1}
    assert len(table) == 2 * len(STAGES)
    assert len(table_waterfall(rows[:0])) == 0 and len(waterfall([], [])) == 0


def test_the_figure_stacks_all_stages_to_one():
    rows = rows_by_hand()
    rows = rows.assign(reader=["a", *["b"] * (len(rows) - 1)])
    figure = plot_waterfall(table_waterfall(rows))
    assert isinstance(figure, Figure) and list(WATERFALL) == list(STAGES)
    [axis] = figure.axes
    ends = [bar.get_x() + bar.get_width() for bar in axis.containers[-1]]
    assert ends == pytest.approx([1.0, 1.0])
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["scripted_replies\nb", "scripted_replies\na"]
    two = rows.assign(source=["squad", *["hotpotqa"] * (len(rows) - 1)])
    plot_waterfall(table_waterfall(two))
