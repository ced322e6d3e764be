"""Rows 29 to 31 and 43: stop means stop, at the server, and nobody else notices."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from jazz_llm import LLMClosedError, LLMResponse

from ..frame_server import FINISH, Answer, Code, event
from .conftest import ALWAYS, Case, said, where

STREAMS = pytest.mark.parametrize("made", ["stream", "stream_events"])  # by which method
SOON = 0.1 + 1.9  # seconds until the server must know: 0.1 by FAULTS.md, and what a busy machine adds


async def endless(answer: Answer) -> None:
    """Answer as slowly as a model does, until the client has left."""
    answer.head()
    answer.text("Hel")
    while not answer.over:
        answer.text("lo")
        await asyncio.sleep(0.01)


async def silent(answer: Answer) -> None:
    await answer.left()


def left_soon(case: Case, answer: Answer, since: float) -> None:
    """See that the server was told: by RST_STREAM(CANCEL), or over HTTP/1.1 by the end of the connection."""
    case.server.wait_for(lambda _: answer.over)
    assert answer.left_at is not None
    assert answer.left_at - since < SOON
    if case.http2:
        assert answer.code == Code.CANCEL
        assert answer.connection.lost_at is None
    else:
        case.server.wait_for(lambda _: answer.connection.lost_at is not None)


# --- row 29, sync


def broken_off(stream: Any) -> None:
    for _ in stream:
        break


def raised(stream: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in stream:
            raise ZeroDivisionError


def closed(stream: Any) -> None:
    cursor = iter(stream)
    assert said(next(cursor)) == "Hel"
    stream.close()
    stream.close()


def left_by_with(stream: Any) -> None:
    with stream:
        cursor = iter(stream)
        assert said(next(cursor)) == "Hel"


def interrupted(stream: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        for _ in stream:
            raise KeyboardInterrupt


LEAVING: list[Callable[[Any], None]] = [broken_off, raised, closed, left_by_with, interrupted]


@where("h1 tls h2 sync stream")
@STREAMS
@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
def test_row_29_leaving_a_sync_stream(case: Case, leave: Callable[[Any], None], made: str) -> None:
    case.face(endless)
    stream = getattr(case.llm, made)("hi")
    leave(stream)
    left_soon(case, case.asked[0], time.monotonic())
    assert stream.response is None
    with pytest.raises(LLMClosedError):
        stream.finish()
    assert case.call("next").text == "Hello"
    assert len(case.server.connections) == (1 if case.http2 else 2)  # what was left by RST_STREAM serves the next call


@where("h1 tls h2 sync stream")
@STREAMS
@pytest.mark.parametrize("cyclic", [False, True], ids=["counted", "cyclic"])
def test_row_29_a_sync_stream_is_collected(case: Case, cyclic: bool, made: str) -> None:
    case.face(endless)
    stream: Any = getattr(case.llm, made)("hi")
    stream.__enter__()
    if cyclic:
        stream.itself = stream
    case.server.wait_for(lambda server: server.live == 1)
    since = time.monotonic()
    del stream
    gc.collect()
    left_soon(case, case.asked[0], since)


# --- row 29, async


async def abroken_off(stream: Any) -> None:
    async for _ in stream:
        break


async def araised(stream: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async for _ in stream:
            raise ZeroDivisionError


async def aclosed(stream: Any) -> None:
    cursor = aiter(stream)
    assert said(await anext(cursor)) == "Hel"
    await stream.aclose()
    await stream.aclose()


async def left_by_async_with(stream: Any) -> None:
    async with stream:
        cursor = aiter(stream)
        assert said(await anext(cursor)) == "Hel"


ALEAVING: list[Any] = [abroken_off, araised, aclosed, left_by_async_with]


@where("h1 tls h2 async stream")
@STREAMS
@pytest.mark.parametrize("leave", ALEAVING, ids=lambda leave: leave.__name__)
def test_row_29_leaving_an_async_stream(case: Case, leave: Any, made: str) -> None:
    case.face(endless, sibling=True)

    async def main() -> None:
        stream = getattr(case.llm, f"a{made}")("hi")
        await leave(stream)
        since = time.monotonic()
        await asyncio.to_thread(left_soon, case, case.asked[0], since)
        assert stream.response is None
        with pytest.raises(LLMClosedError):
            await stream.finish()

    case.client.run(main())
    assert case.call("next").text == "Hello"
    assert len(case.server.connections) == (1 if case.http2 else 2)


@where("h1 tls h2 async stream")
@STREAMS
@pytest.mark.parametrize("cyclic", [False, True], ids=["counted", "cyclic"])
def test_row_29_an_async_stream_is_collected(case: Case, cyclic: bool, made: str) -> None:
    case.face(endless, sibling=True)
    held: list[Any] = []

    async def begin() -> None:
        stream: Any = getattr(case.llm, f"a{made}")("hi")
        await stream.__aenter__()
        if cyclic:
            stream.itself = stream
        held.append(stream)

    case.client.run(begin())
    case.server.wait_for(lambda server: server.live == 1 + case.with_sibling)
    since = time.monotonic()
    held.clear()  # here, in another thread than the loop's
    gc.collect()
    left_soon(case, case.asked[0], since)


@where("h1 tls h2 stream")
@STREAMS
@pytest.mark.parametrize("whose", ["stream", "client"])
@pytest.mark.parametrize("fault", [silent, endless])
def test_row_29_closed_from_elsewhere(case: Case, fault: Any, whose: str, made: str) -> None:
    """By another thread than the one that waits, whose wait ends at once: quietly where the stream itself was closed."""
    case.face(fault)
    streams: list[Any] = []

    def read() -> str:
        streams.append(getattr(case.llm, made)("hi"))
        return "".join(map(said, streams[0]))

    async def aread() -> str:
        streams.append(getattr(case.llm, f"a{made}")("hi"))
        return "".join([said(item) async for item in streams[0]])

    reading = case._threads.submit(read) if case.colour == "sync" else case.client.start(aread())
    case.server.wait_for(lambda server: server.live == 1)
    since = time.monotonic()
    thing = streams[0] if whose == "stream" else case.llm
    if whose == "stream" and case.colour == "async":
        case.client.run(thing.aclose())
    else:
        thing.close()
    error = reading.exception(5)
    assert time.monotonic() - since < SOON
    assert type(error) is (type(None) if whose == "stream" else LLMClosedError)
    case.server.wait_for(lambda _: case.asked[0].over)
    assert case.asked[0].left_at - since < SOON  # type: ignore[operator]


# --- rows 30 and 31: cancellation


async def cancelled_after(ticks: int, work: Any) -> LLMResponse[Any] | None:
    """Cancel a call after some turns of the loop; return its response where it was quicker."""
    task = asyncio.ensure_future(work)
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    (met,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(met, LLMResponse):
        return met
    assert type(met) is asyncio.CancelledError
    return None


async def slow(answer: Answer) -> None:
    answer.head()
    answer.send(event("Hel") if answer.streams else b" ")
    await asyncio.sleep(0.01)
    if answer.streams and not answer.over:
        answer.send(event("lo") + FINISH, end=True)


@where("h1 tls h2 async generate stream events")
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_row_30_cancelled_at_every_tick_on_a_warm_connection(case: Case, large: bool) -> None:
    case.face(slow, times=ALWAYS, sibling=True)
    text = "x" * 100_000 if large else "hi"
    case.call("next")

    async def main() -> None:
        for ticks in range(91):
            await cancelled_after(ticks, case.acall(text))

    case.client.run(main())
    told(case)
    assert case.call("next").text == "Hello"
    if case.http2:
        assert len(case.server.connections) == 1


def told(case: Case) -> None:
    """See that whatever had been asked was also taken back, at once."""
    case.server.wait_for(lambda server: server.live == case.with_sibling)
    case.server.wait_for(lambda server: not any(getattr(connection, "_open", None) for connection in server.connections))
    for answer in case.asked:
        assert answer.left_at is None or answer.left_at - answer.at < SOON
    if case.http2:
        assert {answer.code for answer in case.asked} <= {Code.CANCEL, None}


@where("h1 tls h2 async generate stream events")
def test_row_30_cancelled_at_every_tick_of_a_first_call(case: Case) -> None:
    """From the connection on; what was being made may be kept for the next, or closed."""
    case.face(slow, times=ALWAYS)

    async def main() -> None:
        for ticks in range(91):
            case.make_client()
            await cancelled_after(ticks, case.acall())
            if ticks % 3:  # else another call has the connection that this one began to make
                await case.llm.agenerate("next")

    case.client.run(main())
    told(case)


@where("h2 async")
def test_row_30_cancelled_while_others_wait_for_the_same_connection(case: Case) -> None:
    """The first caller makes the connection; its cancellation must not be theirs."""
    case.face(slow, times=ALWAYS)

    async def main() -> None:
        for ticks in range(0, 91, 2):
            case.make_client()
            first = asyncio.ensure_future(case.acall())
            others = [asyncio.ensure_future(case.acall("next")) for _ in range(3)]
            for _ in range(ticks):
                await asyncio.sleep(0)
            first.cancel()
            met = await asyncio.gather(first, return_exceptions=True)
            assert [type(error) for error in met] == [asyncio.CancelledError]
            assert [response.text for response in await asyncio.gather(*others)] == ["Hello"] * 3
            await case.llm.aclose()

    case.client.run(main())
    case.make_client()
    told(case)


@where("h1 h2 async")
def test_row_30_cancelled_in_the_queue(case: Case) -> None:
    """Whoever is cancelled as a place is given to him passes it on: nobody behind him waits for ever."""

    async def held(answer: Answer) -> None:
        answer.part()
        await case.until_said(answer, "go on")
        answer.rest()

    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    case.face(held, times=ALWAYS, limits=limits, server_settings={"max_concurrent_streams": 1})
    case.call("next")

    async def main() -> None:
        for ticks in range(60):
            case.said.discard("go on")
            first = asyncio.ensure_future(case.acall("first"))
            await asyncio.sleep(0.001)
            second, third = (asyncio.ensure_future(case.acall("next")) for _ in range(2))
            await asyncio.sleep(0)
            case.say("go on")
            for _ in range(3 * ticks):
                await asyncio.sleep(0)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            assert (await first).text == (await asyncio.wait_for(third, 5)).text == "Hello"

    case.client.run(main())


@where("h2 async")
def test_row_31_a_thousand_cancels_beside_twenty_streams(case: Case) -> None:
    async def fault(answer: Answer) -> None:
        if not answer.json()["messages"][0]["content"].startswith("long"):
            return await answer.left()
        answer.head()
        while "stop" not in case.said:
            answer.text("x")
            await asyncio.sleep(0.02)
        answer.send(event("y") + FINISH, end=True)

    case.face(fault, times=ALWAYS)

    async def main() -> list[LLMResponse[Any]]:
        streams = [asyncio.ensure_future(case.acall(f"long {i}", "stream")) for i in range(20)]
        await asyncio.to_thread(case.server.wait_for, lambda _: sum(said.startswith("long") for said in case.said) == 20)
        for batch in range(20):
            await asyncio.gather(*(cancelled_after(batch + i % 50, case.acall()) for i in range(50)))
        case.say("stop")
        return await asyncio.gather(*streams)

    responses = case.client.run(main())
    assert [set(response.text) for response in responses] == [{"x", "y"}] * 20
    case.server.wait_for(lambda server: server.live == 0)
    assert all(answer.code == Code.CANCEL for answer in case.asked if answer.json()["messages"][0]["content"] == "hi")
    assert len(case.server.connections) == 1


# --- row 43


@where("h1 tls h2 async generate")
@pytest.mark.parametrize("fault", [silent, endless])
def test_row_43_a_cancelled_call_ends_at_the_server(case: Case, fault: Any) -> None:
    case.face(fault, sibling=True)

    async def main() -> float:
        task = asyncio.ensure_future(case.acall())
        await asyncio.to_thread(case.server.wait_for, lambda _: case.asked)
        task.cancel()
        since = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        return since

    since = case.client.run(main())
    left_soon(case, case.asked[0], since)
