"""When a call is tried again, and how long it waits first. The only file that imports tenacity.

The first try is made straight: tenacity is entered only after a retryable failure, since it would double a call's CPU.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import (
    LLMConfigurationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMStatusError,
    LLMStreamTruncatedError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import tenacity

R = TypeVar("R")

# CONTRACT, section 5; 424 is what TGI answers when a model shard failed.
RETRYABLE = frozenset({408, 409, 424, 425, 429, 498, *range(500, 600)} - {501, 505})

# How many tries a call makes at most, without the waits between them; None: no test is going on. It is the one state of this
# module: a test has to reach every instance, also those that the code under test makes for itself.
_testing: float | None = None


def set_testing(on: bool = True, *, attempts: int | None = None) -> contextlib.ExitStack:  # noqa: FBT002  # as stamina's
    """Leave out the waits between the tries of every instance: all else that retries do stays as it is.

    What is decided is what would be decided without this: a wait that is too long, or past the deadline, still ends the call.
    Call it once for all tests, or use it as a context manager, which puts back what was before.

    Args:
        on: False switches the waits on again.
        attempts: How many tries a call makes at most, whatever its ``max_retries``; None: no such limit.

    Raises:
        LLMConfigurationError: ``attempts`` is no number from 1.
    """
    if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
        raise LLMConfigurationError(f"attempts must be a number from 1, or None, not {attempts!r}.")
    restore = contextlib.ExitStack()
    restore.callback(_test_with, _testing)
    _test_with((attempts or math.inf) if on else None)
    return restore


def _test_with(testing: float | None) -> None:
    global _testing  # noqa: PLW0603  # see above
    _testing = testing


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How to retry: seconds for ``initial``, ``maximum`` and ``max_retry_after``; ``jitter`` is the part taken off at random.

    ``statuses`` are retried unless the body or a header says otherwise; ``ambiguous`` covers connections lost before any byte
    of the answer, where the server may have done the work; ``budget`` bounds tries to 1.1 x calls + 10 while a server is down.
    """

    initial: float = 0.5
    maximum: float = 8.0
    jitter: float = 0.25
    statuses: frozenset[int] = RETRYABLE
    ambiguous: bool = True
    max_retry_after: float = 120.0
    budget: bool = True

    def __post_init__(self) -> None:
        numbers = (self.initial, self.maximum, self.jitter, self.max_retry_after)
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < float("inf") for n in numbers):
            raise LLMConfigurationError("RetryPolicy: initial, maximum, jitter and max_retry_after must be numbers from 0.")
        if self.jitter > 1:
            raise LLMConfigurationError("RetryPolicy: jitter is a part of the wait, so at most 1.")
        statuses: object = self.statuses  # whatever was given, in spite of the annotation
        if isinstance(statuses, str) or not isinstance(statuses, Iterable) or not all(isinstance(s, int) for s in statuses):
            raise LLMConfigurationError("RetryPolicy: statuses must be a set of status codes such as {429, 503}.")
        if not isinstance(self.ambiguous, bool) or not isinstance(self.budget, bool):
            raise LLMConfigurationError("RetryPolicy: ambiguous and budget must be True or False.")
        object.__setattr__(self, "statuses", frozenset(self.statuses))

    def wait(self, retries_so_far: int, error: LLMError) -> float:
        """Return the seconds to wait before the next try: what the server asked for, else exponential, jittered downwards."""
        hint = error.retry_after if isinstance(error, LLMStatusError) else None
        if hint is not None:
            return hint
        full = min(self.maximum, self.initial * 2.0 ** min(retries_so_far, 60))
        return full * (1 - self.jitter * random.random())  # noqa: S311  # spreads load, guards nothing


class RetryBudget:
    """A bucket of retries: starts at 10, each first try adds 0.1, each retry takes 1; shared by an instance and its copies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = 10.0

    def first_try(self) -> None:
        """Put in what one call earns."""
        with self._lock:
            self._tokens = min(10.0, self._tokens + 0.1)

    def take(self) -> bool:
        """Take one retry out; False where none is left."""
        with self._lock:
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


@dataclass(slots=True)
class Retries:
    """The retries of one call: what may still be tried, and when."""

    policy: RetryPolicy
    budget: RetryBudget
    max_retries: int
    left_of_call: Callable[[], float | None]
    waits: Callable[[LLMError, float], object] | None = None  # told of each wait before it
    made: int = 0

    def worth_it(self, error: LLMError) -> bool:
        """Say whether this failure may be tried again at all."""
        if isinstance(error, LLMStreamTruncatedError):
            return False  # passing, perhaps, but the server has done the work and the caller may have paid for it
        lost = isinstance(error, LLMConnectionError) and error.maybe_processed
        return error.retryable and not (lost and not self.policy.ambiguous)

    def run(self, attempt: Callable[[], R], sleep: Callable[[float], None], first: LLMError) -> R:
        """Wait and try again until an attempt succeeds or must not be repeated; ``first`` is the failure that led here."""
        import tenacity

        # tenacity counts and waits after a failure that it saw itself: its first attempt fails as ours did.
        pending = [first]

        def again() -> R:
            if pending:
                raise pending.pop()
            return attempt()

        return tenacity.Retrying(**self._settings(sleep))(again)

    async def arun(self, attempt: Callable[[], Awaitable[R]], sleep: Callable[[float], Awaitable[None]], first: LLMError) -> R:
        """Do what ``run`` does, awaiting."""
        import tenacity

        pending = [first]

        async def again() -> R:
            if pending:
                raise pending.pop()
            return await attempt()

        return await tenacity.AsyncRetrying(**self._settings(sleep))(again)

    def _settings(self, sleep: Any) -> dict[str, Any]:
        return {
            "sleep": sleep if _testing is None else lambda _: sleep(0.0),
            "wait": self._wait,
            "stop": self._give_up_or_pay,
            "retry": self._retry,
            "before_sleep": self._before_sleep,
            "reraise": True,
        }

    def _retry(self, state: tenacity.RetryCallState) -> bool:
        error = _failure(state)
        return error is not None and self.worth_it(error)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = _failure(state)
        return 0.0 if error is None else self.policy.wait(self.made, error)

    def _before_sleep(self, state: tenacity.RetryCallState) -> None:
        error = _failure(state)
        if self.waits is not None and error is not None:
            self.waits(error, state.upcoming_sleep)

    def _give_up_or_pay(self, state: tenacity.RetryCallState) -> bool:
        """Stop before a wait that is too long, past the deadline, or not paid for; else pay for one more retry."""
        error, wait, left = _failure(state), state.upcoming_sleep, self.left_of_call()
        most = self.max_retries if _testing is None else min(self.max_retries, _testing - 1)
        if self.made >= most or wait > self.policy.max_retry_after or (left is not None and wait >= left):
            return True
        if self.policy.budget and not _free(error) and not self.budget.take():
            return True
        self.made += 1
        return False


def _failure(state: tenacity.RetryCallState) -> LLMError | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return error if isinstance(error, LLMError) else None


def _free(error: LLMError | None) -> bool:
    """A 429, and whatever names its own wait, is the server steering us: it does not drain the budget."""
    return isinstance(error, LLMRateLimitError) or (isinstance(error, LLMStatusError) and error.retry_after is not None)
