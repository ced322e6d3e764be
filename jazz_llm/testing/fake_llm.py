"""``FakeLLM``: an ``OpenAICompatibleLLM`` that answers from a list, with no socket and no waiting.

Only the pools are replaced. What is asked is checked and made into bytes as ever, and the replies are bytes that the decoders
read, so that streams, events, tools, structured output, errors and retries are the real ones.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from typing_extensions import override

from ..client import OpenAICompatibleLLM, _rebuild, _Shared
from ..errors import LLMConfigurationError, LLMError
from ..mock import MockAnswers
from ..types import ToolCall
from .replies import DONE, MODEL, Answer, embeddings, event, models

if TYPE_CHECKING:
    from ..config import Config
    from ..request import Call
    from ..timing import Clock
    from ..transport import Request

#: What ``FakeLLM`` can be told to answer.
FakeReply = str | Mapping[str, Any] | ToolCall | LLMError | Answer | Sequence[str | LLMError | ToolCall]


@dataclass(frozen=True, slots=True)
class FakeCall:
    """One request that a ``FakeLLM`` was asked: its URL's path, and its body as it would have gone out."""

    path: str
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of a chat, as OpenAI dicts."""
        return list(self.body.get("messages", ()))

    @property
    def options(self) -> dict[str, Any]:
        """All of the body but the messages: model, stream, temperature, tools, response_format ..."""
        return {name: value for name, value in self.body.items() if name != "messages"}


class FakeLLM(OpenAICompatibleLLM):
    """Answer from a list, in place of a server: for tests of code that is given an ``OpenAICompatibleLLM``.

    >>> llm = FakeLLM("Hello!", LLMRateLimitError("slow down", retryable=True), {"city": "Delft"})
    >>> llm.generate("hi").text
    'Hello!'
    >>> llm.calls[0].messages
    [{'role': 'user', 'content': 'hi'}]

    Each chat takes the next reply, and so does each retry; there is no wait between two tries. Lists of models and embeddings
    are answered without one. ``calls`` logs what was asked. A copy (``with_options``) shares replies and log; a pickled one
    begins at the first reply.

    Args:
        replies: Each a text; a list of texts, which a stream gives piece by piece, and whose last may be an ``LLMError`` that
            breaks it off; a dict, said as JSON; a ``ToolCall`` or a list of them; an ``LLMError`` that comes in place of an
            answer; or an ``Answer``, for usage, reasoning and finish_reason.
        model: As for ``OpenAICompatibleLLM``.
        arguments: The others of ``OpenAICompatibleLLM``. A key is not needed.

    Raises:
        LLMConfigurationError: A reply is none of these; the message says which one. From a call: the replies are used up.
    """

    def __init__(self, *replies: FakeReply, model: str = MODEL, **arguments: Any) -> None:
        super().__init__(model, **{"api_key": "fake-key", "base_url": "http://localhost", **arguments})
        self._replies = replies
        self._answers = _Answers([_Reply.of(i, reply) for i, reply in enumerate(replies)])
        self._shared = _NoSockets(self._config, self._answers)

    @property
    def calls(self) -> list[FakeCall]:
        """What was asked so far, in order: one for each try."""
        return self._answers.calls

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (partial(type(self), *self._replies), self._config.arguments, self._config.streams)


@dataclass(frozen=True, slots=True)
class _Reply:
    """What one try is answered: ``answer``, or as much of it as comes before ``error``."""

    answer: Answer | None
    error: LLMError | None = None

    @classmethod
    def of(cls, i: int, reply: Any) -> _Reply:
        try:
            return cls._read(reply)
        except LLMConfigurationError as error:
            reason = error.message
        raise LLMConfigurationError(f"FakeLLM: reply {i + 1}: {reason}")

    @classmethod
    def _read(cls, reply: Any) -> _Reply:
        if isinstance(reply, LLMError):
            return cls(None, reply)
        if isinstance(reply, Answer):
            return cls(reply)
        if isinstance(reply, str):
            return cls(Answer(text=reply))
        if isinstance(reply, Mapping):
            return cls(Answer(json=reply))
        items: list[Any] = [reply] if isinstance(reply, ToolCall) else list(reply) if isinstance(reply, list | tuple) else []
        if items and all(isinstance(item, ToolCall) for item in items):
            return cls(Answer(tool_calls=items))
        error = items.pop() if items and isinstance(items[-1], LLMError) else None
        if items and all(isinstance(item, str) for item in items):
            return cls(Answer(text=items), error)
        raise LLMConfigurationError(
            "it must be a text, a list of texts, a dict, a ToolCall, a list of them, an LLMError or an Answer, "
            f"not {type(reply).__name__}{f' {reply!r}' if isinstance(reply, list | tuple) else ''}."
        )


class _Answers:
    """What stands where the pools stand, for calls of both colours and all copies: the replies, and the log."""

    def __init__(self, replies: list[_Reply]) -> None:
        self._replies = replies
        self.lock = threading.Lock()
        self._taken = 0
        self.calls: list[FakeCall] = []

    def open(self, make_request: Callable[[], Request], clock: Clock) -> _FakeResponse:
        """Answer a request, or raise what it is to be answered with."""
        request = make_request()
        asked = orjson.loads(request.body) if request.body else {}
        reply = self._next(FakeCall(request.target.partition("?")[0], asked))
        if reply is None:
            whole = embeddings(asked) if "input" in asked else models()
            return _FakeResponse([orjson.dumps(whole)], None, clock, streamed=False)
        error = copy.copy(reply.error)
        if reply.answer is None and error is not None:
            raise error
        streamed = bool(asked.get("stream"))
        return _FakeResponse(_reads(reply, asked.get("model", MODEL), streamed), error, clock, streamed=streamed)

    async def aopen(self, make_request: Callable[[], Awaitable[Request]], clock: Clock) -> _FakeResponse:
        """Do what ``open`` does, and let other tasks have their turn."""
        from ..transport.alarm import running_loop

        running_loop()
        request = await make_request()
        await asyncio.sleep(0)
        return self.open(lambda: request, clock)

    def sleep(self, clock: Clock, _: float) -> None:
        """Do not wait between two tries."""
        clock.sleep(0)

    async def asleep(self, clock: Clock, _: float) -> None:
        """Do what ``sleep`` does."""
        await asyncio.sleep(0)
        clock.sleep(0)

    def _next(self, call: FakeCall) -> _Reply | None:
        """Log a request, and take the reply that is for it; None for what is no chat."""
        with self.lock:
            self.calls.append(call)
            if "messages" not in call.body:
                return None
            self._taken += 1
            if self._taken <= len(self._replies):
                return self._replies[self._taken - 1]
        given = f"{len(self._replies)} repl{'y' if len(self._replies) == 1 else 'ies'}"
        raise LLMConfigurationError(f"FakeLLM was given {given}, and this is try {self._taken}: give it one for each try.")


def _reads(reply: _Reply, model: str, streamed: bool) -> list[bytes]:
    """Return what each read of the answer brings; one that breaks off has no end."""
    assert reply.answer is not None
    if not streamed:
        whole = orjson.dumps(reply.answer.whole(model))
        return [whole] if reply.error is None else [whole[: len(whole) // 2]]
    said = [event(chunk) for chunk in reply.answer.chunks(model)]
    ending = [event(chunk) for chunk in reply.answer.ending(model)]
    return said if reply.error is not None else [*said, *ending, DONE]


class _FakeResponse:
    """An answer that is already here, for calls of both colours."""

    status = 200
    http_version = "fake"

    def __init__(self, reads: list[bytes], error: LLMError | None, clock: Clock, *, streamed: bool) -> None:
        self.headers = {"content-type": "text/event-stream" if streamed else "application/json"}
        self._reads = reads
        self._error = error
        self._clock = clock

    def read(self) -> bytes:
        """Return the next piece, b"" at the end; or raise what ends it."""
        if self._clock.over():
            raise self._clock.failure()
        if self._reads:
            return self._reads.pop(0)
        if self._error is not None:
            raise self._error
        return b""

    async def aread(self) -> bytes:
        """Do what ``read`` does, and let other tasks have their turn."""
        await asyncio.sleep(0)
        return self.read()

    def raw_headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers as they came, one by one."""
        return tuple(self.headers.items())

    def close(self) -> None:
        """Drop the rest."""
        self._reads, self._error = [], None

    finish = close

    async def aclose(self) -> None:
        """Do what ``close`` does."""
        self.close()


class _Unmocked(MockAnswers):
    """``DEBUG_MOCK_RESPONSES`` is for instances that would ask a server."""

    @override
    def next(self, call: Call) -> None:
        return None


class _NoSockets(_Shared):
    """What a ``FakeLLM`` and its copies have in common."""

    def __init__(self, config: Config, answers: _Answers) -> None:
        self._answers: Any = answers
        super().__init__(config)

    @override
    def _begin(self) -> None:
        super()._begin()
        self._answers.lock = threading.Lock()
        self.mock = _Unmocked()

    @override
    def pool(self) -> Any:
        return self._answers

    @override
    def apool(self) -> Any:
        return self._answers
