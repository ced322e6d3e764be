"""``jazz-llm doctor``: ask an endpoint what it really supports, by trying it, and print a line for each answer.

Every line is what came back from a real call, not what the registry says. Whether a server notices that nobody listens any more
can only be seen where it counts the requests that it is working on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import orjson

from ..client import OpenAICompatibleLLM
from ..errors import LLMClosedError, LLMError, LLMStatusError
from ..request import ask_key, endpoint_of, prepare
from ..response import without
from ..response.parsing import parse_json
from ..sse import SSEDecoder
from ..types import LLMResponse
from ..usage import usage_of
from .endpoint import Where, other_endpoint_options
from .output import one_line
from .pages import ENVIRONMENT, EXIT_CODES, Page, option_in

if TYPE_CHECKING:
    import httpx

_ADVICE = "which endpoint? Give its URL or --provider NAME, or set OPENAI_API_KEY (or pass --api-key)."
_UNNAMED = "unnamed"
YES, NO, UNCLEAR = "yes", "no", "unclear"
_COLOURS = {YES: "green", NO: "red", UNCLEAR: "yellow"}
QUESTION = "Which colour is a clear sky at noon? Answer in one word."
ENOUGH = 200  # tokens: one word of a model that thinks first
LONG = 4000  # tokens: enough time to stop it
ANSWERS = ["red", "green", "blue"]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ANSWERS}},
    "required": ["colour"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": SCHEMA}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "paint", "description": "Paint it.", "parameters": SCHEMA}}
# Where servers count the requests that they are working on: llama.cpp's server README; the metrics pages of docs.vllm.ai,
# docs.sglang.ai and text-generation-inference.
SLOTS, METRICS = "/slots", "/metrics"
_RUNNING = re.compile(
    r"^(?:vllm:num_requests_running|sglang:num_running_reqs|llamacpp:requests_processing|tgi_batch_current_size)"
    r"(?:\{[^}]*\})?\s+([0-9]{1,18}(?:\.[0-9]{1,18})?(?:e\+[0-9]{1,2})?)\s*$",
    re.MULTILINE,
)
PATIENCE = 5.0  # seconds for the server to notice
LOOK = 0.02  # seconds between two looks
LONGEST = 60.0  # seconds that a stream is listened to
MOST = 4 * 2**20  # bytes of an answer that are read here: a server may never stop


class Finding(NamedTuple):
    """The answer to one question."""

    verdict: str
    detail: str = ""


@dataclass(slots=True)
class Stream:
    """One stream as it came over the wire."""

    content_type: str = ""
    payloads: list[bytes] = field(default_factory=list)
    reads: int = 0  # that held an event
    first_ms: float = 0.0
    refused: str = ""  # what the server said to stream_options
    text: str = ""  # of an answer that is no stream

    def chunks(self) -> list[Any]:
        """Return the events, read as JSON."""
        return [parse_json(payload) for payload in self.payloads]


_SECTIONS = {
    "Examples": (
        ("jazz-llm doctor http://localhost:8080", "What a server of yours can do, with the first model that it lists:"),
        ("jazz-llm doctor --provider groq -m llama-3.3-70b-versatile", "What a provider can do with one model:"),
    ),
    "Exit codes": (*EXIT_CODES[:1], ("1", "The endpoint does not answer at all."), *EXIT_CODES[2:]),
    "Environment": ENVIRONMENT,
}


@click.command(cls=Page, sections=_SECTIONS, short_help="Find out what an endpoint really supports.")
@click.argument("base_url", metavar="[URL]", required=False)
@option_in(group="What to ask")("-m", "--model", help="The model's name; else the first one that the endpoint lists.")
@other_endpoint_options
def doctor(*, where: Where, model: str | None) -> int:
    """Ask the endpoint at URL what it supports, with a dozen short calls; without URL: OPENAI_BASE_URL, or OpenAI.

    Each line is what came of real calls: yes, no or unclear, and why. The last two say whether the server goes on
    generating when nobody listens any more, which can be seen only where it counts the requests that it works on.
    """
    with where.llm(_ADVICE, model=model, unnamed=_UNNAMED, max_retries=0) as llm:
        named = llm._config.model if llm._config.model != _UNNAMED else None
        _line("endpoint", endpoint_of(llm._config.url))
        listed: list[str] = []
        _report("models", _models, llm, listed)
        if named is None and not listed:
            raise click.UsageError("which model? Pass -m MODEL.")
        asked = llm.with_options(model=named or listed[0])
        _line("model", f"{_shown(asked._config.model)}{' (the first; -m MODEL takes another)' if named is None else ''}")
        if not _report("whole answers", _whole, asked):
            return 1
        _report_stream(asked)
        _report("json_schema", _json_schema, asked)
        _report("tools", _tools, asked)
        _report("stream stopped", _stopped, asked, lambda asker: asker.stream(QUESTION, max_tokens=LONG).finish())
        _report("answer stopped", _stopped, asked, lambda asker: asker.generate(QUESTION, max_tokens=LONG))
    return 0


def _report(name: str, check: Callable[..., Finding], *arguments: object) -> bool:
    """Print the name, do the check, print what it found; return whether that was yes."""
    import httpx

    click.echo(f"{name:<18} ", nl=False)  # at once: a check can take its time
    try:
        verdict, detail = check(*arguments)
    except (LLMError, httpx.HTTPError) as error:
        verdict, detail = NO, str(error)
    click.echo(f"{click.style(f'{verdict:<8}', fg=_COLOURS[verdict])} {_shown(detail)}".rstrip())
    return verdict == YES


def _line(name: str, value: str) -> None:
    click.echo(f"{name:<18} {value}")


def _shown(text: str, most: int = 120) -> str:
    """Return a stranger's words on one line of printable characters."""
    words = one_line(text)
    return words if len(words) <= most else words[: most - 3] + "..."


def _models(llm: OpenAICompatibleLLM, listed: list[str]) -> Finding:
    listed += [_shown(model.id) for model in llm.list_models()]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return Finding(YES if listed else NO, ", ".join(listed[:3]) + more)


def _answer(llm: OpenAICompatibleLLM, text: str = QUESTION, **options: Any) -> LLMResponse[Any]:
    return llm.generate(text, max_tokens=ENOUGH, **options)


def _whole(llm: OpenAICompatibleLLM) -> Finding:
    response = _answer(llm)
    usage = "usage is not given" if response.usage.estimated else "usage is given"
    inside = ", asked for as a stream" if response.metrics.streamed_internally else ""
    return Finding(YES, f"{response.latency_ms:.0f} ms, {usage}, {response.metrics.http_version}{inside}")


def _report_stream(llm: OpenAICompatibleLLM) -> None:
    stream = Stream()
    _report("streaming", _streaming, llm, stream)
    if stream.payloads:
        _report("usage in streams", _usage, stream)
        _report("[DONE]", lambda: Finding(YES if b"[DONE]" in stream.payloads else NO))


def _streaming(llm: OpenAICompatibleLLM, stream: Stream) -> Finding:
    answer = _read(llm, stream, {"stream_options": {"include_usage": True}})
    if answer.status_code in (400, 422):
        stream.refused = _shown(stream.text)
        answer = _read(llm, stream, {})
    if not answer.is_success:
        return Finding(NO, f"HTTP {answer.status_code}: {_shown(stream.text)}")
    if not stream.payloads:
        return Finding(NO, f"the answer is {_shown(stream.content_type) or 'nothing'}, no event stream")
    pace = f"{len(stream.payloads)} events in {stream.reads} reads, the first after {stream.first_ms:.0f} ms"
    return Finding(YES if stream.reads > 1 else UNCLEAR, pace)


def _read(llm: OpenAICompatibleLLM, stream: Stream, more: dict[str, Any]) -> httpx.Response:
    """Read a stream as it comes over the wire; the text of an answer that is none is read too."""
    plain = orjson.loads(prepare(llm._config, QUESTION, {"max_tokens": ENOUGH}, streams=True).body)
    plain.pop("stream_options", None)
    body = orjson.dumps({**plain, **more})
    headers = {"content-type": "application/json", "accept": "text/event-stream"}
    sent = time.monotonic()
    with llm.client.stream("POST", llm._config.url, content=body, headers=headers) as answer:
        key = ask_key(llm._config)  # some servers say it back
        stream.content_type = without(answer.headers.get("content-type", ""), key)
        if not answer.is_success or not stream.content_type.startswith("text/event-stream"):
            stream.text = without(_start_of(answer).decode("utf-8", "replace"), key)
            return answer
        decoder, received = SSEDecoder(), 0
        for data in answer.iter_raw():
            received += len(data)
            payloads = decoder.feed(data)
            if payloads and not stream.payloads:
                stream.first_ms = (time.monotonic() - sent) * 1000
            stream.payloads += payloads
            stream.reads += bool(payloads)
            if b"[DONE]" in payloads or received > MOST or time.monotonic() - sent > LONGEST:
                break
    return answer


def _start_of(answer: httpx.Response) -> bytes:
    """Return the body, or as much of it as is read here."""
    body = bytearray()
    for data in answer.iter_bytes():
        body += data
        if len(body) > MOST:
            break
    return bytes(body)


def _usage(stream: Stream) -> Finding:
    found = any(isinstance(chunk, dict) and usage_of(chunk) for chunk in stream.chunks())
    detail = f"stream_options is refused: {stream.refused}" if stream.refused else "asked for by stream_options"
    return Finding(YES if found else NO, detail)


def _json_schema(llm: OpenAICompatibleLLM) -> Finding:
    response = _answer(llm, extra_body={"response_format": RESPONSE_FORMAT})
    try:
        kept = orjson.loads(response.text)["colour"] in ANSWERS
    except (ValueError, LookupError, TypeError):
        kept = False
    if not kept and response.finish_reason == "length":
        return Finding(UNCLEAR, f"its {ENOUGH} tokens were used up before the answer")
    return Finding(YES, response.text) if kept else Finding(NO, f"taken, but not kept to: {_shown(response.text, 50)!r}")


def _tools(llm: OpenAICompatibleLLM) -> Finding:
    try:
        response = _answer(llm, extra_body={"tools": [TOOL], "tool_choice": "required"})
        refused = ""
    except LLMStatusError as error:
        response = _answer(llm, "Paint the wall blue.", extra_body={"tools": [TOOL]})
        refused = f"; tool_choice='required' is refused: {_shown(error.message)}"
    calls = ", ".join(f"{call.name}({call.raw_arguments})" for call in response.tool_calls)
    return Finding(YES if calls else NO, (calls or f"no call came{'' if refused else ', though one was required'}") + refused)


def _stopped(llm: OpenAICompatibleLLM, ask: Callable[[OpenAICompatibleLLM], object]) -> Finding:
    """Ask for a long answer, stop it as soon as the server works on it, and watch the server's own count."""
    before = _running(llm)
    if before is None:
        return Finding(UNCLEAR, f"the server does not say how many requests it is working on ({SLOTS}, {METRICS})")
    with ThreadPoolExecutor(1) as threads, closing(llm.with_options()) as asker:
        answer = threads.submit(ask, asker)
        while (_running(llm) or 0) <= before:
            if answer.done():
                answer.result()
                return Finding(UNCLEAR, "the answer was over before it could be stopped")
            time.sleep(LOOK)
        asker.close()
        left = time.monotonic()
        if not isinstance(answer.exception(), LLMClosedError):
            return Finding(UNCLEAR, "the answer was over before it could be stopped")
        while (_running(llm) or 0) > before:
            if time.monotonic() - left > PATIENCE:
                return Finding(NO, f"the server was still working on it {PATIENCE:.0f} s later")
            time.sleep(LOOK)
    return Finding(YES, f"the server had stopped within {(time.monotonic() - left) * 1000:.0f} ms")


def _running(llm: OpenAICompatibleLLM) -> float | None:
    """Return how many requests the server is working on, by its own count; None where it has none."""
    try:
        return float(sum(bool(slot["is_processing"]) for slot in orjson.loads(_got(llm, SLOTS))))
    except (ValueError, LookupError, TypeError):
        pass
    counts = _RUNNING.findall(_got(llm, METRICS).decode("utf-8", "replace"))
    return sum(map(float, counts)) if counts else None


def _got(llm: OpenAICompatibleLLM, path: str) -> bytes:
    """Return what the server answers, nothing where it has no such page."""
    import httpx

    try:
        with llm.client.stream("GET", path) as answer:
            return _start_of(answer) if answer.is_success else b""
    except httpx.DecodingError:
        return b""
