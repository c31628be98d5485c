"""All settings of the kit: small sections of typed fields, gathered in one `Profile`.

Functions receive the part they need, never the whole profile. Every weight is visible, also the
ones equal to 1. A profile is a YAML file with one mapping per section. It may say `extends: laptop`
and then only what differs. To add a setting, add a field with a default and a line about it here.

>>> load_profile("ci", ["grpo.steps=3"]).grpo.steps
3
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from memalpha_kit.episode_settings import (
    AdvantageConfig,
    MemoryConfig,
    ProtocolConfig,
    RewardConfig,
)
from memalpha_kit.errors import InputError, closest
from memalpha_kit.registry import import_extensions
from memalpha_kit.sections import (
    AtLeast2,
    Count,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Share,
    about,
    check_part,
    merged,
    nested,
    read_yaml,
    section,
    settings_from,
)

PROFILES = Path(__file__).parent / "profiles"

OnError = Literal["stop", "skip"]
"""What a bad raw record does to a build: it ends it, or it is listed and left out."""


def _in_order(name: str, bounds: tuple[int, int]) -> None:
    if bounds[0] > bounds[1]:
        raise InputError(f"{name}: expected the smaller number first, found {list(bounds)}")


@section
class BuildConfig:
    """How raw rows become instances. Defaults suit a laptop; profile `paper` has the paper's."""

    counter: str = about("wordpunct", "token counter of every size below")
    compat: Literal["fixed", "release"] = about(
        "fixed", "release: the published code's quirks, where possible"
    )
    on_error: OnError = about("stop", "a bad raw record: error, or left out")
    workers: Count = about(1, "processes; any number gives the same instances")
    stage: str = about("none", "who filters questions and shortens answers: none, rules, llm")
    llm_url: str = about("", "stage llm: an OpenAI-compatible server")
    llm_model: str = about("", "stage llm: its model's name")
    llm_key_env: str = about("OPENAI_API_KEY", "stage llm: the variable that holds the key")
    llm_cache: str = about("data/cache", "stage llm: folder of replies, keyed by content")
    instances: Count | None = about(None, "most per source; None: all (pubmed-rct: 100)")
    max_questions: Count = about(100, "per instance; more are sampled, seeded")
    min_questions: Count = about(1, "documents: fewer are dropped (paper: squad 50, hotpotqa 30)")
    min_kept_questions: Count = about(1, "same after the stage (squad 30, hotpotqa 10, perltqa 20)")
    max_chunks: Count = about(10, "documents, samples: chunks per instance")
    chunk_min_tokens: Count = about(100, "documents: smallest target drawn for a chunk")
    chunk_max_tokens: Count = about(2048, "documents: largest target; dialogues: hard limit")
    dialogue_close_tokens: Count = about(1800, "dialogues: a chunk this full is closed")
    dialogue_reserve_tokens: Count = about(150, "dialogues: kept free for a split turn's header")
    examples: Count | None = about(None, "classification: per instance; None: all, in one instance")
    example_chunks: Count | None = about(None, "classification: chunks to deal into; None: pack")
    example_chunk_tokens: Count = about(1024, "classification: size that chunks are packed to")
    article_tokens: Count = about(10_000, "hotpotqa: tokens of an instance's articles, on average")
    article_max_chunks: Count = about(20, "hotpotqa: instances with more are dropped")
    chapter_min_chunks: Count = about(5, "booksum: chapters with fewer are dropped")
    chapter_max_chunks: Count = about(20, "booksum: chapters with more are dropped")
    sample_min_tokens: Count = about(1024, "pubmed-rct: smallest target; largest: chunk_max_tokens")
    event_max_chunks: Count = about(30, "perltqa: characters with more are dropped")
    example_tokens: Count = about(2000, "ttl_train: tokens of sentences, if not `examples`")
    history_chunks: Count = about(15, "lme_train: chunks that a merged history is cut to, about")
    merged_questions: Count = about(4, "lme_train: questions that share a history")
    exclude: Literal["evaluation", "questions", "none"] = about(
        "evaluation", "ttl_train, lme_train leave out what evaluation rows ask and show"
    )
    rows: Literal["published", "any"] = about("published", "evaluation sources: number of raw rows")
    question_dates: Literal["shown", "kept"] = about(
        "shown", "LongMemEval: the day of a question stands before it, or is kept in the metadata"
    )
    questions: str = about("", "text: the file with a question on each line")
    metric: str = about("contains", "text: how answers are scored")

    def __post_init__(self) -> None:
        """Raises InputError for sizes that do not fit together."""
        high = self.chunk_max_tokens
        for name, most in (("chunk_min_tokens", high), ("dialogue_reserve_tokens", high // 2)):
            if (found := getattr(self, name)) > most:
                raise InputError(f"{name}: expected at most {most}, found {found}")
        _in_order("chapter_min_chunks", (self.chapter_min_chunks, self.chapter_max_chunks))


@section
class WorldConfig:
    """The miniature's world: facts, corrections, labelled examples, chit-chat."""

    chunks: Count = about(4, "chunks of a training instance; evaluation uses multiples of it")
    facts: tuple[Natural, Natural] = about((1, 2), "facts and examples per chunk, fewest and most")
    chat: tuple[Natural, Natural] = about((1, 2), "chit-chat sentences per chunk, fewest and most")
    correction: Share = about(0.7, "probability that a chunk corrects an earlier fact")
    example: Share = about(0.2, "share of the facts that are labelled examples")
    training_names: Count = about(8000, "names that training may use")
    held_out_names: Count = about(1000, "names of evaluation, disjoint from the above")
    max_questions: Count = about(20, "questions per instance, sampled if there are more")

    def __post_init__(self) -> None:
        _in_order("facts", self.facts)
        _in_order("chat", self.chat)


@section
class PolicyConfig:
    """The miniature's policy: a Qwen3 of well under 1M parameters and its tokenizer."""

    layers: Count = about(2, "of attention and feed-forward")
    hidden: Count = about(64, "width of the residual stream")
    heads: Count = about(4, "of the queries")
    kv_heads: Count = about(4, "of the keys and values")
    head_dim: Count = about(64, "sqrt(head_dim) caps the attention, as in Qwen3")
    feed_forward: Count = about(192, "width inside a layer")
    rope_theta: NonNegative = about(10_000.0, "base of the rotary positions")
    init_std: NonNegative = about(0.08, "larger than usual, or the model does not learn to copy")
    max_positions: Count = about(1024, "longest prompt and reply together")
    tie: bool = about(True, "output embedding is the input embedding")
    start_shared: NonNegative = about(0.0, "part that all embeddings share, in mean norms")
    start_look_back: NonNegative = about(0.0, "pull of layer-one heads to 1, 2, ... tokens before")
    start_copy: Share = about(0.0, "how far O starts as V transposed and, above layer one, K as Q")


@section
class WarmStartConfig:
    """Supervised training from scratch: first copying, then an imperfect teacher's transcripts."""

    copy_steps: Natural = about(120, "optimiser steps on rows to copy")
    transcribe_steps: Natural = about(100, "optimiser steps on transcribing every sentence")
    steps: Natural = about(250, "optimiser steps on the teacher's rows")
    rows: Count = about(12_000, "teacher rows, a chunk each")
    batch: Count = about(32, "rows per step")
    bucket_batches: Count = about(16, "batches that are sorted by length together")
    optimizer: Literal["adamw", "muon"] = about("adamw", "muon: of hidden matrices only")
    learning_rate: NonNegative = about(5e-3, "of AdamW")
    muon_rate: NonNegative = about(0.02, "of Muon; without effect under adamw")
    adam_beta2: Share = about(0.98, "AdamW's second decay")
    warm_up_steps: Natural = about(20, "step s of w runs at (s + 1) / w of the rate")
    decay_share: Share = about(0.4, "the rate falls linearly over this last share of the steps")
    clip: NonNegative = about(1.0, "largest gradient norm; 0: any")
    log_every: Count = about(10, "steps per row of the metrics")
    save_every: Natural = about(0, "steps between checkpoints; 0: none")
    teacher: str = about("keep_lines", "real models: the rule whose calls are learned")
    keep: Share = about(0.5, "teacher: facts and examples stored; real models: of its calls")
    chat: Share = about(0.4, "teacher: chit-chat stored")
    update: Share = about(0.7, "teacher: corrections of a shown entry that become an update")
    insert_hidden: Share = about(0.5, "teacher: corrections of a hidden entry that are inserted")


@section
class GrpoConfig:
    """Group-relative policy optimisation of whole episodes.

    A step is: collect episodes, reward, update. It makes `iterations * updates` optimiser steps.
    """

    steps: Natural = about(120, "training steps")
    instances: Count = about(4, "per step")
    rollouts: AtLeast2 = about(8, "per instance")
    iterations: Count = about(1, "passes over the rows of a step")
    updates: Count = about(1, "optimiser steps per pass, each on its own share of the rows")
    slices: Count = about(1, "passes a step, to save memory; multiple of updates; bnpo: their mean")
    optimizer: Literal["adamw", "muon"] = about("adamw", "muon: of hidden matrices only")
    learning_rate: NonNegative = about(1.5e-3, "of AdamW")
    muon_rate: NonNegative = about(5e-3, "of Muon; without effect under adamw")
    adam_beta2: Share = about(0.999, "AdamW's second decay")
    weight_decay: NonNegative = about(0.0, "of matrices and embeddings, never of norms")
    schedule: Literal["linear", "constant"] = about("linear", "linear: to 0 over the steps")
    warm_up_steps: Natural = about(2, "optimiser steps; the first one never has rate 0")
    temperature: Positive = about(0.7, "of the rollouts, and of the probabilities in the loss")
    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = about("dapo", "grpo: row mean")
    clip: NonNegative = about(0.2, "of the probability ratio, below 1")
    clip_high: NonNegative = about(0.2, "of the probability ratio, above 1")
    dual_clip: float | None = about(None, "largest ratio that counts against a bad row; release: 3")
    kl: NonNegative = about(0.0, "weight of the divergence from the warm start")
    max_gradient: NonNegative = about(1.0, "largest gradient norm; 0: any")
    save_every: Natural = about(40, "steps between checkpoints; 0: only the last")
    keep_checkpoints: AtLeast2 = about(2, "newest; 2: a crash while saving is safe")
    dump_every: Natural = about(10, "steps between dumps of sampled episodes; 0: none")
    dump_episodes: Count = about(2, "episodes per dump")
    validate_every: Natural = about(0, "steps between validations; 0: none, no best/")
    validate_instances: Count = about(32, "held-out instances, written greedily")
    skip_limit: Count = about(5, "updates in a row without finite gradients; then the run stops")
    missing_limit: Share = about(0.2, "share of answers or verdicts that may fail")
    outage_retries: Natural = about(5, "times that answers are asked for again in an outage")
    outage_pause_s: NonNegative = about(30.0, "before the first of them; doubles every time")
    overlap: bool = about(False, "ask about finished episodes while the others are still written")
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = about((), "trackers")

    def __post_init__(self) -> None:
        if self.slices % self.updates:
            expected = f"expected a multiple of updates ({self.updates})"
            raise InputError(f"slices: {expected}, found {self.slices}")


@section
class ModelConfig:
    """The language model that GRPO trains: who loads it, what of it moves, and who else is asked.

    Without effect on the miniature, whose policy is the section `policy`.
    """

    name: str = about("", "folder or hub id of the base model; '': the miniature's own policy")
    adapter: str = about("", "folder of an adapter to go on from, as a warm start leaves one")
    revision: str = about("", "commit of the hub; '': the newest that is there")
    backend: Literal["transformers", "unsloth"] = about("transformers", "who loads the model")
    dtype: Literal["auto", "float32", "bfloat16"] = about(
        "auto", "auto: as saved, 32 bits if all weights are trained (16 round small steps away)"
    )
    load_in_4bit: bool = about(False, "QLoRA: the base's weights are held in 4 bits")
    lora_rank: Natural = about(0, "0: all weights are trained; else an adapter of this rank")
    lora_alpha: Count = about(32, "the adapter counts alpha / rank times")
    lora_targets: tuple[str, ...] = about(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "layers that get an adapter; never embed_tokens or lm_head",
    )
    max_seq_length: Count = about(8192, "longest prompt and reply together")
    gradient_checkpointing: bool = about(True, "GPU: compute activations again, to save memory")
    vllm: Literal["none", "colocate", "server"] = about("none", "none: transformers")
    vllm_server_url: str = about("", "server: where `vllm serve` listens")
    gpu_memory_utilization: Share = about(0.5, "colocate: vLLM's share of the card's memory")
    reader: Literal["rule", "base", "endpoint"] = about("rule", "who answers")
    reader_url: str = about("", "endpoint: an OpenAI-compatible server")
    reader_model: str = about("", "endpoint: its model's name")


@section
class EvalConfig:
    """What is measured, and how sure we are."""

    lengths: tuple[Count, ...] = about((1, 4, 13), "multiples of the training number of chunks")
    instances: tuple[Count, ...] = about((120, 40, 16), "held-out instances per length")
    temperature: NonNegative = about(0.0, "0: greedy")
    resamples: Count = about(2000, "of the bootstrap")
    level: Share = about(0.95, "of the intervals")

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.instances):
            found = f"found {list(self.lengths)} and {list(self.instances)}"
            raise InputError(f"instances: expected lists of one length, like lengths, {found}")


@section
class RealDataConfig:
    """The same path on real raw files, with scripted writers and model-free readers."""

    folder: str = about("data/raw", "raw files, seen from the repository")
    sources: tuple[str, ...] = about(
        ("trec_coarse", "banking77", "longmemeval", "squad"), "built where their files are there"
    )
    instances: Count = about(5, "per source; fewer where the files do not give more")


@section
class ServerSettings:
    """Limits and manners of `memalpha serve`; no part of a profile."""

    compat: Literal["fixed", "release"] = about("fixed", "release: as the published server")
    top_k: Count = about(20, "entries of each store")
    budget_tokens: Count = about(30_000, "of a prompt")
    counter: str = about("wordpunct", "counts the budget, e.g. hf:Qwen/Qwen3-32B")
    max_request_mb: Positive = about(64.0, "of a request's body, 2**20 bytes")
    body_time: Positive = about(20.0, "seconds for a body to arrive")
    time_limit: Positive = about(1800.0, "seconds for an answer, from then on")
    at_work: Count = about(8, "requests at a time; one more gets 503")
    max_items: Count = about(10_000, "memories, questions or calls in a request")
    max_entries: Count = about(100_000, "entries of all memories in one request")
    judge_tokens: Count = about(512, "of one judgement at most")


@section
class Profile:
    """All settings of a run. `name` is the file's; `seed` starts every generator."""

    name: str
    seed: Seed = about(0, "starts every generator")
    extensions: tuple[str, ...] = about((), "your Python modules, imported first")
    threads: Count = about(1, "of torch on the CPU; another number may change the last digits")
    data: BuildConfig = BuildConfig()
    memory: MemoryConfig = MemoryConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    reward: RewardConfig = RewardConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    world: WorldConfig = WorldConfig()
    policy: PolicyConfig = PolicyConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    model: ModelConfig = ModelConfig()
    grpo: GrpoConfig = GrpoConfig()
    evaluation: EvalConfig = EvalConfig()
    real: RealDataConfig = RealDataConfig()


def load_profile(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Profile:
    """The profile of that name (or YAML file), with overrides like `grpo.steps=10` on top.

    A name with a `.yaml` ending is a path. The modules in `extensions` are imported. Raises
    InputError, naming the file and the key, for a profile, section or key that does not exist and
    for a value of the wrong type or range.
    """
    path = _profile_path(str(name_or_path), Path())
    values: dict[str, Any] = {"name": path.stem}
    changes = [overrides] if isinstance(overrides, str) else overrides
    for where, layer in (*_file_layers(path), *map(_override, changes)):
        if "name" in layer:
            raise InputError(f"{where}: unknown key 'name': it is the file's name")
        check_part(Profile, {"name": "", **layer}, where)
        values = merged(values, layer)
    import_extensions(values.get("extensions", ()))
    return settings_from(Profile, values, f"profile {name_or_path}")


def profile_names() -> list[str]:
    """Names of the profiles that come with the kit, in alphabetical order."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def profile_dict(profile: Profile) -> dict[str, Any]:
    """The settings as nested plain values, ready for JSON (`run.json`)."""
    return json.loads(json.dumps(dataclasses.asdict(profile)))


def _file_layers(path: Path, below: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The settings in a YAML file and in what it `extends`, the most general first, with names."""
    if path.resolve() in below:
        raise InputError(f"{path}: extends: the profile extends itself")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected YAML, found: {error}") from error
    content = read_yaml(text, str(path)) or {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected sections with settings, found {content!r:.80}")
    layers = [(str(path), content)]
    if (parent := content.pop("extends", None)) is not None:
        file = _profile_path(str(parent), path.parent)
        layers = _file_layers(file, (*below, path.resolve())) + layers
    return layers


def _override(text: Any) -> tuple[str, dict[str, Any]]:
    """A setting like `grpo.steps=10`, whose value is YAML, as a layer."""
    key, equals, value = str(text).partition("=")
    if not equals:
        raise InputError(f"override {text!r}: expected section.key=value")
    try:
        return "override", nested(key.strip(), read_yaml(value, key))
    except InputError:
        found = f"expected a value, found {value[:80]!r}"
        raise InputError(f"override {key.strip()}: {found}") from None


def _profile_path(name: str, folder: Path) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: expected a profile (a YAML file), found no such file")
        return path
    if name not in profile_names():
        raise InputError(f"unknown profile {name!r}{closest(name, profile_names())}")
    return PROFILES / f"{name}.yaml"
