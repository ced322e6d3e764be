"""A ``load`` request -> an instance that has been tried: its key, its endpoint, and which models there are.

A URL that a client names gets the key that the client gives, never one of the gateway's own environment or file: else any
client could have them sent to itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from ..client import OpenAICompatibleLLM
from ..config import check_key, suggestion
from ..errors import (
    LLMAuthenticationError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMTimeoutError,
)
from ..local import LocalServer
from ..providers import BY_NAME, Provider
from ..settings import sections_of
from .protocol import Load
from .session import Loaded

R = TypeVar("R")

LOCAL, DEFAULT = "local", "default"
UNNAMED = "unnamed"  # an instance has to have a model; each generation names its own
_LIST = 10.0  # seconds to list the models
_WARM_UP = 300.0  # seconds for a first token: a server may load the model for it


class Loader:
    """What can be loaded: the registry, a local model, and the sections of a YAML file."""

    def __init__(self, config: str | os.PathLike[str] | None = None) -> None:
        self._config = config or ""
        self._sections = sections_of(config) if config else ()
        self._local = Local()
        self.providers = tuple(dict.fromkeys((*self._sections, *BY_NAME, LOCAL)))
        rows = [row for name, row in BY_NAME.items() if name not in self._sections]
        self.needs = {
            "key_needed": [row.name for row in rows if _wants_key(row)],
            "base_url_needed": [row.name for row in rows if "{" in row.base_url],
        }

    async def load(self, request: Load) -> Loaded:
        """Return what was loaded. Its instance was made in a thread: it may read a file.

        Raises:
            LLMConfigurationError: There is no such provider, or it cannot be asked like this.
            LLMError: The provider refused.
        """
        _check_key(request)
        if request.provider.lower() == LOCAL and request.base_url is None and LOCAL not in self._sections:
            return await self._load_local(request)
        llm, model = await in_thread(lambda: self._made(request))
        return await _tried(llm, request, model)

    def close(self) -> None:
        """Stop the local model."""
        self._local.stop()

    async def _load_local(self, request: Load) -> Loaded:
        url = await self._local.url()
        try:
            return await _tried(_local(url), request, None)
        except LLMConnectionError:
            self._local.is_gone(url)
        return await _tried(_local(await self._local.url()), request, None)

    def _made(self, request: Load) -> tuple[OpenAICompatibleLLM, str | None]:
        """Return the instance, and the model that its settings name."""
        key: dict[str, Any] = {} if request.api_key is None else {"api_key": request.api_key}
        name = request.provider.lower()
        row = name if name in BY_NAME else None
        if request.base_url is not None:
            llm = OpenAICompatibleLLM(UNNAMED, base_url=request.base_url, provider=row, **key)
            return (llm if key else _without_environment(llm)), None
        if request.provider in self._sections:
            return self._from_file(request.provider, {**key, **({"provider": row} if row else {})})
        if row is None:
            raise LLMConfigurationError(f"There is no provider {request.provider[:40]!r}. {suggestion(name, self.providers)}")
        return OpenAICompatibleLLM.from_provider(row, UNNAMED, **key), None

    def _from_file(self, name: str, arguments: dict[str, Any]) -> tuple[OpenAICompatibleLLM, str | None]:
        section = None if name == DEFAULT else name
        try:
            llm = OpenAICompatibleLLM.from_yaml(self._config, section, **arguments)
        except LLMConfigurationError:  # raised again where a model was not what is missing
            return OpenAICompatibleLLM.from_yaml(self._config, section, **arguments, model=UNNAMED), None
        return llm, llm._config.model


def _check_key(request: Load) -> None:
    """Refuse a key that no server can be sent."""
    try:
        if request.api_key is not None:
            check_key(request.api_key)
    except LLMConfigurationError as error:
        raise LLMAuthenticationError(error.message) from None


def _wants_key(row: Provider) -> bool:
    """Say whether a provider takes a key and the environment has none; what runs on this machine mostly takes none."""
    return row.base_url.startswith("https:") and bool(row.key_env) and not any(map(os.environ.get, row.key_env))


def _without_environment(llm: OpenAICompatibleLLM) -> OpenAICompatibleLLM:
    """Take out what the environment says of an account. Nothing may copy this instance: that would read it again."""
    llm._config = replace(llm._config, api_key=None, key_hint="", default_headers={})
    return llm


def _local(url: str) -> OpenAICompatibleLLM:
    return OpenAICompatibleLLM(UNNAMED, base_url=url, provider="llamacpp")


async def _tried(llm: OpenAICompatibleLLM, request: Load, model: str | None) -> Loaded:
    """Prove key and endpoint by listing the models, or by a call where there is no list for it, and warm a model up."""
    wanted, row = request.preload_model_id, llm._config.provider
    models: tuple[str, ...] = ()
    listed = llm._config.models_url is not None
    if listed:
        models = await _models(llm)
    if wanted or not listed or (row is not None and row.models_public):
        await _first_token(llm, wanted or model)
    named = (wanted or model,) if wanted or model else ()
    return Loaded(llm, tuple(dict.fromkeys((*named, *models))), wanted or model)  # first is what most clients preselect


async def _models(llm: OpenAICompatibleLLM) -> tuple[str, ...]:
    try:
        async with asyncio.timeout(_LIST):
            return tuple(found.id for found in await llm.alist_models())
    except TimeoutError:
        raise LLMTimeoutError(f"No list of models within {_LIST:g} s.") from None


async def _first_token(llm: OpenAICompatibleLLM, model: str | None) -> None:
    """Ask for one token. What a model objects to in this, or that none was named, is said by a server that took the key."""
    passing = (LLMInvalidRequestError,) if model else (LLMInvalidRequestError, LLMNotFoundError)
    with suppress(*passing):
        await llm.agenerate("Hi", model=model or UNNAMED, max_tokens=1, timeout=_WARM_UP, max_retries=0)


class Local:
    """The one llama.cpp of a gateway, started when the first client asks for it."""

    def __init__(self) -> None:
        self._server: LocalServer | None = None
        self._url: asyncio.Future[str] | None = None

    async def url(self) -> str:
        """Return where it serves; all who ask while it starts wait for the same start, and none of them ends it."""
        if self._url is None or (self._url.done() and self._url.exception() is not None):
            self._server = server = LocalServer()
            self._url = asyncio.ensure_future(in_thread(lambda: self._start(server)))
            self._url.add_done_callback(lambda url: url.cancelled() or url.exception())  # whoever waited may have left
        return await asyncio.shield(self._url)

    def _start(self, server: LocalServer) -> str:
        url = server.__enter__()
        if self._server is not server:  # stopped meanwhile
            server.__exit__(None, None, None)
        return url

    def is_gone(self, url: str) -> None:
        """Forget one that answers no more, unless somebody else has started another since."""
        if self._url is not None and self._url.done() and self._url.result() == url:
            self.stop()

    def stop(self) -> None:
        """Stop it, if it runs; one that is starting stops as soon as it has started."""
        server, self._server = self._server, None
        if server is not None:
            server.__exit__(None, None, None)
        if self._url is not None:
            self._url.cancel()
        self._url = None


async def in_thread(work: Callable[[], R]) -> R:
    """Do work that waits. The thread is a daemon, so that what hangs cannot hold up the gateway's end."""
    done: Future[R] = Future()
    threading.Thread(target=_settle, args=(done, work), name="jazz_llm-gateway", daemon=True).start()
    return await asyncio.wrap_future(done)


def _settle(done: Future[R], work: Callable[[], R]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(work())
    except BaseException as error:  # raised again where it is waited for
        done.set_exception(error)
