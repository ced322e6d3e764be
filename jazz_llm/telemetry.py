"""OpenTelemetry: a span and three metrics for each call, by the GenAI semantic conventions. Needs the extra ``otel``.

The conventions are at "development", so names may change; all of them are in the tables here. Where they are from:
``opentelemetry-semantic-conventions`` 0.66b2 (``semconv/_incubating``: ``attributes/gen_ai_attributes.py``,
``metrics/gen_ai_metrics.py``), and open-telemetry/semantic-conventions-genai, ``docs/gen-ai/gen-ai-spans.md``,
``gen-ai-metrics.md`` (buckets, what is required, provider names) and ``gen-ai-{input,output}-messages.json``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from ._version import __version__
from .errors import LLMConfigurationError, LLMError
from .hooks import ErrorRecord, Hooks, RequestRecord, ResponseRecord
from .request import json_default

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from .types import Choice, LLMResponse, LLMUsage

_SCOPE = "jazz_llm"
_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
# "true" was the word until the variable got several; the events that the others ask for are not made here.
_CONTENT_WORDS = frozenset({"true", "1", "span_only", "span_and_event"})

# --- the names

_OPERATION, _PROVIDER = "gen_ai.operation.name", "gen_ai.provider.name"
_REQUEST_MODEL, _RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
_ADDRESS, _PORT = "server.address", "server.port"
_ERROR, _TOKEN_TYPE = "error.type", "gen_ai.token.type"
_STREAM, _CHOICES, _OUTPUT = "gen_ai.request.stream", "gen_ai.request.choice.count", "gen_ai.output.type"
_FORMATS, _STOP = "gen_ai.request.encoding_formats", "gen_ai.request.stop_sequences"
_ID, _REASONS, _FIRST_CHUNK = "gen_ai.response.id", "gen_ai.response.finish_reasons", "gen_ai.response.time_to_first_chunk"
_INPUT_MESSAGES, _OUTPUT_MESSAGES = "gen_ai.input.messages", "gen_ai.output.messages"
_TOOLS = "gen_ai.tool.definitions"
# Fields of the request's body, and the kind of number that each is.
_REQUEST: dict[str, tuple[str, type[int | float]]] = {
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", float),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "max_tokens": ("gen_ai.request.max_tokens", int),
    "max_completion_tokens": ("gen_ai.request.max_tokens", int),
    "seed": ("gen_ai.request.seed", int),
    "dimensions": ("gen_ai.embeddings.dimension.count", int),
}
# Fields of ``LLMUsage``.
_USAGE = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}
# Name, unit, description, bucket boundaries.
_SECONDS = [0.01 * 2**i for i in range(14)]
_DURATION = ("gen_ai.client.operation.duration", "s", "GenAI operation duration.", _SECONDS)
_TIME_TO_FIRST = (
    "gen_ai.client.operation.time_to_first_chunk",
    "s",
    "Time to receive the first chunk, measured from when the client issues the generation request.",
    _SECONDS,
)
_TOKENS = ("gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", [4**i for i in range(14)])
_FINISH = {"tool_calls": "tool_call"}  # the one word that is another in an output message
# The registry's name -> the conventions', where it is another; a provider that they do not know keeps its own.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "github": "azure.ai.inference",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex": "gcp.vertex_ai",
    "xai": "x_ai",
}
_UNKNOWN = "openai"  # an endpoint that is not in the registry: what it speaks is all that is known


def otel_hooks(tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None) -> Hooks:
    """Return hooks that make a span and metrics of each call: ``OpenAICompatibleLLM(..., hooks=otel_hooks())``.

    A call is one CLIENT span ``chat {model}`` or ``embeddings {model}`` over all its tries and the reading of its stream, a
    child of the span that is current when the request goes out; a list of models gets none. ``run_tools`` makes one for each
    turn. Messages, answers and the definitions of tools are put on the span, as JSON, only where the environment variable
    ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``true`` or ``span_only`` when this is called. Counts of tokens
    that the server did not give are left out.

    Args:
        tracer_provider: Where spans go; None: the global one.
        meter_provider: Where metrics go; None: the global one.

    Raises:
        LLMConfigurationError: The extra ``otel`` is not installed.
    """
    telemetry = _Telemetry(tracer_provider, meter_provider)
    return Hooks(on_request=telemetry.begin, on_response=telemetry.end, on_error=telemetry.fail)


class _Telemetry:
    """The spans under way, by the id of their call."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError:
            raise LLMConfigurationError('OpenTelemetry is not installed: pip install "jazz_llm[otel]"') from None
        self._providers = tracer_provider, meter_provider
        self._trace = trace
        self._tracer = trace.get_tracer(_SCOPE, __version__, tracer_provider)
        meter = metrics.get_meter(_SCOPE, __version__, meter_provider)
        self._duration, self._first, self._tokens = (
            meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)
            for name, unit, description, buckets in (_DURATION, _TIME_TO_FIRST, _TOKENS)
        )
        self._content = os.environ.get(_CONTENT, "").lower() in _CONTENT_WORDS
        self._calls: dict[str, tuple[Span, dict[str, Any], float]] = {}  # span, what its metrics share, when it began

    def __reduce__(self) -> tuple[Any, ...]:
        # An instance that is pickled (spawn, Celery) takes its hooks along: they begin anew there.
        return _Telemetry, self._providers

    def begin(self, record: RequestRecord) -> None:
        if record.operation == "models":
            return
        common = _common(record)
        span = self._tracer.start_span(
            f"{record.operation} {record.model}", kind=self._trace.SpanKind.CLIENT, attributes=common
        )
        self._calls[record.id] = span, common, time.perf_counter()
        if span.is_recording():
            span.set_attributes(_asked(record))
            if self._content:
                span.set_attributes(_input(record.body))

    def end(self, record: ResponseRecord) -> None:
        self._close(record.request, record.response, None)

    def fail(self, record: ErrorRecord) -> None:
        error = record.error
        self._close(record.request, error.partial if isinstance(error, LLMError) else None, error)

    def _close(self, record: RequestRecord, response: LLMResponse[Any] | None, error: Exception | None) -> None:
        span, common, began = self._calls.pop(record.id, (None, {}, 0.0))
        if span is None:
            return
        seconds = time.perf_counter() - began
        try:
            if response is not None and span.is_recording():
                self._describe(span, record, response)
            if error is not None:
                self._mark(span, error)
        finally:
            span.end()
        self._measure(common, seconds, response, error)

    def _describe(self, span: Span, record: RequestRecord, response: LLMResponse[Any]) -> None:
        span.set_attributes(_answered(record, response))
        if self._content and record.operation == "chat":
            span.set_attribute(_OUTPUT_MESSAGES, _json([_output(choice, response) for choice in response.choices]))

    def _mark(self, span: Span, error: Exception) -> None:
        """Set the status of a failure; what the error says in words may quote the prompt, so it is not told."""
        name = type(error).__name__
        span.set_attribute(_ERROR, name)
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, name))

    def _measure(
        self, common: dict[str, Any], seconds: float, response: LLMResponse[Any] | None, error: Exception | None
    ) -> None:
        attributes = dict(common)
        if response is not None and response.model:
            attributes[_RESPONSE_MODEL] = response.model
        self._duration.record(seconds, attributes if error is None else {**attributes, _ERROR: type(error).__name__})
        if response is None:
            return
        first = _first_chunk(response)
        if first is not None:
            self._first.record(first, attributes)
        if not response.usage.estimated:
            _record_tokens(self._tokens, response.usage, attributes)


def _record_tokens(histogram: Histogram, usage: LLMUsage, attributes: dict[str, Any]) -> None:
    for kind, count in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
        if count:
            histogram.record(count, {**attributes, _TOKEN_TYPE: kind})


def _common(record: RequestRecord) -> dict[str, Any]:
    """Return what identifies a call, for samplers, and for metrics."""
    url = urlsplit(record.url)
    return {
        _OPERATION: record.operation,
        _PROVIDER: _PROVIDERS.get(record.provider or _UNKNOWN, record.provider or _UNKNOWN),
        _REQUEST_MODEL: record.model,
        _ADDRESS: url.hostname or "",
        _PORT: url.port or (443 if url.scheme == "https" else 80),
    }


def _asked(record: RequestRecord) -> dict[str, Any]:
    """Return the settings of a request, each of the kind that the conventions want; what is of another kind is left out."""
    body = record.body
    found: dict[str, Any] = {name: kind(body[field]) for field, (name, kind) in _REQUEST.items() if _is_number(body.get(field))}
    if record.streams:
        found[_STREAM] = True
    stop, choices = body.get("stop"), body.get("n")
    if isinstance(stop, str | list | tuple):
        found[_STOP] = [stop] if isinstance(stop, str) else [str(text) for text in stop]
    if isinstance(choices, int) and choices > 1:
        found[_CHOICES] = choices
    if isinstance(wanted := body.get("response_format"), Mapping):
        found[_OUTPUT] = "text" if wanted.get("type") == "text" else "json"
    if isinstance(encoding := body.get("encoding_format"), str):
        found[_FORMATS] = [encoding]
    return found


def _is_number(value: Any) -> bool:
    # OTLP's integers have 64 bits: one that is larger would cost its exporter the whole batch.
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _answered(record: RequestRecord, response: LLMResponse[Any]) -> dict[str, Any]:
    told: dict[str, Any] = {_RESPONSE_MODEL: response.model, _ID: response.id, _FIRST_CHUNK: _first_chunk(response)}
    if record.operation == "chat":
        told[_REASONS] = [_reason(choice.finish_reason) for choice in response.choices if choice.finish_reason] or None
    if not response.usage.estimated:
        told |= {name: getattr(response.usage, field) for field, name in _USAGE.items()}
    if record.operation == "embeddings":
        told.pop(_USAGE["completion_tokens"], None)  # there are none
    return {name: value for name, value in told.items() if value is not None and value != ""}


def _reason(word: str) -> str:
    """Return a finish_reason; of a provider's own only what is a word, since it could be anything."""
    return word if re.fullmatch(r"[A-Za-z_]{1,40}", word) else "other"


def _first_chunk(response: LLMResponse[Any]) -> float | None:
    first = response.metrics.time_to_first_token_ms
    return None if first is None else first / 1e3


# --- content


def _input(body: Mapping[str, Any]) -> dict[str, str]:
    found, messages, tools = {}, body.get("messages"), body.get("tools")
    if isinstance(messages, list):
        found[_INPUT_MESSAGES] = _json([_message(message) for message in messages])
    if isinstance(tools, list):
        found[_TOOLS] = _json([_tool(tool) for tool in tools])
    return found


def _message(message: Any) -> dict[str, Any]:
    """Return a message of OpenAI's as a list of parts."""
    if not isinstance(message, Mapping):
        return {"role": "", "parts": []}
    role, content = str(message.get("role", "")), message.get("content")
    if role == "tool":
        return {"role": role, "parts": [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]}
    parts = [_text(content)] if isinstance(content, str) else [_part(part) for part in content or ()]
    return {"role": role, "parts": [*parts, *(_call(call) for call in message.get("tool_calls") or ())]}


def _text(text: Any, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, "content": text}


def _part(part: Any) -> Any:
    """Return a part of a message; text and images by URL have a form of their own, the rest goes as it is."""
    if not isinstance(part, Mapping):
        return _text(part)
    if part.get("type") == "text":
        return _text(part.get("text"))
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str):
        return part
    kind, _, data = url.partition(";base64,")
    if url.startswith("data:") and data:
        return {"type": "blob", "modality": "image", "mime_type": kind.removeprefix("data:"), "content": data}
    return {"type": "uri", "modality": "image", "uri": url}


def _call(call: Any) -> dict[str, Any]:
    call = call if isinstance(call, Mapping) else {}
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    return {"type": "tool_call", "id": call.get("id"), "name": function.get("name"), "arguments": _parsed(arguments)}


def _parsed(arguments: Any) -> Any:
    try:
        return orjson.loads(arguments)
    except (TypeError, ValueError):
        return arguments


def _tool(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return {"type": "function", **function} if isinstance(function, Mapping) else tool


def _output(choice: Choice, response: LLMResponse[Any]) -> dict[str, Any]:
    parts = [_text(choice.reasoning, "reasoning")] if choice.reasoning else []
    text = choice.text or (response.refusal if choice is response.choices[0] else None)
    if text:
        parts.append(_text(text))
    parts += [
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments} for call in choice.tool_calls
    ]
    reason = choice.finish_reason or ""
    return {"role": "assistant", "parts": parts, "finish_reason": _FINISH.get(reason, reason)}


def _json(value: Any) -> str:
    return orjson.dumps(value, default=json_default).decode()
