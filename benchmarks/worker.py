"""Measure one peer in a process of its own: a JSON task a line comes in, a JSON result a line goes out.

    python -m benchmarks.worker NAME TARGET     TARGET: the fields of `peers.Target` as a JSON list

Started by `harness`. Ends when its input does, at once, also in the middle of a task, so that none is ever left over.
"""

import asyncio
import gc
import json
import os
import queue
import sys
import threading
import time
from typing import Any

from benchmarks.peers import PEERS, Received, Target


def main() -> None:
    """Answer tasks until standard input ends."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    try:
        peer = PEERS[sys.argv[1]](Target(*json.loads(sys.argv[2])))
        reply({"methods": [name for name in ("call", "acall", "stream", "astream") if hasattr(peer, name)]})
    except Exception as error:
        reply(failure(error))
        lines.get()  # which ends this process: a daemon thread that holds stdin must not meet the interpreter's end
    with asyncio.Runner() as runner:  # one loop for life: connections stay
        while True:
            reply(result_of(peer, runner, json.loads(lines.get())))


def read_lines(lines: "queue.SimpleQueue[str]") -> None:
    """Hand lines over; at their end the parent is gone, or done with us, and nothing here is worth keeping."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def result_of(peer: Any, runner: asyncio.Runner, task: dict[str, Any]) -> dict[str, Any]:
    """Return what one task measured, or how it failed."""
    try:
        warm_up(peer, runner, task["warm_up"])
        gc.collect()
        started = time.process_time()
        received = run(peer, runner, task["work"])
        return {"cpu": time.process_time() - started, "received": received}
    except Exception as error:
        return failure(error)


def warm_up(peer: Any, runner: asyncio.Runner, work: dict[str, Any]) -> None:
    """Open the connections; a bare peer fails on one that the server closed while the others had their turn."""
    try:
        run(peer, runner, work)
    except Exception:
        run(peer, runner, work)


def run(peer: Any, runner: asyncio.Runner, work: dict[str, Any]) -> list[Received]:
    """Call a method `times` times; if it is async, `at_once` of them at once, and no longer than `seconds` in all."""
    method, arguments, times = getattr(peer, work["method"]), work["arguments"], work["times"]
    if not work["method"].startswith("a"):
        return [method(*arguments) for _ in range(times)]
    return runner.run(asyncio.wait_for(at_once(method, arguments, times, work["at_once"]), work["seconds"]))


async def at_once(method: Any, arguments: list[Any], times: int, width: int) -> list[Received]:
    """Share `times` calls among `width` tasks."""
    turns = iter(range(times))

    async def one() -> list[Received]:
        return [await method(*arguments) for _ in turns]

    return [received for part in await asyncio.gather(*(one() for _ in range(width))) for received in part]


def failure(error: Exception) -> dict[str, Any]:
    """Return an error as a reply."""
    return {"error": f"{type(error).__name__} {error}"[:300]}


def reply(message: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        os._exit(130)
