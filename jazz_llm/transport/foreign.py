"""Calls over an httpx transport that is not ours: the user's own (``transport=``), or stock httpx for a SOCKS proxy.

What only our own transport can promise is lost here: over HTTP/2 nobody tells the server that a call has stopped, and the
bounds of the single waits are the transport's. Deadlines hold, since async calls are cancelled and sync ones ask at each read.
httpx's exceptions carry the request and so the key: none of them is ever chained to ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import httpx

from ..errors import LLMConfigurationError, LLMError, LLMTimeoutError
from . import RESENDS
from .alarm import Alarm, Ticker, Work, asleep, call_soon, running_loop
from .exchange import ConnectError, Headers, LostError, ProtocolError, Request
from .faults import error_of, joined, never_processed, silence_hpack
from .frames import ErrorCode

if TYPE_CHECKING:
    from ..errors import Phase
    from ..timing import Clock
    from .opening import Settings

_TIMEOUTS: tuple[tuple[type[httpx.TimeoutException], Phase], ...] = (
    (httpx.ConnectTimeout, "connect"),
    (httpx.PoolTimeout, "pool"),
    (httpx.WriteTimeout, "write"),
)


class Foreign:
    """Sync calls over a sync httpx transport; ``ours``: it was made here, and what it raises is never the user's own error."""

    def __init__(self, transport: httpx.BaseTransport, *, ours: bool = False) -> None:
        self._transport = transport
        self._ours = ours
        silence_hpack()

    def open(self, make_request: Callable[[], Request], clock: Clock) -> ForeignResponse:
        """Send a request and return its answer once the head is there; what is provably unprocessed is sent again at once."""
        request = make_request()
        for resends_left in range(RESENDS, -1, -1):
            clock.begin(transport_reports=False)
            try:
                answer = self._transport.handle_request(_as_httpx(request, clock))
            except Exception as raised:
                fault = _translated(raised, clock, ours=self._ours)
                again = resends_left > 0 and never_processed(fault, clock)
                error = error_of(fault, clock, request.origin[1])
            else:
                clock.answering = True
                return ForeignResponse(answer, clock, request.origin[1], ours=self._ours)
            if not again:
                break
        raise error

    def sleep(self, clock: Clock, seconds: float) -> None:
        """Wait between two tries."""
        clock.sleep(seconds)

    def close(self) -> None:
        """Close the transport if it was made here; a user's own is closed with the instance."""
        if self._ours:
            self._transport.close()

    abandon = close


class ForeignResponse:
    """The answer to one attempt: head and body as it comes."""

    def __init__(self, answer: httpx.Response, clock: Clock, host: str, *, ours: bool) -> None:
        self.status = answer.status_code
        self.headers = joined(_headers_of(answer))
        self.http_version = _version_of(answer)
        self._answer = answer
        self._body = iter(answer.stream)  # type: ignore[arg-type]  # a sync transport's stream is a SyncByteStream
        self._clock = clock
        self._host = host
        self._ours = ours

    def read(self) -> bytes:
        """Return what one read of the transport brings, b"" at the end of the message."""
        if self._clock.over():
            self.close()
            raise self._clock.failure()
        try:
            data = next(self._body, None)
            while data == b"":  # an empty HTTP/2 DATA frame, which is no end
                data = next(self._body, None)
        except Exception as fault:
            error = error_of(_translated(fault, self._clock, ours=self._ours), self._clock, self._host)
        else:
            if data is None:
                self.close()
            return data or b""
        self.close()
        raise error

    def raw_headers(self) -> Headers:
        """Return the headers as they came, one by one."""
        return _headers_of(self._answer)

    def close(self) -> None:
        """Give up what is left of the answer, as far as the transport knows how."""
        with contextlib.suppress(Exception):
            self._answer.close()

    finish = close


class AsyncForeign:
    """Async calls over an async httpx transport; see ``Foreign``."""

    def __init__(self, transport: httpx.AsyncBaseTransport, *, ours: bool = False) -> None:
        self._transport = transport
        self._ours = ours
        silence_hpack()

    async def aopen(self, make_request: Callable[[], Work[Request]], clock: Clock) -> AsyncForeignResponse:
        """Do what ``Foreign.open`` does, awaiting."""
        loop = running_loop()
        ticker = Ticker(loop)
        clock.outside()
        alarm = Alarm(clock, loop)
        ticker.add(alarm)
        try:
            return await self.open(await alarm.guard(make_request()), alarm, ticker)
        except BaseException:
            ticker.remove(alarm)
            raise

    async def open(self, request: Request, alarm: Alarm, ticker: Ticker) -> AsyncForeignResponse:
        """Send a request and return its answer."""
        clock = alarm.clock
        for resends_left in range(RESENDS, -1, -1):
            clock.begin(transport_reports=False)
            try:
                answer = await alarm.guard(self._handle(_as_httpx(request, clock)))
            except Exception as raised:
                fault = _translated(raised, clock, ours=self._ours)
                again = resends_left > 0 and never_processed(fault, clock)
                error = error_of(fault, clock, request.origin[1])
            else:
                clock.answering = True
                return AsyncForeignResponse(answer, alarm, ticker, request.origin[1], ours=self._ours)
            if not again:
                break
        raise error

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)

    async def asleep(self, clock: Clock, seconds: float) -> None:
        """Wait between two tries."""
        await asleep(clock, seconds)

    def close(self) -> None:
        """Do nothing: only ``aclose`` can close an async transport."""

    async def aclose(self) -> None:
        """Close the transport if it was made here; a user's own is closed with the instance."""
        if self._ours:
            await self._transport.aclose()

    abandon = close


class AsyncForeignResponse:
    """The answer to one attempt: head and body as it comes."""

    def __init__(self, answer: httpx.Response, alarm: Alarm, ticker: Ticker, host: str, *, ours: bool) -> None:
        self.status = answer.status_code
        self.headers = joined(_headers_of(answer))
        self.http_version = _version_of(answer)
        self._answer = answer
        self._body: AsyncIterator[bytes] = aiter(answer.stream)  # type: ignore[arg-type]  # an async transport's stream
        self._alarm = alarm
        self._ticker = ticker
        self._host = host
        self._ours = ours
        self._open = True

    async def aread(self) -> bytes:
        """Return what one read of the transport brings, b"" at the end of the message."""
        clock = self._alarm.clock
        try:
            data = await self._alarm.guard(anext(self._body, None))
            while data == b"":  # an empty HTTP/2 DATA frame, which is no end
                data = await self._alarm.guard(anext(self._body, None))
        except Exception as fault:
            error = error_of(_translated(fault, clock, ours=self._ours), clock, self._host)
        else:
            if data is None:
                await self.aclose()
            return data or b""
        await self.aclose()
        raise error

    def raw_headers(self) -> Headers:
        """Return the headers as they came, one by one."""
        return _headers_of(self._answer)

    def close(self) -> None:
        """Give up what is left of the answer; httpx can only do that in a coroutine, so in a task."""
        if self._open:
            loop = self._alarm.loop
            call_soon(loop, self._close_in_task)

    finish = close

    async def aclose(self) -> None:
        """Do what ``close`` does, here and now."""
        if not self._open:
            return
        self._open = False
        self._ticker.remove(self._alarm)
        with contextlib.suppress(Exception):
            aclose = getattr(self._body, "aclose", None)
            if aclose is not None:
                await aclose()
            await self._answer.aclose()

    def _close_in_task(self) -> None:
        if self._open:
            task = self._alarm.loop.create_task(self.aclose())
            _CLOSING.add(task)
            task.add_done_callback(_CLOSING.discard)


# A loop itself holds its tasks weakly.
_CLOSING: set[asyncio.Task[None]] = set()


def for_socks(proxy: str, settings: Settings) -> dict[str, Any]:
    """Return what a stock transport needs to go through a SOCKS proxy, over HTTP/1.1."""
    try:
        import socksio  # noqa: F401  # what httpx needs; asked here, where its lack can be named
    except ImportError:
        lacks = True
    else:
        lacks = False
    if lacks:
        raise LLMConfigurationError('proxy: SOCKS needs another package: pip install "httpx[socks]".')
    logging.getLogger("jazz_llm").debug("SOCKS: stock httpx over HTTP/1.1 is used for %s", httpx.URL(proxy).host)
    return {
        "verify": settings.context(http2=False),
        "limits": settings.limits or httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=4.0),
        "proxy": proxy,
    }


def _as_httpx(request: Request, clock: Clock) -> httpx.Request:
    url = f"{request.origin[0]}://{request.authority}{request.target}"
    extensions = {"timeout": clock.seconds()}
    return httpx.Request(request.method, url, headers=list(request.headers), content=request.body, extensions=extensions)


def _headers_of(answer: httpx.Response) -> Headers:
    return tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in answer.headers.raw)


def _version_of(answer: httpx.Response) -> str:
    version: bytes = answer.extensions.get("http_version", b"HTTP/1.1")
    return version.decode("ascii", "replace")


def _translated(raised: Exception, clock: Clock, *, ours: bool) -> Exception:
    """Return what httpx raised as a fault of ours; what a user's transport raises of its own stays as it is."""
    if isinstance(raised, LLMError):
        return raised
    if isinstance(raised, httpx.TimeoutException):
        return _timeout(raised, clock)
    if isinstance(raised, httpx.UnsupportedProtocol | httpx.InvalidURL) or (ours and isinstance(raised, ImportError)):
        return LLMConfigurationError(str(raised))
    if isinstance(raised, httpx.ConnectError | httpx.ProxyError) and not clock.answering:
        return ConnectError(str(raised), retryable="certificate" not in str(raised).lower())
    code = _reset_code(raised)
    if isinstance(raised, httpx.RemoteProtocolError | httpx.DecodingError) and code is None and not _lost(raised):
        return ProtocolError(str(raised))
    if ours or isinstance(raised, httpx.HTTPError):
        unprocessed = code == ErrorCode.REFUSED_STREAM or _goaway_last_id(raised) == 0
        return LostError(_words(raised), code=code, unprocessed=unprocessed)
    return raised


def _timeout(raised: httpx.TimeoutException, clock: Clock) -> LLMError:
    if clock.over():
        return clock.failure()
    known: list[Phase] = [phase for kind, phase in _TIMEOUTS if isinstance(raised, kind)]
    phase = known[0] if known else clock.phase
    return LLMTimeoutError(f"Timed out ({phase}).", phase=phase)


def _lost(fault: Exception) -> bool:
    """Part a peer that went away from one that talks nonsense; h11 and httpcore tell them apart by their words alone."""
    return re.search(r"peer closed connection|disconnected|ConnectionTerminated", str(fault)) is not None


def _words(fault: Exception) -> str:
    return "closed" if "<" in str(fault) else str(fault) or type(fault).__name__


def _reset_code(fault: Exception) -> int | None:
    found = re.search(r"StreamReset.*?error_code:(?:ErrorCodes\.)?(\w+)", str(fault))
    if found is None:
        return None
    word = found.group(1)
    return int(word) if word.isdigit() else ErrorCode[word] if word in ErrorCode.__members__ else None


def _goaway_last_id(fault: Exception) -> int | None:
    found = re.search(r"ConnectionTerminated.*?last_stream_id:(\d+)", str(fault))
    return int(found.group(1)) if found else None
