"""The kit with a real language model: write, evaluate, calibrate, serve, train, export, reload.

The model is SmolLM2-135M-Instruct, which `memalpha models get smollm2-135m` makes; another folder
is named by MEMALPHA_REAL_MODEL. What it says is not tested, for it is weak and rounding differs
from machine to machine: the prompts are its own, weak replies are data, and nothing is lost on the
way. `pytest -m real` runs this file alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pandas as pd
import pytest
import torch

from memalpha_kit import cli
from memalpha_kit.chats import request
from memalpha_kit.data.instances import save_instances
from memalpha_kit.evaluation import runs
from memalpha_kit.evaluation.calibration import CASES
from memalpha_kit.method.encoding import encode_chat
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.models.decode import fast
from memalpha_kit.models.local import Sampling, load_lm
from memalpha_kit.models.local_chat import LocalChat
from memalpha_kit.records import QA, make_instance
from memalpha_kit.settings import ModelConfig
from memalpha_kit.training.backends import load_adapter, load_model

pytestmark = pytest.mark.real

TOM = make_instance(
    "squad",
    ["Tom paints boats in Oslo. His sister Nora keeps bees."],
    [QA("q0", "What does Tom paint?", ("boats",)), QA("q1", "Who keeps bees?", ("Nora",))],
)
MIRA = make_instance(
    "squad",
    ["Mira lives in Lund. Her parrot is called Pixel."],
    [QA("q0", "Where does Mira live?", ("Lund",))],
)
SHORT = ("protocol.wire=text", "protocol.prompt=compact", "protocol.max_reply_tokens=16")
QUESTION = request("", "What is the capital of France?", max_tokens=24)


@pytest.fixture(scope="module")
def lm(real_model):
    """The model as it is saved."""
    return load_lm(real_model)


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set of one training and one test instance."""
    save_instances(tmp_path / "data" / "train.parquet", [MIRA])
    save_instances(tmp_path / "data" / "test.parquet", [TOM])
    return tmp_path / "data"


def memalpha(*words: object) -> int:
    """The command's exit code."""
    return cli.main([str(word) for word in words])


def sets(*settings: str) -> list[str]:
    """Settings as options."""
    return [word for setting in settings for word in ("--set", setting)]


# ---- the model itself ---------------------------------------------------------------------------


def test_prompts_are_those_of_its_chat_template_and_a_reply_ends_at_its_stop_token(lm):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = encode_chat(lm.tokenizer, messages)
    assert ids == lm.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    made = lm.generate([ids], Sampling(0.0, 48))[0]
    assert made.finish == "stop" and made.completion_ids[-1] in lm.stop_ids
    assert "Paris" in made.text
    assert lm.tokenizer.pad_token_id not in lm.stop_ids


def test_the_fast_loop_says_what_transformers_says(real_model):
    lm = load_lm(real_model, dtype="float32")
    texts = ("Name a river.", "Name a river.", "What is the capital of France?")
    prompts = [encode_chat(lm.tokenizer, [{"role": "user", "content": text}]) for text in texts]
    slow, quick = (m.generate(prompts, Sampling(0.0, 12)) for m in (lm, fast(lm)))
    assert type(fast(lm)) is not type(lm)
    for one, other in zip(slow, quick, strict=True):
        assert one.completion_ids == other.completion_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_it_learns_a_rules_calls_under_profile_small(real_model, data, tmp_path):
    out, settings = tmp_path / "warm", (f"model.name={real_model}", "warm_start.steps=4")
    settings += ("warm_start.batch=1", "warm_start.log_every=1", "warm_start.warm_up_steps=1")
    assert memalpha("warm-start", "--data", data, "--out", out, *sets(*settings)) == 0
    assert (out / "policy" / "adapter_model.safetensors").stat().st_size < 5_000_000
    loss = pd.read_csv(out / "metrics.csv")["loss"]
    assert loss.iloc[-1] < loss.iloc[0]  # one row, four times
    made = tmp_path / "small"
    argv = ["export", out / "policy", "--base", real_model, "--out", made]
    assert memalpha(*argv, "--dtype", "float32") == 0  # 16 bits would round it, and are refused
    argv = ["write", "--profile", "small", "--model", made, "--data", data / "test.parquet"]
    assert memalpha(*argv, "--out", tmp_path / "e.jsonl", *sets(*settings[:1])) == 0
    assert load_episodes(tmp_path / "e.jsonl")[0].wire == "lines"


# ---- write --------------------------------------------------------------------------------------


def test_it_writes_and_a_silent_one_is_warned_about(real_model, data, tmp_path, capsys):
    argv = ["write", "--data", data / "test.parquet", "--model", real_model]
    argv += ["--out", tmp_path / "e.jsonl", *sets(*SHORT)]
    assert memalpha(*argv) == 0
    said = capsys.readouterr()
    (step,) = load_episodes(tmp_path / "e.jsonl")[0].steps
    assert 0 < len(step.completion.completion_ids) <= 16 and step.completion.prompt_ids
    assert ("the writer made no call" in said.err) == (not step.calls)
    assert memalpha(*argv) == 0 and "0 of them new" in capsys.readouterr().out


def test_tools_that_its_template_leaves_out_are_refused_with_what_helps(
    real_model, data, tmp_path, capsys
):
    argv = ["write", "--data", data / "test.parquet", "--model", real_model]
    assert memalpha(*argv, "--out", tmp_path / "e.jsonl") == 2
    assert "--set protocol.wire=text" in capsys.readouterr().err
    argv = ["evaluate", "--method", "memory", "--writer", "keep_sentences", "--reader", "agentic"]
    argv += ["--model", real_model, "--data", data / "test.parquet", "--out", tmp_path / "runs"]
    assert memalpha(*argv) == 2
    assert "--reader model" in capsys.readouterr().err


# ---- evaluate -----------------------------------------------------------------------------------

METHODS = {
    "memory": (*SHORT, "top_k=2"),
    "long-context": (),
    "bm25": ("top_k=1",),
    "closed-book": (),
    "mem1": ("state_tokens=8",),
}


@pytest.mark.parametrize("method", METHODS)
def test_it_answers_by_every_method(real_model, data, tmp_path, capsys, method):
    """MEM1: eight tokens hold no summary in its tags. A model's mistake, which ends as a score."""
    argv = ["evaluate", "--method", method, "--model", real_model, "--out", tmp_path / "runs"]
    argv += ["--writer", real_model] if method == "memory" else []
    argv += ["--data", data / "test.parquet", *sets("max_tokens=16", *METHODS[method])]
    assert memalpha(*argv) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    run = runs.load_run(folder)
    answers = list(run.answers.values())
    assert run.complete and len(answers) == 2
    assert all(answer.prediction and answer.completion_tokens for answer in answers)
    if method == "mem1":
        (made,) = run.prepared.values()
        assert (made.unusable, made.memory_tokens, made.error) == (1, 0, "")
    assert "| squad " in capsys.readouterr().out


def test_its_own_vectors_retrieve(real_model, data, tmp_path):
    """A model of another kind would do it better; it is the folder that is at hand."""
    argv = ["evaluate", "--method", "memory", "--writer", "keep_sentences", "--model", real_model]
    argv += ["--embed-model", real_model, *sets("retrieval=embedding", "top_k=1", "max_tokens=8")]
    assert memalpha(*argv, "--data", data / "test.parquet", "--out", tmp_path / "runs") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert all(len(answer.retrieved) == 1 for answer in runs.load_run(folder).answers.values())


# ---- calibrate ----------------------------------------------------------------------------------


def test_it_judges_and_what_cannot_be_read_is_missing(real_model, tmp_path, capsys):
    cases, out = tmp_path / "cases.jsonl", tmp_path / "table.csv"
    lines = CASES.read_text(encoding="utf-8").splitlines()
    yes_no = [line for line in lines if '"single-session-user"' in line]
    cases.write_text("\n".join([lines[0], *yes_no[:1]]), encoding="utf-8")
    argv = ["calibrate", "--model", real_model, "--cases", cases, "--out", out, "--repeats", 1]
    code = memalpha(*argv, "--rubric", "published", "--max-tokens", 8)
    table = pd.read_csv(out)
    assert list(table["judge"]) == ["content", "longmemeval"]
    assert table["missing"].iloc[0] == 1  # eight tokens hold no verdict in JSON
    assert code == int(table["missing"].sum() == 2)


# ---- served -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(real_model):
    """The model behind `transformers serve`, a server of somebody else's making."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", real_model]
    if not command[0].is_file():
        pytest.skip("the command `transformers` is not installed beside Python")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = subprocess.DEVNULL
    more = ["--port", str(port), "--device", "cpu"]
    process = subprocess.Popen([*map(str, command), *more], env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            if process.poll() is not None:
                pytest.skip("`transformers serve` ended at once (its extras are not installed?)")
            try:
                httpx.get(f"{url}/health", trust_env=False, timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_another_server_answers_the_official_client_our_methods_and_our_server(
    served, real_model, data, tmp_path
):
    name = str(real_model)
    client = openai.OpenAI(base_url=served, api_key="none", timeout=120, max_retries=0)
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    said = client.chat.completions.create(model=name, messages=ask, max_tokens=16, temperature=0)
    assert "Paris" in said.choices[0].message.content
    where = ("--url", served, "--model-name", name)
    argv = ["evaluate", "--method", "long-context", *where, *sets("max_tokens=8")]
    assert memalpha(*argv, "--data", data / "test.parquet", "--out", tmp_path / "runs") == 0
    command = [sys.executable, "-m", "memalpha_kit", "serve", *where, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        with httpx.Client(base_url=url, timeout=300, trust_env=False) as http:
            assert http.get("/ready").status_code == 200
            memory = {"core": "", "semantic": [{"1": "Nora keeps bees."}], "episodic": []}
            body = {"memories": [memory], "questions": [["Who keeps bees?"]], "max_tokens": 16}
            ((answer,),) = http.post("/batch_process", json=body).json()["result"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and answer


@pytest.mark.parametrize("wire", ["qwen", "text"])
def test_behind_a_server_it_writes_with_its_tools_or_marker_text_and_silence_is_said(
    served, real_model, data, tmp_path, capsys, wire
):
    argv = ["evaluate", "--method", "memory", "--writer", "api", "--reader", "best_entry"]
    argv += ["--url", served, "--model-name", real_model, "--data", data / "test.parquet"]
    argv += sets(f"protocol.wire={wire}", "protocol.max_reply_tokens=16")
    assert memalpha(*argv, "--out", tmp_path / "runs") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    (made,) = runs.load_run(folder).prepared.values()
    (step,) = made.episode.steps
    assert made.episode.wire == wire and step.completion.text and made.completion_tokens
    said = capsys.readouterr()
    assert "calls_per_chunk" in said.out
    assert ("the writer made no call in 1 of 1 chunks" in said.err) == (not step.calls)
    if not step.calls:
        assert ("protocol.wire=text" in said.err) == (wire == "qwen")


# ---- train, export, reload ----------------------------------------------------------------------

TERM = '''
from memalpha_kit.method.rewards import TERMS


@TERMS.register("first_rollout")
def first_rollout(scene):
    """Something to learn for a model that makes no calls: the rollouts' rewards differ."""
    return float(scene.episode.rollout == 0)
'''
STEP = {
    "model.backend": "transformers",
    "model.vllm": "none",
    "model.dtype": "float32",
    "model.lora_rank": 4,
    "model.max_seq_length": 1024,
    "model.reader": "base",
    "memory.core": "false",
    "memory.counter": "words",
    "protocol.max_prompt_tokens": 256,
    "reward.content": 0,
    "reward.others": "{first_rollout: 1.0}",
    "grpo.steps": 1,
    "grpo.instances": 1,
    "grpo.rollouts": 2,
    "grpo.slices": 1,
    "grpo.learning_rate": 0.001,
    "grpo.warm_up_steps": 0,
    "grpo.validate_every": 0,
}


def test_a_step_moves_the_adapter_and_the_export_says_what_was_trained(
    real_model, data, tmp_path, monkeypatch
):
    """The base reads with its adapter off, on a CPU; then export, reload, and both generate."""
    (tmp_path / "first_rollout_term.py").write_text(TERM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("memalpha_kit.method.model_readers.ModelReader.max_tokens", 8)
    run = tmp_path / "run"
    settings = [f"{name}={value}" for name, value in STEP.items()]
    argv = ["--extend", "first_rollout_term", "train", "--profile", "gpu", "--data", data]
    argv += ["--out", run, *sets(f"model.name={real_model}", *settings, *SHORT)]
    assert memalpha(*argv) == 0
    (row,) = pd.read_csv(run / "metrics.csv").to_dict("records")
    assert row["grad_norm"] > 0 and row["flat_rows"] == 0 and row["reward_std"] > 0

    model = ModelConfig(name=str(real_model), lora_rank=4, dtype="float32")
    trained = load_model(model, real_model, 0)
    load_adapter(trained.model, run / "policy")
    again, base = load_lm(run / "export"), load_lm(real_model, dtype="float32")
    assert again.stop_ids == base.stop_ids and again.model.dtype == torch.float32
    said = json.loads((run / "export" / "generation_config.json").read_text())
    assert said["eos_token_id"] in (base.stop_ids[0], list(base.stop_ids))
    one, other = (LocalChat(found).chat([QUESTION])[0] for found in (trained, again))
    assert (one.text, one.finish) == (other.text, other.finish) and one.finish == "stop"
    weights = dict(base.model.named_parameters())
    moved = [
        name
        for name, weight in again.model.named_parameters()
        if not torch.equal(weight, weights[name])
    ]
    assert moved and all(re.search("_proj.weight", name) for name in moved)
