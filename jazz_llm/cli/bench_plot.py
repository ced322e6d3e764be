"""The numbers of ``jazz-llm bench`` as a picture (matplotlib, extra ``bench``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from matplotlib.figure import Figure

from .output import one_line

if TYPE_CHECKING:
    from .bench_run import Level


def drawing_to(path: str) -> Callable[[list[Level], str], None]:
    """Return what draws to ``path``; its ending says the format, and a wrong one is a UsageError now."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    ending = os.path.splitext(path)[1].removeprefix(".").lower()
    if ending not in figure.canvas.get_supported_filetypes():
        raise click.UsageError(f"--plot {path}: the name must end in .png, .svg or .pdf.")

    def draw(levels: list[Level], model: str) -> None:
        """Draw time to first token and tokens/s over the number of streams."""
        first, speed = figure.subplots(1, 2)
        measured = [level for level in levels if level.answers]
        _lines(first, measured, [level.first() for level in measured], "time to first token", "ms")
        _lines(speed, measured, [level.speed() for level in measured], "speed", "tokens/s")
        streams = [level.streams for level in measured]
        speed.plot(streams, [level.throughput for level in measured], "k--o", label="all streams")
        speed.legend()
        figure.suptitle(one_line(model).replace("$", r"\$"))  # "$" begins a formula
        figure.savefig(path)

    return draw


def _lines(axes: Any, levels: list[Level], values: list[list[float | None]], title: str, unit: str) -> None:
    streams = [level.streams for level in levels]
    for name, line in zip(("p50", "p90", "p99"), zip(*values, strict=True), strict=True):
        axes.plot(streams, [float("nan") if value is None else value for value in line], "o-", label=name)
    axes.set(title=title, xlabel="streams at once", ylabel=unit, xticks=streams)
    axes.set_ylim(bottom=0)
    axes.legend()
