"""The sync pool: httpx.HTTPTransport over sockets of ours.

A connection is leased to one call at a time and speaks HTTP/1.1, because httpcore's sync HTTP/2 is not safe under threads
(FAULTS.md); with ``http2="prior_knowledge"`` each thread has a transport of its own. A clock stands where httpcore expects
seconds: it passes the value through to our sockets, which ask it anew at every wait.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import httpcore
import httpx

from ..config import Config
from ..errors import LLMClosedError
from ..timing import Clock
from . import READ_SIZE, RESENDS, Request, default_limits, origin_of
from .faults import error_for, never_processed, silence_hpack
from .names import Origin, Proxies, parsed_url, resolve
from .tls import TLSLayer, context_for, reason_of

R = TypeVar("R")

# Seconds after which a call that waits for a free connection looks whether it was interrupted: httpcore has no way to wake it.
POOL_LOOK = 0.2
Wait = Clock | float | None


class Pool(httpx.BaseTransport):
    """Connections of the sync calls; also the transport of ``llm.client``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._proxies = Proxies(config.proxy, trust_env=config.trust_env)
        self._transports: dict[tuple[int, str | None], httpx.BaseTransport] = {}
        self._draining: list[Response] = []
        self._sockets: set[SocketStream] = set()
        self._closed = False

    def open(self, make_request: Callable[[], Request], clock: Clock) -> Response:
        """Send a request and return its answer once the head is there; what is provably unprocessed is sent again at once."""
        request = make_request()
        self._drain()
        for resends_left in range(RESENDS, -1, -1):
            clock.begin(transport_reports=self._config.transport is None)
            try:
                return self._send(request, clock)
            except Exception as fault:
                again = resends_left > 0 and never_processed(fault, clock)
                error = error_for(fault, clock, request.origin[1], ours=self._config.transport is None)
            if not again:
                break
        raise error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Serve ``llm.client``."""
        self._drain()
        return self._transport(origin_of(request.url)).handle_request(request)

    def close(self) -> None:
        """Close every socket, from any thread; a wait that is under way on one ends with an error."""
        self._closed = True
        self._draining.clear()
        for stream in list(self._sockets):
            stream.abort()

    def sleep(self, clock: Clock, seconds: float) -> None:
        """Wait between two tries."""
        awake = threading.Event()
        clock.wake = awake.set
        if clock.reason is not None or awake.wait(seconds):
            raise clock.failure()

    def add(self, stream: SocketStream) -> None:
        """Keep a new socket, to be able to close it."""
        self._sockets.add(stream)
        if self._closed:
            stream.abort()

    def remove(self, stream: SocketStream) -> None:
        """Forget a socket that is closed."""
        self._sockets.discard(stream)

    def tls_context(self) -> ssl.SSLContext:
        """Return the TLS context of this pool, made on first need."""
        config = self._config
        return context_for(config.verify, config.cert, http2=config.http2 == "prior_knowledge", trust_env=config.trust_env)

    def drain_later(self, response: Response) -> None:
        """Take back a connection whose answer is over but for the end of the message."""
        self._draining.append(response)

    def _drain(self) -> None:
        while self._draining:
            try:
                response = self._draining.pop()
            except IndexError:  # another thread was faster
                return
            response.drain()

    def _send(self, request: Request, clock: Clock) -> Response:
        url = parsed_url(request.url)
        sent = httpx.Request(request.method, url, headers=request.headers, content=request.body)
        while True:
            sent.extensions["timeout"] = self._waits(clock)
            try:
                answer = self._transport(request.origin).handle_request(sent)
            except httpx.PoolTimeout:
                if clock.remaining() == 0.0 or clock.reason is not None or self._config.transport is not None:
                    raise
                self._drain()  # what streams have left since then may be the connection that is waited for
            else:
                clock.answering = True
                return Response(self, answer, clock, request.origin[1])

    def _waits(self, clock: Clock) -> dict[str, Any]:
        if self._config.transport is not None:
            return clock.seconds()
        left = clock.remaining()
        return {"connect": clock, "read": clock, "write": clock, "pool": POOL_LOOK if left is None else min(left, POOL_LOOK)}

    def _transport(self, origin: Origin) -> httpx.BaseTransport:
        if self._closed:
            raise LLMClosedError("The client is closed.")
        if self._config.transport is not None:
            return self._config.transport
        proxy = self._proxies.of(origin)
        key = (threading.get_ident() if self._config.http2 == "prior_knowledge" else 0, proxy)
        with self._lock:
            transport = self._transports.get(key)
            if transport is None:
                transport = self._transports[key] = self._made(proxy)
        return transport

    def _made(self, proxy: str | None) -> httpx.BaseTransport:
        silence_hpack()
        config = self._config
        prior = config.http2 == "prior_knowledge"
        transport = httpx.HTTPTransport(
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # a dummy: httpcore would set ALPN on the real one
            http1=not prior,
            http2=prior,
            limits=config.limits or default_limits(),
            proxy=proxy,
        )
        # httpx has no public way to this; a test notices should the attribute go.
        transport._pool._network_backend = Backend(self)
        return transport


class Response:
    """The answer to one attempt: head and body as it comes.

    It is open until one of these, and after that each of them does nothing: the message's end is read (``read``); it is given
    up (``close``); its text is over but the message's end is still to come (``finish``). After the latter two the next lease
    cleans up, with ``drain``.
    """

    def __init__(self, pool: Pool, answer: httpx.Response, clock: Clock, host: str) -> None:
        self.status = answer.status_code
        self.headers = {name.lower(): value for name, value in answer.headers.items()}
        self.http_version = answer.extensions.get("http_version", b"HTTP/1.1").decode("ascii", "replace")
        self._pool = pool
        self._host = host
        self._stream = answer.extensions.get("network_stream")
        self._answer = answer
        self._body = iter(answer.stream)  # type: ignore[arg-type]  # a sync transport's stream is a SyncByteStream
        self._clock = clock
        self._open = True

    def read(self) -> bytes:
        """Return what one read of the network brings, b"" at the end of the message."""
        if self._clock.remaining() == 0.0:
            self.close()
            raise self._clock.failure()
        try:
            data = next(self._body, None)
            while data == b"":  # an empty HTTP/2 DATA frame, which is no end
                data = next(self._body, None)
        except Exception as fault:
            error = error_for(fault, self._clock, self._host, ours=self._pool._config.transport is None)
        else:
            if data is None and self._open:
                self._open = False
                self._clock.wake = None
                self._give_back()
            return data or b""
        self.close()
        raise error

    def close(self) -> None:
        """Give up what is left of the answer: over HTTP/1.1 the server is told by the closing of the connection.

        A finalizer may call this in the middle of httpcore, so httpcore is left alone: the next lease cleans up.
        """
        if not self._open:
            return
        self._open = False
        self._clock.wake = None
        if isinstance(self._stream, _Stream) and self.http_version != "HTTP/2":
            self._stream.abort()
            self._pool.drain_later(self)
        else:
            self._answer.close()

    def finish(self) -> None:
        """Give the connection back after the last byte that was wanted; the message's own end may still be on its way."""
        if self._open and self.http_version != "HTTP/2":
            self._open = False
            self._clock.wake = None
            self._pool.drain_later(self)
        else:
            self.close()

    def drain(self) -> None:
        """Read the end of the message if it has arrived, else drop the connection."""
        self._clock.do_not_wait()
        with contextlib.suppress(Exception):
            next(self._body, None)
        self._clock.wake = None
        with contextlib.suppress(Exception):
            self._give_back()

    def _give_back(self) -> None:
        if isinstance(self._stream, _Stream):
            self._stream.asked = False
        self._answer.close()


class Backend(httpcore.NetworkBackend):
    """Makes the connections of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Wait = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> SocketStream:
        """Connect to the first address of a host that answers, all within one wait."""
        if isinstance(timeout, Clock):
            timeout.connecting()
        error: Exception = OSError("the name has no address")
        for family, kind, protocol, _, address in _resolved(host, port, timeout):
            sock = socket.socket(family, kind, protocol)
            stream = SocketStream(sock, self._pool)
            try:
                stream.connect(address, timeout)
                return stream
            except httpcore.ConnectError as refused:
                stream.close()
                error = refused
            except BaseException:
                stream.close()
                raise
        raise httpcore.ConnectError(f"{error} (port {port})")


def _resolved(host: str, port: int, timeout: Wait) -> list[tuple[Any, ...]]:
    found = resolve(host, port)
    if isinstance(timeout, Clock):
        timeout.wake = found.cancel
        if timeout.reason is not None:
            raise httpcore.ConnectError("closed")
    try:
        return found.result(_seconds(timeout))
    except TimeoutError:
        raise httpcore.ConnectTimeout(f"looking up {host}") from None
    except OSError as error:
        raise httpcore.ConnectError(str(error.strerror or error)) from None
    except BaseException as error:  # concurrent.futures.CancelledError: the call was interrupted
        raise httpcore.ConnectError(repr(error)) from None


class _Stream(httpcore.NetworkStream):
    """What a plain socket and TLS over one have in common: the phases of a call."""

    pool: Pool
    asked = False  # a request of ours has gone out whose answer is not over
    _held = b""

    def read(self, max_bytes: int, timeout: Wait = None) -> bytes:
        """Return up to ``max_bytes``, b"" at the end."""
        if self._held:
            self._flush_held(timeout)
        return self.receive(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: Wait = None) -> None:
        """Send all of ``buffer``; head and body go together, when the answer is asked for."""
        self.asked = isinstance(timeout, Clock)
        self._held += buffer
        if len(self._held) > READ_SIZE:
            self._flush_held(timeout)

    def _flush_held(self, timeout: Wait) -> None:
        data, self._held = self._held, b""
        if isinstance(timeout, Clock):
            timeout.writing()
        before = self.written()
        try:
            self.send(data, timeout)
        finally:
            if isinstance(timeout, Clock):
                timeout.sent = timeout.sent or self.written() > before
        if isinstance(timeout, Clock):
            timeout.waiting()

    def written(self) -> int:
        """Return how many bytes the socket has taken in all."""
        raise NotImplementedError

    def peek(self) -> bool:
        """Say whether the socket has something to say."""
        raise NotImplementedError

    def is_stale(self) -> bool:
        """Say whether an idle connection has something to say: its end, in all likelihood.

        httpcore asks this of connections that another thread may be about to use: what comes after a request is its answer.
        """
        return not self.asked and self.peek() and not self.asked

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Wait = None
    ) -> httpcore.NetworkStream:
        """Put TLS over this stream, with the pool's context; ``ssl_context`` is the dummy that httpcore holds."""
        try:
            return TLSStream(self, self.pool.tls_context(), server_hostname, timeout)
        except BaseException:
            self.close()
            raise

    def abort(self) -> None:
        """Close the connection at once, from any thread."""
        raise NotImplementedError

    def receive(self, max_bytes: int, timeout: Wait) -> bytes:
        """Read without a change of phase."""
        raise NotImplementedError

    def send(self, data: bytes, timeout: Wait) -> None:
        """Write without a change of phase."""
        raise NotImplementedError


class SocketStream(_Stream):
    """A TCP connection that any thread may abort."""

    def __init__(self, sock: socket.socket, pool: Pool) -> None:
        self.pool = pool
        self._sock = sock
        self._guard = threading.RLock()  # re-entrant: a finalizer may abort while this thread holds it
        self._busy = False
        self._aborted = False
        self._written = 0
        pool.add(self)

    def connect(self, address: Any, timeout: Wait) -> None:
        """Connect to one address."""

        def step() -> None:
            self._sock.connect(address)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        self.run(step, timeout, httpcore.ConnectTimeout, httpcore.ConnectError)

    def receive(self, max_bytes: int, timeout: Wait) -> bytes:
        """Read what has come."""
        return self.run(lambda: self._sock.recv(max_bytes), timeout, httpcore.ReadTimeout, httpcore.ReadError)

    def send(self, data: bytes, timeout: Wait) -> None:
        """Send all, each piece within what is left of the wait."""
        rest = memoryview(data)
        while rest:
            sent = self.run(lambda: self._sock.send(rest), timeout, httpcore.WriteTimeout, httpcore.WriteError)  # noqa: B023  # run at once
            self._written += sent
            rest = rest[sent:]

    def run(self, step: Callable[[], R], timeout: Wait, late: type[Exception], broken: type[Exception]) -> R:
        """Run one call of the socket within the wait, so that another thread can end it and nobody closes it under us."""
        with self._guard:
            if self._aborted:
                raise broken("closed")
            self._busy = True
        try:
            if isinstance(timeout, Clock):
                timeout.wake = self.abort
                if timeout.reason is not None:
                    raise broken("closed")
            self._sock.settimeout(_seconds(timeout))
            return step()
        except (TimeoutError, BlockingIOError):
            raise late(f"{self._sock.getsockname()}") from None
        except OSError as error:
            raise broken(error.strerror or str(error)) from None
        finally:
            with self._guard:
                self._busy = False
                if self._aborted:
                    self._close()

    def abort(self) -> None:
        """End the connection, and the wait on it; the descriptor goes when that wait has returned."""
        with self._guard:
            self._aborted = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            if not self._busy:
                self._close()

    def close(self) -> None:
        """Close the connection."""
        with self._guard:
            self._aborted = True
            self._close()

    def get_extra_info(self, info: str) -> Any:
        """Tell httpcore what it asks about a connection."""
        if info == "is_readable":
            return self.is_stale()
        return {"socket": self._sock}.get(info)

    def written(self) -> int:
        """Return how many bytes the socket has taken in all."""
        return self._written

    def peek(self) -> bool:
        """Say whether the socket has something to say, its end included; its timeout is another thread's business."""
        try:
            return self._aborted or readable(self._sock)
        except (OSError, ValueError):  # closed meanwhile
            return True

    def _close(self) -> None:
        self.pool.remove(self)
        self._sock.close()


class TLSStream(_Stream):
    """TLS over another stream, which may itself be TLS (an https proxy)."""

    def __init__(self, inner: _Stream, context: ssl.SSLContext, server_hostname: str | None, timeout: Wait) -> None:
        self.pool = inner.pool
        self._inner = inner
        self._tls = TLSLayer(context, server_hostname)
        try:
            while not self._tls.handshake():
                self._exchange(timeout)
            self._flush(timeout)
        except ssl.SSLError as error:
            self._flush_alert()
            raise httpcore.ConnectError(reason_of(error)) from None
        except httpcore.ReadTimeout:
            raise httpcore.ConnectTimeout("TLS handshake") from None
        except (httpcore.ReadError, httpcore.WriteError) as error:
            raise httpcore.ConnectError(f"TLS handshake: {error}") from None

    def receive(self, max_bytes: int, timeout: Wait) -> bytes:
        """Read and decrypt; an end without close_notify is a broken connection, since anybody can cut TCP."""
        try:
            while (data := self._tls.read(max_bytes)) is None:
                self._exchange(timeout)
        except ssl.SSLError as error:
            raise httpcore.ReadError(reason_of(error)) from None
        return data

    def send(self, data: bytes, timeout: Wait) -> None:
        """Encrypt and send."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise httpcore.WriteError(reason_of(error)) from None
        self._flush(timeout)

    def abort(self) -> None:
        """Close the connection beneath."""
        self._inner.abort()

    close = abort

    def get_extra_info(self, info: str) -> Any:
        """Tell httpcore what it asks about a connection."""
        if info == "is_readable":
            return self.is_stale()
        return self._tls.object if info == "ssl_object" else self._inner.get_extra_info(info)

    def written(self) -> int:
        """Return how many bytes the socket beneath has taken in all."""
        return self._inner.written()

    def peek(self) -> bool:
        """Say whether the socket beneath has something to say."""
        return self._inner.peek()

    def _exchange(self, timeout: Wait) -> None:
        self._flush(timeout)
        self._tls.receive(self._inner.receive(READ_SIZE, timeout))

    def _flush(self, timeout: Wait) -> None:
        if data := self._tls.outgoing():
            self._inner.send(data, timeout)

    def _flush_alert(self) -> None:
        """Tell the server why its certificate is refused; whether it hears it does not matter."""
        with contextlib.suppress(httpcore.NetworkError, httpcore.TimeoutException):
            self._flush(1.0)


def readable(sock: socket.socket) -> bool:
    """Say whether a read would return at once."""
    if not hasattr(select, "poll"):  # Windows, where select knows no limit on descriptors
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _seconds(timeout: Wait) -> float | None:
    return timeout.remaining() if isinstance(timeout, Clock) else timeout
