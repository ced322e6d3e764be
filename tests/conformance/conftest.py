"""Every test here runs for both colours and every wire: HTTP/1.1, HTTP/1.1 and HTTP/2 over TLS, prior knowledge, stock httpx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from jazz_llm import OpenAICompatibleLLM
from jazz_llm.testing import Authority, FakeServer, Reply, cassette

from ..canary import Watch
from ..colours import Async, Sync

WIRES = ("http1", "http1-tls", "http2-tls", "prior-knowledge", "stock-httpx")
NOT_RECORDED = {"http1", "http2-tls"}  # a recorder stands between a call and its pool: each protocol has a wire without


@dataclass
class Wire:
    """Makes a server and clients for it that speak one protocol."""

    name: str
    authority: Authority
    stack: ExitStack = field(default_factory=ExitStack)

    def server(self, handler: Any = None) -> FakeServer:
        tls = self.authority if self.name.endswith("tls") else False
        return self.stack.enter_context(FakeServer(handler, tls=tls, http2=self.name != "http1-tls"))

    def llm(self, server: FakeServer, **arguments: Any) -> OpenAICompatibleLLM:
        if self.name.endswith("tls"):
            arguments = {"verify": self.authority.path, **arguments}
        elif self.name == "prior-knowledge":
            arguments = {"http2": "prior_knowledge", **arguments}
        elif self.name == "stock-httpx":
            # Idle connections of a stock async transport cannot be closed once its loop is: so none are kept.
            limits = httpx.Limits(max_keepalive_connections=0)
            stock = {"transport": httpx.HTTPTransport(), "async_transport": httpx.AsyncHTTPTransport(limits=limits)}
            arguments = {**stock, **arguments}
        return self.stack.enter_context(OpenAICompatibleLLM("m", base_url=server.url, **arguments))


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest, authority: Authority, colour: Sync | Async) -> Iterator[Wire]:
    wire = Wire(request.param, authority)
    with wire.stack:
        yield wire


@pytest.fixture
def version(wire: Wire, colour: Sync | Async) -> str:
    """Return the protocol that this colour must speak on this wire."""
    return "HTTP/2" if wire.name in ("prior-knowledge", "http2-tls") else "HTTP/1.1"


@pytest.fixture(autouse=True)
def no_secret_leaks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Fail the test in which a key, an organization or a token of the user's shows up anywhere (FAULTS.md, "Security").

    The server says the key back in a header of every answer. Not over stock httpx, which logs what headers it receives.
    """
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        if "stock-httpx" not in request.node.name:
            echo_the_key(patch)
        watch.files.append(tmp_path / "cassette.yaml")
        wire = getattr(request.node, "callspec", None) and request.node.callspec.params.get("wire")
        with nullcontext() if wire in NOT_RECORDED else cassette(watch.files[0]):
            yield
    leaks = watch.leaks()
    watch.forget()
    assert leaks == []


def echo_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def echoing(start: Any) -> Any:
        async def wrapped(self: Reply, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            echo = {"x-echo": self._request.headers.get("authorization", "")}
            await start(self, status, {**echo, **dict(headers or {})})

        return wrapped

    for cls in Reply.__subclasses__():
        monkeypatch.setattr(cls, "start", echoing(cls.start))
