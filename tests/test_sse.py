from __future__ import annotations

import random

import pytest

from jazz_llm.sse import EventTooLargeError, SSEDecoder

# web-platform-tests, eventsource/format-field-parsing.any.js
VECTOR = b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n"

CASES = {
    "one event": (b"data: a\n\n", [b"a"]),
    "no space": (b"data:a\n\n", [b"a"]),
    "exactly one space is stripped": (b"data:  a\n\n", [b" a"]),
    "multi-line data is joined by LF": (b"data: a\ndata: b\n\n", [b"a\nb"]),
    "field without colon": (b"data\n\n", [b""]),
    "two empty lines of data": (b"data\ndata\n\n", [b"\n"]),
    "comments": (b": ping\n:\ndata: a\n\n", [b"a"]),
    "comments alone dispatch nothing": (b": ping\n\n: ping\n\n", []),
    "other fields": (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "CRLF inside an event": (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    "CR": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "one BOM is dropped": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "only one BOM": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    "NUL is kept": (b"data: a\0b\n\n", [b"a\0b"]),
    "U+2028, U+0085 and form feed are no line ends": ("data: a\u2028b\u0085c\x0cd\n\n".encode(), ["a\u2028b\u0085c\x0cd".encode()]),
    "no blank line at the end": (b"data: a\n\ndata: b", [b"a", b"b"]),
    "one line end at the end": (b"data: a\n\ndata: b\n", [b"a", b"b"]),
    "llama-box names the field error": (b'error: {"x":1}\n\n', [b'{"x":1}']),
    "web-platform vector": (VECTOR, [b"\0\n 2\n1\n3\n\n4"]),
}


def decode(*reads: bytes) -> list[bytes]:
    decoder = SSEDecoder()
    return [payload for read in reads for payload in decoder.feed(read)] + decoder.end()


@pytest.mark.parametrize(("stream", "payloads"), CASES.values(), ids=CASES)
def test_the_rules(stream: bytes, payloads: list[bytes]) -> None:
    assert decode(stream) == payloads


@pytest.mark.parametrize(("stream", "payloads"), CASES.values(), ids=CASES)
def test_any_cut_gives_the_same_events(stream: bytes, payloads: list[bytes]) -> None:
    for cut in range(len(stream) + 1):
        assert decode(stream[:cut], stream[cut:]) == payloads
    assert decode(*(stream[i : i + 1] for i in range(len(stream)))) == payloads


def test_an_empty_read_between_cr_and_lf_changes_nothing() -> None:
    assert decode(b"data: a\r", b"", b"\n\r\n") == [b"a"]


@pytest.mark.parametrize(
    "reads",
    [[b"data: " + b"x" * 200 + b"\n\n"], [b"data: " + b"x" * 60, b"x" * 60], [b"data: " + b"x" * 30 + b"\n"] * 5],
    ids=["one read", "a line without end", "many lines"],
)
def test_an_event_above_the_limit_is_given_up(reads: list[bytes]) -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    with pytest.raises(EventTooLargeError):
        for read in reads:
            decoder.feed(read)


def test_the_limit_is_for_one_event_not_for_the_stream() -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    assert sum(len(decoder.feed(b"data: " + b"x" * 90 + b"\n\n")) for _ in range(50)) == 50


def test_a_long_line_in_small_reads_is_kept_in_linear_time() -> None:
    decoder = SSEDecoder()
    for _ in range(20_000):
        assert decoder.feed(b"x" * 100) == []
    assert len(decoder._line) == 20_000  # joined once, at its end


PIECES = [b"data: a\n\n", b"data: {}\n\n", b"data: \n\n", b"data:b\n\n", b"data: c\ndata: d\n\n", b": ping\n\n", b"\n", b"event: x\ndata: e\n\n", b"data\n\n", b"data: \xe2\x80\xa8\n\n", b"data: f\r\n\r\n", b"data: data: g\n\n", b"dat", b"data: h\n"]


def test_reads_of_many_events_are_read_as_line_by_line() -> None:
    """The short ways, for one whole event and for many, against the long one, which a byte at a time takes."""
    for seed in range(500):
        rng = random.Random(seed)
        stream = b"".join(rng.choices(PIECES[: rng.choice([3, len(PIECES)])], k=rng.randrange(1, 12)))
        cuts = sorted(rng.choices(range(len(stream) + 1), k=rng.choice([0, 0, 1, 3])))
        reads = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        assert decode(*reads) == decode(*(stream[i : i + 1] for i in range(len(stream)))), reads


def test_a_read_may_go_on_with_an_event_of_the_last() -> None:
    assert decode(b"data: a\n", b"data: b\n\ndata: c\n\ndata: d\n\n") == [b"a\nb", b"c", b"d"]
    assert decode(b"data: a\n", b"data: b\n\n") == [b"a\nb"]


def test_what_is_left_of_a_read_counts_for_the_next_event() -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    assert decoder.feed(b"data: " + b"x" * 80 + b"\n") == []
    assert decoder.feed(b"\ndata: " + b"y" * 80) == [b"x" * 80]
    assert decoder.feed(b"\n\n") == [b"y" * 80]
