"""What is told of a call while it runs: to the caller's hooks, and to the logger ``jazz_llm``.

A line of the log is made of: the operation, the provider, the model that was asked for, the URL without its query, times and
counts, the HTTP version and status, the request's id (``streams`` has taken the key out of it), a finish_reason of the five
known, and of an error its class, status and phase. Never of messages, bodies, headers, what an error says in words (servers
quote the prompt, and the key), or what a hook raised in words.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .errors import LLMError, LLMStatusError, LLMTimeoutError
from .hooks import ErrorRecord, Hooks, RequestRecord, ResponseRecord, RetryRecord
from .request import endpoint_of

if TYPE_CHECKING:
    from .request import Call
    from .types import LLMResponse

LOGGER = logging.getLogger("jazz_llm")
LOGGER.addHandler(logging.NullHandler())
_VARIABLE = "JAZZ_LLM_LOG"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "error"})
_ODD = re.compile(r"[^\w.:/@+*~-]+")  # what is in no name: line ends and escape sequences would write lines of their own
_LONGEST = 128  # characters of a name that is a stranger's

# The hooks that run around this point: a call that one of them makes is not told to it, or it would call without end.
_telling: ContextVar[tuple[Hooks, ...]] = ContextVar("_telling", default=())


def watch(call: Call) -> Watch | None:
    """Return who watches a call, None where nobody does: all that such a call pays is this."""
    return Watch(call) if call.config.hooks or LOGGER.isEnabledFor(logging.INFO) else None


class Watch:
    """What one call reports: its beginning, its tries, and its end, once, whoever comes first to say how it ended."""

    __slots__ = ("_call", "_end", "_hooks", "_record", "_started")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._end = threading.Lock()  # taken by who tells the end, and never given back
        self._hooks: list[Hooks] = []  # those that were told of the beginning
        self._started = time.perf_counter()
        self._record = _record_of(call)

    def begin(self) -> None:
        """Tell that the call begins."""
        record, call = self._record, self._call
        self._debug("begins: %s %s, %d bytes", call.method, record.url, len(call.body))
        for hooks in call.config.hooks:
            if not any(hooks is other for other in _telling.get()):
                self._hooks.append(hooks)
                _run("on_request", hooks, record)

    def answered(self, attempt: int, status: int, http_version: str, seconds: float) -> None:
        """Tell the log what a try was answered."""
        self._debug("try %d: %d %s, ms=%.0f", attempt, status, http_version, seconds * 1e3)

    def waits(self, error: LLMError, seconds: float) -> None:
        """Tell of a try that failed and is made again after some seconds."""
        attempt = error.attempts
        self._debug("try %d: %s, again in %.2f s", attempt, _class_of(error), seconds)
        self._tell("on_retry", RetryRecord, attempt=attempt, error=error, wait_s=seconds)

    def finished(self, response: LLMResponse[Any]) -> None:
        """Tell that the call ended with its answer."""
        if self._ends():
            reason = response.finish_reason
            self._log(reason if reason in _REASONS else "other" if reason else "ok", response, response.metrics.attempts)
            self._tell("on_response", ResponseRecord, response=response)

    def failed(self, error: Exception, attempts: int) -> None:
        """Tell that the call failed."""
        if self._ends():
            self._log(_class_of(error), error, attempts)
            self._tell("on_error", ErrorRecord, error=error)

    def stopped(self, so_far: Callable[[], LLMResponse[Any] | None], attempts: int) -> None:
        """Tell that the caller left before the end; ``so_far`` makes what had come, and is asked by one thread only."""
        if self._ends():
            try:
                response = so_far()
            except Exception:  # an interrupt in the middle of a read may leave half of it
                response = None
            self._log("stopped", response, attempts)
            self._tell("on_response", ResponseRecord, response=response, stopped=True)

    def _ends(self) -> bool:
        """Say whether it is for this caller to tell the end; nobody is told while the interpreter takes itself apart."""
        return self._end.acquire(blocking=False) and not sys.is_finalizing()

    def _debug(self, text: str, *values: object) -> None:
        if LOGGER.isEnabledFor(logging.DEBUG):
            LOGGER.debug(f"%s {text}", _name(self._record), *values)  # noqa: G004  # the text is one of three, never data

    def _log(self, end: str, told: Any, attempts: int) -> None:
        """Write the one line of a call; ``told`` is its response or error, or None."""
        if not LOGGER.isEnabledFor(logging.INFO):
            return
        usage = getattr(told, "usage", None)
        tokens = "-" if usage is None else f"{usage.prompt_tokens}+{usage.completion_tokens}{'~' * usage.estimated}"
        LOGGER.info(
            "%s end=%s ms=%.0f tokens=%s attempts=%d request_id=%s",
            _name(self._record),
            end,
            (time.perf_counter() - self._started) * 1e3,
            tokens,
            attempts,
            _shown(getattr(told, "request_id", None)),
        )

    def _tell(self, name: str, kind: type, **fields: Any) -> None:
        if self._hooks:
            _run_all(name, self._hooks, kind(request=self._record, **fields))


def _record_of(call: Call) -> RequestRecord:
    return RequestRecord(
        id=os.urandom(8).hex(),
        operation=call.kind,
        provider=call.config.provider_name,
        model=str(call.fields.get("model", "")),
        url=endpoint_of(call.url),
        streams=call.streams,
        body=call.fields,
    )


def _run_all(name: str, hooks: list[Hooks], record: Any) -> None:
    """Call the hook of each, also where an interrupt passes through one of them."""
    try:
        _run(name, hooks[0], record)
    finally:
        if len(hooks) > 1:
            _run_all(name, hooks[1:], record)


def _run(name: str, hooks: Hooks, record: Any) -> None:
    """Call a hook, if there is one; the log is told what it raises, but not in its words."""
    hook = getattr(hooks, name)
    if hook is None:
        return
    before = _telling.set((*_telling.get(), hooks))
    try:
        hook(record)
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
        LOGGER.error("%s raised %s at %s; the call goes on.", name, type(error).__name__, where)  # noqa: TRY400  # no words
    finally:
        _telling.reset(before)


def _name(record: RequestRecord) -> str:
    model = _shown(record.model or None)
    return f"{record.operation} {record.id} provider={record.provider or '-'} model={model}"


def _class_of(error: Exception) -> str:
    name = type(error).__name__
    if isinstance(error, LLMTimeoutError):
        return f"{name}({error.phase})"
    if isinstance(error, LLMStatusError) and error.status_code is not None:
        return f"{name}({error.status_code})"
    return name


def _shown(text: str | None) -> str:
    """Return a name as one short word."""
    return "-" if text is None else _ODD.sub("_", text)[:_LONGEST]


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to whatever stderr is by then: what draws on the terminal puts its own there, to print lines above the drawing."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """Return stderr."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless a handler of the program's own writes it there too."""
        theirs = (other.level for other in logging.root.handlers if getattr(other, "stream", None) is sys.stderr)
        if not any(record.levelno >= level for level in theirs):
            super().emit(record)


def _log_to_stderr(level: str | None) -> None:
    """Write the log to stderr as ``JAZZ_LLM_LOG`` asks for."""
    if not level:
        return
    if level.lower() not in _LEVELS:
        warnings.warn(f"{_VARIABLE} must be debug or info, not {level[:20]!r}: nothing is logged.", stacklevel=2)
        return
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter(_FORMAT))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(_LEVELS[level.lower()])


_log_to_stderr(os.environ.get(_VARIABLE))
