"""The sync pool: plain sockets, each leased to one call at a time, so that threads share nothing.

Over TLS that agreed on HTTP/2 a connection still carries one call, which can be stopped by RST_STREAM and leaves the
connection for the next. Nobody reads from it while the caller's own code runs: a server's PING is answered at the next read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import LLMClosedError, LLMTimeoutError
from . import READ_SIZE, RESENDS
from .exchange import ConnectError, Exchange, Fault, Headers, HTTPConnection, LostError, Origin, Request
from .faults import error_of, joined, never_processed
from .http1 import Http1
from .names import Address, Proxies, resolve
from .opening import Opening, RefusedError, Settings, address_of, opening
from .pool import REST, SOON, Shelf
from .tls import TLSLayer, reason_of

if TYPE_CHECKING:
    from ..timing import Clock
    from .foreign import Foreign

# Seconds between two looks at the clock in waits that another thread has no way to end.
LOOK = 0.05


class Pool:
    """Connections of the sync calls."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pid = os.getpid()
        self._proxies = Proxies(settings.proxy, trust_env=settings.trust_env)
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        self.shelf: Shelf[Connection] = Shelf(settings.limits, stays=settings.stays)
        self._opening: set[Connection] = set()
        self._returned: deque[Connection] = deque()  # given back, by finalizers too, which take no lock
        self._foreign: dict[str, Foreign] = {}  # for SOCKS proxies
        self._closed = False

    # --- From a request to its answer -----------------------------------------------------------------------------

    def open(self, make_request: Callable[[], Request], clock: Clock) -> Any:
        """Send a request and return its answer once the head is there; what is provably unprocessed is sent again at once."""
        request = make_request()
        proxy = self._proxies.of(request.origin)
        if proxy is not None and proxy.startswith("socks"):
            return self._through_socks(proxy).open(lambda: request, clock)
        for resends_left in range(RESENDS, -1, -1):
            clock.begin()
            try:
                return self._send(request, clock)
            except Exception as fault:
                again = resends_left > 0 and never_processed(fault, clock)
                error = error_of(fault, clock, request.origin[1])
            if not again:
                break
        raise error

    def _send(self, request: Request, clock: Clock) -> Response:
        connection = self._lease(request.origin, clock)
        try:
            response = connection.start(request)
            response.head()
        except Fault:  # of the stream alone, perhaps
            if not connection.protocol.room:
                connection.close()
            self.give_back(connection)
            raise
        except BaseException:
            connection.close()
            self.give_back(connection)
            raise
        return response

    def _lease(self, origin: Origin, clock: Clock) -> Connection:
        while (connection := self._found(origin, clock)) is not None:
            fresh = False
            try:
                fresh = connection.is_fresh()
            finally:
                if not fresh:
                    connection.close()
                    self.give_back(connection)
            if fresh:
                return connection
        return self._dialed(origin, clock)

    def _found(self, origin: Origin, clock: Clock) -> Connection | None:
        """Return an idle connection, or None where one is to be dialed; at the limit, wait for either."""
        with self._changed:
            while True:
                if self._closed:
                    raise LLMClosedError("The client is closed.")
                self._take_back()
                connection = self.shelf.lease(origin)
                if connection is not None:
                    connection.lease(clock)
                    self.shelf.taken(connection)
                    return connection
                if self.shelf.may_dial(origin, 1):
                    self.shelf.dial(origin)
                    return None
                self._wait(clock)

    def _wait(self, clock: Clock) -> None:
        if clock.over():
            raise clock.failure()
        self._waiting += 1
        try:
            self._changed.wait(LOOK)
        finally:
            self._waiting -= 1

    def _dialed(self, origin: Origin, clock: Clock) -> Connection:
        connection = None
        clock.connecting()
        try:
            connection = self._connected(origin, clock)
            return connection
        finally:
            with self._changed:
                self.shelf.dialed(origin)
                if connection is not None:
                    self.shelf.add(connection, 0.0)
                self._changed.notify()

    def _connected(self, origin: Origin, clock: Clock) -> Connection:
        proxy = self._proxies.of(origin)
        steps = opening(self._settings, origin, proxy)
        connection = Connection(self, origin, connect(*address_of(origin, proxy), clock))
        connection.lease(clock)
        self._opening.add(connection)
        try:
            connection.open(steps)
        except BaseException:
            connection.close()
            raise
        finally:
            self._opening.discard(connection)
        return connection

    def _through_socks(self, proxy: str) -> Foreign:
        with self._changed:
            if proxy not in self._foreign:
                import httpx

                from .foreign import Foreign, for_socks

                self._foreign[proxy] = Foreign(httpx.HTTPTransport(**for_socks(proxy, self._settings)), ours=True)
            return self._foreign[proxy]

    # --- What is given back ---------------------------------------------------------------------------------------

    def give_back(self, connection: Connection) -> None:
        """Take a connection back that its call has done with; from finalizers too, so without waiting for the lock."""
        if self._closed:
            connection.close()
        self._returned.append(connection)
        if self._waiting and self._changed.acquire(blocking=False):
            try:
                self._changed.notify()
            finally:
                self._changed.release()

    def _take_back(self) -> None:
        now = time.monotonic()
        while self._returned:
            connection = self._returned.popleft()
            connection.leased = False
            if connection.closed:
                self.shelf.remove(connection)
                continue
            for other in self.shelf.returned(connection, now):
                self._drop(other)
        for other in self.shelf.expired(now):
            self._drop(other)

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self.shelf.remove(connection)

    # --- The end --------------------------------------------------------------------------------------------------

    def sleep(self, clock: Clock, seconds: float) -> None:
        """Wait between two tries."""
        clock.sleep(seconds)

    def close(self) -> None:
        """Close every socket, from any thread; a wait that is under way on one ends with an error."""
        self._closed = True
        if self.is_inherited():
            return self.abandon()
        while self._returned:  # without the lock: this may be a finalizer
            with contextlib.suppress(IndexError):
                self._returned.popleft().close()
        for connection in list(self.shelf.connections):
            connection.abort()
        for foreign in list(self._foreign.values()):
            foreign.close()

    def is_inherited(self) -> bool:
        """Say whether this is a forked child, and the connections the parent's."""
        return self._pid != os.getpid()

    def abandon(self) -> None:
        """Close the descriptors that a forked child has inherited: any byte sent on them would be the parent's."""
        self._closed = True
        for connection in [*self.shelf.connections, *self._opening]:
            connection.abandon()


class Connection:
    """One connection: its socket, TLS if any, and the protocol that is spoken on it; used by one call at a time.

    Another thread may do one thing to it, at any time: ``abort``.
    """

    def __init__(self, pool: Pool, origin: Origin, sock: socket.socket) -> None:
        self.origin = origin
        self.closed = False
        self.leased = False
        self.protocol: HTTPConnection
        self._pool = pool
        self._sock = sock
        self._tls: TLSLayer | None = None
        self._clock: Clock
        self._guard = threading.RLock()  # re-entrant: a finalizer may close while this thread holds it
        self._refuses = False  # the peer takes nothing more; what it has sent is still worth reading
        self._streamed = 0.0  # when a stream over HTTP/1.1 ended
        self._patience: float | None = None  # seconds that the socket waits at each call, as it was told last

    # --- What the shelf asks --------------------------------------------------------------------------------------

    streams = 1
    settled = True
    resting = False  # who leases it waits itself

    @property
    def room(self) -> int:
        """1 where a call may lease it; what it has to read first is found out then."""
        return 0 if self.leased or self.closed else 1

    @property
    def idle(self) -> bool:
        """Whether no call has it."""
        return not self.leased

    # --- Opening and closing --------------------------------------------------------------------------------------

    def lease(self, clock: Clock) -> None:
        """Give it to one call, whose clock can end its waits from any thread."""
        self.leased = True
        self._clock = clock
        clock.wake = self.abort

    def open(self, steps: Opening) -> None:
        """Run the opening: proxy, TLS, protocol."""
        try:
            sent = next(steps)
            while True:
                self._send(sent)
                sent = steps.send(self._receive())
        except RefusedError as refusal:
            with contextlib.suppress(OSError):
                self._sock.send(refusal.alert)
            raise
        except LostError as lost:
            raise ConnectError(str(lost)) from None
        except StopIteration as done:
            opened = done.value
        self._tls, self.protocol = opened.tls, opened.protocol
        self._send(opened.outgoing)
        if opened.received or self._tls is not None:
            self._take(opened.received)

    def close(self) -> None:
        """Close it, by the call that has it, or where nobody has; from finalizers too, so without waiting for the guard."""
        self.closed = True
        if self._guard.acquire(blocking=False):  # else somebody aborts it, and closes it then
            try:
                self._sock.close()
            finally:
                self._guard.release()

    def abort(self) -> None:
        """End every wait on it, from any thread; the call that has it then closes it."""
        with self._guard, contextlib.suppress(OSError):  # unguarded, another socket could have got the descriptor meanwhile
            self._sock.shutdown(socket.SHUT_RDWR)
        if self.closed or not self.leased:
            self.close()

    def abandon(self) -> None:
        """Close the descriptor, in a forked child: the connection itself is the parent's."""
        self.closed = True
        self._sock.close()

    # --- Requests -------------------------------------------------------------------------------------------------

    def is_fresh(self) -> bool:
        """Read what has arrived on an idle connection, its end perhaps, and say whether it takes a request."""
        unknown = self._streamed > 0 and self._pool.shelf.stays(self.origin) is None
        if self._is_readable(REST if unknown else 0.0):
            try:
                self.read()
            except (Exception, KeyboardInterrupt):
                self.close()
                if self._clock.reason is not None:
                    raise
        if unknown and not self.closed:
            self._pool.shelf.learn(self.origin, stays=True)
        return not self.closed and self.protocol.room > 0

    def start(self, request: Request) -> Response:
        """Write a request."""
        clock = self._clock
        clock.writing()
        clock.sent = False  # what opened the connection was no part of the request
        exchange = self.protocol.start(request, whole=request.whole)
        self.flush()
        while exchange.unsent is not None and not (exchange.ended or exchange.fault):
            self.read()  # the server's flow control: it says when it takes more
            self.flush()
        clock.waiting()
        return Response(self._pool, self, exchange, clock, request.origin[1])

    def read(self) -> None:
        """Wait for what the network brings, once, and take it."""
        self.flush()
        data = self._receive()
        if data:
            self._take(data)
        else:
            self._ended("")

    def flush(self) -> None:
        """Write what has to go out."""
        data = self.protocol.outgoing()
        if self._tls is not None:
            data = self._tls.encrypt(data) if data else self._tls.outgoing()
        if data:
            self._send(data)

    def finish(self, exchange: Exchange) -> None:
        """Want no more of an exchange, whose end may still be on its way."""
        self.protocol.finish(exchange)
        if not exchange.whole and isinstance(self.protocol, Http1):
            self._streamed = time.monotonic()
            if self._pool.shelf.stays(self.origin) is False:
                self.close()

    def stop(self, exchange: Exchange) -> None:
        """Give an exchange up; this may run in a finalizer, so it waits for nothing."""
        if self._pool.is_inherited():
            return self.abandon()
        if self.closed:
            return
        self.protocol.stop(exchange)
        data = self.protocol.outgoing()
        if data and self._tls is not None:
            data = self._tls.encrypt(data)
        if not self._send_now(data) or self.protocol.closing:
            self.close()

    # --- Reading and writing --------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        tls = self._tls
        if tls is not None:
            try:
                data = tls.decrypt(data)
            except ssl.SSLError as error:
                return self._ended(reason_of(error))
        self.protocol.receive(data)
        if tls is not None and tls.ended:
            self._ended("")
        elif self.protocol.closing:
            with contextlib.suppress(LostError):
                self.flush()
            self.close()

    def _ended(self, words: str) -> None:
        if self._tls is not None and not self._tls.ended and not words:
            words = "closed without TLS's close_notify"  # anybody can cut TCP
        if time.monotonic() - self._streamed < SOON:
            self._pool.shelf.learn(self.origin, stays=False)
        self.close()
        self.protocol.lost(words)

    def _receive(self) -> bytes:
        """Return what one read of the socket brings, b"" at the end of the connection; raise LostError."""
        clock = self._clock
        while True:
            if clock.over():
                raise clock.failure()
            self._be_patient(clock.remaining())
            try:
                data = self._sock.recv(READ_SIZE)
            except (BlockingIOError, TimeoutError):
                continue
            except OSError as error:
                if clock.reason is not None:
                    raise clock.failure() from None
                return self._lost(error)
            if not data and clock.reason is not None:
                raise clock.failure()
            return data

    def _lost(self, error: OSError) -> bytes:
        words = error.strerror or str(error)
        if hasattr(self, "protocol"):
            self._ended(words)
        raise LostError(words) from None

    def _send(self, data: bytes) -> None:
        """Send all, each piece within what is left of the wait."""
        rest, clock = memoryview(data), self._clock
        while rest and not self._refuses:
            if clock.over():
                raise clock.failure()
            self._be_patient(clock.remaining())
            try:
                sent = self._sock.send(rest)
            except (BlockingIOError, TimeoutError):
                continue
            except OSError as error:
                if clock.reason is not None:
                    raise clock.failure() from None
                if not clock.sent:
                    raise LostError(error.strerror or str(error)) from None
                self._refuses = True
            else:
                clock.sent = True
                rest = rest[sent:]

    def _send_now(self, data: bytes) -> bool:
        """Send without waiting; False where not all of it went out."""
        try:
            self._sock.setblocking(False)
            sent = self._sock.send(data) if data else 0
            self._sock.setblocking(True)
        except OSError:
            return False
        self._patience = None
        return sent == len(data)

    def _be_patient(self, seconds: float | None) -> None:
        """Tell the socket how long to wait, where it does not know yet.

        By SO_RCVTIMEO and SO_SNDTIMEO: a socket with ``settimeout`` costs a system call more at each read.
        """
        known = self._patience
        if known is not None and (seconds is None or known <= seconds + 0.01) and known >= (seconds or 0.0) / 2:
            return
        self._patience = seconds
        if sys.platform == "win32":
            self._sock.settimeout(seconds)
            self._patience = None
            return
        whole, part = divmod(max(seconds, 0.001), 1.0) if seconds is not None else (0, 0.0)
        value = struct.pack("ll", int(whole), int(part * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._sock.setsockopt(socket.SOL_SOCKET, option, value)

    def _is_readable(self, seconds: float) -> bool:
        try:
            return readable(self._sock, seconds)
        except (OSError, ValueError):  # closed meanwhile
            return True


class Response:
    """The answer to one attempt: head and body as it comes.

    It is open until one of these, and after that each of them does nothing: the message's end is read (``read``); it is given
    up (``close``, from finalizers too); its text is over but the message's end is still to come (``finish``).
    """

    __slots__ = ("_clock", "_connection", "_exchange", "_host", "_open", "_pool", "headers", "http_version", "status")

    def __init__(self, pool: Pool, connection: Connection, exchange: Exchange, clock: Clock, host: str) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.http_version = ""
        self._pool = pool
        self._connection = connection
        self._exchange = exchange
        self._clock = clock
        self._host = host
        self._open = True

    def head(self) -> None:
        """Wait for the head, or where the answer is wanted whole, for its end."""
        exchange, connection = self._exchange, self._connection
        while exchange.waits():
            if exchange.fault is not None:
                self._clock.answering = exchange.status > 0
                raise exchange.fault
            connection.read()
        self._clock.answering = True
        self.status, self.headers = exchange.status, joined(exchange.headers)
        self.http_version = connection.protocol.version

    def read(self) -> bytes:
        """Return what has come since the last read, b"" at the end of the message."""
        exchange, clock = self._exchange, self._clock
        try:
            if clock.over():
                raise clock.failure()
            while not exchange.held:
                if exchange.ended:
                    self.finish()
                    return b""
                if exchange.fault is not None:
                    raise exchange.fault
                self._connection.read()
            return self._connection.protocol.take(exchange)
        except Exception as fault:
            error = error_of(fault, clock, self._host)
        except BaseException:
            self._connection.close()  # this may be the middle of anything
            raise
        if isinstance(error, LLMTimeoutError):  # the other side may be gone without a word
            self._connection.stop(exchange)
            self._connection.close()
        self.close()
        raise error

    def raw_headers(self) -> Headers:
        """Return the headers as they came, one by one."""
        return self._exchange.headers

    def close(self) -> None:
        """Give up what is left of the answer, and tell the server."""
        if self._open:
            self._connection.stop(self._exchange)
            self._release()

    def finish(self) -> None:
        """Give the connection back after the last byte that was wanted; the message's own end may still be on its way."""
        if self._open:
            self._connection.finish(self._exchange)
            self._release()

    def _release(self) -> None:
        if self._open:
            self._open = False
            self._clock.wake = None
            self._pool.give_back(self._connection)


def connect(host: str, port: int, clock: Clock) -> socket.socket:
    """Connect to the first address of a host that answers, all within one wait; raise ConnectError."""
    error = "the name has no address"
    for address in _resolved(host, port, clock):
        sock = socket.socket(*address[:3])
        try:
            _connect(sock, address[4], clock)
            return sock
        except OSError as refused:
            sock.close()
            error = refused.strerror or str(refused)
        except BaseException:
            sock.close()
            raise
    raise ConnectError(f"{error} (port {port})")


def _resolved(host: str, port: int, clock: Clock) -> list[Address]:
    found = resolve(host, port)
    while True:
        if clock.over():
            found.cancel()
            raise clock.failure()
        try:
            return found.result(_a_while(clock))
        except TimeoutError:
            continue
        except (OSError, UnicodeError) as error:
            raise ConnectError(str(getattr(error, "strerror", None) or error)) from None


def _connect(sock: socket.socket, address: Any, clock: Clock) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    code = sock.connect_ex(address)
    if code and not _is_under_way(code):
        raise OSError(code, os.strerror(code))
    while code and not writable(sock, _a_while(clock)):
        if clock.over():
            raise clock.failure()
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    sock.setblocking(True)


def _a_while(clock: Clock) -> float:
    left = clock.remaining()
    return LOOK if left is None else min(left, LOOK)


def readable(sock: socket.socket, seconds: float) -> bool:
    """Say whether a read would return at once, or within some time."""
    if not hasattr(select, "poll"):  # Windows, where select knows no limit on descriptors
        return bool(select.select([sock], [], [], seconds)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1e3))


def writable(sock: socket.socket, seconds: float) -> bool:
    """Wait until a socket takes data or has failed; False where the time ran out."""
    if not hasattr(select, "poll"):
        _, ready, failed = select.select([], [sock], [sock], seconds)
        return bool(ready or failed)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(seconds * 1e3))


def _is_under_way(code: int) -> bool:
    return code in (errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EWOULDBLOCK))
