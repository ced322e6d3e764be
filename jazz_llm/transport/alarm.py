"""What an async call waits on: its clock, its own future, and the ticker of its loop that looks at all clocks.

One ticker per loop instead of a timer per wait: a timer costs as much as the decoding of two chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import LLMConfigurationError

if TYPE_CHECKING:
    from ..timing import Clock
    from .exchange import Fault

# Seconds between two looks at the clocks; waits end that much late at most.
TICK = 0.05

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Work(Protocol[R_co]):
    """What can be awaited, or closed instead: a coroutine."""

    def __await__(self) -> Generator[Any, Any, R_co]: ...

    def close(self) -> None:
        """Give it up before it has begun."""


class Alarm:
    """Ends the waits of one call when its clock runs out or is interrupted.

    There are two kinds of wait. On something of ours the call awaits the future of ``waiting()``, which ``wake()`` resolves,
    and looks itself at what has happened. Foreign work runs under ``guard()``, which cancels it, by the rules of
    ``asyncio.timeout`` for telling its own cancellation from another's. ``fault`` is what somebody else found out for us.
    """

    __slots__ = ("_cancelling", "_rang", "_task", "_waiter", "clock", "fault", "loop")

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self.clock = clock
        self.loop = loop
        self.fault: Fault | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._rang = False
        self._cancelling = 0
        clock.wake = self.look_soon

    def waiting(self) -> asyncio.Future[None]:
        """Return a future to await, resolved by ``wake``."""
        waiter = self._waiter = self.loop.create_future()
        return waiter

    def wake(self) -> None:
        """Let the call go on and look."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def guard(self, work: Work[R]) -> R:
        """Await foreign work; raise the clock's own failure where it ran out."""
        if self.clock.over():
            # A task that cancels itself meets that at its next suspension, which may be anywhere: so it does not begin.
            work.close()
            raise self.clock.failure()
        task = self._task = asyncio.current_task(self.loop)
        assert task is not None
        self._rang = False
        self._cancelling = task.cancelling()
        try:
            result = await work
        except asyncio.CancelledError:
            if not self._rang or task.uncancel() > self._cancelling:
                raise
        except BaseException:
            self._take_back(task)
            raise
        else:
            self._take_back(task)
            return result
        finally:
            self._task = None
        raise self.clock.failure()

    def look(self) -> None:
        """End the wait under way if it is time; called by the loop, never by the task itself."""
        if not self.clock.over():
            return
        if self._task is None:
            self.wake()
        elif not self._rang:
            self._rang = True
            self._task.cancel()

    def look_soon(self) -> None:
        """Have the loop look, from any thread."""
        call_soon(self.loop, self.look)

    def _take_back(self, task: asyncio.Task[Any]) -> None:
        """Take the cancellation back where the work ended in another way."""
        if self._rang:
            task.uncancel()


class Ticker:
    """Looks at the clocks of the calls of one loop, as long as there are any."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._alarms: set[Alarm] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, alarm: Alarm) -> None:
        """Look at a call's clock from now on."""
        self._alarms.add(alarm)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)

    def remove(self, alarm: Alarm) -> None:
        """Look no more; from any thread, and from finalizers."""
        self._alarms.discard(alarm)

    def stop(self) -> None:
        """Leave nothing on the loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        for alarm in tuple(self._alarms):
            alarm.look()
        self._timer = self._loop.call_later(TICK, self._tick) if self._alarms else None


async def asleep(clock: Clock, seconds: float) -> None:
    """Wait between two tries, unless the clock ends it."""
    clock.outside()
    await pause(clock, seconds)


async def pause(clock: Clock, seconds: float) -> None:
    """Wait, unless the clock runs out or is interrupted before; others have their turn even where it is 0 s."""
    loop = asyncio.get_running_loop()
    ticker, alarm = Ticker(loop), Alarm(clock, loop)
    ticker.add(alarm)
    try:
        await alarm.guard(asyncio.sleep(seconds))
    finally:
        ticker.stop()


def call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Have a loop call something in its next iteration, from any thread; a closed loop calls nothing."""
    with contextlib.suppress(RuntimeError):
        if is_running_here(loop):
            loop.call_soon(call)
        else:
            loop.call_soon_threadsafe(call)


def is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Say whether a loop runs in this thread."""
    return asyncio._get_running_loop() is loop


def running_loop() -> asyncio.AbstractEventLoop:
    """Return asyncio's loop; under another library say what to use."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    raise LLMConfigurationError("The async calls need a running asyncio (or uvloop) event loop; trio is not supported.")
