"""Names, connections, TLS, proxies, pools: the ways in which a connection is made or not."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest

from jazz_llm import LLMConnectionError, LLMError, LLMTimeoutError, OpenAICompatibleLLM, RetryPolicy
from jazz_llm.testing import Authority, FakeServer, Reply, Request
from jazz_llm.transport import names, tls

from ..colours import Async, Sync

Colour = Sync | Async
SHORT = 0.3


def failure(colour: Colour, **arguments: Any) -> tuple[LLMError, float]:
    """Return what a call without retries raises, and after how many seconds."""
    started = time.monotonic()
    with OpenAICompatibleLLM("m", max_retries=0, **arguments) as llm, pytest.raises(LLMError) as caught:
        colour.generate(llm)
    return caught.value, time.monotonic() - started


@contextmanager
def deaf_listener() -> Iterator[str]:
    """Yield the URL of a listener that accepts nobody and whose queue is full: a connect black hole."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        crowd = [socket.socket() for _ in range(4)]
        for sock in crowd:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for sock in crowd:
                sock.close()


@contextmanager
def silent_listener() -> Iterator[str]:
    """Yield the URL of a listener that lets everybody in and says nothing: a TLS handshake that stalls."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


def test_refused(colour: Colour) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        error, _ = failure(colour, base_url=f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert isinstance(error, LLMConnectionError)
    assert (error.maybe_processed, error.retryable) == (False, True)
    assert "refused" in str(error)


def test_a_refused_connection_is_tried_again(colour: Colour) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with OpenAICompatibleLLM("m", base_url=url, retry=RetryPolicy(initial=0.01)) as llm, pytest.raises(LLMConnectionError) as caught:
            colour.generate(llm)
    assert caught.value.attempts == 3


def test_a_name_that_does_not_exist(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(names.socket, "getaddrinfo", unknown)
    error, _ = failure(colour, base_url="http://no-such-host.example")
    assert isinstance(error, LLMConnectionError)
    assert not error.maybe_processed
    assert "No connection to no-such-host.example: Name or service not known" in str(error)


def test_a_resolver_that_hangs_is_bound_by_connect(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(names.socket, "getaddrinfo", lambda *_, **__: released.wait(10) and [])
    error, seconds = failure(colour, base_url="http://slow-name.example", timeout=SHORT)
    released.set()
    assert isinstance(error, LLMTimeoutError)
    assert error.phase == "connect"
    assert seconds < SHORT + 0.75


def test_the_next_address_is_tried(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer() as server, closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = int(server.url.rsplit(":", 1)[1])
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", a) for a in (unused.getsockname(), ("127.0.0.1", port))]
        monkeypatch.setattr(names.socket, "getaddrinfo", lambda *_, **__: addresses)
        with OpenAICompatibleLLM("m", base_url=f"http://two-addresses.example:{port}") as llm:
            assert colour.generate(llm).text == "Hello, world!"


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="only Linux drops connections to a full queue")
def test_a_black_hole_and_twenty_callers(colour: Colour) -> None:
    with deaf_listener() as url:
        errors, seconds = twenty(colour, url, {})
    assert {(type(e), e.phase) for e in errors} <= {(LLMTimeoutError, "connect"), (LLMTimeoutError, "pool")}
    assert seconds < SHORT + 0.75


def test_a_tls_handshake_that_stalls_and_twenty_callers(colour: Colour, authority: Authority) -> None:
    with silent_listener() as url:
        errors, seconds = twenty(colour, url, {"verify": authority.path})
    assert {(type(e), e.phase) for e in errors} <= {(LLMTimeoutError, "connect"), (LLMTimeoutError, "pool")}
    assert seconds < SHORT + 0.75


def twenty(colour: Colour, url: str, arguments: dict[str, Any]) -> tuple[list[Any], float]:
    with OpenAICompatibleLLM("m", base_url=url, timeout=SHORT, max_retries=0, **arguments) as llm:
        if colour.name == "sync":
            with ThreadPoolExecutor(20) as threads:
                started = time.monotonic()
                errors = list(threads.map(lambda _: caught_by(llm), range(20)))
        else:

            async def at_once() -> list[Any]:
                return await asyncio.gather(*(llm.agenerate("hi") for _ in range(20)), return_exceptions=True)

            started = time.monotonic()
            errors = asyncio.run(at_once())
    return errors, time.monotonic() - started


def caught_by(llm: OpenAICompatibleLLM) -> LLMError:
    with pytest.raises(LLMError) as caught:
        llm.generate("hi")
    return caught.value


# --- TLS


def test_an_unknown_authority(colour: Colour, authority: Authority) -> None:
    with FakeServer(tls=authority) as server:
        error, _ = failure(colour, base_url=server.url)
        server.errors.clear()
    assert isinstance(error, LLMConnectionError)
    assert (error.maybe_processed, error.retryable) == (False, False)
    assert "certificate" in str(error)


def test_a_wrong_host_name(colour: Colour, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(tls=authority) as server:
        port = int(server.url.rsplit(":", 1)[1])
        monkeypatch.setattr(names.socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))])
        error, _ = failure(colour, base_url=f"https://other.example:{port}", verify=authority.path)
        server.errors.clear()
    assert "certificate" in str(error)
    assert not error.retryable


def test_plain_text_where_tls_was_expected(colour: Colour, authority: Authority) -> None:
    with FakeServer() as server:
        error, _ = failure(colour, base_url=server.url.replace("http:", "https:"), verify=authority.path)
        server.errors.clear()
    assert isinstance(error, LLMConnectionError)
    assert not error.maybe_processed


def test_a_context_of_the_users_is_used_and_not_changed(colour: Colour, authority: Authority) -> None:
    context = authority.client_context()
    calls: list[Any] = []
    context.set_alpn_protocols = calls.append  # type: ignore[method-assign]
    with FakeServer(tls=authority) as server, OpenAICompatibleLLM("m", base_url=server.url, verify=context) as llm:
        assert colour.generate(llm).metrics.http_version == "HTTP/1.1"  # no ALPN on it, so no HTTP/2
    assert calls == []


def test_contexts_are_made_once_and_by_the_environment(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tls.context_for(True, None, http2=True, trust_env=False) is tls.context_for(True, None, http2=True, trust_env=False)
    assert tls.context_for(True, None, http2=True, trust_env=False) is not tls.context_for(True, None, http2=False, trust_env=False)
    monkeypatch.setenv("SSL_CERT_FILE", authority.path)
    assert len(tls.context_for(True, None, http2=True, trust_env=True).get_ca_certs()) == 1
    assert len(tls.context_for(True, None, http2=True, trust_env=False).get_ca_certs()) > 1


def test_tls_is_at_least_1_2() -> None:
    assert tls.context_for(True, None, http2=True, trust_env=False).minimum_version == ssl.TLSVersion.TLSv1_2


def test_no_verification_connects(colour: Colour, authority: Authority) -> None:
    with FakeServer(tls=authority) as server, pytest.warns(UserWarning, match="verify"):
        llm = OpenAICompatibleLLM("m", base_url=server.url, verify=False)
        with llm:
            assert colour.generate(llm).text == "Hello, world!"


def test_an_end_without_close_notify_is_no_end(colour: Colour, authority: Authority) -> None:
    """TCP may be cut by anybody on the way: over TLS only close_notify ends a message without a length."""

    async def cut(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream", "connection": "close"})
        await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n')
        reply._connection.write(b"")
        reply._connection._transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        await reply.cancelled()

    with FakeServer(cut, tls=authority, http2=False) as server, OpenAICompatibleLLM("m", base_url=server.url, verify=authority.path) as llm:
        with pytest.raises(LLMConnectionError) as caught:
            colour.stream(llm)
        server.errors.clear()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hel"


# --- proxies


class Proxy:
    """A forward proxy that speaks CONNECT and plain GET/POST; counts what it was asked."""

    def __enter__(self) -> Proxy:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            self.asked.append(f"{method} {target}")
            host, port = (target if method == "CONNECT" else httpx.URL(target).netloc.decode()).rsplit(":", 1)
            with socket.create_connection((host, int(port))) as server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    server.sendall(head)
                self._pump(client, server)

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        while True:
            for ready in select.select([one, other], [], [])[0]:
                data = ready.recv(65536)
                if not data:
                    return
                (other if ready is one else one).sendall(data)


@pytest.mark.parametrize("secure", [True, False])
def test_through_a_proxy(colour: Colour, authority: Authority, secure: bool) -> None:
    with Proxy() as proxy, FakeServer(tls=authority if secure else False) as server:
        with OpenAICompatibleLLM("m", base_url=server.url, verify=authority.path, proxy=proxy.url) as llm:
            response = colour.generate(llm)
    assert response.text == "Hello, world!"
    target = server.url.split("//")[1]
    assert proxy.asked == ([f"CONNECT {target}"] if secure else [f"POST {server.url}/v1/chat/completions"])
    assert response.metrics.http_version == ("HTTP/2" if secure else "HTTP/1.1")


def test_loopback_never_goes_through_a_proxy_from_the_environment(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with FakeServer() as server, OpenAICompatibleLLM("m", base_url=server.url) as llm:
        assert colour.generate(llm).text == "Hello, world!"


def test_which_proxy_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://secure-proxy:1")
    monkeypatch.setenv("HTTP_PROXY", "plain-proxy:2")
    monkeypatch.setenv("NO_PROXY", "inside.example,other.example:8443")
    proxies = names.Proxies(None, trust_env=True)
    assert proxies.of(("https", "api.example.com", 443)) == "http://secure-proxy:1"
    assert proxies.of(("http", "api.example.com", 80)) == "http://plain-proxy:2"
    assert proxies.of(("https", "inside.example", 443)) is None
    assert proxies.of(("https", "other.example", 8443)) is None
    assert proxies.of(("http", "localhost", 80)) is None
    assert names.Proxies(None, trust_env=False).of(("https", "api.example.com", 443)) is None
    assert names.Proxies("http://mine:3", trust_env=True).of(("http", "localhost", 80)) == "http://mine:3"


# --- pools


def test_a_full_pool(colour: Colour) -> None:
    async def hold(_: Request, reply: Reply) -> None:
        await reply.cancelled()

    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=4.0)
    with FakeServer(hold) as server:
        llm = OpenAICompatibleLLM("m", base_url=server.url, limits=limits, timeout=httpx.Timeout(5.0, pool=SHORT), max_retries=0)
        with llm:
            errors = one_waits(colour, llm, server)
    assert [(type(e).__name__, getattr(e, "phase", None)) for e in errors] == [("LLMTimeoutError", "pool")]


def one_waits(colour: Colour, llm: OpenAICompatibleLLM, server: FakeServer) -> list[LLMError]:
    def held() -> None:
        server.wait_for(lambda s: s.live == 1)

    if colour.name == "sync":
        holder = threading.Thread(target=lambda: caught_by(llm))
        holder.start()
        held()
        errors = [caught_by(llm)]
        llm.close()
        holder.join(5)
        return errors

    async def main() -> list[LLMError]:
        task = asyncio.create_task(llm.agenerate("hi"))
        await asyncio.to_thread(held)
        with pytest.raises(LLMError) as caught:
            await llm.agenerate("hi")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return [caught.value]

    return asyncio.run(main())


def test_a_stale_idle_connection_costs_nothing(colour: Colour) -> None:
    async def then_close(request: Request, reply: Reply) -> None:
        await reply.text("Hello")
        reply._connection.close()

    with FakeServer(then_close) as server, OpenAICompatibleLLM("m", base_url=server.url, max_retries=0) as llm:

        def gone() -> None:
            server.wait_for(lambda s: s.connections == 0)

        if colour.name == "sync":
            for _ in range(3):
                assert llm.generate("hi").metrics.attempts == 1
                gone()
        else:

            async def main() -> None:
                for _ in range(3):
                    assert (await llm.agenerate("hi")).metrics.attempts == 1
                    await asyncio.to_thread(gone)

            asyncio.run(main())


def test_a_request_of_which_a_part_went_out_is_not_sent_again_unasked(colour: Colour) -> None:
    asked: list[int] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                asked.append(len(client.recv(65536)))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = threading.Thread(target=serve)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with OpenAICompatibleLLM("m", base_url=url, max_retries=0) as llm, pytest.raises(LLMConnectionError) as caught:
            colour.generate(llm, "x" * 20_000_000)
        listener.shutdown(socket.SHUT_RDWR)
        server.join(5)
    assert caught.value.maybe_processed
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["a..b", "a" * 70, "xn--a"])
def test_a_name_that_cannot_be_one(colour: Colour, name: str) -> None:
    error, _ = failure(colour, base_url=f"http://{name}")
    assert isinstance(error, LLMConnectionError)


class NoReadiness(asyncio.SelectorEventLoop):
    """A loop that tells no readiness, as Windows' proactor loop does not."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        raise NotImplementedError

    def remove_reader(self, fd: Any) -> bool:
        raise NotImplementedError

    add_writer, remove_writer = add_reader, remove_reader


def test_a_loop_without_readiness(authority: Authority) -> None:
    with FakeServer(tls=authority) as server:

        async def main() -> None:
            async with OpenAICompatibleLLM("m", base_url=server.url, verify=authority.path) as llm:
                assert (await llm.agenerate("x" * 3_000_000)).text == "Hello, world!"
                assert await anext(aiter(llm.astream("hi"))) == "Hello"

        with asyncio.Runner(loop_factory=NoReadiness) as runner:
            runner.run(main())


@pytest.mark.parametrize("delays", range(12))
def test_an_interrupt_at_any_moment_never_leaks_a_cancellation(delays: int) -> None:
    """The alarm cancels the task that waits; that must never reach the caller as a cancellation, nor stay pending."""

    async def hold(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
        await reply.cancelled()

    async def main(url: str) -> None:
        async with OpenAICompatibleLLM("m", base_url=url, http2="prior_knowledge") as llm:
            for _ in range(20):
                stream = llm.astream("hi")
                reader = asyncio.create_task(read(stream))
                for _ in range(delays):
                    await asyncio.sleep(0)
                await stream.aclose()
                assert await asyncio.wait_for(reader, 5) == 0

    async def read(stream: Any) -> int:
        async for _ in stream:
            pass
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    with FakeServer(hold) as server:
        asyncio.run(main(server.url))
