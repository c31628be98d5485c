"""Language models in this process behind one shape: `generate(prompt_ids, sampling, seeds)`.

The one law: sampled ids are the truth. They are kept as they came, end-of-turn token included, and
the text is only a view of them. Every row draws from its own seed, so its draws do not depend on
who shares its batch (up to the rounding of a padded forward pass).

    lm = load_lm("models/Qwen3-4B")
    ids = encode_chat(lm.tokenizer, [{"role": "user", "content": chunk}])
    lm.generate([ids], Sampling(temperature=0.0, max_new_tokens=64))[0].text

On a CPU the miniature, trained writers and rollouts of training take `models/decode.py`, faster and
with a copy of the weights (`python benchmarks/generation_speed.py models/smollm2-135m`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from memalpha_kit.errors import InputError, closest
from memalpha_kit.models.folders import EXPECTED, LOCAL, ends, load_tokenizer, readable
from memalpha_kit.progress import tell
from memalpha_kit.records import Completion
from memalpha_kit.sections import Count, NonNegative, section

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Number formats of weights; "auto" is the one they are saved in."""


@section
class Sampling:
    """How replies are drawn. Temperature 0 is greedy and needs no seed."""

    temperature: NonNegative = 1.0
    max_new_tokens: Count = 2048
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # smallest set of so much probability
    seed: int = 0  # of rows that bring no seed of their own


@dataclass(frozen=True)
class CausalLM:
    """A causal language model of transformers with its tokenizer. Load one with `load_lm`.

    `said` is what its folder says about generation: kept for whoever saves it, and not followed.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    batch_size: int = 8
    said: Mapping[str, Any] = field(default_factory=dict, compare=False)

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
        seeds = seeds or [sampling.seed * 1_000_003 + place for place in range(len(prompt_ids))]
        self._check_lengths(prompt_ids, sampling)
        done: list[Completion] = []
        for start in range(0, len(prompt_ids), self.batch_size):
            part = slice(start, start + self.batch_size)
            rows = self._decode(prompt_ids[part], sampling, seeds[part])
            done += map(self.completion, prompt_ids[part], *rows)
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

    def _decode(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sampled ids and their log-probabilities; a reply may go on after its stop token."""
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
        with torch.inference_mode(), answering(self.model):
            model: Any = self.model
            out = model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([draw]),
            )
        return out[:, ids.shape[1] :].tolist(), torch.stack(draw.logprobs, dim=1).tolist()

    def completion(
        self, prompt: Sequence[int], reply: list[int], logprobs: list[float] | None
    ) -> Completion:
        """The reply up to its first stop token, which is kept in the ids and not in the text."""
        stop = next((i for i, token in enumerate(reply) if token in self.stop_ids), None)
        kept = reply if stop is None else reply[: stop + 1]
        return Completion(
            text=str(self.tokenizer.decode(kept if stop is None else kept[:-1])),
            prompt_ids=tuple(prompt),
            completion_ids=tuple(kept),
            mask=(1,) * len(kept),
            logprobs=None if logprobs is None else tuple(logprobs[: len(kept)]),
            finish="length" if stop is None else "stop",
        )


@contextmanager
def answering(model: PreTrainedModel) -> Iterator[None]:
    """No dropout and a cache of keys and values, also in the middle of training."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def left_pad(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both (B, longest); the mask comes from lengths, not from the pad id."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])


class SeededDraw:
    """A logits processor that chooses each row's next token with that row's own random numbers.

    It leaves only the chosen token possible, so transformers' greedy search follows it. That keeps
    their handling of caches for every architecture, and the draw in our hands.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        import torch

        def numbers(seed: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed)
            return torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64)

        self.sampling = sampling
        self.logprobs: list[torch.Tensor] = []  # one (B,) per step
        self.uniform = torch.stack([numbers(seed) for seed in seeds])  # (B, max_new_tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores with 0 at the drawn token and -inf elsewhere. (B, V) -> (B, V)"""
        import torch

        place: Any = "cpu" if scores.device.type == "mps" else scores.device  # mps: no 64-bit float
        uniform = self.uniform[:, len(self.logprobs)].to(place)
        chosen, logprobs = drawn(scores.to(place), uniform, self.sampling)
        self.logprobs.append(logprobs)
        only = chosen[:, None].to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter(1, only, 0.0)


def drawn(
    logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Next tokens and their log-probabilities. (B, V), (B,) -> (B,), (B,)

    The token drawn is the one where the cumulated probability passes `uniform`.
    """
    import torch

    logprobs = torch.log_softmax(logits.double() / (sampling.temperature or 1.0), dim=-1)
    if not sampling.temperature:
        chosen = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
        return chosen[:, 0], logprobs.gather(1, chosen)[:, 0]
    probs, order = logprobs.exp(), None
    if sampling.top_p < 1:
        probs, order = probs.sort(dim=-1, descending=True)
        before = probs.cumsum(-1) - probs  # probability of all likelier tokens
        probs = probs.masked_fill(before >= sampling.top_p, 0.0)
    total = probs.cumsum(-1)
    chosen = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
    chosen = chosen.clamp(max=probs.shape[-1] - 1)
    chosen = chosen if order is None else order.gather(1, chosen)
    return chosen[:, 0], logprobs.gather(1, chosen)[:, 0]


# ---- loading ------------------------------------------------------------------------------------


def load_lm(
    folder: str | Path,
    device: str = "cpu",
    batch_size: int = 8,
    dtype: str = "auto",
    **options: Any,
) -> CausalLM:
    """The causal language model saved in a local folder, ready to generate.

    Nothing is downloaded and no code of the folder is run. `options` go to transformers
    (quantization_config, device_map). Raises InputError for a folder that is no whole model.
    """
    from transformers import GenerationConfig

    folder = Path(folder)
    model, tokenizer = load_parts(folder, "AutoModelForCausalLM", device, dtype, **options)
    stops, said = ends(folder, tokenizer)
    model.generation_config = GenerationConfig()  # the folder's sampling habits are not ours
    return CausalLM(str(folder), model, tokenizer, stops, batch_size, said)


def load_parts(
    folder: Path, kind: str, device: str = "cpu", dtype: str = "auto", **options: Any
) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; `kind` is a class of transformers. Raises as `load_lm`."""
    placed = _device(device)
    if dtype not in DTYPES:
        expected = f"expected one of {', '.join(DTYPES)}{closest(dtype, DTYPES)}"
        raise InputError(f"dtype {dtype!r}: {expected}")
    tokenizer = load_tokenizer(folder)
    import transformers

    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > 1e9:  # they take a while to read
        tell(f"loading {folder}: {size / 1e9:.1f} GB of weights")
    with readable(folder):
        model, told = getattr(transformers, kind).from_pretrained(
            folder,
            **{"dtype": dtype} | options | LOCAL,
            use_safetensors=True,
            output_loading_info=True,
        )
    _check_weights(folder, model, told)
    return (model if "device_map" in options else model.to(placed)).eval(), tokenizer


def _check_weights(folder: Path, model: PreTrainedModel, told: dict[str, Any]) -> None:
    """Raises InputError if a weight is missing, has another shape or is no number.

    transformers only warns and goes on with random numbers in its place.
    """
    import torch

    missing = sorted(map(str, told["missing_keys"] or told["mismatched_keys"]))
    missing = [name for name in missing if not name.startswith("pooler.")]  # nobody reads it
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"model {folder}: {EXPECTED}, found no weights for {missing[0]}{more}")
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise InputError(f"model {folder}: {name}: expected numbers, found NaN or infinity")


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device {name!r}: expected a CUDA card, found none")
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # of another name, or not on this machine
        raise InputError(f"device {name!r}: expected one of here, like cpu or cuda:0") from error
    return device
