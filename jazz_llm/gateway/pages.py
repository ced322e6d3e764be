"""The page and its parts, out of the package's data, and nothing else. They hold no secret, so they need no token."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Response

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles from files of ours alone: what a model says can run nothing, whatever the page does with it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws://{host} wss://{host}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Pages:
    """The files, read once."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, bytes]] = {}
        for file in (files(__package__) / "page").iterdir():
            kind = next((kind for suffix, kind in _KINDS.items() if file.name.endswith(suffix)), None)
            if kind is not None:
                self._files[f"/{file.name}"] = kind, file.read_bytes()
        if "/index.html" in self._files:
            self._files["/"] = self._files["/index.html"]

    def answer(self, connection: ServerConnection, path: str, host: str, origin: str | None) -> Response:
        """Return a file, or 404; ``host`` and ``origin`` are headers that were checked: pages elsewhere import client.js."""
        found = self._files.get(path.partition("?")[0])
        if found is None:
            return connection.respond(404, "There is nothing here.\n")
        kind, body = found
        response = connection.respond(200, "")
        response.body = body
        own = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": _POLICY.format(host=host)}
        for name in filter(response.headers.__contains__, own):
            del response.headers[name]
        shared = {} if origin is None else {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        response.headers.update(_HEADERS | own | shared)
        return response
