"""What text can say of an instance's settings, and in which type it is read; a text that does not fit is left to the check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from ..config import LIMITS, TIMEOUT_PARTS, hide_key
from ..retry import RetryPolicy

Kind = Callable[[Any], Any]


class Words(str):
    """Text from a variable, which has no types: it is read as JSON where it can be."""

    __slots__ = ()


def unquoted(text: str) -> str:
    """Return a text without the quotes around it, which Docker's ``--env-file`` takes for a part of it."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1].strip() if quoted else str(text)


def words(given: Any) -> Any:
    """Return text as text, digits too."""
    return unquoted(given) if isinstance(given, str) else given


def secret(given: Any) -> Any:
    """Return text as a secret, which no repr shows."""
    return hide_key(words(given))


def number(given: Any) -> Any:
    """Return the number that a text says; None for "null" and "none"."""
    if not isinstance(given, str):
        return given
    text = unquoted(given)
    for read in (_NONE.__getitem__, orjson.loads, float):
        try:
            return read(text.lower())
        except (ValueError, KeyError):
            continue
    return text


def flag(given: Any) -> Any:
    """Return the truth that a text says; any other text as it is (``verify`` takes a path too)."""
    return _FLAGS.get(unquoted(given).lower(), unquoted(given)) if isinstance(given, str) else given


def json(given: Any) -> Any:
    """Return what a variable says as JSON, its text where it is none; also of those inside of what YAML has typed already."""
    if isinstance(given, Words):
        return _parsed(given)
    if isinstance(given, dict):
        return {name: json(part) for name, part in given.items()}
    return [json(part) for part in given] if isinstance(given, list) else given


def _parsed(text: str) -> Any:
    for each in (text, unquoted(text)):
        try:
            return orjson.loads(str(each))  # it refuses a subclass
        except ValueError:
            continue
    return unquoted(text)


def words_or_list(given: Any) -> Any:
    """Return a list where a text is one in JSON, else the text; a JSON text can say a line end."""
    found = json(given) if isinstance(given, str) else given
    return found if isinstance(found, str | list) else words(given)


def paths(given: Any) -> Any:
    """Return a path, or several as a tuple."""
    found = words_or_list(given)
    return tuple(found) if isinstance(found, list) else found


def parts(kinds: Mapping[str, Kind], given: Any) -> Any:
    """Return the parts of a field that has some, each in its type; or the number that stands for them all."""
    if not isinstance(given, Mapping):
        return number(given)
    return {name: kinds.get(name, json)(part) for name, part in given.items()}


_NONE: dict[str, None] = {"none": None, "null": None}
_FLAGS = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}
_RETRY: dict[str, Kind] = dict.fromkeys(RetryPolicy.__dataclass_fields__, number)
# All that the constructor takes but LIVE; what has parts by a table of them.
FIELDS: dict[str, Kind | Mapping[str, Kind]] = {
    **dict.fromkeys(("model", "base_url", "chat_endpoint", "proxy", "provider"), words),
    "api_key": secret,
    **dict.fromkeys(("temperature", "max_tokens", "top_p", "seed"), number),
    **dict.fromkeys(("first_token_timeout", "deadline", "max_retries", "max_response_bytes", "max_event_bytes"), number),
    **dict.fromkeys(("http2", "verify", "trust_env"), flag),
    **dict.fromkeys(("chat_template_kwargs", "extra_body", "default_headers", "default_query"), json),
    "stop": words_or_list,
    "cert": paths,
    "timeout": dict.fromkeys(TIMEOUT_PARTS, number),
    "limits": dict.fromkeys(LIMITS, number),
    "retry": {**_RETRY, "ambiguous": flag, "budget": flag, "statuses": json},
    "stream_enabled": flag,  # not of the constructor: it is for who runs a program, not for who writes it
}
LIVE = ("transport", "async_transport", "hooks")  # objects, which no text can say
TEXTS = ("default_headers", "default_query")  # mappings of text to text
ALIASES: dict[str, tuple[str, ...]] = {
    "endpoint_url": ("base_url",),
    "model_api_url": ("base_url",),
    "model_name": ("model",),
    "request_timeout_seconds": ("timeout", "request"),
    "stream_timeout_seconds": ("timeout", "stream"),
}
NAMES = (*FIELDS, *ALIASES)


def is_live(name: str) -> str:
    """Say what to do with the name of a live object, "" for any other name."""
    return f"{name} is an object: pass it as an argument." if name in LIVE else ""
