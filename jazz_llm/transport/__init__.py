"""The two pools, and the only place that knows sockets.

Bytes of the network go up through these files: ``sockets.py`` (or the socket in ``blocking.py``) reads; ``tls.py`` decrypts;
``http1.py`` or ``http2.py`` hands them to the exchange they are for (``exchange.py``); ``aio.py`` or ``blocking.py`` wakes
the call that waits. ``opening.py`` says how a connection begins, ``pool.py`` which one takes a request, ``faults.py`` what a
failure means. ``foreign.py`` runs calls over an httpx transport instead; ``httpx_transports.py`` offers these pools to httpx.
"""

from __future__ import annotations

from .exchange import Request

__all__ = ["READ_SIZE", "RESENDS", "Request"]

READ_SIZE = 64 * 1024
RESENDS = 3  # how often what is provably unprocessed is sent again (CONTRACT, section 5)
