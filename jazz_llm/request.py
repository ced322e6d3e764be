"""Messages and options -> the body's bytes, checked before anything is sent; headers are made for each attempt."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ._version import __version__
from .config import (
    Config,
    check_count,
    check_headers,
    check_key,
    check_mapping,
    check_sampling,
    check_timeouts,
    hide_key,
)
from .errors import LLMAuthenticationError, LLMCapabilityError, LLMConfigurationError, LLMInvalidRequestError
from .timing import Timeouts
from .types import GenerateOptions, Message, ToolCall

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
OPTIONS = frozenset(GenerateOptions.__annotations__)
_SENT = [
    "temperature",
    "max_tokens",
    "max_completion_tokens",
    "top_p",
    "stop",
    "seed",
    "n",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "user",
    "reasoning_effort",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "mock_response",
]


@dataclass(slots=True)
class Call:
    """One call, ready to be sent as often as it takes; nothing in it changes between attempts but ``headers``."""

    url: str
    body: bytes
    config: Config
    streams: bool
    timeouts: Timeouts
    max_retries: int
    extra_headers: dict[str, str]
    choices: int
    messages: list[Any]  # as they were sent, to estimate tokens and to answer in mock mode

    def prompt(self) -> str:
        """Return the text of all messages, to estimate tokens from."""
        return "".join(_text_of(message.get("content")) for message in self.messages)


def prepare(config: Config, messages: Any, options: Mapping[str, Any], *, streams: bool) -> Call:
    """Check a call's arguments and make its body; raises before anything is sent."""
    unknown = sorted(options.keys() - OPTIONS)
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; the options are {', '.join(sorted(OPTIONS))}")
    listed = wire_messages(messages)
    body = _body(config, listed, options, streams)
    return Call(
        url=config.url,
        body=_dump(body, listed),
        config=config,
        streams=streams,
        timeouts=_timeouts(config, options),
        max_retries=check_count("max_retries", options.get("max_retries", config.max_retries), 0, 1000),
        extra_headers=check_headers("extra_headers", options.get("extra_headers")),
        choices=body.get("n", 1) if isinstance(body.get("n", 1), int) else 1,
        messages=listed,
    )


def headers_of(call: Call, key: str | None) -> list[tuple[str, str]]:
    """Make the headers of one attempt; what the user gave wins, whatever its case."""
    config = call.config
    merged = {
        "accept": "text/event-stream" if call.streams else "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": f"jazz_llm/{__version__}",
    }
    if key is not None:
        merged |= authorization(config, key)
    for extra in (config.default_headers, call.extra_headers):
        merged |= {name.lower(): value for name, value in extra.items()}
    if key is None and config.key_hint and not merged.keys() & {"authorization", *authorization(config, "")}:
        raise LLMAuthenticationError(config.key_hint)
    return list(merged.items())


def ask_key(config: Config) -> str | None:
    """Return the key for one attempt."""
    key: Any = config.api_key() if callable(config.api_key) else config.api_key
    if inspect.isawaitable(key):
        if inspect.iscoroutine(key):
            key.close()
        raise LLMConfigurationError("api_key is an async function: it serves the async calls only.")
    key = hide_key(key)
    return None if key is None else check_key(key).reveal()


async def ask_key_async(config: Config) -> str | None:
    """Do what ``ask_key`` does, where the function may be an async one."""
    key: Any = config.api_key() if callable(config.api_key) else config.api_key
    if inspect.isawaitable(key):
        key = await key
    key = hide_key(key)
    return None if key is None else check_key(key).reveal()


def authorization(config: Config, key: str) -> dict[str, str]:
    """Return the header that carries the key."""
    name = config.provider.key_header if config.provider else None
    return {name: key} if name else {"authorization": f"Bearer {key}"}


def wire_messages(messages: Any) -> list[dict[str, Any]]:
    """Return the messages as OpenAI dicts, each checked; ``str`` is one user message."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping | Message) or not isinstance(messages, Iterable) or isinstance(messages, bytes):
        raise LLMInvalidRequestError(
            f"messages must be text or a list of messages, not {type(messages).__name__}"
            f"{' (put it in a list)' if isinstance(messages, Mapping | Message) else ''}."
        )
    listed = [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    if not listed:
        raise LLMInvalidRequestError("messages is empty: at least one message is needed.")
    return listed


def _message(where: str, message: Any) -> dict[str, Any]:
    if isinstance(message, Mapping):
        wire = dict(message)
    elif hasattr(message, "role") and hasattr(message, "content"):
        names = ("role", "content", "name", "tool_calls", "tool_call_id")
        wire = {name: value for name in names if (value := getattr(message, name, None)) is not None}
        wire |= message.extra if isinstance(message, Message) else {}
    else:
        raise LLMInvalidRequestError(
            f"{where} must be a Message, a dict or have .role and .content, not {type(message).__name__}."
        )
    _check_role(where, wire)
    _check_content(where, wire)
    calls = wire.get("tool_calls")
    if calls:
        if not isinstance(calls, list | tuple):
            raise LLMInvalidRequestError(f"{where}.tool_calls must be a list, not {type(calls).__name__}.")
        wire["tool_calls"] = [_tool_call(where, call) for call in calls]
    return wire


def _check_role(where: str, wire: dict[str, Any]) -> None:
    role = wire.get("role")
    role = getattr(role, "value", role)  # an Enum's member
    if not isinstance(role, str) or role not in ROLES:
        raise LLMInvalidRequestError(f"{where}.role must be one of {', '.join(sorted(ROLES))}, not {role!r}.")
    wire["role"] = role
    if role == "tool" and not wire.get("tool_call_id"):
        raise LLMInvalidRequestError(f"{where}.tool_call_id is missing: a tool's message says which call it answers.")


def _check_content(where: str, wire: dict[str, Any]) -> None:
    content = wire.get("content")
    if content is None:
        if not any(wire.get(name) for name in ("tool_calls", "function_call", "refusal", "audio")):
            raise LLMInvalidRequestError(f"{where}.content is missing.")
        wire["content"] = None
    elif not isinstance(content, str | list | tuple):
        raise LLMInvalidRequestError(f"{where}.content must be text or a list of parts, not {type(content).__name__}.")
    elif not isinstance(content, str) and not all(isinstance(part, Mapping) for part in content):
        raise LLMInvalidRequestError(f"{where}.content: every part must be a dict such as {{'type': 'text', 'text': ...}}.")


def _tool_call(where: str, call: Any) -> Any:
    if not isinstance(call, ToolCall):
        return call
    try:
        arguments = call.raw_arguments or orjson.dumps(call.arguments, default=_plain).decode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    else:
        return _wire_call(call, arguments)
    raise LLMInvalidRequestError(f"{where}.tool_calls: the arguments of {call.name!r} cannot be sent as JSON: {reason}.")


def _wire_call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}, **call.extra}


def _body(config: Config, messages: list[dict[str, Any]], options: Mapping[str, Any], streams: bool) -> dict[str, Any]:
    model = options.get("model", config.model)
    if not isinstance(model, str) or not model.strip():
        raise LLMInvalidRequestError(f"model must be text that is not empty, not {model!r}.")
    body: dict[str, Any] = {"model": model, "messages": messages}
    template = {
        **(config.chat_template_kwargs or {}),
        **(check_mapping("chat_template_kwargs", options.get("chat_template_kwargs")) or {}),
    }
    given = {**config.sampling, **options, "chat_template_kwargs": template or None}
    sampling = check_sampling({name: given.get(name) for name in _SENT})
    _check_tools(sampling)
    body |= sampling
    stream_options = check_mapping("stream_options", options.get("stream_options"))
    if streams:
        body["stream"] = True
        _stream_options(body, config, stream_options)
    extra = check_mapping("extra_body", options.get("extra_body")) or {}
    return {**body, **config.extra_body, **extra}


def _stream_options(body: dict[str, Any], config: Config, given: Mapping[str, Any] | None) -> None:
    takes = config.provider is None or config.provider.stream_options
    options = {**({"include_usage": True} if takes else {}), **(given or {})}
    if options:
        body["stream_options"] = options


def _check_tools(sampling: dict[str, Any]) -> None:
    tools = sampling.get("tools", ())
    if not isinstance(tools, list | tuple):
        raise LLMInvalidRequestError(f"tools must be a list, not {type(tools).__name__}.")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise LLMCapabilityError(f"tools[{i}]: this version takes tools as OpenAI dicts only, not {type(tool).__name__}.")


def _timeouts(config: Config, options: Mapping[str, Any]) -> Timeouts:
    if not options.keys() & {"timeout", "first_token_timeout", "deadline"}:
        return config.timeouts
    known = config.arguments
    return check_timeouts(*(options.get(name, known[name]) for name in ("timeout", "first_token_timeout", "deadline")))


def _dump(body: dict[str, Any], messages: list[dict[str, Any]]) -> bytes:
    try:
        return orjson.dumps(body, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    raise LLMInvalidRequestError(f"{_culprit(body, messages)} cannot be sent as JSON: {reason}.")


def _plain(value: Any) -> Any:
    """Serialize what users hand in: pydantic models, mappings and sequences of other kinds."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _culprit(body: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    fields = ((name if name in _SENT else f"extra_body[{name!r}]", value) for name, value in body.items())
    named = [*((f"messages[{i}]", m) for i, m in enumerate(messages)), *fields]
    for name, value in named:
        try:
            orjson.dumps(value, default=_plain)
        except (TypeError, ValueError, RecursionError):
            return name
    return "the request"


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in content or () if isinstance(part, Mapping))
    return "".join(text for text in texts if isinstance(text, str))


def endpoint_of(url: str) -> str:
    """Return the URL without its query, for metrics and messages."""
    return re.sub(r"\?.*", "", url)
