"""FAULTS.md, "Security", as far as it is the transport's: floods, malformed frames, and what is never done."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jazz_llm import LLMConnectionError, LLMError, LLMResponseError, LLMResponseTooLargeError, LLMStreamTruncatedError

from ..frame_server import ACK, END_HEADERS, END_STREAM, FRAME, Answer, Code, Type, completion, event, frame
from .conftest import AT_ONCE, Case, where

LIMIT = 64 * 1024  # bytes of headers
REFUSED = {LLMConnectionError, LLMStreamTruncatedError, LLMResponseError}


def given_up(case: Case, within: float = 2 * AT_ONCE) -> LLMError:
    """See a call end with a typed error, in time, and not by a timeout."""
    started = time.monotonic()
    error = case.start(max_retries=0).exception(20)
    assert time.monotonic() - started < within
    if type(error) not in REFUSED:
        raise error or AssertionError("it was put up with")
    assert isinstance(error, LLMError)
    assert len(case.asked) == 1
    return error


# --- floods


def settings(answer: Answer) -> Iterator[bytes]:
    return itertools.repeat(frame(Type.SETTINGS, 0, 0, struct.pack(">HI", 3, 100)))


def acknowledgements(answer: Answer) -> Iterator[bytes]:
    return itertools.repeat(frame(Type.SETTINGS, ACK))


def pings(answer: Answer) -> Iterator[bytes]:
    return itertools.repeat(frame(Type.PING, 0, 0, b"12345678"))


def resets(answer: Answer) -> Iterator[bytes]:
    """For a stream that is over already."""
    return itertools.repeat(frame(Type.RST_STREAM, 0, answer.stream - 2, struct.pack(">I", Code.CANCEL)))


def continuations(answer: Answer) -> Iterator[bytes]:
    yield frame(Type.HEADERS, 0, answer.stream, answer.connection.block([(":status", "200")]))
    yield from itertools.repeat(frame(Type.CONTINUATION, 0, answer.stream, b"\x00\x01x\x64" + b"y" * 100))


def empty_continuations(answer: Answer) -> Iterator[bytes]:
    yield frame(Type.HEADERS, 0, answer.stream, answer.connection.block([(":status", "200")]))
    yield from itertools.repeat(frame(Type.CONTINUATION, 0, answer.stream))


def empty_data(answer: Answer) -> Iterator[bytes]:
    yield frame(Type.HEADERS, END_HEADERS, answer.stream, answer.connection.block([(":status", "200")]))
    yield from itertools.repeat(frame(Type.DATA, 0, answer.stream))


def padding(answer: Answer) -> Iterator[bytes]:
    """DATA that is nothing but padding."""
    yield frame(Type.HEADERS, END_HEADERS, answer.stream, answer.connection.block([(":status", "200")]))
    yield from itertools.repeat(frame(Type.DATA, 0x8, answer.stream, b"\x00"))


FLOODS: list[Callable[[Answer], Iterator[bytes]]] = [
    settings,
    acknowledgements,
    pings,
    resets,
    continuations,
    empty_continuations,
    empty_data,
    padding,
]


@where("h2")
@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
def test_a_flood_closes_the_connection(case: Case, flood: Callable[[Answer], Iterator[bytes]]) -> None:
    sent = 0

    async def fault(answer: Answer) -> None:
        nonlocal sent
        frames = flood(answer)
        while True:  # until the client has hung up
            pieces = list(itertools.islice(frames, 200))
            answer.connection.raw(b"".join(pieces))
            sent += len(pieces)
            await answer.connection.drained()

    case.face(fault)
    case.call("next")
    given_up(case, within=4 * AT_ONCE)
    case.server.wait_for(lambda server: server.connections[0].lost_at is not None)
    assert sent < 300_000


@where("h1 h2")
def test_a_flood_of_interim_answers(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        while True:
            if case.http2:
                answer.connection.headers(answer.stream, 103, [("link", "</a>")])
            else:
                answer.connection.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10)
            await answer.connection.drained()
            if answer.over:
                return

    case.face(fault, sibling=True)
    given_up(case)


@where("h1 tls h2")
@pytest.mark.parametrize("shape", ["many", "one", "never ends"])
def test_headers_beyond_64_kb(case: Case, shape: str) -> None:
    async def fault(answer: Answer) -> None:
        fields = [("x", "y" * 2 * LIMIT)] if shape == "one" else [(f"x-{i}", "y" * 1000) for i in range(200)]
        if not case.http2:
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
            answer.connection.raw(b"HTTP/1.1 200 OK\r\n" + lines)
            if shape != "never ends":
                return answer.connection.raw(b"\r\n")
            while True:
                answer.connection.raw(lines)
                await answer.connection.drained()
        block = answer.connection.block([(":status", "200"), *fields])
        pieces = [block[i : i + FRAME] for i in range(0, len(block), FRAME)]
        for i, piece in enumerate(pieces):
            end = END_HEADERS if i == len(pieces) - 1 and shape != "never ends" else 0
            answer.connection.send(Type.CONTINUATION if i else Type.HEADERS, end, answer.stream, piece)

    case.face(fault)
    given_up(case)


@where("h2")
def test_small_headers_that_unpack_to_much(case: Case) -> None:
    """HPACK: one large field, and then thousands of one-byte references to it."""

    async def fault(answer: Answer) -> None:
        value = b"y" * 4000
        entry = b"\x40\x01x\x7f" + bytes([(len(value) - 127) & 127 | 128, (len(value) - 127) >> 7]) + value
        block = answer.connection.block([(":status", "200")]) + entry + b"\xbe" * 10_000
        answer.connection.send(Type.HEADERS, END_HEADERS, answer.stream, block)

    case.face(fault)
    given_up(case)


# --- frames that no server may send


def status(answer: Answer) -> bytes:
    return answer.connection.block([(":status", "200")])


BAD: dict[str, Callable[[Answer], bytes]] = {
    "DATA on stream 0": lambda _: frame(Type.DATA, 0, 0, b"x"),
    "DATA on a stream of tomorrow": lambda a: frame(Type.DATA, 0, a.stream + 2, b"x"),
    "DATA with too much padding": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, status(a)) + frame(Type.DATA, 0x8, a.stream, b"\x05xx"),
    "HEADERS on stream 0": lambda a: frame(Type.HEADERS, END_HEADERS, 0, status(a)),
    "HEADERS on a stream of tomorrow": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream + 2, status(a)),
    "HEADERS on an even stream": lambda a: frame(Type.HEADERS, END_HEADERS, 2, status(a)),
    "HEADERS cut off by DATA": lambda a: frame(Type.HEADERS, 0, a.stream, status(a)) + frame(Type.DATA, 0, a.stream, b"x"),
    "CONTINUATION alone": lambda a: frame(Type.CONTINUATION, END_HEADERS, a.stream, status(a)),
    "CONTINUATION of another": lambda a: frame(Type.HEADERS, 0, a.stream, status(a)) + frame(Type.CONTINUATION, END_HEADERS, a.stream + 2),
    "HPACK index 0": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, b"\x80"),
    "HPACK index unknown": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, b"\xff\xff\x03"),
    "HPACK cut short": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, b"\x40\x05ab"),
    "HPACK table too large": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, b"\x3f\xe1\xff\xff\x03"),
    "SETTINGS on a stream": lambda a: frame(Type.SETTINGS, 0, a.stream),
    "SETTINGS of 5 bytes": lambda _: frame(Type.SETTINGS, 0, 0, b"12345"),
    "SETTINGS acknowledged with content": lambda _: frame(Type.SETTINGS, ACK, 0, b"123456"),
    "SETTINGS with a window too large": lambda _: frame(Type.SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31)),
    "SETTINGS with frames too small": lambda _: frame(Type.SETTINGS, 0, 0, struct.pack(">HI", 5, 100)),
    "SETTINGS with push": lambda _: frame(Type.SETTINGS, 0, 0, struct.pack(">HI", 2, 1)),
    "PING of 7 bytes": lambda _: frame(Type.PING, 0, 0, b"1234567"),
    "PING on a stream": lambda a: frame(Type.PING, 0, a.stream, b"12345678"),
    "RST_STREAM of 3 bytes": lambda a: frame(Type.RST_STREAM, 0, a.stream, b"123"),
    "RST_STREAM on stream 0": lambda _: frame(Type.RST_STREAM, 0, 0, b"1234"),
    "RST_STREAM of tomorrow": lambda a: frame(Type.RST_STREAM, 0, a.stream + 2, b"1234"),
    "GOAWAY of 4 bytes": lambda _: frame(Type.GOAWAY, 0, 0, b"1234"),
    "GOAWAY on a stream": lambda a: frame(Type.GOAWAY, 0, a.stream, bytes(8)),
    "WINDOW_UPDATE of 0": lambda _: frame(Type.WINDOW_UPDATE, 0, 0, bytes(4)),
    "WINDOW_UPDATE too large": lambda _: frame(Type.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
    "WINDOW_UPDATE of 3 bytes": lambda _: frame(Type.WINDOW_UPDATE, 0, 0, b"123"),
    "PUSH_PROMISE": lambda a: frame(Type.PUSH_PROMISE, END_HEADERS, a.stream, struct.pack(">I", 2) + status(a)),
    "PRIORITY on stream 0": lambda _: frame(Type.PRIORITY, 0, 0, bytes(5)),
    "a frame too large": lambda a: frame(Type.DATA, 0, a.stream, bytes(2**24 - 1))[:200_000],
    "text": lambda _: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
}


@where("h2 generate")
@pytest.mark.parametrize("name", BAD)
def test_a_frame_that_no_server_may_send(case: Case, name: str) -> None:
    """It is a connection error: said in a GOAWAY, and the connection closed."""

    async def fault(answer: Answer) -> None:
        answer.connection.raw(BAD[name](answer))

    case.face(fault)
    given_up(case)
    case.server.wait_for(lambda server: server.connections[0].lost_at is not None)
    said = [one.code for one in case.server.frames if one.type == Type.GOAWAY and one.connection == 1]
    assert len(said) == 1
    assert said[0] != Code.NO_ERROR


STREAM_ERRORS: dict[str, Callable[[Answer], bytes]] = {
    "WINDOW_UPDATE of 0": lambda a: frame(Type.WINDOW_UPDATE, 0, a.stream, bytes(4)),
    "no status": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, a.connection.block([("x", "y")])),
    "a status of letters": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, a.connection.block([(":status", "ok")])),
    "two statuses": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, a.connection.block([(":status", "200")] * 2)),
    "an unknown pseudo-header": lambda a: frame(
        Type.HEADERS, END_HEADERS, a.stream, a.connection.block([(":status", "200"), (":path", "/")])
    ),
    "a pseudo-header after the others": lambda a: frame(
        Type.HEADERS, END_HEADERS, a.stream, a.connection.block([("x", "y"), (":status", "200")])
    ),
    "upper case": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, status(a) + b"\x00\x01X\x01y"),
    "a line feed in a value": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, status(a) + b"\x00\x01x\x03a\nb"),
    "transfer-encoding": lambda a: frame(
        Type.HEADERS, END_HEADERS, a.stream, a.connection.block([(":status", "200"), ("transfer-encoding", "chunked")])
    ),
    "DATA before HEADERS": lambda a: frame(Type.DATA, 0, a.stream, b"x"),
    "101": lambda a: frame(Type.HEADERS, END_HEADERS, a.stream, a.connection.block([(":status", "101")])),
    "an interim answer that ends": lambda a: frame(
        Type.HEADERS, END_HEADERS | END_STREAM, a.stream, a.connection.block([(":status", "103")])
    ),
    "more than its content-length": lambda a: frame(
        Type.HEADERS, END_HEADERS, a.stream, a.connection.block([(":status", "200"), ("content-length", "3")])
    )
    + frame(Type.DATA, END_STREAM, a.stream, b"12345"),
    "less than its content-length": lambda a: frame(
        Type.HEADERS, END_HEADERS, a.stream, a.connection.block([(":status", "200"), ("content-length", "9")])
    )
    + frame(Type.DATA, END_STREAM, a.stream, b"12345"),
}


@where("h2")
@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_an_answer_that_is_malformed(case: Case, name: str) -> None:
    """RFC 9113, section 8.1.1: an error of the stream, which is at least not taken for an answer."""

    async def fault(answer: Answer) -> None:
        answer.connection.raw(STREAM_ERRORS[name](answer))

    case.face(fault)
    given_up(case)


@where("h2 stream")
def test_more_than_the_window_is_an_error(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        for _ in range(40_000_000 // FRAME):
            answer.send(event("x")[:1] * FRAME)
            await answer.connection.drained()

    case.face(fault)
    if case.colour == "async":
        stream = case.llm.astream("hi")

        async def main() -> None:
            await stream.__aenter__()
            await asyncio.to_thread(case.server.wait_for, lambda _: case.asked[0].over or case.server.connections[0].lost_at)
            with pytest.raises(LLMError):
                await stream.finish()

        case.client.run(main())
        code = {one.code for one in case.server.frames if one.type in (Type.RST_STREAM, Type.GOAWAY)}
        assert code == {Code.FLOW_CONTROL_ERROR}
    else:  # it reads whenever it waits, so nothing piles up
        assert isinstance(case.start(max_retries=0).exception(20), LLMError)


# --- frames that a client must put up with


@where("h2")
def test_frames_in_between_change_nothing(case: Case) -> None:
    async def odd(answer: Answer) -> None:
        connection, stream = answer.connection, answer.stream
        connection.send(0x0B, 0xFF, 0, b"unknown")
        connection.send(0xEE, 0xFF, stream, b"unknown")
        connection.send(Type.PRIORITY, 0, stream, bytes(4) + b"\x10")
        connection.send(Type.PING, 0, 0, b"abcdefgh")
        connection.settings(initial_window_size=70_000, max_frame_size=20_000, header_table_size=0, max_header_list_size=10_000)
        connection.window_update(stream, 1)
        connection.headers(stream, 103)
        block = connection.block([(":status", "200"), ("content-type", "text/event-stream" if answer.streams else "application/json")])
        connection.send(Type.HEADERS, 0x28, stream, b"\x03" + bytes(4) + b"\x10" + block[:1] + b"\0\0\0")
        connection.send(Type.CONTINUATION, 0, stream)
        connection.send(Type.CONTINUATION, END_HEADERS, stream, block[1:])
        connection.send(Type.DATA, 0x8, stream, b"\xff" + bytes(255))
        connection.send(Type.DATA, 0, stream)
        body = b'data: {"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":"stop"}]}\n\n' if answer.streams else completion()
        connection.send(Type.DATA, 0x8, stream, b"\x02" + body + bytes(2))
        connection.send(Type.SETTINGS, 0, 0, struct.pack(">HI", 0xF00D, 1))
        # Trailers end it.
        connection.send(Type.HEADERS, END_HEADERS | END_STREAM, stream, connection.block([("x-checksum", "1")]))
        answer.over = True
        connection.live -= 1

    case.face(odd, times=3, sibling=True, max_retries=0)
    assert [case.call().text for _ in range(4)] == ["Hello"] * 4  # the last finds what is left of the third
    assert len(case.server.connections) == 1
    case.server.wait_for(lambda s: sum(one.type == Type.PING and one.flags == ACK and one.payload == b"abcdefgh" for one in s.frames) == 3)
    case.server.wait_for(lambda s: sum(one.type == Type.SETTINGS and one.flags == ACK for one in s.frames) == 7)


@where("h2")
@pytest.mark.parametrize("window", [0, 1, 1000])
def test_a_large_request_through_a_small_window(case: Case, window: int) -> None:
    """The server counts; a window of 0 opens only afterwards."""

    async def script(connection: Any) -> None:
        if window == 0:
            first = await connection.until(lambda one: one.type == Type.HEADERS)
            connection.settings(initial_window_size=65535)
            assert first.stream == 1
        while True:
            connection.task(case._answer(await connection.request()))

    size = 300 if window == 1 else 200_000
    case.face(script=script, server_settings={"initial_window_size": window})
    assert case.call("x" * size).text == "Hello"
    assert case.asked[0].json()["messages"][0]["content"] == "x" * size


@where("h2")
def test_what_the_client_says_first(case: Case) -> None:
    """No push, windows that are large but bounded, and nothing twice."""
    case.face()
    case.call()
    first = next(one for one in case.server.frames if one.type == Type.SETTINGS and not one.flags & ACK)
    theirs = dict(struct.iter_unpack(">HI", first.payload))
    assert theirs.get(2) == 0
    assert theirs.get(4, 65535) <= 512 * 1024
    assert theirs.get(5, FRAME) < 2**20
    assert case.server.connections[0].allowed(0) <= 32 * 2**20


# --- what is never done


@where("h1 tls h2")
def test_no_cookies_and_no_coding(case: Case) -> None:
    async def baking(answer: Answer) -> None:
        if case.http2:
            fields = [("set-cookie", "a=b; Path=/"), ("content-type", "application/json")]
        else:
            fields = [("Set-Cookie", "a=b; Path=/"), ("Content-Type", "application/json")]
        answer.head(fields=fields)
        answer.send(b"data: " + completion().replace(b"message", b"delta") + b"\n\n" if answer.streams else completion(), end=True)

    case.face(baking, times=2)
    assert [case.call().text for _ in range(3)] == ["Hello"] * 3
    for answer in case.asked:
        assert "cookie" not in answer.headers
        assert answer.headers["accept-encoding"] == "identity"


CODINGS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@where()
@pytest.mark.parametrize("coding", CODINGS)
def test_a_coding_that_nobody_asked_for_is_undone(case: Case, coding: str) -> None:
    async def fault(answer: Answer) -> None:
        answer.head(fields=[("content-encoding", coding)])
        body = event("Hello") + event(finish="stop") if answer.streams else completion()
        answer.send(CODINGS[coding](body), end=True)

    case.face(fault, sibling=True)
    assert case.call().text == "Hello"


@where()
def test_a_coding_that_nobody_knows_is_refused(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.head(fields=[("content-encoding", "br")])
        answer.send(b"\x0b\x02\x80Hello\x03", end=True)

    case.face(fault, sibling=True)
    error = case.fails(LLMResponseError)
    assert (error.attempts, len(case.asked)) == (1, 1)


@where()
def test_a_bomb_is_bounded(case: Case) -> None:
    """300 KB of gzip, 300 MB of white space."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = squeeze.compress(b" " * 1_000_000) + squeeze.flush(zlib.Z_FULL_FLUSH)
    again = squeeze.compress(b" " * 1_000_000) + squeeze.flush(zlib.Z_FULL_FLUSH)

    async def fault(answer: Answer) -> None:
        answer.head(fields=[("content-encoding", "gzip")])
        answer.send(piece + again * 300, end=True)

    case.face(fault, sibling=True, max_response_bytes=8_000_000)
    case.fails(LLMResponseTooLargeError, max_retries=0)
