"""Sizes of models and cards that a plan knows, from `plan.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from memalpha_kit.files import load_json
from memalpha_kit.models.get import MODELS
from memalpha_kit.sections import read_yaml
from memalpha_kit.settings import ModelConfig

GB = 1e9
CPU = "cpu"
"""The name in the table of cards that is none: one core."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 or Llama model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    tied: bool
    vocabulary: int = 151_936

    @property
    def block(self) -> int:
        """Parameters of all layers, without embeddings."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All parameters but the norms, which do not count here."""
        return self.block + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, model: ModelConfig) -> int:
        """Parameters of the LoRA adapter; a target that is no part of attention is of the MLP."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": queries}
        sums = (self.hidden + sides.get(name, self.feed_forward) for name in model.lora_targets)
        return self.layers * model.lora_rank * sum(sums)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values per token, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


class Card(NamedTuple):
    """A graphics card: memory, dense bf16 arithmetic, memory bandwidth."""

    memory_gb: float
    tflops: float
    bandwidth_gbs: float


TABLES = read_yaml(Path(__file__).with_name("plan.yaml").read_text(), "plan.yaml")
SHAPES = {name: Shape(*sizes) for name, sizes in TABLES["models"].items()}
CARDS = {name: Card(*sizes) for name, sizes in TABLES["cards"].items()}


def known_shape(name: str) -> Shape | None:
    """The shape of a model in the table, or of one in a folder that has the sizes of such a one.

    A folder that is not there yet may have the name that `memalpha models get` gives it.
    """
    config = Path(name) / "config.json"
    if (named := Path(name).name) in MODELS and not config.is_file():
        return SHAPES.get(MODELS[named].hub)
    if name in SHAPES or not config.is_file():
        return SHAPES.get(name)
    settings = load_json(config)
    found = Shape(*(settings.get(key) for key in TABLES["config"]))
    return found if found in SHAPES.values() else None


def known_card(memory_gb: float, called: str = "") -> str | None:
    """The largest card of the table that has no more memory; None if all have more.

    Of equal ones the one whose name is in `called`: "h100" in "NVIDIA H100 80GB HBM3".
    """
    fits = {name: card for name, card in CARDS.items() if card.memory_gb <= 1.05 * memory_gb}
    known = {name: card for name, card in fits.items() if name != CPU}
    series = {name: name.partition("-")[0].removeprefix("rtx") in called.lower() for name in known}
    return max(known, key=lambda name: (known[name].memory_gb, series[name]), default=None)
