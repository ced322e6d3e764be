"""Type-checked, never run: what the public API promises to type checkers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from jazz_llm import AsyncTextStream, LLMResponse, Message, ModelInfo, OpenAICompatibleLLM, TextStream


class Answer:
    """Stands for a pydantic model, a dataclass or a TypedDict."""


llm = OpenAICompatibleLLM("m", base_url="http://localhost:8000")
conversation = [Message.system("Be brief."), Message.user("Hi")]


class Mine(OpenAICompatibleLLM):
    """A class of the user's own."""


def constructors() -> None:
    assert_type(OpenAICompatibleLLM.from_provider("groq", "m", temperature=0.5), OpenAICompatibleLLM)
    assert_type(Mine.from_provider("groq", model="m"), Mine)


def calls() -> None:
    assert_type(llm.generate("hi"), LLMResponse[Any])
    assert_type(llm.generate(conversation, temperature=0.5, max_tokens=5), LLMResponse[Any])
    assert_type(llm.generate("hi", response_format=Answer), LLMResponse[Answer])
    assert_type(llm.generate("hi", response_format=Answer).parsed, Answer | None)
    assert_type(llm.generate("hi", response_format={"type": "object"}), LLMResponse[Any])
    assert_type(llm.stream("hi"), TextStream[Any])
    assert_type(llm.stream("hi", response_format=Answer), TextStream[Answer])
    assert_type(llm.stream("hi", response_format=Answer).finish(), LLMResponse[Answer])
    assert_type(llm.list_models(), list[ModelInfo])
    assert_type(llm.list_models()[0].context_length, int | None)
    with llm.stream([{"role": "user", "content": "hi"}]) as stream:
        assert_type(iter(stream), Iterator[str])
        for text in stream:
            assert_type(text, str)
        assert_type(stream.response, LLMResponse[Any] | None)


async def acalls() -> None:
    assert_type(await llm.agenerate("hi"), LLMResponse[Any])
    assert_type(await llm.agenerate("hi", response_format=Answer), LLMResponse[Answer])
    assert_type(llm.astream("hi"), AsyncTextStream[Any])
    assert_type(llm.astream("hi", response_format=Answer), AsyncTextStream[Answer])
    assert_type(await llm.astream("hi", response_format=Answer).finish(), LLMResponse[Answer])
    assert_type(await llm.alist_models(), list[ModelInfo])
    async with llm.astream("hi") as stream:
        assert_type(aiter(stream), AsyncIterator[str])
        async for text in stream:
            assert_type(text, str)


def wrong() -> None:
    llm.generate("hi", temprature=0.5)  # type: ignore[call-overload]  # an unknown option
    llm.generate("hi", max_tokens="5")  # type: ignore[call-overload]  # a wrong type
    LLMResponse()  # type: ignore[call-arg]  # text is the one field without a default
    LLMResponse(text="a fake is cheap")
    OpenAICompatibleLLM.from_provider("groq")  # type: ignore[call-arg]  # which model?
    llm.list_models()[0].id = "x"  # type: ignore[misc]  # frozen
