"""``jazz-llm bench`` as a person runs it: its numbers against servers that take a known time, and what it does when stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jazz_llm.testing import FakeServer, Reply, Request

pytest.importorskip("rich", reason='rich is not installed: pip install ".[cli]"')

from jazz_llm import OpenAICompatibleLLM
from jazz_llm.cli import bench_run
from jazz_llm.cli.bench_run import Level
from jazz_llm.cli.bench_table import plain_table, print_table
from jazz_llm.transport import aio
from jazz_llm.types import CallMetrics, LLMResponse, LLMUsage

TOKENS, PAUSE, WAIT = 10, 0.01, 0.05
USAGE = {"prompt_tokens": 5, "completion_tokens": TOKENS, "total_tokens": TOKENS + 5}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jazz_llm", "bench", *arguments]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, env={**os.environ, **variables}, check=False)


async def steady(request: Request, reply: Reply) -> None:
    """Answer after a known wait, at a known pace; the warm-up at once."""
    if request.json()["max_tokens"] == 1:
        return await reply.sse(["."])
    await asyncio.sleep(WAIT)
    await reply.sse(["word "] * TOKENS, delay=PAUSE, usage=USAGE)


def test_the_numbers_are_those_of_the_server() -> None:
    with FakeServer(steady) as server:
        done = run("--base-url", server.url, "-m", "m", "--streams", "1,4", "--requests", "6", "--max-tokens", "10", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["endpoint"], report["model"], report["max_tokens"]) == (f"{server.url}/v1/chat/completions", "m", 10)
    assert [level["streams"] for level in report["levels"]] == [1, 4]
    for level in report["levels"]:
        assert (level["answers"], level["failures"], level["completion_tokens"], level["tokens_estimated"]) == (6, 0, 60, False)
        first, speed = level["time_to_first_token_ms"], level["stream_tokens_per_second"]
        assert 1000 * (WAIT + PAUSE) <= first["p50"] <= first["p90"] <= first["p99"]
        # Its first text comes before the first pause of the others.
        assert TOKENS / (PAUSE * (TOKENS - 1)) * 1.02 >= speed["p50"] >= speed["p90"] >= speed["p99"] > 0
        assert level["tokens_per_second"] == pytest.approx(60 / level["seconds"])
    assert report["levels"][0]["tokens_per_second"] < 60 / (6 * (WAIT + PAUSE * TOKENS))


def test_so_many_streams_run_at_once_and_each_asks_something_else() -> None:
    running = most = 0

    async def counting(request: Request, reply: Reply) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await steady(request, reply)
        running -= 1

    with FakeServer(counting) as server:
        assert run("--base-url", server.url, "-m", "m", "--streams", "3", "--requests", "7").returncode == 0
        prompts = [request.json()["messages"][0]["content"] for request in server.requests]
    assert most == 3
    assert len(prompts) == 3 + 7  # those that open the connections, and those that count
    assert len(set(prompts)) == len(prompts)
    assert not any(prompt.startswith(other[:20]) for prompt in prompts for other in prompts if other != prompt)


def test_a_file_gets_a_plain_table() -> None:
    with FakeServer(steady) as server:
        done = run("--base-url", server.url, "-m", "m", "--streams", "2", "--requests", "2")
    heading, row = done.stdout.splitlines()
    assert heading.split()[:4] == ["streams", "answers", "failed", "first"]
    assert row.split()[:3] == ["2", "2", "0"]
    assert len(heading) == len(row)


def test_failures_are_counted_and_the_first_is_shown() -> None:
    async def every_other(request: Request, reply: Reply) -> None:
        if request.json()["max_tokens"] > 1 and len(server.requests) % 2:
            return await reply.json({"error": {"message": "try\n later"}}, 429)
        await reply.sse(["word"], usage=USAGE)

    with FakeServer(every_other) as server:
        done = run("--base-url", server.url, "-m", "m", "--streams", "1", "--requests", "4", "--json")
    level = json.loads(done.stdout)["levels"][0]
    assert (done.returncode, level["answers"], level["failures"]) == (0, 2, 2)
    assert done.stderr == "1 at once: 2 failed, the first with: try later (HTTP 429)\n"
    assert len(server.requests) == 5  # none was tried again


def test_an_endpoint_that_cannot_be_asked_is_one_line() -> None:
    async def refuse(_: Request, reply: Reply) -> None:
        await reply.json({"error": {"message": "no such key"}}, 401)

    with FakeServer(refuse) as server:
        done = run("--base-url", server.url, "-m", "m")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "jazz-llm: no such key (HTTP 401); check api_key.\n"
    assert len(server.requests) == 1


def test_no_answer_waits_for_the_rest_that_a_connection_has_after_its_first_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = 0.5
    monkeypatch.setattr(aio, "REST", rest)
    monkeypatch.setattr(bench_run, "REST", rest)
    with FakeServer(steady) as server:
        run = bench_run.Run(OpenAICompatibleLLM("m", base_url=server.url, max_tokens=10), [1], 2)
        run.until_done()
    assert max(run.levels[0].first_ms) < 1000 * rest


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_prints_what_there_is() -> None:
    async def stuck(request: Request, reply: Reply) -> None:
        if len(server.requests) > 8:
            return await reply.cancelled()
        await steady(request, reply)

    with FakeServer(stuck) as server:
        line = command("--base-url", server.url, "-m", "m", "--streams", "1,2", "--requests", "3", "--json")
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            server.wait_for(lambda s: len(s.requests) == 9, 20.0)
            child.send_signal(signal.SIGINT)
            output, errors = child.communicate(timeout=20)
        server.wait_for(lambda s: s.live == 0, 1.0)
    assert (child.returncode, errors) == (130, "")
    one, two = json.loads(output)["levels"]
    assert (one["streams"], one["answers"]) == (1, 3)
    assert (two["streams"], two["failures"]) == (2, 0)
    assert two["answers"] in (1, 2)


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='matplotlib is not installed: pip install ".[bench]"')
    with FakeServer(steady) as server:
        for name, magic in (("speed.png", b"\x89PNG"), ("speed.svg", b"<?xml")):
            done = run("--base-url", server.url, "-m", "m$x_1$", "--streams", "1,2", "--requests", "2", "--plot", str(tmp_path / name))
            assert (done.returncode, done.stderr) == (0, "")
            assert (tmp_path / name).read_bytes().startswith(magic)
        asked = len(server.requests)
        done = run("--base-url", server.url, "-m", "m", "--plot", str(tmp_path / "speed.txt"))
        assert (done.returncode, done.stdout, len(server.requests)) == (2, "", asked)
        assert "must end in .png" in done.stderr


def test_without_matplotlib_it_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from jazz_llm.cli import main; main()"
    line = [sys.executable, "-c", code, "bench", "--base-url", "http://127.0.0.1:9", "-m", "m", "--plot", "x.png"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert 'pip install "jazz_llm[bench]"' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "which endpoint?"),
        (["--base-url", "http://127.0.0.1:9"], 2, "which model?"),
        (["--streams", "0"], 2, "numbers from 1 to 1000"),
        (["--streams", "1,,2"], 2, "numbers from 1 to 1000"),
        (["--streams", "\u00b2"], 2, "numbers from 1 to 1000"),
        (["--streams", "0000000011000"], 2, "numbers from 1 to 1000"),
        (["--streams", "9" * 5000], 2, "numbers from 1 to 1000"),
        (["--requests", "0"], 2, "--requests"),
        (["--base-url", "http://127.0.0.1:1", "-m", "m"], 1, "No connection to 127.0.0.1"),
    ],
)
def test_every_failure_is_one_clear_line(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert words in done.stderr


def answer(*, first_ms: float | None, speed: float | None, tokens: int = 100, estimated: bool = False) -> LLMResponse[Any]:
    usage = LLMUsage(1, tokens, tokens + 1, estimated=estimated)
    return LLMResponse(text="x", usage=usage, metrics=CallMetrics(time_to_first_token_ms=first_ms, tokens_per_second=speed))


def test_percentiles_are_what_so_many_reach_or_better() -> None:
    level = Level(1)
    for i in range(1, 101):
        level.take(answer(first_ms=i, speed=i))
    assert level.first() == [50, 90, 99]
    assert level.speed() == [51, 11, 2]
    assert Level(1).first() == [None, None, None]


def test_an_answer_in_one_piece_has_no_speed_of_its_own() -> None:
    level = Level(1, seconds=2.0)
    level.take(answer(first_ms=1, speed=1_000_000.0))
    assert level.speed() == [None, None, None]
    assert level.throughput == 50


def test_estimated_counts_are_marked() -> None:
    level = Level(1, seconds=2.0)
    level.take(answer(first_ms=1, speed=50.0, estimated=True))
    assert plain_table([level]).splitlines()[1].split() == ["1", "1", "0", "1", "1", "1", "~50.0", "~50.0", "~50.0", "~50.0"]


def test_a_terminal_shows_a_bar_and_then_the_table() -> None:
    from .terminal import Terminal

    with FakeServer(steady) as server, Terminal(command("--base-url", server.url, "-m", "m", "--streams", "2", "--requests", "20"), columns=110) as terminal:
        terminal.until("2 at once")
        assert terminal.end() == 0
        assert "2 at once" not in terminal.text  # the bar is gone
        assert "all tokens/s" in terminal.text
        assert terminal.text.splitlines()[-1].split()[:3] == ["2", "20", "0"]


def test_a_table_on_a_narrow_terminal_loses_no_digit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    level = Level(64, seconds=1.0)
    level.take(answer(first_ms=12345.0, speed=1140.5, tokens=20394, estimated=True))
    monkeypatch.setenv("COLUMNS", "80")
    print_table([level])
    assert capsys.readouterr().out.splitlines()[-2].split()[3:] == [*["12345"] * 3, *["~1140.5"] * 3, "~20394.0"]
    monkeypatch.setenv("COLUMNS", "40")
    print_table([level])
    assert "\N{HORIZONTAL ELLIPSIS}" not in capsys.readouterr().out


def test_a_real_model(tiny_model: str) -> None:
    done = run("--base-url", tiny_model, "-m", "tiny", "--streams", "1,2", "--requests", "2", "--max-tokens", "20", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    for level in json.loads(done.stdout)["levels"]:
        assert (level["answers"], level["failures"], level["tokens_estimated"]) == (2, 0, False)
        assert level["tokens_per_second"] > 0
