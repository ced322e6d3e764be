"""Typed events: what each kind holds, in which order they come, and that exactly one DONE ends every stream."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMClosedError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMContentFilterError,
    LLMError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMRateLimitError,
    LLMResponse,
    LLMResponseError,
    LLMStreamTruncatedError,
    LLMStructuredOutputError,
    LLMTimeoutError,
    LLMToolCallError,
    OpenAICompatibleLLM,
    RetryPolicy,
    StreamEvent,
    StreamEventKind,
)
from jazz_llm.response.events import EventDecoder, partial_json
from jazz_llm.testing import FakeServer, Reply, Request
from jazz_llm.testing.server import sse_chunk

from .colours import Async, Sync
from .conformance.wire import body_of, cases, decode, decoder_for, provider_of

Colour = Sync | Async
CASES = cases("stream_cases.json", "more_stream_cases.json")
ONE_ID = {"same_id_two_indexes", "id_comes_late"}  # there the id does not tell which call a piece belongs to
TOKEN, REASONING, REFUSAL, DELTA, CANDIDATE, STRUCTURED, ERROR, DONE = StreamEventKind
SSE = {"content-type": "text/event-stream"}


def said(events: list[StreamEvent]) -> list[tuple[Any, ...]]:
    """Return each event as its kind, its text and, where it is not 0, its choice."""
    return [(event.kind, event.text, event.index) if event.index else (event.kind, event.text) for event in events]


def joined(events: list[StreamEvent], kind: StreamEventKind, index: int = 0) -> str:
    return "".join(event.text for event in events if event.kind is kind and event.index == index)


# --- what an answer's bytes become


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n"


def fragment(arguments: str = "", index: int | None = 0, **more: str) -> dict[str, Any]:
    """Make a delta with a piece of a tool call; ``id`` and ``name`` begin one."""
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {"tool_calls": [{**({} if index is None else {"index": index}), **more, "function": function}]}


def decoded(*reads: bytes, end: bool = True, **arguments: Any) -> list[StreamEvent]:
    """Return the events of some reads, and of the end of the connection."""
    decoder = EventDecoder(streams=True, **arguments)
    decoder.begin({})
    events: list[StreamEvent] = []
    for read in reads:
        decoder.feed(read)
        events += decoder.events()
    if end:
        decoder.end()
        events += decoder.events()
    return events


def test_each_kind_holds_what_came_in_the_order_it_came() -> None:
    events = decoded(
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Let me "}),
        chunk({"reasoning_content": "see."}),
        chunk({"content": "It is"}),
        chunk({"content": " so"}),
        chunk(fragment(id="a", name="weather")),
        chunk(fragment('{"city": ')),
        chunk(fragment('"Rome"}')),
        chunk({"refusal": "No more."}),
        chunk({}, "tool_calls"),
    )
    assert said(events) == [
        (REASONING, "Let me "),
        (REASONING, "see."),
        (TOKEN, "It is"),
        (TOKEN, " so"),
        (DELTA, ""),
        (DELTA, '{"city": '),
        (DELTA, '"Rome"}'),
        (REFUSAL, "No more."),
        (CANDIDATE, ""),
    ]
    calls = [event.tool_call for event in events if event.tool_call]
    assert {(call.id, call.name) for call in calls} == {("a", "weather")}
    assert [(call.raw_arguments, call.arguments) for call in calls] == [
        *[("", {})] * 3,
        ('{"city": "Rome"}', {"city": "Rome"}),
    ]


@pytest.mark.parametrize("together", [False, True])
def test_all_choices_are_told_with_their_index(together: bool) -> None:
    reads = [
        chunk({"content": "a"}),
        chunk({"content": "b"}, index=1),
        chunk({"content": "c"}),
        chunk({"reasoning": "d"}, index=1),
        chunk({"content": "e"}),
        chunk({"content": "f"}),
        chunk({}, "stop", index=1),
        chunk({}, "stop"),
    ]
    events = decoded(*([b"".join(reads)] if together else reads), choices=2)
    assert said(events) == [(TOKEN, "a"), (TOKEN, "b", 1), (TOKEN, "c"), (REASONING, "d", 1), (TOKEN, "e"), (TOKEN, "f")]


def test_a_read_is_handed_over_whole() -> None:
    decoder = EventDecoder(streams=True)
    decoder.begin({})
    decoder.feed(b"".join(chunk({"content": text}) for text in "abc") + chunk({"reasoning": "r"}) + chunk({"content": "d"}))
    assert said(decoder.events()) == [(TOKEN, "a"), (TOKEN, "b"), (TOKEN, "c"), (REASONING, "r"), (TOKEN, "d")]
    assert decoder.events() == []


def test_thoughts_in_tags_are_reasoning_also_where_a_read_cuts_the_tag() -> None:
    texts = ["<thi", "nk>", "Hm, ", "no.</th", "ink>\n", "\nYes", " <b>"]
    events = decoded(*(chunk({"content": text}) for text in texts), chunk({}, "stop"))
    assert joined(events, REASONING) == "Hm, no."
    assert joined(events, TOKEN) == "Yes <b>"
    kinds = [event.kind for event in events]
    assert kinds == sorted(kinds, key=[REASONING, TOKEN].index)


def test_text_that_was_held_for_a_tag_comes_before_the_candidate() -> None:
    events = decoded(chunk({"content": "1 <"}), chunk(fragment("{}", id="a", name="f")), chunk({}, "stop"))
    assert said(events) == [(TOKEN, "1 "), (DELTA, "{}"), (TOKEN, "<"), (CANDIDATE, "")]


def test_a_call_is_told_whole_when_the_next_one_starts_and_the_last_at_the_finish() -> None:
    one, two = chunk(fragment('{"n": 1}', id="a", name="f")), chunk(fragment('{"n": 2}', 1, id="b", name="g"))
    assert said(decoded(one, two, end=False)) == [(DELTA, '{"n": 1}'), (CANDIDATE, ""), (DELTA, '{"n": 2}')]
    events = decoded(one, two, chunk({}, "tool_calls"), end=False)
    assert [(e.tool_call.id, e.tool_call.arguments) for e in events if e.kind is CANDIDATE and e.tool_call] == [("a", {"n": 1}), ("b", {"n": 2})]
    assert decoded(one, two, chunk({}, "tool_calls"), chunk({}, "tool_calls"), b"data: [DONE]\n\n")[3:] == decoded(one, two, chunk({}, "stop"))[3:]


def test_calls_of_one_chunk_are_told_each_in_its_turn() -> None:
    delta = {"tool_calls": [{"id": i, "function": {"name": "f", "arguments": f'{{"n":"{i}"}}'}} for i in "ab"]}
    events = decoded(chunk(delta, "stop"))
    assert [(e.kind, e.tool_call.id) for e in events if e.tool_call] == [(DELTA, "a"), (CANDIDATE, "a"), (DELTA, "b"), (CANDIDATE, "b")]


def test_calls_whose_pieces_alternate_are_told_at_the_finish() -> None:
    events = decoded(
        chunk(fragment(id="a", name="f")),
        chunk(fragment("{", 1, id="b", name="g")),
        chunk(fragment('{"n": 1}')),
        chunk(fragment("}", 1)),
        chunk({}, "tool_calls"),
    )
    assert [e.tool_call.raw_arguments for e in events if e.kind is CANDIDATE and e.tool_call] == ['{"n": 1}', "{}"]
    assert [e.kind for e in events][-2:] == [CANDIDATE, CANDIDATE]


def test_one_finish_after_another_costs_no_look_at_the_calls() -> None:
    half = '{"n": [' + "{}," * 20_000 + "{}"
    decoder = EventDecoder(streams=True)
    began = time.process_time()
    decoder.feed(chunk(fragment(half, id="a", name="f")) + b"".join(chunk({}, "ab"[i % 2]) for i in range(2_000)))
    assert [event.kind for event in decoder.events()] == [DELTA]
    assert time.process_time() - began < 1.0


def test_a_call_said_again_is_told_once() -> None:
    whole = chunk(fragment('{"n": 1}', id="a", name="f"))
    assert [e.kind for e in decoded(whole, whole, chunk({}, "stop"))] == [DELTA, CANDIDATE]
    begun = chunk(fragment(id="a", name="f"))
    assert [e.kind for e in decoded(begun, chunk(fragment()), begun, end=False)] == [DELTA]


def test_what_is_known_of_a_call_grows() -> None:
    events = decoded(chunk(fragment(name="wea")), chunk(fragment(name="ther")), chunk(fragment("{}", id="a")), end=False)
    assert [e.tool_call.name for e in events if e.tool_call] == ["wea", "weather", "weather"]
    assert events[-1].tool_call is not None
    assert events[-1].tool_call.id == "a"


def test_a_call_without_arguments_is_whole_at_the_end() -> None:
    events = decoded(chunk(fragment(id="a", name="f")), chunk({}, "tool_calls"), b"data: [DONE]\n\n")
    assert [(e.kind, e.tool_call.arguments) for e in events if e.tool_call] == [(DELTA, {}), (CANDIDATE, {})]


@pytest.mark.parametrize(("arguments", "finish"), [('{"n": ', chunk({}, "length")), ('{"n": ', b""), ("", b""), ("", chunk({}, "abort"))])
def test_a_half_written_call_is_no_candidate(arguments: str, finish: bytes) -> None:
    assert [e.kind for e in decoded(chunk(fragment(arguments, id="a", name="f")), finish)] == [DELTA]


def whole(message: dict[str, Any]) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()


def test_a_whole_answer_where_a_stream_was_asked_for() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    events = decoded(whole({"role": "assistant", "reasoning": "Hm.", "content": "Yes", "tool_calls": [call]}))
    assert said(events) == [(REASONING, "Hm."), (TOKEN, "Yes"), (DELTA, "{}"), (CANDIDATE, "")]


def test_thoughts_that_only_end_in_a_whole_answer_are_no_text() -> None:
    body = whole({"role": "assistant", "content": "Hm.\n</think>\n\nYes"})
    assert said(decoded(body)) == [(REASONING, "Hm."), (TOKEN, "Yes")]
    texts, answer, _ = decode(decoder_for({"provider": "generic"}), [body])
    assert (texts, answer.text, answer.reasoning) == ("Yes", "Yes", "Hm.")


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "bytes"])
def test_events_say_what_texts_and_response_say(case: dict[str, Any], cut: bool) -> None:
    body = body_of(case)
    reads = [body[i : i + 1] for i in range(len(body))] if cut else [body]
    texts, answer, error = decode(decoder_for(case), reads)
    decoder = EventDecoder(streams=case.get("stream_requested", True), provider=provider_of(case))
    decoder.begin(case.get("headers", {}))
    events: list[StreamEvent] = []
    for read in reads:
        if not decoder.over:
            decoder.feed(read)
            events += decoder.events()
    decoder.end()
    events += decoder.events()
    first = answer.choices[0].index if answer.choices else 0
    assert joined(events, TOKEN, first) == texts
    assert joined(events, REFUSAL, first) == (answer.refusal or "")
    for choice in answer.choices:
        assert joined(events, TOKEN, choice.index) == choice.text
        assert joined(events, REASONING, choice.index) == (choice.reasoning or "")
        deltas = [e for e in events if e.kind is DELTA and e.index == choice.index]
        if case["name"] not in ONE_ID:
            pieces: dict[str, str] = {}
            for event in deltas:
                assert event.tool_call is not None
                pieces[event.tool_call.id] = pieces.get(event.tool_call.id, "") + event.text
            assert list(pieces.values()) == [call.raw_arguments for call in choice.tool_calls]
        assert sorted("".join(e.text for e in deltas)) == sorted("".join(call.raw_arguments for call in choice.tool_calls))
        if error is None:
            candidates = [e.tool_call for e in events if e.kind is CANDIDATE and e.index == choice.index and e.tool_call]
            assert [(c.name, c.arguments) for c in candidates] == [(c.name, c.arguments) for c in choice.tool_calls]
    assert all(event.text for event in events if event.kind in (TOKEN, REASONING, REFUSAL))


# --- a stream, in both colours


@pytest.fixture
def script() -> list[Any]:
    """What the server does with one request after the other; after that it says Hello."""
    return []


@pytest.fixture
def llm(script: list[Any]) -> Iterator[OpenAICompatibleLLM]:
    async def handler(request: Request, reply: Reply) -> None:
        await (script.pop(0)(reply) if script else reply.sse(["Hel", "lo"]))

    retry = RetryPolicy(initial=0.0, maximum=0.0)
    with FakeServer(handler) as server, OpenAICompatibleLLM("m", base_url=server.url, retry=retry, max_retries=1) as llm:
        yield llm


HELLO = [(TOKEN, "Hel"), (TOKEN, "lo"), (DONE, "")]


def test_done_is_the_last_and_holds_the_response(llm: OpenAICompatibleLLM, colour: Colour) -> None:
    events, stream = colour.events(llm)
    assert said(events) == HELLO
    response = events[-1].response
    assert response is stream.response
    assert response is not None
    assert (response.text, response.usage.total_tokens, response.metrics.attempts) == ("Hello", 9, 1)
    assert response.metrics.time_to_first_token_ms is not None


async def half(reply: Reply) -> None:
    await reply.start(200, SSE)
    await reply.send(sse_chunk("Hel"))


async def lost(reply: Reply) -> None:
    await half(reply)
    reply.close()


async def cut(reply: Reply) -> None:
    await half(reply)
    await reply.end()


async def failing(reply: Reply) -> None:
    await half(reply)
    await reply.send(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')
    await reply.end()


async def stalled(reply: Reply) -> None:
    await half(reply)
    await reply.cancelled()


async def given_up(reply: Reply) -> None:
    await reply.sse(["Hel"], finish="abort")


async def broken(reply: Reply) -> None:
    await half(reply)
    await reply.send(b"data: {]\n\n")
    await reply.end()


async def busy(reply: Reply) -> None:
    await reply.json({"error": {"message": "slow down"}}, status=429, headers={"x-request-id": "r7"})


async def silent(reply: Reply) -> None:
    await reply.cancelled()


async def filtered(reply: Reply) -> None:
    await reply.sse([], finish="content_filter")


FAILURES: list[tuple[Callable[[Reply], Any], type[LLMError], str]] = [
    (lost, LLMConnectionError, "Hel"),
    (cut, LLMStreamTruncatedError, "Hel"),
    (failing, LLMInternalError, "Hel"),
    (stalled, LLMTimeoutError, "Hel"),
    (given_up, LLMInternalError, "Hel"),
    (broken, LLMResponseError, "Hel"),
    (busy, LLMRateLimitError, ""),
    (silent, LLMTimeoutError, ""),
    (filtered, LLMContentFilterError, ""),
]


@pytest.mark.parametrize(("fault", "kind", "text"), FAILURES, ids=lambda value: getattr(value, "__name__", "") if callable(value) else "")
def test_a_failure_is_one_error_and_then_done_with_what_had_come(
    llm: OpenAICompatibleLLM, script: list[Any], colour: Colour, fault: Any, kind: type[LLMError], text: str
) -> None:
    script += [fault, fault]
    events, stream = colour.events(llm, timeout=0.2)
    assert said(events) == [*([(TOKEN, text)] if text else []), (ERROR, ""), (DONE, "")]
    error, partial = events[-2].error, events[-1].response
    assert isinstance(error, kind)
    assert partial is not None
    assert (partial.text, partial is error.partial) == (text, error.partial is not None)
    assert stream.response is None
    assert error.attempts == (2 if fault is busy else 1)


def test_a_429_after_its_retries_ends_with_what_its_headers_said(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script += [busy, busy]
    events, _ = colour.events(llm)
    response = events[-1].response
    assert response is not None
    assert (response.request_id, response.metrics.status_code, response.metrics.attempts) == ("r7", 429, 2)


def test_no_connection_at_all_is_an_error_event_too(colour: Colour) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        llm = OpenAICompatibleLLM("m", base_url=f"http://127.0.0.1:{unused.getsockname()[1]}", max_retries=0)
        events, _ = colour.events(llm)
    assert said(events) == [(ERROR, ""), (DONE, "")]
    assert isinstance(events[0].error, LLMConnectionError)
    assert events[1].response == LLMResponse(text="")


async def failing_before_content(reply: Reply) -> None:
    await reply.start(200, SSE)
    await reply.send(sse_chunk({"role": "assistant", "content": ""}))
    await reply.send(b'data: {"error": {"message": "overloaded", "code": 503}}\n\n')
    await reply.end()


@pytest.mark.parametrize("fault", [busy, failing_before_content])
def test_tries_before_the_first_content_are_not_seen(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour, fault: Any) -> None:
    script.append(fault)
    events, stream = colour.events(llm)
    assert said(events) == HELLO
    assert stream.response is not None
    assert stream.response.metrics.attempts == 2


def test_wrong_arguments_raise_at_the_call(llm: OpenAICompatibleLLM) -> None:
    for call in (llm.stream_events, llm.astream_events):
        with pytest.raises(LLMInvalidRequestError, match="messages"):
            call([])
        with pytest.raises(TypeError, match="temprature"):
            call("hi", temprature=1)  # type: ignore[call-overload]


def test_a_missing_key_is_the_same_error_as_a_wrong_one(colour: Colour) -> None:
    events, _ = colour.events(OpenAICompatibleLLM("m"))
    assert said(events) == [(ERROR, ""), (DONE, "")]
    assert isinstance(events[0].error, LLMAuthenticationError)


def test_a_wrong_setting_raises(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", "no JSON")
    with pytest.raises(LLMConfigurationError) as caught:
        colour.events(OpenAICompatibleLLM("m"))
    assert caught.value.seen == []  # type: ignore[attr-defined]


def test_mock_mode(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["<think>Hm</think>one two"]')
    events, stream = colour.events(OpenAICompatibleLLM("m"))
    assert [event.kind for event in events] == [REASONING, TOKEN, TOKEN, DONE]
    assert (joined(events, REASONING), joined(events, TOKEN)) == ("Hm", "one two")
    assert events[-1].response is stream.response


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_what_is_no_failure_of_the_call_goes_through(colour: Colour, interrupt: type[BaseException]) -> None:
    class Interrupted(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield sse_chunk("Hel")
            raise interrupt

        async def __aiter__(self) -> Any:
            for part in self:
                yield part

    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=SSE, stream=Interrupted()))
    llm = OpenAICompatibleLLM("m", base_url="http://localhost", transport=transport, async_transport=transport)
    stream = (llm.stream_events if colour.name == "sync" else llm.astream_events)("hi")
    seen: list[StreamEvent] = []

    async def read() -> None:
        async for event in stream:  # type: ignore[union-attr]
            seen.append(event)

    with pytest.raises(interrupt):
        if colour.name == "sync":
            seen.extend(event for event in stream if seen.append(event))  # type: ignore[union-attr, func-returns-value]
        else:
            asyncio.run(read())
    assert said(seen) == [(TOKEN, "Hel")]


# --- structured output and tools


@dataclass
class City:
    name: str
    people: int


def test_structured_output_comes_before_done(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script.append(lambda reply: reply.sse(['{"name": "Rome",', ' "people": 3}']))
    events, stream = colour.events(llm, response_format=City)
    assert [event.kind for event in events] == [TOKEN, TOKEN, STRUCTURED, DONE]
    assert events[-2].parsed == City("Rome", 3)
    assert stream.response is not None
    assert stream.response.parsed is events[-2].parsed


def test_without_response_format_nothing_is_structured(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script.append(lambda reply: reply.sse(["{}"]))
    assert said(colour.events(llm)[0]) == [(TOKEN, "{}"), (DONE, "")]


def test_structured_output_that_does_not_fit_is_an_error(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script.append(lambda reply: reply.sse(['{"name": "Rome"}']))
    events, _ = colour.events(llm, response_format=City)
    assert [event.kind for event in events] == [TOKEN, ERROR, DONE]
    assert isinstance(events[1].error, LLMStructuredOutputError)
    assert events[2].response is events[1].error.partial
    assert events[2].response is not None
    assert events[2].response.text == '{"name": "Rome"}'


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
}
GOOD, BAD = '{"city": "Rome"}', '{"city": 5}'


def calling(*arguments: str, finish: str = "tool_calls") -> Callable[[Reply], Any]:
    deltas = [fragment(text, i, id=f"c{i}", name="weather") for i, text in enumerate(arguments)]
    return lambda reply: reply.sse(deltas, finish=finish)


def test_calls_that_fit_are_candidates(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script.append(calling(GOOD, GOOD))
    events, stream = colour.events(llm, tools=[WEATHER])
    assert [event.kind for event in events] == [DELTA, CANDIDATE, DELTA, CANDIDATE, DONE]
    assert stream.response is not None
    assert [event.tool_call for event in events if event.kind is CANDIDATE] == stream.response.tool_calls


def test_calls_come_before_the_structured_answer(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script.append(calling(GOOD))
    events, _ = colour.events(llm, tools=[WEATHER], response_format=City)
    assert [event.kind for event in events] == [DELTA, CANDIDATE, DONE]


@pytest.mark.parametrize(
    ("arguments", "finish", "candidates"),
    [([BAD], "tool_calls", []), ([GOOD, BAD], "tool_calls", ["c0"]), ([BAD, GOOD], "stop", ["c1"]), ([GOOD, '{"ci'], "length", ["c0"]), ([""], "tool_calls", [])],
)
def test_a_call_that_does_not_fit_is_an_error(
    llm: OpenAICompatibleLLM, script: list[Any], colour: Colour, arguments: list[str], finish: str, candidates: list[str]
) -> None:
    script.append(calling(*arguments, finish=finish))
    events, _ = colour.events(llm, tools=[WEATHER])
    assert [event.tool_call.id for event in events if event.kind is CANDIDATE and event.tool_call] == candidates
    assert [event.kind for event in events if event.kind is not CANDIDATE] == [*[DELTA] * len(arguments), ERROR, DONE]
    error, partial = events[-2].error, events[-1].response
    assert isinstance(error, LLMToolCallError)
    assert error.tool_call is not None
    assert error.tool_call.raw_arguments in arguments
    assert partial is error.partial


# --- what goes through


def test_a_cancelled_task_gets_no_done(llm: OpenAICompatibleLLM, script: list[Any]) -> None:
    script.append(stalled)
    seen: list[StreamEvent] = []

    async def main() -> None:
        first = asyncio.Event()

        async def read() -> None:
            async for event in llm.astream_events("hi"):
                seen.append(event)
                first.set()

        reader = asyncio.create_task(read())
        await asyncio.wait_for(first.wait(), 5)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(main())
    assert said(seen) == [(TOKEN, "Hel")]


@pytest.mark.parametrize("close", ["stream", "client"])
def test_closed_from_elsewhere(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour, close: str) -> None:
    """No DONE is made up: its own ``close`` ends a stream quietly, that of the client raises."""
    heard = threading.Event()

    async def listening(reply: Reply) -> None:
        await half(reply)
        heard.set()
        await reply.cancelled()

    script.append(listening)
    # The text may have been on its way still as the stream was closed.
    met = colour.close_while_reading(llm, lambda: heard.wait(5), close, "stream_events")
    assert said([event for event in met if isinstance(event, StreamEvent)]) in ([(TOKEN, "Hel")], [])
    assert [type(error) for error in met if isinstance(error, Exception)] == ([] if close == "stream" else [LLMClosedError])


def test_a_closed_client_raises_at_the_call(llm: OpenAICompatibleLLM, colour: Colour) -> None:
    stream = llm.stream_events("hi") if colour.name == "sync" else llm.astream_events("hi")
    llm.close()
    with pytest.raises(LLMClosedError):
        colour.events(llm)
    with pytest.raises(LLMClosedError):
        finished(stream)


# --- the stream itself


def finished(stream: Any) -> LLMResponse[Any]:
    """Return what ``finish`` does, in either colour."""

    async def finish() -> LLMResponse[Any]:
        response: LLMResponse[Any] = await stream.finish()
        return response

    return asyncio.run(finish()) if hasattr(stream, "aclose") else stream.finish()


def test_finish_reads_to_the_end_and_done_is_still_to_come(llm: OpenAICompatibleLLM) -> None:
    stream = llm.stream_events("hi")
    cursor = iter(stream)
    assert next(cursor).text == "Hel"
    assert stream.finish().text == "Hello"
    assert stream.finish() is stream.response
    rest = list(cursor)
    assert [event.kind for event in rest][-1:] == [DONE]
    assert joined(rest, TOKEN) in ("", "lo")  # of the read under way


def test_finish_first_leaves_only_done(llm: OpenAICompatibleLLM, colour: Colour) -> None:
    async def afterwards() -> tuple[LLMResponse[Any], list[StreamEvent]]:
        stream = llm.astream_events("hi")
        return await stream.finish(), [event async for event in stream]

    stream = llm.stream_events("hi")
    response, events = asyncio.run(afterwards()) if colour.name == "async" else (stream.finish(), list(stream))
    assert response.text == "Hello"
    assert said(events) == [(DONE, "")]
    assert events[0].response is response


def test_finish_raises_what_the_error_event_tells(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script += [failing, failing]
    events, stream = colour.events(llm)
    with pytest.raises(LLMInternalError) as caught:
        finished(stream)
    assert caught.value is events[-2].error
    with pytest.raises(LLMInternalError):
        finished(llm.stream_events("hi") if colour.name == "sync" else llm.astream_events("hi"))


def test_with_opens_and_what_fails_there_is_an_event(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script += [busy, busy]

    async def inside() -> list[StreamEvent]:
        async with llm.astream_events("hi") as stream:
            assert script == []
            return [event async for event in stream]

    if colour.name == "async":
        events = asyncio.run(inside())
    else:
        with llm.stream_events("hi") as stream:
            assert script == []
            events = list(stream)
    assert said(events) == [(ERROR, ""), (DONE, "")]


def test_the_request_goes_out_at_the_first_event_and_once(llm: OpenAICompatibleLLM, script: list[Any]) -> None:
    async def noted(reply: Reply) -> None:
        await reply.sse(["Hel", "lo"])

    script.append(noted)
    stream = llm.stream_events("hi")
    cursor = iter(stream)
    assert (script, stream.response, stream.parsed_so_far) == ([noted], None, None)
    next(cursor)
    assert script == []
    with pytest.raises(RuntimeError, match="once"):
        iter(stream)


def test_two_readers_are_one_too_many(llm: OpenAICompatibleLLM, script: list[Any]) -> None:
    script.append(stalled)

    async def main() -> None:
        stream = llm.astream_events("hi")
        cursor = aiter(stream)
        await anext(cursor)
        reader = asyncio.ensure_future(anext(cursor))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reader"):
            await stream.finish()
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await reader

    asyncio.run(main())


def test_events_come_as_the_server_sends_them(llm: OpenAICompatibleLLM, script: list[Any]) -> None:
    go_on = threading.Event()

    async def waiting(reply: Reply) -> None:
        await half(reply)
        assert await asyncio.to_thread(go_on.wait, 5)
        await reply.send(sse_chunk("lo") + sse_chunk({}, "stop") + b"data: [DONE]\n\n")
        await reply.end()

    script.append(waiting)
    cursor = iter(llm.stream_events("hi"))
    assert next(cursor).text == "Hel"
    go_on.set()
    assert said(list(cursor)) == HELLO[1:]


# --- half-written JSON


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("  ", None),
        ("{", {}),
        ('{"na', {}),
        ('{"name": "Al', {"name": "Al"}),
        ('{"name": "Alan", "born": 1912, "machines": [{"name": "Bom', {"name": "Alan", "born": 1912, "machines": [{"name": "Bom"}]}),
        ('\n```json\n{"name": "Al', {"name": "Al"}),
        ('```json\n{"name": "Alan"}\n```', {"name": "Alan"}),
        ("```js", None),
        ("Sure, here", None),
        ("[" * 100_000, None),
        ('{"name": "\ud800', {"name": "?"}),
    ],
)
def test_half_written_json(text: str, value: Any) -> None:
    assert partial_json(text) == value


def test_parsed_so_far_grows_with_the_stream(llm: OpenAICompatibleLLM, script: list[Any], colour: Colour) -> None:
    script.append(lambda reply: reply.sse(['{"city": "Ro', 'me", "days"', ": [1, 2", "]}"], delay=0.02))
    stream = llm.stream_events("hi") if colour.name == "sync" else llm.astream_events("hi")
    seen: list[Any] = []

    async def read() -> None:
        async for _ in stream:  # type: ignore[union-attr]
            seen.append(stream.parsed_so_far)

    if colour.name == "sync":
        for _ in stream:  # type: ignore[union-attr]
            seen.append(stream.parsed_so_far)
    else:
        asyncio.run(read())
    assert seen[0] == {"city": "Ro"}
    assert {"city": "Rome"} in seen
    assert seen[-1] == {"city": "Rome", "days": [1, 2]}


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_core", None)
    with pytest.raises(LLMConfigurationError, match=r"jazz_llm\[schema\]"):
        partial_json("{}")


# --- a real server


def test_llamacpp_says_the_same_in_events_as_in_texts(tiny_model: str, colour: Colour) -> None:
    with OpenAICompatibleLLM("tiny", base_url=tiny_model, seed=7, temperature=0.9, max_tokens=50) as llm:
        texts, _ = colour.stream(llm)
        events, stream = colour.events(llm)
    assert len(events) > 2
    assert joined(events, TOKEN) == "".join(texts)
    assert [event.kind for event in events if event.kind is not TOKEN] == [DONE]
    assert stream.response is not None
    assert stream.response.text == "".join(texts)
