"""Evaluation runs on disk: answers are appended as they come, scores are made from them.

The laws: a run that is killed anywhere and started again ends with the same answers as one that was
not, none twice and none lost; a question that failed is not an answer, is never scored 0 and is
asked again; a folder holds one run, and other settings are refused; scoring calls no answering
model (spec evaluation.md 3.10, A-2 to A-4, A-9, A-11, M-3).

    runs/evaluate/bm25-memalpha-1a2b3c4d/
        run.json         settings and their hash, and what changes no result (addresses, prices)
        questions.jsonl  what is asked: instance, index, source, question, gold
        answers.jsonl    one line per instance that is prepared and per question that is answered
        failures.jsonl   what failed and why, for people; a later answer makes its line history
        scores/          one file per profile, made by `score`, safe to delete
        journal/         replies of a memory that is being written

A line of `answers.jsonl` is on disk before the next question is counted, and the last one may be
torn by a kill: it is dropped when the run is opened again, and its question is asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from memalpha_kit import __version__
from memalpha_kit import files as store
from memalpha_kit.data.instances import ANSWER_TYPE
from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.evaluation.methods import (
    Answered,
    Backends,
    Method,
    MethodSpec,
    Prepared,
    build_method,
)
from memalpha_kit.evaluation.scoring import Item, Judgement, Scored, score_all
from memalpha_kit.method.judges import JudgeItem
from memalpha_kit.records import Answer, Episode, Instance

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

CARD, QUESTIONS, ANSWERS, FAILURES = (
    *("run.json", "questions.jsonl"),
    *("answers.jsonl", "failures.jsonl"),
)
SYNC_S = 1.0
"""A kill loses nothing that was written; a power cut loses what was written in these seconds."""

Key = tuple[str, int]
"""A question: its instance and its place there."""


@dataclass(frozen=True)
class Question:
    """One question of a run with what scoring needs, so that a run can be scored by itself.

    `gold` is a text where the data has a text; `kind` is the question's type where the data knows
    one (LongMemEval).
    """

    instance: str
    index: int
    qa: str
    source: str
    question: str
    gold: str | tuple[str, ...]
    kind: str = ""

    @property
    def key(self) -> Key:
        """(instance, index), unique in a run."""
        return self.instance, self.index


@dataclass
class Run:
    """A run as it is on disk. `answers` are final ones only, `failed` the last reason of others."""

    folder: Path
    settings: Mapping[str, Any]
    info: Mapping[str, Any]
    questions: tuple[Question, ...]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    answers: dict[Key, Answered] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of the settings: data, method, models, prompts' version."""
        return settings_key(self.settings)

    @property
    def open(self) -> list[Key]:
        """Questions without a final answer, in order."""
        return [q.key for q in self.questions if q.key not in self.answers]

    @property
    def complete(self) -> bool:
        """Whether every question has a final answer."""
        return not self.open


# ---- what is asked ------------------------------------------------------------------------------


def select(
    instances: Sequence[Instance],
    limit: int | None = None,
    seed: int = 0,
    sources: Sequence[str] = (),
) -> list[Instance]:
    """At most `limit` instances of each source (or of the named ones), drawn by `seed`, in order.

    Raises InputError for a source without an instance, a limit below 1 and an id that occurs twice.
    Source: evaluation.md B-13 (the release draws without a seed).
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected at least 1, found {limit}")
    by_source: dict[str, list[Instance]] = {}
    for instance in instances:
        by_source.setdefault(instance.source, []).append(instance)
    for name in sources:
        if name not in by_source:
            raise InputError(f"source {name}: not in the data, which has {', '.join(by_source)}")
    chosen = set()
    for name in sources or by_source:
        ids = [instance.id for instance in by_source[name]]
        if len(set(ids)) < len(ids):
            raise InputError(f"source {name}: expected each instance once")
        count = len(ids) if limit is None else min(limit, len(ids))
        chosen |= set(random.Random(f"{seed} {name}").sample(ids, count))
    return [instance for instance in instances if instance.id in chosen]


def questions_of(instances: Sequence[Instance]) -> tuple[Question, ...]:
    """Every question of the instances, in order."""
    return tuple(
        Question(
            instance=instance.id,
            index=index,
            qa=qa.id,
            source=instance.source,
            question=qa.question,
            gold=_gold(qa.answers, instance),
            kind=_kind(instance, index),
        )
        for instance in instances
        for index, qa in enumerate(instance.questions)
    )


def _gold(answers: tuple[str, ...], instance: Instance) -> str | tuple[str, ...]:
    """As the data has it: the release's training scores a list of one text otherwise (7.4)."""
    text = len(answers) == 1 and instance.metadata.get(ANSWER_TYPE) != "list"
    return answers[0] if text else answers


def _kind(instance: Instance, index: int) -> str:
    kinds = instance.metadata.get("question_types") or ()
    return str(kinds[index]) if len(kinds) == len(instance.questions) else ""


def fingerprint(instances: Sequence[Instance]) -> str:
    """SHA-256 over everything of the instances that a method or a scorer sees."""
    digest = hashlib.sha256()
    for i in instances:
        asked = [(qa.id, qa.question, qa.answers) for qa in i.questions]
        digest.update(json.dumps([i.id, i.source, i.prompt, i.chunks, asked]).encode())
    return digest.hexdigest()


def run_settings(method: Method, instances: Sequence[Instance]) -> dict[str, Any]:
    """What the answers of a run depend on, as plain JSON values."""
    writing = method.backends.write
    settings = {
        "kit": __version__,
        "data_sha256": fingerprint(instances),
        "instances": len(instances),
        "method": method.settings(),
        "write_model": writing.name if writing else None,
    }
    return json.loads(json.dumps(settings))  # as they come back from disk


def settings_key(settings: Mapping[str, Any]) -> str:
    """Eight characters that name exactly these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


# ---- on disk ----------------------------------------------------------------------------------


class Log:
    """A JSONL file that only grows; one process at a time may hold it.

    Opening drops a last line that a kill has torn. A line that cannot be written wholly (a full
    disk) is taken back and raises DiskError.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file for appending. Raises InputError if another process holds it."""
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.synced = time.monotonic()
        try:
            _lock(self.file, path)
            content = path.read_bytes()
            if torn := len(content) - content.rfind(b"\n") - 1:
                log.warning("%s: the last line was torn after %d bytes: dropped", path, torn)
                os.ftruncate(self.file, len(content) - torn)
        except BaseException:
            os.close(self.file)
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one line; from here on a kill cannot lose it."""
        rest = json.dumps(record).encode() + b"\n"
        size = os.fstat(self.file).st_size
        try:
            while rest:  # one write in all but odd cases
                rest = rest[os.write(self.file, rest) :]
            if time.monotonic() - self.synced > SYNC_S:
                self._sync()
        except OSError as error:
            os.ftruncate(self.file, size)
            raise DiskError(f"{self.path}: expected to write a line: {error.strerror}") from error

    def _sync(self) -> None:
        os.fsync(self.file)
        self.synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._sync()
        os.close(self.file)


def _lock(file: int, path: Path) -> None:
    """Takes the file for this process; a kill gives it back."""
    with suppress(ImportError):  # not on Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{path.parent}: another process is at work on this run") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, [] if there is no file. Raises InputError naming a broken one."""
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: expected JSON, found: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: expected an object, found {line[:40]!r}")
        records.append(record)
    return records


def begin(
    spec: MethodSpec,
    backends: Backends,
    instances: Sequence[Instance],
    out: Path,
    data: str,
    name: str | None = None,
    info: Mapping[str, Any] | None = None,
) -> tuple[Run, Method]:
    """A method's run in `out`, new or as it is there, and the method that goes on with it.

    `data` is what the data is called in the folder's name, beside the method and the hash of all
    settings; `name` is another name for the folder. `info` and errors as in `open_run`.
    """
    method = build_method(spec, backends)
    settings = run_settings(method, instances)
    folder = Path(out) / (name or f"{method.name}-{data}-{settings_key(settings)}")
    run = open_run(folder, instances, settings, info)
    return run, build_method(spec, replace(backends, journal=folder / "journal"))


def open_run(
    folder: Path,
    instances: Sequence[Instance],
    settings: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
) -> Run:
    """The run of this folder: a new one, or what is there of it.

    `info` is what changes no result: addresses, prices, the data's path; the newest is kept, a None
    leaves what was there. Raises InputError naming the first setting that is not the one the run
    was begun with.
    """
    folder = Path(folder)
    card = {"key": settings_key(settings), "settings": settings, "info": dict(info or {})}
    if (folder / CARD).exists():
        old = store.load_json(folder / CARD)
        _check_same(folder, old, settings)
        card["info"] = _newest(old.get("info") or {}, card["info"])
        if card == old:  # a kill while it is written leaves a temporary file behind
            return load_run(folder)
    else:
        if (folder / ANSWERS).exists():
            raise InputError(f"{folder}: has answers but no {CARD}; choose another folder")
        lines = [json.dumps(asdict(question)) for question in questions_of(instances)]
        store.write_bytes(folder / QUESTIONS, "".join(f"{line}\n" for line in lines).encode())
    store.save_json(folder / CARD, card)  # last: a folder without it has not begun
    return load_run(folder)


def _newest(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What is said now, and what was said before where nothing is, e.g. a price."""
    said = {
        key: _newest(old.get(key) or {}, value) if isinstance(value, Mapping) else value
        for key, value in new.items()
        if value is not None
    }
    return {**old, **said}


def _check_same(folder: Path, card: Any, settings: Mapping[str, Any]) -> None:
    old, new = store.flat(card.get("settings") or {}), store.flat(settings)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise InputError(
                f"{folder}: was begun with {key} = {old.get(key)!r}, now it is {new.get(key)!r}; "
                "choose another folder or delete it"
            )


def load_run(folder: Path) -> Run:
    """What is on disk of a run, also while another process works on it; nothing is changed.

    The first answer to a question counts, later ones are ignored. Raises InputError naming file and
    line for anything that is not as it must be.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise InputError(f"{folder}: expected a run with {CARD}; `memalpha evaluate` makes one")
    card = store.load_json(folder / CARD)
    try:
        settings, info = card["settings"], card["info"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / CARD}: expected settings and info, found neither") from error
    run = Run(folder, settings, info, tuple(_questions(folder / QUESTIONS)))
    for number, line in enumerate(read_lines(folder / ANSWERS), start=1):
        where = f"{folder / ANSWERS}:{number}"
        kind = line.pop("kind", None)
        if kind == "prepared":
            made = Prepared.from_plain(line, where)
            run.prepared.setdefault(made.instance, made)
        elif kind == "answer":
            answered = Answered.from_plain(line, where)
            run.answers.setdefault((answered.instance, answered.index), answered)
        else:
            raise InputError(f"{where}: kind: expected prepared or answer, found {kind!r}")
    for line in read_lines(folder / FAILURES):
        if "index" in line:
            run.failed[line["instance"], line["index"]] = line["error"]
    return run


def _questions(path: Path) -> list[Question]:
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            gold = line["gold"]
            found.append(
                Question(**line | {"gold": gold if isinstance(gold, str) else tuple(gold)})
            )
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}:{number}: expected a question, found: {error}") from error
    return found


# ---- answering ---------------------------------------------------------------------------------


def complete(
    run: Run,
    method: Method,
    instances: Sequence[Instance],
    progress: Callable[[int], None] | None = None,
) -> Run:
    """The run with every question asked that has no final answer yet.

    Prepares what is not prepared, asks, and appends each result as soon as it is known. `progress`
    is called with 1 per prepared instance and per answer. What fails is logged and stays open.
    Raises ModelGone if no model answers any more, and DiskError; what was known is kept.
    """
    if run.complete:
        return run
    needed = {instance for instance, _ in run.open}
    asked = [instance for instance in instances if instance.id in needed]
    with Log(run.folder / ANSWERS) as answers, Log(run.folder / FAILURES) as failures:
        run = load_run(run.folder)  # as it is now that nobody else writes
        prepared = dict(run.prepared)

        def keep_prepared(made: Prepared) -> None:
            if made.instance in run.prepared:
                return
            prepared[made.instance] = made
            if made.error:
                failures.append({"instance": made.instance, "error": made.error, "at": _now()})
                return
            answers.append({"kind": "prepared"} | made.to_plain())
            run.prepared[made.instance] = made
            if progress:
                progress(1)

        def keep_answer(found: Answered) -> None:
            key = (found.instance, found.index)
            if key in run.answers:
                return
            if not found.final:
                run.failed[key] = found.error or "no reason given"
                failed = {"instance": found.instance, "index": found.index}
                failures.append(failed | {"error": run.failed[key], "at": _now()})
                return
            answers.append({"kind": "answer"} | found.to_plain())
            run.answers[key] = found
            if progress:
                progress(1)

        todo = [instance for instance in asked if instance.id not in run.prepared]
        if todo:
            method.prepare(todo, keep_prepared)
        if run.open:
            method.answer(asked, prepared, set(run.open), keep_answer)
    return run


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# ---- scores ------------------------------------------------------------------------------------


def score_run(
    run: Run, profile: str = "fixed", judge: Judgement | None = None, judge_name: str = ""
) -> list[dict[str, Any]]:
    """Scores every question under a profile and saves them; the rows are also returned.

    No answering model is called, and no judge unless one is given; without one the metric that
    stands in is used and named. One row per question in the order of the run, with the fields of
    evaluation.md 3.10. Questions without an answer have `infra_error`, those that the method cannot
    be asked `skipped`; neither has a score.
    """
    found = score_all(items(run), profile, judge)
    rows = [
        _score_row(run, question, scored, profile)
        for question, scored in zip(run.questions, found, strict=True)
    ]
    head = {"profile": profile, "judge": judge_name or None, "answers": len(run.answers)}
    lines = [json.dumps(line) for line in (head, *rows)]
    store.write_bytes(_scores_file(run, profile), "".join(f"{line}\n" for line in lines).encode())
    return rows


def _scores_file(run: Run, profile: str) -> Path:
    return run.folder / "scores" / f"{profile}.jsonl"


def items(run: Run) -> list[Item]:
    """Every question of a run with its answer, as scorers want it."""
    return [
        Item(q.source, run.answers[q.key].prediction if q.key in run.answers else None,
             q.gold, q.question, q.instance, q.qa)
        for q in run.questions
    ]  # fmt: skip


def episodes(run: Run, profile: str = "fixed") -> list[Episode]:
    """How each memory of a run was written, with its scored answers, e.g. for `waterfall`.

    Instances that are not prepared are left out, questions without an answer have none. Raises
    InputError for a method that writes no memory.
    """
    answers: dict[str, list[Answer]] = {}
    for question, row in zip(run.questions, scores_of(run, profile), strict=True):
        found = run.answers.get(question.key)
        ids = found.retrieved if found else ()
        answer = Answer(question.qa, row["prediction"], row["score"], ids)
        answers.setdefault(question.instance, []).append(answer)
    written = []
    for instance in (i for i in answers if i in run.prepared):
        episode = run.prepared[instance].episode
        if episode is None:
            raise InputError(f"{run.folder}: expected a run that writes memories, found none")
        written.append(replace(episode, answers=tuple(answers[instance])))
    return written


_FROM_ANSWER = (
    *("finish", "prompt_tokens", "completion_tokens", "latency_s", "truncated", "requests"),
)


def _score_row(run: Run, question: Question, scored: Scored, profile: str) -> dict[str, Any]:
    answered = run.answers.get(question.key)
    status = "skipped" if answered and answered.skipped else scored.status
    made = run.prepared.get(question.instance)
    kept = answered.memory_tokens if answered else None
    return {
        "run_key": run.key,
        **asdict(question),
        "prediction": answered.prediction if answered else None,
        "status": status,
        **{name: getattr(answered, name, None) for name in _FROM_ANSWER},
        "memory_tokens": made.memory_tokens if made and kept is None else kept,
        "input_tokens": made.input_tokens if made else None,
        "profile": profile,
        "metric": scored.metric,
        "score": scored.score,
        "judge_reply": scored.judge_reply,
        "error": "" if answered else run.failed.get(question.key, "not asked yet"),
    }


def scores_of(run: Run, profile: str = "fixed") -> list[dict[str, Any]]:
    """The saved scores of a run, made anew where they are not there or older than its answers.

    Raises InputError if the old ones came from a judge, which only `memalpha score` may ask again.
    """
    file = _scores_file(run, profile)
    head, *rows = read_lines(file) or [{}]
    if head.get("answers") == len(run.answers) and len(rows) == len(run.questions):
        return rows
    if head.get("judge"):
        raise InputError(f"{file}: older than the answers and made by a judge; score the run again")
    return score_run(run, profile)


def judge_of(run: Run, profile: str = "fixed") -> str:
    """The name of the judge behind the saved scores, "" if there was none."""
    head, *_ = read_lines(_scores_file(run, profile)) or [{}]
    return head.get("judge") or ""


def judgement(run: Run, judge: Any) -> Judgement:
    """A judge of answers (`judges.LongMemEvalJudge`) as `score_run` wants it, with question types.

    Raises InputError for a metric that this judge does not give.
    """
    kinds = {(q.instance, q.qa): q.kind for q in run.questions}

    def asked(item: Item) -> JudgeItem:
        if item.source in _OTHER_JUDGE:
            raise InputError(f"source {item.source}: its judge gives F1, which the kit has not")
        gold = item.gold if isinstance(item.gold, str) else tuple(item.gold)
        kind = kinds.get((item.instance, item.qa), "")
        never = item.qa.endswith("_abs")
        return JudgeItem(item.question, gold, item.prediction or "", kind, never)

    return lambda items: judge.judge([asked(item) for item in items])


_OTHER_JUDGE = ("infbench_sum_eng_shots2",)

# ---- tables ------------------------------------------------------------------------------------


def frames(
    runs: Mapping[str, Run | Sequence[Run]], profile: str = "fixed"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`answers` and `built` of `comparison`, all runs together; the mapping names the methods.

    A method may be several runs, e.g. one per source.
    """
    import pandas as pd

    answers, built = [], []
    named = {name: [found] if isinstance(found, Run) else found for name, found in runs.items()}
    for name, run in ((name, run) for name, found in named.items() for run in found):
        for row in scores_of(run, profile):
            cost = _cost(row, run.info.get("answer"))
            answers.append(row | {"method": name, "chunk_tokens": row["input_tokens"]} | cost)
        for question in {q.instance: q for q in run.questions}.values():
            built.append({"method": name, "source": question.source} | _built(run, question))
    return pd.DataFrame(answers), pd.DataFrame(built)


def _built(run: Run, question: Question) -> dict[str, Any]:
    made = run.prepared.get(question.instance) or Prepared(question.instance)
    names = ("calls", "calls_ok", "requests", "prompt_tokens", "completion_tokens", "errors")
    row = {"instance": question.instance} | {name: getattr(made, name) for name in names}
    if not made.requests:
        return row | {"prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0}
    return row | _cost(row, run.info.get("write") or run.info.get("answer"))


def _cost(row: Mapping[str, Any], model: Mapping[str, Any] | None) -> dict[str, float | None]:
    """US dollars by the prices per million tokens that the run was told; None if unknown."""
    prices = [(model or {}).get(name) for name in ("price_in", "price_out")]
    tokens = [row["prompt_tokens"], row["completion_tokens"]]
    if None in (*prices, *tokens):
        return {"cost_usd": None}
    return {"cost_usd": sum(p * t for p, t in zip(prices, tokens, strict=True)) / 1e6}
