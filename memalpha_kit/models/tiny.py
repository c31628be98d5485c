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

from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.files import save_json
from memalpha_kit.models.folders import GENERATION, quiet
from memalpha_kit.models.local import CausalLM, load_lm
from memalpha_kit.settings import PolicyConfig

if TYPE_CHECKING:
    import torch
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

    The `start_` settings put structure into them (`give_head_start`). Same seed, same weights; the
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
        with torch.no_grad():
            give_head_start(model, config, torch.Generator().manual_seed(seed))
    model.generation_config.update(**ends)
    return model


def give_head_start(model: Any, config: PolicyConfig, generator: torch.Generator) -> None:
    """Gives the fresh weights of `model` a little structure, in place.

    Copying "what followed the last time" (induction) takes a head that looks a few tokens back and
    a later one that finds equal keys. A small model finds that circuit by chance, after many steps;
    here it starts near it (the idea of mimetic initialisation):

    * `start_shared`: all embeddings share a direction, so that a head can act on positions alone;
    * `start_look_back`: head i of the first layer looks back by i + 1 positions;
    * `start_copy`: values pass through (output projection near the transpose of the value
      projection), and later layers compare like with like (key near query projection).

    Nothing about the world is put in: no token is favoured and no pair of tokens tied. Raises
    InputError if keys are shared between heads: the projections must have one shape.
    """
    import torch

    if config.kv_heads != config.heads:
        raise InputError(
            f"policy.kv_heads: expected {config.heads}, one per head, found {config.kv_heads}"
        )
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


def _look_back(heads: Any, config: PolicyConfig, shared: torch.Tensor) -> None:
    """Makes head i answer the shared direction most strongly i + 1 tokens back.

    Rotary positions turn a query at distance n by n times each frequency; a key turned by the
    same angle beforehand fits it best exactly there.
    """
    import torch

    half = config.head_dim // 2
    turn = 1 / config.rope_theta ** (torch.arange(half) / half)  # radians per position
    emphasis = turn.clamp(min=0.02).sqrt()  # of slower ones as much as of this one
    emphasis /= emphasis.norm()  # no random draw: heads of some seeds would be blurred
    query = torch.cat([emphasis, torch.zeros(half)])
    for head in range(config.heads):
        rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
        angle = (head + 1) * turn
        key = torch.cat([emphasis * angle.cos(), emphasis * angle.sin()])
        strength = config.start_look_back * heads.q_proj.weight[rows].norm()
        heads.q_proj.weight[rows] += strength * torch.outer(query, shared)
        heads.k_proj.weight[rows] += strength * torch.outer(key, shared)


# --- Folders --------------------------------------------------------------------------------------


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """`folder`, now a Hugging Face folder with model and tokenizer; an older one is replaced.

    Of a model with an adapter it holds the adapter, whose configuration names the base. `weights`
    are those of a model whose own are spread over processes, `generation` is what the folder says
    about stop ids and sampling (by default what the model does).

    Written beside it first and then renamed, so a crash leaves no half-written policy behind.
    Raises DiskError if it cannot be written.
    """
    part = folder.with_name(folder.name + ".part")
    old = folder.with_name(folder.name + ".old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with quiet(), writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"state_dict": weights} if weights else {}
        if hasattr(model, "peft_config"):
            options["selected_adapters"] = ["default"]
        model.save_pretrained(part, **options)
        tokenizer.save_pretrained(part)
        if generation:
            save_json(part / GENERATION, generation)
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what is raised on a full disk into a DiskError naming `folder`.

    That is an Exception of no narrower kind where a tokenizer is saved.
    """
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:
        found = str(error).partition("\n")[0]
        known = isinstance(error, OSError | RuntimeError | SafetensorError)
        if not known and "(os error" not in found:  # a file's error as Rust words it
            raise
        raise DiskError(
            f"{folder}: expected to write model files (is the disk full?), found: {found}"
        ) from error


def load_policy(folder: Path) -> CausalLM:
    """The policy of that folder, decoding fast where that is possible; errors as `load_lm`."""
    from memalpha_kit.models.decode import fast

    with quiet():
        return fast(load_lm(folder, batch_size=BATCH_ROWS))
