"""Fast replies from a small Qwen3 or Llama on a CPU: fused weights, one cache, plain torch.

The one law: decoding fast changes no reply. `FastLM` is a `CausalLM` that draws the same tokens
from the same seeds (up to rounding). It only skips transformers' bookkeeping, which for a model
this small costs more than twice the arithmetic: a step of the laptop miniature writes its episodes
in 0.7 s of computing, with transformers' `generate` in 1.6 s. An adapter is merged into the fused
copy, and a prompt that several rollouts share is read once. Other models keep the general path.

Shapes: B rows, Q new positions, T positions in the cache, H query and K key/value heads of
dimension D, width d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from memalpha_kit.models.local import CausalLM, Sampling, SeededDraw, drawn, left_pad

NEVER = -1e30
"""Attention bias of a position not to be seen; finite, so that queries of padding stay finite."""


class FastLM(CausalLM):
    """A `CausalLM` that decodes on the CPU with fused weights and its own cache."""

    def _decode(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        network, uniform = _Network(self.model), SeededDraw(sampling, seeds).uniform
        stops = torch.tensor(self.stop_ids)
        replies: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        rows, writing = torch.arange(len(prompts)), torch.ones(len(prompts), dtype=torch.bool)
        with torch.inference_mode():
            logits, cache = self._read(network, prompts, sampling.max_new_tokens)
            for step in range(sampling.max_new_tokens):
                tokens, values = drawn(logits, uniform[rows, step], sampling)
                for place in writing.nonzero()[:, 0].tolist():
                    replies[rows[place]].append(int(tokens[place]))
                    logprobs[rows[place]].append(float(values[place]))
                writing = writing & ~torch.isin(tokens, stops)
                left = int(writing.sum())
                if left == 0 or step == sampling.max_new_tokens - 1:
                    break
                if left <= 0.75 * len(rows):  # finished rows leave the batch
                    rows, tokens, cache = rows[writing], tokens[writing], cache.keep(writing)
                    writing = writing[writing]
                logits = network.extend(tokens, cache)
        return replies, logprobs

    def _read(
        self, network: _Network, prompts: Sequence[Sequence[int]], room: int
    ) -> tuple[torch.Tensor, _Cache]:
        """Logits (B, V) after the prompts and their cache; each different prompt is read once."""
        places = {tuple(ids): place for place, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        if network.width < 256:  # so small a model reads in no time
            return network.start(*left_pad(prompts, self.stop_ids[0]), room)
        logits, cache = network.start(*left_pad(list(places), self.stop_ids[0]), room)
        rows = torch.tensor([places[tuple(ids)] for ids in prompts])
        return logits[rows], cache.keep(rows)


def fast(lm: CausalLM) -> CausalLM:
    """`lm` as a `FastLM` if its model is of a kind that `_Network` knows, else `lm`."""
    config, weight = lm.model.config, next(lm.model.parameters())
    adapters = getattr(lm.model, "peft_config", {}).values()
    known = (
        config.model_type in ("qwen3", "llama")
        and all(a.peft_type == "LORA" and not (a.use_dora or a.modules_to_save) for a in adapters)
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and config.rope_parameters.get("rope_type", "default") == "default"
        and not (config.attention_bias or getattr(config, "use_sliding_window", False))
        and not getattr(config, "mlp_bias", False)
        and config.hidden_act == "silu"
    )
    return FastLM(**vars(lm)) if known else lm


@dataclass
class _Cache:
    """What has been read and written so far; `filled` positions of each tensor are in use."""

    keys: list[torch.Tensor]  # per layer (B, K, T, D)
    values: list[torch.Tensor]
    bias: torch.Tensor  # (B, 1, 1, T): NEVER on left padding
    position: torch.Tensor  # (B,): of the last token
    filled: int

    def keep(self, rows: torch.Tensor) -> _Cache:
        """The cache of the rows where the mask is true."""
        keys, values = ([part[rows] for part in parts] for parts in (self.keys, self.values))
        return _Cache(keys, values, self.bias[rows], self.position[rows], self.filled)


@dataclass(frozen=True)
class _Layer:
    """One layer's weights, transposed and joined so that one product does the work of three."""

    before_attention: torch.Tensor  # (d,)
    qkv: torch.Tensor  # (d, (H + 2 K) D)
    q_norm: torch.Tensor | None  # (D,); a Llama has none
    k_norm: torch.Tensor | None
    out: torch.Tensor  # (H D, d)
    before_mlp: torch.Tensor
    gate_up: torch.Tensor  # (d, 2 ff)
    down: torch.Tensor  # (ff, d)


def _fused(layer: Any) -> _Layer:
    """The weights of a layer of transformers."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return _Layer(
        layer.input_layernorm.weight,
        torch.cat([_weight(part) for part in qkv]).t().contiguous(),
        q_norm and q_norm.weight,
        k_norm and k_norm.weight,
        _weight(attention.o_proj).t().contiguous(),
        layer.post_attention_layernorm.weight,
        torch.cat([_weight(mlp.gate_proj), _weight(mlp.up_proj)]).t().contiguous(),
        _weight(mlp.down_proj).t().contiguous(),
    )


def _weight(part: Any) -> torch.Tensor:
    """A linear layer's weight, with the adapter that is switched on merged into a copy."""
    base = getattr(part, "base_layer", part).weight
    if not hasattr(part, "base_layer") or part.disable_adapters:
        return base
    changes = [part.get_delta_weight(name).float() for name in part.active_adapters]
    return (base.float() + sum(changes)).to(base.dtype)


class _Network:
    """A model as a function of tokens and cache. Source: transformers' modeling_qwen3."""

    def __init__(self, model: Any) -> None:
        model = getattr(model, "get_base_model", lambda: model)()  # of an adapter's wrapper
        config, self.width = model.config, model.config.hidden_size
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim, self.eps = config.head_dim, config.rms_norm_eps
        with torch.inference_mode():
            self.layers = [_fused(layer) for layer in model.model.layers]
        self.embedding, self.norm = model.model.embed_tokens.weight, model.model.norm.weight
        self.head = model.lm_head.weight
        half = torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim
        self.frequency = 1.0 / config.rope_parameters["rope_theta"] ** half  # (D / 2,)

    def start(
        self, ids: torch.Tensor, mask: torch.Tensor, room: int
    ) -> tuple[torch.Tensor, _Cache]:
        """Next-token logits (B, V) after left-padded prompts, and a cache with room to go on."""
        rows, width = ids.shape
        shape = (rows, self.kv_heads, width + room, self.dim)
        bias = torch.zeros(rows, 1, 1, width + room).to(self.head)
        bias[:, 0, 0, :width].masked_fill_(mask == 0, NEVER)
        position = (mask.cumsum(1) - 1).clamp(min=0)  # (B, Q)
        keys, values = ([torch.zeros(shape).to(self.head) for _ in self.layers] for _ in range(2))
        cache = _Cache(keys, values, bias, position[:, -1], filled=0)
        future = torch.full((width, width), NEVER).triu(1).to(self.head)
        return self._run(ids, position, bias[..., :width] + future, cache), cache

    def extend(self, tokens: torch.Tensor, cache: _Cache) -> torch.Tensor:
        """Next-token logits (B, V) after one more token per row; the cache grows by it."""
        cache.position = cache.position + 1
        bias = cache.bias[..., : cache.filled + 1]
        return self._run(tokens[:, None], cache.position[:, None], bias, cache)

    def _run(
        self, ids: torch.Tensor, position: torch.Tensor, bias: torch.Tensor, cache: _Cache
    ) -> torch.Tensor:
        """Logits at the last of Q new positions. ids, position (B, Q); bias (B, 1, Q or 1, T)"""
        angle = position[:, None, :, None] * self.frequency  # (B, 1, Q, D / 2)
        hidden = self.embedding[ids]  # (B, Q, d)
        cos, sin = (torch.cat([part] * 2, -1).to(hidden) for part in (angle.cos(), angle.sin()))
        for number, layer in enumerate(self.layers):
            normed = self._normed(hidden, layer.before_attention)
            attended = self._attend(normed, layer, number, (cos, sin), bias, cache)
            hidden = hidden + attended @ layer.out
            gate, up = (self._normed(hidden, layer.before_mlp) @ layer.gate_up).chunk(2, -1)
            hidden = hidden + (silu(gate) * up) @ layer.down
        cache.filled += ids.shape[1]
        return linear(self._normed(hidden[:, -1], self.norm), self.head)

    def _attend(
        self,
        normed: torch.Tensor,
        layer: _Layer,
        number: int,
        rotation: tuple[torch.Tensor, ...],
        bias: torch.Tensor,
        cache: _Cache,
    ) -> torch.Tensor:
        """Attention of the new positions over all so far, before the output product. (B, Q, H D)"""
        rows, new, _ = normed.shape
        groups = (normed @ layer.qkv).view(rows, new, -1, self.dim).transpose(1, 2)
        q, k, v = groups.split([self.heads, self.kv_heads, self.kv_heads], dim=1)  # (B, ., Q, D)
        start, end = cache.filled, cache.filled + new
        cache.keys[number][:, :, start:end] = _rotated(self._normed(k, layer.k_norm), *rotation)
        cache.values[number][:, :, start:end] = v
        q = _rotated(self._normed(q, layer.q_norm), *rotation)
        if new == 1:  # the queries that share a key are read together: nothing is copied
            q = q.reshape(rows, self.kv_heads, -1, self.dim)
        attended = scaled_dot_product_attention(
            q,
            cache.keys[number][:, :, :end],
            cache.values[number][:, :, :end],
            attn_mask=bias,
            enable_gqa=q.shape[1] != self.kv_heads,
        )
        return attended.reshape(rows, self.heads, new, -1).transpose(1, 2).reshape(rows, new, -1)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Root-mean-square normalisation over the last dimension, in 32 bits."""
        if weight is None:
            return x
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * weight


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: each pair (i, i + D / 2) turned by its angle. (B, H, Q, D)"""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
