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
from jazz_llm.transport.faults import error_for, never_processed, silence_hpack

OF_HTTPX = [value for value in vars(httpx).values() if inspect.isclass(value) and issubclass(value, httpx.TransportError)]


def clock(*, sent: bool = True, answering: bool = False) -> Clock:
    made = Clock(Timeouts(read=60.0), streams=True)
    made.sent, made.answering = sent, answering
    return made


@pytest.mark.parametrize("answering", [False, True])
@pytest.mark.parametrize("kind", OF_HTTPX, ids=lambda kind: kind.__name__)
def test_every_transport_exception_is_mapped(kind: type[httpx.TransportError], answering: bool) -> None:
    fault = kind("what went wrong")
    error = error_for(fault, clock(answering=answering), "host", ours=False)
    assert isinstance(error, LLMError)
    assert (error.__cause__, error.__context__) == (None, None)


def test_every_exception_of_httpcore_reaches_us_as_one_of_httpx() -> None:
    from httpx._transports.default import _load_httpcore_exceptions

    mapped = _load_httpcore_exceptions()
    raised = [v for v in vars(httpcore).values() if inspect.isclass(v) and issubclass(v, Exception)]
    missing = {v.__name__ for v in raised} - {v.__name__ for v in mapped}
    assert missing == {"ConnectionNotAvailable"}  # which the pool handles itself before the answer begins


CASES = [
    (httpx.ConnectError("refused"), {"sent": False}, LLMConnectionError, {"maybe_processed": False, "retryable": True}),
    (httpx.ConnectError("certificate: expired"), {"sent": False}, LLMConnectionError, {"maybe_processed": False, "retryable": False}),
    (httpx.ProxyError("407"), {}, LLMConnectionError, {"maybe_processed": False}),
    (httpx.ReadError("reset"), {}, LLMConnectionError, {"maybe_processed": True, "retryable": True}),
    (httpx.WriteError("pipe"), {"sent": False}, LLMConnectionError, {"maybe_processed": False, "retryable": True}),
    (httpx.RemoteProtocolError("Server disconnected without sending a response."), {}, LLMConnectionError, {"maybe_processed": True}),
    (httpx.RemoteProtocolError("illegal status line"), {}, LLMResponseError, {"retryable": False}),
    (httpx.ReadError("reset"), {"answering": True}, LLMStreamTruncatedError, {"retryable": True}),
    (httpx.RemoteProtocolError("peer closed connection without sending complete message body"), {"answering": True}, LLMStreamTruncatedError, {}),
    (httpx.RemoteProtocolError("illegal chunk header"), {"answering": True}, LLMResponseError, {}),
    (httpx.RemoteProtocolError("<StreamReset stream_id:1, error_code:2, remote_reset:True>"), {"answering": True}, LLMStreamTruncatedError, {}),
    (httpx.RemoteProtocolError("<StreamReset stream_id:1, error_code:11, remote_reset:True>"), {}, LLMRateLimitError, {"retryable": True}),
    (httpx.UnsupportedProtocol("socks"), {}, LLMConfigurationError, {}),
    (httpx.PoolTimeout("full"), {}, LLMTimeoutError, {"phase": "pool"}),
    (httpx.ConnectTimeout(""), {}, LLMTimeoutError, {"phase": "connect"}),
]


@pytest.mark.parametrize(("fault", "state", "cls", "details"), CASES)
def test_what_a_fault_means(fault: Exception, state: dict, cls: type[LLMError], details: dict) -> None:
    error = error_for(fault, clock(**state), "host", ours=True)
    assert type(error) is cls
    assert {name: getattr(error, name) for name in details} == details


def test_a_slip_of_httpcore_is_a_lost_connection_and_a_users_own_error_stays() -> None:
    slip = ValueError("semaphore released too many times")
    assert type(error_for(slip, clock(), "host", ours=True)) is LLMConnectionError
    assert error_for(slip, clock(), "host", ours=False) is slip


def test_a_reset_is_named() -> None:
    fault = httpx.RemoteProtocolError("<StreamReset stream_id:1, error_code:2, remote_reset:True>")
    assert "INTERNAL_ERROR" in str(error_for(fault, clock(answering=True), "host", ours=True))


def test_a_call_that_was_interrupted_says_so_whatever_broke() -> None:
    interrupted = clock()
    interrupted.interrupt("closed")
    assert isinstance(error_for(httpx.ReadError("closed"), interrupted, "host", ours=True), LLMClosedError)


@pytest.mark.parametrize(
    ("fault", "state", "unprocessed"),
    [
        (httpx.ReadError("reset"), {"sent": False}, True),
        (httpx.ReadError("reset"), {"sent": True}, False),
        (httpx.ConnectError("refused"), {"sent": False}, False),  # the retries' business, with a wait between
        (httpx.PoolTimeout("full"), {"sent": False}, False),
        (httpx.RemoteProtocolError("<StreamReset stream_id:1, error_code:7, remote_reset:True>"), {}, True),
        (httpx.RemoteProtocolError("<StreamReset stream_id:1, error_code:7, remote_reset:True>"), {"answering": True}, False),
        (httpx.RemoteProtocolError("<StreamReset stream_id:1, error_code:2, remote_reset:True>"), {}, False),
        (httpx.RemoteProtocolError("<ConnectionTerminated error_code:0, last_stream_id:0, additional_data:None>"), {}, True),
        (httpx.RemoteProtocolError("<ConnectionTerminated error_code:0, last_stream_id:1, additional_data:None>"), {}, False),
    ],
)
def test_what_the_server_provably_never_began(fault: Exception, state: dict, unprocessed: bool) -> None:
    assert never_processed(fault, clock(**state)) is unprocessed


def test_hpack_logs_no_header(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    silence_hpack()
    silence_hpack()
    for name in ("hpack.hpack", "hpack.table"):
        logging.getLogger(name).debug("Adding (b'authorization', b'Bearer sk') to the header table")
        assert len([f for f in logging.getLogger(name).filters if type(f).__name__ == "_Silent"]) == 1
    assert "sk" not in caplog.text
