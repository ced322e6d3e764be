"""The pytest plugin where it is used: in runs of pytest of their own, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ERRORS = "[pytest]\nfilterwarnings = error\naddopts = --strict-markers --strict-config\n"
NONE_OF_THESE = ("httpx", "h2", "h11", "trustme", "yaml", "tenacity", "asyncio")
USES_BOTH = """
import asyncio

import pytest
from jazz_llm import LLMRateLimitError, OpenAICompatibleLLM
from jazz_llm.testing import FakeServer


def test_whole(llm, llm_server):
    assert isinstance(llm, OpenAICompatibleLLM) and isinstance(llm_server, FakeServer)
    llm_server.reply("scripted")
    assert llm.generate("hi").text == "scripted"
    assert llm_server.requests[0].json()["messages"] == [{"role": "user", "content": "hi"}]


def test_streams_of_both_colours(llm, llm_server):
    async def read():
        return [text async for text in llm.astream("hi")]

    assert asyncio.run(read()) == list(llm.stream("hi"))


def test_a_fault(llm, llm_server):
    llm_server.fail(429)
    with pytest.raises(LLMRateLimitError):
        llm.generate("hi", max_retries=0)


def test_each_test_has_a_server_of_its_own(llm, llm_server):
    assert llm_server.requests == []
    llm_server.reply("never asked for")
"""
USES_FAKE = """
from jazz_llm.testing import FakeLLM, set_testing


def test_fake():
    with set_testing():
        assert FakeLLM("hello").generate("hi").text == "hello"
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs pytest on a file of tests."""

    def run(tests: str, *arguments: str, ini: str = ERRORS, command: tuple[str, ...] = ("-m", "pytest"), path: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "pytest.ini").write_text(ini)
        (tmp_path / "test_users.py").write_text(tests)
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
        environment.pop("PYTEST_ADDOPTS", None)
        command = (sys.executable, *command, "-p", "no:cacheprovider", *arguments)
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


def without(tmp_path: Path, *packages: str) -> str:
    """Return a folder for PYTHONPATH in which these packages are as if they were not installed."""
    for name in packages:
        (tmp_path / "lacking").mkdir(exist_ok=True)
        (tmp_path / "lacking" / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})")
    return str(tmp_path / "lacking")


def test_a_users_tests_pass(run: Run) -> None:
    ran = run(USES_BOTH, "-q")
    assert "4 passed" in ran.stdout, ran.stdout + ran.stderr
    assert ran.returncode == 0


def test_the_fixtures_say_what_they_are(run: Run) -> None:
    ran = run("", "--fixtures")
    assert "\nllm_server -- " in ran.stdout
    assert "Serve a model on the loopback while the test runs" in ran.stdout
    assert "\nllm -- " in ran.stdout
    assert ran.stderr == ""


def test_pytest_starts_without_the_extra(run: Run, tmp_path: Path) -> None:
    ran = run("def test_own(): pass\n" + USES_FAKE, "-q", path=without(tmp_path, "trustme", "h2", "h11", "yaml"))
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert ran.stderr == ""


def test_without_the_extra_a_fixture_says_what_to_install(run: Run, tmp_path: Path) -> None:
    ran = run(USES_BOTH.replace("from jazz_llm.testing import FakeServer", ""), "-q", path=without(tmp_path, "trustme"))
    assert ran.returncode == 1
    assert 'jazz_llm.testing.FakeServer needs trustme: pip install "jazz_llm[testing]"' in ran.stdout
    assert "Traceback" not in ran.stdout


def test_an_import_without_the_extra_says_what_to_install(run: Run, tmp_path: Path) -> None:
    ran = run("from jazz_llm.testing import FakeServer", "-q", path=without(tmp_path, "trustme"))
    assert 'ImportError: jazz_llm.testing.FakeServer needs trustme: pip install "jazz_llm[testing]"' in ran.stdout


def test_it_can_be_switched_off(run: Run) -> None:
    off = ("-q", "-p", "no:jazz_llm")
    assert "1 passed" in run("def test_own(): pass", *off).stdout
    assert "fixture 'llm' not found" in run("def test_own(llm): pass", *off).stdout
    # A user's own fixture of that name wins.
    assert "1 passed" in run("import pytest\n@pytest.fixture\ndef llm(): return 1\ndef test_own(llm): assert llm == 1", "-q").stdout


def test_it_loads_nothing_heavy_at_the_start(run: Run) -> None:
    code = f"import sys\ndef test_own():\n    assert not [name for name in {NONE_OF_THESE} if name in sys.modules]\n"
    ran = run(code, "-q", "-p", "jazz_llm.testing.plugin", command=("-c", "import os, sys; os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'; import pytest; sys.exit(pytest.main(sys.argv[1:]))"))
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr


def test_coverage_sees_the_users_code(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pytest_cov", reason='pytest-cov is not installed: pip install ".[test]"')
    (tmp_path / "app.py").write_text("def ask(llm):\n    return llm.generate('hi').text\n")
    ran = run("from app import ask\ndef test_ask(llm): assert ask(llm) == 'Hello, world!'", "-q", "--cov=app", "--cov-fail-under=100")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_the_package_may_be_imported_before_pytest(run: Run, tmp_path: Path) -> None:
    """pytest rewrites the modules of packages with plugins, and warns of those that it comes too late for.

    It knows them by the files of the installed package, which an editable install does not list: so there is another here.
    """
    installed = tmp_path / "installed" / "jazz_llm_as_installed-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: jazz_llm_as_installed\nVersion: 1\n")
    (installed / "RECORD").write_text("jazz_llm/__init__.py,,\njazz_llm/client.py,,\n")
    (installed / "entry_points.txt").write_text("[pytest11]\njazz_llm = jazz_llm.testing.plugin\n")
    command = ("-W", "error", "-c", "import jazz_llm, pytest, sys; sys.exit(pytest.main(sys.argv[1:]))")
    ran = run(USES_BOTH, "-q", command=command, path=str(installed.parent))
    assert "4 passed" in ran.stdout, ran.stdout + ran.stderr


def test_what_the_server_ran_into_fails_the_test(run: Run) -> None:
    code = "def test_own(llm, llm_server):\n    llm_server.break_off('goaway')\n    try: llm.generate('hi', max_retries=0)\n    except Exception: pass\n"
    ran = run(code, "-q")
    assert "HTTP/1.1 has no GOAWAY" in ran.stdout
    assert ran.returncode == 1
