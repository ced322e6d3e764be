"""Canaries: secrets that nothing may show, and the search for them in everything that could be shown.

A ``Watch`` gives each instance made while it lasts a key, an organization and a token in headers, and keeps what is made:
log records of all libraries, instances, streams, responses, errors. ``SOURCES`` says where is searched, one function each.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import logging
import pickle
import re
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jazz_llm import LLMError, LLMResponse, OpenAICompatibleLLM, client
from jazz_llm.config import hide_key
from jazz_llm.streams import _StreamState
from jazz_llm.telemetry import otel_hooks

# Each has characters that JSON, URLs, HTML and Python's repr write in another way, and a middle that they leave as it is.
KEY = 'sk-"<canarykey-b7f3/d2\\9%41+e=>'
ORGANIZATION = "org-canaryorganization-51c0"
TOKEN = "Bearer canarytoken-9e44/af+="
CANARIES = {"key": KEY, "organization": ORGANIZATION, "token": TOKEN}
HEADERS = {"OpenAI-Organization": ORGANIZATION, "X-Gateway-Authorization": TOKEN}

SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON with slashes escaped": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON with all escaped": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "JSON as PHP and Go write it": lambda text: re.sub(r"[<>&'+]", lambda m: f"\\u{ord(m[0]):04X}", json.dumps(text)[1:-1]),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text))[3:-3],
    "repr": lambda text: repr(text)[1:-1],
    "URL": lambda text: quote(text, safe=""),
    "URL with all escaped": lambda text: "".join(f"%{ord(c):02x}" for c in text),
    "HTML": html.escape,
}


class Watch:
    """Keeps what is made while it lasts; ``monkeypatch`` ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.instances: list[weakref.ref[Any]] = []
        self.streams: list[weakref.ref[Any]] = []
        self.shown: list[str] = []  # of instances and streams, which are not kept alive
        self.settings: list[str] = []
        self.responses: list[LLMResponse[Any]] = []
        self.errors: list[LLMError] = []
        self.files: list[Path] = []
        self.spans, self.metrics = InMemorySpanExporter(), InMemoryMetricReader()
        self._listen(monkeypatch)
        self._collect(monkeypatch)
        self._inject(monkeypatch)

    def _listen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have all libraries log all, but for the server of the tests: what it was sent is its own to log."""
        handler = logging.Handler(logging.DEBUG)
        form = logging.Formatter("%(name)s %(levelname)s %(message)s %(args)r")
        handler.emit = lambda record: self.said.append(form.format(record))  # type: ignore[method-assign]
        handler.addFilter(lambda record: record.threadName != "FakeServer")
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [*root.handlers, handler])
        monkeypatch.setattr(root, "level", logging.DEBUG)
        logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]  # as setLevel would

    def _collect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def after(cls: type, name: str, look: Callable[..., Any]) -> None:
            real = getattr(cls, name)

            @functools.wraps(real)
            def wrapped(this: Any, *args: Any, **options: Any) -> Any:
                result = real(this, *args, **options)
                look(this, *args)
                return result

            monkeypatch.setattr(cls, name, wrapped)

        after(LLMError, "__init__", lambda error, *_: self.errors.append(error))
        after(OpenAICompatibleLLM, "__init__", self._meet)
        after(_StreamState, "__init__", lambda stream, *_: self.streams.append(weakref.ref(stream)))
        after(_StreamState, "_complete", lambda stream, response: (self.responses.append(response), self.shown.append(f"{stream!r} {stream}")))

    def _meet(self, llm: OpenAICompatibleLLM, *_: Any) -> None:
        self.instances.append(weakref.ref(llm))
        self.shown.append(f"{llm!r} {llm}")
        # An organization's id is a setting like any other.
        self.settings.append(f"{llm.to_dict()}".replace(ORGANIZATION, ""))

    def _inject(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give each instance the canaries, where it has no key or such header of its own, and the hooks of OpenTelemetry."""
        traces = TracerProvider(shutdown_on_exit=False)
        traces.add_span_processor(SimpleSpanProcessor(self.spans))
        hooks = otel_hooks(traces, MeterProvider([self.metrics], shutdown_on_exit=False))
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
        real = client.configure

        def configure(arguments: dict[str, Any]) -> Any:
            arguments = {**arguments, "default_headers": {**HEADERS, **(arguments["default_headers"] or {})}}
            if arguments["api_key"] is None:
                arguments["api_key"] = hide_key(KEY)
            if not arguments["hooks"]:
                arguments["hooks"] = [hooks]
            return real(arguments)

        monkeypatch.setattr(client, "configure", configure)

    def leaks(self) -> list[str]:
        """Search everywhere; return where what was found."""
        found = []
        for source in SOURCES:
            for text in source(self):
                found += [f"{source.__name__}: the {name}, {how}" for name, how in secrets_in(text)]
        return sorted(set(found))

    def forget(self) -> None:
        """Let go of what was kept: what a traceback holds may have to be collected, and complain, before its test is over."""
        self.errors.clear()
        self.responses.clear()


def secrets_in(text: str | bytes) -> Iterator[tuple[str, str]]:
    """Yield which canary a text holds, and how it is spelled there."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    readings = {text, unquote(text), html.unescape(text), re.sub(r"\\u00([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), text)}
    for name, canary in CANARIES.items():
        middle = re.search(r"canary\w+-\w+", canary)
        assert middle is not None
        if any(middle[0] in reading for reading in readings):
            yield name, "in whatever spelling"
        for begin in range(3):  # where the groups of three begin depends on what is before
            coded = base64.b64encode(middle[0][begin:].encode())[:-4].decode()
            if coded in text:
                yield name, "as base64"


# --- where is searched


def logs(watch: Watch) -> Iterator[str]:
    yield from watch.said


def instances_and_streams(watch: Watch) -> Iterator[str]:
    yield from watch.shown
    alive = (one() for one in (*watch.instances, *watch.streams))
    yield from (f"{one!r} {one}" for one in alive if one is not None)


def settings(watch: Watch) -> Iterator[str]:
    """Yield what ``to_dict`` says of them."""
    yield from watch.settings


def responses(watch: Watch) -> Iterator[str]:
    yield from (f"{response!r} {response}" for response in watch.responses)


def errors(watch: Watch) -> Iterator[str]:
    yield from (f"{error!r} {error} {error.args!r} {vars(error)!r} {error.__cause__!r}" for error in watch.errors)


def tracebacks(watch: Watch) -> Iterator[str]:
    """Yield them with their locals, as error reporters show them, less the frames of the tests, which hold the canaries."""
    for error in watch.errors:
        left: list[traceback.TracebackException] = [traceback.TracebackException.from_exception(error, capture_locals=True, lookup_lines=False)]
        while left:
            one = left.pop()
            left += [other for other in (one.__cause__, one.__context__, *(one.exceptions or ())) if other is not None]
            yield "".join(one.format_exception_only())
            yield from (f"{frame.name} {frame.locals}" for frame in one.stack if "/tests/" not in frame.filename)


def pickles(watch: Watch) -> Iterator[bytes]:
    """Yield them of responses and errors (an instance's own carries the key, for spawn)."""
    for thing in (*watch.responses, *watch.errors):
        try:
            yield pickle.dumps(thing)
        except (pickle.PicklingError, AttributeError, TypeError):  # an answer of a class that a test has made inside a function
            assert getattr(thing, "parsed", None) is not None or isinstance(thing, LLMError)


def spans(watch: Watch) -> Iterator[str]:
    """Yield OpenTelemetry's spans and metrics."""
    yield from (span.to_json() for span in watch.spans.get_finished_spans())
    data = watch.metrics.get_metrics_data()
    yield "" if data is None else data.to_json()


def cassettes(watch: Watch) -> Iterator[bytes]:
    yield from (file.read_bytes() for file in watch.files if file.exists())


SOURCES: list[Callable[[Watch], Iterator[str | bytes]]] = [logs, instances_and_streams, settings, responses, errors, tracebacks, pickles, spans, cassettes]
