"""A server for tests that breaks any rule at any moment, and keeps a record of all that it is sent.

Rules of this file:

* One background thread runs one asyncio selector loop, and everything belongs to it. A test's threads read the records, which
  change under one condition (``server.wait_for``), and have something done by ``server.do``.
* ``async def script(connection)`` runs once for each accepted connection; ``serving(handler)`` makes one that runs
  ``async def handler(answer)`` for each request, at once over HTTP/2. What they raise is raised again on leaving ``with``,
  but :class:`GoneError` ends them without a word: the client has hung up. A script that returns leaves the connection open.
* An :class:`Answer` is one face for both protocols. Whatever only one of them has is a method of the connection.
* By itself the server only sends its SETTINGS (``settings=None``: not even those), acknowledges SETTINGS and PING, and credits
  request bodies. Nothing checks what a script sends: flow control is kept by ``answer.body_of`` alone.
* What the client sends is held against RFC 9112 and 9113: a breach is raised on leaving ``with`` as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import hpack
from h2.errors import ErrorCodes as Code
from h2.settings import SettingCodes

from jazz_llm.testing import Authority

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
FRAME = 16384  # bytes: the largest payload, since neither side asks for more

Type = IntEnum("Type", "DATA HEADERS PRIORITY RST_STREAM SETTINGS PUSH_PROMISE PING GOAWAY WINDOW_UPDATE CONTINUATION", start=0)
_SENT_BY_CLIENTS = set(Type) - {Type.PUSH_PROMISE}
_SIZES = {Type.PRIORITY: 5, Type.RST_STREAM: 4, Type.PING: 8, Type.WINDOW_UPDATE: 4}
_OF_CONNECTION = {Type.SETTINGS, Type.PING, Type.GOAWAY}
Fields = Iterable[tuple[str, str]]


class GoneError(Exception):
    """The client has hung up."""


class BreachError(Exception):
    """The client did what its protocol forbids."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that the client sent; ``at`` is ``time.monotonic()``."""

    type: int
    flags: int
    stream: int
    payload: bytes = field(repr=False)
    at: float
    connection: int

    @property
    def code(self) -> int | None:
        """The error code of RST_STREAM and GOAWAY."""
        where = {Type.RST_STREAM: 0, Type.GOAWAY: 4}.get(self.type)
        return None if where is None else int.from_bytes(self.payload[where : where + 4], "big")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def event(text: str | None = None, finish: str | None = None) -> bytes:
    """Make a server-sent event of one chunk."""
    delta = {} if text is None else {"content": text}
    chunk = {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def completion(text: str = "Hello") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "x", "model": "m", "choices": [choice]}).encode()


DONE = b"data: [DONE]\n\n"
FINISH = event(finish="stop") + DONE


@dataclass(slots=True, eq=False)
class Answer:
    """A request, read whole, and the way to answer it; ``left_at`` and ``code`` tell how the client gave it up."""

    connection: Any
    stream: int  # over HTTP/1.1: which request of its connection, from 1
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)
    at: float
    left_at: float | None = None
    code: int | None = None
    over: bool = False
    chunked: bool = False

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def streams(self) -> bool:
        return bool(self.json().get("stream"))

    def head(self, status: int = 200, fields: Fields | None = None, *, chunked: bool = True, end: bool = False) -> None:
        """Send status and headers; over HTTP/1.1 they say ``chunked``, or else what ``fields`` say of the length."""
        if fields is None:
            fields = [("content-type", "text/event-stream" if self.streams else "application/json")]
        self.chunked = chunked
        self.connection.send_head(self, status, list(fields), end=end)
        self.connection.settle(self, over=end)

    def send(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the body, at once."""
        self.connection.send_piece(self, data, end=end)
        self.connection.settle(self, over=end)

    def text(self, text: str) -> None:
        self.send(event(text))

    def end(self) -> None:
        """Send the end of the message and nothing else."""
        self.send(b"", end=True)

    def part(self, *, chunked: bool = True) -> None:
        """Send the head and the first half of an answer that says "Hello", of the kind that was asked for."""
        self.head(chunked=chunked)
        self.send(event("Hel") if self.streams else completion()[:-40])

    def rest(self, *, end: bool = True) -> None:
        """Send what ``part`` left."""
        self.send(event("lo") + FINISH if self.streams else completion()[-40:], end=end)

    def good(self) -> None:
        self.part()
        self.rest()

    def reset(self, code: int = Code.INTERNAL_ERROR) -> None:
        """Send RST_STREAM; over HTTP/1.1 a TCP reset."""
        self.connection.send_reset(self, code)
        self.connection.settle(self, over=True)

    async def body_of(self, data: bytes, *, end: bool = False) -> None:
        """Send ``data`` as flow control and the socket allow, frame by frame."""
        for start in range(0, len(data), FRAME):
            piece = data[start : start + FRAME]
            await self.connection.room(self, len(piece))
            self.send(piece)
        if end:
            self.end()

    async def left(self) -> None:
        """Wait until the client has given this request up."""
        while self.left_at is None:
            await self.connection.change()


class Connection(asyncio.Protocol):
    """One accepted connection: its socket, and who waits for something on it."""

    def __init__(self, server: FrameServer) -> None:
        self.server = server
        self.answers: dict[int, Answer] = {}
        self.frames: list[Frame] = []
        self.lost_at: float | None = None  # when the client hung up
        self.closed = False  # by a script
        self.live = self.peak = 0  # requests under way, and the most of them at once
        self._asked: deque[Answer] = deque()
        self._waiters: list[asyncio.Future[None]] = []
        self._buffer = bytearray()
        self._paused = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.sock = transport.get_extra_info("socket")
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.note(self.server.connections.append, self)
        self.number = len(self.server.connections)
        self.opened()
        self.task(self.server.script(self))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            self.read()
        except BreachError as breach:
            self.server.note(self.server.errors.append, breach)
            self.transport.abort()
        self.wake()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, _: Exception | None) -> None:
        if self.lost_at is None:
            self.lost_at = time.monotonic()
            for answer in self.answers.values():
                self.settle(answer, over=True, left=not self.closed)
            self.server.note()
            self.wake()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.wake()

    # --- sending and closing

    def raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        if self.lost_at is not None:
            raise GoneError
        self.transport.write(data)

    def fin(self) -> None:
        """Close as a well-behaved server does: close_notify where there is TLS, then FIN."""
        if self.transport.get_extra_info("ssl_object") is not None:
            self.transport.close()
        self.cut()

    def cut(self) -> None:
        """Send FIN, and over TLS no close_notify before it."""
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def tcp_reset(self) -> None:
        self.closed = True
        if self.lost_at is None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
            self.transport.abort()

    # --- waiting

    def task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the script."""
        return self.server.spawn(work)

    def wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self) -> None:
        """Wait for anything to happen here."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    async def _found(self, look: Callable[[], Any]) -> Any:
        while not (found := look()):
            if self.lost_at is not None:
                raise GoneError
            await self.change()
        return found

    async def request(self) -> Answer:
        """Return the next request."""
        return await self._found(lambda: self._asked and self._asked.popleft())

    async def until(self, predicate: Callable[[Frame], bool]) -> Frame:
        """Wait for a frame on this connection; one that has come already counts."""
        return await self._found(lambda: next(filter(predicate, self.frames), None))

    async def gone(self) -> None:
        """Wait until the client has hung up."""
        while self.lost_at is None:
            await self.change()

    async def drained(self) -> None:
        """Wait until what was written is in the socket; raise GoneError where the client has hung up."""
        await asyncio.sleep(0)
        await self._found(lambda: not self._paused and self.lost_at is None)

    async def room(self, answer: Answer, size: int) -> None:
        """Wait until ``size`` bytes may be sent."""
        await self.drained()

    # --- requests

    def opened(self) -> None:
        """Begin."""

    def need(self, holds: object, words: str) -> None:
        if not holds:
            raise BreachError(words)

    def ask(self, stream: int, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        answer = Answer(self, stream, method, path, headers, body, time.monotonic())
        self.answers[stream] = answer
        self.live += 1
        self.peak = max(self.peak, self.live)
        self._asked.append(answer)
        self.server.note(self.server.requests.append, answer)

    def settle(self, answer: Answer, *, over: bool, left: bool = False, code: int | None = None) -> None:
        """Take note of the end of an answer; ``left``: the client gave it up."""
        if over and not answer.over:
            answer.over = True
            self.live -= 1
            if left:
                answer.left_at, answer.code = time.monotonic(), code
            self.server.note()


class Http1(Connection):
    """HTTP/1.1: requests with a content-length, one after the other."""

    def read(self) -> None:
        while b"\r\n\r\n" in self._buffer:
            head, _, body = bytes(self._buffer).partition(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            self.need(re.fullmatch(r"[A-Z]+ /\S* HTTP/1\.1", line) and "host" in headers, f"not a request: {line!r}")
            self.need(not self.live and "\n" not in "".join(lines), f"a torn or pipelined request: {head!r}")
            length = int(headers.get("content-length", 0))
            if len(body) < length:
                return
            self._buffer = bytearray(body[length:])
            method, path, _ = line.split(" ")
            self.ask(len(self.answers) + 1, method, path, headers, body[:length])

    def send_head(self, answer: Answer, status: int, fields: list[tuple[str, str]], *, end: bool) -> None:
        extra = [("content-length", "0")] if end else [("transfer-encoding", "chunked")] if answer.chunked else []
        lines = [f"HTTP/1.1 {status} OK", *(f"{name}: {value}" for name, value in (*fields, *extra))]
        self.raw("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def send_piece(self, answer: Answer, data: bytes, *, end: bool) -> None:
        if answer.chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if end else b"")
        self.raw(data)

    def send_reset(self, answer: Answer, code: int) -> None:
        self.tcp_reset()


class Http2(Connection):
    """HTTP/2, over TLS or by prior knowledge."""

    def opened(self) -> None:
        self.theirs: dict[int, int] = {}  # the client's settings
        self.granted: defaultdict[int, int] = defaultdict(int)  # bytes that WINDOW_UPDATE added, per stream; 0: connection
        self.used: defaultdict[int, int] = defaultdict(int)  # bytes sent
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._greeted = False
        self._open: dict[int, tuple[bytearray, bytearray]] = {}  # head block and body of requests that have not ended
        self._last = 0
        self._block: tuple[int, bool] | None = None  # the header block under way: its stream, and whether that ends with it
        self._credit: defaultdict[int, int] = defaultdict(lambda: 65535)  # bytes the client may send
        self._resets: set[int] = set()
        self._limit = 2**31  # MAX_CONCURRENT_STREAMS as the client has acknowledged it
        self._told: deque[int] = deque()
        self._due: list[bytes] | None = []  # what must not be sent before the first SETTINGS
        if self.server.settings is not None:
            self.settings(**self.server.settings)

    # --- what a script sends

    def send(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        """Send any frame."""
        self.raw(frame(kind, flags, stream, payload))

    def block(self, fields: Fields) -> bytes:
        return self._encoder.encode(list(fields), huffman=False)

    def headers(self, stream: int, status: int, fields: Fields = (), *, end: bool = False) -> None:
        flags = END_HEADERS | (END_STREAM if end else 0)
        self.send(Type.HEADERS, flags, stream, self.block([(":status", str(status)), *fields]))

    def data(self, stream: int, data: bytes = b"", *, end: bool = False) -> None:
        for window in (0, stream):
            self.used[window] += len(data)
        self.send(Type.DATA, END_STREAM if end else 0, stream, data)

    def rst(self, stream: int, code: int) -> None:
        self.send(Type.RST_STREAM, 0, stream, struct.pack(">I", code))

    def goaway(self, last: int, code: int = Code.NO_ERROR, words: bytes = b"") -> None:
        self.send(Type.GOAWAY, 0, 0, struct.pack(">II", last, code) + words)

    def settings(self, **values: int) -> None:
        self._told.append(values.get("max_concurrent_streams", -1))
        pairs = (struct.pack(">HI", SettingCodes[name.upper()], value) for name, value in values.items())
        due, self._due = self._due or [], None
        self.raw(frame(Type.SETTINGS, 0, 0, b"".join(pairs)) + b"".join(due))

    def window_update(self, stream: int, size: int) -> None:
        self.send(Type.WINDOW_UPDATE, 0, stream, struct.pack(">I", size))

    def credit(self, size: int, *windows: int) -> None:
        """Let the client send more: on streams and (0) on the connection."""
        for window in windows:
            self._credit[window] += size
            self._reply(frame(Type.WINDOW_UPDATE, 0, window, struct.pack(">I", size)))

    def send_head(self, answer: Answer, status: int, fields: list[tuple[str, str]], *, end: bool) -> None:
        self.headers(answer.stream, status, fields, end=end)

    def send_piece(self, answer: Answer, data: bytes, *, end: bool) -> None:
        starts = range(0, max(len(data), 1), FRAME)
        for start in starts:
            self.data(answer.stream, data[start : start + FRAME], end=end and start == starts[-1])

    def send_reset(self, answer: Answer, code: int) -> None:
        self.rst(answer.stream, code)

    def allowed(self, stream: int) -> int:
        """Return how many bytes the client has allowed so far, on a stream or (0) on the connection."""
        initial = self.theirs.get(SettingCodes.INITIAL_WINDOW_SIZE, 65535) if stream else 65535
        return initial + self.granted[stream]

    async def room(self, answer: Answer, size: int) -> None:
        await self.drained()
        while any(self.allowed(window) - self.used[window] < size for window in (0, answer.stream)) and not answer.over:
            await self.change()
        if answer.over:
            raise GoneError

    # --- what the client sends

    def read(self) -> None:
        if not self._greeted:
            self.need(PREFACE.startswith(self._buffer[: len(PREFACE)]), "no preface")
            self._greeted = len(self._buffer) >= len(PREFACE)
            if not self._greeted:
                return
            del self._buffer[: len(PREFACE)]
        while len(self._buffer) >= 9 and len(self._buffer) >= (end := 9 + int.from_bytes(self._buffer[:3], "big")):
            kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
            one = Frame(kind, flags, stream, bytes(self._buffer[9:end]), time.monotonic(), self.number)
            del self._buffer[:end]
            self._take(one)

    def _take(self, one: Frame) -> None:
        self.need(len(one.payload) <= FRAME, f"too large: {one}")
        self.need(self.frames or one.type == Type.SETTINGS, f"not SETTINGS first: {one}")
        self.need(one.type in _SENT_BY_CLIENTS, f"not for a client to send: {one}")
        self.need(not self._block or (one.type, one.stream) == (Type.CONTINUATION, self._block[0]), f"in a header block: {one}")
        self.need(one.stream not in self._resets, f"after its RST_STREAM: {one}")
        self.need(_SIZES.get(one.type, len(one.payload)) == len(one.payload), f"malformed: {one}")
        self.need(one.type == Type.WINDOW_UPDATE or (one.stream == 0) == (one.type in _OF_CONNECTION), f"a wrong stream: {one}")
        self.frames.append(one)
        self.server.note(self.server.frames.append, one)
        getattr(self, f"_take_{Type(one.type).name.lower()}", bool)(one)

    def _reply(self, data: bytes) -> None:
        if self._due is not None:
            self._due.append(data)
        elif self.lost_at is None and not self.closed:
            self.raw(data)

    def _take_settings(self, one: Frame) -> None:
        self.need(len(one.payload) % 6 == 0, f"malformed: {one}")
        if one.flags & ACK:
            limit = self._told.popleft() if self._told else -1
            self._limit = self._limit if limit < 0 else limit
            return
        self.theirs.update(struct.iter_unpack(">HI", one.payload))
        self._reply(frame(Type.SETTINGS, ACK))

    def _take_ping(self, one: Frame) -> None:
        if not one.flags & ACK:
            self._reply(frame(Type.PING, ACK, 0, one.payload))

    def _take_headers(self, one: Frame) -> None:
        self.need(one.stream % 2 == 1 and one.stream > self._last, f"streams are odd and go up: {one}")
        self._last = one.stream
        live = len(self._open) + self.live + 1
        self.need(live <= self._limit, f"{live} streams where {self._limit} are allowed: {one}")
        self._open[one.stream] = (bytearray(one.payload[5 if one.flags & 0x20 else 0 :]), bytearray())
        self._end_of_block(one, ends=bool(one.flags & END_STREAM))

    def _take_continuation(self, one: Frame) -> None:
        self.need(self._block, f"without HEADERS: {one}")
        assert self._block is not None
        self._open[one.stream][0].extend(one.payload)
        self._end_of_block(one, ends=self._block[1])

    def _end_of_block(self, one: Frame, *, ends: bool) -> None:
        self._block = None if one.flags & END_HEADERS else (one.stream, ends)
        if self._block is None and ends:
            self._ask(one.stream)

    def _take_data(self, one: Frame) -> None:
        self.need(one.stream in self._open, f"not an open stream: {one}")
        for window in (0, one.stream):
            self._credit[window] -= len(one.payload)
            self.need(self._credit[window] >= 0, f"beyond the window: {one}")
        self._open[one.stream][1].extend(one.payload)
        if one.flags & END_STREAM:
            self._ask(one.stream)
        if one.payload and self.server.credits_bodies:
            self.credit(len(one.payload), *((0, one.stream) if one.stream in self._open else (0,)))

    def _ask(self, stream: int) -> None:
        block, body = self._open.pop(stream)
        headers = {str(name): str(value) for name, value in self._decoder.decode(bytes(block))}
        names = list(headers)
        self.need({":method", ":scheme", ":authority", ":path"} == set(names[:4]), f"pseudo-headers come first: {names}")
        self.need(all(name == name.lower() and (name[0] != ":" or name in names[:4]) for name in names), f"bad names: {names}")
        self.need(not {"connection", "keep-alive", "transfer-encoding", "upgrade", "host"} & set(names), f"HTTP/1.1's: {names}")
        self.ask(stream, headers[":method"], headers[":path"], headers, bytes(body))

    def _take_rst_stream(self, one: Frame) -> None:
        self.need(one.stream <= self._last, f"not begun: {one}")
        self._resets.add(one.stream)
        self._open.pop(one.stream, None)
        if one.stream in self.answers:
            self.settle(self.answers[one.stream], over=True, left=True, code=one.code)

    def _take_window_update(self, one: Frame) -> None:
        size = int.from_bytes(one.payload, "big")
        self.need(0 < size < 2**31 and one.stream <= self._last, f"malformed: {one}")
        self.granted[one.stream] += size
        self.need(self.allowed(one.stream) - self.used[one.stream] < 2**31, f"a window too large: {one}")


def serving(handler: Callable[[Answer], Coroutine[Any, Any, None]]) -> Callable[[Any], Awaitable[None]]:
    """Make a script that runs ``handler`` for each request."""

    async def script(connection: Any) -> None:
        while True:
            connection.task(handler(await connection.request()))

    return script


async def _good(answer: Answer) -> None:
    answer.good()


class FrameServer:
    """Run ``script`` for each connection while ``with`` lasts; see the top of this file.

    ``tls``: the authority to sign for; ``alpn``: what is offered in it, ``("h2",)`` or ``("http/1.1",)`` where None.
    ``listener``: a socket that listens already.
    """

    def __init__(
        self,
        script: Callable[[Any], Awaitable[None]] | None = None,
        *,
        tls: Authority | None = None,
        http2: bool = True,
        alpn: tuple[str, ...] | None = None,
        settings: Mapping[str, int] | None = {},
        credits_bodies: bool = True,
        listener: socket.socket | None = None,
    ) -> None:
        self.script: Any = script or serving(_good)
        self.settings, self.credits_bodies = settings, credits_bodies
        self.requests: list[Answer] = []
        self.frames: list[Frame] = []
        self.connections: list[Any] = []
        self.errors: list[BaseException] = []
        self._http2 = http2
        self._context = None if tls is None else _context(tls, alpn if alpn is not None else ("h2",) if http2 else ("http/1.1",))
        self._listener = listener or socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._changed = threading.Condition()

    @property
    def open(self) -> int:
        """Count the connections that the client holds open."""
        return sum(connection.lost_at is None for connection in self.connections)

    @property
    def live(self) -> int:
        """Count the requests that are neither answered nor given up."""
        return sum(connection.live for connection in self.connections)

    def wait_for(self, predicate: Callable[[FrameServer], Any], timeout: float = 5.0) -> None:
        """Block until ``predicate(server)`` holds; else ``TimeoutError``."""
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(f"not within {timeout} s: {self!r}")

    def do(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call something in the server's loop; return what it returns."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(call(*arguments))
            except BaseException as error:
                done.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return done.result(5)

    def note(self, change: Callable[[Any], object] = bool, item: Any = None) -> None:
        """Make one change that ``wait_for`` may be waiting for, or tell of one."""
        with self._changed:
            change(item)
            self._changed.notify_all()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, GoneError):
            self.note(self.errors.append, error)

    def __repr__(self) -> str:
        counts = f"{self.open} of {len(self.connections)} connections, {self.live} of {len(self.requests)} requests"
        return f"<FrameServer {self.url} {counts}, frames={self.frames[-20:]}, errors={self.errors}>"

    def __enter__(self) -> FrameServer:
        self.loop = asyncio.SelectorEventLoop()
        self.loop.set_exception_handler(lambda _, told: self.errors.append(told.get("exception") or RuntimeError(told["message"])))
        self._leaving = self.loop.create_future()
        self._thread = threading.Thread(target=self._run, name="FrameServer", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.loop.call_soon_threadsafe(self._leaving.set_result, None)
        self._thread.join(10)
        assert not self._thread.is_alive(), f"a script did not stop: {self!r}"
        if self.errors and (error is None or isinstance(error, Exception)):
            raise self.errors[0] if len(self.errors) == 1 else BaseExceptionGroup("in the server", self.errors)

    def _run(self) -> None:
        with asyncio.Runner(debug=False, loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        factory = Http2 if self._http2 else Http1
        server = await self.loop.create_server(
            lambda: factory(self), sock=self._listener, ssl=self._context, ssl_shutdown_timeout=1.0 if self._context else None, backlog=1024
        )
        await self._leaving
        # asyncio accepts in tasks, and one that is cancelled before it began loses its socket.
        await asyncio.sleep(0)
        server.close()
        await asyncio.sleep(0)
        while (tasks := asyncio.all_tasks() - {asyncio.current_task()}) or self.open:
            for task in tasks:
                task.cancel()
            for connection in self.connections:
                connection.transport.abort()
            await asyncio.sleep(0.001)


@functools.cache
def _context(authority: Authority, alpn: tuple[str, ...]) -> ssl.SSLContext:
    return authority.server_context(alpn)
