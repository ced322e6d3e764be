from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pydantic
import pytest

from jazz_llm import (
    LLMCapabilityError,
    LLMClosedError,
    LLMConfigurationError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMResponse,
    LLMStructuredOutputError,
    LLMToolCallError,
    Message,
    OpenAICompatibleLLM,
    Tool,
    ToolCall,
    ToolResult,
)
from jazz_llm.request import wire_messages
from jazz_llm.testing import FakeServer, Reply, Request
from jazz_llm.tool_loop import _sendable

from .colours import Async, Sync

Colour = Sync | Async


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


async def double(a: int) -> dict[str, int]:
    """Double a number."""
    await asyncio.sleep(0)
    return {"doubled": 2 * a}


def calls(*named: tuple[str, Any], finish: str = "tool_calls", **message: Any) -> dict[str, Any]:
    """Return an answer that calls tools: (name, arguments), text as it is."""
    listed = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)}}
        for i, (name, given) in enumerate(named)
    ]
    return {"message": {"role": "assistant", "content": None, "tool_calls": listed, **message}, "finish_reason": finish}


def says(text: str, finish: str = "stop") -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}, "finish_reason": finish}


class Script:
    """Give the answers one after the other, then the last for ever."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, request: Request, reply: Reply) -> None:
        self.asked.append(request.json())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if "status" in answer:
            return await reply.json({"error": {"message": "broken"}}, answer["status"])
        usage = {"prompt_tokens": len(self.asked), "completion_tokens": 1, "total_tokens": len(self.asked) + 1}
        await reply.json({"model": "fake", "choices": [{"index": 0, **answer}], "usage": usage})


@pytest.fixture
def served() -> Iterator[Callable[..., tuple[OpenAICompatibleLLM, Script]]]:
    """Return a function that serves a script; what it opened is closed at the end."""
    opened: list[Any] = []

    def serve(*answers: dict[str, Any], **arguments: Any) -> tuple[OpenAICompatibleLLM, Script]:
        script = Script(*answers)
        server = FakeServer(script)
        server.__enter__()
        llm = OpenAICompatibleLLM("m", base_url=server.url, max_retries=0, **arguments)
        opened.extend([server, llm])
        return llm, script

    yield serve
    for thing in reversed(opened):
        thing.__exit__(None, None, None)


Served = Callable[..., tuple[OpenAICompatibleLLM, Script]]


def run(colour: Colour, llm: OpenAICompatibleLLM, messages: Any = "hi", tools: Any = (add,), **options: Any) -> LLMResponse[Any]:
    if colour.name == "sync":
        return llm.run_tools(messages, tools, **options)
    return asyncio.run(llm.arun_tools(messages, tools, **options))


def raised(kind: type[BaseException], colour: Colour, llm: OpenAICompatibleLLM, *arguments: Any, **options: Any) -> Any:
    with pytest.raises(kind) as caught:
        run(colour, llm, *arguments, **options)
    return caught.value


def test_the_loop(served: Served, colour: Colour) -> None:
    llm, script = served(calls(("add", {"a": 1, "b": 2}), ("double", {"a": 4})), calls(("add", {"a": 3})), says("Done."))
    response = run(colour, llm, tools=[add, double])
    assert (response.text, [result.output for result in response.tool_results]) == ("Done.", ["3", '{"doubled":8}', "4"])
    assert [result.error for result in response.tool_results] == [None] * 3
    assert [message.role for message in response.transcript] == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert response.transcript[-1] == response.message
    assert [message.tool_call_id for message in response.transcript if message.role == "tool"] == ["c0", "c1", "c0"]
    assert [len(asked["messages"]) for asked in script.asked] == [1, 4, 6]
    assert script.asked[1]["messages"][1:] == [
        calls(("add", {"a": 1, "b": 2}), ("double", {"a": 4}))["message"] | {"content": None},
        {"role": "tool", "tool_call_id": "c0", "content": "3"},
        {"role": "tool", "tool_call_id": "c1", "content": '{"doubled":8}'},
    ]
    assert all(len(asked["tools"]) == 2 for asked in script.asked)


def test_usage_and_metrics_are_of_the_last_call_alone(served: Served, colour: Colour) -> None:
    llm, _ = served(calls(("add", {"a": 1})), says("2"))
    response = run(colour, llm)
    assert (response.usage.prompt_tokens, response.usage.total_tokens, response.metrics.attempts) == (2, 3, 1)


def test_no_call_is_an_answer_at_once(served: Served, colour: Colour) -> None:
    llm, script = served(says("No need."))
    for tools in ([add], []):
        response = run(colour, llm, tools=tools)
        assert (response.text, response.tool_results, len(response.transcript)) == ("No need.", [], 2)
    assert "tools" not in script.asked[1]


def test_messages_are_not_changed_and_the_transcript_can_be_sent_again(served: Served, colour: Colour) -> None:
    call = ToolCall("c9", "add", {"a": 1}, '{"a":1}', {"extra_content": {"google": {"thought_signature": "s"}}})
    given = [
        {"role": "system", "content": "Be brief.", "cache_control": {"type": "ephemeral"}},
        Message.user([{"type": "text", "text": "1 + 1?"}]),
        Message("assistant", None, tool_calls=[call], extra={"reasoning_content": "Hm."}),
        Message.tool(call, "2"),
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c8", "type": "custom", "custom": {"name": "x", "input": ""}}]},
        {"role": "tool", "tool_call_id": "c8", "content": "y"},
        {"role": "user", "content": "And 2 + 2?", "name": "ann"},
    ]
    before = repr(given)
    llm, script = served(calls(("add", {"a": 2, "b": 2})), says("4"))
    response = run(colour, llm, given)
    assert repr(given) == before
    assert script.asked[0]["messages"] == json.loads(json.dumps(wire_messages(given)))
    assert response.transcript[1:4] == given[1:4]
    colour.generate(llm, [*response.transcript, Message.user("Sure?")])
    assert script.asked[2]["messages"][:9] == [*script.asked[1]["messages"]]
    assert [message["content"] for message in script.asked[2]["messages"][9:]] == ["4", "Sure?"]


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def broken(a: int) -> str:
    raise ValueError(f"{a} is too much")


async def abroken(a: int) -> str:
    raise ValueError(f"{a} is too much")


def wordless(a: int) -> str:
    raise OddError


def stopped(a: int) -> str:
    raise StopIteration


def surrogate(a: int) -> str:
    return "\ud800"


def not_json(a: int) -> object:
    return object()


def endless(a: int) -> object:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    ("tool", "kind", "told"),
    [
        (broken, ValueError, "Error: ValueError: 5 is too much"),
        (abroken, ValueError, "Error: ValueError: 5 is too much"),
        (wordless, OddError, "Error: OddError: "),
        (stopped, StopIteration, "Error: StopIteration: "),
        (surrogate, UnicodeEncodeError, "Error: UnicodeEncodeError: "),
        (not_json, TypeError, "Error: TypeError: Type is not JSON serializable: object"),
        (endless, TypeError, "Error: "),
    ],
)
def test_what_goes_wrong_with_a_tool_is_told_to_the_model(served: Served, colour: Colour, tool: Any, kind: type[Exception], told: str) -> None:
    llm, script = served(calls((tool.__name__, {"a": 5}), ("add", {"a": 1})), says("Sorry."))
    response = run(colour, llm, tools=[tool, add])
    first, second = response.tool_results
    assert isinstance(first.error, kind)
    assert told in first.output
    assert script.asked[1]["messages"][2]["content"] == first.output
    assert (second.output, second.error, response.text) == ("2", None, "Sorry.")


@pytest.mark.parametrize(
    ("name", "raw", "told", "sent"),
    [
        ("sub", '{"a": 1}', "there is no tool 'sub'; the tools are add", '{"a": 1}'),
        ("add", '{"a": "x"}', "a: Input should be a valid integer", '{"a": "x"}'),
        ("add", "", "a: Field required", "{}"),
        ("add", "true", "must be a JSON object, not true", "{}"),
        ("add", '{"a": 1', "not JSON", "{}"),
        ("add", '{"a": NaN}', "not JSON: NaN", "{}"),
    ],
)
def test_a_call_that_does_not_fit_is_told_to_the_model(served: Served, colour: Colour, name: str, raw: str, told: str, sent: str) -> None:
    llm, script = served(calls((name, raw)), says("Sorry."))
    response = run(colour, llm)
    result = response.tool_results[0]
    assert isinstance(result.error, LLMToolCallError)
    assert result.error.tool_call is result.call
    assert result.call.raw_arguments == raw
    assert told in result.output
    assert script.asked[1]["messages"][2]["content"] == result.output
    # What is no JSON object goes back as {}: the templates of servers parse it, and answer 400 or 500 where they cannot.
    assert script.asked[1]["messages"][1]["tool_calls"][0]["function"] == {"name": name, "arguments": sent}


class Answer(pydantic.BaseModel):
    total: int


@dataclasses.dataclass
class Point:
    x: int


class Word(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "output"),
    [("as it is", "as it is"), ("", ""), (Word("w"), "w"), (None, "null"), (True, "true"), ([1, "a"], '[1,"a"]'), ({1: (2,)}, '{"1":[2]}'), (Answer(total=1), '{"total":1}'), (Point(2), '{"x":2}')],
)
def test_a_result_is_text_or_json(served: Served, colour: Colour, value: Any, output: str) -> None:
    def give() -> Any:
        return value

    llm, script = served(calls(("give", "")), says("ok"))
    assert run(colour, llm, tools=[give]).tool_results[0] == ToolResult(ToolCall("c0", "give"), output)
    assert script.asked[1]["messages"][2]["content"] == output


class Counter:
    """Count."""

    def __init__(self) -> None:
        self.total = 0

    def count(self, by: int) -> int:
        self.total += by
        return self.total

    async def __call__(self, by: int) -> int:
        return self.count(by)


def test_methods_partials_objects_and_what_returns_an_awaitable(served: Served, colour: Colour) -> None:
    counter = Counter()

    def later(by: int) -> Any:
        return counter(by)

    tools = [counter.count, counter, functools.partial(double, a=21), later]
    llm, _ = served(calls(("count", {"by": 1})), calls(("Counter", {"by": 2})), calls(("double", {})), calls(("later", {"by": 3})), says("ok"))
    assert [result.output for result in run(colour, llm, tools=tools).tool_results] == ["1", "3", '{"doubled":42}', "6"]


def test_a_tool_object_gets_plain_json(served: Served, colour: Colour) -> None:
    seen: list[Any] = []
    schema = {"type": "object", "properties": {"at": {"type": "object"}}, "required": ["at"]}
    tool = Tool("look", "Look.", schema, lambda **given: seen.append(given) or "seen")
    llm, _ = served(calls(("look", {"at": {"x": 1}})), says("ok"))
    assert run(colour, llm, tools=[tool]).tool_results[0].output == "seen"
    assert seen == [{"at": {"x": 1}}]


# --- turns


def test_past_max_turns_the_transcript_is_kept(served: Served, colour: Colour) -> None:
    llm, script = served(calls(("add", {"a": 1})))
    error = raised(LLMToolCallError, colour, llm, max_turns=3)
    assert "max_turns (3)" in error.message
    assert len(script.asked) == 3
    assert [message.role for message in error.partial.transcript] == ["user", *["assistant", "tool"] * 3]
    assert [result.output for result in error.partial.tool_results] == ["2"] * 3
    script.answers = [says("Done.")]
    assert run(colour, llm, error.partial.transcript).text == "Done."  # it can be taken up again


def test_one_turn_is_enough_for_an_answer(served: Served, colour: Colour) -> None:
    llm, _ = served(says("Done."))
    assert run(colour, llm, max_turns=1).text == "Done."


def test_what_fails_in_a_later_turn_keeps_the_transcript(served: Served, colour: Colour) -> None:
    llm, _ = served(calls(("add", {"a": 1})), {"status": 500})
    error = raised(LLMInternalError, colour, llm)
    assert [message.role for message in error.partial.transcript] == ["user", "assistant", "tool"]
    assert len(error.partial.tool_results) == 1
    llm, _ = served({"status": 500})
    assert raised(LLMInternalError, colour, llm).partial is None


def test_a_call_cut_short_is_raised(served: Served, colour: Colour) -> None:
    llm, script = served(calls(("add", '{"a": '), finish="length"))
    error = raised(LLMToolCallError, colour, llm)
    assert error.tool_call.raw_arguments == '{"a": '
    assert (error.partial.finish_reason, len(error.partial.transcript), len(script.asked)) == ("length", 1, 1)


@pytest.mark.parametrize("max_turns", [0, -1, True, 1.5, "3", None])
def test_bad_max_turns(served: Served, colour: Colour, max_turns: Any) -> None:
    llm, script = served(says("x"))
    assert "max_turns" in raised(LLMInvalidRequestError, colour, llm, max_turns=max_turns).message
    assert script.asked == []


FETCH = {"type": "function", "function": {"name": "fetch"}}


@pytest.mark.parametrize("tool", [FETCH, Tool("fetch"), {"type": "web_search"}])
def test_a_tool_without_a_function_is_refused_before_sending(served: Served, colour: Colour, tool: Any) -> None:
    llm, script = served(says("x"))
    error = raised(LLMInvalidRequestError, colour, llm, tools=[add, tool])
    assert "which has no function" in error.message
    assert script.asked == []


def test_an_unknown_option_is_a_type_error(served: Served, colour: Colour) -> None:
    llm, _ = served(says("x"))
    assert "temprature" in str(raised(TypeError, colour, llm, temprature=1))


# --- tool_choice, response_format


@pytest.mark.parametrize("choice", ["required", "add", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_choice_is_for_the_first_turn(served: Served, colour: Colour, choice: Any) -> None:
    llm, script = served(calls(("add", {"a": 1})), says("2"))
    assert run(colour, llm, tool_choice=choice).text == "2"
    assert script.asked[0]["tool_choice"] == ("required" if choice == "required" else {"type": "function", "function": {"name": "add"}})
    assert "tool_choice" not in script.asked[1]


def test_a_forced_call_that_does_not_come_is_raised(served: Served, colour: Colour) -> None:
    llm, _ = served(says("No."))
    assert raised(LLMToolCallError, colour, llm, tool_choice="required").partial.text == "No."


def test_none_stays_none(served: Served, colour: Colour) -> None:
    llm, script = served(calls(("add", {"a": 1})), says("2"))  # it calls all the same
    run(colour, llm, tool_choice="none")
    assert [asked["tool_choice"] for asked in script.asked] == ["none", "none"]


def test_a_strict_tool_that_a_later_turn_cannot_promise_is_refused_at_once(served: Served, colour: Colour) -> None:
    llm, script = served(says("x"))
    strict = dataclasses.replace(Tool.from_function(add), strict=True)
    raised(LLMCapabilityError, colour, llm, tools=[strict], tool_choice="required")
    assert script.asked == []


def test_the_last_answer_is_parsed(served: Served, colour: Colour) -> None:
    llm, script = served(calls(("add", {"a": 1}), content="Let me see."), says('{"total": 2}'))
    assert run(colour, llm, response_format=Answer).parsed == Answer(total=2)
    assert all("response_format" in asked for asked in script.asked)
    script.answers = [calls(("add", {"a": 1})), says("two")]
    error = raised(LLMStructuredOutputError, colour, llm, response_format=Answer)
    assert [message.role for message in error.partial.transcript] == ["user", "assistant", "tool"]


# --- what stops the program


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_stops_the_program_is_not_caught(served: Served, colour: Colour, kind: type[BaseException]) -> None:
    def stop() -> None:
        raise kind

    async def astop() -> None:
        raise kind

    for tool in (stop, astop):
        llm, script = served(calls((tool.__name__, "")), says("x"))
        with pytest.raises(kind):
            run(colour, llm, tools=[tool])
        assert len(script.asked) == 1


def test_a_cancelled_tool_and_a_closed_client_are_not_caught(served: Served, colour: Colour) -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    def closed() -> None:
        raise LLMClosedError("The client is closed.")

    async def aclosed() -> None:
        raise LLMClosedError("The client is closed.")

    for tool, kind in ((cancelled, asyncio.CancelledError), (closed, LLMClosedError), (aclosed, LLMClosedError)):
        llm, script = served(calls((tool.__name__, ""), ("add", {"a": 1})), says("x"))
        with pytest.raises(kind):
            run(colour, llm, tools=[tool, add])
        assert len(script.asked) == 1


def test_a_client_closed_by_a_tool_ends_the_run(served: Served, colour: Colour) -> None:
    llm, script = served(calls(("close", "")), says("x"))

    def close() -> str:
        llm.close()
        return "closed"

    error = raised(LLMClosedError, colour, llm, tools=[close])
    assert error.partial.tool_results[0].output == "closed"
    assert len(script.asked) == 1


# --- at once, or one after the other


def test_calls_of_one_turn_run_together(served: Served) -> None:
    llm, _ = served(calls(("meet", {"i": 0}), ("meet", {"i": 1}), ("thread", {"i": 2}), ("thread", {"i": 3})), says("met"))
    here, there = asyncio.Barrier(2), threading.Barrier(2, timeout=5)

    async def meet(i: int) -> int:
        await asyncio.wait_for(here.wait(), 5)
        return i

    def thread(i: int) -> int:
        there.wait()
        return i

    results = asyncio.run(llm.arun_tools("hi", [meet, thread])).tool_results
    assert [(result.output, result.error) for result in results] == [(str(i), None) for i in range(4)]  # in the order of the calls


def test_sync_calls_run_one_after_the_other_and_here(served: Served) -> None:
    llm, _ = served(calls(("note", {"i": 0}), ("anote", {"i": 1}), ("note", {"i": 2})), says("ok"))
    seen: list[tuple[int, threading.Thread]] = []

    def note(i: int) -> None:
        seen.append((i, threading.current_thread()))

    async def anote(i: int) -> None:
        note(i)

    llm.run_tools("hi", [note, anote])
    assert seen == [(i, threading.current_thread()) for i in range(3)]


def test_an_async_function_in_a_sync_run_inside_a_loop(served: Served) -> None:
    llm, _ = served(calls(("look", {"i": 1})), says("ok"))
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("seen")

    async def look(i: int) -> str:
        await asyncio.sleep(0)
        return variable.get()

    async def main() -> LLMResponse[Any]:
        return llm.run_tools("hi", [look])

    assert asyncio.run(main()).tool_results[0].output == "seen"


def test_an_async_function_runs_in_the_loop_of_the_run(served: Served) -> None:
    llm, _ = served(calls(("look", ""), ("later", "")), says("ok"))
    loops: list[asyncio.AbstractEventLoop] = []

    async def look() -> None:
        loops.append(asyncio.get_running_loop())

    def later() -> Any:
        return look()

    async def main() -> None:
        await llm.arun_tools("hi", [look, later])
        assert loops == [asyncio.get_running_loop()] * 2

    asyncio.run(main())


@pytest.mark.parametrize("name", ["free", "Free"])
def test_async_functions_wait_for_no_thread(served: Served, name: str) -> None:
    llm, _ = served(calls(("block", ""), (name, "")), says("ok"))
    freed = threading.Event()

    def block() -> bool:
        return freed.wait(5)

    async def free() -> None:
        freed.set()

    class Free:
        async def __call__(self) -> None:
            freed.set()

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        tools = [block, free, Free()]
        assert (await llm.arun_tools("hi", tools)).tool_results[0].output == "true"

    asyncio.run(main())


def test_cancelling_cancels_the_tools_that_run(served: Served) -> None:
    llm, script = served(calls(("wait", {"i": 0}), ("wait", {"i": 1})), says("x"))
    ended: list[int] = []

    async def main() -> None:
        both = asyncio.Barrier(3)

        async def wait(i: int) -> None:
            try:
                await both.wait()
                await asyncio.Event().wait()
            finally:
                ended.append(i)

        run = asyncio.create_task(llm.arun_tools("hi", [wait]))
        await asyncio.wait_for(both.wait(), 5)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert sorted(ended) == [0, 1]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert len(script.asked) == 1


def test_one_that_stops_the_program_cancels_the_others(served: Served) -> None:
    llm, _ = served(calls(("wait", ""), ("close", "")), says("x"))
    ended: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()

        async def wait() -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                ended.append("wait")

        async def close() -> None:
            await begun.wait()
            raise LLMClosedError("The client is closed.")

        with pytest.raises(LLMClosedError):
            await llm.arun_tools("hi", [wait, close])
        assert ended == ["wait"]

    asyncio.run(main())


def test_cancelling_ends_the_request_at_the_server() -> None:
    async def hang(request: Request, reply: Reply) -> None:
        await reply.cancelled()

    with FakeServer(hang) as server, OpenAICompatibleLLM("m", base_url=server.url) as llm:

        async def main() -> None:
            run = asyncio.create_task(llm.arun_tools("hi", [add]))
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 1)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 0)

        asyncio.run(main())


def test_what_tools_need_is_said_before_sending(served: Served, colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, script = served(says("x"))
    monkeypatch.setitem(__import__("sys").modules, "docstring_parser", None)

    def fresh() -> None: ...

    raised(LLMConfigurationError, colour, llm, tools=[fresh])
    assert script.asked == []


def test_what_cannot_be_sent_back_is_mended_in_the_transcript() -> None:
    half = "\ud83d"
    said = Message.assistant(f"a{half}", [ToolCall("1", "f", {}, f'{{"a": "{half}"}}')])
    mended = _sendable(said)
    assert mended.content == "a?"
    assert mended.tool_calls is not None
    assert mended.tool_calls[0].raw_arguments == "{}"
    assert wire_messages([mended])
