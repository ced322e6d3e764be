"""What the gateway costs: CPU microseconds a chunk beside a bare `websockets` echo, the time it adds, many clients on one core.

Every client gets 50 chunks a second, beginning at a random phase, each with its own mark, its number and when it was made.

    gateway   the model server writes a chunk as HTTP (one event, one write) -> `jazz_llm.gateway` -> the client, as a message
    relay     the same model server -> a bare `websockets` server that passes on each event as it lies -> the client
    echo      the client sends the very message that the gateway would send it -> a bare `websockets` server -> the client

So each reads one thing and writes one message a chunk; the echo, with neither compression nor JSON, is what the issue names.
The CPU time is that of the process in the middle, from the first request to the last chunk, the opening of the streams
included. It has the last core for itself where a system lets us say so (Linux), and all others share the rest. The time of a
chunk is from before the model server's write to after the client's read; of the echo, the way there and back.

    python -m benchmarks.bench_gateway [--clients 200] [--seconds 6] [--rounds 5]
    python -m benchmarks.bench_gateway model | gateway | relay | echo | clients      the processes it starts
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.bench_load import Check
from benchmarks.harness import Child, Question, Table, interruptible, print_table, progress, started
from benchmarks.machine import descriptors, memory, raise_file_limit
from benchmarks.server import event, last_events

PACE = 50  # chunks a second and client
MOST_OF_ECHO, MOST_ADDED = 1.5, 0.5  # times its CPU; milliseconds, in the median
FEW = 10  # clients, for the time that is added where nothing else is in the way
MIDDLES = ("gateway", "relay", "echo")
MODEL = "bench-model"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
AROUND = event("#").split(b"#")
LIST = json.dumps({"data": [{"id": MODEL}]}).encode()


def piece(mark: str, number: int) -> str:
    """Return a chunk's text: whose it is, which, and when it was made."""
    return f"{mark} {number} {time.monotonic_ns()};"


# --- The model server ---


class Streaming(asyncio.Protocol):
    """Answer a list of models, or so many chunks at the pace, to one connection after the other's request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        if not found or len(body) < length:
            return
        self.received = b""
        if head.startswith(b"GET"):
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(LIST), LIST))
        else:
            mark, count = json.loads(body)["messages"][-1]["content"].split()
            self.transport.write(HEAD)
            self.begin(mark, int(count))

    def begin(self, mark: str, count: int) -> None:
        self.mark, self.count, self.number = mark, count, 0
        self.loop = asyncio.get_running_loop()
        self.due = self.loop.time() + random.random() / PACE
        self.loop.call_at(self.due, self.step)

    def step(self) -> None:
        if self.transport.is_closing():
            return
        self.write(piece(self.mark, self.number).encode().join(AROUND))
        self.number += 1
        self.due += 1 / PACE
        if self.number < self.count:
            self.loop.call_at(self.due, self.step)
        else:
            self.write(last_events(self.count))
            self.transport.write(b"0\r\n\r\n")

    def write(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


@contextlib.asynccontextmanager
async def model() -> Any:
    """Serve chunks."""
    server = await asyncio.get_running_loop().create_server(Streaming, "127.0.0.1", 0, backlog=4096)
    async with server:
        yield server.sockets[0].getsockname()[1]


# --- What stands in the middle ---


@contextlib.asynccontextmanager
async def gateway() -> Any:
    """Serve the gateway."""
    from jazz_llm.gateway import Gateway

    async with Gateway(port=0) as serving:
        yield serving.port


@contextlib.asynccontextmanager
async def bare(handler: Callable[[Any], Awaitable[None]]) -> Any:
    """Serve a handler with nothing but `websockets`."""
    from websockets.asyncio.server import serve

    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def send_back(connection: Any) -> None:
    """Echo."""
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


class Passing(asyncio.Protocol):
    """Pass on what each read brings, as it lies."""

    def __init__(self, connection: Any, request: bytes) -> None:
        self.connection, self.request = connection, request
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        from websockets.asyncio.server import broadcast

        broadcast((self.connection,), data, text=True)


async def pass_on(connection: Any) -> None:
    """Relay."""
    port, _, asked = (await connection.recv()).partition(" ")
    body = json.dumps({"messages": [{"content": asked}]}).encode()
    request = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: Passing(connection, request), "127.0.0.1", int(port)
    )
    await connection.wait_closed()
    transport.close()


PARTS: dict[str, Callable[[], Any]] = {
    "model": model,
    "gateway": gateway,
    "relay": lambda: bare(pass_on),
    "echo": lambda: bare(send_back),
}


async def part(name: str) -> None:
    """Run a server; each line of the input is answered with what it has cost so far; ends when the input does."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    async with PARTS[name]() as port:
        say({"port": port})
        read_lines(lines)
        while await lines.get():
            gc.collect()
            say({"cpu": time.process_time(), "memory": memory(), "descriptors": descriptors()})


def say(message: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(message), flush=True)


def read_lines(lines: asyncio.Queue[str]) -> None:
    """Hand the input's lines over, and at their end an empty one."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in itertools.chain(sys.stdin, ("",)):
            with contextlib.suppress(RuntimeError):  # the loop has ended first
                loop.call_soon_threadsafe(lines.put_nowait, line)

    threading.Thread(target=read, daemon=True).start()


# --- The clients, all in one process: they cost little, and check every chunk ---


class Client(asyncio.Protocol):
    """A WebSocket by hand: one that is slow would be measured instead of what it talks to."""

    def __init__(self, middle: str, mark: str, count: int, model_port: int) -> None:
        self.middle, self.mark, self.count, self.model_port = middle, mark, count, model_port
        self.received, self.open, self.lying, self.texts = b"", False, "", ""
        self.times: list[int] = []
        self.loop = asyncio.get_running_loop()
        self.ready, self.ended = self.loop.create_future(), self.loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        host = "127.0.0.1:{}".format(transport.get_extra_info("peername")[1])
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        transport.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n{key}\r\n\r\n".encode())

    def connection_lost(self, _: Exception | None) -> None:
        for future in (self.ready, self.ended):
            if not future.done():
                future.set_exception(ConnectionError("the connection was closed"))
                future.exception()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self.received += data
        if not self.open:
            self.shake_hands()
        for message in self.messages():
            self.take(message, now)

    def shake_hands(self) -> None:
        head, found, rest = self.received.partition(b"\r\n\r\n")
        if found:
            assert b" 101 " in head, head
            self.open, self.received = True, rest
            if self.middle == "gateway":
                url = f"http://127.0.0.1:{self.model_port}"
                self.say(type="load", unique_request_id="load", provider="bench", base_url=url)
            else:
                self.ready.set_result(None)

    def messages(self) -> Iterator[bytes]:
        """Return the frames that are whole."""
        while self.open and len(self.received) >= 2:
            length, start = self.received[1], 2
            if length == 126:
                length, start = int.from_bytes(self.received[2:4]), 4
            if len(self.received) < start + length:
                return
            opcode, message = self.received[0] & 15, self.received[start : start + length]
            self.received = self.received[start + length :]
            if opcode == 1:
                yield message

    def say(self, **message: Any) -> None:
        self.send(json.dumps(message))

    def send(self, text: str) -> None:
        """Send a frame, masked with zeros: the server does not do less for it."""
        data = text.encode()
        size = bytes([128 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2)
        self.transport.write(b"\x81" + size + bytes(4) + data)

    def begin(self) -> None:
        asked = f"{self.mark} {self.count}"
        if self.middle == "gateway":
            messages = [{"role": "user", "content": asked}]
            self.say(type="generate", unique_request_id=self.mark, messages=messages, params={"model_id": MODEL}, stream=True)
        elif self.middle == "relay":
            self.send(f"{self.model_port} {asked}")
        else:
            self.due = self.loop.time() + random.random() / PACE
            self.loop.call_at(self.due, self.step, 0)

    def step(self, number: int) -> None:
        """Send what the gateway would send; it comes back."""
        if number == self.count or self.transport.is_closing():
            return
        message = {"type": "generate_stream_chunk", "unique_request_id": self.mark, "chunk": piece(self.mark, number)}
        self.send(json.dumps(message, separators=(",", ":")))
        self.due += 1 / PACE
        self.loop.call_at(self.due, self.step, number + 1)

    def take(self, message: bytes, now: int) -> None:
        """Keep when a chunk came; the end is told by the gateway, and of the others by the number."""
        if self.middle == "relay":
            self.take_event(message.decode(), now)
        else:
            self.take_message(json.loads(message), now)

    def take_message(self, message: dict[str, Any], now: int) -> None:
        kind = message["type"]
        if kind == "generate_stream_chunk":
            self.keep(message["chunk"], now)
        elif kind == "load_done":
            self.ready.set_result(None)
        elif kind == "generate_stream_done":
            self.ended.set_result(message["error"])
        if self.middle == "echo" and len(self.times) == self.count:
            self.ended.set_result("SUCCESS")

    def take_event(self, lying: str, now: int) -> None:
        *events, self.lying = (self.lying + lying).split("\n\n")
        for text in events:
            _, found, rest = text.partition('"content":"')
            if found:
                self.keep(rest.partition('"')[0], now)
            elif "[DONE]" in text:
                self.ended.set_result("SUCCESS")

    def keep(self, text: str, now: int) -> None:
        self.texts += text
        self.times.append(now - int(text.rstrip(";").rpartition(" ")[2].rpartition(";")[2]))

    def wrong(self) -> bool:
        """Tell whether a chunk is missing, twice there, or another client's."""
        got = [text.split(" ")[:2] for text in self.texts.split(";")[:-1]]
        return got != [[self.mark, str(number)] for number in range(self.count)] or self.ended.result() != "SUCCESS"


async def clients() -> None:
    """Do what each line of the input asks: connect, then stream when told to."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    read_lines(lines)
    while line := await lines.get():
        task = json.loads(line)
        everyone = await connected(**task)
        say({"ready": len(everyone)})
        await lines.get()
        for client in everyone:
            client.begin()
        await asyncio.wait([client.ended for client in everyone])
        say(outcome(everyone))
        for client in everyone:
            client.transport.close()


async def connected(middle: str, port: int, model_port: int, clients: int, count: int) -> list[Client]:
    """Connect so many, and load."""
    loop, everyone = asyncio.get_running_loop(), []
    for number in range(clients):
        mark = f"{middle}-{number}"
        _, client = await loop.create_connection(partial(Client, middle, mark, count, model_port), "127.0.0.1", port)
        await client.ready
        everyone.append(client)
    return everyone


def outcome(everyone: Sequence[Client]) -> dict[str, Any]:
    """Return how long chunks took, in milliseconds, how many came, and whose are wrong."""
    times = sorted(value / 1e6 for client in everyone for value in client.times)
    median, p99 = (times[int(len(times) * part)] if times else float("nan") for part in (0.5, 0.99))
    wrong = [client.mark for client in everyone if client.ended.exception() or client.wrong()]
    return {"chunks": len(times), "wrong": wrong, "median": median, "p99": p99}


# --- Taking turns ---


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one middle."""

    cost: float  # microseconds of the processor a chunk
    median: float  # milliseconds from the model server to the client
    p99: float
    seconds: float
    share: float  # of a core, while they stream
    wrong: list[str]


@dataclass(frozen=True, slots=True)
class Stage:
    """The processes: a model server, the middles, and the clients."""

    model: int
    middles: dict[str, tuple[Child, int]]
    clients: Child

    def turn(self, middle: str, clients: int, count: int) -> Turn:
        """Let so many clients stream so many chunks each."""
        child, port = self.middles[middle]
        task = {"middle": middle, "port": port, "model_port": self.model, "clients": clients, "count": count}
        checked(self.clients.ask(task))
        before, begun = checked(child.ask({}))["cpu"], time.monotonic()
        result = checked(self.clients.ask({}, patience=count / PACE * 3 + 30))
        seconds = time.monotonic() - begun
        spent = checked(child.ask({}))["cpu"] - before
        cost = spent * 1e6 / (result["chunks"] or 1)
        return Turn(cost, result["median"], result["p99"], seconds, spent / seconds, result["wrong"])


def checked(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply, or raise what it says."""
    if "error" in reply:
        raise RuntimeError(reply["error"])
    return reply


@contextlib.contextmanager
def staged(middles: Sequence[str]) -> Iterator[Stage]:
    """Start all processes."""
    with contextlib.ExitStack() as stack:

        def start(name: str) -> Child:
            return stack.enter_context(started("benchmarks.bench_gateway", name))

        children = {name: start(name) for name in middles}
        ports = {name: (child, checked(child.reply())["port"]) for name, child in children.items()}
        yield Stage(checked(start("model").reply())["port"], ports, start("clients"))


def keep_to_core(*, last: bool) -> None:
    """Keep this process to the last core, or to all others."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-1:] if last else cores[:-1] or cores)


def measured(stage: Stage, clients: int, count: int, rounds: int) -> tuple[Table, dict[str, list[Turn]]]:
    """Let the middles take turns; the first round warms up and is not counted."""
    title = f"{clients} clients, {PACE} chunks a second each, {count} chunks"
    question = Question(title, "us/chunk", "gateway", MODEL, 1, limits=(("echo", MOST_OF_ECHO),))
    turns: dict[str, list[Turn]] = {name: [] for name in stage.middles}
    for turn in range(rounds + 1):
        for name in stage.middles:
            progress(f"{title}: round {turn} of {rounds}, {name}")
            turns[name] += [stage.turn(name, clients, count)][: min(turn, 1)]
    progress("")
    costs = {name.replace("gateway", "jazz_llm"): [turn.cost for turn in found] for name, found in turns.items()}
    return Table(question, costs), turns


def checks(turns: dict[str, list[Turn]], few: dict[str, list[Turn]], clients: int, count: int) -> Iterator[Check]:
    """Hold what came against what is asked."""
    ours, wrong = turns["gateway"], sum(len(turn.wrong) for found in turns.values() for turn in found)
    late = max(turn.seconds for turn in ours) - count / PACE
    title = f"{clients} clients x {PACE} chunks/s on one core: all whole, ended within 1 s of their pace"
    yield Check(title, "http1", f"{wrong} wrong, {late:.2f} s late, {text_of(ours)}", not wrong and late < 1)
    least = min(turn.median for turn in few["gateway"])  # whatever else the machine does only adds to it
    yield Check(
        f"from the model server to {FEW} clients < {MOST_ADDED} ms",
        "http1",
        f"{least:.2f} ms in the median",
        least < MOST_ADDED,
    )


def text_of(turns: Sequence[Turn]) -> str:
    """Say what rounds were like."""
    share, middle, p99 = (statistics.median(getattr(turn, name) for turn in turns) for name in ("share", "median", "p99"))
    return f"{share:.0%} of the core, chunks after {middle:.2f} ms (p99 {p99:.2f})"


def main() -> int:
    """Measure and print; return 1 where what is asked does not hold."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--clients", type=int, default=200)
    reader.add_argument("--seconds", type=float, default=6.0, help="of each turn (%(default)s)")
    reader.add_argument("--rounds", type=int, default=5)
    reader.add_argument("--middles", default=",".join(MIDDLES), help="whom to measure (%(default)s)")
    arguments = reader.parse_args()
    count = int(arguments.seconds * PACE)
    with staged(arguments.middles.split(",")) as stage:
        table, turns = measured(stage, arguments.clients, count, arguments.rounds)
        table_of_few, few = measured(stage, FEW, count, min(arguments.rounds, 3))
    print_table(table)
    print_table(table_of_few)
    for name in turns:
        print(f"{name:<12}{arguments.clients} clients: {text_of(turns[name])}; {FEW}: {text_of(few[name])}")
    found = list(checks(turns, few, arguments.clients, count))
    for check in found:
        print(f"{'yes' if check.holds else 'NO ':<5}{check.title}: {check.figures}")
    return int(not all(check.holds for check in found) or not all(verdict.holds for verdict in table.verdicts()))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in (*PARTS, "clients"):
        raise_file_limit()
        keep_to_core(last=sys.argv[1] in MIDDLES)
        asyncio.run(clients() if sys.argv[1] == "clients" else part(sys.argv[1]))
    else:
        sys.exit(interruptible(main))
