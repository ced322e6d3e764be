"""Scripted answers by pytest-httpserver: an HTTP server that is not of our own making."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from jazz_llm import (
    LLMClosedError,
    LLMInvalidRequestError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMTimeoutError,
    OpenAICompatibleLLM,
    RetryPolicy,
)

from .colours import Async, Sync

Colour = Sync | Async
CHAT = "/v1/chat/completions"


def completion(text: str = "Hello", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c1", "object": "chat.completion", "model": "served", "choices": [choice], **more}


def events(*texts: str) -> str:
    chunks = [{"id": "c1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
    chunks.append({"id": "c1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def client(httpserver: HTTPServer, **arguments: Any) -> OpenAICompatibleLLM:
    return OpenAICompatibleLLM("m", "sk-1", httpserver.url_for("/"), **{"retry": RetryPolicy(initial=0.01), **arguments})


def test_the_request_is_what_openai_defines(httpserver: HTTPServer, colour: Colour) -> None:
    httpserver.expect_request(
        CHAT,
        method="POST",
        headers={"Authorization": "Bearer sk-1", "Content-Type": "application/json"},
        json={"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5},
    ).respond_with_json(completion(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}), headers={"x-request-id": "r1"})
    with client(httpserver) as llm:
        response = colour.generate(llm, "hi", temperature=0.5)
    assert (response.text, response.model, response.id, response.request_id) == ("Hello", "served", "c1", "r1")
    assert response.usage.total_tokens == 3


def test_a_stream(httpserver: HTTPServer, colour: Colour) -> None:
    httpserver.expect_request(CHAT).respond_with_data(events("Hel", "lo"), content_type="text/event-stream")
    with client(httpserver) as llm:
        texts, stream = colour.stream(llm)
    assert texts == ["Hel", "lo"]
    assert stream.response is not None
    assert stream.response.usage.estimated


def test_a_429_with_retry_after_is_waited_for(httpserver: HTTPServer, colour: Colour) -> None:
    busy = Response(json.dumps({"error": {"message": "slow down", "type": "rate_limit_error"}}), 429, {"retry-after": "0.05"})
    httpserver.expect_ordered_request(CHAT).respond_with_response(busy)
    httpserver.expect_ordered_request(CHAT).respond_with_json(completion())
    with client(httpserver) as llm:
        assert colour.generate(llm).metrics.attempts == 2


def test_a_wait_between_tries_may_be_longer_than_a_read(httpserver: HTTPServer, colour: Colour) -> None:
    busy = Response("{}", 503, {"retry-after": "0.5"})
    httpserver.expect_ordered_request(CHAT).respond_with_response(busy)
    httpserver.expect_ordered_request(CHAT).respond_with_json(completion())
    with client(httpserver, timeout=0.3) as llm:
        assert colour.generate(llm).metrics.attempts == 2


def test_a_slow_key_function_is_bound_by_the_deadline_and_ends_with_the_client() -> None:
    async def key() -> str:
        await asyncio.sleep(30)
        return "sk-1"

    async def main() -> None:
        llm = OpenAICompatibleLLM("m", key, "http://localhost:9", deadline=0.2, timeout=0.1)
        with pytest.raises(LLMTimeoutError) as caught:
            await llm.agenerate("hi")
        assert caught.value.phase == "deadline"
        call = asyncio.create_task(llm.with_options(deadline=None).agenerate("hi"))
        await asyncio.sleep(0)
        await llm.aclose()
        with pytest.raises(LLMClosedError):
            await asyncio.wait_for(call, 5)

    asyncio.run(main())


def test_a_key_that_is_cut_off_is_still_taken_out(httpserver: HTTPServer, colour: Colour) -> None:
    secret = "sk-" + "s" * 50
    httpserver.expect_request(CHAT).respond_with_data("x" * 480 + secret, status=400)
    with OpenAICompatibleLLM("m", secret, httpserver.url_for("/")) as llm, pytest.raises(LLMInvalidRequestError) as caught:
        colour.generate(llm)
    assert "sss" not in repr(vars(caught.value)) + str(caught.value)


def test_a_429_that_asks_for_too_long_is_raised_at_once(httpserver: HTTPServer, colour: Colour) -> None:
    busy = Response("{}", 429, {"retry-after": "3600", "x-ratelimit-remaining-requests": "0"})
    httpserver.expect_request(CHAT).respond_with_response(busy)
    with client(httpserver) as llm, pytest.raises(LLMRateLimitError) as caught:
        colour.generate(llm)
    assert (caught.value.retry_after, caught.value.attempts) == (3600.0, 1)
    assert caught.value.headers["x-ratelimit-remaining-requests"] == "0"


def test_an_empty_account_is_not_retried(httpserver: HTTPServer, colour: Colour) -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    httpserver.expect_request(CHAT).respond_with_json(body, status=429)
    with client(httpserver) as llm, pytest.raises(LLMQuotaExceededError) as caught:
        colour.generate(llm)
    assert caught.value.attempts == 1
    assert len(httpserver.log) == 1


def test_rate_limits_and_usage_of_a_provider(httpserver: HTTPServer, colour: Colour) -> None:
    usage = {"prompt_tokens": 307, "completion_tokens": 26, "total_tokens": 560, "completion_tokens_details": {"reasoning_tokens": 227}}
    httpserver.expect_request(CHAT).respond_with_json(completion(usage=usage), headers={"x-ratelimit-remaining-tokens": "9"})
    with client(httpserver, provider="xai") as llm:
        response = colour.generate(llm)
    assert (response.usage.completion_tokens, response.usage.reasoning_tokens) == (253, 227)
    assert response.rate_limits is not None
    assert response.rate_limits.remaining_tokens == 9


def test_a_mock_transport_of_httpx_works(colour: Colour) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=completion("mocked")))
    llm = OpenAICompatibleLLM("m", base_url="http://localhost", transport=transport, async_transport=transport)
    assert colour.generate(llm).text == "mocked"


def test_calls_through_a_users_own_transport_run_at_once() -> None:
    together = asyncio.Barrier(5)

    class Meeting(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.wait_for(together.wait(), 5)
            return httpx.Response(200, json=completion())

    async def main() -> None:
        async with OpenAICompatibleLLM("m", base_url="http://localhost", async_transport=Meeting()) as llm:
            await asyncio.gather(*(llm.agenerate("hi") for _ in range(5)))

    asyncio.run(main())


def test_an_error_of_the_users_own_transport_comes_through(colour: Colour) -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    transport = httpx.MockTransport(broken)
    llm = OpenAICompatibleLLM("m", base_url="http://localhost", transport=transport, async_transport=transport)
    with pytest.raises(ZeroDivisionError):
        colour.generate(llm)
    assert not llm._shared._calls
