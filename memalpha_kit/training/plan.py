"""What a run of a real model will cost before it starts. Runs nothing.

The one law: every number follows from the profile and from assumptions that are printed beside it.
What cannot fit is refused with the sum that shows it.

Everything is arithmetic on the model's shape: generation is bound by reading weights and cache from
the card's memory, prefill and training by its arithmetic, each at an assumed share of the peak. The
data's sizes are the paper's (table 7, the balanced set: means over 562 instances). The published
run took 32 H100 for three days (paper, section 4); a plan shows what we expect of the same
settings, which is an estimate of ours and not a reproduction. Models, cards and the words beside
every number are in `plan.yaml`; the miniature's plan is in `lab/plan.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from memalpha_kit.errors import InputError, closest
from memalpha_kit.sections import Count, Natural, NonNegative, Positive, about, section
from memalpha_kit.settings import Profile
from memalpha_kit.training.shapes import (
    CARDS,
    CPU,
    GB,
    SHAPES,
    TABLES,
    Card,
    Shape,
    known_card,
    known_shape,
)

if TYPE_CHECKING:
    import pandas as pd

STATISTICS = Path(__file__).parents[1] / "paper_tables" / "statistics.csv"
Numbers = dict[str, float]
Portion = Annotated[float, Field(gt=0, le=1)]
LOGIT_TOKENS = 2048  # positions whose logits are held at once


@section
class Assumptions:
    """What a plan of a real model takes for granted; every field is printed with the plan."""

    card: str = about("h100", "name of the card")
    cards: Count = about(1, "that train; with vllm `colocate` they also generate")
    vllm_cards: Natural = about(0, "that only generate (vllm `server`)")
    reader_cards: Natural = about(0, "that serve the 32B reader (`endpoint`); 0: somebody else's")
    usd_per_card_hour: NonNegative | None = about(None, "price of a card")
    usd_per_million_in: NonNegative | None = about(None, "`endpoint`: price of prompt tokens")
    usd_per_million_out: NonNegative | None = about(None, "`endpoint`: price of reply tokens")
    chunks: Positive | None = about(None, "of an instance; None: table 7's mean")
    questions: Positive | None = about(None, "of an instance; None: table 7's mean")
    chunk_tokens: Count | None = about(None, "of a chunk; None: table 7's mean")
    reply_tokens: Count = about(350, "of the policy per chunk")
    instruction_tokens: Natural = about(900, "of the prompt around chunk and memory, with tools")
    shown_tokens: Natural = about(700, "of memory in the policy's prompt: core, newest entries")
    read_tokens: Natural = about(2200, "of a reader's prompt: up to 40 entries, core, question")
    answer_tokens: Natural = about(60, "of the reader")
    calls: NonNegative = about(3.0, "of the policy per chunk, each judged once")
    judge_tokens: Natural = about(350, "of a judge's prompt")
    verdict_tokens: Natural = about(60, "of the judge")
    training_share: Portion = about(0.30, "of the card's peak that training reaches (MFU)")
    prefill_share: Portion = about(0.40, "of the peak, while prompts are read")
    bandwidth_share: Portion = about(0.50, "of the memory bandwidth, while tokens are generated")


def planned_data(given: Assumptions) -> SimpleNamespace:
    """Chunks and questions per instance, tokens per chunk: means of the balanced training set of
    table 7, unless something else is assumed.

    `longest` is the chunks per instance of the source with the longest ones.
    """
    import pandas as pd

    rows = pd.read_csv(STATISTICS, comment="#").query("table == 7 and split == 'train'")
    instances, chunks = rows.instances.sum(), rows.instances * rows.chunks_per_instance
    questions = (rows.instances * rows.questions_per_instance).sum() / instances
    tokens = (chunks * rows.tokens_per_chunk).sum() / chunks.sum()
    return SimpleNamespace(
        chunks=given.chunks or chunks.sum() / instances,
        questions=given.questions or questions,
        tokens=given.chunk_tokens or tokens,
        longest=given.chunks or rows.chunks_per_instance.max(),
    )


# --- The plan -------------------------------------------------------------------------------------


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
            value = "" if math.isnan(line.value) else f"{line.value:,.{digits}f}"
            lines.append(f"{line.part:8} {line.what:22} {value:>18} {line.unit:9} {line.how}")
        return "\n".join(lines)

    def refuse(self) -> None:
        """Raises InputError with all problems of the plan, if it has any."""
        if self.problems:
            raise InputError(f"profile {self.profile} does not fit: {'; '.join(self.problems)}")

    def __str__(self) -> str:
        """One line: `plan: 61 GB per card, 8.2 h`."""
        return f"plan: {self.value('total per card'):.0f} GB per card, {self.value('total'):.1f} h"


def plan(
    profile: Profile,
    assumptions: Assumptions = Assumptions(),  # noqa: B008 (frozen)
    measured: Card | None = None,
) -> Plan:
    """What the profile will cost. Raises InputError for settings that training would refuse, and
    for a model or a card that is in no table.

    `measured` stands for the card's row in the table (`training/probe.py`).
    """
    from memalpha_kit.training.real import check_settings

    name, card = profile.model.name, assumptions.card
    shape, missing = known_shape(name), "is not in the tables of the plan"
    if shape is None:
        raise InputError(f"model.name {name!r} {missing}{closest(name, SHAPES)}")
    if card not in CARDS:
        raise InputError(f"card {card!r} {missing}{closest(card, CARDS)}")
    check_settings(profile)
    known = measured or CARDS[card]
    return _Estimate(profile, assumptions, shape, known, planned_data(assumptions)).plan()


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
    """A plan in the making. What its methods add to `words` fills the texts of `plan.yaml`."""

    profile: Profile
    given: Assumptions
    shape: Shape
    card: Card
    data: SimpleNamespace

    def plan(self) -> Plan:
        given, words = self.given, vars(self).copy()
        words["cards"] = given.cards + given.vllm_cards + given.reader_cards
        work, (memory, problems) = self.work(words), self.memory(words)
        model, grpo, cards = self.profile.model, self.profile.grpo, given.cards
        if model.backend == "unsloth" and cards > 1:
            problems.append(f"model.backend unsloth trains on one card, found {cards} cards")
        elif grpo.instances % cards:
            problems.append(f"grpo.instances {grpo.instances} is no multiple of {cards} cards")
        hours = self.hours(work)
        hours["GPU hours"] = hours["total"] * words["cards"]
        numbers = {"work": work, "memory": memory, "time": hours}
        trained = self.shape.adapter(model) or self.shape.parameters
        whole = self.shape.parameters * (4 if model.lora_rank else 2)
        numbers["disk"] = {"checkpoints": ((12 * grpo.keep_checkpoints + 2) * trained + whole) / GB}
        numbers["cost"] = self.money(work, hours["GPU hours"], words)
        lines = [
            Line(part, what, numbers[part][what], unit, how.format(**words))
            for part, known in TABLES["lines"].items()
            for what, (unit, how) in known.items()
            if what in numbers[part]
        ]
        for name, value in vars(given).items():
            number = value if isinstance(value, (int, float)) else math.nan
            lines.append(Line("assumed", name, number, "", str(value)))
        return Plan(self.profile.name, tuple(lines), tuple(problems))

    @property
    def checkpointed(self) -> bool:
        """Whether activations are computed again, as only a card does, instead of held."""
        return self.profile.model.gradient_checkpointing and self.given.card != CPU

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

    def work(self, words: dict[str, Any]) -> Numbers:
        """Counts of the whole run, validation included."""
        profile, given, data, grpo = self.profile, self.given, self.data, self.profile.grpo
        episodes = grpo.steps * grpo.instances * grpo.rollouts
        looks = -(-grpo.steps // grpo.validate_every) if grpo.validate_every else 0
        validated = looks * grpo.validate_instances
        written = (episodes + validated) * data.chunks
        reads = (episodes + validated) * data.questions
        asked = reads * (profile.model.reader != "rule")
        judged = written * given.calls if profile.reward.content else 0.0
        shown = given.instruction_tokens + given.shown_tokens + data.tokens
        prompt = min(shown, profile.protocol.max_prompt_tokens)
        reply = min(given.reply_tokens, profile.protocol.max_reply_tokens)
        words |= {"prompt": prompt, "reply": reply}
        first = profile.protocol.prompt == "short"  # the other real profiles need no warm start
        warm = profile.warm_start.steps * profile.warm_start.batch * first
        counts = {
            "episodes": episodes,
            "validation episodes": validated,
            "generations": written,
            "prompt tokens": written * prompt,
            "reply tokens": written * reply,
            "training tokens": grpo.steps * given.cards * self.rows() * (prompt + reply),
            "warm-start tokens": warm * (prompt + reply),
            "reader calls": reads,
            "reader tokens in": asked * given.read_tokens,
            "reader tokens out": asked * given.answer_tokens,
            "judge calls": judged,
            "judge tokens in": judged * given.judge_tokens,
            "judge tokens out": judged * given.verdict_tokens,
        }
        for way in ("in", "out"):
            counts[f"asked {way}"] = counts[f"reader tokens {way}"] + counts[f"judge tokens {way}"]
        return counts

    def memory(self, words: dict[str, Any]) -> tuple[Numbers, list[str]]:
        """GB per card by part, and what does not fit."""
        model, shape, cards = self.profile.model, self.shape, self.given.cards
        four_bit = shape.block * 0.56 + (shape.parameters - shape.block) * 2
        weights = (four_bit if model.load_in_4bit else 2 * shape.parameters) / GB
        lora = shape.adapter(model)
        words["states"] = f"adapter of {lora / 1e6:.0f}M: weights, gradients, AdamW"
        if not lora:
            words["states"] = f"fp32 weights, gradients, AdamW, over {cards} cards"
            weights /= cards
        states = 16 * (lora or shape.parameters / cards) / GB
        shares = model.backend == "unsloth" and model.vllm == "colocate"  # one copy for both
        words["weights"] = "one copy, in the engine" if shares else "bf16"
        parts = {"weights": 0.0 if shares else weights, "training states": states}
        spare = 1.0 if self.given.card == CPU else 3.0
        parts |= self.activations(words) | {"CUDA and fragments": spare}
        if not lora and self.profile.grpo.kl:
            parts["reference"] = weights
        problems = self.engine(weights, parts, words) if model.vllm == "colocate" else []
        total = sum(parts.values())
        if total > self.card.memory_gb:
            sums = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
            problems.append(
                f"{total:.1f} GB per card needed, {self.given.card} has {self.card.memory_gb:.0f} "
                f"({sums}); try more cards, model.lora_rank, model.load_in_4bit=true or more "
                "grpo.slices"
            )
        return parts | {"total per card": total}, problems

    def activations(self, words: dict[str, Any]) -> Numbers:
        """GB of the activations and of the logits of a forward pass."""
        model, protocol, shape = self.profile.model, self.profile.protocol, self.shape
        rows = self.rows() // self.profile.grpo.slices
        if model.backend == "unsloth":
            rows = 1  # it splits a forward pass by the memory that is free
        longest = protocol.max_prompt_tokens + protocol.max_reply_tokens
        longest = min(model.max_seq_length, longest)
        words["passes"], tokens = f"{rows} x {longest}", rows * longest
        words["held"] = "" if self.checkpointed else "not "
        layer = shape.hidden * 8 + shape.feed_forward * 4 + 2 * shape.heads * shape.head_dim
        held = shape.layers * (shape.hidden if self.checkpointed else layer)
        return {
            "activations": tokens * 2 * (held + layer * self.checkpointed) / GB,
            "logits": min(tokens, LOGIT_TOKENS) * shape.vocabulary * 4 * 3 / GB,
        }

    def engine(self, weights: float, parts: Numbers, words: dict[str, Any]) -> list[str]:
        """Adds the GB that vLLM takes; a problem if that leaves no room for one sequence."""
        model, token = self.profile.model, self.shape.cache_bytes / GB
        engine = parts["engine"] = model.gpu_memory_utilization * self.card.memory_gb
        cache = engine - weights - 1.5
        words["cached"] = max(0, cache / token)
        if cache / token >= model.max_seq_length:
            return []
        longest = model.max_seq_length
        return [
            f"engine: {engine:.0f} GB leave {cache:.1f} GB of cache beside {weights:.1f} GB of "
            f"weights, one sequence of {longest} tokens needs {longest * token:.1f} GB "
            "(try model.load_in_4bit=true or a larger model.gpu_memory_utilization)"
        ]

    def hours(self, work: Numbers) -> Numbers:
        """Hours of every phase and in total."""
        given, model, grpo = self.given, self.profile.model, self.profile.grpo
        writers = given.vllm_cards or given.cards
        batch = max(1.0, grpo.instances * grpo.rollouts / writers)
        reading, asked = 0.0, (work["asked in"], work["asked out"])
        if model.reader == "base":
            reading = self.generation_s(self.shape, *asked, 64, given.cards)
        elif model.reader == "endpoint" and given.reader_cards:
            reading = self.generation_s(SHAPES["Qwen/Qwen3-32B"], *asked, 64, given.reader_cards)
        passes = (6 if model.lora_rank else 8) - 2 * (not self.checkpointed)
        old = grpo.updates * grpo.iterations > 1 or model.vllm != "none"
        known = passes * grpo.iterations + 2 * (bool(grpo.kl) + old)
        arithmetic = self.card.tflops * 1e12 * given.training_share * given.cards
        tokens = work["prompt tokens"], work["reply tokens"]
        learned = self.shape.parameters / arithmetic
        seconds = {
            "warm start": passes * learned * work["warm-start tokens"],
            "generation": self.generation_s(self.shape, *tokens, batch, writers),
            "reading and judging": reading,
            "training": known * learned * work["training tokens"],
        }
        hours = {name: value / 3600 for name, value in seconds.items()}
        return hours | {"total": sum(hours.values())}

    def generation_s(
        self, shape: Shape, tokens_in: float, tokens_out: float, batch: float, cards: int
    ) -> float:
        """Seconds to read and write these tokens, `batch` sequences at a time on each card."""
        given, card = self.given, self.card
        prefill = 2 * shape.parameters * tokens_in / (card.tflops * 1e12 * given.prefill_share)
        longest = self.profile.protocol.max_prompt_tokens + self.profile.protocol.max_reply_tokens
        held = batch * shape.cache_bytes * min(2500, longest)  # cache in the middle of a reply
        per_token = (2 * shape.parameters + held) / batch
        decode = tokens_out * per_token / (card.bandwidth_gbs * GB * given.bandwidth_share)
        return (prefill + decode) / cards

    def money(self, work: Numbers, card_hours: float, words: dict[str, Any]) -> Numbers:
        """What cards and the served reader cost, where prices are given."""
        given, costs = self.given, {}
        if given.usd_per_card_hour is not None:
            costs["cards"] = card_hours * given.usd_per_card_hour
        read, written = given.usd_per_million_in, given.usd_per_million_out
        words["prices"] = read, written
        served = self.profile.model.reader == "endpoint"
        if served and read is not None and written is not None:
            tokens_in, tokens_out = work["asked in"] / 1e6, work["asked out"] / 1e6
            costs["reader and judge"] = tokens_in * read + tokens_out * written
        return costs
