"""The loop of ``run_tools``: call, run, answer, call again. What it decides is here, once; only the running is in two colours.

Its rules: what goes wrong with a tool is told to the model, and kept; what stops the program (KeyboardInterrupt,
CancelledError, ``LLMClosedError``) is not caught. ``tool_choice`` is for the first turn: "required" on every one would never
end.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from .config import check_count
from .errors import LLMClosedError, LLMError, LLMInvalidRequestError, LLMToolCallError
from .functions import inner
from .request import json_default, wire_messages
from .schema import SchemaError, load
from .toolbox import Toolbox
from .tools import parse_arguments
from .types import LLMResponse, Message, ToolCall, ToolResult

_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})  # of a Message


@dataclass(slots=True)
class Planned:
    """One call to run, or what is wrong with it."""

    call: ToolCall
    function: Callable[..., Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


class ToolLoop:
    """One run. While ``more()``: ask with ``transcript`` and ``options``, then ``run`` what the answer calls."""

    response: LLMResponse[Any]  # the last answer, from the first turn on

    def __init__(self, messages: Any, tools: Any, max_turns: int, options: Mapping[str, Any]) -> None:
        self._most = check_count("max_turns", max_turns, 1, 2**53, LLMInvalidRequestError)
        self._turns = 0  # begun
        self._toolbox = Toolbox(tools, told=True)
        name = self._toolbox.without_function()
        if name is not None:
            raise LLMInvalidRequestError(f"tools: run_tools cannot run {name!r}, which has no function.", param="tools")
        self.options = {**options, "tools": self._toolbox}
        self.transcript = [_message(wire) for wire in wire_messages(messages)]
        self._results: list[ToolResult] = []

    def more(self) -> bool:
        """Say whether the model is to be called (again); raises LLMToolCallError where it was called often enough."""
        if self._turns and not self.response.tool_calls:
            return False
        if self._turns == self._most:
            message = f"The model still calls tools after max_turns ({self._most}); the transcript is in .partial."
            raise LLMToolCallError(message, partial=self.response)
        self._turns += 1
        return True

    def run(self, response: LLMResponse[Any]) -> None:
        """Run the calls of an answer, one after the other."""
        self._tell([_run(one) for one in self._take(response)])

    async def arun(self, response: LLMResponse[Any]) -> None:
        """Run the calls of an answer together."""
        self._tell(await _together(self._take(response)))

    def _take(self, response: LLMResponse[Any]) -> list[Planned]:
        """Take an answer; return the calls to run."""
        self.response = self._completed(response)
        self.transcript.append(_sendable(response.message))
        return [self._planned(call) for call in response.tool_calls]

    def _tell(self, results: list[ToolResult]) -> None:
        """Take what the calls gave, in their order."""
        self._results += results
        self.transcript += [Message.tool(result.call, result.output) for result in results]
        if self.options.get("tool_choice") != "none":
            self.options["tool_choice"] = None

    def failed(self, error: LLMError) -> None:
        """Keep on a turn's error what was said before it."""
        if self._turns > 1 or error.partial is not None:
            error.partial = self._completed(error.partial or LLMResponse(text=""))

    def _completed(self, response: LLMResponse[Any]) -> LLMResponse[Any]:
        response.transcript, response.tool_results = self.transcript, self._results
        return response

    def _planned(self, call: ToolCall) -> Planned:
        try:
            arguments = self._toolbox.parse(call)
        except SchemaError as error:
            errors = error.errors
        else:
            return Planned(call, self._toolbox.function(call.name), arguments)
        message = f"The call of {call.name!r:.100} does not fit: {'; '.join(errors)}"
        return Planned(call, error=LLMToolCallError(message, tool_call=call, errors=errors))


# --- Running, in both colours -----------------------------------------------------------------------------------------


async def _together(planned: list[Planned]) -> list[ToolResult]:
    """Run calls together; where one stops the program, or this is cancelled, so are all."""
    import asyncio

    tasks = [asyncio.ensure_future(_arun(one)) for one in planned]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise


def _run(one: Planned) -> ToolResult:
    value, error = _called(one)
    if inspect.isawaitable(value):
        value, error = _caught(_waited, value)
    return _result(one.call, value, error)


async def _arun(one: Planned) -> ToolResult:
    import asyncio

    if one.function is None or inspect.iscoroutinefunction(inner(one.function)):
        value, error = _called(one)
    else:
        value, error = await asyncio.to_thread(_called, one)
    if inspect.isawaitable(value):
        try:
            value = await value
        except LLMClosedError:
            raise
        except Exception as raised:
            error = raised
    return _result(one.call, value, error)


def _called(one: Planned) -> tuple[Any, Exception | None]:
    return (None, one.error) if one.function is None else _caught(one.function, **one.arguments)


def _caught(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, Exception | None]:
    """Return what a function returns, or what it raises: a StopIteration from a thread would block asyncio before 3.12."""
    try:
        return function(*arguments, **named), None
    except LLMClosedError:
        raise
    except Exception as error:
        return None, error


def _waited(value: Awaitable[Any]) -> Any:
    """Await in a loop made for it, and in a thread made for it where a loop runs in this one."""
    import asyncio

    async def wait() -> Any:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, wait()).result()


def _result(call: ToolCall, value: Any, error: Exception | None) -> ToolResult:
    output = ""
    if error is None:
        output, error = _caught(_text, value)
    return ToolResult(call, output if error is None else _told(error), error)


def _text(value: Any) -> str:
    """Return a result as the model is told it: text as it is, all else as JSON."""
    if isinstance(value, str):
        value.encode()  # raises where it cannot be sent
        return str.__str__(value)
    return orjson.dumps(value, default=json_default, option=orjson.OPT_NON_STR_KEYS).decode()


def _told(error: Exception) -> str:
    said, failed = _caught(str, error)
    said = "" if failed is not None else said.encode("utf-8", "replace").decode()
    return f"Error: {said}" if isinstance(error, LLMToolCallError) else f"Error: {type(error).__name__}: {said}"


# --- The transcript ---------------------------------------------------------------------------------------------------


def _message(wire: Mapping[str, Any]) -> Message:
    calls = [_tool_call(call) for call in wire.get("tool_calls") or ()]
    extra = {name: value for name, value in wire.items() if name not in _FIELDS}
    named = {name: wire.get(name) for name in ("name", "tool_call_id")}
    return Message(wire["role"], wire.get("content"), tool_calls=calls or None, **named, extra=extra)


def _tool_call(call: Any) -> Any:
    """Return a call as OpenAI's dict has it as a ToolCall; one of another kind stays what it is."""
    function: Any = call.get("function") if isinstance(call, Mapping) else None
    raw = function.get("arguments") if isinstance(function, Mapping) and set(function) == {"name", "arguments"} else None
    if not isinstance(raw, str):
        return call
    extra = {name: value for name, value in call.items() if name not in ("id", "type", "function")}
    return ToolCall(call.get("id", ""), function["name"], parse_arguments(raw), raw, extra)


def _sendable(message: Message) -> Message:
    """Return the model's turn as servers take it back: their templates fail on arguments that are no JSON object."""
    if isinstance(message.content, str):
        message = replace(message, content=message.content.encode("utf-8", "replace").decode())
    calls = message.tool_calls or []
    if all(_is_object(call) for call in calls):
        return message
    mended = [call if _is_object(call) else replace(call, arguments={}, raw_arguments="{}") for call in calls]
    return replace(message, tool_calls=mended)


def _is_object(call: ToolCall) -> bool:
    try:
        call.raw_arguments.encode()  # half a surrogate pair cannot be sent back
        return isinstance(load(call.raw_arguments), dict)
    except (SchemaError, UnicodeEncodeError):
        return False
