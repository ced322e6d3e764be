"""The errors a call can raise.

::

    LLMError
    ├─ LLMConfigurationError (also ValueError)
    ├─ LLMClosedError
    ├─ LLMConnectionError
    │  └─ LLMStreamTruncatedError
    ├─ LLMTimeoutError
    ├─ LLMStatusError
    │  ├─ LLMInvalidRequestError
    │  │  ├─ LLMContextLengthError
    │  │  └─ LLMContentFilterError
    │  ├─ LLMAuthenticationError
    │  ├─ LLMPermissionDeniedError
    │  ├─ LLMNotFoundError
    │  ├─ LLMRateLimitError
    │  │  └─ LLMQuotaExceededError
    │  └─ LLMInternalError
    │     ├─ LLMOverloadedError
    │     └─ LLMResponseError
    │        └─ LLMResponseTooLargeError
    ├─ LLMStructuredOutputError
    ├─ LLMToolCallError
    ├─ LLMRefusalError
    └─ LLMCapabilityError

Every class is built from its message alone, the rest are keywords: that is what lets each of them pickle and copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .types import LLMResponse, ToolCall

Phase = Literal["connect", "pool", "write", "read", "first_token", "between_tokens", "deadline"]


class LLMError(Exception):
    """Base of everything this package raises about a call.

    ``message`` is the sentence for people; ``retryable`` says whether the cause is passing; ``attempts`` counts the tries
    made; ``partial`` holds what had come of the answer, or None; ``provider`` is a name of the registry, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        retryable: bool = False,
        provider: str | None = None,
        attempts: int = 0,
        partial: LLMResponse[Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable
        self.provider = provider
        self.attempts = attempts
        self.partial = partial


class LLMConfigurationError(LLMError, ValueError):
    """Tell that an argument, a variable or a file is wrong; the message names it."""


class LLMClosedError(LLMError):
    """Tell that the client was closed before or during the call."""


class LLMConnectionError(LLMError):
    """Tell that the connection could not be made or was lost.

    ``maybe_processed`` is False where the server provably never started on the request.
    """

    def __init__(self, message: str = "", *, maybe_processed: bool = True, **details: Any) -> None:
        super().__init__(message, **details)
        self.maybe_processed = maybe_processed


class LLMStreamTruncatedError(LLMConnectionError):
    """Tell that the answer stopped before its end; ``partial`` holds what had come."""


class LLMTimeoutError(LLMError):
    """Tell that a wait took too long; ``phase`` says which. Only a wait for a connection is worth another."""

    def __init__(self, message: str = "", *, phase: Phase = "read", **details: Any) -> None:
        super().__init__(message, **{"retryable": phase == "connect", **details})
        self.phase = phase


class LLMStatusError(LLMError):
    """Tell what the server answered instead of an answer.

    ``status_code`` is None where nothing was sent. ``body`` is the first 4 KiB as text, ``retry_after`` seconds.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int | None = None,
        body: str = "",
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
        code: str | None = None,
        type: str | None = None,  # noqa: A002  # the provider's own field name, and the contract's
        param: str | None = None,
        retry_after: float | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message, **details)
        self.status_code = status_code
        self.body = body
        self.headers = dict(headers or {})
        self.request_id = request_id
        self.code = code
        self.type = type
        self.param = param
        self.retry_after = retry_after


class LLMInvalidRequestError(LLMStatusError):
    """Tell that the request itself is wrong; sending it again does not help."""


class LLMContextLengthError(LLMInvalidRequestError):
    """Tell that the prompt, or prompt and answer, do not fit the model's context."""


class LLMContentFilterError(LLMInvalidRequestError):
    """Tell that the provider's content filter stopped the request or the answer."""


class LLMAuthenticationError(LLMStatusError):
    """Tell that the key is missing or wrong."""


class LLMPermissionDeniedError(LLMStatusError):
    """Tell that the key is right but may not do this."""


class LLMNotFoundError(LLMStatusError):
    """Tell that the model or the URL does not exist there."""


class LLMRateLimitError(LLMStatusError):
    """Tell that the provider asks for fewer requests (every 429)."""


class LLMQuotaExceededError(LLMRateLimitError):
    """Tell that the account has nothing left; waiting does not help."""


class LLMInternalError(LLMStatusError):
    """Tell that the server failed."""


class LLMOverloadedError(LLMInternalError):
    """Tell that the server has no room now."""


class LLMResponseError(LLMInternalError):
    """Tell that the answer is not what the protocol says (no choices, not JSON, HTML, empty, a redirect)."""


class LLMResponseTooLargeError(LLMResponseError):
    """Tell that the answer went past ``max_response_bytes`` or ``max_event_bytes``."""


class LLMStructuredOutputError(LLMError):
    """Tell that the answer does not fit ``response_format``; ``text`` is the answer, ``errors`` say where it does not fit."""

    def __init__(self, message: str = "", *, text: str = "", errors: list[str] | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.text = text
        self.errors = errors or []


class LLMToolCallError(LLMError):
    """Tell that a tool call is not whole or does not fit its schema."""

    def __init__(
        self, message: str = "", *, tool_call: ToolCall | None = None, errors: list[str] | None = None, **details: Any
    ) -> None:
        super().__init__(message, **details)
        self.tool_call = tool_call
        self.errors = errors or []


class LLMRefusalError(LLMError):
    """Tell that the model refused where structured output was asked for."""


class LLMCapabilityError(LLMError):
    """Tell that the provider cannot promise what was asked for; nothing was sent."""
