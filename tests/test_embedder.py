"""Embedding models in a folder: one vector per text, pooled as the folder says; on the command line
they retrieve, and local models have a device and a number format."""

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_qwen3, tiny_tokenizer

from memalpha_kit import cli
from memalpha_kit.data.instances import save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.models.embedder import load_embedder
from memalpha_kit.records import QA, make_instance

TEXTS = ["Nora keeps bees.", "Tom paints boats in Lund, and he has a parrot.", "bees", ""]
ASKED = QA("q0", "Who keeps bees?", ("Nora",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny encoder: vectors of tokens depend on all others."""
    from transformers import BertConfig, BertModel

    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("embedder") / "tiny-bert"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), **sizes, **layers)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def say(folder, tmp_path, kinds=(), longest=None, **modes):
    """A copy of the folder that says how its vectors are pooled, as sentence-transformers does."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (copy / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{place}_{kind}" * bool(place)}
        for place, kind in enumerate(kinds)
    ]
    if kinds:
        (copy / "modules.json").write_text(json.dumps(modules))
    return copy


@pytest.mark.parametrize(
    ("modes", "pool"),
    [
        ({}, lambda hidden: hidden.mean(0)),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32},
         lambda hidden: hidden.mean(0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
         lambda hidden: hidden[0]),
        ({"pooling_mode_lasttoken": True}, lambda hidden: hidden[-1]),
        ({"pooling_mode": "cls", "include_prompt": True}, lambda hidden: hidden[0]),
    ],
    ids=["unsaid", "mean", "first", "last", "newer spelling"],
)  # fmt: skip
def test_texts_of_a_batch_get_the_vectors_that_they_get_alone(folder, tmp_path, modes, pool):
    made = load_embedder(say(folder, tmp_path, **modes) if modes else folder)
    found = made.embed(TEXTS)
    for text, vector in zip(TEXTS[:3], found, strict=False):
        ids = torch.tensor([made.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            hidden = made.model(ids).last_hidden_state[0]
        np.testing.assert_allclose(vector, pool(hidden), atol=1e-5)
    assert len(found) == len(TEXTS) and np.isfinite(found).all()
    assert made.embed([]) == []


def test_a_text_beyond_the_window_is_cut_and_a_decoder_embeds_too(folder, tmp_path):
    made = load_embedder(folder)
    long = " ".join(TEXTS[1:2] * 40)
    assert made.embed([long]) == made.embed([long + " And more."])
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tiny_qwen3(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    one, *_ = load_embedder(tmp_path).embed(TEXTS[:2])
    assert one == pytest.approx(load_embedder(tmp_path).embed(TEXTS[:1])[0], abs=1e-5)


def test_what_cannot_embed_is_one_line(folder, tmp_path):
    with pytest.raises(InputError, match="expected a folder with config.json.*found nothing"):
        load_embedder(tmp_path / "gone")
    odd = say(folder, tmp_path, pooling_mode_max_tokens=True)
    with pytest.raises(InputError, match="pooling: expected one of .*found max_tokens"):
        load_embedder(odd)
    for modules in ('["x"]', "3", '[{"type": 1}]'):
        (odd / "modules.json").write_text(modules)
        with pytest.raises(InputError, match="^[^\n]*$"):
            load_embedder(odd)


MODULES = ("Transformer", "Pooling", "Normalize")


def test_what_sentence_transformers_says_of_a_folder_is_followed_and_told(folder, tmp_path, capsys):
    """A text's limit is the folder's own, and a step that is not known is refused, not left out."""
    modes = {"pooling_mode_cls_token": True}
    made = load_embedder(say(folder, tmp_path, MODULES, 8, **modes))
    assert "copy embeds: first pooling, texts of at most 8 tokens" in capsys.readouterr().err
    assert made.name.endswith(", first pooling") and made.longest == 8
    long = TEXTS[1]
    assert made.embed([long]) == made.embed([long + " And more."]) != made.embed(["bees"])
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match="expected Transformer, Pooling and Norm.*found Dense$"):
        load_embedder(say(folder, tmp_path / "more", (*MODULES, "Dense"), **modes))


def test_local_models_of_a_run_embed_and_compute_in_the_format_that_is_asked_for(
    folder, tmp_path, capsys
):
    tokenizer, answers = tiny_tokenizer(), tmp_path / "answers"
    tiny_qwen3(tokenizer).save_pretrained(answers)
    tokenizer.save_pretrained(answers)
    save_instances(tmp_path / "d.parquet", [make_instance("squad", TEXTS[:2], [ASKED])])
    argv = ["evaluate", "--method", "memory", "--writer", "keep_sentences", "--model", answers]
    argv += ["--data", tmp_path / "d.parquet", "--set", "max_tokens=4", "--out", tmp_path / "runs"]
    argv += ["--set", "retrieval=embedding", "--embed-model", folder]
    formats = (), ("--dtype", "bfloat16")
    for more in formats:
        assert cli.main([*map(str, argv), *more]) == 0
    plain, rounded = sorted(
        (json.loads(file.read_text())["method"] for file in tmp_path.glob("runs/*/settings.json")),
        key=lambda method: "dtype" in method,
    )
    assert plain["embed_model"].startswith("tiny-bert sha256:") and rounded["dtype"] == "bfloat16"
    assert cli.main([*map(str, argv), "--dtype", "bfloat61"]) == 2
    assert "did you mean 'bfloat16'" in capsys.readouterr().err
    served = ("--embed-url", "http://127.0.0.1:9/v1", "--embed-model-name", "e")
    assert cli.main([*map(str, argv), *served]) == 2
    assert "expected a local folder or --embed-url, found both" in capsys.readouterr().err
    unasked = argv[:9] + argv[11:-4]  # without a setting of the model, and without the embedder
    assert cli.main([*map(str, unasked), "--reader", "best_entry"]) == 2
    assert "--model: has no effect, for method memory asks no model" in capsys.readouterr().err
    assert cli.main([*map(str, argv), "--device", "abacus"]) == 2
    assert "device 'abacus'" in capsys.readouterr().err


def test_a_local_writer_loads_in_the_format_that_is_asked_for_and_a_silent_one_is_warned_about(
    tmp_path, capsys
):
    """The hint is one that can help: marker text is not recommended to who speaks it."""
    tokenizer, model = tiny_tokenizer(), tmp_path / "smollm2-135m"
    save_instances(tmp_path / "d.parquet", [make_instance("squad", TEXTS[:1], [ASKED])])
    argv = ["write", "--data", tmp_path / "d.parquet", "--model", model]
    argv += ["--set", "protocol.max_reply_tokens=4"]
    assert cli.main([*map(str, argv), "--out", str(tmp_path / "a.jsonl")]) == 2
    assert "`memalpha models get smollm2-135m` gets it" in capsys.readouterr().err
    tiny_qwen3(tokenizer).save_pretrained(model)
    tokenizer.save_pretrained(model)
    out = str(tmp_path / "a.jsonl")
    assert cli.main([*map(str, argv), "--out", out, "--dtype", "float16"]) == 0
    assert "protocol.wire=text asks for marker text" in capsys.readouterr().err
    assert cli.main([*map(str, argv), "--out", out]) == 2  # other numbers, another file
    assert "dtype" in capsys.readouterr().err
    text = [*map(str, argv), "--set", "protocol.wire=text", "--out", str(tmp_path / "b.jsonl")]
    assert cli.main(text) == 0
    said = capsys.readouterr().err
    assert "no call in 1 of 1 chunks" in said and "protocol.wire" not in said
