"""What the kit counts on in Unsloth, checked against the installed version: `pytest -m unsloth`.

Skipped where it is not installed (pip install -e .[gpu]). No card is needed: Unsloth runs in
processes of its own, as it changes the one that imports it (see unsloth_losses.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from memalpha_kit.settings import ModelConfig

pytestmark = pytest.mark.unsloth

TESTS = Path(__file__).parent
REWRITTEN = (  # as of trl 1.15.0 and unsloth 2026.10.7
    *("__init__", "_generate", "_generate_and_score_completions", "_generate_single_turn"),
    *("_get_per_token_logps_and_entropies", "_prepare_inputs", "compute_loss"),
)
WRAPPED = (
    *("__init__", "_generate_and_score_completions", "evaluation_loop", "train"),
    "training_step",
)
RUNS = (
    *("dapo", "dapo lora", "grpo", "grpo lora", "dr_grpo", "dr_grpo lora", "bnpo", "bnpo lora"),
    *("kl", "kl grpo", "kl lora", "updates", "engine", "dual clip"),
)
QLORA = ModelConfig(
    name="m", backend="unsloth", load_in_4bit=True, lora_rank=8, vllm="colocate", reader="base"
)
FULL = ModelConfig(name="m", backend="unsloth")


@cache
def played(who: str) -> dict:
    """What `unsloth_losses.py WHO` found."""
    paths = [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, str(TESTS / "unsloth_losses.py"), who]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def runs() -> dict[str, dict]:
    """What was found under TRL's own class, and under Unsloth's, with what that rewrote."""
    if not find_spec("unsloth"):
        pytest.skip("unsloth is not installed (pip install -e .[gpu])")
    return {who: played(who) for who in ("trl", "unsloth")}


def test_the_rewritten_methods_are_those_that_the_kit_was_written_for(runs):
    found = runs["unsloth"]["rewritten"]
    assert found["classes"] == ["UnslothGRPOTrainer", "_UnslothGRPOTrainer"]
    assert found["derives_from_trl"] is False  # a subclass of TRL's class would get none of it
    assert (found["added"], found["removed"]) == ([], [])
    assert found["changed"] == sorted(REWRITTEN)
    assert found["wrapped"] == sorted(WRAPPED)
    assert found["engine"] == ["_init_vllm", "generate", "sync_weights"]
    assert found["engine_sends_adapter"] and found["knows_shared_weights"]


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_gradients_under_unsloth_are_those_under_trl(runs, name):
    ours, other = (runs[who]["runs"][name] for who in ("trl", "unsloth"))
    assert sum(norm > 0 for norm in ours["grad_norm"]) >= 5  # where all is clipped it is 0
    assert other["loss"] == pytest.approx(ours["loss"], rel=1e-5, abs=1e-6)
    assert other["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("model", [QLORA, FULL], ids=["qlora", "full"])
def test_unsloth_knows_every_argument_by_name(runs, model, tmp_path):
    from memalpha_kit.training.backends import unsloth_adapter_arguments, unsloth_arguments

    known = runs["unsloth"]["rewritten"]["parameters"]
    assert set(unsloth_arguments(model, tmp_path)) <= set(known["from_pretrained"])
    assert set(unsloth_adapter_arguments(model, 0)) <= set(known["get_peft_model"])
    assert known["for_training"] == ["model", "use_gradient_checkpointing"]
    assert runs["trl"]["settings"] == runs["unsloth"]["settings"] == {}  # vLLM's, as given
