"""Writers that come trained with the repository: `memalpha write --model small "my text"`.

A trained writer has the name of its profile. Its adapter is `reports/recorded/NAME/adapter.zip`,
and its base is the profile's `model.name`, which `memalpha models get` brings.
"""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.data.chunks import pack_sentences
from memalpha_kit.data.sources.building import Job
from memalpha_kit.errors import InputError
from memalpha_kit.models.folders import found_folder
from memalpha_kit.notebooks import repository
from memalpha_kit.records import Instance
from memalpha_kit.settings import Profile

if TYPE_CHECKING:
    from memalpha_kit.models.local import CausalLM


def adapter_file(model: Path | None) -> Path | None:
    """The adapter of the trained writer that `--model` names; None if it names none.

    A folder of that name is a model of the user's own, and comes first.
    """
    if model is None or len(model.parts) != 1 or model.is_dir():
        return None
    try:
        file = repository() / "reports" / "recorded" / model.name / "adapter.zip"
    except InputError:  # installed without the repository
        return None
    return file if file.is_file() else None


def load_trained(
    adapter: Path, profile: Profile, device: str = "cpu", dtype: str = "auto"
) -> CausalLM:
    """The profile's model with this adapter. Raises InputError if the base is not there."""
    from memalpha_kit.models.decode import fast
    from memalpha_kit.training.backends import load_model

    base = found_folder(profile.model.name)
    if not (base / "config.json").is_file():
        raise InputError(
            f"{base}: expected the base of the trained writer, found no model "
            f"(`memalpha models get {base.name}` brings it)"
        )
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(adapter).extractall(folder)
        kind: Any = profile.model.dtype if dtype == "auto" else dtype
        model = replace(profile.model, adapter=folder, dtype=kind)
        lm = load_model(model, base, profile.seed, device)
        return fast(replace(lm, name=str(adapter.parent)))  # its base is another writer


def as_instance(text: str, profile: Profile) -> Instance:
    """A text that nobody asks about, in chunks of the profile's size.

    Each chunk is framed as what a user said on one day, as the documents of the training data are.
    Raises InputError for a text without words.
    """
    job = Job("text", Path(), profile.data, profile.seed)
    chunks = pack_sentences(text, job.counter, profile.data.chunk_max_tokens)
    if not chunks:
        raise InputError("text: expected words, found none")
    return Instance("text", "text", job.framed(chunks, 0), ())
