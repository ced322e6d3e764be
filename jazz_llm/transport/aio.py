"""The async pool: one httpx.AsyncHTTPTransport per running loop (and proxy), over sockets of ours.

Sockets under the loop's readiness calls rather than asyncio's transports: they can be closed in any loop state, and a task
cancelled in the middle of a read has read nothing and in the middle of a write leaves the rest to the next write, so that a
cancelled call cannot tear a record that its siblings on the connection share. Every wait of a call runs under its Alarm.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import httpcore
import httpx

from ..config import Config
from ..errors import LLMClosedError, LLMConfigurationError
from ..timing import Clock
from . import READ_SIZE, RESENDS, Request, default_limits, origin_of
from .faults import error_for, never_processed, silence_hpack
from .names import Origin, Proxies, parsed_url, resolve
from .tls import TLSLayer, context_for, reason_of

# Bytes below which a write after the request is HTTP/2's own affair (acknowledgements, window updates): no call's clock moves.
OWN_FRAMES = 64

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Wait = Clock | float | None


class Work(Protocol[R_co]):
    """What can be awaited, or closed instead: a coroutine, an async generator's next step."""

    def __await__(self) -> Generator[Any, Any, R_co]: ...

    def close(self) -> None:
        """Give it up before it has begun."""


class Alarm:
    """Ends the waits of one call when its clock runs out or is interrupted: one timer a call, not one a wait.

    It does what ``asyncio.timeout`` does, by the same rules for telling its own cancellation from another's. The timer is left
    alone while the deadline only moves away, and looks again when it fires.
    """

    __slots__ = ("_cancelling", "_clock", "_loop", "_rang", "_task", "_timer")

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._rang = False
        self._cancelling = 0
        clock.on_change = self._arm
        clock.wake = lambda: _call_soon(loop, self._fire)

    async def guard(self, work: Work[R]) -> R:
        """Await under the alarm; raise the clock's own failure where it rang."""
        if self._left() == 0.0:
            # A task that cancels itself meets that at its next suspension, which may be anywhere: so it does not begin.
            work.close()
            raise self._clock.failure()
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None
        self._rang = False
        self._cancelling = task.cancelling()
        self._arm()
        try:
            result = await work
        except asyncio.CancelledError:
            if not self._rang or task.uncancel() > self._cancelling:
                raise
        except BaseException:
            self._take_back(task)
            raise
        else:
            self._take_back(task)
            return result
        finally:
            self._task = None
        raise self._clock.failure()

    def _take_back(self, task: asyncio.Task[Any]) -> None:
        """Take the cancellation back where the work ended in another way."""
        if self._rang:
            task.uncancel()

    def stop(self) -> None:
        """Take the timer away."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        """See that the timer fires in time."""
        left = self._left()
        if self._task is None or left is None or self._rang:
            return
        due = self._loop.time() + left
        if self._timer is None or self._timer.when() > due:
            self.stop()
            self._timer = self._loop.call_at(due, self._fire)

    def _fire(self) -> None:
        """Ring if it is time; called by the loop, never by the task itself."""
        self.stop()
        if self._task is not None and not self._rang and self._left() == 0.0:
            self._rang = True
            self._task.cancel()
        else:
            self._arm()

    def _left(self) -> float | None:
        return 0.0 if self._clock.reason is not None else self._clock.remaining()


class AsyncPool(httpx.AsyncBaseTransport):
    """Connections of the async calls, apart for each loop; also the transport of ``llm.aclient``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.closed = False
        self._lock = threading.Lock()  # loops of several threads meet here
        # An asyncio loop takes weak references; uvloop's does too.
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopPool] = weakref.WeakKeyDictionary()

    async def aopen(self, make_request: Callable[[], Work[Request]], clock: Clock) -> AsyncResponse:
        """Send a request and return its answer once the head is there; what is provably unprocessed is sent again at once."""
        pool = await self._pool()
        clock.outside()
        alarm = Alarm(clock, pool.loop)
        try:
            request = await alarm.guard(make_request())
            return await self._send(pool, request, clock, alarm)
        except BaseException:
            alarm.stop()
            raise

    async def _send(self, pool: LoopPool, request: Request, clock: Clock, alarm: Alarm) -> AsyncResponse:
        for resends_left in range(RESENDS, -1, -1):
            clock.begin(transport_reports=self.config.async_transport is None)
            try:
                return await alarm.guard(pool.send(request, clock, alarm))
            except Exception as fault:
                again = resends_left > 0 and never_processed(fault, clock)
                error = error_for(fault, clock, request.origin[1], ours=self.config.async_transport is None)
            if not again:
                break
        raise error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Serve ``llm.aclient``."""
        return await (await self._pool()).transport(origin_of(request.url)).handle_async_request(request)

    async def asleep(self, clock: Clock, seconds: float) -> None:
        """Wait between two tries."""
        clock.outside()
        alarm = Alarm(clock, asyncio.get_running_loop())
        try:
            await alarm.guard(asyncio.sleep(seconds))
        finally:
            alarm.stop()

    def close(self) -> None:
        """Close every socket of every loop, from any thread; a wait under way on one ends with an error."""
        self.closed = True
        with self._lock:
            pools = list(self._loops.values())
        for pool in pools:
            pool.close()

    async def aclose(self) -> None:
        """Close, and see the running loop's part of it through."""
        self.close()
        with self._lock:
            pool = self._loops.pop(_running_loop(), None)
        if pool is not None:
            await pool.settle()

    async def _pool(self) -> LoopPool:
        if self.closed:
            raise LLMClosedError("The client is closed.")
        loop = _running_loop()
        with self._lock:
            pool = self._loops.get(loop)
            if pool is not None:
                return pool
            dead = [self._loops.pop(other) for other in list(self._loops) if other.is_closed()]
            pool = self._loops[loop] = LoopPool(self.config, loop)
        for other in dead:
            other.close()
        await pool.watch_the_end()
        return pool


class LoopPool:
    """The connections of one loop."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.config = config
        self.loop = loop
        # httpcore offers one idle connection to all who ask in the same turn of the loop, and all but one ask again.
        self._turns: dict[Origin, asyncio.Lock] = {}
        self._proxies = Proxies(config.proxy, trust_env=config.trust_env)
        self._transports: dict[str | None, httpx.AsyncBaseTransport] = {}
        self.draining: list[AsyncResponse] = []
        self._sockets: set[AsyncSocketStream] = set()
        self._unreleased: set[AsyncResponse] = set()
        self._releases: set[asyncio.Task[None]] = set()  # a loop itself holds its tasks weakly
        self._closed = False
        self._sentinel: AsyncGenerator[None] | None = None

    async def send(self, request: Request, clock: Clock, alarm: Alarm) -> AsyncResponse:
        """Send one request and return its answer."""
        await self._drain()
        if self.config.async_transport is None:  # a user's own never tells that it has started
            turn = self._turns.setdefault(request.origin, asyncio.Lock())
            await turn.acquire()
            clock.on_start = turn.release
        try:
            answer = await self._answer(request, clock)
        finally:
            clock.started()
        clock.answering = True
        return AsyncResponse(self, answer, clock, alarm, request.origin[1])

    async def _answer(self, request: Request, clock: Clock) -> httpx.Response:
        extensions = {"timeout": self._waits(clock)}
        url = parsed_url(request.url)
        sent = httpx.Request(request.method, url, headers=request.headers, content=request.body, extensions=extensions)
        return await self.transport(request.origin).handle_async_request(sent)

    def add(self, stream: AsyncSocketStream) -> None:
        """Keep a new socket, to be able to close it."""
        self._sockets.add(stream)
        if self._closed:
            stream.abort()

    def remove(self, stream: AsyncSocketStream) -> None:
        """Forget a socket that is closed."""
        self._sockets.discard(stream)

    def tls_context(self) -> ssl.SSLContext:
        """Return the TLS context of this pool, made on first need."""
        config = self.config
        return context_for(config.verify, config.cert, http2=config.http2 is not False, trust_env=config.trust_env)

    def release(self, response: AsyncResponse) -> None:
        """Give a connection's slot back; httpcore can only do that in a coroutine."""
        self._unreleased.add(response)
        if _is_running_here(self.loop):
            self._start(self._release(response))
        else:
            _call_soon(self.loop, lambda: self.release(response))

    def drain_later(self, response: AsyncResponse) -> None:
        """Keep an answer for the next call to drain; where calls are waiting already, for them."""
        self.draining.append(response)
        if any(turn.locked() for turn in self._turns.values()):
            self._start(self._drain())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _drain(self) -> None:
        while self.draining:
            await self.draining.pop().drain()

    async def release_all(self) -> None:
        """Give back what a task was to give back: a loop that ends cancels its tasks first."""
        while self._unreleased:
            await self._release(next(iter(self._unreleased)))

    async def _release(self, response: AsyncResponse) -> None:
        await response.arelease()
        self._unreleased.discard(response)

    def close(self) -> None:
        """Close every socket, from any thread and in any state of the loop."""
        self._closed = True
        for stream in list(self._sockets):
            stream.abort()
        if not self.loop.is_running() and self._sentinel is not None:
            # Nobody may ever run this loop again: end the generator by hand, or its collection would ask the loop to.
            with contextlib.suppress(StopIteration, StopAsyncIteration, RuntimeError):
                self._sentinel.aclose().send(None)

    async def settle(self) -> None:
        """Wait until nothing of this pool is left on its loop."""
        if self._sentinel is not None:
            await self._sentinel.aclose()
        # Each wait that was ended takes a few turns to unwind; httpcore's suspended generators one for each level.
        for turn in range(100):
            if turn > 4 and not self._releases and not any(stream.waiting for stream in self._sockets):
                return
            await asyncio.sleep(0)

    async def watch_the_end(self) -> None:
        """Have ``asyncio.run`` close this pool: its shutdown_asyncgens ends the generator that is started here."""
        self._sentinel = _sentinel(weakref.ref(self))
        await anext(self._sentinel)

    def _waits(self, clock: Clock) -> dict[str, Any]:
        if self.config.async_transport is not None:
            return clock.seconds()
        return {"connect": clock, "read": clock, "write": clock, "pool": None}

    def transport(self, origin: Origin) -> httpx.AsyncBaseTransport:
        """Return the transport for an origin: the user's own, or the one of its proxy."""
        if self.config.async_transport is not None:
            return self.config.async_transport
        proxy = self._proxies.of(origin)
        if proxy not in self._transports:
            self._transports[proxy] = self._made(proxy)
        return self._transports[proxy]

    def _made(self, proxy: str | None) -> httpx.AsyncBaseTransport:
        silence_hpack()
        config = self.config
        transport = httpx.AsyncHTTPTransport(
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # a dummy: httpcore would set ALPN on the real one
            http1=config.http2 != "prior_knowledge",
            http2=config.http2 is not False,
            limits=config.limits or default_limits(),
            proxy=proxy,
        )
        # httpx has no public way to this; a test notices should the attribute go.
        transport._pool._network_backend = AsyncBackend(self)
        return transport


async def _sentinel(pool: weakref.ref[LoopPool]) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        if (alive := pool()) is not None:
            alive.close()
            await alive.release_all()


class AsyncResponse:
    """The answer to one attempt: head and body as it comes.

    It is open until one of these, and after that each of them does nothing: the message's end is read (``aread``); it is given
    up (``close`` from anywhere at once, the rest in a task; ``aclose`` here and now); its text is over but the message's end is
    still to come (``finish``: the next call reads that with ``drain``). ``arelease`` is what httpcore wants at the end of each.
    """

    def __init__(self, pool: LoopPool, answer: httpx.Response, clock: Clock, alarm: Alarm, host: str) -> None:
        self.status = answer.status_code
        self.headers = {name.lower(): value for name, value in answer.headers.items()}
        self.http_version = answer.extensions.get("http_version", b"HTTP/1.1").decode("ascii", "replace")
        self._pool = pool
        self._host = host
        self._answer = answer
        self._stream = answer.extensions.get("network_stream")
        self._body: AsyncIterator[bytes] = aiter(answer.stream)  # type: ignore[arg-type]  # an async transport's stream
        self._clock = clock
        self._alarm = alarm
        self._open = True

    async def aread(self) -> bytes:
        """Return what one read of the network brings, b"" at the end of the message."""
        try:
            data = await self._alarm.guard(anext(self._body, None))
            while data == b"":  # an empty HTTP/2 DATA frame, which is no end
                data = await self._alarm.guard(anext(self._body, None))
        except Exception as fault:
            error = error_for(fault, self._clock, self._host, ours=self._pool.config.async_transport is None)
        else:
            if data is None and self._open:
                self._over()
                await self.arelease()
            return data or b""
        await self.aclose()
        raise error

    def close(self) -> None:
        """Give up what is left of the answer: over HTTP/1.1 the server is told by the closing of the connection."""
        if self._open:
            self._over()
            self._abort()
            self._pool.release(self)

    async def aclose(self) -> None:
        """Do what ``close`` does, here and now."""
        if self._open:
            self._over()
            self._abort()
            await self.arelease()

    def _over(self) -> None:
        self._open = False
        if _is_running_here(self._pool.loop):
            self._alarm.stop()

    def _abort(self) -> None:
        if self.http_version != "HTTP/2" and isinstance(self._stream, _AsyncStream):
            self._stream.abort()

    def finish(self) -> None:
        """Give the connection back after the last byte that was wanted; the message's own end may still be on its way."""
        if self._open and self.http_version != "HTTP/2":
            self._over()
            self._pool.drain_later(self)
        else:
            self.close()

    async def drain(self) -> None:
        """Read the end of the message if it has arrived, else drop the connection."""
        self._clock.do_not_wait()
        try:
            with contextlib.suppress(Exception):
                await anext(self._body, None)
            await self.arelease()
        except BaseException:  # the next call was cancelled while it cleaned up after this one
            self._pool.release(self)
            raise

    async def arelease(self) -> None:
        """Let httpcore clean up."""
        with contextlib.suppress(Exception):
            aclose = getattr(self._body, "aclose", None)
            if aclose is not None:
                await aclose()
            await self._answer.aclose()


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Makes the connections of one loop."""

    def __init__(self, pool: LoopPool) -> None:
        self._pool = pool

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Wait = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncSocketStream:
        """Connect to the first address of a host that answers, all within one wait."""
        if isinstance(timeout, Clock):
            timeout.started()
            timeout.connecting()
        async with _limited(timeout, httpcore.ConnectTimeout):
            return await self._connect(host, port)

    async def sleep(self, seconds: float) -> None:
        """Wait; httpcore asks for this."""
        await asyncio.sleep(seconds)

    async def _connect(self, host: str, port: int) -> AsyncSocketStream:
        try:
            addresses = await asyncio.wrap_future(resolve(host, port))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(getattr(error, "strerror", None) or error)) from None
        reason = "the name has no address"
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            stream = AsyncSocketStream(sock, self._pool)
            try:
                await stream.connect(address)
                return stream
            except OSError as error:
                stream.abort()
                # asyncio puts words of its own in the place of the system's
                reason = os.strerror(error.errno) if error.errno else str(error)
            except BaseException:
                stream.abort()
                raise
        raise httpcore.ConnectError(f"{reason} (port {port})")


class _AsyncStream(httpcore.AsyncNetworkStream):
    """What a plain socket and TLS over one have in common: the phases of a call."""

    pool: LoopPool
    _held = b""

    async def read(self, max_bytes: int, timeout: Wait = None) -> bytes:
        """Return up to ``max_bytes``, b"" at the end."""
        if self._held:
            await self._flush_held(timeout)
        if isinstance(timeout, Clock):
            return await self.receive(max_bytes, wait=timeout.may_wait())
        async with _limited(timeout, httpcore.ReadTimeout):
            return await self.receive(max_bytes)

    async def write(self, buffer: bytes, timeout: Wait = None) -> None:
        """Send all of ``buffer``; over HTTP/1.1 head and body go together, when the answer is asked for."""
        if isinstance(timeout, Clock):
            timeout.started()
        self._held += buffer
        if self._held and (self.speaks_http2() or len(self._held) > READ_SIZE):
            await self._flush_held(timeout)

    async def _flush_held(self, timeout: Wait) -> None:
        data, self._held = self._held, b""
        if not isinstance(timeout, Clock):
            async with _limited(timeout, httpcore.WriteTimeout):
                await self.send(data)
            return
        if timeout.sent and len(data) < OWN_FRAMES:
            await self.send(data)
            return
        timeout.writing()
        before = self.written()
        try:
            await self.send(data)
        finally:
            timeout.sent = timeout.sent or self.written() > before
        timeout.waiting()

    def written(self) -> int:
        """Return how many bytes the socket has taken in all."""
        raise NotImplementedError

    def speaks_http2(self) -> bool:
        """Say whether HTTP/2 was agreed on, where others on the connection may be waiting to read already."""
        return self.pool.config.http2 == "prior_knowledge"

    async def aclose(self) -> None:
        """Close the connection."""
        self.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Wait = None
    ) -> httpcore.AsyncNetworkStream:
        """Put TLS over this stream, with the pool's context; ``ssl_context`` is the dummy that httpcore holds."""
        try:
            stream = AsyncTLSStream(self, self.pool.tls_context(), server_hostname)
            async with _limited(timeout, httpcore.ConnectTimeout):
                await stream.handshake()
            return stream
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close the connection at once, from any thread."""
        raise NotImplementedError

    async def receive(self, max_bytes: int, *, wait: bool = True) -> bytes:
        """Read without a change of phase; ``wait=False`` raises ReadTimeout where nothing has come."""
        raise NotImplementedError

    async def send(self, data: bytes) -> None:
        """Write without a change of phase."""
        raise NotImplementedError


class AsyncSocketStream(_AsyncStream):
    """A TCP connection that any thread may abort, whatever its loop is doing."""

    def __init__(self, sock: socket.socket, pool: LoopPool) -> None:
        self.pool = pool
        self.waiting = 0  # waits of the loop on the descriptor: it must not be closed under them
        self._sock = sock
        self._unsent = bytearray()
        self._written = 0
        self._aborted = False
        pool.add(self)

    async def connect(self, address: Any) -> None:
        """Connect to one address."""
        with self._waiting():
            await self.pool.loop.sock_connect(self._sock, address)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive(self, max_bytes: int, *, wait: bool = True) -> bytes:
        """Read what has come, waiting for it if need be."""
        loop = self.pool.loop
        while True:
            self._check(httpcore.ReadError)
            try:
                return self._sock.recv(max_bytes)
            except BlockingIOError:
                if not wait:
                    raise httpcore.ReadTimeout from None
            except OSError as error:
                raise httpcore.ReadError(error.strerror or str(error)) from None
            try:
                await self._ready(loop.add_reader, loop.remove_reader)
            except NotImplementedError:  # Windows' proactor loop completes operations, it does not tell readiness
                with self._waiting(), _mapped(httpcore.ReadError):
                    return await loop.sock_recv(self._sock, max_bytes)

    async def send(self, data: bytes) -> None:
        """Send all, first of all what a cancelled send left over."""
        loop = self.pool.loop
        self._unsent += data
        while self._unsent:
            self._check(httpcore.WriteError)
            try:
                sent = self._sock.send(self._unsent)
                self._written += sent
                del self._unsent[:sent]
                continue
            except BlockingIOError:
                pass
            except OSError as error:
                raise httpcore.WriteError(error.strerror or str(error)) from None
            try:
                await self._ready(loop.add_writer, loop.remove_writer)
            except NotImplementedError:
                with self._waiting(), _mapped(httpcore.WriteError):
                    rest = bytes(self._unsent)
                    self._unsent.clear()
                    self._written += 1  # some of it, as far as anybody can tell
                    await loop.sock_sendall(self._sock, rest)

    def abort(self) -> None:
        """Close at once; where the loop waits on the descriptor, end that wait, which then closes it."""
        self._aborted = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        loop = self.pool.loop
        if loop.is_running() and not _is_running_here(loop):
            _call_soon(loop, self._close_unless_waiting)
        else:
            self._close_unless_waiting()

    def get_extra_info(self, info: str) -> Any:
        """Tell httpcore what it asks about a connection."""
        if info == "is_readable":
            return self._is_readable()
        return {"socket": self._sock}.get(info)

    def written(self) -> int:
        """Return how many bytes the socket has taken in all."""
        return self._written

    async def _ready(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        descriptor = self._sock.fileno()
        waiter = self.pool.loop.create_future()
        add(descriptor, _wake, waiter)
        self.waiting += 1
        try:
            await waiter
        finally:
            with contextlib.suppress(RuntimeError):  # the loop was closed with this wait still on it
                remove(descriptor)
            self._waited()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self._waited()

    def _waited(self) -> None:
        self.waiting -= 1
        if self._aborted:
            self._close_unless_waiting()

    def _close_unless_waiting(self) -> None:
        if not self.waiting or self.pool.loop.is_closed():
            self.pool.remove(self)
            self._sock.close()

    def _check(self, broken: type[Exception]) -> None:
        if self._aborted:
            raise broken("closed")

    def _is_readable(self) -> bool:
        """Say whether an idle connection has something to say: its end, in all likelihood."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


class AsyncTLSStream(_AsyncStream):
    """TLS over another stream, which may itself be TLS (an https proxy)."""

    def __init__(self, inner: _AsyncStream, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self.pool = inner.pool
        self._inner = inner
        self._tls = TLSLayer(context, server_hostname)

    async def handshake(self) -> None:
        """Agree on keys and protocol."""
        try:
            while not self._tls.handshake():
                await self._exchange()
            await self._flush()
        except ssl.SSLError as error:
            with contextlib.suppress(httpcore.NetworkError):
                await self._flush()  # the alert tells the server why its certificate is refused
            raise httpcore.ConnectError(reason_of(error)) from None
        except (httpcore.ReadError, httpcore.WriteError) as error:
            raise httpcore.ConnectError(f"TLS handshake: {error}") from None

    async def receive(self, max_bytes: int, *, wait: bool = True) -> bytes:
        """Read and decrypt; an end without close_notify is a broken connection, since anybody can cut TCP."""
        try:
            while (data := self._tls.read(max_bytes)) is None:
                await self._exchange(wait=wait)
        except ssl.SSLError as error:
            raise httpcore.ReadError(reason_of(error)) from None
        return data

    async def send(self, data: bytes) -> None:
        """Encrypt and send."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise httpcore.WriteError(reason_of(error)) from None
        await self._flush()

    def speaks_http2(self) -> bool:
        """Say what ALPN agreed on."""
        return self._tls.object.selected_alpn_protocol() == "h2" or super().speaks_http2()

    def written(self) -> int:
        """Return how many bytes the socket beneath has taken in all."""
        return self._inner.written()

    def abort(self) -> None:
        """Close the connection beneath."""
        self._inner.abort()

    def get_extra_info(self, info: str) -> Any:
        """Tell httpcore what it asks about a connection."""
        return self._tls.object if info == "ssl_object" else self._inner.get_extra_info(info)

    async def _exchange(self, *, wait: bool = True) -> None:
        await self._flush()
        self._tls.receive(await self._inner.receive(READ_SIZE, wait=wait))

    async def _flush(self) -> None:
        if data := self._tls.outgoing():
            await self._inner.send(data)


@contextlib.asynccontextmanager
async def _limited(timeout: Wait, late: type[Exception]) -> AsyncGenerator[None]:
    """Limit a wait by seconds; a clock needs nothing here, since the whole call already waits under its alarm."""
    try:
        async with asyncio.timeout(None if isinstance(timeout, Clock) else timeout):
            yield
    except TimeoutError:
        raise late from None


@contextlib.contextmanager
def _mapped(broken: type[Exception]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise broken(error.strerror or str(error)) from None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(call)


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    raise LLMConfigurationError("The async calls need a running asyncio (or uvloop) event loop; trio is not supported.")
