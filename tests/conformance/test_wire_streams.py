"""Every recorded stream: whole, cut at every byte, byte by byte, and through the client, with one and the same result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jazz_llm import LLMError, LLMResponse, OpenAICompatibleLLM
from jazz_llm.providers import BY_NAME
from jazz_llm.testing import FakeServer, Reply, Request

from ..colours import Async, Sync
from .wire import FACTS, body_of, cases, decode, decoder_for, provider_of

CASES = {case["name"]: case for case in cases("stream_cases.json", "more_stream_cases.json")}
# Where the contract decides otherwise than a case: what then holds, and why.
OVERRULED: dict[str, dict[str, Any]] = {
    # CONTRACT 2: a finish_reason that normalizes to "error" is LLMInternalError, with the text in ``partial``.
    "finish_deepseek_resource": {
        "expected_complete": False,
        "expected_error": {"class": "LLMInternalError", "retryable": True},
    },
    # The case shows the lenient reading; leaving out an event would lose text without a word.
    "unparsable_data": {
        "expected_text": "Hel",
        "expected_finish_reason": None,
        "expected_complete": False,
        "expected_error": {"class": "LLMResponseError", "retryable": False},
    },
}
ONCE = [pytest.param({**case, **OVERRULED.get(name, {})}, id=name) for name, case in CASES.items()]
CALL = ("name", "raw_arguments", "extra")
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")


def outcome(texts: str, answer: LLMResponse[Any], error: LLMError | None) -> dict[str, Any]:
    """Return all that must not depend on how the bytes were cut; an id that was made here is left out."""
    return {
        "texts": texts,
        "error": error and (type(error), error.message, error.retryable),
        "choices": [(c.index, c.text, c.finish_reason, c.reasoning, calls_of(c)) for c in answer.choices],
        "refusal": answer.refusal,
        "usage": answer.usage,
        "logprobs": answer.logprobs,
        "head": (answer.id, answer.model),
    }


def calls_of(answer: Any) -> list[tuple[Any, ...]]:
    return [tuple(getattr(call, name) for name in CALL) for call in answer.tool_calls]


def reads_of(case: dict[str, Any], body: bytes) -> list[bytes]:
    """Return the reads that a case asks for, else the whole body as one."""
    if "segments" not in case:
        return [body]
    assert case["segments"] == "split after every \\r"
    return body.replace(b"\r", b"\r\0").split(b"\0")


def check(case: dict[str, Any], answer: LLMResponse[Any], error: LLMError | None) -> None:
    """Compare with what the case expects."""
    assert answer.text == case["expected_text"]
    check_error(case["expected_error"], error)
    check_finish(case, answer)
    assert answer.reasoning == case.get("expected_reasoning")
    assert answer.refusal == case.get("expected_refusal")
    if "expected_usage" in case:
        usage = {name: getattr(answer.usage, name) for name in COUNTS}
        assert usage | case["expected_usage"] == usage
        assert not answer.usage.estimated
    for expected, choice in zip(case.get("expected_choices", ()), answer.choices, strict="expected_choices" in case):
        assert expected.items() <= {name: getattr(choice, name) for name in expected}.items()
    check_calls(case, answer)
    for name, value in case.get("expected_raw", {}).items():
        assert answer.raw[name] == value, name
    for name, value in case.get("expected_message", {}).items():
        assert answer.raw["choices"][0]["message"][name] == value, name
    for name, value in case.get("choice_extra", {}).items():
        assert answer.raw["choices"][0][name] == value, name
    assert not set(case.get("raw_without", ())) & answer.raw.keys()
    inside: Any = answer.raw
    for name in case.get("raw_path", ()):
        inside = inside[name]


def check_error(expected: dict[str, Any] | None, error: LLMError | None) -> None:
    if expected is None:
        assert error is None, repr(error)
        return
    assert type(error).__name__ == expected["class"], repr(error)
    assert error is not None
    assert error.retryable is expected["retryable"]
    for name in ("status", "code"):
        if name in expected:
            assert str(getattr(error, {"status": "status_code"}.get(name, name))) == str(expected[name])


def check_finish(case: dict[str, Any], answer: LLMResponse[Any]) -> None:
    """The cases name the server's own word, or what it means; ``raw`` must hold the former."""
    expected = case["expected_finish_reason"]
    choices = answer.raw.get("result", answer.raw).get("choices") or [{}]
    given = choices[0].get("finish_reason")
    meaning = FACTS["finish_reason_map"].get(given, given) if given is not None else None
    assert expected in (given or None, meaning)
    wanted = "tool_calls" if meaning == "stop" and answer.tool_calls else meaning
    assert answer.finish_reason == case.get("expected_normalized_finish", wanted)


def check_calls(case: dict[str, Any], answer: LLMResponse[Any]) -> None:
    legacy = case.get("expected_function_call")
    expected = case.get("expected_tool_calls") or ([legacy] if legacy else [])
    assert [(c.name, c.raw_arguments) for c in answer.tool_calls] == [(c["name"], c["arguments"]) for c in expected]
    for wanted, call in zip(expected, answer.tool_calls, strict=True):
        assert call.id == wanted["id"] if wanted.get("id", "<generated>") != "<generated>" else call.id
    for name, extra in case.get("expected_extra", {}).items():
        assert [c.extra["extra_content"] for c in answer.tool_calls if c.id == name] == [extra]


@pytest.mark.parametrize("case", ONCE)
def test_a_stream_is_what_it_is_however_it_is_cut(case: dict[str, Any]) -> None:
    body = body_of(case)
    whole = decode(decoder_for(case), reads_of(case, body))
    check(case, *whole[1:])
    if case.get("stream_requested", True):
        assert whole[0] == case["expected_text"]
    expected = outcome(*whole)
    assert outcome(*decode(decoder_for(case), [body])) == expected
    assert outcome(*decode(decoder_for(case), [body[i : i + 1] for i in range(len(body))])) == expected
    for cut in range(1, len(body)):
        assert outcome(*decode(decoder_for(case), [body[:cut], body[cut:]])) == expected, cut


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    async def handler(request: Request, reply: Reply) -> None:
        case = CASES[request.headers["x-case"]]
        body = body_of(case)
        await reply.start(200, {"content-type": "text/event-stream", **case.get("headers", {})})
        for at in range(0, len(body), 100):
            await reply.send(body[at : at + 100])
        await reply.end()

    with FakeServer(handler) as server:
        yield server


@pytest.fixture(scope="module")
def llm(server: FakeServer) -> Iterator[OpenAICompatibleLLM]:
    with OpenAICompatibleLLM("m", "key", server.url, max_retries=0) as llm:
        yield llm


@pytest.mark.parametrize("case", ONCE)
def test_a_stream_through_the_client(case: dict[str, Any], colour: Sync | Async, llm: OpenAICompatibleLLM) -> None:
    options: dict[str, Any] = {"extra_headers": {"x-case": case["name"]}}
    known = provider_of(case) in BY_NAME
    llm = llm.with_options(provider=provider_of(case)) if known else llm
    if not case.get("stream_requested", True):
        with pytest.raises(LLMError) as caught:
            colour.generate(llm, **options)
        return check(case, caught.value.partial, caught.value)
    try:
        texts, stream = colour.stream(llm, **options)
        answer, error = stream.response, None
    except LLMError as failure:
        texts, answer, error = failure.seen, failure.partial, failure  # type: ignore[attr-defined]
    assert "".join(texts) == case["expected_text"]
    check(case, answer, error)


def test_the_overruled_cases_are_cases() -> None:
    assert OVERRULED.keys() <= CASES.keys()
    assert {provider_of(case) for case in CASES.values()} - {"generic"} <= BY_NAME.keys()
