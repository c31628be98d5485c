"""Calibration: kappa by hand, labelled cases, repeats that no cache can hide, real HTTP."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from stub_server import StubServer
from tiny_models import tiny_qwen3, tiny_tokenizer

from memalpha_kit import cli
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.calibration import (
    CASES,
    KINDS,
    Case,
    kappas,
    load_cases,
    model_judge,
    repeated,
    table_calibration,
)
from memalpha_kit.method.judges import RUBRICS, Verdict
from memalpha_kit.models.chat import Client
from memalpha_kit.models.servers import Endpoint


def core(*labels):
    """Core cases with these labels."""
    return [Case(f"c{i}", "content", "core", label, text="x") for i, label in enumerate(labels)]


def said(*values):
    return [Verdict(value) for value in values]


def table_of(cases, repeats, **settings):
    """The table of these verdicts, one list per repeat."""
    given = iter(repeats)
    verdicts = repeated(lambda *_: next(given), cases, len(repeats))
    return table_calibration(verdicts, **settings)


def calibrate(judge, repeats=1, seed=0):
    return table_calibration(repeated(judge, load_cases(), repeats, seed), seed)


# ---- kappa by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ((20, 5, 10, 15), 0.4),  # p_o 0.7, p_e 0.5
        ((45, 15, 25, 15), 0.1304),  # p_o 0.6, p_e 0.54
        ((25, 35, 5, 35), 0.2593),  # p_o 0.6, p_e 0.46
        ((7, 0, 0, 3), 1.0),
        ((0, 5, 5, 0), -1.0),
        ((5, 5, 5, 5), 0.0),
        ((6, 0, 4, 0), 0.0),  # a judge that says yes to all
        ((4, 0, 0, 0), None),  # both say the same of all
        ((0, 0, 0, 0), None),
    ],
)
def test_kappa_by_hand(counts, kappa):
    found = float(kappas(np.array(counts)))
    assert np.isnan(found) if kappa is None else found == pytest.approx(kappa, abs=5e-5)


def test_missing_verdicts_are_left_out_of_kappa_and_bound_agreement():
    labels = [True, True, False, False, True, False]
    verdicts = said(True, False, False, None, None, True)
    [row] = table_of(core(*labels), [verdicts]).to_dict("records")
    assert row["kappa"] == 0.0, "p_o 2/4, p_e 1/2"
    assert row["missing"] == 2 and row["agreement"] == 0.5
    assert (row["agreement_low"], row["agreement_high"]) == (2 / 6, 4 / 6)
    assert (row["false_valid"], row["false_invalid"]) == (1, 1)
    [none] = table_of(core(*labels), [said(*[None] * 6)]).to_dict("records")
    assert np.isnan([none[name] for name in ("kappa", "kappa_low", "agreement", "flips")]).all()
    assert (none["agreement_low"], none["agreement_high"], none["missing"]) == (0, 1, 6)


# ---- interval and variance -----------------------------------------------------------------------


def test_the_interval_draws_cases_with_all_their_repeats():
    """Saying the same five times is no more evidence than saying it once."""
    cases = core(*[True, False] * 20)
    verdicts = said(*[case.valid ^ (i % 5 == 0) for i, case in enumerate(cases)])
    once, five = (table_of(cases, [verdicts] * n).iloc[0] for n in (1, 5))
    names = ["kappa", "kappa_low", "kappa_high"]
    assert once[names].tolist() == pytest.approx(five[names].tolist())
    assert once["kappa"] == pytest.approx(0.6)
    assert once["kappa_low"] < 0.6 < once["kappa_high"]


def test_the_interval_covers_the_true_kappa_about_as_often_as_it_says():
    """200 samples of 40 cases from a judge that errs on 15 % (kappa 0.7 on balanced labels)."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        labels = rng.random(40) < 0.5
        cases = core(*map(bool, labels))
        verdicts = said(*map(bool, labels ^ (rng.random(40) < 0.15)))
        row = table_of(cases, [verdicts], seed=seed, draws=300).iloc[0]
        covered += row["kappa_low"] <= 0.7 <= row["kappa_high"]
    assert 0.88 <= covered / 200 <= 0.99


def test_repeat_variance_by_hand():
    cases = core(True, True, False, False)
    repeats = [said(True, True, False, None), said(True, False, False, False)]
    [row] = table_of(cases, repeats).to_dict("records")
    assert row["repeats"] == 2 and row["missing"] == 1
    assert row["flips"] == pytest.approx(1 / 3), "of the three cases with two verdicts"
    assert row["variance"] == pytest.approx(0.25 / 3)
    assert row["kappa_sd"] == pytest.approx(np.std([1.0, 0.5], ddof=1))
    assert row["agreement"] == pytest.approx(6 / 7)
    [one] = table_of(cases, repeats[1:]).to_dict("records")
    assert np.isnan([one["flips"], one["variance"], one["kappa_sd"]]).all()


def test_every_repeat_has_a_seed_of_its_own():
    seeds = []

    def judge(cases, seed):
        seeds.append(seed)
        return said(*[True] * len(cases))

    verdicts = repeated(judge, core(True, False), repeats=3, seed=7)
    assert seeds == [7, 8, 9] and verdicts["seed"].tolist() == [7, 7, 8, 8, 9, 9]
    with pytest.raises(InputError, match="repeats"):
        repeated(judge, core(True), repeats=0)


# ---- the labelled cases --------------------------------------------------------------------------


def test_the_cases_are_many_balanced_and_of_every_kind():
    cases = load_cases()
    assert len(cases) >= 60 and len({case.id for case in cases}) == len(cases)
    labels = Counter((case.judge, case.kind, case.valid) for case in cases)
    for judge, kinds in KINDS.items():
        for kind in kinds:
            assert labels[judge, kind, True] == labels[judge, kind, False] >= 4
    assert all(case.note for case in cases)
    rated = [(case.kind, case.text, case.question, case.answer) for case in cases]
    assert len(set(rated)) == len(rated)


GOOD = {"id": "a", "judge": "content", "kind": "core", "valid": True, "text": "x"}
RATED = {"id": "a", "judge": "correct_wrong", "kind": "correct_wrong", "valid": True}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "expected content, found an empty file"),
        (["{"], ":1: expected JSON"),
        (["[]"], ":1: expected an object, found list"),
        ([GOOD, GOOD], "expected each id once"),
        ([GOOD | {"lable": 1}], "unknown key 'lable'"),
        ([GOOD | {"judge": "jury"}], "judge: found 'jury'; known: content"),
        ([GOOD | {"kind": "multi-session"}], "kind: expected one of"),
        ([GOOD, GOOD | {"id": "b", "valid": 1}], ":2: valid: expected true or false, found 1"),
        ([GOOD | {"text": " "}], "text: expected text"),
        ([RATED | {"question": "Q?", "answer": "A"}], "gold: expected text, found none"),
        ([RATED | {"question": "Q?", "answer": "A", "gold": "A"}], "gold: expected a list"),
        ([RATED | {"answer": "A", "gold": ["A"]}], "question: expected text, found none"),
    ],
)
def test_a_bad_case_file_is_refused_with_its_line(tmp_path, lines, said):
    file = tmp_path / "cases.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts))
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        load_cases(file)


# ---- the floor without a model -------------------------------------------------------------------


def test_the_recorded_table_of_the_rules_is_what_the_command_gives(root, tmp_path, capsys):
    argv = ["calibrate", "--judge", "rules", "--repeats", "1"]
    assert cli.main([*argv, "--out", str(tmp_path / "made.csv")]) == 0
    made, kept = (
        list(csv.DictReader(file.open()))
        for file in (tmp_path / "made.csv", root / "reports/recorded/judge_calibration.csv")
    )
    assert len(made) == len(kept)
    for ours, recorded in zip(made, kept, strict=True):
        for name, value in recorded.items():
            same = ours[name] == value or float(ours[name]) == pytest.approx(float(value))
            assert same, (recorded["kind"], name)
    shown = capsys.readouterr().out
    assert "temporal-reasoning" in shown and "0.788" in shown and "None" not in shown


# ---- models over HTTP ----------------------------------------------------------------------------


LABELLED = load_cases()


def right(body):
    """A server that knows all labels: it looks for each case's own text in the prompt."""
    prompt = body["messages"][-1]["content"]
    for case in LABELLED:
        if f"<text>\n{case.text}\n</text>" in prompt and f"type: {case.kind}\n" in prompt:
            verdict = {"VALID": case.valid, "ISSUES": [], "EXPLANATION": ""}
            return f"```json\n{json.dumps(verdict)}```"
        if case.question and f"{case.question}\n<" in prompt and f">\n{case.answer}\n<" in prompt:
            if case.judge == "correct_wrong":
                return f"<label>{'CORRECT' if case.valid else 'WRONG'}</label>"
            return "Yes, it is known." if case.valid else "No."
    raise AssertionError(prompt)


def unsteady(body):
    """As `right`, but wrong on every prompt of even length when the seed is odd."""
    reply = right(body)
    if body["seed"] % 2 and len(body["messages"][-1]["content"]) % 2 == 0:
        for pair in (("true", "false"), ("Yes", "No"), ("CORRECT", "WRONG")):
            old = next((word for word in pair if word in reply), None)
            if old:
                return reply.replace(old, pair[pair[0] == old])
    return reply


def client(stub, **settings):
    return Client(Endpoint(stub.url, "stub", **settings))


def test_a_cache_keeps_repeats_apart_and_a_second_run_asks_nobody(tmp_path):
    with StubServer(unsteady) as stub:
        tables = []
        for asked in (3 * len(load_cases()), 0):
            stub.forget()
            judge = model_judge(client(stub, cache=tmp_path))
            tables.append(calibrate(judge, repeats=3))
            assert stub.n_requests == asked
    first, second = tables
    assert first.equals(second)
    row = first.set_index(["judge", "kind"]).loc[("content", "all")]
    even = row["flips"]
    assert 0.2 < even < 0.8, "seed 1 differs on prompts of even length"
    assert row["variance"] == pytest.approx(even * (1 / 3) * (2 / 3))
    assert row["agreement"] == pytest.approx(1 - even / 3) and row["kappa_sd"] > 0


def test_a_model_that_never_keeps_the_format_is_missing_and_not_wrong():
    with StubServer(lambda body: "Well, maybe.") as stub:
        table = calibrate(model_judge(client(stub)))
        released = calibrate(model_judge(client(stub), behaviour="release"))
    assert table["kappa"].isna().all() and (table["missing"] == table["n"]).all()
    assert (table["retried"] == table["n"]).all()
    assert (released["missing"] == 0).all() and (released["failed"] > 0).sum() >= 4
    assert (released["kappa"] == 0).all(), "released: all of these count as judged and invalid"


# ---- the command ---------------------------------------------------------------------------------


def run(capsys, *argv):
    code = cli.main(["calibrate", *map(str, argv)])
    return code, *capsys.readouterr()


def test_the_command_asks_a_server_prints_and_saves(tmp_path, capsys, monkeypatch):
    out, replies = tmp_path / "table.csv", tmp_path / "replies.jsonl"
    with StubServer(right, key="sesame") as stub:
        monkeypatch.setenv("STUB_KEY", "sesame")
        options = ["--url", stub.url, "--model-name", "stub", "--key-env", "STUB_KEY"]
        code, shown, _ = run(capsys, *options, "--out", out, "--replies", replies, "--repeats", 2)
    assert code == 0 and str(out) in shown and "by_type" in shown and "sesame" not in shown
    rows = list(csv.DictReader(out.open()))
    assert Counter(row["rubric"] for row in rows) == {"published": 8, "by_type": 8, "": 5}
    assert {row["model"] for row in rows} == {"stub"}
    assert {(row["kappa"], row["missing"]) for row in rows} == {("1.0", "0")}
    assert {float(row["flips"]) for row in rows} == {0.0}
    lines = [json.loads(line) for line in replies.read_text().splitlines()]
    assert len(lines) == 2 * (len(load_cases()) + 56)
    assert {line["seed"] for line in lines} == {0, 1} and lines[0]["reply"].startswith("```json")
    prompts = [body["messages"][-1]["content"] for body in stub.requests]
    assert sum(RUBRICS["published"] in prompt for prompt in prompts) == 2 * 48
    assert sum(RUBRICS["abstention"] in prompt for prompt in prompts) == 4 * 8  # under both rubrics


def test_the_command_passes_its_settings_on(tmp_path, capsys):
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join(CASES.read_text(encoding="utf-8").splitlines()[:2]))
    with StubServer(right) as stub:
        server = ["--url", stub.url, "--model-name", "stub", "--cases", cases]
        settings = ["--temperature", 0.7, "--max-tokens", 99, "--seed", 5, "--repeats", 1]
        run(capsys, *server, *settings, "--thinking", "--out", tmp_path / "table.csv")
    assert len(stub.requests) == 2, "no second rubric without cases for it"
    [body, _] = stub.requests
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.7, 99, 5)
    assert body["chat_template_kwargs"] == {"enable_thinking": True}


def test_a_local_model_judges_without_a_server(tmp_path, capsys):
    """A random one writes debris, which is missing and not wrong."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tiny")
    tiny_qwen3(tokenizer).save_pretrained(tmp_path / "tiny")
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join(CASES.read_text(encoding="utf-8").splitlines()[:2]))
    options = ["--model", tmp_path / "tiny", "--max-tokens", 4, "--repeats", 1]
    code, _, error = run(capsys, *options, "--cases", cases, "--out", tmp_path / "table.csv")
    [row] = csv.DictReader((tmp_path / "table.csv").open())
    assert code == 1 and "no verdict at all" in error
    assert (row["model"], row["missing"], row["retried"]) == ("tiny", "2", "2")
    assert row["kappa"] == "" and (row["agreement_low"], row["agreement_high"]) == ("0.0", "1.0")


def test_a_refusing_server_and_wrong_options_are_one_line(tmp_path, capsys, monkeypatch):
    for name in ("QWEN_URL", "QWEN_MODEL_NAME", "OPENAI_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "table.csv"

    def refused(*argv):
        code, _, error = run(capsys, "--out", out, *argv)
        assert code == 2 and not out.exists()
        return error

    served = ("--model-name", "m", "--retries", 0, "--give-up", 2, "--url")
    with StubServer(right, key="sesame") as stub:
        assert "401" in refused(*served, stub.url)
    assert stub.url in refused(*served, stub.url), "nobody listens there any more"
    assert "QWEN_URL" in refused()
    assert "--model" in refused("--model", tmp_path, "--url", "http://x/v1")
    assert "repeats" in refused("--judge", "rules", "--repeats", 0)
    assert "temperature: expected at least 0" in refused("--model", "m", "--temperature", -1)
    assert "max_tokens: expected at least 1" in refused("--model", "m", "--max-tokens", 0)
    for idle in (("--model", "m"), ("--url", "http://x"), ("--temperature", 0), ("--thinking",)):
        assert "no model and no setting of one" in refused("--judge", "rules", *idle)
