from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMConfigurationError,
    LLMError,
    LLMInvalidRequestError,
    Message,
    OpenAICompatibleLLM,
    ToolCall,
)
from jazz_llm.request import ask_key, headers_of, prepare


def body_of(messages: Any = "hi", *, streams: bool = False, arguments: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    llm = OpenAICompatibleLLM(**{"model": "m", "base_url": "http://localhost", **(arguments or {})})
    return json.loads(prepare(llm._config, messages, options, streams=streams).body)


class Role(Enum):
    USER = "user"


@dataclass
class Turn:
    role: str
    content: str


def test_text_is_one_user_message() -> None:
    assert body_of("hi") == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "message",
    [Message.user("a"), {"role": "user", "content": "a"}, Turn("user", "a"), SimpleNamespace(role=Role.USER, content="a")],
    ids=["Message", "dict", "object", "enum"],
)
def test_every_kind_of_message_comes_out_the_same(message: Any) -> None:
    assert body_of([message])["messages"] == [{"role": "user", "content": "a"}]
    assert body_of(iter((message,)))["messages"] == [{"role": "user", "content": "a"}]


def test_a_tool_conversation_goes_back_as_it_came() -> None:
    call = ToolCall("c1", "f", {"a": 1}, '{"a": 1}', {"extra_content": {"google": {"thought_signature": "S"}}})
    turn = Message("assistant", None, tool_calls=[call], extra={"reasoning_content": "hm"})
    assert body_of([Message.user("x"), turn, Message.tool(call, "r")])["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"a": 1}'},
                    "extra_content": {"google": {"thought_signature": "S"}},
                }
            ],
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "r", "tool_call_id": "c1"},
    ]


def test_the_users_messages_are_not_changed() -> None:
    message = {"role": Role.USER, "content": "a"}
    body_of([message])
    assert message == {"role": Role.USER, "content": "a"}


def test_a_role_is_plain_text_in_what_a_call_keeps() -> None:
    config = OpenAICompatibleLLM("m", base_url="http://localhost")._config
    assert repr(prepare(config, [{"role": Role.USER, "content": "a"}], {}, streams=False).messages) == "[{'role': 'user', 'content': 'a'}]"


def cyclic() -> list[Any]:
    part: dict[str, Any] = {"type": "text"}
    part["self"] = part
    return [{"role": "user", "content": [part]}]


BAD_MESSAGES = {
    "empty": [],
    "None": None,
    "number": 5,
    "bytes": b"hi",
    "one dict": {"role": "user", "content": "x"},
    "one Message": Message.user("x"),
    "exhausted generator": iter(()),
    "text among them": ["hi"],
    "no role": [{"content": "x"}],
    "unknown role": [{"role": "robot", "content": "x"}],
    "unhashable role": [{"role": ["user"], "content": "x"}],
    "no content": [{"role": "user"}],
    "None content": [{"role": "assistant", "content": None}],
    "bytes content": [{"role": "user", "content": b"x"}],
    "parts that are no dicts": [{"role": "user", "content": ["x"]}],
    "lone surrogate": "\ud800",
    "lone surrogate in a part": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}],
    "cyclic": cyclic(),
    "not JSON": [{"role": "user", "content": [{"type": "text", "text": object()}]}],
    "tool calls that are no list": [{"role": "assistant", "tool_calls": 5}],
    "arguments that are not JSON": [Message.assistant(None, [ToolCall("c", "f", {"a": object()})])],
    "tool without id": [{"role": "tool", "content": "x"}],
}


@pytest.mark.parametrize("messages", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_bad_messages_are_named_before_anything_is_sent(messages: Any) -> None:
    with pytest.raises(LLMInvalidRequestError, match="message") as caught:
        body_of(messages)
    assert caught.value.status_code is None
    assert not caught.value.retryable


def test_the_message_at_fault_is_named() -> None:
    with pytest.raises(LLMInvalidRequestError, match=r"messages\[1\]"):
        body_of(["x" and Message.user("fine"), Message.user("\ud800")])


def test_sampling_is_sent_only_when_given_and_the_calls_wins() -> None:
    arguments = {"temperature": 0.5, "max_tokens": 7, "stop": ["x"]}
    body = body_of(arguments=arguments, temperature=0, seed=3)
    assert {k: body[k] for k in body.keys() - {"messages"}} == {"model": "m", "temperature": 0, "max_tokens": 7, "stop": ["x"], "seed": 3}
    assert "temperature" not in body_of(arguments=arguments, temperature=None)


def test_another_model_for_one_call() -> None:
    assert body_of(model="other")["model"] == "other"


def test_a_stream_asks_for_usage() -> None:
    assert body_of(streams=True)["stream_options"] == {"include_usage": True}
    assert body_of(streams=True, stream_options={"include_usage": False})["stream_options"] == {"include_usage": False}
    assert "stream_options" not in body_of(streams=True, arguments={"provider": "mistral", "base_url": None, "api_key": "k"})
    assert "stream" not in body_of()


def test_extra_body_is_merged_last_and_wins() -> None:
    arguments = {"extra_body": {"a": 1, "b": 1}, "temperature": 1.0}
    body = body_of(arguments=arguments, extra_body={"b": 2, "temperature": 0.1})
    assert (body["a"], body["b"], body["temperature"]) == (1, 2, 0.1)


def test_template_arguments_of_instance_and_call_are_joined() -> None:
    arguments = {"chat_template_kwargs": {"enable_thinking": False, "x": 1}}
    assert body_of(arguments=arguments, chat_template_kwargs={"x": 2})["chat_template_kwargs"] == {"enable_thinking": False, "x": 2}


def test_mock_response_and_tools_pass_through() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = body_of(mock_response="x", tools=[tool], tool_choice="auto")
    assert (body["mock_response"], body["tools"], body["tool_choice"]) == ("x", [tool], "auto")


BAD_OPTIONS: list[tuple[dict[str, Any], type[LLMError], str]] = [
    ({"temperature": float("nan")}, LLMInvalidRequestError, "temperature"),
    ({"temperature": "1"}, LLMInvalidRequestError, "temperature"),
    ({"top_p": 2}, LLMInvalidRequestError, "top_p"),
    ({"max_tokens": 0}, LLMInvalidRequestError, "max_tokens"),
    ({"max_tokens": 1.5}, LLMInvalidRequestError, "max_tokens"),
    ({"n": 0}, LLMInvalidRequestError, "n "),
    ({"logprobs": "yes"}, LLMInvalidRequestError, "logprobs"),
    ({"user": 3}, LLMInvalidRequestError, "user"),
    ({"reasoning_effort": 3}, LLMInvalidRequestError, "reasoning_effort"),
    ({"stream_options": 3}, LLMConfigurationError, "stream_options"),
    ({"extra_headers": {"Content-Length": "5"}}, LLMConfigurationError, "Content-Length"),
    ({"model": ""}, LLMInvalidRequestError, "model"),
    ({"tools": 5}, LLMInvalidRequestError, "tools"),
    ({"tools": [len]}, LLMInvalidRequestError, "tools"),
    ({"extra_body": {"x": 2**70}}, LLMInvalidRequestError, r"extra_body\['x'\]"),
    ({"extra_body": 5}, LLMConfigurationError, "extra_body"),
    ({"extra_headers": {"a": "b\nc"}}, LLMConfigurationError, "extra_headers"),
    ({"timeout": -1}, LLMConfigurationError, "timeout"),
    ({"deadline": float("nan")}, LLMConfigurationError, "deadline"),
    ({"max_retries": -1}, LLMConfigurationError, "max_retries"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS, ids=lambda value: repr(value)[:40])
def test_a_bad_option_is_named(options: dict[str, Any], error: type[LLMError], words: str) -> None:
    with pytest.raises(error, match=words):
        body_of(**options)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        body_of(temprature=1)


def headers(arguments: dict[str, Any], key: str | None = "sk-1", **options: Any) -> dict[str, str]:
    llm = OpenAICompatibleLLM("m", **arguments)
    pairs = headers_of(prepare(llm._config, "hi", options, streams=False), key)
    assert isinstance(pairs, tuple)
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_the_key_goes_where_the_provider_wants_it() -> None:
    assert headers({"base_url": "https://x.example.com"})["authorization"] == "Bearer sk-1"
    azure = headers({"base_url": "https://me.openai.azure.com/openai/v1"})
    assert azure["api-key"] == "sk-1"
    assert "authorization" not in azure


def test_the_users_headers_win_whatever_their_case() -> None:
    given = {"base_url": "https://x.example.com", "default_headers": {"Authorization": "Basic x", "X-A": "1"}}
    made = headers(given, extra_headers={"x-a": "2", "Accept-Encoding": "gzip"})
    assert (made["authorization"], made["x-a"], made["accept-encoding"]) == ("Basic x", "2", "gzip")


def test_nothing_is_asked_to_be_compressed() -> None:
    assert headers({"base_url": "http://localhost"})["accept-encoding"] == "identity"


def test_a_missing_key_is_reported_when_it_is_needed() -> None:
    with pytest.raises(LLMAuthenticationError, match="OPENAI_API_KEY"):
        headers({}, key=None)
    with pytest.raises(LLMAuthenticationError, match="GROQ_API_KEY"):
        headers({"provider": "groq"}, key=None)
    assert "authorization" not in headers({"base_url": "http://modelapi-service:8000"}, key=None)
    assert headers({"default_headers": {"Authorization": "Bearer x"}}, key=None)["authorization"] == "Bearer x"
    assert headers({}, key=None, extra_headers={"Authorization": "Bearer x"})["authorization"] == "Bearer x"
    azure = {"base_url": "https://me.openai.azure.com/openai/v1", "default_headers": {"api-key": "x"}}
    assert headers(azure, key=None)["api-key"] == "x"


def test_headers_are_the_same_tuple_as_long_as_nothing_changes() -> None:
    llm = OpenAICompatibleLLM("m", "sk-1", "http://localhost")
    whole, stream = (prepare(llm._config, "hi", {}, streams=streams) for streams in (False, True))
    assert headers_of(whole, "sk-1") is headers_of(prepare(llm._config, "ho", {"n": 2}, streams=False), "sk-1")
    assert dict(headers_of(stream, "sk-1"))["accept"] == "text/event-stream"
    assert dict(headers_of(whole, "sk-2"))["authorization"] == "Bearer sk-2"
    extra = prepare(llm._config, "hi", {"extra_headers": {"x-a": "1"}}, streams=False)
    assert dict(headers_of(extra, "sk-1")) == {**dict(headers_of(whole, "sk-1")), "x-a": "1"}
    assert "x-a" not in dict(headers_of(whole, "sk-1"))
    copy = llm.with_options(default_headers={"x-b": "2"})
    assert dict(headers_of(prepare(copy._config, "hi", {}, streams=False), "sk-1"))["x-b"] == "2"


def test_what_is_kept_of_headers_is_bounded_and_no_repr_shows_it() -> None:
    llm = OpenAICompatibleLLM("m", "sk-1", "http://localhost")
    call = prepare(llm._config, "hi", {}, streams=False)
    for i in range(1000):
        assert dict(headers_of(call, f"sk-secret-{i}"))["authorization"] == f"Bearer sk-secret-{i}"
    kept = llm._config.headers
    assert 0 < len(kept._made) <= 16
    assert "sk-" not in repr((kept, llm._config, call))


def test_what_the_instance_adds_is_added_once_and_not_kept() -> None:
    arguments = {"chat_template_kwargs": {"x": 1}, "extra_body": {"a": 1}, "temperature": 0.5}
    llm = OpenAICompatibleLLM("m", base_url="http://localhost", **arguments)
    bodies = [json.loads(prepare(llm._config, "hi", options, streams=False).body) for options in ({}, {"seed": 1, "extra_body": {"b": 2}}, {})]
    assert bodies[0] == bodies[2] == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "chat_template_kwargs": {"x": 1}, "a": 1}
    assert bodies[1] == {**bodies[0], "seed": 1, "b": 2}


def test_a_literal_key_is_given_as_it_is() -> None:
    assert ask_key(OpenAICompatibleLLM("m", "sk-1", "http://localhost")._config) == "sk-1"
    assert ask_key(OpenAICompatibleLLM("m", base_url="http://localhost")._config) is None


def test_a_key_function_is_asked_and_its_answer_checked() -> None:
    keys = iter(["one", "two", "th\nree"])
    config = OpenAICompatibleLLM("m", lambda: next(keys), "http://localhost")._config
    assert (ask_key(config), ask_key(config)) == ("one", "two")
    with pytest.raises(LLMConfigurationError, match="api_key") as caught:
        ask_key(config)
    assert "ree" not in str(caught.value)


def test_an_async_key_function_serves_async_calls_only() -> None:
    async def key() -> str:
        return "sk"

    with pytest.raises(LLMConfigurationError, match="async"):
        ask_key(OpenAICompatibleLLM("m", key, "http://localhost")._config)
