"""Who may come in: a web page elsewhere may not, nor one that a name points here (DNS rebinding), nor who lacks the token."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..config import Secret
from ..errors import LLMConfigurationError

PREFIX = "bearer."  # of the subprotocol by which a browser, which can set no header, says the token
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,512}")  # RFC 9110, section 5.6.2: what a subprotocol may be made of
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^/\s?#@]+")


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one gateway: ``host`` is what it listens on, ``token`` what clients have to know, if any."""

    host: str
    token: Secret | None = None
    origins: frozenset[str] = frozenset()  # of pages elsewhere that may come in

    def problem(self, host: str | None, origin: str | None) -> str:
        """Say why a request may not come in, "" where it may; ``host`` and ``origin`` are its headers.

        Only browsers send an origin, and only they can be led here by a name that is not ours; but what listens on loopback
        has no other names anyway.
        """
        host, origin = (text and text.lower() for text in (host, origin))
        if (origin is not None or is_loopback(self.host)) and not self._is_ours(host or ""):
            return "The Host header names another machine."
        if origin is None or origin == f"http://{host}" or origin in self.origins:
            return ""
        return "This web page may not use the gateway: its origin has to be given as --allow-origin."

    def _is_ours(self, host: str) -> bool:
        """Say whether a Host header names this machine in a way that nobody else can point here."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found.group(1).strip("[]")
        ours = {self.host.lower(), *(urlsplit(origin).hostname for origin in self.origins)}
        return is_loopback(name) or name in ours or (not is_loopback(self.host) and _address(name) is not None)

    def admits(self, authorization: str | None, subprotocols: Iterable[str]) -> bool:
        """Say whether one of the headers has the token, if there is one."""
        if self.token is None:
            return True
        scheme, _, said = (authorization or "").partition(" ")
        offers = [said.strip()] if scheme.lower() == "bearer" else []
        offers += [name.removeprefix(PREFIX) for name in subprotocols if name.startswith(PREFIX)]
        token = self.token.reveal().encode()
        return any([hmac.compare_digest(offer.encode("utf-8", "replace"), token) for offer in offers])  # noqa: C419  # compares them all


def check_access(host: str, token: Secret | None, origins: Iterable[str]) -> Access:
    """Return the rules.

    Raises:
        LLMConfigurationError: A token or an origin is none, or a token is missing where others could reach the gateway.
    """
    if token is not None and not (isinstance(token.reveal(), str) and _TOKEN.fullmatch(token.reveal())):
        raise LLMConfigurationError("token must be 1 to 512 letters, digits or any of !#$%&'*+-.^_`|~ (it stands in a header).")
    if token is None and not is_loopback(host):
        raise LLMConfigurationError(
            f"host {host!r} lets other machines in: give a token too (--token, or better JAZZ_LLM_GATEWAY_TOKEN)."
        )
    allowed = frozenset(origin.lower().rstrip("/") for origin in origins)
    wrong = next((origin for origin in allowed if not _ORIGIN.fullmatch(origin)), None)
    if wrong is not None:
        raise LLMConfigurationError(f"allow_origin must be like https://example.org, without a path, not {wrong!r}.")
    return Access(host, token, allowed)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine and no other; 0.0.0.0, which means every address to a server, is not."""
    address = _address(host)
    return (host == "localhost" or host.endswith(".localhost")) if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a text is; of an IPv4 address in IPv6's clothes the IPv4 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
