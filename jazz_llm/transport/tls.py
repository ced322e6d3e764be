"""TLS: contexts, made on first need and shared, and a layer over memory that both drivers use.

A context costs 15 to 40 ms, so they are cached by what they are made from. One that the user gives is used as it is: without
ALPN on it the server picks HTTP/1.1.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Generator
from functools import lru_cache

from ..errors import LLMConfigurationError

_READ_SIZE = 16 * 1024  # the most that one record holds (RFC 8446, section 5.1)


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
    """One TLS connection over memory: bytes of the network in, bytes for the network out, no socket, no waiting.

    ``inner`` is the TLS that this one runs in, to an https proxy. ``ended``: the peer has said that nothing more comes.
    """

    def __init__(self, context: ssl.SSLContext, server_hostname: str, inner: TLSLayer | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._inner = inner
        self.ended = False

    def handshake(self) -> Generator[bytes, bytes, bytes]:
        """Yield what is to be sent, take what then comes, and return what is still to be sent; raise ssl.SSLError."""
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._take((yield self.outgoing()))
            else:
                return self.outgoing()

    def alpn(self) -> str | None:
        """Return the protocol that was agreed on."""
        return self._object.selected_alpn_protocol()

    def encrypt(self, data: bytes) -> bytes:
        """Return the records that carry ``data``, and whatever else has to go out."""
        self._object.write(data)
        return self.outgoing()

    def decrypt(self, data: bytes) -> bytes:
        """Return what ``data`` completes; raise ssl.SSLError where it is no TLS."""
        self._take(data)
        tls, incoming = self._object, self._incoming
        pieces = []
        # One read too many costs an exception, so it goes on only while something is there.
        try:
            while incoming.pending or tls.pending():
                piece = tls.read(_READ_SIZE)
                if not piece:
                    self.ended = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def outgoing(self) -> bytes:
        """Return what has to go to the network."""
        data = self._outgoing.read() if self._outgoing.pending else b""
        return data if self._inner is None or not data else self._inner.encrypt(data)

    def _take(self, data: bytes) -> None:
        if self._inner is not None:
            data = self._inner.decrypt(data)
        if data:
            self._incoming.write(data)


def reason_of(error: ssl.SSLError) -> str:
    """Say in words what TLS objects to."""
    verify = getattr(error, "verify_message", None)
    return f"certificate: {verify}" if verify else error.reason or str(error)
