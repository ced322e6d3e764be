"""A terminal to run a command on: a real pseudo-terminal, and an emulator (pyte) that knows what a person would see."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pytest

pyte = pytest.importorskip("pyte", reason='pyte is not installed: pip install ".[test]"')
fcntl = pytest.importorskip("fcntl", reason="no pseudo-terminals on this system")
termios = pytest.importorskip("termios", reason="no pseudo-terminals on this system")

PATIENCE = 20.0
ENTER, CTRL_C, CTRL_D, CTRL_R, UP, ALT_ENTER = b"\r", b"\x03", b"\x04", b"\x12", b"\x1b[A", b"\x1b\r"


class Terminal:
    """``with Terminal(line) as terminal``: ``press`` keys, and ``until`` something is seen."""

    def __init__(self, line: Sequence[str], *, columns: int = 80, rows: int = 24, cwd: Any = None, **variables: str) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self.sent = b""  # all that the command wrote
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.write_process_input = lambda answer: self.press(answer.encode())  # where is the cursor?
        environment = _environment(variables)
        # The first terminal that a new session opens is the one whose Ctrl-C interrupts it.
        opening = ["/bin/sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave), *line]
        self.process = subprocess.Popen(opening, env=environment, cwd=cwd, start_new_session=True)
        self._slave = slave  # open until something was read: Linux ends a terminal that nobody has open

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._started()
        os.close(self._master)

    @property
    def text(self) -> str:
        """What has scrolled away and what the screen shows, without blanks at the ends of lines."""
        width = self.screen.columns
        gone = ["".join(line[x].data for x in range(width)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*gone, *self.screen.display]).rstrip("\n")

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def type(self, line: str) -> None:
        """Type a line and Enter."""
        self.press(line.encode() + ENTER)

    def until(self, seen: str | Callable[[str], bool]) -> str:
        """Read until the text is there; return all of it."""
        there = seen if callable(seen) else lambda text: seen in text
        end = time.monotonic() + PATIENCE
        while not there(self.text):
            assert self._read(end - time.monotonic()), f"{seen!r} was not seen:\n{self.text}"
        return self.text

    def end(self) -> int:
        """Read until the command has ended; return its exit code."""
        end = time.monotonic() + PATIENCE
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def _read(self, patience: float) -> bool:
        """Read what is there; False where nothing comes any more."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, patience))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # Linux's word for the end of a pseudo-terminal
            data = b""
        self._started()
        self.sent += data
        self._stream.feed(data)
        return bool(data)

    def _started(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return a terminal's, and nothing that changes what is drawn."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PROMPT_TOOLKIT_NO_CPR")}
    return {**kept, "TERM": "xterm-256color", **variables}
