"""Serve prepared chat completions over HTTP/1.1 and HTTP/2, so that the client is what is measured.

The model's name says what comes back, as events where the request says `"stream": true`, else as one JSON answer:

    burst-5000      5,000 chunks of text, 40 a write, as fast as the client takes them
    paced-50-100    100 chunks of text at 50 a second, one a write, beginning at a random phase

Each event is an HTTP chunk (or a DATA frame) of its own, as uvicorn and llama.cpp send them. The plain port speaks
HTTP/1.1 and HTTP/2 with prior knowledge, the TLS port the same by ALPN: the first bytes tell. Frames are written by
hand, with no package: a server slower than its client would change how much the client finds at each read. It trusts
its clients, checks nothing, and needs flow-control windows of at least one write (10 KB).

    python -m benchmarks.server [certificate.pem]     prints its ports as a JSON line, ends when its input does
"""

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import re
import ssl
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

WORDS = (
    " the",
    " quick",
    " brown",
    "\n",
    " na\u00efve",
    " fox",
    ' "',
    " jumps",
    " \u4e16\u754c",
    " over",
    " \U0001f98a",
)
CHUNKS_PER_WRITE = 40
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME = 16384
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
STREAM_LIMIT = 128  # nginx's; httpx, where it is told none, keeps to one stream at a time
DEFAULT_WINDOW = 65535
STREAM_TYPE, JSON_TYPE = b"text/event-stream; charset=utf-8", b"application/json"
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


# --- What is sent, whatever the protocol ---


@dataclass(frozen=True, slots=True)
class Answer:
    """A prepared answer, the head in its first write."""

    interval: float  # seconds between two writes; 0: as fast as the client takes them
    sizes: list[int]  # bytes of body in each write, for HTTP/2's flow control
    http1: list[bytes]
    http2: list[list[bytes]]  # cut open where the stream's number belongs: `number.join(parts)` closes them


def text_of(model: str) -> list[str]:
    """Return the pieces of text that a model's name stands for."""
    return list(itertools.islice(itertools.cycle(WORDS), int(model.rpartition("-")[2])))


@functools.cache
def prepare(model: str, stream: bool) -> Answer:
    """Build what a model answers, once: 250 bytes an event, as OpenAI's are."""
    pieces = text_of(model)
    if not stream:
        return framed([[part] for part in slices(whole_answer(pieces), MAX_FRAME)], 0.0, streamed=False)
    kind, rate = model.split("-")[:2]
    events = [event(piece) for piece in pieces]
    events[-1] += last_events(len(pieces))
    size, interval = (1, 1 / float(rate)) if kind == "paced" else (CHUNKS_PER_WRITE, 0.0)
    return framed(slices(events, size), interval, streamed=True)


def framed(writes: list[list[bytes]], interval: float, streamed: bool) -> Answer:
    """Frame an answer for both protocols: each payload is an HTTP chunk or a DATA frame of its own."""
    sizes = [sum(map(len, write)) for write in writes]
    content_type, length = (STREAM_TYPE, None) if streamed else (JSON_TYPE, b"%d" % sum(sizes))
    http1 = http1_writes(writes, content_type, length)
    return Answer(interval, sizes, http1, http2_writes(writes, content_type, length))


def slices(whole: Sequence[Any], size: int) -> list[Any]:
    """Cut a sequence into slices of `size`, the last one shorter."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def event(piece: str | None, **fields: object) -> bytes:
    """Return one server-sent event with a piece of text, or the last one, with a finish_reason."""
    finish, delta = (None, {"content": piece}) if piece is not None else ("stop", {})
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: %s\n\n" % dump(completion("chat.completion.chunk", [choice], **fields))


def last_events(count: int) -> bytes:
    """Return the end of a stream: finish_reason, usage, [DONE]."""
    usage = completion("chat.completion.chunk", [], usage=usage_of(count))
    return event(None) + b"data: %s\n\n" % dump(usage) + b"data: [DONE]\n\n"


def whole_answer(pieces: list[str]) -> bytes:
    """Return the JSON of an answer that is not streamed."""
    message = {"role": "assistant", "content": "".join(pieces), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return dump(completion("chat.completion", [choice], usage=usage_of(len(pieces))))


def completion(kind: str, choices: list[dict[str, object]], **fields: object) -> dict[str, object]:
    """Return what every answer and every chunk has around its choices."""
    head = {"id": "chatcmpl-BxQ4Zr1vGk2nT8sLw0YdEfHjMaPcU", "object": kind, "created": 1751980800}
    return head | {"model": "bench", "system_fingerprint": "fp_62a23a81ef", "choices": choices} | fields


def usage_of(count: int) -> dict[str, int]:
    """Return a usage object for `count` tokens of text."""
    return {"prompt_tokens": 20, "completion_tokens": count, "total_tokens": count + 20}


def dump(value: object) -> bytes:
    """Return compact JSON with the text itself in it, not its escapes, as providers send it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def asked_for(body: bytes) -> Answer:
    """Return the answer to a request's body."""
    request = json.loads(body or b"{}")
    return prepare(request.get("model", "burst-20"), bool(request.get("stream")))


# --- When it is sent ---


class Wire(Protocol):
    """One protocol on one connection."""

    def feed(self, data: bytes) -> None:
        """Take what the client sent."""

    def resume(self) -> None:
        """Go on after the socket's buffer was full."""

    def room(self, sending: "Sending") -> int:
        """Return how many bytes may be sent now."""

    def send(self, sending: "Sending", index: int) -> None:
        """Send one prepared write."""


class Sending:
    """Send one answer, write by write, whenever its turn comes and the client has room."""

    def __init__(self, wire: Wire, answer: Answer, number: int = 0, window: int = 0) -> None:
        self.wire, self.answer, self.number, self.window = wire, answer, number, window
        self.next, self.waiting, self.closed = 0, False, False
        self.loop = asyncio.get_running_loop()
        self.due = self.loop.time() + random.random() * answer.interval
        self.loop.call_at(self.due, self.step)

    def step(self) -> None:
        """Send the next write, or wait to be resumed."""
        self.waiting = not self.closed and self.wire.room(self) < self.answer.sizes[self.next]
        if self.closed or self.waiting:
            return
        self.wire.send(self, self.next)
        self.next += 1
        self.due += self.answer.interval
        if self.next < len(self.answer.sizes):
            self.loop.call_at(self.due, self.step)

    def resume(self) -> None:
        """Go on after the client made room."""
        if self.waiting:
            self.step()


class Connection(asyncio.Protocol):
    """Find out which protocol the client speaks, and hand it the bytes."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Choose the protocol by the first bytes, which arrive together on loopback."""
        if self.wire is None:
            self.wire = Http2(self) if data.startswith(b"PRI") else Http1(self)
        self.wire.feed(data)

    def connection_lost(self, _: Exception | None) -> None:
        """Send nothing more."""
        self.paused = True

    def pause_writing(self) -> None:
        """Hold back while the client is slow."""
        self.paused = True

    def resume_writing(self) -> None:
        """Go on with what was held back."""
        self.paused = False
        if self.wire is not None:
            self.wire.resume()


# --- HTTP/1.1 ---


class Http1:
    """One request after another on a kept-alive connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.buffer = connection, bytearray()
        self.sending: Sending | None = None

    def feed(self, data: bytes) -> None:
        """Answer when the request is there with its whole body."""
        self.buffer += data
        head, end, body = bytes(self.buffer).partition(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self.buffer.clear()
            self.sending = Sending(self, asked_for(body))

    def resume(self) -> None:
        """Go on after the socket's buffer was full."""
        if self.sending is not None:
            self.sending.resume()

    def room(self, sending: Sending) -> int:
        """Return how many bytes may be sent now."""
        return 0 if self.connection.paused or sending.closed else sys.maxsize

    def send(self, sending: Sending, index: int) -> None:
        """Send one prepared write."""
        self.connection.transport.write(sending.answer.http1[index])


def http1_writes(writes: list[list[bytes]], content_type: bytes, length: bytes | None) -> list[bytes]:
    """Return the writes as they go to the socket: chunked where the length is not known."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: " + length
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n" % (content_type, framing)
    chunk = (lambda payload: b"%x\r\n%s\r\n" % (len(payload), payload)) if length is None else bytes
    result = [b"".join(map(chunk, write)) for write in writes]
    result[-1] += b"0\r\n\r\n" if length is None else b""
    return [head + result[0], *result[1:]]


# --- HTTP/2 ---


class Http2:
    """Many streams on one connection; request headers are ignored, so no HPACK decoder is needed."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.buffer = connection, bytearray()
        self.window = self.initial = DEFAULT_WINDOW
        self.bodies: dict[int, bytearray] = {}
        self.early: dict[int, int] = {}
        self.streams: dict[int, Sending] = {}
        self.seen_preface = False
        limit = MAX_CONCURRENT_STREAMS.to_bytes(2, "big") + STREAM_LIMIT.to_bytes(4, "big")
        connection.transport.write(frame(SETTINGS, 0, 0, limit))

    def feed(self, data: bytes) -> None:
        """Take every whole frame off the buffer."""
        self.buffer += data
        if not self.seen_preface and len(self.buffer) >= len(PREFACE):
            self.seen_preface = True
            del self.buffer[: len(PREFACE)]
        while self.seen_preface and len(self.buffer) >= 9:
            end = 9 + int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < end:
                return
            whole = bytes(self.buffer[:end])
            del self.buffer[:end]
            self.take(whole[3], whole[4], int.from_bytes(whole[5:9], "big"), whole[9:])

    def take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Do what a frame asks for; what needs no answer is ignored."""
        if kind in (HEADERS, DATA):
            self.take_request(kind, flags, stream_id, payload)
        elif kind == WINDOW_UPDATE:
            self.credit(stream_id, int.from_bytes(payload, "big"))
        elif kind == SETTINGS and not flags & ACK:
            self.take_settings(payload)
        elif kind == PING and not flags & ACK:
            self.connection.transport.write(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM and stream_id in self.streams:
            self.streams.pop(stream_id).closed = True

    def take_request(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Collect a body, and answer at its end."""
        body = self.bodies.setdefault(stream_id, bytearray())
        if kind == DATA and payload:
            body += payload
            self.connection.transport.write(window_update(0, len(payload)) + window_update(stream_id, len(payload)))
        if flags & END_STREAM:
            self.answer(stream_id, asked_for(bytes(self.bodies.pop(stream_id))))

    def take_settings(self, payload: bytes) -> None:
        """Follow the client's stream window, and acknowledge."""
        for start in range(0, len(payload), 6):
            if int.from_bytes(payload[start : start + 2], "big") == INITIAL_WINDOW_SIZE:
                self.initial = int.from_bytes(payload[start + 2 : start + 6], "big")
        self.connection.transport.write(frame(SETTINGS, ACK, 0, b""))

    def credit(self, stream_id: int, size: int) -> None:
        """Count new room, and use it."""
        if stream_id == 0:
            self.window += size
            self.resume()
        elif sending := self.streams.get(stream_id):
            sending.window += size
            sending.resume()
        elif stream_id in self.bodies:  # httpx gives room before its request is whole
            self.early[stream_id] = self.early.get(stream_id, 0) + size

    def answer(self, stream_id: int, answer: Answer) -> None:
        """Begin to send on one stream."""
        window = self.initial + self.early.pop(stream_id, 0)
        self.streams[stream_id] = Sending(self, answer, stream_id, window)

    def resume(self) -> None:
        """Go on after the socket's buffer or the connection's window was full."""
        for sending in list(self.streams.values()):
            sending.resume()

    def room(self, sending: Sending) -> int:
        """Return how many bytes may be sent now."""
        return 0 if self.connection.paused else min(self.window, sending.window)

    def send(self, sending: Sending, index: int) -> None:
        """Send one prepared write with the stream's number in it."""
        answer = sending.answer
        self.window -= answer.sizes[index]
        sending.window -= answer.sizes[index]
        self.connection.transport.write(sending.number.to_bytes(4, "big").join(answer.http2[index]))
        if index == len(answer.sizes) - 1:
            del self.streams[sending.number]


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return one frame (RFC 9113, 4.1)."""
    return frame_head(kind, flags, len(payload)) + stream_id.to_bytes(4, "big") + payload


def frame_head(kind: int, flags: int, length: int) -> bytes:
    """Return a frame's first five bytes: all before the stream's number."""
    return length.to_bytes(3, "big") + bytes((kind, flags))


def window_update(stream_id: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, size.to_bytes(4, "big"))


def http2_writes(writes: list[list[bytes]], content_type: bytes, length: bytes | None) -> list[list[bytes]]:
    """Return each write as frames, cut open where the stream's number belongs."""
    block = b"\x88" + literal(31, content_type) + (literal(28, length) if length is not None else b"")
    frames = [[(frame_head(DATA, 0, len(payload)), payload) for payload in write] for write in writes]
    frames[0].insert(0, (frame_head(HEADERS, END_HEADERS, len(block)), block))
    frames[-1][-1] = (frame_head(DATA, END_STREAM, len(writes[-1][-1])), writes[-1][-1])
    return [cut_open(write) for write in frames]


def cut_open(frames: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Return parts that a stream's number joins: head, payload + next head, ..., last payload."""
    heads, payloads = zip(*frames, strict=True)
    return [before + after for before, after in zip((b"", *payloads), (*heads, b""), strict=True)]


def literal(name: int, value: bytes) -> bytes:
    """Return a header without indexing, its name out of the static table (RFC 7541, 6.2.2), 15 < name."""
    return bytes((0x0F, name - 15, len(value))) + value


# --- The process ---


async def serve(certificate: str | None) -> None:
    """Serve on two ports of the loopback until standard input ends, which it does when the parent dies."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    plain = await loop.create_server(Connection, "127.0.0.1", 0)
    secure = await loop.create_server(Connection, "127.0.0.1", 0, ssl=tls(certificate)) if certificate else None
    ports = {"http": port_of(plain), "https": port_of(secure) if secure else None}
    print(json.dumps(ports), flush=True)
    threading.Thread(target=wait_for_end, args=(loop, ended), daemon=True).start()
    await ended.wait()


def wait_for_end(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Read standard input to its end, in a thread, because Windows has no other way."""
    while os.read(0, 4096):  # not sys.stdin, whose lock would abort the interpreter after a Ctrl-C
        pass
    loop.call_soon_threadsafe(ended.set)


def port_of(server: asyncio.Server) -> int:
    """Return the port that the system chose."""
    port: int = server.sockets[0].getsockname()[1]
    return port


def tls(certificate: str) -> ssl.SSLContext:
    """Return a server's context that offers both protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1] if len(sys.argv) > 1 else None))
