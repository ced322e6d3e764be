"""``response_format``: what goes on the wire for each provider, and what an answer has to be."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, Field

from jazz_llm import (
    LLMCapabilityError,
    LLMConfigurationError,
    LLMContentFilterError,
    LLMError,
    LLMInvalidRequestError,
    LLMRefusalError,
    LLMStructuredOutputError,
    Message,
    OpenAICompatibleLLM,
)
from jazz_llm.response import Decoder
from jazz_llm.schema import schema_of
from jazz_llm.testing import FakeServer
from jazz_llm.testing.server import Reply, Request

from .colours import Async, Sync

Colour = Sync | Async


class City(BaseModel):
    name: str
    people: int = 0


@dataclass
class Town:
    name: str
    people: int = 0


class Village(typing.TypedDict):
    name: str
    people: int


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}, "people": {"type": "integer"}}, "required": ["name"]}
STRICT = {**City.model_json_schema(), "required": ["name", "people"], "additionalProperties": False}
STRICT["properties"] = {"name": {"title": "Name", "type": "string"}, "people": {"title": "People", "type": "integer"}}
OWN = {"type": "json_schema", "json_schema": {"name": "city", "strict": False, "schema": SCHEMA}}
TEXT = '{"name": "Bern", "people": 134}'


class Script:
    """What the server says next, whole or as a stream, as it is asked."""

    def __init__(self) -> None:
        self.text, self.finish, self.refusal = TEXT, "stop", None
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, request: Request, reply: Reply) -> None:
        body = request.json()
        self.asked.append(body)
        said: dict[str, Any] = {"content": self.text or None} if self.refusal is None else {"content": None, "refusal": self.refusal}
        if body.get("stream"):
            halves = [self.text[:9], self.text[9:]] if self.refusal is None and self.text else [said]
            await reply.sse(halves, finish=self.finish)
        else:
            choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": self.finish}
            await reply.json({"id": "c1", "object": "chat.completion", "model": "m", "choices": [choice]})


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def server(script: Script) -> Iterator[FakeServer]:
    with FakeServer(script) as server:
        yield server


@pytest.fixture
def llm(server: FakeServer) -> Iterator[OpenAICompatibleLLM]:
    with OpenAICompatibleLLM("m", base_url=server.url) as llm:
        yield llm


def answered(colour: Colour, llm: OpenAICompatibleLLM, how: str, response_format: Any = City) -> Any:
    """Return the answer of a call of either kind."""
    if how == "whole":
        return colour.generate(llm, response_format=response_format)
    texts, stream = colour.stream(llm, response_format=response_format)
    assert stream.response is not None
    assert "".join(texts) == stream.response.text
    return stream.response


both_ways = pytest.mark.parametrize("how", ["whole", "stream"])


# --- What comes back --------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("response_format", "parsed"),
    [
        (City, City(name="Bern", people=134)),
        (Town, Town("Bern", 134)),
        (Village, {"name": "Bern", "people": 134}),
        (SCHEMA, {"name": "Bern", "people": 134}),
        (OWN, {"name": "Bern", "people": 134}),
        ({"type": "json_object"}, {"name": "Bern", "people": 134}),
    ],
    ids=["model", "dataclass", "TypedDict", "dict", "openai", "json_object"],
)
def test_parsed_is_an_instance(colour: Colour, llm: OpenAICompatibleLLM, how: str, response_format: Any, parsed: Any) -> None:
    response = answered(colour, llm, how, response_format)
    assert response.parsed == parsed
    assert type(response.parsed) is type(parsed)
    assert response.text == TEXT
    assert colour.generate(llm).parsed is None  # a call without it is as it was


@both_ways
def test_a_fence_is_no_matter(colour: Colour, llm: OpenAICompatibleLLM, script: Script, how: str) -> None:
    script.text = f"```json\n{TEXT}\n```"
    response = answered(colour, llm, how)
    assert (response.parsed, response.text) == (City(name="Bern", people=134), script.text)


@both_ways
@pytest.mark.parametrize("response_format", [City, Village, SCHEMA, OWN], ids=["model", "TypedDict", "dict", "openai"])
def test_what_does_not_fit_is_an_error_with_the_text(colour: Colour, llm: OpenAICompatibleLLM, script: Script, how: str, response_format: Any) -> None:
    script.text = '{"name": 5, "people": 134}'
    with pytest.raises(LLMStructuredOutputError, match=r"does not fit response_format .*name") as caught:
        answered(colour, llm, how, response_format)
    error = caught.value
    assert error.text == script.text
    assert len(error.errors) == 1
    assert error.partial is not None
    assert (error.partial.text, error.partial.parsed, error.partial.finish_reason) == (script.text, None, "stop")
    assert error.partial.metrics.status_code == 200
    assert error.attempts == 1
    assert not error.retryable
    assert len(script.asked) == 1  # not tried again
    if how == "stream":
        assert "".join(error.seen) == script.text  # type: ignore[attr-defined]  # all of it was given out before
    assert pickle.loads(pickle.dumps(error)).errors == copy.copy(error).errors == error.errors


@both_ways
@pytest.mark.parametrize(
    ("text", "finish", "refusal", "kind", "words"),
    [
        ("Bern", "stop", None, LLMStructuredOutputError, "not JSON"),
        ("Bern", "tool_calls", None, LLMStructuredOutputError, "not JSON"),
        ('{"name": "Be', "length", None, LLMStructuredOutputError, "was cut short"),
        (TEXT, "content_filter", None, LLMContentFilterError, "content filter"),
        ("", "content_filter", None, LLMContentFilterError, "content filter"),
        ("", "stop", "I will not", LLMRefusalError, "I will not"),
        ("", "content_filter", "I will not", LLMRefusalError, "I will not"),
    ],
    ids=["stop", "tool_calls", "length", "filter", "filter, empty", "refusal", "refusal, filter"],
)
def test_the_finish_says_which_error(
    colour: Colour, llm: OpenAICompatibleLLM, script: Script, how: str, text: str, finish: str, refusal: str | None, kind: type[LLMError], words: str
) -> None:
    script.text, script.finish, script.refusal = text, finish, refusal
    with pytest.raises(LLMError, match=words) as caught:
        answered(colour, llm, how)
    assert type(caught.value) is kind
    assert caught.value.partial is not None
    assert (caught.value.partial.text, caught.value.partial.refusal) == (text, refusal)


@both_ways
def test_an_answer_of_full_length_that_fits_is_an_answer(colour: Colour, llm: OpenAICompatibleLLM, script: Script, how: str) -> None:
    script.finish = "length"
    response = answered(colour, llm, how)
    assert (response.parsed, response.finish_reason) == (City(name="Bern", people=134), "length")


@both_ways
def test_without_a_format_none_of_this_is_an_error(colour: Colour, llm: OpenAICompatibleLLM, script: Script, how: str) -> None:
    script.finish = "content_filter"
    assert answered(colour, llm, how, None).finish_reason == "content_filter"
    script.refusal = "I will not"
    assert answered(colour, llm, how, None).refusal == "I will not"


def test_the_connection_is_kept_after_an_answer_that_does_not_fit(llm: OpenAICompatibleLLM, server: FakeServer, script: Script) -> None:
    script.text = "Bern"
    for _ in range(3):
        with pytest.raises(LLMStructuredOutputError):
            llm.generate("hi", response_format=City)
    assert {request.connection for request in server.requests} == {1}


def test_thoughts_are_not_part_of_the_answer(colour: Colour, llm: OpenAICompatibleLLM, script: Script) -> None:
    script.text = f"<think>Bern?</think>\n{TEXT}"
    response = colour.generate(llm, response_format=City)
    assert (response.parsed, response.reasoning) == (City(name="Bern", people=134), "Bern?")


def choices(*texts: str) -> bytes:
    listed = [{"index": i, "message": {"content": text}, "finish_reason": "stop"} for i, text in enumerate(texts)]
    return json.dumps({"choices": listed}).encode()


def test_of_several_choices_the_first_is_read() -> None:
    decoder = Decoder(streams=False, choices=2, schema=schema_of(City))
    decoder.feed(choices(TEXT, "not JSON"))
    decoder.end()
    response = decoder.result()
    assert response.parsed == City(name="Bern", people=134)
    assert [choice.text for choice in response.choices] == [TEXT, "not JSON"]


def test_the_decoders_errors_hold_what_had_come() -> None:
    decoder = Decoder(streams=False, schema=schema_of(City))
    decoder.feed(choices("not JSON"))
    decoder.end()
    with pytest.raises(LLMStructuredOutputError) as caught:
        decoder.result()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "not JSON"


def test_a_mocked_answer_is_checked_too(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", json.dumps([TEXT, TEXT, "text", "more text"]))
    llm = OpenAICompatibleLLM("m", base_url="http://localhost:1")
    assert colour.generate(llm, response_format=City).parsed == City(name="Bern", people=134)
    texts, stream = colour.stream(llm, response_format=City)
    assert len(texts) > 1
    assert stream.response is not None
    assert stream.response.parsed == City(name="Bern", people=134)
    for how in ("whole", "stream"):
        with pytest.raises(LLMStructuredOutputError):
            answered(colour, llm, how)


# --- What goes out ----------------------------------------------------------------------------------------------------


def body_of(provider: str | None, response_format: Any = City, messages: Any = "hi", **options: Any) -> dict[str, Any]:
    llm = OpenAICompatibleLLM("m", "key", base_url="http://localhost:1", provider=provider)
    return json.loads(llm._prepared(messages, response_format, options, streams=False).body)


PLAIN = {"type": "json_schema", "json_schema": {"name": "City", "schema": City.model_json_schema()}}


@pytest.mark.parametrize("provider", [None, "sglang", "ollama", "llamacpp", "lmstudio", "vllm", "groq", "mistral"])
def test_most_take_the_schema_as_it_is(provider: str | None) -> None:
    body = body_of(provider)
    assert body["response_format"] == PLAIN
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert body.get("structured_outputs") == ({"json": City.model_json_schema()} if provider == "vllm" else None)


@pytest.mark.parametrize("provider", ["openai", "azure", "github", "cerebras"])
def test_some_take_the_strict_subset(provider: str) -> None:
    assert body_of(provider)["response_format"] == {"type": "json_schema", "json_schema": {"name": "City", "schema": STRICT, "strict": True}}
    open_map = {"type": "object", "properties": {"a": {"type": "object"}}}
    with pytest.raises(LLMCapabilityError, match=r"open map .*\(at \$.properties.a\)") as caught:
        body_of(provider, open_map)
    assert caught.value.provider == provider


def test_a_field_that_the_subset_asks_for_and_the_type_does_not_may_be_left_out_by_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["{\\"name\\": \\"Bern\\"}"]')
    assert OpenAICompatibleLLM("m").generate("hi", response_format=City).parsed == City(name="Bern")


def asked_in(message: dict[str, Any]) -> str:
    assert message["role"] in ("system", "developer")
    return message["content"]


@pytest.mark.parametrize("provider", ["deepseek", "anthropic", "novelai"])
def test_some_are_told_in_the_prompt(provider: str) -> None:
    body = body_of(provider)
    assert body.get("response_format") == ({"type": "json_object"} if provider == "deepseek" else None)
    system, user = body["messages"]
    assert "JSON" in asked_in(system)
    assert json.loads(asked_in(system).partition("\n")[2]) == City.model_json_schema()
    assert user == {"role": "user", "content": "hi"}


def test_the_schema_joins_the_system_message_that_is_there() -> None:
    given = [Message.user("a"), Message.system("Be brief."), Message.system("Be kind.")]
    listed = body_of("deepseek", messages=given)["messages"]
    assert [message["role"] for message in listed] == ["user", "system", "system"]
    assert listed[1]["content"].startswith("Be brief.\n\nAnswer with JSON")
    assert listed[2]["content"] == "Be kind."
    assert given[1].content == "Be brief."
    parts = [{"type": "text", "text": "Be brief."}]
    content = body_of("anthropic", messages=[{"role": "developer", "content": parts}, Message.user("a")])["messages"][0]["content"]
    assert content[0] == parts[0]
    assert "JSON" in content[1]["text"]
    assert parts == [{"type": "text", "text": "Be brief."}]


@pytest.mark.parametrize("own", [OWN, {"type": "json_object"}], ids=["json_schema", "json_object"])
def test_openais_own_form_goes_out_as_it_came(own: dict[str, Any]) -> None:
    for provider in (None, "openai", "vllm"):
        assert body_of(provider, own)["response_format"] == own
    assert body_of("deepseek", own)["response_format"] == {"type": "json_object"}
    assert "response_format" not in body_of("anthropic", own)
    prompt = asked_in(body_of("anthropic", own)["messages"][0])
    assert "JSON" in prompt
    assert ('"people"' in prompt) == (own is OWN)


def test_extra_body_wins() -> None:
    assert body_of("openai", extra_body={"response_format": {"type": "text"}})["response_format"] == {"type": "text"}


@pytest.mark.parametrize("given", [{"$ref": "http://example.com/x"}, {"type": "nothing"}, int, [City], 5], ids=repr)
def test_what_is_no_format_is_refused_at_the_call(colour: Colour, given: Any) -> None:
    llm = OpenAICompatibleLLM("m", base_url="http://localhost:1")
    for call in (llm.generate, llm.stream, llm.astream, llm.stream_events, llm.astream_events):
        with pytest.raises(LLMInvalidRequestError, match="response_format"):
            call("hi", response_format=given)
    with pytest.raises(LLMInvalidRequestError, match="response_format"):
        colour.generate(llm, response_format=given)


def test_a_schema_that_cannot_be_sent_is_refused() -> None:
    class Large(BaseModel):
        x: int = Field(le=10**30)

    with pytest.raises(LLMInvalidRequestError, match="response_format: it is not JSON: a lone surrogate"):
        body_of("anthropic", {"title": "\ud800"})
    with pytest.raises(LLMInvalidRequestError, match="response_format cannot be sent as JSON"):
        body_of(None, Large)


def test_copies_and_pickles_take_formats_too(colour: Colour, server: FakeServer) -> None:
    with OpenAICompatibleLLM("m", base_url=server.url) as llm:
        assert colour.generate(llm, response_format=City).parsed == City(name="Bern", people=134)
        for other in (llm.with_options(temperature=0.5), pickle.loads(pickle.dumps(llm)), copy.copy(llm)):
            with other:
                assert colour.generate(other, response_format=City).parsed == City(name="Bern", people=134)


def test_the_extra_is_asked_for_at_the_call(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from jazz_llm import schema

    schema._made.cache_clear()
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(LLMConfigurationError, match=r'pip install "jazz_llm\[schema\]"'):
        colour.generate(OpenAICompatibleLLM("m", base_url="http://localhost:1"), response_format=Town)


def test_a_key_that_is_said_back_is_not_shown(colour: Colour, server: FakeServer, script: Script) -> None:
    script.text = '{"name": ["sk-secret-key"]}'
    with OpenAICompatibleLLM("m", "sk-secret-key", base_url=server.url) as llm, pytest.raises(LLMStructuredOutputError) as caught:
        colour.generate(llm, response_format=SCHEMA)
    error = caught.value
    assert "sk-secret" not in repr((error, str(error), error.args, error.message, error.text, error.errors))


@pytest.mark.parametrize("finish", ["stop", "content_filter"])
def test_a_key_that_the_server_says_back_is_in_no_traceback(server: FakeServer, script: Script, colour: Colour, finish: str) -> None:
    key = "sk-very-secret-0123456789"
    script.text, script.finish = json.dumps({"name": [key]}), finish
    with OpenAICompatibleLLM("m", key, server.url) as llm, pytest.raises(LLMError) as caught:
        colour.generate(llm, "x", response_format=City)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    ours = [f"{name}={value}" for frame in shown if "/jazz_llm/" in frame.filename for name, value in (frame.locals or {}).items()]
    assert ours
    assert not [text for text in ours if key in text]


def test_openais_word_for_plain_text_asks_for_nothing(colour: Colour) -> None:
    with FakeServer() as server, OpenAICompatibleLLM("m", base_url=server.url) as llm:
        response = colour.generate(llm, response_format={"type": "text"})
        assert (response.text, response.parsed) == ("Hello, world!", None)
        assert "response_format" not in server.requests[0].json()
