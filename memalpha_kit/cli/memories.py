"""Commands that look at what memories are worth: credit, lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from memalpha_kit import files
from memalpha_kit.cli.options import (
    NONE,
    Asking,
    DataPath,
    FirstN,
    Local,
    Overrides,
    ProfileName,
    Seed,
    Served,
    answering,
    with_fields,
    writer_of,
)
from memalpha_kit.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

LENGTHS = [1, 2, 4, 8, 13]


@with_fields
def credit(
    episodes: Annotated[Path, Argument(metavar="EPISODES", help="a file of `memalpha write`")],
    data: DataPath,
    answer: Served,
    local: Local,
    asking: Asking,
    reader: Annotated[
        str, Option(metavar="NAME", help="who answers from a memory: {readers}")
    ] = "by_source",
    readings: Annotated[
        int,
        Option(metavar="N", min=1, help="answers per memory; beyond them questions are sampled"),
    ] = 100_000,
    limit: FirstN = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, Option(metavar="FOLDER", help="entries.csv, calls.csv, a figure per episode")
    ] = None,
) -> None:
    """How much each entry of a memory, and each call, matters to the answers.

    The credit of an entry is what the mean score loses when it is left out; that of a call is the
    sum over the entries whose final text it wrote. Where a memory takes more than --readings
    answers, questions are sampled, and low and high are an interval for its credit.
    """
    import pandas as pd

    from memalpha_kit.data.dataset import load_data
    from memalpha_kit.figures.memories import plot_credit
    from memalpha_kit.figures.style import save_figure
    from memalpha_kit.method import credit as credits
    from memalpha_kit.method.readers import needs_model
    from memalpha_kit.method.readers import reader as named
    from memalpha_kit.method.saved import load_episodes

    local.check()
    asked = {instance.id: instance.questions for instance in load_data(data)}
    model = answering(answer, asking, local) if needs_model(reader) else None
    if local.model and not model:
        raise InputError(f"--model: has no effect with the rule --reader {reader}")
    by, entries, calls = named(reader, model), [], []
    for number, episode in enumerate(load_episodes(episodes)[:limit]):
        if episode.instance not in asked:
            raise InputError(f"episode {episode.id}: its instance is not in the data")
        table = credits.credits(episode, asked[episode.instance], by, readings=readings, seed=seed)
        entries.append(table.assign(episode=episode.id))
        calls.append(credits.call_credits(episode, table).assign(episode=episode.id))
        print(f"{episode.id}: {_needless(table)}")
        if out:
            title = f"{episode.id}: credit of {len(table)} entries"
            save_figure(plot_credit(table, title), out / f"credit_{number:03d}.png")
    if out:
        for name, parts, ids in (("entries", entries, "needed_by"), ("calls", calls, "entries")):
            table = pd.concat(parts, ignore_index=True)
            files.save_table(out / f"{name}.csv", table.assign(**{ids: table[ids].map(" ".join)}))
        print(out)


def _needless(table: pd.DataFrame) -> str:
    """How many entries no question needs, and which; and how many nobody knows about."""
    idle = table["needed_by"].map(len).eq(0) & table["credit"].eq(0)
    ids = ", ".join(table.loc[idle, "id"][:20]) + (", ..." if idle.sum() > 20 else "")
    asked_again = "" if table["low"].equals(table["high"]) else " of those asked again"
    told = f"no question{asked_again} needs {idle.sum()} of {len(table)} entries: {ids}"
    unknown = table["credit"].isna().sum()
    more = f"\nentries that no question was scored with and without: {unknown}"
    return told + more * bool(unknown)


@with_fields
def lengths(
    data: DataPath,
    out: Annotated[Path, Option(metavar="FOLDER", help="rows.csv, table.csv and a figure")],
    local: Local,
    writer: Annotated[str | None, Option(metavar="NAME", help="a rule: {writers}")] = None,
    reader: Annotated[str, Option(metavar="NAME", help="a rule: {rule_readers}")] = "by_source",
    lengths: Annotated[
        list[int], Option("--lengths", metavar="N...", help="multiples of an instance's chunks")
    ] = LENGTHS,
    limit: Annotated[int, Option(min=1, help="instances, the first of the data")] = 20,
    seed: Seed = 0,
    temperature: Annotated[float, Option(help="of --model; 0 is greedy")] = 0.0,
    profile: ProfileName = "real",
    overrides: Overrides = NONE,
) -> None:
    """The same questions in longer and longer inputs: score, memory, prompts and seconds.

    Each length holds the chunks of the shorter ones and more of other instances, which cannot
    answer the questions. What is finished is kept in the folder and not measured again.
    """
    from memalpha_kit.data.dataset import data_files, load_data
    from memalpha_kit.data.haystacks import nested
    from memalpha_kit.evaluation.lengths import measure, table_haystacks
    from memalpha_kit.evaluation.methods import identity
    from memalpha_kit.evaluation.tables import markdown
    from memalpha_kit.figures.memories import plot_haystacks
    from memalpha_kit.figures.style import save_figure
    from memalpha_kit.method.readers import reader as named

    by, loaded = writer_of("lengths", writer, local, temperature, profile, overrides)
    settings = {
        "data_sha256": files.fingerprint(data_files(data)),
        **{"writer": identity(by), "reader": reader},
        **{"limit": limit, "seed": seed, "temperature": temperature},
        **({} if writer or local.dtype == "auto" else {"dtype": local.dtype}),
        "memory": dataclasses.asdict(loaded.memory),
        "protocol": dataclasses.asdict(loaded.protocol),
    }
    haystacks = nested(load_data(data), sorted({1, *lengths}), seed, limit)
    rules = (loaded.memory, loaded.protocol)
    rows = measure(haystacks, by, named(reader), rules, seed, out, settings, lengths)
    table = table_haystacks(rows, seed)
    files.save_table(out / "rows.csv", rows)
    files.save_table(out / "table.csv", table)
    print(markdown(table))
    print(save_figure(plot_haystacks(table), out / "lengths.png"))
