from __future__ import annotations

from dataclasses import fields
from urllib.parse import urlsplit

import orjson
import pytest

from jazz_llm import LLMCapabilityError, Message, OpenAICompatibleLLM
from jazz_llm.providers import BY_NAME, PROVIDERS, Provider, in_dialect, provider_of_host
from jazz_llm.request import headers_of, prepare
from jazz_llm.testing import FakeServer

from .colours import Async, Sync
from .provider_table import differences

FILLED = {"{resource}": "mine", "{location}": "eu", "{project}": "p", "{region}": "eu", "{account_id}": "7", "{host}": "h", "{account}": "a"}
NAMED = ("openai", "ollama", "vllm", "sglang", "groq", "deepseek", "novelai", "tgi")


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(PROVIDERS) == 43


@pytest.mark.parametrize("row", PROVIDERS, ids=lambda row: row.name)
def test_every_public_host_finds_its_row(row: object) -> None:
    for host in (urlsplit(row.base_url).hostname, *row.hosts):
        filled = host.replace("{", "").replace("}", "")
        if not filled.startswith(("localhost", "127.")):
            assert provider_of_host(filled) is row


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "example.com", "api.groq.com.evil.com", "xapi.groq.com", ".openai.azure.com"])
def test_other_hosts_have_none(host: str) -> None:
    assert provider_of_host(host) is None


def base_url(row: Provider) -> str:
    """Return the row's URL with the user's part filled in."""
    url = row.base_url
    for name, value in FILLED.items():
        url = url.replace(name, value)
    return url


def body(provider: str, messages: object = "hi", **options: object) -> dict[str, object]:
    """Return what a call to a provider sends."""
    llm = OpenAICompatibleLLM("m", "sk-test", base_url(BY_NAME[provider]), provider=provider)
    return orjson.loads(prepare(llm._config, messages, options, streams=True).body)  # type: ignore[no-any-return]


@pytest.mark.parametrize("row", PROVIDERS, ids=lambda row: row.name)
def test_every_row_makes_a_client_that_asks_the_right_place_in_the_right_way(row: Provider) -> None:
    llm = OpenAICompatibleLLM("m", "sk-test", base_url(row), provider=row.name, max_tokens=5)
    call = prepare(llm._config, "hi", {}, streams=True)
    sent = orjson.loads(call.body)
    bare = not urlsplit(row.base_url).path and "localhost" in row.base_url  # an address that tells nothing gets /v1
    assert call.url == f"{base_url(row)}{'/v1' * bare}/chat/completions"
    assert dict(headers_of(call, "sk-test")).get(row.key_header or "authorization") == f"{'' if row.key_header else 'Bearer '}sk-test"
    assert sent[row.renames.get("max_tokens", "max_tokens")] == 5
    assert ("stream_options" in sent) is row.stream_options
    assert row.source


@pytest.mark.parametrize("row", PROVIDERS, ids=lambda row: row.name)
def test_what_a_row_does_differently_is_in_the_table(row: Provider) -> None:
    told = {"name", "base_url", "key_env", "source", "request_ids"}
    plain = Provider(name="", base_url="", key_env=(), source="")
    differs = [f.name for f in fields(Provider) if f.name not in told and getattr(row, f.name) != getattr(plain, f.name)]
    assert bool(differs) is bool(list(differences(row)))


@pytest.mark.parametrize("name", NAMED)
def test_the_providers_that_were_asked_for_answer(name: str, colour: Sync | Async) -> None:
    with FakeServer() as server, OpenAICompatibleLLM("m", "sk-test", f"{server.url}/v1", provider=name, max_tokens=50) as llm:
        whole = colour.generate(llm)
        texts, stream = colour.stream(llm)
        assert whole.text == "".join(texts) != ""
        assert stream.response is not None
        assert stream.response.finish_reason == whole.finish_reason == "stop"
        assert whole.metrics.streamed_internally is BY_NAME[name].streams_inside
        assert all(request.json()["model"] == "m" for request in server.requests)


@pytest.mark.parametrize(
    ("provider", "options", "sent"),
    [
        ("openai", {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("openai", {"max_tokens": 5, "max_completion_tokens": 6}, {"max_completion_tokens": 6}),
        ("mistral", {"max_completion_tokens": 5, "seed": 1}, {"max_tokens": 5, "random_seed": 1}),
        ("ollama", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("vllm", {"max_tokens": 5}, {"max_tokens": 5}),
        ("deepseek", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ("deepseek", {"reasoning_effort": "max"}, {"thinking": {"type": "enabled"}, "reasoning_effort": "max"}),
        ("moonshot", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ("dashscope", {"reasoning_effort": "high"}, {"enable_thinking": True}),
        ("novelai", {"reasoning_effort": "none"}, {"enable_thinking": False}),
        ("vllm", {"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ("vllm", {"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            "sglang",
            {"reasoning_effort": "none", "chat_template_kwargs": {"style": "brief"}},
            {"chat_template_kwargs": {"enable_thinking": False, "style": "brief"}},
        ),
        (
            "vllm",
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": True}},
        ),
        ("openai", {"reasoning_effort": "none"}, {"reasoning_effort": "none"}),
        ("openai", {"extra_body": {"max_tokens": 3}}, {"max_tokens": 3}),
    ],
)
def test_an_option_is_sent_as_the_provider_takes_it(provider: str, options: dict[str, object], sent: dict[str, object]) -> None:
    frame = {"model", "messages", "stream", "stream_options"}
    assert {name: value for name, value in body(provider, **options).items() if name not in frame} == sent


def test_the_calls_limit_wins_over_the_instances_under_either_name() -> None:
    for provider, name in (("mistral", "max_tokens"), ("openai", "max_completion_tokens"), ("vllm", "max_completion_tokens")):
        llm = OpenAICompatibleLLM("m", "sk", base_url(BY_NAME[provider]), provider=provider, max_tokens=100)
        sent = orjson.loads(prepare(llm._config, "hi", {"max_completion_tokens": 5}, streams=False).body)
        assert {key: value for key, value in sent.items() if "max" in key} == {name: 5}


def test_options_are_not_changed_in_the_users_hands() -> None:
    options = {"max_tokens": 5, "reasoning_effort": "none"}
    in_dialect(BY_NAME["deepseek"], options)
    assert options == {"max_tokens": 5, "reasoning_effort": "none"}


def test_a_role_that_the_provider_does_not_know() -> None:
    messages = [Message("developer", "be brief"), Message.user("hi")]
    assert [m["role"] for m in body("deepseek", messages)["messages"]] == ["system", "user"]  # type: ignore[index, attr-defined]
    assert [m["role"] for m in body("openai", messages)["messages"]] == ["developer", "user"]  # type: ignore[index, attr-defined]
    assert messages[0].role == "developer"


def test_novelai_takes_text_alone() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert body("novelai", [{"role": "user", "content": parts}])["messages"] == [{"role": "user", "content": "ab"}]
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(LLMCapabilityError, match=r"messages\[0\].content: novelai takes text only"):
        body("novelai", [{"role": "user", "content": [*parts, picture]}])
    with pytest.raises(LLMCapabilityError, match="tools: novelai ignores it") as caught:
        body("novelai", tools=[{"type": "function", "function": {"name": "f"}}])
    assert caught.value.provider == "novelai"
