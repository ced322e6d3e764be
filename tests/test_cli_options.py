"""``chat`` with a schema, tools and images, and settings from variables and files: a process of its own, real pipes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jazz_llm.testing import FakeServer, Reply, Request

pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": False}
TOOLS = '''\
"""Tools of the tests."""

def forecast(city: str, days: int = 1) -> str:
    """Tell the weather."""
    print("this is", "printed")
    if city == "Atlantis":
        raise LookupError("it sank")
    return f"Rain in {city} for {days} days."

async def later(city: str) -> str:
    """Tell it later."""
    return f"Sun in {city}."

class Station:
    def read(self, city: str) -> str:
        """Read it."""
        return f"Fog in {city}."

station = Station()
number = 3
'''


def run(*arguments: str, name: str = "chat", cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    # Not "python -m": that would put the current folder on the path by itself, and the installed command does not.
    line = [sys.executable, "-P", "-c", "from jazz_llm.cli import main; main()", name, *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, env=environment, cwd=cwd, check=False)


def calling(name: str, arguments: dict[str, Any] | str, answer: str = "It rains.") -> Any:
    """Return a model that calls a tool once, and then answers."""

    async def model(request: Request, reply: Reply) -> None:
        if request.json()["messages"][-1]["role"] == "tool":
            return await reply.text(answer)
        raw = arguments if isinstance(arguments, str) else json.dumps(arguments)
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": raw}}]}
        await reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})

    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weather_tools.py").write_text(TOOLS)
    (tmp_path / "broken_tools.py").write_text("raise RuntimeError('not today')")
    (tmp_path / "person.json").write_text("\ufeff" + json.dumps(PERSON))
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "wrong.json").write_text('{"type": "strin"}')
    (tmp_path / "cat.png").write_bytes(PNG)
    return tmp_path


# --- --schema ---------------------------------------------------------------------------------------------------------


def test_json_that_fits_the_schema_is_printed(folder: Path) -> None:
    async def person(_: Request, reply: Reply) -> None:
        await reply.text('```json\n{"name": "Zo\u00eb"}\n```')

    with FakeServer(person) as server:
        done = run("--base-url", server.url, "-m", "m", "--schema", "person.json", "Who?", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == '{\n  "name": "Zo\u00eb"\n}\n'
    assert server.requests[0].json()["response_format"]["json_schema"]["schema"] == PERSON


def test_json_that_does_not_fit_is_not_printed(folder: Path) -> None:
    async def nobody(_: Request, reply: Reply) -> None:
        await reply.text('{"nam": 1}')

    with FakeServer(nobody) as server:
        done = run("--base-url", server.url, "-m", "m", "--schema", "person.json", "Who?", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        ("missing.json", 2, "missing.json"),
        ("cat.png", 2, "not JSON"),
        ("list.json", 2, "a JSON schema is an object, not list"),
        ("wrong.json", 1, "strin"),
    ],
)
def test_a_file_that_is_no_schema_is_one_line(folder: Path, file: str, code: int, words: str) -> None:
    done = run("--base-url", "http://127.0.0.1:9", "-m", "m", "--schema", file, "Who?", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert words in done.stderr


# --- --tool -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "name", "result"),
    [
        ("weather_tools:forecast", "forecast", "Rain in Delft for 1 days."),
        ("weather_tools:later", "later", "Sun in Delft."),
        ("weather_tools:station.read", "read", "Fog in Delft."),
    ],
)
def test_a_function_is_called_and_the_call_is_shown(folder: Path, tool: str, name: str, result: str) -> None:
    with FakeServer(calling(name, {"city": "Delft"})) as server:
        done = run("--base-url", server.url, "-m", "m", "--tool", tool, "Rain?", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.endswith("It rains.\n")
    assert f'{name}(city="Delft"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.requests[-1].json()["messages"][-1]["content"] == result


def test_what_goes_wrong_with_a_call_is_shown_too(folder: Path) -> None:
    for arguments, words in (({"city": "Atlantis"}, "forecast: Error: LookupError: it sank"), ({"town": 1}, "forecast: Error: The call of 'forecast' does not fit")):
        with FakeServer(calling("forecast", arguments)) as server:
            done = run("--base-url", server.url, "-m", "m", "--tool", "weather_tools:forecast", "Rain?", cwd=folder)
        assert done.returncode == 0
        assert words in done.stderr


def test_a_call_cannot_write_to_the_terminal(folder: Path) -> None:
    with FakeServer(calling("forecast", {"city": "\x1b]0;evil\x07\u009b"})) as server:
        done = run("--base-url", server.url, "-m", "m", "--tool", "weather_tools:forecast", "Rain?", cwd=folder)
    assert all(character.isprintable() for character in done.stderr.replace("\n", ""))


def test_tools_and_a_schema(folder: Path) -> None:
    with FakeServer(calling("forecast", {"city": "Delft"}, answer='{"name": "rain"}')) as server:
        done = run("--base-url", server.url, "-m", "m", "--tool", "weather_tools:forecast", "--schema", "person.json", "?", cwd=folder)
    assert (done.returncode, json.loads(done.stdout.partition("printed")[2])) == (0, {"name": "rain"})


@pytest.mark.parametrize(
    ("tool", "code", "words"),
    [
        ("weather_tools", 2, "MODULE:FUNCTION"),
        ("weather_tools:", 2, "MODULE:FUNCTION"),
        ("no_such_module:f", 2, "No module named 'no_such_module'"),
        ("weather_tools:no_such", 2, "no_such"),
        ("broken_tools:f", 2, "RuntimeError: not today"),
        ("weather_tools:number", 2, "is no function"),
    ],
)
def test_a_tool_that_cannot_be_had_is_one_line(folder: Path, tool: str, code: int, words: str) -> None:
    done = run("--base-url", "http://127.0.0.1:9", "-m", "m", "--tool", tool, "Rain?", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert words in done.stderr


def test_a_file_in_the_folder_does_not_stand_in_for_pythons_own(folder: Path) -> None:
    (folder / "graphlib.py").write_text("raise RuntimeError('the wrong one')")
    (folder / "rich.py").write_text("raise RuntimeError('the wrong one')")
    with FakeServer(calling("forecast", {"city": "Delft"})) as server:
        done = run("--base-url", server.url, "-m", "m", "--tool", "weather_tools:forecast", "Rain?", cwd=folder)
    assert done.returncode == 0


# --- --image ----------------------------------------------------------------------------------------------------------


def test_images_are_sent(folder: Path) -> None:
    with FakeServer() as server:
        done = run("--base-url", server.url, "-m", "m", "--image", "cat.png", "--image", "https://example.com/dog.png", "What?", cwd=folder)
    assert done.returncode == 0
    text, cat, dog = server.requests[0].json()["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    assert cat["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert dog["image_url"]["url"] == "https://example.com/dog.png"


def test_an_image_that_is_none_is_one_line(folder: Path) -> None:
    for file in ("person.json", "missing.png"):
        done = run("--base-url", "http://127.0.0.1:9", "-m", "m", "--image", file, "What?", cwd=folder)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert file in done.stderr


# --- settings from elsewhere ------------------------------------------------------------------------------------------


def test_variables_say_it(folder: Path) -> None:
    with FakeServer() as server:
        variables = {"JAZZ_LLM__BASE_URL": server.url, "JAZZ_LLM__MODEL": "from-variable", "JAZZ_LLM__API_KEY": "sk-variable", "JAZZ_LLM__SEED": "7"}
        assert run("hi", **variables).returncode == 0
        assert run("-m", "from-option", "hi", **variables).returncode == 0
        assert run(name="models", **variables).stdout == "fake-model\n"
    bodies = [request.json() for request in server.requests[:2]]
    assert [(body["model"], body["seed"]) for body in bodies] == [("from-variable", 7), ("from-option", 7)]
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sk-variable"}


def test_where_streams_are_switched_off_the_answer_is_asked_for_whole() -> None:
    with FakeServer() as server:
        done = run("--base-url", server.url, "-m", "m", "hi", JAZZ_LLM__STREAM_ENABLED="false")
        assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, world!\n", "")
        assert not server.requests[0].json().get("stream")


def test_a_key_of_the_variables_does_not_go_to_a_url_of_the_options(folder: Path) -> None:
    variables = {"JAZZ_LLM__BASE_URL": "http://127.0.0.1:1", "JAZZ_LLM__PROVIDER": "azure", "JAZZ_LLM__API_KEY": "sk-variable", "JAZZ_LLM__MODEL": "m"}
    with FakeServer() as server:
        assert run("--base-url", server.url, "hi", **variables).returncode == 0
        assert run("--base-url", server.url, "--api-key", "sk-option", "hi", **variables).returncode == 0
        headers = [request.headers for request in server.requests]
    assert "sk-variable" not in repr(headers)
    assert headers[1]["authorization"] == "Bearer sk-option"
    done = run("--provider", "groq", "hi", **variables)
    assert (done.returncode, "set GROQ_API_KEY" in done.stderr) == (1, True)  # it is Groq's URL that is asked


def test_a_file_says_it(folder: Path) -> None:
    pytest.importorskip("yaml", reason='PyYAML is not installed: pip install ".[yaml]"')
    with FakeServer() as server:
        (folder / "llm.yaml").write_text(f"base_url: {server.url}\nmodel: from-file\nseed: 1\nother:\n  model: from-section\n")
        for options, variables in (([], {}), (["--section", "other"], {}), ([], {"JAZZ_LLM__SEED": "2"}), (["-m", "from-option"], {})):
            done = run("--config", "llm.yaml", *options, "hi", cwd=folder, **variables)
            assert (done.returncode, done.stderr) == (0, "")
    bodies = [request.json() for request in server.requests]
    assert [(body["model"], body["seed"]) for body in bodies] == [("from-file", 1), ("from-section", 1), ("from-file", 2), ("from-option", 1)]


def test_doctor_takes_the_model_that_is_set_too(folder: Path) -> None:
    async def refuse(request: Request, reply: Reply) -> None:
        await reply.json({"data": [{"id": "first"}]} if request.path == "/v1/models" else {"error": {"message": "no"}}, 200 if request.path == "/v1/models" else 400)

    with FakeServer(refuse) as server:
        assert "\nmodel              named\n" in run(server.url, name="doctor", JAZZ_LLM__MODEL="named").stdout
        assert "\nmodel              first (the first;" in run(server.url, name="doctor").stdout
    assert [request.json()["model"] for request in server.requests if request.method == "POST"] == ["named", "first"]


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        (["--section", "x", "-m", "m", "hi"], {}, 2, "--config"),
        (["--config", "missing.yaml", "-m", "m", "hi"], {}, 1, "missing.yaml"),
        (["--local", "--config", "llm.yaml", "hi"], {}, 2, "--local and --config exclude each other"),
        (["-m", "", "--base-url", "http://127.0.0.1:9", "hi"], {}, 1, "model must be text"),
        (["-m", "m", "hi"], {"JAZZ_LLM__BASE_URL": "nonsense"}, 1, "JAZZ_LLM__BASE_URL"),
        (["hi"], {"JAZZ_LLM__BASE_URL": "http://127.0.0.1:9"}, 2, "which model? Pass -m MODEL"),
        (["-m", "m", "hi"], {"JAZZ_LLM__BASE_URI": "http://127.0.0.1:9"}, 1, "JAZZ_LLM__BASE_URI"),
        (["hi"], {"JAZZ_LLM__BASE_URI": "http://127.0.0.1:9"}, 1, "JAZZ_LLM__BASE_URI"),
    ],
)
def test_settings_that_are_wrong_are_one_line(tmp_path: Path, arguments: list[str], variables: dict[str, str], code: int, words: str) -> None:
    pytest.importorskip("yaml", reason='PyYAML is not installed: pip install ".[yaml]"')
    done = run(*arguments, cwd=tmp_path, **variables)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert words in done.stderr


# --- how it starts ----------------------------------------------------------------------------------------------------


def test_starting_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['jazz-llm', '--version']\nfrom jazz_llm.cli import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"httpx", "rich", "prompt_toolkit", "asyncio", "matplotlib", "yaml", "pydantic"} & set(loaded)


def test_every_command_tells_of_examples_exit_codes_and_variables() -> None:
    for name in ("chat", "models", "doctor", "bench"):
        done = run("--help", name=name)
        assert (done.returncode, done.stderr) == (0, "")
        for heading in ("Where to ask:", "Examples:", "Exit codes:", "Environment:"):
            assert f"\n{heading}\n" in done.stdout
        assert all(len(line) <= 80 or line.startswith("    jazz-llm") for line in done.stdout.splitlines())
