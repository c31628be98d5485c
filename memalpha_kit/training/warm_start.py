"""Supervised training of a policy from rows of prompt and completion token ids.

The one law: same rows, settings and seed give the same weights, also after a crash. The length of
training is a number of steps, never a time. GRPO can only reinforce what is sampled now and then,
so a policy first learns here, from an imperfect teacher: the miniature's from scratch to copy, to
call tools and to match an id, a pretrained one the format of calls (`training/real.py`).

    phases = [
        Phase("copy", 300, draw=copy_row),            # random rows: teaches copying as such
        Phase("teacher", 1000, rows=encoded_rows),    # transcripts
    ]
    train_warm_start(lm, phases, WarmStartConfig(), seed=0, folder=out)
"""

from __future__ import annotations

import math
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
from memalpha_kit.method.memory import apply, empty
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.method.writers import Rule
from memalpha_kit.models.tiny import writing
from memalpha_kit.progress import bar
from memalpha_kit.records import Episode, Instance, Memory, ToolCall, WriteRequest
from memalpha_kit.settings import MemoryConfig, WarmStartConfig
from memalpha_kit.training.batch import logits_at
from memalpha_kit.training.export import save_trained
from memalpha_kit.training.optimizer import build_optimizer, rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memalpha_kit.models.local import CausalLM


class Row(NamedTuple):
    """Token ids to learn from: the completion, end-of-turn token included, given the prompt.

    `weights` has a number for each completion token (0: read but not learned); empty is all ones.
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


def teacher_steps(
    episodes: Iterable[Episode], instances: Iterable[Instance], config: MemoryConfig
) -> Iterator[tuple[Memory, str, list[ToolCall]]]:
    """(memory before, chunk, calls that worked) of every chunk in which a teacher made some.

    `episodes` are a rule's or a stronger model's (`memalpha write`). Raises InputError for an
    episode of an instance that is not there, or with a call that does not work under `config`.
    """
    chunks = {instance.id: instance.chunks for instance in instances}
    for episode in episodes:
        if episode.instance not in chunks:
            raise InputError(f"episode {episode.id}: its instance is not in the training data")
        memory = empty(config)
        for step in episode.steps:
            before, calls = memory, [call for call in step.calls if call.status == "ok"]
            for call in calls:
                memory, again = apply(memory, call, config)
                if again.status != "ok":
                    where = f"episode {episode.id}: chunk {step.chunk}: {call.name}"
                    expected = "expected a call that works in the profile's memory"
                    raise InputError(f"{where}: {expected}, found {again.status} ({again.detail})")
            if calls:
                yield before, chunks[episode.instance][step.chunk], calls


def half_hearted(rule: Rule, keep: float) -> Rule:
    """A rule as an imperfect teacher: each of its calls is made with probability `keep`.

    At least one call is made where the rule makes any, so that nothing teaches silence.
    """

    def kept(request: WriteRequest) -> list[ToolCall]:
        calls, rng = rule(request), random.Random(f"{request.seed}/teacher")
        return [call for call in calls if rng.random() < keep] or calls[:1]

    return kept


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
        """`steps` batches. Raises InputError without rows."""
        if not self.rows and not self.draw:
            raise InputError(f"warm start, phase {self.name}: expected rows, found none")
        rng = random.Random(f"{seed}/{self.name}")
        given = _shuffled(self.rows, config.batch, config.bucket_batches, rng)
        for _ in range(self.steps):
            drawn = [self.draw(rng) for _ in range(config.batch)] if self.draw else None
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
    lm: CausalLM, phases: Sequence[Phase], config: WarmStartConfig, seed: int, folder: Path
) -> Path:
    """The folder of the trained policy, `folder/policy`; `folder/metrics.csv` stands beside it.

    The policy is written last and appears whole or not at all. With `config.save_every` a call that
    was stopped goes on from `folder/state.pt`. The caller holds the folder (`files.held`).
    """
    state = folder / "state.pt"
    metrics = warm_start(lm.model, phases, config, lm.tokenizer.pad_token_id, seed, state)
    save_table(folder / "metrics.csv", metrics)
    return save_trained(lm, folder / "policy")


def warm_start(
    model: PreTrainedModel,
    phases: Sequence[Phase],
    config: WarmStartConfig,
    pad_id: int,
    seed: int,
    state: Path | None = None,
) -> pd.DataFrame:
    """Metrics of training `model` in place, a row every `log_every` steps and at each phase's end.

    Columns: phase, step (over all phases, from 1), loss (mean over completion tokens), smoothed,
    rate (share of the highest), tokens (trained on so far, without padding). One schedule spans all
    phases. Raises InputError if a phase has no rows.
    """
    total = sum(phase.steps for phase in phases)
    run = _Progress(model, config, total)
    done = run.load(state) if state and config.save_every else 0
    model.train()
    cards = [model.device] if model.device.type == "cuda" else []  # the others are left alone
    with bar(total, "warm start") as shown:
        shown.advance(done)
        for phase in phases:
            for number, batch in enumerate(phase.batches(config, seed), 1):
                if run.passed < done:  # batches follow from the seed: those of before are drawn
                    run.passed += 1
                    continue
                with torch.random.fork_rng(cards):
                    torch.manual_seed(seed + run.passed)  # of dropout, where a base has some
                    run.take(phase.name, batch, pad_id, number == 1, number == phase.steps)
                shown.advance(note=f"{phase.name}, loss {run.smoothed:.3f}")
                if state and config.save_every and run.passed % config.save_every == 0:
                    run.save(state)
    model.eval()
    columns = ["phase", "step", "loss", "smoothed", "rate", "tokens"]
    return pd.DataFrame(run.records, columns=columns)


class _Progress:
    """A warm start between two steps: weights that move, optimiser, schedule, and what was seen."""

    def __init__(self, model: PreTrainedModel, config: WarmStartConfig, total: int) -> None:
        self.model, self.config = model, config
        self.optimizer = build_optimizer(model, config)
        warm_up, decay = config.warm_up_steps, config.decay_share
        self.share = lambda step: rate(step, total, warm_up, decay, floor=0.03)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.share)
        self.records: list[tuple[str, int, float, float, float, int]] = []
        self.passed, self.tokens, self.smoothed = 0, 0, 0.0

    def take(self, phase: str, batch: Sequence[Row], pad_id: int, first: bool, last: bool) -> None:
        """One optimiser step. Raises InputError for a loss that is not finite; no weight moves."""
        self.optimizer.zero_grad()
        loss = completion_loss(self.model, batch, pad_id)
        if not loss.isfinite():
            raise InputError(
                f"warm start, phase {phase}, step {self.passed + 1}: expected a finite loss, found "
                f"{loss.item()} (try a lower warm_start.learning_rate)"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or math.inf)
        self.optimizer.step()
        self.schedule.step()
        self.passed += 1
        self.tokens += sum(row.n_tokens for row in batch)
        now = loss.item()
        self.smoothed = now if first else 0.95 * self.smoothed + (1 - 0.95) * now
        if self.passed % self.config.log_every == 0 or last:
            seen = now, self.smoothed, self.share(self.passed - 1), self.tokens
            self.records.append((phase, self.passed, *seen))

    def save(self, file: Path) -> None:
        """Keeps it in a file, whole or not at all."""
        weights = {n: w for n, w in self.model.named_parameters() if w.requires_grad}
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "schedule")}
        seen = (self.passed, self.tokens, self.smoothed, self.records)
        part = file.with_suffix(".part")
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"weights": weights, **parts, "seen": seen}, part)
            part.replace(file)

    def load(self, file: Path) -> int:
        """The number of steps done before; 0 without a file."""
        if not file.is_file():
            return 0
        kept = torch.load(file, weights_only=True)
        self.model.load_state_dict(kept["weights"], strict=False)
        for name in ("optimizer", "schedule"):
            getattr(self, name).load_state_dict(kept[name])
        done, self.tokens, self.smoothed, records = kept["seen"]
        self.records = [tuple(record) for record in records]
        return done


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
    learned = weights > 0
    logits = logits_at(model, ids, learned)  # (learned tokens, V)
    losses = cross_entropy(logits, ids[:, 1:][learned], reduction="none")
    return (losses * weights[learned]).sum() / weights.sum()
