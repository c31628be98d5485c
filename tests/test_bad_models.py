"""A model folder that is not whole: every command refuses it in one line and writes nothing."""

from __future__ import annotations

import shutil

import pytest
import tiny_policy as tiny
from little_world import instance, save_data
from test_models import FAULTS

from memalpha_kit import cli
from memalpha_kit.data.instances import save_instances
from memalpha_kit.files import held

COMMANDS = {
    "write": "write --data {data} --out {out}/e.jsonl --model {model}",
    "evaluate": "evaluate --data {data} --method long-context --model {model} --out {out}",
    "evaluate a writer": "evaluate --data {data} --method memory --reader best_entry"
    " --writer {model} --out {out}",
    "calibrate": "calibrate --out {out}/c.csv --model {model} --repeats 1",
    "serve": "serve --model {model} --port 0",
    "train": "train --profile gpu --data {data} --out {out} --set model.name={model} "
    + " ".join(f"--set {setting}" for setting in (*tiny.CHAT_SETTINGS, "grpo.steps=1")),
    "export": "export {model} --out {out}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set, and a whole model's folder."""
    folder = tmp_path_factory.mktemp("world")
    data = save_data(folder / "data", ("squad",), 2)
    save_instances(data / "train.parquet", [instance("squad", n) for n in range(9, 13)])
    tiny.saved_chat(folder / "whole")
    return folder


@pytest.mark.parametrize(
    "fault", ["no weights", "pickle", "no tokenizer", "a missing weight", "NaN"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_is_not_whole_is_one_line_and_nothing_is_written(
    world, tmp_path, capfd, command, fault
):
    model, out = shutil.copytree(world / "whole", tmp_path / "model"), tmp_path / "out"
    spoil, _ = FAULTS[fault]
    spoil(model)
    argv = COMMANDS[command].format(data=world / "data", model=model, out=out).split()
    assert cli.main(argv) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"memalpha: error: model {model}: ") and said.count("\n") == 1, said
    assert not out.exists() or not [path for path in out.rglob("*") if path.is_file()]


def test_two_processes_do_not_train_into_one_folder(world, tmp_path, capfd):
    argv = COMMANDS["train"].format(data=world / "data", model=world / "whole", out=tmp_path)
    with held(tmp_path):
        assert cli.main(argv.split()) == 2
    assert f"{tmp_path}: expected to be alone" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
