"""Rows 32 and 42, and what an abandoned stream costs the others: nothing."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import socket
import time
from contextlib import closing
from typing import Any

import httpx
import pytest

from jazz_llm import LLMConnectionError, LLMOverloadedError, RetryPolicy

from ..frame_server import FINISH, Answer, Code, completion, event
from .conftest import ALWAYS, SLACK, Case, where
from .test_connecting import serve_on

HELD = 512 * 1024  # bytes that a slow reader may hold


@functools.cache
def texts(size: int) -> bytes:
    return event("x" * 1000) * (size // 1100)


async def large(answer: Answer, size: int) -> None:
    """Answer with about ``size`` bytes, as fast as the client allows."""
    answer.head()
    answer.text("Hel")
    await answer.body_of(texts(size))
    answer.send(event("lo") + FINISH, end=True)


async def abandoned(answer: Answer) -> None:
    await large(answer, 64_000_000)


@where("h2 async stream")
def test_row_32_a_slow_reader(case: Case) -> None:
    async def handler(answer: Answer) -> None:
        content = answer.json()["messages"][0]["content"]
        if content == "slow":
            return await large(answer, 64_000_000)
        answer.head()
        for _ in range(40):
            answer.text("x")
            await asyncio.sleep(0.02)
        answer.send(FINISH, end=True)

    case.face(handler, times=ALWAYS)

    async def busy() -> list[float]:
        times = [time.monotonic()]
        async for _ in case.llm.astream("busy"):
            times.append(time.monotonic())
        assert len(times) == 41
        return [b - a for a, b in itertools.pairwise(times)]

    async def main() -> float:
        async with case.llm.astream("slow") as slow:
            cursor = aiter(slow)
            assert await anext(cursor) == "Hel"
            gaps = await asyncio.gather(*(busy() for _ in range(50)))
        return max(map(max, gaps))

    widest = case.client.run(main())
    assert widest < 0.25 + SLACK / 2
    slow = case.asked[0]
    case.server.wait_for(lambda _: slow.over)
    assert slow.code == Code.CANCEL
    assert case.server.connections[0].allowed(slow.stream) <= HELD + 64 * 1024
    assert len(case.server.connections) == 1


@where("h1 h2 stream")
def test_row_32_a_reader_who_takes_his_time_gets_it_all(case: Case) -> None:
    async def handler(answer: Answer) -> None:
        await large(answer, 4_000_000)

    case.face(handler, sibling=True)
    response = case.call()
    assert (response.text[:4], response.text[-3:], len(response.text)) == ("Helx", "xlo", 5 + 4_000_000 // 1100 * 1000)


@where()
def test_row_32_a_whole_answer_is_not_held_up(case: Case) -> None:
    text = "x" * 20_000_000

    async def handler(answer: Answer) -> None:
        answer.head(fields=[("content-type", "application/json")])
        await answer.body_of(completion(text), end=True)

    case.face(handler, sibling=True)
    if case.kind == "generate":
        assert case.call().text == text


# --- an abandoned stream


@where("h1 h2 stream")
def test_an_abandoned_stream_starves_nobody(case: Case) -> None:
    """Many streams of 64 MB are left after their first text; then the same connection carries large answers."""
    case.face(abandoned, times=60, sibling=True)
    for _ in range(60 if case.http2 else 5):
        leave_after_first_text(case)
    case.server.wait_for(lambda server: server.live == case.with_sibling)
    if case.http2:
        (connection,) = case.server.connections
        assert connection.allowed(0) - connection.used[0] > 4_000_000

    async def wanted(answer: Answer) -> None:
        await large(answer, 4_000_000)

    case._fault, case._faults = wanted, 4
    for _ in range(4):
        assert len(case.call().text) > 3_000_000
    if case.http2:
        assert len(case.server.connections) == 1


@where("h1 h2 stream")
def test_a_hundred_and_thirty_early_leaves(case: Case) -> None:
    async def slow(answer: Answer) -> None:
        answer.part()
        await answer.left()

    case.face(slow, times=130, sibling=True, server_settings={"max_concurrent_streams": 100}, max_retries=0)
    for _ in range(130):
        leave_after_first_text(case)
    case.server.wait_for(lambda server: server.live == case.with_sibling, 1.0 + SLACK)
    assert [case.call().text for _ in range(3)] == ["Hello"] * 3
    if case.http2:
        assert len(case.server.connections) == 1
        assert {answer.code for answer in case.asked[:130]} == {Code.CANCEL}


def leave_after_first_text(case: Case) -> None:
    async def leave() -> None:
        async for _ in case.llm.astream("hi"):
            break

    if case.colour == "async":
        case.client.run(leave())
        return
    for _ in case.llm.stream("hi"):
        break


@where("h2")
@pytest.mark.parametrize("seed", range(3))
def test_all_that_costs_nothing_at_once(case: Case, seed: int) -> None:
    """Rows 7, 8, 9, 13 and 15, at random, beside each other: 300 calls, and none of them notices."""
    dice = random.Random(seed)
    refused: set[str] = set()

    async def fault(answer: Answer) -> None:
        connection, content = answer.connection, answer.json()["messages"][0]["content"]
        what = dice.random()
        if what < 0.1 and content not in refused:
            refused.add(content)
            return answer.reset(Code.REFUSED_STREAM)
        answer.part()
        if what < 0.2:
            connection.settings(max_concurrent_streams=dice.choice([1, 3, 10]))
        elif what < 0.3:
            connection.goaway(2**31 - 1)
        await asyncio.sleep(dice.random() * 0.01)
        if not answer.over:
            answer.rest(end=what < 0.9)  # else its end is still to come when the next call looks
        if what >= 0.9:
            await asyncio.sleep(0.002)
            if not answer.over and connection.lost_at is None:
                answer.end()
        if 0.2 < what < 0.3 and connection.live == 0 and connection.lost_at is None:
            connection.goaway(max(connection.answers))  # whatever is on its way now was not processed
            connection.fin()

    limits = httpx.Limits(max_connections=6, max_keepalive_connections=3, keepalive_expiry=0.05)
    case.face(fault, times=ALWAYS, server_settings={"max_concurrent_streams": 10}, limits=limits, max_retries=0)
    results = []
    for batch in range(10):
        futures = [case.start(f"{batch}-{i}") for i in range(30)]
        results += [future.exception(20) or future.result().text for future in futures]
    assert results == ["Hello"] * 300
    assert max(connection.peak for connection in case.server.connections) <= 10


# --- row 42


@where()
@pytest.mark.parametrize("down", ["refused", "503"])
def test_row_42_a_server_that_stays_down(case: Case, down: str) -> None:
    calls, policy = 300, RetryPolicy(initial=0.0, maximum=0.0)
    if down == "503":

        async def busy(answer: Answer) -> None:
            answer.head(503, [], end=True)

        case.face(busy, times=ALWAYS, retry=policy)
        tries = sum(case.fails(LLMOverloadedError).attempts for _ in range(calls))
        assert tries == len(case.asked)
    else:
        with closing(socket.socket()) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            scheme: Any = "http" if case.wire == "h1" else "https"
            case.make_client(base_url=f"{scheme}://127.0.0.1:{port}", verify=case.authority.path, retry=policy)
            tries = sum(case.fails(LLMConnectionError).attempts for _ in range(calls))
        serve_on(case, port)
    assert calls < tries <= 1.1 * calls + 10
