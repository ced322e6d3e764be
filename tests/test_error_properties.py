"""Whatever a server answers, the error is one of ours, bounded, and asks for no senseless wait."""

from __future__ import annotations

import json
import math
import string
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jazz_llm import LLMStatusError
from jazz_llm.errors import LLMQuotaExceededError, LLMRateLimitError
from jazz_llm.providers import BY_NAME
from jazz_llm.response import error_from, rate_limits_of
from jazz_llm.response.headers import duration, retry_hint
from jazz_llm.response.parsing import parse_json

PROPERTY = settings(derandomize=True, deadline=None, max_examples=300, database=None)
NAMES = ("error", "errors", "message", "msg", "detail", "details", "code", "type", "status", "param", "metadata", "raw", "headers",
         "base_resp", "status_code", "request_id", "innererror", "loc", "object", "success", "flagged_input", "title", "retryDelay")  # fmt: skip
WORDS = ("insufficient_quota", "rate_limit_exceeded", "maximum context length", "try again in 1m2.5s", "after 7 seconds", "overloaded",
         "invalid_api_key", "model_not_found", "content_filter", "400", "1113", "{}", '{"error": {"message": "x"}}', "")  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(WORDS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
STATUSES = st.sampled_from([200, 302, 400, 401, 402, 403, 404, 408, 409, 413, 422, 424, 429, 498, 500, 501, 503, 505, 529]) | st.integers(100, 999)
NUMBERS = ("0", "-1", "nan", "inf", "1e400", "9" * 400, "0.5", "Wed, 30 Sep 100000 12:00:30 GMT", "Wed, 30 Sep 2026 12:00:30 -0000", "٣")
HEADER = st.sampled_from([*NUMBERS, *WORDS]) | st.text(max_size=30)
HEADER_NAMES = ("retry-after", "retry-after-ms", "x-should-retry", "x-request-id", "content-type", "x-amzn-errortype", "location",
                "x-ratelimit-reset-requests", "x-ratelimit-limit", "x-ratelimit-reset", "anthropic-ratelimit-tokens-reset")  # fmt: skip
HEADERS = st.dictionaries(st.sampled_from(HEADER_NAMES), HEADER, max_size=4)
PROVIDERS = st.none() | st.sampled_from([*BY_NAME, "nobody"])


def check(status: int, headers: dict[str, str], body: Any, provider: str | None) -> LLMStatusError:
    error = error_from(status, headers, body, provider=provider, url="http://h/v1/chat/completions")
    assert isinstance(error, LLMStatusError)
    assert len(error.message) < 3000
    assert len(error.body.encode()) <= 4096
    assert error.retry_after is None or 0 < error.retry_after < math.inf
    assert all(word is None or isinstance(word, str) for word in (error.code, error.type, error.param, error.request_id))
    assert error.status_code != 429 or isinstance(error, LLMRateLimitError)
    assert not (isinstance(error, LLMQuotaExceededError) and error.retryable)
    assert str(error)
    return error


@PROPERTY
@given(STATUSES, HEADERS, st.binary(max_size=300), PROVIDERS)
@example(429, {"content-type": "text/html; charset=punycode"}, b"\xff", None)
@example(400, {"content-type": "text/plain; charset=iso-8859-1"}, "clé".encode("latin-1"), None)
def test_any_bytes(status: int, headers: dict[str, str], body: bytes, provider: str | None) -> None:
    check(status, headers, body, provider)


@PROPERTY
@given(STATUSES, HEADERS, JSON, PROVIDERS)
@example(400, {}, {"error": {"message": {"detail": [{"loc": [1], "msg": None}]}}}, None)
def test_any_json_in_any_field(status: int, headers: dict[str, str], body: Any, provider: str | None) -> None:
    """As it comes: as bytes, cut anywhere, and, in the middle of a stream, parsed already."""
    text = json.dumps(body).encode()
    check(status, headers, text, provider)
    check(status, headers, text[: len(text) * 2 // 3], provider)
    check(200, headers, parse_json(text), provider)


@PROPERTY
@given(st.sampled_from(WORDS), st.sampled_from(["", "'", '"']), STATUSES)
def test_a_code_that_says_exactly_what_is_wrong_is_not_overruled_by_prose(word: str, quote: str, status: int) -> None:
    fields = {"message": f"Invalid value: {quote}{word}{quote}.", "code": "invalid_value", "type": "invalid_request_error"}
    if 400 <= status < 500:
        said = check(status, {}, json.dumps({"error": fields}).encode(), None)
        assert type(said) is type(check(status, {}, b"", None))


@PROPERTY
@given(HEADER, HEADER, st.text(max_size=60))
def test_a_wait_is_none_or_positive_and_finite(seconds: str, milliseconds: str, text: str) -> None:
    hint = retry_hint({"retry-after": seconds, "retry-after-ms": milliseconds}, text)
    assert hint is None or 0 < hint < math.inf
    assert duration(text) is None or 0 <= (duration(text) or 0) < math.inf


@PROPERTY
@given(HEADERS, PROVIDERS)
def test_rate_limits_are_numbers_from_zero(headers: dict[str, str], provider: str | None) -> None:
    limits = rate_limits_of(headers, provider)
    values = [] if limits is None else [getattr(limits, name) for name in type(limits).__slots__]
    assert all(value is None or 0 <= value < math.inf for value in values)


DEEP = {
    "lists": b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}",
    "messages": b'{"message": ' * 900 + b"1" + b"}" * 900,
    "errors": b'{"error": ' * 900 + b"1" + b"}" * 900,
    "details": b'{"error": {"message": "m", "details": ' + b'{"details": ' * 900 + b"1" + b"}" * 902,
    "past every parser": b"[" * 60_000,
    "huge integer": b'{"error": {"message": "m", "code": ' + b"9" * 60_000 + b"}}",
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP)
def test_depth_is_no_stack_overflow(body: bytes) -> None:
    check(500, {}, body, None)
    check(200, {}, parse_json(body), None)


SLOW = ("a", "'", '"', "`", " ", "\\", "{", '{"', "1", "1.", "model ", "retry ", "try again in ", "wait for ", "after ", "<title>",
        "<title ", "data: ", "data: {", '"message": "', "litellm.", "'code': '", "input token count ", "`inputs` tokens ", "reached your specified ")  # fmt: skip


@pytest.mark.parametrize("piece", SLOW)
def test_64_kb_of_anything_take_no_time(piece: str) -> None:
    """A pattern that tries every pair of places would take minutes."""
    text = (piece * (65536 // len(piece)))[:65536]
    began = time.perf_counter()
    for body in (text.encode(), json.dumps({"error": {"message": text, "details": [text]}})[:65536].encode()):
        check(400, {"retry-after": text}, body, None)
    assert time.perf_counter() - began < 0.5


def test_printable_bodies_keep_their_text() -> None:
    assert string.printable.strip()[:90] in check(400, {}, string.printable.encode(), None).message
