"""What a FakeServer was told to answer, through the real client: both colours, whole and streamed, on every wire."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import httpx
import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMContextLengthError,
    LLMError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMOverloadedError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMResponseError,
    LLMStatusError,
    LLMStreamTruncatedError,
    LLMTimeoutError,
    OpenAICompatibleLLM,
    RetryPolicy,
    StreamEventKind,
    ToolCall,
)
from jazz_llm.testing import Authority, FakeServer, Request

from .colours import Async, Sync

Colour = Sync | Async
WIRES = {
    "http1": {"tls": False, "http2": False},
    "http1-tls": {"tls": True, "http2": False},
    "http2": {"tls": False, "http2": True},
    "http2-tls": {"tls": True, "http2": True},
}
WHOLE, STREAM = "generate", "stream"
QUICK = RetryPolicy(initial=0.0)


class Wire:
    """A server and a client that speak one protocol."""

    def __init__(self, stack: ExitStack, authority: Authority, name: str) -> None:
        tls, self.http2 = WIRES[name]["tls"], WIRES[name]["http2"]
        self.name = name
        self.server = stack.enter_context(FakeServer(tls=authority if tls else False, http2=self.http2))
        verify = {"verify": authority.path} if tls else {}
        http2 = "prior_knowledge" if self.http2 and not tls else True
        self.llm = stack.enter_context(OpenAICompatibleLLM("m", base_url=self.server.url, http2=http2, retry=QUICK, **verify))

    def ask(self, colour: Colour, how: str, **options: Any) -> str:
        """Return what came in answer to one call."""
        if how == STREAM:
            return "".join(colour.stream(self.llm, **options)[0])
        return colour.generate(self.llm, **options).text

    def fails(self, colour: Colour, how: str, **options: Any) -> LLMError:
        """Return what one try ended with; the next call is whole again."""
        with pytest.raises(LLMError) as caught:
            self.ask(colour, how, **{"max_retries": 0, **options})
        assert self.ask(colour, how, max_retries=0) == "Hello, world!"
        return caught.value


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(stack, authority, request.param)


@pytest.fixture(params=[WHOLE, STREAM])
def how(request: pytest.FixtureRequest) -> str:
    return request.param


# --- replies


def test_answers_come_in_their_order_and_then_the_usual_one(colour: Colour, wire: Wire, how: str) -> None:
    wire.server.reply("one")
    wire.server.reply(["t", "wo"])
    assert [wire.ask(colour, how) for _ in range(3)] == ["one", "two", "Hello, world!"]
    assert {request.http_version for request in wire.server.requests} == {"HTTP/2" if wire.http2 else "HTTP/1.1"}


def test_a_list_is_the_pieces_of_a_stream_and_a_text_comes_word_by_word(colour: Colour, wire: Wire) -> None:
    wire.server.reply(["Hel", "lo wor", "ld"])
    wire.server.reply("Hello big  world\n")
    assert colour.stream(wire.llm)[0] == ["Hel", "lo wor", "ld"]
    assert "".join(colour.stream(wire.llm)[0]) == "Hello big  world\n"


def test_tool_calls_json_reasoning_and_finish(colour: Colour, wire: Wire, how: str) -> None:
    def last(**options: Any) -> Any:
        return colour.stream(wire.llm, **options)[1].response if how == STREAM else colour.generate(wire.llm, **options)

    wire.server.reply(tool_calls=[ToolCall("a", "weather", {"city": "Delft"}), {"name": "time", "arguments": "{}"}])
    response = last()
    assert [(call.id, call.name, call.arguments) for call in response.tool_calls] == [("a", "weather", {"city": "Delft"}), ("call_1", "time", {})]
    assert (response.text, response.finish_reason) == ("", "tool_calls")
    wire.server.reply(json={"names": ["red"]})
    schema = {"type": "object", "properties": {"names": {"type": "array"}}}
    assert last(response_format=schema).parsed == {"names": ["red"]}
    wire.server.reply("half an ans", reasoning="I think so", finish="length")
    response = last()
    assert (response.text, response.reasoning, response.finish_reason) == ("half an ans", "I think so", "length")


def test_a_stream_of_tool_calls_comes_in_fragments(colour: Colour, wire: Wire) -> None:
    wire.server.reply(tool_calls=[{"name": "weather", "arguments": {"city": "Delft"}}])
    events, _ = colour.events(wire.llm)
    deltas = [event.text for event in events if event.kind is StreamEventKind.TOOL_CALL_DELTA and event.text]
    assert len(deltas) > 1
    assert "".join(deltas) == '{"city":"Delft"}'


@pytest.mark.parametrize(("usage", "expected"), [
    ({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cost": 0.5}, (7, 2, False)),
    ("xai", (30, 20, False)),
    (None, (1, 3, True)),
])  # fmt: skip
def test_usage_is_sent_as_it_is(colour: Colour, wire: Wire, how: str, usage: Any, expected: tuple[int, int, bool]) -> None:
    wire.server.reply("twelve chars", usage=usage)
    response = colour.stream(wire.llm)[1].response if how == STREAM else colour.generate(wire.llm)
    assert response is not None
    counted = response.usage
    assert (counted.prompt_tokens, counted.completion_tokens, counted.estimated) == expected
    assert counted.raw == usage or usage in {"xai", None}


def test_chunks_come_at_their_times(colour: Colour) -> None:
    with FakeServer() as server, OpenAICompatibleLLM("m", base_url=server.url) as llm:
        server.reply(["a", "b", "c", "d"], delay=0.1)
        began = time.monotonic()
        response = colour.stream(llm)[1].response
        assert time.monotonic() - began >= 0.4
        assert response is not None
        assert 100 <= (response.metrics.time_to_first_token_ms or 0) < 400
        server.reply(["a", "b", "c"], delay=[0.2, 0.0])
        response = colour.stream(llm)[1].response
        assert response is not None
        assert (response.metrics.time_to_first_token_ms or 0) >= 200
        server.reply(["a", "b"], delay=0.1)
        assert colour.generate(llm).latency_ms >= 200


def test_a_reply_waits_for_a_chat_and_a_failure_for_any_request(colour: Colour, wire: Wire) -> None:
    wire.server.reply("for the chat")
    wire.server.fail(503)
    assert [model.id for model in wire.llm.list_models()] == ["fake-model"]
    assert wire.ask(colour, WHOLE) == "for the chat"
    with pytest.raises(LLMOverloadedError):
        wire.llm.with_options(max_retries=0).list_models()


def test_the_script_comes_before_the_handler(colour: Colour) -> None:
    async def handler(_: Request, reply: Any) -> None:
        await reply.text("from the handler")

    with FakeServer(handler) as server, OpenAICompatibleLLM("m", base_url=server.url) as llm:
        server.reply("from the script")
        assert [colour.generate(llm).text for _ in range(2)] == ["from the script", "from the handler"]


def test_embeddings_are_the_same_for_the_same_text(colour: Colour, wire: Wire) -> None:
    one, two, again = wire.llm.embed(["a", "b", "a"])
    assert one == again != two
    assert len(one) == 8
    assert [len(embedding) for embedding in wire.llm.embed("a", dimensions=3)] == [3]
    packed = wire.llm.embed(["a"], extra_body={"encoding_format": "base64"})
    assert packed == [one]


# --- faults: FAULTS.md, by its rows


@pytest.mark.parametrize(("status", "error"), [
    (400, LLMInvalidRequestError),
    (401, LLMAuthenticationError),
    (429, LLMRateLimitError),
    (500, LLMInternalError),
    (503, LLMOverloadedError),
])  # fmt: skip
def test_a_status_is_its_error(colour: Colour, wire: Wire, how: str, status: int, error: type[LLMStatusError]) -> None:
    wire.server.fail(status)
    caught = wire.fails(colour, how)
    assert type(caught) is error
    assert isinstance(caught, LLMStatusError)
    assert caught.status_code == status


def test_the_words_of_a_failure_count(colour: Colour, wire: Wire, how: str) -> None:
    wire.server.fail(429, code="insufficient_quota")
    assert type(wire.fails(colour, how)) is LLMQuotaExceededError
    wire.server.fail(400, code="context_length_exceeded")
    assert type(wire.fails(colour, how)) is LLMContextLengthError


def test_what_is_no_answer(colour: Colour, wire: Wire, how: str) -> None:  # row 41
    for status, body in ((200, "<html>a page</html>"), (204, None), (302, "elsewhere")):
        wire.server.fail(status, body=body, headers={"x-one": "1"})
        assert type(wire.fails(colour, how)) is LLMResponseError
    wire.server.fail(502, body="<html>bad gateway</html>")
    caught = wire.fails(colour, how)
    assert isinstance(caught, LLMInternalError)
    assert "bad gateway" in caught.body


def test_a_429_with_its_wait_and_then_an_answer(colour: Colour, wire: Wire, how: str) -> None:  # row 37
    wire.server.fail(status=429, retry_after=0.25)
    wire.server.reply("at last")
    began = time.monotonic()
    assert wire.ask(colour, how) == "at last"
    assert time.monotonic() - began >= 0.25
    assert len(wire.server.requests) == 2


def test_an_error_object_in_a_200(colour: Colour, wire: Wire, how: str) -> None:  # row 40
    wire.server.fail(200, body={"error": {"message": "overloaded", "code": 503}})
    assert isinstance(wire.fails(colour, how), LLMOverloadedError)


def test_an_error_in_the_middle_of_a_stream(colour: Colour, wire: Wire) -> None:  # row 40
    wire.server.fail(429, after="Hel")
    caught = wire.fails(colour, STREAM)
    assert isinstance(caught, LLMRateLimitError)
    assert caught.partial is not None
    assert caught.partial.text == "Hel"
    wire.server.fail(429, after="Hel")  # nobody waits for a piece of a whole answer
    assert isinstance(wire.fails(colour, WHOLE), LLMRateLimitError)


# Fault -> what comes before the answer begins, and in the middle of a stream and of a whole answer.
BEFORE = {
    "cut": {STREAM: LLMStreamTruncatedError, WHOLE: LLMResponseError},  # row 19; CONTRACT 2: an empty whole answer
    "close": {STREAM: LLMConnectionError, WHOLE: LLMConnectionError},  # row 11
    "truncate": {STREAM: LLMConnectionError, WHOLE: LLMConnectionError},  # row 18
    "reset": {STREAM: LLMConnectionError, WHOLE: LLMConnectionError},  # row 10
    "stall": {STREAM: LLMTimeoutError, WHOLE: LLMTimeoutError},  # row 24
    "garbage": {STREAM: LLMResponseError, WHOLE: LLMResponseError},  # row 23
}
MIDDLE = {
    "cut": {STREAM: LLMStreamTruncatedError, WHOLE: LLMResponseError},  # rows 19 and 41
    "close": {STREAM: LLMStreamTruncatedError, WHOLE: LLMStreamTruncatedError},  # rows 18 and 22
    "truncate": {STREAM: LLMStreamTruncatedError, WHOLE: LLMStreamTruncatedError},  # row 18
    "reset": {STREAM: LLMStreamTruncatedError, WHOLE: LLMStreamTruncatedError},  # rows 16 and 18
    "stall": {STREAM: LLMTimeoutError, WHOLE: LLMTimeoutError},  # row 25
    "garbage": {STREAM: LLMResponseError, WHOLE: LLMResponseError},  # row 23
}
READ = {"timeout": httpx.Timeout(5.0, read=0.3)}


@pytest.mark.parametrize("fault", BEFORE)
def test_a_fault_before_the_answer(colour: Colour, wire: Wire, how: str, fault: Any) -> None:
    wire.server.break_off(fault)
    caught = wire.fails(colour, how, **(READ if fault == "stall" else {}))
    assert type(caught) is BEFORE[fault][how]
    if type(caught) is LLMConnectionError:
        assert caught.maybe_processed
    if isinstance(caught, LLMTimeoutError):
        assert caught.phase == "read"


@pytest.mark.parametrize("fault", MIDDLE)
def test_a_fault_in_the_middle(colour: Colour, wire: Wire, how: str, fault: Any) -> None:
    wire.server.break_off(fault, after=["Hel", "lo"])
    caught = wire.fails(colour, how, **(READ if fault == "stall" else {}))
    assert type(caught) is MIDDLE[fault][how]
    if how == STREAM:
        assert caught.partial is not None
        assert caught.partial.text == "Hello"
    if isinstance(caught, LLMTimeoutError):
        assert caught.phase == ("between_tokens" if how == STREAM else "read")


@pytest.mark.parametrize(("fault", "clean"), [("close", True), ("truncate", False)])
def test_only_truncate_leaves_out_close_notify(authority: Authority, fault: Any, clean: bool) -> None:
    with FakeServer(tls=authority, http2=False) as server:
        server.break_off(fault, after="Hel")
        plain = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=5)
        with authority.client_context().wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            with nullcontext() if clean else pytest.raises(ssl.SSLEOFError):
                while client.recv(1000):
                    pass


only_http2 = pytest.mark.parametrize("wire", ["http2", "http2-tls"], indirect=True)


@only_http2
def test_goaway_before_the_answer_is_not_seen(colour: Colour, wire: Wire, how: str) -> None:  # row 12
    wire.server.break_off("goaway")
    wire.server.reply("on another connection")
    assert wire.ask(colour, how, max_retries=0) == "on another connection"
    assert [request.connection for request in wire.server.requests] == [1, 2]


@only_http2
def test_goaway_in_the_middle(colour: Colour, wire: Wire, how: str) -> None:  # row 14
    wire.server.break_off("goaway", after="Hel")
    caught = wire.fails(colour, how)
    assert type(caught) is LLMStreamTruncatedError
    assert wire.server.requests[-1].connection == 2


@only_http2
def test_the_codes_of_rst_stream(colour: Colour, wire: Wire, how: str) -> None:  # rows 15 to 17
    wire.server.break_off("reset", error_code=7)  # REFUSED_STREAM
    wire.server.reply("sent again")
    assert wire.ask(colour, how, max_retries=0) == "sent again"
    wire.server.break_off("reset", error_code=11)  # ENHANCE_YOUR_CALM
    assert type(wire.fails(colour, how)) is LLMRateLimitError
    wire.server.break_off("reset", after="Hel", error_code=8)
    assert "CANCEL" in str(wire.fails(colour, how))


def test_http1_has_no_goaway(authority: Authority) -> None:
    with pytest.raises(RuntimeError, match=r"HTTP/1\.1 has no GOAWAY"), ExitStack() as stack:
        wire = Wire(stack, authority, "http1")
        wire.server.break_off("goaway")
        wire.fails(Sync(), WHOLE)


def test_retries_use_the_script_up(colour: Colour, wire: Wire, how: str) -> None:
    wire.server.break_off("close")
    wire.server.fail(500)
    wire.server.reply("third time lucky")
    assert wire.ask(colour, how) == "third time lucky"
    assert len(wire.server.requests) == 3


# --- what cannot be


@pytest.mark.parametrize(("arguments", "words"), [
    ({"text": 1}, "text must be a text or a list of texts, not int"),
    ({"text": ["a", b"b"]}, "text must be"),
    ({"text": "a", "json": {}}, "one of the two"),
    ({"json": object()}, "json cannot be said as JSON"),
    ({"json": {1, 2}}, "json cannot be said as JSON"),
    ({"tool_calls": "weather"}, "tool_calls must be a list, not str"),
    ({"tool_calls": [{"arguments": {}}]}, r"tool_calls\[0\] must be a ToolCall, or a mapping"),
    ({"tool_calls": [{"name": "a", "argument": {}}]}, r"tool_calls\[0\]"),
    ({"tool_calls": [{"name": "a", "arguments": object()}]}, r"tool_calls\[0\]: arguments cannot be said"),
    ({"usage": "depseek"}, "did you mean 'deepseek'"),
    ({"usage": 7}, "usage must be a mapping"),
    ({"usage": {"n": object()}}, "the answer cannot be said"),
    ({"text": "\ud800"}, "the answer cannot be said"),
    ({"reasoning": 1}, "reasoning and finish must be text"),
    ({"finish": 1}, "reasoning and finish must be text"),
    ({"delay": -1}, "delay must be"),
    ({"delay": "1"}, "delay must be"),
    ({"delay": []}, "delay must be"),
])  # fmt: skip
def test_a_reply_that_cannot_be_is_refused_at_once(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(LLMConfigurationError, match=words):
        FakeServer().reply(**arguments)


def test_a_fault_that_cannot_be_is_refused_at_once() -> None:
    server = FakeServer()
    for status in (99, 600, "429", True):
        with pytest.raises(LLMConfigurationError, match="status must be a number from 200 to 599"):
            server.fail(status)  # type: ignore[arg-type]
    with pytest.raises(LLMConfigurationError, match="fault must be one of cut, close, truncate, reset, goaway, stall, garbage"):
        server.break_off("explode")  # type: ignore[arg-type]
    with pytest.raises(LLMConfigurationError, match="text must be"):
        server.break_off("cut", after=1)  # type: ignore[arg-type]
    with pytest.raises(LLMConfigurationError, match="body cannot be said"):
        server.fail(500, body={"a": object()})
