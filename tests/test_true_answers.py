"""What a run says of its answers is true, whatever the server does: who, at what cost, or not."""

from __future__ import annotations

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
