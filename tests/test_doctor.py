"""``jazz-llm doctor`` as a person runs it: against servers that can, that cannot, and that lie."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from jazz_llm.testing import Authority, FakeServer, Reply, Request, sse_chunk

pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')

NAMES = [
    "endpoint",
    "models",
    "model",
    "whole answers",
    "streaming",
    "usage in streams",
    "[DONE]",
    "json_schema",
    "tools",
    "stream stopped",
    "answer stopped",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jazz_llm", "doctor", *arguments]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, env=environment, check=False)


def table(output: str) -> dict[str, tuple[str, str]]:
    """Return the verdict and the detail of each line."""
    lines = [re.fullmatch(r"(.{18}) (\S+) *(.*)", line) for line in output.splitlines()]
    return {found.group(1).rstrip(): (found.group(2), found.group(3)) for found in lines if found}


class Server:
    """A server with some abilities; it counts what it is working on as vLLM does, where ``counts``."""

    def __init__(self, **able: bool) -> None:
        self.able = able
        self.running = 0

    async def __call__(self, request: Request, reply: Reply) -> None:
        if request.path == "/v1/models":
            await reply.json({"data": [{"id": "first"}, {"id": "second"}]})
        elif request.path == "/metrics" and self.able.get("counts"):
            await reply.start(200, {"content-type": "text/plain"})
            await reply.send(f'# HELP x\nvllm:num_requests_running{{model_name="m"}} {self.running}.0\n'.encode())
            await reply.end()
        elif request.path == "/v1/chat/completions":
            await self.chat(request.json(), reply)
        else:
            await reply.json({"error": {"message": "no such path"}}, 404)

    async def chat(self, asked: dict[str, Any], reply: Reply) -> None:
        if asked["max_tokens"] > 1000:
            await self.work(asked, reply)
        elif asked.get("response_format"):
            await reply.text('{"colour": "blue"}' if self.able.get("schema") else "Blue.")
        elif asked.get("tool_choice") == "required" and not self.able.get("required"):
            await reply.json({"error": {"message": "tool_choice required is not supported"}}, 400)
        elif asked.get("tools") and self.able.get("tools"):
            call = {"id": "1", "type": "function", "function": {"name": "paint", "arguments": '{"colour": "blue"}'}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            await reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
        elif asked.get("stream_options") and not self.able.get("stream_options"):
            await reply.json({"error": {"message": "extra_forbidden: stream_options"}}, 422)
        elif asked.get("stream") and self.able.get("streams"):
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5} if self.able.get("usage") else None
            await reply.sse(["Bl", "ue"], usage=usage, done=self.able.get("done", False))
        else:
            await reply.text("Blue.")

    async def work(self, asked: dict[str, Any], reply: Reply) -> None:
        self.running += 1
        try:
            if asked.get("stream"):
                await reply.start(200, {"content-type": "text/event-stream"})
                await reply.send(sse_chunk("1"))
            await reply.cancelled()
        finally:
            self.running -= 1


def test_a_server_that_can_do_everything() -> None:
    able = Server(counts=True, schema=True, tools=True, required=True, stream_options=True, streams=True, usage=True, done=True)
    with FakeServer(able) as server:
        done = run(server.url)
    found = table(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[:18].rstrip() for line in done.stdout.splitlines()] == NAMES
    assert found["streaming"][0] in ("yes", "unclear")  # two events may come in one read
    assert {found[name][0] for name in NAMES if name not in ("endpoint", "model", "streaming")} == {"yes"}
    assert found["models"][1] == "first, second"
    assert found["model"] == ("first", "(the first; -m MODEL takes another)")
    assert found["json_schema"][1] == '{"colour": "blue"}'
    assert found["tools"][1] == 'paint({"colour": "blue"})'
    assert "HTTP/1.1" in found["whole answers"][1]
    assert "the server had stopped within" in found["answer stopped"][1]


def test_a_server_that_can_do_nothing_but_answer() -> None:
    with FakeServer(Server()) as server:
        done = run(server.url, "-m", "mine")
    found = table(done.stdout)
    assert done.returncode == 0
    assert found["model"] == ("mine", "")
    assert found["streaming"] == ("no", "the answer is application/json, no event stream")
    assert "usage in streams" not in found
    assert found["json_schema"] == ("no", "taken, but not kept to: 'Blue.'")
    assert found["tools"][0] == "no"
    assert "refused: tool_choice required is not supported" in found["tools"][1]
    assert found["answer stopped"] == ("unclear", "the server does not say how many requests it is working on (/slots, /metrics)")
    assert {request.json()["model"] for request in server.requests if request.method == "POST"} == {"mine"}


def test_a_server_that_refuses_stream_options_and_says_no_done() -> None:
    with FakeServer(Server(streams=True, usage=True, tools=True)) as server:
        found = table(run(server.url).stdout)
    assert found["streaming"][0] in ("yes", "unclear")  # two events may come in one read
    assert found["usage in streams"][0] == "yes"
    assert "stream_options is refused: " in found["usage in streams"][1]
    assert found["[DONE]"] == ("no", "")
    assert found["tools"][0] == "yes"
    assert "tool_choice='required' is refused" in found["tools"][1]


def test_over_http2_and_with_a_key(authority: Authority) -> None:
    with FakeServer(tls=authority) as server:
        done = run(server.url, "--api-key", "sk-secret", SSL_CERT_FILE=authority.path)
    assert "HTTP/2" in table(done.stdout)["whole answers"][1]
    assert all(request.headers["authorization"] == "Bearer sk-secret" for request in server.requests)
    assert "sk-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("status", "words"), [(401, "HTTP 401"), (500, "HTTP 500"), (200, "web page")], ids=["wrong key", "broken", "no API"]
)
def test_where_nothing_answers_it_says_why_and_fails(status: int, words: str) -> None:
    async def refuse(_: Request, reply: Reply) -> None:
        await reply.start(status, {"content-type": "text/html"})
        await reply.send(b"<html><title>Welcome\x1b[31m</title></html>")
        await reply.end()

    with FakeServer(refuse) as server:
        done = run(server.url, "-m", "m")
        unknown = run(server.url)
    assert (done.returncode, done.stderr) == (1, "")
    assert table(done.stdout)["whole answers"][0] == "no"
    assert words in table(done.stdout)["whole answers"][1]
    assert "\x1b" not in done.stdout
    assert (unknown.returncode, unknown.stderr) == (2, "jazz-llm: which model? Pass -m MODEL.\n")


def test_a_stream_of_nonsense_is_no_crash() -> None:
    async def nonsense(request: Request, reply: Reply) -> None:
        if request.method == "POST" and request.json().get("stream"):
            await reply.start(200, {"content-type": "text/event-stream"})
            await reply.send(b"data: {nonsense\n\ndata: 7\n\ndata: []\n\n")
            await reply.end()
        elif request.method == "POST":
            await reply.text("Blue.")
        else:
            await reply.json([[1], {"is_processing": {}}, "model"])

    with FakeServer(nonsense) as server:
        done = run(server.url, "-m", "m")
    assert (done.returncode, done.stderr) == (0, "")
    assert table(done.stdout)["usage in streams"][0] == "no"


@pytest.mark.parametrize("page", ["/slots", "/metrics", "stream", "/v1/models"])
def test_a_server_that_never_stops_talking_is_cut_short(page: str) -> None:
    async def endless(request: Request, reply: Reply) -> None:
        asked = request.json() if request.method == "POST" else {}
        if request.path == page or (page == "stream" and asked.get("stream")):
            await reply.start(200, {"content-type": "application/json"})
            while True:
                await reply.send(b" " * 2**16)
        if request.method == "POST":
            await reply.text("Blue.")
        else:
            await reply.json({})

    with FakeServer(endless) as server:
        done = run(server.url, "-m", "m")
    assert (done.returncode, done.stderr) == (0, "")
    assert table(done.stdout)["answer stopped"][0] == "unclear"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_stops_it_and_the_answer_under_way() -> None:
    able = Server(counts=True, streams=True, stream_options=True)

    async def never_counts_down(request: Request, reply: Reply) -> None:
        if request.path == "/metrics":  # as if it worked on nothing, so that the wait goes on
            await reply.start(200, {"content-type": "text/plain"})
            await reply.send(b"vllm:num_requests_running 0.0\n")
            await reply.end()
        else:
            await able(request, reply)

    with FakeServer(never_counts_down) as server:
        with subprocess.Popen(command(server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            server.wait_for(lambda _: able.running == 1, 30)
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=10)
        assert (child.returncode, errors.strip()) == (130, "")
        server.wait_for(lambda s: s.live == 0)
