"""The command line, run as a person runs it: a process of its own, real pipes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from jazz_llm.testing import FakeServer, Reply, Request

pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')


def command(*arguments: str, name: str = "chat") -> list[str]:
    return [sys.executable, "-m", "jazz_llm", name, *arguments]


def run(*arguments: str, name: str = "chat", stdin: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    feed: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    line = command(*arguments, name=name)
    return subprocess.run(line, capture_output=True, text=True, timeout=30, env=environment, check=False, **feed)


@pytest.fixture
def server() -> Any:
    with FakeServer() as server:
        yield server


def test_an_answer_is_streamed(server: FakeServer) -> None:
    done = run("--base-url", server.url, "-m", "m", "say", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, world!\n", "")
    body = server.requests[0].json()
    assert (body["stream"], body["messages"]) == (True, [{"role": "user", "content": "say hello"}])


def test_options_reach_the_request(server: FakeServer) -> None:
    options = ["-s", "Be brief.", "--temperature", "0.5", "--max-tokens", "7", "--no-stream", "--api-key", "sk-1"]
    done = run("--base-url", server.url, "-m", "m", *options, "hi")
    assert (done.returncode, done.stdout) == (0, "Hello, world!\n")
    body = server.requests[0].json()
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], "stream" in body) == (0.5, 7, False)
    assert server.requests[0].headers["authorization"] == "Bearer sk-1"


def test_stats_go_to_stderr(server: FakeServer) -> None:
    done = run("--base-url", server.url, "-m", "m", "--stats", "hi")
    assert done.stdout == "Hello, world!\n"
    assert "5 prompt + 4 completion tokens, first token after" in done.stderr
    assert "tokens/s" in done.stderr


def test_a_refusal_is_shown_where_there_is_no_answer() -> None:
    async def refuse(request: Request, reply: Reply) -> None:
        if request.json().get("stream"):
            return await reply.sse([{"refusal": "Not that."}])
        message = {"role": "assistant", "content": None, "refusal": "Not that."}
        await reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    with FakeServer(refuse) as server:
        for option in ([], ["--no-stream"]):
            assert run("--base-url", server.url, "-m", "m", *option, "hi").stdout == "Not that.\n"


def test_what_is_piped_in_is_asked(server: FakeServer) -> None:
    assert run("--base-url", server.url, "-m", "m", stdin="from a pipe\n").returncode == 0
    assert run("--base-url", server.url, "-m", "m", "Summarize:", stdin="a text\n").returncode == 0
    assert [request.json()["messages"][0]["content"] for request in server.requests] == ["from a pipe", "Summarize:\n\na text"]


def test_the_key_is_taken_from_the_environment(server: FakeServer) -> None:
    done = run("-m", "m", "hi", OPENAI_BASE_URL=server.url, OPENAI_API_KEY="sk-env")
    assert done.returncode == 0
    assert server.requests[0].headers["authorization"] == "Bearer sk-env"


def test_a_provider_says_what_differs(server: FakeServer) -> None:
    done = run("--provider", "azure", "--base-url", server.url, "-m", "m", "hi", AZURE_OPENAI_API_KEY="az-1")
    assert (done.returncode, done.stdout) == (0, "Hello, world!\n")
    assert server.requests[0].headers["api-key"] == "az-1"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["hi"], 2, "Use --local, --base-url URL or --provider NAME (and -m MODEL), or set OPENAI_API_KEY"),
        (["--provider", "groq", "-m", "m", "hi"], 1, "set GROQ_API_KEY"),
        (["--provider", "grok", "-m", "m", "hi"], 1, "Did you mean 'groq'"),
        (["--local", "--provider", "groq", "hi"], 2, "--local and --provider exclude each other"),
        (["--base-url", "http://localhost:9", "hi"], 2, "which model? Pass -m MODEL; jazz-llm models lists them."),
        (["--base-url", "http://localhost:9", "-m", "m"], 2, "nothing to ask"),
        (["--local", "--base-url", "http://localhost:9", "hi"], 2, "exclude each other"),
        (["--base-url", "nonsense", "-m", "m", "hi"], 1, "base_url"),
        (["--base-url", "http://127.0.0.1:1", "-m", "m", "hi"], 1, "No connection to 127.0.0.1"),
        (["--local", "-m", "/no/such/model.gguf", "hi"], 1, "model.gguf"),
        (["--base-url", "http://localhost:9", "-m", "m", "--temperature", "nan", "hi"], 1, "temperature"),
        (["--local", "-m", "smollm2", "hi"], 2, "-m is the path of a .gguf file"),
        (["--base-url", "http://localhost:9", "-m", "m", "--max-tokens", "0", "hi"], 1, "of at least 1"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_every_failure_is_one_clear_line(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("jazz-llm: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_cut_stream_shows_what_came_and_fails() -> None:
    async def cut(_: Request, reply: Reply) -> None:
        await reply.sse(["half"], done=False, finish=None, usage=None)

    with FakeServer(cut) as server:
        done = run("--base-url", server.url, "-m", "m", "hi")
    assert (done.returncode, done.stdout) == (1, "half\n")
    assert "stopped before its end" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_stops_the_generation() -> None:
    async def endless(_: Request, reply: Reply) -> None:
        await reply.start(200, {"content-type": "text/event-stream"})
        await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"so far"}}]}\n\n')
        await reply.cancelled()

    with FakeServer(endless) as server:
        child = subprocess.Popen(
            command("--base-url", server.url, "-m", "m", "hi"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.read(6) == b"so far"
            child.send_signal(signal.SIGINT)
            rest, errors = child.communicate(timeout=10)
        server.wait_for(lambda s: s.live == 0, 1.0)
    assert (child.returncode, rest, errors.strip()) == (130, b"\n", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE there")
def test_a_reader_that_goes_away_is_no_crash() -> None:
    async def long(_: Request, reply: Reply) -> None:
        await reply.sse(["x" * 1000] * 1000)

    with FakeServer(long) as server:
        child = subprocess.Popen(
            command("--base-url", server.url, "-m", "m", "hi"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with child:
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.read(10)
            child.stdout.close()
            assert child.stderr.read() == b""
    assert child.returncode == 1


def test_a_warning_is_one_line_too(server: FakeServer) -> None:
    done = run("--base-url", "http://192.0.2.1:9", "-m", "m", "--api-key", "sk-1", "hi", DEBUG_MOCK_RESPONSES='["fine"]')
    assert (done.returncode, done.stdout) == (0, "fine\n")
    assert done.stderr == "jazz-llm: The key goes over plain http to 192.0.2.1: anybody on the way can read it.\n"


def test_bytes_that_are_no_text_are_asked_all_the_same(server: FakeServer) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command("--base-url", server.url, "-m", "m"), input=b"caf\xe9", capture_output=True, timeout=30, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert server.requests[0].json()["messages"][0]["content"] == "caf\ufffd"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_a_full_disk_is_one_line(server: FakeServer) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("--base-url", server.url, "-m", "m", "hi"), stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=30, check=False)
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_without_arguments_the_help_is_shown_as_it_is() -> None:
    done = subprocess.run([sys.executable, "-m", "jazz_llm"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: jazz-llm")
    assert done.stderr.count("\n") > 5


def test_version_and_help() -> None:
    for option, words in (("--version", "jazz-llm "), ("--help", "chat"), ("--help", "models"), ("chat --help", "--local"), ("models --help", "--provider")):
        done = subprocess.run([sys.executable, "-m", "jazz_llm", *option.split()], capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert words in done.stdout


def test_without_the_extra_it_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['click'] = None; from jazz_llm.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert 'pip install "jazz_llm[cli]"' in done.stderr


def on_a_terminal(line: list[str], **variables: str) -> tuple[int, bytes]:
    """Return the exit code, and what a person would see."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **variables}
    done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=slave, timeout=30, env=environment, check=False)
    os.close(slave)
    shown = os.read(master, 10_000)
    os.close(master)
    return done.returncode, shown


def test_control_characters_do_not_reach_a_terminal() -> None:
    answers = json.dumps(["\x1b]0;evil\x07fine\ttext\u009b1m"])
    assert on_a_terminal(command("-m", "m", "hi"), DEBUG_MOCK_RESPONSES=answers, TERM="dumb") == (0, b"]0;evilfine\ttext1m\r\n")
    code, shown = on_a_terminal(command("-m", "m", "hi"), DEBUG_MOCK_RESPONSES=answers)
    assert (code, b"]0;evilfine" in shown) == (0, True)
    assert b"\x1b]0" not in shown
    assert b"\x07" not in shown
    assert b"\xc2\x9b" not in shown


def test_a_terminal_shows_markdown_and_a_file_does_not() -> None:
    answers = json.dumps(["some **bold** words"])
    code, shown = on_a_terminal(command("-m", "m", "hi"), DEBUG_MOCK_RESPONSES=answers)
    assert (code, b"some \x1b[1mbold\x1b[0m words\r\n" in shown) == (0, True)
    assert shown.endswith(b"\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is seen again
    assert run("-m", "m", "hi", DEBUG_MOCK_RESPONSES=answers).stdout == "some **bold** words\n"


# --- models --------------------------------------------------------------------------------------------------------


async def three_models(_: Request, reply: Reply) -> None:
    await reply.json({"data": [{"id": "tiny", "context_length": 4096}, {"id": "a-longer-name\x1b", "max_model_len": 1048576}, {"id": "un\n\u009bknown"}]})


def test_the_models_one_per_line() -> None:
    with FakeServer(three_models) as server:
        done = run("--base-url", server.url, name="models")
    assert (done.returncode, done.stdout, done.stderr) == (0, "tiny\na-longer-name\nunknown\n", "")


def test_a_terminal_shows_the_context_too() -> None:
    with FakeServer(three_models) as server:
        shown = on_a_terminal(command("--base-url", server.url, name="models"))
    assert shown == (0, b"tiny                 4,096 tokens\r\na-longer-name    1,048,576 tokens\r\nunknown\r\n")


def test_the_models_of_a_provider(server: FakeServer) -> None:
    done = run("--provider", "azure", "--base-url", server.url, "--api-key", "az-1", name="models", DEBUG_MOCK_RESPONSES='["x"]')
    assert (done.returncode, done.stdout) == (0, "fake-model\n")
    assert server.requests[0].headers["api-key"] == "az-1"


def test_the_models_of_the_environments_endpoint(server: FakeServer) -> None:
    done = run(name="models", OPENAI_BASE_URL=server.url)
    assert (done.returncode, done.stdout) == (0, "fake-model\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Use --base-url URL or --provider NAME"),
        (["--provider", "groq"], 1, "set GROQ_API_KEY"),
        (["--provider", "grok"], 1, "Did you mean 'groq'"),
        (["--base-url", "nonsense"], 1, "base_url"),
        (["--base-url", "http://127.0.0.1:1"], 1, "No connection to 127.0.0.1"),
        (["stray"], 2, "stray"),
    ],
)
def test_every_failure_of_models_is_one_clear_line(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments, name="models")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("jazz-llm: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_key_that_is_refused_is_one_line() -> None:
    async def refuse(_: Request, reply: Reply) -> None:
        await reply.json({"error": {"message": "no such key: sk-12345\n", "type": "auth"}}, status=401)

    with FakeServer(refuse) as server:
        done = run("--base-url", server.url, "--api-key", "sk-12345", name="models")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("jazz-llm: no such key: *** (HTTP 401)")


def test_a_real_model(tiny_model: str) -> None:
    done = run("--base-url", tiny_model, "-m", "tiny", "--stats", "--max-tokens", "20", "Hello")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "completion tokens" in done.stderr
