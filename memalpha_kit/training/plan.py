"""What a run of a real model will cost before it starts. Runs nothing.

The one law: every number follows from the profile and from assumptions that are printed beside it.
What cannot fit is refused with the sum that shows it.

Everything is arithmetic on the model's shape: generation is bound by reading weights and cache from
the card's memory, prefill and training by its arithmetic, each at an assumed share of the peak. The
data's sizes are the paper's (table 7, the balanced set: means over 562 instances). The published
run took 32 H100 for three days (paper, section 4); a plan shows what we expect of the same
settings, which is an estimate of ours and not a reproduction. The miniature's is in `lab/plan.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from memalpha_kit.errors import InputError, closest
from memalpha_kit.sections import about
from memalpha_kit.settings import Profile
from memalpha_kit.training.shapes import CARDS, READER, SHAPES, Card, Shape, known_card, known_shape

if TYPE_CHECKING:
    import pandas as pd

STATISTICS = Path(__file__).parents[1] / "paper_tables" / "statistics.csv"
GB = 1e9


@dataclass(frozen=True)
class Assumptions:
    """What a plan of a real model takes for granted; every field is printed with the plan."""

    card: str = about("h100", "name of the card")
    cards: int = about(1, "that train; with vllm `colocate` they also generate")
    vllm_cards: int = about(0, "that only generate (vllm `server`)")
    reader_cards: int = about(
        0, "that serve the 32B reader (reader `endpoint`); 0: somebody else's"
    )
    usd_per_card_hour: float | None = about(None, "price of a card")
    usd_per_million_in: float | None = about(None, "reader `endpoint`: price of prompt tokens")
    usd_per_million_out: float | None = about(None, "reader `endpoint`: price of reply tokens")
    reply_tokens: int = about(350, "of the policy per chunk")
    instruction_tokens: int = about(900, "of the prompt around chunk and memory, tools included")
    shown_tokens: int = about(700, "of memory in the policy's prompt: core and the newest entries")
    read_tokens: int = about(2200, "of a reader's prompt: up to 40 entries, core, question")
    answer_tokens: int = about(60, "of the reader")
    calls: float = about(3.0, "of the policy per chunk, each judged once")
    judge_tokens: int = about(350, "of a judge's prompt")
    verdict_tokens: int = about(60, "of the judge")
    training_share: float = about(0.30, "of the card's peak that training reaches (MFU)")
    prefill_share: float = about(0.40, "of the peak, while prompts are read")
    bandwidth_share: float = about(0.50, "of the memory bandwidth, while tokens are generated")


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
        return {line.what: line.value for line in reversed(self.lines)}[what]  # the first one

    def table(self) -> pd.DataFrame:
        """The plan as a table: part, what, value, unit, how."""
        import pandas as pd

        return pd.DataFrame([vars(line) for line in self.lines])

    def page(self) -> str:
        """One line per number, for a terminal."""
        lines = []
        for line in self.lines:
            digits = 2 if line.value < 100 else 0
            value = "" if line.value != line.value else f"{line.value:,.{digits}f}"
            lines.append(f"{line.part:8} {line.what:22} {value:>18} {line.unit:9} {line.how}")
        return "\n".join(lines)

    def refuse(self) -> None:
        """Raises InputError with all problems of the plan, if it has any."""
        if self.problems:
            raise InputError(f"profile {self.profile} does not fit: {'; '.join(self.problems)}")

    def __str__(self) -> str:
        """One line: `plan: 61 GB per card, 8.2 h`."""
        return f"plan: {self.value('total per card'):.0f} GB per card, {self.value('total'):.1f} h"


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
    import pandas as pd

    rows = pd.read_csv(STATISTICS, comment="#").query("table == 7 and split == 'train'")
    instances, chunks = rows.instances.sum(), rows.instances * rows.chunks_per_instance
    return Data(
        chunks.sum() / instances,
        (rows.instances * rows.questions_per_instance).sum() / instances,
        (chunks * rows.tokens_per_chunk).sum() / chunks.sum(),
        rows.chunks_per_instance.max(),
    )


def plan(
    profile: Profile,
    assumptions: Assumptions = Assumptions(),  # noqa: B008 (frozen)
) -> Plan:
    """What the profile will cost. Raises InputError for a model or a card that is in no table."""
    name, card = profile.model.name, assumptions.card
    shape = known_shape(name)
    for what, asked, table, found in (
        ("model.name", name, SHAPES, shape),
        ("card", card, CARDS, CARDS.get(card)),
    ):
        if found is None:
            near = closest(asked, table)
            raise InputError(f"{what} {asked!r} is not in the tables of the plan{near}")
    return _Estimate(profile, assumptions, shape, CARDS[card], paper_data()).plan()


def fitting(profile: Profile, cards: int, memory_gb: float, called: str = "") -> Plan | None:
    """The plan for cards with so much memory, `called` so by their maker; 0 GB is no card.

    None if card or model are in no table. Raises InputError, with the sum that shows it, for what
    cannot fit.
    """
    card = known_card(memory_gb, called)
    if card is None or known_shape(profile.model.name) is None:
        return None
    made = plan(profile, Assumptions(card=card, cards=cards))
    made.refuse()
    return made


@dataclass(frozen=True)
class _Estimate:
    """A plan in the making."""

    profile: Profile
    given: Assumptions
    shape: Shape
    card: Card
    data: Data

    def plan(self) -> Plan:
        given, work = self.given, list(self.work())
        counts = {line.what: line.value for line in work}
        memory, problems = self.memory()
        hours = self.hours(counts)
        cards = given.cards + given.vllm_cards + given.reader_cards
        card_hours, how = hours["total"] * cards, f"total x {cards} cards ({given.card})"
        lines = [
            *work,
            *(Line("memory", name, value, "GB", how) for name, (value, how) in memory.items()),
            *(Line("time", name, value, "h", HOW[name]) for name, value in hours.items()),
            Line("time", "GPU hours", card_hours, "h", how),
            self.disk(),
            *self.money(counts, card_hours),
        ]
        for field in fields(given):
            value = getattr(given, field.name)
            number = value if isinstance(value, (int, float)) else math.nan
            lines.append(Line("assumed", field.name, number, "", str(value)))
        return Plan(self.profile.name, tuple(lines), tuple(problems))

    def rows(self) -> int:
        """Rows that every card trains on in a step: as many as the fullest one, in whole slices.

        What a card lacks are fill rows, which cost nearly as much. With several cards the fullest
        is one that got an instance of the longest kind.
        """
        grpo, cards = self.profile.grpo, self.given.cards
        chunks = grpo.instances / cards * self.data.chunks
        if cards > 1:
            chunks = max(0.0, chunks - self.data.chunks) + self.data.longest
        return grpo.slices * math.ceil(grpo.rollouts * chunks / grpo.slices)

    def work(self) -> Iterator[Line]:
        """Counts of the whole run, validation included."""
        profile, given, data, grpo = self.profile, self.given, self.data, self.profile.grpo
        episodes = grpo.steps * grpo.instances * grpo.rollouts
        looks = -(-grpo.steps // grpo.validate_every) if grpo.validate_every else 0
        validated = looks * grpo.validate_instances
        written = (episodes + validated) * data.chunks
        reads = (episodes + validated) * data.questions
        judged = written * given.calls if profile.reward.content else 0.0
        shown = given.instruction_tokens + given.shown_tokens + data.tokens
        prompt = min(shown, profile.protocol.max_prompt_tokens)
        reply = min(given.reply_tokens, profile.protocol.max_reply_tokens)
        trained = grpo.steps * given.cards * self.rows() * (prompt + reply)
        by_chunk, by_question = (
            f"episodes x {mean:.1f} {what} (table 7)"
            for mean, what in ((data.chunks, "chunks"), (data.questions, "questions"))
        )
        answer, verdict = "assumed per answer", "assumed per verdict"
        for what, value, unit, how in (
            ("episodes", episodes, "episodes", "steps x instances x rollouts"),
            ("validation episodes", validated, "episodes", "looks x instances"),
            ("generations", written, "replies", by_chunk),
            ("prompt tokens", written * prompt, "tokens", f"{prompt:.0f} per generation"),
            ("reply tokens", written * reply, "tokens", f"{reply} per generation"),
            ("training tokens", trained, "tokens", "prompt and reply of every row, fill rows too"),
            ("reader calls", reads, "answers", by_question),
            ("reader tokens in", reads * given.read_tokens, "tokens", answer),
            ("reader tokens out", reads * given.answer_tokens, "tokens", answer),
            ("judge calls", judged, "verdicts", "generations x calls"),
            ("judge tokens in", judged * given.judge_tokens, "tokens", verdict),
            ("judge tokens out", judged * given.verdict_tokens, "tokens", verdict),
        ):
            yield Line("work", what, value, unit, how)

    def memory(self) -> tuple[dict[str, tuple[float, str]], list[str]]:
        """GB per card by part, and what does not fit."""
        model, grpo, shape, cards = (
            self.profile.model,
            self.profile.grpo,
            self.shape,
            self.given.cards,
        )
        four_bit = shape.block * 0.56 + (shape.parameters - shape.block) * 2
        weights = (four_bit if model.load_in_4bit else 2 * shape.parameters) / GB
        lora = shape.adapter(model.lora_rank) if model.lora_rank else 0
        shares = model.backend == "unsloth" and model.vllm == "colocate"  # one copy for both
        if lora:
            states, how = 16 * lora / GB, f"adapter of {lora / 1e6:.0f}M: weights, gradients, AdamW"
        else:
            states = 16 * shape.parameters / cards / GB
            how = f"fp32 weights, gradients, AdamW, over {cards} cards"
            weights /= cards
        activations, logits, passes = self.activations()
        parts = {
            "weights": (
                0.0 if shares else weights,
                "one copy, in the engine" if shares else "bf16",
            ),
            "training states": (states, how),
            "activations": (activations, f"{passes} tokens a forward pass, checkpointed"),
            "logits": (logits, "in pieces, with gradients"),
            "CUDA and fragments": (3.0, "assumed"),
        }
        if not lora and grpo.kl:
            parts["reference"] = (weights, "bf16, for the KL term")
        problems = []
        if model.vllm == "colocate":
            parts["engine"], problems = self.engine(weights)
        total = sum(value for value, _ in parts.values())
        if total > self.card.memory_gb:
            sums = ", ".join(f"{name} {value:.1f}" for name, (value, _) in parts.items())
            problems.append(
                f"{total:.1f} GB per card needed, {self.given.card} has {self.card.memory_gb:.0f} "
                f"({sums}); try more cards, model.lora_rank, model.load_in_4bit=true or more "
                "grpo.slices"
            )
        parts["total per card"] = (total, f"the card has {self.card.memory_gb:.0f} GB")
        return parts, problems

    def activations(self) -> tuple[float, float, str]:
        """GB of activations, GB of logits, and rows x tokens of a forward pass."""
        model, protocol, shape = self.profile.model, self.profile.protocol, self.shape
        rows = self.rows() // self.profile.grpo.slices
        if model.backend == "unsloth":
            rows = 1  # it splits a forward pass by the memory that is free
        longest = protocol.max_prompt_tokens + protocol.max_reply_tokens
        longest = min(model.max_seq_length, longest)
        tokens = rows * longest
        layer = shape.hidden * 8 + shape.feed_forward * 4 + 2 * shape.heads * shape.head_dim
        activations = tokens * 2 * (shape.layers * shape.hidden + layer) / GB
        logits = min(tokens, LOGIT_TOKENS) * shape.vocabulary * 4 * 3 / GB
        return activations, logits, f"{rows} x {longest}"

    def engine(self, weights: float) -> tuple[tuple[float, str], list[str]]:
        """GB that vLLM takes, and a problem if that leaves no room for one sequence."""
        model, token = self.profile.model, self.shape.cache_bytes / GB
        engine = model.gpu_memory_utilization * self.card.memory_gb
        cache = engine - weights - 1.5
        part = engine, f"share of the card; holds {max(0, cache / token):,.0f} tokens of cache"
        if cache / token >= model.max_seq_length:
            return part, []
        return part, [
            f"engine: {engine:.0f} GB leave {cache:.1f} GB of cache beside {weights:.1f} GB of "
            f"weights, one sequence of {model.max_seq_length} tokens needs "
            f"{model.max_seq_length * token:.1f} GB "
            "(try model.load_in_4bit=true or a larger model.gpu_memory_utilization)"
        ]

    def hours(self, counts: dict[str, float]) -> dict[str, float]:
        """Hours of every phase and in total."""
        given, profile, grpo = self.given, self.profile, self.profile.grpo
        writers = given.vllm_cards or given.cards
        batch = max(1.0, grpo.instances * grpo.rollouts / writers)
        tokens = [counts[f"{who} tokens"] for who in ("prompt", "reply")]
        asked = [counts[f"reader tokens {w}"] + counts[f"judge tokens {w}"] for w in ("in", "out")]
        reading = 0.0
        if profile.model.reader == "base":
            reading = self.generation_s(self.shape, *asked, 64, given.cards)
        elif profile.model.reader == "endpoint" and given.reader_cards:
            reading = self.generation_s(SHAPES[READER], *asked, 64, given.reader_cards)
        passes = 6 if profile.model.lora_rank else 8
        passes += 2 * (bool(grpo.kl) + (grpo.updates * grpo.iterations > 1))
        arithmetic = self.card.tflops * 1e12 * given.training_share * given.cards
        seconds = {
            "generation": self.generation_s(self.shape, *tokens, batch, writers),
            "reading and judging": reading,
            "training": passes * self.shape.parameters * counts["training tokens"] / arithmetic,
        }
        hours = {name: value / 3600 for name, value in seconds.items()}
        return hours | {"total": sum(hours.values())}

    def generation_s(
        self, shape: Shape, tokens_in: float, tokens_out: float, batch: float, cards: int
    ) -> float:
        """Seconds to read and write these tokens, `batch` sequences at a time on each card."""
        given, card = self.given, self.card
        prefill = 2 * shape.parameters * tokens_in / (card.tflops * 1e12 * given.prefill_share)
        held = batch * shape.cache_bytes * 2500  # cache of sequences in the middle of their reply
        per_token = (2 * shape.parameters + held) / batch
        decode = tokens_out * per_token / (card.bandwidth_gbs * GB * given.bandwidth_share)
        return (prefill + decode) / cards

    def disk(self) -> Line:
        """GB of kept checkpoints with optimiser states, the best policy and the exported one."""
        rank, keep = self.profile.model.lora_rank, self.profile.grpo.keep_checkpoints
        trained = self.shape.adapter(rank) if rank else self.shape.parameters
        value = keep * 12 * trained / GB + 2 * 2 * trained / GB
        return Line(
            "disk", "checkpoints", value, "GB", "kept checkpoints, the best one and the export"
        )

    def money(self, counts: dict[str, float], card_hours: float) -> Iterator[Line]:
        """What cards and the served reader cost, where prices are given."""
        price = self.given.usd_per_card_hour
        if price is not None:
            yield Line("cost", "cards", card_hours * price, "USD", f"{price} a card hour")
        prices = (self.given.usd_per_million_in, self.given.usd_per_million_out)
        if self.profile.model.reader == "endpoint" and None not in prices:
            usd = sum(
                (counts[f"reader tokens {way}"] + counts[f"judge tokens {way}"]) / 1e6 * price
                for way, price in zip(("in", "out"), prices, strict=True)
            )
            yield Line("cost", "reader and judge", usd, "USD", f"{prices} per million tokens")


LOGIT_TOKENS = 2048  # positions whose logits are held at once

HOW = {
    "generation": "weights and cache read per token; prompts at the prefill share",
    "reading and judging": "the base model on the same cards, or the 32B reader on its own",
    "training": "8 x parameters x tokens (LoRA: 6), 2 more each for old and reference",
    "total": "one after the other; overlap would save part of it",
}
