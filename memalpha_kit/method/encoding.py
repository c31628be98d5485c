"""Prompts as token ids. The one law: text of a document never becomes a control token.

A tokenizer's *added* tokens (`<|im_end|>`, but also `<think>` and `<tool_call>`, which Qwen3 does
not even mark special) are what a chat is steered by. They are encoded where the chat template or a
reply of our own has them; the same characters in a chunk, a memory or a question are spelt out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of `text` as a model would write it: special tokens are spelt out, other added ones not.

    For replies to be learnt, and for the miniature's own prompts.
    """
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def spell_out(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of `text` as ordinary text, with no added token among them.

    A few vocabularies (Unigram, whole words) hold added tokens among their own pieces too; such a
    piece is cut in its middle and both halves are spelt out.
    """
    plain, added = _without_added_tokens(tokenizer)
    found = plain.encode(text, add_special_tokens=False)
    if added.isdisjoint(found.ids):
        return found.ids
    places = zip(found.ids, found.offsets, strict=True)
    hits = [(start + end) // 2 for i, (start, end) in places if i in added and end - start > 1]
    cuts = [0, *sorted(set(hits) - {0}), len(text)]
    if len(cuts) == 2:  # a single character cannot be spelt otherwise
        return found.ids
    parts = (text[start:end] for start, end in pairwise(cuts))
    return [i for part in parts for i in spell_out(tokenizer, part)]


@lru_cache(maxsize=8)
def _without_added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, frozenset[int]]:
    """The same tokenizer (of the library `tokenizers`) for ordinary text, and what is none.

    The token for unknown text is what ordinary text may become.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path}: expected a fast one (tokenizer.json), found "
            f"{type(tokenizer).__name__}"
        )
    plain = json.dumps({**json.loads(backend.to_str()), "added_tokens": [], "post_processor": None})
    added = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    return Tokenizer.from_str(plain), frozenset(added)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = False,
) -> list[int]:
    """Prompt ids of a chat, generation prefix included; contents cannot become control tokens.

    The chat template is rendered around placeholders, which the contents then replace. Where the
    tokenizer finds no added token in the text but those of the template, the ids are its own. Else
    everything between two of the template's is encoded as ordinary text. Raises InputError if there
    is no chat template, or if it refuses the messages or leaves out the tools.
    """
    contents = {f"\ue000{place}\ue001": m["content"] for place, m in enumerate(messages)}
    shells = [{**m, "content": mark} for m, mark in zip(messages, contents, strict=True)]
    rendered = _render_chat(tokenizer, shells, tools, thinking)
    added, controls = tokenizer.added_tokens_encoder, _without_added_tokens(tokenizer)[1]
    names = "|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)"
    pieces = re.split(f"({names})", rendered)  # every other one is an added token
    filled = partial(re.sub, "\ue000\\d+\ue001", lambda mark: contents.get(mark[0], mark[0]))
    written = [added[name] for name in pieces[1::2]]
    if not any(re.search(names, content) for content in contents.values()):
        ids = tokenizer.encode(filled(rendered), add_special_tokens=False, verbose=False)
        if [i for i in ids if i in controls] == [i for i in written if i in controls]:
            return ids
    spelt = [spell_out(tokenizer, filled(text)) if text else [] for text in pieces[::2]]
    return spelt[0] + [
        i for token, text in zip(written, spelt[1:], strict=True) for i in (token, *text)
    ]


def _render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    tools: Sequence[Mapping[str, Any]] | None,
    thinking: bool | None,
) -> str:
    from jinja2 import TemplateError

    where = f"tokenizer {tokenizer.name_or_path}: chat template"
    if not tokenizer.chat_template:
        raise InputError(f"{where}: expected one, found none")
    offered: list[Any] = list(tools or ())
    try:
        rendered: Any = tokenizer.apply_chat_template(
            messages,
            tools=offered or None,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
    except TemplateError as error:
        roles = " and ".join(message["role"] for message in messages)
        raise InputError(f"{where}: expected one for {roles} messages, found: {error}") from error
    if any(tool["function"]["name"] not in rendered for tool in offered):
        raise InputError(
            f"{where}: expected the tools in the prompt, found that it leaves them out; a writer "
            "can be told of them in marker text (--set protocol.wire=text), a reader can do "
            "without (--reader model)"
        )
    return rendered
