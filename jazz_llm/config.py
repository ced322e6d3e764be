"""The settings of an instance, all of them checked before anything is sent.

What says them: arguments > environment > YAML > defaults. ``settings`` makes arguments of the two in the middle; here they are
checked, whoever gave them, and what is still missing comes from the variables that all of OpenAI's clients know.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import ssl
import sys
import warnings
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import SplitResult, urlencode, urlsplit

from .errors import LLMConfigurationError, LLMError, LLMInvalidRequestError
from .hooks import Hooks, check_hooks
from .providers import BY_NAME, DEFAULT, Provider, in_dialect, provider_of_host
from .retry import RetryPolicy
from .timing import Timeouts

if TYPE_CHECKING:
    import httpx

Headers = tuple[tuple[str, str], ...]
ApiKey = str | Callable[[], str] | Callable[[], Awaitable[str]]

CHAT_ENDPOINT = "/v1/chat/completions"
SAMPLING = ("temperature", "max_tokens", "top_p", "stop", "seed")
TIMEOUT = 60.0
# The parts of a timeout, of which the last two are for the operator: the ``read`` of a whole answer, and of a stream.
TIMEOUT_PARTS = ("connect", "pool", "write", "read", "request", "stream")
LIMITS = {"max_connections": 1000, "max_keepalive_connections": 100, "keepalive_expiry": 4.0}  # the pools' own
# OpenAI's account, where a key has several: the names that OpenAI's own clients read and send.
ACCOUNT = {"OPENAI_ORG_ID": "OpenAI-Organization", "OPENAI_PROJECT_ID": "OpenAI-Project"}
# What two instances on the same pools must share.
POOL_ARGUMENTS = ("verify", "cert", "http2", "limits", "proxy", "transport", "async_transport", "trust_env")

_KEY = re.compile(r"[\x21-\x7e]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2: token
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
# What says where a message ends and whom it is for: never the caller's.
_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "host", "upgrade", "te", "expect"})
_LONGEST = 1e9  # seconds; above that the system's own clocks overflow
_VERSION = re.compile(r"v\d+(?:(?:alpha|beta)\d*)?")


class HeaderCache:
    """The headers made for the last few keys: the same tuples again, which others may key caches by. Its repr shows none."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[tuple[str | None, bool], Headers] = {}

    def get(self, key: str | None, streams: bool) -> Headers | None:
        """Return what was kept for a key."""
        return self._made.get((key, streams))

    def keep(self, key: str | None, streams: bool, headers: Headers) -> Headers:
        """Keep headers; a key that rotates fills this up, and then all are forgotten."""
        if len(self._made) >= 16:
            self._made.clear()
        self._made[key, streams] = headers
        return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of an instance, checked and typed; ``arguments`` are the constructor's own, to make a copy from.

    ``streams``: whether calls may stream, which only the environment and YAML can forbid (``STREAM_ENABLED=false``).
    """

    arguments: dict[str, Any]
    model: str
    api_key: Secret | Callable[[], Any] | None
    key_hint: str  # what to say where a key is needed and none was given; "" where none is needed
    provider: Provider | None
    url: str
    models_url: str | None  # None: the provider has no list of models
    embeddings_url: str
    origin: tuple[str, str, int]
    sampling: dict[str, Any]  # by the names of this package
    options: dict[str, Any]  # what a call sends that gives none of its own, as the provider takes it
    timeouts: Timeouts
    stream_timeouts: Timeouts
    max_retries: int
    retry: RetryPolicy
    http2: bool | Literal["prior_knowledge"]
    limits: httpx.Limits | None
    verify: bool | str | ssl.SSLContext
    cert: tuple[str, ...] | None
    proxy: str | None
    trust_env: bool
    transport: httpx.BaseTransport | None
    async_transport: httpx.AsyncBaseTransport | None
    max_response_bytes: int | None
    max_event_bytes: int | None
    default_headers: dict[str, str]
    chat_template_kwargs: dict[str, Any]
    extra_body: dict[str, Any]
    hooks: tuple[Hooks, ...]
    streams: bool = True
    headers: HeaderCache = field(default_factory=HeaderCache, init=False, repr=False, compare=False)

    @property
    def provider_name(self) -> str | None:
        """The provider's name in the registry, None for an endpoint that is not in it."""
        return self.provider.name if self.provider else None

    def __repr__(self) -> str:
        # The rest of a URL can hold a key.
        return f"Config(model={self.model!r}, origin={self.origin!r}, api_key={'***' if self.api_key else None})"


def configure(arguments: dict[str, Any]) -> Config:
    """Check the constructor's arguments and fill in what the environment and the registry know."""
    provider = _provider(arguments["provider"])
    base = _base_url(arguments["base_url"], provider)
    host = base.hostname or ""
    provider = provider or provider_of_host(host)
    endpoint, query = _endpoint(arguments["chat_endpoint"]), arguments["default_query"]
    models = models_url(base, provider, endpoint)
    api_key, hint = _api_key(arguments, base, provider)
    sampling = check_sampling({name: arguments[name] for name in SAMPLING}, LLMConfigurationError)
    template = check_mapping("chat_template_kwargs", arguments["chat_template_kwargs"])
    times = arguments["timeout"], arguments["first_token_timeout"], arguments["deadline"]
    headers = check_headers("default_headers", arguments["default_headers"])
    return Config(
        arguments=arguments,
        model=_text("model", arguments["model"]),
        api_key=api_key,
        key_hint=hint,
        provider=provider,
        url=_with_query(chat_url(base, provider, endpoint), query),
        models_url=None if models is None else _with_query(models, query),
        embeddings_url=_with_query(_beside_chat(base, provider, endpoint, "/embeddings"), query),
        origin=(base.scheme, host, base.port or (443 if base.scheme == "https" else 80)),
        sampling=sampling,
        options=in_dialect(provider, {**sampling, "chat_template_kwargs": template} if template else sampling),
        timeouts=check_timeouts(*times),
        stream_timeouts=check_timeouts(*times, streams=True),
        max_retries=check_count("max_retries", arguments["max_retries"], 0, 1000),
        retry=_retry(arguments["retry"]),
        http2=_http2(arguments["http2"]),
        limits=_limits(arguments["limits"]),
        verify=_verify(arguments["verify"]),
        cert=_cert(arguments["cert"]),
        proxy=_proxy(arguments["proxy"]),
        trust_env=check_flag("trust_env", arguments["trust_env"]),
        transport=_transport("transport", arguments["transport"], "handle_request"),
        async_transport=_transport("async_transport", arguments["async_transport"], "handle_async_request"),
        max_response_bytes=_bound("max_response_bytes", arguments["max_response_bytes"]),
        max_event_bytes=_bound("max_event_bytes", arguments["max_event_bytes"]),
        default_headers={**_account(arguments, base, provider), **headers},
        chat_template_kwargs=template or {},
        extra_body=check_mapping("extra_body", arguments["extra_body"]) or {},
        hooks=check_hooks(arguments["hooks"]),
    )


def warn_of_risks(config: Config) -> None:
    """Warn, in the name of the constructor's caller, of what lets others read the key."""
    scheme, host, _ = config.origin
    if config.verify is False:
        warnings.warn("verify=False: any server can pose as this one and read the key.", stacklevel=_callers_level())
    if config.api_key is not None and scheme == "http" and not is_loopback(host):
        text = f"The key goes over plain http to {host}: anybody on the way can read it."
        warnings.warn(text, stacklevel=_callers_level())


def _callers_level() -> int:
    """Return how far up the first caller outside of this package is: ``from_env`` and others stand before the constructor."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("jazz_llm."):
        level, frame = level + 1, frame.f_back
    return level


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine; 0.0.0.0 counts, since people write it for localhost."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def chat_url(base: SplitResult, provider: Provider | None, endpoint: str | None) -> str:
    """Return the URL of the chat completions: the contract's one rule; ``endpoint`` is None unless the user gave one."""
    path = base.path.rstrip("/")
    tail = endpoint or "/chat/completions"
    if path.endswith(tail):
        full = path
    elif any(_VERSION.fullmatch(segment) for segment in path.split("/")):
        full = _join(path, tail)
    elif provider is not None and provider_of_host(base.hostname or "") is provider:
        full = _join(path or _registry_path(provider), tail)
    else:
        full = _join(path, endpoint or CHAT_ENDPOINT)
    return f"{base.scheme}://{base.netloc.lower()}{full}"


def models_url(base: SplitResult, provider: Provider | None, endpoint: str | None) -> str | None:
    """Return the URL of the list of models: beside the chat completions, or where the registry says; None: there is none."""
    path = provider.models_path if provider else "/models"
    return None if path is None else _beside_chat(base, provider, endpoint, path)


def _beside_chat(base: SplitResult, provider: Provider | None, endpoint: str | None, path: str) -> str:
    """Return the URL of a path from the root of the chat completions.

    A ``chat_endpoint`` that is no ``.../chat/completions`` says nothing about the others: then the usual one counts.
    """
    tail = "/chat/completions"
    if endpoint is not None and not endpoint.endswith(tail):
        base, endpoint = base._replace(path=base.path.rstrip("/").removesuffix(endpoint)), None
    root = chat_url(base, provider, endpoint).removesuffix(tail)
    while path.startswith("/../"):
        root, path = root.rpartition("/")[0], path.removeprefix("/..")
    return root + path


class Secret:
    """A key that no repr shows, and so no traceback with captured locals."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def reveal(self) -> Any:
        """Return the key itself."""
        return self._value

    def problem(self) -> str:
        """Say why this cannot stand in a header, "" where it can."""
        if not isinstance(self._value, str):
            return f"must be text, not {type(self._value).__name__}"
        if len(self._value) <= 16384 and _KEY.fullmatch(self._value):
            return ""
        return "must be 1 to 16384 printable ASCII characters without spaces (is there a newline at its end?)"

    def __repr__(self) -> str:
        return "***"


def hide_key(api_key: Any) -> Any:
    """Return the key as a secret; a function that returns one, and None, as they are."""
    return api_key if api_key is None or callable(api_key) or isinstance(api_key, Secret) else Secret(api_key)


class Hidden(dict[str, Any]):
    """A mapping of which repr shows the names alone: headers and queries may hold keys, and a traceback shows locals."""

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{name!r}: ***' for name in self)}}}"


def hidden(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments with those hidden that may hold keys."""
    return {name: _HIDING[name](value) if name in _HIDING else value for name, value in arguments.items()}


def _hide_parts(value: Any) -> Any:
    return Hidden(value) if isinstance(value, Mapping) else value


_HIDING: dict[str, Callable[[Any], Any]] = {"api_key": hide_key, "default_headers": _hide_parts, "default_query": _hide_parts}


def check_key(key: Secret, name: str = "api_key") -> Secret:
    """Return the key if it can stand in a header; the error does not show it."""
    problem = key.problem()
    if problem:
        raise LLMConfigurationError(f"{name} {problem}.")
    return key


def check_headers(name: str, headers: object) -> dict[str, str]:
    """Return the headers if none can break out of its line."""
    checked = check_mapping(name, headers) or {}
    for header in checked:
        if not isinstance(header, str) or not _HEADER_NAME.fullmatch(header):
            raise LLMConfigurationError(f"{name}: {header!r} is not a header name.")
        if not isinstance(checked[header], str) or not _HEADER_VALUE.fullmatch(checked[header]):
            raise LLMConfigurationError(f"{name}: the value of {header!r} must be printable ASCII text on one line.")
        if header.lower() in _FRAMING:
            raise LLMConfigurationError(f"{name}: {header!r} is the connection's own business and cannot be set.")
    return checked


def check_mapping(name: str, value: object) -> dict[str, Any] | None:
    """Return a mapping with text keys as a dict of its own."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise LLMConfigurationError(f"{name} must be a mapping with text keys, not {type(value).__name__}.")
    return type(value)(value) if isinstance(value, Hidden) else dict(value)


def check_count(name: str, value: object, least: int, most: int, error: type[LLMError] = LLMConfigurationError) -> int:
    """Return a whole number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        bounds = f"of at least {least}" if most >= 2**53 else f"from {least} to {most}"
        raise error(f"{name} must be a whole number {bounds}, not {value!r}.")
    return value


def check_names(name: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise where a name is not known, and suggest the nearest; ``name`` says where it was given."""
    unknown = next((part for part in given if part not in known), None)
    if unknown is not None:
        raise LLMConfigurationError(f"{name}.{unknown} is not a setting. {suggestion(str(unknown), known)}")


def suggestion(name: str, known: Collection[str], written: Callable[[str], str] = str) -> str:
    """Return the sentence that helps where a name is not known; ``written`` says how a known one is written there."""
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"Did you mean {written(near[0])!r}?" if near else f"Known: {', '.join(map(written, known))}."


def check_timeouts(timeout: object, first_token: object, deadline: object, *, streams: bool = False) -> Timeouts:
    """Return the waits of a call; ``timeout`` is seconds for each, an ``httpx.Timeout``, None, or a mapping of its parts."""
    parts = ("connect", "pool", "write", "read")
    if isinstance(timeout, Mapping):
        check_names("timeout", timeout, TIMEOUT_PARTS)
        checked = {part: _seconds(f"timeout.{part}", seconds) for part, seconds in timeout.items()}
        waits = {part: checked.get(part, TIMEOUT) for part in parts}
        waits["read"] = checked.get("stream" if streams else "request", waits["read"])
    elif all(hasattr(timeout, part) for part in parts):
        waits = {part: _seconds(f"timeout.{part}", getattr(timeout, part)) for part in parts}
    else:
        waits = dict.fromkeys(parts, _seconds("timeout", timeout))
    return Timeouts(
        **waits,
        first_token=_seconds("first_token_timeout", first_token),
        deadline=_seconds("deadline", deadline),
    )


def check_sampling(options: dict[str, Any], error: type[LLMError] = LLMInvalidRequestError) -> dict[str, Any]:
    """Return the options that are not None, each checked where its kind is known."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name in _CHECKS:
            _CHECKS[name](name, value, error)
    return given


def _number(name: str, value: Any, error: type[LLMError]) -> None:
    least, most = _BOUNDS.get(name, (-math.inf, math.inf))
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise error(f"{name} must be a finite number, not {repr(value)[:40]}.")
    if not least <= value <= most:
        raise error(f"{name} must be at least {least:g}{'' if most == math.inf else f' and at most {most:g}'}, not {value!r}.")


def _words(name: str, value: Any, error: type[LLMError]) -> None:
    if not isinstance(value, str):
        raise error(f"{name} must be text, not {value!r}.")


def _truth(name: str, value: Any, error: type[LLMError]) -> None:
    if not isinstance(value, bool):
        raise error(f"{name} must be True or False, not {value!r}.")


def _amount(name: str, value: Any, error: type[LLMError]) -> None:
    check_count(name, value, 1, 2**53, error)


def _integer(name: str, value: Any, error: type[LLMError]) -> None:
    check_count(name, value, -(2**63) if name == "seed" else 0, 2**63 - 1, error)


def _stop(name: str, value: Any, error: type[LLMError]) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise error(f"{name} must be text or a list of texts, not {value!r}.")


_BOUNDS = {"temperature": (0.0, math.inf), "top_p": (0.0, 1.0)}
_CHECKS: dict[str, Callable[[str, Any, type[LLMError]], None]] = {
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), _number),
    **dict.fromkeys(("user", "reasoning_effort", "mock_response"), _words),
    **dict.fromkeys(("logprobs", "parallel_tool_calls"), _truth),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "n"), _amount),
    **dict.fromkeys(("seed", "top_logprobs"), _integer),
    "stop": _stop,
}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise LLMConfigurationError(f"{name} must be text that is not empty, not {value!r}.")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return what is true or false and nothing else."""
    if not isinstance(value, bool):
        raise LLMConfigurationError(f"{name} must be True or False, not {value!r}.")
    return value


def _bound(name: str, value: object) -> int | None:
    return None if value is None else check_count(name, value, 1, 2**62)


def _seconds(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
        shown = repr(value)[:40]
        raise LLMConfigurationError(
            f"{name} must be seconds above 0 and at most {_LONGEST:.0e}, or None for no limit, not {shown}."
        )
    return float(value)


def _provider(name: object) -> Provider | None:
    if name is None:
        return None
    row = BY_NAME.get(name.lower()) if isinstance(name, str) else None
    if row is None:
        raise LLMConfigurationError(f"provider {name!r} is not in the registry. {suggestion(str(name), BY_NAME)}")
    return row


def _base_url(given: object, provider: Provider | None) -> SplitResult:
    name = "base_url"
    if given is None and provider is not None:
        given, name = provider.base_url, f"base_url of provider {provider.name!r}"
    elif given is None:
        variable = os.environ.get("OPENAI_BASE_URL") or None
        given, name = variable or DEFAULT.base_url, "OPENAI_BASE_URL" if variable else name
    if not isinstance(given, str) or not given:
        raise LLMConfigurationError(f"{name} must be a URL, not {given!r}.")
    if "{" in given:
        raise LLMConfigurationError(f"{name} depends on your account: pass base_url like {given!r} with the parts filled in.")
    return _checked_url(name, given)


def _checked_url(name: str, given: str) -> SplitResult:
    # urlsplit silently drops tabs and line ends, so they are refused before it sees them.
    if not _KEY.fullmatch(given):
        raise LLMConfigurationError(f"{name} must be printable ASCII without spaces.")
    try:
        url = urlsplit(given)
        port, host = url.port, url.hostname
    except ValueError as error:
        raise LLMConfigurationError(f"{name} is not a URL: {error}.") from None
    if url.username is not None or url.password is not None:
        raise LLMConfigurationError(f"{name} must not hold a user name or password; pass api_key instead.")
    if url.scheme not in ("http", "https") or not host or "%" in url.netloc or "\\" in given:
        raise LLMConfigurationError(f"{name} must start with http:// or https:// and a host, not {given!r}.")
    if port == 0 or "?" in given or "#" in given:
        raise LLMConfigurationError(f"{name} must have a port from 1 to 65535, no query and no fragment: {given!r}.")
    return url


def _endpoint(given: object) -> str | None:
    path = given.rstrip("/") if isinstance(given, str) else ""
    if (
        not path.startswith("/")
        or path.startswith("//")
        or not _KEY.fullmatch(path)
        or re.search(r"[?#\\]|/\.{1,2}(/|$)", path)
    ):
        raise LLMConfigurationError(
            f"chat_endpoint must be a path that starts with one '/', like {CHAT_ENDPOINT!r}, not {given!r}."
        )
    return None if path == CHAT_ENDPOINT else path


def _registry_path(provider: Provider) -> str:
    path = urlsplit(provider.base_url).path
    if "{" in path:
        raise LLMConfigurationError(f"base_url needs the path of your account, like {provider.base_url!r}.")
    return path


def _join(path: str, tail: str) -> str:
    first = "/" + tail.split("/")[1]
    if _VERSION.fullmatch(first[1:]) and path.endswith(first):
        path = path.removesuffix(first)
    return path + tail


def _with_query(url: str, query: object) -> str:
    checked = check_mapping("default_query", query) or {}
    if not all(isinstance(part, str) and part.isprintable() for pair in checked.items() for part in pair):
        raise LLMConfigurationError("default_query must map text to text.")
    return f"{url}?{urlencode(checked)}" if checked else url


def _api_key(
    arguments: dict[str, Any], base: SplitResult, provider: Provider | None
) -> tuple[Secret | Callable[[], Any] | None, str]:
    given = arguments["api_key"]
    if callable(given):
        return given, ""
    if given is not None:
        return check_key(given), ""
    names = _key_variables(arguments, base, provider)
    found = next((name for name in names if os.environ.get(name)), None)
    if found is not None:
        return check_key(Secret(os.environ[found]), found), ""
    at_home = provider is not None and provider_of_host(base.hostname or "") is provider
    return None, f"No key for {base.hostname}: pass api_key= or set {names[0]}." if at_home and names else ""


def _key_variables(arguments: dict[str, Any], base: SplitResult, provider: Provider | None) -> tuple[str, ...]:
    """OPENAI_API_KEY is for OpenAI, for OPENAI_BASE_URL, or for an unknown https host: it must not leak anywhere else."""
    if provider is not None and provider is not DEFAULT:
        return provider.key_env
    from_variable = arguments["base_url"] is None and arguments["provider"] is None
    if base.scheme == "https" or (from_variable and is_loopback(base.hostname or "")):
        return ("OPENAI_API_KEY",)
    return ()


def _account(arguments: dict[str, Any], base: SplitResult, provider: Provider | None) -> dict[str, str]:
    """Return the headers that name OpenAI's account: as OPENAI_API_KEY, and to an unknown host only together with it.

    They count for the plain constructor too, as in OpenAI's own client: a key that has several accounts would else be
    charged to another one.
    """
    theirs = provider is DEFAULT or arguments["base_url"] is None or arguments["api_key"] is None
    if not theirs or "OPENAI_API_KEY" not in _key_variables(arguments, base, provider):
        return {}
    given = {variable: value for variable in ACCOUNT if (value := os.environ.get(variable))}
    wrong = next((variable for variable, value in given.items() if not _KEY.fullmatch(value)), None)
    if wrong is not None:
        raise LLMConfigurationError(f"{wrong} must be printable ASCII without spaces.")
    return {ACCOUNT[variable]: value for variable, value in given.items()}


def _retry(policy: object) -> RetryPolicy:
    if policy is None:
        return RetryPolicy()
    if isinstance(policy, Mapping):
        check_names("retry", policy, RetryPolicy.__dataclass_fields__)
        try:
            return RetryPolicy(**policy)
        except LLMConfigurationError as error:
            reason = error.message.removeprefix("RetryPolicy")
        raise LLMConfigurationError(f"retry{reason}")
    if not isinstance(policy, RetryPolicy):
        raise LLMConfigurationError(f"retry must be a RetryPolicy, not {policy!r}.")
    return policy


def _http2(value: object) -> bool | Literal["prior_knowledge"]:
    if value == "prior_knowledge":
        return "prior_knowledge"
    if not isinstance(value, bool):
        raise LLMConfigurationError(f"http2 must be True, False or 'prior_knowledge', not {value!r}.")
    return value


def _limits(limits: Any) -> Any:
    if limits is None:
        return None
    if isinstance(limits, Mapping):
        import httpx

        check_names("limits", limits, LIMITS)
        limits = httpx.Limits(**{**LIMITS, **limits})
    if not hasattr(limits, "max_keepalive_connections"):
        raise LLMConfigurationError(f"limits must be an httpx.Limits, not {limits!r}.")
    for name, least in (("max_connections", 1), ("max_keepalive_connections", 0), ("keepalive_expiry", 0)):
        value = getattr(limits, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= least):
            raise LLMConfigurationError(f"limits.{name} must be a number from {least}, or None, not {value!r}.")
    return limits


def _verify(verify: object) -> bool | str | ssl.SSLContext:
    if isinstance(verify, str) and not os.path.exists(verify):
        raise LLMConfigurationError(f"verify: there is no file or folder {verify!r}.")
    if not isinstance(verify, bool | str | ssl.SSLContext):
        raise LLMConfigurationError(
            f"verify must be True, False, the path of a CA bundle or an ssl.SSLContext, not {verify!r}."
        )
    return verify


def _cert(cert: object) -> tuple[str, ...] | None:
    parts = (cert,) if isinstance(cert, str) else cert
    if parts is None:
        return None
    if not isinstance(parts, tuple) or not 1 <= len(parts) <= 3 or not all(isinstance(part, str) for part in parts):
        raise LLMConfigurationError("cert must be the path of a PEM file or (certificate, key[, password]).")
    missing = next((path for path in parts[:2] if not os.path.exists(path)), None)
    if missing is not None:
        raise LLMConfigurationError(f"cert: there is no file {missing!r}.")
    return parts


def _proxy(proxy: object) -> str | None:
    if proxy is None:
        return None
    try:
        url = urlsplit(proxy) if isinstance(proxy, str) and _KEY.fullmatch(proxy) else None
        right = url is not None and url.scheme in ("http", "https", "socks5", "socks5h") and url.hostname and url.port != 0
    except ValueError:
        right = False
    if not right:
        raise LLMConfigurationError("proxy must be a URL that starts with http://, https:// or socks5:// and a host.")
    return str(proxy)


def _transport(name: str, transport: Any, method: str) -> Any:
    if transport is not None and not callable(getattr(transport, method, None)):
        raise LLMConfigurationError(f"{name} must be an httpx transport with {method}(), not {type(transport).__name__}.")
    return transport
