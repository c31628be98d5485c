"""Stages that a language model does: filtering questions, summaries to keywords, short answers.

Every stage is a pure function that takes `complete`, the thing that asks a model, or None for its
named, documented fallback `rules` (`stages/rules.py`):

    complete = stages.model(config)              # None for config.stage == "rules"
    closed_book(pairs, count, complete)     # squad, hotpotqa:    [True, False, None, ...]
    keywords.extract(summaries, complete)   # booksum, infbench:  [("Nell", ...), None, ...]
    shortening.shorten(pairs, complete)     # perltqa:            [Short(text, shortened), ...]
    answerable(context, pairs, complete)    # perltqa:            ["Forty", "", None, ...]

Results come in the order of what was handed in, so they belong to (data set, instance, index) and
never to a question's text. What failed is None: never "", never an empty list (data.md D3, D4,
D26).
"""

from __future__ import annotations

import os
from pathlib import Path

from memalpha_kit.data.stages.llm import Asker, Complete
from memalpha_kit.errors import InputError
from memalpha_kit.models.endpoint import Client, Endpoint
from memalpha_kit.settings import BuildConfig


def model(config: BuildConfig) -> Complete | None:
    """What stages ask: the configured server for "llm", None for "rules".

    Address and model come from the settings, else from OPENAI_BASE_URL and OPENAI_MODEL. Raises
    InputError if one is missing, and ValueError for stage "none": a builder does not ask then.
    """
    if config.stage == "none":
        raise ValueError("stage none has nothing to ask")
    if config.stage == "rules":
        return None
    url = config.llm_url or os.environ.get("OPENAI_BASE_URL", "")
    name = config.llm_model or os.environ.get("OPENAI_MODEL", "")
    if not url:
        raise InputError("llm_url: expected http(s)://host/v1, found none")
    if not name:
        raise InputError("llm_model: expected the name of the server's model, found none")
    settings = {"key_env": config.llm_key_env, "cache": Path(config.llm_cache)}
    return Asker(Client(Endpoint(url, name, **settings)))
