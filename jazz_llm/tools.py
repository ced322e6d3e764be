"""Tool calls: merging the fragments a stream sends them in."""

from __future__ import annotations

import json
import uuid
from typing import Any

import orjson

from .types import ToolCall


class CallMerger:
    """Merge the fragments of one choice's tool calls.

    The rule: a new non-empty id starts a call; else the index says which; with neither, the last call goes on. Where these do
    not tell calls apart, a name with whole arguments that comes after whole arguments starts one. Providers leave out the index
    (Gemini), keep it at 0 for every call, start it at 1 (Anthropic), repeat the id in each fragment (Baseten) or send none.
    """

    __slots__ = ("_by_index", "_calls")

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}

    def feed(self, fragment: dict[str, Any]) -> None:
        """Take one fragment, an entry of ``delta.tool_calls``."""
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = _text(function.get("name")), _arguments(function.get("arguments"))
        call = self._call_of(_text(fragment.get("id")), fragment.get("index"), name, arguments)
        if call is None:
            return
        call["name"] = _joined_name(call["name"], name)
        call["arguments"] += arguments
        if isinstance(extra := fragment.get("extra_content"), dict):
            call["extra"]["extra_content"] = extra

    def calls(self) -> list[ToolCall]:
        """Return the calls so far, in the order they began; one without an id gets one."""
        return [
            ToolCall(c["given"] or c["made"], c["name"], parse_arguments(c["arguments"]), c["arguments"], c["extra"])
            for c in self._calls
        ]

    def _call_of(self, given: str, index: object, name: str, arguments: str) -> dict[str, Any] | None:
        """Return the call that a fragment belongs to, None where it only says again what is known."""
        known = self._known(given, index, name)
        if known is None:
            return self._start(given, index)
        if not (name and known["name"]):
            known["given"] = known["given"] or given
            return known
        if _is_whole(arguments) and _is_whole(known["arguments"]):
            # A second whole call: with the same id and arguments it is the first, repeated.
            return None if given and arguments == known["arguments"] else self._start(given, index)
        if not (given or isinstance(index, int)) and name != known["name"]:
            return self._start(given, index)
        return known

    def _known(self, given: str, index: object, name: str) -> dict[str, Any] | None:
        """Return the call that a fragment's id or index names, or the last one where it has neither."""
        numbered = self._by_index.get(index) if isinstance(index, int) else None
        if given:
            same = next((c for c in self._calls if c["given"] == given), None)
            if same is not None and not (name and isinstance(index, int) and same["index"] not in (index, None)):
                return same
            return None if name else numbered  # without a name, no call begins
        if isinstance(index, int):
            return numbered
        return self._calls[-1] if self._calls else None

    def _start(self, given: str, index: object) -> dict[str, Any]:
        call: dict[str, Any] = {
            "given": given,
            "index": index if isinstance(index, int) else None,
            "made": f"call_{uuid.uuid4().hex[:24]}",  # where no id is given
            "name": "",
            "arguments": "",
            "extra": {},
        }
        self._calls.append(call)
        if isinstance(index, int):
            self._by_index[index] = call
        return call


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: object) -> str:
    """Return arguments as JSON, also where they came as an object."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # lone surrogates, integers above 64 bits, deep nesting
        pass
    try:
        return json.dumps(value, separators=(",", ":"))
    except RecursionError:
        return ""


def _joined_name(known: str, piece: str) -> str:
    """Return the name so far: a piece goes on with it, or says it again, whole or as far as it has come."""
    return piece if piece.startswith(known) else known + piece if piece else known


def _is_whole(arguments: str) -> bool:
    """Say whether arguments are a whole JSON object."""
    text = arguments.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse_arguments(raw: str) -> dict[str, Any]:
    """Return the arguments as a dict; what is not a JSON object is {}, and stays readable in ``raw_arguments``."""
    try:
        value = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
