"""Models: sampling keeps the ids it drew, folders are checked before anything is written."""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_policy as tiny
import torch
from tiny_models import tiny_lm, tiny_qwen3, tiny_tokenizer
from transformers import Qwen3ForCausalLM

from memalpha_kit.errors import InputError
from memalpha_kit.method.encoding import encode_text
from memalpha_kit.models.folders import check_pad, found_folder, pad_id
from memalpha_kit.models.local import CausalLM, Sampling, SeededDraw, load_lm
from memalpha_kit.models.tiny import save_policy
from memalpha_kit.settings import ModelConfig
from memalpha_kit.training.backends import load_model


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny_lm()


def encoded(lm, *texts):
    return [encode_text(lm.tokenizer, text) for text in texts]


# ---- sampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_sampled_ids_are_kept_and_text_is_a_view_of_them(lm, temperature):
    prompts = encoded(lm, "Nora", "Tom paints boats") * 10
    replies = lm.generate(prompts, Sampling(temperature, 80, seed=0))
    for completion in replies:
        ids = list(completion.completion_ids)
        stopped = completion.finish == "stop"
        assert stopped == (ids[-1] in lm.stop_ids) and (stopped or len(ids) == 80)
        assert not set(ids[:-1]) & set(lm.stop_ids)
        assert completion.text == lm.tokenizer.decode(ids[:-1] if stopped else ids)
        assert completion.mask == (1,) * len(ids) and len(completion.logprobs) == len(ids)
    if temperature > 1:
        assert {completion.finish for completion in replies} == {"stop", "length"}


def test_a_reply_depends_on_its_seed_and_not_on_its_batch(lm):
    prompts, sampling = encoded(lm, "Nora", "Tom paints boats", "Lund."), Sampling(1.0, 20)
    together = lm.generate(prompts, sampling, seeds=[5, 6, 7])
    alone = dataclasses.replace(lm, batch_size=1).generate(prompts, sampling, [5, 6, 7])
    other = lm.generate(prompts, sampling, [6, 7, 8])
    assert [c.completion_ids for c in together] == [c.completion_ids for c in alone]
    assert together == lm.generate(prompts, sampling, [5, 6, 7]) != other


def test_greedy_takes_the_likeliest_token(lm):
    (ids,) = encoded(lm, "Nora keeps bees")
    (done,) = lm.generate([ids], Sampling(0.0, 5))
    for token in done.completion_ids:
        assert int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids = [*ids, token]


def test_draws_follow_the_model_s_probabilities_and_top_p_leaves_the_likeliest(lm):
    (prompt,) = encoded(lm, "Nora")
    logits = lm.model(torch.tensor([prompt])).logits[0, -1].double()
    expected = torch.softmax(logits / 0.5, -1)
    wide = dataclasses.replace(lm, batch_size=500)
    done = wide.generate([prompt] * 2000, Sampling(0.5, 1))
    drawn = torch.tensor([c.completion_ids[0] for c in done]).bincount(minlength=len(expected))
    assert (drawn / 2000 - expected).abs().max() < 0.04
    first = done[0]
    assert first.logprobs[0] == pytest.approx(expected[first.completion_ids[0]].log().item(), 1e-3)
    tight = wide.generate([prompt] * 20, Sampling(1.0, 1, top_p=1e-6))
    assert {c.completion_ids[0] for c in tight} == {int(logits.argmax())}


def test_a_device_without_64_bit_floats_has_its_tokens_drawn_on_the_cpu(monkeypatch):
    class Scores(torch.Tensor):
        device = SimpleNamespace(type="mps")

    places = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, place: places.append(place) or self)
    SeededDraw(Sampling(1.0, 1), [3])(torch.tensor([[1]]), torch.ones(1, 9).as_subclass(Scores))
    assert places == ["cpu", "cpu", Scores.device]


def test_generating_leaves_the_training_mode_and_the_weights_alone(lm):
    lm.model.train()
    before = copy.deepcopy(lm.model)
    lm.generate(encoded(lm, "Nora"), Sampling(1.0, 4))
    assert lm.model.training and lm.model.eval()
    assert tiny.equal(before, lm.model)
    assert all(p.requires_grad and not p.is_inference() for p in lm.model.parameters())


def test_a_prompt_beyond_the_window_and_impossible_sampling_are_refused():
    small = tiny_lm(window=32)
    with pytest.raises(InputError, match="at most 32 tokens"):
        small.generate([[1] * 20], Sampling(0.0, 20))
    with pytest.raises(InputError, match="prompt 0: expected tokens"):
        small.generate([[]], Sampling(0.0, 2))
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_p": 2}, {"max_new_tokens": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Sampling(**wrong)


# ---- folders ------------------------------------------------------------------------------------


def saved(folder, tokenizer=None, **habits):
    tokenizer = tokenizer or tiny_tokenizer()
    model = tiny_qwen3(tokenizer)
    model.generation_config.update(**habits)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_saved_model_is_loaded_and_its_sampling_habits_are_not(tmp_path, lm):
    loaded = load_lm(saved(tmp_path, do_sample=True, temperature=0.1, top_k=1))
    prompt, sampling = encoded(lm, "Nora keeps") * 4, Sampling(1.0, 12, seed=1)
    assert loaded.model.dtype == torch.float32
    assert load_lm(tmp_path, dtype="bfloat16").model.dtype == torch.bfloat16
    ids = [c.completion_ids for c in loaded.generate(prompt, sampling)]
    assert ids == [c.completion_ids for c in lm.generate(prompt, sampling)] and len(set(ids)) > 1


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def nan(folder):
    change_weights(folder, lambda w: w["model.layers.0.mlp.up_proj.weight"][3].fill_(float("nan")))


def removed(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def short(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])


def other_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))


def window_as_text(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": "512"}))


UP = "model.layers.0.mlp.up_proj"
FAULTS = {
    "empty": (lambda folder: [p.unlink() for p in folder.iterdir()], "no config.json"),
    "no config": (removed("config.json"), "no config.json"),
    "an adapter": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        "what `memalpha export` makes a model of",
    ),
    "broken config": (lambda folder: (folder / "config.json").write_text("{not json"), "found"),
    "a window as text": (window_as_text, "Validation error for field 'max_pos.* got str"),
    "no weights": (removed("model.safetensors"), "no weights"),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "a pickle, pytorch_model.bin, which can run code",
    ),
    "no tokenizer": (removed("tokenizer.json", "tokenizer_config.json"), "no tokenizer"),
    "a missing weight": (
        lambda folder: change_weights(folder, lambda weights: weights.pop(f"{UP}.weight")),
        f"no weights for {UP}",
    ),
    "another shape": (other_shape, "found"),
    "cut off": (short, "found"),
    "NaN": (nan, "layers.0.mlp.up_proj.weight: expected numbers, found NaN or infinity"),
}


@pytest.mark.parametrize(("spoil", "found"), FAULTS.values(), ids=FAULTS)
def test_a_folder_that_is_no_whole_model_is_refused_in_one_line(tmp_path, spoil, found):
    spoil(saved(tmp_path))
    with pytest.raises(InputError, match=f"model {tmp_path}: .*{found}") as caught:
        load_lm(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_is_refused_in_one_line(tmp_path):
    for kind in ("nothing", "a file"):
        with pytest.raises(InputError, match=f"expected a folder with config.json.*found {kind}"):
            load_lm(tmp_path / "model")
        (tmp_path / "model").write_text("x")


def test_a_device_or_a_number_format_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for options, said in (
        ({"device": "abacus"}, "device 'abacus'"),
        ({"device": "cuda"}, "device 'cuda'"),
        ({"dtype": "floaty32"}, "dtype 'floaty32'.*did you mean 'float32'"),
    ):
        with pytest.raises(InputError, match=said):
            load_lm(tmp_path, **options)


ENDS, TEXT, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"


def tokenizer_with(template=START, **tokens):
    """A tiny tokenizer with these tokens in these roles."""
    tokenizer = tiny_tokenizer()
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("tokens", "template", "expected"),
    [
        ({"pad_token": TEXT}, TEXT, TEXT),
        ({"pad_token": ENDS, "unk_token": TEXT}, "", TEXT),
        ({"pad_token": ENDS, "unk_token": ENDS}, START, TEXT),
        ({"pad_token": ENDS, "unk_token": TEXT, "bos_token": TEXT}, "", START),
        ({"pad_token": ENDS, "unk_token": TEXT}, START + TEXT, None),
    ],
    ids=["its own", "for unknown text", "a spare one", "none that begins a text", "none"],
)
def test_the_token_that_fills_up_rows_never_ends_a_reply(tokens, template, expected):
    tokenizer = tokenizer_with(template, **tokens)
    found = pad_id(tokenizer, [tokenizer.eos_token_id], len(tokenizer))
    assert found == (expected and tokenizer.convert_tokens_to_ids(expected))


def test_a_pad_token_without_an_embedding_is_none():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    assert pad_id(tokenizer, [tokenizer.eos_token_id], len(tokenizer)) == size
    assert pad_id(tokenizer, [tokenizer.eos_token_id], size) < size


def test_a_model_whose_pad_token_is_its_end_token_gets_another_one_and_says_so(tmp_path):
    folder = saved(tmp_path, tokenizer_with(pad_token=ENDS))
    assert load_lm(folder).tokenizer.pad_token == TEXT
    assert f"rows are filled up with {TEXT}, for its pad token, {ENDS}" in check_pad(folder)
    assert check_pad(saved(tmp_path / "own", tokenizer_with())) == ""


def test_without_such_a_token_a_model_answers_and_the_remedy_makes_it_one_to_train(tmp_path):
    folder = saved(tmp_path, tokenizer_with(START + TEXT, pad_token=ENDS))
    assert load_lm(folder).generate([(5, 6)], Sampling(0.0, 2))
    with pytest.raises(InputError, match="expected a pad token that ends no reply") as refused:
        load_model(ModelConfig(), folder, seed=0)  # what all training loads with
    model, tokenizer = Qwen3ForCausalLM.from_pretrained(folder), tiny_tokenizer()
    for line in ("tokenizer.add_special_tokens({'pad_token': '<|pad|>'})",
                 "model.resize_token_embeddings(len(tokenizer))"):  # fmt: skip
        assert line in str(refused.value)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    model.resize_token_embeddings(len(tokenizer))
    save_policy(model, tokenizer, folder)
    assert load_model(ModelConfig(), folder, seed=0).tokenizer.pad_token == "<|pad|>"


def test_a_model_s_folder_is_found_from_the_clone_too(tmp_path, monkeypatch):
    """As in a notebook, whose kernel runs in notebooks/; what is here comes first."""
    for folder in ("notebooks", "memalpha_kit", "models/tiny"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert found_folder("models/tiny") == tmp_path / "models/tiny"
    assert found_folder("Qwen/Qwen3-4B") == Path("Qwen/Qwen3-4B")
    Path("models/tiny").mkdir(parents=True)
    assert found_folder("models/tiny") == Path("models/tiny")
