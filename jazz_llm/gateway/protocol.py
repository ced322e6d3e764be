"""The messages: what comes in -> a request or a problem; what goes out -> bytes. Nothing here waits or knows a socket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal, NamedTuple

import orjson

from ..config import Secret
from ..errors import (
    LLMAuthenticationError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMPermissionDeniedError,
    LLMTimeoutError,
)
from ..types import LLMResponse, LLMUsage

MAX_MESSAGE = 16 * 2**20  # bytes of one message that comes in; a longer one closes the socket with 1009
MOST_OBJECTS = 200_000  # objects and arrays in it: 5 million would take 600 MB, and hold everybody up for seconds
LONGEST_ID = 256  # characters


class Code(StrEnum):
    """What ``error`` says: the published protocol's words."""

    SUCCESS = "SUCCESS"
    UNEXPECTED = "UNEXPECTED"
    AUTHORIZATION = "AUTHORIZATION"
    INVALID_PROMPT = "INVALID_PROMPT"
    INVALID_PROVIDER = "INVALID_PROVIDER"
    INVALID_MODEL = "INVALID_MODEL"
    TIMEOUT = "TIMEOUT"
    INTERRUPT = "INTERRUPT"


# The one table of errors, the first row that fits; a context that is too long and a content filter are invalid requests.
# LLMConfigurationError is not here: what is wrong in a ``load`` is its provider, or its key.
CODES: tuple[tuple[type[BaseException], Code], ...] = (
    (LLMAuthenticationError, Code.AUTHORIZATION),
    (LLMPermissionDeniedError, Code.AUTHORIZATION),
    (LLMInvalidRequestError, Code.INVALID_PROMPT),
    (LLMNotFoundError, Code.INVALID_MODEL),
    (LLMTimeoutError, Code.TIMEOUT),
)


def code_of(error: BaseException) -> Code:
    """Return the code of an error that ended a call."""
    return next((code for kind, code in CODES if isinstance(error, kind)), Code.UNEXPECTED)


class MessageType(NamedTuple):
    """One row of the protocol's table; every message also carries ``type`` and ``unique_request_id``."""

    name: str
    direction: Literal["in", "out"]
    fields: tuple[str, ...]  # with a "?" behind those that may be missing
    when: str


_END = ("is_error", "error", "error_detail")
_SAID = ("usage", "finish_reason")
MESSAGES = (
    MessageType("load", "in", ("provider", "api_key?", "preload_model_id?", "base_url?"), "first, or to ask elsewhere"),
    MessageType("generate", "in", ("messages", "params?", "stream?"), "once something is loaded"),
    MessageType("interrupt", "in", ("target?",), "to end one generation, or all"),
    MessageType("close", "in", (), "to end the gateway"),
    MessageType("get_providers", "in", (), "any time"),
    MessageType("get_models", "in", (), "once something is loaded"),
    MessageType("load_ack", "out", ("provider",), "at once"),
    MessageType("load_done", "out", ("provider", *_END), "key and endpoint were tried"),
    MessageType("generate_ack", "out", (), "at once"),
    MessageType("generate_done", "out", (*_END, "response", *_SAID), "the whole answer"),
    MessageType("generate_stream_chunk", "out", ("chunk",), "a piece of the answer"),
    MessageType("generate_stream_done", "out", (*_END, *_SAID), "after the last piece"),
    MessageType("interrupt_ack", "out", (), "at once; done messages follow"),
    MessageType("close_ack", "out", (), "at once; sockets close then"),
    MessageType("get_providers_done", "out", ("providers", "key_needed", "base_url_needed"), "at once"),
    MessageType("get_models_done", "out", ("models", "providers", *_END), "at once"),
    MessageType("error", "out", ("error", "error_detail"), "no done message fits"),
)


@dataclass(frozen=True, slots=True)
class Load:
    """Ask to use a provider from now on."""

    id: str
    provider: str
    api_key: Secret | None = None
    preload_model_id: str | None = None
    base_url: str | None = None
    kind: ClassVar[str] = "load"


@dataclass(frozen=True, slots=True)
class Generate:
    """Ask for an answer. ``messages`` and ``params`` are as they came, but for their outer type."""

    id: str
    messages: list[Any] = field(repr=False)
    params: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    kind: ClassVar[str] = "generate"


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ask to end one generation (``target``), or all."""

    id: str
    target: str | None = None
    kind: ClassVar[str] = "interrupt"


@dataclass(frozen=True, slots=True)
class Close:
    """Ask the gateway to end."""

    id: str
    kind: ClassVar[str] = "close"


@dataclass(frozen=True, slots=True)
class GetProviders:
    """Ask what can be loaded."""

    id: str
    kind: ClassVar[str] = "get_providers"


@dataclass(frozen=True, slots=True)
class GetModels:
    """Ask which models the loaded provider has."""

    id: str
    kind: ClassVar[str] = "get_models"


@dataclass(frozen=True, slots=True)
class Problem:
    """A message that is none of the requests: ``answers`` say so, to the ``id`` that it has, if any."""

    id: str | None
    answers: tuple[bytes, ...]


Request = Load | Generate | Interrupt | Close | GetProviders | GetModels


class _Wrong(Exception):  # noqa: N818 - it is how a reader tells ``parse``, and no error
    def __init__(self, detail: str, code: Code = Code.UNEXPECTED) -> None:
        self.detail = detail
        self.code = code


# What comes in


def parse(data: str | bytes) -> Request | Problem:
    """Return the request in a message, text or binary, or what to answer to one that is none."""
    if _objects(data) > MOST_OBJECTS:
        return _problem(None, f"The message has more than {MOST_OBJECTS:,} objects and arrays.")
    try:
        given = _json(data)
    except (ValueError, RecursionError):
        return _problem(None, "The message is not JSON in UTF-8.")
    if not isinstance(given, dict):
        return _problem(None, "The message is not a JSON object.")
    id_ = given.get("unique_request_id")
    if not isinstance(id_, str) or not 0 < len(id_) <= LONGEST_ID:
        return _problem(None, f"unique_request_id must be text of 1 to {LONGEST_ID} characters.")
    name = given.get("type")
    read = _READERS.get(name) if isinstance(name, str) else None
    if read is None:
        return _problem(id_, f"type must be one of {', '.join(_READERS)}.")
    try:
        request: Request | Problem = read(id_, given)
    except _Wrong as wrong:
        return _problem(id_, wrong.detail)
    return request


def _objects(data: str | bytes) -> int:
    """Count what may begin an object or an array, those in texts included: a guess, but one that takes no time."""
    begins = ("{", "[") if isinstance(data, str) else (b"{", b"[")
    return sum(map(data.count, begins))  # type: ignore[arg-type]  # of the same type


def _json(data: str | bytes) -> Any:
    """Return what JSON says, also with half a surrogate pair in it, as JavaScript writes them: its request gets an answer."""
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(data)


def _problem(id_: str | None, detail: str) -> Problem:
    return Problem(id_, (error(id_, Code.UNEXPECTED, detail),))


def _load(id_: str, given: dict[str, Any]) -> Load | Problem:
    key = Secret(given.pop("api_key", None))
    provider = given.get("provider", given.get("llm"))  # older texts of the published protocol say llm
    shown = provider if isinstance(provider, str) else ""
    try:
        if not shown:
            raise _Wrong("provider must be a provider's name; get_providers lists them.", Code.INVALID_PROVIDER)
        if key.reveal() is not None and not isinstance(key.reveal(), str):
            raise _Wrong("api_key must be text.", Code.AUTHORIZATION)
        model, url = _text(given, "preload_model_id", Code.INVALID_MODEL), _text(given, "base_url", Code.INVALID_PROVIDER)
    except _Wrong as wrong:
        return Problem(id_, (load_ack(id_, shown), load_done(id_, shown, wrong.code, wrong.detail)))
    return Load(id_, shown, key if key.reveal() else None, model, url)


def _generate(id_: str, given: dict[str, Any]) -> Generate | Problem:
    messages, params, stream = given.get("messages"), given.get("params"), given.get("stream")
    streams = stream is True
    try:
        if not isinstance(messages, list) or not messages:
            raise _Wrong("messages must be a list of at least one message with role and content.", Code.INVALID_PROMPT)
        if params is not None and not isinstance(params, dict):
            raise _Wrong("params must be an object.", Code.INVALID_PROMPT)
        if stream is not None and not isinstance(stream, bool):
            raise _Wrong("stream must be true or false.", Code.INVALID_PROMPT)
    except _Wrong as wrong:
        return Problem(id_, (generate_ack(id_), generate_done(id_, wrong.code, wrong.detail, streams=streams)))
    return Generate(id_, messages, params or {}, streams)


def _interrupt(id_: str, given: dict[str, Any]) -> Interrupt:
    return Interrupt(id_, _text(given, "target", Code.UNEXPECTED))


def _text(given: Mapping[str, Any], name: str, code: Code) -> str | None:
    """Return a text that may be missing; "" is what a form sends that was left empty."""
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise _Wrong(f"{name} must be text.", code)
    return value or None


_READERS: dict[str, Any] = {
    "load": _load,
    "generate": _generate,
    "interrupt": _interrupt,
    "close": lambda id_, _: Close(id_),
    "get_providers": lambda id_, _: GetProviders(id_),
    "get_models": lambda id_, _: GetModels(id_),
}


# What goes out


def dumped(value: Any) -> bytes:
    """Return JSON; text with half a surrogate pair, which UTF-8 cannot say, is escaped."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def _message(type_: str, id_: str | None, **fields: Any) -> bytes:
    return dumped({"type": type_, "unique_request_id": id_, **fields})


def _end(code: Code, detail: str) -> dict[str, Any]:
    return {"is_error": code is not Code.SUCCESS, "error": code.value, "error_detail": detail}


def load_ack(id_: str, provider: str) -> bytes:
    """Say that a load has begun."""
    return _message("load_ack", id_, provider=provider)


def load_done(id_: str, provider: str, code: Code = Code.SUCCESS, detail: str = "") -> bytes:
    """Say how a load ended."""
    return _message("load_done", id_, provider=provider, **_end(code, detail))


def generate_ack(id_: str) -> bytes:
    """Say that a generation has begun."""
    return _message("generate_ack", id_)


def generate_done(
    id_: str,
    code: Code = Code.SUCCESS,
    detail: str = "",
    *,
    streams: bool = False,
    response: LLMResponse[Any] | None = None,
) -> bytes:
    """Say how a generation ended: ``response`` is the answer, of one that failed what is known of it."""
    said = {"usage": None, "finish_reason": None} if response is None else _said(response)
    if streams:
        return _message("generate_stream_done", id_, **_end(code, detail), **said)
    text = response.text if response is not None and code is Code.SUCCESS else ""
    return _message("generate_done", id_, **_end(code, detail), response=text, **said)


def _said(response: LLMResponse[Any]) -> dict[str, Any]:
    return {"usage": _counts(response.usage), "finish_reason": response.finish_reason}


def _counts(usage: LLMUsage) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in LLMUsage.__dataclass_fields__ if name != "raw"}


class Chunks:
    """The chunks of one generation: all that they share is written once."""

    __slots__ = ("_head",)

    def __init__(self, id_: str) -> None:
        self._head = _message("generate_stream_chunk", id_)[:-1] + b',"chunk":'

    def message(self, text: str) -> bytes:
        """Return the message of one piece of text."""
        try:
            return b"%b%b}" % (self._head, orjson.dumps(text))
        except TypeError:
            return b"%b%b}" % (self._head, dumped(text))


def interrupt_ack(id_: str) -> bytes:
    """Say that generations are being ended."""
    return _message("interrupt_ack", id_)


def close_ack(id_: str) -> bytes:
    """Say that the gateway ends."""
    return _message("close_ack", id_)


def get_providers_done(
    id_: str, providers: Sequence[str], *, key_needed: Sequence[str] = (), base_url_needed: Sequence[str] = ()
) -> bytes:
    """Say what can be loaded, and which of it only with a key, or a URL, of the client's own."""
    return _message("get_providers_done", id_, providers=providers, key_needed=key_needed, base_url_needed=base_url_needed)


def get_models_done(id_: str, models: Sequence[str], code: Code = Code.SUCCESS, detail: str = "") -> bytes:
    """Say which models there are; the published text calls them providers, the published client reads models."""
    return _message("get_models_done", id_, models=models, providers=models, **_end(code, detail))


def error(id_: str | None, code: Code, detail: str) -> bytes:
    """Say what is wrong with a message to which no done message fits."""
    return _message("error", id_, error=code.value, error_detail=detail)
