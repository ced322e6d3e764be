"""Answers that are one list: models, embeddings."""

from __future__ import annotations

from typing import Any

from ..types import LLMResponse
from .decoder import Decoder, not_an_answer
from .failures import says_error
from .parsing import parse_json


class ListDecoder(Decoder):
    """Decode a list as any whole answer is decoded: coding, bounds, errors; ``parsed`` of the result is what ``_read`` made."""

    _parsed: list[Any]

    def _sniff(self, data: bytes) -> bytes:
        self._whole = True  # there is no stream of these
        return data

    def _whole_answer(self, body: bytes) -> None:
        answer = parse_json(body)
        first = answer[0] if isinstance(answer, list) and answer else answer
        if isinstance(first, dict) and says_error(first):
            self._fail(self._error(answer))
        elif not isinstance(answer, dict | list):
            self._fail(not_an_answer(body))
        else:
            self._read(body, answer)

    def _read(self, body: bytes, answer: Any) -> None:
        """Set ``_parsed``, or fail."""
        raise NotImplementedError

    def result(self) -> LLMResponse[Any]:
        """Return an answer whose ``parsed`` is the list, or raise what went wrong."""
        if self.failure is not None:
            raise self.failure
        return LLMResponse(text="", parsed=self._parsed)
