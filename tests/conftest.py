"""Fixtures of every test: a clean environment, both colours, a certificate authority, a real model."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jazz_llm.providers import PROVIDERS
from jazz_llm.testing import Authority

from .colours import Async, Sync

pytest_plugins = ["jazz_llm.testing.plugin"]  # by name, and not as installed: see setup.cfg

VARIABLES = {
    *(name for row in PROVIDERS for name in row.key_env),
    *("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "MODEL_API_URL", "MODEL_NAME"),
    *("OPENAI_BASE_URL", "DEBUG_MOCK_RESPONSES", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *(name for scheme in ("http", "https", "all", "no") for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper())),
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of the machine reach a test."""
    for name in VARIABLES & os.environ.keys():
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let processes of the tests be interrupted, also where pytest itself runs in the background of a shell (``pytest &``)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def settled() -> None:
    """Leave what is loaded by now out of the collections after each test: they would cost more than the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Let what a test left behind complain within that test: unclosed sockets warn when they are collected."""
    yield
    gc.collect()


@pytest.fixture(params=[Sync(), Async()], ids=lambda colour: colour.name)
def colour(request: pytest.FixtureRequest) -> Sync | Async:
    """Run the test once for each colour."""
    return request.param


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Return a certificate authority that the test's clients trust."""
    return Authority()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the tests' own tiny model with llama.cpp; return its base URL."""
    pytest.importorskip("xllamacpp", reason='llama.cpp is not installed: pip install ".[local]"')
    pytest.importorskip("gguf", reason='gguf is not installed: pip install ".[test]"')
    from .tiny_model import serve_tiny

    with serve_tiny(Path(tmp_path_factory.mktemp("model"))) as base_url:
        yield base_url
