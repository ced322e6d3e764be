"""Settings of an instance -> plain data and YAML, without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..config import LIMITS, TIMEOUT_PARTS, Config
from ..errors import LLMConfigurationError
from ..response import spans
from ..retry import RetryPolicy
from .fields import FIELDS
from .yaml_file import import_yaml

# Of a header, a part of the query or a field of the body, spelt api_key.
_SECRET_NAME = re.compile(
    r"authorization|cookie|secret|pass(?:w|phrase)|credential|signature|api_?key|bearer"
    r"|(?:^|_)(?:auth|key|token|pwd|sig|jwt|sas)$|^code$"
)
_NO_SECRET = frozenset({"prompt_cache_key", "eos_token", "bos_token", "pad_token", "unk_token"})
_SECRET_VALUE = re.compile(
    r"\s*(?:(?:bearer|basic|token|digest)\s+\S{8,}\s*$|[a-z][a-z0-9+.-]*://[^/\s@]+@|sk-\w)", re.IGNORECASE
)

_SHORTEST = 10  # characters of a key that is no word


def plain(config: Config) -> dict[str, Any]:
    """Return the constructor's arguments as plain data, without live objects and without what is, or may be, a secret."""
    data = {name: value for name, value in config.arguments.items() if name in FIELDS and name != "api_key"}
    if not isinstance(data["verify"], bool | str):
        del data["verify"]
    data["timeout"] = _parts(data["timeout"], TIMEOUT_PARTS[:4])
    data["limits"] = _parts(data["limits"], LIMITS)
    data["retry"] = _parts(data["retry"], RetryPolicy.__dataclass_fields__)
    data["proxy"] = _without_user(data["proxy"])
    data["cert"] = data["cert"][:2] if isinstance(data["cert"], tuple) else data["cert"]  # the third is a password
    key = None if config.api_key is None or callable(config.api_key) else config.api_key.reveal()
    return _public(data, key)  # type: ignore[no-any-return]  # of a mapping it makes one


def _parts(value: Any, names: Iterable[str]) -> Any:
    """Return an object of httpx's, or a policy, as a mapping; a number, None and a mapping as they are."""
    return {name: getattr(value, name) for name in names} if all(hasattr(value, name) for name in names) else value


def _without_user(proxy: str | None) -> str | None:
    if proxy is None:
        return None
    url = urlsplit(proxy)
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl() if "@" in url.netloc else proxy


def _public(value: Any, key: str | None) -> Any:
    """Return a value as plain data, without what is named like a secret, looks like one, or holds the key."""
    if isinstance(value, Mapping):
        return {name: _public(part, key) for name, part in value.items() if not _is_secret(name, part, key)}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return type(value)(_public(part, key) for part in value if not _is_secret("", part, key))
    return value


def _is_secret(name: str, value: Any, key: str | None) -> bool:
    spelt = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|\W+", "_", name).lower()
    if (_SECRET_NAME.search(spelt) and spelt not in _NO_SECRET) or _holds(name, key):
        return True
    return isinstance(value, str) and bool(_SECRET_VALUE.match(value) or _holds(value, key))


def _holds(text: str, key: str | None) -> bool:
    """Say whether the key is in a text; one that is a word ("EMPTY", "lm-studio") may be in any, a model's name too."""
    return key is not None and len(key) >= _SHORTEST and bool(spans(text, key))


def save(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write settings as YAML that ``from_yaml`` reads back."""
    yaml = import_yaml()
    try:
        text = yaml.safe_dump(_escaped(data), sort_keys=False, allow_unicode=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except yaml.YAMLError:
        reason = "a setting is not plain data"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    else:
        return
    raise LLMConfigurationError(f"{os.fspath(path)} cannot be written: {reason}.")


def _escaped(value: Any) -> Any:
    """Return data with its ``${`` so written that reading it back fills in nothing."""
    if isinstance(value, Mapping):
        return {name: _escaped(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(part) for part in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
