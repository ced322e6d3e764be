"""The two colours behind one face, so that a test's body is written once and runs for both."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jazz_llm import AsyncEventStream, AsyncTextStream, EventStream, LLMResponse, OpenAICompatibleLLM, StreamEvent, TextStream


class Sync:
    """Calls through the sync methods."""

    name = "sync"
    transport_argument = "transport"

    def generate(self, llm: OpenAICompatibleLLM, messages: Any = "hi", **options: Any) -> LLMResponse[Any]:
        return llm.generate(messages, **options)

    def stream(self, llm: OpenAICompatibleLLM, messages: Any = "hi", **options: Any) -> tuple[list[str], TextStream[Any]]:
        """Read a stream to its end; return the texts and the stream. An error carries the texts as ``seen``."""
        stream = llm.stream(messages, **options)
        seen: list[str] = []
        with keeping(seen):
            for text in stream:
                seen.append(text)
        return seen, stream

    def events(self, llm: OpenAICompatibleLLM, messages: Any = "hi", **options: Any) -> tuple[list[StreamEvent], EventStream[Any]]:
        """Read a stream of events to its end. An error that is raised carries the events as ``seen``."""
        stream = llm.stream_events(messages, **options)
        seen: list[StreamEvent] = []
        with keeping(seen):
            for event in stream:
                seen.append(event)
        return seen, stream

    def leave_early(self, llm: OpenAICompatibleLLM, after: int = 1, **options: Any) -> TextStream[Any]:
        """Break out of the loop after some texts, still holding the stream."""
        stream = llm.stream("hi", **options)
        for i, _ in enumerate(stream, 1):
            if i == after:
                break
        return stream

    def run(self, call: Callable[[], Any]) -> Any:
        """Run something that needs this colour's surroundings."""
        return call()

    def close_while_reading(self, llm: OpenAICompatibleLLM, ready: Callable[[], object], close: str, what: str = "stream") -> list[Any]:
        """Close the stream or the client from elsewhere while a reader is blocked; return what the reader met."""
        stream = getattr(llm, what)("hi")
        met: list[Any] = []

        def read() -> None:
            try:
                met.extend(stream)
            except Exception as error:
                met.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        ready()
        (stream if close == "stream" else llm).close()
        reader.join(5)
        assert not reader.is_alive()
        return met


class Async:
    """Calls through the async methods, each in a loop of its own."""

    name = "async"
    transport_argument = "async_transport"

    def generate(self, llm: OpenAICompatibleLLM, messages: Any = "hi", **options: Any) -> LLMResponse[Any]:
        return asyncio.run(llm.agenerate(messages, **options))

    def stream(self, llm: OpenAICompatibleLLM, messages: Any = "hi", **options: Any) -> tuple[list[str], AsyncTextStream[Any]]:
        stream = llm.astream(messages, **options)
        seen: list[str] = []

        async def read() -> None:
            with keeping(seen):
                async for text in stream:
                    seen.append(text)

        asyncio.run(read())
        return seen, stream

    def events(self, llm: OpenAICompatibleLLM, messages: Any = "hi", **options: Any) -> tuple[list[StreamEvent], AsyncEventStream[Any]]:
        stream = llm.astream_events(messages, **options)
        seen: list[StreamEvent] = []

        async def read() -> None:
            with keeping(seen):
                async for event in stream:
                    seen.append(event)

        asyncio.run(read())
        return seen, stream

    def leave_early(self, llm: OpenAICompatibleLLM, after: int = 1, **options: Any) -> AsyncTextStream[Any]:
        async def leave() -> AsyncTextStream[Any]:
            stream = llm.astream("hi", **options)
            seen = 0
            async for _ in stream:
                seen += 1
                if seen == after:
                    break
            return stream

        return asyncio.run(leave())

    def run(self, call: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            return call()

        return asyncio.run(inside())

    def close_while_reading(self, llm: OpenAICompatibleLLM, ready: Callable[[], object], close: str, what: str = "stream") -> list[Any]:
        met: list[Any] = []

        async def scenario() -> None:
            stream = getattr(llm, f"a{what}")("hi")

            async def read() -> None:
                try:
                    async for text in stream:
                        met.append(text)
                except Exception as error:
                    met.append(error)

            reader = asyncio.create_task(read())
            await asyncio.to_thread(ready)
            await (stream if close == "stream" else llm).aclose()
            await asyncio.wait_for(reader, 5)

        asyncio.run(scenario())
        return met


@contextlib.contextmanager
def keeping(seen: list[Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.seen = list(seen)  # type: ignore[attr-defined]
        raise
