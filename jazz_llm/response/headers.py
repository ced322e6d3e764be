"""What an answer's headers say beside its status: whose request it was, what is left to ask for, how long to wait.

Names are lower-case, as the transports give them.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from ..providers import PROVIDERS
from ..types import RateLimits

# Names of a request where the provider's row says nothing: those first that its support asks for.
_REQUEST_IDS = ("x-request-id", "request-id", "apim-request-id", "x-ds-trace-id", "x-litellm-call-id", "x-amzn-requestid")
# These may be of a proxy, or of something smaller than the request.
_LESSER_IDS = (
    "mistral-correlation-id",
    "x-kong-request-id",
    "x-generation-id",
    "x-trace-id",
    "x-baseten-request-id",
    "nvcf-reqid",
    "inference-id",
    "eagleeye-traceid",
    "x-ms-client-request-id",
    "cf-ray",
)
_IDS_OF: dict[str | None, tuple[str, ...]] = {row.name: (*row.request_ids, *_REQUEST_IDS) for row in PROVIDERS}


def request_id_of(headers: Mapping[str, str], provider: str | None = None, body: str | None = None) -> str | None:
    """Return the id that the provider's support asks for; ``body`` is the one that an error's body named."""
    for name in _IDS_OF.get(provider, _REQUEST_IDS):
        if found := headers.get(name):
            return found
    return body or next(filter(None, map(headers.get, _LESSER_IDS)), None)


_Family = tuple[str, str, str]


def _family(name: str) -> _Family:
    return name.format("limit"), name.format("remaining"), name.format("reset")


# Limit, remaining, reset: one family is read, the one that has most to say; facts.json, "rate_limit_headers".
_REQUESTS: tuple[_Family, ...] = (
    _family("x-ratelimit-{}-requests"),
    _family("x-ratelimit-{}-requests-day"),  # Cerebras
    _family("x-ratelimit-{}-req-minute"),  # Mistral
    _family("anthropic-ratelimit-requests-{}"),
    ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-timeremaining"),  # GitHub
    _family("x-ratelimit-{}"),  # Together, OpenRouter
)
_TOKENS: tuple[_Family, ...] = (
    _family("x-ratelimit-{}-tokens"),
    _family("x-ratelimit-{}-tokens-minute"),  # Cerebras, Mistral
    _family("x-ratelimit-{}-tokens-prompt"),  # Fireworks
    _family("anthropic-ratelimit-tokens-{}"),
    _family("anthropic-ratelimit-input-tokens-{}"),
    _family("x-tokenlimit-{}"),  # Together, as its documentation has it
)
_ANY_LIMIT = frozenset(name for family in (*_REQUESTS, *_TOKENS) for name in family)
# Seconds of a bare number in a reset header, where they are not seconds.
_RESET_UNITS = {"azure": 1e-3}  # milliseconds, inferred: the renewal period is 60 s and the numbers go up to 60000


def rate_limits_of(headers: Mapping[str, str], provider: str | None = None, now: float | None = None) -> RateLimits | None:
    """Return what the headers say is left, whatever the provider calls them; None where they say nothing."""
    if _ANY_LIMIT.isdisjoint(headers):  # the common case: nothing more is paid
        return None
    unit = _RESET_UNITS.get(provider or "", 1.0)
    now = time.time() if now is None else now
    requests, tokens = _fullest(_REQUESTS, headers), _fullest(_TOKENS, headers)
    return RateLimits(
        limit_requests=_count(requests[0]),
        remaining_requests=_count(requests[1]),
        reset_requests_s=_reset(requests[2], unit, now),
        limit_tokens=_count(tokens[0]),
        remaining_tokens=_count(tokens[1]),
        reset_tokens_s=_reset(tokens[2], unit, now),
    )


def _fullest(families: Iterable[_Family], headers: Mapping[str, str]) -> list[str | None]:
    """Return the three headers of the family of which most are there; the first of equals."""
    return max(([headers.get(name) for name in family] for family in families), key=lambda found: 3 - found.count(None))


_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,20})?")


def _number(text: str | None) -> float | None:
    text = (text or "").strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _count(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def _reset(text: str | None, unit: float, now: float) -> float | None:
    """Return seconds from a duration, a bare number, a moment since 1970 (s or ms), or an RFC 3339 time."""
    number = _number(text)
    if number is None:
        seconds = duration(text)
        moment = _moment(text) if seconds is None else None
        return seconds if moment is None else max(0.0, moment - now)
    if number < 1e9:  # more is no wait, but a moment
        return number * unit
    return max(0.0, (number / 1e3 if number >= 1e12 else number) - now)


def _moment(text: str | None) -> float | None:
    try:
        moment = datetime.fromisoformat((text or "").strip()[:40])
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,20})?)(ms|us|µs|ns|d|h|m|s)")


def duration(text: str | None) -> float | None:
    """Return seconds of a Go duration (``1m26.4s``) or a bare number, None for anything else."""
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,20})?", text):
        return float(text)
    if not text or _DURATION_PART.sub("", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


# Google's RetryInfo, also inside a message that a gateway wrapped: retryDelay\": \"37s
_RETRY_DELAY = re.compile(r"retryDelay[\\\"': ]{1,8}([0-9][0-9.]{0,20}s)")
# "try again in 1m2.5s", "retry after 26 seconds", "wait 55 seconds"
_PROSE = re.compile(
    r"\b(?:try(?: your request)? again|retry(?:ing)?|wait)(?: (?:your|the|this) request)?"
    r"(?: (?:in|after|for|at least|about)){0,2} "
    r"(?:([0-9]{1,9}(?:\.[0-9]{1,20})?) ?(milli)?(seconds?|secs?|minutes?|mins?|hours?)\b|([0-9][0-9.dhmsuµn]{0,40}))",
    re.IGNORECASE,
)
_PROSE_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
# The bare words, but not those that tell of a timeout.
_AFTER = re.compile(r"(?<!timed out )(?<!timeout )(?<!response )(?<!failed )\bafter ([0-9]{1,9}) seconds?\b", re.IGNORECASE)


def retry_hint(headers: Mapping[str, str], text: str = "", now: float | None = None) -> float | None:
    """Return the seconds that the server asks to wait: headers first, then the body's own words; None where it names none.

    ``x-ratelimit-reset-*`` is no such wish: it says when the bucket is full again, at some only tomorrow.
    """
    asked = headers.get("retry-after")
    return (
        _positive(_scaled(headers.get("retry-after-ms"), 1e-3))
        or _positive(_scaled(asked, 1.0))
        or _positive(_until_date(asked, time.time() if now is None else now))
        or (_said(text) if text else None)
    )


def _positive(seconds: float | None) -> float | None:
    return seconds if seconds is not None and seconds > 0 else None


def _scaled(text: str | None, unit: float) -> float | None:
    number = _number(text)
    return number * unit if number is not None and number < 1e12 else None


def _until_date(text: str | None, now: float) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime((text or "")[:64])
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _said(text: str) -> float | None:
    if found := _RETRY_DELAY.search(text):
        return _positive(duration(found[1]))
    if (found := _PROSE.search(text)) is None:
        found = _AFTER.search(text)
        return None if found is None else _positive(float(found[1]))
    if found[4] is None:
        return _positive(float(found[1]) * (1e-3 if found[2] else _PROSE_UNITS[found[3][0].lower()]))
    said = found[4].rstrip(".")
    return _positive(duration(said)) if said[-1].isalpha() else None  # a bare number may be of days
