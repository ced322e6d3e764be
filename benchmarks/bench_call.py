"""What one answer that is not streamed costs: CPU microseconds in the client's process."""

import sys

from benchmarks.harness import Question, interruptible, run

QUESTIONS = (
    Question("call, sync: 300 one after the other", "call", "call", "burst-20", times=300),
    Question("call, async: 400, 20 at once", "call", "acall", "burst-20", times=400, at_once=20),
)

if __name__ == "__main__":
    sys.exit(interruptible(lambda: run(__doc__, QUESTIONS, rounds=5)))
