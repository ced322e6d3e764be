"""Markdown on a terminal while it is still being written.

Whole blocks (paragraphs, lists, code) are printed once and stay; only the last one, which still grows, is drawn again and
again, and of it no more lines than the screen has. A model's text may hold anything: what would end up as a control
character is taken out after the Markdown is laid out, since "&#27;" and "%1b" become one only then.
"""

from __future__ import annotations

import sys
import time
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from .output import CONTROLS, encodes_anything, is_terminal

MOST = 32_768  # characters of one block that are drawn again and again; beyond, it is printed and a new one begins
_PAUSE = 0.08  # seconds between two drawings


class Harmless:
    """Markdown, or what is readable of it; ``growing``: only its last lines, as many as the screen has."""

    def __init__(self, text: str, *, first: bool, growing: bool = False) -> None:
        self._text = text
        self._first = first
        self._growing = growing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay it out; a blank line stands before all but the first."""
        options = options.update(height=None)
        try:
            lines = _lines(console, options, Markdown(self._text, hyperlinks=False))  # a link's address is to be seen
        except Exception:  # rich stumbles over some of what a model can write, such as a lone </kbd>
            lines = _lines(console, options, Text(self._text))
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:  # rich puts a blank line before a list
            lines.pop(0)
        if not self._first:
            lines.insert(0, [])
        for line in lines[-max(1, console.height - 1) :] if self._growing else lines:
            yield from line
            yield Segment.line()


def _lines(console: Console, options: ConsoleOptions, what: RenderableType) -> list[list[Segment]]:
    return [_stripped(line) for line in console.render_lines(what, options, pad=False)]


def _stripped(line: list[Segment]) -> list[Segment]:
    """Return a line without control characters, and without the blanks that rich fills it up with."""
    clean = [Segment(text.translate(CONTROLS), style) for text, style, _ in line]
    while clean and not (clean[-1].style and clean[-1].style.bgcolor):
        last = clean.pop()
        if text := last.text.rstrip():
            return [*clean, Segment(text, last.style)]
    return clean


class MarkdownView:
    """Show text as it comes, ``with view: view.write(...)``; ``text`` is all of it."""

    def __init__(self) -> None:
        encodes_anything(sys.stdout)
        self.text = ""
        self._tail = ""  # the block that grows
        self._first = True
        self._next = 0.0  # when to draw again
        self._console = Console()
        self._parser = MarkdownIt()
        # Drawn by us, not by a thread of rich's: Ctrl-C may come at any moment.
        # What is logged meanwhile is printed above the drawing; but not where stderr goes to a file.
        logs = is_terminal(sys.stderr)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stderr=logs)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._settle(len(self._tail))
        self._live.stop()

    def write(self, text: str) -> None:
        """Take the next piece."""
        self.text += text
        self._tail += text.translate(CONTROLS)
        began = time.monotonic()
        if began < self._next:
            return
        self._settle(self._whole())
        spent = time.monotonic() - began
        self._next = began + max(_PAUSE, 10 * spent)  # a block of many lines is not laid out anew for each piece

    def _whole(self) -> int:
        """Return how many characters of the tail belong to blocks that are whole."""
        if len(self._tail) > MOST:
            return len(self._tail)
        starts = [token.map[0] for token in self._parser.parse(self._tail) if token.level == 0 and token.map]
        lines = self._tail.split("\n")[: max(starts, default=0)]
        return sum(map(len, lines)) + len(lines)

    def _settle(self, whole: int) -> None:
        """Print what is whole, and draw the rest below it: in one go, or it would flicker."""
        settled, self._tail = self._tail[:whole], self._tail[whole:]
        alone, self._first = self._first, self._first and not settled.strip()
        with self._console:
            growing = Harmless(self._tail, first=self._first, growing=True) if self._tail.strip() else ""
            self._live.update(growing, refresh=True)
            if settled.strip():
                self._console.print(Harmless(settled, first=alone), end="")
