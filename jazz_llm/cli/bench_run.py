"""Asking for many answers at once, and what is kept of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..client import OpenAICompatibleLLM
from ..errors import LLMError
from ..request import endpoint_of
from ..transport.pool import REST
from ..types import LLMResponse
from .bench_table import progress_bar

PERCENTS = (50, 90, 99)
_IN_ONE_PIECE_S = 0.001  # from the first text to the end: it all came in one read, and has no speed of its own
# The number comes first: a server that keeps prompts by their beginnings finds none of these.
_PROMPT = "Story number {}. Write a very long story about a lighthouse, its keeper, and the sea. Do not stop early."


@dataclass(slots=True)
class Level:
    """What came of one number of streams at once; seconds and tokens of whole answers only."""

    streams: int
    first_ms: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)  # tokens/s of each stream
    answers: int = 0
    tokens: int = 0
    estimated: bool = False  # a count of tokens that the server did not give
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def take(self, response: LLMResponse[Any]) -> None:
        """Count an answer."""
        metrics, usage = response.metrics, response.usage
        self.answers += 1
        self.tokens += usage.completion_tokens
        self.estimated |= usage.estimated
        if metrics.time_to_first_token_ms is not None:
            self.first_ms.append(metrics.time_to_first_token_ms)
        speed = metrics.tokens_per_second
        if speed is not None and usage.completion_tokens / speed >= _IN_ONE_PIECE_S:
            self.speeds.append(speed)

    @property
    def throughput(self) -> float | None:
        """Tokens per second of all streams together."""
        return self.tokens / self.seconds if self.answers and self.seconds else None

    def first(self) -> list[float | None]:
        """Return the time to the first token that 50, 90 and 99 % stay below, in ms."""
        return [_reached(sorted(self.first_ms), percent) for percent in PERCENTS]

    def speed(self) -> list[float | None]:
        """Return the tokens/s that 50, 90 and 99 % of the streams reach."""
        return [_reached(sorted(self.speeds, reverse=True), percent) for percent in PERCENTS]

    def report(self) -> dict[str, Any]:
        """Return all of it by name."""
        return {
            "streams": self.streams,
            "answers": self.answers,
            "failures": len(self.failures),
            "seconds": self.seconds,
            "completion_tokens": self.tokens,
            "tokens_estimated": self.estimated,
            "tokens_per_second": self.throughput,
            "stream_tokens_per_second": _by_name(self.speed()),
            "time_to_first_token_ms": _by_name(self.first()),
        }


class Run:
    """All numbers of streams, one after the other."""

    def __init__(self, llm: OpenAICompatibleLLM, streams: Iterable[int], requests: int) -> None:
        self.levels: list[Level] = []
        self._llm = llm
        self._plan = [(count, max(count, requests)) for count in streams]

    def until_done(self) -> bool:
        """Measure; return True where Ctrl-C ended it. Raises LLMError where the very first answer fails."""
        try:
            asyncio.run(self._run())
        except KeyboardInterrupt:
            self.levels = [level for level in self.levels if level.answers or level.failures]
            return True
        return False

    def report(self) -> dict[str, Any]:
        """Return what was measured, for JSON."""
        config = self._llm._config
        return {
            "endpoint": endpoint_of(config.url),
            "model": config.model,
            "max_tokens": config.sampling["max_tokens"],
            "levels": [level.report() for level in self.levels],
        }

    async def _run(self) -> None:
        numbers = map(str, range(1, 10**9))
        with progress_bar() as bar:
            task = bar.add_task("", total=sum(answers for _, answers in self._plan))
            async with self._llm:
                for streams, answers in self._plan:
                    bar.update(task, description=f"{streams} at once")
                    await self._warm_up(streams, numbers)
                    await self._measure(streams, answers, numbers, partial(bar.advance, task))

    async def _warm_up(self, streams: int, numbers: Iterator[str]) -> None:
        """Open the connections; raises where nothing can be asked at all."""
        asked = [self._answer(next(numbers), max_tokens=1) for _ in range(streams)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        if not self.levels and isinstance(answers[0], BaseException):
            raise answers[0]
        await asyncio.sleep(2 * REST)  # or the first that counts waits until its connection has rested

    async def _measure(self, streams: int, answers: int, numbers: Iterator[str], step: Callable[[], None]) -> None:
        level = Level(streams)
        self.levels.append(level)
        left = iter(range(answers))
        began = time.perf_counter()

        async def work() -> None:
            for _ in left:
                try:
                    level.take(await self._answer(next(numbers)))
                except LLMError as error:
                    level.failures.append(str(error))
                level.seconds = time.perf_counter() - began
                step()

        await asyncio.gather(*(work() for _ in range(streams)))

    async def _answer(self, number: str, **options: Any) -> LLMResponse[Any]:
        return await self._llm.astream(_PROMPT.format(number), **options).finish()


def _reached(values: list[float], percent: int) -> float | None:
    """Return the value that this many percent of the others, best first, reach (nearest rank)."""
    return values[math.ceil(len(values) * percent / 100) - 1] if values else None


def _by_name(values: list[float | None]) -> dict[str, float | None]:
    return {f"p{percent}": value for percent, value in zip(PERCENTS, values, strict=True)}
