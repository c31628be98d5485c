"""`memalpha train` on a CPU: a tiny model in a folder, tiny data, every reader, killed and resumed."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import tiny_policy as tiny
import torch
from stub_server import StubServer
from tiny_models import TEMPLATE

from memalpha_kit import cli, real_training, store
from memalpha_kit.answering import ModelReader
from memalpha_kit.config import PolicyConfig, load_profile
from memalpha_kit.errors import InputError
from memalpha_kit.models import load_lm
from memalpha_kit.records import QA, make_instance
from memalpha_kit.training import rollouts
from memalpha_kit.training.policy import build_policy, save_policy

SOURCES = ("squad", "trec_coarse")
SETTINGS = {
    "model.backend": "transformers",
    "model.vllm": "none",
    "model.dtype": "float32",
    "model.lora_rank": 4,
    "model.max_seq_length": 2048,
    "protocol.wire": "compact",
    "protocol.prompt": "compact",
    "protocol.max_prompt_tokens": 512,
    "protocol.max_reply_tokens": 6,
    "memory.core": "false",
    "memory.counter": "words",
    "grpo.steps": 2,
    "grpo.instances": 2,
    "grpo.rollouts": 2,
    "grpo.slices": 1,
    "grpo.learning_rate": 0.05,
    "grpo.warm_up_steps": 0,
    "grpo.save_every": 1,
    "grpo.validate_every": 1,
    "grpo.validate_instances": 2,
    "grpo.outage_retries": 0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny chat model's folder; every call of the tiny world is one of its tokens."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("im_end|", "end|").replace("<|im_start|>", "> ")
    config = PolicyConfig(**vars(tiny.POLICY) | {"max_positions": 4096})
    model = build_policy(config, tokenizer, seed=0).eval()
    return save_policy(model, tokenizer, tmp_path_factory.mktemp("model") / "tiny")


def instance(source, number):
    """Two chunks `fact n`, each asked for."""
    numbers = (number, number + 1)
    asked = [QA(f"q{n}", f"which fact is {n}", (str(n),)) for n in numbers]
    return make_instance(source, [f"fact {n}" for n in numbers], asked)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two data sets as `memalpha data build` writes them."""
    folder = tmp_path_factory.mktemp("data")
    for i, source in enumerate(SOURCES):
        built = [instance(source, 10 * i + 2 * j) for j in range(3)]
        store.save_instances(folder / source / "train.parquet", built[:2])
        store.save_instances(folder / source / "test.parquet", built[2:])
    return [folder / source for source in SOURCES]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Answers of a few tokens."""
    monkeypatch.setattr(ModelReader, "max_tokens", 16)


def train(base, data, out, *more, **settings):
    """`memalpha train` in this process."""
    said = {"model.name": base} | SETTINGS | settings
    pairs = [word for name, value in said.items() for word in ("--set", f"{name}={value}")]
    command = ["train", "--profile", "gpu", "--data", *map(str, data), "--out", str(out)]
    return cli.main([*command, *pairs, *more])


def weights(folder):
    return load_lm(folder).model.state_dict()


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


RULE = {"model.reader": "rule", "reward.content": 0}
READERS = {"base": {"reward.content": 0}, "rule": RULE, "full": RULE | {"model.lora_rank": 0}}


@pytest.mark.parametrize("name", READERS)
def test_a_killed_run_resumes_to_what_an_uninterrupted_one_exports(
    base, data, tmp_path, monkeypatch, capsys, name
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(base, data, whole, **READERS[name]) == 0
    assert f"{whole / 'export'}: policy of step" in capsys.readouterr().out

    def killed(seed, step, draw=rollouts.step_seed):
        if step == 1:
            raise KeyboardInterrupt
        return draw(seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "step_seed", killed)
        assert train(base, data, cut, **READERS[name]) == 130
    assert json.loads((cut / "run.json").read_text())["finished"] is False
    assert train(base, data, cut, "--resume", **READERS[name]) == 0
    for file in ("metrics.csv", "validation.csv"):
        assert (whole / file).read_bytes() == (cut / file).read_bytes()
    assert equal(weights(whole / "export"), weights(cut / "export"))
    assert not equal(weights(base), weights(whole / "export"))
    card = json.loads((whole / "run.json").read_text())
    assert card["finished"] and card["device"] == "cpu" and card["instances"] == 4
