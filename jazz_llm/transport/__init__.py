"""The two pools, and the only place that knows sockets.

Both are httpx's own transports for now, each with a network backend of ours beneath: it holds the sockets (so that they can be
closed from any thread and with any loop state), keeps our deadlines in every wait, and makes TLS contexts only when needed.
A later version puts protocol code of our own in their place, behind the same two methods, ``open`` and ``aopen``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

READ_SIZE = 64 * 1024
RESENDS = 3  # how often what is provably unprocessed is sent again (CONTRACT, section 5)


@dataclass(slots=True)
class Request:
    """One attempt, ready for the wire; its repr shows no header, since one of them is the key."""

    method: str
    url: str
    origin: tuple[str, str, int]  # scheme, host, port
    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)


def default_limits() -> httpx.Limits:
    """Return the contract's limits: idle for 4 s, below the 5 s after which uvicorn and llama.cpp hang up."""
    import httpx

    return httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=4.0)


def origin_of(url: httpx.URL) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
