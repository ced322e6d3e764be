"""The command itself, a process of its own, before a real llama.cpp: what is killed, what is told to end, and who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

for needed in ("websockets", "xllamacpp", "gguf", "numpy"):
    pytest.importorskip(needed, reason=f'{needed} is not installed: pip install ".[test]"')

from websockets.exceptions import ConnectionClosed  # noqa: E402 - all of these need them

from benchmarks import bench_gateway  # noqa: E402
from jazz_llm import local  # noqa: E402
from jazz_llm.testing import FakeServer  # noqa: E402

from .. import tiny_model  # noqa: E402
from ..integration.proxies import Model  # noqa: E402
from ..tiny_model import NEVER_STOPS, STOPS_SOMETIME  # noqa: E402
from .talking import Client, connecting, scenario  # noqa: E402

CONTEXT = 16_384  # tokens: enough for an answer that lasts for seconds
LONG = {"max_output_length": CONTEXT * 3 // 4, "temperature": 1}
ENDS = 2.0  # seconds in which the gateway ends
STOPS = 1.0  # seconds in which the model server stops: at once, on a busy machine
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
posix = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


class LlamaCpp:
    """A llama.cpp that can be killed."""

    def __init__(self, folder: Path, stop_bias: float) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny_model, "CONTEXT", CONTEXT)
            model = tiny_model.tiny_model(folder, stop_bias=stop_bias)
        self.process = local._spawn(model, {"n_ctx": 0, "n_parallel": 4, "n_threads": 1}, self._log)
        self.url = local._listening_address(self.process, model, self._log)
        self.model = Model(int(self.url.rpartition(":")[2]), "llamacpp")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self._log.close()

    async def busy(self, count: int) -> float:
        """Wait until it is at work on so many answers; return the seconds."""
        return await asyncio.to_thread(self.model.wait, count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@contextlib.contextmanager
def serving(folder: Path, stop_bias: float) -> Iterator[LlamaCpp]:
    with contextlib.closing(LlamaCpp(folder, stop_bias)) as server:
        yield server


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[LlamaCpp]:
    with serving(folder, STOPS_SOMETIME) as server:
        yield server


@pytest.fixture(scope="module")
def endless(folder: Path) -> Iterator[LlamaCpp]:
    with serving(folder, NEVER_STOPS) as server:
        yield server


class Command:
    """A running ``jazz-llm gateway``."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def ends(self) -> tuple[int, float]:
        """Wait for its end; return its exit code and the seconds."""
        began = time.monotonic()
        code = await asyncio.wait_for(self.process.wait(), 10)
        return code, time.monotonic() - began

    @property
    def memory(self) -> int:
        """Return its bytes of memory."""
        found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    @property
    def children(self) -> list[int]:
        """Return the processes that it has started and that still are."""
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.asynccontextmanager
async def command(*options: str, **environment: str) -> AsyncIterator[Command]:
    """Run the command on a free port; what it says but for its address is an error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "jazz_llm", "gateway", "--port", "0", *options),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert process.stderr
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
        found = re.search(r"http://\S+", line)
        assert found, line + (await process.stderr.read()).decode()
        yield Command(process, found[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        said = (await process.stderr.read()).decode()
        await process.wait()
    assert said.strip() == "", said


async def told(client: Client) -> tuple[list[dict[str, Any]], int | None]:
    """Return what a client still hears, but for chunks, and the code with which its socket is closed."""
    heard = []
    try:
        while True:
            message = await asyncio.wait_for(client.hear(), 10)
            if message["type"] != "generate_stream_chunk":
                heard.append(message)
    except ConnectionClosed:
        return heard, client.socket.close_code


def lives(process: int) -> bool:
    """Tell whether a process, which may be nobody's child any more, has not ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what nobody tells us."""
    end = time.monotonic() + 3
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


# --- llama.cpp behind it ------------------------------------------------------------------------------------------


@scenario
async def test_a_stream_and_a_whole_answer_of_llama_cpp(llama: LlamaCpp) -> None:
    async with command() as gateway, connecting(gateway) as client:
        assert (await client.load("llamacpp", base_url=llama.url))["error"] == "SUCCESS"
        await client.say("get_models")
        (name,) = (await client.hear("get_models_done"))["models"]
        asked = {"model_id": name, "temperature": 0, "max_output_length": 50}
        whole = await client.generate(**asked)
        assert whole["error"] == "SUCCESS"
        assert whole["response"]
        chunks, done = await client.rest(await client.begin(**asked))
        assert "".join(chunks) == whole["response"]
        assert len(chunks) > 1
        for said in (whole, done):
            assert said["finish_reason"] in ("stop", "length")
            assert 0 < said["usage"]["completion_tokens"] <= 50
            assert said["usage"]["estimated"] is False


@scenario
async def test_interrupt_stops_llama_cpp(endless: LlamaCpp) -> None:
    async with command() as gateway, connecting(gateway) as client:
        await client.load("llamacpp", base_url=endless.url)
        for target in ({}, {"target": "g"}):
            await client.begin("g", **LONG)
            assert await client.chunk("g")
            assert await endless.busy(1) < 5
            await client.say("interrupt", "i", **target)
            while (message := await client.hear())["type"] == "generate_stream_chunk":
                pass
            assert message == {"type": "interrupt_ack", "unique_request_id": "i"}
            _, done = await client.rest("g")
            assert (done["error"], done["is_error"]) == ("INTERRUPT", True)
            assert done["usage"]["completion_tokens"] > 0
            assert await endless.busy(0) < STOPS


@pytest.mark.parametrize("leave", ["close", "abort"])
@pytest.mark.parametrize("stream", [True, False])
@scenario
async def test_a_client_that_leaves_stops_llama_cpp(endless: LlamaCpp, leave: str, stream: bool) -> None:
    """One that closes may still have chunks to read, and then takes seconds for the rest of the closing."""
    async with command() as gateway:
        async with connecting(gateway, max_queue=1) as client:
            await client.load("llamacpp", base_url=endless.url)
            await client.begin("g", stream=stream, **LONG)
            assert await endless.busy(1) < 5
            await until(lambda: not stream or client.socket.recv_messages.paused)
            if leave == "abort":
                client.socket.transport.abort()
            else:
                closing = asyncio.create_task(client.socket.close())
            assert await endless.busy(0) < STOPS
            client.socket.transport.abort()
        if leave == "close":
            await closing


@posix
@scenario
async def test_llama_cpp_is_killed_and_the_gateway_lives_on(folder: Path, llama: LlamaCpp) -> None:
    with serving(folder, NEVER_STOPS) as dying:
        async with command() as gateway, connecting(gateway) as client, connecting(gateway) as other:
            for one in (client, other):
                await one.load("llamacpp", base_url=dying.url)
            await client.begin("g", **LONG)
            await client.chunk("g")
            await other.begin("w", stream=False, **LONG)
            assert await dying.busy(2) < 5
            began = time.monotonic()
            dying.kill()
            _, done = await client.rest("g")
            assert (done["error"], done["is_error"]) == ("UNEXPECTED", True)
            assert done["error_detail"]
            done = await other.hear("generate_done")
            assert (done["error"], done["response"]) == ("UNEXPECTED", "")
            assert time.monotonic() - began < 5  # a whole answer is asked for again, in vain
            assert (await client.load("llamacpp", base_url=dying.url))["error"] == "UNEXPECTED"
            assert (await client.load("llamacpp", base_url=llama.url))["error"] == "SUCCESS"
            assert (await client.generate(max_output_length=5))["error"] == "SUCCESS"


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@scenario
async def test_a_signal_ends_it_in_order(endless: LlamaCpp, number: signal.Signals, code: int) -> None:
    async with command() as gateway, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connecting(gateway)) for _ in range(3)]
        for client in clients:
            await client.load("llamacpp", base_url=endless.url)
            await client.begin("s", **LONG)
        await clients[0].say("generate", "w", messages=["Hello"], params={"model_id": "m"})  # answered before the end
        gateway.process.send_signal(number)
        ended, everyone = await asyncio.gather(gateway.ends(), asyncio.gather(*map(told, clients)))
        assert ended[0] == code
        assert ended[1] < ENDS
        for heard, closed in everyone:
            assert closed == 1001
            assert [m["error"] for m in heard if m["type"] == "generate_stream_done"] == ["INTERRUPT"]
        assert await endless.busy(0) < STOPS


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@linux
@scenario
async def test_the_local_model_lives_no_longer_than_the_gateway(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    cached = tmp_path / "jazz_llm" / local._REQUIREMENT / Path(local._WHEEL_MEMBER).name
    cached.parent.mkdir(parents=True)
    cached.symlink_to(tiny_model.tiny_model(folder))  # where the download would be
    async with command(XDG_CACHE_HOME=str(tmp_path)) as gateway, connecting(gateway) as client:
        assert (await client.load("local"))["error"] == "SUCCESS"
        chunks, done = await client.rest(await client.begin(model_id="", max_output_length=20))
        assert chunks
        assert done["error"] == "SUCCESS"
        (child,) = gateway.children
        gateway.process.send_signal(number)
        await gateway.ends()
        await until(lambda: not lives(child))


# --- many ---------------------------------------------------------------------------------------------------------


def test_200_clients_at_once_get_each_its_own() -> None:
    """Each client's text says whose it is; the model server, the gateway and the clients are processes of their own."""
    with bench_gateway.staged(["gateway"]) as stage:
        turn = stage.turn("gateway", clients=200, count=75)
    assert turn.wrong == []


@linux
@scenario
async def test_a_client_that_never_reads_costs_little_and_harms_nobody() -> None:
    with FakeServer() as model:
        async with command() as gateway, connecting(gateway, max_queue=1) as deaf, connecting(gateway) as other:
            for client in (deaf, other):
                await client.load(base_url=model.url)
            memory = gateway.memory
            model.reply(["x" * 4096] * 16_000)  # 64 MB
            await deaf.begin("flood", max_output_length=1)
            model.reply(["word "] * 100, delay=0.01)
            chunks, done = await other.rest(await other.begin())
            assert "".join(chunks) == "word " * 100
            assert done["error"] == "SUCCESS"
            await asyncio.to_thread(model.wait_for, lambda it: it.live == 0)
            assert gateway.memory - memory < 40 * 2**20
            assert (await told(deaf))[1] == 1008


@linux
@scenario
async def test_a_thousand_connections_leave_nothing_behind() -> None:
    async def visit() -> None:
        async with connecting(gateway) as client:
            await client.load(base_url=model.url)
            assert (await client.generate())["error"] == "SUCCESS"

    async def visits(count: int) -> None:
        for _ in range(count // 10):
            await asyncio.gather(*(visit() for _ in range(10)))

    with FakeServer() as model:
        async with command() as gateway:
            descriptors = gateway.descriptors
            await visits(1000)  # until allocator and caches have what they keep
            await until(lambda: gateway.descriptors <= descriptors)
            memory = gateway.memory
            await visits(1000)
            await until(lambda: gateway.descriptors <= descriptors)
            assert gateway.memory - memory < 2 * 2**20
