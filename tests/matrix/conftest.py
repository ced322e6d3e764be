"""The fault matrix of FAULTS.md: one ``test_row_NN_...`` or more for each row.

* ``@where("async h2")`` says where a row applies; what it does not name runs everywhere: both colours, ``generate`` and
  ``stream``, HTTP/1.1 (``h1``) and HTTP/2 over TLS (``h2``). HTTP/1.1 over TLS (``tls``) and ``events`` (``stream_events``) run
  only where they are named.
* ``case`` is one cell: ``case.face(fault)`` makes a server that shows the fault to the first request (``times``), and a client;
  ``case.call()`` and ``case.fails(cls)`` make the call. Async calls run in one loop, in a thread of its own, as long as the test.
* However a test ends, ``case`` then makes one more call on the same client, closes it, and looks for what is left: connections,
  descriptors, threads, tasks, complaints of the loop. ``sibling=True`` holds a stream open on the same connection meanwhile
  (HTTP/2, async) and sees it whole.
* Bounds are upper bounds, with room for a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from jazz_llm import LLMError, LLMResponse, OpenAICompatibleLLM, RetryPolicy, StreamEvent
from jazz_llm.testing import Authority

from ..frame_server import FINISH, Answer, FrameServer, serving

T = TypeVar("T")

SHORT = 0.2  # seconds: the timeouts of these tests
SLACK = 2.0  # what a wait may take beyond its bound: 0.25 by FAULTS.md, and what a busy machine adds
AT_ONCE = 3.0  # far below any timeout that is not meant
ALWAYS = math.inf
PATIENCE = 15.0  # after which a call is taken to hang
SOON = RetryPolicy(initial=0.0, maximum=0.0)

Fault = Callable[[Answer], Coroutine[Any, Any, None]]


def where(words: str = "") -> pytest.MarkDecorator:
    """Run a test in the cells that ``words`` leave."""
    asked = set(words.split())
    assert asked <= {"sync", "async", "generate", "stream", "events", "h1", "tls", "h2"}
    colours = [c for c in ("sync", "async") if c in asked] or ["sync", "async"]
    kinds = [k for k in ("generate", "stream", "events") if k in asked] or ["generate", "stream"]
    wires = [w for w in ("h1", "tls", "h2") if w in asked] or ["h1", "h2"]
    return pytest.mark.parametrize("case", [f"{c}-{k}-{w}" for w in wires for c in colours for k in kinds], indirect=True)


class LoopThread:
    """An event loop that runs in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.complaints: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, name="client loop")
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.start(work).result(PATIENCE)

    def tasks(self) -> set[asyncio.Task[Any]]:
        async def others() -> set[asyncio.Task[Any]]:
            return asyncio.all_tasks() - {asyncio.current_task()}

        return self.run(others())

    def close(self) -> None:
        for task in self.tasks():
            self.loop.call_soon_threadsafe(task.cancel)
        self.run(self.loop.shutdown_asyncgens())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


class Case:
    """One cell of a row; see the top of this file."""

    server: FrameServer
    llm: OpenAICompatibleLLM

    def __init__(self, name: str, authority: Authority) -> None:
        self.colour, self.kind, self.wire = name.split("-")
        self.http2 = self.wire == "h2"
        self.authority = authority
        self.said: set[str] = set()  # what has been read or released
        self.stack = contextlib.ExitStack()
        self._before = descriptors(), set(threading.enumerate())
        self._threads = self.stack.enter_context(ThreadPoolExecutor(64))
        self.client: Any = LoopThread() if self.colour == "async" else None
        if self.client is not None:
            self.stack.callback(self.client.close)
        self._sibling: Future[LLMResponse[Any]] | None = None
        self._clients: list[OpenAICompatibleLLM] = []

    # --- both sides

    def face(self, fault: Fault | None = None, *, times: float = 1, sibling: bool = False, script: Any = None, **arguments: Any) -> None:
        """Make the server and the client. ``server_...`` go to the server, other arguments to the client."""
        self._faults, self._fault = times if fault else 0, fault
        to_server = {name.removeprefix("server_"): arguments.pop(name) for name in list(arguments) if name.startswith("server_")}
        tls = None if self.wire == "h1" else self.authority
        server = FrameServer(script or serving(self._answer), **{"tls": tls, "http2": self.http2, **to_server})
        self.server = self.stack.enter_context(server)
        self.make_client(**arguments)
        if sibling and self.http2 and self.colour == "async":
            self._sibling = self.start("sibling", kind="stream", timeout=PATIENCE)
            self.server.wait_for(lambda _: "sibling" in self.said)

    def make_client(self, **arguments: Any) -> None:
        tls = {} if self.wire == "h1" else {"verify": self.authority.path}
        usual = {"timeout": PATIENCE, "retry": SOON, **({"base_url": self.server.url, **tls} if hasattr(self, "server") else {})}
        self.llm = OpenAICompatibleLLM("m", **{**usual, **arguments})
        self._clients.append(self.llm)

    async def _answer(self, answer: Answer) -> None:
        content = content_of(answer)
        if content == "sibling":
            answer.head()
            answer.text("Sib")
            await self.until_said(answer, "release")
            answer.text("ling")
            answer.send(FINISH, end=True)
        elif content == "next" or self._faults <= 0:
            answer.good()
        else:
            self._faults -= 1
            assert self._fault is not None
            await self._fault(answer)

    @property
    def asked(self) -> list[Answer]:
        """The requests of the test's own calls."""
        return [answer for answer in self.server.requests if content_of(answer) not in ("sibling", "next")]

    @property
    def with_sibling(self) -> bool:
        return self._sibling is not None

    def say(self, what: str) -> None:
        """Tell the server's scripts that something has happened."""
        self.server.note(self.said.add, what)
        self.server.loop.call_soon_threadsafe(lambda: [connection.wake() for connection in self.server.connections])

    async def until_said(self, answer: Answer, what: str) -> None:
        while what not in self.said:
            await answer.connection.change()

    async def heard(self, answer: Answer) -> None:
        """Wait until the caller has read a text; the caller of a whole answer reads none."""
        if answer.streams:
            await self.until_said(answer, content_of(answer))

    # --- calls

    def start(self, text: str = "hi", *, kind: str = "", **options: Any) -> Future[LLMResponse[Any]]:
        """Begin a call; a stream is read to its end."""
        self.said.discard(text)
        kind = kind or self.kind
        if self.colour == "sync":
            return self._threads.submit(self._call, text, kind, options)
        return self.client.start(self.acall(text, kind, options))

    def _call(self, text: str, kind: str, options: dict[str, Any]) -> LLMResponse[Any]:
        if kind == "generate":
            return self.llm.generate(text, **options)
        stream = self.llm.stream_events(text, **options) if kind == "events" else self.llm.stream(text, **options)
        seen: list[str] = []
        try:
            for piece in stream:
                seen.append(said(piece))
                self.say(text)
        except LLMError as error:
            error.seen = seen  # type: ignore[attr-defined]
            raise
        assert stream.response is not None
        assert "".join(seen) == stream.response.text
        return stream.response

    async def acall(self, text: str = "hi", kind: str = "", options: dict[str, Any] | None = None) -> LLMResponse[Any]:
        kind, options = kind or self.kind, options or {}
        if kind == "generate":
            return await self.llm.agenerate(text, **options)
        stream = self.llm.astream_events(text, **options) if kind == "events" else self.llm.astream(text, **options)
        seen: list[str] = []
        try:
            async for piece in stream:
                seen.append(said(piece))
                self.say(text)
        except LLMError as error:
            error.seen = seen  # type: ignore[attr-defined]
            raise
        assert stream.response is not None
        assert "".join(seen) == stream.response.text
        return stream.response

    def call(self, text: str = "hi", **options: Any) -> LLMResponse[Any]:
        return self.start(text, **options).result(PATIENCE)

    def fails(self, cls: type[LLMError], text: str = "hi", *, within: float = AT_ONCE, seen: str | None = None, **options: Any) -> Any:
        """Make a call that fails in time; return its error. ``seen``: the text that a stream has given until then."""
        started = time.monotonic()
        error = self.start(text, **options).exception(PATIENCE)
        seconds = time.monotonic() - started
        assert error is not None, "it did not fail"
        if type(error) is not cls:
            raise error
        assert seconds < within
        assert isinstance(error, LLMError)
        assert error.__cause__ is None
        if self.kind == "stream":
            partial = error.partial.text if error.partial is not None else ""
            assert partial == "".join(getattr(error, "seen", ""))
            assert seen is None or partial == seen
        return error

    def fails_after_part(self, cls: type[LLMError], **options: Any) -> Any:
        """Make a call that fails in the middle of its answer, and so is not tried again."""
        error = self.fails(cls, seen="Hel", **options)
        assert (error.attempts, len(self.asked)) == (1, 1)
        return error

    def at_once(self, number: int, text: str = "hi", **options: Any) -> list[Any]:
        """Make calls side by side; return responses and errors."""
        return [f.exception(PATIENCE) or f.result() for f in [self.start(text, **options) for _ in range(number)]]

    # --- the end

    def finish(self) -> None:
        """See that the client goes on working, and that it leaves nothing when it is closed."""
        if not self._clients:
            return
        if self._sibling is not None:
            self.say("release")
            sibling = self._sibling.result(PATIENCE)
            assert (sibling.text, sibling.metrics.attempts) == ("Sibling", 1)
        if hasattr(self, "server") and not self.llm._closed:
            assert self.call("next").text == "Hello"
        self.close_clients()
        if hasattr(self, "server"):
            self.server.wait_for(lambda server: server.open == 0)
        if self.client is not None:
            eventually(lambda: not self.client.tasks())
            assert self.client.complaints == []

    def close_clients(self) -> None:
        for llm in self._clients:
            if self.client is None:
                llm.close()
            else:
                self.client.run(llm.aclose())
        self._clients.clear()

    def end(self) -> None:
        """Close whatever is open."""
        with self.stack:
            self.close_clients()

    def nothing_left(self) -> None:
        gc.collect()
        eventually(lambda: descriptors() <= self._before[0])
        eventually(lambda: set(threading.enumerate()) <= self._before[1])


def said(item: str | StreamEvent) -> str:
    """Return the text of what a stream of either kind yields."""
    return item if isinstance(item, str) else item.text


def content_of(answer: Answer) -> str:
    return str(answer.json()["messages"][0]["content"]) if answer.body else ""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def eventually(holds: Callable[[], bool], timeout: float = 3.0) -> None:
    """See that something becomes true which nothing tells of."""
    until = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


_REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    if call.when == "call":
        item.stash[_REPORT] = report
    return report


@pytest.fixture
def case(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Case]:
    case = Case(request.param, authority)
    try:
        yield case
        report = request.node.stash.get(_REPORT, None)
        passed = report is not None and report.passed
        if passed:
            case.finish()
    finally:
        case.end()
    if passed:
        case.nothing_left()


@pytest.fixture(scope="session")
def frozen() -> Iterator[None]:
    """Keep what is loaded out of the collections of each test: they would take a third of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def collected(frozen: None) -> Iterator[None]:
    """Take the place of the fixture one floor up."""
    yield
    gc.collect()
