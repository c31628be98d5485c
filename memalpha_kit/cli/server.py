"""Command `memalpha serve`."""

from __future__ import annotations

import os
from typing import Annotated

from typer import Option

from memalpha_kit.cli.options import Asking, Local, Served, answering, with_fields
from memalpha_kit.settings import ServerSettings


@with_fields
def serve(
    served: Served,
    asking: Asking,
    local: Local,
    settings: ServerSettings,
    port: Annotated[int, Option(min=0, max=65535, help="0: any")] = 5005,
    host: Annotated[str, Option(help="127.0.0.1: this machine only")] = "127.0.0.1",
) -> None:
    """The memory server, by default on http://127.0.0.1:5005, for this machine only.

    Another --host needs a token in MEMALPHA_SERVER_TOKEN, which every request but /health must then
    carry as `Authorization: Bearer ...`. One line on standard output says where it listens;
    requests are logged on standard error, one JSON object each. `--compat release` answers, fails
    and judges as the published server does.
    """
    import uvicorn

    from memalpha_kit.models.chat import Client
    from memalpha_kit.models.servers import endpoint_from_env
    from memalpha_kit.server.app import create_app
    from memalpha_kit.server.limits import TOKEN_ENV, listen
    from memalpha_kit.server.logs import LOG_CONFIG

    token = os.environ.get(TOKEN_ENV, "")
    socket = listen(host, port, token)
    local.check()
    model = answering(served, asking, local) if local.model else None
    if model is None:
        names = asking.fields() | {"model": served.model_name, "key_env": served.key_env}
        model = Client(endpoint_from_env(url=served.url, **names))
    app = create_app(settings, model, token)
    shown, locked = f"[{host}]" if ":" in host else host, ", token needed" * bool(token)
    at = f"http://{shown}:{socket.getsockname()[1]}"
    print(f"memory server on {at}, model {model.name}, {settings.compat}{locked}", flush=True)
    config = uvicorn.Config(
        app,
        log_config=LOG_CONFIG,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
    uvicorn.Server(config).run(sockets=[socket])
