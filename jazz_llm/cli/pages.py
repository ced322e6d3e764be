"""Help that reads like a page of a manual: options in groups, and sections such as examples and exit codes below them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click

Sections = Mapping[str, Sequence[tuple[str, str]]]

EXIT_CODES = (
    ("0", "All went well."),
    ("1", "The call failed: one line on stderr says why."),
    ("2", "The command line is wrong."),
    ("130", "Stopped by Ctrl-C."),
)
ENVIRONMENT = (
    ("OPENAI_API_KEY", "The key for OpenAI, for OPENAI_BASE_URL and for unknown https hosts."),
    ("GROQ_API_KEY, ...", "The keys of the other providers, each by its own name."),
    ("OPENAI_BASE_URL", "Where to ask when nothing else says it."),
    ("JAZZ_LLM__MODEL, ...", "Any argument of OpenAICompatibleLLM, also JAZZ_LLM__BASE_URL, JAZZ_LLM__TIMEOUT=30, ..."),
    ("HTTPS_PROXY, NO_PROXY", "A proxy, and what not to ask through it; also SSL_CERT_FILE for certificates."),
    ("JAZZ_LLM_LOG", "info or debug: what was asked, on stderr; never texts or keys."),
    ("NO_COLOR", "No colours on a terminal."),
)


class GroupedOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *arguments: Any, group: str = "Options", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class _WithSections(click.Command):
    """A command with more sections of help: "Examples" has (command, what it does), others have terms."""

    def __init__(self, *arguments: Any, sections: Sections | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.sections = sections or {}

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """Write the other sections."""
        write_sections(formatter, self.sections)


class Page(_WithSections):
    """A command with grouped options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = None if isinstance(option, click.Argument) else option.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(option, "group", "Help"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


class Book(_WithSections, click.Group):
    """A group of pages, in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names of the commands."""
        return list(self.commands)


def write_sections(formatter: click.HelpFormatter, sections: Sections) -> None:
    """Write examples as they are typed, and all else as terms with what they mean."""
    for name, rows in sections.items():
        with formatter.section(name):
            if name == "Examples":
                for command, meaning in rows:
                    formatter.write_text(meaning)
                    formatter.write(f"{'':{formatter.current_indent + 2}}{command}\n")  # not wrapped: it is to be copied
            else:
                formatter.write_dl(rows)


def option_in(group: str) -> Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Return what ``click.option`` is, for options under one heading."""
    return partial(click.option, cls=GroupedOption, group=group)
