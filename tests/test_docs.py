"""The pages of docs/: the tree is the tree, and what they name is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from little_world import BENCHMARK, MEMALPHA, little_model, save_data
from stub_server import StubServer
from typer.main import get_command

from memalpha_kit import cli
from tools import tree

PAGES = (
    *("architecture.md", "differences.md", "extend.md", "guarantees.md", "glossary.md"),
    *("public_commands.md", "performance.md", "../CONTRIBUTING.md", "../CHANGELOG.md"),
    "../benchmarks/README.md",
)


def test_the_tree_shows_every_file_with_the_first_line_of_its_docstring():
    found = "run `python -m tools.tree --write`"
    assert tree.PAGE.read_text() == tree.page(), found


def test_every_module_says_what_it_is_for(root):
    silent = [line for line in tree.lines() if line.strip().endswith(".py")]
    assert not silent


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_link_of_a_page_is_there(root, page):
    text = (root / "docs" / page).read_text()
    folder = (root / "docs" / page).parent
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (folder / link).exists(), link
    ours = [*(root / "memalpha_kit").rglob("*"), *root.glob("*/*")]
    names = {path.name for path in ours}
    for name in re.findall(r"`(?:[a-z_]+/)+([a-z_0-9]+\.(?:py|yaml|csv|md))`", text):
        assert name in names or name in PUBLISHED, name


PUBLISHED = {"generation.py", "naive.py", "ray_trainer.py", "main_ppo.py", "utils.py"}
"""Files of the published code that pages name with a folder."""


@pytest.mark.parametrize(("page", "least"), [("differences.md", 100), ("guarantees.md", 40)])
def test_every_test_that_a_page_names_exists(root, page, least):
    tests = "\n".join(path.read_text() for path in (root / "tests").glob("*.py"))
    text = (root / "docs" / page).read_text()
    named = set(re.findall(r"(test_[a-z0-9_]{12,})(?![a-z0-9_]*\.py)", text))
    assert len(named) > least
    assert sorted(name for name in named - {"test_time_learning"} if name not in tests) == []


# --- Commands -------------------------------------------------------------------------------------

COMMANDS = re.compile(r"^((?:memalpha|python|make|pytest) .+?)(?: +#.*)?$|`((?:memalpha|python"
                      r"|make|pytest) [^`]+)`", re.MULTILINE)  # fmt: skip
WITH_COMMANDS = (
    *("../README.md", "extend.md", "performance.md", "guarantees.md", "../CONTRIBUTING.md"),
    *("../benchmarks/README.md", "../reports/README.md"),  # public_commands.md: a file of its own
)
NOT_RUN = {
    "make": "makes an environment, or runs all of something; the targets are looked up",
    "pytest": "is what runs here; the files are looked up",
    "python benchmarks/": "takes minutes; `--help` is run and the options are looked up",
    "python -m": "writes into the checkout, or needs the model below",
    "memalpha run": "minutes; tests/test_notebooks.py",
    "memalpha seeds": "an hour; tests/test_runner.py runs it small",
    "memalpha sweep": "hours; tests/test_runner.py runs it small",
    "memalpha grouping": "minutes; tests/test_grouping.py runs it small",
    "memalpha lengths --profile laptop": "needs the miniature's data; --data data/squad is run",
    "memalpha explore runs/laptop": "needs a training of an hour; tests/test_explorer.py",
    "memalpha replay runs/laptop": "needs a training of an hour; tests/test_replay.py",
    "memalpha bench": "minutes; tests/test_benchmarks.py runs the quick look",
    "memalpha audit": "ten seconds, whole in tests/test_audit.py",
    "memalpha data download": "asks the hub; tests/test_hub.py",
    "memalpha data merge --recipe": "needs all sources of the paper; tests/test_data_commands.py",
    "memalpha models get": "downloads; tests/test_get.py",
    "memalpha export": "needs the model above; tests/test_real_model.py",
    "memalpha plan --profile small --probe": "needs the model above; tests/test_plan.py",
    "memalpha write --model": "needs the model above; tests/test_real_model.py",
    "memalpha calibrate": "ten seconds; tests/test_calibration.py",
    "memalpha train": "needs a card; tests/test_real_training.py runs it on a toy",
    "memalpha serve": "does not end; tests/test_server.py",
    "memalpha --extend": "stands for a module of yours; tests/test_extend.py",
}
"""Commands of pages that are only parsed, by how they begin, and why."""


def commands(root, page) -> list[list[str]]:
    """The commands of a page, in code blocks and between backquotes, as words."""
    text = (root / "docs" / page).read_text()
    return [shlex.split(block or inline) for block, inline in COMMANDS.findall(text)]


def parsed(words: list[str]) -> None:
    """Raises if `memalpha` would refuse these arguments; nothing runs."""
    if words[0] in ("--help", "--extend"):  # --extend names a module of the reader's
        return
    group = get_command(cli.app)
    context = group.make_context("memalpha", cli._spread(group, words))
    command, rest = group, [*context._protected_args, *context.args]
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
    if rest and rest[-1] != "..." and "--help" not in rest:
        command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_command_of_a_page_would_run(root, page):
    """Scripts and test files are there, `memalpha` takes the arguments, make knows the target."""
    found = commands(root, page)
    assert found
    makefile = (root / "Makefile").read_text()
    for words in found:
        program, *rest = words
        if program == "memalpha":
            parsed(rest)
        elif program == "make":
            assert all(f"\n{word}:" in makefile for word in rest if "=" not in word), words
        elif program == "pytest":
            assert all((root / w).exists() for w in rest if w.endswith(".py")), words
        elif rest[0] != "-m":
            assert (root / rest[0]).exists(), words


def test_every_reason_not_to_run_a_command_is_needed(root):
    lines = [" ".join(words) for page in WITH_COMMANDS for words in commands(root, page)]
    assert [start for start in NOT_RUN if not any(x.startswith(start) for x in lines)] == []
    named = re.findall(r"tests/\w+\.py", " ".join(NOT_RUN.values()))
    assert [name for name in named if not (root / name).exists()] == []


def to_run(root) -> list[list[str]]:
    """The commands of all pages that run here, each once, in the order of the pages."""
    found = [words for page in WITH_COMMANDS for words in commands(root, page)]
    whole = [w for w in found if len(w) > 2 and w[-1] != "..." and "--judge-url" not in w]
    left = [w for w in whole if not " ".join(w).startswith(tuple(NOT_RUN))]
    return [list(words) for words in dict.fromkeys(map(tuple, left))]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A working folder with what the pages take for granted: raw files, data, episodes, a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QWEN_URL", raising=False)
    save_data(Path("data/squad"), ("squad",), 13, questions=1, chunks=1)
    save_data(Path("data/memalpha"), MEMALPHA)
    save_data(Path("data/memoryagentbench"), BENCHMARK)
    Path("notes").mkdir()
    Path("notes/a.md").write_text("Nora keeps bees in Lund.")
    Path("q.jsonl").write_text('{"question": "Who keeps bees?", "answer": "Nora", "file": "a.md"}')
    by_rule = "--data data/squad --writer keep_sentences"
    for line in (
        "data example --source trec_coarse --out data/raw",
        "data example --source squad --out data/raw",
        "data example --source hotpotqa --out raw/hotpotqa",
        f"write {by_rule} --out before.jsonl",
        f"write {by_rule} --rollouts 2 --out after.jsonl",
        f"write {by_rule} --instances 1 --out runs/smollm2.jsonl",
        f"evaluate --method memory {by_rule} --reader best_entry --name memory-squad-1a2b3c4d",
    ):
        assert cli.main(line.split()) == 0, line


def test_commands_of_the_pages_run_one_after_the_other(root, prepared, capsys):
    """The server they name is a stub, and `*` is what a shell would find."""
    found = to_run(root)
    assert len(found) > 15
    with StubServer(little_model) as stub:
        for words in found:
            said = " ".join(words[1:]).replace("http://localhost:8001/v1", stub.url)
            line = [sorted(map(str, Path().glob(w))) if "*" in w else [w] for w in said.split()]
            code = cli.main(sum(line, []))
            assert code == 0, (words, capsys.readouterr().err)


SCRIPTS = ("fuzz.py", "kills.py", "build_memory.py", "gpu_training.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_of_the_pages_starts_and_knows_its_options(root, script):
    done = subprocess.run(
        [sys.executable, root / "benchmarks" / script, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for page in WITH_COMMANDS:
        for words in commands(root, page):
            if words[1:] and words[1].endswith(script):
                assert all(w in done.stdout for w in words[2:] if w.startswith("--")), words


def test_the_citation_file_is_valid_and_says_the_version(root):
    from memalpha_kit import __version__

    said = yaml.safe_load((root / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= said.keys()
    assert said["version"] == __version__ and said["cff-version"] == "1.2.0"
    paper = said["preferred-citation"]
    assert paper["title"] and all(
        {"family-names", "given-names"} == set(a) for a in paper["authors"]
    )


def test_the_command_for_licences_names_one_for_every_requirement(root):
    done = subprocess.run(
        [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=csv"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [
        line.strip('"').split('","') for line in done.stdout.splitlines() if line.count('","') == 2
    ]
    named = {re.sub("[-_.]+", "-", row[0]).lower(): row[2] for row in rows}
    needed = re.findall(r'^    "([A-Za-z0-9-]+)[>=]', (root / "pyproject.toml").read_text(), re.M)
    others = {"bitsandbytes", "unsloth", "vllm", "pip-licenses"}  # for a card, and itself
    needed = [name.lower() for name in needed if name not in others]
    assert needed and [name for name in needed if name not in named] == []
    ours = [named[name] for name in needed]
    assert not [text for text in ours if text == "UNKNOWN" or text.startswith("GPL")]
