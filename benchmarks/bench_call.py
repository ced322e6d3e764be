"""What one answer that is not streamed costs: CPU microseconds in the client's process."""

import sys

from benchmarks.harness import Question, interruptible, run

QUESTIONS = (
    Question(
        "agenerate: 400, 20 at once",
        "us/call",
        "acall",
        "burst-20",
        times=400,
        at_once=20,
        limits=(("openai", 1 / 20), ("aiohttp", 0.6)),
    ),
    Question(
        "generate: 300, one after the other",
        "us/call",
        "call",
        "burst-20",
        times=300,
        limits=(("openai", 1 / 15), ("httpx", 1 / 5)),
    ),
)

if __name__ == "__main__":
    sys.exit(interruptible(lambda: run(str(__doc__), QUESTIONS, rounds=5)))
