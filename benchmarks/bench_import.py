"""What it takes to begin: import, first instance, the next ones, and from nothing to a first answer, in milliseconds.

Each peer in turn, in fresh processes; the time of the interpreter's own start is not in it. The first answer is one
from a server on this machine; it shows what a lazy import only puts off.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.harness import OURS, interruptible, note, parse_arguments, place_of, progress
from benchmarks.peers import ROOT, Target, environment_of

ROUNDS = 5
COLUMNS = ("import", "instance", "next", "answer")
# name: what users import, what they make; an aiohttp session can only be made where a loop runs
STATEMENTS = {
    "jazz_llm": ("from jazz_llm import OpenAICompatibleLLM", "OpenAICompatibleLLM('m', api_key='k', base_url={url!r})"),
    "openai": ("from openai import OpenAI", "OpenAI(api_key='k', base_url={url!r})"),
    "litellm": ("import os; os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'True'; import litellm", "None"),
    "httpx": ("import httpx, orjson", "httpx.Client()"),
    "httpx2": ("import httpx2, orjson", "httpx2.Client()"),
    "aiohttp": ("import aiohttp, asyncio, orjson", "None"),
    "pyreqwest": ("from pyreqwest.client import SyncClientBuilder; import orjson", "SyncClientBuilder().build()"),
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


def measured(script: str, name: str) -> list[float]:
    """Return the list of seconds that a script prints in a fresh process."""
    environment = os.environ | environment_of(name)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def one_round(name: str, target: Target, model: str) -> list[float]:
    """Return one peer's milliseconds, one a column."""
    imported, made = STATEMENTS[name]
    begin = SCRIPT.format(imported=imported, made=made.format(url=target.base_url))
    answer = FIRST_ANSWER.format(name=name, target=list(target), model=model)
    return [value * 1000 for value in measured(begin, name) + measured(answer, name)]


def all_rounds(names: Sequence[str], rounds: int, target: Target, model: str) -> dict[str, list[list[float]]]:
    """Let all take turns; the first round, which compiles what was never imported, is not counted."""
    costs: dict[str, list[list[float]]] = {name: [] for name in names if name in STATEMENTS}
    for turn in range(rounds + 1):
        for name in list(costs):
            progress(f"import: round {turn} of {rounds}, {name}")
            try:
                costs[name] += [one_round(name, target, model)][: min(turn, 1)]
            except RuntimeError as error:
                note(f"{name} left out of 'beginning': {error}")
                del costs[name]
    progress("")
    return costs


def medians_of(costs: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    """Return medians, one a column."""
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in costs.items()}


def print_table(costs: dict[str, list[list[float]]]) -> None:
    """Print medians, and how many times ours each import takes."""
    medians = medians_of(costs)
    print(f"\nbeginning, ms\n{'peer':<12}" + "".join(f"{column:>10}" for column in (*COLUMNS, "x ours")))
    for name, row in medians.items():
        ratio = f"{row[0] / medians[OURS][0]:.2f}" if OURS in medians else "-"
        print(f"{name:<12}" + "".join(f"{cell(value):>10}" for value in row) + f"{ratio:>10}")


def cell(value: float) -> str:
    """Return a column of the table; less than a microsecond means that nothing was made."""
    return f"{value:.2f}" if value > 0.001 else "-"


def main() -> int:
    """Measure and print."""
    arguments = parse_arguments(str(__doc__), ROUNDS)
    with place_of(arguments) as place:
        target = next(iter(place.targets.values()))
        print_table(all_rounds(arguments.peers, arguments.rounds, target, arguments.model or "burst-1"))
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
