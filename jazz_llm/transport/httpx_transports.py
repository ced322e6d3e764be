"""The pools as httpx transports, for ``llm.client`` and ``llm.aclient``, and for whoever likes them in an ``httpx.Client``.

A thin shell over the same ``open`` that calls of our own go through. The request's body is read whole before it is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import httpx

from ..errors import (
    LLMClosedError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMError,
    LLMStreamTruncatedError,
    LLMTimeoutError,
)
from ..timing import Clock, Timeouts
from .aio import AsyncPool
from .blocking import Pool
from .exchange import Request
from .opening import Settings

if TYPE_CHECKING:
    from .foreign import AsyncForeign, Foreign

# What the connection itself says, and the host, which the URL names.
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection", "upgrade", "te"}
)
_TIMEOUTS: dict[str, type[httpx.TimeoutException]] = {
    "connect": httpx.ConnectTimeout,
    "pool": httpx.PoolTimeout,
    "write": httpx.WriteTimeout,
}


class HTTPTransport(httpx.BaseTransport):
    """A sync pool as an httpx transport: ``httpx.Client(transport=HTTPTransport(http2=True))``.

    Args:
        settings: verify, cert, http2, limits, proxy, trust_env: as ``OpenAICompatibleLLM`` takes them.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = Settings(**settings)
        self._pool = Pool(self._settings)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its answer once the head is there."""
        if self._pool.is_inherited():  # a forked child leaves the parent's connections alone
            self._pool.abandon()
            self._pool = Pool(self._settings)
        return send(self._pool, request)

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class AsyncHTTPTransport(httpx.AsyncBaseTransport):
    """An async pool as an httpx transport; see ``HTTPTransport``."""

    def __init__(self, **settings: Any) -> None:
        self._pool = AsyncPool(Settings(**settings))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its answer once the head is there."""
        return await asend(self._pool, request)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


def send(pool: Pool | Foreign, request: httpx.Request) -> httpx.Response:
    """Send an httpx request through a pool."""
    clock, sent = _clock_of(request), _request_of(request, request.read())
    try:
        answer = pool.open(lambda: sent, clock)
    except (LLMError, ValueError) as error:
        raised = _as_httpx(error, request)
    else:
        return _response_of(answer, _Body(answer, clock, request))
    raise raised


async def asend(pool: AsyncPool | AsyncForeign, request: httpx.Request) -> httpx.Response:
    """Do what ``send`` does, awaiting."""
    clock, sent = _clock_of(request), _request_of(request, await request.aread())

    async def make_request() -> Request:
        return sent

    try:
        answer = await pool.aopen(make_request, clock)
    except (LLMError, ValueError) as error:
        raised = _as_httpx(error, request)
    else:
        return _response_of(answer, _AsyncBody(answer, clock, request))
    raise raised


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: Any, clock: Clock, request: httpx.Request) -> None:
        self._answer, self._clock, self._request = answer, clock, request

    def __iter__(self) -> Iterator[bytes]:
        try:
            while data := self._answer.read():
                yield data
                self._clock.content()
        except LLMError as error:
            raised = _as_httpx(error, self._request)
        else:
            return
        raise raised

    def close(self) -> None:
        self._answer.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, answer: Any, clock: Clock, request: httpx.Request) -> None:
        self._answer, self._clock, self._request = answer, clock, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while data := await self._answer.aread():
                yield data
                self._clock.content()
        except LLMError as error:
            raised = _as_httpx(error, self._request)
        else:
            return
        raise raised

    async def aclose(self) -> None:
        await self._answer.aclose()


def _clock_of(request: httpx.Request) -> Clock:
    seconds = request.extensions.get("timeout", {})
    waits = {name: seconds.get(name) for name in ("connect", "pool", "write", "read")}
    return Clock(Timeouts(**waits), streams=True)


def _request_of(request: httpx.Request, body: bytes) -> Request:
    url = request.url
    origin = url.scheme, url.raw_host.decode("ascii").strip("[]"), url.port or (443 if url.scheme == "https" else 80)
    pairs = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in request.headers.raw)
    headers = tuple(pair for pair in pairs if pair[0] not in _OURS)
    return Request(request.method, origin, url.raw_path.decode("ascii"), headers, body, whole=False)


def _response_of(answer: Any, body: Any) -> httpx.Response:
    extensions = {"http_version": answer.http_version.encode("ascii")}
    return httpx.Response(answer.status, headers=answer.raw_headers(), stream=body, extensions=extensions)


def _as_httpx(error: LLMError | ValueError, request: httpx.Request) -> Exception:
    """Return what stock httpx would have raised; a closed client is told as it is everywhere."""
    if not isinstance(error, LLMError):  # a header that HTTP/1.1 cannot carry
        return httpx.LocalProtocolError(str(error), request=request)
    if isinstance(error, LLMClosedError):
        return error
    if isinstance(error, LLMTimeoutError):
        return _TIMEOUTS.get(error.phase, httpx.ReadTimeout)(error.message, request=request)
    if isinstance(error, LLMConfigurationError):
        return httpx.UnsupportedProtocol(error.message, request=request)
    if isinstance(error, LLMConnectionError) and not isinstance(error, LLMStreamTruncatedError):
        kind = httpx.ReadError if error.maybe_processed else httpx.ConnectError
        return kind(error.message, request=request)
    return httpx.RemoteProtocolError(error.message, request=request)
