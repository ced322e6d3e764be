"""Tools, and their calls: merging the fragments a stream sends them in."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from .types import ToolCall


@dataclass(slots=True)
class Tool:
    """One tool that a model may call.

    ``name`` is 1 to 64 of ``a-z A-Z 0-9 _ -``; ``description`` is for the model; ``parameters`` is the JSON schema of the
    arguments, an object; ``function`` is what ``run_tools`` runs. ``strict``: the provider promises arguments that fit, which
    with ``tool_choice="auto"`` only some can (else ``LLMCapabilityError``).
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    function: Callable[..., Any] | None = None
    strict: bool = False

    @classmethod
    def from_function(cls, function: Callable[..., Any]) -> Tool:
        """Make a tool of a function, sync or async: the schema is from its hints, the words from its docstring.

        Descriptions of arguments are taken from ``Annotated[..., "words"]`` or ``Field(description=...)``, else from the
        docstring's section on arguments (Google's, NumPy's or reST's style). What a ``functools.partial`` holds, and ``self``
        of a method, the model does not see. An argument without a hint may be anything.

        Raises:
            LLMInvalidRequestError: ``*args``, ``**kwargs``, a positional-only argument, a hint that JSON has no form for, a
                default that is not JSON.
            LLMConfigurationError: The extra ``schema`` is not installed.
        """
        from .functions import described

        made = described(function)
        return cls(made.name, made.description, copy.deepcopy(made.schema.json), function)


class CallMerger:
    """Merge the fragments of one choice's tool calls.

    The rule: a new non-empty id starts a call; else the index says which; with neither, the last call goes on. Where these do
    not tell calls apart, a name with whole arguments that comes after whole arguments starts one. Providers leave out the index
    (Gemini), keep it at 0 for every call, start it at 1 (Anthropic), repeat the id in each fragment (Baseten) or send none.
    """

    __slots__ = ("_by_id", "_by_index", "_calls")

    def __init__(self) -> None:
        self._calls: list[_Merging] = []
        self._by_index: dict[int, _Merging] = {}
        self._by_id: dict[str, _Merging] = {}  # the first that had it

    def feed(self, fragment: dict[str, Any]) -> int | None:
        """Take one fragment, an entry of ``delta.tool_calls``; return which call it belongs to, None for one said again."""
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = _text(function.get("name")), _arguments(function.get("arguments"))
        call = self._call_of(_text(fragment.get("id")), fragment.get("index"), name, arguments)
        if call is None:
            return None
        call.name = _joined_name(call.name, name)
        call.pieces.append(arguments)
        call.size += len(arguments)
        if isinstance(extra := fragment.get("extra_content"), dict):
            call.extra["extra_content"] = extra
        return call.at

    def head(self, at: int) -> ToolCall:
        """Return what is known of a call but its arguments."""
        call = self._calls[at]
        return ToolCall(call.given or call.made, call.name, {}, "", call.extra)

    def since(self, at: int, size: int) -> str:
        """Return what came of a call's arguments after their first ``size`` characters."""
        call, taken = self._calls[at], []
        missing = call.size - size
        for piece in reversed(call.pieces):
            if missing <= 0:
                break
            taken.append(piece[-missing:])
            missing -= len(piece)
        return "".join(reversed(taken))

    def so_far(self, at: int) -> ToolCall:
        """Return a call as far as it has come, its arguments not parsed."""
        call = self._calls[at]
        return ToolCall(call.given or call.made, call.name, {}, call.arguments(), call.extra)

    def calls(self) -> list[ToolCall]:
        """Return the calls so far, in the order they began; one without an id gets one."""
        calls = [self.so_far(at) for at in range(len(self._calls))]
        for call in calls:
            call.arguments = parse_arguments(call.raw_arguments)
        return calls

    def _call_of(self, given: str, index: object, name: str, arguments: str) -> _Merging | None:
        """Return the call that a fragment belongs to, None where it only says again what is known."""
        known = self._known(given, index, name)
        if known is None:
            return self._start(given, index)
        if not (name and known.name):
            self._identify(known, given)
            return known
        if is_whole(arguments) and is_whole(known.arguments()):
            # A second whole call: with the same id and arguments it is the first, repeated.
            return None if given and arguments == known.arguments() else self._start(given, index)
        if not (given or isinstance(index, int)) and name != known.name:
            return self._start(given, index)
        return known

    def _known(self, given: str, index: object, name: str) -> _Merging | None:
        """Return the call that a fragment's id or index names, or the last one where it has neither."""
        numbered = self._by_index.get(index) if isinstance(index, int) else None
        if given:
            same = self._by_id.get(given)
            if same is not None and not (name and isinstance(index, int) and same.index not in (index, None)):
                return same
            return None if name else numbered  # without a name, no call begins
        if isinstance(index, int):
            return numbered
        return self._calls[-1] if self._calls else None

    def _start(self, given: str, index: object) -> _Merging:
        call = _Merging(len(self._calls), index if isinstance(index, int) else None)
        self._calls.append(call)
        self._identify(call, given)
        if isinstance(index, int):
            self._by_index[index] = call
        return call

    def _identify(self, call: _Merging, given: str) -> None:
        if given and not call.given:
            call.given = given
            self._by_id.setdefault(given, call)


class _Merging:
    """One call as it grows; its arguments in pieces, since joining them at each would make a long call's time quadratic."""

    __slots__ = ("at", "extra", "given", "index", "made", "name", "pieces", "size")

    def __init__(self, at: int, index: int | None) -> None:
        self.at = at
        self.index = index
        self.given = ""
        self.made = f"call_{uuid.uuid4().hex[:24]}"  # where no id is given
        self.name = ""
        self.pieces: list[str] = []
        self.size = 0  # characters of the pieces
        self.extra: dict[str, Any] = {}

    def arguments(self) -> str:
        """Return the arguments so far."""
        return "".join(self.pieces)


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


def is_whole(arguments: str) -> bool:
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
