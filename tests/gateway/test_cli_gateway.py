"""``jazz-llm gateway`` as a person runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')
pytest.importorskip("websockets", reason='websockets is not installed: pip install ".[gateway]"')

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from jazz_llm.testing import FakeServer, Reply, Request

from .talking import QUESTION, scenario

posix_only = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jazz_llm", "gateway", *arguments]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=20, env={**os.environ, **variables}, check=False)


@contextlib.contextmanager
def running(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command on a free port; yield it and the WebSocket's address that it names."""
    started = command("--port", "0", *arguments)
    with subprocess.Popen(started, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}) as process:
        try:
            line = process.stderr.readline()
            found = re.search(r"ws://\S+", line)
            assert found, line + process.stderr.read()
            yield process, found[0]
        finally:
            process.kill()


async def wait(request: Request, reply: Reply) -> None:
    if request.path.endswith("/models"):
        await reply.json({"data": []})
    else:
        await reply.cancelled()


async def say(socket: Any, kind: str, id_: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, "unique_request_id": id_, **fields}))


async def heard(socket: Any, count: int) -> list[dict[str, Any]]:
    return [json.loads(await asyncio.wait_for(socket.recv(), 10)) for _ in range(count)]


@posix_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@scenario
async def test_a_signal_tells_all_that_runs_and_ends_within_two_seconds(number: int, code: int) -> None:
    with FakeServer(wait) as model, running() as (process, url):
        async with connect(url) as one, connect(url) as two, connect(url):
            for client in (one, two):
                await say(client, "load", "l", provider="vllm", base_url=model.url)
                assert (await heard(client, 2))[1]["error"] == "SUCCESS"
                for id_ in "ab":
                    await say(client, "generate", id_, messages=QUESTION, params={"model_id": "m"}, stream=True)
                await heard(client, 2)
            began = time.monotonic()
            process.send_signal(number)
            for client in (one, two):
                assert {(it["unique_request_id"], it["error"]) for it in await heard(client, 2)} == {("a", "INTERRUPT"), ("b", "INTERRUPT")}
                with pytest.raises(ConnectionClosed):
                    await client.recv()
                assert client.close_code == 1001
            assert await asyncio.to_thread(process.wait, 10) == code
            assert time.monotonic() - began < 2
        await asyncio.to_thread(model.wait_for, lambda it: it.live == 0)
        assert not re.search("Traceback|Error", process.stderr.read())


@scenario
async def test_a_close_message_ends_it() -> None:
    with running("--token", "tok") as (process, url):
        with pytest.raises(InvalidStatus):
            await connect(url)
        async with connect(url, additional_headers={"Authorization": "Bearer tok"}) as client:
            await say(client, "close", "c")
            assert (await heard(client, 1))[0]["type"] == "close_ack"
            assert await asyncio.to_thread(process.wait, 10) == 0


@scenario
async def test_the_token_comes_from_the_environment_and_is_not_shown() -> None:
    with running("--host", "0.0.0.0", JAZZ_LLM_GATEWAY_TOKEN="tok-1") as (process, url):
        async with connect(url, subprotocols=["bearer.tok-1"]) as client:
            await say(client, "close", "c")
            await heard(client, 1)
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert "tok-1" not in process.stderr.read() + process.stdout.read() + url


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "JAZZ_LLM_GATEWAY_TOKEN"),
        (("--token", "a b"), "token must be"),
        (("--allow-origin", "example.org"), "allow_origin"),
        (("--config", "/nowhere.yaml"), "/nowhere.yaml"),
        (("--port", "70000"), "70000"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "a b" not in done.stderr


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "in use" in done.stderr
    assert "--port" in done.stderr


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    for option in ("--host", "--port", "--token", "--allow-origin", "--config", "7562", "JAZZ_LLM_GATEWAY_TOKEN"):
        assert option in done.stdout


def test_without_the_extra_it_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['websockets'] = None; sys.argv = ['jazz-llm', 'gateway']; from jazz_llm.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert 'pip install "jazz_llm[gateway]"' in done.stderr
    code = "import sys; sys.modules['websockets'] = None; import jazz_llm.gateway"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.stderr.strip().endswith('ImportError: The gateway needs websockets: pip install "jazz_llm[gateway]"')
