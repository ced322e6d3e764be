from __future__ import annotations

import ssl
from typing import Any

import httpx
import pytest

from jazz_llm import LLMConfigurationError, OpenAICompatibleLLM, RetryPolicy
from jazz_llm.config import is_loopback

URLS = [
    # a path that ends in /chat/completions is the URL
    ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
    ("http://h/x/chat/completions/", "http://h/x/chat/completions"),
    # a version segment anywhere
    ("http://h/v1", "http://h/v1/chat/completions"),
    ("http://h/v1/", "http://h/v1/chat/completions"),
    ("https://h/api/paas/v4", "https://h/api/paas/v4/chat/completions"),
    ("https://h/api/v3", "https://h/api/v3/chat/completions"),
    ("https://h/openai/v1", "https://h/openai/v1/chat/completions"),
    ("https://h/v1beta/openai", "https://h/v1beta/openai/chat/completions"),
    ("https://h/v1/projects/p/endpoints/openapi", "https://h/v1/projects/p/endpoints/openapi/chat/completions"),
    # a known host gets its registry path
    ("https://api.perplexity.ai", "https://api.perplexity.ai/chat/completions"),
    ("https://models.github.ai", "https://models.github.ai/inference/chat/completions"),
    ("https://models.github.ai/inference", "https://models.github.ai/inference/chat/completions"),
    ("https://api.openai.com", "https://api.openai.com/v1/chat/completions"),
    ("https://api.groq.com/", "https://api.groq.com/openai/v1/chat/completions"),
    ("https://API.DeepSeek.com", "https://api.deepseek.com/chat/completions"),
    # anything else gets chat_endpoint
    ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
    ("http://modelapi-service:8000", "http://modelapi-service:8000/v1/chat/completions"),
    ("http://h/some/prefix/", "http://h/some/prefix/v1/chat/completions"),
    ("http://[::1]:8080", "http://[::1]:8080/v1/chat/completions"),
]


def url_of(base_url: str, **arguments: Any) -> str:
    return OpenAICompatibleLLM("m", "key", base_url, **arguments)._config.url


@pytest.mark.filterwarnings("ignore:The key goes over plain http")
@pytest.mark.parametrize(("base_url", "url"), URLS)
def test_the_url_follows_from_the_base_url(base_url: str, url: str) -> None:
    assert url_of(base_url) == url


@pytest.mark.parametrize(
    ("base_url", "endpoint", "url"),
    [
        ("http://localhost", "/api/chat", "http://localhost/api/chat"),
        ("http://localhost/api/chat", "/api/chat", "http://localhost/api/chat"),
        ("http://localhost/v1", "/v1/talk", "http://localhost/v1/talk"),
        ("http://localhost/v1", "/talk", "http://localhost/v1/talk"),
        ("http://localhost/openai/v1", "/v1/talk", "http://localhost/openai/v1/talk"),
    ],
)
def test_a_chat_endpoint_of_the_user_takes_the_place_of_the_usual_one(base_url: str, endpoint: str, url: str) -> None:
    assert url_of(base_url, chat_endpoint=endpoint) == url


def test_default_query_is_added_encoded() -> None:
    assert url_of("http://localhost", default_query={"api-version": "1 2"}).endswith("?api-version=1+2")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "llm.localhost"])
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.evil.com", "10.0.0.1", "example.com", "128.0.0.1"])
def test_other_hosts(host: str) -> None:
    assert not is_loopback(host)


# --- keys


def key_of(**arguments: Any) -> Any:
    key = OpenAICompatibleLLM("m", **arguments)._config.api_key
    return key and key.reveal()


@pytest.fixture
def openai_key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    return "sk-openai"


def test_openai_gets_its_key(openai_key: str) -> None:
    assert key_of() == openai_key
    assert key_of(base_url="https://api.openai.com/v1") == openai_key
    assert key_of(provider="openai") == openai_key


def test_an_unknown_https_host_gets_openais_key(openai_key: str) -> None:
    assert key_of(base_url="https://llm.example.com") == openai_key


@pytest.mark.parametrize("base_url", ["http://llm.example.com", "http://localhost:8000", "https://api.groq.com", "https://x.openai.azure.com"])
def test_nobody_else_gets_openais_key(openai_key: str, base_url: str) -> None:
    assert key_of(base_url=base_url) is None


def test_openai_base_url_goes_with_openais_key(openai_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:9/v1")
    assert key_of() == openai_key
    monkeypatch.setenv("OPENAI_BASE_URL", "https://proxy.example.com/v1")
    assert key_of() == openai_key
    monkeypatch.setenv("OPENAI_BASE_URL", "http://proxy.example.com/v1")
    assert key_of() is None
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.groq.com")
    assert key_of() is None


def test_a_provider_gets_the_key_of_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk-1")
    assert key_of(base_url="https://api.groq.com") == "gsk-1"
    assert key_of(provider="groq") == "gsk-1"
    assert key_of(provider="Groq", api_key="mine") == "mine"


def test_a_key_over_plain_http_to_a_strange_host_warns_once() -> None:
    with pytest.warns(UserWarning, match="plain http to llm.example.com") as caught:
        key_of(api_key="sk-secret", base_url="http://llm.example.com")
    assert len(caught) == 1
    assert "sk-secret" not in str(caught[0].message)
    assert caught[0].filename == __file__
    assert caught[0].lineno == key_of.__code__.co_firstlineno + 1


def test_no_verification_warns() -> None:
    with pytest.warns(UserWarning, match="verify=False"):
        key_of(base_url="https://localhost", verify=False)


# --- bad arguments

BAD: list[tuple[str, Any]] = [
    *(("model", value) for value in ("", " ", None, 5, b"m")),
    *(("api_key", value) for value in ("", " sk ", "sk\n", "sk\r\nX: 1", "s\0k", "é", "k" * 100_000, b"sk", 5)),
    *(("base_url", value) for value in ("", "localhost:8000", "file:///etc/passwd", "ftp://h", "http://", "//h", b"http://h", 5)),
    *(("base_url", f"http://{rest}") for rest in ("u:p@h", "u@h", "h?x=1", "h#f", "h:0", "h:99999", "h:x", "[::1", "h h", "h\n", "h\\x", "%00")),
    *(("chat_endpoint", value) for value in ("http://evil/x", "//evil", "/../x", "/a/./b", "x", "", "/x?y", "/x#y", "/x y", None)),
    *(("timeout", value) for value in (0, -1, float("nan"), float("inf"), True, "1", 10**400, 1e12)),
    *((name, value) for name in ("first_token_timeout", "deadline") for value in (0, -1, float("nan"), True, "1")),
    *(("max_retries", value) for value in (-1, 10**9, True, 1.5, "2", None)),
    *(("temperature", value) for value in (float("nan"), float("inf"), "1", True, -1, 10**400)),
    *(("top_p", value) for value in (2, -0.1, "1")),
    *(("max_tokens", value) for value in (0, -1, 1.5, "5", True)),
    *(("seed", value) for value in (1.5, "1", 2**64)),
    *(("stop", value) for value in (5, [1], {"a": 1}, b"x")),
    *(("http2", value) for value in (None, 1, "yes")),
    *(("limits", value) for value in (5, "many", httpx.Limits(max_connections=-1), httpx.Limits(max_connections=0))),
    *(("verify", value) for value in (None, 1, "/no/such/file")),
    *(("cert", value) for value in (5, (), (1, 2), ["a"], "/no/such.pem")),
    *(("proxy", value) for value in ("", "localhost:3128", "ftp://p", 5, "http://host:99999", "http://")),
    *((name, value) for name in ("max_response_bytes", "max_event_bytes") for value in (0, -1, 1.5, True)),
    *(("default_headers", value) for value in (5, {"a b": "c"}, {"a": "b\r\nc: d"}, {"a": "\0"}, {"": "x"}, {"a": 5}, {5: "a"}, {"Host": "x"})),
    *(("default_query", value) for value in (5, "a=b", {"a": "\ud800"}, {"a": None}, {"a": ["x"]})),
    *(("provider", value) for value in ("nonsense", 5)),
    *((name, value) for name in ("chat_template_kwargs", "extra_body") for value in (5, [1], {5: 1})),
    *((name, object()) for name in ("transport", "async_transport")),
    *(("trust_env", value) for value in (None, 1)),
    *(("retry", value) for value in (5, "never")),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:40])
def test_a_bad_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(LLMConfigurationError) as caught:
        OpenAICompatibleLLM(**{"model": "m", "base_url": "http://localhost", name: value})
    assert isinstance(caught.value, ValueError)
    assert name in str(caught.value)
    if name == "api_key" and isinstance(value, str) and value.strip():
        assert value not in str(caught.value)


def test_a_timeout_of_httpx_is_taken_apart() -> None:
    llm = OpenAICompatibleLLM("m", "k", timeout=httpx.Timeout(1, connect=2, read=None))
    times = llm._config.timeouts
    assert (times.connect, times.pool, times.write, times.read) == (2.0, 1.0, 1.0, None)
    with pytest.raises(LLMConfigurationError, match=r"timeout\.read"):
        OpenAICompatibleLLM("m", "k", timeout=httpx.Timeout(1, read=-1))


@pytest.mark.parametrize("field", ["initial", "maximum", "jitter", "max_retry_after"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1"])
def test_a_bad_retry_policy_is_refused(field: str, value: Any) -> None:
    with pytest.raises(LLMConfigurationError, match="RetryPolicy"):
        RetryPolicy(**{field: value})


@pytest.mark.parametrize("change", [{"statuses": 429}, {"statuses": "ab"}, {"ambiguous": "no"}, {"budget": 3}], ids=repr)
def test_the_other_fields_of_a_retry_policy_are_checked_too(change: dict[str, Any]) -> None:
    with pytest.raises(LLMConfigurationError, match=next(iter(change))):
        RetryPolicy(**change)


def test_a_copy_does_not_warn_again() -> None:
    with pytest.warns(UserWarning, match="plain http"):
        llm = OpenAICompatibleLLM("m", "sk-1", "http://llm.example.com")
    llm.with_options(temperature=0.5)  # a warning is an error here


def test_an_unknown_provider_gets_a_hint() -> None:
    with pytest.raises(LLMConfigurationError, match=r"Did you mean 'groq'"):
        OpenAICompatibleLLM("m", provider="grok")


def test_a_templated_provider_says_what_to_fill_in() -> None:
    with pytest.raises(LLMConfigurationError, match=r"\{resource\}"):
        OpenAICompatibleLLM("m", provider="azure")


def test_construction_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("construction must not do this")

    monkeypatch.setattr(ssl.SSLContext, "__new__", forbidden)
    monkeypatch.setattr("socket.socket", forbidden)
    monkeypatch.setattr("asyncio.new_event_loop", forbidden)
    OpenAICompatibleLLM("m", "key").close()
