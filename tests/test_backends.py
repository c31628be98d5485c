"""Real models for GRPO on a CPU: adapters end to end, and stand-ins for what needs a GPU."""

from __future__ import annotations

import ast
import json
import math
import sys
import types
from dataclasses import replace

import pytest
import tiny_policy as tiny
import torch
from test_grpo_robust import Reader
from trl import GRPOTrainer

from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.models.local import Sampling
from memalpha_kit.models.tiny import save_policy
from memalpha_kit.settings import ModelConfig, ProtocolConfig
from memalpha_kit.training import backends, processes
from memalpha_kit.training.backends import pin_base, trl_arguments
from memalpha_kit.training.batch import importance_ratio, rows_to_batch
from memalpha_kit.training.grpo import train_grpo
from memalpha_kit.training.rollouts import TrainerLM, TrainingStopped
from memalpha_kit.training.trainer import EpisodeTrainer

TARGETS = ("q_proj", "v_proj", "down_proj")
PLAIN = ModelConfig()
LORA = ModelConfig(lora_rank=4, lora_alpha=16, lora_targets=TARGETS)
UNSLOTH = replace(LORA, backend="unsloth", vllm="colocate")
SERVER = {"vllm": "server", "vllm_server_url": "http://localhost:8000"}
QUICK = replace(tiny.GRPO, steps=2, dump_every=0, outage_retries=0)


# --- Adapters -------------------------------------------------------------------------------------


def test_an_adapter_starts_as_no_change_and_depends_on_the_seed_only(policy):
    ids = torch.tensor([[5, 6, 7]])
    plain = backends.load_model(PLAIN, policy, 0).model
    one, other, third = (backends.load_model(LORA, policy, seed).model for seed in (0, 0, 1))
    assert torch.equal(plain(input_ids=ids).logits, one(input_ids=ids).logits)
    flat = [torch.cat([w.detach().flatten() for w in m.parameters()]) for m in (one, other, third)]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])
    trained = {name for name, weight in one.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("changes", [{}, {"kl": 0.1, "optimizer": "muon", "iterations": 2}])
def test_an_adapter_is_trained_saved_alone_and_resumes_equal(policy, tmp_path, changes):
    config = replace(QUICK, **changes)
    whole, cut = (tiny.run(tmp_path / n, policy, config, model=LORA) for n in ("whole", "cut"))
    gone = tiny.environment(reader=Reader({2}, ModelGone("down")))
    train_grpo(whole)
    with pytest.raises(TrainingStopped):
        train_grpo(replace(cut, environment=gone))
    train_grpo(cut, resume=True)
    files = [run.out / "policy" / "adapter_model.safetensors" for run in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    tables = [(run.out / "metrics.csv").read_bytes() for run in (whole, cut)]
    assert tables[0] == tables[1]
    saved = json.loads((whole.out / "policy" / "adapter_config.json").read_text())
    assert (saved["r"], saved["base_model_name_or_path"]) == (4, str(policy))
    assert not (whole.out / "policy" / "model.safetensors").exists()
    assert not (whole.out / "policy" / "ref").exists()
    train_grpo(cut, resume=True)  # finished: the checkpoint's adapter again
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(InputError, match="begun with model.lora_alpha = 16, now it is 8"):
        train_grpo(replace(cut, model=replace(LORA, lora_alpha=8)), resume=True)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, None),
        ({"r": 8}, "lora_rank: expected 8, as in .*config.json, found 4"),
        ({"lora_alpha": 32}, "lora_alpha: expected 32, as in .*, found 16"),
        ({"target_modules": ["q_proj", "o_proj"]}, "lora_targets: expected o_proj too, as in .*"),
        ({"use_rslora": True}, "adapter: expected plain LoRA, found use_rslora"),
        ({"modules_to_save": ["lm_head"]}, "adapter: expected plain LoRA, found modules_to_save"),
    ],
)
def test_an_adapter_to_go_on_from_is_used_as_it_was_trained_or_refused(tmp_path, saved, message):
    file, whole = tmp_path / "adapter_config.json", {"r": 4, "lora_alpha": 16, "use_rslora": False}
    file.write_text(json.dumps(whole | saved))
    model = replace(LORA, adapter=str(tmp_path))
    if message is None:
        backends.check_model(model)
        return
    with pytest.raises(InputError, match=f"model.{message}"):
        backends.check_model(model)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"lora_rank": 4, "lora_targets": TARGETS}, torch.bfloat16),
    ],
)
def test_weights_saved_in_16_bits_are_trained_in_32_if_all_of_them_are(tmp_path, changes, expected):
    made = tiny.lm()
    save_policy(made.model.to(torch.bfloat16), made.tokenizer, tmp_path / "policy")
    found = backends.load_model(replace(PLAIN, **changes), tmp_path / "policy", 0).model
    assert found.get_input_embeddings().weight.dtype == expected


def test_training_an_adapter_leaves_the_base_as_it_was(policy, tmp_path):
    lm = backends.load_model(LORA, policy, 0)
    weights = list(lm.model.parameters())
    before = [weight.detach().clone() for weight in weights]
    tiny.trainer(tmp_path, [tiny.row((11, 12), 1.0)], lm, LORA, steps=2).train()
    moved = [not torch.equal(a, b) for a, b in zip(before, weights, strict=True)]
    assert any(moved)
    assert not any(m for m, weight in zip(moved, weights, strict=True) if not weight.requires_grad)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (PLAIN, {"load_in_4bit": True}, "load_in_4bit: expected a lora_rank above 0"),
        (LORA, {"load_in_4bit": True, "vllm": "colocate"}, "load_in_4bit: expected vllm none or"),
        (LORA, {"lora_targets": ("lm_head",)}, "lora_targets: expected layers, and neither"),
        (LORA, {"lora_targets": ("embed_tokens",)}, "lora_targets: expected layers, and"),
        (LORA, {"lora_targets": ()}, "lora_targets: expected layers"),
        (UNSLOTH, {"vllm": "server", "vllm_server_url": "u"}, "vllm: expected none or colocate"),
        (UNSLOTH, {"lora_rank": 0}, "lora_rank: expected above 0 with backend unsloth"),
        (UNSLOTH, {"revision": "abc"}, "revision: expected a folder as name"),
        (LORA, {"vllm": "server"}, "vllm_server_url: expected the server's address"),
        (LORA, {"vllm_server_url": "u"}, "vllm_server_url: .* and only there"),
        (PLAIN, {"reader": "base"}, "reader: base: expected a lora_rank above 0"),
        (LORA, {"reader": "endpoint"}, "reader_url: expected the server's address"),
        (LORA, {"max_seq_length": 10047}, "max_seq_length: expected at least 10048 .* 10047"),
        (UNSLOTH, {}, None),
        (UNSLOTH, {"load_in_4bit": True}, None),
        (UNSLOTH, {"reader": "base"}, None),
        (PLAIN, SERVER, None),
    ],
)
def test_parts_that_do_not_go_together_are_refused_by_name(model, changes, message):
    protocol = ProtocolConfig(max_prompt_tokens=8000 if "max_seq_length" in changes else 6144)
    chosen = replace(model, **changes)
    if message is None:
        backends.check_model(chosen, protocol)
        return
    with pytest.raises(InputError, match=f"model.{message}"):
        backends.check_model(chosen, protocol)


def test_unsloth_is_one_process_and_a_target_that_is_not_there_is_answered_with_the_closest(
    policy, monkeypatch
):
    with pytest.raises(InputError, match="lora_targets: found 'q_prj'; did you mean 'q_proj'"):
        backends.load_model(replace(LORA, lora_targets=("q_prj",)), policy, 0)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InputError, match="backend: unsloth: expected one process, found 2"):
        backends.check_model(UNSLOTH)


def test_unsloth_that_would_come_too_late_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="model.vllm: expected vllm to be installed"):
        backends.start(UNSLOTH, {})
    monkeypatch.setattr(backends, "check_installed", lambda *_: None)
    with pytest.raises(InputError, match="expected to be started first, found trl, transformers"):
        backends.start(UNSLOTH, {"trl": None, "transformers": None})
    imported = []
    monkeypatch.setattr(backends.importlib, "import_module", imported.append)
    backends.start(UNSLOTH, {})
    backends.start(PLAIN, {"trl": None})
    assert imported == ["unsloth"]


# --- Unsloth, by stand-ins ------------------------------------------------------------------------


def test_unsloth_is_called_with_everything_stated(policy, monkeypatch):
    asked = []

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**arguments):
            asked.append(arguments)
            made = tiny.lm()
            return made.model, made.tokenizer

        @staticmethod
        def get_peft_model(model, **arguments):
            asked.append(arguments)
            return model

    stub = types.SimpleNamespace(FastLanguageModel=FastLanguageModel)
    monkeypatch.setitem(sys.modules, "unsloth", stub)
    model = replace(UNSLOTH, dtype="bfloat16", load_in_4bit=True)
    lm = backends.load_model(model, policy, seed=7)
    assert lm.name == str(policy) and lm.stop_ids == (lm.tokenizer.eos_token_id,)
    first, second = asked
    assert first == {
        **{"model_name": str(policy), "max_seq_length": 8192, "dtype": torch.bfloat16},
        **{"load_in_4bit": True, "full_finetuning": False, "fast_inference": True},
        **{"gpu_memory_utilization": 0.5, "max_lora_rank": 4, "float32_mixed_precision": None},
    }
    assert second["target_modules"] == list(TARGETS)
    assert (second["r"], second["random_state"]) == (4, 7)
    whole = replace(UNSLOTH, lora_rank=0, vllm="none")
    for kind, mixed in {"auto": True, "float32": True, "bfloat16": False}.items():
        given = backends.unsloth_arguments(replace(whole, dtype=kind), policy)
        assert given["float32_mixed_precision"] == mixed


def test_a_trainer_that_unsloth_did_not_rewrite_or_an_engine_of_its_own_is_refused():
    class UnslothGRPOTrainer:
        def _generate_single_turn(self):
            return "shared_weights"

    class Ours(UnslothGRPOTrainer):
        pass

    none = types.SimpleNamespace()
    with pytest.raises(InputError, match="expected a trainer on its rewritten class, found GRPOT"):
        backends.check_unsloth(EpisodeTrainer, None, UNSLOTH)
    with pytest.raises(InputError, match="expected an engine that shares the model's weights"):
        backends.check_unsloth(Ours, none, UNSLOTH)
    backends.check_unsloth(Ours, none, replace(UNSLOTH, vllm="none"))


LOGPROBS = "_get_per_token_logps_and_entropies"


class UnslothGRPOTrainer(GRPOTrainer):
    """Like the class that Unsloth writes from TRL's: its loss calls by position."""

    def compute_loss(self, *tensors):
        return self._get_per_token_logps_and_entropies(*tensors, 4, True, True)[0]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep,
        batch_size=None, compute_entropy=False, compute_efficient=False, *args, **kwargs,
    ):  # fmt: skip
        self.seen = (batch_size, compute_entropy, compute_efficient, args, kwargs)
        return (None, None) if compute_efficient else ("logprobs", "entropies", None)


class Rewritten(EpisodeTrainer, UnslothGRPOTrainer):
    """Our trainer as if its file had been imported after Unsloth: `super()` is Unsloth's class."""

    def __init__(self):
        pass


def test_what_unsloth_s_loss_calls_with_is_passed_on_by_position_and_by_name():
    trainer = Rewritten()
    assert trainer.compute_loss("model", "ids", "mask", 3) is None  # its own fused loss goes on
    assert trainer.seen == (4, True, True, (), {})
    call = getattr(trainer, LOGPROBS)
    assert call("model", "ids", "mask", 3, 2)[0] == "logprobs"
    call("model", "ids", "mask", 3, compute_efficient=True, num_images=None)
    assert trainer.seen == (None, False, True, (), {"num_images": None})


def test_every_call_in_the_installed_unsloth_fits_our_log_probabilities(unsloth_source):
    calls = [
        node
        for node in ast.walk(ast.parse(unsloth_source.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{LOGPROBS}"
    ]
    assert max(len(call.args) for call in calls) == 7  # the call that once failed is among them
    for call in calls:
        names = {keyword.arg: keyword.arg for keyword in call.keywords if keyword.arg}
        getattr(Rewritten(), LOGPROBS)(*map(ast.unparse, call.args), **names)


# --- vLLM, by stand-ins ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [PLAIN, LORA, replace(LORA, vllm="colocate"), replace(PLAIN, **SERVER)]
)
def test_the_arguments_of_vllm_are_trls(tmp_path, model):
    made = trl_arguments(tiny.run(tmp_path, model=model), on_cpu=True)
    assert made.use_vllm == (model.vllm != "none")
    assert not made.vllm_enable_sleep_mode
    if made.use_vllm:
        assert made.vllm_importance_sampling_mode == "token_truncate"
        assert made.vllm_mode == model.vllm


class Engine:
    """What of a trainer with vLLM a `TrainerLM` uses: replies are the prompt's last token."""

    def __init__(self, mode="colocate"):
        self.use_vllm, self.calls = True, []
        self.is_fsdp_enabled = self.is_deepspeed_enabled = False
        self.vllm_generation = types.SimpleNamespace(mode=mode, temperature=1.0)

    def _generate_single_turn(self, prompts, images, fields, n):
        self.calls.append((self.vllm_generation.temperature, prompts))
        return [[ids[-1], 1] for ids in prompts], [[-0.5, None]] * len(prompts)


def test_replies_of_vllm_keep_ids_and_log_probabilities_and_validation_is_greedy():
    engine = Engine()
    writer = TrainerLM(tiny.lm(), engine)
    (sampled,) = writer.generate([(5, 6)], Sampling(1.0))
    assert sampled.completion_ids == (6, 1) and sampled.logprobs[0] == -0.5
    assert math.isnan(sampled.logprobs[1])  # the engine could not say
    writer.generate([(5, 6)], Sampling(0.0))
    writer.finish(Sampling(1.0))
    assert [temperature for temperature, _ in engine.calls] == [1.0, 0.0]
    assert engine.vllm_generation.temperature == 1.0


def test_processes_that_share_a_server_call_it_equally_often_and_equally_much(monkeypatch):
    """This one has two prompts, then none; the other three, three and one more."""
    others = iter([3, 3, 1, 0])
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gathered", lambda mine: [mine, next(others)])
    engine = Engine("server")
    writer = TrainerLM(tiny.lm(), engine)
    replies = writer.generate([(5, 6), (7, 8)], Sampling(1.0))
    assert [reply.completion_ids for reply in replies] == [(6, 1), (8, 1)]
    writer.finish(Sampling(1.0))
    assert [len(prompts) for _, prompts in engine.calls] == [3, 3, 1]
    assert all(prompt for _, prompts in engine.calls for prompt in prompts)  # never empty


def test_the_importance_ratio_is_cut_and_one_where_nothing_is_known():
    old = torch.tensor([[-1.0, -1.0, -1.0, -9.0]])
    sampling = torch.tensor([[-1.0, -3.5, math.nan, -1.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    assert importance_ratio(old, sampling, mask, 3.0).tolist() == [[1.0, 3.0, 1.0, 1.0]]


def test_rows_bring_the_log_probabilities_that_they_were_sampled_with():
    rows = [tiny.row((11, 12), 1.0, logprobs=(-0.5, -1.5)), tiny.row((11,), 1.0)]
    values = rows_to_batch(rows, 0, multiple=3, sampled=True)["sampling_per_token_logps"]
    assert values[0].tolist() == [-0.5, -1.5]
    assert math.isnan(values[1, 0]) and values[1, 1] == 0 and values[2].tolist() == [0, 0]
    assert "sampling_per_token_logps" not in rows_to_batch(rows, 0)


@pytest.mark.parametrize("engine_off_by", [0.0, -1.0])
def test_the_loss_makes_up_for_an_engine_that_samples_with_other_probabilities(
    tmp_path, engine_off_by
):
    """Where the engine's log-probabilities are the trainer's own, nothing changes."""
    rows = []
    trainer = tiny.trainer(tmp_path, lambda step: rows)
    model, ids = trainer.model.train(), torch.tensor([[5, 6, 11, 12]])
    own = getattr(trainer, LOGPROBS)(model, ids, torch.ones_like(ids), 2)[0][0]
    known = (own + engine_off_by).tolist()
    rows.append(tiny.row((11, 12), 1.0, (5, 6), logprobs=known))
    trainer.current_gradient_accumulation_steps = 1
    plain = trainer.compute_loss(model, trainer._generate_and_score_completions([{"instance": 0}]))
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
    trainer.vllm_importance_sampling_clip_max = 2.0
    trainer.vllm_generation = Engine().vllm_generation
    batch = trainer._generate_and_score_completions([{"instance": 0}])
    expected = min(2.0, math.exp(-engine_off_by))
    assert batch["importance_sampling_ratio"].tolist() == [[pytest.approx(expected, abs=1e-4)] * 2]
    assert trainer.compute_loss(model, batch).item() == pytest.approx(expected * plain.item())
    metrics = trainer._metrics["train"]
    assert metrics["sampling_difference"] == [pytest.approx(-engine_off_by, abs=1e-4)]
    assert metrics["sampling_cut"] == [float(engine_off_by < 0)]


# --- The base below an adapter --------------------------------------------------------------------

IDS = torch.tensor([[5, 6, 7, 8]])


def adapted(dtype=torch.bfloat16):
    """A tiny model with an adapter that has learned something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=32, target_modules=targets, init_lora_weights=False)
    return get_peft_model(tiny.lm().model.to(dtype), config)


class Pushes:
    """What TRL's VLLMGeneration does to the model: merge, send, unmerge, and then maybe fail."""

    def __init__(self, model, error=None):
        self.model, self.error, self.sent = model, error, []

    def sync_weights(self):
        self.model.merge_adapter()
        self.sent.append(self.model(input_ids=IDS).logits.detach())
        self.model.unmerge_adapter()
        if self.error:
            raise self.error


def base(model):
    """Copies of the weights below the adapter."""
    return [w.detach().clone() for name, w in model.named_parameters() if "lora_" not in name]


@pytest.mark.parametrize(
    ("pinned", "dtype"), [(False, torch.bfloat16), (True, torch.bfloat16), (True, torch.float32)]
)
def test_fifty_pushes_move_the_base_unless_it_is_pinned(pinned, dtype):
    model = adapted(dtype)
    before, pushes = base(model), Pushes(model)
    if pinned:
        pin_base(pushes, model)
    for _ in range(50):
        pushes.sync_weights()
    assert all(map(torch.equal, before, base(model))) == pinned
    if pinned:  # the policy went out, the same each time
        with model.disable_adapter():
            assert not torch.equal(pushes.sent[0], model(input_ids=IDS).logits)
        assert all(torch.equal(one, pushes.sent[0]) for one in pushes.sent)


def test_the_base_is_restored_after_a_push_that_failed():
    model = adapted()
    before, pushes = base(model), Pushes(model, ConnectionError("the engine is gone"))
    pin_base(pushes, model)
    with pytest.raises(ConnectionError):
        pushes.sync_weights()
    assert all(map(torch.equal, before, base(model)))
