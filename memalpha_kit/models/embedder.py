"""A sentence-embedding model in this process: texts to vectors, for retrieval by embedding.

    load_embedder("models/bge-small-en").embed(["Nora keeps bees."])

Any Hugging Face folder of an encoder or a decoder will do. How the vectors of tokens become one is
read from `1_Pooling/config.json`, which sentence-embedding folders have; without it, it is their
mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memalpha_kit.errors import InputError
from memalpha_kit.files import fingerprint, load_json
from memalpha_kit.models.local import load_parts

if TYPE_CHECKING:
    import torch

POOLING = Path("1_Pooling") / "config.json"
WAYS = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last"}
LONGEST = 8192
"""Tokens of a text at most; what is behind them, or behind the model's window, is cut off."""


@dataclass(frozen=True)
class Embedder:
    """An embedding model with its tokenizer. Load one with `load_embedder`."""

    name: str
    model: Any
    tokenizer: Any
    pooling: Literal["mean", "first", "last"] = "mean"
    batch_size: int = 32

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, in order; texts of a size share a batch."""
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        vectors: dict[int, list[float]] = {}
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            found = self._vectors([texts[place] for place in places])
            vectors |= zip(places, found.tolist(), strict=True)
        return [vectors[place] for place in range(len(texts))]

    def _vectors(self, texts: list[str]) -> torch.Tensor:
        """(B, D)"""
        import torch

        window = getattr(self.model.config, "max_position_embeddings", None) or LONGEST
        longest = min(self.tokenizer.model_max_length, window, LONGEST)
        sizes = {"padding": True, "truncation": True, "max_length": longest}
        rows = self.tokenizer(texts, padding_side="right", return_tensors="pt", **sizes)
        rows = rows.to(self.model.device)
        with torch.inference_mode():
            hidden = self.model(**rows).last_hidden_state.float()  # (B, T, D)
        mask = rows["attention_mask"]
        if self.pooling == "mean":
            return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        place = mask.sum(1).clamp(min=1) - 1 if self.pooling == "last" else 0 * mask[:, 0]
        return hidden[torch.arange(len(texts)), place]


def load_embedder(folder: str | Path, device: str = "cpu", dtype: str = "auto") -> Embedder:
    """The embedding model saved in a local folder, named by it and by a hash of its weights.

    Raises InputError naming what is missing.
    """
    folder = Path(folder)
    model, tokenizer = load_parts(folder, "AutoModel", device, dtype)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # masked, whatever it is
    weights = fingerprint(folder.glob("*.safetensors"))
    return Embedder(f"{folder.name} sha256:{weights}", model, tokenizer, _pooling(folder))


def _pooling(folder: Path) -> Any:
    """How the vectors of tokens become one. Raises InputError for a way that is not known here."""
    if not (folder / POOLING).is_file():
        return "mean"
    said = load_json(folder / POOLING)
    wanted = [name for name, on in said.items() if name.startswith("pooling_mode") and on is True]
    known = {f"pooling_mode_{name}": way for name, way in WAYS.items()}
    if len(wanted) != 1 or wanted[0] not in known:
        found = ", ".join(wanted) or "none"
        raise InputError(f"{folder / POOLING}: expected one of {', '.join(known)}, found {found}")
    return known[wanted[0]]
