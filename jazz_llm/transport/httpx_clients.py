"""``llm.client`` and ``llm.aclient``: httpx clients on the instance's pools, for whatever else to ask of the host."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING

import httpx

from ..request import ask_key, ask_key_async, authorization
from .httpx_transports import asend, send

if TYPE_CHECKING:
    from ..client import OpenAICompatibleLLM
    from ..config import Config


def make_client(llm: OpenAICompatibleLLM) -> httpx.Client:
    """Make the sync client."""
    return httpx.Client(transport=_Borrowed(llm), **_settings(llm._config))  # type: ignore[arg-type]


def make_aclient(llm: OpenAICompatibleLLM) -> httpx.AsyncClient:
    """Make the async client."""
    return httpx.AsyncClient(transport=_AsyncBorrowed(llm), **_settings(llm._config))  # type: ignore[arg-type]


def _settings(config: Config) -> dict[str, object]:
    scheme, host, port = config.origin
    times = config.timeouts
    return {
        "auth": _KeyForOrigin(config),
        "base_url": f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}",
        "timeout": httpx.Timeout(connect=times.connect, read=times.read, write=times.write, pool=times.pool),
        "trust_env": False,
        "follow_redirects": False,
    }


class _KeyForOrigin(httpx.Auth):
    """Send the key, and the instance's own headers, to the base origin and nowhere else."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._origin = httpx.URL(scheme=config.origin[0], host=config.origin[1], port=config.origin[2])

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._is_home(request.url):
            self._sign(request, ask_key(self._config))
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if self._is_home(request.url):
            self._sign(request, await ask_key_async(self._config))
        yield request

    def _is_home(self, url: httpx.URL) -> bool:
        home = self._origin
        return (url.scheme, url.host, url.port) == (home.scheme, home.host, home.port)

    def _sign(self, request: httpx.Request, key: str | None) -> None:
        if key is not None:
            request.headers.update(authorization(self._config, key))
        request.headers.update(self._config.default_headers)


class _Borrowed(httpx.BaseTransport):
    """The sync pool, which closing the client does not close."""

    def __init__(self, llm: OpenAICompatibleLLM) -> None:
        self._llm = llm

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._llm._check_open()
        own = self._llm._config.transport
        return own.handle_request(request) if own else send(self._llm._shared.pool(), request)


class _AsyncBorrowed(httpx.AsyncBaseTransport):
    """The async pool, which closing the client does not close."""

    def __init__(self, llm: OpenAICompatibleLLM) -> None:
        self._llm = llm

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._llm._check_open()
        own = self._llm._config.async_transport
        return await (own.handle_async_request(request) if own else asend(self._llm._shared.apool(), request))
