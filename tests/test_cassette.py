"""Record against a real server, then replay with that server gone: the same calls must come out the same."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import gzip
import inspect
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import httpx
import pytest
import yaml

from jazz_llm import (
    LLMAuthenticationError,
    LLMClosedError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMError,
    LLMInternalError,
    LLMOverloadedError,
    LLMResponse,
    LLMResponseError,
    LLMStreamTruncatedError,
    LLMTimeoutError,
    OpenAICompatibleLLM,
    RetryPolicy,
    StreamEvent,
    streams,
)
from jazz_llm.client import _Shared
from jazz_llm.providers import BY_NAME
from jazz_llm.testing import FakeServer, Reply, Request, cassette, cassettes, sse_chunk
from jazz_llm.testing.cassette_calls import Played
from jazz_llm.testing.cassette_secrets import Secrets

from .colours import Async, Sync
from .conformance.wire import body_of, cases, provider_of

Colour = Sync | Async
KEY = "sk-canary_0123456789"
PROTOCOLS: dict[str, dict[str, Any]] = {"HTTP/1.1": {}, "HTTP/2": {"http2": "prior_knowledge"}}


class Weather(TypedDict):
    """What the structured answer is."""

    city: str
    degrees: int


def degrees(city: str) -> int:
    """Return the temperature in a city."""
    return len(city)


def client(url: str, **arguments: Any) -> OpenAICompatibleLLM:
    return OpenAICompatibleLLM("m", base_url=url, **{"retry": RetryPolicy(initial=0.01), **arguments})


def call(colour: Colour, llm: OpenAICompatibleLLM, name: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of that name, or its async twin in a loop of its own."""
    if isinstance(colour, Sync):
        return getattr(llm, name)(*arguments, **options)
    result = getattr(llm, f"a{name}")(*arguments, **options)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def outcome(use: Callable[[], Any]) -> Any:
    """Return what a call brings, or what it raises, but for the times in it."""
    try:
        return plain(use())
    except LLMError as error:
        return type(error), error.partial and plain(error.partial), getattr(error, "seen", None), fields_of(error)


def fields_of(error: LLMError) -> dict[str, Any]:
    fields = {name: value for name, value in vars(error).items() if name not in ("partial", "seen", "headers")}
    kept = Secrets().headers(getattr(error, "headers", {}))
    kept.pop("content-encoding", None)  # what was compressed is stored plain
    return {**fields, "headers": kept}


def plain(result: Any) -> Any:
    if isinstance(result, tuple) and hasattr(result[-1], "response"):  # items and stream
        items = [(e.kind, e.text, e.tool_call, e.parsed, e.error and (type(e.error), fields_of(e.error))) if isinstance(e, StreamEvent) else e for e in result[0]]
        return items, plain(result[1].response)
    if not isinstance(result, LLMResponse):
        return result
    metrics = result.metrics
    # Not response_bytes: what a read brings behind the end may be a read of its own in the file.
    told = (metrics.status_code, metrics.http_version, metrics.attempts, metrics.request_bytes)
    return result.raw, result.text, result.usage, result.tool_calls, result.parsed, result.finish_reason, result.request_id, result.rate_limits, told


def twice(tmp_path: Path, handler: Any, use: Callable[[OpenAICompatibleLLM], Any], *, script: Callable[[FakeServer], object] | None = None, **arguments: Any) -> Any:
    """Record what ``use`` does with a server, replay it without one, and see that both come out the same; return that."""
    file = tmp_path / "t.yaml"
    with FakeServer(handler) as server:
        if script is not None:
            script(server)
        with client(server.url, **arguments) as llm, cassette(file):
            first = outcome(lambda: use(llm))
    with client(server.url, **arguments) as llm, cassette(file, mode="none"):
        assert outcome(lambda: use(llm)) == first
        assert llm._shared._pool is None
        assert llm._shared._apool is None
    return first


def held(tmp_path: Path) -> list[Any]:
    return yaml.safe_load((tmp_path / "t.yaml").read_text("utf-8"))["exchanges"]


async def serve(request: Request, reply: Reply) -> None:
    """Answer each kind of request; the pieces of a stream are cut within its characters."""
    body = request.json() if request.body else {}
    headers = {"x-request-id": "r-1", "x-ratelimit-remaining-requests": "7", "set-cookie": "session=0123456789abc"}
    if request.path.endswith("/models"):
        await reply.json({"object": "list", "data": [{"id": "m-1"}, {"id": "m-2"}]}, headers=headers)
    elif request.path.endswith("/embeddings"):
        await reply.json({"data": [{"index": i, "embedding": [0.5, -1e-07, i]} for i in range(len(body["input"]))]}, headers=headers)
    elif body.get("tools") and body["messages"][-1]["role"] == "user":
        call = {"id": "c1", "type": "function", "function": {"name": "degrees", "arguments": '{"city": "Köln"}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        await reply.json({"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}, headers=headers)
    elif body.get("stream"):
        await reply.start(200, {"content-type": "text/event-stream", **headers})
        text = '{"city":"Köln 😀","degrees":4}' if "response_format" in body else "Grüße, 😀!"
        whole = b"".join(map(sse_chunk, text)) + sse_chunk({}, "stop") + b"data: [DONE]\n\n"
        for i in range(0, len(whole), 97):
            await reply.send(whole[i : i + 97])
        await reply.end()
    else:
        text = '{"city":"Köln","degrees":4}' if "response_format" in body else "Grüße"
        message = {"role": "assistant", "content": text}
        await reply.json({"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}, headers=headers)


USES: dict[str, Callable[[Colour, OpenAICompatibleLLM], Any]] = {
    "generate": lambda colour, llm: colour.generate(llm),
    "stream": lambda colour, llm: colour.stream(llm),
    "events": lambda colour, llm: colour.events(llm),
    "structured": lambda colour, llm: colour.generate(llm, response_format=Weather),
    "structured events": lambda colour, llm: colour.events(llm, response_format=Weather),
    "tools": lambda colour, llm: call(colour, llm, "run_tools", "How warm is it?", [degrees]),
    "list_models": lambda colour, llm: call(colour, llm, "list_models"),
    "embed": lambda colour, llm: call(colour, llm, "embed", ["a", "b", "c"], batch_size=2),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("use", USES)
def test_every_call_is_replayed_with_the_server_gone(tmp_path: Path, colour: Colour, protocol: str, use: str) -> None:
    result = twice(tmp_path, serve, lambda llm: USES[use](colour, llm), **PROTOCOLS[protocol])
    assert isinstance(result, list) or result[0] is not LLMConfigurationError
    assert {exchange["answer"]["http_version"] for exchange in held(tmp_path)} == {protocol}
    assert not any(exchange["answer"].get("left") for exchange in held(tmp_path))
    assert len(held(tmp_path)) == (2 if use in ("tools", "embed") else 1)


# --- failures -----------------------------------------------------------------------------------------------------------------


def overloaded(server: FakeServer) -> None:
    server.fail(429, retry_after=0.01, headers={"set-cookie": "a=b"})
    server.fail(503)
    server.reply("Hello")


@pytest.mark.parametrize("use", ["generate", "stream", "events"])
def test_retries_are_replayed_as_they_came(tmp_path: Path, colour: Colour, use: str) -> None:
    result = twice(tmp_path, None, lambda llm: USES[use](colour, llm), script=overloaded)
    answer = result if use == "generate" else result[1]
    assert answer[1] == "Hello"
    assert answer[-1][2] == 3  # attempts
    assert [exchange["answer"]["status"] for exchange in held(tmp_path)] == [429, 503, 200]


def test_a_replay_does_not_wait_between_tries_and_one_at_pace_does(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        server.fail(429, retry_after=0.3)
        colour.generate(llm)
    for pace, wait, fits in ((True, "0.3", lambda s: s >= 0.3), (False, "60", lambda s: s < 30)):
        document = yaml.safe_load((tmp_path / "t.yaml").read_text("utf-8"))
        document["exchanges"][0]["answer"]["headers"]["retry-after"] = wait
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(document), "utf-8")
        began = time.monotonic()
        with client(server.url) as llm, cassette(tmp_path / "t.yaml", pace=pace):
            assert colour.generate(llm).metrics.attempts == 2
        assert fits(time.monotonic() - began)


def test_a_wait_up_to_a_date_is_the_same_wait_later(tmp_path: Path, colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        server.fail(503, retry_after=date)
        with pytest.raises(LLMOverloadedError):
            colour.generate(llm)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"), pytest.raises(LLMOverloadedError) as caught:
        colour.generate(llm)
    assert caught.value.retry_after == pytest.approx(3600, abs=10)


def test_a_refused_connection_then_an_answer(tmp_path: Path, colour: Colour) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with client(url, max_retries=1) as llm, cassette(tmp_path / "t.yaml"):
        first = outcome(lambda: colour.generate(llm))
    with client(url, max_retries=1) as llm, cassette(tmp_path / "t.yaml"):
        assert outcome(lambda: colour.generate(llm)) == first
    assert first[0] is LLMConnectionError
    assert (first[3]["attempts"], first[3]["maybe_processed"]) == (2, False)
    assert [exchange["answer"]["error"]["type"] for exchange in held(tmp_path)] == ["LLMConnectionError"] * 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("use", ["stream", "events"])
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (lambda server: server.break_off("close", after="Hel"), LLMStreamTruncatedError),
        (lambda server: server.break_off("reset", after="Hel"), LLMStreamTruncatedError),
        (lambda server: server.break_off("cut", after="Hel"), LLMStreamTruncatedError),
        (lambda server: server.break_off("garbage", after="Hel"), (LLMResponseError, LLMStreamTruncatedError)),
        (lambda server: server.break_off("stall", after="Hel"), LLMTimeoutError),
        (lambda server: server.fail(500), LLMInternalError),
    ],
    ids=["close", "reset", "cut", "garbage", "stall", "500"],
)
def test_a_broken_answer_breaks_in_the_same_way(tmp_path: Path, colour: Colour, protocol: str, use: str, script: Any, kind: Any) -> None:
    result = twice(tmp_path, None, lambda llm: USES[use](colour, llm), script=script, timeout=1.0, max_retries=0, **PROTOCOLS[protocol])
    if use == "stream":
        assert issubclass(result[0], kind)
        assert result[2] == ([] if kind is LLMInternalError else ["Hel"])
    else:
        assert [item[0].name for item in result[0]][-2:] == ["ERROR", "DONE"]


def test_an_error_within_a_stream(tmp_path: Path, colour: Colour) -> None:
    async def failing(request: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(sse_chunk("Hel") + b'data: {"error": {"message": "busy", "code": 503}}\n\n')
        await reply.end()

    kind, partial, seen, _ = twice(tmp_path, failing, colour.stream)
    assert (kind, partial[1], seen) == (LLMOverloadedError, "Hel", ["Hel"])


@pytest.mark.parametrize(("coding", "body"), [("gzip", b"no gzip"), ("gzip", gzip.compress(b'{"a": 1}' * 99)[:-20]), ("br", b"anything")])
def test_a_body_that_cannot_be_decompressed(tmp_path: Path, colour: Colour, coding: str, body: bytes) -> None:
    async def packed(request: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "application/json", "content-encoding": coding})
        await reply.send(body)
        await reply.end()

    assert twice(tmp_path, packed, colour.generate, max_retries=0)[0] is LLMResponseError


def test_each_replayed_error_is_a_new_one(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url, max_retries=0) as llm, cassette(tmp_path / "t.yaml"):
        server.break_off("close")
        with contextlib.suppress(LLMError):
            colour.generate(llm)
    caught = []
    for _ in range(2):
        with client(server.url, max_retries=0) as llm, cassette(tmp_path / "t.yaml"), pytest.raises(LLMConnectionError) as raised:
            colour.generate(llm)
        caught.append(raised.value)
    assert caught[0] is not caught[1]


WIRE = {
    **{case["name"]: (200, case.get("headers", {}), body_of(case), provider_of(case)) for case in cases("stream_cases.json", "more_stream_cases.json")},
    **{case["id"]: (case["status"], case["headers"], case["body"].encode(), provider_of(case)) for case in cases("error_cases.json", "more_error_cases.json")},
}


def test_what_providers_really_send_is_replayed_as_it_came(tmp_path: Path) -> None:
    async def say(request: Request, reply: Reply) -> None:
        status, headers, body, _ = WIRE[request.json()["messages"][0]["content"]]
        await reply.start(status, {"content-type": "text/event-stream", **headers})
        for at in range(0, len(body), 100):
            await reply.send(body[at : at + 100])
        await reply.end()

    def ask(llm: OpenAICompatibleLLM) -> list[str]:
        copies = {name: llm.with_options(provider=row[3]) if row[3] in BY_NAME else llm for name, row in WIRE.items()}
        outcomes = (repr((name, outcome(lambda llm=llm, name=name: Sync().events(llm, name)))) for name, llm in copies.items())
        # Ids that were made here, and seconds up to a date.
        return [re.sub(r"call_[0-9a-f]{24}|'retry_after': \d+\.\d{4,}", "", text) for text in outcomes]

    first = twice(tmp_path, say, ask, max_retries=0)
    assert len(held(tmp_path)) == len(first) == len(WIRE) > 250


# --- leaving early ------------------------------------------------------------------------------------------------------------


def test_a_stream_that_was_left_early(tmp_path: Path, colour: Colour) -> None:
    async def slow(request: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(sse_chunk("a") + sse_chunk("b")[:-5])
        await reply.cancelled()

    with FakeServer(slow) as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        colour.leave_early(llm)
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        colour.leave_early(llm)
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"), pytest.raises(LLMConfigurationError, match=r"when it was recorded, the call was left after [12] of its reads\.") as caught:
        colour.stream(llm)
    assert caught.value.seen == ["a"]
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"


def test_a_call_that_was_cancelled_before_an_answer_came(tmp_path: Path) -> None:
    async def silent(request: Request, reply: Reply) -> None:
        await reply.cancelled()

    async def give_up(llm: OpenAICompatibleLLM, server: FakeServer) -> None:
        task = asyncio.create_task(llm.agenerate("hi"))
        await asyncio.to_thread(server.wait_for, lambda server: server.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FakeServer(silent) as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        asyncio.run(give_up(llm, server))
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"), pytest.raises(LLMConfigurationError, match="left before an answer came"):
        llm.generate("hi")


@pytest.mark.parametrize("close", ["stream", "client"])
def test_closing_while_a_replay_at_pace_waits(tmp_path: Path, colour: Colour, close: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, waits = Played._until_read, threading.Event()

    def until_read(played: Played) -> float:
        seconds = real(played)
        if seconds > 1:
            waits.set()
        return seconds

    monkeypatch.setattr(Played, "_until_read", until_read)
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        server.reply(["a", "b"], delay=0.3)
        llm.stream("hi").finish()
    slow_down(tmp_path, after=1)
    with client(server.url) as llm, cassette(tmp_path / "t.yaml", pace=True):
        met = colour.close_while_reading(llm, lambda: waits.wait(5), close)
    assert waits.is_set()
    errors = [item for item in met if isinstance(item, Exception)]
    assert [type(error) for error in errors] == ([] if close == "stream" else [LLMClosedError])


# --- pace ---------------------------------------------------------------------------------------------------------------------


def slow_down(tmp_path: Path, after: int) -> None:
    """Have a cassette say that some reads came at once, and what follows after a minute."""
    document = yaml.safe_load((tmp_path / "t.yaml").read_text("utf-8"))
    answer = document["exchanges"][0]["answer"]
    answer["at"] = 0
    for i, read in enumerate(answer["reads"]):
        read["at"] = 0 if i < after else 60
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(document), "utf-8")


def test_recorded_pace(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        server.reply(["a", "b", "c"], delay=0.1)
        colour.stream(llm)
    times = [read["at"] for read in held(tmp_path)[0]["answer"]["reads"]]
    assert times == sorted(times)
    assert times[-1] - times[0] >= 0.19
    for pace, fits in ((True, lambda s: s >= 0.28), (False, lambda s: s < 30)):
        with client(server.url) as llm, cassette(tmp_path / "t.yaml", pace=pace):
            began = time.monotonic()
            assert colour.stream(llm)[0] == ["a", "b", "c"]
            assert fits(time.monotonic() - began)
        slow_down(tmp_path, after=1)


def test_a_replay_at_pace_keeps_to_the_timeouts(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        server.reply(["a", "b"], delay=[0.0, 0.3])
        colour.stream(llm)
    slow_down(tmp_path, after=1)
    with client(server.url, timeout=0.5) as llm, cassette(tmp_path / "t.yaml", pace=True), pytest.raises(LLMTimeoutError) as caught:
        colour.stream(llm)
    assert (caught.value.phase, caught.value.seen) == ("between_tokens", ["a"])
    with client(server.url, deadline=0.2) as llm, cassette(tmp_path / "t.yaml", pace=True), pytest.raises(LLMTimeoutError) as caught:
        colour.stream(llm)
    assert caught.value.phase == "deadline"


def test_a_whole_answer_at_pace_keeps_to_the_timeouts(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        colour.generate(llm)
    slow_down(tmp_path, after=0)
    began = time.monotonic()
    with client(server.url, timeout=httpx.Timeout(0.1, pool=30)) as llm, cassette(tmp_path / "t.yaml", pace=True), pytest.raises(LLMTimeoutError) as caught:
        colour.generate(llm)
    assert caught.value.phase == "read"
    assert time.monotonic() - began < 30


# --- what is replayed for what ------------------------------------------------------------------------------------------------


def test_a_changed_request_says_what_differs(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        colour.generate(llm, "Say hello", temperature=0.5)
        colour.generate(llm, "Say goodbye", temperature=0.5)
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        with pytest.raises(LLMConfigurationError) as caught:
            colour.generate(llm, "Say goodbye", temperature=0.7)
        assert colour.generate(llm, "Say goodbye", temperature=0.5).text  # what it holds is still there
    assert str(caught.value) == (
        f"{tmp_path / 't.yaml'} holds no answer to this request. The nearest of its 2 requests, number 2, differs in:\n"
        '  -   "temperature": 0.5\n'
        '  +   "temperature": 0.7\n'
        'To record again, delete the file and run with mode="once".'
    )
    assert caught.value.attempts == 1


def test_the_same_request_gets_its_answers_in_order(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        for text in ("one", "two"):
            server.reply(text)
            colour.generate(llm)
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        assert [colour.generate(llm).text for _ in range(2)] == ["one", "two"]
        with pytest.raises(LLMConfigurationError, match="holds this request 2 times, and this is time 3"):
            colour.generate(llm)


def test_both_colours_share_a_cassette(tmp_path: Path) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        Sync().generate(llm)
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        assert Async().generate(llm).text


def test_mode_none_never_records(tmp_path: Path) -> None:
    with pytest.raises(LLMConfigurationError, match='does not exist, and mode="none" records nothing'), cassette(tmp_path / "t.yaml", mode="none"):
        pytest.fail("the body must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_mode_is_named(tmp_path: Path) -> None:
    with pytest.raises(LLMConfigurationError, match="mode must be"), cassette(tmp_path / "t.yaml", mode="all"):  # type: ignore[arg-type]
        pytest.fail("the body must not run")


def test_it_is_no_decorator() -> None:
    """One would end before the body of an async function begins, which would then call the paid server."""
    assert not callable(cassette("t.yaml"))


def test_one_object_records_and_then_replays(tmp_path: Path) -> None:
    once = cassette(tmp_path / "t.yaml")
    with FakeServer() as server, client(server.url) as llm:
        for _ in range(2):
            with once as file:
                llm.generate("hi")
            assert file == tmp_path / "t.yaml"
    assert len(server.requests) == 1


def test_without_asyncio_a_replay_says_so(tmp_path: Path) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        llm.generate("hi")
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"), pytest.raises(LLMConfigurationError, match="trio"):
        llm.agenerate("hi").send(None)


def test_a_call_while_no_cassette_runs_is_as_ever(tmp_path: Path) -> None:
    real = (_Shared.pool, _Shared.apool, streams.ask_key, streams.ask_key_async)
    with FakeServer() as server, client(server.url) as llm:
        with cassette(tmp_path / "t.yaml"):
            llm.generate("hi")
        assert (_Shared.pool, _Shared.apool, streams.ask_key, streams.ask_key_async) == real
        assert not cassettes._running
        llm.generate("hi")
        with pytest.raises(ZeroDivisionError), cassette(tmp_path / "other.yaml"):
            raise ZeroDivisionError
        assert (_Shared.pool, _Shared.apool, streams.ask_key, streams.ask_key_async) == real
    assert len(server.requests) == 2
    assert len(held(tmp_path)) == 1


# --- keys ---------------------------------------------------------------------------------------------------------------------


def test_a_replay_needs_no_key(tmp_path: Path, colour: Colour) -> None:
    answer = httpx.Response(200, json={"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]})
    with OpenAICompatibleLLM("m", KEY, **{colour.transport_argument: httpx.MockTransport(lambda _: answer)}) as llm, cassette(tmp_path / "t.yaml"):
        colour.generate(llm)
    with OpenAICompatibleLLM("m") as llm:
        with pytest.raises(LLMAuthenticationError, match="OPENAI_API_KEY"):
            colour.generate(llm)
        with cassette(tmp_path / "t.yaml"):
            assert colour.generate(llm).text == "Hello"


def test_a_key_function_is_not_asked_by_a_replay(tmp_path: Path, colour: Colour) -> None:
    asked = []

    def key() -> str:
        asked.append(1)
        return KEY

    def use(llm: OpenAICompatibleLLM) -> Any:
        http = call(colour, llm.client, "get", "/v1/models") if isinstance(colour, Sync) else None
        return colour.generate(llm).text, http and http.json()

    twice(tmp_path, serve, use, api_key=key)
    assert len(asked) == len(held(tmp_path))


def test_a_call_that_finds_no_key_is_not_recorded(tmp_path: Path, colour: Colour) -> None:
    def key() -> str:
        raise LLMConfigurationError("no key")

    with FakeServer() as server, client(server.url, api_key=key) as llm, cassette(tmp_path / "t.yaml"):
        with pytest.raises(LLMConfigurationError, match="no key"):
            colour.generate(llm)
    assert list(tmp_path.iterdir()) == []


async def echo(request: Request, reply: Reply) -> None:
    """Say everything back that is secret, in every way there is."""
    key = request.headers["authorization"].removeprefix("Bearer ")
    headers = {"set-cookie": "session=cookie-value-1; HttpOnly", "openai-organization": "acme-laboratories", "x-request-id": key, "x-key": key}
    if request.path.endswith("/models"):
        packed = gzip.compress(f'{{"data": [{{"id": "{key}"}}]}}'.encode())
        await reply.start(200, {"content-type": "application/json", "content-encoding": "gzip", **headers})
        await reply.send(packed)
    elif not request.json().get("stream"):
        body = {"error": {"message": f"Incorrect API key provided: {key}; of {request.headers['openai-organization']}; {request.headers['cookie']}"}}
        return await reply.json(body, 401, headers)
    else:
        await reply.start(200, {"content-type": "text/event-stream", **headers})
        for piece in ("Your key: ", key[:5], key[5:6], key[6:]):
            await reply.send(sse_chunk(piece))
        said = f': {key}\n\ndata: {{"error": {{"message": "acme-laboratories cookie-value-1 my-organization cookie-value-0 {key}"}}}}\n\n'.encode()
        for i in range(0, len(said), 9):
            await reply.send(said[i : i + 9])
            await asyncio.sleep(0.005)
    await reply.end()


def test_nothing_secret_touches_the_disk(tmp_path: Path, colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    real_write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda self, text, *more, **named: (written.append(text.encode()), real_write(self, text, *more, **named))[1])
    headers = {"OpenAI-Organization": "my-organization", "OpenAI-Project": "my-project-01", "Cookie": "a=cookie-value-0"}
    with FakeServer(echo) as server, client(server.url, api_key=KEY, default_headers=headers, default_query={"api_key": "query-secret"}, extra_body={"session_token": "body-secret", "note": KEY}) as llm:
        with cassette(tmp_path / "t.yaml"):
            for use in ("generate", "stream", "list_models"):
                with contextlib.suppress(LLMError):
                    USES[use](colour, llm)
    found = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]
    secrets = (KEY, KEY[6:], "my-organization", "my-project-01", "cookie-value-0", "cookie-value-1", "acme-laboratories", "query-secret", "body-secret")
    for secret in secrets:
        assert secret.encode() not in found
        assert not any(secret.encode() in text for text in written)
    assert b"Your key: " in found
    assert len(written) == 1
    assert len(held(tmp_path)) == 3
    with client(server.url, default_query={"api_key": "another"}, extra_body={"session_token": "another", "note": "another"}) as llm, cassette(tmp_path / "t.yaml"):
        with pytest.raises(LLMError) as caught:
            colour.generate(llm)
        assert "<stripped>" in str(caught.value)
        assert [model.id for model in call(colour, llm, "list_models")] == ["<stripped>"]


def test_what_differs_shows_no_key(tmp_path: Path, colour: Colour) -> None:
    key = "canary.0123456789"  # of no shape that is known
    with FakeServer() as server, client(server.url, api_key=key) as llm, cassette(tmp_path / "t.yaml"):
        colour.generate(llm)
    with client(server.url, api_key=key) as llm, cassette(tmp_path / "t.yaml"), pytest.raises(LLMConfigurationError) as caught:
        colour.generate(llm, f"My key is {key[:3]}", extra_body={"note": f"or {key}"})
    assert '"note": "or <stripped>"' in str(caught.value)
    assert key not in str(caught.value)


def test_no_traceback_shows_a_key(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url, api_key=KEY) as llm:
        with cassette(tmp_path / "t.yaml"):
            colour.generate(llm)
        with cassette(tmp_path / "t.yaml"), pytest.raises(LLMConfigurationError) as caught:
            colour.generate(llm, "changed")
        with pytest.raises(LLMConfigurationError) as unsaved, cassette(tmp_path / "a" / "b.yaml"):
            colour.generate(llm)
            (tmp_path / "a" / "b.yaml").mkdir()
            (tmp_path / "a" / "b.yaml" / "full").touch()
    for error in (caught.value, unsaved.value):
        assert KEY not in "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "cannot be written" in str(unsaved.value)
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b.yaml"]


# --- files --------------------------------------------------------------------------------------------------------------------


def test_a_recording_whose_body_raises_is_not_saved(tmp_path: Path, colour: Colour) -> None:
    with FakeServer() as server, client(server.url) as llm:
        with pytest.raises(ZeroDivisionError), cassette(tmp_path / "t.yaml"):
            colour.generate(llm)
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == []
        with cassette(tmp_path / "t.yaml"):  # so that it is recorded now
            colour.generate(llm)
    assert len(held(tmp_path)) == 1


def test_a_body_that_asks_nothing_leaves_no_file(tmp_path: Path) -> None:
    with cassette(tmp_path / "t.yaml"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with FakeServer() as server, client(server.url) as llm:
        with pytest.raises(LLMConfigurationError, match=r"t\.yaml cannot be written: .*'.*/file'"), cassette(tmp_path / "file" / "t.yaml"):
            llm.generate("hi")
    assert not server.requests


def test_an_existing_file_is_replaced_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with FakeServer() as server, client(server.url) as llm, pytest.raises(LLMConfigurationError, match="No space left"), cassette(tmp_path / "t.yaml"):
        llm.generate("hi")
        monkeypatch.setattr(Path, "replace", full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"interactions: []\nversion: 1\n", b"format: jazz_llm cassette 1\nexchanges:\n- request: {", b"\x00" * 100])
def test_a_file_that_is_no_cassette(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.yaml").write_bytes(data)
    with pytest.raises(LLMConfigurationError, match=r"t\.yaml is no cassette that can be replayed: .*\. To record again, delete it\."), cassette(tmp_path / "t.yaml"):
        pytest.fail("the body must not run")
    assert (tmp_path / "t.yaml").read_bytes() == data


def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    with pytest.raises(LLMConfigurationError, match="Is a directory"), cassette(tmp_path):
        pytest.fail("the body must not run")


def test_a_huge_answer(tmp_path: Path, colour: Colour) -> None:
    text = "0123456789 Grüße 😀\n" * 200_000

    async def huge(request: Request, reply: Reply) -> None:
        await reply.text(text)

    result = twice(tmp_path, huge, colour.generate)
    assert result[1] == text


# --- threads, loops, nesting ----------------------------------------------------------------------------------------------------


async def repeat(request: Request, reply: Reply) -> None:
    text = request.json()["messages"][0]["content"]
    await reply.sse([text[:1], text[1:]], delay=0.001)


def ask_from_threads(llm: OpenAICompatibleLLM) -> dict[str, str]:
    """Ask from two threads and from two loops in threads at once."""
    got: dict[str, str] = {}

    def ask(name: str) -> None:
        for i in range(10):
            got[f"{name}{i}"] = llm.stream(f"{name}{i}").finish().text

    async def aask(name: str) -> None:
        async def one(i: int) -> None:
            got[f"{name}{i}"] = (await llm.astream(f"{name}{i}").finish()).text

        await asyncio.gather(*map(one, range(10)))

    threads = [threading.Thread(target=ask, args=(name,)) for name in "ab"]
    threads += [threading.Thread(target=lambda name=name: asyncio.run(aask(name))) for name in "cd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return got


def test_threads_and_loops_at_once(tmp_path: Path) -> None:
    expected = {f"{name}{i}": f"{name}{i}" for name in "abcd" for i in range(10)}
    with FakeServer(repeat) as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        assert ask_from_threads(llm) == expected
    assert len(held(tmp_path)) == 40
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        assert ask_from_threads(llm) == expected


def test_threads_get_each_answer_to_the_same_request_once(tmp_path: Path) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        for i in range(40):
            server.reply(str(i))
            llm.generate("hi")
    got: list[str] = []
    with client(server.url) as llm, cassette(tmp_path / "t.yaml"):
        threads = [threading.Thread(target=lambda: got.extend(llm.generate("hi").text for _ in range(10))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(got, key=int) == [str(i) for i in range(40)]


def test_of_nested_cassettes_the_innermost_has_it(tmp_path: Path) -> None:
    with FakeServer() as server, client(server.url) as llm, cassette(tmp_path / "outer.yaml"):
        llm.generate("1")
        with cassette(tmp_path / "t.yaml"):
            llm.generate("2")
        llm.generate("3")
    asked = [exchange["request"]["body"]["messages"][0]["content"] for exchange in yaml.safe_load((tmp_path / "outer.yaml").read_text())["exchanges"]]
    assert (asked, len(held(tmp_path))) == (["1", "3"], 1)


def test_a_file_is_used_by_one_cassette_at_a_time(tmp_path: Path) -> None:
    with cassette(tmp_path / "t.yaml"):
        with pytest.raises(LLMConfigurationError, match="in use by another cassette"), cassette(tmp_path / "t.yaml"):
            pytest.fail("the body must not run")
    with cassette(tmp_path / "t.yaml") as file, pytest.raises(LLMConfigurationError, match="in use"), cassette(file):
        pytest.fail("the body must not run")
    once = cassette(tmp_path / "t.yaml")
    with once, pytest.raises(LLMConfigurationError, match="in use"), once:
        pytest.fail("the body must not run")


def test_two_names_of_a_file_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path)
    for name in (tmp_path / "other" / "t.yaml", tmp_path / "." / "no" / ".." / "t.yaml"):
        with cassette(tmp_path / "t.yaml"), pytest.raises(LLMConfigurationError, match="in use by another"), cassette(name):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_leaves_the_file_to_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    with FakeServer() as server, client(server.url) as llm, contextlib.suppress(LookupError):
        with cassette(file):
            llm.generate("of both")
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
                raise LookupError  # of the parent alone: nothing is to be saved
            code = 1
            with contextlib.suppress(BaseException):
                assert llm.generate("of the child").text
                code = 0
        os._exit(code)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_record_one_file_leave_a_whole_one(tmp_path: Path) -> None:
    """As the workers of pytest-xdist may: the last one wins."""
    file = tmp_path / "t.yaml"
    code = "import sys; from jazz_llm import OpenAICompatibleLLM; from jazz_llm.testing import cassette\nwith cassette(sys.argv[1]): print(OpenAICompatibleLLM('m', base_url=sys.argv[2]).generate('hi').text)"
    with FakeServer() as server:
        workers = [subprocess.Popen([sys.executable, "-c", code, file, server.url], stdout=subprocess.PIPE, text=True) for _ in range(4)]
        said = {worker.communicate(timeout=60)[0] for worker in workers}
    assert said == {"Hello, world!\n"}
    assert {worker.returncode for worker in workers} == {0}
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]
    assert len(held(tmp_path)) == 1


def test_cassettes_that_end_in_another_order(tmp_path: Path) -> None:
    with FakeServer() as server, client(server.url) as llm:
        first, second = cassette(tmp_path / "first.yaml"), cassette(tmp_path / "t.yaml")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        llm.generate("hi")
        second.__exit__(None, None, None)
    assert len(held(tmp_path)) == 1
    assert not (tmp_path / "first.yaml").exists()


def test_a_stream_that_outlives_its_cassette(tmp_path: Path) -> None:
    with FakeServer() as server, client(server.url) as llm:
        with cassette(tmp_path / "t.yaml"):
            server.reply(["a", "b"], delay=[0.0, 0.2])
            stream = llm.stream("hi")
            texts = iter(stream)
            assert next(texts) == "a"
        assert list(texts) == ["b"]
        with cassette(tmp_path / "t.yaml"), pytest.raises(LLMConfigurationError, match="left after"):
            llm.stream("hi").finish()


# --- llm.client -----------------------------------------------------------------------------------------------------------------


def test_the_httpx_client_is_covered(tmp_path: Path, colour: Colour) -> None:
    async def aget(llm: OpenAICompatibleLLM) -> httpx.Response:
        async with llm.aclient as http:
            return await http.get("/v1/other?token=abc")

    def get(llm: OpenAICompatibleLLM) -> Any:
        response = llm.client.get("/v1/other?token=abc") if isinstance(colour, Sync) else asyncio.run(aget(llm))
        return response.status_code, response.http_version, response.json(), response.headers["x-request-id"]

    async def other(request: Request, reply: Reply) -> None:
        await reply.json({"file": "ü"}, headers={"x-request-id": "r-1"})

    assert twice(tmp_path, other, get, api_key=KEY) == (200, "HTTP/1.1", {"file": "ü"}, "r-1")
    assert held(tmp_path)[0]["request"] == {"method": "GET", "url": held(tmp_path)[0]["request"]["url"], "body": None}
    assert held(tmp_path)[0]["request"]["url"].endswith("/v1/other?token=<stripped>")


def test_calls_over_a_users_own_transport_are_covered(tmp_path: Path, colour: Colour) -> None:
    answer = httpx.Response(200, json={"choices": [{"message": {"content": "mine"}, "finish_reason": "stop"}]})
    with client("https://api.test", **{colour.transport_argument: httpx.MockTransport(lambda _: answer)}) as llm, cassette(tmp_path / "t.yaml"):
        assert colour.generate(llm).text == "mine"
    with client("https://api.test") as llm, cassette(tmp_path / "t.yaml"):
        assert colour.generate(llm).text == "mine"


# --- pytest ---------------------------------------------------------------------------------------------------------------------

TESTS = """
import pytest
from jazz_llm import OpenAICompatibleLLM

@pytest.fixture
def model():
    with OpenAICompatibleLLM("m", base_url={url!r}) as llm:
        llm.generate("asked by a fixture")
        yield llm

@pytest.mark.cassette
@pytest.mark.parametrize("text", ["a", "b/c", "b:c"])
def test_marker(model, text):
    assert model.generate(text).text

@pytest.mark.cassette("given.yaml", pace=True)
def test_path(model, cassette):
    assert cassette.name == "given.yaml"

class TestClass:
    def test_fixture(self, cassette, model):
        assert cassette.parent.parent.name == "cassettes"

@pytest.mark.cassette
def test_failing(model):
    assert not model.generate("x").text

@pytest.mark.cassette("missing.yaml", mode="none")
def test_never_recorded():
    pass

@pytest.mark.cassette
async def no_test_and_never_run():
    pass
"""


def run_pytest(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False).stdout


def test_marker_and_fixture(tmp_path: Path) -> None:
    with FakeServer() as server:
        (tmp_path / "test_it.py").write_text(TESTS.format(url=server.url))
        assert "5 passed" in (said := run_pytest(tmp_path)), said
        assert "1 failed, 5 passed, 1 error" in said
        asked = len(server.requests)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml"))
    assert len(files) == 5
    assert files[0] == "cassettes/test_it/TestClass.test_fixture.yaml"
    assert "cassettes/test_it/test_marker[a].yaml" in files
    assert "given.yaml" in files
    assert len({file for file in files if "test_marker[b_c]-" in file}) == 2
    assert asked == 10
    said = run_pytest(tmp_path, "-k", "not failing and not never")  # with the server gone
    assert "5 passed" in said, said
    assert "cassette(path=None" in run_pytest(tmp_path, "--markers")


def test_without_pyyaml_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['yaml'] = None; from jazz_llm.testing import cassette"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert 'ImportError: jazz_llm.testing.cassette needs yaml: pip install "jazz_llm[testing]"' in said


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """See that no test leaves a cassette running."""
    yield
    assert not cassettes._running
