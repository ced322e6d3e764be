"""Every recorded error: its class, whether it passes, how long to wait; by itself, in the decoder, and through the client."""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from jazz_llm import LLMError, LLMStatusError, OpenAICompatibleLLM
from jazz_llm.providers import BY_NAME
from jazz_llm.response import Decoder, error_from, rate_limits_of, request_id_of
from jazz_llm.response.headers import duration, retry_hint
from jazz_llm.testing import ClientStopped, FakeServer, Reply, Request

from ..colours import Async, Sync
from .wire import FACTS, cases, provider_of

CASES = {case["id"]: case for case in cases("error_cases.json", "more_error_cases.json")}
# Soft cases where the contract decides for another reading than any that is listed: id -> what then holds, and why. None yet.
OVERRULED: dict[str, dict[str, Any]] = {}
EVERY = [pytest.param({**case, **OVERRULED.get(name, {})}, id=name) for name, case in CASES.items()]
ERRORS = [param for param in EVERY if param.values[0]["expected_class"] is not None]
SENTENCES = ("message", "Message", "msg", "detail", "title", "error", "status_msg", "error_msg")


def readings(case: dict[str, Any]) -> set[str]:
    return {case["expected_class"], *case.get("also_ok", ())}


def error_of(case: dict[str, Any]) -> LLMError | None:
    """Return what the response layer makes of a case."""
    status, headers, body, provider = case["status"], case["headers"], case["body"].encode(), provider_of(case)
    if status != 200:
        now = email.utils.parsedate_to_datetime(case["now"]).timestamp() if "now" in case else None
        return error_from(status, headers, body, provider=provider, now=now)
    decoder = Decoder(streams=False, provider=provider)
    decoder.begin(headers)
    decoder.feed(body)
    decoder.end()
    try:
        decoder.result()
    except LLMError as error:
        return error
    return None


def sentences(value: Any) -> Iterator[str]:
    """Yield what a body says to people, wherever it stands."""
    if isinstance(value, list):
        for item in value:
            yield from sentences(item)
    elif isinstance(value, str) and value.startswith("{"):  # an error in an error's message
        yield from sentences(json.loads(value))
    elif isinstance(value, dict):
        yield from (inner for name, inner in value.items() if name in SENTENCES and isinstance(inner, str))
        yield from (found for inner in value.values() for found in sentences(inner))


def said(body: str) -> list[str]:
    """Return the beginnings of which the error's message must hold one; empty where the body says nothing."""
    try:
        return [" ".join(text.split())[:80] for text in sentences(json.loads(body))]
    except ValueError:
        title = re.search(r"<title>(.*?)</title>", body)
        return [title.group(1) if title else " ".join(body.split())[:80]] if body and body[:1] not in "{[e" else []


@pytest.mark.parametrize("case", EVERY)
def test_its_class_whether_it_passes_and_how_long_to_wait(case: dict[str, Any]) -> None:
    error = error_of(case)
    if case["expected_class"] is None:
        assert error is None
        return
    assert type(error).__name__ in readings(case), error
    if type(error).__name__ == case["expected_class"]:  # the fields are of that reading
        assert isinstance(error, LLMStatusError)
        assert (error.retryable, error.retry_after) == (case["retryable"], case["retry_after_s"])


@pytest.mark.parametrize("case", ERRORS)
def test_what_the_body_says_is_kept(case: dict[str, Any]) -> None:
    error = error_of(case)
    assert isinstance(error, LLMStatusError)
    heard = " ".join(error.message.split())
    if wanted := said(case["body"]):
        assert any(text in heard for text in wanted), heard
    assert "</" not in error.message
    assert len(error.message) < 3000
    assert all(name in error.body for name in case.get("keep", ()))


def request_id(case: dict[str, Any]) -> str | None:
    """Return the id that facts.json says is the provider's, of those that the case has."""
    names = [*FACTS["request_id_headers"].get(provider_of(case), ()), *FACTS["request_id_headers"]["fallback"]]
    found = {**case["headers"]}
    body = re.search(r'"request_id": ?"([^"]+)"', case["body"])
    if body and case["status"] != 200:
        found["body.request_id"] = body.group(1)
    return next((found[name] for name in names if name in found), None)


async def answer(request: Request, reply: Reply) -> None:
    """Answer with the case that the model's name names."""
    case = CASES[request.json()["model"]]
    body = case["body"].encode()
    await reply.start(case["status"], {**case["headers"], "content-length": str(len(body))})
    await reply.send(body)
    await reply.end()


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(answer) as server:
        yield server


@pytest.mark.parametrize("case", EVERY)
def test_through_the_client(case: dict[str, Any], server: FakeServer, colour: Sync | Async) -> None:
    provider = provider_of(case) if provider_of(case) in BY_NAME else None
    with OpenAICompatibleLLM(case["id"], "k-key", server.url, provider=provider, max_retries=0) as llm:
        if case["expected_class"] is None:
            assert colour.generate(llm).text == "ok"
            return
        with pytest.raises(LLMStatusError) as caught:
            colour.generate(llm)
    error = caught.value
    assert type(error).__name__ in readings(case), error
    if case["status"] != 200:  # an error inside a 200 has the status that it names itself
        assert (error.status_code, error.body) == (case["status"], case["body"][:4096])
    assert error.headers.items() >= case["headers"].items()
    assert error.request_id == request_id(case) or request_id(case) is None
    assert (error.provider, error.attempts) == (provider, 1)
    if type(error).__name__ == case["expected_class"] and "now" not in case:  # of that clock, not of this one
        assert (error.retryable, error.retry_after) == (case["retryable"], case["retry_after_s"])


def test_an_answer_of_200_never_asks_to_wait() -> None:
    """Together sends ``retry-after`` on 200."""
    case = CASES["e208_generic"]
    decoder = Decoder(streams=False)
    decoder.begin({**case["headers"], "retry-after": "5"})
    decoder.feed(b'{"error": {"message": "slow down", "code": 429}}')
    decoder.end()
    with pytest.raises(LLMStatusError) as caught:
        decoder.result()
    assert caught.value.retry_after is None


LIMITS = {
    "openai": ({"limit-requests": "500", "remaining-requests": "0", "reset-requests": "120ms", "limit-tokens": "30000", "remaining-tokens": "29000", "reset-tokens": "6m0s"}, (500, 0, 0.12, 30000, 29000, 360.0)),
    "groq": ({"limit-requests": "14400", "reset-requests": "2m59.56s", "limit-tokens": "18000", "reset-tokens": "7.66s"}, (14400, None, 179.56, 18000, None, 7.66)),
    "azure": ({"limit-requests": "60", "remaining-requests": "59", "reset-requests": "10000", "reset-tokens": "60000"}, (60, 59, 10.0, None, None, 60.0)),
    "cerebras": ({"limit-requests-day": "14400", "remaining-requests-day": "14399", "reset-requests-day": "33011.38", "limit-tokens-minute": "60000", "remaining-tokens-minute": "5", "reset-tokens-minute": "11.382867097854614"}, (14400, 14399, 33011.38, 60000, 5, 11.382867097854614)),
    "mistral": ({"limit-req-minute": "60", "remaining-req-minute": "59", "limit-tokens-minute": "500000", "remaining-tokens-minute": "499000", "tokens-query-cost": "30"}, (60, 59, None, 500000, 499000, None)),
    "together": ({"limit": "10.0", "remaining": "9.0", "reset": "0.5", "limit-tokens": "1000.0", "remaining-tokens": "999.5", "reset-tokens": "1"}, (10, 9, 0.5, 1000, 999, 1.0)),
    "fireworks": ({"limit-requests": "600", "remaining-requests": "599", "limit-tokens-prompt": "60000", "remaining-tokens-prompt": "59", "limit-tokens-generated": "6", "over-limit": "no"}, (600, 599, None, 60000, 59, None)),
    "openrouter": ({"limit": "50", "remaining": "0", "reset": "1790000010000"}, (50, 0, 10.0, None, None, None)),
    "xai": ({"limit-requests": "480", "remaining-requests": "479", "limit-tokens": "2000000", "remaining-tokens": "1999"}, (480, 479, None, 2000000, 1999, None)),
    "github": ({"limit-requests": "10", "remaining-requests": "0", "type": "UserByMinute", "timeremaining": "55"}, (10, 0, 55.0, None, None, None)),
    "nvidia": ({}, None),
    "odd": ({"limit-requests": "many", "remaining-requests": "-1", "reset-requests": "soon", "reset-tokens": "nan"}, (None,) * 6),
    "past": ({"reset": "1789999990"}, (None, None, 0.0, None, None, None)),
}  # fmt: skip
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-09-21T14:13:50Z",
    "anthropic-ratelimit-tokens-limit": "80000",
    "anthropic-ratelimit-tokens-remaining": "79000",
    "anthropic-ratelimit-tokens-reset": "2026-09-21T14:13:21Z",
    "anthropic-ratelimit-input-tokens-limit": "40000",
}
LIMIT_CASES = [(name, {f"x-ratelimit-{unit}": v for unit, v in said.items()}, want) for name, (said, want) in LIMITS.items()]
NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("provider", "headers", "want"),
    [*LIMIT_CASES, ("anthropic", ANTHROPIC, (50, 49, 30.0, 80000, 79000, 1.0))],
    ids=[*LIMITS, "anthropic"],
)
def test_rate_limits(provider: str, headers: Mapping[str, str], want: tuple[float | None, ...] | None) -> None:
    limits = rate_limits_of({"content-type": "x", **headers}, provider, NOW)
    if want is None:
        assert limits is None
        return
    assert limits is not None
    assert tuple(getattr(limits, name) for name in type(limits).__slots__) == pytest.approx(want)


@pytest.mark.parametrize(("text", "seconds"), FACTS["duration_cases"])
def test_durations(text: str, seconds: float | None) -> None:
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("provider", FACTS["request_id_headers"].keys() - {"fallback"})
def test_request_ids_of_each_provider(provider: str) -> None:
    """Its best header wins over all others, and where only the body names the request that is used."""
    names = [name for name in FACTS["request_id_headers"][provider] if not name.startswith("body.")]
    every = {name: name for names in FACTS["request_id_headers"].values() for name in names}
    assert request_id_of(every, provider) == names[0]
    assert request_id_of({"cf-ray": "c"}, provider) == "c"
    assert error_from(400, {}, b'{"error": {"request_id": "b"}}', provider=provider).request_id == "b"


BIG = json.dumps({"error": {"message": "Too long.", "code": "context_length_exceeded", "prompt": "word " * 200_000}})
BODIES: dict[str, tuple[dict[str, str], bytes, str, str]] = {
    "1 MB": ({}, BIG.encode(), "LLMContextLengthError", "Too long."),
    "gzip": ({"content-encoding": "gzip"}, gzip.compress(BIG.encode()), "LLMContextLengthError", "Too long."),
    "gzip, damaged": ({"content-encoding": "gzip"}, b"\x1f\x8b" + b"\xff" * 2000, "LLMInvalidRequestError", "Bad Request"),
    "brotli, not asked for": ({"content-encoding": "br"}, bytes(range(128, 256)) * 9, "LLMInvalidRequestError", "Bad Request"),
    "latin-1": ({"content-type": "text/plain; charset=ISO-8859-1"}, "clé refusée".encode("latin-1"), "LLMInvalidRequestError", "clé refusée"),
    "GBK": ({"content-type": "application/json; charset=gbk"}, '{"message": "余额不足"}'.encode("gbk"), "LLMQuotaExceededError", "余额不足"),
    "byte order mark": ({}, b"\xef\xbb\xbf" + b'{"message": "no"}', "LLMInvalidRequestError", "no"),
    "text that is no page": ({"content-type": "text/html"}, b"<400> no", "LLMInvalidRequestError", "<400> no"),
    "empty": ({}, b"", "LLMInvalidRequestError", "Bad Request"),
}


@pytest.mark.parametrize(("headers", "body", "cls", "message"), BODIES.values(), ids=BODIES)
def test_bodies_of_any_size_and_coding(headers: dict[str, str], body: bytes, cls: str, message: str, colour: Sync | Async) -> None:
    async def refuse(request: Request, reply: Reply) -> None:
        await reply.start(400, headers)
        with contextlib.suppress(ClientStopped):  # once it has read enough
            await reply.send(body)
            await reply.end()

    with FakeServer(refuse) as server, OpenAICompatibleLLM("m", base_url=server.url, max_retries=0) as llm:
        with pytest.raises(LLMStatusError) as caught:
            colour.generate(llm)
    error = caught.value
    assert (type(error).__name__, error.message) == (cls, f"{message} (HTTP 400)")
    assert len(error.body.encode()) <= 4096


def test_it_says_what_to_look_at() -> None:
    assert str(error_from(401, {}, b"", provider="groq")) == "Unauthorized (HTTP 401); check api_key or GROQ_API_KEY."
    assert str(error_from(401, {}, b"")) == "Unauthorized (HTTP 401); check api_key."


def test_the_statuses_of_the_policy_hold_for_words_too() -> None:
    """Words make a rate limit of a 400, so it is as passing as a 429 is; and never is an empty account."""
    throttled = {"x-amzn-errortype": "ThrottlingException"}
    assert error_from(400, throttled, b"").retryable
    assert not error_from(400, throttled, b"", statuses=frozenset({503})).retryable
    assert error_from(404, {}, b"", statuses=frozenset({404})).retryable
    empty = b'{"error": {"code": "insufficient_quota"}}'
    assert not error_from(429, {"x-should-retry": "true"}, empty, statuses=frozenset({429})).retryable


HINTS = [
    ("Please retry your request after 20 seconds.", 20.0),
    ("Rate limit is exceeded. Try again in 5 minutes.", 300.0),
    ("try again in 1m2.5s", 62.5),
    ("Please wait 250 milliseconds", 0.25),
    ("free again after 7 seconds", 7.0),
    ("Request timed out after 600 seconds", None),
    ("try again in 20 days", None),
    ("try again in 0s", None),
    ("try again in 1..2s", None),
    ("please try again later", None),
]


@pytest.mark.parametrize(("sentence", "seconds"), HINTS)
def test_a_wait_in_prose(sentence: str, seconds: float | None) -> None:
    body = json.dumps({"error": {"message": sentence}}).encode()
    assert error_from(429, {}, body).retry_after == seconds
    assert error_from(400, {}, body).retry_after is None  # may be the caller's own words


def test_headers_go_before_the_bodys_words_and_those_of_the_provider_behind_a_gateway_between() -> None:
    error = {"message": "try again in 9s", "metadata": {"headers": {"Retry-After": "7"}}}
    body = json.dumps({"error": error}).encode()
    assert error_from(429, {"retry-after": "3"}, body).retry_after == 3.0
    assert error_from(429, {"retry-after": "0", "x-ratelimit-reset-requests": "1s"}, body).retry_after == 7.0
    assert error_from(429, {}, b'{"error": {"message": "try again in 9s", "details": [{"retryDelay": "2s"}]}}').retry_after == 2.0


UPSTREAM = {"message": "Provider returned error", "metadata": {"raw": '{"error": {"code": "context_length_exceeded"}}'}}
PLACES: dict[str, tuple[int, Any, str]] = {
    "a bad key stays one": (401, {"error": {"code": "context_length_exceeded"}}, "LLMAuthenticationError"),
    "a rate limit stays one": (429, {"error": {"code": "context_length_exceeded"}}, "LLMRateLimitError"),
    "an event": (400, b'event: error\ndata: {"error": {"code": "context_length_exceeded"}}\n\n', "LLMContextLengthError"),
    "JSON in a message": (400, {"message": '{"error": {"code": "context_length_exceeded"}}'}, "LLMContextLengthError"),
    "an object in a message": (400, {"message": {"code": "context_length_exceeded", "message": "x"}}, "LLMContextLengthError"),
    "the provider behind": (400, {"error": UPSTREAM}, "LLMContextLengthError"),
    "a name in the details": (403, {"error": {"message": "no", "metadata": {"flagged_input": "..."}}}, "LLMContentFilterError"),
    "an error text of one word": (400, {"error": "invalid_api_key"}, "LLMAuthenticationError"),
    "an error in a list": (400, {"error": [{"code": "context_length_exceeded"}]}, "LLMContextLengthError"),
}


@pytest.mark.parametrize(("status", "body", "cls"), PLACES.values(), ids=PLACES)
def test_where_words_stand(status: int, body: Any, cls: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert type(error_from(status, {}, data)).__name__ == cls


def test_small_differences_of_gateways() -> None:
    assert error_from(400, {}, b'{"error": {"message": "no", "param": "None"}}').param is None
    assert error_from(400, {}, b'{"message": {"message": "inner", "code": 7}}').message == "inner (HTTP 400)"
    coded = {"x-amzn-errortype": "ValidationException:http://quota/ThrottlingException"}
    assert type(error_from(400, coded, b"")).__name__ == "LLMInvalidRequestError"
    assert error_from(400, {}, b'event: error\ndata: {"error": {"message": "in an event"}}\n\n').message == "in an event (HTTP 400)"
    flat = Decoder(streams=True)
    flat.begin({"content-type": "text/event-stream"})
    flat.feed(b'data: {"status": 503, "message": "no room"}\n\n')
    assert type(flat.failure).__name__ == "LLMOverloadedError"


def test_a_date_without_a_zone_is_of_greenwich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    if hasattr(time, "tzset"):
        time.tzset()
    try:
        assert retry_hint({"retry-after": "Mon, 21 Sep 2026 14:13:30 -0000"}, now=NOW) == 10.0
    finally:
        monkeypatch.undo()
        if hasattr(time, "tzset"):
            time.tzset()


def test_a_good_answer_has_its_providers_request_id_and_limits(colour: Sync | Async) -> None:
    headers = {"x-request-id": "proxy", "apim-request-id": "azure", "x-ratelimit-reset-tokens": "60000"}

    async def limited(request: Request, reply: Reply) -> None:
        await reply.json({"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}, headers=headers)

    with FakeServer(limited) as server, OpenAICompatibleLLM("m", "k", server.url, provider="azure") as llm:
        response = colour.generate(llm)
    assert response.request_id == "azure"
    assert response.rate_limits is not None
    assert response.rate_limits.reset_tokens_s == 60.0
