"""Evaluation runs on disk: answers are appended as they come, scores are made from them.

A run that is killed anywhere and started again ends with the same answers as one that was not, none
twice and none lost. A question that failed is not an answer, is never scored 0 and is asked again.
A folder holds one run, and other settings are refused.

    runs/evaluate/bm25-memalpha-1a2b3c4d/
        settings.json    what the answers depend on; under `info` what changes none, e.g. prices
        questions.jsonl  what is asked: instance, question, accepted answers
        answers.jsonl    one line per instance that is prepared and per question that is answered
        failures.jsonl   what failed and why, and what was paid for it
        scores/          one file per profile, made by `score`, safe to delete
        journal/         replies of a memory that is being written

A line of `answers.jsonl` is on disk before its question is counted, and the last one may be
torn by a kill: it is dropped when the run is opened again, and its question is asked again.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from memalpha_kit import __version__, files
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.evaluation.methods import Backends, Method, MethodSpec, Prepared, build_method
from memalpha_kit.evaluation.scoring import Item, questions_of
from memalpha_kit.evaluation.writing import address
from memalpha_kit.method import saved
from memalpha_kit.progress import bar
from memalpha_kit.records import Answer, Instance, Question

SETTINGS, QUESTIONS = "settings.json", "questions.jsonl"
ANSWERS, FAILURES = "answers.jsonl", "failures.jsonl"

WAIT_S = 1.0  # so much work of rules waits to be put on disk together; a model's never does
Key = tuple[str, str]
"""A question: the ids of its instance and of itself."""


@dataclass
class Run:
    """A run as it is on disk. `answers` are final ones only; `failed` are the last failures of
    questions that have none, `thrown` all failures, whatever came later."""

    folder: Path
    settings: Mapping[str, Any]
    questions: tuple[Item, ...]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    answers: dict[Key, Answer] = field(default_factory=dict)
    failed: dict[Key, Answer] = field(default_factory=dict)
    thrown: list[Answer | Prepared] = field(default_factory=list)
    made_by: dict[Key, str] = field(default_factory=dict)  # the model behind an answer, and where

    @property
    def key(self) -> str:
        """Eight characters that name exactly these settings."""
        return settings_key(self.settings)

    @property
    def info(self) -> Mapping[str, Any]:
        """What changes no answer: the data's path, who writes, prices."""
        return self.settings["info"]

    @property
    def open(self) -> list[Key]:
        """Questions without a final answer, in order."""
        return [item.key for item in self.questions if item.key not in self.answers]

    @property
    def skipped(self) -> list[str]:
        """Why questions cannot be asked by the method, one reason for each."""
        return [answer.skipped for answer in self.answers.values() if answer.skipped]

    @property
    def complete(self) -> bool:
        """Whether every question has a final answer."""
        return not self.open

    def add(self, record: Answer | Prepared, made_by: str = "") -> bool:
        """Puts a final record into its place; False if it is taken, for the first one counts."""
        if isinstance(record, Prepared):
            return self.prepared.setdefault(record.instance, record) is record
        key = (record.instance, record.qa)
        new = self.answers.setdefault(key, record) is record
        if new:
            self.made_by[key] = made_by
        return new

    def fail(self, record: Answer | Prepared) -> None:
        """Notes a failure."""
        self.thrown.append(record)
        if isinstance(record, Answer):
            self.failed[record.instance, record.qa] = record

    def why_open(self) -> str:
        """Why questions are open, and whether asking again can help."""
        failures = [self.failed[key] for key in self.open if key in self.failed]
        n_long = sum(failure.finish == "unanswerable" for failure in failures)
        again = "run the command of this run again to ask them"
        if n_long:
            again = (
                f"{n_long} of them do not fit the model's window, so asking again will not help: "
                "change window, budget_tokens or, of a writer, protocol.max_prompt_tokens, or take "
                "a model with a longer context"
            )
        example = f", e.g. {failures[0].error}" if failures else ""
        total = len(self.questions)
        return f"{len(self.open)} of {total} questions have no answer{example}; {again}"


# ---- what is asked ------------------------------------------------------------------------------


def select(
    instances: Sequence[Instance],
    limit: int | None = None,
    seed: int = 0,
    sources: Sequence[str] = (),
) -> list[Instance]:
    """At most `limit` instances of each source (or of the named ones), drawn by `seed`, in order.

    Raises InputError for a source without an instance.
    """
    by_source: dict[str, list[str]] = {}
    for instance in instances:
        by_source.setdefault(instance.source, []).append(instance.id)
    if strange := [name for name in sources if name not in by_source]:
        raise InputError(f"source {strange[0]}: not in the data, which has {', '.join(by_source)}")
    chosen: set[str] = set()
    for name in sources or by_source:
        ids = by_source[name]
        chosen |= {*random.Random(f"{seed} {name}").sample(ids, min(limit or len(ids), len(ids)))}
    return [instance for instance in instances if instance.id in chosen]


def fingerprint(instances: Sequence[Instance]) -> str:
    """SHA-256 over everything of the instances that a method or a scorer sees."""
    digest = hashlib.sha256()
    for i in instances:
        asked = [(qa.id, qa.question, qa.answers) for qa in i.questions]
        digest.update(json.dumps([i.id, i.source, i.prompt, i.chunks, asked]).encode())
    return digest.hexdigest()


def run_settings(method: Method, instances: Sequence[Instance]) -> dict[str, Any]:
    """What the answers of a run depend on, as plain JSON values.

    `served_at` are the addresses of the models: another server may hold other weights under the
    same name.
    """
    backends, said = method.backends, method.settings()
    roles = {"answer": backends.answer, "write": backends.write}
    if "embed_model" in said:
        roles["embed"] = getattr(backends.embed, "__self__", None)
    return {
        "kit": __version__,
        "data_sha256": fingerprint(instances),
        "instances": len(instances),
        "method": said,
        "served_at": {role: address(model) for role, model in roles.items() if address(model)},
    }


def settings_key(settings: Mapping[str, Any]) -> str:
    """Eight characters that name these settings, wherever the models are served."""
    elsewhere = ("served_at", "questions_sha256", "info")
    asked = {name: value for name, value in settings.items() if name not in elsewhere}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


# ---- on disk ------------------------------------------------------------------------------------


def begin(
    spec: MethodSpec,
    backends: Backends,
    instances: Sequence[Instance],
    out: Path,
    data: str,
    name: str | None = None,
    info: Mapping[str, Any] | None = None,
    moved: bool = False,
) -> tuple[Run, Method]:
    """A method's run in `out`, new or as it is there, and the method that goes on with it.

    `data` is what the data is called in the folder's name, beside the method and the hash of all
    settings; `name` is another name for the folder. The rest and errors as in `open_run`.
    """
    method = build_method(spec, backends)
    settings = run_settings(method, instances)
    folder = Path(out) / (name or f"{method.name}-{data}-{settings_key(settings)}")
    method.backends = replace(method.backends, journal=folder / "journal")
    if not (folder / SETTINGS).exists():
        method.load()
    return open_run(folder, instances, settings, info, moved), method


def open_run(
    folder: Path,
    instances: Sequence[Instance],
    settings: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    moved: bool = False,
) -> Run:
    """The run of this folder: a new one, or what is there of it.

    `info` is what changes no result: prices, the data's path; the newest is kept, a None leaves
    what was there. `moved` says that the models at another address are the same ones. Raises
    InputError naming the first setting that is not the one the run was begun with.
    """
    folder = Path(folder)
    lines = [json.dumps(asdict(item)) for item in questions_of(instances)]
    content = "".join(f"{line}\n" for line in lines).encode()
    if not (folder / SETTINGS).exists():  # it comes last: a folder without it has not begun
        if (folder / ANSWERS).exists():
            raise InputError(f"{folder}: has answers but no {SETTINGS}; choose another folder")
        files.write_bytes(folder / QUESTIONS, content)
    said = {"questions_sha256": hashlib.sha256(content).hexdigest(), "info": dict(info or {})}
    free = ("info", "served_at") if moved else ("info",)
    try:
        files.resume_or_refuse(folder, {**settings, **said}, free)
    except InputError as error:
        if "served_at" not in str(error):
            raise
        raise InputError(f"{error}, or say --moved if it is the same model there") from error
    return load_run(folder)


def load_run(folder: Path, memories: bool = True) -> Run:
    """What is on disk of a run, also while another process works on it; nothing is changed.

    Without `memories` the calls of its episodes are only counted, which is enough for tables.
    The first answer to a question counts, later ones are ignored. Raises InputError naming file and
    line for anything that is not as it must be.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise InputError(f"{folder}: expected a run with {SETTINGS}; `memalpha evaluate` makes one")
    settings = files.load_json(folder / SETTINGS)
    parts = ("questions_sha256", "data_sha256", "info", "method")
    if not isinstance(settings, dict) or not all(part in settings for part in parts):
        found = f"expected the settings of a run, found {str(settings)[:40]!r}"
        raise InputError(f"{folder / SETTINGS}: {found}")
    if files.sha256(folder / QUESTIONS) != settings["questions_sha256"]:
        raise InputError(f"{folder / QUESTIONS}: was changed or cut after the run was begun")
    asked = files.read_jsonl(folder / QUESTIONS)
    run = Run(folder, settings, saved.record(tuple[Item, ...], asked, f"{folder / QUESTIONS}"))
    for record, who in _records(folder / ANSWERS, memories):
        run.add(record, who)
    for record, _ in _records(folder / FAILURES, memories):
        run.fail(record)
    return run


def _records(path: Path, memories: bool) -> Iterator[tuple[Answer | Prepared, str]]:
    """The lines of a log as records, each with who made it."""
    lines = files.read_jsonl(path) if path.exists() else []
    return (read_record(line, f"{path}:{n}", memories) for n, line in enumerate(lines, start=1))


def record_line(record: Answer | Prepared, made_by: str = "") -> dict[str, Any]:
    """A record as JSON values; fields at their default are left out."""
    known = {f.name: f.default for f in fields(record) if f.name != "prediction"}
    line = {name: v for name, v in vars(record).items() if name not in known or v != known[name]}
    if isinstance(record, Prepared) and record.episode:
        line["episode"] = saved.episode_fields(record.episode)
    kind = "answer" if isinstance(record, Answer) else "prepared"
    return {"kind": kind} | line | ({"made_by": made_by} if made_by else {})


def read_record(
    line: Mapping[str, Any], where: str, memories: bool = True
) -> tuple[Answer | Prepared, str]:
    """What `record_line` gave. Raises InputError starting with `where` for anything else."""
    values = dict(line)
    kind, made_by, _ = values.pop("kind", None), values.pop("made_by", ""), values.pop("at", "")
    if kind not in ("prepared", "answer"):
        raise InputError(f"{where}: kind: expected prepared or answer, found {kind!r}")
    try:
        if "episode" in values and not memories:
            steps = values.pop("episode")["steps"]
            statuses = [call["status"] for step in steps for call in step["calls"]]
            values["counted"] = len(steps), len(statuses), statuses.count("ok")
        elif "episode" in values:
            values["episode"] = saved.read_episode(values["episode"], where)
    except (TypeError, ValueError, LookupError) as error:
        raise InputError(f"{where}: expected an answer or a memory, found: {error}") from error
    return saved.record(Answer if kind == "answer" else Prepared, values, where), made_by


# ---- answering ----------------------------------------------------------------------------------


def complete(
    run: Run,
    method: Method,
    instances: Sequence[Instance],
    progress: Callable[[int], object] = lambda n: None,
) -> Run:
    """The run with every question asked that has no final answer yet.

    Prepares what is not prepared, asks, and appends each result as soon as it is known; what no
    model was asked for within a second is appended together. `progress` is told how many prepared
    instances and answers are on disk. What fails is logged and stays open.
    Raises ModelGone if no model answers any more, and DiskError; what was known is kept.
    """
    if run.complete:
        return run
    with files.Log(run.folder / ANSWERS) as answers, files.Log(run.folder / FAILURES) as failures:
        run = load_run(run.folder)  # as it is now that nobody else writes
        left, backends = set(run.open), method.backends
        results = _Results(answers, progress)

        def keep(record: Answer | Prepared) -> None:
            """Puts a result into the run and on disk, once: what failed into its own log."""
            if isinstance(record, Prepared):
                model = method.writing if method.model_writes else None
                failed = bool(record.error)
            else:
                model = backends.answer
                failed = record.prediction is None and not record.skipped
            if failed:
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                failures.append(record_line(record) | {"at": at})
                run.fail(record)
            elif run.add(record, who := made_by(model)):
                results.add(record_line(record, who), bool(record.requests or record.prompt_tokens))

        asked_of = {name for name, _ in left}
        needed = [instance for instance in instances if instance.id in asked_of]
        try:
            if todo := [instance for instance in needed if instance.id not in run.prepared]:
                method.prepare(todo, keep)
            broken = {made.instance: made for made in run.thrown if isinstance(made, Prepared)}
            asked = [
                Question(item.qa, item.question, item.source, item.instance)
                for item in run.questions
                if item.key in left
            ]
            method.answer(asked, needed, broken | run.prepared, keep)
        finally:
            method.journal.close()
            results.flush()
    return run


class _Results:
    """Lines on their way to the log of answers, counted when they are on disk."""

    def __init__(self, log: files.Log, progress: Callable[[int], object]) -> None:
        self.log, self.progress, self.due = log, progress, time.monotonic() + WAIT_S
        self.waiting: list[dict[str, Any]] = []

    def add(self, line: dict[str, Any], at_once: bool) -> None:
        """One more line; it may wait a moment for others unless a model was asked for it."""
        self.waiting.append(line)
        if at_once or time.monotonic() > self.due:
            self.flush()

    def flush(self) -> None:
        """Puts what waits on disk and counts it."""
        self.log.append(*self.waiting)
        self.progress(len(self.waiting))
        self.waiting.clear()
        self.due = time.monotonic() + WAIT_S


def answer(run: Run, method: Method, instances: Sequence[Instance]) -> Run:
    """The run after all open questions were asked. Raises ModelGone, saying what is kept."""
    left = {instance for instance, _ in run.open}
    work = len(left - run.prepared.keys()) + len(run.open)
    if not work:
        return run
    try:
        with bar(work, f"evaluate {method.name}") as shown:
            return complete(run, method, instances, shown.advance)
    except ModelGone as error:
        kept = load_run(run.folder)
        done = f"{len(kept.answers)} of {len(kept.questions)} answers are in {run.folder}"
        raise ModelGone(f"{error}; {done}") from error


def made_by(model: Any) -> str:
    """A model's name and where it was served, "" for none."""
    where = f" at {address(model)}" if address(model) else ""
    return f"{model.name}{where}" if model else ""
