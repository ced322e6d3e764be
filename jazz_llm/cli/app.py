"""The command's parts, and what every one of them does about failures: one line on stderr and an exit code that is not 0."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

import click

from .. import __version__
from ..errors import LLMError
from .bench import bench
from .chat import chat
from .completion import completion
from .doctor import doctor
from .gateway import gateway
from .models import models
from .output import complain
from .pages import ENVIRONMENT, EXIT_CODES, Book

INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
_SECTIONS = {
    "Examples": (
        ('jazz-llm chat --local "Name three colours."', "Ask a small model on this machine, fetched once:"),
        ("jazz-llm chat --base-url http://localhost:11434 -m llama3.2", "Talk to a model of Ollama's:"),
        ("jazz-llm chat --help", "All that chat can do:"),
    ),
    "Exit codes": EXIT_CODES,
    "Environment": ENVIRONMENT,
}


@click.group(cls=Book, sections=_SECTIONS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="jazz-llm", message="%(prog)s %(version)s")
def app() -> None:
    """Talk to any OpenAI-compatible LLM endpoint, ask what it can do, and measure how fast it is.

    Keys stay in the environment: there is no command that stores one.
    """


for command in (chat, models, doctor, bench, gateway, completion):
    app.add_command(command)


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: complain(str(message))
            code = app.main(prog_name="jazz-llm", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return error.exit_code
    except click.ClickException as error:
        complain(error.format_message() + (" (see --help)" if isinstance(error, click.NoSuchOption) else ""))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except LLMError as error:
        complain(str(error))
        return 1
    except OSError as error:
        complain(str(error))
        _silence_stdout()
        return 1
    return code if isinstance(code, int) else 0


def _silence_stdout() -> None:
    """Keep the interpreter from complaining, at its end, that nobody reads what is left to write."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
