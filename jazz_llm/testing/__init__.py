"""What tests of code that calls a model need (extra ``testing``).

Each part is imported when it is first asked for: pytest imports this package at every start, by its plugin, also where the
extra is not installed, and half of the parts need nothing of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..retry import set_testing

if TYPE_CHECKING:
    from .authority import Authority
    from .cassettes import cassette
    from .fake_llm import FakeCall, FakeLLM
    from .replies import Answer
    from .server import ClientStopped, FakeServer, Frame, Handler, Reply, Request, sse_chunk

# In which module a part is.
_PARTS = {
    "Answer": "replies",
    "Authority": "authority",
    "ClientStopped": "server",
    "FakeCall": "fake_llm",
    "FakeLLM": "fake_llm",
    "FakeServer": "server",
    "Frame": "server",
    "Handler": "server",
    "Reply": "server",
    "Request": "server",
    "cassette": "cassettes",
    "sse_chunk": "server",
}

__all__ = [
    "Answer",
    "Authority",
    "ClientStopped",
    "FakeCall",
    "FakeLLM",
    "FakeServer",
    "Frame",
    "Handler",
    "Reply",
    "Request",
    "cassette",
    "set_testing",
    "sse_chunk",
]


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        part = getattr(importlib.import_module(f"{__name__}.{_PARTS[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f'jazz_llm.testing.{name} needs {error.name}: pip install "jazz_llm[testing]"') from error
    globals()[name] = part
    return part


def __dir__() -> list[str]:
    return __all__
