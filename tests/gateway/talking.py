"""A client for the tests of the gateway: says and hears messages over a real WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from jazz_llm.gateway import Gateway

QUESTION = [{"role": "user", "content": "What is new?"}]


def scenario(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in a loop of its own, which must end with nothing left over."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **fixtures), 30))

    return run


class Client:
    """One connection: messages are dicts, and ids are made where none is given."""

    def __init__(self, gateway: Gateway, socket: ClientConnection) -> None:
        self.gateway = gateway
        self.socket = socket
        self.heard: list[dict[str, Any]] = []
        self._ids = map(str, itertools.count(1))

    async def say(self, kind: str, id_: str | None = None, **fields: Any) -> str:
        id_ = id_ or next(self._ids)
        await self.socket.send(json.dumps({"type": kind, "unique_request_id": id_, **fields}))
        return id_

    async def hear(self, kind: str | None = None) -> dict[str, Any]:
        """Return the next message, of this type."""
        message = json.loads(await asyncio.wait_for(self.socket.recv(), 10))
        self.heard.append(message)
        assert kind is None or message["type"] == kind, message
        return message

    async def load(self, provider: str = "vllm", **fields: Any) -> dict[str, Any]:
        id_ = await self.say("load", provider=provider, **fields)
        assert await self.hear() == {"type": "load_ack", "unique_request_id": id_, "provider": provider}
        done = await self.hear("load_done")
        assert done["unique_request_id"] == id_
        return done

    async def begin(self, id_: str | None = None, *, stream: bool = True, messages: Any = QUESTION, **params: Any) -> str:
        id_ = await self.say("generate", id_, messages=messages, params={"model_id": "m", **params}, stream=stream)
        assert await self.hear() == {"type": "generate_ack", "unique_request_id": id_}
        return id_

    async def chunk(self, id_: str) -> str:
        message = await self.hear("generate_stream_chunk")
        assert message["unique_request_id"] == id_
        return message["chunk"]

    async def rest(self, id_: str) -> tuple[list[str], dict[str, Any]]:
        """Return the chunks that still come of a stream, and its done message."""
        chunks = []
        while (message := await self.hear())["type"] == "generate_stream_chunk":
            assert message["unique_request_id"] == id_
            chunks.append(message["chunk"])
        assert (message["type"], message["unique_request_id"]) == ("generate_stream_done", id_)
        return chunks, message

    async def generate(self, **asked: Any) -> dict[str, Any]:
        """Return the done message of a whole answer."""
        id_ = await self.begin(stream=False, **asked)
        done = await self.hear("generate_done")
        assert done["unique_request_id"] == id_
        return done


@contextlib.asynccontextmanager
async def talking(base_url: str | None = None, **options: Any) -> AsyncIterator[Client]:
    """Run a gateway and connect to it; with a URL, load it."""
    async with Gateway(port=0, **options) as gateway, connecting(gateway) as client:
        if base_url is not None:
            assert (await client.load(base_url=base_url))["error"] == "SUCCESS"
        yield client


@contextlib.asynccontextmanager
async def connecting(gateway: Gateway, **options: Any) -> AsyncIterator[Client]:
    async with connect(gateway.url.replace("http", "ws", 1), compression=None, max_size=None, **options) as socket:
        yield Client(gateway, socket)
