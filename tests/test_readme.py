"""What the README says is so: its code runs as written, its commands and links exist."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jazz_llm.local import LocalServer
from jazz_llm.testing import FakeServer, Reply, Request

from .provider_table import written

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


async def model(request: Request, reply: Reply) -> None:
    """Answer as a model would that does what the README asks for."""
    asked = request.json() if request.method == "POST" else {}
    if request.path.endswith("/models"):
        await reply.json({"data": [{"id": "gpt-4o-mini"}]})
    elif request.path.endswith("/embeddings"):
        await reply.json({"data": [{"index": i, "embedding": [0.5, 0.25]} for i, _ in enumerate(asked["input"])]})
    elif asked.get("response_format"):
        await reply.text('{"names": ["red", "green", "blue"]}')
    elif asked.get("tools") and asked["messages"][-1]["role"] == "user":
        call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Delft"}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        await reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    elif asked.get("stream"):
        await reply.sse(["Hello, ", "world!"])
    else:
        await reply.text("Hello, world!")


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_runs_as_written(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "LocalServer" in code:  # the model it fetches comes from the internet: the tests' own stands in for it
        request.getfixturevalue("tiny_model")
        from .tiny_model import tiny_model

        path = tiny_model(tmp_path)
        monkeypatch.setattr(LocalServer.__init__, "__defaults__", (path,))
    with FakeServer(model) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        exec(compile(code, "README.md", "exec"), {})
        assert server.requests or "LocalServer" in code or "=120.0)" in code or "ambiguous=False" in code  # those only construct


def test_there_is_code() -> None:
    assert len(BLOCKS) >= 15


def test_its_table_of_providers_is_the_registrys() -> None:
    assert written(README) == README, "run: python -m tests.provider_table"


def test_the_four_calls_take_five_lines_each() -> None:
    for code in BLOCKS[:4]:
        assert len([line for line in code.splitlines() if line.strip()]) <= 6, code


def test_its_commands_exist() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    for extras in re.findall(r'pip install "\.\[([\w,]+)\]"', README):
        assert all(metadata.has_option("options.extras_require", extra) for extra in extras.split(","))
    targets = re.search(r"`make ([\w ]+)`", README)
    assert targets is not None
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets.group(1).split())
    for module in re.findall(r"python -m (benchmarks\.\w+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()


def test_its_options_of_chat_are_those_of_the_command() -> None:
    pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')
    shown = subprocess.run([sys.executable, "-m", "jazz_llm", "chat", "--help"], capture_output=True, text=True, check=True).stdout
    section = README.split("## Command line")[1].split("##")[0]
    said = set(re.findall(r"--[a-z-]+", section))
    assert said == set(re.findall(r"--[a-z-]+", shown)) - {"--help"}


def test_the_version_has_a_place_in_the_changelog() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
