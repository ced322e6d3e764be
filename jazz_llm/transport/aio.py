"""The async pool: per running loop the connections, each shared by as many exchanges as its protocol takes.

A request is built and written without an await in between, and what comes is handed over by the loop's own callback: so no
cancellation can tear anything. A call awaits one future, which the read that is for it resolves.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import os
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from ..errors import LLMClosedError
from . import RESENDS
from .alarm import Alarm, Ticker, Work, asleep, call_soon, is_running_here, running_loop
from .exchange import ConnectError, Exchange, Headers, HTTPConnection, Origin, Request
from .faults import error_of, joined, never_processed
from .http1 import Http1
from .names import Proxies
from .opening import Opening, RefusedError, Settings, address_of, opening
from .pool import REST, SOON, Shelf
from .sockets import LoopSocket, connect
from .tls import TLSLayer, reason_of

if TYPE_CHECKING:
    from ..errors import LLMError
    from ..timing import Clock
    from .foreign import AsyncForeign


_BY_US = "closed"


class AsyncPool:
    """Connections of the async calls, apart for each loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.closed = False
        self._lock = threading.Lock()  # loops of several threads meet here
        # An asyncio loop takes weak references; uvloop's does too.
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopPool] = weakref.WeakKeyDictionary()
        self._last: LoopPool | None = None

    async def aopen(self, make_request: Callable[[], Work[Request]], clock: Clock) -> Any:
        """Send a request and return its answer once the head is there; what is provably unprocessed is sent again at once."""
        pool = self._last
        if pool is None or pool.loop is not asyncio._get_running_loop() or pool.is_over():
            pool = await self._pool()
        clock.outside()
        alarm = Alarm(clock, pool.loop)
        pool.ticker.add(alarm)
        try:
            request = await alarm.guard(make_request())
            return await pool.open(request, alarm)
        except BaseException:
            pool.ticker.remove(alarm)
            raise

    async def asleep(self, clock: Clock, seconds: float) -> None:
        """Wait between two tries."""
        await asleep(clock, seconds)

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
            pool = self._loops.pop(running_loop(), None)
        if pool is not None:
            await pool.settle()

    def abandon(self) -> None:
        """Close the descriptors that a forked child has inherited, and nothing else: all the rest is the parent's."""
        for pool in list(self._loops.values()):
            pool.abandon()

    async def _pool(self) -> LoopPool:
        if self.closed:
            raise LLMClosedError("The client is closed.")
        loop = running_loop()
        with self._lock:
            pool = self._loops.get(loop)
            fresh = pool is None or pool.is_over()
            gone = [self._loops.pop(other) for other in list(self._loops) if other.is_closed()] if fresh else []
            if pool is None or fresh:
                gone += [] if pool is None else [pool]
                pool = self._loops[loop] = LoopPool(self.settings, loop)
            self._last = pool
        for other in gone:
            other.close()
        if fresh:
            await pool.watch_the_end()
        return pool


class LoopPool:
    """The connections of one loop. Everything runs in its thread, but for what says otherwise."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ticker = Ticker(loop)
        self._settings = settings
        self._pid = os.getpid()
        self._proxies = Proxies(settings.proxy, trust_env=settings.trust_env)
        self.shelf: Shelf[AsyncConnection] = Shelf(settings.limits, settings.multiplexed(), settings.stays)
        self._opening: set[AsyncConnection] = set()
        self._queues: dict[Origin, dict[Alarm, None]] = {}  # the calls that wait for a connection, in the order they came
        self._dropped: deque[AsyncResponse] = deque()  # given up, by finalizers too, and not yet told to the server
        self._foreign: dict[str, AsyncForeign] = {}  # for SOCKS proxies
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._sentinel: AsyncGenerator[None] | None = None

    # --- From a request to its answer -----------------------------------------------------------------------------

    async def open(self, request: Request, alarm: Alarm) -> Any:
        """Send a request and return its answer; what is provably unprocessed is sent again at once."""
        proxy = self._proxies.of(request.origin)
        if proxy is not None and proxy.startswith("socks"):
            return await self._through_socks(proxy).open(request, alarm, self.ticker)
        clock = alarm.clock
        for resends_left in range(RESENDS, -1, -1):
            clock.begin()
            self.ticker.add(alarm)  # again: an answer that was given up has taken it away
            try:
                return await self._send(request, alarm)
            except Exception as fault:
                again = resends_left > 0 and never_processed(fault, clock)
                error = error_of(fault, clock, request.origin[1])
            if not again:
                break
        raise error

    async def _send(self, request: Request, alarm: Alarm) -> AsyncResponse:
        connection = None if request.origin in self._queues else self._free(request.origin)
        if connection is None:
            connection = await self._found(request.origin, alarm)
        response = connection.start(request, alarm)
        try:
            await response.head()
        except BaseException:
            response.close()
            raise
        return response

    def _free(self, origin: Origin) -> AsyncConnection | None:
        """Return an open connection with room, having read what has arrived on an idle one first: its end, perhaps."""
        while (connection := self.shelf.lease(origin)) is not None:
            if not connection.idle:
                return connection
            connection.socket.read()
            if connection.room:
                return connection
            self.update(connection)
        return None

    async def _found(self, origin: Origin, alarm: Alarm) -> AsyncConnection:
        """Wait for a connection with room, in turn, or make one."""
        queue = self._queues.setdefault(origin, {})
        my_turn = not queue
        queue[alarm] = None
        try:
            if self.shelf.is_draining(origin):
                await asyncio.sleep(0)  # what is still to come of the message's end is often there already
            while True:
                my_turn = my_turn or next(iter(queue)) is alarm
                connection = self._free(origin) if my_turn else None
                if connection is not None:
                    return connection
                if self.shelf.may_dial(origin, len(queue)):
                    del queue[alarm]
                    return await self._dialed(origin, alarm)
                await self._turn(origin, alarm)
                my_turn = True
        finally:
            queue.pop(alarm, None)
            if not queue and self._queues.get(origin) is queue:
                del self._queues[origin]
            self._serve_all()

    async def _turn(self, origin: Origin, alarm: Alarm) -> None:
        """Wait until somebody says that there may be a connection now, or that there will be none."""
        if self.shelf.is_dialing(origin):
            alarm.clock.connecting()
        if not alarm.clock.over():
            await alarm.waiting()
        if alarm.fault is not None:
            fault, alarm.fault = alarm.fault, None
            raise fault
        if alarm.clock.over():
            raise alarm.clock.failure()

    def _serve(self, origin: Origin) -> None:
        """Wake as many of those who wait as there is something for; each takes its own when it runs."""
        queue = self._queues.get(origin)
        if not queue:
            return
        room = self.shelf.room(origin) or int(self.shelf.could_dial(origin, len(queue)))
        for alarm in list(queue)[:room]:
            alarm.wake()

    async def _dialed(self, origin: Origin, alarm: Alarm) -> AsyncConnection:
        self.shelf.dial(origin)
        self._serve(origin)  # the next one of them may dial at the same time
        alarm.clock.connecting()
        connection, refusal = None, None
        try:
            connection = await alarm.guard(self._connected(origin))
        except ConnectError as fault:
            refusal = fault
            raise
        finally:
            self.shelf.dialed(origin)
            if connection is not None and not connection.closed:
                self.shelf.add(connection, time.monotonic())
            if refusal is not None and self.shelf.is_down(origin):
                self._refuse_all(origin, refusal)
        return connection

    def _refuse_all(self, origin: Origin, refusal: ConnectError) -> None:
        """Tell the others who wait what the last one that tried has found: nothing is left that could serve them."""
        for alarm in self._queues.get(origin, ()):
            alarm.fault = copy.copy(refusal)
            alarm.wake()

    async def _connected(self, origin: Origin) -> AsyncConnection:
        proxy = self._proxies.of(origin)
        steps = opening(self._settings, origin, proxy)
        connection = AsyncConnection(self, origin, await connect(self.loop, *address_of(origin, proxy)))
        self._opening.add(connection)
        try:
            await connection.open(steps)
        except BaseException:
            connection.close()
            raise
        finally:
            self._opening.discard(connection)
        if self._closed:
            connection.close()
        return connection

    def _through_socks(self, proxy: str) -> AsyncForeign:
        if proxy not in self._foreign:
            import httpx

            from .foreign import AsyncForeign, for_socks

            stock = httpx.AsyncHTTPTransport(**for_socks(proxy, self._settings))
            self._foreign[proxy] = AsyncForeign(stock, ours=True)
        return self._foreign[proxy]

    # --- What connections and responses tell ----------------------------------------------------------------------

    def returned(self, connection: AsyncConnection) -> None:
        """Take note that an exchange of a connection is over."""
        for other in self.shelf.returned(connection, time.monotonic()):
            other.close()
        if self._sweeper is None:
            self._sweep_later()
        self._serve_all()

    def update(self, connection: AsyncConnection) -> None:
        """Take note that the server has said something about the room of a connection, or that it is closed."""
        if connection.closed:
            self.shelf.remove(connection)
        elif connection in self.shelf.connections:
            self.shelf.update(connection, time.monotonic())
        self._serve_all()

    def _serve_all(self) -> None:
        """Serve those of every origin: at the limit, an idle connection of one makes way for another."""
        for origin in tuple(self._queues):
            self._serve(origin)

    def drop(self, response: AsyncResponse) -> None:
        """Have a request ended at the server in the loop's next iteration; from any thread and from finalizers.

        Nothing is written here: a finalizer can run in the middle of another write.
        """
        if self._pid != os.getpid():
            return self.abandon()
        self._dropped.append(response)
        call_soon(self.loop, self._stop_dropped)

    def _stop_dropped(self) -> None:
        while self._dropped:
            self._dropped.popleft().stop()

    def _sweep_later(self) -> None:
        due = self.shelf.next_expiry()
        if due is not None and due < math.inf:
            self._sweeper = self.loop.call_later(max(0.0, due - time.monotonic()) + 0.01, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        for connection in self.shelf.expired(time.monotonic()):
            connection.close()
        self._sweep_later()

    # --- The end --------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Say whether nothing can be asked of this pool any more: closed, or another process's."""
        return self._closed or self._pid != os.getpid()

    def close(self) -> None:
        """Close every socket, from any thread and in any state of the loop."""
        self._closed = True
        if self._pid != os.getpid():
            self.abandon()
        elif self.loop.is_running() and not is_running_here(self.loop):
            call_soon(self.loop, self._close)
        else:
            self._close()
            if not self.loop.is_running():  # nobody may ever run it again
                self._end_sentinel()

    def abandon(self) -> None:
        """Close the descriptors and nothing else; see ``LoopSocket.abandon``."""
        self._closed = True
        for connection in [*self.shelf.connections, *self._opening]:
            connection.socket.abandon()
        self._end_sentinel()

    def _close(self) -> None:
        self._stop_dropped()
        for connection in [*self.shelf.connections, *self._opening]:
            connection.close()
        for origin in self._queues:
            self._refuse_all(origin, ConnectError("the client was closed"))
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _end_sentinel(self) -> None:
        """End the generator by hand, or its collection would ask the loop to."""
        if self._sentinel is not None:
            with contextlib.suppress(StopIteration, StopAsyncIteration, RuntimeError):
                self._sentinel.aclose().send(None)

    async def settle(self) -> None:
        """Wait until nothing of this pool is left on its loop."""
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def close_foreign(self) -> None:
        """Close what only a coroutine can close."""
        for foreign in self._foreign.values():
            await foreign.aclose()

    async def watch_the_end(self) -> None:
        """Have ``asyncio.run`` close this pool: its shutdown_asyncgens ends the generator that is started here."""
        self._sentinel = _sentinel(weakref.ref(self))
        await anext(self._sentinel)


async def _sentinel(pool: weakref.ref[LoopPool]) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        if (alive := pool()) is not None:
            alive.close()
            await alive.close_foreign()


class AsyncConnection:
    """One connection: its socket, TLS if any, and the protocol that is spoken on it."""

    def __init__(self, pool: LoopPool, origin: Origin, sock: Any) -> None:
        self.origin = origin
        self.socket = LoopSocket(pool.loop, sock)
        self.protocol: HTTPConnection
        self._pool = pool
        self._tls: TLSLayer | None = None
        self._http1 = True
        self._settled = True  # as the shelf knows it
        self._heard = 0.0  # when something came the last time
        self._streamed = -math.inf  # when a stream over HTTP/1.1 ended
        self._resting: asyncio.TimerHandle | None = None
        self._readers = 0  # exchanges that somebody reads
        self._writing: list[tuple[Exchange, Clock]] = []  # requests that have not gone out whole

    # --- What the shelf asks --------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self.socket.closed

    @property
    def room(self) -> int:
        """How many more exchanges may start now; over HTTP/1.1 none before the reader of the last one has left."""
        if self.socket.closed or self._resting is not None or (self._readers and self._http1):
            return 0
        return self.protocol.room

    @property
    def settled(self) -> bool:
        """Whether the server has said how many exchanges it takes."""
        return self.protocol.settled

    @property
    def streams(self) -> int:
        """How many exchanges it takes in all."""
        return self.protocol.limit

    @property
    def idle(self) -> bool:
        """Whether nobody reads from it."""
        return self._readers == 0

    @property
    def resting(self) -> bool:
        """Whether it is not used yet after a stream, to see whether the server closes it."""
        return self._resting is not None

    # --- Opening and closing --------------------------------------------------------------------------------------

    async def open(self, steps: Opening) -> None:
        """Run the opening: proxy, TLS, protocol."""
        received: deque[bytes] = deque()
        arrived = asyncio.Event()

        def take(data: bytes) -> None:
            received.append(data)
            arrived.set()

        self.socket.on_data, self.socket.on_end, self.socket.on_drain = take, lambda _: take(b""), lambda: None
        self.socket.listen()
        try:
            self.socket.write(next(steps))
            while True:
                while not received:
                    arrived.clear()
                    await arrived.wait()
                self.socket.write(steps.send(received.popleft()))
        except RefusedError as refusal:
            self.socket.write(refusal.alert)
            raise
        except StopIteration as done:
            opened = done.value
        self._tls, self.protocol = opened.tls, opened.protocol
        self._settled = self.protocol.settled
        self._http1 = isinstance(self.protocol, Http1)
        self.socket.on_data, self.socket.on_end, self.socket.on_drain = self._received, self._ended, self._check_written
        self.socket.write(opened.outgoing)
        self._received(opened.received)  # with b"" TLS gives what came along with the end of its handshake
        for data in received:
            self._received(data) if data else self._ended("")

    def close(self) -> None:
        """Close now; what was under way ends with a fault."""
        if not self.socket.closed:
            self.socket.on_end(_BY_US)
            self.socket.close()

    def _ended(self, words: str) -> None:
        """Take the end of the connection."""
        self.socket.close()
        if words is not _BY_US and time.monotonic() - self._streamed < SOON:
            self._pool.shelf.learn(self.origin, stays=False)
        if self._resting is not None:
            self._resting.cancel()
        if self._tls is not None and not self._tls.ended and not words:
            words = "closed without TLS's close_notify"  # anybody can cut TCP
        for exchange in self.protocol.lost(words):
            if exchange.waiter is not None:
                exchange.waiter.wake()
        self._pool.update(self)

    # --- Requests -------------------------------------------------------------------------------------------------

    def start(self, request: Request, alarm: Alarm) -> AsyncResponse:
        """Write a request."""
        exchange = self.protocol.start(request, whole=request.whole)
        exchange.waiter = alarm
        self._readers += 1
        clock = alarm.clock
        clock.sent = self._write(self.protocol.outgoing())
        if not clock.sent:
            self.socket.drain()  # a GOAWAY may say which of the others were processed
            if not self.socket.closed:
                self._ended("closed")
        elif exchange.unsent is None and not self.socket.backlog:
            clock.waiting()
        else:
            clock.writing()
            self._writing.append((exchange, clock))
        self._pool.shelf.taken(self)
        return AsyncResponse(self._pool, self, exchange, alarm, request.origin[1])

    def take(self, exchange: Exchange) -> bytes:
        """Return the body that has come since, and let more come."""
        data = self.protocol.take(exchange)
        credit = self.protocol.outgoing()
        if credit:
            self._write(credit)
        return data

    def leave(self, exchange: Exchange, *, stop: bool) -> None:
        """End an exchange that nobody reads any more; ``stop``: also at the server."""
        exchange.waiter = None
        self._readers -= 1
        if self.socket.closed:
            return
        (self.protocol.stop if stop else self.protocol.finish)(exchange)
        if self._http1 and not (exchange.whole or stop):
            self._rest()
        self._tidy(self.protocol.outgoing())
        if not self.socket.closed:
            self._pool.returned(self)

    def _rest(self) -> None:
        """Wait a moment after a stream where the server may close the connection in spite of its promise."""
        stays = self._pool.shelf.stays(self.origin)
        if stays is False:
            return self.close()
        self._streamed = time.monotonic()
        if stays is None:
            self._resting = self._pool.loop.call_later(REST, self._rested)

    def _rested(self) -> None:
        self._resting = None
        self._pool.shelf.learn(self.origin, stays=True)
        self._pool.returned(self)

    def suspect(self, since: float) -> None:
        """Start nothing more here if nothing at all came for half of a wait: the other side may be gone without a word."""
        if self._heard < (since + time.monotonic()) / 2:
            self.protocol.retired = True
            self._pool.update(self)

    # --- Reading and writing --------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        tls = self._tls
        if tls is not None:
            try:
                data = tls.decrypt(data)
            except ssl.SSLError as error:
                return self._ended(reason_of(error))
        protocol = self.protocol
        room = protocol.room
        for exchange in protocol.receive(data):
            if exchange.waiter is not None:
                exchange.waiter.wake()
        out = protocol.outgoing()
        if out or tls is not None or self._writing or protocol.retired:
            self._tidy(out)
        if tls is not None and tls.ended and not self.socket.closed:
            self._ended("")
        elif protocol.room != room or protocol.settled is not self._settled:
            self._settled = protocol.settled
            self._pool.update(self)

    def _tidy(self, out: bytes) -> None:
        """Write what the protocol, or TLS, has to say, and close where it wants that."""
        protocol = self.protocol
        self._write(out)
        if self._writing:
            self._check_written()
        if protocol.closing or (protocol.retired and not protocol.busy):
            self.close()

    def _write(self, data: bytes) -> bool:
        """Write what has to go out; False where the peer takes nothing any more."""
        if self._tls is not None:
            data = self._tls.encrypt(data) if data else self._tls.outgoing()
        return not data or self.socket.write(data)

    def _check_written(self) -> None:
        """Start the wait for the answer of requests that have gone out whole."""
        if self.socket.backlog:
            return
        for exchange, clock in self._writing:
            # Of one that is over the clock may be at something else by now.
            if exchange.unsent is None and exchange.fault is None and not exchange.ended:
                clock.waiting()
        self._writing = [entry for entry in self._writing if entry[0].unsent is not None]


class AsyncResponse:
    """The answer to one attempt: head and body as it comes.

    It is open until one of these, and after that each of them does nothing: the message's end is read (``aread``); it is given
    up (``close``, from anywhere; ``aclose``, from its reader); its text is over but the message's end is still to come
    (``finish``).
    """

    __slots__ = ("_alarm", "_connection", "_exchange", "_host", "_open", "_pool", "headers", "http_version", "status")

    def __init__(self, pool: LoopPool, connection: AsyncConnection, exchange: Exchange, alarm: Alarm, host: str) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.http_version = ""
        self._pool = pool
        self._connection = connection
        self._exchange = exchange
        self._alarm = alarm
        self._host = host
        self._open = True

    async def head(self) -> None:
        """Wait for the head, or where the answer is wanted whole, for its end."""
        exchange, alarm = self._exchange, self._alarm
        while exchange.waits():
            if exchange.fault is not None:
                alarm.clock.answering = exchange.status > 0
                raise exchange.fault
            if alarm.clock.over():
                raise self._late()
            await alarm.waiting()
        alarm.clock.answering = True
        self.status, self.headers = exchange.status, joined(exchange.headers)
        self.http_version = self._connection.protocol.version

    async def aread(self) -> bytes:
        """Return what has come since the last read, b"" at the end of the message."""
        exchange, alarm = self._exchange, self._alarm
        if alarm.clock.over():
            error = self._late()
            self._leave(stop=True)
            raise error
        while not exchange.held:
            if exchange.ended:
                self._leave(stop=False)
                return b""
            if exchange.fault is not None or alarm.clock.over():
                raise self._broken()
            await alarm.waiting()
        return self._connection.take(exchange)

    def _broken(self) -> Exception:
        fault = self._exchange.fault
        error = self._late() if fault is None else error_of(fault, self._alarm.clock, self._host)
        self._leave(stop=True)
        return error

    def _late(self) -> LLMError:
        clock = self._alarm.clock
        if clock.reason is None:
            self._connection.suspect(clock.since)
        return clock.failure()

    def raw_headers(self) -> Headers:
        """Return the headers as they came, one by one."""
        return self._exchange.headers

    def close(self) -> None:
        """Give up what is left of the answer, from anywhere; the server is told in the loop's next iteration."""
        if self._open:
            self._open = False
            self._pool.ticker.remove(self._alarm)
            self._pool.drop(self)

    async def aclose(self) -> None:
        """Do what ``close`` does, here and now."""
        self._leave(stop=True)

    def finish(self) -> None:
        """Give the connection back after the last byte that was wanted; the message's own end may still be on its way."""
        self._leave(stop=False)

    def stop(self) -> None:
        """Tell the server that nobody reads any more; in the loop's thread."""
        self._connection.leave(self._exchange, stop=True)

    def _leave(self, *, stop: bool) -> None:
        if self._open:
            self._open = False
            self._pool.ticker.remove(self._alarm)
            self._connection.leave(self._exchange, stop=stop)
