"""What the drivers do between a request and its connection, where no row of the fault matrix looks."""

from __future__ import annotations

import asyncio
import select
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any

import httpx
import pytest

from jazz_llm import LLMConfigurationError, LLMError, LLMTimeoutError, OpenAICompatibleLLM
from jazz_llm.testing import Authority, FakeServer, Reply, Request, sse_chunk
from jazz_llm.transport import aio, sockets
from jazz_llm.transport.httpx_transports import AsyncHTTPTransport, HTTPTransport

from ..colours import Async, Sync
from ..frame_server import Answer, FrameServer, serving

Colour = Sync | Async
REFUSED_STREAM = 7


def test_a_request_that_is_sent_again_still_has_its_deadlines(colour: Colour) -> None:
    async def refuse_then_hold(_: Request, reply: Reply) -> None:
        if len(server.requests) == 1:
            reply.reset(REFUSED_STREAM)
        else:
            await reply.cancelled()

    with FakeServer(refuse_then_hold) as server:
        llm = OpenAICompatibleLLM("m", base_url=server.url, http2="prior_knowledge", timeout=0.3, max_retries=0)
        with llm, ThreadPoolExecutor(1) as threads:
            assert isinstance(threads.submit(colour.generate, llm).exception(5), LLMTimeoutError)
        assert len(server.requests) == 2


def test_a_goaway_that_came_before_a_failed_write_counts_for_the_others() -> None:
    """The server says that it did not process the first, and hangs up; the second finds that out by its write."""

    async def serve(answer: Answer) -> None:
        connection = answer.connection
        if connection.number > 1:
            return answer.good()
        asked.set()
        await asyncio.to_thread(go.wait, 5)
        connection.goaway(0)
        await connection.drained()
        connection.tcp_reset()
        hung_up.set()

    async def main() -> list[str]:
        async with OpenAICompatibleLLM("m", base_url=server.url, http2="prior_knowledge", max_retries=0) as llm:
            first = asyncio.create_task(llm.agenerate("hi"))
            await asyncio.to_thread(asked.wait, 5)
            second = asyncio.create_task(llm.agenerate("hi"))
            go.set()
            hung_up.wait(5)  # this loop stands still: it reads nothing before the second has written
            return [response.text for response in await asyncio.gather(first, second)]

    asked, go, hung_up = threading.Event(), threading.Event(), threading.Event()
    with FrameServer(serving(serve)) as server:
        assert asyncio.run(main()) == ["Hello", "Hello"]
        assert len(server.connections) == 2


@pytest.mark.parametrize(("provider", "connections"), [(None, [1, 1]), ("llamacpp", [1, 2])])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_connection_that_is_known_to_be_closed_after_a_stream_is_not_used_again(
    colour: str, provider: str | None, connections: list[int]
) -> None:
    async def read_two(llm: OpenAICompatibleLLM) -> None:
        for _ in range(2):
            assert (await llm.astream("hi").finish()).text

    with FakeServer() as server, OpenAICompatibleLLM("m", base_url=server.url, provider=provider) as llm:
        if colour == "async":
            asyncio.run(read_two(llm))
        else:
            assert [bool(llm.stream("hi").finish().text) for _ in range(2)] == [True, True]
        first = server.requests[0].connection
        assert [request.connection - first + 1 for request in server.requests] == connections


def test_at_the_limit_an_idle_connection_of_another_host_makes_way_for_those_who_wait() -> None:
    """One connection is allowed, and two hosts want it: the second one waits until the first is done, and no longer."""
    release = asyncio.Event()

    async def slow(_: Request, reply: Reply) -> None:
        await release.wait()
        await reply.json({"slow": True})

    async def main(one: FakeServer, other: FakeServer) -> None:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60)
        async with OpenAICompatibleLLM("m", base_url=one.url, limits=limits, timeout=10) as llm:
            first = asyncio.create_task(llm.aclient.get(one.url))
            await asyncio.to_thread(one.wait_for, lambda s: s.live == 1)
            second = asyncio.create_task(llm.aclient.get(f"{other.url}/v1/models"))
            await asyncio.sleep(0)
            one._loop.call_soon_threadsafe(release.set)
            assert (await asyncio.wait_for(first, 5)).json() == {"slow": True}
            assert (await asyncio.wait_for(second, 5)).status_code == 200

    with FakeServer(slow) as one, FakeServer() as other:
        asyncio.run(main(one, other))


@pytest.mark.parametrize(("calls", "hosts", "most"), [(2, 2, 1), (20, 2, 1), (30, 3, 2)])
def test_many_hosts_share_few_connections(calls: int, hosts: int, most: int) -> None:
    """A connection that has just been found for one call is not closed for another."""

    async def main(servers: list[FakeServer]) -> None:
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=60)
        async with httpx.AsyncClient(transport=AsyncHTTPTransport(limits=limits), timeout=20) as client:
            urls = [f"{servers[i % hosts].url}/v1/models" for i in range(calls)]
            answers = await asyncio.gather(*(client.get(url) for url in urls))
        assert {answer.status_code for answer in answers} == {200}

    with ExitStack() as stack:
        asyncio.run(main([stack.enter_context(FakeServer()) for _ in range(hosts)]))


def test_once_the_protocol_is_known_all_who_wait_dial_at_once(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    width, begun, original = 20, [0], aio.connect
    everybody = asyncio.Event()

    async def connect(*arguments: Any) -> socket.socket:
        begun[0] += 1
        if begun[0] == width:
            everybody.set()
        if begun[0] > 1:  # the first one finds out what is spoken
            await everybody.wait()
        return await original(*arguments)

    together = asyncio.Event()

    async def hold(_: Request, reply: Reply) -> None:
        if len(server.requests) == width:
            together.set()
        await together.wait()
        await reply.text("together")

    async def main() -> None:
        async with OpenAICompatibleLLM("m", base_url=server.url, verify=authority.path, timeout=10, max_retries=0) as llm:
            answers = await asyncio.gather(*(llm.agenerate("hi") for _ in range(width)))
        assert {answer.text for answer in answers} == {"together"}

    monkeypatch.setattr(aio, "connect", connect)
    with FakeServer(hold, tls=authority, http2=False) as server:
        asyncio.run(main())


def test_a_server_that_speaks_and_closes_before_it_is_asked(colour: Colour, authority: Authority) -> None:
    """An overloaded balancer, over TLS 1.2: its answer comes along with the end of the handshake."""
    context = authority.server_context(("http/1.1",))
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def serve() -> None:
        raw, _ = listener.accept()
        with raw:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_side=True)
            while True:
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
                if outgoing.pending:
                    raw.sendall(outgoing.read())
                incoming.write(raw.recv(65536))
            tls.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            raw.sendall(outgoing.read())
            raw.recv(65536)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener, ThreadPoolExecutor(1) as threads:
        served = threads.submit(serve)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        limits = httpx.Timeout(5, connect=0.5)
        with OpenAICompatibleLLM("m", base_url=url, verify=authority.path, max_retries=0, timeout=limits) as llm:
            with pytest.raises(LLMError):
                colour.generate(llm)
        served.result(5)


@pytest.mark.parametrize("http2", [True, False])
def test_the_pools_serve_any_httpx_client(authority: Authority, http2: bool) -> None:
    with FakeServer(tls=authority) as server:
        with httpx.Client(transport=HTTPTransport(verify=authority.path, http2=http2), base_url=server.url) as client:
            answer = client.post("/v1/chat/completions", json={"messages": []})
            with client.stream("POST", "/v1/chat/completions", json={"stream": True}) as stream:
                streamed = b"".join(stream.iter_bytes())
        assert answer.json()["choices"][0]["message"]["content"] == "Hello, world!"
        assert streamed.endswith(b"data: [DONE]\n\n")
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")

        async def main() -> httpx.Response:
            transport = AsyncHTTPTransport(verify=authority.path, http2=http2)
            async with httpx.AsyncClient(transport=transport, base_url=server.url) as client:
                return await client.post("/v1/chat/completions", json={"messages": []})

        assert asyncio.run(main()).json() == answer.json()


FAILURES: list[tuple[Callable[[Reply], Any], type[Exception]]] = [
    (lambda reply: reply.close(), httpx.ReadError),
    (lambda reply: reply.raw(b"nonsense\r\n\r\n"), httpx.RemoteProtocolError),
]


@pytest.mark.parametrize(("fault", "kind"), FAILURES)
def test_an_httpx_client_gets_the_exceptions_of_httpx(fault: Callable[[Reply], Any], kind: type[Exception]) -> None:
    async def handler(_: Request, reply: Reply) -> None:
        fault(reply)

    with FakeServer(handler) as server:
        with httpx.Client(transport=HTTPTransport(), base_url=server.url) as client, pytest.raises(kind):
            client.get("/")

        async def main() -> None:
            async with httpx.AsyncClient(transport=AsyncHTTPTransport(), base_url=server.url) as client:
                with pytest.raises(kind):
                    await client.get("/")

        asyncio.run(main())
    with httpx.Client(transport=HTTPTransport()) as client, pytest.raises(httpx.ConnectError):
        client.get(server.url)


def test_an_httpx_client_gets_its_timeouts() -> None:
    async def hold(_: Request, reply: Reply) -> None:
        await reply.cancelled()

    with FakeServer(hold) as server, httpx.Client(transport=HTTPTransport(), timeout=0.2) as client:
        started = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.get(server.url)
        assert time.monotonic() - started < 3


# --- Connecting


def test_an_address_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Happy Eyeballs (RFC 8305): the next address is tried while the first one is still silent."""
    with closing(socket.socket()) as listener, FakeServer() as server:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        crowd = [socket.socket() for _ in range(4)]
        for sock in crowd:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        addresses = [listener.getsockname(), ("127.0.0.1", httpx.URL(server.url).port)]

        def resolve(_host: str, _port: int) -> Future[list[Any]]:
            found: Future[list[Any]] = Future()
            found.set_result([(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses])
            return found

        monkeypatch.setattr(sockets, "resolve", resolve)
        started = time.monotonic()
        with OpenAICompatibleLLM("m", base_url="http://many.example", timeout=10) as llm:
            assert asyncio.run(llm.agenerate("hi")).text == "Hello, world!"
        assert time.monotonic() - started < 5
        for sock in crowd:
            sock.close()


def test_families_of_addresses_take_turns() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    addresses: list[Any] = [(six, "a"), (six, "b"), (six, "c"), (four, "d"), (four, "e")]
    assert [name for _, name in sockets.interleaved(addresses)] == ["a", "d", "b", "e", "c"]


class SocksProxy(socketserver.StreamRequestHandler):
    """SOCKS5 with no authentication, for IPv4 addresses (RFC 1928)."""

    def handle(self) -> None:
        self.rfile.read(self.rfile.read(2)[1])
        self.wfile.write(b"\x05\x00")
        assert self.rfile.read(4) == b"\x05\x01\x00\x01"
        host, port = socket.inet_ntoa(self.rfile.read(4)), int.from_bytes(self.rfile.read(2))
        with socket.create_connection((host, port)) as target:
            self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
            while True:
                for ready in select.select([self.connection, target], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (target if ready is self.connection else self.connection).sendall(data)


def test_through_socks(colour: Colour, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "jazz_llm")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), SocksProxy) as proxy, FakeServer(tls=authority) as server:
        proxy.daemon_threads = True
        with ThreadPoolExecutor(1) as threads:
            threads.submit(proxy.serve_forever, 0.01)
            url = f"socks5://127.0.0.1:{proxy.server_address[1]}"
            with OpenAICompatibleLLM("m", base_url=server.url, verify=authority.path, proxy=url) as llm:
                response = colour.generate(llm)
                texts, _ = colour.stream(llm)
            proxy.shutdown()
    assert (response.text, response.metrics.http_version) == ("Hello, world!", "HTTP/1.1")
    assert "".join(texts) == "Hello, world!"
    assert "stock httpx over HTTP/1.1" in caplog.text


def test_socks_without_its_package_says_what_to_install(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    with OpenAICompatibleLLM("m", base_url="http://x", proxy="socks5://127.0.0.1:9") as llm:
        with pytest.raises(LLMConfigurationError, match=r"httpx\[socks\]"):
            colour.generate(llm)


SCRIPT = """
import asyncio, sys
from jazz_llm import OpenAICompatibleLLM
llm = OpenAICompatibleLLM("m", base_url=sys.argv[1], http2="prior_knowledge")
stream = llm.stream("hi")
print(next(iter(stream)))
"""


def test_the_end_of_the_interpreter_ends_an_open_stream_without_a_word() -> None:
    async def hold(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(sse_chunk("a"))
        await reply.cancelled()

    with FakeServer(hold) as server:
        command = [sys.executable, "-X", "dev", "-c", SCRIPT, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        server.wait_for(lambda s: s.live == 0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")
