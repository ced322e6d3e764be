"""Messages and options -> the body's bytes, checked before anything is sent; headers are made for each attempt."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import orjson

from ._version import __version__
from .config import (
    Config,
    Headers,
    check_count,
    check_headers,
    check_key,
    check_mapping,
    check_sampling,
    check_timeouts,
    hide_key,
)
from .errors import LLMAuthenticationError, LLMCapabilityError, LLMConfigurationError, LLMInvalidRequestError
from .providers import Embeddings, Provider, in_dialect
from .timing import Timeouts
from .types import GenerateOptions, Message, ToolCall

if TYPE_CHECKING:
    from .schema import Schema
    from .toolbox import Toolbox

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
OPTIONS = frozenset(GenerateOptions.__annotations__)
_SENT = (
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
)
_KEY_IN_PATH = re.compile(r"/sk-[^/]*")
_NOT_SENT = OPTIONS - set(_SENT)
_NAMED = {*_SENT, "response_format"}  # fields that the user gave by this name
_TIMES = ("timeout", "first_token_timeout", "deadline")
# In this order: to ask for a concrete class costs a third of what an abstract one does, and a fifth of a union.
_MAPPING = (dict, Mapping)
_SEQUENCE = (list, tuple)


@dataclass(slots=True)
class Call:
    """One call, ready to be sent as often as it takes; nothing in it changes between attempts but ``headers``."""

    url: str = field(repr=False)  # with its query
    body: bytes = field(repr=False)
    config: Config
    streams: bool  # the caller reads a stream
    streamed: bool  # the server sends one; also where a whole answer is joined from it here
    timeouts: Timeouts
    max_retries: int
    extra_headers: dict[str, str] = field(repr=False)
    choices: int
    messages: list[Any]  # as they were sent, to estimate tokens and to answer in mock mode
    fields: Mapping[str, Any]  # the body before it became bytes, for those who watch
    kind: Literal["chat", "models", "embeddings"] = "chat"
    format: Schema | None = None  # what the answer has to fit
    tools: Toolbox | None = None  # what its tool calls have to fit

    @property
    def method(self) -> Literal["POST", "GET"]:
        """The request's method."""
        return "GET" if self.kind == "models" else "POST"

    def prompt(self) -> str:
        """Return the text of all messages, to estimate tokens from."""
        return "".join(_text_of(message.get("content")) for message in self.messages)


def prepare(config: Config, messages: Any, options: Mapping[str, Any], *, streams: bool, schema: Schema | None = None) -> Call:
    """Check a call's arguments and make its body; raises before anything is sent."""
    if not options.keys() <= OPTIONS:
        unknown = min(options.keys() - OPTIONS)
        raise TypeError(f"unexpected keyword argument {unknown!r}; the options are {', '.join(sorted(OPTIONS))}")
    if streams and not config.streams:
        raise LLMCapabilityError("STREAM_ENABLED=false: call generate instead.", provider=config.provider_name)
    listed = wire_messages(messages)
    if config.provider is not None and (config.provider.text_only or not config.provider.developer):
        listed = [_accepted(config.provider, i, message) for i, message in enumerate(listed)]
    streamed = streams or (config.provider is not None and config.provider.streams_inside)
    if schema is not None:
        listed = _prompted(config.provider, listed, schema)
    tools = None
    if "tools" in options or "tool_choice" in options:
        tools, options = _with_tools(config.provider, options)
    body = _body(config, listed, options, streamed)
    if schema is not None:
        body = {**_format(config.provider, schema), **body}  # what ``extra_body`` says of it wins
    choices = body.get("n", 1)
    retries = options.get("max_retries", config.max_retries)
    return Call(
        url=config.url,
        body=_dump(body, listed),
        config=config,
        streams=streams,
        streamed=streamed,
        timeouts=_timeouts(config, options, streams),
        max_retries=check_count("max_retries", retries, 0, 1000) if "max_retries" in options else retries,
        extra_headers=check_headers("extra_headers", options["extra_headers"]) if "extra_headers" in options else {},
        choices=choices if isinstance(choices, int) else 1,
        messages=listed,
        fields=body,
        format=schema,
        tools=tools,
    )


def prepare_models(config: Config) -> Call:
    """Make the call that asks for the list of models."""
    if config.models_url is None:
        raise LLMCapabilityError(f"{config.provider_name} has no list of models.", provider=config.provider_name)
    return Call(
        url=config.models_url,
        body=b"",
        config=config,
        streams=False,
        streamed=False,
        timeouts=config.timeouts,
        max_retries=config.max_retries,
        extra_headers={},
        choices=0,
        messages=[],
        fields={},
        kind="models",
    )


def prepare_embeddings(
    config: Config,
    texts: str | Iterable[str],
    *,
    model: str | None = None,
    dimensions: int | None = None,
    batch_size: int | None = None,
    extra_body: Mapping[str, Any] | None = None,
) -> list[Call]:
    """Make the calls that ask for the embeddings of the texts, in their order; ``choices`` of each is how many it asks for."""
    known = config.provider.embeddings if config.provider else Embeddings()
    if known is None:
        raise LLMCapabilityError(f"{config.provider_name} has no embeddings.", provider=config.provider_name)
    body: dict[str, Any] = {"model": _checked_model(config.model if model is None else model)}
    if dimensions is not None:
        body["dimensions"] = check_count("dimensions", dimensions, 1, 2**31, LLMInvalidRequestError)
    if known.base64:
        body["encoding_format"] = "base64"
    body |= check_mapping("extra_body", extra_body) or {}
    most = known.texts if batch_size is None else check_count("batch_size", batch_size, 1, 2**31, LLMInvalidRequestError)
    return [_embeddings_call(config, body, batch) for batch in _batches(_checked_texts(texts), most, known.size)]


def _embeddings_call(config: Config, body: dict[str, Any], texts: list[str]) -> Call:
    fields = {"input": texts, **body}
    return Call(
        url=config.embeddings_url,
        body=_dump(fields, []),
        config=config,
        streams=False,
        streamed=False,
        timeouts=config.timeouts,
        max_retries=config.max_retries,
        extra_headers={},
        choices=len(texts),
        messages=[],
        fields=fields,
        kind="embeddings",
    )


def _checked_texts(texts: Any) -> list[tuple[str, int]]:
    """Return each text with its size in bytes."""
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
        raise LLMInvalidRequestError(f"texts must be text or a list of texts, not {type(texts).__name__}.")
    checked = [(text, _size(i, text)) for i, text in enumerate(texts)]
    if not checked:
        raise LLMInvalidRequestError("texts is empty: at least one text is needed.")
    return checked


def _size(i: int, text: Any) -> int:
    if not isinstance(text, str):
        raise LLMInvalidRequestError(f"texts[{i}] must be text, not {type(text).__name__}.")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        reason = error.reason
    raise LLMInvalidRequestError(f"texts[{i}] cannot be sent as JSON: {reason}.")


def _batches(texts: list[tuple[str, int]], most: int, largest: int) -> Iterator[list[str]]:
    """Group texts in their order, at most so many and so many bytes together; one that is larger goes alone."""
    batch: list[str] = []
    total = 0
    for text, size in texts:
        if batch and (len(batch) == most or total + size > largest):
            yield batch
            batch, total = [], 0
        batch.append(text)
        total += size
    yield batch


def on_time(call: Call, began: float) -> Call:
    """Return one call of several that have one deadline; ``began`` (of ``time.monotonic``) is when the first of them did."""
    deadline = call.timeouts.deadline
    if deadline is None:
        return call
    left = max(0.001, began + deadline - time.monotonic())
    return replace(call, timeouts=replace(call.timeouts, deadline=left))


def headers_of(call: Call, key: str | None) -> Headers:
    """Return the headers of one attempt, lower-case names, the same tuple again where nothing is new.

    What the user gave wins, whatever its case.
    """
    if call.extra_headers or not call.body:
        return _headers_of(call, key)
    known = call.config.headers
    return known.get(key, call.streamed) or known.keep(key, call.streamed, _headers_of(call, key))


def _headers_of(call: Call, key: str | None) -> Headers:
    config = call.config
    if key is None and config.key_hint:
        _check_signed(call)
    merged = {
        "accept": "text/event-stream" if call.streamed else "application/json",
        "accept-encoding": "identity",
        **({"content-type": "application/json"} if call.body else {}),
        "user-agent": f"jazz_llm/{__version__}",
    }
    if key is not None:
        merged |= authorization(config, key)
    for extra in (config.default_headers, call.extra_headers):
        merged |= {name.lower(): value for name, value in extra.items()}
    return tuple(merged.items())


def _check_signed(call: Call) -> None:
    """Raise unless a header of the user's stands for the key; here, where a traceback finds no header's value."""
    given = {name.lower() for extra in (call.config.default_headers, call.extra_headers) for name in extra}
    if not given & {"authorization", *authorization(call.config, "")}:
        raise LLMAuthenticationError(call.config.key_hint)


def ask_key(config: Config) -> str | None:
    """Return the key for one attempt."""
    given = config.api_key
    if not callable(given):  # then it was checked when the instance was made
        return None if given is None else given.reveal()
    key: Any = given()
    if inspect.isawaitable(key):
        if inspect.iscoroutine(key):
            key.close()
        raise LLMConfigurationError("api_key is an async function: it serves the async calls only.")
    key = hide_key(key)
    return None if key is None else check_key(key).reveal()


async def ask_key_async(config: Config) -> str | None:
    """Do what ``ask_key`` does, where the function may be an async one."""
    given = config.api_key
    if not callable(given):
        return None if given is None else given.reveal()
    key: Any = given()
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
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, _SEQUENCE):
        _check_iterable(messages)
    listed = [_message(i, message) for i, message in enumerate(messages)]
    if not listed:
        raise LLMInvalidRequestError("messages is empty: at least one message is needed.")
    return listed


def _check_iterable(messages: Any) -> None:
    if isinstance(messages, Mapping | Message) or not isinstance(messages, Iterable) or isinstance(messages, bytes):
        raise LLMInvalidRequestError(
            f"messages must be text or a list of messages, not {type(messages).__name__}"
            f"{' (put it in a list)' if isinstance(messages, Mapping | Message) else ''}."
        )


def _message(i: int, message: Any) -> dict[str, Any]:
    if isinstance(message, _MAPPING):
        wire = dict(message)
    elif hasattr(message, "role") and hasattr(message, "content"):
        names = ("role", "content", "name", "tool_calls", "tool_call_id")
        wire = {name: value for name in names if (value := getattr(message, name, None)) is not None}
        wire |= message.extra if isinstance(message, Message) else {}
    else:
        raise LLMInvalidRequestError(
            f"messages[{i}] must be a Message, a dict or have .role and .content, not {type(message).__name__}."
        )
    _check_role(i, wire)
    content = wire.get("content")
    if content.__class__ is not str:
        _check_content(i, wire, content)
    calls = wire.get("tool_calls")
    if calls:
        if not isinstance(calls, _SEQUENCE):
            raise LLMInvalidRequestError(f"messages[{i}].tool_calls must be a list, not {type(calls).__name__}.")
        wire["tool_calls"] = [_tool_call(i, call) for call in calls]
    return wire


def _accepted(row: Provider, i: int, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message in the form that a provider takes which takes fewer."""
    if not row.developer and message["role"] == "developer":
        message = {**message, "role": "system"}
    content = message["content"]
    if row.text_only and isinstance(content, list | tuple):
        if not all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
            raise LLMCapabilityError(f"messages[{i}].content: {row.name} takes text only.", provider=row.name)
        message = {**message, "content": "".join(part["text"] for part in content)}
    return message


def _check_role(i: int, wire: dict[str, Any]) -> None:
    role = wire.get("role")
    if role.__class__ is not str:
        role = wire["role"] = getattr(role, "value", role)  # an Enum's member
    if not isinstance(role, str) or role not in ROLES:
        raise LLMInvalidRequestError(f"messages[{i}].role must be one of {', '.join(sorted(ROLES))}, not {role!r}.")
    if role == "tool" and not wire.get("tool_call_id"):
        raise LLMInvalidRequestError(f"messages[{i}].tool_call_id is missing: a tool's message says which call it answers.")


def _check_content(i: int, wire: dict[str, Any], content: Any) -> None:
    where = f"messages[{i}].content"
    if content is None:
        if not any(wire.get(name) for name in ("tool_calls", "function_call", "refusal", "audio")):
            raise LLMInvalidRequestError(f"{where} is missing.")
        wire["content"] = None
    elif not isinstance(content, str | list | tuple):
        raise LLMInvalidRequestError(f"{where} must be text or a list of parts, not {type(content).__name__}.")
    elif not isinstance(content, str) and not all(isinstance(part, Mapping) for part in content):
        raise LLMInvalidRequestError(f"{where}: every part must be a dict such as {{'type': 'text', 'text': ...}}.")


def _tool_call(i: int, call: Any) -> Any:
    if not isinstance(call, ToolCall):
        return call
    try:
        arguments = call.raw_arguments or orjson.dumps(call.arguments, default=json_default).decode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    else:
        return _wire_call(call, arguments)
    raise LLMInvalidRequestError(f"messages[{i}].tool_calls: the arguments of {call.name!r} cannot be sent as JSON: {reason}.")


def _wire_call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}, **call.extra}


def _format(row: Provider | None, schema: Schema) -> dict[str, Any]:
    """Return the fields that tell the server of a ``response_format``, as the provider takes it."""
    if row is not None and row.structured != "json_schema":
        return {"response_format": {"type": "json_object"}} if row.structured == "json_object" else {}
    if schema.wire is not None:
        return {"response_format": schema.wire}
    inner: dict[str, Any] = {"name": schema.name, "schema": schema.json}
    if row is not None and row.strict:
        inner |= {"schema": schema.strict(row.name), "strict": True}
    told: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": inner}}
    if row is not None and row.schema_field is not None:
        told[row.schema_field] = {"json": schema.json}
    return told


def _prompted(row: Provider | None, messages: list[dict[str, Any]], schema: Schema) -> list[dict[str, Any]]:
    """Return the messages with the schema in the first system message, for a provider that does not take it as a field."""
    if row is None or row.structured == "json_schema":
        return messages
    asked = "Answer with JSON and nothing else."
    if schema.json:
        asked += f" It must fit this JSON schema:\n{json.dumps(schema.json, ensure_ascii=False)}"
    at = next((i for i, message in enumerate(messages) if message["role"] in ("system", "developer")), None)
    if at is None:
        return [{"role": "system", "content": asked}, *messages]
    content = messages[at]["content"]
    joined = f"{content}\n\n{asked}" if isinstance(content, str) else [*(content or ()), {"type": "text", "text": asked}]
    return [*messages[:at], {**messages[at], "content": joined}, *messages[at + 1 :]]


def _body(config: Config, messages: list[dict[str, Any]], options: Mapping[str, Any], streams: bool) -> dict[str, Any]:
    model = _checked_model(options.get("model", config.model))
    body: dict[str, Any] = {"model": model, "messages": messages, **_sampling(config, options)}
    stream_options = check_mapping("stream_options", options["stream_options"]) if "stream_options" in options else None
    if streams:
        body["stream"] = True
        _stream_options(body, config, stream_options)
    body |= config.extra_body
    if "extra_body" in options:
        body |= check_mapping("extra_body", options["extra_body"]) or {}
    return body


def _checked_model(model: Any) -> str:
    if not isinstance(model, str) or not model.strip():
        raise LLMInvalidRequestError(f"model must be text that is not empty, not {model!r}.")
    return model


def _sampling(config: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that go into the body, as the provider takes them; the instance's are checked already."""
    if options.keys() <= _NOT_SENT:
        return config.options
    template = check_mapping("chat_template_kwargs", options.get("chat_template_kwargs")) or {}
    given = {**config.sampling, **options, "chat_template_kwargs": {**config.chat_template_kwargs, **template} or None}
    if options.get("max_completion_tokens") is not None and "max_tokens" not in options:
        given.pop("max_tokens", None)  # two names of one limit: the call's wins over the instance's
    sampling = check_sampling({name: given[name] for name in _SENT if name in given})
    return in_dialect(config.provider, sampling)


def _stream_options(body: dict[str, Any], config: Config, given: Mapping[str, Any] | None) -> None:
    takes = config.provider is None or config.provider.stream_options
    options = {**({"include_usage": True} if takes else {}), **(given or {})}
    if options:
        body["stream_options"] = options


def _with_tools(row: Provider | None, options: Mapping[str, Any]) -> tuple[Toolbox | None, Mapping[str, Any]]:
    """Return the tools, None where there are none, and the options with them and ``tool_choice`` as they go on the wire."""
    given, choice = options.get("tools"), options.get("tool_choice")
    if given is None or given in ([], ()):
        if choice not in (None, "auto", "none") and "tools" not in (options.get("extra_body") or {}):
            raise LLMInvalidRequestError(f"tool_choice is {choice!r:.100}, but there are no tools.", param="tool_choice")
        return None, {**options, "tools": None}
    from .toolbox import Toolbox

    box = given if isinstance(given, Toolbox) else Toolbox(given)
    choice = box.choose(choice)
    if box.forced is not None and row is not None and not row.forces_tools:
        raise LLMCapabilityError(f"tool_choice: {row.name} cannot be made to call a tool.", provider=row.name)
    constrains = row.name if row is not None and row.strict_tools else None
    if box.strict and constrains is None and choice != "none" and (box.forced is None or box.told):
        # In ``run_tools`` the choice is "auto" from the second turn on.
        name = "this endpoint" if row is None else row.name
        raise LLMCapabilityError(
            f'tools: {name} does not bind a strict tool\'s arguments where tool_choice is "auto"; take "required", a tool\'s '
            "name, or strict=False (the arguments are checked here all the same).",
            provider=row.name if row else None,
        )
    return box, {**options, "tools": box.wire(constrains) or None, "tool_choice": choice}


def _timeouts(config: Config, options: Mapping[str, Any], streams: bool) -> Timeouts:
    if options.keys().isdisjoint(_TIMES):
        return config.stream_timeouts if streams else config.timeouts
    return check_timeouts(*(options.get(name, config.arguments[name]) for name in _TIMES), streams=streams)


def _dump(body: dict[str, Any], messages: list[dict[str, Any]]) -> bytes:
    try:
        return orjson.dumps(body, default=json_default)
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    raise LLMInvalidRequestError(f"{_culprit(body, messages)} cannot be sent as JSON: {reason}.")


def json_default(value: Any) -> Any:
    """Serialize what users hand in: pydantic models, mappings and sequences of other kinds."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _culprit(body: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    fields = ((name if name in _NAMED else f"extra_body[{name!r}]", value) for name, value in body.items())
    named = [*((f"messages[{i}]", m) for i, m in enumerate(messages)), *fields]
    for name, value in named:
        try:
            orjson.dumps(value, default=json_default)
        except (TypeError, ValueError, RecursionError):
            return name
    return "the request"


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in content or () if isinstance(part, Mapping))
    return "".join(text for text in texts if isinstance(text, str))


def endpoint_of(url: str) -> str:
    """Return the URL without its query, and without a key in its path, as some relays have it: for metrics and messages."""
    shown = url.partition("?")[0]
    return _KEY_IN_PATH.sub("/***", shown) if "/sk-" in shown else shown
