"""Settings: small frozen dataclasses, gathered in one `Profile` that a YAML file fills.

Functions receive the part they need, never the whole profile. Every weight is visible, also the
ones equal to 1. An unknown key, profile or value is an `InputError` that names it and the closest
known one. No environment variables, no argument parsing and no work here.

A profile is a YAML file with one mapping per section. It may say `extends: laptop` and then only
what differs. To add a setting, add a typed field with a default and a comment here; to add a
section, add a dataclass and a field of `Profile`. Reading and checking need no other change.

>>> load_profile("ci", ["grpo.steps=3"]).grpo.steps
3
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from memalpha_kit.errors import InputError, closest

PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Between:
    """The range a number must lie in, both ends included; None is open."""

    low: float | None = None
    high: float | None = None


Count = Annotated[int, Between(low=1)]
Natural = Annotated[int, Between(low=0)]
Share = Annotated[float, Between(low=0, high=1)]
NonNegative = Annotated[float, Between(low=0)]

Behaviour = Literal["fixed", "release"]
"""`release` is what the published code does, `fixed` (default) what is right (spec method.md)."""

OnError = Literal["stop", "skip"]
"""What a bad raw record does to a build: it ends it, or it is listed and left out."""

Exclude = Literal["evaluation", "questions", "none"]
"""What a training source leaves out: what evaluation rows ask and show, what they ask, nothing."""

Rows = Literal["published", "any"]
"""How many rows an evaluation source must have: the published number, or any (a sample)."""

Stage = Literal["none", "rules", "llm"]
"""Who does the work of a language model in a build: nobody, simple rules, or a model."""


@dataclass(frozen=True)
class MemoryConfig:
    """What a memory may hold, how it reacts and what of it the writer sees (method.md 1)."""

    core: bool = True  # one paragraph, rewritten as a whole
    semantic: bool = True  # list of facts
    episodic: bool = True  # list of dated events
    core_limit_tokens: Count = 512  # core is cut to this many tokens, notice included
    behaviour: Behaviour = "fixed"  # release: deletes of unknown ids succeed, blank text is kept
    counter: str = "wordpunct"  # token counter by name (tokens.counter); both sides of r3 use it
    update_duplicate: Literal["skip", "allow"] = "skip"  # update that would repeat another entry
    short_types: bool = True  # accept "semantic" where the schema says "semantic_memory"
    display: Literal["recent", "relevant"] = "recent"  # relevant: BM25 with the chunk as query
    shown: Natural = 5  # entries shown per store while memorising
    # tools offered while memorising, and components of a user's module beside the three
    tools: tuple[str, ...] = ("new_memory_insert", "memory_update", "memory_delete")
    components: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProtocolConfig:
    """What the writer is shown and how its reply is read (method.md 1.5, 2, 3)."""

    wire: Literal["qwen", "text", "compact"] = "qwen"  # <tool_call> JSON, marker text, miniature
    prompt: Literal["paper", "compact"] = "paper"  # full instructions, or the miniature's bare rows
    thinking: bool = False  # calls are read only after </think>
    execute_truncated: bool = False  # release: a call cut by the length limit is repaired and run
    max_prompt_tokens: Count = 6144  # entries shown are halved until the prompt fits
    max_reply_tokens: Count = 2048  # sampling limit per chunk


@dataclass(frozen=True)
class RewardConfig:
    """Weights of R = w1 r1 + w2 r2 + beta r3 + gamma r4 (method.md 5.1)."""

    accuracy: float = 1.0  # weight of r1
    format: float = 1.0  # weight of r2
    compression: float = 0.05  # beta, weight of r3
    content: float = 0.1  # gamma, weight of r4
    accuracy_threshold: float | None = None  # r1 becomes 1 if r1 >= threshold else 0
    content_denominator: Literal["all_calls", "judged_calls"] = "all_calls"  # release: all_calls
    compression_floor: float | None = None  # lower clip of r3; None: r3 may be negative


@dataclass(frozen=True)
class AdvantageConfig:
    """Who is compared with whom (method.md 6.1, 6.2)."""

    # instance: as released; see rewards.group and rewards.episode_advantages
    grouping: Literal["instance", "chunk", "rollout", "leave_one_out"] = "instance"
    scale: Literal["std", "none"] = "std"  # divide by the group's unbiased standard deviation
    epsilon: NonNegative = 1e-6  # added to the standard deviation
    single: Literal["zero", "raw"] = "zero"  # group of one row: 0; release: its reward (D40)


@dataclass(frozen=True)
class BuildConfig:
    """How raw rows become instances. The defaults suit a laptop; data.md 2.0 has the paper's."""

    counter: str = "wordpunct"  # token counter of every size below (tokens.counter)
    compat: Behaviour = "fixed"  # release: the published code's quirks, where they can be repeated
    on_error: OnError = "stop"  # a bad raw record: an error, or listed and left out
    workers: int = 1  # processes; any number gives the same instances
    stage: Stage = "none"  # closed-book filter, keywords, short answers, answerability (stages/)
    llm_url: str = ""  # stage llm: an OpenAI-compatible server
    llm_model: str = ""  # stage llm: its model's name
    llm_key_env: str = "OPENAI_API_KEY"  # stage llm: the variable that holds the key
    llm_cache: str = "data/cache"  # stage llm: folder of replies, keyed by content
    instances: int | None = None  # at most this many per source; None: all (pubmed-rct: 100)
    max_questions: int = 100  # per instance; more are sampled, seeded
    min_questions: int = 1  # documents: fewer are dropped (paper: squad 50, hotpotqa 30)
    min_kept_questions: int = 1  # the same after the stage (squad 30, hotpotqa 10, perltqa 20)
    max_chunks: int = 10  # documents, samples: chunks per instance
    chunk_min_tokens: int = 100  # documents: smallest target drawn for a chunk
    chunk_max_tokens: int = 2048  # documents: largest target; dialogues: hard limit
    dialogue_close_tokens: int = 1800  # dialogues: a chunk this full is closed
    dialogue_reserve_tokens: int = 150  # dialogues: kept free for the header of a split turn
    examples: int | None = None  # classification: per instance; None: all, in one instance
    example_chunks: int | None = None  # classification: deal into so many chunks; None: pack
    example_chunk_tokens: int = 1024  # classification: size that chunks are packed to
    article_tokens: int = 10_000  # hotpotqa: tokens of an instance's articles, on average
    article_max_chunks: int = 20  # hotpotqa: instances with more are dropped
    chapter_min_chunks: int = 5  # booksum: chapters with fewer are dropped
    chapter_max_chunks: int = 20  # booksum: chapters with more are dropped
    sample_min_tokens: int = 1024  # pubmed-rct: smallest target drawn; largest: chunk_max_tokens
    event_max_chunks: int = 30  # perltqa: characters with more are dropped
    example_tokens: int = 2000  # ttl_train: tokens of an instance's sentences, if not `examples`
    history_chunks: int = 15  # lme_train: chunks that a merged history is cut to, about
    merged_questions: int = 4  # lme_train: questions that share a history
    exclude: Exclude = "evaluation"  # ttl_train, lme_train: left out of training
    rows: Rows = "published"  # evaluation sources: number of raw rows

    def __post_init__(self) -> None:
        """Raises InputError for a wrong word, a number below 1 and sizes that do not fit."""
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                _converted(getattr(self, name), kind, name)
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        low, high = self.chunk_min_tokens, self.chunk_max_tokens
        reserve = self.dialogue_reserve_tokens
        if low > high:
            raise InputError(
                f"chunk_min_tokens: expected at most {high} (the maximum), found {low}"
            )
        _in_order("chapter chunks", (self.chapter_min_chunks, self.chapter_max_chunks))
        if reserve > high // 2:
            raise InputError(
                f"dialogue_reserve_tokens: expected at most {high // 2}, found {reserve}"
            )


@dataclass(frozen=True)
class WorldConfig:
    """The miniature's world: facts, corrections, labelled examples, chit-chat."""

    chunks: Count = 4  # chunks of a training instance; evaluation uses multiples of it
    facts: tuple[Natural, Natural] = (1, 2)  # facts and examples per chunk, fewest and most
    chat: tuple[Natural, Natural] = (1, 2)  # chit-chat sentences per chunk, fewest and most
    correction: Share = 0.7  # probability that a chunk corrects an earlier fact
    example: Share = 0.2  # share of the facts that are labelled examples
    training_names: Count = 8000  # names that training may use
    held_out_names: Count = 1000  # names of evaluation, disjoint from the above
    max_questions: Count = 20  # questions per instance, sampled if there are more

    def __post_init__(self) -> None:
        _in_order("world.facts", self.facts)
        _in_order("world.chat", self.chat)


@dataclass(frozen=True)
class PolicyConfig:
    """The miniature's policy: a Qwen3 of well under 1M parameters and its tokenizer."""

    layers: Count = 2
    hidden: Count = 64  # width of the residual stream
    heads: Count = 4
    kv_heads: Count = 4
    head_dim: Count = 64  # Qwen3 normalises queries and keys: sqrt(head_dim) caps the attention
    feed_forward: Count = 192
    rope_theta: NonNegative = 10_000.0
    init_std: NonNegative = 0.08  # larger than usual, or the model does not learn to copy
    max_positions: Count = 1024  # longest prompt and reply together
    tie: bool = True  # output embedding is the input embedding
    start_shared: NonNegative = 0.0  # part that all embeddings share at the start, in mean norms
    start_look_back: NonNegative = 0.0  # pull of first-layer heads to 1, 2, ... tokens before
    start_copy: Share = 0.0  # how far O starts as V transposed and, above layer one, K as Q


@dataclass(frozen=True)
class WarmStartConfig:
    """Supervised training from scratch: first copying, then an imperfect teacher's transcripts."""

    copy_steps: Natural = 120  # optimiser steps on rows to copy
    transcribe_steps: Natural = 100  # optimiser steps on transcribing every sentence
    steps: Natural = 250  # optimiser steps on the teacher's rows
    rows: Count = 12_000  # teacher rows, a chunk each
    batch: Count = 32  # rows per step
    bucket_batches: Count = 16  # batches that are sorted by length together
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices; AdamW for the rest
    learning_rate: NonNegative = 5e-3  # of AdamW
    muon_rate: NonNegative = 0.02  # of Muon; without effect under adamw
    adam_beta2: Share = 0.98
    warm_up_steps: Natural = 20  # step s of w runs at (s + 1) / w of the rate
    decay_share: Share = 0.4  # the rate falls linearly over this last share of the steps
    clip: NonNegative = 1.0  # largest gradient norm
    log_every: Count = 10  # steps per row of the metrics
    keep: Share = 0.5  # teacher: facts and examples stored
    chat: Share = 0.4  # teacher: chit-chat stored
    update: Share = 0.7  # teacher: corrections of a shown entry that become an update
    insert_hidden: Share = 0.5  # teacher: corrections of a hidden entry that become an insert


@dataclass(frozen=True)
class GrpoConfig:
    """Group-relative policy optimisation of whole episodes (method.md 6).

    A step is: collect episodes, reward, update. It makes `iterations * updates` optimiser steps.
    """

    steps: Natural = 120
    instances: Count = 4  # per step
    rollouts: Count = 8  # per instance, at least 2
    iterations: Count = 1  # passes over the rows of a step
    updates: Count = 1  # optimiser steps per pass, each on its own share of the rows
    slices: Count = 1  # forward passes the rows are cut into, for memory; multiple of updates
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices; AdamW for the rest
    learning_rate: NonNegative = 1.5e-3  # of AdamW
    muon_rate: NonNegative = 5e-3  # of Muon; without effect under adamw
    adam_beta2: Share = 0.999
    weight_decay: NonNegative = 0.0  # of matrices and embeddings, never of norms
    schedule: Literal["linear", "constant"] = "linear"  # linear: to 0 over the steps
    warm_up_steps: Natural = 2  # optimiser steps; the first one never has rate 0 (D47)
    temperature: NonNegative = 0.7  # of the rollouts, and of the probabilities in the loss
    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"  # dapo: token mean; grpo: row mean
    clip: NonNegative = 0.2  # of the probability ratio, below 1
    clip_high: NonNegative = 0.2  # of the probability ratio, above 1
    dual_clip: float | None = None  # largest ratio that counts against a bad row; release: 3
    kl: NonNegative = 0.0  # weight of the divergence from the warm start
    max_gradient: NonNegative = 1.0  # largest gradient norm
    save_every: Natural = 40  # steps between checkpoints; 0: only the last
    keep_checkpoints: Annotated[int, Between(low=2)] = 2  # newest; 2: a crash while saving is safe
    dump_every: Natural = 10  # steps between dumps of sampled episodes; 0: none
    dump_episodes: Count = 2  # episodes per dump
    validate_every: Natural = 0  # steps between looks at held-out instances; 0: none, no best/
    validate_instances: Count = 32  # held-out instances, written greedily
    skip_limit: Count = 5  # updates in a row with NaN or infinite gradients; then the run stops
    missing_limit: Share = 0.2  # share of answers or verdicts that may fail; above: an outage
    outage_retries: Natural = 5  # times that a step's answers are asked for again in an outage
    outage_pause_s: NonNegative = 30.0  # before the first of them; doubles every time
    overlap: bool = False  # ask about finished episodes while the others are still written
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()  # beside metrics.csv


@dataclass(frozen=True)
class ModelConfig:
    """The language model that GRPO trains: who loads it, what of it moves, and who else is asked.

    Without effect on the miniature, whose policy is the section `policy`. Source of the rules:
    trl_unsloth_vllm.md.
    """

    name: str = ""  # folder or hub id of the base model; "": the miniature's own policy
    revision: str = ""  # commit of the hub; "": the newest that is there
    backend: Literal["transformers", "unsloth"] = "transformers"  # who loads the model
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the base weights; auto: as saved
    load_in_4bit: bool = False  # QLoRA: the base's weights are held in 4 bits
    lora_rank: Natural = 0  # 0: all weights are trained; else an adapter of this rank
    lora_alpha: Count = 32  # the adapter counts alpha / rank times
    lora_targets: tuple[str, ...] = (  # layers that get an adapter; never lm_head
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    max_seq_length: Count = 8192  # longest prompt and reply together
    gradient_checkpointing: bool = True  # on a GPU: compute activations again, to save memory
    vllm: Literal["none", "colocate", "server"] = "none"  # who generates: transformers, or vLLM
    vllm_server_url: str = ""  # server: where `vllm serve` listens
    gpu_memory_utilization: Share = 0.5  # colocate: vLLM's share of the card's memory
    reader: Literal["rule", "base", "endpoint"] = "rule"  # who answers and judges; base: this model
    reader_url: str = ""  # endpoint: an OpenAI-compatible server
    reader_model: str = ""  # endpoint: its model's name


@dataclass(frozen=True)
class EvalConfig:
    """What is measured, and how sure we are (evaluation.md)."""

    lengths: tuple[Count, ...] = (1, 4, 13)  # multiples of the training number of chunks
    instances: tuple[Count, ...] = (120, 40, 16)  # held-out instances per length
    temperature: NonNegative = 0.0  # 0: greedy
    resamples: Count = 2000  # of the bootstrap
    level: Share = 0.95  # of the intervals

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.instances):
            raise InputError(
                "evaluation.lengths, evaluation.instances: expected lists of one length, "
                f"found {list(self.lengths)} and {list(self.instances)}"
            )


@dataclass(frozen=True)
class RealDataConfig:
    """The same path on real raw files, with scripted writers and model-free readers."""

    folder: str = "data/raw"  # raw files, seen from the repository
    sources: tuple[str, ...] = ("trec_coarse", "banking77", "longmemeval", "squad")
    instances: Count = 5  # per source; fewer where the files do not give more


@dataclass(frozen=True)
class Profile:
    """All settings of a run. `name` is the file's; `seed` starts every generator."""

    name: str
    seed: Natural = 0
    threads: Count = 1  # of torch on the CPU; another number may change the last digits
    data: BuildConfig = field(default_factory=BuildConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    real: RealDataConfig = field(default_factory=RealDataConfig)


def load_profile(
    name_or_path: str | Path, overrides: Mapping[str, str] | Iterable[str] = ()
) -> Profile:
    """The profile of that name (or YAML file), with overrides like `grpo.steps=10` on top.

    A name with a `.yaml` ending is a path. Raises InputError, naming the file and the key, for a
    profile, section or key that does not exist and for a value of the wrong type or range.
    """
    path = _profile_path(str(name_or_path), Path())
    layers = [*_file_layers(path), *(_override_layer(o) for o in _pairs(overrides))]
    settings: dict[str, Any] = {"name": path.stem}
    for layer in layers:
        settings = _merged(settings, layer)
    return _built(Profile, settings)


T = TypeVar("T")


def settings_from(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """The settings dataclass `cls` with these options, whose names may be dotted (`memory.shown`).

    Raises InputError starting with `where` for an unknown name, a wrong type or a wrong range.
    """
    values: dict[str, Any] = {}
    for key, value in options.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        values = _merged(values, value)
    return _built(cls, _checked(cls, values, where, ""))


def profile_names() -> list[str]:
    """Names of the profiles that come with the kit, in alphabetical order."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def profile_dict(profile: Profile) -> dict[str, Any]:
    """The settings as nested plain values, ready for JSON (`run.json`)."""
    return _plain(dataclasses.asdict(profile))


def _profile_path(name: str, folder: Path) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: expected a profile (a YAML file), found no such file")
        return path
    if name not in profile_names():
        raise InputError(f"unknown profile {name!r}{closest(name, profile_names())}")
    return PROFILES / f"{name}.yaml"


class _NoRepeats(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice is an error and not silently the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _file_layers(path: Path, below: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Checked settings of the file and of what it extends, the most general first."""
    if path.resolve() in below:
        raise InputError(f"{path}: extends: the profile extends itself")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _NoRepeats) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected YAML, found: {_one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected sections with settings, found {content!r}")
    own = dict(content)
    parent = own.pop("extends", None)
    layer = _checked(Profile, own, str(path), "")
    if parent is None:
        return [layer]
    above = _profile_path(str(parent), path.parent)
    return [*_file_layers(above, (*below, path.resolve())), layer]


def _pairs(overrides: Mapping[str, str] | Iterable[str]) -> list[tuple[str, str]]:
    if isinstance(overrides, Mapping):
        return [(str(key), str(value)) for key, value in overrides.items()]
    pairs = []
    for text in [overrides] if isinstance(overrides, str) else overrides:
        key, equals, value = str(text).partition("=")
        if not equals:
            raise InputError(f"override {text!r}: expected section.key=value")
        pairs.append((key.strip(), value))
    return pairs


def _override_layer(pair: tuple[str, str]) -> dict[str, Any]:
    key, text = pair
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override {key}: expected a value, found {text!r}") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return _checked(Profile, value, "override", "")


def _checked(cls: type, content: Any, where: str, key: str) -> dict[str, Any]:
    """`content` with every value converted to the type of `cls`'s field; nothing is filled in."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: {key}: expected a section with settings, found {content!r}")
    kinds = get_type_hints(cls, include_extras=True)
    if not key:
        kinds.pop("name", None)
    checked = {}
    inside = f"{key}." if key else ""
    for name, value in content.items():
        full = f"{inside}{name}"
        if name not in kinds:
            known = [f"{inside}{kind}" for kind in kinds]
            raise InputError(f"{where}: unknown key {full!r}{closest(full, known)}")
        if dataclasses.is_dataclass(kinds[name]):
            checked[name] = _checked(kinds[name], value, where, full)
        else:
            checked[name] = _converted(value, kinds[name], f"{where}: {full}")
    return checked


def _converted(value: Any, kind: Any, where: str) -> Any:
    """`value` as an instance of the annotation `kind`. Raises InputError starting with `where`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_range(_converted(value, arguments[0], where), arguments[1], where)
    if origin in (Union, types.UnionType):  # X | None
        if value is None:
            return None
        return _converted(value, next(a for a in arguments if a is not type(None)), where)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where}: found {value!r}{closest(str(value), map(str, arguments))}")
        return value
    if origin is tuple:
        return _as_tuple(value, arguments, where)
    return _scalar(value, kind, where)


def _as_tuple(value: Any, kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}: expected a list, found {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise InputError(f"{where}: expected a list of {len(kinds)}, found {value!r}")
    pairs = zip(value, kinds, strict=True)
    return tuple(_converted(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(pairs))


def _scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML reads 5e-3, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{where}: expected a number, found {value!r}") from None
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise InputError(f"{where}: expected {names[kind]}, found {value!r}")


def _in_range(value: Any, limits: Between, where: str) -> Any:
    if limits.low is not None and value < limits.low:
        raise InputError(f"{where}: expected at least {limits.low}, found {value!r}")
    if limits.high is not None and value > limits.high:
        raise InputError(f"{where}: expected at most {limits.high}, found {value!r}")
    return value


def _in_order(name: str, bounds: tuple[int, int]) -> None:
    if bounds[0] > bounds[1]:
        raise InputError(f"{name}: expected the smaller number first, found {list(bounds)}")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = isinstance(value, Mapping)
        merged[key] = _merged(merged.get(key, {}), value) if inner else value
    return merged


def _built(cls: type, settings: Mapping[str, Any]) -> Any:
    kinds = get_type_hints(cls)
    values = {k: _built(kinds[k], v) if isinstance(v, Mapping) else v for k, v in settings.items()}
    return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
