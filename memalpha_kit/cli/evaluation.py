"""Commands from memories to tables: ask, evaluate, score, report, calibrate."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from typer import Argument, Option

from memalpha_kit import files
from memalpha_kit.cli.options import (
    NONE,
    Asking,
    DataPath,
    Local,
    Priced,
    Scoring,
    Seed,
    Served,
    answering,
    client_of,
    embedding,
    with_fields,
)
from memalpha_kit.errors import InputError
from memalpha_kit.progress import bar
from memalpha_kit.sections import Count, NonNegative, about, read_yaml, section

if TYPE_CHECKING:
    from memalpha_kit.evaluation.runs import Run
    from memalpha_kit.records import Instance

MethodSettings = Annotated[
    list[str],
    Option("--set", metavar="KEY=VALUE", help="a setting of the method, e.g. top_k=2; repeatable"),
]
Rubric = Literal["published", "by_type"]
EVERY_RUBRIC: list[Any] = list(get_args(Rubric))


@dataclass(frozen=True)
class How:
    """How a run is answered and scored, beside its method."""

    reader: str | None = about(None, "who answers from a memory: {readers}")
    embed_model: Path | None = about(None, "folder of a model that embeds, not --embed-url")
    profile: str = about("fixed", "scoring rules: {scoring}")
    rubric: Rubric = about("published", "of the judge")
    moved: bool = about(False, "other addresses, but the models the run was begun with")


@section
class Calibrating:
    """How a judge is measured."""

    judge: Literal["model", "rules"] = about("model", "who judges")
    replies: Path | None = about(None, "JSONL file for every verdict")
    cases: Path | None = about(None, "JSONL file of labelled cases [default: the kit's]")
    repeats: Count = about(3, "times that each case is judged")
    behaviour: str = about("fixed", "fixed, or release: as published")
    temperature: NonNegative | None = about(None, "[default: each judge's own]")
    max_tokens: Count | None = about(None, "[default: each judge's own]")
    thinking: bool = about(False, "let the model reason first")


@with_fields
def ask(
    data: DataPath,
    episodes: Annotated[Path, Option(metavar="FILE.jsonl", help="episodes of `memalpha write`")],
    out: Annotated[Path, Option(metavar="FOLDER", help="the run")],
    answer: Priced,
    judge: Annotated[Priced, "judge_"],
    embed: Annotated[Served, "embed_"],
    local: Local,
    asking: Asking,
    how: How,
    options: MethodSettings = NONE,
) -> int:
    """A reader answers the questions about episodes that were written before.

    The answers are a run like those of `memalpha evaluate`: scored, resumable, and read by
    `memalpha score` and `memalpha report`.
    """
    from memalpha_kit.data.dataset import load_data
    from memalpha_kit.evaluation.memories import asked_instances
    from memalpha_kit.method.saved import check_written

    method = _settings(options, episodes=str(episodes), reader=how.reader)
    check_written(episodes)
    asked, wrote = asked_instances(episodes, load_data(data))
    servers = {"answer": answer, "write": Priced(), "judge": judge}
    return _evaluate(
        *("memory", method, data, asked, out.parent, out.name, servers, embed),
        *(asking, local, how, (), wrote),
    )


@with_fields
def evaluate(
    method: Annotated[str, Option(metavar="NAME", help="{methods}")],
    data: DataPath,
    answer: Priced,
    write: Annotated[Priced, "writer_"],
    judge: Annotated[Priced, "judge_"],
    embed: Annotated[Served, "embed_"],
    local: Local,
    asking: Asking,
    how: How,
    source: Annotated[
        list[str], Option(metavar="NAME", help="only instances of this source; may be repeated")
    ] = NONE,
    limit: Annotated[int | None, Option(metavar="N", min=1, help="of each source, drawn")] = None,
    seed: Seed = 0,
    options: MethodSettings = NONE,
    writer: Annotated[
        str | None, Option(metavar="NAME", help="--set writer=NAME: a rule, api, or a folder")
    ] = None,
    out: Annotated[Path, Option(metavar="FOLDER", help="where runs lie")] = Path("runs/evaluate"),
    name: Annotated[
        str | None, Option(help="of the run [default: method, data, hash of the settings]")
    ] = None,
) -> int:
    """A method answers a data set's questions: answers, scores and a table.

    The same command again goes on where it stopped: what was answered stays, what failed is asked
    again. Exit code 0: every question has an answer and, from a judge that is asked, a verdict; 1:
    some have none, and the table says how many; 2: it could not be done, e.g. no model answers, and
    what was answered before is kept.
    """
    from memalpha_kit.data.dataset import load_data
    from memalpha_kit.evaluation import runs

    settings = _settings(options, writer=writer, reader=how.reader)
    every = load_data(data)
    asked = runs.select(every, limit, seed, list(source))
    servers = {"answer": answer, "write": write, "judge": judge}
    return _evaluate(
        *(method, settings, data, asked, out, name, servers, embed),
        *(asking, local, how, tuple(one.id for one in every)),
    )


def _evaluate(
    method: str,
    options: dict[str, Any],
    data: Path,
    instances: list[Instance],
    out: Path,
    name: str | None,
    servers: dict[str, Priced],
    embed: Served,
    asking: Asking,
    local: Local,
    how: How,
    rows: tuple[str, ...] = (),
    wrote: str = "",
) -> int:
    """The exit code after the method has answered all that it can."""
    from memalpha_kit.evaluation import methods, runs
    from memalpha_kit.tasks import SCORING
    from memalpha_kit.training.trained import adapter_file

    SCORING[how.profile]  # what is wrong with the scoring is said before any work
    said = {**methods.METHODS[method].defaults, **options}
    writer = Path(str(said.get("writer")))
    if adapter_file(writer):
        ways = (
            f"`memalpha write --model {writer}` writes under its own profile, `memalpha ask` asks"
        )
        raise InputError(f"--writer: expected a name or a model's folder, found {writer}; {ways}")
    local.check(how.embed_model, writer if (writer / "config.json").is_file() else None)
    base = servers["answer"]
    client_of(servers["judge"], asking, "judge", base)
    backends = methods.Backends(
        answer=answering(base, asking, local),
        write=client_of(servers["write"], asking, "writer", base),
        embed=embedding(embed, asking, base, how.embed_model, local),
        device=local.device,
        dtype=local.dtype,
        rows=rows,
    )
    if backends.embed and said.get("retrieval", "bm25") == "bm25":
        raise InputError("a model that embeds: has no effect without --set retrieval=embedding")
    spec = methods.MethodSpec(method, options)
    asked = methods.build_method(spec, backends).backends
    if backends.write and not asked.write:
        beside = f"beside --writer {writer}" if said.get("writer") else f"with method {method}"
        raise InputError(f"a writer at a server: has no effect {beside}")
    if local.model and not asked.answer:
        raise InputError(f"--model: has no effect, for method {method} asks no model here")
    info = methods.provenance(spec, asked, data, {k: v.prices for k, v in servers.items()}, wrote)
    place = data.resolve()
    stem = place.parent.name if place.stem in ("test", "train") else place.stem
    run, made = runs.begin(spec, backends, instances, out, stem, name, info, how.moved)
    run = runs.answer(run, made, instances)
    return _finish(run, how.profile, how.rubric, servers["judge"], base, asking)


def _finish(
    run: Run, profile: str, rubric: Rubric, judge: Priced, base: Served | None, asking: Asking
) -> int:
    """Scores a run, prints its table; 1 and a line if questions have no answer or no verdict."""
    from memalpha_kit.evaluation import scores, tables

    model = client_of(judge, asking, "judge", base, run.folder / "judged")
    scores.score(run, profile, rubric, model, judge.prices)
    table, warnings, complete = tables.summary(run, profile)
    print(table)
    print(run.folder)
    for warning in warnings:
        print(f"memalpha: {warning}", file=sys.stderr)
    return int(not complete)


@with_fields
def score(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="folders of runs")],
    judge: Annotated[Priced, "judge_"],
    asking: Asking,
    profile: Scoring = "fixed",
    rubric: Annotated[Rubric, Option(help="of the judge")] = "published",
) -> int:
    """Score finished runs again. No answering model is called.

    A judge is asked only if --judge-url or --judge-model-name names one; what it said before is
    kept with the run and not asked twice.
    """
    from memalpha_kit.evaluation.runs import load_run

    return max([_finish(load_run(one), profile, rubric, judge, None, asking) for one in runs])


def report(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="the first is the base")],
    profile: Scoring = "fixed",
    paper: Annotated[
        str | None, Option(metavar="TABLE", help="table1, table2, table3, table4, table9")
    ] = None,
    out: Annotated[Path | None, Option(metavar="PATH", help="a folder, or a CSV file")] = None,
    pareto: Annotated[
        Path | None, Option(metavar="FILE.png", help="score against tokens in memory, by source")
    ] = None,
    seed: Seed = 0,
    resamples: Annotated[int, Option(metavar="N", min=1, help="of the bootstrap")] = 2000,
) -> None:
    """Runs side by side, with floors, intervals, paired tests and the paper's numbers."""
    from memalpha_kit.evaluation import tables
    from memalpha_kit.evaluation.paper import beside_the_paper
    from memalpha_kit.evaluation.runs import load_run

    bootstrap = tables.Bootstrap(seed, resamples)
    found = tables.labelled([load_run(folder, memories=False) for folder in runs])
    made = tables.report(found, profile, bootstrap)
    if paper:
        made["table_paper"] = beside_the_paper(found, paper, bootstrap)
    text = tables.page(found, profile, made)
    print(text)
    if out:
        tables.save_report(made, text, out)
        print(out)
    if pareto:
        from memalpha_kit.figures.memories import plot_fronts
        from memalpha_kit.figures.style import save_figure

        print(save_figure(plot_fronts(made["table_sources"]), pareto))


@with_fields
def calibrate(
    out: Annotated[Path, Option(metavar="FILE.csv", help="the table")],
    served: Served,
    local: Local,
    asking: Asking,
    how: Calibrating,
    seed: Seed = 0,
    rubric: Annotated[
        list[str], Option(metavar="NAME...", help="of LongMemEval's cases: published, by_type")
    ] = EVERY_RUBRIC,
) -> int:
    """A judge over labelled cases, to a table of agreement and variance.

    Exit code 1: no reply could be read, so there is nothing to say about the judge.
    """
    from memalpha_kit.evaluation import calibration
    from memalpha_kit.evaluation.writing import WatchedChat

    local.check()
    held = calibration.load_cases(how.cases or calibration.CASES)
    judges: dict[str, calibration.Judgement] = {"": calibration.rule_judge}
    name = "rules"
    shown = bar(0, "judge")
    plain = Calibrating("rules", how.replies, how.cases, how.repeats)
    if how.judge == "rules" and (any((local.model, served.url, served.model_name)) or how != plain):
        raise InputError("--judge rules: expected no model and no setting of one")
    if how.judge == "model":
        asked = answering(served, asking, local)
        if asked is None:
            raise InputError(
                "the judge: expected --url and --model-name, QWEN_URL, --model or --judge rules, "
                "found none of them"
            )
        for wrong in set(rubric) - set(EVERY_RUBRIC):
            raise InputError(f"--rubric: expected published or by_type, found {wrong!r}")
        name, metered = asked.name, WatchedChat(asked, shown=shown)
        manner = {"behaviour": how.behaviour, "temperature": how.temperature}
        manner |= {"thinking": how.thinking, "max_tokens": how.max_tokens}
        judges = {
            one: calibration.model_judge(metered, cast(Rubric, one), **manner) for one in rubric
        }
        again = sum(case.judge == "longmemeval" for case in held) * (len(judges) - 1)
        shown.total = how.repeats * (len(held) + again)
    with shown:
        table, said = calibration.measured(judges, name, held, how.repeats, seed)
    files.save_table(out, table)
    if how.replies:
        files.write_bytes(how.replies, b"".join(map(files.json_line, said.to_dict("records"))))
    print(calibration.as_text(table))
    print(out)
    if table["missing"].sum() == (table["n"] * table["repeats"]).sum():
        none = "the judge gave no verdict at all; --replies FILE.jsonl keeps what it said"
        print(f"memalpha: {none}", file=sys.stderr)
        return 1
    return 0


def _settings(texts: list[str], **chosen: Any) -> dict[str, Any]:
    """The method's settings: `KEY=VALUE`, whose values are YAML, and what other options chose."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected KEY=VALUE, found {text!r}")
        options[key.strip()] = read_yaml(value, f"--set {key}")
    return options | {key: value for key, value in chosen.items() if value is not None}
