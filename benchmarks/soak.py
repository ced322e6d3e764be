"""Call for minutes with 5 % faults, sync and async, HTTP/1.1 and HTTP/2; memory and descriptors have to stay flat.

    python -m benchmarks.soak --seconds 120

Faults: connections or streams reset, streams cut short, 429, 500, streams left early, calls cancelled. Every call has to
end as it must: healthy ones with their whole text, faults with their own error. The exit code is 1, with a sentence that
says why, when one does not, when memory grows by 1 MB per 10,000 calls or more, or when descriptors do not stay flat.
"""

import argparse
import asyncio
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.harness import WIRES, Place, interruptible, prepared, progress
from benchmarks.machine import MEGABYTE, descriptors, memory, raise_file_limit
from benchmarks.peers import PROMPT
from benchmarks.server import text_of
from jazz_llm import (
    LLMInternalError,
    LLMRateLimitError,
    LLMStreamTruncatedError,
    OpenAICompatibleLLM,
    RetryPolicy,
)

MODEL, SLOW_STREAM, SLOW_ANSWER = "burst-20", "steady-200-20", "slow-20-20"
TEXT = "".join(text_of(MODEL))
FAULTS = ("reset", "cut", "429", "500", "leave", "cancel")
FAULT_PART = 0.05
BATCH, THREADS, TASKS = 200, 4, 20  # calls of a lane in a turn, and how many of them at once
WARM_UP = 0.25  # the part of the run that is not judged: caches and the allocator's arenas fill
MOST_SLOPE, MOST_NOISE = 1.0, 2.0  # MB per 10,000 calls; MB that may come and go
MOST_DESCRIPTORS = 10  # that may come and go
SHOWN = 10  # lines and surprises


class Sample(NamedTuple):
    """What the process held after so many calls."""

    calls: int
    memory: int
    descriptors: int


@dataclass
class Outcome:
    """What a soak found."""

    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    live: int = 0  # answers that the server still sends at the end

    @property
    def calls(self) -> int:
        """Return how many calls were made."""
        return self.kinds.total()

    @property
    def judged(self) -> list[Sample]:
        """Return the samples after the warm-up."""
        return [sample for sample in self.samples if sample.calls >= WARM_UP * self.calls]

    def slope(self) -> float:
        """Return MB per 10,000 calls: the line of least squares."""
        points = [(sample.calls / 10_000, sample.memory / MEGABYTE) for sample in self.judged]
        middle_x, middle_y = (sum(column) / len(points) for column in zip(*points, strict=True))
        spread = sum((x - middle_x) ** 2 for x, _ in points)
        return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0

    def growth(self) -> float:
        """Return MB from the first to the last sample that count."""
        return (self.judged[-1].memory - self.judged[0].memory) / MEGABYTE

    def descriptors(self) -> tuple[int, int]:
        """Return the most descriptors in the first and in the last third of what counts."""
        numbers = [sample.descriptors for sample in self.judged]
        third = max(1, len(numbers) // 3)
        return max(numbers[:third]), max(numbers[-third:])

    def complaints(self) -> list[str]:
        """Say what is wrong."""
        before, after = self.descriptors()
        found = [f"{len(self.surprises)} calls did not end as they must."] if self.surprises else []
        if self.slope() >= MOST_SLOPE and self.growth() >= MOST_NOISE:
            found.append(f"Memory grows by {self.slope():.2f} MB per 10,000 calls (less than {MOST_SLOPE:g} is asked).")
        if after > before + MOST_DESCRIPTORS:
            found.append(f"Descriptors grow: {before} at first, {after} at the end.")
        return found + ([f"The server still sends {self.live} answers that nobody reads."] if self.live else [])

    def summary(self) -> str:
        """Say what was found."""
        faults = sum(self.kinds[kind] for kind in FAULTS)
        return (
            f"{self.calls:,} calls in {self.seconds:.0f} s, {faults:,} faults ({faults / self.calls:.1%}), "
            f"{len(self.surprises)} surprises, memory {self.slope():+.2f} MB per 10,000 calls, "
            f"descriptors {' then '.join(map(str, self.descriptors()))}"
        )


# --- The calls: twins ---


def call(llm: OpenAICompatibleLLM, kind: str) -> None:
    """Make one sync call, and see that it ends as it must."""
    if kind == "whole":
        expect(llm.generate(PROMPT, model=MODEL).text)
    elif kind == "stream":
        expect("".join(llm.stream(PROMPT, model=MODEL)))
    elif kind in ("leave", "cancel"):  # a sync call cannot be cancelled but by leaving
        for _ in llm.stream(PROMPT, model=SLOW_STREAM):
            break
    elif kind in ("reset", "cut"):
        fails(LLMStreamTruncatedError, lambda: "".join(llm.stream(PROMPT, model=f"{kind}-20")))
    else:
        error = LLMRateLimitError if kind == "429" else LLMInternalError
        fails(error, lambda: llm.generate(PROMPT, model=f"status-{kind}-1"))


async def acall(llm: OpenAICompatibleLLM, kind: str) -> None:
    """Make one async call, and see that it ends as it must."""
    if kind == "whole":
        expect((await llm.agenerate(PROMPT, model=MODEL)).text)
    elif kind == "stream":
        expect(await joined(llm, MODEL))
    elif kind == "leave":
        async for _ in llm.astream(PROMPT, model=SLOW_STREAM):
            break
    elif kind == "cancel":
        await cancelled(llm.agenerate(PROMPT, model=SLOW_ANSWER) if random.random() < 0.5 else joined(llm, SLOW_STREAM))
    elif kind in ("reset", "cut"):
        await afails(LLMStreamTruncatedError, joined(llm, f"{kind}-20"))
    else:
        error = LLMRateLimitError if kind == "429" else LLMInternalError
        await afails(error, llm.agenerate(PROMPT, model=f"status-{kind}-1"))


async def joined(llm: OpenAICompatibleLLM, model: str) -> str:
    """Return a stream's text."""
    return "".join([text async for text in llm.astream(PROMPT, model=model)])


async def cancelled(work: Awaitable[Any]) -> None:
    """Cancel a call at some moment of its life."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(random.random() * 0.02)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        expect(getattr(task.result(), "text", task.result()))  # it was done before


def expect(text: str) -> None:
    """See that a text is whole."""
    if text != TEXT:
        raise AssertionError(f"{len(text)} characters instead of {len(TEXT)}")


def fails(error: type[Exception], work: Callable[[], object]) -> None:
    """See that a call fails in its own way."""
    try:
        work()
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


async def afails(error: type[Exception], work: Awaitable[object]) -> None:
    """See that a call fails in its own way."""
    try:
        await work
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


# --- Lanes ---


class Lane:
    """One instance over one wire, sync and async."""

    def __init__(self, place: Place, wire: str, outcome: Outcome) -> None:
        target, self.outcome, self.name = place.targets[wire], outcome, WIRES[wire]
        verify = place.environment.get("SSL_CERT_FILE", True)
        # one quick second try, so that what retries hold is part of what is looked at
        options: dict[str, Any] = {"max_retries": 1, "retry": RetryPolicy(initial=0.001, maximum=0.001)}
        self.llm = OpenAICompatibleLLM("soak", "key", target.base_url, verify=verify, timeout=20.0, **options)

    def turn(self, executor: ThreadPoolExecutor, runner: asyncio.Runner) -> None:
        """Make a batch of each colour."""
        kinds = drawn()
        list(executor.map(self.calls, (kinds[start::THREADS] for start in range(THREADS))))
        runner.run(self.acalls(drawn()))

    def calls(self, kinds: Sequence[str]) -> None:
        """Make sync calls one after the other."""
        for kind in kinds:
            try:
                call(self.llm, kind)
            except Exception as error:
                self.surprise("sync", kind, error)
        self.outcome.kinds.update(kinds)

    async def acalls(self, kinds: Sequence[str]) -> None:
        """Make async calls, some at once."""
        turns = iter(kinds)
        await asyncio.gather(*(self.one_after_the_other(turns) for _ in range(TASKS)))
        self.outcome.kinds.update(kinds)

    async def one_after_the_other(self, turns: Any) -> None:
        """Make those calls that no other task has taken."""
        for kind in turns:
            try:
                await acall(self.llm, kind)
            except Exception as error:
                self.surprise("async", kind, error)

    def surprise(self, colour: str, kind: str, error: Exception) -> None:
        """Keep what should not have been."""
        self.outcome.surprises.append(f"{colour}, {self.name}, {kind}: {type(error).__name__} {error}"[:300])


def drawn() -> list[str]:
    """Return the kinds of a batch's calls."""
    return [one_kind() for _ in range(BATCH)]


def one_kind() -> str:
    """Return what the next call is."""
    if random.random() < FAULT_PART:
        return random.choice(FAULTS)
    return "whole" if random.random() < 0.5 else "stream"


def soak(place: Place, seconds: float, say: Callable[[str], None] = print) -> Outcome:
    """Call for so many seconds, and return what was found."""
    outcome, begun, said = Outcome(), time.monotonic(), 0
    lanes = [Lane(place, wire, outcome) for wire in ("http1", "tls") if wire in place.targets]
    executor = ThreadPoolExecutor(THREADS)
    try:
        with asyncio.Runner() as runner:
            while not outcome.samples or time.monotonic() < begun + seconds:
                for lane in lanes:
                    lane.turn(executor, runner)
                gc.collect()
                outcome.samples.append(Sample(outcome.calls, memory(), descriptors()))
                outcome.seconds = time.monotonic() - begun
                said = tell(outcome, seconds, said, say)
            runner.run(asyncio.sleep(1.0))  # what was left early has a second to end
            outcome.live = place.counts()["answers"]
            for lane in lanes:
                runner.run(lane.llm.aclose())
    finally:
        executor.shutdown(cancel_futures=True)
    progress("")
    return outcome


def tell(outcome: Outcome, seconds: float, said: int, say: Callable[[str], None]) -> int:
    """Show how it goes: always on a terminal, and ten lines in all elsewhere."""
    sample = outcome.samples[-1]
    held = f"{sample.memory / MEGABYTE:8.1f} MB {sample.descriptors:>5} descriptors"
    text = f"{outcome.seconds:6.0f} s {sample.calls:>9,} calls {held}"
    progress(f"soak: {text}")
    if outcome.seconds < seconds * (said + 1) / SHOWN:
        return said
    progress("")
    say(text)
    return int(outcome.seconds * SHOWN / seconds)


def main() -> int:
    """Soak, say what was found, and return 1 where something is wrong."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--seconds", type=float, default=120.0, help="for how long (%(default)s)")
    reader.add_argument("--seed", type=int, default=0, help="which calls, in which order (%(default)s)")
    arguments = reader.parse_args()
    raise_file_limit()
    random.seed(arguments.seed)
    with prepared() as place:
        outcome = soak(place, arguments.seconds, lambda text: print(text, flush=True))
    for surprise in outcome.surprises[:SHOWN]:
        print(surprise)
    print(outcome.summary())
    for complaint in outcome.complaints():
        print(complaint)
    return int(bool(outcome.complaints()))


if __name__ == "__main__":
    sys.exit(interruptible(main))
