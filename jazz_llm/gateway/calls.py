"""A ``generate`` request -> the messages and options of a call."""

from __future__ import annotations

import re
from typing import Any

from ..errors import LLMInvalidRequestError, LLMNotFoundError
from ..providers import Provider
from .protocol import Generate
from .session import Loaded

# OpenAI's own rule: jekalmin/extended_openai_conversation issue 251.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NAMED_ROLES = ("function", "tool")  # whose name is the function's


def messages_of(request: Generate, row: Provider | None) -> list[Any]:
    """Return the messages, with names as far as the provider takes them; ``row`` is None for one that is not known."""
    return [_named(message, request.params.get("character_name"), row) for message in request.messages]


def _named(message: Any, character: Any, row: Provider | None) -> Any:
    if not isinstance(message, dict) or message.get("role") in _NAMED_ROLES:
        return message
    plain = {key: value for key, value in message.items() if key != "name"}
    name = _name_of(message, character, row)
    return {**plain, "name": name} if name else plain


def _name_of(message: dict[str, Any], character: Any, row: Provider | None) -> Any:
    """Return the name of who speaks, None where it is better not said."""
    given = message.get("name")
    if row is None:
        return given  # what the client itself says to an endpoint of its own
    name = given or (character if message.get("role") == "assistant" else None)
    return name if row.names and isinstance(name, str) and _NAME.fullmatch(name) else None


def options_of(request: Generate, loaded: Loaded) -> dict[str, Any]:
    """Return the options of the call; the client's own checks find what is wrong with their values."""
    params = request.params
    options = {
        "model": _model(params.get("model_id"), loaded),
        "temperature": params.get("temperature"),
        "max_tokens": _limit(params.get("max_output_length")),
        "stop": _stop(params.get("stop_tokens")),
    }
    return {name: value for name, value in options.items() if value is not None} | _times(request)


def seconds_of(request: Generate) -> float | None:
    """Return ``timeout_ms`` in seconds."""
    given = request.params.get("timeout_ms")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 1e12:
        raise LLMInvalidRequestError("params.timeout_ms must be a number of milliseconds above 0, or null.")
    return given / 1e3


def _times(request: Generate) -> dict[str, Any]:
    """Return the waits: of a whole answer one for all, of a stream one for each; null has no limit, but for connecting."""
    if "timeout_ms" not in request.params:
        return {}
    seconds = seconds_of(request)
    if seconds is None:
        return {"timeout": {"read": None}, "first_token_timeout": None, "deadline": None}
    return {"timeout": seconds, **({"first_token_timeout": seconds} if request.stream else {"deadline": seconds})}


def _model(given: Any, loaded: Loaded) -> str:
    """Return the model to ask; the published client sends "" where its user named none."""
    if given is not None and not isinstance(given, str):
        raise LLMInvalidRequestError("params.model_id must be text.")
    model = given or loaded.model or (loaded.models[0] if len(loaded.models) == 1 else None)
    if model is None:
        raise LLMNotFoundError("params.model_id is missing: name a model; get_models lists them.")
    return model


def _limit(given: Any) -> int | None:
    """Return the most tokens; languages whose numbers are all floats write 200 as 200.0."""
    whole = int(given) if isinstance(given, float) and given.is_integer() else given
    if whole is not None and (isinstance(whole, bool) or not isinstance(whole, int) or whole < 1):
        raise LLMInvalidRequestError("params.max_output_length must be a whole number of tokens, at least 1.")
    return whole


def _stop(given: Any) -> Any:
    """Return the texts to stop at; the published types allow ids of tokens, which the chat API has no field for."""
    if isinstance(given, list) and not all(isinstance(text, str) for text in given):
        raise LLMInvalidRequestError("params.stop_tokens must be texts: token ids cannot be sent to a chat model.")
    return given or None
