"""What was asked for beside text is checked here, when an answer has come whole: one pure function, CONTRACT 2's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import LLMContentFilterError, LLMRefusalError, LLMStructuredOutputError, LLMToolCallError
from ..schema import SchemaError
from ..tools import is_whole

if TYPE_CHECKING:
    from ..schema import Schema
    from ..toolbox import Toolbox
    from ..types import LLMResponse, ToolCall


def checked(response: LLMResponse[Any], schema: Schema | None = None, tools: Toolbox | None = None) -> LLMResponse[Any]:
    """Return an answer with all that was asked for checked; ``parsed`` is then the value of choice 0.

    Raises:
        LLMRefusalError, LLMContentFilterError, LLMStructuredOutputError, LLMToolCallError: It is not what was asked for;
            ``partial`` holds it.
    """
    if tools is not None:
        _calls(response, tools)
    if schema is not None and not (tools is not None and response.tool_calls):  # calls come before the answer that is asked for
        _structure(response, schema)
    return response


def _calls(response: LLMResponse[Any], tools: Toolbox) -> None:
    calls = response.tool_calls
    stopped = response.finish_reason == "content_filter" and not response.refusal
    if stopped and all(tools.errors_in(call) for call in calls):
        raise LLMContentFilterError("The content filter left no tool call whole.", status_code=200, partial=response)
    for choice in response.choices:
        for call in choice.tool_calls:
            if not tools.told or (choice.finish_reason in ("length", "content_filter") and not is_whole(call.raw_arguments)):
                _check_call(response, tools, call, choice.finish_reason)
    if tools.forced and not response.refusal and not any(tools.forced in ("required", call.name) for call in calls):
        asked = "a tool" if tools.forced == "required" else repr(tools.forced)
        message = f"The model did not call {asked}, as tool_choice asked it to; some servers ignore that (jazz-llm doctor)."
        raise LLMToolCallError(message, partial=response)


def _check_call(response: LLMResponse[Any], tools: Toolbox, call: ToolCall, finish: str | None) -> None:
    errors = tools.errors_in(call)
    if not errors:
        return
    cut = f"was cut short (finish_reason {finish!r}) and " if finish in ("length", "content_filter") else ""
    message = f"The model's call of {call.name!r:.100} {cut}does not fit: {'; '.join(errors)[:600]}"
    raise LLMToolCallError(message, tool_call=call, errors=errors, partial=response)


def _structure(response: LLMResponse[Any], schema: Schema) -> None:
    if response.refusal:
        raise LLMRefusalError(f"The model refused: {response.refusal[:300]}", partial=response)
    if response.finish_reason == "content_filter":
        raise LLMContentFilterError("The content filter stopped the answer.", status_code=200, partial=response)
    try:
        response.parsed = schema.parse(response.text)
    except SchemaError as error:
        errors = error.errors
    else:
        return
    cut = "was cut short (finish_reason 'length') and " if response.finish_reason == "length" else ""
    message = f"The answer {cut}does not fit response_format ({schema.name}): {'; '.join(errors)[:600]}"
    raise LLMStructuredOutputError(message, text=response.text, errors=errors, partial=response)
