from __future__ import annotations

import inspect
import logging

import httpcore
import httpx
import pytest

from jazz_llm import (
    LLMClosedError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMResponseError,
    LLMStreamTruncatedError,
    LLMTimeoutError,
)
from jazz_llm.timing import Clock, Timeouts
from jazz_llm.transport.exchange import ConnectError, Fault, LostError, ProtocolError
from jazz_llm.transport.faults import error_of, joined, never_processed, silence_hpack
from jazz_llm.transport.foreign import _translated

OF_HTTPX = [value for value in vars(httpx).values() if inspect.isclass(value) and issubclass(value, httpx.TransportError)]


def clock(*, sent: bool = True, answering: bool = False) -> Clock:
    made = Clock(Timeouts(read=60.0), streams=True)
    made.sent, made.answering = sent, answering
    return made


CASES = [
    (ConnectError("refused"), {"sent": False}, LLMConnectionError, {"maybe_processed": False, "retryable": True}),
    (ConnectError("certificate: expired", retryable=False), {"sent": False}, LLMConnectionError, {"maybe_processed": False, "retryable": False}),
    (LostError("reset"), {}, LLMConnectionError, {"maybe_processed": True, "retryable": True}),
    (LostError("reset"), {"sent": False}, LLMConnectionError, {"maybe_processed": False, "retryable": True}),
    (LostError("GOAWAY", unprocessed=True), {}, LLMConnectionError, {"maybe_processed": False, "retryable": True}),
    (LostError("reset"), {"answering": True}, LLMStreamTruncatedError, {"retryable": True}),
    (LostError("reset", code=2), {"answering": True}, LLMStreamTruncatedError, {}),
    (LostError("reset", code=11), {}, LLMRateLimitError, {"retryable": True, "code": "overloaded"}),
    (ProtocolError("no status line"), {}, LLMResponseError, {"retryable": False, "status_code": None}),
    (ProtocolError("bad chunk size"), {"answering": True}, LLMResponseError, {"status_code": 200}),
]


@pytest.mark.parametrize(("fault", "state", "cls", "details"), CASES)
def test_what_a_fault_means(fault: Fault, state: dict, cls: type[LLMError], details: dict) -> None:
    error = error_of(fault, clock(**state), "host")
    assert type(error) is cls
    assert {name: getattr(error, name) for name in details} == details
    assert "host" in str(error)


def test_what_is_no_fault_stays_as_it_is() -> None:
    for error in (ValueError("a slip"), LLMConfigurationError("verify")):
        assert error_of(error, clock(), "host") is error


@pytest.mark.parametrize(("code", "name"), [(2, "INTERNAL_ERROR"), (8, "CANCEL"), (99, "HTTP/2 error code 99")])
def test_a_reset_is_named(code: int, name: str) -> None:
    assert name in str(error_of(LostError("reset", code=code), clock(answering=True), "host"))


def test_a_call_that_was_interrupted_says_so_whatever_broke() -> None:
    interrupted = clock()
    interrupted.interrupt("closed")
    assert isinstance(error_of(LostError("closed"), interrupted, "host"), LLMClosedError)


@pytest.mark.parametrize(
    ("fault", "state", "unprocessed"),
    [
        (LostError("reset"), {"sent": False}, True),
        (LostError("reset"), {"sent": True}, False),
        (LostError("refused", unprocessed=True), {"sent": True}, True),
        (LostError("refused", unprocessed=True), {"answering": True}, False),
        (ConnectError("refused"), {"sent": False}, False),  # the retries' business, with a wait between
        (ProtocolError("nonsense"), {"sent": False}, False),
    ],
)
def test_what_the_server_provably_never_began(fault: Fault, state: dict, unprocessed: bool) -> None:
    assert never_processed(fault, clock(**state)) is unprocessed


def test_headers_that_come_twice_are_joined() -> None:
    assert joined((("a", "1"), ("b", "2"))) == {"a": "1", "b": "2"}
    assert joined((("a", "1"), ("b", "2"), ("a", "3"))) == {"a": "1, 3", "b": "2"}


# --- Transports that are not ours


@pytest.mark.parametrize("answering", [False, True])
@pytest.mark.parametrize("kind", OF_HTTPX, ids=lambda kind: kind.__name__)
def test_every_exception_of_httpx_is_mapped(kind: type[httpx.TransportError], answering: bool) -> None:
    state = clock(answering=answering)
    error = error_of(_translated(kind("what went wrong"), state, ours=False), state, "host")
    assert isinstance(error, LLMError)
    assert (error.__cause__, error.__context__) == (None, None)


def test_every_exception_of_httpcore_reaches_us_as_one_of_httpx() -> None:
    from httpx._transports.default import _load_httpcore_exceptions

    mapped = _load_httpcore_exceptions()
    raised = [v for v in vars(httpcore).values() if inspect.isclass(v) and issubclass(v, Exception)]
    missing = {v.__name__ for v in raised} - {v.__name__ for v in mapped}
    assert missing == {"ConnectionNotAvailable"}  # which the pool handles itself before the answer begins


RESET = "<StreamReset stream_id:1, error_code:{}, remote_reset:True>"
TRANSLATED = [
    (httpx.ConnectError("certificate: expired"), {"sent": False}, LLMConnectionError, {"maybe_processed": False, "retryable": False}),
    (httpx.ProxyError("407"), {}, LLMConnectionError, {"maybe_processed": False}),
    (httpx.WriteError("pipe"), {"sent": False}, LLMConnectionError, {"maybe_processed": False}),
    (httpx.RemoteProtocolError("Server disconnected without sending a response."), {}, LLMConnectionError, {"maybe_processed": True}),
    (httpx.RemoteProtocolError("illegal status line"), {}, LLMResponseError, {"retryable": False}),
    (httpx.RemoteProtocolError("peer closed connection without sending complete message body"), {"answering": True}, LLMStreamTruncatedError, {}),
    (httpx.RemoteProtocolError("illegal chunk header"), {"answering": True}, LLMResponseError, {}),
    (httpx.RemoteProtocolError(RESET.format(2)), {"answering": True}, LLMStreamTruncatedError, {}),
    (httpx.RemoteProtocolError(RESET.format(7)), {}, LLMConnectionError, {"maybe_processed": False}),
    (httpx.RemoteProtocolError(RESET.format("ErrorCodes.ENHANCE_YOUR_CALM")), {}, LLMRateLimitError, {"retryable": True}),
    (httpx.RemoteProtocolError("<ConnectionTerminated error_code:0, last_stream_id:0, additional_data:None>"), {}, LLMConnectionError, {"maybe_processed": False}),
    (httpx.RemoteProtocolError("<ConnectionTerminated error_code:0, last_stream_id:1, additional_data:None>"), {}, LLMConnectionError, {"maybe_processed": True}),
    (httpx.UnsupportedProtocol("gopher"), {}, LLMConfigurationError, {}),
    (httpx.PoolTimeout("full"), {}, LLMTimeoutError, {"phase": "pool"}),
    (httpx.ConnectTimeout(""), {}, LLMTimeoutError, {"phase": "connect"}),
]


@pytest.mark.parametrize(("raised", "state", "cls", "details"), TRANSLATED)
def test_what_an_exception_of_httpx_means(raised: Exception, state: dict, cls: type[LLMError], details: dict) -> None:
    now = clock(**state)
    error = error_of(_translated(raised, now, ours=True), now, "host")
    assert type(error) is cls
    assert {name: getattr(error, name) for name in details} == details


def test_a_slip_of_httpcore_is_a_lost_connection_and_a_users_own_error_stays() -> None:
    slip = ValueError("semaphore released too many times")
    assert type(error_of(_translated(slip, clock(), ours=True), clock(), "host")) is LLMConnectionError
    assert _translated(slip, clock(), ours=False) is slip


def test_hpack_logs_no_header(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    silence_hpack()
    silence_hpack()
    for name in ("hpack.hpack", "hpack.table"):
        logging.getLogger(name).debug("Adding (b'authorization', b'Bearer sk') to the header table")
        assert len([f for f in logging.getLogger(name).filters if type(f).__name__ == "_Silent"]) == 1
    assert "sk" not in caplog.text
