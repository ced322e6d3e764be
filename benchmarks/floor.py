"""The floor: hand-written protocol code with no features, to show how far a client is from what Python itself can do.

It speaks to `server.py` and to nothing else. Nothing is checked: no status, no header, no error, no timeout, no flow
control (windows of 2 GB, never raised again), no cancellation, no `finish_reason`; each HTTP chunk and each DATA frame
is taken for whole events, whose JSON is not parsed but searched for the text. What is left is what no client can do
without: the socket, the frames, decoding the text, and one wake-up a read of the coroutine that wants it. TLS goes
through `ssl.MemoryBIO`, which is cheaper than asyncio's.
"""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast
from urllib.parse import urlsplit

import orjson

from benchmarks.peers import STREAMED, BarePeer, Received, Target
from benchmarks.server import DATA, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE, frame, literal

READ_SIZE = 2**18
MOST_WINDOW = 2**31 - 1
STREAMS_PER_CONNECTION = 100
END_STREAM, END_HEADERS = 1, 4
LAST_OF_EVENT, LAST_CHUNK = b"\n\n\r\n", b"\n\n\r\n0\r\n\r\n"
BEFORE, AFTER = b'"content":"', b'"},"'  # what stands around a text, and can stand in none


class Exchange:
    """One answer: what has come of it, and who waits for more."""

    __slots__ = ("ended", "parts", "waiter")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.ended = False
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Tell who waits."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def more(self) -> list[bytes]:
        """Wait for what the next read brings; an empty list is the end."""
        if not self.parts and not self.ended:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        parts, self.parts = self.parts, []
        return parts


# --- Protocols: bytes in, exchanges touched out ---


class Http1:
    """One body after the other. Texts are found between the sizes of the chunks, so these need not be read."""

    limit = 1

    def __init__(self, host: str, key: str) -> None:
        self.head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n".encode()
        self.begun, self.rest, self.missing = False, b"", 0
        self.exchange = Exchange()

    def request(self, body: bytes) -> tuple[Exchange, bytes]:
        """Return a new exchange and its bytes."""
        self.exchange, self.begun = Exchange(), False
        return self.exchange, b"%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (self.head, len(body), body)

    def feed(self, data: bytes) -> tuple[Exchange, ...]:
        """Take one read."""
        if self.rest:
            data = self.rest + data
        if not self.begun:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self.rest = head
                return ()
            self.begun = True
            _, found, length = head.partition(b"content-length: ")
            self.missing = int(length) if found else -1
        self.whole(data) if self.missing >= 0 else self.chunks(data)
        return (self.exchange,)

    def whole(self, data: bytes) -> None:
        """Take a piece of a body with a length."""
        self.exchange.parts.append(data)
        self.missing -= len(data)
        self.exchange.ended, self.rest = self.missing <= 0, b""

    def chunks(self, data: bytes) -> None:
        """Take all up to the last end of a chunk."""
        end = data.rfind(LAST_OF_EVENT) + len(LAST_OF_EVENT) if LAST_OF_EVENT in data else 0
        self.exchange.ended = data.endswith(LAST_CHUNK)
        self.exchange.parts.append(data[:end])
        self.rest = b"" if self.exchange.ended else data[end:]


class Http2:
    """Frames of many streams."""

    limit = STREAMS_PER_CONNECTION

    def __init__(self, host: str, key: str) -> None:
        # :method POST and :scheme out of the static table, the rest as literals without indexing: nothing to keep in step
        path = b"\x04" + bytes((len(b"/v1/chat/completions"),)) + b"/v1/chat/completions"
        block = b"\x83\x86" + path + literal(1, host.encode()) + literal(31, b"application/json")
        self.block = block + literal(23, f"Bearer {key}".encode())
        self.exchanges: dict[int, Exchange] = {}
        self.number, self.rest = -1, b""
        windows = (4).to_bytes(2, "big") + MOST_WINDOW.to_bytes(4, "big")
        credit = (MOST_WINDOW - 65535).to_bytes(4, "big")
        self.first_bytes = PREFACE + frame(SETTINGS, 0, 0, windows) + frame(WINDOW_UPDATE, 0, 0, credit)

    def request(self, body: bytes) -> tuple[Exchange, bytes]:
        """Return a new exchange and its bytes."""
        self.number += 2
        self.exchanges[self.number] = exchange = Exchange()
        head = frame(HEADERS, END_HEADERS, self.number, self.block)
        before, self.first_bytes = self.first_bytes, b""
        return exchange, before + head + frame(DATA, END_STREAM, self.number, body)

    def feed(self, data: bytes) -> set[Exchange]:
        """Take every whole frame of one read."""
        if self.rest:
            data = self.rest + data
        start, length, touched, exchanges = 0, len(data), set(), self.exchanges
        while length - start >= 9:
            head = int.from_bytes(data[start : start + 9], "big")
            end = start + 9 + (head >> 48)
            if end > length:
                break
            if head >> 40 & 0xFF == DATA:
                exchange = exchanges[head & 0x7FFFFFFF]
                exchange.parts.append(data[start + 9 : end])
                touched.add(exchange)
                if head >> 32 & END_STREAM:
                    exchange.ended = True
                    del exchanges[head & 0x7FFFFFFF]
            start = end
        self.rest = data[start:]
        return touched


# --- Connections ---


class Connection(asyncio.BufferedProtocol):
    """One socket on the loop; all share one buffer for reading."""

    buffer = memoryview(bytearray(READ_SIZE))

    def __init__(self, protocol: Any) -> None:
        self.protocol, self.active = protocol, 0
        self.ready = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let requests be sent."""
        self.transport = cast("asyncio.Transport", transport)
        self.ready.set_result(None)

    def get_buffer(self, _: int) -> memoryview:
        """Return where the loop reads into."""
        return self.buffer

    def buffer_updated(self, size: int) -> None:
        """Hand one read on."""
        for exchange in self.protocol.feed(bytes(self.buffer[:size])):
            exchange.wake()

    def send(self, data: bytes) -> None:
        """Write."""
        self.transport.write(data)


class TlsConnection(Connection):
    """The same with TLS: two BIOs and one handshake."""

    def __init__(self, protocol: Any, context: ssl.SSLContext, host: str) -> None:
        super().__init__(protocol)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self.transport = cast("asyncio.Transport", transport)
        self.shake_hands()

    def shake_hands(self) -> None:
        """Go on with the handshake; after it requests can be sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            self.ready.set_result(None)
        self.transport.write(self.outgoing.read())

    def buffer_updated(self, size: int) -> None:
        """Decrypt one read, and hand it on."""
        self.incoming.write(self.buffer[:size])
        if not self.ready.done():
            self.shake_hands()
        parts = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while self.ready.done() and (self.incoming.pending or self.tls.pending()):
                parts.append(self.tls.read(READ_SIZE))
        for exchange in self.protocol.feed(b"".join(parts)) if parts else ():
            exchange.wake()

    def send(self, data: bytes) -> None:
        """Encrypt and write."""
        self.tls.write(data)
        self.transport.write(self.outgoing.read())


class BlockingConnection:
    """One socket that is waited for; HTTP/1.1."""

    def __init__(self, protocol: Http1, raw: Any) -> None:
        self.protocol, self.socket = protocol, raw

    def ask(self, body: bytes, take: Callable[[list[bytes]], None]) -> None:
        """Send a request and hand over what each read brings."""
        exchange, data = self.protocol.request(body)
        self.socket.sendall(data)
        while not exchange.ended:
            self.protocol.feed(self.socket.recv(READ_SIZE))
            take(exchange.parts)
            exchange.parts.clear()


# --- The peer ---


class Count:
    """Count the text of parts that are whole events, without reading anything else of their JSON."""

    def __init__(self) -> None:
        self.pieces, self.characters, self.first = 0, 0, 0.0

    def take(self, parts: list[bytes]) -> None:
        """Take what one read brought: find the texts, and decode them together."""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        texts = [after[: after.find(AFTER)] for after in data.split(BEFORE)[1:]]
        for text in orjson.loads(b'["%s"]' % b'","'.join(texts)) if texts else ():
            self.pieces += 1
            self.characters += len(text)
        if not self.first and self.pieces:
            self.first = perf_counter()

    def received(self) -> Received:
        """Return the count."""
        return Received(self.pieces, self.characters, self.first)


class FloorPeer(BarePeer):
    """No features; the sync methods speak HTTP/1.1 always."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        parts = urlsplit(target.base_url)
        self.host, self.port, self.is_secure = parts.hostname or "", parts.port or 0, parts.scheme == "https"
        self.protocol: Any = Http1 if target.wire == "http1" else Http2
        self.free: list[Connection] = []  # those with room for one more request
        self.dialling: set[asyncio.Task[Any]] = set()
        self.blocking: BlockingConnection | None = None

    def call(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        parts: list[bytes] = []
        self.blocked().ask(self.body(model, tokens), parts.extend)
        return self.whole(b"".join(parts))

    def stream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        count = Count()
        self.blocked().ask(self.body(model, tokens, **STREAMED), count.take)
        return count.received()

    async def acall(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        connection, exchange = await self.asked(self.body(model, tokens))
        answer: list[bytes] = []
        while parts := await exchange.more():
            answer += parts
        self.give_back(connection)
        return self.whole(b"".join(answer))

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        connection, exchange = await self.asked(self.body(model, tokens, **STREAMED))
        count = Count()
        while parts := await exchange.more():
            count.take(parts)
        self.give_back(connection)
        return count.received()

    async def asked(self, body: bytes) -> tuple[Connection, Exchange]:
        """Send a request on a connection with room."""
        connection = self.free[-1] if self.free else self.dialled()
        connection.active += 1
        if connection.active == connection.protocol.limit:
            self.free.remove(connection)
        if not connection.ready.done():
            await asyncio.shield(connection.ready)  # of all who wait for this connection
        exchange, data = connection.protocol.request(body)
        connection.send(data)
        return connection, exchange

    def give_back(self, connection: Connection) -> None:
        """Let the next request have its place."""
        if connection.active == connection.protocol.limit:
            self.free.append(connection)
        connection.active -= 1

    def dialled(self) -> Connection:
        """Begin to open a connection, and lend it already."""
        protocol = self.protocol(f"{self.host}:{self.port}", self.target.api_key)
        context = tls_context("h2" if self.protocol is Http2 else "http/1.1") if self.is_secure else None
        connection = TlsConnection(protocol, context, self.host) if context else Connection(protocol)
        task = asyncio.create_task(asyncio.get_running_loop().create_connection(lambda: connection, self.host, self.port))
        self.dialling.add(task)  # or it could be collected while it runs
        task.add_done_callback(self.dialling.discard)
        self.free.append(connection)
        return connection

    def blocked(self) -> BlockingConnection:
        """Return the one connection of the sync methods."""
        if self.blocking is None:
            raw: Any = socket.create_connection((self.host, self.port))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw = tls_context("http/1.1").wrap_socket(raw, server_hostname=self.host) if self.is_secure else raw
            self.blocking = BlockingConnection(Http1(f"{self.host}:{self.port}", self.target.api_key), raw)
        return self.blocking


@functools.cache
def tls_context(protocol: str) -> ssl.SSLContext:
    """Return a client's context that offers one protocol."""
    context = ssl.create_default_context()
    context.set_alpn_protocols([protocol])
    return context
