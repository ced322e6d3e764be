"""Embeddings: their URL, their batches, their two formats, and that they are asked for as a chat call is."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMCapabilityError,
    LLMClosedError,
    LLMConfigurationError,
    LLMConnectionError,
    LLMContextLengthError,
    LLMError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMQuotaExceededError,
    LLMResponseError,
    LLMResponseTooLargeError,
    LLMTimeoutError,
    OpenAICompatibleLLM,
    RetryPolicy,
)
from jazz_llm.providers import PROVIDERS
from jazz_llm.request import prepare_embeddings
from jazz_llm.response.embeddings import EmbeddingsDecoder, embeddings_of
from jazz_llm.testing import FakeServer, Reply, Request

from .colours import Async, Sync
from .test_models import answering

Colour = Sync | Async


def embed(colour: Colour, llm: OpenAICompatibleLLM, texts: Any = "hi", **arguments: Any) -> list[list[float]]:
    return llm.embed(texts, **arguments) if isinstance(colour, Sync) else asyncio.run(llm.aembed(texts, **arguments))


def client(server: FakeServer, **arguments: Any) -> OpenAICompatibleLLM:
    return OpenAICompatibleLLM("m", "sk-12345", **{"base_url": server.url, "retry": RetryPolicy(initial=0.01), **arguments})


def data(*embeddings: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"object": "embedding", "index": i, "embedding": e} for i, e in enumerate(embeddings)]}


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


async def numbered(request: Request, reply: Reply) -> None:
    """Answer with each text, which is a number, last first, in the format that was asked for."""
    body = request.json()
    made = [[float(text), 0.5] for text in body["input"]]
    wire = [packed(*one) if body.get("encoding_format") == "base64" else one for one in made]
    await reply.json({"data": [{"index": i, "embedding": one} for i, one in reversed(list(enumerate(wire)))]})


def sizes(server: FakeServer) -> list[int]:
    return sorted((len(request.json()["input"]) for request in server.requests), reverse=True)


# --- where and how they are asked for ------------------------------------------------------------------------------

URLS = [
    ("http://localhost:8000", {}, "http://localhost:8000/v1/embeddings"),
    ("http://localhost/v1/", {}, "http://localhost/v1/embeddings"),
    ("http://localhost/v1/chat/completions", {}, "http://localhost/v1/embeddings"),
    ("http://localhost/some/prefix", {}, "http://localhost/some/prefix/v1/embeddings"),
    ("https://h/v1beta/openai", {}, "https://h/v1beta/openai/embeddings"),
    ("https://open.bigmodel.cn", {}, "https://open.bigmodel.cn/api/paas/v4/embeddings"),
    ("https://models.github.ai/inference", {}, "https://models.github.ai/inference/embeddings"),
    ("https://api.cloudflare.com/client/v4/accounts/a/ai/v1", {}, "https://api.cloudflare.com/client/v4/accounts/a/ai/v1/embeddings"),
    ("https://h.cloud.databricks.com", {}, "https://h.cloud.databricks.com/serving-endpoints/embeddings"),
    ("http://localhost", {"chat_endpoint": "/api/chat/completions"}, "http://localhost/api/embeddings"),
    ("http://localhost/v1", {"chat_endpoint": "/talk"}, "http://localhost/v1/embeddings"),
    ("http://localhost/api/chat", {"chat_endpoint": "/api/chat"}, "http://localhost/v1/embeddings"),
    ("http://localhost", {"default_query": {"api-version": "1 2"}}, "http://localhost/v1/embeddings?api-version=1+2"),
]


@pytest.mark.parametrize(("base_url", "arguments", "url"), URLS)
def test_the_url_follows_from_the_same_root(base_url: str, arguments: dict[str, Any], url: str) -> None:
    (call,) = prepare_embeddings(OpenAICompatibleLLM("m", "key", base_url, **arguments)._config, "hi")
    assert (call.method, call.url) == ("POST", url)


@pytest.mark.parametrize("http2", [False, "prior_knowledge"])
def test_the_request(colour: Colour, http2: Any) -> None:
    """What the instance adds to a chat's body is no business of this one."""
    arguments = {"temperature": 0.5, "extra_body": {"top_k": 5}, "default_headers": {"X-Team": "jazz"}, "default_query": {"a": "b"}}
    with FakeServer(numbered) as server, client(server, http2=http2, **arguments) as llm:
        assert embed(colour, llm, ["1", "2"]) == [[1.0, 0.5], [2.0, 0.5]]
    (request,) = server.requests
    assert (request.method, request.path, request.query) == ("POST", "/v1/embeddings", "a=b")
    assert request.json() == {"input": ["1", "2"], "model": "m"}
    assert (request.headers["authorization"], request.headers["x-team"]) == ("Bearer sk-12345", "jazz")
    assert (request.headers["accept"], request.headers["content-type"]) == ("application/json", "application/json")


def test_one_text_gives_a_list_of_one(colour: Colour) -> None:
    with FakeServer(numbered) as server, client(server) as llm:
        assert embed(colour, llm, "7") == embed(colour, llm, ("7",)) == embed(colour, llm, (text for text in "7")) == [[7.0, 0.5]]
    assert [request.json()["input"] for request in server.requests] == [["7"]] * 3


def test_the_arguments_go_into_the_body_and_extra_body_wins(colour: Colour) -> None:
    with FakeServer(numbered) as server, client(server) as llm:
        embed(colour, llm, "7", model="other", dimensions=256, extra_body={"input_type": "query", "dimensions": 2})
    assert server.requests[0].json() == {"input": ["7"], "model": "other", "dimensions": 2, "input_type": "query"}


def test_an_empty_text_is_the_models_to_refuse(colour: Colour) -> None:
    with FakeServer(answering(data([1.0], [2.0]))) as server, client(server) as llm:
        assert embed(colour, llm, ["", "a"]) == [[1.0], [2.0]]
    assert server.requests[0].json()["input"] == ["", "a"]


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no texts": ([], {}, "texts is empty"),
    "none": (None, {}, "texts must be text or a list of texts, not NoneType"),
    "bytes": (b"hi", {}, "not bytes"),
    "a mapping": ({"a": 1}, {}, "not dict"),
    "a number": (5, {}, "not int"),
    "tokens": ([[1, 2]], {}, r"texts\[0\] must be text, not list"),
    "one that is none": (["a", None], {}, r"texts\[1\] must be text, not NoneType"),
    "a lone surrogate": (["a", "b\ud800"], {}, r"texts\[1\] cannot be sent as JSON"),
    "no dimensions": ("a", {"dimensions": 0}, "dimensions must be a whole number"),
    "odd dimensions": ("a", {"dimensions": 1.5}, "dimensions must be a whole number"),
    "no batch": ("a", {"batch_size": 0}, "batch_size must be a whole number"),
    "true": ("a", {"batch_size": True}, "batch_size must be a whole number"),
    "no model": ("a", {"model": " "}, "model must be text"),
    "not JSON": ("a", {"extra_body": {"x": object()}}, r"extra_body\['x'\] cannot be sent as JSON"),
}


@pytest.mark.parametrize(("texts", "arguments", "words"), BAD.values(), ids=BAD)
def test_wrong_arguments_are_refused_before_anything_is_sent(colour: Colour, texts: Any, arguments: dict[str, Any], words: str) -> None:
    with FakeServer() as server, client(server) as llm:
        with pytest.raises(LLMInvalidRequestError, match=words):
            embed(colour, llm, texts, **arguments)
    assert not server.requests


def test_an_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="dimension"):
        OpenAICompatibleLLM("m", base_url="http://localhost").embed("a", dimension=5)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["anthropic", "perplexity"])
def test_a_provider_without_embeddings_is_not_asked(colour: Colour, name: str) -> None:
    with FakeServer() as server, client(server, provider=name) as llm:
        with pytest.raises(LLMCapabilityError, match=f"{name} has no embeddings"):
            embed(colour, llm)
    assert not server.requests


# --- batches -------------------------------------------------------------------------------------------------------


def test_many_texts_go_in_batches_and_come_back_in_order(colour: Colour) -> None:
    texts = [str(i) for i in range(1500)]
    with FakeServer(numbered) as server, client(server) as llm:
        assert embed(colour, llm, texts) == [[float(i), 0.5] for i in range(1500)]
    assert sizes(server) == [512, 512, 476]


LIMITS = {"openai": 2048, "azure": 2048, "vllm": 2048, "llamacpp": 2048, "mistral": 512, "gemini": 100, "cloudflare": 100, "cohere": 96, "dashscope": 10}


@pytest.mark.parametrize("name", LIMITS)
def test_as_many_as_the_provider_takes(name: str) -> None:
    config = OpenAICompatibleLLM("m", "k", "http://localhost", provider=name)._config
    most = LIMITS[name]
    assert [call.choices for call in prepare_embeddings(config, ["a"] * (2 * most + 1))] == [most, most, 1]
    assert [call.choices for call in prepare_embeddings(config, ["a"] * 5, batch_size=2)] == [2, 2, 1]


def test_no_request_is_larger_than_the_limit_but_one_of_one_text() -> None:
    config = OpenAICompatibleLLM("m", base_url="http://localhost")._config
    texts = ["a" * 2**20, "é" * (200 * 1024), "b" * (200 * 1024), "c" * 2**20, "d", "e" * (2**19 - 1), "f"]
    batches = [json.loads(call.body)["input"] for call in prepare_embeddings(config, texts)]
    assert [[text[0] for text in batch] for batch in batches] == [["a"], ["é"], ["b"], ["c"], ["d", "e"], ["f"]]


def test_mistral_counts_fewer_tokens() -> None:
    config = OpenAICompatibleLLM("m", "k", provider="mistral")._config
    assert [call.choices for call in prepare_embeddings(config, ["word " * 1000] * 10)] == [6, 4]


def test_the_sync_call_sends_one_after_the_other_and_the_async_one_eight_at_once(colour: Colour) -> None:
    running: list[int] = []
    now = 0

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal now
        now += 1
        running.append(now)
        await asyncio.sleep(0.02)  # while they could all come
        now -= 1
        await numbered(request, reply)

    with FakeServer(handler) as server, client(server) as llm:
        assert embed(colour, llm, [str(i) for i in range(20)], batch_size=1) == [[float(i), 0.5] for i in range(20)]
    assert max(running) == (1 if isinstance(colour, Sync) else 8)
    assert len(server.requests) == 20


def failing(first: Callable[[Request, Reply], Awaitable[None]]) -> Callable[[Request, Reply], Awaitable[None]]:
    """Make a handler that answers the text "0" so, and all others never."""

    async def handler(request: Request, reply: Reply) -> None:
        await (first if request.json()["input"] == ["0"] else silent)(request, reply)

    return handler


async def silent(_: Request, reply: Reply) -> None:
    await reply.cancelled()


def test_one_failure_is_the_calls_and_ends_the_rest_at_the_server(colour: Colour) -> None:
    async def refuse(_: Request, reply: Reply) -> None:
        if isinstance(colour, Async):
            await asyncio.to_thread(server.wait_for, lambda s: len(s.requests) == 8, 5.0)
        await reply.json({"error": {"message": "too long", "code": "context_length_exceeded"}}, status=400)

    with FakeServer(failing(refuse)) as server, client(server) as llm:
        with pytest.raises(LLMContextLengthError):
            embed(colour, llm, [str(i) for i in range(20)], batch_size=1)
        server.wait_for(lambda s: s.live == 0, 1.0)
    assert len(server.requests) == (1 if isinstance(colour, Sync) else 8)


def test_after_a_failure_no_task_is_left() -> None:
    async def refuse(_: Request, reply: Reply) -> None:
        await reply.json({}, status=400)

    async def main(server: FakeServer) -> None:
        async with client(server) as llm:
            with pytest.raises(LLMInvalidRequestError):
                await llm.aembed([str(i) for i in range(20)], batch_size=1)
            assert len(asyncio.all_tasks()) == 1
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 0, 1.0)

    with FakeServer(failing(refuse)) as server:
        asyncio.run(main(server))


def test_a_cancelled_task_ends_all_requests_at_the_server() -> None:
    async def main(server: FakeServer) -> None:
        async with client(server) as llm:
            task = asyncio.create_task(llm.aembed(["a"] * 20, batch_size=1))
            await asyncio.to_thread(server.wait_for, lambda s: len(s.requests) == 8, 5.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(asyncio.all_tasks()) == 1
            await asyncio.to_thread(server.wait_for, lambda s: s.live == 0, 1.0)

    with FakeServer(silent) as server:
        asyncio.run(main(server))
    assert len(server.requests) == 8


def test_the_deadline_is_for_all_batches_together(colour: Colour) -> None:
    """Each takes 0.1 s of it, of which in the async call eight go by at once."""

    async def slow(request: Request, reply: Reply) -> None:
        await asyncio.sleep(0.1)
        await numbered(request, reply)

    with FakeServer(slow) as server, client(server, deadline=0.25) as llm:
        began = time.monotonic()
        with pytest.raises(LLMTimeoutError) as caught:
            embed(colour, llm, ["1"] * 100, batch_size=1)
    assert caught.value.phase == "deadline"
    assert time.monotonic() - began < 2.0
    assert len(server.requests) <= (3 if isinstance(colour, Sync) else 24)


def test_without_a_loop_of_asyncio_the_async_call_says_so() -> None:
    call = OpenAICompatibleLLM("m", base_url="http://localhost").aembed(["a", "b"], batch_size=1)
    with pytest.raises(LLMConfigurationError, match="asyncio"):
        call.send(None)


# --- what comes ----------------------------------------------------------------------------------------------------

ASK_FOR_BASE64 = {"openai", "azure", "vllm", "llamacpp"}


@pytest.mark.parametrize("row", PROVIDERS, ids=lambda row: row.name)
def test_base64_is_asked_for_only_where_it_is_understood(row: Any) -> None:
    if row.embeddings is not None:
        (call,) = prepare_embeddings(OpenAICompatibleLLM("m", "k", "http://localhost", provider=row.name)._config, "a")
        expected = {"encoding_format": "base64"} if row.name in ASK_FOR_BASE64 else {}
        assert json.loads(call.body) == {"input": ["a"], "model": "m", **expected}


def test_base64_is_decoded_to_floats(colour: Colour) -> None:
    with FakeServer(numbered) as server, client(server, provider="openai") as llm:
        assert embed(colour, llm, ["1", "2"]) == [[1.0, 0.5], [2.0, 0.5]]
    assert server.requests[0].json()["encoding_format"] == "base64"


def test_whichever_format_comes_is_read() -> None:
    answer = data([1, 2.5, -3e-8], packed(1.0, 2.5, -0.1), [0], packed(0.0))
    found = embeddings_of(answer, 4)
    assert found == [[1.0, 2.5, -3e-8], [1.0, 2.5, struct.unpack("<f", struct.pack("<f", -0.1))[0]], [0.0], [0.0]]
    assert {type(number) for embedding in found for number in embedding} == {float}


INDEXES = {
    "in order": [0, 1, 2],
    "in another": [2, 0, 1],
    "Gemini leaves 0 out": [None, 1, 2],
    "left out everywhere": [None, None, None],
}


@pytest.mark.parametrize("indexes", INDEXES.values(), ids=INDEXES)
def test_the_order_is_that_of_the_texts(indexes: list[int | None]) -> None:
    entries = [{"embedding": [float(i if index is None else index)], "index": index} for i, index in enumerate(indexes)]
    without_null = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
    assert embeddings_of({"data": entries}, 3) == embeddings_of({"data": without_null}, 3) == [[0.0], [1.0], [2.0]]


def indexed(*indexes: Any) -> dict[str, Any]:
    return {"data": [{"embedding": [1.0], "index": index} for index in indexes]}


WRONG: dict[str, tuple[Any, str]] = {
    "no data": ({"object": "list"}, "it has no list 'data'"),
    "data is null": ({"data": None}, "it has no list 'data'"),
    "data is no list": ({"data": {"embedding": [1.0]}}, "it has no list 'data'"),
    "too few": (data([1.0]), "1 came for 2 texts"),
    "too many": (data([1.0], [1.0], [1.0]), "3 came for 2 texts"),
    "none": (data(), "0 came for 2 texts"),
    "an entry that is none": ({"data": [None, {"embedding": [1.0]}]}, r"data\[0\] is no object"),
    "twice the same": (indexed(1, 1), "index 1 is there twice"),
    "left out and twice": (indexed(1, None), "index 1 is there twice"),
    "one too far": (indexed(0, 2), r"data\[1\] has the index '2'"),
    "a negative one": (indexed(0, -1), r"data\[1\] has the index '-1'"),
    "a text": (indexed(0, "1"), r"data\[1\] has the index '1'"),
    "a boolean": (indexed(0, True), r"data\[1\] has the index 'True'"),
    "no embedding": ({"data": [{"index": 0}, {"index": 1}]}, "embedding 0 is no list of numbers"),
    "an empty one": (data([1.0], []), "embedding 1 is no list of numbers"),
    "texts in it": (data([1.0], ["1.0"]), "embedding 1 is no list of numbers"),
    "a boolean in it": (data([1.0], [1.0, True]), "embedding 1 is no list of numbers"),
    "null in it": (data([1.0], [None]), "embedding 1 is no list of numbers"),
    "one for each token": (data([[1.0], [2.0]], [[1.0]]), "embedding 0 is no list of numbers"),
    "an object": (data([1.0], {"float": [1.0]}), "embedding 1 is no list of numbers"),
    "NaN": (data([1.0], [1.0, float("nan")]), "embedding 1 holds NaN or an infinite number"),
    "infinity": (data([1.0], [float("inf")]), "embedding 1 holds NaN or an infinite number"),
    "infinity and its opposite": (data([1.0], [float("inf"), float("-inf")]), "embedding 1 holds NaN"),
    "a number beyond floats": (data([1.0], [10**400]), "embedding 1 holds a number that is too large"),
    "NaN in base64": (data([1.0], packed(1.0, float("nan"))), "embedding 1 holds NaN"),
    "7 bytes in base64": (data([1.0], base64.b64encode(b"1234567").decode()), "embedding 1 is not 32-bit floats in base64"),
    "cut base64": (data([1.0], packed(1.0)[:-1]), "embedding 1 is not 32-bit floats"),
    "more than base64": (data([1.0], "!" + packed(1.0)), "embedding 1 is not 32-bit floats"),
    "no base64": (data([1.0], "!!!!"), "embedding 1 is not 32-bit floats"),
    "no ASCII": (data([1.0], "é" * 8), "embedding 1 is not 32-bit floats"),
    "nothing in base64": (data([1.0], ""), "embedding 1 is not 32-bit floats"),
}


@pytest.mark.parametrize(("answer", "words"), WRONG.values(), ids=WRONG)
def test_what_is_not_what_was_asked_for_is_one_clear_error(colour: Colour, answer: Any, words: str) -> None:
    body = json.dumps(answer).encode()
    with FakeServer(answering(body, headers={"content-type": "application/json"})) as server, client(server) as llm:
        with pytest.raises(LLMResponseError, match="is not the embeddings that were asked for: " + words) as caught:
            embed(colour, llm, ["a", "b"])
    assert (len(server.requests), caught.value.retryable, caught.value.partial) == (1, False, None)


def test_finite_numbers_whose_sum_is_not_are_right() -> None:
    assert embeddings_of(data([1e308, 1e308]), 1) == [[1e308, 1e308]]


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"null", b"data: {}\n\n", b'{"data":[{"embedding":[1', b"[" * 100_000, b"<html><title>Login</title>"], ids=lambda body: repr(body[:20]))
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_what_is_no_json_is_one_clear_error(body: bytes, kind: str) -> None:
    decoder = EmbeddingsDecoder(streams=False)
    decoder.begin({"content-type": kind})
    decoder.feed(body)
    decoder.end()
    with pytest.raises(LLMResponseError, match="The answer is"):
        decoder.result()


def test_bytes_may_come_in_any_pieces() -> None:
    decoder = EmbeddingsDecoder(streams=False, choices=2)
    decoder.begin({})
    for byte in ("\ufeff \n" + json.dumps(data([1.0], packed(2.0)))).encode():
        assert decoder.feed(bytes([byte])) == []
    assert decoder.end() == []
    assert decoder.result().parsed == [[1.0], [2.0]]


# --- all that a chat call does -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [503, 500, 408, b"", b'{"data":['])
def test_what_may_pass_is_tried_again(colour: Colour, first: Any) -> None:
    with FakeServer(answering(first, data([1.0]))) as server, client(server) as llm:
        assert embed(colour, llm) == [[1.0]]
    assert len(server.requests) == 2


def test_only_the_batch_that_failed_is_sent_again(colour: Colour) -> None:
    failed = False

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal failed
        if request.json()["input"] == ["2"] and not failed:
            failed = True
            return await reply.json({}, status=503)
        await numbered(request, reply)

    with FakeServer(handler) as server, client(server) as llm:
        assert embed(colour, llm, ["0", "1", "2", "3"], batch_size=1) == [[float(i), 0.5] for i in range(4)]
    assert sorted(request.json()["input"][0] for request in server.requests) == ["0", "1", "2", "2", "3"]


def test_a_key_function_is_asked_once_per_attempt(colour: Colour) -> None:
    keys = iter(["sk-first", "sk-second"])
    with FakeServer(answering(503, data([1.0]))) as server, client(server) as llm, llm.with_options(api_key=lambda: next(keys)) as copy:
        assert embed(colour, copy) == [[1.0]]
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer sk-first", "Bearer sk-second"]


ERRORS: dict[str, tuple[Any, int, dict[str, str], type[LLMError]]] = {
    "401": ({"error": {"message": "no such key: sk-12345"}}, 401, {}, LLMAuthenticationError),
    "404": ({"detail": "Not Found"}, 404, {}, LLMNotFoundError),
    "too many texts": ({"error": {"message": "batch size is invalid, it should not be larger than 10"}}, 400, {}, LLMInvalidRequestError),
    "an empty account": ({"error": {"code": "insufficient_quota"}}, 429, {}, LLMQuotaExceededError),
    "a web page": (b"<html><title>Log in sk-12345</title></html>", 200, {"content-type": "text/html"}, LLMResponseError),
    "an error in a 200": ({"error": {"message": "bad key sk-12345", "code": "invalid_api_key"}}, 200, {}, LLMAuthenticationError),
    "the same in a list": ([{"error": {"message": "API key not valid", "code": 400}}], 200, {}, LLMAuthenticationError),
    "its index": ({"data": [{"index": "sk-12345", "embedding": [1.0]}]}, 200, {}, LLMResponseError),
}


@pytest.mark.parametrize(("body", "status", "headers", "error"), ERRORS.values(), ids=ERRORS)
def test_every_failure_is_typed(colour: Colour, body: Any, status: int, headers: dict[str, str], error: type[LLMError]) -> None:
    with FakeServer(answering(body, status=status, headers=headers)) as server, client(server) as llm:
        with pytest.raises(error) as caught:
            embed(colour, llm)
    assert (len(server.requests), caught.value.attempts, caught.value.partial) == (1, 1, None)
    assert "sk-12345" not in str(caught.value) + repr(vars(caught.value))


def test_no_connection(colour: Colour) -> None:
    with OpenAICompatibleLLM("m", base_url="http://127.0.0.1:1", retry=RetryPolicy(initial=0.01)) as llm:
        with pytest.raises(LLMConnectionError) as caught:
            embed(colour, llm)
    assert caught.value.attempts == 3


def test_gzip_and_its_bound(colour: Colour) -> None:
    body = gzip.compress(json.dumps(data([1.0]) | {"padding": " " * 100_000}).encode())
    with FakeServer(answering(body, headers={"content-encoding": "gzip"})) as server, client(server) as llm:
        assert embed(colour, llm) == [[1.0]]
        with pytest.raises(LLMResponseTooLargeError):
            embed(colour, llm.with_options(max_response_bytes=10_000))


@pytest.mark.parametrize(("arguments", "phase"), [({"timeout": 0.1}, "read"), ({"deadline": 0.1}, "deadline"), ({"timeout": 0.1, "first_token_timeout": 9.0}, "read")])
def test_an_answer_that_does_not_end_is_given_up_at_the_server_too(colour: Colour, arguments: dict[str, Any], phase: str) -> None:
    with FakeServer() as server, client(server, **arguments) as llm:
        server.break_off("stall", after="half")
        with pytest.raises(LLMTimeoutError) as caught:
            embed(colour, llm)
        server.wait_for(lambda s: s.live == 0, 1.0)
    assert (caught.value.phase, len(server.requests)) == (phase, 1)


def test_a_closed_client_asks_nothing(colour: Colour) -> None:
    with FakeServer() as server:
        llm = client(server)
        llm.close()
        with pytest.raises(LLMClosedError):
            embed(colour, llm)
    assert not server.requests


def test_closing_ends_a_call_that_waits(colour: Colour) -> None:
    with FakeServer(silent) as server:
        llm = client(server)
        at_once = 1 if isinstance(colour, Sync) else 3

        def close() -> None:
            server.wait_for(lambda s: len(s.requests) == at_once, 5.0)
            llm.close()

        closer = threading.Thread(target=close)
        closer.start()
        with pytest.raises(LLMClosedError):
            embed(colour, llm, ["a", "b", "c"], batch_size=1)
        closer.join()
        server.wait_for(lambda s: s.live == 0, 1.0)
    assert len(server.requests) == at_once


def test_the_mock_answers_chat_only(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["one"]')
    with FakeServer(numbered) as server, client(server) as llm:
        assert embed(colour, llm, "7") == [[7.0, 0.5]]
        assert colour.generate(llm).text == "one"


def test_a_transport_of_the_users_own(colour: Colour) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=data([float(len(request.url.path))])))
    llm = OpenAICompatibleLLM("m", base_url="http://localhost", transport=transport, async_transport=transport)
    assert embed(colour, llm) == [[float(len("/v1/embeddings"))]]


def test_a_missing_key_is_reported_by_the_call(colour: Colour) -> None:
    with OpenAICompatibleLLM("m") as llm, pytest.raises(LLMAuthenticationError, match="OPENAI_API_KEY"):
        embed(colour, llm)
