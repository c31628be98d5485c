"""What a GRPO step costs on a card, phase by phase, and what our chunk rows add to TRL's own cost.

    python benchmarks/gpu_training.py --minutes 4                                    # a CUDA card
    python benchmarks/gpu_training.py --minutes 8 --vllm none colocate               # and with vLLM
    python benchmarks/gpu_training.py --shape toy --device cpu --backends trl        # a look

Two runs of each kind, on the same randomly initialised Qwen3:

- `kit`: our trainer. Episodes of several chunks, a row per chunk, questions asked, rewards given.
- `alone`: TRL's GRPOTrainer (or the one that Unsloth writes) without us. A dataset row per chunk,
  with the very prompts that `kit` wrote; as many generations per optimiser step, each as wide; as
  many and as large forward passes; a reward that costs nothing.

One process for a card that is lent for minutes: the smallest case first, a line per phase and step
as it happens, the table saved after every run. A case ends after `--steps` measured steps or when
its share of `--minutes` is used up; one that hangs is ended with the stacks of its threads, and
those behind it are left out and named. Unsloth rewrites TRL when it is imported, so its cases come
last, after this process has started itself anew.

Random weights write noise, so both are held at `--reply-tokens` tokens per reply, and `kit` acts
on the calls of a teacher instead: its memories, prompts and rewards are those of a real run.
`overhead` is seconds per token of `kit` over those of `alone`, minus 1; it holds everything that we
add: prompts, parsing, memory, a reader by rule, rewards, batches, and the padding of unequal rows.

Columns: tokens are per optimiser step. Seconds are too, and split without overlap: `generate_s`
in TRL's generation, `prepare_s` the rest of making a batch, `train_s` forward and backward,
`rest_s` optimiser and bookkeeping. On a card they are seconds, on a CPU processor seconds, so
that other work on the machine does not count. `trained_tokens_per_s` counts prompts and replies;
`mfu` is the share of the card's peak that forward and backward reach; `peak_mb` is the largest
memory, the card's or the process's.

On a CPU, replies come from TRL's own generation too, not from our faster decoder, and both runs
compute log-probabilities with our function, because TRL's needs a card.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from memalpha_kit import files  # noqa: E402
from memalpha_kit.lab import miniature, world  # noqa: E402
from memalpha_kit.settings import (  # noqa: E402
    AdvantageConfig,
    GrpoConfig,
    MemoryConfig,
    ModelConfig,
    PolicyConfig,
    Profile,
    ProtocolConfig,
    RewardConfig,
    WorldConfig,
)
from memalpha_kit.training import shapes  # noqa: E402

if TYPE_CHECKING:
    from memalpha_kit.models.local import CausalLM

OUT = ROOT / "reports" / "recorded" / "gpu_training" / "gpu.csv"
TOYS = {
    "toy": PolicyConfig(),
    "small": PolicyConfig(
        layers=4, hidden=320, heads=5, kv_heads=5, feed_forward=960, max_positions=2048
    ),
}
"""0.2 and 5 million parameters, with the miniature's tokenizer and prompts."""
REAL = {"0.6b": "Qwen/Qwen3-0.6B", "4b": "Qwen/Qwen3-4B"}
WARM_UP = 1
"""Optimiser steps that are not measured."""
WEIGHT = {"0.6b": 1.0, "4b": 2.0}
"""How much of the time that is left a case gets, beside others."""
BEFORE = json.loads(os.environ.get("GPU_TRAINING", "{}"))
"""What this process did before it started itself anew."""
STARTED = BEFORE.get("started", time.time())


def say(text: str) -> None:
    """A line with the seconds since the beginning, at once."""
    print(f"{time.time() - STARTED:6.1f} s  {text}", flush=True)


class Watch:
    """Ends this process, stacks first, if a case is not done `grace_s` after its time is up.

    A thread of Python's own: `faulthandler` was seen to crash inside compiled code.
    """

    def __init__(self, grace_s: float = 60.0) -> None:
        self.grace_s, self.case, self.until = grace_s, "", float("inf")
        threading.Thread(target=self._look, daemon=True).start()

    def begin(self, case: str, seconds: float) -> None:
        """A case that should be done after so many seconds."""
        self.case, self.until = case, time.time() + seconds

    def _look(self) -> None:
        while time.time() < self.until + self.grace_s:
            time.sleep(1.0)
        for number, frame in sys._current_frames().items():
            print(f"--- thread {number}\n{''.join(traceback.format_stack(frame))}", flush=True)
        say(f"{self.case}: hangs; what was measured before is saved")
        os._exit(3)


COLUMNS = (
    *("shape", "backend", "vllm", "lora_rank", "device", "run", "repeat", "steps", "rows"),
    *("prompt_tokens", "reply_tokens", "step_s", "generate_s", "prepare_s", "train_s", "rest_s"),
    *("generated_tokens_per_s", "trained_tokens_per_s", "mfu", "peak_mb", "overhead"),
)


@dataclass(frozen=True)
class Case:
    """One kind of run; `slices` is the number of forward passes per chunk index."""

    shape: str
    backend: str
    vllm: str
    lora_rank: int
    device: str
    steps: int
    instances: int
    rollouts: int
    chunks: int
    slices: int
    reply_tokens: int

    @property
    def name(self) -> str:
        """For people."""
        vllm = "" if self.vllm == "none" else f", vLLM {self.vllm}"
        return f"{self.shape} {self.backend}{vllm}"

    @property
    def toy(self) -> bool:
        """Whether the policy is one of the miniature's kind."""
        return self.shape in TOYS

    @property
    def grpo(self) -> GrpoConfig:
        """Settings of `kit`: all chunks of all episodes are one batch."""
        return GrpoConfig(
            steps=self.steps + WARM_UP,
            instances=self.instances,
            rollouts=self.rollouts,
            slices=self.slices * self.chunks,
            learning_rate=1e-6,
            schedule="constant",
            temperature=1.0,
            save_every=0,
            dump_every=0,
        )

    @property
    def model(self) -> ModelConfig:
        """Who loads and who generates."""
        return ModelConfig(
            name=REAL.get(self.shape, self.shape),
            backend=self.backend,
            dtype="auto" if self.toy else "bfloat16",
            lora_rank=self.lora_rank,
            lora_alpha=2 * self.lora_rank or 1,
            vllm=self.vllm,
        )

    @property
    def protocol(self) -> ProtocolConfig:
        """The miniature's bare rows, or the paper's prompt with the wire format of Qwen3."""
        words = "compact" if self.toy else "paper"
        wire = "compact" if self.toy else "qwen"
        return ProtocolConfig(wire=wire, prompt=words, max_reply_tokens=self.reply_tokens)

    @property
    def memory(self) -> MemoryConfig:
        """The miniature's or the paper's."""
        return MemoryConfig(core=False, display="relevant", shown=4) if self.toy else MemoryConfig()

    @property
    def world(self) -> WorldConfig:
        """Chunks of a few sentences, or of about 800 tokens."""
        if self.toy:
            return WorldConfig(chunks=self.chunks, correction=0.85)
        return WorldConfig(chunks=self.chunks, facts=(8, 12), chat=(80, 90))


# --- The policy -----------------------------------------------------------------------------------


def save_policy(case: Case, folder: Path) -> None:
    """A folder with random weights of the case's shape and a tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from memalpha_kit.lab import lessons
    from memalpha_kit.models import tiny as policy

    if case.toy:
        tokenizer = lessons.tokenizer()
        policy.save_policy(policy.build_policy(TOYS[case.shape], tokenizer, 0), tokenizer, folder)
        return
    tokenizer, shape = qwen_tokenizer(), shapes.SHAPES[REAL[case.shape]]
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=40_960,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(case.device):
        model = Qwen3ForCausalLM(config)
    policy.save_policy(model, tokenizer, folder)


CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
VISIBLE = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
"""Qwen3's added tokens, in the order of their ids from 151,643; the second group is no control."""


def qwen_tokenizer() -> Any:
    """Qwen3's tokenizer from the ranks that the package dashscope brings; else one like it.

    Both have Qwen3's added tokens and the chat template that TRL ships.
    """
    from importlib.util import find_spec

    import trl
    from transformers import AddedToken, PreTrainedTokenizerFast

    spec = find_spec("dashscope")
    ranks = Path(spec.origin).parent / "resources" / "qwen.tiktoken" if spec else None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_from_ranks(ranks) if ranks and ranks.is_file() else _trained_bpe(),
        clean_up_tokenization_spaces=False,
    )
    added = [AddedToken(t, special=True, normalized=False) for t in CONTROL]
    added += [AddedToken(t, special=False, normalized=False) for t in VISIBLE]
    tokenizer.add_tokens(added)
    tokenizer.pad_token, tokenizer.eos_token = "<|endoftext|>", "<|im_end|>"
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text()
    return tokenizer


def _from_ranks(path: Path) -> Any:
    """A byte-level BPE with the ranks of a tiktoken file; merges follow from the ranks."""
    import base64

    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    merges = []
    for token, rank in ranks.items():
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(rank, *parts) for parts in sorted(known)]
    merges.sort(key=lambda merge: merge[:3])

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    core = Tokenizer(
        models.BPE({text(t): rank for t, rank in ranks.items()},
                   [(text(a), text(b)) for *_, a, b in merges])
    )  # fmt: skip
    core.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, raw])
    core.decoder = decoders.ByteLevel()
    return core


QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _trained_bpe() -> Any:
    """A byte-level BPE of 8,192 tokens, trained on made-up books."""
    import random

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from tools.sample_data import documents

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8192, initial_alphabet=alphabet, show_progress=False)
    books = documents.booksum(2, 2, 5000, random.Random("tokenizer"))
    core.train_from_iterator([book["text"] for book in books], trainer)
    return core


PHASES = ("generate", "prepare", "step")


# --- Clocks ---------------------------------------------------------------------------------------


class Clock:
    """Adds up the seconds inside functions, and what was generated."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.sums: Counter[str] = Counter()
        self.marks: list[Counter[str]] = []

    def now(self) -> float:
        """Seconds on a card, when it has done its work; processor seconds on a CPU."""
        if self.device == "cpu":
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added to `name`."""

        def inner(*args: Any, **kwargs: Any) -> Any:
            started = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.sums[name] += self.now() - started

        return inner

    def watch(self, trainer: Any, name: str, until: float) -> None:
        """Measures the phases of a trainer's steps, and ends it after one behind `until`."""
        from transformers import TrainerCallback

        single = trainer._generate_single_turn

        def generate(prompts: list[list[int]], *args: Any, **kwargs: Any) -> Any:
            found = single(prompts, *args, **kwargs)
            replies = found[0]
            self.sums["rows"] += len(replies)
            self.sums["prompt_tokens"] += sum(map(len, prompts))
            self.sums["reply_tokens"] += sum(map(len, replies))
            return found

        trainer._generate_single_turn = self.timed("generate", generate)
        trainer._prepare_inputs = self.timed("prepare", trainer._prepare_inputs)
        trainer.training_step = self.timed("step", trainer.training_step)
        clock = self

        class Marks(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
                clock.marks.append(clock.sums | {"total": clock.now()})
                seconds = {k: round(v, 2) for k, v in clock.sums.items() if k in PHASES}
                say(f"{name}: step {len(clock.marks)}, sums so far {seconds}")
                if time.time() > until and len(clock.marks) > WARM_UP:
                    control.should_training_stop = True

        trainer.add_callback(Marks())

    def means(self) -> dict[str, float]:
        """Per measured optimiser step: phases without overlap, rows and tokens."""
        first, last = self.marks[WARM_UP - 1], self.marks[-1]
        n = len(self.marks) - WARM_UP
        mean = {name: (last[name] - first[name]) / n for name in last}
        return {
            "rows": mean["rows"],
            "prompt_tokens": mean["prompt_tokens"],
            "reply_tokens": mean["reply_tokens"],
            "step_s": mean["total"],
            "generate_s": mean["generate"],
            "prepare_s": mean["prepare"] - mean["generate"],
            "train_s": mean["step"] - mean["prepare"],
            "rest_s": mean["total"] - mean["step"],
        }


# --- The two runs ---------------------------------------------------------------------------------


def measure(case: Case, run: str, work: Path, seconds: float) -> dict[str, Any]:
    """One run, in about `seconds`, of which loading is a part."""
    import torch

    from memalpha_kit.models.tiny import quiet
    from memalpha_kit.training.backends import load_model

    until, name, on_card = time.time() + seconds, f"{case.name} {run}", case.device != "cpu"
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    say(f"{name}: loads, {seconds:.0f} s")
    with quiet():
        lm = load_model(case.model, work / "policy", 0, case.device)
    clock, build = Clock(case.device), {"kit": kit, "alone": alone}[run]
    trainer = build(case, lm, work)
    _hold_length(trainer, case.reply_tokens)
    trainer.args.save_strategy = "no"
    clock.watch(trainer, name, until)
    say(f"{name}: begins")
    trainer.train()
    process_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = clock.means()
    found |= {
        "steps": len(clock.marks) - WARM_UP,
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6 if on_card else process_mb,
        "mfu": _mfu(case, found) if on_card and not case.toy else None,
    }
    del trainer, lm, clock
    gc.collect()
    if on_card:
        torch.cuda.empty_cache()
    return found


def kit(case: Case, lm: CausalLM, work: Path) -> Any:
    """Our trainer over episodes; the prompts of its first step go to `prompts.json`."""
    from memalpha_kit.method.episode import Environment
    from memalpha_kit.method.model_writers import ModelWriter
    from memalpha_kit.method.readers import reader
    from memalpha_kit.training import rollouts, trainer
    from memalpha_kit.training.rollouts import Rollouts, Run

    teacher = miniature.teacher("teacher", TEACHER, case.memory, case.protocol.wire)

    class Understood(ModelWriter):
        """Samples replies, and says the teacher's calls in their place."""

        def write(self, requests):
            pairs = zip(super().write(requests), teacher.write(requests), strict=True)
            return [replace(sampled, text=said.text) for sampled, said in pairs]

    rollouts.ModelWriter = Understood
    trainer.writer_lm = rollouts.TrainerLM  # as on a card: TRL generates
    people, _ = world.names(case.world)
    instances = world.build_world(case.world, people, case.instances, case.chunks, "benchmark")
    environment = Environment(
        case.memory,
        replace(case.protocol, max_reply_tokens=case.reply_tokens),
        reader(miniature.READER),
        world.judge,
        RewardConfig(content=0.2),
        AdvantageConfig(),
        miniature.METRIC,
    )
    settings = Run(
        work / "policy", instances, environment, case.grpo, work / "kit", model=case.model
    )
    played, file = Rollouts(settings), work / "prompts.json"

    def collect(step, places, writer):
        rows, measures = played(step, places, writer)
        if not file.is_file():
            file.write_text(json.dumps(_typical(rows, instances, case.chunks)))
        return rows, measures

    order = list(range(case.instances)) * case.grpo.steps
    return trainer.EpisodeTrainer(settings, lm, collect, order)


TEACHER = world.Habits(keep=0.8, chat=0.2, update=0.8)
"""Rollouts differ, so that advantages do."""


def _typical(rows: list[Any], instances: list[Any], n_chunks: int) -> list[list[int]]:
    """Per chunk index and instance, the prompt of the rollout nearest to the mean length."""
    found = []
    for step in range(n_chunks):
        for instance in instances:
            prompts = [r.prompt_ids for r in rows if r.step == step and instance.id in r.episode]
            mean = sum(map(len, prompts)) / len(prompts)
            found.append(list(min(prompts, key=lambda ids: abs(len(ids) - mean))))
    return found


def alone(case: Case, lm: CausalLM, work: Path) -> Any:
    """TRL's trainer without us, on the prompts in `prompts.json`, a generation per chunk index."""
    from datasets import Dataset
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    from memalpha_kit.method.episode import Environment
    from memalpha_kit.method.readers import reader
    from memalpha_kit.training.backends import trl_arguments
    from memalpha_kit.training.batch import token_logprobs
    from memalpha_kit.training.optimizer import build_optimizer
    from memalpha_kit.training.rollouts import Run

    class Plain(GRPOTrainer):
        if case.device == "cpu":

            def _get_per_token_logps_and_entropies(self, model, ids, mask, n, *_, **__):
                return *token_logprobs(model, ids, mask, n, self.temperature), None

    lm.model.train()
    stops = {"eos_token_id": lm.stop_ids[0], "pad_token_id": lm.tokenizer.pad_token_id}
    lm.model.generation_config.update(**stops)
    config = replace(case.grpo, slices=case.slices)
    on_cpu = case.device == "cpu"
    protocol = replace(case.protocol, max_reply_tokens=case.reply_tokens)
    environment = Environment(case.memory, protocol, reader(miniature.READER))
    settings = Run(work / "policy", (), environment, config, work / "alone", model=case.model)
    arguments = trl_arguments(settings, on_cpu)
    arguments.gradient_accumulation_steps = case.slices * case.chunks
    prompts = json.loads((work / "prompts.json").read_text())
    texts = [{"prompt": lm.tokenizer.decode(ids)} for ids in prompts] * config.steps
    optimizer = build_optimizer(lm.model, config)
    trainer = Plain(
        model=lm.model,
        reward_funcs=[_length],
        args=arguments,
        train_dataset=Dataset.from_list(texts),
        processing_class=lm.tokenizer,
        optimizers=(optimizer, LambdaLR(optimizer, lambda _: 1.0)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _length(completions: list[str], **_: Any) -> list[float]:
    """A reward that costs nothing: the length of the text."""
    return [float(len(text)) for text in completions]


def _hold_length(trainer: Any, n: int) -> None:
    """Every reply gets exactly `n` tokens, whatever the noise says."""
    if trainer.use_vllm:
        trainer.vllm_generation.generation_kwargs |= {"min_tokens": n, "ignore_eos": True}
    else:
        trainer.generation_config.min_new_tokens = n


def _mfu(case: Case, found: dict[str, float]) -> float | None:
    """Share of the card's dense bf16 peak that forward and backward reach.

    Counted are two operations per weight and token, the attention's products, and the output layer
    on reply tokens only. Backward costs twice the forward, half of it without a gradient for the
    weights (LoRA). What checkpointing computes again does not count. None for an unknown card.
    """
    import torch

    name = torch.cuda.get_device_name().lower()
    cards = {key.partition("-")[0]: card for key, card in shapes.CARDS.items()}
    card = next((card for key, card in cards.items() if key in name.replace(" ", "")), None)
    if card is None:
        return None
    shape = shapes.SHAPES[REAL[case.shape]]
    tokens, replies = found["prompt_tokens"] + found["reply_tokens"], found["reply_tokens"]
    length = tokens / found["rows"]
    forward = 2 * shape.block * tokens + 2 * shape.vocabulary * shape.hidden * replies
    forward += 2 * shape.layers * shape.heads * shape.head_dim * length * tokens  # causal
    work = forward * (2 if case.lora_rank else 3)
    return work / found["train_s"] / (card.tflops * 1e12)


# --- All runs -------------------------------------------------------------------------------------


def row(case: Case, run: str, repeat: int, found: dict[str, Any]) -> dict[str, Any]:
    """A line of the table; `overhead` comes later."""
    tokens = found["prompt_tokens"] + found["reply_tokens"]
    seconds = {key: round(value, 5) for key, value in found.items() if key.endswith("_s")}
    return {
        **{key: value for key, value in asdict(case).items() if key in COLUMNS},
        **seconds,
        "run": run,
        "repeat": repeat,
        "steps": found["steps"],
        "rows": round(found["rows"]),
        "prompt_tokens": round(found["prompt_tokens"]),
        "reply_tokens": round(found["reply_tokens"]),
        "generated_tokens_per_s": round(found["reply_tokens"] / found["generate_s"], 1),
        "trained_tokens_per_s": round(tokens / found["train_s"], 1),
        "mfu": None if found["mfu"] is None else round(found["mfu"], 4),
        "peak_mb": round(found["peak_mb"]),
        "overhead": None,
    }


def save(out: Path, rows: list[dict[str, Any]]) -> None:
    """The table, whole; each `kit` is compared with the `alone` that follows it."""

    def per_token(line: dict[str, Any]) -> float:
        return line["step_s"] / (line["prompt_tokens"] + line["reply_tokens"])

    for ours, theirs in zip(rows, rows[1:], strict=False):
        if (ours["run"], theirs["run"]) == ("kit", "alone"):
            ours["overhead"] = round(per_token(ours) / per_token(theirs) - 1, 4)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def cases(args: argparse.Namespace, backend: str) -> list[Case]:
    """Those of a backend, the smallest first."""
    names = ("lora_rank", "device", "steps", "instances", "rollouts")
    numbers = {name: getattr(args, name) for name in (*names, "chunks", "slices", "reply_tokens")}
    kind = "transformers" if backend == "trl" else backend
    pairs = [(shape, vllm) for shape in args.shape for vllm in args.vllm]
    return [Case(shape=s, backend=kind, vllm=v, **numbers) for s, v in pairs]


def measured(todo: list[Case], args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[str]:
    """Appends a row per run to `rows`, saving each, and returns the names of what was left out."""
    from importlib.util import find_spec

    from memalpha_kit.training.backends import start

    watch, left_out, now = Watch(), [], time.time()
    ends = now + (STARTED + 60 * args.minutes - now) / len(args.backends)
    for case in [case for case in todo if case.vllm != "none" and not find_spec("vllm")]:
        left_out.append(f"{case.name} (vLLM is not installed)")
        todo.remove(case)
    if todo and not todo[0].toy:
        start(todo[0].model)
        say(f"{todo[0].backend}: imported")
    pair = ("kit", "alone")
    runs = [(case, n, run) for case in todo for n in range(args.repeats) for run in pair]
    with tempfile.TemporaryDirectory() as folder:
        for place, (case, repeat, run) in enumerate(runs):
            left, name = ends - time.time(), f"{case.name} {run}"
            weights = [WEIGHT.get(later.shape, 1.0) for later, *_ in runs[place:]]
            seconds, work = left * weights[0] / sum(weights), Path(folder) / case.name
            if left <= 0 or (run == "alone" and not (work / "prompts.json").is_file()):
                left_out.append(name)
                continue
            watch.begin(name, seconds)
            try:
                if not (work / "policy").is_dir():
                    save_policy(case, work / "policy")
                found = measure(case, run, work, seconds)
            except Exception as error:  # one case must not cost the others: it is named
                say(f"{name}: {type(error).__name__}: {str(error)[:500]}")
                left_out.append(name)
                continue
            rows.append(row(case, run, repeat, found))
            save(args.out, rows)
            say(json.dumps(rows[-1]))
    watch.until = float("inf")
    return left_out


def not_measured(args: argparse.Namespace) -> list[str]:
    """What this call leaves open by what it was asked, in words."""
    missing = [f"shape {shape}" for shape in REAL if shape not in args.shape]
    missing += [f"backend {b}" for b in ("trl", "unsloth") if b not in args.backends]
    missing += ["generation by vLLM"] if args.vllm == ["none"] else []
    if args.device == "cpu":
        missing += ["speed, memory and MFU of a card (this was a CPU)"]
    return missing


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    both = ["trl", "unsloth"]
    parser.add_argument("--shape", nargs="+", choices=[*TOYS, *REAL], default=["0.6b", "4b"])
    parser.add_argument("--backends", nargs="+", choices=both, default=both, help="in this order")
    parser.add_argument("--vllm", nargs="+", choices=["none", "colocate"], default=["none"])
    parser.add_argument("--minutes", type=float, default=8.0, help="of everything (default: 8)")
    parser.add_argument("--lora-rank", type=int, default=16, help="0: all weights (default: 16)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--steps", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--slices", type=int, default=4, help="forward passes per chunk index")
    parser.add_argument("--reply-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=OUT, help="CSV file; its card lies beside it")
    args = parser.parse_args()
    if args.rollouts % args.slices:
        parser.error(f"--slices: expected a divisor of --rollouts ({args.rollouts})")
    if args.device == "cpu" and (args.backends != ["trl"] or args.vllm != ["none"]):
        parser.error("--device cpu: only --backends trl --vllm none runs without a card")
    return args


def main() -> None:
    """Measures, prints, and writes the table and its card."""
    import torch

    args = options()
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit("no CUDA card here, so nothing was measured (a look: --shape toy --device cpu)")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if args.device == "cpu":
        torch.set_num_threads(1)
    rows, left_out = BEFORE.get("rows", []), BEFORE.get("left_out", [])
    done = [*BEFORE.get("backends", []), args.backends[0]]
    left_out += measured(cases(args, args.backends[0]), args, rows)
    if len(args.backends) > 1:  # a library that was imported cannot be taken back
        state = {"started": STARTED, "rows": rows, "left_out": left_out, "backends": done}
        os.environ["GPU_TRAINING"] = json.dumps(state)
        place = sys.argv.index("--backends") if "--backends" in sys.argv else len(sys.argv)
        kept = sys.argv[:place] + sys.argv[place + 1 + len(args.backends) :]
        os.execv(sys.executable, [sys.executable, *kept, "--backends", *args.backends[1:]])
    args.backends = done
    case = cases(args, "trl")[-1]
    profile = Profile("gpu_training", grpo=case.grpo, model=case.model, world=case.world)
    extra = {
        "card": torch.cuda.get_device_name() if args.device != "cpu" else None,
        "not_measured": not_measured(args) + left_out,
        "arguments": sys.argv[1:],
    }
    with tempfile.TemporaryDirectory() as folder:
        saved = files.run_card(Path(folder), profile, STARTED, extra=extra)
    files.save_json(args.out.with_suffix(".json"), saved)
    print(f"{args.out}\nnot measured: {'; '.join(extra['not_measured']) or 'nothing is missing'}")


if __name__ == "__main__":
    main()
