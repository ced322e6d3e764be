"""Fork, pickle, threads and loops, beside what ``test_lifecycle.py`` and rows 33 to 35 of ``tests/matrix`` hold already.

Children that are forked here have this process's other threads (the server's, the readers') as frozen copies: that is the
point. Each tells what it found over a pipe; whatever it says on stderr fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from jazz_llm import (
    Hooks,
    LLMClosedError,
    LLMConfigurationError,
    LLMError,
    LLMNotFoundError,
    LLMStreamTruncatedError,
    LLMStructuredOutputError,
    LLMTimeoutError,
    LLMToolCallError,
    OpenAICompatibleLLM,
)
from jazz_llm.testing import Authority, FakeServer, Reply, Request

METHODS = [method for method in ("fork", "spawn", "forkserver") if method in multiprocessing.get_all_start_methods()]
needs_fork = pytest.mark.skipif("fork" not in METHODS, reason="this system has no fork")
# From 3.12 on Python warns of fork in a process with threads. Users do it all the same (gunicorn with threads; the default of
# multiprocessing up to 3.13), and what is ours must survive it; the other thread here is most often only the server's.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, authority: Authority) -> Iterator[FakeServer]:
    """Serve HTTP/1.1 in the clear, and HTTP/2 over TLS."""
    with FakeServer(handler, tls=authority if request.param == "https" else False) as server:
        handler.server = server  # type: ignore[attr-defined]
        yield server


@pytest.fixture(params=["sync", "asyncio", "uvloop"])
def user(request: pytest.FixtureRequest) -> Iterator[User]:
    with User(request.param) as user:
        yield user


@pytest.fixture(autouse=True)
def nothing_said(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Let what a child writes on stderr fail the test: unclosed sockets, exceptions that nobody met."""
    yield
    assert capfd.readouterr().err == ""


async def handler(request: Request, reply: Reply) -> None:
    body = request.json()
    match said := body["messages"][0]["content"]:
        case "hold":  # an open stream, until somebody asks for "release"
            await reply.start(200, {"content-type": "text/event-stream"})
            await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
            await asked_for("release", reply)
            await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
            await reply.end()
        case "missing":
            await reply.json({"error": {"message": "no such model", "code": "model_not_found"}}, status=404)
        case "cut":
            await reply.start(200, {"content-type": "text/event-stream"})
            await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
            await reply.end()
        case "silent":
            await reply.cancelled()
        case "call":
            call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
            await reply.sse([{"tool_calls": [call]}], finish="tool_calls")
        case _ if said.startswith("{"):
            await (reply.sse([said]) if body.get("stream") else reply.text(said))
        case _:
            await (reply.sse(["a", "b"]) if body.get("stream") else reply.text("ab"))


async def asked_for(text: str, reply: Reply) -> None:
    server = handler.server  # type: ignore[attr-defined]
    while not server_was_asked(server, text):
        reply._check()
        await asyncio.sleep(0.01)  # in the server's own loop: nothing to wait on but the next look


def server_was_asked(server: FakeServer, text: str) -> bool:
    return any(request.body and request.json()["messages"][0]["content"] == text for request in server.requests)


def make(server: FakeServer, **arguments: Any) -> OpenAICompatibleLLM:
    tls = {} if server.authority is None else {"verify": server.authority.path}
    return OpenAICompatibleLLM("m", base_url=server.url, **{"timeout": 10, **tls, **arguments})


class User:
    """Uses an instance in one way: synchronously, or in a loop of its own, asyncio's or uvloop's, which lasts as long."""

    def __init__(self, how: str) -> None:
        self.how = how
        self._runner: asyncio.Runner | None = None

    def __enter__(self) -> User:
        if self.how != "sync":
            self._runner = asyncio.Runner(loop_factory=self._loop_factory())
        return self

    def __exit__(self, *_: object) -> None:
        if self._runner is not None:
            self._runner.close()

    def _loop_factory(self) -> Any:
        if self.how == "asyncio":
            return None
        return pytest.importorskip("uvloop", reason='uvloop is not installed: pip install ".[test]"').new_event_loop

    def call(self, llm: OpenAICompatibleLLM, messages: str = "hi", **options: Any) -> Any:
        """Ask for a whole answer."""
        return llm.generate(messages, **options) if self._runner is None else self._runner.run(llm.agenerate(messages, **options))

    def open(self, llm: OpenAICompatibleLLM, messages: str = "hold") -> Any:
        """Begin a stream."""
        if self._runner is None:
            return llm.stream(messages).__enter__()
        return self._runner.run(llm.astream(messages).__aenter__())

    def finish(self, stream: Any) -> Any:
        """Read it to its end."""
        return stream.finish() if self._runner is None else self._runner.run(stream.finish())

    def close(self, what: Any) -> None:
        """Close a stream or a client."""
        what.close() if self._runner is None else self._runner.run(what.aclose())


# --- processes of every kind


class Child:
    """A forked process that runs a function until its end; what that returns or raises comes back."""

    def __init__(self, function: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=told, args=(theirs, function))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._ours.close()
        self._process.close()

    def said(self) -> Any:
        """Wait for the next thing that it sends."""
        if not self._ours.poll(20):
            raise TimeoutError("the child hangs")
        outcome = self._ours.recv()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def tell(self) -> None:
        """Let it go on."""
        self._ours.send("go on")


def told(pipe: Any, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        outcome = function(*arguments)
    except BaseException as error:
        outcome = error
    gc.collect()  # here, or its finalizers' complaints would be lost
    pipe.send(outcome)
    pipe.close()


def forked(function: Callable[[], Any]) -> Any:
    with Child(function) as child:
        return child.said()


def all_calls(llm: OpenAICompatibleLLM, how: str) -> list[Any]:
    """Make calls of each kind, in a loop of their own; return what they bring."""
    with User(how) as user:
        whole, streamed = user.call(llm), user.finish(user.open(llm, "hi"))
        with pytest.raises(LLMNotFoundError) as caught:
            user.call(llm, "missing")
        return [whole, streamed, caught.value]


def check(outcome: list[Any]) -> None:
    whole, streamed, error = outcome
    assert (whole.text, streamed.text) == ("ab", "ab")
    assert (type(error), error.status_code, error.code) == (LLMNotFoundError, 404, "model_not_found")


@pytest.mark.parametrize("method", METHODS)
def test_a_process_is_given_an_instance_with_warm_connections(server: FakeServer, user: User, method: str) -> None:
    """Forked, the child has the instance itself; else it is pickled. Either way the parent's connections are its own."""
    with make(server, api_key="sk-1") as llm:
        held = user.open(llm)
        user.call(llm)
        theirs = {request.connection for request in server.requests}
        context = multiprocessing.get_context(method)
        ours, pipe = context.Pipe(duplex=False)
        process = context.Process(target=told, args=(pipe, all_calls, llm, user.how))
        process.start()
        pipe.close()
        assert ours.poll(30)
        check(ours.recv())
        ours.close()
        process.join(10)
        assert process.exitcode == 0
        process.close()
        assert not theirs & {request.connection for request in server.requests[2:]}
        user.call(llm, "release")
        assert user.finish(held).text == "ab"
        assert server.requests[-1].connection in theirs
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sk-1"}


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_processes(server: FakeServer, method: str) -> None:
    """What ``concurrent.futures`` takes and gives is pickled, errors too."""
    with make(server) as llm:
        llm.generate("hi")
        with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as processes:
            for outcome in processes.map(all_calls, [llm] * 2, ["sync", "asyncio"]):
                check(outcome)
            error = processes.submit(llm.generate, "missing").exception(20)
            assert isinstance(error, LLMNotFoundError)
            assert (error.attempts, error.body) == (1, '{"error":{"message":"no such model","code":"model_not_found"}}')
        assert llm.generate("hi").text == "ab"


@needs_fork
def test_the_httpx_clients_work_in_a_child(server: FakeServer) -> None:
    with make(server) as llm:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        path = "/v1/chat/completions"
        assert llm.client.post(path, json=body).status_code == 200

        def in_child() -> list[int]:
            async def ask() -> int:
                return (await llm.aclient.post(path, json=body)).status_code

            return [llm.client.post(path, json=body).status_code, asyncio.run(ask())]

        assert forked(in_child) == [200, 200]
        assert llm.client.post(path, json=body).status_code == 200
    assert [request.connection for request in server.requests] == [1, 2, 3, 1]


# --- fork: what is the parent's


@needs_fork
@pytest.mark.parametrize("what", ["llm", "copy", "stream", "nothing", "collected"])
def test_what_a_child_closes_is_not_the_parents(server: FakeServer, user: User, what: str) -> None:
    """Its hooks are not told of the parent's calls either."""
    told: list[Any] = []
    with make(server, hooks=Hooks(on_response=told.append, on_error=told.append)) as llm:
        user.call(llm)
        held = [user.open(llm)]
        things = {"llm": llm, "copy": llm.with_options(temperature=0.5), "stream": held[0]}

        def in_child() -> int:
            if what == "collected":
                things.clear()
                held.clear()
                gc.collect()
            elif what != "nothing":
                with User(user.how) as theirs:
                    theirs.close(things[what])
            return len(told)

        assert forked(in_child) == 1
        user.call(llm, "release")
        assert user.finish(held[0]).text == "ab"
        assert len(told) == 3
        assert [frame.type for frame in server.frames if frame.type in ("GOAWAY", "RST_STREAM")] == []
    assert len({request.connection for request in server.requests}) <= 2


@needs_fork
def test_a_child_cannot_read_the_parents_stream(server: FakeServer, user: User) -> None:
    """It would take the bytes away from it."""
    with make(server) as llm:
        held = user.open(llm)

        def in_child() -> str:
            with User(user.how) as theirs, pytest.raises(LLMClosedError) as caught:
                theirs.finish(held)
            return str(caught.value)

        assert "parent" in forked(in_child)
        user.call(llm, "release")
        assert user.finish(held).text == "ab"


@needs_fork
def test_a_child_that_lives_on_does_not_keep_the_parents_requests_alive(server: FakeServer, user: User) -> None:
    """A connection ends when its last descriptor is closed, and each child has a copy of all."""
    go_on = threading.Event()
    with make(server) as llm:
        user.call(llm)
        held = user.open(llm)
        with Child(partial(go_on.wait, 20)):  # a copy of the event, which nobody sets
            user.close(held)
            server.wait_for(lambda server: server.live == 0, 2.0)
            user.close(llm)
            server.wait_for(lambda server: server.connections == 0, 2.0)


@needs_fork
@pytest.mark.parametrize("close", ["nothing", "stream", "llm"])
def test_fork_while_a_stream_is_read_in_another_thread(server: FakeServer, user: User, close: str) -> None:
    with make(server) as llm, ThreadPoolExecutor(1) as threads:
        held = user.open(llm)
        reading = threads.submit(user.finish, held)
        while not held._reading:
            os.sched_yield()

        def in_child() -> Any:
            if close != "nothing":
                {"stream": held, "llm": llm}[close].close() if user.how == "sync" else asyncio.run(
                    {"stream": held, "llm": llm}[close].aclose()
                )
            return None if close == "llm" else all_calls(llm, user.how)

        outcome = forked(in_child)
        if outcome is not None:
            check(outcome)
        llm.generate("release")
        assert reading.result(10).text == "ab"
        assert [frame.type for frame in server.frames if frame.type in ("GOAWAY", "RST_STREAM")] == []


# --- the end of the interpreter

AT_THE_END = """
import asyncio, atexit, threading
last = []
atexit.register(lambda: [function() for function in last])  # before jazz_llm's own, so after it
from jazz_llm import OpenAICompatibleLLM
llm = OpenAICompatibleLLM('m', base_url={url!r}, verify={verify!r})
texts, began = [], threading.Event()
def read():
    for text in llm.stream('hold'):
        texts.append(text)
        began.set()
async def aread():
    async for text in llm.astream('hold'):
        texts.append(text)
        began.set()
reader = threading.Thread(target={read}, daemon=True)
def end():
    print(llm.generate('release').text)
    if reader.ident:
        reader.join()
    print(*texts)
last.append(end)
{before}
"""


@pytest.mark.parametrize(
    ("read", "before"),
    [("read", "reader.start(); began.wait()"), ("lambda: asyncio.run(aread())", "reader.start(); began.wait()"), ("read", "llm.generate('hi')")],
    ids=["a stream in a daemon thread", "one in its loop", "an idle connection"],
)
def test_the_interpreters_end_breaks_no_call(server: FakeServer, read: str, before: str) -> None:
    verify = True if server.authority is None else server.authority.path
    code = AT_THE_END.format(url=server.url, verify=verify, read=read, before=before)
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == (["ab", "a", "b"] if "reader" in before else ["ab"])


# --- fork: locks


def locks_of(thing: Any) -> list[Any]:
    """Return every lock that hangs on an object of ours, however deep."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    found, seen, left = [], set(), [thing]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, type | str | bytes | type(sys)):
            continue
        seen.add(id(one))
        if isinstance(one, kinds):
            found.append(one)
        elif isinstance(one, dict | list | tuple | set) or type(one).__module__.split(".")[0] in ("jazz_llm", "threading", "weakref"):
            left += gc.get_referents(one)
    return found


@needs_fork
def test_fork_while_every_lock_is_held(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the child nobody is left who would release them."""
    with make(server) as llm, asyncio.Runner() as runner:
        llm.generate("hi")
        runner.run(llm.agenerate("hi"))
        held = locks_of(llm)
        assert len(held) >= 6  # the instance's, budget, mock, both pools, a connection
        ready, done = threading.Event(), threading.Event()

        def hold() -> None:
            with contextlib.ExitStack() as stack:
                for lock in held:
                    stack.enter_context(lock)
                ready.set()
                done.wait(30)

        def in_child() -> list[Any]:
            outcome = all_calls(llm, "sync") + all_calls(llm, "asyncio")
            os.environ["DEBUG_MOCK_RESPONSES"] = '["mocked"]'
            assert llm.generate("hi").text == "mocked"
            llm.close()
            return outcome

        with ThreadPoolExecutor(1) as threads:
            threads.submit(hold)
            assert ready.wait(10)
            try:
                outcome = forked(in_child)
            finally:
                done.set()
        check(outcome[:3])
        check(outcome[3:])


@needs_fork
@pytest.mark.skipif(
    sysconfig.get_config_var("Py_GIL_DISABLED") == 1,
    reason="free-threaded CPython 3.13 forks with the locks of its dicts held: a child without any of ours hangs too (5 of 200)",
)
def test_fork_while_threads_and_loops_are_busy(server: FakeServer) -> None:
    """Whatever they are in the middle of; each child makes calls of both colours, from several threads at once."""
    stop = threading.Event()

    def busy(how: str) -> int:
        count = 0
        with User(how) as user:
            while not stop.is_set():
                assert user.call(llm).text == "ab"
                user.close(user.open(llm, "hi"))
                count += 1
        return count

    def in_child() -> list[str]:
        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda how: all_calls(llm, how)[1].text, ["sync", "asyncio"] * 4))

    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with make(server) as llm, ThreadPoolExecutor(4) as threads:
            all_calls(llm, "sync")  # what an import under way at the fork holds is Python's own lock, and never released
            all_calls(llm, "asyncio")
            work = [threads.submit(busy, how) for how in ("sync", "asyncio") * 2]
            try:
                for _ in range(20):
                    assert forked(in_child) == ["ab"] * 8
            finally:
                stop.set()
            assert all(one.result(10) > 0 for one in work)
    finally:
        sys.setswitchinterval(old)


# --- pre-fork servers


APP = """
    import asyncio, os
    from jazz_llm import OpenAICompatibleLLM

    verify = os.environ["VERIFY"]
    llm = OpenAICompatibleLLM("m", base_url=os.environ["URL"], timeout=10, **({"verify": verify} if verify else {}))

    def ask(text):
        return (asyncio.run(llm.agenerate(text)) if os.environ["HOW"] == "asyncio" else llm.generate(text)).text

    ask("warm")
    llm.generate("warm")
    held = llm.stream("hold").__enter__()  # in the arbiter, which never ends it

    def app(environ, start_response):
        start_response("200 OK", [("X-Worker", str(os.getpid()))])
        return [ask(environ["PATH_INFO"][1:]).encode()]
"""


@needs_fork
@pytest.mark.parametrize("how", ["sync", "asyncio"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_gunicorn_with_preload(tmp_path: Path, authority: Authority, how: str, tls: bool) -> None:
    """Three workers, forked from a process whose instance has connections open and a stream under way."""
    pytest.importorskip("gunicorn", reason='gunicorn is not installed: pip install ".[test]"')

    async def together(request: Request, reply: Reply) -> None:
        if request.json()["messages"][0]["content"] == "together":  # no worker answers before all have asked
            while sum(b"together" in one.body for one in server.requests) % 3:
                reply._check()
                await asyncio.sleep(0.01)
        await handler(request, reply)

    with FakeServer(together, tls=authority if tls else False) as server:
        handler.server = server  # type: ignore[attr-defined]
        with gunicorn(tmp_path, server, how) as ask:
            for _ in range(2):
                with ThreadPoolExecutor(3) as threads:
                    answers = list(threads.map(ask, ["/together"] * 3))
                assert [answer.text for answer in answers] == ["ab"] * 3
                assert len({answer.headers["x-worker"] for answer in answers}) == 3
            warm = {one.connection for one in server.requests if b"together" not in one.body}
            assert not warm & {one.connection for one in server.requests if b"together" in one.body}
            server.wait_for(lambda server: server.live == 1)  # the stream of the arbiter
        assert [frame.connection for frame in server.frames if frame.type == "GOAWAY"] == []
        server.wait_for(lambda server: server.connections == 0)


@contextlib.contextmanager
def gunicorn(folder: Path, server: FakeServer, how: str) -> Iterator[Callable[[str], httpx.Response]]:
    """Run the real one; yield what asks it."""
    (folder / "served.py").write_text(textwrap.dedent(APP))
    verify = "" if server.authority is None else server.authority.path
    environment = {**os.environ, "URL": server.url, "VERIFY": verify, "HOW": how}
    (folder / "gunicorn.conf.py").write_text("def when_ready(arbiter):\n    print('ready', flush=True)\n")
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "3", "-b", "unix:s", "--log-level", "warning", "served:app"]

    def ask(path: str) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(folder / "s")), timeout=20) as client:
            return client.get(f"http://gunicorn{path}")

    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield ask
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")


# --- pickles, as Celery and its like send them


@dataclass
class City:
    """What an answer can be: it has to be importable where the pickle is read."""

    city: str


def weather(city: str) -> str:
    """Tell the weather."""
    return f"fine in {city}"


def key_of_the_hour() -> str:
    return "sk-of-the-hour"


class Named(OpenAICompatibleLLM):
    """A class of a user's."""


def failure(call: Callable[[], Any]) -> LLMError:
    with pytest.raises(LLMError) as caught:
        call()
    return caught.value


def task(pickled: bytes, protocol: int) -> bytes:
    """Do what a worker does: take the instance out of the message, work, and put what came of it into another."""
    llm = pickle.loads(pickled)
    with llm:
        outcome = [
            llm.generate("hi"),
            llm.generate('{"city": "Oslo"}', response_format=City),
            llm.stream("call", tools=[weather]).finish(),
            list(llm.stream_events("hi")),
            failure(partial(llm.generate, "missing")),
            failure(llm.stream("cut").finish),
            failure(partial(llm.generate, "silent", timeout=0.1)),
            failure(partial(llm.generate, "{}", response_format=City)),
            failure(llm.stream("call", tools=[key_of_the_hour]).finish),
            failure(partial(llm.generate, [])),
        ]
    outcome.append(failure(partial(llm.generate, "hi")))
    return pickle.dumps(outcome, protocol)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_task_takes_an_instance_and_gives_responses_and_errors_back(server: FakeServer, protocol: int) -> None:
    """All that a call can bring arrives whole in another process; protocol 2 is the oldest that Celery speaks."""
    with make(server, api_key=key_of_the_hour) as original:
        llm = original.with_options(temperature=0.5, max_retries=0)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
            outcome = pickle.loads(worker.submit(task, pickle.dumps(llm, protocol), protocol).result(60))
    text, parsed, called, events, *errors = outcome
    assert (text.text, text.usage.total_tokens, text.metrics.attempts) == ("ab", 9, 1)
    assert parsed.parsed == City("Oslo")
    assert [(call.name, call.arguments) for call in called.tool_calls] == [("weather", {"city": "Oslo"})]
    assert [event.text for event in events[:2]] == ["a", "b"]
    assert events[-1].response.text == "ab"
    kinds = [LLMNotFoundError, LLMStreamTruncatedError, LLMTimeoutError, LLMStructuredOutputError, LLMToolCallError]
    assert [type(error) for error in errors[:5]] == kinds
    assert errors[1].partial.text == "a"
    assert (errors[2].phase, errors[3].text) == ("read", "{}")
    assert isinstance(errors[6], LLMClosedError)
    assert all(request.headers["authorization"] == "Bearer sk-of-the-hour" for request in server.requests)
    assert all(request.json()["temperature"] == 0.5 for request in server.requests)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_instance_is_of_its_own_class_and_of_its_own(server: FakeServer, protocol: int) -> None:
    """A copy's pickle owns its pools; what was closed is open again, as nothing but the configuration goes along."""
    with Named("m", "sk-1", server.url, verify=server.authority.path if server.authority else True) as llm:
        copy = llm.with_options(temperature=0.5)
        copy.close()
        with pickle.loads(pickle.dumps(copy, protocol)) as twin:
            assert type(twin) is Named
            assert twin.generate("hi").text == "ab"
            assert twin._shared is not llm._shared
        assert llm.generate("hi").text == "ab"


def test_what_cannot_be_pickled_says_so() -> None:
    """A key function that has no name, or a context of OpenSSL's: pickle's own words, and the key is not in them."""
    llm = OpenAICompatibleLLM("m", lambda: "sk-1", "http://localhost:9")
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda") as caught:
        pickle.dumps(llm)
    assert "sk-1" not in str(caught.value)


# --- loops


def test_another_library_than_asyncio_is_told_what_to_use() -> None:
    """As trio would: the coroutine runs, and no loop of asyncio does."""
    for transport in (None, httpx.MockTransport(lambda _: httpx.Response(200))):
        llm = OpenAICompatibleLLM("m", base_url="http://localhost:9", async_transport=transport)
        for call in (llm.agenerate("hi"), llm.astream("hi").finish(), llm.alist_models(), llm.aembed("hi")):
            with pytest.raises(LLMConfigurationError, match="trio is not supported"):
                call.send(None)  # type: ignore[attr-defined]
        llm.close()
