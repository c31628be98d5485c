"""Training rows as tensors, and the log-probabilities of their tokens.

The one law: a row that only fills the batch touches no mean, no loss and no count. Its completion
is all padding and masked, its advantage is 0, and `num_items_in_batch` counts loss tokens only.

Shapes: B rows, P and C the widest prompt and completion, V tokens in the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from memalpha_kit.errors import InputError
from memalpha_kit.records import TrainingRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP_ROWS = 16
"""Rows of similar length that go through the model together on a CPU."""


def trained(rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """The rows that take part in a loss: they have a reward and at least one token of their own."""
    return [row for row in rows if row.reward is not None and any(row.loss_mask)]


def rows_to_batch(
    rows: Sequence[TrainingRow],
    pad_id: int,
    multiple: int = 1,
    device: str = "cpu",
    at_least: int = 0,
    sampled: bool = False,
) -> dict[str, torch.Tensor]:
    """The dict that TRL's and Unsloth's losses read, with B a multiple of `multiple`.

    B is also not below `at_least`: several processes must bring equally many rows. `sampled` adds
    sampling_per_token_logps (B, C), what the writer knew of its tokens: NaN where it did not.

    prompt_ids, prompt_mask (B, P), padded on the left; completion_ids, completion_mask, tool_mask
    (B, C), padded on the right; advantages (B,); num_items_in_batch, a number. Rows without a
    reward are left out; fill rows (the shortest prompt, nothing but padding after it) make up the
    number, for TRL drops rows that do not divide. `tool_mask` 0 marks forced tokens: seen, not
    learned. Ids are copied, never encoded again. Raises InputError if a prompt contains the pad
    token.
    """
    for row in rows:
        if pad_id in row.prompt_ids:
            raise InputError(f"{row.episode}: step {row.step}: the prompt contains the pad token")
    real = trained(rows)
    wanted = max(len(real), at_least, 1)
    fill: list[tuple[float, ...]] = [()] * (wanted - len(real) + -wanted % multiple)
    shortest = min((row.prompt_ids for row in rows), key=len)
    prompts = [row.prompt_ids for row in real] + [shortest for _ in fill]
    completions, learned = (
        [getattr(row, name) for row in real] + fill for name in ("completion_ids", "loss_mask")
    )
    batch = {
        "prompt_ids": _padded(prompts, pad_id, "left"),
        "prompt_mask": _held(prompts, "left").long(),
        "completion_ids": _padded(completions, pad_id, "right"),
        "completion_mask": _held(completions, "right").long(),
        "tool_mask": _padded(learned, 0, "right"),
        "advantages": torch.tensor([row.advantage for row in real] + [0.0] * len(fill)),
        "num_items_in_batch": torch.tensor(sum(map(sum, learned))),
    }
    if sampled:
        known = [row.logprobs or (math.nan,) * len(row.completion_ids) for row in real]
        batch["sampling_per_token_logps"] = _padded(known + fill, 0.0, "right")
    return {name: value.to(device) for name, value in batch.items()}


def _held(rows: Sequence[Sequence[float]], side: str) -> torch.Tensor:
    """Where padding on this side leaves the rows: true or false, (B, longest), at least (B, 1)."""
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    along = torch.arange(max(1, int(lengths.max())))
    return (along.flip(0) if side == "left" else along) < lengths


def _padded(rows: Sequence[Sequence[float]], value: float, side: str) -> torch.Tensor:
    """The rows as one tensor of the shape of `_held`, padded with `value`, whose type it has."""
    mask, padding = _held(rows, side), torch.tensor(value)
    numbers = torch.tensor([*chain(*rows)], dtype=padding.dtype)
    return padding.expand(mask.shape).masked_scatter(mask, numbers)


def importance_ratio(
    old: torch.Tensor, sampling: torch.Tensor, mask: torch.Tensor, highest: float
) -> torch.Tensor:
    """How much likelier the trainer finds each token than the engine that sampled it. (B, C)

    exp(old - sampling), not above `highest`; 1 where masked or where the engine said nothing (NaN).
    """
    return torch.nan_to_num((old - sampling) * mask, nan=0.0).exp().clamp(max=highest)


def token_logprobs(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    n_completion: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the completion tokens and entropies there, both (B, C); 0 where masked.

    ids and mask (B, P + C), with the unmasked tokens of a row side by side. Logits are divided by
    the temperature that sampled them. What TRL computes with a kernel that needs a GPU, in plain
    torch; the entropy carries no gradient. Rows are read in groups of similar length, without their
    padding, which is most of a batch: much faster on a CPU.
    """
    scored = mask[:, -n_completion:].bool()
    empty = torch.zeros(scored.shape, device=ids.device)
    results = empty, empty.clone()
    rows = scored.any(1).nonzero()[:, 0]
    if not len(rows):  # fill rows only: a loss of 0 that still has a gradient
        rows = rows.new_zeros(1)
    rows = rows[mask[rows].sum(1).argsort(stable=True)]
    for group in rows.split(GROUP_ROWS):
        places = scored[group]
        found = _packed_logprobs(model, ids[group], mask[group], n_completion, temperature)
        for result, values in zip(results, found, strict=True):
            result[group] = torch.zeros(places.shape).to(values).masked_scatter(places, values)
    return results


def _packed_logprobs(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    n_completion: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of all completion tokens, row after row, (tokens,) each."""
    lengths = mask.sum(1)
    along = torch.arange(int(lengths.max()), device=ids.device)
    columns = mask.argmax(1)[:, None] + along  # (B, T): where each row's tokens stand
    packed = ids.gather(1, columns.clamp(max=ids.shape[1] - 1))  # padding on the right only
    wanted = (columns >= ids.shape[1] - n_completion) & (along < lengths[:, None])
    logits = logits_at(model, packed, wanted[:, 1:])
    every = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    spread = -every.detach().exp().mul_(every.detach()).sum(-1)
    return every.gather(1, packed[wanted][:, None])[:, 0], spread


def logits_at(model: PreTrainedModel, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Logits after the tokens at `places`, row after row, in 32 bits. (B, T), (B, T - 1) -> (n, V)

    `places` says for each token but the last whether what follows it is wanted. An adapter on a
    16-bit base is multiplied in 16 bits too: a fifth faster than peft's own way on a CPU.
    """
    inner = getattr(model, "get_base_model", lambda: model)()  # of an adapter's wrapper
    mixed: AbstractContextManager = nullcontext()
    if inner is not model and inner.dtype == torch.bfloat16:
        mixed = torch.autocast(ids.device.type, torch.bfloat16)
    with mixed:
        hidden = inner.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, d)
        return inner.get_output_embeddings()(hidden[:, :-1][places]).float()


def narrowed(
    compute: Callable[..., tuple[Any, ...]],
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    n_completion: int,
    batch_size: int | None = None,
    *more: Any,
    **named: Any,
) -> tuple[Any, ...]:
    """`compute`'s results, `batch_size` rows at a time, each time without columns that nobody uses.

    A step's rows share one width, that of its longest prompt and reply; those that go through the
    model together rarely need it. `compute` is TRL's method; results are (B, C), 0 where masked.
    """
    width, size, parts = ids.shape[1] - n_completion, batch_size or len(ids), []
    for start in range(0, len(ids), size):
        some, seen = ids[start : start + size], mask[start : start + size]
        used = seen.any(0)
        first = int(used[:width].int().argmax())
        kept = int(used[width:].nonzero().max()) + 1 if used[width:].any() else 1
        columns = slice(first, width + kept)
        found = compute(model, some[:, columns], seen[:, columns], kept, len(some), *more, **named)
        spare = (0, n_completion - kept)
        parts.append([pad(v, spare) if getattr(v, "ndim", 0) == 2 else v for v in found])

    def whole(values: tuple[Any, ...]) -> Any:
        """Rows of all parts together; what comes once a call, or is None, as it came first."""
        return torch.cat(values) if getattr(values[0], "ndim", 0) == 2 else values[0]

    return tuple(whole(values) for values in zip(*parts, strict=True))
