"""What stands for the pools while a cassette runs: a recorder around them, or a player in their place; both colours each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import LLMError
from ..response.headers import retry_hint
from ..transport.alarm import Work, asleep, pause, running_loop
from .cassette_secrets import Secrets
from .cassette_tape import Answer, Take, Takes, Tape, asked_of, readable

if TYPE_CHECKING:
    from ..timing import Clock
    from ..transport import Request
    from ..transport.exchange import Headers


class Recorder:
    """A pool whose requests and answers are kept; of both colours, as is the pool."""

    def __init__(self, pool: Any, takes: Takes) -> None:
        self._pool = pool
        self._takes = takes

    def open(self, make_request: Callable[[], Request], clock: Clock) -> Recorded:
        """Do what the pool's does, and keep what comes."""
        recorded = Recorded()

        def make() -> Request:
            return recorded.begin(self._takes, make_request())

        try:
            return recorded.head(self._pool.open(make, clock))
        except LLMError as error:
            recorded.failed(error)
            raise

    async def aopen(self, make_request: Callable[[], Work[Request]], clock: Clock) -> Recorded:
        """Do what ``open`` does, awaiting."""
        recorded = Recorded()

        async def make() -> Request:
            return recorded.begin(self._takes, await make_request())

        try:
            return recorded.head(await self._pool.aopen(make, clock))
        except LLMError as error:
            recorded.failed(error)
            raise

    def sleep(self, clock: Clock, seconds: float) -> None:
        """Wait between two tries."""
        self._pool.sleep(clock, seconds)

    async def asleep(self, clock: Clock, seconds: float) -> None:
        """Do what ``sleep`` does, awaiting."""
        await self._pool.asleep(clock, seconds)


class Recorded:
    """An answer that is kept as it is read."""

    def __init__(self) -> None:
        self._take: Take | None = None  # until there is a request: a key function may fail
        self._sent = 0.0
        self._answer: Any = None

    def begin(self, takes: Takes, request: Request) -> Request:
        """Keep the request."""
        self._sent = time.monotonic()
        self._take = takes.begin(request)
        return readable(request)

    def head(self, answer: Any) -> Recorded:
        """Keep the head of the answer."""
        assert self._take is not None
        self._answer = answer
        self.status, self.headers, self.http_version = answer.status, answer.headers, answer.http_version
        self._take.head(self._at(), self.status, self.http_version, _in_seconds(self.headers))
        return self

    def failed(self, error: LLMError) -> None:
        """Keep the failure."""
        if self._take is not None:
            self._take.failed(self._at(), error)

    def read(self) -> bytes:
        """Return what the answer's read brings, b"" at the end."""
        try:
            data: bytes = self._answer.read()
        except LLMError as error:
            self.failed(error)
            raise
        self._keep(data)
        return data

    async def aread(self) -> bytes:
        """Do what ``read`` does, awaiting."""
        try:
            data: bytes = await self._answer.aread()
        except LLMError as error:
            self.failed(error)
            raise
        self._keep(data)
        return data

    def raw_headers(self) -> Headers:
        """Return the headers as they came, one by one."""
        headers: Headers = self._answer.raw_headers()
        return headers

    def close(self) -> None:
        """Give up what is left of the answer."""
        self._answer.close()

    async def aclose(self) -> None:
        """Do what ``close`` does, here and now."""
        await self._answer.aclose()

    def finish(self) -> None:
        """Want no more of the answer."""
        assert self._take is not None
        self._take.ended()
        self._answer.finish()

    def _keep(self, data: bytes) -> None:
        assert self._take is not None
        self._take.read(self._at(), data)

    def _at(self) -> float:
        return time.monotonic() - self._sent


def _in_seconds(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers with a wait up to a date told in seconds: when it is replayed, the date would mean another wait."""
    asked = headers.get("retry-after", "")
    seconds = retry_hint({"retry-after": asked}) if "," in asked else None
    return headers if seconds is None else {**headers, "retry-after": f"{seconds:.1f}"}


class Player:
    """Answers from a tape, and no pool; ``pace``: as slowly as they came."""

    def __init__(self, tape: Tape, *, pace: bool) -> None:
        self._tape = tape
        self._pace = pace

    def open(self, make_request: Callable[[], Request], clock: Clock) -> Played:
        """Return the answer that the tape has for the request."""
        played = self._played(make_request(), clock)
        played.wait_for_head()
        return played.head()

    async def aopen(self, make_request: Callable[[], Work[Request]], clock: Clock) -> Played:
        """Do what ``open`` does, awaiting."""
        running_loop()
        played = self._played(await make_request(), clock)
        await played.await_head()
        return played.head()

    def sleep(self, clock: Clock, seconds: float) -> None:
        """Wait between two tries at the recorded pace; else there is no server to wait for."""
        clock.sleep(seconds if self._pace else 0.0)

    async def asleep(self, clock: Clock, seconds: float) -> None:
        """Do what ``sleep`` does, awaiting."""
        await asleep(clock, seconds if self._pace else 0.0)

    def _played(self, request: Request, clock: Clock) -> Played:
        secrets = Secrets()
        secrets.learn_request(request.headers)
        return Played(self._tape, self._tape.answer_to(asked_of(request, secrets)), clock, pace=self._pace)


class Played:
    """An answer from a tape."""

    def __init__(self, tape: Tape, answer: Answer, clock: Clock, *, pace: bool) -> None:
        self.status = answer.status
        self.headers = dict(answer.headers)
        self.http_version = answer.http_version
        self._tape = tape
        self._answer = answer
        self._clock = clock
        self._pace = pace
        self._next = 0
        self._began = time.monotonic()
        clock.begin(transport_reports=False)

    def wait_for_head(self) -> None:
        """Wait for the head, or the failure that came instead."""
        _wait(self._clock, self._until_head())

    async def await_head(self) -> None:
        """Do what ``wait_for_head`` does, awaiting."""
        await pause(self._clock, self._until_head())

    def head(self) -> Played:
        """Begin the answer, or fail as it did."""
        if self.status is None:
            raise self._end()
        return self

    def read(self) -> bytes:
        """Return what one read brought, b"" at the end."""
        _wait(self._clock, self._until_read())
        return self._take()

    async def aread(self) -> bytes:
        """Do what ``read`` does, awaiting."""
        await pause(self._clock, self._until_read())
        return self._take()

    def raw_headers(self) -> Headers:
        """Return the headers that were kept."""
        return tuple(self.headers.items())

    def close(self) -> None:
        """Do nothing: there is no connection."""

    finish = close

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""

    def _take(self) -> bytes:
        reads, position = self._answer.reads, self._next
        if position < len(reads):
            self._next += 1
            return reads[position][1]
        if self._answer.left or self._answer.error is not None:
            raise self._end()
        return b""

    def _end(self) -> LLMError:
        return self._answer.failure() or self._tape.left(self._answer)

    def _until_head(self) -> float:
        error = self._answer.error
        return self._until(error["at"] if error is not None and self.status is None else self._answer.at)

    def _until_read(self) -> float:
        reads, error = self._answer.reads, self._answer.error
        if self._next < len(reads):
            return self._until(reads[self._next][0])
        return self._until(error["at"]) if error is not None else 0.0

    def _until(self, at: float) -> float:
        return max(0.0, self._began + at - time.monotonic()) if self._pace else 0.0


def _wait(clock: Clock, seconds: float) -> None:
    """Wait, unless the clock runs out or is interrupted before."""
    left = clock.remaining()
    clock.sleep(seconds if left is None else min(left, seconds))
    if clock.over():
        raise clock.failure()
