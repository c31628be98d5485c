"""What a run says of its answers is true, whatever the server does: who, at what cost, or not."""

import json

import pytest
from little_world import save_data
from stub_server import StubServer

from memalpha_kit import cli, files
from memalpha_kit.evaluation import runs, scores
from memalpha_kit.method.saved import episode_fields, load_episodes

PRICES = ("--price-in", "1", "--price-out", "10")


@pytest.fixture
def data(tmp_path):
    return save_data(tmp_path / "data", ("squad",), 1)


def evaluate(url, data, out, *more, method="closed-book"):
    argv = ["evaluate", "--method", method, "--data", data, "--url", url, "--model-name", "m"]
    argv += ["--out", out.parent, "--name", out.name, "--retries", "1", *more]
    return cli.main([str(word) for word in argv])


USAGE = {"usage": {"prompt_tokens": 100, "completion_tokens": 10}}
SILENT = {"content": ""} | USAGE
THOUGHT = {"content": None, "reasoning_content": "Hm."} | USAGE
GOOD = {"content": "17"} | USAGE


def per_request(*said):
    """A server that says these to each question in turn, the last one for ever."""
    asked = {}

    def answer(body):
        text = json.dumps(body["messages"])
        asked[text] = asked.get(text, -1) + 1
        return said[min(asked[text], len(said) - 1)]

    return answer


@pytest.mark.parametrize(
    ("said", "code", "replies"),
    [((GOOD,), 0, 1), ((SILENT, GOOD), 0, 2), ((THOUGHT,), 1, 1)],
    ids=["good at once", "good after one that was thrown away", "never good, and missing"],
)
def test_costs_count_every_reply_that_was_paid_for(said, code, replies, data, tmp_path):
    out = tmp_path / "run"
    with StubServer(per_request(*said)) as stub:
        assert evaluate(stub.url, data, out, *PRICES) == code
        n = stub.n_requests
    run = runs.load_run(out)
    answers, built = scores.frames({"m": run})
    paid = answers.cost_usd.sum() + built.cost_usd.sum()
    assert n == replies * len(run.questions) and paid == pytest.approx(n * 2e-4)


WAYS = {  # every method that asks a model, by the model's part in it
    "closed-book": (),
    "bm25": (),
    "memagent": (),
    "mem1": (),
    "memory": ("--writer", "keep_sentences"),
    "memory, searching": ("--writer", "keep_sentences", "--set", "reader=agentic"),
    "memory, written by it": ("--writer", "api", "--set", "reader=best_entry"),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_asked_what_was_only_reasoning_is_never_scored(way, data, tmp_path, capsys):
    out, method = tmp_path / "run", way.partition(",")[0]
    with StubServer(lambda body: THOUGHT) as stub:
        assert evaluate(stub.url, data, out, *WAYS[way], *PRICES, method=method) == 1
        n = stub.n_requests
    run = runs.load_run(out)
    assert not run.answers and {row["score"] for row in scores.scores_of(run)} == {None}
    assert "reasoning field" in capsys.readouterr().err
    answers, built = scores.frames({"m": run})
    assert answers.cost_usd.sum() + built.cost_usd.sum() == pytest.approx(n * 2e-4)


@pytest.mark.parametrize("way", ["memagent", "mem1", "memory, written by it"])
def test_a_memory_that_failed_on_the_way_costs_each_of_its_replies_once(way, tmp_path):
    """Good replies are kept for the next attempt, so only the last one is thrown away."""
    data, out = save_data(tmp_path / "data", ("squad",), 1), tmp_path / "run"
    more, method = WAYS[way], way.partition(",")[0]
    said = {"content": "<think>17</think>"} | USAGE
    with StubServer(lambda body: said if stub.n_requests == 1 else THOUGHT) as stub:
        assert evaluate(stub.url, data, out, *more, *PRICES, method=method) == 1
        tables = scores.frames({"m": runs.load_run(out)})
        assert sum(part.cost_usd.sum() for part in tables) == pytest.approx(stub.n_requests * 2e-4)
        assert stub.n_requests == 2
        stub.answer = lambda body: said
        assert evaluate(stub.url, data, out, *more, *PRICES, method=method) == 0
        tables = scores.frames({"m": runs.load_run(out)})
        assert sum(part.cost_usd.sum() for part in tables) == pytest.approx(stub.n_requests * 2e-4)


def test_costs_count_every_reply_of_a_judge_and_say_where_it_was(tmp_path, capsys):
    data, out = save_data(tmp_path / "data", ("longmemeval",), 1), tmp_path / "run"
    with StubServer(lambda body: GOOD) as stub:
        assert evaluate(stub.url, data, out) == 0
    judge = ("--judge-model-name", "j", "--judge-price-in", "1", "--judge-price-out", "10")
    with StubServer(lambda body: THOUGHT) as stub:

        def scored():
            argv = ["score", str(out), "--judge-url", stub.url, *judge]
            code = cli.main(argv)
            _, built = scores.frames({"m": runs.load_run(out)})
            assert built.cost_usd.sum() == pytest.approx(stub.n_requests * 2e-4)
            return code, {row["score"] for row in scores.scores_of(runs.load_run(out))}

        assert scored() == (1, {None})  # only reasoning: no verdict
        stub.answer = lambda body: {"content": "Perhaps."} | USAGE
        assert scored() == (1, {None})
        stub.answer = lambda body: {"content": "No."} | USAGE
        assert scored() == (1, {None})  # what it said, it said
        [head, *_] = files.read_jsonl(out / "scores" / "fixed.jsonl")
        assert head["judge"] == f"j at {stub.url}, rubric published"


def test_another_address_gets_no_reply_of_the_first_from_the_cache_or_the_journal(data, tmp_path):
    out, more = tmp_path / "run", ("--cache", tmp_path / "cache")
    said = {"content": "<think>17</think>"} | USAGE
    with StubServer(lambda body: said if first.n_requests == 1 else THOUGHT) as first:
        assert evaluate(first.url, data, out, *more, method="mem1") == 1
    with StubServer(lambda body: said) as second:
        assert evaluate(second.url, data, out, *more, "--moved", method="mem1") == 0
        [made] = runs.load_run(out).prepared.values()
        n_questions = len(runs.load_run(out).questions)
        assert second.n_requests == made.requests + n_questions


def test_a_prompt_that_is_too_long_is_said_not_to_get_better(data, tmp_path, capsys):
    assert evaluate("http://127.0.0.1:9/v1", data, tmp_path / "run", "--set", "window=12") == 1
    assert "do not fit the model's window, so asking again will not help" in capsys.readouterr().err


WRITES = {"content": "", "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
MARKER = (
    "✿FUNCTION✿: new_memory_insert\n"
    '✿ARGS✿: {"memory_type": "semantic_memory", "content": "The code is 17."}'
)


def written(run):
    return [len(made.episode.memory.semantic) for made in run.prepared.values()]


def test_a_served_model_without_tools_is_warned_about_and_can_write_marker_text(
    data, tmp_path, capsys
):
    def without_tools(body):
        return MARKER if "✿FUNCTION✿" in json.dumps(body, ensure_ascii=False) else "I store it."

    api = ("--writer", "api", "--set", "reader=best_entry")
    with StubServer(without_tools) as stub:
        assert evaluate(stub.url, data, tmp_path / "tools", *api, method="memory") == 0
        said = capsys.readouterr().err
        text = (*api, "--set", "protocol.wire=text")
        assert evaluate(stub.url, data, tmp_path / "text", *text, method="memory") == 0
        assert not any("tools" in body for body in stub.requests[-1:])
    assert "the writer made no call in" in said and "protocol.wire=text" in said
    assert "no call" not in capsys.readouterr().err
    assert written(runs.load_run(tmp_path / "tools")) == [0]
    assert written(runs.load_run(tmp_path / "text")) == [1]


def test_two_processes_cannot_write_one_file_and_an_episode_comes_once(data, tmp_path, capsys):
    out = tmp_path / "e.jsonl"
    argv = ["write", "--data", str(data), "--writer", "keep_sentences", "--out", str(out)]
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    assert "calls," in shown and "no call in 0 of" in shown
    with files.Log(out) as log:
        assert cli.main(argv) == 2
        assert "another process" in capsys.readouterr().err
        log.append(episode_fields(load_episodes(out)[0]))
    asked = ["ask", "--data", str(data), "--episodes", str(out), "--reader", "best_entry"]
    assert cli.main([*asked, "--out", str(tmp_path / "run")]) == 2
    assert "expected each id once" in capsys.readouterr().err
