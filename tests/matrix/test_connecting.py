"""Rows 1 to 8: the ways in which a connection is made, or not, or one more."""

from __future__ import annotations

import datetime as dt
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest

from jazz_llm import LLMConnectionError, LLMTimeoutError
from jazz_llm.testing import Authority

from ..frame_server import Answer, FrameServer
from .conftest import ALWAYS, PATIENCE, SHORT, SLACK, Case, where

LINUX = pytest.mark.skipif(not hasattr(select, "epoll"), reason="only Linux drops connections to a full queue")


@contextmanager
def unused_port() -> Iterator[int]:
    """Yield a port that refuses; whoever binds it afterwards answers."""
    with closing(socket.socket()) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def scheme(case: Case) -> str:
    return "http" if case.wire == "h1" else "https"


def serve_on(case: Case, port: int) -> None:
    """Answer from now on at a port that did not."""
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    case.server = case.stack.enter_context(
        FrameServer(tls=None if case.wire == "h1" else case.authority, http2=case.http2, listener=listener)
    )


@where()
def test_row_01_refused(case: Case) -> None:
    with unused_port() as port:
        case.make_client(base_url=f"{scheme(case)}://127.0.0.1:{port}", verify=case.authority.path)
        error = case.fails(LLMConnectionError)
    assert (error.maybe_processed, error.retryable, error.attempts, error.partial) == (False, True, 3, None)
    assert "refused" in str(error).lower()
    serve_on(case, port)


@where("h1")
def test_row_01_a_name_that_does_not_exist(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    known = False
    asked: list[Any] = []

    def resolve(host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with unused_port() as port:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        case.make_client(base_url=f"http://no-such-host.example:{port}", trust_env=False)
        error = case.fails(LLMConnectionError)
        assert (error.maybe_processed, error.attempts, len(asked)) == (False, 3, 3)
        assert "no-such-host.example" in str(error)
    known = True
    serve_on(case, port)


def twenty_time_out(case: Case, phase: str = "connect") -> None:
    started = time.monotonic()
    errors = case.at_once(20, timeout=SHORT, max_retries=0)
    assert time.monotonic() - started < SHORT + SLACK
    assert {(type(error), getattr(error, "phase", None)) for error in errors} == {(LLMTimeoutError, phase)}


@LINUX
@where()
def test_row_02_a_black_hole_and_twenty_callers(case: Case) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        crowd = [case.stack.enter_context(closing(socket.socket())) for _ in range(4)]
        for sock in crowd:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        case.make_client(base_url=f"{scheme(case)}://127.0.0.1:{port}", verify=case.authority.path)
        twenty_time_out(case)
        error = case.fails(LLMTimeoutError, within=3 * SHORT + SLACK, timeout=SHORT)
        assert (error.phase, error.attempts) == ("connect", 3)
        for sock in crowd:
            sock.close()
    serve_on(case, port)


@where("tls h2")
def test_row_03_a_tls_handshake_that_stalls_and_twenty_callers(case: Case) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listener:
        case.make_client(base_url=f"https://127.0.0.1:{listener.getsockname()[1]}", verify=case.authority.path)
        twenty_time_out(case)
        error = case.fails(LLMTimeoutError, within=3 * SHORT + SLACK, timeout=SHORT)
        assert (error.phase, error.attempts) == ("connect", 3)
        port = listener.getsockname()[1]
    serve_on(case, port)


class Elsewhere(Authority):
    """Signs for another host, or for a time that has passed."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def server_context(self, alpn: Any = ()) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
        cert = (
            self._ca.issue_cert("127.0.0.1", not_before=past, not_after=past + dt.timedelta(days=1))
            if self.name == "expired"
            else self._ca.issue_cert("other.example")
        )
        cert.configure_cert(context)
        return context


@where("tls h2")
@pytest.mark.parametrize("how", ["wrong host", "expired", "unknown authority"])
def test_row_04_a_certificate_that_is_not_good(case: Case, how: str) -> None:
    case.face()
    good, other = case.llm, Authority()
    authority = case.authority if how == "unknown authority" else Elsewhere(how)
    with FrameServer(tls=authority, http2=case.http2) as bad:
        case.make_client(base_url=bad.url, verify=(other if how == "unknown authority" else authority).path)
        error = case.fails(LLMConnectionError)
        assert (error.maybe_processed, error.retryable, error.attempts) == (False, False, 1)
        assert "certificate" in str(error).lower()
        assert bad.connections == []
    case.llm = good


@where("tls")
@pytest.mark.parametrize("alpn", [("http/1.1",), ()], ids=["http/1.1", "none"])
def test_row_05_alpn_gives_http_1(case: Case, alpn: tuple[str, ...]) -> None:
    case.face(server_alpn=alpn)
    for _ in range(2):
        response = case.call()
        assert (response.text, response.metrics.http_version) == ("Hello", "HTTP/1.1")
    assert len(case.server.connections) == 1


@where("h2")
def test_row_05_alpn_gives_http_2(case: Case) -> None:
    case.face()
    for _ in range(2):
        response = case.call()
        assert (response.text, response.metrics.http_version) == ("Hello", "HTTP/2")
    assert len(case.server.connections) == 1


@where("h1 tls h2")
def test_row_06_all_is_full(case: Case) -> None:
    """Two connections of one stream each: the third call waits, in vain."""

    async def held(answer: Answer) -> None:
        await case.until_said(answer, "enough")
        answer.good()

    limits = httpx.Limits(max_connections=2, max_keepalive_connections=2)
    case.face(held, times=ALWAYS, server_settings={"max_concurrent_streams": 1}, limits=limits)
    case.call("next")  # the client knows what is spoken, and how many streams there are
    waiting = [case.start() for _ in range(2)]
    case.server.wait_for(lambda _: len(case.asked) == 2)
    error = case.fails(LLMTimeoutError, timeout=httpx.Timeout(PATIENCE, pool=SHORT), within=SHORT + SLACK)
    assert (error.phase, error.attempts) == ("pool", 1)
    queued = case.start()
    case.say("enough")
    assert [future.result(5).text for future in (*waiting, queued)] == ["Hello"] * 3
    assert (len(case.server.connections), len(case.asked)) == (2, 3)


@where("h2")
@pytest.mark.parametrize("streams", [1, 10, 100])
def test_row_07_a_limit_on_streams(case: Case, streams: int) -> None:
    case.face(server_settings={"max_concurrent_streams": streams}, limits=httpx.Limits(max_connections=4, max_keepalive_connections=4))
    for _ in range(2):
        results = case.at_once(40)
        assert [getattr(result, "text", result) for result in results] == ["Hello"] * 40
    assert len(case.server.connections) <= 4
    assert all(connection.peak <= streams for connection in case.server.connections)


@where("h2")
def test_row_07_before_the_settings_have_come(case: Case) -> None:
    """The limit is told late: calls that begin at once must not have gone past it (the server counts)."""

    async def script(connection: Any) -> None:
        await connection.until(lambda _: True)
        connection.settings(max_concurrent_streams=2)
        while True:
            connection.task(case._answer(await connection.request()))

    case.face(script=script, server_settings=None, limits=httpx.Limits(max_connections=10, max_keepalive_connections=10))
    results = case.at_once(20)
    assert [getattr(result, "text", result) for result in results] == ["Hello"] * 20


@where("h2")
@pytest.mark.parametrize("lowered", [0, 1, 3])
def test_row_08_the_limit_is_lowered_in_flight(case: Case, lowered: int) -> None:
    calls = 8

    async def held(answer: Answer) -> None:
        answer.part()
        await case.until_said(answer, "go on")
        answer.rest()

    case.face(held, times=calls, server_settings={"max_concurrent_streams": 100})
    under_way = [case.start() for _ in range(calls)]
    case.server.wait_for(lambda _: len(case.asked) == calls)
    for connection in case.server.connections:
        case.server.do(lambda c: c.settings(max_concurrent_streams=lowered), connection)
    more = [case.start() for _ in range(5)]
    assert [future.result(5).text for future in more] == ["Hello"] * 5
    case.say("go on")
    assert [future.result(5).text for future in under_way] == ["Hello"] * calls
