"""Every command of the public repository's README as ours, against a server that often fails.

The server speaks the OpenAI protocol over real HTTP (`stub_server`): it delays, answers 429 and
500, sends bodies that are no reply and cuts connections. Addresses in the commands below are
replaced by the stub's; everything else runs as it stands in docs/public_commands.md.
"""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pandas as pd
import pytest
from little_world import BENCHMARK, MEMALPHA, little_model, save_data
from stub_server import Faults, StubServer

from memalpha_kit import cli, files
from memalpha_kit.evaluation import runs, scores

PAGE = Path(__file__).resolve().parent.parent / "docs" / "public_commands.md"
ROWS = re.findall(r"^\| `(.+)` \| `(.*memalpha .+)` \|$", PAGE.read_text("utf-8"), re.MULTILINE)
"""The table of the page: a command of the public repository, and ours."""
COMMANDS = [row for row in ROWS if "memalpha serve" not in row[1]]
SERVERS = [row for row in ROWS if "memalpha serve" in row[1]]


def models(command: str) -> set[str]:
    """The models that a command asks."""
    if "memalpha evaluate" not in command and "memalpha serve" not in command:
        return set()
    return set(re.findall(r"(?:-model-name |QWEN_MODEL_NAME=)(\S+)", command))


FAULTS = Faults(busy=0.04, broken=0.04, malformed=0.04, cut=0.03)
KEYS = ("QWEN_URL", "QWEN_MODEL_NAME", "OPENROUTER_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with the data, a policy and a MEM1 rollout file where the commands look."""
    folder = tmp_path_factory.mktemp("public")
    save_data(folder / "data" / "memalpha", MEMALPHA, 2)
    save_data(folder / "data" / "memoryagentbench", BENCHMARK)
    lines = [{"index": i, "memory": "<think>nothing</think>"} for i in range(2 * len(MEMALPHA))]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "memalpha_results.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def policy(place):
    """A tiny random model in the place of Memalpha-4B."""
    from tiny_models import tiny_lm

    lm = tiny_lm()
    for part in (lm.model, lm.tokenizer):
        part.save_pretrained(place / "models" / "Memalpha-4B")


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    return place


def ours(command: str, stub_url: str, monkeypatch) -> list[str]:
    """Our command's arguments with the stub's address; variables in front go to the environment."""
    words = shlex.split(re.sub(r"https?://[\w.:]+(/api)?/v1", stub_url, command))
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    assert words.pop(0) == "memalpha"
    found = [[str(p) for p in sorted(Path().glob(w))] if "evaluate/" in w else [w] for w in words]
    argv = [word for part in found for word in part]
    if "models/Memalpha-4B" in argv:
        argv += ["--set", "protocol.max_reply_tokens=4", "--source", "squad", "--limit", "1"]
    return argv


@pytest.mark.parametrize(("public", "command"), COMMANDS, ids=[row[0][:60] for row in COMMANDS])
def test_public_commands_have_ours(public, command, here, request, monkeypatch, capsys):
    if "models/Memalpha-4B" in command:
        request.getfixturevalue("policy")
    with StubServer(little_model, latency_s=0.002, faults=FAULTS) as stub:
        assert cli.main(ours(command, stub.url, monkeypatch)) == 0
    assert {body["model"] for body in stub.requests} == models(command)
    assert "| source |" in capsys.readouterr().out.replace("| method ", "")
    if "openrouter" in command:
        assert {headers["authorization"] for headers in stub.headers} == {"Bearer ..."}


@pytest.mark.parametrize(("public", "command"), SERVERS, ids=["port 5005", "OpenRouter"])
def test_a_public_agent_can_point_at_our_server(public, command, root, monkeypatch):
    """The payload of the published agent; any free port in place of 5005."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with StubServer(little_model, faults=FAULTS) as stub:
        argv = [word.replace("5005", "0") for word in ours(command, stub.url, monkeypatch)]
        server = subprocess.Popen(
            [sys.executable, "-m", "memalpha_kit", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=root,
        )
        try:
            base = re.search(r"http://127.0.0.1:\d+", server.stdout.readline())[0]
            memory = {"core": "", "semantic": [{"a1b2": "The code of Nora is 17."}], "episodic": []}
            asked = {"memories": [memory], "questions": [["What is the code of Nora?"]]}
            with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:
                assert client.get("/health").json()["status"] == "healthy"
                for path in ("/process", "/batch_process", "/agentic_process"):
                    found = client.post(path, json=asked)
                    assert (found.status_code, found.json()["result"]) == (200, [["\\boxed{17}"]])
        finally:
            server.terminate()
            server.wait(30)
    assert {body["model"] for body in stub.requests} == models(command)


def test_the_runs_of_all_commands_are_complete_and_their_scores_are_as_expected(here):
    """After the commands above: what a method was shown decides what the little model knows."""
    assert (len(COMMANDS), len(SERVERS)) == (21, 2)
    whole = [runs.load_run(folder) for folder in sorted(Path("runs/evaluate").glob("*"))]
    if len(whole) < sum("evaluate --method" in command for _, command in COMMANDS):
        pytest.skip("needs the runs of all commands above")
    for run in whole:
        assert run.complete
        found = {row["score"] for row in scores.scores_of(run)}
        method = run.settings["method"]
        given = method["method"] == "closed-book" or method.get("rollouts")
        blind = given or "sha256" in str(method.get("writer"))
        assert found == ({0.0} if blind else {1.0}), run.folder
    table = pd.read_csv("reports/table1/table_paper.csv")
    assert set(table.verdict) == {"cannot tell"}
    assert table.why.str.contains("2 instances, the paper had 30").any()


def test_single_source_runs_ask_the_same_questions_as_the_whole_set(here):
    """The release puts an instruction before questions that are selected by source."""
    with StubServer(little_model) as stub:
        base = ["evaluate", "--method", "closed-book", "--data", "data/memalpha", "--out", "one"]
        base += ["--url", stub.url, "--model-name", "m"]
        assert cli.main([*base, "--name", "all"]) == 0
        whole = [json.dumps(body["messages"]) for body in stub.requests]
        stub.forget()
        assert cli.main([*base, "--name", "squad", "--source", "squad"]) == 0
    part = [json.dumps(body["messages"]) for body in stub.requests]
    assert part and set(part) < set(whole)


def evaluate(url: str, method: str, out: Path, *more: str, data: str = "data/memalpha") -> int:
    argv = ["evaluate", "--method", method, "--data", data, "--url", url, "--model-name", "m"]
    return cli.main([*argv, "--out", str(out.parent), "--name", out.name, *more])


def outcome(folder: Path) -> dict:
    """Everything about a run that may not depend on faults, kills and time."""
    run = runs.load_run(folder)
    rows = {(row["instance"], row["qa"]): row for row in scores.scores_of(run)}
    asked = {key: (row["prediction"], row["score"], row["status"]) for key, row in rows.items()}
    made = {i: (p.episode, p.text, p.memory_tokens) for i, p in run.prepared.items()}
    return {"questions": asked, "prepared": made}


METHODS = {"bm25": (), "memory": ("--writer", "api")}
EACH = pytest.mark.parametrize(("method", "more"), METHODS.items())


@pytest.fixture(scope="module")
def peaceful(place):
    """Fault-free runs of two methods."""
    with pytest.MonkeyPatch.context() as patch, StubServer(little_model) as stub:
        patch.chdir(place)
        for method, more in METHODS.items():
            assert evaluate(stub.url, method, Path("calm") / method, *more) == 0
    return {method: outcome(place / "calm" / method) for method in METHODS}


@EACH
def test_with_20_per_cent_of_calls_failing_the_scores_are_those_of_a_run_without(
    method, more, here, peaceful
):
    faults = Faults(busy=0.05, broken=0.05, malformed=0.05, cut=0.04, hang=0.01, seed=3)
    with StubServer(little_model, faults=faults) as stub:
        out = here / "faulty" / method
        assert evaluate(stub.url, method, out, *more, "--timeout", "1") == 0
    share = sum(stub.faulty.values()) / stub.n_requests
    assert 0.1 < share < 0.3
    assert outcome(out) == peaceful[method]
    assert files.read_jsonl(out / runs.FAILURES) == []


@EACH
def test_without_retries_failures_stay_open_and_later_runs_ask_them_again(
    method, more, here, peaceful, capsys
):
    out = here / "stubborn" / method
    calm = peaceful[method]["questions"]
    with StubServer(little_model, faults=Faults(busy=0.1, broken=0.1, seed=1)) as stub:
        for attempt in range(20):
            code = evaluate(stub.url, method, out, *more, "--retries", "0")
            found = outcome(out)["questions"]
            failed = {key for key, row in found.items() if row[1] is None}
            assert {found[key][2] for key in failed} <= {"infra_error"}
            assert all(found[key] == calm[key] for key in found.keys() - failed)  # no made-up 0
            assert code == (1 if failed else 0)
            if attempt == 0:
                assert failed and "questions have no answer" in capsys.readouterr().err
            if code == 0:
                break
    assert outcome(out) == peaceful[method]


def test_a_server_that_dies_stops_the_run_and_what_was_answered_is_kept(here, peaceful, capsys):
    out = here / "dying" / "bm25"
    with StubServer(little_model, die_after=20) as stub:
        few = ("--retries", "1", "--give-up", "2", "--concurrency", "4")
        assert evaluate(stub.url, "bm25", out, *few) == 2
    said = capsys.readouterr().err
    assert said.startswith("memalpha: error:") and said.count("\n") == 1
    assert f"answers are in {out}" in said
    kept = runs.load_run(out)
    assert 15 <= len(kept.answers) <= 20
    assert evaluate("http://127.0.0.1:9/v1", "bm25", out, *few) == 2  # no server
    assert runs.load_run(out).answers == kept.answers
    with StubServer(little_model) as stub:  # another address may be another model
        assert evaluate(stub.url, "bm25", out) == 2
        assert "or say --moved if it is the same model there" in capsys.readouterr().err
        assert evaluate(stub.url, "bm25", out, "--moved") == 0
    assert stub.n_requests == 42 - len(kept.answers)
    made_by = [row["made_by"] for row in scores.scores_of(runs.load_run(out))]
    assert made_by.count(f"m at {stub.url}") == stub.n_requests and len(set(made_by)) == 2
    assert outcome(out) == peaceful["bm25"]


def test_a_judge_is_asked_once_and_its_failures_are_no_zeros(here, capsys):
    out = here / "judged" / "long"
    with StubServer(little_model) as stub:
        judge = ("--judge-url", stub.url, "--judge-model-name", "j")
        only, bench = ("--source", "longmemeval_s*"), "data/memoryagentbench"
        assert evaluate(stub.url, "long-context", out, *only, *judge, data=bench) == 0
        assert [row["metric"] for row in scores.scores_of(runs.load_run(out))] == ["judge"] * 3
        n = stub.n_requests
        assert cli.main(["score", str(out), *judge]) == 0
        assert stub.n_requests == n  # what the judge said is kept with the run
    with StubServer(lambda body: "perhaps") as stub:
        other = ("--judge-url", stub.url, "--judge-model-name", "k")
        assert cli.main(["score", str(out), *other]) == 1
    said = capsys.readouterr().err
    assert "3 of 3 answers have no verdict" in said and "without a verdict, 3 times" in said
    rows = scores.scores_of(runs.load_run(out))
    assert {(row["score"], row["status"]) for row in rows} == {(None, "judge_error")}


def test_an_embedding_model_is_a_setting(here, capsys):
    more = ("--source", "squad", "--writer", "keep_sentences", "--set", "retrieval=embedding")
    with StubServer(little_model) as stub:
        for name, code in (("e1", 0), ("e2", 2)):
            before = stub.n_requests
            embed = ("--embed-url", stub.url, "--embed-model-name", name)
            out = here / "embedded" / "memory"
            assert evaluate(stub.url, "memory", out, *more, *embed) == code
    assert "was begun with method.embed_model = 'e1', now it is 'e2'" in capsys.readouterr().err
    assert stub.n_requests == before  # other settings do not go on in the same folder


def test_a_writer_of_ours_has_not_the_price_of_the_answering_model(here, policy):
    out = here / "priced" / "memory"
    more = ("--source", "squad", "--limit", "1", "--set", "protocol.max_reply_tokens=4")
    written = ("--set", "writer=models/Memalpha-4B", "--set", "protocol.wire=text")
    with StubServer(little_model) as stub:
        price = ("--price-in", "1", "--price-out", "2")
        assert evaluate(stub.url, "memory", out, *more, *written, *price) == 0
        first = runs.load_run(out)
        assert evaluate(stub.url, "memory", out, *more, *written) == 0
    assert runs.load_run(out).info == first.info  # prices stay if none are given
    assert first.info["writer"] == "models/Memalpha-4B"
    answers, built = scores.frames({"memory": first})
    spent = answers.prompt_tokens.sum() + 2 * answers.completion_tokens.sum()
    assert answers.cost_usd.sum() == pytest.approx(spent / 1e6)
    assert built.prompt_tokens.iloc[0] > 0 and built.cost_usd.isna().all()  # unknown


def test_a_report_says_if_runs_were_asked_different_questions(here, peaceful, capsys):
    """Else two draws of `--limit` stand side by side as if they were one test."""
    base = ["evaluate", "--method", "nothing", "--data", "data/memalpha", "--out", "draws"]
    assert cli.main([*base, "--name", "all"]) == cli.main([*base, "--name", "1", "--limit", "1"])
    for others, said in ((["draws/1"], True), (["calm/bm25"], False)):
        capsys.readouterr()
        assert cli.main(["report", "draws/all", *others]) == 0
        assert ("were not asked the same questions" in capsys.readouterr().out) == said


RULE = ("--method", "memory", "--writer", "keep_sentences", "--url", "http://x", "--model-name=m")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--method", "bm52"), "did you mean 'bm25'?"),
        (("--method", "bm25", "--set", "topk=2"), "did you mean 'top_k'?"),
        (("--method", "bm25", "--set", "top_k"), "expected KEY=VALUE, found 'top_k'"),
        ((*RULE, "--set", "reader.k=5"), "reader: expected text, found {'k': 5}"),
        (("--method", "bm25", "--profile", "release"), "did you mean 'release-"),
        (("--method", "bm25", "--source", "squat"), "not in the data"),
        (("--method", "bm25", "--judge-price-in", "1"), "expected --judge-model-name too"),
        (("--method", "bm25", "--model-name", "m"), "expected an address in QWEN_URL or --url"),
        (("--method", "nothing", "--judge-model-name", "m"), "in QWEN_URL or --judge-url"),
        (("--method", "memory", "--writer", "small"), "`memalpha write --model small` writes"),
        (("--method", "bm25"), "found none; --url and --model-name name a served one"),
        ((*RULE, "--embed-model-name", "e"), "has no effect without --set retrieval=embedding"),
        ((*RULE, "--writer-model-name", "w"), "has no effect beside --writer keep_sentences"),
        (("--method", "memagent", *RULE[4:], "--writer-model-name", "w"), "with method memagent"),
        ((*RULE, "--embed-price-in", "1"), "unknown argument '--embed-price-in'"),  # not counted
    ],
)
def test_a_wrong_request_is_one_line(more, message, here, capsys):
    assert cli.main(["evaluate", "--data", "data/memalpha", *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


CRASH = """
from memalpha_kit.evaluation.contexts import ClosedBook
from memalpha_kit.evaluation.methods import METHODS

@METHODS.register("crash")
class Crash(ClosedBook):
    def answer_group(self, group, done):
        self.model.chat([self.request(group[0])[0]])
        raise RuntimeError("a fault of ours")
"""


def test_a_planted_key_is_in_no_file_page_output_or_traceback(tmp_path):
    """Files of a run and its page in HTML; notebooks: test_notebooks.py; logs: test_server.py."""
    key = "planted" + "0123456789abcdef"
    data = save_data(tmp_path / "data", ("squad",))
    (tmp_path / "crash_method.py").write_text(CRASH)
    env = {**os.environ, "OPENAI_API_KEY": key, "PYTHONPATH": f"{ROOT}:{tmp_path}"}

    def memalpha(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "memalpha_kit", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    with StubServer(little_model, key=key) as stub:
        asked = ("--data", data, "--url", stub.url, "--model-name", "m")
        memory = ("evaluate", "--method", "memory", "--writer", "api", "--name", "a")
        found = [memalpha(*memory, *asked), memalpha("explore", "runs/evaluate/a", "--data", data)]
        assert [done.returncode for done in found] == [0, 0], found[-1].stderr
        found.append(memalpha("--extend", "crash_method", "evaluate", "--method", "crash", *asked))
        stub.key = "another"
        found.append(memalpha(*memory[:-1], "b", *asked))
    assert "a fault of ours" in found[2].stderr and "Traceback" in found[2].stderr
    assert found[3].returncode == 2 and "401" in found[3].stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".html", ".jsonl", ".json"} <= {path.suffix for path in written}
    assert not [path for path in written if key.encode() in path.read_bytes()]
    assert not [done.args for done in found if key in done.stdout + done.stderr]


N_KILLS = 20
ROOT = Path(__file__).resolve().parent.parent
FORKER = """
import json, os, sys
import httpx, pandas
from memalpha_kit import cli
from memalpha_kit.evaluation import paper, runs, scores, tables
from memalpha_kit.method import judges
from memalpha_kit.models import chat, servers

for line in sys.stdin:
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(cli.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Runs commands in processes of their own, without a second for imports before each."""


class Forker:
    """`start` gives a process id; `status` waits for its end (9: killed, 0: done)."""

    def __enter__(self):
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        command = [sys.executable, "-c", FORKER]
        self.process = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def start(self, argv: list[str]) -> int:
        self.process.stdin.write(json.dumps(argv) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        return int(self.process.stdout.readline())


def test_twenty_kills_at_random_moments_lose_nothing_and_repeat_nothing(tmp_path):
    """SIGKILL after a random number of further requests, or shortly after the start.

    The run writes memories (with a journal) and then answers; both are hit.
    """
    data = save_data(tmp_path / "data", ("squad", "booksum"), 4, questions=24, chunks=6)
    chance, n_answers = random.Random(0), 2 * 4 * 24
    with StubServer(little_model, latency_s=0.02) as stub:
        argv = ["evaluate", "--method", "memory", "--writer", "api", "--data", str(data)]
        argv += ["--url", stub.url, "--model-name", "m", "--concurrency", "4"]
        argv += ["--out", str(tmp_path), "--name"]
        command = [sys.executable, "-m", "memalpha_kit", *argv]
        subprocess.run([*command, "whole"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        asked_whole = stub.n_requests
        stub.forget()
        kept, kinds = [], set()
        with Forker() as forker:
            for n in range(N_KILLS):
                before, more = stub.n_requests, chance.choice((0, *range(1, 16)))
                child, limit_s = forker.start([*argv, "killed"]), time.monotonic() + 60
                while more and stub.n_requests < before + more and time.monotonic() < limit_s:
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, 0.03 if more else 0.2))
                os.kill(child, signal.SIGKILL)
                assert forker.status() == signal.SIGKILL, f"ended before kill {n}"
                if (tmp_path / "killed" / runs.SETTINGS).exists():
                    found = runs.load_run(tmp_path / "killed")
                    kept.append(len(found.answers))
                    kinds.add("answers" if found.answers else "writes")
        subprocess.run([*command, "killed"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    lines = files.read_jsonl(tmp_path / "killed" / runs.ANSWERS)
    keys = [(line["kind"], line["instance"], line.get("qa")) for line in lines]
    assert len(keys) == len(set(keys)) == 8 + n_answers
    assert kinds == {"writes", "answers"} and kept == sorted(kept) and kept[-1] < n_answers
    assert stub.n_requests < 2 * asked_whole  # a kill costs what was under way, no more
