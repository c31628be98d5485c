"""What a run will cost before it starts: tokens, calls, memory, hours, disk, money. Runs nothing.

The one law: every number follows from the profile and from assumptions that are printed beside it.
What cannot fit is refused with the sum that shows it.

For the miniature, times are those of a recorded run (`plan_reference.json`), scaled by the work of
each phase and, with a probe, by how fast this machine does a fixed piece of the same work.

For real models they are arithmetic on the model's shape: generation is bound by reading weights and
cache from the card's memory, prefill and training by its arithmetic, each at an assumed share of
the peak. The data's sizes are the paper's (table 7, the balanced set: means over 562 instances).
The published run took 32 H100 for three days (paper, section 4); `table` shows what we expect of
the same settings, which is an estimate of ours and not a reproduction.

>>> round(SHAPES["Qwen/Qwen3-4B"].parameters / 1e9, 2)
4.02
"""

from __future__ import annotations

import csv
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit import files as store
from memalpha_kit.errors import InputError, closest
from memalpha_kit.settings import PolicyConfig, Profile

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = Path(__file__).parent / "plan_reference.json"
STATISTICS = Path(__file__).parents[1] / "paper_tables" / "statistics.csv"
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model, from its public configuration."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    tied: bool
    vocabulary: int = 151_936

    @property
    def block(self) -> int:
        """Parameters of all layers, without embeddings."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All parameters but the norms, which do not count here."""
        return self.block + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of this rank on all seven matrices of every layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sums = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        return self.layers * rank * (sums + 3 * (self.hidden + self.feed_forward))

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values per token, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


SHAPES = {
    "Qwen/Qwen3-0.6B": Shape(28, 1024, 16, 8, 128, 3072, True),
    "Qwen/Qwen3-1.7B": Shape(28, 2048, 16, 8, 128, 6144, True),
    "Qwen/Qwen3-4B": Shape(36, 2560, 32, 8, 128, 9728, True),
    "Qwen/Qwen3-8B": Shape(36, 4096, 32, 8, 128, 12288, False),
    "Qwen/Qwen3-14B": Shape(40, 5120, 40, 8, 128, 17408, False),
    "Qwen/Qwen3-32B": Shape(64, 5120, 64, 8, 128, 25600, False),
}
READER = "Qwen/Qwen3-32B"


@dataclass(frozen=True)
class Card:
    """A graphics card: memory, dense bf16 arithmetic, memory bandwidth (makers' data sheets)."""

    memory_gb: float
    tflops: float
    bandwidth_gbs: float


CARDS = {
    "rtx4090": Card(24, 165, 1008),
    "l40s": Card(48, 362, 864),
    "a100-40": Card(40, 312, 1555),
    "a100-80": Card(80, 312, 2039),
    "h100": Card(80, 989, 3350),
    "h200": Card(141, 989, 4800),
}


@dataclass(frozen=True)
class Assumptions:
    """What a plan of a real model takes for granted; every field is printed with the plan."""

    card: str = "h100"
    cards: int = 1  # that train; with vllm `colocate` they also generate
    vllm_cards: int = 0  # that only generate (vllm `server`)
    reader_cards: int = 0  # that serve the 32B reader (reader `endpoint`); 0: somebody else's
    usd_per_card_hour: float | None = None
    usd_per_million_in: float | None = None  # reader `endpoint`: price of prompt tokens
    usd_per_million_out: float | None = None  # reader `endpoint`: price of reply tokens
    reply_tokens: int = 350  # of the policy per chunk
    instruction_tokens: int = 900  # of the prompt around chunk and memory, tools included
    shown_tokens: int = 700  # of memory in the policy's prompt: core and the newest entries
    read_tokens: int = 2200  # of a reader's prompt: up to 40 entries, core, question
    answer_tokens: int = 60  # of the reader
    calls: float = 3.0  # of the policy per chunk, each judged once
    judge_tokens: int = 350  # of a judge's prompt
    verdict_tokens: int = 60  # of the judge
    training_share: float = 0.30  # of the card's peak that training reaches (MFU)
    prefill_share: float = 0.40  # of the peak, while prompts are read
    bandwidth_share: float = 0.50  # of the memory bandwidth, while tokens are generated


@dataclass(frozen=True)
class Line:
    """One number of a plan: what, how much, in which unit, and how it came about."""

    part: str
    what: str
    value: float
    unit: str
    how: str


@dataclass(frozen=True)
class Plan:
    """All numbers of a run; `problems` says why it cannot fit (empty: it can)."""

    profile: str
    lines: tuple[Line, ...]
    problems: tuple[str, ...] = ()

    def value(self, what: str) -> float:
        """The number of that name. Raises KeyError if the plan has none."""
        return next(line.value for line in self.lines if line.what == what)

    def table(self) -> pd.DataFrame:
        """The plan as a table: part, what, value, unit, how."""
        import pandas as pd

        return pd.DataFrame([vars(line) for line in self.lines])


def plan(
    profile: Profile, assumptions: Assumptions = Assumptions(), speed: float | None = None
) -> Plan:
    """What the profile will cost. `speed` is `probe()`'s, for the miniature only.

    Raises InputError for a model or a card that is not in the tables.
    """
    if not profile.model.name:
        return _miniature(profile, speed)
    return _real(profile, assumptions)


def refuse(made: Plan) -> None:
    """Raises InputError with all problems of the plan, if it has any."""
    if made.problems:
        raise InputError(f"profile {made.profile} does not fit: {'; '.join(made.problems)}")


# --- The miniature --------------------------------------------------------------------------------


def _miniature(profile: Profile, speed: float | None) -> Plan:
    reference = store.load_json(REFERENCE)
    warm, grpo, evaluation = profile.warm_start, profile.grpo, profile.evaluation
    world, pace = profile.world, 1.0 if speed is None else speed / reference["probe_s"]
    episodes = grpo.steps * grpo.instances * grpo.rollouts
    written = episodes * world.chunks
    lengths = zip(evaluation.lengths, evaluation.instances, strict=True)
    evaluated = 2 * world.chunks * sum(length * n for length, n in lengths)
    warm_rows = (warm.copy_steps + warm.transcribe_steps + warm.steps) * warm.batch
    size = miniature_parameters(profile.policy) / reference["parameters"]
    work = {
        "warm start": (warm_rows, "warm_start"),
        "GRPO": (written, "grpo"),
        "evaluation": (evaluated, "evaluation"),
    }
    seconds = {
        name: reference[key]["seconds"] * amount / reference[key]["rows"] * size * pace
        for name, (amount, key) in work.items()
    }
    other = reference["other_s"] * pace
    how = "the recorded run, scaled by rows and parameters"
    how += "" if speed is None else f", times {pace:.2f} (probe)"
    asked = evaluated * world.max_questions // world.chunks
    lines = [
        Line("work", "warm-start rows", warm_rows, "rows", "steps x batch"),
        Line("work", "episodes", episodes, "episodes", "steps x instances x rollouts"),
        Line("work", "generations", written, "replies", "episodes x chunks"),
        Line("work", "prompt tokens", written * reference["prompt_tokens"], "tokens",
             "generations x recorded mean"),
        Line("work", "reply tokens", written * reference["reply_tokens"], "tokens",
             "generations x recorded mean"),
        Line("work", "reader calls", episodes * world.max_questions + asked, "answers",
             "by rule: no model, no cost; at most"),
        Line("work", "judge calls", written * reference["calls"], "verdicts",
             "by rule: no model, no cost"),
        *(Line("time", name, value, "s", how) for name, value in seconds.items()),
        Line("time", "other notebooks", other, "s", "data, kernels, figures: as recorded"),
        Line("time", "total", sum(seconds.values()) + other, "s", "memalpha run, after installing"),
        Line("memory", "RAM", reference["ram_gb"], "GB", "at least: peak of the probe's process"),
        Line("memory", "GPU", 0.0, "GB", "none is used"),
        Line("disk", "runs, reports, data", reference["disk_gb"] * max(size, 1.0), "GB",
             "as recorded"),
        Line("cost", "money", 0.0, "USD", "no service is asked"),
    ]  # fmt: skip
    return Plan(profile.name, tuple(lines))


def miniature_parameters(policy: PolicyConfig, vocabulary: int = 1024) -> int:
    """Parameters of the miniature's policy, for a vocabulary of about this size."""
    shape = Shape(policy.layers, policy.hidden, policy.heads, policy.kv_heads, policy.head_dim,
                  policy.feed_forward, policy.tie, vocabulary)  # fmt: skip
    return shape.parameters


def probe(profile: Profile) -> float:
    """Seconds that this machine needs for a fixed piece of the laptop's warm start, about 10.

    `profile` must be the laptop's; the miniature's weights do not matter for the time.
    """
    import tempfile

    from memalpha_kit.lab.miniature import warm_start

    short = replace(
        profile.warm_start, copy_steps=PROBE_STEPS, transcribe_steps=1, steps=PROBE_STEPS, rows=256
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        warm_start(replace(profile, warm_start=short, seed=0), Path(folder))
        return time.perf_counter() - started


PROBE_STEPS = 30


def record_reference(profile: Profile, root: Path) -> Path:
    """Writes `plan_reference.json` from the last whole run of `profile` in `root`, and a probe.

    Raises InputError if notebooks 01 to 05 have not run under this profile.
    """
    import pandas as pd

    cards = {}
    for folder in sorted((root / "reports").glob(f"[0-9]*/{profile.name}")):
        card = folder / "run.json"
        if card.is_file():
            cards[folder.parent.name[:2]] = store.load_json(card)
    if not {"01", "02", "03", "04", "05"} <= set(cards):
        raise InputError(f"{root / 'reports'}: expected a whole run: memalpha run first")
    runs = root / "runs" / profile.name
    steps = pd.read_csv(runs / "grpo" / "metrics.csv")
    ours = {line.what: line.value for line in _miniature(profile, None).lines}
    lengths = zip(profile.evaluation.lengths, profile.evaluation.instances, strict=True)
    evaluated = 2 * profile.world.chunks * sum(length * n for length, n in lengths)
    third = cards["03"]
    rest = sum(card["duration_s"] for number, card in cards.items() if number not in ("03", "04"))
    rest += third["duration_s"] - third["warm_start_s"] - third["grpo_s"] + KERNEL_S * len(cards)
    folders = [root / name for name in ("runs", "reports", "data")]
    probed = round(probe(profile), 2)
    reference: dict[str, Any] = {
        "profile": profile.name,
        "parameters": miniature_parameters(profile.policy),
        "warm_start": {"rows": ours["warm-start rows"], "seconds": third["warm_start_s"]},
        "grpo": {"rows": ours["generations"], "seconds": third["grpo_s"]},
        "evaluation": {"rows": evaluated, "seconds": cards["04"]["duration_s"]},
        "other_s": round(rest, 1),
        "prompt_tokens": round(float(steps.prompt_tokens.mean()), 1),
        "reply_tokens": round(float(steps.reply_tokens.mean()), 1),
        "calls": round(float(steps.calls.mean()), 2),
        "ram_gb": round(peak_gb(), 2),
        "disk_gb": round(sum(_size(folder) for folder in folders) / GB, 3),
        "probe_s": probed,
    }
    store.save_json(REFERENCE, reference)
    return REFERENCE


def peak_gb() -> float:
    """Largest memory that this process has held, in GB."""
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB


KERNEL_S = 3.5  # about: to start and stop a notebook's kernel and write its report


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- Real models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Means of the training data: chunks and questions per instance, tokens per chunk.

    `longest` is the chunks per instance of the source with the longest ones.
    """

    chunks: float
    questions: float
    tokens: float
    longest: float


def paper_data() -> Data:
    """The balanced training set of table 7, weighted by instances."""
    with STATISTICS.open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(line for line in file if not line.startswith("#"))
                if r["table"] == "7" and r["split"] == "train"]  # fmt: skip
    n = [float(row["instances"]) for row in rows]
    chunks = [float(row["chunks_per_instance"]) for row in rows]
    asked = [float(row["questions_per_instance"]) for row in rows]
    tokens = [float(row["tokens_per_chunk"]) for row in rows]
    total = sum(a * c for a, c in zip(n, chunks, strict=True))
    return Data(
        total / sum(n),
        sum(a * q for a, q in zip(n, asked, strict=True)) / sum(n),
        sum(a * c * t for a, c, t in zip(n, chunks, tokens, strict=True)) / total,
        max(chunks),
    )


def _known(name: str, table: dict[str, Any], what: str) -> Any:
    if name not in table:
        raise InputError(f"{what} {name!r} is not in the tables of the plan{closest(name, table)}")
    return table[name]


def _real(profile: Profile, given: Assumptions) -> Plan:
    shape = _known(profile.model.name, SHAPES, "model.name")
    card = _known(given.card, CARDS, "card")
    work = _work(profile, given)
    memory, problems = _memory(profile, given, shape, card, work)
    hours = _hours(profile, given, shape, card, work)
    cards = given.cards + given.vllm_cards + given.reader_cards
    total = hours["total"]
    lines = [
        *(Line("work", name, value, unit, how) for name, (value, unit, how) in work.items()),
        *(Line("memory", name, value, "GB", how) for name, (value, how) in memory.items()),
        *(Line("time", name, value, "h", HOW[name]) for name, value in hours.items()),
        Line("time", "GPU hours", total * cards, "h", f"total x {cards} cards ({given.card})"),
        Line("disk", "checkpoints", _disk(profile, shape), "GB",
             "kept checkpoints, the best one and the export"),
        *_money(profile, given, work, total * cards),
    ]  # fmt: skip
    lines += [Line("assumed", k, v if isinstance(v, (int, float)) else float("nan"), "", str(v))
              for k, v in vars(given).items()]  # fmt: skip
    return Plan(profile.name, tuple(lines), tuple(problems))


def _rows(profile: Profile, cards: int) -> int:
    """Rows that every card trains on in a step: as many as the fullest one, in whole slices.

    What a card lacks are fill rows, which cost nearly as much. With several cards the fullest is
    one that got an instance of the longest kind.
    """
    grpo, data = profile.grpo, paper_data()
    chunks = grpo.instances / cards * data.chunks
    if cards > 1:
        chunks = max(0.0, chunks - data.chunks) + data.longest
    return grpo.slices * math.ceil(grpo.rollouts * chunks / grpo.slices)


def _work(profile: Profile, given: Assumptions) -> dict[str, tuple[float, str, str]]:
    """Counts of the whole run, validation included."""
    grpo, data = profile.grpo, paper_data()
    episodes = grpo.steps * grpo.instances * grpo.rollouts
    looks = -(-grpo.steps // grpo.validate_every) if grpo.validate_every else 0
    validated = looks * grpo.validate_instances
    written = (episodes + validated) * data.chunks
    trained = grpo.steps * given.cards * _rows(profile, given.cards)
    prompt = min(
        given.instruction_tokens + given.shown_tokens + data.tokens,
        profile.protocol.max_prompt_tokens,
    )
    reply = min(given.reply_tokens, profile.protocol.max_reply_tokens)
    reads = (episodes + validated) * data.questions
    judged = written * given.calls if profile.reward.content else 0.0
    return {
        "episodes": (episodes, "episodes", "steps x instances x rollouts"),
        "validation episodes": (validated, "episodes", "looks x instances"),
        "generations": (written, "replies", f"episodes x {data.chunks:.1f} chunks (table 7)"),
        "prompt tokens": (written * prompt, "tokens", f"{prompt:.0f} per generation"),
        "reply tokens": (written * reply, "tokens", f"{reply} per generation"),
        "training tokens": (
            trained * (prompt + reply),
            "tokens",
            "prompt and reply of every row, fill rows too",
        ),
        "reader calls": (reads, "answers", f"episodes x {data.questions:.1f} questions (table 7)"),
        "reader tokens in": (reads * given.read_tokens, "tokens", "assumed per answer"),
        "reader tokens out": (reads * given.answer_tokens, "tokens", "assumed per answer"),
        "judge calls": (judged, "verdicts", "generations x calls"),
        "judge tokens in": (judged * given.judge_tokens, "tokens", "assumed per verdict"),
        "judge tokens out": (judged * given.verdict_tokens, "tokens", "assumed per verdict"),
    }


def _memory(
    profile: Profile, given: Assumptions, shape: Shape, card: Card, work: dict[str, Any]
) -> tuple[dict[str, tuple[float, str]], list[str]]:
    """GB per card by part, and what does not fit."""
    model, grpo = profile.model, profile.grpo
    four_bit = shape.block * 0.56 + (shape.parameters - shape.block) * 2
    weights = (four_bit if model.load_in_4bit else 2 * shape.parameters) / GB
    lora = shape.adapter(model.lora_rank) if model.lora_rank else 0
    colocated = model.vllm == "colocate"
    shares = model.backend == "unsloth" and colocated  # trainer and engine hold one copy
    rows = _rows(profile, given.cards) // grpo.slices
    if model.backend == "unsloth":
        rows = 1  # it splits a forward pass by the memory that is free
    longest = min(
        model.max_seq_length, profile.protocol.max_prompt_tokens + profile.protocol.max_reply_tokens
    )
    tokens = rows * longest
    layer = shape.hidden * 8 + shape.feed_forward * 4 + 2 * shape.heads * shape.head_dim
    activations = tokens * 2 * (shape.layers * shape.hidden + layer) / GB
    logits = min(tokens, LOGIT_TOKENS) * shape.vocabulary * 4 * 3 / GB
    if lora:
        states, how = 16 * lora / GB, f"adapter of {lora / 1e6:.0f}M: weights, gradients, AdamW"
    else:
        states, how = 16 * shape.parameters / given.cards / GB, "fp32 weights, gradients, AdamW"
        weights /= given.cards
    parts = {
        "weights": (0.0 if shares else weights, "one copy, in the engine" if shares else "bf16"),
        "training states": (states, how + ("" if lora else f", over {given.cards} cards")),
        "activations": (activations, f"{rows} x {longest} tokens a forward pass, checkpointed"),
        "logits": (logits, "in pieces, with gradients"),
        "CUDA and fragments": (3.0, "assumed"),
    }
    problems = []
    if not lora and grpo.kl:
        parts["reference"] = (weights, "bf16, for the KL term")
    if colocated:
        engine = model.gpu_memory_utilization * card.memory_gb
        cache = engine - weights - 1.5
        fits = cache * GB / shape.cache_bytes
        parts["engine"] = (engine, f"share of the card; holds {max(0, fits):,.0f} tokens of cache")
        if fits < model.max_seq_length:
            problems.append(
                f"engine: {engine:.0f} GB leave {cache:.1f} GB of cache beside {weights:.1f} GB of "
                f"weights, one sequence of {model.max_seq_length} tokens needs "
                f"{model.max_seq_length * shape.cache_bytes / GB:.1f} GB "
                "(try model.load_in_4bit=true or a larger model.gpu_memory_utilization)"
            )
    total = sum(value for value, _ in parts.values())
    parts["total per card"] = (total, f"the card has {card.memory_gb:.0f} GB")
    if total > card.memory_gb:
        sums = ", ".join(f"{name} {v:.1f}" for name, (v, _) in parts.items() if name[:5] != "total")
        problems.append(
            f"{total:.1f} GB per card needed, {given.card} has {card.memory_gb:.0f} ({sums}); try "
            "more cards, model.lora_rank, model.load_in_4bit=true or more grpo.slices"
        )
    return parts, problems


LOGIT_TOKENS = 2048  # positions whose logits are held at once

HOW = {
    "generation": "weights and cache read per token; prompts at the prefill share",
    "reading and judging": "the base model on the same cards, or the 32B reader on its own",
    "training": "8 x parameters x tokens (LoRA: 6), 2 more each for old and reference",
    "total": "one after the other; overlap would save part of it",
}


def _hours(
    profile: Profile, given: Assumptions, shape: Shape, card: Card, work: dict[str, Any]
) -> dict[str, float]:
    n = {name: value for name, (value, *_) in work.items()}
    writers = given.vllm_cards or given.cards
    batch = max(1.0, profile.grpo.instances * profile.grpo.rollouts / writers)
    seconds = {
        "generation": _generate_s(
            shape, card, given, n["prompt tokens"], n["reply tokens"], batch, writers
        )
    }
    tokens_in = n["reader tokens in"] + n["judge tokens in"]
    tokens_out = n["reader tokens out"] + n["judge tokens out"]
    if profile.model.reader == "base":
        reading = _generate_s(shape, card, given, tokens_in, tokens_out, 64, given.cards)
    elif profile.model.reader == "endpoint" and given.reader_cards:
        big = SHAPES[READER]
        reading = _generate_s(big, card, given, tokens_in, tokens_out, 64, given.reader_cards)
    else:
        reading = 0.0
    seconds["reading and judging"] = reading
    passes = (6 if profile.model.lora_rank else 8) + 2 * (
        bool(profile.grpo.kl) + (profile.grpo.updates * profile.grpo.iterations > 1)
    )
    arithmetic = card.tflops * 1e12 * given.training_share * given.cards
    seconds["training"] = passes * shape.parameters * n["training tokens"] / arithmetic
    hours = {name: value / 3600 for name, value in seconds.items()}
    return hours | {"total": sum(hours.values())}


def _generate_s(
    shape: Shape, card: Card, given: Assumptions, tokens_in: float, tokens_out: float,
    batch: float, cards: int,
) -> float:  # fmt: skip
    """Seconds to read and write these tokens, `batch` sequences at a time on each card."""
    prefill = 2 * shape.parameters * tokens_in / (card.tflops * 1e12 * given.prefill_share)
    held = batch * shape.cache_bytes * 2500  # cache of sequences in the middle of their reply
    per_token = (2 * shape.parameters + held) / batch
    decode = tokens_out * per_token / (card.bandwidth_gbs * GB * given.bandwidth_share)
    return (prefill + decode) / cards


def _disk(profile: Profile, shape: Shape) -> float:
    """GB: kept checkpoints with optimiser states, the best policy and the exported one."""
    trained = shape.adapter(profile.model.lora_rank) if profile.model.lora_rank else None
    one = 12 * (trained or shape.parameters) / GB
    return profile.grpo.keep_checkpoints * one + 2 * 2 * (trained or shape.parameters) / GB


def _money(
    profile: Profile, given: Assumptions, work: dict[str, Any], card_hours: float
) -> list[Line]:
    lines = []
    if given.usd_per_card_hour is not None:
        price = given.usd_per_card_hour
        lines.append(Line("cost", "cards", card_hours * price, "USD", f"{price} a card hour"))
    prices = (given.usd_per_million_in, given.usd_per_million_out)
    if profile.model.reader == "endpoint" and None not in prices:
        ways = ("in", "out")
        counts = [work[f"reader tokens {w}"][0] + work[f"judge tokens {w}"][0] for w in ways]
        usd = sum(n / 1e6 * price for n, price in zip(counts, prices, strict=True))
        lines.append(Line("cost", "reader and judge", usd, "USD", f"{prices} per million tokens"))
    return lines
