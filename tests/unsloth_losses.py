"""What Unsloth makes of TRL, and of our runs: `python unsloth_losses.py WHO`, WHO trl or unsloth.

Trains the tiny runs of `RUNS` under TRL's trainer class, or under the one that Unsloth writes from
TRL's source, and prints one JSON object: losses and gradient norms per run, and under Unsloth also
what it rewrote and which arguments it takes. Not a test: test_unsloth.py is, and starts this in
processes of their own, because Unsloth changes the process that imports it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from memalpha_kit.settings import ModelConfig

BASE = dict(steps=5, slices=2, save_every=0)
RUNS = {
    **{
        f"{loss}{end}": dict(loss=loss)
        for loss in ("dapo", "grpo", "dr_grpo", "bnpo")
        for end in ("", " lora")
    },
    # far from the reference the two differ: Unsloth caps the divergence of a token at 10
    "kl": dict(kl=0.1, learning_rate=1e-3),
    "kl grpo": dict(kl=0.1, loss="grpo", learning_rate=1e-3),
    "kl lora": dict(kl=0.1),
    "updates": dict(slices=4, updates=2, iterations=2, steps=3, learning_rate=5e-4),
    "engine": dict(learning_rate=1e-3),
    "dual clip": dict(iterations=3, dual_clip=1.1, steps=3, learning_rate=5e-4),
}
"""Run -> what differs from `BASE`. A name that ends in " lora" trains an adapter; in "engine" vLLM
is said to have sampled the rows, with probabilities other than the trainer's."""
COLOCATED = ModelConfig(lora_rank=8, vllm="colocate")
SEEN = ("from_pretrained", "get_peft_model", "for_training", "for_inference")


def with_unsloth() -> dict[str, Any]:
    """Imports Unsloth where there is no card, lets it rewrite TRL, and returns what changed."""
    os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp()  # where it writes the classes
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    import unsloth  # noqa: I001  # before torch, transformers and trl

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # else it leaves TRL as it is
    import torch
    import trl
    from trl.generation.vllm_generation import VLLMGeneration
    from unsloth.models import rl

    torch._dynamo.config.disable = True
    torch.cuda.synchronize = lambda *_: None
    original, engine = trl.GRPOTrainer, dict(vars(VLLMGeneration))
    rl._patch_trl_rl_trainers_impl("grpo_trainer")
    rl.patch_trl_vllm_generation()
    outer, inner = trl.GRPOTrainer.__mro__[:2]
    before, after = methods(original), methods(inner)
    single_turn = inspect.getsource(inner._generate_single_turn)
    return {
        "classes": [outer.__name__, inner.__name__],
        "derives_from_trl": issubclass(outer, original),
        "added": sorted(after.keys() - before.keys()),
        "changed": sorted(n for n in before.keys() & after.keys() if before[n] != after[n]),
        "removed": sorted(before.keys() - after.keys()),
        "wrapped": sorted(name for name, part in vars(outer).items() if callable(part)),
        "engine": sorted(
            n for n, part in vars(VLLMGeneration).items() if part is not engine.get(n)
        ),
        "engine_sends_adapter": hasattr(VLLMGeneration.generate, "__wrapped__"),
        "knows_shared_weights": "shared_weights" in single_turn,
        "parameters": {
            name: list(inspect.signature(getattr(unsloth.FastLanguageModel, name)).parameters)
            for name in SEEN
        },
    }


def methods(cls: type) -> dict[str, str]:
    """The syntax tree of every method that the class itself defines, without docstrings."""
    (node,) = ast.parse(inspect.getsource(cls)).body
    found = {}
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            if ast.get_docstring(part):
                part.body = part.body[1:]
            found[part.name] = ast.dump(part)
    return found


def rewritten_settings(folder: Path) -> dict[str, list[str]]:
    """Settings of vLLM that TRL's, or Unsloth's, GRPOConfig turned into others: wanted, found."""
    from trl import GRPOConfig

    from memalpha_kit.training.backends import vllm_arguments

    wanted = vllm_arguments(COLOCATED)
    made = GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, **wanted)
    found = {name: getattr(made, name) for name in wanted}
    return {n: [str(wanted[n]), str(found[n])] for n in wanted if wanted[n] != found[n]}


def rows(step: int) -> list[Any]:
    """Rows of a step: their number, their lengths and their forced tokens change from step to step.

    Some numbers of them do not divide by the number of slices, so there are fill rows.
    """
    import tiny_policy as tiny

    rng, made = random.Random(f"unsloth/{step}"), []
    for _ in range(rng.randint(3, 9)):
        prompt, completion = (
            [rng.randrange(10, 200) for _ in range(rng.randint(1, most))] for most in (9, 6)
        )
        mask = (1, *(rng.randrange(2) for _ in completion[1:]))
        advantage, known = rng.gauss(0, 1), [rng.gauss(-5.5, 1) for _ in completion]
        made.append(tiny.row(completion, advantage, prompt, mask, logprobs=known))
    return made


def run(name: str, policy: Path, folder: Path) -> dict[str, list[float]]:
    """Losses and gradient norms, one of each per optimiser step."""
    import tiny_policy as tiny

    from memalpha_kit.training.backends import load_model, vllm_arguments
    from memalpha_kit.training.trainer import EpisodeTrainer

    model = ModelConfig(lora_rank=4 if name.endswith(" lora") else 0, lora_alpha=8)
    lm = load_model(model, policy, seed=0)
    lm.model._unsloth_user_float32 = True  # else Unsloth asks a card for bfloat16
    config = dataclasses.replace(tiny.GRPO, **(BASE | RUNS[name]))
    order = [0] * config.instances * config.steps
    settings = tiny.run(folder, policy, config, model=model, seed=0)
    # under Unsloth the log-probabilities go through our method into its own, as on a card
    trainer = EpisodeTrainer(settings, lm, lambda step, *_: (rows(step), {}), order)
    trainer.args.logging_steps = trainer.state.logging_steps = 1
    if name == "engine":  # the settings that a colocated vLLM gets, without one
        for key, value in vllm_arguments(COLOCATED).items():
            setattr(trainer, key, value)
            setattr(trainer.args, key, value)
        trainer.vllm_generation = SimpleNamespace(mode="colocate")
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return {key: [log[key] for log in logs] for key in ("loss", "grad_norm")}


def main(who: str) -> None:
    """Prints what was found, as the last line."""
    found: dict[str, Any] = {"rewritten": with_unsloth()} if who == "unsloth" else {}
    import tiny_policy as tiny

    with tempfile.TemporaryDirectory() as out:
        folder = Path(out)
        found["settings"] = rewritten_settings(folder)
        policy = tiny.saved(folder / "policy")
        found["runs"] = {name: run(name, policy, folder / name) for name in RUNS}
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
