"""How it behaves under load: 1 to 1,000 streams at once, and the load figures that jazz_llm has to hold.

The table: 20 tokens a second and stream, 30 tokens; CPU microseconds a chunk, time to first token from a cold start
(connections are opened), growth of memory while they run, connections as the server counts them. Each line is measured
in a fresh process. The checks after it are those of jazz_llm alone, each with its figure and yes or NO.
"""

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.harness import (
    OURS,
    WIRES,
    Child,
    Place,
    Question,
    checked,
    interruptible,
    note,
    parser,
    prepared,
    progress,
    worker,
    wrong,
)
from benchmarks.machine import MEGABYTE

TOKENS = 32
COUNTS = (1, 10, 100, 1000)
# Those who can: openai and aiohttp speak no HTTP/2; httpx over HTTP/2 is what most SDKs would be with it switched on.
PEERS = {
    "http1": (OURS, "openai", "httpx", "aiohttp", "pyreqwest", "floor"),
    "h2c": (OURS, "pyreqwest", "floor"),
    "tls": (OURS, "httpx", "aiohttp", "pyreqwest", "floor"),
}
MOST_WAIT, MOST_MEMORY, MOST_CONNECTIONS = 1.5, 30 * MEGABYTE, 12  # FAULTS.md, "Load to hold"
MOST_WAVES, STREAM_LIMIT, USUAL_LIMIT = 2.0, 100, 128
MOST_LINE_MEMORY = 40 * MEGABYTE
SWITCH_INTERVAL = 1e-5


class Line(NamedTuple):
    """One line of the table."""

    wire: str
    streams: int
    peer: str
    cost: float  # microseconds of the processor a chunk
    median: float  # seconds to the first token
    p99: float
    memory: int  # bytes it grew by
    connections: int  # the most at once
    errors: int


class Check(NamedTuple):
    """One figure that has to hold."""

    title: str
    wire: str
    figures: str
    holds: bool


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    counts: tuple[int, ...] = COUNTS
    tokens: int = 30
    loads: tuple[tuple[int, str, str], ...] = (
        (100, "steady-50-50", "50 tokens @ 20 ms"),
        (1000, "steady-20-20", "20 tokens @ 50 ms"),
    )
    waves: int = 1000
    threads: int = 32
    calls: int = 20_000
    leaves: int = 130
    megabytes: int = 100


QUICK = Size(
    counts=(1, 10),
    tokens=10,
    loads=((20, "steady-50-10", "10 tokens @ 20 ms"),),
    waves=150,
    threads=8,
    calls=400,
    leaves=20,
    megabytes=20,
)


# --- The table ---


def all_lines(place: Place, size: Size, names: list[str]) -> Iterator[Line]:
    """Measure each peer in turn at each number of streams."""
    for streams in size.counts:
        for wire in (wire for wire in PEERS if wire in place.targets):
            for name in (name for name in PEERS[wire] if name in names):
                progress(f"load: {streams} streams over {WIRES[wire]}, {name}")
                if line := one_line(place, wire, streams, name, size.tokens):
                    yield line


def one_line(place: Place, wire: str, streams: int, name: str, tokens: int) -> Line | None:
    """Measure one peer, or say why that did not work."""
    result = asked(place, wire, name, action="load", model=f"steady-20-{tokens}", at_once=streams)
    if "error" in result:
        note(f"{name} left out of {streams} streams over {WIRES[wire]}: {result['error']}")
        return None
    if result["errors"]:
        note(f"{name}, {streams} streams over {WIRES[wire]}: {result['errors']} failed: {result['first_error']}")
    waits = result["median"], result["p99"]
    counts = result["counts"]["most_connections"], result["errors"]
    return Line(wire, streams, name, result["cost"] * 1e6, *waits, result["memory"], *counts)


def asked(place: Place, wire: str, name: str, patience: float = 90.0, **task: Any) -> dict[str, Any]:
    """Ask a fresh process, and return its reply with what the server counted meanwhile."""
    wait_for_none(place)
    with fresh(place, wire, name) as child:
        usual = {"method": "astream", "tokens": TOKENS, "times": 1, "warm_up": "burst-1", "seconds": patience - 10}
        place.counts(again=True)
        result = child.ask(usual | task, patience)
        result["counts"] = place.counts()
    if "error" not in result and (error := wrong(question(task), result.get("received", ()))):
        result["error"] = error
    return result


def question(task: dict[str, Any]) -> Question:
    """Return what `wrong` needs to know of a task."""
    return Question("", "", task.get("method", "astream"), task["model"] if task["action"] == "load" else "", 1)


@contextlib.contextmanager
def fresh(place: Place, wire: str, name: str) -> Iterator[Child]:
    """Run a new process of a peer, which has said hello."""
    child = worker(name, place.targets[wire], place.environment)
    try:
        child.reply()  # what is wrong with it, if anything, its next reply says too
        yield child
    finally:
        child.close()


def wait_for_none(place: Place) -> None:
    """Wait until the server has noticed that the process before is gone."""
    until = time.monotonic() + 2.0
    while place.counts()["connections"] and time.monotonic() < until:
        time.sleep(0.02)


# --- What has to hold ---


def all_checks(place: Place, size: Size) -> Iterator[Check]:
    """Put every question to jazz_llm."""
    work: tuple[tuple[Callable[[Place, Size, str], Iterator[Check]], tuple[str, ...]], ...] = (
        (many_streams, ("http1", "h2c", "tls")),
        (waves, ("h2c", "tls")),
        (many_threads, ("http1", "tls")),
        (early_leaves, ("http1", "h2c", "tls")),
        (endless_line, ("http1", "tls")),
    )
    for check, wires in work:
        for wire in (wire for wire in wires if wire in place.targets):
            progress(f"check: {check.__name__.replace('_', ' ')} over {WIRES[wire]}")
            yield from check(place, size, wire)


def concluded(title: str, wire: str, result: dict[str, Any], figures: Callable[[], tuple[str, bool]]) -> Check:
    """Return a check, failed where there is no result at all."""
    if "error" in result:
        return Check(title, wire, result["error"], holds=False)
    text, holds = figures()
    first_error = f" ({result['first_error']})" if result.get("first_error") else ""
    return Check(title, wire, text + first_error, holds)


def many_streams(place: Place, size: Size, wire: str) -> Iterator[Check]:
    """Check errors, time to first token, memory and connections."""
    for streams, model, words in size.loads:
        result = asked(place, wire, OURS, action="load", model=model, at_once=streams)
        figures = functools.partial(held, result, wire)
        yield concluded(f"{streams:,} streams x {words}", wire, result, figures)


def held(result: dict[str, Any], wire: str) -> tuple[str, bool]:
    """Hold one load against the limits."""
    connections = result["counts"]["most_connections"]
    text = (
        f"{result['errors']} errors, first token p99 {result['p99']:.2f} s (<= {MOST_WAIT}), "
        f"{result['memory'] / MEGABYTE:+.1f} MB (<= 30), {connections} connections"
    )
    few = wire == "http1" or connections <= MOST_CONNECTIONS
    text += "" if wire == "http1" else f" (<= {MOST_CONNECTIONS})"
    return text, not result["errors"] and result["p99"] <= MOST_WAIT and result["memory"] <= MOST_MEMORY and few


def waves(place: Place, size: Size, wire: str) -> Iterator[Check]:
    """Check that calls beyond the server's limit of streams go on other connections, at the same time."""
    place.counts(limit=STREAM_LIMIT)
    result = asked(place, wire, OURS, action="load", method="acall", model="slow-1000-20", at_once=size.waves)
    place.counts(limit=USUAL_LIMIT)
    title = f"{size.waves:,} calls of 1 s, {STREAM_LIMIT} streams a connection"

    def figures() -> tuple[str, bool]:
        elapsed, streams = result["elapsed"], result["counts"]["most_streams"]
        text = f"{result['errors']} errors, {elapsed:.2f} s (<= {MOST_WAVES}), at most {streams} streams a connection"
        return text, not result["errors"] and elapsed <= MOST_WAVES and streams <= STREAM_LIMIT

    yield concluded(title, wire, result, figures)


def many_threads(place: Place, size: Size, wire: str) -> Iterator[Check]:
    """Check that threads can share one instance, also when they switch at every turn."""
    for interval in (None, SWITCH_INTERVAL):
        task = {"action": "threads", "model": "burst-20", "at_once": size.threads, "times": size.calls, "interval": interval}
        result = asked(place, wire, OURS, patience=300.0, **task)
        title = f"{size.threads} threads, {size.calls:,} calls" + (f", switching every {interval:g} s" if interval else "")

        def figures(result: dict[str, Any] = result) -> tuple[str, bool]:
            whole = result["calls"] == size.calls and not result["errors"]
            return f"{result['errors']} failures in {result['elapsed']:.1f} s", whole

        yield concluded(title, wire, result, figures)


def early_leaves(place: Place, size: Size, wire: str) -> Iterator[Check]:
    """Check that the server stops when a stream is left after its first text."""
    for method, words in (("astream", "async, at once"), ("stream", "sync, one after the other")):
        task = {"action": "leave", "method": method, "model": "steady-50-500", "at_once": size.leaves, "settle": 1.0}
        result = asked(place, wire, OURS, **task)

        def figures(result: dict[str, Any] = result) -> tuple[str, bool]:
            live, begun = result["counts"]["answers"], result["counts"]["begun"]
            text = f"{result['errors']} errors, {live} of {begun} answers live after 1 s"
            return text, not result["errors"] and not live and begun > size.leaves

        yield concluded(f"{size.leaves} early leaves, {words}", wire, result, figures)


def endless_line(place: Place, size: Size, wire: str) -> Iterator[Check]:
    """Check that a line without end is refused before it fills the memory."""
    for method in ("astream", "stream"):
        result = asked(place, wire, OURS, action="line", method=method, model=f"line-{size.megabytes}", at_once=1)

        def figures(result: dict[str, Any] = result) -> tuple[str, bool]:
            text = f"{result['ended']}, {result['memory'] / MEGABYTE:+.1f} MB (<= 40)"
            return text, result["ended"] == "LLMResponseTooLargeError" and result["memory"] <= MOST_LINE_MEMORY

        yield concluded(f"a line of {size.megabytes} MB, cap 16 MiB, {method}", wire, result, figures)


# --- Saying so ---


def line_cells(line: Line) -> tuple[str, ...]:
    """Return a line's columns, as printed and as reported."""
    waits = f"{line.median * 1000:.1f}", f"{line.p99 * 1000:.1f}"
    numbers = f"{line.memory / MEGABYTE:+.1f}", str(line.connections), str(line.errors)
    return (str(line.streams), line.peer, f"{line.cost:.1f}", *waits, *numbers)


COLUMNS = ("streams", "peer", "us/chunk", "p50 ms", "p99 ms", "MB", "connections", "errors")
WIDTHS = (8, 11, 10, 10, 10, 8, 13, 8)


def print_line(line: Line, previous: Line | None) -> None:
    """Print a line of the table, with a heading where another block begins."""
    progress("")
    if previous is None or (previous.wire, previous.streams) != (line.wire, line.streams):
        print(f"\n{WIRES[line.wire]}\n" + aligned(COLUMNS))
    print(aligned(line_cells(line)), flush=True)


def aligned(cells: tuple[str, ...]) -> str:
    """Return columns."""
    return "".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))


def print_check(check: Check) -> None:
    """Print a check."""
    progress("")
    print(f"{'yes' if check.holds else 'NO ':<5}{check.title} ({WIRES[check.wire]}): {check.figures}", flush=True)


def read_command() -> tuple[argparse.Namespace, Size]:
    """Read the command line."""
    reader = parser(str(__doc__), rounds=1)
    reader.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    reader.add_argument("--calls", type=int, help=f"how many calls the threads make ({Size().calls})")
    only = reader.add_mutually_exclusive_group()
    only.add_argument("--only-table", action="store_true")
    only.add_argument("--only-checks", action="store_true")
    arguments = checked(reader, reader.parse_args())
    size = QUICK if arguments.quick else Size()
    return arguments, Size(**(vars(size) | {"calls": arguments.calls or size.calls}))


def main() -> int:
    """Measure and print; return 1 where a check does not hold."""
    arguments, size = read_command()
    failed, previous = False, None
    with prepared() as place:
        for line in all_lines(place, size, arguments.peers) if not arguments.only_checks else ():
            print_line(line, previous)
            previous = line
        print()
        for check in all_checks(place, size) if not arguments.only_table else ():
            print_check(check)
            failed |= not check.holds
    return int(failed)


if __name__ == "__main__":
    sys.exit(interruptible(main))
