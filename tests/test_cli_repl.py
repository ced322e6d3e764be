"""``jazz-llm chat`` as a person uses it: a real terminal, keys, Ctrl-C, and a look at what the server was asked."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("prompt_toolkit", reason='prompt_toolkit is not installed: pip install ".[cli]"')

from jazz_llm.testing import FakeServer, Reply, Request, sse_chunk

from .terminal import ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, ENTER, UP, Terminal

CHAT = [sys.executable, "-m", "jazz_llm", "chat"]
Opened = Callable[..., Terminal]


def ready(text: str) -> bool:
    """Say whether it waits for the next line."""
    return text.endswith("\n>") or text == ">"


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """Return what opens a terminal with the command on a server of the test's."""

    def open_(server: FakeServer, *options: str, **settings: Any) -> Terminal:
        settings = {"XDG_STATE_HOME": str(tmp_path), **settings}
        return Terminal([*CHAT, "--base-url", server.url, "-m", "m", *options], **settings)

    return open_


async def echo(request: Request, reply: Reply) -> None:
    """Answer with how many messages came, and the last."""
    messages = request.json()["messages"]
    await reply.sse([f"{len(messages)}: ", str(messages[-1]["content"]), "."])


def asked(server: FakeServer, at: int = -1) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in server.requests[at].json()["messages"]]


def say(terminal: Terminal, line: str, answer: str = "") -> None:
    """Type a line, and wait for the answer and the next prompt."""
    prompts = terminal.text.count("\n>")
    terminal.type(line)
    terminal.until(lambda text: answer in text and ready(text) and text.count("\n>") > prompts)


def test_the_conversation_goes_on(opened: Opened) -> None:
    with FakeServer(echo) as server, opened(server, "-s", "Be kind.") as terminal:
        assert "m at http://127.0.0.1" in terminal.until(ready)
        say(terminal, "first", "2: first.")
        say(terminal, "second", "4: second.")
        terminal.press(CTRL_D)
        assert terminal.end() == 0
    assert asked(server) == [("system", "Be kind."), ("user", "first"), ("assistant", "2: first."), ("user", "second")]


def test_commands(opened: Opened) -> None:
    with FakeServer(echo) as server, opened(server) as terminal:
        terminal.until(ready)
        say(terminal, "/help", "ask another model")
        say(terminal, "/nonsense", "no such command")
        say(terminal, "/system Be brief.")
        say(terminal, "one", "2: one.")
        say(terminal, "/model other", "other at http")
        say(terminal, "/clear")
        say(terminal, "two", "2: two.")
        say(terminal, "/system")
        say(terminal, " /etc is what?", "3: /etc is what?.")
        say(terminal, "/model", "other at http")
        terminal.type("/exit")
        assert terminal.end() == 0
    assert [request.json()["model"] for request in server.requests] == ["m", "other", "other"]
    assert asked(server, 1) == [("system", "Be brief."), ("user", "two")]
    assert asked(server, 2) == [("user", "two"), ("assistant", "2: two."), ("user", "/etc is what?")]


def test_ctrl_c_stops_the_answer_at_the_server_and_stays(opened: Opened) -> None:
    async def endless(request: Request, reply: Reply) -> None:
        if len(server.requests) > 1:
            return await echo(request, reply)
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(sse_chunk("so far"))
        await reply.cancelled()

    with FakeServer(endless) as server, opened(server) as terminal:
        terminal.until(ready)
        terminal.type("go on")
        terminal.until("so far")
        assert server.live == 1
        terminal.press(CTRL_C)
        server.wait_for(lambda s: s.live == 0, 1.0)
        terminal.until(ready)
        say(terminal, "and?", "3: and?.")
    assert asked(server) == [("user", "go on"), ("assistant", "so far"), ("user", "and?")]


def test_ctrl_c_before_any_text_leaves_nothing_in_the_conversation(opened: Opened) -> None:
    async def silent(request: Request, reply: Reply) -> None:
        if len(server.requests) > 1:
            return await echo(request, reply)
        await reply.cancelled()

    with FakeServer(silent) as server, opened(server) as terminal:
        terminal.until(ready)
        terminal.type("anybody?")
        server.wait_for(lambda s: s.live == 1, 5.0)
        terminal.press(CTRL_C)
        terminal.until(ready)
        say(terminal, "hi", "1: hi.")
    assert asked(server) == [("user", "hi")]


def test_ctrl_c_clears_the_line(opened: Opened) -> None:
    with FakeServer(echo) as server, opened(server) as terminal:
        terminal.until(ready)
        terminal.press(b"never sent")
        terminal.until("> never sent")
        terminal.press(CTRL_C)
        terminal.until(ready)
        say(terminal, "sent", "1: sent.")


def test_an_error_is_one_line_and_the_conversation_goes_on(opened: Opened) -> None:
    async def fail_once(request: Request, reply: Reply) -> None:
        if len(server.requests) == 2:
            return await reply.json({"error": {"message": "no \x1b[31mway\n at all"}}, 400)
        await echo(request, reply)

    with FakeServer(fail_once) as server, opened(server) as terminal:
        terminal.until(ready)
        say(terminal, "one", "1: one.")
        say(terminal, "two", "jazz-llm: no [31mway at all (HTTP 400)")
        say(terminal, "three", "3: three.")
    assert b"\x1b[31m" not in terminal.sent
    assert asked(server) == [("user", "one"), ("assistant", "1: one."), ("user", "three")]


def test_several_lines(opened: Opened) -> None:
    with FakeServer(echo) as server, opened(server) as terminal:
        terminal.until(ready)
        terminal.press(b"a" + ALT_ENTER + b"b" + ENTER)
        terminal.until(lambda text: "1: a b." in text and ready(text))
        terminal.press(b'"""c' + ENTER + b"d" + ENTER + b'"""' + ENTER)
        terminal.until(lambda text: "3: c d." in text and ready(text))
        terminal.press(b"\x1b[200~e\nf\x1b[201~")  # pasted
        terminal.until("> e\n  f")
        terminal.press(ENTER)
        terminal.until(lambda text: "5: e f." in text and ready(text))
    assert [content for role, content in asked(server) if role == "user"] == ["a\nb", "c\nd", "e\nf"]


def test_the_history_is_kept_for_its_owner_alone_and_without_the_key(opened: Opened, tmp_path: Path) -> None:
    key = "sk-history-1"
    with FakeServer(echo) as server:
        with opened(server, "--api-key", key) as terminal:
            terminal.until(ready)
            say(terminal, "remember this", "1: remember this.")
            say(terminal, f"my key is {key}", key)
            terminal.press(CTRL_D)
            assert terminal.end() == 0
        file = tmp_path / "jazz_llm" / "history"
        assert "remember this" in file.read_text()
        assert key not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        with opened(server) as terminal:
            terminal.until(ready)
            terminal.press(UP)
            terminal.until("> remember this")
            terminal.press(CTRL_C)
            terminal.until(ready)
            terminal.press(CTRL_R + b"memb")
            terminal.until("remember this")
            terminal.press(ENTER + ENTER)
            terminal.until("1: remember this.")


@pytest.mark.skipif(os.name != "posix", reason="no such rights elsewhere")
def test_where_no_history_can_be_kept_it_says_so(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "jazz_llm").write_text("a file, where a folder should be")
    with FakeServer(echo) as server, opened(server) as terminal:
        assert "What you type is forgotten" in terminal.until(ready)
        say(terminal, "hi", "1: hi.")
        terminal.press(UP)
        terminal.until(lambda text: text.endswith("> hi"))


def test_bytes_that_are_no_text_are_asked_all_the_same(opened: Opened, tmp_path: Path) -> None:
    with FakeServer(echo) as server, opened(server) as terminal:
        terminal.until(ready)
        terminal.press(b"caf\xe9 au lait" + ENTER)
        terminal.until(lambda text: "au lait." in text and ready(text))
    assert "au lait" in asked(server)[0][1]
    assert "au lait" in (tmp_path / "jazz_llm" / "history").read_text()


def test_what_the_model_says_is_markdown_and_harmless(opened: Opened) -> None:
    async def hostile(_: Request, reply: Reply) -> None:
        await reply.sse(["**bo", "ld**\x1b]0;evil\x07\n\n", "<http://x/%1b]0;evil%07>\n"])

    with FakeServer(hostile) as server, opened(server) as terminal:
        terminal.until(ready)
        say(terminal, "hi", "bold]0;evil")
    assert b"\x1b[1mbold" in terminal.sent
    assert b"\x1b]0;" not in terminal.sent


@pytest.mark.parametrize("told", ["", "2>log"])
def test_the_log_does_not_break_what_is_drawn(tmp_path: Path, told: str) -> None:
    """Its last line comes while the answer is still drawn: on a terminal above that, in a file where it was sent there."""

    async def slow(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream"})
        for item in ("- one", "\n- two", "\n- three"):
            await reply.send(sse_chunk(item))
            await asyncio.sleep(0.2)  # so that each is drawn
        await reply.send(sse_chunk({}, "stop") + b"data: [DONE]\n\n")
        await reply.end()

    with FakeServer(slow) as server:
        line = " ".join([*CHAT, "hi", "--base-url", server.url, "-m", "m", told])
        with Terminal(["/bin/sh", "-c", line], columns=200, cwd=tmp_path, JAZZ_LLM_LOG="info") as terminal:
            assert terminal.end() == 0
            lines = terminal.text.splitlines()
    logged = (tmp_path / "log").read_text().splitlines() if told else [lines.pop(0)]
    assert [("end=stop" in line) for line in logged] == [True]
    assert lines == [" • one", " • two", " • three"]


def test_a_dumb_terminal_gets_plain_text(opened: Opened) -> None:
    async def markdown(_: Request, reply: Reply) -> None:
        await reply.sse(["**bold**"])

    with FakeServer(markdown) as server, opened(server, TERM="dumb") as terminal:
        terminal.until(ready)
        terminal.type("hi")
        terminal.until("**bold**")


def test_tools_run_and_their_calls_are_kept(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "sky.py").write_text('def colour(hour: int) -> str:\n    """Tell the colour."""\n    return "blue"\n')

    async def call(request: Request, reply: Reply) -> None:
        last = request.json()["messages"][-1]
        if last["role"] == "tool" or last["content"] == "and?":
            return await reply.text("It is **blue**.")
        function = {"name": "colour", "arguments": '{"hour": 12}'}
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
        await reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})

    with FakeServer(call) as server, opened(server, "-s", "Be kind.", "--tool", "sky:colour", cwd=tmp_path) as terminal:
        terminal.until(ready)
        say(terminal, "which colour?", "It is blue.")
        assert "colour(hour=12)" in terminal.text
        terminal.type("and?")
        terminal.until(lambda text: text.count("It is blue.") == 2)
    assert [role for role, _ in asked(server)] == ["system", "user", "assistant", "tool", "assistant", "user"]


def test_an_image_goes_with_the_first_question_alone(opened: Opened) -> None:
    async def answer(_: Request, reply: Reply) -> None:
        await reply.sse(["fine"])

    with FakeServer(answer) as server, opened(server, "--image", "https://example.com/cat.png") as terminal:
        terminal.until(ready)
        say(terminal, "what is it?", "fine")
        terminal.type("and now?")
        terminal.until(lambda text: text.count("fine") == 2)
    first, _, last = (content for _, content in asked(server))
    assert [part["type"] for part in first] == ["text", "image_url"]
    assert last == "and now?"


def test_an_image_that_is_none_is_said_at_once(opened: Opened, tmp_path: Path) -> None:
    with FakeServer(echo) as server, opened(server, "--image", str(tmp_path / "missing.png")) as terminal:
        assert terminal.end() == 1
        assert "missing.png" in terminal.text
        assert not ready(terminal.text)


def test_an_image_goes_once_also_where_its_answer_is_stopped(opened: Opened) -> None:
    async def endless(request: Request, reply: Reply) -> None:
        if len(server.requests) > 1:
            return await echo(request, reply)
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(sse_chunk("a cat"))
        await reply.cancelled()

    with FakeServer(endless) as server, opened(server, "--image", "https://example.com/cat.png") as terminal:
        terminal.until(ready)
        terminal.type("what is it?")
        terminal.until("a cat")
        terminal.press(CTRL_C)
        terminal.until(ready)
        say(terminal, "and?", "3: and?.")
    assert [type(content) for _, content in asked(server)] == [list, str, str]


def test_a_single_question_stopped_by_ctrl_c_leaves_the_terminal_as_it_was(opened: Opened) -> None:
    async def endless(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(sse_chunk("so **far**"))
        await reply.cancelled()

    with FakeServer(endless) as server, opened(server, "go on") as terminal:
        terminal.until("so far")
        terminal.press(CTRL_C)
        assert terminal.end() == 130
        assert "so far" in terminal.text
        assert not terminal.screen.cursor.hidden
        server.wait_for(lambda s: s.live == 0, 1.0)


def test_a_real_model(tiny_model: str, tmp_path: Path) -> None:
    line = [*CHAT, "--base-url", tiny_model, "-m", "tiny", "--max-tokens", "20", "--stats"]
    with Terminal(line, XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.until(ready)
        say(terminal, "Hello", "completion tokens")
        say(terminal, "/clear")
        terminal.press(CTRL_D)
        assert terminal.end() == 0


def test_ctrl_c_stops_a_real_model(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason='gguf is not installed: pip install ".[test]"')
    pytest.importorskip("xllamacpp", reason='llama.cpp is not installed: pip install ".[local]"')
    from .tiny_model import NEVER_STOPS, serve_tiny

    def working() -> int:
        return sum(slot["is_processing"] for slot in httpx.get(f"{url}/slots").json())

    with serve_tiny(tmp_path, stop_bias=NEVER_STOPS) as url:
        line = [*CHAT, "--base-url", url, "-m", "tiny", "--max-tokens", "100000"]
        with Terminal(line, XDG_STATE_HOME=str(tmp_path)) as terminal:
            terminal.until(ready)
            terminal.type("Hello")
            terminal.until(lambda text: not ready(text) and len(text.partition("Hello")[2]) > 20)
            assert working() == 1
            terminal.press(CTRL_C)
            terminal.until(ready)
            end = time.monotonic() + 5
            while working():
                assert time.monotonic() < end


def test_ctrl_c_leaves_the_local_model_running(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason='gguf is not installed: pip install ".[test]"')
    pytest.importorskip("xllamacpp", reason='llama.cpp is not installed: pip install ".[local]"')
    from .tiny_model import NEVER_STOPS, tiny_model

    model = tiny_model(tmp_path, stop_bias=NEVER_STOPS)
    with Terminal([*CHAT, "--local", "-m", str(model), "--max-tokens", "100000"], XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.until(ready)
        for question in ("first", "second"):
            terminal.type(question)
            terminal.until(lambda text, question=question: len(text.partition(f"> {question}")[2]) > 20)
            terminal.press(CTRL_C)
            terminal.until(ready)
        assert "jazz-llm:" not in terminal.text  # no error
        terminal.press(CTRL_D)
        assert terminal.end() == 0


def test_a_server_that_is_gone_is_one_line(opened: Opened) -> None:
    with FakeServer(echo) as server:
        pass
    with opened(server) as terminal:
        terminal.until(ready)
        say(terminal, "hi", "jazz-llm: No connection to 127.0.0.1")
        terminal.type("/exit")
        assert terminal.end() == 0
