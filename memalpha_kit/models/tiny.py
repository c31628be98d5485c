"""The miniature's policy: its tokenizer and a tiny Qwen3 from scratch, made, saved and loaded.

The one law: a policy is a Hugging Face folder. It appears whole or not at all, and every step of
training starts from one and ends with one.

    tokenizer = build_tokenizer(texts, 1024, PATTERN, special=("<|pad|>", "<|im_end|>"))
    model = build_policy(PolicyConfig(), tokenizer, seed=0)
    save_policy(model, tokenizer, Path("runs/laptop/policy"))
    lm = load_policy(Path("runs/laptop/policy"))
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import DiskError
from memalpha_kit.models.decode import fast
from memalpha_kit.models.head_start import give_head_start
from memalpha_kit.models.local import CausalLM, load_lm
from memalpha_kit.settings import PolicyConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_ROWS = 128
"""Prompts decoded together; more would only cost memory."""


# --- Tokenizer and model --------------------------------------------------------------------------


def build_tokenizer(
    texts: Iterable[str],
    vocabulary: int,
    pattern: str,
    special: Sequence[str],
    added: Sequence[str] = (),
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on `texts`, with at most `vocabulary` + `added` tokens.

    `special` starts with the pad and the end-of-turn token. Each match of the regular expression
    `pattern` is a word that merges do not cross. `added` strings (the boilerplate of a tool call)
    are one token each and stay visible in decoded text. decode(encode(x)) == x for every text.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, raw])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=special[0],
        eos_token=special[1],
        additional_special_tokens=list(special[2:]),
        clean_up_tokenization_spaces=False,
    )


def build_policy(
    config: PolicyConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """A Qwen3 with random weights (fp32) and one embedding row per token, rounded up to 8.

    The `start_` settings put structure into them (`head_start.py`). Same seed, same weights; the
    global random state is left as it was.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    qwen = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        initializer_range=config.init_std,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie,
        bos_token_id=None,
        **ends,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(qwen)
    if config.start_shared or config.start_look_back or config.start_copy:
        give_head_start(model, config, seed)
    model.generation_config.update(**ends)
    return model


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Any] | None = None,
) -> Path:
    """`folder`, now a Hugging Face folder with model and tokenizer; an older one is replaced.

    Of a model with an adapter it holds the adapter, whose configuration names the base. `weights`
    are those of a model whose own are spread over processes.

    Written beside it first and then renamed, so a crash leaves no half-written policy behind.
    Raises DiskError if it cannot be written.
    """
    part = folder.with_name(folder.name + ".part")
    old = folder.with_name(folder.name + ".old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with quiet(), writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        adapter = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(part, **({"state_dict": weights} if weights else {}), **adapter)
        tokenizer.save_pretrained(part)
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what torch and safetensors raise on a full disk into a DiskError naming `folder`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        found = str(error).partition("\n")[0]
        raise DiskError(
            f"{folder}: expected to write model files (is the disk full?), found: {found}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Switches off transformers' own progress bars, one per file, which fill logs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_policy(folder: Path) -> CausalLM:
    """The policy of that folder, decoding fast where that is possible; errors as `load_lm`."""
    with quiet():
        return fast(load_lm(folder, batch_size=BATCH_ROWS))
