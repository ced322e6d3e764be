"""Deadlines of one call: connect, pool, write, read, first token, between tokens, the whole.

A :class:`Clock` never waits. The drivers below it ask how long the wait at hand may last, and tell it what the call is doing;
it knows why a wait was ended, and that is also how a wait is ended from outside (``interrupt``).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import LLMClosedError, LLMError, LLMTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .errors import Phase

# How long a stream waits for usage and [DONE] after its finish_reason, seconds (the contract's section 1).
TAIL_SECONDS = 1.0

Reason = Literal["stopped", "closed", "forked"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each wait of one try, and ``deadline`` for the whole call; None waits for ever."""

    connect: float | None = None
    pool: float | None = None
    write: float | None = None
    read: float | None = None
    first_token: float | None = None
    deadline: float | None = None


class Clock:
    """The one deadline that counts now, and the reason to stop before it.

    ``until`` is a time of ``time.monotonic`` or None. ``sent`` says whether a byte of the request went out, ``answering``
    whether the answer's head has come; the transport sets both. ``since`` is when the wait under way began.
    ``wake`` has whoever waits look at this clock again.
    """

    __slots__ = (
        "_ends",
        "_streams",
        "answering",
        "phase",
        "reason",
        "sent",
        "since",
        "timeouts",
        "until",
        "wake",
    )

    def __init__(self, timeouts: Timeouts, *, streams: bool) -> None:
        self.timeouts = timeouts
        self._streams = streams
        self.until: float | None = None
        self.phase: Phase = "pool"
        self._ends = None if timeouts.deadline is None else time.monotonic() + timeouts.deadline
        self.reason: Reason | None = None
        self.wake: Callable[[], object] | None = None
        self.begin()

    def begin(self, *, transport_reports: bool = True) -> None:
        """Start a new try; ``transport_reports``: the transport tells this clock of its phases (a user's own does not)."""
        self.sent = not transport_reports  # whether a byte of the request went out
        self.answering = False  # whether the answer's head is there: writes are then the connection's own affair
        self._enter("pool")
        if not transport_reports:
            self.waiting()

    def outside(self) -> None:
        """Start a time that is not the server's (a wait between tries, a key function): only the call's deadline counts."""
        self.phase = "deadline"
        self.since = time.monotonic()
        self._set(None)

    def connecting(self) -> None:
        """Start the wait for DNS, TCP and TLS together."""
        if self.phase == "pool":
            self._enter("connect")

    def writing(self) -> None:
        """Start the wait for one write to go out."""
        if not self.answering:
            self._enter("write")

    def waiting(self) -> None:
        """Start the wait for the answer: the request, or what has to go out of it now, is sent."""
        if not self.answering:
            self._enter("first_token" if self._streams and self.timeouts.first_token is not None else "read")

    def content(self) -> None:
        """Start the wait for the next content of a stream; once a chunk, so it does at once what ``_enter`` does."""
        if not self._streams:
            return
        self.phase = "between_tokens"
        since, limit, ends = time.monotonic(), self.timeouts.read, self._ends
        self.since = since
        if limit is None:
            self.until = ends
        else:
            self.until = since + limit if ends is None else min(since + limit, ends)

    def tail(self) -> None:
        """Start the short wait for what follows a finish_reason."""
        self.phase = "between_tokens"
        self.since = time.monotonic()
        self._set(self.since + TAIL_SECONDS)

    def over(self) -> bool:
        """Say whether the wait under way has to end."""
        return self.reason is not None or (self.until is not None and time.monotonic() >= self.until)

    def sleep(self, seconds: float) -> None:
        """Wait between two tries of a sync call, unless it is interrupted."""
        awake = threading.Event()
        self.wake = awake.set
        if self.reason is not None or awake.wait(seconds):
            raise self.failure()

    def remaining(self) -> float | None:
        """Return the seconds left for the wait under way (0.0 where there are none), None for no limit."""
        return None if self.until is None else max(0.0, self.until - time.monotonic())

    def seconds(self) -> dict[str, float | None]:
        """Return the waits as plain seconds, by httpx's names, for a transport that does not know this clock."""
        times = self.timeouts
        return {"connect": times.connect, "pool": times.pool, "write": times.write, "read": self.remaining()}

    def left_of_call(self) -> float | None:
        """Return the seconds left of the whole call's deadline, None for no deadline."""
        return None if self._ends is None else self._ends - time.monotonic()

    def interrupt(self, reason: Reason) -> None:
        """End the wait under way, and every later one, from any thread."""
        if self.reason is None:
            self.reason = reason
        if self.wake is not None:
            self.wake()

    def disown(self) -> None:
        """Take note that this is a forked child and the call its parent's: no wait on it begins here, and nobody is woken."""
        self.reason, self.wake = "forked", None

    def failure(self) -> LLMError:
        """Say why a wait ended without what it waited for."""
        if self.reason == "forked":
            return LLMClosedError("This call is the parent process's; make one here.")
        if self.reason is not None:
            return LLMClosedError("The client was closed while this call was running.")
        phase: Phase = self.phase
        if self._ends is not None and self.until is not None and self.until >= self._ends:
            phase = "deadline"
        return LLMTimeoutError(_SENTENCES[phase].format(self._limit(phase)), phase=phase)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since = time.monotonic()
        limit = self._limit(phase)
        self._set(None if limit is None else self.since + limit)

    def _set(self, until: float | None) -> None:
        if self._ends is not None:
            until = self._ends if until is None else min(until, self._ends)
        self.until = until

    def _limit(self, phase: Phase) -> float | None:
        limit: float | None = getattr(self.timeouts, "read" if phase == "between_tokens" else phase)
        return limit


_SENTENCES: dict[Phase, str] = {
    "connect": "No connection within {} s (DNS, TCP and TLS together).",
    "pool": "No free connection within {} s: every one allowed by limits is in use.",
    "write": "The server did not take the request within {} s.",
    "read": "No answer within {} s of the request being sent.",
    "first_token": "No first token within {} s of the request being sent.",
    "between_tokens": "The stream stalled: nothing new for {} s.",
    "deadline": "The call did not end within its deadline of {} s.",
}
