"""How a new connection is opened, from the first byte on the socket to a protocol: proxy, TLS, ALPN; written once, no waiting.

:func:`opening` is a generator: it yields bytes to be sent and is then sent the bytes of one read (b"" at the end of the
connection), so that each driver does the waiting in its own way.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from .exchange import ConnectError, Headers, HTTPConnection, Origin, Request
from .faults import silence_hpack
from .http1 import Http1
from .http2 import Http2
from .tls import TLSLayer, context_for, reason_of

if TYPE_CHECKING:
    import httpx

Opening = Generator[bytes, bytes, "Opened"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the connections of a pool are made with; see ``OpenAICompatibleLLM``."""

    verify: bool | str | ssl.SSLContext = True
    cert: tuple[str, ...] | None = None
    http2: bool | Literal["prior_knowledge"] = True
    limits: httpx.Limits | None = None
    proxy: str | None = None
    trust_env: bool = True
    stays: bool | None = None  # whether HTTP/1.1 connections stay open after a stream, None: to be found out

    def multiplexed(self) -> frozenset[str]:
        """Return the schemes over which HTTP/2 may be spoken."""
        if self.http2 == "prior_knowledge":
            return frozenset({"http", "https"})
        return frozenset({"https"} if self.http2 else ())

    def context(self, *, http2: bool) -> ssl.SSLContext:
        """Return the TLS context, made on first need."""
        return context_for(self.verify, self.cert, http2=http2, trust_env=self.trust_env)


@dataclass(slots=True)
class Opened:
    """A connection that is ready: ``outgoing`` is still to be sent, ``received`` came too early to be handled yet."""

    tls: TLSLayer | None
    protocol: HTTPConnection
    outgoing: bytes = b""
    received: bytes = b""


def opening(settings: Settings, origin: Origin, proxy: str | None) -> Opening:
    """Open a connection to ``origin``, through the proxy of that URL if there is one; raise ConnectError."""
    scheme, host, _ = origin
    secure, prior = scheme == "https", settings.http2 == "prior_knowledge"
    opened = Opened(None, Http1())
    if proxy is not None:
        yield from _to_proxy(opened, settings, proxy)
        if not secure and not prior:  # many proxies tunnel to port 443 only
            opened.protocol = Http1(absolute=True, proxy_headers=_credentials(proxy))
            return opened
        yield from _tunnel(opened, origin, proxy)
    if secure:
        yield from _handshake(opened, settings.context(http2=bool(settings.http2)), host)
    assert not secure or opened.tls is not None
    agreed = opened.tls.alpn() if secure and opened.tls is not None else None
    if prior or agreed == "h2":
        silence_hpack()
        opened.protocol = Http2()
    return opened


def address_of(origin: Origin, proxy: str | None) -> tuple[str, int]:
    """Return host and port to connect to."""
    if proxy is None:
        return origin[1:]
    url = urlsplit(proxy)
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _to_proxy(opened: Opened, settings: Settings, proxy: str) -> Generator[bytes, bytes, None]:
    url = urlsplit(proxy)
    if url.scheme == "https":
        yield from _handshake(opened, settings.context(http2=False), url.hostname or "")


def _tunnel(opened: Opened, origin: Origin, proxy: str) -> Generator[bytes, bytes, None]:
    """Ask the proxy for a tunnel (RFC 9110, section 9.3.6)."""
    _, host, port = origin
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    protocol = Http1()
    answer = protocol.start(Request("CONNECT", origin, name, _credentials(proxy), b""), whole=False)
    tls = opened.tls
    sent = opened.outgoing + (tls.encrypt(protocol.outgoing()) if tls else protocol.outgoing())
    opened.outgoing = b""
    while not answer.status and answer.fault is None:
        received = yield sent
        sent = b""
        if received:
            protocol.receive(_plain(tls, received, proxy))
        else:
            protocol.lost("")
    if answer.fault is not None:
        raise ConnectError(f"the proxy {host_of(proxy)} gave no answer: {answer.fault}")
    if not 200 <= answer.status < 300:
        passing = answer.status >= 500
        raise ConnectError(f"the proxy {host_of(proxy)} refuses the tunnel (status {answer.status})", retryable=passing)
    opened.received = protocol.trailing


def _plain(tls: TLSLayer | None, received: bytes, proxy: str) -> bytes:
    try:
        return tls.decrypt(received) if tls else received
    except ssl.SSLError as error:
        words = reason_of(error)
    raise ConnectError(f"TLS to the proxy {host_of(proxy)}: {words}", retryable="certificate" not in words.lower())


def _handshake(opened: Opened, context: ssl.SSLContext, host: str) -> Generator[bytes, bytes, None]:
    tls = TLSLayer(context, host, opened.tls)
    steps = tls.handshake()
    before, early = opened.outgoing, opened.received
    opened.outgoing = opened.received = alert = b""
    try:
        sent = before + next(steps)
        while True:
            received = early or (yield sent)
            early = b""
            if not received:
                raise ConnectError("TLS handshake: the connection was closed")
            sent = steps.send(received)
    except StopIteration as done:
        opened.outgoing = done.value
    except ssl.SSLError as error:
        with contextlib.suppress(ssl.SSLError):  # of the TLS to the proxy, should that be broken too
            alert = tls.outgoing()
        raise RefusedError(reason_of(error), alert) from None
    opened.tls = tls


class RefusedError(ConnectError):
    """We refuse the peer's TLS; ``alert`` tells it why. A certificate does not get better by trying again."""

    def __init__(self, words: str, alert: bytes) -> None:
        super().__init__(words, retryable="certificate" not in words.lower())
        self.alert = alert


def _credentials(proxy: str) -> Headers:
    url = urlsplit(proxy)
    if url.username is None and url.password is None:
        return ()
    pair = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return (("proxy-authorization", "Basic " + base64.b64encode(pair.encode()).decode()),)


def host_of(proxy: str) -> str:
    """Return the proxy's host, without what its URL may hold of secrets."""
    return urlsplit(proxy).hostname or "?"
