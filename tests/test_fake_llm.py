"""FakeLLM: all calls, in both colours, through the real code; and what it refuses."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from jazz_llm import (
    LLMCapabilityError,
    LLMClosedError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMRateLimitError,
    LLMStreamTruncatedError,
    LLMStructuredOutputError,
    LLMToolCallError,
    OpenAICompatibleLLM,
    StreamEventKind,
    ToolCall,
)
from jazz_llm.providers import BY_NAME
from jazz_llm.testing import Answer, FakeLLM
from jazz_llm.transport import pools

from .colours import Async, Sync

Colour = Sync | Async
DOWN = LLMInternalError("down", retryable=True, status_code=503)


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing here make a pool."""

    def refuse(_: object) -> None:
        raise AssertionError("a FakeLLM made a pool")

    monkeypatch.setattr(pools, "make_pool", refuse)
    monkeypatch.setattr(pools, "make_apool", refuse)


def test_it_is_one_of_ours() -> None:
    assert isinstance(FakeLLM("hi"), OpenAICompatibleLLM)
    assert "fake-key" not in repr(FakeLLM("hi"))


def test_texts_come_in_order(colour: Colour) -> None:
    llm = FakeLLM("one", "two words", ["th", "ree"], "")
    response = colour.generate(llm, "question")
    assert (response.text, response.finish_reason, response.model) == ("one", "stop", "fake-model")
    assert (response.usage.total_tokens, response.usage.estimated) == (9, False)
    assert colour.stream(llm)[0] == ["two ", "words"]
    texts, stream = colour.stream(llm)
    assert texts == ["th", "ree"]
    assert stream.response is not None
    assert stream.response.text == "three"
    assert colour.generate(llm).text == ""


def test_what_was_asked_is_logged(colour: Colour) -> None:
    llm = FakeLLM("a", "b", temperature=0.5)
    colour.generate(llm, [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}], max_tokens=5)
    colour.stream(llm, "there", model="other")
    first, second = llm.calls
    assert [message["content"] for message in first.messages] == ["Be short.", "hi"]
    assert first.options == {"model": "fake-model", "temperature": 0.5, "max_tokens": 5}
    assert second.messages == [{"role": "user", "content": "there"}]
    assert (second.options["model"], second.options["stream"], second.path) == ("other", True, "/v1/chat/completions")


def test_events(colour: Colour) -> None:
    llm = FakeLLM(Answer(text=["Hel", "lo"], reasoning="Hm."))
    events, stream = colour.events(llm)
    assert [(event.kind, event.text) for event in events] == [
        (StreamEventKind.REASONING_DELTA, "Hm."),
        (StreamEventKind.TOKEN_DELTA, "Hel"),
        (StreamEventKind.TOKEN_DELTA, "lo"),
        (StreamEventKind.DONE, ""),
    ]
    assert stream.response is not None
    assert stream.response.reasoning == "Hm."


@pytest.mark.parametrize("reply", [ToolCall("a", "weather", {"city": "Delft"}), [ToolCall("a", "weather", {}, '{"city": "Delft"}')]])
def test_tool_calls(colour: Colour, reply: Any) -> None:
    response = colour.generate(FakeLLM(reply))
    assert [(call.id, call.name, call.arguments) for call in response.tool_calls] == [("a", "weather", {"city": "Delft"})]
    assert response.finish_reason == "tool_calls"
    _, stream = colour.stream(FakeLLM(reply))
    assert stream.response is not None
    assert stream.response.tool_calls == response.tool_calls


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: Where.
    """
    return f"rain in {city}"


def test_tools_are_run_and_their_arguments_checked() -> None:
    llm = FakeLLM(ToolCall("a", "weather", {"city": "Delft"}), "It rains.")
    response = llm.run_tools("How is the weather in Delft?", [weather])
    assert (response.text, [result.output for result in response.tool_results]) == ("It rains.", ["rain in Delft"])
    assert llm.calls[1].messages[-1] == {"role": "tool", "content": "rain in Delft", "tool_call_id": "a"}
    assert asyncio.run(FakeLLM(ToolCall("a", "weather", {"city": "Delft"}), "ok").arun_tools("hi", [weather])).text == "ok"
    with pytest.raises(LLMToolCallError):
        FakeLLM(ToolCall("a", "weather", {"town": "Delft"})).generate("hi", tools=[weather])


@dataclass
class City:
    name: str
    people: int


def test_a_dict_is_said_as_json_and_validated(colour: Colour) -> None:
    llm = FakeLLM({"name": "Delft", "people": 100_000}, {"name": "Delft"})
    assert colour.generate(llm, response_format=City).parsed == City("Delft", 100_000)
    with pytest.raises(LLMStructuredOutputError):
        colour.generate(llm, response_format=City)


def test_errors_are_raised_and_never_the_very_ones_given(colour: Colour) -> None:
    error = LLMRateLimitError("slow down", retryable=False, status_code=429)
    llm = FakeLLM(error, error, "fine")
    for _ in range(2):
        with pytest.raises(LLMRateLimitError, match="slow down") as caught:
            colour.generate(llm)
        assert caught.value is not error
        assert (caught.value.attempts, error.attempts) == (1, 0)
    assert colour.generate(llm).text == "fine"


def test_a_passing_error_is_retried_at_once(colour: Colour) -> None:
    llm = FakeLLM(DOWN, LLMRateLimitError("later", retryable=True, retry_after=60.0), "now", DOWN, DOWN, DOWN)
    began = time.monotonic()
    assert colour.generate(llm).metrics.attempts == 3
    with pytest.raises(LLMInternalError, match="down") as caught:
        colour.stream(llm)
    assert time.monotonic() - began < 5
    assert caught.value.attempts == 3
    assert len(llm.calls) == 6


def test_a_stream_breaks_off_where_it_is_told_to(colour: Colour) -> None:
    pieces = ["Hel", "lo", LLMStreamTruncatedError("cut", retryable=True)]
    llm = FakeLLM(pieces, pieces, pieces)
    with pytest.raises(LLMStreamTruncatedError, match="cut") as caught:
        colour.stream(llm)
    assert caught.value.seen == ["Hel", "lo"]  # type: ignore[attr-defined]
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hello"
    events, _ = colour.events(llm)
    assert [event.kind for event in events[-2:]] == [StreamEventKind.ERROR, StreamEventKind.DONE]
    with pytest.raises(LLMStreamTruncatedError, match="cut"):
        colour.generate(llm)
    assert len(llm.calls) == 3


@pytest.mark.parametrize(("given", "words"), [((), "given 0 replies, and this is try 1"), (("one",), "given 1 reply, and this is try 2"), (("a", DOWN), "given 2 replies, and this is try 3")])
def test_past_the_end_it_says_how_many_were_given(colour: Colour, given: Any, words: str) -> None:
    llm = FakeLLM(*given)
    with pytest.raises(LLMConfigurationError, match=words):
        for _ in range(3):
            colour.generate(llm)
    with pytest.raises(LLMConfigurationError, match="this is try"):
        colour.events(llm)


@pytest.mark.parametrize("reply", [None, 1, b"text", {1, 2}, [], ["a", 1], [1], ["a", None], [DOWN], [DOWN, "a"], ["a", ValueError("b")], [ToolCall("a", "b"), "c"], ValueError("no LLMError"), LLMError, iter(["a"]), object()], ids=repr)
def test_what_is_no_reply_is_refused_at_construction(reply: Any) -> None:
    with pytest.raises(LLMConfigurationError, match="FakeLLM: reply 2: it must be a text"):
        FakeLLM("fine", reply)


def test_a_reply_that_is_no_json_is_refused_at_construction() -> None:
    with pytest.raises(LLMConfigurationError, match="FakeLLM: reply 1: json cannot be said as JSON"):
        FakeLLM({"a": object()})
    with pytest.raises(LLMConfigurationError, match="FakeLLM: reply 1: the answer cannot be said as JSON"):
        FakeLLM("\ud800")


def test_arguments_and_messages_are_checked_as_ever(colour: Colour) -> None:
    with pytest.raises(LLMConfigurationError, match="temperature"):
        FakeLLM("a", temperature="hot")
    llm = FakeLLM("a")
    with pytest.raises(LLMInvalidRequestError, match="messages"):
        colour.generate(llm, [])
    with pytest.raises(TypeError, match="no_such"):
        colour.generate(llm, no_such=1)
    assert llm.calls == []


def test_a_provider_has_its_dialect_and_needs_no_key(colour: Colour) -> None:
    llm = FakeLLM(Answer(text="a", usage="deepseek"), provider="deepseek")
    response = colour.generate(llm, max_completion_tokens=5)
    assert (response.usage.cached_tokens, response.usage.reasoning_tokens) == (10, 5)
    assert "max_tokens" in llm.calls[0].options


def test_a_model_named_by_a_class_method_is_no_reply() -> None:
    llm = FakeLLM.from_provider("groq", "llama")
    assert llm.list_models()
    with pytest.raises(LLMConfigurationError, match="given 0 replies"):
        llm.generate("hi")
    assert llm.calls[-1].options["model"] == "llama"


def test_models_and_embeddings_take_no_reply(colour: Colour) -> None:
    llm = FakeLLM("for the chat")
    assert [model.id for model in llm.list_models()] == ["fake-model"]
    one, two, again = asyncio.run(llm.aembed(["a", "b", "a"]))
    assert one == again != two
    assert colour.generate(llm).text == "for the chat"
    assert [call.path for call in llm.calls] == ["/v1/models", "/v1/embeddings", "/v1/chat/completions"]
    assert llm.calls[1].body["input"] == ["a", "b", "a"]


def test_its_httpx_clients_are_answered_too() -> None:
    llm = FakeLLM()
    assert llm.client.get("/v1/models").json()["data"][0]["id"] == "fake-model"

    async def ask() -> Any:
        return (await llm.aclient.get("/v1/models")).json()

    assert asyncio.run(ask())["data"][0]["id"] == "fake-model"


def test_copies_share_replies_and_log_and_pickles_begin_anew(colour: Colour) -> None:
    llm = FakeLLM("a", "b", DOWN, temperature=0.5)
    assert colour.generate(llm).text == "a"
    assert colour.generate(llm.with_options(temperature=1.0)).text == "b"
    assert [call.options["temperature"] for call in llm.calls] == [0.5, 1.0]
    for other in (copy.copy(llm), copy.deepcopy(llm), pickle.loads(pickle.dumps(llm))):
        assert isinstance(other, FakeLLM)
        assert other.calls == []
        assert colour.generate(other).text == "a"


def test_streams_that_are_switched_off_stay_so_in_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAZZ_LLM__STREAM_ENABLED", "false")
    llm = FakeLLM.from_env()
    for other in (llm, llm.with_options(), copy.copy(llm), pickle.loads(pickle.dumps(llm))):
        with pytest.raises(LLMCapabilityError):
            other.stream("hi")


def test_the_variable_of_the_mock_does_not_reach_it(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["mocked"]')
    assert colour.generate(FakeLLM("given")).text == "given"


def test_threads_get_each_reply_once() -> None:
    llm = FakeLLM(*map(str, range(400)))
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda i: llm.generate(str(i)).text, range(400)))
    assert sorted(texts, key=int) == [str(i) for i in range(400)]
    assert sorted(int(call.messages[0]["content"]) for call in llm.calls) == list(range(400))


def test_threads_with_loops_of_their_own_get_each_reply_once() -> None:
    llm = FakeLLM(*map(str, range(100)))
    texts: list[str] = []

    async def ask() -> None:
        texts.extend(response.text for response in await asyncio.gather(*(llm.agenerate("hi") for _ in range(25))))

    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts, key=int) == [str(i) for i in range(100)]


def test_tasks_take_turns_and_can_be_cancelled() -> None:
    async def main() -> None:
        llm = FakeLLM(["a"] * 50, ["b"] * 50)
        seen: list[str] = []
        enough = asyncio.Event()

        async def read() -> None:
            async for text in llm.astream("hi"):
                seen.append(text)
                if len(seen) == 20:
                    enough.set()

        first, second = asyncio.create_task(read()), asyncio.create_task(read())
        await enough.wait()
        first.cancel()
        await second
        assert first.cancelled()
        assert set(seen[:20]) == {"a", "b"}
        assert seen.count("b") == 50

    asyncio.run(main())


def test_closing_ends_what_runs(colour: Colour) -> None:
    llm = FakeLLM(["a", "b", "c"], "d")
    stream = llm.stream("hi")
    texts = iter(stream)
    assert next(texts) == "a"
    llm.close()
    with pytest.raises(LLMClosedError):
        list(texts)
    with pytest.raises(LLMClosedError):
        colour.generate(llm)


def test_leaving_early_leaves_nothing(colour: Colour) -> None:
    llm = FakeLLM(["a", "b", "c"], "d")
    colour.leave_early(llm)
    assert colour.generate(llm).text == "d"


def test_a_key_function_is_asked_as_ever(colour: Colour) -> None:
    asked: list[int] = []

    def key() -> str:
        asked.append(1)
        return "k"

    colour.generate(FakeLLM("a", api_key=key))
    assert asked == [1]


def test_without_a_loop_of_asyncio_the_async_call_says_so() -> None:
    with pytest.raises(LLMConfigurationError, match="asyncio"):
        FakeLLM("a").agenerate("hi").send(None)


def test_every_provider_can_be_played(colour: Colour) -> None:
    for name in BY_NAME:
        assert colour.generate(FakeLLM("a", provider=name)).text == "a"


def test_a_lost_connection_is_retried_as_ever(colour: Colour) -> None:
    lost = LLMConnectionError("lost", retryable=True, maybe_processed=True)
    assert colour.generate(FakeLLM(lost, "again")).text == "again"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_goes_on_with_the_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["mocked"]')
    llm = FakeLLM("a", "b")
    assert llm.generate("hi").text == "a"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12, where there is another thread
        child = os.fork()
    if child == 0:
        os._exit(0 if llm.generate("hi").text == "b" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert llm.generate("hi").text == "b"
