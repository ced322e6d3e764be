"""Where to ask: the options that every command shares."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

_OPTIONS = (
    click.option("--base-url", help="Where the API is, such as http://localhost:11434."),
    click.option("--provider", help="A provider's name, such as groq, instead of its URL or beside your own."),
    click.option("--api-key", help="The key; better set OPENAI_API_KEY, or the variable of the provider that is asked."),
)


def endpoint_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where to ask."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_endpoint(advice: str, *variables: str, **given: str | None) -> None:
    """Refuse to ask OpenAI without a key only because nothing was said; ``variables`` say it too."""
    known = map(os.environ.get, ("OPENAI_API_KEY", "OPENAI_BASE_URL", *variables))
    if set(given.values()) == {None} and not any(known):
        raise click.UsageError(advice)
