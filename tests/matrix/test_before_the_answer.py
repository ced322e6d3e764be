"""Rows 9 to 12, 15, 17 and 36 to 39: what happens between a request and the first byte of its answer, or instead of it."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMClosedError,
    LLMConnectionError,
    LLMError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMOverloadedError,
    LLMPermissionDeniedError,
    LLMRateLimitError,
    LLMStreamTruncatedError,
    RetryPolicy,
)

from ..frame_server import Answer, Code, serving
from .conftest import ALWAYS, AT_ONCE, Case, where

RESENDS = (3, 4)  # requests where everyone is turned away: "3 tries" (FAULTS.md), "again up to 3 times" (CONTRACT.md, section 5)


# --- row 9: a connection that has gone stale costs nothing


def stale(case: Case, how: str) -> None:
    """Let the server end the one idle connection, and wait until the client's socket has heard of it."""
    connection = case.server.connections[-1]
    if how.startswith("GOAWAY"):
        last = 2**31 - 1 if "max" in how else max(connection.answers)
        case.server.do(connection.goaway, last)
        if "FIN" not in how:
            return
    case.server.do({"RST": connection.tcp_reset, "no close_notify": connection.cut}.get(how, connection.fin))
    if how == "RST":  # asyncio sends it one turn after it has told of the loss
        case.server.wait_for(lambda _: connection.lost_at is not None)
        case.server.do(lambda: None)


ENDINGS = ["FIN", "RST"]


@where("h1 tls h2")
@pytest.mark.parametrize("how", ENDINGS)
def test_row_09_an_idle_connection_ends(case: Case, how: str) -> None:
    case.face(max_retries=0)
    for connections in (1, 2, 3):
        response = case.call()
        assert (response.text, response.metrics.attempts, len(case.server.connections)) == ("Hello", 1, connections)
        stale(case, how)
    case.server.wait_for(lambda server: server.open <= 1)


@where("tls h2")
def test_row_09_an_idle_connection_ends_without_close_notify(case: Case) -> None:
    case.face(max_retries=0)
    for _ in range(3):
        assert case.call().metrics.attempts == 1
        stale(case, "no close_notify")


@where("h2")
@pytest.mark.parametrize("how", ["GOAWAY", "GOAWAY max", "GOAWAY and FIN"])
def test_row_09_an_idle_connection_is_told_to_go(case: Case, how: str) -> None:
    case.face(max_retries=0)
    for connections in (1, 2, 3):
        response = case.call()
        assert (response.text, response.metrics.attempts) == ("Hello", 1)
        stale(case, how)
        assert len(case.server.connections) == connections
    assert case.call().metrics.attempts == 1
    # Each of them was taken for the end: nothing was asked on it afterwards, and it is closed.
    assert [len(connection.answers) for connection in case.server.connections] == [1, 1, 1, 1]
    case.server.wait_for(lambda server: server.open == 1)


@where()
def test_row_09_many_idle_connections_end(case: Case) -> None:
    """All at once, more of them than a request is sent again: no sending again is needed, each is seen before its use."""
    arrived = 0

    async def together(answer: Answer) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 8:
            case.say("all")
        await case.until_said(answer, "all")
        answer.good()

    case.face(together, times=8, max_retries=0, server_settings={"max_concurrent_streams": 1})
    assert [result.text for result in case.at_once(8)] == ["Hello"] * 8
    for connection in case.server.connections:
        case.server.do(connection.fin)
    assert [case.call().metrics.attempts for _ in range(3)] == [1, 1, 1]


# --- rows 10 and 11: lost, and the server may have done the work


def reset_connection(answer: Answer) -> None:
    answer.connection.tcp_reset()


def fin(answer: Answer) -> None:
    answer.connection.fin()


def cut(answer: Answer) -> None:
    answer.connection.cut()


def lost(case: Case, end: Any, words: str = "") -> None:
    """See a loss three times, then once where it must not be tried again, then get over it."""

    async def fault(answer: Answer) -> None:
        end(answer)

    case.face(fault, times=3)
    error = case.fails(LLMConnectionError)
    assert (error.maybe_processed, error.retryable, error.attempts, len(case.asked)) == (True, True, 3, 3)
    assert words in str(error)
    case._faults = 1
    case.make_client(retry=RetryPolicy(initial=0.0, ambiguous=False))
    assert case.fails(LLMConnectionError).attempts == 1
    assert len(case.asked) == 4
    case._faults = 1
    case.make_client()
    assert case.call().metrics.attempts == 2


@where("h1 tls h2")
def test_row_10_reset_before_any_byte(case: Case) -> None:
    lost(case, reset_connection)


@where("h1 tls h2")
@pytest.mark.parametrize("end", [fin, cut])
def test_row_11_fin_before_any_byte(case: Case, end: Any) -> None:
    if end is cut and case.wire == "h1":
        pytest.skip("the same without TLS")
    lost(case, end)


@where("h1")
def test_row_11_fin_in_the_head(case: Case) -> None:
    def half(answer: Answer) -> None:
        answer.connection.raw(b"HTTP/1.1 200 OK\r\nContent-")
        answer.connection.fin()

    case.face(_doing(half))
    error = case.fails(LLMConnectionError, max_retries=0)
    assert error.maybe_processed


@where("h2")
@pytest.mark.parametrize("code", [Code.INTERNAL_ERROR, Code.CANCEL, Code.NO_ERROR, Code.PROTOCOL_ERROR, 0xBEEF])
def test_row_10_the_stream_is_reset_before_any_byte(case: Case, code: int) -> None:
    async def fault(answer: Answer) -> None:
        answer.reset(code)

    case.face(fault, times=3, sibling=True)
    error = case.fails(LLMConnectionError)
    assert (error.maybe_processed, error.attempts, len(case.asked)) == (True, 3, 3)
    assert code == Code.NO_ERROR or (Code(code).name if code in set(Code) else str(code)) in str(error)
    assert len(case.server.connections) == 1


def _doing(act: Any) -> Any:
    async def fault(answer: Answer) -> None:
        act(answer)

    return fault


# --- rows 12 and 15: provably unprocessed


@where("h2")
@pytest.mark.parametrize("stay", [True, False], ids=["stays", "closes"])
@pytest.mark.parametrize("last", ["zero", "below"])
def test_row_12_goaway_below_ours(case: Case, last: str, stay: bool) -> None:
    def fault(answer: Answer) -> None:
        answer.connection.goaway(0 if last == "zero" else answer.stream - 2)
        if not stay:
            answer.connection.fin()

    sibling = last == "below" and stay  # its stream is below the last one, so it goes on
    case.face(_doing(fault), sibling=sibling, max_retries=0)
    if not case.with_sibling and last == "below":
        case._faults, faults = 0, case._faults
        case.call()
        case._faults = faults
    before = len(case.asked)
    response = case.call()
    assert (response.text, response.metrics.attempts, len(case.asked) - before, len(case.server.connections)) == ("Hello", 1, 2, 2)
    if not case.with_sibling:
        case.server.wait_for(lambda server: server.open == 1)


@where("h2")
def test_row_12_many_at_once_below_and_above(case: Case) -> None:
    """Of eight streams the server keeps the first four; the others come again on another connection, once each."""
    arrived: list[Answer] = []

    async def fault(answer: Answer) -> None:
        arrived.append(answer)
        if len(arrived) == 8:
            answer.connection.goaway(sorted(a.stream for a in arrived)[3])
            case.say("told")
        await case.until_said(answer, "told")
        if answer.stream <= sorted(a.stream for a in arrived)[3]:
            answer.good()

    if case.colour == "sync":
        pytest.skip("one stream a connection")
    case.face(fault, times=8, max_retries=0)
    assert [getattr(result, "text", result) for result in case.at_once(8)] == ["Hello"] * 8
    assert (len(case.asked), len(case.server.connections)) == (12, 2)


@where("h2")
def test_row_12_goaway_for_ever(case: Case) -> None:
    case.face(_doing(lambda answer: answer.connection.goaway(0)), times=ALWAYS, max_retries=0)
    error = case.fails(LLMConnectionError)
    assert (error.maybe_processed, error.attempts) == (False, 1)
    assert len(case.asked) in RESENDS


@where("h2")
def test_row_15_refused_before_headers(case: Case) -> None:
    case.face(_doing(lambda answer: answer.reset(Code.REFUSED_STREAM)), times=2, sibling=True, max_retries=0)
    response = case.call()
    assert (response.text, response.metrics.attempts, len(case.asked)) == ("Hello", 1, 3)


@where("h2")
def test_row_15_refused_for_ever(case: Case) -> None:
    case.face(_doing(lambda answer: answer.reset(Code.REFUSED_STREAM)), times=ALWAYS, sibling=True, max_retries=0)
    error = case.fails(LLMConnectionError)
    assert (error.maybe_processed, error.attempts) == (False, 1)
    assert len(case.asked) in RESENDS


@where("h2")
def test_row_15_refused_in_the_answer(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        await case.heard(answer)
        answer.reset(Code.REFUSED_STREAM)

    case.face(fault, sibling=True)
    error = case.fails_after_part(LLMStreamTruncatedError)
    assert "REFUSED_STREAM" in str(error)


# --- row 17


@where("h2")
def test_row_17_calm(case: Case) -> None:
    case.face(_doing(lambda answer: answer.reset(Code.ENHANCE_YOUR_CALM)), times=4, sibling=True)
    error = case.fails(LLMRateLimitError)
    assert (error.retryable, error.code, error.attempts, len(case.asked)) == (True, "overloaded", 3, 3)
    assert case.call().metrics.attempts == 2


@where("h2")
def test_row_17_calm_for_the_connection(case: Case) -> None:
    def fault(answer: Answer) -> None:
        answer.connection.goaway(answer.stream, Code.ENHANCE_YOUR_CALM, b"too_many_pings")
        answer.connection.fin()

    case.face(_doing(fault))
    error = case.fails(LLMRateLimitError, max_retries=0)
    assert (error.retryable, error.attempts, len(case.asked)) == (True, 1, 1)


@where("h2")
def test_row_17_calm_in_the_answer(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        await case.heard(answer)
        answer.reset(Code.ENHANCE_YOUR_CALM)

    case.face(fault, sibling=True)
    error = case.fails(LLMRateLimitError, seen="Hel", max_retries=2 if case.kind == "stream" else 0)
    assert (error.attempts, len(case.asked)) == (1, 1)


# --- row 36


@where()
def test_row_36_use_after_close(case: Case) -> None:
    case.face()
    case.call()
    case.close_clients()
    case.server.wait_for(lambda server: server.open == 0)
    case.fails(LLMClosedError)
    assert len(case.server.requests) == 1


# --- rows 37 to 39: statuses


def says(status: int, *fields: tuple[str, str], body: bytes = b'{"error": {"message": "no"}}') -> Any:
    def act(answer: Answer) -> None:
        answer.head(status, [("content-type", "application/json"), *fields])
        answer.send(body, end=True)

    return _doing(act)


PATIENT = RetryPolicy(initial=0.0, maximum=0.0, max_retry_after=0.5)


@where()
@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        (None, None, None),
        ("retry-after", "0", None),
        ("retry-after", "0.02", 0.02),
        ("retry-after-ms", "20", 0.02),
        ("retry-after", formatdate(0, usegmt=True), None),
        ("retry-after", "nan", None),
        ("retry-after", "-1", None),
    ],
    ids=["none", "0", "seconds", "ms", "past", "nan", "-1"],
)
def test_row_37_waits_as_told(case: Case, name: str | None, value: str, seconds: float | None) -> None:
    case.face(says(429, *([(name, value)] if name else [])), times=3, sibling=True, retry=PATIENT)
    error = case.fails(LLMRateLimitError)
    assert (error.status_code, error.attempts, len(case.asked)) == (429, 3, 3)
    assert (error.retry_after or None) == (seconds or None)


@where()
@pytest.mark.parametrize("value", ["30", "date", "inf", "1e400", "Fri, 31 Dec 99999 23:59:59 GMT", "Sat, 01 Jan 100000 00:00:00 GMT"])
def test_row_37_never_waits_for_long(case: Case, value: str) -> None:
    """A wait that is too long is not begun; one that makes no sense is none."""
    field = ("retry-after", formatdate(time.time() + 3600, usegmt=True) if value == "date" else value)
    case.face(says(429, field), times=3, retry=PATIENT)
    error = case.fails(LLMRateLimitError)
    known = value in ("30", "date")
    assert (error.attempts, len(case.asked)) == ((1, 1) if known or error.retry_after else (3, 3))
    assert error.retry_after is None or 20 < error.retry_after < 1e12


@where()
@pytest.mark.parametrize(
    ("status", "cls"),
    [(500, LLMInternalError), (502, LLMInternalError), (503, LLMOverloadedError), (504, LLMInternalError), (529, LLMOverloadedError)],
)
def test_row_38_the_server_fails(case: Case, status: int, cls: type[LLMError]) -> None:
    case.face(says(status), times=4)
    error = case.fails(cls)
    assert (error.status_code, error.retryable, error.attempts, len(case.asked)) == (status, True, 3, 3)
    assert case.call().metrics.attempts == 2


@where()
@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, LLMInvalidRequestError),
        (401, LLMAuthenticationError),
        (403, LLMPermissionDeniedError),
        (404, LLMNotFoundError),
        (413, LLMInvalidRequestError),
        (422, LLMInvalidRequestError),
    ],
)
def test_row_39_the_request_is_wrong(case: Case, status: int, cls: type[LLMError]) -> None:
    case.face(says(status), sibling=True)
    error = case.fails(cls)
    assert (error.status_code, error.retryable, error.attempts, len(case.asked)) == (status, False, 1, 1)


@where()
def test_row_39_the_answer_comes_before_the_request_is_read(case: Case) -> None:
    """413 in the middle of a body: what the server says is worth more than that it did not read to the end."""

    words = b'{"error": {"message": "too large"}}'

    async def early(connection: Any) -> None:
        if connection.number > 1:
            pass
        elif case.http2:
            stream = (await connection.until(lambda frame: frame.stream > 0)).stream
            connection.headers(stream, 413, [("content-type", "application/json")])
            connection.data(stream, words, end=True)
            connection.rst(stream, Code.NO_ERROR)
            case.server.credits_bodies = True
            connection.credit(65535, 0)
        else:
            while not connection._buffer:
                await connection.change()
            connection.raw(b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(words) + words)
            await connection.gone()
        await serving(case._answer)(connection)

    case.face(script=early, server_credits_bodies=False)
    started = time.monotonic()
    error = case.fails(LLMInvalidRequestError, "x" * 3_000_000)
    assert (error.status_code, error.attempts) == (413, 1)
    assert time.monotonic() - started < AT_ONCE
