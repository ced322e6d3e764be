"""Measure everything and write `benchmarks/report.md` with its plots: one command, about a quarter of an hour.

python -m benchmarks.report [--quick]
"""

import argparse
import importlib.util
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import bench_call, bench_first_token, bench_import, bench_load, bench_stream
from benchmarks.bench_load import Check, Line
from benchmarks.harness import (
    NOTES,
    OURS,
    WIRES,
    Place,
    Question,
    Table,
    checked,
    interruptible,
    lineup,
    note,
    parser,
    prepared,
    print_table,
    progress,
)
from benchmarks.machine import description
from benchmarks.peers import PEERS
from benchmarks.soak import SHOWN, Outcome, soak

HERE = Path(__file__).resolve().parent
SETS = (
    ("bench_stream", bench_stream.QUESTIONS),
    ("bench_call", bench_call.QUESTIONS),
    ("bench_first_token", bench_first_token.QUESTIONS),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 3
    shrink: int = 1  # what the questions are divided by
    import_rounds: int = 2
    size: bench_load.Size = field(default_factory=bench_load.Size)
    soak_seconds: float = 45.0


QUICK = Plan(rounds=1, shrink=10, import_rounds=1, size=bench_load.QUICK, soak_seconds=5.0)


@dataclass
class Results:
    """All that was measured."""

    command: str
    tables: dict[str, list[Table]] = field(default_factory=dict)  # by the module that makes them
    beginnings: dict[str, list[float]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    soaked: Outcome | None = None
    seconds: float = 0.0

    def all_tables(self) -> list[Table]:
        """Return the tables of all modules."""
        return [table for tables in self.tables.values() for table in tables]


# --- Measuring ---


def measure(plan: Plan, names: list[str], command: str) -> Results:
    """Measure everything, one thing after the other, and print it as it comes."""
    results, begun = Results(command), time.monotonic()
    with prepared() as place:
        measure_speed(results, plan, names, place)
        step("beginning")
        costs = bench_import.all_rounds(names, plan.import_rounds, place.targets["http1"], "burst-1")
        bench_import.print_table(costs)
        results.beginnings = bench_import.medians_of(costs)
        measure_load(results, plan, names, place)
        step(f"soak: {plan.soak_seconds:.0f} s")
        results.soaked = soak(place, plan.soak_seconds)
        print(results.soaked.summary(), flush=True)
    results.seconds = time.monotonic() - begun
    return results


def measure_speed(results: Results, plan: Plan, names: list[str], place: Place) -> None:
    """Ask every question, all peers in turn."""
    with lineup(names, place) as everyone:
        for module, questions in SETS:
            step(module)
            tables = results.tables[module] = []
            for question in questions:
                if question.wire in place.targets:
                    tables.append(everyone.answer(shrunk(question, plan.shrink), plan.rounds))
                    print_table(tables[-1])


def shrunk(question: Question, by: int) -> Question:
    """Return a smaller question; its title says so."""
    if by == 1:
        return question
    kind, _, count = question.model.rpartition("-")
    model = f"{kind}-{int(count) // by}" if int(count) >= by * 10 else question.model
    times = max(2, question.times // by)
    title = question.title.partition(":")[0] + f": 1/{by} of the usual size"
    return replace(question, title=title, model=model, times=times, at_once=min(question.at_once, times))


def measure_load(results: Results, plan: Plan, names: list[str], place: Place) -> None:
    """Measure the table of loads, and then the checks."""
    step("bench_load")
    for line in bench_load.all_lines(place, plan.size, names):
        bench_load.print_line(line, results.lines[-1] if results.lines else None)
        results.lines.append(line)
    for check in bench_load.all_checks(place, plan.size) if OURS in names else ():
        bench_load.print_check(check)
        results.checks.append(check)


def step(text: str) -> None:
    """Say what begins, and when."""
    progress("")
    print(f"\n=== {text} ({time.strftime('%H:%M:%S')})", flush=True)


# --- Writing ---


def written(results: Results, folder: Path) -> Path:
    """Write the report and its plots; return its path."""
    plots: dict[str, str] = {}
    if importlib.util.find_spec("matplotlib"):
        from benchmarks.plots import draw

        plots = draw(folder / "plots", results.all_tables(), results.lines, results.soaked)
    else:
        note('no plots: matplotlib is not installed (pip install ".[bench]")')
    path = folder / "report.md"
    path.write_text("\n".join(markdown(results, plots)) + "\n", encoding="utf-8")
    return path


def markdown(results: Results, plots: dict[str, str]) -> Iterable[str]:
    """Return the report's lines."""
    yield from head(results)
    yield from asked_for(results)
    yield from picture(plots, "ratios.svg")
    for module, tables in results.tables.items():
        yield from ("", f"## `python -m benchmarks.{module}`", "", *purpose(module))
        for table in tables:
            yield from one_table(table)
    yield from beginnings(results)
    yield from load(results, plots)
    yield from flatness(results, plots)
    yield from ("", "## Left out", "", *(f"- {text}" for text in dict.fromkeys(NOTES))) if NOTES else ()


def head(results: Results) -> Iterable[str]:
    """Say where, when and with what."""
    yield "# Benchmarks"
    yield ""
    yield f"Made by `{results.command}` in {results.seconds / 60:.0f} minutes; any table alone by the command above it."
    yield "CPU is that of the client's process (user and system, all threads), against a server in another process on the"
    yield "loopback that sends prepared bytes. The peers take turns in one run, each in a process of its own; medians count."
    yield "`floor` is code with no features and no checks (`floor.py`): how near to what Python can do a client could be."
    yield "Peers that speak no HTTP/2 (openai, litellm, aiohttp) go HTTP/1.1 on the same wire. litellm has one round."
    yield ""
    yield f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    yield from (f"- {name}: {text}" for name, text in description().items())


def asked_for(results: Results) -> Iterable[str]:
    """Hold the figures against the issue's table."""
    peers = [name for name in PEERS if any(name in table.costs for table in results.all_tables())]
    yield from ("", "## The speed that issue 3 asks for", "")
    yield "A peer's cell has its figure, and how many times jazz_llm's it is."
    yield from ("", row("work", "unit", *peers, "asked of jazz_llm", "holds"), rule(len(peers) + 4))
    for table in results.all_tables():
        if table.question.limits or table.question.most is not None:
            yield row(title(table, short=True), table.question.unit, *(figure(table, peer) for peer in peers), *verdict(table))
    lost = [check for check in results.checks if not check.holds]
    if results.checks:
        yield from ("", f"Load figures: {len(results.checks) - len(lost)} of {len(results.checks)} hold (see below).")


def verdict(table: Table) -> tuple[str, str]:
    """Return what is asked, with what was got, and whether all of it holds."""
    verdicts = table.verdicts()
    if not verdicts:
        return "-", "not measured"
    texts = "; ".join(f"{verdict.asked}: {verdict.got}" for verdict in verdicts)
    return texts, "yes" if all(verdict.holds for verdict in verdicts) else "**no**"


def figure(table: Table, peer: str) -> str:
    """Return a peer's median, and how many times ours it is."""
    medians, ratios = table.medians(), table.ratios()
    if peer not in medians:
        return "-"
    return number(medians[peer]) + (f" ({number(ratios[peer])} x)" if ratios and peer != OURS else "")


def one_table(table: Table) -> Iterable[str]:
    """Return one question's table."""
    yield from ("", f"**{title(table)}**", "", row("peer", table.question.unit, "least", "most", "x ours"), rule(5))
    ratios = table.ratios()
    for name, median in table.medians().items():
        values = table.costs[name]
        yield row(name, number(median), number(min(values)), number(max(values)), f"{ratios[name]:.2f}" if ratios else "-")


def beginnings(results: Results) -> Iterable[str]:
    """Return what it takes to begin."""
    yield from ("", "## `python -m benchmarks.bench_import`", "", *purpose("bench_import"), "")
    yield from (row("peer", *(f"{column}, ms" for column in bench_import.COLUMNS)), rule(len(bench_import.COLUMNS) + 1))
    for name, values in results.beginnings.items():
        yield row(name, *map(bench_import.cell, values))


def load(results: Results, plots: dict[str, str]) -> Iterable[str]:
    """Return the table of loads and the checks."""
    yield from ("", "## `python -m benchmarks.bench_load`", "", *purpose("bench_load"))
    for wire in dict.fromkeys(line.wire for line in results.lines):
        yield from ("", f"**{WIRES[wire]}**", "", row(*bench_load.COLUMNS), rule(len(bench_load.COLUMNS)))
        yield from (row(*bench_load.line_cells(line)) for line in results.lines if line.wire == wire)
    yield from (*picture(plots, "cpu.svg"), *picture(plots, "first_token.svg"))
    yield from ("", "What has to hold:", "", row("load", "wire", "figures", "holds"), rule(4))
    for check in results.checks:
        yield row(check.title, WIRES[check.wire], check.figures.replace("|", "/"), "yes" if check.holds else "**no**")


def flatness(results: Results, plots: dict[str, str]) -> Iterable[str]:
    """Return what the soak found."""
    if results.soaked is None:
        return
    yield from ("", "## `python -m benchmarks.soak`", "", *purpose("soak"), "", results.soaked.summary() + ".")
    yield from ("", *(f"- **{text}**" for text in results.soaked.complaints()))
    yield from (f"- {text}" for text in results.soaked.surprises[:SHOWN])
    yield from picture(plots, "soak.svg")


def purpose(module: str) -> list[str]:
    """Return the first paragraph of a benchmark's docstring."""
    return str(sys.modules[f"benchmarks.{module}"].__doc__).strip().split("\n\n")[0].splitlines()


def picture(plots: dict[str, str], name: str) -> Sequence[str]:
    """Return a plot with its sentence, if it was drawn."""
    return ("", f"![{plots[name]}](plots/{name})", "", plots[name]) if name in plots else ()


def title(table: Table, *, short: bool = False) -> str:
    """Return a question's title with its wire."""
    text = table.question.title
    return f"{text.partition(':')[0] if short else text} ({WIRES[table.question.wire]})"


def number(value: float) -> str:
    """Return three digits, or more where there are more before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def row(*cells: str) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def rule(columns: int) -> str:
    """Return the line under a table's heading."""
    return "|" + "---|" * columns


# --- The command ---


def main() -> int:
    """Measure, write, say where."""
    reader = parser(str(__doc__), Plan.rounds)
    reader.formatter_class = argparse.RawDescriptionHelpFormatter
    reader.add_argument("--quick", action="store_true", help="small sizes, one round: to see that it works")
    reader.add_argument("--soak", type=float, help=f"seconds of soak ({Plan.soak_seconds:.0f})")
    reader.add_argument("--folder", type=Path, default=HERE, help="where report.md and plots/ go (%(default)s)")
    arguments = checked(reader, reader.parse_args())
    plan = QUICK if arguments.quick else Plan(rounds=arguments.rounds)
    plan = replace(plan, soak_seconds=plan.soak_seconds if arguments.soak is None else arguments.soak)
    random.seed(0)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = measure(plan, arguments.peers, " ".join(["python -m benchmarks.report", *sys.argv[1:]]))
    print(f"\nwritten: {written(results, arguments.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
