"""Where a policy from scratch starts: random weights with a little structure in them.

Copying "what followed the last time" (induction) takes a head that looks a few tokens back and a
later one that finds equal keys. A small model finds that circuit by chance, after many steps; here
it starts near it (the idea of mimetic initialisation):

* `start_shared`: all embeddings share a direction, so that a head can act on positions alone;
* `start_look_back`: head i of the first layer looks back by i + 1 positions;
* `start_copy`: values pass through (output projection near the transpose of the value projection),
  and later layers compare like with like (key projection near the query projection).

Nothing about the world is put in: no token is favoured and no pair of tokens tied. With all three
strengths 0 the weights stay plain noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from memalpha_kit.errors import InputError
from memalpha_kit.settings import PolicyConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLOWEST = 0.02
"""Frequencies below this count as this one when a look-back direction is drawn."""


def give_head_start(model: PreTrainedModel, config: PolicyConfig, seed: int) -> None:
    """Gives the fresh weights of `model` their structure, in place; same seed, same weights.

    Raises InputError if keys are shared between heads: the projections must have one shape.
    """
    if config.kv_heads != config.heads:
        raise InputError(
            f"policy.kv_heads: expected {config.heads}, one per head, found {config.kv_heads}"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        shared = torch.randn(config.hidden, generator=generator)
        shared /= shared.norm()
        embedding = model.model.embed_tokens.weight  # (V, d)
        embedding += config.start_shared * embedding.norm(dim=1).mean() * shared
        for number, layer in enumerate(model.model.layers):
            heads = layer.self_attn
            heads.o_proj.weight.lerp_(heads.v_proj.weight.t(), config.start_copy)
            if number > 0:
                heads.k_proj.weight.lerp_(heads.q_proj.weight, config.start_copy)
        _look_back(model.model.layers[0].self_attn, config, shared)


def _look_back(heads: torch.nn.Module, config: PolicyConfig, shared: torch.Tensor) -> None:
    """Makes head i answer the shared direction most strongly i + 1 tokens back.

    Rotary positions turn a query at distance n by n times each frequency; a key turned by the
    same angle beforehand fits it best exactly there.
    """
    half = config.head_dim // 2
    turn = 1 / config.rope_theta ** (torch.arange(half) / half)  # radians per position
    emphasis = turn.clamp(min=SLOWEST).sqrt()
    emphasis /= emphasis.norm()  # no random draw: heads of some seeds would be blurred
    query = torch.cat([emphasis, torch.zeros(half)])
    for head in range(config.heads):
        rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
        angle = (head + 1) * turn
        key = torch.cat([emphasis * angle.cos(), emphasis * angle.sin()])
        strength = config.start_look_back * heads.q_proj.weight[rows].norm()
        heads.q_proj.weight[rows] += strength * torch.outer(query, shared)
        heads.k_proj.weight[rows] += strength * torch.outer(key, shared)
