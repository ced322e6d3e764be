"""What a worker can be asked to do: each action takes a peer, the worker's event loop and a task, and returns a result.

A task has `method`, `model` and `tokens`, how the peer is called, and `times` and `at_once`. Times are seconds.
"""

import asyncio
import gc
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks.machine import forget_most_memory, memory, most_memory
from benchmarks.peers import STREAMED, BarePeer, Received, Target

Task = dict[str, Any]


# --- What one call or chunk costs ---


def cost(peer: Any, runner: asyncio.Runner, task: Task) -> Task:
    """Measure the processor's time for `times` calls, `at_once` of them at once, connections being open."""
    warm_up(peer, runner, task)
    gc.collect()
    begun = time.process_time()
    received = call(peer, runner, task, task["model"], task["times"])
    return {"cost": time.process_time() - begun, "received": [result[:2] for result in received]}


def warm_up(peer: Any, runner: asyncio.Runner, task: Task) -> None:
    """Open the connections; a bare peer fails on one that the server closed while the others had their turn."""
    try:
        call(peer, runner, task, task["warm_up"], task["at_once"], tokens=1)
    except Exception:
        call(peer, runner, task, task["warm_up"], task["at_once"], tokens=1)


def call(peer: Any, runner: asyncio.Runner, task: Task, model: str, times: int, tokens: int = 0) -> list[Received]:
    """Call a method; if it is async, `at_once` of them at once, and no longer than `seconds` in all."""
    method, arguments = getattr(peer, task["method"]), (model, tokens or task["tokens"])
    if not task["method"].startswith("a"):
        return [method(*arguments) for _ in range(times)]
    return runner.run(asyncio.wait_for(shared(method, arguments, times, task["at_once"]), task["seconds"]))


async def shared(method: Any, arguments: tuple[Any, ...], times: int, width: int) -> list[Received]:
    """Share `times` calls among `width` tasks."""
    turns = iter(range(times))

    async def one() -> list[Received]:
        return [await method(*arguments) for _ in turns]

    return [received for part in await asyncio.gather(*(one() for _ in range(width))) for received in part]


# --- How long until the first token, above what a bare socket takes ---


def first_token(peer: Any, runner: asyncio.Runner, task: Task) -> Task:
    """Take turns with a bare socket, and return how much longer the median is."""
    warm_up(peer, runner, task)
    bare = BareSocket(task)
    gc.collect()
    waits = (
        [(bare.first(), first_of(peer, task)) for _ in range(task["times"])]
        if not task["method"].startswith("a")
        else runner.run(asyncio.wait_for(first_of_async(peer, task, bare), task["seconds"]))
    )
    bares, peers = (median(column) for column in zip(*waits, strict=True))
    bare.socket.close()
    return {"cost": peers - bares, "bare": bares, "received": []}


def first_of(peer: Any, task: Task) -> float:
    """Return how long one stream's first token took."""
    begun = time.perf_counter()
    return getattr(peer, task["method"])(task["model"], task["tokens"]).first - begun


async def first_of_async(peer: Any, task: Task, bare: "BareSocket") -> list[tuple[float, float]]:
    """Take turns in a coroutine; the bare socket blocks in both."""
    method, waits = getattr(peer, task["method"]), []
    for _ in range(task["times"]):
        wait = bare.first()
        begun = time.perf_counter()
        waits.append((wait, (await method(task["model"], task["tokens"])).first - begun))
    return waits


class BareSocket:
    """Ask as the peer does, and see only whether the first text has come."""

    def __init__(self, task: Task) -> None:
        bare = BarePeer(Target(*task["target"]))
        where, body = urlsplit(bare.url), bare.body(task["model"], task["tokens"], **STREAMED)
        lines = [
            f"POST {where.path} HTTP/1.1",
            f"host: {where.netloc}",
            *(f"{name}: {bare.headers[name]}" for name in bare.headers),
        ]
        self.request = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body
        self.socket = socket.create_connection((where.hostname, where.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def first(self) -> float:
        """Return how long one stream's first token took; read the rest too."""
        begun, data = time.perf_counter(), b""
        self.socket.sendall(self.request)
        while b'"content"' not in data:
            data += self.socket.recv(65536)
        waited = time.perf_counter() - begun
        while not data.endswith(b"0\r\n\r\n"):
            data += self.socket.recv(65536)
        return waited


# --- Load ---


def load(peer: Any, runner: asyncio.Runner, task: Task) -> Task:
    """Make `at_once` calls at once, connections not being open, and return what they took and what failed."""
    call(peer, runner, task | {"at_once": 1}, task["warm_up"], 1)
    gc.collect()
    before, began, begun = memory(), time.perf_counter(), time.process_time()
    forget_most_memory()
    results = runner.run(asyncio.wait_for(all_at_once(peer, task), task["seconds"]))
    used, elapsed = time.process_time() - begun, time.perf_counter() - began
    whole = [result for result in results if not isinstance(result, BaseException)]
    waits = sorted(wait for wait, _ in whole) or [math.nan]
    return errors_of(results) | {
        "cost": used / max(1, sum(received.pieces for _, received in whole)),
        "elapsed": elapsed,
        "median": waits[len(waits) // 2],
        "p99": waits[math.ceil(len(waits) * 0.99) - 1],
        "memory": most_memory() - before,
        "received": sorted({received[:2] for _, received in whole}),
    }


async def all_at_once(peer: Any, task: Task) -> list[Any]:
    """Return each call's wait for the first token and what it received, or its error."""
    method = getattr(peer, task["method"])

    async def one() -> tuple[float, Received]:
        begun = time.perf_counter()
        received = await method(task["model"], task["tokens"])
        return received.first - begun, received

    return await asyncio.gather(*(one() for _ in range(task["at_once"])), return_exceptions=True)


def errors_of(results: Iterable[Any]) -> Task:
    """Return how many calls failed, and how the first one did."""
    errors = [result for result in results if isinstance(result, BaseException)]
    return {"errors": len(errors), "first_error": f"{type(errors[0]).__name__} {errors[0]}"[:200] if errors else ""}


def threads(peer: Any, _: asyncio.Runner, task: Task) -> Task:
    """Share `times` calls among `at_once` threads, which switch every `interval` seconds where that is given."""
    turns, lock, results = iter(range(task["times"])), threading.Lock(), []
    expected, usual = peer.call(task["model"], task["tokens"]), sys.getswitchinterval()

    def one() -> None:
        while True:
            with lock:  # an iterator of a range is not promised to be safe
                if next(turns, None) is None:
                    return
            results.append(tried(lambda: checked(peer.call(task["model"], task["tokens"]), expected)))

    sys.setswitchinterval(task["interval"] or usual)
    began = time.perf_counter()
    workers = [threading.Thread(target=one) for _ in range(task["at_once"])]
    for each in (*(worker.start for worker in workers), *(worker.join for worker in workers)):
        each()
    sys.setswitchinterval(usual)
    return errors_of(results) | {"elapsed": time.perf_counter() - began, "calls": len(results)}


def tried(work: Callable[[], Any]) -> Any:
    """Return what a function returns, or its error."""
    try:
        return work()
    except Exception as error:
        return error


def checked(received: Received, expected: Received) -> Received:
    """Return what was received, if it is whole."""
    if received != expected:
        raise ValueError(f"{received} instead of {expected}")
    return received


def leave(peer: Any, runner: asyncio.Runner, task: Task) -> Task:
    """Leave `at_once` streams of jazz_llm after their first text, async all at once or sync one after the other."""
    if task["method"].startswith("a"):
        results = runner.run(asyncio.wait_for(left_at_once(peer, task), task["seconds"]))
    else:
        results = [tried(lambda: left(peer, task["model"])) for _ in range(task["at_once"])]
    again = call(peer, runner, task, "burst-20", 1)
    return errors_of(results) | {"received": [result[:2] for result in again]}


async def left_at_once(peer: Any, task: Task) -> list[Any]:
    """Leave all, and then let the loop live for a second, as it does in a program that goes on."""

    async def one() -> None:
        async for _ in peer.llm.astream("Go on.", model=task["model"]):
            break

    results = await asyncio.gather(*(one() for _ in range(task["at_once"])), return_exceptions=True)
    await asyncio.sleep(task["settle"])
    return results


def left(peer: Any, model: str) -> None:
    """Leave one stream."""
    for _ in peer.llm.stream("Go on.", model=model):
        break


def line(peer: Any, runner: asyncio.Runner, task: Task) -> Task:
    """Read an endless line with jazz_llm, and return how much memory that took and which error ended it."""
    call(peer, runner, task, "burst-1", 1)
    gc.collect()
    before = memory()
    forget_most_memory()
    result = tried(lambda: call(peer, runner, task, task["model"], 1))
    return {"memory": most_memory() - before, "ended": type(result).__name__}


ACTIONS: dict[str, Callable[[Any, asyncio.Runner, Task], Task]] = {
    "cost": cost,
    "first_token": first_token,
    "load": load,
    "threads": threads,
    "leave": leave,
    "line": line,
}
