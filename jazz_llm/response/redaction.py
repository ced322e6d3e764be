"""Taking the key out of what a server says: some send it back, spelled in the way of whatever they wrap it in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import LLMError

if TYPE_CHECKING:
    from ..types import LLMResponse

_SHORTEST = 4  # characters of a key; fewer are in every other word
_SECRET = 10  # characters of a key from which on it is no word of an answer; "lm-studio" and "EMPTY" may be
_MARK = "***"
_BEGINNING = 6  # characters of a key that may be no other word's
_LONGEST = 2**20  # characters of a text that spells the key oddly, above which all of it is dropped
_DEPTH = 3  # spellings one within another
_NAMED = {"quot": '"', "apos": "'", "lt": "<", "gt": ">", "amp": "&"}
# It begins with a set of characters, so that the engine looks for these alone.
_ESCAPED = re.compile(
    r"[\\%&](?:(?:(?<=\\)\\*(?:u00|x)|(?<=%))([0-9a-fA-F]{2})|(?<=\\)\\*u0{0,2}\w?\Z"
    r"|(?<=&)(?:#[xX]0{0,4}([0-9a-fA-F]{2});|#0{0,4}(\d{2,3});|(quot|apos|lt|gt|amp);)|(?<=\\)\\*"
    r"|(?<=[%&])#?\w{0,6}\Z)"  # one that was cut
)


def redacted(error: LLMError, secret: str | None) -> LLMError:
    """Take the key out of everything the error holds."""
    if secret is None or len(secret) < _SHORTEST:
        return error
    fields = vars(error)
    if len(secret) < _SECRET:
        fields = {name: value for name, value in fields.items() if name not in ("text", "errors", "partial")}
    _redact(fields, secret)
    vars(error).update(fields)
    error.args = (error.message,)
    return error


def tell_no_key(response: LLMResponse[Any], secret: str | None) -> None:
    """Take the key out of what is told of a response everywhere, on spans too: its id and its model."""
    if secret is not None and len(secret) >= _SECRET:
        response.model = without(response.model, secret, cut=False)  # "gpt-4o" may be how a key begins
        response.id = response.id and without(response.id, secret, cut=False)


def without(text: str, secret: str | None, mark: str = _MARK, *, cut: bool = True) -> str:
    """Return the text without the key, in whatever spelling: JSON's, URLs', HTML's, Python's repr, one within another.

    ``cut``: the text may have been cut to size in the middle of it, so the beginning of the key is taken from its end, too.
    """
    pieces, at = [], 0
    for begin, end in spans(text, secret, cut=cut):
        pieces += [text[at:begin], mark]
        at = end
    return "".join(pieces) + text[at:] if at else text


def spans(text: str, secret: str | None, *, cut: bool = False) -> list[tuple[int, int]]:
    """Return where the key is in a text; see ``without``."""
    if secret is None or len(secret) < _SHORTEST:
        return []
    if secret[:_BEGINNING] not in text and "\\" not in text and "%" not in text and "&" not in text:
        return []
    found = [(one.start(), one.end()) for one in re.finditer(re.escape(secret), text)]
    key = _resolved(secret)
    if len(key) < _SHORTEST:
        return found
    masked = text.replace(secret, "\0" * len(secret))
    if not any(_plain_spans(_resolved(masked), key, cut=cut)):  # as most are: to know all places costs forty times the text
        return found
    if len(text) > _LONGEST:
        return [(0, len(text))]
    plain, places = _unescaped(masked)
    for begin, end in _plain_spans(plain, key, cut=cut):
        last = places[end - 1]
        # What is dropped behind the key is another's: the backslash of a quote, without which JSON would end there.
        found.append((places[begin], last + len(text[last : places[end]].rstrip("\\"))))
    return sorted(found)


def _plain_spans(text: str, key: str, *, cut: bool) -> Iterator[tuple[int, int]]:
    """Yield where the key is in a text, and its beginning at the text's end if that was cut."""
    at = 0
    while (begin := text.find(key, at)) >= 0:
        at = begin + len(key)
        yield begin, at
    for length in range(min(len(key), len(text) - at + 1) - 1, _BEGINNING - 1, -1) if cut else ():
        if text.endswith(key[:length]):
            yield len(text) - length, len(text)
            break


def _resolved(text: str) -> str:
    """Return the text with escapes resolved and backslashes dropped."""
    for _ in range(_DEPTH):
        text, found = _ESCAPED.subn(_meaning, text)
        if not found:
            break
    return text


def _unescaped(text: str) -> tuple[str, Sequence[int]]:
    """Do what ``_resolved`` does, and return where each of its characters, and its end, was too."""
    places: Sequence[int] = range(len(text) + 1)
    for _ in range(_DEPTH):
        pieces: list[str] = []
        where: list[int] = []
        at = 0
        for found in _ESCAPED.finditer(text):
            character = _meaning(found)
            pieces += [text[at : found.start()], character]
            where += [*places[at : found.start()], *[places[found.start()]] * len(character)]
            at = found.end()
        if not at:
            break
        text, places = "".join(pieces) + text[at:], [*where, *places[at:]]
    return text, places


def _meaning(escape: re.Match[str]) -> str:
    coded, hexadecimal, decimal, name = escape.groups()
    if name:
        return _NAMED[name]
    number = int(decimal) if decimal else int(coded or hexadecimal or "0", 16)
    return chr(number) if 0 < number < 128 else ""  # of a key, all else is a backslash


def _redact(fields: dict[str, Any], secret: str) -> None:
    """Clean all texts below, in place and without recursion: a stranger's JSON may be deep."""
    nodes: list[Any] = [fields]
    while nodes:
        node = nodes.pop()
        for name, value in _items(node):
            if isinstance(value, str):
                clean = without(value, secret)
                if clean != value:
                    _put(node, name, clean)
            elif isinstance(value, dict | list) or _is_ours(value):
                nodes.append(value)
            if isinstance(node, dict) and isinstance(name, str) and without(name, secret) != name:
                node[without(name, secret)] = node.pop(name)


def _items(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, list):
        return list(enumerate(node))
    # What was validated is an object of the user's.
    return [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node) if field.name != "parsed"]


def _put(node: Any, name: Any, value: str) -> None:
    if isinstance(node, dict | list):
        node[name] = value
    else:
        object.__setattr__(node, name, value)  # some are frozen, for others


def _is_ours(value: Any) -> bool:
    return type(value).__module__ == "jazz_llm.types" and dataclasses.is_dataclass(value)
