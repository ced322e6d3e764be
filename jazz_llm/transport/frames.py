"""HTTP/2's frames and the header sections in them, as bytes (RFC 9113, sections 4, 6 and 8; RFC 7541).

Frames are packed and read by hand, since the h2 package takes more than eight times as long for DATA (Http2.receive has the
figures). Request headers are written as literals without indexing: no table on either side, so a block can be kept and sent
again (0.1 us instead of 9), nothing is lost with a request that never went out, and hpack, which logs what it encodes, never
sees the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from .exchange import Headers, Request

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = Struct(">LBL")  # length (24 bits) and type (8), flags, stream: section 4.1
HEAD_SIZE = 9
SETTING = Struct(">HL")
LONG = Struct(">L")
MASK = 2**31 - 1  # the reserved bit is ignored; also the largest window and the last stream

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(2, 7)


class ErrorCode(IntEnum):
    """The error codes of section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class BrokenError(Exception):
    """A connection error (section 5.4.1): what goes into GOAWAY, and words for those who wait."""

    def __init__(self, code: ErrorCode, words: str) -> None:
        super().__init__(words)
        self.code = code


def code_name(code: int) -> str:
    """Return the name of an error code, or its number."""
    return _CODES.get(code) or f"code {code}"


_CODES = {code.value: code.name for code in ErrorCode}


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    """Build one frame; ``number`` is its stream."""
    return HEAD.pack(len(payload) << 8 | kind, flags, number) + payload


def settings(values: dict[int, int]) -> bytes:
    """Build a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*pair) for pair in values.items()))


def read_settings(payload: bytes) -> dict[int, int]:
    """Return what a SETTINGS frame says, each value checked (section 6.5.2); the last value for a setting holds."""
    if len(payload) % SETTING.size:
        raise BrokenError(ErrorCode.FRAME_SIZE_ERROR, "a SETTINGS frame of an odd size")
    values = {}
    for setting, value in SETTING.iter_unpack(payload):
        lowest, highest, code = _BOUNDS.get(setting, (0, 2**32, ErrorCode.PROTOCOL_ERROR))
        if not lowest <= value <= highest:
            raise BrokenError(code, "a setting out of its bounds")
        values[setting] = value
    return values


_BOUNDS = {
    ENABLE_PUSH: (0, 0, ErrorCode.PROTOCOL_ERROR),  # 1 is the client's to say
    INITIAL_WINDOW_SIZE: (0, MASK, ErrorCode.FLOW_CONTROL_ERROR),
    MAX_FRAME_SIZE: (2**14, 2**24 - 1, ErrorCode.PROTOCOL_ERROR),
}


def expect_size(payload: bytes, size: int) -> None:
    """Refuse a frame whose fields have another size than they must."""
    if len(payload) != size:
        raise BrokenError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {len(payload)} bytes instead of {size}")


def unpad(flags: int, payload: bytes) -> bytes:
    """Return a payload without its padding (section 6.1)."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise BrokenError(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the size of its padding")
    if payload[0] >= len(payload):
        raise BrokenError(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def fragment_of(flags: int, payload: bytes) -> bytes:
    """Return the piece of a header section that a HEADERS frame holds, without padding and priority (section 6.2)."""
    fragment = unpad(flags, payload)
    if not flags & WITH_PRIORITY:
        return fragment
    if len(fragment) < 5:
        raise BrokenError(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame that ends in its priority")
    return fragment[5:]


# Header sections out: RFC 7541, section 6.2.2, and 6.2.3 for what no intermediary may put into a table.

_SECRET = re.compile("auth|cookie|credential|key|password|secret|token")
_METHODS = {"GET": b"\x82", "POST": b"\x83"}
_SCHEMES = {"http": b"\x86", "https": b"\x87"}


def _string(text: str) -> bytes:
    """Return a string literal without Huffman coding (RFC 7541, section 5.2)."""
    data = text.encode("latin-1")
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    size -= 127
    prefix = bytearray(b"\x7f")
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes(prefix) + bytes((size,)) + data


def request_block(request: Request) -> bytes:
    """Return a request's header section but for content-length: pseudo-header fields, by their static names, first."""
    pieces = [
        _METHODS.get(request.method) or b"\x02" + _string(request.method),
        _SCHEMES[request.origin[0]],
        b"\x01" + _string(request.authority),
        b"\x04" + _string(request.target),
    ]
    for name, value in request.headers:
        pieces += (b"\x10" if _SECRET.search(name) else b"\x00", _string(name), _string(value))
    return b"".join(pieces)


def content_length(size: int) -> bytes:
    """Return the content-length field: static name 28, not indexed."""
    return b"\x0f\x0d" + _string(str(size))


# Header sections in.


class Head(NamedTuple):
    """A response's header or trailer section; ``status`` is 0 where it has none, ``flaw`` says what makes it malformed."""

    status: int
    headers: Headers
    length: int | None
    flaw: str


_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110's token, but upper case is malformed (RFC 9113, section 8.2.1)
_VALUE = re.compile(rb"(?![ \t])[^\0\r\n]*(?<![ \t])")
_STATUS = re.compile(rb"[1-9][0-9]{2}")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CONNECTION_SPECIFIC = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}  # section 8.2.2


def read_head(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    """Check a decoded section by the rules of sections 8.2 and 8.3."""
    status = 0
    headers: list[tuple[str, str]] = []
    lengths = set()
    for name, value in fields:
        flaw = _flaw(name, value, first=not (status or headers))
        if flaw:
            return Head(0, (), None, flaw)
        if name == b":status":
            status = int(value)
            continue
        headers.append((name.decode("latin-1"), value.decode("latin-1")))
        if name == b"content-length":
            lengths.add(int(value))
    if len(lengths) > 1:
        return Head(0, (), None, "several values of content-length")
    return Head(status, tuple(headers), min(lengths, default=None), "")


def _flaw(name: bytes, value: bytes, *, first: bool) -> str:
    """Say what is wrong with one field; only ``:status`` may be a pseudo-header field, and only the first field."""
    if name == b":status":
        return "" if first and _STATUS.fullmatch(value) else "a :status out of place or of no three digits"
    if not _NAME.fullmatch(name):
        return "a field name with characters that it must not have"
    if not _VALUE.fullmatch(value):
        return "a field value with characters that it must not have"
    if name in _CONNECTION_SPECIFIC:
        return "a field that HTTP/2 does not have"
    if name == b"content-length" and not _LENGTH.fullmatch(value):
        return "a content-length that is no number"
    return ""
