"""The defects that the published data code is known for, and what shows that they are not ours.

What the tests of single rooms do not show is tested here.
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
from memalpha_kit.data import dataset, stages
from memalpha_kit.data.build import PROMPTS, build_source
from memalpha_kit.data.chunks import pack_dialogues
from memalpha_kit.data.instances import load_instances
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import longmemeval, perltqa
from memalpha_kit.data.stages import Llm
from memalpha_kit.errors import InputError
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE
from memalpha_kit.models.chat import Client
from memalpha_kit.models.servers import Endpoint
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


# --- What is offered -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("split-train-test", "'split'"),
        ("convert-to-parquet", "build"),  # it does nothing
        ("filter-dataset", "check"),  # nobody reads what it writes
        ("build --source squad --raw x --out y --status", "'--stage'"),
        ("build --source squad --raw x --out y --force", "'--source'"),  # no inner caches
        ("build --source squad_test --raw x --out y", "'squad'"),
        ("build --source arxiv-classification --raw x --out y", "trec_coarse"),
        ("split-single-dataset", "'split'"),
        ("status", "check"),  # it does nothing
        ("difficulty", "check"),  # its bins overlap
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
    names = ("hotpotqa", "perltqa", TTL)
    assert [TASKS[name].category for name in names] == ["AR", "AR", "TTL"]
    for name in names:
        make_raw(tmp_path / name, name)
        built = build_source(name, tmp_path / name, BuildConfig(rows="any"))
        for instance in (*built.train, *built.test):
            assert instance.prompt == PROMPTS[TASKS[name].category]


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


@pytest.mark.parametrize("changed", [("closed-book/next", None), (None, "Say less.")])
def test_another_instruction_is_asked_again_and_no_text_is_stored(
    stub, tmp_path, monkeypatch, changed
):
    """So is another version of the code that reads the reply; old replies stay as they are."""
    asker(stub, tmp_path).closed_book([("Is it salt", "salt")], WORDS.count)
    [path] = tmp_path.rglob("*.json")
    before = path.read_bytes()
    version, text, tokens = stages.CLOSED_BOOK
    monkeypatch.setattr(stages, "CLOSED_BOOK", (changed[0] or version, changed[1] or text, tokens))
    (second := asker(stub, tmp_path)).closed_book([("Is it salt", "salt")], WORDS.count)
    assert asked(second) == [1] and len(list(tmp_path.rglob("*.json"))) == 2
    assert path.read_bytes() == before and b"Is it" not in before


# --- Safety --------------------------------------------------------------------------------------


def test_text_is_never_evaluated(tmp_path):
    """A cell that is Python code is refused as a list and kept as a text."""
    trap = tmp_path / "sprung"
    code = f"[__import__('pathlib').Path({str(trap)!r}).touch()]"
    for column in ("chunks", "questions_and_answers"):
        with pytest.raises(InputError, match=rf"row 0: {column}: expected a JSON list, found"):
            load_instances(published(tmp_path / "a.parquet", row(**{column: code})))
    with pytest.raises(InputError, match="expected a list as text, found"):
        longmemeval.read_dialogues(code, "here")
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
sys.modules["nltk"] = None  # neither the package nor its sentence models are needed
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
