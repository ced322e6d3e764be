"""``jazz-llm completion``: the script that makes a shell complete this command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .output import write
from .pages import EXIT_CODES, Page

_SECTIONS = {
    "Examples": (
        ('eval "$(jazz-llm completion bash)"', "For this bash, or for every one in ~/.bashrc (zsh: ~/.zshrc):"),
        ("jazz-llm completion fish > ~/.config/fish/completions/jazz-llm.fish", "For every fish:"),
    ),
    "Exit codes": EXIT_CODES,
}


@click.command(cls=Page, sections=_SECTIONS, short_help="Print a script for the Tab key of bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that lets the Tab key complete commands, options, files and names of providers.

    bash has to be 4.4 or newer: macOS brings 3.2, and zsh.
    """
    made = get_completion_class(shell)
    assert made is not None
    write(f"{made(ctx.find_root().command, {}, 'jazz-llm', '_JAZZ_LLM_COMPLETE').source()}\n")
