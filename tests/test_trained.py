"""`memalpha write` of a text: by a rule, and by a writer that comes trained."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_qwen3, tiny_tokenizer

from memalpha_kit import cli
from memalpha_kit.data.instances import save_instances
from memalpha_kit.models.tiny import save_policy
from memalpha_kit.records import QA, make_instance
from memalpha_kit.settings import load_profile
from memalpha_kit.training import trained
from memalpha_kit.training.backends import load_model

TEXT = "Mira lives in Lund. Her parrot is Pixel."


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tiny base, and an adapter of rank 4 that is no change at all, as `small`'s."""
    tokenizer = tiny_tokenizer()
    base = save_policy(tiny_qwen3(tokenizer), tokenizer, tmp_path / "base")
    lm = load_model(load_profile("small", [f"model.name={base}"]).model, base, seed=0)
    lm.model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "reports" / "recorded" / "small" / "adapter.zip"
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted((tmp_path / "adapter").iterdir()):
            archive.write(path, path.name)
    monkeypatch.setattr(trained, "repository", lambda: tmp_path)
    return base


@pytest.mark.parametrize("how", ["argument", "file", "stdin"])
def test_a_rules_memory_of_a_text_is_printed(tmp_path, monkeypatch, capsys, how):
    (tmp_path / "note.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    given = {"argument": TEXT, "file": str(tmp_path / "note.txt"), "stdin": "-"}[how]
    assert cli.main(["write", "--writer", "keep_sentences", given]) == 0
    said = capsys.readouterr().out
    assert "semantic memory:\n1. Mira lives in Lund.\n2. Her parrot is Pixel.\n" in said
    assert "2 calls, 2 worked (100%), 2.00 per chunk; no call in 0 of 1 chunk\n" in said


def test_a_writer_that_comes_trained_writes_under_its_own_profile(small, tmp_path, capsys):
    roomy = ["--set", "protocol.max_prompt_tokens=900", "--set", "protocol.max_reply_tokens=4"]
    argv = ["write", "--model", "small", "--set", f"model.name={small}", *roomy]
    assert cli.main([*argv, f"{TEXT} " * 8]) == 0
    said = capsys.readouterr()
    assert "semantic memory:\n" in said.out and "in 2 of 2 chunks" in said.out  # 60 tokens each
    assert "episodic" not in said.out and "made no call in 2 of 2 chunks" in said.err
    data, out = tmp_path / "d.parquet", str(tmp_path / "lengths")
    save_instances(data, [make_instance("squad", [TEXT], [QA("q0", "Who?", ("Mira",))])])
    argv = ["lengths", *argv[1:], "--data", str(data), "--lengths", "1", "--out", out]
    assert cli.main(argv) == 0
    assert cli.main([*argv, "--dtype", "float32"]) == 2  # other numbers
    assert "was begun with dtype = None" in capsys.readouterr().err


def test_its_weights_are_those_of_its_adapter_and_a_missing_base_is_said(small, tmp_path, capsys):
    profile = load_profile("small", [f"model.name={small}", "model.dtype=float32"])
    lm = trained.load_trained(trained.adapter_file(Path("small")), profile)
    ids = torch.arange(8)[None]
    assert torch.allclose(lm.model(ids).logits, tiny_qwen3(lm.tokenizer)(ids).logits, atol=1e-5)
    assert Path(lm.name).name == "small"  # a run of its base's is not gone on with
    missing = tmp_path / "smollm2-135m"
    assert cli.main(["write", "--model", "small", "--set", f"model.name={missing}", TEXT]) == 2
    assert "memalpha models get smollm2-135m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", "expected words"),
        ("no_such.md", "no_such.md: expected a readable file"),
        (".", ".: expected a readable file"),
        ("Mira \udcff", "expected UTF-8, found other bytes"),
        ("-", "expected UTF-8, found other bytes"),
    ],
)
def test_a_text_that_is_blank_missing_a_folder_or_not_utf_8_is_one_line(
    monkeypatch, capsys, given, found
):
    monkeypatch.setattr("sys.stdin", io.StringIO("\udcff\udcfe of a pipe"))
    assert cli.main(["write", "--writer", "keep_sentences", given]) == 2
    assert found in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["--temperature", "-1"], "temperature: expected at least 0"),
        (["--device", "meta"], "device 'meta': expected one of here"),
        (["--set", "protocol.max_reply_tokens=16000"], "expected a window of 22144"),
        (["--set", "protocol.max_prompt_tokens=9"], "or raise protocol.max_prompt_tokens"),
    ],
)
def test_a_model_that_cannot_write_so_is_one_line_that_names_the_setting(
    small, capsys, more, found
):
    assert cli.main(["write", "--model", str(small), *more, TEXT]) == 2
    assert found in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--data", "d"], ["--data", "d", "--out", "o", "a text"]])
def test_a_text_or_data_with_a_file_to_write(more, capsys):
    assert cli.main(["write", "--writer", "silent", *more]) == 2
    assert "expected a TEXT, or --data and --out" in capsys.readouterr().err


@pytest.mark.real
def test_the_recorded_writer_keeps_something_of_a_text(real_model, capsys):
    assert trained.adapter_file(Path("small"))
    argv = ["write", "--model", "small", "--set", f"model.name={real_model}"]
    assert cli.main([*argv, "Mira Holt lives in Lund with her sister. She has a parrot."]) == 0
    said = capsys.readouterr()
    assert "1. " in said.out and not said.err
