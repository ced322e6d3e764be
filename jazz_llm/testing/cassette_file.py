"""Exchanges <-> the text of a cassette's file: YAML that reads well in a diff and brings every byte back; pure."""

from __future__ import annotations

import base64
import re
from dataclasses import asdict
from typing import Any

import orjson
import yaml

from .. import errors
from ..errors import LLMError
from .cassette_tape import Answer, Asked, Exchange

FORMAT = "jazz_llm cassette 1"

_HEAD = """\
# Recorded by jazz_llm.testing.cassette: what was asked, and what came back. Times (at) are seconds since the request was sent.
# Keys, cookies and the ids of organizations and projects were stripped. To record again, delete this file.
"""

# Larger JSON is one text: a number a line is no easier to read, and slow to load.
_LARGE = 64 * 1024
_LARGE_FILE = 2**20  # bytes of answers from which on speed counts for more than looks
_DEEPEST = 500  # of JSON that is sent or comes, twice as much as orjson writes
# What YAML takes for a line break or does not take at all: such text is quoted, with escapes.
_ODD = re.compile("[^\\n\\x20-\\x7e\\xa0-\\u2027\\u202a-\\ud7ff\\ue000-\\ufefe\\uff00-\\ufffd\\U00010000-\\U0010ffff]")


class NotACassetteError(ValueError):
    """A file's text is not what ``dump`` makes; the message says in what."""


def dump(exchanges: list[Exchange]) -> str:
    """Return the text of a file."""
    document = {"format": FORMAT, "exchanges": [_plain(exchange) for exchange in exchanges]}
    large = sum(len(data) for exchange in exchanges for _, data in exchange.answer.reads) > _LARGE_FILE
    dumper = _FastDumper if large else _Dumper
    text: str = yaml.dump(document, Dumper=dumper, allow_unicode=True, sort_keys=False, width=2**31 - 1)
    # The mark of the document's end, which PyYAML sets after a text that ends in empty lines, says nothing at the file's.
    return _HEAD + (text[: -len("...\n")] if text.endswith("\n...\n") else text)


def load(text: str) -> list[Exchange]:
    """Return the exchanges of a file, or raise ``NotACassetteError``."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506  # a safe one
    except (yaml.YAMLError, RecursionError) as error:
        raise NotACassetteError(f"it is not YAML: {' '.join(str(error).split())[:200]}") from None
    _check_size(document, len(text))
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise NotACassetteError(f"its format is {found!r:.60}, not {FORMAT!r}")
    exchanges = document.get("exchanges")
    if not isinstance(exchanges, list):
        raise NotACassetteError("it has no list of exchanges")
    return [_numbered(i, raw) for i, raw in enumerate(exchanges, 1)]


def _check_size(document: Any, left: int) -> None:
    """Refuse what is larger than its text, by aliases of aliases, or deep; each value is a character at least."""
    nodes = [(document, 0)]
    while nodes:
        node, depth = nodes.pop()
        parts = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
        left -= len(parts)
        if left < 0 or depth > _DEEPEST:
            raise NotACassetteError("its values are nested too deeply" if left >= 0 else "its aliases stand for too much")
        if isinstance(node, dict) and not all(isinstance(name, str) for name in node):
            raise NotACassetteError("a name in it is no text")
        nodes += [(part, depth + 1) for part in parts if isinstance(part, dict | list | tuple)]


def _plain(exchange: Exchange) -> dict[str, Any]:
    answer = asdict(exchange.answer) | {"reads": [_read_out(at, data) for at, data in exchange.answer.reads]}
    kept = {name: value for name, value in answer.items() if name == "at" or value not in (None, "", {}, [], False)}
    return {"request": asdict(exchange.asked), "answer": kept}


def _read_out(at: float, data: bytes) -> dict[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"at": at, "base64": base64.b64encode(data).decode()}
    value = _lossless(data)
    if value is not None:
        return {"at": at, "json": value}
    lines = text.replace("\r\n", "\n")
    # As text these would be one long line of escapes.
    return {"at": at, "crlf": lines} if lines != text == lines.replace("\n", "\r\n") else {"at": at, "text": text}


def _lossless(data: bytes) -> Any:
    """Return a body's JSON if it says the same to the last byte, else None."""
    if not data.startswith(b"{") or len(data) > _LARGE:
        return None
    try:
        value = orjson.loads(data)
        return value if orjson.dumps(value) == data else None
    except (ValueError, TypeError):
        return None


def _numbered(number: int, raw: Any) -> Exchange:
    try:
        return _exchange(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotACassetteError(f"its exchange number {number} is not whole ({type(error).__name__}: {error})") from None


def _exchange(raw: dict[str, Any]) -> Exchange:
    request, answer = raw["request"], dict(raw["answer"])
    answer["reads"] = [_read_in(read) for read in answer.get("reads", [])]
    held = Answer(**answer)
    numbers = isinstance(held.at, int | float) and isinstance(held.status, int | None)
    if not numbers or not all(isinstance(text, str) for text in held.headers.values()):
        raise TypeError("at and status must be numbers, and every header text")
    if held.error is not None:
        _check_error(held.error)
    return Exchange(Asked(str(request["method"]), str(request["url"]), request["body"]), held)


def _check_error(error: dict[str, Any]) -> None:
    if not isinstance(error["message"], str) or not isinstance(error["at"], int | float):
        raise TypeError("error: message must be text, and at a number")
    known = getattr(errors, error["type"], None)
    if not (isinstance(known, type) and issubclass(known, LLMError)):
        raise NotACassetteError(f"error: {error['type']!r:.60} is no class of jazz_llm.errors")


def _read_in(read: dict[str, Any]) -> tuple[float, bytes]:
    at = float(read["at"])
    if "base64" in read:
        return at, base64.b64decode(read["base64"], validate=True)
    if "json" in read:
        return at, orjson.dumps(read["json"])
    text = read["crlf"].replace("\n", "\r\n") if "crlf" in read else read["text"]
    return at, text.encode()


class _NoAliases:
    """Has the same object twice written twice, not the second time by reference."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


class _Dumper(_NoAliases, yaml.SafeDumper):
    pass


class _FastDumper(_NoAliases, getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # not in every build
    """A hundred times as fast where PyYAML was built with libyaml, which writes text with emoji as one line of escapes."""


def _write_text(dumper: Any, text: str) -> yaml.Node:
    style = '"' if _ODD.search(text) else "|" if "\n" in text else None
    node: yaml.Node = dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)
    return node


def _write_list(dumper: Any, items: list[Any]) -> yaml.Node:
    numbers = bool(items) and all(isinstance(item, int | float) for item in items)
    node: yaml.Node = dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=numbers)
    return node


for _kind in (_Dumper, _FastDumper):
    _kind.add_representer(str, _write_text)
    _kind.add_representer(list, _write_list)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
