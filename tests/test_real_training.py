"""`memalpha train` on a CPU: a tiny model, tiny data, every reader, killed and resumed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import tiny_policy as tiny
import torch
from safetensors.torch import load_file
from stub_server import StubServer
from tiny_models import tiny_qwen3, tiny_tokenizer

from memalpha_kit import cli
from memalpha_kit.chats import request
from memalpha_kit.data.dataset import train_and_held_out
from memalpha_kit.data.instances import load_instances, save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.lab import toy
from memalpha_kit.method.calls import parse_reply
from memalpha_kit.method.model_readers import ModelReader
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.method.writers import sentences
from memalpha_kit.models.local import load_lm
from memalpha_kit.models.local_chat import AskedModel, LocalChat
from memalpha_kit.models.tiny import save_policy
from memalpha_kit.records import make_instance
from memalpha_kit.settings import ModelConfig, load_profile
from memalpha_kit.training import backends
from memalpha_kit.training import real as real_training

SOURCES = ("squad", "trec_coarse")
SETTINGS = dict(setting.split("=") for setting in tiny.CHAT_SETTINGS)
RULE = {name: SETTINGS.pop(name) for name in ("model.reader", "reward.content")}
SETTINGS |= {"grpo.steps": 2, "grpo.learning_rate": 0.05, "grpo.warm_up_steps": 0}
SETTINGS |= {"grpo.save_every": 1, "grpo.validate_every": 1, "grpo.validate_instances": 2}
SETTINGS |= {"grpo.outage_retries": 0}
READERS = {"base": {"reward.content": 0}, "rule": RULE, "full": RULE | {"model.lora_rank": 0}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny chat model's folder; every call of the tiny world is one of its tokens."""
    return tiny.saved_chat(tmp_path_factory.mktemp("model") / "tiny")


def instance(source, number):
    """Two chunks `fact n`, each asked for."""
    made = tiny.instance(number)
    return make_instance(source, made.chunks, made.questions)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two data sets as `memalpha data build` writes them."""
    folder = tmp_path_factory.mktemp("data")
    for i, source in enumerate(SOURCES):
        built = [instance(source, 10 * i + 2 * j) for j in range(3)]
        save_instances(folder / source / "train.parquet", built[:2])
        save_instances(folder / source / "test.parquet", built[2:])
    return [folder / source for source in SOURCES]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Answers of a few tokens."""
    monkeypatch.setattr(ModelReader, "max_tokens", 16)


def sets(settings):
    """Settings as options."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def train(base, data, out, *more, **settings):
    """`memalpha train` in this process."""
    command = ["train", "--profile", "gpu", "--data", *map(str, data), "--out", str(out)]
    return cli.main([*command, *sets({"model.name": base} | SETTINGS | settings), *more])


def same(one, other):
    """Whether two runs exported the same weights, and have the same tables."""
    before, after = (tiny.weights(out / "export") for out in (one, other))
    tables = [(out / "metrics.csv").read_bytes() for out in (one, other)]
    return tables[0] == tables[1] and tiny.equal(before, after)


@pytest.mark.parametrize("name", READERS)
def test_a_killed_run_resumes_to_what_an_uninterrupted_one_exports(
    base, data, tmp_path, capsys, name
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(base, data, whole, **READERS[name]) == 0
    assert f"{whole / 'export'}: policy of step" in capsys.readouterr().out

    with tiny.at_step(1, tiny.power_cut):
        assert train(base, data, cut, **READERS[name]) == 130
    assert json.loads((cut / "run.json").read_text())["finished"] is False
    assert train(base, data, cut, "--resume", **READERS[name]) == 0
    looks = [(out / "validation.csv").read_bytes() for out in (whole, cut)]
    assert looks[0] == looks[1]
    assert same(whole, cut)
    assert not tiny.equal(tiny.weights(base), tiny.weights(whole / "export"))
    card = json.loads((whole / "run.json").read_text())
    assert card["finished"] and card["device"] == "cpu" and card["instances"] == 4


# --- A served reader and judge --------------------------------------------------------------------


def served(body):
    """A judge that likes even facts, and a reader that finds a fact in what it is shown."""
    said = "\n".join(str(message["content"]) for message in body["messages"])
    written = re.search(r"<text>\s*fact (\d+)\s*</text>", said)
    if written:
        valid = json.dumps(int(written[1]) % 2 == 0)
        return f'```json\n{{"VALID": {valid}, "ISSUES": [], "EXPLANATION": ""}}\n```'
    asked = re.search(r"which fact is (\d+)", said)
    return asked[1] if asked and f"fact {asked[1]}" in said else "I do not know."


@pytest.fixture
def stub(monkeypatch):
    """A served model that asks for a key; the environment names it."""
    with StubServer(served, key="sesame-42", models=("stub",)) as server:
        for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "OPENROUTER_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("QWEN_URL", server.url)
        monkeypatch.setenv("QWEN_MODEL_NAME", "stub")
        monkeypatch.setenv("OPENAI_API_KEY", "sesame-42")
        yield server


def test_a_dead_server_stops_the_run_and_a_live_one_lets_it_go_on(
    base, data, tmp_path, monkeypatch, capsys, stub
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    endpoint = {"model.reader": "endpoint"}
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)  # tried as often, at once
    assert train(base, data, whole, **endpoint) == 0
    metrics = pd.read_csv(whole / "metrics.csv")
    assert metrics["content"].between(0.01, 0.99).all() and metrics["rows_missing"].eq(0).all()

    with tiny.at_step(1, lambda: setattr(stub, "die_after", stub.n_requests)):
        assert train(base, data, cut, **endpoint) == 2
    assert "resume the run" in capsys.readouterr().err
    assert train(base, data, cut, "--resume", **endpoint) == 2
    assert "expected an answer of 'stub'" in capsys.readouterr().err  # before anything is loaded
    with StubServer(served, key=stub.key) as moved:
        monkeypatch.setenv("QWEN_URL", moved.url)
        assert train(base, data, cut, "--resume", **endpoint) == 0
    assert same(whole, cut)
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert not any(b"sesame-42" in path.read_bytes() for path in files)


# --- What is refused ------------------------------------------------------------------------------

WRONG = {
    "no name": ({"model.name": '""'}, "model.name: expected a folder or the hub's name"),
    "no such name": ({"model.name": "nobody/nothing", **RULE}, "model nobody/nothing"),
    "no address": ({"model.reader": "endpoint"}, "settings: model.reader_url, model.reader_model"),
    "no judge": ({"model.reader": "rule"}, "reward.content: expected 0 without a judge"),
    "no adapter": ({"model.lora_rank": 0}, "model.reader: base: expected a lora_rank above 0"),
    "small window": (
        RULE | {"protocol.max_prompt_tokens": 6144, "model.max_seq_length": 8192},
        "expected a window of 6150 (protocol.max_prompt_tokens + ",
    ),
    "nothing held out": (RULE, "grpo.validate_every: expected 0 without held-o"),
    "one use": ({"grpo.overlap": "true"}, "grpo.overlap: expected false with model.reader base"),
    "no card": ({"model.backend": "unsloth"}, "expected a CUDA card for model.backend=unsloth"),
    "no card for two": (
        {"model.backend": "unsloth", "model.vllm": "colocate"},
        "CUDA card for model.backend=unsloth and model.vllm=colocate, found none",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_one_line_before_anything_is_loaded(
    base, data, tmp_path, monkeypatch, capsys, name
):
    def never(*_, **__):
        raise AssertionError("loaded")

    for variable in ("QWEN_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(backends, "load_lm", never)
    monkeypatch.setattr(real_training, "cuda_cards", lambda: 0)
    settings, message = WRONG[name]
    data = [data[0] / "train.parquet"] if name == "nothing held out" else data
    assert train(base, data, tmp_path / "run", **settings) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_refused_before_unsloth_is_imported_needs_nothing_that_it_patches(base):
    """A tokenizer is read with transformers, so under Unsloth not before it is imported."""
    settings = sets(SETTINGS | RULE | {"model.name": base, "model.backend": "unsloth"})[1::2]
    code = (
        "import sys\nfrom memalpha_kit.settings import load_profile\n"
        "from memalpha_kit.training import real\nreal.cuda_cards = lambda: 1\n"
        f"real.checked(load_profile('gpu', {settings}))\n"
        "print({'transformers', 'trl', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("command", ["train", "warm-start"])
def test_a_model_without_a_spare_pad_token_is_refused_before_the_data_is_read(
    base, tmp_path, capsys, command
):
    """Its pad token ends replies: with one for unknown text it is trained, without it is not."""
    folder = shutil.copytree(base, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text()) | {"pad_token": "<|end|>", "unk_token": "<|end|>"}
    (folder / "chat_template.jinja").write_text("<|pad|>")
    file.write_text(json.dumps(told))
    argv = [command, "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "run")]
    argv += sets(SETTINGS | RULE | {"model.name": folder, "model.lora_rank": 4})
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert "add one and save the folder again: tokenizer.add_special_tokens" in said.err
    file.write_text(json.dumps(told | {"unk_token": "> "}))
    assert cli.main(argv) == 2 and "gone: expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "warm-start"])
def test_a_template_that_leaves_out_the_tools_is_refused_before_weights_are_read(
    base, data, tmp_path, monkeypatch, capsys, command
):
    """It would be trained for hours to call tools that no prompt names."""
    deaf = shutil.copytree(base, tmp_path / "deaf")
    template = (base / "chat_template.jinja").read_text()
    (deaf / "chat_template.jinja").write_text(template.replace("(tool | tojson)", "'a tool'"))
    (deaf / "model.safetensors").write_bytes(b"is not read")
    more = {"model.name": deaf, "protocol.wire": "qwen", "protocol.prompt": "paper"}
    argv = ["--data", str(data[0]), "--out", str(tmp_path / "run"), *sets(SETTINGS | RULE | more)]
    assert cli.main([command, "--profile", "gpu", *argv]) == 2
    said = capsys.readouterr().err
    assert "leaves them out" in said and "protocol.wire=text" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_data_needs_a_training_part_once_and_nothing_of_it_held_out(data, tmp_path):
    train, held_out = train_and_held_out(data)
    assert (len(train), len(held_out)) == (4, 2)
    other = load_instances(data[1] / "test.parquet")
    assert train_and_held_out(data[:1], data[1:])[1] == list(other)
    with pytest.raises(InputError, match="expected an instance once"):
        train_and_held_out([data[0], data[0]])
    with pytest.raises(InputError, match="nothing that is trained on"):
        train_and_held_out(data, [data[0] / "train.parquet"])
    with pytest.raises(InputError, match="expected a training part"):
        save_instances(tmp_path / "test.parquet", [instance("squad", 50)])
        train_and_held_out([tmp_path])


# --- Who answers ----------------------------------------------------------------------------------


def test_the_base_model_answers_whatever_the_adapter_has_learned(base):
    model = ModelConfig(name=str(base), lora_rank=4, dtype="float32", reader="base")
    lm = backends.load_model(model, base, seed=0)
    asked = AskedModel("base")
    asked.meet(lm, model)
    question = [request("", "which fact is 7", max_tokens=6)]
    before = asked.chat(question)[0].text
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            weight += 0.5 if "lora_B" in name else 0
    assert asked.chat(question)[0].text == before == LocalChat(load_lm(base)).chat(question)[0].text
    assert LocalChat(lm).chat(question)[0].text != before
    assert repr(asked) == "AskedModel(name='base')"
    engine = SimpleNamespace()  # Unsloth's, which shares its weights
    lm = SimpleNamespace(name="tiny", model=SimpleNamespace(vllm_engine=engine))
    asked = AskedModel("base")
    asked.meet(lm, ModelConfig(backend="unsloth", vllm="colocate", lora_rank=4))
    assert asked.model.lm.llm is engine


def test_a_judge_in_this_process_is_not_waited_for(base, data, tmp_path, capsys):
    """It would say the same again: five pauses that double are a quarter of an hour."""
    waits = {"reward.content": 0.1, "grpo.outage_retries": 3, "grpo.outage_pause_s": 0.0}
    assert train(base, data, tmp_path / "run", **waits) == 2
    assert "(grpo.missing_limit), found after 1 tries" in capsys.readouterr().err


def test_a_chat_model_trains_under_the_prompts_of_the_profile(data, tmp_path):
    tokenizer = tiny_tokenizer()
    model = save_policy(tiny_qwen3(tokenizer), tokenizer, tmp_path / "model")
    paper = {"protocol.wire": "qwen", "protocol.prompt": "paper", "memory.core": "true"}
    paper |= {"protocol.max_prompt_tokens": 8192, "model.max_seq_length": 8200}
    paper |= {"grpo.steps": 1, "grpo.instances": 1, "grpo.validate_every": 0}
    assert train(model, data[:1], tmp_path / "run", **RULE, **paper) == 0
    card = json.loads((tmp_path / "run" / "run.json").read_text())
    assert card["best"] is None and card["finished"]
    [first, *_] = load_episodes(tmp_path / "run" / "episodes" / "step_00001.jsonl")
    trained, _ = train_and_held_out(data[:1])
    chunks = {instance.id: len(instance.chunks) for instance in trained}
    assert len(first.steps) == chunks[first.instance]


@pytest.mark.parametrize("rank", [4, 0])
def test_a_warm_start_teaches_a_rules_calls_and_grpo_goes_on_from_it(
    base, data, tmp_path, rank, capsys
):
    settings = {"model.lora_rank": rank, "model.name": base, "memory.shown": 0}
    settings |= {"warm_start.steps": 12, "warm_start.batch": 4, "warm_start.learning_rate": 0.02}
    settings |= {"warm_start.keep": 1.0, "warm_start.save_every": 4, "warm_start.log_every": 1}
    settings["reward.content"] = 0.1  # of GRPO; a warm start has no judge
    out, options = tmp_path / "warm", sets(SETTINGS | RULE | settings)
    command = ["warm-start", "--profile", "small", "--data", *map(str, data), "--out", str(out)]
    assert cli.main([*command, *options]) == 0
    loss = pd.read_csv(out / "metrics.csv")["loss"]
    assert loss.iloc[-1] < 0.7 * loss.iloc[0]
    first = (out / "metrics.csv").read_bytes()
    assert cli.main([*command, "--resume", *options]) == 0  # what is done is not done again
    assert (out / "metrics.csv").read_bytes() == first
    profile = load_profile("gpu", options[1::2])
    begun = real_training.on_top(profile, out / "policy")
    assert (begun.model.adapter == "") == (rank == 0)
    lm = backends.load_model(begun.model, real_training.base_folder(begun.model), seed=0)
    (file,) = (out / "policy").glob("*.safetensors")
    learned = sorted(float(value.float().sum()) for value in load_file(file).values())
    loaded = [v for name, v in lm.model.state_dict().items() if not rank or "lora_" in name]
    assert {round(value, 4) for value in learned} <= {round(float(v.sum()), 4) for v in loaded}
    grpo = {"model.lora_rank": rank, "memory.shown": 0}
    run = tmp_path / "run"
    if rank:
        grpo |= {"model.adapter": begun.model.adapter}
        assert train(begun.model.name, data, run, **RULE, **grpo) == 2  # profile gpu has another
        assert "model.lora_alpha: expected 16, as in" in capsys.readouterr().err
        grpo |= {"model.lora_alpha": 16}
    assert train(begun.model.name, data, out, **RULE, **grpo) == 2  # it begins with what is there
    assert train(base, data, out, **RULE) == 2
    inside, other = capsys.readouterr().err.splitlines()[-2:]
    assert inside.endswith("of its own, found what the run begins with in it")
    assert other.endswith("of its own, found a run of another kind in it") and file.is_file()
    assert train(begun.model.name, data, run, **RULE, **grpo) == 0
    assert load_lm(run / "export")


def test_an_imperfect_teacher_leaves_calls_out_but_never_all_of_a_chunk():
    chunks = [f"Nora keeps {n} bees. Tom has {n} boats. Ana sold {n} cars." for n in range(20, 28)]
    given = make_instance("squad", chunks, tiny.instance(0).questions[:1])

    def kept(share):
        settings = ["warm_start.teacher=keep_sentences", f"warm_start.keep={share}"]
        steps = real_training.taught(load_profile("small", settings), [given], [])
        return {chunk: {call.arguments["content"] for call in calls} for _, chunk, calls in steps}

    whole, half, least = map(kept, (1.0, 0.5, 0.0))
    assert all(half[chunk] and half[chunk] <= whole[chunk] for chunk in whole) and half != whole
    assert {len(texts) for texts in whole.values()} == {3}
    assert {len(texts) for texts in least.values()} == {1}


def test_an_adapter_that_16_bits_would_round_away_is_exported_in_32(tmp_path, monkeypatch):
    tried = []

    def export(out, folder, base, dtype):
        tried.append(dtype)
        if dtype == "bfloat16":
            raise InputError("expected log-probabilities within 0.3, found 7.614")
        return SimpleNamespace(difference=0.002)

    monkeypatch.setattr("memalpha_kit.training.export.export", export)
    model = ModelConfig(name="m", dtype="bfloat16", lora_rank=4)
    assert real_training.exported(tmp_path, tmp_path, model)[1] == 0.002
    assert tried == ["bfloat16", "float32"]
    with pytest.raises(InputError, match=r"7\.614"):
        real_training.exported(tmp_path, tmp_path, ModelConfig(name="m", dtype="bfloat16"))


def test_a_stronger_models_episodes_teach_too_and_what_does_not_fit_is_said(
    base, data, tmp_path, capsys
):
    options = sets(SETTINGS | RULE | {"model.name": base, "warm_start.steps": 1})
    written = tmp_path / "teacher.jsonl"
    rules = {k: v for k, v in SETTINGS.items() if k.startswith(("memory", "protocol"))}
    write = ["write", "--data", str(data[0] / "train.parquet"), "--writer", "keep_sentences"]
    assert cli.main([*write, "--out", str(written), *sets(rules)]) == 0
    command = ["warm-start", "--data", str(data[0]), "--out", str(tmp_path / "warm")]
    assert cli.main([*command, "--episodes", str(written), *options]) == 0
    assert json.loads((tmp_path / "warm" / "run.json").read_text())["rows"] == 4
    assert "rows are longer" not in capsys.readouterr().err
    assert cli.main([*command, *options, "--set", "protocol.max_reply_tokens=1"]) == 0
    assert "4 of 4 rows are longer than protocol.max_reply_tokens (1)" in capsys.readouterr().err
    other = ["--set", "memory.semantic=false", "--set", "memory.episodic=true"]
    assert cli.main([*command, "--episodes", str(written), *options, *other]) == 2
    assert "in the profile's memory, found rejected (disabled)" in capsys.readouterr().err
    command[2] = str(data[1])
    assert cli.main([*command, "--episodes", str(written), *options]) == 2
    assert "its instance is not in the training data" in capsys.readouterr().err
    adapter = {"model.adapter": tmp_path / "warm" / "policy", "model.lora_rank": 2}
    assert train(base, data, tmp_path / "run", **RULE, **adapter) == 2
    assert "model.lora_rank: expected 4, as in" in capsys.readouterr().err
    assert train(base, data, tmp_path / "run", **RULE, **{"model.adapter": tmp_path}) == 2
    assert "adapter: expected a folder with adapter_config.json" in capsys.readouterr().err


def test_notebook_04_trains_a_model_that_the_profile_names(base, data, tmp_path, root, capsys):
    """Its code in this process; the toy's way through it runs in test_notebooks.py."""
    shutil.copytree(data[0], tmp_path / "data" / "memalpha")
    settings = {"model.name": base} | SETTINGS | RULE | {"advantage.grouping": "chunk"}
    namespace = {
        "profile": "gpu",
        "overrides": [f"{name}={value}" for name, value in settings.items()],
        "root": str(tmp_path),
        "display": print,
    }
    cells = nbformat.read(root / "notebooks" / "04_unsloth_grpo.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    for cell in [cell for cell in code if "parameters" not in cell.metadata.get("tags", ())]:
        exec(compile(cell.source, cell.id, "exec"), namespace)
    assert "takes its place" not in capsys.readouterr().out  # it is no toy
    assert load_lm(namespace["folder"]) and namespace["difference"] < 1e-2
    (reports,) = (tmp_path / "reports" / "04_unsloth_grpo").iterdir()
    made = {path.name for path in reports.iterdir()}
    assert {"metrics.csv", "group.csv", "loss.csv", "run.json"} <= made
    (run,) = tmp_path.glob("runs/*/model")
    assert [file.name for file in (run / "episodes").glob("step_*")] == ["step_00001.jsonl"]


def test_the_toy_s_random_replies_hold_calls_that_work(tmp_path):
    """What notebook 04 counts on under profiles that name no model."""
    profile, folder = toy.stand_in(load_profile("ci"), tmp_path)
    lm = load_lm(profile.model.name)
    calls = {text for text in lm.tokenizer.get_vocab() if text.startswith("<tool_call>")}
    assert len(calls) == len(toy.NAMES) * len(toy.FACTS)
    trained, held_out = train_and_held_out([folder])
    told = {s for one in (*trained, *held_out) for chunk in one.chunks for s in sentences(chunk)}
    stored = {call.arguments["content"] for c in calls for call in parse_reply(c, "stop", "qwen")}
    assert told <= stored and len(stored) == len(calls)
