"""FakeServer against clients that are not ours: httpx, bare sockets, and a peer that sends HTTP/2 frames by hand."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import h11
import httpx
import orjson
import pytest
from h2.exceptions import ProtocolError
from hpack import Encoder
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hyperframe.frame import Frame as WireFrame

from jazz_llm.testing import Authority, ClientStopped, FakeServer, Frame, Handler, Reply, Request, sse_chunk
from jazz_llm.testing import server as module

AUTHORITY = Authority()
CHAT = "/v1/chat/completions"
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
CANCEL = 8


def connect(server: FakeServer) -> socket.socket:
    """Open a bare socket that gives up reading after 5 s."""
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=5)


@dataclass(frozen=True)
class Wire:
    """One of the four ways to speak to the server."""

    tls: bool
    http2: bool

    @property
    def http_version(self) -> str:
        return "HTTP/2" if self.http2 else "HTTP/1.1"

    def server(self, handler: Handler | None = None) -> FakeServer:
        return FakeServer(handler, tls=AUTHORITY if self.tls else False)

    def socket(self, server: FakeServer) -> socket.socket:
        if not self.tls:
            return connect(server)
        return AUTHORITY.client_context().wrap_socket(connect(server), server_hostname="localhost")

    def client(self, server: FakeServer) -> httpx.Client:
        prior_knowledge = self.http2 and not self.tls
        verify = AUTHORITY.client_context()
        return httpx.Client(base_url=server.url, http1=not prior_knowledge, http2=self.http2, verify=verify)


WIRES = {
    "http1": Wire(tls=False, http2=False),
    "http1-tls": Wire(tls=True, http2=False),
    "http2-prior-knowledge": Wire(tls=False, http2=True),
    "http2-tls": Wire(tls=True, http2=True),
}


only_http1 = pytest.mark.parametrize("wire", ["http1", "http1-tls"], indirect=True)


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[request.param]


def read_all(sock: socket.socket) -> bytes:
    """Read up to the FIN."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


class Peer:
    """An HTTP/2 client of single frames, with prior knowledge."""

    def __init__(self, server: FakeServer, settings: dict[int, int] | None = None) -> None:
        self.socket = connect(server)
        self.file = self.socket.makefile("rb")
        self.hpack = Encoder()
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(SettingsFrame(0, settings=settings or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *frames: WireFrame) -> None:
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))

    def head(self, stream_id: int, path: str = "/", *, end: bool = True) -> HeadersFrame:
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", path)]
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return HeadersFrame(stream_id, self.hpack.encode(fields), flags=flags)

    def read(self) -> WireFrame | None:
        """Read one frame; None at the FIN."""
        header = self.file.read(9)
        if not header:
            return None
        frame, length = WireFrame.parse_frame_header(memoryview(header))
        frame.parse_body(memoryview(self.file.read(length)))
        return frame

    def until(self, done: Callable[[WireFrame], bool]) -> list[WireFrame]:
        """Read up to the frame that is ``done``; what came, that one included."""
        frames = []
        while frame := self.read():
            frames.append(frame)
            if done(frame):
                return frames
        raise AssertionError(f"FIN after {frames}")

    def body(self, stream_id: int, size: int | None = None) -> bytes:
        """Read one stream's body: to its end, or ``size`` bytes."""
        data = bytearray()

        def done(frame: WireFrame) -> bool:
            if frame.stream_id == stream_id and isinstance(frame, DataFrame):
                data.extend(frame.data)
            return len(data) == size if size else frame.stream_id == stream_id and "END_STREAM" in frame.flags

        self.until(done)
        return bytes(data)

    def reset(self, stream_id: int) -> int:
        """Read up to one stream's RST_STREAM and give its error code."""
        frame = self.until(lambda frame: isinstance(frame, RstStreamFrame) and frame.stream_id == stream_id)[-1]
        assert isinstance(frame, RstStreamFrame)
        return int(frame.error_code)


async def greet(request: Request, reply: Reply) -> None:
    await reply.json({"hello": request.path})


async def nothing(request: Request, reply: Reply) -> None:
    """Leave it to what follows."""


async def reset(request: Request, reply: Reply) -> None:
    """Break off before anything was sent."""
    reply.reset()


async def half(request: Request, reply: Reply) -> None:
    """Begin an answer."""
    await reply.start(200)
    await reply.send(b"half")


class TestAnswers:
    def test_chat_without_a_handler(self, wire: Wire) -> None:
        with wire.server() as server, wire.client(server) as client:
            response = client.post(CHAT, json={"messages": []})
        assert response.http_version == wire.http_version
        assert response.headers["content-type"] == "application/json"
        assert response.json()["object"] == "chat.completion"
        assert response.json()["choices"][0]["message"] == {"role": "assistant", "content": "Hello, world!"}
        assert response.json()["usage"]["total_tokens"] == 9

    def test_stream_without_a_handler(self, wire: Wire) -> None:
        with wire.server() as server, wire.client(server) as client:
            response = client.post(CHAT, json={"stream": True})
        *events, done, rest = response.content.split(b"\n\n")
        chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert response.headers["content-type"] == "text/event-stream"
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert [choice["delta"].get("content") for choice in choices] == ["", "Hello", ", ", "world", "!", None]
        assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 9)
        assert (done, rest) == (b"data: [DONE]", b"")

    def test_models_and_unknown_paths_without_a_handler(self, wire: Wire) -> None:
        with wire.server() as server, wire.client(server) as client:
            models, missing = client.get("/v1/models"), client.get("/nothing")
        assert [model["id"] for model in models.json()["data"]] == ["fake-model"]
        assert (missing.status_code, "/nothing" in missing.json()["error"]["message"]) == (404, True)

    def test_json_with_status_and_headers(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await reply.json({"error": {}}, status=429, headers={"Retry-After": "1", "Content-Type": "text/html"})

        with wire.server(handler) as server, wire.client(server) as client:
            response = client.get("/")
        assert (response.status_code, response.json()) == (429, {"error": {}})
        assert response.headers.get_list("content-type") == ["text/html"]
        assert response.headers["retry-after"] == "1"

    def test_text_with_usage_and_finish(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await reply.text("so far", usage=None, finish="length")

        with wire.server(handler) as server, wire.client(server) as client:
            answer = client.get("/").json()
        assert answer["choices"][0]["message"]["content"] == "so far"
        assert (answer["choices"][0]["finish_reason"], "usage" in answer) == ("length", False)

    def test_stream_without_its_last_parts(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await reply.sse(["a", {"reasoning_content": "b"}], usage=None, done=False, finish=None)

        with wire.server(handler) as server, wire.client(server) as client:
            content = client.get("/").content
        assert content.endswith(sse_chunk("a") + sse_chunk({"reasoning_content": "b"}))

    def test_stream_with_a_delay_comes_piece_by_piece(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await reply.sse(["a", "b"], delay=0.05)

        begun = time.perf_counter()
        with wire.server(handler) as server, wire.client(server) as client, client.stream("GET", "/") as response:
            assert len(list(response.iter_raw())) >= 3
        assert time.perf_counter() - begun >= 0.1

    def test_concurrent_streams_on_one_connection(self) -> None:
        everyone = asyncio.Barrier(20)

        async def handler(request: Request, reply: Reply) -> None:
            await everyone.wait()  # passed only if all twenty run at once
            await reply.sse([request.path] * 10)

        async def main() -> None:
            async with httpx.AsyncClient(http2=True, verify=AUTHORITY.client_context()) as client:
                await client.get(server.url + "/first")
                answers = await asyncio.gather(*(client.get(f"{server.url}/{n}") for n in range(20)))
            assert [answer.text.count(f'"/{n}"') for n, answer in enumerate(answers)] == [10] * 20

        async def first(request: Request, reply: Reply) -> None:
            await (greet if request.path == "/first" else handler)(request, reply)

        with FakeServer(first, tls=AUTHORITY) as server:
            asyncio.run(main())
        assert {request.connection for request in server.requests} == {1}


class TestRequests:
    def test_what_was_asked(self, wire: Wire) -> None:
        with wire.server(greet) as server, wire.client(server) as client:
            client.post("/a/b?c=d&e", json={"x": 1}, headers=[("X-Twice", "1"), ("X-Twice", "2")])
            client.get("/second")
        first, second = server.requests
        assert (first.method, first.path, first.query, first.json()) == ("POST", "/a/b", "c=d&e", {"x": 1})
        assert first.http_version == wire.http_version
        assert first.headers.get_list("x-twice") == ["1", "2"]
        assert server.url.endswith(first.headers["HOST"])
        assert (first.connection, second.connection) == (1, 1)
        assert (second.method, second.body) == ("GET", b"")
        assert (first.stream_id, second.stream_id) == ((1, 3) if wire.http2 else (1, 2))

    def test_a_body_of_5_mb(self, wire: Wire) -> None:
        body = os.urandom(5_000_000)
        with wire.server(greet) as server, wire.client(server) as client:
            assert client.post("/", content=body).status_code == 200
        assert server.requests[0].body == body

    def test_a_body_that_is_not_json(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            with pytest.raises(ValueError, match="unexpected"):
                request.json()
            await greet(request, reply)

        with FakeServer(handler) as server:
            assert httpx.post(server.url, content=b"{").status_code == 200

    def test_connections_are_numbered_and_counted(self) -> None:
        with FakeServer(greet) as server:
            with httpx.Client() as one, httpx.Client() as two:
                for client in (one, two, one):
                    client.get(server.url)
                assert server.connections == 2
            server.wait_for(lambda s: s.connections == 0)
        assert [request.connection for request in server.requests] == [1, 2, 1]

    def test_connection_close_is_obeyed(self) -> None:
        with FakeServer(greet) as server, connect(server) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert read_all(sock).endswith(b'{"hello":"/"}')

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        with FakeServer(greet) as server, connect(server) as sock:
            sock.sendall(b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\nGET /2 HTTP/1.0\r\nhost: x\r\n\r\n")
            answer = read_all(sock)
        assert 0 < answer.index(b'{"hello":"/1"}') < answer.index(b'{"hello":"/2"}')

    @pytest.mark.parametrize("first", [b"P", b"PRI * HTTP/2.0\r\n"])
    def test_a_preface_in_pieces(self, first: bytes) -> None:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        with FakeServer(greet) as server, connect(server) as sock:
            sock.sendall(first)
            with connect(server) as barrier:  # once it is answered, the first piece has been read as well
                barrier.sendall(GET)
                barrier.recv(100)
            sock.sendall(preface.removeprefix(first) + SettingsFrame(0).serialize())
            assert sock.recv(9)[3] == SettingsFrame.type

    def test_a_method_that_begins_like_the_preface(self) -> None:
        with FakeServer(greet) as server:
            assert httpx.request("PRIME", server.url).status_code == 200

    def test_http2_can_be_left_out_over_tls(self) -> None:
        with FakeServer(greet, tls=AUTHORITY, http2=False) as server, WIRES["http2-tls"].client(server) as client:
            assert client.get("/").http_version == "HTTP/1.1"

    def test_http2_can_be_left_out_on_plain_connections(self) -> None:
        with pytest.raises(h11.RemoteProtocolError), FakeServer(http2=False) as server, connect(server) as sock:
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            read_all(sock)


class TestFlowControl:
    """Windows by hand: the connection's is large, a stream's is the 65,535 bytes of RFC 9113, 6.9.2."""

    @staticmethod
    async def answer(request: Request, reply: Reply) -> None:
        await reply.start()
        await reply.send(b"x" * int(request.query))
        await reply.end()

    def test_a_stalled_stream_holds_up_no_other_and_goes_on_when_credited(self) -> None:
        with FakeServer(self.answer) as server, Peer(server) as peer:
            peer.send(WindowUpdateFrame(0, window_increment=10_000_000), peer.head(1, "/?200000"))
            assert len(peer.body(1, 65_535)) == 65_535
            peer.send(peer.head(3, "/?60000"))
            assert len(peer.body(3)) == 60_000
            server.wait_for(lambda s: s.live == 1)
            peer.send(WindowUpdateFrame(1, window_increment=200_000))
            assert len(peer.body(1)) == 200_000 - 65_535

    def test_the_connections_window_wakes_every_stream(self) -> None:
        with FakeServer(self.answer) as server, Peer(server) as peer:
            peer.send(peer.head(1, "/?60000"))
            assert len(peer.body(1)) == 60_000
            peer.send(peer.head(3, "/?60000"))
            assert len(peer.body(3, 5_535)) == 5_535
            peer.send(WindowUpdateFrame(0, window_increment=100_000))
            assert len(peer.body(3)) == 60_000 - 5_535

    def test_settings_can_open_the_window(self) -> None:
        with FakeServer(self.answer) as server, Peer(server, {SettingsFrame.INITIAL_WINDOW_SIZE: 10}) as peer:
            peer.send(peer.head(1, "/?50"))
            assert len(peer.body(1, 10)) == 10
            peer.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 100}))
            assert len(peer.body(1)) == 40

    def test_long_bodies_take_turns(self) -> None:
        settings = {SettingsFrame.INITIAL_WINDOW_SIZE: 2**30}
        with FakeServer(self.answer) as server, Peer(server, settings) as peer:
            credit = WindowUpdateFrame(0, window_increment=2**30)
            peer.send(credit, peer.head(1, "/?1000000"), peer.head(3, "/?1000000"))
            frames = peer.until(lambda frame: frame.stream_id == 3 and "END_STREAM" in frame.flags)
        streams = [frame.stream_id for frame in frames if isinstance(frame, DataFrame)]
        turns = sum(before != after for before, after in pairwise(streams))
        assert turns > 100  # a million bytes are 62 frames

    def test_a_full_socket_stops_the_handler_over_http2(self) -> None:
        wide = 2**31 - 1
        with FakeServer(self.answer) as server, Peer(server, {SettingsFrame.INITIAL_WINDOW_SIZE: wide}) as peer:
            peer.send(WindowUpdateFrame(0, window_increment=wide - 65_535), peer.head(1, f"/?{64 * 2**20}"))
            server.wait_for(lambda s: s.live == 1)
            # Nothing tells that a server has stopped for good: it has had half a second for 64 MB.
            with pytest.raises(TimeoutError):
                server.wait_for(lambda s: s.live == 0, timeout=0.5)
            assert len(peer.body(1)) == 64 * 2**20

    def test_a_client_that_does_not_read_stops_the_handler(self, wire: Wire) -> None:
        sent = 0

        async def handler(request: Request, reply: Reply) -> None:
            nonlocal sent
            await reply.start()
            for _ in range(64):
                await reply.send(bytes(2**20))
                sent += 1
            await reply.end()

        with wire.server(handler) as server, wire.client(server) as client, client.stream("GET", "/") as response:
            # Nothing tells that a server has stopped for good: it has had half a second for 64 MB.
            with pytest.raises(TimeoutError):
                server.wait_for(lambda s: s.live == 0, timeout=0.5)
            assert sent < 60
            assert sum(map(len, response.iter_raw())) == 64 * 2**20
        assert sent == 64


class TestFaults:
    def test_reset_over_http2_carries_the_code(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            reply.reset(7 if request.path == "/refused" else 2)

        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1, "/refused"))
            assert peer.reset(1) == 7
            peer.send(peer.head(3))  # the connection lives on
            assert peer.reset(3) == 2

    def test_reset_over_http1_is_a_tcp_reset(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            reply.reset()

        with FakeServer(handler) as server, connect(server) as sock:
            sock.sendall(GET)
            with pytest.raises(ConnectionResetError):
                read_all(sock)
            server.wait_for(lambda s: (s.connections, s.live) == (0, 0))

    def test_reset_before_anything_was_sent(self, wire: Wire) -> None:
        with wire.server(reset) as server, wire.client(server) as client, pytest.raises(httpx.TransportError):
            client.get("/")

    def test_reset_after_the_client_has_gone(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            await reply.cancelled()
            await asyncio.sleep(0)  # now the socket is closed
            reply.reset()

        with wire.server(handler) as server:
            with wire.client(server) as client, client.stream("GET", "/"):
                pass
            server.wait_for(lambda s: (s.live, s.connections) == (0, 0))

    def test_reset_of_a_stream_that_h2_has_forgotten(self) -> None:
        newer = asyncio.Event()

        async def handler(request: Request, reply: Reply) -> None:
            if request.stream_id == 3:  # h2 forgets closed streams when a new one opens
                newer.set()
                return await greet(request, reply)
            await half(request, reply)
            await reply.cancelled()
            await newer.wait()
            reply.reset()

        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            peer.body(1, 4)
            peer.send(RstStreamFrame(1, error_code=CANCEL), peer.head(3))
            peer.body(3)
            server.wait_for(lambda s: s.live == 0)

    def test_an_error_after_a_reset_that_h2_has_forgotten(self) -> None:
        newer = asyncio.Event()

        async def handler(request: Request, reply: Reply) -> None:
            if request.stream_id == 3:
                newer.set()
                return await greet(request, reply)
            reply.reset()
            await newer.wait()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            peer.reset(1)
            peer.send(peer.head(3))
            peer.body(3)
            server.wait_for(lambda s: s.live == 0)

    def test_close_cuts_the_answer(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            reply.close()

        with wire.server(handler) as server, wire.client(server) as client:
            with client.stream("GET", "/") as response:
                pieces = response.iter_raw()
                assert next(pieces) == b"half"
                with pytest.raises(httpx.RemoteProtocolError):
                    next(pieces)
            server.wait_for(lambda s: (s.connections, s.live) == (0, 0))

    @only_http1
    def test_close_is_a_fin_and_no_reset(self, wire: Wire) -> None:
        unread = threading.Event()

        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            unread.wait(5)  # in the loop, so that what comes now is not read before the close
            reply.close()

        with wire.server(handler) as server, wire.socket(server) as sock:
            sock.sendall(GET)
            answer = sock.recv(1)
            sock.sendall(GET)
            unread.set()
            assert (answer + read_all(sock)).endswith(b"4\r\nhalf\r\n")

    def test_close_comes_after_what_was_sent(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await reply.start(418)
            reply.close()

        with wire.server(handler) as server, wire.client(server) as client, client.stream("GET", "/") as response:
            assert response.status_code == 418

    def test_close_stops_the_siblings(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            if request.path == "/closer":
                reply.close()
            await reply.cancelled()

        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1), peer.head(3, "/closer"))
            while peer.read():
                pass
            server.wait_for(lambda s: s.live == 0, timeout=0.5)  # at the close, and not when the connection is lost

    def test_nothing_is_heard_after_the_close(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            reply.close()

        with FakeServer(handler) as server:
            with Peer(server) as peer:
                peer.send(peer.head(1))
                while peer.read():
                    pass
                peer.send(peer.head(3))
            server.wait_for(lambda s: s.connections == 0)
        assert [request.stream_id for request in server.requests] == [1]

    def test_raw_over_http1(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            reply.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort")

        with FakeServer(handler) as server:
            with connect(server) as sock:
                sock.sendall(GET)
                assert read_all(sock).endswith(b"\r\n\r\nshort")
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
                httpx.get(server.url)

    def test_raw_over_http2_comes_between_frames(self) -> None:
        ping = PingFrame(0, opaque_data=b"12345678").serialize()

        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            reply.raw(ping)
            await reply.send(b"rest")
            await reply.end()

        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            frames = peer.until(lambda frame: "END_STREAM" in frame.flags)
            kept = [frame for frame in frames if isinstance(frame, DataFrame | PingFrame)]
            assert [type(frame) for frame in kept] == [DataFrame, PingFrame, DataFrame, DataFrame]

    @pytest.mark.parametrize(("last", "code"), [(1, 0), (0, 11), (2**31 - 1, 0)])
    def test_goaway_and_the_stream_goes_on(self, last: int, code: int) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            reply.goaway(last, code)
            await reply.send(b"rest")
            await reply.end()

        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            frames = peer.until(lambda frame: "END_STREAM" in frame.flags)
        goaway = next(frame for frame in frames if isinstance(frame, GoAwayFrame))
        assert (goaway.last_stream_id, goaway.error_code) == (last, code)
        assert b"".join(frame.data for frame in frames if isinstance(frame, DataFrame)) == b"halfrest"

    def test_streams_above_goaway_are_ignored(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            if request.stream_id == 1:
                reply.goaway(3)
            await greet(request, reply)

        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            assert peer.body(1) == b'{"hello":"/"}'
            peer.send(peer.head(5), peer.head(7), PingFrame(0))
            peer.until(lambda frame: isinstance(frame, PingFrame))
        assert [request.stream_id for request in server.requests] == [1]

    def test_goaway_makes_httpx_connect_anew(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await greet(request, reply)
            reply.goaway(request.stream_id)

        wire = WIRES["http2-tls"]
        with wire.server(handler) as server, wire.client(server) as client:
            assert [client.get("/").status_code, client.get("/").status_code] == [200, 200]
        assert [request.connection for request in server.requests] == [1, 2]

    def test_http1_has_no_goaway(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            reply.goaway(1)

        with pytest.raises(RuntimeError, match=r"HTTP/1\.1"), FakeServer(handler) as server:
            httpx.get(server.url)


class TestStop:
    """The client stops: the handler is told at once, by the event or by its next send."""

    @staticmethod
    async def wait(request: Request, reply: Reply) -> None:
        await half(request, reply)
        await reply.cancelled()

    @staticmethod
    async def talk(request: Request, reply: Reply) -> None:
        await reply.start()
        while True:
            await reply.send(b"more")

    @pytest.mark.parametrize("handler", [wait, talk])
    def test_rst_stream(self, handler: Handler) -> None:
        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1), peer.head(3))
            peer.until(lambda frame: isinstance(frame, DataFrame) and frame.stream_id == 3)
            peer.send(RstStreamFrame(1, error_code=CANCEL))
            server.wait_for(lambda s: s.live == 1)
            assert Frame(type="RST_STREAM", connection=1, stream_id=1, error_code=CANCEL) in server.frames
            peer.send(RstStreamFrame(3, error_code=CANCEL))
            server.wait_for(lambda s: s.live == 0)
            assert server.connections == 1

    @pytest.mark.parametrize("handler", [wait, talk])
    def test_the_connection_is_lost(self, wire: Wire, handler: Handler) -> None:
        with wire.server(handler) as server:
            with wire.client(server) as client, client.stream("GET", "/") as response:
                pieces = response.iter_raw()
                next(pieces)
                assert (server.live, server.connections) == (1, 1)
            server.wait_for(lambda s: (s.live, s.connections) == (0, 0))

    @pytest.mark.parametrize("handler", [wait, talk])
    def test_the_task_that_reads_is_cancelled(self, handler: Handler) -> None:
        async def read() -> None:
            async with httpx.AsyncClient() as client, client.stream("GET", server.url) as response:
                async for _ in response.aiter_raw():
                    begun.set()

        async def main() -> None:
            task = asyncio.create_task(read())
            await begun.wait()
            task.cancel()
            await asyncio.to_thread(server.wait_for, lambda s: (s.live, s.connections) == (0, 0))

        begun = asyncio.Event()
        with FakeServer(handler) as server:
            asyncio.run(main())

    def test_a_send_that_waits_for_flow_control(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await reply.start()
            await reply.send(bytes(100_000))

        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            assert len(peer.body(1, 65_535)) == 65_535
            peer.send(RstStreamFrame(1, error_code=CANCEL))
            server.wait_for(lambda s: s.live == 0)

    def test_a_send_that_waits_for_the_socket(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await reply.start()
            await reply.send(bytes(64 * 2**20))
            await reply.end()

        with FakeServer(handler) as server:
            with connect(server) as sock:
                sock.sendall(GET)
                while b"\0" not in sock.recv(1000):
                    pass
            server.wait_for(lambda s: (s.live, s.connections) == (0, 0))

    def test_the_handler_may_go_on_after_it(self) -> None:
        stopped = []

        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            watcher = asyncio.create_task(reply.cancelled())
            try:
                await reply.send(bytes(100_000))
            except ClientStopped as error:
                stopped.append(str(error))
            await watcher

        with FakeServer(handler) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            assert len(peer.body(1, 65_535)) == 65_535
            peer.send(RstStreamFrame(1, error_code=CANCEL))
            server.wait_for(lambda s: s.live == 0)
        assert stopped == ["the client stopped request 1"]

    def test_an_upload_that_is_broken_off(self) -> None:
        with FakeServer(greet) as server, Peer(server) as peer:
            peer.send(peer.head(1, end=False), DataFrame(1, b"half"), RstStreamFrame(1, error_code=CANCEL))
            peer.send(peer.head(3))
            assert peer.body(3) == b'{"hello":"/"}'
        assert [request.stream_id for request in server.requests] == [3]

    def test_goaway_of_the_client(self) -> None:
        with FakeServer(self.talk) as server, Peer(server) as peer:
            peer.send(peer.head(1, end=False), DataFrame(1, b"x", flags=["END_STREAM"]), GoAwayFrame(0, error_code=0))
            while peer.read():
                pass
            server.wait_for(lambda s: s.live == 0)
        assert server.frames[-1] == Frame(type="GOAWAY", connection=1, error_code=0)


class TestLogs:
    def test_frames(self) -> None:
        with FakeServer(greet) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            peer.body(1)
            peer.send(WindowUpdateFrame(0, window_increment=1))
            server.wait_for(lambda s: len(s.frames) == 2)
        assert [(frame.type, frame.stream_id, frame.error_code) for frame in server.frames] == [
            ("SETTINGS", 0, None),
            ("WINDOW_UPDATE", 0, None),
        ]

    def test_resets_of_our_own_are_not_logged(self) -> None:
        with FakeServer(reset) as server, Peer(server) as peer:
            peer.send(peer.head(1))
            peer.reset(1)
            # A window beyond 2^31 - 1 is a stream error, for which h2 makes a reset by itself.
            peer.send(peer.head(3, end=False), WindowUpdateFrame(3, window_increment=2**31 - 1))
            peer.reset(3)
        assert {frame.type for frame in server.frames} == {"SETTINGS"}

    def test_wait_for_wakes_at_every_change(self) -> None:
        release = threading.Event()

        async def handler(request: Request, reply: Reply) -> None:
            await asyncio.to_thread(release.wait, 5)
            await greet(request, reply)

        with FakeServer(handler) as server:
            thread = threading.Thread(target=httpx.get, args=(server.url,))
            thread.start()
            server.wait_for(lambda s: s.live == 1)
            assert (len(server.requests), server.connections) == (1, 1)
            release.set()
            server.wait_for(lambda s: (s.live, s.connections) == (0, 0))
            thread.join()

    def test_wait_for_gives_up_and_says_what_there_was(self) -> None:
        with FakeServer() as server:
            httpx.get(server.url + "/v1/models")
            begun = time.perf_counter()
            with pytest.raises(TimeoutError, match=r"not within 0\.05 s: .* 1 requests"):
                server.wait_for(lambda s: len(s.requests) == 2, timeout=0.05)
            assert 0.04 < time.perf_counter() - begun < 1

    def test_replies_are_not_kept(self, wire: Wire) -> None:
        kept: weakref.WeakSet[Reply] = weakref.WeakSet()

        async def handler(request: Request, reply: Reply) -> None:
            kept.add(reply)
            await greet(request, reply)

        with wire.server(handler) as server, wire.client(server) as client:
            client.get("/")
            server.wait_for(lambda s: s.live == 0)
            gc.collect()
            assert (server.connections, len(kept)) == (1, 0)


class TestErrors:
    @pytest.mark.parametrize("before", [nothing, half, reset])
    def test_a_handlers_exception_comes_out_of_with(self, wire: Wire, before: Handler) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await before(request, reply)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as info, wire.server(handler) as server, wire.client(server) as client:
            client.get("/")
        assert isinstance(info.value.__context__, httpx.NetworkError | httpx.ProtocolError)  # at once: no timeout

    def test_several_come_as_a_group(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            raise ZeroDivisionError

        with pytest.raises(ExceptionGroup) as info, FakeServer(handler) as server:
            for _ in range(2):
                with pytest.raises(httpx.TransportError):
                    httpx.get(server.url)
        assert [type(error) for error in info.value.exceptions] == [ZeroDivisionError] * 2

    def test_it_takes_the_place_of_the_tests_own(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as info, FakeServer(handler) as server:
            httpx.get(server.url)
        assert isinstance(info.value.__context__, httpx.TransportError)

    def test_but_not_of_an_interrupt(self) -> None:
        with pytest.raises(KeyboardInterrupt), FakeServer() as server:
            server.errors.append(ZeroDivisionError())
            raise KeyboardInterrupt

    def test_outcomes_of_pytest_count(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            pytest.fail("no good")

        with pytest.raises(pytest.fail.Exception, match="no good"), FakeServer(handler) as server:
            httpx.get(server.url)

    def test_expected_ones_can_be_cleared(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            raise ZeroDivisionError

        with FakeServer(handler) as server:
            with pytest.raises(httpx.TransportError):
                httpx.get(server.url)
            assert [type(error) for error in server.errors] == [ZeroDivisionError]
            server.errors.clear()

    def test_an_error_after_the_end_does_not_touch_the_answer(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await greet(request, reply)
            raise ZeroDivisionError

        with pytest.raises(ExceptionGroup), wire.server(handler) as server, wire.client(server) as client:
            assert [client.get("/").status_code, client.get("/").status_code] == [200, 200]
            server.wait_for(lambda s: s.live == 0)
        assert {request.connection for request in server.requests} == {1}

    def test_what_a_handler_left_running_counts(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            asyncio.get_running_loop().call_soon(lambda: 1 / 0)
            await greet(request, reply)

        with pytest.raises(ZeroDivisionError), FakeServer(handler) as server:
            httpx.get(server.url)

    def test_a_forgotten_end(self, wire: Wire) -> None:
        unended = pytest.raises(RuntimeError, match="without ending its reply")
        with unended as info, wire.server(half) as server, wire.client(server) as client:
            client.get("/")
        assert isinstance(info.value.__context__, httpx.NetworkError | httpx.ProtocolError)  # at once: no timeout

    def test_a_client_that_does_not_speak_http(self) -> None:
        with pytest.raises(h11.RemoteProtocolError) as info, FakeServer() as server, connect(server) as sock:
            sock.sendall(b"\x00garbage\r\n\r\n")
            assert read_all(sock) == b""
        assert info.value.__context__ is None

    def test_a_client_that_does_not_speak_http2(self) -> None:
        with pytest.raises(ProtocolError) as info, FakeServer() as server, Peer(server) as peer:
            peer.send(DataFrame(1, b"on a stream that is idle"))
            peer.until(lambda frame: isinstance(frame, GoAwayFrame))
            assert peer.read() is None
        assert not isinstance(info.value.__context__, AssertionError | OSError)

    def test_a_client_that_does_not_trust_us_is_no_error(self) -> None:
        refused = pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED")
        with FakeServer(tls=True) as server, refused:
            httpx.get(server.url, verify=AUTHORITY.client_context())
        assert server.connections == 0


@contextmanager
def nothing_left(seconds: float = 2.0) -> Iterator[None]:
    """Check that the block leaves no thread, no descriptor, no warning, and is left within ``seconds``."""
    descriptors = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
    threads = set(threading.enumerate())
    begun = time.perf_counter()
    yield
    assert time.perf_counter() - begun < seconds
    assert set(threading.enumerate()) == threads
    gc.collect()  # ResourceWarnings come out here, and pytest makes errors of them
    assert not descriptors or os.listdir("/proc/self/fd") == descriptors


class TestExit:
    def test_never_used(self) -> None:
        with nothing_left(), FakeServer():
            pass

    def test_the_port_is_closed(self) -> None:
        with FakeServer() as server:
            pass
        with pytest.raises(ConnectionRefusedError):
            connect(server)

    def test_idle_connections(self, wire: Wire) -> None:
        client = None
        with nothing_left():
            with wire.server(greet) as server:
                client = wire.client(server)
                client.get("/")
            assert server.connections == 0
            client.close()

    def test_a_connection_that_never_says_a_word(self) -> None:
        with nothing_left(), FakeServer() as server, connect(server):
            server.wait_for(lambda s: s.connections == 1)

    def test_a_connection_in_the_middle_of_the_preface(self) -> None:
        with nothing_left(), FakeServer() as server, connect(server) as sock:
            sock.sendall(b"PRI")
            server.wait_for(lambda s: s.connections == 1)

    def test_tls_handshakes_under_way(self) -> None:
        with nothing_left():
            with FakeServer(greet, tls=AUTHORITY) as server:
                silent, begun = connect(server), connect(server)
                begun.sendall(b"\x16\x03\x01")
                with httpx.Client(verify=AUTHORITY.client_context()) as client:
                    client.get(server.url)  # accepted after those two
            assert (silent.recv(1), begun.recv(1)) == (b"", b"")
            silent.close()
            begun.close()

    def test_connections_of_this_moment(self) -> None:
        for tls in (False, AUTHORITY):
            with nothing_left():
                with FakeServer(tls=tls) as server:
                    socks = [connect(server) for _ in range(50)]
                for sock in socks:
                    sock.close()

    @pytest.mark.parametrize("handler", [TestStop.wait, TestStop.talk])
    def test_clients_that_still_stream(self, wire: Wire, handler: Handler) -> None:
        with nothing_left():
            with wire.server(handler) as server:
                client = wire.client(server)
                response = client.send(client.build_request("GET", "/"), stream=True)
                pieces = response.iter_raw()
                next(pieces)
            assert (server.live, server.connections) == (0, 0)
            with pytest.raises(httpx.TransportError):
                for _ in pieces:
                    pass
            response.close()
            client.close()

    def test_a_client_that_does_not_read(self) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await reply.start()
            await reply.send(bytes(64 * 2**20))

        with nothing_left():
            with FakeServer(handler) as server:
                sock = connect(server)
                sock.sendall(GET)
                sock.recv(1)
            sock.close()

    @only_http1
    def test_a_client_that_does_not_answer_a_close(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            await half(request, reply)
            reply.close()

        with nothing_left():
            with wire.server(handler) as server:
                sock = wire.socket(server)
                sock.sendall(GET)
                sock.recv(1)
                server.wait_for(lambda s: s.live == 0)
                assert server.connections == 1
            assert server.connections == 0
            sock.close()

    @only_http1
    def test_but_it_does_not_stay_open_for_long(self, wire: Wire) -> None:
        async def handler(request: Request, reply: Reply) -> None:
            reply.close()

        with wire.server(handler) as server, wire.socket(server) as sock:
            sock.sendall(GET)
            server.wait_for(lambda s: len(s.requests) == 1)
            server.wait_for(lambda s: s.connections == 0, timeout=2)

    def test_handlers_are_cancelled_and_may_clean_up(self) -> None:
        clean = []

        async def handler(request: Request, reply: Reply) -> None:
            try:
                await reply.start()
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                clean.append(True)

        with nothing_left(), FakeServer(handler) as server, connect(server) as sock:
            sock.sendall(GET)
            sock.recv(1)
        assert clean == [True]

    def test_inside_the_clients_loop(self) -> None:
        async def main() -> None:
            with FakeServer(tls=AUTHORITY) as server:
                async with httpx.AsyncClient(http2=True, verify=AUTHORITY.client_context()) as client:
                    await client.post(server.url + CHAT, json={})

        with nothing_left():
            asyncio.run(main())

    def test_after_an_exception_in_the_test(self) -> None:
        with nothing_left(), pytest.raises(ZeroDivisionError), FakeServer():
            raise ZeroDivisionError

    def test_a_handler_that_blocks_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PATIENCE", 0.1)
        release = threading.Event()

        async def handler(request: Request, reply: Reply) -> None:
            release.wait(5)

        with nothing_left():
            stuck = pytest.raises(RuntimeError, match="a handler did not stop within")
            with stuck, FakeServer(handler) as server, connect(server) as sock:
                sock.sendall(GET)
                server.wait_for(lambda s: s.live == 1)
            release.set()
            server.wait_for(lambda s: s.live == 0)
            for thread in threading.enumerate():
                if thread.name == "FakeServer":
                    thread.join()


class TestAuthority:
    def test_path_can_be_given_for_verify(self) -> None:
        with FakeServer(tls=True) as server:
            assert server.authority
            verify = ssl.create_default_context(cafile=server.authority.path)
            assert httpx.get(server.url + "/v1/models", verify=verify).status_code == 200

    def test_path_goes_with_the_authority(self) -> None:
        authority = Authority()
        path = authority.path
        assert os.path.exists(path)
        assert authority.path == path
        del authority
        gc.collect()
        assert not os.path.exists(path)

    def test_certificates_hold_for_localhost_by_name_and_number(self) -> None:
        with FakeServer(tls=AUTHORITY) as server:
            for host in ("127.0.0.1", "localhost"):
                with AUTHORITY.client_context().wrap_socket(connect(server), server_hostname=host) as sock:
                    assert sock.version() == "TLSv1.3"

    def test_and_for_nothing_else(self) -> None:
        refused = pytest.raises(ssl.SSLCertVerificationError)
        with FakeServer(tls=AUTHORITY) as server, connect(server) as sock, refused:
            AUTHORITY.client_context().wrap_socket(sock, server_hostname="example.org")

    def test_no_server_without_tls_has_one(self) -> None:
        assert FakeServer().authority is None
        assert FakeServer(tls=AUTHORITY).authority is AUTHORITY
