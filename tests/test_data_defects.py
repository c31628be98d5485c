"""The defects that the published data code is known for, and what shows that they are not ours.

What the tests of single rooms do not show is tested here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from memalpha_kit.data.build import PROMPTS, build_source
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import TASKS
from tools.sample_data import make_raw

TTL = "icl_trec_coarse_6600shot_balance"


def modules(root: Path) -> list[tuple[Path, ast.Module]]:
    """The files of the kit with their syntax trees."""
    paths = sorted((root / "memalpha_kit").rglob("*.py"))
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


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
    env = {"HOME": str(home), "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", ALONE, "perltqa", "trec_coarse"]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=120)
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
