"""Status, headers and body -> the error they mean. ``headers`` reads the headers, ``words`` knows what the words mean."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..errors import (
    LLMAuthenticationError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMOverloadedError,
    LLMPermissionDeniedError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMStatusError,
)
from ..providers import BY_NAME
from ..retry import RETRYABLE
from .headers import request_id_of, retry_hint
from .parsing import INVALID, parse_json, text_of, text_or_none
from .words import by_status, class_of

MAX_ERROR_BODY = 64 * 1024
_MAX_BODY = 4096  # bytes of it that the error keeps
_MAX_MESSAGE = 2000
_MAX_WORD = 200


def says_error(body: Mapping[str, Any], *, top: bool = True) -> bool:
    """Say whether an object of a 200 answer is an error: under its own key, or flat with no answer beside it."""
    if body.get("error"):
        return True
    if not top:
        return False
    base = body.get("base_resp")  # MiniMax
    if isinstance(base, dict) and base.get("status_code"):
        return True
    if body.get("choices"):
        return False
    if body.get("success") is False or body.get("errors") or "error" in (body.get("object"), body.get("type")):
        return True
    if "choices" in body or not any(map(body.get, _MESSAGES)):
        return False
    # Flat: with a status, or with a code in words (Cerebras), or FastAPI's, which is all there is.
    words = any(isinstance(body.get(name), str) for name in ("code", "error_code"))
    return words or body.keys() == {"detail"} or any(map(_status, map(body.get, _STATUS_NAMES)))


def error_from(
    status: int,
    headers: Mapping[str, str],
    body: Any,
    *,
    provider: str | None = None,
    statuses: frozenset[int] = RETRYABLE,
    url: str = "",
    now: float | None = None,
) -> LLMStatusError:
    """Return the error that an answer means; ``body`` is its bytes or the JSON already read from it, ``url`` whose it is."""
    text = text_of(body, headers.get("content-type", "")) if isinstance(body, bytes) else _dumped(body)
    said = _read(_parsed(text) if isinstance(body, bytes) else body, text)
    said.codes += [headers[name].partition(":")[0].lower()[:_MAX_WORD] for name in _CODE_HEADERS if name in headers]
    hints = headers if status >= 300 else {}  # Together sends retry-after on 200
    if status < 400 and said.status is not None:  # an error inside a 200; a status of HTTP's own stands
        status = said.status
    cls = class_of(status, said.codes, said.prose(), provider)
    if status == 429 and said.code is None and "overloaded" in said.prose().lower():
        said.code = "overloaded"
    return cls(
        f"{said.message or _phrase(status)} (HTTP {status}){_advice(cls, status, headers, url, provider)}",
        retryable=_is_retryable(cls, status, headers, said, statuses),
        provider=provider,
        status_code=status,
        body=text[:_MAX_BODY].encode("utf-8", "replace")[:_MAX_BODY].decode("utf-8", "ignore"),
        headers=headers,
        request_id=request_id_of(headers, provider, said.request_id),
        code=said.code,
        type=said.type,
        param=said.param,
        retry_after=_hint(cls, hints, said, now),
    )


def _dumped(body: Any) -> str:
    try:
        return orjson.dumps(body, default=repr).decode()
    except TypeError:  # lone surrogates, huge integers, depth: what only the tolerant parser had let in
        pass
    try:
        return json.dumps(body, default=repr)
    except (ValueError, RecursionError):
        return "(nested too deep)"


def _parsed(text: str) -> Any:
    """Return the JSON of a body, also where it came as an event stream; of half an object what can be read of it."""
    value = parse_json(text.encode("utf-8", "replace"))
    if value is not INVALID:
        return value
    if event := _EVENT.search(text):
        value = parse_json(event[1].encode("utf-8", "replace"))
    if value is INVALID and text.lstrip()[:1] in ("{", "["):
        value = {found[1]: found[2] for found in reversed(list(_FIELD.finditer(text)))} or INVALID
    return value


_EVENT = re.compile(r"^(?:data|error):[ \t]?([{\[].*)$", re.MULTILINE)
_FIELD = re.compile(r'"(message|code|type|status|detail)"\s{0,8}:\s{0,8}"((?:[^"\\]|\\.){1,2000})')


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "No message")


def _advice(cls: type[LLMStatusError], status: int, headers: Mapping[str, str], url: str, provider: str | None) -> str:
    """Say what to look at: the URL, or the key, where that is likely to be what is wrong."""
    if issubclass(cls, LLMAuthenticationError):
        variables = BY_NAME[provider].key_env if provider in BY_NAME else ()
        return f"; check api_key{''.join(f' or {name}' for name in variables)}."
    if not url or (status not in (404, 405) and not 300 <= status < 400):
        return ""
    target = f", which points to {headers['location'][:200]}" if "location" in headers else ""
    return f" from {url}{target}; check base_url and the model's name."


def _hint(cls: type[LLMStatusError], headers: Mapping[str, str], said: _Said, now: float | None) -> float | None:
    """Return the wait that was asked for: headers, then headers told in the body, then the body's words.

    Words count only where waiting can help: those of a rejected request may be the caller's own.
    """
    if issubclass(cls, LLMQuotaExceededError):
        return None
    rejected = issubclass(cls, (LLMInvalidRequestError, LLMAuthenticationError, LLMPermissionDeniedError, LLMNotFoundError))
    hint = retry_hint(headers, now=now)
    if hint is None and not rejected:
        hint = retry_hint(said.headers, f"{said.message}\n{said.rest}", now)
    return hint


# Where a failure's class came from words, the status that says the same is asked instead.
_NOMINAL: dict[type[LLMStatusError], int] = {LLMRateLimitError: 429, LLMOverloadedError: 503, LLMInternalError: 500}


def _is_retryable(
    cls: type[LLMStatusError], status: int, headers: Mapping[str, str], said: _Said, statuses: frozenset[int]
) -> bool:
    wish = headers.get("x-should-retry", "").strip().lower()
    if wish in ("true", "false"):
        return wish == "true" and cls is not LLMQuotaExceededError
    if cls is LLMQuotaExceededError:
        return False
    if cls is LLMRateLimitError and "request too large" in said.message.lower():
        return False  # asks for more than the limit itself: no wait makes it fit
    return (status if by_status(status) is cls else _NOMINAL.get(cls)) in statuses


@dataclass(slots=True)
class _Said:
    """What an error body says, whatever its shape."""

    message: str = ""
    code: str | None = None
    type: str | None = None
    param: str | None = None
    status: int | None = None
    request_id: str | None = None
    rest: str = ""  # the details, as JSON
    codes: list[str] = field(default_factory=list)  # every word of a machine, lower-case
    headers: dict[str, str] = field(default_factory=dict)  # of the provider behind a gateway

    def prose(self) -> str:
        """Return what is told to people; some put it where the code belongs."""
        return f"{self.message}\n{self.code}" if self.code and " " in self.code else self.message


# Where the sentence is; the first that is there. The policy's, then those of OAuth, Huawei and others.
_MESSAGES = (
    "message",
    "Message",
    "msg",
    "detail",
    "title",
    "error_description",
    "error_message",
    "error_msg",
    "errorMessage",
    "status_msg",
    "reason",
)
_DETAILS = ("details", "metadata", "innererror")
# Names under which a machine's words stand, at the top or in the details.
_CODE_NAMES = frozenset(
    {"code", "type", "status", "error_code", "error_type", "__type", "reason", "quotaId", "limit_source", "errorCode"}
)
_STATUS_NAMES = ("status_code", "code", "status", "statusCode", "http_code", "raw_status_code", "error_code")
_CODE_HEADERS = ("x-amzn-errortype", "x-ms-error-code")
# A gateway's message that holds the error it got: as JSON, as Python's repr of it, or by the name of LiteLLM's class.
_WRAPPED = re.compile(r"[\"'](?:code|type|status)\\{0,3}[\"']: ?\\{0,3}[\"']([\w.-]{1,100})|\blitellm\.(\w{1,80}?)(?:Error)?\b")


def _read(parsed: Any, text: str) -> _Said:
    """Read an error body by the policy's order: list, error object, error text, errors[], base_resp, flat, FastAPI, text."""
    said = _Said()
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    if isinstance(parsed, dict):
        _read_object(said, parsed)
    elif isinstance(parsed, str):
        said.message = parsed[:500]
    elif re.match(r"\s*<[!?a-zA-Z]", text):
        said.message = page_title(text)
    elif parsed is INVALID and text.count("\ufffd", 0, 500) < 50:  # more of them are no text, but brotli, say
        said.message = " ".join(text[:5000].split())[:500]
    said.codes += [found.lower() for pair in _WRAPPED.findall(said.message) for found in pair if found]
    return said


def _read_object(said: _Said, body: dict[str, Any]) -> None:
    error, base = body.get("error"), body.get("base_resp")
    if not error and isinstance(body.get("detail"), dict):  # FastAPI around an error object
        error = body["detail"].get("error") or body["detail"]
    error = error or body.get("errors")
    if isinstance(error, list) and error:
        error = error[0] if isinstance(error[0], dict) else "; ".join(map(_detail, error))
    if isinstance(error, dict):
        _read_flat(said, error)
        said.type = said.type or _word(body.get("error_type"))
    elif isinstance(error, str) and error:
        _read_flat(said, body)
        said.codes += [] if " " in error else [error[:_MAX_WORD].lower()]
        sibling = next((text for name in _MESSAGES if (text := text_or_none(body.get(name)))), None)
        said.message = " ".join(filter(None, (error, sibling)))[:_MAX_MESSAGE]
    elif isinstance(base, dict) and base.get("status_code"):
        said.code, said.message = _word(base["status_code"]), str(text_or_none(base.get("status_msg")) or "")[:_MAX_MESSAGE]
        said.codes.append(f"base_resp {said.code}")
    else:
        _read_flat(said, body)
    owners = (body, error if isinstance(error, dict) else {})
    said.request_id = next((found for owner in owners if (found := _word(owner.get("request_id")))), None)


def _read_flat(said: _Said, error: dict[str, Any]) -> None:
    error = _innermost(error)
    found = next((error[name] for name in _MESSAGES if error.get(name)), "")
    if isinstance(found, list):
        found = "; ".join(map(_detail, found))
    said.message = found[:_MAX_MESSAGE] if isinstance(found, str) else _dumped(found)[:_MAX_MESSAGE]
    said.code = _word(error.get("code") or error.get("error_code"))
    said.type = _word(error.get("type") or error.get("error_type") or error.get("status") or error.get("__type"))
    said.param = _word(error.get("param")) if error.get("param") != "None" else None  # LiteLLM's
    said.status = next((s for s in map(_status, map(error.get, _STATUS_NAMES)) if s), None)
    details = {name: error[name] for name in _DETAILS if error.get(name)}
    said.codes += [word.lower() for word in (*_codes(error, 0), *_codes(details, 6))]
    if details:
        said.rest = _dumped(details)[:8192]
        _read_upstream(said, details.get("metadata"))


def _innermost(error: dict[str, Any]) -> dict[str, Any]:
    """Return the object that holds the sentence: Mistral puts one into ``message``, gateways JSON text, others wrap twice."""
    for _ in range(4):
        inner = error.get("message") or error.get("error")
        if isinstance(inner, str) and inner.lstrip().startswith("{"):
            inner = parse_json(inner.encode("utf-8", "replace"))
        if isinstance(inner, dict) and isinstance(inner.get("error"), dict):
            inner = inner["error"]
        if not isinstance(inner, dict) or not inner:
            break
        error = {**error, "message": None, "error": None, **inner}
    return error


def _read_upstream(said: _Said, metadata: object) -> None:
    """Take what OpenRouter hands on of the provider behind it: its headers, and its error, of which its own tells nothing."""
    if not isinstance(metadata, dict):
        return
    headers, raw = metadata.get("headers"), metadata.get("raw")
    if isinstance(headers, dict):
        said.headers = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    if isinstance(raw, str) and raw:
        inner = _read(_parsed(raw), raw)
        said.codes += inner.codes
        said.message = f"{said.message}: {inner.message}"[:_MAX_MESSAGE]


def _codes(value: object, depth: int) -> Iterator[str]:
    """Yield the machine's words of an object, and of what is in it down to ``depth``."""
    if isinstance(value, list) and depth:
        for item in value[:20]:
            yield from _codes(item, depth - 1)
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        if name in _CODE_NAMES and (word := _word(inner)):
            yield word
        elif name == "flagged_input":
            yield name
        elif depth and isinstance(inner, dict | list):
            yield from _codes(inner, depth - 1)


def _detail(entry: object) -> str:
    """Return one entry of FastAPI's list, without the input that it repeats."""
    if not isinstance(entry, dict):
        return entry if isinstance(entry, str) else _dumped(entry)
    where = entry.get("loc")
    message = next((entry[name] for name in _MESSAGES if isinstance(entry.get(name), str)), "")
    return f"{'.'.join(map(str, where[:20])) if isinstance(where, list) else ''}: {message}"


def _word(value: object) -> str | None:
    """Return a code as text, None where there is none; a number is one too."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return str(value)
    return value[:_MAX_WORD] if isinstance(value, str) and value else None


def _status(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[45][0-9][0-9]", value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599 else None


def page_title(html: str) -> str:
    """Return the title of a web page, all that is worth showing of one."""
    found = re.search(r"<title[^>]{0,200}>(.{0,1000}?)</title>", html[:16384], re.IGNORECASE | re.DOTALL)
    return " ".join(found.group(1).split())[:200] if found else "HTML"
