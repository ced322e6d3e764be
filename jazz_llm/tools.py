"""Tool calls: merging the fragments a stream sends them in."""

from __future__ import annotations

import json
import uuid
from typing import Any

import orjson

from .types import ToolCall


class CallMerger:
    """Merge the fragments of one choice's tool calls.

    The rule: a new non-empty id starts a call; else the index says which; with neither, the last call goes on. Providers leave
    out the index (Gemini), keep it at 0 for every call, start it at 1 (Anthropic) or repeat the id in each fragment (Baseten).
    """

    __slots__ = ("_by_index", "_calls")

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}

    def feed(self, fragment: dict[str, Any]) -> None:
        """Take one fragment, an entry of ``delta.tool_calls``."""
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        call = self._call_of(fragment.get("id"), fragment.get("index"))
        if isinstance(name := function.get("name"), str) and name:
            call["name"] = name
        if (arguments := function.get("arguments")) is not None:
            call["arguments"] += arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
        if isinstance(extra := fragment.get("extra_content"), dict):
            call["extra"]["extra_content"] = extra

    def calls(self) -> list[ToolCall]:
        """Return the calls so far, in the order they began; one without an id gets one."""
        return [ToolCall(c["id"], c["name"], parse_arguments(c["arguments"]), c["arguments"], c["extra"]) for c in self._calls]

    def _call_of(self, given: object, index: object) -> dict[str, Any]:
        known = self._by_index.get(index) if isinstance(index, int) else None
        if isinstance(given, str) and given:
            same = next((c for c in self._calls if c["given"] == given), None)
            return same or self._start(given, index)
        if known is None and (isinstance(index, int) or not self._calls):
            return self._start("", index)
        return known or self._calls[-1]

    def _start(self, given: str, index: object) -> dict[str, Any]:
        call: dict[str, Any] = {
            "given": given,
            "id": given or f"call_{uuid.uuid4().hex[:24]}",
            "name": "",
            "arguments": "",
            "extra": {},
        }
        self._calls.append(call)
        if isinstance(index, int):
            self._by_index[index] = call
        return call


def parse_arguments(raw: str) -> dict[str, Any]:
    """Return the arguments as a dict; what is not a JSON object is {}, and stays readable in ``raw_arguments``."""
    try:
        value = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
