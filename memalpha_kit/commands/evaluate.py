"""`memalpha evaluate`: a method answers a data set's questions; answers, scores and a table.

The same command again goes on where it stopped: what was answered stays, what failed is asked
again. Exit code 0: every question has an answer and, from a judge that is asked, a verdict; 1: some
have none, and the table says how many; 2: it could not be done, e.g. no model answers, and what was
answered before is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from memalpha_kit.commands.endpoints import (
    add_endpoint_arguments,
    add_request_arguments,
    client_of,
)
from memalpha_kit.commands.files import load_data
from memalpha_kit.errors import InputError
from memalpha_kit.tasks import SCORING

if TYPE_CHECKING:
    from memalpha_kit.evaluation.methods import Backends, Method, MethodSpec
    from memalpha_kit.evaluation.runs import Run
    from memalpha_kit.records import ChatModel, Instance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha evaluate`."""
    from memalpha_kit.evaluation.base import METHODS

    parser.add_argument("--method", required=True, metavar="NAME", help=", ".join(METHODS.names()))
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME",
        help="only instances of this source; may be repeated",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="instances of each source, drawn")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default: 0)")
    parser.add_argument("--writer", metavar="NAME", help="--set writer=NAME: a rule, api, a folder")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/evaluate"), metavar="FOLDER",
        help="where runs lie (default: runs/evaluate)",
    )  # fmt: skip
    parser.add_argument(
        "--name", metavar="NAME", help="of the run (default: method, data, hash of the settings)"
    )
    add_run_arguments(parser)
    add_endpoint_arguments(parser, "writer", "writes memories, if it is another one")
    parser.set_defaults(written_by="")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `evaluate` and `ask` have in common."""
    parser.add_argument(
        "--data", required=True, type=Path, metavar="PATH", help="a data set, or a parquet file"
    )
    parser.add_argument("--reader", metavar="NAME", help="--set reader=NAME")
    parser.add_argument(
        "--set", dest="options", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the method, e.g. top_k=2; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a local model that answers, instead of --url"
    )
    parser.add_argument("--device", default="cpu", help="of local models (default: cpu)")
    parser.add_argument(
        "--profile", default="fixed", metavar="NAME", help=", ".join(SCORING.names())
    )
    parser.add_argument(
        "--rubric", default="published", choices=("published", "by_type"), help="of the judge"
    )
    parser.add_argument(
        "--moved", action="store_true",
        help="the models at the new addresses are the ones that the run was begun with",
    )  # fmt: skip
    add_endpoint_arguments(parser, "", "answers")
    add_endpoint_arguments(parser, "judge", "judges answers, where a source needs one")
    add_endpoint_arguments(parser, "embed", "embeds, for the retrieval that needs it")
    add_request_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Answers, scores, prints the table. 1 if questions are left without an answer."""
    from memalpha_kit.evaluation import runs

    check(args)
    every = load_data([args.data])
    instances = runs.select(every, args.limit, args.seed, args.source)
    return evaluate(args, instances, [instance.id for instance in every])


def check(args: argparse.Namespace) -> None:
    """What is wrong with the scoring is said before any work."""
    SCORING[args.profile]
    client_of(args, "judge")


def evaluate(args: argparse.Namespace, instances: Sequence[Instance], rows: Sequence[str]) -> int:
    """The exit code after the method has answered all that it can."""
    from memalpha_kit.evaluation import runs

    backends = _backends(args, rows)
    run, method = runs.begin(
        _spec(args), backends, instances, args.out, _stem(args.data), args.name,
        _info(args, backends), args.moved,
    )  # fmt: skip
    return finish(_answer(run, method, instances), args)


def finish(run: Run, args: argparse.Namespace) -> int:
    """Scores a run, prints its table; 1 and a line if questions have no answer or no verdict."""
    from memalpha_kit.evaluation import scores, tables
    from memalpha_kit.evaluation.report import SHOWN

    score(run, args)
    table = tables.table_sources(
        *scores.frames({run.settings["method"]["method"]: run}, args.profile)
    )
    print(tables.markdown(table[list(SHOWN)]))
    print(run.folder)
    if warning := scores.silent_writer(run):
        print(f"memalpha: {warning}", file=sys.stderr)
    if not run.complete:
        print(f"memalpha: incomplete: {run.why_open()}", file=sys.stderr)
        return 1
    rows = scores.scores_of(run, args.profile)
    if failed := sum(row["status"] == "judge_error" for row in rows):
        print(
            f"memalpha: {failed} of {len(rows)} answers have no verdict of the judge and are in no "
            "mean, see if_all_0 and if_all_1; `memalpha score` with the judge asks again",
            file=sys.stderr,
        )
    return min(failed, 1)


def score(run: Run, args: argparse.Namespace) -> None:
    """Scores a run under the profile, with the judge that the options name, if any."""
    from memalpha_kit.evaluation import scores
    from memalpha_kit.method.judges import LongMemEvalJudge

    model = client_of(args, "judge", cache=run.folder / "judged")
    if model is None:
        if not scores.judge_of(run, args.profile):
            scores.score_run(run, args.profile)
        scores.scores_of(run, args.profile)  # keeps a judge's scores, says if they are too old
        return
    behaviour = "release" if args.profile.startswith("release") else "fixed"
    prices = {"price_in": args.judge_price_in, "price_out": args.judge_price_out}
    name = f"{model.name}, rubric {args.rubric}"

    def make(model: ChatModel) -> LongMemEvalJudge:
        return LongMemEvalJudge(model, behaviour, rubric=args.rubric)

    scores.judged(run, args.profile, model, make, name, prices)


def _backends(args: argparse.Namespace, rows: Sequence[str]) -> Backends:
    from memalpha_kit.evaluation.methods import Backends

    embedding = client_of(args, "embed")
    return Backends(
        answer=_answering(args),
        write=client_of(args, "writer"),
        embed=embedding.embed if embedding else None,
        device=args.device,
        rows=tuple(rows),
    )


def _answering(args: argparse.Namespace) -> ChatModel | None:
    """A local model, a served one, or none where nothing names one."""
    if args.model is None:
        return client_of(args)
    if args.url or args.model_name:
        raise InputError("--model: expected a local folder or --url with --model-name, found both")
    from memalpha_kit.models.local import load_lm
    from memalpha_kit.models.local_chat import LocalChat

    return LocalChat(load_lm(args.model, args.device))


def _spec(args: argparse.Namespace) -> MethodSpec:
    from memalpha_kit.evaluation.methods import MethodSpec

    options: dict[str, Any] = {}
    for text in args.options:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected KEY=VALUE, found {text!r}")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {key}: expected a value, found {value!r}") from error
    named = {"writer": args.writer, "reader": args.reader}
    options |= {key: value for key, value in named.items() if value is not None}
    return MethodSpec(args.method, options)


def _stem(path: Path) -> str:
    """The data's own name: a file without ending, or a folder."""
    name = path.resolve().stem
    return path.resolve().parent.name if name in ("test", "train") else name


def _info(args: argparse.Namespace, backends: Backends) -> dict[str, Any]:
    """What changes no answer but belongs to the run: where the data is, who writes, prices."""
    from memalpha_kit.evaluation.base import METHODS

    roles = {"answer": (backends.answer, ""), "write": (backends.write, "writer_")}
    models = {
        role: {"model": model.name}
        | {name: getattr(args, prefix + name) for name in ("price_in", "price_out")}
        for role, (model, prefix) in roles.items()
        if model
    }
    spec = _spec(args)
    writer = {**METHODS[spec.method].defaults, **spec.options}.get("writer") or args.written_by
    if writer == "api":
        writer = (backends.write or backends.answer).name if backends.answer else ""
    elif writer:
        models["write"] = {"model": writer}  # not at the price of the answering model
    return {"data": str(args.data), "writer": writer, **models}


def _answer(run: Run, method: Method, instances: Sequence[Instance]) -> Run:
    """The run after all open questions were asked. Raises ModelGone, saying what is kept."""
    from memalpha_kit.errors import ModelGone
    from memalpha_kit.evaluation import runs
    from memalpha_kit.progress import bar

    left = {instance for instance, _ in run.open}
    work = len(left - run.prepared.keys()) + len(run.open)
    if not work:
        return run
    try:
        with bar(work, f"evaluate {method.name}") as shown:
            return runs.complete(run, method, instances, shown.advance)
    except ModelGone as error:
        kept = runs.load_run(run.folder)
        done = f"{len(kept.answers)} of {len(kept.questions)} answers are in {run.folder}"
        raise ModelGone(f"{error}; {done}") from error
