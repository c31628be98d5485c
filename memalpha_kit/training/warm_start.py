"""Supervised training of a policy from rows of prompt and completion token ids.

The one law: same rows, settings and seed give the same weights. The length of training is a number
of steps, never a time. GRPO can only reinforce what is sampled now and then, so a policy from
scratch first learns here to copy, to call tools and to match an id, from an imperfect teacher.

    phases = [
        Phase("copy", 300, draw=copy_row),            # random rows: teaches copying as such
        Phase("teacher", 1000, rows=encoded_rows),    # transcripts
    ]
    train_warm_start(model, tokenizer, phases, WarmStartConfig(), seed=0, folder=out)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from memalpha_kit.errors import InputError
from memalpha_kit.files import save_table
from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.encoding import encode_text
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.models.tiny import save_policy
from memalpha_kit.progress import bar
from memalpha_kit.records import Memory, ToolCall, WriteRequest
from memalpha_kit.settings import WarmStartConfig
from memalpha_kit.training.optimizer import build_optimizer, rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FLOOR = 0.03
"""The rate does not fall below this share of the highest one."""

SMOOTHING = 0.95
"""Weight of the past in the smoothed loss."""


class Row(NamedTuple):
    """Token ids to learn from: the completion, end-of-turn token included, given the prompt.

    `weights` has a number for each completion token (0: read but not learned); empty is all ones.
    A plain tuple of two or three sequences will do as well.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    weights: Sequence[float] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


def encode_steps(
    writer: ModelWriter, steps: Iterable[tuple[Memory, str, Sequence[ToolCall]]]
) -> list[Row]:
    """One row per (memory before, chunk, calls), with the prompt that `writer` would be given.

    The completion is the calls in the writer's format and the end-of-turn token.
    """
    tokenizer, wire = writer.lm.tokenizer, writer.protocol_config.wire
    return [
        Row(
            writer.prompt_ids(WriteRequest(memory, chunk)),
            [*encode_text(tokenizer, render_calls(calls, wire)), tokenizer.eos_token_id],
        )
        for memory, chunk, calls in steps
    ]


@dataclass(frozen=True)
class Phase:
    """A number of steps on one kind of rows.

    `rows` are visited in shuffled order, again and again; `draw` makes a row from a generator.
    """

    name: str
    steps: int
    rows: Sequence[Row] = ()
    draw: Callable[[random.Random], Row] | None = None

    def batches(self, config: WarmStartConfig, seed: int) -> Iterator[list[Row]]:
        """`steps` batches. Raises InputError for a row that cannot be learned, and without rows."""
        rows = [Row(*row) for row in self.rows]
        for place, row in enumerate(rows):
            where = f"warm start, phase {self.name}, row {place}"
            for part in ("prompt", "completion"):
                if not getattr(row, f"{part}_ids"):
                    raise InputError(f"{where}: {part}: found no token")
            n, n_weights = len(row.completion_ids), len(row.weights)
            if n_weights not in (0, n):
                raise InputError(f"{where}: weights: expected {n}, found {n_weights}")
        if not rows and not self.draw:
            raise InputError(f"warm start, phase {self.name}: expected rows, found none")
        rng = random.Random(f"{seed}/{self.name}")
        given = _shuffled(rows, config.batch, config.bucket_batches, rng)
        for _ in range(self.steps):
            drawn = [Row(*self.draw(rng)) for _ in range(config.batch)] if self.draw else None
            yield drawn or next(given)


def _shuffled(
    rows: Sequence[Row], size: int, buckets: int, rng: random.Random
) -> Iterator[list[Row]]:
    """Batches without end: each pass shuffles, then sorts `buckets` batches at a time by length."""
    while True:
        order = rng.sample(range(len(rows)), len(rows))
        for start in range(0, len(order), size * buckets):
            part = order[start : start + size * buckets]
            part.sort(key=lambda i: rows[i].n_tokens)
            batches = [part[i : i + size] for i in range(0, len(part), size)]
            rng.shuffle(batches)
            yield from ([rows[i] for i in batch] for batch in batches)


def train_warm_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    phases: Sequence[Phase],
    config: WarmStartConfig,
    seed: int,
    folder: Path,
) -> Path:
    """The folder of the trained policy, `folder/policy`; `folder/metrics.csv` stands beside it.

    The policy is written last and appears whole or not at all.
    """
    metrics = warm_start(model, phases, config, tokenizer.pad_token_id, seed)
    save_table(folder / "metrics.csv", metrics)
    return save_policy(model, tokenizer, folder / "policy")


def warm_start(
    model: PreTrainedModel,
    phases: Sequence[Phase],
    config: WarmStartConfig,
    pad_id: int,
    seed: int,
) -> pd.DataFrame:
    """Metrics of training `model` in place, a row every `log_every` steps and at each phase's end.

    Columns: phase, step (over all phases, from 1), loss (mean over completion tokens), smoothed,
    rate (share of the highest), tokens (trained on so far, without padding). One schedule spans all
    phases. Raises InputError if a phase has no rows or a row no completion.
    """
    optimizer = build_optimizer(model, config)
    total = sum(phase.steps for phase in phases)

    def share(step: int) -> float:
        return rate(step, total, config.warm_up_steps, config.decay_share, FLOOR)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    model.train()
    records, step, tokens, smoothed = [], 0, 0, 0.0
    with bar(total, "warm start") as shown:
        for phase in phases:
            for number, batch in enumerate(phase.batches(config, seed), 1):
                optimizer.zero_grad()
                loss = completion_loss(model, batch, pad_id)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                optimizer.step()
                schedule.step()
                step, tokens, now = (
                    step + 1,
                    tokens + sum(row.n_tokens for row in batch),
                    loss.item(),
                )
                smoothed = now if number == 1 else SMOOTHING * smoothed + (1 - SMOOTHING) * now
                shown.advance(note=f"{phase.name}, loss {smoothed:.3f}")
                if step % config.log_every == 0 or number == phase.steps:
                    records.append((phase.name, step, now, smoothed, share(step - 1), tokens))
    model.eval()
    columns = ["phase", "step", "loss", "smoothed", "rate", "tokens"]
    return pd.DataFrame(records, columns=columns)


def completion_loss(model: PreTrainedModel, batch: Sequence[Row], pad_id: int) -> torch.Tensor:
    """Weighted mean of -log p over the completion tokens, given what stands before them.

    Rows are padded on the right, so causal attention keeps padding out of every real position;
    logits are made for tokens with a weight only.
    """
    ids = torch.full((len(batch), max(row.n_tokens for row in batch)), pad_id)  # (B, T)
    weights = torch.zeros(ids.shape)
    for place, row in enumerate(batch):
        start, end = len(row.prompt_ids), row.n_tokens
        ids[place, :end] = torch.tensor([*row.prompt_ids, *row.completion_ids])
        weights[place, start:end] = torch.tensor(row.weights or [1.0] * (end - start))
    ids, weights = ids.to(model.device), weights[:, 1:].to(model.device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, d)
    learned = weights > 0
    logits = model.get_output_embeddings()(hidden[:, :-1][learned])  # (learned tokens, V)
    losses = cross_entropy(logits.float(), ids[:, 1:][learned], reduction="none")
    return (losses * weights[learned]).sum() / weights.sum()
