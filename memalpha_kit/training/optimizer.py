"""How weights move: AdamW, or Muon for the hidden matrices and AdamW for the rest; and the rate.

Shared by warm start and GRPO, so that both mean the same by a setting.

>>> [round(rate(step, total=4, warm_up=2, decay_share=0.5), 2) for step in range(4)]
[0.5, 1.0, 1.0, 0.5]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from memalpha_kit.settings import GrpoConfig, WarmStartConfig


def rate(step: int, total: int, warm_up: int, decay_share: float, floor: float = 0.0) -> float:
    """The learning rate of update `step` (from 0) of `total`, as a share of the highest.

    Rises as (step + 1) / warm_up, so the first update counts (in the published code it has rate 0);
    falls linearly over the last `decay_share` of the updates, not below `floor`.
    """
    rising = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    left = (1 - step / max(1, total)) / decay_share if decay_share else 1.0
    return rising * min(1.0, max(floor, left))


def build_optimizer(model: Any, config: GrpoConfig | WarmStartConfig) -> torch.optim.Optimizer:
    """An optimiser over all weights that are trained.

    `muon` orthogonalises the updates of the hidden matrices (at `muon_rate`); embeddings, output
    layer and norms keep AdamW (at `learning_rate`). Each update shrinks matrices, embeddings too,
    by the share rate * `weight_decay`; norms and biases never.
    """
    decay = getattr(config, "weight_decay", 0.0)
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for key, weight in model.named_parameters():
        if not weight.requires_grad:  # the base below an adapter
            continue
        hidden = weight.ndim == 2 and "embed" not in key and "lm_head" not in key
        (matrices if hidden and config.optimizer == "muon" else rest).append(weight)
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=config.muon_rate, weight_decay=decay))
    if rest:
        shrunk = [w for w in rest if w.ndim > 1] if decay else []
        plain = [w for w in rest if w.ndim < 2] if decay else rest
        groups = [
            {"params": weights, "weight_decay": share}
            for weights, share in ((shrunk, decay), (plain, 0.0))
            if weights
        ]
        betas, on_cpu = (0.9, config.adam_beta2), rest[0].device.type == "cpu"
        parts.append(torch.optim.AdamW(groups, config.learning_rate, betas, fused=on_cpu))
    return parts[0] if len(parts) == 1 else Joint(parts)


class Joint(torch.optim.Optimizer):
    """Several optimisers, each on its own weights, that step, save and load as one."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        """One step of every part. Closures are not supported."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts every part back into the state that `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
