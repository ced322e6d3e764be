"""Serve prepared chat completions over HTTP/1.1 and HTTP/2, so that the client is what is measured.

The model's name says what comes back, as events where the request says `"stream": true`, else as one JSON answer:

    burst-5000      5,000 chunks of text, 40 a write, as fast as the client takes them
    paced-50-100    100 chunks of text at 50 a second, one a write, beginning at a random phase
    steady-50-100   the same, but the first chunk is sent at once (for time to first token)
    slow-1000-20    20 chunks, after 1,000 ms
    line-100        one line of 100 MB
    cut-20          half of 20 chunks, and then the end of the message, with no finish_reason and no [DONE]
    reset-20        half of 20 chunks, and then a reset: of the connection (HTTP/1.1), of the stream (HTTP/2)
    status-429-1    an error with that status

Each event is an HTTP chunk (or a DATA frame) of its own, as uvicorn and llama.cpp send them. The plain port speaks
HTTP/1.1 and HTTP/2 with prior knowledge, the TLS port the same by ALPN: the first bytes tell. Frames are written by
hand, with no package: a server slower than its client would change how much the client finds at each read. It trusts
its clients, checks nothing, and needs flow-control windows of at least one write (16 KB).

    python -m benchmarks.server [certificate.pem]     prints its ports as a JSON line, ends when its input does

Each line of its input is a JSON object, and is answered with the fields of `Counts`: {} only asks, {"limit": 100} sets
how many streams a new connection may have, {"again": true} lets the counts begin again after the answer.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import re
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from benchmarks.machine import raise_file_limit

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
MEGABYTE = 2**20
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INTERNAL_ERROR = (2).to_bytes(4, "big")
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
STREAM_LIMIT = 128  # nginx's; httpx, where it is told none, keeps to one stream at a time
BACKLOG = 4096  # connections that come at once wait here; the next one would wait for TCP to try again, a second later
DEFAULT_WINDOW = 65535
STREAM_TYPE, JSON_TYPE = b"text/event-stream; charset=utf-8", b"application/json"
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


# --- What is sent, whatever the protocol ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A prepared answer, the head in its first write."""

    delay: float = 0.0  # seconds before the first write
    interval: float = 0.0  # seconds between two writes; 0: as fast as the client takes them
    random_at: int = 0  # the write before which a random part of an interval is waited
    reset: bool = False  # what ends it
    sizes: list[int]  # bytes of body in each write, for HTTP/2's flow control
    http1: list[bytes]
    http2: list[list[bytes]]  # cut open where the stream's number belongs: `number.join(parts)` closes them


def text_of(model: str) -> list[str]:
    """Return the pieces of text that a model's name stands for."""
    return list(itertools.islice(itertools.cycle(WORDS), int(model.rpartition("-")[2])))


@functools.cache
def prepare(model: str, stream: bool) -> Answer:
    """Build what a model answers, once: 250 bytes an event, as OpenAI's are."""
    kind, *numbers = model.split("-")
    delay = int(numbers[0]) / 1000 if kind == "slow" else 0.0
    if kind == "status":
        return framed([[failure(numbers[0])]], JSON_TYPE, status=int(numbers[0]))
    if kind == "line":
        return framed(long_line(int(numbers[0])), STREAM_TYPE)
    if not stream:
        return framed([[part] for part in slices(whole_answer(text_of(model)), MAX_FRAME)], JSON_TYPE, delay=delay)
    events = [event(piece) for piece in text_of(model)]
    if kind in ("cut", "reset"):
        return framed(slices(events[: len(events) // 2], 1), STREAM_TYPE, reset=kind == "reset")
    events[-1] += last_events(len(events))
    if kind in ("paced", "steady"):
        return framed(slices(events, 1), STREAM_TYPE, interval=1 / float(numbers[0]), random_at=int(kind == "steady"))
    return framed(slices(events, CHUNKS_PER_WRITE), STREAM_TYPE, delay=delay)


def framed(writes: list[list[bytes]], content_type: bytes, status: int = 200, **timing: Any) -> Answer:
    """Frame an answer for both protocols: each payload is an HTTP chunk or a DATA frame of its own."""
    sizes = [sum(map(len, write)) for write in writes]
    head = Head(status, content_type, b"%d" % sum(sizes) if content_type == JSON_TYPE else None)
    ended = not timing.get("reset")
    return Answer(sizes=sizes, http1=http1_writes(writes, head, ended), http2=http2_writes(writes, head, ended), **timing)


class Head(NamedTuple):
    """What a response begins with."""

    status: int
    content_type: bytes
    length: bytes | None  # None: not known when it begins


def slices(whole: Sequence[Any], size: int) -> list[Any]:
    """Cut a sequence into slices of `size`, the last one shorter."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def event(piece: str | None, **fields: object) -> bytes:
    """Return one server-sent event with a piece of text, or the last one, with a finish_reason."""
    finish, delta = (None, {"content": piece}) if piece is not None else ("stop", {})
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: %s\n\n" % dump(completion("chat.completion.chunk", [choice], **fields))


def long_line(megabytes: int) -> list[list[bytes]]:
    """Return a stream that is one line, whose writes share their bytes."""
    begin, _, end = event("#").partition(b"#")
    block = [b"x" * MAX_FRAME]
    return [[begin], *[block] * (megabytes * MEGABYTE // MAX_FRAME), [end + last_events(1)]]


def failure(status: str) -> bytes:
    """Return the JSON of an error, as OpenAI words it."""
    return dump({"error": {"message": f"This is a {status}.", "type": "server_error", "param": None, "code": None}})


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


@dataclass(slots=True)
class Counts:
    """What a benchmark asks the server about: how many there are now, and the most there were at once."""

    connections: int = 0
    most_connections: int = 0
    accepted: int = 0  # connections in all
    answers: int = 0  # being sent
    most_answers: int = 0
    most_streams: int = 0  # on one connection
    begun: int = 0  # answers in all
    left: int = 0  # answers that the client left before their end
    limit: int = STREAM_LIMIT

    def count_connections(self, change: int) -> None:
        """Count one more, or one less."""
        self.connections += change
        self.accepted += max(change, 0)
        self.most_connections = max(self.most_connections, self.connections)

    def count_answers(self, change: int) -> None:
        """Count one more, or one less."""
        self.answers += change
        self.begun += max(change, 0)
        self.most_answers = max(self.most_answers, self.answers)

    def begin_again(self) -> None:
        """Forget what was before."""
        self.most_connections, self.most_answers = self.connections, self.answers
        self.accepted = self.most_streams = self.begun = self.left = 0


COUNTS = Counts()


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

    def done(self, sending: "Sending") -> None:
        """Forget an answer after its last write, or reset it."""

    def lost(self) -> None:
        """Drop all answers: the connection is gone."""


class Sending:
    """Send one answer, write by write, whenever its turn comes and the client has room."""

    def __init__(self, wire: Wire, answer: Answer, number: int = 0, window: int = 0) -> None:
        self.wire, self.answer, self.number, self.window = wire, answer, number, window
        self.next, self.waiting, self.closed = 0, False, False
        self.loop = asyncio.get_running_loop()
        self.due = self.loop.time() + answer.delay
        COUNTS.count_answers(+1)
        self.wait_for_turn()

    def wait_for_turn(self) -> None:
        """Come back when the next write is due."""
        if self.next == self.answer.random_at:
            self.due += self.answer.interval * random.random()
        elif self.next:
            self.due += self.answer.interval
        self.loop.call_at(self.due, self.step)

    def step(self) -> None:
        """Send the next write, or wait to be resumed."""
        self.waiting = not self.closed and self.wire.room(self) < self.answer.sizes[self.next]
        if self.closed or self.waiting:
            return
        self.wire.send(self, self.next)
        self.next += 1
        if self.next < len(self.answer.sizes):
            self.wait_for_turn()
        else:
            self.close()
            self.wire.done(self)

    def resume(self) -> None:
        """Go on after the client made room."""
        if self.waiting:
            self.step()

    def close(self) -> None:
        """Send nothing more."""
        if not self.closed:
            self.closed = True
            COUNTS.count_answers(-1)
            COUNTS.left += self.next < len(self.answer.sizes)


class Connection(asyncio.Protocol):
    """Find out which protocol the client speaks, and hand it the bytes."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.paused = False
        COUNTS.count_connections(+1)

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
        COUNTS.count_connections(-1)
        if self.wire is not None:
            self.wire.lost()

    def pause_writing(self) -> None:
        """Hold back while the client is slow."""
        self.paused = True

    def resume_writing(self) -> None:
        """Go on with what was held back."""
        self.paused = False
        if self.wire is not None:
            self.wire.resume()

    def reset(self) -> None:
        """Close with a TCP reset."""
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


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

    def done(self, sending: Sending) -> None:
        """Reset the connection, where the answer is to end so."""
        if sending.answer.reset:
            self.connection.reset()

    def lost(self) -> None:
        """Drop the answer."""
        if self.sending is not None:
            self.sending.close()


def http1_writes(writes: list[list[bytes]], head: Head, ended: bool) -> list[bytes]:
    """Return the writes as they go to the socket: chunked where the length is not known."""
    chunked = head.length is None
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: " + (head.length or b"")
    lines = b"HTTP/1.1 %d Status\r\ncontent-type: %s\r\n%s\r\n\r\n" % (head.status, head.content_type, framing)
    result = each_once(chunks if chunked else b"".join, writes)
    result[0] = lines + result[0]
    result[-1] += b"0\r\n\r\n" if chunked and ended else b""
    return result


def chunks(write: list[bytes]) -> bytes:
    """Return each payload as an HTTP chunk."""
    return b"".join(b"%x\r\n%s\r\n" % (len(payload), payload) for payload in write)


def each_once(work: Callable[[Any], Any], writes: list[Any]) -> list[Any]:
    """Return what a function makes of each write, once for those that are the same object."""
    done = {key: work(write) for key, write in {id(write): write for write in writes}.items()}
    return [done[id(write)] for write in writes]


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
        limit = MAX_CONCURRENT_STREAMS.to_bytes(2, "big") + COUNTS.limit.to_bytes(4, "big")
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
            self.streams.pop(stream_id).close()

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
        COUNTS.most_streams = max(COUNTS.most_streams, len(self.streams))

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

    def done(self, sending: Sending) -> None:
        """Forget the stream, or reset it, where the answer is to end so."""
        del self.streams[sending.number]
        if sending.answer.reset:
            self.connection.transport.write(frame(RST_STREAM, 0, sending.number, INTERNAL_ERROR))

    def lost(self) -> None:
        """Drop all streams."""
        while self.streams:
            self.streams.popitem()[1].close()


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return one frame (RFC 9113, 4.1)."""
    return frame_head(kind, flags, len(payload)) + stream_id.to_bytes(4, "big") + payload


def frame_head(kind: int, flags: int, length: int) -> bytes:
    """Return a frame's first five bytes: all before the stream's number."""
    return length.to_bytes(3, "big") + bytes((kind, flags))


def window_update(stream_id: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, size.to_bytes(4, "big"))


def http2_writes(writes: list[list[bytes]], head: Head, ended: bool) -> list[list[bytes]]:
    """Return each write as frames, cut open where the stream's number belongs."""
    block = b"\x88" if head.status == 200 else literal(8, b"%d" % head.status)
    block += literal(31, head.content_type) + (literal(28, head.length) if head.length is not None else b"")
    result = each_once(lambda write: cut_open([data_frame(0, payload) for payload in write]), writes)
    *others, last = [data_frame(0, payload) for payload in writes[-1]]
    result[-1] = cut_open([*others, data_frame(END_STREAM if ended else 0, last[1])])
    result[0] = [frame_head(HEADERS, END_HEADERS, len(block)), block + result[0][0], *result[0][1:]]
    return result


def data_frame(flags: int, payload: bytes) -> tuple[bytes, bytes]:
    """Return a DATA frame without its stream's number: what is before it, what comes after it."""
    return frame_head(DATA, flags, len(payload)), payload


def cut_open(frames: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Return parts that a stream's number joins: head, payload + next head, ..., last payload."""
    heads, payloads = zip(*frames, strict=True)
    return [before + after for before, after in zip((b"", *payloads), (*heads, b""), strict=True)]


def literal(name: int, value: bytes) -> bytes:
    """Return a header without indexing, its name out of the static table (RFC 7541, 6.2.2)."""
    return (bytes((name,)) if name < 15 else bytes((0x0F, name - 15))) + bytes((len(value),)) + value


# --- The process ---


async def serve(certificate: str | None) -> None:
    """Serve on two ports of the loopback until standard input ends, which it does when the parent dies."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    plain = await loop.create_server(Connection, "127.0.0.1", 0, backlog=BACKLOG)
    context = tls(certificate) if certificate else None
    secure = await loop.create_server(Connection, "127.0.0.1", 0, ssl=context, backlog=BACKLOG) if context else None
    print(json.dumps({"http": port_of(plain), "https": port_of(secure) if secure else None}), flush=True)
    threading.Thread(target=read_commands, args=(loop, ended), daemon=True).start()
    await ended.wait()


def read_commands(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Read standard input to its end, in a thread, because Windows has no other way."""
    rest = b""
    while data := os.read(0, 4096):  # not sys.stdin, whose lock would abort the interpreter after a Ctrl-C
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            loop.call_soon_threadsafe(obey, json.loads(line))
    loop.call_soon_threadsafe(ended.set)


def obey(command: dict[str, Any]) -> None:
    """Do what a line of input says, and print the counts."""
    COUNTS.limit = command.get("limit", COUNTS.limit)
    print(json.dumps(asdict(COUNTS)), flush=True)
    if command.get("again"):
        COUNTS.begin_again()


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
    raise_file_limit()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1] if len(sys.argv) > 1 else None))
