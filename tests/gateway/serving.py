"""What the tests in JavaScript and of the page talk to: a model server with moods, and a gateway in a thread before it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from jazz_llm.testing import FakeServer, Reply, Request, sse_chunk

MARKUP = "<b>Red</b> <img src=x onerror=\"document.title='taken'\"> & <script>document.title = 'taken'</script>."
NASTY = "<img src=x onerror=document.title=1>"  # as the name of a provider, or of a model
MODELS = ["small", "large", NASTY]
WORDS = ["Hello,", " world", "!"]


async def model(request: Request, reply: Reply) -> None:
    """Answer as the last message asks: ``wait``, ``markup``, ``break``, ``cut``, ``empty``, or with WORDS."""
    if request.headers.get("authorization") == "Bearer sk-bad":
        await reply.json({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}, 401)
    elif request.path.endswith("/models"):
        await reply.json({"data": [{"id": name} for name in MODELS]})
    elif request.json()["model"] not in MODELS:
        await reply.json({"error": {"message": "The model `none` does not exist", "code": "model_not_found"}}, 404)
    elif not request.json().get("stream"):
        await (reply.cancelled() if asked(request) == "wait" else reply.text("".join(WORDS)))
    else:
        await stream(asked(request), reply)


def asked(request: Request) -> str:
    return request.json()["messages"][-1]["content"]


async def stream(question: str, reply: Reply) -> None:
    if question == "wait":
        await start(reply, "One,")
        await reply.cancelled()
    elif question == "break":
        await start(reply, "One,")
        reply.reset()
    else:
        texts = {"markup": MARKUP.split(" "), "empty": [], "long": [f"Line {i}.\n" for i in range(100)]}.get(question, WORDS)
        await reply.sse([f"{text} " if question == "markup" else text for text in texts], finish="length" if question == "cut" else "stop", delay=0.002)


async def start(reply: Reply, text: str) -> None:
    await reply.start(200, {"content-type": "text/event-stream"})
    await reply.send(sse_chunk(text))


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[str]:
    """Run a gateway in a thread of its own; yield the URL of its page."""
    from jazz_llm.gateway import Gateway

    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        async with Gateway(**options) as gateway:
            started.set_result((asyncio.get_running_loop(), stop, f"http://127.0.0.1:{gateway.port}/"))
            stopping, closing = asyncio.create_task(stop.wait()), asyncio.create_task(gateway.wait_closed())
            _, left = await asyncio.wait([stopping, closing], return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()

    thread = threading.Thread(target=_into, args=(started, run))
    thread.start()
    loop, stop, url = started.result(10)
    try:
        yield url
    finally:
        with contextlib.suppress(RuntimeError):  # it has been closed by a client, and its loop with it
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


def _into(started: Future[Any], run: Any) -> None:
    try:
        asyncio.run(run())
    except Exception as error:
        if started.done():
            raise
        started.set_exception(error)


@contextlib.contextmanager
def model_server() -> Iterator[FakeServer]:
    with FakeServer(model) as server:
        yield server


def settings(folder: Path, url: str) -> str:
    """Write a file that makes the model server three providers, one with a name that would be markup, one with a model; return its path."""
    path = folder / "gateway.yaml"
    section = f"  base_url: {url}\n  api_key: sk-of-the-file\n"
    path.write_text(f"fake:\n{section}{NASTY!r}:\n{section}large-one:\n{section}  model: large\n")
    return str(path)
