"""GRPO's loss once more, in plain torch on one page: what the trainer's own path is held against.

The one law: nothing is shared with the trainer. Rows are read one by one, without padding, batches,
slices or accumulation, so a mistake there shows as a difference here. Too slow to train with.

    loss = grpo_loss(model, rows, GrpoConfig(), max_reply_tokens=96)

A row's advantage is A; for each of its own tokens, with probabilities pi of the model that is
trained, of the one that sampled (old) and of the reference:

    rho = pi / old     l = max(-A rho, -A clip(rho, 1 - low, 1 + high)), and l <= -A c if A < 0
    d = log(reference / pi)     k = e^d - d - 1     loss of the token = l + kl k

Source: paper, section 3.3, and the actor of the published code (`verl`). Differs: exponents are not
clipped to +-20, nor k to 10, as in TRL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from memalpha_kit.records import TrainingRow
from memalpha_kit.settings import GrpoConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def row_logprobs(model: PreTrainedModel, row: TrainingRow, temperature: float) -> torch.Tensor:
    """Log-probabilities of the row's own tokens, (tokens with loss mask 1,).

    Logits are divided by the temperature. Forced tokens are read and left out of the result.
    """
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]], device=model.device)
    logits = model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].float() / temperature
    logprobs = logits.log_softmax(-1).gather(1, ids[0, len(row.prompt_ids) :, None])[:, 0]
    return logprobs[torch.tensor(row.loss_mask, dtype=torch.bool, device=model.device)]


def token_losses(
    new: torch.Tensor,
    old: torch.Tensor,
    advantage: float,
    config: GrpoConfig,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of every token of one row from log-probabilities, all (tokens,)."""
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip_high)
    loss = (-advantage * ratio).maximum(-advantage * clipped)
    if advantage < 0 and config.dual_clip is not None:
        loss = loss.clamp(max=-advantage * config.dual_clip)
    if config.kl and reference is not None:
        d = reference - new
        loss = loss + config.kl * (d.exp() - d - 1)
    return loss


def total_loss(
    losses: Sequence[torch.Tensor], config: GrpoConfig, max_reply_tokens: int
) -> torch.Tensor:
    """One number from the token losses of every row: `config.loss` says which mean.

    dapo, and bnpo in one slice: mean over all tokens. grpo: mean over rows of their means, as
    published. dr_grpo: sum over rows * max_reply_tokens.
    """
    if config.loss == "grpo":
        return torch.stack([row.mean() for row in losses]).mean()
    tokens = torch.cat(list(losses))
    if config.loss == "dr_grpo":
        return tokens.sum() / (len(losses) * max_reply_tokens)
    return tokens.mean()


def grpo_loss(
    model: PreTrainedModel,
    rows: Sequence[TrainingRow],
    config: GrpoConfig,
    max_reply_tokens: int,
    old: Sequence[torch.Tensor] | None = None,
    reference: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """The loss over rows that have a reward and a token of their own; a 0-dim tensor.

    `old` and `reference` hold `row_logprobs` of each row of `rows`; without `old` the model is its
    own old policy. Rows without a reward are in no mean.
    """
    losses = []
    for place, row in enumerate(rows):
        if row.reward is None or not any(row.loss_mask):
            continue
        new = row_logprobs(model, row, config.temperature)
        then = new.detach() if old is None else old[place]
        known = None if reference is None else reference[place]
        losses.append(token_losses(new, then, row.advantage, config, known))
    return total_loss(losses, config, max_reply_tokens)
