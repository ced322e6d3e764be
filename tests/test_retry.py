from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from jazz_llm import LLMConnectionError, LLMError, LLMInternalError, LLMRateLimitError, LLMStreamTruncatedError, RetryPolicy
from jazz_llm.retry import Retries, RetryBudget

DOWN = LLMInternalError("down", retryable=True, status_code=500)


class Calls:
    """Attempts that fail with the given errors, in order, and then succeed; in both colours."""

    def __init__(self, *errors: LLMError, policy: RetryPolicy | None = None, max_retries: int = 5, left: float | None = None) -> None:
        self.errors = list(errors)
        self.slept: list[float] = []
        self.policy = policy or RetryPolicy(jitter=0.0)
        self.budget = RetryBudget()
        self.retries = Retries(self.policy, self.budget, max_retries, lambda: left)

    def attempt(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    def run(self) -> str:
        try:
            return self.attempt()
        except LLMError as first:
            return self.retries.run(self.attempt, self.slept.append, first)

    def arun(self) -> str:
        async def attempt() -> str:
            return self.attempt()

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        async def run() -> str:
            try:
                return await attempt()
            except LLMError as first:
                return await self.retries.arun(attempt, sleep, first)

        return asyncio.run(run())


@pytest.fixture(params=["run", "arun"])
def run(request: pytest.FixtureRequest) -> Any:
    return lambda calls: getattr(calls, request.param)()


def test_waits_grow_to_the_maximum(run: Any) -> None:
    calls = Calls(*[DOWN] * 6, max_retries=6)
    assert run(calls) == "answer"
    assert calls.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_the_last_error_comes_out_when_the_tries_are_used_up(run: Any) -> None:
    last = LLMInternalError("last", retryable=True)
    calls = Calls(DOWN, DOWN, last, max_retries=2)
    with pytest.raises(LLMInternalError) as caught:
        run(calls)
    assert caught.value is last
    assert len(calls.slept) == 2


def test_a_failure_that_is_not_passing_ends_it(run: Any) -> None:
    calls = Calls(DOWN, LLMInternalError("for good", retryable=False))
    with pytest.raises(LLMInternalError, match="for good"):
        run(calls)
    assert len(calls.slept) == 1


def test_jitter_goes_downwards_only() -> None:
    policy = RetryPolicy(initial=1.0, jitter=0.25)
    waits = [policy.wait(0, DOWN) for _ in range(200)]
    assert 0.75 <= min(waits) < 0.8
    assert 0.95 < max(waits) <= 1.0


def test_the_servers_own_wait_is_kept_to(run: Any) -> None:
    calls = Calls(LLMRateLimitError("slow down", retryable=True, retry_after=7.0))
    run(calls)
    assert calls.slept == [7.0]


def test_a_wait_that_is_too_long_is_not_begun(run: Any) -> None:
    calls = Calls(LLMRateLimitError("tomorrow", retryable=True, retry_after=86400.0))
    with pytest.raises(LLMRateLimitError, match="tomorrow"):
        run(calls)
    assert calls.slept == []


def test_a_wait_past_the_deadline_is_not_begun(run: Any) -> None:
    calls = Calls(DOWN, left=0.4)
    with pytest.raises(LLMInternalError):
        run(calls)
    assert calls.slept == []


def test_ambiguous_losses_are_retried_unless_told_otherwise() -> None:
    lost = LLMConnectionError("lost", retryable=True, maybe_processed=True)
    refused = LLMConnectionError("refused", retryable=True, maybe_processed=False)
    careful = Calls(policy=RetryPolicy(ambiguous=False)).retries
    assert Calls().retries.worth_it(lost)
    assert not careful.worth_it(lost)
    assert careful.worth_it(refused)


def test_a_cut_answer_is_never_repeated_by_itself() -> None:
    assert not Calls().retries.worth_it(LLMStreamTruncatedError("cut", retryable=True))


def test_while_a_server_is_down_tries_stay_within_the_budget() -> None:
    budget, tries = RetryBudget(), 0
    for _ in range(1000):
        tries += 1
        budget.first_try()
        while budget.take():
            tries += 1
    assert tries <= 1.1 * 1000 + 10
    assert tries > 1.09 * 1000


def test_the_budget_ends_retries_but_a_429_is_free(run: Any) -> None:
    calls = Calls(DOWN)
    while calls.budget.take():
        pass
    with pytest.raises(LLMInternalError):
        run(calls)
    busy = Calls(LLMRateLimitError("busy", retryable=True), LLMInternalError("busy", retryable=True, retry_after=1.0))
    while busy.budget.take():
        pass
    assert run(busy) == "answer"


def test_without_the_budget_there_is_no_bound(run: Any) -> None:
    calls = Calls(*[DOWN] * 50, policy=RetryPolicy(budget=False, initial=0), max_retries=50)
    assert run(calls) == "answer"


def test_the_budget_survives_threads() -> None:
    budget, taken = RetryBudget(), []

    def take() -> None:
        taken.extend(budget.take() for _ in range(100))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 10
