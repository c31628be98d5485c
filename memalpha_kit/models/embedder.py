"""A sentence-embedding model in this process: texts to vectors, for retrieval by embedding.

    load_embedder("models/bge-small-en").embed(["Nora keeps bees."])

Any Hugging Face folder of an encoder or a decoder will do. How the vectors of tokens become one,
and how long a text may be, is read from the files that sentence-transformers leaves in a folder
(`modules.json`, `sentence_bert_config.json`); without them it is the mean. What was read is said
and is part of the name. Texts are embedded as they are: prompts for queries are not added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memalpha_kit.errors import InputError
from memalpha_kit.files import fingerprint, load_json
from memalpha_kit.models.local import load_parts
from memalpha_kit.progress import tell

if TYPE_CHECKING:
    import torch

WAYS = {"mean_tokens": "mean", "mean": "mean", "cls_token": "first", "cls": "first"}
WAYS |= {"lasttoken": "last"}
LONGEST = 8192
"""Tokens of a text at most; what is behind them, or behind the model's window, is cut off."""


@dataclass(frozen=True)
class Embedder:
    """An embedding model with its tokenizer. Load one with `load_embedder`."""

    name: str
    model: Any
    tokenizer: Any
    pooling: Literal["mean", "first", "last"] = "mean"
    longest: int = LONGEST
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

        sizes = {"padding": True, "truncation": True, "max_length": self.longest}
        rows = self.tokenizer(texts, padding_side="right", return_tensors="pt", **sizes)
        with torch.inference_mode():
            hidden = self.model(**rows.to(self.model.device)).last_hidden_state.float()  # (B, T, D)
        mask = rows["attention_mask"]
        if self.pooling == "mean":
            return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        place = mask.sum(1).clamp(min=1) - 1 if self.pooling == "last" else 0 * mask[:, 0]
        return hidden[torch.arange(len(texts)), place]


def load_embedder(folder: str | Path, device: str = "cpu", dtype: str = "auto") -> Embedder:
    """The embedding model saved in a local folder, named by it and by a hash of its weights.

    Raises InputError naming what is missing, or a step that is not known here.
    """
    folder = Path(folder)
    inner, pooling, says = _read(folder)
    model, tokenizer = load_parts(folder / inner, "AutoModel", device, dtype)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # masked, whatever it is
    window = getattr(model.config, "max_position_embeddings", None)
    limits = says.get("max_seq_length"), window, tokenizer.model_max_length, LONGEST
    longest = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
    name = f"{folder.name} sha256:{fingerprint((folder / inner).glob('*.safetensors'))}"
    tell(f"{folder.name} embeds: {pooling} pooling, texts of at most {longest} tokens")
    return Embedder(f"{name}, {pooling} pooling", model, tokenizer, pooling, longest)


def _read(folder: Path) -> tuple[str, Any, dict[str, Any]]:
    """Where in the folder the model is, its pooling, and what is said of its texts."""
    listed, said = folder / "modules.json", folder / "sentence_bert_config.json"
    pooled = [{"type": "Pooling", "path": "1_Pooling"}] if (folder / "1_Pooling").is_dir() else []
    modules = load_json(listed) if listed.is_file() else pooled
    try:
        paths = {one["type"].rpartition(".")[2]: one["path"] for one in modules}
        says = load_json(said) if said.is_file() else {}
        if strange := sorted(set(paths) - {"Transformer", "Pooling", "Normalize"}):
            expected = "expected Transformer, Pooling and Normalize"
            raise InputError(f"{listed}: {expected}, found {', '.join(strange)}")
        if says.get("do_lower_case"):
            raise InputError(f"{said}: do_lower_case: expected false, found true")
        pooling = _pooling(folder / paths["Pooling"]) if "Pooling" in paths else "mean"
        return paths.get("Transformer", ""), pooling, says
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{listed}: expected a list of modules, found: {error!r}") from error


def _pooling(folder: Path) -> Any:
    """How the vectors of tokens become one. Raises InputError for a way that is not known here."""
    said = load_json(folder / "config.json")
    modes = {name.removeprefix("pooling_mode_") for name, on in said.items() if on is True}
    named = said.get("pooling_mode")  # a newer spelling
    wanted = {named} if named else modes - {"include_prompt"}
    if len(wanted) != 1 or not wanted <= set(WAYS):
        found = ", ".join(sorted(map(str, wanted))) or "none"
        file = folder / "config.json"
        raise InputError(f"{file}: pooling: expected one of {', '.join(WAYS)}, found {found}")
    return WAYS[wanted.pop()]
