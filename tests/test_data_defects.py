"""The defects that the published data code is known for, and what shows that they are not ours.

`COVERED` names the tests of every defect. What no other file shows is tested here.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stub_server import StubServer

from memalpha_kit import cli
from memalpha_kit.data import check, dataset, sources, stages
from memalpha_kit.data.build import PROMPTS, build_source
from memalpha_kit.data.chunks import pack_dialogues
from memalpha_kit.data.instances import load_instances, read_instance
from memalpha_kit.data.sources import dialogues, perltqa
from memalpha_kit.data.sources.skips import Skips
from memalpha_kit.data.stages import Llm
from memalpha_kit.errors import InputError
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE
from memalpha_kit.method.metrics import score
from memalpha_kit.models.chat import Client
from memalpha_kit.models.servers import Endpoint
from memalpha_kit.records import QA, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import TASKS
from memalpha_kit.tokens import counter
from tools.sample_data import make_raw

WORDS = counter("words")
TTL = "icl_trec_coarse_6600shot_balance"


def run(*words) -> int:
    """The exit code of `memalpha data ...`."""
    try:
        return cli.main(["data", *map(str, words)])
    except SystemExit as stopped:
        return stopped.code


def row(**change) -> dict:
    """A published row."""
    pairs = [{"question": "Which?", "answer": "two"}]
    return {
        "chunks": '["one", "two"]',
        "questions_and_answers": json.dumps(pairs),
        "data_source": "squad",
    } | change


def published(path: Path, *rows: dict) -> Path:
    """A parquet file with these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def modules(root: Path) -> list[tuple[Path, ast.Module]]:
    """The files of the kit with their syntax trees."""
    paths = sorted((root / "memalpha_kit").rglob("*.py"))
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


# --- Chunks --------------------------------------------------------------------------------------


def test_a_split_turn_keeps_its_white_space_and_the_limit():
    """The release joins the sentences of a long turn with single spaces."""
    said = "First line.\n\n  Second   line,\tindented.\n" * 30
    chunks = pack_dialogues([[("user", said)]], ["now"], WORDS, limit=40, close=30, reserve=10)
    kept = [chunk.text.removeprefix("[Dialogue at timestamp now]\n<User>") for chunk in chunks]
    assert "".join(text.replace("\n<User>", "") for text in kept) == said
    assert len(chunks) > 3 and all(WORDS.count(chunk.text) <= 40 for chunk in chunks)


def test_splitting_needs_no_nltk(tmp_path, monkeypatch, root):
    """Neither the package nor a download of its sentence models."""
    monkeypatch.setitem(sys.modules, "nltk", None)
    make_raw(tmp_path, "booksum")
    [instance] = sources.build("booksum", tmp_path, BuildConfig(stage="rules", instances=1), 0)
    assert len(instance.chunks) >= BuildConfig().chapter_min_chunks
    for path, tree in modules(root):
        names = [
            alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
        ]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not any(name.split(".")[0] == "nltk" for name in names), path


# --- Names of sources ----------------------------------------------------------------------------


def test_a_row_is_named_by_its_own_file_and_never_by_a_position(tmp_path):
    """Without the squad file, the release calls the rows of hotpotqa `squad`."""
    published(tmp_path / "squad" / "train.parquet", row(data_source="hotpotqa"))
    published(tmp_path / "other" / "train.parquet", row(data_source="perltqa", chunks='["x"]'))
    parts = (tmp_path / "squad", tmp_path / "other")
    for order in (parts, parts[::-1]):
        assert run("merge", *order, "--out", tmp_path / "merged") == 0
        found = {i.chunks[0]: i.source for i in dataset.read(tmp_path / "merged").train}
        assert found == {"one": "hotpotqa", "x": "perltqa"}


def test_classification_is_called_test_time_learning(tmp_path):
    """The release calls it accurate retrieval."""
    published_ones = [
        s for s in TASKS.values() if s.role in ("train", "eval") and s.metric == "label"
    ]
    assert len(published_ones) == 7 and {s.category for s in published_ones} == {"TTL"}
    make_raw(tmp_path, TTL)
    built = build_source(TTL, tmp_path, BuildConfig(rows="any"))
    [instance] = built.test
    assert instance.metadata["split"] == "Test_Time_Learning"
    assert instance.prompt == PROMPTS["TTL"]
    rows = check.statistics([built], "words")
    assert set(rows["category"]) == {"TTL"}


# --- What is offered -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("split-train-test", "'split'"),
        ("split-single-dataset", "'split'"),
        ("convert-to-parquet", "build"),  # it does nothing
        ("status", "check"),  # the same
        ("filter-dataset", "check"),  # nobody reads what it writes
        ("difficulty", "check"),  # its bins overlap
        ("build --source squad --raw x --out y --status", "'--stage'"),
        ("build --source squad --raw x --out y --force", "'--source'"),  # no inner caches
        ("build --source squad_test --raw x --out y", "'squad'"),
        ("build --source arxiv-classification --raw x --out y", "trec_coarse"),
        *((f"build --source {n} --raw x --out y", "squad") for n in ("friends", "wos46985")),
        *((f"build --source {n} --raw x --out y", "") for n in ("eurlex", "lamp4", "cr_train")),
        *((f"build --source {n} --raw x --out y", "") for n in ("narrativeqa", "detectiveqa")),
    ],
)
def test_what_did_nothing_is_not_offered(tmp_path, monkeypatch, capsys, words, known):
    """One line that names what there is, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert run(*words.split()) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and known in shown
    assert "did you mean" in shown or "known: " in shown or "choose from" in shown
    assert list(tmp_path.iterdir()) == []


def test_every_setting_of_a_build_is_read_somewhere(root):
    """The release has parameters that nothing reads."""
    read = {
        node.attr
        for path, tree in modules(root)
        if path.name != "config.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("config")
    }
    assert set(BuildConfig.__dataclass_fields__) <= read


def test_task_texts_name_no_tool(tmp_path):
    """The release's name tools that do not exist."""
    tools = (INSERT, UPDATE, DELETE, "memory_insert", "memory_type")
    for text in (*PROMPTS.values(), *(s.question_prefix for s in TASKS.values())):
        assert not any(tool in text for tool in tools)
    for name in ("hotpotqa", "perltqa", TTL):
        make_raw(tmp_path / name, name)
        built = build_source(name, tmp_path / name, BuildConfig(rows="any"))
        for instance in (*built.train, *built.test):
            assert instance.prompt == PROMPTS[TASKS[name].category]


# --- Answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, True, {"a": 1}, [["x"]], [None], float("nan")])
def test_an_answer_that_is_no_text_is_refused_with_its_row(tmp_path, capsys, answer):
    """The release stops in a debugger."""
    pairs = json.dumps([{"question": "Which?", "answer": answer}])
    path = published(tmp_path / "test.parquet", row(), row(questions_and_answers=pairs))
    assert run("split", path, "--out", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "test.parquet: row 1: questions_and_answers[0]: answer: expected text" in shown


def test_more_than_100_questions_are_sampled_or_refused_by_name(tmp_path, capsys):
    """The release's split aborts by an assertion."""
    asked = [
        {"id": str(i), "question": f"Is it {i}?", "answers": [{"text": "salt"}]} for i in range(130)
    ]
    paragraphs = [{"context": "It is salt.", "qas": asked}]
    content = json.dumps({"data": [{"title": "Salt", "paragraphs": paragraphs}]})
    (tmp_path / "squad.json").write_text(content)
    [one], [again] = (sources.build("squad", tmp_path, BuildConfig(), 0) for _ in range(2))
    kept = [int(qa.question[6:-1]) for qa in one.questions]
    assert one == again and len(kept) == 100 and kept == sorted(kept)

    pairs = json.dumps([{"question": q["question"], "answer": "salt"} for q in asked])
    path = published(tmp_path / "p" / "test.parquet", row(questions_and_answers=pairs))
    [instance] = load_instances(path)
    assert run("split", path, "--out", tmp_path / "out") == 2
    message = f"{instance.id}: expected at most 100 questions, found 130"
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metric", "answer", "reply"),
    [
        ("contains", "Mira Holt", "It was mira holt."),
        ("substring", "Mira Holt", "Answer: Mira Holt"),
        ("label", "3", r"\boxed{3}"),
        ("keywords", "Nell, blue door,clock", "NELL opens the Blue Door of the clock"),
        ("perltqa", "Lemon trees; Forty", "FORTY lemon trees"),
    ],
)
def test_text_and_list_of_one_are_scored_alike_by_one_scorer(metric, answer, reply):
    """In the release the scorer depends on the file that a row comes from."""
    found = [
        read_instance(
            row(questions_and_answers=[{"question": "Q?", "answer": shape}]), "here"
        ).questions[0]
        for shape in (answer, [answer])
    ]
    assert {qa.answers for qa in found} == {(answer,)}
    assert [score(metric, reply, qa.answers) for qa in found] == [1.0, 1.0]
    assert score(metric, "nothing of it", found[0].answers) == 0.0


def test_lists_are_alternatives_or_keywords_by_the_metric_of_their_source():
    """One metric per source says which; every accepted answer of RULER counts."""
    golds = ("Paris", "City of Light")
    assert score(TASKS["ruler_qa1_197K"].metric, "the city of light", golds) == 1.0
    assert score(TASKS["infbench_sum_eng_shots2"].metric, "the city of light", golds) == 0.5
    labels = {s.metric for s in TASKS.values() if s.name.startswith("icl_")}
    assert labels == {TASKS["ttl_train"].metric} == {"label"}


# --- Caches --------------------------------------------------------------------------------------


@pytest.fixture
def stub():
    """A server that says the question's last word."""
    with StubServer(lambda body: body["messages"][-1]["content"].split()[-1]) as running:
        yield running


def asker(stub: StubServer, folder: Path, model: str = "tiny") -> Llm:
    return Llm(Client(Endpoint(stub.url, model, cache=folder)))


def asked(*askers: Llm) -> list[int]:
    return [one.client.usage.asked for one in askers]


def test_only_what_is_new_is_asked_and_nothing_stale_is_used(stub, tmp_path):
    """With older scores squad drops questions in silence and hotpotqa raises a key error."""
    pairs = [("Is it salt", "salt"), ("Is it rain", "snow")]
    assert (first := asker(stub, tmp_path)).closed_book(pairs, WORDS.count) == [False, True]
    changed, second = [("Is it fog", "fog"), *pairs[::-1]], asker(stub, tmp_path)
    assert second.closed_book(changed, WORDS.count) == [False, True, False]
    (other := asker(stub, tmp_path, "another")).closed_book(pairs, WORDS.count)
    assert asked(first, second, other) == [2, 1, 2] and second.client.usage.cached == 2


def test_another_instruction_is_asked_again(stub, tmp_path, monkeypatch):
    """So is another version of the code that reads the reply."""
    (first := asker(stub, tmp_path)).keywords(["Nell opens doors"])
    version, text, tokens = stages.KEYWORDS
    monkeypatch.setattr(stages, "KEYWORDS", (version, "List less.", tokens))
    (second := asker(stub, tmp_path)).keywords(["Nell opens doors"])
    monkeypatch.setattr(stages, "KEYWORDS", ("keywords/next", "List less.", tokens))
    (third := asker(stub, tmp_path)).keywords(["Nell opens doors"])
    assert asked(first, second, third) == [1, 1, 1]


def test_a_rebuild_is_made_of_its_raw_files_alone(tmp_path):
    """There is nothing to force, as no intermediate file is ever read."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    words = ("build", "--source", "hotpotqa", "--raw", raw, "--out", out, "--stage", "rules")
    found = []
    for seed in (0, 1, 0):
        make_raw(raw, "hotpotqa", seed)
        assert run(*words) == 0
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[2] != found[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_a_stored_reply_is_a_file_of_its_own_without_the_text(stub, tmp_path):
    """The release writes all book texts anew after each call."""
    asker(stub, tmp_path).keywords(["A long book about Nell"])
    [path] = tmp_path.rglob("*.json")
    before = path.stat().st_mtime_ns, path.read_bytes()
    asker(stub, tmp_path).keywords(["A long book about Nell", "Another of Tom"])
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert b"long book" not in before[1] and len(list(tmp_path.rglob("*.json"))) == 2


# --- Safety --------------------------------------------------------------------------------------


def test_text_is_never_evaluated(tmp_path):
    """A cell that is Python code is refused as a list and kept as a text."""
    trap = tmp_path / "sprung"
    code = f"[__import__('pathlib').Path({str(trap)!r}).touch()]"
    for column in ("chunks", "questions_and_answers"):
        with pytest.raises(InputError, match=rf"row 0: {column}: expected a JSON list, found"):
            load_instances(published(tmp_path / "a.parquet", row(**{column: code})))
    with pytest.raises(InputError, match="expected a list as text, found"):
        dialogues.read_dialogues(code, "here")
    pairs = [{"question": code, "answer": code}]
    [kept] = load_instances(
        published(
            tmp_path / "b.parquet",
            row(questions_and_answers=json.dumps(pairs), chunks=json.dumps([code]), metadata=code),
        )
    )
    assert kept.chunks == (code,) and kept.questions[0].answers == (code,)
    assert kept.metadata == {"metadata": code}
    gold = {"Question": "Who?", "Answer": "Oskar", "Reference Memory": code}
    assert perltqa.read_questions({"events": [{"1": [gold]}]}, "here", Skips())
    assert not trap.exists()


ALONE = """
import sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"{event} {args}")

sys.addaudithook(refuse)
from memalpha_kit import cli
from memalpha_kit.data import check, hub, stages  # noqa

for source in sys.argv[1:]:
    for words in (["example"], ["build", "--raw", f"{source}/raw", "--stage", "rules"]):
        out = f"{source}/raw" if words == ["example"] else f"{source}/out"
        assert cli.main(["data", *words, "--source", source, "--out", out]) == 0
"""


def test_data_are_built_without_network_key_or_home(tmp_path, root):
    """A fresh process with an empty environment, in an empty folder, that may not connect."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environment = {"HOME": str(home), "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "perltqa", "trec_coarse"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in work.iterdir()) == ["perltqa", "trec_coarse"]


def test_the_code_names_no_absolute_path_and_trusts_no_remote_code(root):
    """Defaults are relative; a tokenizer is loaded without code of its own."""
    for path, tree in modules(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = [p for p in ("/home/", "/Users/", "/root/", "/mnt/") if p in node.value]
                assert not found, f"{path}:{node.lineno}: {found}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.literal_eval(node.value) is False, path
    assert not Path(BuildConfig().llm_cache).is_absolute() and BuildConfig().llm_url == ""


def test_an_instance_without_questions_divides_nothing():
    """It cannot be made, so that no share of it is ever taken."""
    with pytest.raises(InputError, match="questions: expected at least one question, found none"):
        make_instance("squad", ["text"], [])
    with pytest.raises(InputError, match="expected an answer, found none"):
        make_instance("squad", ["text"], [QA("q0", "Which?", ())])
