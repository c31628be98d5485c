"""Sizes of the models and cards that a plan knows.

>>> round(SHAPES["Qwen/Qwen3-4B"].parameters / 1e9, 2)
4.02
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memalpha_kit.files import load_json


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model, from its public configuration."""

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

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of this rank on all seven matrices of every layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sums = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        return self.layers * rank * (sums + 3 * (self.hidden + self.feed_forward))

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values per token, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


SHAPES = {
    "Qwen/Qwen3-0.6B": Shape(28, 1024, 16, 8, 128, 3072, True),
    "Qwen/Qwen3-1.7B": Shape(28, 2048, 16, 8, 128, 6144, True),
    "Qwen/Qwen3-4B": Shape(36, 2560, 32, 8, 128, 9728, True),
    "Qwen/Qwen3-8B": Shape(36, 4096, 32, 8, 128, 12288, False),
    "Qwen/Qwen3-14B": Shape(40, 5120, 40, 8, 128, 17408, False),
    "Qwen/Qwen3-32B": Shape(64, 5120, 64, 8, 128, 25600, False),
}
READER = "Qwen/Qwen3-32B"
CONFIG_KEYS = (  # of a model's config.json, in the order of `Shape`'s fields
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "intermediate_size", "tie_word_embeddings", "vocab_size"),
)


@dataclass(frozen=True)
class Card:
    """A graphics card: memory, dense bf16 arithmetic, memory bandwidth (makers' data sheets)."""

    memory_gb: float
    tflops: float
    bandwidth_gbs: float


CARDS = {
    "rtx4090": Card(24, 165, 1008),
    "l40s": Card(48, 362, 864),
    "a100-40": Card(40, 312, 1555),
    "a100-80": Card(80, 312, 2039),
    "h100": Card(80, 989, 3350),
    "h200": Card(141, 989, 4800),
}


def known_shape(name: str) -> Shape | None:
    """The shape of a model in the table, or of one in a folder that has the sizes of such a one."""
    config = Path(name) / "config.json"
    if name in SHAPES or not config.is_file():
        return SHAPES.get(name)
    settings = load_json(config)
    found = Shape(*(settings.get(key) for key in CONFIG_KEYS))
    return found if found in SHAPES.values() else None


def known_card(memory_gb: float, called: str = "") -> str | None:
    """The largest card of the table that has no more memory; None if all have more.

    Of equal ones the one whose name is in `called`: "h100" in "NVIDIA H100 80GB HBM3".
    """
    known = {name: card for name, card in CARDS.items() if card.memory_gb <= 1.05 * memory_gb}

    def fit(name: str) -> tuple[float, bool]:
        series = name.partition("-")[0].removeprefix("rtx")
        return known[name].memory_gb, series in called.lower()

    return max(known, key=fit, default=None)
