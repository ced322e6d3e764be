"""The real servers, each started once for the tests in this folder, and only where a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jazz_llm.testing import Authority

from .proxies import HERE, Model, serve_llamacpp
from .servers import CONTEXT, Server, serve_litellm, serve_paced, serve_vllm


@pytest.fixture(scope="package")
def llamacpp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_llamacpp(tmp_path_factory.mktemp("model"), CONTEXT) as model:
        yield Server(f"http://{HERE}:{model.port}", model, provider=model.provider)


@pytest.fixture(scope="package")
def paced() -> Iterator[Model]:
    with serve_paced() as model:
        yield model


@pytest.fixture(scope="package")
def litellm_server(llamacpp_server: Server, paced: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """LiteLLM before llama.cpp, as it is without a database: one key, and it drops ``mock_response``."""
    with serve_litellm(tmp_path_factory.mktemp("litellm"), llamacpp_server, paced) as server:
        yield server


@pytest.fixture(scope="package")
def allowing_litellm(
    llamacpp_server: Server, paced: Model, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """LiteLLM over TLS, where requests may say ``mock_response``."""
    with serve_litellm(tmp_path_factory.mktemp("allowing"), llamacpp_server, paced, authority) as server:
        yield server


@pytest.fixture(scope="package")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_vllm(tmp_path_factory.mktemp("vllm")) as server:
        yield server
