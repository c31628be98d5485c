"""Places that cannot be written: a disk that fills up, a folder that is read-only, another process.

A row of `COMMANDS` is a command that makes something. It says what is wrong in one line and leaves
nothing half-made, and once there is room the same command ends as if nothing had happened.
"""

from __future__ import annotations

import pytest
import tiny_policy as tiny
from little_world import instance, save_data
from small_disk import no_file_above, read_only
from test_bad_models import COMMANDS as WITH_A_MODEL

from memalpha_kit import cli
from memalpha_kit.data.instances import save_instances
from memalpha_kit.files import held

BY_RULE = "--data {data} --writer keep_sentences"
ASK = "ask --data {data} --episodes {episodes} --reader best_entry"
COMMANDS = {
    "build": ("data build --source squad --raw {raw} --out {out}/set", 2_000),
    "merge": ("data merge {data} --out {out}/set", 2_000),
    "download": (
        f"data download YuWangX/Memalpha-Memoryagentbench --revision {'0a' * 20} --out {{out}}/set",
        100,
    ),
    "write": (f"write {BY_RULE} --out {{out}}/e.jsonl", 3_000),
    "ask": (f"{ASK} --out {{out}}/run", 500),
    "report": ("report {run} --out {out}/t.csv", 300),
    "evaluate": (
        f"evaluate --method memory {BY_RULE} --reader best_entry --out {{out}} --name a",
        1_500,
    ),
    "train": (WITH_A_MODEL["train"].replace("{out}", "{out}/run"), 20_000),
    "run": ("run --profile ci --only 00 --root {out}", 5_000),
}
"""A command, and the largest file for which there is room: less than it writes."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Raw files, a data set and a model, by the names in the commands."""
    folder = tmp_path_factory.mktemp("world")
    data = save_data(folder / "data", ("squad",), 4)
    save_instances(data / "train.parquet", [instance("squad", n) for n in range(9, 13)])
    assert cli.main(["data", "example", "--source", "squad", "--out", f"{folder}/raw"]) == 0
    tiny.saved_chat(folder / "model")
    names = {name: folder / name for name in ("data", "raw", "model", "run")}
    names["episodes"] = folder / "e.jsonl"
    for line in (f"write {BY_RULE} --out {{episodes}}", f"{ASK} --out {{run}}"):
        assert cli.main(line.format(**names).split()) == 0
    return names


@pytest.fixture
def hub(world, monkeypatch):
    """Both files of a data set, from this machine."""
    import huggingface_hub

    def snapshot(local_dir, **_):
        local_dir.mkdir(parents=True, exist_ok=True)
        for part in ("train", "test"):
            raw = (world["data"] / f"{part}.parquet").read_bytes()
            (local_dir / f"{part}.parquet").write_bytes(raw)

    names = ["train.parquet", "test.parquet"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda api, **_: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def said(capsys) -> list[str]:
    """The lines of ours on standard error; a traceback is none of them."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("memalpha:")]


@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_written_is_one_line_and_the_same_command_ends_later(
    world, hub, tmp_path, capsys, name, fault
):
    out = tmp_path / "out"
    out.mkdir()
    command, room = COMMANDS[name]
    argv = command.format(out=out, **world).split()
    with no_file_above(room) if fault == "full" else read_only(out):
        code = cli.main(argv)
    (line,) = said(capsys)
    assert code == 1 and str(out) in line, line
    assert not [p for p in out.rglob("*") if p.suffix in (".tmp", ".new")]
    if (name, fault) == ("run", "read-only"):
        return  # a kernel takes seconds to start
    again = ["--resume"] if name == "train" and (out / "run").exists() else []
    assert cli.main([*argv, *again]) == 0


def test_two_downloads_do_not_go_into_one_folder_at_once(world, hub, tmp_path, capsys):
    argv = COMMANDS["download"][0].format(out=tmp_path).split()
    with held(tmp_path / "set"):
        assert cli.main(argv) == 2
    assert "expected to be alone" in said(capsys)[0]
    assert cli.main(argv) == 0
