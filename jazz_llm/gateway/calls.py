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
    """Return the messages, named as the provider takes it: not at all, or with ``character_name`` for the assistant's own.

    An endpoint that is not in the registry gets the names that the client gave, and no others.
    """
    character = request.params.get("character_name")
    takes = row is not None and row.names
    own = character if takes and isinstance(character, str) else None
    return [_named(message, own, given=row is None, takes=takes) for message in request.messages]


def _named(message: Any, own: str | None, *, given: bool, takes: bool) -> Any:
    if not isinstance(message, dict) or message.get("role") in _NAMED_ROLES:
        return message
    name = message.get("name") or (own if message.get("role") == "assistant" else None)
    fits = isinstance(name, str) and (given or (takes and _NAME.fullmatch(name)))
    plain = {key: value for key, value in message.items() if key != "name"}
    return {**plain, "name": name} if fits else plain


def options_of(request: Generate, loaded: Loaded) -> dict[str, Any]:
    """Return the options of the call; the client's own checks find what is wrong with their values."""
    params = request.params
    options = {
        "model": _model(params.get("model_id"), loaded),
        "temperature": params.get("temperature"),
        "max_tokens": params.get("max_output_length"),
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


def _stop(given: Any) -> Any:
    """Return the texts to stop at; the published types allow ids of tokens, which the chat API has no field for."""
    if isinstance(given, list) and not all(isinstance(text, str) for text in given):
        raise LLMInvalidRequestError("params.stop_tokens must be texts: token ids cannot be sent to a chat model.")
    return given or None
