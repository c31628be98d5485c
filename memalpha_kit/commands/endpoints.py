"""Options that name a model at an endpoint; they mean the same in every command."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from memalpha_kit.errors import InputError

if TYPE_CHECKING:
    from memalpha_kit.models.chat import Client


def add_endpoint_arguments(parser: argparse.ArgumentParser, role: str = "", who: str = "") -> None:
    """Adds `--url`, `--model-name`, `--key-env` and prices, with `role-` in front for other roles.

    `who` says what the model does, for the help.
    """
    prefix = f"--{role}-" if role else "--"
    group = parser.add_argument_group(f"the model that {who}")
    default = "QWEN_URL" if not role else "as --url"
    group.add_argument(
        f"{prefix}url", metavar="URL", help=f"an OpenAI-compatible server (default: {default})"
    )
    default = "QWEN_MODEL_NAME" if not role else "as --model-name"
    group.add_argument(
        f"{prefix}model-name", metavar="NAME", help=f"the model there (default: {default})"
    )
    group.add_argument(
        f"{prefix}key-env",
        metavar="NAME",
        help="environment variable that holds the key (default: by address, OPENROUTER_API_KEY or "
        "OPENAI_API_KEY)",
    )
    for side, what in (("in", "read"), ("out", "written")):
        group.add_argument(
            f"{prefix}price-{side}", type=float, metavar="USD", help=f"per million tokens {what}"
        )


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how servers are asked; none of it changes an answer."""
    group = parser.add_argument_group("how servers are asked")
    group.add_argument("--concurrency", type=int, default=32, metavar="N", help="default: 32")
    group.add_argument("--timeout", type=float, default=120.0, metavar="S", help="default: 120")
    group.add_argument("--retries", type=int, default=6, metavar="N", help="default: 6")
    group.add_argument(
        "--give-up", type=int, default=8, metavar="N",
        help="failed requests in a row after which a server counts as gone (default: 8)",
    )  # fmt: skip
    group.add_argument("--cache", type=Path, metavar="FOLDER", help="replies by content, shared")


def client_of(args: argparse.Namespace, role: str = "", cache: Path | None = None) -> Client | None:
    """The client of a role, None if neither an option nor, for answering, QWEN_URL names one.

    Other roles use the answering model's address where they name only a model, and the other way
    round. Raises InputError that says what is missing.
    """
    from memalpha_kit.models.chat import Client
    from memalpha_kit.models.servers import endpoint_from_env

    names = ("url", "model_name", "key_env", "price_in", "price_out")
    said = {name: getattr(args, f"{role}_{name}" if role else name) for name in names}
    if not (said["url"] or said["model_name"] or (not role and os.environ.get("QWEN_URL"))):
        spare = next((name for name in names if said[name] is not None), "")
        if role and spare:
            raise InputError(
                f"--{role}-{spare.replace('_', '-')}: expected --{role}-model-name too"
            )
        return None
    if role and not said["url"]:
        said["url"] = args.url
        said["key_env"] = said["key_env"] or args.key_env
    said["model"] = said.pop("model_name") or (args.model_name if role else None)
    options = {
        "concurrency": args.concurrency,
        "timeout_s": args.timeout,
        "retries": args.retries,
        "give_up": args.give_up,
        "cache": args.cache or cache,
    }
    return Client(endpoint_from_env(**said, **options))
