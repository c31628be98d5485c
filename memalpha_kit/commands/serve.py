"""`memalpha serve`: the memory server, by default on http://127.0.0.1:5005.

It listens for this machine only. Another `--host` needs a token in MEMALPHA_SERVER_TOKEN, which
every request but `/health` must then carry as `Authorization: Bearer ...`. One line on standard
output says where it listens; requests are logged on standard error, one JSON object each.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memalpha_kit.commands.endpoints import add_request_arguments
from memalpha_kit.errors import InputError

if TYPE_CHECKING:
    from memalpha_kit.records import ChatModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha serve`; names with `_` are those of the published server."""
    group = parser.add_argument_group("the model that answers and judges")
    group.add_argument(
        "--url", "--server_url", metavar="URL",
        help="an OpenAI-compatible server (default: QWEN_URL)",
    )  # fmt: skip
    group.add_argument(
        "--model-name", "--model_name", metavar="NAME",
        help="the model there (default: QWEN_MODEL_NAME)",
    )  # fmt: skip
    group.add_argument(
        "--model", metavar="FOLDER", help="a local model instead; a name means --model-name"
    )
    group.add_argument("--device", default="cpu", help="of a local model (default: cpu)")
    group.add_argument("--dtype", default="auto", help="of a local model's weights (default: auto)")
    group.add_argument("--key-env", metavar="NAME", help="environment variable that holds the key")
    group = parser.add_argument_group("the server")
    group.add_argument("--port", type=int, default=5005, help="0: any (default: 5005)")
    group.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    group.add_argument(
        "--compat", choices=("fixed", "release"), default="fixed",
        help="release: answer, fail and judge as the published server does",
    )  # fmt: skip
    group.add_argument(
        "--max-request-mb", type=float, default=64.0, metavar="MB", help="default: 64"
    )
    group.add_argument(
        "--time-limit", type=float, default=1800.0, metavar="S",
        help="of a request to this server (default: 1800)",
    )  # fmt: skip
    group.add_argument(
        "--at-work", type=int, default=8, metavar="N",
        help="requests worked on at a time; one more gets 503 (default: 8)",
    )  # fmt: skip
    group.add_argument(
        "--max-items", type=int, default=10_000, metavar="N",
        help="memories, questions or calls in one request (default: 10000)",
    )  # fmt: skip
    group.add_argument(
        "--max-entries", type=int, default=100_000, metavar="N",
        help="entries of all memories in one request (default: 100000)",
    )  # fmt: skip
    group.add_argument(
        "--judge-tokens", type=int, default=512, metavar="N",
        help="of one judgement at most (default: 512)",
    )  # fmt: skip
    group.add_argument(
        "--top-k", type=int, default=20, metavar="N", help="entries of each store (default: 20)"
    )
    group.add_argument(
        "--budget-tokens", type=int, default=30_000, metavar="N", help="of a prompt, default: 30000"
    )
    group.add_argument(
        "--counter", default="wordpunct", metavar="NAME",
        help="counts the budget, e.g. hf:Qwen/Qwen3-32B (default: wordpunct)",
    )  # fmt: skip
    group.add_argument("--log-content", action="store_true", help="log what is asked and answered")
    add_request_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Serves until it is interrupted. Raises InputError for what it must not or cannot do."""
    import uvicorn

    from memalpha_kit.method.retrieval import Retrieval
    from memalpha_kit.server.app import create_app
    from memalpha_kit.server.limits import TOKEN_ENV, ServerSettings, address, listen
    from memalpha_kit.server.logs import log_config

    settings = ServerSettings(
        Retrieval("bm25", args.top_k, args.budget_tokens, args.compat, args.counter),
        token=os.environ.get(TOKEN_ENV, ""),
        max_request_mb=args.max_request_mb,
        time_limit_s=args.time_limit,
        max_at_work=args.at_work,
        max_items=args.max_items,
        max_entries=args.max_entries,
        judge_tokens=args.judge_tokens,
        log_content=args.log_content,
    )
    place = address(args.host, args.port, settings.token)
    model, probe = _models(args)
    app = create_app(settings, model, probe=probe)
    socket = listen(*place)
    host = f"[{args.host}]" if ":" in args.host else args.host
    locked = ", token needed" if settings.token else ""
    print(
        f"memory server on http://{host}:{socket.getsockname()[1]}, model {model.name}, "
        f"{args.compat}{locked}",
        flush=True,
    )
    config = uvicorn.Config(
        app,
        log_config=log_config(args.log_content),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
    uvicorn.Server(config).run(sockets=[socket])
    return 0


def _models(args: argparse.Namespace) -> tuple[ChatModel, ChatModel]:
    """The model, and one for `/ready` that neither repeats its calls nor stores replies."""
    from memalpha_kit.models.chat import Client
    from memalpha_kit.models.servers import endpoint_from_env

    if args.model and Path(args.model).is_dir():
        if args.url or args.model_name:
            raise InputError("--model: expected no --url and no --model-name beside a folder")
        return (_local(args),) * 2
    if args.model and args.model_name:
        raise InputError("--model: expected a folder beside --model-name, found none")
    endpoint = endpoint_from_env(
        url=args.url,
        model=args.model_name or args.model,
        key_env=args.key_env,
        concurrency=args.concurrency,
        timeout_s=args.timeout,
        retries=args.retries,
        give_up=args.give_up,
        cache=args.cache,
    )
    probe = replace(endpoint, retries=0, cache=None, timeout_s=min(10.0, endpoint.timeout_s))
    return Client(endpoint), Client(probe)


def _local(args: argparse.Namespace) -> ChatModel:
    from memalpha_kit.models.local import load_lm
    from memalpha_kit.models.local_chat import LocalChat

    return LocalChat(load_lm(args.model, args.device, dtype=args.dtype))
