from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from jazz_llm import LLMClosedError, OpenAICompatibleLLM
from jazz_llm.testing import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def test_the_clients_ask_the_host_on_the_same_pools(server: FakeServer) -> None:
    with OpenAICompatibleLLM("m", "sk-1", server.url + "/v1", default_headers={"x-org": "o"}) as llm:
        llm.generate("hi")
        assert llm.client.get("/v1/models").json()["data"]
        assert llm.client is llm.client

        async def main() -> None:
            await llm.agenerate("hi")
            assert (await llm.aclient.get("/v1/models")).json()["data"]

        asyncio.run(main())
    assert [request.connection for request in server.requests] == [1, 1, 2, 2]
    assert all(request.headers["authorization"] == "Bearer sk-1" for request in server.requests)
    assert server.requests[1].headers["x-org"] == "o"


def test_the_key_goes_to_the_base_origin_only(server: FakeServer) -> None:
    async def key() -> str:
        return "sk-1"

    secret = {"x-secret": "s"}
    with FakeServer() as other, OpenAICompatibleLLM("m", "sk-1", server.url, default_headers=secret) as llm, OpenAICompatibleLLM("m", key, server.url) as allm:
        llm.client.get(other.url + "/v1/models")

        async def main() -> None:
            await allm.aclient.get(other.url + "/v1/models")
            await allm.aclient.get("/v1/models")

        asyncio.run(main())
        assert ["authorization" in request.headers for request in other.requests] == [False, False]
        assert "x-secret" not in other.requests[0].headers
        assert server.requests[0].headers["authorization"] == "Bearer sk-1"


def test_closing_a_client_closes_no_pool(server: FakeServer) -> None:
    with OpenAICompatibleLLM("m", base_url=server.url) as llm:
        llm.client.get("/v1/models")
        llm.client.close()
        assert llm.generate("hi").text == "Hello, world!"


def test_after_closing_the_instance_its_clients_are_closed_too(server: FakeServer) -> None:
    llm = OpenAICompatibleLLM("m", base_url=server.url)
    llm.client.get("/v1/models")
    llm.close()
    with pytest.raises(LLMClosedError):
        llm.client.get("/v1/models")
    with pytest.raises(LLMClosedError):
        asyncio.run(llm.aclient.get("/v1/models"))


def test_seconds_of_the_client_are_kept(server: FakeServer) -> None:
    async def silent(_: object, reply: object) -> None:
        await reply.cancelled()  # type: ignore[attr-defined]

    with FakeServer(silent) as mute, OpenAICompatibleLLM("m", base_url=mute.url) as llm:
        with pytest.raises(httpx.ReadTimeout):
            llm.client.get("/", timeout=0.1)
        with pytest.raises(httpx.ReadTimeout):
            asyncio.run(llm.aclient.get("/", timeout=0.1))
