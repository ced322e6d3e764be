"""Measure one peer in a process of its own: a JSON task a line comes in, a JSON result a line goes out.

    python -m benchmarks.worker NAME TARGET     TARGET: the fields of `peers.Target` as a JSON list

A task names one of the `ACTIONS`, what it needs, and where it differs another target. Started by `harness`. Ends when
its input does, at once, also in the middle of a task, so that none is ever left over.
"""

import asyncio
import json
import os
import queue
import sys
import threading
from typing import Any

from benchmarks.actions import ACTIONS
from benchmarks.machine import raise_file_limit
from benchmarks.peers import PEERS, Target


class Peers:
    """One peer, made once for each target."""

    def __init__(self, name: str) -> None:
        self.make, self.made = PEERS[name], {}

    def at(self, target: list[str]) -> Any:
        """Return the peer that talks to a target."""
        key = Target(*target)
        if key not in self.made:
            self.made[key] = self.make(key)
        return self.made[key]


def main() -> None:
    """Answer tasks until standard input ends."""
    raise_file_limit()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    peers, default = Peers(sys.argv[1]), json.loads(sys.argv[2])
    try:
        peer = peers.at(default)
        reply({"methods": [name for name in ("call", "acall", "stream", "astream") if hasattr(peer, name)]})
    except Exception as error:
        reply(failure(error))
        lines.get()  # which ends this process: a daemon thread that holds stdin must not meet the interpreter's end
    with asyncio.Runner() as runner:  # one loop for life: connections stay
        while True:
            task = json.loads(lines.get())
            reply(result_of(peers, runner, {"target": default} | task))


def read_lines(lines: "queue.SimpleQueue[str]") -> None:
    """Hand lines over; at their end the parent is gone, or done with us, and nothing here is worth keeping."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def result_of(peers: Peers, runner: asyncio.Runner, task: dict[str, Any]) -> dict[str, Any]:
    """Return what one task measured, or how it failed."""
    try:
        return ACTIONS[task["action"]](peers.at(task["target"]), runner, task)
    except Exception as error:
        return failure(error)


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
