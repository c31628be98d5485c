"""The memory server: answering from memories and judging memory writes over HTTP.

It has the public endpoints and JSON shapes (spec evaluation.md 2), so that training and evaluation
scripts written for the published server can point at it. The one law: the server parses, bounds and
reports; retrieval, wording and judging are those of `model_readers` and `judges`, and a failed
answer is `null` with an error beside it, never a text (S-3, S-20).

    app = create_app(ServerSettings(), Client(endpoint_from_env()))   # or: memalpha serve

A request passes `logs` (id, one line without content), `guard` (token, type, size, a free place,
time limit), `wire` (shape), `work` (what is asked for) and `upstream` (the model's calls).
"""

from memalpha_kit.server.app import create_app
from memalpha_kit.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
