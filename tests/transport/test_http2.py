"""The HTTP/2 connection against the h2 package as its server, against every rule at the top of http2.py, and against floods."""

from __future__ import annotations

import itertools
import logging
import random
import re
from collections.abc import Iterable
from typing import NamedTuple

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import hpack
import pytest

from jazz_llm.transport import http2
from jazz_llm.transport.exchange import (
    MAX_HEAD,
    MAX_INTERIM,
    WHOLE_PIECE,
    Exchange,
    Fault,
    Headers,
    HTTPConnection,
    LostError,
    ProtocolError,
    Request,
)
from jazz_llm.transport.frames import ErrorCode
from jazz_llm.transport.http2 import CONNECTION_WINDOW, FRAME_SIZE, MOST_IDLE, MOST_STREAMS, STEP, WHOLE_EXTRA, WINDOW, Http2

ORIGIN = ("https", "host.example", 443)
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, UNKNOWN = range(11)
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = range(5, 10)
ENHANCE_YOUR_CALM = 11
END_STREAM = ACK = 1
END_HEADERS, PADDED, WITH_PRIORITY = 4, 8, 32
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(autouse=True)
def collected() -> None:
    """Replace the fixture of every other test: collecting after each costs four times these tests, and they open nothing."""


# A server of single frames.


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def raw(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def number(value: int) -> bytes:
    return value.to_bytes(4)


def settings(**values: int) -> bytes:
    names = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "list": 6, "other": 99}
    return raw(SETTINGS, payload=b"".join(names[name].to_bytes(2) + number(value) for name, value in values.items()))


def block(*fields: tuple[str, str], status: str | None = "200") -> bytes:
    status_field = [] if status is None else [(":status", status)]
    return hpack.Encoder().encode([*status_field, *fields])


def head(stream: int = 1, *fields: tuple[str, str], status: str | None = "200", end: bool = False) -> bytes:
    return raw(HEADERS, END_HEADERS | end, stream, block(*fields, status=status))


def data(content: bytes, stream: int = 1, *, end: bool = False) -> bytes:
    return raw(DATA, int(end), stream, content)


def padded(content: bytes, padding: int, stream: int = 1, *, end: bool = False) -> bytes:
    return raw(DATA, PADDED | end, stream, bytes((padding,)) + content + bytes(padding))


def filled(size: int, stream: int = 1) -> bytes:
    """Return DATA frames that bring ``size`` bytes."""
    whole, rest = divmod(size, FRAME_SIZE)
    return data(bytes(FRAME_SIZE), stream) * whole + (data(bytes(rest), stream) if rest else b"")


def goaway(last: int, code: int = 0) -> bytes:
    return raw(GOAWAY, payload=number(last) + number(code))


def rst(code: int, stream: int = 1) -> bytes:
    return raw(RST_STREAM, 0, stream, number(code))


def grant(size: int, stream: int = 0) -> bytes:
    return raw(WINDOW_UPDATE, 0, stream, number(size))


def frames(sent: bytes) -> list[Frame]:
    found = []
    sent = sent.removeprefix(PREFACE)
    while sent:
        size = int.from_bytes(sent[:3])
        found.append(Frame(sent[3], sent[4], int.from_bytes(sent[5:9]), sent[9 : 9 + size]))
        assert len(found[-1].payload) == size
        sent = sent[9 + size :]
    return found


def out(connection: Http2) -> list[Frame]:
    return frames(connection.outgoing())


def request(
    method: str = "POST", headers: Headers = (), body: bytes = b"", target: str = "/v1", origin: tuple = ORIGIN
) -> Request:
    return Request(method, origin, target, headers, body)


def connected(**values: int) -> Http2:
    connection = Http2()
    assert connection.receive(settings(**values)) == []
    connection.outgoing()
    return connection


def asked(count: int = 1, *, whole: bool = False, **values: int) -> tuple[Http2, ...]:
    """Return a connection and its exchanges, 1, 3, 5 and so on, all sent."""
    connection = connected(**values)
    exchanges = [connection.start(request(), whole=whole) for _ in range(count)]
    connection.outgoing()
    return connection, *exchanges


def answering(count: int = 1, *, whole: bool = False, method: str = "POST", fields: Iterable = ()) -> tuple[Http2, ...]:
    """Return the same, each with the head of its response."""
    connection = connected()
    exchanges = [connection.start(request(method), whole=whole) for _ in range(count)]
    for exchange in exchanges:
        connection.receive(head(exchange.id, *fields))
    connection.outgoing()
    return connection, *exchanges


def assert_reset(connection: Http2, exchange: Exchange, code: int, kind: type[Fault] = ProtocolError) -> None:
    """Assert that one exchange failed, and nothing else."""
    assert type(exchange.fault) is kind
    assert not exchange.ended
    assert [frame for frame in out(connection) if frame.kind == RST_STREAM] == [Frame(RST_STREAM, 0, exchange.id, number(code))]
    assert not connection.closing


def assert_closed(connection: Http2, code: int, *exchanges: Exchange) -> None:
    """Assert that the connection failed, and every exchange with it."""
    assert connection.closing
    assert connection.retired
    assert (connection.room, connection.busy) == (0, 0)
    assert out(connection)[-1] == Frame(GOAWAY, 0, 0, number(0) + number(code))
    assert [type(exchange.fault) for exchange in exchanges] == [ProtocolError] * len(exchanges)
    assert connection.receive(raw(PING, payload=bytes(8))) == []
    assert connection.outgoing() == b""


# The beginning.


def test_it_has_the_face_of_a_connection() -> None:
    connection: HTTPConnection = Http2()
    assert connection.version == "HTTP/2"
    assert (connection.retired, connection.closing, connection.busy, connection.room) == (False, False, 0, 1)


def test_the_first_bytes() -> None:
    first = Http2().outgoing()
    assert first.startswith(PREFACE)
    said, raised = frames(first)
    assert said[:3] == (SETTINGS, 0, 0)
    pairs = [said.payload[at : at + 6] for at in range(0, len(said.payload), 6)]
    values = {int.from_bytes(pair[:2]): int.from_bytes(pair[2:]) for pair in pairs}
    assert values == {2: 0, 4: 512 * 1024, 6: 64 * 1024}
    assert raised == (WINDOW_UPDATE, 0, 0, number(16 * 1024 * 1024 - 65_535))


def test_the_error_codes() -> None:
    assert {code.name: code.value for code in ErrorCode} == {code.name: code.value for code in h2.errors.ErrorCodes}


def test_the_bounds() -> None:
    assert (WINDOW, WHOLE_EXTRA, CONNECTION_WINDOW, FRAME_SIZE) == (2**19, 2**22, 2**24, 2**14)
    assert (MOST_STREAMS, MOST_IDLE, http2.MOST_CHUNKS, STEP, http2.MOST_KEPT, http2.MOST_ENDED) == (
        1000,
        1000,
        1000,
        65_536,
        32,
        128,
    )


def test_what_was_handed_out_is_not_handed_out_again() -> None:
    connection = Http2()
    assert connection.outgoing()
    assert connection.outgoing() == b""


def test_one_stream_until_the_settings_have_come() -> None:
    connection = Http2()
    assert (connection.settled, connection.limit, connection.room) == (False, 1, 1)
    connection.start(request(), whole=False)
    assert connection.room == 0
    connection.receive(settings(streams=7))
    assert (connection.settled, connection.limit, connection.room) == (True, 7, 6)
    assert out(connection)[-1] == Frame(SETTINGS, ACK, 0, b"")


def test_a_server_that_tells_no_limit_has_ours() -> None:
    assert connected().limit == MOST_STREAMS
    assert connected(streams=2**32 - 1).limit == MOST_STREAMS


def test_later_settings_leave_the_limit_that_they_do_not_tell() -> None:
    connection = connected(streams=7)
    connection.receive(settings(window=10))
    assert connection.limit == 7


def test_a_limit_lowered_in_flight_lets_those_in_flight_finish() -> None:
    connection, *exchanges = asked(5, streams=5)
    connection.receive(settings(streams=2))
    assert (connection.room, connection.busy) == (0, 5)
    for exchange in exchanges[:4]:
        connection.receive(head(exchange.id, end=True))
    assert all(exchange.ended for exchange in exchanges[:4])
    assert connection.room == 1


def test_no_room_raises_and_the_request_may_be_sent_again() -> None:
    connection, _ = asked(1, streams=1)
    with pytest.raises(LostError) as caught:
        connection.start(request(), whole=False)
    assert caught.value.unprocessed
    assert connection.outgoing() == b""


@pytest.mark.parametrize(
    "first",
    [raw(PING, payload=bytes(8)), raw(SETTINGS, ACK), head(), raw(UNKNOWN), grant(10)],
    ids=["ping", "ack", "head", "unknown", "grant"],
)
def test_the_first_frame_must_be_settings(first: bytes) -> None:
    connection = Http2()
    exchange = connection.start(request(), whole=False)
    assert connection.receive(first) == [exchange]
    assert_closed(connection, PROTOCOL_ERROR, exchange)


def test_a_server_that_speaks_http1() -> None:
    connection = Http2()
    exchange = connection.start(request(), whole=False)
    assert connection.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n") == [exchange]
    assert_closed(connection, FRAME_SIZE_ERROR, exchange)
    assert "no HTTP/2" in str(exchange.fault)


def test_streams_run_out_of_numbers() -> None:
    connection = connected()
    connection._next = 2**31 - 3
    assert connection.start(request(), whole=False).id == 2**31 - 3
    assert not connection.retired
    last = connection.start(request(), whole=False)
    assert (last.id, connection.retired, connection.room) == (2**31 - 1, True, 0)
    connection.receive(head(last.id, end=True))
    assert last.ended


# Requests.

SENT_HEADERS = (
    ("accept", "text/event-stream"),
    ("authorization", "Bearer sk-1"),
    ("api-key", "k"),
    ("x-goog-api-key", "g"),
    ("cookie", "a=b"),
    ("x-long", "v" * 20_000),
    ("x-edge", "v" * 127),
    ("x-empty", ""),
)
SECRETS = {"authorization", "api-key", "x-goog-api-key", "cookie"}


def header_block(sent: list[Frame]) -> bytes:
    assert [frame.kind for frame in sent] == [HEADERS] + [CONTINUATION] * (len(sent) - 1)
    assert [bool(frame.flags & END_HEADERS) for frame in sent] == [False] * (len(sent) - 1) + [True]
    assert not any(frame.flags & END_STREAM for frame in sent[1:])
    return b"".join(frame.payload for frame in sent)


def test_a_header_section() -> None:
    connection = connected()
    connection.start(request("GET", SENT_HEADERS, target="/v1?a=b", origin=("https", "::1", 8443)), whole=False)
    decoder = hpack.Decoder()
    fields = decoder.decode(header_block(out(connection)))
    pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", "[::1]:8443"), (":path", "/v1?a=b")]
    assert [tuple(field) for field in fields] == [*pseudo, *SENT_HEADERS]
    assert {name for name, value in fields if value and "x-l" not in name} >= SECRETS
    assert {field[0] for field in fields if not field.indexable} == SECRETS
    assert not decoder.header_table.dynamic_entries


def test_values_of_any_length() -> None:
    connection, decoder = connected(), hpack.Decoder()
    lengths = [0, 1, 126, 127, 128, 129, 253, 254, 255, 256, 382, 383, 384, 511, 1000, 16_510, 16_511, 16_512, 30_000]
    for length in lengths:
        connection.start(request("GET", (("x", "v" * length),)), whole=False)
        assert dict(decoder.decode(header_block(out(connection))))["x"] == "v" * length


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
@pytest.mark.parametrize("body", [b"", b"{}"])
def test_content_length_and_the_end(method: str, body: bytes) -> None:
    connection = connected()
    connection.start(request(method, body=body, origin=("http", "h", 80)), whole=False)
    first, *rest = out(connection)
    fields = dict(hpack.Decoder().decode(first.payload))
    assert (fields[":method"], fields[":scheme"], fields[":authority"]) == (method, "http", "h")
    told = str(len(body)) if body or method in {"POST", "PUT", "PATCH"} else None
    assert fields.get("content-length") == told
    assert first.flags == END_HEADERS | (not body)
    assert rest == ([Frame(DATA, END_STREAM, 1, body)] if body else [])


def test_requests_alike_share_a_block_and_others_do_not() -> None:
    connection, decoder = connected(streams=500), hpack.Decoder()
    asked_for = [request("POST", (("x", str(turn % 40)),), bytes(turn), f"/{turn % 3}") for turn in range(100)]
    for one in asked_for:
        connection.start(one, whole=False)
        fields = dict(decoder.decode(out(connection)[0].payload))
        assert (fields["x"], fields[":path"], fields["content-length"]) == (one.headers[0][1], one.target, str(len(one.body)))
        assert len(connection._blocks) <= http2.MOST_KEPT


def test_a_block_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    connection, sent = connected(), []
    for _ in range(3):
        for path in ("/a", "/b"):
            connection.start(request(target=path), whole=False)
        sent.append([frame.payload for frame in out(connection)])
        monkeypatch.setattr(http2, "request_block", None)
    assert sent[0] == sent[1] == sent[2]


@pytest.mark.parametrize("size", [16_384, 16_385, 2**24 - 1])
def test_a_long_head_goes_out_in_frames_of_the_servers_size(size: int) -> None:
    connection = connected(frame=size)
    connection.start(request(headers=(("x", "v" * 40_000),), body=b"b"), whole=False)
    *sent, last = out(connection)
    assert max(len(frame.payload) for frame in sent) <= size
    assert len(sent) == -(-sum(len(frame.payload) for frame in sent) // size)
    assert dict(hpack.Decoder().decode(header_block(sent)))["x"] == "v" * 40_000
    assert last == Frame(DATA, END_STREAM, 1, b"b")


@pytest.mark.parametrize(("more", "count"), [(0, 1), (1, 2)])
def test_a_head_that_just_fits(more: int, count: int) -> None:
    connection, probe = connected(), connected()
    probe.start(request("GET", (("x", "v" * 16_000),)), whole=False)
    rest = FRAME_SIZE - len(out(probe)[0].payload)
    connection.start(request("GET", (("x", "v" * (16_000 + rest + more)),)), whole=False)
    assert len(out(connection)) == count


def test_nothing_of_a_request_is_logged_or_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        connection = connected()
        exchange = connection.start(request(headers=(("authorization", "Bearer sk-secret"),), body=b"sk-secret"), whole=False)
    assert "sk-secret" not in caplog.text + repr(connection) + repr(exchange)


# Content out.


def test_content_goes_out_in_frames_of_the_servers_size() -> None:
    connection = connected(frame=20_000, window=100_000)
    connection.receive(grant(100_000))
    connection.start(request(body=bytes(50_000)), whole=False)
    assert [(len(frame.payload), frame.flags) for frame in out(connection)[1:]] == [
        (20_000, 0),
        (20_000, 0),
        (10_000, END_STREAM),
    ]


@pytest.mark.parametrize("size", [65_535, 65_536, 70_000])
def test_content_waits_for_the_connections_window(size: int) -> None:
    connection = connected(window=1_000_000)
    exchange = connection.start(request(body=bytes(size)), whole=False)
    sent = [frame for frame in out(connection) if frame.kind == DATA]
    assert sum(len(frame.payload) for frame in sent) == 65_535
    assert bool(sent[-1].flags) == (size == 65_535)
    assert len(exchange.unsent or b"") == size - 65_535
    connection.receive(grant(1_000_000))
    rest = out(connection)
    assert sum(len(frame.payload) for frame in rest) == size - 65_535
    assert exchange.unsent is None
    assert not connection._sending
    assert [frame.flags for frame in rest] == [END_STREAM] * (size > 65_535)


def test_content_waits_for_the_streams_window() -> None:
    connection = connected(window=10)
    exchange = connection.start(request(body=b"0123456789abcdef"), whole=False)
    assert [frame.payload for frame in out(connection)[1:]] == [b"0123456789"]
    connection.receive(grant(3, 1))
    assert out(connection) == [Frame(DATA, 0, 1, b"abc")]
    connection.receive(grant(3, 1))
    assert out(connection) == [Frame(DATA, END_STREAM, 1, b"def")]
    assert exchange.unsent is None


def test_a_new_initial_window_moves_open_streams_below_zero_too() -> None:
    connection = connected(window=10)
    connection.start(request(body=b"0123456789abcdef"), whole=False)
    connection.outgoing()
    connection.receive(settings(window=4))  # -6
    connection.receive(grant(7, 1))  # 1
    assert out(connection) == [Frame(SETTINGS, ACK, 0, b""), Frame(DATA, 0, 1, b"a")]
    connection.receive(settings(window=6))  # 2
    assert out(connection)[-1] == Frame(DATA, 0, 1, b"bc")
    connection.start(request(body=b"0123456789"), whole=False)
    assert out(connection)[-1] == Frame(DATA, 0, 3, b"012345")


def test_streams_take_turns() -> None:
    connection = connected(window=100_000)
    for _ in range(4):
        connection.start(request(body=bytes(65_535)), whole=False)
    connection.outgoing()  # the first has taken the connection's whole window
    turns: list[int] = []
    for _ in range(6):
        connection.receive(grant(FRAME_SIZE))
        turns += [frame.stream for frame in out(connection)]
    assert turns == [3, 5, 7, 3, 5, 7]
    connection.receive(grant(65_535 * 3))
    assert sorted(frame.stream for frame in out(connection) if frame.flags) == [3, 5, 7]


def test_a_blocked_stream_holds_up_no_other() -> None:
    connection = connected(window=10)
    first, second = (connection.start(request(body=bytes(20)), whole=False) for _ in "12")
    connection.receive(grant(10, second.id))
    assert (first.unsent is None, second.unsent is None) == (False, True)


def test_a_response_that_ends_before_its_request_resets_the_rest() -> None:
    connection = connected(window=10)
    exchange = connection.start(request(body=bytes(20)), whole=False)
    connection.outgoing()
    assert connection.receive(head() + data(b"no", end=True) + rst(NO_ERROR)) == [exchange]
    assert (exchange.ended, exchange.fault, exchange.unsent, connection.busy) == (True, None, None, 0)
    assert out(connection) == [Frame(RST_STREAM, 0, 1, number(NO_ERROR))]
    connection.receive(grant(100, 1) + grant(100))
    assert connection.outgoing() == b""


def test_stopping_a_request_half_sent_drops_the_rest() -> None:
    connection = connected(window=10)
    stopped, other = (connection.start(request(body=bytes(20)), whole=False) for _ in "12")
    connection.outgoing()
    connection.stop(stopped)
    connection.receive(settings(window=100))
    assert stopped.unsent is None
    assert [frame[:3] for frame in out(connection)] == [(RST_STREAM, 0, 1), (SETTINGS, ACK, 0), (DATA, END_STREAM, other.id)]


@pytest.mark.parametrize(("size", "stream"), [(0, 0), (2**31 - 65_535, 0)])
def test_a_bad_window_of_the_connection(size: int, stream: int) -> None:
    connection, exchange = asked()
    connection.receive(grant(size, stream))
    assert_closed(connection, FLOW_CONTROL_ERROR if size else PROTOCOL_ERROR, exchange)


@pytest.mark.parametrize("size", [0, 2**31 - 65_535])
def test_a_bad_window_of_a_stream(size: int) -> None:
    connection, exchange, other = asked(2)
    assert connection.receive(grant(size, 1)) == [exchange]
    assert_reset(connection, exchange, FLOW_CONTROL_ERROR if size else PROTOCOL_ERROR)
    assert other.fault is None


def test_the_largest_windows_are_fine() -> None:
    connection, exchange = asked()
    connection.receive(grant(2**31 - 65_536) + grant(2**31 - 65_536, 1))
    assert (exchange.fault, connection.closing) == (None, False)


def test_windows_of_one_byte_are_used() -> None:
    connection = connected(window=100_000)
    connection.start(request(body=bytes(65_537)), whole=False)
    connection.outgoing()
    connection.receive(grant(1))
    assert [len(frame.payload) for frame in out(connection)] == [1]


def test_settings_that_make_a_streams_window_too_large() -> None:
    connection, exchange = asked()
    connection.receive(grant(2**31 - 65_536, 1))
    connection.receive(settings(window=65_536))
    assert_closed(connection, FLOW_CONTROL_ERROR, exchange)


# Responses.


def test_a_response() -> None:
    connection, exchange = asked()
    fields = [("content-type", "text/event-stream"), ("x", "\xe9"), ("x", "2")]
    encoded = hpack.Encoder().encode([(":status", "201"), *((name, value.encode("latin-1")) for name, value in fields)])
    assert connection.receive(raw(HEADERS, END_HEADERS, 1, encoded)) == [exchange]
    assert (exchange.status, exchange.headers) == (201, tuple(fields))
    assert connection.receive(data(b"a") + data(b"b")) == [exchange]
    assert (exchange.chunks, exchange.held, exchange.ended) == ([b"a", b"b"], 2, False)
    assert connection.take(exchange) == b"ab"
    assert connection.take(exchange) == b""
    assert connection.receive(data(b"c", end=True)) == [exchange]
    assert (exchange.ended, exchange.fault, connection.busy) == (True, None, 0)
    assert connection.take(exchange) == b"c"
    assert connection.outgoing() == b""


def test_plain_data_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    connection, exchange = answering()
    monkeypatch.setattr(connection, "_frame", None)
    connection.receive(data(b"x") + data(b"y"))
    assert connection.take(exchange) == b"xy"


def test_touched_exchanges_come_once_in_the_order_of_their_first_touch() -> None:
    connection, first, second, third = answering(3)
    read = data(b"1", 3) + data(b"2", 1) + raw(PING, payload=bytes(8)) + data(b"3", 3) + data(b"4", 1, end=True) + data(b"5", 3)
    assert connection.receive(read) == [second, first]
    assert connection.receive(raw(PING, payload=bytes(8))) == []
    assert connection.receive(data(b"", 5, end=True)) == [third]
    assert third.chunks == []


def test_a_whole_exchange_comes_at_its_end() -> None:
    connection, exchange = asked(whole=True)
    assert connection.receive(head()) == []
    assert connection.receive(data(bytes(1000))) == []
    assert connection.receive(filled(WHOLE_PIECE - 1000)) == []
    assert connection.receive(data(b"!", end=True)) == [exchange]
    assert len(connection.take(exchange)) == WHOLE_PIECE + 1


def test_a_whole_exchange_comes_at_its_fault() -> None:
    connection, exchange = asked(whole=True)
    assert connection.receive(head() + data(b"x")) == []
    assert connection.receive(rst(INTERNAL_ERROR)) == [exchange]


@pytest.mark.parametrize("taking", [False, True])
def test_a_long_whole_exchange_comes_by_pieces_and_gets_a_larger_window(taking: bool) -> None:
    connection, exchange = answering(whole=True)
    came = []
    for turn in range(4 * 16):
        if connection.receive(data(bytes(FRAME_SIZE))):
            came.append(turn)
            assert exchange.held > WHOLE_PIECE
            if taking:
                connection.take(exchange)
    assert len(came) == 3  # of 1 MiB: after 256 KiB, and at the next look at it, STEP bytes later at most
    assert out(connection)[0] == Frame(WINDOW_UPDATE, 0, 1, number(WHOLE_EXTRA))
    assert exchange.fault is None


def test_without_a_reader_a_whole_exchange_holds_its_larger_window() -> None:
    connection, exchange = answering(whole=True)
    connection.receive(filled(WINDOW + WHOLE_EXTRA))
    assert (exchange.held, exchange.fault) == (WINDOW + WHOLE_EXTRA, None)
    connection.receive(data(b"x"))
    assert_reset(connection, exchange, FLOW_CONTROL_ERROR)


def test_interim_responses_are_dropped() -> None:
    connection, exchange = asked()
    assert connection.receive(head(status="100") + head(1, ("link", "x"), status="103") * (MAX_INTERIM - 1)) == []
    assert connection.receive(head()) == [exchange]
    assert (exchange.status, exchange.headers, connection.outgoing()) == (200, (), b"")


def test_too_many_interim_responses() -> None:
    connection, exchange = asked()
    connection.receive(head(status="103") * (MAX_INTERIM + 1))
    assert_reset(connection, exchange, ENHANCE_YOUR_CALM)


def test_trailers_are_dropped() -> None:
    connection, exchange = answering()
    assert connection.receive(data(b"x") + head(1, ("grpc-status", "0"), status=None, end=True)) == [exchange]
    assert (exchange.ended, exchange.headers) == (True, ())


def literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


OK = b"\x88"  # :status 200
MALFORMED = {
    "no status": literal(b"a", b"b"),
    "nothing": b"",
    "status twice": OK + OK,
    "status after a field": literal(b"a", b"b") + OK,
    "status of two digits": literal(b":status", b"20"),
    "status of four digits": literal(b":status", b"2000"),
    "status that is no number": literal(b":status", b"2x0"),
    "status with a sign": literal(b":status", b"+20"),
    "status zero": literal(b":status", b"000"),
    "switching protocols": literal(b":status", b"101"),
    "a request's pseudo-header field": OK + literal(b":path", b"/"),
    "an unknown pseudo-header field": OK + literal(b":x", b"/"),
    "upper case": OK + literal(b"Abc", b"b"),
    "no name": OK + literal(b"", b"b"),
    "space in a name": OK + literal(b"a b", b"b"),
    "colon in a name": OK + literal(b"a:b", b"b"),
    "a name beyond ASCII": OK + literal(b"\xe9", b"b"),
    "CR": OK + literal(b"a", b"b\rc"),
    "LF": OK + literal(b"a", b"b\nc"),
    "LF at the end": OK + literal(b"a", b"b\n"),
    "NUL": OK + literal(b"a", b"b\0c"),
    "space before a value": OK + literal(b"a", b" b"),
    "tab after a value": OK + literal(b"a", b"b\t"),
    "connection": OK + literal(b"connection", b"close"),
    "proxy-connection": OK + literal(b"proxy-connection", b"close"),
    "keep-alive": OK + literal(b"keep-alive", b"5"),
    "transfer-encoding": OK + literal(b"transfer-encoding", b"chunked"),
    "upgrade": OK + literal(b"upgrade", b"h2c"),
    "content-length with a sign": OK + literal(b"content-length", b"+1"),
    "content-length of nothing": OK + literal(b"content-length", b""),
    "content-length of 5000 digits": OK + b"\x0f\x0d\x7f\x89\x26" + b"1" * 5000,
    "two values of content-length": OK + literal(b"content-length", b"1") + literal(b"content-length", b"2"),
}


@pytest.mark.parametrize("section", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_response_fails_alone(section: bytes) -> None:
    connection, exchange, other = asked(2)
    assert connection.receive(raw(HEADERS, END_HEADERS, 1, section) + head(3)) == [exchange, other]
    assert_reset(connection, exchange, PROTOCOL_ERROR)
    assert (exchange.status, other.status, connection.busy) == (0, 200, 1)


def test_words_of_a_fault_hold_nothing_of_the_response() -> None:
    for section in MALFORMED.values():
        connection, exchange = asked()
        connection.receive(raw(HEADERS, END_HEADERS, 1, section))
        assert re.fullmatch(r"the server sent [A-Za-z0-9:,/ -]+", str(exchange.fault))


@pytest.mark.parametrize("status", [None, "200", "103"])
@pytest.mark.parametrize("end", [False, True])
def test_trailers_must_be_trailers_and_the_end(status: str | None, end: bool) -> None:
    connection, exchange = answering()
    connection.receive(head(status=status, end=end))
    if status is None and end:
        assert exchange.ended
    else:
        assert_reset(connection, exchange, PROTOCOL_ERROR)


def test_malformed_trailers() -> None:
    connection, exchange = answering()
    connection.receive(raw(HEADERS, END_HEADERS | END_STREAM, 1, literal(b"A", b"b")))
    assert_reset(connection, exchange, PROTOCOL_ERROR)


def test_an_interim_response_that_is_the_end() -> None:
    connection, exchange = asked()
    connection.receive(head(status="103", end=True))
    assert_reset(connection, exchange, PROTOCOL_ERROR)


def test_content_before_the_head() -> None:
    for sent in (data(b"x"), data(b"x", end=True), data(b"", end=True), head(status="103") + padded(b"x", 1)):
        connection, exchange = asked()
        connection.receive(sent)
        assert_reset(connection, exchange, PROTOCOL_ERROR)


@pytest.mark.parametrize("told", [0, 1, 5])
def test_a_body_as_long_as_told(told: int) -> None:
    connection, exchange = answering(fields=[("content-length", str(told)), ("content-length", str(told))])
    for _ in range(told):
        connection.receive(padded(b"x", 3))
        connection.take(exchange)
    connection.receive(data(b"", end=True))
    assert exchange.ended


@pytest.mark.parametrize("sent", [[5], [2, 2], [4, 0], []], ids=str)
def test_a_body_cut_short(sent: list[int]) -> None:
    connection, exchange = answering(fields=[("content-length", "6")])
    for size in sent:
        connection.receive(data(bytes(size)))
    came = connection.take(exchange)
    assert connection.receive(head(status=None, end=True) if 0 in sent else data(b"", end=True)) == [exchange]
    assert isinstance(exchange.fault, LostError)
    assert (exchange.ended, exchange.fault.code, exchange.fault.unprocessed) == (False, None, False)
    assert "cut short" in str(exchange.fault)
    assert (len(came), connection.busy) == (sum(sent), 0)


def test_a_body_cut_short_at_its_head() -> None:
    connection, exchange = asked()
    connection.receive(head(1, ("content-length", "6"), end=True))
    assert isinstance(exchange.fault, LostError)


@pytest.mark.parametrize("take", [False, True])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("sent", [[7], [6, 1], [3, 4]], ids=str)
def test_a_body_longer_than_told(sent: list[int], end: bool, take: bool) -> None:
    connection, exchange = answering(fields=[("content-length", "6")])
    for size in sent:
        connection.receive(data(bytes(size), end=end and size == sent[-1]))
        if take:
            connection.take(exchange)
    assert_reset(connection, exchange, PROTOCOL_ERROR)


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "204"), ("POST", "304")])
def test_a_response_without_a_body(method: str, status: str) -> None:
    for sent in (b"", data(b"", end=True), data(b"x")):
        connection = connected()
        exchange = connection.start(request(method), whole=False)
        connection.outgoing()
        connection.receive(head(1, ("content-length", "6"), status=status, end=not sent) + sent)
        if sent == data(b"x"):
            assert_reset(connection, exchange, PROTOCOL_ERROR)
        else:
            assert (exchange.ended, exchange.fault) == (True, None)


# Header sections.


def cut(section: bytes, size: int, stream: int = 1, flags: int = 0) -> bytes:
    pieces = [section[at : at + size] for at in range(0, len(section), size)] or [b""]
    kinds = [HEADERS] + [CONTINUATION] * (len(pieces) - 1)
    ends = [0] * (len(pieces) - 1) + [END_HEADERS]
    all_flags = [end | (flags if kind == HEADERS else 0) for kind, end in zip(kinds, ends, strict=True)]
    return b"".join(raw(kind, flag, stream, piece) for kind, flag, piece in zip(kinds, all_flags, pieces, strict=True))


def test_continuation() -> None:
    connection, exchange = asked()
    connection.receive(cut(block(("x", "y" * 100)), 7, flags=END_STREAM))
    assert (exchange.headers, exchange.ended) == ((("x", "y" * 100),), True)


@pytest.mark.parametrize(
    "between",
    [data(b"x", 3), data(b"x"), head(3), raw(PING, payload=bytes(8)), raw(UNKNOWN), raw(CONTINUATION, END_HEADERS, 3, b"\x88")],
    ids=["data of another", "data", "head", "ping", "unknown", "another's continuation"],
)
@pytest.mark.parametrize("reads", [1, 2])
def test_nothing_may_come_between_the_frames_of_a_section(between: bytes, reads: int) -> None:
    connection, *exchanges = answering(2)
    begun = raw(HEADERS, 0, 1, b"")
    for read in [begun + between] if reads == 1 else [begun, between]:
        connection.receive(read)
    assert_closed(connection, PROTOCOL_ERROR, *exchanges)


def test_continuation_of_nothing() -> None:
    connection, exchange = asked()
    connection.receive(raw(CONTINUATION, END_HEADERS, 1, OK))
    assert_closed(connection, PROTOCOL_ERROR, exchange)


def test_padding_and_priority_of_a_head() -> None:
    for flags, payload in (
        (PADDED, b"\x03" + OK + bytes(3)),
        (WITH_PRIORITY, bytes(5) + OK),
        (PADDED | WITH_PRIORITY, b"\x01" + bytes(5) + OK + b"\0"),
    ):
        connection, exchange = asked()
        connection.receive(raw(HEADERS, END_HEADERS | flags, 1, payload))
        assert exchange.status == 200


def test_trailers_of_a_priority_alone() -> None:
    connection, exchange = answering()
    connection.receive(raw(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 1, bytes(5)))
    assert exchange.ended


BAD_SIZES = {
    "head without its padding's size": (raw(HEADERS, END_HEADERS | PADDED, 1), FRAME_SIZE_ERROR),
    "head of padding": (raw(HEADERS, END_HEADERS | PADDED, 1, b"\x01"), PROTOCOL_ERROR),
    "head that ends in its priority": (raw(HEADERS, END_HEADERS | WITH_PRIORITY, 1, bytes(4)), FRAME_SIZE_ERROR),
    "data without its padding's size": (raw(DATA, PADDED, 1), FRAME_SIZE_ERROR),
    "data of padding": (raw(DATA, PADDED, 1, b"\x02\0"), PROTOCOL_ERROR),
    "settings": (raw(SETTINGS, payload=bytes(7)), FRAME_SIZE_ERROR),
    "settings acknowledged": (raw(SETTINGS, ACK, payload=bytes(6)), FRAME_SIZE_ERROR),
    "ping": (raw(PING, payload=bytes(7)), FRAME_SIZE_ERROR),
    "reset": (raw(RST_STREAM, 0, 1, bytes(5)), FRAME_SIZE_ERROR),
    "window": (raw(WINDOW_UPDATE, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "goaway": (raw(GOAWAY, payload=bytes(7)), FRAME_SIZE_ERROR),
    "data too long": (raw(DATA, 0, 1, bytes(FRAME_SIZE + 1)), FRAME_SIZE_ERROR),
    "the head of data too long": (raw(DATA, 0, 1, bytes(FRAME_SIZE + 1))[:9], FRAME_SIZE_ERROR),
    "unknown too long": (raw(UNKNOWN, 0, 1, bytes(FRAME_SIZE + 1)), FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize(("sent", "code"), BAD_SIZES.values(), ids=BAD_SIZES.keys())
def test_a_frame_of_a_wrong_size(sent: bytes, code: int) -> None:
    connection, exchange = answering()
    assert connection.receive(sent) == [exchange]
    assert_closed(connection, code, exchange)
    assert "no HTTP/2" not in str(exchange.fault)


def test_the_longest_frame() -> None:
    connection, exchange = answering()
    connection.receive(data(bytes(FRAME_SIZE)))
    assert exchange.held == FRAME_SIZE


MISPLACED = {
    "data on no stream": data(b"x", 0),
    "head on no stream": head(0),
    "settings on a stream": raw(SETTINGS, 0, 1),
    "ping on a stream": raw(PING, 0, 1, bytes(8)),
    "goaway on a stream": raw(GOAWAY, 0, 1, bytes(8)),
    "reset on no stream": rst(0, 0),
    "priority on no stream": raw(PRIORITY, 0, 0, bytes(5)),
    "data on a stream that never was": data(b"x", 3),
    "empty data on a stream that never was": data(b"", 3),
    "head on a stream that never was": head(3),
    "half a head on a stream that never was": raw(HEADERS, 0, 3, OK),
    "reset of a stream that never was": rst(0, 3),
    "window of a stream that never was": grant(1, 3),
    "data on a stream of the server's": data(b"x", 2),
    "head on a stream of the server's": head(2),
    "a promise": raw(PUSH_PROMISE, END_HEADERS, 1, number(2) + OK),
    "push turned on": settings(push=1),
    "push of two": settings(push=2),
    "frames too short": settings(frame=16_383),
    "frames too long": settings(frame=2**24),
}


@pytest.mark.parametrize("sent", MISPLACED.values(), ids=MISPLACED.keys())
def test_a_frame_out_of_place(sent: bytes) -> None:
    connection, exchange = asked()
    assert connection.receive(sent) == [exchange]
    assert_closed(connection, PROTOCOL_ERROR, exchange)


def test_an_initial_window_too_large() -> None:
    connection, exchange = asked()
    connection.receive(settings(window=2**31))
    assert_closed(connection, FLOW_CONTROL_ERROR, exchange)


def test_settings_at_their_bounds() -> None:
    for values in (
        {"push": 0},
        {"frame": 2**24 - 1},
        {"window": 2**31 - 1},
        {"table": 2**32 - 1},
        {"other": 1},
        {"list": 0},
        {},
    ):
        connection, exchange = asked()
        connection.receive(settings(**values))
        assert out(connection) == [Frame(SETTINGS, ACK, 0, b"")]
        assert exchange.fault is None


def test_the_last_value_of_a_setting_holds() -> None:
    connection = Http2()
    connection.receive(raw(SETTINGS, payload=settings(streams=5)[9:] + settings(streams=9)[9:]))
    assert connection.limit == 9
    connection.receive(raw(SETTINGS, payload=settings(push=1)[9:] + settings(push=0)[9:]))
    assert_closed(connection, PROTOCOL_ERROR)


def test_ping_is_answered_but_not_its_answer() -> None:
    connection = connected()
    connection.receive(raw(PING, payload=b"12345678") + raw(PING, ACK, payload=b"87654321") + raw(SETTINGS, ACK))
    assert out(connection) == [Frame(PING, ACK, 0, b"12345678")]


def test_what_is_ignored() -> None:
    connection, exchange = answering()
    for stream in (1, 2, 99):
        connection.receive(raw(PRIORITY, 0, stream, bytes(5)))
    connection.receive(
        raw(PRIORITY, 0, 99, bytes(4)) + raw(UNKNOWN, 255, 99, b"x") + raw(255, 255, 0, b"x") + raw(DATA, 0xF6, 1, b"x")
    )
    assert (connection.outgoing(), exchange.held, connection.closing) == (b"", 1, False)


def test_priority_of_a_wrong_size() -> None:
    connection, exchange = asked()
    connection.receive(raw(PRIORITY, 0, 1, bytes(4)))
    assert_reset(connection, exchange, FRAME_SIZE_ERROR)


def test_the_reserved_bit_is_ignored() -> None:
    connection, exchange = answering()
    sent = data(b"x") + grant(1, 1) + goaway(2**32 - 1)
    marked = [bytearray(raw(*frame)) for frame in frames(sent)]
    for frame in marked:
        frame[5] |= 0x80
    marked[1][9] |= 0x80
    connection.receive(b"".join(marked))
    assert (exchange.held, exchange.fault, exchange.state.send_window, connection.retired) == (1, None, 65_536, True)


def test_a_section_too_long_to_keep() -> None:
    connection, exchange = asked()
    connection.receive(cut(literal(b"a", b"b") * (MAX_HEAD // 4), FRAME_SIZE)[:-1])
    assert not connection.closing
    connection.receive(b"b")
    assert_closed(connection, ENHANCE_YOUR_CALM, exchange)


def test_a_section_that_never_ends() -> None:
    connection, exchange = asked()
    connection.receive(raw(HEADERS, 0, 1, b""))
    for _ in range(5):
        connection.receive(raw(CONTINUATION, 0, 1, bytes(FRAME_SIZE)))
    assert_closed(connection, ENHANCE_YOUR_CALM, exchange)


def test_a_section_that_decodes_to_too_much() -> None:
    connection, exchange = asked()
    bomb = OK + b"\x40\x01a\x7f\xa1\x0f" + b"v" * 2080 + b"\xbe" * 40
    connection.receive(raw(HEADERS, END_HEADERS, 1, bomb))
    assert_closed(connection, ENHANCE_YOUR_CALM, exchange)


@pytest.mark.parametrize(
    "section", [b"\xff", b"\xbe", b"\x80", b"\x00\x05a", b"\x88\x20", b"\x3f\xe2\x1f", b"\x00\x81\xff\x00", b"\x7f" * 9]
)
def test_a_section_that_cannot_be_decoded(section: bytes) -> None:
    connection, exchange = asked()
    connection.receive(raw(HEADERS, END_HEADERS, 1, section))
    assert_closed(connection, COMPRESSION_ERROR, exchange)


def test_whatever_hpack_raises_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise IndexError

    connection, exchange = asked()
    monkeypatch.setattr(connection._decoder, "decode", explode)
    connection.receive(head())
    assert_closed(connection, COMPRESSION_ERROR, exchange)


def test_a_known_section_means_what_the_table_says_now() -> None:
    connection, *exchanges = asked(5)
    encoder = hpack.Encoder()
    told = [[("x", "1")], [("x", "1")], [("x", "1")], [("x", "2")], [("x", "1")]]
    sections = [encoder.encode([(":status", "200"), *fields]) for fields in told]
    assert sections[1] == sections[2] != sections[4]
    for exchange, section in zip(exchanges, sections, strict=True):
        connection.receive(raw(HEADERS, END_HEADERS, exchange.id, section))
    assert [list(exchange.headers) for exchange in exchanges] == told


def test_a_section_that_moves_the_table_is_decoded_each_time() -> None:
    connection, *exchanges = asked(3)
    for stream, section in ((1, OK + b"\x40\x01a\x01b"), (3, OK + b"\x40\x01a\x01b"), (5, OK + b"\xbf")):
        connection.receive(raw(HEADERS, END_HEADERS, stream, section))
    assert [exchange.headers for exchange in exchanges] == [(("a", "b"),)] * 3


def test_a_section_of_indexed_fields_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    connection, *exchanges = asked(5)
    connection.receive(raw(HEADERS, END_HEADERS, 1, OK + b"\x40\x01a\x01b"))
    connection.receive(raw(HEADERS, END_HEADERS, 3, OK + b"\xbe") + raw(HEADERS, END_HEADERS, 5, OK))
    monkeypatch.setattr(connection._decoder, "decode", None)
    connection.receive(raw(HEADERS, END_HEADERS, 7, OK + b"\xbe") + raw(HEADERS, END_HEADERS, 9, OK))
    assert [exchange.headers for exchange in exchanges[1:]] == [(("a", "b"),), (), (("a", "b"),), ()]


def test_known_sections_are_few() -> None:
    connection, *exchanges = asked(100)
    for exchange, index in zip(exchanges, range(2, 50), strict=False):
        connection.receive(raw(HEADERS, END_HEADERS, exchange.id, bytes((0x88, 0x80 | index))))
        assert len(connection._heads) <= http2.MOST_KEPT


def test_sections_for_dropped_streams_still_move_the_table() -> None:
    connection, stopped, failed, last = asked(3)
    encoder = hpack.Encoder()
    connection.receive(raw(HEADERS, END_HEADERS, 3, encoder.encode([(":status", "200"), ("x", "1"), ("Bad", "x")])))
    connection.stop(stopped)
    for stream, end in ((1, 0), (3, 0), (1, END_STREAM)):
        fields = [(":status", "200"), (f"x-{stream}-{end}", "y" * 30)]
        connection.receive(raw(HEADERS, END_HEADERS | end, stream, encoder.encode(fields)))
    fields = [(":status", "200"), ("x", "1"), ("x-1-0", "y" * 30), ("x-3-0", "y" * 30)]
    connection.receive(raw(HEADERS, END_HEADERS, 5, encoder.encode(fields)))
    assert list(last.headers) == fields[1:]
    assert (stopped.status, failed.status) == (0, 0)


def test_a_stream_dropped_within_its_section_still_moves_the_table() -> None:
    connection, stopped, last = asked(2)
    encoder = hpack.Encoder()
    section = encoder.encode([(":status", "200"), ("x", "1")])
    connection.receive(raw(HEADERS, 0, 1, section[:3]))
    connection.stop(stopped)
    connection.receive(raw(CONTINUATION, END_HEADERS, 1, section[3:]))
    connection.receive(raw(HEADERS, END_HEADERS, 3, encoder.encode([(":status", "200"), ("x", "1")])))
    assert last.headers == (("x", "1"),)


# Our windows.


def credits_of(connection: Http2) -> list[tuple[int, int]]:
    sent = [frame for frame in out(connection) if frame[:2] == (WINDOW_UPDATE, 0)]
    return [(frame.stream, int.from_bytes(frame.payload)) for frame in sent]


def test_a_stream_is_credited_as_it_is_taken() -> None:
    connection, exchange = answering()
    connection.receive(filled(WINDOW // 2))
    assert credits_of(connection) == []
    connection.take(exchange)
    assert credits_of(connection) == [(1, WINDOW // 2)]
    connection.receive(filled(WINDOW // 2 - 1))
    connection.take(exchange)
    assert credits_of(connection) == []
    connection.receive(data(b"x"))
    connection.take(exchange)
    assert credits_of(connection) == [(1, WINDOW // 2)]


def test_a_slow_reader_holds_one_window() -> None:
    connection, slow, quick = answering(2)
    connection.receive(filled(WINDOW))
    assert (slow.held, slow.fault, connection.outgoing()) == (WINDOW, None, b"")
    connection.receive(data(b"x") + data(b"y", 3))
    assert_reset(connection, slow, FLOW_CONTROL_ERROR)
    assert len(connection.take(slow)) == WINDOW
    assert connection.take(quick) == b"y"
    assert connection.outgoing() == b""  # no credit for a stream that is over


def test_a_window_that_was_credited_in_part() -> None:
    connection, exchange = answering()
    connection.receive(filled(1000))
    connection.take(exchange)  # not credited yet
    connection.receive(filled(WINDOW - 1000))
    assert exchange.fault is None
    connection.receive(data(b"x"))
    assert_reset(connection, exchange, FLOW_CONTROL_ERROR)


def test_the_last_byte_of_a_window_may_be_padding() -> None:
    connection, exchange = answering()
    connection.receive(filled(WINDOW - 256) + padded(b"x", 254))
    assert (exchange.held, exchange.fault) == (WINDOW - 255, None)


def test_a_slow_reader_of_tiny_chunks_holds_few_of_them() -> None:
    connection, exchange = answering()
    connection.receive(data(b"ab") * (WINDOW // 2))
    assert exchange.held == WINDOW
    assert len(exchange.chunks) <= http2.MOST_CHUNKS + STEP // 2
    assert connection.take(exchange) == b"ab" * (WINDOW // 2)


def test_padding_counts() -> None:
    connection, exchange = answering()
    for _ in range(WINDOW // 2 // 256 - 1):
        connection.receive(padded(b"", 255))
        connection.receive(data(b"x"))
        connection.take(exchange)
    assert credits_of(connection) != []
    connection, exchange = answering()
    connection.receive(padded(b"", 255) * 900 + filled(WINDOW - 900 * 256))
    assert (exchange.fault, exchange.held) == (None, WINDOW - 900 * 256)
    connection.receive(padded(b"", 0))
    assert_reset(connection, exchange, FLOW_CONTROL_ERROR)


def test_padding_alone_is_credited() -> None:
    connection, exchange = answering()
    frames_of_half = WINDOW // 2 // 256
    connection.receive(padded(b"", 255) * 600 + data(b"x") + padded(b"", 255) * (frames_of_half - 601))
    assert connection.take(exchange) == b"x"
    assert credits_of(connection) == []
    connection.receive(padded(b"", 255))
    assert credits_of(connection) == [(1, WINDOW // 2 + 1)]


def test_padded_content() -> None:
    connection, exchange = answering()
    connection.receive(padded(b"abc", 200) + padded(b"def", 0, end=True))
    assert (connection.take(exchange), exchange.ended) == (b"abcdef", True)


def test_the_connection_is_credited_as_content_comes() -> None:
    connection, *exchanges = answering(16 + 1)
    for exchange in exchanges[:16]:
        assert credits_of(connection) == []
        connection.receive(filled(WINDOW, exchange.id))
    assert credits_of(connection) == [(0, CONNECTION_WINDOW // 2)]
    assert credits_of(connection) == []
    connection.receive(filled(WINDOW, exchanges[-1].id))
    assert exchanges[-1].held == WINDOW


def test_the_connection_is_credited_for_dropped_streams_and_padding() -> None:
    connection, stopped, finished, failed = answering(3)
    connection.stop(stopped)
    connection.finish(finished)
    connection.receive(rst(INTERNAL_ERROR, failed.id))
    connection.outgoing()
    each = CONNECTION_WINDOW // 2 // 4 // 256
    for stream in (1, 3, 5):
        connection.receive(data(bytes(256), stream) * each)
    connection.receive(padded(b"x", 254) * (each - 1))
    assert credits_of(connection) == []
    connection.receive(padded(b"x", 254))
    assert credits_of(connection) == [(0, CONNECTION_WINDOW // 2)]


def test_more_than_the_connections_window() -> None:
    connection, *exchanges = answering(33)
    connection.receive(b"".join(filled(WINDOW, exchange.id) for exchange in exchanges[:-1]))
    assert not connection.closing
    connection.receive(data(b"x", exchanges[-1].id))
    assert_closed(connection, FLOW_CONTROL_ERROR, *exchanges)


# Ends.


def test_content_after_the_end_is_told_once() -> None:
    for late in (data(b"x"), data(b"", end=True), head(), head(status=None, end=True)):
        connection, exchange = asked()
        connection.receive(head(end=True))
        assert connection.receive(late) == []
        assert out(connection) == [Frame(RST_STREAM, 0, 1, number(STREAM_CLOSED))]
        connection.receive(late + rst(0) + grant(1, 1) + grant(0, 1) + raw(PRIORITY, 0, 1, bytes(5)))
        assert (connection.outgoing(), exchange.ended, exchange.fault, exchange.held) == (b"", True, None, 0)
        assert not connection.closing


def test_what_is_known_of_ended_streams_is_little() -> None:
    connection, *exchanges = asked(500)
    connection.receive(b"".join(head(exchange.id, end=True) for exchange in exchanges))
    connection.receive(data(b"x", 1) + data(b"x", exchanges[-1].id))
    assert [frame.stream for frame in out(connection)] == [exchanges[-1].id]
    assert len(connection._ended) <= http2.MOST_ENDED


@pytest.mark.parametrize(
    ("code", "name"), [(0, "NO_ERROR"), (2, "INTERNAL_ERROR"), (8, "CANCEL"), (11, "ENHANCE_YOUR_CALM"), (99, "code 99")]
)
def test_a_reset(code: int, name: str) -> None:
    connection, exchange, other = answering(2)
    assert connection.receive(data(b"part") + rst(code)) == [exchange]
    assert isinstance(exchange.fault, LostError)
    assert (exchange.fault.code, exchange.fault.unprocessed, exchange.ended) == (code, False, False)
    assert name in str(exchange.fault)
    assert connection.take(exchange) == b"part"
    assert (connection.outgoing(), connection.busy, other.fault) == (b"", 1, None)


@pytest.mark.parametrize("code", [REFUSED_STREAM, CANCEL])
@pytest.mark.parametrize("begun", [False, True])
def test_only_a_refused_stream_without_a_head_is_unprocessed(code: int, begun: bool) -> None:
    connection, exchange = answering() if begun else asked()
    connection.receive(rst(code))
    assert isinstance(exchange.fault, LostError)
    assert exchange.fault.unprocessed == (code == REFUSED_STREAM and not begun)


def test_a_reset_after_the_end_changes_nothing() -> None:
    connection, exchange = asked()
    connection.receive(head(end=True) + rst(INTERNAL_ERROR))
    assert (exchange.ended, exchange.fault) == (True, None)


def test_goaway_fails_those_above_as_unprocessed() -> None:
    connection, first, second, third = asked(3)
    assert connection.receive(raw(GOAWAY, 0, 0, number(3) + number(ENHANCE_YOUR_CALM) + b"too_many_pings")) == [third]
    assert isinstance(third.fault, LostError)
    assert (third.fault.unprocessed, third.fault.code) == (True, ENHANCE_YOUR_CALM)
    assert "ENHANCE_YOUR_CALM" in str(third.fault)
    assert (connection.retired, connection.closing, connection.room, connection.busy) == (True, False, 0, 2)
    with pytest.raises(LostError):
        connection.start(request(), whole=False)
    connection.receive(head(1) + data(b"x", 1, end=True) + head(3, end=True))
    assert (first.ended, second.ended, connection.busy) == (True, True, 0)


def test_goaway_in_two_steps() -> None:
    connection, first, second = asked(2)
    assert connection.receive(goaway(2**31 - 1)) == []
    assert connection.retired
    assert connection.receive(goaway(1)) == [second]
    assert connection.receive(goaway(2**31 - 1)) == []
    connection.receive(head(end=True))
    assert first.ended
    assert isinstance(second.fault, LostError)
    assert (second.fault.unprocessed, second.fault.code) == (True, NO_ERROR)


def test_goaway_of_nothing_processed() -> None:
    connection, *exchanges = asked(3)
    assert connection.receive(goaway(0)) == exchanges
    assert all(isinstance(exchange.fault, LostError) and exchange.fault.unprocessed for exchange in exchanges)
    assert connection.busy == 0


def test_goaway_then_the_end_tells_the_code() -> None:
    connection, exchange = answering()
    connection.receive(goaway(1, ENHANCE_YOUR_CALM) + data(b"x"))
    assert connection.lost("") == [exchange]
    assert isinstance(exchange.fault, LostError)
    assert (exchange.fault.code, exchange.fault.unprocessed) == (ENHANCE_YOUR_CALM, False)


def test_goaway_with_an_error_then_broken_rules_tells_the_code() -> None:
    connection, exchange = asked()
    connection.receive(goaway(1, INTERNAL_ERROR) + head(2))
    assert isinstance(exchange.fault, LostError)
    assert exchange.fault.code == INTERNAL_ERROR


def test_goaway_within_a_request_half_sent() -> None:
    connection = connected(window=10)
    first, second = (connection.start(request(body=bytes(20)), whole=False) for _ in "12")
    connection.outgoing()
    connection.receive(goaway(1))
    connection.receive(grant(10, 1))
    assert (first.unsent, second.unsent) == (None, None)
    assert [frame[:3] for frame in out(connection)] == [(DATA, END_STREAM, 1)]


@pytest.mark.parametrize("words", ["", "reset by peer"])
def test_a_lost_connection(words: str) -> None:
    connection, first, second = answering(2)
    connection.receive(data(b"part") + data(b"whole", 3, end=True) + data(b"pie")[:5])
    assert connection.lost(words) == [first]
    assert isinstance(first.fault, LostError)
    assert (first.fault.code, first.fault.unprocessed) == (None, False)
    assert words in str(first.fault)
    assert (connection.take(first), connection.take(second), second.fault) == (b"part", b"whole", None)
    assert (connection.closing, connection.retired, connection.busy, connection.room) == (True, True, 0, 0)
    assert connection.lost("") == []
    assert connection.receive(data(b"x")) == []


def test_stop() -> None:
    connection, exchange, other = answering(2, whole=False)
    connection.receive(data(b"x"))
    assert (connection.busy, connection.room) == (2, MOST_STREAMS - 2)
    for _ in range(3):
        connection.stop(exchange)
    assert out(connection) == [Frame(RST_STREAM, 0, 1, number(CANCEL))]
    assert (exchange.chunks, exchange.held, connection.busy, connection.room) == ([], 0, 1, MOST_STREAMS - 1)
    assert connection.receive(data(b"late") + rst(CANCEL) + data(b"y", 3)) == [other]
    assert (connection.take(exchange), connection.outgoing()) == (b"", b"")


def test_a_stopped_exchange_is_over() -> None:
    connection, exchange = answering()
    connection.stop(exchange)
    assert (isinstance(exchange.fault, LostError), exchange.ended) == (True, False)


def test_stopping_what_is_over_only_drops_what_is_held() -> None:
    connection, exchange = answering()
    connection.receive(data(b"x", end=True))
    connection.stop(exchange)
    assert (connection.outgoing(), exchange.held, connection.take(exchange), exchange.ended, exchange.fault) == (
        b"",
        0,
        b"",
        True,
        None,
    )


def test_many_stopped_streams_leave_nothing_behind() -> None:
    connection = connected(streams=1, window=0)
    for _ in range(300):
        connection.stop(connection.start(request(body=b"x"), whole=False))
    connection.outgoing()
    kept = (
        connection._streams,
        connection._finishing,
        connection._sending,
        connection._ended,
        connection._touched,
        connection._out,
    )
    assert [len(part) for part in kept] == [0] * len(kept)
    assert connection.room == 1


@pytest.mark.parametrize(
    "end",
    [data(b"", end=True), head(status=None, end=True), padded(b"", 3, end=True), rst(CANCEL)],
    ids=["data", "trailers", "padded", "reset"],
)
def test_finish_waits_for_the_end_unread(end: bytes) -> None:
    connection, exchange = answering()
    connection.receive(data(b"[DONE]"))
    connection.finish(exchange)
    connection.finish(exchange)
    assert (exchange.held, exchange.chunks, connection.busy) == (0, [], 1)
    assert connection.receive(data(b"") + padded(b"", 200)) == []
    assert connection.busy == 1
    assert connection.receive(end) == []
    assert (connection.busy, connection.outgoing()) == (0, b"")
    assert exchange.ended == (end != rst(CANCEL))


@pytest.mark.parametrize("more", [data(b"more"), padded(b"m", 1), data(b"more", end=True)], ids=["data", "padded", "end"])
def test_finish_resets_a_stream_that_goes_on(more: bytes) -> None:
    connection, exchange = answering()
    connection.finish(exchange)
    assert connection.receive(padded(b"", 1) + more) == []
    assert out(connection) == [Frame(RST_STREAM, 0, 1, number(CANCEL))]
    assert (connection.busy, exchange.held) == (0, 0)


def test_finish_before_the_head() -> None:
    for sent in (head() + data(b"x"), data(b"x"), data(b""), data(b"", end=True)):
        connection, exchange = asked()
        connection.finish(exchange)
        assert connection.receive(sent) == []
        assert out(connection) == [Frame(RST_STREAM, 0, 1, number(CANCEL))]
        assert not exchange.ended


def test_finish_of_a_told_length_ends_well() -> None:
    connection, exchange = answering(fields=[("content-length", "3")])
    connection.receive(data(b"abc"))
    connection.finish(exchange)
    connection.receive(data(b"", end=True))
    assert (exchange.ended, exchange.fault) == (True, None)


def test_finishing_what_is_over_keeps_what_is_held() -> None:
    connection, exchange = answering()
    connection.receive(data(b"x", end=True))
    connection.finish(exchange)
    assert connection.take(exchange) == b"x"


def test_stop_after_finish() -> None:
    connection, exchange = answering()
    connection.finish(exchange)
    connection.stop(exchange)
    assert (out(connection), connection.busy) == ([Frame(RST_STREAM, 0, 1, number(CANCEL))], 0)


def test_a_finished_exchange_ends_with_the_connection_unheard() -> None:
    connection, finished, other = answering(2)
    connection.finish(finished)
    assert connection.lost("") == [other]
    assert finished.fault is not None


def test_finished_exchanges_make_room_the_oldest_first() -> None:
    connection, first, second, third = asked(3, streams=3)
    assert connection.room == 0
    connection.finish(second)
    connection.finish(first)
    assert (connection.room, connection.busy) == (2, 3)
    fourth = connection.start(request(), whole=False)
    assert [frame[:3] for frame in out(connection)] == [
        (RST_STREAM, 0, second.id),
        (HEADERS, END_STREAM | END_HEADERS, fourth.id),
    ]
    assert (connection.room, connection.busy, third.fault) == (1, 3, None)
    connection.receive(settings(streams=2))
    assert connection.room == 0
    connection.receive(head(third.id, end=True))
    connection.start(request(), whole=False)
    assert connection.busy == 2


def test_a_response_that_ends_leaves_no_credit_to_give() -> None:
    connection, exchange = answering()
    connection.receive(filled(WINDOW // 2) + data(b"", end=True))
    connection.take(exchange)
    assert connection.outgoing() == b""


# Floods.

FLOODS = {
    "ping": raw(PING, payload=bytes(8)),
    "ping answered": raw(PING, ACK, payload=bytes(8)),
    "settings": settings(),
    "settings acknowledged": raw(SETTINGS, ACK),
    "empty data": data(b""),
    "padding": padded(b"", 1),
    "empty data on a closed stream": data(b"", 3, end=True),
    "head on a closed stream": head(3, end=True),
    "reset": rst(0, 3),
    "priority": raw(PRIORITY, 0, 1, bytes(5)),
    "window": grant(1),
    "window of a stream": grant(1, 1),
    "window of a closed stream": grant(1, 3),
    "goaway": goaway(2**31 - 1),
    "unknown": raw(UNKNOWN),
}


@pytest.mark.parametrize("sent", FLOODS.values(), ids=FLOODS.keys())
@pytest.mark.parametrize("at_once", [False, True])
def test_a_flood(sent: bytes, at_once: bool) -> None:
    connection, exchange, closed = answering(2)
    connection.receive(head(closed.id, status=None, end=True))
    connection.receive(data(b"x"))
    for _ in [0] if at_once else range(MOST_IDLE):
        connection.receive(sent * (MOST_IDLE if at_once else 1))
    assert not connection.closing
    connection.receive(data(b"x") + sent * MOST_IDLE)  # content starts the count anew
    assert not connection.closing
    connection.receive(sent)
    assert_closed(connection, ENHANCE_YOUR_CALM, exchange)
    assert "flood" in str(exchange.fault)


@pytest.mark.parametrize(
    "sent", [padded(b"x", 1), data(b"", 3, end=True), data(bytes(FRAME_SIZE)) * 5], ids=["padded", "end", "much"]
)
def test_any_content_starts_the_count_anew(sent: bytes) -> None:
    connection, *_ = answering(2)
    connection.receive(FLOODS["ping"] * MOST_IDLE + sent + FLOODS["ping"] * MOST_IDLE)
    assert not connection.closing


def test_a_flood_of_continuations() -> None:
    connection, exchange = asked()
    connection.receive(raw(HEADERS, 0, 1, OK) + raw(CONTINUATION, 0, 1) * MOST_IDLE)
    assert not connection.closing
    connection.receive(raw(CONTINUATION, 0, 1))
    assert_closed(connection, ENHANCE_YOUR_CALM, exchange)


def test_a_head_starts_the_count_anew() -> None:
    connection, _, second = asked(2)
    connection.receive(FLOODS["ping"] * MOST_IDLE + head(1) + FLOODS["ping"] * MOST_IDLE + head(3, end=True))
    connection.receive(FLOODS["ping"] * MOST_IDLE)
    assert (connection.closing, second.ended) == (False, True)


def test_windows_for_what_was_sent_are_no_flood() -> None:
    connection = connected(window=20_000_000)
    connection.receive(grant(20_000_000))
    exchange = connection.start(request(body=bytes(10_000_000)), whole=False)
    assert exchange.unsent is None
    for _ in range(2000):
        connection.receive(grant(5_000) + grant(5_000, 1))
    assert not connection.closing
    connection.receive(grant(1) * (MOST_IDLE + 1))
    assert_closed(connection, ENHANCE_YOUR_CALM, exchange)


def test_windows_while_something_waits_are_no_flood() -> None:
    connection = connected(window=0)
    exchange = connection.start(request(body=bytes(3000)), whole=False)
    for _ in range(3000):
        connection.receive(grant(1, 1))
    assert (exchange.unsent, connection.closing) == (None, False)


# Any cut of the bytes gives the same.


def story(rng: random.Random, count: int) -> bytes:
    """Return what a server may send to ``count`` exchanges, faults and frames that bring nothing among it."""
    encoder = hpack.Encoder()
    todo = {2 * turn + 1: rng.randint(0, 6) for turn in range(count)}
    sent = [settings(streams=100, window=rng.choice([10, 100_000]))]
    answered: set[int] = set()
    while todo:
        stream = rng.choice(list(todo))
        fields = [("x", str(rng.randint(0, 3))), ("content-type", "text/event-stream"), ("y", "z" * rng.randint(0, 200))]
        if stream not in answered:
            status = rng.choice(["103", "200", "200", "404"])
            answered |= {stream} if status != "103" else set()
            sent.append(cut(encoder.encode([(":status", status), *fields]), rng.choice([5, 100, 1000]), stream))
        elif todo[stream]:
            todo[stream] -= 1
            content = rng.randbytes(rng.choice([1, 20, 300, 10_000]))
            sent.append(padded(content, rng.randint(0, 9), stream) if rng.random() < 0.2 else data(content, stream))
        else:
            del todo[stream]
            trailers = raw(HEADERS, END_STREAM | END_HEADERS, stream, encoder.encode([("t", "u")]))
            sent.append(
                rng.choice(
                    [
                        data(b"", stream, end=True),
                        data(b"end", stream, end=True),
                        trailers,
                        rst(rng.randint(0, 13), stream),
                        head(stream),
                    ]
                )
            )
        if rng.random() < 0.2:
            extra = [
                raw(PING, payload=b"12345678"),
                raw(UNKNOWN, 7, 9, b"?"),
                data(b"", stream),
                grant(100),
                grant(7, 1),
                goaway(rng.randint(1, 2 * count)),
            ]
            sent.append(rng.choice(extra))
    return b"".join(sent) + rng.choice([b"", b"", rng.randbytes(40)])


def told(whole: list[bool], reads: Iterable[bytes], *, take: bool) -> object:
    """Return all that a caller sees of a story."""
    connection = Http2()
    connection.limit = len(whole)
    exchanges = [connection.start(request(body=bytes(30)), whole=one) for one in whole]
    bodies = dict.fromkeys(exchanges, b"")
    touched: set[Exchange] = set()
    sent = b""
    for read in reads:
        for exchange in connection.receive(read):
            touched.add(exchange)
            if take:
                bodies[exchange] += connection.take(exchange)
        sent += connection.outgoing()
    connection.lost("")
    seen = []
    for exchange in exchanges:
        assert exchange in touched or not (exchange.ended or exchange.status)
        fault = exchange.fault and (type(exchange.fault), str(exchange.fault), getattr(exchange.fault, "code", 0))
        seen.append((exchange.status, exchange.headers, bodies[exchange] + connection.take(exchange), exchange.ended, fault))
    # How much of a request went out before its response ended hangs on the reads, and so does the reset of its rest.
    said = sorted(frame for frame in frames(sent) if frame.kind != DATA and frame[::3] != (RST_STREAM, number(NO_ERROR)))
    return seen, said, connection.retired


@pytest.mark.parametrize("seed", range(100))
def test_any_cut_of_the_bytes_gives_the_same(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 12)
    whole = [False for _ in range(count)]
    bytes_ = story(rng, count)
    expected = told(whole, [bytes_], take=False)
    assert told(whole, [bytes_[at : at + 1] for at in range(len(bytes_))], take=True) == expected
    for _ in range(4):
        cuts = sorted(rng.sample(range(len(bytes_)), min(len(bytes_) - 1, rng.choice([2, 20, 200]))))
        reads = [bytes_[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(bytes_)])]
        assert told(whole, reads, take=rng.random() < 0.5) == expected


# Against the h2 package.


class Served:
    """One exchange: what the server got, and what it has still to send."""

    def __init__(self, rng: random.Random, method: str) -> None:
        self.got: list[tuple[str, str]] = []
        self.body = b""
        self.complete = False
        self.interim = rng.choice([0, 0, 0, 2])
        self.status = rng.choice([200, 200, 404, 500, 204 if rng.random() < 0.2 else 200])
        self.headers = random_headers(rng)
        empty = method == "HEAD" or self.status == 204
        self.content = b"" if empty else rng.randbytes(rng.choice([0, 1, 50, 5_000, rng.randint(0, 400_000)]))
        if rng.random() < 0.5 and not empty:
            self.headers.append(("content-length", str(len(self.content))))
        self.trailers = random_headers(rng) if rng.random() < 0.2 and not empty else []
        self.left: bytes | None = None  # None before the head
        self.early = rng.random() < 0.1  # answer before the request is complete


def random_headers(rng: random.Random) -> list[tuple[str, str]]:
    names = ["content-type", "x-request-id", "server", "x-a", "x-b", "authorization", "cache-control", "date"]
    values = ["", "text/event-stream", "a" * 126, "b" * 127, "c" * 128, "d" * 300, "e" * 2000, "req_123", "é", "a, b"]
    return [(rng.choice(names), rng.choice(values)) for _ in range(rng.randint(0, 12))]


class H2Server:
    """The h2 package as a server that sends at random."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.streams: dict[int, Served] = {}
        config = h2.config.H2Configuration(client_side=False, header_encoding=None, normalize_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.limit = rng.choice([1, 3, 20, 100])
        self.window = rng.choice([200, 65_535, 1_000_000])
        codes = h2.settings.SettingCodes
        values = {
            codes.MAX_CONCURRENT_STREAMS: self.limit,
            codes.INITIAL_WINDOW_SIZE: self.window,
            codes.MAX_FRAME_SIZE: rng.choice([16_384, 20_000, 100_000]),
        }
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self.h2.max_inbound_frame_size = values[codes.MAX_FRAME_SIZE]
        self.h2.initiate_connection()

    def receive(self, sent: bytes) -> None:
        for event in self.h2.receive_data(sent):
            if isinstance(event, h2.events.RequestReceived):
                got = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
                served = self.streams[event.stream_id] = Served(self.rng, dict(got)[":method"])
                served.got = got
                assert len(self.streams) - sum(s.complete and s.left == b"" for s in self.streams.values()) <= self.limit
            elif isinstance(event, h2.events.DataReceived):
                self.streams[event.stream_id].body += event.data
                if event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.streams[event.stream_id].complete = True
            else:
                assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated), event

    def step(self) -> None:
        """Send one thing of one exchange, if there is any to send."""
        ready = [number for number, served in self.streams.items() if served.left != b"" or not served.content]
        ready = [
            number for number in ready if self.streams[number].complete and not getattr(self.streams[number], "closed", False)
        ]
        if not ready:
            return
        stream = self.rng.choice(ready)
        served = self.streams[stream]
        if served.interim:
            served.interim -= 1
            self.h2.send_headers(stream, [(b":status", b"103"), (b"link", b"x")])
        elif served.left is None:
            fields = [(name.encode(), value.encode("latin-1")) for name, value in served.headers]
            served.left = served.content
            self.h2.send_headers(stream, [(b":status", str(served.status).encode()), *fields])
        else:
            self.send_content(stream, served)

    def send_content(self, stream: int, served: Served) -> None:
        assert served.left is not None
        padding = self.rng.choice([None, None, None, 0, 200])
        room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size) - (
            0 if padding is None else padding + 1
        )
        size = max(0, min(len(served.left), room, self.rng.choice([1, 100, 20_000])))
        piece, served.left = served.left[:size], served.left[size:]
        end = not served.left and not served.trailers
        if (size or end) and room >= 0:
            self.h2.send_data(stream, piece, end_stream=end, pad_length=padding)
        if not served.left:
            if served.trailers:
                self.h2.send_headers(
                    stream, [(name.encode(), value.encode("latin-1")) for name, value in served.trailers], end_stream=True
                )
            served.closed = end or bool(served.trailers)


def random_request(rng: random.Random) -> Request:
    method = rng.choice(["POST", "POST", "POST", "GET", "HEAD", "PUT", "DELETE"])
    body = b"" if method in {"GET", "HEAD"} else rng.randbytes(rng.choice([0, 2, 3_000, rng.randint(0, 300_000)]))
    headers = tuple(random_headers(rng)) if rng.random() < 0.5 else (("x", "y"),)
    return request(method, headers, body, rng.choice(["/", "/v1/chat/completions", "/?q=" + "z" * 500]))


def moved(rng: random.Random, pipe: bytearray) -> bytes:
    size = rng.choice([1, 9, 100, 5_000, 65_536, len(pipe)])
    piece = bytes(pipe[:size])
    del pipe[:size]
    return piece


@pytest.mark.parametrize("seed", range(80))
def test_what_each_side_sends_is_what_the_other_gets(seed: int) -> None:
    rng = random.Random(seed)
    server, client = H2Server(rng), Http2()
    todo = [random_request(rng) for _ in range(rng.randint(1, 20))]
    asked_for: dict[int, tuple[Request, Exchange]] = {}
    bodies: dict[int, bytes] = {}
    to_server, to_client = bytearray(), bytearray()
    for _ in range(200_000):
        # h2 holds us to its window before we can know it, against section 6.9.2: no request before then, if it is a small one.
        if todo and client.room and rng.random() < 0.3 and (client.settled or server.window >= 65_535):
            one = todo.pop()
            exchange = client.start(one, whole=rng.random() < 0.3)
            asked_for[exchange.id], bodies[exchange.id] = (one, exchange), b""
        to_server += client.outgoing()
        if to_server:
            server.receive(moved(rng, to_server))
        server.step()
        to_client += server.h2.data_to_send()
        for exchange in client.receive(moved(rng, to_client)) if to_client else ():
            assert exchange.fault is None
            assert not exchange.whole or exchange.ended or exchange.held > WHOLE_PIECE
            if exchange.whole or exchange.ended or rng.random() < 0.8:
                bodies[exchange.id] += client.take(exchange)
        slow = rng.choice(list(asked_for.values()))[1] if asked_for else None
        if slow is not None and rng.random() < 0.3:
            bodies[slow.id] += client.take(slow)
        if not todo and all(exchange.ended for _, exchange in asked_for.values()):
            break
    assert not todo
    for stream, (one, exchange) in asked_for.items():
        served = server.streams[stream]
        length = [("content-length", str(len(one.body)))] if one.body or one.method in {"POST", "PUT"} else []
        pseudo = [(":method", one.method), (":scheme", "https"), (":authority", "host.example"), (":path", one.target)]
        assert served.got == [*pseudo, *one.headers, *length]
        assert served.body == one.body
        assert (exchange.status, list(exchange.headers)) == (served.status, served.headers)
        assert bodies[stream] == served.content
    assert client.busy == 0
