"""The policy alone: connections here are plain objects, and nothing waits."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import httpx
import pytest

from jazz_llm.transport.pool import Shelf

HOME, OTHER = ("https", "home", 443), ("https", "other", 443)


@dataclass(eq=False)
class Line:
    """A connection that takes ``streams`` exchanges at once."""

    shelf: Shelf[Line]
    origin: tuple[str, str, int] = HOME
    streams: int = 1
    settled: bool = True
    busy: int = 0
    closed: bool = False
    resting: bool = False

    @property
    def room(self) -> int:
        return 0 if self.closed or self.resting else (self.streams if self.settled else 1) - self.busy

    @property
    def idle(self) -> bool:
        return self.busy == 0

    def close(self) -> None:
        self.closed = True
        self.shelf.remove(self)

    def start(self) -> None:
        self.busy += 1
        self.shelf.taken(self)

    def end(self, now: float = 0.0) -> list[Line]:
        self.busy -= 1
        return self.shelf.returned(self, now)


def shelf(most: int | None = 10, idle: int | None = 5, expiry: float | None = 4.0, *, http2: bool = False) -> Shelf[Line]:
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=idle, keepalive_expiry=expiry)
    return Shelf(limits, frozenset({"https"} if http2 else ()))


def dialed(on: Shelf[Line], now: float = 0.0, **line: object) -> Line:
    made = Line(on, **line)  # type: ignore[arg-type]
    on.dial(made.origin)
    on.dialed(made.origin)
    on.add(made, now)
    return made


def test_the_last_one_used_is_taken_first() -> None:
    pool = shelf()
    first, second = dialed(pool), dialed(pool)
    first.start()
    second.start()
    assert pool.lease(HOME) is None
    second.end()
    first.end()
    assert pool.lease(HOME) is first
    assert pool.lease(OTHER) is None


def test_one_with_more_room_is_shared_up_to_its_limit() -> None:
    pool = shelf(http2=True)
    line = dialed(pool, streams=3)
    for _ in range(3):
        assert pool.lease(HOME) is line
        line.start()
    assert pool.lease(HOME) is None
    assert pool.may_dial(HOME, 1)


def test_http1_dials_for_everybody_up_to_the_limit() -> None:
    pool = shelf(most=3)
    for _ in range(3):
        assert pool.may_dial(HOME, 1)
        pool.dial(HOME)
    assert not pool.may_dial(HOME, 1)
    pool.dialed(HOME)
    assert pool.may_dial(HOME, 1)


def test_one_is_dialed_to_find_out_what_is_spoken() -> None:
    pool = shelf(http2=True)
    assert pool.may_dial(HOME, 20)
    pool.dial(HOME)
    assert not pool.may_dial(HOME, 19)
    assert pool.may_dial(OTHER, 1)


def test_what_is_still_to_come_counts_as_room() -> None:
    pool = shelf(http2=True)
    dialed(pool, streams=100).close()  # so much is known of the origin
    pool.dial(HOME)
    assert not pool.may_dial(HOME, 99)
    assert pool.may_dial(HOME, 100)
    pool.dialed(HOME)
    new = Line(pool, streams=100, settled=False)
    pool.add(new, 0.0)
    new.start()
    assert not pool.may_dial(HOME, 99)
    assert pool.may_dial(HOME, 100)
    new.settled = True
    pool.update(new, 0.0)
    assert pool.lease(HOME) is new
    assert pool.may_dial(HOME, 1)


def test_at_the_limit_an_idle_connection_makes_way() -> None:
    pool = shelf(most=2)
    busy, idle = dialed(pool), dialed(pool, origin=OTHER)
    busy.start()
    assert pool.may_dial(HOME, 1)
    assert idle.closed
    assert not busy.closed
    pool.dial(HOME)
    assert not pool.may_dial(HOME, 1)


def test_no_more_are_kept_idle_than_allowed_and_the_longest_idle_go_first() -> None:
    pool = shelf(idle=2)
    lines = [dialed(pool) for _ in range(2)] + [dialed(pool, origin=OTHER)]
    for line in lines:
        line.start()
    assert lines[1].end(1.0) == []
    assert lines[0].end(2.0) == []
    assert lines[2].end(3.0) == [lines[1]]


def test_those_idle_for_too_long_are_named() -> None:
    pool = shelf(expiry=4.0)
    old, young = dialed(pool, now=1.0), dialed(pool, now=2.0)
    assert pool.next_expiry() == 5.0
    assert pool.expired(4.9) == []
    assert pool.expired(5.5) == [old]
    assert pool.expired(6.0) == [old, young]
    old.start()
    assert pool.expired(6.0) == [young]


def test_nothing_is_dialed_for_those_whom_a_resting_connection_will_serve() -> None:
    pool = shelf()
    line = dialed(pool, resting=True)
    assert pool.lease(HOME) is None
    assert not pool.may_dial(HOME, 1)
    assert pool.may_dial(HOME, 2)
    pool.learn(HOME, stays=True)
    assert pool.may_dial(HOME, 1)
    line.resting = False
    pool.returned(line, 0.0)
    assert pool.lease(HOME) is line


def test_no_limits_at_all() -> None:
    pool = shelf(None, None, None)
    for _ in range(50):
        pool.dial(HOME)
    assert pool.may_dial(HOME, 1)
    lines = [dialed(pool) for _ in range(50)]
    assert pool.expired(1e9) == []
    assert pool.next_expiry() == math.inf
    assert [line.end() for line in lines[:1] if not line.start()] == [[]]


def test_a_connection_that_only_waits_for_the_end_of_a_message_is_seen() -> None:
    pool = shelf()
    line = dialed(pool, streams=0)
    assert pool.lease(HOME) is None
    assert pool.is_draining(HOME)
    assert not pool.is_draining(OTHER)
    line.close()
    assert not pool.is_draining(HOME)
    assert pool.is_down(HOME)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_books_agree(seed: int) -> None:
    """Random lives of many connections: a lease always has room, and the limits hold."""
    rng = random.Random(seed)
    most, idle = rng.randint(1, 6), rng.randint(0, 4)
    pool, lines = shelf(most, idle, http2=seed % 2 == 0), []
    for now in range(400):
        lines = [line for line in lines if not line.closed]
        origin = rng.choice((HOME, OTHER))
        line = rng.choice(lines) if lines else None
        match rng.randrange(5):
            case 0 if pool.may_dial(origin, 1):
                lines = [known for known in lines if not known.closed]
                streams = rng.randint(1, 4)
                lines.append(dialed(pool, now, origin=origin, streams=streams, settled=streams == 1))
            case 1 if (free := pool.lease(origin)) is not None:
                assert free.room > 0
                assert free.origin == origin
                free.start()
            case 2 if line is not None and line.busy:
                for other in line.end(now):
                    other.close()
            case 3 if line is not None and not line.settled:
                line.settled = True
                pool.update(line, now)
            case 4 if line is not None and rng.random() < 0.2:
                line.close()
        alive = {line for line in lines if not line.closed}
        assert set(pool.connections) == alive
        assert len(alive) <= most
        for origin in (HOME, OTHER):
            assert (pool.lease(origin) is None) == (not any(c.room > 0 for c in alive if c.origin == origin))
