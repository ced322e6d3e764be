"""JSON that strangers wrote: never an exception, never a stack overflow."""

from __future__ import annotations

import json
from typing import Any

import orjson

MAX_DEPTH = 200
INVALID = object()


def parse_json(data: bytes) -> Any:
    """Return the value, or ``INVALID``: orjson first, the tolerant parser (NaN, lone surrogates) where it refuses."""
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    try:
        value = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return INVALID
    return value if _depth(value) <= MAX_DEPTH else INVALID


def _depth(value: object) -> int:
    deepest, level = 0, [value]
    while level and deepest <= MAX_DEPTH:
        deepest += 1
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
    return deepest


def text_or_none(value: object) -> str | None:
    """Return text that is not empty, None for anything else."""
    return value if isinstance(value, str) and value else None
