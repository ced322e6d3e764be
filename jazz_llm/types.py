"""The values that go into a call and come out of it: plain dataclasses with hardly any behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypedDict, TypeVar

from .images import image_parts

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import httpx

    from .errors import LLMError
    from .tools import Tool

T = TypeVar("T", default=Any)


@dataclass(slots=True)
class ToolCall:
    """One call the model asks for: ``arguments`` parsed, ``raw_arguments`` as they came."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw_arguments: str = ""
    extra: dict[str, Any] = field(default_factory=dict)  # what the provider wants back with it (thought signatures)


@dataclass(slots=True)
class Message:
    """One turn of the conversation.

    ``content`` is text, a list of OpenAI content parts, or None beside ``tool_calls``. ``extra`` holds fields that only one
    provider knows; they are sent as they are.
    """

    role: str
    content: str | list[dict[str, Any]] | None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @classmethod
    def system(cls, content: str) -> Message:
        """Make the turn that sets the rules."""
        return cls("system", content)

    @classmethod
    def user(
        cls, content: str | list[dict[str, Any]] | None, *, images: Sequence[str | os.PathLike[str] | bytes] | None = None
    ) -> Message:
        """Make a turn of the person.

        ``images``: each the path of a PNG, JPEG, GIF or WebP file, its bytes (20 MB at most, either), or a URL
        (``https://``, ``http://``, ``data:``), which is sent as it is. Files are read here. ``content`` "" or
        None sends no text part.

        Raises ``LLMInvalidRequestError``, which names the image, where one cannot be read or is no such image.
        """
        parts = [] if images is None else image_parts(images)
        if not parts:
            return cls("user", content)
        if content is None or isinstance(content, str):
            content = [{"type": "text", "text": content}] if content else []
        return cls("user", [*content, *parts])

    @classmethod
    def assistant(cls, content: str | None, tool_calls: list[ToolCall] | None = None) -> Message:
        """Make a turn of the model."""
        return cls("assistant", content, tool_calls=tool_calls)

    @classmethod
    def tool(cls, call: ToolCall, result: str) -> Message:
        """Make the turn that answers a tool call."""
        return cls("tool", result, tool_call_id=call.id)


@dataclass(frozen=True, slots=True)
class LLMUsage:
    """Tokens of one call, the same for every provider; ``total_tokens`` is always prompt + completion.

    ``cached_tokens`` and ``cache_write_tokens`` are parts of the prompt, ``reasoning_tokens`` of the completion; None means
    not reported. ``cost`` is USD where the provider reports one. ``estimated``: a count was not given and is len/4 of the text.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost: float | None = None
    estimated: bool = False
    raw: Mapping[str, Any] | None = None


@dataclass(slots=True)
class ToolResult:
    """What running one call came to: ``output`` is the text that the model was told, ``error`` what went wrong, or None."""

    call: ToolCall
    output: str
    error: Exception | None = None


@dataclass(slots=True)
class RateLimits:
    """What the server's headers say is left; ``*_reset_s`` is seconds until the bucket is full again."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None


@dataclass(slots=True)
class CallMetrics:
    """Measurements of one call; bytes are of the bodies, times of the last try."""

    endpoint: str = ""
    status_code: int | None = None
    http_version: str = ""
    attempts: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    time_to_first_token_ms: float | None = None
    tokens_per_second: float | None = None
    streamed_internally: bool = False


@dataclass(slots=True)
class Choice:
    """One of the answers, where ``n`` asked for several."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    reasoning: str | None = None


@dataclass(slots=True, kw_only=True)
class LLMResponse(Generic[T]):
    """A whole answer; every field but ``text`` has a default, so that a fake is cheap to make.

    ``finish_reason`` is normalized (``stop length tool_calls content_filter error``), the server's own word is in ``raw``,
    which is the server's JSON untouched or, for a stream, the chunks merged into one such object. ``transcript`` and
    ``tool_results`` are of ``run_tools``: all that was said, this answer last, and what the tools gave, in their order.
    """

    text: str
    usage: LLMUsage = field(default_factory=lambda: LLMUsage(0, 0, 0))
    model: str = ""
    latency_ms: float = 0.0
    finish_reason: str | None = None
    raw: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    request_id: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    parsed: T | None = None
    choices: list[Choice] = field(default_factory=list)
    logprobs: Any = None
    message: Message = field(default_factory=lambda: Message("assistant", ""))
    metrics: CallMetrics = field(default_factory=CallMetrics)
    rate_limits: RateLimits | None = None
    transcript: list[Message] = field(default_factory=list)
    tool_results: list[ToolResult] = field(default_factory=list)


class StreamEventKind(StrEnum):
    """What a ``StreamEvent`` tells.

    TOKEN_DELTA, REASONING_DELTA, REFUSAL_DELTA: ``text`` is a piece of the answer, the reasoning, a refusal. TOOL_CALL_DELTA:
    ``text`` is a piece of a call's arguments, ``tool_call`` its id and name so far. TOOL_CALL_CANDIDATE: ``tool_call``, whole
    and validated; once a call. STRUCTURED_OUTPUT: ``parsed`` is what ``response_format`` asked for; once. ERROR: ``error`` is
    what ended the stream. DONE: ``response`` is the answer, or what had come of it; once, the last.
    """

    TOKEN_DELTA = "token_delta"  # noqa: S105  # no secret
    REASONING_DELTA = "reasoning_delta"
    REFUSAL_DELTA = "refusal_delta"
    TOOL_CALL_DELTA = "tool_call_delta"
    TOOL_CALL_CANDIDATE = "tool_call_candidate"
    STRUCTURED_OUTPUT = "structured_output"
    ERROR = "error"
    DONE = "done"


@dataclass(slots=True)
class StreamEvent:
    """One step of an answer; ``kind`` says which of the fields are set, ``index`` which choice it belongs to.

    The ``tool_call`` of a TOOL_CALL_DELTA says which call it is, by its id and its name as far as they have come, and nothing
    of the arguments: these are the ``text`` of its events, joined, and come parsed with TOOL_CALL_CANDIDATE.
    """

    kind: StreamEventKind
    text: str = ""
    tool_call: ToolCall | None = None
    parsed: Any = None
    error: LLMError | None = None
    response: LLMResponse[Any] | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of the server's list.

    ``created`` is seconds since 1970. ``context_length`` is in tokens, prompt and answer together, as the server says it; None
    means not told. ``raw`` is the server's entry, untouched.
    """

    id: str
    created: int | None = None
    owned_by: str | None = None
    context_length: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


class RunOptions(TypedDict, total=False):
    """Options of ``run_tools``, which takes the tools by themselves; what is not given here comes from the instance."""

    model: str
    temperature: float | None
    max_tokens: int | None
    max_completion_tokens: int | None
    top_p: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    n: int | None
    logprobs: bool | None
    top_logprobs: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    user: str | None
    reasoning_effort: str | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    stream_options: Mapping[str, Any] | None
    mock_response: str | None
    timeout: float | httpx.Timeout | None
    first_token_timeout: float | None
    deadline: float | None
    max_retries: int
    extra_body: Mapping[str, Any] | None
    extra_headers: Mapping[str, str] | None
    chat_template_kwargs: Mapping[str, Any] | None


class GenerateOptions(RunOptions, total=False):
    """Options of one call; what is not given here comes from the instance."""

    tools: Sequence[Callable[..., Any] | Tool | Mapping[str, Any]] | None
