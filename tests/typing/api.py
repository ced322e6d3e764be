"""Type-checked, never run: what the public API promises to type checkers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, assert_type

from pydantic import BaseModel

from jazz_llm import (
    AsyncEventStream,
    AsyncTextStream,
    ErrorRecord,
    EventStream,
    Hooks,
    LLMError,
    LLMResponse,
    Message,
    ModelInfo,
    OpenAICompatibleLLM,
    RequestRecord,
    ResponseRecord,
    RetryRecord,
    StreamEvent,
    StreamEventKind,
    TextStream,
    Tool,
    ToolCall,
    ToolResult,
)
from jazz_llm.gateway import Gateway
from jazz_llm.telemetry import otel_hooks
from jazz_llm.testing import Answer as FakeAnswer
from jazz_llm.testing import FakeLLM, FakeServer, cassette, set_testing


class Answer:
    """Stands for a pydantic model, a dataclass or a TypedDict."""


class Model(BaseModel):
    """A pydantic model."""

    name: str


@dataclass
class Data:
    """A dataclass."""

    name: str


class Dict(TypedDict):
    """A TypedDict."""

    name: str


llm = OpenAICompatibleLLM("m", base_url="http://localhost:8000")
conversation = [Message.system("Be brief."), Message.user("Hi")]


class Mine(OpenAICompatibleLLM):
    """A class of the user's own."""


def constructors() -> None:
    assert_type(OpenAICompatibleLLM.from_provider("groq", "m", temperature=0.5), OpenAICompatibleLLM)
    assert_type(Mine.from_provider("groq", model="m"), Mine)
    assert_type(OpenAICompatibleLLM.from_env(), OpenAICompatibleLLM)
    assert_type(Mine.from_env("SPAKKY_VLLM__", temperature=0.5), Mine)
    assert_type(OpenAICompatibleLLM.from_yaml("llm.yaml", "fast"), OpenAICompatibleLLM)
    assert_type(Mine.from_yaml(Path("llm.yaml"), section=None, api_key=lambda: "k"), Mine)
    assert_type(llm.to_dict(), dict[str, Any])
    assert_type(OpenAICompatibleLLM(**llm.to_dict()), OpenAICompatibleLLM)
    llm.to_yaml(Path("llm.yaml"))


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
    assert_type(llm.embed("hi"), list[list[float]])
    assert_type(llm.embed(["a", "b"], model="e", dimensions=256, batch_size=10, extra_body={"user": "u"}), list[list[float]])
    assert_type(Message.user("look", images=["a.png", Path("b.png"), b"GIF89a", "https://h/c.png"]), Message)
    with llm.stream([{"role": "user", "content": "hi"}]) as stream:
        assert_type(iter(stream), Iterator[str])
        for text in stream:
            assert_type(text, str)
        assert_type(stream.response, LLMResponse[Any] | None)


def weather(city: str) -> str:
    """Stands for a tool."""
    return city


async def aweather(city: str) -> dict[str, str]:
    """Stands for an async one."""
    return {"city": city}


def tools() -> None:
    tool = Tool.from_function(weather)
    assert_type(tool, Tool)
    assert_type(llm.generate("hi", tools=[weather, aweather, tool, {"type": "web_search"}], tool_choice="weather"), LLMResponse[Any])
    assert_type(llm.run_tools("hi", [weather, aweather, tool]), LLMResponse[Any])
    response = llm.run_tools("hi", tools=[weather], max_turns=3, response_format=Model, temperature=0.0, tool_choice="required")
    assert_type(response, LLMResponse[Model])
    assert_type(response.transcript, list[Message])
    assert_type(response.tool_results, list[ToolResult])
    assert_type(response.tool_results[0].error, Exception | None)


async def atools() -> None:
    assert_type(await llm.arun_tools("hi", [weather, aweather]), LLMResponse[Any])
    assert_type(await llm.arun_tools("hi", tools=[aweather], response_format=Model), LLMResponse[Model])


def structured() -> None:
    assert_type(llm.generate("hi", response_format=Model).parsed, Model | None)
    assert_type(llm.generate("hi", response_format=Data).parsed, Data | None)
    assert_type(llm.generate("hi", response_format=Dict).parsed, Dict | None)
    assert_type(llm.generate("hi", response_format={"type": "json_object"}).parsed, Any | None)
    assert_type(llm.stream("hi", response_format=Model).response, LLMResponse[Model] | None)
    if (parsed := llm.generate("hi", response_format=Model).parsed) is not None:
        assert_type(parsed.name, str)


async def astructured() -> None:
    assert_type((await llm.agenerate("hi", response_format=Model)).parsed, Model | None)
    assert_type((await llm.agenerate("hi", response_format=Dict)).parsed, Dict | None)
    assert_type((await llm.astream("hi", response_format=Data).finish()).parsed, Data | None)


def events() -> None:
    assert_type(llm.stream_events("hi"), EventStream[Any])
    assert_type(llm.stream_events("hi", response_format=Answer), EventStream[Answer])
    assert_type(llm.stream_events("hi", response_format=Answer).finish(), LLMResponse[Answer])
    with llm.stream_events("hi", response_format=Answer) as stream:
        assert_type(iter(stream), Iterator[StreamEvent])
        for event in stream:
            assert_type(event.kind, StreamEventKind)
            assert_type(event.text, str)
            assert_type(event.tool_call, ToolCall | None)
            assert_type(event.error, LLMError | None)
            assert_type(event.response, LLMResponse[Any] | None)
        assert_type(stream.response, LLMResponse[Answer] | None)


async def aevents() -> None:
    assert_type(llm.astream_events("hi"), AsyncEventStream[Any])
    assert_type(llm.astream_events("hi", response_format=Answer), AsyncEventStream[Answer])
    assert_type(await llm.astream_events("hi", response_format=Answer).finish(), LLMResponse[Answer])
    async with llm.astream_events("hi") as stream:
        assert_type(aiter(stream), AsyncIterator[StreamEvent])
        async for event in stream:
            assert_type(event, StreamEvent)


async def acalls() -> None:
    assert_type(await llm.agenerate("hi"), LLMResponse[Any])
    assert_type(await llm.agenerate("hi", response_format=Answer), LLMResponse[Answer])
    assert_type(llm.astream("hi"), AsyncTextStream[Any])
    assert_type(llm.astream("hi", response_format=Answer), AsyncTextStream[Answer])
    assert_type(await llm.astream("hi", response_format=Answer).finish(), LLMResponse[Answer])
    assert_type(await llm.alist_models(), list[ModelInfo])
    assert_type(await llm.aembed(text for text in ("a", "b")), list[list[float]])
    async with llm.astream("hi") as stream:
        assert_type(aiter(stream), AsyncIterator[str])
        async for text in stream:
            assert_type(text, str)


def wrong() -> None:
    llm.generate("hi", temprature=0.5)  # type: ignore[call-overload]  # an unknown option
    llm.generate("hi", tools=[5])  # type: ignore[list-item]  # no tool
    llm.run_tools("hi", [{"type": "function"}])  # type: ignore[list-item]  # a dict has no function to run
    llm.generate("hi", max_tokens="5")  # type: ignore[call-overload]  # a wrong type
    LLMResponse()  # type: ignore[call-arg]  # text is the one field without a default
    LLMResponse(text="a fake is cheap")
    OpenAICompatibleLLM.from_env(5)  # type: ignore[arg-type]  # a prefix is text
    OpenAICompatibleLLM.from_yaml(None)  # type: ignore[arg-type]  # which file?
    OpenAICompatibleLLM.from_provider("groq")  # type: ignore[call-arg]  # which model?
    llm.embed([1, 2])  # type: ignore[list-item]  # texts, no tokens
    llm.embed(b"hi")  # type: ignore[arg-type]  # text
    Message.user("look", images=[5])  # type: ignore[list-item]  # no image
    llm.list_models()[0].id = "x"  # type: ignore[misc]  # frozen


def hooks() -> None:
    """Each hook is told its own record."""

    def begun(record: RequestRecord) -> None:
        assert_type(record.model, str)

    def failed(record: ErrorRecord) -> None:
        assert_type(record.error, Exception)

    told = Hooks(
        on_request=begun,
        on_retry=lambda record: assert_type(record, RetryRecord).wait_s,
        on_response=lambda record: assert_type(record, ResponseRecord).stopped,
        on_error=failed,
    )
    OpenAICompatibleLLM("m", hooks=told).with_options(hooks=[told, otel_hooks()])


async def gateway() -> None:
    """A gateway is a context manager with an address."""
    async with Gateway("127.0.0.1", 0, token="t", allow_origins=["https://example.org"], config=Path("a.yaml")) as served:
        assert_type(served, Gateway)
        assert_type((served.url, served.port), tuple[str, int])
        served.close()
        await served.wait_closed()
    Gateway(port="7562")  # type: ignore[arg-type]  # no number


def testing_kit() -> None:
    """Replies of all kinds are taken, and others are not."""
    fake = FakeLLM("a", ["b", LLMError("c")], {"d": 1}, ToolCall("1", "e"), [ToolCall("2", "f")], LLMError("g"), FakeAnswer(text="h"))
    assert_type(fake.calls[0].messages, list[dict[str, Any]])
    assert_type(fake.generate("hi", response_format=Data).parsed, Data | None)
    FakeLLM(5)  # type: ignore[arg-type]  # no reply
    with FakeServer() as server, set_testing(attempts=1):
        server.reply(["a", "b"], tool_calls=[{"name": "f", "arguments": {}}], usage="groq", delay=[0.1, 0.0])
        server.fail(429, retry_after=1)
        server.break_off("cut", after="a")
        server.break_off("explode")  # type: ignore[arg-type]  # no such fault
    with cassette("a.yaml", mode="none", pace=True) as file:
        assert_type(file, Path)
    cassette(Path("a.yaml"), mode="all")  # type: ignore[arg-type]  # no such mode
