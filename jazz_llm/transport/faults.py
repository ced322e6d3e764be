"""What went wrong below -> the package's errors.

httpx's exceptions carry the request and so the key: none of them is ever chained to ours.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import httpx

from ..errors import (
    LLMConfigurationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMResponseError,
    LLMStreamTruncatedError,
    LLMTimeoutError,
)

if TYPE_CHECKING:
    from ..errors import Phase
    from ..timing import Clock

# RFC 9113, section 7.
_REFUSED_STREAM, _ENHANCE_YOUR_CALM = 7, 11
_H2_CODES = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
]
_TIMEOUTS: tuple[tuple[type[httpx.TimeoutException], Phase], ...] = (
    (httpx.ConnectTimeout, "connect"),
    (httpx.PoolTimeout, "pool"),
    (httpx.WriteTimeout, "write"),
)


def error_for(fault: Exception, clock: Clock, host: str, *, ours: bool) -> Exception:
    """Return the error that a fault below means for the call that ``clock`` belongs to.

    ``ours``: it comes out of our own pools, where whatever is not httpx's is a slip of httpcore (FAULTS.md names several);
    out of a user's transport that is the user's own error, and returned as it is.
    """
    if clock.reason is not None:
        return clock.failure()
    if not ours and not isinstance(fault, httpx.HTTPError | httpx.InvalidURL | LLMError):
        return fault
    if isinstance(fault, httpx.TimeoutException):
        return _timeout(fault, clock)
    if isinstance(fault, LLMError):
        return fault
    if isinstance(fault, httpx.UnsupportedProtocol | httpx.InvalidURL | ImportError):
        return LLMConfigurationError(str(fault))
    code = _reset_code(fault)
    if code == _ENHANCE_YOUR_CALM:
        return LLMRateLimitError(f"{host} asks for fewer requests (ENHANCE_YOUR_CALM).", retryable=True, code="overloaded")
    if isinstance(fault, httpx.LocalProtocolError):
        return LLMConnectionError(f"The request to {host} could not be sent.", maybe_processed=clock.sent)
    if clock.answering:
        return _lost_in_the_answer(fault, code, host)
    if isinstance(fault, httpx.ConnectError | httpx.ProxyError):
        retryable = "certificate" not in str(fault).lower()
        return LLMConnectionError(f"No connection to {host}: {fault}", maybe_processed=False, retryable=retryable)
    if isinstance(fault, httpx.RemoteProtocolError) and code is None and not _lost(fault):
        return LLMResponseError(f"{host} does not speak HTTP: {fault}", status_code=None)
    return LLMConnectionError(
        f"The connection to {host} was lost before the answer began{_named(code)}: {_words(fault)}",
        maybe_processed=clock.sent,
        retryable=True,
    )


def never_processed(fault: Exception, clock: Clock) -> bool:
    """Say whether the server provably never started on the request, so that it may be sent again at once."""
    if clock.answering or clock.reason is not None or isinstance(fault, httpx.TimeoutException | httpx.ConnectError):
        return False
    if _reset_code(fault) == _REFUSED_STREAM or _goaway_last_id(fault) == 0:
        return True
    return isinstance(fault, httpx.NetworkError | httpx.RemoteProtocolError) and not clock.sent


def _timeout(fault: httpx.TimeoutException, clock: Clock) -> LLMError:
    if clock.remaining() == 0.0:
        return clock.failure()
    known: list[Phase] = [phase for kind, phase in _TIMEOUTS if isinstance(fault, kind)]
    phase = known[0] if known else clock.phase
    return LLMTimeoutError(f"Timed out ({phase}).", phase=phase)


def _lost_in_the_answer(fault: Exception, code: int | None, host: str) -> LLMError:
    if isinstance(fault, httpx.RemoteProtocolError) and code is None and not _lost(fault):
        return LLMResponseError(f"The answer of {host} breaks the rules of HTTP: {fault}", status_code=200)
    return LLMStreamTruncatedError(
        f"The connection to {host} was lost in the middle of the answer{_named(code)}: {_words(fault)}", retryable=True
    )


def _lost(fault: Exception) -> bool:
    """Part a peer that went away from one that talks nonsense; h11 and httpcore tell them apart by their words alone."""
    return re.search(r"peer closed connection|disconnected|ConnectionTerminated", str(fault)) is not None


def _words(fault: Exception) -> str:
    return "closed" if "<" in str(fault) else str(fault) or type(fault).__name__


def _named(code: int | None) -> str:
    if code is None:
        return ""
    return f" ({_H2_CODES[code]})" if code < len(_H2_CODES) else f" (HTTP/2 error code {code})"


def _reset_code(fault: Exception) -> int | None:
    found = re.search(r"StreamReset.*?error_code:(?:ErrorCodes\.)?(\w+)", str(fault))
    if found is None:
        return None
    word = found.group(1)
    return int(word) if word.isdigit() else _H2_CODES.index(word) if word in _H2_CODES else None


def _goaway_last_id(fault: Exception) -> int | None:
    found = re.search(r"ConnectionTerminated.*?last_stream_id:(\d+)", str(fault))
    return int(found.group(1)) if found else None


class _Silent(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING


def silence_hpack() -> None:
    """Keep hpack from logging header values, the key among them, at DEBUG."""
    for name in ("hpack.hpack", "hpack.table"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Silent) for f in logger.filters):
            logger.addFilter(_Silent())
