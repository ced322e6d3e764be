"""Host names: looked up in a thread of their own, and the proxy that the environment asks for."""

from __future__ import annotations

import ipaddress
import socket
import threading
from concurrent.futures import Future, InvalidStateError
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from ..config import is_loopback
from .exchange import Origin

Address = tuple[Any, ...]  # family, kind, protocol, canonical name, address: as getaddrinfo returns them


@lru_cache(maxsize=64)
def target_of(url: str) -> str:
    """Return what stands in the request line for a URL: path and query."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def resolve(host: str, port: int) -> Future[list[Address]]:
    """Look up a host, giving up the wait whenever the caller wants to: getaddrinfo itself has no timeout.

    The thread is a daemon, so a resolver that hangs cannot hold up the interpreter's end.
    """
    found: Future[list[Address]] = Future()
    if host == "localhost" or _is_address(host):
        _look_up(found, host, port)
    else:
        threading.Thread(target=_look_up, args=(found, host, port), name="jazz_llm-dns", daemon=True).start()
    return found


def _look_up(found: Future[list[Address]], host: str, port: int) -> None:
    try:
        addresses: list[Address] = list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        _settle(found, error)
    else:
        _settle(found, addresses)


def _settle(found: Future[list[Address]], outcome: list[Address] | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            found.set_exception(outcome)
        else:
            found.set_result(outcome)
    except InvalidStateError:
        pass  # the caller has given up and cancelled it


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Proxies:
    """Which proxy a request goes through; the environment is asked once for each origin."""

    def __init__(self, proxy: str | None, *, trust_env: bool) -> None:
        self._given = proxy
        self._trust_env = trust_env
        self._known: dict[Origin, str | None] = {}

    def of(self, origin: Origin) -> str | None:
        """Return the proxy's URL; one from the environment never gets a loopback target."""
        if self._given is not None or not self._trust_env:
            return self._given
        if origin not in self._known:
            self._known[origin] = None if is_loopback(origin[1]) else _from_environment(*origin)
        return self._known[origin]


def _from_environment(scheme: str, host: str, port: int) -> str | None:
    from urllib.request import getproxies, proxy_bypass  # imports http.client and more: only where it is asked

    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(f"{host}:{port}") or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
