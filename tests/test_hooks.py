"""Hooks: what each call tells, and that it tells its end once, however it ends."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from jazz_llm import (
    ErrorRecord,
    Hooks,
    LLMAuthenticationError,
    LLMClosedError,
    LLMConfigurationError,
    LLMInvalidRequestError,
    LLMOverloadedError,
    LLMStreamTruncatedError,
    LLMStructuredOutputError,
    OpenAICompatibleLLM,
    RequestRecord,
    ResponseRecord,
    RetryPolicy,
    RetryRecord,
    StreamEventKind,
)
from jazz_llm.testing import FakeServer, Reply, Request, sse_chunk

from .colours import Async, Sync

AT_ONCE = RetryPolicy(initial=0.0)
# Bodies for what sends a message of its own (``extra_body`` wins).
HOLD, MUTE = ({"messages": [{"role": "user", "content": word}]} for word in ("hold", "mute"))


class Told:
    """Hooks that keep what they are told, in order."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        tell = self.records.append
        self.hooks = Hooks(on_request=tell, on_retry=tell, on_response=tell, on_error=tell)

    def of(self, kind: type) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]

    def ends(self) -> list[Any]:
        """Return how the calls ended, after a look that each ended once."""
        ends = [record for record in self.records if isinstance(record, ResponseRecord | ErrorRecord)]
        assert [end.request.id for end in sorted(ends, key=self._begun)] == [begun.id for begun in self.of(RequestRecord)]
        return ends

    def end(self) -> Any:
        (end,) = self.ends()
        return end

    def _begun(self, end: Any) -> int:
        return self.of(RequestRecord).index(end.request)


@pytest.fixture
def told() -> Told:
    return Told()


async def handler(request: Request, reply: Reply) -> None:
    """Do what the path, or else the message, asks for."""
    if not request.path.endswith("/chat/completions"):
        await (_models(reply) if request.path.endswith("/models") else _embeddings(request, reply))
        return
    body = request.json()
    what = body["messages"][-1]["content"]
    if what == "refuse":
        await reply.json({"error": {"message": "no such key"}}, 401)
    elif what == "busy":
        await reply.json({"error": {"message": "no room"}}, 503)
    elif what == "mute":
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.cancelled()
    elif what in ("hold", "cut"):
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(sse_chunk("a"))
        await (reply.cancelled() if what == "hold" else reply.end())
    elif body.get("stream"):
        await reply.sse(["a", "b"])
    else:
        await reply.text("ab")


async def _models(reply: Reply) -> None:
    await reply.json({"object": "list", "data": [{"id": "m"}]})


async def _embeddings(request: Request, reply: Reply) -> None:
    texts = request.json()["input"]
    await reply.json({"data": [{"index": i, "embedding": [1.0]} for i in range(len(texts))], "usage": {"prompt_tokens": 3, "total_tokens": 3}})


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(handler) as server:
        yield server


@pytest.fixture
def llm(server: FakeServer, told: Told) -> Iterator[OpenAICompatibleLLM]:
    with OpenAICompatibleLLM("m", "sk-1", server.url, hooks=told.hooks, retry=AT_ONCE, default_query={"token": "t"}) as llm:
        yield llm


# --- what is told


def test_a_call_tells_its_request_and_its_response(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    response = colour.generate(llm, temperature=0.5)
    begun, end = told.records
    assert isinstance(begun, RequestRecord)
    assert (begun.operation, begun.provider, begun.model, begun.streams) == ("chat", None, "m", False)
    assert begun.url.endswith("/v1/chat/completions")  # without the query
    assert begun.body["temperature"] == 0.5
    assert len(begun.id) == 16
    assert isinstance(end, ResponseRecord)
    assert end.request is begun
    assert end.response is response
    assert not end.stopped


def test_the_model_is_the_one_that_is_asked_for(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    colour.generate(llm, model="other")
    colour.generate(llm, extra_body={"model": "third"})
    assert [record.model for record in told.of(RequestRecord)] == ["other", "third"]


def test_streams_tell_when_they_have_ended(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    _, stream = colour.stream(llm)
    _, events = colour.events(llm)
    assert [end.response for end in told.ends()] == [stream.response, events.response]
    assert all(record.streams for record in told.of(RequestRecord))


def test_models_and_embeddings_tell_too(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    if colour.name == "sync":
        llm.list_models()
        llm.embed(["x", "y", "z"], batch_size=2)
    else:
        asyncio.run(llm.alist_models())
        asyncio.run(llm.aembed(["x", "y", "z"], batch_size=2))
    assert [(record.operation, record.model) for record in told.of(RequestRecord)] == [("models", ""), *[("embeddings", "m")] * 2]
    assert [record.body.get("input") for record in told.of(RequestRecord)] == [None, ["x", "y"], ["z"]]
    assert len(told.ends()) == 3


def test_run_tools_tells_each_turn(colour: Sync | Async, told: Told) -> None:
    def now() -> str:
        return "noon"

    async def calls_once(request: Request, reply: Reply) -> None:
        asked = [m for m in request.json()["messages"] if m["role"] == "tool"]
        call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
        message = {"role": "assistant", "content": "noon"} if asked else {"role": "assistant", "content": None, "tool_calls": [call]}
        await reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "stop" if asked else "tool_calls"}]})

    with FakeServer(calls_once) as server, OpenAICompatibleLLM("m", base_url=server.url, hooks=told.hooks) as llm:
        _ = llm.run_tools("when?", [now]) if colour.name == "sync" else asyncio.run(llm.arun_tools("when?", [now]))
    assert [end.response.finish_reason for end in told.ends()] == ["tool_calls", "stop"]


def test_each_retry_is_told_with_its_wait(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    with pytest.raises(LLMOverloadedError) as caught:
        colour.generate(llm, "busy", max_retries=2)
    begun, *retries, end = told.records
    assert [type(record) for record in retries] == [RetryRecord] * 2
    assert [record.attempt for record in retries] == [1, 2]
    assert [record.wait_s for record in retries] == [0.0, 0.0]
    assert all(isinstance(record.error, LLMOverloadedError) and record.request is begun for record in retries)
    assert isinstance(end, ErrorRecord)
    assert end.error is caught.value


def test_a_failure_is_told_once_in_each_kind_of_call(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    for call in (colour.generate, colour.stream):
        with pytest.raises(LLMAuthenticationError):
            call(llm, "refuse")
    events, _ = colour.events(llm, "refuse")
    assert [event.kind for event in events] == [StreamEventKind.ERROR, StreamEventKind.DONE]
    assert [type(end) for end in told.ends()] == [ErrorRecord] * 3
    assert told.ends()[2].error is events[0].error


def test_what_a_stream_broke_with_is_told_with_its_part(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    with pytest.raises(LLMStreamTruncatedError):
        colour.stream(llm, "cut")
    colour.events(llm, "cut")
    assert [(type(end.error), end.error.partial.text) for end in told.ends()] == [(LLMStreamTruncatedError, "a")] * 2


def test_an_answer_that_does_not_fit_is_a_failure(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    with pytest.raises(LLMStructuredOutputError):
        colour.generate(llm, response_format={"type": "object"})
    assert isinstance(told.end().error, LLMStructuredOutputError)


def test_what_the_key_function_raises_is_told(colour: Sync | Async, server: FakeServer, told: Told) -> None:
    def key() -> str:
        raise KeyError("vault")

    with OpenAICompatibleLLM("m", key, server.url, hooks=told.hooks) as llm, pytest.raises(KeyError):
        colour.generate(llm)
    assert isinstance(told.end().error, KeyError)


def test_arguments_that_are_refused_tell_nothing(llm: OpenAICompatibleLLM, told: Told) -> None:
    with pytest.raises(LLMInvalidRequestError, match="temperature"):
        llm.generate("hi", temperature="hot")
    assert told.records == []


# --- leaving


def test_a_stream_left_by_break_is_told_with_what_had_come(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told) -> None:
    assert colour.leave_early(llm, extra_body=HOLD).response is None
    assert told.end().stopped
    assert told.end().response.text == "a"
    assert told.end().response.metrics.attempts == 1


@pytest.mark.parametrize("what", ["stream", "stream_events"])
def test_a_stream_closed_from_elsewhere_is_told_once(colour: Sync | Async, llm: OpenAICompatibleLLM, server: FakeServer, told: Told, what: str) -> None:
    held = llm.with_options(extra_body=HOLD)
    met = colour.close_while_reading(held, lambda: server.wait_for(lambda s: s.live == 1), "stream", what)
    assert not [one for one in met if isinstance(one, Exception)]
    assert told.end().stopped


def test_a_stream_closed_before_any_content_is_told_without_any(colour: Sync | Async, llm: OpenAICompatibleLLM, server: FakeServer, told: Told) -> None:
    mute = llm.with_options(extra_body=MUTE)
    assert colour.close_while_reading(mute, lambda: server.wait_for(lambda s: s.live == 1), "stream") == []
    assert told.end().stopped
    assert told.end().response is None


def test_a_client_closed_under_a_call_is_its_failure(colour: Sync | Async, llm: OpenAICompatibleLLM, server: FakeServer, told: Told) -> None:
    held = llm.with_options(extra_body=HOLD)
    met = colour.close_while_reading(held, lambda: server.wait_for(lambda s: s.live == 1), "client")
    assert isinstance(met[-1], LLMClosedError)
    assert told.end().error is met[-1]


@pytest.mark.parametrize("what", ["stream", "stream_events"])
def test_a_stream_that_never_began_tells_nothing(colour: Sync | Async, llm: OpenAICompatibleLLM, told: Told, what: str) -> None:
    if colour.name == "sync":
        stream = getattr(llm, what)("hi")
        stream.close()
        assert list(stream) == []
    else:
        astream = getattr(llm, f"a{what}")("hi")
        asyncio.run(astream.aclose())
        del astream
    getattr(llm, what)("dropped at once")
    gc.collect()
    assert told.records == []


def test_a_closed_client_tells_nothing(llm: OpenAICompatibleLLM, told: Told) -> None:
    stream = llm.stream("hi")
    llm.close()
    with pytest.raises(LLMClosedError):
        stream.finish()
    assert told.records == []


def test_a_dropped_stream_is_told_when_it_goes(llm: OpenAICompatibleLLM, told: Told) -> None:
    stream = llm.stream("hold").__enter__()
    assert len(told.records) == 1
    del stream
    assert told.end().stopped

    cycle: list[Any] = [llm.stream("hold").__enter__()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert [end.stopped for end in told.ends()] == [True, True]


def test_a_task_cancelled_while_it_reads_is_told(llm: OpenAICompatibleLLM, told: Told, server: FakeServer) -> None:
    async def read() -> None:
        async for _ in llm.astream("hold"):
            pass

    async def main() -> None:
        for call in (read(), llm.agenerate("mute"), llm.astream("mute").finish()):
            task = asyncio.create_task(call)  # type: ignore[arg-type]
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 0)

    asyncio.run(main())
    assert [end.stopped for end in told.ends()] == [True] * 3


def test_a_task_cancelled_between_two_tries_is_told(server: FakeServer, told: Told) -> None:
    waiting = asyncio.Event()
    hooks = [told.hooks, Hooks(on_retry=lambda _: waiting.set())]

    async def main() -> None:
        async with OpenAICompatibleLLM("m", base_url=server.url, hooks=hooks, retry=RetryPolicy(initial=60, maximum=60)) as llm:
            task = asyncio.create_task(llm.agenerate("busy"))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert [type(record) for record in told.records] == [RequestRecord, RetryRecord, ResponseRecord]
    assert told.end().stopped
    assert told.end().response is None


def test_a_task_cancelled_at_every_tick_is_told_once(llm: OpenAICompatibleLLM, told: Told) -> None:
    async def read() -> None:
        async for _ in llm.astream("hi"):
            pass

    async def main() -> None:
        for ticks in range(60):
            task = asyncio.create_task(read() if ticks % 2 else llm.agenerate("hi"))  # type: ignore[arg-type]
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    stopped = [end for end in told.ends() if end.stopped]
    assert len(stopped) > 5


def test_a_task_cancelled_while_a_broken_answer_is_closed_is_told_at_once(told: Told) -> None:
    closing = asyncio.Event()

    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield sse_chunk("a")
            yield b'data: {"error": {"message": "no room"}}\n\n'

        async def aclose(self) -> None:
            closing.set()
            await asyncio.sleep(60)

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Broken())

    async def main() -> None:
        llm = OpenAICompatibleLLM("m", base_url="http://localhost:9", async_transport=Transport(), hooks=told.hooks)
        stream = llm.astream("hi")
        task = asyncio.create_task(stream.finish())
        await closing.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert told.end().stopped  # though the stream is still held
        assert stream.response is None

    asyncio.run(main())


def test_a_stream_closed_between_two_tries_is_told(server: FakeServer, told: Told) -> None:
    waiting = threading.Event()
    hooks = [told.hooks, Hooks(on_retry=lambda _: waiting.set())]
    with OpenAICompatibleLLM("m", base_url=server.url, hooks=hooks, retry=RetryPolicy(initial=60, maximum=60)) as llm:
        stream = llm.stream("busy")
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        assert waiting.wait(5)
        stream.close()
        reader.join(5)
    assert told.end().stopped


def test_a_loop_that_ends_under_a_reader(server: FakeServer, told: Told) -> None:
    llm = OpenAICompatibleLLM("m", base_url=server.url, hooks=told.hooks)
    loop = asyncio.new_event_loop()
    reading = loop.create_task(llm.agenerate("mute"))
    with pytest.raises(TimeoutError):
        loop.run_until_complete(asyncio.wait_for(asyncio.shield(reading), 0.2))
    reading.cancel()
    loop.run_until_complete(asyncio.gather(reading, return_exceptions=True))
    llm.close()
    loop.close()
    assert told.end().stopped


def test_a_stream_closed_under_a_read_that_brings_something_all_the_same(
    colour: Sync | Async, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["one two three"]')
    llm = OpenAICompatibleLLM("m", hooks=told.hooks)

    def closes_first(stream: Any) -> None:
        read = stream._answer.read

        def closed_meanwhile() -> bytes:
            stream._stop()
            return read()

        stream._answer.read = closed_meanwhile  # ``aread`` calls it too

    if colour.name == "sync":
        stream = llm.stream("hi")
        texts = iter(stream)
        assert next(texts) == "one "
        closes_first(stream)
        assert next(texts) == "two "
        assert told.end().stopped  # though nobody reads on
    else:
        asyncio.run(_read_while_closed(llm.astream("hi"), closes_first))
        assert told.end().stopped


async def _read_while_closed(stream: Any, closes_first: Any) -> None:
    texts = aiter(stream)
    assert await anext(texts) == "one "
    closes_first(stream)
    assert await anext(texts) == "two "


def test_half_of_a_read_that_was_interrupted_is_left_out(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["one two three"]')
    stream = OpenAICompatibleLLM("m", hooks=told.hooks).stream("hi")
    texts = iter(stream)
    next(texts)

    class Torn:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("half of it is missing")

    monkeypatch.setattr(stream, "_decoder", Torn())
    stream.close()
    assert told.end().stopped
    assert told.end().response is None


def test_whoever_closes_when_each_stream_tells_one_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close streams from another thread at every point of their life; the mock transport makes thousands of them cheap."""
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", f'[{", ".join(["{}"] * 3000)}]'.replace("{}", '"one two three four"'))
    told = Told()
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    queue: list[Any] = []
    more = threading.Semaphore(0)

    def close() -> None:
        while True:
            more.acquire()
            stream = queue.pop()
            if stream is None:
                return
            stream.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        with OpenAICompatibleLLM("m", hooks=told.hooks) as llm:
            for i in range(3000):
                stream = (llm.stream, llm.stream_events)[i % 2]("hi")
                queue.append(stream)
                more.release()
                list(stream)
    finally:
        queue.append(None)
        more.release()
        closer.join()
        sys.setswitchinterval(old)
    ends = {end.request.id for end in told.ends()}
    assert len(ends) == len(told.of(RequestRecord)) > 100
    assert {end.stopped for end in told.ends()} == {True, False}


def test_the_interpreters_exit_tells_nothing_and_breaks_nothing(server: FakeServer) -> None:
    code = (
        "import sys; from jazz_llm import *\n"
        "hooks = Hooks(on_request=lambda r: print('began'), on_response=lambda r: print('ended', sys.is_finalizing()))\n"
        f"llm = OpenAICompatibleLLM('m', base_url={server.url!r}, hooks=hooks)\n"
        "stream = llm.stream('hold')\nkept = iter(stream)\nprint(next(kept))\n"
    )
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() in (["began", "a"], ["began", "a", "ended", "False"])


# --- hooks that fail


def test_what_hooks_raise_is_logged_without_words_and_touches_nothing(
    colour: Sync | Async, server: FakeServer, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(record: Any) -> None:
        raise ValueError(f"cannot store {record!r} secret words")

    hooks = [Hooks(on_request=broken, on_retry=broken, on_response=broken, on_error=broken), told.hooks]
    with OpenAICompatibleLLM("m", base_url=server.url, hooks=hooks, retry=AT_ONCE) as llm, caplog.at_level(logging.ERROR, "jazz_llm"):
        assert colour.generate(llm).text == "ab"
        with pytest.raises(LLMOverloadedError):
            colour.generate(llm, "busy", max_retries=1)
    assert [type(record) for record in told.records] == [RequestRecord, ResponseRecord, RequestRecord, RetryRecord, ErrorRecord]
    said = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in said] == ["on_request", "on_response", "on_request", "on_retry", "on_error"]
    assert all(f"ValueError at {__file__}:" in line and "secret" not in line for line in said)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("name", ["on_request", "on_response", "on_retry", "on_error"])
def test_an_interrupt_passes_through_hooks(server: FakeServer, told: Told, name: str) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    after = Told()
    hooks = [told.hooks, Hooks(**{name: interrupt}), after.hooks]
    with OpenAICompatibleLLM("m", base_url=server.url, hooks=hooks, retry=AT_ONCE) as llm:
        with pytest.raises(KeyboardInterrupt):
            llm.generate("busy" if name in ("on_retry", "on_error") else "hi")
        assert llm.with_options(hooks=None).generate("hi").text == "ab"
    assert len(told.ends()) == 1
    assert len(after.ends()) == (name != "on_request")  # who was not told of the beginning is not told of the end


# --- the argument


@pytest.mark.parametrize("name", ["on_request", "on_response"])
def test_a_call_that_a_hook_makes_is_not_told_to_it(server: FakeServer, told: Told, name: str) -> None:
    """Else it would call without end; but others are told."""

    def ask(_: Any) -> None:
        asked.append(name)
        if len(asked) < 20:
            llm.generate("and this?")

    asked: list[str] = []
    with OpenAICompatibleLLM("m", base_url=server.url, hooks=[Hooks(**{name: ask}), told.hooks]) as llm:
        llm.generate("hi")
        assert asked == [name]
        assert [len(told.of(kind)) for kind in (RequestRecord, ResponseRecord)] == [2, 2]
        llm.generate("hi")
    assert asked == [name] * 2


def test_several_hooks_are_told_in_their_order(server: FakeServer) -> None:
    order: list[str] = []
    hooks = [Hooks(on_request=lambda _, name=name: order.append(name)) for name in ("first", "second")]
    with OpenAICompatibleLLM("m", base_url=server.url, hooks=hooks) as llm:
        llm.generate("hi")
    assert order == ["first", "second"]


def test_a_copy_can_have_hooks_of_its_own(llm: OpenAICompatibleLLM, told: Told) -> None:
    mine = Told()
    assert llm.with_options(hooks=mine.hooks).generate("hi").text == "ab"
    assert llm.with_options(hooks=None).generate("hi").text == "ab"
    assert len(mine.records) == 2
    assert told.records == []


@pytest.mark.parametrize("hooks", [5, print, [print], {"on_request": print}, "on_request", [None]])
def test_hooks_of_another_kind_are_refused(hooks: Any) -> None:
    with pytest.raises(LLMConfigurationError, match="hooks"):
        OpenAICompatibleLLM("m", hooks=hooks)


def test_a_hook_must_be_a_function() -> None:
    with pytest.raises(LLMConfigurationError, match="on_error"):
        Hooks(on_error="tell")  # type: ignore[arg-type]


def test_no_record_shows_content_in_its_repr(llm: OpenAICompatibleLLM, told: Told) -> None:
    llm.generate("my secret plan")
    with pytest.raises(LLMAuthenticationError):
        llm.generate([{"role": "system", "content": "my secret plan"}, {"role": "user", "content": "refuse"}])
    shown = "".join(map(repr, told.records))
    assert not any(word in shown for word in ("plan", "sk-1", "no such key", "LLMResponse", "token"))


def stay(record: RequestRecord) -> None:
    """Be picklable."""


def test_a_hook_that_nobody_would_await_is_refused() -> None:
    async def hook(_: Any) -> None: ...

    with pytest.raises(LLMConfigurationError, match="on_error must not be async"):
        Hooks(on_error=hook)


def test_a_deep_copy_tells_the_same_hooks(server: FakeServer, told: Told) -> None:
    with copy.deepcopy(OpenAICompatibleLLM("m", base_url=server.url, hooks=told.hooks)) as llm:
        llm.generate("hi")
    assert told.end().response.text == "ab"


def test_hooks_go_through_pickle() -> None:
    llm = pickle.loads(pickle.dumps(OpenAICompatibleLLM("m", hooks=Hooks(on_request=stay))))
    assert llm._config.hooks[0].on_request is stay


def test_a_call_that_nobody_watches_has_no_watcher(server: FakeServer) -> None:
    with OpenAICompatibleLLM("m", base_url=server.url) as llm:
        stream = llm.stream("hi")
        stream.finish()
    assert stream._watch is None
