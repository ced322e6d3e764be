"""Run the peers in turn, A B C D A B C D, each in a process of its own, and print what each one cost.

Cost is `time.process_time` of the client's process (user and system, all its threads), so neither the server nor the
other peers count, and alternating spreads what the machine does meanwhile over all of them. The median of the rounds is
what counts. All processes end when the pipes from this one do, whichever way it ends; Ctrl-C reaches this one alone.
"""

import argparse
import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.peers import PEERS, ROOT, Target, environment_of
from benchmarks.server import text_of

OURS, FLOOR = "jazz_llm", "floor"
REAL_TIMES, REAL_AT_ONCE, REAL_TOKENS = 2, 2, 32
PATIENCE = 120.0  # seconds for a task that names none: a sync peer can wait for ever
WIRES = {"http1": "HTTP/1.1", "h2c": "HTTP/2", "tls": "HTTP/2 over TLS", "real": "a real server"}
ONE_ROUND = {"litellm"}  # it costs several hundred times ours: more rounds would tell nothing and take half of the time
PREPARED = ("burst-", "paced-", "steady-")  # models whose text is known


# --- Questions and what came out ---


@dataclass(frozen=True)
class Question:
    """One table: a method of each peer, called `times` times in a round, `at_once` of them at once."""

    title: str
    unit: str  # us/chunk | us/call | us
    method: str
    model: str
    times: int
    at_once: int = 1
    wire: str = "http1"  # for the peers that speak HTTP/2; the others speak HTTP/1.1, with TLS where the wire has it
    limits: tuple[tuple[str, float], ...] = ()  # (peer, ours at most this many times its cost), from the issue
    most: float | None = None  # ours at most this
    action: str = "cost"
    seconds: float = 30.0  # in which a turn must be done: httpx over HTTP/2 can wait for ever

    def for_real_server(self, model: str) -> "Question":
        """Return the same question in a size that a model on this machine can answer."""
        title = f"{self.title.partition(':')[0]}, {model}: {REAL_TIMES} answers of {REAL_TOKENS} tokens"
        at_once = min(self.at_once, REAL_AT_ONCE)
        other = {"wire": "real", "limits": (), "most": None, "seconds": 600.0}
        return replace(self, title=title, model=model, times=REAL_TIMES, at_once=at_once, **other)

    def on(self, wire: str) -> "Question":
        """Return the same question on another wire, of which the issue asks nothing."""
        return self if wire == self.wire else replace(self, wire=wire, limits=(), most=None)

    def task(self, target: Target) -> dict[str, Any]:
        """Return what a worker is asked."""
        warm_up = self.model if self.wire == "real" else "burst-1"
        names = ("action", "method", "model", "times", "at_once", "seconds")
        return {name: getattr(self, name) for name in names} | {"target": target, "warm_up": warm_up, "tokens": REAL_TOKENS}


@dataclass(frozen=True)
class Verdict:
    """What the issue asks of a figure, and whether it holds."""

    asked: str
    got: str
    holds: bool

    def __str__(self) -> str:
        return f"asked: {self.asked}; got: {self.got}; {'yes' if self.holds else 'NO'}"


@dataclass
class Table:
    """What each peer cost in each round, in the question's unit."""

    question: Question
    costs: dict[str, list[float]]

    def medians(self) -> dict[str, float]:
        """Return what counts."""
        return {name: statistics.median(values) for name, values in self.costs.items() if values}

    def ratios(self) -> dict[str, float]:
        """Return how many times ours each peer's median is."""
        medians = self.medians()
        return {name: value / medians[OURS] for name, value in medians.items()} if OURS in medians else {}

    def verdicts(self) -> list[Verdict]:
        """Hold the figures against what the issue asks."""
        medians = self.medians()
        if OURS not in medians:
            return []
        known = [(peer, limit) for peer, limit in self.question.limits if peer in medians]
        verdicts = [compared(peer, limit, medians[OURS] / medians[peer]) for peer, limit in known]
        if self.question.most is not None:
            most, ours = self.question.most, medians[OURS]
            verdicts.append(Verdict(f"at most {most:.0f} {self.question.unit}", f"{ours:.1f}", ours <= most))
        return verdicts


def compared(peer: str, limit: float, ratio: float) -> Verdict:
    """Return a verdict on ours against a peer's."""
    return Verdict(f"at most {fraction(limit)} of {peer}", fraction(ratio), ratio <= limit)


def fraction(value: float) -> str:
    """Return 1/35 for what is small, else 0.70."""
    return f"1/{1 / value:.3g}" if 0 < value < 0.3 else f"{value:.2f}"


# --- Processes ---

# A group of its own, or Ctrl-C would interrupt a child in the middle of its imports, which it would tell at length.
APART: dict[str, Any] = {"creationflags": 0x200} if sys.platform == "win32" else {"process_group": 0}


class Child:
    """A process of ours that speaks JSON lines, and ends when our end of its input does."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command, pipes = [sys.executable, "-m", *arguments], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, **APART, text=True, cwd=ROOT, env=os.environ | environment)
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        """Hand its lines over, and an empty one at their end; a thread, as no wait for a pipe has a timeout everywhere."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def ask(self, task: dict[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
        """Send a task, and return the reply."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        return self.reply(patience)

    def reply(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait for a reply."""
        try:
            line = self.lines.get(timeout=patience)
        except queue.Empty:
            return {"error": f"no reply within {patience:.0f} s"}
        return json.loads(line) if line else {"error": f"its process ended with code {self.process.wait()}"}

    def close(self) -> None:
        """End the process: kindly, then not."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()


@contextlib.contextmanager
def started(*arguments: str, **environment: str) -> Iterator[Child]:
    """Run a child for the time of a `with`."""
    child = Child(*arguments, **environment)
    try:
        yield child
    finally:
        child.close()


def worker(name: str, target: Target, environment: dict[str, str]) -> Child:
    """Start a peer's process."""
    return Child("benchmarks.worker", name, json.dumps(target), **environment, **environment_of(name))


# --- What is talked to ---


@dataclass
class Place:
    """What there is to talk to: a target for each wire, and what a process needs to trust it."""

    targets: dict[str, Target]
    environment: dict[str, str] = field(default_factory=dict)
    server: Child | None = None  # ours

    def counts(self, **command: Any) -> dict[str, int]:
        """Ask our server what it counted."""
        assert self.server
        return self.server.ask(command)


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return the command line that all benchmarks share."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--peers", default=",".join(PEERS), help="names, separated by commas (default: %(default)s)")
    result.add_argument("--rounds", type=int, default=rounds, help="how often each takes its turn (%(default)s)")
    return result


def parse_arguments(description: str, rounds: int) -> argparse.Namespace:
    """Read the command line of a benchmark that can talk to any server."""
    reader = parser(description, rounds)
    where = reader.add_mutually_exclusive_group()
    where.add_argument("--base-url", help="a real server, such as http://localhost:11434; its key: BENCH_API_KEY")
    where.add_argument("--local", action="store_true", help="llama.cpp, in a child process")
    wires = "all questions over http1, h2c (HTTP/2 with prior knowledge) or tls (HTTP/2 by ALPN)"
    where.add_argument("--wire", choices=("http1", "h2c", "tls"), help=wires)
    reader.add_argument("--model", help="the real server's model")
    arguments = reader.parse_args()
    if arguments.base_url and not arguments.model:
        reader.error("--base-url needs --model")
    return checked(reader, arguments)


def checked(reader: argparse.ArgumentParser, arguments: argparse.Namespace) -> argparse.Namespace:
    """Split the peers' names, and refuse those that there are none of."""
    arguments.peers = arguments.peers.split(",")
    if unknown := set(arguments.peers) - set(PEERS):
        reader.error(f"no such peer: {', '.join(sorted(unknown))}")
    return arguments


@contextlib.contextmanager
def place_of(arguments: argparse.Namespace) -> Iterator[Place]:
    """Start what is asked for, and say how to reach it."""
    if arguments.base_url:
        yield Place({"real": Target(versioned(arguments.base_url), os.environ.get("BENCH_API_KEY", "bench"), "real")})
    elif arguments.local:
        from jazz_llm.local import LocalServer

        with LocalServer() as base_url:
            yield Place({"real": Target(versioned(base_url), "bench", "real")})
    else:
        with prepared() as place:
            yield place


@contextlib.contextmanager
def prepared() -> Iterator[Place]:
    """Run our own server, with TLS where trustme is installed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        certificates = write_certificates(Path(folder))
        server = stack.enter_context(started("benchmarks.server", *certificates[:1]))
        ports = server.reply()
        targets = {wire: Target(f"http://127.0.0.1:{ports['http']}/v1", "bench", wire) for wire in ("http1", "h2c")}
        if certificates:
            targets["tls"] = Target(f"https://127.0.0.1:{ports['https']}/v1", "bench", "tls")
        yield Place(targets, {"SSL_CERT_FILE": certificates[1]} if certificates else {}, server)


def write_certificates(folder: Path) -> list[str]:
    """Write a server's certificate with its key, and the CA, which all peers trust through SSL_CERT_FILE."""
    try:
        import trustme
    except ImportError:
        note('left out what needs TLS: trustme is not installed (pip install ".[testing]")')
        return []
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return [str(folder / "server.pem"), str(folder / "ca.pem")]


def versioned(base_url: str) -> str:
    """Return a base URL with its version, which openai wants written."""
    return base_url.rstrip("/") + ("" if urlsplit(base_url).path.strip("/") else "/v1")


# --- Asking everyone ---


class Lineup:
    """The peers that can run, each in its process."""

    def __init__(self, place: Place) -> None:
        self.place, self.failed = place, False
        self.workers: dict[str, Child] = {}
        self.methods: dict[str, list[str]] = {}

    def join(self, name: str) -> None:
        """Start a peer, or say why it cannot take part."""
        progress(f"starting {name}")
        child = self.workers[name] = self.start(name)
        hello = child.reply()
        if "error" in hello:
            note(f"{name} left out: {hello['error']}")
            self.workers.pop(name).close()
        else:
            self.methods[name] = hello["methods"]

    def start(self, name: str) -> Child:
        """Start a peer's process."""
        return worker(name, next(iter(self.place.targets.values())), self.place.environment)

    def answer(self, question: Question, rounds: int) -> Table:
        """Return what each peer cost in each round; the first round is only checked and not counted."""
        table = Table(question, {name: [] for name, known in self.methods.items() if question.method in known})
        for turn in range(rounds + 1):
            for name in [name for name in table.costs if turn <= 1 or name not in ONE_ROUND]:
                progress(f"{question.title}: round {turn} of {rounds}, {name}")
                cost = self.cost(name, question)
                if cost is None:
                    del table.costs[name]
                elif turn:
                    table.costs[name].append(cost)
        progress("")
        return table

    def cost(self, name: str, question: Question) -> float | None:
        """Return microseconds a unit in one turn, or None after a failure."""
        patience = question.seconds * 3  # its warm-up and the second try at that
        result = self.workers[name].ask(question.task(self.place.targets[question.wire]), patience)
        received = result.get("received", [])
        if error := result.get("error") or wrong(question, received):
            self.failed = True
            note(f"{name} left out of '{question.title}': {error}")
            self.renew(name)
            return None
        micros: float = result["cost"] * 1e6
        return micros / (sum(pieces for pieces, _ in received) or 1)

    def renew(self, name: str) -> None:
        """Start a peer anew: after a failure its connections may be good for nothing."""
        self.workers[name].close()
        self.workers[name] = self.start(name)
        self.workers[name].reply()

    def close(self) -> None:
        """End all processes."""
        for child in self.workers.values():
            child.close()


def wrong(question: Question, received: Iterable[tuple[int, int]]) -> str:
    """Say what is wrong with what a peer received, if anything is: each answer's text has a known length."""
    sent = text_of(question.model) if question.model.startswith(PREPARED) else None
    for pieces, characters in received:
        if not characters or (sent and characters != sum(map(len, sent))):
            return f"received {pieces} pieces with {characters} characters in all"
        if sent and question.unit == "us/chunk" and pieces != len(sent):
            return f"received {pieces} pieces instead of {len(sent)}"
    return ""


@contextlib.contextmanager
def lineup(names: Sequence[str], place: Place) -> Iterator[Lineup]:
    """Start a process for each peer, and leave out those that cannot be imported."""
    with contextlib.closing(Lineup(place)) as everyone:
        for name in names:
            everyone.join(name)
        yield everyone


def run(description: str, questions: Sequence[Question], rounds: int) -> int:
    """Measure and print every question; return 1 where a peer failed, 0 else."""
    arguments = parse_arguments(description, rounds)
    with place_of(arguments) as place, lineup(arguments.peers, place) as everyone:
        for question in asked(questions, arguments, place):
            print_table(everyone.answer(question, arguments.rounds))
        return int(everyone.failed)


def asked(questions: Iterable[Question], arguments: argparse.Namespace, place: Place) -> list[Question]:
    """Return the questions as they can be asked here, each once."""
    if "real" in place.targets:
        return list(dict.fromkeys(question.for_real_server(arguments.model or "local") for question in questions))
    if arguments.wire:
        questions = [question.on(arguments.wire) for question in questions]
    unique = {(question.title, question.wire): question for question in reversed(list(questions))}
    return [question for question in reversed(unique.values()) if question.wire in place.targets]


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


NOTES: list[str] = []  # what could not be measured, for the report


def note(text: str) -> None:
    """Say what could not be measured, and keep it."""
    progress("")
    print(text, file=sys.stderr, flush=True)
    NOTES.append(text)


def print_table(table: Table) -> None:
    """Print a table: median, least and most of each peer, how many times ours its median is, and what is asked of ours."""
    question, medians, ratios = table.question, table.medians(), table.ratios()
    print(
        f"\n{question.title} ({WIRES[question.wire]})\n{'peer':<12}{question.unit:>12}{'least':>10}{'most':>10}{'x ours':>10}"
    )
    for name, median in medians.items():
        values, ratio = table.costs[name], f"{ratios[name]:.2f}" if ratios else "-"
        print(f"{name:<12}{median:>12.2f}{min(values):>10.2f}{max(values):>10.2f}{ratio:>10}")
    for verdict in table.verdicts():
        print(verdict)
    sys.stdout.flush()
