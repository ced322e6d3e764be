"""Embeddings: lists of floats, or 32-bit floats in base64, whichever the server chose to send.

Gemini leaves out ``index`` where it is 0, others leave it out everywhere (samfoy/pi-session-search issue 13): such an entry
belongs to the text at its own place in the list.
"""

from __future__ import annotations

import binascii
import math
import struct
from typing import Any

from ..types import LLMResponse
from ..usage import normalize_usage, usage_of
from .decoder import broken
from .lists import ListDecoder
from .parsing import text_or_none


class EmbeddingsDecoder(ListDecoder):
    """Decode the answer to ``POST /embeddings``."""

    def _read(self, body: bytes, answer: Any) -> None:
        try:
            self._parsed = embeddings_of(answer, self._asked)
        except ValueError as error:
            self._fail(broken(f"The answer is not the embeddings that were asked for: {error}.", retryable=False, body=body))
        else:
            self._head = answer

    def result(self) -> LLMResponse[Any]:
        """Return an answer whose ``parsed`` is the embeddings; its model and usage are there for those who watch."""
        response = super().result()
        usage = {"completion_tokens": 0, **(usage_of(self._head) or {})}  # nothing is written, and most do not say so
        response.model = text_or_none(self._head.get("model")) or ""
        response.usage = normalize_usage(usage, provider=self._provider)
        return response


def embeddings_of(answer: Any, asked: int) -> list[list[float]]:
    """Return the embeddings of an answer's JSON in the order of the texts; ValueError says what is wrong with it."""
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list 'data'")  # noqa: TRY004  # what a stranger sent, no argument of a programmer's
    if len(entries) != asked:
        raise ValueError(f"{len(entries)} came for {asked} texts")
    found: list[list[float] | None] = [None] * asked
    for place, entry in enumerate(entries):
        index, given = _checked(place, entry, asked)
        if found[index] is not None:
            raise ValueError(f"index {index} is there twice")
        found[index] = _floats(index, given)
    return [embedding for embedding in found if embedding is not None]  # all: as many came, none twice


def _checked(place: int, entry: Any, asked: int) -> tuple[int, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"data[{place}] is no object")  # noqa: TRY004  # see above
    index = entry.get("index")
    if index is None:
        index = place
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < asked:
        raise ValueError(f"data[{place}] has the index {str(index)[:40]!r}")
    return index, entry.get("embedding")


def _floats(index: int, given: Any) -> list[float]:
    numbers = _from_base64(index, given) if isinstance(given, str) else _from_json(index, given)
    if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):  # the sum costs a quarter of a look at each
        raise ValueError(f"embedding {index} holds NaN or an infinite number")
    return numbers


def _from_json(index: int, given: Any) -> list[float]:
    kinds = set(map(type, given)) if isinstance(given, list) else set()
    if kinds == {float}:
        return list(given)
    if not kinds or not kinds <= {float, int}:
        raise ValueError(f"embedding {index} is no list of numbers")
    try:
        return list(map(float, given))
    except OverflowError:
        raise ValueError(f"embedding {index} holds a number that is too large") from None


def _from_base64(index: int, given: str) -> list[float]:
    try:
        data = binascii.a2b_base64(given, strict_mode=True)
        numbers = struct.unpack(f"<{len(data) // 4}f", data)
    except (ValueError, struct.error):  # no base64, no ASCII; no whole number of floats
        numbers = ()
    if not numbers:
        raise ValueError(f"embedding {index} is not 32-bit floats in base64")
    return list(numbers)
