"""Play with Http1 as the bytes say: ``python -m tests.fuzz.fuzz_http1 [seconds]``, guided by coverage where atheris is installed.

The bytes are a program: start, take, stop, finish, lose, and what the server sends, which is raw, or made by a grammar and
then spoilt. Two connections get the same, one of them in pieces, and must agree. The input that broke a rule is printed.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import time
from random import Random

from jazz_llm.transport import http1
from jazz_llm.transport.exchange import MAX_HEAD, Exchange, Fault, Request

METHODS = ["GET", "POST", "HEAD", "CONNECT"]
STARTS = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 x\r\n", b"HTTP/1.1 404\n", b"HTTP/1.1 999 \r\n",
    b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\n", b"HTTP/1.1 101 x\r\n", b"\r\nHTTP/1.1 200 OK\r\n", b"HTTP/1.2 200 OK\r\n", b"HTTP/1.1 20",
]  # fmt: skip
FIELDS = [
    b"transfer-encoding: chunked\r\n", b"transfer-encoding: chunked\r\n", b"transfer-encoding: chunked\r\n", b"content-length: 7\r\n", b"content-length: 7\r\n", b"content-length: 0\r\n", b"content-length: 70000\r\n",
    b"connection: close\r\n", b"connection: keep-alive\r\n", b"x: y\n", b"x: y\r\n folded\r\n", b"X-\xe9: z\r\n", b"x: \x01\r\n", b"content-length: +7\r\n", b"transfer-encoding: gzip, chunked\r\n", b"x", b"",
]  # fmt: skip
BODIES = [
    b"3\r\nabc\r\n", b"3\r\nabc\r\n", b"1;x=y\r\na\r\n", b"00a \r\n0123456789\r\n", b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0123456", b"ffffffffffffffff\r\n", b"11000\r\n", b"3\nabc\n", b"+3\r\nabc\r\n", b"\r\n", b"2\r\na",
]  # fmt: skip


class Program:
    """Bytes read as numbers and pieces; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def below(self, end: int) -> int:
        self.at += 1
        return self.data[self.at - 1] % end if self.at <= len(self.data) else 0

    def piece(self) -> bytes:
        size = self.below(40)
        self.at += size
        return self.data[self.at - size : self.at]

    def one_of(self, pieces: list[bytes]) -> bytes:
        return pieces[self.below(len(pieces))]


def answer(program: Program) -> bytes:
    """Return an answer that is nearly valid."""
    head = program.one_of(STARTS) + b"".join(program.one_of(FIELDS) for _ in range(program.below(4)))
    if program.below(40) == 1:
        head += b"a: b\r\n" * (program.below(100) * 200)
    data = head + b"\r\n" * (program.below(8) > 0) + b"".join(program.one_of(BODIES) for _ in range(program.below(6)))
    return spoilt(program, data)


def spoilt(program: Program, data: bytes) -> bytes:
    if program.below(3) != 1:
        return data
    at = (program.below(256) * 256 + program.below(256)) % (len(data) + 1)
    return data[:at] + program.piece() + data[at + program.below(4) :]


def pieces(program: Program, data: bytes) -> list[bytes]:
    """Cut a read into at most 40, for speed."""
    step = max(1 + program.below(7), len(data) // 40)
    return [data[i : i + step] for i in range(0, len(data), step)]


class Player:
    """One connection, with all that must hold for it after every move."""

    def __init__(self) -> None:
        self.connection = http1.Http1()
        self.exchange: Exchange | None = None
        self.body = b""
        self.left = ""  # how the exchange was left: "stop", "finish" or not
        self.fed = 0

    def start(self, request: Request, *, whole: bool) -> None:
        if not self.connection.room:
            return
        self.exchange = self.connection.start(request, whole=whole)
        self.body, self.left = b"", ""
        assert self.connection.outgoing().endswith(b"\r\n\r\n" + request.body)

    def feed(self, data: bytes) -> None:
        self.fed += len(data)
        was = self.seen()
        busy = self.connection.busy
        told = self.connection.receive(data)
        self.check_told(told)
        over = busy and not self.connection.busy
        assert not over or self.left or told, "nobody is told of the end"
        assert busy or not told
        assert busy or self.seen() == was, "an exchange changed after its end"
        self.check()

    def lose(self, words: str) -> None:
        told = self.connection.lost(words)
        self.check_told(told)
        assert (self.connection.busy, self.connection.room, self.connection.closing) == (0, 0, True)
        self.check()

    def leave(self, how: str) -> None:
        if self.exchange is None:
            return
        busy, was = self.connection.busy, (self.seen(), self.connection.room, self.connection.closing)
        getattr(self.connection, how)(self.exchange)
        self.left = self.left or (how if busy else "")
        assert busy or (self.seen(), self.connection.room, self.connection.closing) == was, "left after its end"
        assert how != "stop" or not busy or (self.connection.closing and not self.connection.busy and not self.exchange.held)
        self.check()

    def take(self) -> None:
        if self.exchange is not None:
            self.body += self.connection.take(self.exchange)
            assert (self.exchange.held, self.exchange.chunks) == (0, [])

    def seen(self) -> tuple[object, ...]:
        exchange = self.exchange
        return () if exchange is None else (exchange.status, exchange.headers, exchange.held, exchange.ended, exchange.fault)

    def check_told(self, told: list[Exchange]) -> None:
        assert told in ([], [self.exchange])
        assert not (told and self.left), "told of an exchange that was left"

    def check(self) -> None:
        connection, exchange = self.connection, self.exchange
        assert len(connection._kept) <= MAX_HEAD + 1 or not connection.busy
        assert len(connection._line) <= http1.MAX_LINE + 2
        assert len(http1._sizes) <= http1.MAX_SIZES
        assert connection.room + connection.busy <= 1
        assert not (connection.room and (connection.closing or connection.retired))
        if exchange is None:
            return
        assert exchange.held == sum(map(len, exchange.chunks)) <= self.fed
        assert exchange.fault is None or (isinstance(exchange.fault, Fault) and connection.closing and not exchange.ended)
        assert not (connection.busy and (exchange.ended or exchange.fault))
        assert connection.busy or exchange.ended or exchange.fault or self.left
        assert not set("".join(itertools.chain(*exchange.headers))) & set("\r\n\0")

    def result(self) -> tuple[object, ...]:
        """Return what must not depend on how the bytes were cut."""
        if self.exchange is None or self.left:
            return (self.connection.room, self.connection.trailing)
        self.take()
        exchange, connection = self.exchange, self.connection
        return (
            connection.room,
            connection.busy,
            connection.closing,
            connection.trailing,
            exchange.status,
            exchange.headers,
            exchange.ended,
            type(exchange.fault),
            self.body,
        )


def fuzz_one(data: bytes) -> None:
    program = Program(data)
    whole, cut = players = Player(), Player()
    while program:
        move = program.below(12)
        if move == 0 or whole.exchange is None:
            request = Request(METHODS[program.below(4)], ("https", "a", 443), "/", (), b"x" * program.below(3))
            wanted = bool(program.below(2))
            for player in players:
                player.start(request, whole=wanted)
        elif move < 3:
            for player in players:
                player.take()
        elif move == 3:
            how = ["stop", "finish", "finish"][program.below(3)]
            for player in players:
                player.leave(how)
        elif move == 4:
            words = ["", "reset"][program.below(2)]
            for player in players:
                player.lose(words)
        else:
            read = program.piece() if move == 5 else program.one_of(BODIES) if move < 9 else answer(program)
            whole.feed(read)
            for piece in pieces(program, read):
                cut.feed(piece)
        assert whole.result() == cut.result()


def mutated(rng: Random, known: list[bytes]) -> bytes:
    if rng.random() < 0.3 or not known:
        return rng.randbytes(rng.randrange(1, 120))
    data = bytearray(rng.choice(known))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    at = rng.randrange(len(data))
    return bytes(data[:at] + rng.choice([b"", rng.randbytes(5), rng.choice(known)[:60]]) + data[at:])[:400]


def run(seconds: float) -> None:
    rng, known, runs, end = Random(), [], 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng, known)
        try:
            fuzz_one(data)
        except BaseException:
            sys.stderr.write(f"input: {data.hex()}\n")
            raise
        known = [*known[-500:], data] if runs % 10 == 0 else known
        runs += 1
    sys.stdout.write(f"{runs} inputs in {seconds:g} s, nothing found\n")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    try:
        import atheris
    except ImportError:
        run(seconds)
        return
    with atheris.instrument_imports():
        importlib.reload(http1)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds:.0f}",
            "-max_len=400",
            "-len_control=0",
            "-verbosity=1",
            "-print_final_stats=1",
        ],
        fuzz_one,
    )
    atheris.Fuzz()  # ends the process with a line that tells how many inputs were run


if __name__ == "__main__":
    main()
