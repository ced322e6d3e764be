"""Bytes of an answer -> text and :class:`LLMResponse`; status, headers and body -> the error they mean. Nothing here waits.

A stream's life, as the driver sees it: ``feed`` returns the texts that a read brought; ``progress`` says whether that read
held content of any kind; ``finished`` that a finish_reason has come and only usage and ``[DONE]`` may follow; ``over`` that
nothing more is wanted; ``result`` is then the answer, or raises. A good end is a finish_reason; or, after some content,
``[DONE]`` or a usage chunk without choices. Anything else is a truncated stream.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from .errors import (
    LLMAuthenticationError,
    LLMContentFilterError,
    LLMContextLengthError,
    LLMError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMOverloadedError,
    LLMPermissionDeniedError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMResponseError,
    LLMResponseTooLargeError,
    LLMStatusError,
    LLMStreamTruncatedError,
)
from .retry import RETRYABLE
from .sse import BOM, EventTooLargeError, SSEDecoder
from .tools import CallMerger
from .types import Choice, LLMResponse, LLMUsage, Message, RateLimits
from .usage import normalize_usage, usage_of

FINISH_REASONS = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool_calls"),
    **dict.fromkeys(("content_filter", "sensitive", "safety", "recitation", "refusal"), "content_filter"),
    **dict.fromkeys(("insufficient_system_resource", "network_error", "error", "abort"), "error"),
    **dict.fromkeys(("", "null"), None),
}
MAX_DEPTH = 200
MAX_ERROR_BODY = 64 * 1024
_JSON_STARTS = b'{[<"'
_SSE_STARTS = (b"data:", b"event:", b"error:", b":")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_OPEN, _CLOSE = "<think>", "</think>"
_INVALID = object()


class Decoder:
    """Decode one answer, streamed or whole, whichever of the two the server chose to send.

    ``streams`` is what was asked for; ``choices`` how many answers; ``provider`` a name of the registry; ``prompt`` returns the
    text to estimate its tokens from where the provider does not count.
    """

    def __init__(
        self,
        *,
        streams: bool,
        choices: int = 1,
        provider: str | None = None,
        echo: tuple[str, ...] = (),
        prompt: Callable[[], str] = str,
        max_response_bytes: int | None = None,
        max_event_bytes: int | None = None,
    ) -> None:
        self.progress = False
        self.finished = False
        self.over = False
        self.failure: LLMError | None = None
        self.response_bytes = 0
        self._streams = streams
        self._asked = choices
        self._provider = provider
        self._echo = echo
        self._prompt = prompt
        self._limit = max_response_bytes
        self._sse: SSEDecoder | None = None
        self._event_limit = max_event_bytes
        self._inflate: _Inflate | None = None
        self._parts: list[bytes] = []  # a whole answer, or the white space before it is clear what this is
        self._head: dict[str, Any] = {}  # the chunks' own fields, merged; a whole answer's JSON, untouched
        self._whole = False
        self._choices: dict[int, _ChoiceState] = {}
        self._first: _ChoiceState | None = None
        self._usage: Mapping[str, Any] | None = None
        self._ended = False  # [DONE], or a usage chunk without choices after content
        self._content = False
        self._texts: list[str] = []
        self._is_event_stream = False
        self._headers: Mapping[str, str] = {}

    def begin(self, headers: Mapping[str, str]) -> None:
        """Take the answer's headers (lower-case names): its coding, and what it says it is."""
        self._headers = headers
        self._is_event_stream = headers.get("content-type", "").startswith("text/event-stream")
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding in ("gzip", "deflate", "x-gzip"):
            self._inflate = _Inflate()
        elif coding not in ("", "identity"):
            self._fail(_broken(f"The answer is encoded with {coding[:40]!r}, which was not asked for.", retryable=False))

    def feed(self, data: bytes) -> list[str]:
        """Return the texts of choice 0 that ``data`` brings; after a failure those before it."""
        self.progress = False
        self._texts = []
        try:
            for piece in (data,) if self._inflate is None else self._inflate.feed(data):
                self._take(piece)
        except EventTooLargeError:
            self._fail(_too_large("an event of the stream is larger than max_event_bytes"))
        except zlib.error as error:
            self._fail(_broken(f"The compressed answer is damaged: {error}.", retryable=True))
        return self._texts

    def end(self) -> list[str]:
        """Return the last texts at the end of the connection, clean or not."""
        self.progress = False
        self._texts = []
        if self.over:
            return []
        if self._sse is not None:
            for payload in self._sse.end():
                self._event(payload, at_end=True)
        elif not self._streams or b"".join(self._parts).strip():
            self._whole_answer(b"".join(self._parts).removeprefix(BOM))
        self.over = True
        for state in self._choices.values():
            self._text(state, state.think.end())
        return self._texts

    def result(self) -> LLMResponse[Any]:
        """Return the answer, or raise what went wrong; ``partial`` of the error holds what had come."""
        failure = self.failure or self._bad_end()
        if failure is None:
            return self.response()
        failure.partial = self.response()
        raise failure

    def response(self) -> LLMResponse[Any]:
        """Return the answer as far as it has come."""
        first = self._answering() or _ChoiceState(0)
        calls = first.merger.calls()
        reasoning = "".join(first.reasoning) or None
        text = "".join(first.text)
        return LLMResponse(
            text=text,
            usage=self._normalized_usage(),
            model=_string(self._head.get("model")) or "",
            finish_reason=first.finish_reason(),
            raw=self._head if self._whole else self._merged(),
            id=_string(self._head.get("id")),
            reasoning=reasoning,
            refusal="".join(first.refusal) or None,
            tool_calls=calls,
            choices=[state.choice() for _, state in sorted(self._choices.items())],
            logprobs=first.logprobs,
            message=Message("assistant", text or None if calls else text, tool_calls=calls or None, extra=self._echoed(first)),
        )

    def _normalized_usage(self) -> LLMUsage:
        usage = normalize_usage(self._usage or _zero_usage(self._head), provider=self._provider)
        if usage.estimated:
            usage = normalize_usage(usage.raw, provider=self._provider, prompt=self._prompt(), completion=self._completion())
        return usage

    def _completion(self) -> str:
        """Return all that the model wrote."""
        return "".join(
            piece
            for state in self._choices.values()
            for piece in (
                *state.reasoning,
                *state.text,
                *state.refusal,
                *(c.raw_arguments for c in state.merger.calls()),
            )
        )

    def _take(self, data: bytes) -> None:
        self.response_bytes += len(data)
        if self._limit is not None and self.response_bytes > self._limit:
            self._parts = []
            self._fail(_too_large(f"it is larger than max_response_bytes ({self._limit})"))
        if self.over:
            return
        if self._sse is None:
            data = self._sniff(data)
        if self._sse is None:
            self._parts.append(data)
            return
        for payload in self._sse.feed(data):
            if self.over:
                return
            self._event(payload)

    def _sniff(self, data: bytes) -> bytes:
        """Decide from the first bytes what this is: servers answer with JSON where a stream was asked for, and the reverse.

        Return the bytes that are now to be taken; white space before the answer is dropped.
        """
        if self._whole:
            return data
        data = b"".join((*self._parts, data))
        self._parts = []
        head = data.removeprefix(BOM).lstrip()
        if not head or any(start.startswith(head) for start in (BOM, *_SSE_STARTS)):
            return data if head else b""  # too little to tell
        if head[0] in _JSON_STARTS:
            self._whole = True
        elif self._streams or self._is_event_stream or head.startswith(_SSE_STARTS):
            self._sse = SSEDecoder(self._event_limit)
        else:
            self._whole = True
        return data

    def _event(self, payload: bytes, *, at_end: bool = False) -> None:
        """Take one event's data; the common chunk (one choice, some text, nothing else new) goes the short way."""
        try:
            chunk = orjson.loads(payload)
            (choice,) = chunk["choices"]
            delta = choice["delta"]
            text = delta["content"]
            first = self._first
            if (
                first is None
                or not first.think.settled
                or text.__class__ is not str
                or "<" in text
                or len(delta) > 2
                or (len(delta) == 2 and "role" not in delta)
                or choice.get("finish_reason") is not None
                or choice.get("index") != 0
                or choice.get("logprobs") is not None
                or chunk.get("usage") is not None
                or "error" in chunk
                or "error" in choice
                or len(choice) > 4
            ):
                self._chunk(chunk)
            elif text:
                first.text.append(text)
                self._texts.append(text)
                self.progress = True
        except (ValueError, LookupError, TypeError, AttributeError):
            self._unusual(payload, at_end=at_end)

    def _unusual(self, payload: bytes, *, at_end: bool) -> None:
        payload = payload.strip()
        if payload == b"[DONE]":
            self._done()
        elif payload:
            chunk = parse_json(payload)
            if chunk is not _INVALID:
                self._chunk(chunk)
            elif not at_end:  # cut short by the end of the connection it is only half an event
                self._fail(_broken(f"An event of the stream is not JSON: {_excerpt(payload)}", retryable=False))

    def _done(self) -> None:
        for state in self._choices.values():
            self._text(state, state.think.end())
        self._ended = True
        self.over = True

    def _chunk(self, chunk: Any) -> None:
        if isinstance(chunk, list) and chunk:
            chunk = chunk[0]
        if not isinstance(chunk, dict):
            return self._fail(_broken(f"A chunk of the stream is not an object: {_excerpt(chunk)}", retryable=False))
        usage = usage_of(chunk)
        self._usage = usage or self._usage
        if says_error(chunk):
            return self._fail(error_from(200, self._headers, chunk, provider=self._provider))
        self._merge_head(chunk)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._choice(choice)
        if usage is not None and choices == [] and self._content:
            self._ended = True
        self.finished = self._all_finished()

    def _choice(self, choice: dict[str, Any]) -> None:
        if says_error(choice, top=False):
            return self._fail(error_from(200, self._headers, choice, provider=self._provider))
        index = choice.get("index")
        index = index if isinstance(index, int) and not isinstance(index, bool) else 0
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _ChoiceState(index)
            if index == 0:
                self._first = state
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = self._instead_of_delta(state, choice)
        self._delta(state, delta)
        state.add_logprobs(choice.get("logprobs"))
        finish = choice.get("finish_reason")
        if isinstance(finish, str) and finish not in ("", "null"):
            state.finish = finish
            self._text(state, state.think.end())

    def _instead_of_delta(self, state: _ChoiceState, choice: dict[str, Any]) -> dict[str, Any]:
        """Some send a whole ``message``: it is the answer where no delta came, and its repetition otherwise (MiniMax)."""
        message = choice.get("message")
        if isinstance(message, dict):
            return {} if state.seen else message
        text = choice.get("text")
        return {"content": text} if isinstance(text, str) else {}

    def _delta(self, state: _ChoiceState, delta: dict[str, Any]) -> None:
        before = state.seen
        for kind, text in _parts(delta.get("content")):
            if kind == "reasoning":
                state.add_reasoning(text)
            else:
                self._text(state, state.think.feed(text))
                state.seen = state.seen or bool(text)
        state.add_reasoning(_reasoning(delta))
        state.add_refusal(delta.get("refusal"))
        state.add_calls(delta)
        state.keep(delta)
        if state.seen and (not before or _has_content(delta)):
            self.progress = self._content = True

    def _text(self, state: _ChoiceState, pieces: list[tuple[str, str]]) -> None:
        for kind, text in pieces:
            if not text:
                continue
            if kind == "reasoning":
                state.reasoning.append(text)
                continue
            state.text.append(text)
            if state is self._first:
                self._texts.append(text)

    def _whole_answer(self, body: bytes) -> None:
        self._whole = True
        answer = parse_json(body)
        if answer is _INVALID or not isinstance(answer, dict):
            if isinstance(answer, list) and answer and isinstance(answer[0], dict) and says_error(answer[0]):
                return self._fail(error_from(200, self._headers, answer, provider=self._provider))
            return self._fail(not_an_answer(body))
        if says_error(answer):
            return self._fail(error_from(200, self._headers, answer, provider=self._provider))
        self._usage = usage_of(answer)
        self._head = answer
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
            return self._fail(_broken(f"The answer has no choices: {_excerpt(body)}", retryable=choices in (None, [])))
        for position, choice in enumerate(choices):
            if not isinstance(choice.get("message"), dict) and not choice.get("text") and not choice.get("delta"):
                return self._fail(_broken(f"Choice {position} of the answer has no message: {_excerpt(body)}", retryable=False))
            self._choice({"index": position, **choice})
        for state in self._choices.values():
            state.whole_thoughts()
        self._ended = True

    def _merge_head(self, chunk: dict[str, Any]) -> None:
        for name, value in chunk.items():
            if name not in ("choices", "usage", "object") and value is not None and value != "":
                self._head[name] = value

    def _merged(self) -> dict[str, Any]:
        """Return the object that the server would have sent, had it not been asked to stream."""
        if not self._head and not self._choices:
            return {}
        merged = {
            **self._head,
            "object": "chat.completion",
            "choices": [state.merged() for _, state in sorted(self._choices.items())],
        }
        return merged if self._usage is None else {**merged, "usage": dict(self._usage)}

    def _echoed(self, first: _ChoiceState) -> dict[str, Any]:
        if not first.merger.calls():
            return {}
        return {name: value for name in self._echo if (value := first.fields.get(name))}

    def _all_finished(self) -> bool:
        states = self._choices.values()
        return len(states) >= self._asked and all(state.finish is not None for state in states)

    def _answering(self) -> _ChoiceState | None:
        """Return choice 0, or the lowest there is where a server counts from 1."""
        return self._choices[min(self._choices)] if self._choices else None

    def _bad_end(self) -> LLMError | None:
        first = self._answering()
        reason = first.finish_reason() if first is not None else None
        if not self._whole and not self._content and not self._all_finished():
            if self._ended:
                return _broken("The stream ended with neither content nor a finish_reason.", retryable=True)
            return LLMStreamTruncatedError("The stream ended before it began: no event came.", retryable=True)
        if not self._whole and not self._ended and not (self._choices and all(s.finish for s in self._choices.values())):
            return LLMStreamTruncatedError("The stream stopped before its end: no finish_reason, no [DONE].", retryable=True)
        if reason == "error" and first is not None:
            return LLMInternalError(f"The provider gave up: finish_reason {first.finish!r}.", retryable=True, status_code=200)
        if reason == "content_filter" and first is not None and not first.text and not first.refusal:
            return LLMContentFilterError("The content filter left nothing of the answer.", status_code=200)
        return None

    def _fail(self, error: LLMError) -> None:
        self.failure = self.failure or error
        self.over = True


class _ChoiceState:
    """One choice as it grows."""

    __slots__ = ("fields", "finish", "index", "logprobs", "merger", "reasoning", "refusal", "seen", "text", "think")

    def __init__(self, index: int) -> None:
        self.index = index
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.merger = CallMerger()
        self.think = ThinkSplitter()
        self.finish: str | None = None
        self.logprobs: Any = None
        self.fields: dict[str, Any] = {}  # what else the deltas held, for ``raw``
        self.seen = False

    def finish_reason(self) -> str | None:
        """Return the normalized reason; calls that finish with "stop" (Ollama, Gemini, a named choice) count as tool_calls."""
        if self.finish is None:
            return None
        reason = FINISH_REASONS.get(self.finish.lower(), self.finish)
        return "tool_calls" if reason == "stop" and self.merger.calls() else reason

    def add_reasoning(self, text: str) -> None:
        """Take reasoning that came in a field of its own."""
        if text:
            self.reasoning.append(text)
            self.seen = True

    def add_refusal(self, text: object) -> None:
        """Take a piece of a refusal."""
        if isinstance(text, str) and text:
            self.refusal.append(text)
            self.seen = True

    def add_calls(self, delta: dict[str, Any]) -> None:
        """Take the fragments of tool calls; ``function_call`` is the name they had first."""
        fragments = delta.get("tool_calls")
        legacy = delta.get("function_call")
        for fragment in fragments if isinstance(fragments, list) else [{"function": legacy}] if legacy else []:
            if isinstance(fragment, dict):
                self.merger.feed(fragment)
                self.seen = True

    def add_logprobs(self, logprobs: object) -> None:
        """Join the lists of a stream's logprobs."""
        if not isinstance(logprobs, dict):
            return
        known = self.logprobs if isinstance(self.logprobs, dict) else {}
        for name, value in logprobs.items():
            old = known.get(name)
            known[name] = old + value if isinstance(old, list) and isinstance(value, list) else value
        self.logprobs = known

    def keep(self, delta: dict[str, Any]) -> None:
        """Keep the delta's other fields: text is joined, the last of anything else stays."""
        for name, value in delta.items():
            if name in ("content", "tool_calls", "role", "function_call") or value is None:
                continue
            old = self.fields.get(name)
            joins = isinstance(value, str | list) and type(old) is type(value)
            self.fields[name] = old + value if joins else value

    def whole_thoughts(self) -> None:
        """Move what stands before a lone ``</think>`` to the reasoning: the template itself opened the tag."""
        text = "".join(self.text)
        if self.think.lone_at is not None:
            self.reasoning.append(text[: self.think.lone_at].strip())
            self.text = [text[self.think.lone_at :].lstrip()]

    def choice(self) -> Choice:
        """Return the public form."""
        return Choice(
            self.index, "".join(self.text), self.finish_reason(), self.merger.calls(), "".join(self.reasoning) or None
        )

    def merged(self) -> dict[str, Any]:
        """Return the choice as a whole answer would hold it."""
        text = "".join(self.text)
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.raw_arguments}, **c.extra}
            for c in self.merger.calls()
        ]
        message = {"role": "assistant", "content": text if text or not calls else None, **self.fields}
        if calls:
            message["tool_calls"] = calls
        return {"index": self.index, "message": message, "finish_reason": self.finish, "logprobs": self.logprobs}


class ThinkSplitter:
    """Part a leading ``<think>...</think>`` from the text, also where a read cuts the tags.

    A lone ``</think>`` (the template had opened it in the prompt) is taken out; ``lone_at`` says where in the text it stood.
    """

    __slots__ = ("_given", "_held", "_last", "_state", "lone_at", "settled")

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"
        self._given = 0
        self._last = ""  # the last character given
        self.settled = False  # no tag is under way: text without "<" needs no look
        self.lone_at: int | None = None

    def feed(self, text: str) -> list[tuple[str, str]]:
        """Return ("text" or "reasoning", piece) pairs."""
        if self._state == "rest" or not text:
            return [("text", text)]
        self._held += text
        pieces: list[tuple[str, str]] = []
        step = getattr(self, f"_{self._state}")
        while step is not None:
            step = step(pieces)
        given = "".join(piece for kind, piece in pieces if kind == "text")
        self._given += len(given)
        self._last = given[-1:] or self._last
        self.settled = self._state == "rest" or (self._state == "text" and not self._held)
        return pieces

    def end(self) -> list[tuple[str, str]]:
        """Return what was held back for a tag that never came."""
        held, self._held = self._held, ""
        kind = "reasoning" if self._state == "thinking" else "text"
        return [(kind, held)] if held else []

    def _start(self, pieces: list[tuple[str, str]]) -> Any:  # noqa: ARG002  # one signature for every state
        head = self._held.lstrip()
        if head.startswith(_OPEN):
            self._held = head.removeprefix(_OPEN)
            self._state = "opened"
            return self._opened
        if _OPEN.startswith(head):
            return None
        self._state = "text"
        return self._text

    def _opened(self, pieces: list[tuple[str, str]]) -> Any:  # noqa: ARG002  # one signature for every state
        """Drop the blank lines between the tag and the thoughts."""
        self._held = self._held.lstrip("\n")
        if not self._held:
            return None
        self._state = "thinking"
        return self._thinking

    def _thinking(self, pieces: list[tuple[str, str]]) -> Any:
        thought, tag, rest = self._held.partition(_CLOSE)
        if tag:
            pieces.append(("reasoning", thought.rstrip("\n")))
            self._held, self._state = rest, "after"
            return self._after
        sure = thought[: len(thought) - _overlap(thought, _CLOSE)].rstrip("\n")
        self._give(pieces, "reasoning", len(thought) - len(sure))
        return None

    def _after(self, pieces: list[tuple[str, str]]) -> Any:
        """Drop the blank lines between the thoughts and the answer."""
        rest = self._held.lstrip("\n")
        self._held = ""
        if rest:
            pieces.append(("text", rest))
            self._state = "rest"

    def _text(self, pieces: list[tuple[str, str]]) -> Any:
        before, tag, rest = self._held.partition(_CLOSE)
        quoted = (before or self._last).endswith(("`", '"', "'"))  # then it is what the answer talks about
        if tag and not quoted:
            pieces.append(("text", before))
            self.lone_at = self._given + len(before)
            self._held, self._state = rest, "after"
            return self._after
        self._give(pieces, "text", 0 if tag else _overlap(self._held, _CLOSE))
        return None

    def _give(self, pieces: list[tuple[str, str]], kind: str, keep: int) -> None:
        cut = len(self._held) - keep
        pieces.append((kind, self._held[:cut]))
        self._held = self._held[cut:]


class _Inflate:
    """Undo a gzip or deflate that nobody asked for, a bounded piece at a time (1 MB of gzip can be 1 GB of zeros)."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(47)  # 32 + 15: gzip or zlib by its header

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            yield self._stream.decompress(data, 256 * 1024)
            data = self._stream.unconsumed_tail


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def parse_json(data: bytes) -> Any:
    """Return the value, or ``_INVALID``: orjson first, the tolerant parser (NaN, lone surrogates) where it refuses."""
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    try:
        value = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return _INVALID
    return value if _depth(value) <= MAX_DEPTH else _INVALID


def _depth(value: object) -> int:
    deepest, level = 0, [value]
    while level and deepest <= MAX_DEPTH:
        deepest += 1
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
    return deepest


def _parts(content: object) -> list[tuple[str, str]]:
    """Return ("text" or "reasoning", piece) of a content that is text or a list of parts (Mistral, Databricks)."""
    if isinstance(content, str):
        return [("text", content)]
    pieces = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            pieces.append(("text", part))
        elif isinstance(part, dict):
            thoughts = part.get("thinking") or part.get("summary") or part.get("reasoning")
            inner = "".join(piece for _, piece in _parts(thoughts))
            text = part.get("text")
            pieces.append(("reasoning", inner) if inner else ("text", text if isinstance(text, str) else ""))
    return pieces


def _reasoning(delta: dict[str, Any]) -> str:
    """Return the reasoning of a delta; OpenRouter sends the same under two names, so the first that holds text is it."""
    for name in _REASONING:
        value = delta.get(name)
        if isinstance(value, str) and value:
            return value
    details = delta.get("reasoning_details")
    texts = [d.get("text") or d.get("summary") for d in details if isinstance(d, dict)] if isinstance(details, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def _has_content(delta: dict[str, Any]) -> bool:
    names = ("content", "refusal", "tool_calls", "function_call", "reasoning_details", *_REASONING)
    return any(delta.get(name) for name in names)


def _zero_usage(head: dict[str, Any]) -> Mapping[str, Any] | None:
    usage = head.get("usage")
    return usage if isinstance(usage, Mapping) else None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _excerpt(body: object) -> str:
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else repr(body)
    return " ".join(text.split())[:200] or "(empty)"


def _broken(message: str, *, retryable: bool) -> LLMResponseError:
    return LLMResponseError(message, retryable=retryable, status_code=200)


def _too_large(why: str) -> LLMResponseTooLargeError:
    return LLMResponseTooLargeError(f"The answer was given up: {why}.", status_code=200)


def not_an_answer(body: bytes) -> LLMResponseError:
    """Say what came where JSON should have been."""
    text = body.decode("utf-8", "replace")
    if not text.strip():
        return _broken("The answer is empty.", retryable=True)
    if text.lstrip().startswith("<"):
        title = _title(text)
        return _broken(f"The answer is a web page ({title!r}), not JSON: check base_url.", retryable=False)
    # JSON that begins well was most likely cut; anything else will be as wrong the next time.
    return _broken(f"The answer is not JSON: {_excerpt(body)}", retryable=text.lstrip()[:1] == "{")


# --- errors -----------------------------------------------------------------------------------------------------------

_OVERFLOW = re.compile(
    r"prompt is too long|prompt too long; exceeded|input is too long for requested model|exceeds the context window"
    r"|input token count.*exceeds the maximum|maximum prompt length is \d+|reduce the length of the messages"
    r"|maximum context length|exceeds the limit of \d+|exceeds the available context size|greater than the context length"
    r"|longer than the model's context length|context window exceeds limit|exceeded model token limit"
    r"|too large for model with \d+ maximum|context[_ ]length[_ ]exceeded|token limit exceeded|range of input length"
    r"|`inputs` tokens \+ `max_new_tokens` must be|total length of all messages is too long|prompt exceeds max length"
    r"|contextwindowexceeded|exceed_context_size|context size (?:has been|was) exceeded|tokens_limit_reached"
)
# Words of the body that say more than the status; the first that is found decides. Codes of one provider are anchored.
_WORDS: tuple[tuple[type[LLMStatusError], re.Pattern[str]], ...] = (
    (LLMContextLengthError, _OVERFLOW),
    (
        LLMQuotaExceededError,
        re.compile(
            r"insufficient_quota|exceeded_current_quota_error|billing_hard_limit_reached|arrearage|budget_exceeded"
            r"|credit balance|run out of credits|spending limit|insufficient balance|allocationquota|key limit exceeded"
            r"|\b(?:1113|1308|1008|2056)\b(?=\n)|free-models-per-day|perday"
        ),
    ),
    (
        LLMContentFilterError,
        re.compile(
            r"content_filter|content_policy_violation|data_?inspection_?failed|moderation_blocked|invalid_prompt"
            r"|flagged_input|input was flagged|\b(?:1301|1026|1027)\b(?=\n)"
        ),
    ),
    (
        LLMAuthenticationError,
        re.compile(
            r"invalid_api_key|wrong_api_key|api_key_invalid|incorrect api key|api key not valid|check the api-key"
            r"|\b(?:1004|2049)\b(?=\n)"
        ),
    ),
    (
        LLMNotFoundError,
        re.compile(
            r"model_not_found|model not exist|unknown model|not a valid model|invalid_model|unexpected endpoint"
            r"|no route for that uri|404 not_found"
        ),
    ),
    (LLMRateLimitError, re.compile(r"rate limit exceeded|rate_limit|in_flight_budget|\b1002\b(?=\n)")),
    (LLMOverloadedError, re.compile(r"overloaded|temporarily unavailable|currently unavailable")),
)
_BY_STATUS: dict[int, type[LLMStatusError]] = {
    401: LLMAuthenticationError,
    402: LLMQuotaExceededError,
    403: LLMPermissionDeniedError,
    404: LLMNotFoundError,
    408: LLMInternalError,
    424: LLMInternalError,
    425: LLMInternalError,
    429: LLMRateLimitError,
    498: LLMOverloadedError,  # Groq's flex tier
    501: LLMInvalidRequestError,
    503: LLMOverloadedError,
    529: LLMOverloadedError,
}
# What a body's own words may make of a status: a 429 stays a rate limit, a 5xx does not become a wrong request.
_MAY_BECOME: dict[int, tuple[type[LLMStatusError], ...]] = {429: (LLMQuotaExceededError,)}
_REQUEST_ID = (
    "x-request-id",
    "request-id",
    "apim-request-id",
    "x-ds-trace-id",
    "x-litellm-call-id",
    "x-amzn-requestid",
)
_REQUEST_ID_LAST = (
    "mistral-correlation-id",
    "x-generation-id",
    "x-trace-id",
    "x-baseten-request-id",
    "nvcf-reqid",
    "cf-ray",
)


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """Return the id that the provider's support asks for."""
    return next((headers[name] for name in (*_REQUEST_ID, *_REQUEST_ID_LAST) if headers.get(name)), None)


def rate_limits_of(headers: Mapping[str, str]) -> RateLimits | None:
    """Return what the ``x-ratelimit-*`` headers say (OpenAI's names, which most providers use), or None."""
    said = {name: headers.get(f"x-ratelimit-{name}") for name in _RATE_LIMITS}
    if not any(said.values()):
        return None
    return RateLimits(
        limit_requests=_count(said["limit-requests"]),
        remaining_requests=_count(said["remaining-requests"]),
        reset_requests_s=duration(said["reset-requests"]),
        limit_tokens=_count(said["limit-tokens"]),
        remaining_tokens=_count(said["remaining-tokens"]),
        reset_tokens_s=duration(said["reset-tokens"]),
    )


_RATE_LIMITS = tuple(f"{part}-{unit}" for unit in ("requests", "tokens") for part in ("limit", "remaining", "reset"))


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|us|µs|ns|d|h|m|s)")


def duration(text: str | None) -> float | None:
    """Return seconds of a Go duration (``1m26.4s``) or a bare number, None for anything else."""
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,12})?", text):
        return float(text)
    if not text or _DURATION_PART.sub("", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def retry_hint(headers: Mapping[str, str], text: str = "", now: float | None = None) -> float | None:
    """Return the seconds that the server asks to wait: headers first, then the body's own words; None where it names none."""
    hints = (
        _positive(headers.get("retry-after-ms"), 1e-3),
        _positive(headers.get("retry-after"), 1.0),
        _until_date(headers.get("retry-after"), time.time() if now is None else now),
        *(duration(found) for found in re.findall(r'"?retryDelay"?: ?"?([0-9.]+s)', text)[:1]),
        *(duration(found) for found in re.findall(r"(?:try again|retry) in ([0-9hmsdµu.]+[a-z])", text)[:1]),
        *(_positive(found, 1.0) for found in re.findall(r"after ([0-9]{1,9}) seconds?", text)[:1]),
    )
    return next((hint for hint in hints if hint is not None and hint > 0), None)


def _positive(text: str | None, unit: float) -> float | None:
    text = (text or "").strip()
    return float(text) * unit if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,12})?", text) else None


def _until_date(text: str | None, now: float) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text or "").timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def says_error(body: Mapping[str, Any], *, top: bool = True) -> bool:
    """Say whether an object of a 200 answer is an error: under its own key, or flat with no answer beside it."""
    if body.get("error"):
        return True
    if not top:
        return False
    base = body.get("base_resp")  # MiniMax
    if isinstance(base, dict) and base.get("status_code"):
        return True
    if body.get("choices"):
        return False
    return body.get("success") is False or body.get("object") == "error" or body.get("type") == "error"


def error_from(
    status: int,
    headers: Mapping[str, str],
    body: Any,
    *,
    provider: str | None = None,
    statuses: frozenset[int] = RETRYABLE,
    now: float | None = None,
) -> LLMStatusError:
    """Return the error that an answer means; ``body`` is its bytes or the JSON already read from it."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else orjson.dumps(body, default=repr).decode()
    parsed = parse_json(body) if isinstance(body, bytes) else body
    fields = _error_fields(parsed, text)
    status = fields.status or status
    cls = _class_of(status, fields)
    hint = retry_hint(headers if status >= 300 else {}, text, now) if cls is not LLMQuotaExceededError else None
    return cls(
        f"{fields.message or 'No message'} (HTTP {status})",
        retryable=_is_retryable(cls, status, headers, fields, statuses),
        provider=provider,
        status_code=status,
        body=text[:4096],
        headers=headers,
        request_id=request_id_of(headers) or fields.request_id,
        code=fields.code,
        type=fields.type,
        param=fields.param,
        retry_after=hint,
    )


class _ErrorFields:
    """What an error body says, whatever its shape."""

    def __init__(self) -> None:
        self.message = ""
        self.code: str | None = None
        self.type: str | None = None
        self.param: str | None = None
        self.status: int | None = None
        self.request_id: str | None = None
        self.rest = ""  # details, to look for words in

    def words(self) -> str:
        return f"{self.code or ''}\n{self.type or ''}\n{self.message}\n{self.rest}".lower()


def _error_fields(parsed: Any, text: str) -> _ErrorFields:
    """Read an error body by the policy's order: list, error object, error text, errors[], base_resp, flat, FastAPI, text."""
    fields = _ErrorFields()
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    if isinstance(parsed, dict):
        _read_object(fields, parsed)
    elif isinstance(parsed, str):
        fields.message = parsed[:500]
    elif text.lstrip().startswith("<"):
        fields.message = _title(text)
    elif parsed is _INVALID:
        fields.message = " ".join(text.split())[:500]
    return fields


def _read_object(fields: _ErrorFields, body: dict[str, Any]) -> None:
    error, errors, base = body.get("error"), body.get("errors"), body.get("base_resp")
    fields.request_id = _string(body.get("request_id"))
    if isinstance(error, dict):
        _read_flat(fields, error)
        fields.type = fields.type or _string(body.get("error_type"))
    elif isinstance(error, str) and error:
        _read_flat(fields, body)
        fields.message = " ".join(filter(None, (error, _string(body.get("message")))))
    elif isinstance(errors, list) and errors and isinstance(errors[0], dict):
        _read_flat(fields, errors[0])
    elif isinstance(base, dict):
        fields.code, fields.message = str(base.get("status_code")), str(base.get("status_msg") or "")
    else:
        _read_flat(fields, body)


def _read_flat(fields: _ErrorFields, error: dict[str, Any]) -> None:
    found = next((error[name] for name in ("message", "Message", "msg", "detail", "title") if error.get(name)), "")
    if isinstance(found, dict):
        return _read_flat(fields, found)
    if isinstance(found, list):
        found = "; ".join(_detail(entry) for entry in found)
    fields.message = str(found)[:2000]
    fields.code = _code(error.get("code") or error.get("error_code"))
    fields.type = _string(error.get("type") or error.get("error_type") or error.get("status"))
    fields.param = _string(error.get("param"))
    fields.status = next((s for s in map(_status, (error.get("status_code"), error.get("code"))) if s), None)
    fields.rest = str({k: error.get(k) for k in ("details", "metadata", "innererror") if error.get(k)})[:2000]


def _detail(entry: object) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    where = entry.get("loc")
    return f"{'.'.join(map(str, where)) if isinstance(where, list) else ''}: {entry.get('msg', '')}"


def _code(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None


def _status(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599 else None


def _title(html: str) -> str:
    found = re.search(r"<title[^>]*>(.*?)</title>", html[:65536], re.IGNORECASE | re.DOTALL)
    return " ".join(found.group(1).split())[:200] if found else "HTML"


def _class_of(status: int, fields: _ErrorFields) -> type[LLMStatusError]:
    words = fields.words()
    allowed = _MAY_BECOME.get(status)
    for cls, pattern in _WORDS:
        if pattern.search(words) and (allowed is None or cls in allowed) and _plausible(cls, status):
            return cls
    if status < 400:
        return _BY_TYPE.get(fields.type or "", LLMInternalError) if status == 200 else LLMResponseError
    return _BY_STATUS.get(status, LLMInternalError if status >= 500 else LLMInvalidRequestError)


def _plausible(cls: type[LLMStatusError], status: int) -> bool:
    """A rate limit's or an overload's words count only where the status says nothing better."""
    if cls is LLMRateLimitError:
        return status in (200, 402, 429)
    if cls is LLMOverloadedError:
        return status == 200 or status >= 500
    return status != 401


_BY_TYPE: dict[str, type[LLMStatusError]] = {
    "invalid_request_error": LLMInvalidRequestError,
    "BadRequestError": LLMInvalidRequestError,
    "authentication_error": LLMAuthenticationError,
    "permission_error": LLMPermissionDeniedError,
    "not_found_error": LLMNotFoundError,
    "rate_limit_error": LLMRateLimitError,
    "overloaded_error": LLMOverloadedError,
}


def _is_retryable(
    cls: type[LLMStatusError], status: int, headers: Mapping[str, str], fields: _ErrorFields, statuses: frozenset[int]
) -> bool:
    said = headers.get("x-should-retry", "").lower()
    if said in ("true", "false"):
        return said == "true"
    if issubclass(cls, LLMQuotaExceededError):
        return False
    if cls in (LLMRateLimitError, LLMOverloadedError) and status not in range(400, 600):
        return True
    if cls is LLMRateLimitError and "request too large" in fields.message.lower():
        return False  # asks for more than the limit itself: no wait makes it fit
    if status == 402 and cls is LLMRateLimitError:
        return True  # OpenRouter's in-flight budget
    if issubclass(cls, LLMInvalidRequestError | LLMAuthenticationError | LLMPermissionDeniedError | LLMNotFoundError):
        return status in statuses and cls is LLMInvalidRequestError
    return status in statuses or (status == 200 and cls is LLMInternalError)


def redacted(error: LLMError, secret: str | None) -> LLMError:
    """Take the key out of everything the error says: some servers send it back."""
    if secret is None or len(secret) < 4:
        return error
    for name, value in vars(error).items():
        if isinstance(value, str):
            setattr(error, name, value.replace(secret, "***"))
        elif isinstance(value, dict):
            setattr(error, name, {k: v.replace(secret, "***") if isinstance(v, str) else v for k, v in value.items()})
    error.args = (error.message,)
    return error
