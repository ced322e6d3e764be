"""Every message and every error code through a real WebSocket, against a model server that a test scripts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason='websockets is not installed: pip install ".[gateway]"')

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from jazz_llm.errors import LLMConfigurationError
from jazz_llm.gateway import Gateway, loading, server
from jazz_llm.providers import BY_NAME
from jazz_llm.testing import FakeServer, Reply, Request, sse_chunk

from .talking import QUESTION, Client, connecting, scenario, talking

MANY = ["one ", "two ", "three"]
SILENT = logging.Logger("the client's own")  # noqa: LOG001 - its keys are not the gateway's


async def wait(request: Request, reply: Reply) -> None:
    """List a model, and answer nothing else."""
    if request.path.endswith("/models"):
        await reply.json({"data": [{"id": "m"}]})
    else:
        await reply.cancelled()


async def hang(request: Request, reply: Reply) -> None:
    await reply.cancelled()


async def closed(connection: Any) -> tuple[int | None, list[dict[str, Any]]]:
    """Return the code with which a socket is closed, and what came before."""
    heard = []
    try:
        while True:
            heard.append(json.loads(await asyncio.wait_for(connection.recv(), 15)))
    except ConnectionClosed:
        return connection.close_code, heard


def narrow(gateway: Gateway) -> socket.socket:
    """Return a connected socket that takes little ahead of its reader."""
    it = socket.socket()
    it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    it.connect(("127.0.0.1", gateway.port))
    it.setblocking(False)
    return it


async def until(sign: Callable[[], object]) -> None:
    for _ in range(1000):
        if sign():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def left(model: FakeServer) -> None:
    """Wait until the model server works on nothing any more."""
    await asyncio.to_thread(model.wait_for, lambda it: it.live == 0)


# --- the calls ----------------------------------------------------------------------------------------------------


@scenario
async def test_get_providers_before_anything_else() -> None:
    async with talking() as client:
        id_ = await client.say("get_providers")
        done = await client.hear("get_providers_done")
    assert done["unique_request_id"] == id_
    assert set(done["providers"]) == {*BY_NAME, "local"}
    assert {"openai", "groq", "novelai", "deepseek", "ollama", "local"} <= set(done["providers"])


@scenario
async def test_load_and_get_models() -> None:
    with FakeServer() as model:
        async with talking() as client:
            done = await client.load(base_url=model.url, api_key="sk-mine")
            assert done == {"type": "load_done", "unique_request_id": "1", "provider": "vllm", "is_error": False, "error": "SUCCESS", "error_detail": ""}
            await client.say("get_models", "x")
            listed = await client.hear("get_models_done")
        assert listed["models"] == listed["providers"] == ["fake-model"]
        assert (listed["unique_request_id"], listed["error"]) == ("x", "SUCCESS")
        assert [(request.path, request.headers["authorization"]) for request in model.requests] == [("/v1/models", "Bearer sk-mine")]


@scenario
async def test_a_whole_answer() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            model.reply("Nothing.", finish="stop")
            done = await client.generate(temperature=0.5, max_output_length=9, stop_tokens=["\n"], character_name="AI", timeout_ms=5000)
        assert (done["response"], done["error"], done["error_detail"], done["finish_reason"]) == ("Nothing.", "SUCCESS", "", "stop")
        assert done["usage"]["total_tokens"] == done["usage"]["prompt_tokens"] + done["usage"]["completion_tokens"] > 0
        asked = model.requests[-1].json()
        assert asked == {"model": "m", "messages": QUESTION, "temperature": 0.5, "max_tokens": 9, "stop": ["\n"]}


@scenario
async def test_what_the_published_client_sends_where_its_user_says_nothing() -> None:
    talk = [{"role": "assistant", "content": "Hi.", "name": None}, {"role": "user", "content": "What is new?", "name": "Ann"}]
    defaults = {"model_id": "", "character_name": "AI", "temperature": 1.0, "max_output_length": 200, "stop_tokens": ["\r", "\n"], "timeout_ms": 60000}
    with FakeServer() as model:
        async with talking() as client:
            await client.load("deepseek", base_url=model.url)
            assert (await client.generate(messages=talk, **defaults))["error"] == "SUCCESS"
        asked = model.requests[-1].json()
    assert asked.pop("messages") == [{"role": "assistant", "content": "Hi.", "name": "AI"}, talk[1]]
    assert asked == {"model": "fake-model", "temperature": 1.0, "max_tokens": 200, "stop": ["\r", "\n"]}


@scenario
async def test_the_readmes_talk(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    lines = re.findall(r"^([<>]) (\{.*)$", readme.split("## Gateway")[1], re.MULTILINE)
    assert len(lines) > 5
    with FakeServer() as model:
        model.reply("Hello!")
        (tmp_path / "llm.yaml").write_text(f"ollama:\n  base_url: {model.url}\n")
        async with talking(config=tmp_path / "llm.yaml") as client:
            for way, line in lines:
                if way == ">":
                    await client.socket.send(line)
                    continue
                heard = await client.hear()
                if "{...}" in line:
                    assert heard.pop("usage")
                assert heard == json.loads(line.replace('"usage": {...}, ', ""))


@scenario
async def test_a_stream() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            model.reply(MANY)
            id_ = await client.begin()
            chunks, done = await client.rest(id_)
    assert chunks == MANY
    assert (done["is_error"], done["error"], done["finish_reason"]) == (False, "SUCCESS", "stop")
    assert done["usage"]["completion_tokens"] > 0
    assert "response" not in done


@scenario
async def test_many_at_once_and_an_id_again() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            for id_ in ("a", "b", "c"):
                model.reply([id_] * 5, delay=0.01)
                await client.say("generate", id_, messages=QUESTION, params={"model_id": "m"}, stream=True)
            told: dict[str, list[str]] = {"a": [], "b": [], "c": []}
            while sum("generate_stream_done" in types for types in told.values()) < 3:
                message = await client.hear()
                told[message["unique_request_id"]].append(message["type"])
            assert all(types == ["generate_ack", *["generate_stream_chunk"] * 5, "generate_stream_done"] for types in told.values())
            model.reply("again")
            assert await client.rest(await client.begin("a")) == (["again"], client.heard[-1])


@scenario
async def test_a_refusal_is_shown() -> None:
    async def refuse(request: Request, reply: Reply) -> None:
        if request.path.endswith("/models"):
            await reply.json({"data": []})
        else:
            await reply.start(200, {"content-type": "text/event-stream"})
            await reply.send(sse_chunk({"refusal": "I will not."}) + sse_chunk({}, "stop") + b"data: [DONE]\n\n")
            await reply.end()

    with FakeServer(refuse) as model:
        async with talking(model.url) as client:
            assert (await client.rest(await client.begin()))[0] == ["I will not."]


@scenario
async def test_a_newer_load_takes_the_place_of_the_older_and_lets_its_generations_end() -> None:
    with FakeServer() as old, FakeServer() as new:
        async with talking(old.url) as client:
            old.reply(MANY, delay=[0, 0.2])
            id_ = await client.begin()
            assert await client.chunk(id_) == MANY[0]
            await client.say("load", "l", provider="vllm", base_url=new.url)
            await client.hear("load_ack")
            await client.hear("load_done")
            assert (await client.rest(id_))[0] == MANY[1:]
            await client.generate()
        assert [request.path for request in new.requests] == ["/v1/models", "/v1/chat/completions"]


@scenario
async def test_a_load_that_still_runs_ends_when_another_one_comes() -> None:
    with FakeServer(hang) as slow, FakeServer() as model:
        async with talking() as client:
            await client.say("load", "a", provider="vllm", base_url=slow.url)
            await client.hear("load_ack")
            await client.say("load", "b", provider="vllm", base_url=model.url)
            assert (await client.hear("load_ack"))["unique_request_id"] == "b"
            ended = {message["unique_request_id"]: message["error"] for message in [await client.hear("load_done"), await client.hear("load_done")]}
            assert ended == {"a": "INTERRUPT", "b": "SUCCESS"}
            assert (await client.generate())["error"] == "SUCCESS"
        await left(slow)


@scenario
async def test_a_model_is_warmed_up_and_then_the_one_to_ask() -> None:
    with FakeServer() as model:
        async with talking() as client:
            assert (await client.load(base_url=model.url, preload_model_id="warm"))["error"] == "SUCCESS"
            await client.generate(model_id="")
        _, warmed, asked = model.requests
        assert (warmed.json()["model"], warmed.json()["max_tokens"]) == ("warm", 1)
        assert asked.json()["model"] == "warm"


@scenario
async def test_without_a_list_of_models_a_call_proves_the_key() -> None:
    with FakeServer() as model:
        async with talking() as client:
            for provider in ("novelai", "perplexity"):
                assert (await client.load(provider, base_url=model.url, api_key="k"))["error"] == "SUCCESS"
            model.fail(404, code="model_not_found")
            assert (await client.load("novelai", base_url=model.url, api_key="k"))["error"] == "SUCCESS"  # it took the key
            model.fail(401)
            assert (await client.load("novelai", base_url=model.url, api_key="k"))["error"] == "AUTHORIZATION"
            model.fail(404, code="model_not_found")
            named = await client.load("novelai", base_url=model.url, api_key="k", preload_model_id="none")
            assert named["error"] == "INVALID_MODEL"
        assert all(request.path == "/v1/chat/completions" for request in model.requests)


@scenario
async def test_a_list_that_all_may_read_proves_no_key() -> None:
    async def model(request: Request, reply: Reply) -> None:
        if request.path.endswith("/models"):
            await reply.json({"data": [{"id": "m"}]})
        elif request.headers["authorization"] == "Bearer right":
            await reply.json({"error": {"message": "unnamed is not a valid model ID", "code": 400}}, 400)
        else:
            await reply.json({"error": {"message": "User not found.", "code": 401}}, 401)

    with FakeServer(model) as server:
        async with talking() as client:
            assert (await client.load("openrouter", base_url=server.url, api_key="wrong"))["error"] == "AUTHORIZATION"
            assert (await client.load("openrouter", base_url=server.url, api_key="right"))["error"] == "SUCCESS"
            await client.say("get_models")
            assert (await client.hear("get_models_done"))["models"] == ["m"]


# --- every error code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, "invalid_api_key", "AUTHORIZATION"),
        (403, "forbidden", "AUTHORIZATION"),
        (400, "bad", "INVALID_PROMPT"),
        (400, "context_length_exceeded", "INVALID_PROMPT"),
        (400, "content_filter", "INVALID_PROMPT"),
        (404, "model_not_found", "INVALID_MODEL"),
        (429, "insufficient_quota", "UNEXPECTED"),
    ],
)
@scenario
async def test_what_the_provider_says(status: int, body: str, code: str) -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            model.fail(status, code=body)
            done = await client.generate()
            assert (done["is_error"], done["error"], done["response"]) == (True, code, "")
            assert done["error_detail"]
            model.fail(status, code=body)
            chunks, done = await client.rest(await client.begin())
            assert (chunks, done["is_error"], done["error"]) == ([], True, code)


@scenario
async def test_load_tells_what_is_wrong() -> None:
    with FakeServer() as model, FakeServer(hang) as gone:
        pass
    with FakeServer() as model:
        async with talking() as client:
            model.fail(401, code="invalid_api_key")
            assert (await client.load(base_url=model.url, api_key="sk-wrong"))["error"] == "AUTHORIZATION"
            model.fail(403)
            assert (await client.load(base_url=model.url))["error"] == "AUTHORIZATION"
            assert (await client.load("groq", api_key="a b"))["error"] == "AUTHORIZATION"
            assert (await client.load("openai"))["error"] == "AUTHORIZATION"  # no key anywhere
            unknown = await client.load("gorq")
            assert unknown["error"] == "INVALID_PROVIDER"
            assert "'groq'" in unknown["error_detail"]
            assert (await client.load("azure", api_key="k"))["error"] == "INVALID_PROVIDER"  # it takes a base_url
            assert (await client.load(base_url="file:///etc/passwd"))["error"] == "INVALID_PROVIDER"
            assert (await client.load(base_url=gone.url))["error"] == "UNEXPECTED"  # nobody listens there
            assert (await client.generate())["error"] == "INVALID_PROVIDER"  # after a load that failed nothing is loaded


@scenario
async def test_messages_and_params_that_are_wrong() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            for wrong in ([], [1], [{}], [{"role": "robot", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 7}], [{"role": "user", "content": "\ud83d"}]):
                assert (await client.generate(messages=wrong))["error"] == "INVALID_PROMPT"
            for params in ({"temperature": "hot"}, {"max_output_length": 0}, {"stop_tokens": [13]}, {"timeout_ms": -1}, {"model_id": 7}):
                assert (await client.generate(**params))["error"] == "INVALID_PROMPT"
            assert (await client.generate())["error"] == "SUCCESS"
        assert len(model.requests) == 2


@scenario
async def test_before_load() -> None:
    async with talking() as client:
        assert (await client.generate())["error"] == "INVALID_PROVIDER"
        assert (await client.rest(await client.begin()))[1]["error"] == "INVALID_PROVIDER"
        await client.say("get_models")
        assert (await client.hear("get_models_done"))["error"] == "INVALID_PROVIDER"


@scenario
async def test_timeouts() -> None:
    with FakeServer(wait) as model:
        async with talking(model.url) as client:
            for stream in (False, True):
                began = time.monotonic()
                id_ = await client.begin(stream=stream, timeout_ms=150)
                assert (await client.hear())["error"] == "TIMEOUT", id_
                assert 0.14 < time.monotonic() - began < 2
        await left(model)


@scenario
async def test_in_a_stream_the_timeout_starts_again_with_every_chunk() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            model.reply(["x"] * 6, delay=0.25)
            chunks, done = await client.rest(await client.begin(timeout_ms=1000))
            assert (len(chunks), done["error"]) == (6, "SUCCESS")
            model.reply(["x"] * 3, delay=[0, 0, 5])
            chunks, done = await client.rest(await client.begin(timeout_ms=300))
            assert (len(chunks), done["error"]) == (2, "TIMEOUT")
            assert done["usage"]["estimated"]  # what is known of the half


@scenario
async def test_the_first_chunk_comes_in_time_whatever_is_retried() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            for _ in range(3):
                model.fail(503)
            began = time.monotonic()
            assert (await client.rest(await client.begin(timeout_ms=300)))[1]["error"] == "TIMEOUT"
            assert time.monotonic() - began < 2


@scenario
async def test_a_stream_that_breaks() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            model.break_off("truncate", after="half")
            chunks, done = await client.rest(await client.begin())
    assert ("".join(chunks), done["error"]) == ("half", "UNEXPECTED")
    assert done["usage"]["completion_tokens"] > 0


@scenario
async def test_a_fault_of_ours_is_told_and_says_nothing_of_the_talk(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("What is new?")

    with FakeServer() as model:
        async with talking(model.url) as client:
            monkeypatch.setattr(server, "messages_of", fail)
            done = await client.generate()
    assert (done["error"], done["error_detail"]) == ("UNEXPECTED", "The gateway failed (RuntimeError).")
    assert "What is new?" not in caplog.text
    assert "RuntimeError at" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


@scenario
async def test_a_provider_that_lists_nothing_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_LIST", 0.1)
    with FakeServer(hang) as model:
        async with talking() as client:
            assert (await client.load(base_url=model.url))["error"] == "TIMEOUT"
        await left(model)


# --- interrupts ---------------------------------------------------------------------------------------------------


@scenario
async def test_interrupt_ends_all_and_tells_the_model_server() -> None:
    with FakeServer(wait) as model:
        async with talking(model.url) as client:
            ids = {await client.begin(stream=stream) for stream in (True, False)}
            await asyncio.to_thread(model.wait_for, lambda it: it.live == 2)
            await client.say("interrupt", "i")
            assert await client.hear() == {"type": "interrupt_ack", "unique_request_id": "i"}
            dones = [await client.hear(), await client.hear()]
            assert {done["unique_request_id"] for done in dones} == ids
            assert {(done["is_error"], done["error"]) for done in dones} == {(True, "INTERRUPT")}
            await left(model)
            assert client.gateway.port  # it goes on


@scenario
async def test_interrupt_ends_one() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            for _ in range(2):
                model.reply(["x"] * 3, delay=[0, 0.3])
            first, second = await client.begin("first"), await client.say("generate", "second", messages=QUESTION, params={"model_id": "m"}, stream=True)
            while {message["unique_request_id"] for message in client.heard if message["type"] == "generate_stream_chunk"} < {first, second}:
                await client.hear()
            await client.say("interrupt", target=first)
            rest = [await client.hear() for _ in range(5)]
    assert rest[0]["type"] == "interrupt_ack"
    (ended,) = [message for message in rest if message["unique_request_id"] == first]
    assert (ended["error"], ended["usage"]["estimated"]) == ("INTERRUPT", True)
    assert rest[-1]["type"] == "generate_stream_done"
    assert (rest[-1]["unique_request_id"], rest[-1]["error"]) == (second, "SUCCESS")


@scenario
async def test_interrupt_before_anything_was_sent_to_the_model() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            say = client.socket.send
            await asyncio.gather(  # both come in with one read
                say(json.dumps({"type": "generate", "unique_request_id": "g", "messages": QUESTION, "params": {"model_id": "m"}})),
                say(json.dumps({"type": "interrupt", "unique_request_id": "i"})),
            )
            told = [await client.hear() for _ in range(3)]
    assert [message["type"] for message in told] == ["generate_ack", "interrupt_ack", "generate_done"]
    assert told[-1]["error"] == "INTERRUPT"


@scenario
async def test_interrupt_where_nothing_runs() -> None:
    async with talking() as client:
        await client.say("interrupt")
        await client.hear("interrupt_ack")
        await client.say("interrupt", target="none")
        await client.hear("interrupt_ack")
        await client.say("interrupt", "x", target=7)
        error = await client.hear("error")
    assert (error["unique_request_id"], error["error"]) == ("x", "UNEXPECTED")


@scenario
async def test_who_leaves_interrupts_what_ran() -> None:
    with FakeServer(wait) as model:
        async with Gateway(port=0) as gateway, connecting(gateway) as other:
            async with connecting(gateway) as client:
                await client.load(base_url=model.url)
                await client.begin()
                await asyncio.to_thread(model.wait_for, lambda it: it.live == 1)
            await left(model)
            assert await other.load(base_url=model.url)
        assert model.connections <= 1


@scenario
async def test_who_leaves_without_a_word_interrupts_too() -> None:
    with FakeServer(wait) as model:
        async with Gateway(port=0) as gateway, connecting(gateway) as client:
            await client.load(base_url=model.url)
            await client.begin(stream=False)
            await asyncio.to_thread(model.wait_for, lambda it: it.live == 1)
            client.socket.transport.abort()
            await left(model)


@scenario
async def test_who_leaves_leaves_no_connection_behind() -> None:
    with FakeServer() as old, FakeServer() as new:
        async with Gateway(port=0) as gateway:
            async with connecting(gateway) as client:
                for model in (old, new):
                    await client.load(base_url=model.url)
                    await client.generate()
                assert new.connections
            for model in (old, new):
                await asyncio.to_thread(model.wait_for, lambda it: not it.connections, 2)  # the pool itself would take 4 s


# --- messages that are none -----------------------------------------------------------------------------------------


@scenario
async def test_what_is_no_request_is_answered_and_harms_nothing() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            for data in ("{", "[]", b"\x00\xff", b"\xff" * 1000, "", '{"unique_request_id": 1}', '{"type": "close"}'):
                await client.socket.send(data)
                error = await client.hear("error")
                assert (error["unique_request_id"], error["error"]) == (None, "UNEXPECTED")
            await client.socket.send(b"\xff\xfe", text=True)
            await client.hear("error")
            await client.say("generate_streamed", "x")
            assert (await client.hear("error"))["unique_request_id"] == "x"
            await client.socket.send(json.dumps({"type": "get_models", "unique_request_id": "b"}).encode())
            assert (await client.hear("get_models_done"))["unique_request_id"] == "b"
            assert (await client.generate())["error"] == "SUCCESS"


@scenario
async def test_a_duplicate_harms_the_newcomer_only() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            model.reply(MANY, delay=[0, 0.2])
            id_ = await client.begin()
            assert await client.chunk(id_) == MANY[0]
            await client.say("generate", id_, messages=[], stream=True)
            error = await client.hear("error")
            assert (error["unique_request_id"], error["error"]) == (id_, "UNEXPECTED")
            assert (await client.rest(id_))[0] == MANY[1:]


@scenario
async def test_fragments_pings_and_an_offer_to_compress() -> None:
    async def pieces(text: str) -> AsyncIterator[str]:
        for character in text:
            yield character

    async with Gateway(port=0) as gateway, connect(gateway.url.replace("http", "ws", 1), compression="deflate") as socket:
        client = Client(gateway, socket)
        assert not socket.protocol.extensions
        await socket.send(pieces(json.dumps({"type": "get_models", "unique_request_id": "in pieces"})))
        assert (await client.hear("get_models_done"))["unique_request_id"] == "in pieces"
        await asyncio.wait_for(await socket.ping(), 5)


@scenario
async def test_who_speaks_before_the_handshake_is_answered() -> None:
    request = b'{"type": "get_models", "unique_request_id": "early"}'
    headers = "Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    async with Gateway(port=0) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(f"GET / HTTP/1.1\r\n{headers}\r\n\r\n".encode() + bytes([0x81, 0x80 | len(request), 0, 0, 0, 0]) + request)
        heard = await asyncio.wait_for(reader.readuntil(b'"early"'), 5)
        assert heard.startswith(b"HTTP/1.1 101 ")
        writer.close()
        await writer.wait_closed()


@scenario
async def test_a_large_message_comes_in_and_a_larger_one_closes_the_socket() -> None:
    with FakeServer() as model:
        async with Gateway(port=0) as gateway:
            client = Client(gateway, await connect(gateway.url.replace("http", "ws", 1), compression=None))
            await client.load(base_url=model.url)
            large = "x" * (8 * 2**20)
            assert (await client.generate(messages=[{"role": "user", "content": large}]))["error"] == "SUCCESS"
            assert len(model.requests[-1].json()["messages"][0]["content"]) == len(large)
            with contextlib.suppress(ConnectionClosed):
                await client.socket.send("x" * (16 * 2**20 + 1))
            assert (await closed(client.socket))[0] == 1009
            async with connecting(gateway) as other:
                await other.say("get_providers")
                await other.hear("get_providers_done")


# --- time -----------------------------------------------------------------------------------------------------------


@scenario
async def test_acks_do_not_wait_for_the_provider() -> None:
    with FakeServer(hang) as slow:
        async with talking() as client:
            took = []
            for n in range(5):
                began = time.perf_counter()
                await client.say("load", f"l{n}", provider="vllm", base_url=slow.url if n % 2 else "https://nowhere.invalid")
                while (await client.hear())["type"] != "load_ack":
                    pass
                await client.say("get_models", f"g{n}")
                while (await client.hear())["type"] != "get_models_done":
                    pass
                took.append(time.perf_counter() - began)
    assert min(took) < 0.05  # the others are the machine's


@scenario
async def test_a_slow_client_gets_all_in_fewer_chunks_and_holds_nobody() -> None:
    pieces = [f"{n:<8192}" for n in range(800)]  # more than the system's own buffers take
    with FakeServer() as model:
        async with Gateway(port=0) as gateway, connecting(gateway, max_queue=1, sock=narrow(gateway)) as slow, connecting(gateway) as other:
            for client in (slow, other):
                await client.load(base_url=model.url)
            model.reply(pieces)
            id_ = await slow.begin()
            await until(lambda: any(served._outbox for served in gateway._clients))
            await left(model)  # read to its end, though the client has taken nothing of it
            assert (await other.generate())["error"] == "SUCCESS"
            chunks, done = await slow.rest(id_)
    assert "".join(chunks) == "".join(pieces)
    assert len(chunks) < len(pieces)
    assert max(map(len, chunks)) < 2**17
    assert done["error"] == "SUCCESS"


@scenario
async def test_a_hopeless_client_is_closed_and_what_it_ran_ends() -> None:
    with FakeServer() as model:
        async with Gateway(port=0) as gateway, connecting(gateway, max_queue=1, sock=narrow(gateway)) as hopeless:
            await hopeless.load(base_url=model.url)
            model.reply(["x" * 65536] * 480)
            model.reply(["y", "y"], delay=[0, 60])
            await hopeless.begin("flood")
            await hopeless.say("generate", "other", messages=QUESTION, params={"model_id": "m"}, stream=True)
            await asyncio.to_thread(model.wait_for, lambda it: len(it.requests) == 3 and not it.connections)  # the slow one too
            assert (await closed(hopeless.socket))[0] == 1008


@scenario
async def test_a_client_that_takes_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PATIENCE", 0.1)
    with FakeServer() as model:
        async with Gateway(port=0) as gateway, connecting(gateway, max_queue=1, sock=narrow(gateway)) as stuck:
            await stuck.load(base_url=model.url)
            model.reply(["x" * 65536] * 160)
            await stuck.begin()
            (served,) = gateway._clients
            await until(lambda: served._hopeless)
            assert (await closed(stuck.socket))[0] == 1008


# --- the end --------------------------------------------------------------------------------------------------------


@scenario
async def test_close_tells_all_and_ends() -> None:
    with FakeServer(wait) as model:
        async with Gateway(port=0) as gateway, connecting(gateway) as one, connecting(gateway) as two:
            for client in (one, two):
                await client.load(base_url=model.url)
                await client.begin("g")
            await one.say("close", "c")
            assert await one.hear() == {"type": "close_ack", "unique_request_id": "c"}
            began = time.monotonic()
            for client in (one, two):
                code, heard = await closed(client.socket)
                assert code == 1001
                assert [(message["type"], message["error"]) for message in heard] == [("generate_stream_done", "INTERRUPT")]
            await asyncio.wait_for(gateway.wait_closed(), 2)
            assert time.monotonic() - began < 2
            await left(model)
            with pytest.raises(OSError):
                await connect(gateway.url.replace("http", "ws", 1))


@scenario
async def test_what_begins_while_it_ends_is_told_too() -> None:
    with FakeServer() as model:
        async with talking(model.url) as client:
            (served,) = client.gateway._clients
            served.stop()
            assert (await client.generate())["error"] == "INTERRUPT"
            assert (await client.load(base_url=model.url))["error"] == "INTERRUPT"
        assert len(model.requests) == 1


@scenario
async def test_a_slow_client_is_told_at_the_end_too() -> None:
    pieces = [f"{n:<65536}" for n in range(100)]
    with FakeServer() as model:
        async with Gateway(port=0) as gateway, connecting(gateway, max_queue=1, sock=narrow(gateway)) as slow:
            await slow.load(base_url=model.url)
            model.reply([*pieces, "never"], delay=[0] * 100 + [60])
            await slow.begin()
            (served,) = gateway._clients
            await until(lambda: served._outbox)
            gateway.close()
            code, heard = await closed(slow.socket)
            assert (code, heard[-1]["type"], heard[-1]["error"]) == (1001, "generate_stream_done", "INTERRUPT")
            assert "".join(pieces).startswith("".join(message["chunk"] for message in heard[:-1]))
            assert len(heard) > 10


@scenario
async def test_it_ends_in_time_whatever_its_clients_do() -> None:
    gateway = Gateway(port=0)
    async with gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)  # says nothing at all
        async with connecting(gateway, max_queue=1) as deaf:
            deaf.socket.transport.pause_reading()
            began = time.monotonic()
            gateway.close()
            gateway.close()
            await gateway.wait_closed()
            assert time.monotonic() - began < 2
            deaf.socket.transport.abort()
        writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@scenario
async def test_a_gateway_may_run_again() -> None:
    gateway = Gateway(port=0)
    for _ in range(2):
        async with gateway, connecting(gateway) as client:
            await client.say("get_providers")
            await client.hear("get_providers_done")
        await asyncio.wait_for(gateway.wait_closed(), 2)


def test_a_gateway_that_does_not_run_has_no_address() -> None:
    with pytest.raises(LLMConfigurationError, match="async with"):
        _ = Gateway().url


# --- who may come in ------------------------------------------------------------------------------------------------


async def refused(gateway: Gateway, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as caught:
        await connect(gateway.url.replace("http", "ws", 1), **options)
    return caught.value.response.status_code


@scenario
async def test_the_token() -> None:
    async with Gateway(port=0, token="tok-1") as gateway:
        assert await refused(gateway) == 401
        assert await refused(gateway, additional_headers={"Authorization": "Bearer wrong"}) == 401
        assert await refused(gateway, subprotocols=["bearer.wrong"]) == 401
        for options in ({"additional_headers": {"Authorization": "Bearer tok-1"}}, {"subprotocols": ["other", "bearer.tok-1"]}):
            async with connecting(gateway, **options) as client:
                await client.say("get_providers")
                await client.hear("get_providers_done")
        assert client.socket.subprotocol == "bearer.tok-1"
        assert "tok-1" not in repr(vars(gateway))


@scenario
async def test_origins() -> None:
    async with Gateway(port=0, allow_origins=["https://example.org"]) as gateway:
        own = gateway.url.rstrip("/")
        assert await refused(gateway, origin="https://evil.example") == 403
        assert await refused(gateway, origin="null") == 403
        assert await refused(gateway, additional_headers={"Host": "evil.example"}) == 403
        for origin in (own, "https://example.org", None):
            async with connecting(gateway, origin=origin) as client:
                await client.say("get_providers")
                await client.hear("get_providers_done")


@scenario
async def test_close_is_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "is_loopback", lambda _: False)  # as of a client elsewhere
    async with talking() as client:
        await client.say("close", "c")
        error = await client.hear("error")
        assert (error["unique_request_id"], error["error"]) == ("c", "AUTHORIZATION")


async def get(gateway: Gateway, path: str, *lines: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    host = () if any(line.startswith("Host:") for line in lines) else (f"Host: 127.0.0.1:{gateway.port}",)
    writer.write("\r\n".join((f"{method} {path} HTTP/1.1", *host, *lines, "", "")).encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}, body


@scenario
async def test_the_page() -> None:
    async with Gateway(port=0, token="tok") as gateway:  # which the page asks for, and needs not
        status, headers, body = await get(gateway, "/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert body.lower().startswith(b"<!doctype html>")
        assert int(headers["content-length"]) == len(body)
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        status, headers, body = await get(gateway, "/client.js?x=1")
        assert (status, headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        for path in ("/server.py", "/../server.py", "/page/index.html", "/%2e%2e/server.py", "//client.js", "/page", "/favicon.ico"):
            assert (await get(gateway, path))[0] == 404
        assert (await get(gateway, "/", method="POST"))[0] == 405
        assert (await get(gateway, "/", "Host: evil.example"))[0] == 403
        assert (await get(gateway, "/", "Host: 127.0.0.1", "Host: 127.0.0.1"))[0] in (400, 403)
        assert (await get(gateway, "/", "Origin: https://evil.example"))[0] == 403


# --- keys and settings ------------------------------------------------------------------------------------------------


@scenario
async def test_a_key_is_said_to_the_provider_and_to_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    key = "sk-SECRET-1"

    async def echo(request: Request, reply: Reply) -> None:
        said = request.headers["authorization"]
        await reply.json({"error": {"message": f"You said {said}", "code": said}}, 401 if request.path.endswith("/models") else 400)

    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets").setLevel(logging.DEBUG)
    try:
        with FakeServer(echo) as model:
            async with Gateway(port=0, token="TOKEN-2") as gateway:
                async with connecting(gateway, subprotocols=["bearer.TOKEN-2"], logger=SILENT) as client:
                    done = await client.load(base_url=model.url, api_key=key)
                    assert "You said" in done["error_detail"]
                    await client.load(provider=key[:9], base_url=model.url, api_key=f"{key} {key}")
                    (served,) = gateway._clients
                    shown = repr((vars(gateway), vars(served), vars(served._session)))
        assert model.requests[0].headers["authorization"] == f"Bearer {key}"
    finally:
        logging.getLogger("websockets").setLevel(logging.NOTSET)
    assert len(caplog.records) > 3
    for text in (caplog.text, json.dumps(client.heard), shown):
        assert key not in text
        assert "TOKEN-2" not in text


@scenario
async def test_keys_of_the_gateway_never_go_to_a_url_of_a_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in {name for row in BY_NAME.values() for name in row.key_env} | {"OPENAI_ORG_ID", "OPENAI_PROJECT_ID"}:
        monkeypatch.setenv(name, "sk-OURS")
    with FakeServer() as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        file = tmp_path / "llm.yaml"
        file.write_text("home:\n  base_url: http://127.0.0.1:1\n  api_key: sk-OURS\n")
        async with talking(config=str(file)) as client:
            for provider in (*BY_NAME, "home", "whatever", "local"):
                await client.load(provider, base_url=model.url)
                await client.generate()
        assert len(model.requests) >= 2 * len(BY_NAME)
        assert not [request for request in model.requests if "sk-OURS" in repr(request.headers)]


@scenario
async def test_sections_of_a_file_can_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason='PyYAML is not installed: pip install ".[yaml]"')
    monkeypatch.setenv("HOME_KEY", "sk-home")
    monkeypatch.setenv("GROQ_API_KEY", "sk-groq")
    with FakeServer() as model:
        file = tmp_path / "llm.yaml"
        file.write_text(f"temperature: 0.25\nbase_url: {model.url}\nhome:\n  api_key: ${{HOME_KEY}}\n  model: own\ngroq:\n  timeout: 5\n")
        async with talking(config=str(file)) as client:
            await client.say("get_providers")
            assert {"home", "default", "openai", "local"} < set((await client.hear())["providers"])
            for provider in ("home", "groq", "default"):
                assert (await client.load(provider))["error"] == "SUCCESS"
                assert (await client.generate(model_id="" if provider == "home" else "m"))["error"] == "SUCCESS"
            assert (await client.load("home", api_key="sk-mine"))["error"] == "SUCCESS"
        keys = [request.headers.get("authorization") for request in model.requests]
        assert keys == [*["Bearer sk-home"] * 2, *["Bearer sk-groq"] * 2, None, None, "Bearer sk-mine"]
        asked = [request.json() for request in model.requests if request.path.endswith("completions")]
        assert [(it["model"], it["temperature"]) for it in asked] == [("own", 0.25), ("m", 0.25), ("m", 0.25)]


def test_a_file_that_is_wrong_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(LLMConfigurationError, match="nothing"):
        Gateway(config=str(tmp_path / "nothing.yaml"))


# --- the local model ----------------------------------------------------------------------------------------------------


class FakeLocal:
    """What stands for llama.cpp: a server that answers, and can die."""

    running: list[FakeLocal]

    def __init__(self) -> None:
        self.server: FakeServer | None = FakeServer()
        self.running.append(self)

    def __enter__(self) -> str:
        return self.server.__enter__().url

    def __exit__(self, *_: object) -> None:
        self.running.remove(self)
        self.die()

    def die(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.__exit__(None, None, None)


@scenario
async def test_the_local_model_is_started_once_again_if_it_dies_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLocal.running = []
    monkeypatch.setattr(loading, "LocalServer", FakeLocal)
    async with Gateway(port=0) as gateway, connecting(gateway) as one, connecting(gateway) as two:
        assert not FakeLocal.running
        for client in (one, two):
            assert (await client.load("local"))["error"] == "SUCCESS"
            assert (await client.generate(model_id=""))["error"] == "SUCCESS"
        (first,) = FakeLocal.running
        first.die()
        assert (await one.load("local"))["error"] == "SUCCESS"
        (second,) = FakeLocal.running
        assert second is not first
    assert not FakeLocal.running


@scenario
async def test_a_local_model_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise LLMConfigurationError("a local model needs xllamacpp")

    monkeypatch.setattr(loading, "LocalServer", fail)
    async with talking() as client:
        for _ in range(2):
            done = await client.load("local")
            assert (done["error"], done["error_detail"]) == ("INVALID_PROVIDER", "a local model needs xllamacpp")


def test_every_type_and_every_code_is_here() -> None:
    from jazz_llm.gateway.protocol import MESSAGES, Code

    text = Path(__file__).read_text() + Path(__file__).with_name("talking.py").read_text()
    assert not [row.name for row in MESSAGES if f'"{row.name}"' not in text]
    assert not [code for code in Code if f'"{code}"' not in text]


