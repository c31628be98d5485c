"""`memalpha export`: three kinds of checkpoints become one Hugging Face folder, loaded again."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_policy as tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_qwen3, tiny_tokenizer
from transformers import AutoModelForCausalLM

from memalpha_kit import cli
from memalpha_kit.errors import InputError
from memalpha_kit.method.encoding import encode_chat
from memalpha_kit.models.local import Sampling, load_lm
from memalpha_kit.models.tiny import save_policy
from memalpha_kit.settings import ModelConfig
from memalpha_kit.training import export as exports
from memalpha_kit.training.backends import load_model
from memalpha_kit.training.export import QUESTION, export, join_shards

LORA = ModelConfig(lora_rank=4, lora_alpha=32, lora_targets=("q_proj", "o_proj"))


ASKED = encode_chat(tiny_tokenizer(), [{"role": "user", "content": QUESTION}])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model's folder that stops at the first token of its reply to the question."""
    tokenizer = tiny_tokenizer()
    model = tiny_qwen3(tokenizer).eval()
    folder = tmp_path_factory.mktemp("base") / "model"
    with torch.inference_mode():
        said = model(torch.tensor([ASKED])).logits[0, -1].argmax().item()
    save_policy(model, tokenizer, folder)
    told = {"eos_token_id": [tokenizer.eos_token_id, said], "pad_token_id": tokenizer.pad_token_id}
    told |= {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(told))
    return folder


def shards(model, folder, world=3, ranks=None, config=None):
    """A checkpoint as the published trainer writes it: rows dealt to `world` ranks."""
    actor = folder / "actor"
    actor.mkdir(parents=True)
    for rank in range(world) if ranks is None else ranks:
        # ceil-sized pieces, as FSDP cuts: the last ones are smaller or empty
        state = {}
        for name, value in model.state_dict().items():
            size = -(-value.shape[0] // world)
            state[name] = value[rank * size : (rank + 1) * size].clone()
        torch.save(state, actor / f"model_world_size_{world}_rank_{rank}.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 1, "world_size": world}))
    if config:
        (actor / "huggingface").symlink_to(config)
    return folder


def adapter(base, folder, std=0.3):
    """A saved adapter that has learned something."""
    model = load_model(LORA, base, 0).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=std, generator=generator)
    model.save_pretrained(folder)
    return folder


def test_a_run_is_exported_by_its_best_policy_or_its_last(base, tmp_path):
    lm, run = load_lm(base), tmp_path / "run"
    save_policy(lm.model, lm.tokenizer, run / "policy")
    made = export(run, tmp_path / "last")
    assert tiny.equal(load_lm(made.folder).model, lm.model) and made.difference == 0.0
    better = tiny_qwen3(lm.tokenizer, seed=1)
    save_policy(better, lm.tokenizer, run / "best" / "policy")
    assert tiny.equal(load_lm(export(run, tmp_path / "best").folder).model, better)


def test_the_command_says_what_it_wrote_and_the_type_can_be_changed(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["export", str(base), "--out", str(out), "--dtype", "bfloat16"]) == 0
    assert "Hugging Face folder" in capsys.readouterr().out
    assert load_lm(out).model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["whole", "adapter", "shards"])
def test_an_export_stops_where_its_base_stops_and_samples_as_it_does(base, tmp_path, kind):
    checkpoint = {
        "whole": lambda: base,
        "adapter": lambda: adapter(base, tmp_path / "adapter", std=0.0),
        "shards": lambda: shards(load_lm(base).model, tmp_path / "step", 2, config=base),
    }[kind]()
    made = export(checkpoint, tmp_path / "out", dtype="float32")
    found, told = (
        json.loads((folder / "generation_config.json").read_text())
        for folder in (made.folder, base)
    )
    assert found == told
    model = AutoModelForCausalLM.from_pretrained(made.folder)
    reply = model.generate(torch.tensor([ASKED]), do_sample=False, max_new_tokens=9)
    (ours,) = load_lm(made.folder).generate([ASKED], Sampling(0.0, 9))
    assert tuple(reply[0, len(ASKED) :]) == ours.completion_ids == (told["eos_token_id"][1],)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["eos_token_id", "top_k"], "stop ids and defaults: expected"),
        (["top_k"], "stop ids and defaults: expected .*'top_k': 20.*found"),
        ([], "expected a reply of 1 tokens, found 2"),
    ],
)
def test_an_export_that_lost_what_its_base_said_is_refused(
    base, tmp_path, monkeypatch, lost, message
):
    """Whatever the files say, both models are asked."""
    save, replies = exports.save_trained, iter([[7], [7, 8]])

    def forgetful(lm, folder):
        file = save(lm, folder) / "generation_config.json"
        told = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in told.items() if k not in lost}))

    monkeypatch.setattr(exports, "save_trained", forgetful)
    monkeypatch.setattr(exports, "_reply", lambda *_: next(replies))
    with pytest.raises(InputError, match=message):
        export(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_are_joined_to_the_model_they_came_from(base, tmp_path, world):
    model = load_lm(base).model
    folder = shards(model, tmp_path / "global_step_7", world, config=base)
    made = export(folder, tmp_path / "out", dtype="float32")
    assert made.kind == f"{world} shards" and tiny.equal(load_lm(made.folder).model, model)
    rounded = export(folder, tmp_path / "rounded")  # as released: bfloat16
    assert load_lm(rounded.folder).model.dtype == torch.bfloat16


def test_shards_that_say_how_they_are_cut_are_joined_along_that_dimension():
    class Piece:  # what matters of a DTensor
        def __init__(self, local, placement):
            self._local_tensor, self.placements = local, (placement,)

    from torch.distributed.tensor import Replicate, Shard

    whole = torch.arange(12.0).reshape(3, 4)
    cut = [{"w": Piece(part, Shard(1)), "b": Piece(whole[0], Replicate())}
           for part in whole.split(2, dim=1)]  # fmt: skip
    joined = join_shards(cut, {})
    assert torch.equal(joined["w"], whole) and torch.equal(joined["b"], whole[0])


class Bomb:
    """A pickle that runs code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize(
    ("rank", "change", "message"),
    [
        (1, lambda path, _: path.unlink(), r"expected 2 shards, found none for ranks \[1\]"),
        (0, lambda path, state: state.pop("model.norm.weight"), r"rank 1: .*model.norm"),
        (0, lambda path, state: state.update(odd=Bomb()), "expected a file of tensors"),
    ],
)
def test_a_rank_a_parameter_or_tensors_that_are_missing_are_refused(
    base, tmp_path, rank, change, message
):
    folder = shards(load_lm(base).model, tmp_path / "a", 2, config=base)
    path = folder / "actor" / f"model_world_size_2_rank_{rank}.pt"
    state = torch.load(path, weights_only=True)
    change(path, state)
    if path.is_file():
        torch.save(state, path)
    with pytest.raises(InputError, match=message):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-3), ("bfloat16", 0.3)])
def test_an_adapter_is_merged_and_says_how_far_the_merge_is_off(base, tmp_path, dtype, off):
    folder = adapter(base, tmp_path / "adapter")
    made, ids = export(folder, tmp_path / "out", dtype=dtype), torch.arange(20)[None]
    trained = load_model(LORA, base, 0).model
    trained.load_adapter(folder, "default")
    with torch.inference_mode():
        wanted, found = trained.eval()(ids).logits, load_lm(made.folder).model(ids).logits
    assert torch.allclose(wanted, found.float(), atol=1e-4 if dtype == "float32" else 0.2)
    assert 0 <= made.difference < off and made.kind == "adapter, merged"


def test_a_merge_that_is_refused_leaves_the_earlier_export(base, tmp_path, monkeypatch):
    out, folder = tmp_path / "out", adapter(base, tmp_path / "adapter")
    export(base, out)
    monkeypatch.setitem(exports.ROUNDING, "bfloat16", 1e-9)
    with pytest.raises(InputError, match="within 1e-09 .*; export with --dtype float32"):
        export(folder, out, dtype="bfloat16")
    assert tiny.equal(load_lm(out).model, load_lm(base).model)
    assert not out.with_name("out.new").exists()


def test_a_wider_type_holds_what_merging_in_the_type_of_the_base_would_round_away(base, tmp_path):
    """A base in 16 bits: the merge itself is made in the type that was asked for."""
    plain = export(base, tmp_path / "base", dtype="bfloat16")
    assert plain.difference > 0  # rounding is told, too
    rounded = plain.folder
    folder = adapter(rounded, tmp_path / "adapter", std=0.3)
    made = export(folder, tmp_path / "out", rounded, dtype="float32")
    assert made.difference < 1e-3 and load_lm(made.folder).model.dtype == torch.float32


def test_what_two_different_rewards_taught_an_adapter_is_in_the_exported_weights(tmp_path):
    """One update on a good and a bad rollout; the merged folder prefers the good one as trained."""
    from memalpha_kit.training.loss import row_logprobs

    base, run = tiny.saved(tmp_path / "base"), tmp_path / "run"
    lm = load_model(LORA, base, 0)
    good, bad = tiny.row((11, 12), 1.0), tiny.row((21, 22), -1.0)
    trainer = tiny.trainer(run, [good, bad], lm, LORA, steps=1)
    trainer.train()
    trainer.save_live(run / "policy")
    made = load_lm(export(run, tmp_path / "out", base).folder).model
    before = load_lm(base).model

    def likelier(model):
        with torch.no_grad():
            return [row_logprobs(model, row, 1.0).sum().item() for row in (good, bad)]

    start, trained, merged = (likelier(model) for model in (before, lm.model.eval(), made))
    assert merged == pytest.approx(trained, abs=1e-4)
    assert merged[0] > start[0] + 1e-3 and merged[1] < start[1] - 1e-3
    changed = {name for name, value in made.named_parameters()
               if not value.equal(dict(before.named_parameters())[name])}  # fmt: skip
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "o_proj"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"lora_bias": True}, "Impossible to merge LoRA with `lora_bias=True`"),
        ({"r": 8}, "found Error.* loading state_dict .*: size mismatch for .*lora_A"),
        ({"target_modules": ["q_proj", "o_proj", "v_proj"]}, "Found missing adapter keys.*v_proj"),
        ({"base_model_name_or_path": None}, "expected the name of its base"),
        (None, "found no adapter_model.safetensors"),
    ],
)
def test_an_adapter_that_is_not_whole_or_is_not_to_be_merged_is_told(base, tmp_path, change, found):
    folder = adapter(base, tmp_path / "adapter")
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | (change or {})))
    if change is None:
        weights.unlink()
    elif "lora_bias" in change:
        state = load_file(weights)
        state |= {n.replace("weight", "bias"): w.sum(1) for n, w in state.items() if "_B" in n}
        save_file(state, weights)
    with pytest.raises(InputError, match=found) as caught:
        export(folder, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_an_export_takes_the_place_of_nothing_but_an_earlier_export(base, tmp_path):
    run, notes = tmp_path / "run", tmp_path / "models"
    shutil.copytree(base, run / "policy")
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    for out, found in {
        run: "the checkpoint or its base",
        run / "policy": "the checkpoint or its base",
        notes: "other files",
        notes / "notes.txt": "other files",
    }.items():
        with pytest.raises(InputError, match=f"expected a new folder or .*, found {found}"):
            export(run, out)
    assert (run / "policy" / "config.json").is_file()
    assert [path.name for path in notes.iterdir()] == ["notes.txt"]
    for _ in range(2):
        assert export(run, tmp_path / "exported").difference == 0


def test_a_folder_that_is_nothing_of_this_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a folder with a checkpoint"):
        export(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(InputError, match="expected a folder with config.json"):
        export(tmp_path, tmp_path / "out")
