"""The pytest plugin (entry point ``pytest11``): fixtures of the testing kit.

pytest imports this file at every start wherever jazz_llm is installed, so whatever is not light is imported by the fixtures.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from ..client import OpenAICompatibleLLM
    from .server import FakeServer

_FAILED = pytest.StashKey[bool]()
_MARKER = (
    'cassette(path=None, mode="once", pace=False): record what the calls of the test ask and get, or replay it; the path is '
    "relative to the test's file, None is cassettes/<module>/<test>.yaml"
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have a marked test use the fixture, and before its others: what they ask is in the cassette as well."""
    if isinstance(item, pytest.Function) and item.get_closest_marker("cassette") is not None:
        item.fixturenames.insert(0, "cassette")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note for the fixture that the test, or its preparation, failed."""
    if call.excinfo is not None:
        item.stash[_FAILED] = True


class _TestFailed(Exception):  # noqa: N818  # ends a recording, and is no error
    pass


@pytest.fixture
def cassette(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Record what the calls of the test ask and get, or replay it; return the file. The marker ``cassette`` may name it."""
    try:
        from . import cassette as running
    except ImportError as error:
        pytest.fail(str(error), pytrace=False)
    request.node.stash[_FAILED] = False  # this is perhaps not its first run
    marker = request.node.get_closest_marker("cassette")
    path, mode, pace = _arguments(*marker.args, **marker.kwargs) if marker else _arguments()
    with contextlib.suppress(_TestFailed), running(_file_of(request.node, path), mode, pace=pace) as file:
        yield file
        if request.node.stash[_FAILED]:
            raise _TestFailed


_Mode = Literal["once", "none"]


def _arguments(path: str | None = None, mode: _Mode = "once", *, pace: bool = False) -> tuple[str | None, _Mode, bool]:
    """Return what the marker says."""
    return path, mode, pace


def _file_of(test: pytest.Function, path: str | None) -> Path:
    folder = test.path.parent
    if path is not None:
        return folder / path
    name = test.getmodpath()
    safe = re.sub(r"[^\w.,=+ \[\]-]", "_", name)[:150]
    if safe != name:  # not every name is one of a file; two tests must not have the same
        safe += f"-{zlib.crc32(name.encode()):08x}"
    return folder / "cassettes" / test.path.stem / f"{safe}.yaml"


@pytest.fixture
def llm_server() -> Iterator[FakeServer]:
    """Serve a model on the loopback while the test runs: a started ``FakeServer``, for ``reply``, ``fail`` and ``requests``."""
    try:
        from . import FakeServer
    except ImportError as error:
        pytest.fail(str(error), pytrace=False)
    with FakeServer() as server:
        yield server


@pytest.fixture
def llm(llm_server: FakeServer) -> Iterator[OpenAICompatibleLLM]:
    """Make an ``OpenAICompatibleLLM`` that talks to ``llm_server``; it is closed after the test."""
    from ..client import OpenAICompatibleLLM

    with OpenAICompatibleLLM("fake-model", base_url=llm_server.url) as llm:
        yield llm
