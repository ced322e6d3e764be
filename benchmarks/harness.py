"""Run the peers in turn, A B C D A B C D, each in a process of its own, and print what each one cost.

Cost is `time.process_time` of the client's process (user and system), so neither the server nor the other peers count,
and alternating spreads what the machine does meanwhile over all of them. The median of the rounds is what counts.
All processes are in one process group and end when the pipes from this one do, whichever way it ends.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.peers import PEERS, Target
from benchmarks.server import text_of

ROOT = Path(__file__).resolve().parent.parent
OURS = "jazz_llm"
REAL_TIMES, REAL_AT_ONCE, REAL_TOKENS = 2, 2, 32


@dataclass(frozen=True)
class Question:
    """One table: a method of each peer, called `times` times in a round, `at_once` of them at once."""

    title: str
    unit: str  # call | chunk
    method: str
    model: str
    times: int
    at_once: int = 1
    seconds: float = 30.0  # in which a turn must be done: httpx over HTTP/2 can wait for ever

    def for_real_server(self, model: str) -> "Question":
        """Return the same question in a size that a model on this machine can answer."""
        title = self.title.partition(":")[0] + f", {model}: {REAL_TIMES} answers of {REAL_TOKENS} tokens"
        at_once = min(self.at_once, REAL_AT_ONCE)
        return replace(self, title=title, model=model, times=REAL_TIMES, at_once=at_once, seconds=600.0)

    def task(self, warm_up_model: str) -> dict[str, Any]:
        """Return what a worker is asked: to open its connections, uncounted, then to work."""
        work = {"method": self.method, "times": self.times, "at_once": self.at_once, "seconds": self.seconds}
        warm_up = {"arguments": [warm_up_model, 1], "times": self.at_once}
        return {"work": work | {"arguments": [self.model, REAL_TOKENS]}, "warm_up": work | warm_up}


class Child:
    """A process of ours that speaks JSON lines, and ends when our end of its input does."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment
        )

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Send a task, and return the reply."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """Wait for a reply."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"its process ended with code {self.process.wait()}"}

    def close(self) -> None:
        """End the process: kindly, then not."""
        with contextlib.suppress(BrokenPipeError), self.process:
            assert self.process.stdin
            self.process.stdin.close()
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.kill()


@contextlib.contextmanager
def started(*arguments: str, **environment: str) -> Iterator[Child]:
    """Run a child for the time of a `with`."""
    child = Child(*arguments, **environment)
    try:
        yield child
    finally:
        child.close()


# --- What is talked to ---


def parse_arguments(description: str, rounds: int) -> argparse.Namespace:
    """Read the command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peers", default=",".join(PEERS), help="names, separated by commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each takes its turn (%(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--base-url", help="a real server, such as http://localhost:11434; its key: BENCH_API_KEY")
    where.add_argument("--local", action="store_true", help="llama.cpp, in a child process")
    wires = "http1, or HTTP/2 for the peers that speak it: h2c (prior knowledge) or tls (ALPN)"
    where.add_argument("--wire", choices=("http1", "h2c", "tls"), default="http1", help=wires)
    parser.add_argument("--model", help="the real server's model")
    arguments = parser.parse_args()
    if arguments.base_url and not arguments.model:
        parser.error("--base-url needs --model")
    if unknown := set(arguments.peers.split(",")) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    return arguments


@contextlib.contextmanager
def target_of(arguments: argparse.Namespace) -> Iterator[Target]:
    """Start what is asked for, and say how to reach it."""
    if arguments.base_url:
        yield Target(versioned(arguments.base_url), os.environ.get("BENCH_API_KEY", "bench"), "real")
    elif arguments.local:
        from jazz_llm.local import LocalServer

        with LocalServer() as base_url:
            yield Target(versioned(base_url), "bench", "real")
    else:
        with tempfile.TemporaryDirectory() as folder, prepared_server(arguments.wire, Path(folder)) as target:
            yield target


@contextlib.contextmanager
def prepared_server(wire: str, folder: Path) -> Iterator[Target]:
    """Run our own server."""
    certificate = [write_certificate(folder)] if wire == "tls" else []
    with started("benchmarks.server", *certificate) as server:
        scheme = "https" if certificate else "http"
        yield Target(f"{scheme}://127.0.0.1:{server.reply()[scheme]}/v1", "bench", wire)


def write_certificate(folder: Path) -> str:
    """Write a server's certificate and key, and make every child trust their CA, as all peers follow SSL_CERT_FILE."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    os.environ["SSL_CERT_FILE"] = str(folder / "ca.pem")
    return str(folder / "server.pem")


def versioned(base_url: str) -> str:
    """Return a base URL with its version, which openai wants written."""
    return base_url.rstrip("/") + ("" if urlsplit(base_url).path.strip("/") else "/v1")


# --- Asking everyone ---


class Lineup:
    """The peers that can run, each in its process."""

    def __init__(self, workers: dict[str, Child], methods: dict[str, list[str]]) -> None:
        self.workers, self.methods, self.failed = workers, methods, False

    def answer(self, question: Question, rounds: int, warm_up_model: str) -> dict[str, list[float]]:
        """Return microseconds a unit, of each peer in each round; the first round is only checked and not counted."""
        costs: dict[str, list[float]] = {name: [] for name, known in self.methods.items() if question.method in known}
        for turn in range(rounds + 1):
            for name in list(costs):
                progress(f"{question.title}: round {turn} of {rounds}, {name}")
                cost = self.cost(name, question, warm_up_model)
                if cost is None:
                    del costs[name]
                elif turn:
                    costs[name].append(cost)
        progress("")
        return costs

    def cost(self, name: str, question: Question, warm_up_model: str) -> float | None:
        """Return microseconds a unit in one turn, or None after a failure."""
        result = self.workers[name].ask(question.task(warm_up_model))
        received = result.get("received", [])
        if error := result.get("error") or wrong(question, received):
            self.failed = True
            progress("")
            print(f"{name} left out of '{question.title}': {error}", file=sys.stderr)
            return None
        cpu: float = result["cpu"]
        return cpu * 1e6 / sum(int(pieces) for pieces, _ in received)


def wrong(question: Question, received: list[tuple[int, int]]) -> str:
    """Say what is wrong with what a peer received, if anything is: each answer's text has a known length."""
    sent = text_of(question.model) if question.model.startswith(("burst-", "paced-")) else None
    for pieces, characters in received:
        if not characters or (sent and characters != sum(map(len, sent))):
            return f"received {pieces} pieces with {characters} characters in all"
        if sent and question.unit == "chunk" and pieces != len(sent):
            return f"received {pieces} pieces instead of {len(sent)}"
    return ""


@contextlib.contextmanager
def lineup(names: Sequence[str], target: Target) -> Iterator[Lineup]:
    """Start a worker for each peer, and leave out those that cannot be imported."""
    with contextlib.ExitStack() as stack:
        everyone = Lineup({}, {})
        for name in names:
            worker = stack.enter_context(started("benchmarks.worker", name, json.dumps(target)))
            hello = worker.reply()
            if "error" in hello:
                print(f"{name} skipped: {hello['error']}", file=sys.stderr)
                continue
            everyone.workers[name], everyone.methods[name] = worker, hello["methods"]
        yield everyone


def run(description: str, questions: Sequence[Question], rounds: int) -> int:
    """Answer all questions, print a table each, and return the exit code."""
    arguments = parse_arguments(description, rounds)
    with target_of(arguments) as target, lineup(arguments.peers.split(","), target) as everyone:
        real = arguments.model or ("local" if arguments.local else "")
        for question in questions:
            asked = question.for_real_server(real) if real else question
            costs = everyone.answer(asked, arguments.rounds, real or "burst-1")
            print_table(f"{asked.title} ({target.wire})", f"us/{asked.unit}", costs)
        return int(everyone.failed)


def interruptible(work: Callable[[], int]) -> int:
    """Return what `work` returns, or 130 after Ctrl-C, when its `with` blocks have ended everything."""
    try:
        return work()
    except KeyboardInterrupt:
        progress("")
        return 130


# --- Saying so ---


def progress(text: str) -> None:
    """Show what is going on in one line of a terminal; the empty text wipes it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def print_table(title: str, unit: str, costs: dict[str, list[float]]) -> None:
    """Print a table: median, least and most of each peer, and how many times ours its median is."""
    ours = statistics.median(costs[OURS]) if costs.get(OURS) else None
    print(f"\n{title}\n{'peer':<12}{unit:>12}{'least':>10}{'most':>10}{'x ours':>10}")
    for name, values in costs.items():
        median = statistics.median(values)
        ratio = f"{median / ours:.2f}" if ours else "-"
        print(f"{name:<12}{median:>12.2f}{min(values):>10.2f}{max(values):>10.2f}{ratio:>10}", flush=True)
