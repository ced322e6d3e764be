"""Which connection takes a request: one policy for both colours, which never waits.

* A request goes to the connection of its origin that was used last and has room. HTTP/1.1 has room for one exchange, HTTP/2
  for as many as the server allows; in the sync pool a connection that is leased has none.
* Else another one is dialed, up to ``max_connections`` in all; at the limit an idle one makes way. As long as it is not known
  what an origin speaks, one connection is dialed to find out; and what those being dialed, or still without the server's
  SETTINGS, will bring counts as room to come.
* Some HTTP/1.1 servers promise to keep a connection and close it right after a stream (llama.cpp: 40 us). Until it is known of
  an origin, a connection rests for a moment after a stream; where it is known to be so, it is not used again.
* Of those idle at most ``max_idle`` are kept, the longest idle going first, and none longer than ``expiry`` seconds.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .exchange import Origin

if TYPE_CHECKING:
    import httpx

# The contract's limits: idle for 4 s, below the 5 s after which uvicorn and llama.cpp hang up.
MAX_CONNECTIONS, MAX_IDLE, EXPIRY = 1000, 100, 4.0


# How long a connection rests after a stream until it is known whether its server closes it then, and how soon that is, seconds.
REST, SOON = 0.05, 0.1


class Connection(Protocol):
    """What the policy asks of a connection."""

    origin: Origin

    @property
    def room(self) -> int:
        """How many more exchanges may start now."""

    @property
    def settled(self) -> bool:
        """Whether the server has said how many exchanges it takes."""

    @property
    def streams(self) -> int:
        """How many exchanges it takes in all, where it is settled."""

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""

    @property
    def resting(self) -> bool:
        """Whether it is not used yet after a stream, to see whether the server closes it."""

    def close(self) -> None:
        """Close it now."""


C = TypeVar("C", bound=Connection)


class Shelf(Generic[C]):
    """The connections of one pool.

    ``multiplexed`` are the schemes over which HTTP/2 may be spoken by many at once; ``stays`` says whether HTTP/1.1 connections
    stay open after a stream, None where it has to be found out.
    """

    def __init__(
        self, limits: httpx.Limits | None, multiplexed: frozenset[str] = frozenset(), stays: bool | None = None
    ) -> None:
        given: Any = (MAX_CONNECTIONS, MAX_IDLE, EXPIRY)
        if limits is not None:
            given = (limits.max_connections, limits.max_keepalive_connections, limits.keepalive_expiry)
        self._max, self._max_idle, self.expiry = (math.inf if limit is None else limit for limit in given)
        self._multiplexed = multiplexed
        self._free: defaultdict[Origin, dict[C, None]] = defaultdict(dict)  # the last one in is the last one used
        self._new: defaultdict[Origin, dict[C, None]] = defaultdict(dict)  # those that will have more room
        self._idle: dict[C, float] = {}  # since when, the longest first
        self._streams: dict[Origin, int] = {}  # what its connections took the last time
        self._dialing: Counter[Origin] = Counter()
        self._stays: dict[Origin, bool] = {}
        self._usually_stays = stays
        self.connections: dict[C, None] = {}

    def lease(self, origin: Origin) -> C | None:
        """Return the connection that takes the next request."""
        free = self._free.get(origin)
        return next(reversed(free)) if free else None

    def may_dial(self, origin: Origin, waiting: int) -> bool:
        """Say whether one of ``waiting`` requests should dial another connection; at the limit an idle one makes way."""
        if waiting <= self._to_come(origin):
            return False
        if len(self.connections) + self._dialing.total() < self._max:
            return True
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            oldest.close()
            self.remove(oldest)
        return oldest is not None

    def could_dial(self, origin: Origin, waiting: int) -> bool:
        """Say whether ``may_dial`` would say yes; nothing is closed for it."""
        below = len(self.connections) + self._dialing.total() < self._max
        return waiting > self._to_come(origin) and (below or bool(self._idle))

    def _to_come(self, origin: Origin) -> float:
        """Return for how many others the connections being made, or resting, have room."""
        resting = 0 if self.stays(origin) is not None else sum(c.resting for c in self._idle if c.origin == origin)
        streams = self._streams.get(origin) if origin[0] in self._multiplexed else 1
        dialing, new = self._dialing[origin], self._new[origin]
        if streams is None:
            return math.inf if dialing or new else 0
        return (dialing + len(new)) * (streams - 1) + resting

    def dial(self, origin: Origin) -> None:
        """Note that a connection is being made."""
        self._dialing[origin] += 1

    def dialed(self, origin: Origin) -> None:
        """Note that a connection was made, or not; the driver adds it itself."""
        self._dialing[origin] -= 1

    def add(self, connection: C, now: float) -> None:
        """Take a new connection."""
        self.connections[connection] = None
        self.update(connection, now)

    def is_down(self, origin: Origin) -> bool:
        """Say whether nothing of an origin is open or being opened."""
        return not self._dialing[origin] and not any(c.origin == origin for c in self.connections)

    def is_draining(self, origin: Origin) -> bool:
        """Say whether a connection waits only for the end of a message that nobody reads any more."""
        return any(connection.origin == origin and not connection.room for connection in self._idle)

    def is_dialing(self, origin: Origin) -> bool:
        """Say whether a connection is being made."""
        return self._dialing[origin] > 0

    def room(self, origin: Origin) -> int:
        """Return how many requests the open connections take now."""
        return sum(connection.room for connection in self._free.get(origin, ()))

    def update(self, connection: C, now: float) -> list[C]:
        """Take note of a connection that may have more room than before; return those to be closed, too many being idle."""
        if connection.settled:
            self._new[connection.origin].pop(connection, None)
            self._streams[connection.origin] = connection.streams
        else:
            self._new[connection.origin][connection] = None
        return self.returned(connection, now)

    def taken(self, connection: C) -> None:
        """Take note of a connection that has got another exchange."""
        self._idle.pop(connection, None)
        if not connection.room:
            self._free[connection.origin].pop(connection, None)

    def returned(self, connection: C, now: float) -> list[C]:
        """Take note of a connection whose exchange is over; return those to be closed, too many being idle."""
        free, idle = self._free[connection.origin], self._idle
        free.pop(connection, None)
        if connection.room:
            free[connection] = None
        if connection.idle:
            idle.setdefault(connection, now)
            if len(idle) > self._max_idle:
                return list(idle)[: len(idle) - int(self._max_idle)]
        return []

    def stays(self, origin: Origin) -> bool | None:
        """Say whether HTTP/1.1 connections stay open after a stream, None where it is not known."""
        return self._stays.get(origin, self._usually_stays)

    def learn(self, origin: Origin, *, stays: bool) -> None:
        """Take note of it."""
        self._stays[origin] = stays

    def remove(self, connection: C) -> None:
        """Forget a connection that is closed."""
        self.connections.pop(connection, None)
        self._idle.pop(connection, None)
        self._free[connection.origin].pop(connection, None)
        self._new[connection.origin].pop(connection, None)

    def expired(self, now: float) -> list[C]:
        """Return the connections that have been idle for too long."""
        found = []
        for connection, since in self._idle.items():
            if now - since < self.expiry:
                break
            found.append(connection)
        return found

    def next_expiry(self) -> float | None:
        """Return when the first idle connection has to go."""
        since: Any = next(iter(self._idle.values()), None)
        return None if since is None else since + self.expiry
