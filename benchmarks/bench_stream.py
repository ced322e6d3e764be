"""What one streamed chunk costs: CPU microseconds in the client's process, opening the streams included."""

import sys

from benchmarks.harness import Question, interruptible, run

BURST = "burst: 2 streams of 5,000 chunks, 40 a write"
PACED = "paced: 100 streams of 50 chunks/s at random phases"


def burst(wire: str) -> Question:
    """Ask for as much as the client takes."""
    limits = (("openai", 1 / 35), ("aiohttp", 1.0))
    return Question(f"astream, {BURST}", "us/chunk", "astream", "burst-5000", times=2, wire=wire, limits=limits)


def paced(wire: str, *limits: tuple[str, float]) -> Question:
    """Ask for what providers send."""
    return Question(
        f"astream, {PACED}", "us/chunk", "astream", "paced-50-100", times=100, at_once=100, wire=wire, limits=limits
    )


QUESTIONS = (
    burst("http1"),
    burst("h2c"),
    burst("tls"),
    paced("http1", ("openai", 1 / 7), ("aiohttp", 0.7)),
    paced("h2c", ("openai", 1 / 10), ("aiohttp", 0.5)),
    paced("tls", ("aiohttp", 0.7)),
    Question(f"stream, {BURST}", "us/chunk", "stream", "burst-5000", times=2, limits=(("openai", 1 / 40), ("httpx", 1 / 4))),
)

if __name__ == "__main__":
    sys.exit(interruptible(lambda: run(str(__doc__), QUESTIONS, rounds=3)))
