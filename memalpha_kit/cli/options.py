"""Options that several commands share, and options made from the fields of a settings class."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import types
from collections.abc import Callable
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from typer import Option
from typer.core import TyperCommand

from memalpha_kit.errors import InputError
from memalpha_kit.sections import about
from memalpha_kit.settings import Profile, load_profile, profile_names

if TYPE_CHECKING:
    from memalpha_kit.chats import ChatModel
    from memalpha_kit.method.retrieval import Embed
    from memalpha_kit.method.writers import Writer
    from memalpha_kit.models.chat import Client
    from memalpha_kit.models.local import CausalLM

ProfileName = Annotated[str, Option("--profile", metavar="NAME", help="{profiles}, or a YAML file")]
Overrides = Annotated[
    list[str],
    Option("--set", metavar="KEY=VALUE", help="a setting, e.g. grpo.steps=10; may be repeated"),
]
Folder = Annotated[Path, Option(metavar="FOLDER", help="what is written")]
NONE: Any = ()  # of an option that may be repeated: typer knows only lists
LARGEST_SEED = 2**32 - 1  # what numpy and torch both take
Seed = Annotated[int, Option(metavar="N", min=0, max=LARGEST_SEED, help="starts every draw")]
FirstN = Annotated[int | None, Option(metavar="N", min=1, help="only the first N")]
Compat = Annotated[
    Literal["fixed", "release"], Option(help="release: as the published code, where it can be")
]
DataPath = Annotated[Path, Option(metavar="PATH", help="a data set, or a parquet file")]
Scoring = Annotated[str, Option("--profile", metavar="NAME", help="scoring rules: {scoring}")]


# ---- help -------------------------------------------------------------------------------------


def _names(table: str) -> str:
    """The names that a word in braces stands for in a help text."""
    from memalpha_kit import tasks
    from memalpha_kit.data import build, sources
    from memalpha_kit.evaluation import methods
    from memalpha_kit.method import readers, writers
    from memalpha_kit.models.get import MODELS

    if table == "files":
        every: list[Any] = [sources.SOURCES[name] for name in sources.SOURCES.names()]
        hubs = [f"; on the hub: {one.hub[0]}" if one.hub else "" for one in every]
        lines = zip(every, hubs, strict=True)
        return "\n".join(f"{one.name}: {', '.join(one.files)}{hub}" for one, hub in lines)
    tables = {
        "profiles": profile_names,
        "scoring": tasks.SCORING.names,
        "sources": sources.SOURCES.names,
        "recipes": build.RECIPES.keys,
        "pretrained": MODELS.keys,
        "methods": methods.METHODS.names,
        "readers": readers.READERS.names,
        "rule_readers": lambda: filterfalse(readers.needs_model, readers.READERS.names()),
        "writers": writers.WRITERS.names,
    }
    return ", ".join(tables[table]())


class Documented(TyperCommand):
    """A command whose help names what can be chosen; it is looked up when help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fills in `{methods}` and the like."""
        names = _Names()
        options: list[Any] = self.params
        for option in options:
            if getattr(option, "help", None):
                option.help = option.help.format_map(names)
        self.epilog = self.epilog and self.epilog.format_map(names)
        super().format_help(ctx, formatter)


class _Names(dict):
    def __missing__(self, table: str) -> str:
        return _names(table)


# ---- options from fields ----------------------------------------------------------------------


def with_fields(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The command with an option per field in place of each parameter that is a settings class.

    `config: BuildConfig` becomes `--counter`, `--workers` and so on; `writer: Annotated[Served,
    "writer_"]` becomes `--writer-url` and so on. The function gets the object.
    """
    given: list[inspect.Parameter] = []
    made: dict[str, tuple[Any, str]] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind: Any = parameter.annotation
        kind, *extra = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        if not dataclasses.is_dataclass(kind):
            given.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        prefix = extra[0] if extra else ""
        made[parameter.name] = (kind, prefix)
        given += [_option(field, kind, prefix) for field in dataclasses.fields(kind)]

    @functools.wraps(function)
    def command(**values: Any) -> int | None:
        for name, (kind, prefix) in made.items():
            names = [field.name for field in dataclasses.fields(kind)]
            values[name] = kind(**{name: values.pop(prefix + name) for name in names})
        return function(**values)

    command.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]  # for typer
    command.__annotations__ = {one.name: one.annotation for one in given}
    return command


def _option(field: dataclasses.Field, owner: Any, prefix: str) -> inspect.Parameter:
    """One keyword-only parameter with the field's sentence, its words and its default."""
    kind: Any
    kind, words = get_type_hints(owner)[field.name], ""
    optional = get_origin(kind) in (Union, types.UnionType)
    if optional:
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        kind, words = str, f" ({', '.join(map(str, get_args(kind)))})"
    text = field.metadata.get("about", "") + words
    if prefix:  # asked only if it is named, by its address or its model
        text = f"{prefix[:-1]}: {text.replace('[default: ', '[default: the answering one, else ')}"
    name = prefix + field.name
    option = Option(f"--{name.replace('_', '-')}", help=text)
    annotation: Any = Annotated[kind | None if optional else kind, option]
    only = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, only, default=field.default, annotation=annotation)


# ---- local models, and models at servers ------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """A causal language model in a folder."""

    model: Path | None = about(None, "folder of a local model, instead of one at a server")
    device: str = about("cpu", "of local models, e.g. cuda")
    dtype: str = about("auto", "of local models: auto (as saved), float32, bfloat16, float16")

    def check(self, *folders: Path | None) -> None:
        """Raises InputError for an option that does nothing, as no local model is named.

        `folders` are those that other options than --model name.
        """
        for name, default in (("device", "cpu"), ("dtype", "auto")):
            if getattr(self, name) != default and not any((self.model, *folders)):
                raise InputError(f"--{name}: has no effect without a local model (--model FOLDER)")

    def lm(self, *writing: Any) -> CausalLM:
        """The model; `writing` are the memory and the protocol that it is to write under."""
        from memalpha_kit.models.folders import check_writer
        from memalpha_kit.models.local import load_lm

        assert self.model  # who calls this has looked
        if writing:
            check_writer(self.model, *writing)
        return load_lm(self.model, self.device, dtype=self.dtype)

    def chat(self) -> ChatModel:
        """The model as a chat model."""
        from memalpha_kit.models.local_chat import LocalChat

        return LocalChat(self.lm())


@dataclass(frozen=True)
class Served:
    """A model at an OpenAI-compatible server."""

    url: str | None = about(None, "an OpenAI-compatible server [default: QWEN_URL]")
    model_name: str | None = about(None, "the model there [default: QWEN_MODEL_NAME]")
    key_env: str | None = about(None, "variable that holds the key; by address if not given")


@dataclass(frozen=True)
class Priced(Served):
    """One whose tokens a run counts."""

    price_in: float | None = about(None, "dollars per million tokens read")
    price_out: float | None = about(None, "dollars per million tokens written")

    @property
    def prices(self) -> dict[str, float | None]:
        """Both prices by name."""
        return {"price_in": self.price_in, "price_out": self.price_out}


@dataclass(frozen=True)
class Asking:
    """How servers are asked; none of it changes an answer."""

    concurrency: int = about(32, "requests to a server at the same time")
    timeout: float = about(120.0, "seconds that a request may take")
    retries: int = about(6, "times that a failed request is sent again")
    give_up: int = about(8, "failed requests in a row after which a server counts as gone")
    cache: Path | None = about(None, "folder of replies by content, shared by commands")

    def fields(self, cache: Path | None = None) -> dict[str, Any]:
        """As fields of an endpoint; `cache` is used where no folder is named."""
        values = vars(self) | {"cache": self.cache or cache}
        return {"timeout_s": values.pop("timeout"), **values}


def client_of(
    served: Served,
    asking: Asking,
    role: str = "",
    base: Served | None = None,
    cache: Path | None = None,
) -> Client | None:
    """The client of a role, None if neither an option nor, for answering, QWEN_URL names one.

    Other roles use the address of `base`, the answering model, where they name only a model, and
    the other way round. Raises InputError that says what is missing.
    """
    from memalpha_kit.models.chat import Client
    from memalpha_kit.models.servers import endpoint_from_env

    said = dict(vars(served))
    if not (served.url or served.model_name or (not role and os.environ.get("QWEN_URL"))):
        spare = next((name for name, value in said.items() if value is not None), "")
        if role and spare:
            option = f"--{role}-{spare.replace('_', '-')}"
            raise InputError(f"{option}: expected --{role}-model-name too")
        return None
    if base and not said["url"]:
        said |= {"url": base.url, "key_env": said["key_env"] or base.key_env}
    where = {"url": said["url"], "key_env": said["key_env"]}
    where["option"] = f"--{role}-" if role else "--"
    model = said["model_name"] or (base.model_name if base else None)
    return Client(endpoint_from_env(model=model, **where, **asking.fields(cache)))


def answering(served: Served, asking: Asking, local: Local) -> ChatModel | None:
    """A local model, a served one, or none where nothing names one. Raises InputError for both."""
    if local.model is None:
        return client_of(served, asking)
    if served.url or served.model_name:
        raise InputError("--model: expected a local folder or --url with --model-name, found both")
    return local.chat()


def writer_of(
    command: str, rule: str | None, local: Local, heat: float, profile: str, overrides: list[str]
) -> tuple[Writer, Profile]:
    """The writer of `--writer` or `--model`, and its profile. InputError for both and for none."""
    from memalpha_kit.method import writers
    from memalpha_kit.method.model_writers import ModelWriter
    from memalpha_kit.models.local import Sampling
    from memalpha_kit.training.trained import adapter_file, load_trained

    if (rule is None) == (local.model is None):
        raise InputError(f"{command}: expected one of --writer and --model")
    local.check()
    adapter, how = adapter_file(local.model), (local.device, local.dtype)
    loaded = load_profile(str(local.model) if adapter else profile, overrides)
    if rule:
        if heat:
            raise InputError(f"--temperature: has no effect with the rule --writer {rule}")
        return writers.writer(rule, loaded.protocol.wire), loaded
    rules = (loaded.memory, loaded.protocol)
    sampling = Sampling(temperature=heat, max_new_tokens=loaded.protocol.max_reply_tokens)
    lm = load_trained(adapter, loaded, *how) if adapter else local.lm(*rules)
    return ModelWriter(lm, *rules, sampling), loaded


def embedding(
    served: Served, asking: Asking, base: Served, folder: Path | None, local: Local
) -> Embed | None:
    """What turns texts into vectors: a local model, a served one, or None where none is named."""
    client = client_of(served, asking, "embed", base)
    if folder is None:
        return client.embed if client else None
    if client:
        raise InputError("--embed-model: expected a local folder or --embed-url, found both")
    from memalpha_kit.models.embedder import load_embedder

    return load_embedder(folder, local.device, local.dtype).embed
