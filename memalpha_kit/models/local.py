"""Language models behind one shape: `generate(prompt_ids, sampling) -> completions`.

The one law: sampled ids are the truth. They are kept as they came, end-of-turn token included, and
the text is only a view of them (D34, D35). The other border guarded here is the prompt: text of a
document can never become a control token (`encode_chat`, D17).

Randomness: every row draws from its own seed, so its draws do not depend on who shares its batch
(up to the rounding of a padded forward pass).

    lm = load_lm("models/Qwen3-4B")
    ids = encode_chat(lm.tokenizer, [{"role": "user", "content": chunk}])
    lm.generate([ids], Sampling(temperature=0.0, max_new_tokens=64))[0].text
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import InputError
from memalpha_kit.records import Completion

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. Temperature 0 is greedy and needs no seed."""

    temperature: float = 1.0
    max_new_tokens: int = 2048
    top_p: float = 1.0  # smallest set of tokens with this much probability
    seed: int = 0  # of rows that bring no seed of their own

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(f"sampling.temperature: expected >= 0, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p: expected 0 < top_p <= 1, found {self.top_p}")
        if self.max_new_tokens < 1:
            raise InputError(f"sampling.max_new_tokens: expected >= 1, found {self.max_new_tokens}")


@dataclass(frozen=True)
class CausalLM:
    """A causal language model of transformers with its tokenizer. Load one with `load_lm`."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    batch_size: int = 8

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; `finish` is "length" without a stop token.

        `seeds` has one number per prompt; without it they follow from `sampling.seed` and the
        place. `logprobs` are of the sampled tokens, logits divided by the temperature (1 when
        greedy), before `top_p`. Raises InputError if a prompt is empty or the model's window is
        too small for prompt and reply.
        """
        seeds = (
            [sampling.seed * 1_000_003 + i for i in range(len(prompt_ids))]
            if seeds is None
            else seeds
        )
        self._check_lengths(prompt_ids, sampling)
        done: list[Completion] = []
        for start in range(0, len(prompt_ids), self.batch_size):
            part = slice(start, start + self.batch_size)
            done += self._generate_batch(prompt_ids[part], sampling, seeds[part])
        return done

    def _check_lengths(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        window = getattr(self.model.config, "max_position_embeddings", None)
        for place, ids in enumerate(prompts):
            if not ids:
                raise InputError(f"{self.name}: prompt {place}: expected tokens, found none")
            if window and len(ids) + sampling.max_new_tokens > window:
                raise InputError(
                    f"{self.name}: prompt {place}: expected at most {window} tokens with the "
                    f"reply, found {len(ids)} + {sampling.max_new_tokens}"
                )

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        ids, mask = left_pad(prompts, self.stop_ids[0])
        draw = SeededDraw(sampling, seeds)
        settings = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,  # `draw` has already chosen
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.stop_ids[0],
        )
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([draw]),
            )
        replies = out[:, ids.shape[1] :].tolist()
        logprobs = torch.stack(draw.logprobs, dim=1).tolist()  # (B, new tokens)
        rows = zip(prompts, replies, logprobs, strict=True)
        return [self._completion(*row) for row in rows]

    def _completion(
        self, prompt: Sequence[int], reply: list[int], logprobs: list[float]
    ) -> Completion:
        """The reply up to its first stop token, which is kept in the ids and not in the text."""
        stop = next((i for i, token in enumerate(reply) if token in self.stop_ids), None)
        kept = reply if stop is None else reply[: stop + 1]
        return Completion(
            text=self.tokenizer.decode(kept if stop is None else kept[:-1]),
            prompt_ids=tuple(prompt),
            completion_ids=tuple(kept),
            mask=(1,) * len(kept),
            logprobs=tuple(logprobs[: len(kept)]),
            finish="length" if stop is None else "stop",
        )


def left_pad(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both (B, longest); the mask comes from lengths, not from the pad id."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return ids, mask


class SeededDraw:
    """A logits processor that chooses each row's next token with that row's own random numbers.

    It leaves only the chosen token possible, so transformers' greedy search follows it. That keeps
    their handling of caches for every architecture, and the draw in our hands.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        import torch

        self.sampling = sampling
        self.logprobs: list[torch.Tensor] = []  # one (B,) per step
        self.uniform = torch.stack(
            [
                torch.rand(
                    sampling.max_new_tokens,
                    generator=torch.Generator().manual_seed(seed),
                    dtype=torch.float64,
                )
                for seed in seeds
            ]
        )  # (B, max_new_tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores with 0 at the drawn token and -inf elsewhere. (B, V) -> (B, V)"""
        import torch

        temperature = self.sampling.temperature
        logprobs = torch.log_softmax(scores.double() / (temperature or 1.0), dim=-1)
        if temperature:
            uniform = self.uniform[:, len(self.logprobs), None].to(scores.device)
            chosen = inverse_cdf(logprobs.exp(), uniform, self.sampling.top_p)
        else:
            chosen = scores.argmax(dim=-1, keepdim=True)  # (B, 1)
        self.logprobs.append(logprobs.gather(1, chosen)[:, 0])
        return torch.full_like(scores, float("-inf")).scatter(1, chosen, 0.0)


def inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor, top_p: float) -> torch.Tensor:
    """The token where the cumulated probability passes `uniform`. (B, V), (B, 1) -> (B, 1)"""
    import torch

    order = None
    if top_p < 1:
        probs, order = probs.sort(dim=-1, descending=True)
        before = probs.cumsum(-1) - probs  # probability of all likelier tokens
        probs = probs.masked_fill(before >= top_p, 0.0)
    total = probs.cumsum(-1)
    place = torch.searchsorted(total, uniform * total[:, -1:], right=True)
    place = place.clamp(max=probs.shape[-1] - 1)
    return place if order is None else order.gather(1, place)


def load_lm(
    folder: str | Path, device: str = "cpu", batch_size: int = 8, **options: Any
) -> CausalLM:
    """The causal language model saved in a local folder, ready to generate.

    Nothing is downloaded and no code of the folder is run. `options` go to transformers beside the
    folder (dtype, quantization_config). Raises InputError, naming the folder
    and what was expected, if it does not exist, is not a model or cannot be read.
    """
    folder = Path(folder)
    expected = "expected a folder with config.json, weights and a tokenizer"
    if not folder.is_dir():
        raise InputError(
            f"model {folder}: {expected}, found {'a file' if folder.exists() else 'nothing'}"
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"model {folder}: {expected}, found no config.json")
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    placed = _device(device)
    local = {"local_files_only": True, "trust_remote_code": False}
    known = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": "auto"} | options | local)
    except known as error:  # what transformers raises for files that are missing or broken
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"model {folder}: {expected}, found {reason}") from error
    stops = stop_ids(model.generation_config.eos_token_id, tokenizer.eos_token_id)
    if not stops:
        raise InputError(f"model {folder}: expected an end-of-text token, found none")
    model.generation_config = GenerationConfig()  # the folder's sampling habits are not ours
    moved = model if "device_map" in options else model.to(placed)
    return CausalLM(str(folder), moved.eval(), tokenizer, stops, batch_size)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: expected one like cpu or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: expected a CUDA card, found none")
    return device


def stop_ids(*named: int | Sequence[int] | None) -> tuple[int, ...]:
    """All end tokens, the tokenizer's and the generation config's, each once."""
    found: dict[int, None] = {}
    for value in named:
        found |= dict.fromkeys([value] if isinstance(value, int) else value or [])
    return tuple(found)


# ---- prompts ----------------------------------------------------------------------------------


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of `text` as ordinary text: what looks like a control token is spelled out (D17)."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = False,
) -> list[int]:
    """Prompt ids of a chat, generation prefix included; contents cannot become control tokens.

    The chat template is rendered around placeholders and cut at its own control tokens; only then
    do the contents take their places and everything between is encoded as ordinary text. Without
    control text in a content the ids are the tokenizer's own. Raises InputError if the tokenizer
    has no chat template or its template refuses the messages.
    """
    marks = {f"\ue000{place}\ue001": m["content"] for place, m in enumerate(messages)}
    shells = [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)]
    rendered = _render_chat(tokenizer, shells, tools, thinking)
    ids: list[int] = []
    for piece, control in _cut_at_control(tokenizer, rendered):
        text = re.sub("\ue000\\d+\ue001", lambda match: marks.get(match[0], match[0]), piece)
        ids += encode_text(tokenizer, text) if text else []
        ids += [tokenizer.convert_tokens_to_ids(control)] if control else []
    return ids


def _render_chat(tokenizer, messages, tools, thinking: bool | None) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path}: expected a chat template, found none"
        )
    try:
        return tokenizer.apply_chat_template(
            messages,
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
    except TemplateError as error:
        raise InputError(f"chat template of {tokenizer.name_or_path}: {error}") from error


def _cut_at_control(tokenizer, text: str) -> Iterator[tuple[str, str]]:
    """`text` as (ordinary text, control token after it); the last control token is ""."""
    names = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    if not names:
        yield text, ""
        return
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    parts = re.split(f"({pattern})", text)
    yield from zip(parts[::2], [*parts[1::2], ""], strict=True)
