"""What the README says is so: its code runs as written, its commands and links exist."""

from __future__ import annotations

import configparser
import os
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
ALL_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
FILES = {name.group(1): code for code in ALL_BLOCKS if (name := re.match(r"# (\w+\.py)\n", code))}  # those that say which file they are
BLOCKS = [code for code in ALL_BLOCKS if code not in FILES.values()]
YAML = re.findall(r"```yaml\n# (\S+)\n(.*?)```", README, re.DOTALL)
VARIABLES = dict(re.findall(r"^export (JAZZ_LLM__\w+)='?([^'\s]+(?: [^'\s]+)*)'?(?:  .*)?$", README, re.MULTILINE))


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
        if "from_" in code:
            configure(server.url, monkeypatch, tmp_path)
        exec(compile(code, "README.md", "exec"), {})
        assert server.requests or "LocalServer" in code or "=120.0)" in code or "ambiguous=False" in code  # those only construct


def configure(url: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Set the variables and write the files that the README shows."""
    assert VARIABLES["JAZZ_LLM__MODEL"] == "gpt-4o-mini"
    assert VARIABLES["JAZZ_LLM__EXTRA_BODY"] == '{"top_k": 20}'
    for name, value in {**VARIABLES, "MODEL_URL": url}.items():
        monkeypatch.setenv(name, value)
    for name, text in YAML:
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)


def test_its_tests_pass_as_written(tmp_path: Path) -> None:
    """Once with a model, from which the cassette is recorded, and once more with neither model nor key."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    with FakeServer() as server:
        server.reply("Good.")
        environment = {**os.environ, "OPENAI_BASE_URL": server.url, "PYTHONPATH": str(tmp_path)}
        first = subprocess.run(command, cwd=tmp_path, env={**environment, "OPENAI_API_KEY": "sk-test"}, capture_output=True, text=True, check=False)
        assert len(server.requests) == 1
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    for ran in (first, second):
        assert "3 passed" in ran.stdout, ran.stdout + ran.stderr
    assert all(f"{path.parent.relative_to(tmp_path)}/" in README for path in tmp_path.rglob("*.yaml"))


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


def test_its_options_are_those_of_the_commands() -> None:
    pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')
    from jazz_llm.cli.app import app

    known = {option for command in app.commands.values() for parameter in command.params for option in parameter.opts}
    section = README.split("## Command line")[1].split("\n## ")[0]
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section))
    assert said - {"--help"} <= known
    assert all(f"`jazz-llm {name}" in README for name in app.commands)


def test_the_version_has_a_place_in_the_changelog() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
