"""``jazz-llm bench``: how fast an endpoint answers one stream, and many at once."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from .endpoint import Where, endpoint_options
from .output import complain, is_terminal, note, write
from .pages import ENVIRONMENT, EXIT_CODES, Page, option_in

if TYPE_CHECKING:
    from .bench_run import Level

_ADVICE = "which endpoint? Use --base-url URL or --provider NAME (and -m MODEL), or set OPENAI_API_KEY (or pass --api-key)."
_MOST_STREAMS = 1000  # as many connections as a pool has
_SECTIONS = {
    "What is measured": (
        ("first token", "Milliseconds from sending a request to the first text (or reasoning) of its answer."),
        ("tokens/s", 'Of one stream: its tokens by the seconds from its first text to its end; "-" where it came all at once.'),
        ("all tokens/s", "The tokens of all streams by the seconds that all took."),
        ("p50, p90, p99", "What half, nine tenths, and 99 of 100 of the answers reach or better."),
    ),
    "Examples": (
        ("jazz-llm bench --base-url http://localhost:8000 -m qwen3", "1, 2, 4 and 8 streams at once, ten answers each:"),
        ("jazz-llm bench --provider groq -m llama-3.1-8b-instant --streams 1,16 --plot groq.png", "With a picture:"),
        ("jazz-llm bench --base-url http://localhost:8000 -m qwen3 --json | jq .levels", "For a program:"),
    ),
    "Exit codes": (*EXIT_CODES[:1], ("1", "Every answer failed, or the endpoint cannot be asked."), *EXIT_CODES[2:]),
    "Environment": ENVIRONMENT,
}


def _numbers(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:  # noqa: ARG001  # click's signature
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 4 and 1 <= int(part) <= _MOST_STREAMS for part in parts):
        raise click.BadParameter(f"{text!r} must be numbers from 1 to {_MOST_STREAMS} with commas between, such as 1,2,4,8.")
    return tuple(map(int, parts))


_load = option_in(group="What to measure")
_output = option_in(group="What to print")


@click.command(cls=Page, sections=_SECTIONS, short_help="Measure how fast an endpoint is.")
@_load("-m", "--model", help="The model's name.")
@_load(
    "--streams", callback=_numbers, default="1,2,4,8", show_default=True, metavar="N,N,...", help="How many streams at once."
)
@_load(
    "--requests",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    metavar="NUMBER",
    help="How many answers for each number of streams; at least one for each stream.",
)
@_load(
    "--max-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    metavar="NUMBER",
    help="The longest answer, in tokens.",
)
@_output("--json", "as_json", is_flag=True, help="Print JSON.")
@_output("--plot", metavar="FILE", type=click.Path(dir_okay=False), help="Draw it too; .png, .svg or .pdf.")
@endpoint_options
def bench(
    *,
    where: Where,
    model: str | None,
    streams: tuple[int, ...],
    requests: int,
    max_tokens: int,
    as_json: bool,
    plot: str | None,
) -> int:
    """Measure time to first token and tokens per second of an endpoint, with 1 to N streams at once.

    Every answer is asked for once, without retries, each with a prompt of its own, so that no cache of prompts answers.
    Before each number of streams, as many answers of one token open the connections. A paid endpoint costs what
    (numbers of streams) x --requests x --max-tokens cost. Ctrl-C prints what there is so far.
    """
    from .bench_run import Run

    drawing = _drawing(plot)
    with where.llm(_ADVICE, model=model, max_retries=0, max_tokens=max_tokens) as llm:
        run = Run(llm, streams, requests)
        interrupted = run.until_done()
        _print(run.report() if as_json else None, run.levels)
    if drawing is not None and any(level.answers for level in run.levels):
        drawing(run.levels, llm._config.model)
    for level in run.levels:
        if level.failures:
            note(f"{level.streams} at once: {len(level.failures)} failed, the first with: {level.failures[0]}")
    if interrupted:
        return 130
    return 0 if any(level.answers for level in run.levels) else 1


def _drawing(path: str | None) -> Any:
    """Return what draws; what is missing for it is said before anything is measured."""
    if path is None:
        return None
    try:
        from .bench_plot import drawing_to
    except ImportError:
        raise click.UsageError('--plot needs matplotlib: pip install "jazz_llm[bench]"') from None
    return drawing_to(path)


def _print(report: dict[str, Any] | None, levels: list[Level]) -> None:
    from .bench_table import plain_table, print_table

    if report is not None:
        write(json.dumps(report, indent=2) + "\n")
    elif not levels:
        complain("nothing was measured.")
    elif is_terminal(sys.stdout):
        print_table(levels)
    else:
        write(plain_table(levels))
