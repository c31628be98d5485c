"""A tiny random Qwen3 and a tiny BPE tokenizer with a chat template, made in a moment."""

from __future__ import annotations

from memalpha_kit.models.local import CausalLM

TEMPLATE = """{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{%- endif %}
{%- for tool in tools %}{{ (tool | tojson) + '\\n' }}{%- endfor %}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

CORPUS = ["Nora keeps bees. Tom paints boats in Lund.", '{"name": "memory_update"}'] * 20


def tiny_tokenizer():
    """Byte-level BPE of 400 tokens, control tokens like Qwen3's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AddedToken, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens(
        [AddedToken(t, special=False) for t in ("<think>", "</think>", "<tool_call>")]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_qwen3(tokenizer, seed: int = 0, window: int = 16384):
    """A random Qwen3 of 2 layers and width 32 over `tokenizer`'s vocabulary."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=window,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).eval()


def tiny_lm(batch_size: int = 8, window: int = 16384) -> CausalLM:
    """The two together."""
    tokenizer = tiny_tokenizer()
    model = tiny_qwen3(tokenizer, window=window)
    return CausalLM("tiny", model, tokenizer, (tokenizer.eos_token_id,), batch_size)
