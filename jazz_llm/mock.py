"""``DEBUG_MOCK_RESPONSES`` as a transport: answers from a JSON list of texts, in order, with no network and no key."""

from __future__ import annotations

import json
import os
import re
import threading
from typing import TYPE_CHECKING

import orjson

from .errors import LLMConfigurationError

if TYPE_CHECKING:
    from .request import Call

VARIABLE = "DEBUG_MOCK_RESPONSES"


class MockAnswers:
    """The position in the list, shared by an instance and its copies; it starts again when the variable's text changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text = ""
        self._next = 0

    def next(self, call: Call) -> MockResponse | None:
        """Return the answer to this call, or None where the variable is not set or the call is no chat."""
        text = os.environ.get(VARIABLE)
        if not text or call.kind != "chat":
            return None
        answers = _parse(text)
        with self._lock:
            if text != self._text:
                self._text, self._next = text, 0
            position, self._next = self._next, self._next + 1
        if position >= len(answers):
            raise LLMConfigurationError(f"{VARIABLE} holds {len(answers)} answers, and this is call {position + 1}.")
        return MockResponse(answers[position], call)


class MockResponse:
    """An answer that is already here, for calls of both colours."""

    status = 200
    http_version = "mock"

    def __init__(self, text: str, call: Call) -> None:
        model = orjson.loads(call.body).get("model", "")
        self.headers = {"content-type": "text/event-stream" if call.streamed else "application/json"}
        self._reads = _stream(text, model) if call.streamed else [_whole(text, model)]

    def read(self) -> bytes:
        """Return the next piece, b"" at the end."""
        return self._reads.pop(0) if self._reads else b""

    async def aread(self) -> bytes:
        """Do what ``read`` does."""
        return self.read()

    def close(self) -> None:
        """Drop the rest."""
        self._reads = []

    finish = close

    async def aclose(self) -> None:
        """Do what ``close`` does."""
        self.close()


def words_of(text: str) -> list[str]:
    """Return a text in the pieces of a made-up stream: each word with the space behind it."""
    return re.findall(r"\S+\s*|\s+", text)


def _parse(text: str) -> list[str]:
    try:
        answers = json.loads(text)
    except ValueError as error:
        reason = f"it is not JSON ({error})"
    else:
        if isinstance(answers, list) and all(isinstance(answer, str) for answer in answers):
            return answers
        reason = "it is not a list of texts"
    raise LLMConfigurationError(f'{VARIABLE} must be a JSON list of texts such as ["one", "two"]: {reason}.')


def _whole(text: str, model: str) -> bytes:
    message = {"role": "assistant", "content": text}
    return _dump("chat.completion", model, {"index": 0, "message": message, "finish_reason": "stop"})


def _stream(text: str, model: str) -> list[bytes]:
    chunks: list[dict[str, object]] = [
        {"index": 0, "delta": {"content": piece}, "finish_reason": None} for piece in words_of(text)
    ]
    chunks.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    events = [b"data: " + _dump("chat.completion.chunk", model, chunk) + b"\n\n" for chunk in chunks]
    return [*events, b"data: [DONE]\n\n"]


def _dump(kind: str, model: str, choice: dict[str, object]) -> bytes:
    return orjson.dumps({"id": "mock", "object": kind, "created": 0, "model": model, "choices": [choice]})
