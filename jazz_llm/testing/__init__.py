"""What tests need of a model server (extra ``testing``)."""

from .authority import Authority
from .server import ClientStopped, FakeServer, Frame, Handler, Reply, Request, sse_chunk

__all__ = ["Authority", "ClientStopped", "FakeServer", "Frame", "Handler", "Reply", "Request", "sse_chunk"]
