"""Commands killed at random moments (SIGKILL) and begun again: nothing is lost, torn or mixed.

    python benchmarks/kills.py                      # 20 kills of each command, about 8 minutes
    python benchmarks/kills.py --kills 100 build merge

An undisturbed run of each command comes first. Then the command is begun in a process of its own
and killed after a random part of the time that the undisturbed run took (a quarter of it at most
where it goes on), until there were as many kills as wanted; one more run ends it. A run that ends
before its kill is removed and begun anew. Each kill of `build` and `merge` must leave the old data
set, the new one or none, whole; each kill of `run` (a notebook) leaves tables that are whole;
`write`, `evaluate`, `train` and `download` go on where they were killed. In the end every file that
counts must hold the bytes of the undisturbed run. Prints a line per command; exit code 1 if one did
not keep the law.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny_policy as tiny  # noqa: E402
from little_world import little_model, save_data  # noqa: E402
from stub_server import StubServer  # noqa: E402

from memalpha_kit import cli  # noqa: E402
from memalpha_kit.data.instances import save_instances  # noqa: E402
from memalpha_kit.evaluation import runs, scores, tables  # noqa: E402, F401
from memalpha_kit.models import chat  # noqa: E402, F401
from memalpha_kit.records import make_instance  # noqa: E402
from memalpha_kit.training import real  # noqa: E402, F401
from tools.sample_data import make_raw  # noqa: E402

TRAIN_SETTINGS = (
    *(*tiny.CHAT_SETTINGS, "grpo.steps=8", "grpo.learning_rate=0.05"),
    *("grpo.warm_up_steps=0", "grpo.save_every=1", "grpo.validate_every=2"),
    *("grpo.validate_instances=2", "grpo.outage_retries=0"),
)

NOTEBOOK_TABLES = ("advantages", "answers", "conversation", "group", "memory_growth", "rewards")
HUB_SET = ("YuWangX/Memalpha-Memoryagentbench", "--revision", "0a" * 20)


@dataclass(frozen=True)
class Case:
    """A command that makes `out`, and the files below it that are compared."""

    argv: Callable[[Path], list[str]]
    counted: tuple[str, ...]
    resumes: tuple[str, ...] | None = ()  # more arguments to go on; None: it begins anew
    sorts: bool = False  # lines come in any order
    apart: bool = False  # each file is whole by itself, not all together


@contextmanager
def cases(work: Path) -> Iterator[dict[str, Case]]:
    """The commands, with all that they read."""
    data = save_data(work / "data", ("squad", "booksum"), 4, questions=24, chunks=6)
    raw = make_raw(work / "raw", "squad") and work / "raw"
    parts = []
    for name in ("trec_coarse", "squad"):
        built = [
            make_instance(name, one.chunks, one.questions)
            for one in map(tiny.instance, range(0, 400, 2) if name == "squad" else range(400, 600))
        ]
        for part, some in (("train", built[: len(built) // 2]), ("test", built[len(built) // 2 :])):
            save_instances(work / name / f"{part}.parquet", some)
        parts.append(str(work / name))
    slow_hub(data)
    base = tiny.saved_chat(work / "base")
    settings = [w for s in (f"model.name={base}", *TRAIN_SETTINGS) for w in ("--set", s)]
    set_of = ("train.parquet", "test.parquet", "card.json")
    with StubServer(little_model, latency_s=0.005) as stub:
        server = ["--url", stub.url, "--model-name", "m", "--concurrency", "4"]
        yield {
            "build": Case(
                lambda out: ["data", "build", "--source", "squad", "--raw", str(raw), "--out", out],
                set_of,
                None,
            ),
            "merge": Case(lambda out: ["data", "merge", *parts, "--out", out], set_of, None),
            "write": Case(
                lambda out: (
                    ["write", "--data", str(data), "--writer", "keep_sentences"]
                    + ["--rollouts", "12", "--batch", "1", "--out", f"{out}/episodes.jsonl"]
                ),
                ("episodes.jsonl",),
            ),
            "evaluate": Case(
                lambda out: (
                    ["evaluate", "--method", "memory", "--writer", "api", *server]
                    + [
                        "--data",
                        str(data),
                        "--out",
                        str(Path(out).parent),
                        "--name",
                        Path(out).name,
                    ]
                ),
                ("answers.jsonl", "scores/fixed.jsonl"),
                sorts=True,
            ),
            "train": Case(
                lambda out: (
                    ["train", "--profile", "gpu", "--data", *parts, "--out", out] + settings
                ),
                ("metrics.csv", "validation.csv", "export/model.safetensors"),
                ("--resume",),
            ),
            "run": Case(
                lambda out: ["run", "--profile", "ci", "--only", "00", "--root", out],
                tuple(f"reports/00_ten_minutes/ci/{name}.csv" for name in NOTEBOOK_TABLES),
                None,
                apart=True,
            ),
            "download": Case(
                lambda out: [
                    "data",
                    "download",
                    *HUB_SET,
                    "--revision",
                    "0a" * 20,
                    "--out",
                    out,
                ],
                ("train.parquet", "test.parquet", "hub.json"),
            ),
        }


def slow_hub(data: Path) -> None:
    """In place of the Hugging Face hub: these files arrive piece by piece, in half a second."""
    import huggingface_hub

    files = {f"{part}.parquet": (data / "test.parquet").read_bytes() for part in ("train", "test")}

    def snapshot(local_dir: Path, **_: object) -> None:
        local_dir.mkdir(parents=True, exist_ok=True)
        for name, raw in files.items():
            with open(local_dir / name, "wb") as file:
                for place in range(0, len(raw), 1 + len(raw) // 50):
                    file.write(raw[place : place + 1 + len(raw) // 50])
                    file.flush()
                    time.sleep(0.005)

    huggingface_hub.HfApi.list_repo_files = lambda api, **_: list(files)
    huggingface_hub.snapshot_download = snapshot


def begun(argv: list[str]) -> int:
    """The command in a process of its own, which has imported everything already."""
    if child := os.fork():
        return child
    for stream in (1, 2):
        os.dup2(os.open(os.environ.get("KILLS_LOG", os.devnull), os.O_WRONLY | os.O_APPEND), stream)
    try:
        code = cli.main(list(map(str, argv)))
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    os._exit(code)


def ended(child: int) -> int:
    """The exit code, minus the signal's number if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(out: Path, case: Case) -> dict[str, str]:
    """A hash of every file that counts and is there."""
    found = {}
    for name in case.counted:
        if (out / name).exists():
            raw = (out / name).read_bytes()
            lines = sorted(_without_clock(raw)) if case.sorts else [raw]
            found[name] = hashlib.sha256(b"\n".join(lines)).hexdigest()
    return found


def whole_files(left: dict[str, str], want: dict[str, str], apart: bool) -> bool:
    """Whether a kill left nothing, everything, or, `apart`, some files as they must be."""
    return not left or left == want or (apart and left.items() <= want.items())


def _without_clock(raw: bytes) -> list[bytes]:
    return [re.sub(rb'"(latency|write)_s": [^,}]*', b"", line) for line in raw.split(b"\n")]


def killed(case: Case, out: Path, n_kills: int, duration_s: float, chance: random.Random) -> dict:
    """How many kills hit, how many runs ended before theirs, and the results that kills left."""
    told = {"kills": 0, "ended before": 0, "left": set()}
    while told["kills"] < n_kills and told["ended before"] < 5 * n_kills:
        more = case.resumes if case.resumes and out.exists() else ()
        child = begun([*case.argv(out), *more])
        time.sleep(chance.uniform(0, duration_s if case.resumes is None else duration_s / 4))
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        told["kills" if code == -signal.SIGKILL else "ended before"] += 1
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"exit code {code} of {case.argv(out)[:2]}")
        if case.resumes is None:
            told["left"].add(tuple(sorted(contents(out, case).items())))
        if code == 0:
            shutil.rmtree(out)
    return told


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "commands", nargs="*", help="build merge write evaluate train run download (all)"
    )
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    broken = False
    with tempfile.TemporaryDirectory() as folder, cases(Path(folder)) as known:
        for name in options.commands or known:
            case, chance = known[name], random.Random(f"{options.seed} {name}")
            whole, out = (Path(folder) / kind / name / "out" for kind in ("undisturbed", "killed"))
            for place in (whole, out):
                place.parent.mkdir(parents=True)
            start = time.perf_counter()
            if code := ended(begun(case.argv(whole))):
                raise SystemExit(f"{name}: exit code {code} without any kill")
            duration_s = time.perf_counter() - start
            told = killed(case, out, options.kills, duration_s, chance)
            more = case.resumes if case.resumes and out.exists() else ()
            last = ended(begun([*case.argv(out), *more]))
            want, got = contents(whole, case), contents(out, case)
            torn = [left for left in told["left"] if not whole_files(dict(left), want, case.apart)]
            extra = sorted(p.name for p in out.parent.iterdir() if p != out)
            equal = want == got and len(want) == len(case.counted)
            good = not last and equal and not torn and not extra
            broken |= not good
            print(
                f"{name}: {told['kills']} kills in runs of {duration_s:.1f} s "
                f"({told['ended before']} ended before), "
                + ("results equal to the undisturbed run" if good else "BROKEN"),
                flush=True,
            )
            if not good:
                print(f"  exit code {last}, torn {torn}, left behind {extra}, {want} {got}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
