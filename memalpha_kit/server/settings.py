"""What a memory server may be told, and where it may listen."""

from __future__ import annotations

import ipaddress
import math
import socket
from dataclasses import dataclass, field

from memalpha_kit.errors import InputError
from memalpha_kit.method.retrieval import Retrieval

TOKEN_ENV = "MEMALPHA_SERVER_TOKEN"


@dataclass(frozen=True)
class ServerSettings:
    """Limits and manners of a server. Raises InputError for what cannot be.

    `retrieval.behaviour` "release" answers in the published shapes: `Error: ...` texts in place of
    failed answers, 0 for failed judgements, temperature 0.7 unless the request names one, and the
    published retrieval. `token` "" asks for none, which `address` allows on loopback only.
    """

    retrieval: Retrieval = Retrieval()
    token: str = field(default="", repr=False)
    max_request_mb: float = 64.0  # of a body, 2**20 bytes
    time_limit_s: float = 1800.0  # of a request, reading its body included
    max_at_work: int = 8  # requests at the same time; one more is refused with 503
    max_items: int = 10_000  # memories, questions or judged calls in one request
    log_content: bool = False  # requests, answers and error texts into the log

    def __post_init__(self) -> None:
        if self.retrieval.method != "bm25":
            raise InputError(f"retrieval.method: expected bm25, found {self.retrieval.method}")
        for name in ("max_request_mb", "time_limit_s", "max_at_work", "max_items"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}: expected more than 0, found {getattr(self, name)}")
        if not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise InputError(f"{TOKEN_ENV}: expected plain characters without a space")

    @property
    def release(self) -> bool:
        """Whether the published behaviour is wanted."""
        return self.retrieval.behaviour == "release"

    @property
    def max_request_bytes(self) -> int:
        """The largest body that is read."""
        return int(self.max_request_mb * 2**20)

    @property
    def temperature(self) -> float:
        """Of an answer whose request does not name one (A-20)."""
        return 0.7 if self.release else 0.0


def address(host: str, port: int, token: str) -> tuple[socket.AddressFamily, tuple]:
    """The socket family and address of a host's name. Raises InputError if it must not be used.

    Any address but loopback needs a token, whatever name it goes by (S-1).
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port: expected 0 to 65535, found {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InputError(f"host: expected an address of this machine, found {host!r}") from None
    family, _, _, _, place = found[0]
    if not token and not ipaddress.ip_address(place[0].partition("%")[0]).is_loopback:
        raise InputError(
            f"host {host}: other machines can reach it, so expected a token in {TOKEN_ENV}, found "
            'none; make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return family, place


def listen(family: socket.AddressFamily, place: tuple) -> socket.socket:
    """A socket that listens there. Raises InputError if it cannot."""
    try:
        return socket.create_server(place, family=family, backlog=128)
    except OSError as error:
        raise InputError(f"{place[0]}:{place[1]}: cannot listen there: {error.strerror}") from None
