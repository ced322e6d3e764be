"""The numbers of ``jazz-llm bench`` as a table, and the bar that is seen until they are there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .output import encodes_anything, is_terminal

if TYPE_CHECKING:
    from .bench_run import Level

_COLUMNS = (
    *("streams", "answers", "failed"),
    *("first token p50", "p90", "p99 ms"),
    *("tokens/s p50", "p90", "p99"),
    "all tokens/s",
)


def progress_bar() -> Progress:
    """Return a bar on stderr, which shows nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Two drawings a second: the processor is to measure.
    return Progress(*columns, console=console, transient=True, disable=not is_terminal(sys.stderr), refresh_per_second=2)


def print_table(levels: list[Level]) -> None:
    """Print the table for a person."""
    encodes_anything(sys.stdout)
    table = Table(box=box.SIMPLE_HEAD, padding=0)  # one blank between columns: it is to fit 80 columns
    for name in _COLUMNS:
        table.add_column(name, justify="right", overflow="fold")  # rather two lines than half a number
    for row in map(_row, levels):
        table.add_row(*row)
    Console().print(table)


def plain_table(levels: list[Level]) -> str:
    """Return the table as text, two spaces between its columns."""
    rows = [_COLUMNS, *map(_row, levels)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.rjust, row, widths)) + "\n" for row in rows)


def _row(level: Level) -> tuple[str, ...]:
    about = "~" if level.estimated else ""
    return (
        *(str(level.streams), str(level.answers), str(len(level.failures))),
        *(_number(value, 0) for value in level.first()),
        *(about + _number(value, 1) for value in level.speed()),
        about + _number(level.throughput, 1),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
