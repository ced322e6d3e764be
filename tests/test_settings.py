"""``from_env``, ``from_yaml``, ``to_dict`` and ``to_yaml``; what the settings then do is the business of other tests."""

from __future__ import annotations

import builtins
import copy
import inspect
import json
import os
import pickle
import ssl
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from jazz_llm import LLMAuthenticationError, LLMCapabilityError, LLMConfigurationError, OpenAICompatibleLLM, RetryPolicy
from jazz_llm.settings.fields import FIELDS, LIVE
from jazz_llm.testing import FakeServer

from .colours import Async, Sync

KEY = "sk-canary-4f1d"
Env = Callable[..., None]
File = Callable[..., str]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Env:
    """Return a function that sets variables, under the usual prefix unless they are given with a whole name."""

    def put(whole: dict[str, str] | None = None, /, **variables: str) -> None:
        for name, value in {**(whole or {}), **{f"JAZZ_LLM__{name}": value for name, value in variables.items()}}.items():
            monkeypatch.setenv(name, value)

    put(MODEL="m")
    return put


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Return a function that writes a file of settings."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "llm.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def made(**arguments: Any) -> Any:
    return OpenAICompatibleLLM.from_env(**arguments)._config


def loaded(path: str, section: str | None = None, **arguments: Any) -> Any:
    return OpenAICompatibleLLM.from_yaml(path, section, **arguments)._config


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(LLMConfigurationError) as caught:
        make()
    assert type(caught.value) is LLMConfigurationError
    return str(caught.value)


# --- every field

# What a variable says, what YAML says of the same, and where to find it.
EACH: dict[str, tuple[str, str, Callable[[Any], Any], Any]] = {
    "model": ("4", "4", lambda c: c.model, "4"),
    "api_key": ("0123", "0123", lambda c: c.api_key.reveal(), "0123"),
    "base_url": ("http://localhost:9", "http://localhost:9", lambda c: c.url, "http://localhost:9/v1/chat/completions"),
    "chat_endpoint": ("/talk", "/talk", lambda c: c.url, "https://api.openai.com/v1/talk"),
    "temperature": (".5", "0.5", lambda c: c.sampling["temperature"], 0.5),
    "max_tokens": ("7", "7", lambda c: c.sampling["max_tokens"], 7),
    "top_p": ("1", "1", lambda c: c.sampling["top_p"], 1),
    "stop": ('["a", "4"]', '["a", "4"]', lambda c: c.sampling["stop"], ["a", "4"]),
    "seed": ("-3", "-3", lambda c: c.sampling["seed"], -3),
    "timeout": ("2.5", "2.5", lambda c: (c.timeouts.connect, c.timeouts.read), (2.5, 2.5)),
    "first_token_timeout": ("3", "3", lambda c: c.timeouts.first_token, 3),
    "deadline": ("none", "null", lambda c: c.timeouts.deadline, None),
    "max_retries": ("0", "0", lambda c: c.max_retries, 0),
    "retry": ('{"initial": 1}', "{initial: 1}", lambda c: c.retry, RetryPolicy(initial=1)),
    "http2": ("prior_knowledge", "prior_knowledge", lambda c: c.http2, "prior_knowledge"),
    "limits": ('{"max_connections": 5}', "{max_connections: 5}", lambda c: c.limits, httpx.Limits(max_connections=5, max_keepalive_connections=100, keepalive_expiry=4.0)),
    "verify": ("/", "/", lambda c: c.verify, "/"),
    "cert": (f'["{__file__}", "{__file__}"]', f"[{__file__}, {__file__}]", lambda c: c.cert, (__file__, __file__)),
    "proxy": ("http://p:3128", "http://p:3128", lambda c: c.proxy, "http://p:3128"),
    "trust_env": ("No", "no", lambda c: c.trust_env, False),
    "max_response_bytes": ("1000", "1000", lambda c: c.max_response_bytes, 1000),
    "max_event_bytes": ("null", "~", lambda c: c.max_event_bytes, None),
    "default_headers": ('{"X-A": "1"}', "{X-A: 1}", lambda c: c.default_headers, {"X-A": "1"}),
    "default_query": ('{"api-version": "2024-10-21"}', "{api-version: 2024-10-21}", lambda c: c.url, "https://api.openai.com/v1/chat/completions?api-version=2024-10-21"),
    "provider": ("groq", "groq", lambda c: c.provider_name, "groq"),
    "chat_template_kwargs": ('{"enable_thinking": false}', "{enable_thinking: false}", lambda c: c.chat_template_kwargs, {"enable_thinking": False}),
    "extra_body": ('{"top_k": [1, {"a": null}]}', "{top_k: [1, {a: null}]}", lambda c: c.extra_body, {"top_k": [1, {"a": None}]}),
    "stream_enabled": ("off", "off", lambda c: c.streams, False),
}


def test_every_argument_of_the_constructor_can_be_said() -> None:
    arguments = set(inspect.signature(OpenAICompatibleLLM).parameters)
    assert set(FIELDS) == (arguments - set(LIVE)) | {"stream_enabled"} == set(EACH)
    assert set(LIVE) <= arguments


@pytest.mark.parametrize("name", EACH)
def test_each_from_a_variable(env: Env, name: str) -> None:
    words, _, found, value = EACH[name]
    env(**{name.upper(): words})
    assert found(made()) == value


@pytest.mark.parametrize("name", EACH)
def test_each_from_yaml(file: File, name: str) -> None:
    _, words, found, value = EACH[name]
    model = "" if name == "model" else "model: m\n"
    assert found(loaded(file(f"{model}{name}: {words}"))) == value


@pytest.mark.parametrize("name", EACH)
def test_each_from_a_variable_in_yaml(file: File, env: Env, name: str) -> None:
    words, _, found, value = EACH[name]
    env({"VALUE": words, "JAZZ_LLM__MODEL": ""})
    model = "" if name == "model" else "model: m\n"
    assert found(loaded(file(f"{model}{name}: ${{VALUE}}"))) == value


# --- the environment


@pytest.mark.parametrize(
    ("variable", "words", "found", "value"),
    [
        ("CHAT_TEMPLATE_KWARGS__ENABLE_THINKING", "false", lambda c: c.chat_template_kwargs, {"enable_thinking": False}),
        ("EXTRA_BODY__PROVIDER__ORDER", '["a"]', lambda c: c.extra_body, {"provider": {"order": ["a"]}}),
        ("EXTRA_BODY__topK", "4", lambda c: c.extra_body, {"top_k": 4} if os.name == "nt" else {"topK": 4}),
        ("RETRY__Initial", "1", lambda c: c.retry.initial, 1),
        ("EXTRA_BODY__LABEL", "plain words", lambda c: c.extra_body, {"label": "plain words"}),
        ("EXTRA_BODY__LABEL", '"4"', lambda c: c.extra_body, {"label": "4"}),
        ("EXTRA_BODY", """'{"a": 1}'""", lambda c: c.extra_body, {"a": 1}),
        ("DEFAULT_HEADERS__X_TENANT", "42", lambda c: c.default_headers, {"x-tenant": "42"}),
        ("DEFAULT_QUERY__VERSION", "1.10", lambda c: c.url, "https://api.openai.com/v1/chat/completions?version=1.10"),
        ("RETRY__INITIAL", "1", lambda c: c.retry, RetryPolicy(initial=1)),
        ("RETRY__STATUSES", "[429, 503]", lambda c: c.retry.statuses, {429, 503}),
        ("RETRY__AMBIGUOUS", "no", lambda c: c.retry.ambiguous, False),
        ("LIMITS__KEEPALIVE_EXPIRY", "null", lambda c: (c.limits.max_connections, c.limits.keepalive_expiry), (1000, None)),
        ("TIMEOUT__READ", "9", lambda c: (c.timeouts.read, c.stream_timeouts.read, c.timeouts.connect), (9, 9, 60)),
        ("TIMEOUT", "none", lambda c: c.timeouts.read, None),
        ("STOP", "4", lambda c: c.sampling["stop"], "4"),
        ("STOP", r'"\n"', lambda c: c.sampling["stop"], "\n"),
        ("STOP", "</s>", lambda c: c.sampling["stop"], "</s>"),
        ("HTTP2", "FALSE", lambda c: c.http2, False),
        ("TRUST_ENV", "1", lambda c: c.trust_env, True),
        ("TRUST_ENV", " Yes\r", lambda c: c.trust_env, True),
        ("MODEL", '"gpt-4o"', lambda c: c.model, "gpt-4o"),
        ("MODEL", "'gpt-4o'\r", lambda c: c.model, "gpt-4o"),
        ("MODEL", "null", lambda c: c.model, "null"),
        ("API_KEY", f"{KEY}\n", lambda c: c.api_key.reveal(), KEY),
        ("TEMPERATURE", '"0.5"', lambda c: c.sampling["temperature"], 0.5),
        ("MAX_TOKENS", "", lambda c: c.sampling, {}),
        ("MAX_TOKENS", " ", lambda c: c.sampling, {}),
        ("TEMPERATURE", '""', lambda c: c.sampling, {}),
        ("TEMPRATURE", "", lambda c: c.sampling, {}),
        ("ENDPOINT_URL", "http://localhost/v1/chat/completions", lambda c: c.url, "http://localhost/v1/chat/completions"),
        ("MODEL_API_URL", "http://localhost:1", lambda c: c.url, "http://localhost:1/v1/chat/completions"),
        ("REQUEST_TIMEOUT_SECONDS", "300", lambda c: (c.timeouts.read, c.stream_timeouts.read, c.timeouts.connect), (300, 60, 60)),
        ("STREAM_TIMEOUT_SECONDS", "5", lambda c: (c.timeouts.read, c.stream_timeouts.read), (60, 5)),
    ],
)  # fmt: skip
def test_what_operators_write(env: Env, variable: str, words: str, found: Callable[[Any], Any], value: Any) -> None:
    env(**{variable: words})
    assert found(made()) == value


def test_a_number_is_said_of_each_part_of_a_timeout(env: Env) -> None:
    env(TIMEOUT="5", TIMEOUT__READ="9", STREAM_TIMEOUT_SECONDS="2")
    times, streams = made().timeouts, made().stream_timeouts
    assert (times.connect, times.pool, times.write, times.read, streams.read) == (5, 5, 5, 9, 2)


def test_parts_go_over_a_whole(env: Env) -> None:
    env(EXTRA_BODY='{"a": 1, "b": {"c": 2}}', EXTRA_BODY__B__D="3")
    assert made().extra_body == {"a": 1, "b": {"c": 2, "d": 3}}


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"EXTRA_BODY__A": "1", "EXTRA_BODY__A__B": "2"}, ("EXTRA_BODY__A ", "EXTRA_BODY__A__B")),
        ({"RETRY": "1", "RETRY__INITIAL": "2"}, ("RETRY ", "RETRY__INITIAL")),
        ({"BASE_URL": "http://a", "ENDPOINT_URL": "http://b"}, ("BASE_URL", "ENDPOINT_URL")),
        ({"TIMEOUT__REQUEST": "1", "REQUEST_TIMEOUT_SECONDS": "2"}, ("TIMEOUT__REQUEST", "REQUEST_TIMEOUT_SECONDS")),
        ({"TEMPRATURE": "1"}, ("JAZZ_LLM__TEMPRATURE is not a setting", "Did you mean 'JAZZ_LLM__TEMPERATURE'?")),
        ({"XYZZY": "1"}, ("JAZZ_LLM__XYZZY is not a setting", "Known: JAZZ_LLM__MODEL, JAZZ_LLM__BASE_URL")),
        ({"TRANSPORT": "x"}, ("JAZZ_LLM__TRANSPORT", "pass it as an argument")),
        ({"RETRY__INTIAL": "1"}, ("retry.intial", "Did you mean 'initial'?", "JAZZ_LLM__RETRY__INTIAL")),
        ({"RETRY__INITIAL": "soon"}, ("retry: initial", "JAZZ_LLM__RETRY__INITIAL")),
        ({"LIMITS__MAX_CONECTIONS": "1"}, ("Did you mean 'max_connections'?", "JAZZ_LLM__LIMITS__MAX_CONECTIONS")),
        ({"LIMITS": "many"}, ("limits", "It comes from JAZZ_LLM__LIMITS.")),
        ({"TIMEOUT__RAED": "1"}, ("Did you mean 'read'?", "JAZZ_LLM__TIMEOUT__RAED")),
        ({"TIMEOUT__READ": "-1", "TIMEOUT__POOL": "1"}, ("timeout.read must be", "It comes from JAZZ_LLM__TIMEOUT__READ.")),
        ({"TEMPERATURE": "hot"}, ("temperature must be a finite number, not 'hot'", "It comes from JAZZ_LLM__TEMPERATURE.")),
        ({"MAX_TOKENS": "1.5"}, ("max_tokens", "1.5", "JAZZ_LLM__MAX_TOKENS")),
        ({"TRUST_ENV": "maybe"}, ("trust_env must be True or False, not 'maybe'", "JAZZ_LLM__TRUST_ENV")),
        ({"STREAM_ENABLED": "maybe"}, ("stream_enabled", "JAZZ_LLM__STREAM_ENABLED")),
        ({"EXTRA_BODY": "{a: 1}"}, ("extra_body must be a mapping", "JAZZ_LLM__EXTRA_BODY")),
        ({"PROVIDER": "grok"}, ("Did you mean 'groq'?", "JAZZ_LLM__PROVIDER")),
        ({"MODEL__X": "1"}, ("contradict", "JAZZ_LLM__MODEL__X")),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_is_wrong_is_named(env: Env, variables: dict[str, str], named: tuple[str, ...]) -> None:
    env(**variables)
    said = refused(made)
    assert all(part in said for part in named), said


def test_without_a_model_it_says_how_to_name_one() -> None:
    assert "set JAZZ_LLM__MODEL, or pass model=" in refused(made)
    assert "set MINE__MODEL, or" in refused(lambda: made(prefix="mine__"))


def test_arguments_win_and_an_error_of_theirs_blames_no_variable(env: Env) -> None:
    env(TEMPERATURE="0.5", TIMEOUT__READ="9", REQUEST_TIMEOUT_SECONDS="8", SEED="1")
    config = made(model="mine", temperature=None, timeout=3)
    assert (config.model, config.sampling, config.timeouts.read, config.stream_timeouts.read) == ("mine", {"seed": 1}, 3, 3)
    assert "It comes" not in refused(lambda: made(temperature="hot"))


def test_unprefixed_names_count_where_nothing_else_says_it(monkeypatch: pytest.MonkeyPatch, file: File) -> None:
    monkeypatch.setenv("MODEL_NAME", "4")
    monkeypatch.setenv("MODEL_API_URL", "http://modelapi-service:8000")
    config = made()
    assert (config.model, config.url) == ("4", "http://modelapi-service:8000/v1/chat/completions")
    assert made(prefix="SPAKKY_VLLM__").model == "4"
    assert loaded(file("model: of the file")).model == "of the file"
    monkeypatch.setenv("JAZZ_LLM__MODEL", "own")
    assert made().model == "own"
    assert made(base_url="http://localhost").origin[1] == "localhost"


def test_a_providers_key_goes_to_that_provider_alone(monkeypatch: pytest.MonkeyPatch, env: Env) -> None:
    monkeypatch.setenv("MODEL_API_URL", "http://modelapi-service:8000")
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    env(PROVIDER="groq")
    for config in (made(), made(provider="Groq")):
        assert (config.origin[1], config.api_key.reveal()) == ("api.groq.com", KEY)
    env(PROVIDER="")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert made().api_key is None  # plain http


@pytest.mark.parametrize("prefix", ["SPAKKY_VLLM__", "spakky_vllm__", "SPAKKY_VLLM", "SPAKKY_VLLM_", "SPAKKY_", "S"])
def test_any_prefix(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    stem = {"SPAKKY_": "SPAKKY_", "S": "S"}.get(prefix, "SPAKKY_VLLM__")
    for name, value in {"MODEL": "m", "ENDPOINT_URL": "http://localhost:8000", "STREAM_ENABLED": "false", "Seed": "1"}.items():
        monkeypatch.setenv(stem + name, value)
    config = made(prefix=prefix)
    assert (config.model, config.url, config.streams, config.sampling) == ("m", "http://localhost:8000/v1/chat/completions", False, {"seed": 1})


def test_a_prefix_that_others_use_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MYAPP_MODEL", "MYAPP_LOG_LEVEL", "MYAPP_MODE", "MYAPP_"):
        monkeypatch.setenv(name, "m")
    assert made(prefix="MYAPP_").model == "m"
    monkeypatch.setenv("MYAPP_TEMPRATURE", "1")
    assert "Did you mean 'MYAPP_TEMPERATURE'?" in refused(lambda: made(prefix="MYAPP_"))


def test_no_prefix_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "m")
    monkeypatch.setenv("MODLES", "not ours")
    assert made(prefix="").model == "m"


@pytest.mark.parametrize("prefix", ["A-", "é_", " ", "__", None, 5])
def test_what_is_no_prefix(prefix: Any) -> None:
    assert "prefix must be" in refused(lambda: made(prefix=prefix))


def test_two_variables_that_differ_by_case_say_the_same(env: Env) -> None:
    env({"jazz_llm__seed": "1", "JAZZ_LLM__SEED": "2"})
    if os.name == "nt":
        assert made().sampling == {"seed": 2}  # there is one name
    else:
        assert "say the same" in refused(made)


# --- OpenAI's own names


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({}, True),
        ({"api_key": "k"}, True),
        ({"base_url": "https://api.openai.com/v1", "api_key": "k"}, True),
        ({"provider": "openai"}, True),
        ({"base_url": "https://llm.example.com"}, True),  # where OPENAI_API_KEY goes too
        ({"base_url": "https://llm.example.com", "api_key": "k"}, False),
        ({"base_url": "https://api.groq.com"}, False),
        ({"provider": "groq"}, False),
        ({"base_url": "http://localhost:8000"}, False),
        ({"base_url": "http://llm.example.com"}, False),
    ],
)
def test_openais_account_goes_where_its_key_may_go(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], sent: bool) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, name.lower())
    headers = {"OpenAI-Organization": "openai_org_id", "OpenAI-Project": "openai_project_id"} if sent else {}
    for make in (OpenAICompatibleLLM, OpenAICompatibleLLM.from_env):
        assert make(model="m", **arguments)._config.default_headers == headers
    monkeypatch.setenv("OPENAI_BASE_URL", "https://proxy.example.com/v1")
    if "base_url" not in arguments and "provider" not in arguments:
        assert OpenAICompatibleLLM("m", **arguments)._config.default_headers == headers


def test_openais_account_on_the_wire(monkeypatch: pytest.MonkeyPatch, colour: Sync | Async) -> None:
    with FakeServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
        with OpenAICompatibleLLM("m", "k", default_headers={"openai-project": "mine"}) as llm:
            colour.generate(llm, "hi")
        headers = dict(server.requests[-1].headers)
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "mine")


def test_an_account_that_is_no_header_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org\nX: 1")
    said = refused(lambda: OpenAICompatibleLLM("m", "k"))
    assert "OPENAI_ORG_ID" in said
    assert "X: 1" not in said


# --- YAML

SECTIONS = """\
base_url: ${MODEL_URL:-http://localhost:8000}
timeout: {connect: 2, read: 30}
extra_body: {top_k: 5}
default:
  model: small
fast:
  model: small
  timeout: {read: 5}
clever:
  model: large
  api_key: ${CLEVER_KEY}
  timeout: 300
  extra_body: {seed: 1}
"""


def test_sections_lie_over_the_top(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(SECTIONS)
    monkeypatch.setenv("CLEVER_KEY", f"{KEY}\n")
    fast, clever, default = loaded(path, "fast"), loaded(path, "clever"), loaded(path)
    assert [c.model for c in (fast, clever, default)] == ["small", "large", "small"]
    assert {c.url for c in (fast, clever)} == {"http://localhost:8000/v1/chat/completions"}
    assert [(c.timeouts.connect, c.timeouts.read) for c in (fast, clever, default)] == [(2, 5), (300, 300), (2, 30)]
    assert clever.extra_body == {"top_k": 5, "seed": 1}
    assert clever.api_key.reveal() == KEY
    assert fast.api_key is None


def test_an_empty_section(file: File) -> None:
    assert loaded(file("model: m\nfast:\n"), "fast").model == "m"


def test_the_environment_lies_over_the_file_and_arguments_over_both(file: File, env: Env) -> None:
    path = file(SECTIONS)
    env(MODEL="of the environment", TIMEOUT__READ="9")
    config = loaded(path, "fast", extra_body={})
    assert (config.model, config.extra_body, config.timeouts.connect, config.timeouts.read) == ("of the environment", {}, 2, 9)
    assert loaded(path, "fast", model="mine").model == "mine"


def test_a_number_in_the_file_and_a_part_in_the_environment(file: File, env: Env) -> None:
    env(TIMEOUT__READ="9")
    times = loaded(file("timeout: 5")).timeouts
    assert (times.connect, times.read) == (5, 9)


def test_anchors_and_merges(file: File) -> None:
    path = file("common: &common {base_url: http://localhost:1, max_tokens: 5}\nfast:\n  <<: *common\n  model: m\n  max_tokens: 6\n")
    config = loaded(path, "fast")
    assert (config.origin[2], config.sampling) == (1, {"max_tokens": 6})


@pytest.mark.parametrize(
    ("text", "found", "value"),
    [
        ("model: 1.10", lambda c: c.model, "1.10"),
        ("model: no", lambda c: c.model, "no"),
        ("model: ${A}-${B:-b}", lambda c: c.model, "a-b"),
        ("model: $${A}", lambda c: c.model, "${A}"),
        ("model: $A", lambda c: c.model, "$A"),
        ("model: m\napi_key:", lambda c: c.api_key, None),
        ("model: m\napi_key: ~", lambda c: c.api_key, None),
        ("model: m\ntemperature: ${EMPTY}", lambda c: c.sampling, {}),
        ("model: m\nbase_url: ${EMPTY:-http://localhost}", lambda c: c.url, "http://localhost/v1/chat/completions"),
        ("model: m\ntimeout: {read: , connect: ~}", lambda c: (c.timeouts.read, c.timeouts.connect), (60, None)),
        ("model: m\ntimeout: {read: '${FOUR}'}", lambda c: c.timeouts.read, 4),
        ("model: m\nextra_body: {a: '${FOUR}', b: '4', c: 'x${FOUR}', d: '${EMPTY}'}", lambda c: c.extra_body, {"a": 4, "b": "4", "c": "x4", "d": ""}),
        ("model: m\nextra_body: ${JSON}", lambda c: c.extra_body, {"a": [1]}),
        ("model: m\ndefault_headers: {X-A: '${FOUR}', X-B: '${EMPTY}', X-C: yes}", lambda c: c.default_headers, {"X-A": "4", "X-C": "yes"}),
        ("model: m\nstop: '4'", lambda c: c.sampling["stop"], "4"),
        ("model: m\nstop: ['${FOUR}', a]", lambda c: c.sampling["stop"], ["4", "a"]),
        ("model: m\nrequest_timeout_seconds: 9\ntimeout: 5", lambda c: (c.timeouts.read, c.stream_timeouts.read), (9, 5)),
        ("model: m\nverify: ${ONE}", lambda c: c.verify, True),
        ("\ufeffmodel: m", lambda c: c.model, "m"),
        ("model: m\nretry: {statuses: [429], budget: off, initial: '2'}", lambda c: c.retry, RetryPolicy(statuses=frozenset({429}), budget=False, initial=2)),
    ],
)  # fmt: skip
def test_what_files_say(file: File, env: Env, text: str, found: Callable[[Any], Any], value: Any) -> None:
    env({"A": "a", "EMPTY": "", "FOUR": "4", "ONE": "1", "JSON": '{"a": [1]}', "JAZZ_LLM__MODEL": ""})
    assert found(loaded(file(text))) == value


BOMB = "model: m\nextra_body:\n  a0: &a0 [x, x]\n" + "".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("temprature: 1\nmodel: m", ("line 1", "'temprature' is not a setting", "Did you mean 'temperature'?")),
        ("model: m\nfast:\n  modle: x", ("line 3", "'modle'", "Did you mean 'model'?")),
        ("model: m\nextra_boddy: {a: 1}", ("line 2", "'a' is not a setting")),
        ("model: m\nhooks: {}", ("line 2", "hooks is an object")),
        ("model: m\nretry: {intial: 1}", ("retry.intial", "'initial'", "line 2")),
        ("model: m\ntemperature: hot", ("temperature must be", "llm.yaml, line 2")),
        ("model: m\nmodel: n", ("line 2", "'model' is there twice")),
        ("model: m\nextra_body: {a: 1, a: 2}", ("line 2", "'a' is there twice")),
        ("model: m\nbase_url: http://a\nendpoint_url: http://b", ("base_url and endpoint_url say the same",)),
        ("model: ${NO_SUCH_VARIABLE}", ("line 1", "the variable NO_SUCH_VARIABLE is not set")),
        ("model: ${A B}", ("line 1", "write ${NAME}")),
        ("model: ${}", ("line 1", "write ${NAME}")),
        ("- model: m", ("must hold settings",)),
        ("just words", ("must hold settings",)),
        ("", ("is empty",)),
        ("# nothing\n", ("is empty",)),
        (b"model: \xff\xfe", ("is not UTF-8 text",)),
        ("model: [", ("is not YAML", "line 1")),
        ("model: a\x00b", ("is not YAML", "forbids")),
        ("a: 1\n---\nb: 2", ("is not YAML", "document")),
        ("model: m\nextra_body: {a: !!python/name:os.system }", ("line 2", "cannot stand here")),
        ("model: m\nextra_body: !!python/object:os.x {a: 1}", ("line 2", "cannot stand here")),
        ("model: m\nextra_body: {a: 2026-13-45}", ("line 2", "cannot stand here")),
        ("? [a]\n: b", ("a name must be text",)),
        ("model: m\nextra_body: &x {a: *x}", ("more than 10000 values",)),
        ("model: m\n<<: 5", ("is not YAML",)),
        (BOMB, ("more than 10000 values",)),
        ("model: m\nextra_body: " + "[" * 5000, ("nested too deeply",)),
        ("model: " + "m" * 2**20, ("has more than 1048576 bytes",)),
        ("fast: {model: m}\nclever: {model: n}", ("sections only", "fast, clever")),
        ("temperature: 1", ("No model is set",)),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(file: File, text: str | bytes, named: tuple[str, ...]) -> None:
    said = refused(lambda: loaded(file(text)))
    assert all(part in said for part in named), said
    assert len(said) < 1000


def test_a_section_that_is_not_there(file: File) -> None:
    said = refused(lambda: loaded(file(SECTIONS), "quick"))
    assert "has no 'quick', but default, fast, clever" in said
    assert "none at all" in refused(lambda: loaded(file("model: m"), "quick"))
    assert "section" in refused(lambda: OpenAICompatibleLLM.from_yaml(file("model: m"), 5))  # type: ignore[arg-type]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no.yaml cannot be read" in refused(lambda: loaded(str(tmp_path / "no.yaml")))
    assert str(tmp_path) in refused(lambda: loaded(str(tmp_path)))
    assert "cannot be read" in refused(lambda: loaded("a\0b"))
    with pytest.raises(TypeError):
        loaded(None)  # type: ignore[arg-type]


def test_without_pyyaml_it_says_what_to_install(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    path, really = file("model: m"), builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return really(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert 'pip install "jazz_llm[yaml]"' in refused(lambda: loaded(path))
    assert 'pip install "jazz_llm[yaml]"' in refused(lambda: OpenAICompatibleLLM("m", "k").to_yaml(path))


def test_a_path_object(file: File) -> None:
    assert OpenAICompatibleLLM.from_yaml(Path(file("model: m")))._config.model == "m"


# --- what only operators can say

CLONES = [copy.copy, copy.deepcopy, lambda llm: pickle.loads(pickle.dumps(llm)), lambda llm: llm.with_options(temperature=0.5)]


@pytest.mark.parametrize("clone", [lambda llm: llm, *CLONES])
def test_streams_that_are_switched_off(env: Env, colour: Sync | Async, clone: Callable[[Any], Any]) -> None:
    with FakeServer() as server:
        env(STREAM_ENABLED="false", BASE_URL=server.url, REQUEST_TIMEOUT_SECONDS="300", STREAM_TIMEOUT_SECONDS="5")
        with OpenAICompatibleLLM.from_env() as original, clone(original) as llm:
            for name in ("stream", "astream", "stream_events", "astream_events"):
                with pytest.raises(LLMCapabilityError, match="STREAM_ENABLED"):
                    getattr(llm, name)("hi")
            assert colour.generate(llm, "hi").text
            assert (llm._config.timeouts.read, llm._config.stream_timeouts.read) == (300, 5)
            with pytest.raises(TypeError, match="stream_enabled"):
                llm.with_options(stream_enabled=True)


def test_the_two_reads_in_calls(env: Env) -> None:
    from jazz_llm.request import prepare

    env(REQUEST_TIMEOUT_SECONDS="300", STREAM_TIMEOUT_SECONDS="5")
    config = made()
    reads = [prepare(config, "hi", options, streams=streams).timeouts.read for options in ({}, {"deadline": 9.0}, {"timeout": 1.0}) for streams in (False, True)]
    assert reads == [300, 5, 300, 5, 1, 1]


def test_a_stream_keeps_to_its_own_read(env: Env, colour: Sync | Async) -> None:
    from jazz_llm import LLMTimeoutError

    async def never(_: Any, reply: Any) -> None:
        await reply.cancelled()

    with FakeServer(never) as server:
        env(STREAM_TIMEOUT_SECONDS="0.2", BASE_URL=server.url)
        with OpenAICompatibleLLM.from_env() as llm, pytest.raises(LLMTimeoutError, match=r"0\.2 s"):
            colour.stream(llm, "hi")


# --- subclasses


class Mine(OpenAICompatibleLLM):
    """A class of the user's own, which knows its model and more."""

    def __init__(self, model: str = "own", colour: str = "red", **arguments: Any) -> None:
        super().__init__(model, **arguments)
        self.colour = colour


def test_subclasses(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAZZ_LLM__SEED", "1")
    llm = Mine.from_env(colour="blue")
    assert (type(llm), llm.colour, llm._config.model, llm._config.sampling) == (Mine, "blue", "own", {"seed": 1})
    assert Mine.from_yaml(file("temperature: 1")).to_dict()["temperature"] == 1
    with pytest.raises(TypeError, match="temprature"):
        OpenAICompatibleLLM.from_env(model="m", temprature=1)


# --- and back

RICH: dict[str, Any] = {
    "temperature": 0.5,
    "stop": ["a", "${B}"],
    "timeout": httpx.Timeout(1, read=None),
    "retry": RetryPolicy(initial=1, statuses=frozenset({503, 429})),
    "limits": httpx.Limits(max_connections=5),
    "default_headers": {"X-Tenant": "42", "X-Max-Tokens": "5"},
    "default_query": {"api-version": "2024-10-21"},
    "extra_body": {"max_tokens": 5, "stop_token_ids": [1], "prompt_cache_key": "p", "when": "${X}", "deep": [{"a": (1, None)}]},
    "cert": (__file__, __file__),
    "http2": "prior_knowledge",
    "max_response_bytes": None,
}  # fmt: skip


def comparable(llm: OpenAICompatibleLLM) -> dict[str, Any]:
    config = {name: getattr(llm._config, name) for name in llm._config.__dataclass_fields__ if name not in ("arguments", "headers", "api_key")}
    return json.loads(json.dumps(config, default=lambda x: sorted(x) if isinstance(x, frozenset) else {n: getattr(x, n) for n in x.__dataclass_fields__} if hasattr(x, "__dataclass_fields__") else repr(x)))


def test_to_dict_makes_the_same_again() -> None:
    llm = OpenAICompatibleLLM("m", KEY, "https://llm.example.com", **RICH)
    data = llm.to_dict()
    assert comparable(OpenAICompatibleLLM(**data)) == comparable(llm)
    assert set(data) == set(inspect.signature(OpenAICompatibleLLM).parameters) - {"api_key", *LIVE}
    json.dumps(data)
    data["extra_body"]["deep"][0]["a"] = "changed"
    assert llm._config.extra_body["deep"] == [{"a": (1, None)}]


def test_to_yaml_makes_the_same_again(tmp_path: Path, env: Env) -> None:
    llm = OpenAICompatibleLLM("4", KEY, "https://llm.example.com", **RICH)
    env(MODEL="")
    path = tmp_path / "saved.yaml"
    llm.to_yaml(path)
    assert comparable(OpenAICompatibleLLM.from_yaml(path)) == comparable(llm)
    assert "max_retries" not in path.read_text()  # a default is not saved
    assert KEY not in path.read_text()


def test_what_operators_said_survives_a_file(tmp_path: Path, env: Env) -> None:
    env(STREAM_ENABLED="0", STREAM_TIMEOUT_SECONDS="5")
    llm = OpenAICompatibleLLM.from_env()
    llm.to_yaml(tmp_path / "saved.yaml")
    env(STREAM_ENABLED="", STREAM_TIMEOUT_SECONDS="")
    assert comparable(OpenAICompatibleLLM.from_yaml(tmp_path / "saved.yaml")) == comparable(llm)
    assert OpenAICompatibleLLM(**llm.to_dict())._config.stream_timeouts.read == 5


def test_live_objects_are_left_out() -> None:
    data = OpenAICompatibleLLM("m", "k", verify=ssl.create_default_context(), transport=httpx.MockTransport(lambda _: httpx.Response(200))).to_dict()
    assert not data.keys() & {"verify", "transport"}


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    llm = OpenAICompatibleLLM("m", KEY)
    assert "cannot be written" in refused(lambda: llm.to_yaml(tmp_path))
    assert "not plain data" in refused(lambda: llm.with_options(extra_body={"a": object()}).to_yaml(tmp_path / "x.yaml"))
    assert not (tmp_path / "x.yaml").exists()
    assert "cannot be written" in refused(lambda: llm.to_yaml("a\0b"))


SECRETS: list[dict[str, Any]] = [
    *({"default_headers": {name: "s3cr3t-0123"}} for name in ("Authorization", "Proxy-Authorization", "Cookie", "x-api-key", "api-key", "X-Auth-Token", "Ocp-Apim-Subscription-Key", "CF-Access-Client-Secret", "X-Amz-Signature")),
    *({"default_headers": {"X-Any": f"{scheme} s3cr3t-0123-long"}} for scheme in ("Bearer", "basic")),
    *({"default_query": {name: "s3cr3t-0123"}} for name in ("key", "sig", "token", "code", "access_token")),
    *({"extra_body": body} for body in ({"api_key": "s3cr3t-0123"}, {"apiKey": "s3cr3t-0123"}, {"a": [{"aws_secret_access_key": "s3cr3t-0123"}]}, {"url": "https://user:s3cr3t-0123@host/"}, {"list": ["sk-s3cr3t-0123"]}, {"password": {"x": "s3cr3t-0123"}})),
    {"chat_template_kwargs": {"hf_token": "s3cr3t-0123"}},
    {"proxy": "http://user:s3cr3t-0123@proxy:3128"},
    {"cert": (__file__, __file__, "s3cr3t-0123")},
    {"api_key": "s3cr3t-0123", "default_headers": {"X-Mine": "it is s3cr3t-0123"}, "extra_body": {"x": "s3cr3t-0123"}},
    {"api_key": "s3cr3t-0123", "base_url": "https://gateway.example.com/s3cr3t-0123/v1"},
]  # fmt: skip


@pytest.mark.parametrize("arguments", SECRETS, ids=lambda arguments: repr(arguments)[:60])
def test_secrets_do_not_come_back_out(arguments: dict[str, Any], tmp_path: Path) -> None:
    llm = OpenAICompatibleLLM("m", **{"api_key": KEY, **arguments})
    llm.to_yaml(tmp_path / "saved.yaml")
    data = {**llm.to_dict(), "saved": (tmp_path / "saved.yaml").read_text()}
    seen = f"{data} {(tmp_path / 'saved.yaml').read_text()} {llm!r} {llm._config!r}"
    assert "s3cr3t-0123" not in (str(data) if "base_url" in arguments else seen)  # its path is for all to see but in what is kept
    assert KEY not in seen


@pytest.mark.parametrize(("model", "key"), [("lm-studio-1", "lm-studio"), ("m", "m"), ("ollama", "ollama"), ("gpt-4o", "gpt-4o-and-more")])
def test_a_model_named_as_the_key_is_kept(model: str, key: str) -> None:
    llm = OpenAICompatibleLLM(model, key, "http://ollama.localhost:9", extra_body={"note": model})
    said = llm.to_dict()
    assert (said["model"], said["base_url"], said["extra_body"]) == (model, "http://ollama.localhost:9", {"note": model})


def test_a_proxy_stays_where_its_user_goes() -> None:
    assert OpenAICompatibleLLM("m", "k", proxy="http://user:s3cr3t-0123@proxy:3128").to_dict()["proxy"] == "http://proxy:3128"


# --- keys


def shown(error: BaseException) -> str:
    """Return all that can be seen of an error."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [f"{frame.name} {frame.locals}" for frame in told.stack if f"{os.sep}jazz_llm{os.sep}" in frame.filename]
    assert frames
    assert error.__context__ is None  # it would keep its own frames
    return f"{frames} {error!r} {error} {error.args} {pickle.dumps(error)!r}"


@pytest.mark.parametrize(
    "variables",
    [
        {"API_KEY": f"{KEY}\x07"},
        {"API_KEY": f"{KEY} b"},
        {"API_KEY": KEY, "TEMPERATURE": "hot"},
        {"API_KEY": KEY, "TEMPRATURE": "1"},
        {"API_KEY": KEY, "API_KEY__X": KEY},
        {"API_KEY__X": KEY},
        {"API_KEY": f'{{"a": "{KEY}"}} x'},
        {"API_KEY": KEY, "BASE_URL": "nonsense"},
        {"API_KEY": KEY, "DEFAULT_HEADERS": f"Authorization: {KEY}"},
        {"BASE_URL": f"https://user:{KEY}@host/v1"},
        {"PROXY": f"ftp://user:{KEY}@host"},
    ],
    ids=" ".join,
)
def test_no_error_shows_a_key_of_the_environment(env: Env, variables: dict[str, str], file: File) -> None:
    env(**variables)
    for make in (made, lambda: loaded(file("model: m"))):
        with pytest.raises(LLMConfigurationError) as caught:
            make()
        assert KEY not in shown(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"model: m\napi_key: {KEY}\ntemperature: hot",
        f"model: m\napi_key: {KEY}\ntemprature: 1",
        f"model: m\napi_key: {KEY} b",
        f"model: m\napi_key: [{KEY}]",
        f"model: m\napi_key: {KEY}${{NO_SUCH_VARIABLE}}",
        f"model: m\napi_key: {KEY}\napi_key: {KEY}",
        f"api_key: {KEY}: x",
        f"api_key: '{KEY}",
        f"api_key: {KEY}\n\t- [",
        f"api_key: {KEY}\nfast: {{modle: x}}",
        f"api_key: {KEY}\x00",
        f"api_key: {KEY}",
        f"model: m\napi_key: !!int {KEY}\nseed: x",
        f"default_headers: &{KEY} {{}}\nmodel: *{KEY}x",
        f"model: ! {KEY}: [",
        "model: m\napi_key: ${CANARY}\nseed: x",
        "model: m\napi_key: ${CANARY} b",
        "model: m\ndefault_headers: {Authorization: 'Bearer ${CANARY}'}\nseed: x",
    ],
)
def test_no_error_shows_a_key_of_a_file(file: File, text: str, env: Env) -> None:
    env({"CANARY": KEY, "JAZZ_LLM__MODEL": ""})
    path = file(text)
    del text
    with pytest.raises(LLMConfigurationError) as caught:
        OpenAICompatibleLLM.from_yaml(path)
    assert KEY not in shown(caught.value)


def test_no_error_shows_a_key_that_was_given() -> None:
    for make in (lambda: OpenAICompatibleLLM.from_env(model="m", api_key=KEY, seed="x"), lambda: OpenAICompatibleLLM.from_provider("groq", "m", api_key=KEY, seed="x")):
        with pytest.raises(LLMConfigurationError) as caught:
            make()
        assert KEY not in shown(caught.value)


@pytest.mark.parametrize("name", ["default_headers", "default_query"])
@pytest.mark.parametrize("wrong", [{"seed": "x"}, {"no_such": 1}, {"default_headers": {"a": KEY, "b": "\n"}}, {"default_headers": {"b": f"{KEY}\n"}}, {"default_query": {"a": KEY, "b": "\n"}}], ids=str)
def test_no_error_shows_what_headers_and_queries_hold(name: str, wrong: dict[str, Any], env: Env, file: File) -> None:
    arguments = {name: {"X-Auth": KEY}, **wrong}
    env(DEFAULT_HEADERS__X_AUTH=KEY, DEFAULT_QUERY__X=KEY)
    path = file(f"model: m\n{name}: {{X-Token: {KEY}}}")
    makers = {
        "constructor": lambda: OpenAICompatibleLLM("m", **arguments),
        "from_provider": lambda: OpenAICompatibleLLM.from_provider("groq", "m", **arguments),
        "from_env": lambda: made(**arguments),
        "from_env alone": lambda: made(**{key: value for key, value in wrong.items() if KEY not in str(value)} or {"seed": "x"}),
        "from_yaml": lambda: OpenAICompatibleLLM.from_yaml(path, **arguments),
        "with_options": lambda: OpenAICompatibleLLM("m").with_options(**arguments),
    }
    if "no_such" in wrong:
        del makers["constructor"]  # Python refuses it in the caller's own frame
    for how, make in makers.items():
        with pytest.raises((LLMConfigurationError, TypeError)) as caught:
            make()
        assert KEY not in shown(caught.value), how


def test_a_key_that_is_missing_shows_no_other_header(colour: Sync | Async, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    llm = OpenAICompatibleLLM("m", default_headers={"X-Gateway": KEY}, default_query={"sig": KEY})
    with pytest.raises(LLMAuthenticationError, match="OPENAI_API_KEY") as caught:
        colour.generate(llm)
    assert KEY not in shown(caught.value)


def test_a_header_of_ones_own_stands_for_the_key(colour: Sync | Async, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    answer = {"choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}]}
    transport: Any = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    llm = OpenAICompatibleLLM("m", provider="groq", default_headers={"AUTHORIZATION": "Basic eA=="}, transport=transport, async_transport=transport)
    assert colour.generate(llm).text == "yes"


def test_a_key_in_the_path_is_not_shown() -> None:
    llm = OpenAICompatibleLLM("m", base_url="https://relay.example/sk-0123456789/v1")
    assert llm._config.url == "https://relay.example/sk-0123456789/v1/chat/completions"
    assert repr(llm) == "OpenAICompatibleLLM(model='m', url='https://relay.example/***/v1/chat/completions')"
    assert "sk-" not in repr(llm._config)


def test_a_key_of_the_environment_over_plain_http_warns_the_caller(env: Env) -> None:
    env(API_KEY=KEY, BASE_URL="http://llm.example.com")
    with pytest.warns(UserWarning, match="plain http") as caught:
        made()
    assert [warning.filename for warning in caught] == [__file__]
