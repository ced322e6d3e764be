"""What it takes to begin: import, first instance, the next ones, and from nothing to a first answer, in milliseconds.

Each peer in turn, in fresh processes; the time of the interpreter's own start is not in it. The first answer is one
from a server on this machine; it shows what a lazy import only puts off.
"""

import json
import statistics
import subprocess
import sys
from argparse import Namespace

from benchmarks.harness import OURS, ROOT, interruptible, parse_arguments, progress, target_of
from benchmarks.peers import Target

ROUNDS = 5
COLUMNS = ("import", "instance", "next", "answer")
# name: what users import, what they make; an aiohttp session can only be made where a loop runs
STATEMENTS = {
    "jazz_llm": ("from jazz_llm import OpenAICompatibleLLM", "OpenAICompatibleLLM('m', api_key='k', base_url={url!r})"),
    "openai": ("from openai import OpenAI", "OpenAI(api_key='k', base_url={url!r})"),
    "httpx": ("import httpx, orjson", "httpx.Client()"),
    "aiohttp": ("import aiohttp, asyncio, orjson", "None"),
}
SCRIPT = """
import time
begun = time.perf_counter()
{imported}
times = [time.perf_counter() - begun]
for _ in range(21):
    begun = time.perf_counter()
    kept = {made}
    times.append(time.perf_counter() - begun)
print([times[0], times[1], sorted(times[2:])[10]])
"""
FIRST_ANSWER = """
import time
begun = time.perf_counter()
from benchmarks.peers import PEERS, Target
peer = PEERS[{name!r}](Target(*{target!r}))
if hasattr(peer, "call"):
    peer.call({model!r}, 1)
else:
    import asyncio
    asyncio.run(peer.acall({model!r}, 1))
print([time.perf_counter() - begun], flush=True)
import os; os._exit(0)
"""


def measured(script: str) -> list[float]:
    """Return the list of seconds that a script prints in a fresh process."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def one_round(name: str, target: Target, model: str) -> list[float]:
    """Return one peer's milliseconds, one a column."""
    imported, made = STATEMENTS[name]
    script = SCRIPT.format(imported=imported, made=made.format(url=target.base_url))
    seconds = measured(script) + measured(FIRST_ANSWER.format(name=name, target=list(target), model=model))
    return [value * 1000 for value in seconds]


def all_rounds(arguments: Namespace, target: Target) -> dict[str, list[list[float]]]:
    """Let all take turns; the first round, which compiles what was never imported, is not counted."""
    costs: dict[str, list[list[float]]] = {name: [] for name in arguments.peers.split(",")}
    for turn in range(arguments.rounds + 1):
        for name in list(costs):
            progress(f"import: round {turn} of {arguments.rounds}, {name}")
            try:
                costs[name] += [one_round(name, target, arguments.model or "burst-1")][: min(turn, 1)]
            except RuntimeError as error:
                progress("")
                print(f"{name} skipped: {error}", file=sys.stderr)
                del costs[name]
    return costs


def print_table(costs: dict[str, list[list[float]]]) -> None:
    """Print medians, and how many times ours each import takes."""
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in costs.items()}
    progress("")
    print(f"\nbeginning, ms\n{'peer':<12}" + "".join(f"{column:>10}" for column in (*COLUMNS, "x ours")))
    for name, row in medians.items():
        ratio = f"{row[0] / medians[OURS][0]:.2f}" if OURS in medians else "-"
        print(f"{name:<12}" + "".join(map(cell, row)) + f"{ratio:>10}")


def cell(value: float) -> str:
    """Return a column of the table; less than a microsecond means that nothing was made."""
    return f"{value:>10.2f}" if value > 0.001 else f"{'-':>10}"


def main() -> int:
    """Measure and print."""
    arguments = parse_arguments(str(__doc__), ROUNDS)
    with target_of(arguments) as target:
        print_table(all_rounds(arguments, target))
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
