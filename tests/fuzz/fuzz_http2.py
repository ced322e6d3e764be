"""Fuzz the HTTP/2 connection: ``python -m tests.fuzz.fuzz_http2 [seconds]``.

An input is a program: some of its bytes are calls of a driver, some raw bytes of the server, some frames that are well formed
but for a field or two, so that deep states are reached. After every step the connection must have kept to its bounds and to
what its face promises. With atheris (``pip install atheris``) coverage guides the search; without, programs are drawn at random
and changed at random.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

from jazz_llm.transport import http2
from jazz_llm.transport.exchange import MAX_HEAD, WHOLE_PIECE, Exchange, Fault, LostError, Request
from jazz_llm.transport.frames import CONTINUATION, DATA, HEAD_SIZE, HEADERS, MASK, PREFACE, RST_STREAM, frame
from jazz_llm.transport.http2 import FRAME_SIZE, WHOLE_EXTRA, WINDOW, Http2

SLOWEST = 5.0  # seconds for one program
RESPONSES = (
    b"\x88",
    b"\x88",
    b"\x88\x5f\x11text/event-stream",
    b"\x88\x40\x01x\x01y",
    b"\x88\x0f\x0d\x013",
    b"\x88\x0f\x0d\x06100000",
    b"\x08\x03103",
    b"\x08\x03204",
    b"\x3f\xe1\x1f\x88",
    b"\x20\x88",
)
TRAILERS = (b"\x00\x01t\x01u", b"\x40\x01t\x01u", b"")
BAD_BLOCKS = (
    b"\x88\xbe",
    b"\xbe\xbf",
    b"\x88\x00\x01A\x01b",
    b"\x88\x00\x01a\x02\r\n",
    b"\x08\x03101",
    b"\x88\x40\x01a\x7f\xa1\x0f" + b"v" * 2080 + b"\xbe" * 40,
    b"\xff",
    b"\x00\x01a\x01b" * 4000,
)
BODIES = (0, 0, 1, 10, 70_000)
METHODS = ("POST", "POST", "GET", "HEAD")


class Program:
    """The bytes of an input, read as numbers; behind their end all are 0."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def pick(self, choices: tuple) -> Any:
        return choices[self.byte() % len(choices)]

    def number(self) -> int:
        """Return a number of four bytes, most often a small one or one at an edge."""
        kind = self.byte()
        if kind < 160:
            return kind
        if kind < 250:
            edges = (0, 1, 0x3FFF, 0x4000, 0x4001, 65_535, 0xFFFFFF, MASK - 65_535, MASK, 2**31, 2**32 - 1, WINDOW)
            return edges[kind % len(edges)]
        return int.from_bytes(self.take(4))


class Run:
    """One program's connection, with all that was started on it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.connection = Http2()
        self.exchanges: list[Exchange] = []
        self.unread = b""  # what the server sent and we have not read
        self.sent = b""
        self.state: dict[int, bool] = {}  # our streams: may we still send DATA on them?
        self.bodies: dict[Exchange, bytes] = {}

    # What a driver does.

    def start(self) -> None:
        program = self.program
        one = Request(
            program.pick(METHODS), ("https", "h", 443), "/", (("a", "b" * program.byte()),), bytes(program.pick(BODIES))
        )
        room = self.connection.room
        try:
            exchange = self.connection.start(one, whole=bool(program.byte() % 2))
        except LostError as error:
            assert error.unprocessed
            assert not room
        else:
            assert room
            self.exchanges.append(exchange)

    def one(self) -> Exchange | None:
        return self.exchanges[self.program.byte() % len(self.exchanges)] if self.exchanges else None

    def take(self) -> None:
        if exchange := self.one():
            held = exchange.held
            assert len(self.connection.take(exchange)) == held
            assert exchange.held == 0

    def stop(self) -> None:
        if exchange := self.one():
            self.connection.stop(exchange)
            assert exchange.ended or exchange.fault is not None

    def finish(self) -> None:
        if exchange := self.one():
            self.connection.finish(exchange)

    def lost(self) -> None:
        if self.rare():
            self.seen(self.connection.lost("gone"))
            assert self.connection.closing

    def receive(self) -> None:
        size = self.program.byte()
        read = self.unread if size > 60 else self.unread[:size]
        self.unread = self.unread[len(read) :]
        self.seen(self.connection.receive(read))

    def seen(self, touched: list[Exchange]) -> None:
        assert len(set(touched)) == len(touched)
        for exchange in touched:
            assert exchange in self.exchanges
            over = exchange.ended or exchange.fault is not None
            assert over or not exchange.whole or exchange.held > WHOLE_PIECE

    # What a server sends.

    def rare(self) -> bool:
        """Tell whether to do what most often ends the connection."""
        return self.program.byte() < 8

    def stream(self, *, headed: bool | None = None) -> int:
        """Return a stream: most often one that is open, and has a head as wanted."""
        kind = self.program.byte()
        if kind >= 254:
            return self.program.byte()
        if not self.exchanges:
            self.start()
        fitting = [one for one in self.exchanges if one.id in self.connection._streams and headed in (None, one.status > 0)]
        choices = fitting if kind < 230 and fitting else self.exchanges
        return choices[-1 - kind % min(len(choices), 4)].id if choices else 1

    def raw(self) -> None:
        if self.rare():
            self.unread += self.program.take(self.program.byte())

    def settings(self) -> None:
        setting = self.program.pick((1, 3, 4, 4, 5, 6, 9))
        value = (
            self.program.number() if self.rare() else (100, 3, 16_384 + self.program.byte(), 40_000)[self.program.byte() % 4]
        )
        value = max(value, FRAME_SIZE) if setting == 5 and value < 1000 else value
        self.unread += frame(4, 0, 0, setting.to_bytes(2) + value.to_bytes(4))

    def bad_settings(self) -> None:
        if self.rare():
            pairs = [
                self.program.byte().to_bytes(2) + self.program.number().to_bytes(4) for _ in range(self.program.byte() % 4)
            ]
            self.unread += frame(4, self.program.byte() & 1, 0, b"".join(pairs))

    def plain_settings(self) -> None:
        self.unread += frame(4, 0, 0, b"\0\x03\0\0\0" + bytes((self.program.byte(),)))

    def section(self, block: bytes, end: int, *, headed: bool | None = None) -> None:
        """Send a header section, in one piece or some."""
        number, size = self.stream(headed=headed), self.program.pick((FRAME_SIZE, FRAME_SIZE, FRAME_SIZE, 2))
        pieces = [block[at : at + size] for at in range(0, len(block), size)] or [b""]
        pieces[-1:] = pieces[-1:] if not self.rare() else []
        self.unread += b"".join(  # at once: a large block in pieces of two bytes would take longer to make than to read
            frame(CONTINUATION if at else HEADERS, 4 * (at == len(pieces) - 1) | (0 if at else end), number, piece)
            for at, piece in enumerate(pieces)
        )

    def head(self) -> None:
        self.section(self.program.pick(RESPONSES), self.program.byte() % 8 == 0, headed=False)

    def trailers(self) -> None:
        self.section(self.program.pick(TRAILERS), self.program.byte() % 8 != 0, headed=True)

    def bad_head(self) -> None:
        if self.rare():
            self.section(self.program.pick(BAD_BLOCKS), self.program.byte() & 1)
        elif self.rare():
            self.section(self.program.take(self.program.byte()), self.program.byte() & 1)

    def data(self) -> None:
        kind = self.program.byte()
        size = FRAME_SIZE if kind > 200 else kind % 100
        self.unread += frame(DATA, int(kind % 9 == 0), self.stream(headed=True), bytes(size)) * (
            self.program.byte() % 20 + 1 if kind > 230 else 1
        )

    def padded(self) -> None:
        padding, content = self.program.byte(), self.program.byte()
        rest = bytes(content if self.rare() else content + padding)
        self.unread += frame(DATA, 8 | self.program.byte() % 4 == 0, self.stream(headed=True), bytes((padding,)) + rest)

    def reset(self) -> None:
        self.unread += frame(RST_STREAM, 0, self.stream(), self.program.number().to_bytes(4))

    def window(self) -> None:
        number = self.stream() if self.program.byte() % 3 else 0
        size = self.program.number() if self.rare() else 1 + 200 * self.program.byte()
        self.unread += frame(8, 0, number, size.to_bytes(4))

    def goaway(self) -> None:
        if self.rare():
            last = self.stream() if self.program.byte() % 2 else self.program.number()
            self.unread += frame(7, 0, 0, last.to_bytes(4) + self.program.number().to_bytes(4))

    def ping(self) -> None:
        self.unread += frame(6, self.program.byte() & 1, 0, bytes(8)) * (1 if self.program.byte() < 250 else 600)

    def continuation(self) -> None:
        if self.rare() or self.connection._block:
            self.unread += frame(CONTINUATION, self.program.byte() & 4, self.stream(), self.program.pick(RESPONSES))

    def any(self) -> None:
        if self.rare():
            kind, flags, number = self.program.byte() % 12, self.program.byte(), self.stream()
            self.unread += frame(kind, flags, number, self.program.take(self.program.byte() % 20))

    # What must hold.

    def check(self) -> None:
        connection = self.connection
        self.sent += connection.outgoing()
        self.check_sent()
        assert len(connection._rest) < HEAD_SIZE + FRAME_SIZE
        assert connection._block is None or len(connection._block[2]) <= MAX_HEAD
        assert len(connection._heads) <= http2.MOST_KEPT >= len(connection._blocks)
        assert len(connection._ended) <= http2.MOST_ENDED
        assert not connection._touched
        assert {id(one) for one in connection._sending} == {
            id(one) for one in connection._streams.values() if one.unsent is not None
        }
        assert connection._finishing.keys() <= connection._streams.keys()
        assert 0 <= connection.busy == len(connection._streams)
        assert 0 <= connection.room <= max(1, connection.limit)
        assert not connection.closing or (connection.room, connection.busy, connection._rest) == (0, 0, b"")
        for exchange in self.exchanges:
            self.check_exchange(exchange)

    def check_exchange(self, exchange: Exchange) -> None:
        assert exchange.held == sum(map(len, exchange.chunks)) <= WINDOW + (WHOLE_EXTRA if exchange.whole else 0)
        assert len(exchange.chunks) <= http2.MOST_CHUNKS + http2.STEP
        assert exchange.fault is None or (isinstance(exchange.fault, Fault) and not exchange.ended)
        over = exchange.ended or exchange.fault is not None
        assert over == (exchange.id not in self.connection._streams)
        assert not over or exchange.unsent is None
        assert exchange.status == 0 or 200 <= exchange.status <= 999
        assert exchange.status or not exchange.held
        assert exchange.status or not exchange.ended

    def check_sent(self) -> None:
        """Read our own frames: whole, in order of streams, and no content where none may be."""
        self.sent = self.sent.removeprefix(PREFACE)
        while self.sent:
            size, kind = int.from_bytes(self.sent[:3]), self.sent[3]
            flags, number = self.sent[4], int.from_bytes(self.sent[5:9])
            assert len(self.sent) >= HEAD_SIZE + size
            self.sent = self.sent[HEAD_SIZE + size :]
            if kind == HEADERS:
                assert number == 2 * len(self.state) + 1
                self.state[number] = not flags & 1
            elif kind == DATA:
                assert self.state[number]
                self.state[number] = not flags & 1
            elif kind == RST_STREAM:
                assert number in self.state
                self.state[number] = False


STEPS: tuple[Callable[[Run], None], ...] = (
    *(Run.start, Run.start, Run.take, Run.stop, Run.finish, Run.lost),
    *(Run.receive, Run.receive, Run.receive, Run.receive, Run.receive, Run.receive),
    *(Run.head, Run.head, Run.head, Run.head, Run.trailers, Run.data, Run.data, Run.data, Run.data, Run.data, Run.padded),
    *(Run.settings, Run.reset, Run.window, Run.window, Run.goaway, Run.ping, Run.continuation),
    *(Run.raw, Run.bad_settings, Run.bad_head, Run.any),
)


def fuzz_one(data: bytes) -> None:
    """Run one program."""
    began = time.monotonic()
    program = Program(data)
    run = Run(program)
    if program.byte() % 16:
        run.plain_settings()
    while program:
        STEPS[program.byte() % len(STEPS)](run)
        run.check()
    run.seen(run.connection.receive(run.unread))
    run.check()
    run.seen(run.connection.lost(""))
    run.check()
    assert time.monotonic() - began < SLOWEST


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Return a program that differs a little."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randint(0, len(changed))
        kind = rng.random()
        if kind < 0.4:
            changed[at : at + 1] = bytes((rng.randrange(256),))
        elif kind < 0.7:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        elif kind < 0.85:
            del changed[at : at + rng.randint(1, 8)]
        else:
            begin = rng.randint(0, len(changed))
            changed[at:at] = changed[begin : begin + rng.randint(1, 40)]
    return bytes(changed[:2000])


def fuzz_at_random(seconds: float, seed: int) -> int:
    """Run random programs and changed ones for so long; return how many. A program that fails is printed."""
    rng = random.Random(seed)
    kept = [b""]
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = rng.randbytes(rng.randint(0, 600)) if rng.random() < 0.3 else mutated(rng, rng.choice(kept))
        try:
            fuzz_one(data)
        except BaseException:
            sys.stderr.write(f"failed: {data.hex()}\n")
            raise
        count += 1
        if rng.random() < 0.05:
            kept = [*kept[-200:], data]
    return count


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    try:
        import atheris  # type: ignore[import-not-found]
    except ImportError:
        count = fuzz_at_random(seconds, seed=int(time.time()))
        sys.stdout.write(f"fuzz_http2: {count} inputs run at random in {seconds:.0f} s, nothing found\n")
        return
    atheris.instrument_all()
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds:.0f}", "-max_len=2000", "-timeout=10", "-print_final_stats=1"], fuzz_one
    )
    atheris.Fuzz()  # ends the process; "stat::number_of_executed_units" tells how many


if __name__ == "__main__":
    main()
