from __future__ import annotations

import pytest

from jazz_llm import timing
from jazz_llm.errors import LLMClosedError, LLMTimeoutError
from jazz_llm.timing import Clock, Timeouts


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(timing, "time", fake)
    return fake


EACH = Timeouts(connect=1.0, pool=2.0, write=3.0, read=4.0, first_token=5.0)


def test_each_phase_has_its_own_limit(time: FakeTime) -> None:
    clock = Clock(EACH, streams=True)
    limits = [(clock.phase, clock.remaining())]
    for step in (clock.connecting, clock.writing, clock.waiting, clock.content):
        step()
        limits.append((clock.phase, clock.remaining()))
    assert limits == [("pool", 2.0), ("connect", 1.0), ("write", 3.0), ("first_token", 5.0), ("between_tokens", 4.0)]


def test_a_whole_answer_has_one_limit_from_sent_to_the_last_byte(time: FakeTime) -> None:
    clock = Clock(EACH, streams=False)
    clock.waiting()
    time.now += 3
    clock.content()
    assert (clock.phase, clock.remaining()) == ("read", 1.0)


def test_without_first_token_timeout_the_wait_is_read(time: FakeTime) -> None:
    clock = Clock(Timeouts(read=4.0), streams=True)
    clock.waiting()
    assert (clock.phase, clock.remaining()) == ("read", 4.0)


def test_writes_after_the_head_of_the_answer_are_the_connections_own(time: FakeTime) -> None:
    clock = Clock(EACH, streams=True)
    clock.answering = True
    clock.content()
    clock.writing()
    clock.waiting()
    assert clock.phase == "between_tokens"


def test_the_deadline_bounds_every_phase_and_names_itself(time: FakeTime) -> None:
    clock = Clock(Timeouts(read=60.0, deadline=10.0), streams=True)
    clock.waiting()
    assert clock.remaining() == 10.0
    time.now += 11
    assert clock.remaining() == 0.0
    error = clock.failure()
    assert isinstance(error, LLMTimeoutError)
    assert (error.phase, error.retryable) == ("deadline", False)
    assert "10.0 s" in str(error)


def test_a_new_try_starts_anew_but_for_the_deadline(time: FakeTime) -> None:
    clock = Clock(Timeouts(pool=2.0, deadline=10.0), streams=True)
    clock.sent = clock.answering = True
    time.now += 9
    clock.begin()
    assert (clock.sent, clock.answering, clock.phase, clock.remaining()) == (False, False, "pool", 1.0)


def test_the_tail_is_short_whatever_the_timeout(time: FakeTime) -> None:
    clock = Clock(Timeouts(), streams=True)
    assert clock.remaining() is None
    clock.tail()
    assert clock.remaining() == timing.TAIL_SECONDS


def test_an_interrupt_wakes_the_wait_and_keeps_its_first_reason() -> None:
    clock, woken = Clock(Timeouts(), streams=True), []
    clock.wake = lambda: woken.append("woken")
    clock.interrupt("stopped")
    clock.interrupt("closed")
    assert (clock.reason, woken) == ("stopped", ["woken", "woken"])
    assert isinstance(clock.failure(), LLMClosedError)


def test_a_wait_is_over_when_its_time_is_up_or_it_is_interrupted(time: FakeTime) -> None:
    clock = Clock(EACH, streams=True)
    time.now += 1.9
    assert not clock.over()
    time.now += 0.1
    assert clock.over()
    endless = Clock(Timeouts(), streams=True)
    assert not endless.over()
    endless.interrupt("closed")
    assert endless.over()


def test_a_sync_wait_between_tries_can_be_interrupted() -> None:
    clock = Clock(Timeouts(), streams=True)
    clock.sleep(0.001)
    clock.interrupt("closed")
    with pytest.raises(LLMClosedError):
        clock.sleep(60)
