"""TLS: contexts, made on first need and shared, and a layer over memory that both drivers use.

A context costs 15 to 40 ms, so they are cached by what they are made from. One that the user gives is used as it is: without
ALPN on it the server picks HTTP/1.1.
"""

from __future__ import annotations

import os
import ssl
from functools import lru_cache

from ..errors import LLMConfigurationError


def context_for(
    verify: bool | str | ssl.SSLContext, cert: tuple[str, ...] | None, *, http2: bool, trust_env: bool
) -> ssl.SSLContext:
    """Return the context for these settings; ``http2`` offers h2 by ALPN before http/1.1."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    variables = tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")) if trust_env else (None, None)
    try:
        return _made(verify, cert, http2, variables)
    except (OSError, ssl.SSLError) as error:
        reason = str(error)
    raise LLMConfigurationError(f"verify / cert: {reason}")


@lru_cache(maxsize=32)
def _made(
    verify: bool | str, cert: tuple[str, ...] | None, http2: bool, variables: tuple[str | None, str | None]
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        _load_authorities(context, verify, variables)
    if cert is not None:
        context.load_cert_chain(*cert)
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    return context


def _load_authorities(context: ssl.SSLContext, verify: bool | str, variables: tuple[str | None, str | None]) -> None:
    file, folder = variables
    if isinstance(verify, str):
        context.load_verify_locations(**{"capath" if os.path.isdir(verify) else "cafile": verify})
    elif file or folder:
        context.load_verify_locations(cafile=file, capath=folder)
    else:
        import certifi  # what httpx itself ships with

        context.load_verify_locations(cafile=certifi.where())


class TLSLayer:
    """One TLS connection over memory: bytes of the network in, bytes for the network out, no socket, no waiting."""

    def __init__(self, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)

    def handshake(self) -> bool:
        """Go on with the handshake; False while it needs more from the network. Raise ssl.SSLError where it fails."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, data: bytes) -> None:
        """Take what the network brought; b"" is its end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def outgoing(self) -> bytes:
        """Return what has to go to the network."""
        return self._outgoing.read()

    def read(self, size: int) -> bytes | None:
        """Return decrypted bytes, None where more of the network is needed, b"" after the peer's close_notify."""
        try:
            return self.object.read(size)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""

    def write(self, data: bytes) -> None:
        """Encrypt; MemoryBIO takes any amount."""
        self.object.write(data)


def reason_of(error: ssl.SSLError) -> str:
    """Say in words what TLS objects to."""
    verify = getattr(error, "verify_message", None)
    return f"certificate: {verify}" if verify else error.reason or str(error)
