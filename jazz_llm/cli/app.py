"""The command's parts, and what every one of them does about failures: one line on stderr and an exit code that is not 0."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

import click

from .. import __version__
from ..errors import LLMError
from .chat import chat
from .doctor import doctor
from .models import models

INTERRUPTED = 130  # 128 + SIGINT, what a shell expects


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="jazz-llm", message="%(prog)s %(version)s")
def app() -> None:
    """Talk to any OpenAI-compatible LLM endpoint."""


app.add_command(chat)
app.add_command(doctor)
app.add_command(models)


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _complain(str(message))
            code = app.main(prog_name="jazz-llm", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return error.exit_code
    except click.ClickException as error:
        _complain(error.format_message() + (" (see --help)" if isinstance(error, click.NoSuchOption) else ""))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except LLMError as error:
        _complain(str(error))
        return 1
    except OSError as error:
        _complain(str(error))
        _silence_stdout()
        return 1
    return code if isinstance(code, int) else 0


def _complain(message: str) -> None:
    sys.stderr.write(f"jazz-llm: {' '.join(message.split())}\n")


def _silence_stdout() -> None:
    """Keep the interpreter from complaining, at its end, that nobody reads what is left to write."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
