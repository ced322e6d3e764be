"""The tools of one call: what goes on the wire, and whether what the model makes of them fits. Nothing here waits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import LLMInvalidRequestError
from .functions import arguments_in, described
from .schema import Schema, SchemaError, load, schema_of
from .tools import Tool
from .types import ToolCall

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # platform.openai.com/docs/api-reference/chat/create, tools
_MODES = (None, "auto", "none", "required", "any")  # "any" is Mistral's first word for "required"


@dataclass(slots=True)
class _Entry:
    """One tool; ``schema`` is None where it says nothing of its arguments."""

    wire: Mapping[str, Any]
    name: str
    schema: Schema | None
    function: Callable[..., Any] | None = None
    converts: bool = False  # ``schema`` was made from the function: it makes the values that the hints name
    strict: bool = False


class Toolbox:
    """The tools of one call.

    ``forced`` is what ``tool_choice`` promises: "required", a tool's name, or None. ``told``: the model is told what does not
    fit (``run_tools``), else it is an error.
    """

    __slots__ = ("_entries", "_others", "forced", "told")

    def __init__(self, tools: Any, *, told: bool = False) -> None:
        if not isinstance(tools, list | tuple):
            raise _refused(f"tools must be a list, not {type(tools).__name__}.")
        self.forced: str | None = None
        self.told = told
        self._entries: dict[str, _Entry] = {}
        self._others: list[Mapping[str, Any]] = []  # what the provider runs itself, such as a search of the web
        for i, tool in enumerate(tools):
            if isinstance(tool, Mapping) and tool.get("type", "function") != "function":
                self._others.append(tool)
            else:
                self._add(f"tools[{i}]", tool)

    def _add(self, where: str, tool: Any) -> None:
        entry = _of_dict(where, tool) if isinstance(tool, Mapping) else _of_tool(where, tool)
        if not isinstance(entry.name, str) or not _NAME.fullmatch(entry.name):
            raise _refused(f"{where}: a tool's name is 1 to 64 of a-z, A-Z, 0-9, _ and -, not {entry.name!r:.100}.")
        if entry.name in self._entries:
            raise _refused(f"{where}: there are two tools called {entry.name!r}.")
        self._entries[entry.name] = entry

    @property
    def strict(self) -> bool:
        """Whether a tool asks for arguments that are bound to fit."""
        return any(entry.strict for entry in self._entries.values())

    def without_function(self) -> str | None:
        """Return the name, or the kind, of a tool that cannot be run here."""
        names = (name for name, entry in self._entries.items() if entry.function is None)
        return next(names, None) or next((str(tool["type"]) for tool in self._others), None)

    def wire(self, constrains: str | None = None) -> list[Mapping[str, Any]]:
        """Return the tools as OpenAI dicts; ``constrains`` is the provider where strict tools have to be in OpenAI's subset."""
        own = self._entries.values()
        return [entry.wire if constrains is None else _strict(entry, constrains) for entry in own] + self._others

    def choose(self, choice: Any) -> Any:
        """Note what ``tool_choice`` promises; return it as it goes on the wire."""
        self.forced = None
        if isinstance(choice, Mapping):
            function = choice.get("function")
            name = function.get("name") if isinstance(function, Mapping) else None
        else:
            name = None if choice in _MODES else choice
        if name is None:
            self.forced = "required" if choice in ("required", "any") else None
            return choice
        if not isinstance(name, str) or (name not in self._entries and not self._others):
            raise LLMInvalidRequestError(f"tool_choice: {self._unknown(name)}", param="tool_choice")
        self.forced = name
        return choice if isinstance(choice, Mapping) else {"type": "function", "function": {"name": name}}

    def parse(self, call: ToolCall) -> dict[str, Any]:
        """Return what to call the function with.

        Raises:
            SchemaError: There is no such tool, or the arguments are no JSON object, not whole, or do not fit.
        """
        entry = self._entries.get(call.name)
        if entry is None and not self._others:
            raise SchemaError([self._unknown(call.name)])
        value = _object_in(call)
        if entry is None or entry.schema is None:
            return value
        if entry.converts:
            return arguments_in(entry.schema.parse(call.raw_arguments.strip() or "{}"))
        if errors := entry.schema.check(value):
            raise SchemaError(errors)
        return value

    def errors_in(self, call: ToolCall) -> list[str]:
        """Return what is wrong with a call, an empty list where nothing is."""
        try:
            self.parse(call)
        except SchemaError as error:
            return error.errors
        return []

    def function(self, name: str) -> Callable[..., Any]:
        """Return the function of a tool that has one."""
        function = self._entries[name].function
        assert function is not None
        return function

    def _unknown(self, name: object) -> str:
        return f"there is no tool {name!r:.100}; the tools are {', '.join(self._entries)}"


def _object_in(call: ToolCall) -> dict[str, Any]:
    """Return the JSON object that a call's arguments are; where nothing came it is empty."""
    raw = call.raw_arguments
    value = load(raw) if raw.strip() else {}
    if not isinstance(value, dict):
        raise SchemaError([f"the arguments must be a JSON object, not {raw.strip()[:100]}"])
    return value


def _of_tool(where: str, given: Any) -> _Entry:
    """Return a tool's entry; what ``Tool.from_function`` made takes its arguments as the function's hints say."""
    tool = given
    if not isinstance(tool, Tool):
        made = described(given)
        tool = Tool(made.name, made.description, made.schema.json, given)
    schema = _schema_of_function(tool)
    converts = schema is not None
    if schema is None:
        schema = schema_of(tool.parameters, f"{where}.parameters")
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": schema.json}
    if not tool.description:
        del function["description"]
    if tool.strict:
        function["strict"] = True
    return _Entry({"type": "function", "function": function}, tool.name, schema, tool.function, converts, tool.strict)


def _schema_of_function(tool: Tool) -> Schema | None:
    """Return the schema that the function's hints make where the tool has that one, and not one of the user's."""
    if tool.function is None:
        return None
    try:
        made = described(tool.function).schema
    except LLMInvalidRequestError:
        return None
    return made if made.json == tool.parameters else None


def _of_dict(where: str, tool: Mapping[str, Any]) -> _Entry:
    function = tool.get("function")
    if not isinstance(function, Mapping) or "name" not in function:
        raise _refused(f'{where}: a tool as a dict has the form {{"type": "function", "function": {{"name": ..., ...}}}}.')
    parameters = function.get("parameters")
    schema = None if parameters is None else schema_of(parameters, f"{where}.function.parameters")
    return _Entry(tool, function["name"], schema, strict=bool(function.get("strict")))


def _strict(entry: _Entry, provider: str) -> Mapping[str, Any]:
    if not entry.strict or entry.schema is None:
        return entry.wire
    parameters = entry.schema.strict(provider, f"tools: {entry.name}")
    return {**entry.wire, "function": {**entry.wire["function"], "parameters": parameters}}


def _refused(message: str) -> LLMInvalidRequestError:
    return LLMInvalidRequestError(message, param="tools")
