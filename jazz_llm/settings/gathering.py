"""Environment, YAML and arguments -> an instance."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..config import TIMEOUT_PARTS, hidden
from ..errors import LLMConfigurationError, LLMError
from .environment import UNPREFIXED, read_environment, variable
from .fields import ALIASES, words
from .yaml_file import read_file

L = TypeVar("L")


@dataclass(slots=True)
class Settings:
    """What was said so far, and where: ``sources`` has a variable, or a line of a file, for each dotted name."""

    values: dict[str, Any] = field(default_factory=dict, repr=False)
    sources: dict[str, str] = field(default_factory=dict)

    def put(self, path: tuple[str, ...], value: Any, source: str) -> None:
        """Put a value over what is there; of two mappings the parts of both are kept."""
        if path[0] == "timeout" and not isinstance(self.values.get("timeout", {}), dict):
            self.values["timeout"] = dict.fromkeys(TIMEOUT_PARTS[:4], self.values["timeout"])  # a number is said of each
        for name in reversed(path):
            value = {name: value}
        self.values = _merged(self.values, value)
        self.sources[".".join(path)] = source

    def override(self, arguments: Mapping[str, Any]) -> None:
        """Put arguments over what is there, whole."""
        self.values |= arguments
        self.sources = {name: source for name, source in self.sources.items() if name.split(".")[0] not in arguments}

    def told(self, message: str) -> str:
        """Return a message that begins with a setting's name with the places where that was said."""
        culprit = re.split(r"[^\w.]", message, maxsplit=1)[0]
        first = culprit.split(".")[0]
        near = [source for name, source in self.sources.items() if name.split(".")[0] == first]
        where = [self.sources[culprit]] if culprit in self.sources else near
        return f"{message} It comes from {', '.join(dict.fromkeys(where))}." if where else message


def gathered(
    make: Callable[[type[L], dict[str, Any], Any], L],
    cls: type[L],
    arguments: dict[str, Any],
    prefix: str,
    path: str | os.PathLike[str] | None = None,
    section: str | None = None,
) -> L:
    """Return what ``make`` makes of a class, its arguments and whether it may stream; ``arguments`` has the key hidden.

    An error is raised anew here: the frames that it came from have held keys, which a traceback can show.
    """
    settings = Settings()
    try:
        _gather(settings, prefix, path, section)
        settings.override(arguments)
        _fall_back(settings)
        _check_model(cls, settings.values, prefix)
        streams = settings.values.pop("stream_enabled", True)
        return make(cls, hidden(settings.values), streams)
    except LLMError as error:
        kind, message = type(error), settings.told(error.message)
    except RecursionError:
        kind, message = LLMConfigurationError, "The settings are nested too deeply."
    raise kind(message)


def _gather(settings: Settings, prefix: str, path: str | os.PathLike[str] | None, section: str | None) -> None:
    if path is not None:
        for where, value, source in read_file(path, section):
            settings.put(where, value, source)
    for where, value, source in read_environment(prefix):
        settings.put(where, value, source)


def _fall_back(settings: Settings) -> None:
    """Read what has no prefix where nothing else says it; a provider says where it is, and its key is for no other place."""
    for name in UNPREFIXED:
        path = ALIASES[name.lower()]
        said = path[0] in settings.values or (path[0] == "base_url" and settings.values.get("provider") is not None)
        if not said and (text := variable(name)):
            settings.put(path, words(text), name)


def _check_model(cls: type, values: Mapping[str, Any], prefix: str) -> None:
    """Say what to do where nothing names a model, unless a class of the user's own needs none."""
    model = inspect.signature(cls).parameters.get("model")
    if "model" not in values and model is not None and model.default is model.empty:
        raise LLMConfigurationError(f"No model is set: set {prefix.upper()}MODEL, or pass model=.")


def _merged(low: Any, high: Any) -> Any:
    """Return ``high`` over ``low``: of two mappings all parts of both."""
    if not isinstance(low, dict) or not isinstance(high, dict):
        return high
    return {**low, **{name: _merged(low.get(name), part) for name, part in high.items()}}
