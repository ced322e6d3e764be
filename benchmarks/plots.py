"""Draw the report's plots with matplotlib, as SVG files that are the same for the same figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bench_load import Line
from benchmarks.harness import OURS, WIRES, Table
from benchmarks.machine import MEGABYTE

if TYPE_CHECKING:
    from benchmarks.soak import Outcome

COLOURS = {
    OURS: "#d62728",
    "floor": "#7f7f7f",
    "openai": "#1f77b4",
    "litellm": "#9467bd",
    "httpx": "#2ca02c",
    "httpx2": "#17becf",
    "aiohttp": "#ff7f0e",
    "pyreqwest": "#8c564b",
}
SETTINGS = {
    "svg.hashsalt": "jazz_llm",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LEAST = 0.01  # of ours: what took no longer than a bare socket has no place on a logarithmic axis


def draw(folder: Path, tables: Sequence[Table], lines: Sequence[Line], outcome: "Outcome | None") -> dict[str, str]:
    """Draw what there are figures for; return each file's name with a sentence about it."""
    import matplotlib as mpl

    mpl.use("Agg")  # no window
    folder.mkdir(exist_ok=True)
    comparable = [table for table in tables if len(table.ratios()) > 1]
    drawn = {}
    with mpl.rc_context(SETTINGS):
        if comparable:
            ratios(folder / "ratios.svg", comparable)
            drawn["ratios.svg"] = "What each peer costs, as a multiple of jazz_llm (logarithmic; longer is more)."
        if lines:
            against_streams(folder / "cpu.svg", lines, cost_axes)
            drawn["cpu.svg"] = "CPU microseconds a chunk against the number of streams."
            against_streams(folder / "first_token.svg", lines, wait_axes)
            drawn["first_token.svg"] = "Time to first token against the number of streams: p50 (line) and p99 (dashed)."
        if outcome is not None:
            soaked(folder / "soak.svg", outcome)
            drawn["soak.svg"] = "Memory of the soaked process."
    return drawn


def save(figure: Any, path: Path) -> None:
    """Write a figure, without a date, so that equal figures are equal files."""
    import matplotlib.pyplot as plt

    figure.set_layout_engine("constrained")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def ratios(path: Path, tables: Sequence[Table]) -> None:
    """Draw one small bar chart a question."""
    import matplotlib.pyplot as plt

    rows = (len(tables) + 1) // 2
    figure, grid = plt.subplots(rows, 2, figsize=(9, 1.9 * rows), squeeze=False)
    for axes, table in zip(grid.flat, tables, strict=False):
        found = table.ratios()
        names = [name for name in reversed(COLOURS) if name in found]
        values = [max(found[name], LEAST) for name in names]
        bars = axes.barh(names, values, color=[COLOURS[name] for name in names], log=True)
        axes.bar_label(bars, [f" {value:.3g}" if value < 100 else f" {value:.0f}" for value in values])
        axes.axvline(1.0, color="black", linewidth=0.6)
        axes.set_xlim(min(0.3, *values), max(values) * 4)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(f"{table.question.title.partition(':')[0]} ({WIRES[table.question.wire]})")
    for axes in grid.flat[len(tables) :]:
        axes.set_visible(False)
    save(figure, path)


def against_streams(path: Path, lines: Sequence[Line], draw_line: Callable[[Any, str, list[Line]], None]) -> None:
    """Draw one chart a wire, a line a peer."""
    import matplotlib.pyplot as plt

    wires = list(dict.fromkeys(line.wire for line in lines))
    figure, grid = plt.subplots(1, len(wires), figsize=(3.2 * len(wires), 3.4), squeeze=False, sharey=True)
    for axes, wire in zip(grid.flat, wires, strict=True):
        for peer in dict.fromkeys(line.peer for line in lines if line.wire == wire):
            draw_line(axes, peer, [line for line in lines if (line.wire, line.peer) == (wire, peer)])
        axes.set(title=WIRES[wire], xlabel="streams at once", xscale="log", yscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(visible=True, linewidth=0.3)
    handles = {handle.get_label(): handle for axes in grid.flat for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    save(figure, path)


def cost_axes(axes: Any, peer: str, lines: list[Line]) -> None:
    """Draw one peer's CPU."""
    axes.plot(
        [line.streams for line in lines], [line.cost for line in lines], "o-", markersize=3, label=peer, color=COLOURS[peer]
    )
    axes.set_ylabel("us a chunk")


def wait_axes(axes: Any, peer: str, lines: list[Line]) -> None:
    """Draw one peer's waits."""
    streams, colour = [line.streams for line in lines], COLOURS[peer]
    axes.plot(streams, [line.median * 1000 for line in lines], "o-", markersize=3, label=peer, color=colour)
    axes.plot(streams, [line.p99 * 1000 for line in lines], "--", linewidth=0.8, color=colour)
    axes.set_ylabel("ms to the first token")


def soaked(path: Path, outcome: "Outcome") -> None:
    """Draw memory against calls."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 2.4))
    axes.plot(
        [sample.calls for sample in outcome.samples],
        [sample.memory / MEGABYTE for sample in outcome.samples],
        color=COLOURS[OURS],
    )
    axes.set(xlabel="calls", ylabel="MB", ylim=(0, 1.2 * max(sample.memory for sample in outcome.samples) / MEGABYTE))
    save(figure, path)
