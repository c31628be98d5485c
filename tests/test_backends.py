"""Real models for GRPO on a CPU: adapters end to end, and stand-ins for what needs a GPU."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import sys
import types
from importlib.metadata import PackageNotFoundError

import pytest
import tiny_policy as tiny
import torch

from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.models.local import Sampling
from memalpha_kit.records import TrainingRow
from memalpha_kit.settings import ModelConfig, ProtocolConfig
from memalpha_kit.training import backends, processes
from memalpha_kit.training.arguments import check_trl, trl_arguments
from memalpha_kit.training.batch import importance_ratio, rows_to_batch
from memalpha_kit.training.generation import TrainerLM, changed
from memalpha_kit.training.grpo import train_grpo
from memalpha_kit.training.outage import TrainingStopped
from memalpha_kit.training.trainer import EpisodeTrainer

TARGETS = ("q_proj", "v_proj", "down_proj")
LORA = ModelConfig(lora_rank=4, lora_alpha=16, lora_targets=TARGETS)
QUICK = dataclasses.replace(tiny.GRPO, steps=2, dump_every=0, outage_retries=0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("policy") / "policy")


# --- Adapters -------------------------------------------------------------------------------------


def test_an_adapter_starts_as_no_change_and_depends_on_the_seed_only(policy):
    ids = torch.tensor([[5, 6, 7]])
    plain = backends.load_model(ModelConfig(), policy, 0).model
    one, other, third = (backends.load_model(LORA, policy, seed).model for seed in (0, 0, 1))
    assert torch.equal(plain(input_ids=ids).logits, one(input_ids=ids).logits)
    flat = [torch.cat([w.detach().flatten() for w in m.parameters()]) for m in (one, other, third)]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])
    trained = {name for name, weight in one.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)


class Gone:
    """A reader that is gone after `calls` calls."""

    name = "gone"

    def __init__(self, calls):
        self.calls = calls

    def __repr__(self):
        return repr(BestEntry())

    def read(self, requests, done=None):
        self.calls -= 1
        if self.calls < 0:
            raise ModelGone("down")
        return BestEntry().read(requests)


def run(policy, out, model=LORA, config=QUICK, resume=False, **changes):
    environment = tiny.environment(**changes)
    return train_grpo(policy, tiny.INSTANCES, environment, config, out, 3, resume, model=model)


@pytest.mark.parametrize("changes", [{}, {"kl": 0.1, "optimizer": "muon", "iterations": 2}])
def test_an_adapter_is_trained_saved_alone_and_resumes_equal(policy, tmp_path, changes):
    config = dataclasses.replace(QUICK, **changes)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(policy, whole, config=config)
    with pytest.raises(TrainingStopped):
        run(policy, cut, config=config, reader=Gone(1))
    run(policy, cut, config=config, resume=True)
    files = [out / "policy" / "adapter_model.safetensors" for out in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (whole / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()
    saved = json.loads((whole / "policy" / "adapter_config.json").read_text())
    assert (saved["r"], saved["base_model_name_or_path"]) == (4, str(policy))
    assert not (whole / "policy" / "model.safetensors").exists()
    assert not (whole / "policy" / "ref").exists()
    run(policy, cut, config=config, resume=True)  # finished: the checkpoint's adapter again
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(InputError, match="begun with model.lora_alpha = 16, now it is 8"):
        run(policy, cut, dataclasses.replace(LORA, lora_alpha=8), config, resume=True)


def test_training_an_adapter_leaves_the_base_as_it_was(policy, tmp_path):
    lm = backends.load_model(LORA, policy, 0)
    base = [w.detach().clone() for w in lm.model.parameters() if not w.requires_grad]
    row = TrainingRow((5, 6), (11, 12), (1, 1), 1.0, 1.0, "g", "e", 0)
    before = [w.detach().clone() for w in lm.model.parameters() if w.requires_grad]
    trainer = EpisodeTrainer(lm, lambda *_: ([row], {}), [0] * 4, QUICK, 6, 0, tmp_path, LORA)
    trainer.train()
    after = [w for w in lm.model.parameters() if w.requires_grad]
    frozen = [w for w in lm.model.parameters() if not w.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(base, frozen, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- What is refused ------------------------------------------------------------------------------

UNSLOTH = dataclasses.replace(LORA, backend="unsloth", vllm="colocate")


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (ModelConfig(), {"load_in_4bit": True}, "load_in_4bit: expected a lora_rank above 0"),
        (LORA, {"load_in_4bit": True, "vllm": "colocate"}, "load_in_4bit: expected vllm none or"),
        (LORA, {"lora_targets": ("lm_head",)}, "lora_targets: expected none but"),
        (UNSLOTH, {"vllm": "server", "vllm_server_url": "u"}, "vllm: expected none or colocate"),
        (UNSLOTH, {"lora_rank": 0}, "lora_rank: expected above 0 with backend unsloth"),
        (UNSLOTH, {"revision": "abc"}, "revision: expected a folder as name"),
        (LORA, {"vllm": "server"}, "vllm_server_url: expected the server's address"),
        (LORA, {"vllm_server_url": "u"}, "vllm_server_url: .* and only there"),
        (ModelConfig(), {"reader": "base"}, "reader: base: expected a lora_rank above 0"),
        (LORA, {"reader": "endpoint"}, "reader_url: expected the server's address"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_by_name(model, changes, message):
    with pytest.raises(InputError, match=f"model.{message}"):
        backends.check_model(dataclasses.replace(model, **changes))


def test_parts_that_go_together_are_let_through():
    for changes in ({}, {"load_in_4bit": True}, {"reader": "base"}):
        backends.check_model(dataclasses.replace(UNSLOTH, **changes), ProtocolConfig())
    server = {"vllm": "server", "vllm_server_url": "http://localhost:8000"}
    backends.check_model(dataclasses.replace(ModelConfig(), **server))


def test_unsloth_is_one_process(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InputError, match="backend: unsloth: expected one process, found 2"):
        backends.check_model(UNSLOTH)


def test_a_window_too_small_for_prompt_and_reply_is_refused():
    protocol = ProtocolConfig(max_prompt_tokens=8000)
    with pytest.raises(InputError, match="max_seq_length: expected at least 10048 .*, found 8192"):
        backends.check_model(LORA, protocol)


def test_a_target_that_the_model_does_not_have_is_answered_with_the_closest(policy):
    model = dataclasses.replace(LORA, lora_targets=("q_prj",))
    with pytest.raises(InputError, match="lora_targets: found 'q_prj'; did you mean 'q_proj'"):
        backends.load_model(model, policy, 0)


FITTING = {
    **{"trl": "1.15.0", "transformers": "5.17.0", "peft": "0.21.2", "vllm": "0.32.0"},
    **{"unsloth": "2026.10.7", "unsloth_zoo": "2026.10.7"},
}


def versions(**changes):
    """A stand-in for importlib.metadata.version; None is not installed."""

    def installed(name):
        found = (FITTING | changes)[name]
        if found is None:
            raise PackageNotFoundError(name)
        return found

    return installed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trl": "1.14.2"}, "trl: expected version >=1.15,<1.16, found 1.14.2"),
        ({"trl": "1.16.0"}, "trl: expected version >=1.15,<1.16, found 1.16.0"),
        ({"transformers": "5.18.0"}, "transformers: expected version"),
        ({"peft": "0.19.1"}, "peft: expected version >=0.20, found 0.19.1"),
        ({"vllm": None}, "vllm: expected to be installed, found no such package"),
        ({"unsloth_zoo": "2026.9.1"}, "unsloth_zoo: expected unsloth's version 2026.10.7"),
    ],
)
def test_versions_that_do_not_fit_are_refused(changes, message):
    backends.check_versions(UNSLOTH, versions())
    with pytest.raises(InputError, match=message):
        backends.check_versions(UNSLOTH, versions(**changes))


def test_what_is_not_needed_may_be_missing():
    backends.check_versions(ModelConfig(), versions(peft=None, vllm=None, unsloth=None))
    backends.check_versions(ModelConfig(), versions(trl="1.16.1.dev0"))


def test_the_installed_versions_fit():
    backends.check_versions(LORA)


def test_unsloth_that_would_come_too_late_is_refused(monkeypatch):
    monkeypatch.setattr(backends, "check_versions", lambda model: None)
    with pytest.raises(InputError, match="expected to be started first, found trl, transformers"):
        backends.start(UNSLOTH, {"trl": None, "transformers": None})
    imported = []
    monkeypatch.setattr(backends.importlib, "import_module", imported.append)
    backends.start(UNSLOTH, {})
    backends.start(ModelConfig(), {"trl": None})
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
    model = dataclasses.replace(UNSLOTH, dtype="bfloat16", load_in_4bit=True)
    lm = backends.load_model(model, policy, seed=7)
    assert lm.name == str(policy) and lm.stop_ids == (lm.tokenizer.eos_token_id,)
    first, second = asked
    assert first == {
        **{"model_name": str(policy), "max_seq_length": 8192, "dtype": torch.bfloat16},
        **{"load_in_4bit": True, "full_finetuning": False, "fast_inference": True},
        **{"gpu_memory_utilization": 0.5, "max_lora_rank": 4},
    }
    assert second["target_modules"] == list(TARGETS)
    assert (second["r"], second["random_state"]) == (4, 7)


def test_a_trainer_that_unsloth_did_not_rewrite_is_refused():
    from trl import GRPOTrainer

    class Ours(GRPOTrainer):
        pass

    with pytest.raises(InputError, match="expected a trainer on its rewritten class, found GRPOT"):
        backends.check_unsloth(Ours, None, UNSLOTH)


def test_an_engine_of_its_own_weights_is_refused():
    class UnslothGRPOTrainer:
        def _generate_single_turn(self):
            return "shared_weights"

    class Ours(UnslothGRPOTrainer):
        pass

    none = types.SimpleNamespace()
    with pytest.raises(InputError, match="expected an engine that shares the model's weights"):
        backends.check_unsloth(Ours, none, UNSLOTH)
    backends.check_unsloth(Ours, none, dataclasses.replace(UNSLOTH, vllm="none"))


# --- vLLM, by stand-ins ---------------------------------------------------------------------------


def test_the_arguments_of_vllm_are_trls(tmp_path):
    server = dataclasses.replace(
        ModelConfig(), vllm="server", vllm_server_url="http://localhost:8000"
    )
    for model in (ModelConfig(), LORA, dataclasses.replace(LORA, vllm="colocate"), server):
        made = trl_arguments(QUICK, 6, 0, tmp_path, on_cpu=True, model=model)
        assert made.use_vllm == (model.vllm != "none")
        assert not made.vllm_enable_sleep_mode
        if made.use_vllm:
            assert made.vllm_importance_sampling_mode == "token_truncate"
            assert made.vllm_mode == model.vllm


def test_trls_generation_reads_the_attributes_that_we_change():
    from trl.generation.vllm_generation import VLLMGeneration

    source = inspect.getsource(VLLMGeneration)
    assert all(f"self.{name} = " in source for name in backends.GENERATION)
    fitting = types.SimpleNamespace(**dict.fromkeys(backends.GENERATION))
    trainer, model = types.SimpleNamespace(vllm_generation=fitting), ModelConfig(vllm="colocate")
    backends.check_built(trainer, model)
    del fitting.top_p
    with pytest.raises(InputError, match="VLLMGeneration: expected top_p"):
        backends.check_built(trainer, model)


def test_other_sampling_settings_come_back_also_after_an_error():
    generation = types.SimpleNamespace(temperature=1.0, top_p=1.0)
    with pytest.raises(KeyError), changed(generation, temperature=0.0, top_p=0.5):
        assert (generation.temperature, generation.top_p) == (0.0, 0.5)
        raise KeyError
    assert (generation.temperature, generation.top_p) == (1.0, 1.0)


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
    engine, lm = Engine(), tiny.lm()
    writer = TrainerLM(lm, engine)
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
    ratio = importance_ratio(old, sampling, mask, highest=3.0)
    assert ratio.tolist() == [[1.0, 3.0, 1.0, 1.0]]


def test_rows_bring_the_log_probabilities_that_they_were_changed():
    known = TrainingRow((5,), (11, 12), (1, 1), 1.0, 1.0, "g", "e", 0, (-0.5, -1.5))
    unknown = TrainingRow((5,), (11,), (1,), 1.0, 1.0, "g", "e", 1)
    batch = rows_to_batch([known, unknown], 0, multiple=3, sampled=True)
    values = batch["sampling_per_token_logps"]
    assert values[0].tolist() == [-0.5, -1.5]
    assert math.isnan(values[1, 0]) and values[1, 1] == 0 and values[2].tolist() == [0, 0]
    assert "sampling_per_token_logps" not in rows_to_batch([known], 0)


@pytest.mark.parametrize("engine_off_by", [0.0, -1.0])
def test_the_loss_makes_up_for_an_engine_that_samples_with_other_probabilities(
    tmp_path, engine_off_by
):
    """Where the engine's log-probabilities are the trainer's own, nothing changes."""
    lm, row = tiny.lm(), TrainingRow((5, 6), (11, 12), (1, 1), 1.0, 1.0, "g", "e", 0)
    rows = []
    trainer = EpisodeTrainer(lm, lambda *_: (rows, {}), [0] * 4, QUICK, 6, 0, tmp_path)
    model = trainer.model.train()
    ids = torch.tensor([[5, 6, 11, 12]])
    own = trainer._get_per_token_logps_and_entropies(model, ids, torch.ones_like(ids), 2)[0][0]
    rows.append(dataclasses.replace(row, logprobs=tuple((own + engine_off_by).tolist())))
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


def test_trl_has_what_we_replace_and_call():
    from trl import GRPOTrainer
    from trl.trainer.utils import pad, shuffle_sequence_dict, split_tensor_dict, use_adapter

    check_trl(GRPOTrainer)
    assert all(map(callable, (pad, shuffle_sequence_dict, split_tensor_dict, use_adapter)))
