"""A real HTTP server on the loopback for tests: scripted answers, scripted faults, and a log of what it was asked.

Rules of this file:

* One background thread runs one event loop. Sockets and protocol state belong to it; the test's threads only read the
  logs, which change under one condition (:meth:`FakeServer.wait_for`).
* A request is one task that runs the handler. What the handler raises is never lost: ``with`` raises it again.
* :class:`_Connection` knows the socket, :class:`_Http1` and :class:`_Http2` know the protocol, a :class:`Reply` is one
  answer of either.
* HTTP/2 is the ``h2`` package, so the log of frames is what its events tell, and no frame can be sent that its state machine
  forbids but by ``raw``. The tests of our own transport have a server of single frames: ``tests/frame_server.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import h11
import httpx
import orjson
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame
from typing_extensions import override

from . import replies, script
from .authority import Authority

T = TypeVar("T")

#: How an HTTP/2 connection without ALPN begins (RFC 9113, 3.4).
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: Seconds that leaving ``with`` waits for a handler which does not stop when cancelled.
_PATIENCE = 10.0

#: Seconds that a closed connection waits for the client to close as well (over TLS, asyncio would wait for 30).
_LINGER = 1.0

_TOKENS = ("Hello", ", ", "world", "!")

#: The frames that h2 tells of, by its names for them.
_FRAMES: dict[type[Event], str] = {
    RemoteSettingsChanged: "SETTINGS",
    WindowUpdated: "WINDOW_UPDATE",
    StreamReset: "RST_STREAM",
    ConnectionTerminated: "GOAWAY",
}


class ClientStopped(Exception):  # noqa: N818 - it is how a handler is told, and no error
    """Tell a handler, by whatever it sends next, that nothing can reach the client any more; no error if it escapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, read to its end."""

    method: str
    path: str  # without the query
    query: str
    headers: httpx.Headers
    body: bytes
    http_version: Literal["HTTP/1.1", "HTTP/2"]
    connection: int  # 1 is the first connection the server accepted
    stream_id: int  # on HTTP/1.1: which request of its connection, from 1

    def json(self) -> Any:
        """Parse the body; ``ValueError`` where it is not JSON."""
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One HTTP/2 frame that the client sent; ``stream_id`` 0 is the connection."""

    type: str
    connection: int
    stream_id: int = 0
    error_code: int | None = None


def sse_chunk(delta: str | Mapping[str, Any], finish: str | None = None) -> bytes:
    """Make the server-sent event of one ``chat.completion.chunk``; a ``str`` is short for ``{"content": ...}``."""
    return replies.event(replies.chunk({"content": delta} if isinstance(delta, str) else delta, finish))


class Reply(ABC):
    """One answer: ``start``, any number of ``send``, ``end``; or one of the conveniences; or a fault at any moment.

    A handler ends its reply or breaks it: returning with neither is an error. Sending to a client that has gone raises
    :class:`ClientStopped`.
    """

    def __init__(self, connection: _Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._changed = asyncio.Event()
        self._stopped = False
        self._ended = False
        self._broken = False

    @abstractmethod
    async def start(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send status and headers; over HTTP/1.1 the body is chunked unless they name a ``content-length``."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send a piece of the body, waiting while flow control or a full socket asks to; other streams go on."""

    @abstractmethod
    async def end(self) -> None:
        """Send the end of the message."""

    @abstractmethod
    def reset(self, error_code: int = ErrorCodes.INTERNAL_ERROR) -> None:
        """Break off, if the client is still there: RST_STREAM, or over HTTP/1.1 a TCP reset, which knows no code."""

    @abstractmethod
    def goaway(self, last_stream_id: int, error_code: int = ErrorCodes.NO_ERROR) -> None:
        """Send GOAWAY and ignore streams above ``last_stream_id`` from now on; this reply may still go on."""

    def close(self, *, close_notify: bool = True) -> None:
        """Close the connection, after what was sent, with no end of message: FIN, over TLS after close_notify or without."""
        self._broken = True
        self._flush()
        self._connection.close(close_notify=close_notify)

    def raw(self, data: bytes) -> None:
        """Write bytes to the connection as they are; over HTTP/1.1 it is closed when the handler returns."""
        self._broken = True
        self._flush()
        self._connection.write(data)

    async def cancelled(self) -> None:
        """Wait until nothing can reach the client any more: RST_STREAM came, or the connection is lost or closed."""
        while not self._stopped:
            await self._change()

    async def json(self, obj: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer with ``obj`` as JSON; ``headers`` win over the usual ones."""
        body = orjson.dumps(obj)
        merged = httpx.Headers({"content-type": "application/json", "content-length": str(len(body))})
        merged.update(headers)
        await self.start(status, merged)
        await self.send(body)
        await self.end()

    async def text(
        self, text: str, *, usage: Mapping[str, Any] | None = replies.PLAIN_USAGE, finish: str | None = "stop"
    ) -> None:
        """Answer with a whole ``chat.completion`` that says ``text``; ``usage=None`` leaves usage out."""
        message = {"role": "assistant", "content": text}
        answer = replies.completion("chat.completion", [{"index": 0, "message": message, "finish_reason": finish}])
        await self.json(answer if usage is None else {**answer, "usage": usage})

    async def sse(
        self,
        deltas: Iterable[str | Mapping[str, Any]],
        *,
        usage: Mapping[str, Any] | None = replies.PLAIN_USAGE,
        delay: float = 0.0,
        done: bool = True,
        finish: str | None = "stop",
    ) -> None:
        """Answer with a stream of ``chat.completion.chunk``, ``delay`` seconds before each delta.

        ``usage=None``, ``done=False`` and ``finish=None`` each leave their part out; the message is ended all the same.
        """
        await self.start(200, {"content-type": "text/event-stream"})
        await self.send(sse_chunk({"role": "assistant", "content": ""}))
        for delta in deltas:
            await asyncio.sleep(delay)
            await self.send(sse_chunk(delta))
        if finish is not None:
            await self.send(sse_chunk({}, finish))
        if usage is not None:
            await self.send(replies.event({**replies.completion("chat.completion.chunk", []), "usage": usage}))
        if done:
            await self.send(replies.DONE)
        await self.end()

    @abstractmethod
    def _flush(self) -> None:
        """Write what the protocol still holds back."""

    def _check(self) -> None:
        if self._stopped:
            raise ClientStopped(f"the client stopped request {self._request.stream_id}")

    def _stop(self) -> None:
        self._stopped = True
        self._changed.set()

    async def _change(self) -> None:
        """Wait for the next wake-up. Callers look at their condition first: nothing runs between that and the clear."""
        self._changed.clear()
        await self._changed.wait()

    def _leave(self) -> None:
        """Take note that the handler has returned."""
        if not (self._ended or self._broken or self._stopped):
            raise RuntimeError(f"the handler of {self._request.path} returned without ending its reply")

    def _abandon(self) -> None:
        """Let the client know at once that the handler has failed."""
        if not self._ended:
            with contextlib.suppress(ProtocolError):  # the handler may have reset it already
                self.reset()

    def _forget(self) -> None:
        self._connection.replies.pop(self._request.stream_id, None)


class _Http1Reply(Reply):
    def __init__(self, connection: _Connection, request: Request, http1: _Http1) -> None:
        super().__init__(connection, request)
        self._http1 = http1

    async def start(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        await self._write(h11.Response(status_code=status, headers=httpx.Headers(headers).raw))

    async def send(self, data: bytes) -> None:
        await self._write(h11.Data(data=data))
        await asyncio.sleep(0)  # a handler that only sends would never let the loop see its client go

    async def end(self) -> None:
        await self._write(h11.EndOfMessage())
        self._ended = True
        self._http1.next_request()

    async def _write(self, event: h11.Event) -> None:
        self._check()
        self._connection.write(self._http1.protocol.send(event) or b"")
        while self._connection.paused:
            await self._change()
            self._check()

    @override
    def reset(self, error_code: int = ErrorCodes.INTERNAL_ERROR) -> None:
        self._broken = True
        if not self._stopped:
            self._connection.reset()

    @override
    def goaway(self, last_stream_id: int, error_code: int = ErrorCodes.NO_ERROR) -> None:
        raise RuntimeError("HTTP/1.1 has no GOAWAY: ask over HTTP/2, as with FakeServer(tls=True).")

    def _flush(self) -> None:
        """Do nothing: every event is written at once."""

    def _leave(self) -> None:
        super()._leave()
        if not self._ended:
            self._connection.close()


class _Http1:
    """HTTP/1.1 on one connection: requests are answered one after the other, pipelined ones wait."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._count = 0
        self._head: h11.Request
        self._body = bytearray()
        self.protocol = h11.Connection(h11.SERVER)

    def receive(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        self._read()

    def _read(self) -> None:
        try:
            while (event := self.protocol.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                self._take(cast(h11.Event, event))
        except h11.RemoteProtocolError as error:
            self._connection.fail(error)

    def _take(self, event: h11.Event) -> None:
        if isinstance(event, h11.Request):
            self._head = event
            self._body.clear()
        elif isinstance(event, h11.Data):
            self._body += event.data
        elif isinstance(event, h11.EndOfMessage):
            self._ask()

    def _ask(self) -> None:
        self._count += 1
        path, _, query = self._head.target.decode("latin-1").partition("?")
        request = Request(
            method=self._head.method.decode("ascii"),
            path=path,
            query=query,
            headers=httpx.Headers(self._head.headers.raw_items()),
            body=bytes(self._body),
            http_version="HTTP/1.1",
            connection=self._connection.number,
            stream_id=self._count,
        )
        self._connection.ask(_Http1Reply(self._connection, request, self))

    def next_request(self) -> None:
        """Read on after an answer's end, or close where one side asked for that."""
        if self.protocol.our_state is h11.MUST_CLOSE:
            self._connection.close()
        else:
            self.protocol.start_next_cycle()
            self._read()


class _Http2Reply(Reply):
    def __init__(self, connection: _Connection, request: Request, http2: _Http2) -> None:
        super().__init__(connection, request)
        self._http2 = http2
        self._protocol = http2.protocol
        self._id = request.stream_id

    async def start(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._check()
        head = [(b":status", str(status).encode()), *httpx.Headers(headers).raw]
        self._protocol.send_headers(self._id, head)
        self._http2.flush_soon()

    async def send(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            room = await self._room()
            self._protocol.send_data(self._id, data[sent : sent + room])
            self._http2.flush_soon()
            sent += room
            await asyncio.sleep(0)  # after each frame the other streams have their turn

    async def _room(self) -> int:
        """Wait until something may be sent, and say how many bytes."""
        while True:
            self._check()
            window = self._protocol.local_flow_control_window(self._id)
            if window > 0 and not self._connection.paused:
                return min(window, self._protocol.max_outbound_frame_size)
            await self._change()

    async def end(self) -> None:
        self._check()
        self._protocol.end_stream(self._id)
        self._http2.flush_soon()
        self._ended = True

    def reset(self, error_code: int = ErrorCodes.INTERNAL_ERROR) -> None:
        self._broken = True
        if not self._stopped:
            self._protocol.reset_stream(self._id, error_code)
            self._flush()

    def goaway(self, last_stream_id: int, error_code: int = ErrorCodes.NO_ERROR) -> None:
        # Past h2, which takes a GOAWAY for the end of everything and would let no stream finish.
        self.raw(GoAwayFrame(0, last_stream_id=last_stream_id, error_code=error_code).serialize())
        self._http2.last_stream_id = last_stream_id

    def _flush(self) -> None:
        self._http2.flush()


class _Http2:
    """HTTP/2 on one connection."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._asked: dict[int, tuple[list[Any], bytearray]] = {}  # head and body of requests that have not ended
        self._flushing = False
        self.last_stream_id = 2**31 - 1
        self.protocol = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.protocol.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self._flushing = False
        self._connection.write(self.protocol.data_to_send())

    def flush_soon(self) -> None:
        """Write once in a turn of the loop, however many streams have something to send in it."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def receive(self, data: bytes) -> None:
        try:
            for event in self.protocol.receive_data(data):
                self._log(event)
                self._take(event)
        except ProtocolError as error:
            self.flush()  # h2 has made the GOAWAY that says why
            self._connection.fail(error)
        else:
            self.flush()

    def _log(self, event: Event) -> None:
        name = _FRAMES.get(type(event))
        # h2 makes a StreamReset of its own resets too.
        if name is not None and getattr(event, "remote_reset", True):
            stream_id, error_code = getattr(event, "stream_id", 0), getattr(event, "error_code", None)
            frame = Frame(type=name, connection=self._connection.number, stream_id=stream_id, error_code=error_code)
            server = self._connection.server
            server._record(server.frames.append, frame)

    def _take(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._receive_body(event)
        elif isinstance(event, WindowUpdated):
            self._connection.wake(event.stream_id)
        elif isinstance(event, RequestReceived):
            self._asked[event.stream_id] = event.headers, bytearray()
        elif isinstance(event, StreamEnded):
            self._ask(event.stream_id)
        elif isinstance(event, StreamReset):
            self._asked.pop(event.stream_id, None)
            self._connection.stop(event.stream_id)
        elif isinstance(event, RemoteSettingsChanged):
            self._connection.wake()  # INITIAL_WINDOW_SIZE may have grown
        elif isinstance(event, ConnectionTerminated):
            self._connection.close()  # h2 can neither send nor receive any more; no client of ours goes on after it

    def _receive_body(self, event: DataReceived) -> None:
        self.protocol.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if event.stream_id in self._asked:
            self._asked[event.stream_id][1].extend(event.data)

    def _ask(self, stream_id: int) -> None:
        head, body = self._asked.pop(stream_id)
        if stream_id > self.last_stream_id:
            return  # RFC 9113, 6.8: after GOAWAY, newer streams are ignored
        pseudo = {name: value.decode("latin-1") for name, value in head if name.startswith(b":")}
        fields = [(name, value) for name, value in head if not name.startswith(b":")]
        host = [(b"host", value) for name, value in head if name == b":authority"]
        path, _, query = pseudo[b":path"].partition("?")
        request = Request(
            method=pseudo[b":method"],
            path=path,
            query=query,
            headers=httpx.Headers([*host, *fields]),
            body=bytes(body),
            http_version="HTTP/2",
            connection=self._connection.number,
            stream_id=stream_id,
        )
        self._connection.ask(_Http2Reply(self._connection, request, self))


class _Connection(asyncio.Protocol):
    """One accepted connection: finds out what is spoken on it, then hands the bytes over."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.replies: dict[int, Reply] = {}
        self.paused = False
        self._closing = False
        self._heard = b""
        self._speaker: _Http1 | _Http2 | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # asyncio does this only where the listener was made from a name; without it, each answer's end waits 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = self.server._accepted(self)
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self._speaker = _Http2(self) if ssl_object.selected_alpn_protocol() == "h2" else _Http1(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._speaker is None:
            data = self._heard = self._heard + data
            self._speaker = self._recognize(data)
        if self._speaker is not None:
            self._speaker.receive(data)

    def _recognize(self, heard: bytes) -> _Http1 | _Http2 | None:
        """Tell by the first bytes of a plain connection, None where they are too few."""
        if self.server._http2 and heard.startswith(_PREFACE):
            return _Http2(self)
        if self.server._http2 and _PREFACE.startswith(heard):
            return None
        return _Http1(self)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.wake()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.stop()
        self.server._record(self.server._open.discard, self)

    def ask(self, reply: Reply) -> None:
        self.replies[reply._request.stream_id] = reply
        self.server._ask(reply)

    def wake(self, stream_id: int = 0) -> None:
        """Wake the handler of one stream, or of all (0)."""
        for reply in self._of(stream_id):
            reply._changed.set()

    def stop(self, stream_id: int = 0) -> None:
        """Tell the handler of one stream, or of all (0), that the client has gone."""
        for reply in self._of(stream_id):
            reply._stop()

    def _of(self, stream_id: int) -> list[Reply]:
        if stream_id == 0:
            return list(self.replies.values())
        return [self.replies[stream_id]] if stream_id in self.replies else []

    def write(self, data: bytes) -> None:
        if data and not self._closing:
            self._transport.write(data)

    def close(self, *, close_notify: bool = True) -> None:
        """Send FIN after what was written."""
        if self._closing:
            return
        self._closing = True
        self.stop()
        if not close_notify:
            # asyncio's TLS has no word for it: the socket is shut behind its back, and what is left of both goes later.
            with contextlib.suppress(OSError):  # the client may have gone
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
            asyncio.get_running_loop().call_later(_LINGER, self._transport.abort)
        elif self._transport.can_write_eof():
            # close() would send a reset where bytes are unread: so our half first, the rest when the client has closed.
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER, self._transport.close)
        else:
            self._transport.close()

    def reset(self) -> None:
        """Send a TCP reset: what closing a socket does that does not linger."""
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.abort()

    def abort(self) -> None:
        self._closing = True
        self.stop()
        self._transport.abort()

    def fail(self, error: Exception) -> None:
        """Remember what the client did against the protocol, and close."""
        self.server._record(self.server.errors.append, error)
        self.close()


Handler = Callable[[Request, Reply], Awaitable[None]]


async def _answer_all(request: Request, reply: Reply) -> None:
    """Answer what no handler was written for."""
    if request.path.endswith("/models"):
        await reply.json(replies.models())
    elif request.path.endswith("/embeddings"):
        await reply.json(replies.embeddings(request.json()))
    elif not request.path.endswith("/chat/completions"):
        await reply.json({"error": {"message": f"nothing is at {request.path}", "type": "not_found"}}, status=404)
    elif request.json().get("stream"):
        await reply.sse(_TOKENS)
    else:
        await reply.text("".join(_TOKENS))


def _new_loop() -> asyncio.AbstractEventLoop:
    """Make asyncio's own loop, whatever policy the tests have set: uvloop's sockets do not take SO_LINGER."""
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop()
    return asyncio.SelectorEventLoop()


class FakeServer:
    """Serve HTTP/1.1 and HTTP/2 on a free loopback port while ``with`` lasts.

    >>> async def handler(request: Request, reply: Reply) -> None:
    ...     await reply.start(200, {"content-type": "text/event-stream"})
    ...     await reply.send(sse_chunk("Once"))
    ...     reply.reset()
    >>> with FakeServer(handler) as server:
    ...     llm = OpenAICompatibleLLM("fake-model", base_url=server.url)

    ``handler``: one coroutine per request; None answers every chat completion with "Hello, world!", as a stream where the
    body asks for one, ``/v1/models`` with one model, and ``/v1/embeddings`` with made-up numbers. ``tls``: True, or the
    :class:`Authority` to sign for; the protocol is then chosen by ALPN, else by the first bytes (prior knowledge).
    ``http2=False`` leaves only HTTP/1.1.

    ``reply``, ``fail`` and ``break_off`` say what the next requests are answered, one each; they come before the handler:

    >>> server.fail(429, retry_after=0.5)
    >>> server.reply("Once upon a time")

    Leaving ``with`` cancels the handlers, closes every connection, and raises what went wrong in here: what a handler
    raised, and what a client sent against the protocol (several as an exception group). Expected ones are taken out with
    ``server.errors.clear()``.
    """

    def __init__(self, handler: Handler | None = None, *, tls: bool | Authority = False, http2: bool = True) -> None:
        self.url = ""  # known inside ``with``
        self.authority = Authority() if tls is True else tls or None
        self.requests: list[Request] = []
        self.frames: list[Frame] = []
        self.errors: list[BaseException] = []
        self._handler = handler or _answer_all
        self._script: deque[script.Step] = deque()
        self._http2 = http2
        self._changed = threading.Condition()
        self._count = 0
        self._open: set[_Connection] = set()
        self._handlers: set[asyncio.Task[None]] = set()

    reply, fail, break_off = script.reply, script.fail, script.break_off

    @property
    def connections(self) -> int:
        """Count the open connections; one over TLS counts from the end of its handshake."""
        return len(self._open)

    @property
    def live(self) -> int:
        """Count the handlers running now."""
        return len(self._handlers)

    def wait_for(self, predicate: Callable[[FakeServer], bool], timeout: float = 5.0) -> None:
        """Block until ``predicate(server)`` holds, looking whenever a log or a count changes; else ``TimeoutError``.

        In a coroutine of the test: ``await asyncio.to_thread(server.wait_for, ...)``, or the client's loop stands still.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(f"not within {timeout} s: {self!r}")

    def __repr__(self) -> str:
        counts = f"{self.connections} connections, {self.live} live, {len(self.requests)} requests"
        return f"<FakeServer {self.url} {counts}, frames={self.frames}, errors={self.errors}>"

    def __enter__(self) -> Self:
        context = self._context()
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        self._loop = _new_loop()
        self._loop.set_exception_handler(self._complain)
        self._leaving = self._loop.create_future()
        # A daemon, so that a handler which blocks the loop cannot keep the interpreter from ending.
        self._thread = threading.Thread(target=self._run, args=(listener, context), name="FakeServer", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._leaving.set_result, None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise RuntimeError(f"a handler did not stop within {_PATIENCE} s: {self!r}")
        if error is None or isinstance(error, Exception):
            self._raise_errors()

    def _raise_errors(self) -> None:
        """Raise over the test's own exception, which is most often only what the client made of ours."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise BaseExceptionGroup("errors in the fake server", self.errors)

    def _context(self) -> ssl.SSLContext | None:
        if self.authority is None:
            return None
        return self.authority.server_context(("h2", "http/1.1") if self._http2 else ("http/1.1",))

    def _run(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        # In asyncio's debug mode (python -X dev) every connection that comes to nothing would be an error of ours.
        with asyncio.Runner(debug=False, loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listener, context))

    async def _serve(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        linger = _LINGER if context else None
        server = await self._loop.create_server(
            lambda: _Connection(self), sock=listener, ssl=context, ssl_shutdown_timeout=linger, backlog=1024
        )
        await self._leaving
        await self._begin_tasks()
        server.close()
        await self._close_all()

    async def _begin_tasks(self) -> None:
        """Turn the loop until every task has made a step: asyncio accepts in tasks, and an unbegun one loses its socket.

        Neither a closed server nor a cancelled task takes the socket in, and there is no other way to stop accepting.
        """
        begun: set[asyncio.Task[Any]] = set()
        while new := asyncio.all_tasks() - begun:
            begun |= new
            await asyncio.sleep(0)

    async def _close_all(self) -> None:
        """Cancel every task, close every connection, and turn the loop until none is left."""
        cancelled: set[asyncio.Task[Any]] = set()
        while (tasks := asyncio.all_tasks() - {asyncio.current_task()}) or self._open:
            for task in tasks - cancelled:
                task.cancel()
            cancelled |= tasks
            for connection in tuple(self._open):
                connection.abort()
            await asyncio.sleep(0.001)

    def _complain(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Remember what asyncio would only log: failures in callbacks and in tasks that a handler began."""
        self._record(self.errors.append, context.get("exception") or RuntimeError(context["message"]))

    def _record(self, change: Callable[[T], object], item: T) -> None:
        """Make one change that :meth:`wait_for` may be waiting for."""
        with self._changed:
            change(item)
            self._changed.notify_all()

    def _accepted(self, connection: _Connection) -> int:
        """Take in a connection and give it its number."""
        self._count += 1
        self._record(self._open.add, connection)
        return self._count

    def _ask(self, reply: Reply) -> None:
        self._record(self.requests.append, reply._request)
        handler = script.step_for(self._script, reply._request) or self._handler
        task = self._loop.create_task(self._answer(handler, reply))
        self._record(self._handlers.add, task)
        task.add_done_callback(lambda task: self._record(self._handlers.discard, task))

    async def _answer(self, handler: Handler, reply: Reply) -> None:
        try:
            await handler(reply._request, reply)
            reply._leave()
        except (ClientStopped, asyncio.CancelledError):
            pass  # the client has gone, or we are leaving
        except BaseException as error:
            self._record(self.errors.append, error)
            reply._abandon()
        finally:
            reply._forget()
