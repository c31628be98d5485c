"""What a model's folder must hold, and its tokens with a role: the ends of replies, and the pad.

The one law: every end token ends a reply, and no pad token does. Whoever loads, trains, writes with
or exports a language model asks `ends`; training asks `check_pad` before there is any work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import InputError
from memalpha_kit.files import load_json
from memalpha_kit.method.model_writers import check_prompts
from memalpha_kit.models.get import MODELS
from memalpha_kit.notebooks import repository

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memalpha_kit.settings import MemoryConfig, ProtocolConfig

EXPECTED = "expected a folder with config.json, weights (safetensors) and a tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
GENERATION = "generation_config.json"
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
NO_PAD = (
    "expected a pad token that ends no reply (its own, else the one for unknown text, else a "
    "special token that the chat template does not write), found none; add one and save the "
    "folder again: tokenizer.add_special_tokens({'pad_token': '<|pad|>'}), "
    "model.resize_token_embeddings(len(tokenizer))"
)


@contextmanager
def quiet(errors_only: bool = False) -> Iterator[None]:
    """Switches off transformers' own progress bars, and its warnings too if wanted."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if errors_only:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def found_folder(name: str) -> Path:
    """The folder of that name, seen from here or from the clone: a notebook runs in a folder below.

    A name of neither, the hub's perhaps, stays as it is.
    """
    if not (here := Path(name)).is_dir():
        with suppress(InputError):  # installed without the repository
            return below if (below := repository() / name).is_dir() else here
    return here


def check_folder(folder: Path) -> None:
    """Raises InputError for what can be seen without reading a weight."""

    def any_of(*patterns: str) -> list[str]:
        return sorted(path.name for pattern in patterns for path in folder.glob(pattern))

    found = ""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
    elif not (folder / "config.json").is_file():
        trained = (folder / "adapter_config.json").is_file() or (folder / "policy").is_dir()
        found = "what `memalpha export` makes a model of" if trained else "no config.json"
    elif not any_of("*.safetensors"):
        pickles = any_of(*PICKLES)
        found = f"a pickle, {pickles[0]}, which can run code" if pickles else "no weights"
    elif not any_of(*TOKENIZER_FILES):
        found = "no tokenizer"
    if found:
        hint = f"; `memalpha models get {folder.name}` gets it" if folder.name in MODELS else ""
        raise InputError(f"model {folder}: {EXPECTED}, found {found}{hint}")


@contextmanager
def readable(folder: Path, expected: str = EXPECTED) -> Iterator[None]:
    """Turns what is raised for files that are missing or broken into an InputError."""
    from huggingface_hub.errors import StrictDataclassError  # a field of another type
    from safetensors import SafetensorError

    unreadable = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, Warning)
    try:
        with quiet(errors_only=True):
            yield
    except (*unreadable, ImportError, StrictDataclassError, SafetensorError) as error:
        text = str(error).strip().replace(":\n", ": ") or type(error).__name__
        reason = " ".join(text.splitlines()[0].split())
        raise InputError(f"model {folder}: {expected}, found {reason}") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder; reads no weight. Raises InputError as `check_folder`."""
    check_folder(folder)
    from transformers import AutoTokenizer

    with readable(folder):
        return AutoTokenizer.from_pretrained(folder, **LOCAL)


def check_writer(folder: Path, memory: MemoryConfig, protocol: ProtocolConfig) -> None:
    """Raises InputError if no prompt, or not all, fit a model or its template; reads no weight."""
    check_prompts(load_tokenizer(folder), memory, protocol)
    longest = protocol.max_prompt_tokens + protocol.max_reply_tokens
    window = load_json(folder / "config.json").get("max_position_embeddings") or longest
    if window < longest:
        sums = f"{longest} (protocol.max_prompt_tokens + protocol.max_reply_tokens)"
        raise InputError(f"model {folder}: expected a window of {sums}, found {window}")


# ---- end and pad tokens -------------------------------------------------------------------------


def ends(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], dict]:
    """All end tokens, and what `generation_config.json` says; the tokenizer gets its pad token.

    Reads no weight. Raises InputError if there is no end token.
    """
    from transformers import AutoConfig

    with readable(folder):
        config = AutoConfig.from_pretrained(folder, **LOCAL).get_text_config()
    file = folder / GENERATION
    said = {k: v for k, v in load_json(file).items() if v is not None} if file.is_file() else {}
    named = said.get("eos_token_id", getattr(config, "eos_token_id", None))
    both = [[ids] if isinstance(ids, int) else ids for ids in (named, tokenizer.eos_token_id)]
    stops = tuple(dict.fromkeys(number for ids in both for number in ids or ()))  # each once
    if not stops:
        raise InputError(f"model {folder}: expected an end-of-text token, found none")
    tokenizer.pad_token_id = pad_id(tokenizer, stops, config.vocab_size)
    return stops, said


def pad_id(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], vocabulary: int) -> int | None:
    """The token that fills up short rows; one that ends replies would hide where they end.

    The rule: the tokenizer's own pad token, else the one for unknown text, else the last special
    token. It must have an embedding, and neither of the latter two may begin texts or be written by
    the chat template. None if there is none: such a model can be asked and not trained.
    """
    special = [n for n, token in tokenizer.added_tokens_decoder.items() if token.special]
    spare = [tokenizer.unk_token_id, *sorted(special, reverse=True)]
    template = str(tokenizer.chat_template or "")
    free = [
        number
        for number in spare
        if number not in (None, tokenizer.bos_token_id)
        and str(tokenizer.convert_ids_to_tokens(number)) not in template
    ]
    for number in (tokenizer.pad_token_id, *free):
        if number is not None and number not in stops and number < vocabulary:
            return number
    return None


def check_pad(folder: Path) -> str:
    """What fills up rows if it is not the model's own pad token, in words; else "".

    Raises InputError, saying how to mend the folder, if there is no such token. Reads no weight.
    """
    tokenizer = load_tokenizer(folder)
    own = tokenizer.pad_token
    ends(folder, tokenizer)
    chosen = tokenizer.pad_token
    if chosen is None:
        raise InputError(f"model {folder}: {NO_PAD}")
    why = f"for its pad token, {own}, would hide where replies end"
    return "" if chosen == own else f"model {folder}: rows are filled up with {chosen}, {why}"
