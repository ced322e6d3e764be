"""Closing, copying and sharing: no socket, task, thread or warning may be left (warnings are errors here)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from jazz_llm import LLMClosedError, LLMConfigurationError, LLMTimeoutError, OpenAICompatibleLLM
from jazz_llm.testing import Authority, FakeServer, Reply, Request

from .colours import Async, Sync


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, authority: Authority) -> Iterator[FakeServer]:
    with FakeServer(holding, tls=authority if request.param == "https" else False) as server:
        yield server


@pytest.fixture
def llm(server: FakeServer) -> OpenAICompatibleLLM:
    return make(server)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        for thread in set(threading.enumerate()) - before:
            thread.join(0.1)
    assert not set(threading.enumerate()) - before


def make(server: FakeServer, **arguments: Any) -> OpenAICompatibleLLM:
    tls = {} if server.authority is None else {"verify": server.authority.path}
    return OpenAICompatibleLLM("m", base_url=server.url, **{**tls, **arguments})


async def holding(request: Request, reply: Reply) -> None:
    """Answer; hold a stream open after its first text where the message asks for it."""
    body = request.json()
    if body["messages"][0]["content"] == "slow":
        await reply.sse(["a", "b"], delay=0.05)
        return
    if body["messages"][0]["content"] != "hold":
        await (reply.sse(["a", "b"]) if body.get("stream") else reply.text("ab"))
        return
    await reply.start(200, {"content-type": "text/event-stream"})
    await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
    await reply.cancelled()


def gone(server: FakeServer) -> None:
    server.wait_for(lambda s: s.connections == 0 and s.live == 0, 2.0)


# --- FAULTS.md, row 35: leaving ``with`` in each state of the loop


def test_with_never_used(llm: OpenAICompatibleLLM) -> None:
    with llm:
        pass
    asyncio.run(self_closing(make_unused()))


def make_unused() -> OpenAICompatibleLLM:
    return OpenAICompatibleLLM("m", base_url="http://localhost:9")


async def self_closing(llm: OpenAICompatibleLLM) -> None:
    async with llm:
        pass


def test_with_after_sync_calls(server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    with llm:
        assert llm.generate("hi").text == "ab"
        assert list(llm.stream("hi")) == ["a", "b"]
    gone(server)


@pytest.mark.parametrize("close", ["sync", "async"])
def test_in_the_running_loop(server: FakeServer, llm: OpenAICompatibleLLM, close: str) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        await asyncio.gather(*(llm.agenerate("hi") for _ in range(3)))
        if close == "sync":
            llm.close()
        else:
            await llm.aclose()
            assert asyncio.all_tasks() == before
        await asyncio.to_thread(gone, server)

    asyncio.run(main())


def test_async_with_ends_a_stream_that_is_still_open(server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with llm:
            stream = llm.astream("hold")
            assert await anext(aiter(stream)) == "a"
        assert asyncio.all_tasks() == before
        await asyncio.to_thread(gone, server)

    asyncio.run(main())


def test_a_loop_that_runs_in_another_thread(server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    with running_loop() as loop:
        assert asyncio.run_coroutine_threadsafe(llm.agenerate("hi"), loop).result(5).text == "ab"
        blocked = asyncio.run_coroutine_threadsafe(read_all(llm.astream("hold")), loop)
        server.wait_for(lambda s: s.live == 1)
        llm.close()
        assert isinstance(blocked.exception(5), LLMClosedError)
        gone(server)


def test_a_loop_that_is_stopped(server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(llm.agenerate("hi")).text == "ab"
    llm.close()
    gone(server)
    loop.close()


def test_a_loop_that_is_stopped_in_the_middle_of_a_stream(server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    loop = asyncio.new_event_loop()
    reader = loop.create_task(read_all(llm.astream("hold")))

    async def until_it_waits() -> None:
        await asyncio.to_thread(server.wait_for, lambda s: s.live == 1)

    loop.run_until_complete(until_it_waits())
    llm.close()
    gone(server)
    with pytest.raises(LLMClosedError):
        loop.run_until_complete(reader)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.mark.parametrize("kind", ["asyncio.run", "loop.close"])
def test_a_loop_that_is_closed(server: FakeServer, llm: OpenAICompatibleLLM, kind: str) -> None:
    if kind == "asyncio.run":
        asyncio.run(llm.agenerate("hi"))
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(llm.agenerate("hi"))
        loop.close()
    llm.close()
    gone(server)


def test_asyncio_run_closes_the_connections_of_its_loop_by_itself(server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    asyncio.run(llm.agenerate("hi"))
    gone(server)
    llm.close()


def test_a_client_that_nobody_closed_is_collected_without_a_word(server: FakeServer) -> None:
    llm = make(server)
    llm.generate("hi")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(llm.agenerate("hi"))
    del llm
    gc.collect()
    gone(server)
    loop.close()


def test_uvloop(server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    uvloop = pytest.importorskip("uvloop", reason='uvloop is not installed: pip install ".[test]"')

    async def main() -> None:
        async with llm:
            assert (await llm.agenerate("hi")).text == "ab"
            assert [text async for text in llm.astream("hi")] == ["a", "b"]
            async for _ in llm.astream("hold"):
                break
            with pytest.raises(LLMTimeoutError):
                await llm.agenerate("hold", timeout=0.2)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    gone(server)


# --- after closing


def test_closing_twice_is_fine_and_a_call_after_it_is_not(colour: Sync | Async, server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    colour.generate(llm)
    llm.close()
    llm.close()
    asyncio.run(llm.aclose())
    for call in (colour.generate, colour.stream):
        with pytest.raises(LLMClosedError):
            call(llm)
    with pytest.raises(LLMClosedError), llm:
        pass


def test_a_stream_made_before_closing_cannot_begin_after_it(colour: Sync | Async, llm: OpenAICompatibleLLM) -> None:
    stream = llm.stream("hi") if colour.name == "sync" else llm.astream("hi")
    llm.close()
    with pytest.raises(LLMClosedError):
        list(stream) if colour.name == "sync" else asyncio.run(read_all(stream))


def test_a_wait_between_tries_ends_when_the_client_closes(colour: Sync | Async) -> None:
    with FakeServer() as server:
        server.fail(503, retry_after=60)
        llm = make(server)
        met = colour.close_while_reading(llm, lambda: server.wait_for(lambda s: s.requests and not s.live), "llm")
        assert [type(error) for error in met] == [LLMClosedError]


# --- streams: leaving, sharing


def test_break_ends_the_stream_while_it_is_still_held(colour: Sync | Async, server: FakeServer) -> None:
    with make(server) as llm:
        if colour.name == "sync":
            stream = llm.stream("hold")
            for _ in stream:
                break
            server.wait_for(lambda s: s.live == 0, 1.0)
        else:

            async def main() -> None:
                stream = llm.astream("hold")
                async for _ in stream:
                    break
                await asyncio.to_thread(server.wait_for, lambda s: s.live == 0, 1.0)
                assert stream.response is None

            asyncio.run(main())


def test_an_exception_in_the_loop_ends_the_stream(server: FakeServer) -> None:
    with make(server) as llm:
        with pytest.raises(ZeroDivisionError):
            for _ in llm.stream("hold"):
                raise ZeroDivisionError
        server.wait_for(lambda s: s.live == 0, 1.0)


def test_with_ends_the_stream(server: FakeServer) -> None:
    with make(server) as llm:
        with llm.stream("hold") as stream:
            assert next(iter(stream)) == "a"
        server.wait_for(lambda s: s.live == 0, 1.0)


def test_a_stream_that_is_dropped_is_ended(server: FakeServer) -> None:
    with make(server) as llm:
        stream = llm.stream("hold")
        stream.__enter__()
        server.wait_for(lambda s: s.live == 1)
        del stream
        gc.collect()
        server.wait_for(lambda s: s.live == 0, 1.0)


def test_a_cancelled_task_ends_its_request_and_nothing_else(server: FakeServer) -> None:
    async def main() -> None:
        async with make(server) as llm:
            task = asyncio.create_task(read_all(llm.astream("hold")))
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await llm.agenerate("hi")).text == "ab"

    asyncio.run(main())


def test_the_next_call_works_after_an_early_leave(colour: Sync | Async, server: FakeServer) -> None:
    with make(server) as llm:
        for _ in range(5):
            colour.leave_early(llm)
            assert colour.generate(llm).text == "ab"


def test_two_readers_are_refused(server: FakeServer) -> None:
    async def main() -> None:
        async with make(server) as llm, llm.astream("hold") as stream:
            first = asyncio.create_task(stream.finish())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one reader"):
                await stream.finish()
            await stream.aclose()
            with pytest.raises(LLMClosedError):
                await first

    asyncio.run(main())


def test_finish_inside_the_loop_reads_the_rest(server: FakeServer) -> None:
    with make(server) as llm:
        stream = llm.stream("hi")
        texts = []
        for text in stream:
            texts.append(text)
            assert stream.finish().text == "ab"
        assert texts in (["a"], ["a", "b"])
        assert stream.finish() is stream.response


def test_finish_before_the_loop_leaves_nothing_to_iterate(server: FakeServer) -> None:
    with make(server) as llm:
        stream = llm.stream("hi")
        assert stream.finish().text == "ab"
        assert list(stream) == []


def test_a_deadline_that_passed_in_the_callers_time_counts(colour: Sync | Async, server: FakeServer) -> None:
    """Also where the rest of the text has arrived meanwhile; and no cancellation may be left behind."""
    with make(server, deadline=0.2) as llm:
        if colour.name == "sync":
            with pytest.raises(LLMTimeoutError):
                for _ in llm.stream("slow"):
                    time.sleep(0.3)
        else:

            async def main() -> None:
                with pytest.raises(LLMTimeoutError):
                    async for _ in llm.astream("slow"):
                        time.sleep(0.3)  # noqa: ASYNC251  # the caller blocks the loop: that is the point
                await asyncio.sleep(0.01)
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 0

            asyncio.run(main())


def test_closing_wakes_a_sync_call_that_waits_for_a_connection(server: FakeServer) -> None:
    llm = make(server, limits=httpx.Limits(max_connections=1, max_keepalive_connections=1), timeout=30)
    with llm.stream("hold"), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(llm.generate, "hi")
        while not llm._shared._calls or len(llm._shared._calls) < 2:
            time.sleep(0.01)
        started = time.monotonic()
        llm.close()
        assert isinstance(waiting.exception(10), LLMClosedError)
        assert time.monotonic() - started < 2


def test_a_cancelled_call_leaves_no_timer(server: FakeServer) -> None:
    async def main() -> None:
        async with make(server, timeout=30) as llm:
            task = asyncio.create_task(llm.agenerate("hold"))
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not llm._shared._apool._last.ticker._alarms  # type: ignore[union-attr]

    asyncio.run(main())


def test_a_transport_of_the_users_outlives_a_collected_instance() -> None:
    closed: list[str] = []

    class Transport(httpx.MockTransport):
        def close(self) -> None:
            closed.append("closed")

    transport = Transport(lambda _: httpx.Response(500))
    llm = OpenAICompatibleLLM("m", base_url="http://localhost", transport=transport)
    del llm
    gc.collect()
    assert closed == []
    OpenAICompatibleLLM("m", base_url="http://localhost", transport=transport).close()
    assert closed == ["closed"]


# --- threads and loops


def test_many_loops_at_once_share_one_instance(server: FakeServer) -> None:
    with make(server) as llm, ThreadPoolExecutor(8) as threads:
        old = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            texts = list(threads.map(lambda _: asyncio.run(llm.agenerate("hi")).text, range(80)))
        finally:
            sys.setswitchinterval(old)
    assert texts == ["ab"] * 80


def test_one_instance_serves_loops_one_after_the_other_and_at_once(server: FakeServer) -> None:
    with make(server) as llm:
        for _ in range(3):
            assert asyncio.run(llm.agenerate("hi")).text == "ab"
        with ThreadPoolExecutor(4) as threads:
            texts = list(threads.map(lambda _: asyncio.run(llm.agenerate("hi")).text, range(12)))
        assert texts == ["ab"] * 12
    gone(server)


def test_threads_that_switch_all_the_time_share_the_pool(server: FakeServer) -> None:
    with make(server) as llm, ThreadPoolExecutor(16) as threads:
        old = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            texts = list(threads.map(lambda _: llm.generate("hi", max_retries=0).text, range(1000)))
        finally:
            sys.setswitchinterval(old)
    assert texts == ["ab"] * 1000


def test_one_instance_serves_many_threads(server: FakeServer) -> None:
    with make(server) as llm, ThreadPoolExecutor(16) as threads:
        texts = list(threads.map(lambda i: llm.generate("hi").text if i % 2 else "".join(llm.stream("hi")), range(200)))
        assert texts == ["ab"] * 200
    gone(server)


# --- copies


def test_a_copy_uses_the_same_connections(server: FakeServer) -> None:
    with make(server) as llm:
        llm.generate("hi")
        llm.with_options(temperature=0.1, model="other").generate("hi")
        assert {request.connection for request in server.requests} == {1}
        assert server.requests[1].json()["temperature"] == 0.1
        assert server.requests[1].json()["model"] == "other"


def test_closing_a_copy_closes_only_the_copy(server: FakeServer) -> None:
    with make(server) as llm:
        twin = llm.with_options(temperature=0.1)
        twin.close()
        with pytest.raises(LLMClosedError):
            twin.generate("hi")
        assert llm.generate("hi").text == "ab"


def test_closing_the_original_closes_its_copies(server: FakeServer) -> None:
    llm = make(server)
    twin = llm.with_options(temperature=0.1)
    llm.close()
    with pytest.raises(LLMClosedError):
        twin.generate("hi")


def test_the_pools_outlive_a_collected_original(server: FakeServer) -> None:
    llm = make(server)
    twin = llm.with_options(temperature=0.1)
    del llm
    gc.collect()
    assert twin.generate("hi").text == "ab"
    del twin
    gc.collect()
    gone(server)


@pytest.mark.parametrize("name", ["verify", "cert", "http2", "limits", "proxy", "transport", "async_transport"])
def test_what_the_pools_are_made_from_cannot_change(name: str) -> None:
    with pytest.raises(LLMConfigurationError, match=name):
        make_unused().with_options(**{name: None})


def test_an_unknown_option_of_a_copy_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        make_unused().with_options(temprature=1)


def test_a_bad_option_of_a_copy_is_named_and_the_key_not_shown() -> None:
    llm = OpenAICompatibleLLM("m", "sk-secret", "https://x.example.com")
    with pytest.raises(LLMConfigurationError, match="temperature"):
        llm.with_options(temperature="hot")
    assert llm.with_options(api_key="sk-other")._config.api_key.reveal() == "sk-other"
    assert "sk-" not in repr(llm) + repr(llm._config) + repr(llm.with_options(api_key="sk-other")._config.arguments)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda llm: pickle.loads(pickle.dumps(llm))])
def test_copy_and_pickle_carry_the_configuration_never_a_socket(server: FakeServer, clone: Callable[..., Any]) -> None:
    with make(server, api_key="sk-1", temperature=0.3) as llm:
        llm.generate("hi")
        with clone(llm) as twin:
            assert twin.generate("hi").text == "ab"
        assert llm.generate("hi").text == "ab"
    assert len({request.connection for request in server.requests}) == 2
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sk-1"}


# --- helpers


async def read_all(stream: Any) -> list[str]:
    return [text async for text in stream]


@contextlib.contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
