"""`memalpha export`: three kinds of checkpoints become one Hugging Face folder, loaded again."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny_qwen3, tiny_tokenizer

from memalpha_kit import cli
from memalpha_kit.errors import InputError
from memalpha_kit.models.local import load_lm
from memalpha_kit.models.tiny import save_policy
from memalpha_kit.training.export import export, join_shards


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model's folder."""
    tokenizer = tiny_tokenizer()
    folder = tmp_path_factory.mktemp("base") / "model"
    return save_policy(tiny_qwen3(tokenizer).eval(), tokenizer, folder)


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


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_is_exported_by_its_best_policy_or_its_last(base, tmp_path):
    lm = load_lm(base)
    run = tmp_path / "run"
    save_policy(lm.model, lm.tokenizer, run / "policy")
    made = export(run, tmp_path / "last")
    assert same(load_lm(made.folder).model, lm.model) and made.difference == 0.0
    better = tiny_qwen3(lm.tokenizer, seed=1)
    save_policy(better, lm.tokenizer, run / "best" / "policy")
    assert same(load_lm(export(run, tmp_path / "best").folder).model, better)


def test_the_command_says_what_it_wrote_and_the_type_can_be_changed(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["export", str(base), "--out", str(out), "--dtype", "bfloat16"]) == 0
    assert "Hugging Face folder" in capsys.readouterr().out
    assert load_lm(out).model.dtype == torch.bfloat16


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_are_joined_to_the_model_they_came_from(base, tmp_path, world):
    model = load_lm(base).model
    folder = shards(model, tmp_path / "global_step_7", world, config=base)
    made = export(folder, tmp_path / "out", dtype="float32")
    assert made.kind == f"{world} shards" and same(load_lm(made.folder).model, model)
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


def test_a_missing_rank_or_parameter_is_refused_before_anything_is_written(base, tmp_path):
    model, out = load_lm(base).model, tmp_path / "out"
    folder = shards(model, tmp_path / "a", 3, ranks=(0, 2), config=base)
    with pytest.raises(InputError, match=r"expected 3 shards, found none for ranks \[1\]"):
        export(folder, out)
    other = shards(tiny_qwen3(tiny_tokenizer()), tmp_path / "b", 2, config=base)
    path = other / "actor" / "model_world_size_2_rank_0.pt"
    state = torch.load(path, weights_only=True)
    state.pop("model.norm.weight")
    torch.save(state, path)
    with pytest.raises(InputError, match=r"rank 1: expected the parameters of rank 0.*model.norm"):
        export(other, out)
    assert not out.exists()


def test_a_shard_is_read_without_running_code(base, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code was run')",))

    folder = shards(load_lm(base).model, tmp_path / "a", 1, config=base)
    torch.save({"w": Bomb()}, folder / "actor" / "model_world_size_1_rank_0.pt")
    with pytest.raises(InputError, match="expected a file of tensors"):
        export(folder, tmp_path / "out")


def test_an_adapter_is_merged_and_says_how_far_the_merge_is_off(base, tmp_path):
    from peft import LoraConfig, get_peft_model

    lm = load_lm(base)
    model = get_peft_model(lm.model, LoraConfig(r=4, target_modules=["q_proj", "o_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    made = export(tmp_path / "adapter", tmp_path / "out", base)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        wanted, found = model.eval()(ids).logits, load_lm(made.folder).model(ids).logits
    assert torch.allclose(wanted, found, atol=1e-4)
    assert 0 <= made.difference < 1e-3 and made.kind == "adapter, merged"


def test_a_folder_that_is_nothing_of_this_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a folder with a checkpoint"):
        export(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(InputError, match="expected a folder with config.json"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="dtype: expected one of"):
        export(tmp_path, tmp_path / "out", dtype="int4")
