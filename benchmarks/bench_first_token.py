"""How much longer the first token of a stream takes than over a bare socket: median, microseconds of the clock.

Each peer takes turns with a socket of its own process that sends the same bytes and looks for the first text.
"""

import sys

from benchmarks.harness import Question, interruptible, run

TIMES = 200


def added(name: str, method: str, most: float | None = None) -> Question:
    """Ask for the first of two chunks, which the server sends at once."""
    title = f"{name}, first token added: to a bare socket's, median of {TIMES}"
    return Question(title, "us", method, "steady-1000-2", times=TIMES, most=most, action="first_token")


QUESTIONS = (added("stream", "stream", most=100.0), added("astream", "astream"))

if __name__ == "__main__":
    sys.exit(interruptible(lambda: run(str(__doc__), QUESTIONS, rounds=3)))
