"""What every real model server must do for us: llama.cpp, LiteLLM's proxy before it, and vLLM.

What only one of them does is in ``test_llamacpp.py``, ``test_litellm.py`` and ``test_vllm.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jazz_llm import LLMClosedError, LLMContextLengthError, LLMResponseError

from ..colours import Async, Sync
from .servers import Server

Colour = Sync | Async

SOON = 2.0  # seconds in which the model must be idle: some 20 ms are measured, the rest is for a busy machine
NEVER = float("inf")


@pytest.fixture(scope="package", params=["llamacpp_server", "litellm_server", "vllm_server"])
def shared(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """Hand out the server with nothing to do, and show what it logs meanwhile."""
    assert shared.model.wait(busy=0, patience=40) < 60, "it is still busy from the test before"
    with shared.process.showing_log() if shared.process else contextlib.nullcontext():
        yield shared


def test_a_whole_answer(colour: Colour, server: Server) -> None:
    with server.client() as llm:
        response = colour.generate(llm, max_tokens=20)
    assert response.text
    assert response.finish_reason == "length"
    assert response.usage.completion_tokens == 20
    assert response.usage.prompt_tokens > 0
    assert not response.usage.estimated
    assert response.metrics.http_version == "HTTP/1.1"
    assert response.raw["choices"][0]["message"]["content"] == response.text


def test_a_stream_says_the_same_as_the_whole_answer(colour: Colour, server: Server) -> None:
    with server.client(seed=7, temperature=0.9, max_tokens=50) as llm:
        texts, stream = colour.stream(llm)
        whole = colour.generate(llm)
    assert stream.response is not None
    assert "".join(texts) == stream.response.text == whole.text
    assert len(texts) > 1
    assert stream.response.usage.completion_tokens == whole.usage.completion_tokens == 50
    assert not stream.response.usage.estimated


def test_a_prompt_that_is_too_long_is_typed(colour: Colour, server: Server) -> None:
    with server.client() as llm:
        with pytest.raises(LLMContextLengthError) as caught:
            colour.generate(llm, "long " * 2 * server.context)
        assert (caught.value.status_code, caught.value.retryable) == (400, False)
        assert colour.generate(llm, max_tokens=3).text


def test_leaving_a_stream_frees_the_model(colour: Colour, server: Server) -> None:
    with server.client() as llm:
        stream = colour.leave_early(llm, after=2, **server.long)
        assert server.model.wait(busy=0) <= SOON
        assert stream.response is None
        assert colour.generate(llm, max_tokens=3).text


def test_closing_ends_a_whole_answer_in_the_model_too(server: Server) -> None:
    with server.client() as llm, ThreadPoolExecutor(1) as pool:
        call = pool.submit(llm.generate, "hi", **server.long)
        assert server.model.wait(busy=1) < NEVER
        llm.close()
        assert server.model.wait(busy=0) <= SOON
        assert isinstance(call.exception(), LLMClosedError)


def test_cancelling_ends_a_whole_answer_in_the_model_too(server: Server) -> None:
    async def main() -> None:
        async with server.client() as llm:
            call = asyncio.create_task(llm.agenerate("hi", **server.long))
            assert await asyncio.to_thread(server.model.wait, busy=1) < NEVER
            call.cancel()
            assert await asyncio.to_thread(server.model.wait, busy=0) <= SOON
            await asyncio.wait([call])
            assert call.cancelled()

    asyncio.run(main())


def test_many_streams_at_once(server: Server) -> None:
    async def main() -> list[str]:
        async with server.client() as llm:
            responses = await asyncio.gather(*(llm.astream("hi", max_tokens=10).finish() for _ in range(50)))
        return [response.text for response in responses]

    assert all(asyncio.run(main()))


def test_http2_without_asking_first_is_refused_in_words(colour: Colour, server: Server) -> None:
    """None of them speaks HTTP/2 in the clear."""
    with server.client(http2="prior_knowledge") as llm, pytest.raises(LLMResponseError, match="no HTTP/2"):
        colour.generate(llm)


def test_the_models_are_listed(colour: Colour, server: Server) -> None:
    with server.client() as llm:
        models = asyncio.run(llm.alist_models()) if isinstance(colour, Async) else llm.list_models()
    assert any(model.id.startswith(server.name) for model in models)  # llama.cpp adds what else is in the file's name
