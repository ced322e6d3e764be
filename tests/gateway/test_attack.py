"""What somebody who means ill may try, or a program that has gone mad: it harms nobody else, and learns nothing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason='websockets is not installed: pip install ".[gateway]"')

from jazz_llm.gateway import Gateway, server
from jazz_llm.gateway.outbox import MOST, Outbox
from jazz_llm.gateway.protocol import Chunks
from jazz_llm.providers import BY_NAME
from jazz_llm.testing import FakeServer

from .talking import QUESTION, Client, connecting, scenario, talking

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
HERE = "Host: 127.0.0.1:{port}"


async def status(gateway: Gateway, request: str, *lines: str) -> int | None:
    """Return the status that answers raw lines; None where the connection is closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write("\r\n".join((f"{request} HTTP/1.1", *lines, "", "")).format(port=gateway.port).encode())
    try:
        answer = await asyncio.wait_for(reader.readline(), 5)
    except ConnectionError:
        answer = b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return int(answer.split()[1]) if answer else None


async def answers(client: Client) -> None:
    """Hold that this client is served."""
    await client.say("get_providers")
    await client.hear("get_providers_done")


# --- who may come in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (HERE, "Host: evil.example"),
        ("Host: evil.example:{port}", "Origin: http://evil.example:{port}"),
        ("Host: localhost.evil.example",),
        ("Host: 127.0.0.1.nip.io",),
        ("Host: me@127.0.0.1",),
        ("Host: 127.0.0.1; script-src evil.example",),
        (HERE, "Origin: https://127.0.0.1:{port}"),
        (HERE, "Origin: http://127.0.0.1:1"),
        (HERE, "Origin: http://localhost:{port}"),
        (HERE, "Origin: http://127.0.0.1:{port}", "Origin: http://evil.example"),
        (HERE, "Origin: null"),
        (HERE, "Origin:"),
        (HERE, "Origin: file://"),
        (HERE, "Origin: chrome-extension://abcdef"),
    ],
)
@scenario
async def test_web_pages_elsewhere_stay_outside(lines: tuple[str, ...]) -> None:
    async with Gateway(port=0) as gateway:
        assert await status(gateway, "GET /", *lines, *UPGRADE) == 403
        assert await status(gateway, "GET /", HERE, "Origin: http://127.0.0.1:{port}", *UPGRADE) == 101


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Basic tok",
        "Authorization: Bearer",
        "Authorization: Bearer tokk",
        "Authorization: Bearer to",
        "Authorization: Bearer tök",
        "Authorization: Bearer x\r\nAuthorization: Bearer tok",
        "Sec-WebSocket-Protocol: bearer.",
        "Sec-WebSocket-Protocol: bearer.bearer.tok",
        "Sec-WebSocket-Protocol: tok",
        'Sec-WebSocket-Protocol: bearer."tok"',
        "Sec-WebSocket-Protocol: ,,,",
        "Sec-WebSocket-Protocol: " + "bearer.x," * 800 + "x",
        "Cookie: token=tok",
    ],
)
@scenario
async def test_what_is_not_quite_the_token(line: str) -> None:
    async with Gateway(port=0, token="tok") as gateway:
        assert await status(gateway, "GET /?token=tok", HERE, line, *UPGRADE) in (400, 401)
        assert await status(gateway, "GET /", HERE, "Authorization: Bearer tok", *UPGRADE) == 101


@pytest.mark.parametrize(
    ("request_", "code"),  # None: closed without a word
    [
        ("GET /../index.html", 404),
        ("GET /%2e%2e/server.py", 404),
        ("GET //client.js", 404),
        ("GET /client.js%00", 404),
        ("GET http://evil.example/", 404),
        ("GET *", 404),
        ("GET /" + "a" * 9000, 414),
        ("HEAD /", 405),
        ("OPTIONS /", 405),
        ("CONNECT 127.0.0.1:22", 405),
        ("GARBAGE", None),
        ("\x16\x03\x01\n", None),
    ],
)
@scenario
async def test_paths_and_requests_that_nobody_serves(request_: str, code: int | None) -> None:
    async with Gateway(port=0) as gateway, connecting(gateway) as client:
        assert await status(gateway, request_, HERE) == code
        await answers(client)


# --- what is said ---------------------------------------------------------------------------------------------------


@scenario
async def test_depth_and_junk_get_an_answer_each() -> None:
    deep = "[" * 100_000
    async with talking() as client:
        for data in (deep, deep + "]" * 100_000, '{"a":' * 100_000, '{"unique_request_id":' + "9" * 5000 + "}", b"\x00\xff" * 500, os.urandom(1000)):
            await client.socket.send(data)
            error = await client.hear("error")
            assert (error["unique_request_id"], error["error"]) == (None, "UNEXPECTED")
        await answers(client)


@scenario
async def test_millions_of_objects_in_one_message_hold_nobody() -> None:
    many = ",".join(["[]"] * 5_000_000)
    async with talking() as client:
        await client.socket.send('{"type":"generate","unique_request_id":"x","messages":[%s]}' % many)  # noqa: UP031
        error = await client.hear("error")
        assert "objects" in error["error_detail"]


@scenario
async def test_who_never_reads_is_gone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits without end for its client to take the close frame."""
    monkeypatch.setattr(server, "_CLOSING", 0.1, raising=False)
    with FakeServer() as model:
        async with talking() as client, connecting(client.gateway, max_queue=1) as deaf:
            await deaf.load(base_url=model.url)
            deaf.socket.transport.pause_reading()
            model.reply(["x" * 65536] * 480)
            await deaf.say("generate", "flood", messages=QUESTION, params={"model_id": "m"}, stream=True)
            async with asyncio.timeout(5):
                while len(client.gateway._clients) > 1:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            await answers(client)
            deaf.socket.transport.abort()


def flood(port: int) -> None:
    """Send 65 MB of pings and read hardly anything, until that is ended; or stands still, as it mostly does from Python 3.12 on."""
    pings = (b"\x89\xfd" + bytes(4) + bytes(125)) * 500
    with socket.socket() as raw, contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", port))
        raw.settimeout(2)
        raw.sendall("\r\n".join(("GET / HTTP/1.1", HERE, *UPGRADE, "", "")).format(port=port).encode())
        for _ in range(1000):
            raw.sendall(pings)
            raw.recv(1024)


@scenario
async def test_pings_whose_answers_hardly_anybody_reads() -> None:
    async with talking() as client:
        flooding, most = asyncio.create_task(asyncio.to_thread(flood, client.gateway.port)), 0
        while not flooding.done():
            await asyncio.wait((flooding,), timeout=0.02)
            lying = [it._connection.transport.get_write_buffer_size() for it in client.gateway._clients]
            most = max(most, *lying)
        assert most < 2 * MOST
        await answers(client)


@scenario
async def test_ten_thousand_messages_at_once() -> None:
    async with talking() as client, connecting(client.gateway) as other:
        for n in range(10_000):
            await client.say("generate", str(n), messages=[1])
        await answers(other)
        for n in range(10_000):
            assert (await client.hear("generate_ack"))["unique_request_id"] == str(n)
            await client.hear("generate_done")


@scenario
async def test_an_interrupt_just_as_it_ends_and_the_id_again() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            for n in range(100):
                model.reply(["a", "b"])
                await client.say("generate", "g", messages=QUESTION, params={"model_id": "m"}, stream=True)
                for k in range(n % 5):
                    await client.say("interrupt", f"{n}-{k}", target="g")
                kinds: list[str] = []
                while kinds.count("generate_stream_done") < 1 or kinds.count("interrupt_ack") < n % 5:
                    kinds.append((await client.hear())["type"])
                assert [kinds.count(kind) for kind in ("generate_ack", "generate_stream_done", "interrupt_ack", "error")] == [1, 1, n % 5, 0]


@scenario
async def test_a_provider_loaded_again_and_again_leaves_no_connection_open() -> None:
    with FakeServer() as model:
        async with talking() as client:
            for _ in range(50):
                assert (await client.load(base_url=model.url))["error"] == "SUCCESS"
            gc.collect()
            await asyncio.to_thread(model.wait_for, lambda it: it.connections <= 2)


def test_what_waits_for_a_slow_client_weighs_what_is_said() -> None:
    most = 512 * 2**10
    outbox, chunks = Outbox(most=most), Chunks("a")
    tracemalloc.start()
    n = 0
    while not outbox.hopeless:
        outbox.put_chunk(chunks, chr(0x4E00 + n % 5000))
        n += 1
    weight, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert weight < 2 * most


# --- keys and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [{}, {"api_key": "sk-MINE"}])
@scenario
async def test_nothing_of_the_gateways_accounts_goes_to_a_url_of_a_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: dict[str, str]) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password sk-OURS\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in {name for row in BY_NAME.values() for name in row.key_env} | {"OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "JAZZ_LLM__API_KEY"}:
        monkeypatch.setenv(name, "sk-OURS")
    with FakeServer() as model:
        async with talking() as client:
            for provider in (*BY_NAME, "OpenAI", "other"):
                await client.load(provider, base_url=model.url, **key)
                await client.generate()
        headers = [request.headers for request in model.requests]
    assert len(headers) >= 2 * len(BY_NAME)
    assert not [it for it in headers if "sk-OURS" in repr(it) or base64.b64encode(b"me:sk-OURS").decode() in repr(it)]


@scenario
async def test_paths_in_messages_are_not_read(tmp_path: Path) -> None:
    secret = b"\x89PNG\r\n\x1a\n what is in the file"
    (tmp_path / "secret.png").write_bytes(secret)
    path = str(tmp_path / "secret.png")
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": path}},
        {"type": "image_url", "image_url": {"url": f"file://{path}"}},
        {"type": "image_url", "image_url": path},
        {"type": "image", "path": path, "image": path},
    ]
    with FakeServer() as model:
        async with talking(model.url) as client:
            for part in parts:
                await client.generate(messages=[{"role": "user", "content": [part]}])
            await client.generate(messages=[{"role": "user", "content": "x", "images": [path]}])
        assert not [it for it in model.requests if secret[8:] in it.body or base64.b64encode(secret)[:24] in it.body]


@scenario
async def test_params_reach_no_further_than_the_protocol() -> None:
    extra = {"extra_body": {"a": 1}, "extra_headers": {"x-a": "1"}, "base_url": "http://127.0.0.1:1", "api_key": "k", "mock_response": "x"}
    with FakeServer() as model:
        async with talking(model.url) as client:
            assert (await client.generate(**extra))["error"] == "SUCCESS"
        asked = model.requests[-1]
        assert asked.json() == {"model": "m", "messages": QUESTION}
        assert not {"x-a", "authorization"} & set(asked.headers)


@scenario
async def test_urls_that_are_none_of_a_server() -> None:
    async with talking() as client:
        for url in ("file:///etc/passwd", "http://me:sk-SECRET@127.0.0.1/", "http://127.0.0.1:99999", "http://[::1", "unix:///x", "//x", "http://a b/", "http://127.0.0.1/?a=1", 5, []):
            done = await client.load(base_url=url)
            assert done["error"] == "INVALID_PROVIDER"
            assert "sk-SECRET" not in json.dumps(done)
