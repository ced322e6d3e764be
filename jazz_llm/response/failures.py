"""Status, headers and body -> the error they mean, and what else the headers say."""

from __future__ import annotations

import email.utils
import http.client
import json
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

from ..errors import (
    LLMAuthenticationError,
    LLMContentFilterError,
    LLMContextLengthError,
    LLMError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMOverloadedError,
    LLMPermissionDeniedError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMResponseError,
    LLMStatusError,
)
from ..retry import RETRYABLE
from ..types import RateLimits
from .parsing import INVALID, parse_json, text_or_none

MAX_ERROR_BODY = 64 * 1024

_OVERFLOW = re.compile(
    r"prompt is too long|prompt too long; exceeded|input is too long for requested model|exceeds the context window"
    r"|input token count.*exceeds the maximum|maximum prompt length is \d+|reduce the length of the messages"
    r"|maximum context length|exceeds the limit of \d+|exceeds the available context size|greater than the context length"
    r"|longer than the model's context length|context window exceeds limit|exceeded model token limit"
    r"|too large for model with \d+ maximum|context[_ ]length[_ ]exceeded|token limit exceeded|range of input length"
    r"|`inputs` tokens \+ `max_new_tokens` must be|total length of all messages is too long|prompt exceeds max length"
    r"|contextwindowexceeded|exceed_context_size|context size (?:has been|was) exceeded|tokens_limit_reached"
)
# Words of the body that say more than the status; the first that is found decides. Codes of one provider are anchored.
_WORDS: tuple[tuple[type[LLMStatusError], re.Pattern[str]], ...] = (
    (LLMContextLengthError, _OVERFLOW),
    (
        LLMQuotaExceededError,
        re.compile(
            r"insufficient_quota|exceeded_current_quota_error|billing_hard_limit_reached|arrearage|budget_exceeded"
            r"|credit balance|run out of credits|spending limit|insufficient balance|allocationquota|key limit exceeded"
            r"|\A(?:1113|1308|1008|2056)\n|free-models-per-day|perday"
        ),
    ),
    (
        LLMContentFilterError,
        re.compile(
            r"content_filter|content_policy_violation|data_?inspection_?failed|moderation_blocked|invalid_prompt"
            r"|flagged_input|input was flagged|\A(?:1301|1026|1027)\n"
        ),
    ),
    (
        LLMAuthenticationError,
        re.compile(
            r"invalid_api_key|wrong_api_key|api_key_invalid|incorrect api key|api key not valid|check the api-key"
            r"|\A(?:1004|2049)\n"
        ),
    ),
    (
        LLMNotFoundError,
        re.compile(
            r"model_not_found|model not exist|unknown model|not a valid model|invalid_model|unexpected endpoint"
            r"|no route for that uri|404 not_found"
        ),
    ),
    (LLMRateLimitError, re.compile(r"rate limit exceeded|rate_limit|in_flight_budget|\A1002\n")),
    (LLMOverloadedError, re.compile(r"overloaded|temporarily unavailable|currently unavailable")),
)
_BY_STATUS: dict[int, type[LLMStatusError]] = {
    401: LLMAuthenticationError,
    402: LLMQuotaExceededError,
    403: LLMPermissionDeniedError,
    404: LLMNotFoundError,
    408: LLMInternalError,
    424: LLMInternalError,
    425: LLMInternalError,
    429: LLMRateLimitError,
    498: LLMOverloadedError,  # Groq's flex tier
    501: LLMInvalidRequestError,
    503: LLMOverloadedError,
    529: LLMOverloadedError,
}
# What a body's own words may make of a status, where that is not left to them: every 429 is a rate limit.
_MAY_BECOME: dict[int, tuple[type[LLMStatusError], ...]] = {429: (LLMQuotaExceededError,)}
_REQUEST_IDS = (
    "x-request-id",
    "request-id",
    "apim-request-id",
    "x-ds-trace-id",
    "x-litellm-call-id",
    "x-amzn-requestid",
    # These may be of a proxy, or of something smaller than the request.
    "mistral-correlation-id",
    "x-generation-id",
    "x-trace-id",
    "x-baseten-request-id",
    "nvcf-reqid",
    "cf-ray",
)


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """Return the id that the provider's support asks for."""
    return next(filter(None, map(headers.get, _REQUEST_IDS)), None)


def rate_limits_of(headers: Mapping[str, str]) -> RateLimits | None:
    """Return what the ``x-ratelimit-*`` headers say (OpenAI's names, which most providers use), or None."""
    if not any(map(headers.get, _RATE_LIMITS)):
        return None
    said = {name.removeprefix(_RATE_LIMIT): headers.get(name) for name in _RATE_LIMITS}
    return RateLimits(
        limit_requests=_count(said["limit-requests"]),
        remaining_requests=_count(said["remaining-requests"]),
        reset_requests_s=duration(said["reset-requests"]),
        limit_tokens=_count(said["limit-tokens"]),
        remaining_tokens=_count(said["remaining-tokens"]),
        reset_tokens_s=duration(said["reset-tokens"]),
    )


_RATE_LIMIT = "x-ratelimit-"
_RATE_LIMITS = tuple(
    f"{_RATE_LIMIT}{part}-{unit}" for unit in ("requests", "tokens") for part in ("limit", "remaining", "reset")
)


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|us|µs|ns|d|h|m|s)")


def duration(text: str | None) -> float | None:
    """Return seconds of a Go duration (``1m26.4s``) or a bare number, None for anything else."""
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,12})?", text):
        return float(text)
    if not text or _DURATION_PART.sub("", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def retry_hint(headers: Mapping[str, str], text: str = "", now: float | None = None) -> float | None:
    """Return the seconds that the server asks to wait: headers first, then the body's own words; None where it names none."""
    hints = (
        _positive(headers.get("retry-after-ms"), 1e-3),
        _positive(headers.get("retry-after"), 1.0),
        _until_date(headers.get("retry-after"), time.time() if now is None else now),
        *(duration(found) for found in re.findall(r'"?retryDelay"?: ?"?([0-9.]+s)', text)[:1]),
        *(duration(found) for found in re.findall(r"(?:try again|retry) in ([0-9hmsdµu.]+[a-z])", text)[:1]),
        *(_positive(found, 1.0) for found in re.findall(r"after ([0-9]{1,9}) seconds?", text)[:1]),
    )
    return next((hint for hint in hints if hint is not None and hint > 0), None)


def _positive(text: str | None, unit: float) -> float | None:
    text = (text or "").strip()
    return float(text) * unit if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,12})?", text) else None


def _until_date(text: str | None, now: float) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text or "").timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


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
    return body.get("success") is False or body.get("object") == "error" or body.get("type") == "error"


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
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else _dumped(body)
    parsed = parse_json(body) if isinstance(body, bytes) else body
    fields = _error_fields(parsed, text)
    if status < 400 and fields.status is not None:  # an error inside a 200; a status of HTTP's own stands
        status = fields.status
    cls = _class_of(status, fields)
    hint = retry_hint(headers if status >= 300 else {}, text, now) if cls is not LLMQuotaExceededError else None
    code = fields.code
    if status == 429 and code is None and "overloaded" in fields.words():
        code = "overloaded"
    return cls(
        f"{fields.message or _phrase(status)} (HTTP {status}){_where(status, headers, url)}",
        retryable=_is_retryable(cls, status, headers, fields, statuses),
        provider=provider,
        status_code=status,
        body=text[:4096],
        headers=headers,
        request_id=request_id_of(headers) or fields.request_id,
        code=code,
        type=fields.type,
        param=fields.param,
        retry_after=hint,
    )


def _dumped(body: Any) -> str:
    try:
        return orjson.dumps(body, default=repr).decode()
    except TypeError:  # lone surrogates, huge integers: what only the tolerant parser had let in
        return json.dumps(body, default=repr)


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "No message")


def _where(status: int, headers: Mapping[str, str], url: str) -> str:
    """Name the URL where it is likely to be what is wrong."""
    if not url or (status not in (404, 405) and not 300 <= status < 400):
        return ""
    target = f", which points to {headers['location'][:200]}" if "location" in headers else ""
    return f" from {url}{target}; check base_url and the model's name."


class _ErrorFields:
    """What an error body says, whatever its shape."""

    def __init__(self) -> None:
        self.message = ""
        self.code: str | None = None
        self.type: str | None = None
        self.param: str | None = None
        self.status: int | None = None
        self.request_id: str | None = None
        self.rest = ""  # details, to look for words in

    def words(self) -> str:
        """Return all that words are looked for in; the code is the first line."""
        return f"{self.code or ''}\n{self.type or ''}\n{self.message}\n{self.rest}".lower()


def _error_fields(parsed: Any, text: str) -> _ErrorFields:
    """Read an error body by the policy's order: list, error object, error text, errors[], base_resp, flat, FastAPI, text."""
    fields = _ErrorFields()
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    if isinstance(parsed, dict):
        _read_object(fields, parsed)
    elif isinstance(parsed, str):
        fields.message = parsed[:500]
    elif text.lstrip().startswith("<"):
        fields.message = page_title(text)
    elif parsed is INVALID:
        fields.message = " ".join(text.split())[:500]
    return fields


def _read_object(fields: _ErrorFields, body: dict[str, Any]) -> None:
    error, errors, base = body.get("error"), body.get("errors"), body.get("base_resp")
    fields.request_id = text_or_none(body.get("request_id"))
    if isinstance(error, dict):
        _read_flat(fields, error)
        fields.type = fields.type or text_or_none(body.get("error_type"))
    elif isinstance(error, str) and error:
        _read_flat(fields, body)
        fields.message = " ".join(filter(None, (error, text_or_none(body.get("message")))))
    elif isinstance(errors, list) and errors and isinstance(errors[0], dict):
        _read_flat(fields, errors[0])
    elif isinstance(base, dict):
        fields.code, fields.message = str(base.get("status_code")), str(base.get("status_msg") or "")
    else:
        _read_flat(fields, body)


def _read_flat(fields: _ErrorFields, error: dict[str, Any]) -> None:
    found = next((error[name] for name in ("message", "Message", "msg", "detail", "title") if error.get(name)), "")
    if isinstance(found, dict):
        return _read_flat(fields, found)
    if isinstance(found, list):
        found = "; ".join(_detail(entry) for entry in found)
    fields.message = str(found)[:2000]
    fields.code = _code(error.get("code") or error.get("error_code"))
    fields.type = text_or_none(error.get("type") or error.get("error_type") or error.get("status"))
    fields.param = text_or_none(error.get("param"))
    fields.status = next((s for s in map(_status, (error.get("status_code"), error.get("code"))) if s), None)
    fields.rest = str({k: error.get(k) for k in ("details", "metadata", "innererror") if error.get(k)})[:2000]


def _detail(entry: object) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    where = entry.get("loc")
    return f"{'.'.join(map(str, where)) if isinstance(where, list) else ''}: {entry.get('msg', '')}"


def _code(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None


def _status(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599 else None


def page_title(html: str) -> str:
    """Return the title of a web page, all that is worth showing of one."""
    found = re.search(r"<title[^>]*>(.*?)</title>", html[:65536], re.IGNORECASE | re.DOTALL)
    return " ".join(found.group(1).split())[:200] if found else "HTML"


def _class_of(status: int, fields: _ErrorFields) -> type[LLMStatusError]:
    words = fields.words()
    allowed = _MAY_BECOME.get(status)
    for cls, pattern in _WORDS:
        if pattern.search(words) and (allowed is None or cls in allowed) and _plausible(cls, status):
            return cls
    if status < 400:
        return _BY_TYPE.get(fields.type or "", LLMInternalError) if status == 200 else LLMResponseError
    return _BY_STATUS.get(status, LLMInternalError if status >= 500 else LLMInvalidRequestError)


def _plausible(cls: type[LLMStatusError], status: int) -> bool:
    """Words of a rate limit or an overload count only where the status says nothing better, and none against a 401."""
    if cls is LLMRateLimitError:
        return status in (200, 402, 429)
    if cls is LLMOverloadedError:
        return status == 200 or status >= 500
    return status != 401


_BY_TYPE: dict[str, type[LLMStatusError]] = {
    "invalid_request_error": LLMInvalidRequestError,
    "BadRequestError": LLMInvalidRequestError,
    "authentication_error": LLMAuthenticationError,
    "permission_error": LLMPermissionDeniedError,
    "not_found_error": LLMNotFoundError,
    "rate_limit_error": LLMRateLimitError,
    "overloaded_error": LLMOverloadedError,
}


def _is_retryable(
    cls: type[LLMStatusError], status: int, headers: Mapping[str, str], fields: _ErrorFields, statuses: frozenset[int]
) -> bool:
    said = headers.get("x-should-retry", "").lower()
    if said in ("true", "false"):
        return said == "true"
    if issubclass(cls, LLMQuotaExceededError):
        return False
    if cls in (LLMRateLimitError, LLMOverloadedError) and status not in range(400, 600):
        return True
    if cls is LLMRateLimitError and "request too large" in fields.message.lower():
        return False  # asks for more than the limit itself: no wait makes it fit
    if status == 402 and cls is LLMRateLimitError:
        return True  # OpenRouter's in-flight budget
    if issubclass(cls, LLMInvalidRequestError | LLMAuthenticationError | LLMPermissionDeniedError | LLMNotFoundError):
        return status in statuses and cls is LLMInvalidRequestError
    return status in statuses or (status == 200 and cls is LLMInternalError)


def redacted(error: LLMError, secret: str | None) -> LLMError:
    """Take the key out of everything the error says: some servers send it back."""
    if secret is None or len(secret) < 4:
        return error
    for name, value in vars(error).items():
        if isinstance(value, str):
            setattr(error, name, value.replace(secret, "***"))
        elif isinstance(value, dict):
            setattr(error, name, {k: v.replace(secret, "***") if isinstance(v, str) else v for k, v in value.items()})
    error.args = (error.message,)
    return error
