"""What went wrong below -> the package's errors."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import LLMConnectionError, LLMError, LLMRateLimitError, LLMResponseError, LLMStreamTruncatedError
from .exchange import ConnectError, Fault, Headers, LostError, ProtocolError
from .frames import ErrorCode

if TYPE_CHECKING:
    from ..timing import Clock


def error_of(fault: Exception, clock: Clock, host: str) -> Exception:
    """Return the error that a fault means for the call that ``clock`` belongs to; what is no fault of ours stays as it is."""
    if clock.reason is not None:
        return clock.failure()
    if isinstance(fault, LLMError) or not isinstance(fault, Fault):
        return fault
    if isinstance(fault, ConnectError):
        return LLMConnectionError(f"No connection to {host}: {fault}", maybe_processed=False, retryable=fault.retryable)
    if isinstance(fault, ProtocolError):
        return _nonsense(fault, clock, host)
    code = fault.code if isinstance(fault, LostError) else None
    if code == ErrorCode.ENHANCE_YOUR_CALM:
        return LLMRateLimitError(f"{host} asks for fewer requests (ENHANCE_YOUR_CALM).", retryable=True, code="overloaded")
    told = f"{named(code)}: {fault}"
    if clock.answering:
        return LLMStreamTruncatedError(f"The connection to {host} was lost in the middle of the answer{told}", retryable=True)
    return LLMConnectionError(
        f"The connection to {host} was lost before the answer began{told}",
        maybe_processed=clock.sent and not never_processed(fault, clock),
        retryable=True,
    )


def never_processed(fault: Exception, clock: Clock) -> bool:
    """Say whether the server provably never started on the request, so that it may be sent again at once."""
    if clock.answering or clock.reason is not None or not isinstance(fault, LostError):
        return False
    return fault.unprocessed or not clock.sent


def joined(headers: Headers) -> dict[str, str]:
    """Return the headers as a dict; those that come several times are joined (RFC 9110, section 5.3)."""
    single = dict(headers)
    if len(single) == len(headers):
        return single
    lists: dict[str, list[str]] = {}
    for name, value in headers:
        lists.setdefault(name, []).append(value)
    return {name: ", ".join(values) for name, values in lists.items()}


def named(code: int | None) -> str:
    """Return an HTTP/2 error code in brackets, by its name."""
    if code is None:
        return ""
    return f" ({ErrorCode(code).name})" if code in set(ErrorCode) else f" (HTTP/2 error code {code})"


def _nonsense(fault: ProtocolError, clock: Clock, host: str) -> LLMError:
    if clock.answering:
        return LLMResponseError(f"The answer of {host} breaks the rules of HTTP: {fault}", status_code=200)
    return LLMResponseError(f"{host} does not answer as HTTP demands: {fault}", status_code=None)


class _Silent(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING


def silence_hpack() -> None:
    """Keep hpack from logging header values, the key among them, at DEBUG."""
    for name in ("hpack.hpack", "hpack.table"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Silent) for f in logger.filters):
            logger.addFilter(_Silent())
