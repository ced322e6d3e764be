"""Spans in Phoenix, a server that receives OTLP and reads the GenAI conventions: do they say there what they say here?

It has over a hundred packages, so it lives in an environment of its own: CONTRIBUTING.md, "Real servers".
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jazz_llm import LLMOverloadedError, OpenAICompatibleLLM, RetryPolicy
from jazz_llm.telemetry import otel_hooks
from jazz_llm.testing import FakeServer, Reply, Request

from .proxies import HERE, Process, free_port

QUERY = "{ projects { edges { node { spans(first: 20) { edges { node { name statusCode parentId attributes } } } } } } }"


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = os.environ.get("JAZZ_LLM_PHOENIX") or pytest.skip("JAZZ_LLM_PHOENIX is not set: CONTRIBUTING.md, Real servers")
    folder, port = tmp_path_factory.mktemp("phoenix"), free_port()
    settings = {"PHOENIX_WORKING_DIR": str(folder), "PHOENIX_PORT": str(port), "PHOENIX_GRPC_PORT": str(free_port())}
    settings |= {"PHOENIX_HOST": HERE, "PHOENIX_TELEMETRY_ENABLED": "false"}
    process = Process([str(Path(path).absolute()), "serve"], folder, port, patience=60.0, **settings)
    try:
        yield f"http://{HERE}:{port}"
    finally:
        process.stop()


async def model(request: Request, reply: Reply) -> None:
    body = request.json()
    if body["messages"][0]["content"] == "busy":
        await reply.json({"error": {"message": "no room"}}, 503)
    else:
        await (reply.sse(["a", "b"]) if body.get("stream") else reply.text("ab"))


def make_calls(url: str) -> str:
    """Make three calls that are told to a collector; return the id of the span that they are under."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
    with FakeServer(model) as server, OpenAICompatibleLLM("m", "sk-canary-0123", server.url, hooks=otel_hooks(tracers), retry=RetryPolicy(initial=0.0)) as llm:
        with tracers.get_tracer("app").start_as_current_span("work") as work:
            llm.generate("my secret plan")
            asyncio.run(llm.astream("my secret plan").finish())
            with pytest.raises(LLMOverloadedError):
                llm.generate("busy", max_retries=1)
    tracers.shutdown()
    return format(work.get_span_context().span_id, "016x")


def spans_of(url: str, count: int) -> list[dict[str, Any]]:
    """Return the spans that have come, once there are so many: Phoenix stores them in its own time."""
    request = urllib.request.Request(f"{url}/graphql", json.dumps({"query": QUERY}).encode(), {"content-type": "application/json"})
    give_up = time.monotonic() + 20
    while True:
        with urllib.request.urlopen(request) as answer:
            projects = json.load(answer)["data"]["projects"]["edges"]
        found = [edge["node"] for project in projects for edge in project["node"]["spans"]["edges"]]
        if len(found) >= count or time.monotonic() > give_up:
            return found
        time.sleep(0.1)


def test_spans_arrive_and_are_understood(phoenix: str) -> None:
    parent = make_calls(phoenix)
    spans = spans_of(phoenix, 4)
    calls = [span for span in spans if span["name"] == "chat m"]
    assert len(calls) == 3
    assert {span["parentId"] for span in calls} == {parent}
    assert sorted(span["statusCode"] for span in calls) == ["ERROR", "UNSET", "UNSET"]
    good = [json.loads(span["attributes"]) for span in calls if span["statusCode"] == "UNSET"]
    # What Phoenix made of the conventions' names, in words of its own.
    assert [one["llm"]["token_count"] for one in good] == [{"total": 9, "prompt": 5, "completion": 4}] * 2
    assert {one["llm"]["model_name"] for one in good} == {"m"}
    assert {one["openinference"]["span"]["kind"] for one in good} == {"LLM"}
    assert not any(word in json.dumps(spans) for word in ("secret", "canary"))
