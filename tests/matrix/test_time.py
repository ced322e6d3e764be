"""Rows 24 to 28: servers that say nothing, or nothing that counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from jazz_llm import LLMTimeoutError

from ..frame_server import FINISH, Answer, Code, serving
from .conftest import PATIENCE, SHORT, SLACK, Case, where

READ = httpx.Timeout(PATIENCE, read=SHORT)
STALLS: dict[str, Any] = {"timeout": READ, "first_token_timeout": PATIENCE}  # between tokens, and nothing else
WAITS = [
    pytest.param("read", {"timeout": READ}, id="read"),
    pytest.param("first_token", {"first_token_timeout": SHORT}, id="first_token"),
    pytest.param("deadline", {"deadline": SHORT}, id="deadline"),
]


def runs_out(case: Case, phase: str, seen: str = "", **options: Any) -> Any:
    started = time.monotonic()
    error = case.fails(LLMTimeoutError, seen=seen, within=SHORT + SLACK, **options)
    assert time.monotonic() - started > SHORT * 0.9
    assert (error.phase, error.attempts, len(case.asked)) == (phase, 1, 1)
    return error


def half_open(case: Case, act: Callable[[Answer], None]) -> Any:
    """Make a script whose first connection dies at its first request: nothing is ever said on it again."""

    async def script(connection: Any) -> None:
        if connection.number == 1:
            act(await connection.request())
            await connection.gone()
        else:
            await serving(case._answer)(connection)

    return script


@where("h1 tls h2")
@pytest.mark.parametrize(("phase", "arguments"), WAITS)
def test_row_24_half_open_before_headers(case: Case, phase: str, arguments: dict[str, Any]) -> None:
    """The next call must not be given the dead connection again."""
    if phase == "first_token" and case.kind == "generate":
        pytest.skip("a whole answer has no first token")
    case.face(script=half_open(case, lambda _: None), timeout=PATIENCE)
    runs_out(case, phase, **arguments)
    case.server.wait_for(lambda server: server.live == 0)  # told by RST_STREAM, or closed
    assert case.call(timeout=2 * SLACK).text == "Hello"
    case.server.wait_for(lambda server: server.open == 1)


@where("h1 tls h2 stream")
def test_row_25_half_open_in_the_stream(case: Case) -> None:
    case.face(script=half_open(case, Answer.part))
    error = runs_out(case, "between_tokens", seen="Hel", **STALLS)
    assert error.partial is not None
    case.server.wait_for(lambda server: server.live == 0)
    assert case.call(timeout=2 * SLACK).text == "Hello"


@where("generate")
def test_row_25_half_open_in_a_whole_answer(case: Case) -> None:
    case.face(script=half_open(case, Answer.part))
    runs_out(case, "read", timeout=READ)
    case.server.wait_for(lambda server: server.live == 0)
    assert case.call(timeout=2 * SLACK).text == "Hello"


@where("h2 async")
def test_row_26_one_stalls_beside_busy_siblings(case: Case) -> None:
    siblings = 5

    async def handler(answer: Answer) -> None:
        if answer.json()["messages"][0]["content"] == "hi":
            if answer.streams:
                answer.part()
            await answer.left()
            case.say("stalled")
            return
        if answer.json()["messages"][0]["content"] == "next":
            return answer.good()
        answer.head()
        while "stalled" not in case.said:
            answer.text("x")
            await asyncio.sleep(0.02)
        answer.send(FINISH, end=True)

    case.face(script=serving(handler))
    busy = [case.start(f"busy {i}", kind="stream") for i in range(siblings)]
    case.server.wait_for(lambda _: sum(said.startswith("busy") for said in case.said) == siblings)
    error = case.fails(LLMTimeoutError, seen="Hel", within=SHORT + SLACK, **STALLS)
    assert (error.phase, error.attempts) == ("between_tokens" if case.kind == "stream" else "read", 1)
    assert [set(future.result(5).text) for future in busy] == [{"x"}] * siblings
    stalled = next(answer for answer in case.asked if answer.json()["messages"][0]["content"] == "hi")
    assert (stalled.code, len(case.server.connections)) == (Code.CANCEL, 1)
    assert stalled.left_at is not None
    assert stalled.left_at - stalled.at < SHORT + SLACK
    assert case.call("next").text == "Hello"
    assert len(case.server.connections) == 1  # a connection on which others go on is not half-open


# --- row 27: bytes that bring the answer no nearer


async def drip(answer: Answer, data: bytes) -> None:
    for i in range(len(data)):
        if answer.over:
            return answer.connection.raw(data[i:])
        answer.connection.raw(data[i : i + 1])
        await asyncio.sleep(0.02)


@where("h1 tls h2")
@pytest.mark.parametrize(("phase", "arguments"), WAITS)
def test_row_27_a_slow_head(case: Case, phase: str, arguments: dict[str, Any]) -> None:
    if phase == "first_token" and case.kind == "generate":
        pytest.skip("a whole answer has no first token")

    async def slow(answer: Answer) -> None:
        try:
            await slowly(answer)
        finally:
            case.say("whole")

    async def slowly(answer: Answer) -> None:
        if case.http2:
            block = answer.connection.block([(":status", "200"), ("x", "y" * 300)])
            await drip(answer, bytes([0, len(block) >> 8, len(block) & 255, 1, 4, 0, 0, 0, answer.stream]) + block)
        else:
            await drip(answer, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + b"X-Long: y\r\n" * 30)

    case.face(slow, sibling=True)
    runs_out(case, phase, **arguments)
    case.server.wait_for(lambda _: "whole" in case.said)  # nothing else can be sent in the middle of a frame


@where("h1 h2")
@pytest.mark.parametrize(("phase", "arguments"), WAITS)
def test_row_27_one_interim_answer_after_the_other(case: Case, phase: str, arguments: dict[str, Any]) -> None:
    if phase == "first_token" and case.kind == "generate":
        pytest.skip("a whole answer has no first token")

    async def early_hints(answer: Answer) -> None:
        while not answer.over:
            if case.http2:
                answer.connection.headers(answer.stream, 103, [("link", "</a>; rel=preload")])
            else:
                answer.connection.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")
            await asyncio.sleep(0.02)

    case.face(early_hints, sibling=True)
    runs_out(case, phase, **arguments)


@where("h1 h2")
def test_row_27_interim_answers_are_no_answer(case: Case) -> None:
    async def hints_first(answer: Answer) -> None:
        for status in (100, 102, 103):
            if case.http2:
                answer.connection.headers(answer.stream, status)
            else:
                answer.connection.raw(b"HTTP/1.1 %d Soon\r\n\r\n" % status)
        answer.good()

    case.face(hints_first, sibling=True, max_retries=0)
    response = case.call()
    assert (response.text, response.metrics.status_code) == ("Hello", 200)


# --- row 28: content counts, not bytes


async def comments(answer: Answer) -> None:
    while not answer.over:
        answer.send(b": ping\n\n" if answer.streams else b" ")
        await asyncio.sleep(0.02)


@where("h1 tls h2 stream")
def test_row_28_only_comments_after_content(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        await comments(answer)

    case.face(fault, sibling=True)
    runs_out(case, "between_tokens", seen="Hel", **STALLS)
    case.server.wait_for(lambda server: server.live == case.with_sibling)


@where()
@pytest.mark.parametrize(("phase", "arguments"), WAITS)
def test_row_28_only_comments_before_content(case: Case, phase: str, arguments: dict[str, Any]) -> None:
    if phase == "first_token" and case.kind == "generate":
        pytest.skip("a whole answer has no first token")

    async def fault(answer: Answer) -> None:
        answer.head()
        await comments(answer)

    case.face(fault, sibling=True)
    runs_out(case, phase, **arguments)
    case.server.wait_for(lambda server: server.live == case.with_sibling)
    if case.http2:
        assert {answer.code for answer in case.asked} == {Code.CANCEL}


@where("h2 stream")
def test_row_28_pings_are_no_content(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        answer.part()
        while not answer.over:
            answer.connection.send(6, 0, 0, b"12345678")
            await asyncio.sleep(0.02)

    case.face(fault, sibling=True)
    runs_out(case, "between_tokens", seen="Hel", **STALLS)


@where("stream")
def test_row_28_slow_content_is_content(case: Case) -> None:
    """Longer than the timeout in all, but never without a text for as long."""

    async def slow(answer: Answer) -> None:
        answer.head()
        for letter in "Hello":
            answer.text(letter)
            await asyncio.sleep(0.25)
        answer.send(FINISH, end=True)

    case.face(slow, timeout=1.0)
    assert case.call().text == "Hello"
