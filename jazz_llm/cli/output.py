"""Writing what a stranger wrote: whatever it holds, a terminal shows it and obeys none of it."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

# A terminal obeys control characters, and the text is a stranger's: only tab and line feed get through.
CONTROLS = dict.fromkeys([*range(9), 11, 12, 13, *range(14, 32), *range(127, 160)])


def write(text: str) -> None:
    """Write text to stdout at once, whatever characters it holds."""
    _write(sys.stdout, text)


def note(text: str) -> None:
    """Write a line for the person, not for the next program, to stderr."""
    _write(sys.stderr, f"{one_line(text)}\n")


def complain(message: str) -> None:
    """Say on one line of stderr what went wrong."""
    note(f"jazz-llm: {message}")


def one_line(text: str) -> str:
    """Return a stranger's words on one line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether a person looks at it, or types it."""
    return stream is not None and not stream.closed and stream.isatty()


def draws() -> bool:
    """Say whether stdout is a terminal that can move its cursor."""
    return is_terminal(sys.stdout) and os.environ.get("TERM") not in ("dumb", "unknown")


def encodes_anything(stream: TextIO) -> None:
    """Let characters that the stream's encoding lacks become question marks instead of errors."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed by the shell: >&-
        return
    encodes_anything(stream)
    stream.write(text.translate(CONTROLS) if stream.isatty() else text)
    stream.flush()
