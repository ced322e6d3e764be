"""The same random exchanges through this transport and through stock httpx give the same, at both ends."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jazz_llm.testing import FakeServer, Reply, Request
from jazz_llm.transport.httpx_transports import AsyncHTTPTransport, HTTPTransport

EXCHANGES = 300
SIZES = [0, 1, 17, 1_000, 65_535, 65_536, 300_000]
LARGE = {50: 20_000_000, 150: 5_000_000, 250: 1_500_000}  # in the exchanges of these numbers
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "REPORT"]
STATUSES = [200, 200, 200, 201, 204, 304, 400, 404, 429, 500, 503, 599]
NAMES = ["x-one", "X-Two", "accept-language", "x-long", "X_under", "x-empty", "content-type"]


def body_of(rng: random.Random, seed: int) -> bytes:
    size = LARGE.get(seed) or rng.choice(SIZES)
    return rng.randbytes(min(size, 4096)) * (size // 4096 + 1) if size else b""


def headers_of(rng: random.Random) -> dict[str, str]:
    names = rng.sample(NAMES, rng.randint(0, len(NAMES)))
    return {name: "" if name == "x-empty" else "v" * rng.choice([1, 30, 2_000]) + " \tz" for name in names}


async def answer(request: Request, reply: Reply) -> None:
    """Answer what the seed in the query says: status, fields, a body in pieces, its length told or not."""
    rng = random.Random(int(request.query) + 10_000)
    status, headers, body = rng.choice(STATUSES), headers_of(rng), body_of(rng, int(request.query))
    if status in (204, 304) or request.method == "HEAD":
        body = b""
    elif rng.random() < 0.5:
        headers["content-length"] = str(len(body))
    await reply.start(status, headers)
    while body:
        piece = rng.choice([1, 100, 16_384, 1_000_000]) if len(body) < 10_000 else rng.choice([16_384, 1_000_000])
        await reply.send(body[:piece])
        body = body[piece:]
    await reply.end()


def asked(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    method = "POST" if seed in LARGE else rng.choice(METHODS)
    content = body_of(rng, seed) if method in ("POST", "PUT", "PATCH", "DELETE", "REPORT") else None
    headers = {name: value.strip() for name, value in headers_of(rng).items()}
    return {"method": method, "url": f"/some/path?{seed}", "headers": headers, "content": content}


def seen(response: httpx.Response, request: Request) -> list[Any]:
    """Return what the two ends got, without what says only how the message was framed."""
    fields = [(name.lower(), value) for name, value in request.headers.multi_items()]
    return [
        (response.status_code, response.http_version, sorted(response.headers.multi_items())),
        hashlib.sha256(response.content).hexdigest(),
        (request.method, request.path, request.query, hashlib.sha256(request.body).hexdigest()),
        sorted(field for field in fields if field[0] not in ("connection", "content-length", "transfer-encoding")),
    ]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(answer) as server:
        yield server


def through(server: FakeServer, transport: httpx.BaseTransport | None) -> Iterator[list[Any]]:
    with httpx.Client(transport=transport, base_url=server.url, timeout=30) as client:
        for seed in range(EXCHANGES):
            response = client.request(**asked(seed))
            yield seen(response, server.requests.pop())


def test_sync(server: FakeServer) -> None:
    for ours, theirs in zip(through(server, HTTPTransport()), through(server, None), strict=True):
        assert ours == theirs


def test_async(server: FakeServer) -> None:
    async def main() -> None:
        async with (
            httpx.AsyncClient(transport=AsyncHTTPTransport(), base_url=server.url, timeout=30) as mine,
            httpx.AsyncClient(base_url=server.url, timeout=30) as stock,
        ):
            for seed in range(EXCHANGES):
                both = [seen(await client.request(**asked(seed)), server.requests.pop()) for client in (mine, stock)]
                assert both[0] == both[1]

    asyncio.run(main())
