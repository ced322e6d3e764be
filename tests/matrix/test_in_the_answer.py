"""Rows 13, 14, 16, 18 to 23, 40 and 41: what goes wrong in an answer, and what only looks as if."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jazz_llm import (
    LLMError,
    LLMInternalError,
    LLMOverloadedError,
    LLMQuotaExceededError,
    LLMResponseError,
    LLMStreamTruncatedError,
)

from ..frame_server import FINISH, Answer, Code, completion, event
from .conftest import ALWAYS, AT_ONCE, Case, where

MAX = 2**31 - 1


# --- rows 13 and 14: GOAWAY


@where("h2")
@pytest.mark.parametrize("last", ["ours", "max", "max, then ours"])
def test_row_13_goaway_at_or_above_ours(case: Case, last: str) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        await case.heard(answer)
        for number in (MAX, answer.stream) if "," in last else (answer.stream if last == "ours" else MAX,):
            answer.connection.goaway(number)
        await answer.connection.drained()
        answer.rest()

    case.face(fault, sibling=True, max_retries=0)
    response = case.call()
    assert (response.text, response.metrics.attempts, len(case.asked)) == ("Hello", 1, 1)
    assert case.call().text == "Hello"
    assert case.asked[1].connection.number == 2  # nothing new on a connection that was told to go
    case.server.wait_for(lambda server: server.open == (2 if case.with_sibling else 1))


@where("h2")
def test_row_13_goaway_before_the_headers(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.connection.goaway(answer.stream)
        await answer.connection.drained()
        answer.good()

    case.face(fault, sibling=True, max_retries=0)
    response = case.call()
    assert (response.text, response.metrics.attempts, len(case.asked)) == ("Hello", 1, 1)


@where("h2 async")
def test_row_13_goaway_with_many_in_flight(case: Case) -> None:
    arrived: list[Answer] = []

    async def fault(answer: Answer) -> None:
        answer.part()
        arrived.append(answer)
        if len(arrived) == 20:
            answer.connection.goaway(MAX)
            case.say("told")
        await case.until_said(answer, "told")
        answer.rest()

    case.face(fault, times=20, max_retries=0)
    assert [getattr(result, "text", result) for result in case.at_once(20)] == ["Hello"] * 20


@where("h2")
@pytest.mark.parametrize("code", [Code.NO_ERROR, Code.INTERNAL_ERROR])
def test_row_14_goaway_and_the_connection_closes(case: Case, code: int) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        await case.heard(answer)
        answer.connection.goaway(answer.stream, code)
        answer.connection.fin()

    case.face(fault)
    error = case.fails_after_part(LLMStreamTruncatedError)
    assert code == Code.NO_ERROR or "INTERNAL_ERROR" in str(error)


# --- rows 16 and 18: the stream or the connection is lost


@where("h2")
@pytest.mark.parametrize("code", [Code.INTERNAL_ERROR, Code.CANCEL, Code.NO_ERROR, 0xBEEF])
def test_row_16_the_stream_is_reset(case: Case, code: int) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        await case.heard(answer)
        answer.reset(code)

    case.face(fault, sibling=True)
    error = case.fails_after_part(LLMStreamTruncatedError)
    assert (Code(code).name if code in set(Code) else str(code)) in str(error)
    assert len(case.server.connections) == 1


@where("h2")
def test_row_16_a_reset_after_the_end_is_nothing(case: Case) -> None:
    """RFC 9113, section 8.1: NO_ERROR after a whole answer only says that no more of the request is wanted."""

    async def fault(answer: Answer) -> None:
        answer.part()
        answer.rest()
        answer.reset(Code.NO_ERROR)

    case.face(fault, times=3, sibling=True, max_retries=0)
    assert [case.call().text for _ in range(3)] == ["Hello"] * 3


@where("h1 tls h2")
@pytest.mark.parametrize("how", ["reset", "cut", "fin"])
def test_row_18_the_connection_is_lost(case: Case, how: str) -> None:
    """``cut`` is FIN without close_notify, which over TLS anybody on the way can send."""

    async def fault(answer: Answer) -> None:
        answer.part()
        await case.heard(answer)
        {"reset": answer.connection.tcp_reset, "cut": answer.connection.cut, "fin": answer.connection.fin}[how]()

    case.face(fault)
    error = case.fails_after_part(LLMStreamTruncatedError)
    assert error.maybe_processed


@where("tls")
@pytest.mark.parametrize("how", ["fin", "cut"])
def test_row_18_without_a_length_only_close_notify_ends_an_answer(case: Case, how: str) -> None:
    async def fault(answer: Answer) -> None:
        answer.head(chunked=False)
        answer.send(event("Hel") if answer.streams else completion())
        await case.heard(answer)
        if answer.streams and how == "fin":
            answer.send(event("lo") + FINISH)
        getattr(answer.connection, how)()

    case.face(fault)
    if how == "fin":
        assert case.call().text == "Hello"
    else:
        case.fails(LLMStreamTruncatedError, seen="Hel")
        assert len(case.asked) == 1


# --- rows 19 to 21: the end of a stream


@where("h1 tls h2 stream")
@pytest.mark.parametrize("texts", ["Hel", ""], ids=["after text", "empty"])
def test_row_19_an_end_that_nobody_announced(case: Case, texts: str) -> None:
    async def fault(answer: Answer) -> None:
        answer.head()
        if texts:
            answer.text(texts)
            await case.heard(answer)
        answer.end()

    case.face(fault, sibling=True)
    error = case.fails(LLMStreamTruncatedError, seen=texts)
    assert (error.attempts, len(case.asked)) == (1, 1)
    assert case.call().text == "Hello"
    assert len(case.server.connections) == 1  # the message was whole: the connection is as good as before


@where("h2 stream")
def test_row_19_an_end_with_the_headers(case: Case) -> None:
    case.face(_doing(lambda answer: answer.head(end=True)), sibling=True)
    assert case.fails(LLMStreamTruncatedError, seen="").attempts == 1


@where("stream")
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "stays open"])
def test_row_20_finish_reason_without_done(case: Case, ends: bool) -> None:
    async def fault(answer: Answer) -> None:
        answer.head()
        answer.send(event("Hello") + event(finish="stop"), end=ends)

    case.face(fault, sibling=True)
    started = time.monotonic()
    assert case.call().finish_reason == "stop"
    assert time.monotonic() - started < AT_ONCE + (0 if ends else 1.0)  # it waits 1 s for usage and [DONE]


@where("stream")
def test_row_20_finish_reason_and_the_connection_is_lost(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.head()
        answer.send(event("Hello"))
        await case.heard(answer)
        answer.send(event(finish="stop"))
        answer.connection.cut()

    case.face(fault, max_retries=0)
    response = case.call()
    assert (response.text, response.finish_reason, len(case.asked)) == ("Hello", "stop", 1)


@where("h1 tls h2 stream")
@pytest.mark.parametrize("after", ["text and end", "text", "end", "nothing"])
def test_row_21_after_done_nothing_counts(case: Case, after: str) -> None:
    """The stream ends at ``[DONE]`` without a wait; the next call finds the connection's end of the message, or makes another."""

    async def fault(answer: Answer) -> None:
        answer.head()
        answer.send(event("Hello") + FINISH + (event("ghost") + FINISH if "text" in after else b""), end="end" in after)

    case.face(fault, times=3, sibling=True, max_retries=0)
    for _ in range(4):
        started = time.monotonic()
        response = case.call()
        assert (response.text, response.metrics.attempts) == ("Hello", 1)
        assert time.monotonic() - started < AT_ONCE
    if "end" in after:
        assert len(case.server.connections) == 1
    if case.http2 and case.colour == "async":
        assert len(case.server.connections) == 1


@where("h2 stream")
def test_row_21_what_has_not_ended_is_in_nobodys_way(case: Case) -> None:
    """The server allows one stream, and still counts the one whose text is over: it is reset for the next."""

    async def fault(answer: Answer) -> None:
        answer.head()
        answer.send(event("Hello") + FINISH)
        await answer.left()

    case.face(fault, times=3, server_settings={"max_concurrent_streams": 1}, max_retries=0)
    assert [case.call().text for _ in range(4)] == ["Hello"] * 4
    assert len(case.server.connections) == 1 or case.colour == "sync"


@where("h1 tls h2 stream")
def test_row_21_what_never_ends_after_done_is_dropped(case: Case) -> None:
    """Neither memory nor the connection's credit may be lost to it."""
    stopped: list[float] = []

    async def fault(answer: Answer) -> None:
        answer.head()
        answer.send(event("Hello") + FINISH)
        try:
            await answer.body_of(b": and so on\n\n" * 2_000_000)
        finally:
            stopped.append(time.monotonic())

    case.face(fault, sibling=True, max_retries=0)
    started = time.monotonic()
    assert case.call().text == "Hello"
    assert time.monotonic() - started < AT_ONCE
    assert [case.call().metrics.attempts for _ in range(5)] == [1] * 5


def _doing(act: Any) -> Any:
    async def fault(answer: Answer) -> None:
        act(answer)

    return fault


# --- rows 22 and 23: HTTP/1.1's ways to end


@where("h1 stream")
@pytest.mark.parametrize("how", ["fin", "tcp_reset"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "half"])
def test_row_22_a_stream_without_a_length(case: Case, how: str, whole: bool) -> None:
    async def fault(answer: Answer) -> None:
        answer.head(chunked=False)
        answer.send(event("Hel"))
        await case.heard(answer)
        if whole:
            answer.send(event("lo") + FINISH)
        getattr(answer.connection, how)()

    case.face(fault)
    if whole:
        assert case.call().text == "Hello"
        assert len(case.asked) == 1
    else:
        case.fails_after_part(LLMStreamTruncatedError)


@where("h1 generate")
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_row_22_an_answer_without_a_length(case: Case, version: bytes) -> None:
    def fault(answer: Answer) -> None:
        answer.connection.raw(version + b" 200 OK\r\nContent-Type: application/json\r\n\r\n" + completion())
        answer.connection.fin()

    case.face(_doing(fault), max_retries=0)
    assert case.call().text == "Hello"


@where("h1 generate")
@pytest.mark.parametrize("how", ["fin", "tcp_reset"])
def test_row_22_half_an_answer_without_a_length(case: Case, how: str) -> None:
    """A clean FIN cannot be told from an end, but half of a JSON object can be told from a whole one."""

    async def fault(answer: Answer) -> None:
        answer.part(chunked=False)
        await answer.connection.drained()
        getattr(answer.connection, how)()

    case.face(fault, times=ALWAYS)
    # A reset may take what has not been read yet with it, and is then row 10.
    case.fails(LLMResponseError if how == "fin" else LLMStreamTruncatedError, max_retries=0)


@where("h1 tls")
@pytest.mark.parametrize("how", ["fin", "cut", "tcp_reset"])
def test_row_23_a_short_content_length(case: Case, how: str) -> None:
    async def fault(answer: Answer) -> None:
        answer.head(fields=[("content-type", "text/event-stream"), ("content-length", "10000")], chunked=False)
        answer.send(event("Hel") if answer.streams else completion()[:-10])
        await case.heard(answer)
        getattr(answer.connection, how)()

    case.face(fault)
    case.fails_after_part(LLMStreamTruncatedError)


@where("h1")
@pytest.mark.parametrize("size", ["zz", "+5", "0x5", "1_0", "-1", "", "5 5", "F" * 17, "\u0665".encode().decode("latin-1")])
def test_row_23_a_bad_chunk_size(case: Case, size: str) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        await case.heard(answer)
        answer.connection.raw(size.encode("latin-1") + b"\r\nhello\r\n0\r\n\r\n")

    case.face(fault)
    error = case.fails_after_part(LLMResponseError)
    assert error.status_code == 200


@where("h1")
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nhello",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/3.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nname : value\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02F\r\n\r\n",
    ],
    ids=lambda head: head[:60].decode("latin-1").encode("unicode_escape").decode(),
)
def test_row_23_a_bad_head(case: Case, head: bytes) -> None:
    case.face(_doing(lambda answer: answer.connection.raw(head)), times=ALWAYS)
    error = case.fails(LLMResponseError, max_retries=0)
    assert len(case.asked) == error.attempts == 1
    case.server.wait_for(lambda server: server.open == 0)


# --- rows 40 and 41: an answer that is none


@where()
@pytest.mark.parametrize(
    ("error", "cls", "tries"),
    [
        (b'{"error": {"message": "busy", "code": 503}}', LLMOverloadedError, 3),
        (b'{"error": {"message": "no money", "code": "insufficient_quota"}}', LLMQuotaExceededError, 1),
    ],
    ids=["busy", "no money"],
)
def test_row_40_an_error_with_status_200(case: Case, error: bytes, cls: type[LLMError], tries: int) -> None:
    async def fault(answer: Answer) -> None:
        answer.head()
        answer.send(b"data: " + error + b"\n\n" if answer.streams else error, end=True)

    case.face(fault, times=tries, sibling=True)
    assert case.fails(cls).attempts == len(case.asked) == tries


@where("stream")
def test_row_40_an_error_in_the_middle(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        await case.heard(answer)
        answer.send(b'data: {"error": {"message": "busy", "code": 503}}\n\n', end=True)

    case.face(fault, sibling=True)
    assert case.fails_after_part(LLMOverloadedError).retryable


@where()
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_row_41_a_redirect_is_never_followed(case: Case, status: int) -> None:
    location = [("location", "/v1/chat/completions"), ("content-type", "text/html")]
    case.face(_doing(lambda answer: answer.head(status, location, end=True)), sibling=True)
    error = case.fails(LLMResponseError)
    assert (error.status_code, error.attempts, len(case.asked)) == (status, 1, 1)


@where()
@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (200, "text/html", b"<!doctype html><title>Welcome to nginx!</title>"),
        (200, "text/plain", b"Hello"),
        (200, "image/png", b"\x89PNG\r\n\x1a\n"),
        (204, "", b""),
    ],
    ids=["HTML", "text", "PNG", "204"],
)
def test_row_41_no_answer_at_all(case: Case, status: int, kind: str, body: bytes) -> None:
    def fault(answer: Answer) -> None:
        if status == 204 and not case.http2:
            answer.connection.raw(b"HTTP/1.1 204 No Content\r\n\r\n")
            answer.connection.settle(answer, over=True)
        else:
            answer.head(status, [("content-type", kind)] if kind else [], end=not body)
            if body:
                answer.send(body, end=True)

    case.face(_doing(fault), sibling=True)
    error = case.fails(LLMResponseError)
    assert (error.status_code, error.attempts, len(case.asked)) == (status, 1, 1)
    assert case.call().text == "Hello"
    if case.http2:
        assert len(case.server.connections) == 1


@where("generate")
def test_row_41_an_empty_answer(case: Case) -> None:
    case.face(_doing(lambda answer: answer.head(end=True)), sibling=True, max_retries=0)
    assert isinstance(case.fails(LLMResponseError), LLMInternalError)
