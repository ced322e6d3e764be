"""``--tool module:function``: finding the function, and saying on stderr when the model calls it."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import click

from ..tools import Tool
from ..types import ToolResult
from .output import note


def load_tools(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[Tool, ...]:  # noqa: ARG001  # click's
    """Return the tools that MODULE:FUNCTION names; a module is looked for in the current folder too."""
    return tuple(map(_tool, names))


def _tool(name: str) -> Tool:
    module, _, path = name.partition(":")
    if not module or not path:
        raise click.BadParameter(f"{name!r} is not of the form MODULE:FUNCTION, such as weather:forecast.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a json.py in this folder must not become Python's json
    try:
        function = attrgetter(path)(importlib.import_module(module))
    except Exception as error:  # whatever the module does when it is imported
        raise click.BadParameter(f"{name!r} cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(function):
        raise click.BadParameter(f"{name!r} is no function.")
    return _announced(function)


def _announced(function: Callable[..., Any]) -> Tool:
    """Return a tool that says what it is called with."""
    tool = Tool.from_function(function)

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        note(f"{tool.name}({', '.join(f'{name}={_shown(value)}' for name, value in arguments.items())})")
        return function(**arguments)

    tool.function = call
    return tool


def say_failures(results: list[ToolResult]) -> None:
    """Say which calls failed; the model was told, and may have found another way."""
    for result in results:
        if result.error is not None:
            note(f"{result.call.name}: {result.output}")


def _shown(value: object, most: int = 200) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 3] + "..."
