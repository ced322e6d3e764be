"""The messages themselves: what is read, what is written, and that the table in the docstring says the same."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields

import pytest

from jazz_llm import errors, gateway
from jazz_llm.gateway import protocol
from jazz_llm.gateway.protocol import (
    MESSAGES,
    Chunks,
    Close,
    Code,
    Generate,
    GetModels,
    GetProviders,
    Interrupt,
    Load,
    Problem,
    code_of,
    parse,
)
from jazz_llm.types import LLMResponse, LLMUsage

COMMON = {"type", "unique_request_id"}


def said(**message: object) -> str:
    return json.dumps({"unique_request_id": "1", **message})


def answers(problem: object) -> list[dict]:
    assert isinstance(problem, Problem)
    return [json.loads(answer) for answer in problem.answers]


def test_the_docstring_has_the_table() -> None:
    rows = re.findall(r"^    (in |out)  (\S+) +(.+?)  +(\S.*)$", gateway.__doc__, re.MULTILINE)
    told = [(way.strip(), name, tuple(fields.removeprefix("-").split(", ")) if fields != "-" else (), when) for way, name, fields, when in rows]
    assert told == [(row.direction, row.name, row.fields, row.when) for row in MESSAGES]


def test_the_docstring_has_all_codes() -> None:
    assert set(Code) <= set(re.findall(r"``([A-Z_]+)``", gateway.__doc__))


def test_the_table_has_the_fields_of_all_messages_that_go_out() -> None:
    made = [
        protocol.load_ack("1", "p"),
        protocol.load_done("1", "p"),
        protocol.generate_ack("1"),
        protocol.generate_done("1"),
        Chunks("1").message("x"),
        protocol.generate_done("1", streams=True),
        protocol.interrupt_ack("1"),
        protocol.close_ack("1"),
        protocol.get_providers_done("1", ["p"]),
        protocol.get_models_done("1", ["m"]),
        protocol.error(None, Code.UNEXPECTED, "x"),
    ]
    table = {row.name: set(row.fields) | COMMON for row in MESSAGES if row.direction == "out"}
    assert {(message := json.loads(data))["type"]: set(message) for data in made} == table


def test_the_table_has_the_fields_of_all_messages_that_come_in() -> None:
    requests = {"load": Load, "generate": Generate, "interrupt": Interrupt, "close": Close, "get_providers": GetProviders, "get_models": GetModels}
    table = {row.name: {field.rstrip("?") for field in row.fields} for row in MESSAGES if row.direction == "in"}
    assert {name: {field.name for field in fields(kind)} - {"id"} for name, kind in requests.items()} == table
    assert {kind.kind for kind in requests.values()} == set(requests)


@pytest.mark.parametrize(
    ("message", "request_"),
    [
        ({"type": "generate", "messages": [1]}, Generate("1", [1])),
        ({"type": "generate", "messages": [1], "params": {"a": 1}, "stream": True}, Generate("1", [1], {"a": 1}, stream=True)),
        ({"type": "interrupt"}, Interrupt("1")),
        ({"type": "interrupt", "target": "7"}, Interrupt("1", "7")),
        ({"type": "close", "unknown": 1}, Close("1")),
        ({"type": "get_providers"}, GetProviders("1")),
        ({"type": "get_models"}, GetModels("1")),
        ({"type": "load", "provider": "groq"}, Load("1", "groq")),
        ({"type": "load", "llm": "groq"}, Load("1", "groq")),
        ({"type": "load", "provider": "groq", "api_key": "", "base_url": "", "preload_model_id": None}, Load("1", "groq")),
    ],
)
def test_requests(message: dict, request_: object) -> None:
    assert parse(said(**message)) == request_
    assert parse(said(**message).encode()) == request_


def test_a_key_is_read_and_never_shown() -> None:
    request = parse(said(type="load", provider="groq", api_key="sk-1", preload_model_id="m", base_url="http://x"))
    assert isinstance(request, Load)
    assert request.api_key.reveal() == "sk-1"
    assert (request.preload_model_id, request.base_url) == ("m", "http://x")
    assert "sk-1" not in repr(request)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b"{}",
        b'{"type": "close"}',
        b'{"type": "close", "unique_request_id": 1}',
        b'{"type": "close", "unique_request_id": ""}',
        b'{"type": "close", "unique_request_id": null}',
        b'{"type": "close", "unique_request_id": "%b"}' % (b"x" * 257),
    ],
)
def test_what_has_no_id_is_an_error_without_one(data: bytes) -> None:
    (error,) = answers(parse(data))
    assert (error["type"], error["unique_request_id"], error["error"]) == ("error", None, "UNEXPECTED")
    assert error["error_detail"]


@pytest.mark.parametrize("kind", [None, 1, [], {}, "", "generate_streamed", "load_done", "LOAD"])
def test_an_unknown_type_is_an_error_with_its_id(kind: object) -> None:
    (error,) = answers(parse(said(type=kind)))
    assert (error["type"], error["unique_request_id"], error["error"]) == ("error", "1", "UNEXPECTED")
    assert "get_models" in error["error_detail"]


def test_a_target_that_is_no_text_is_an_error() -> None:
    (error,) = answers(parse(said(type="interrupt", target=1)))
    assert (error["type"], error["error_detail"]) == ("error", "target must be text.")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "INVALID_PROVIDER"),
        ({"provider": 1}, "INVALID_PROVIDER"),
        ({"provider": ""}, "INVALID_PROVIDER"),
        ({"provider": "groq", "api_key": 1}, "AUTHORIZATION"),
        ({"provider": "groq", "base_url": []}, "INVALID_PROVIDER"),
        ({"provider": "groq", "preload_model_id": {}}, "INVALID_MODEL"),
    ],
)
def test_a_bad_load_is_answered_as_a_load(fields: dict, code: str) -> None:
    ack, done = answers(parse(said(type="load", **fields)))
    assert (ack["type"], done["type"], done["is_error"], done["error"]) == ("load_ack", "load_done", True, code)


@pytest.mark.parametrize(
    "fields",
    [{}, {"messages": []}, {"messages": "hi"}, {"messages": {}}, {"messages": [1], "params": []}, {"messages": [1], "stream": 1}],
)
def test_a_bad_generate_is_answered_as_a_generate(fields: dict) -> None:
    for asked, name in ((fields, "generate_done"), ({"stream": True, **fields}, "generate_stream_done")):
        ack, done = answers(parse(said(type="generate", **asked)))
        assert (ack["type"], done["error"]) == ("generate_ack", "INVALID_PROMPT")
        assert done["type"] == (name if "stream" not in fields else "generate_done")


def test_half_a_surrogate_pair_is_no_reason_to_say_nothing() -> None:
    request = parse(rb'{"type": "generate", "unique_request_id": "1", "messages": [{"role": "user", "content": "\ud83d"}]}')
    assert isinstance(request, Generate)
    assert request.messages[0]["content"] == "\ud83d"
    assert json.loads(Chunks("1").message("a\ud83d"))["chunk"] == "a\ud83d"
    assert json.loads(Chunks('\u2028"').message('\u2028\x00"'))["chunk"] == '\u2028\x00"'


def test_the_done_messages_say_what_is_known() -> None:
    usage = LLMUsage(3, 2, 5, cost=0.5, raw={"secret": 1})
    response = LLMResponse(text="Hello", usage=usage, finish_reason="stop")
    done = json.loads(protocol.generate_done("1", response=response))
    assert (done["response"], done["finish_reason"], done["is_error"], done["error"]) == ("Hello", "stop", False, "SUCCESS")
    assert done["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "cached_tokens": None,
        "cache_write_tokens": None,
        "reasoning_tokens": None,
        "cost": 0.5,
        "estimated": False,
    }
    failed = json.loads(protocol.generate_done("1", Code.TIMEOUT, "Too late.", response=response))
    assert (failed["response"], failed["usage"], failed["error_detail"]) == ("", done["usage"], "Too late.")


def test_every_error_has_its_code() -> None:
    codes = {
        "LLMAuthenticationError": "AUTHORIZATION",
        "LLMPermissionDeniedError": "AUTHORIZATION",
        "LLMInvalidRequestError": "INVALID_PROMPT",
        "LLMContextLengthError": "INVALID_PROMPT",
        "LLMContentFilterError": "INVALID_PROMPT",
        "LLMNotFoundError": "INVALID_MODEL",
        "LLMTimeoutError": "TIMEOUT",
    }
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.LLMError)]
    assert len(kinds) > 20
    assert {kind.__name__: str(code_of(kind("x"))) for kind in kinds} == {kind.__name__: codes.get(kind.__name__, "UNEXPECTED") for kind in kinds}
    assert code_of(OSError()) is Code.UNEXPECTED
