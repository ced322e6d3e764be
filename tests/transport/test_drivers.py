"""What the drivers do between a request and its connection, where no row of the fault matrix looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from jazz_llm import LLMTimeoutError, OpenAICompatibleLLM
from jazz_llm.testing import Authority, FakeServer, Reply, Request
from jazz_llm.transport.httpx_transports import AsyncHTTPTransport, HTTPTransport

from ..colours import Async, Sync

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
