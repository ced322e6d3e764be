"""The list of models: its URL, its shapes, and that it is asked for as a chat call is."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMCapabilityError,
    LLMClosedError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMError,
    LLMNotFoundError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMResponseError,
    LLMResponseTooLargeError,
    LLMTimeoutError,
    ModelInfo,
    OpenAICompatibleLLM,
    RetryPolicy,
)
from jazz_llm.response.models import ModelsDecoder, models_of
from jazz_llm.testing import FakeServer, Reply, Request

from .colours import Async, Sync

Colour = Sync | Async
LIST = {"object": "list", "data": [{"id": "a", "object": "model", "created": 1700000000, "owned_by": "jazz"}, {"id": "b"}]}


def models(colour: Colour, llm: OpenAICompatibleLLM) -> list[ModelInfo]:
    return llm.list_models() if isinstance(colour, Sync) else asyncio.run(llm.alist_models())


def client(server: FakeServer, **arguments: Any) -> OpenAICompatibleLLM:
    return OpenAICompatibleLLM("m", "sk-12345", **{"base_url": server.url, "retry": RetryPolicy(initial=0.01), **arguments})


def answering(*bodies: Any, status: int = 200, headers: dict[str, str] | None = None) -> Callable[[Request, Reply], Any]:
    """Make a handler that answers with one body after the other, and with the last one for ever; an int is a bare status."""
    left = list(bodies)

    async def handler(_: Request, reply: Reply) -> None:
        body = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(body, int):
            await reply.json({}, status=body)
        elif isinstance(body, bytes):
            await reply.start(status, {"content-length": str(len(body)), **(headers or {})})
            await reply.send(body)
            await reply.end()
        else:
            await reply.json(body, status=status, headers=headers)

    return handler


# --- where it is asked for ---------------------------------------------------------------------------------------

URLS = [
    ("http://localhost:8000", {}, "http://localhost:8000/v1/models"),
    ("http://localhost/v1/", {}, "http://localhost/v1/models"),
    ("http://localhost/v1/chat/completions", {}, "http://localhost/v1/models"),
    ("http://localhost/some/prefix", {}, "http://localhost/some/prefix/v1/models"),
    ("https://h/v1beta/openai", {}, "https://h/v1beta/openai/models"),
    ("https://api.groq.com", {}, "https://api.groq.com/openai/v1/models"),
    ("https://api.deepseek.com", {}, "https://api.deepseek.com/models"),
    ("https://api.perplexity.ai/", {}, None),
    ("https://text.novelai.net", {}, None),
    ("https://h.cloud.databricks.com", {}, "https://h.cloud.databricks.com/api/2.0/serving-endpoints"),
    # where the registry says
    ("https://models.github.ai", {}, "https://models.github.ai/catalog/models"),
    ("https://models.github.ai/inference", {}, "https://models.github.ai/catalog/models"),
    ("https://api.cloudflare.com/client/v4/accounts/a/ai/v1", {}, "https://api.cloudflare.com/client/v4/accounts/a/ai/models/search"),
    ("http://localhost/x/ai/v1", {"provider": "cloudflare"}, "http://localhost/x/ai/models/search"),
    ("http://localhost", {"provider": "cloudflare"}, "http://localhost/models/search"),
    # the user's own endpoint
    ("http://localhost", {"chat_endpoint": "/api/chat/completions"}, "http://localhost/api/models"),
    ("http://localhost/v1", {"chat_endpoint": "/talk"}, "http://localhost/v1/models"),
    ("http://localhost/v1", {"chat_endpoint": "/v1/talk"}, "http://localhost/v1/models"),
    ("http://localhost/v1/talk/", {"chat_endpoint": "/talk"}, "http://localhost/v1/models"),
    ("http://localhost", {"chat_endpoint": "/api/chat"}, "http://localhost/v1/models"),
    ("http://localhost/api/chat", {"chat_endpoint": "/api/chat"}, "http://localhost/v1/models"),
    # the query goes along
    ("http://localhost", {"default_query": {"api-version": "1 2"}}, "http://localhost/v1/models?api-version=1+2"),
]


@pytest.mark.parametrize(("base_url", "arguments", "url"), URLS)
def test_the_url_follows_from_the_same_root(base_url: str, arguments: dict[str, Any], url: str) -> None:
    assert OpenAICompatibleLLM("m", "key", base_url, **arguments)._config.models_url == url


def test_a_copy_asks_where_it_belongs() -> None:
    llm = OpenAICompatibleLLM("m", base_url="http://localhost")
    assert llm.with_options(base_url="http://localhost/v4")._config.models_url == "http://localhost/v4/models"


# --- what comes ----------------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[Any, list[str]]] = {
    "OpenAI": (LIST, ["a", "b"]),
    "a bare list": ([{"id": "together/a", "context_length": 5}], ["together/a"]),
    "Ollama's own": ({"models": [{"name": "llama3:8b", "model": "llama3:8b", "size": 1}]}, ["llama3:8b"]),
    "Cohere's own": ({"models": [{"name": "command-a"}], "next_page_token": "x"}, ["command-a"]),
    "Gemini's own": ({"models": [{"name": "models/gemini-3", "displayName": "Gemini 3"}]}, ["gemini-3"]),
    "Gemini's OpenAI": ({"object": "list", "data": [{"id": "models/gemini-3"}]}, ["gemini-3"]),
    "Cloudflare": ({"result": [{"id": "0a1b-uuid", "name": "@cf/meta/llama"}], "success": True, "errors": []}, ["@cf/meta/llama"]),
    "llama.cpp": ({"models": [{"name": "other"}], "object": "list", "data": [{"id": "tiny"}]}, ["tiny"]),
    "GitHub": ([{"id": "openai/gpt-4.1", "name": "OpenAI GPT-4.1"}], ["openai/gpt-4.1"]),
    "texts": (["a", "b"], ["a", "b"]),
    "texts in an object": ({"models": ["a"]}, ["a"]),
    "every name": ([{"id": "1"}, {"name": "2"}, {"model": "3"}, {"slug": "4"}], ["1", "2", "3", "4"]),
    "twice the same": ({"data": [{"id": "a", "created": 1}, {"id": "b"}, {"id": "a"}, {"id": "models/b"}]}, ["a", "b"]),
    "entries that are none": ({"data": [None, 5, [], {}, "", {"id": ""}, {"id": 5}, {"id": None, "name": "a"}]}, ["a"]),
    "an empty object": ({}, []),
    "an empty list": ([], []),
    "an empty data": ({"object": "list", "data": []}, []),
    "a nil slice of Go": ({"object": "list", "data": None}, []),
    "proto3 leaves an empty list out": ({"object": "list"}, []),
    "no error": ({"error": None, "data": [{"id": "a"}]}, ["a"]),
    "models where data is none": ({"data": None, "models": [{"name": "a"}]}, ["a"]),
}


@pytest.mark.parametrize(("answer", "ids"), SHAPES.values(), ids=SHAPES)
def test_every_shape(answer: Any, ids: list[str]) -> None:
    found = models_of(answer)
    assert found is not None
    assert [model.id for model in found] == ids


NO_LISTS = [{"foo": 1}, {"data": {"id": "a"}}, {"data": "a"}, {"data": 0, "models": None}, {"id": "a"}, {"data": [5, {"x": "a"}]}, [None], "a", 5, None, True]


@pytest.mark.parametrize("answer", NO_LISTS, ids=repr)
def test_what_is_no_list_of_models(answer: Any) -> None:
    assert models_of(answer) is None


CONTEXTS = [
    {"context_length": 8192},
    {"max_model_len": 8192},
    {"context_window": 8192},
    {"max_context_length": 8192},
    {"max_input_tokens": 8192},
    {"limits": {"max_input_tokens": 8192}},
    {"inputTokenLimit": 8192},
    {"top_provider": {"context_length": 8192}},
    {"meta": {"n_ctx_train": 8192}},
    {"meta": {"n_ctx_train": 131072, "n_ctx": 8192}},
    {"context_length": None, "top_provider": None, "max_model_len": 8192.0},
    {"context_length": 0, "max_model_len": "8192", "context_window": True, "max_context_length": 8192},
    {"context_length": float("nan"), "max_model_len": float("inf"), "context_window": -1, "max_context_length": 1.5, "meta": {"n_ctx": 8192}},
]


@pytest.mark.parametrize("fields", CONTEXTS, ids=repr)
def test_the_length_of_the_context(fields: dict[str, Any]) -> None:
    assert models_of([{"id": "a", **fields}]) == [ModelInfo("a", context_length=8192, raw={"id": "a", **fields})]


def test_what_is_known_of_a_model() -> None:
    (model,) = models_of([{"id": "a", "created": 1700000000, "owned_by": "jazz", "root": "r"}]) or []
    assert (model.id, model.created, model.owned_by, model.context_length, model.raw["root"]) == ("a", 1700000000, "jazz", None, "r")
    (odd,) = models_of([{"id": "a", "created": "2025-01-01T00:00:00Z", "owned_by": {"x": 1}, "meta": 5}]) or []
    assert (odd.created, odd.owned_by, odd.context_length) == (None, None, None)
    assert len({model, model}) == 1


@pytest.mark.parametrize("answer", [json.dumps(LIST), "\ufeff \n" + json.dumps(LIST), '{"data":[{"id":"a","x":NaN},{"id":"b"}]}'])
def test_bytes_may_come_in_any_pieces(answer: str) -> None:
    decoder = ModelsDecoder(streams=False)
    decoder.begin({})
    for byte in answer.encode():
        assert decoder.feed(bytes([byte])) == []
    assert decoder.end() == []
    assert [model.id for model in decoder.result().parsed or []] == ["a", "b"]


NO_JSON = [b"", b" \n", b"nonsense", b"data: {}\n\n", b"data: [DONE]\n\n", b'{"data":[{"id":"a"}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000, b"null", b'"a"', b"<html><title>Login</title>"]


@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: repr(body[:20]))
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_what_is_no_json_is_one_clear_error(body: bytes, kind: str) -> None:
    decoder = ModelsDecoder(streams=False)
    decoder.begin({"content-type": kind})
    decoder.feed(body)
    decoder.end()
    with pytest.raises(LLMResponseError, match="The answer is"):
        decoder.result()


# --- how it is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, "prior_knowledge"])
def test_the_request(colour: Colour, http2: Any) -> None:
    with FakeServer() as server, client(server, http2=http2, default_headers={"X-Team": "jazz"}, default_query={"a": "b"}) as llm:
        (model,) = models(colour, llm)
        assert models(colour, llm) == [model]
    request = server.requests[0]
    assert (model.id, model.owned_by, model.created) == ("fake-model", "jazz", 0)
    assert (request.method, request.path, request.query, request.body) == ("GET", "/v1/models", "a=b", b"")
    assert (request.headers["authorization"], request.headers["x-team"]) == ("Bearer sk-12345", "jazz")
    assert request.headers["accept"] == "application/json"
    assert not {"content-type", "content-length", "transfer-encoding"} & request.headers.keys()


def test_chat_calls_before_and_after_keep_their_own_headers(colour: Colour) -> None:
    with FakeServer() as server, client(server) as llm:
        models(colour, llm)
        colour.generate(llm)
        models(colour, llm)
    assert [request.headers.get("content-type") for request in server.requests] == [None, "application/json", None]


def test_the_key_goes_into_the_providers_own_header(colour: Colour) -> None:
    with FakeServer() as server, client(server, provider="azure", base_url=server.url + "/openai/v1") as llm:
        assert models(colour, llm)
    assert (server.requests[0].path, server.requests[0].headers["api-key"]) == ("/openai/v1/models", "sk-12345")
    assert "authorization" not in server.requests[0].headers


def test_a_key_function_is_asked_once_per_attempt(colour: Colour) -> None:
    keys = iter(["sk-first", "sk-second"])
    with FakeServer(answering(503, LIST)) as server, client(server) as llm, llm.with_options(api_key=lambda: next(keys)) as copy:
        assert [model.id for model in models(colour, copy)] == ["a", "b"]
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer sk-first", "Bearer sk-second"]


@pytest.mark.parametrize("first", [503, 500, 408, b"", b'{"data":['])
def test_what_may_pass_is_tried_again(colour: Colour, first: Any) -> None:
    with FakeServer(answering(first, LIST)) as server, client(server) as llm:
        assert [model.id for model in models(colour, llm)] == ["a", "b"]
    assert len(server.requests) == 2


def test_a_connection_lost_before_the_answer_is_tried_again(colour: Colour) -> None:
    with FakeServer(answering(LIST)) as server, client(server) as llm:
        server.break_off("reset")
        assert len(models(colour, llm)) == 2
    assert len(server.requests) == 2


ERRORS: dict[str, tuple[Any, int, dict[str, str], type[LLMError]]] = {
    "401": ({"error": {"message": "no such key: sk-12345"}}, 401, {}, LLMAuthenticationError),
    "404": ({"detail": "Not Found"}, 404, {}, LLMNotFoundError),
    "an empty account": ({"error": {"code": "insufficient_quota"}}, 429, {}, LLMQuotaExceededError),
    "a wait that is too long": ({}, 429, {"retry-after": "3600"}, LLMRateLimitError),
    "a redirect": ({}, 302, {"location": "http://elsewhere.example/login"}, LLMResponseError),
    "a web page": (b"<html><title>Log in sk-12345</title></html>", 200, {"content-type": "text/html"}, LLMResponseError),
    "something else": ({"foo": "sk-12345"}, 200, {}, LLMResponseError),
    "an error in a 200": ({"error": {"message": "bad key sk-12345", "code": "invalid_api_key"}}, 200, {}, LLMAuthenticationError),
    "the same in a list": ([{"error": {"message": "API key not valid", "code": 400}}], 200, {}, LLMAuthenticationError),
    "Cloudflare's": ({"result": [], "success": False, "errors": [{"code": 401, "message": "Incorrect API key"}]}, 200, {}, LLMAuthenticationError),
    "an unknown coding": (b"x", 200, {"content-encoding": "br"}, LLMResponseError),
}


@pytest.mark.parametrize(("body", "status", "headers", "error"), ERRORS.values(), ids=ERRORS)
def test_every_failure_is_typed(colour: Colour, body: Any, status: int, headers: dict[str, str], error: type[LLMError]) -> None:
    with FakeServer(answering(body, status=status, headers=headers)) as server, client(server) as llm:
        with pytest.raises(error) as caught:
            models(colour, llm)
    assert (len(server.requests), caught.value.attempts, caught.value.partial) == (1, 1, None)
    assert "sk-12345" not in str(caught.value) + repr(vars(caught.value))


def test_no_connection(colour: Colour) -> None:
    with OpenAICompatibleLLM("m", base_url="http://127.0.0.1:1", retry=RetryPolicy(initial=0.01)) as llm:
        with pytest.raises(LLMConnectionError) as caught:
            models(colour, llm)
    assert caught.value.attempts == 3


def test_gzip_and_its_bound(colour: Colour) -> None:
    body = gzip.compress(json.dumps(LIST | {"padding": " " * 100_000}).encode())
    with FakeServer(answering(body, headers={"content-encoding": "gzip"})) as server, client(server) as llm:
        assert len(models(colour, llm)) == 2
        with pytest.raises(LLMResponseTooLargeError):
            models(colour, llm.with_options(max_response_bytes=10_000))


@pytest.mark.parametrize(("arguments", "phase"), [({"timeout": 0.1}, "read"), ({"deadline": 0.1}, "deadline"), ({"timeout": 0.1, "first_token_timeout": 9.0}, "read")])
def test_an_answer_that_does_not_end_is_given_up_at_the_server_too(colour: Colour, arguments: dict[str, Any], phase: str) -> None:
    with FakeServer() as server, client(server, **arguments) as llm:
        server.break_off("stall", after="half")
        with pytest.raises(LLMTimeoutError) as caught:
            models(colour, llm)
        server.wait_for(lambda s: s.live == 0, 1.0)
    assert (caught.value.phase, len(server.requests)) == (phase, 1)


def test_a_closed_client_asks_nothing(colour: Colour) -> None:
    with FakeServer() as server:
        llm = client(server)
        llm.close()
        with pytest.raises(LLMClosedError):
            models(colour, llm)
    assert not server.requests


async def silent(_: Request, reply: Reply) -> None:
    await reply.cancelled()


def test_closing_ends_a_call_that_waits(colour: Colour) -> None:
    with FakeServer(silent) as server:
        llm = client(server)

        def close() -> None:
            server.wait_for(lambda s: len(s.requests) == 1, 5.0)
            llm.close()

        closer = threading.Thread(target=close)
        closer.start()
        with pytest.raises(LLMClosedError):
            models(colour, llm)
        closer.join()
        server.wait_for(lambda s: s.live == 0, 1.0)


def test_a_cancelled_task_ends_the_request_at_the_server() -> None:
    async def main(server: FakeServer) -> None:
        async with client(server) as llm:
            task = asyncio.create_task(llm.alist_models())
            await asyncio.to_thread(server.wait_for, lambda s: len(s.requests) == 1, 5.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 0, 1.0)

    with FakeServer(silent) as server:
        asyncio.run(main(server))


def test_the_mock_answers_chat_only(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["one"]')
    with FakeServer() as server, client(server) as llm:
        assert [model.id for model in models(colour, llm)] == ["fake-model"]
        assert colour.generate(llm).text == "one"


def test_a_transport_of_the_users_own(colour: Colour) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=[f"{request.method} {request.url}"]))
    llm = OpenAICompatibleLLM("m", base_url="http://localhost", transport=transport, async_transport=transport)
    assert [model.id for model in models(colour, llm)] == ["GET http://localhost/v1/models"]


def test_a_missing_key_is_reported_by_the_call(colour: Colour) -> None:
    with OpenAICompatibleLLM("m") as llm, pytest.raises(LLMAuthenticationError, match="OPENAI_API_KEY"):
        models(colour, llm)


# --- from_provider -------------------------------------------------------------------------------------------------


def test_an_instance_from_a_providers_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk-1")
    llm = OpenAICompatibleLLM.from_provider("groq", "llama", temperature=0.5)
    assert (llm._config.url, llm._config.model, llm._config.sampling) == ("https://api.groq.com/openai/v1/chat/completions", "llama", {"temperature": 0.5})
    assert llm._config.api_key is not None
    assert llm._config.provider_name == "groq"


def test_it_takes_all_that_the_constructor_does_and_makes_its_own_class() -> None:
    class Mine(OpenAICompatibleLLM):
        pass

    llm = Mine.from_provider("vllm", "m", api_key="k", base_url="http://localhost:1", chat_endpoint="/talk")
    assert isinstance(llm, Mine)
    assert (llm._config.url, llm._config.provider_name) == ("http://localhost:1/talk", "vllm")


@pytest.mark.parametrize(("name", "words"), [("grok", "Did you mean 'groq'"), ("", "Known: openai"), (None, "Known: openai"), (5, "registry")])
def test_a_name_that_nobody_knows(name: Any, words: str) -> None:
    with pytest.raises(LLMConfigurationError, match=words):
        OpenAICompatibleLLM.from_provider(name, "m")


def test_one_name_is_enough() -> None:
    with pytest.raises(TypeError, match="provider"):
        OpenAICompatibleLLM.from_provider("groq", "m", provider="openai")
    with pytest.raises(TypeError, match="temprature"):
        OpenAICompatibleLLM.from_provider("groq", "m", temprature=1)


@pytest.mark.parametrize("provider", ["perplexity", "novelai"])
def test_a_provider_without_a_list_is_not_asked(provider: str, colour: Colour) -> None:
    with FakeServer() as server, OpenAICompatibleLLM("m", "k", server.url, provider=provider) as llm:
        with pytest.raises(LLMCapabilityError, match=f"{provider} has no list of models"):
            models(colour, llm)
        assert not server.requests
