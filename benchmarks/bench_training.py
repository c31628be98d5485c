"""Miniature training: tokens per second and seconds per phase, beside the bare model.

All in plain torch on a CPU, with the policy of the laptop profile (0.45 million parameters).
"""

from __future__ import annotations

import time
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import interval

from memalpha_kit.lab import lessons, miniature, world
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.models.decode import FastLM, fast
from memalpha_kit.models.local import CausalLM, Sampling
from memalpha_kit.models.tiny import build_policy
from memalpha_kit.records import TrainingRow
from memalpha_kit.settings import Profile, load_profile
from memalpha_kit.training import batch, trainer
from memalpha_kit.training.journal import Journal
from memalpha_kit.training.rollouts import Rollouts


@cache
def profile(quick: bool) -> Profile:
    """The laptop's, with a short warm start and few steps of GRPO; a look takes `ci`."""
    if quick:
        return load_profile("ci", ["grpo.steps=3"])
    warm = ["warm_start.copy_steps=80", "warm_start.transcribe_steps=40", "warm_start.steps=80"]
    return load_profile("laptop", [*warm, "grpo.steps=18"])


@cache
def prepared(quick: bool) -> tuple[CausalLM, list[TrainingRow]]:
    """A policy that has learned nothing yet, and as many rows as a step of GRPO trains on."""
    mini = profile(quick)
    tokenizer = lessons.tokenizer()
    model = build_policy(mini.policy, tokenizer, 0).eval()
    lm = CausalLM("policy", model, tokenizer, (tokenizer.eos_token_id,), 128)
    writer = ModelWriter(lm, mini.memory, mini.protocol, Sampling(0.0, 1))
    n = mini.grpo.instances * mini.grpo.rollouts * mini.world.chunks
    habits = world.imperfect(mini.warm_start)
    made = lessons.transcript_rows(writer, mini.world, habits, miniature.TEACHER_LIFE, n, "bench")
    return lm, [
        TrainingRow(
            prompt_ids=tuple(row.prompt_ids),
            completion_ids=tuple(row.completion_ids),
            loss_mask=(1,) * len(row.completion_ids),
            reward=1.0,
            advantage=1.0,
            group="g",
            episode="e",
            step=0,
        )
        for row in made
    ]


def bench_generate(meter):
    """Greedy replies of the prompts of one step; plain: transformers' `generate`."""
    lm, rows = prepared(meter.quick)
    sampling = Sampling(0.0, 8 if meter.quick else 48)
    prompts = [row.prompt_ids for row in rows][:48]

    def ids(some: CausalLM) -> list[tuple[int, ...]]:
        return [tuple(reply.completion_ids) for reply in some.generate(prompts, sampling)]

    quick_lm = fast(lm)
    assert isinstance(quick_lm, FastLM)
    replies = meter.versus(
        "generate (plain: transformers)",
        f"{len(prompts)} prompts",
        partial(ids, quick_lm),
        partial(ids, lm),
        rounds=7,
    )
    seconds = meter.rows[-1]["ours_s"]
    speed = sum(map(len, replies)) / seconds
    meter.add("tokens that are generated", f"{len(prompts)} at once", value=speed, unit="per s")


def bench_generate_by_length(meter):
    """The remedy: prompts sorted by length, a few at a time, each batch as wide as its longest."""
    lm, rows = prepared(meter.quick)
    quick_lm, sampling, rows_at_once = fast(lm), Sampling(1.0, 8 if meter.quick else 48), 16
    prompts = [row.prompt_ids for row in rows][:48]
    seeds = list(range(len(prompts)))
    order = sorted(seeds, key=lambda i: len(prompts[i]))

    def together() -> list[tuple[int, ...]]:
        return [tuple(r.completion_ids) for r in quick_lm.generate(prompts, sampling, seeds)]

    def by_length() -> list[tuple[int, ...]]:
        found: dict[int, tuple[int, ...]] = {}
        for start in range(0, len(order), rows_at_once):
            some = order[start : start + rows_at_once]
            replies = quick_lm.generate([prompts[i] for i in some], sampling, some)
            found |= {i: tuple(r.completion_ids) for i, r in zip(some, replies, strict=True)}
        return [found[i] for i in seeds]

    meter.versus(
        f"sampled replies, sorted by length, {rows_at_once} at a time (plain: all in one batch)",
        f"{len(prompts)} prompts",
        by_length,
        together,
        rounds=7,
    )


def passes(lm: CausalLM, rows: list[TrainingRow], how: str) -> tuple[float, float]:
    """Loss and gradient norm of one forward and backward pass over all rows."""
    model = lm.model
    model.zero_grad()
    made = batch.rows_to_batch(rows, lm.tokenizer.pad_token_id)
    ids = torch.cat([made["prompt_ids"], made["completion_ids"]], 1)
    mask = torch.cat([made["prompt_mask"], made["completion_mask"]], 1)
    n = made["completion_ids"].shape[1]
    if how == "sorted":
        logprobs, _ = batch.token_logprobs(model, ids, mask, n, 1.0)
        total = logprobs.sum()
    elif how == "unsorted":
        groups = torch.arange(len(ids)).split(batch.GROUP_ROWS)
        parts = [batch._packed_logprobs(model, ids[g], mask[g], n, 1.0)[0] for g in groups]
        total = torch.cat(parts).sum()
    else:  # one padded pass, logits of the completions only
        places = (mask.cumsum(1) - 1).clamp(min=0)
        hidden = model(
            input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=n + 1
        )
        every = hidden.logits[:, :-1].float().log_softmax(-1)
        picked = every.gather(2, ids[:, -n:, None])[:, :, 0]
        total = (picked * mask[:, -n:]).sum()
    (-total).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return total.item(), norm.item()


@pytest.mark.parametrize("how", ["padded", "unsorted"])
def bench_passes(meter, how):
    """Forward and backward of a step's rows, sorted by length, each group cut to its longest."""
    lm, rows = prepared(meter.quick)
    plain = {"padded": "one padded batch", "unsorted": "the same groups, not sorted"}[how]
    meter.versus(
        f"forward and backward, rows sorted by length, {batch.GROUP_ROWS} at a time ({plain})",
        f"{len(rows)} rows",
        lambda: passes(lm, rows, "sorted"),
        lambda: passes(lm, rows, how),
        rounds=7,
        same=lambda a, b: a == pytest.approx(b, rel=1e-3),
    )
    tokens = sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    speed = tokens / meter.rows[-1]["ours_s"]
    meter.add("tokens, forward and backward", f"{len(rows)} rows", value=speed, unit="per s")


PHASES = {
    "episodes": (Rollouts, "__call__"),
    "generate": (FastLM, "_decode"),
    "forward": (trainer, "token_logprobs"),
    "backward": (torch.Tensor, "backward"),
    "optimizer": (torch.optim.AdamW, "step"),
}
BARE = ("generate", "forward", "backward", "optimizer")


def bench_grpo(meter, monkeypatch, tmp_path):
    """Steps of the miniature, phase by phase; ours is all that is not the bare model's work.

    The bare model's work is measured inside the very steps, on the same rows: decoding, forward and
    backward passes, the optimiser. Everything else (prompts, parsing, memory, questions, rewards,
    batches, TRL's own bookkeeping, tables) is overhead.
    """
    mini, spent, marks = profile(meter.quick), Counter[str](), []
    warm = miniature.warm_start(mini, tmp_path / "warm")

    def timed(name: str, function: Any) -> Any:
        def inner(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - started

        return inner

    for name, (owner, attribute) in PHASES.items():
        monkeypatch.setattr(owner, attribute, timed(name, getattr(owner, attribute)))
    ended = Journal.on_step_end

    def marked(*args: Any, **kwargs: Any) -> Any:
        found = ended(*args, **kwargs)
        marks.append(Counter(spent) + Counter(whole=time.process_time()))
        return found

    monkeypatch.setattr(Journal, "on_step_end", marked)
    instances = miniature.training_instances(mini)
    meter.once(lambda: miniature.train(mini, warm, instances, Path(tmp_path / "grpo")))
    steps = [b - a for a, b in zip(marks[1:], marks[2:], strict=False)] or [marks[-1] - marks[-2]]
    for name in (*PHASES, "whole"):
        median, low, high = interval([step[name] for step in steps])
        meter.add(f"GRPO step: {name}", f"{len(steps)} steps", ours_s=median)
    shares = [step["whole"] / sum(step[name] for name in BARE) - 1 for step in steps]
    median, low, high = interval([100 * share for share in shares])
    values = {"value": median, "low": low, "high": high, "unit": "%"}
    want = ("value", "<=", 10)
    meter.add(
        "GRPO step: overhead beside the bare model", f"{len(steps)} steps", want=want, **values
    )
