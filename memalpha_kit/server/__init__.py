"""The memory server: answering from memories and judging memory writes over HTTP.

It has the published server's endpoints and JSON shapes, so that training and evaluation scripts
written for that one can point at it. The one law: the server parses, bounds and reports; retrieval,
wording and judging are those of `method`, and a failed answer is `null` with an error beside it,
never a text.

    app = create_app(ServerSettings(), Client(endpoint_from_env()))   # or: memalpha serve

A request passes `logs` (id, one line without content), `limits` (host, token, type, size, a free
place, time limit), `wire` (shape) and `work` (what is asked for, and the model's calls).
"""
