"""A certificate authority that lives as long as a test: nothing of it is trusted by anyone who was not handed it."""

from __future__ import annotations

import os
import ssl
import tempfile
import weakref
from collections.abc import Sequence
from functools import cached_property

import trustme


class Authority:
    """Sign certificates for loopback servers, and tell clients whom to trust.

    >>> authority = Authority()
    >>> with FakeServer(tls=authority) as server:
    ...     httpx.get(server.url + "/v1/models", verify=authority.client_context())
    """

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def server_context(self, alpn: Sequence[str] = ("h2", "http/1.1")) -> ssl.SSLContext:
        """Make a server's context: a new certificate for ``localhost``, ``127.0.0.1`` and ``::1``, offering ``alpn``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(list(alpn))
        self._ca.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Make a client's context that trusts this authority and no other; without ALPN, which httpx sets.

        ``OpenAICompatibleLLM`` takes a context as it is, so over HTTP/1.1; with ``verify=authority.path`` it speaks HTTP/2.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._ca.configure_trust(context)
        return context

    @cached_property
    def path(self) -> str:
        """Write the authority's certificate as PEM, for ``verify=path`` or ``SSL_CERT_FILE``; gone with this object."""
        handle, path = tempfile.mkstemp(prefix="jazz-llm-ca-", suffix=".pem")
        # Before the write, so that a full disk leaves no file behind either.
        weakref.finalize(self, os.unlink, path)
        with os.fdopen(handle, "wb") as file:
            file.write(self._ca.cert_pem.bytes())
        return path
