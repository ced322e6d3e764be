"""What a client that falls behind has not been sent yet: chunks of one generation grow together, and there is an end to it.

Nothing here waits. While a client keeps up its messages go straight to its socket, and this is empty.
"""

from __future__ import annotations

from collections import deque

from .protocol import Chunks

MOST = 8 * 2**20  # bytes that may wait; with more than that the client is hopeless
LARGEST_CHUNK = 64 * 2**10  # bytes of text that grow together: some clients take no message above 1 MiB
_MOST_PIECES = 1000  # each weighs some 80 bytes more than its text: millions of single characters would be 200 MB


class _Waiting:
    """Text of one generation that waits."""

    __slots__ = ("chunks", "size", "texts")

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self.texts: list[str] = []
        self.size = 0


class Outbox:
    """Messages in their order. Text is put where the same generation's last text still waits: its order is all that counts."""

    def __init__(self, *, most: int = MOST, largest_chunk: int = LARGEST_CHUNK) -> None:
        self._most = most
        self._largest_chunk = largest_chunk
        self._waiting: deque[bytes | _Waiting] = deque()
        self._last: dict[Chunks, _Waiting] = {}
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def hopeless(self) -> bool:
        """Whether more waits than any client should leave lying."""
        return self._size > self._most

    def put(self, message: bytes) -> None:
        """Add a message."""
        self._waiting.append(message)
        self._size += len(message)

    def put_chunk(self, chunks: Chunks, text: str) -> None:
        """Add a piece of a generation's text."""
        waiting = self._last.get(chunks)
        if waiting is None or waiting.size >= self._largest_chunk:
            waiting = self._last[chunks] = _Waiting(chunks)
            self._waiting.append(waiting)
        size = len(text.encode("utf-8", "surrogatepass"))
        waiting.texts.append(text)
        if len(waiting.texts) == _MOST_PIECES:
            waiting.texts = ["".join(waiting.texts)]
        waiting.size += size
        self._size += size

    def take(self) -> bytes:
        """Return the next message and forget it."""
        first = self._waiting.popleft()
        if isinstance(first, bytes):
            self._size -= len(first)
            return first
        self._size -= first.size
        if self._last.get(first.chunks) is first:
            del self._last[first.chunks]
        return first.chunks.message("".join(first.texts))

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()
        self._last.clear()
        self._size = 0
