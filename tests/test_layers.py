"""Imports run down: a module imports only modules listed above it in DESIGN.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jazz_llm

ROOT = Path(jazz_llm.__file__).parent
FLOORS = ["_version", "errors", "images", "types", "sse", "providers", "usage", "strict", "schema", "functions", "tools", "toolbox", "retry", "timing", "hooks", "config", "request", "tool_loop", "response", "transport", "mock", "watching", "streams", "settings", "client", "__init__", "telemetry", "local", "testing", "gateway", "cli", "__main__"]
# httpx costs more to import than all of ours: only the transport may, and only when it is used.
HEAVY = {"httpx", "httpcore", "h2", "tenacity", "asyncio", "click", "matplotlib", "rich", "prompt_toolkit", "websockets", "yaml", "opentelemetry", "xllamacpp", "trustme", "urllib.request"}
MAY_IMPORT_AT_ONCE = {"transport", "testing", "cli"}


def rooms_imported(path: Path) -> set[str]:
    """Return the rooms that a file imports at run time (not only for types)."""
    tree = ast.parse(path.read_text())
    for_types = {id(n) for block in ast.walk(tree) if is_type_checking(block) for n in ast.walk(block)}
    depth = len(path.relative_to(ROOT).parts)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == depth and id(node) not in for_types:
            names = {"__init__" if alias.name == "__version__" else alias.name for alias in node.names}
            found |= {node.module.split(".")[0]} if node.module else names
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


MODULES = sorted(path for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in rooms_imported(path) - {room}:
        assert FLOORS.index(other) < FLOORS.index(room), f"{room} imports {other}"


def test_every_room_has_its_floor() -> None:
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES} <= set(FLOORS)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, jazz_llm; jazz_llm.OpenAICompatibleLLM('m', 'k'); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & (HEAVY - {"asyncio"})
    assert "asyncio" not in loaded
