"""Sockets of one event loop: made by Happy Eyeballs, read and written by its readiness calls, closed in any state of it.

Own sockets rather than asyncio's transports: these can be closed without a word when their loop is stopped or closed, cost the
same, and a write happens at once or is kept here, so that no cancellation can tear it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from itertools import chain, zip_longest

from . import READ_SIZE
from .exchange import ConnectError
from .names import Address, resolve

# RFC 8305, section 5: "Connection Attempt Delay", its recommended value, seconds.
ATTEMPT_DELAY = 0.25
# A loop that does not tell readiness (Windows' proactor) is asked again after so many seconds whether a full socket takes more.
WRITE_AGAIN = 0.005
_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EWOULDBLOCK)})


class LoopSocket:
    """A connected socket: ``on_data`` gets what each read brings, ``on_end`` once the reason ("" for a clean end).

    ``on_drain`` is called when what the socket did not take at once has gone out.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._unsent = bytearray()
        self._refuses = False  # the peer takes nothing more; what it has sent is still worth reading
        self._reader: asyncio.Task[None] | None = None
        self.closed = False
        self.on_data: Callable[[bytes], None]
        self.on_end: Callable[[str], None]
        self.on_drain: Callable[[], None]

    @property
    def backlog(self) -> int:
        """Return how many bytes the socket has not taken yet."""
        return len(self._unsent)

    def listen(self) -> None:
        """Begin to read."""
        try:
            self._loop.add_reader(self._sock.fileno(), self.read)
        except NotImplementedError:
            self._reader = self._loop.create_task(self._read_by_completion())

    def read(self) -> bool:
        """Read what is there, once; return whether anything was."""
        if self.closed:
            return False
        try:
            data = self._sock.recv(READ_SIZE)  # as cheap as recv_into a shared buffer and a copy of what came
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.on_end(error.strerror or str(error))
            return False
        if data:
            self.on_data(data)
        else:
            self.on_end("")
        return bool(data)

    def drain(self) -> None:
        """Read all that has come, where the peer takes nothing more."""
        while self.read():
            pass

    def write(self, data: bytes) -> bool:
        """Send, or keep what the socket does not take now; False where the peer takes nothing any more."""
        if self.closed or self._refuses:
            return False
        if self._unsent:
            self._unsent += data
            return True
        sent = self._send(data)
        if sent < len(data) and not self._refuses:
            self._unsent += memoryview(data)[sent:]
            self._wait_to_write()
        return not self._refuses

    def close(self) -> None:
        """Close now: in the loop's thread, or when it does not run."""
        if self.closed:
            return
        self.closed = True
        descriptor = self._sock.fileno()
        with contextlib.suppress(RuntimeError, NotImplementedError):  # a closed loop; one that tells no readiness
            self._loop.remove_reader(descriptor)
            if self._unsent:
                self._loop.remove_writer(descriptor)
        if self._reader is not None:
            self._reader.cancel()
        self._sock.close()

    def abandon(self) -> None:
        """Close the descriptor and touch nothing else: in a forked child the connection is the parent's, and so is the loop."""
        self.closed = True
        self._sock.close()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._refuses = True
            return 0

    def _wait_to_write(self) -> None:
        try:
            self._loop.add_writer(self._sock.fileno(), self._write_on)
        except NotImplementedError:
            self._loop.call_later(WRITE_AGAIN, self._write_on)

    def _write_on(self) -> None:
        if self.closed:
            return
        del self._unsent[: self._send(self._unsent)]
        if self._refuses:
            self._unsent.clear()
        if self._unsent:
            if self._reader is not None:
                self._wait_to_write()
            return
        with contextlib.suppress(NotImplementedError):
            self._loop.remove_writer(self._sock.fileno())
        self.on_drain()

    async def _read_by_completion(self) -> None:
        """Read where the loop completes operations and does not tell readiness: Windows' proactor."""
        while not self.closed:
            try:
                data = await self._loop.sock_recv(self._sock, READ_SIZE)
            except OSError as error:
                return self.on_end(error.strerror or str(error))
            if not data:
                return self.on_end("")
            self.on_data(data)


async def connect(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """Connect to the address of a host that answers first (RFC 8305); raise ConnectError."""
    try:
        addresses = interleaved(await asyncio.wrap_future(resolve(host, port)))
        if len(addresses) == 1:
            return await _attempt(loop, addresses[0])
        return await _race(loop, addresses)
    except (OSError, UnicodeError) as error:
        # asyncio puts words of its own in the place of the system's
        number = getattr(error, "errno", None)
        words = getattr(error, "strerror", None) if isinstance(error, socket.gaierror) else number and os.strerror(number)
        raise ConnectError(f"{words or error} (port {port})") from None


def interleaved(addresses: list[Address]) -> list[Address]:
    """Return the addresses with their families taking turns, the resolver's first one first (RFC 8305, section 4)."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [address for turn in zip_longest(*families.values()) for address in turn if address is not None]


async def _race(loop: asyncio.AbstractEventLoop, addresses: list[Address]) -> socket.socket:
    """Try one address after the other, each a little later or when those before it have failed; the first to connect wins."""
    pending: set[asyncio.Task[socket.socket]] = set()
    error: BaseException = OSError("the name has no address")
    won: list[socket.socket] = []
    try:
        for address in chain(addresses, [None]):
            if address is not None:
                pending.add(loop.create_task(_attempt(loop, address)))
            delay = None if address is None else ATTEMPT_DELAY
            while pending and not won:
                done, pending = await asyncio.wait(pending, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                won += [task.result() for task in done if task.exception() is None]
                error = next((e for task in done if (e := task.exception()) is not None), error)
                if address is not None:
                    break
            if won:
                return won.pop(0)
    finally:
        for task in pending:
            _give_up(task)
        for loser in won:
            loser.close()
    raise error


def _give_up(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancel() and not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _attempt(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    family, kind, protocol, _, name = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await _connected(loop, sock, name)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connected(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: object) -> None:
    """Do what ``loop.sock_connect`` does, but let the descriptor be closed at once where this is cancelled."""
    waiter = loop.create_future()
    descriptor = sock.fileno()
    try:
        loop.remove_writer(descriptor)
    except NotImplementedError:
        return await loop.sock_connect(sock, address)  # type: ignore[arg-type]  # whatever getaddrinfo returned
    code = sock.connect_ex(address)  # type: ignore[arg-type]
    if code in _UNDER_WAY:
        loop.add_writer(descriptor, _resolve, waiter)
        try:
            await waiter
        finally:
            with contextlib.suppress(RuntimeError):  # the loop was closed with this wait still on it
                loop.remove_writer(descriptor)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
