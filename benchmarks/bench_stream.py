"""What one streamed chunk costs: CPU microseconds in the client's process, opening the streams included."""

import sys

from benchmarks.harness import Question, interruptible, run

QUESTIONS = (
    Question("burst, sync: 2 streams of 5000 chunks, 40 a write", "chunk", "stream", "burst-5000", times=2),
    Question("burst, async: 2 streams of 5000 chunks, 40 a write", "chunk", "astream", "burst-5000", times=2),
    Question("paced, async: 100 streams of 50 chunks/s", "chunk", "astream", "paced-50-100", times=100, at_once=100),
)

if __name__ == "__main__":
    sys.exit(interruptible(lambda: run(__doc__, QUESTIONS, rounds=3)))
