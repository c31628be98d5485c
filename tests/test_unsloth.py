"""What the kit counts on in Unsloth and vLLM, checked against the installed versions.

    pip install -e .[gpu]           # or, without a card, vLLM's wheel unpacked somewhere:
    MEMALPHA_VLLM_SOURCE=folder pytest -m unsloth

Skipped where they are not installed. No card is needed: Unsloth runs in processes of its own (it
changes the one that imports it, see unsloth_losses.py), vLLM is read and never imported.
"""

from __future__ import annotations

import ast
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


# --- Unsloth --------------------------------------------------------------------------------------


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


# --- vLLM -----------------------------------------------------------------------------------------


def class_in(path: Path, name: str) -> ast.ClassDef:
    """A class of a source file."""
    tree = ast.parse(path.read_text())
    return next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name)


def fields(cls: ast.ClassDef) -> set[str]:
    """Names that the class declares: `name: type`."""
    return {part.target.id for part in cls.body if isinstance(part, ast.AnnAssign)}


def parameters(cls: ast.ClassDef, method: str) -> set[str]:
    """Names of the method's parameters."""
    (found,) = (p for p in cls.body if isinstance(p, ast.FunctionDef) and p.name == method)
    return {a.arg for a in (*found.args.args, *found.args.kwonlyargs)} - {"self"}


def trl_source(name: str) -> ast.Module:
    """A file of TRL's generation package."""
    spec = find_spec("trl")
    return ast.parse((Path(spec.origin).parent / "generation" / name).read_text())


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Calls of `name`, `LLM` or `self.llm.generate` say."""
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def keywords(call: ast.Call) -> set[str]:
    return {keyword.arg for keyword in call.keywords if keyword.arg}


def test_vllm_takes_what_trl_builds_an_engine_with_and_what_the_documentation_says(vllm):
    own = parameters(class_in(vllm / "entrypoints" / "llm.py", "LLM"), "__init__")
    known = own | fields(class_in(vllm / "engine" / "arg_utils.py", "EngineArgs"))
    (call,) = calls(trl_source("vllm_generation.py"), "LLM")
    assert {"model", "max_model_len", "logprobs_mode"} <= keywords(call)  # the call that we mean
    assert keywords(call) | {"weight_transfer_config", "max_logprobs"} <= known


def test_vllm_samples_with_what_trl_and_the_reader_ask_for(vllm):
    known = fields(class_in(vllm / "sampling_params.py", "SamplingParams"))
    made = [
        node.value
        for node in ast.walk(trl_source("vllm_generation.py"))
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "generation_kwargs"
        and isinstance(node.value, ast.Dict)
    ]
    asked = {key.value for part in made for key in part.keys}
    assert {"n", "temperature", "max_tokens", "logprobs"} <= asked
    assert asked | {"stop", "stop_token_ids", "seed"} <= known


@pytest.mark.parametrize("method", ["generate", "sleep", "wake_up", "reset_prefix_cache"])
def test_the_engine_has_the_methods_that_trl_and_the_reader_call(vllm, method):
    """Reader and judge call `engine.generate(prompts, sampling, use_tqdm=False)`, no adapter."""
    found = calls(trl_source("vllm_generation.py"), f"self.llm.{method}")
    assert found
    asked = set().union(*map(keywords, found))
    if method == "generate":
        asked |= {"prompts", "sampling_params", "use_tqdm", "lora_request"}
    assert asked <= parameters(class_in(vllm / "entrypoints" / "llm.py", "LLM"), method)


def test_a_server_has_the_routes_that_push_weights(vllm):
    text = "".join(path.read_text() for path in (vllm / "entrypoints").rglob("api_router.py"))
    for route in ("init_weight_transfer_engine", "update_weights", "reset_prefix_cache"):
        assert f'"/{route}"' in text, route


def test_what_trl_imports_from_vllm_exists(vllm):
    for name in ("vllm_client.py", "vllm_generation.py"):
        for node in ast.walk(trl_source(name)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm."):
                if "weight_transfer" in node.module and "nccl_engine" in node.module:
                    continue  # of vllm below 0.28
                path = vllm.joinpath(*node.module.split(".")[1:])
                source = path.with_suffix(".py") if not path.is_dir() else path / "__init__.py"
                for imported in node.names:
                    assert imported.name in source.read_text(), (node.module, imported.name)
