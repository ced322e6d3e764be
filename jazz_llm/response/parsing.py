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
        value = json.loads(data.decode("utf-8-sig", "replace"))
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


# Charsets that a proxy's page or a Chinese provider's error may come in; no codec is looked up that a stranger names.
_CHARSETS = frozenset(
    {"iso-8859-1", "latin-1", "latin1", "windows-1252", "cp1252", "gbk", "gb2312", "gb18030", "big5", "shift_jis"}
)


def text_of(data: bytes, content_type: str = "") -> str:
    """Return a body as text: UTF-8 where it is that, else in the charset of its content type, else with U+FFFD."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        charset = content_type.lower().partition("charset=")[2].split(";")[0].strip(" \"'")
        return data.decode(charset if charset in _CHARSETS else "utf-8-sig", "replace")


def text_or_none(value: object) -> str | None:
    """Return text that is not empty, None for anything else."""
    return value if isinstance(value, str) and value else None
