"""Which token loop is fastest for a small model on a CPU, where vLLM is absent.

    memalpha models get smollm2-135m
    python benchmarks/generation_speed.py models/smollm2-135m

The same prompts (three, eight rollouts each) and the same number of new tokens through
transformers' loop with its growing cache, with a static cache, with a compiled step, through its
continuous batching, and through ours (`models/decode.py`). Tokens per processor second, so that
other work on the machine does not count; what a loop needs once (compiling) stands apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memalpha_kit.method.encoding import encode_chat  # noqa: E402
from memalpha_kit.models.decode import fast  # noqa: E402
from memalpha_kit.models.local import CausalLM, Sampling, left_pad, load_lm  # noqa: E402

TEXTS = (
    "What is the capital of France?",
    "Tell me a story about a fox and a lake, please.",
    "Name three rivers of Europe and say where they are, from the longest to the shortest one.",
)
ROLLOUTS = 8


def ways(lm: CausalLM, prompts: list[list[int]], n: int) -> dict[str, Callable[[], Any]]:
    """What generates, by name."""
    from transformers import GenerationConfig

    ids, mask = left_pad(prompts, lm.tokenizer.pad_token_id)
    never = len(lm.tokenizer) - 1  # `min_new_tokens` forbids it
    pads = {"pad_token_id": lm.tokenizer.pad_token_id, "eos_token_id": never}

    def theirs(**more: Any) -> Callable[[], Any]:
        config = GenerationConfig(
            max_new_tokens=n, min_new_tokens=n, do_sample=True, top_k=0, **pads, **more
        )
        return lambda: lm.model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config
        )

    def batched() -> Any:
        config = GenerationConfig(max_new_tokens=n, do_sample=True, top_k=0, **pads)
        return lm.model.generate_batch(prompts, generation_config=config, progress_bar=False)

    def compiled() -> Any:
        lm.model.forward = torch.compile(type(lm.model).forward.__get__(lm.model))
        try:
            return theirs(cache_implementation="static", disable_compile=True)()
        finally:
            del lm.model.forward

    ours = fast(CausalLM(lm.name, lm.model, lm.tokenizer, (-1,), len(prompts)))
    return {
        "transformers": theirs(),
        "transformers, static cache": theirs(cache_implementation="static", disable_compile=True),
        "ours (models/decode.py)": lambda: ours.generate(prompts, Sampling(1.0, n)),
        "transformers, continuous batching": batched,
        "transformers, static cache, compiled": compiled,
    }


def main() -> None:
    """Prints a line per way as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--only", nargs="+", default=[""], help="names that begin so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_lm(options.model)
    own = [encode_chat(lm.tokenizer, [{"role": "user", "content": text}]) for text in TEXTS]
    prompts = [ids for ids in own for _ in range(ROLLOUTS)]
    total = len(prompts) * options.tokens
    for name, generate in ways(lm, prompts, options.tokens).items():
        if not name.startswith(tuple(options.only)):
            continue
        seconds = []
        for _ in range(2):
            started = time.process_time()
            try:
                generate()
            except Exception as error:  # a way that is not offered here is a finding
                print(f"{name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
                break
            seconds.append(time.process_time() - started)
        else:
            once = max(0.0, seconds[0] - seconds[1])
            print(f"{name}: {total / seconds[1]:.0f} tokens/s ({once:.1f} s once)", flush=True)


if __name__ == "__main__":
    main()
