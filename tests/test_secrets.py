"""Secrets: that the search of ``canary.py`` finds what is planted, and what a server that says the key back can make of it.

The search over the whole conformance suite is a fixture in ``conformance/conftest.py``.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jazz_llm import LLMError, LLMResponse, OpenAICompatibleLLM, RetryPolicy
from jazz_llm.response import redaction, without
from jazz_llm.testing import FakeServer, Reply, Request, cassette

from .canary import CANARIES, HEADERS, KEY, SOURCES, SPELLINGS, TOKEN, Watch, secrets_in
from .colours import Async, Sync

Colour = Sync | Async
SOON = RetryPolicy(initial=0.01, maximum=0.01)


@pytest.fixture
def watch() -> Iterator[Watch]:
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        yield watch
        watch.forget()


# --- the search finds what there is


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", CANARIES)
def test_each_spelling_is_found(name: str, spelling: str) -> None:
    text = f"said: {SPELLINGS[spelling](CANARIES[name])}."
    assert [found for found, _ in secrets_in(text)] == [found for found, _ in secrets_in(text.encode())] == [name]
    assert list(secrets_in(f"said: {SPELLINGS[spelling]('another')}.")) == []


@pytest.mark.parametrize("before", ["", "u", "us"])
def test_base64_is_found(before: str) -> None:
    assert list(secrets_in(base64.b64encode(f"{before}:{KEY}".encode()))) == [("key", "as base64")]


def in_the_log(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    logging.getLogger("httpcore.http2").debug("headers %r", [(b"authorization", KEY.encode())])


def in_an_instance(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    class Chatty(OpenAICompatibleLLM):
        def __repr__(self) -> str:
            return f"Chatty({self._config.api_key.reveal() if self._config.api_key else None})"

    watch.kept = Chatty("m", KEY, "http://localhost:9")  # type: ignore[attr-defined]


def in_the_settings(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    OpenAICompatibleLLM("m", base_url="http://localhost:9", extra_body={"harmless": [KEY[:-1]]})


def in_a_response(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    llm.generate(KEY)


def in_an_error(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    LLMError("bad").hint = KEY  # type: ignore[attr-defined]


def in_a_traceback(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    careless: dict[str, Any] = {"LLMError": LLMError}
    exec(compile("def careless(key):\n    raise LLMError('bad')", "jazz_llm/careless.py", "exec"), careless)
    with pytest.raises(LLMError):
        careless["careless"](KEY)


def in_a_pickle(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    class Shy(str):
        __slots__ = ()

        def __repr__(self) -> str:
            return "..."

        def __reduce__(self) -> Any:
            return str, (str.__str__(self),)

    watch.responses.append(LLMResponse(text="", raw={"key": Shy(KEY)}))


def in_a_span(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    llm.generate("hi", model=KEY)
    watch.responses.clear()


def in_a_cassette(watch: Watch, llm: OpenAICompatibleLLM) -> None:
    watch.files[0].write_text(TOKEN)


PLANTED: dict[str, Callable[[Watch, OpenAICompatibleLLM], None]] = {
    "logs": in_the_log,
    "instances_and_streams": in_an_instance,
    "settings": in_the_settings,
    "responses": in_a_response,
    "errors": in_an_error,
    "tracebacks": in_a_traceback,
    "pickles": in_a_pickle,
    "spans": in_a_span,
    "cassettes": in_a_cassette,
}


def test_every_source_has_its_plant() -> None:
    assert list(PLANTED) == [source.__name__ for source in SOURCES]


@pytest.mark.parametrize("source", PLANTED)
def test_a_leak_is_found(watch: Watch, tmp_path: Path, source: str) -> None:
    async def echo(request: Request, reply: Reply) -> None:
        await reply.text(request.json()["messages"][0]["content"])

    watch.files.append(tmp_path / "cassette.yaml")
    with FakeServer(echo) as server, OpenAICompatibleLLM("m", base_url=server.url) as llm:
        llm.generate("hi")
        assert watch.leaks() == []
        PLANTED[source](watch, llm)
    leaks = watch.leaks()
    assert source in {leak.partition(":")[0] for leak in leaks}
    assert not any(canary in leak for canary in CANARIES.values() for leak in leaks)


# --- servers that say the key back


@pytest.mark.parametrize("outer", SPELLINGS)
@pytest.mark.parametrize("inner", SPELLINGS)
def test_the_key_is_taken_out_in_any_spelling_and_wherever_the_text_was_cut(inner: str, outer: str) -> None:
    """Nothing else is: of what is around it at most a backslash."""
    spelt = SPELLINGS[outer](SPELLINGS[inner](KEY))
    text = f"said {spelt}, {spelt}: no"
    assert without(text, KEY) == "said ***, ***: no"
    for cut in range(len("said ") + 6, len(text)):
        assert list(secrets_in(without(text[:cut], KEY))) == []


@pytest.mark.parametrize("spelling", ["JSON", "JSON with all escaped", "JSON in JSON", "URL"])
def test_json_stays_json(spelling: str) -> None:
    """The quote behind the key keeps its backslash."""
    said = SPELLINGS[spelling](KEY)
    assert json.loads(without(f'{{"message": "the key \\"{said}\\" is wrong"}}', KEY)) == {"message": 'the key "***" is wrong'}


def test_texts_without_the_key_stay_as_they_are() -> None:
    for text in ("", "sk-", 'a \\"b\\" %20 &amp; c\\', "100 %", "\\u0041&#65;", "x" * 1000):
        assert without(text, KEY) == without(text, None) == without(text, "sk-another-0123456789") == text
    assert without("a 12 b", "12") == "a 12 b"  # too short to tell from a word


@pytest.mark.parametrize("piece", ["\\", '\\"', "%4", "&#", "&#000", "sk-%", KEY[:7]])
def test_64_kb_of_almost_a_key_take_no_time(piece: str) -> None:
    text = (piece * 65536)[:65536]
    began = time.process_time()
    without(text, KEY)
    assert time.process_time() - began < 0.5


def test_places_are_not_counted_where_the_key_is_not_and_a_long_text_that_spells_it_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost forty times the text, whose length a stranger chooses."""
    long = "a line of code;\\n" * 70_000
    monkeypatch.setattr(redaction, "_unescaped", None)
    assert without(long, KEY) == long
    assert without(f"{long}{KEY}", KEY) == f"{long}***"
    assert without(f"{long}{SPELLINGS['URL'](KEY)}", KEY) == "***"


async def in_the_body(reply: Reply, said: str) -> None:
    body = f'{{"error": {{"message": "Incorrect API key provided: {said}.", "code": "invalid_api_key", "param": "{said}"}}}}'
    await raw(reply, 401, body.encode())


async def in_a_plain_body(reply: Reply, said: str) -> None:
    await raw(reply, 500, f"Traceback ... headers={said}".encode(), {"content-type": "text/plain"})


async def in_html(reply: Reply, said: str) -> None:
    await raw(reply, 502, f"<html><title>{said}</title><p>{said}</p></html>".encode(), {"content-type": "text/html"})


async def in_a_detail(reply: Reply, said: str) -> None:
    """Deep in what FastAPI says of a request that it did not like."""
    await raw(reply, 422, f'{{"detail": [{{"loc": ["header", "{said}"], "msg": "bad", "input": {{"k": ["{said}"]}}}}]}}'.encode())


async def in_headers(reply: Reply, said: str) -> None:
    headers = {"x-request-id": said, "x-echo": said, "www-authenticate": f'Bearer realm="{said}"', "location": f"/{said}"}
    await raw(reply, 401, b'{"error": {"message": "no"}}', headers)


async def at_the_cut(reply: Reply, said: str) -> None:
    """Where ``.body`` ends, at 4 KiB."""
    for_half = 4096 - len(said) // 2
    await raw(reply, 400, b"x" * for_half + said.encode() + b"y" * 100, {"content-type": "text/plain"})


async def in_an_event(reply: Reply, said: str) -> None:
    await begin(reply)
    await reply.send(f'data: {{"error": {{"message": "bad key {said}", "code": "{said}", "type": "server_error"}}}}\n\n'.encode())
    await reply.end()


async def in_pieces(reply: Reply, said: str) -> None:
    """An error event, a byte at a time."""
    await begin(reply)
    for byte in f'event: error\ndata: {{"error": {{"message": "bad key {said}"}}}}\n\n'.encode():
        await reply.send(bytes([byte]))
    await reply.end()


async def beside_the_choices(reply: Reply, said: str) -> None:
    """What had come is kept in ``partial``, and then the stream stops."""
    await begin(reply)
    await reply.send(f'data: {{"model": "{said}", "id": "{said}", "x": {{"{said}": ["{said}"]}}, "choices": []}}\n\n'.encode())
    await reply.end()


async def as_no_json(reply: Reply, said: str) -> None:
    await begin(reply)
    await reply.send(f"data: {{{said}\n\n".encode())
    await reply.end()


async def in_too_much(reply: Reply, said: str) -> None:
    await begin(reply)
    await reply.send(b"data: " + (said.encode() + b" ") * 200)
    await reply.end()


async def as_a_status_line(reply: Reply, said: str) -> None:
    reply.raw(f"HTTP/1.1 200 {said}\r\n{said}\r\n\r\n".encode())


async def raw(reply: Reply, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    await reply.start(status, {"content-type": "application/json", **(headers or {})})
    await reply.send(body)
    await reply.end()


async def begin(reply: Reply) -> None:
    await reply.start(200, {"content-type": "text/event-stream"})
    await reply.send(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')


PLACES = [
    in_the_body,
    in_a_plain_body,
    in_html,
    in_a_detail,
    in_headers,
    at_the_cut,
    in_an_event,
    in_pieces,
    beside_the_choices,
    as_no_json,
    in_too_much,
    as_a_status_line,
]
JSON_PLACES = {in_the_body, in_a_detail, in_an_event, in_pieces, beside_the_choices}


@pytest.mark.parametrize("kind", ["generate", "events"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_server_that_says_the_key_back(
    watch: Watch, tmp_path: Path, colour: Colour, place: Any, spelling: str, kind: str
) -> None:
    said = SPELLINGS[spelling](KEY)
    if place in JSON_PLACES and spelling in ("as it is", "repr"):
        said = json.dumps(said)[1:-1]

    async def echo(_: Request, reply: Reply) -> None:
        await place(reply, said)

    watch.files.append(tmp_path / "cassette.yaml")
    with FakeServer(echo) as server, OpenAICompatibleLLM("m", base_url=server.url, retry=SOON, max_retries=1, max_event_bytes=1000) as llm:
        with cassette(tmp_path / "cassette.yaml"):
            if kind == "events":
                events, _ = colour.events(llm)
                assert events[-2].error is not None
            else:
                with pytest.raises(LLMError):
                    colour.generate(llm)
    assert watch.errors
    assert watch.leaks() == []


# --- files and commands


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_saved_file_holds_no_secret(watch: Watch, tmp_path: Path, spelling: str) -> None:
    said = SPELLINGS[spelling](KEY)
    body = {"note": f"mine is {said}", "list": [said, {"deep": said}], said: 1, "kept": "yes"}
    llm = OpenAICompatibleLLM("m", base_url="http://localhost:9", extra_body=body, chat_template_kwargs={"a": said}, stop=[said, "stop"])
    llm.to_yaml(tmp_path / "llm.yaml")
    text = (tmp_path / "llm.yaml").read_text()
    assert "kept: 'yes'" in text
    assert list(secrets_in(text.replace(HEADERS["OpenAI-Organization"], ""))) == []
    assert watch.leaks() == []


COMMANDS = {
    "help": ["--help"],
    "chat": ["chat", "hi"],
    "chat --stats": ["chat", "--stats", "hi"],
    "models": ["models"],
    "doctor": ["doctor"],
    "bench": ["bench", "--requests", "2", "--streams", "1"],
    "wrong": ["chat", "--temperature", "nan", "hi"],
    "unknown": ["chat", "--nonsense"],
    **{f"{name} --help": [name, "--help"] for name in ("chat", "models", "doctor", "bench", "gateway", "completion")},
}


@pytest.mark.parametrize("fails", ["never", "streams", "always"])
@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_shows_the_key(words: str, fails: str) -> None:
    """A server that fails says the key back."""
    pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')

    async def echo(request: Request, reply: Reply) -> Any:
        said = json.dumps(request.headers["authorization"])[1:-1]
        if fails != "always" and b'"stream":true' not in request.body:
            listed = {"id": "chatcmpl-1", "data": [{"id": "m"}], "choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}]}
            return await reply.json(listed)
        await raw(reply, 401, f'{{"error": {{"message": "no: {said}", "param": "{said}"}}}}'.encode(), {"x-request-id": KEY})

    settings = {"JAZZ_LLM__API_KEY": KEY, "JAZZ_LLM__MODEL": "m", "JAZZ_LLM_LOG": "debug", "JAZZ_LLM__DEFAULT_HEADERS__X_AUTH": TOKEN}
    with FakeServer(None if fails == "never" else echo) as server:
        line = [sys.executable, "-m", "jazz_llm", *COMMANDS[words]]
        environment = {**os.environ, **settings, "JAZZ_LLM__BASE_URL": server.url}
        done = subprocess.run(line, capture_output=True, timeout=60, check=False, env=environment, stdin=subprocess.DEVNULL)
        asked = [request.headers["authorization"] for request in server.requests]
    assert list(secrets_in(done.stdout + done.stderr)) == []
    assert set(asked) <= {f"Bearer {KEY}"}
    assert bool(asked) == (words in ("chat", "chat --stats", "models", "doctor", "bench"))
