from __future__ import annotations

import asyncio
import gzip
import json
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMClosedError,
    LLMConnectionError,
    LLMError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMOverloadedError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMResponseError,
    LLMResponseTooLargeError,
    LLMStreamTruncatedError,
    LLMTimeoutError,
    RetryPolicy,
)
from jazz_llm.testing import Reply, Request
from jazz_llm.testing.server import _Http2Reply

from ..colours import Async, Sync
from .conftest import Wire

Colour = Sync | Async
SOON = RetryPolicy(initial=0.01, maximum=0.01)
PHASES = 0.25  # seconds: the timeouts of these tests
SLACK = 0.75  # what a wait may take beyond that: 0.25 by FAULTS.md, and what a busy machine adds


async def begin(reply: Reply, *texts: str) -> None:
    """Start a stream and leave it open."""
    await reply.start(200, {"content-type": "text/event-stream"})
    for text in texts:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        await reply.send(b"data: " + json.dumps({"id": "x", "model": "m", "choices": [choice]}).encode() + b"\n\n")


async def answer(request: Request, reply: Reply) -> None:
    await (reply.sse(["Hel", "lo"]) if request.json().get("stream") else reply.text("Hello"))


# --- answers


def test_a_whole_answer(wire: Wire, colour: Colour, version: str) -> None:
    server = wire.server()
    response = colour.generate(wire.llm(server), "hi", temperature=0.5)
    assert (response.text, response.finish_reason) == ("Hello, world!", "stop")
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (5, 4)
    metrics = response.metrics
    assert (metrics.status_code, metrics.http_version, metrics.attempts, metrics.streamed_internally) == (200, version, 1, False)
    assert metrics.endpoint == server.url + "/v1/chat/completions"
    assert metrics.request_bytes == len(server.requests[0].body)
    assert metrics.response_bytes > 100
    assert response.latency_ms > 0
    assert server.requests[0].json() == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}


def test_a_stream(wire: Wire, colour: Colour, version: str) -> None:
    server = wire.server()
    texts, stream = colour.stream(wire.llm(server))
    assert texts == ["Hello", ", ", "world", "!"]
    response = stream.response
    assert response is not None
    assert (response.text, response.usage.total_tokens, response.metrics.http_version) == ("Hello, world!", 9, version)
    assert response.metrics.time_to_first_token_ms is not None
    assert server.requests[0].json()["stream"] is True


def test_text_that_was_held_back_for_a_tag_comes_out(wire: Wire, colour: Colour) -> None:
    async def handler(_: Request, reply: Reply) -> None:
        await begin(reply, "1 ", "<")
        await asyncio.sleep(0.02)
        await reply.send(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
        await reply.end()

    texts, stream = colour.stream(wire.llm(wire.server(handler)))
    assert stream.response is not None
    assert "".join(texts) == stream.response.text == "1 <"


def test_an_empty_piece_is_no_end(wire: Wire, colour: Colour, version: str) -> None:
    if version != "HTTP/2":
        pytest.skip("only HTTP/2 has empty pieces: over HTTP/1.1 an empty chunk is the end")

    async def handler(_: Request, reply: Reply) -> None:
        await begin(reply, "a")
        assert isinstance(reply, _Http2Reply)
        reply._protocol.send_data(reply._id, b"")
        reply._flush()
        await asyncio.sleep(0.02)
        await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
        await reply.end()

    texts, _ = colour.stream(wire.llm(wire.server(handler)))
    assert texts == ["a", "b"]


def test_a_whole_answer_is_joined_from_a_stream_where_the_provider_needs_one(wire: Wire, colour: Colour) -> None:
    """llama.cpp notices only while it streams that nobody listens any more: row 43 of FAULTS.md."""
    server = wire.server()
    response = colour.generate(wire.llm(server, provider="llamacpp"))
    assert server.requests[0].json()["stream"] is True
    assert (response.text, response.finish_reason) == ("Hello, world!", "stop")
    assert (response.usage.completion_tokens, response.usage.estimated) == (4, False)
    assert response.raw["choices"][0]["message"]["content"] == "Hello, world!"
    assert response.metrics.streamed_internally
    assert response.metrics.time_to_first_token_ms is None


def test_calls_one_after_the_other_use_one_connection(wire: Wire, colour: Colour) -> None:
    if wire.name == "stock-httpx":
        pytest.skip("stock transports drop the connection: they know no read that does not wait")
    server = wire.server()
    llm = wire.llm(server)

    def settle() -> None:
        server.wait_for(lambda s: s.live == 0)  # the end of the message is sent

    if colour.name == "sync":
        for _ in range(3):
            llm.generate("hi")
            llm.stream("hi").finish()
            settle()
    else:

        async def several() -> None:
            for _ in range(3):
                await llm.agenerate("hi")
                await llm.astream("hi").finish()
                await asyncio.to_thread(settle)

        asyncio.run(several())
    assert {request.connection for request in server.requests} == {1}


def test_the_end_of_a_message_that_comes_late_does_not_cost_the_connection(wire: Wire, colour: Colour) -> None:
    """The stream ends at ``[DONE]``; what follows is read by the next call."""
    ends: list[asyncio.Event] = []

    async def handler(_: Request, reply: Reply) -> None:
        ends.append(asyncio.Event())
        await begin(reply, "x")
        await reply.send(b"data: [DONE]\n\n")
        await asyncio.sleep(0.01)
        await reply.end()

    server = wire.server(handler)
    llm = wire.llm(server)
    if wire.name == "stock-httpx":
        pytest.skip("stock transports drop the connection: they know no read that does not wait")

    def settle() -> None:
        server.wait_for(lambda s: s.live == 0)

    if colour.name == "sync":
        for _ in range(2):
            llm.stream("hi").finish()
            settle()
    else:

        async def twice() -> None:
            for _ in range(2):
                await llm.astream("hi").finish()
                await asyncio.to_thread(settle)

        asyncio.run(twice())
    assert {request.connection for request in server.requests} == {1}


def test_a_large_request_goes_through(wire: Wire, colour: Colour) -> None:
    text = "x" * 300_000
    server = wire.server()
    assert colour.generate(wire.llm(server), text).text == "Hello, world!"
    assert server.requests[0].json()["messages"][0]["content"] == text


def test_many_at_once(wire: Wire, colour: Colour) -> None:
    server = wire.server()
    llm = wire.llm(server)
    if colour.name == "sync":
        with ThreadPoolExecutor(8) as threads:
            texts = list(threads.map(lambda _: llm.generate("hi").text, range(40)))
    else:

        async def at_once() -> list[str]:
            return [r.text for r in await asyncio.gather(*(llm.agenerate("hi") for _ in range(40)))]

        texts = asyncio.run(at_once())
    assert texts == ["Hello, world!"] * 40


# --- errors and retries


@pytest.mark.parametrize(
    ("code", "cls"), [(400, LLMInvalidRequestError), (401, LLMAuthenticationError), (500, LLMInternalError), (503, LLMOverloadedError), (429, LLMRateLimitError)]
)
def test_statuses_are_typed(wire: Wire, colour: Colour, code: int, cls: type[LLMError]) -> None:
    server = wire.server()
    llm = wire.llm(server, max_retries=0)
    for call in (colour.generate, colour.stream):
        server.fail(code, headers={"x-request-id": "r1"})
        with pytest.raises(cls) as caught:
            call(llm)
        assert type(caught.value) is cls
        assert (caught.value.status_code, caught.value.request_id, caught.value.attempts) == (code, "r1", 1)
        assert caught.value.__cause__ is None
    assert len(server.requests) == 2


def test_passing_failures_are_retried(wire: Wire, colour: Colour) -> None:
    server = wire.server()
    llm = wire.llm(server, retry=SOON)
    server.fail(503)
    server.fail(429, headers={"retry-after-ms": "10"})
    assert colour.generate(llm).metrics.attempts == 3
    server.fail(503)
    server.fail(500)
    server.reply(["Hel", "lo"])
    texts, stream = colour.stream(llm)
    assert texts == ["Hel", "lo"]
    assert stream.response is not None
    assert stream.response.metrics.attempts == 3


def test_the_last_error_says_how_often_it_was_tried(wire: Wire, colour: Colour) -> None:
    server = wire.server()
    for _ in range(4):
        server.fail(503)
    with pytest.raises(LLMOverloadedError) as caught:
        colour.generate(wire.llm(server, retry=SOON, max_retries=2))
    assert (caught.value.attempts, len(server.requests)) == (3, 3)


def test_a_stream_is_retried_before_its_first_content_only(wire: Wire, colour: Colour) -> None:
    async def early(request: Request, reply: Reply) -> None:
        if len(server.requests) > 1:
            return await answer(request, reply)
        await begin(reply)
        await reply.send(b': ping\n\ndata: {"error": {"message": "busy", "code": 503}}\n\n')
        await reply.end()

    server = wire.server(early)
    assert colour.stream(wire.llm(server, retry=SOON))[0] == ["Hel", "lo"]
    server = wire.server()
    server.fail(503, after="Hel")
    with pytest.raises(LLMOverloadedError) as caught:
        colour.stream(wire.llm(server, retry=SOON))
    assert caught.value.partial is not None
    assert (caught.value.seen, caught.value.partial.text, len(server.requests)) == (["Hel"], "Hel", 1)


def test_a_connection_lost_before_the_answer(wire: Wire, colour: Colour) -> None:
    server = wire.server()
    server.break_off("reset")
    assert colour.generate(wire.llm(server, retry=SOON)).metrics.attempts == 2
    careful = wire.llm(server, retry=RetryPolicy(ambiguous=False))
    server.break_off("reset")
    with pytest.raises(LLMConnectionError) as caught:
        colour.generate(careful)
    assert type(caught.value) is LLMConnectionError
    assert (caught.value.maybe_processed, caught.value.attempts) == (True, 1)


@pytest.mark.parametrize("fault", ["close", "reset", "cut"])
def test_a_stream_that_is_cut_is_never_a_whole_answer(wire: Wire, colour: Colour, fault: Any) -> None:
    server = wire.server()
    server.break_off(fault, after="Hel")
    with pytest.raises(LLMStreamTruncatedError) as caught:
        colour.stream(wire.llm(server, retry=SOON))
    assert caught.value.partial is not None
    assert (caught.value.seen, caught.value.partial.text, len(server.requests)) == (["Hel"], "Hel", 1)


def test_a_whole_answer_that_is_cut_is_an_error(wire: Wire, colour: Colour) -> None:
    async def cut(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "application/json", "content-length": "1000"})
        await reply.send(b'{"choices": [')
        await asyncio.sleep(0.05)
        reply.close()

    server = wire.server(cut)
    with pytest.raises(LLMStreamTruncatedError):
        colour.generate(wire.llm(server, retry=SOON))
    assert len(server.requests) == 1


def test_a_finish_reason_is_a_good_end_even_if_the_rest_never_comes(wire: Wire, colour: Colour) -> None:
    async def no_done(_: Request, reply: Reply) -> None:
        await begin(reply, "Hello")
        await reply.send(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
        await reply.cancelled()

    if (wire.name, colour.name) == ("stock-httpx", "sync"):
        pytest.skip("a user's own sync transport knows no deadline but the one it began with")
    started = time.monotonic()
    texts, stream = colour.stream(wire.llm(wire.server(no_done)))
    assert texts == ["Hello"]
    assert stream.response is not None
    assert stream.response.usage.estimated
    assert 0.9 < time.monotonic() - started < 1 + SLACK


def test_comments_after_the_finish_do_not_draw_it_out(wire: Wire, colour: Colour) -> None:
    async def pinging(_: Request, reply: Reply) -> None:
        await begin(reply, "Hello")
        await reply.send(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
        while True:
            await asyncio.sleep(0.05)
            await reply.send(b": ping\n\n")

    started = time.monotonic()
    texts, _ = colour.stream(wire.llm(wire.server(pinging)))
    assert texts == ["Hello"]
    assert time.monotonic() - started < 1 + SLACK


def test_a_redirect_is_never_followed(wire: Wire, colour: Colour) -> None:
    server = wire.server()
    server.fail(307, headers={"location": "/elsewhere"}, body="")
    with pytest.raises(LLMResponseError):
        colour.generate(wire.llm(server))
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["204", "text"])
def test_what_is_no_answer_at_all(wire: Wire, colour: Colour, kind: str) -> None:
    async def handler(_: Request, reply: Reply) -> None:
        if kind == "204":
            await reply.start(204)
        else:
            await reply.start(200, {"content-type": "text/plain"})
            await reply.send(b"Hello there")
        await reply.end()

    llm = wire.llm(wire.server(handler), max_retries=0)
    for call in (colour.generate, colour.stream):
        with pytest.raises(LLMResponseError):
            call(llm)


def test_a_compressed_error_is_read(wire: Wire, colour: Colour) -> None:
    async def handler(_: Request, reply: Reply) -> None:
        body = gzip.compress(b'{"error": {"message": "no money", "code": "insufficient_quota"}}')
        await reply.start(429, {"content-encoding": "gzip", "content-length": str(len(body))})
        await reply.send(body)
        await reply.end()

    with pytest.raises(LLMQuotaExceededError, match="no money"):
        colour.generate(wire.llm(wire.server(handler)))


def test_who_waits_for_a_connection_gets_the_one_of_a_finished_stream(wire: Wire, colour: Colour) -> None:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    if wire.name == "stock-httpx":
        pytest.skip("the limits of a user's transport are its own")

    async def slow(_: Request, reply: Reply) -> None:
        await reply.sse(["a", "b"], delay=0.05)

    llm = wire.llm(wire.server(slow), limits=limits, timeout=5)
    if colour.name == "sync":
        with ThreadPoolExecutor(3) as threads:
            texts = list(threads.map(lambda _: "".join(llm.stream("hi")), range(3)))
    else:

        async def at_once() -> list[str]:
            return [r.text for r in await asyncio.gather(*(llm.astream("hi").finish() for _ in range(3)))]

        texts = asyncio.run(at_once())
    assert texts == ["ab"] * 3


def test_an_answer_that_is_too_large_is_given_up(wire: Wire, colour: Colour) -> None:
    async def endless(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream"})
        while True:
            await reply.send(b"x" * 10_000)

    llm = wire.llm(wire.server(endless), max_event_bytes=100_000, max_response_bytes=1_000_000)
    with pytest.raises(LLMResponseTooLargeError):
        colour.stream(llm)


# --- time


@pytest.mark.parametrize(
    ("phase", "arguments"),
    [("read", {"timeout": PHASES}), ("first_token", {"first_token_timeout": PHASES}), ("deadline", {"deadline": PHASES})],
)
def test_a_server_that_says_nothing(wire: Wire, colour: Colour, phase: str, arguments: dict[str, Any]) -> None:
    server = wire.server()
    llm = wire.llm(server, **arguments)
    for call in (colour.stream, colour.generate)[: 1 if phase == "first_token" else 2]:
        server.break_off("stall")
        started = time.monotonic()
        with pytest.raises(LLMTimeoutError) as caught:
            call(llm)
        assert (caught.value.phase, caught.value.attempts, caught.value.retryable) == (phase, 1, False)
        assert PHASES * 0.9 < time.monotonic() - started < PHASES + SLACK
    if wire.name != "prior-knowledge" and "http2" not in wire.name:
        server.wait_for(lambda s: s.live == 0)


def test_keep_alive_comments_are_no_content(wire: Wire, colour: Colour) -> None:
    async def pinging(_: Request, reply: Reply) -> None:
        await begin(reply, "Hel")
        while True:
            await reply.send(b": ping\n\n")
            await asyncio.sleep(0.02)

    started = time.monotonic()
    with pytest.raises(LLMTimeoutError) as caught:
        colour.stream(wire.llm(wire.server(pinging), timeout=PHASES))
    assert caught.value.partial is not None
    assert (caught.value.phase, caught.value.seen, caught.value.partial.text) == ("between_tokens", ["Hel"], "Hel")
    assert time.monotonic() - started < PHASES + SLACK


def test_a_whole_answer_in_drops_is_bound_as_a_whole(wire: Wire, colour: Colour) -> None:
    async def dripping(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "application/json"})
        while True:
            await reply.send(b" ")
            await asyncio.sleep(0.02)

    with pytest.raises(LLMTimeoutError) as caught:
        colour.generate(wire.llm(wire.server(dripping), timeout=PHASES))
    assert caught.value.phase == "read"


def test_the_callers_own_time_does_not_count(wire: Wire, colour: Colour) -> None:
    go_on = asyncio.Event()

    async def handler(_: Request, reply: Reply) -> None:
        await begin(reply, "a")
        await go_on.wait()
        await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
        await reply.end()

    server = wire.server(handler)
    llm = wire.llm(server, timeout=PHASES)

    def release() -> None:
        server._loop.call_soon_threadsafe(go_on.set)

    texts: list[str] = []
    if colour.name == "sync":
        for text in llm.stream("hi"):
            texts.append(text)
            time.sleep(1.2 * PHASES if len(texts) == 1 else 0)
            release()
    else:

        async def slow() -> None:
            async for text in llm.astream("hi"):
                texts.append(text)
                await asyncio.sleep(1.2 * PHASES if len(texts) == 1 else 0)
                release()

        asyncio.run(slow())
    assert texts == ["a", "b"]


def test_a_wait_between_tries_ends_with_the_deadline(wire: Wire, colour: Colour) -> None:
    server = wire.server()
    server.fail(503, retry_after=30)
    started = time.monotonic()
    with pytest.raises(LLMOverloadedError):
        colour.generate(wire.llm(server, deadline=0.5))
    assert time.monotonic() - started < 0.4
    assert len(server.requests) == 1


# --- leaving and closing


def test_leaving_early_ends_the_request_at_the_server(wire: Wire, colour: Colour) -> None:
    async def long(_: Request, reply: Reply) -> None:
        await begin(reply, "a", "b")
        await reply.cancelled()

    if (wire.name, colour.name) == ("stock-httpx", "async"):
        pytest.skip("asyncio.run ends before a stock transport has closed its connection, which takes it several awaits")
    server = wire.server(long)
    stream = colour.leave_early(wire.llm(server))
    server.wait_for(lambda s: s.live == 0, 1.0)
    assert stream.response is None
    with pytest.raises(LLMClosedError):
        stream.finish() if colour.name == "sync" else asyncio.run(stream.finish())


@pytest.mark.parametrize("which", ["stream", "llm"])
@pytest.mark.parametrize("blocked", ["before the answer", "in the answer"])
def test_closing_from_elsewhere_ends_a_blocked_reader(wire: Wire, colour: Colour, which: str, blocked: str) -> None:
    if wire.name == "stock-httpx" and colour.name == "sync":
        pytest.skip("a user's own sync transport holds the socket: nobody else can end its wait")

    async def waiting(_: Request, reply: Reply) -> None:
        if blocked == "in the answer":
            await begin(reply, "a")
        await reply.cancelled()

    server = wire.server(waiting)
    llm = wire.llm(server)
    met = colour.close_while_reading(llm, lambda: server.wait_for(lambda s: s.live == 1), which)
    texts = [thing for thing in met if isinstance(thing, str)]
    errors = [thing for thing in met if not isinstance(thing, str)]
    assert texts in ([], ["a"])
    assert [type(error) for error in errors] == ([] if which == "stream" else [LLMClosedError])


def test_a_stream_is_read_once(wire: Wire, colour: Colour) -> None:
    _, stream = colour.stream(wire.llm(wire.server()))
    with pytest.raises(RuntimeError, match="once"):
        iter(stream) if colour.name == "sync" else aiter(stream)


# --- the key


def test_the_key_is_nowhere_in_what_comes_back(wire: Wire, colour: Colour, caplog: pytest.LogCaptureFixture) -> None:
    key = "sk-very-secret-0123456789"
    caplog.set_level(0)
    server = wire.server()
    server.fail(401, code=f"wrong {key}")
    server.break_off("reset")
    server.fail(500)
    server.break_off("stall")
    llm = wire.llm(server, api_key=key, max_retries=0, timeout=0.2)
    assert key not in repr(llm) + repr(vars(llm)["_config"])
    for _ in range(4):
        try:
            colour.stream(llm)
        except LLMError as error:
            assert key not in frames_of_ours(error)
            assert key not in repr(error) + str(error) + repr(vars(error)) + repr(error.args)
            assert error.__cause__ is None
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {key}"] * 4
    assert key not in caplog.text


def frames_of_ours(error: Exception) -> str:
    """Return the traceback with its locals, less the tests' own frames, which hold the key."""
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    frames = [frame for frame in shown.split('\n  File "') if "/tests/" not in frame.split('"')[0]]
    assert any("/jazz_llm/transport/" in frame for frame in frames) or "HTTP" in shown
    return "\n".join(frames[1:])


def test_a_key_function_is_asked_for_each_attempt(wire: Wire, colour: Colour) -> None:
    keys = iter(["one", "two"])
    server = wire.server()
    server.fail(503)
    colour.generate(wire.llm(server, api_key=lambda: next(keys), retry=SOON))
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer one", "Bearer two"]


def test_headers_and_query_arrive(wire: Wire, colour: Colour) -> None:
    server = wire.server()
    llm = wire.llm(server, default_headers={"X-Org": "o"}, default_query={"api-version": "1"})
    colour.generate(llm, extra_headers={"x-call": "c"})
    request = server.requests[0]
    assert (request.headers["x-org"], request.headers["x-call"], request.query) == ("o", "c", "api-version=1")
    assert request.headers["accept-encoding"] == "identity"
    assert "cookie" not in request.headers
