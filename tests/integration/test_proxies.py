"""Stop means stop, through real servers of HTTP/2: each test runs for every proxy that the machine has, and without one.

FAULTS.md, rows 7, 12 to 14, 16, 29, 30, 38 and 43, at the place where they count: the model server's own slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from jazz_llm import (
    AsyncTextStream,
    LLMClosedError,
    LLMConnectionError,
    LLMInternalError,
    LLMOverloadedError,
    LLMResponse,
    LLMStreamTruncatedError,
    LLMTimeoutError,
    OpenAICompatibleLLM,
    RetryPolicy,
    TextStream,
)
from jazz_llm.testing import Authority

from ..colours import Async, Sync
from .proxies import INSTALL, PROXIES, Front, Model, direct, serve_front, serve_llamacpp, serve_proxy

Colour = Sync | Async
Record = Callable[[tuple[str, object]], None]

CONTEXT = 65_536  # tokens
LONG = 20_000  # tokens: 25 s here, and seconds on the fastest machine
SOON = 1.0  # seconds in which a slot must be free: some milliseconds are measured, the rest is for a busy machine
LEAVES = 5  # per test, for a median


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with serve_llamacpp(tmp_path_factory.mktemp("model"), CONTEXT) as model:
        yield model


@pytest.fixture(scope="module", params=INSTALL)
def shared(request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    def model() -> AbstractContextManager[Model]:
        return contextlib.nullcontext(request.getfixturevalue("llamacpp"))

    with serve_front(request.param, model, authority, tmp_path_factory.mktemp(request.param)) as front:
        yield front


@pytest.fixture
def front(shared: Front) -> Iterator[Front]:
    """Hand out the front with all slots idle, and show what it logs meanwhile."""
    assert shared.model.wait(busy=0, patience=40) < 60, "the slots are still busy from the test before"
    with showing_log(shared):
        yield shared


def showing_log(front: Front) -> AbstractContextManager[None]:
    return front.process.showing_log() if front.process else contextlib.nullcontext()


@pytest.fixture
def nginx(llamacpp: Model, authority: Authority, tmp_path: Path) -> Iterator[Callable[[str], Front]]:
    """Start an nginx of the test's own with more directives."""
    with contextlib.ExitStack() as stack:

        def start(extra: str) -> Front:
            front = stack.enter_context(serve_proxy("nginx", llamacpp, authority, tmp_path, extra))
            stack.enter_context(showing_log(front))
            return front

        yield start


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Take a note for the report, as ``record_property`` does, which warns under ``--junitxml``."""
    return request.node.user_properties.append


@pytest.fixture
def llm(front: Front, authority: Authority) -> Iterator[OpenAICompatibleLLM]:
    with client(front, authority) as llm:
        yield llm


def client(front: Front, authority: Authority, **arguments: Any) -> OpenAICompatibleLLM:
    usual = {"provider": front.model.provider, "max_tokens": LONG, "retry": RetryPolicy(initial=0.01)}
    return OpenAICompatibleLLM("tiny", base_url=front.url, verify=authority.path, **{**usual, **arguments})


def complete(response: LLMResponse[Any] | None, tokens: int) -> LLMResponse[Any]:
    """Check that an answer is whole, at the first try, and counted by the server."""
    assert response is not None
    assert response.text
    assert response.finish_reason == "length"
    assert response.usage.completion_tokens == tokens
    assert not response.usage.estimated
    assert response.metrics.attempts == 1
    return response


# --- Whole answers


def test_answers_are_whole_over_http2(colour: Colour, front: Front, llm: OpenAICompatibleLLM) -> None:
    whole = complete(colour.generate(llm, max_tokens=50), 50)
    # llama.cpp hangs up after each answer, on a busy machine a little later: a proxy must not meet it while it does.
    front.model.wait(busy=0)
    texts, stream = colour.stream(llm, max_tokens=200)
    streamed = complete(stream.response, 200)
    assert "".join(texts) == streamed.text
    assert {whole.metrics.http_version, streamed.metrics.http_version} == {front.http_version}


# --- Stop means stop (rows 29 and 30)


@pytest.mark.parametrize("leave", ["break", "exception", "close", "close from another thread"])
def test_leaving_a_sync_stream_frees_the_slot(front: Front, llm: OpenAICompatibleLLM, leave: str, record: Record) -> None:
    def read(stream: TextStream[Any]) -> float:
        """Leave at the first text, or read on; return when that was."""
        left = 0.0
        with contextlib.suppress(ZeroDivisionError):
            for _ in stream:
                left = left or time.monotonic()
                if leave == "break":
                    break
                if leave == "exception":
                    raise ZeroDivisionError
                if leave == "close":
                    stream.close()
        return left

    def once() -> float:
        stream = llm.stream("hi")
        if leave != "close from another thread":
            return front.model.wait(busy=0, since=read(stream))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(read, stream)
            front.model.wait(busy=1)
            left = time.monotonic()
            stream.close()
            return front.model.wait(busy=0, since=left)

    check([once() for _ in range(LEAVES)], record)
    complete(llm.generate("hi", max_tokens=5), 5)


@pytest.mark.parametrize("leave", ["break", "exception", "aclose", "aclose from another task", "cancel"])
def test_leaving_an_async_stream_frees_the_slot(front: Front, llm: OpenAICompatibleLLM, leave: str, record: Record) -> None:
    async def read(stream: AsyncTextStream[Any]) -> float:
        """Leave at the first text, or read on; return when that was."""
        left = 0.0
        with contextlib.suppress(ZeroDivisionError):
            async for _ in stream:
                left = left or time.monotonic()
                if leave == "break":
                    break
                if leave == "exception":
                    raise ZeroDivisionError
                if leave == "aclose":
                    await stream.aclose()
        return left

    async def once() -> float:
        stream = llm.astream("hi")
        reader = asyncio.create_task(read(stream))
        if leave not in ("aclose from another task", "cancel"):
            return await asyncio.to_thread(front.model.wait, busy=0, since=await reader)
        await asyncio.to_thread(front.model.wait, busy=1)
        left = time.monotonic()
        if leave == "cancel":
            reader.cancel()
        else:
            await stream.aclose()
        delay = await asyncio.to_thread(front.model.wait, busy=0, since=left)
        await asyncio.wait([reader])
        return delay

    async def main() -> None:
        check([await once() for _ in range(LEAVES)], record)
        complete(await llm.agenerate("hi", max_tokens=5), 5)

    asyncio.run(main())


def check(delays: list[float], record: Record) -> None:
    """Note how long the slot took to become idle; the issue's bound is 0.1 s on a machine with nothing else to do."""
    summary = f"slot idle after {median(delays) * 1000:.1f} ms (median), {max(delays) * 1000:.1f} ms (worst)"
    record(("stop", summary))
    print(summary)  # noqa: T201 - shown by -rP and where the test fails
    assert max(delays) <= SOON


def test_streams_beside_those_that_were_left_are_whole(front: Front, llm: OpenAICompatibleLLM) -> None:
    async def main() -> None:
        siblings = [asyncio.create_task(llm.astream("hi", max_tokens=300).finish()) for _ in range(2)]
        for leave in range(12):
            stream = llm.astream("hi")
            reader = asyncio.create_task(stream.finish())
            await asyncio.sleep(leave * 0.003)
            reader.cancel()
        for sibling in siblings:
            complete(await sibling, 300)
        assert await asyncio.to_thread(front.model.wait, busy=0) <= SOON

    asyncio.run(main())


# --- A whole answer, given up (row 43)


def test_a_whole_answer_is_streamed_inside_where_the_server_asks_for_it(
    colour: Colour, front: Front, llm: OpenAICompatibleLLM
) -> None:
    response = complete(colour.generate(llm, max_tokens=5), 5)
    assert response.metrics.streamed_internally is (front.model.provider == "llamacpp")
    assert response.raw["choices"][0]["message"]["content"] == response.text


@pytest.mark.parametrize("how", ["timeout", "close from another thread"])
def test_giving_up_a_sync_call_frees_the_slot(front: Front, llm: OpenAICompatibleLLM, how: str, record: Record) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(llm.generate, "hi", timeout=0.5 if how == "timeout" else 60)
        front.model.wait(busy=1)
        if how == "timeout":
            call.exception()
        left = time.monotonic()
        if how != "timeout":
            llm.close()
        delay = front.model.wait(busy=0, since=left)
        assert isinstance(call.exception(), LLMTimeoutError if how == "timeout" else LLMClosedError)
    check([delay], record)


@pytest.mark.parametrize("how", ["cancel", "timeout", "close from another thread"])
def test_giving_up_an_async_call_frees_the_slot(front: Front, llm: OpenAICompatibleLLM, how: str, record: Record) -> None:
    async def main() -> None:
        call = asyncio.create_task(llm.agenerate("hi", timeout=0.5 if how == "timeout" else 60))
        await asyncio.to_thread(front.model.wait, busy=1)
        if how == "timeout":
            await asyncio.wait([call])
        left = time.monotonic()
        if how == "cancel":
            call.cancel()
        elif how == "close from another thread":
            await asyncio.to_thread(llm.close)
        delay = await asyncio.to_thread(front.model.wait, busy=0, since=left)
        expected = {"cancel": asyncio.CancelledError, "timeout": LLMTimeoutError}.get(how, LLMClosedError)
        with pytest.raises(expected):
            await call
        check([delay], record)

    asyncio.run(main())


# --- What goes wrong behind a proxy, and in it


@pytest.mark.parametrize("name", INSTALL)
def test_a_model_that_dies(colour: Colour, name: str, authority: Authority, tmp_path: Path) -> None:
    """Mid-stream: truncated (row 16). From then on: the proxy's 502 or 503, or no connection; tried again (rows 1, 38)."""
    with contextlib.ExitStack() as stack:
        dying = stack.enter_context(contextlib.ExitStack())

        def model() -> AbstractContextManager[Model]:
            return contextlib.nullcontext(dying.enter_context(serve_llamacpp(tmp_path, CONTEXT)))

        front = stack.enter_context(serve_front(name, model, authority, tmp_path))
        stack.enter_context(showing_log(front))
        llm = stack.enter_context(client(front, authority))
        if name == "hypercorn":
            dying.callback(front.process.kill)  # type: ignore[union-attr]
        with pytest.raises(LLMStreamTruncatedError) as truncated:
            read_past_the_end_of(dying.close, llm, colour)
        assert truncated.value.partial is not None
        assert truncated.value.partial.text
        assert truncated.value.attempts == 1

        down = (LLMInternalError, LLMOverloadedError) if name in PROXIES else (LLMConnectionError,)
        with pytest.raises(down) as caught:
            colour.generate(llm)
        assert type(caught.value) in down
        assert getattr(caught.value, "status_code", 503) in (502, 503)
        assert caught.value.attempts == 3


def read_past_the_end_of(model: Callable[[], None], llm: OpenAICompatibleLLM, colour: Colour) -> None:
    """Read a stream whose model dies after the first text."""

    async def main() -> None:
        async for _ in llm.astream("hi"):
            model()

    if isinstance(colour, Async):
        return asyncio.run(main())
    for _ in llm.stream("hi"):
        model()


def call_at_once(llm: OpenAICompatibleLLM, colour: Colour, count: int, tokens: int = 2) -> list[LLMResponse[Any]]:
    """Call so often at once; sync calls from 50 threads."""
    if isinstance(colour, Sync):
        with ThreadPoolExecutor(50) as pool:
            return list(pool.map(lambda _: llm.generate("hi", max_tokens=tokens), range(count)))

    async def main() -> list[LLMResponse[Any]]:
        return await asyncio.gather(*(llm.agenerate("hi", max_tokens=tokens) for _ in range(count)))

    return asyncio.run(main())


def test_many_calls_at_once(colour: Colour, front: Front, authority: Authority) -> None:
    # Not streamed inside, over which nghttpx stumbles. More at once than llama.cpp has threads wait for idle ones, 5 s.
    count = 100 if front.http_version == "HTTP/2" else 4
    with client(front, authority, provider=None) as llm:
        for response in call_at_once(llm, colour, count):
            complete(response, 2)


def test_four_readers_of_stream_after_stream(colour: Colour, llamacpp: Model, authority: Authority) -> None:
    """Row 9: llama.cpp announces keep-alive, and closes the connection some 40 us after each stream."""

    def read(llm: OpenAICompatibleLLM) -> list[LLMResponse[Any]]:
        return [llm.stream("hi", max_tokens=2).finish() for _ in range(25)]

    async def aread(llm: OpenAICompatibleLLM) -> list[LLMResponse[Any]]:
        return [await llm.astream("hi", max_tokens=2).finish() for _ in range(25)]

    async def main(llm: OpenAICompatibleLLM) -> list[list[LLMResponse[Any]]]:
        return await asyncio.gather(*(aread(llm) for _ in range(4)))

    with client(direct(llamacpp), authority) as llm, ThreadPoolExecutor(4) as pool:
        answers = asyncio.run(main(llm)) if isinstance(colour, Async) else list(pool.map(read, [llm] * 4))
    attempts = sum(response.metrics.attempts for responses in answers for response in responses)
    assert attempts <= 100 + 4  # each reader may find it out once


def test_300_calls_at_once_on_connections_of_32_streams(
    colour: Colour, nginx: Callable[[str], Front], authority: Authority
) -> None:
    """Row 7."""
    with client(nginx("http2_max_concurrent_streams 32;"), authority) as llm:
        for response in call_at_once(llm, colour, 300):
            complete(response, 2)


def test_a_connection_that_takes_20_requests_and_says_goaway(
    colour: Colour, nginx: Callable[[str], Front], authority: Authority
) -> None:
    """Rows 12 and 13: nothing is seen of it, and no retry counted. (Of 5 a connection, 3 resends serve 20 of 50 calls.)"""
    with client(nginx("keepalive_requests 20;"), authority, max_retries=0) as llm:
        for response in one_after_the_other(llm, colour, 50) + call_at_once(llm, colour, 50):
            complete(response, 2)


def one_after_the_other(llm: OpenAICompatibleLLM, colour: Colour, count: int) -> list[LLMResponse[Any]]:
    async def main() -> list[LLMResponse[Any]]:
        return [await llm.agenerate("hi", max_tokens=2) for _ in range(count)]

    if isinstance(colour, Async):
        return asyncio.run(main())
    return [llm.generate("hi", max_tokens=2) for _ in range(count)]


def test_a_reload_under_a_stream(colour: Colour, nginx: Callable[[str], Front], authority: Authority) -> None:
    """Row 13: nginx says GOAWAY and lets the stream end; calls go to the new worker on a new connection."""
    front = nginx("")
    assert front.process is not None

    def reload() -> None:
        front.process.signal(signal.SIGHUP, answer="gracefully shutting down")  # type: ignore[union-attr]

    async def main(llm: OpenAICompatibleLLM) -> None:
        async with llm.astream("hi", max_tokens=1500) as stream:
            texts = aiter(stream)
            await anext(texts)
            await asyncio.to_thread(reload)
            complete(await llm.agenerate("hi", max_tokens=5), 5)
            async for _ in texts:
                pass
            complete(stream.response, 1500)
        complete(await llm.agenerate("hi", max_tokens=5), 5)

    with client(front, authority, max_retries=0) as llm:
        if isinstance(colour, Async):
            return asyncio.run(main(llm))
        with llm.stream("hi", max_tokens=1500) as stream:
            texts = iter(stream)
            next(texts)
            reload()
            complete(llm.generate("hi", max_tokens=5), 5)
            for _ in texts:
                pass
            complete(stream.response, 1500)
        complete(llm.generate("hi", max_tokens=5), 5)
