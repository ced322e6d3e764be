"""The two pools, and the only place that knows sockets.

Both are httpx's own transports for now, each with a network backend of ours beneath: it holds the sockets (so that they can be
closed from any thread and with any loop state), keeps our deadlines in every wait, and makes TLS contexts only when needed.
A later version puts protocol code of our own in their place, behind the same two methods, ``open`` and ``aopen``.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Request:
    """One attempt, ready for the wire; its repr shows no header, since one of them is the key."""

    method: str
    url: str
    origin: tuple[str, str, int]  # scheme, host, port
    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
