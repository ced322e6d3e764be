"""Variables of the environment -> settings."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..config import suggestion
from ..errors import LLMConfigurationError
from .fields import ALIASES, FIELDS, NAMES, TEXTS, Words, is_live, json, parts, secret, unquoted, words

UNPREFIXED = ("MODEL_API_URL", "MODEL_NAME")  # of nobody in particular: read where nothing else says it
_PREFIX = re.compile(r"(?:_*[A-Za-z0-9]\w*)?", re.ASCII)
_NEAR = 0.9  # "modle" is not that near "model", but "mode" is no slip


def variable(name: str) -> Words:
    """Return what a variable says: "" where it is set to nothing, as files of variables do with what they leave out."""
    text = os.environ.get(name, "")
    return Words(text.strip() if unquoted(text) else "")


def read_environment(prefix: str) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Yield the path, the value and the name of each variable under a prefix, a whole before its parts."""
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise LLMConfigurationError(f"prefix must be made of letters, digits and underscores, not {prefix!r}.")
    found: dict[tuple[str, ...], str] = {}
    for name in sorted(os.environ):
        path = _path(name, prefix)
        if path is not None and found.setdefault(path, name) != name:
            raise LLMConfigurationError(f"{found[path]} and {name} say the same: keep one of them.")
    for path in sorted(found, key=len):
        _check_whole(path, found)
        yield path, _value(path, variable(found[path])), found[path]


def _path(name: str, prefix: str) -> tuple[str, ...] | None:
    """Return where a variable's value belongs; None where it is not ours, or is set to nothing."""
    if name[: len(prefix)].upper() != prefix.upper() or not variable(name):
        return None
    head, *rest = name[len(prefix) :].lstrip("_").split("__")
    head = head.lower()
    if head in NAMES:
        return (*ALIASES.get(head, (head,)), *(_part(head, part) for part in rest))
    _check_unknown(name, head, prefix)
    return None


def _part(head: str, part: str) -> str:
    """Return the name that a part of a variable's name says: in lower case, where it is not written in both."""
    if part == part.upper() or head in ("timeout", "limits", "retry"):
        part = part.lower()
    # A shell takes no hyphen in a name, and many a proxy drops a header that has an underscore.
    return part.replace("_", "-") if head == "default_headers" else part


def _check_unknown(name: str, head: str, prefix: str) -> None:
    """Refuse a name that is not known, or under a prefix that may be others' too (it does not end in ``__``) a near one."""
    if prefix and (prefix.endswith("__") or difflib.get_close_matches(head, NAMES, n=1, cutoff=_NEAR)):
        known = is_live(head) or suggestion(head, NAMES, lambda each: f"{prefix}{each}".upper())
        raise LLMConfigurationError(f"{name} is not a setting. {known}")


def _check_whole(path: tuple[str, ...], found: Mapping[tuple[str, ...], str]) -> None:
    """Refuse a part of what another variable says is no mapping; but a timeout's number is said of each part."""
    for end in range(1, len(path)):
        whole = found.get(path[:end])
        if whole is not None and path[:end] != ("timeout",) and not isinstance(json(variable(whole)), dict):
            raise LLMConfigurationError(f"{whole} and {found[path]} contradict each other: keep one of them.")


def _value(path: tuple[str, ...], text: Words) -> Any:
    """Return a variable's value in the type of the field that it is for."""
    kind = FIELDS[path[0]]
    if not callable(kind):
        return parts(kind, json(text)) if len(path) == 1 else kind.get(path[1], json)(text)
    if len(path) == 1 or kind is secret:
        return kind(text)
    return words(text) if path[0] in TEXTS else json(text)
