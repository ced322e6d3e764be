"""OpenTelemetry, with the SDK's in-memory exporters, and over OTLP to another process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason='OpenTelemetry is not installed: pip install ".[test]"')

from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

from jazz_llm import (
    LLMConfigurationError,
    LLMError,
    LLMOverloadedError,
    LLMStreamTruncatedError,
    LLMStructuredOutputError,
    OpenAICompatibleLLM,
    RetryPolicy,
    telemetry,
)
from jazz_llm.telemetry import otel_hooks
from jazz_llm.testing import FakeServer, Reply, Request, sse_chunk

from .colours import Async, Sync

KEY = "sk-canary-0123456789"
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 7,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}


async def handler(request: Request, reply: Reply) -> None:
    """Do what the last message asks for."""
    body = request.json() if request.body else {}
    if request.path.endswith("/models"):
        await reply.json({"data": [{"id": "m"}]})
    elif "input" in body:
        data = [{"index": i, "embedding": [1.0]} for i in range(len(body["input"]))]
        await reply.json({"model": "e-1", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}})
    else:
        await chat(body, reply)


async def chat(body: dict[str, Any], reply: Reply) -> None:
    said = str(body["messages"][-1]["content"])
    if said == "busy":
        await reply.json({"error": {"message": f"{said} {KEY}"}}, 503)
    elif said in ("hold", "cut", "wait"):
        await reply.start(200, {"content-type": "text/event-stream"})
        if said != "wait":
            await reply.send(sse_chunk("a"))
        await (reply.end() if said == "cut" else reply.cancelled())
    elif body.get("stream"):
        await reply.sse(["a", "b"], usage=USAGE)
    elif body.get("tools") and body["messages"][-1].get("role") == "user":
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        await reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    else:
        message = {"role": "assistant", "content": "a secret answer", "reasoning_content": "let me see"}
        choices = [{"index": i, "message": message, "finish_reason": "stop"} for i in range(body.get("n", 1))]
        await reply.json({"id": "chatcmpl-1", "model": "m-2026", "choices": choices, "usage": USAGE})


class Watched:
    """A server, and an instance of which every span and metric is kept."""

    def __init__(self, server: FakeServer) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.server = server
        self.hooks = otel_hooks(self.tracers, self.meters)
        self.llm = OpenAICompatibleLLM("m", KEY, server.url, hooks=self.hooks, retry=RetryPolicy(initial=0.0))

    def spans(self) -> list[ReadableSpan]:
        begin = self.hooks.on_request
        assert begin.__self__._calls == {}  # type: ignore[union-attr]  # none is left open
        return list(self.exporter.get_finished_spans())

    def span(self) -> ReadableSpan:
        (span,) = self.spans()
        return span

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def watched() -> Iterator[Watched]:
    with FakeServer(handler) as server:
        watched = Watched(server)
        with watched.llm:
            yield watched
        watched.tracers.shutdown()
        watched.meters.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# --- spans


def test_a_call_is_a_client_span(colour: Sync | Async, watched: Watched) -> None:
    colour.generate(watched.llm, temperature=1, top_p=0.5, max_tokens=99, stop="x", seed=7, n=2, frequency_penalty=0.1, presence_penalty=0.2, extra_body={"top_k": 5})
    span = watched.span()
    assert span.name == "chat m"
    assert span.kind is trace.SpanKind.CLIENT
    assert span.status.is_unset
    assert attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "server.address": "127.0.0.1",
        "server.port": int(watched.server.url.rpartition(":")[2]),
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 0.5,
        "gen_ai.request.top_k": 5.0,
        "gen_ai.request.frequency_penalty": 0.1,
        "gen_ai.request.presence_penalty": 0.2,
        "gen_ai.request.max_tokens": 99,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.model": "m-2026",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop", "stop"),
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 3,
    }
    assert isinstance(attributes(span)["gen_ai.request.temperature"], float)
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "jazz_llm"


def test_a_number_that_otlp_cannot_hold_is_left_out(watched: Watched) -> None:
    watched.llm.generate("hi", extra_body={"seed": 2**63, "top_k": float("nan"), "max_tokens": 5})
    found = attributes(watched.span())
    assert found["gen_ai.request.max_tokens"] == 5
    assert not found.keys() & {"gen_ai.request.seed", "gen_ai.request.top_k"}


@pytest.mark.parametrize("what", ["stream", "events"])
def test_a_stream_is_a_span_until_its_end(colour: Sync | Async, watched: Watched, what: str) -> None:
    _, stream = getattr(colour, what)(watched.llm)
    found = attributes(watched.span())
    assert found["gen_ai.request.stream"] is True
    first = stream.response.metrics.time_to_first_token_ms
    assert found["gen_ai.response.time_to_first_chunk"] == pytest.approx(first / 1e3)
    assert found["gen_ai.usage.output_tokens"] == 7
    (point,) = watched.points("gen_ai.client.operation.time_to_first_chunk")
    assert point.sum == pytest.approx(first / 1e3)


def test_all_tries_are_one_span(colour: Sync | Async, watched: Watched) -> None:
    with pytest.raises(LLMOverloadedError):
        colour.generate(watched.llm, "busy", max_retries=2)
    assert len(watched.server.requests) == 3
    span = watched.span()
    assert attributes(span)["error.type"] == "LLMOverloadedError"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == "LLMOverloadedError"
    assert span.events == ()
    (point,) = watched.points("gen_ai.client.operation.duration")
    assert point.attributes["error.type"] == "LLMOverloadedError"
    assert not watched.points("gen_ai.client.token.usage")


def test_a_stream_that_breaks_is_an_error_with_what_had_come(colour: Sync | Async, watched: Watched) -> None:
    with pytest.raises(LLMStreamTruncatedError):
        colour.stream(watched.llm, "cut")
    colour.events(watched.llm, "cut")
    for span in watched.spans():
        assert attributes(span)["error.type"] == "LLMStreamTruncatedError"
        assert attributes(span)["gen_ai.response.model"] == "fake-model"
        assert "gen_ai.usage.output_tokens" not in attributes(span)  # the server never counted
        assert "gen_ai.response.finish_reasons" not in attributes(span)
    assert not watched.points("gen_ai.client.token.usage")


def test_a_stream_left_early_is_no_error(colour: Sync | Async, watched: Watched) -> None:
    colour.leave_early(watched.llm, extra_body={"messages": [{"role": "user", "content": "hold"}]})
    span = watched.span()
    assert span.status.is_unset
    assert "error.type" not in attributes(span)
    assert attributes(span)["gen_ai.response.time_to_first_chunk"] > 0
    assert len(watched.points("gen_ai.client.operation.duration")) == 1


def test_a_cancelled_task_ends_its_span(watched: Watched) -> None:
    async def main() -> None:
        task = asyncio.create_task(watched.llm.astream("wait").finish())
        await asyncio.to_thread(watched.server.wait_for, lambda s: s.live == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert watched.span().status.is_unset


def test_embeddings_are_spans_and_models_are_not(colour: Sync | Async, watched: Watched) -> None:
    llm = watched.llm
    if colour.name == "sync":
        llm.list_models()
        llm.embed(["x", "y", "z"], model="e", dimensions=8, batch_size=2)
    else:
        asyncio.run(llm.alist_models())
        asyncio.run(llm.aembed(["x", "y", "z"], model="e", dimensions=8, batch_size=2))
    assert [span.name for span in watched.spans()] == ["embeddings e"] * 2
    found = attributes(watched.spans()[0])
    assert found["gen_ai.operation.name"] == "embeddings"
    assert found["gen_ai.embeddings.dimension.count"] == 8
    assert found["gen_ai.response.model"] == "e-1"
    assert found["gen_ai.usage.input_tokens"] == 3
    assert "gen_ai.usage.output_tokens" not in found
    assert {point.attributes["gen_ai.token.type"] for point in watched.points("gen_ai.client.token.usage")} == {"input"}
    llm.with_options(provider="openai").embed("x")  # which is asked for base64
    assert attributes(watched.spans()[-1])["gen_ai.request.encoding_formats"] == ("base64",)


def test_structured_output_and_its_failure(colour: Sync | Async, watched: Watched) -> None:
    with pytest.raises(LLMStructuredOutputError):
        colour.generate(watched.llm, response_format={"type": "object"})
    found = attributes(watched.span())
    assert found["gen_ai.output.type"] == "json"
    assert found["error.type"] == "LLMStructuredOutputError"
    assert found["gen_ai.usage.output_tokens"] == 7  # paid for all the same


def test_each_turn_of_run_tools_is_a_span(colour: Sync | Async, watched: Watched) -> None:
    def weather(city: str) -> str:
        return "rain"

    llm = watched.llm
    _ = llm.run_tools("where?", [weather]) if colour.name == "sync" else asyncio.run(llm.arun_tools("where?", [weather]))
    reasons = [attributes(span)["gen_ai.response.finish_reasons"] for span in watched.spans()]
    assert reasons == [("tool_calls",), ("stop",)]


# --- whose child


def test_a_span_is_the_child_of_the_callers(colour: Sync | Async, watched: Watched) -> None:
    with watched.tracers.get_tracer("app").start_as_current_span("work") as work:
        colour.generate(watched.llm)
        colour.stream(watched.llm)
        assert trace.get_current_span() is work  # a stream's span is nobody's context
    *calls, _ = watched.spans()
    assert [span.parent and span.parent.span_id for span in calls] == [work.get_span_context().span_id] * 2


def test_each_task_has_its_own_parent(watched: Watched) -> None:
    tracer = watched.tracers.get_tracer("app")

    async def work(name: str) -> int:
        with tracer.start_as_current_span(name) as span:
            async for _ in watched.llm.astream("hi"):
                await asyncio.sleep(0)
            await watched.llm.aembed(["x", "y"], batch_size=1)
            return span.get_span_context().span_id

    async def main() -> list[int]:
        return await asyncio.gather(*(work(f"task {i}") for i in range(5)))

    parents = asyncio.run(main())
    calls = [span for span in watched.spans() if span.kind is trace.SpanKind.CLIENT]
    assert sorted(span.parent.span_id for span in calls if span.parent) == sorted(parents * 3)


def test_a_stream_in_pieces_leaves_the_context_alone(watched: Watched) -> None:
    """Two streams read in turn: neither ends under the other, nor is the other's parent."""
    before = context.get_current()
    one, two = iter(watched.llm.stream("hi")), iter(watched.llm.stream("hi"))
    assert [next(one), next(two)] == ["a", "a"]
    assert [list(one), list(two)] == [["b"], ["b"]]
    assert context.get_current() == before
    assert [span.parent for span in watched.spans()] == [None, None]


# --- metrics


def test_metrics(colour: Sync | Async, watched: Watched) -> None:
    for _ in range(2):
        colour.generate(watched.llm)
    (duration,) = watched.points("gen_ai.client.operation.duration")
    assert duration.count == 2
    assert tuple(duration.explicit_bounds) == (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    assert dict(duration.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m-2026",
        "server.address": "127.0.0.1",
        "server.port": int(watched.server.url.rpartition(":")[2]),
    }
    tokens = {point.attributes["gen_ai.token.type"]: point for point in watched.points("gen_ai.client.token.usage")}
    assert {kind: (point.count, point.sum) for kind, point in tokens.items()} == {"input": (2, 18), "output": (2, 14)}
    assert tokens["input"].explicit_bounds[-1] == 67108864
    assert not watched.points("gen_ai.client.operation.time_to_first_chunk")  # no stream


def test_every_name_is_one_of_the_conventions(watched: Watched) -> None:
    known = {value for name, value in vars(gen_ai_attributes).items() if name.isupper()}
    known |= {value for name, value in vars(gen_ai_metrics).items() if name.isupper()}
    known |= {"server.address", "server.port", "error.type"}
    tables = [*telemetry._USAGE.values(), *(name for name, _ in telemetry._REQUEST.values())]
    ours = {value for name, value in vars(telemetry).items() if isinstance(value, str) and value.startswith(("gen_ai.", "server.", "error."))}
    metrics = {telemetry._DURATION[0], telemetry._TIME_TO_FIRST[0], telemetry._TOKENS[0]}
    assert ours | metrics | set(tables) <= known
    providers = {member.value for member in gen_ai_attributes.GenAiProviderNameValues} | {"moonshot_ai"}  # newer than the package
    assert set(telemetry._PROVIDERS.values()) <= providers


@pytest.mark.parametrize(("provider", "name"), [("mistral", "mistral_ai"), ("groq", "groq"), ("vllm", "vllm"), ("gemini", "gcp.gemini")])
def test_providers_have_the_conventions_names(watched: Watched, provider: str, name: str) -> None:
    watched.llm.with_options(provider=provider).generate("hi")
    assert attributes(watched.span())["gen_ai.provider.name"] == name


# --- content


def everything(watched: Watched) -> str:
    data = watched.reader.get_metrics_data()
    return "".join(span.to_json() for span in watched.spans()) + (data.to_json() if data else "")


@pytest.mark.parametrize("value", [None, "", "false", "NO_CONTENT", "EVENT_ONLY"])
def test_no_content_and_no_key_unless_asked_for(colour: Sync | Async, watched: Watched, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is not None:
        monkeypatch.setenv(CONTENT, value)
    llm = watched.llm.with_options(hooks=otel_hooks(watched.tracers, watched.meters))
    for said in ("my secret plan", "busy", "cut"):
        for call in (colour.generate, colour.stream, colour.events):
            with contextlib.suppress(LLMError):
                call(llm, said)
    assert len(watched.spans()) == 9
    for word in ("secret", "let me see", KEY):
        assert word not in everything(watched)


@pytest.mark.parametrize("value", ["true", "SPAN_ONLY", "span_and_event"])
def test_content_where_it_is_asked_for(colour: Sync | Async, watched: Watched, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(CONTENT, value)
    llm = watched.llm.with_options(hooks=otel_hooks(watched.tracers, watched.meters))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    far = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    tool = {"type": "function", "function": {"name": "weather", "description": "Tell it.", "parameters": {"type": "object"}}}
    asked = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, image, far, {"type": "input_audio", "input_audio": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    colour.generate(llm, asked, tools=[tool])
    found = attributes(watched.span())
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "be brief"}]},
        {
            "role": "user",
            "parts": [
                {"type": "text", "content": "see"},
                {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
                {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"},
                {"type": "input_audio", "input_audio": {}},
            ],
        },
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "call_1", "name": "weather", "arguments": {"city": "Ulm"}}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "rain"}]},
    ]
    answer = [{"type": "reasoning", "content": "let me see"}, {"type": "text", "content": "a secret answer"}]
    assert json.loads(found["gen_ai.output.messages"]) == [{"role": "assistant", "parts": answer, "finish_reason": "stop"}]
    assert json.loads(found["gen_ai.tool.definitions"]) == [{"type": "function", **tool["function"]}]  # type: ignore[dict-item]
    assert KEY not in everything(watched)


def test_tool_calls_and_a_part_of_a_stream_are_content(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONTENT, "true")
    llm = watched.llm.with_options(hooks=otel_hooks(watched.tracers, watched.meters))
    llm.generate("where?", tools=[{"type": "function", "function": {"name": "weather"}}])
    with pytest.raises(LLMStreamTruncatedError):
        list(llm.stream("cut"))
    (called,), (cut,) = (json.loads(attributes(span)["gen_ai.output.messages"]) for span in watched.spans())
    assert called["parts"] == [{"type": "tool_call", "id": "call_1", "name": "weather", "arguments": {"city": "Ulm"}}]
    assert called["finish_reason"] == "tool_call"
    assert (cut["parts"], cut["finish_reason"]) == ([{"type": "text", "content": "a"}], "")


def test_messages_of_odd_shapes_are_content_too(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONTENT, "true")
    llm = watched.llm.with_options(hooks=otel_hooks(watched.tracers, watched.meters))
    cut = {"function": {"name": "weather", "arguments": '{"city'}}
    odd = [{"role": "assistant", "content": ["bare", 5], "tool_calls": [cut, "x"]}, {"content": "no role"}]
    llm.generate("hi", extra_body={"messages": odd, "tools": [{"type": "web_search"}]})
    found = attributes(watched.span())
    assert json.loads(found["gen_ai.input.messages"]) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "text", "content": "bare"},
                {"type": "text", "content": 5},
                {"type": "tool_call", "id": None, "name": "weather", "arguments": '{"city'},
                {"type": "tool_call", "id": None, "name": None, "arguments": None},
            ],
        },
        {"role": "", "parts": [{"type": "text", "content": "no role"}]},
    ]
    assert json.loads(found["gen_ai.tool.definitions"]) == [{"type": "web_search"}]


def test_a_key_that_the_server_says_back_is_on_no_span(colour: Sync | Async) -> None:
    async def echo(request: Request, reply: Reply) -> None:
        said = request.headers["authorization"]
        choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": f"no {said}"}
        await reply.json({"id": said, "model": f"m of {said}", "choices": [choice], "usage": USAGE})

    with FakeServer(echo) as server:
        watched = Watched(server)
        with watched.llm:
            response = colour.generate(watched.llm)
        span = watched.span()
        assert KEY not in span.to_json()
        assert "m of Bearer ***" in {point.attributes.get("gen_ai.response.model") for point in watched.points("gen_ai.client.token.usage")}
        assert attributes(span)["gen_ai.response.finish_reasons"] == ("other",)
        assert (response.id, response.model) == ("Bearer ***", "m of Bearer ***")


def test_a_short_key_is_a_word_of_a_name(colour: Sync | Async, watched: Watched) -> None:
    """Local servers are given "test" or "EMPTY" for a key."""
    response = colour.generate(watched.llm.with_options(api_key="2026"))
    assert response.model == attributes(watched.span())["gen_ai.response.model"] == "m-2026"


# --- without OpenTelemetry, and with nobody listening


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(LLMConfigurationError, match=r"jazz_llm\[otel\]"):
        otel_hooks()


def test_the_api_alone_is_enough(colour: Sync | Async, watched: Watched) -> None:
    assert colour.generate(watched.llm.with_options(hooks=otel_hooks())).text == "a secret answer"
    assert watched.spans() == []


def test_hooks_of_the_global_providers_go_through_pickle() -> None:
    llm = pickle.loads(pickle.dumps(OpenAICompatibleLLM("m", hooks=otel_hooks())))
    hooks = llm._config.hooks[0]
    assert hooks.on_request.__self__ is hooks.on_error.__self__


def test_the_package_does_not_import_opentelemetry() -> None:
    code = "import sys, jazz_llm, jazz_llm.telemetry; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- OTLP


def test_spans_and_metrics_arrive_over_otlp(watched: Watched) -> None:
    exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason='no OTLP exporter: pip install ".[test]"')
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    with subprocess.Popen([sys.executable, "-m", "tests.otlp_collector"], stdout=subprocess.PIPE, text=True) as collector:
        try:
            assert collector.stdout is not None
            url = f"http://127.0.0.1:{collector.stdout.readline().strip()}/v1"
            tracers = TracerProvider()
            gzip = exporters.Compression.Gzip
            tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/traces", compression=gzip)))
            meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(f"{url}/metrics"), 60_000)])
            llm = watched.llm.with_options(hooks=otel_hooks(tracers, meters))
            llm.generate("hi")
            asyncio.run(llm.astream("hi").finish())
            tracers.shutdown()
            meters.shutdown()
            spans, metrics = (json.loads(collector.stdout.readline()) for _ in range(2))
        finally:
            collector.terminate()
    got = spans["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [(span["name"], span["kind"]) for span in got] == [("chat m", "SPAN_KIND_CLIENT")] * 2
    told = {one["key"]: one["value"] for one in got[0]["attributes"]}
    assert told["gen_ai.usage.input_tokens"] == {"intValue": "9"}
    assert told["gen_ai.response.finish_reasons"] == {"arrayValue": {"values": [{"stringValue": "stop"}]}}
    names = {metric["name"]: metric["unit"] for metric in metrics["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
    assert names == {
        "gen_ai.client.operation.duration": "s",
        "gen_ai.client.token.usage": "{token}",
        "gen_ai.client.operation.time_to_first_chunk": "s",
    }
