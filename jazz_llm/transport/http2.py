"""A client's HTTP/2 connection (RFC 9113), pure: bytes and calls in, exchanges and bytes out.

The rules that this file keeps (sections are RFC 9113's):

Streams
    idle -> open at ``start`` -> closed, when the response ended or either side reset the stream. A response that ends before
    its request was sent resets the rest with NO_ERROR (8.1). An exchange that is finished early stays open until its
    END_STREAM; content that comes for it resets it. What comes for a closed stream is decoded (HPACK's table is shared) and
    credited to the connection, then dropped; after END_STREAM it is answered by STREAM_CLOSED, once. What comes for a stream
    that never was ends the connection (5.1.1).
Limits
    One stream until the server's SETTINGS have come, then as many as they say, never more than MOST_STREAMS.
Windows
    Ours: WINDOW a stream, credited as its content is taken; CONNECTION_WINDOW, credited as content comes, so that no slow
    reader holds up the others. Each is given back by halves. Padding counts. The server's: content beyond them waits in
    ``exchange.unsent``, and the streams that have some take turns, a frame each.
Responses
    Interim ones are counted and dropped, 101 is refused (8.6), trailers are dropped. A malformed response is a stream error
    (8.1.1), but one shorter than its content-length is a body cut short.
Ends
    A fault of one stream ends its exchange alone, by RST_STREAM. A fault of the connection ends all, by GOAWAY. A GOAWAY from
    the server fails those above its last stream as unprocessed; the others go on (6.8).
Bounds
    A header section: MAX_HEAD bytes, as sent and as decoded. Content: the windows. Frames that bring nothing: MOST_IDLE in a
    row. What is kept of a read: less than a frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hpack import Decoder, OversizedHeaderListError

from .exchange import MAX_HEAD, MAX_INTERIM, WHOLE_PIECE, Exchange, Fault, LostError, ProtocolError, Request
from .frames import (
    ACK,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD,
    HEAD_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LONG,
    MASK,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    BrokenError,
    ErrorCode,
    Head,
    code_name,
    content_length,
    expect_size,
    fragment_of,
    frame,
    read_head,
    read_settings,
    request_block,
    settings,
    unpad,
)

WINDOW = 512 * 1024  # what one slow reader may hold
WHOLE_EXTRA = 4 * 1024 * 1024  # added for an answer that is read as a whole, and is long
CONNECTION_WINDOW = 16 * 1024 * 1024
DEFAULT_WINDOW = 65_535  # section 6.9.2
FRAME_SIZE = 2**14  # the longest payload that we take: SETTINGS_MAX_FRAME_SIZE's default
TOO_LONG = (FRAME_SIZE + 1) << 8  # a frame head's first four bytes, from which on the payload is longer
TABLE_SIZE = 4096  # of HPACK: SETTINGS_HEADER_TABLE_SIZE's default
MOST_STREAMS = 1000
MOST_IDLE = 1000  # frames in a row that bring nothing
MOST_CHUNKS = 1000  # of one exchange, looked at after every STEP bytes that nobody took
STEP = 64 * 1024
MOST_KEPT = 32  # request blocks, decoded heads
MOST_ENDED = 128  # streams of which it is remembered that they ended by END_STREAM

_INDEXED = bytes(range(0x81, 0xFF))  # a field in one byte that changes no table (RFC 7541, section 6.1)
_CREDIT_CONNECTION = frame(WINDOW_UPDATE, 0, 0, LONG.pack(CONNECTION_WINDOW - DEFAULT_WINDOW))
_HELLO = {ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: WINDOW, MAX_HEADER_LIST_SIZE: MAX_HEAD}

_unpack = HEAD.unpack_from


class _Stream:
    """What flow control and the message's length allow one exchange: the protocol's ``Exchange.state``.

    Of a body of ``length`` bytes, the reader has ``taken`` some, and the server may send as far as ``granted``, ``size`` bytes
    ahead. ``limit`` is what ``held`` may reach by plain DATA frames, -1 where none may come. ``shown`` is what a whole exchange
    held when it was last returned.
    """

    __slots__ = ("granted", "interim", "length", "limit", "send_window", "shown", "size", "taken")

    def __init__(self, send_window: int) -> None:
        self.send_window = send_window
        self.size = self.granted = WINDOW
        self.length: int | None = None
        self.limit = -1
        self.interim = self.shown = self.taken = 0


class Http2:
    """One connection; see the top of this file, and ``HTTPConnection`` for its face.

    ``settled``: the server's SETTINGS have come. ``limit``: the streams that it allows.
    """

    version = "HTTP/2"

    def __init__(self) -> None:
        self.retired = False
        self.closing = False
        self.settled = False
        self.limit = 1
        self._streams: dict[int, Exchange] = {}
        self._finishing: dict[int, Exchange] = {}  # of those: nobody reads them any more
        self._ended: dict[int, None] = {}
        self._next = 1
        self._code: int | None = None  # the error that the server gave in GOAWAY
        # In
        self._rest = b""
        self._block: tuple[int, int, bytearray] | None = None  # a header section under way: stream, END_STREAM, its bytes
        self._decoder = Decoder(max_header_list_size=MAX_HEAD)
        self._decoder.max_allowed_table_size = TABLE_SIZE
        self._heads: dict[bytes, Head] = {}
        self._touched: dict[Exchange, None] = {}
        self._idle = 0  # frames in a row that brought nothing
        self._used = 0  # content not yet credited to the connection
        # Out
        self._out: list[bytes | memoryview] = [PREFACE, settings(_HELLO), _CREDIT_CONNECTION]
        self._blocks: dict[object, bytes] = {}
        self._sending: deque[Exchange] = deque()  # those with something unsent, in turn
        self._send_window = self._initial_window = DEFAULT_WINDOW
        self._frame_size = FRAME_SIZE
        self._opened = False  # a window of the server's has grown
        self._owed = 0  # what the server may still credit of content that it got, at the stream and at the connection

    # The face: what drivers call.

    @property
    def room(self) -> int:
        """Return how many more exchanges may be started now.

        Those being finished count as free: ``start`` resets the oldest of them where the server would not allow one more.
        """
        if self.retired or self.closing:
            return 0
        return max(0, self.limit - len(self._streams) + len(self._finishing))

    @property
    def busy(self) -> int:
        """Return how many exchanges are under way, those being finished included."""
        return len(self._streams)

    def start(self, request: Request, *, whole: bool) -> Exchange:
        """Begin an exchange; raise LostError where there is no room for it."""
        if not self.room:
            raise LostError("the connection takes no more requests", unprocessed=True)
        block = self._request_block(request)
        while len(self._streams) >= self.limit:  # ends: there is room
            self.stop(next(iter(self._finishing.values())))
        exchange = Exchange(request.method, whole=whole)
        exchange.id, self._next = self._next, self._next + 2
        self.retired = self._next > MASK  # section 5.1.1: no more streams on this connection
        exchange.state = _Stream(self._initial_window)
        self._streams[exchange.id] = exchange
        self._send_head(exchange.id, block, END_STREAM if not request.body else 0)
        if request.body:
            self._send_body(exchange, request.body)
        return exchange

    def receive(self, data: bytes) -> list[Exchange]:
        """Take what one read brought; return the exchanges that it touched, each once, in the order of the first touch.

        Plain DATA frames, nearly all there are, are taken in this loop: 0.4 us each in a read of 64 KB, 0.8 us alone in a read,
        where the h2 package takes 7.4 and 8.1 (frames of 150 bytes, CPython 3.11, one alternating run).
        """
        if self.closing:
            return []
        if self._rest:
            data, self._rest = self._rest + data, b""  # of bounded size: less than a frame, and a read
        streams, touched = {} if self._block else self._streams, self._touched
        size, begin, content = len(data), 0, 0
        try:
            while size - begin >= HEAD_SIZE:
                head, flags, number = _unpack(data, begin)
                body = begin + HEAD_SIZE
                end = body + (head >> 8)
                if end > size or head >= TOO_LONG:
                    self._expect_length(head)
                    break
                exchange = streams.get(number)
                if exchange is not None and head and not (head & 0xFF or flags):
                    held = exchange.held + end - body
                    if held <= exchange.state.limit:
                        exchange.chunks.append(data[body:end])
                        exchange.held = held
                        if not exchange.whole:
                            touched[exchange] = None
                        content += end - body
                        begin = end
                        continue
                if content:
                    self._idle = 0
                    self._spend(content)
                    content = 0
                self._frame(head & 0xFF, flags, number & MASK, data[body:end])
                streams = {} if self._block else self._streams  # within a header section no DATA may come: section 6.10
                begin = end
            if content:
                self._idle = 0
                self._spend(content)
            if begin < size:
                self._rest = data[begin:]
        except BrokenError as error:
            self._fail(error)
        if self._opened:
            self._send_waiting()
        due = list(touched)
        touched.clear()
        return due

    def lost(self, words: str) -> list[Exchange]:
        """Take the end of the connection; return the exchanges that it ended."""
        self._close_all(lambda: LostError(words or "the server closed the connection", code=self._code))
        due = list(self._touched)
        self._touched.clear()
        return due

    def outgoing(self) -> bytes:
        """Return what has to be written.

        The connection is credited here: before this, the server cannot know of it, and must keep to the old window.
        """
        if self._used >= CONNECTION_WINDOW // 2:
            self._out.append(frame(WINDOW_UPDATE, 0, 0, LONG.pack(self._used)))
            self._used = 0
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def take(self, exchange: Exchange) -> bytes:
        """Return the body that has come since, and credit it to the stream."""
        chunks = exchange.chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        size, stream = exchange.held, exchange.state
        exchange.held = stream.shown = 0
        stream.taken += size
        stream.limit -= size  # or less than it might be, until the next look
        if stream.granted - stream.taken <= stream.size // 2 and exchange.id in self._streams:
            self._credit(exchange)
        return data

    def stop(self, exchange: Exchange) -> None:
        """Give an exchange up, at the server too; do nothing where it is over."""
        exchange.chunks.clear()
        exchange.held = 0
        if exchange.id in self._streams:
            self._finishing[exchange.id] = exchange  # nobody is to be told
            self._reset(exchange, ErrorCode.CANCEL, LostError("stopped by the caller"))

    def finish(self, exchange: Exchange) -> None:
        """Want no more of an exchange: drop what is held, and wait for its end unread."""
        if exchange.id not in self._streams:
            return
        self._finishing[exchange.id] = exchange
        exchange.state.taken += exchange.held
        exchange.state.limit = -1
        exchange.chunks.clear()
        exchange.held = 0

    # Requests out.

    def _request_block(self, request: Request) -> bytes:
        """Return the header section; nearly all requests of a connection share it, but for content-length."""
        key = (request.method, request.origin, request.target, request.headers)
        block = self._blocks.get(key)
        if block is None:
            if len(self._blocks) >= MOST_KEPT:
                self._blocks.clear()
            block = self._blocks[key] = request_block(request)
        if request.body or request.method in {"POST", "PUT", "PATCH"}:  # RFC 9110, section 8.6
            return block + content_length(len(request.body))
        return block

    def _send_head(self, number: int, block: bytes, end: int) -> None:
        """Send a header section, in more than one frame where the server's frames are shorter (section 6.10)."""
        size = self._frame_size
        kind, flags = HEADERS, end
        while len(block) > size:
            self._out.append(frame(kind, flags, number, block[:size]))
            block = block[size:]
            kind, flags = CONTINUATION, 0
        self._out.append(frame(kind, flags | END_HEADERS, number, block))

    def _send_body(self, exchange: Exchange, body: bytes) -> None:
        """Send as much as the windows allow at once: those that wait already do so for windows of their own."""
        exchange.unsent = memoryview(body)
        while self._send_data(exchange):
            pass
        if exchange.unsent is not None:
            self._sending.append(exchange)

    def _send_waiting(self) -> None:
        """Send what the windows now allow, a frame of each stream in turn."""
        self._opened = False
        stuck = 0
        while self._send_window > 0 and stuck < len(self._sending):
            exchange = self._sending.popleft()
            stuck = 0 if self._send_data(exchange) else stuck + 1
            if exchange.unsent is not None:
                self._sending.append(exchange)

    def _send_data(self, exchange: Exchange) -> bool:
        """Send one DATA frame; return whether anything went out."""
        unsent, stream = exchange.unsent, exchange.state
        size = min(self._send_window, stream.send_window, self._frame_size)
        if unsent is None or size <= 0:
            return False
        piece, rest = unsent[:size], unsent[size:]
        size = len(piece)
        self._send_window -= size
        stream.send_window -= size
        self._owed += 2 * size
        self._out += (HEAD.pack(size << 8 | DATA, 0 if rest else END_STREAM, exchange.id), piece)
        exchange.unsent = rest or None
        return True

    # Frames in.

    def _expect_length(self, head: int) -> None:
        """Refuse a frame that is longer than we said we take."""
        if head >= TOO_LONG:
            words = "a frame too long" if self.settled else "no HTTP/2"
            raise BrokenError(ErrorCode.FRAME_SIZE_ERROR, words)

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Take any frame but the plain DATA frames of ``receive``."""
        if self._block and (kind != CONTINUATION or number != self._block[0]):
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "a header section that is not continued")
        if not self.settled and (kind != SETTINGS or flags & ACK):
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "no SETTINGS at the beginning")  # section 3.4
        if kind < len(_HANDLERS):
            _HANDLERS[kind](self, flags, number, payload)
        else:
            self._got_nothing()  # section 4.1: unknown types are ignored

    def _got_nothing(self) -> None:
        """Count a frame that brought nothing (section 10.5)."""
        self._idle += 1
        if self._idle > MOST_IDLE:
            raise BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "a flood of frames that bring nothing")

    def _stream(self, number: int) -> Exchange | None:
        """Return the exchange of a stream, None where it is closed (section 5.1)."""
        if number >= self._next or number % 2 == 0:
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "a frame for a stream that was never opened")
        return self._streams.get(number)

    def _late(self, number: int) -> None:
        """Drop what came for a closed stream; tell a server that sends more than the end, once."""
        if number in self._ended:
            del self._ended[number]
            self._out.append(frame(RST_STREAM, 0, number, LONG.pack(ErrorCode.STREAM_CLOSED)))

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        exchange = self._stream(number)
        content = unpad(flags, payload)
        self._spend(len(payload))  # padding too: section 6.9.1
        if content or (flags & END_STREAM and exchange is not None):
            self._idle = 0
        else:
            self._got_nothing()
        if exchange is None:
            self._late(number)
        elif number in self._finishing:
            self._got_unread(exchange, content, flags & END_STREAM)
        elif fault := self._refusal(exchange, len(content), len(payload)):
            self._reset(exchange, *fault)
        else:
            self._got_data(exchange, content, len(payload) - len(content), flags & END_STREAM)

    @staticmethod
    def _refusal(exchange: Exchange, content: int, size: int) -> tuple[ErrorCode, Fault] | None:
        """Return what is wrong with a DATA frame of ``size`` bytes, padding included."""
        stream: _Stream = exchange.state
        if stream.taken + exchange.held + size > stream.granted:
            return ErrorCode.FLOW_CONTROL_ERROR, ProtocolError("the server sent more than the stream's window")
        if not exchange.status:
            return ErrorCode.PROTOCOL_ERROR, ProtocolError("the server sent content before the response's head")
        if stream.length is not None and stream.taken + exchange.held + content > stream.length:
            return ErrorCode.PROTOCOL_ERROR, ProtocolError("the server sent more content than it told")
        return None

    def _got_unread(self, exchange: Exchange, content: bytes, end: int) -> None:
        """Take DATA that nobody will read: the end is welcome, more is not."""
        if content or not exchange.status:
            self.stop(exchange)
        elif end:
            self._end(exchange)

    def _got_data(self, exchange: Exchange, content: bytes, padding: int, end: int) -> None:
        """Take DATA that ``receive`` has left: the end, a padded frame, or one that brings more than ``limit``."""
        stream, chunks = exchange.state, exchange.chunks
        if content:
            chunks.append(content)
            exchange.held += len(content)
        if len(chunks) > MOST_CHUNKS:  # small ones take more memory than they hold
            chunks[:] = [b"".join(chunks)]
        stream.granted -= padding
        if end:
            return self._end(exchange)
        if stream.granted - stream.taken <= stream.size // 2:
            self._credit(exchange)
        _allow(exchange)
        if content and (not exchange.whole or self._wakes(exchange)):
            self._touched[exchange] = None

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        self._stream(number)
        self._block = number, flags & END_STREAM, bytearray(fragment_of(flags, payload))
        if flags & END_HEADERS:
            self._end_block()

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if self._block is None:
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._got_nothing()
        self._block[2].extend(payload)
        if len(self._block[2]) > MAX_HEAD:
            raise BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "a header section too long")
        if flags & END_HEADERS:
            self._end_block()

    def _end_block(self) -> None:
        """Take a complete header section; the decoder sees it even where nobody else does (section 4.3)."""
        assert self._block is not None
        number, end, block = self._block
        self._block = None
        head = self._decode(bytes(block))
        exchange = self._streams.get(number)
        if exchange is None:
            self._got_nothing()
            self._late(number)
        else:
            self._idle = 0
            self._got_head(exchange, head, end)

    def _decode(self, block: bytes) -> Head:
        """Decode a header section: 20 us for ten fields, so one that is made of indexed fields is kept.

        It means the same until another kind of block may have changed the table.
        """
        head = self._heads.get(block)
        if head is not None:
            return head
        indexed = not block.translate(None, _INDEXED)
        if not indexed or len(self._heads) >= MOST_KEPT:
            self._heads.clear()
        try:
            head = read_head(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "a header section too long") from None
        except Exception:  # a decoder's state is unknown after any error
            raise BrokenError(ErrorCode.COMPRESSION_ERROR, "a header section that cannot be decoded") from None
        if indexed:
            self._heads[block] = head
        return head

    def _got_head(self, exchange: Exchange, head: Head, end: int) -> None:
        """Take a head, an interim one or trailers (section 8.1)."""
        flaw = head.flaw or _misplaced(exchange.status, head.status, end)
        if flaw:
            self._reset(exchange, ErrorCode.PROTOCOL_ERROR, ProtocolError(f"the server sent {flaw}"))
        elif exchange.status:
            self._end(exchange)
        elif head.status < 200:
            exchange.state.interim += 1
            if exchange.state.interim > MAX_INTERIM:
                self._reset(exchange, ErrorCode.ENHANCE_YOUR_CALM, ProtocolError("the server sent too many interim responses"))
        else:
            self._got_final(exchange, head, end)

    def _got_final(self, exchange: Exchange, head: Head, end: int) -> None:
        exchange.status, exchange.headers = head.status, head.headers
        without_body = exchange.method == "HEAD" or head.status in {204, 304}  # RFC 9110, section 6.4.1
        exchange.state.length = 0 if without_body else head.length
        if exchange.id not in self._finishing:
            _allow(exchange)
            if not exchange.whole:
                self._touched[exchange] = None
        if end:
            self._end(exchange)

    def _rst_stream(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        expect_size(payload, 4)
        exchange = self._stream(number)
        if exchange is None:
            return self._got_nothing()
        code = int.from_bytes(payload)
        refused = code == ErrorCode.REFUSED_STREAM and not exchange.status
        self._close(exchange, LostError(f"the server reset the stream: {code_name(code)}", code=code, unprocessed=refused))

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if self.settled:
            self._got_nothing()
        if flags & ACK:
            return expect_size(payload, 0)
        told = read_settings(payload)
        if MAX_CONCURRENT_STREAMS in told or not self.settled:
            self.limit = min(told.get(MAX_CONCURRENT_STREAMS, MOST_STREAMS), MOST_STREAMS)
        self._frame_size = told.get(MAX_FRAME_SIZE, self._frame_size)
        if INITIAL_WINDOW_SIZE in told:
            self._resize_windows(told[INITIAL_WINDOW_SIZE])
        self.settled = True
        self._out.append(frame(SETTINGS, ACK, 0))

    def _resize_windows(self, size: int) -> None:
        """Let a new initial window change those of open streams, below zero too (section 6.9.2)."""
        change = size - self._initial_window
        self._initial_window = size
        for exchange in self._streams.values():
            exchange.state.send_window += change
            if exchange.state.send_window > MASK:
                raise BrokenError(ErrorCode.FLOW_CONTROL_ERROR, "a window too large")
        self._opened = True

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        raise BrokenError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which was refused")  # section 6.6

    def _priority(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        """Ignore it, on a stream in any state (section 6.3)."""
        if not number:
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on no stream")
        self._got_nothing()
        exchange = self._streams.get(number)
        if exchange is not None and len(payload) != 5:
            self._reset(exchange, ErrorCode.FRAME_SIZE_ERROR, ProtocolError("the server sent PRIORITY of a wrong size"))

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        expect_size(payload, 8)
        if number:
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        self._got_nothing()
        if not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))

    def _goaway(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if number:
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise BrokenError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
        self._got_nothing()
        last, code = int.from_bytes(payload[:4]) & MASK, int.from_bytes(payload[4:8])
        self.retired = True
        self._code = code or self._code
        words = f"the server goes away: {code_name(code)}"
        for exchange in [exchange for number, exchange in self._streams.items() if number > last]:
            self._close(exchange, LostError(words, code=code, unprocessed=True))

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        expect_size(payload, 4)
        grant = int.from_bytes(payload) & MASK
        if not self._sending and not self._owed:
            self._got_nothing()
        self._owed = max(0, self._owed - grant)
        self._opened = True
        if number:
            return self._grant(self._stream(number), grant)
        self._send_window += grant
        if not grant:
            raise BrokenError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of zero")
        if self._send_window > MASK:
            raise BrokenError(ErrorCode.FLOW_CONTROL_ERROR, "a window too large")

    def _grant(self, exchange: Exchange | None, grant: int) -> None:
        """Raise the window of a stream (section 6.9.1)."""
        if exchange is None:
            return
        exchange.state.send_window += grant
        if not grant:
            self._reset(exchange, ErrorCode.PROTOCOL_ERROR, ProtocolError("the server sent WINDOW_UPDATE of zero"))
        elif exchange.state.send_window > MASK:
            self._reset(exchange, ErrorCode.FLOW_CONTROL_ERROR, ProtocolError("the server made a window too large"))

    # Our windows.

    def _spend(self, size: int) -> None:
        """Count what came on the connection."""
        self._used += size
        if self._used > CONNECTION_WINDOW:
            raise BrokenError(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window")

    def _credit(self, exchange: Exchange, extra: int = 0) -> None:
        """Raise a stream's window to its full size, or more."""
        stream: _Stream = exchange.state
        stream.size += extra
        grant = stream.taken + stream.size - stream.granted
        stream.granted += grant
        self._out.append(frame(WINDOW_UPDATE, 0, exchange.id, LONG.pack(grant)))

    def _wakes(self, exchange: Exchange) -> bool:
        """Tell whether a whole exchange holds a piece worth waking for; such a long one gets a larger window."""
        stream: _Stream = exchange.state
        if exchange.held - stream.shown <= WHOLE_PIECE:
            return False
        stream.shown = exchange.held
        if stream.size == WINDOW:
            self._credit(exchange, WHOLE_EXTRA)
        return True

    # Ends.

    def _end(self, exchange: Exchange) -> None:
        """Take a response's END_STREAM."""
        stream: _Stream = exchange.state
        told, came = stream.length, stream.taken + exchange.held
        fault = None if told is None or came == told else LostError(f"the body was cut short: {came} of {told} bytes")
        exchange.ended = fault is None
        self._ended[exchange.id] = None
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        if exchange.unsent is None:
            self._close(exchange, fault)
        else:
            self._reset(exchange, ErrorCode.NO_ERROR, fault)

    def _reset(self, exchange: Exchange, code: ErrorCode, fault: Fault | None) -> None:
        """End a stream from our side."""
        self._out.append(frame(RST_STREAM, 0, exchange.id, LONG.pack(code)))
        self._close(exchange, fault)

    def _close(self, exchange: Exchange, fault: Fault | None) -> None:
        """Forget a stream, and tell its reader if it has one."""
        del self._streams[exchange.id]
        if exchange.unsent is not None:
            exchange.unsent = None
            self._sending.remove(exchange)
        exchange.fault = fault
        if self._finishing.pop(exchange.id, None) is None:
            self._touched[exchange] = None

    def _fail(self, error: BrokenError) -> None:
        """End the connection, which the server broke; its own reason, where it gave one before, is the better one."""
        words = f"the server broke the rules of HTTP/2: {error}"
        last = 0  # streams of the server's: it opens none
        self._out.append(frame(GOAWAY, 0, 0, LONG.pack(last) + LONG.pack(error.code)))
        self._close_all(lambda: ProtocolError(words) if self._code is None else LostError(words, code=self._code))

    def _close_all(self, make: Callable[[], Fault]) -> None:
        self.retired = self.closing = True
        for exchange in list(self._streams.values()):
            self._close(exchange, make())
        self._rest, self._block, self._opened, self._used = b"", None, False, 0


def _allow(exchange: Exchange) -> None:
    """Work out anew what an exchange may hold by its window and its length, and before its chunks are looked at."""
    stream: _Stream = exchange.state
    end = stream.granted if stream.length is None else min(stream.granted, stream.length)
    stream.limit = min(end - stream.taken, exchange.held + STEP)


def _misplaced(had: int, status: int, end: int) -> str:
    """Say what is wrong with a header section after a final status ``had``, 0 where there was none (section 8.1)."""
    if had:
        if status:
            return "a second response"
        return "" if end else "trailers that are not the end"
    if not status:
        return "a response without :status"
    if status == 101:
        return "101, which HTTP/2 does not have"  # section 8.6
    return "an interim response that is the end" if status < 200 and end else ""


_HANDLERS: tuple[Callable[[Http2, int, int, bytes], None], ...] = (
    Http2._data,
    Http2._headers,
    Http2._priority,
    Http2._rst_stream,
    Http2._settings,
    Http2._push_promise,
    Http2._ping,
    Http2._goaway,
    Http2._window_update,
    Http2._continuation,
)
