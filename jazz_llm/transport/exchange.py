"""What the protocols and the drivers share: a request, the exchange that answers it, and the faults that can end it.

The two protocol files, http1.py and http2.py, are pure: they know no socket, no clock and no event loop, and offer one face:

* ``start(request, whole=...)`` begins an exchange and returns it; what has to be written comes from ``outgoing()``.
* ``receive(data)`` takes what one read brought and returns the exchanges that it touched, each once. It never raises: a fault
  stands in the exchange that it ended.
* ``lost(words)`` tells that the connection has ended, ``""`` being a clean end; the same is returned.
* ``take(exchange)`` returns the body that has come since, and gives the sender credit for it.
* ``stop(exchange)`` gives an exchange up, at the server too. ``finish(exchange)`` says that its body was read as far as wanted:
  the end of the message may still be on its way, and is waited for without anybody who reads it.
* ``room`` is how many more exchanges may be started now; ``busy`` how many are under way, those being finished included.
* ``limit`` is how many exchanges the peer takes at once, and a guess until it is ``settled``.
* ``retired``: no exchange may be started any more, and the connection is to be closed when ``busy`` is 0. ``closing``: it is
  to be closed now, after ``outgoing()`` was written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

Origin = tuple[str, str, int]  # scheme, host, port
Headers = tuple[tuple[str, str], ...]

# Bounds on what a peer may make us keep (FAULTS.md, "Security").
MAX_HEAD = 64 * 1024  # bytes of a header section, and of an interim response's
MAX_INTERIM = 100  # 1xx responses before the final one
# Bytes of a whole answer that wake its reader before the end: below the stream's window, or neither side could go on.
WHOLE_PIECE = 256 * 1024


@dataclass(slots=True)
class Request:
    """One attempt, ready for the wire; its repr shows no header, since one of them is the key.

    ``headers`` have lower-case names and hold neither ``host`` nor anything that frames the message: the protocols add those.
    ``target`` is path and query, printable ASCII.
    """

    method: str
    origin: Origin
    target: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    whole: bool = True  # whether the answer is wanted only when it is complete

    @property
    def authority(self) -> str:
        """Return host and port as a ``Host`` header shows them."""
        scheme, host, port = self.origin
        name = f"[{host}]" if ":" in host else host
        return name if port == (443 if scheme == "https" else 80) else f"{name}:{port}"


class Exchange:
    """One request and its answer, the same for both protocols: a protocol fills it, a driver reads it.

    ``status`` is 0 until the final head has come, and ``headers`` come with it: lower-case names, values decoded as latin-1, in
    the order of the wire. ``chunks`` hold ``held`` bytes of body that nobody has taken yet. It is over when ``ended`` (the
    message's end has come) or ``fault`` (what came instead) is set. ``whole``: nobody wants it before its end, so ``receive``
    returns it only when it is over or holds more than ``WHOLE_PIECE``. ``unsent`` is what flow control still keeps of the
    request's body. ``id`` and ``state`` belong to the protocol, ``waiter`` to the driver.
    """

    __slots__ = ("chunks", "ended", "fault", "headers", "held", "id", "method", "state", "status", "unsent", "waiter", "whole")

    def __init__(self, method: str, *, whole: bool) -> None:
        self.method = method
        self.whole = whole
        self.id = 0
        self.status = 0
        self.headers: Headers = ()
        self.chunks: list[bytes] = []
        self.held = 0
        self.ended = False
        self.fault: Fault | None = None
        self.unsent: memoryview | None = None
        self.state: Any = None
        self.waiter: Any = None

    def waits(self) -> bool:
        """Say whether the answer has not begun; of a whole answer, but for a failure's, its end counts as that."""
        return not self.status or (self.whole and self.status < 300 and not (self.ended or self.held))


class HTTPConnection(Protocol):
    """One face for both protocols; see the top of this file."""

    version: str
    limit: int
    settled: bool
    retired: bool
    closing: bool

    @property
    def room(self) -> int:
        """Return how many more exchanges may be started now."""

    @property
    def busy(self) -> int:
        """Return how many exchanges are under way."""

    def start(self, request: Request, *, whole: bool) -> Exchange:
        """Begin an exchange."""

    def receive(self, data: bytes) -> list[Exchange]:
        """Take what one read brought."""

    def lost(self, words: str) -> list[Exchange]:
        """Take the end of the connection."""

    def outgoing(self) -> bytes:
        """Return what has to be written."""

    def take(self, exchange: Exchange) -> bytes:
        """Return the body that has come since."""

    def stop(self, exchange: Exchange) -> None:
        """Give an exchange up."""

    def finish(self, exchange: Exchange) -> None:
        """Want no more of an exchange."""


class Fault(Exception):  # noqa: N818  # a family, whose members are errors
    """What ended an exchange; its words hold nothing of the request."""


class LostError(Fault):
    """The connection, or the stream on it, went away: ``code`` is HTTP/2's, where the peer named one.

    ``unprocessed``: the server provably never started on the request, which may be sent again (RFC 9113, section 8.7).
    """

    def __init__(self, words: str, *, code: int | None = None, unprocessed: bool = False) -> None:
        super().__init__(words)
        self.code = code
        self.unprocessed = unprocessed


class ProtocolError(Fault):
    """The peer breaks the rules of HTTP."""


class ConnectError(Fault):
    """No connection was made; ``retryable`` says whether the reason may pass."""

    def __init__(self, words: str, *, retryable: bool = True) -> None:
        super().__init__(words)
        self.retryable = retryable
