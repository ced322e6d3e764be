"""The logger ``jazz_llm``: one line a call, details at DEBUG, and neither content nor key in any of them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from jazz_llm import LLMError, LLMOverloadedError, LLMTimeoutError, OpenAICompatibleLLM, RetryPolicy
from jazz_llm.testing import FakeServer, Reply, Request, sse_chunk

from .colours import Async, Sync

KEY = "sk-canary-0123456789"
PROMPT = "tell nobody of the heron"
ANSWER = "the heron flew"
LINE = re.compile(r"(\w+) ([0-9a-f]{16}) provider=(\S+) model=(\S+) end=(\S+) ms=(\d+) tokens=(\S+) attempts=(\d+) request_id=(\S+)")


@pytest.fixture(autouse=True)
def no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the level of the machine's own wishes out of these tests."""
    monkeypatch.setattr(logging.getLogger("jazz_llm"), "level", logging.NOTSET)


async def handler(request: Request, reply: Reply) -> None:
    """Answer well, or as the last words of the message say; every failure quotes the key and the message."""
    said = request.json()["messages"][-1]["content"]
    quoted = {"error": {"message": f"{said}: {KEY}", "code": said, "type": KEY, "param": said}}
    headers = {"x-request-id": "req_1"}
    if said.endswith("refuse"):
        await reply.json(quoted, 401, {"x-request-id": f"req {KEY}"})
    elif said.endswith("busy"):
        await reply.json(quoted, 503, headers)
    elif said.endswith("mute"):
        await reply.cancelled()
    elif said.endswith("hold"):
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(sse_chunk(ANSWER))
        await reply.cancelled()
    elif said.endswith("odd"):
        choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": f"{ANSWER} {KEY}"}
        await reply.json({"model": KEY, "id": ANSWER, "choices": [choice]}, headers={"x-request-id": KEY})
    elif request.json().get("stream"):
        await reply.sse([ANSWER])
    else:
        message = {"role": "assistant", "content": ANSWER}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}
        await reply.json(answer, headers=headers)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(handler) as server:
        yield server


@pytest.fixture
def llm(server: FakeServer) -> Iterator[OpenAICompatibleLLM]:
    retry = RetryPolicy(initial=0.0)
    with OpenAICompatibleLLM("m", KEY, server.url, retry=retry, default_query={"token": KEY}, default_headers={"cookie": KEY}) as llm:
        yield llm


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "jazz_llm" and record.levelno == level]


def ends(caplog: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    """Return what each line at INFO says, less the id and the time."""
    found = [LINE.fullmatch(line) for line in lines(caplog)]
    assert all(found), lines(caplog)
    return [(one[1], *one.group(3, 4, 5, 7, 8, 9)) for one in found if one]


def test_a_call_is_one_line(colour: Sync | Async, llm: OpenAICompatibleLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "jazz_llm"):
        colour.generate(llm, PROMPT)
        colour.stream(llm, PROMPT)
        colour.events(llm, PROMPT)
    assert ends(caplog) == [
        ("chat", "-", "m", "stop", "5+4", "1", "req_1"),
        *[("chat", "-", "m", "stop", "5+4", "1", "-")] * 2,
    ]


def test_a_failure_is_one_line(colour: Sync | Async, llm: OpenAICompatibleLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "jazz_llm"):
        with pytest.raises(LLMOverloadedError):
            colour.generate(llm, f"{PROMPT} busy", max_retries=1)
        with pytest.raises(LLMTimeoutError):
            colour.generate(llm, f"{PROMPT} mute", timeout=0.1)
    assert ends(caplog) == [
        ("chat", "-", "m", "LLMOverloadedError(503)", "-", "2", "req_1"),
        ("chat", "-", "m", "LLMTimeoutError(read)", "-", "1", "-"),
    ]


def test_a_stream_left_early_is_one_line(colour: Sync | Async, llm: OpenAICompatibleLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "jazz_llm"):
        colour.leave_early(llm, extra_body={"messages": [{"role": "user", "content": "hold"}]})
    ((*_, end, tokens, _, _),) = ends(caplog)
    assert (end, tokens[-1]) == ("stopped", "~")  # estimated: the server had not counted yet


def test_models_and_embeddings_have_their_line(caplog: pytest.LogCaptureFixture) -> None:
    async def plain(request: Request, reply: Reply) -> None:
        listed = request.path.endswith("/models")
        await reply.json({"data": [{"id": "m"}] if listed else [{"index": 0, "embedding": [1.0]}]})

    with FakeServer(plain) as server, OpenAICompatibleLLM("m", base_url=server.url) as llm, caplog.at_level(logging.INFO, "jazz_llm"):
        llm.list_models()
        llm.embed(PROMPT)
    assert [line[:4] for line in ends(caplog)] == [("models", "-", "-", "ok"), ("embeddings", "-", "m", "ok")]
    assert "heron" not in caplog.text


def test_details_are_there_at_debug(colour: Sync | Async, llm: OpenAICompatibleLLM, server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "jazz_llm"), pytest.raises(LLMOverloadedError):
        colour.generate(llm, "busy", max_retries=1)
    begins, first, again, second = (line.partition("model=m ")[2] for line in lines(caplog, logging.DEBUG))
    assert re.fullmatch(rf"begins: POST {server.url}/v1/chat/completions, \d+ bytes", begins)
    assert re.fullmatch(r"try 1: 503 HTTP/1.1, ms=\d+", first)
    assert again == "try 1: LLMOverloadedError(503), again in 0.00 s"
    assert re.fullmatch(r"try 2: 503 HTTP/1.1, ms=\d+", second)
    ids = {line.split()[1] for line in lines(caplog, logging.DEBUG) + lines(caplog)}
    assert len(ids) == 1


def test_a_connection_that_fails_is_told_with_its_url(colour: Sync | Async, caplog: pytest.LogCaptureFixture) -> None:
    with OpenAICompatibleLLM("m", base_url="http://127.0.0.1:9", max_retries=0) as llm, caplog.at_level(logging.DEBUG, "jazz_llm"):
        with pytest.raises(LLMError):
            colour.generate(llm)
    assert "begins: POST http://127.0.0.1:9/v1/chat/completions" in caplog.text
    assert "end=LLMConnectionError" in caplog.text


def test_no_line_has_content_or_a_key(colour: Sync | Async, llm: OpenAICompatibleLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):  # of every library
        for words in ("", " odd", " refuse", " busy"):
            try:
                colour.generate(llm, PROMPT + words)
                colour.stream(llm, PROMPT + words)
            except LLMError:
                pass
            colour.events(llm, PROMPT + words)
        colour.leave_early(llm)
    said = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert "end=other" in said  # a finish_reason that is not one of the five
    assert "request_id=***" in said
    assert "end=LLMAuthenticationError(401)" in said
    for secret in (KEY, "heron", "\x1b"):
        assert secret not in said


def test_a_name_cannot_write_a_line_of_its_own(llm: OpenAICompatibleLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "jazz_llm"):
        llm.generate("hi", model="m\n2026-01-01 INFO jazz_llm: chat\x1b[2J" + "x" * 1000)
    assert all(line.isprintable() and len(line) < 400 for line in lines(caplog) + lines(caplog, logging.DEBUG))
    assert "model=m_2026-01-01_INFO_jazz_llm:_chat_2J" in caplog.text


def test_nothing_is_written_where_nobody_asked(server: FakeServer) -> None:
    done = run(f"OpenAICompatibleLLM('m', base_url={server.url!r}).generate('hi')")
    assert (done.stdout, done.stderr) == ("", "")


def test_the_level_of_the_root_counts(llm: OpenAICompatibleLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        llm.generate("hi")
    assert caplog.records == []
    with caplog.at_level(logging.INFO):
        llm.generate("hi")
    assert len(caplog.records) == 1


# --- JAZZ_LLM_LOG


def run(code: str, **environment: str) -> Any:
    code = f"from jazz_llm import OpenAICompatibleLLM\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, env=environment)


@pytest.mark.parametrize(("level", "count"), [("info", 1), ("INFO", 1), ("debug", 3)])
def test_the_variable_writes_to_stderr(server: FakeServer, level: str, count: int) -> None:
    done = run(f"OpenAICompatibleLLM('m', base_url={server.url!r}).generate('hi')", JAZZ_LLM_LOG=level)
    assert done.stdout == ""
    written = done.stderr.splitlines()
    assert len(written) == count
    assert LINE.search(written[-1])


@pytest.mark.parametrize("own", ["", "level='WARNING'", "level='INFO', stream=sys.stdout"])
def test_a_line_is_written_once_beside_the_programs_own_log(server: FakeServer, own: str) -> None:
    configure = f"import logging, sys\nlogging.basicConfig({own})\n"
    done = run(f"{configure}OpenAICompatibleLLM('m', base_url={server.url!r}).generate('hi')", JAZZ_LLM_LOG="info")
    assert len(LINE.findall(done.stderr)) == 1


@pytest.mark.parametrize("level", ["loud", "1", "warning"])
def test_another_word_is_a_warning(level: str) -> None:
    done = run("print('alive')", JAZZ_LLM_LOG=level)
    assert done.stdout == "alive\n"
    assert f"JAZZ_LLM_LOG must be debug or info, not '{level}'" in done.stderr


def test_an_empty_word_is_none() -> None:
    assert run("", JAZZ_LLM_LOG="").stderr == ""
