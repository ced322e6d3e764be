"""The testing kit's own front: what it exports and when it imports, usage by provider, and switching waits off."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import jazz_llm.testing
from jazz_llm import LLMConfigurationError, LLMInternalError, LLMRateLimitError, OpenAICompatibleLLM, normalize_usage
from jazz_llm.providers import BY_NAME
from jazz_llm.testing import Answer, FakeServer, set_testing
from jazz_llm.testing.replies import USAGES

from .colours import Async, Sync

# What tells nothing of the parts, or has its own words for them, and what the total holds beside the completion.
WITHOUT_CACHED = {"anthropic", "cohere", "gemini", "perplexity", "sglang"}
WITHOUT_REASONING = {"anthropic", "cohere", "litellm", "mistral", "perplexity"}


def test_every_part_is_exported() -> None:
    assert all(getattr(jazz_llm.testing, name).__doc__ or name == "Handler" for name in jazz_llm.testing.__all__)
    assert set(dir(jazz_llm.testing)) == set(jazz_llm.testing.__all__)
    with pytest.raises(AttributeError, match=r"'jazz_llm\.testing' has no attribute 'FakeServers'"):
        jazz_llm.testing.FakeServers  # noqa: B018


def test_parts_are_imported_when_they_are_asked_for() -> None:
    code = "import sys; from jazz_llm.testing import Answer, FakeLLM, set_testing; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"trustme", "h2", "h11", "httpx", "yaml", "jazz_llm.testing.server"}


@pytest.mark.parametrize("name", USAGES)
def test_every_usage_is_of_one_and_the_same_call(name: str) -> None:
    assert name in BY_NAME
    usage = normalize_usage(USAGES[name], provider=name)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.estimated) == (30, 20, 50, False)
    assert usage.cached_tokens == (None if name in WITHOUT_CACHED else 10)
    assert usage.reasoning_tokens == (None if name in WITHOUT_REASONING else 5)


def test_a_provider_without_a_shape_of_its_own_has_the_plain_one() -> None:
    assert Answer(usage="ollama").whole("m")["usage"] == {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": 50}


# --- set_testing


def test_waits_are_left_out(colour: Sync | Async, llm_server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    llm_server.fail(429, retry_after=60)
    llm_server.fail(500)
    began = time.monotonic()
    with set_testing():
        assert colour.generate(llm).metrics.attempts == 3
    assert time.monotonic() - began < 3


def test_waits_are_back_after_it(colour: Sync | Async, llm_server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    with set_testing():
        with set_testing(False):
            llm_server.fail(429, retry_after=0.3)
            assert colour.generate(llm).latency_ms >= 300
        llm_server.fail(429, retry_after=9)
        assert colour.generate(llm).latency_ms < 5000
    llm_server.fail(429, retry_after=0.3)
    assert colour.generate(llm).latency_ms >= 300


def test_a_call_without_with_lasts(llm_server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    set_testing()
    try:
        llm_server.fail(429, retry_after=60)
        began = time.monotonic()
        assert llm.generate("hi").text == "Hello, world!"
        assert time.monotonic() - began < 3
    finally:
        set_testing(False)


def test_what_is_decided_stays_the_same(colour: Sync | Async, llm_server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    with set_testing():
        llm_server.fail(429, retry_after=1000)  # longer than max_retry_after
        with pytest.raises(LLMRateLimitError) as caught:
            colour.generate(llm)
        assert caught.value.attempts == 1
        llm_server.fail(429, retry_after=10)
        with pytest.raises(LLMRateLimitError) as caught:
            colour.generate(llm, deadline=5.0)
        assert caught.value.attempts == 1


@pytest.mark.parametrize(("attempts", "made"), [(None, 3), (1, 1), (2, 2), (9, 3)])
def test_tries_can_be_limited(colour: Sync | Async, llm_server: FakeServer, llm: OpenAICompatibleLLM, attempts: int | None, made: int) -> None:
    for _ in range(5):
        llm_server.fail(500)
    with set_testing(attempts=attempts), pytest.raises(LLMInternalError) as caught:
        colour.generate(llm)
    assert caught.value.attempts == len(llm_server.requests) == made


def test_it_reaches_every_thread(llm_server: FakeServer, llm: OpenAICompatibleLLM) -> None:
    for _ in range(8):
        llm_server.fail(429, retry_after=60)
    began = time.monotonic()
    with set_testing(), ThreadPoolExecutor(4) as pool:
        assert {response.text for response in pool.map(llm.with_options(max_retries=9).generate, "abcd")} == {"Hello, world!"}
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("attempts", [0, -1, True, 1.5, "2"])
def test_attempts_must_be_a_number_from_1(attempts: int) -> None:
    with pytest.raises(LLMConfigurationError, match="attempts must be a number from 1"):
        set_testing(attempts=attempts)
