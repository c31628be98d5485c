"""Which model server is asked, and how: from flags, settings and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from memalpha_kit.errors import InputError
from memalpha_kit.sections import Count, Natural, Positive, section

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HOMES = {
    "OPENROUTER_API_KEY": "https://openrouter.ai/api/v1",
    "OPENAI_API_KEY": "https://api.openai.com/v1",
}
"""Addresses of the services whose keys have names of their own."""

THINKING = {"openrouter.ai": "reasoning", "api.openai.com": "none"}
"""How a host is told to reason or not; any other takes `chat_template_kwargs`, as vLLM, SGLang and
llama.cpp do with Qwen3."""


@section
class Endpoint:
    """A server and how it is used. Raises InputError for an address or a number that cannot be.

    `url` may end with `/v1`, with `/chat/completions` or without both. Of `cache`, a folder with
    one small file per reply, processes may share one; with a temperature above 0 it repeats the
    stored draw, so ask for another with another `seed` or `version`.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    concurrency: Count = 32  # requests under way at most
    timeout_s: Positive = 120.0  # of one attempt
    retries: Natural = 6  # new attempts after the first
    give_up: Count = 8  # requests in a row, all retried in vain: the server counts as gone
    cache: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _base_url(self.url))
        if not self.model:
            raise InputError("model: expected the name of the server's model, found none")

    @property
    def host(self) -> str:
        """The server's name, without port."""
        return urlsplit(self.url).hostname or ""

    def thinking(self, wanted: bool | None) -> dict[str, Any]:
        """The fields of a request that switch the model's reasoning on or off."""
        kind = THINKING.get(self.host, "chat_template_kwargs")
        if wanted is None or kind == "none":
            return {}
        inner = "enabled" if kind == "reasoning" else "enable_thinking"
        return {kind: {inner: wanted}}


_HARMLESS = re.compile(r"(\w+:)?/*[\w.-]*(:\d*)?(/[\w./-]*)?", re.ASCII)
"""An address in which no user name, password or query can stand, however it is written."""


def _base_url(url: str) -> str:
    """The address up to and with its version: what `/chat/completions` is appended to."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half a pair of brackets
        good = False
    if not good:
        shown = repr(url) if _HARMLESS.fullmatch(url) else "one not shown, it may hold a password"
        raise InputError(f"url: expected http(s)://host/v1, found {shown}")
    named = parts.username is not None or parts.password is not None
    if named or parts.query or parts.fragment or re.search("[;@]", parts.path):
        raise InputError(
            f"url: expected no user name, password or query in the address of {parts.hostname}; "
            "a key belongs into an environment variable"
        )
    path = re.sub(r"(/chat)?/completions$|/embeddings$|/models$", "", parts.path.rstrip("/"))
    path = path.rstrip("/") if re.search(r"/v\d", path) else f"{path}/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def endpoint_from_env(
    env: Mapping[str, str] | None = None, option: str = "--", **flags: Any
) -> Endpoint:
    """The endpoint that flags and environment name; a flag that is None or "" is not given.

    `flags` are fields of `Endpoint`. Else the address is QWEN_URL, OPENAI_BASE_URL, or that of the
    only one of OPENROUTER_API_KEY and OPENAI_API_KEY that is set; the model is QWEN_MODEL_NAME or
    OPENAI_MODEL. The key is the host's own, else the only one that is set. Raises InputError that
    says what is missing, by options that begin with `option`, or for an unknown flag.
    """
    env = os.environ if env is None else env
    given = {name: value for name, value in flags.items() if value is not None and value != ""}
    held = [name for name in HOMES if env.get(name)]
    url = given.pop("url", "") or env.get("QWEN_URL") or env.get("OPENAI_BASE_URL")
    url = url or (HOMES[held[0]] if len(held) == 1 else "")
    model = given.pop("model", "") or env.get("QWEN_MODEL_NAME") or env.get("OPENAI_MODEL")
    if not url:
        expected = f"expected an address in QWEN_URL or {option}url"
        raise InputError(f"model server: {expected}, found none")
    endpoint = Endpoint(url, model or "?", **given)
    if not model:
        raise InputError(
            f"{endpoint.url}: expected a model in QWEN_MODEL_NAME or {option}model-name, found none"
        )
    if "key_env" in given:
        return endpoint
    own = [name for name, home in HOMES.items() if urlsplit(home).hostname == endpoint.host]
    return replace(endpoint, key_env=(own or (held if len(held) == 1 else ["OPENAI_API_KEY"]))[0])
