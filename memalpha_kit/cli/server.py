"""Command `memalpha serve`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from typer import Option

from memalpha_kit.cli.options import Asking, Compat, Local, with_fields
from memalpha_kit.errors import InputError

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from memalpha_kit.chats import ChatModel


@with_fields
def serve(
    asking: Asking,
    local: Local,
    url: Annotated[
        str | None,
        Option("--url", "--server_url", help="an OpenAI-compatible server [default: QWEN_URL]"),
    ] = None,
    model_name: Annotated[
        str | None,
        Option("--model-name", "--model_name", help="the model there [default: QWEN_MODEL_NAME]"),
    ] = None,
    key_env: Annotated[str | None, Option(help="variable that holds the key")] = None,
    port: Annotated[int, Option(help="0: any")] = 5005,
    host: Annotated[str, Option(help="127.0.0.1: this machine only")] = "127.0.0.1",
    compat: Compat = "fixed",
    max_request_mb: Annotated[float, Option(metavar="MB", help="of a request's body")] = 64.0,
    time_limit: Annotated[float, Option(metavar="S", help="of a request to this server")] = 1800.0,
    at_work: Annotated[int, Option(metavar="N", help="requests at a time; one more gets 503")] = 8,
    max_items: Annotated[int, Option(metavar="N", help="memories, calls in a request")] = 10_000,
    max_entries: Annotated[
        int, Option(metavar="N", help="entries of all memories in one request")
    ] = 100_000,
    judge_tokens: Annotated[int, Option(metavar="N", help="of one judgement at most")] = 512,
    top_k: Annotated[int, Option(metavar="N", help="entries of each store")] = 20,
    budget_tokens: Annotated[int, Option(metavar="N", help="of a prompt")] = 30_000,
    counter: Annotated[
        str, Option(metavar="NAME", help="counts the budget, e.g. hf:Qwen/Qwen3-32B")
    ] = "wordpunct",
    log_content: Annotated[
        bool, Option("--log-content", help="log what is asked and answered")
    ] = False,
) -> None:
    """The memory server, by default on http://127.0.0.1:5005, for this machine only.

    Another --host needs a token in MEMALPHA_SERVER_TOKEN, which every request but /health must then
    carry as `Authorization: Bearer ...`. One line on standard output says where it listens;
    requests are logged on standard error, one JSON object each. `--compat release` answers, fails
    and judges as the published server does.
    """
    from memalpha_kit.method.retrieval import Retrieval
    from memalpha_kit.server.app import create_app
    from memalpha_kit.server.limits import TOKEN_ENV, ServerSettings, address, listen

    settings = ServerSettings(
        Retrieval("bm25", top_k, budget_tokens, compat, counter),
        token=os.environ.get(TOKEN_ENV, ""),
        max_request_mb=max_request_mb,
        time_limit_s=time_limit,
        max_at_work=at_work,
        max_items=max_items,
        max_entries=max_entries,
        judge_tokens=judge_tokens,
        log_content=log_content,
    )
    place = address(host, port, settings.token)
    answers, probe = models(local, url, model_name, key_env, asking)
    app = create_app(settings, answers, probe=probe)
    shown, locked = f"[{host}]" if ":" in host else host, ", token needed" * bool(settings.token)
    run(app, listen(*place), shown, f"model {answers.name}, {compat}{locked}", log_content)


def run(app: FastAPI, socket: socket.socket, host: str, about: str, log_content: bool) -> None:
    """Says where the server listens and serves until it is told to end."""
    import uvicorn

    from memalpha_kit.server.logs import log_config

    print(f"memory server on http://{host}:{socket.getsockname()[1]}, {about}", flush=True)
    config = uvicorn.Config(
        app,
        log_config=log_config(log_content),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
    uvicorn.Server(config).run(sockets=[socket])


def models(
    local: Local, url: str | None, model_name: str | None, key_env: str | None, asking: Asking
) -> tuple[ChatModel, ChatModel]:
    """The model, and one for `/ready` that neither repeats its calls nor stores replies."""
    from memalpha_kit.models.chat import Client
    from memalpha_kit.models.servers import endpoint_from_env

    if local.model and local.model.is_dir():
        if url or model_name:
            raise InputError("--model: expected no --url and no --model-name beside a folder")
        chat = local.chat()
        return chat, chat
    if local.model and model_name:
        raise InputError("--model: expected a folder beside --model-name, found none")
    replace(local, model=None).check()
    said = str(local.model) if local.model else None  # a name, as the published server takes it
    endpoint = endpoint_from_env(
        url=url, model=model_name or said, key_env=key_env, **asking.fields()
    )
    probe = replace(endpoint, retries=0, cache=None, timeout_s=min(10.0, endpoint.timeout_s))
    return Client(endpoint), Client(probe)
