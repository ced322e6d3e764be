"""Http1 against its rules one by one, and against h11 on random, cut and corrupted bytes."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

import h11
import pytest

from jazz_llm.transport import http1
from jazz_llm.transport.exchange import (
    MAX_HEAD,
    MAX_INTERIM,
    WHOLE_PIECE,
    Exchange,
    HTTPConnection,
    LostError,
    ProtocolError,
    Request,
)
from jazz_llm.transport.http1 import MAX_BLANK, MAX_DRAIN, MAX_HEADS, MAX_LINE, Http1
from tests.fuzz.fuzz_http1 import fuzz_one

if TYPE_CHECKING:
    from collections.abc import Iterable

ORIGIN = ("https", "api.example.com", 443)
SECRET = "sk-secret"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
TEN = OK + b"content-length: 10\r\n\r\n"
UNTIL_CLOSE = OK + b"\r\n"
EMPTY = OK + b"content-length: 0\r\n\r\n"


@pytest.fixture(autouse=True)
def collected() -> None:
    """Collect no garbage after each test, which costs 10 s here: nothing in this file is ever opened."""


def asking(method="GET", target="/v1", headers=(), body=b"", origin=ORIGIN):
    return Request(method, origin, target, (("authorization", f"Bearer {SECRET}"), *headers), body)


def started(method="GET", *, whole=False, headers=(), **options) -> tuple[Http1, Exchange]:
    connection = Http1(**options)
    exchange = connection.start(asking(method, headers=headers), whole=whole)
    connection.outgoing()
    return connection, exchange


def answered(*reads: bytes, method="GET", headers=()) -> tuple[Http1, Exchange]:
    connection, exchange = started(method, headers=headers)
    for read in reads:
        connection.receive(read)
    return connection, exchange


def by_the_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def refusal(*reads: bytes, method="GET") -> str:
    """Return the words of the ProtocolError that the bytes must end in, however they are cut."""
    words = set()
    for cut in (reads, by_the_byte(b"".join(reads))):
        connection, exchange = answered(*cut, method=method)
        assert isinstance(exchange.fault, ProtocolError), exchange.status
        assert not exchange.ended
        assert (connection.closing, connection.retired, connection.room, connection.busy) == (True, True, 0, 0)
        words.add(str(exchange.fault))
    assert len(words) == 1
    return words.pop()


def body_of(*reads: bytes, method="GET") -> bytes:
    """Return the body of an answer that must end well, however it is cut."""
    bodies = set()
    for cut in (reads, by_the_byte(b"".join(reads))):
        connection, exchange = answered(*cut, method=method)
        assert (exchange.ended, exchange.fault) == (True, None)
        bodies.add(connection.take(exchange))
    assert len(bodies) == 1
    return bodies.pop()


def test_it_has_the_face_of_a_connection() -> None:
    face: HTTPConnection = Http1()
    assert (face.limit, face.settled) == (1, True)
    assert (face.room, face.busy, face.retired, face.closing, face.version) == (1, 0, False, False, "HTTP/1.1")


# Requests


def written(request: Request, **options) -> bytes:
    connection = Http1(**options)
    connection.start(request, whole=True)
    return connection.outgoing()


def test_a_request_is_one_piece_with_host_first_and_the_length_last() -> None:
    request = asking("POST", "/v1/chat?x=1", (("accept", "*/*"),), b'{"a":1}')
    assert written(request) == (
        b"POST /v1/chat?x=1 HTTP/1.1\r\nhost: api.example.com\r\nauthorization: Bearer sk-secret\r\naccept: */*\r\n"
        b'content-length: 7\r\n\r\n{"a":1}'
    )


def test_outgoing_returns_it_once() -> None:
    connection = Http1()
    connection.start(asking(), whole=True)
    assert connection.outgoing()
    assert connection.outgoing() == b""


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [
        ("GET", b"", None),
        ("DELETE", b"", None),
        ("POST", b"", b"0"),
        ("PUT", b"", b"0"),
        ("PATCH", b"", b"0"),
        ("GET", b"xy", b"2"),
    ],
)
def test_content_length_stands_where_a_body_is_or_could_be(method, body, length) -> None:
    head, _, rest = written(asking(method, body=body)).partition(b"\r\n\r\n")
    assert re.findall(rb"content-length: (.*)", head) == ([] if length is None else [length])
    assert rest == body


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (("http", "a", 80), b"a"),
        (("http", "a", 443), b"a:443"),
        (("https", "a", 8443), b"a:8443"),
        (("https", "::1", 443), b"[::1]"),
        (("http", "::1", 8080), b"[::1]:8080"),
    ],
)
def test_the_host_shows_a_port_that_is_not_the_usual(origin, host) -> None:
    assert b"\r\nhost: " + host + b"\r\n" in written(asking(origin=origin))


def test_a_forwarding_proxy_gets_the_whole_address_and_its_own_headers() -> None:
    out = written(asking(origin=("http", "a", 8000)), absolute=True, proxy_headers=(("proxy-authorization", "Basic eA=="),))
    assert out.startswith(
        b"GET http://a:8000/v1 HTTP/1.1\r\nhost: a:8000\r\nproxy-authorization: Basic eA==\r\nauthorization: "
    )


def test_a_kept_head_belongs_to_one_origin() -> None:
    connection = Http1(absolute=True)
    for host in (b"a", b"b"):
        connection.start(asking(origin=("http", host.decode(), 80)), whole=True)
        assert connection.outgoing().startswith(b"GET http://" + host + b"/v1 HTTP/1.1\r\nhost: " + host + b"\r\n")
        connection.receive(EMPTY)


def test_connect_keeps_its_target_also_where_others_are_absolute() -> None:
    assert written(asking("CONNECT", "a:443"), absolute=True).startswith(b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n")


def test_a_kept_head_is_the_same_and_few_are_kept() -> None:
    connection = Http1()
    for number in [*range(3 * MAX_HEADS), 0, 0]:
        request = asking("POST", headers=(("x", str(number)),), body=b"x" * number)
        connection.start(request, whole=True)
        assert connection.outgoing() == written(request)
        connection.receive(EMPTY)
        assert len(connection._heads) <= MAX_HEADS


@pytest.mark.parametrize(
    "change",
    [
        {"method": "GET "},
        {"method": "G\r\nET"},
        {"method": ""},
        {"target": ""},
        {"target": "/a b"},
        {"target": "/\r\nx: y"},
        {"target": "/é"},
        {"origin": ("https", "a\r\nx: y", 443)},
        *(
            {"headers": (header,)}
            for header in [
                ("x", "a\r\ny: b"),
                ("x", "a\n b"),
                ("x", "a\rb"),
                ("x", "a\0"),
                ("x", " a"),
                ("x", "\u20ac"),
                ("x", "\ud800"),
                ("x y", "a"),
                ("x: y", "a"),
                ("", "a"),
                ("x\r\ny", "a"),
            ]
        ),
    ],
    ids=repr,
)
def test_what_would_break_out_of_its_line_is_refused_and_not_shown(change) -> None:
    connection = Http1()
    for _ in range(2):  # the second time from what is kept
        with pytest.raises(ValueError, match="does not allow") as caught:
            connection.start(asking(**change), whole=True)
        frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
        ours = [frame.locals for frame in frames if frame.filename == http1.__file__]
        assert ours
        assert SECRET not in repr(ours)
    assert (connection.outgoing(), connection.room) == (b"", 1)


def test_one_exchange_at_a_time() -> None:
    connection, _ = started()
    assert (connection.room, connection.busy) == (0, 1)
    with pytest.raises(LostError):
        connection.start(asking(), whole=True)


def test_random_requests_read_by_an_h11_server_are_what_was_asked() -> None:
    rng = Random(1)
    for _ in range(400):
        request = random_request(rng)
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        server.receive_data(written(request))
        event = server.next_event()
        assert isinstance(event, h11.Request)
        got = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
        length = (
            [("content-length", str(len(request.body)))] if request.body or request.method in {"POST", "PUT", "PATCH"} else []
        )
        assert got == [("host", request.authority), *request.headers, *length]
        assert (event.method.decode(), event.target.decode()) == (request.method, request.target)
        assert body_by(server) == request.body


def body_by(connection: h11.Connection) -> bytes:
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += event.data
    return body


def random_request(rng: Random) -> Request:
    names = ["accept", "x-a", "authorization", "cookie", "~!#$%&'*+.^_`|"]
    headers = tuple((rng.choice(names), random_value(rng)) for _ in range(rng.randrange(6)))
    target = "/" + "".join(chr(rng.randrange(0x21, 0x7F)) for _ in range(rng.randrange(20)))
    body = rng.randbytes(rng.choice([0, 0, 1, 100, 100_000]))
    return Request(
        rng.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]),
        ("http", "h.example", rng.choice([80, 81])),
        target,
        headers,
        body,
    )


def random_value(rng: Random) -> str:
    return "".join(rng.choice('abcXYZ019 \t,;="é\xa0\x85\xff') for _ in range(rng.randrange(15))).strip(" \t")


# The head


def test_status_headers_and_version() -> None:
    connection, exchange = answered(
        b"HTTP/1.1 299 Fine by me\r\nX-A:  b c\t \r\nx-empty:\r\nX-A: caf\xe9\r\ncontent-length: 0\r\n\r\n"
    )
    assert exchange.status == 299
    assert exchange.headers == (("x-a", "b c"), ("x-empty", ""), ("x-a", "café"), ("content-length", "0"))
    assert connection.version == "HTTP/1.1"


def test_the_version_is_that_of_the_last_answer() -> None:
    connection, _ = answered(b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n")
    assert connection.version == "HTTP/1.0"
    connection.start(asking(), whole=True)
    connection.receive(EMPTY)
    assert connection.version == "HTTP/1.1"


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.1 200 \xe9\t!", b"HTTP/1.1 999 x", b"HTTP/1.0 200 OK"]
)
def test_legal_status_lines(line) -> None:
    assert answered(line + b"\r\ncontent-length: 0\r\n\r\n")[1].ended


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 099 x", b"HTTP/1.1 +20 x", b"HTTP/1.1 2 0", b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK", b"HTTP/1.1 200\tOK", b"HTTP/1.1 200OK",
        b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 O\x0bK", b"HTTP/1.1 200 O\x7fK", b"HTTP/1.2 200 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/11 200 OK", b"HTTP/1.1 \xb2\xb3\xb9 OK",
    ],
)  # fmt: skip
def test_illegal_status_lines(line) -> None:
    assert refusal(line + b"\r\ncontent-length: 0\r\n\r\n") == "illegal status line"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"http/1.1 200 OK\r\n",
        b"\x16\x03\x01",
        b" HTTP/1.1 200 OK\r\n",
        b"HTTQ",
        b"\0",
        b"\rHTTP/1.1",
        b"<html>",
    ],
)
def test_what_is_not_http_is_refused_before_any_line_ends(data) -> None:
    assert refusal(data) == "what came is not HTTP/1.1"


@pytest.mark.parametrize(
    "line",
    [
        b"a b: c", b"a : c", b": c", b"no colon", b"a\t: c", b"(a): c", b"\xe9: c", b"a: \0", b"a: b\rc", b"a: b\r", b"a: \x01", b"a: \x0b", b"a: \x1b[0m", b"a: \x7f",
        b" folded: first", b"\tfolded: first",
    ],
)  # fmt: skip
def test_illegal_header_lines(line) -> None:
    assert refusal(OK + line + b"\r\ncontent-length: 0\r\n\r\n") == "illegal header field"
    if not line.startswith((b" ", b"\t")):
        assert refusal(OK + b"content-length: 0\r\n" + line + b"\r\n\r\n") == "illegal header field"


def test_a_header_line_that_is_refused_is_not_shown() -> None:
    connection, exchange = answered(OK + b"x: " + SECRET.encode() + b"\0\r\n\r\n")
    assert SECRET not in repr(exchange.fault)
    assert exchange.fault.__traceback__ is None
    assert (exchange.status, exchange.headers, connection.take(exchange)) == (0, (), b"")


@pytest.mark.parametrize("fold", [b"\r\n ", b"\r\n\t", b"\n ", b"\r\n \t "])
def test_a_folded_line_is_joined_by_a_space(fold) -> None:
    """RFC 9112, section 5.2: a user agent MUST replace each obs-fold with one or more SP."""
    _, exchange = answered(OK + b"a: b" + fold + b"c" + fold + b"d\r\ncontent-length: 0\r\n\r\n")
    assert exchange.headers[0] == ("a", "b c d")


def test_a_fold_cannot_bring_a_framing_field() -> None:
    _, exchange = answered(OK + b"a: b\r\n transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\nab")
    assert (exchange.ended, exchange.held) == (True, 2)


def test_lines_may_end_with_a_bare_lf() -> None:
    """RFC 9112, section 2.2: a recipient MAY recognize a single LF as a line terminator."""
    assert body_of(b"HTTP/1.1 200 OK\na: b\ncontent-length: 2\n\nab") == b"ab"
    assert body_of(b"HTTP/1.1 200 OK\r\ncontent-length: 2\n\r\nab") == b"ab"
    assert body_of(b"HTTP/1.1 200 OK\ncontent-length: 2\r\n\nab") == b"ab"


@pytest.mark.parametrize("blank", [b"\r\n", b"\n"])
def test_a_few_empty_lines_before_the_head_are_skipped(blank) -> None:
    for number in range(MAX_BLANK + 1):
        assert body_of(blank * number + TEN + b"0123456789") == b"0123456789"
    assert refusal(blank * (MAX_BLANK + 1) + TEN) == "illegal status line"


def test_empty_lines_are_counted_anew_for_each_answer() -> None:
    connection, _ = answered(b"\r\n" * MAX_BLANK + EMPTY)
    exchange = connection.start(asking(), whole=True)
    connection.receive(b"\r\n" * MAX_BLANK + EMPTY)
    assert exchange.ended


def test_a_head_may_be_as_long_as_the_limit_and_no_longer() -> None:
    start, end = OK + b"a: ", b"\r\n\r\n"
    space = MAX_HEAD - len(start + end) - 1
    _, exchange = answered(start + b"b" * space + end)
    assert exchange.status == 200
    assert "more than" in refusal(start + b"b" * (space + 1) + end)
    assert "more than" in refusal(OK + b"a: b\r\n" * (MAX_HEAD // 6))
    assert "more than" in refusal(OK + b"a: b\n\t" * (MAX_HEAD // 6))


def test_a_head_without_end_is_refused_while_it_comes() -> None:
    connection, exchange = started()
    connection.receive(OK)
    for _ in range(MAX_HEAD // 1024):
        connection.receive(b"a: " + b"b" * 1019 + b"\r\n")
        assert len(connection._kept) < MAX_HEAD + 2048
    assert isinstance(exchange.fault, ProtocolError)


# Interim responses


def test_interim_responses_are_dropped() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    connection, exchange = started()
    assert connection.receive(interim) == []
    assert (exchange.status, exchange.headers, connection.busy) == (0, (), 1)
    assert connection.receive(TEN) == [exchange]
    assert exchange.headers == (("content-length", "10"),)
    assert body_of(interim + TEN + b"0123456789") == b"0123456789"


def test_the_number_of_interim_responses_is_bounded() -> None:
    one = b"HTTP/1.1 102 Wait\r\n\r\n"
    assert body_of(one * MAX_INTERIM + TEN + b"0123456789") == b"0123456789"
    assert "interim" in refusal(one * (MAX_INTERIM + 1))


def test_interim_responses_are_counted_anew_for_each_answer() -> None:
    connection, _ = answered(b"HTTP/1.1 102 Wait\r\n\r\n" * MAX_INTERIM + EMPTY)
    exchange = connection.start(asking(), whole=True)
    connection.receive(b"HTTP/1.1 102 Wait\r\n\r\n" + EMPTY)
    assert exchange.ended


def test_an_interim_response_may_not_close_nor_frame_anything() -> None:
    connection, exchange = answered(b"HTTP/1.1 100 x\r\nconnection: close\r\ncontent-length: 5\r\n\r\n" + EMPTY)
    assert (exchange.ended, connection.room) == (True, 1)


def test_101_is_refused() -> None:
    assert "101" in refusal(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n")


# Framing


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("HEAD", 404), ("GET", 204), ("POST", 304)])
@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"content-length: 5\r\n",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"content-length: x\r\n",
    ],
)
def test_answers_without_a_body_end_at_the_head_whatever_their_fields_say(method, status, fields) -> None:
    connection, exchange = answered(b"HTTP/1.1 %d x\r\n%b\r\n" % (status, fields), method=method)
    assert (exchange.ended, exchange.held, connection.room) == (True, 0, 1)


def test_content_length() -> None:
    connection, exchange = answered(TEN + b"01234")
    assert (exchange.ended, connection.take(exchange)) == (False, b"01234")
    assert connection.receive(b"56789") == [exchange]
    assert (exchange.ended, connection.take(exchange), connection.room) == (True, b"56789", 1)
    assert body_of(EMPTY) == b""


@pytest.mark.parametrize(
    "fields",
    [
        b"content-length: 2\r\nContent-Length: 2\r\n",
        b"content-length: 2, 2\r\n",
        b"content-length:\t2 ,2\r\ncontent-length: 2\r\n",
        b"content-length: 000000000000000002\r\n",
    ],
)
def test_equal_lengths_are_one(fields) -> None:
    assert body_of(OK + fields + b"\r\nab") == b"ab"


@pytest.mark.parametrize(
    "value",
    [b"+5", b"-5", b"0x5", b"5, 6", b"5 5", b"", b"5,", b",5", b"5.0", b"5_0", b"1" * 19, b"05, 5", b"\xb2", b"five", b"5;", b"inf"],
)  # fmt: skip
def test_illegal_lengths(value) -> None:
    assert "content-length" in refusal(OK + b"content-length: " + value + b"\r\n\r\n12345")


def test_lengths_that_differ_on_two_lines() -> None:
    assert "content-length" in refusal(OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\n123456")


@pytest.mark.parametrize(
    "fields",
    [
        b"transfer-encoding: gzip, chunked\r\n", b"transfer-encoding: gzip\r\n", b"transfer-encoding: chunked, gzip\r\n", b"transfer-encoding: chunked, chunked\r\n", b"transfer-encoding: identity\r\n",
        b"transfer-encoding:\r\n", b"transfer-encoding: xchunked\r\n", b"transfer-encoding: chunked;q=1\r\n", b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", b'transfer-encoding: "chunked"\r\n', b"transfer-encoding: chunked\xa0\r\n",
    ],
)  # fmt: skip
def test_other_transfer_codings_are_refused_by_name(fields) -> None:
    words = refusal(OK + fields + b"\r\n")
    assert words.startswith("transfer-encoding [")
    assert len(words) < 120
    if b"gzip" in fields:
        assert "gzip" in words


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b" chunked\t"])
def test_chunked_in_any_case(value) -> None:
    assert body_of(OK + b"Transfer-Encoding:" + value + b"\r\n\r\n2\r\nab\r\n0\r\n\r\n") == b"ab"


def test_transfer_encoding_wins_over_a_length_and_costs_the_connection() -> None:
    data = OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    connection, exchange = answered(data)
    assert (exchange.ended, connection.take(exchange), connection.retired, connection.room) == (True, b"ab", True, 0)


def test_transfer_encoding_in_http_1_0_is_decoded_and_costs_the_connection() -> None:
    """RFC 9112, section 6.1: MUST treat the message as if the framing is faulty ... and close the connection after processing it."""
    data = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    connection, exchange = answered(data)
    assert (exchange.ended, connection.take(exchange), connection.retired, connection.room) == (True, b"ab", True, 0)


def test_without_either_the_body_lasts_until_the_close() -> None:
    connection, exchange = answered(UNTIL_CLOSE + b"abc", b"def")
    assert (exchange.ended, exchange.held) == (False, 6)
    assert connection.lost("") == [exchange]
    assert (exchange.ended, exchange.fault, connection.take(exchange)) == (True, None, b"abcdef")
    assert (connection.closing, connection.retired, connection.busy) == (True, True, 0)


# Chunks


CHUNKS = {
    "one": (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "several": (b"3\r\nabc\r\n10\r\n0123456789abcdef\r\n1\r\nx\r\n0\r\n\r\n", b"abc0123456789abcdefx"),
    "none": (b"0\r\n\r\n", b""),
    "upper and lower case": (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
    "leading zeros": (b"0000000000000003\r\nabc\r\n0000\r\n\r\n", b"abc"),
    "an extension": (b'3;name=value;q="x y"\r\nabc\r\n0;last\r\n\r\n', b"abc"),
    "spaces before the extension and the end": (b"3 \t;x \r\nabc\r\n3  \r\ndef\r\n0 \r\n\r\n", b"abcdef"),
    "CRLF in the data": (b"6\r\na\r\n0\r\n\r\n0\r\n\r\n", b"a\r\n0\r\n"),
    "trailers": (b"3\r\nabc\r\n0\r\nx-sum: 1\r\nx-b:\r\n\r\n", b"abc"),
    "a folded trailer": (b"3\r\nabc\r\n0\r\nx-sum: 1\r\n 2\r\n\r\n", b"abc"),
    "the longest size line": (b"3;" + b"x" * (MAX_LINE - 2) + b"\r\nabc\r\n0\r\n\r\n", b"abc"),
}


@pytest.mark.parametrize(("data", "body"), CHUNKS.values(), ids=CHUNKS)
def test_chunks_at_any_cut(data, body) -> None:
    for cut in range(min(len(data), 60) + 1):
        connection, exchange = answered(CHUNKED + data[:cut], data[cut:])
        assert (exchange.ended, connection.take(exchange), connection.room) == (True, body, 1)
    assert body_of(CHUNKED + data) == body


@pytest.mark.parametrize(
    "data",
    [
        b"+3\r\nabc\r\n", b"-3\r\nabc\r\n", b"0x3\r\nabc\r\n", b"1_0\r\n0123456789abcdef\r\n", b" 3\r\nabc\r\n", b"\r\nabc\r\n", b"g\r\nabc\r\n", b"3 3\r\nabc\r\n", b"3\x0b\r\nabc\r\n", b"\xb2\r\nab\r\n",
        b"00000000000000003\r\nabc\r\n", b"3\nabc\r\n", b"3\r\rabc\r\n", b"3\rabc\r\n", b"3;\0\r\nabc\r\n", b"3;a\rb\r\nabc\r\n", b";x\r\nabc\r\n", b"3x\r\nabc\r\n", b"3\0\r\nabc\r\n",
        b"3;" + b"x" * (MAX_LINE - 1) + b"\r\nabc\r\n", b"3;" + b"x" * (MAX_LINE + 1), b"3;\n\r\nabc\r\n",
    ],
)  # fmt: skip
def test_illegal_chunk_sizes(data) -> None:
    assert refusal(CHUNKED + data) == "illegal chunk size"
    assert refusal(CHUNKED + b"2\r\nab\r\n" + data) == "illegal chunk size"


@pytest.mark.parametrize("end", [b"\n0\r\n\r\n", b"\r\r", b"x\r\n", b"\rx", b"0\r\n\r\n", b"\0"])
def test_a_chunk_must_end_with_crlf(end) -> None:
    assert refusal(CHUNKED + b"3\r\nabc" + end) == "a chunk is longer than its size says"


@pytest.mark.parametrize("trailer", [b"no colon", b"a b: c", b"a: \0", b" folded"])
def test_illegal_trailers(trailer) -> None:
    assert refusal(CHUNKED + b"0\r\n" + trailer + b"\r\n\r\n") == "illegal trailer field"


def test_trailers_are_bounded() -> None:
    line = b"a: " + b"b" * 1019 + b"\r\n"
    assert body_of(CHUNKED + b"0\r\n" + line * 63 + b"\r\n") == b""
    assert "more than" in refusal(CHUNKED + b"0\r\n" + line * 64 + b"\r\n")


def test_a_chunk_cut_by_reads_is_handed_over_as_it_comes() -> None:
    connection, exchange = answered(CHUNKED + b"6\r\nab")
    assert connection.take(exchange) == b"ab"
    assert connection.receive(b"cd") == [exchange]
    assert connection.take(exchange) == b"cd"


def test_size_lines_known_by_heart_are_few_and_right(monkeypatch) -> None:
    monkeypatch.setattr(http1, "_sizes", {})
    monkeypatch.setattr(http1, "MAX_SIZES", 3)
    data = b"".join(
        b"%b\r\n%b\r\n" % (line, b"x" * int(line, 16)) for line in [b"1", b"01", b"2", b"0a", b"A", b"003", b"1", b"2"]
    )
    assert len(body_of(CHUNKED + data * 2 + b"0\r\n\r\n")) == 2 * 30
    assert http1._sizes == {b"1\r\n": 1, b"01\r\n": 1, b"2\r\n": 2}


# Keep-alive


@pytest.mark.parametrize(
    ("version", "fields", "room"),
    [
        (b"1.1", b"", 1),
        (b"1.1", b"connection: close\r\n", 0),
        (b"1.1", b"Connection: CLOSE\r\n", 0),
        (b"1.1", b"connection: x , Close\r\n", 0),
        (b"1.1", b"connection: keep-alive\r\nconnection: close\r\n", 0),
        (b"1.1", b"connection: closed\r\n", 1),
        (b"1.1", b"x-connection: close\r\n", 1),
        (b"1.0", b"", 0),
        (b"1.0", b"connection: Keep-Alive\r\n", 1),
        (b"1.0", b"connection: keep-alive, close\r\n", 0),
    ],
)
def test_keep_alive(version, fields, room) -> None:
    connection, exchange = started()
    connection.receive(b"HTTP/%b 200 OK\r\n%bcontent-length: 1\r\n\r\n" % (version, fields))
    assert not connection.retired
    connection.receive(b"x")
    assert (exchange.ended, connection.room, connection.retired, connection.closing) == (True, room, not room, False)


def test_a_request_that_says_close_means_it() -> None:
    connection, _ = answered(EMPTY, headers=(("connection", "x, Close"),))
    assert (connection.retired, connection.room) == (True, 0)


def test_many_exchanges_one_after_the_other() -> None:
    connection = Http1()
    for data in [EMPTY, CHUNKED + b"1\r\nx\r\n0\r\n\r\n", TEN + b"0123456789", b"HTTP/1.1 204 x\r\n\r\n"] * 3:
        exchange = connection.start(asking(), whole=True)
        assert connection.receive(data) == [exchange]
        assert (exchange.ended, connection.busy, connection.room) == (True, 0, 1)


# Bytes that nobody asked for


@pytest.mark.parametrize("surplus", [b"\r\n", b"x", EMPTY])
def test_bytes_on_an_idle_connection_close_it(surplus) -> None:
    connection, _ = answered(EMPTY)
    assert connection.receive(b"") == []
    assert connection.room == 1
    assert connection.receive(surplus) == []
    assert (connection.room, connection.retired, connection.closing) == (0, True, True)


@pytest.mark.parametrize("data", [EMPTY, TEN + b"0123456789", CHUNKED + b"0\r\n\r\n", CHUNKED + b"1\r\nx\r\n0\r\na: b\r\n\r\n"])
def test_bytes_after_the_end_of_a_message_close_it(data) -> None:
    connection, exchange = started()
    assert connection.receive(data + b"HTTP/1.1 200 OK\r\n") == [exchange]
    assert (exchange.ended, exchange.fault, connection.room, connection.retired, connection.closing) == (
        True,
        None,
        0,
        True,
        True,
    )


def test_an_answer_to_nothing_is_never_taken_for_the_next() -> None:
    connection = Http1()
    connection.receive(EMPTY)
    with pytest.raises(LostError):
        connection.start(asking(), whole=True)


# CONNECT


@pytest.mark.parametrize(
    "fields",
    [b"", b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"content-length: x\r\n", b"connection: close\r\n"],
)
def test_a_2xx_to_connect_opens_a_tunnel(fields) -> None:
    connection, exchange = started("CONNECT")
    assert connection.receive(b"HTTP/1.1 200 Connection established\r\n" + fields + b"\r\nhello") == [exchange]
    assert (exchange.ended, exchange.status, exchange.held, connection.trailing) == (True, 200, 0, b"hello")
    assert (connection.room, connection.busy, connection.retired, connection.closing) == (0, 0, False, False)
    connection.receive(b" you")
    assert connection.trailing == b"hello you"


def test_http_1_0_opens_a_tunnel_too() -> None:
    connection, exchange = answered(b"HTTP/1.0 200 OK\r\n\r\n", method="CONNECT")
    assert (exchange.ended, connection.retired, connection.trailing) == (True, False, b"")


def test_any_other_answer_to_connect_is_an_answer() -> None:
    connection, exchange = answered(b"HTTP/1.1 407 No\r\ncontent-length: 2\r\n\r\nno", method="CONNECT")
    assert (exchange.ended, connection.take(exchange), connection.trailing, connection.room) == (True, b"no", b"", 1)


# Who is told


def test_who_is_told_of_a_stream() -> None:
    connection, exchange = started()
    told = [
        connection.receive(read)
        for read in (
            OK,
            b"transfer-encoding: chunked\r\n",
            b"\r\n",
            b"3",
            b"\r\n",
            b"ab",
            b"c",
            b"\r\n",
            b"2\r\nde\r\n",
            b"",
            b"0\r\n",
            b"\r\n",
        )
    ]
    assert [len(exchanges) for exchanges in told] == [0, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1]
    assert all(exchanges in ([], [exchange]) for exchanges in told)


def test_a_whole_answer_is_told_at_its_end() -> None:
    connection, exchange = started(whole=True)
    assert [connection.receive(read) for read in (TEN, b"01234")] == [[], []]
    assert connection.receive(b"56789") == [exchange]


def test_a_whole_answer_is_told_when_it_holds_much() -> None:
    connection, exchange = started(whole=True)
    connection.receive(OK + b"content-length: %d\r\n\r\n" % (3 * WHOLE_PIECE))
    assert connection.receive(b"x" * WHOLE_PIECE) == []
    assert connection.receive(b"y") == [exchange]
    assert len(connection.take(exchange)) == WHOLE_PIECE + 1
    assert connection.receive(b"x" * WHOLE_PIECE) == []


def test_a_whole_answer_is_told_of_its_fault() -> None:
    connection, exchange = started(whole=True)
    assert connection.receive(b"nonsense") == [exchange]


def test_take_gives_each_byte_once() -> None:
    connection, exchange = answered(CHUNKED + b"2\r\nab\r\n2\r\ncd\r\n")
    assert exchange.held == 4
    assert connection.take(exchange) == b"abcd"
    assert (exchange.held, connection.take(exchange)) == (0, b"")


# A connection that ends too early


@pytest.mark.parametrize(
    ("data", "words", "told"),
    [
        (b"", "", "closed before the answer"),
        (b"", "connection reset", "connection reset before the answer"),
        (b"HTTP/1.1 100 x\r\n\r\n", "", "closed before the answer"),
        (b"HTTP/1.1 200", "", "closed within the head of the answer"),
        (TEN + b"0123", "", "closed with 6 of 10 bytes of the body missing"),
        (TEN, "connection reset", "connection reset with 10 of 10 bytes of the body missing"),
        (CHUNKED, "", "closed before the last chunk"),
        (CHUNKED + b"3\r\nabc\r\n", "", "closed before the last chunk"),
        (CHUNKED + b"3\r\nabc\r", "", "closed before the last chunk"),
        (CHUNKED + b"3", "", "closed before the last chunk"),
        (CHUNKED + b"3\r\na", "", "closed before the last chunk, with 2 bytes of one missing"),
        (CHUNKED + b"0\r\na: b\r\n", "", "closed within the trailers"),
        (UNTIL_CLOSE + b"abc", "connection reset", "connection reset within the body"),
    ],
)
def test_what_was_cut_short_says_what_is_missing(data, words, told) -> None:
    for reads in ([data], by_the_byte(data)):
        connection, exchange = answered(*reads)
        assert connection.lost(words) == [exchange]
        assert isinstance(exchange.fault, LostError)
        assert (str(exchange.fault), exchange.fault.unprocessed, exchange.ended) == (told, False, False)
        assert (connection.closing, connection.retired, connection.busy, connection.room) == (True, True, 0, 0)
        assert connection.lost(words) == []


def test_what_came_before_the_fault_can_still_be_taken() -> None:
    connection, exchange = answered(CHUNKED + b"2\r\nab\r\n2\r\nc")
    connection.lost("")
    assert connection.take(exchange) == b"abc"
    connection, exchange = answered(CHUNKED + b"2\r\nab\r\n2\r\ncd\r\nzz\r\n")
    assert isinstance(exchange.fault, ProtocolError)
    assert connection.take(exchange) == b"abcd"


def test_an_idle_connection_that_is_lost_is_only_closed() -> None:
    connection = Http1()
    assert connection.lost("reset") == []
    assert (connection.closing, connection.room) == (True, 0)


def test_nothing_comes_after_the_end_of_the_connection() -> None:
    connection, exchange = answered(TEN)
    connection.lost("")
    assert connection.receive(b"0123456789") == []
    assert (exchange.held, exchange.ended) == (0, False)


# Stop and finish


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1", TEN + b"012", CHUNKED + b"3\r\na", UNTIL_CLOSE + b"x"])
def test_stop_closes(data) -> None:
    connection, exchange = answered(data)
    for _ in range(2):
        connection.stop(exchange)
        assert (connection.closing, connection.retired, connection.busy, connection.room) == (True, True, 0, 0)
        assert (exchange.held, connection.take(exchange), exchange.ended, exchange.fault) == (0, b"", False, None)
    assert connection.receive(b"0123456789") == []
    assert connection.lost("") == []
    assert (exchange.held, exchange.ended, exchange.fault) == (0, False, None)


def test_stop_before_the_request_was_written_writes_nothing() -> None:
    connection = Http1()
    connection.stop(connection.start(asking(), whole=True))
    assert (connection.outgoing(), connection.closing) == (b"", True)


@pytest.mark.parametrize("leave", [Http1.stop, Http1.finish])
def test_stop_and_finish_after_the_end_do_nothing(leave) -> None:
    connection, exchange = answered(TEN + b"0123456789")
    leave(connection, exchange)
    assert (connection.room, connection.take(exchange)) == (1, b"0123456789")
    later = connection.start(asking(), whole=True)
    leave(connection, exchange)
    assert (connection.busy, connection.closing) == (1, False)
    connection.receive(EMPTY)
    assert later.ended


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        (TEN + b"01", b"23456789"),
        (CHUNKED + b"4\r\nab", b"cd\r\n2\r\nxx\r\n0\r\n\r\n"),
        (CHUNKED, b"0\r\n\r\n"),
        (b"HTTP/1.1 2", b"00 OK\r\ncontent-length: 1\r\n\r\nx"),
    ],
)
def test_finish_reads_on_to_the_end_without_telling(begun, rest) -> None:
    connection, exchange = answered(begun)
    connection.finish(exchange)
    assert (connection.busy, connection.room, exchange.held) == (1, 0, 0)
    for read in by_the_byte(rest):
        assert (connection.busy, connection.room) == (1, 0)
        assert connection.receive(read) == []
        assert (exchange.held, exchange.chunks) == (0, [])
    assert (exchange.ended, connection.busy, connection.room, connection.closing) == (True, 0, 1, False)
    later = connection.start(asking(), whole=False)
    assert connection.receive(TEN) == [later]


def test_finish_takes_surplus_bytes_for_what_they_are() -> None:
    connection, exchange = answered(TEN)
    connection.finish(exchange)
    assert connection.receive(b"0123456789x") == []
    assert (exchange.ended, connection.closing, connection.room) == (True, True, 0)


def test_finish_reads_no_more_than_a_little() -> None:
    connection, exchange = answered(CHUNKED)
    connection.finish(exchange)
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    for _ in range(MAX_DRAIN // 1024):
        connection.receive(chunk)
        assert (connection.busy, connection.closing) == (1, False)
    assert connection.receive(chunk) == []
    assert (connection.busy, connection.closing, exchange.ended, exchange.held) == (0, True, False, 0)


def test_finish_does_not_count_what_came_before() -> None:
    connection, exchange = answered(CHUNKED + b"11000\r\n" + b"x" * 0x11000 + b"\r\n")
    connection.finish(exchange)
    assert (connection.busy, connection.closing, exchange.held) == (1, False, 0)
    connection.receive(b"0\r\n\r\n")
    assert connection.room == 1


def test_each_finish_counts_for_itself() -> None:
    connection = Http1()
    for _ in range(4):
        exchange = connection.start(asking(), whole=False)
        connection.receive(OK + b"content-length: 40000\r\n\r\n")
        connection.finish(exchange)
        connection.receive(b"x" * 40000)
        assert connection.room == 1


@pytest.mark.parametrize(
    "data",
    [
        UNTIL_CLOSE + b"x",
        OK + b"content-length: 65537\r\n\r\n",
        CHUNKED + b"10001\r\nx",
        OK + b"connection: close\r\ncontent-length: 10\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\n",
    ],
    ids=["until close", "long", "a long chunk", "close", "1.0"],
)
def test_finish_closes_where_waiting_saves_nothing(data) -> None:
    connection, exchange = answered(data)
    connection.finish(exchange)
    assert (connection.busy, connection.closing, connection.retired) == (0, True, True)
    connection, exchange = started()
    connection.finish(exchange)
    assert connection.receive(data) == []
    assert (connection.busy, connection.closing) == (0, True)


@pytest.mark.parametrize("leave", [lambda c: c.receive(b"zz\r\n"), lambda c: c.lost(""), lambda c: c.lost("reset")])
def test_nobody_is_told_of_a_fault_after_finish(leave) -> None:
    connection, exchange = answered(CHUNKED)
    connection.finish(exchange)
    assert leave(connection) == []
    assert exchange.fault is not None
    assert (connection.closing, connection.busy) == (True, 0)


def test_stop_after_finish_closes() -> None:
    connection, exchange = answered(TEN)
    connection.finish(exchange)
    connection.stop(exchange)
    assert (connection.busy, connection.closing) == (0, True)


# Work grows with the bytes, not with their square


def test_a_long_chunk_byte_by_byte_is_never_copied() -> None:
    connection, exchange = answered(CHUNKED + b"100000\r\n")
    reads = [bytes((97 + i % 26, 98)) for i in range(2**19)]
    for read in reads:
        connection.receive(read)
    assert all(chunk is read for chunk, read in zip(exchange.chunks, reads, strict=True))
    assert connection._line == b""
    assert exchange.held == 2**20


class Counting:
    """A pattern that counts the bytes it is given to search."""

    def __init__(self, pattern) -> None:
        self.pattern, self.seen = pattern, 0

    def search(self, data, start=0):
        self.seen += len(data) - start
        return self.pattern.search(data, start)

    def match(self, data):
        self.seen += len(data)
        return self.pattern.match(data)

    def fullmatch(self, data):
        self.seen += len(data)
        return self.pattern.fullmatch(data)


@pytest.mark.parametrize("before", [b"", CHUNKED + b"0\r\n"], ids=["head", "trailers"])
def test_a_slow_section_is_searched_once(monkeypatch, before) -> None:
    section = (b"" if before else OK) + b"a: b\r\n" * 10_000 + (b"" if before else b"content-length: 0\r\n") + b"\r\n"
    connection, exchange = answered(before) if before else started()
    counting = Counting(http1.BLANK_LINE)
    monkeypatch.setattr(http1, "BLANK_LINE", counting)
    for read in by_the_byte(section):
        connection.receive(read)
    assert exchange.ended
    assert counting.seen < 5 * len(section)


@pytest.mark.parametrize("line", [b"2", b"2;" + b"x" * 1000, b"0000000002"], ids=["usual", "extended", "never known by heart"])
def test_a_big_read_of_small_chunks_is_gone_through_once(monkeypatch, line) -> None:
    chunk = line + b"\r\nab\r\n"
    connection, exchange = answered(CHUNKED)
    copied = 0

    def odd(self, exchange, data):
        nonlocal copied
        copied += len(data)
        return of_http1(self, exchange, data)

    of_http1 = Http1._odd
    monkeypatch.setattr(Http1, "_odd", odd)
    counting = Counting(http1.SIZE_LINE)
    monkeypatch.setattr(http1, "SIZE_LINE", counting)
    data = chunk * (2**20 // len(chunk))
    connection.receive(data + b"2")
    assert exchange.held == 2 * (2**20 // len(chunk))
    assert copied < 10
    assert counting.seen <= len(data) + 10


def test_a_slow_size_line_is_kept_short(monkeypatch) -> None:
    connection, exchange = answered(CHUNKED)
    counting = Counting(http1.SIZE_LINE)
    monkeypatch.setattr(http1, "SIZE_LINE", counting)
    for read in by_the_byte(b"3;" + b"x" * (2 * MAX_LINE)):
        connection.receive(read)
        assert len(connection._line) <= MAX_LINE + 2
    assert isinstance(exchange.fault, ProtocolError)


@pytest.mark.parametrize(
    "line",
    [b"a:" + b" " * 60_000 + b"\x01", b"a" * 60_000, b"a:" + b"b\t" * 30_000 + b"\r", b"x: y\r\n" + b" \t" * 30_000 + b"\0"],
)
def test_no_line_makes_a_pattern_go_back_and_forth(line) -> None:
    assert refusal(OK + line + b"\r\n\r\n") == "illegal header field"


# Against h11


@dataclass
class Outcome:
    """What became of an exchange; ``reuse`` and ``surplus`` tell of the connection afterwards."""

    kind: str
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    reuse: bool = False
    words: str = ""


def by_us(method: str, reads: Iterable[bytes], *, whole: bool = False) -> Outcome:
    connection, exchange = started(method, whole=whole)
    body = b""
    for read in reads:
        for touched in connection.receive(read):
            body += connection.take(touched)
    if not (exchange.ended or exchange.fault):
        connection.lost("")
        body += connection.take(exchange)
    if exchange.fault:
        return Outcome("fault", words=str(exchange.fault))
    return Outcome("ended", exchange.status, exchange.headers, body, connection.room == 1)


def by_h11(method: str, data: bytes) -> Outcome:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    connection.send(
        h11.Request(
            method=method, target="a:443" if method == "CONNECT" else "/", headers=[("host", "a"), ("content-length", "0")]
        )
    )
    connection.send(h11.EndOfMessage())
    try:
        return read_by_h11(connection, data)
    except h11.RemoteProtocolError as error:
        return Outcome("fault", words=str(error))


def read_by_h11(connection: h11.Connection, data: bytes) -> Outcome:
    connection.receive_data(data)
    got, body, closed = Outcome("ended"), [], False
    while not isinstance(event := connection.next_event(), h11.EndOfMessage) and event is not h11.PAUSED:
        if event is h11.NEED_DATA:
            assert not closed
            connection.receive_data(b"")
            closed = True
        elif isinstance(event, h11.Response):
            got.status, got.headers = (
                event.status_code,
                tuple((name.decode(), value.decode("latin-1")) for name, value in event.headers),
            )
        elif isinstance(event, h11.Data):
            body.append(bytes(event.data))
        elif isinstance(event, h11.ConnectionClosed):
            return Outcome("fault", words="closed")
    got.body = b"".join(body)
    got.reuse = connection.our_state is connection.their_state is h11.DONE and not connection.trailing_data[0] and not closed
    return got


def same(ours: Outcome, theirs: Outcome) -> bool:
    """Compare but for what differs for a reason: h11 shows a repeated content-length once, and lower-cases transfer-encoding."""
    if ours.kind == theirs.kind == "fault":
        return True
    return (ours.kind, ours.status, ours.body, ours.reuse, plain(ours.headers)) == (
        theirs.kind,
        theirs.status,
        theirs.body,
        theirs.reuse,
        plain(theirs.headers),
    )


def plain(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (name, value.lower() if name == "transfer-encoding" else value) for name, value in headers if name != "content-length"
    ]


def random_head(rng: Random, status: int, fields: list[bytes]) -> bytes:
    lines = [
        f"{rng.choice(['X-A', 'x-b', 'Date', 'server', 'Via'])}:{rng.choice(['', ' ', '  ', chr(9)])}{random_value(rng)}{rng.choice(['', ' '])}".encode(
            "latin-1"
        )
        for _ in range(rng.randrange(5))
    ]
    lines += fields
    rng.shuffle(lines)
    start = b"HTTP/1.%d %d%b" % (rng.random() < 0.8, status, rng.choice([b"", b" ", b" OK", b" Not \xe9 that\t"]))
    end = rng.choice([b"\r\n"] * 9 + [b"\n"])
    lines = [
        line + (end + b" folded" if rng.random() < 0.03 and not line.lower().startswith((b"c", b"t")) else b"")
        for line in lines
    ]
    return end.join([start, *lines, b"", b""])


def random_chunks(rng: Random, body: bytes) -> bytes:
    out, at = [], 0
    most = rng.choice([1, 7, 300, 5000, 70_000]) if len(body) < 5000 else rng.choice([300, 5000, 70_000])
    while at < len(body):
        piece = body[at : at + rng.randrange(1, most + 1)]
        at += len(piece)
        line = rng.choice([b"%x", b"%X", b"%x", b"000%x"]) % len(piece) + rng.choice([b""] * 8 + [b" ", b";a=b", b';q="x"'])
        out.append(b"%b\r\n%b\r\n" % (line, piece))
    trailers = b"".join(b"x-t%d: %d\r\n" % (i, i) for i in range(rng.choice([0, 0, 0, 1, 3])))
    return b"".join(out) + rng.choice([b"0", b"00", b"0;x"]) + b"\r\n" + trailers + b"\r\n"


def random_answer(rng: Random, sizes: list[int]) -> bytes:
    """Return a legal answer, sometimes with bytes behind it."""
    body = rng.randbytes(rng.choice(sizes))
    fields = (
        [rng.choice([b"Connection: close", b"connection: x, Close", b"connection: keep-alive"])] if rng.random() < 0.3 else []
    )
    how = rng.choice(["sized", "chunked", "until close"])
    if how == "sized":
        fields += [b"Content-Length: %d" % len(body)] * rng.choice([1, 1, 1, 2])
    elif how == "chunked":
        fields += [rng.choice([b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked"])]
        fields += [b"content-length: 3"] * (rng.random() < 0.1)
        body = random_chunks(rng, body)
    interim = b"".join(random_head(rng, rng.choice([100, 102, 103, 199]), []) for _ in range(rng.choice([0, 0, 0, 1, 2])))
    surplus = b"HTTP/1.1 200 OK\r\n\r\n" if how != "until close" and rng.random() < 0.1 else b""
    return interim + random_head(rng, rng.choice([200, 200, 200, 204, 304, 404, 500, 999]), fields) + body + surplus


def random_cut(rng: Random, data: bytes) -> list[bytes]:
    if len(data) < 1000 and rng.random() < 0.3:
        return by_the_byte(data)
    if rng.random() < 0.3:
        return [data[i : i + 65536] for i in range(0, len(data), 65536)]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([1, 2, 5, 50])))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


METHODS = ["GET", "POST", "POST", "HEAD", "CONNECT", "DELETE"]
# Where we keep or close a connection and h11 does not: rules 4 and 6 of http1.py.
KEPT_OTHERWISE = {
    "HTTP/1.0 with keep-alive is kept": lambda reuse, data: (
        reuse and b"HTTP/1.0" in data and re.search(rb"(?i)keep-alive", data)
    ),
    "a length beside transfer-encoding closes": lambda reuse, data: (
        not reuse and re.search(rb"(?i)content-length:", data) and re.search(rb"(?i)transfer-encoding:", data)
    ),
}


def difference(method: str, data: bytes, ours: Outcome, theirs: Outcome) -> str:
    """Return the name of the rule that explains a difference, "" where there is none."""
    if same(ours, theirs):
        return ""
    if same(replace(ours, reuse=theirs.reuse), theirs):
        return next(name for name, explains in KEPT_OTHERWISE.items() if explains(ours.reuse, data))
    assert ours.kind != theirs.kind
    if theirs.kind == "fault":
        return next(name for name, explains in KINDER.items() if explains(ours, theirs, method, data))
    return next(name for name, explains in STRICTER.items() if explains(ours, data))


def test_random_answers_at_random_cuts_are_what_h11_makes_of_them() -> None:
    rng = Random(2)
    met = Counter[str]()
    for number in range(600):
        method = rng.choice(METHODS)
        data = random_answer(rng, [0, 1, 10, 300, 5000, 5000, 60_000] + [2**20] * (number % 10 == 0))
        theirs = by_h11(method, data)
        assert theirs.kind == "ended", theirs.words
        for reads in ([data], random_cut(rng, data), random_cut(rng, data)):
            ours = by_us(method, reads, whole=rng.random() < 0.3)
            met[difference(method, data, ours, theirs)] += 1
        met["reused" if theirs.reuse else "closed"] += 1
    assert set(met) == {"", "reused", "closed", *KEPT_OTHERWISE}
    assert met[""] > 1600
    assert min(met["reused"], met["closed"]) > 100


def test_a_cut_off_answer_is_a_fault_where_h11_says_so() -> None:
    rng = Random(3)
    met = Counter[str]()
    for _ in range(400):
        method = rng.choice(METHODS)
        data = random_answer(rng, [0, 5, 50])
        data = data[: rng.randrange(len(data))]
        ours = by_us(method, random_cut(rng, data))
        met[difference(method, data, ours, by_h11(method, data))] += 1
        met[ours.kind] += 1
    assert set(met) <= {"", "ended", "fault", *KEPT_OTHERWISE}
    assert min(met["ended"], met["fault"]) > 30


# Where a corrupted answer may be taken in another way than by h11, by our words or the bytes; each is argued for at the top of http1.py.
CTL = rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
STRICTER = {
    "control characters in a head or trailer": lambda ours, data: (
        ours.words.startswith(("illegal header", "illegal trailer", "illegal status")) and re.search(CTL, data)
    ),
    "control characters, or CR, in a chunk extension": lambda ours, data: (
        ours.words == "illegal chunk size" and re.search(rb";[^\n]*?(" + CTL + rb"|\r(?!\n))", data)
    ),
    "versions": lambda ours, data: (
        ours.words in {"illegal status line", "what came is not HTTP/1.1"} and re.search(rb"HTTP/(?!1\.[01] )\d\.\d", data)
    ),
    "long lengths": lambda ours, data: (
        ours.words.startswith("content-length") and re.search(rb"(?i)content-length:[ \t]*\d{19}", data)
    ),
    "long sizes": lambda ours, data: ours.words == "illegal chunk size" and re.search(rb"[0-9a-fA-F]{17}", data),
}
KINDER = {
    "empty lines before the head": lambda ours, theirs, method, data: re.search(rb"(?:^|\n\r?\n)\r?\nHTTP", data),
    "spaces before a chunk extension (RFC 9112, section 7.1.1: BWS)": lambda ours, theirs, method, data: re.search(
        rb"[0-9a-fA-F][ \t]+;", data
    ),
    "fields that frame a body that is not there": lambda ours, theirs, method, data: (
        ours.status in {204, 304} or method == "HEAD" or (method == "CONNECT" and ours.status < 300)
    ),
    "fields that frame a body in an interim response or trailer": lambda ours, theirs, method, data: (
        re.search("Content-Length|Transfer-Encoding", theirs.words)
        and all(value.isdecimal() for name, value in ours.headers if name == "content-length")
    ),
}
PIECES = [
    b" ;",
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"+",
    b"_",
    b"0x",
    b"0",
    b"9",
    b"f",
    b"g",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"chunked",
    b"gzip, ",
    b"HTTP/1.0",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"0" * 18,
    b";\x01",
    b"\r\n ",
]


def corrupted(rng: Random, data: bytes) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = [found.end() for found in re.finditer(rb"\n|: ?|^", data)]
        at = rng.choice([rng.choice(places), rng.randrange(len(data) + 1)])
        gone = rng.choice([0, 0, 1, 1, 2, 5])
        data = data[:at] + rng.choice([*PIECES, b"", bytes([rng.randrange(256)])]) + data[at + gone :]
    return data


LAST = b"0\r\n\r\n"
EXAMPLES = {
    "HTTP/1.0 with keep-alive is kept": ("GET", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"),
    "a length beside transfer-encoding closes": (
        "GET",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + LAST,
    ),
    "control characters in a head or trailer": ("GET", b"HTTP/1.1 200 OK\r\nx: \x01\r\ncontent-length: 0\r\n\r\n"),
    "control characters, or CR, in a chunk extension": ("GET", CHUNKED + b"1;\x01\r\nx\r\n" + LAST),
    "versions": ("GET", b"HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n"),
    "long lengths": ("GET", OK + b"content-length: 0000000000000000000\r\n\r\n"),
    "long sizes": ("GET", CHUNKED + b"00000000000000001\r\nx\r\n" + LAST),
    "empty lines before the head": ("GET", b"\r\n" + EMPTY),
    "spaces before a chunk extension (RFC 9112, section 7.1.1: BWS)": ("GET", CHUNKED + b"1 ;a\r\nx\r\n" + LAST),
    "fields that frame a body that is not there": ("HEAD", OK + b"transfer-encoding: gzip\r\n\r\n"),
    "fields that frame a body in an interim response or trailer": (
        "GET",
        b"HTTP/1.1 100 x\r\ncontent-length: x\r\n\r\n" + EMPTY,
    ),
}


@pytest.mark.parametrize("name", [*KEPT_OTHERWISE, *STRICTER, *KINDER])
def test_every_difference_from_h11_is_one(name) -> None:
    method, data = EXAMPLES[name]
    assert difference(method, data, by_us(method, [data]), by_h11(method, data)) == name


def test_corrupted_answers_are_refused_where_h11_refuses_them_but_for_listed_reasons() -> None:
    rng = Random(4)
    met = Counter[str]()
    for _ in range(12_000):
        method = rng.choice(METHODS)
        data = corrupted(rng, random_answer(rng, [0, 3, 40]))
        ours = by_us(method, random_cut(rng, data) if rng.random() < 0.5 else [data])
        met[difference(method, data, ours, by_h11(method, data))] += 1
        met[ours.kind] += 1
    assert set(met) <= {"", "ended", "fault", *KEPT_OTHERWISE, *STRICTER, *KINDER}
    assert min(met["ended"], met["fault"]) > 1000
    assert met[""] > 10_000


def test_no_bytes_make_it_raise() -> None:
    rng = Random(5)
    for _ in range(1000):
        fuzz_one(rng.randbytes(rng.randrange(200)))
