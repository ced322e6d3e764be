"""Rows 33 to 35: loops, processes, and the ends of both."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jazz_llm import LLMClosedError

from ..frame_server import Answer
from .conftest import ALWAYS, Case, LoopThread, eventually, where

# --- row 33


def gone(case: Case) -> None:
    case.server.wait_for(lambda server: server.open == 0 and server.live == 0)


@where("h1 tls h2 async")
def test_row_33_one_loop_after_the_other(case: Case) -> None:
    case.face()
    for runs in (1, 2, 3):
        assert asyncio.run(case.acall()).text == "Hello"
        gone(case)  # with the loop, at the latest
        assert len(case.server.connections) == runs


@where("h1 tls h2 async")
def test_row_33_two_loops_at_once(case: Case) -> None:
    """Each call is held until the other loop's has come: neither waits for the other's connection."""

    async def together(answer: Answer) -> None:
        if len(case.asked) == 2:
            case.say("both")
        await case.until_said(answer, "both")
        answer.good()

    case.face(together, times=2)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(asyncio.run, case.acall()) for _ in range(2)]
        assert [future.result(10).text for future in futures] == ["Hello"] * 2
    assert len(case.server.connections) == 2


@where("h1 h2 async")
def test_row_33_a_loop_is_left_in_the_middle(case: Case) -> None:
    """``asyncio.run`` ends while a stream is open: the server hears of it, and the next loop does not."""

    async def endless(answer: Answer) -> None:
        answer.part()
        await answer.left()

    case.face(endless)

    async def leave() -> Any:
        if case.kind == "stream":
            stream = case.llm.astream("hi")
            await stream.__aenter__()
            return stream
        asyncio.get_running_loop().create_task(case.llm.agenerate("hi"))
        await asyncio.to_thread(case.server.wait_for, lambda _: case.asked)
        return None

    stream = asyncio.run(leave())
    gone(case)
    assert asyncio.run(case.acall()).text == "Hello"
    del stream


@where("h1 h2 async")
def test_row_33_sync_and_async_side_by_side(case: Case) -> None:
    case.face()
    for _ in range(3):
        assert case.call().text == "Hello"
        assert case.llm.generate("hi").text == "Hello"
    assert len(case.server.connections) == 2


# --- row 34

FORK = """
    import asyncio, gc, os, sys, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork while threads run
    from jazz_llm import OpenAICompatibleLLM

    colour, kind, url, verify = sys.argv[1:]
    llm = OpenAICompatibleLLM("m", base_url=url, timeout=10, **({"verify": verify} if verify else {}))

    async def acall():
        return await (llm.agenerate("hi") if kind == "generate" else llm.astream("hi").finish())

    def call():
        return llm.generate("hi") if kind == "generate" else llm.stream("hi").finish()

    def in_child(held):
        # The parent's streams end here too, before a call and after one: not a byte of that may reach its connections.
        held.pop()
        gc.collect()
        assert (asyncio.run(acall()) if colour == "async" else call()).text == "Hello"
        held.clear()
        gc.collect()
        llm.close()

    def fork(held):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                in_child(held)
                code = 0
            finally:
                os._exit(code)
        return os.waitpid(child, 0)[1]

    def main():
        held = [llm.stream("hold").__enter__() for _ in range(2)]
        call()
        status = fork(held)
        assert call().text == "Hello"
        assert [stream.finish().text for stream in held] == ["Hello"] * 2
        return status

    async def amain():
        held = [await llm.astream("hold").__aenter__() for _ in range(2)]
        await acall()
        child = os.fork()
        if child == 0:
            # The child has a running loop that is the parent's: it makes its calls in a loop of its own, in another thread.
            code = []
            def run():
                try:
                    in_child(held)
                    code.append(0)
                finally:
                    code.append(1)
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            os._exit(code[0])
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            await asyncio.sleep(0.01)
        assert (await acall()).text == "Hello"
        assert [(await stream.finish()).text for stream in held] == ["Hello"] * 2
        return ended[1]

    status = asyncio.run(amain()) if colour == "async" else main()
    llm.close()
    sys.exit(os.waitstatus_to_exitcode(status))
"""


@where("h1 tls h2")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_row_34_fork_with_warm_connections(case: Case) -> None:
    async def hold(answer: Answer) -> None:
        if answer.json()["messages"][0]["content"] != "hold":
            return answer.good()
        answer.part()
        # The parent makes its first call, the child its own, the parent another: then the stream goes on.
        while len(case.asked) < 5:
            case.server.note()
            await asyncio.sleep(0.01)
        answer.rest()

    case.face(hold, times=ALWAYS)
    verify = "" if case.wire == "h1" else case.authority.path
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(FORK), case.colour, case.kind, case.server.url, verify]
    done = subprocess.run(command, timeout=30, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    held, _, first, child, again = case.asked
    # The parent's connections are its own, before and after; the child has made another.
    assert child.connection not in {first.connection, held.connection}
    assert again.connection is first.connection
    assert [answer.left_at for answer in case.asked] == [None] * 5


# --- row 35: leaving ``with``, over each wire, in each state of the loop


async def hold(answer: Answer) -> None:
    answer.part()
    await answer.left()


@where("h1 tls h2 async stream")
def test_row_35_never_used(case: Case) -> None:
    case.face()
    with case.llm:
        pass
    assert case.server.connections == []


@where("h1 tls h2 async")
@pytest.mark.parametrize("close", ["close", "aclose"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_row_35_running_here(case: Case, close: str, busy: bool) -> None:
    case.face(hold if busy else None)

    async def main() -> None:
        before = asyncio.all_tasks()
        work = asyncio.ensure_future(case.acall())
        if busy:
            await asyncio.to_thread(case.server.wait_for, lambda _: case.asked)
        else:
            await work
        if close == "close":
            with case.llm:
                pass
        else:
            async with case.llm:
                pass
        await asyncio.sleep(0)
        await asyncio.to_thread(gone, case)
        (met,) = await asyncio.gather(work, return_exceptions=True)
        assert not busy or type(met) is LLMClosedError
        assert asyncio.all_tasks() == before

    case.client.run(main())


@where("h1 tls h2")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_row_35_running_in_another_thread(case: Case, busy: bool) -> None:
    """The loop of the async call, or the sync call itself."""
    case.face(hold if busy else None)
    work = case.start()
    if busy:
        case.server.wait_for(lambda _: case.asked)
    else:
        assert work.result(5).text == "Hello"
    with case.llm:
        pass
    gone(case)
    assert not busy or type(work.exception(5)) is LLMClosedError


@where("h1 tls h2 async")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("closed", [False, True], ids=["stopped", "closed"])
def test_row_35_no_longer_running(case: Case, busy: bool, closed: bool) -> None:
    if busy and closed:
        pytest.skip("asyncio warns of the pending task itself")
    case.face(hold if busy else None)
    loop = asyncio.new_event_loop()

    async def begin() -> Any:
        work = asyncio.ensure_future(case.acall())
        await (asyncio.to_thread(case.server.wait_for, lambda _: case.asked) if busy else work)
        return work

    work = loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_default_executor())
    if closed:
        loop.close()
    with case.llm:
        pass
    gone(case)
    if not closed:
        if busy:
            with pytest.raises(LLMClosedError):
                loop.run_until_complete(work)
        loop.close()


@where("h1 h2 async")
def test_row_35_several_loops_in_all_states(case: Case) -> None:
    """One client, four loops: one that runs elsewhere, one that is stopped, one that is closed, one that runs here."""
    case.face()
    elsewhere, stopped, closed = LoopThread(), asyncio.new_event_loop(), asyncio.new_event_loop()
    assert elsewhere.run(case.acall()).text == "Hello"
    assert stopped.run_until_complete(case.acall()).text == "Hello"
    assert closed.run_until_complete(case.acall()).text == "Hello"
    closed.close()

    async def main() -> None:
        assert (await case.acall()).text == "Hello"
        async with case.llm:
            pass
        await asyncio.to_thread(gone, case)

    case.client.run(main())
    assert elsewhere.complaints == []
    eventually(lambda: not elsewhere.tasks())
    elsewhere.close()
    stopped.close()
    assert len(case.server.connections) == 4


@where("h1 h2 stream")
def test_row_35_an_interpreter_ends_with_a_stream_open(case: Case) -> None:
    """Nothing is said about it, the server hears of it, and no thread holds the interpreter up."""
    case.face(hold, times=ALWAYS)
    script = f"""
        import asyncio, sys
        from jazz_llm import OpenAICompatibleLLM
        llm = OpenAICompatibleLLM("m", base_url=sys.argv[1], **({{"verify": sys.argv[2]}} if sys.argv[2] else {{}}))
        streams = []
        async def begin():
            streams.append(llm.astream("hi"))
            await streams[0].__aenter__()
        if {case.colour == "sync"}:
            streams.append(llm.stream("hi"))
            streams[0].__enter__()
        else:
            asyncio.run(begin())
    """
    verify = "" if case.wire == "h1" else case.authority.path
    started = time.monotonic()
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), case.server.url, verify]
    done = subprocess.run(command, timeout=30, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - started < 10
    gone(case)
