"""Completion in real shells, on a real terminal: a word, Tab, and what is there then."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')

from .terminal import Terminal

# How each is started without the user's own files, how it loads the script, and where its prompt comes from.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(jazz-llm completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(jazz-llm completion zsh)"'),
    "fish": (["fish", "--no-config", "-C", "function fish_prompt; echo -n 'ready$'; end"], "jazz-llm completion fish | source"),
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a PATH where ``jazz-llm`` is the one under test."""
    command = tmp_path / "bin" / "jazz-llm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jazz_llm "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return f"{command.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("jazz-llm comp", "jazz-llm completion"),
        ("jazz-llm chat --max", "jazz-llm chat --max-tokens"),
        ("jazz-llm models --provider gr", "jazz-llm models --provider groq"),
        ("jazz-llm chat --schema per", "jazz-llm chat --schema person.json"),
        ("jazz-llm completion z", "jazz-llm completion zsh"),
    ],
)
def test_tab_completes(shell: str, typed: str, whole: str, path: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    (tmp_path / "person.json").write_text("{}")
    line, loading = SHELLS[shell]
    home = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(tmp_path))
    with Terminal(line, cwd=tmp_path, PATH=path, PS1="ready$", **home) as terminal:
        terminal.until(lambda text: text.endswith("ready$"))  # what is typed before is lost
        terminal.type(f"{loading}; echo load''ed")
        terminal.until(lambda text: "\nloaded" in text and text.endswith("ready$"))
        terminal.press(typed.encode() + b"\t")
        terminal.until(f"ready${whole}")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_written(shell: str) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("click looks at bash's version, and bash is not installed")
    done = subprocess.run([sys.executable, "-m", "jazz_llm", "completion", shell], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_JAZZ_LLM_COMPLETE={shell}_complete" in done.stdout


def test_another_shell_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "jazz_llm", "completion", "tcsh"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'bash', 'zsh', 'fish'" in done.stderr
