"""A client's HTTP/1.1 connection (RFC 9112): bytes in, exchanges out; no socket, no clock, no loop. exchange.py tells its face.

The rules, all of which live in this file ("9112 6.3" is section 6.3 of RFC 9112):

1. One exchange at a time. A request goes out as one piece, head and body; there is no pipelining (9112 9.3.2).
2. idle --start--> head --final head--> sized | chunked | until close --the message's end--> idle. Heads with 1xx are dropped
   (9110 15.2), but 101, for which nobody asks here, is an error. HEAD, 204, 304 and a 2xx to CONNECT end at the head, whatever
   their fields say (9112 6.3); what follows the last of these belongs to the tunnel, and stands in ``trailing``.
3. Heads and trailers are read as strictly as h11 reads them, but for what is named here. Lines end with CRLF, or with a bare
   LF, which 9112 2.2 permits; up to ``MAX_BLANK`` empty lines before the status line are skipped (h11: none), since some
   servers end a body with one too many. A folded line is joined by a space, as 9112 5.2 bids a user agent. Refused are control
   characters in a value, DEL included (h11 lets most through; 9110 5.5 calls them invalid), any version but 1.0 and 1.1, and
   what does not begin with ``HTTP/``, at its first wrong byte.
4. What frames the body is either plain or an error: ``chunked`` alone as transfer-encoding, one decimal content-length of at
   most 18 digits, which may be repeated (9112 6.3). Of both transfer-encoding wins, and the connection is not used again; nor
   is it after a transfer-encoding in HTTP/1.0, which is decoded all the same, as h11 does (9112 6.1: faulty, "close the
   connection after processing the message"). Where no body can be, in 1xx and trailers too, these fields are not looked at
   (h11 refuses illegal ones there as well).
5. In chunked framing a size line, and a chunk, ends with CRLF and never with a bare LF; a size has 1 to 16 hex digits, and may
   be followed by spaces (h11 lets them through for the sake of known servers) and by an extension, which is ignored; the line
   has at most ``MAX_LINE`` bytes. Trailers are checked as fields, bounded like a head, and dropped.
6. The connection may be used again after the message's end, unless either side said ``connection: close`` or the answer is
   HTTP/1.0 without ``connection: keep-alive`` (9112 9.3). Then, and as soon as bytes come that no request asked for, it is
   retired: they must never be taken for the next answer (9112 9.2).
7. Giving up an exchange closes the connection: HTTP/1.1 has no other way to tell the server.
8. A peer that breaks a rule ends the exchange with ProtocolError and the connection with it; a connection that ends too early,
   with LostError. Neither shows a byte of the request, and neither is ever raised here: a traceback would keep the frames, and
   what they hold, for as long as the fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .exchange import MAX_HEAD, MAX_INTERIM, WHOLE_PIECE, Exchange, Headers, LostError, ProtocolError, Request

MAX_BLANK = 4  # empty lines before a status line
MAX_LINE = 1024  # bytes of a chunk's size line; its extension is the only long thing there (h11: 16 KiB; nginx sends none)
MAX_DRAIN = 64 * 1024  # bytes of body read only to reach the message's end: above this, a new connection is the cheaper way
MAX_HEADS = 16  # encoded heads kept by a connection, which usually sends one over and over
MAX_SIZES = 4096  # size lines known by heart

CRLF = b"\r\n"
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # RFC 9110, section 5.6.2
TEXT = r"[\t\x20-\x7e\x80-\xff]*+"  # RFC 9110, section 5.5
# Possessive, so that no line of 64 KiB costs more than one look at each of its characters.
STATUS_LINE = re.compile(rf"HTTP/(1\.[01]) ([1-9][0-9][0-9])(?: {TEXT})?\r?\n")
FIELD_LINE = re.compile(rf"^({TOKEN}):({TEXT})\r?\n", re.MULTILINE)
FOLD = re.compile(r"\r?\n[ \t]++")
BLANK_LINE = re.compile(rb"\n\r?\n")
SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*+(?:;[\t\x20-\x7e\x80-\xff]*+)?(?:(\r\n)|\r?\Z)")
LENGTH = re.compile(r"[0-9]{1,18}")
REQUEST_LINE = re.compile(rf"{TOKEN} [\x21-\x7e]++ HTTP/1\.1\r\n")
WITH_LENGTH = frozenset({"POST", "PUT", "PATCH"})  # methods that say so when they have no body (RFC 9110, section 8.6)

# Size lines that were found legal, so that a chunk costs a look-up (0.04 us) instead of a pattern and an int() (0.5).
_sizes: dict[bytes, int] = {}


class Http1:
    """One connection; ``absolute`` and ``proxy_headers`` are for a proxy at its other end (RFC 9112, section 3.2.2)."""

    __slots__ = (
        "_absolute", "_blanks", "_dropped", "_exchange", "_heads", "_interims", "_keep", "_kept", "_left", "_length", "_line",
        "_out", "_proxy_headers", "_read", "_seen", "_tunnel", "_wanted", "_width", "closing", "retired", "trailing", "version",
    )  # fmt: skip

    limit = 1  # no pipelining
    settled = True

    def __init__(self, *, absolute: bool = False, proxy_headers: Headers = ()) -> None:
        self.version = "HTTP/1.1"  # of the last answer
        self.retired = False
        self.closing = False
        self.trailing = b""  # what followed a 2xx to CONNECT
        self._absolute = absolute
        self._proxy_headers = proxy_headers
        self._heads: dict[tuple[object, ...], tuple[bytes, bool]] = {}
        self._out = b""
        self._exchange: Exchange | None = None  # the one under way
        self._read: Callable[[Http1, Exchange, bytes], bytes] = Http1._head  # what takes the next bytes, and returns the rest
        self._wanted = True  # False once finish() was called
        self._dropped = 0  # bytes of body since then
        self._keep = True  # whether the connection can be used again
        self._tunnel = False
        self._kept = bytearray()  # the section under way: the LF of the line before it, and what has come of it
        self._seen = 0  # how much of it was searched for its end
        self._blanks = 0
        self._interims = 0
        self._length = 0  # content-length
        self._left = 0  # what is missing of it, or of a chunk and the CRLF behind it
        self._line = b""  # a size line cut by a read
        self._width = 4  # bytes of the last one

    @property
    def room(self) -> int:
        """Return 1 when an exchange may be started now, else 0."""
        return int(self._exchange is None and not (self.retired or self.closing or self._tunnel))

    @property
    def busy(self) -> int:
        """Return 1 while an exchange is under way, else 0."""
        return int(self._exchange is not None)

    # Requests

    def start(self, request: Request, *, whole: bool) -> Exchange:
        """Begin an exchange; LostError where there is no room, ValueError if the request cannot be written as HTTP/1.1.

        The words show nothing of the request.
        """
        if not self.room:
            raise LostError("the connection takes no more requests", unprocessed=True)
        head, self._keep = self._encoded(request)
        if not head:
            raise ValueError("the request's method, target or headers hold a character that HTTP/1.1 does not allow")
        if request.body or request.method in WITH_LENGTH:
            self._out += b"%bcontent-length: %d\r\n\r\n%b" % (head, len(request.body), request.body)
        else:
            self._out += head + CRLF
        self._exchange = exchange = Exchange(request.method, whole=whole)
        self._wanted = True
        self._interims = self._blanks = 0
        self._await_section(Http1._head)
        return exchange

    def outgoing(self) -> bytes:
        """Return what has to be written."""
        out, self._out = self._out, b""
        return out

    def _encoded(self, request: Request) -> tuple[bytes, bool]:
        """Return the head but for what frames the body, b"" if it is illegal, and whether it lets the connection live.

        Kept by its content: finding it costs 0.2 us, encoding and checking it 5.
        """
        key = (request.method, request.target, request.headers, request.origin)
        known = self._heads.get(key)
        if known is None:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            known = self._heads[key] = self._encode(request)
        return known

    def _encode(self, request: Request) -> tuple[bytes, bool]:
        target, host = request.target, request.authority
        if request.method == "CONNECT":
            host = target  # with its port, as curl and Go have it; 9112 3.3: the request-target is the authority
        elif self._absolute:
            target = f"http://{host}{target}"
        line = f"{request.method} {target} HTTP/1.1\r\n"
        headers = (("host", host), *self._proxy_headers, *request.headers)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
        # Legal is what reads back as what was asked, so that no value can bring a line of its own.
        legal = REQUEST_LINE.fullmatch(line) and fields(lines) == tuple([(name.lower(), value) for name, value in headers])
        return (line + lines).encode("latin-1") if legal else b"", "close" not in options(headers)

    # Answers

    def receive(self, data: bytes) -> list[Exchange]:
        """Take what one read brought: [exchange] if there is news of it for somebody, else []."""
        exchange = self._exchange
        if exchange is None:
            self._surplus(data)
            return []
        held, status = exchange.held, exchange.status
        while data and self._exchange:
            data = self._read(self, exchange, data)
        if self._exchange is None or not self._wanted:
            return self._over(exchange, data)
        if exchange.whole:
            return [exchange] if exchange.held > WHOLE_PIECE else []
        return [exchange] if exchange.held != held or exchange.status != status else []

    def lost(self, words: str) -> list[Exchange]:
        """Take the end of the connection, "" being a clean one."""
        self.retired = self.closing = True
        exchange = self._exchange
        if exchange is None:
            return []
        if self._read is Http1._until_close and not words:
            self._end(exchange)
        else:
            exchange.fault = LostError(self._missing(words))
            self._exchange = None
        return [exchange] if self._wanted else []

    def take(self, exchange: Exchange) -> bytes:
        """Return the body that has come since, b"" if none has."""
        chunks = exchange.chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        exchange.held = 0
        return data

    def stop(self, exchange: Exchange) -> None:
        """Give an exchange up: closing is all that HTTP/1.1 has to tell the server so."""
        if exchange is self._exchange:
            self._exchange = None
            self._out = b""
            exchange.chunks.clear()
            exchange.held = 0
            self.retired = self.closing = True

    def finish(self, exchange: Exchange) -> None:
        """Want no more of an exchange: read on to the message's end, if that is near and the connection can be used again."""
        if exchange is self._exchange:
            self._wanted = False
            self._dropped = -exchange.held  # what came before does not count
            self._drop(exchange)

    # How an exchange ends

    def _end(self, exchange: Exchange) -> None:
        exchange.ended = True
        self._exchange = None
        self.retired = self.retired or not self._keep

    def _fail(self, exchange: Exchange, words: str) -> bytes:
        """End the exchange and the connection; return that nothing is left to read."""
        exchange.fault = ProtocolError(words)
        self._exchange = None
        self.retired = self.closing = True
        return b""

    def _over(self, exchange: Exchange, data: bytes) -> list[Exchange]:
        """Return who is to know that an exchange is over, or nobody if its reader has finished; ``data`` followed it."""
        if data:
            self._surplus(data)
        if self._wanted:
            return [exchange]
        self._drop(exchange)
        return []

    def _surplus(self, data: bytes) -> None:
        """Take what follows the end of a message."""
        if self._tunnel:
            self.trailing += data
        elif data:
            self.retired = self.closing = True

    def _drop(self, exchange: Exchange) -> None:
        """Drop what came of a finished exchange, and the connection if its end is far or cannot save it."""
        self._dropped += exchange.held
        exchange.chunks.clear()
        exchange.held = 0
        if not self._keep or self._read is Http1._until_close or max(self._dropped, self._left) > MAX_DRAIN:
            self.stop(exchange)

    def _missing(self, words: str) -> str:
        """Say what the end of the connection left out."""
        if self._read is Http1._head:
            where = "before the answer" if len(self._kept) <= 1 else "within the head of the answer"
        elif self._read is Http1._sized:
            where = f"with {self._left} of {self._length} bytes of the body missing"
        elif self._read is Http1._until_close:
            where = "within the body"
        elif self._read is Http1._trailers:
            where = "within the trailers"
        else:
            where = "before the last chunk" + (f", with {self._left - 2} bytes of one missing" if self._left > 2 else "")
        return f"{words or 'closed'} {where}"

    # Heads

    def _await_section(self, read: Callable[[Http1, Exchange, bytes], bytes]) -> None:
        """Begin a header or trailer section; the LF of the line before it makes an empty section end as any other does."""
        self._read = read
        self._kept = bytearray(b"\n")
        self._seen = 0

    def _section(self, exchange: Exchange, data: bytes) -> tuple[str, bytes] | None:
        """Return the lines of a section, without the empty one that ends it, and what follows; None if more has to come."""
        kept = self._kept
        kept += data
        found = BLANK_LINE.search(kept, self._seen)
        if (found.end() if found else len(kept)) > MAX_HEAD:
            self._fail(exchange, f"more than {MAX_HEAD} bytes of header fields")
        elif found:
            text = kept[1 : found.start() + 1].decode("latin-1")
            return text, bytes(kept[found.end() :])
        self._seen = max(0, len(kept) - 2)
        return None

    def _head(self, exchange: Exchange, data: bytes) -> bytes:
        section = self._section(exchange, data)
        if section is None:
            begun = bytes(self._kept[1:6])
            alien = begun != b"\r" and not b"HTTP/".startswith(begun)
            return self._fail(exchange, "what came is not HTTP/1.1") if alien else b""
        text, rest = section
        self._await_section(Http1._head)
        if not text and self._blanks < MAX_BLANK:
            self._blanks += 1
            return rest
        start = STATUS_LINE.match(text)
        headers = fields(text[start.end() :]) if start else None
        if start is None or headers is None:
            return self._fail(exchange, "illegal header field" if start else "illegal status line")
        status = int(start[2])
        if status < 200:
            return self._interim(exchange, status, rest)
        self.version = f"HTTP/{start[1]}"
        words = self._frame(exchange, status, headers)
        if words:
            return self._fail(exchange, words)
        exchange.status, exchange.headers = status, headers
        return rest

    def _interim(self, exchange: Exchange, status: int, rest: bytes) -> bytes:
        self._interims += 1
        if status == 101:
            return self._fail(exchange, "101 to a request that asks for no other protocol")
        if self._interims > MAX_INTERIM:
            return self._fail(exchange, f"more than {MAX_INTERIM} interim responses")
        return rest

    def _frame(self, exchange: Exchange, status: int, headers: Headers) -> str:
        """Find out what ends the body (RFC 9112, section 6.3); return what is wrong with that, "" if nothing."""
        codings, lengths = listed(headers, "transfer-encoding"), listed(headers, "content-length")
        self._keep = self._keep and self._persists(headers) and not (codings and (lengths or self.version == "HTTP/1.0"))
        if exchange.method == "CONNECT" and status < 300:
            self._tunnel = self._keep = True  # what keeps or closes it is the tunnel's affair now
            self._end(exchange)
        elif exchange.method == "HEAD" or status in {204, 304}:
            self._end(exchange)
        elif lengths and (len(set(lengths)) > 1 or not LENGTH.fullmatch(lengths[0])):
            return f"content-length {lengths!r:.80}"
        elif codings:
            self._read = Http1._chunked
            return "" if [coding.lower() for coding in codings] == ["chunked"] else f"transfer-encoding {codings!r:.80}"
        elif lengths:
            self._read = Http1._sized
            self._length = self._left = int(lengths[0])
            if not self._left:
                self._end(exchange)
        else:
            self._read = Http1._until_close
        return ""

    def _persists(self, headers: Headers) -> bool:
        """Return whether the answer lets the connection live (RFC 9112, section 9.3)."""
        said = options(headers)
        return "close" not in said and (self.version == "HTTP/1.1" or "keep-alive" in said)

    # Bodies

    def _sized(self, exchange: Exchange, data: bytes) -> bytes:
        piece = data[: self._left]
        exchange.chunks.append(piece)
        exchange.held += len(piece)
        self._left -= len(piece)
        if not self._left:
            self._end(exchange)
        return data[len(piece) :]

    def _until_close(self, exchange: Exchange, data: bytes) -> bytes:
        exchange.chunks.append(data)
        exchange.held += len(data)
        return b""

    def _chunked(self, exchange: Exchange, data: bytes) -> bytes:
        """Take chunks as long as whole ones come; leave the rest to :meth:`_odd`.

        A size line is guessed to be as long as the last one and looked up, CRLF and all, so that most chunks need neither a
        search nor an int(). Chunks of 200 bytes, in one alternating run with h11 (its figures behind), `take` included: one a
        read 0.87 us (6.4), in reads of 64 KB 0.42 us (5.0).
        """
        at, stop, held, width, known, append = 0, len(data), 0, self._width, _sizes.get, exchange.chunks.append
        while at < stop:
            body = at + width
            size = known(data[at:body])
            if size is None:
                line = data[at : data.find(CRLF, at, at + MAX_LINE + 2) + 2]
                size = chunk_size(line)
                self._width = width = len(line)
                body = at + width
            end = body + size
            after = end + 2
            if size <= 0 or data[end:after] != CRLF:
                break
            append(data[body:end])
            held += size
            at = after
        exchange.held += held
        return self._odd(exchange, data[at:]) if at < stop else b""

    def _odd(self, exchange: Exchange, data: bytes) -> bytes:
        """Take the size line of a chunk that is the last or not whole, or what there is of the line."""
        begun = SIZE_LINE.match(data[: MAX_LINE + 2])
        if begun is None or (not begun[2] and begun.end() < len(data)):
            return self._fail(exchange, "illegal chunk size")
        if not begun[2]:
            self._line = data
            self._read = Http1._cut_line
            return b""
        size = int(begun[1], 16)
        if size:
            self._left = size + 2
            self._read = Http1._cut_chunk
        else:
            self._await_section(Http1._trailers)
        return data[begun.end() :]

    def _cut_line(self, exchange: Exchange, data: bytes) -> bytes:  # noqa: ARG002  # the signature of all readers
        """Put the pieces of a size line together; it is short enough for this to be linear."""
        self._read = Http1._chunked
        return self._line + data

    def _cut_chunk(self, exchange: Exchange, data: bytes) -> bytes:
        """Take more of a chunk that did not come whole; ``_left`` counts the CRLF behind it too."""
        if self._left > 2:
            piece = data[: self._left - 2]
            exchange.chunks.append(piece)
            exchange.held += len(piece)
            self._left -= len(piece)
            data = data[len(piece) :]
        close = CRLF[2 - self._left :][: len(data)] if self._left <= 2 else b""
        if not data.startswith(close):
            return self._fail(exchange, "a chunk is longer than its size says")
        self._left -= len(close)
        if not self._left:
            self._read = Http1._chunked
        return data[len(close) :]

    def _trailers(self, exchange: Exchange, data: bytes) -> bytes:
        section = self._section(exchange, data)
        if section is None:
            return b""
        lines, rest = section
        if fields(lines) is None:
            return self._fail(exchange, "illegal trailer field")
        self._end(exchange)
        return rest


def fields(lines: str) -> Headers | None:
    """Return the fields of a section, names in lower case, None if one of its lines is no field."""
    if "\n " in lines or "\n\t" in lines:
        lines = FOLD.sub(" ", lines)
    found = FIELD_LINE.findall(lines)
    if len(found) != lines.count("\n"):
        return None
    return tuple([(name.lower(), value.strip(" \t")) for name, value in found])


def listed(headers: Headers, name: str) -> list[str]:
    """Return the items of a field that is a list, over all its lines (RFC 9110, section 5.6.1)."""
    if name not in dict(headers):  # as most often: a look-up costs a fifth of the search
        return []
    return [item.strip(" \t") for key, value in headers if key == name for item in value.split(",")]


def options(headers: Headers) -> set[str]:
    """Return what ``connection`` says, in lower case."""
    return {option.lower() for option in listed(headers, "connection")}


def chunk_size(line: bytes) -> int:
    """Return the size that a line tells, -1 if it is illegal or cut: a bare int() would take signs, spaces and underscores."""
    found = SIZE_LINE.fullmatch(line)
    if found is None or not found[2]:
        return -1
    size = int(found[1], 16)
    if len(line) <= 6 and len(_sizes) < MAX_SIZES:
        _sizes[line] = size
    return size
